//! Since when an agent counts as fresh: since the end of whatever was last deployed to its host. Another deployment may
//! have come after those that an event is about, and may be over when the event is handled: an agent that was restarted
//! between the two is stale.

use std::collections::BTreeMap;

use crate::aws::RegionClients;
use crate::clock::{Clock, Timestamp};
use crate::decision::{Names, Target};
use crate::deployments::{
    Deployment, ENDED, by_auto_scaling, get_deployments, list_deployments, list_targets,
    never_began, read_deployment,
};
use crate::groups::Group;
use crate::ids::InstanceId;
use crate::problem::CallError;

/// Before every agent's start: whoever is healthy is fresh.
const ALWAYS: Timestamp = Timestamp(1);

/// Since when the agents of a group count as fresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// What counts for everybody.
    all: Timestamp,
    /// What counts for those that a later follow-up deployment went to, if that is later.
    own: BTreeMap<Target, Timestamp>,
}

impl Freshness {
    /// The same for everybody.
    pub fn since(all: Timestamp) -> Self {
        Self {
            all,
            own: BTreeMap::new(),
        }
    }

    /// Since when this instance's agent counts as fresh.
    pub fn of(&self, id: &InstanceId) -> Timestamp {
        let own = self.own.get(&Target::Instance(id.clone())).copied();
        own.map_or(self.all, |own| own.max(self.all))
    }

    /// The same, with ids in place of the names that are known.
    pub fn named(self, names: &Names) -> Self {
        let own = self.own.into_iter();
        Self {
            all: self.all,
            own: own
                .map(|(target, since)| (names.resolved(target), since))
                .collect(),
        }
    }
}

/// Looks at the group's deployments and at every one that was created since and has ended. Those of Auto Scaling do not
/// count: their instances are starting or leaving. One that CodeDeploy made for instances that it had missed counts for
/// these. One whose end is not told may have ended last: of those that the order is about, no later than it came; of the
/// others, just now.
///
/// # Errors
/// When a call fails for good.
pub async fn read(
    client: &RegionClients,
    group: &Group,
    clock: &Clock,
) -> Result<Freshness, CallError> {
    if let Some(asked) = group.asked_since {
        return Ok(Freshness::since(asked));
    }
    if group.deployments.is_empty() {
        return Ok(Freshness::since(ALWAYS));
    }
    let mut deployments = group.deployments.clone();
    // The bounds of the range are not documented: a second more does no harm.
    let first = deployments.iter().filter_map(|d| d.created_at).min();
    let since = first.map(|first| Timestamp(first.0.saturating_sub(1)));
    let mut ids = list_deployments(client, &group.name, &ENDED, since, usize::MAX).await?;
    let has_ended = |id: &String| {
        let known = deployments.iter().find(|known| known.id.as_str() == id);
        known.is_some_and(|known| known.completed_at.is_some())
    };
    ids.retain(|id| !has_ended(id));
    let infos = get_deployments(client, &group.name, &ids).await?;
    let now = clock.now();
    // One that is listed but not described counts: nobody says that it is Auto Scaling's.
    let all_described = infos.len() >= ids.len();
    for info in infos {
        if by_auto_scaling(&info) || never_began(&info) {
            continue;
        }
        let mut later = read_deployment(&info)?;
        let ordered = group.deployments.iter().any(|known| known.id == later.id);
        if !ordered {
            later.completed_at = later.completed_at.or(Some(now));
        }
        if later.auto_update {
            later.targets = list_targets(client, &later).await?;
        }
        deployments.retain(|known| known.id != later.id);
        deployments.push(later);
    }
    let mut fresh = of_deployments(&deployments, group.ordered_at);
    if !all_described {
        fresh.all = fresh.all.max(now);
    }
    Ok(fresh)
}

fn of_deployments(deployments: &[Deployment], ordered_at: Timestamp) -> Freshness {
    let (mut all, mut own) = (ALWAYS, BTreeMap::new());
    for deployment in deployments {
        let ended = deployment.completed_at.unwrap_or(ordered_at);
        if !deployment.auto_update {
            all = all.max(ended);
            continue;
        }
        for target in &deployment.targets {
            let latest = own.entry(target.clone()).or_insert(ended);
            *latest = ended.max(*latest);
        }
    }
    Freshness { all, own }
}

//! Machines outside EC2. CodeDeploy knows them by a name, Systems Manager by an id of its own (`mi-…`): the one machine
//! whose Name is exactly that name is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::aws::RegionClients;
use crate::decision::{Candidate, Machine, Tagged, Target};
use crate::ids::{InstanceId, Region};
use crate::nodes;
use crate::problem::CallError;
use crate::settings::Tag;

/// Reading a region's machines may take this long, retries included: the instances of EC2 need not wait for longer.
const LIMIT: Duration = Duration::from_secs(30);

/// What Systems Manager said of a region.
type Answer = Result<Arc<Machines>, CallError>;

/// The machines of each region, read at most once for an event, and only where a target is one of them.
#[derive(Debug, Default)]
pub struct Directory {
    tag: Option<Tag>,
    regions: Mutex<BTreeMap<Region, Arc<OnceCell<Answer>>>>,
}

impl Directory {
    /// One of which nothing has been read. With a tag, it is read who has that as well.
    pub fn new(tag: Option<Tag>) -> Self {
        Self {
            tag,
            regions: Mutex::default(),
        }
    }

    /// The machines of a region.
    ///
    /// # Errors
    /// When a call failed for good.
    pub async fn in_region(
        &self,
        client: &RegionClients,
        region: &Region,
    ) -> Result<Arc<Machines>, CallError> {
        let cell = {
            let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(regions.entry(region.clone()).or_default())
        };
        let read = async || {
            let read = timeout(LIMIT, Machines::read(client, self.tag.as_ref())).await;
            let late = || {
                let resource = "machines outside EC2";
                CallError::out_of_time("ssm:DescribeInstanceInformation", resource)
            };
            read.unwrap_or_else(|_| Err(late())).map(Arc::new)
        };
        cell.get_or_init(read).await.clone()
    }
}

/// The machines of one region.
#[derive(Debug, Default)]
pub struct Machines {
    by_name: BTreeMap<String, Vec<nodes::Machine>>,
    tagged: BTreeSet<InstanceId>,
}

impl Machines {
    async fn read(client: &RegionClients, tag: Option<&Tag>) -> Result<Self, CallError> {
        let tagged = async {
            match tag {
                Some(tag) => nodes::tagged(client, tag).await,
                None => Ok(BTreeSet::new()),
            }
        };
        let (machines, tagged) = try_join(nodes::outside_ec2(client), tagged).await?;
        let mut by_name: BTreeMap<String, Vec<nodes::Machine>> = BTreeMap::new();
        for machine in machines {
            let namesakes = by_name.entry(machine.name.clone()).or_default();
            // Pages move while they are read: one may stand on two.
            if namesakes.iter().all(|known| known.id != machine.id) {
                namesakes.push(machine);
            }
        }
        Ok(Self { by_name, tagged })
    }

    /// The candidate that CodeDeploy means by a name: the machine, or the name with those that bear it.
    pub fn candidate(&self, name: &str) -> (Target, Candidate) {
        let namesakes = self.by_name.get(name).map_or(&[][..], Vec::as_slice);
        if let [machine] = namesakes {
            let candidate = Candidate {
                node: Some(machine.node.clone()),
                machine: Machine::OutsideEc2,
                tagged: match self.tagged.contains(&machine.id) {
                    true => Tagged::Yes,
                    false => Tagged::No,
                },
                ..Candidate::default()
            };
            return (Target::Instance(machine.id.clone()), candidate);
        }
        let candidate = Candidate {
            namesakes: Some(namesakes.iter().map(|m| m.id.clone()).collect()),
            ..Candidate::default()
        };
        (Target::OnPremises(name.to_owned()), candidate)
    }
}

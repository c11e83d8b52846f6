//! What goes wrong: faults of calls, and what changes in the account while the function works.

use fastrand::Rng;
use sim::{Fault, FaultKind, Member, State};

use crate::fleet::{ABROAD, HOME, PASSING, STAYING, UNKNOWN_LIFECYCLE, between, one_in, pick};

/// The operations, and whether they are paged.
pub const OPERATIONS: [(&str, bool); 13] = [
    ("ListActionExecutions", true),
    ("GetDeployment", false),
    ("BatchGetDeployments", false),
    ("GetDeploymentGroup", false),
    ("ListDeployments", true),
    ("ListDeploymentTargets", true),
    ("DescribeInstances", true),
    ("DescribeAutoScalingGroups", true),
    ("DescribeAutoScalingInstances", true),
    ("DescribeInstanceInformation", true),
    ("SendCommand", false),
    ("ListCommandInvocations", true),
    ("Publish", false),
];

/// The kinds of faults, as they are counted.
pub const KINDS: [&str; 14] = [
    "throttled",
    "internal error",
    "unavailable",
    "access denied",
    "connection refused",
    "reset before the effect",
    "reset after the effect",
    "no reply, no effect",
    "no reply after the effect",
    "slow reply",
    "expired page token",
    "expired credentials",
    "unknown command",
    "unreadable reply",
];
/// Those that only polls meet.
pub const OF_POLLS: [&str; 3] = ["expired credentials", "unknown command", "unreadable reply"];

/// The name under which a fault is counted.
pub fn kind_of(fault: &Fault) -> &'static str {
    match (fault.kind(), fault.code.as_deref()) {
        (FaultKind::Refused, _) => "connection refused",
        (FaultKind::Reset, _) => "reset before the effect",
        (FaultKind::LostReply, _) => "reset after the effect",
        (FaultKind::NoReply, _) => "no reply, no effect",
        (FaultKind::NoReplyAfter, _) => "no reply after the effect",
        (FaultKind::Slow, _) => "slow reply",
        (FaultKind::ExpiredToken, _) => "expired page token",
        (FaultKind::Unreadable, _) => "unreadable reply",
        (FaultKind::Error, None) => "throttled",
        (FaultKind::Error, Some("ExpiredTokenException")) => "expired credentials",
        (FaultKind::Error, Some("InvalidCommandId")) => "unknown command",
        (FaultKind::Error, Some("InternalFailure" | "InternalServerError" | "InternalError")) => {
            "internal error"
        }
        (FaultKind::Error, Some(code)) if code.starts_with("Access") => "access denied",
        (FaultKind::Error, Some("AuthorizationError" | "UnauthorizedOperation")) => "access denied",
        (FaultKind::Error, Some(_)) => "unavailable",
    }
}

/// The faults of a run: none, a few, many, the long outage of an operation, or polls that are refused.
pub fn faults(rng: &mut Rng) -> Vec<Fault> {
    let mut faults = Vec::new();
    match rng.u32(..24) {
        20.. => {
            for _ in 0..rng.usize(1..=3) {
                faults.push(refused_polls(rng));
            }
        }
        0..=5 => {}
        6..=12 => {
            for _ in 0..rng.usize(1..=5) {
                let operation = pick(rng, &OPERATIONS).0;
                let after = *pick(rng, &[0, 0, 0, 1, 3, 12]);
                faults.push(fault(rng, operation, after, 3));
            }
        }
        13..=16 => {
            for (operation, _) in OPERATIONS {
                for _ in 0..*pick(rng, &[0, 0, 1, 3]) {
                    let after = *pick(rng, &[0, 1, 2, 5, 20]);
                    faults.push(fault(rng, operation, after, 9));
                }
            }
        }
        17 | 18 => {
            let operation = pick(rng, &OPERATIONS).0;
            let after = *pick(rng, &[0, 0, 1, 4, 30]);
            let mut outage = fault(rng, operation, after, 1);
            outage.times = *pick(rng, &[40, 10_000]);
            outage.region =
                (*pick(rng, &[None, None, Some(HOME), Some(ABROAD)])).map(str::to_owned);
            faults.push(outage);
        }
        // Every reply of an operation takes its time, so that crashes meet calls under way; or SNS is silent for good, so that
        // the end is what the function has left for it.
        _ => {
            let operation = *pick(rng, &["SendCommand", "Publish", "ListCommandInvocations"]);
            let silent = operation == "Publish" && rng.bool();
            faults.push(Fault {
                operation: operation.to_owned(),
                kind: if silent {
                    FaultKind::NoReply
                } else {
                    FaultKind::Slow
                },
                seconds: between(rng, 0.2, 4.0),
                times: 10_000,
                ..Fault::default()
            });
        }
    }
    faults
}

/// Polls that get no answer, once or for minutes.
fn refused_polls(rng: &mut Rng) -> Fault {
    let mut fault = Fault {
        operation: "ListCommandInvocations".to_owned(),
        after: *pick(rng, &[0, 0, 1, 3, 9, 30]),
        times: *pick(rng, &[1, 1, 2, 12, 60]),
        ..Fault::default()
    };
    match rng.u32(..10) {
        0 => {}
        9 => {
            fault.kind = FaultKind::ExpiredToken;
            fault.times = 1;
        }
        1 => fault.code = Some("ExpiredTokenException".to_owned()),
        2 | 3 => fault.code = Some("AccessDeniedException".to_owned()),
        4 => fault.code = Some("InvalidCommandId".to_owned()),
        5 => fault.code = Some("InternalServerError".to_owned()),
        6 => fault.kind = FaultKind::Refused,
        7 => fault.kind = FaultKind::NoReply,
        _ => fault.kind = FaultKind::Unreadable,
    }
    fault
}

fn fault(rng: &mut Rng, operation: &str, after: u64, most: u64) -> Fault {
    let paged = OPERATIONS
        .iter()
        .any(|(name, paged)| *name == operation && *paged);
    let mut fault = Fault {
        operation: operation.to_owned(),
        after,
        times: rng.u64(1..=most),
        ..Fault::default()
    };
    match rng.u32(..14) {
        0..=3 => {}
        4 => fault.code = Some(internal_error(operation).to_owned()),
        5 => {
            fault.code = Some("ServiceUnavailable".to_owned());
            fault.status = Some(503);
        }
        6 => fault.code = Some(denial(operation).to_owned()),
        7 => fault.kind = FaultKind::Refused,
        8 => fault.kind = FaultKind::Reset,
        9 => fault.kind = FaultKind::LostReply,
        10 => fault.kind = FaultKind::NoReply,
        11 => fault.kind = FaultKind::NoReplyAfter,
        12 if paged => {
            fault.kind = FaultKind::ExpiredToken;
            fault.times = 1;
        }
        _ => {
            fault.kind = FaultKind::Slow;
            fault.seconds = between(rng, 0.5, 14.0);
        }
    }
    fault
}

fn internal_error(operation: &str) -> &'static str {
    match operation {
        "DescribeInstanceInformation" | "SendCommand" | "ListCommandInvocations" => {
            "InternalServerError"
        }
        "DescribeInstances" => "InternalError",
        _ => "InternalFailure",
    }
}

fn denial(operation: &str) -> &'static str {
    match operation {
        "Publish" => "AuthorizationError",
        "DescribeInstances" => "UnauthorizedOperation",
        "DescribeAutoScalingGroups" | "DescribeAutoScalingInstances" => "AccessDenied",
        _ => "AccessDeniedException",
    }
}

/// Something that happens in mid-run.
#[derive(Clone, Debug)]
pub struct Change {
    /// When, in seconds since the start.
    pub at: f64,
    pub region: String,
    /// The instance.
    pub id: String,
    pub what: What,
}

/// What happens to an instance.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Its lifecycle state changes.
    Lifecycle(&'static str),
    /// It leaves its Auto Scaling group, and runs on.
    Leaves,
    /// It joins an Auto Scaling group.
    Joins(String),
    /// It is gone, from its group too.
    Terminates,
    /// Its SSM agent goes away.
    GoesOffline,
    /// Its SSM agent comes back, and Systems Manager knows.
    ComesBack,
    /// It is unknown to Systems Manager from now on.
    Vanishes,
    /// Somebody takes its tags away.
    LosesTags,
}

impl What {
    /// The name under which it is counted.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lifecycle(_) => "lifecycle changes",
            Self::Leaves => "leaves its group",
            Self::Joins(_) => "joins a group",
            Self::Terminates => "terminates",
            Self::GoesOffline => "goes offline",
            Self::ComesBack => "comes back",
            Self::Vanishes => "vanishes from SSM",
            Self::LosesTags => "loses its tags",
        }
    }
}

/// The names of all changes.
pub const CHANGES: [&str; 8] = [
    "lifecycle changes",
    "leaves its group",
    "joins a group",
    "terminates",
    "goes offline",
    "comes back",
    "vanishes from SSM",
    "loses its tags",
];

/// What happens in mid-run, by time.
pub fn changes(rng: &mut Rng, state: &State) -> Vec<Change> {
    let mut changes = Vec::new();
    if rng.u32(..5) < 2 {
        return changes;
    }
    for (region, held) in &state.regions {
        let members: Vec<&String> = held
            .auto_scaling_groups
            .iter()
            .flat_map(|group| group.instances.iter().map(|member| &member.id))
            .collect();
        let most = 1 + held.hosts.len() / *pick(rng, &[4, 20, 60]);
        for _ in 0..rng.usize(..=most) {
            let Some(host) = held.hosts.get(rng.usize(..held.hosts.len().max(1))) else {
                continue;
            };
            let at = match one_in(rng, 2) {
                true => between(rng, 0.0, 12.0),
                false => between(rng, 0.0, 400.0),
            };
            let mut happens = |at: f64, what: What| {
                changes.push(Change {
                    at,
                    region: region.clone(),
                    id: host.id.clone(),
                    what,
                });
            };
            let member = members.contains(&&host.id);
            let outside_ec2 = host.is_on_premises();
            match rng.u32(..9) {
                0 | 1 if member => {
                    happens(at, What::Lifecycle("Terminating"));
                    happens(at + 5.0, What::Lifecycle("Terminating:Wait"));
                    happens(at + between(rng, 10.0, 90.0), What::Terminates);
                }
                2 if member => {
                    let word = match rng.u32(..3) {
                        0 => UNKNOWN_LIFECYCLE,
                        1 => pick(rng, &STAYING),
                        _ => pick(rng, &PASSING),
                    };
                    happens(at, What::Lifecycle(word));
                }
                3 if member => happens(at, What::Leaves),
                3 | 4 if outside_ec2 => happens(at, What::Vanishes),
                3 => {
                    if let Some(group) = held.auto_scaling_groups.first() {
                        happens(at, What::Joins(group.name.clone()));
                    }
                }
                4 => happens(at, What::Terminates),
                5 => {
                    happens(at, What::GoesOffline);
                    if rng.bool() {
                        happens(at + between(rng, 3.0, 200.0), What::ComesBack);
                    }
                }
                6 => happens(at, What::Vanishes),
                7 => happens(at, What::LosesTags),
                _ => happens(at, What::ComesBack),
            }
        }
    }
    changes.sort_by(|one, other| one.at.total_cmp(&other.at));
    changes
}

impl Change {
    /// Lets it happen.
    pub fn apply(&self, state: &mut State) {
        let held = state.region(&self.region);
        let groups = &mut held.auto_scaling_groups;
        match &self.what {
            What::Lifecycle(word) => {
                let members = groups.iter_mut().flat_map(|group| &mut group.instances);
                for member in members.filter(|member| member.id == self.id) {
                    (*word).clone_into(&mut member.lifecycle);
                }
            }
            What::Leaves | What::Terminates => {
                for group in groups.iter_mut() {
                    group.instances.retain(|member| member.id != self.id);
                }
            }
            What::Joins(name) => {
                let known = groups.iter().flat_map(|group| &group.instances);
                let known = known.into_iter().any(|member| member.id == self.id);
                if let Some(group) = groups.iter_mut().find(|group| group.name == *name)
                    && !known
                {
                    group.instances.push(Member {
                        id: self.id.clone(),
                        ..Member::default()
                    });
                }
            }
            What::GoesOffline | What::ComesBack | What::Vanishes | What::LosesTags => {}
        }
        let Some(host) = held.hosts.iter_mut().find(|host| host.id == self.id) else {
            return;
        };
        match &self.what {
            What::Terminates => "terminated".clone_into(&mut host.state),
            What::GoesOffline => host.offline = true,
            What::ComesBack => {
                host.offline = false;
                "Online".clone_into(&mut host.ping);
            }
            What::Vanishes => host.managed = false,
            What::LosesTags => host.tags.clear(),
            What::Lifecycle(_) | What::Leaves | What::Joins(_) => {}
        }
    }
}

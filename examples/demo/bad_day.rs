//! The bad day: four fleets of one pipeline on which everything happens that may happen, each of the
//! thirteen outcomes at least once. Who plays what is fixed; the seed varies ids, memory and durations.

use sim::{
    Action, AgentFault, Answer, AutoScalingGroup, Deployment, DeploymentGroup, Fault, Host, Member,
    State, TagFilter, Target,
};

use crate::stage::Incident;

/// What the operator set on that day.
///
/// `MAX_ERRORS` is chosen so that the brake shows, and hides nothing else. Of api's 20 restarts seven end
/// in a failure that counts, and 35 % allows just these seven: every kind of failure is seen. Of batch's 5
/// it allows two, and its first round of three (`MAX_CONCURRENCY`) fails as a whole: the other two are
/// held back. `MIN_MEMORY_MIB` is more than one stale agent holds, and less than all the others do.
pub const SETTINGS: [(&str, &str); 3] = [
    ("MAX_CONCURRENCY", "50%"),
    ("MAX_ERRORS", "35%"),
    ("MIN_MEMORY_MIB", "60"),
];

/// What an instance plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// An agent that restarts as it should.
    Usual,
    /// No agent runs: it is started.
    Down,
    /// Somebody restarts the agent while the function waits for quiet.
    RestartedByHand,
    /// The agent holds less than `MIN_MEMORY_MIB`.
    Small,
    /// A lifecycle event runs for longer than the host's patience.
    Busy,
    /// What goes wrong on the host.
    Fails(AgentFault),
    /// A broken proxy: each new agent crash-loops, everywhere at the same moment.
    BehindProxy,
    /// The agent is not installed.
    NotInstalled,
    /// The document's name leads to somebody else's document there.
    ForeignOutput,
    /// The document's line is cut off.
    UnreadableOutput,
    /// Somebody cancels the command.
    Cancelled,
    /// Systems Manager gives a status that is newer than the function.
    UnknownStatus,
    /// Auto Scaling gives a lifecycle state that is newer than the function.
    UnknownLifecycle,
    /// Auto Scaling is just starting it; the deployment did not go there.
    Launching,
    /// Scaled in after the deployment and before the event.
    ScaledIn,
    /// Scaled in between the first and the second round of restarts.
    ScaledInMeanwhile,
    /// It was stopped during the deployment, which lists it all the same.
    Stopped,
    /// The SSM Agent lost its connection, and stays away.
    Offline,
    /// The SSM Agent lost its connection, and is back when the function looks again.
    OfflineAndBack,
    /// It has no SSM Agent.
    NotManaged,
    /// It lacks the tag that the function's role asks for: its whole command is denied.
    Denied,
    /// Systems Manager calls it online, and delivers nothing.
    Deaf,
}

/// One Auto Scaling group behind one deployment group; the first ten of the twenty that are to be
/// restarted are the first round. A time-out and a status without end take most of Lambda's time, so
/// they stand there.
const API: [Part; 23] = [
    Part::Usual,
    Part::Fails(AgentFault::AgentUnhealthy),
    Part::Usual,
    Part::Small,
    Part::Launching,
    Part::Busy,
    Part::Fails(AgentFault::Draining),
    Part::ScaledIn,
    Part::Down,
    Part::Fails(AgentFault::Hangs),
    Part::UnknownStatus,
    Part::UnknownLifecycle,
    Part::Fails(AgentFault::OldAgentSurvived),
    Part::Fails(AgentFault::AgentDown),
    Part::Fails(AgentFault::ServiceManagerFailed),
    Part::RestartedByHand,
    Part::NotInstalled,
    Part::Fails(AgentFault::PreflightFailed),
    Part::ForeignOutput,
    Part::UnreadableOutput,
    Part::Cancelled,
    Part::ScaledInMeanwhile,
    Part::Usual,
];
/// Chosen by tags. It is a fleet apart from api: the function looks again at who was offline when
/// nothing else of the group is open, which api never reaches.
const WORKER: [Part; 9] = [
    Part::Usual,
    Part::Denied,
    Part::Usual,
    Part::Stopped,
    Part::Deaf,
    Part::Offline,
    Part::OfflineAndBack,
    Part::NotManaged,
    Part::Usual,
];
/// All of them behind the same broken proxy.
const BATCH: [Part; 5] = [Part::BehindProxy; 5];
/// In another region, where nobody created the restart document.
const WEST: [Part; 2] = [Part::Usual; 2];
const WEST_REGION: &str = "us-west-2";

const APPLICATION: &str = "my-application";
/// Somebody else's account, in which the pipeline's last action deploys.
const OTHER_ACCOUNT_ROLE: &str = "arn:aws:iam::210987654321:role/deploy";
/// Seconds before the world's start at which the pipeline's deployments ended.
const COMPLETED: f64 = -5.0;
/// Seconds after the start at which somebody else's deployment to api ends.
const OTHER_DEPLOYMENT_ENDS: f64 = 45.0;
/// Seconds before an invocation appears in its command's list: later than the first look.
const LIST_LAG: f64 = 9.0;

/// One deployment group with its instances and its action in the pipeline.
struct Troupe {
    region: String,
    name: &'static str,
    action: &'static str,
    deployment: &'static str,
    tagged: bool,
    parts: &'static [Part],
}

/// Fills the world, and gives what happens in it while the function works.
pub fn cast(state: &mut State, home: &str, seed: u64) -> Vec<Incident> {
    // The SDK's pauses between its attempts are random too.
    fastrand::seed(seed);
    let mut random = fastrand::Rng::with_seed(seed);
    state.invocation_lag = LIST_LAG;
    let held = state.region(home);
    held.deployment_groups.clear();
    held.deployments.clear();
    held.auto_scaling_groups.clear();
    held.pipelines[0].executions[0].actions.clear();

    let troupe = |region: &str, name, action, deployment, parts| Troupe {
        region: region.to_owned(),
        name,
        action,
        deployment,
        tagged: name == "worker",
        parts,
    };
    let troupes = [
        troupe(home, "api", "Api", "d-API000001", &API[..]),
        troupe(home, "worker", "Worker", "d-WORKER001", &WORKER),
        troupe(home, "batch", "Batch", "d-BATCH0001", &BATCH),
        troupe(WEST_REGION, "west", "West", "d-WEST00001", &WEST),
    ];
    let mut incidents = vec![throttling()];
    for troupe in &troupes {
        incidents.extend(enter(state, home, troupe, &mut random));
    }
    let held = state.region(home);
    held.deployments.push(Deployment {
        id: "d-OTHER0001".to_owned(),
        application: APPLICATION.to_owned(),
        deployment_group: "api".to_owned(),
        created_at: -20.0,
        completed_at: Some(OTHER_DEPLOYMENT_ENDS),
        ..Deployment::default()
    });
    held.pipelines[0].executions[0].actions.push(Action {
        action: "Partner".to_owned(),
        role_arn: Some(OTHER_ACCOUNT_ROLE.to_owned()),
        application: Some("partner-application".to_owned()),
        deployment_group: Some("partner".to_owned()),
        deployment_id: Some("d-PARTNER01".to_owned()),
        updated_at: COMPLETED,
        ..Action::default()
    });
    incidents.sort_by_key(|incident| incident.after);
    incidents
}

/// From the delivery on, since a plan that is asked for before would use it up.
fn throttling() -> Incident {
    let calls = [
        ("GetDeployment", 2, 0),
        ("DescribeInstanceInformation", 2, 0),
        ("SendCommand", 2, 1),
        ("ListCommandInvocations", 4, 6),
        ("Publish", 1, 0),
    ];
    Incident {
        after: 0,
        what: "AWS begins to throttle some calls".to_owned(),
        change: Box::new(move |state, _| {
            let faults = calls.iter().map(|(operation, times, after)| Fault {
                operation: (*operation).to_owned(),
                times: *times,
                after: *after,
                ..Fault::default()
            });
            state.faults.extend(faults);
        }),
    }
}

/// Puts a group, its deployment, its action and its instances into the world.
fn enter(
    state: &mut State,
    home: &str,
    troupe: &Troupe,
    random: &mut fastrand::Rng,
) -> Vec<Incident> {
    // Ascending, as they are sent: so the order of the parts is that of the rounds, whatever the seed.
    let mut ids: Vec<String> = troupe
        .parts
        .iter()
        .map(|_| format!("i-0{:016x}", random.u64(..)))
        .collect();
    ids.sort();
    let mut targets = Vec::new();
    let mut members = Vec::new();
    let mut incidents = Vec::new();
    let held = state.region(&troupe.region);
    for (n, (id, part)) in ids.into_iter().zip(troupe.parts).enumerate() {
        let name = format!("{}-{:02}", troupe.name, n + 1);
        held.hosts.push(host(&id, &name, *part, random));
        if *part != Part::Launching {
            targets.push(target(&id, *part));
        }
        if !troupe.tagged && *part != Part::ScaledIn {
            members.push(member(&id, *part));
        }
        incidents.extend(incident(&id, &name, *part));
    }
    held.deployment_groups.push(DeploymentGroup {
        application: APPLICATION.to_owned(),
        name: troupe.name.to_owned(),
        auto_scaling_groups: match troupe.tagged {
            true => Vec::new(),
            false => vec![troupe.name.to_owned()],
        },
        tag_filters: match troupe.tagged {
            true => vec![TagFilter {
                key: "role".to_owned(),
                value: troupe.name.to_owned(),
            }],
            false => Vec::new(),
        },
        ..DeploymentGroup::default()
    });
    held.deployments.push(Deployment {
        id: troupe.deployment.to_owned(),
        application: APPLICATION.to_owned(),
        deployment_group: troupe.name.to_owned(),
        created_at: -120.0,
        completed_at: Some(COMPLETED),
        targets,
        ..Deployment::default()
    });
    if !troupe.tagged {
        held.auto_scaling_groups.push(AutoScalingGroup {
            name: troupe.name.to_owned(),
            instances: members,
        });
    }
    let pipelines = &mut state.region(home).pipelines;
    pipelines[0].executions[0].actions.push(Action {
        action: troupe.action.to_owned(),
        region: Some(troupe.region.clone()),
        application: Some(APPLICATION.to_owned()),
        deployment_group: Some(troupe.name.to_owned()),
        deployment_id: Some(troupe.deployment.to_owned()),
        updated_at: COMPLETED,
        ..Action::default()
    });
    incidents
}

fn host(id: &str, name: &str, part: Part, random: &mut fastrand::Rng) -> Host {
    let mut host = Host {
        id: id.to_owned(),
        name: Some(name.to_owned()),
        delivery_seconds: 0.5 + 3.0 * random.f64(),
        ..Host::default()
    };
    let agent = &mut host.agent;
    agent.restart_seconds = 15.0 + 60.0 * random.f64();
    agent.memory_kib = 1024 * random.u64(64..280);
    agent.fresh_memory_kib = 1024 * random.u64(48..56);
    let says = |status: &str, output: Option<&str>| {
        Some(Answer {
            status: status.to_owned(),
            output: output.map(str::to_owned),
            ..Answer::default()
        })
    };
    match part {
        Part::Usual | Part::RestartedByHand | Part::UnknownLifecycle | Part::ScaledInMeanwhile => {}
        Part::Down => {
            agent.running = false;
            agent.memory_kib = 0;
        }
        Part::Small => agent.memory_kib = 1024 * random.u64(48..56),
        Part::Busy => agent.busy = vec![[-40.0, 600.0]],
        Part::Fails(fault) => agent.fault = Some(fault),
        Part::BehindProxy => {
            agent.fault = Some(AgentFault::AgentUnhealthy);
            host.delivery_seconds = 1.0;
            agent.restart_seconds = 30.0;
        }
        Part::NotInstalled => {
            agent.installed = false;
            agent.running = false;
            agent.memory_kib = 0;
        }
        Part::ForeignOutput => host.answer = says("Success", Some("patching done, 0 packages")),
        Part::UnreadableOutput => {
            host.answer = says(
                "Success",
                Some(r#"{"agentRestart":1,"result":"restarted","co"#),
            );
        }
        Part::Cancelled => host.answer = says("Cancelled", None),
        Part::UnknownStatus => host.answer = says("Meditating", None),
        Part::Launching => agent.started_at = -30.0,
        Part::ScaledIn => "terminated".clone_into(&mut host.state),
        Part::Stopped => "stopped".clone_into(&mut host.state),
        Part::Offline | Part::OfflineAndBack => {
            "ConnectionLost".clone_into(&mut host.ping);
            host.last_ping = -5_400.0;
        }
        Part::NotManaged => host.managed = false,
        Part::Denied => host.denied = true,
        Part::Deaf => host.offline = true,
    }
    host
}

fn target(id: &str, part: Part) -> Target {
    let mut target = Target {
        id: id.to_owned(),
        ..Target::default()
    };
    if part == Part::Stopped {
        "Skipped".clone_into(&mut target.status);
    }
    target
}

fn member(id: &str, part: Part) -> Member {
    let lifecycle = match part {
        Part::Launching => "Pending:Wait",
        Part::UnknownLifecycle => "Napping",
        _ => "InService",
    };
    Member {
        id: id.to_owned(),
        lifecycle: lifecycle.to_owned(),
    }
}

/// What happens to an instance while the function works.
fn incident(id: &str, name: &str, part: Part) -> Option<Incident> {
    let id = id.to_owned();
    let incident = |after, what, change| Incident {
        after,
        what,
        change,
    };
    match part {
        // After the end of somebody else's deployment, and before its turn: else it would be stale.
        Part::RestartedByHand => Some(incident(
            60,
            format!("somebody restarts the agent of {name} by hand"),
            Box::new(move |state, at| {
                let agent = &mut state.host(&id).agent;
                agent.started_at = at;
                agent.memory_kib = agent.fresh_memory_kib;
            }),
        )),
        // After the fleet was read, before its turn.
        Part::ScaledInMeanwhile => Some(incident(
            70,
            format!("Auto Scaling terminates {name}"),
            Box::new(move |state, _| {
                let groups = state
                    .regions
                    .values_mut()
                    .flat_map(|region| &mut region.auto_scaling_groups);
                for group in groups {
                    group.instances.retain(|member| member.id != id);
                }
                "terminated".clone_into(&mut state.host(&id).state);
            }),
        )),
        Part::OfflineAndBack => Some(incident(
            140,
            format!("the SSM Agent of {name} is back"),
            Box::new(move |state, at| {
                let host = state.host(&id);
                "Online".clone_into(&mut host.ping);
                host.last_ping = at;
            }),
        )),
        _ => None,
    }
}

//! What occurred, and how often: a simulation that never met a fault proves nothing about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use codedeploy_agent_restarter::decision::Target;
use codedeploy_agent_restarter::report::Report;
use serde_json::Value;
use sim::{Call, Host, State};

use crate::deliveries::{Course, End, Fate};
use crate::fleet::{
    Condition, PASSING, SSM_FAULTS, STAYING, Scene, UNKNOWN_LIFECYCLE, verbatim_names,
};
use crate::weather::{CHANGES, KINDS, OF_POLLS, OPERATIONS, kind_of};

/// Seconds that Lambda leaves by default.
const WHOLE: f64 = 900.0;
/// Seconds after which the function looks at its commands for the first time.
const FIRST_LOOK: f64 = 5.0;

/// Outcomes of instances.
const OUTCOMES: [&str; 13] = [
    "restarted",
    "started",
    "already-restarted",
    "below-threshold",
    "skipped",
    "failed",
    "busy",
    "unreachable",
    "undelivered",
    "timed-out",
    "cancelled",
    "held-back",
    "unfinished",
];
/// Kinds of deliveries, and what became of them.
const DELIVERIES: [&str; 26] = [
    "events of several groups at the same time",
    "pipeline's event",
    "deployment's event",
    "execution that failed",
    "execution that was stopped",
    "execution that was superseded",
    "execution that was canceled",
    "deployment that failed",
    "deployment that was stopped",
    "request by hand",
    "dry run by hand",
    "event to be ignored",
    "unreadable event",
    "event of another account",
    "event of a covered account",
    "wrapping that is refused",
    "event in a queue's record",
    "event in a topic's record",
    "the same event twice",
    "pipeline's and deployment's event",
    "in a row",
    "at the same time",
    "handled at the first run",
    "handled at the second run",
    "handled at the third run",
    "dead-letter queue",
];
/// How invocations end.
const ENDS: [&str; 5] = [
    "reported",
    "ignored",
    "lost",
    "PublishFailed",
    "InvalidEvent",
];
/// Conditions of hosts, deployments and pipelines.
const CONDITIONS: [&str; 41] = [
    "picks nothing up",
    "not managed",
    "stopped",
    "terminated",
    "MacOS",
    "platform not told",
    "rejected by SSM",
    "without the tag",
    "connection lost",
    "slow delivery",
    "no agent",
    "agent does not run",
    "restarted around the deployment",
    "long lifecycle event",
    "package manager runs",
    "job in systemd's queue",
    "long poll that does not end",
    "not root",
    "preflight fails",
    "service manager fails",
    "old agent survives",
    "agent goes down",
    "agent crash-loops",
    "agent that CodeDeploy does not hear",
    "program is away",
    "no agent that is known",
    "agent drains",
    "script hangs",
    "target that did not succeed",
    "blue target",
    "scaled in",
    "launched after the deployment",
    "instances in two groups",
    "groups share members",
    "deleted Auto Scaling group",
    "on-premises target",
    "launch deployment of Auto Scaling runs",
    "another deployment runs",
    "retried stage",
    "two deployments to one group",
    "action of another account",
];
const MORE_CONDITIONS: [&str; 43] = [
    "no target listed",
    "action of a covered account",
    "machine outside EC2",
    "name that nobody bears",
    "name that several bear",
    "name of a computer alone",
    "instance without the asked tag",
    "another value of the asked tag",
    "group in which nobody has the tag",
    "target without a label",
    "deployment that never started",
    "deployment that did not succeed",
    "later deployment that ended",
    "follow-up deployment runs",
    "many launch deployments",
    "rows that lag each by itself",
    "action that failed before it deployed",
    "no document in the region",
    "no Windows document in the region",
    "no Linux document in the region",
    "no Windows document set",
    "somebody else's document",
    "deployment to no instances",
    "deployment of Auto Scaling",
    "automatic update",
    "action without a deployment id",
    "late action list",
    "action still in progress",
    "Windows host",
    "wrong clock",
    "agent started within a second of the deployment's end",
    "short deadline",
    "late invocation list",
    "short pages",
    "deployment that starts during the run",
    "vanishes between inventory and send",
    "late output",
    "output lost",
    "step lost",
    "buffered command",
    "message older than its time-out",
    "noise on standard error",
    "command not known yet",
];
/// What there is only with several groups, or with many instances.
const TOGETHER: [&str; 5] = [
    "sent to by two groups, one after the other",
    "second group finds it fresh",
    "several messages of one event",
    "text that does not name all",
    "message that omits rows",
];
/// What counts once a report accounts for the instance: the function decides by it. Everything else that concerns an
/// instance takes effect on the host, or in the answer from there, and counts once a command was sent to it.
const DECIDED_BY: [&str; 16] = [
    "name that nobody bears",
    "name that several bear",
    "name of a computer alone",
    "MacOS",
    "platform not told",
    "not managed",
    "stopped",
    "terminated",
    "rejected by SSM",
    "without the tag",
    "instance without the asked tag",
    "another value of the asked tag",
    "connection lost",
    "target that did not succeed",
    "scaled in",
    "launched after the deployment",
];
/// Calls of which every kind of fault must meet each: those that write, and the polls.
const WRITES: [(&str, &str); 2] = [
    ("SendCommand", "faults of SendCommand"),
    ("Publish", "faults of Publish"),
];
const POLLS: (&str, &str) = ("ListCommandInvocations", "faults of polls");

/// The instances that a run was about.
struct Concerned<'a> {
    /// Those that a report accounts for.
    reported: BTreeSet<&'a str>,
    /// Those that a command was sent to.
    sent: BTreeSet<&'a str>,
}

impl<'a> Concerned<'a> {
    fn of(course: &'a Course, end: &'a State) -> Self {
        let reports = course.invocations.iter().filter_map(|run| match &run.end {
            End::Reported(report, _) => Some(report),
            _ => None,
        });
        let groups = reports.flat_map(|report| &report.groups);
        let commands = end.regions.values().flat_map(|region| &region.commands);
        Self {
            reported: groups
                .flat_map(|group| group.instances.keys().map(Target::as_str))
                .collect(),
            sent: commands
                .flat_map(|command| &command.invocations)
                .map(|ran| ran.instance_id.as_str())
                .collect(),
        }
    }

    /// Whether a condition mattered: see [`DECIDED_BY`]. What concerns no instance always does.
    fn met(&self, condition: &Condition) -> bool {
        let decided = DECIDED_BY.contains(&condition.name) || is_lifecycle(condition.name);
        match condition.instance.as_deref() {
            None => true,
            Some(id) if decided => self.reported.contains(id),
            Some(id) => self.sent.contains(id),
        }
    }
}

/// Counts by table and name.
#[derive(Clone, Debug)]
pub struct Tally {
    runs: usize,
    sizes: Vec<usize>,
    calls: usize,
    tables: BTreeMap<&'static str, BTreeMap<String, usize>>,
}

impl Tally {
    /// Every name that must occur, with zero.
    pub fn new() -> Self {
        let mut tally = Self {
            runs: 0,
            sizes: Vec::new(),
            calls: 0,
            tables: BTreeMap::new(),
        };
        let faulty = OPERATIONS.map(|(operation, _)| operation);
        let lifecycles = PASSING
            .into_iter()
            .chain(STAYING)
            .chain([UNKNOWN_LIFECYCLE]);
        // Neither is paged.
        let unpaged = || {
            KINDS
                .into_iter()
                .filter(|kind| *kind != "expired page token" && !OF_POLLS.contains(kind))
        };
        let writes = WRITES.map(|(_, table)| (table, unpaged().collect::<Vec<_>>()));
        let expected: [(&'static str, Vec<&str>); 12] = [
            ("faults by kind", KINDS.to_vec()),
            ("faults by operation", faulty.to_vec()),
            ("changes in mid-run", CHANGES.to_vec()),
            ("deliveries", DELIVERIES.to_vec()),
            ("ends of invocations", ENDS.to_vec()),
            ("outcomes", OUTCOMES.to_vec()),
            (
                "conditions",
                CONDITIONS.into_iter().chain(MORE_CONDITIONS).collect(),
            ),
            ("SSM Agents", SSM_FAULTS.map(|(_, name)| name).to_vec()),
            (POLLS.1, KINDS.to_vec()),
            ("odd lifecycle states", lifecycles.collect()),
            ("verbatim answers", verbatim_names()),
            ("groups and messages", TOGETHER.to_vec()),
        ];
        for (table, names) in expected.into_iter().chain(writes) {
            for name in names {
                tally.add(table, name, 0);
            }
        }
        tally
    }

    fn add(&mut self, table: &'static str, name: &str, count: usize) {
        let table = self.tables.entry(table).or_default();
        match table.get_mut(name) {
            Some(known) => *known += count,
            None => {
                table.insert(name.to_owned(), count);
            }
        }
    }

    /// Counts what occurred in a run.
    pub fn count(&mut self, scene: &Scene, course: &Course) {
        self.runs += 1;
        self.sizes.push(scene.size());
        course.world.read(|end, calls| {
            let concerned = Concerned::of(course, end);
            self.count_drawn(scene, &concerned);
            self.count_hosts(scene, &concerned);
            self.count_circumstances(scene, course, calls);
            self.count_calls(calls);
            self.count_messages(calls);
        });
        let last = course
            .invocations
            .iter()
            .map(|run| run.ended)
            .fold(0.0, f64::max);
        for change in scene.changes.iter().filter(|change| change.at <= last) {
            self.add("changes in mid-run", change.what.name(), 1);
        }
        for delivery in scene.tracks.iter().flatten() {
            for kind in &delivery.kinds {
                self.add("deliveries", kind, 1);
            }
        }
        for (number, fate) in course.fates.iter().enumerate() {
            let runs = course
                .invocations
                .iter()
                .filter(|run| run.delivery == number)
                .count();
            let name = match (fate, runs) {
                (Fate::DeadLetter, _) => "dead-letter queue",
                (Fate::Handled, 1) => "handled at the first run",
                (Fate::Handled, 2) => "handled at the second run",
                (Fate::Handled, _) => "handled at the third run",
            };
            self.add("deliveries", name, 1);
        }
        for invocation in &course.invocations {
            let end = match &invocation.end {
                End::Lost => "lost",
                End::OutOfTime => "out of time",
                End::Failed(kind) => kind,
                End::Ignored => "ignored",
                End::Reported(..) => "reported",
            };
            self.add("ends of invocations", end, 1);
            let End::Reported(report, _) = &invocation.end else {
                continue;
            };
            self.count_together(report);
            for problem in report.problems() {
                if problem.code.word() == "NobodyTagged" {
                    self.add("conditions", "group in which nobody has the tag", 1);
                }
                self.add(
                    "problems",
                    &format!("{}: {}", problem.step, problem.code.word()),
                    1,
                );
            }
            let groups = report
                .groups
                .iter()
                .flat_map(|group| group.instances.values());
            for outcome in groups.filter_map(|entry| entry.outcome.as_ref()) {
                self.add("outcomes", outcome.kind().word(), 1);
            }
        }
    }

    /// Instances that two groups of one event have sent to.
    fn count_together(&mut self, report: &Report) {
        let mut sent: BTreeMap<(&str, &Target), Vec<&str>> = BTreeMap::new();
        for group in &report.groups {
            for (target, entry) in &group.instances {
                let outcome = entry.outcome.as_ref();
                if let Some(outcome) = outcome.filter(|outcome| outcome.command_id.is_some()) {
                    let here = sent
                        .entry((group.name.region.as_str(), target))
                        .or_default();
                    here.push(outcome.kind().word());
                }
            }
        }
        let twice = || sent.values().filter(|words| words.len() > 1);
        let fresh = twice().filter(|words| words[1..].contains(&"already-restarted"));
        let fresh = usize::from(fresh.count() > 0);
        let names = [TOGETHER[0], TOGETHER[1]];
        for (name, count) in names
            .into_iter()
            .zip([usize::from(twice().count() > 0), fresh])
        {
            self.add("groups and messages", name, count);
        }
    }

    fn count_messages(&mut self, calls: &[Call]) {
        let mut of_runs: BTreeMap<&str, usize> = BTreeMap::new();
        for call in calls
            .iter()
            .filter(|call| call.operation == "Publish" && call.attempt <= 1)
        {
            *of_runs.entry(&call.access_key).or_default() += 1;
            let message = call.params["Message"].as_str().unwrap_or_default();
            let bodies: Value = serde_json::from_str(message).unwrap_or_default();
            let contains = |protocol: &str, text: &str| {
                bodies[protocol]
                    .as_str()
                    .is_some_and(|body| body.contains(text))
            };
            let found = [
                (TOGETHER[3], contains("default", "\n  and ")),
                (TOGETHER[4], contains("sqs", "\"omitted\"")),
            ];
            for (name, found) in found {
                self.add("groups and messages", name, usize::from(found));
            }
        }
        let several = of_runs.values().filter(|count| **count > 1).count();
        self.add("groups and messages", TOGETHER[2], several);
    }

    fn count_drawn(&mut self, scene: &Scene, concerned: &Concerned<'_>) {
        let verbatim = verbatim_names();
        for condition in scene.conditions.iter().filter(|c| concerned.met(c)) {
            let table = if verbatim.contains(&condition.name) {
                "verbatim answers"
            } else if SSM_FAULTS.iter().any(|(_, name)| *name == condition.name) {
                "SSM Agents"
            } else if is_lifecycle(condition.name) {
                "odd lifecycle states"
            } else {
                "conditions"
            };
            self.add(table, condition.name, 1);
        }
    }

    /// What is not odd enough to be a condition, of hosts that a command was sent to.
    fn count_hosts(&mut self, scene: &Scene, concerned: &Concerned<'_>) {
        let hosts = scene
            .state
            .regions
            .values()
            .flat_map(|region| &region.hosts);
        for host in hosts.filter(|host| concerned.sent.contains(host.id.as_str())) {
            let at_the_end = |host: &Host| {
                let off = |end: f64| (host.agent.started_at - end).abs() <= 1.0;
                scene.groups.iter().any(|group| off(group.completed))
            };
            let found = [
                ("Windows host", host.platform == "Windows"),
                ("wrong clock", host.clock_skew != 0.0),
                (
                    "agent started within a second of the deployment's end",
                    at_the_end(host),
                ),
            ];
            for (name, _) in found.into_iter().filter(|(_, found)| *found) {
                self.add("conditions", name, 1);
            }
        }
    }

    /// Settings of the world that showed in a run.
    fn count_circumstances(&mut self, scene: &Scene, course: &Course, calls: &[Call]) {
        let runs = &course.invocations;
        let short = runs.iter().filter(|run| run.deadline - run.began < WHOLE);
        self.add("conditions", "short deadline", short.count());
        let sent = |call: &Call| call.operation == "SendCommand" && call.status == 200;
        if scene.state.invocation_lag > FIRST_LOOK && calls.iter().any(sent) {
            self.add("conditions", "late invocation list", 1);
        }
        let next = |call: &Call| {
            let names = ["NextToken", "nextToken"];
            names.iter().any(|name| call.params[*name].is_string())
        };
        if scene.state.page_shortfall > 0 && calls.iter().any(next) {
            self.add("conditions", "short pages", 1);
        }
        let began = runs.iter().map(|run| run.began).fold(f64::MAX, f64::min);
        let ended = runs.iter().map(|run| run.ended).fold(f64::MIN, f64::max);
        let regions = scene.state.regions.values();
        let starts = regions
            .flat_map(|region| &region.deployments)
            .filter(|deployment| (began..ended).contains(&deployment.created_at));
        let name = "deployment that starts during the run";
        self.add("conditions", name, starts.count());
    }

    fn count_calls(&mut self, calls: &[Call]) {
        self.calls += calls.len();
        for call in calls {
            let Some(fault) = &call.fault else {
                // The function sends to those only that the inventory has shown.
                if call.operation == "SendCommand"
                    && call.error.as_deref() == Some("InvalidInstanceId")
                {
                    self.add("conditions", "vanishes between inventory and send", 1);
                }
                if call.error.as_deref() == Some("InvalidCommandId") {
                    self.add("conditions", "command not known yet", 1);
                }
                continue;
            };
            self.add("faults by kind", kind_of(fault), 1);
            self.add("faults by operation", &call.operation, 1);
            let mut named = WRITES.iter().chain([&POLLS]);
            let of = named.find(|(name, _)| *name == call.operation);
            if let Some((_, table)) = of {
                self.add(table, kind_of(fault), 1);
            }
        }
    }

    /// Adds what another thread counted.
    pub fn join(&mut self, other: Self) {
        self.runs += other.runs;
        self.calls += other.calls;
        self.sizes.extend(other.sizes);
        for (table, counts) in other.tables {
            for (name, count) in counts {
                self.add(table, &name, count);
            }
        }
    }

    /// What never occurred.
    pub fn missing(&self) -> Vec<String> {
        let counts = self.tables.iter();
        let named = counts.flat_map(|(table, counts)| {
            counts.iter().map(move |(name, count)| (table, name, count))
        });
        named
            .filter(|(_, _, count)| **count == 0)
            .map(|(table, name, _)| format!("{table}: {name}"))
            .collect()
    }
}

fn is_lifecycle(word: &str) -> bool {
    PASSING.contains(&word) || STAYING.contains(&word) || word == UNKNOWN_LIFECYCLE
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sizes = self.sizes.clone();
        sizes.sort_unstable();
        let at = |part: usize| {
            sizes
                .get((sizes.len() * part / 100).min(sizes.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0)
        };
        let large = sizes.iter().filter(|size| **size > 100).count();
        writeln!(
            f,
            "{} worlds, {} calls; instances: 10 % up to {}, median {}, 90 % up to {}, most {}; over 100 in {large}",
            self.runs,
            self.calls,
            at(10),
            at(50),
            at(90),
            at(100)
        )?;
        for (table, counts) in &self.tables {
            writeln!(f, "\n{table}")?;
            for (name, count) in counts {
                writeln!(f, "  {count:>9}  {name}")?;
            }
        }
        Ok(())
    }
}

//! The oracle: what must be true of every run, judged by what the world saw and did. It knows the rules from the
//! outside and shares no decision with the function.

use std::collections::{BTreeMap, BTreeSet};

use codedeploy_agent_restarter::fleet::Decision;
use codedeploy_agent_restarter::report::{Entry, GroupReport, Report};
use serde_json::Value;
use sim::{
    AgentFault, Call, Command, Deployment, DeploymentGroup, Fault, FaultKind, Host,
    Invocation as Ran, State,
};

use crate::deliveries::{Course, Delivery, End, Fate, Invocation, Meaning};
use crate::fleet::{ACCOUNT, EXECUTION, Group, HOME, PASSING, PIPELINE, STAYING, Scene};
use crate::weather::What;

/// Nothing above is kept by doing nothing.
const CALM: &str = "0 in calm weather every agent is restarted";
/// Every candidate once, in one outcome; what was not resolved has a problem.
const ACCOUNTED: &str = "1 every candidate is accounted for";
/// What needs attention is told.
const TOLD: &str = "2 never silence";
/// What is called fresh and healthy is.
const TRUE: &str = "3 a claim of a fresh, healthy agent is true";
/// One restart for one deployment.
const ONCE: &str = "4 no agent is restarted twice for one deployment";
/// Window and brake.
const RATE: &str = "5 window and brake";
/// Nobody is sent to who must not be, nothing is killed.
const UNHARMED: &str = "6 nobody else is touched, nothing is killed";
/// Deadline, number and rate of calls, limits of the APIs.
const LIMITS: &str = "7 deadline, calls and limits";
/// Dry runs and ignored events.
const READ_ONLY: &str = "8 a dry run and an ignored event write nothing";

/// Outcomes about which nobody needs to hear.
const FINE: [&str; 5] = [
    "restarted",
    "started",
    "already-restarted",
    "below-threshold",
    "skipped",
];
/// Those that claim a fresh agent.
const FRESH: [&str; 3] = ["restarted", "started", "already-restarted"];
/// The steps that a problem may name.
const STEPS: [&str; 5] = ["deployments", "quiet", "fleet", "send", "poll"];
/// Seconds after which a command that has not begun no longer holds its slot.
const LATE: f64 = 150.0;
/// Seconds for which a lifecycle state that was read may be relied on.
const LIFECYCLE_AGE: f64 = 60.0;
/// Calls of Systems Manager in any second, in one region, by one function; the SDK's repeats of one call follow
/// its own back-off and do not count.
const SSM_CALLS_A_SECOND: usize = 5;
/// Calls of one invocation, repeats included: twice the most that 4,000 seeds saw.
const MOST_CALLS: usize = 4_000;
/// The same without Systems Manager's: nothing but the polls may grow with the time that a run takes.
const MOST_OTHER_CALLS: usize = 330;
/// Seconds within which a reply must arrive to be of use.
const ATTEMPT: f64 = 10.0;
/// A little time, in seconds: what a call takes, and what rounding to milliseconds takes.
const MOMENT: f64 = 1.0;
/// What is lost by telling times in whole seconds, once up and once down, with a moment for the call.
const ROUNDING: f64 = 2.0 + MOMENT;
/// Errors that say that a call itself was wrong.
const WRONG_CALLS: [&str; 19] = [
    "ValidationException",
    "ValidationError",
    "InvalidParameter",
    "InvalidParameterValue",
    "InvalidParameters",
    "SerializationException",
    "MalformedInput",
    "MalformedQueryString",
    "BatchLimitExceededException",
    "DeploymentTargetListSizeExceededException",
    "DuplicateInstanceId",
    "InvalidDeploymentInstanceTypeException",
    "InvalidNextToken",
    "InvalidNextTokenException",
    "InvalidFilterKey",
    "InvalidCommandId",
    "InvalidDocumentVersion",
    "UnknownOperationException",
    "InvalidAction",
];

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// Its name.
    pub invariant: &'static str,
    /// What was expected, and what was seen.
    pub what: String,
}

/// A group that an event is about.
#[derive(Clone, Debug)]
struct Meant {
    region: String,
    application: String,
    name: String,
    /// The deployments that concern the function; none when they cannot be told for certain.
    deployments: Vec<Deployment>,
    /// A deployment that does not exist, or is another group's.
    unknown: bool,
    /// The last deployment is meant, and that changed while the function was asking which it is.
    uncertain: bool,
    /// Since when an agent counts as fresh, in seconds since the start.
    since: f64,
    by_hand: bool,
}

impl Meant {
    fn is_certain(&self) -> bool {
        !self.unknown && !self.uncertain
    }
}

/// What an event is about.
#[derive(Clone, Debug, Default)]
struct Subject {
    groups: Vec<Meant>,
    /// Groups (region, application, name) that turn out not to be the function's once their deployments are known.
    others: Vec<(String, String, String)>,
    /// Something beside the groups cannot be treated, and must be told.
    problem: bool,
}

/// Where an instance stood at which time: Auto Scaling's word and group, and whether SSM lists it.
#[derive(Clone, Debug, PartialEq)]
struct Standing {
    from: f64,
    member: Option<(String, String)>,
    listed: bool,
}

/// The standings of each instance in turn, by region and id.
type Standings<'a> = BTreeMap<&'a str, BTreeMap<&'a str, Vec<Standing>>>;

/// Everything that the oracle judges by.
pub struct Evidence<'a> {
    scene: &'a Scene,
    course: &'a Course,
    /// The account at the end.
    end: &'a State,
    calls: &'a [Call],
    deliveries: Vec<&'a Delivery>,
    standings: Standings<'a>,
    /// The commands, each with the call that made it.
    commands: Vec<(&'a Call, &'a Command)>,
    violations: Vec<Violation>,
}

/// Judges a run. Of each invariant, the first violation is told.
pub fn judge(scene: &Scene, course: &Course) -> Vec<Violation> {
    course.world.read(|end, calls| {
        let mut evidence = Evidence::new(scene, course, end, calls);
        for (number, invocation) in course.invocations.iter().enumerate() {
            evidence.invocation(number, invocation);
        }
        evidence.fates();
        evidence.restarts();
        evidence.scripts();
        let mut found = evidence.violations;
        found.dedup_by_key(|violation| violation.invariant);
        let mut seen = BTreeSet::new();
        found.retain(|violation| seen.insert(violation.invariant));
        found
    })
}

impl<'a> Evidence<'a> {
    fn new(scene: &'a Scene, course: &'a Course, end: &'a State, calls: &'a [Call]) -> Self {
        let mut commands = Vec::new();
        for (name, region) in &end.regions {
            let sent = calls
                .iter()
                .filter(|call| call.operation == "SendCommand" && call.status == 200)
                .filter(|call| call.region == *name);
            commands.extend(sent.zip(&region.commands));
        }
        Self {
            scene,
            course,
            end,
            calls,
            deliveries: scene.tracks.iter().flatten().collect(),
            standings: standings(scene),
            commands,
            violations: Vec::new(),
        }
    }

    fn broken(&mut self, invariant: &'static str, what: String) {
        self.violations.push(Violation { invariant, what });
    }

    fn invocation(&mut self, number: usize, invocation: &Invocation) {
        let delivery = self.deliveries[invocation.delivery];
        let calls: Vec<&Call> = self
            .calls
            .iter()
            .filter(|c| c.access_key == invocation.key)
            .collect();
        let who = format!("run {number} ({})", delivery.kinds.join(", "));
        self.limits(&who, invocation, &calls);
        self.read_only(&who, delivery, invocation, &calls);
        let subject = self.subject(delivery, invocation);
        match &invocation.end {
            End::Reported(report, answer) => {
                self.accounted(&who, &subject, invocation, report, answer);
                self.told(&who, report, answer, &calls);
                self.skips(&who, &subject, invocation, report);
                self.claims(&who, &subject, report);
                self.calm(&who, invocation, report);
            }
            End::Ignored => {
                if delivery.meaning == Meaning::Unreadable
                    || subject.problem
                    || !subject.groups.is_empty()
                {
                    self.broken(
                        ACCOUNTED,
                        format!(
                            "{who}: the event was ignored, and concerns {:?}",
                            names(&subject)
                        ),
                    );
                }
            }
            End::Failed("InvalidEvent") if delivery.meaning != Meaning::Unreadable => {
                self.broken(ACCOUNTED, format!("{who}: the event was refused"));
            }
            End::Lost | End::OutOfTime | End::Failed(_) => {}
        }
        self.sends(&who, &subject, invocation, &calls);
    }

    /// What the event is about, by the account's own data.
    fn subject(&self, delivery: &Delivery, invocation: &Invocation) -> Subject {
        let mut wanted: BTreeMap<(String, String, String), Vec<String>> = BTreeMap::new();
        let (mut problem, mut uncertain) = (false, false);
        match &delivery.meaning {
            Meaning::Nothing | Meaning::Unreadable => return Subject::default(),
            Meaning::Pipeline => problem = self.actions(&mut wanted),
            Meaning::Deployment(number)
            | Meaning::Request {
                group: number,
                named: true,
                ..
            } => {
                let group = &self.scene.groups[*number];
                let key = (
                    group.region.to_owned(),
                    group.application.clone(),
                    group.name.clone(),
                );
                wanted.insert(key, vec![group.deployment.clone()]);
            }
            Meaning::Request { group, .. } => {
                let group = &self.scene.groups[*group];
                let key = (
                    group.region.to_owned(),
                    group.application.clone(),
                    group.name.clone(),
                );
                let (id, certain) = self.last(group, invocation);
                uncertain = !certain;
                wanted.insert(key, id.into_iter().collect());
            }
        }
        let by_hand = matches!(delivery.meaning, Meaning::Request { .. });
        let asked = match delivery.meaning {
            Meaning::Request {
                time: Some(time), ..
            } => Some(time),
            Meaning::Request { .. } => Some(invocation.began),
            _ => None,
        };
        let (mut groups, mut others) = (Vec::new(), Vec::new());
        for ((region, application, name), ids) in wanted {
            let known = |id: &String| {
                let held = self.scene.state.regions.get(&region)?;
                let found = held.deployments.iter().find(|d| d.id == *id)?;
                (found.application == application && found.deployment_group == name)
                    .then_some(found)
            };
            let deployments: Vec<Option<&Deployment>> = ids.iter().map(known).collect();
            let unknown = ids.is_empty() || deployments.iter().any(Option::is_none);
            let ours: Vec<Deployment> = deployments
                .into_iter()
                .flatten()
                .filter(|d| d.compute_platform == "Server" && !by_auto_scaling(d))
                .cloned()
                .collect();
            if ours.is_empty() && !unknown {
                others.push((region, application, name));
                continue;
            }
            let completed = ours
                .iter()
                .filter_map(|d| d.completed_at)
                .fold(f64::MIN, f64::max);
            groups.push(Meant {
                region,
                application,
                name,
                unknown,
                uncertain,
                since: asked.unwrap_or(if completed == f64::MIN {
                    0.0
                } else {
                    completed
                }),
                deployments: ours,
                by_hand,
            });
        }
        Subject {
            groups,
            others,
            problem,
        }
    }

    /// The execution's actions: the last row of each that succeeded. Whether one of them cannot be treated.
    fn actions(&self, wanted: &mut BTreeMap<(String, String, String), Vec<String>>) -> bool {
        let home = self.scene.state.regions.get(HOME);
        let pipelines = home.into_iter().flat_map(|region| &region.pipelines);
        let rows = pipelines
            .filter(|pipeline| pipeline.name == PIPELINE)
            .flat_map(|pipeline| &pipeline.executions)
            .filter(|execution| execution.id == EXECUTION)
            .flat_map(|execution| &execution.actions)
            .filter(|row| {
                row.owner == "AWS" && row.category == "Deploy" && row.provider == "CodeDeploy"
            });
        let mut last = BTreeMap::new();
        for row in rows {
            let known = last.entry((&row.stage, &row.action)).or_insert(row);
            if row.updated_at > known.updated_at {
                *known = row;
            }
        }
        let mut problem = false;
        for row in last.into_values().filter(|row| row.status == "Succeeded") {
            let ours = row
                .role_arn
                .as_ref()
                .is_none_or(|role| role.contains(ACCOUNT));
            match (&row.application, &row.deployment_group, &row.deployment_id) {
                (Some(application), Some(group), Some(id)) if ours => {
                    let region = row.region.clone().unwrap_or_else(|| HOME.to_owned());
                    let key = (region, application.clone(), group.clone());
                    wanted.entry(key).or_default().push(id.clone());
                }
                _ => problem = true,
            }
        }
        problem
    }

    /// The last successful deployment of a group that a person or a pipeline made, when the function asked; and
    /// whether it was the same all the while.
    fn last(&self, group: &Group, invocation: &Invocation) -> (Option<String>, bool) {
        let asked = self.calls.iter().filter(|call| {
            call.access_key == invocation.key
                && call.operation == "ListDeployments"
                && call.status == 200
                && texts(&call.params["includeOnlyStatuses"]) == ["Succeeded"]
        });
        let (from, to) = asked.fold((f64::MAX, invocation.began), |(from, to), call| {
            (call.at.min(from), call.at.max(to))
        });
        let held = self.scene.state.regions.get(group.region);
        let deployments = held.into_iter().flat_map(|region| &region.deployments);
        let done = deployments.filter(|d| {
            d.application == group.application
                && d.deployment_group == group.name
                && d.status == "Succeeded"
                && !by_auto_scaling(d)
                && d.creator != "CodeDeployAutoUpdate"
        });
        let last = done
            .filter_map(|d| Some((d.completed_at?, &d.id)))
            .filter(|(time, _)| *time <= to)
            .max_by(|one, other| one.0.total_cmp(&other.0));
        let certain = last.is_none_or(|(time, _)| time <= from);
        (last.map(|(_, id)| id.clone()), certain)
    }

    fn standings_of(&self, region: &str, id: &str) -> &[Standing] {
        let standings = self.standings.get(region).and_then(|ids| ids.get(id));
        standings.map_or(&[], Vec::as_slice)
    }

    fn group(&self, meant: &Meant) -> Option<&'a DeploymentGroup> {
        let held = self.scene.state.regions.get(&meant.region)?;
        held.deployment_groups
            .iter()
            .find(|group| group.application == meant.application && group.name == meant.name)
    }

    /// Who may be a candidate of the group between the two moments, and who must be.
    fn candidates(
        &self,
        meant: &Meant,
        from: f64,
        to: f64,
    ) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
        let (mut may, mut must) = (BTreeSet::new(), BTreeSet::new());
        let held = self.scene.state.regions.get(&meant.region);
        let deployments = held.into_iter().flat_map(|region| &region.deployments);
        for deployment in
            deployments.filter(|d| meant.deployments.iter().any(|ours| ours.id == d.id))
        {
            let green =
                |label: Option<&str>| deployment.style != "BLUE_GREEN" || label == Some("Green");
            for target in deployment
                .targets
                .iter()
                .filter(|t| green(t.label.as_deref()))
            {
                may.insert(target.id.as_str());
                must.insert(target.id.as_str());
            }
        }
        let only_targets = meant
            .deployments
            .iter()
            .all(|d| d.creator == "CodeDeployAutoUpdate");
        if let Some(group) = self.group(meant).filter(|_| !only_targets) {
            let ours = |standing: &Standing| {
                let member = standing.member.as_ref();
                member.is_some_and(|(_, name)| group.auto_scaling_groups.contains(name))
            };
            for (id, standings) in self
                .standings
                .get(meant.region.as_str())
                .into_iter()
                .flatten()
            {
                let mut during = during(standings, from, to).peekable();
                let always = during.peek().is_some() && during.clone().all(ours);
                if during.any(ours) {
                    may.insert(id);
                }
                if always {
                    must.insert(id);
                }
            }
        }
        (may, must)
    }

    fn accounted(
        &mut self,
        who: &str,
        subject: &Subject,
        invocation: &Invocation,
        report: &Report,
        answer: &Value,
    ) {
        if subject.problem && report.problem.is_none() {
            self.broken(
                ACCOUNTED,
                format!("{who}: an action that cannot be treated is no problem of the report"),
            );
        }
        for problem in report.problems() {
            if !STEPS.contains(&problem.step)
                || problem.code.is_empty()
                || problem.message.is_empty()
            {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: a problem names no step: {problem:?}"),
                );
            }
        }
        for group in &report.groups {
            let name = &group.name;
            let other = subject.others.iter().any(|(region, application, group)| {
                (region, application, group)
                    == (&name.region, &name.application, &name.deployment_group)
            });
            let unresolved = group.instances.is_empty() && group.problem.is_some();
            let expected = subject.groups.iter().any(|meant| is(meant, group));
            if !expected && (!other || !unresolved) {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: {:?} is none of the event's groups", group.name),
                );
            }
        }
        for meant in subject.groups.iter().filter(|meant| !meant.uncertain) {
            let Some(group) = report.groups.iter().find(|group| is(meant, group)) else {
                if report.problem.is_none() || !report.groups.is_empty() {
                    self.broken(
                        ACCOUNTED,
                        format!("{who}: {} is not in the report", meant.name),
                    );
                }
                continue;
            };
            let (may, must) = self.candidates(meant, invocation.began, invocation.ended);
            let there: BTreeSet<&str> = group.instances.keys().map(String::as_str).collect();
            if there.is_empty() && (meant.unknown || !must.is_empty()) {
                if group.problem.is_none() {
                    let what = format!(
                        "{who}: {} has no instance and no problem, {} expected",
                        meant.name,
                        must.len()
                    );
                    self.broken(ACCOUNTED, what);
                }
                continue;
            }
            if meant.unknown {
                continue;
            }
            if let Some(id) = must.difference(&there).next() {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: {id} of {} is not in the report", meant.name),
                );
            }
            if let Some(id) = there.difference(&may).next() {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: {id} is no candidate of {}", meant.name),
                );
            }
        }
        for (number, group) in report.groups.iter().enumerate() {
            if let Some(what) = counted(group, &answer["groups"][number], report.dry_run) {
                self.broken(
                    ACCOUNTED,
                    format!("{who}: {}: {what}", group.name.deployment_group),
                );
            }
        }
    }

    /// Every row of attention and every problem stands in the messages that this run published.
    fn told(&mut self, who: &str, report: &Report, answer: &Value, calls: &[&Call]) {
        if report.dry_run {
            return;
        }
        let messages: Vec<Value> = calls
            .iter()
            .filter(|call| call.operation == "Publish" && call.status == 200)
            .filter_map(|call| serde_json::from_str(call.params["Message"].as_str()?).ok())
            .collect();
        let bodies = |protocol: &str| -> Vec<String> {
            let bodies = messages
                .iter()
                .filter_map(|message| message[protocol].as_str());
            bodies.map(str::to_owned).collect()
        };
        let data: Vec<Value> = bodies("sqs")
            .iter()
            .filter_map(|body| serde_json::from_str(body).ok())
            .collect();
        let texts =
            [bodies("default"), bodies("email"), bodies("lambda")].map(|bodies| bodies.join("\n"));
        let mut told = BTreeSet::new();
        let mut problems = BTreeSet::new();
        for part in &data {
            if part["problem"].is_object() {
                problems.insert(usize::MAX);
            }
            for (number, group) in part["groups"].as_array().into_iter().flatten().enumerate() {
                if group["problem"].is_object() {
                    problems.insert(number);
                }
                for row in group["attention"].as_array().into_iter().flatten() {
                    told.insert((number, row["instanceId"].as_str().unwrap_or_default()));
                }
            }
        }
        let mut any = false;
        for (number, group) in report.groups.iter().enumerate() {
            any |= group.problem.is_some();
            if group.problem.is_some() && !problems.contains(&number) {
                self.broken(
                    TOLD,
                    format!(
                        "{who}: the problem of {} is told nowhere",
                        group.name.deployment_group
                    ),
                );
            }
            for (id, entry) in &group.instances {
                if FINE.contains(&word(entry)) {
                    continue;
                }
                any = true;
                if !told.contains(&(number, id.as_str()))
                    || !texts.iter().all(|text| text.contains(id.as_str()))
                {
                    self.broken(
                        TOLD,
                        format!("{who}: {id} is {} and is told nowhere", word(entry)),
                    );
                }
            }
        }
        if report.problem.is_some() && !problems.contains(&usize::MAX) {
            self.broken(TOLD, format!("{who}: the event's problem is told nowhere"));
        }
        any |= report.problem.is_some();
        let wanted = any || self.scene.settings["NOTIFY_ON"] == "always";
        if wanted != (answer["notified"] == true) || wanted == messages.is_empty() {
            let what = format!(
                "{who}: a message is due: {wanted}, published: {}",
                messages.len()
            );
            self.broken(TOLD, what);
        }
    }

    /// Only those may be skipped who start, leave, are gone, or were never reached.
    fn skips(&mut self, who: &str, subject: &Subject, invocation: &Invocation, report: &Report) {
        for meant in subject.groups.iter().filter(|meant| meant.is_certain()) {
            let Some(found) = report.groups.iter().find(|group| is(meant, group)) else {
                continue;
            };
            let Some(group) = self.group(meant) else {
                continue;
            };
            let old = |d: &Deployment| {
                d.completed_at
                    .is_some_and(|time| invocation.ended - time > 86_400.0)
            };
            let old = meant.by_hand && meant.deployments.iter().all(old);
            let mut wrong = None;
            for (id, entry) in &found.instances {
                if word(entry) != "skipped" {
                    continue;
                }
                let targets = meant.deployments.iter().flat_map(|d| &d.targets);
                let reached = targets.filter(|target| target.id == *id).any(|target| {
                    !matches!(target.status.as_str(), "Pending" | "Skipped")
                        && target.lifecycle_started
                });
                let missing = group.tag_filters.is_empty() || old || !reached;
                let standings = || {
                    during(
                        self.standings_of(&meant.region, id),
                        invocation.began,
                        invocation.ended,
                    )
                };
                let right = standings().any(|standing| match &standing.member {
                    Some((state, _)) if PASSING.contains(&state.as_str()) => true,
                    Some((state, _)) if state != "Detached" => false,
                    _ => missing && !standing.listed,
                });
                // One that Auto Scaling lost while Systems Manager was asked may show a mixture of both.
                if !right && standings().count() < 2 {
                    wrong = Some(id.clone());
                }
            }
            if let Some(id) = wrong {
                self.broken(
                    TOLD,
                    format!("{who}: {id} of {} was skipped without a reason", meant.name),
                );
            }
        }
    }

    /// What a report calls fresh and healthy was, when the command ended on the host.
    fn claims(&mut self, who: &str, subject: &Subject, report: &Report) {
        for meant in &subject.groups {
            let Some(group) = report.groups.iter().find(|group| is(meant, group)) else {
                continue;
            };
            for (id, entry) in &group.instances {
                let claim = word(entry);
                if claim == "skipped" || !FINE.contains(&claim) {
                    continue;
                }
                let outcome = entry.outcome.as_ref();
                let command = outcome.and_then(|outcome| outcome.command_id.as_deref());
                if let Some(lie) = self.lie(meant, id, claim, command) {
                    self.broken(
                        TRUE,
                        format!("{who}: {id} of {} is called {claim}, and {lie}", meant.name),
                    );
                }
            }
        }
    }

    /// Where nothing goes wrong, nobody is left.
    fn calm(&mut self, who: &str, invocation: &Invocation, report: &Report) {
        let scene = self.scene;
        let calm = scene.state.faults.is_empty()
            && scene.changes.is_empty()
            && scene.conditions.is_empty()
            && scene.state.invocation_lag < 10.0
            && invocation.deadline - invocation.began >= 900.0;
        if !calm {
            return;
        }
        for (id, entry) in report.groups.iter().flat_map(|group| &group.instances) {
            let detail = entry
                .outcome
                .as_ref()
                .map_or("", |outcome| outcome.detail.as_str());
            // One restart at a time may take longer than there is; a lifecycle event longer than the patience.
            let out_of_time = detail.contains("no time left") || word(entry) == "unfinished";
            let fine = matches!(
                word(entry),
                "restarted" | "already-restarted" | "below-threshold" | "busy" | "planned"
            );
            if !fine && !out_of_time {
                self.broken(CALM, format!("{who}: {id} is {}: {detail}", word(entry)));
            }
        }
        if let Some(problem) = report.problems().next() {
            self.broken(CALM, format!("{who}: {problem:?}"));
        }
    }

    /// What is not true of a claim.
    fn lie(&self, meant: &Meant, id: &str, claim: &str, command: Option<&str>) -> Option<String> {
        let Some((sent, command)) = self.commands.iter().find(|(call, known)| {
            call.region == meant.region && Some(known.id.as_str()) == command
        }) else {
            return Some("no command was sent".to_owned());
        };
        // A request's time may lie ahead: what it restarts before that time cannot be fresher than its command.
        let since = match claim {
            "already-restarted" => meant.since,
            _ => meant.since.min(sent.at),
        };
        let ran = command.invocations.iter().find(|ran| ran.instance_id == id);
        let Some((ran, ended)) = ran.and_then(|ran| Some((ran, ran.ended_at?))) else {
            return Some("the document has not ended there".to_owned());
        };
        let before = host(&self.scene.state, &meant.region, id)?;
        let host = host(self.end, &meant.region, id)?;
        if host.answer.is_some() || ran.began_at.is_none() {
            return Some("the document did not run there".to_owned());
        }
        if host.agent.fault == Some(AgentFault::AgentUnhealthy) {
            return Some("its poller crash-loops".to_owned());
        }
        let (started, running) = self.agent_at(&meant.region, host, before, ended);
        if !running {
            return Some("no agent runs".to_owned());
        }
        if FRESH.contains(&claim) && started < since {
            let old = since - started;
            return Some(format!(
                "its agent is {old:.3} s older than the deployment's end"
            ));
        }
        let least: u64 = self.scene.settings["MIN_MEMORY_MIB"].parse().unwrap_or(0);
        let restarted = host.agent.restarts.iter().any(|time| *time <= ended);
        let memory = match restarted {
            true => host.agent.fresh_memory_kib,
            false => before.agent.memory_kib,
        };
        (claim == "below-threshold" && memory >= least * 1024)
            .then(|| format!("it holds {memory} KiB of {least} MiB"))
    }

    /// When the agent that was there at that time had started, and whether one ran.
    fn agent_at(&self, region: &str, host: &Host, before: &Host, at: f64) -> (f64, bool) {
        let restart = host
            .agent
            .restarts
            .iter()
            .copied()
            .filter(|time| *time <= at)
            .reduce(f64::max);
        let started = restart.unwrap_or(before.agent.started_at);
        let went_down = |(call, command): &&(&Call, &Command)| {
            call.region == region
                && command.invocations.iter().any(|ran| {
                    ran.instance_id == host.id
                        && ran
                            .ended_at
                            .is_some_and(|ended| ended <= at && ended > started)
                        && matches!(result_of(&ran.output), Some((_, 30 | 32)))
                })
        };
        let down = self.commands.iter().any(|command| went_down(&command));
        (
            started,
            !down && (restart.is_some() || before.agent.running),
        )
    }

    /// What was sent: to whom, when, and how many at a time.
    fn sends(&mut self, who: &str, subject: &Subject, invocation: &Invocation, calls: &[&Call]) {
        let firsts = calls
            .iter()
            .filter(|call| call.operation == "SendCommand" && call.attempt <= 1);
        for call in firsts {
            let comment = call.params["Comment"].as_str().unwrap_or_default();
            let meant = subject.groups.iter().find(|meant| {
                meant.region == call.region
                    && comment
                        == format!(
                            "codedeploy-agent-restarter: {}/{}",
                            meant.application, meant.name
                        )
            });
            let Some(meant) = meant else {
                self.broken(
                    UNHARMED,
                    format!("{who}: a command for none of the event's groups: {comment}"),
                );
                continue;
            };
            let ids: Vec<&str> = texts(&call.params["InstanceIds"]);
            if let Some(what) = self.wrongly_sent(meant, invocation, call, &ids, calls) {
                self.broken(UNHARMED, format!("{who}, at {:.3}: {what}", call.at));
            }
            if let Some(what) = self.too_many(meant, invocation, call, &ids, calls) {
                self.broken(RATE, format!("{who}, at {:.3}: {what}", call.at));
            }
        }
    }

    fn wrongly_sent(
        &self,
        meant: &Meant,
        invocation: &Invocation,
        call: &Call,
        ids: &[&str],
        calls: &[&Call],
    ) -> Option<String> {
        let (may, _) = self.candidates(meant, invocation.began, call.at);
        if let Some(id) = ids
            .iter()
            .find(|id| !may.contains(*id))
            .filter(|_| meant.is_certain())
        {
            return Some(format!("{id} is sent to, and is not of {}", meant.name));
        }
        let restartable = |id: &&str| {
            let since = call.at - LIFECYCLE_AGE - MOMENT;
            let mut recent =
                during(self.standings_of(&meant.region, id), since, call.at).peekable();
            recent.peek().is_none()
                || recent.any(|standing| {
                    let member = standing.member.as_ref();
                    member.is_none_or(|(word, _)| STAYING.contains(&word.as_str()))
                })
        };
        if let Some(id) = ids.iter().find(|id| !restartable(id)) {
            return Some(format!(
                "{id} is sent to: {:?}",
                self.standings_of(&meant.region, id)
            ));
        }
        let asked = calls.iter().rev().find(|asked| {
            asked.operation == "ListDeployments"
                && asked.at < call.at
                && asked.status == 200
                && asked.region == meant.region
                && asked.params["deploymentGroupName"] == meant.name.as_str()
                && asked.params["applicationName"] == meant.application.as_str()
                && texts(&asked.params["includeOnlyStatuses"]).contains(&"InProgress")
        });
        let Some(asked) = asked else {
            return Some(format!(
                "nobody asked whether a deployment of {} runs",
                meant.name
            ));
        };
        let running = self
            .scene
            .state
            .regions
            .get(&meant.region)?
            .deployments
            .iter()
            .find(|d| {
                d.application == meant.application
                    && d.deployment_group == meant.name
                    && !by_auto_scaling(d)
                    && runs_at(d, asked.at)
            });
        running.map(|d| format!("sent, though {} was seen running at {:.3}", d.id, asked.at))
    }

    /// Window and brake, by what the function may have known at the time of the call.
    fn too_many(
        &self,
        meant: &Meant,
        invocation: &Invocation,
        call: &Call,
        ids: &[&str],
        calls: &[&Call],
    ) -> Option<String> {
        if meant.uncertain {
            return None;
        }
        let planned =
            match &invocation.end {
                End::Reported(report, _) => report
                    .groups
                    .iter()
                    .find(|group| is(meant, group))
                    .map(|group| {
                        group
                            .instances
                            .values()
                            .filter(|entry| matches!(entry.decision, Decision::Restart(_)))
                            .count()
                    }),
                _ => None,
            };
        let fleet =
            planned.unwrap_or_else(|| self.candidates(meant, invocation.began, call.at).0.len());
        let window = share(&self.scene.settings["MAX_CONCURRENCY"], "50%", fleet).max(1);
        let allowed = share(&self.scene.settings["MAX_ERRORS"], "10%", fleet);
        let (mut in_flight, mut failed) = (BTreeSet::new(), 0);
        for (sent, command) in &self.commands {
            let ours = sent.access_key == call.access_key
                && sent.params["Comment"] == call.params["Comment"]
                && sent.region == call.region
                && sent.at < call.at;
            if !ours || !is_answered(sent) {
                continue;
            }
            let looked = calls.iter().rev().find(|look| {
                look.operation == "ListCommandInvocations"
                    && look.at < call.at
                    && look.status == 200
                    && is_answered(look)
                    && look.params["NextToken"].is_null()
                    && look.params["CommandId"] == command.id.as_str()
            });
            let looked = looked.map_or(f64::MIN, |look| look.at);
            for ran in &command.invocations {
                let Some(host) = host(self.end, &meant.region, &ran.instance_id) else {
                    continue;
                };
                let seen = seen(host, ran);
                if seen.ended.is_none_or(|ended| ended > call.at) {
                    let began = seen
                        .began
                        .is_some_and(|began| began.max(ran.visible_at) <= looked);
                    if call.at - sent.at < LATE || began {
                        in_flight.insert(ran.instance_id.as_str());
                    }
                }
                if seen.error
                    && ran.visible_at <= looked
                    && seen.ended.is_some_and(|ended| ended <= looked)
                {
                    failed += 1;
                }
            }
        }
        if failed > allowed {
            return Some(format!(
                "sent after {failed} failures, {allowed} of {fleet} are allowed"
            ));
        }
        let more = ids.iter().filter(|id| !in_flight.contains(*id)).count();
        (in_flight.len() + more > window).then(|| {
            format!(
                "{} in flight and {more} sent, {window} of {fleet} are allowed",
                in_flight.len()
            )
        })
    }

    fn limits(&mut self, who: &str, invocation: &Invocation, calls: &[&Call]) {
        let late = match invocation.end {
            End::Lost => false,
            End::OutOfTime => true,
            _ => invocation.ended > invocation.deadline - MOMENT,
        };
        if late {
            self.broken(
                LIMITS,
                format!(
                    "{who}: it still ran at its deadline, {:.0} s after it began",
                    invocation.deadline - invocation.began
                ),
            );
        }
        let others = calls.iter().filter(|call| call.service != "ssm").count();
        if calls.len() > MOST_CALLS || others > MOST_OTHER_CALLS {
            let what = format!("{who}: {} calls, {others} not to SSM", calls.len());
            self.broken(LIMITS, what);
        }
        let mut turns: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for call in calls {
            if call.service == "ssm" && call.attempt <= 1 {
                turns.entry(&call.region).or_default().push(call.at);
            }
            if let Some(what) = breaks_a_limit(call) {
                self.broken(
                    LIMITS,
                    format!("{who}, at {:.3}: {}: {what}", call.at, call.operation),
                );
            }
        }
        for (region, times) in turns {
            let crowd = times.windows(SSM_CALLS_A_SECOND + 1).find(|window| {
                window
                    .last()
                    .zip(window.first())
                    .is_some_and(|(last, first)| last - first < 0.99)
            });
            if let Some(crowd) = crowd {
                self.broken(LIMITS, format!("{who}: more than {SSM_CALLS_A_SECOND} calls of SSM in {region} in a second: {crowd:?}"));
            }
        }
    }

    fn read_only(
        &mut self,
        who: &str,
        delivery: &Delivery,
        invocation: &Invocation,
        calls: &[&Call],
    ) {
        let dry = matches!(delivery.meaning, Meaning::Request { dry_run: true, .. })
            || self.scene.settings["DRY_RUN"] == "true";
        let ignored = matches!(delivery.meaning, Meaning::Nothing | Meaning::Unreadable)
            || matches!(invocation.end, End::Ignored);
        let wrote = calls
            .iter()
            .find(|call| matches!(call.operation.as_str(), "SendCommand" | "Publish"));
        if let Some(call) = wrote.filter(|_| dry || ignored) {
            let what = if dry { "a dry run" } else { "an ignored event" };
            self.broken(
                READ_ONLY,
                format!("{who}: {what} calls {} at {:.3}", call.operation, call.at),
            );
        }
        if let End::Reported(_, answer) = &invocation.end
            && dry
            && answer["notified"] != false
        {
            self.broken(READ_ONLY, format!("{who}: a dry run says that it notified"));
        }
    }

    /// An event ends handled or in the dead-letter queue.
    fn fates(&mut self) {
        for (number, fate) in self.course.fates.iter().enumerate() {
            let runs = self
                .course
                .invocations
                .iter()
                .filter(|run| run.delivery == number);
            let handled = runs
                .clone()
                .any(|run| matches!(run.end, End::Ignored | End::Reported(..)));
            if handled != (*fate == Fate::Handled) || (!handled && runs.count() != 3) {
                self.broken(TOLD, format!("delivery {number} ended nowhere"));
            }
        }
    }

    /// No agent is restarted for a deployment that an earlier restart had followed, unless the command came
    /// later than that restart had followed the deployment.
    fn restarts(&mut self) {
        for (name, region) in &self.end.regions {
            for host in region
                .hosts
                .iter()
                .filter(|host| host.agent.restarts.len() > 1)
            {
                for pair in host.agent.restarts.windows(2) {
                    let causes = self.causes(name, host, pair[1]);
                    let needless = |cause: &&(f64, f64, f64)| {
                        let (since, sent, began) = **cause;
                        pair[0] >= since && began - sent <= pair[0] - since - ROUNDING
                    };
                    if !causes.is_empty() && causes.iter().all(|cause| needless(&cause)) {
                        let what = format!(
                            "{} was restarted at {:.3} and at {:.3}, by commands of (deployment's end, sent, begun) {causes:.3?}",
                            host.id, pair[0], pair[1]
                        );
                        self.violations.push(Violation {
                            invariant: ONCE,
                            what,
                        });
                    }
                }
            }
        }
    }

    /// The commands that may have caused the restart of a host at that time, each as the end of the deployment
    /// that it followed, the moment at which the function first tried to send it, and its begin on the host.
    fn causes(&self, region: &str, host: &Host, at: f64) -> Vec<(f64, f64, f64)> {
        let mut causes = Vec::new();
        for (call, command) in self
            .commands
            .iter()
            .filter(|(call, _)| call.region == region)
        {
            let Some(ran) = command
                .invocations
                .iter()
                .find(|ran| ran.instance_id == host.id)
            else {
                continue;
            };
            let Some(began) = ran.began_at.filter(|began| *began <= at) else {
                continue;
            };
            let result = result_of(&ran.output);
            let left = matches!(result, Some((_, 34))) || ran.status_details == "ExecutionTimedOut";
            if !left && ran.ended_at.is_some_and(|ended| ended < at) {
                continue;
            }
            let Some(invocation) = self
                .course
                .invocations
                .iter()
                .find(|run| run.key == call.access_key)
            else {
                continue;
            };
            let subject = self.subject(self.deliveries[invocation.delivery], invocation);
            let comment = call.params["Comment"].as_str().unwrap_or_default();
            let meant = subject.groups.iter().find(|meant| {
                meant.region == region
                    && comment.ends_with(&format!(" {}/{}", meant.application, meant.name))
            });
            let Some(meant) = meant.filter(|meant| meant.is_certain()) else {
                continue;
            };
            // The SDK repeats a call with the same content: the first attempt says when it was sent.
            let first = self.calls.iter().find(|first| {
                first.operation == "SendCommand"
                    && first.access_key == call.access_key
                    && first.params == call.params
                    && first.region == call.region
            });
            causes.push((meant.since, first.map_or(call.at, |first| first.at), began));
        }
        causes
    }

    /// Scripts are never ended by Systems Manager unless they hang, and a restart is ordered when the host is quiet.
    fn scripts(&mut self) {
        let mut found = Vec::new();
        for (call, command) in &self.commands {
            for ran in &command.invocations {
                let Some(host) = host(self.end, &call.region, &ran.instance_id) else {
                    continue;
                };
                let changed = self.scene.changes.iter().any(|change| {
                    change.id == host.id
                        && matches!(change.what, What::Terminates | What::GoesOffline)
                });
                let hangs = host.agent.fault == Some(AgentFault::Hangs);
                if ran.status_details == "ExecutionTimedOut" && !hangs && !changed {
                    found.push(format!("{} was killed by its execution time-out", host.id));
                }
                let (Some((result, _)), Some(ended)) = (result_of(&ran.output), ran.ended_at)
                else {
                    continue;
                };
                let Some(began) = ran
                    .began_at
                    .filter(|_| result == "restarted" && host.agent.fault.is_none())
                else {
                    continue;
                };
                let restart = host
                    .agent
                    .restarts
                    .iter()
                    .find(|time| **time >= began && **time <= ended);
                let ordered = restart.map(|time| time - host.agent.restart_seconds);
                // One that was merged with an earlier one was not ordered by this script.
                let Some(ordered) = ordered.filter(|time| *time >= began && !changed) else {
                    continue;
                };
                if host
                    .agent
                    .busy
                    .iter()
                    .any(|[from, to]| *from <= ordered && ordered < *to - 0.001)
                {
                    found.push(format!(
                        "{} was restarted at {ordered:.3} in a lifecycle event",
                        host.id
                    ));
                }
            }
        }
        for what in found {
            self.broken(UNHARMED, what);
        }
    }
}

/// An invocation as Systems Manager shows it.
struct Seen {
    began: Option<f64>,
    ended: Option<f64>,
    /// The restart was tried and went wrong.
    error: bool,
}

fn seen(host: &Host, ran: &Ran) -> Seen {
    let Some(answer) = &host.answer else {
        return Seen {
            began: ran.began_at,
            ended: ran.ended_at,
            error: match (ran.status.as_str(), result_of(&ran.output)) {
                ("TimedOut", _) => ran.status_details == "ExecutionTimedOut",
                ("Success" | "Failed", Some((_, code))) => matches!(code, 30..=33),
                ("Success" | "Failed", None) => true,
                _ => false,
            },
        };
    };
    let details = answer.status_details.as_deref().unwrap_or(&answer.status);
    let (open, error) = match (answer.status.as_str(), details) {
        ("Success" | "Failed", "Success" | "Failed") => (false, true),
        ("Success" | "Failed" | "Cancelled", _) => (false, false),
        ("TimedOut", details) => (false, details == "ExecutionTimedOut"),
        _ => (true, false),
    };
    let waits = matches!(answer.status.as_str(), "Pending" | "Delayed");
    Seen {
        began: (!waits).then_some(ran.visible_at),
        ended: (!open).then_some(ran.visible_at),
        error,
    }
}

/// Result and code of the document's line.
fn result_of(output: &str) -> Option<(String, i64)> {
    let line = output.lines().find(|line| line.contains("agentRestart"))?;
    let line: Value = serde_json::from_str(line.trim()).ok()?;
    Some((line["result"].as_str()?.to_owned(), line["code"].as_i64()?))
}

/// `50%` of a fleet, or a number; rounded up.
fn share(setting: &str, default: &str, fleet: usize) -> usize {
    let setting = if setting.is_empty() { default } else { setting };
    match setting.strip_suffix('%') {
        Some(percent) => (fleet * percent.parse::<usize>().unwrap_or(0)).div_ceil(100),
        None => setting.parse().unwrap_or(0),
    }
}

/// Whether the function can have seen the reply.
fn is_answered(call: &Call) -> bool {
    let slow = |fault: &Fault| fault.kind() == FaultKind::Slow && fault.seconds >= ATTEMPT;
    call.error.is_none() && !call.fault.as_ref().is_some_and(slow)
}

fn breaks_a_limit(call: &Call) -> Option<String> {
    let injected = call
        .fault
        .as_ref()
        .is_some_and(|fault| matches!(fault.kind(), FaultKind::Error | FaultKind::ExpiredToken));
    if let Some(error) = call
        .error
        .as_deref()
        .filter(|error| !injected && WRONG_CALLS.contains(error))
    {
        return Some(error.to_owned());
    }
    match call.operation.as_str() {
        "SendCommand" => {
            let ids = texts(&call.params["InstanceIds"]);
            let comment = call.params["Comment"].as_str().unwrap_or_default();
            (ids.is_empty()
                || ids.len() > 50
                || !ids.is_sorted_by(|a, b| a < b)
                || comment.chars().count() > 100)
                .then(|| {
                    format!(
                        "{} ids, ascending: {}",
                        ids.len(),
                        ids.is_sorted_by(|a, b| a < b)
                    )
                })
        }
        "Publish" => {
            let text = |name: &str| call.params[name].as_str().unwrap_or_default();
            let attributes = call.params["MessageAttributes"]
                .as_object()
                .into_iter()
                .flatten();
            let attributes: usize = attributes
                .map(|(name, value)| {
                    let part = |part: &str| value[part].as_str().map_or(0, str::len);
                    name.len() + part("DataType") + part("StringValue")
                })
                .sum();
            let size = text("Message").len() + attributes;
            let subject = text("Subject");
            let plain =
                subject.len() < 100 && subject.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            (size > 262_144 || !plain || subject.is_empty())
                .then(|| format!("{size} bytes, subject {subject:?}"))
        }
        _ => None,
    }
}

/// What is wrong with the counts and rows of a group's answer.
fn counted(group: &GroupReport, answer: &Value, dry_run: bool) -> Option<String> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut attention = BTreeSet::new();
    for (id, entry) in &group.instances {
        match &entry.outcome {
            None if !dry_run => return Some(format!("{id} has no outcome")),
            None => {}
            Some(outcome) => {
                *counts.entry(outcome.kind.word()).or_default() += 1;
                if !FINE.contains(&outcome.kind.word()) {
                    attention.insert((id.as_str(), outcome.kind.word()));
                }
            }
        }
    }
    let told: BTreeMap<&str, u64> = answer["counts"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(word, count)| (word.as_str(), count.as_u64().unwrap_or(0)))
        .collect();
    let rows: Vec<(&str, &str)> = answer["attention"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| {
            (
                row["instanceId"].as_str().unwrap_or_default(),
                row["outcome"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    if told != counts {
        return Some(format!("counts {told:?}, outcomes {counts:?}"));
    }
    (rows.len() != attention.len() || rows.iter().copied().collect::<BTreeSet<_>>() != attention)
        .then(|| {
            format!(
                "{} rows of attention, {} expected",
                rows.len(),
                attention.len()
            )
        })
}

fn word(entry: &Entry) -> &'static str {
    entry
        .outcome
        .as_ref()
        .map_or("planned", |outcome| outcome.kind.word())
}

fn names(subject: &Subject) -> Vec<&str> {
    subject
        .groups
        .iter()
        .map(|meant| meant.name.as_str())
        .collect()
}

fn is(meant: &Meant, group: &GroupReport) -> bool {
    group.name.account == ACCOUNT
        && group.name.region == meant.region
        && group.name.application == meant.application
        && group.name.deployment_group == meant.name
}

fn by_auto_scaling(deployment: &Deployment) -> bool {
    ["autoscaling", "autoscalingTermination"].contains(&deployment.creator.as_str())
}

/// Whether it is created and has not come to its end.
fn runs_at(deployment: &Deployment, at: f64) -> bool {
    let ends = ["Succeeded", "Failed", "Stopped"].contains(&deployment.status.as_str());
    let over = ends && deployment.completed_at.is_none_or(|time| time <= at);
    deployment.created_at <= at && !over
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn host<'a>(state: &'a State, region: &str, id: &str) -> Option<&'a Host> {
    state
        .regions
        .get(region)?
        .hosts
        .iter()
        .find(|host| host.id == id)
}

/// Where each instance stood at which time.
fn standings(scene: &Scene) -> Standings<'_> {
    let mut standings = Standings::new();
    for (name, region) in &scene.state.regions {
        let mut members = BTreeMap::new();
        for group in &region.auto_scaling_groups {
            for member in &group.instances {
                members.insert(
                    member.id.as_str(),
                    (member.lifecycle.clone(), group.name.clone()),
                );
            }
        }
        for host in &region.hosts {
            let standing = Standing {
                from: f64::MIN,
                member: members.remove(host.id.as_str()),
                listed: host.managed
                    && !host.rejected
                    && ["running", "pending", "stopping"].contains(&host.state.as_str()),
            };
            let here = standings.entry(name).or_default();
            here.insert(&host.id, vec![standing]);
        }
    }
    for change in &scene.changes {
        let Some(known) = standings
            .get_mut(change.region.as_str())
            .and_then(|ids| ids.get_mut(change.id.as_str()))
        else {
            continue;
        };
        let Some(mut now) = known.last().cloned() else {
            continue;
        };
        now.from = change.at;
        match &change.what {
            What::Lifecycle(word) => {
                if let Some((state, _)) = &mut now.member {
                    (*word).clone_into(state);
                }
            }
            What::Leaves => now.member = None,
            What::Joins(group) => {
                now.member
                    .get_or_insert_with(|| ("InService".to_owned(), group.clone()));
            }
            What::Terminates => {
                now.member = None;
                now.listed = false;
            }
            What::Vanishes => now.listed = false,
            What::GoesOffline | What::ComesBack => {}
        }
        known.push(now);
    }
    standings
}

/// The standings that held at some time between the two moments.
fn during(standings: &[Standing], from: f64, to: f64) -> impl Iterator<Item = &Standing> + Clone {
    let after = standings
        .iter()
        .skip(1)
        .map(|next| next.from)
        .chain([f64::MAX]);
    standings
        .iter()
        .zip(after)
        .filter(move |(standing, until)| standing.from <= to + MOMENT && *until >= from)
        .map(|(standing, _)| standing)
}

//! Restarts the CodeDeploy agent on every instance that a deployment went to, and tells somebody about each
//! one that it could not.
//!
//! An event is the success of a CodePipeline execution or of a CodeDeploy deployment, or a request by hand;
//! everything else is ignored with a reason. [`Restarter::handle`] is the story of one event. It finds the
//! deployment groups that are meant; then **each group is a story of its own**, with one message at its end:
//! wait until no other deployment of it runs, find its instances, restart them, report. Groups live side by
//! side, but for those that share instances: they follow each other. The modules, in the order of the story:
//!
//! | module | question |
//! |---|---|
//! | [`trigger`] | What does the event ask for, or why is it ignored? |
//! | [`pipeline`], [`deployments`] | Which deployments, of which groups, to which targets? Since when is an agent fresh? |
//! | [`quiet`] | Does another deployment of the group still run? |
//! | [`inventory`] asks, [`decision`] decides | Which instances are that, and what is to be done with each? |
//! | [`window`] decides, [`restart`] does | How many at a time, when to stop; send the document, wait for each result. |
//! | [`flights`] | Who was sent to and has no outcome yet, and who is late. |
//! | [`document`] | The contract with the scripts on the hosts: what they get, their line, what each result means. |
//! | [`outcome`], [`kind`] | What became of an instance and why; the thirteen outcomes. |
//! | [`report`] | Every candidate in one outcome, every failed call as a problem. |
//! | [`answer`], [`message`], [`metrics`] | The report as JSON, as messages to people and programs, as metrics. |
//! | [`notify`] | Who is told; publishing to the SNS topic. |
//! | [`advice`] | What a person should do, about every outcome and every problem. |
//! | [`problem`] | What can go wrong in which step, and whether time may cure it. |
//! | [`settings`], [`aws`], [`pace`], [`clock`], [`ids`], [`text`] | What operators set, the clients and their rate, time as a parameter, checked names, words. |
//!
//! An event has Lambda's 15 minutes: at most 90 s to find groups and instances, 120 s until no other
//! deployment of a group runs, and the rest, less 45 s for the report, to send and wait. Whoever is left at the
//! end is reported too: not sent to (`held-back`), without a result (`unfinished`), or `busy` because another
//! deployment ran, whose own success brings the restart if the function hears of it.
//!
//! Whether a restart is *safe*, and whether a *new, healthy* agent runs afterwards, is decided and proven on
//! the host, by the Run Command document. So an event may be delivered twice, a request repeated, and an
//! instance be in two groups: an agent that started after the deployment is left alone, and of two runs at
//! once the second waits for the first. A repeated event tells again of what still needs attention.
//!
//! An instance that fails is data: it stands in the report. A call that fails is a [`Problem`] of its group
//! or of the event, and the rest goes on. A group's message is due when anything in it needs attention (or
//! always, if so set), but never for ignored events and dry runs. [`Error`] is left for an event that cannot be
//! read and a report that cannot be published: Lambda's retries and dead-letter queue take over.

use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

pub mod advice;
pub mod answer;
pub mod aws;
pub mod clock;
pub mod decision;
pub mod deployments;
pub mod document;
pub mod flights;
pub mod ids;
pub mod inventory;
pub mod kind;
pub mod message;
pub mod metrics;
pub mod notify;
pub mod outcome;
pub mod pace;
pub mod pipeline;
pub mod problem;
pub mod quiet;
pub mod report;
pub mod restart;
pub mod settings;
pub mod text;
pub mod trigger;
pub mod window;

use answer::Answer;
use aws::Clients;
use clock::Clock;
use deployments::{Found, Group};
use inventory::Fleet;
use problem::{CallError, Problem, Step};
use report::{GroupReport, Report};
use settings::Settings;
use trigger::{EventError, Home, Order, Trigger};

/// Finding the deployments and then the instances may take this long together, retries included.
const RESOLVE_LIMIT: Duration = Duration::from_secs(90);

/// Why an invocation fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The event cannot be read.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A report could not be published; the restarts themselves are done.
    #[error("the report could not be published: {0}")]
    Publish(#[from] CallError),
}

impl Error {
    /// The error's type, as Lambda shows it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Event(_) => "InvalidEvent",
            Self::Publish(_) => "PublishFailed",
        }
    }
}

/// What became of an event.
#[derive(Clone, Debug)]
pub enum Handled {
    /// It is none of ours, or asks for nothing.
    Ignored {
        /// What it ordered, when that much was understood.
        order: Option<Order>,
        /// Why.
        reason: String,
    },
    /// It was acted upon, or planned.
    Done(Report),
}

/// The function: settings and clients, for any number of events.
#[derive(Debug)]
pub struct Restarter {
    /// What the operator set.
    pub settings: Settings,
    /// The AWS clients.
    pub clients: Clients,
    /// Takes each line of metrics; Lambda's log is their way to CloudWatch.
    pub print: fn(&str),
}

impl Restarter {
    /// Handles one event and returns the JSON answer.
    ///
    /// # Errors
    /// When the event cannot be read, or a report could not be published.
    pub async fn handle(&self, event: &Value, clock: &Clock, home: &Home) -> Result<Value, Error> {
        let handled = self.carry_out(event, clock, home).await?;
        self.conclude(&handled, clock, home).await
    }

    /// The first half of [`handle`](Self::handle), for callers that want to see the report itself: whose
    /// agents are meant, and what became of each.
    ///
    /// # Errors
    /// When the event cannot be read.
    pub async fn carry_out(
        &self,
        event: &Value,
        clock: &Clock,
        home: &Home,
    ) -> Result<Handled, EventError> {
        let order = match trigger::read(event, clock, home)? {
            Trigger::Restart(order) => order,
            Trigger::Ignore(reason) => {
                let order = None;
                return Ok(Handled::Ignored { order, reason });
            }
        };
        tracing::info!(time = %order.time, "{}", order.subject.words());
        // Boxed futures here and below, since the compiler limits how deep they may nest.
        let by = (Instant::now() + RESOLVE_LIMIT).min(clock.until());
        let found: BoxFuture<'_, Found> =
            Box::pin(deployments::find(&self.clients, &order, home, by));
        let (groups, unresolved, problems) = match found.await {
            Found::Groups {
                groups,
                unresolved,
                problems,
            } => (groups, unresolved, problems),
            Found::Nothing(reason) => {
                let order = Some(order);
                return Ok(Handled::Ignored { order, reason });
            }
        };
        let left = by.saturating_duration_since(Instant::now());
        let dry_run = order.dry_run || self.settings.dry_run;
        let rows = deployments::rows(groups)
            .into_iter()
            .map(|row| self.restart_row(row, clock, left, dry_run));
        let mut groups = join_all(rows).await.concat();
        let took = clock.elapsed();
        groups.extend(
            unresolved
                .into_iter()
                .map(|u| GroupReport::unresolved(u, took)),
        );
        groups.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Handled::Done(Report {
            order,
            groups,
            problems,
            dry_run,
        }))
    }

    /// Groups that share instances, one after the other: what the first one restarts is fresh for the next.
    fn restart_row<'a>(
        &'a self,
        row: Vec<Group>,
        clock: &'a Clock,
        left: Duration,
        dry_run: bool,
    ) -> BoxFuture<'a, Vec<GroupReport>> {
        Box::pin(async move {
            let mut reports = Vec::new();
            for group in row {
                reports.push(self.restart_group(group, clock, left, dry_run).await);
            }
            reports
        })
    }

    /// The story of one group. Its instances are to be found in the time that is `left`.
    async fn restart_group(
        &self,
        group: Group,
        clock: &Clock,
        left: Duration,
        dry_run: bool,
    ) -> GroupReport {
        let begun = clock.elapsed();
        let fleet = match self.find_fleet(&group, clock, left, !dry_run).await {
            Ok(fleet) => fleet,
            Err(problem) => {
                return GroupReport::unresolved(group.unresolved(problem), clock.elapsed() - begun);
            }
        };
        let client = self.clients.in_region(&group.name.region);
        let results = match dry_run {
            true => None,
            false => Some(restart::restart(&client, &self.settings, clock, &group, &fleet).await),
        };
        GroupReport::of(group, fleet, results, clock.elapsed() - begun)
    }

    /// A group's instances with their decisions, once no other deployment of the group runs; all `busy` if one
    /// still does. With `patient` false nobody waits for that.
    async fn find_fleet(
        &self,
        group: &Group,
        clock: &Clock,
        left: Duration,
        patient: bool,
    ) -> Result<Fleet, Problem> {
        let running = quiet::running_deployment(&self.clients, &group.name, clock, patient).await?;
        let client = self.clients.in_region(&group.name.region);
        let by = (Instant::now() + left).min(clock.until());
        match timeout_at(by, inventory::find(&client, group, running, clock)).await {
            Ok(found) => found.map_err(|error| Problem::of_call(Step::Fleet, &error)),
            Err(_) => Err(Problem::out_of_time(Step::Fleet)),
        }
    }

    /// The second half of [`handle`](Self::handle): metrics, the messages, the answer.
    ///
    /// # Errors
    /// When a report could not be published.
    pub async fn conclude(
        &self,
        handled: &Handled,
        clock: &Clock,
        home: &Home,
    ) -> Result<Value, Error> {
        let report = match handled {
            Handled::Done(report) => report,
            Handled::Ignored { order, reason } => {
                tracing::info!(reason = %reason, "ignored: {reason}");
                return Ok(json!(Answer::ignored(order.as_ref(), reason)));
            }
        };
        log(report);
        for line in metrics::lines(report, clock.now()) {
            (self.print)(&line);
        }
        let messages = notify::messages(report, &self.settings, home);
        let until = clock.publish_until();
        notify::publish(&self.clients, &self.settings.topic, &messages, until).await?;
        let answer = Answer::of_report(report, !messages.is_empty());
        tracing::info!(
            result = answer.result,
            severity = answer.severity.word(),
            notified = answer.notified,
            "{}: {}",
            report.order.subject.words(),
            answer.result
        );
        Ok(json!(answer))
    }
}

/// Nobody gets the answer to an event: its plan and its problems are in the log.
fn log(report: &Report) {
    for (target, entry) in report.plan() {
        let (decision, reason) = (entry.decision.word(), entry.decision.reason());
        tracing::info!(
            instance.id = %target,
            decision,
            reason,
            "dry run: {target}: {decision}: {reason}"
        );
    }
    for problem in report.problems() {
        let (step, code) = (problem.step.word(), problem.code.word());
        tracing::error!(step, code, "{}", problem.message);
    }
}

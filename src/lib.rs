//! Restarts the CodeDeploy agent on every instance that a deployment went to, and tells somebody about each
//! one that it could not.
//!
//! An event is the success of a CodePipeline execution or of a CodeDeploy deployment, or a request by hand;
//! everything else is ignored with a reason. [`Restarter::handle`] is the story of one event; each chapter
//! is a module:
//!
//! | module | question |
//! |---|---|
//! | [`trigger`] | What does the event ask for, or why is it ignored? |
//! | [`deployments`] | Which deployments of which groups are meant, and does another one still run? |
//! | [`fleet`] | Which instances are that, and what is to be done with each? |
//! | [`restart`] | Send the restart document, wait until each instance is accounted for. |
//! | [`outcome`] | What does an invocation's end mean? The thirteen outcomes, and which need attention. |
//! | [`report`] | Every candidate in one outcome, every failed call as a problem. |
//! | [`notify`], [`metrics`] | The message to the SNS topic, and the metrics: views of the report. |
//! | [`settings`], [`clock`], [`aws`], [`pace`] | What operators set, time as a parameter, the clients and their rate. |
//! | [`text`] | Text that others wrote, made fit for ours. |
//!
//! An event has Lambda's 15 minutes: at most 90 s to find groups and instances, 120 s until no other
//! deployment of the group runs, and the rest, less 45 s for the report, to send and wait. How many
//! instances restart at the same time, and when to stop after failures, is decided in [`restart`]. Whoever is
//! left at the end is reported too: not sent to (`held-back`), without a result (`unfinished`), or `busy`
//! because another deployment ran, whose own success brings the restart if the function hears of it. Of
//! several groups all are found before anything is sent, so that an instance in two of them is sent to once;
//! a group that had to wait for the others is asked again whether it is still quiet.
//!
//! Whether a restart is *safe*, and whether a *new, healthy* agent runs afterwards, is decided and proven on
//! the host, by the Run Command document. So an event may be delivered twice, a request repeated, and an
//! instance be in two groups: an agent that started after the deployment is left alone, and of two runs at
//! once the second waits for the first. A repeated event tells again of what still needs attention.
//!
//! An instance that fails is data: it stands in the report. A call that fails is a [`Problem`] of its group
//! or of the event, and the rest goes on. A message is due when anything needs attention (or always, if so
//! set), but never for ignored events and dry runs. [`Error`] is left for an event that cannot be read and a
//! report that cannot be published: Lambda's retries and dead-letter queue take over.

use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

pub mod aws;
pub mod clock;
pub mod deployments;
pub mod fleet;
pub mod metrics;
pub mod notify;
pub mod outcome;
pub mod pace;
pub mod report;
pub mod restart;
pub mod settings;
pub mod text;
pub mod trigger;

use aws::{CallError, Clients};
use clock::Clock;
use deployments::{Found, Group, Unresolved};
use fleet::Fleet;
use outcome::Problem;
use report::{Answer, Report};
use restart::Results;
use settings::Settings;
use trigger::{EventError, Home, Order, Trigger};

/// Finding the deployments and then the instances may take this long together, retries included.
const RESOLVE_LIMIT: Duration = Duration::from_secs(90);

/// When the groups are ready, those are asked once more whose answer that no other deployment runs is older
/// than this.
const QUIET_AGE: Duration = Duration::from_secs(10);

/// Why an invocation fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The event cannot be read.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The report could not be published; the restarts themselves are done.
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
    /// When the event cannot be read, or the report could not be published.
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
        let begun = clock.elapsed();
        // Boxed futures here and below, since the compiler limits how deep they may nest.
        let by = (Instant::now() + RESOLVE_LIMIT).min(clock.until());
        let found: BoxFuture<'_, Found> = Box::pin(self.find_groups(&order, home, by));
        let (groups, problem) = match found.await {
            Found::Groups { groups, problem } => (groups, problem),
            Found::Nothing(reason) => {
                let order = Some(order);
                return Ok(Handled::Ignored { order, reason });
            }
        };
        let left = by.saturating_duration_since(Instant::now());
        let dry_run = order.dry_run || self.settings.dry_run;
        let fleets = groups.into_iter().map(|group| -> BoxFuture<'_, _> {
            Box::pin(self.find_fleet(group, clock, left, !dry_run))
        });
        let mut fleets = join_all(fleets).await;
        if !dry_run {
            self.check_quiet_again(&mut fleets, clock).await;
        }
        fleet::send_once(&mut fleets);

        let results = fleets.iter().map(|fleet| -> BoxFuture<'_, _> {
            Box::pin(async move {
                let results = match fleet {
                    Ok(fleet) if !dry_run => Some(self.restart_fleet(fleet, clock).await),
                    _ => None,
                };
                (results, clock.elapsed() - begun)
            })
        });
        let results = join_all(results).await;
        Ok(Handled::Done(Report {
            order,
            groups: report::groups(fleets, results),
            problem,
            dry_run,
        }))
    }

    /// The second half of [`handle`](Self::handle): metrics, the message, the answer.
    ///
    /// # Errors
    /// When the report could not be published.
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
        // Nobody gets the answer to an event: its plan is in the log.
        for (id, entry) in report.plan() {
            tracing::info!(
                instance.id = %id,
                decision = entry.decision.word(),
                reason = entry.decision.reason(),
                "dry run: {id}: {}: {}",
                entry.decision.word(),
                entry.decision.reason()
            );
        }
        for problem in report.problems() {
            tracing::error!(step = problem.step, code = %problem.code, "{}", problem.message);
        }
        for line in metrics::lines(report, clock.now()) {
            (self.print)(&line);
        }
        let notified = self.notify(report, clock, home).await?;
        let answer = report.answer(notified);
        tracing::info!(
            result = answer.result,
            severity = report.severity().word(),
            notified,
            "{}: {}",
            report.order.subject.words(),
            answer.result
        );
        Ok(json!(answer))
    }

    async fn find_groups(&self, order: &Order, home: &Home, by: Instant) -> Found {
        tracing::info!(time = %order.time, "{}", order.subject.words());
        deployments::find(&self.clients, order, home, by).await
    }

    /// A group's instances with their decisions, once no other deployment of the group runs; all `busy` if
    /// one still does. With `patient` false nobody waits for that. The instances are to be found in the time
    /// that is `left`.
    async fn find_fleet(
        &self,
        group: Result<Group, Unresolved>,
        clock: &Clock,
        left: Duration,
        patient: bool,
    ) -> Result<Fleet, Unresolved> {
        let group = group?;
        let find = async {
            let other = deployments::quiet(&self.clients, &group, clock, patient).await?;
            let quiet_at = Instant::now();
            let by = (quiet_at + left).min(clock.until());
            let mut fleet = timeout_at(by, fleet::find(&self.clients, &group, clock))
                .await
                .unwrap_or_else(|_| Err(Problem::out_of_time("fleet")))?;
            fleet.quiet_at = quiet_at;
            if let Some(id) = other {
                fleet.mark_busy(&id);
            }
            Ok(fleet)
        };
        let found: Result<Fleet, Problem> = find.await;
        found.map_err(|problem| group.unresolved(problem))
    }

    /// While one group waited, a deployment of another may have begun: asks those again whose answer is old.
    async fn check_quiet_again(&self, fleets: &mut [Result<Fleet, Unresolved>], clock: &Clock) {
        let looks = fleets.iter_mut().map(async |found| {
            let Ok(fleet) = found else { return };
            if fleet.busy || fleet.quiet_at.elapsed() < QUIET_AGE {
                return;
            }
            match deployments::quiet(&self.clients, &fleet.group, clock, false).await {
                Ok(None) => {}
                Ok(Some(id)) => fleet.mark_busy(&id),
                Err(problem) => fleet.hold_back(problem),
            }
        });
        join_all(looks).await;
    }

    async fn restart_fleet(&self, fleet: &Fleet, clock: &Clock) -> Results {
        restart::restart(&self.clients, &self.settings, clock, fleet).await
    }

    async fn notify(&self, report: &Report, clock: &Clock, home: &Home) -> Result<bool, CallError> {
        if !notify::is_due(report, &self.settings) {
            return Ok(false);
        }
        let messages = notify::messages(report, home);
        let until = clock.publish_until();
        notify::publish(&self.clients, &self.settings, &messages, until).await?;
        Ok(true)
    }
}

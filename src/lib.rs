//! Restarts the CodeDeploy agent on every instance that a deployment went to, and tells somebody about each
//! agent that it could not restart.
//!
//! An event is the end of a CodePipeline execution or of a CodeDeploy deployment, a success or not, or a request by hand;
//! everything else is ignored with a reason. [`Restarter::handle`] is the story of one event:
//!
//! 1. [`trigger`] reads what the event orders, out of what it came in ([`wrapping`]). Then [`groups`] finds the deployment
//!    groups that are meant: [`pipeline`] asks CodePipeline for an execution's deployments, once its list has settled, and
//!    [`deployments`] asks CodeDeploy about them and whom they went to. What is of other [`accounts`] is left to these.
//! 2. **Each group is a story of its own.** [`quiet`] waits until no other deployment of it runs, at most 120 s.
//!    [`freshness`] asks what was deployed since: an agent is fresh if it started after the last deployment to its host ended.
//!    [`inventory`] asks Auto Scaling and Systems Manager ([`nodes`]) about the group's instances, which machine outside EC2
//!    bears a target's name ([`directory`]), and [`ec2`] whether those run that Systems Manager does not reach, and who has
//!    the tag that may be asked for; [`decision`] says of each whether a restart is ordered, or why not. [`restart`] sends
//!    each [`platform`] its Run Command document and asks for results until each instance has an [`outcome`]; [`window`]
//!    tells it how many may be sent to, and when to stop after failures, [`flights`] who is late. Groups live side by side,
//!    but groups that have targets in common follow each other: what the first one restarts is fresh for the next.
//! 3. The [`report`] holds every instance in one of thirteen outcomes ([`kind`]) and every call that failed as a
//!    [`problem`]; so is a group of which nobody is found, since nothing is fine because an answer was empty. It is returned
//!    as JSON ([`answer`]), logged, printed as [`metrics`], and told: [`notify`] publishes one [`message`] for each group in
//!    which anything needs attention (or for every group, if so set), and one for problems that belong to no group. What
//!    people should do comes from [`advice`].
//!
//! | below all of it | |
//! |---|---|
//! | [`document`] | The contract with the scripts on the hosts: parameters, the line they print, and of each exit code which outcome it makes, how bad that is, and whether it counts as a failure that stops the sending. |
//! | [`ssm_agent`] | What the SSM Agent says where it could not run the script. |
//! | [`settings`] | What operators set. |
//! | [`aws`], [`paging`], [`pace`] | The clients, their retries and time limits; answers in pages; the rate of Systems Manager's calls. |
//! | [`clock`], [`ids`], [`text`] | Time as a parameter; names that were checked; words, and text that others wrote. |
//!
//! An event has Lambda's 15 minutes. Finding the deployments may take 60 s; together with finding the instances 90 s, not
//! counting the wait for quiet; 45 s are kept for the report; the rest is for sending and waiting. Whoever has no result by then is reported as
//! well: not sent to (`held-back`), or sent to without a result (`unfinished`). While another deployment of its group
//! runs, an instance is `busy`: that deployment's own end brings the restart, if its event reaches this function too. One
//! that CodeDeploy made for instances it had missed keeps these alone.
//!
//! The *host* decides, in the document's script, whether an ordered restart is safe, and proves that a new, healthy agent runs
//! afterwards. A fresh agent is left alone there, and of two scripts at once the second
//! waits for the first. So it does no harm that an event is delivered twice, that a request is repeated, or that an
//! instance is in two groups; open troubles are told again.
//!
//! An instance that fails is data in the report. A call that fails, after its retries, is a problem of its group or of
//! the event, and the rest goes on. The invocation itself fails in two cases: an event that cannot be read, which ends in
//! the dead-letter queue, and a message that cannot be published, for which Lambda repeats the whole event. A dry run looks
//! once, plans, and neither sends nor publishes.

use std::time::Duration;

use futures_util::future::{BoxFuture, join_all, try_join};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

pub mod accounts;
pub mod advice;
pub mod answer;
pub mod aws;
pub mod clock;
pub mod decision;
pub mod deployments;
pub mod directory;
pub mod document;
pub mod ec2;
pub mod flights;
pub mod freshness;
pub mod groups;
pub mod ids;
pub mod inventory;
pub mod kind;
pub mod message;
pub mod metrics;
pub mod nodes;
pub mod notify;
pub mod outcome;
pub mod pace;
pub mod paging;
pub mod pipeline;
pub mod platform;
pub mod problem;
pub mod quiet;
pub mod report;
pub mod restart;
pub mod settings;
pub mod ssm_agent;
pub mod text;
pub mod trigger;
pub mod window;
pub mod wrapping;

use accounts::Accounts;
use answer::Answer;
use aws::{Clients, RegionClients};
use clock::Clock;
use decision::{Decision, Running};
use directory::Directory;
use freshness::Freshness;
use groups::{Found, Group};
use inventory::Fleet;
use problem::{CallError, Code, Problem, Step};
use report::{GroupReport, Report};
use settings::Settings;
use trigger::{EventError, Home, Order, Trigger};

/// Finding the deployments and then the instances may take this long together, retries included …
const RESOLVE_LIMIT: Duration = Duration::from_secs(90);
/// … of which this is for the deployments: one region that hangs leaves the others time for their instances.
const DEPLOYMENTS_LIMIT: Duration = Duration::from_secs(60);

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
    /// It is none of ours, or there is nothing of ours to restart.
    Ignored {
        /// What it ordered, when it was an order.
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
    /// Prints a line of metrics: from Lambda's log, CloudWatch takes them.
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
        // Boxed, here and below: the compiler limits how deep futures may nest.
        let (begun, now) = (clock.elapsed(), Instant::now());
        let by = (now + DEPLOYMENTS_LIMIT).min(clock.until());
        let accounts = Accounts {
            home,
            covered: &self.settings.covered_accounts,
        };
        let found: BoxFuture<'_, Found> =
            Box::pin(groups::find(&self.clients, &order, accounts, by));
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
        // What is left of the limit is for each group's instances, once the group is quiet.
        let took = clock.elapsed() - begun;
        let left = RESOLVE_LIMIT.saturating_sub(took);
        let dry_run = order.dry_run || self.settings.dry_run;
        let directory = &Directory::new(self.settings.instance_tag.clone());
        let chains = groups::chains(groups)
            .into_iter()
            .map(|chain| self.restart_chain(chain, directory, clock, left, dry_run));
        let mut groups = join_all(chains).await.concat();
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
    fn restart_chain<'a>(
        &'a self,
        chain: Vec<Group>,
        directory: &'a Directory,
        clock: &'a Clock,
        left: Duration,
        dry_run: bool,
    ) -> BoxFuture<'a, Vec<GroupReport>> {
        Box::pin(async move {
            let last_send = restart::last_send(&self.settings, clock);
            let mut reports: Vec<GroupReport> = Vec::new();
            for group in chain {
                let way = match (dry_run, Instant::now() >= last_send) {
                    (true, _) => Way::Plan,
                    (false, true) if !reports.is_empty() => Way::TooLate,
                    (false, _) => Way::Restart,
                };
                let report = self.restart_group(group, directory, clock, left, way);
                reports.push(report.await);
            }
            reports
        })
    }

    /// The story of one group. Once it is quiet, its instances are to be found in the time that is `left`.
    async fn restart_group(
        &self,
        group: Group,
        directory: &Directory,
        clock: &Clock,
        left: Duration,
        way: Way,
    ) -> GroupReport {
        let begun = clock.elapsed();
        let client = self.clients.in_region(&group.name.region);
        let settings = &self.settings;
        let found = find_fleet(&client, &group, settings, directory, clock, left, way).await;
        let (fleet, fresh) = match found {
            Ok(found) => found,
            Err(problem) => {
                return GroupReport::unresolved(group.unresolved(problem), clock.elapsed() - begun);
            }
        };
        let results = match way {
            Way::Plan => None,
            Way::Restart | Way::TooLate => {
                Some(restart::restart(&client, settings, clock, &group, &fleet, &fresh).await)
            }
        };
        GroupReport::of(group, fleet, results, clock.elapsed() - begun)
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

/// How a group is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As it should be.
    Restart,
    /// The groups of its chain took the time to send: its instances are looked up all the same, if there is time for
    /// that, so that each is held back by name.
    TooLate,
    /// Nothing but a plan.
    Plan,
}

/// A group's instances with their decisions, once no other deployment runs that concerns the whole group (all `busy` if one
/// still does), and since when their agents count as fresh. A plan looks once, without waiting; a group that is too late
/// does not look.
async fn find_fleet(
    client: &RegionClients,
    group: &Group,
    settings: &Settings,
    directory: &Directory,
    clock: &Clock,
    left: Duration,
    way: Way,
) -> Result<(Fleet, Freshness), Problem> {
    let running = match way {
        Way::TooLate => Running::default(),
        Way::Restart => quiet::running_deployments(client, &group.name, clock, true).await?,
        Way::Plan => quiet::running_deployments(client, &group.name, clock, false).await?,
    };
    let by = (Instant::now() + left).min(clock.until());
    let found = try_join(
        inventory::find(client, group, running, settings, directory, clock),
        // A deployment that was waited for counts.
        freshness::read(client, group, clock),
    );
    match timeout_at(by, found).await {
        Ok(Ok((fleet, fresh))) => {
            let fresh = fresh.named(&fleet.names);
            Ok((fleet, fresh))
        }
        Ok(Err(error)) => Err(Problem::of_call(Step::Fleet, &error)),
        Err(_) if way == Way::TooLate && Instant::now() >= clock.until() => Err(Problem::new(
            Step::Fleet,
            Code::NoTime,
            "the groups that share its instances took all the time that there was",
        )),
        Err(_) => Err(Problem::out_of_time(Step::Fleet)),
    }
}

/// Nobody gets the answer to an event, so the log holds it all: a dry run's plan, those that nothing was sent to (the
/// others have their lines already), and every problem.
fn log(report: &Report) {
    for group in &report.groups {
        let name = &group.name;
        for (target, entry) in &group.instances {
            let (decision, reason) = (entry.decision.word(), entry.decision.reason());
            match (&entry.decision, report.dry_run) {
                (_, true) => tracing::info!(
                    deployment.group = %name,
                    instance.id = %target,
                    decision,
                    reason,
                    "dry run: {name}: {target}: {decision}: {reason}"
                ),
                (Decision::Leave(..), false) => tracing::info!(
                    deployment.group = %name,
                    instance.id = %target,
                    outcome = decision,
                    detail = reason,
                    "{target}: {decision}"
                ),
                (Decision::Restart(..) | Decision::AskAgain(_), false) => {}
            }
        }
    }
    for problem in report.problems() {
        let (step, code) = (problem.step.word(), problem.code.word());
        tracing::error!(step, code, "{}", problem.message);
    }
}

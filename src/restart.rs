//! Sends the restart document to a fleet and waits until every instance is accounted for. What is to be done next,
//! and what each answer means, is decided in [`window`](crate::window); this talks to Systems Manager.
//!
//! The rate control is ours, over the whole fleet of a group. The set to account for is ours too: Systems
//! Manager's list of invocations starts empty and fills late.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::aws::RegionClients;
use crate::clock::Clock;
use crate::decision::Decision;
use crate::document::{DELIVERY_SECONDS, Parameters};
use crate::freshness::Freshness;
use crate::groups::Group;
use crate::ids::InstanceId;
use crate::inventory::{Fleet, Question, decide_again};
use crate::outcome::{Progress, of_invocation};
use crate::paging::pages;
use crate::platform::Platform;
use crate::problem::{CallError, Step};
use crate::settings::Settings;
use crate::window::{Carried, Limits, Next, Plan, Results, Why, Window};

const SEND: &str = "ssm:SendCommand";
const POLL: &str = "ssm:ListCommandInvocations";
/// Invocations on one page of `ListCommandInvocations`
/// (<https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_ListCommandInvocations.html>).
const INVOCATIONS_PAGE: i32 = 50;
/// Characters of a command's comment
/// (<https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_SendCommand.html>).
const MAX_COMMENT: usize = 100;
/// Beyond the pause before it, a look at the open commands may take this long: whoever has not answered by then is
/// asked again at the next look, and does not keep the others' results.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// Nothing is sent later than the busy wait and this many seconds before the end.
const LAST_SEND_SECONDS: u64 = 120;

/// Restarts the agents of the fleet's instances that are to be restarted. Returns when each has an outcome, at
/// the latest at the clock's `until`; never fails: what AWS refuses is in the results.
pub async fn restart(
    client: &RegionClients,
    settings: &Settings,
    clock: &Clock,
    group: &Group,
    fleet: &Fleet,
    fresh: &Freshness,
) -> Results {
    let plan = plan(fleet, fresh);
    let limits = limits(settings, clock, plan.restart.len());
    let run = Run {
        client,
        settings,
        clock,
        group,
        fleet,
        fresh,
        limits,
    };
    let mut window = Window::new(plan, limits, Carried::default(), Instant::now());
    loop {
        match window.next(Instant::now()) {
            Next::Send(platform, ids) => run.send(&mut window, platform, ids).await,
            Next::Ask(ids, why) => run.ask(&mut window, &ids, why).await,
            Next::Wait(until) => {
                sleep_until(until).await;
                run.look(&mut window).await;
            }
            Next::Done => return window.close(),
        }
    }
}

fn plan(fleet: &Fleet, fresh: &Freshness) -> Plan {
    let mut plan = Plan {
        fresh: fresh.clone(),
        restart: Default::default(),
        offline: Default::default(),
        read_at: fleet.read_at,
    };
    for (target, instance) in &fleet.instances {
        match (target.instance(), &instance.decision) {
            (Some(id), Decision::Restart(platform, _)) => {
                plan.restart.insert((*platform, id.clone()));
            }
            (Some(id), Decision::AskAgain(reason)) => {
                plan.offline.insert(id.clone(), reason.clone());
            }
            (None, _) | (_, Decision::Leave(..)) => {}
        }
    }
    plan
}

struct Run<'a> {
    client: &'a RegionClients,
    settings: &'a Settings,
    clock: &'a Clock,
    group: &'a Group,
    fleet: &'a Fleet,
    fresh: &'a Freshness,
    limits: Limits,
}

/// From when on nothing is sent any more.
pub fn last_send(settings: &Settings, clock: &Clock) -> Instant {
    let reserve = u64::from(settings.busy_wait_seconds) + LAST_SEND_SECONDS;
    let last_send = clock.until().checked_sub(Duration::from_secs(reserve));
    last_send.unwrap_or_else(Instant::now)
}

fn limits(settings: &Settings, clock: &Clock, fleet: usize) -> Limits {
    Limits {
        at_once: settings.max_concurrency.of(fleet).max(1),
        failures: settings.max_errors.of(fleet),
        last_send: last_send(settings, clock),
        until: clock.until(),
    }
}

impl Run<'_> {
    /// Sends one command, unless it has become too late, or too long ago that the instances were decided about, when
    /// its turn comes.
    async fn send(&self, window: &mut Window, platform: Platform, ids: Vec<InstanceId>) {
        let Ok(turn) = timeout_at(self.limits.last_send, self.client.ssm.turn()).await else {
            return;
        };
        if window.next(Instant::now()) != Next::Send(platform, ids.clone()) {
            return;
        }
        let Some(document) = self.settings.documents.of(platform) else {
            return window.no_document(platform, "no restart document is set for it");
        };
        let comment = format!("codedeploy-agent-restarter: {}", self.group.name);
        let mut call = turn
            .send_command()
            .document_name(document)
            .document_version("$LATEST")
            .set_instance_ids(Some(ids.iter().map(ToString::to_string).collect()))
            .timeout_seconds(DELIVERY_SECONDS)
            .max_concurrency("100%")
            .max_errors("100%")
            .comment(comment.chars().take(MAX_COMMENT).collect::<String>());
        for (name, value) in self.parameters(&ids).pairs() {
            call = call.parameters(name, vec![value.to_string()]);
        }
        let sent = match timeout_at(self.clock.until(), call.send()).await {
            Err(_) => Err(CallError::out_of_time(SEND, document)),
            Ok(Err(error)) => Err(CallError::new(SEND, document, &error)),
            Ok(Ok(answer)) => answer
                .command
                .and_then(|command| command.command_id)
                .ok_or_else(|| CallError::incomplete(SEND, document, "command id")),
        };
        match sent {
            Ok(command_id) => {
                tracing::info!(
                    command.id = %command_id,
                    instances = ids.len(),
                    "sent restart command {command_id} to {} instances",
                    ids.len()
                );
                window.sent(&command_id, Instant::now());
            }
            Err(error) => window.not_sent(error),
        }
    }

    fn parameters(&self, ids: &[InstanceId]) -> Parameters {
        Parameters {
            // One for all of them: the window makes the commands so.
            triggered_at: ids.first().map_or(self.clock.now(), |id| self.fresh.of(id)),
            sent_at: self.clock.now(),
            busy_wait_seconds: self.settings.busy_wait_seconds,
            min_memory_mib: self.settings.min_memory_mib,
        }
    }

    /// Decides again about instances. An answer that comes too late to send is of no use, and nobody looks at the
    /// commands meanwhile.
    async fn ask(&self, window: &mut Window, ids: &[InstanceId], why: Why) {
        let question = match why {
            Why::Stale(platform) => Question::Lifecycle(platform),
            Why::Refused | Why::Offline => Question::LifecycleAndInventory,
        };
        let again = decide_again(self.client, ids, &self.fleet.circumstances, question);
        match timeout_at(self.limits.last_send, again).await {
            Ok(Ok(again)) => {
                if let Some(error) = &again.unanswered {
                    window.note(Step::Fleet, error);
                }
                window.decided(why, again.decisions, again.read_at);
            }
            Ok(Err(error)) => window.undecided(why, Some(error)),
            Err(_) => window.undecided(why, None),
        }
    }

    /// Looks at every open command once.
    async fn look(&self, window: &mut Window) {
        let now = Instant::now();
        let pace = window.tick();
        let by = (now + pace + LOOK_LIMIT).min(self.clock.until());
        let looks = window.open_commands().into_iter().map(async |command| {
            let answer = timeout_at(by, self.invocations(&command)).await;
            (command, answer, Instant::now())
        });
        // What one command's answer says counts, though another's is missing.
        for (command, answer, at) in join_all(looks).await {
            match answer {
                Ok(Ok(invocations)) => window.seen(&command, invocations, at),
                Ok(Err(error)) => window.not_seen(&command, error),
                // A look that begins just before the end has no chance, and says nothing.
                Err(_) if by.duration_since(now) < pace => {}
                Err(_) => {
                    let error = CallError::out_of_time(POLL, format!("command {command}"));
                    window.not_seen(&command, error);
                }
            }
        }
        window.looked(Instant::now());
    }

    async fn invocations(
        &self,
        command_id: &str,
    ) -> Result<Vec<(InstanceId, Progress)>, CallError> {
        let found = pages(POLL, |token| async move {
            let page = self
                .client
                .ssm
                .turn()
                .await
                .list_command_invocations()
                .command_id(command_id)
                .details(true)
                .max_results(INVOCATIONS_PAGE)
                .set_next_token(token)
                .send()
                .await
                .map_err(|error| CallError::new(POLL, format!("command {command_id}"), &error))?;
            Ok((
                page.command_invocations.unwrap_or_default(),
                page.next_token,
            ))
        })
        .await?;
        let ours = found
            .iter()
            .filter(|invocation| invocation.command_id() == Some(command_id));
        Ok(ours
            .filter_map(|invocation| {
                let id = InstanceId::read(invocation.instance_id()?)?;
                Some((id, of_invocation(invocation)))
            })
            .collect())
    }
}

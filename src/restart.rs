//! Sends the restart document to a fleet and waits until every instance is accounted for.
//!
//! The rate control is ours, over the whole fleet of a group: a window of restarts in flight, and a brake
//! that stops sending after too many failures. The set to account for is ours too: Systems Manager's list
//! of invocations starts empty and fills late.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use aws_sdk_ssm::types::CommandInvocation;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::aws::{CallError, Clients, RegionClients, pages};
use crate::clock::Clock;
use crate::deployments::Group;
use crate::outcome::{Kind, Outcome, Problem, Progress, of_invocation};
use crate::settings::Settings;

/// Instance ids in one `SendCommand` (`API_SendCommand`).
const IDS_PER_COMMAND: usize = 50;
/// Invocations on one page of `ListCommandInvocations`.
const INVOCATIONS_PAGE: i32 = 50;
/// Characters of a command's comment (`API_SendCommand`).
const MAX_COMMENT: usize = 100;
/// Seconds within which Systems Manager must deliver the command (`TimeoutSeconds`).
const DELIVERY_SECONDS: i32 = 120;
/// Beyond the busy wait, the longest that the document may run before Systems Manager kills it, in seconds.
/// The document's own deadline lies 60 s earlier, so that it still prints its line.
const EXECUTION_SECONDS: u32 = 360;
/// A command that has not started this long after sending no longer holds its slot. Systems Manager itself
/// says `DeliveryTimedOut` only after the execution timeout on top.
const UNDELIVERED_AFTER: Duration = Duration::from_secs(150);
/// The shortest pause between two looks at the open commands.
const TICK: Duration = Duration::from_secs(5);
/// Open commands that are looked at per second of pause: with many, the pause grows.
const COMMANDS_PER_SECOND: usize = 4;
/// Nothing is sent later than the busy wait and this many seconds before the end.
const LAST_SEND_SECONDS: u64 = 120;

/// What became of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// One outcome for each instance that was to be restarted.
    pub outcomes: BTreeMap<String, Outcome>,
    /// A call that failed for good on the way.
    pub problem: Option<Problem>,
}

/// Restarts the agents of these instances. Returns when each has an outcome, at the latest at the clock's
/// `until`; never fails: what AWS refuses is in the results.
pub async fn restart(
    clients: &Clients,
    settings: &Settings,
    clock: &Clock,
    group: &Group,
    ids: &[String],
) -> Results {
    let mut run = Run {
        client: clients.in_region(&group.name.region),
        settings,
        clock,
        group,
        window: settings.max_concurrency.of(ids.len()).max(1),
        errors_allowed: settings.max_errors.of(ids.len()),
        errors: 0,
        queue: ids.iter().cloned().collect(),
        open: BTreeMap::new(),
        results: Results::default(),
    };
    while run.advance().await {}
    run.close()
}

struct Run<'a> {
    client: RegionClients,
    settings: &'a Settings,
    clock: &'a Clock,
    group: &'a Group,
    /// Restarts that may be in flight at the same time.
    window: usize,
    /// Failures after which one more stops the sending.
    errors_allowed: usize,
    errors: usize,
    /// Not sent yet, ascending.
    queue: VecDeque<String>,
    /// Sent, without an outcome.
    open: BTreeMap<String, Open>,
    results: Results,
}

/// An instance that a command was sent to.
struct Open {
    command_id: String,
    sent: Instant,
    /// Not started in time: it no longer holds a slot, but is taken back in if it starts after all.
    late: bool,
    /// The last status, when it is one that this function does not know.
    unknown_status: Option<String>,
}

impl Run<'_> {
    /// One round: send what fits, wait a tick, look. Whether there is anything left to do.
    async fn advance(&mut self) -> bool {
        self.send_what_fits().await;
        if self.queue.is_empty() && self.in_flight() == 0 {
            return false;
        }
        let until = self.clock.until();
        let commands = self.open_commands().len();
        let tick = TICK.max(Duration::from_secs((commands / COMMANDS_PER_SECOND) as u64));
        sleep_until((Instant::now() + tick).min(until)).await;
        let looked = timeout_at(until, self.look()).await;
        match looked {
            Ok(Ok(())) => Instant::now() < until,
            Ok(Err(error)) => {
                self.note_problem(Problem::of_call("poll", &error));
                false
            }
            Err(_) => false,
        }
    }

    fn in_flight(&self) -> usize {
        self.open.values().filter(|open| !open.late).count()
    }

    fn open_commands(&self) -> BTreeSet<String> {
        self.open
            .values()
            .map(|open| open.command_id.clone())
            .collect()
    }

    /// Refills the window when a quarter of it is free, or nothing runs: fewer and fuller commands than one
    /// for each slot that falls free.
    async fn send_what_fits(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        if self.errors > self.errors_allowed {
            self.hold_back_queue(&format!(
                "not sent: failed restarts: {}, MAX_ERRORS allows {}",
                self.errors, self.errors_allowed
            ));
            return;
        }
        let in_flight = self.in_flight();
        let free = self.window.saturating_sub(in_flight);
        if in_flight > 0 && free * 4 < self.window {
            return;
        }
        let count = free.min(self.queue.len());
        let ids: Vec<String> = self.queue.drain(..count).collect();
        let mut chunks: VecDeque<Vec<String>> = ids
            .chunks(IDS_PER_COMMAND)
            .map(<[String]>::to_vec)
            .collect();
        while let Some(chunk) = chunks.pop_front() {
            if let Err(stop) = self.send_chunk(chunk, &mut chunks).await {
                for id in chunks.into_iter().flatten() {
                    self.hold_back(id, &stop);
                }
                self.hold_back_queue(&stop);
                return;
            }
        }
    }

    /// Sends one command. An error says why nothing more may be sent.
    ///
    /// The lifecycle states are as old as the fleet's reading: asking again for chunks that had to wait
    /// belongs here. Until then a host that is leaving by now is refused by the service, or reported.
    async fn send_chunk(
        &mut self,
        ids: Vec<String>,
        chunks: &mut VecDeque<Vec<String>>,
    ) -> Result<(), String> {
        let reserve = u64::from(self.settings.busy_wait_seconds) + LAST_SEND_SECONDS;
        if Instant::now() + Duration::from_secs(reserve) > self.clock.until() {
            let reason = "not sent: no time left before the function's end";
            for id in ids {
                self.hold_back(id, reason);
            }
            return Err(reason.to_owned());
        }
        match self.send(&ids).await {
            Ok(command_id) => {
                tracing::info!(
                    command.id = %command_id,
                    instances = ids.len(),
                    "sent restart command {command_id} to {} instances",
                    ids.len()
                );
                let sent = Instant::now();
                for id in ids {
                    let command_id = command_id.clone();
                    let open = Open {
                        command_id,
                        sent,
                        late: false,
                        unknown_status: None,
                    };
                    self.open.insert(id, open);
                }
                Ok(())
            }
            // One id that the service refuses spoils its whole command: halve until it stands alone.
            // Reading lifecycle and inventory again before that, and the same for a denial under a tag
            // condition, belongs here; today a denial is a problem of the group.
            Err(error) if error.code == "InvalidInstanceId" => {
                if let [id] = &ids[..] {
                    let detail = format!("Systems Manager refuses it: {}", error.message);
                    self.settle(id.clone(), Outcome::of(Kind::Unreachable, detail));
                } else {
                    let (left, right) = ids.split_at(ids.len() / 2);
                    chunks.push_front(right.to_vec());
                    chunks.push_front(left.to_vec());
                }
                Ok(())
            }
            Err(error) => {
                let reason = format!("not sent: {}: {}", error.code, error.message);
                let detail = if error.may_have_arrived() {
                    format!(
                        "sending got no answer ({}): the command may have arrived all the same",
                        error.message
                    )
                } else {
                    reason.clone()
                };
                for id in ids {
                    self.hold_back(id, &detail);
                }
                self.note_problem(Problem::of_call("send", &error));
                Err(reason)
            }
        }
    }

    async fn send(&self, ids: &[String]) -> Result<String, CallError> {
        const OPERATION: &str = "ssm:SendCommand";
        let document = &self.settings.document_name;
        let comment = format!(
            "codedeploy-agent-restarter: {}/{}",
            self.group.name.application, self.group.name.deployment_group
        );
        self.client.ssm_turn().await;
        let mut call = self
            .client
            .ssm
            .send_command()
            .document_name(document)
            .document_version("$LATEST")
            .set_instance_ids(Some(ids.to_vec()))
            .timeout_seconds(DELIVERY_SECONDS)
            .max_concurrency("100%")
            .max_errors("100%")
            .comment(comment.chars().take(MAX_COMMENT).collect::<String>());
        for (name, value) in self.parameters() {
            call = call.parameters(name, vec![value.to_string()]);
        }
        let answer = timeout_at(self.clock.until(), call.send())
            .await
            .map_err(|_| CallError::out_of_time(OPERATION, document))?
            .map_err(|error| CallError::new(OPERATION, document, &error))?;
        answer
            .command
            .and_then(|command| command.command_id)
            .ok_or_else(|| CallError::incomplete(OPERATION, document, "command id"))
    }

    /// The document's parameters. `sentAt` is read at the last moment, and rounded down: an agent's age is
    /// compared with the time between the two.
    fn parameters(&self) -> [(&'static str, u64); 5] {
        let busy_wait = self.settings.busy_wait_seconds;
        [
            ("triggeredAt", self.group.triggered_at.0),
            ("sentAt", self.clock.now().0),
            ("busyWaitSeconds", u64::from(busy_wait)),
            ("minMemoryMiB", u64::from(self.settings.min_memory_mib)),
            (
                "executionTimeoutSeconds",
                u64::from(busy_wait + EXECUTION_SECONDS),
            ),
        ]
    }

    /// Looks at every open command once.
    async fn look(&mut self) -> Result<(), CallError> {
        let commands = self.open_commands();
        let client = &self.client;
        let answers = join_all(commands.iter().map(|id| list_invocations(client, id))).await;
        // What one command's answer says counts, though another's is missing.
        let found: Vec<&CommandInvocation> = answers.iter().flatten().flatten().collect();
        let mut running = BTreeMap::new();
        for invocation in found {
            let Some(id) = invocation.instance_id() else {
                continue;
            };
            // Ours is the instance together with its command: the list may hold more.
            let command = self.open.get(id).map(|open| open.command_id.as_str());
            if command.is_none() || command != invocation.command_id() {
                continue;
            }
            match of_invocation(invocation) {
                Progress::Waiting => {}
                Progress::Running(unknown_status) => {
                    running.insert(id, unknown_status);
                }
                Progress::Done(outcome) => {
                    self.open.remove(id);
                    self.settle(id.to_owned(), outcome);
                }
            }
        }
        let now = Instant::now();
        let answered = commands
            .iter()
            .zip(&answers)
            .filter(|(_, answer)| answer.is_ok());
        let answered: BTreeSet<&String> = answered.map(|(command, _)| command).collect();
        for (id, open) in &mut self.open {
            // Of a command whose answer is missing nothing new is known.
            if !answered.contains(&open.command_id) {
                continue;
            }
            let started = running.remove(id.as_str());
            open.late = started.is_none() && now.duration_since(open.sent) >= UNDELIVERED_AFTER;
            open.unknown_status = started.flatten();
        }
        match answers.into_iter().find_map(Result::err) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn settle(&mut self, id: String, outcome: Outcome) {
        self.errors += usize::from(outcome.counts_as_error());
        tracing::info!(
            instance.id = %id,
            outcome = outcome.kind.word(),
            detail = %outcome.detail,
            "{id}: {}",
            outcome.kind
        );
        self.results.outcomes.insert(id, outcome);
    }

    fn hold_back(&mut self, id: String, reason: &str) {
        self.settle(id, Outcome::of(Kind::HeldBack, reason));
    }

    fn hold_back_queue(&mut self, reason: &str) {
        for id in std::mem::take(&mut self.queue) {
            self.hold_back(id, reason);
        }
    }

    fn note_problem(&mut self, problem: Problem) {
        let earlier = self.results.problem.take();
        self.results.problem = Some(match earlier {
            Some(first) => first.and(Some(problem)),
            None => problem,
        });
    }

    /// The end: what is still open gets the outcome that is true of it.
    fn close(mut self) -> Results {
        for (id, open) in std::mem::take(&mut self.open) {
            let outcome = if open.late {
                Outcome::of(
                    Kind::Undelivered,
                    format!(
                        "not delivered {} s after it was sent",
                        UNDELIVERED_AFTER.as_secs()
                    ),
                )
            } else {
                Outcome::of(
                    Kind::Unfinished,
                    match &open.unknown_status {
                        Some(status) => {
                            format!("sent, no result yet; Systems Manager says {status}")
                        }
                        None => "sent, no result yet".to_owned(),
                    },
                )
            };
            self.settle(id, outcome.of_command(&open.command_id));
        }
        let reason = match &self.results.problem {
            Some(problem) => format!("not sent: {}", problem.message),
            None => "not sent: no time left before the function's end".to_owned(),
        };
        self.hold_back_queue(&reason);
        self.results
    }
}

async fn list_invocations(
    client: &RegionClients,
    command_id: &str,
) -> Result<Vec<CommandInvocation>, CallError> {
    const OPERATION: &str = "ssm:ListCommandInvocations";
    pages(OPERATION, |token| async move {
        client.ssm_turn().await;
        let page = client
            .ssm
            .list_command_invocations()
            .command_id(command_id)
            .details(true)
            .max_results(INVOCATIONS_PAGE)
            .set_next_token(token)
            .send()
            .await
            .map_err(|error| CallError::new(OPERATION, format!("command {command_id}"), &error))?;
        Ok((
            page.command_invocations.unwrap_or_default(),
            page.next_token,
        ))
    })
    .await
}

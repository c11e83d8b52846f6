//! Sends the restart document to a fleet and waits until every instance is accounted for.
//!
//! The rate control is ours, over the whole fleet of a group: a window of restarts in flight, and a brake
//! that stops sending after too many failures. The set to account for is ours too: Systems Manager's list
//! of invocations starts empty and fills late.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use aws_sdk_ssm::types::CommandInvocation;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::aws::{CallError, Clients, RegionClients, pages};
use crate::clock::Clock;
use crate::fleet::{self, Decision, Fleet};
use crate::outcome::{Cause, Kind, Outcome, Problem, Progress, of_invocation};
use crate::settings::Settings;

const POLL: &str = "ssm:ListCommandInvocations";
/// Instance ids in one `SendCommand` (`API_SendCommand`).
const IDS_PER_COMMAND: usize = 50;
/// Invocations on one page of `ListCommandInvocations`.
const INVOCATIONS_PAGE: i32 = 50;
/// Characters of a command's comment (`API_SendCommand`).
const MAX_COMMENT: usize = 100;
/// Seconds within which Systems Manager must deliver the command (`TimeoutSeconds`).
const DELIVERY_SECONDS: i32 = 120;
/// Beyond the busy wait, the longest that the document may run before Systems Manager kills it, in seconds.
const EXECUTION_SECONDS: u32 = 360;
/// An instance that has waited this long for the command no longer holds its slot. Systems Manager itself says
/// `DeliveryTimedOut` only after the execution timeout on top.
const UNDELIVERED_AFTER: Duration = Duration::from_secs(150);
/// The shortest pause between two looks at the open commands.
const TICK: Duration = Duration::from_secs(5);
/// Beyond the pace of its calls, a look at the open commands may take this long: whoever has not answered by
/// then is asked again at the next look, and does not keep the others' results.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// Open commands that are looked at per second of pause: with many, the pause grows.
const COMMANDS_PER_SECOND: usize = 4;
/// The document's own deadline, also beyond the busy wait: it lies earlier, so that it still prints its line.
const DOCUMENT_SECONDS: u32 = EXECUTION_SECONDS - 60;
/// Nothing is sent later than the busy wait and this many seconds before the end.
const LAST_SEND_SECONDS: u64 = 120;

/// A chunk whose lifecycle states were read longer ago is asked for again before it is sent.
const LIFECYCLE_AGE: Duration = Duration::from_secs(60);
/// Waiting so long for one's turn to call is longer than the pace alone explains, even with many groups.
const LONG_TURN: Duration = Duration::from_secs(5);
/// So many denials before anything is accepted mean that the function may not send at all.
const MAX_DENIALS: usize = 50;

/// What became of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// One outcome for each instance that was to be restarted.
    pub outcomes: BTreeMap<String, Outcome>,
    /// A call that failed for good on the way.
    pub problem: Option<Problem>,
}

/// Restarts the agents of the fleet's instances that are to be restarted. Returns when each has an outcome, at
/// the latest at the clock's `until`; never fails: what AWS refuses is in the results.
pub async fn restart(
    clients: &Clients,
    settings: &Settings,
    clock: &Clock,
    fleet: &Fleet,
) -> Results {
    let ids = fleet.to_restart();
    let mut run = Run {
        client: clients.in_region(&fleet.group.name.region),
        settings,
        clock,
        fleet,
        window: settings.max_concurrency.of(ids.len()).max(1),
        errors_allowed: settings.max_errors.of(ids.len()),
        errors: 0,
        accepted: false,
        denials: 0,
        denied: Vec::new(),
        queue: ids.into(),
        offline: fleet.offline(),
        open: BTreeMap::new(),
        elsewhere: Vec::new(),
        commands: BTreeMap::new(),
        unanswered: None,
        stopped: false,
        results: Results::default(),
    };
    while run.advance().await {}
    run.close()
}

struct Run<'a> {
    client: RegionClients,
    settings: &'a Settings,
    clock: &'a Clock,
    fleet: &'a Fleet,
    /// Restarts that may be in flight at the same time.
    window: usize,
    /// Failures after which one more stops the sending.
    errors_allowed: usize,
    errors: usize,
    /// Whether Systems Manager has accepted any command of this run.
    accepted: bool,
    /// Commands that it denied so far.
    denials: usize,
    /// Single instances that it denied, with its message: unreachable if it accepts others, else a problem.
    denied: Vec<(String, CallError)>,
    /// Not sent yet, ascending.
    queue: VecDeque<String>,
    /// Offline, with the reason; asked for once when nothing else is open, or at the last moment to send.
    offline: Vec<(String, String)>,
    /// Sent to, and without an outcome.
    open: BTreeMap<String, Open>,
    /// Until when restarts that another command began may run: they hold slots too. When the reply of
    /// `SendCommand` gets lost, that other command is an earlier attempt of the SDK's.
    elsewhere: Vec<Instant>,
    /// The commands sent so far, by id.
    commands: BTreeMap<String, CommandProgress>,
    /// A command whose last look got no answer in time.
    unanswered: Option<String>,
    /// A call said that nothing more may be sent.
    stopped: bool,
    results: Results,
}

/// Instances that one command is to go to.
struct Chunk {
    ids: Vec<String>,
    /// When the lifecycle states of these were read.
    read_at: Instant,
    /// Lifecycle and inventory were read again after a refusal.
    decided_again: bool,
}

impl Chunk {
    /// Its lifecycle states are not to be relied on any more.
    fn is_old(&self) -> bool {
        self.read_at.elapsed() > LIFECYCLE_AGE
    }

    fn halves(self) -> [Self; 2] {
        let (left, right) = self.ids.split_at(self.ids.len() / 2);
        [left, right].map(|ids| Self {
            ids: ids.to_vec(),
            read_at: self.read_at,
            decided_again: self.decided_again,
        })
    }
}

/// An instance that a command was sent to.
struct Open {
    command_id: String,
    /// Not started in time: it no longer holds a slot, but is taken back in if it starts after all.
    late: bool,
    /// The last status, when it is one that this function does not know.
    unknown_status: Option<String>,
}

/// A command, as its invocations show it.
///
/// Explicit ids are believed to go out at once; then the wait for those that do not start counts from the
/// sending.
/// Should Systems Manager hand them out in waves of 1, 2, 4, … as it documents for targets, each wave when the
/// one before has ended, then nobody is late as long as the command moves.
struct CommandProgress {
    at: Instant,
    /// When something of it was last seen to run or to end.
    moved: Instant,
    /// The instances that have begun.
    begun: BTreeSet<String>,
    /// How many of these have ended.
    ended: usize,
    /// More have begun than waves would allow.
    at_once: bool,
}

impl CommandProgress {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            at: now,
            moved: now,
            begun: BTreeSet::new(),
            ended: 0,
            at_once: false,
        }
    }

    fn note_run(&mut self, id: &str) {
        self.begun.insert(id.to_owned());
        self.moved = Instant::now();
    }

    fn note_end(&mut self, id: &str) {
        self.begun.insert(id.to_owned());
        self.ended += 1;
        self.moved = Instant::now();
    }

    /// After a whole look: in waves one begins, two after its end, four after theirs.
    fn note_waves(&mut self) {
        self.at_once |= self.begun.len() > 2 * self.ended + 1;
    }

    fn is_late(&self) -> bool {
        let since = if self.at_once { self.at } else { self.moved };
        since.elapsed() >= UNDELIVERED_AFTER
    }
}

impl Run<'_> {
    /// One round: send what fits, wait a tick, look. Whether there is anything left to do.
    async fn advance(&mut self) -> bool {
        self.send_what_fits().await;
        let until = self.clock.until();
        let commands = self.open_commands().len();
        let tick = TICK.max(Duration::from_secs((commands / COMMANDS_PER_SECOND) as u64));
        if self.queue.is_empty() {
            let done = self.in_flight() == 0;
            // What is open may stay so until the end: then this is the last moment to send to those that are
            // back.
            let last_chance = !self.offline.is_empty() && self.too_late_in(2 * tick);
            if (done || last_chance) && self.ask_again().await {
                return true;
            }
            if done {
                return false;
            }
        }
        sleep_until((Instant::now() + tick).min(until)).await;
        match self.look(tick).await {
            Ok(()) => Instant::now() < until,
            Err(error) => {
                self.note_problem(Problem::of_call("poll", &error));
                false
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.open.values().filter(|open| !open.late).count()
    }

    fn restarting_elsewhere(&self) -> usize {
        let now = Instant::now();
        self.elsewhere.iter().filter(|until| **until > now).count()
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
            let reason = format!(
                "not sent: failed restarts: {}, MAX_ERRORS allows {}",
                self.errors, self.errors_allowed
            );
            self.hold_back_queue(&held_back(Cause::TooManyErrors, reason));
            return;
        }
        let in_flight = self.in_flight() + self.restarting_elsewhere();
        let free = self.window.saturating_sub(in_flight);
        if in_flight > 0 && free * 4 < self.window {
            return;
        }
        let count = free.min(self.queue.len());
        let ids: Vec<String> = self.queue.drain(..count).collect();
        let chunks = ids.chunks(IDS_PER_COMMAND).map(|ids| Chunk {
            ids: ids.to_vec(),
            read_at: self.fleet.read_at,
            decided_again: false,
        });
        let mut chunks: VecDeque<Chunk> = chunks.collect();
        while let Some(chunk) = chunks.pop_front() {
            if let Err(stop) = self.send_chunk(chunk, &mut chunks).await {
                self.stopped = true;
                self.hold_back(chunks.into_iter().flat_map(|chunk| chunk.ids), &stop);
                self.hold_back_queue(&stop);
                return;
            }
        }
    }

    /// Sends one command, or puts what is left of the chunk back. An error means that nothing more may be
    /// sent: it is the outcome of everybody who has not been sent to.
    async fn send_chunk(
        &mut self,
        mut chunk: Chunk,
        chunks: &mut VecDeque<Chunk>,
    ) -> Result<(), Outcome> {
        let turn = loop {
            chunk = self.refresh(chunk).await?;
            if chunk.ids.is_empty() {
                return Ok(());
            }
            let Some(left) = self.time_to_send() else {
                return self.stop(chunk.ids, no_time());
            };
            let asked_at = Instant::now();
            match timeout(left, self.client.ssm_pace.turn()).await {
                // Where other calls hang, the wait may be long: what was read before it is read again.
                Ok(_) if asked_at.elapsed() > LONG_TURN && chunk.is_old() => {}
                Ok(turn) => break turn,
                Err(_) => return self.stop(chunk.ids, no_time()),
            }
        };
        let sent = self.send(&chunk.ids).await;
        // What follows a refusal takes turns of its own.
        drop(turn);
        match sent {
            Ok(command_id) => {
                self.accepted = true;
                self.note_sent(chunk.ids, &command_id);
                Ok(())
            }
            // One id that the service refuses spoils its whole command. It may have gone since the fleet was
            // read; if not, the chunk is halved until the culprit stands alone.
            Err(error) if error.code == "InvalidInstanceId" => {
                self.after_refusal(chunk, error, chunks).await
            }
            // Under a condition on tags, one instance without the tag denies its whole command.
            Err(error) if error.is_denied() => {
                self.denials += 1;
                if !self.accepted && self.denials >= MAX_DENIALS {
                    self.note_problem(Problem::of_call("send", &error));
                    return self.stop(chunk.ids, not_sent(&error.message));
                }
                self.after_refusal(chunk, error, chunks).await
            }
            Err(error) => {
                let stop = not_sent(&format!("{}: {}", error.code, error.message));
                let unclear = format!(
                    "sending got no answer ({}): the command may have arrived all the same",
                    error.message
                );
                let outcome = match error.may_have_arrived() {
                    true => held_back(Cause::FailedCall, unclear),
                    false => stop.clone(),
                };
                self.hold_back(chunk.ids, &outcome);
                self.note_problem(Problem::of_call("send", &error));
                Err(stop)
            }
        }
    }

    /// Whether it will be too late to send when this much time has passed.
    fn too_late_in(&self, time: Duration) -> bool {
        self.time_to_send().is_none_or(|left| left < time)
    }

    /// How long commands may still be sent; none when it is too late.
    fn time_to_send(&self) -> Option<Duration> {
        let reserve = u64::from(self.settings.busy_wait_seconds) + LAST_SEND_SECONDS;
        let soonest_end = Instant::now() + Duration::from_secs(reserve);
        self.clock.until().checked_duration_since(soonest_end)
    }

    fn stop<T>(&mut self, ids: Vec<String>, outcome: Outcome) -> Result<T, Outcome> {
        self.hold_back(ids, &outcome);
        Err(outcome)
    }

    /// The chunk without those that began to leave since their lifecycle was read, if that is a while ago.
    async fn refresh(&mut self, chunk: Chunk) -> Result<Chunk, Outcome> {
        match chunk.is_old() {
            true => self.decide_again(chunk, false).await,
            false => Ok(chunk),
        }
    }

    /// The chunk without those that a second look leaves alone; these get their outcome.
    async fn decide_again(&mut self, chunk: Chunk, inventory: bool) -> Result<Chunk, Outcome> {
        let Some(left) = self.time_to_send() else {
            return self.stop(chunk.ids, no_time());
        };
        let circumstances = self.fleet.circumstances;
        let read_at = Instant::now();
        let again = fleet::decide_again(&self.client, &chunk.ids, circumstances, inventory);
        // An answer that comes too late to send is of no use, and nobody looks at the commands meanwhile.
        let decisions = match timeout(left, again).await {
            Err(_) => return self.stop(chunk.ids, no_time()),
            Ok(Ok(decisions)) => decisions,
            Ok(Err(error)) => {
                self.note_problem(Problem::of_call("send", &error));
                let outcome = not_sent(&format!("{}: {}", error.code, error.message));
                return self.stop(chunk.ids, outcome);
            }
        };
        let mut ids = Vec::new();
        for (id, decision) in decisions {
            match decision {
                Decision::Restart(_) | Decision::Elsewhere(_) => ids.push(id),
                Decision::AskAgain(reason) => self.offline.push((id, reason)),
                Decision::Leave(kind, reason) => self.settle(id, Outcome::of(kind, reason)),
            }
        }
        Ok(Chunk {
            ids,
            read_at,
            decided_again: chunk.decided_again || inventory,
        })
    }

    /// A chunk that was refused: the first time its instances are read again; if none has left, it is halved.
    async fn after_refusal(
        &mut self,
        chunk: Chunk,
        error: CallError,
        chunks: &mut VecDeque<Chunk>,
    ) -> Result<(), Outcome> {
        if chunk.decided_again {
            self.split(chunk, error, chunks);
            return Ok(());
        }
        let before = chunk.ids.len();
        let left = self.decide_again(chunk, true).await?;
        if left.ids.len() < before {
            chunks.push_front(left);
        } else {
            self.split(left, error, chunks);
        }
        Ok(())
    }

    /// Halves a chunk that was refused; a single instance is the culprit.
    fn split(&mut self, chunk: Chunk, error: CallError, chunks: &mut VecDeque<Chunk>) {
        if let [id] = &chunk.ids[..] {
            let id = id.clone();
            if error.is_denied() {
                self.denied.push((id, error));
            } else {
                self.settle(id, refused(&error));
            }
            return;
        }
        let [left, right] = chunk.halves();
        chunks.push_front(right);
        chunks.push_front(left);
    }

    fn note_sent(&mut self, ids: Vec<String>, command_id: &str) {
        tracing::info!(
            command.id = %command_id,
            instances = ids.len(),
            "sent restart command {command_id} to {} instances",
            ids.len()
        );
        self.commands
            .insert(command_id.to_owned(), CommandProgress::new());
        for id in ids {
            let open = Open {
                command_id: command_id.to_owned(),
                late: false,
                unknown_status: None,
            };
            self.open.insert(id, open);
        }
    }

    /// Those that were offline get a second chance, once. Whether any is back.
    async fn ask_again(&mut self) -> bool {
        let offline = std::mem::take(&mut self.offline);
        let Some(left) = self.time_to_send().filter(|_| !self.stopped) else {
            self.give_up(offline);
            return false;
        };
        if offline.is_empty() {
            return false;
        }
        let ids: Vec<String> = offline.iter().map(|(id, _)| id.clone()).collect();
        let circumstances = self.fleet.circumstances;
        let again = fleet::decide_again(&self.client, &ids, circumstances, true);
        match timeout(left, again).await {
            Ok(Ok(decisions)) => {
                for (id, decision) in decisions {
                    match decision {
                        Decision::Restart(_) | Decision::Elsewhere(_) => self.queue.push_back(id),
                        Decision::AskAgain(reason) => {
                            self.settle(id, Outcome::of(Kind::Unreachable, reason));
                        }
                        Decision::Leave(kind, reason) => {
                            self.settle(id, Outcome::of(kind, reason));
                        }
                    }
                }
            }
            // Without an answer the first one stands.
            Ok(Err(_)) | Err(_) => self.give_up(offline),
        }
        !self.queue.is_empty()
    }

    fn give_up(&mut self, offline: Vec<(String, String)>) {
        for (id, reason) in offline {
            self.settle(id, Outcome::of(Kind::Unreachable, reason));
        }
    }

    async fn send(&self, ids: &[String]) -> Result<String, CallError> {
        const OPERATION: &str = "ssm:SendCommand";
        let document = &self.settings.document_name;
        let comment = format!(
            "codedeploy-agent-restarter: {}/{}",
            self.fleet.group.name.application, self.fleet.group.name.deployment_group
        );
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
            ("triggeredAt", self.fleet.group.triggered_at.0),
            ("sentAt", self.clock.now().0),
            ("busyWaitSeconds", u64::from(busy_wait)),
            ("minMemoryMiB", u64::from(self.settings.min_memory_mib)),
            (
                "executionTimeoutSeconds",
                u64::from(busy_wait + EXECUTION_SECONDS),
            ),
        ]
    }

    /// Looks at every open command once. `pace` is what the calls need for themselves.
    async fn look(&mut self, pace: Duration) -> Result<(), CallError> {
        let commands = self.open_commands();
        let client = &self.client;
        let now = Instant::now();
        let by = (now + pace + LOOK_LIMIT).min(self.clock.until());
        let looks = commands.iter().map(async |id| {
            let invocations = timeout_at(by, list_invocations(client, id)).await;
            invocations.ok().transpose()
        });
        let answers = join_all(looks).await;
        let cut = commands
            .iter()
            .zip(&answers)
            .find(|(_, answer)| matches!(answer, Ok(None)));
        // A look that begins just before the end has no chance, and says nothing.
        if by.duration_since(now) >= pace {
            self.unanswered = cut.map(|(command, _)| command.clone());
        }
        // What one command's answer says counts, though another's is missing.
        let found: Vec<&CommandInvocation> = answers.iter().flatten().flatten().flatten().collect();
        let mut running = BTreeMap::new();
        for invocation in found {
            let Some(id) = invocation.instance_id() else {
                continue;
            };
            // Ours is the instance together with its command: the list may hold more.
            let command = self.open.get(id).map(|open| open.command_id.as_str());
            let Some(command) = command.filter(|command| invocation.command_id() == Some(command))
            else {
                continue;
            };
            match of_invocation(invocation) {
                Progress::Waiting => {}
                Progress::Running(unknown_status) => {
                    if let Some(progress) = self.commands.get_mut(command) {
                        progress.note_run(id);
                    }
                    running.insert(id, unknown_status);
                }
                Progress::Done(outcome) => {
                    if let Some(progress) = self.commands.get_mut(command) {
                        progress.note_end(id);
                    }
                    self.open.remove(id);
                    if outcome.restarts_elsewhere() {
                        let longest = self.settings.busy_wait_seconds + DOCUMENT_SECONDS;
                        self.elsewhere
                            .push(Instant::now() + Duration::from_secs(longest.into()));
                    }
                    self.settle(id.to_owned(), outcome);
                }
            }
        }
        let answered = commands
            .iter()
            .zip(&answers)
            .filter(|(_, answer)| matches!(answer, Ok(Some(_))));
        let answered: BTreeSet<&String> = answered.map(|(command, _)| command).collect();
        for progress in self.commands.values_mut() {
            progress.note_waves();
        }
        for (id, open) in &mut self.open {
            // Of a command whose answer is missing nothing new is known.
            if !answered.contains(&open.command_id) {
                continue;
            }
            let started = running.remove(id.as_str());
            let progress = self.commands.get(&open.command_id);
            open.late = started.is_none() && progress.is_some_and(CommandProgress::is_late);
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

    fn hold_back(&mut self, ids: impl IntoIterator<Item = String>, outcome: &Outcome) {
        for id in ids {
            self.settle(id, outcome.clone());
        }
    }

    fn hold_back_queue(&mut self, outcome: &Outcome) {
        let queue = std::mem::take(&mut self.queue);
        self.hold_back(queue, outcome);
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
        let denied = std::mem::take(&mut self.denied);
        if let (false, Some((_, error))) = (self.accepted, denied.first()) {
            self.note_problem(Problem::of_call("send", error));
        }
        for (id, error) in denied {
            match self.accepted {
                true => self.settle(id, refused(&error)),
                false => self.settle(id, not_sent(&error.message)),
            }
        }
        let offline = std::mem::take(&mut self.offline);
        self.give_up(offline);
        let unanswered = self.unanswered.take().filter(|_| !self.open.is_empty());
        if let Some(command) = unanswered {
            let error = CallError::out_of_time(POLL, format!("command {command}"));
            self.note_problem(Problem::of_call("poll", &error));
        }
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
        let outcome = match &self.results.problem {
            Some(problem) => not_sent(&problem.message),
            None => no_time(),
        };
        self.hold_back_queue(&outcome);
        self.results
    }
}

fn held_back(cause: Cause, detail: impl Into<String>) -> Outcome {
    Outcome::of(Kind::HeldBack, detail).because(cause)
}

/// Because a call failed.
fn not_sent(reason: &str) -> Outcome {
    held_back(Cause::FailedCall, format!("not sent: {reason}"))
}

fn no_time() -> Outcome {
    let detail = "not sent: no time left before the function's end";
    held_back(Cause::NoTime, detail)
}

/// An instance that Systems Manager names as the reason of a refusal, or that is left as the only one.
fn refused(error: &CallError) -> Outcome {
    let detail = format!(
        "Systems Manager refuses it: {}: {}",
        error.code, error.message
    );
    let outcome = Outcome::of(Kind::Unreachable, detail);
    match error.is_denied() {
        true => outcome.because(Cause::Denied),
        false => outcome,
    }
}

async fn list_invocations(
    client: &RegionClients,
    command_id: &str,
) -> Result<Vec<CommandInvocation>, CallError> {
    pages(POLL, |token| async move {
        let _turn = client.ssm_pace.turn().await;
        let page = client
            .ssm
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
    .await
}

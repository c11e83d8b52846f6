//! Which instances are restarted when: a window of restarts in flight, a brake after too many failures, and a last
//! moment to send. Pure: it is told what happened and says what to do next; [`restart`](crate::restart) does it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::decision::Decision;
use crate::flights::Flights;
use crate::freshness::Freshness;
use crate::ids::InstanceId;
use crate::outcome::{Cause, Outcome, Progress};
use crate::platform::Platform;
use crate::problem::{CallError, Problem, Problems, Step};

/// Instance ids in one `SendCommand`
/// (<https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_SendCommand.html>).
const IDS_PER_COMMAND: usize = 50;
/// The shortest pause between two looks at the open commands.
const TICK: Duration = Duration::from_secs(5);
/// Open commands that are looked at per second of pause: with many, the pause grows.
const COMMANDS_PER_SECOND: usize = 4;
/// Instances whose lifecycle states were read longer ago are asked for again before they are sent to.
const LIFECYCLE_AGE: Duration = Duration::from_secs(60);
/// So many denials before anything is accepted mean that the function may not send at all.
const MAX_DENIALS: usize = 50;

/// What the sending must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Restarts that may be in flight at the same time; at least one.
    pub at_once: usize,
    /// Failures after which one more stops the sending.
    pub failures: usize,
    /// Nothing is sent at or after this moment.
    pub last_send: Instant,
    /// Until when results are waited for.
    pub until: Instant,
}

/// What an earlier part of the same restart hands over; nothing when there was none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Restarts that have failed already.
    pub failures: usize,
    /// Instances that were sent to, each with its command.
    pub in_flight: BTreeMap<InstanceId, String>,
}

/// Those that are to be restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Since when their agents count as fresh: a command says one time to all of its instances.
    pub fresh: Freshness,
    /// To be sent to: one platform after the other, which makes the fewest commands.
    pub restart: BTreeSet<(Platform, InstanceId)>,
    /// Offline, with the reason: asked for once more when nothing else is open, or at the last moment.
    pub offline: BTreeMap<InstanceId, String>,
    /// When their lifecycle states were read.
    pub read_at: Instant,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send one command, of this platform's document, to these.
    Send(Platform, Vec<InstanceId>),
    /// Decide again about these.
    Ask(Vec<InstanceId>, Why),
    /// Wait until then, and look at the open commands.
    Wait(Instant),
    /// Nothing: everybody is accounted for, or the time is over.
    Done,
}

/// Why instances are decided about again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Their lifecycle states were read a while ago. They are all of this platform.
    Stale(Platform),
    /// Systems Manager refused a command to them: one of them may have gone.
    Refused,
    /// They were offline.
    Offline,
}

/// What became of those that were to be restarted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// One outcome for each.
    pub outcomes: BTreeMap<InstanceId, Outcome>,
    /// Calls that failed for good on the way.
    pub problems: Problems,
}

/// The state of one group's restart.
#[derive(Debug)]
pub struct Window {
    limits: Limits,
    failures: usize,
    /// Not sent yet.
    queue: BTreeSet<(Platform, InstanceId)>,
    fresh: Freshness,
    /// The next commands.
    chunks: VecDeque<Chunk>,
    offline: BTreeMap<InstanceId, String>,
    /// When the lifecycle states of the queue were read.
    read_at: Instant,
    /// Sent to, and without an outcome.
    flights: Flights,
    /// When the open commands were looked at, or the first of them was sent.
    looked_at: Instant,
    /// Whether Systems Manager has accepted any command.
    accepted: bool,
    /// Commands that it denied so far.
    denials: usize,
    /// Single instances that it denied: unreachable if it accepts others, else a problem.
    denied: Vec<(InstanceId, CallError)>,
    /// Commands whose last look got no answer, with the reason.
    unseen: BTreeMap<String, CallError>,
    /// A call said that nothing more may be sent.
    stopped: bool,
    results: Results,
}

/// Instances that one command is to go to.
#[derive(Clone, Debug)]
struct Chunk {
    platform: Platform,
    ids: Vec<InstanceId>,
    /// When the lifecycle states of these were read.
    read_at: Instant,
    /// Systems Manager refused it, and nobody has been asked about it since.
    refused: Option<CallError>,
    /// It was asked about after a refusal.
    decided_again: bool,
}

impl Window {
    /// The state before anything is sent.
    pub fn new(plan: Plan, limits: Limits, carried: Carried, now: Instant) -> Self {
        let mut flights = Flights::default();
        for (id, command_id) in carried.in_flight {
            flights.sent([id], &command_id, now);
        }
        Self {
            accepted: !flights.is_empty(),
            flights,
            looked_at: now,
            limits,
            failures: carried.failures,
            fresh: plan.fresh,
            queue: plan.restart,
            chunks: VecDeque::new(),
            offline: plan.offline,
            read_at: plan.read_at,
            denials: 0,
            denied: Vec::new(),
            unseen: BTreeMap::new(),
            stopped: false,
            results: Results::default(),
        }
    }

    /// What is to be done next. Asking changes nothing that was not due.
    pub fn next(&mut self, now: Instant) -> Next {
        if now >= self.limits.until {
            return Next::Done;
        }
        if self.failures > self.limits.failures {
            self.brake();
        }
        if self.chunks.is_empty() {
            self.refill();
        }
        if now >= self.limits.last_send {
            self.stop(&Outcome::no_time());
        }
        // A call may take minutes: what became of those before is known before the next is sent.
        let look_is_due = !self.flights.is_empty() && now - self.looked_at > self.tick();
        if let (Some(_), true) = (self.chunks.front(), look_is_due) {
            return Next::Wait(now);
        }
        if let Some(chunk) = self.chunks.front() {
            let ids = chunk.ids.clone();
            let stale = now - chunk.read_at > LIFECYCLE_AGE;
            return match &chunk.refused {
                Some(_) => Next::Ask(ids, Why::Refused),
                None if stale => Next::Ask(ids, Why::Stale(chunk.platform)),
                None => Next::Send(chunk.platform, ids),
            };
        }
        if self.queue.is_empty() {
            let done = self.flights.count() == 0;
            // What is open may stay so until the end: then this is the last moment to send to those that are back.
            let last_chance = now + 2 * self.tick() > self.limits.last_send;
            if self.stopped {
                self.give_up_offline();
            } else if !self.offline.is_empty() && (done || last_chance) {
                return Next::Ask(self.offline.keys().cloned().collect(), Why::Offline);
            }
            if done {
                return Next::Done;
            }
        }
        Next::Wait((now + self.tick()).min(self.limits.until))
    }

    /// The open commands have been looked at.
    pub fn looked(&mut self, now: Instant) {
        self.looked_at = now;
    }

    /// The commands that somebody's result is awaited of.
    pub fn open_commands(&self) -> BTreeSet<String> {
        self.flights.commands()
    }

    /// The pause between two looks at the open commands.
    pub fn tick(&self) -> Duration {
        TICK.max(Duration::from_secs(
            (self.open_commands().len() / COMMANDS_PER_SECOND) as u64,
        ))
    }

    /// The command of the last [`Next::Send`] was accepted under this id.
    pub fn sent(&mut self, command_id: &str, now: Instant) {
        self.accepted = true;
        if self.flights.is_empty() {
            self.looked_at = now;
        }
        let ids = self.chunks.pop_front().into_iter().flat_map(|c| c.ids);
        self.flights.sent(ids, command_id, now);
    }

    /// The command of the last [`Next::Send`] was not accepted.
    pub fn not_sent(&mut self, error: CallError) {
        let Some(mut chunk) = self.chunks.pop_front() else {
            return;
        };
        let denied = error.code.is_denied();
        self.denials += usize::from(denied);
        if denied && !self.accepted && self.denials >= MAX_DENIALS {
            self.note(Step::Send, &error);
            let outcome = Outcome::failed_call(&error.message);
            self.settle_all(chunk.ids, &outcome);
            self.stop(&outcome);
        } else if denied || error.code.refuses_an_id() {
            // One id that is refused spoils its whole command, as does one without the tag that the policy asks
            // for. It may have gone since the fleet was read; if not, the chunk is halved until it stands alone.
            match chunk.decided_again {
                true => self.halve(chunk, error),
                false => {
                    chunk.refused = Some(error);
                    self.chunks.push_front(chunk);
                }
            }
        } else if error.code.refuses_the_document() {
            self.note(Step::Send, &error);
            let platform = chunk.platform;
            self.chunks.push_front(chunk);
            self.no_document(
                platform,
                &format!("{}: {}", error.code.word(), error.message),
            );
        } else {
            self.note(Step::Send, &error);
            self.settle_all(chunk.ids, &Outcome::of_sending(&error));
            self.stop(&Outcome::not_sent(&error));
        }
    }

    /// Nothing can be sent to this platform; the other one goes on.
    pub fn no_document(&mut self, platform: Platform, reason: &str) {
        let outcome = Outcome::of(Cause::NoDocument, format!("not sent: {reason}"));
        self.settle_unsent(|of| of == platform, &outcome);
    }

    /// The answer to the last [`Next::Ask`], from lifecycle states that were read at that moment.
    pub fn decided(&mut self, why: Why, decisions: BTreeMap<InstanceId, Decision>, at: Instant) {
        let offline = match why {
            Why::Offline => std::mem::take(&mut self.offline),
            Why::Stale(_) | Why::Refused => BTreeMap::new(),
        };
        let platform = self.chunks.front().map(|chunk| chunk.platform);
        let mut left = Vec::new();
        for (id, decision) in decisions {
            match decision {
                Decision::Restart(of, _) if Some(of) == platform => left.push(id),
                // Back again; or another platform than it was.
                Decision::Restart(of, _) => _ = self.queue.insert((of, id)),
                // One more chance, once.
                Decision::AskAgain(reason) if !offline.contains_key(&id) => {
                    self.offline.insert(id, reason);
                }
                Decision::AskAgain(reason) => {
                    self.settle(id, Outcome::of(Cause::Unreachable, reason));
                }
                Decision::Leave(cause, reason) => self.settle(id, Outcome::of(cause, reason)),
            }
        }
        if why == Why::Offline {
            self.read_at = at;
            return;
        }
        let Some(chunk) = self.chunks.pop_front() else {
            return;
        };
        let all_stay = left.len() == chunk.ids.len();
        let again = Chunk {
            platform: chunk.platform,
            ids: left,
            read_at: at,
            refused: None,
            decided_again: chunk.decided_again || why == Why::Refused,
        };
        match chunk.refused {
            Some(error) if all_stay => self.halve(again, error),
            _ if again.ids.is_empty() => {}
            _ => self.chunks.push_front(again),
        }
    }

    /// The last [`Next::Ask`] got no answer: a failed call, or none when it took so long that it is too late to send.
    pub fn undecided(&mut self, why: Why, error: Option<CallError>) {
        match (why, error) {
            // Without an answer the first one stands.
            (Why::Offline, _) => self.give_up_offline(),
            (Why::Stale(_) | Why::Refused, None) => self.stop(&Outcome::no_time()),
            (Why::Stale(_) | Why::Refused, Some(error)) => {
                self.note(Step::Send, &error);
                self.stop(&Outcome::not_sent(&error));
            }
        }
    }

    /// What Systems Manager shows of a command.
    pub fn seen(
        &mut self,
        command_id: &str,
        invocations: Vec<(InstanceId, Progress)>,
        now: Instant,
    ) {
        self.unseen.remove(command_id);
        for (id, outcome) in self.flights.seen(command_id, invocations, now) {
            self.settle(id, outcome);
        }
    }

    /// A look at a command got no answer. It is looked at again, whatever the reason: credentials are renewed, a role
    /// is mended, and a command that was just sent is not known everywhere at once.
    pub fn not_seen(&mut self, command_id: &str, error: CallError) {
        if self
            .unseen
            .insert(command_id.to_owned(), error.clone())
            .is_none()
        {
            tracing::warn!(command.id = command_id, "asked again: {error}");
        }
    }

    /// The end: what is still open gets the outcome that is true of it.
    pub fn close(mut self) -> Results {
        let denied = std::mem::take(&mut self.denied);
        if let (false, Some((_, error))) = (self.accepted, denied.first()) {
            self.note(Step::Send, error);
        }
        for (id, error) in denied {
            match self.accepted {
                true => self.settle(id, Outcome::refused(&error)),
                false => self.settle(id, Outcome::failed_call(&error.message)),
            }
        }
        self.give_up_offline();
        // One of them stands for all.
        let open = self.open_commands();
        let mut unseen = std::mem::take(&mut self.unseen).into_iter();
        if let Some((_, error)) = unseen.find(|(id, _)| open.contains(id)) {
            self.note(Step::Poll, &error);
        }
        for (id, outcome) in self.flights.close() {
            self.settle(id, outcome);
        }
        let problem = self.results.problems.iter().next();
        let outcome = problem.map_or_else(Outcome::no_time, |problem| {
            Outcome::failed_call(&problem.message)
        });
        self.stop(&outcome);
        self.results
    }

    /// Takes the next commands out of the queue when a quarter of the window is free, or nothing runs: fewer and
    /// fuller commands than one for each slot that falls free.
    fn refill(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        let in_flight = self.flights.count();
        let free = self.limits.at_once.saturating_sub(in_flight);
        if in_flight > 0 && free * 4 < self.limits.at_once {
            return;
        }
        let count = free.min(self.queue.len());
        let mut next: Vec<_> = std::iter::from_fn(|| self.queue.pop_first())
            .take(count)
            .collect();
        let errand = |(platform, id): &(Platform, InstanceId)| (*platform, self.fresh.of(id));
        next.sort_by_key(|of| (errand(of), of.1.clone()));
        self.chunks = next
            .chunk_by(|one, other| errand(one) == errand(other))
            .flat_map(|of_one_errand| of_one_errand.chunks(IDS_PER_COMMAND))
            .filter_map(|chunk| {
                Some(Chunk {
                    platform: chunk.first()?.0,
                    ids: chunk.iter().map(|(_, id)| id.clone()).collect(),
                    read_at: self.read_at,
                    refused: None,
                    decided_again: false,
                })
            })
            .collect();
    }

    /// More restarts have failed than may: nobody who has not been sent to is.
    fn brake(&mut self) {
        let reason = format!(
            "not sent: failed restarts: {}, MAX_ERRORS allows {}",
            self.failures, self.limits.failures
        );
        let outcome = Outcome::of(Cause::TooManyErrors, reason);
        self.settle_unsent(|_| true, &outcome);
    }

    /// Halves a chunk that was refused; a single instance is the culprit.
    fn halve(&mut self, mut chunk: Chunk, error: CallError) {
        if let [id] = &chunk.ids[..] {
            let id = id.clone();
            match error.code.is_denied() {
                true => self.denied.push((id, error)),
                false => self.settle(id, Outcome::refused(&error)),
            }
            return;
        }
        let mut second = chunk.clone();
        second.ids = chunk.ids.split_off(chunk.ids.len() / 2);
        self.chunks.push_front(second);
        self.chunks.push_front(chunk);
    }

    /// Nothing more is sent: everybody who has not been sent to has this outcome.
    fn stop(&mut self, outcome: &Outcome) {
        self.stopped = true;
        self.settle_unsent(|_| true, outcome);
    }

    fn give_up_offline(&mut self) {
        for (id, reason) in std::mem::take(&mut self.offline) {
            self.settle(id, Outcome::of(Cause::Unreachable, reason));
        }
    }

    /// Those of these platforms that have not been sent to have this outcome.
    fn settle_unsent(&mut self, whose: impl Fn(Platform) -> bool, outcome: &Outcome) {
        for chunk in std::mem::take(&mut self.chunks) {
            match whose(chunk.platform) {
                true => self.settle_all(chunk.ids, outcome),
                false => self.chunks.push_back(chunk),
            }
        }
        let queue = std::mem::take(&mut self.queue).into_iter();
        let (theirs, others): (BTreeSet<_>, _) = queue.partition(|(of, _)| whose(*of));
        self.queue = others;
        self.settle_all(theirs.into_iter().map(|(_, id)| id), outcome);
    }

    fn settle_all(&mut self, ids: impl IntoIterator<Item = InstanceId>, outcome: &Outcome) {
        ids.into_iter()
            .for_each(|id| self.settle(id, outcome.clone()));
    }

    fn settle(&mut self, id: InstanceId, outcome: Outcome) {
        self.failures += usize::from(outcome.cause.brakes());
        tracing::info!(
            instance.id = %id,
            outcome = outcome.kind().word(),
            detail = %outcome.detail,
            "{id}: {}",
            outcome.kind()
        );
        self.results.outcomes.insert(id, outcome);
    }

    /// A call failed for good.
    pub fn note(&mut self, step: Step, error: &CallError) {
        self.results.problems.note(Problem::of_call(step, error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::document::Verdict;
    use crate::kind::Kind;
    use crate::problem::Code;

    const SECOND: Duration = Duration::from_secs(1);
    const STALE: Why = Why::Stale(Platform::Linux);
    const HOUR: Duration = Duration::from_secs(3600);

    fn id(n: usize) -> InstanceId {
        InstanceId::read(&format!("i-{n:017}")).unwrap()
    }

    fn ids(numbers: std::ops::RangeInclusive<usize>) -> Vec<InstanceId> {
        numbers.map(id).collect()
    }

    /// A fleet of so many, which may be restarted so many at a time, with an hour to do it.
    fn window(fleet: usize, at_once: usize, failures: usize) -> (Window, Instant) {
        carried(ids(1..=fleet), at_once, failures, Carried::default())
    }

    fn carried(
        restart: Vec<InstanceId>,
        at_once: usize,
        failures: usize,
        carried: Carried,
    ) -> (Window, Instant) {
        let now = Instant::now();
        let plan = Plan {
            fresh: Freshness::since(Timestamp(0)),
            restart: restart
                .into_iter()
                .map(|id| (Platform::Linux, id))
                .collect(),
            offline: BTreeMap::new(),
            read_at: now,
        };
        let limits = Limits {
            at_once,
            failures,
            last_send: now + HOUR - 240 * SECOND,
            until: now + HOUR,
        };
        (Window::new(plan, limits, carried, now), now)
    }

    fn send(ids: Vec<InstanceId>) -> Next {
        Next::Send(Platform::Linux, ids)
    }

    fn error(code: &str) -> CallError {
        CallError {
            operation: "ssm:SendCommand",
            resource: "restart-agent".to_owned(),
            code: Code::Aws(code.to_owned()),
            message: "no".to_owned(),
        }
    }

    fn ended(n: usize, verdict: Verdict) -> (InstanceId, Progress) {
        let outcome = Outcome::of(Cause::Reported(verdict), "");
        (id(n), Progress::Done(outcome))
    }

    fn online(ids: &[InstanceId]) -> BTreeMap<InstanceId, Decision> {
        let restart = || Decision::Restart(Platform::Linux, "online".to_owned());
        ids.iter().map(|id| (id.clone(), restart())).collect()
    }

    fn kinds(window: Window) -> Vec<Kind> {
        let outcomes = window.close().outcomes.into_values();
        outcomes.map(|outcome| outcome.kind()).collect()
    }

    #[test]
    fn asking_what_is_next_changes_nothing() {
        let (mut window, now) = window(3, 2, 0);
        assert_eq!(window.next(now), send(ids(1..=2)));
        assert_eq!(window.next(now), send(ids(1..=2)));
        window.sent("a", now);
        assert_eq!(window.next(now), Next::Wait(now + TICK));
        assert_eq!(window.next(now), Next::Wait(now + TICK));
    }

    #[test]
    fn the_window_is_refilled_when_a_quarter_of_it_is_free() {
        let (mut window, now) = window(16, 8, 0);
        assert_eq!(window.next(now), send(ids(1..=8)));
        window.sent("a", now);
        window.seen("a", vec![ended(1, Verdict::Restarted)], now);
        assert_eq!(window.next(now), Next::Wait(now + TICK));
        window.seen("a", vec![ended(5, Verdict::Restarted)], now);
        assert_eq!(window.next(now), send(ids(9..=10)));
    }

    #[test]
    fn a_command_goes_to_fifty_at_most() {
        let (mut window, now) = window(120, 120, 0);
        for numbers in [1..=50, 51..=100, 101..=120] {
            assert_eq!(window.next(now), send(ids(numbers)));
            window.sent("a", now);
        }
        assert_eq!(window.next(now), Next::Wait(now + TICK));
    }

    /// Such as after the exchange of its root volume.
    #[test]
    fn who_turns_out_to_be_of_another_platform_is_sent_that_one_s_document() {
        let (mut window, now) = window(2, 2, 0);
        let later = now + LIFECYCLE_AGE + SECOND;
        assert_eq!(window.next(later), Next::Ask(ids(1..=2), STALE));
        let mut decisions = online(&ids(1..=2));
        let other = Decision::Restart(Platform::Windows, String::new());
        decisions.insert(id(2), other.clone());
        window.decided(STALE, decisions, later);
        assert_eq!(window.next(later), send(ids(1..=1)));
        window.sent("a", later);
        window.seen("a", vec![ended(1, Verdict::Restarted)], later);
        let stale = Next::Ask(ids(2..=2), Why::Stale(Platform::Windows));
        assert_eq!(window.next(later), stale);
        let decisions = BTreeMap::from([(id(2), other)]);
        window.decided(Why::Stale(Platform::Windows), decisions, later);
        let next = Next::Send(Platform::Windows, ids(2..=2));
        assert_eq!(window.next(later), next);
    }

    #[test]
    fn one_failure_more_than_allowed_stops_the_sending() {
        let (mut window, now) = window(6, 2, 1);
        for (command, numbers) in [("a", 1..=2), ("b", 3..=4)] {
            assert_eq!(window.next(now), send(ids(numbers.clone())));
            window.sent(command, now);
            let [first, second] = [*numbers.start(), *numbers.end()];
            let failed = ended(first, Verdict::AgentDown);
            window.seen(command, vec![failed, ended(second, Verdict::NotRoot)], now);
        }
        assert_eq!(window.next(now), Next::Done);
        assert_eq!(kinds(window)[4..], [Kind::HeldBack; 2]);
    }

    #[test]
    fn what_an_earlier_part_sent_holds_its_slots_and_its_failures_count() {
        let earlier = Carried {
            failures: 1,
            in_flight: BTreeMap::from([(id(8), "a".to_owned()), (id(9), "a".to_owned())]),
        };
        let (mut window, now) = carried(ids(1..=4), 2, 1, earlier);
        assert_eq!(window.next(now), Next::Wait(now + TICK));
        assert_eq!(window.open_commands(), BTreeSet::from(["a".to_owned()]));
        window.seen("a", vec![ended(8, Verdict::Restarted)], now);
        assert_eq!(window.next(now), send(ids(1..=1)));
        window.sent("b", now);
        window.seen("a", vec![ended(9, Verdict::AgentDown)], now);
        window.seen("b", vec![ended(1, Verdict::Restarted)], now);
        assert_eq!(window.next(now), Next::Done);
        let all = kinds(window);
        assert_eq!(
            all.iter().filter(|kind| **kind == Kind::HeldBack).count(),
            3
        );
    }

    #[test]
    fn old_lifecycle_states_are_asked_for_again_before_anything_is_sent() {
        let (mut window, now) = window(2, 2, 0);
        let later = now + LIFECYCLE_AGE + SECOND;
        assert_eq!(window.next(later), Next::Ask(ids(1..=2), STALE));
        let mut decisions = online(&ids(1..=2));
        let leaving = "lifecycle state Terminating".to_owned();
        decisions.insert(id(2), Decision::Leave(Cause::Skipped, leaving));
        // However long the answer took.
        let answered = later + 100 * SECOND;
        window.decided(STALE, decisions, answered);
        assert_eq!(window.next(answered), send(ids(1..=1)));
    }

    #[test]
    fn a_refused_command_is_asked_about_once_and_then_halved_to_the_culprit() {
        let (mut window, now) = window(4, 4, 0);
        assert_eq!(window.next(now), send(ids(1..=4)));
        window.not_sent(error("InvalidInstanceId"));
        assert_eq!(window.next(now), Next::Ask(ids(1..=4), Why::Refused));
        window.decided(Why::Refused, online(&ids(1..=4)), now);
        assert_eq!(window.next(now), send(ids(1..=2)));
        window.sent("a", now);
        assert_eq!(window.next(now), send(ids(3..=4)));
        window.not_sent(error("InvalidInstanceId"));
        assert_eq!(window.next(now), send(ids(3..=3)));
        window.not_sent(error("InvalidInstanceId"));
        assert_eq!(window.next(now), send(ids(4..=4)));
        window.sent("b", now);
        assert_eq!(kinds(window)[2], Kind::Unreachable);
    }

    #[test]
    fn denials_are_the_instances_own_only_where_others_are_accepted() {
        for (accepted, kind) in [(true, Kind::Unreachable), (false, Kind::HeldBack)] {
            let (mut window, now) = window(2, 1, 0);
            let Next::Send(_, first) = window.next(now) else {
                panic!("nothing is sent");
            };
            window.not_sent(error("AccessDeniedException"));
            window.decided(Why::Refused, online(&first), now);
            assert_eq!(window.next(now), send(ids(2..=2)));
            match accepted {
                true => window.sent("a", now),
                false => window.not_sent(error("AccessDeniedException")),
            }
            let results = window.close();
            assert_eq!(results.outcomes[&id(1)].kind(), kind);
            assert_eq!(results.problems.is_empty(), accepted);
        }
    }

    #[test]
    fn a_call_that_fails_stops_the_sending_and_is_told() {
        let (mut window, now) = window(4, 2, 0);
        assert_eq!(window.next(now), send(ids(1..=2)));
        window.not_sent(CallError::out_of_time("ssm:SendCommand", "restart-agent"));
        assert_eq!(window.next(now), Next::Done);
        let results = window.close();
        let details: Vec<_> = results.outcomes.values().map(|o| &o.detail).collect();
        assert!(details[0].contains("may have arrived"), "{details:?}");
        assert!(!details[3].contains("may have arrived"), "{details:?}");
        assert_eq!(results.problems.iter().count(), 1);
    }

    #[test]
    fn who_was_offline_is_asked_for_once_more_when_nothing_else_is_open() {
        let (mut window, now) = window(1, 1, 0);
        window.offline = ids(2..=3)
            .into_iter()
            .map(|id| (id, "off".to_owned()))
            .collect();
        assert_eq!(window.next(now), send(ids(1..=1)));
        window.sent("a", now);
        assert_eq!(window.next(now), Next::Wait(now + TICK));
        window.seen("a", vec![ended(1, Verdict::Restarted)], now);
        assert_eq!(window.next(now), Next::Ask(ids(2..=3), Why::Offline));
        let mut decisions = online(&ids(2..=2));
        decisions.insert(id(3), Decision::AskAgain("off still".to_owned()));
        window.decided(Why::Offline, decisions, now);
        assert_eq!(window.next(now), send(ids(2..=2)));
        window.sent("b", now);
        window.seen("b", vec![ended(2, Verdict::Restarted)], now);
        assert_eq!(window.next(now), Next::Done);
        assert_eq!(window.close().outcomes[&id(3)].detail, "off still");
    }

    #[test]
    fn at_the_last_moment_to_send_the_rest_is_held_back_and_what_runs_is_waited_for() {
        let (mut window, now) = window(3, 1, 0);
        assert_eq!(window.next(now), send(ids(1..=1)));
        window.sent("a", now);
        let late = window.limits.last_send;
        assert_eq!(window.next(late), Next::Wait(late + TICK));
        let until = window.limits.until;
        assert_eq!(window.next(until - SECOND), Next::Wait(until));
        assert_eq!(window.next(until), Next::Done);
        let all = [Kind::Unfinished, Kind::HeldBack, Kind::HeldBack];
        assert_eq!(kinds(window), all);
    }

    #[test]
    fn many_open_commands_are_looked_at_less_often() {
        let (mut window, now) = window(64, 64, 0);
        assert_eq!(window.next(now), send(ids(1..=50)));
        for n in 1..=40 {
            window.flights.sent([id(n)], &format!("{n}"), now);
        }
        assert_eq!(window.tick(), Duration::from_secs(10));
    }
}

//! Who was sent to and has no outcome yet: how far each command has come, and who is late. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::InstanceId;
use crate::outcome::{Cause, Outcome, Progress};

/// An instance that has waited this long for its command no longer holds its slot. Systems Manager itself says
/// `DeliveryTimedOut` only after the execution timeout on top.
const UNDELIVERED_AFTER: Duration = Duration::from_secs(150);

/// An end without any output of the document is asked about again for so long. The SSM Agent sends both apart, and the
/// output after minutes where the network is bad.
const SILENT_FOR: Duration = Duration::from_secs(300);

/// The instances in flight.
#[derive(Debug, Default)]
pub struct Flights {
    open: BTreeMap<InstanceId, Flight>,
    /// Every command so far, by id.
    commands: BTreeMap<String, Command>,
}

#[derive(Debug)]
struct Flight {
    command_id: String,
    /// Not started in time: it no longer holds a slot, but is taken back in if it starts after all.
    late: bool,
    /// The last status, when it is one that this function does not know.
    unknown_status: Option<String>,
    /// Ended without output: since when, and in which words of Systems Manager's.
    silent: Option<(Instant, String)>,
}

/// A command, as its invocations show it.
///
/// Explicit ids are believed to go out at once; then the wait for those that do not start counts from the
/// sending. Should Systems Manager hand them out in waves of 1, 2, 4, … as it documents for targets, each wave when
/// the one before has ended, then nobody is late as long as the command moves.
#[derive(Debug)]
struct Command {
    sent: Instant,
    /// When something of it was last seen to run or to end.
    moved: Instant,
    /// The instances that have begun.
    begun: BTreeSet<InstanceId>,
    /// Those of them that have ended.
    ended: BTreeSet<InstanceId>,
    /// More have begun than waves would allow: one, two after its end, four after theirs.
    at_once: bool,
}

impl Command {
    fn is_late(&self, now: Instant) -> bool {
        let since = if self.at_once { self.sent } else { self.moved };
        now - since >= UNDELIVERED_AFTER
    }
}

impl Flights {
    /// A command went out to these.
    pub fn sent(
        &mut self,
        ids: impl IntoIterator<Item = InstanceId>,
        command_id: &str,
        now: Instant,
    ) {
        self.commands
            .entry(command_id.to_owned())
            .or_insert_with(|| Command {
                sent: now,
                moved: now,
                begun: BTreeSet::new(),
                ended: BTreeSet::new(),
                at_once: false,
            });
        self.open.extend(ids.into_iter().map(|id| {
            let flight = Flight {
                command_id: command_id.to_owned(),
                late: false,
                unknown_status: None,
                silent: None,
            };
            (id, flight)
        }));
    }

    /// How many hold a slot.
    pub fn count(&self) -> usize {
        self.open.values().filter(|flight| !flight.late).count()
    }

    /// Whether everybody has an outcome.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The commands that somebody's outcome is awaited of.
    pub fn commands(&self) -> BTreeSet<String> {
        let flights = self.open.values();
        flights.map(|flight| flight.command_id.clone()).collect()
    }

    /// What Systems Manager shows of a command. Gives those that have ended.
    pub fn seen(
        &mut self,
        command_id: &str,
        invocations: Vec<(InstanceId, Progress)>,
        now: Instant,
    ) -> Vec<(InstanceId, Outcome)> {
        let Some(command) = self.commands.get_mut(command_id) else {
            return Vec::new();
        };
        let mut running = BTreeMap::new();
        let mut ended = Vec::new();
        for (id, progress) in invocations {
            // Ours is the instance together with its command: the list may hold more.
            let flight = self.open.get_mut(&id);
            let Some(flight) = flight.filter(|flight| flight.command_id == command_id) else {
                continue;
            };
            let end = match progress {
                Progress::Waiting => continue,
                Progress::Running(unknown_status) => {
                    flight.silent = None;
                    running.insert(id.clone(), unknown_status);
                    None
                }
                Progress::Silent(status) => {
                    let (since, _) = flight.silent.get_or_insert((now, status));
                    running.insert(id.clone(), None);
                    (now - *since >= SILENT_FOR).then(|| flight.end_of_silence())
                }
                Progress::Done(outcome) => Some(outcome),
            };
            let has_ended = end.is_some() || flight.silent.is_some();
            // To its command, one that ended without output has ended.
            if !has_ended || command.ended.insert(id.clone()) {
                command.moved = now;
            }
            if let Some(outcome) = end {
                self.open.remove(&id);
                ended.push((id.clone(), outcome));
            }
            command.begun.insert(id);
        }
        command.at_once |= command.begun.len() > 2 * command.ended.len() + 1;
        for (id, flight) in &mut self.open {
            if flight.command_id == command_id {
                let started = running.remove(id);
                flight.late =
                    started.is_none() && !command.begun.contains(id) && command.is_late(now);
                flight.unknown_status = started.flatten();
            }
        }
        ended
    }

    /// The end: what is true of those that are still open.
    pub fn close(&mut self) -> impl Iterator<Item = (InstanceId, Outcome)> + use<> {
        let open = std::mem::take(&mut self.open).into_iter();
        open.map(|(id, flight)| {
            let outcome = match (flight.late, &flight.unknown_status) {
                (true, _) => {
                    let seconds = UNDELIVERED_AFTER.as_secs();
                    let detail = format!(
                        "not known to have run {seconds} s after it was sent (it still may)"
                    );
                    Outcome::of(Cause::Undelivered, detail)
                }
                (false, _) if flight.silent.is_some() => return (id, flight.end_of_silence()),
                (false, Some(status)) => Outcome::of(
                    Cause::NoResult,
                    format!("sent, no result yet; Systems Manager says {status}"),
                ),
                (false, None) => Outcome::of(Cause::NoResult, "sent, no result yet"),
            };
            (id, outcome.of_command(&flight.command_id))
        })
    }
}

impl Flight {
    /// What is true of one that ended without output, when it is not asked about any more.
    fn end_of_silence(&self) -> Outcome {
        let status = self.silent.as_ref().map_or("", |(_, status)| status);
        let detail = format!("sent; Systems Manager says {status}, and shows no output");
        Outcome::of(Cause::NoResult, detail).of_command(&self.command_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(n: usize) -> InstanceId {
        InstanceId::read(&format!("i-{n:017}")).unwrap()
    }

    fn running(n: usize) -> (InstanceId, Progress) {
        (id(n), Progress::Running(None))
    }

    fn done(n: usize) -> (InstanceId, Progress) {
        (id(n), Progress::Done(Outcome::of(Cause::NoProof, "")))
    }

    fn sent(instances: usize) -> (Flights, Instant) {
        let (mut flights, now) = (Flights::default(), Instant::now());
        flights.sent((1..=instances).map(id), "a", now);
        (flights, now)
    }

    #[test]
    fn what_has_not_started_frees_its_slot_after_150_seconds_and_takes_it_back_when_it_starts() {
        let (mut flights, now) = sent(2);
        flights.seen("a", Vec::new(), now + 149 * SECOND);
        assert_eq!(flights.count(), 2);
        flights.seen("a", Vec::new(), now + 150 * SECOND);
        assert_eq!(flights.count(), 0);
        assert!(!flights.is_empty());
        flights.seen("a", vec![running(1)], now + 160 * SECOND);
        assert_eq!(
            flights.count(),
            2,
            "the command moves: the other one's turn may come"
        );
    }

    #[test]
    fn where_all_went_out_at_once_the_wait_counts_from_the_sending() {
        let (mut flights, now) = sent(3);
        flights.seen("a", vec![running(1), running(2)], now + 100 * SECOND);
        flights.seen("a", vec![running(1), running(2)], now + 150 * SECOND);
        assert_eq!(flights.count(), 2);
    }

    #[test]
    fn an_end_without_output_is_an_end_after_300_seconds_and_moves_its_command_once() {
        let (mut flights, now) = sent(4);
        let silent = || (id(1), Progress::Silent("\"Success\"".to_owned()));
        for seconds in [0, 100, 200, 299] {
            assert_eq!(
                flights.seen("a", vec![silent()], now + seconds * SECOND),
                []
            );
        }
        assert_eq!(
            flights.count(),
            1,
            "nobody else has begun within 150 s of the end"
        );
        let ended = flights.seen("a", vec![silent()], now + 300 * SECOND);
        assert_eq!(ended[0].1.cause, Cause::NoResult);
    }

    #[test]
    fn output_that_follows_is_the_end() {
        let (mut flights, now) = sent(1);
        let silent = (id(1), Progress::Silent("\"Success\"".to_owned()));
        assert_eq!(flights.seen("a", vec![silent], now), []);
        assert_eq!(
            flights.seen("a", vec![done(1)], now + 200 * SECOND).len(),
            1
        );
    }

    #[test]
    fn the_list_may_hold_other_commands_and_other_instances() {
        let (mut flights, now) = sent(1);
        flights.sent([id(2)], "b", now);
        assert_eq!(flights.seen("a", vec![done(2), done(3)], now), []);
        assert_eq!(flights.seen("unknown", vec![done(1)], now), []);
        assert_eq!(flights.seen("b", vec![done(2)], now).len(), 1);
        assert_eq!(flights.commands(), BTreeSet::from(["a".to_owned()]));
    }

    #[test]
    fn at_the_end_each_open_one_says_what_is_true_of_it() {
        let (mut flights, now) = sent(1);
        flights.seen("a", Vec::new(), now + 150 * SECOND);
        flights.sent([id(2), id(3)], "b", now + 150 * SECOND);
        let napping = Progress::Running(Some("\"Napping\"".to_owned()));
        flights.seen("b", vec![(id(3), napping)], now + 151 * SECOND);
        let ends: Vec<_> = flights.close().map(|(_, outcome)| outcome.detail).collect();
        insta::assert_snapshot!(ends.join("\n"), @r#"
        not known to have run 150 s after it was sent (it still may)
        sent, no result yet
        sent, no result yet; Systems Manager says "Napping"
        "#);
        assert!(flights.is_empty());
    }
}

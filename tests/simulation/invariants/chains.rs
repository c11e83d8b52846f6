//! Groups of one event that share instances follow each other, so that what one restarts is fresh for the next.

use sim::Call;

use super::sends::last_asked;
use super::subject::{Meant, Subject};
use super::{Evidence, UNHARMED};
use crate::deliveries::Invocation;

impl Evidence<'_> {
    /// From the last look whether a deployment of it runs to the last look at its commands, a group has the instances that
    /// it shares with others for itself.
    pub fn chains(
        &mut self,
        who: &str,
        subject: &Subject,
        invocation: &Invocation,
        calls: &[&Call],
    ) {
        let certain = subject.groups.iter().filter(|meant| meant.is_certain());
        let mut treated: Vec<(f64, f64, &Meant)> = certain
            .filter_map(|meant| {
                let (from, to) = self.span(meant, invocation, calls)?;
                Some((from, to, meant))
            })
            .collect();
        treated.sort_by(|one, other| one.0.total_cmp(&other.0));
        for (number, (_, to, first)) in treated.iter().enumerate() {
            let targets = self.targets(first);
            let meanwhile = treated[number + 1..].iter().find(|(from, _, second)| {
                from < to
                    && first.region == second.region
                    && !self.targets(second).is_disjoint(&targets)
            });
            if let Some((from, _, second)) = meanwhile {
                let what = format!(
                    "{who}: {} is treated from {from:.3}, though {}, which shares instances with it, is until {to:.3}",
                    second.name, first.name
                );
                self.broken(UNHARMED, what);
                return;
            }
        }
    }

    /// When the function was about a group that it sent to.
    fn span(&self, meant: &Meant, invocation: &Invocation, calls: &[&Call]) -> Option<(f64, f64)> {
        let comment = meant.comment();
        let sent = |call: &Call| {
            call.operation == "SendCommand"
                && call.region == meant.region
                && call.params["Comment"] == comment.as_str()
        };
        let first = calls.iter().find(|call| sent(call))?;
        let begun = last_asked(meant, first, calls).map_or(first.at, |asked| asked.at);
        let ids: Vec<&str> = self
            .commands
            .iter()
            .filter(|(call, _)| call.access_key == invocation.key && sent(call))
            .map(|(_, command)| command.id.as_str())
            .collect();
        let looked = |call: &Call| {
            call.operation == "ListCommandInvocations"
                && call.region == meant.region
                && call.params["CommandId"]
                    .as_str()
                    .is_some_and(|id| ids.contains(&id))
        };
        let last = calls.iter().rev().find(|call| sent(call) || looked(call))?;
        Some((begun, last.at))
    }
}

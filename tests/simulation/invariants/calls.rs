//! The calls of one run: its deadline, their number and rate, the limits of the APIs, and what may not be written.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sim::{Call, FaultKind};

use super::{Evidence, LIMITS, MOMENT, NEEDED, READ_ONLY, UNHARMED};
use crate::deliveries::{Delivery, End, Invocation, Meaning};

/// Calls of Systems Manager that may come at once, in one region, from one function, and how many a second more than
/// these; the SDK's repeats of one call follow its own back-off and do not count.
const SSM_CALLS_AT_ONCE: f64 = 10.0;
const SSM_CALLS_A_SECOND: f64 = 5.0;
/// Calls of one invocation, repeats included: twice the most that 4,000 seeds saw, or what the pace allows in the time that
/// it took, if that is more. Hundreds of instances that are denied and halved have a command each (seed 142841).
const MOST_CALLS: usize = 4_000;
/// The same without Systems Manager's, and one more for each instance: nothing but the polls may grow with the time that a
/// run takes.
const MOST_OTHER_CALLS: usize = 330;
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

impl Evidence<'_> {
    pub fn limits(&mut self, who: &str, invocation: &Invocation, calls: &[&Call]) {
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
        let regions: BTreeSet<&str> = calls.iter().map(|call| call.region.as_str()).collect();
        let took = invocation.ended - invocation.began;
        let paced = regions.len() as f64 * (SSM_CALLS_AT_ONCE + SSM_CALLS_A_SECOND * took);
        let most = MOST_CALLS.max(paced as usize);
        if calls.len() > most || others > MOST_OTHER_CALLS + self.scene.size() {
            let what = format!("{who}: {} calls, {others} not to SSM", calls.len());
            self.broken(LIMITS, what);
        }
        let mut turns: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for call in calls {
            if call.service == "ssm" && call.attempt <= 1 {
                turns.entry(&call.region).or_default().push(call.at);
            }
            // A command may not be known everywhere just after it was sent.
            let early = call.error.as_deref() == Some("InvalidCommandId")
                && self
                    .commands
                    .iter()
                    .any(|(_, known)| call.params["CommandId"] == known.id.as_str());
            if let Some(what) = breaks_a_limit(call).filter(|_| !early) {
                self.broken(
                    LIMITS,
                    format!("{who}, at {:.3}: {}: {what}", call.at, call.operation),
                );
            }
        }
        for (region, times) in turns {
            if let Some(at) = crowded(&times) {
                let what = format!(
                    "{who}: more than {SSM_CALLS_AT_ONCE} calls of SSM at once and {SSM_CALLS_A_SECOND} a second in \
                     {region}, at {at:.3}"
                );
                self.broken(LIMITS, what);
            }
        }
    }

    pub fn read_only(
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
}

impl Evidence<'_> {
    /// For another account no call is made but to tell somebody; nobody is told where it is covered.
    pub fn elsewhere(
        &mut self,
        who: &str,
        delivery: &Delivery,
        invocation: &Invocation,
        calls: &[&Call],
    ) {
        let mut others = calls.iter().filter(|call| call.operation != "Publish");
        let call = others.find(|_| delivery.meaning == Meaning::Elsewhere);
        if let Some(call) = call {
            let what = format!("{who}: {} is called for another account", call.operation);
            self.broken(UNHARMED, what);
        }
        if let End::Reported(report, _) = &invocation.end
            && self.scene.is_covered()
            && report.problems().any(|p| p.code.word() == "OtherAccount")
        {
            self.broken(NEEDED, format!("{who}: the other account is covered"));
        }
    }
}

/// When there were, in some stretch of time, more calls than may come at once and as many a second: each fills a vessel
/// that leaks at that rate.
fn crowded(times: &[f64]) -> Option<f64> {
    let (mut level, mut before) = (0.0_f64, f64::MIN);
    times.iter().copied().find(|at| {
        level = (level - (at - before) * SSM_CALLS_A_SECOND).max(0.0) + 1.0;
        before = *at;
        // All times are in whole milliseconds.
        level > SSM_CALLS_AT_ONCE + 0.1
    })
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
            let subject = text("Subject");
            let size = text("Message").len() + subject.len() + attributes;
            let plain =
                subject.len() < 100 && subject.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            (size > 262_144 || !plain || subject.is_empty())
                .then(|| format!("{size} bytes, subject {subject:?}"))
        }
        _ => None,
    }
}

pub fn texts(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

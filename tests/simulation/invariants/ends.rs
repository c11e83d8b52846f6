//! Whether what is told of a command is what became of it on the instance, as far as the function could read it, and
//! whether it went on asking as long as there was anything to learn.

use std::collections::BTreeMap;

use codedeploy_agent_restarter::report::Report;
use sim::{Call, Command, Host, Invocation as Ran};

use super::hosts::{host, result_of};
use super::report::word;
use super::sends::is_answered;
use super::{ENDS, Evidence, MOMENT};
use crate::deliveries::Invocation;

/// Seconds before its deadline at which the function stops asking.
const RESERVE: f64 = 45.0;
/// Seconds for which it asks about an end without output.
const PATIENCE: f64 = 300.0;
/// Two looks at a command are no further apart, in seconds: the longest pause, a look's own limit, and the wait for the
/// turn of its calls behind others'.
const LOOKS_APART: f64 = 150.0;
/// Invocations on a page.
const PAGE: usize = 50;
/// Every line that counts: result, code, outcome.
const LINES: [(&str, i64, &str); 15] = [
    ("restarted", 0, "restarted"),
    ("started", 0, "started"),
    ("already-restarted", 0, "already-restarted"),
    ("below-threshold", 0, "below-threshold"),
    ("not-installed", 10, "failed"),
    ("not-root", 11, "failed"),
    ("preflight-failed", 12, "failed"),
    ("busy", 20, "busy"),
    ("update-running", 21, "busy"),
    ("restart-running", 22, "busy"),
    ("service-manager-failed", 30, "failed"),
    ("old-agent-survived", 31, "failed"),
    ("agent-down", 32, "failed"),
    ("agent-unhealthy", 33, "failed"),
    ("draining", 34, "busy"),
];

/// What became of a command on an instance, as Systems Manager showed it in the end.
#[derive(Clone, Copy, Debug)]
struct Became {
    end: End,
    /// When it could be seen to have begun.
    begun: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// This outcome, which could be read from that time on.
    Told(&'static str, f64),
    /// A final status at that time, and never any output.
    Silent(f64),
    /// None.
    Open,
}

impl Evidence<'_> {
    pub fn ends(&mut self, who: &str, invocation: &Invocation, report: &Report, calls: &[&Call]) {
        let mut found = Vec::new();
        let mut watches: BTreeMap<(&str, &str), Watch> = BTreeMap::new();
        for group in &report.groups {
            let region = group.name.region.as_str();
            for (target, entry) in &group.instances {
                let outcome = entry.outcome.as_ref();
                let Some(id) = outcome.and_then(|outcome| outcome.command_id.as_deref()) else {
                    continue;
                };
                let sent = self
                    .commands
                    .iter()
                    .find(|(call, known)| call.region == region && known.id == id);
                let Some((_, command)) = sent else {
                    continue;
                };
                let instance = target.as_str();
                let ran = command
                    .invocations
                    .iter()
                    .find(|ran| ran.instance_id == instance);
                let (Some(ran), Some(host)) = (ran, host(self.end, region, instance)) else {
                    continue;
                };
                let shortfall = self.scene.state.page_shortfall;
                let watch = watches
                    .entry((region, id))
                    .or_insert_with(|| Watch::of(invocation, region, command, shortfall, calls));
                let became = became(host, ran);
                if let Some(wrong) = watch.wrong(word(entry), became) {
                    let detail = outcome.map_or("", |outcome| outcome.detail.as_str());
                    found.push(format!(
                        "{who}: {instance} is told as {} ({detail}), and {wrong}: {became:.3?}",
                        word(entry)
                    ));
                }
            }
        }
        for what in found {
            self.broken(ENDS, what);
        }
    }
}

/// How a run watched a command.
struct Watch {
    /// When it asked, whatever came of it.
    asked: Vec<f64>,
    /// The looks that were answered for certain, all pages of them.
    looks: Vec<f64>,
    /// When a question about any command of the region was asked last, and answered last.
    of_region: (f64, f64),
    /// Until when it may ask.
    until: f64,
}

impl Watch {
    fn of(
        invocation: &Invocation,
        region: &str,
        command: &Command,
        shortfall: usize,
        calls: &[&Call],
    ) -> Self {
        let until = invocation.deadline - RESERVE;
        let here = calls
            .iter()
            .filter(|call| call.operation == "ListCommandInvocations" && call.region == region);
        let asked = here.clone().map(|call| call.at);
        let answered = here.clone().filter(|call| call.status == 200);
        let answered = answered.map(|call| call.at);
        let of_region = (
            asked.fold(f64::MIN, f64::max),
            answered.fold(f64::MIN, f64::max),
        );
        let polls: Vec<&&Call> = here
            .filter(|call| call.params["CommandId"] == command.id.as_str())
            .collect();
        let page = PAGE.saturating_sub(shortfall).max(1);
        let sure = |call: &Call| {
            call.status == 200
                && is_answered(call)
                && call.fault.is_none()
                && call.at <= until - MOMENT
        };
        let first = |call: &Call| call.params["NextToken"].is_null();
        let mut looks = Vec::new();
        for (place, look) in polls.iter().enumerate() {
            if !first(look) || !sure(look) {
                continue;
            }
            let shown = |ran: &&Ran| ran.visible_at <= look.at;
            let shown = command.invocations.iter().filter(shown).count();
            let more = polls[place + 1..].iter().take_while(|call| !first(call));
            let more = more.filter(|call| sure(call)).count();
            if more + 1 >= shown.div_ceil(page) {
                looks.push(look.at);
            }
        }
        Self {
            asked: polls.iter().map(|call| call.at).collect(),
            looks,
            of_region,
            until,
        }
    }

    fn saw(&self, since: f64) -> bool {
        self.looks.iter().any(|look| *look >= since)
    }

    /// Whether it asked as long as it could. Where every call of the region is refused, the attempts for some commands leave
    /// no turn for others.
    fn to_the_end(&self) -> bool {
        let last = self.asked.iter().copied().fold(f64::MIN, f64::max);
        let late = |asked: f64| asked >= self.until - LOOKS_APART;
        let (asked, answered) = self.of_region;
        late(last) || self.asked.is_empty() || (late(asked) && answered <= last)
    }

    /// Whether it asked long enough about an end without output.
    fn patient(&self, since: f64) -> bool {
        let mut after = self.asked.iter().filter(|at| **at >= since);
        let first = after.next().copied().unwrap_or(since);
        let last = after.next_back().copied().unwrap_or(first);
        last - first >= PATIENCE - MOMENT
    }

    /// What is wrong with the outcome that is told, if anything is.
    fn wrong(&self, told: &str, became: Became) -> Option<&'static str> {
        match (told, became.end) {
            (told, End::Told(word, _)) if told == word => None,
            ("unfinished", End::Silent(since)) => (!self.to_the_end() && !self.patient(since))
                .then_some("it was asked about too shortly"),
            ("unfinished", End::Told(_, since)) if self.saw(since) => {
                Some("its end was there to be read")
            }
            ("unfinished", _) => {
                (!self.to_the_end()).then_some("nobody asked any more, though there was time")
            }
            ("undelivered", _) => match became.begun {
                Some(begun) if self.saw(begun) => Some("it was seen to have begun"),
                _ => None,
            },
            (_, End::Told(..)) => Some("another end was true"),
            (_, End::Silent(_) | End::Open) => Some("there was no such end"),
        }
    }
}

fn became(host: &Host, ran: &Ran) -> Became {
    let Some(answer) = &host.answer else {
        let shown_at = |at: Option<f64>| at.map_or(f64::MAX, |at| at.max(ran.visible_at));
        let (ended, readable) = (ran.ended_at, ran.output_at.or(ran.ended_at));
        let shown = Shown {
            status: &ran.status,
            details: &ran.status_details,
            output: &ran.output,
            code: ran.response_code,
            unheard: ran.unheard,
        };
        let begun = ran.began_at.or(ran.ended_at);
        return Became {
            end: shown.end(shown_at(ended), shown_at(readable)),
            begun: begun.map(|at| at.max(ran.visible_at)),
        };
    };
    let status = answer.status.as_str();
    let shown = Shown {
        status,
        details: answer.status_details.as_deref().unwrap_or(status),
        output: answer.output.as_deref().unwrap_or_default(),
        code: answer.response_code.unwrap_or(match status {
            "Success" => 0,
            "Failed" => 1,
            _ => -1,
        }),
        unheard: false,
    };
    Became {
        end: shown.end(ran.visible_at, ran.visible_at),
        begun: (!["Pending", "Delayed"].contains(&status)).then_some(ran.visible_at),
    }
}

/// What Systems Manager shows of an invocation.
struct Shown<'a> {
    status: &'a str,
    details: &'a str,
    output: &'a str,
    code: i64,
    unheard: bool,
}

impl Shown<'_> {
    fn end(&self, ended: f64, readable: f64) -> End {
        let details = self.details.replace(' ', "").to_lowercase();
        let told = match (self.status, details.as_str()) {
            (
                "Success" | "Failed" | "TimedOut" | "Cancelled",
                "deliverytimedout" | "undeliverable" | "terminated" | "accessdenied"
                | "invalidplatform",
            ) => "undelivered",
            ("TimedOut", _) | ("Success" | "Failed", "executiontimedout") => "timed-out",
            ("Cancelled", _) | ("Success" | "Failed", "cancelled" | "canceled") => "cancelled",
            ("Success" | "Failed", _) if self.output.trim().is_empty() => {
                return End::Silent(ended);
            }
            ("Success" | "Failed", _) if self.unheard => return End::Told("undelivered", readable),
            ("Success" | "Failed", _) => return End::Told(self.by_its_line(), readable),
            _ => return End::Open,
        };
        End::Told(told, ended)
    }

    /// The outcome of the document's line, if it counts.
    fn by_its_line(&self) -> &'static str {
        let Some((result, code)) = result_of(self.output) else {
            return "failed";
        };
        let version = self.output.contains("\"agentRestart\":1,");
        let agrees =
            self.code == -1 || self.code == code && (code != 0 || self.status == "Success");
        let line = LINES.iter().find(|line| line.0 == result && line.1 == code);
        line.filter(|_| version && agrees)
            .map_or("failed", |line| line.2)
    }
}

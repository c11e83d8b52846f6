//! Whether the tag that is asked for decides who is sent to, by EC2's word and by nothing else.

use codedeploy_agent_restarter::ids::InstanceId;
use codedeploy_agent_restarter::problem::{Code, Problem};
use codedeploy_agent_restarter::report::Report;
use sim::Call;

use super::calls::texts;
use super::candidates::{Standing, during};
use super::hosts::host;
use super::report::word;
use super::sends::is_answered;
use super::subject::{Meant, Subject, is};
use super::{Evidence, NEEDED, TOLD};
use crate::deliveries::Invocation;

impl Evidence<'_> {
    /// Whether an instance that stands so is to be left alone for want of the tag.
    pub fn is_left_out(&self, standing: &Standing) -> bool {
        self.scene.asks_for_tag() && !standing.tagged
    }

    /// One that is sent to although EC2 did not say in this run that it has the tag: Systems Manager's denial is no way to
    /// find out.
    pub fn sent_without_tag(
        &self,
        meant: &Meant,
        call: &Call,
        ids: &[&str],
        calls: &[&Call],
    ) -> Option<String> {
        if !self.scene.asks_for_tag() {
            return None;
        }
        let before = calls.iter().copied().filter(|asked| asked.at < call.at);
        let told = |id: &str| self.said(meant, id, before.clone()).any(|s| s.tagged);
        let id = ids.iter().find(|id| !told(id))?;
        Some(format!(
            "{id} is sent to, and EC2 has not said that it has the tag"
        ))
    }

    /// Where an instance stood each time that EC2 was asked about it, or the inventory for the tag, and answered.
    fn said<'c>(
        &self,
        meant: &Meant,
        id: &str,
        calls: impl Iterator<Item = &'c Call>,
    ) -> impl Iterator<Item = &Standing> {
        let standings = self.standings_of(&meant.region, id);
        calls
            .filter(|call| call.region == meant.region && is_told(call, id))
            .flat_map(|call| during(standings, call.at, call.at))
    }

    /// Nobody hears of those without the tag, and of a group in which nobody has it somebody does.
    pub fn tags(
        &mut self,
        who: &str,
        subject: &Subject,
        invocation: &Invocation,
        report: &Report,
        calls: &[&Call],
    ) {
        if !self.scene.asks_for_tag() {
            return;
        }
        for meant in subject.groups.iter().filter(|meant| meant.is_certain()) {
            let Some(found) = report.groups.iter().find(|group| is(meant, group)) else {
                continue;
            };
            let (mut told, mut wrong) = (Vec::new(), Vec::new());
            // Where EC2 could not be asked about all, nothing is sent to any. One page of an answer is none.
            let withheld = calls.iter().any(|call| {
                let ec2 = call.operation == "DescribeInstances";
                ec2 && call.region == meant.region && !is_answered(call)
            });
            // Whether one that is passed over may be the one that has it.
            let mut open = withheld;
            for (target, entry) in &found.instances {
                // A name, which may look like an id, is nobody's.
                let Some(id) = target.instance().map(InstanceId::as_str) else {
                    continue;
                };
                let standings = self.standings_of(&meant.region, id);
                let mut standings = during(standings, invocation.began, invocation.ended);
                let passing = standings.any(Standing::is_passing);
                // An answer that was slow may have come too late for the function: it proves nothing either way.
                let answered = calls.iter().copied().filter(|call| is_answered(call));
                let said: Vec<&Standing> = self.said(meant, id, answered).collect();
                let tagged = said.iter().any(|standing| standing.tagged);
                let forgotten =
                    host(&self.scene.state, &meant.region, id).is_none_or(|host| host.forgotten);
                if said.is_empty() {
                    open |= !passing;
                } else if forgotten || self.is_shaky(&meant.region, id, invocation) {
                    open |= tagged;
                } else {
                    if !withheld && !tagged && word(entry) != "skipped" {
                        wrong.push(format!("{who}: {id} has no tag and is {}", word(entry)));
                    }
                    match passing || said.iter().any(|standing| standing.is_gone()) {
                        true => open |= tagged,
                        false => told.push((tagged, said.iter().all(|s| s.tagged))),
                    }
                }
            }
            let problem = |problem: &Problem| problem.code == Code::NobodyTagged;
            let problem = found.problems.iter().any(problem);
            for what in wrong {
                self.broken(NEEDED, what);
            }
            if problem && told.iter().any(|(_, always)| *always) {
                self.broken(
                    NEEDED,
                    format!("{who}: somebody of {} has the tag", meant.name),
                );
            }
            if !problem && !open && !told.is_empty() && told.iter().all(|(ever, _)| !ever) {
                let what = format!(
                    "{who}: nobody of {} has the tag, and nobody says so",
                    meant.name
                );
                self.broken(TOLD, what);
            }
        }
    }
}

/// Whether EC2 was asked about the instance, or the inventory for the tag, and answered.
fn is_told(call: &Call, id: &str) -> bool {
    let about = match id.starts_with("mi-") {
        true => call.params["Filters"][0]["Key"] == "tag:AgentRestart",
        false => {
            call.operation == "DescribeInstances"
                && texts(&call.params["Filter"][0]["Value"]).contains(&id)
        }
    };
    about && call.status == 200 && call.error.is_none()
}

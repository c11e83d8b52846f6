//! Which document each platform is sent, and who is held back for want of one.

use codedeploy_agent_restarter::outcome::Cause;
use codedeploy_agent_restarter::report::{Entry, Report};
use sim::Call;

use super::hosts::host;
use super::report::word;
use super::subject::Meant;
use super::{ACCOUNTED, Evidence};

/// What may become of an instance that there is no document for.
const LEFT: [&str; 3] = ["held-back", "skipped", "unreachable"];

impl Evidence<'_> {
    /// The document that the settings name for the platform of an instance.
    fn document_for(&self, region: &str, id: &str) -> Option<&str> {
        let variable = match host(self.end, region, id)?.platform.as_str() {
            "Linux" => "DOCUMENT_NAME",
            "Windows" => "WINDOWS_DOCUMENT_NAME",
            _ => return None,
        };
        let name = self.scene.settings[variable].as_str();
        Some(name).filter(|name| !name.is_empty())
    }

    /// Nobody is sent another platform's document.
    pub fn wrong_document(&self, meant: &Meant, call: &Call, ids: &[&str]) -> Option<String> {
        let given = call.params["DocumentName"].as_str();
        let wrong = |id: &&&str| self.document_for(&meant.region, id) != given;
        let id = ids.iter().find(wrong)?;
        Some(format!("{id} is sent the document {given:?}"))
    }

    /// Whoever has no document is left, and nobody else for that reason.
    pub fn undocumented(&mut self, who: &str, report: &Report) {
        let mut wrong = Vec::new();
        for group in &report.groups {
            let region = group.name.region.as_str();
            for (target, entry) in &group.instances {
                let id = target.as_str();
                if host(self.end, region, id).is_some() && !self.is_right(region, id, entry) {
                    wrong.push(format!("{who}: {id} is {}", word(entry)));
                }
            }
        }
        for what in wrong {
            self.broken(
                ACCOUNTED,
                format!("{what}, which its platform does not say"),
            );
        }
    }

    fn is_right(&self, region: &str, id: &str, entry: &Entry) -> bool {
        let cause = entry.outcome.as_ref().map(|outcome| outcome.cause);
        match (self.document_for(region, id), cause) {
            (None, _) => LEFT.contains(&word(entry)),
            (Some(_), Some(Cause::UnknownPlatform)) => false,
            (Some(name), Some(Cause::NoDocument)) => {
                let held = &self.end.regions[region].documents;
                !held.iter().any(|document| document.name == name)
            }
            (Some(_), _) => true,
        }
    }
}

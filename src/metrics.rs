//! The metrics of a report: one line of CloudWatch's Embedded Metric Format for each group, printed to
//! standard output, where Lambda's log carries it to CloudWatch without a call.

use serde_json::{Map, Value, json};

use crate::clock::Timestamp;
use crate::kind::Kind;
use crate::report::{GroupReport, Report};

const NAMESPACE: &str = "CodeDeployAgentRestarter";
const BYTES_PER_KIB: u64 = 1024;

/// The lines of a report; none for a dry run.
pub fn lines(report: &Report, now: Timestamp) -> Vec<String> {
    if report.dry_run {
        return Vec::new();
    }
    report.groups.iter().map(|group| line(group, now)).collect()
}

fn line(group: &GroupReport, now: Timestamp) -> String {
    let attention = group.attention().len();
    let mut metrics = vec![
        (
            "Restarted",
            "Count",
            json!(group.count(&[Kind::Restarted, Kind::Started])),
        ),
        ("Attention", "Count", json!(attention)),
        (
            "Skipped",
            "Count",
            json!(group.count(&[Kind::Skipped, Kind::AlreadyRestarted, Kind::BelowThreshold])),
        ),
    ];
    if let Some((before, after)) = group.memory() {
        let reclaimed = before.saturating_sub(after).saturating_mul(BYTES_PER_KIB);
        metrics.push(("MemoryReclaimed", "Bytes", json!(reclaimed)));
    }
    if let Some(largest) = largest_agent(group) {
        let bytes = largest.saturating_mul(BYTES_PER_KIB);
        metrics.push(("LargestAgent", "Bytes", json!(bytes)));
    }
    let milliseconds = u64::try_from(group.duration.as_millis()).unwrap_or(u64::MAX);
    metrics.push(("Duration", "Milliseconds", json!(milliseconds)));

    let definitions: Vec<Value> = metrics
        .iter()
        .map(|(name, unit, _)| json!({"Name": name, "Unit": unit}))
        .collect();
    let mut line = Map::new();
    line.insert(
        "_aws".to_owned(),
        json!({
            "Timestamp": now.0.saturating_mul(1000),
            "CloudWatchMetrics": [{
                "Namespace": NAMESPACE,
                "Dimensions": [["Application", "DeploymentGroup"]],
                "Metrics": definitions,
            }],
        }),
    );
    line.insert("Application".to_owned(), json!(group.name.application));
    line.insert(
        "DeploymentGroup".to_owned(),
        json!(group.name.deployment_group),
    );
    line.extend(
        metrics
            .into_iter()
            .map(|(name, _, value)| (name.to_owned(), value)),
    );
    Value::Object(line).to_string()
}

/// The largest agent before a restart, in KiB.
fn largest_agent(group: &GroupReport) -> Option<u64> {
    group
        .outcomes()
        .filter(|outcome| outcome.kind() == Kind::Restarted)
        .filter_map(|outcome| outcome.memory)
        .map(|memory| memory.before_kib)
        .max()
}

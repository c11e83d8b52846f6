//! The demo tells the truth: its table is the simulated world's own state.

use std::collections::BTreeMap;

use codedeploy_agent_restarter::Handled;
use sim::{Host, State};

#[path = "../examples/demo/screen.rs"]
#[expect(dead_code, reason = "only the table is looked at here")]
mod screen;
#[path = "../examples/demo/stage.rs"]
#[expect(dead_code, reason = "the plan and the progress are not looked at here")]
mod stage;

use stage::{Cast, Stage};

#[tokio::test(start_paused = true)]
async fn the_table_of_the_demo_is_the_state_of_the_world() {
    for (seed, instances, fail) in [(1, 24, 1), (2, 12, 4), (3, 37, 2)] {
        let cast = Cast {
            instances,
            fail,
            seed,
        };
        let event = serde_json::from_str(include_str!("../events/pipeline-succeeded.json"))
            .expect("the event is JSON");
        let stage = Stage::set(event, &cast);
        let before = stage.world.with(|state| memory(state));

        let (handled, _) = stage.deliver().await.expect("the event is handled");
        let Handled::Done(report) = handled else {
            panic!("the event is acted upon")
        };
        let shown = screen::table_lines(&stage::table(&report));

        let expected: Vec<String> = stage.world.with(|state| {
            let mut lines: Vec<String> = hosts(state)
                .into_iter()
                .map(|host| truth(state, &host, before[&host.id]))
                .collect();
            lines.sort();
            lines
        });
        let shown: Vec<String> = shown[1..]
            .iter()
            .map(|line| {
                // The name is no part of the comparison: a launching instance has none yet.
                let words: Vec<&str> = line.split_whitespace().collect();
                let from = usize::from(words[1].starts_with("web-")) + 1;
                let numbers = words[from + 1..]
                    .iter()
                    .take(4)
                    .filter(|word| **word != "MiB");
                let numbers: Vec<&str> = numbers.copied().take(2).collect();
                format!("{} {} {}", words[0], words[from], numbers.join(" "))
            })
            .collect();
        assert_eq!(shown, expected, "seed {seed}");
        assert_eq!(shown.len(), instances);
    }
}

/// What the table must say of a host: id, outcome, memory before and after.
fn truth(state: &State, host: &Host, before_kib: u64) -> String {
    let agent = &host.agent;
    let lifecycle = state
        .regions
        .values()
        .flat_map(|region| &region.auto_scaling_groups)
        .flat_map(|group| &group.instances)
        .find(|member| member.id == host.id)
        .map(|member| member.lifecycle.as_str());
    let commands = state.regions.values().flat_map(|region| &region.commands);
    let sent = commands
        .flat_map(|command| &command.invocations)
        .any(|invocation| invocation.instance_id == host.id);
    let outcome = match (lifecycle, host.ping.as_str()) {
        // The brake: after too many failures the rest is left alone.
        (Some("InService"), "Online") if !sent => "held-back",
        (Some("InService"), "Online") if agent.fault.is_some() => "failed",
        (Some("InService"), "Online") if agent.restarts.is_empty() => {
            assert!(!agent.busy.is_empty(), "only a busy agent is not restarted");
            "busy"
        }
        (Some("InService"), "Online") => {
            assert!(agent.running && agent.started_at > 0.0, "a new agent runs");
            "restarted"
        }
        (Some("InService"), _) => "unreachable",
        _ => "skipped",
    };
    if matches!(outcome, "unreachable" | "skipped" | "held-back") {
        assert!(agent.restarts.is_empty());
        return format!("{} {outcome} - -", host.id);
    }
    let mebibytes = |kib: u64| kib / 1024;
    let after_kib = if agent.running { agent.memory_kib } else { 0 };
    format!(
        "{} {outcome} {} {}",
        host.id,
        mebibytes(before_kib),
        mebibytes(after_kib)
    )
}

fn hosts(state: &State) -> Vec<Host> {
    state
        .regions
        .values()
        .flat_map(|region| region.hosts.clone())
        .collect()
}

fn memory(state: &State) -> BTreeMap<String, u64> {
    hosts(state)
        .into_iter()
        .map(|host| (host.id, host.agent.memory_kib))
        .collect()
}

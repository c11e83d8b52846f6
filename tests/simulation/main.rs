//! A deterministic simulation of the whole function: random fleets, settings, faults and deliveries over the
//! simulated AWS in virtual time, and an oracle that judges each run by what the world saw and did.
//!
//! One seed is one run, the same each time. `cargo test` runs a few hundred. More, and one again with its trace:
//!
//! ```text
//! SIMULATION_SEEDS=20000 cargo test --profile simulation --test simulation -- --nocapture
//! SIMULATION_SEED=1234 cargo test --test simulation -- --nocapture
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `fleet` | random worlds |
//! | `weather` | faults of calls, and changes in mid-run |
//! | `deliveries` | Lambda's way of delivering events |
//! | `invariants` | the oracle, and in its folder what it judges, each in a file |
//! | `tally` | what occurred, and how often |

mod deliveries;
mod fleet;
mod invariants;
mod tally;
mod weather;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use deliveries::{Course, End};
use fleet::Scene;
use invariants::Violation;
use tally::Tally;

/// Seeds that run unless the environment says otherwise.
const SEEDS: u64 = 200;
/// So many seeds meet everything there is; fewer may miss the rare.
const ENOUGH: u64 = 20_000;
/// Seeds that a thread takes at once.
const BATCH: u64 = 20;
/// Failures that are told.
const TOLD: usize = 20;
/// Seeds whose traces are compared.
const TWICE: u64 = 6;

#[test]
fn every_invariant_holds_for_every_seed() {
    if let Some(seed) = number("SIMULATION_SEED") {
        return replay(seed);
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let first = number("SIMULATION_FIRST").unwrap_or(0);
    let began = now();
    let (tally, mut failures) = run(first..first + seeds);
    let took = began.elapsed();
    println!("{tally}");
    println!(
        "seeds {first} to {}: {:.1} s, {:.2} ms a seed",
        first + seeds - 1,
        took.as_secs_f64(),
        took.as_secs_f64() * 1000.0 / seeds as f64
    );
    let missing = tally.missing();
    println!("never occurred: {}", missing.join(", "));
    failures.sort_by_key(|(seed, _)| *seed);
    for (seed, violation) in failures.iter().take(TOLD) {
        println!("\n{}", told(*seed, violation));
    }
    let mut broken: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for (seed, violation) in &failures {
        broken.entry(violation.invariant).or_insert((0, *seed)).0 += 1;
    }
    for (invariant, (count, seed)) in broken {
        println!("broken in {count} seeds, first in {seed}: {invariant}");
    }
    assert!(
        failures.is_empty(),
        "{} violations, the first ones above",
        failures.len()
    );
    assert!(
        seeds < ENOUGH || missing.is_empty(),
        "some things never occurred: {missing:?}"
    );
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    if number("SIMULATION_SEED").is_some() {
        return;
    }
    for seed in 0..TWICE {
        let (once, again) = (trace(&play(seed).1), trace(&play(seed).1));
        let differs = once
            .lines()
            .zip(again.lines())
            .find(|(one, other)| one != other);
        assert!(once == again, "seed {seed}: {differs:?}");
    }
}

/// The command that a failure prints plays the same run, in a process of its own.
#[test]
fn a_seed_is_the_same_run_in_another_process() {
    if number("SIMULATION_SEED").is_some() {
        return;
    }
    let seed = TWICE;
    let itself = std::env::current_exe().expect("a test has a path");
    let played = std::process::Command::new(itself)
        .args(["every_invariant", "--nocapture"])
        .env("SIMULATION_SEED", seed.to_string())
        .output()
        .expect("a test can be started again");
    let here = trace(&play(seed).1);
    assert!(
        String::from_utf8_lossy(&played.stdout).contains(&here),
        "seed {seed} has another trace there: {played:?}"
    );
}

/// Runs the seeds on all processors.
fn run(seeds: std::ops::Range<u64>) -> (Tally, Vec<(u64, Violation)>) {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let (mut tally, mut failures) = (Tally::new(), Vec::new());
        loop {
            let from = next.fetch_add(BATCH, Ordering::Relaxed);
            if from >= seeds.end {
                return (tally, failures);
            }
            for seed in from..(from + BATCH).min(seeds.end) {
                let judged = catch_unwind(AssertUnwindSafe(|| {
                    let (scene, course) = play(seed);
                    tally.count(&scene, &course);
                    invariants::judge(&scene, &course)
                }));
                let found = judged.unwrap_or_else(|_| {
                    vec![Violation {
                        invariant: "0 nothing panics",
                        what: "a panic, whose message stands above".to_owned(),
                    }]
                });
                failures.extend(found.into_iter().map(|violation| (seed, violation)));
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = (Tally::new(), Vec::new());
        for thread in threads {
            let (tally, failures) = thread.join().expect("a thread catches its panics");
            all.0.join(tally);
            all.1.extend(failures);
        }
        all
    })
}

/// One run, from the drawing of its world to the end of everything in it.
fn play(seed: u64) -> (Scene, Course) {
    // The SDK's jitter.
    fastrand::seed(seed);
    let scene = Scene::draw(seed);
    let state = scene.state.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input and output can be built");
    let course = runtime.block_on(async { deliveries::happen(&scene, state).await });
    (scene, course)
}

/// Runs one seed and prints everything.
fn replay(seed: u64) {
    let (scene, course) = play(seed);
    println!("settings {:?}", scene.settings);
    println!("groups {:#?}", scene.groups);
    println!("faults {:?}", scene.state.faults);
    println!("conditions {:?}", scene.conditions);
    for change in &scene.changes {
        println!("change {change:?}");
    }
    for delivery in scene.tracks.iter().flatten() {
        println!("delivery {delivery:?}");
    }
    println!("{}", trace(&course));
    let found = invariants::judge(&scene, &course);
    for violation in &found {
        println!("\n{}", told(seed, violation));
    }
    assert!(found.is_empty(), "seed {seed} breaks an invariant");
}

fn told(seed: u64, violation: &Violation) -> String {
    format!(
        "seed {seed} breaks invariant {}\n  {}\n  SIMULATION_SEED={seed} cargo test --test simulation every_invariant -- --nocapture",
        violation.invariant, violation.what
    )
}

/// Everything that was said and done, by time.
fn trace(course: &Course) -> String {
    let mut lines: Vec<(f64, String)> = Vec::new();
    course.world.read(|state, calls| {
        for call in calls {
            let error = call.error.as_deref().unwrap_or_default();
            let line = format!(
                "{} {} {} attempt {}: {} {error} {}",
                &call.access_key[4..],
                call.region,
                call.operation,
                call.attempt,
                call.status,
                call.params
            );
            lines.push((call.at, line));
        }
        for (name, region) in &state.regions {
            for command in &region.commands {
                for ran in &command.invocations {
                    let line = format!("{name} command {} {ran:?}", command.id);
                    lines.push((ran.ended_at.unwrap_or(command.sent_at), line));
                }
            }
            for host in &region.hosts {
                for restart in &host.agent.restarts {
                    lines.push((*restart, format!("{name} {} restarted", host.id)));
                }
            }
        }
    });
    for run in &course.invocations {
        lines.push((run.began, format!("{} begins", &run.key[4..])));
        let end = match &run.end {
            End::Reported(_, answer) => answer.to_string(),
            End::Failed(kind) => (*kind).to_owned(),
            End::Ignored => "ignored".to_owned(),
            End::Lost => "lost".to_owned(),
            End::OutOfTime => "out of time".to_owned(),
        };
        lines.push((run.ended, format!("{} ends: {end}", &run.key[4..])));
    }
    lines.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut trace = String::new();
    for (at, line) in lines {
        let _ = writeln!(trace, "{at:>12.6} {line}");
    }
    trace
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long and what to run is said from outside"
)]
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable)
        .ok()
        .filter(|text| !text.is_empty())?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is {text:?}: give a number")),
    )
}

#[expect(
    clippy::disallowed_methods,
    reason = "the simulation's own speed, not the function's time"
)]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

//! What the function is made of, as one line of JSON on standard output, so that checks in other languages need not
//! read its source: `cargo test --test facts -- --nocapture`. `tests/template/facts.py` reads it.

use codedeploy_agent_restarter::clock::{RESERVE, Timestamp};
use codedeploy_agent_restarter::document::{Parameters, Verdict};
use codedeploy_agent_restarter::kind::{Kind, Severity};
use codedeploy_agent_restarter::settings::Settings;
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    /// The version of this form.
    facts: u32,
    settings: Vec<Setting>,
    parameters: Vec<Parameter>,
    simulated_parameters: Vec<&'static str>,
    results: Vec<Outcome>,
    outcomes: Vec<Word>,
    reserve_seconds: u64,
}

#[derive(Serialize)]
struct Setting {
    variable: &'static str,
    default: Option<&'static str>,
    accepted: &'static str,
}

/// A parameter that the function sends, and the default that the simulated Systems Manager knows for it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Parameter {
    name: &'static str,
    sim_default: Option<&'static str>,
}

/// A result of the scripts.
#[derive(Serialize)]
struct Outcome {
    word: &'static str,
    code: u8,
    outcome: Kind,
    severity: Severity,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Word {
    word: &'static str,
    needs_attention: bool,
}

#[test]
fn what_the_function_is_made_of() {
    let sent = Parameters {
        triggered_at: Timestamp(0),
        sent_at: Timestamp(0),
        busy_wait_seconds: 0,
        min_memory_mib: 0,
    };
    let simulated = |name| sim::PARAMETERS.iter().find(|(known, _)| *known == name);
    let facts = Facts {
        facts: 1,
        settings: Settings::ALL
            .map(|setting| Setting {
                variable: setting.variable,
                default: setting.default,
                accepted: setting.accepted,
            })
            .into(),
        parameters: sent
            .pairs()
            .map(|(name, _)| Parameter {
                name,
                sim_default: simulated(name).and_then(|(_, default)| *default),
            })
            .into(),
        simulated_parameters: sim::PARAMETERS.map(|(name, _)| name).into(),
        results: Verdict::ALL
            .iter()
            .map(|verdict| Outcome {
                word: verdict.word(),
                code: verdict.code(),
                outcome: verdict.kind(),
                severity: verdict.severity(),
            })
            .collect(),
        outcomes: Kind::ALL
            .iter()
            .map(|kind| Word {
                word: kind.word(),
                needs_attention: kind.needs_attention(),
            })
            .collect(),
        reserve_seconds: RESERVE.as_secs(),
    };
    // Systems Manager would reboot the host.
    assert!(facts.results.iter().all(|result| result.code != 194));
    println!(
        "\n{}",
        serde_json::to_string(&facts).expect("facts are plain data")
    );
}

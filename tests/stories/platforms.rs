//! One restart document for Linux and one for Windows: who is sent which, and who none.

use serde_json::{Value, json};
use sim::{AgentFault, DOCUMENT, DocumentKind, WINDOWS_DOCUMENT};

use super::support::{REGION, Story, commands, event, id, most_at_once};

/// A fleet in which these are of that platform.
fn fleet(instances: usize, platform: &str, which: &[usize]) -> Story {
    Story::of(instances).given(|state| {
        for n in which {
            state.host(&id(*n)).platform = platform.to_owned();
        }
    })
}

/// The document of each command that was accepted, and whom it went to.
fn sent(story: &Story) -> Vec<(String, Vec<String>)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    commands(story)
        .iter()
        .map(|params| {
            let ids = params["InstanceIds"].as_array().expect("ids");
            (
                text(&params["DocumentName"]),
                ids.iter().map(text).collect(),
            )
        })
        .collect()
}

fn to(document: &str, numbers: &[usize]) -> (String, Vec<String>) {
    let ids = numbers.iter().map(|n| id(*n));
    (document.to_owned(), ids.collect())
}

#[tokio::test(start_paused = true)]
async fn a_mixed_fleet_gets_one_command_for_each_platform_with_its_document() {
    let story = fleet(5, "Windows", &[2, 4])
        .given(|state| state.host(&id(4)).agent.fault = Some(AgentFault::AgentDown));
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"failed": 1, "restarted": 4}));
    let expected = [to(DOCUMENT, &[1, 3, 5]), to(WINDOWS_DOCUMENT, &[2, 4])];
    assert_eq!(sent(&story), expected);
}

#[tokio::test(start_paused = true)]
async fn both_platforms_share_the_window_and_few_commands_do() {
    let story = fleet(10, "Windows", &[1, 4, 6, 9]).setting("MAX_CONCURRENCY", "4");
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 10}));
    assert_eq!(most_at_once(&story.flights()), 4);
    let expected = [
        to(DOCUMENT, &[2, 3, 5, 7]),
        to(DOCUMENT, &[8, 10]),
        to(WINDOWS_DOCUMENT, &[1, 4]),
        to(WINDOWS_DOCUMENT, &[6, 9]),
    ];
    assert_eq!(sent(&story), expected);
}

#[tokio::test(start_paused = true)]
async fn a_platform_whose_document_the_region_lacks_does_not_hold_back_the_other() {
    let documents = [(DOCUMENT, 3, 2), (WINDOWS_DOCUMENT, 2, 3)];
    for (missing, held_back, restarted) in documents {
        let story = fleet(5, "Windows", &[1, 4])
            .setting("MAX_CONCURRENCY", "1")
            .given(|state| {
                let documents = &mut state.region(REGION).documents;
                documents.retain(|document| document.name != missing);
            });
        let told = story.run().await;
        let expected = json!({"held-back": held_back, "restarted": restarted});
        assert_eq!(told.counts(), &expected, "without {missing}");
        // Asked for once.
        let refused = story.count("SendCommand") - commands(&story).len();
        assert_eq!(refused, 1, "without {missing}");
        let problem = &told.group()["problem"];
        assert_eq!(problem["code"], "InvalidDocument");
        let remedy = problem["remedy"].to_string();
        assert!(remedy.contains(missing), "{remedy}");
    }
}

#[tokio::test(start_paused = true)]
async fn windows_without_a_document_is_held_back_and_the_others_are_restarted() {
    let story = fleet(3, "Windows", &[2]).setting("WINDOWS_DOCUMENT_NAME", "");
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 1, "restarted": 2}));
    let detail = &told.attention(&id(2))["detail"];
    insta::assert_snapshot!(detail.to_string(), @r#""platform Windows: no restart document is set for it""#);
    assert_eq!(told.group().get("problem"), None);
    assert_eq!(sent(&story), [to(DOCUMENT, &[1, 3])]);
    let mail = story.body("email");
    assert!(mail.contains("WINDOWS_DOCUMENT_NAME"), "{mail}");
}

#[tokio::test(start_paused = true)]
async fn a_platform_that_has_no_document_is_held_back_by_name() {
    for platform in ["MacOS", ""] {
        let story = fleet(2, platform, &[1]);
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"held-back": 1, "restarted": 1}));
        assert_eq!(sent(&story), [to(DOCUMENT, &[2])]);
        let plan = story.event(&event("dry-run")).await.group()["plan"][0].clone();
        assert_eq!(plan["decision"], "held-back");
        assert_eq!(plan["reason"], told.attention(&id(1))["detail"]);
    }
    let told = fleet(1, "MacOS", &[1]).run().await;
    let detail = &told.attention(&id(1))["detail"];
    insta::assert_snapshot!(detail.to_string(), @r#""platform MacOS: there is no restart document for it""#);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_asked_about_again_is_sent_its_own_document() {
    // The second one's lifecycle state is old when its turn comes; the third is offline at first.
    let story = fleet(3, "Windows", &[2, 3])
        .setting("MAX_CONCURRENCY", "1")
        .given(|state| {
            state.host(&id(1)).agent.restart_seconds = 120.0;
            state.host(&id(3)).ping = "ConnectionLost".to_owned();
        });
    let comes_back = async {
        while sent(&story).is_empty() {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        let online = |state: &mut sim::State| state.host(&id(3)).ping = "Online".to_owned();
        story.world.with(online);
    };
    let (told, ()) = tokio::join!(story.run(), comes_back);
    assert_eq!(told.counts(), &json!({"restarted": 3}));
    let expected = [
        to(DOCUMENT, &[1]),
        to(WINDOWS_DOCUMENT, &[2]),
        to(WINDOWS_DOCUMENT, &[3]),
    ];
    assert_eq!(sent(&story), expected);
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_names_the_other_platform_s_document_is_told_and_harms_nobody() {
    let story = fleet(3, "Windows", &[2]).given(|state| {
        for document in &mut state.region(REGION).documents {
            document.kind = DocumentKind::RestartWindowsAgent;
        }
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"held-back": 2, "restarted": 1}));
    let problem = &told.group()["problem"];
    assert_eq!(problem["code"], "UnsupportedPlatformType");
    let remedy = problem["remedy"].to_string();
    assert!(remedy.contains("DOCUMENT_NAME"), "{remedy}");
}

//! What the end of an invocation means.

use serde_json::json;
use sim::{AgentFault, Answer, Host, Lost, SsmAgentFault};

use super::support::{Story, Told, id};

/// Ten instances, two at a time; something is the matter with the first two. By default one failure of ten is allowed,
/// and a second one stops the sending.
async fn two_of_ten(what: impl Fn(&mut Host)) -> (Story, Told) {
    let story = Story::of(10)
        .setting("MAX_CONCURRENCY", "2")
        .given(|state| {
            for n in 1..=10 {
                // In the middle of a long poll five rounds would not fit beside a long wait.
                state.host(&id(n)).agent.restart_seconds = 5.0;
            }
            [1, 2].into_iter().for_each(|n| what(state.host(&id(n))));
        });
    let told = story.run().await;
    (story, told)
}

/// One instance, of which Systems Manager reports this verbatim.
async fn answered(status: &str, details: &str, output: Option<&str>, code: i64) -> (Story, Told) {
    let story = Story::of(1).given(|state| {
        state.host(&id(1)).answer = Some(Answer {
            status: status.to_owned(),
            status_details: Some(details.to_owned()),
            output: output.map(str::to_owned),
            response_code: Some(code),
        });
    });
    let told = story.run().await;
    (story, told)
}

#[tokio::test(start_paused = true)]
async fn each_result_of_the_document_has_its_outcome_and_severity() {
    use AgentFault::{
        AgentDown, AgentUnhealthy, Deaf, Draining, NotRoot, OldAgentSurvived, PreflightFailed,
        ProgramAway, ServiceManagerFailed, UnknownAgent,
    };
    for (fault, outcome, severity, code) in [
        (NotRoot, "failed", "warning", 11),
        (PreflightFailed, "failed", "warning", 12),
        (ProgramAway, "failed", "warning", 12),
        (UnknownAgent, "failed", "warning", 12),
        (ServiceManagerFailed, "failed", "critical", 30),
        (OldAgentSurvived, "failed", "warning", 31),
        (AgentDown, "failed", "critical", 32),
        (AgentUnhealthy, "failed", "warning", 33),
        (Deaf, "failed", "warning", 33),
        (Draining, "busy", "warning", 34),
    ] {
        let story = Story::of(2).given(|state| {
            let agent = &mut state.host(&id(1)).agent;
            agent.fault = Some(fault);
            if fault == Draining {
                // It begins after the quiet looks, while the restart is under way.
                agent.busy = vec![[12.0, 400.0]];
            }
        });
        let told = story.run().await;
        let row = told.attention(&id(1));
        assert_eq!(row["outcome"], outcome, "{fault:?}: {row:#}");
        assert_eq!(row["severity"], severity, "{fault:?}");
        let detail = row["detail"].as_str().expect("text");
        assert!(
            detail.contains(&format!("code {code}")),
            "{fault:?}: {detail}"
        );
        assert!(row["commandId"].as_str().is_some_and(|id| id.len() == 36));
        assert_eq!(told.answer["severity"], severity);
        assert_eq!(told.answer["result"], "attention");
        assert_eq!(told.counts()["restarted"], 1);
        assert_eq!(story.message().attributes["severity"]["Value"], severity);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_not_installed_is_a_failure() {
    let story = Story::of(1).given(|state| state.host(&id(1)).agent.installed = false);
    let told = story.run().await;
    let detail = told.attention(&id(1))["detail"].to_string();
    assert!(detail.contains("not-installed (code 10"), "{detail}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_was_down_is_started() {
    let story = Story::of(1).given(|state| {
        let agent = &mut state.host(&id(1)).agent;
        agent.running = false;
        agent.memory_kib = 0;
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"started": 1}));
    assert!(story.world.with(|state| state.host(&id(1)).agent.running));
    assert!(story.silent());
}

#[tokio::test(start_paused = true)]
async fn an_agent_below_the_threshold_is_left_alone() {
    let story = Story::of(2)
        .setting("MIN_MEMORY_MIB", "100")
        .given(|state| {
            state.host(&id(1)).agent.memory_kib = 99 * 1024;
        });
    let told = story.run().await;
    assert_eq!(
        told.counts(),
        &json!({"below-threshold": 1, "restarted": 1})
    );
    let restarts = story
        .world
        .with(|state| state.host(&id(1)).agent.restarts.len());
    assert_eq!(restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_short_lifecycle_event_is_waited_for_and_a_long_one_is_busy() {
    let story = Story::of(2).given(|state| {
        state.host(&id(1)).agent.busy = vec![[-10.0, 60.0]];
        state.host(&id(2)).agent.busy = vec![[-10.0, 600.0]];
    });
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"busy": 1, "restarted": 1}));
    let detail = told.attention(&id(2))["detail"].to_string();
    assert!(detail.contains("busy (code 20"), "{detail}");
    story.world.with(|state| {
        assert!(state.host(&id(1)).agent.started_at > 60.0);
        assert!(state.host(&id(2)).agent.restarts.is_empty());
    });
}

#[tokio::test(start_paused = true)]
async fn a_running_update_is_busy() {
    let story = Story::of(1).given(|state| state.host(&id(1)).agent.updates = vec![[-10.0, 600.0]]);
    let told = story.run().await;
    let row = told.attention(&id(1));
    assert_eq!(row["outcome"], "busy");
    assert!(
        row["detail"].to_string().contains("update-running"),
        "{row}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_script_that_never_ends_is_timed_out() {
    let story =
        Story::of(2).given(|state| state.host(&id(1)).agent.fault = Some(AgentFault::Hangs));
    let told = story.run().await;
    assert_eq!(told.counts(), &json!({"restarted": 1, "timed-out": 1}));
}

#[tokio::test(start_paused = true)]
async fn output_that_follows_minutes_after_the_end_is_waited_for() {
    let (story, told) = two_of_ten(|host| host.ssm_agent.output_after = 250.0).await;
    assert_eq!(told.counts(), &json!({"restarted": 10}));
    assert!(story.silent());
    // A critical result is told as one, however late it is heard.
    let (_, told) = two_of_ten(|host| {
        host.ssm_agent.output_after = 90.0;
        host.agent.fault = Some(AgentFault::AgentDown);
    })
    .await;
    assert_eq!(told.answer["severity"], "critical");
    assert_eq!(told.counts()["failed"], 2);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_stays_without_output_is_unfinished_after_300_seconds_and_stops_nobody() {
    for (lost, status) in [(Lost::Output, "Success"), (Lost::Steps, "Failed")] {
        let (story, told) = two_of_ten(|host| {
            host.ssm_agent.output_lost = Some(lost);
            if status == "Failed" {
                host.agent.fault = Some(AgentFault::PreflightFailed);
            }
        })
        .await;
        assert_eq!(
            told.counts(),
            &json!({"restarted": 8, "unfinished": 2}),
            "{lost:?}"
        );
        let detail = told.attention(&id(1))["detail"].to_string();
        assert!(
            detail.contains(status) && detail.contains("no output"),
            "{detail}"
        );
        let flights = story.flights();
        let waited = flights[2].sent - flights[1].ended.expect("it ended");
        assert!((300.0..312.0).contains(&waited), "{waited} s");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_ssm_agent_could_not_run_is_undelivered_and_stops_nobody() {
    use SsmAgentFault::{Booted, NoExec, NoPlugin, NoShell, NoSpace, ScriptGone, WorkerLost};
    for (platform, fault, said) in [
        ("Linux", NoExec, "_script.sh: Permission denied"),
        ("Linux", ScriptGone, "_script.sh: not found"),
        ("Linux", NoSpace, "no space left on device"),
        ("Linux", NoShell, "cannot allocate memory"),
        ("Linux", NoPlugin, "aws:runShellScript not found"),
        ("Linux", WorkerLost, "document worker timed out"),
        ("Linux", Booted, "received timeout signal"),
        ("Windows", NoExec, "scripts is disabled"),
        ("Windows", ScriptGone, "malicious content"),
        ("Windows", NoSpace, "not enough space on the disk"),
        ("Windows", NoShell, "blocked by group policy"),
        ("Windows", NoPlugin, "aws:runPowerShellScript not found"),
        ("Windows", WorkerLost, "document worker timed out"),
        ("Windows", Booted, "received timeout signal"),
    ] {
        let (story, told) = two_of_ten(|host| {
            host.platform = platform.to_owned();
            host.ssm_agent.fault = Some(fault);
        })
        .await;
        assert_eq!(
            told.counts(),
            &json!({"restarted": 8, "undelivered": 2}),
            "{platform}: {fault:?}"
        );
        let detail = told.attention(&id(2))["detail"].to_string();
        assert!(
            detail.contains("host says: ") && detail.contains(said),
            "{detail}"
        );
        let mail = story.body("email");
        assert!(
            mail.contains("let the SSM Agent there run scripts"),
            "{mail}"
        );
    }
}

/// What the simulated ones do not say; some of it once in years.
#[tokio::test(start_paused = true)]
async fn whatever_the_ssm_agent_says_of_a_script_that_was_not_started_is_its_own() {
    let error = "\n----------ERROR-------\n";
    let script =
        r"C:\ProgramData\Amazon\SSM\InstanceData\i-1\document\orchestration\x\windows\_script.ps1";
    for (code, output) in [
        // As people reported it.
        (
            1,
            "failed to run commands: failed to write output file: no space left on device"
                .to_owned(),
        ),
        (
            1,
            format!("{error}failed to create orchestrationDir directory, /var/lib/amazon/ssm/i-1"),
        ),
        (
            1,
            format!(
                "{error}failed to create script file. couldn't write into file - open {script}: Access is denied."
            ),
        ),
        (
            1,
            format!(
                "{error}failed to run commands: exec: \"sh\": executable file not found in $PATH"
            ),
        ),
        (
            1,
            format!(
                "{error}failed to run commands: fork/exec /bin/sh: resource temporarily unavailable"
            ),
        ),
        (
            1,
            format!("{error}failed to run commands: open /dev/null: too many open files"),
        ),
        (
            1,
            format!("{error}failed to run commands: open NUL: Access is denied."),
        ),
        (
            1,
            format!("{error}failed to run commands: pipe2: too many open files"),
        ),
        // A policy allows the file, and no method in it.
        (
            1,
            format!(
                "{error}Cannot invoke method. Method invocation is supported only on core types in this language mode.\r\n\
                 At {script}:36 char:3\r\n+   [System.Diagnostics.Stopwatch]::GetTimestamp()\r\n    + CategoryInfo          : \
                 InvalidOperation: (:) [], RuntimeException\r\n    + FullyQualifiedErrorId : \
                 MethodInvocationNotSupportedInConstrainedLanguag\r\n   e\r\n \r\nfailed to run commands: exit status 1"
            ),
        ),
        // Its banner is on standard output.
        (
            -196_608,
            format!(
                "Windows PowerShell\r\nCopyright (C) Microsoft Corporation. All rights reserved.\r\n{error}The argument \
                 '{script}' to the -File parameter does not exist.\r\nfailed to run commands: exit status 0xfffd0000"
            ),
        ),
        (
            -65_536,
            format!(
                "{error}I\0n\0t\0e\0r\0n\0a\0l\0failed to run commands: exit status 0xffff0000"
            ),
        ),
    ] {
        let (_, told) = answered("Failed", "Failed", Some(&output), code).await;
        assert_eq!(told.counts(), &json!({"undelivered": 1}), "{output}");
    }
    // Without a word of PowerShell's: its exit code alone, as Go's versions write it.
    for (code, outcome) in [
        ("0xffff0000", "undelivered"),
        ("4294901760", "undelivered"),
        ("0xfffd0000", "undelivered"),
        ("4294770688", "undelivered"),
        ("0xc0000142", "undelivered"),
        ("3221225794", "undelivered"),
        ("0xffffffff", "failed"),
        ("1", "failed"),
    ] {
        let output = format!("{error}failed to run commands: exit status {code}");
        let (_, told) = answered("Failed", "Failed", Some(&output), 1).await;
        assert_eq!(told.counts(), &json!({outcome: 1}), "{output}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_other_text_is_taken_for_the_ssm_agent_s_own() {
    let file = "/var/lib/amazon/ssm/i-1/document/orchestration/x/linux/_script.sh";
    let error = "\n----------ERROR-------\n";
    let id = "\r\n    + FullyQualifiedErrorId : ";
    let line = r#"{"agentRestart":1,"result":"agent-down","code":32,"agentVersion":"v","memoryBeforeKiB":1,"memoryAfterKiB":0,"seconds":1,"detail":"tar: no space left on device"}"#;
    for (status, code, output) in [
        ("Failed", 126, "a hook: Permission denied".to_owned()),
        (
            "Failed",
            126,
            format!("sh: 0: cannot open {file}: Permission denied"),
        ),
        (
            "Failed",
            1,
            format!("{error}sh: 0: cannot open {file}: Permission denied"),
        ),
        (
            "Failed",
            127,
            format!(
                "{error}{file}: 7: systemctl: not found\nfailed to run commands: exit status 127"
            ),
        ),
        (
            "Failed",
            126,
            format!("{error}sh: 1: /opt/hooks/_script.sh: Permission denied"),
        ),
        (
            "Failed",
            1,
            "tar: x: Cannot write: No space left on device".to_owned(),
        ),
        ("Failed", 1, "cp: no space left on device".to_owned()),
        (
            "Failed",
            1,
            "the hook said: document process failed unexpectedly: x".to_owned(),
        ),
        (
            "Failed",
            1,
            "document process failed unexpectedly: x\nand more".to_owned(),
        ),
        (
            "Success",
            0,
            "document process failed unexpectedly: x".to_owned(),
        ),
        // The script had ended, as what it says, before its worker was lost.
        (
            "Failed",
            32,
            "document process failed unexpectedly: x".to_owned(),
        ),
        (
            "Failed",
            1,
            format!("{error}failed to run commands: signal: killed"),
        ),
        (
            "Failed",
            1,
            format!("{error}failed to run commands: exit status 1"),
        ),
        ("Failed", 1, "Plugin with name x was not found".to_owned()),
        (
            "Failed",
            1,
            "failed to run commands: fork/exec /bin/x: cannot allocate memory\nand more".to_owned(),
        ),
        // What a script's own command may not do, and another script that is not allowed.
        (
            "Failed",
            1,
            format!("{error}C:\\x\\_script.ps1 : Access denied{id}UnauthorizedAccessException"),
        ),
        (
            "Failed",
            1,
            format!("{error}C:\\hooks\\stop.ps1 cannot be loaded{id}UnauthorizedAccess"),
        ),
        (
            "Failed",
            1,
            format!("a line{error}C:\\x\\_script.ps1 cannot be loaded{id}UnauthorizedAccess"),
        ),
        (
            "Failed",
            32,
            format!("{line}\n{error}failed to run commands: exit status 32"),
        ),
    ] {
        let (_, told) = answered(status, status, Some(&output), code).await;
        assert_eq!(told.counts(), &json!({"failed": 1}), "{output}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_counts_though_the_script_s_process_group_was_ended_behind_it() {
    let ended = Some(SsmAgentFault::GroupEnded);
    let (_, told) = two_of_ten(|host| host.ssm_agent.fault = ended).await;
    assert_eq!(told.counts(), &json!({"restarted": 10}));
    let (_, told) = two_of_ten(|host| {
        host.ssm_agent.fault = ended;
        host.agent.fault = Some(AgentFault::AgentDown);
    })
    .await;
    assert_eq!(told.attention(&id(1))["severity"], "critical");
}

#[tokio::test(start_paused = true)]
async fn a_script_that_the_kernel_kills_is_timed_out_and_what_it_said_is_shown() {
    for (fault, shown) in [
        (SsmAgentFault::KilledBefore, false),
        (SsmAgentFault::KilledAfter, true),
    ] {
        let story = Story::of(2).given(|state| state.host(&id(1)).ssm_agent.fault = Some(fault));
        let told = story.run().await;
        assert_eq!(told.counts(), &json!({"restarted": 1, "timed-out": 1}));
        let detail = told.attention(&id(1))["detail"].to_string();
        assert_eq!(detail.contains("host says: "), shown, "{detail}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_cancelled_on_one_host_is_cancelled_there() {
    let cancelled = Some(SsmAgentFault::Cancelled);
    let (_, told) = two_of_ten(|host| host.ssm_agent.fault = cancelled).await;
    assert_eq!(told.counts(), &json!({"cancelled": 2, "restarted": 8}));
}

#[tokio::test(start_paused = true)]
async fn the_line_comes_first_so_that_others_errors_cut_nothing_of_it() {
    let (_, told) = two_of_ten(|host| host.ssm_agent.noise = 4_000).await;
    assert_eq!(told.counts(), &json!({"restarted": 10}));
    let (_, told) = two_of_ten(|host| {
        host.ssm_agent.noise = 4_000;
        host.agent.fault = Some(AgentFault::AgentUnhealthy);
    })
    .await;
    let detail = told.attention(&id(1))["detail"].to_string();
    assert!(detail.contains("agent-unhealthy (code 33"), "{detail}");
}

#[tokio::test(start_paused = true)]
async fn output_that_is_not_the_document_s_line_is_a_failure_that_shows_it() {
    let restarted = r#"{"agentRestart":1,"result":"restarted","code":0,"agentVersion":"v","memoryBeforeKiB":1,"memoryAfterKiB":1,"seconds":1,"detail":""}"#;
    let cut = &restarted[..60];
    for (status, output, code, shown) in [
        ("Success", "done", 0, "done"),
        ("Failed", "sh: 1: not found", 127, "sh: 1: not found"),
        ("Success", cut, 0, "no valid JSON"),
        (
            "Success",
            &restarted.replace(":1,\"result", ":2,\"result"),
            0,
            "version 2",
        ),
        (
            "Success",
            &restarted.replace("restarted", "rebooted"),
            0,
            "rebooted",
        ),
        (
            "Success",
            &restarted.replace("\"code\":0", "\"code\":33"),
            33,
            "code 33",
        ),
        ("Success", restarted, 1, "exit code 1"),
        ("Failed", restarted, 0, "Systems Manager says Failed"),
        (
            "Success",
            &restarted.replace("\"code\":0", "\"code\":\"0\""),
            0,
            "no valid JSON",
        ),
    ] {
        let (story, told) = answered(status, status, Some(output), code).await;
        let row = told.attention(&id(1));
        assert_eq!(row["outcome"], "failed", "{output}");
        let detail = row["detail"].as_str().expect("text");
        assert!(detail.contains(shown), "{detail:?} should show {shown:?}");
        assert!(story.body("email").contains(shown));
    }
}

#[tokio::test(start_paused = true)]
async fn the_line_is_found_behind_other_output() {
    let output = "a banner of the shell\n{\"agentRestart\":1,\"result\":\"restarted\",\"code\":0,\"agentVersion\":\"v\",\"memoryBeforeKiB\":9,\"memoryAfterKiB\":4,\"seconds\":1,\"detail\":\"\"}\n";
    let (_, told) = answered("Success", "Success", Some(output), 0).await;
    assert_eq!(told.counts(), &json!({"restarted": 1}));
}

#[tokio::test(start_paused = true)]
async fn each_end_without_output_has_its_outcome_however_it_is_spelt() {
    for (status, details, outcome) in [
        ("TimedOut", "DeliveryTimedOut", "undelivered"),
        ("TimedOut", "Delivery Timed Out", "undelivered"),
        ("Failed", "Undeliverable", "undelivered"),
        ("Cancelled", "Terminated", "undelivered"),
        ("Failed", "Terminated", "undelivered"),
        ("Failed", "AccessDenied", "undelivered"),
        ("Failed", "InvalidPlatform", "undelivered"),
        ("TimedOut", "ExecutionTimedOut", "timed-out"),
        ("TimedOut", "Execution Timed Out", "timed-out"),
        ("TimedOut", "SomethingNew", "timed-out"),
        ("Cancelled", "Cancelled", "cancelled"),
        ("Cancelled", "Canceled", "cancelled"),
        ("Failed", "ExecutionTimedOut", "timed-out"),
        ("Failed", "Cancelled", "cancelled"),
        ("Failed", "SomethingNew", "unfinished"),
        ("Success", "SomethingNew", "unfinished"),
    ] {
        let (story, told) = answered(status, details, None, -1).await;
        let row = told.attention(&id(1));
        assert_eq!(row["outcome"], outcome, "{status}/{details}");
        let detail = row["detail"].to_string();
        assert!(detail.contains(details), "{detail} should show {details}");
        assert_eq!(story.message().attributes["result"]["Value"], "attention");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_status_is_no_end_and_never_a_success() {
    let (story, told) = answered("Meditating", "Meditating", None, 0).await;
    let row = told.attention(&id(1));
    assert_eq!(row["outcome"], "unfinished");
    assert!(row["detail"].to_string().contains("Meditating"), "{row}");
    assert!(row["commandId"].is_string());
    assert!(!story.silent());
}

#[tokio::test(start_paused = true)]
async fn the_document_s_line_counts_whatever_the_details_are_called() {
    let line = r#"{"agentRestart":1,"result":"agent-down","code":32,"agentVersion":"v","memoryBeforeKiB":9,"memoryAfterKiB":0,"seconds":1,"detail":"gone"}"#;
    for details in ["", "Failed", "FailedOnHost"] {
        let (_, told) = answered("Failed", details, Some(line), 32).await;
        let row = told.attention(&id(1));
        assert_eq!(row["severity"], "critical", "{details}: {row:#}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_on_which_another_restart_hangs_is_busy() {
    let story = Story::of(1)
        .timeout(400)
        .setting("BUSY_WAIT_SECONDS", "30")
        .given(|state| state.host(&id(1)).agent.fault = Some(AgentFault::Hangs));
    let (first, second) = tokio::join!(story.run(), story.run());
    let outcomes = [&first, &second].map(|told| told.attention(&id(1)).to_string());
    let busy = outcomes
        .iter()
        .find(|row| row.contains("restart-running"))
        .unwrap_or_else(|| panic!("one meets the other's lock: {outcomes:?}"));
    assert!(busy.contains("code 22"), "{busy}");
}

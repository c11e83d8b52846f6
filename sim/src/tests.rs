//! The world as its callers meet it, through the wire, in virtual time.

use std::time::Duration;

use serde_json::{Value, json};

use crate::wire::{Request, Service};
use crate::{
    AgentFault, Answer, DEPLOYMENT, DOCUMENT, Deployment, Document, DocumentKind, Fault, Host, Job,
    JobKind, Lost, SsmAgentFault, State, TOPIC, WINDOWS_DOCUMENT, World, instance_id, managed_id,
};

const REGION: &str = "us-east-1";
const EXECUTION: &str = "12345678-1234-5678-abcd-12345678abcd";
/// The world's start, in epoch seconds.
const START: f64 = 1_764_025_200.0;

fn world(instances: usize) -> World {
    changed(instances, |_| {})
}

fn changed(instances: usize, change: impl FnOnce(&mut State)) -> World {
    let mut state = State::for_pipeline("myPipeline", EXECUTION, REGION, instances);
    change(&mut state);
    World::new(state, START)
}

/// A host like the others but for what `change` does to it.
fn one_host(change: impl FnOnce(&mut Host)) -> World {
    changed(1, |state| change(state.host(&instance_id(1))))
}

fn request(service: Service, operation: &str, params: &Value) -> Request {
    let (mut headers, body) = match service.protocol() {
        crate::wire::Protocol::Json { target } => (
            vec![
                ("x-amz-target", format!("{target}.{operation}")),
                ("content-type", "application/x-amz-json-1.1".to_owned()),
            ],
            params.to_string(),
        ),
        crate::wire::Protocol::Query { version, .. }
        | crate::wire::Protocol::Ec2Query { version, .. } => {
            let fields = params
                .as_object()
                .unwrap()
                .iter()
                .map(|(key, value)| format!("&{key}={}", value.as_str().unwrap()));
            (
                Vec::new(),
                format!(
                    "Action={operation}&Version={version}{}",
                    fields.collect::<String>()
                ),
            )
        }
    };
    let scope = format!(
        "AWS4-HMAC-SHA256 Credential=AK/20251124/{REGION}/{}/aws4_request",
        service.name()
    );
    headers.push(("authorization", scope));
    let headers = headers
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    Request {
        method: "POST".to_owned(),
        path: "/".to_owned(),
        headers,
        body,
    }
}

/// The answer to a JSON call: what it says, or the error's code.
fn call(world: &World, service: Service, operation: &str, params: Value) -> Result<Value, String> {
    let reply = world
        .exchange(&request(service, operation, &params))
        .unwrap();
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    if reply.status == 200 {
        return Ok(body);
    }
    assert_eq!(
        reply.headers["x-amzn-errortype"], body["__type"],
        "header and body agree"
    );
    Err(body["__type"].as_str().unwrap().to_owned())
}

fn ssm(world: &World, operation: &str, params: Value) -> Result<Value, String> {
    call(world, Service::Ssm, operation, params)
}

fn codedeploy(world: &World, operation: &str, params: Value) -> Result<Value, String> {
    call(world, Service::CodeDeploy, operation, params)
}

/// A query call's status and body.
fn query(world: &World, service: Service, operation: &str, params: Value) -> (u16, String) {
    let reply = world
        .exchange(&request(service, operation, &params))
        .unwrap();
    (reply.status, reply.body)
}

/// A command to some hosts, for a deployment that completed five seconds before the start.
fn command(world: &World, ids: &[String], more: Value) -> Value {
    let sent = world.now().floor();
    let mut parameters = json!({
        "triggeredAt": [format!("{}", START - 5.0)],
        "sentAt": [format!("{sent}")],
        "busyWaitSeconds": ["120"],
        "minMemoryMiB": ["0"],
        "executionTimeoutSeconds": ["570"],
    });
    for (name, value) in more.as_object().unwrap() {
        parameters[name] = json!([value]);
    }
    json!({ "DocumentName": DOCUMENT, "InstanceIds": ids, "Parameters": parameters, "TimeoutSeconds": 120 })
}

fn send(world: &World, ids: &[String], more: Value) -> String {
    let answer = ssm(world, "SendCommand", command(world, ids, more)).unwrap();
    let id = answer["Command"]["CommandId"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 36);
    id
}

async fn pass(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

fn invocations(world: &World, command: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut token = Value::Null;
    loop {
        let params = json!({ "CommandId": command, "Details": true, "NextToken": token });
        let answer = ssm(world, "ListCommandInvocations", params).unwrap();
        all.extend(
            answer["CommandInvocations"]
                .as_array()
                .unwrap()
                .iter()
                .cloned(),
        );
        token = answer["NextToken"].clone();
        if token.is_null() {
            return all;
        }
    }
}

/// One field of every invocation.
fn invocations_of(world: &World, command: &str, field: &str) -> Vec<Value> {
    let told = invocations(world, command);
    told.iter().map(|one| one[field].clone()).collect()
}

/// The script's line on the only instance, once the command has ended.
async fn line(world: &World, command: &str) -> Value {
    pass(700.0).await;
    let invocation = invocations(world, command).remove(0);
    let output = invocation["CommandPlugins"][0]["Output"]
        .as_str()
        .unwrap_or_else(|| panic!("{invocation}"));
    let line = output
        .lines()
        .next()
        .unwrap_or_else(|| panic!("{invocation}"));
    assert!(line.is_ascii() && line.len() <= 1000);
    serde_json::from_str(line).unwrap()
}

async fn result_of(world: &World, more: Value) -> (String, i64) {
    let id = send(world, &[instance_id(1)], more);
    let line = line(world, &id).await;
    (
        line["result"].as_str().unwrap().to_owned(),
        line["code"].as_i64().unwrap(),
    )
}

fn agent(world: &World) -> crate::Agent {
    world.with(|state| state.host(&instance_id(1)).agent.clone())
}

#[tokio::test(start_paused = true)]
async fn a_restart_changes_the_data_when_it_happens_and_says_so_later() {
    let world = world(1);
    let id = send(&world, &[instance_id(1)], json!({}));
    assert!(
        invocations(&world, &id).is_empty(),
        "invocations appear late"
    );
    pass(3.0).await;
    assert_eq!(invocations(&world, &id)[0]["Status"], "InProgress");
    assert_eq!(
        invocations(&world, &id)[0]["CommandPlugins"][0]["ResponseCode"],
        -1
    );
    // Delivered after 1 s, three looks 2 s apart, 35 s of restart: replaced at 40 s; its first poll has ended at 85 s.
    pass(36.0).await;
    assert!(agent(&world).restarts.is_empty());
    pass(2.0).await;
    assert_eq!(
        (agent(&world).started_at, agent(&world).memory_kib),
        (40.0, 52_224)
    );
    assert_eq!(invocations(&world, &id)[0]["Status"], "InProgress");
    pass(43.0).await;
    assert_eq!(invocations(&world, &id)[0]["Status"], "InProgress");
    pass(2.0).await;
    let ended = invocations(&world, &id).remove(0);
    assert_eq!(
        ended["CommandPlugins"][0]["Output"],
        "{\"agentRestart\":1,\"result\":\"restarted\",\"code\":0,\"agentVersion\":\"OFFICIAL_1.8.1-1_rpm\",\
         \"memoryBeforeKiB\":112640,\"memoryAfterKiB\":52224,\"seconds\":84,\"detail\":\"\"}\n"
    );
    assert_eq!(ended["CommandPlugins"][0]["Name"], "linux");
    assert_eq!(ended["CommandPlugins"].as_array().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_order_for_the_same_moment_touches_nothing() {
    let world = world(1);
    assert_eq!(
        result_of(&world, json!({})).await,
        ("restarted".to_owned(), 0)
    );
    assert_eq!(
        result_of(&world, json!({})).await,
        ("already-restarted".to_owned(), 0)
    );
    let later = format!("{}", world.now().floor());
    assert_eq!(
        result_of(&world, json!({ "triggeredAt": later })).await,
        ("restarted".to_owned(), 0)
    );
    assert_eq!(agent(&world).restarts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn freshness_compares_ages_and_not_clocks() {
    // The agent is 8 s old when the script begins, 1 s after sending; the deployment completed 10 s before, or 5 s.
    // By a clock that is a day ahead it would be fresh each time, by one that is a day slow never.
    for skew in [86_400.0, -86_400.0] {
        for (ago, result) in [(10.0, "already-restarted"), (5.0, "restarted")] {
            let world = one_host(|host| {
                host.clock_skew = skew;
                host.agent.started_at = -7.0;
            });
            let moment = format!("{}", START - ago);
            let order = json!({ "triggeredAt": moment });
            assert_eq!(result_of(&world, order).await.0, result, "{skew} {ago}");
        }
    }
    // Both times from a clock that is a day ahead mean the same.
    let world = one_host(|host| host.agent.started_at = -7.0);
    let ahead = json!({ "triggeredAt": format!("{}", START + 86_390.0), "sentAt": format!("{}", START + 86_400.0) });
    assert_eq!(result_of(&world, ahead).await.0, "already-restarted");
    // A slow delivery makes the script more cautious, never less.
    let world = one_host(|host| {
        host.delivery_seconds = 60.0;
        host.agent.started_at = -7.0;
    });
    assert_eq!(
        result_of(
            &world,
            json!({ "triggeredAt": format!("{}", START - 10.0) })
        )
        .await
        .0,
        "restarted"
    );
}

#[tokio::test(start_paused = true)]
async fn a_hosts_clock_tells_when_its_steps_began_and_ended() {
    let world = one_host(|host| {
        host.clock_skew = -3600.0;
        host.agent.started_at = -4.0;
    });
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(60.0).await;
    let told = invocations(&world, &id).remove(0);
    let step = &told["CommandPlugins"][0];
    // Begun 1 s after sending; the agent is so young that its first poll is still to come.
    let (began, ended) = (START - 3599.0, START - 3600.0 + 41.0);
    assert_eq!(step["ResponseStartDateTime"], began);
    assert_eq!(step["ResponseFinishDateTime"], ended);
    assert_eq!(told["RequestedDateTime"], START, "Systems Manager's own");
}

#[tokio::test(start_paused = true)]
async fn each_fault_has_its_code_and_leaves_its_mark() {
    for (fault, result, code, running, restarts) in [
        (AgentFault::NotRoot, "not-root", 11, true, 0),
        (AgentFault::PreflightFailed, "preflight-failed", 12, true, 0),
        (
            AgentFault::ServiceManagerFailed,
            "service-manager-failed",
            30,
            false,
            0,
        ),
        (
            AgentFault::OldAgentSurvived,
            "old-agent-survived",
            31,
            true,
            0,
        ),
        (AgentFault::AgentDown, "agent-down", 32, false, 0),
        (AgentFault::AgentUnhealthy, "agent-unhealthy", 33, true, 1),
        (AgentFault::Deaf, "agent-unhealthy", 33, true, 1),
        (AgentFault::ProgramAway, "preflight-failed", 12, true, 0),
        (AgentFault::UnknownAgent, "preflight-failed", 12, true, 0),
        (AgentFault::Draining, "draining", 34, true, 1),
    ] {
        let world = one_host(|host| host.agent.fault = Some(fault));
        assert_eq!(
            result_of(&world, json!({})).await,
            (result.to_owned(), code)
        );
        let after = agent(&world);
        assert_eq!(
            (after.running, after.restarts.len()),
            (running, restarts),
            "{result}"
        );
        let failed = invocations(
            &world,
            &world.with(|state| state.region(REGION).commands[0].id.clone()),
        )
        .remove(0);
        assert_eq!(
            (
                &failed["Status"],
                &failed["CommandPlugins"][0]["ResponseCode"]
            ),
            (&json!("Failed"), &json!(code))
        );
        let output = failed["CommandPlugins"][0]["Output"].as_str().unwrap();
        assert!(output.ends_with(&format!(
            "\n\n----------ERROR-------\nfailed to run commands: exit status {code}"
        )));
    }
}

#[tokio::test(start_paused = true)]
async fn health_is_proven_before_an_agent_is_left_alone() {
    let fresh = |host: &mut Host| host.agent.started_at = -1.0;
    let crash_loop = one_host(|host| {
        fresh(host);
        host.agent.fault = Some(AgentFault::AgentUnhealthy);
    });
    assert_eq!(result_of(&crash_loop, json!({})).await.1, 33);
    assert!(agent(&crash_loop).restarts.is_empty());
    let deaf = one_host(|host| {
        fresh(host);
        host.agent.fault = Some(AgentFault::Deaf);
    });
    let id = send(&deaf, &[instance_id(1)], json!({}));
    let told = line(&deaf, &id).await;
    assert_eq!((&told["code"], &told["seconds"]), (&json!(33), &json!(12)));
    let detail = told["detail"].as_str().unwrap();
    assert!(detail.contains("does not hear the agent; log: Missing credentials"));
    assert!(agent(&deaf).restarts.is_empty());
    let dead = one_host(|host| {
        fresh(host);
        host.agent.running = false;
    });
    assert_eq!(result_of(&dead, json!({})).await.0, "started");
    let small = one_host(|host| host.agent.memory_kib = 60_000);
    assert_eq!(
        result_of(&small, json!({ "minMemoryMiB": "100" })).await.0,
        "below-threshold"
    );
    assert!(agent(&small).restarts.is_empty());
    // One that is small and not healthy has nothing to lose.
    let small_and_deaf = one_host(|host| {
        host.agent.memory_kib = 60_000;
        host.agent.fault = Some(AgentFault::Deaf);
    });
    let order = json!({ "minMemoryMiB": "100" });
    assert_eq!(result_of(&small_and_deaf, order).await.1, 33);
    assert_eq!(agent(&small_and_deaf).restarts.len(), 1);
    let absent = one_host(|host| host.agent.installed = false);
    assert_eq!(result_of(&absent, json!({})).await.1, 10);
}

#[tokio::test(start_paused = true)]
async fn a_busy_host_is_waited_for_within_patience() {
    let world = one_host(|host| host.agent.busy = vec![[0.0, 60.0]]);
    assert_eq!(result_of(&world, json!({})).await.0, "restarted");
    let began = agent(&world).restarts[0];
    assert!(
        began > 60.0 + 4.0 + 35.0,
        "three quiet looks come first: {began}"
    );
    let world = one_host(|host| host.agent.busy = vec![[0.0, 900.0]]);
    assert_eq!(result_of(&world, json!({})).await, ("busy".to_owned(), 20));
    let world = one_host(|host| host.agent.updates = vec![[0.0, 900.0]]);
    assert_eq!(
        result_of(&world, json!({ "busyWaitSeconds": "0" })).await,
        ("update-running".to_owned(), 21)
    );
    assert!(agent(&world).restarts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_changes_in_mid_run_counts() {
    let world = one_host(|host| host.agent.busy = vec![[0.0, 900.0]]);
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(30.0).await;
    world.with(|state| state.host(&instance_id(1)).agent.busy.clear());
    assert_eq!(line(&world, &id).await["result"], "restarted");
    let began = agent(&world).restarts[0];
    assert!((60.0..80.0).contains(&began), "{began}");
}

#[tokio::test(start_paused = true)]
async fn the_lock_keeps_two_runs_apart_and_the_second_decides_again() {
    let world = world(1);
    let first = send(&world, &[instance_id(1)], json!({}));
    let second = send(&world, &[instance_id(1)], json!({}));
    let third = send(
        &world,
        &[instance_id(1)],
        json!({ "busyWaitSeconds": "10" }),
    );
    assert_eq!(line(&world, &first).await["result"], "restarted");
    assert_eq!(line(&world, &second).await["result"], "already-restarted");
    assert_eq!(line(&world, &third).await["code"], 22);
    assert_eq!(agent(&world).restarts.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_draining_agent_is_replaced_when_its_busy_period_ends() {
    let world = one_host(|host| {
        host.agent.fault = Some(AgentFault::Draining);
        host.agent.busy = vec![[10.0, 400.0]];
    });
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(200.0).await;
    assert_eq!(
        invocations(&world, &id)[0]["CommandPlugins"][0]["ResponseCode"],
        34
    );
    assert!(agent(&world).restarts.is_empty());
    pass(300.0).await;
    assert_eq!(agent(&world).restarts, [400.0]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_replaced_during_the_quiet_looks_is_not_replaced_again() {
    // Somebody else restarts it while the script looks, at 3 s: then it is fresh, and has polled at 48 s.
    let world = world(1);
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(3.0).await;
    world.with(|state| state.host(&instance_id(1)).agent.started_at = 3.0);
    let told = line(&world, &id).await;
    assert_eq!(
        (&told["result"], &told["seconds"]),
        (&json!("already-restarted"), &json!(47))
    );
    assert!(agent(&world).restarts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn time_outs_are_ssms_own() {
    let world = one_host(|host| host.offline = true);
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(689.0).await;
    let open = invocations(&world, &id).remove(0);
    assert_eq!(
        (&open["Status"], &open["StatusDetails"]),
        (&json!("Delayed"), &json!("Delayed"))
    );
    assert_eq!(open["CommandPlugins"][0]["StatusDetails"], "Pending");
    pass(2.0).await;
    let late = invocations(&world, &id).remove(0);
    assert_eq!(
        (&late["Status"], &late["StatusDetails"]),
        (&json!("TimedOut"), &json!("DeliveryTimedOut"))
    );

    let world = one_host(|host| host.agent.fault = Some(AgentFault::Hangs));
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(570.0).await;
    assert_eq!(invocations(&world, &id)[0]["Status"], "InProgress");
    pass(2.0).await;
    let killed = invocations(&world, &id).remove(0);
    assert_eq!(
        (&killed["Status"], &killed["StatusDetails"]),
        (&json!("TimedOut"), &json!("ExecutionTimedOut"))
    );
    assert_eq!(killed["CommandPlugins"][0]["Output"], "");
}

#[tokio::test(start_paused = true)]
async fn a_ramp_hands_out_one_then_two_then_four_each_when_the_wave_before_has_ended() {
    let world = changed(9, |state| {
        state.ramp = true;
        // The third of the second wave is slow, the sixth one is not reached, the ninth answers verbatim.
        state.host(&instance_id(3)).agent.restart_seconds = 60.0;
        state.host(&instance_id(6)).offline = true;
        state.host(&instance_id(9)).answer = Some(Answer {
            status: "Cancelled".to_owned(),
            ..Answer::default()
        });
    });
    let ids: Vec<String> = (1..=9).map(instance_id).collect();
    let id = send(&world, &ids, json!({}));
    pass(1_200.0).await;
    let invocations = world.with(|state| state.region(REGION).commands[0].invocations.clone());
    let began: Vec<Option<f64>> = invocations.iter().map(|one| one.began_at).collect();
    let ended = |n: usize| invocations[n - 1].ended_at.unwrap();
    // Delivered a second after the wave before has ended.
    assert_eq!(began[0], Some(1.0));
    assert_eq!(began[1], Some(ended(1) + 1.0));
    assert_eq!(began[2], began[1]);
    assert!(ended(3) > ended(2));
    for n in [3, 4, 6] {
        assert_eq!(began[n], Some(ended(3) + 1.0));
    }
    // SSM gives the sixth up 690 s after its turn, not after the sending; only then the last two have theirs.
    assert_eq!(began[5], None);
    assert!((ended(6) - (ended(3) + 690.0)).abs() < 0.01);
    assert_eq!(began[7], Some(ended(6) + 1.0));
    let statuses: Vec<Value> = invocations_of(&world, &id, "Status");
    assert_eq!(statuses[5], "TimedOut");
    assert_eq!(statuses[8], "Cancelled");
    assert_eq!(
        statuses
            .iter()
            .filter(|status| *status == "Success")
            .count(),
        7
    );
}

#[tokio::test(start_paused = true)]
async fn each_platform_has_its_document_and_other_documents_answer_in_their_own_way() {
    let world = changed(3, |state| {
        state.host(&instance_id(2)).platform = "Windows".to_owned();
        state.host(&instance_id(3)).platform = "MacOS".to_owned();
    });
    let to = |document: &str, numbers: &[usize]| {
        let ids: Vec<String> = numbers.iter().map(|n| instance_id(*n)).collect();
        let mut params = command(&world, &ids, json!({}));
        params["DocumentName"] = document.into();
        ssm(&world, "SendCommand", params)
    };
    for (document, numbers) in [
        (DOCUMENT, vec![1, 2]),
        (WINDOWS_DOCUMENT, vec![1, 2]),
        (WINDOWS_DOCUMENT, vec![3]),
    ] {
        let refusal = to(document, &numbers).unwrap_err();
        assert_eq!(refusal, "UnsupportedPlatformType", "{document} {numbers:?}");
    }
    let sent = to(WINDOWS_DOCUMENT, &[2]).unwrap();
    pass(100.0).await;
    let id = sent["Command"]["CommandId"].as_str().unwrap();
    let step = invocations(&world, id).remove(0)["CommandPlugins"][0].clone();
    assert_eq!(step["Name"], "windows");
    let output = step["Output"].as_str().unwrap();
    assert!(output.starts_with("{\"agentRestart\":1,\"result\":\"restarted\""));
    // A shell script runs on macOS, so that only its precondition keeps it from that.
    let sent = to(DOCUMENT, &[3]).unwrap();
    pass(100.0).await;
    let id = sent["Command"]["CommandId"].as_str().unwrap();
    let told = invocations(&world, id).remove(0);
    assert_eq!(told["Status"], "Success");
    let skipped = "Step execution skipped due to unsatisfied preconditions: \
                   '\"StringEquals\": [platformType, Linux]'. Step name: linux";
    assert_eq!(told["CommandPlugins"][0]["Output"], skipped);
    assert_eq!(told["CommandPlugins"][0]["ResponseCode"], 0);

    let world = changed(1, |state| {
        state.region(REGION).documents = vec![Document {
            name: DOCUMENT.to_owned(),
            kind: DocumentKind::Foreign,
        }];
    });
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(100.0).await;
    let foreign = invocations(&world, &id).remove(0);
    assert_eq!(foreign["Status"], "Success");
    assert!(agent(&world).restarts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_reported_verbatim_and_cut_as_ssm_cuts() {
    let world = one_host(|host| {
        host.answer = Some(Answer {
            status: "Confused".to_owned(),
            status_details: Some("Very Confused".to_owned()),
            output: Some("ä".repeat(2000)),
            response_code: Some(7),
        });
    });
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(5.0).await;
    let told = invocations(&world, &id).remove(0);
    assert_eq!(
        (&told["Status"], &told["StatusDetails"]),
        (&json!("Confused"), &json!("Very Confused"))
    );
    // 2,500 bytes less the mark, which is an odd number: the last character breaks.
    let cut = format!("{}\u{fffd}\n---Output truncated---", "ä".repeat(1238));
    assert_eq!(told["CommandPlugins"][0]["Output"], cut);
    assert_eq!(told["CommandPlugins"][0]["ResponseCode"], 7);
    pass(100.0).await;
    assert!(
        agent(&world).restarts.is_empty(),
        "a host with a verbatim answer does nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn one_id_spoils_the_whole_command() {
    let world = changed(60, |state| {
        state.host(&instance_id(1)).rejected = true;
        state.host(&instance_id(2)).state = "terminated".to_owned();
        state.host(&instance_id(3)).managed = false;
        state.host(&instance_id(4)).denied = true;
    });
    let ids = |numbers: &[usize]| {
        numbers
            .iter()
            .map(|number| instance_id(*number))
            .collect::<Vec<_>>()
    };
    let refusal =
        |ids: &[String]| ssm(&world, "SendCommand", command(&world, ids, json!({}))).unwrap_err();
    for (wrong, code) in [
        (1, "InvalidInstanceId"),
        (2, "InvalidInstanceId"),
        (3, "InvalidInstanceId"),
        (99, "InvalidInstanceId"),
        (4, "AccessDeniedException"),
        (10, "DuplicateInstanceId"),
    ] {
        assert_eq!(refusal(&ids(&[10, 11, wrong])), code, "{wrong}");
    }
    assert_eq!(
        refusal(&(10..=60).map(instance_id).collect::<Vec<_>>()),
        "ValidationException"
    );
    send(
        &world,
        &(10..60).map(instance_id).collect::<Vec<_>>(),
        json!({}),
    );
    assert_eq!(world.with(|state| state.region(REGION).commands.len()), 1);
}

#[tokio::test(start_paused = true)]
async fn the_document_takes_digits_under_its_own_names_only() {
    let world = world(1);
    let refusal = |more: Value| {
        ssm(
            &world,
            "SendCommand",
            command(&world, &[instance_id(1)], more),
        )
    };
    for more in [
        json!({ "busywaitseconds": "1" }),
        json!({ "busyWaitSeconds": "$(reboot)" }),
        json!({ "sentAt": "" }),
        json!({ "sentAt": "0120" }),
    ] {
        assert_eq!(
            refusal(more.clone()).unwrap_err(),
            "InvalidParameters",
            "{more}"
        );
    }
    let by_arn = |arn: &str| {
        let mut params = command(&world, &[instance_id(1)], json!({}));
        params["DocumentName"] = arn.into();
        ssm(&world, "SendCommand", params)
    };
    assert!(by_arn("arn:aws:ssm:us-east-1:123456789012:document/restart-agent").is_ok());
    assert_eq!(
        by_arn("arn:aws:ssm:eu-west-1:123456789012:document/restart-agent").unwrap_err(),
        "InvalidDocument"
    );
}

#[tokio::test(start_paused = true)]
async fn the_inventory_pages_by_ten_and_leaves_out_what_ssm_does() {
    let world = changed(14, |state| {
        state.host(&instance_id(1)).managed = false;
        state.host(&instance_id(2)).state = "stopped".to_owned();
        state.host(&instance_id(3)).rejected = true;
    });
    let first = ssm(&world, "DescribeInstanceInformation", json!({})).unwrap();
    assert_eq!(
        first["InstanceInformationList"].as_array().unwrap().len(),
        10
    );
    let next = json!({ "NextToken": first["NextToken"] });
    let second = ssm(&world, "DescribeInstanceInformation", next).unwrap();
    assert_eq!(
        second["InstanceInformationList"].as_array().unwrap().len(),
        1
    );
    for (id, code) in [
        (instance_id(3), "InvalidInstanceId"),
        ("my-server".to_owned(), "InvalidInstanceId"),
    ] {
        let filter = json!({ "Filters": [{ "Key": "InstanceIds", "Values": [id] }] });
        assert_eq!(
            ssm(&world, "DescribeInstanceInformation", filter).unwrap_err(),
            code
        );
    }
}

#[tokio::test(start_paused = true)]
async fn deployments_are_listed_as_ids_in_no_helpful_order() {
    let world = changed(1, |state| {
        for number in 0..24 {
            state.region(REGION).deployments.push(Deployment {
                id: format!("d-{number:09}"),
                application: "my-application".to_owned(),
                deployment_group: "my-deployment-group".to_owned(),
                created_at: f64::from(number) - 100.0,
                completed_at: Some(if number == 23 { 30.0 } else { -1.0 }),
                ..Deployment::default()
            });
        }
    });
    let group = json!({ "applicationName": "my-application", "deploymentGroupName": "my-deployment-group" });
    let list = |status: &str, token: Value| {
        let mut params = group.clone();
        params["includeOnlyStatuses"] = json!([status]);
        params["nextToken"] = token;
        codedeploy(&world, "ListDeployments", params).unwrap()
    };
    let first = list("Succeeded", Value::Null);
    let ids: Vec<&str> = first["deployments"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(ids.len(), 10);
    assert!(!ids.is_sorted() && !ids.iter().rev().is_sorted());
    let wrong = json!({ "includeOnlyStatuses": ["Failed"], "nextToken": first["nextToken"] });
    assert_eq!(
        codedeploy(&world, "ListDeployments", wrong).unwrap_err(),
        "InvalidNextTokenException"
    );
    assert_eq!(
        list("InProgress", Value::Null)["deployments"],
        json!(["d-000000023"])
    );
    pass(31.0).await;
    assert_eq!(list("InProgress", Value::Null)["deployments"], json!([]));
}

#[tokio::test(start_paused = true)]
async fn targets_are_told_once_a_deployment_has_begun() {
    let world = world(2);
    let asked = json!({ "deploymentId": DEPLOYMENT });
    for (status, never_started) in [("Queued", false), ("Created", false), ("Failed", true)] {
        world.with(|state| {
            let deployment = state.deployment(DEPLOYMENT);
            deployment.status = status.to_owned();
            deployment.never_started = never_started;
        });
        assert_eq!(
            codedeploy(&world, "ListDeploymentTargets", asked.clone()).unwrap_err(),
            "DeploymentNotStartedException"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_label_is_refused_in_place_and_honoured_in_blue_green() {
    let world = world(2);
    let asked = json!({ "deploymentId": DEPLOYMENT, "targetFilters": { "ServerInstanceLabel": ["Green"] } });
    let refusal = codedeploy(&world, "ListDeploymentTargets", asked.clone()).unwrap_err();
    assert_eq!(refusal, "InvalidDeploymentInstanceTypeException");
    world.with(|state| {
        let deployment = state.deployment(DEPLOYMENT);
        deployment.style = "BLUE_GREEN".to_owned();
        deployment.targets[0].label = Some("Blue".to_owned());
        deployment.targets[1].label = Some("Green".to_owned());
    });
    assert_eq!(
        codedeploy(&world, "ListDeploymentTargets", asked).unwrap()["targetIds"],
        json!([instance_id(2)])
    );
}

#[tokio::test(start_paused = true)]
async fn query_services_answer_and_fail_in_xml() {
    let world = world(1);
    let asked = json!({ "AutoScalingGroupNames.member.1": "web", "AutoScalingGroupNames.member.2": "gone" });
    let (status, body) = query(
        &world,
        Service::AutoScaling,
        "DescribeAutoScalingGroups",
        asked,
    );
    assert_eq!(status, 200);
    let start = "<DescribeAutoScalingGroupsResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\">\
                 <DescribeAutoScalingGroupsResult><AutoScalingGroups><member>";
    assert!(body.starts_with(start), "{body}");
    assert!(!body.contains("gone") && body.contains("<LifecycleState>InService</LifecycleState>"));
    let (status, body) = query(
        &world,
        Service::Sns,
        "Publish",
        json!({ "TopicArn": format!("{TOPIC}x"), "Message": "m" }),
    );
    assert_eq!(status, 404);
    assert!(
        body.contains("<Type>Sender</Type><Code>NotFound</Code>"),
        "{body}"
    );
    let (status, body) = query(&world, Service::Sns, "Subscribe", json!({}));
    assert!(
        status == 400 && body.contains("<Code>InvalidAction</Code>"),
        "{body}"
    );
}

fn ec2(world: &World, params: &Value) -> (u16, String) {
    query(world, Service::Ec2, "DescribeInstances", params.clone())
}

/// The texts of every element of that name, in order.
fn texts<'a>(xml: &'a str, element: &str) -> Vec<&'a str> {
    xml.split(&format!("<{element}>"))
        .skip(1)
        .filter_map(|rest| rest.split('<').next())
        .collect()
}

fn filter_by_ids(numbers: impl IntoIterator<Item = usize>) -> Value {
    let mut params = json!({ "Filter.1.Name": "instance-id" });
    for (place, number) in numbers.into_iter().enumerate() {
        params[format!("Filter.1.Value.{}", place + 1)] = json!(instance_id(number));
    }
    params
}

#[tokio::test(start_paused = true)]
async fn ec2_tells_states_in_reservations_and_leaves_out_whom_it_does_not_know() {
    let world = changed(7, |state| {
        for (number, word) in [(2, "stopped"), (3, "terminated"), (5, "shutting-down")] {
            state.host(&instance_id(number)).state = word.to_owned();
        }
        state.host(&instance_id(4)).forgotten = true;
    });
    let mut asked = filter_by_ids((1..=7).chain([999]));
    asked["MaxResults"] = json!("1000");
    let (status, body) = ec2(&world, &asked);
    assert_eq!(status, 200, "{body}");
    let start = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
                 <DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\n<requestId>";
    assert!(body.starts_with(start), "{body}");
    assert_eq!(texts(&body, "reservationId").len(), 3, "{body}");
    let mut told = texts(&body, "instanceId");
    told.sort_unstable();
    assert_eq!(told, [1, 2, 3, 5, 6, 7].map(instance_id));
    let mut states: Vec<&str> = texts(&body, "name");
    states.sort_unstable();
    let running = ["running", "running", "running"];
    let wanted = [&running[..], &["shutting-down", "stopped", "terminated"]].concat();
    assert_eq!(states, wanted, "{body}");

    asked["Filter.2.Name"] = json!("instance-state-name");
    asked["Filter.2.Value.1"] = json!("stopped");
    asked["Filter.2.Value.2"] = json!("stopping");
    assert_eq!(
        texts(&ec2(&world, &asked).1, "instanceId"),
        [instance_id(2)]
    );

    let named =
        |number| json!({ "InstanceId.1": instance_id(1), "InstanceId.2": instance_id(number) });
    assert_eq!(texts(&ec2(&world, &named(3)).1, "instanceId").len(), 2);
    for number in [4, 999] {
        let (status, body) = ec2(&world, &named(number));
        assert_eq!(
            (status, texts(&body, "Code")),
            (400, vec!["InvalidInstanceID.NotFound"])
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_of_ec2_may_be_short_or_empty_and_have_a_next_one() {
    let world = changed(30, |state| state.page_shortfall = 4);
    let mut asked = filter_by_ids([1, 2, 29]);
    asked["MaxResults"] = json!("9");
    let (mut told, mut sizes) = (Vec::new(), Vec::new());
    loop {
        let (status, body) = ec2(&world, &asked);
        assert_eq!(status, 200, "{body}");
        let ids = texts(&body, "instanceId");
        sizes.push(ids.len());
        told.extend(ids.into_iter().map(str::to_owned));
        match texts(&body, "nextToken").first() {
            Some(token) => asked["NextToken"] = json!(token),
            None => break,
        }
    }
    told.sort_unstable();
    assert_eq!(told, [1, 2, 29].map(instance_id));
    assert!(sizes.len() == 6 && sizes.contains(&0), "{sizes:?}");
    let (_, body) = ec2(&world, &json!({ "NextToken": "made-up" }));
    assert_eq!(texts(&body, "Code"), ["InvalidNextToken"]);
}

#[tokio::test(start_paused = true)]
async fn ec2_refuses_in_a_form_of_its_own() {
    let world = changed(1, |state| {
        let fault = |code: Option<&str>| Fault {
            operation: "DescribeInstances".to_owned(),
            code: code.map(str::to_owned),
            ..Fault::default()
        };
        state.faults = vec![fault(None), fault(Some("UnauthorizedOperation"))];
    });
    let (status, body) = ec2(&world, &json!({}));
    let told = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>RequestLimitExceeded</Code>\
                <Message>Request limit exceeded.</Message></Error></Errors><RequestID>";
    assert!(status == 503 && body.starts_with(told), "{body}");
    let (status, body) = ec2(&world, &json!({}));
    assert_eq!(
        (status, texts(&body, "Code")),
        (403, vec!["UnauthorizedOperation"])
    );

    let first = instance_id(1);
    let refused = [
        (filter_by_ids(1..=201), "FilterLimitExceeded"),
        (json!({ "MaxResults": "4" }), "InvalidParameterValue"),
        (json!({ "MaxResults": "1001" }), "InvalidParameterValue"),
        (json!({ "MaxResults": "many" }), "InvalidParameterValue"),
        (
            json!({ "MaxResults": "5", "InstanceId.1": first }),
            "InvalidParameterCombination",
        ),
        (
            json!({ "InstanceId.1": "web-1" }),
            "InvalidInstanceID.Malformed",
        ),
        (
            json!({ "Filter.1.Name": "colour", "Filter.1.Value.1": "red" }),
            "InvalidParameterValue",
        ),
        (
            json!({ "Filters.member.1.Name": "instance-id" }),
            "UnknownParameter",
        ),
    ];
    for (params, code) in refused {
        let (status, body) = ec2(&world, &params);
        assert_eq!(
            (status, texts(&body, "Code")),
            (400, vec![code]),
            "{params}"
        );
    }
    assert_eq!(ec2(&world, &filter_by_ids(1..=200)).0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_message_must_fit_and_be_what_it_says() {
    let world = world(1);
    let publish = |more: Value| {
        let mut params = json!({ "TopicArn": TOPIC, "Message": "{\"default\":\"x\"}", "MessageStructure": "json" });
        for (name, value) in more.as_object().unwrap() {
            params[name] = value.clone();
        }
        query(&world, Service::Sns, "Publish", params).0
    };
    let attribute = "MessageAttributes.entry.1";
    assert_eq!(publish(json!({ "Subject": "s".repeat(99) })), 200);
    assert_eq!(publish(json!({ "Subject": "s".repeat(100) })), 400);
    assert_eq!(publish(json!({ "Subject": "a%0Ab" })), 400);
    assert_eq!(publish(json!({ "Message": "{\"email\":\"x\"}" })), 400);
    assert_eq!(
        publish(json!({ "Message": "{\"default\":\"x\",\"sqs\":{}}" })),
        400
    );
    let body = |bytes: usize| format!("{{\"default\":\"{}\"}}", "x".repeat(bytes - 14));
    assert_eq!(publish(json!({ "Message": body(262_144) })), 200);
    assert_eq!(publish(json!({ "Message": body(262_145) })), 400);
    let severity = json!({
        "Message": body(262_144),
        format!("{attribute}.Name"): "severity",
        format!("{attribute}.Value.DataType"): "String",
        format!("{attribute}.Value.StringValue"): "ok",
    });
    assert_eq!(publish(severity), 400, "attributes count");
    assert_eq!(world.messages().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn faults_come_before_any_effect_and_lost_replies_after_it() {
    let world = changed(1, |state| {
        state.faults = vec![
            Fault {
                operation: "SendCommand".to_owned(),
                ..Fault::default()
            },
            Fault {
                operation: "SendCommand".to_owned(),
                lost_reply: true,
                ..Fault::default()
            },
        ];
    });
    let commands = || world.with(|state| state.region(REGION).commands.len());
    let params = command(&world, &[instance_id(1)], json!({}));
    assert_eq!(
        ssm(&world, "SendCommand", params.clone()).unwrap_err(),
        "ThrottlingException"
    );
    assert_eq!(commands(), 0);
    assert!(
        world
            .exchange(&request(Service::Ssm, "SendCommand", &params))
            .is_err()
    );
    assert_eq!(commands(), 1);
    let errors: Vec<Option<String>> = world.calls().into_iter().map(|call| call.error).collect();
    assert_eq!(
        errors,
        [
            Some("ThrottlingException".to_owned()),
            Some("ReplyLost".to_owned())
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn speed_shortens_durations_and_not_the_clock() {
    let mut state = State::for_pipeline("myPipeline", EXECUTION, REGION, 1);
    state.host(&instance_id(1)).agent.busy = vec![[0.0, 20.0]];
    let world = World::at_speed(state, START, 10.0);
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(15.0).await;
    assert!((world.now() - START - 15.0).abs() < 0.01);
    let output = invocations(&world, &id).remove(0)["CommandPlugins"][0]["Output"].clone();
    let line: Value = serde_json::from_str(output.as_str().unwrap()).unwrap();
    assert_eq!(
        (&line["result"], &line["seconds"]),
        (&json!("restarted"), &json!(104))
    );
    assert!(
        (agent(&world).started_at - 6.0).abs() < 0.2,
        "{}",
        agent(&world).started_at
    );
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_get_the_services_own_errors() {
    let world = world(1);
    assert_eq!(
        ssm(&world, "GetParameter", json!({})).unwrap_err(),
        "UnknownOperationException"
    );
    assert_eq!(
        ssm(&world, "SendCommand", json!([])).unwrap_err(),
        "SerializationException"
    );
    assert_eq!(
        codedeploy(&world, "GetDeployment", json!({ "deploymentId": 1 })).unwrap_err(),
        "SerializationException"
    );
    let list = json!({ "pipelineName": "my pipeline" });
    assert_eq!(
        call(&world, Service::CodePipeline, "ListActionExecutions", list).unwrap_err(),
        "ValidationException"
    );
}

#[tokio::test(start_paused = true)]
async fn the_example_world_can_be_served() {
    let state: State = serde_json::from_str(include_str!("../worlds/example.json")).unwrap();
    let world = World::new(state, START);
    let everything = ssm(&world, "DescribeInstanceInformation", json!({})).unwrap();
    assert_eq!(
        everything["InstanceInformationList"]
            .as_array()
            .unwrap()
            .len(),
        6
    );
    let wrong = serde_json::from_str::<State>(
        r#"{ "regions": { "r": { "hosts": [{ "plattform": "Linux" }] } } }"#,
    );
    assert!(wrong.unwrap_err().to_string().contains("plattform"));
}

#[tokio::test(start_paused = true)]
async fn a_transcript_holds_each_exchange() {
    let folder = std::env::temp_dir().join(format!("sim-transcript-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let world = world(1);
    world.record_to(&folder);
    send(&world, &[instance_id(1)], json!({}));
    let file = std::fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(
        (
            &line["service"],
            &line["operation"],
            &line["response"]["status"]
        ),
        (&json!("ssm"), &json!("SendCommand"), &json!(200))
    );
    assert!(line["request"]["headers"].get("authorization").is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_delivered_in_time_never_runs_and_stays_open() {
    // It comes back after the delivery time-out of 120 s, and again before it.
    for (back, status) in [(130.0, "Delayed"), (100.0, "InProgress")] {
        let world = one_host(|host| host.offline = true);
        let id = send(&world, &[instance_id(1)], json!({}));
        pass(back).await;
        world.with(|state| state.host(&instance_id(1)).offline = false);
        pass(10.0).await;
        assert_eq!(invocations(&world, &id)[0]["Status"], status, "{back}");
        pass(500.0).await;
        let restarts = agent(&world).restarts.len();
        assert_eq!(restarts, usize::from(status == "InProgress"), "{back}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_ssm_agent_that_has_the_message_runs_it_however_old_it_is() {
    let world = one_host(|host| {
        host.delivery_seconds = 300.0;
        host.ssm_agent.runs_old = true;
    });
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(200.0).await;
    assert_eq!(invocations(&world, &id)[0]["Status"], "Pending");
    assert_eq!(line(&world, &id).await["result"], "restarted");
}

#[tokio::test(start_paused = true)]
async fn status_and_output_come_apart_and_the_output_may_be_lost() {
    for (lost, after) in [
        (None, 100.0),
        (Some(Lost::Output), 0.0),
        (Some(Lost::Steps), 0.0),
    ] {
        let world = one_host(|host| {
            host.ssm_agent.output_after = after;
            host.ssm_agent.output_lost = lost;
        });
        let id = send(&world, &[instance_id(1)], json!({}));
        pass(100.0).await;
        let told = invocations(&world, &id).remove(0);
        assert_eq!(told["Status"], "Success");
        let steps = told["CommandPlugins"].as_array().unwrap();
        assert_eq!(steps.is_empty(), lost == Some(Lost::Steps));
        assert!(
            steps.iter().take(1).all(|step| step["Output"] == ""),
            "{steps:?}"
        );
        pass(100.0).await;
        let told = invocations(&world, &id).remove(0);
        let output = told["CommandPlugins"][0]["Output"]
            .as_str()
            .unwrap_or_default();
        assert_eq!(output.contains("restarted"), lost.is_none(), "{output}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_ssm_agent_that_cannot_run_a_script_says_so_in_its_own_words() {
    for (fault, status, code, said, restarts) in [
        (SsmAgentFault::NoExec, "Failed", 126, "Permission denied", 0),
        (SsmAgentFault::ScriptGone, "Failed", 127, "not found", 0),
        (SsmAgentFault::NoSpace, "Failed", 1, "no space left", 0),
        (SsmAgentFault::NoShell, "Failed", 1, "fork/exec", 0),
        (SsmAgentFault::NoPlugin, "Failed", 1, "Plugin with name", 0),
        (
            SsmAgentFault::WorkerLost,
            "Failed",
            1,
            "worker timed out",
            1,
        ),
        (SsmAgentFault::Booted, "Failed", 1, "failed unexpectedly", 0),
        (SsmAgentFault::GroupEnded, "Failed", -1, "\"restarted\"", 1),
        (SsmAgentFault::KilledBefore, "TimedOut", 137, "", 1),
        (
            SsmAgentFault::KilledAfter,
            "TimedOut",
            137,
            "\"restarted\"",
            1,
        ),
        (SsmAgentFault::Cancelled, "Cancelled", 137, "", 1),
    ] {
        let world = one_host(|host| host.ssm_agent.fault = Some(fault));
        let id = send(&world, &[instance_id(1)], json!({}));
        pass(200.0).await;
        let told = invocations(&world, &id).remove(0);
        let step = &told["CommandPlugins"][0];
        assert_eq!(
            (&told["Status"], &step["ResponseCode"]),
            (&json!(status), &json!(code))
        );
        assert!(
            step["Output"].as_str().unwrap().contains(said),
            "{fault:?}: {step}"
        );
        assert_eq!(agent(&world).restarts.len(), restarts, "{fault:?}");
        let booted = world.with(|state| state.host(&instance_id(1)).boots.len());
        assert_eq!(booted, usize::from(fault == SsmAgentFault::Booted));
        // The next one meets nothing of it.
        let untouched = restarts + booted == 0;
        let next = if untouched {
            "restarted"
        } else {
            "already-restarted"
        };
        assert_eq!(result_of(&world, json!({})).await.0, next, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_buffered_command_is_shown_as_running_and_a_new_one_is_not_known_at_once() {
    let world = one_host(|host| host.ssm_agent.buffered = 60.0);
    world.with(|state| state.command_lag = 10.0);
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(9.0).await;
    let asked = json!({ "CommandId": id });
    let refused = ssm(&world, "ListCommandInvocations", asked).unwrap_err();
    assert_eq!(refused, "InvalidCommandId");
    pass(2.0).await;
    let told = invocations(&world, &id).remove(0);
    assert_eq!(told["Status"], "InProgress");
    let begun = world.with(|state| state.region("us-east-1").commands[0].invocations[0].began_at);
    assert_eq!(begun, None);
    assert_eq!(line(&world, &id).await["result"], "restarted");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_comes_back_in_mid_run_reports() {
    let world = world(1);
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(3.0).await;
    world.with(|state| state.host(&instance_id(1)).offline = true);
    pass(200.0).await;
    assert_eq!(invocations(&world, &id)[0]["Status"], "InProgress");
    assert!(agent(&world).restarts.is_empty());
    world.with(|state| state.host(&instance_id(1)).offline = false);
    assert_eq!(line(&world, &id).await["result"], "restarted");
}

#[tokio::test(start_paused = true)]
async fn a_poller_has_a_minute_to_become_ready_and_must_then_poll() {
    // Delivered after 1 s, looked at until 5 s, replaced at 40 s; not ready until 100 s.
    let looping = || one_host(|host| host.agent.fault = Some(AgentFault::AgentUnhealthy));
    let world = looping();
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(99.0).await;
    assert_eq!(invocations(&world, &id)[0]["Status"], "InProgress");
    pass(2.0).await;
    assert_eq!(
        invocations(&world, &id)[0]["CommandPlugins"][0]["ResponseCode"],
        33
    );
    // One that becomes ready in between, seen at 80 s, polls from there.
    let world = looping();
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(79.0).await;
    world.with(|state| state.host(&instance_id(1)).agent.fault = None);
    let told = line(&world, &id).await;
    assert_eq!(
        (&told["result"], &told["seconds"]),
        (&json!("restarted"), &json!(124))
    );
}

#[tokio::test(start_paused = true)]
async fn whom_somebody_else_restarts_during_the_proof_is_proven_in_place_of_the_first() {
    let world = world(1);
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(45.0).await;
    assert_eq!(agent(&world).restarts, [40.0]);
    world.with(|state| state.host(&instance_id(1)).agent.started_at = 45.0);
    let told = line(&world, &id).await;
    // Its own first poll has ended at 90 s.
    assert_eq!(
        (&told["result"], &told["seconds"]),
        (&json!("restarted"), &json!(89))
    );
}

#[tokio::test(start_paused = true)]
async fn where_nothing_runs_after_a_restart_it_is_started_once_more() {
    for fault in [AgentFault::AgentDown, AgentFault::ServiceManagerFailed] {
        let world = one_host(|host| host.agent.fault = Some(fault));
        let id = send(&world, &[instance_id(1)], json!({}));
        pass(65.0).await;
        assert!(!agent(&world).running);
        world.with(|state| state.host(&instance_id(1)).agent.fault = None);
        assert_eq!(line(&world, &id).await["result"], "restarted", "{fault:?}");
        assert_eq!(agent(&world).restarts.len(), 1);
    }
    // A fresh one that has died meanwhile is started as any that does not run.
    let world = one_host(|host| host.agent.started_at = -1.0);
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(5.0).await;
    world.with(|state| state.host(&instance_id(1)).agent.running = false);
    assert_eq!(line(&world, &id).await["result"], "started");
}

#[tokio::test(start_paused = true)]
async fn a_job_of_systemd_s_is_waited_for_within_patience() {
    for (kind, running, at_last, given_up) in [
        (JobKind::Start, false, "already-restarted", 22),
        (JobKind::Restart, true, "already-restarted", 34),
        (JobKind::Stop, true, "started", 34),
    ] {
        for ends in [60.0, 900.0] {
            let world = one_host(|host| {
                host.agent.running = running;
                host.agent.job = Some(Job { kind, ends });
            });
            let (result, code) = result_of(&world, json!({})).await;
            let restarts = agent(&world).restarts.len();
            match ends {
                60.0 => assert_eq!((result.as_str(), restarts), (at_last, 1), "{kind:?}"),
                _ => assert_eq!((code, restarts), (given_up, 0), "{kind:?}"),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_judged_is_left_alone_and_what_does_not_run_is_not_spared() {
    let running = |fault: AgentFault, running: bool| {
        one_host(move |host| {
            host.agent.fault = Some(fault);
            host.agent.running = running;
        })
    };
    let world = running(AgentFault::ProgramAway, false);
    assert_eq!(result_of(&world, json!({})).await.1, 10);
    // A program that does not even start is no reason to leave a host without an agent alone.
    let world = running(AgentFault::PreflightFailed, false);
    assert_eq!(result_of(&world, json!({})).await.1, 30);
    // Whether a new agent would start is asked only when one is needed.
    let world = running(AgentFault::PreflightFailed, true);
    world.with(|state| state.host(&instance_id(1)).agent.started_at = -1.0);
    assert_eq!(result_of(&world, json!({})).await.0, "already-restarted");
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_still_drains_is_waited_for_and_then_decided_about() {
    let world = one_host(|host| {
        host.agent.fault = Some(AgentFault::Draining);
    });
    // Ordered at 5 s, given up at 155 s, done at 215 s.
    let first = send(&world, &[instance_id(1)], json!({}));
    pass(160.0).await;
    assert_eq!(
        invocations(&world, &first)[0]["CommandPlugins"][0]["ResponseCode"],
        34
    );
    world.with(|state| state.host(&instance_id(1)).agent.fault = None);
    let second = send(&world, &[instance_id(1)], json!({}));
    let told = line(&world, &second).await;
    assert_eq!(
        (&told["result"], &told["memoryAfterKiB"]),
        (&json!("already-restarted"), &json!(52_224))
    );
    assert_eq!(agent(&world).restarts, [215.0]);
    // With less patience it is told.
    let world = one_host(|host| host.agent.fault = Some(AgentFault::Draining));
    send(&world, &[instance_id(1)], json!({}));
    pass(160.0).await;
    let second = send(&world, &[instance_id(1)], json!({ "busyWaitSeconds": "5" }));
    assert_eq!(line(&world, &second).await["code"], 34);
}

#[tokio::test(start_paused = true)]
async fn a_script_that_hangs_holds_the_lock_until_it_is_killed() {
    let world = one_host(|host| host.agent.fault = Some(AgentFault::Hangs));
    let first = send(&world, &[instance_id(1)], json!({}));
    let second = send(&world, &[instance_id(1)], json!({}));
    assert_eq!(line(&world, &second).await["result"], "restart-running");
    let killed = invocations(&world, &first).remove(0);
    assert_eq!(killed["StatusDetails"], "ExecutionTimedOut");
    world.with(|state| state.host(&instance_id(1)).agent.fault = None);
    assert_eq!(result_of(&world, json!({})).await.0, "restarted");
}

#[tokio::test(start_paused = true)]
async fn the_line_is_whole_and_honest_about_memory() {
    let absent = one_host(|host| host.agent.installed = false);
    let id = send(&absent, &[instance_id(1)], json!({}));
    let told = line(&absent, &id).await;
    assert_eq!(
        (&told["memoryBeforeKiB"], &told["memoryAfterKiB"]),
        (&json!(0), &json!(0)),
        "no agent ran"
    );
    let wordy = one_host(|host| host.agent.version = "ä\u{1}".repeat(2000));
    let id = send(&wordy, &[instance_id(1)], json!({}));
    assert_eq!(line(&wordy, &id).await["result"], "restarted");
    // Where none ran there is no old agent to survive.
    let down = one_host(|host| {
        host.agent.fault = Some(AgentFault::OldAgentSurvived);
        host.agent.running = false;
    });
    assert_eq!(result_of(&down, json!({})).await.0, "started");
}

#[tokio::test(start_paused = true)]
async fn both_parts_of_a_long_output_are_cut_to_half() {
    let world = one_host(|host| {
        host.answer = Some(Answer {
            status: "Failed".to_owned(),
            output: Some(format!(
                "{}\n----------ERROR-------\n{}",
                "o".repeat(3000),
                "e".repeat(3000)
            )),
            ..Answer::default()
        });
    });
    let id = send(&world, &[instance_id(1)], json!({}));
    pass(5.0).await;
    let told = invocations(&world, &id).remove(0);
    let half = |letter: &str| letter.repeat(1215);
    let cut = format!(
        "{}\n---Output truncated---\n----------ERROR-------\n{}\n---Error truncated----",
        half("o"),
        half("e")
    );
    assert_eq!(told["CommandPlugins"][0]["Output"], cut);
}

#[tokio::test(start_paused = true)]
async fn the_size_that_a_caller_asks_for_is_a_maximum() {
    let world = changed(50, |state| state.page_shortfall = 3);
    let id = send(
        &world,
        &(1..=50).map(instance_id).collect::<Vec<_>>(),
        json!({}),
    );
    pass(5.0).await;
    let asked = json!({ "CommandId": id, "MaxResults": 50 });
    let told = ssm(&world, "ListCommandInvocations", asked).unwrap();
    assert_eq!(told["CommandInvocations"].as_array().unwrap().len(), 47);
    let asked = json!({ "CommandId": id, "MaxResults": 50, "NextToken": told["NextToken"] });
    let told = ssm(&world, "ListCommandInvocations", asked).unwrap();
    assert_eq!(told["CommandInvocations"].as_array().unwrap().len(), 3);
    assert!(told.get("NextToken").is_none());
}

#[tokio::test(start_paused = true)]
async fn the_model_says_who_is_to_blame() {
    let world = changed(1, |state| {
        state.faults = ["ResourceContention", "InternalFailure"]
            .map(|code| Fault {
                operation: "DescribeAutoScalingGroups".to_owned(),
                code: Some(code.to_owned()),
                ..Fault::default()
            })
            .into();
    });
    let groups = |params| {
        query(
            &world,
            Service::AutoScaling,
            "DescribeAutoScalingGroups",
            params,
        )
    };
    for (side, code) in [
        ("Sender", "ResourceContention"),
        ("Receiver", "InternalFailure"),
    ] {
        let (status, body) = groups(json!({}));
        let told = format!("<Type>{side}</Type><Code>{code}</Code>");
        assert!(status == 500 && body.contains(&told), "{body}");
    }
    let names: serde_json::Map<String, Value> = (1..=51)
        .map(|n| (format!("AutoScalingGroupNames.member.{n}"), "web".into()))
        .collect();
    let (status, body) = groups(Value::Object(names));
    assert!(
        status == 400 && body.contains("<Code>ValidationError</Code>"),
        "{body}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_same_world_leaves_the_same_trace() {
    async fn trace() -> String {
        let world = changed(60, |state| {
            for n in 1..=60 {
                let host = state.host(&instance_id(n));
                host.delivery_seconds = 1.0;
                host.agent.restart_seconds = 20.0;
                host.agent.busy = vec![[0.0, 10.0]];
            }
        });
        for first in [1, 31] {
            let ids: Vec<String> = (first..first + 30).map(instance_id).collect();
            let id = send(&world, &ids, json!({}));
            pass(7.0).await;
            invocations(&world, &id);
        }
        pass(100.0).await;
        let mut told = world.snapshot();
        told["now"] = Value::Null;
        told.to_string()
    }
    assert_eq!(trace().await, trace().await);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_meant_is_told() {
    let mut state = State::for_pipeline("myPipeline", EXECUTION, REGION, 2);
    assert_eq!(state.problems(), Vec::<String>::new());
    state.latency = f64::NAN;
    state.deployment(DEPLOYMENT).style = "BLUEGREEN".to_owned();
    state.host(&instance_id(1)).agent.busy = vec![[9.0, 1.0]];
    state.host(&instance_id(1)).delivery_seconds = -1.0;
    state.host(&instance_id(2)).id = instance_id(1);
    let told = state.problems().join("\n");
    for named in [
        "latency",
        "BLUEGREEN",
        "[9, 1]",
        "deliverySeconds -1",
        "two hosts",
    ] {
        assert!(told.contains(named), "{named}: {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_inventory_can_be_asked_for_machines_outside_ec2_and_for_a_tag_and_not_for_both() {
    let world = world(2);
    world.with(|state| {
        let mut machine = crate::Host {
            id: managed_id(1),
            name: Some("rack-1".to_owned()),
            ..crate::Host::default()
        };
        machine
            .tags
            .insert("AgentRestart".to_owned(), "yes".to_owned());
        state.region(REGION).hosts.push(machine);
        let tags = &mut state.host(&instance_id(2)).tags;
        tags.insert("AgentRestart".to_owned(), "yes".to_owned());
    });
    let asked = |filters: Value| {
        let answer = ssm(
            &world,
            "DescribeInstanceInformation",
            json!({ "Filters": filters }),
        )?;
        let nodes = answer["InstanceInformationList"]
            .as_array()
            .unwrap()
            .clone();
        let ids = nodes
            .iter()
            .map(|node| node["InstanceId"].as_str().unwrap().to_owned());
        Ok::<_, String>(ids.collect::<Vec<_>>())
    };
    let kind = json!({ "Key": "ResourceType", "Values": ["ManagedInstance"] });
    let tag = json!({ "Key": "tag:AgentRestart", "Values": ["yes"] });
    assert_eq!(asked(json!([kind])).unwrap(), [managed_id(1)]);
    assert_eq!(
        asked(json!([tag])).unwrap(),
        [instance_id(2), managed_id(1)]
    );
    assert!(
        asked(json!([kind, tag]))
            .unwrap_err()
            .contains("InvalidFilterKey")
    );
}

#[tokio::test(start_paused = true)]
async fn a_command_that_names_one_without_the_tag_of_the_condition_is_denied() {
    let world = world(2);
    world.with(|state| {
        let tag = crate::TagFilter {
            key: "AgentRestart".to_owned(),
            value: "yes".to_owned(),
        };
        let tags = &mut state.host(&instance_id(1)).tags;
        tags.insert(tag.key.clone(), tag.value.clone());
        state.send_condition = Some(tag);
    });
    let ids = [instance_id(1), instance_id(2)];
    let sent = |ids: &[String]| ssm(&world, "SendCommand", command(&world, ids, json!({})));
    assert!(sent(&ids[..1]).is_ok());
    assert!(sent(&ids).unwrap_err().contains("AccessDenied"));
}

#[tokio::test(start_paused = true)]
async fn every_operation_that_a_fault_may_name_is_answered() {
    let world = world(1);
    for operation in crate::state::OPERATIONS {
        let known = [
            Service::CodePipeline,
            Service::CodeDeploy,
            Service::Ssm,
            Service::AutoScaling,
            Service::Sns,
            Service::Ec2,
        ]
        .into_iter()
        .filter(|service| {
            let (_, body) = query(&world, *service, operation, json!({}));
            !body.contains("UnknownOperation") && !body.contains("InvalidAction")
        });
        assert_eq!(known.count(), 1, "{operation}");
    }
}

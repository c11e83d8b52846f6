#!/usr/bin/env python3
"""The function's binary on the real Lambda runtime protocol, against the simulated AWS on a loopback port.

    tests/e2e/run.py --binary .aws-sam/build/RestartFunction/bootstrap --sim target/debug/sim
    tests/e2e/run.py --sim target/debug/sim          # `cargo lambda watch` builds and starts the function itself

Needs `cargo-lambda` in the PATH and nothing but Python's standard library. `cargo lambda watch` plays Lambda, `cargo lambda invoke` sends the files of events/;
what comes back, and what the simulated AWS has seen (GET /_sim/state), is checked. Every wait has an end, and only processes started here are ended.
"""

import argparse
import http.server
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORLD = ROOT / "tests/e2e/world.json"
EVENTS = ROOT / "events"

# How many times faster than real the simulated restarts are.
SPEED = 60
# Seconds until a server answers on its port.
START_LIMIT = 60
# Seconds for the first invocation, in which `cargo lambda watch` may build the function from nothing.
BUILD_LIMIT = 1500
# Seconds for any later invocation: a few polls, 5 s apart.
INVOKE_LIMIT = 120
# Seconds in which a binary with wrong settings has to end.
REFUSAL_LIMIT = 20

ACCOUNT = "123456789012"
REGION = "us-east-1"
TOPIC = f"arn:aws:sns:{REGION}:{ACCOUNT}:agent-restarts"
GROUP = {"account": ACCOUNT, "region": REGION, "application": "my-application", "deploymentGroup": "my-deployment-group"}
HEALTHY = ["i-0000000000000e201", "i-0000000000000e202", "i-0000000000000e203"]
CRASHING = "i-0000000000000e204"
LOST = "i-0000000000000e205"
STARTING = "i-0000000000000e206"

SETTINGS = {"TOPIC_ARN": TOPIC, "DOCUMENT_NAME": "restart-agent", "WINDOWS_DOCUMENT_NAME": "restart-windows-agent", "MAX_CONCURRENCY": "100%"}
# What the function would read from its own environment, so that none of it comes from the caller's.
OWN_VARIABLES = ["TOPIC_ARN", "DOCUMENT_NAME", "WINDOWS_DOCUMENT_NAME", "NOTIFY_ON", "MAX_CONCURRENCY", "MAX_ERRORS", "BUSY_WAIT_SECONDS", "MIN_MEMORY_MIB", "INSTANCE_TAG", "COVERED_ACCOUNTS", "DRY_RUN"]


class Failure(Exception):
    """Something is not as it must be; the text says what."""


def expect_equal(what, found, wanted):
    """Fails unless both are equal; shows both."""
    if found != wanted:
        raise Failure(f"{what}:\n  found  {json.dumps(found, sort_keys=True)}\n  wanted {json.dumps(wanted, sort_keys=True)}")


def expect(holds, what):
    """Fails unless the condition holds."""
    if not holds:
        raise Failure(what)


def clean_environment(**added):
    """The caller's environment without AWS's and our own variables, and without a route to the real AWS."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_") and key not in OWN_VARIABLES}
    environment.update(
        AWS_ACCESS_KEY_ID="AKIDEXAMPLE",
        AWS_SECRET_ACCESS_KEY="example",
        AWS_REGION=REGION,
        AWS_DEFAULT_REGION=REGION,
        AWS_EC2_METADATA_DISABLED="true",
        NO_PROXY="127.0.0.1",
        # cargo-lambda would otherwise try to add a Rust target by itself.
        RUSTUP_DIST_SERVER="http://127.0.0.1:9",
        RUSTUP_MAX_RETRIES="0",
    )
    environment.update(added)
    return environment


def free_port():
    """A loopback port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what, limit, holds):
    """Asks every tenth of a second until the condition holds."""
    end = time.monotonic() + limit
    while not holds():
        if time.monotonic() > end:
            raise Failure(f"{what}: not within {limit} s")
        time.sleep(0.1)


def listens(port):
    """Whether somebody accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A process group with a log file of its own; it is ended, whatever happens."""

    def __init__(self, name, command, environment, logs):
        self.name = name
        self.log = logs / f"{name}.log"
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def alive(self):
        """Fails if the process has ended by itself."""
        expect(self.child.poll() is None, f"{self.name} ended by itself with {self.child.returncode}")
        return True

    def end(self):
        """Asks the process group to end, then makes it."""
        for end_signal in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.child.pid, end_signal)
                self.child.wait(timeout=10)
                return
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


class Stage:
    """The simulated AWS, the emulated Lambda and the function, running."""

    def __init__(self, logs):
        self.logs = logs
        self.processes = []
        self.sim_port = free_port()
        self.lambda_port = free_port()
        self.function = None
        # Seconds for the next invocation.
        self.limit = INVOKE_LIMIT

    def open(self, arguments):
        """Starts everything, in the order in which each needs the other."""
        sim = self.start(
            "sim",
            [arguments.sim, "serve", "--port", str(self.sim_port), "--world", str(WORLD), "--speed", str(SPEED)],
            clean_environment(),
        )
        wait_until("sim", START_LIMIT, lambda: sim.alive() and listens(self.sim_port))
        settings = {**SETTINGS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.sim_port}"}
        watch_command = ["cargo-lambda", "lambda", "watch", "--invoke-address", "127.0.0.1", "--invoke-port", str(self.lambda_port), "--ignore-changes"]
        watch_command += ["--only-lambda-apis"] if arguments.binary else ["--package", "codedeploy-agent-restarter"]
        watch = self.start("watch", watch_command, clean_environment(**settings))
        wait_until("cargo lambda watch", START_LIMIT, lambda: watch.alive() and listens(self.lambda_port))
        if arguments.binary:
            own = {
                "AWS_LAMBDA_RUNTIME_API": f"http://127.0.0.1:{self.lambda_port}/.rt",
                "AWS_LAMBDA_FUNCTION_NAME": "_",
                "AWS_LAMBDA_FUNCTION_VERSION": "1",
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
                # As the template sets it.
                "AWS_LAMBDA_LOG_FORMAT": "JSON",
            }
            self.function = self.start("function", [arguments.binary], clean_environment(**settings, **own))
        else:
            self.function = watch
            self.limit = BUILD_LIMIT

    def start(self, name, command, environment):
        """Starts a process that `end` will end."""
        process = Process(name, command, environment, self.logs)
        self.processes.append(process)
        return process

    def end(self):
        """Ends every process, the last one first."""
        for process in reversed(self.processes):
            process.end()

    def invoke(self, *payload):
        """One invocation by `cargo lambda invoke`: its exit code, what was returned, and what it said on stderr."""
        self.function.alive()
        command = ["cargo-lambda", "lambda", "invoke", "--invoke-address", "127.0.0.1", "--invoke-port", str(self.lambda_port), *payload]
        end = time.monotonic() + self.limit
        with subprocess.Popen(command, env=clean_environment(), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as invocation:
            try:
                while True:
                    try:
                        out, err = invocation.communicate(timeout=1)
                        break
                    except subprocess.TimeoutExpired:
                        # Nobody would ever answer for a function that is gone.
                        self.function.alive()
                        expect(time.monotonic() < end, f"no answer to {payload} within {self.limit} s")
            finally:
                if invocation.poll() is None:
                    invocation.kill()
        self.limit = INVOKE_LIMIT
        return invocation.returncode, out, err

    def invoke_file(self, name):
        """Sends a file of events/; the returned JSON."""
        return self.answer("--data-file", str(EVENTS / f"{name}.json"))

    def answer(self, *payload):
        """One invocation that ends well; the returned JSON."""
        code, out, err = self.invoke(*payload)
        expect(code == 0, f"the invocation ended in an error: {err or out}")
        try:
            return json.loads(out)
        except ValueError as invalid:
            raise Failure(f"not JSON: {out!r}") from invalid

    def state(self):
        """What the simulated AWS has seen."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.sim_port}/_sim/state", timeout=10) as answer:
            return json.load(answer)


def operations(calls):
    """The operations of some calls, in order."""
    return [call["operation"] for call in calls]


def attribute(message, name):
    """One attribute of a published message."""
    found = message["attributes"].get(name)
    return next((found[key] for key in ("value", "Value", "stringValue", "StringValue") if key in found), None) if isinstance(found, dict) else found


def check_report(returned, result, kind, counts):
    """What every restart returns, whatever started it."""
    trigger = returned["trigger"]
    expect_equal("result", returned["result"], result)
    expect_equal("kind", trigger["kind"], kind)
    expect_equal("trigger's place", [trigger["account"], trigger["region"]], [ACCOUNT, REGION])
    expect(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", trigger["time"]), f"time {trigger['time']!r}")
    expect("problem" not in returned, f"a problem: {returned.get('problem')}")
    expect_equal("number of groups", len(returned["groups"]), 1)
    group = returned["groups"][0]
    expect("problem" not in group, f"a problem of the group: {group.get('problem')}")
    expect_equal("group", {key: group[key] for key in GROUP}, GROUP)
    expect_equal("deployments", group["deploymentIds"], ["d-EXAMPLEE5"])
    expect_equal("counts", group["counts"], counts)
    return group


def check_attention(group):
    """The crash-looping and the lost instance, and no other, need attention."""
    expect_equal(
        "attention",
        [(entry["instanceId"], entry["outcome"], entry["severity"]) for entry in group["attention"]],
        [(CRASHING, "failed", "warning"), (LOST, "unreachable", "warning")],
    )
    failed, unreachable = group["attention"]
    expect(re.fullmatch(r"[0-9a-f-]{36}", failed["commandId"]), f"command id {failed.get('commandId')!r}")
    expect("commandId" not in unreachable, "the lost instance was sent a command")
    expect(failed["detail"] and unreachable["detail"], "an entry without detail")
    expect_equal("name", failed.get("name"), "web-4")


def check_message(returned, before, after):
    """Exactly one message came, and it is another view of the returned report."""
    messages = after["messages"][len(before["messages"]) :]
    expect_equal("messages", len(messages), 1)
    message = messages[0]
    expect_equal("topic", message["topic"], TOPIC)
    expect(re.fullmatch(r"[ -~]{1,99}", message["subject"] or ""), f"subject {message['subject']!r}")
    trigger = returned["trigger"]
    for words in ("WARNING: 1 failed, 1 unreachable of 6 agents", f"({ACCOUNT} {REGION})"):
        expect(words in message["subject"], f"subject {message['subject']!r} does not say {words}")
    bodies = json.loads(message["message"])
    for protocol in ("default", "email", "sqs", "lambda"):
        expect(isinstance(bodies.get(protocol), str) and bodies[protocol], f"no body for {protocol}")
    for protocol in ("default", "email"):
        for words in ("my-application", "my-deployment-group", CRASHING, LOST, "failed", "unreachable"):
            expect(words in bodies[protocol], f"the {protocol} body does not name {words}:\n{bodies[protocol]}")
    for protocol in ("sqs", "lambda"):
        expect_equal(f"{protocol} body", json.loads(bodies[protocol]), {**returned, "notified": True})
    wanted = {
        "result": "attention",
        "severity": "warning",
        **GROUP,
    }
    if "pipeline" in trigger:
        wanted["pipeline"] = "my-pipeline"
    expect_equal("attributes", {name: attribute(message, name) for name in message["attributes"]}, wanted)


def story_dry_run(stage):
    """A dry run returns its plan and logs it, for nobody gets the answer to an event; it sends and publishes nothing."""
    before = stage.state()
    returned = stage.invoke_file("dry-run")
    after = stage.state()
    group = check_report(returned, "dry-run", "request", {"skipped": 1, "unreachable": 1})
    expect_equal("notified", returned["notified"], False)
    expect_equal(
        "plan",
        [(step["instanceId"], step["decision"]) for step in group["plan"]],
        [(instance, "restart") for instance in [*HEALTHY, CRASHING]] + [(LOST, "unreachable"), (STARTING, "skipped")],
    )
    expect("Pending:Wait" in group["plan"][-1]["reason"], f"reason {group['plan'][-1]['reason']!r}")
    log = stage.function.log.read_text()
    for step in group["plan"]:
        line = f"dry run: {group['application']}/{group['deploymentGroup']}: {step['instanceId']}: {step['decision']}: {step['reason']}"
        expect(line in log, f"the log does not say {line!r}")
    fleet = [*HEALTHY, CRASHING, LOST, STARTING]
    expect_equal("agents", [host(after, instance)["agent"] for instance in fleet], [host(before, instance)["agent"] for instance in fleet])
    called = operations(after["calls"][len(before["calls"]) :])
    expect(called and not {"SendCommand", "Publish"} & set(called), f"a dry run called {called}")


def story_ignored(stage):
    """Events that are none of ours are ignored, with a reason, without a single call."""
    before = len(stage.state()["calls"])
    for name in ("pipeline-started", "action-succeeded"):
        returned = stage.invoke_file(name)
        expect_equal(f"{name}: result", returned["result"], "ignored")
        expect(returned.get("reason"), f"{name}: ignored without a reason")
        expect_equal(f"{name}: groups and message", [returned["groups"], returned["notified"]], [[], False])
    expect_equal("calls", len(stage.state()["calls"]), before)


def story_refused(stage):
    """What cannot be understood ends in an error of the invocation, by name, and nothing is called; the function lives on."""
    before = len(stage.state()["calls"])
    request = {"application": "my-application", "deploymentGroup": "my-deployment-group"}
    pipeline = json.loads((EVENTS / "pipeline-succeeded.json").read_text())
    del pipeline["detail"]["execution-id"]
    refusals = [
        ([], "object"),
        (None, "object"),
        (7, "object"),
        ({}, "application"),
        ({**request, "dryrun": True}, "dryrun"),
        ({**request, "dryRun": "yes"}, "dryRun|bool"),
        (pipeline, "execution-id"),
    ]
    for payload, word in refusals:
        text = json.dumps(payload)
        code, out, err = stage.invoke("--data-ascii", text)
        expect(code != 0, f"{text} was taken: {out}")
        expect(re.search(word, err), f"{text}: the error does not say {word!r}: {err}")
    stage.function.alive()
    expect_equal("calls", len(stage.state()["calls"]), before)


def story_restart(stage):
    """A succeeded pipeline restarts the fleet, and tells about the two agents that need attention."""
    before = stage.state()
    returned = stage.invoke_file("pipeline-succeeded")
    after = stage.state()
    group = check_report(returned, "attention", "pipeline", {"failed": 1, "restarted": 3, "skipped": 1, "unreachable": 1})
    expect_equal("trigger", [returned["trigger"].get("pipeline"), returned["severity"], returned["notified"]], ["my-pipeline", "warning", True])
    event = json.loads((EVENTS / "pipeline-succeeded.json").read_text())
    expect_equal("execution", returned["trigger"]["executionId"], event["detail"]["execution-id"])
    expect(group["memoryBeforeKiB"] > group["memoryAfterKiB"] > 0, f"memory {group.get('memoryBeforeKiB')} to {group.get('memoryAfterKiB')}")
    check_attention(group)
    check_message(returned, before, after)
    changed = [instance for instance in [*HEALTHY, LOST, STARTING] if agent_start(before, instance) != agent_start(after, instance)]
    expect_equal("hosts with another agent", changed, HEALTHY)


# What tells of the same deployment: the success in every spelling and wrapping, and every other end.
VIEWS = [
    *(f"pipeline-{each}" for each in ("succeeded-integers", "succeeded-strings", "rollback", "failed", "stopped", "superseded")),
    *("sqs-record", "sns-record", "codedeploy-success", "codedeploy-failure"),
]


def story_again(stage):
    """The same success once more, in every spelling and wrapping, and every other end touch no healthy agent again."""
    for name in VIEWS:
        before = stage.state()
        returned = stage.invoke_file(name)
        after = stage.state()
        kind = "deployment" if name.startswith("codedeploy-") else "pipeline"
        group = check_report(returned, "attention", kind, {"already-restarted": 3, "failed": 1, "skipped": 1, "unreachable": 1})
        check_attention(group)
        check_message(returned, before, after)
        for instance in HEALTHY:
            expect_equal(f"{name}: start of the agent on {instance}", agent_start(after, instance), agent_start(before, instance))


def story_by_hand(stage):
    """A request by hand leaves alone whoever is fresh since the deployment; one with the present time restarts the healthy agents again."""
    first = stage.state()
    returned = stage.invoke_file("by-hand")
    before = stage.state()
    group = check_report(returned, "attention", "request", {"failed": 1, "already-restarted": 3, "skipped": 1, "unreachable": 1})
    check_attention(group)
    check_message(returned, first, before)
    for instance in HEALTHY:
        expect_equal(f"the start of the agent on {instance}", agent_start(before, instance), agent_start(first, instance))
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    request = {**json.loads((EVENTS / "by-hand.json").read_text()), "time": now}
    returned = stage.answer("--data-ascii", json.dumps(request))
    after = stage.state()
    group = check_report(returned, "attention", "request", {"failed": 1, "restarted": 3, "skipped": 1, "unreachable": 1})
    check_attention(group)
    check_message(returned, before, after)
    for instance in HEALTHY:
        expect(agent_start(after, instance) > agent_start(before, instance), f"the agent on {instance} was not restarted")


def story_log(stage):
    """Every line of the log is JSON, with one line of metrics for each restart and none for a dry run."""
    lines = stage.function.log.read_text().splitlines()
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError as invalid:
            raise Failure(f"not JSON: {line!r}") from invalid
        expect(isinstance(entry, dict), f"not an object: {line!r}")
    metrics = [json.loads(line) for line in lines if "_aws" in json.loads(line)]
    # The pipeline's success, the other views of it, and the requests by hand.
    expect_equal("restarted agents in the metrics", [entry["Restarted"] for entry in metrics], [3, *(0 for _ in VIEWS), 0, 3])
    for entry in metrics:
        directive = entry["_aws"]["CloudWatchMetrics"][0]
        expect_equal("namespace", directive["Namespace"], "CodeDeployAgentRestarter")
        expect_equal("dimensions", directive["Dimensions"], [["Application", "DeploymentGroup"]])
        expect_equal("group", [entry["Application"], entry["DeploymentGroup"]], ["my-application", "my-deployment-group"])
        expect_equal("attention and skipped", [entry["Attention"], entry["Skipped"]], [2, 4 - entry["Restarted"]])


def host(state, instance):
    """One host of the simulated AWS."""
    hosts = state["hosts"]
    found = hosts.values() if isinstance(hosts, dict) else hosts
    return next(each for each in found if each["id"] == instance)


def agent_start(state, instance):
    """When the agent of a host was started."""
    return host(state, instance)["agent"]["startedAt"]


class CountingRuntime:
    """Stands where Lambda's runtime interface would be, and counts who asks."""

    def __enter__(self):
        requests = self.requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            """Refuses everything."""

            def refuse(self):
                """Notes the request."""
                requests.append(f"{self.command} {self.path}")
                self.send_error(500)

            do_GET = do_POST = refuse

            def log_message(self, *_):
                """Says nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def address(self):
        """Host and port, as Lambda gives them."""
        return f"127.0.0.1:{self.server.server_port}"


def story_wrong_settings(binary):
    """Wrong settings are all named, one line each, and end the binary with 1 before it asks the runtime for anything."""
    wrong = {
        "TOPIC_ARN": f"{TOPIC}.fifo",
        "WINDOWS_DOCUMENT_NAME": "two words",
        "NOTIFY_ON": "never",
        "MAX_CONCURRENCY": "0",
        "MAX_ERRORS": "101%",
        "BUSY_WAIT_SECONDS": "241",
        "MIN_MEMORY_MIB": "-1",
        "INSTANCE_TAG": "yes",
        "COVERED_ACCOUNTS": "all",
        "DRY_RUN": "yes",
    }
    cases = [
        # DOCUMENT_NAME is missing, everything else is wrong.
        (wrong, [*wrong, "DOCUMENT_NAME"]),
        ({}, ["TOPIC_ARN", "DOCUMENT_NAME"]),
        ({**SETTINGS, "BUSY_WAIT_SECONDS": "120.5"}, ["BUSY_WAIT_SECONDS"]),
    ]
    for settings, named in cases:
        with CountingRuntime() as runtime:
            environment = clean_environment(AWS_LAMBDA_RUNTIME_API=runtime.address, AWS_LAMBDA_FUNCTION_NAME="_", AWS_LAMBDA_FUNCTION_VERSION="1", AWS_LAMBDA_FUNCTION_MEMORY_SIZE="256", **settings)
            try:
                done = subprocess.run([binary], env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=REFUSAL_LIMIT, check=False)
            except subprocess.TimeoutExpired as late:
                raise Failure(f"the binary goes on with {settings}") from late
            expect_equal(f"exit code with {settings}; stderr: {done.stderr}", done.returncode, 1)
            lines = done.stderr.splitlines()
            found = sorted(name for line in lines for name in OWN_VARIABLES if re.search(rf"\b{name}\b", line))
            expect_equal(f"variables named on stderr ({done.stderr})", found, sorted(named))
            expect_equal("lines on stderr", len(lines), len(named))
            expect_equal("calls of the runtime", runtime.requests, [])


def told(story, *arguments):
    """Runs one story and says so."""
    start = time.monotonic()
    story(*arguments)
    print(f"ok   {time.monotonic() - start:5.1f} s  {story.__doc__}", flush=True)


def main():
    """Runs the stories in order on one world; shows the logs if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sim", default="target/debug/sim", help="the simulated AWS")
    parser.add_argument("--binary", help="the function's binary; without it `cargo lambda watch` builds and starts the function itself")
    arguments = parser.parse_args()
    arguments.sim = str((ROOT / arguments.sim).resolve())
    if arguments.binary:
        arguments.binary = str((ROOT / arguments.binary).resolve())
    # What was started here is ended in any case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="e2e-") as folder:
        logs = pathlib.Path(folder)
        stage = Stage(logs)
        try:
            if arguments.binary:
                told(story_wrong_settings, arguments.binary)
            stage.open(arguments)
            for story in (story_dry_run, story_ignored, story_refused, story_restart, story_again, story_by_hand):
                told(story, stage)
            if arguments.binary:
                told(story_log, stage)
        except Failure as failure:
            print(f"FAILED {failure}", file=sys.stderr)
            for log in sorted(logs.glob("*.log")):
                print(f"--- {log.name}, its end\n{log.read_text(errors='replace')[-8000:]}", file=sys.stderr)
            sys.exit(1)
        finally:
            stage.end()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The function's own process, killed in the middle of its work; its event is delivered again, as Lambda does.

    tests/e2e/killed.py --binary .aws-sam/build/RestartFunction/bootstrap --sim target/debug/sim

This script plays Lambda's runtime interface, and stands between the binary and the simulated AWS: at one exact call, before it is passed on or after it took
effect, the process ends by SIGKILL. A new process gets the same event. Hosts and topic are then checked in what the simulated AWS has seen (GET /_sim/state).
The last cases are controls: there something is wrong on purpose, and the same checks must find it. Needs nothing but Python's standard library. Every wait
has an end, only processes started here are ended, and the exit status is 1 when anything failed.
"""

import argparse
import collections
import http.client
import http.server
import json
import os
import pathlib
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
import typing
import urllib.parse
import urllib.request

import run
from run import CRASHING, EVENTS, HEALTHY, LOST, REGION, ROOT, STARTING, Failure, Process, expect, expect_equal, host, wait_until

# How many times faster than real the simulated hosts are. The function looks every 5 s of real time: a fast restart is over at its first look, the slow one
# is not at its second.
SPEED = 12
FAST_RESTART = 20
SLOW_RESTART = 145
# Seconds until a server answers, and until a process that was killed is gone.
START_LIMIT = 30
KILL_LIMIT = 10
# Seconds that one process may work on the event; the slowest needs 25.
DELIVERY_LIMIT = 75
# Seconds until every command on every host is over.
REST_LIMIT = 30
# Seconds for everything; the cases run side by side, since most of each is waiting.
RUN_LIMIT = 200
# Seconds that one call through this script may take.
CALL_LIMIT = 20

# What Lambda leaves a function: the template's timeout.
TIMEOUT = 900
REQUEST_ID = "8476a536-e9f4-11e8-9739-2dfe598c3fcd"
FUNCTION = "agent-restarts"
FUNCTION_ARN = f"arn:aws:lambda:{REGION}:{run.ACCOUNT}:function:{FUNCTION}"
TRACE = "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=0"

# The default of half the fleet at a time, so that a killed process leaves some unsent. Here the event comes again at once and not a minute later, so that
# the hosts may still be restarting: those of the next delivery wait for them.
SETTINGS = {**run.SETTINGS, "MAX_CONCURRENCY": "50%", "BUSY_WAIT_SECONDS": "240"}
SLOW, STOPPED = HEALTHY[1:]
SENT_TO = [*HEALTHY, CRASHING]
FLEET = [*SENT_TO, LOST, STARTING]
# How often an agent has been restarted in the end, whatever happened on the way.
RESTARTS = {**dict.fromkeys(SENT_TO, 1), LOST: 0, STARTING: 0}
SILENCE = f"silence: no message names both {CRASHING} and {LOST}"


class Point(typing.NamedTuple):
    """A call at which the process is killed."""

    operation: str
    # The how manieth of its operation in this process.
    number: int
    # Whether the simulated AWS gets it; the reply is lost in any case.
    takes_effect: bool

    def __str__(self):
        return f"{self.operation} {self.number} {'took effect' if self.takes_effect else 'not passed on'}"


BEFORE_SEND = Point("SendCommand", 1, False)
AFTER_SEND = Point("SendCommand", 1, True)
POLLING = Point("ListCommandInvocations", 2, False)
BEFORE_PUBLISH = Point("Publish", 1, False)
AFTER_PUBLISH = Point("Publish", 1, True)


class Case(typing.NamedTuple):
    """One story: the kills, one for each delivery, and then one delivery that runs to its end."""

    name: str
    kills: list[Point]
    # The event of the last delivery; None leaves it out.
    again: str | None = "pipeline-succeeded"
    # Whether that carries the present time, as a request may.
    anew: bool = False
    # What the checks of hosts and topic must find: nothing, except in a control.
    found: list[str] = []
    # Whether the last answer must be right as well.
    answered: bool = True
    # What a host of the world says or is, other than usual.
    changed: dict = {}
    settings: dict = SETTINGS
    speed: int = SPEED


LIE = '{"agentRestart":1,"result":"restarted","code":0,"agentVersion":"OFFICIAL_1.8.1-1_rpm","memoryBeforeKiB":112640,"memoryAfterKiB":52224,"seconds":41,"detail":""}\n'

CASES = [
    Case("before the send", [BEFORE_SEND]),
    Case("after the send", [AFTER_SEND]),
    Case("while polling", [POLLING]),
    Case("before the publish", [BEFORE_PUBLISH]),
    Case("after the publish", [AFTER_PUBLISH]),
    Case("twice after the send", [AFTER_SEND, AFTER_SEND]),
    Case(
        "control: never delivered again",
        [AFTER_SEND],
        again=None,
        # Nobody was told, and the half that was not sent is as it was.
        found=[f"{STOPPED} restarted 0 times, not 1", f"{CRASHING} restarted 0 times, not 1", f"the agent of {STOPPED} does not run", SILENCE],
    ),
    Case(
        "control: a host that lies",
        [BEFORE_SEND],
        # The function believes it, and its answer is as it should be: only the host itself tells.
        changed={HEALTHY[0]: {"answer": {"status": "Success", "output": LIE}}},
        found=[f"{HEALTHY[0]} restarted 0 times, not 1"],
    ),
    Case(
        "control: a new order instead",
        [BEFORE_PUBLISH],
        # A request by hand with the present time restarts again whoever is fresh.
        again="by-hand",
        anew=True,
        found=[f"{instance} restarted 2 times, not 1" for instance in SENT_TO],
        answered=False,
        settings={**SETTINGS, "MAX_CONCURRENCY": "100%"},
        speed=60,
    ),
]


def world(changed):
    """The world of run.py with a slow host, and one whose agent does not run; `changed` adds to hosts."""
    state = json.loads(run.WORLD.read_text())
    hosts = {each["id"]: each for each in state["regions"][REGION]["hosts"]}
    hosts[HEALTHY[0]]["agent"] = {"restartSeconds": FAST_RESTART}
    hosts[SLOW]["agent"]["restartSeconds"] = SLOW_RESTART
    hosts[STOPPED]["agent"].update(running=False, memoryKiB=0)
    for instance, added in changed.items():
        hosts[instance].update(added)
    return state


class Processes:
    """Every process that was started here."""

    def __init__(self):
        self.lock = threading.Lock()
        self.started = []
        self.closed = False

    def start(self, *arguments):
        """Starts one; not after `end`."""
        with self.lock:
            expect(not self.closed, "the run has ended")
            process = Process(*arguments)
            self.started.append(process)
            return process

    def end(self):
        """Ends what still runs."""
        with self.lock:
            self.closed = True
        for process in reversed(self.started):
            end(process)


def end(process):
    """Ends a process, unless it is gone: its number may be another's by now."""
    if process.child.poll() is None:
        process.end()


class Server:
    """An HTTP server on a free loopback port; `answer(method, path, headers, body)` gives status, headers and body, or None to break the connection."""

    def __init__(self, answer):
        # What went wrong in it: the case fails with it.
        wrong = self.wrong = []

        class Handler(http.server.BaseHTTPRequestHandler):
            """Passes every request on to `answer`."""

            protocol_version = "HTTP/1.1"
            # A reply goes out in one piece.
            wbufsize = -1

            def reply(self):
                """Answers one request."""
                expect("Transfer-Encoding" not in self.headers, f"{self.path}: a body without a length")
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answered = answer(self.command, self.path, self.headers, body)
                if answered is None:
                    self.close_connection = True
                    return
                status, headers, content = answered
                self.send_response_only(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = reply

            def log_message(self, *_):
                """Says nothing."""

        class Threads(http.server.ThreadingHTTPServer):
            """A thread for each connection."""

            def handle_error(self, *_):
                """A client that went away is none; one that was killed does."""
                if not isinstance(sys.exc_info()[1], ConnectionError):
                    wrong.append(traceback.format_exc())

        self.server = Threads(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    @property
    def address(self):
        """Host and port."""
        return f"127.0.0.1:{self.server.server_port}"

    def end(self):
        """Takes no more connections."""
        self.server.shutdown()
        self.server.server_close()


class Delivery:
    """One event, given to one new process by what looks like Lambda, with what looks like AWS behind it."""

    def __init__(self, event, point, sim_address):
        self.event = event
        self.point = point
        self.sim_address = sim_address
        self.process = None
        self.lock = threading.Lock()
        self.started = threading.Event()
        self.over = threading.Event()
        self.closed = threading.Event()
        # What was asked of the runtime interface, and the operations called, in order.
        self.asked = []
        self.calls = []
        self.answer = None

    def carry_out(self, start):
        """Runs until the answer is there or the process is killed; `start` gets its environment."""
        runtime, aws = Server(self.runtime), Server(self.aws)
        try:
            self.process = start(lambda_environment(runtime.address, aws.address))
            self.started.set()
            child = self.process.child
            latest = time.monotonic() + DELIVERY_LIMIT
            while not self.over.wait(0.1) and child.poll() is None and not runtime.wrong + aws.wrong:
                expect(time.monotonic() < latest, f"neither answered nor killed within {DELIVERY_LIMIT} s; calls: {self.calls}")
            # A process that is being killed is gone a moment before this is over.
            ended = self.over.wait(KILL_LIMIT)
            expect(not runtime.wrong + aws.wrong, "in this script: " + "\n".join(runtime.wrong + aws.wrong))
            expect(ended, f"the process ended by itself with {child.returncode}; calls: {self.calls}")
            if self.point:
                expect_equal("asked of the runtime by a process that is to be killed", self.asked, ["GET next"])
                expect_equal("exit code", child.returncode, -signal.SIGKILL)
                expect_equal("last call", self.calls[-1], self.point.operation)
            else:
                # It lives, and is ready for the next event.
                wait_until("a process that asks for the next event", KILL_LIMIT, lambda: len(self.asked) > 2)
                expect_equal("asked of the runtime", self.asked, ["GET next", "POST response", "GET next"])
                expect(child.poll() is None, f"the process ended after its answer, with {child.returncode}")
        finally:
            self.closed.set()
            if self.process:
                end(self.process)
            runtime.end()
            aws.end()

    def runtime(self, method, path, _headers, body):
        """Lambda's runtime interface: it has one event."""
        expect(path.startswith("/2018-06-01/runtime/"), f"no path of the runtime interface: {path}")
        what = path.rsplit("/", 1)[1]
        with self.lock:
            self.asked.append(f"{method} {what}")
            first = len(self.asked) == 1
        if what == "next":
            if not first:
                self.closed.wait(RUN_LIMIT)
                return None
            expect(self.started.wait(START_LIMIT), "a process that never started asks for an event")
            headers = {
                "Content-Type": "application/json",
                # The same in every delivery of an event.
                "Lambda-Runtime-Aws-Request-Id": REQUEST_ID,
                "Lambda-Runtime-Deadline-Ms": str(int((time.time() + TIMEOUT) * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": FUNCTION_ARN,
                "Lambda-Runtime-Trace-Id": TRACE,
            }
            return 200, headers, self.event
        if path.endswith(f"/invocation/{REQUEST_ID}/response"):
            self.answer = json.loads(body)
        else:
            self.asked[-1] += f": {body.decode(errors='replace')}"
        self.over.set()
        return 202, {"Content-Type": "application/json"}, b'{"status":"OK"}'

    def aws(self, method, path, headers, body):
        """Passes a call on, unless it is the one at which the process dies."""
        target = headers.get("X-Amz-Target")
        operation = target.rsplit(".", 1)[1] if target else urllib.parse.parse_qs(body.decode())["Action"][0]
        with self.lock:
            if self.over.is_set():
                return None
            self.calls.append(operation)
            here = self.point and (operation, self.calls.count(operation)) == self.point[:2]
        if here and not self.point.takes_effect:
            return self.kill()
        reply = self.pass_on(method, path, headers, body)
        return self.kill() if here else reply

    def pass_on(self, method, path, headers, body):
        """One call of the simulated AWS, as it came."""
        connection = http.client.HTTPConnection(self.sim_address, timeout=CALL_LIMIT)
        try:
            connection.request(method, path, body, {name: value for name, value in headers.items() if name.lower() not in ("connection", "content-length")})
            reply = connection.getresponse()
            content = reply.read()
            dropped = ("connection", "content-length", "transfer-encoding", "date")
            return reply.status, {name: value for name, value in reply.getheaders() if name.lower() not in dropped}, content
        finally:
            connection.close()

    def kill(self):
        """SIGKILL, and nothing is over before the process is gone. No reply."""
        os.kill(self.process.child.pid, signal.SIGKILL)
        self.process.child.wait(KILL_LIMIT)
        self.over.set()


def lambda_environment(runtime, aws):
    """What Lambda sets for a function on an OS-only runtime; nothing of the caller's."""
    return {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_SESSION_TOKEN": "example",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": f"http://{aws}",
        "AWS_LAMBDA_RUNTIME_API": runtime,
        "AWS_LAMBDA_FUNCTION_NAME": FUNCTION,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{FUNCTION}",
        "AWS_LAMBDA_LOG_STREAM_NAME": "2026/02/17/[$LATEST]5e1f0c7a9b3d4c2e8f6a1b0d9c8e7f60",
        # As the template sets it.
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
        "_HANDLER": "bootstrap",
        "LAMBDA_TASK_ROOT": "/var/task",
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "LANG": "en_US.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/opt/bin",
        "TZ": ":UTC",
    }


def invocations(state):
    """Everything that was sent to a host, in order."""
    return [invocation for command in state["commands"] for invocation in command["invocations"]]


def under_way(state):
    """The hosts on which a command is not over. One that answers verbatim never runs it."""
    return sorted({each["instanceId"] for each in invocations(state) if each["endedAt"] is None and not host(state, each["instanceId"])["answer"]})


def restarts(state):
    """How often each agent was restarted."""
    return {instance: len(host(state, instance)["agent"]["restarts"]) for instance in FLEET}


def names_both(message):
    """Whether people read in it of both that need attention."""
    texts = json.loads(message["message"])
    return message["topic"] == run.TOPIC and all(instance in texts[protocol] for instance in (CRASHING, LOST) for protocol in ("default", "email"))


def problems(state):
    """What is not as it must be on hosts and topic once all is over: each agent fresh, restarted once, and running, and nobody left untold."""
    found = [f"{instance} restarted {times} times, not {RESTARTS[instance]}" for instance, times in restarts(state).items() if times != RESTARTS[instance]]
    found += [f"the agent of {instance} does not run" for instance in FLEET if not host(state, instance)["agent"]["running"]]
    found += [f"a command to {instance} is not over" for instance in under_way(state)]
    if not any(names_both(message) for message in state["messages"]):
        found.append(SILENCE)
    return found


def check_killed(delivery, before, after):
    """The process died exactly there: what AWS has seen of it, and what stands still."""
    point = delivery.point
    seen = [call["operation"] for call in after["calls"][len(before["calls"]) :]]
    expect_equal("calls that took effect", sorted(seen), sorted(delivery.calls if point.takes_effect else delivery.calls[:-1]))
    expect("DescribeInstanceInformation" in seen, "the fleet was not read")
    commands = len(after["commands"]) - len(before["commands"])
    messages = len(after["messages"]) - len(before["messages"])
    expect_equal("messages of a killed process", messages, int(point == AFTER_PUBLISH))
    if point.operation == "SendCommand":
        expect_equal("commands of a killed process", commands, int(point.takes_effect))
    else:
        expect(commands > 0, "nothing was sent")
    if point == POLLING:
        expect(SLOW in under_way(after), "no host restarts any more")
    # The checks are worth something: without another delivery they fail, unless all is done and told.
    found = problems(after)
    expect_equal("silence is found at the kill", SILENCE in found, point != AFTER_PUBLISH)
    if point.operation == "Publish":
        expect_equal("problems at the kill", [each for each in found if each != SILENCE], [])


def check_answer(answer, first, before, after):
    """The last delivery accounts for each instance once: by what was sent before it, as restarted already or now."""
    sent_before = {each["instanceId"] for each in invocations(before)}
    results = {}
    for instance in HEALTHY:
        fresh = "restarted" if host(first, instance)["agent"]["running"] else "started"
        results[instance] = "already-restarted" if instance in sent_before else fresh
    counts = {**collections.Counter(results.values()), "failed": 1, "unreachable": 1, "skipped": 1}
    group = run.check_report(answer, "attention", "pipeline", counts)
    run.check_attention(group)
    run.check_message(answer, before, after)
    last = invocations(after)[len(invocations(before)) :]
    expect_equal("instances that the last delivery was sent to", sorted(each["instanceId"] for each in last), SENT_TO)
    for each in last:
        if not host(after, each["instanceId"])["answer"]:
            wanted = results.get(each["instanceId"], "agent-unhealthy")
            expect_equal(f"result on {each['instanceId']}", json.loads(each["output"].splitlines()[0])["result"], wanted)


class Stage:
    """A simulated AWS of its own for one case."""

    def __init__(self, case, arguments, processes, logs):
        self.case = case
        self.arguments = arguments
        self.processes = processes
        self.logs = logs
        self.address = None
        self.deliveries = 0

    def world(self):
        """What the simulated AWS is to be."""
        return world(self.case.changed)

    def open(self):
        """Starts the simulated AWS."""
        path = self.logs / "world.json"
        path.write_text(json.dumps(self.world()))
        command = [self.arguments.sim, "serve", "--world", str(path), "--speed", str(self.case.speed)]
        sim = self.processes.start("sim", command, run.clean_environment(), self.logs)
        ready = re.compile(r"sim listens on http://(127\.0\.0\.1:\d+)\n")
        wait_until("sim", START_LIMIT, lambda: ready.search(sim.log.read_text()) or not sim.alive())
        self.address = ready.search(sim.log.read_text())[1]

    def state(self):
        """What the simulated AWS has seen."""
        with urllib.request.urlopen(f"http://{self.address}/_sim/state", timeout=CALL_LIMIT) as answer:
            return json.load(answer)

    def deliver(self, event, point=None, anew=False):
        """One delivery to a new process, to its end."""
        self.deliveries += 1
        payload = json.loads((EVENTS / f"{event}.json").read_bytes())
        if anew:
            payload["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        delivery = Delivery(json.dumps(payload).encode(), point, self.address)
        name = f"function-{self.deliveries}"
        delivery.carry_out(lambda environment: self.processes.start(name, [self.arguments.binary], {**environment, **self.case.settings}, self.logs))
        return delivery

    def play(self):
        """The case; what was seen in it."""
        self.open()
        first = before = self.state()
        seen = []
        for point in self.case.kills:
            delivery = self.deliver("pipeline-succeeded", point)
            after = self.state()
            check_killed(delivery, before, after)
            done = sum(restarts(after).values())
            seen.append(f"killed at call {len(delivery.calls)}, {point}: {done} restarts done, {len(under_way(after))} under way, {len(after['messages'])} messages")
            before = after
        delivery = None
        if self.case.again:
            delivery = self.deliver(self.case.again, anew=self.case.anew)
            counts = delivery.answer["groups"][0]["counts"] if delivery.answer["groups"] else {}
            seen.append(f"{self.case.again} again: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
        wait_until("commands that are over", REST_LIMIT, lambda: not under_way(self.state()))
        after = self.state()
        found = problems(after)
        in_the_end = f"in the end: {len(after['commands'])} commands, {len(after['messages'])} messages, restarts"
        seen.append(" ".join([in_the_end, *(f"{instance[-4:]}:{times}" for instance, times in restarts(after).items())]))
        if self.case.found:
            seen.append(f"found: {'; '.join(found)}")
        expect_equal("problems of hosts and topic", sorted(found), sorted(self.case.found))
        if delivery and self.case.answered:
            check_answer(delivery.answer, first, before, after)
        return seen


def told(stage, lines, passed):
    """Plays one case. Its line says what was seen; if it failed, why, with the ends of its logs."""
    name = stage.case.name
    start = time.monotonic()
    try:
        seen = stage.play()
        line = f"ok   {time.monotonic() - start:5.1f} s  {name}: {' | '.join(seen)}"
        passed.append(name)
    except Failure as failure:
        line = failed(stage, str(failure))
    except Exception:
        line = failed(stage, traceback.format_exc())
    lines[name] = line


def failed(stage, reason):
    """A failed case, for people."""
    logs = [f"--- {stage.case.name}: {log.name}, its end\n{log.read_text(errors='replace')[-4000:]}" for log in sorted(stage.logs.glob("*.log"))]
    return "\n".join([f"FAILED {stage.case.name}: {reason}", *logs])


def main():
    """Plays all cases side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sim", default="target/debug/sim", help="the simulated AWS")
    parser.add_argument("--binary", default=".aws-sam/build/RestartFunction/bootstrap", help="the function's binary")
    arguments = parser.parse_args()
    arguments.sim = str((ROOT / arguments.sim).resolve())
    arguments.binary = str((ROOT / arguments.binary).resolve())
    # What was started here is ended in any case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    lines = {}
    passed = []
    processes = Processes()
    with tempfile.TemporaryDirectory(prefix="killed-", ignore_cleanup_errors=True) as folder:
        try:
            threads = []
            for number, case in enumerate(CASES):
                logs = pathlib.Path(folder) / str(number)
                logs.mkdir()
                stage = Stage(case, arguments, processes, logs)
                threads.append(threading.Thread(target=told, args=(stage, lines, passed), name=case.name, daemon=True))
                threads[-1].start()
            for thread in threads:
                thread.join(max(0, began + RUN_LIMIT - time.monotonic()))
                print(lines.get(thread.name, f"FAILED {thread.name}: not over within {RUN_LIMIT} s"), flush=True)
        finally:
            processes.end()
    print(f"{len(passed)} of {len(CASES)} cases passed, {time.monotonic() - began:.0f} s")
    sys.exit(len(passed) != len(CASES))


if __name__ == "__main__":
    main()

"""One table for two: the cases of contract.json, which are told in the contract's words, on the real script. The same table is held against the simulated hosts
that the function's tests use (tests/contract.rs), so that both say the same."""

import json
import time

from cases import Case, race
from field import queue_its_start
from stage import AGENT, CLI, CONFIG, DROP_IN, HERE, LOG, STAGE, TRACKING, expect, expect_equal

CASES = []
# Seconds of wait where something stays, and where it ends.
SHORT, LONG = 3, 60
SHELLS = ("dash", "bash", "busybox")


def furnish(given):
    """What a host needs before it boots."""

    def prepare(host):
        if given.get("fault") == "old-agent-survived":
            host.write("/usr/local/sbin/systemctl", '#!/bin/bash\n[ "$1" = restart ] && exit 0\nexec /usr/bin/systemctl "$@"\n', 0o755)
        if given.get("event") == "begins":
            race("exec -a the-hook /usr/bin/sleep 600")(host)
        if given.get("job") == "start":
            queue_its_start(host)
        if not given.get("installed", True):
            host.remove(AGENT)

    return prepare


def bring_about(host, given):
    """What is true of a running host."""
    fault = given.get("fault")
    if fault == "preflight-failed":
        host.write(CONFIG, "\t broken\n")
    elif fault == "service-manager-failed":
        host.write("/etc/systemd/system/codedeploy-agent.service.d/fails.conf", "[Service]\nExecStartPre=/bin/false\n")
        host.must("systemctl daemon-reload")
    elif fault == "agent-down":
        host.knob("master_dies_after", "4")
    elif fault == "agent-unhealthy":
        host.knob("crash", "ready certificate verify failed")
        host.must(f"kill {host.agent()[1].pid}")
    elif fault == "deaf":
        host.knob("error_pause", "2")
        host.knob("poll", "refused")
        host.wait_for("its refused polls", 20, lambda: host.read(LOG).count("Error polling") > 1)
    elif fault == "unknown-agent":
        host.must("systemctl start codedeploy-agent")
        host.wait_for("the program", 15, lambda: host.find(f"{CLI} start"))
    elif fault == "program-away":
        host.must(f"mv {CLI} {CLI}.away")
    if given.get("event") == "left":
        host.write(f"{TRACKING}/d-LEFT", "a-host-command-identifier")
    if given.get("job"):
        host.must(f"systemctl {given['job']} --no-block codedeploy-agent")
        time.sleep(0.5)
    if given.get("event") in ("ends", "stays"):
        host.hook("d-EVENT", f"exec -a the-hook /usr/bin/sleep {600 if given['event'] == 'stays' else 7}")
    if given.get("update"):
        host.must(f"mkdir -p {STAGE}/bin && cp /usr/bin/sleep {STAGE}/bin/dpkg")
        host.spawn(f"exec {STAGE}/bin/dpkg {600 if given['update'] == 'stays' else 7}")
        host.wait_for("dpkg", 10, lambda: host.find(f"{STAGE}/bin/dpkg "))


def body_of(entry, shell):
    given, wanted = entry["given"], entry["expect"]

    def body(stage):
        name = f"contract: {entry['name']}"
        unknown = given.get("fault") == "unknown-agent"
        starts = given.get("installed", True) and given.get("running", True) and not unknown
        # A job that waits for the agent's end does so for as long as its poll takes.
        knobs = {"poll_seconds": 15} if given.get("job") in ("stop", "restart") else {}
        with stage.host(name, "single" if unknown else "native", shell, start=starts, prepare=furnish(given), **knobs) as host:
            before = host.agent()
            bring_about(host, given)
            stays = "stays" in (given.get("event"), given.get("update")) or given.get("job")
            order = {
                "sent": 3600 if given.get("fresh") else 0,
                "minimum": 1000 if given.get("small") else 0,
                "wait": SHORT if stays else LONG,
                "as_user": 65534 if given.get("fault") == "not-root" else None,
            }
            other = host.begin(wait=25) if given.get("otherRun") else None
            if other:
                host.is_held(other)
            verdict = host.restart(**order)
            expect_equal(f"result and code of {verdict.line}", {"result": verdict.result, "code": verdict.code}, wanted)
            if given.get("job"):
                # It goes on without the script, which did nothing.
                return
            if verdict.code in (11, 12, 20, 21, 22) and before:
                host.is_same_agent(before)
            if given.get("event") in ("stays", "begins"):
                expect(host.find("the-hook"), "the hook was killed")
            if other:
                other.verdict().must_be("busy")
            if verdict.code == 34:
                expect(host.exists(DROP_IN), "the drop-in is gone while the stop is queued")
            elif verdict.code not in (30, 31, 32):
                host.nothing_is_left()

    return body


for number, entry in enumerate(json.loads((HERE / "contract.json").read_text())):
    wanted = f"{entry['expect']['code']} {entry['expect']['result']}"
    CASES.append(Case("=", f"contract: {entry['name']}", wanted, 20, body_of(entry, SHELLS[number % len(SHELLS)])))

"""Negative controls: the usual cure on the stand-ins does what it was measured to do to the real agent. A stand-in on which it works is a wrong stand-in."""

from cases import NASTY, Case
from stage import CLI, CONFIG, expect, expect_equal

CURE = "systemctl restart codedeploy-agent; echo restart=$?; systemctl is-active codedeploy-agent"

CASES = []


def control(name, expectation, seconds=15):
    def add(function):
        CASES.append(Case("-", f"control: {name}", expectation, seconds, lambda stage: function(stage, f"control: {name}")))
        return function

    return add


def cure(host, restart=0, active="active"):
    """The usual cure, and what it says."""
    expect_equal("what the usual cure says", host.run(CURE).stdout.split(), [f"restart={restart}", active])


@control("idle, native and generated unit", "0/active, a new agent")
def idle(stage, name):
    for kind in ("native", "generated"):
        with stage.host(name, kind) as host:
            before = host.agent()
            cure(host)
            host.wait_for_agent()
            host.is_new_agent(before)


@control("a hook runs, native unit", "0/active, the hook ends with 143")
def native_hook(stage, name):
    with stage.host(name) as host:
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 600")
        cure(host)
        host.wait_for_agent()
        expect("d-LONG failed code 4 with exit code 143" in host.log(), host.log())


@control("a hook ignores TERM, native unit", "0/active, the hook is killed, code 7")
def stubborn_hook(stage, name):
    def patient(host):
        # The real limit is 90 s.
        host.write("/etc/systemd/system.conf.d/90-stage.conf", "[Manager]\nDefaultTimeoutStopSec=6\n")

    with stage.host(name, prepare=patient) as host:
        host.hook("d-LONG", "trap '' TERM; while :; do /usr/bin/sleep 1; done")
        cure(host)
        host.wait_for_agent()
        expect("d-LONG failed code 7" in host.log(), host.log())


@control("an application that a hook started, native unit", "0/active, the application is killed")
def application(stage, name):
    with stage.host(name) as host:
        host.start_applications()
        cure(host)
        host.wait_for_agent()
        expect_equal("applications that survived", host.find("application-"), [])


@control("an application that a hook started, v2", "0/active, the application is killed")
def application_v2(stage, name):
    with stage.host(name, "v2") as host:
        host.start_applications()
        cure(host)
        host.wait_for_agent()
        expect_equal("applications that survived", host.find("application-"), [])


@control("a hook runs, generated unit", "0/active, the same old process")
def generated_hook(stage, name):
    with stage.host(name, "generated") as host:
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 600")
        before = host.agent()
        cure(host)
        host.is_same_agent(before)
        expect(host.find("the-hook"), "the hook was killed")


@control("a hook runs, v2", "0/active, the hook ends with 143")
def v2_hook(stage, name):
    with stage.host(name, "v2") as host:
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 600")
        cure(host)
        host.wait_for_agent()
        expect("d-LONG failed code 4 with exit code 143" in host.log(), host.log())


@control("crash loop, native, generated, v2", "0/active, the poller never lives", 30)
def crash_loop(stage, name):
    for kind in ("native", "generated", "v2"):
        with stage.host(name, kind) as host:
            host.knob("crash", f"booting {NASTY}")
            cure(host)
            expect_equal("the agent's own status", host.run(f"sleep 1; {CLI} status").returncode, 0)
            pollers = set()
            for _ in range(2):
                child = host.wait_for("another child", 20, lambda: next((p.identity for p in children(host) if p.identity not in pollers), None))
                pollers.add(child)
            expect_equal("children in a row", len(pollers), 2)


def children(host):
    masters = [master.pid for master in host.masters()]
    return [process for process in host.processes() if process.parent in masters]


@control("configuration broken, native unit", "1/not active, the agent is down", 20)
def broken_native(stage, name):
    with stage.host(name) as host:
        host.write(CONFIG, "\t broken\n")
        done = host.run(CURE).stdout.split()
        expect(done[0] == "restart=1" and done[1] in ("activating", "failed"), f"the usual cure says {done}")
        host.wait_for("the failed state", 30, lambda: "failed" in host.run("systemctl is-active codedeploy-agent").stdout)
        expect_equal("masters", host.masters(), [])


@control("configuration broken, generated unit", "1/failed, the old agent survives")
def broken_generated(stage, name):
    with stage.host(name, "generated") as host:
        before = host.agent()
        host.write(CONFIG, "\t broken\n")
        cure(host, 1, "failed")
        host.is_same_agent(before)


@control("the agent runs outside its unit, generated", "0/active, the old agent survives")
def outside(stage, name):
    with stage.host(name, "generated", start=False) as host:
        host.must("/etc/init.d/codedeploy-agent start-no-update")
        before = host.wait_for_agent()
        expect_equal("is-active while the agent runs", host.run("systemctl is-active codedeploy-agent").stdout.strip(), "inactive")
        cure(host)
        host.is_same_agent(before)


@control("the master was killed, generated unit", "active, the agent is down")
def killed(stage, name):
    with stage.host(name, "generated") as host:
        host.must(f"kill -9 {host.agent()[0].pid}")
        host.wait_for("the agent's end", 20, lambda: not host.masters() and not host.find("CommandPoller"))
        expect_equal("is-active", host.run("systemctl is-active codedeploy-agent").stdout.strip(), "active")
        expect_equal("the agent's own status", host.run(f"{CLI} status").returncode, 1)


@control("an init.d start under a held descriptor", "the agent keeps it")
def inherited(stage, name):
    with stage.host(name, "init", start=False) as host:
        host.must("exec 9>>/run/held; flock -n 9; /etc/init.d/codedeploy-agent start")
        host.wait_for_agent()
        expect(host.run("flock -n /run/held true").returncode != 0, "the stand-in closed a descriptor that the real agent inherits")

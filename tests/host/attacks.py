"""What reviewers tried to make the script lie, kill, or leave a host worse, and had success with once. No row of the field table, and no control: the first edition is not asked."""

import signal
import time

from cases import Case, race
from field import OTHER_UNIT, OVERRIDE
from stage import AGENT, PID_FILE, STAGE, expect, expect_equal

CASES = []


def attack(name, expectation, seconds=30):
    def add(function):
        CASES.append(Case("a", name, expectation, seconds, lambda stage: function(stage, name)))
        return function

    return add


def before_tool(tool, body):
    """Prepares a host on which this is done before a tool of the system's."""
    return lambda host: host.write(f"/usr/local/sbin/{tool}", f'#!/bin/bash\n{body}\nexec /usr/bin/{tool} "$@"\n', 0o755)


@attack("another run gives up while this one has its drop-in", "22 and 0, applications survive", 45)
def loser_of_the_lock(stage, name):
    slow = before_tool("systemctl", f'case "$*" in "reset-failed codedeploy-agent.service") touch {STAGE}/slow; sleep 8 ;; esac')
    with stage.host(name, prepare=slow) as host:
        applications = host.start_applications()
        first = host.begin(wait=60)
        host.wait_for("the first run's drop-in", 40, lambda: host.exists(f"{STAGE}/slow"))
        host.restart(wait=1).must_be("restart-running")
        first.verdict().must_be("restarted")
        expect(all(host.lives(application) for application in applications), "an application was killed")
        host.nothing_is_left()


@attack("SIGTERM after the restart was asked for, before systemd heard of it", "34, applications survive", 45)
def term_before_the_job(stage, name):
    slow = before_tool("systemctl", f'case "$*" in "restart codedeploy-agent.service") touch {STAGE}/slow; sleep 3 ;; esac')
    with stage.host(name, prepare=slow) as host:
        applications = host.start_applications()
        run = host.begin()
        host.wait_for("the restart", 40, lambda: host.exists(f"{STAGE}/slow"))
        run.signal(signal.SIGTERM)
        run.verdict().must_be("draining")
        time.sleep(6)
        expect(all(host.lives(application) for application in applications), "an application was killed")
        host.remove("/usr/local/sbin/systemctl")
        host.restart(wait=20).must_be("restarted", "already-restarted")
        host.nothing_is_left()


@attack("systemd does not answer when asked for the agent's own other unit", "12, untouched")
def unanswered(stage, name):
    def prepare(host):
        host.write("/etc/systemd/system/codedeploy.service", OTHER_UNIT)
        before_tool("systemctl", f'case "$*" in show*" codedeploy.service") [ -e {STAGE}/once ] || {{ touch {STAGE}/once; exit 1; }} ;; esac')(host)

    with stage.host(name, start=False, prepare=prepare) as host:
        host.must("systemctl start codedeploy")
        before = host.wait_for_agent()
        applications = host.start_applications()
        host.restart().must_be("preflight-failed").must_say("codedeploy.service")
        host.is_same_agent(before)
        expect(all(host.lives(application) for application in applications), "an application was killed")


@attack("a service is PartOf the agent's, another requires it", "12 that names it, both live")
def dependent_units(stage, name):
    for tie in ("PartOf", "Requires"):

        def prepare(host, tie=tie):
            unit = f"[Unit]\n{tie}=codedeploy-agent.service\nAfter=codedeploy-agent.service\n[Service]\nExecStart=/bin/bash -c 'exec -a the-shop sleep 9000'\n"
            host.write("/etc/systemd/system/shop.service", unit)

        with stage.host(name, prepare=prepare) as host:
            host.must("systemctl start shop")
            shop = host.wait_for("the shop", 10, lambda: next(iter(host.find("the-shop")), None))
            host.restart().must_be("preflight-failed").must_say("shop.service")
            expect(host.lives(shop), "the service was killed")


@attack("systemd does not know the main process, and an event begins", "34, the hook finishes, then 0", 90)
def unknown_main_process(stage, name):
    with stage.host(name) as host:
        applications = host.start_applications()
        host.remove(PID_FILE)
        host.restart().must_be("restarted")
        race("exec -a the-hook /usr/bin/sleep 30")(host)
        host.restart().must_be("draining", "busy", "restarted")
        expect(host.find("the-hook") or "d-RACE succeeded" in host.log() or not host.exists(f"{STAGE}/raced"), "the hook was killed")
        host.wait_for("the jobs' end", 60, lambda: not host.run("systemctl list-jobs --no-legend").stdout.strip() and not host.find("the-hook"))
        host.restart(wait=40).must_be("restarted", "already-restarted")
        expect("failed" not in host.log(), host.log())
        expect(all(host.lives(application) for application in applications), "an application was killed")
        host.nothing_is_left()


@attack("the agent's other unit drains, and a second run comes", "34 and 34, the hook finishes", 90)
def other_unit_drains(stage, name):
    def prepare(host):
        host.write("/etc/systemd/system/codedeploy.service", OTHER_UNIT + "KillMode=process\nTimeoutStopSec=28\n")
        race("exec -a the-hook /usr/bin/sleep 40")(host)

    with stage.host(name, start=False, prepare=prepare) as host:
        host.must("systemctl start codedeploy")
        host.wait_for_agent()
        host.restart().must_be("draining")
        host.restart(wait=2).must_be("draining")
        host.wait_for("the hook's end", 60, lambda: "d-RACE succeeded" in host.log() or "failed" in host.log())
        expect("failed" not in host.log(), f"the hook's end was not told: {host.log()}")


LINKS = """#!/usr/bin/perl
use POSIX;
POSIX::setuid(65534);
while (1) { symlink '/root/precious', "/opt/codedeploy-agent/state/.pid/.agent-restart-probe"; }
"""


@attack("anybody may write into the folder of the PID file", "0, nothing written through a link")
def open_folder(stage, name):
    with stage.host(name) as host:
        host.must(f"chmod 0777 {PID_FILE.rpartition('/')[0]}; echo precious > /root/precious")
        host.write(f"{STAGE}/links", LINKS, 0o755)
        host.spawn(f"exec {STAGE}/links")
        time.sleep(1)
        host.restart().must_be("restarted")
        expect_equal("root's file", host.read("/root/precious"), "precious\n")


STRANGER = """#!/usr/bin/perl
$0 = "shop: master $$";
sleep 1 while 1;
"""


@attack("a stranger's title is like a master's, and no agent runs", "0 started, the stranger lives")
def stranger(stage, name):
    with stage.host(name, start=False) as host:
        host.write(f"{STAGE}/stranger", STRANGER, 0o755)
        host.spawn(f"exec {STAGE}/stranger")
        other = host.wait_for("the stranger", 10, lambda: next(iter(host.find("shop: master")), None))
        host.write(PID_FILE, str(other.pid))
        host.restart().must_be("started")
        expect(host.lives(other), "the stranger was ended")
        host.nothing_is_left()


@attack("/etc/profile leaves a process behind that holds its output", "0 restarted, in time")
def profile_that_stays(stage, name):
    with stage.host(name, prepare=lambda host: host.write("/etc/profile.d/stays.sh", "sleep 4000 &\n")) as host:
        before = host.agent()
        verdict = host.restart().must_be("restarted")
        host.is_new_agent(before)
        expect(verdict.seconds < 60, f"it took {verdict.seconds:.0f} s")


@attack("a hook outlives its agent, with an empty line in its environment", "20, the hook untouched")
def empty_line(stage, name):
    with stage.host(name) as host:
        host.write(OVERRIDE, "[Service]\nKillMode=process\nRestart=no\n")
        host.must("systemctl daemon-reload")
        host.hook("d-LONG", "export AAA=$'a\n\nb'; exec -a the-hook /usr/bin/sleep 600")
        for process in host.agent():
            host.must(f"kill -9 {process.pid}")
        host.wait_for("the agent's end", 20, lambda: not host.masters() and not host.find("CommandPoller"))
        host.restart(wait=3).must_be("busy").must_say("d-LONG")
        expect(host.find("the-hook"), "the hook was killed")


@attack("the program is away, since a package manager works", "21, not 10", 10)
def program_away_in_an_update(stage, name):
    with stage.host(name, start=False) as host:
        host.must(f"mkdir -p {STAGE}/bin && cp /usr/bin/sleep {STAGE}/bin/dpkg && rm {AGENT}/bin/codedeploy-agent")
        host.spawn(f"exec {STAGE}/bin/dpkg 600")
        host.wait_for("dpkg", 10, lambda: host.find(f"{STAGE}/bin/dpkg 600"))
        host.restart(wait=1).must_be("update-running").must_say("dpkg")

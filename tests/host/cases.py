"""The cases: each makes a host, brings it into a state, runs the script once or more, and looks what became of everything."""

import itertools
import signal
import time

from stage import (
    AGENT,
    CLI,
    CONFIG,
    DROP_IN,
    LOG,
    PID_FILE,
    STAGE,
    TRACKING,
    expect,
    expect_equal,
)

CASES = []


class Case:
    """A case of the table: its number there, its name, what must come out, and about how long it takes."""

    def __init__(self, number, name, expectation, seconds, body):
        self.number, self.name, self.expectation, self.seconds, self.body = number, name, expectation, seconds, body


def case(number, name, expectation, seconds=20):
    def add(function):
        CASES.append(Case(str(number), name, expectation, seconds, lambda stage: function(stage, name)))
        return function

    return add


def all_cases():
    import attacks
    import contract
    import controls
    import field

    return CASES + field.CASES + attacks.CASES + contract.CASES + controls.CASES


# ---- 1, 2: idle, and an application in the agent's control group -----------------------------------------------------------------------------------------


@case(1, "idle, native unit, the script's own times", "0 restarted, memory lower", 35)
def idle_native(stage, name):
    with stage.host(name, "native", ballast=40) as host:
        before = host.agent()
        host.wait_for("a large poller", 15, lambda: host.memory(before[1]) > 40 * 1024)
        host.knob("ballast")
        verdict = host.restart(limits={}, wait=120).must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()
        expect(verdict.fields["memoryBeforeKiB"] - verdict.fields["memoryAfterKiB"] > 30 * 1024, f"the memory is not lower: {verdict.line}")
        expect_equal("the version", verdict.fields["agentVersion"], "OFFICIAL_1.8.1-1_rpm")


@case(2, "applications that a hook started, native unit", "0, they survive")
def applications_native(stage, name):
    applications_survive(stage, name, "native")


@case(2, "applications that a hook started, v2", "0, they survive")
def applications_v2(stage, name):
    applications_survive(stage, name, "v2")


def applications_survive(stage, name, kind):
    with stage.host(name, kind) as host:
        applications = host.start_applications()
        before = host.agent()
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()
        for application in applications:
            expect(host.lives(application), f"{application} was killed")


# ---- 3, 4, 5: hooks --------------------------------------------------------------------------------------------------------------------------------------


@case(3, "a hook runs all the time", "20, the hook untouched")
def hook_all_the_time(stage, name):
    with stage.host(name) as host:
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 600")
        before = host.agent()
        host.restart(wait=8).must_be("busy").must_say("d-LONG")
        host.is_same_agent(before)
        expect(host.find("the-hook"), "the hook was killed")
        expect("d-LONG failed" not in host.log(), host.log())
        host.nothing_is_left()


@case(4, "a hook ends during the wait", "0, after it ended")
def hook_ends(stage, name):
    with stage.host(name) as host:
        host.hook("d-SHORT", "exec -a the-hook /usr/bin/sleep 8")
        before = host.agent()
        host.restart(wait=60).must_be("restarted")
        host.is_new_agent(before)
        expect("d-SHORT succeeded" in host.log(), host.log())
        host.nothing_is_left()


# Found before the real one, since it stands in the first folder of the script's path: it lets a hook begin at the last moment before the restart.
RACE = f"""#!/bin/bash
if [ "$1" = restart ] && [ ! -e {STAGE}/raced ]; then
  touch {STAGE}/raced
  cp {STAGE}/race-hook {STAGE}/hooks/d-RACE
  for _ in $(seq 100); do
    grep -q 'd-RACE started' {STAGE}/log && break
    sleep 0.1
  done
fi
exec /usr/bin/systemctl "$@"
"""


def race(command):
    """Prepares a host so that this hook begins between the check and the restart."""

    def prepare(host):
        host.write("/usr/local/sbin/systemctl", RACE, 0o755)
        host.write(f"{STAGE}/race-hook", command)

    return prepare


@case(5, "a short hook begins between check and restart", "0, after it ended", 35)
def short_race(stage, name):
    with stage.host(name, prepare=race("exec -a the-hook /usr/bin/sleep 8")) as host:
        before = host.agent()
        applications = host.start_applications()
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        expect("d-RACE succeeded" in host.log(), host.log())
        expect(all(host.lives(application) for application in applications), "an application was killed")
        host.nothing_is_left()


@case(5, "a longer hook begins between check and restart", "34, it finishes, then fresh", 75)
def longer_race(stage, name):
    with stage.host(name, prepare=race("exec -a the-hook /usr/bin/sleep 35")) as host:
        drains_and_recovers(host)


def drains_and_recovers(host, **order):
    """A restart that is still queued when the script ends; the hook finishes, and the next run finds a fresh agent."""
    before = host.agent()
    host.restart(**order).must_be("draining")
    expect(host.exists(DROP_IN), "the drop-in is gone while the stop is queued: the hook is not safe")
    expect_equal("the kill mode while the stop is queued", host.run("systemctl show -p KillMode codedeploy-agent").stdout.strip(), "KillMode=process")
    expect(host.find("the-hook"), "the hook was killed")
    host.wait_for("the hook's end", 120, lambda: "d-RACE succeeded" in host.log())
    host.wait_for("the queued restart", 20, lambda: not host.lives(before[0]))
    after = host.wait_for_agent()
    host.restart(**{**order, "triggered": 0, "sent": 3600}).must_be("already-restarted")
    host.is_same_agent(after)
    host.is_new_agent(before)
    host.nothing_is_left()


# ---- 6, 7, 8: outside the unit, generated unit, no systemd -----------------------------------------------------------------------------------------------


@case(6, "the agent runs outside its native unit", "0, one agent, inside the unit")
def outside_native(stage, name):
    outside_the_unit(stage, name, "native", f"{CLI} start")


@case(6, "the agent runs outside its generated unit", "0, one agent, inside the unit")
def outside_generated(stage, name):
    outside_the_unit(stage, name, "generated", "/etc/init.d/codedeploy-agent start-no-update")


def outside_the_unit(stage, name, kind, start):
    with stage.host(name, kind, start=False) as host:
        host.must(start)
        before = host.wait_for_agent()
        expect("codedeploy-agent.service" not in before[0].group, "the agent is inside its unit: the case is wrong")
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@case(6, "outside its unit, long poll longer than the stop's limit", "0 in time, or 34", 60)
def outside_long_poll(stage, name):
    with stage.host(name, start=False, poll_seconds=25) as host:
        host.must(f"{CLI} start")
        before = host.wait_for_agent()
        verdict = host.restart().must_be("restarted", "draining")
        if verdict.result == "draining":
            # What stops it also starts it again, without the script.
            host.wait_for("the old agent's end", 40, lambda: not host.lives(before[0]))
            host.wait_for_agent()
            host.restart(wait=20, sent=3600).must_be("already-restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@case(7, "generated unit, idle", "0 restarted")
def generated_idle(stage, name):
    with stage.host(name, "generated", shell="bash") as host:
        before = host.agent()
        applications = host.start_applications()
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        expect(all(host.lives(application) for application in applications), "an application was killed")
        host.nothing_is_left()


@case(7, "generated unit, a hook runs", "20")
def generated_busy(stage, name):
    with stage.host(name, "generated") as host:
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 600")
        before = host.agent()
        host.restart(wait=4).must_be("busy")
        host.is_same_agent(before)
        expect(host.find("the-hook"), "the hook was killed")
        host.nothing_is_left()


@case(7, "generated unit, a hook begins between check and restart", "20, not a silent no-op")
def generated_race(stage, name):
    with stage.host(name, "generated", prepare=race("exec -a the-hook /usr/bin/sleep 600")) as host:
        before = host.agent()
        host.restart().must_be("busy")
        host.is_same_agent(before)
        expect(host.find("the-hook"), "the hook was killed")
        # What the unit's kill mode keeps safe may be needed for longer; the next run puts it in order.
        expect_equal("the unit's kill mode", host.run("systemctl show -p KillMode codedeploy-agent").stdout.strip(), "KillMode=process")
        host.must(f"kill {host.find('the-hook')[0].pid}")
        host.wait_for("the hook's end", 20, lambda: not host.find("the-hook"))
        host.restart(wait=20).must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@case(8, "only init.d, idle", "0 restarted")
def init_idle(stage, name):
    with stage.host(name, "init") as host:
        before = host.agent()
        applications = host.start_applications()
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        expect(all(host.lives(application) for application in applications), "an application was killed")
        host.nothing_is_left()
        # An agent that had inherited the lock would keep it.
        host.restart().must_be("restarted")


@case(8, "only init.d, a hook runs", "20")
def init_busy(stage, name):
    with stage.host(name, "init") as host:
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 600")
        before = host.agent()
        host.restart(wait=4).must_be("busy")
        host.is_same_agent(before)
        host.nothing_is_left()


@case(8, "only init.d, stopped before", "0 started")
def init_stopped(stage, name):
    with stage.host(name, "init", start=False) as host:
        host.restart().must_be("started")
        expect(host.agent(), "no agent runs")
        host.nothing_is_left()


# ---- 9: what would not start again is left alone ---------------------------------------------------------------------------------------------------------


def left_alone(stage, name, break_it, says, kind="native", **named):
    with stage.host(name, kind, **named) as host:
        before = host.agent()
        break_it(host)
        host.restart().must_be("preflight-failed").must_say(says)
        host.is_same_agent(before)
        if not named and kind == "native" and "masked" not in says:
            host.nothing_is_left()


@case(9, "configuration broken on disk", "12, untouched")
def broken_configuration(stage, name):
    left_alone(stage, name, lambda host: host.write(CONFIG, ':log_dir: "/var\n\t- {{{ \\ "broken"\n'), "codedeployagent.yml")


@case(9, "interpreter gone", "12, untouched")
def interpreter_gone(stage, name):
    left_alone(stage, name, lambda host: host.remove("/usr/local/bin/ruby"), "ends with 127")


@case(9, "libraries gone", "12, untouched")
def libraries_gone(stage, name):
    left_alone(stage, name, lambda host: host.remove(f"{AGENT}/lib"), "agent.pm")


@case(9, "unit masked", "12, untouched")
def unit_masked(stage, name):
    def mask(host):
        host.link("/etc/systemd/system/codedeploy-agent.service", "/dev/null")
        host.must("systemctl daemon-reload")

    left_alone(stage, name, mask, "masked")


@case(9, "the unit's file is gone", "12, untouched")
def unit_gone(stage, name):
    def forget(host):
        host.remove("/usr/lib/systemd/system/codedeploy-agent.service")
        host.remove("/etc/init.d/codedeploy-agent")
        host.must("systemctl daemon-reload")

    with stage.host(name) as host:
        before = host.agent()
        forget(host)
        # systemd keeps a unit that runs; what it says of the missing file differs.
        host.restart().must_be("preflight-failed")
        host.is_same_agent(before)


# ---- 10, 11, 12: the new agent does not live -----------------------------------------------------------------------------------------------------------------

# Quotes, backslashes, control characters, and a character cut in half: none of it may break the line.
NASTY = 'Seahorse "certificate \\verify failed\\" \t \x1b[31m { "a": 1 } caf\u00e9 '


def crash_loops(stage, name, crash, says, kind="native", shell="dash"):
    with stage.host(name, kind, shell) as host:
        before = host.agent()
        host.knob("crash", crash)
        host.restart().must_be("agent-unhealthy").must_say(says)
        expect(not host.lives(before[0]), "the old master still runs")
        host.nothing_is_left()


@case(10, "crash loop: TLS, native unit", "33, the log's last error", 25)
def crash_tls(stage, name):
    crash_loops(stage, name, f"booting Seahorse::Client::NetworkingError: {NASTY} certificate verify failed (error number 1)", "certificate verify failed")


@case(10, "crash loop: region, generated unit", "33, the log's last error", 25)
def crash_region(stage, name):
    crash_loops(stage, name, "ready SocketError: getaddrinfo: codedeploy-commands.us-nowhere-1.amazonaws.com: Name or service not known", "us-nowhere-1", "generated", "bash")


@case(10, "crash loop: on-premises file, only init.d", "33, the log's last error", 25)
def crash_on_premises(stage, name):
    crash_loops(stage, name, "booting The config file /etc/codedeploy-agent/conf/codedeploy.onpremises.yml is invalid", "onpremises.yml", "init", "busybox")


@case(10, "crash loop: v2", "33, the log's last error", 25)
def crash_v2(stage, name):
    crash_loops(stage, name, "ready dispatch failure: connection error", "dispatch failure", "v2")


@case(10, "each new poller dies while it is looked at", "33, not healthy for ever", 40)
def dies_under_the_look(stage, name):
    with stage.host(name, respawn_seconds=2) as host:
        old = host.agent()[1].identity
        run = host.begin()
        # At another moment of its life each: between being found and being looked at again, too.
        ages, killed = itertools.cycle((0, 0.4, 0.9, 1.6)), set()
        while run.child.poll() is None:
            for poller in host.find("CommandPoller of master"):
                if poller.identity not in killed | {old}:
                    killed.add(poller.identity)
                    time.sleep(next(ages))
                    host.run(f"kill -KILL {poller.pid}")
            time.sleep(0.05)
        run.verdict().must_be("agent-unhealthy").must_say("poller")
        expect(len(killed) > 1, "only one poller was killed: the case is wrong")
        host.nothing_is_left()


@case(10, "crash loop, and a log of noise", "33, one valid line", 25)
def crash_noise(stage, name):
    with stage.host(name) as host:
        host.knob("crash", "booting short")
        noise = b"".join(b"2026-01-01 ERROR " + bytes(range(256)).replace(b"\n", b"") * 3 + "\u00e9\u4e2d\U0001f600".encode()[:-1] + b"\n" for _ in range(50))
        run = host.begin()
        host.wait_for("the script's restart", 60, lambda: "ERROR" in host.read(LOG))
        with host.inside(LOG).open("ab") as log:
            log.write(noise)
        host.knob("respawn_seconds", "300")
        run.verdict().must_be("agent-unhealthy")
        host.nothing_is_left()


@case(11, "the master dies after the start, native unit", "32, applications survive systemd's retries", 60)
def master_dies(stage, name):
    with stage.host(name) as host:
        applications = host.start_applications()
        host.knob("master_dies_after", "4")
        host.restart().must_be("agent-down")
        # systemd starts it again and again, and would kill the whole group at each failure if the drop-in were gone.
        time.sleep(12)
        expect(all(host.lives(application) for application in applications), "an application was killed")
        host.knob("master_dies_after")
        host.must("systemctl stop codedeploy-agent")
        host.restart().must_be("started")
        expect(all(host.lives(application) for application in applications), "an application was killed")
        host.nothing_is_left()


@case(11, "the master dies after the start, generated unit", "32", 25)
def master_dies_generated(stage, name):
    with stage.host(name, "generated") as host:
        host.knob("master_dies_after", "3")
        host.restart().must_be("agent-down")
        host.knob("master_dies_after")
        host.restart().must_be("started")
        host.nothing_is_left()


@case(11, "the master dies after the start, v2", "32", 25)
def master_dies_v2(stage, name):
    with stage.host(name, "v2") as host:
        host.knob("master_dies_after", "3")
        host.restart().must_be("agent-down")


def long_start_limit(host):
    """The usual 10 s would be over when the script comes to its restart."""
    host.write("/etc/systemd/system.conf.d/90-stage.conf", "[Manager]\nDefaultStartLimitIntervalSec=600\n")


def fail_until_the_limit(host):
    """The unit has failed too often: systemd refuses to start it again."""
    good = host.read(CONFIG)
    host.write(CONFIG, "\t broken\n")
    for _ in range(7):
        host.run("systemctl start codedeploy-agent")
    expect("failed" in host.run("systemctl is-active codedeploy-agent").stdout, "the unit is not in a failed state: the case is wrong")
    expect(host.run("systemctl start codedeploy-agent").returncode != 0, "systemd still starts it: the case is wrong")
    host.write(CONFIG, good)


@case(12, "start-limit, nothing runs, native unit", "0 started")
def start_limit(stage, name):
    start_after_the_limit(stage, name, "native")


# Here nothing else makes systemd forget the limit: a generated unit needs no drop-in, and so no reload.
@case(12, "start-limit, nothing runs, generated unit", "0 started")
def start_limit_generated(stage, name):
    start_after_the_limit(stage, name, "generated")


def start_after_the_limit(stage, name, kind):
    with stage.host(name, kind, start=False, prepare=long_start_limit) as host:
        fail_until_the_limit(host)
        host.restart().must_be("started")
        expect(host.agent(), "no agent runs")
        host.nothing_is_left()


@case(12, "start-limit, an agent runs outside", "0 restarted")
def start_limit_outside(stage, name):
    with stage.host(name, start=False, prepare=long_start_limit) as host:
        fail_until_the_limit(host)
        host.must(f"{CLI} start")
        before = host.wait_for_agent()
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@case(12, "generated unit active (exited), its master killed", "0 started")
def generated_dead(stage, name):
    with stage.host(name, "generated") as host:
        host.must(f"kill -9 {host.agent()[0].pid}")
        host.wait_for("the agent's end", 20, lambda: not host.masters() and not host.find("CommandPoller"))
        host.restart().must_be("started")
        expect(host.agent(), "no agent runs")
        host.nothing_is_left()


@case(12, "the configuration is broken and nothing runs", "30, or 12: its directories are unknown")
def cannot_start(stage, name):
    with stage.host(name, start=False) as host:
        host.write(CONFIG, "\t broken\n")
        if host.restart().must_be("service-manager-failed", "preflight-failed").code == 30:
            host.wait_for("the end of systemd's retries", 30, lambda: "failed" in host.run("systemctl is-active codedeploy-agent").stdout)
        host.write(CONFIG, "")
        host.restart().must_be("started")
        host.nothing_is_left()


@case(12, "the interpreter is gone and nothing runs", "30")
def cannot_start_without_interpreter(stage, name):
    with stage.host(name, start=False) as host:
        host.must("mv /usr/local/bin/ruby /usr/local/bin/away")
        host.restart().must_be("service-manager-failed")
        host.wait_for("the end of systemd's retries", 30, lambda: "failed" in host.run("systemctl is-active codedeploy-agent").stdout)
        host.must("mv /usr/local/bin/away /usr/local/bin/ruby")
        host.restart().must_be("started")
        host.nothing_is_left()


# ---- 13: masters and PID files --------------------------------------------------------------------------------------------------------------------------------


@case(13, "two masters", "31 or one agent and 0", 25)
def two_masters(stage, name):
    with stage.host(name) as host:
        host.remove(f"{PID_FILE}.lock")
        # The real one looks into that file, too.
        host.remove(PID_FILE)
        host.must(f"{CLI} start")
        host.wait_for("two masters", 15, lambda: len([m for m in host.masters() if host.poller_of(m)]) == 2)
        verdict = host.restart().must_be("old-agent-survived", "restarted")
        if verdict.code == 0:
            expect_equal("the number of masters", len(host.masters()), 1)
        host.nothing_is_left()


@case(13, "stale PID file, nothing runs", "0 started")
def stale_pid_file(stage, name):
    with stage.host(name, start=False) as host:
        host.write(PID_FILE, "99999")
        host.restart().must_be("started")
        expect(host.agent(), "no agent runs")
        host.nothing_is_left()


@case(13, "PID file names a dead process, the agent runs", "0 or 31, never a wrong 0", 25)
def wrong_pid_file(stage, name):
    pid_file_is_wrong(stage, name, "99999")


@case(13, "PID file empty, the agent runs", "0 or 31, never a wrong 0", 25)
def empty_pid_file(stage, name):
    pid_file_is_wrong(stage, name, "")


@case(13, "PID file gone, the agent runs", "0 or 31, never a wrong 0", 25)
def no_pid_file(stage, name):
    pid_file_is_wrong(stage, name, None)


def pid_file_is_wrong(stage, name, text):
    with stage.host(name) as host:
        before = host.agent()
        if text is None:
            host.remove(PID_FILE)
        else:
            host.write(PID_FILE, text)
        host.restart().must_be("restarted", "old-agent-survived")
        host.is_new_agent(before)
        host.nothing_is_left()


@case(13, "PID file names an innocent process, the agent is dead", "0 started, the innocent lives", 25)
def reused_pid(stage, name):
    for kind in ("native", "generated"):
        with stage.host(name, kind) as host:
            innocent = innocent_process(host)
            host.knob("respawn_seconds", "300")
            host.must("systemctl stop codedeploy-agent" if kind == "native" else f"kill -9 {host.agent()[0].pid}")
            host.wait_for("the agent's end", 20, lambda: not host.masters() and not host.find("CommandPoller"))
            host.write(PID_FILE, str(innocent.pid))
            host.knob("respawn_seconds")
            host.restart().must_be("started")
            expect(host.agent(), "no agent runs")
            expect(host.lives(innocent), "the innocent process was killed")
            host.nothing_is_left()


@case(13, "PID file names an innocent process, the agent runs", "0 restarted, the innocent lives", 25)
def reused_pid_running(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        innocent = innocent_process(host)
        host.write(PID_FILE, str(innocent.pid))
        host.restart().must_be("restarted", "old-agent-survived")
        expect(host.lives(innocent), "the innocent process was killed")
        host.is_new_agent(before)
        host.nothing_is_left()


def innocent_process(host):
    host.spawn("exec -a innocent sleep 9000")
    return host.wait_for("the innocent process", 15, lambda: next((p for p in host.processes() if p.title.startswith("innocent")), None))


@case(13, "the new PID file comes late, the poller later still", "0 restarted", 25)
def late_pid_file(stage, name):
    with stage.host(name, pid_file_delay=3, child_delay=4) as host:
        before = host.agent()
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@case(13, "the agent's stop waits with a master's title", "22, 0 or 34; never 31", 40)
def stop_with_a_title(stage, name):
    with stage.host(name, poll_seconds=6) as host:
        before = host.agent()
        # Somebody stops it by hand at the same moment.
        host.spawn(f"{CLI} stop")
        host.wait_for("the stop's title", 10, lambda: len(host.masters()) == 2)
        host.restart().must_be("restarted", "started", "draining")
        expect(host.wait_for_agent(), "no agent runs")
        host.is_new_agent(before)
        host.nothing_is_left()


# ---- 14, 15: long polls, at the script's own times ---------------------------------------------------------------------------------------------------------


@case(14, "long poll of 45 s while stopping, the script's own times", "0, in time", 80)
def long_poll(stage, name):
    with stage.host(name, poll_seconds=45) as host:
        before = host.agent()
        verdict = host.restart(limits={}, wait=120).must_be("restarted")
        host.is_new_agent(before)
        # One long poll of the old agent, and one of the new one as its proof.
        expect(verdict.seconds < 150, f"it took {verdict.seconds:.0f} s")
        host.nothing_is_left()


@case(15, "drain longer than the stop wait, the script's own times", "34, drop-in stays; then fresh", 240)
def long_drain(stage, name):
    with stage.host(name, prepare=race("exec -a the-hook /usr/bin/sleep 185")) as host:
        drains_and_recovers(host, limits={}, wait=120)


@case(15, "a second run while the first one's restart is queued", "34, then restarted", 60)
def second_run_while_draining(stage, name):
    with stage.host(name, prepare=race("exec -a the-hook /usr/bin/sleep 45")) as host:
        before = host.agent()
        host.restart().must_be("draining")
        host.restart(wait=4).must_be("draining")
        expect(host.exists(DROP_IN), "the drop-in is gone while the stop is queued")
        verdict = host.restart(wait=60).must_be("restarted", "already-restarted")
        expect("d-RACE succeeded" in host.log(), host.log())
        expect(verdict.code == 0 and host.agent(), "no agent")
        host.is_new_agent(before)
        host.nothing_is_left()


# ---- 16: nothing to restart ----------------------------------------------------------------------------------------------------------------------------------


@case(16, "not installed", "10", 5)
def not_installed(stage, name):
    with stage.host(name, start=False) as host:
        host.remove(AGENT)
        verdict = host.restart().must_be("not-installed")
        expect_equal("the memory", (verdict.fields["memoryBeforeKiB"], verdict.fields["memoryAfterKiB"]), (0, 0))


@case(16, "not root", "11", 5)
def not_root(stage, name):
    for shell in ("dash", "bash", "busybox"):
        with stage.host(name, shell=shell) as host:
            before = host.agent()
            host.restart(as_user=65534).must_be("not-root")
            host.is_same_agent(before)
            host.nothing_is_left()


@case(16, "stopped before", "0 started")
def stopped_before(stage, name):
    with stage.host(name) as host:
        host.must("systemctl stop codedeploy-agent")
        verdict = host.restart(sent=3600).must_be("started")
        expect_equal("the memory before", verdict.fields["memoryBeforeKiB"], 0)
        expect(host.agent(), "no agent runs")
        host.nothing_is_left()


# ---- 17, 18, 19: again, and below the threshold -------------------------------------------------------------------------------------------------------------------


@case(17, "the same triggeredAt again", "already-restarted, same process", 30)
def again(stage, name):
    with stage.host(name, shell="busybox") as host:
        before = host.agent()
        host.restart(triggered=0, sent=0).must_be("restarted")
        after = host.is_new_agent(before)
        verdict = host.restart(triggered=0, sent=60).must_be("already-restarted")
        host.is_same_agent(after)
        expect(verdict.fields["memoryAfterKiB"] > 0, verdict.line)
        host.nothing_is_left()


@case(17, "two runs at once", "one restarts, the other waits, then already-restarted", 40)
def two_at_once(stage, name):
    with stage.host(name) as host:
        # Old enough that neither order takes it for fresh.
        before = host.agent()
        host.wait_for("an agent of 8 s", 30, lambda: age(host, before[0]) > 8)
        first = host.begin(sent=4, wait=60)
        time.sleep(1)
        second = host.begin(sent=30, wait=60)
        first.verdict().must_be("restarted")
        after = host.is_new_agent(before)
        second.verdict().must_be("already-restarted")
        host.is_same_agent(after)
        host.nothing_is_left()


@case(17, "another run holds the lock all the time", "22, untouched", 40)
def lock_held(stage, name):
    with stage.host(name) as host:
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 600")
        before = host.agent()
        first = host.begin(wait=20)
        host.is_held(first)
        host.restart(wait=3).must_be("restart-running")
        first.verdict().must_be("busy")
        host.is_same_agent(before)
        host.nothing_is_left()


def age(host, process):
    """Seconds since a process started."""
    return float(host.read("/proc/uptime").split()[0]) - process.started / 100


@case(18, "crash loop run twice with one triggeredAt", "33 twice", 50)
def crash_twice(stage, name):
    with stage.host(name) as host:
        host.knob("crash", "ready certificate verify failed")
        host.restart(triggered=0, sent=0).must_be("agent-unhealthy")
        host.restart(triggered=0, sent=60).must_be("agent-unhealthy")
        host.nothing_is_left()


@case(19, "below minMemoryMiB, healthy", "below-threshold, same process")
def below(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.restart(minimum=1000).must_be("below-threshold")
        host.is_same_agent(before)
        host.nothing_is_left()


@case(19, "above minMemoryMiB", "0 restarted")
def above(stage, name):
    with stage.host(name, ballast=30) as host:
        before = host.agent()
        host.restart(minimum=20).must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@case(19, "below minMemoryMiB, crash-looping", "33", 50)
def below_and_crashing(stage, name):
    with stage.host(name) as host:
        host.knob("crash", "booting certificate verify failed")
        host.must(f"kill {host.agent()[1].pid}")
        host.restart(minimum=1000).must_be("agent-unhealthy").must_say("certificate")
        host.nothing_is_left()


# ---- 20: clocks -----------------------------------------------------------------------------------------------------------------------------------------------


@case(20, "host clock an hour ahead, an hour behind", "as with a right clock", 60)
def clocks(stage, name):
    for shift in (3600, -3600):
        with stage.host(name) as host:
            # Containers share the kernel's clock, so the function's is moved instead.
            before = host.agent()
            host.restart(triggered=shift, sent=shift).must_be("restarted")
            after = host.is_new_agent(before)
            host.restart(triggered=shift, sent=shift + 60).must_be("already-restarted")
            host.is_same_agent(after)
            host.nothing_is_left()


@case(20, "a command delivered late", "restarted rather than called fresh", 50)
def late(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        # Sent 8 s after the deployment's end, when the agent was at most 8 s old; begun when it is older.
        host.wait_for("an agent of 10 s", 30, lambda: age(host, before[0]) > 10)
        host.restart(triggered=0, sent=8).must_be("restarted")
        after = host.is_new_agent(before)
        host.restart(triggered=0, sent=100).must_be("already-restarted")
        host.is_same_agent(after)


# ---- 21, 22: updates, and the agent's own settings -----------------------------------------------------------------------------------------------------------------


@case(21, "dpkg, rpm or installer at work", "21, untouched", 40)
def updates(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        for program in ("dpkg", "rpm", "yum", "apt-get"):
            host.must(f"mkdir -p {STAGE}/bin && cp /usr/bin/sleep {STAGE}/bin/{program}")
            host.spawn(f"exec {STAGE}/bin/{program} 600")
            worker = host.wait_for(program, 10, lambda: next((p for p in host.find(f"{STAGE}/bin/{program} 600") if "exec" not in p.title), None))
            host.restart(wait=1).must_be("update-running")
            host.must(f"kill {worker.pid}")
        host.write(f"{AGENT}/bin/install", "#!/bin/sh\nsleep 600\n", 0o755)
        host.spawn(f"exec {AGENT}/bin/install auto")
        host.wait_for("the installer", 10, lambda: host.find(f"{AGENT}/bin/install"))
        host.restart(wait=1).must_be("update-running")
        host.is_same_agent(before)
        host.nothing_is_left()


@case(21, "dpkg ends during the wait", "0 restarted")
def update_ends(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.must(f"mkdir -p {STAGE}/bin && cp /usr/bin/sleep {STAGE}/bin/dpkg")
        host.spawn(f"exec {STAGE}/bin/dpkg 5")
        host.wait_for("dpkg", 10, lambda: host.find(f"{STAGE}/bin/dpkg 5"))
        host.restart(wait=60).must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@case(22, "tracking file older than 24 h", "0 restarted")
def old_tracking_file(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.write(f"{TRACKING}/d-OLD", "remains")
        host.must(f"touch -d '25 hours ago' {TRACKING}/d-OLD")
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


OTHER_CONFIG = """---
root_dir: '/srv/deploy root'
:pid_dir: "/srv/pids"   # elsewhere
program_name: other-agent
:log_dir: /srv/logs
ongoing_deployment_tracking: running
wait_between_runs: 1
"""


def other_settings(host):
    host.write(CONFIG, OTHER_CONFIG)
    host.pid_file = lambda: "/srv/pids/other-agent.pid"


@case(22, "other root_dir, pid_dir, program_name, log_dir", "as the agent does: 0, 20, 33", 60)
def other_places(stage, name):
    with stage.host(name, prepare=other_settings) as host:
        before = host.agent()
        host.restart().must_be("restarted")
        after = host.is_new_agent(before)
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 600")
        host.restart(wait=2).must_be("busy").must_say("d-LONG")
        host.is_same_agent(after)
        host.nothing_is_left()
    with stage.host(name, prepare=other_settings) as host:
        host.knob("crash", "ready from the other log")
        host.restart().must_be("agent-unhealthy").must_say("from the other log")


# ---- 23: the script is ended ----------------------------------------------------------------------------------------------------------------------------------


def ended_at(stage, name, number, stage_of_run):
    """Ends the script at a stage; nothing of the customer's is killed, and the next run recovers."""
    hook = "exec -a the-hook /usr/bin/sleep 14"
    with stage.host(name, prepare=race(hook) if stage_of_run == "restart" else None) as host:
        applications = host.start_applications()
        before = host.agent()
        if stage_of_run == "wait":
            host.hook("d-WAIT", hook)
        run = host.begin(wait=60)
        if stage_of_run == "wait":
            time.sleep(3)
        elif stage_of_run == "restart":
            host.wait_for("the hook in the race", 30, lambda: "d-RACE started" in host.log())
            host.wait_for("the queued restart", 20, lambda: "restart" in host.run("systemctl list-jobs --no-legend").stdout)
        else:
            host.wait_for("the new poller", 30, lambda: (host.agent() or before)[0].identity != before[0].identity)
            time.sleep(1)
        run.signal(number)
        if number == signal.SIGTERM:
            verdict = run.verdict()
            if stage_of_run == "wait":
                verdict.must_be("preflight-failed")
                host.is_same_agent(before)
            else:
                expect(verdict.code != 0, f"a success that nobody proved: {verdict.line}")
        else:
            expect_equal("what a killed script says", run.end()[1:], (b"", b""))
        for application in applications:
            expect(host.lives(application), f"{application} was killed")
        # An agent that the killed run's own restart replaced after this run began is fresh.
        host.restart(wait=60, sent=0).must_be("restarted", "already-restarted" if stage_of_run == "restart" else "restarted")
        expect("failed" not in host.log(), f"a hook was killed: {host.log()}")
        for application in applications:
            expect(host.lives(application), f"{application} was killed")
        host.is_new_agent(before)
        host.nothing_is_left()


def add_ended_cases():
    for number in (signal.SIGTERM, signal.SIGKILL):
        for stage_of_run in ("wait", "restart", "proof"):

            def body(stage, name, number=number, stage_of_run=stage_of_run):
                ended_at(stage, name, number, stage_of_run)

            case(23, f"{number.name} to the script in its {stage_of_run}", "nothing killed; the next run recovers", 50)(body)


add_ended_cases()


# ---- 24: poor hosts --------------------------------------------------------------------------------------------------------------------------------------------


@case(24, "/run read-only", "12, untouched", 10)
def run_read_only(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.restart(before="mount -o remount,bind,ro /run").must_be("preflight-failed").must_say("/run")
        host.is_same_agent(before)


@case(24, "/run/systemd read-only", "12, untouched", 10)
def run_systemd_read_only(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.restart(before="mkdir -p /run/systemd/system && mount --bind /run/systemd/system /run/systemd/system && mount -o remount,bind,ro /run/systemd/system").must_be(
            "preflight-failed"
        )
        host.is_same_agent(before)


@case(24, "/var/log full", "0 restarted")
def log_full(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        # For everybody inside, not only for the script: so in the container's own mount namespace.
        host.must("mount -t tmpfs -o size=16k none /var/log && dd if=/dev/zero of=/var/log/full bs=1k count=64; mkdir -p /var/log/aws/codedeploy-agent; df /var/log | grep -q 100%")
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@case(24, "the folder of the PID file full", "12, untouched", 10)
def pid_folder_full(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        folder = PID_FILE.rpartition("/")[0]
        host.must(f"cp -a {folder} /run/kept && mount -t tmpfs -o size=16k,mode=755 none {folder} && cp -a /run/kept/. {folder}/ && dd if=/dev/zero of={folder}/full bs=1k count=64; true")
        host.restart().must_be("preflight-failed").must_say("cannot write")
        host.is_same_agent(before)
        host.nothing_is_left()


def without(*tools):
    def prepare(host):
        for tool in tools:
            host.remove(f"/usr/bin/{tool}")

    return prepare


@case(24, "no flock", "0; two runs at once wait; a dead run's lock is taken", 70)
def no_flock(stage, name):
    with stage.host(name, prepare=without("flock")) as host:
        before = host.agent()
        host.hook("d-SHORT", "exec -a the-hook /usr/bin/sleep 6")
        dead = host.begin(wait=60)
        host.is_held(dead)
        dead.signal(signal.SIGKILL)
        dead.end()
        first = host.begin(wait=60)
        time.sleep(1)
        second = host.begin(sent=3600, wait=60, limits={"TEST_STABLE": 7})
        first.verdict().must_be("restarted", "already-restarted")
        second.verdict().must_be("already-restarted", "restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@case(24, "no timeout, no getconf, no journalctl", "0; 34 when it drains", 100)
def no_timeout(stage, name):
    prepare_race = race("exec -a the-hook /usr/bin/sleep 32")

    def prepare(host):
        without("timeout", "getconf", "journalctl")(host)
        prepare_race(host)

    with stage.host(name, prepare=prepare) as host:
        drains_and_recovers(host)
        before = host.agent()
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


# The tools that the script uses, as a small system would have them.
BUSYBOX_TOOLS = "cat cut find getopt grep head id ln mkdir mv printf readlink rm rmdir sed sleep sort tail timeout touch tr true uniq xargs".split()


@case(24, "busybox's shell and tools", "0, 20, 33", 70)
def busybox_tools(stage, name):
    def prepare(host):
        for tool in BUSYBOX_TOOLS:
            host.link(f"/usr/local/sbin/{tool}", "/usr/bin/busybox")

    with stage.host(name, shell="busybox", prepare=prepare) as host:
        before = host.agent()
        host.restart().must_be("restarted")
        after = host.is_new_agent(before)
        host.nothing_is_left()
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 8")
        host.restart(wait=2).must_be("busy").must_say("d-LONG")
        host.is_same_agent(after)
        host.wait_for("the hook's end", 30, lambda: "d-LONG succeeded" in host.log())
        host.knob("crash", f"ready {NASTY}")
        host.restart().must_be("agent-unhealthy")
        host.nothing_is_left()


# ---- 25: v2 ------------------------------------------------------------------------------------------------------------------------------------------------------


@case(25, "v2, idle", "0 restarted")
def v2_idle(stage, name):
    v2_is_restarted(stage, name, "v2")


@case(25, "v2, a wrapper that stays as main process, idle", "0 restarted")
def v2_wrapper_idle(stage, name):
    v2_is_restarted(stage, name, "v2-wrapper")


def v2_is_restarted(stage, name, kind):
    with stage.host(name, kind, shell="bash") as host:
        before = host.agent()
        verdict = host.restart().must_be("restarted")
        host.is_new_agent(before)
        expect_equal("the version", verdict.fields["agentVersion"], "2.1.0")
        host.nothing_is_left()


@case(25, "v2, a hook runs", "20, untouched")
def v2_busy(stage, name):
    with stage.host(name, "v2") as host:
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 600")
        before = host.agent()
        host.restart(wait=3).must_be("busy")
        host.is_same_agent(before)
        host.nothing_is_left()


@case(25, "v2, stopped before", "0 started")
def v2_stopped(stage, name):
    with stage.host(name, "v2", start=False) as host:
        host.restart().must_be("started")
        host.nothing_is_left()


@case(25, "v2, a hook begins between check and restart", "0 or 34, the hook finishes", 40)
def v2_race(stage, name):
    with stage.host(name, "v2", prepare=race("exec -a the-hook /usr/bin/sleep 8")) as host:
        before = host.agent()
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        expect("d-RACE succeeded" in host.log(), host.log())
        host.nothing_is_left()


# Seen once on a machine under load: the script reported the old agent and took its drop-in away while the new one had not found out yet that it was one too
# many. Its failure then made systemd kill the whole control group, and the hook with it.
@case(25, "v2, a wrapper that stays, and the new agent gives up late", "0, 20 or 31, the hook finishes", 60)
def v2_wrapper_gives_up_late(stage, name):
    with stage.host(name, "v2-wrapper", prepare=race("exec -a the-hook /usr/bin/sleep 12")) as host:
        host.knob("refuse_seconds", "4")
        host.restart().must_be("restarted", "busy", "old-agent-survived")
        host.wait_for("the hook's good end", 30, lambda: "d-RACE succeeded" in host.log())


@case(25, "v2, a wrapper that stays, and a hook begins in between", "a true verdict, the hook finishes", 60)
def v2_wrapper_race(stage, name):
    with stage.host(name, "v2-wrapper", prepare=race("exec -a the-hook /usr/bin/sleep 12")) as host:
        before = host.agent()
        verdict = host.restart().must_be("busy", "old-agent-survived", "draining", "restarted")
        if verdict.code == 0:
            host.is_new_agent(before)
        expect(host.find("the-hook") or "d-RACE succeeded" in host.log(), f"the hook was killed: {host.log()}")
        host.wait_for("the hook's end", 60, lambda: "d-RACE succeeded" in host.log())
        # Whatever is left of it, the next run puts in order.
        host.wait_for("quiet", 90, lambda: not host.run("systemctl list-jobs --no-legend").stdout.strip())
        host.restart(wait=60).must_be("restarted", "started")
        expect_equal("the number of masters", len(host.masters()), 1)
        host.nothing_is_left()

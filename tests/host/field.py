"""Situations that people reported of the real agent, or that were seen on it: numbers like #399 are issues of aws/aws-codedeploy-agent.

Each is told on both of its sides: with the fault, and without it or after it. What the script of the first edition got wrong stands in `falls`, as words of the
failure: the same case is then played with that script too, and must fall so. A case that it passes shows nothing new, but often the other side of one that does.
"""

import contextlib
import re
import shutil
import signal
import threading
import time

from cases import Case, race
from stage import (
    AGENT,
    AGENTS,
    CLI,
    CONFIG,
    FIRST_EDITION,
    LOG,
    LOWERED,
    PID_FILE,
    STAGE,
    TRACKING,
    UNIT_FILE,
    VERSIONS,
    Failure,
    Verdict,
    expect,
    expect_equal,
)

CASES = []
# What a case fails with that waits for an agent in vain.
NO_AGENT = "an agent with a ready poller: not within"
OVERRIDE = "/etc/systemd/system/codedeploy-agent.service.d/override.conf"


def field(number, name, expectation, seconds=20, falls=None):
    """A case of its row; with `falls`, also the control that the first edition falls in it, with these words."""

    def add(function):
        CASES.append(Case(number, name, expectation, seconds, lambda stage: function(stage, name)))
        if falls:
            CASES.append(Case(f"-{number}", f"first edition: {name}", f"falls: {falls}", seconds, lambda stage: fall(function, stage, name, falls)))
        return function

    return add


def fall(function, stage, name, falls):
    try:
        function(stage.with_script(FIRST_EDITION), f"first edition: {name}")
    except Failure as failure:
        expect(re.search(falls, str(failure), re.S), f"the first edition falls, but otherwise: {failure}")
    else:
        raise Failure("the first edition passes: the case shows nothing new")


def new_poller(host, before):
    """Waits until a new agent's poller says that it is ready: the script is at its proof then."""
    return host.wait_for("a new poller", 60, lambda: next((agent for agent in [host.agent()] if agent and agent[0].identity != before[0].identity), None))


# ---- f1: v1 is ready before it has polled, and then only logs that CodeDeploy does not hear it (#399, #69, #354) ------------------------------------------------


@field("f1", "no credentials, then there are some", "33 with the log's words, then 0", 90, falls='"restarted".*wanted agent-unhealthy')
def no_credentials(stage, name):
    with stage.host(name, error_pause=4) as host:
        before = host.agent()
        host.knob("poll", "missing")
        host.restart().must_be("agent-unhealthy").must_say("Missing credentials")
        deaf = host.is_new_agent(before)
        host.nothing_is_left()
        # Nor is it called fresh on the second try.
        host.restart(sent=3600).must_be("agent-unhealthy").must_say("Missing credentials")
        host.is_same_agent(deaf)
        host.knob("poll")
        time.sleep(8)
        host.restart(sent=3600).must_be("already-restarted")
        host.is_same_agent(deaf)


@field("f1", "CodeDeploy refuses the new agent, its real pauses", "33 with the log's words", 45, falls='"restarted".*wanted agent-unhealthy')
def access_denied(stage, name):
    with stage.host(name, "generated", "bash") as host:
        before = host.agent()
        host.knob("poll", "refused")
        host.restart().must_be("agent-unhealthy").must_say("AccessDenied")
        host.is_new_agent(before)
        host.nothing_is_left()


@field("f1", "polls fail for TLS, only init.d", "33 with the log's words", 45, falls='"restarted".*wanted agent-unhealthy')
def tls(stage, name):
    with stage.host(name, "init", "busybox", error_pause=3) as host:
        before = host.agent()
        host.knob("poll", "tls")
        host.restart().must_be("agent-unhealthy").must_say("certificate verify failed")
        host.is_new_agent(before)


@field("f1", "polls get no answer at all", "33", 50, falls='"restarted".*wanted agent-unhealthy')
def black_hole(stage, name):
    with stage.host(name, boot_seconds=2) as host:
        before = host.agent()
        run = host.begin(limits={**LOWERED, "TEST_PROOF_LIMIT": 12})
        host.wait_for("the old agent's end", 60, lambda: not host.lives(before[1]))
        host.knob("poll_seconds", 300)
        run.verdict().must_be("agent-unhealthy")
        host.is_new_agent(before)


@field("f1", "errors of a first poll, and of hooks", "0: they disprove nothing", 40)
def harmless_errors(stage, name):
    # v2 would not say of a later poll that it was good: so nothing is refused there.
    for kind, first_poll in (("native", "throttled"), ("v2", "good")):
        with stage.host(name, kind, first_poll=first_poll, error_pause=2) as host:
            before = host.agent()
            run = host.begin()
            new_poller(host, before)
            host.hook("d-FAILS", "echo broken >&2; exit 3")
            run.verdict().must_be("restarted")
            host.is_new_agent(before)
            host.nothing_is_left()


@field("f1", "the poller dies once, the next one stays", "0", 40, falls='"agent-unhealthy".*wanted restarted')
def poller_dies_once(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        run = host.begin()
        agent = new_poller(host, before)
        time.sleep(2)
        host.must(f"kill -KILL {agent[1].pid}")
        run.verdict().must_be("restarted")
        host.is_new_agent(before)


WIRE_LOG = "---\n:log_aws_wire: true\n:wait_between_runs: 1\n"


@field("f1", "polls are logged elsewhere (log_aws_wire)", "0 that says that no poll was seen; 33 for an error", 60, falls="lacks 'poll'")
def wire_log(stage, name):
    with stage.host(name, prepare=lambda host: host.write(CONFIG, WIRE_LOG), error_pause=3) as host:
        before = host.agent()
        host.restart().must_be("restarted").must_say("poll")
        host.is_new_agent(before)
        host.nothing_is_left()
        host.knob("poll", "missing")
        host.restart().must_be("agent-unhealthy").must_say("Missing credentials")


@field("f1", "the log is rotated away during the proof", "0", 40)
def rotated_away(stage, name):
    with stage.host(name, poll_seconds=3) as host:
        before = host.agent()
        run = host.begin()
        new_poller(host, before)
        host.must(f"mv {LOG} {LOG}.1")
        run.verdict().must_be("restarted")
        host.is_new_agent(before)


# ---- f2: v2's worker has its title at once, and ends when the metadata service does not answer ---------------------------------------------------------------


@field("f2", "v2, the metadata service drops packets; then it is slow", "33 with the log's words, then 0", 80, falls='"restarted".*wanted agent-unhealthy')
def metadata(stage, name):
    with stage.host(name, "v2") as host:
        host.knob("metadata", "drops 9")
        host.restart().must_be("agent-unhealthy").must_say("credentials")
        host.nothing_is_left()
        host.knob("metadata", "slow 9")
        host.restart().must_be("restarted")
        host.nothing_is_left()


@field("f2", "v2, CodeDeploy refuses its polls", "33 with the log's words", 50, falls='"restarted".*wanted agent-unhealthy')
def v2_refused(stage, name):
    with stage.host(name, "v2", error_pause=3) as host:
        before = host.agent()
        host.knob("poll", "refused")
        host.restart().must_be("agent-unhealthy").must_say("AccessDenied")
        deaf = host.is_new_agent(before)
        host.restart(sent=3600).must_be("agent-unhealthy").must_say("AccessDenied")
        host.is_same_agent(deaf)


@field("f2", "v2 runs for so long that the log of its start is gone", "already-restarted", 30)
def v2_old_log(stage, name):
    with stage.host(name, "v2") as host:
        before = host.agent()
        host.must(f"mv {LOG} {LOG}.7 && : > {LOG}")
        host.restart(sent=3600).must_be("already-restarted")
        host.is_same_agent(before)
        host.nothing_is_left()


# ---- f3: an agent died in a lifecycle event, and its tracking file stays (#402, #356) -----------------------------------------------------------------------


@field("f3", "the agent died in a hook that lives; then the hook is dead too", "20, then started", 50, falls='"busy".*wanted started')
def leftover(stage, name):
    with stage.host(name, "generated") as host:
        host.hook("d-DEAD", "exec -a the-hook /usr/bin/sleep 600")
        hook = host.wait_for("the hook", 10, lambda: next(iter(host.find("the-hook")), None))
        agent = host.agent()
        host.must(f"kill -KILL {agent[0].pid} {agent[1].pid}")
        host.wait_for("the agent's end", 20, lambda: not host.masters() and not host.find("CommandPoller"))
        host.restart(wait=3).must_be("busy").must_say("d-DEAD")
        expect(host.lives(hook), "the hook was killed")
        expect(not host.masters(), "an agent was started beside a hook that runs")
        host.must(f"kill -KILL {hook.pid}")
        host.restart(wait=6).must_be("started")
        host.is_new_agent(agent)
        expect("d-DEAD failed code 7" in host.log(), host.log())
        host.nothing_is_left()


@field("f3", "the agent died in a hook, what the deployment started lives", "started", 40, falls='"busy".*wanted started')
def leftover_beside_applications(stage, name):
    with stage.host(name, "generated") as host:
        # They have the deployment's id in their environment, as its hooks do.
        applications = host.start_applications()
        host.hook("d-APPLICATION", "exec -a the-hook /usr/bin/sleep 600")
        hook = host.wait_for("the hook", 10, lambda: next(iter(host.find("the-hook")), None))
        agent = host.agent()
        host.must(f"kill -KILL {agent[0].pid} {agent[1].pid} {hook.pid}")
        host.wait_for("the agent's end", 20, lambda: not host.masters() and not host.find("CommandPoller"))
        host.restart(wait=6).must_be("started")
        host.is_new_agent(agent)
        expect(all(host.lives(application) for application in applications), "an application was killed")
        host.nothing_is_left()


@field("f3", "CodeDeploy refuses the report, the file stays; a new event", "0, then 20", 60, falls='"busy".*wanted restarted')
def refused_report(stage, name):
    with stage.host(name, report="refused") as host:
        old = host.agent()
        host.hook("d-DEAD", "exec -a the-hook /usr/bin/sleep 600")
        time.sleep(3)
        # Memory is gone: the kernel kills both, and systemd the hook; then it starts the agent again.
        host.must(f"kill -KILL {old[0].pid} {old[1].pid}")
        host.wait_for("the agent that systemd starts", 30, lambda: host.agent_of_its_file() and not host.lives(old[0]) and not host.find("the-hook"))
        host.wait_for("its refused report", 10, lambda: "Exception thrown during restart recovery" in host.read(LOG))
        time.sleep(1.5)
        before = host.agent()
        expect(host.exists(f"{TRACKING}/d-DEAD"), "the file is gone: the case is wrong")
        host.restart(wait=6).must_be("restarted")
        after = host.is_new_agent(before)
        host.nothing_is_left()
        host.hook("d-NEW", "exec -a the-hook /usr/bin/sleep 600")
        host.restart(wait=3).must_be("busy").must_say("d-NEW")
        host.is_same_agent(after)
        expect(host.find("the-hook"), "the hook was killed")


@field("f3", "the file stays on a generated unit, whose stop refuses for it", "0", 50, falls='"busy".*wanted restarted')
def refused_report_generated(stage, name):
    with stage.host(name, "generated", report="refused") as host:
        old = host.agent()
        host.hook("d-DEAD", "exec -a the-hook /usr/bin/sleep 600")
        time.sleep(3)
        host.must(f"kill -KILL {old[0].pid} {old[1].pid} {host.find('the-hook')[0].pid}")
        host.wait_for("the agent's end", 20, lambda: not host.masters() and not host.find("CommandPoller"))
        host.must("systemctl restart codedeploy-agent")
        before = host.wait_for_agent()
        time.sleep(1.5)
        expect(host.exists(f"{TRACKING}/d-DEAD"), "the file is gone: the case is wrong")
        host.restart(wait=6).must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@field("f3", "the poller died in a hook, master and hook live", "20, the hook untouched", 30)
def orphan(stage, name):
    with stage.host(name, report="refused") as host:
        host.hook("d-ORPHAN", "exec -a the-hook /usr/bin/sleep 600")
        old = host.agent()
        host.must(f"kill -KILL {old[1].pid}")
        host.wait_for("another poller", 20, lambda: (now := host.agent()) and now[1].identity != old[1].identity)
        before = host.agent()
        host.restart(wait=3).must_be("busy").must_say("d-ORPHAN")
        host.is_same_agent(before)
        expect(host.find("the-hook"), "the hook was killed")


# ---- f4: somebody else restarts the agent during the proof: a hook's `at` job (the work-around of #32), cron, needrestart ---------------------------------------


def another_restart(stage, name, kind, how):
    with stage.host(name, kind) as host:
        before = host.agent()
        run = host.begin()
        agent = new_poller(host, before)
        time.sleep(2)
        host.must(how(agent))
        run.verdict().must_be("restarted")
        last = host.is_new_agent(before)
        expect(last[0].identity != agent[0].identity, "nobody restarted it again: the case is wrong")
        host.nothing_is_left()


@field("f4", "another restart during the proof, native unit", "0, the newer agent is proven", 45, falls='"agent-down".*wanted restarted')
def another_native(stage, name):
    another_restart(stage, name, "native", lambda agent: "systemctl restart codedeploy-agent")


@field("f4", "another restart during the proof, v2", "0, the newer agent is proven", 45, falls='"agent-down".*wanted restarted')
def another_v2(stage, name):
    another_restart(stage, name, "v2", lambda agent: "systemctl restart codedeploy-agent")


@field("f4", "the new master is killed, and nobody starts it", "0: the script itself starts it once more", 45, falls='"agent-down".*wanted restarted')
def killed_in_the_proof(stage, name):
    another_restart(stage, name, "generated", lambda agent: f"kill -KILL {agent[0].pid}")


# ---- f5: Ruby is only where /etc/profile puts it (rbenv, rvm; #72, #158, #346), or the profile puts a broken one first (#320) -----------------------------------


def ruby_by_profile(host):
    host.write("/opt/rb/bin/ruby", (AGENTS / "ruby").read_text(), 0o755)
    host.remove("/usr/local/bin/ruby")
    host.write("/etc/profile.d/rb.sh", "PATH=/opt/rb/bin:$PATH\n")


def profile_case(stage, name, kind):
    with stage.host(name, kind, prepare=ruby_by_profile) as host:
        expect(host.run(f"{CLI} status").returncode == 127, "ruby is on everybody's path: the case is wrong")
        before = host.agent()
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()
        # The profile's own changes: a broken one first.
        host.write("/opt/bad/bin/ruby", "#!/bin/sh\necho 'ruby: error while loading shared libraries: libruby.so' >&2\nexit 127\n", 0o755)
        host.write("/etc/profile.d/zz.sh", "PATH=/opt/bad/bin:$PATH\n")
        before = host.agent()
        host.restart().must_be("preflight-failed").must_say("libruby.so")
        host.is_same_agent(before)


@field("f5", "ruby by /etc/profile alone, then a broken one, native unit", "0, then 12 untouched", 40, falls='"preflight-failed".*wanted restarted')
def profile_native(stage, name):
    profile_case(stage, name, "native")


@field("f5", "ruby by /etc/profile alone, then a broken one, generated unit", "0, then 12 untouched", 40, falls='"preflight-failed".*wanted restarted')
def profile_generated(stage, name):
    profile_case(stage, name, "generated")


@field("f5", "the profile puts a broken ruby first", "12, untouched", 25, falls='"service-manager-failed".*wanted preflight-failed')
def broken_by_profile(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.write("/opt/bad/bin/ruby", "#!/bin/sh\necho 'ruby: error while loading shared libraries: libruby.so' >&2\nexit 127\n", 0o755)
        host.write("/etc/profile.d/zz.sh", "PATH=/opt/bad/bin:$PATH\n")
        host.restart().must_be("preflight-failed").must_say("libruby.so")
        host.is_same_agent(before)
        host.nothing_is_left()
        host.remove("/etc/profile.d/zz.sh")
        host.restart().must_be("restarted")


# ---- f6: the configuration as YAML reads it ---------------------------------------------------------------------------------------------------------------------

TWICE = """---
# as shipped, and the administrator's own below
:root_dir: /srv/old root
:pid_dir: '/srv/old-pids'
:wait_between_runs: 1
:root_dir: "/srv/deploy root"   # here
:pid_dir: '/srv/pids'
"""
QUOTED = """---
"root_dir": '/srv/deploy root'
:pid_dir  :  "/srv/pids"   # there
'wait_between_runs' : 1
---
:pid_dir: /srv/elsewhere
:root_dir: /srv/elsewhere
"""
FLOW = "{:root_dir: '/srv/deploy root', :pid_dir: /srv/pids, :wait_between_runs: 1}\n"
ANCHORS = "---\n:other: &here /srv/pids\n:pid_dir: *here\n:root_dir: &there '/srv/deploy root'\n:wait_between_runs: 1\n"


def configured(text):
    def prepare(host):
        host.write(CONFIG, text)
        host.pid_file = lambda: "/srv/pids/codedeploy-agent.pid"

    return prepare


def as_the_agent_reads_it(stage, name, text):
    with stage.host(name, prepare=configured(text)) as host:
        before = host.agent()
        host.restart().must_be("restarted")
        after = host.is_new_agent(before)
        host.nothing_is_left()
        expect_equal("the unit's state", host.run("systemctl is-active codedeploy-agent").stdout.strip(), "active")
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 600")
        host.restart(wait=2).must_be("busy").must_say("d-LONG")
        host.is_same_agent(after)


@field("f6", "directories stand twice: the last one counts", "0, then 20", 40, falls='"draining".*wanted restarted')
def configured_twice(stage, name):
    as_the_agent_reads_it(stage, name, TWICE)


@field("f6", "quoted keys, a space before the colon, a second document", "0, then 20", 40, falls='"draining".*wanted restarted')
def configured_quoted(stage, name):
    as_the_agent_reads_it(stage, name, QUOTED)


def by_open_files(stage, name, text):
    with stage.host(name, prepare=configured(text)) as host:
        # No file of the agent's own tells yet where its deployments are.
        before = host.agent()
        host.restart().must_be("preflight-failed")
        host.is_same_agent(before)
        host.start_applications()
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 6")
        host.restart(wait=2).must_be("busy").must_say("d-LONG")
        host.is_same_agent(before)
        host.wait_for("the hook's end", 30, lambda: "d-LONG succeeded" in host.log())
        host.restart(wait=20).must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@field("f6", "flow style: the directories of the agent's open files", "12 before any hook, then 20, then 0", 50, falls='"draining".*wanted preflight-failed')
def configured_flow(stage, name):
    by_open_files(stage, name, FLOW)


@field("f6", "anchors: the directories of the agent's open files", "12 before any hook, then 20, then 0", 50, falls='"draining".*wanted preflight-failed')
def configured_anchors(stage, name):
    by_open_files(stage, name, ANCHORS)


# ---- f7: an administrator's override.conf sorts after a name that begins with a digit -----------------------------------------------------------------------------


@field("f7", "override.conf with a short TimeoutStopSec, a hook begins in between", "0, the hook finishes", 40, falls="bad end.*failed code 7")
def short_stop(stage, name):
    def prepare(host):
        race("exec -a the-hook /usr/bin/sleep 12")(host)
        host.write(OVERRIDE, "[Service]\nTimeoutStopSec=5\n")

    with stage.host(name, prepare=prepare) as host:
        before = host.agent()
        verdict = host.restart()
        host.wait_for("the hook's end", 30, lambda: "d-RACE succeeded" in host.log() or "failed" in host.log())
        expect("failed" not in host.log(), f"the hook came to a bad end: {host.log()}")
        verdict.must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@field("f7", "override.conf with KillMode=mixed", "0, applications live", 25, falls='"preflight-failed".*wanted restarted')
def mixed(stage, name):
    with stage.host(name, prepare=lambda host: host.write(OVERRIDE, "[Service]\nKillMode=mixed\n")) as host:
        applications = host.start_applications()
        before = host.agent()
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        expect(all(host.lives(application) for application in applications), "an application was killed")
        host.nothing_is_left(usual="mixed")


# ---- f8: the agent runs in an administrator's own unit --------------------------------------------------------------------------------------------------------------

OTHER_UNIT = f"""[Unit]
Description=CodeDeploy, our own unit
[Service]
Type=forking
ExecStart={CLI} start
ExecStop={CLI} stop
PIDFile={PID_FILE}
Restart=on-failure
"""


@field("f8", "another unit runs the agent; then with KillMode=process", "12 that names it, then 0; applications live", 40, falls='"restarted".*wanted preflight-failed')
def other_unit(stage, name):
    with stage.host(name, start=False, prepare=lambda host: host.write("/etc/systemd/system/codedeploy.service", OTHER_UNIT)) as host:
        host.must("systemctl start codedeploy")
        before = host.wait_for_agent()
        applications = host.start_applications()
        host.restart().must_be("preflight-failed").must_say("codedeploy.service")
        host.is_same_agent(before)
        host.write("/etc/systemd/system/codedeploy.service.d/safe.conf", "[Service]\nKillMode=process\n")
        host.must("systemctl daemon-reload")
        host.restart().must_be("restarted")
        expect(host.wait_for_agent() and not host.lives(before[0]), "no new agent")
        expect(all(host.lives(application) for application in applications), "an application was killed")
        expect(not host.exists("/run/systemd/system/codedeploy.service.d"), "the drop-in is still there")
        host.nothing_is_left()


# ---- f9: a container on this host runs an agent of its own --------------------------------------------------------------------------------------------------------

CONTAINER = f"""#!/bin/bash -e
for own in {AGENT}/state /var/log/aws {STAGE}/hooks; do mkdir -p $own; mount -t tmpfs none $own; done
mkdir -p {AGENT}/deployment-root
mount -t tmpfs none {AGENT}/deployment-root
{CLI} start
exec sleep infinity
"""
BEGIN_CONTAINER = f"systemd-run -q --unit=docker-4f2a1c -- unshare --pid --fork --mount --mount-proc --kill-child {STAGE}/container"


def agent_of_a_container(host):
    """Starts the container, and gives the identities of its agent's two processes."""
    host.write(f"{STAGE}/container", CONTAINER, 0o755)
    host.must(BEGIN_CONTAINER)
    return host.wait_for("the container's agent", 30, lambda: container_agent(host))


def container_agent(host):
    found = sorted(process.identity for process in host.processes(foreign=True) if re.search(r"master \d+$", process.title) and "booting" not in process.title)
    return found if len(found) == 2 else None


@field("f9", "a container has an agent too; then it is gone", "0, the container's untouched", 40, falls='"old-agent-survived".*wanted restarted')
def container_beside(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        inner = agent_of_a_container(host)
        host.restart().must_be("restarted")
        after = host.is_new_agent(before)
        expect_equal("the container's agent", container_agent(host), inner)
        host.nothing_is_left()
        host.must("systemctl kill -s KILL docker-4f2a1c")
        host.wait_for("the container's end", 10, lambda: not host.processes(foreign=True))
        host.restart().must_be("restarted")
        host.is_new_agent(after)


@field("f9", "only a container has an agent, the host's is stopped", "started, the container's untouched", 30, falls='wanted started')
def container_alone(stage, name):
    with stage.host(name) as host:
        inner = agent_of_a_container(host)
        host.must("systemctl stop codedeploy-agent")
        host.restart().must_be("started")
        expect(host.agent(), "no agent runs")
        expect_equal("the container's agent", container_agent(host), inner)
        host.nothing_is_left()


# The same process namespace, but another root, with an agent's files of its own.
JAIL = "/srv/jail"
BEGIN_JAIL = f"""
mkdir -p {JAIL} {AGENT}/deployment-root
mount -t tmpfs -o mode=755 none {JAIL}
for link in bin sbin lib lib64; do [ -L /$link ] && cp -a /$link {JAIL}/; done
for shared in usr etc opt var proc dev; do mkdir {JAIL}/$shared; mount --bind /$shared {JAIL}/$shared; mount --make-private {JAIL}/$shared; done
for own in {AGENT}/state {AGENT}/deployment-root /var/log/aws {STAGE}/hooks; do mkdir -p {JAIL}$own; mount -t tmpfs none {JAIL}$own; done
exec systemd-run -q --unit=jail -p Type=forking chroot {JAIL} {CLI} start
"""


@field("f9", "another root has an agent too", "0, the other one untouched", 40, falls='"old-agent-survived".*wanted restarted')
def jail_beside(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.must(BEGIN_JAIL)
        inner = host.wait_for("the other root's agent", 30, lambda: container_agent(host))
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        expect_equal("the other root's agent", container_agent(host), inner)
        host.nothing_is_left()


# ---- f10: whose package manager (moby#29238: zombies of containers stay for ever) -------------------------------------------------------------------------------------


@field("f10", "apt-get in a container, a zombie dpkg; then a dpkg of the host's own", "0, then 21 that names it", 40, falls='"update-running".*wanted restarted')
def package_managers(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.must(f"mkdir -p {STAGE}/bin && for name in apt-get dpkg; do cp /usr/bin/sleep {STAGE}/bin/$name; done")
        host.must(f"systemd-run -q --unit=docker-77b0 -- unshare --pid --fork --mount --mount-proc --kill-child {STAGE}/bin/apt-get 600")
        host.spawn(f"""exec perl -e 'fork or exec "{STAGE}/bin/dpkg", "0.1"; sleep 600'""")
        host.wait_for("the zombie", 15, lambda: "Z dpkg" in host.run("cat /proc/[0-9]*/stat | sed 's/^[0-9]* (\\(.*\\)) \\(.\\) .*/\\2 \\1/'").stdout)
        host.restart(wait=4).must_be("restarted")
        after = host.is_new_agent(before)
        host.spawn(f"exec {STAGE}/bin/dpkg 600")
        worker = host.wait_for("dpkg", 10, lambda: next(iter(host.find(f"{STAGE}/bin/dpkg 600")), None))
        host.restart(wait=1).must_be("update-running").must_say("dpkg").must_say(str(worker.pid))
        host.is_same_agent(after)
        host.nothing_is_left()


# ---- f11: forks fail, for tasks or memory that are gone -------------------------------------------------------------------------------------------------------------

# Stands before systemctl and systemd-run: it starts nothing itself, and goes on when somebody has looked at what failed so far.
GATE = f"""#!/bin/bash
case " $* " in
  *" restart "* | *" stop "* | *" start "* | *" try-restart "* | *--unit=*)
    : > {STAGE}/gate/$$
    until [ -e {STAGE}/gate/$$.seen ]; do read -t 0.05 -r _ <> {STAGE}/gate/wait; done
    ;;
esac
exec /usr/bin/%s "$@"
"""


# Seconds for a run without tasks. Bash tries each fork again for 15 s before it gives up.
TASKS_LIMIT = 100


class Watcher(threading.Thread):
    """Notes how many forks had failed whenever the script began to restart something."""

    def __init__(self, host, group):
        super().__init__(daemon=True)
        self.host, self.group, self.failed, self.over = host, group, [], threading.Event()

    def failures(self):
        return int((self.group / "pids.events").read_text().split()[1])

    def run(self):
        gate = self.host.inside(f"{STAGE}/gate")
        while not self.over.wait(0.02):
            for asked in gate.glob("[0-9]*"):
                if not asked.name.endswith(".seen") and not (gate / f"{asked.name}.seen").exists():
                    self.failed.append(self.failures())
                    (gate / f"{asked.name}.seen").touch()


def tasks_are_short(stage, name, shell):
    """With so few tasks above the script's own two (the shell, and who entered the container for it): at most one line, and a true one."""
    with stage.host(name, shell=shell) as host:
        host.must(f"mkdir -p {STAGE}/gate && mkfifo {STAGE}/gate/wait")
        for program in ("systemctl", "systemd-run"):
            host.write(f"/usr/local/sbin/{program}", GATE % program, 0o755)
        outcomes = []
        for above in range(3, 13):
            before = host.wait_for_agent()
            # Only while it runs: elsewhere the gate is open.
            with stage.task_group() as group:
                (group / "pids.max").write_text(str(2 + above))
                watcher = Watcher(host, group)
                watcher.start()
                try:
                    code, stdout, stderr = host.begin(wait=1, group=group, limit=TASKS_LIMIT, limits={**LOWERED, "TEST_STABLE": 3, "TEST_READY_LIMIT": 8}).end()
                finally:
                    failed = watcher.failures()
                    watcher.over.set()
                    watcher.join()
            what = f"{above} tasks above it: exit {code}, {stdout!r}, {failed} forks failed, {watcher.failed} of them before a restart"
            expect(stdout.count(b"\n") <= 1, what)
            expect(not any(watcher.failed), f"a restart began after a fork had failed: {what}")
            result = Verdict(code, stdout, stderr, 0).result if stdout else "no line"
            outcomes.append((above, result))
            if not watcher.failed:
                expect(code != 0 and result in ("no line", "preflight-failed"), f"nothing was restarted: {what}")
                host.is_same_agent(before)
            elif code == 0:
                expect_equal(what, result, "restarted")
                host.is_new_agent(before)
            else:
                # The restart goes its way without the script, which did not see its end: no word of one that is healthy.
                expect(result in ("no line", "agent-unhealthy", "draining"), what)
                host.wait_for("the restart's end", 30, lambda old=before: not host.lives(old[0]) and host.agent_of_its_file())
            for number in host.inside(f"{STAGE}/gate").glob("[0-9]*"):
                number.unlink()
        print(f"      {name}: {', '.join(f'{above} {result}' for above, result in outcomes)}", flush=True)


# Bash's own retries keep the first edition for longer than any limit.
SHORT_OF_TASKS = f"a restart began after a fork had failed|did not end within|{NO_AGENT}"


def add_task_cases():
    for shell in ("dash", "bash", "busybox"):

        def body(stage, name, shell=shell):
            tasks_are_short(stage, name, shell)

        field("f11", f"3 to 12 tasks are free, {shell}", "at most one line, a true one", 150, falls=SHORT_OF_TASKS)(body)


add_task_cases()


# ---- f12: very many processes -----------------------------------------------------------------------------------------------------------------------------------

# Above it, a restart's worth of forks is spent on looking: on a host that is short of memory each one may fail.
FORKS = 60
# A program's arguments may take 128 KiB below this limit of the stack, as 2 MiB do below the usual one: so these processes stand for 65,000.
SMALL_STACK, PROCESSES = 512, 7000


def zombies(host, number):
    """That many processes, without their memory."""
    host.spawn(f"exec perl -e '$0 = \"many-children\"; for (1 .. {number}) {{ fork or exit }} sleep 9000'")
    host.wait_for("that many processes", 60, lambda: int(host.run("set -- /proc/[0-9]*; echo $#").stdout) > number)


@field("f12", "500 processes more, nothing to restart", f"already-restarted, at most {FORKS} forks", 40, falls="forks")
def forks_of_a_look(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.must("for number in $(seq 500); do sleep 9000 & done > /dev/null 2>&1")
        first = host.forks()
        host.restart(sent=3600).must_be("already-restarted")
        forks = host.forks() - first
        host.is_same_agent(before)
        print(f"      {forks} forks: {name} ({stage.script.name})", flush=True)
        expect(forks <= FORKS, f"{forks} forks where nothing was to do")


@field("f12", "more processes than one command's arguments can name", "0 or 12, never a false word", 60, falls='"agent-down".*wanted restarted')
def too_many_to_name(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        zombies(host, PROCESSES)
        verdict = host.restart(before=f"ulimit -S -s {SMALL_STACK}").must_be("restarted", "preflight-failed")
        if verdict.code == 0:
            host.is_new_agent(before)
        else:
            host.is_same_agent(before)
        host.nothing_is_left()


# ---- f13: what is on disk does not tell which generation runs -------------------------------------------------------------------------------------------------------


@field("f13", "the program is wrapped in a shell script", "0, 20, started", 50, falls='"agent-down".*wanted restarted')
def wrapped(stage, name):
    with stage.host(name, "wrapped") as host:
        before = host.agent()
        host.restart().must_be("restarted")
        after = host.is_new_agent(before)
        host.nothing_is_left()
        host.hook("d-LONG", "exec -a the-hook /usr/bin/sleep 600")
        host.restart(wait=2).must_be("busy")
        host.is_same_agent(after)


@field("f13", "v2's package was installed over a running v1", "0, v2 runs", 30, falls='"(started|agent-down)".*wanted restarted')
def upgraded(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.install("v2")
        host.write(UNIT_FILE, (AGENTS / "v2.service").read_text())
        host.write(f"{AGENT}/.version", VERSIONS[2])
        host.must("systemctl daemon-reload")
        host.restart().must_be("restarted")
        after = host.is_new_agent(before)
        expect(after[1].title.endswith(" worker"), f"no v2: {after}")
        host.nothing_is_left()


# ---- f14: v2 below a symbolic link (#143): its worker has the resolved path for its title -----------------------------------------------------------------------------


@field("f14", "v2 below a symbolic link", "0", 30, falls='"agent-unhealthy".*wanted restarted')
def below_a_link(stage, name):
    def prepare(host):
        shutil.move(host.inside(AGENT), host.inside("/srv/codedeploy-agent"))
        host.link(AGENT, "../srv/codedeploy-agent")

    with stage.host(name, "v2", prepare=prepare) as host:
        before = host.agent()
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


# ---- f15: another program under the same paths --------------------------------------------------------------------------------------------------------------------------


@field("f15", "another program under the agent's paths", "12 that says so, untouched", 50, falls='"agent-down".*wanted preflight-failed')
def another_program(stage, name):
    with stage.host(name, "single", start=False) as host:
        host.must("systemctl start codedeploy-agent")
        program = host.wait_for("the program", 15, lambda: next(iter(host.find(f"{CLI} start")), None))
        for code in (0, 1):
            host.knob("status_code", code)
            host.restart().must_be("preflight-failed").must_say("not an agent that is known")
            expect(host.lives(program), "the program was touched")
        host.nothing_is_left()


# ---- f16: a generated unit's stop has 5 minutes, and then systemd starts beside the agent that drains ------------------------------------------------------------------


@field("f16", "generated unit, the drain is longer than its stop's limit", "0 or 34, the hook finishes, an agent runs", 60, falls=NO_AGENT)
def long_drain_generated(stage, name):
    def prepare(host):
        host.write("/etc/systemd/system/codedeploy-agent.service.d/10-short.conf", "[Service]\nTimeoutStopSec=5\n")

    with stage.host(name, "generated", prepare=prepare) as host:
        before = host.agent()
        host.write(f"{STAGE}/late-hook", "exec -a the-hook /usr/bin/sleep 12")
        verdict = host.restart(limits={**LOWERED, "TEST_RESTART_LIMIT": 40})
        host.wait_for("the hook's end", 30, lambda: "d-RACE succeeded" in host.log())
        host.wait_for("the old agent's end", 30, lambda: not host.lives(before[0]))
        host.wait_for_agent()
        host.is_new_agent(before)
        verdict.must_be("restarted", "draining")
        if verdict.code == 0:
            host.nothing_is_left()


# ---- f17: the agent runs outside its unit, and the script is killed between stop and start --------------------------------------------------------------------------------


def killed_between(stage, name, kind, start):
    with stage.host(name, kind, start=False, poll_seconds=8) as host:
        host.must(start)
        before = host.wait_for_agent()
        time.sleep(1)
        run = host.begin(wait=20)
        host.wait_for("the agent's stop", 60, lambda: host.find("shutting down"))
        run.signal(signal.SIGKILL)
        run.end()
        host.wait_for("the old agent's end", 30, lambda: not host.lives(before[0]))
        # Nobody but the killed run's own job can have started one.
        after = host.wait_for_agent(40)
        host.knob("poll_seconds")
        host.restart(wait=30).must_be("restarted")
        host.is_new_agent(after)
        host.nothing_is_left()


@field("f17", "outside its native unit, SIGKILL between stop and start", "an agent runs all the same", 70, falls=NO_AGENT)
def killed_native(stage, name):
    killed_between(stage, name, "native", f"{CLI} start")


@field("f17", "outside its generated unit, SIGKILL between stop and start", "an agent runs all the same", 70, falls=NO_AGENT)
def killed_generated(stage, name):
    killed_between(stage, name, "generated", "/etc/init.d/codedeploy-agent start-no-update")


@field("f17", "only init.d, SIGKILL between stop and start", "an agent runs all the same", 70, falls=NO_AGENT)
def killed_init(stage, name):
    killed_between(stage, name, "init", "/etc/init.d/codedeploy-agent start")


# ---- f18: a start that takes over a minute, within the unit's own limit of 90 s -----------------------------------------------------------------------------------------


@field("f18", "the new agent's start takes 63 s", "0, one start", 130, falls='"service-manager-failed".*wanted restarted')
def slow_start(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.knob("start_seconds", 63)
        host.restart(limits={**LOWERED, "TEST_RESTART_LIMIT": 150}).must_be("restarted")
        host.is_new_agent(before)
        expect_equal("starts by systemd itself", host.run("systemctl show -p NRestarts codedeploy-agent").stdout.strip(), "NRestarts=0")
        host.nothing_is_left()


# ---- f19: without systemd, what starts the agent is the script: hooks would inherit its environment -----------------------------------------------------------------------


@field("f19", "only init.d: the environment of hooks", "nothing of the script's or the caller's", 40, falls="the hook inherits")
def environment_of_hooks(stage, name):
    with stage.host(name, "init") as host:
        callers = {"AWS_SSM_INSTANCE_ID": "i-0123456789abcdef0", "AWS_SSM_REGION_NAME": "eu-west-1"}
        host.restart(environment=callers).must_be("restarted")
        host.hook("d-ENVIRONMENT", f"env > {STAGE}/environment")
        host.wait_for("the hook's end", 15, lambda: "d-ENVIRONMENT succeeded" in host.log())
        names = {line.partition("=")[0] for line in host.read(f"{STAGE}/environment").splitlines()}
        expect("DEPLOYMENT_ID" in names, f"no environment of a hook's: the case is wrong: {names}")
        strangers = {name for name in names if name in ("LC_ALL", "TRIGGERED_AT", "SENT_AT", "BUSY_WAIT_SECONDS", "MIN_MEMORY_MIB") or name.startswith(("TEST_", "AWS_SSM_"))}
        expect(not strangers, f"the hook inherits {strangers}")


# ---- f20: the agent runs as another user, who owns its folders: root neither writes through that user's links nor runs that user's programs ------------------------------


def other_user(host):
    host.write("/etc/passwd", host.read("/etc/passwd") + "codedeploy:x:4711:4711::/opt/codedeploy-agent:/bin/bash\n")
    host.write("/etc/group", host.read("/etc/group") + "codedeploy:x:4711:\n")
    host.write(UNIT_FILE, (AGENTS / "v1.service").read_text().replace("[Service]\n", "[Service]\nUser=codedeploy\n"))


@field("f20", "another user's agent, and links in its folders", "0, nothing written through them, nothing run as root", 50, falls="was overwritten")
def links_of_another_user(stage, name):
    with stage.host(name, start=False, prepare=other_user) as host:
        host.must(f"mkdir -p {AGENT}/state/.pid /var/log/aws/codedeploy-agent && chown -R codedeploy: {AGENT} /var/log/aws && echo precious > /etc/precious")
        host.must("systemctl start codedeploy-agent")
        before = host.wait_for_agent()
        host.must(f"setpriv --reuid=4711 --regid=4711 --clear-groups ln -s /etc/precious {AGENT}/state/.pid/.agent-restart-probe")
        host.restart().must_be("restarted")
        after = host.is_new_agent(before)
        host.nothing_is_left()
        expect_equal("a file of root's, which was overwritten", host.read("/etc/precious"), "precious\n")
        expect(" by 0" not in host.read(f"{STAGE}/commands"), f"the agent's program was run as root: {host.read(f'{STAGE}/commands')}")
        host.must(f"rm {PID_FILE} && setpriv --reuid=4711 --regid=4711 --clear-groups ln -s /etc/precious {PID_FILE}")
        verdict = host.restart()
        expect_equal("a file of root's, which was overwritten", host.read("/etc/precious"), "precious\n")
        expect(" by 0" not in host.read(f"{STAGE}/commands"), f"the agent's program was run as root: {host.read(f'{STAGE}/commands')}")
        if verdict.code == 12:
            host.is_same_agent(after)
        else:
            expect(verdict.code in (0, 31), verdict.line)
            expect(host.agent(), "no agent runs")


# ---- f21: /proc/uptime is the container's, and field 22 of /proc/PID/stat the kernel's (lxcfs) -----------------------------------------------------------------------------


@contextlib.contextmanager
def uptime_of_its_own(host):
    """A file with an uptime that counts from now."""
    host.write(f"{STAGE}/uptime", "100.00 100.00\n")
    began, over = time.monotonic(), threading.Event()
    file = host.inside(f"{STAGE}/uptime").open("r+b", buffering=0)

    def count():
        # In place and of one length, so that nobody reads half of it.
        while not over.wait(0.5):
            file.seek(0)
            file.write(f"{100 + time.monotonic() - began:.2f}".encode())

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield f"mount --bind {STAGE}/uptime /proc/uptime"
    finally:
        over.set()
        thread.join()
        file.close()


@field("f21", "/proc/uptime is virtual", "restarted, then already-restarted", 50, falls='"already-restarted".*wanted restarted')
def virtual_uptime(stage, name):
    with stage.host(name) as host, uptime_of_its_own(host) as mount:
        before = host.agent()
        time.sleep(2)
        host.restart(before=mount).must_be("restarted")
        after = host.is_new_agent(before)
        host.restart(before=mount, sent=60).must_be("already-restarted")
        host.is_same_agent(after)


# ---- f22: the program is away while its agent runs -------------------------------------------------------------------------------------------------------------------------


@field("f22", "the program is away while the agent runs; then it is back", "12 that says that it was left alone, then 0", 30, falls='"not-installed".*wanted preflight-failed')
def program_away(stage, name):
    with stage.host(name) as host:
        before = host.agent()
        host.must(f"mv {CLI} {CLI}.away")
        host.restart().must_be("preflight-failed").must_say("left alone")
        host.is_same_agent(before)
        host.must(f"mv {CLI}.away {CLI}")
        host.restart().must_be("restarted")
        host.is_new_agent(before)


# ---- f23: a stop is refused for an event that is over before anybody looks ---------------------------------------------------------------------------------------------------


def refused_stop(stage, name, kind):
    with stage.host(name, kind) as host:
        before = host.agent()
        host.knob("stop_refuses", 1)
        host.restart().must_be("busy")
        host.is_same_agent(before)
        host.knob("stop_refuses")
        host.restart().must_be("restarted")
        host.is_new_agent(before)
        host.nothing_is_left()


@field("f23", "only init.d: a stop is refused, and the event is over", "20, untouched; then 0", 40, falls='"service-manager-failed".*wanted busy')
def refused_init(stage, name):
    refused_stop(stage, name, "init")


@field("f23", "generated unit: a stop is refused, and the event is over", "20, untouched; then 0", 40, falls='"old-agent-survived".*wanted busy')
def refused_generated(stage, name):
    refused_stop(stage, name, "generated")


# ---- f24: a job of systemd's is queued for the unit: which, decides -----------------------------------------------------------------------------------------------------------


def queue_its_start(host):
    """A start of the agent waits for something slow."""
    host.write("/etc/systemd/system/slow.service", "[Service]\nType=oneshot\nExecStart=/bin/sleep 20\n")
    host.write("/etc/systemd/system/codedeploy-agent.service.d/slow.conf", "[Unit]\nAfter=slow.service\nWants=slow.service\n")


@field("f24", "its start is queued, as at boot", "22, then 0", 60, falls='"draining".*wanted restart-running')
def queued_start(stage, name):
    with stage.host(name, start=False, prepare=queue_its_start) as host:
        host.must("systemctl start --no-block codedeploy-agent")
        host.restart(wait=2).must_be("restart-running")
        expect(not host.masters(), "the agent was started before its time")
        host.restart(wait=60).must_be("restarted", "already-restarted", "started")
        expect(host.wait_for_agent(), "no agent runs")
        host.nothing_is_left()


@field("f24", "somebody stops it at this moment", "34 with a true detail; it stays stopped", 50, falls="untrue")
def queued_stop(stage, name):
    with stage.host(name, poll_seconds=15) as host:
        before = host.agent()
        host.must("systemctl stop --no-block codedeploy-agent")
        verdict = host.restart(wait=2).must_be("draining")
        expect("restart still waits" not in verdict.detail, f"untrue: nobody asked for a restart: {verdict.line}")
        host.wait_for("the agent's end", 40, lambda: not host.lives(before[0]))
        time.sleep(2)
        expect_equal("masters after the stop that somebody asked for", host.masters(), [])
        host.knob("poll_seconds")
        host.restart(wait=20).must_be("started")
        host.nothing_is_left()


@field("f24", "somebody restarts it at this moment", "34, then 0", 60)
def queued_restart(stage, name):
    with stage.host(name, poll_seconds=15) as host:
        before = host.agent()
        host.must("systemctl restart --no-block codedeploy-agent")
        host.restart(wait=2).must_be("draining")
        host.knob("poll_seconds")
        host.restart(wait=40).must_be("restarted", "already-restarted")
        host.is_new_agent(before)
        host.nothing_is_left()

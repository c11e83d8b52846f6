"""A host on which the script is tried: a container with a real systemd, whose root is a throw-away layer over this machine's own.

Everything a host needs is mounted on one tmpfs, in a mount and process namespace that run.py made for itself: when run.py ends, however it ends, the kernel
ends the processes and unmounts the rest. Only the control groups have to be removed by hand.
"""

import contextlib
import copy
import ctypes
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
SCRIPT = HERE.parents[1] / "document/restart-agent.sh"
AGENTS = HERE / "agents"

# Seconds until a container has booted; it takes one on an idle machine.
BOOT_LIMIT = 60
# Containers that boot at a time, the inotify instances that the systemd of each needs, and the seconds for which a case waits for them: the kernel gives 128 to
# each user, and others may use them too.
BOOTS, INSTANCES, INSTANCES_LIMIT = 3, 6, 240
# Seconds for a command of the test's own inside a container.
COMMAND_LIMIT = 60
# Seconds that a run of the script may take beyond its wait: its own deadline is the wait and 390.
SCRIPT_LIMIT = 420
# Seconds between two looks of a wait.
LOOK_EVERY = 0.2

AGENT = "/opt/codedeploy-agent"
CLI = f"{AGENT}/bin/codedeploy-agent"
PID_FILE = f"{AGENT}/state/.pid/codedeploy-agent.pid"
CONFIG = "/etc/codedeploy-agent/conf/codedeployagent.yml"
LOG = "/var/log/aws/codedeploy-agent/codedeploy-agent.log"
TRACKING = f"{AGENT}/deployment-root/ongoing-deployment"
STAGE = "/opt/stage"
UNIT_FILE = "/usr/lib/systemd/system/codedeploy-agent.service"
DROP_INS = "/run/systemd/system/codedeploy-agent.service.d"
DROP_IN = f"{DROP_INS}/zz-agent-restart.conf"
# What stops and starts an agent that runs outside its unit.
TRANSIENT = "codedeploy-agent-restart.service"
LOCK = "/run/codedeploy-agent-restart.lock"
SCRIPTS = f"{STAGE}/script"

# The contract: the members of the line in their order, and the code of each result.
MEMBERS = {"agentRestart": int, "result": str, "code": int, "agentVersion": str, "memoryBeforeKiB": int, "memoryAfterKiB": int, "seconds": int, "detail": str}
CODES = {
    "restarted": 0,
    "started": 0,
    "already-restarted": 0,
    "below-threshold": 0,
    "not-installed": 10,
    "not-root": 11,
    "preflight-failed": 12,
    "busy": 20,
    "update-running": 21,
    "restart-running": 22,
    "draining": 34,
    "service-manager-failed": 30,
    "agent-down": 32,
    "old-agent-survived": 31,
    "agent-unhealthy": 33,
}
LINE_LIMIT = 1000

# Shorter times than the script's own, so that most cases take seconds; a crash loop turns every 5 s, and the stable time stays longer than that.
LOWERED = {
    "TEST_STATUS_LIMIT": 15,
    "TEST_RESTART_LIMIT": 20,
    "TEST_READY_LIMIT": 12,
    "TEST_STABLE": 7,
    # A refused poll is followed by a pause of 10 s: the second refusal comes within this.
    "TEST_PROOF_LIMIT": 40,
    "TEST_BLIND_LIMIT": 10,
    "TEST_WORKER_LIMIT": 12,
}
# What the first edition had besides.
FIRST_EDITION_LIMITS = {"TEST_STOP_LIMIT": 15}
FIRST_EDITION = HERE / "first-edition.sh"

# Nothing of the machine's own may start in a container, least of all a package manager.
MASKED = ["timers.target", "postgresql.service", "systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service", "getty.target"]

VERSIONS = {1: "agent_version: OFFICIAL_1.8.1-1_rpm\n", 2: "agent_version: 2.1.0\n"}


class Failure(Exception):
    """Something is not as it must be; the text says what."""


class Stopped(Exception):
    """The whole run ends; what a case was doing does not matter any more."""


def expect(holds, what):
    """Fails unless the condition holds."""
    if not holds:
        raise Failure(what)


def expect_equal(what, found, wanted):
    """Fails unless both are equal, and shows both."""
    if found != wanted:
        raise Failure(f"{what}: found {found!r}, wanted {wanted!r}")


class Process:
    """A process as it was at one moment; its identity outlives the number."""

    def __init__(self, outer, pid, parent, started, title, group):
        self.outer, self.pid, self.parent, self.started, self.title, self.group = outer, pid, parent, started, title, group

    @property
    def identity(self):
        return (self.pid, self.started)

    def __repr__(self):
        return f"{self.pid}({self.title})"


class Verdict:
    """What one run of the script said, held against the contract."""

    def __init__(self, code, stdout, stderr, seconds):
        self.code, self.stdout, self.stderr, self.seconds = code, stdout, stderr, seconds
        shown = f"exit {code}, stdout {stdout!r}, stderr {stderr!r}"
        expect(stderr == b"", f"something is on stderr: {shown}")
        expect(stdout.endswith(b"\n") and stdout.count(b"\n") == 1, f"not exactly one line: {shown}")
        expect(len(stdout) <= LINE_LIMIT, f"{len(stdout)} bytes: {shown}")
        expect(all(32 <= byte < 127 for byte in stdout[:-1]), f"not printable ASCII: {shown}")
        self.line = stdout.decode().rstrip("\n")
        try:
            self.fields = json.loads(self.line)
        except ValueError as error:
            raise Failure(f"not JSON ({error}): {shown}") from error
        expect_equal("the line's members", {name: type(value) for name, value in self.fields.items()}, MEMBERS)
        expect_equal("the line's order", list(self.fields), list(MEMBERS))
        expect_equal("the line's version", self.fields["agentRestart"], 1)
        expect_equal("the exit code and the line's", self.fields["code"], code)
        expect_equal(f"the code of {self.result}", CODES.get(self.result), code)

    @property
    def result(self):
        return self.fields["result"]

    @property
    def detail(self):
        return self.fields["detail"]

    def must_be(self, result, *others):
        expect(self.result in (result, *others), f"{self.line}: wanted {' or '.join((result, *others))}")
        return self

    def must_say(self, text):
        expect(text in self.detail, f"{self.line}: the detail lacks {text!r}")
        return self


class Run:
    """A run of the script that is under way, as Systems Manager would have started it."""

    def __init__(self, host, child, file, limit):
        self.host, self.child, self.file, self.limit, self.began = host, child, file, limit, time.monotonic()

    def end(self):
        """The end of both pipes, as Systems Manager waits for it: a process that inherited one would hold it up."""
        try:
            stdout, stderr = self.child.communicate(timeout=max(1, self.began + self.limit - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise Failure(f"the script, or something that inherited its output, did not end within {self.limit} s; processes: {self.host.processes()}") from error
        return self.child.returncode, stdout, stderr

    def verdict(self):
        code, stdout, stderr = self.end()
        verdict = Verdict(code, stdout, stderr, time.monotonic() - self.began)
        self.host.stage.record(self.host.case, verdict)
        return verdict

    def shells(self):
        """The processes that interpret the script: `sh -c FILE` may start another one, and subshells have the same title."""
        found = [process for process in self.host.processes() if self.file in process.title]
        first = min(process.started for process in found)
        return [process for process in found if process.started - first < 20]

    def is_in(self, words):
        """Waits until the script runs a command whose title holds these words."""
        return self.host.wait_for(f"the script to run {words}", 60, lambda: next(iter(self.host.find(words)), None))

    def signal(self, number):
        """SIGKILL as Systems Manager sends it, to the whole process group; another signal to the script alone."""
        shells = self.shells()
        if number == signal.SIGKILL:
            os.killpg(os.getpgid(shells[0].outer), number)
        else:
            os.kill(max(shells, key=lambda process: process.pid).outer, number)


class Host:
    """One container. `kind` says which agent and how it is managed: native, generated, init, v2, v2-wrapper; wrapped is native with its program behind a shell
    script, single is another program under the same paths."""

    def __init__(self, stage, case, kind="native", shell="dash", start=True, prepare=None, **knobs):
        self.stage, self.case, self.kind, self.shell = stage, case, kind, shell
        self.generation = 2 if kind.startswith("v2") else 1
        self.hidden = None
        number = stage.number()
        self.folder = stage.folder / str(number)
        self.root = self.folder / "root"
        self.groups = []
        self.child = None
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir(parents=True)
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={self.folder}/upper,workdir={self.folder}/work", self.root], check=True, timeout=COMMAND_LIMIT
        )
        self.files = self.root
        self.furnish()
        for name, value in knobs.items():
            self.knob(name, value)
        if prepare:
            prepare(self)
        with stage.boots:
            self.wait_for("free inotify instances (fs.inotify.max_user_instances)", INSTANCES_LIMIT, instances_are_free)
            self.boot(number)
        if start:
            self.start_agent()

    # ---- before the boot

    def furnish(self):
        self.write("/etc/fstab", "")
        self.write("/etc/systemd/journald.conf.d/90-stage.conf", "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n")
        etc = self.files / "etc/systemd/system"
        for unit in MASKED:
            self.link(f"/etc/systemd/system/{unit}", "/dev/null")
        self.link("/etc/systemd/system/default.target", "/lib/systemd/system/basic.target")
        shutil.rmtree(etc / "basic.target.wants", ignore_errors=True)
        self.link("/usr/bin/sh", {"dash": "dash", "bash": "bash", "busybox": "busybox"}[self.shell])
        for folder in (f"{STAGE}/knobs", f"{STAGE}/hooks", SCRIPTS):
            (self.files / folder[1:]).mkdir(parents=True)
        # A machine that tests this may have an agent of its own, and its interpreter.
        shutil.rmtree(self.files / AGENT[1:], ignore_errors=True)
        for interpreter in [*self.files.glob("usr/bin/ruby*"), *self.files.glob("usr/local/bin/ruby*")]:
            interpreter.unlink()
        for folder in (STAGE, f"{STAGE}/hooks"):
            # An agent may run as another user.
            self.inside(folder).chmod(0o777)
        self.write(f"{STAGE}/log", "", 0o666)
        self.write(f"{STAGE}/commands", "", 0o666)
        self.install(self.kind)
        self.write(f"{AGENT}/lib/agent.pm", (AGENTS / "agent.pm").read_text())
        self.write(f"{AGENT}/.version", VERSIONS[self.generation])
        self.write(CONFIG, "---\n:log_aws_wire: false\n:wait_between_runs: 1\n:max_revisions: 5\n")
        self.write("/usr/local/bin/ruby", (AGENTS / "ruby").read_text(), 0o755)
        if self.kind in ("native", "generated", "init", "wrapped"):
            self.write("/etc/init.d/codedeploy-agent", (AGENTS / "init-script").read_text(), 0o755)
        if self.kind in ("native", "wrapped"):
            self.write(UNIT_FILE, (AGENTS / "v1.service").read_text())
        if self.kind in ("v2", "v2-wrapper", "single"):
            unit = (AGENTS / "v2.service").read_text()
            if self.kind == "v2-wrapper":
                # An old bash stays, and is the main process.
                unit = unit.replace("codedeploy-agent start'", "codedeploy-agent start; exit $$?'")
            self.write(UNIT_FILE, unit)

    def install(self, kind):
        """Puts an agent's program where it belongs."""
        if kind == "wrapped":
            self.write(f"{CLI}.real", (AGENTS / "v1").read_text(), 0o755)
        self.write(CLI, (AGENTS / {"wrapped": "wrapper", "single": "single", "v2": "v2", "v2-wrapper": "v2"}.get(kind, "v1")).read_text(), 0o755)

    # ---- the container

    def boot(self, number):
        # Each container gets control groups of its own: with the older hierarchy they would otherwise all work in this process's.
        for hierarchy in ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
            if os.path.exists(f"{hierarchy}/cgroup.procs"):
                group = pathlib.Path(hierarchy, f"{self.stage.name}-{number}")
                group.mkdir()
                self.groups.append(group)
        enter = "".join(f"echo 0 > {group}/cgroup.procs; " for group in self.groups)
        spawn = shlex.join(
            ["systemd-nspawn", "-q", "-D", str(self.root), "--register=no", "--keep-unit", "--private-network", "--console=pipe", "--resolv-conf=off", "--timezone=off"]
            + ["--link-journal=no", "-M", f"host{number}", "-b"]
        )
        self.console = self.folder / "console"
        with self.console.open("wb") as console:
            self.child = subprocess.Popen(["bash", "-c", f"{enter} exec {spawn}"], stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT)
        self.init = self.wait_for("the container's init", BOOT_LIMIT, self.find_init)
        try:
            self.wait_for("the container's boot", BOOT_LIMIT, lambda: self.run("systemctl is-system-running", hide=False).stdout.strip() in ("running", "degraded"))
        except Failure as failure:
            raise Failure(f"{failure}; {self.console.read_text(errors='replace')}; {self.run('systemctl list-jobs --no-pager', hide=False).stdout}") from failure
        self.files = pathlib.Path(f"/proc/{self.init}/root")

    def find_init(self):
        if self.child.poll() is not None:
            raise Failure(f"the container ended: {self.console.read_text(errors='replace')}")
        for child in pathlib.Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split():
            # Its first child only prepares the namespaces and goes; the init is the one that is number 1 in its own.
            with contextlib.suppress(OSError):
                if re.search(r"^NSpid:.*\s1$", pathlib.Path(f"/proc/{child}/status").read_text(), re.M):
                    return int(child)
        return None

    def end(self):
        """Ends the container at once; its processes end with its init."""
        if self.child:
            with contextlib.suppress(Exception):
                os.kill(self.init, signal.SIGKILL)
            try:
                self.child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        subprocess.run(["umount", "-l", self.root], check=False, timeout=COMMAND_LIMIT, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder, ignore_errors=True)
        for group in self.groups:
            remove_group(group)

    # ---- files

    def inside(self, path):
        """A path inside the container, from outside."""
        return self.files / path.lstrip("/")

    def write(self, path, text, mode=0o644):
        file = self.inside(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written elsewhere and renamed, so that nobody reads half of it.
        part = file.with_name(f".{file.name}.part")
        part.write_text(text)
        part.chmod(mode)
        part.rename(file)

    def link(self, path, target):
        file = self.inside(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        file.symlink_to(target)

    def read(self, path):
        try:
            return self.inside(path).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def exists(self, path):
        return os.path.lexists(self.inside(path))

    def remove(self, path):
        file = self.inside(path)
        shutil.rmtree(file) if file.is_dir() else file.unlink()

    def knob(self, name, value=None):
        """Sets a fault or a speed of the stand-in agent, or takes it back."""
        if value is None:
            self.remove(f"{STAGE}/knobs/{name}")
        else:
            self.write(f"{STAGE}/knobs/{name}", f"{value}\n")

    # ---- commands and processes

    def enter(self, *command, hide_systemd=False):
        """The command line that runs a command inside."""
        prefix = ["nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-C", "--"]
        if hide_systemd:
            prefix += ["unshare", "-m", "--", "sh", "-c", 'mount -t tmpfs none /run/systemd && exec "$@"', "hidden"]
        return [*prefix, *command]

    def run(self, command, limit=COMMAND_LIMIT, hide=True):
        """Runs a shell command inside, to its end; without systemd where the host has none."""
        self.stage.check()
        return subprocess.run(
            self.enter("bash", "-c", command, hide_systemd=hide and self.kind == "init"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            env=ENVIRONMENT,
        )

    def must(self, command, limit=COMMAND_LIMIT):
        done = self.run(command, limit)
        expect(done.returncode == 0, f"{command}: exit {done.returncode}, {done.stdout}{done.stderr}")
        return done.stdout

    def spawn(self, command):
        """Starts something inside that stays; it belongs to no unit."""
        subprocess.Popen(
            self.enter("bash", "-c", command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT, start_new_session=True
        )

    def processes(self, foreign=False):
        """Every process inside, as the container numbers it; or those of containers, and of other roots, inside it."""
        mine, root = os.readlink(f"/proc/{self.init}/ns/pid"), os.readlink(f"/proc/{self.init}/root")
        level = len(re.search(r"^NSpid:(.*)$", pathlib.Path(f"/proc/{self.init}/status").read_text(), re.M)[1].split())
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                own = os.readlink(f"/proc/{entry}/ns/pid") == mine and os.readlink(f"/proc/{entry}/root") == root
                if own == foreign or (foreign and not self.is_below(entry)):
                    continue
                status = pathlib.Path(f"/proc/{entry}/status").read_text()
                fields = pathlib.Path(f"/proc/{entry}/stat").read_text().rpartition(") ")[2].split()
                if fields[0] in "ZX":
                    continue
                title = pathlib.Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                group = pathlib.Path(f"/proc/{entry}/cgroup").read_text()
            except OSError:
                # It has ended meanwhile.
                continue
            pid = int(re.search(r"^NSpid:(.*)$", status, re.M)[1].split()[level - 1])
            found.append(Process(int(entry), pid, int(fields[1]), int(fields[19]), title, group))
        numbers = {process.outer: process.pid for process in found}
        for process in found:
            process.parent = numbers.get(process.parent, 0)
        return found

    def is_below(self, process):
        """Whether the container's init is an ancestor of a process."""
        while process not in ("0", "1", str(self.init)):
            process = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[1]
        return process == str(self.init)

    def find(self, text):
        """The processes whose title holds the text."""
        return [process for process in self.processes() if text in process.title]

    def lives(self, process):
        return any(other.identity == process.identity for other in self.processes())

    def masters(self):
        return [process for process in self.processes() if re.match(rf"\S+: master \d+$|{CLI} start", process.title)]

    def poller_of(self, master):
        pattern = r"\S+: InstanceAgent::.*CommandPoller of master \d+$|/\S+/bin/codedeploy-agent worker"
        return next((process for process in self.processes() if process.parent == master.pid and re.match(pattern, process.title)), None)

    def agent(self):
        """The one agent: its master and its poller, when both are ready and the PID file names it."""
        masters = self.masters()
        if len(masters) != 1:
            return None
        poller = self.poller_of(masters[0])
        return (masters[0], poller) if poller else None

    def agent_of_its_file(self):
        """The one agent, when its master is the one that the PID file names."""
        agent = self.agent()
        return agent if agent and self.read(self.pid_file()).strip() == str(agent[0].pid) else None

    def forks(self):
        """How many processes have been made inside so far, this question's own included: the container counts them by their numbers."""
        return int(self.run("echo $$").stdout)

    def memory(self, process):
        return int(re.search(r"VmRSS:\s*(\d+)", pathlib.Path(f"/proc/{process.outer}/status").read_text())[1])

    def wait_for(self, what, limit, look):
        """Looks again and again until there is something."""
        end = time.monotonic() + limit
        while True:
            self.stage.check()
            found = look()
            if found:
                return found
            if time.monotonic() > end:
                raise Failure(f"{what}: not within {limit} s")
            time.sleep(LOOK_EVERY)

    # ---- the agent

    def start_agent(self):
        """Starts the agent in the way of this kind of host."""
        self.must("/etc/init.d/codedeploy-agent start" if self.kind == "init" else "systemctl start codedeploy-agent")
        return self.wait_for_agent()

    def wait_for_agent(self, limit=30):
        self.wait_for("an agent with a ready poller", limit, self.agent_of_its_file)
        return self.agent()

    def pid_file(self):
        return PID_FILE

    def hook(self, name, command):
        """Lets a lifecycle event begin."""
        self.write(f"{STAGE}/hooks/{name}", command)
        self.wait_for(f"the hook {name}", 15, lambda: f"{name} started" in self.read(f"{STAGE}/log"))

    def log(self):
        """What became of hooks."""
        return self.read(f"{STAGE}/log")

    def start_applications(self):
        """Three applications that a hook starts in the usual ways; they stay in the agent's control group."""
        self.hook(
            "d-APPLICATION",
            "nohup bash -c 'exec -a application-nohup sleep 9001' >/dev/null 2>&1 & setsid bash -c 'exec -a application-setsid sleep 9002' >/dev/null 2>&1 & "
            "( ( exec -a application-fork sleep 9003 ) >/dev/null 2>&1 & ) ; exit 0",
        )
        applications = self.wait_for("three applications", 15, lambda: len(self.find("application-")) == 3 and self.find("application-"))
        self.wait_for("the hook's end", 15, lambda: "d-APPLICATION succeeded" in self.log())
        # Let the start settle: `exec -a` shows two titles for a moment.
        expect_equal("the applications' number", len(applications), 3)
        return self.find("application-")

    # ---- the script

    def begin(self, triggered=0, sent=0, wait=8, minimum=0, limits=LOWERED, as_user=None, before="", group=None, environment=(), limit=SCRIPT_LIMIT):
        """Starts the script as Systems Manager does: a prelude, then the text, in one file without a first line of its own; no input, two pipes."""
        self.stage.check()
        epoch = 1_771_319_645
        if limits and self.stage.script == FIRST_EDITION:
            limits = {**limits, **FIRST_EDITION_LIMITS}
        order = {"TRIGGERED_AT": epoch + triggered, "SENT_AT": epoch + sent, "BUSY_WAIT_SECONDS": wait, "MIN_MEMORY_MIB": minimum, **limits}
        prelude = "".join(f"{name}={value}\nexport {name}\n" for name, value in order.items())
        number = self.stage.number()
        file = f"{SCRIPTS}/{number}/_script.sh"
        self.write(file, prelude + self.stage.script.read_text(), 0o755)
        self.inside(file).parent.chmod(0o755)
        command = ["sh", "-c", file]
        if before:
            command = ["unshare", "-m", "--", "bash", "-c", f'{before} && exec "$@"', "before", *command]
        if as_user is not None:
            command = ["setpriv", f"--reuid={as_user}", f"--regid={as_user}", "--clear-groups", *command]
        command = self.enter(*command, hide_systemd=self.kind == "init")
        if group:
            # A control group of the script's own, as the SSM Agent's unit is one: whatever systemd starts is elsewhere.
            command = ["bash", "-c", f'echo 0 > {group}/cgroup.procs && exec "$@"', "group", *command]
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **dict(environment)},
            start_new_session=True,
        )
        return Run(self, child, file, wait + limit)

    def restart(self, **order):
        """One run of the script, to its end."""
        return self.begin(**order).verdict()

    def is_held(self, run):
        """Waits until that run has the lock: only then has it found a reason to wait."""
        self.wait_for("the run's lock", 20, lambda: self.exists(f"{LOCK}.file") and any(p.title.startswith("sleep 2") for p in self.processes()))
        expect(run.child.poll() is None, "the run has ended already")

    def nothing_is_left(self, usual=None):
        """What a finished run may leave behind: nothing. No drop-in, no job, no held lock, no process."""
        expect(not self.exists(DROP_IN), "the drop-in is still there")
        expect(not self.exists(DROP_INS), "the drop-in's folder is still there")
        expect(not self.exists(f"{LOCK}.owner"), "the lock's link is still there")
        if self.exists(f"{LOCK}.file") and shutil.which("flock"):
            done = subprocess.run(["flock", "-n", self.inside(f"{LOCK}.file"), "true"], timeout=COMMAND_LIMIT, check=False)
            expect_equal("the lock is free: flock's exit", done.returncode, 0)
        if self.kind != "init":
            expect_equal("jobs", self.run("systemctl list-jobs --no-legend").stdout.strip(), "")
            expect_equal("the transient unit", self.run(f"systemctl list-units --all --no-legend --plain {TRANSIENT}").stdout.strip(), "")
            usual = usual or {"generated": "process"}.get(self.kind, "control-group")
            expect_equal("the unit's kill mode", self.run("systemctl show -p KillMode codedeploy-agent").stdout.strip(), f"KillMode={usual}")
        strays = [process for process in self.processes() if SCRIPTS in process.title]
        expect(not strays, f"processes of the script are left: {strays}")

    def is_same_agent(self, before):
        """The agent that was there is there, untouched."""
        now = self.agent()
        expect(now is not None, f"there is no working agent any more: {self.masters()}")
        expect_equal("the agent's processes", [process.identity for process in now], [process.identity for process in before])

    def is_new_agent(self, before):
        """One agent, and none of its processes is an old one; inside its unit where there is one."""
        now = self.agent()
        expect(now is not None, f"there is not one working agent: {self.masters()}")
        for old in before:
            expect(not self.lives(old), f"{old} still runs")
        if self.kind != "init":
            expect("/codedeploy-agent.service" in now[0].group, f"the new master is outside its unit: {now[0].group}")
        expect_equal("the PID file", self.read(self.pid_file()).strip(), str(now[0].pid))
        return now


# What the commands inside get: nothing of the caller's.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


class Stage:
    """Where the hosts stand: one tmpfs, and what has to be ended."""

    def __init__(self, folder, name, script=SCRIPT):
        self.folder, self.name, self.script = folder, name, script
        self.lock = threading.Lock()
        self.counter = itertools.count(1)
        self.hosts = []
        self.lines = []
        self.stopping = threading.Event()
        self.boots = threading.Semaphore(BOOTS)

    def with_script(self, script):
        """The same stage, but another script is tried on it, and what that one says is not kept."""
        other = copy.copy(self)
        other.script, other.lines = script, []
        return other

    def number(self):
        return next(self.counter)

    def stop(self):
        """Ends everything: the waits of the cases, and the containers with whatever a case is reading from."""
        self.stopping.set()
        for host in list(self.hosts):
            with contextlib.suppress(Exception):
                os.kill(host.init, signal.SIGKILL)

    def check(self):
        if self.stopping.is_set():
            raise Stopped

    def record(self, case, verdict):
        with self.lock:
            self.lines.append({"case": case, "exit": verdict.code, "line": verdict.line})

    @contextlib.contextmanager
    def host(self, case, *arguments, **named):
        """A host for as long as a case needs it."""
        host = Host.__new__(Host)
        with self.lock:
            self.hosts.append(host)
        try:
            host.__init__(self, case, *arguments, **named)
            yield host
        finally:
            if hasattr(host, "groups"):
                host.end()
            with self.lock:
                self.hosts.remove(host)

    @contextlib.contextmanager
    def task_group(self):
        """A control group that can limit and count tasks, in the older or the newer hierarchy."""
        for hierarchy in (pathlib.Path("/sys/fs/cgroup/pids"), pathlib.Path("/sys/fs/cgroup")):
            if not (hierarchy / "cgroup.procs").exists():
                continue
            with contextlib.suppress(OSError):
                (hierarchy / "cgroup.subtree_control").write_text("+pids")
            group = hierarchy / f"{self.name}-tasks-{self.number()}"
            group.mkdir()
            try:
                if (group / "pids.max").exists():
                    yield group
                    return
            finally:
                remove_group(group)
        raise Failure("this machine limits no tasks: there is a pids controller neither at /sys/fs/cgroup/pids nor in /sys/fs/cgroup")

    def remove_groups(self):
        for hierarchy in ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
            for group in pathlib.Path(hierarchy).glob(f"{self.name}-*"):
                remove_group(group)


def instances_are_free():
    """Whether the kernel would give enough of them to all that boot now; without, a container hangs in its boot."""
    libc = ctypes.CDLL(None)
    taken = [libc.inotify_init1(os.O_CLOEXEC) for _ in range(BOOTS * INSTANCES)]
    for descriptor in taken:
        if descriptor >= 0:
            os.close(descriptor)
    return -1 not in taken


def remove_group(group):
    """Removes a control group with all below it. Ended processes may take a moment to leave it."""
    for _ in range(30):
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if not group.exists():
            return
        time.sleep(0.1)

//! A host under the document's contract.
//!
//! Each invocation of a command is a run: a small state machine that is woken at a moment of its own
//! choice and decides again by what the data says then, so that what a test changes in between counts.
//! The moments stand in one queue, ordered by time and then by the order of sending.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;

use crate::state::{
    Agent, AgentFault, Answer, DocumentKind, Host, Invocation, JobKind, SsmAgentFault, State,
};

/// Seconds between two tries to reach a host: to deliver, and in mid-run when it went away.
const RETRY: f64 = 1.0;
/// Quiet looks in a row that the script asks for, and the seconds between them.
const QUIET_LOOKS: u32 = 3;
const LOOK_EVERY: f64 = 2.0;
/// Seconds within which a master and its poller must be ready, and must then stand to be called stable.
const READY_LIMIT: f64 = 60.0;
const STABLE: f64 = 12.0;
/// Seconds that a poll takes: so old is a poller when CodeDeploy has answered it for the first time.
const POLL: f64 = 45.0;
/// Seconds that the script waits for the worker of what looks like a master.
const WORKER_LIMIT: f64 = 65.0;
/// Seconds after which the script stops waiting for the service manager.
const RESTART_LIMIT: f64 = 150.0;
/// Seconds that a start takes where no agent ran: there is no long poll to wait for.
const START: f64 = 3.0;
/// Seconds until a failing service manager says so.
const SERVICE_MANAGER_FAILS: f64 = 4.0;
/// Seconds that draining lasts beyond the script's patience where the data names no busy period.
const DRAINING_BEYOND: f64 = 60.0;
/// Execution time-outs outside this range silently become an hour (SSM agent).
const EXECUTION_TIMEOUT: (f64, f64) = (5.0, 172_800.0);
const EXECUTION_TIMEOUT_OTHERWISE: f64 = 3600.0;
/// Seconds that a script runs before somebody cancels it, it is killed, or the machine is booted anew; those that the
/// boot takes, and those until the SSM Agent tells of it.
const CUT_SHORT_AFTER: f64 = 8.0;
const BOOT: f64 = 20.0;
const TOLD_AFTER_BOOT: f64 = 60.0;
/// The exit code of a program that was killed, as a shell that forks tells it.
const KILLED: i64 = 137;
/// What the script says of an agent whose polls CodeDeploy refuses, and of a service manager that does not start it.
const DEAF: &str = "CodeDeploy does not hear the agent; log: Missing credentials - please check if this instance was \
                    started with an IAM instance profile";
const START_FAILED: &str =
    "systemctl restart ended with 1: codedeploy-agent.service: Start request repeated too quickly.";
/// What others write to a script's standard error.
const NOISE: &str =
    "ERROR: ld.so: object 'libagent.so' from /etc/ld.so.preload cannot be preloaded: ignored.\n";
/// Bytes of output that SSM keeps of a step (SSM agent).
const OUTPUT_LIMIT: usize = 2500;
/// Characters that the script takes of the version file, so that its line stays within 1,000 bytes.
const VERSION_LIMIT: usize = 64;
/// What stands between standard output and standard error, and behind each that was cut (SSM agent).
const ERROR_SEPARATOR: &str = "\n----------ERROR-------\n";
const OUTPUT_CUT: &str = "\n---Output truncated---";
const ERROR_CUT: &str = "\n---Error truncated----";

/// What the function asks of the script, read from the document's parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Order {
    pub(crate) triggered_at: f64,
    pub(crate) sent_at: f64,
    pub(crate) busy_wait: f64,
    pub(crate) min_memory_mib: u64,
    pub(crate) execution_timeout: f64,
}

/// An invocation that is to run.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) region: String,
    pub(crate) command: String,
    pub(crate) instance: String,
    pub(crate) document: DocumentKind,
    pub(crate) order: Order,
    pub(crate) sent: f64,
    pub(crate) delivery_timeout: f64,
    pub(crate) delivery: f64,
}

/// Everything that is under way on hosts.
#[derive(Debug)]
pub(crate) struct Runs {
    speed: f64,
    queue: BTreeSet<(i64, u64)>,
    open: BTreeMap<u64, Run>,
    /// What of a ramped command is still to be handed out, by region and command, wave by wave.
    waves: BTreeMap<(String, String), VecDeque<Vec<Start>>>,
    /// Who holds a host's lock, by region and instance.
    locks: BTreeMap<(String, String), u64>,
    next: u64,
}

#[derive(Debug)]
struct Run {
    start: Start,
    phase: Phase,
    wake: i64,
    /// When the script began.
    began: f64,
    /// What goes wrong with it, and has not yet.
    fault: Option<SsmAgentFault>,
    /// Memory before the restart, in KiB.
    memory_before: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Undelivered,
    /// In the SSM Agent's buffer.
    Buffered,
    /// The machine boots, and the script is no more.
    Booting,
    /// It is up again, and its SSM Agent has not told yet.
    Booted,
    /// Something that only the execution time-out ends.
    Hanging,
    /// The foreign document does whatever it does.
    Elsewhere,
    WaitingForLock,
    /// systemd has something to do with the agent's unit, and has not come to it.
    WaitingForJob,
    /// What runs there looks like a master, and has no worker.
    WaitingForWorker,
    /// The agent's health is being proven, whether it was restarted or is to be left alone.
    Proving(Proof),
    Looking {
        quiet: u32,
    },
    /// The service manager works until `done`; the script until then or its limit.
    Restarting {
        done: f64,
        began: f64,
        was_running: bool,
    },
    /// Nothing ran after the restart, and the script starts the agent once more.
    StartingAgain {
        result: &'static str,
    },
    /// The script has ended, and the restart has not.
    Draining,
}

/// A proof of health that is under way.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Proof {
    result: &'static str,
    unproven: Unproven,
    /// Until when a poller must be ready.
    deadline: f64,
    /// One was looked at that was not.
    waited: bool,
    watched: Option<Watched>,
}

/// A master whose poller is ready.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Watched {
    started_at: f64,
    /// When it has stood long enough.
    stable_at: f64,
    /// When the first poll of its has ended.
    heard_at: f64,
}

/// What the script does where the proof finds nobody.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unproven {
    /// It was to be left alone, before the looks for quiet: they follow.
    Look,
    /// The same after them: the restart follows.
    Restart,
    /// After a restart: it is started once more.
    StartAgain,
    /// After that.
    Tell,
}

/// The outcome of a script.
struct Verdict {
    code: i64,
    result: &'static str,
    detail: String,
}

impl Verdict {
    fn new(code: i64, result: &'static str, detail: impl Into<String>) -> Self {
        Self {
            code,
            result,
            detail: detail.into(),
        }
    }

    fn preflight_failed(detail: impl Into<String>) -> Self {
        Self::new(12, "preflight-failed", detail)
    }
}

/// What a run does next.
enum Next {
    Wake(f64),
    End,
}

/// The script's one line; the fields stand in the contract's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    agent_restart: u8,
    result: &'a str,
    code: i64,
    agent_version: &'a str,
    #[serde(rename = "memoryBeforeKiB")]
    memory_before: u64,
    #[serde(rename = "memoryAfterKiB")]
    memory_after: u64,
    seconds: i64,
    detail: &'a str,
}

impl Runs {
    pub(crate) fn new(speed: f64) -> Self {
        Self {
            speed,
            queue: BTreeSet::new(),
            open: BTreeMap::new(),
            waves: BTreeMap::new(),
            locks: BTreeMap::new(),
            next: 0,
        }
    }

    /// A duration of the world in seconds of its clock.
    fn hastened(&self, seconds: f64) -> f64 {
        seconds / self.speed
    }

    /// Begins the invocations of one command: all at once, or wave by wave.
    pub(crate) fn begin(&mut self, starts: Vec<Start>, ramp: bool) {
        let mut waves = if ramp {
            in_waves(starts)
        } else {
            VecDeque::from([starts])
        };
        let Some(first) = waves.pop_front() else {
            return;
        };
        if let (Some(start), false) = (first.first(), waves.is_empty()) {
            let key = (start.region.clone(), start.command.clone());
            self.waves.insert(key, waves);
        }
        for start in first {
            self.hand_out(start);
        }
    }

    /// Hands the command's next wave out once nothing of it is under way any more. Its time to be delivered
    /// begins then.
    fn next_wave(&mut self, key: &(String, String), now: f64, state: &State) {
        if !self.waves.contains_key(key) || under_way(state, key, &self.waves[key]) {
            return;
        }
        let next = self.waves.get_mut(key).and_then(VecDeque::pop_front);
        for mut start in next.into_iter().flatten() {
            start.sent = now;
            self.hand_out(start);
        }
        self.waves.retain(|_, waves| !waves.is_empty());
    }

    /// Hands an invocation to its instance; it is delivered later.
    fn hand_out(&mut self, start: Start) {
        let id = self.next;
        self.next += 1;
        let at = start.sent + self.hastened(start.delivery);
        let run = Run {
            start,
            phase: Phase::Undelivered,
            wake: 0,
            began: 0.0,
            fault: None,
            memory_before: 0,
        };
        self.put(id, run, at);
    }

    /// Lets everything happen that is due by `to`.
    pub(crate) fn advance(&mut self, state: &mut State, to: f64) {
        while let Some(&(at, id)) = self.queue.first() {
            if at > micros(to) {
                break;
            }
            self.queue.pop_first();
            if self.open.get(&id).is_some_and(|run| run.wake == at) {
                self.step(id, seconds(at), state);
            }
        }
    }

    fn put(&mut self, id: u64, mut run: Run, at: f64) {
        run.wake = micros(at);
        self.queue.insert((run.wake, id));
        self.open.insert(id, run);
    }

    fn step(&mut self, id: u64, now: f64, state: &mut State) {
        let Some(mut run) = self.open.remove(&id) else {
            return;
        };
        let key = (run.start.region.clone(), run.start.command.clone());
        match self.decide(id, &mut run, now, state) {
            Next::Wake(at) => {
                let limit = self.limit(&run).min(self.cut_short_at(&run));
                self.put(id, run, at.min(limit).max(now));
            }
            Next::End => self.release(id, &run, now),
        }
        self.next_wave(&key, now, state);
    }

    /// When SSM ends the run, whatever it is doing.
    fn limit(&self, run: &Run) -> f64 {
        match run.phase {
            Phase::Undelivered => {
                let total = run.start.delivery_timeout + execution_timeout(&run.start.order);
                run.start.sent + self.hastened(total)
            }
            Phase::Draining | Phase::Buffered | Phase::Booting | Phase::Booted => f64::INFINITY,
            _ => run.began + self.hastened(execution_timeout(&run.start.order)),
        }
    }

    /// When the script is cut short by what goes wrong with it.
    fn cut_short_at(&self, run: &Run) -> f64 {
        let scripted = !matches!(
            run.phase,
            Phase::Undelivered | Phase::Buffered | Phase::Booting | Phase::Booted | Phase::Draining
        );
        match run.fault {
            Some(
                SsmAgentFault::KilledBefore | SsmAgentFault::Cancelled | SsmAgentFault::Booted,
            ) if scripted => run.began + self.hastened(CUT_SHORT_AFTER),
            _ => f64::INFINITY,
        }
    }

    /// Frees the host's lock and wakes whoever waits for it.
    fn release(&mut self, id: u64, run: &Run, now: f64) {
        let key = (run.start.region.clone(), run.start.instance.clone());
        if self.locks.get(&key) != Some(&id) {
            return;
        }
        self.locks.remove(&key);
        let waiting: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, other)| other.phase == Phase::WaitingForLock)
            .filter(|(_, other)| other.start.region == key.0 && other.start.instance == key.1)
            .map(|(id, _)| *id)
            .collect();
        for waiter in waiting {
            if let Some(run) = self.open.remove(&waiter) {
                self.put(waiter, run, now);
            }
        }
    }

    fn decide(&mut self, id: u64, run: &mut Run, now: f64, state: &mut State) -> Next {
        if run.phase == Phase::Draining {
            if let Some(host) = host(state, run).filter(|host| is_up(host)) {
                replace_agent(&mut host.agent, now);
            }
            return Next::End;
        }
        if run.phase == Phase::Undelivered {
            return self.deliver(id, run, now, state);
        }
        if micros(now) >= micros(self.limit(run)) {
            return self.killed(id, run, now, state);
        }
        if micros(now) >= micros(self.cut_short_at(run)) {
            return self.cut_short(id, run, now, state);
        }
        if !host(state, run).is_some_and(|host| picks_up(host)) {
            // The machine went away in mid-run: nobody reports until it is back, or SSM's time-out.
            return Next::Wake(now + self.hastened(RETRY));
        }
        match run.phase {
            Phase::Elsewhere => {
                let text = "foreign document: nothing to say\n".to_owned();
                self.end(state, run, now, ("Success", "Success"), 0, text);
                Next::End
            }
            Phase::Buffered => self.begin_script(id, run, now, state),
            Phase::Booting => self.boot(id, run, now, state),
            Phase::Booted => {
                let text = worker_lost("ipc messaging received timeout signal");
                end_unheard(state, run, now, 1, text);
                Next::End
            }
            Phase::WaitingForLock => self.lock(id, run, now, state),
            Phase::WaitingForJob => self.wait_for_job(run, now, state),
            Phase::WaitingForWorker => {
                let detail = format!(
                    "process 812 has had no worker for {WORKER_LIMIT} s: it is not an agent that is known; \
                     the agent was left alone"
                );
                self.finish(run, now, state, Verdict::preflight_failed(detail))
            }
            Phase::Proving(proof) => self.prove(run, proof, now, state),
            Phase::Looking { quiet } => self.look(run, quiet, now, state),
            Phase::Restarting { .. } => self.restarted(id, run, now, state),
            Phase::StartingAgain { result } => self.started_again(run, result, now, state),
            Phase::Hanging | Phase::Undelivered | Phase::Draining => Next::Wake(f64::INFINITY),
        }
    }

    fn deliver(&mut self, id: u64, run: &mut Run, now: f64, state: &mut State) -> Next {
        if micros(now) >= micros(self.limit(run)) {
            let timed_out = ("TimedOut", "DeliveryTimedOut");
            self.end(state, run, now, timed_out, -1, String::new());
            return Next::End;
        }
        // What has not begun within the delivery time-out will not (API_SendCommand), unless the SSM Agent has the message
        // already; and yet it stays open until the execution time-out is over as well.
        let expires = run.start.sent + self.hastened(run.start.delivery_timeout);
        let expired = micros(now) >= micros(expires);
        let takes = |host: &&mut Host| {
            picks_up(host) && host.answer.is_none() && (!expired || host.ssm_agent.runs_old)
        };
        let Some(host) = host(state, run).filter(takes) else {
            if let Some(invocation) = invocation(state, run) {
                invocation.status = "Delayed".to_owned();
                invocation.status_details = "Delayed".to_owned();
            }
            return Next::Wake(now + self.hastened(RETRY));
        };
        let buffered = host.ssm_agent.buffered;
        if let Some(invocation) = invocation(state, run) {
            invocation.status = "InProgress".to_owned();
            invocation.status_details = "InProgress".to_owned();
        }
        if buffered > 0.0 {
            run.phase = Phase::Buffered;
            return Next::Wake(now + self.hastened(buffered));
        }
        self.begin_script(id, run, now, state)
    }

    fn begin_script(&mut self, id: u64, run: &mut Run, now: f64, state: &mut State) -> Next {
        let Some(host) = host(state, run) else {
            return Next::End;
        };
        let (platform, agent) = (host.platform.clone(), host.agent.clone());
        run.began = now;
        if run.start.document != DocumentKind::Foreign {
            run.fault = host
                .ssm_agent
                .fault
                .take_if(|fault| fault.happens_on(&platform));
        }
        let not_run = |fault| match run.start.document {
            DocumentKind::RestartWindowsAgent => not_run_on_windows(fault, &run.start),
            DocumentKind::RestartAgent | DocumentKind::Foreign => not_run(fault, &run.start),
        };
        if let Some((code, text)) = run.fault.and_then(not_run) {
            end_unheard(state, run, now, code, text);
            return Next::End;
        }
        if run.fault == Some(SsmAgentFault::WorkerLost) {
            end_unheard(state, run, now, 1, worker_lost("document worker timed out"));
        }
        if let Some(invocation) = invocation(state, run) {
            invocation.began_at = Some(now);
        }
        if run.start.document == DocumentKind::Foreign {
            run.phase = Phase::Elsewhere;
            return Next::Wake(now + self.hastened(1.0));
        }
        if !run.start.document.runs_on(&platform) {
            // The only step is skipped, which SSM calls a success.
            self.end(state, run, now, ("Success", "Success"), 0, String::new());
            return Next::End;
        }
        match agent.fault {
            Some(AgentFault::NotRoot) => self.finish(
                run,
                now,
                state,
                Verdict::new(11, "not-root", "the script runs as uid 1001, not as root"),
            ),
            Some(AgentFault::ProgramAway) if agent.running => {
                let detail = "there is no /opt/codedeploy-agent/bin/codedeploy-agent, though an agent runs; \
                              the agent was left alone";
                self.finish(run, now, state, Verdict::preflight_failed(detail))
            }
            fault if !agent.installed || fault == Some(AgentFault::ProgramAway) => self.finish(
                run,
                now,
                state,
                Verdict::new(
                    10,
                    "not-installed",
                    "there is no /opt/codedeploy-agent/bin/codedeploy-agent",
                ),
            ),
            _ => self.lock(id, run, now, state),
        }
    }

    /// Something ends the script that is neither its own end nor Systems Manager's patience.
    fn cut_short(&mut self, id: u64, run: &mut Run, now: f64, state: &mut State) -> Next {
        let status = match run.fault.take() {
            Some(SsmAgentFault::Booted) => {
                run.phase = Phase::Booting;
                return Next::Wake(now + self.hastened(BOOT));
            }
            Some(SsmAgentFault::Cancelled) => "Cancelled",
            _ => "TimedOut",
        };
        self.end(state, run, now, (status, status), KILLED, String::new());
        self.without_script(id, run, now)
    }

    /// The machine is up again, with an agent that its boot has started.
    fn boot(&mut self, id: u64, run: &mut Run, now: f64, state: &mut State) -> Next {
        self.release(id, run, now);
        if let Some(host) = host(state, run) {
            host.boots.push(now);
            if host.agent.running {
                host.agent.started_at = now;
                host.agent.memory_kib = host.agent.fresh_memory_kib;
            }
        }
        run.phase = Phase::Booted;
        Next::Wake(now + self.hastened(TOLD_AFTER_BOOT))
    }

    /// SSM kills the script at the execution time-out; a restart that was ordered goes on without it.
    fn killed(&mut self, id: u64, run: &mut Run, now: f64, state: &mut State) -> Next {
        let timed_out = ("TimedOut", "ExecutionTimedOut");
        self.end(state, run, now, timed_out, KILLED, String::new());
        self.without_script(id, run, now)
    }

    fn without_script(&mut self, id: u64, run: &mut Run, now: f64) -> Next {
        match run.phase {
            Phase::Restarting { done, .. } => self.leave_draining(id, run, now, done),
            _ => Next::End,
        }
    }

    fn leave_draining(&mut self, id: u64, run: &mut Run, now: f64, done: f64) -> Next {
        self.release(id, run, now);
        run.phase = Phase::Draining;
        Next::Wake(done)
    }

    /// Whether a restart that an earlier script left behind on this host is still under way.
    fn is_left_behind(&self, run: &Run) -> bool {
        let here = |other: &&Run| {
            other.start.region == run.start.region && other.start.instance == run.start.instance
        };
        let mut others = self.open.values().filter(here);
        others.any(|other| other.phase == Phase::Draining)
    }

    /// Takes the host's lock or waits for it within the script's patience, then decides.
    fn lock(&mut self, id: u64, run: &mut Run, now: f64, state: &mut State) -> Next {
        let key = (run.start.region.clone(), run.start.instance.clone());
        let patience = run.began + self.hastened(run.start.order.busy_wait);
        if self.locks.contains_key(&key) {
            if micros(now) >= micros(patience) {
                let detail = format!(
                    "another restart held the lock for {} s",
                    run.start.order.busy_wait
                );
                return self.finish(run, now, state, Verdict::new(22, "restart-running", detail));
            }
            run.phase = Phase::WaitingForLock;
            return Next::Wake(patience);
        }
        self.locks.insert(key, id);
        self.wait_for_job(run, now, state)
    }

    /// What systemd has begun with the agent's unit ends by itself; it is waited for within the same patience.
    fn wait_for_job(&mut self, run: &mut Run, now: f64, state: &mut State) -> Next {
        let Some(host) = host(state, run) else {
            return Next::End;
        };
        let job = job_under_way(&mut host.agent, now);
        let kind = match self.is_left_behind(run) {
            true => Some(JobKind::Restart),
            false => job,
        };
        let verdict = match kind {
            Some(JobKind::Start) => {
                let detail = "systemd has not come to the start of codedeploy-agent.service yet: see \
                              'systemctl list-jobs'";
                Verdict::new(22, "restart-running", detail)
            }
            Some(JobKind::Stop) => {
                let detail = "somebody has stopped the agent, which still finishes a lifecycle event; nothing starts it \
                              afterwards: repeat when it has ended";
                Verdict::new(34, "draining", detail)
            }
            Some(JobKind::Restart) => {
                let detail =
                    "an earlier restart still waits for the agent to finish a lifecycle event";
                Verdict::new(34, "draining", detail)
            }
            None => return self.choose(run, now, state),
        };
        let patience = run.began + self.hastened(run.start.order.busy_wait);
        if micros(now) >= micros(patience) {
            return self.finish(run, now, state, verdict);
        }
        run.phase = Phase::WaitingForJob;
        Next::Wake((now + self.hastened(LOOK_EVERY)).min(patience))
    }

    /// What this host needs, decided under the lock.
    fn choose(&mut self, run: &mut Run, now: f64, state: &mut State) -> Next {
        let Some((agent, left)) = host(state, run).map(|host| met(run, host)) else {
            return Next::End;
        };
        match (agent.fault, left) {
            (Some(AgentFault::Hangs), _) => {
                run.phase = Phase::Hanging;
                Next::Wake(f64::INFINITY)
            }
            (Some(AgentFault::UnknownAgent), _) if agent.running => {
                run.phase = Phase::WaitingForWorker;
                Next::Wake(now + self.hastened(WORKER_LIMIT))
            }
            (_, Some(result)) => {
                run.memory_before = agent.memory_kib;
                self.watch(run, result, Unproven::Look, now, state)
            }
            (_, None) => self.look(run, 0, now, state),
        }
    }

    /// Begins the proof of an agent's health.
    fn watch(
        &mut self,
        run: &mut Run,
        result: &'static str,
        unproven: Unproven,
        now: f64,
        state: &mut State,
    ) -> Next {
        let proof = Proof {
            result,
            unproven,
            deadline: now + self.hastened(READY_LIMIT),
            waited: false,
            watched: None,
        };
        self.prove(run, proof, now, state)
    }

    /// A ready agent must stand, and have polled; one that is not ready has some time to become it.
    fn prove(&mut self, run: &mut Run, mut proof: Proof, now: f64, state: &mut State) -> Next {
        let Some(agent) = host(state, run).map(|host| &host.agent) else {
            return Next::End;
        };
        let ready = agent.running && agent.fault != Some(AgentFault::AgentUnhealthy);
        let same = |watched: &Watched| (agent.started_at - watched.started_at).abs() < f64::EPSILON;
        if proof
            .watched
            .is_some_and(|watched| !ready || !same(&watched))
        {
            // Somebody else has restarted it, or it has died: whatever comes is looked at anew.
            proof.watched = None;
            proof.deadline = now + self.hastened(READY_LIMIT);
        }
        if ready {
            let watched = *proof.watched.get_or_insert_with(|| {
                let ready_since = if proof.waited { now } else { agent.started_at };
                Watched {
                    started_at: agent.started_at,
                    stable_at: now + self.hastened(STABLE),
                    heard_at: ready_since + self.hastened(POLL),
                }
            });
            if micros(now) < micros(watched.stable_at) {
                run.phase = Phase::Proving(proof);
                return Next::Wake(watched.stable_at);
            }
            if agent.fault == Some(AgentFault::Deaf) {
                // Its first polls are refused at once, and 10 s apart.
                let verdict = Verdict::new(33, "agent-unhealthy", DEAF);
                return self.unproven(run, proof, verdict, now, state);
            }
            if micros(now) < micros(watched.heard_at) {
                run.phase = Phase::Proving(proof);
                return Next::Wake(watched.heard_at);
            }
            return self.finish(run, now, state, Verdict::new(0, proof.result, ""));
        }
        if micros(now) < micros(proof.deadline) {
            proof.waited = true;
            run.phase = Phase::Proving(proof);
            return Next::Wake((now + self.hastened(LOOK_EVERY)).min(proof.deadline));
        }
        let verdict = if agent.running {
            Verdict::new(
                33,
                "agent-unhealthy",
                "the poller is not ready; log: certificate verify failed",
            )
        } else if agent.fault.is_some_and(fails_to_start) {
            Verdict::new(30, "service-manager-failed", START_FAILED)
        } else {
            Verdict::new(32, "agent-down", "no master runs")
        };
        self.unproven(run, proof, verdict, now, state)
    }

    /// A fresh agent that is not healthy is told, not restarted again; a small one is restarted; and where none runs, one
    /// is started, once more if it was.
    fn unproven(
        &mut self,
        run: &mut Run,
        proof: Proof,
        verdict: Verdict,
        now: f64,
        state: &mut State,
    ) -> Next {
        let is_down = matches!(verdict.code, 30 | 32);
        match proof.unproven {
            Unproven::Look | Unproven::Restart
                if proof.result == "already-restarted" && !is_down =>
            {
                self.finish(run, now, state, verdict)
            }
            Unproven::Look => self.look(run, 0, now, state),
            Unproven::Restart => self.order_restart(run, now, state),
            Unproven::StartAgain if is_down => {
                run.phase = Phase::StartingAgain {
                    result: proof.result,
                };
                let fails = verdict.code == 30;
                let seconds = if fails { SERVICE_MANAGER_FAILS } else { START };
                Next::Wake(now + self.hastened(seconds))
            }
            Unproven::StartAgain | Unproven::Tell => self.finish(run, now, state, verdict),
        }
    }

    /// Looks whether the host is quiet; three such looks in a row let the restart begin.
    fn look(&mut self, run: &mut Run, quiet: u32, now: f64, state: &mut State) -> Next {
        let Some((agent, left)) = host(state, run).map(|host| met(run, host)) else {
            return Next::End;
        };
        let (busy, updating) = (within(&agent.busy, now), within(&agent.updates, now));
        if !busy && !updating {
            if quiet + 1 >= QUIET_LOOKS {
                // Whoever runs now may be another than at the beginning.
                if let Some(result) = left {
                    run.memory_before = agent.memory_kib;
                    return self.watch(run, result, Unproven::Restart, now, state);
                }
                return self.order_restart(run, now, state);
            }
            run.phase = Phase::Looking { quiet: quiet + 1 };
            return Next::Wake(now + self.hastened(LOOK_EVERY));
        }
        let patience = run.began + self.hastened(run.start.order.busy_wait);
        if micros(now) < micros(patience) {
            run.phase = Phase::Looking { quiet: 0 };
            return Next::Wake((now + self.hastened(LOOK_EVERY)).min(patience));
        }
        let waited = run.start.order.busy_wait;
        let verdict = if busy {
            Verdict::new(
                20,
                "busy",
                format!("a lifecycle event still runs after {waited} s"),
            )
        } else {
            Verdict::new(
                21,
                "update-running",
                format!("a package manager still runs after {waited} s"),
            )
        };
        self.finish(run, now, state, verdict)
    }

    fn order_restart(&mut self, run: &mut Run, now: f64, state: &mut State) -> Next {
        let Some(agent) = host(state, run).map(|host| host.agent.clone()) else {
            return Next::End;
        };
        if agent.running && agent.fault == Some(AgentFault::PreflightFailed) {
            let detail = "the agent runs, but '/opt/codedeploy-agent/bin/codedeploy-agent status' ends with 1; the \
                          agent was left alone";
            return self.finish(run, now, state, Verdict::preflight_failed(detail));
        }
        run.memory_before = if agent.running { agent.memory_kib } else { 0 };
        let limit = now + self.hastened(RESTART_LIMIT);
        let done = match agent.fault {
            Some(fault) if fails_to_start(fault) => now + self.hastened(SERVICE_MANAGER_FAILS),
            Some(AgentFault::Draining) if agent.running => {
                drained(&agent.busy, now).unwrap_or(limit + self.hastened(DRAINING_BEYOND))
            }
            _ if agent.running => now + self.hastened(agent.restart_seconds),
            _ => now + self.hastened(START),
        };
        run.phase = Phase::Restarting {
            done,
            began: now,
            was_running: agent.running,
        };
        Next::Wake(done.min(limit))
    }

    /// The service manager is done, or the script's patience with it is.
    fn restarted(&mut self, id: u64, run: &mut Run, now: f64, state: &mut State) -> Next {
        let Phase::Restarting {
            done,
            began,
            was_running,
        } = run.phase
        else {
            return Next::End;
        };
        if micros(now) < micros(done) {
            if micros(now) < micros(began + self.hastened(RESTART_LIMIT)) {
                return Next::Wake(done.min(began + self.hastened(RESTART_LIMIT)));
            }
            let detail =
                "the agent finishes a lifecycle event first; the queued restart follows by itself";
            self.finish(run, now, state, Verdict::new(34, "draining", detail));
            return self.leave_draining(id, run, now, done);
        }
        let Some(host) = host(state, run) else {
            return Next::End;
        };
        if was_running && host.agent.fault == Some(AgentFault::OldAgentSurvived) {
            let detail = "master 812 still runs: the restart did nothing to it";
            return self.finish(
                run,
                now,
                state,
                Verdict::new(31, "old-agent-survived", detail),
            );
        }
        start_agent(&mut host.agent, now);
        let result = if was_running { "restarted" } else { "started" };
        self.watch(run, result, Unproven::StartAgain, now, state)
    }

    /// The script's own second start has taken its time.
    fn started_again(
        &mut self,
        run: &mut Run,
        result: &'static str,
        now: f64,
        state: &mut State,
    ) -> Next {
        let Some(host) = host(state, run) else {
            return Next::End;
        };
        if !host.agent.running {
            start_agent(&mut host.agent, now);
        }
        self.watch(run, result, Unproven::Tell, now, state)
    }

    /// Ends the invocation as Systems Manager sees it: the status now, the output when it arrives.
    fn end(
        &self,
        state: &mut State,
        run: &Run,
        now: f64,
        (status, details): (&str, &str),
        code: i64,
        output: String,
    ) {
        if run.fault == Some(SsmAgentFault::WorkerLost) {
            // Nobody hears it any more.
            return;
        }
        let agent = host(state, run).map(|host| host.ssm_agent.clone());
        let agent = agent.unwrap_or_default();
        let Some(invocation) = invocation(state, run) else {
            return;
        };
        invocation.status = status.to_owned();
        invocation.status_details = details.to_owned();
        invocation.ended_at = Some(now);
        invocation.response_code = code;
        invocation.output_at = Some(now + self.hastened(agent.output_after));
        if agent.output_lost.is_none() {
            invocation.output = output;
        }
    }

    /// Prints the script's line and ends the invocation; the run ends with it.
    fn finish(&self, run: &Run, now: f64, state: &mut State, verdict: Verdict) -> Next {
        let Some(host) = host(state, run) else {
            return Next::End;
        };
        let end_of_line = if host.platform == "Windows" {
            "\r\n"
        } else {
            "\n"
        };
        let memory_now = if host.agent.installed && host.agent.running {
            host.agent.memory_kib
        } else {
            0
        };
        let version: String = if host.agent.installed {
            host.agent.version.chars().take(VERSION_LIMIT).collect()
        } else {
            String::new()
        };
        let touched = matches!(verdict.code, 0 | 30..=34);
        let line = Line {
            agent_restart: 1,
            result: verdict.result,
            code: verdict.code,
            agent_version: &ascii(&version),
            memory_before: if touched {
                run.memory_before
            } else {
                memory_now
            },
            memory_after: memory_now,
            seconds: whole((now - run.began) * self.speed),
            detail: &ascii(&verdict.detail),
        };
        let mut stdout = serde_json::to_string(&line).unwrap_or_default();
        stdout.push_str(end_of_line);
        let (status, code, error) = match run.fault {
            Some(SsmAgentFault::GroupEnded) => {
                let error = "failed to run commands: signal: terminated".to_owned();
                ("Failed", -1, error)
            }
            Some(SsmAgentFault::KilledAfter) => ("TimedOut", KILLED, String::new()),
            _ if verdict.code == 0 => ("Success", 0, String::new()),
            _ => ("Failed", verdict.code, exit_status(verdict.code)),
        };
        let noise = NOISE.chars().cycle().take(host.ssm_agent.noise);
        let error: String = error.chars().chain(noise).collect();
        let output = joined(stdout.as_bytes(), error.as_bytes());
        self.end(state, run, now, (status, status), code, output);
        Next::End
    }
}

/// Waves of 1, 2, 4, … invocations.
fn in_waves(starts: Vec<Start>) -> VecDeque<Vec<Start>> {
    let mut starts = starts.into_iter().peekable();
    let mut waves = VecDeque::new();
    let mut size = 1;
    while starts.peek().is_some() {
        waves.push_back(starts.by_ref().take(size).collect());
        size *= 2;
    }
    waves
}

/// Whether anything of a command that was handed out has no end yet. What a host answers verbatim counts.
fn under_way(state: &State, key: &(String, String), waves: &VecDeque<Vec<Start>>) -> bool {
    let (region, command) = key;
    let waiting = |id: &str| waves.iter().flatten().any(|start| start.instance == id);
    let Some(region) = state.regions.get(region) else {
        return false;
    };
    let answered = |id: &str| {
        let host = region.hosts.iter().find(|host| host.id == id);
        host.and_then(|host| host.answer.as_ref())
            .is_some_and(Answer::is_final)
    };
    let command = region.commands.iter().find(|known| known.id == *command);
    command
        .into_iter()
        .flat_map(|command| &command.invocations)
        .filter(|invocation| !waiting(&invocation.instance_id))
        .any(|invocation| invocation.ended_at.is_none() && !answered(&invocation.instance_id))
}

/// An exit code other than 0 is told in the error part of a step's output.
fn exit_status(code: i64) -> String {
    format!("failed to run commands: exit status {code}")
}

/// What the SSM Agent says of a script that it could not run, with the response code.
fn not_run(fault: SsmAgentFault, start: &Start) -> Option<(i64, String)> {
    let Start {
        instance, command, ..
    } = start;
    let folder = format!("/var/lib/amazon/ssm/{instance}");
    let shell = |what: &str, code: i64| {
        let error = format!(
            "sh: 1: {folder}/document/orchestration/{command}/linux/_script.sh: {what}\n{}",
            exit_status(code)
        );
        (code, joined(b"", error.as_bytes()))
    };
    match fault {
        SsmAgentFault::NoExec => Some(shell("Permission denied", 126)),
        SsmAgentFault::ScriptGone => Some(shell("not found", 127)),
        // The document is handed to the worker through a file.
        SsmAgentFault::NoSpace => {
            let file = format!("{folder}/channels/{command}/tmp/master-20260217091405-000");
            let why = format!("write {file}: no space left on device");
            Some((1, worker_lost(&why)))
        }
        SsmAgentFault::NoShell => {
            let error = "failed to run commands: fork/exec /usr/bin/sh: cannot allocate memory";
            Some((1, joined(b"", error.as_bytes())))
        }
        SsmAgentFault::NoPlugin => {
            let error = "Plugin with name aws:runShellScript not found. Step name: linux";
            Some((1, error.to_owned()))
        }
        SsmAgentFault::WorkerLost
        | SsmAgentFault::GroupEnded
        | SsmAgentFault::KilledBefore
        | SsmAgentFault::KilledAfter
        | SsmAgentFault::Cancelled
        | SsmAgentFault::Booted => None,
    }
}

/// The same on Windows, where PowerShell ends its lines where the console did (79 characters), in mid-path too.
fn not_run_on_windows(fault: SsmAgentFault, start: &Start) -> Option<(i64, String)> {
    let Start {
        instance, command, ..
    } = start;
    let file = format!(
        r"C:\ProgramData\Amazon\SSM\InstanceData\{instance}\document\orchestration\{command}\windows\_script.ps1"
    );
    let powershell = |said: &str, category: &str, id: &str| {
        let said: Vec<char> = said.chars().collect();
        let said: Vec<String> = said.chunks(79).map(String::from_iter).collect();
        let error = format!(
            "{}\r\n    + CategoryInfo          : {category}: (:) [], ParentContainsErrorRecordException\r\n    + \
             FullyQualifiedErrorId : {id}\r\n \r\n{}",
            said.join("\r\n"),
            exit_status(1)
        );
        joined(b"", error.as_bytes())
    };
    let text = match fault {
        SsmAgentFault::NoExec => powershell(
            &format!(
                "File {file} cannot be loaded because running scripts is disabled on this system. For more information, see \
                 about_Execution_Policies at https:/go.microsoft.com/fwlink/?LinkID=135170."
            ),
            "SecurityError",
            "UnauthorizedAccess",
        ),
        SsmAgentFault::ScriptGone => powershell(
            &format!(
                "At {file}:1 char:1 This script contains malicious content and has been blocked by your antivirus software."
            ),
            "ParserError",
            "ScriptContainedMaliciousContent",
        ),
        SsmAgentFault::NoSpace => {
            let why = format!("write {file}: There is not enough space on the disk.");
            let error = format!("failed to create script file. couldn't write into file - {why}");
            joined(b"", error.as_bytes())
        }
        SsmAgentFault::NoShell => {
            let error = r"failed to run commands: fork/exec C:\Windows\System32\WindowsPowerShell\v1.0\powershell.exe: This program is blocked by group policy. For more information, contact your system administrator.";
            joined(b"", error.as_bytes())
        }
        SsmAgentFault::NoPlugin => {
            "Plugin with name aws:runPowerShellScript not found. Step name: windows".to_owned()
        }
        SsmAgentFault::WorkerLost
        | SsmAgentFault::GroupEnded
        | SsmAgentFault::KilledBefore
        | SsmAgentFault::KilledAfter
        | SsmAgentFault::Cancelled
        | SsmAgentFault::Booted => return None,
    };
    Some((1, text))
}

/// What the SSM Agent says when it has lost its worker.
fn worker_lost(why: &str) -> String {
    format!(
        "document process failed unexpectedly: {why} , check [ssm-document-worker]/[ssm-session-worker] log for \
         crash reason"
    )
}

/// A step's output as SSM shows it, of a text that may hold both parts already.
pub(crate) fn truncated(text: &str) -> String {
    let (stdout, stderr) = text.split_once(ERROR_SEPARATOR).unwrap_or((text, ""));
    joined(stdout.as_bytes(), stderr.as_bytes())
}

/// Standard output and error in 2,500 bytes, as the SSM agent joins and cuts them: by the byte, so that a
/// character may break. When both are long, each gets half.
fn joined(stdout: &[u8], stderr: &[u8]) -> String {
    let separator = if stderr.is_empty() {
        ""
    } else {
        ERROR_SEPARATOR
    };
    let space = OUTPUT_LIMIT - separator.len();
    let (whole_out, whole_error) = (stdout.len(), stderr.len());
    let (out, error) = if whole_out + whole_error < space {
        (whole_out, whole_error)
    } else if whole_out > space / 2 && whole_error > space / 2 {
        let half = (space - OUTPUT_CUT.len() - ERROR_CUT.len()) / 2;
        (half, half)
    } else if whole_out < space / 2 {
        (whole_out, space - ERROR_CUT.len() - whole_out)
    } else {
        (space - OUTPUT_CUT.len() - whole_error, whole_error)
    };
    let cut = |kept: usize, whole: usize, mark: &'static str| if kept < whole { mark } else { "" };
    [
        &stdout[..out.min(whole_out)],
        cut(out, whole_out, OUTPUT_CUT).as_bytes(),
        separator.as_bytes(),
        &stderr[..error.min(whole_error)],
        cut(error, whole_error, ERROR_CUT).as_bytes(),
    ]
    .into_iter()
    .map(String::from_utf8_lossy)
    .collect()
}

/// The agent as the script meets it, and why it is left alone, if it is.
fn met(run: &Run, host: &Host) -> (Agent, Option<&'static str>) {
    (host.agent.clone(), left_alone(run, host))
}

/// Why a host's agent needs no restart, if it needs none: it is younger than the order, or small. Its age counts,
/// and not the hour by the host's clock.
fn left_alone(run: &Run, host: &Host) -> Option<&'static str> {
    let (order, agent) = (run.start.order, &host.agent);
    if !agent.running {
        None
    } else if run.began - agent.started_at <= order.sent_at - order.triggered_at {
        Some("already-restarted")
    } else if agent.memory_kib < order.min_memory_mib.saturating_mul(1024) {
        Some("below-threshold")
    } else {
        None
    }
}

/// What systemd has queued for the agent's unit; what it has come to meanwhile has happened.
fn job_under_way(agent: &mut Agent, now: f64) -> Option<JobKind> {
    let job = agent.job?;
    if now < job.ends {
        return Some(job.kind);
    }
    agent.job = None;
    match job.kind {
        JobKind::Start if agent.running => {}
        JobKind::Start | JobKind::Restart => start_agent(agent, job.ends),
        JobKind::Stop => stop_agent(agent),
    }
    None
}

/// Whether the service manager fails at a start of it.
fn fails_to_start(fault: AgentFault) -> bool {
    matches!(
        fault,
        AgentFault::ServiceManagerFailed | AgentFault::PreflightFailed
    )
}

/// What becomes of an agent, or of none, that the service manager was asked to start.
fn start_agent(agent: &mut Agent, now: f64) {
    match agent.fault {
        Some(AgentFault::AgentDown | AgentFault::UnknownAgent) => stop_agent(agent),
        Some(fault) if fails_to_start(fault) => stop_agent(agent),
        _ => replace_agent(agent, now),
    }
}

fn replace_agent(agent: &mut Agent, now: f64) {
    agent.running = true;
    agent.started_at = now;
    agent.memory_kib = agent.fresh_memory_kib;
    agent.restarts.push(now);
}

fn stop_agent(agent: &mut Agent) {
    agent.running = false;
    agent.memory_kib = 0;
}

/// Whether the SSM agent there takes commands and reports.
fn picks_up(host: &Host) -> bool {
    !host.offline && is_up(host)
}

/// Whether the machine runs.
fn is_up(host: &Host) -> bool {
    matches!(host.state.as_str(), "running" | "pending")
}

fn within(periods: &[[f64; 2]], now: f64) -> bool {
    periods.iter().any(|[from, to]| *from <= now && now < *to)
}

/// When the busy period that holds the old agent ends: the first that is not over yet.
fn drained(busy: &[[f64; 2]], now: f64) -> Option<f64> {
    busy.iter()
        .map(|[_, to]| *to)
        .filter(|to| *to > now)
        .min_by(f64::total_cmp)
}

fn execution_timeout(order: &Order) -> f64 {
    let asked = order.execution_timeout;
    if (EXECUTION_TIMEOUT.0..=EXECUTION_TIMEOUT.1).contains(&asked) {
        asked
    } else {
        EXECUTION_TIMEOUT_OTHERWISE
    }
}

fn host<'a>(state: &'a mut State, run: &Run) -> Option<&'a mut Host> {
    let region = state.regions.get_mut(&run.start.region)?;
    region
        .hosts
        .iter_mut()
        .find(|host| host.id == run.start.instance)
}

fn invocation<'a>(state: &'a mut State, run: &Run) -> Option<&'a mut Invocation> {
    let region = state.regions.get_mut(&run.start.region)?;
    let command = region
        .commands
        .iter_mut()
        .find(|command| command.id == run.start.command)?;
    command
        .invocations
        .iter_mut()
        .find(|invocation| invocation.instance_id == run.start.instance)
}

/// The SSM Agent tells of an end in its own words, without the script's.
fn end_unheard(state: &mut State, run: &Run, now: f64, code: i64, text: String) {
    let Some(invocation) = invocation(state, run) else {
        return;
    };
    invocation.status = "Failed".to_owned();
    invocation.status_details = "Failed".to_owned();
    invocation.ended_at = Some(now);
    invocation.response_code = code;
    invocation.output = text;
    invocation.output_at = Some(now);
    invocation.unheard = true;
}

fn ascii(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_ascii() { character } else { '?' })
        .collect()
}

/// Whole microseconds, so that times order exactly.
fn micros(time: f64) -> i64 {
    whole(time * 1e6)
}

fn whole(number: f64) -> i64 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the cast saturates, and a run lasts hours at most"
    )]
    let whole = number.round() as i64;
    whole
}

fn seconds(micros: i64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds of a few days are exact"
    )]
    let exact = micros as f64;
    exact / 1e6
}

//! The handle on a world: its clock, its data, and what has been said to it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region as AwsRegion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_async::rt::sleep::{SharedAsyncSleep, TokioSleep};
use aws_smithy_async::time::SharedTimeSource;
use serde::Serialize;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::connector::InProcess;
use crate::host::Runs;
use crate::service::{self, Context, Output};
use crate::state::{Fault, FaultKind, Message, State};
use crate::wire::{self, Failure, Reply, Request};

/// Numbers the transcripts of one process, so that each world writes a file of its own.
static TRANSCRIPTS: AtomicU64 = AtomicU64::new(0);

/// The body of a reply that cannot be read: a proxy's page, say.
const UNREADABLE: &str = "<html>Bad gateway</html>";

/// A handle on a simulated AWS; clones share it.
#[derive(Clone)]
pub struct World {
    inner: Arc<Mutex<Inner>>,
    clock: Clock,
    speed: f64,
}

/// A call as the world saw it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// When it arrived, in seconds relative to the world's start.
    pub at: f64,
    /// The region of its credential scope.
    pub region: String,
    /// The service of its credential scope.
    pub service: String,
    /// The operation.
    pub operation: String,
    /// Its parameters; those of a query call are folded into lists and maps, and are all text.
    pub params: Value,
    /// The HTTP status of the answer.
    pub status: u16,
    /// The error code of the answer; `ReplyLost` when the connection broke before it arrived,
    /// `ConnectionRefused`, `ConnectionReset` or `NoReply` when there was none, `Unreadable` when nobody can read it.
    pub error: Option<String>,
    /// The fault that it met, if any.
    #[serde(skip)]
    pub fault: Option<Fault>,
    /// Whose credentials signed it: the access key id.
    #[serde(skip)]
    pub access_key: String,
    /// Which attempt of the SDK at the same call it was, from 1; 0 when the client does not say.
    #[serde(skip)]
    pub attempt: u32,
}

struct Inner {
    state: State,
    runs: Runs,
    calls: Vec<Call>,
    transcript: Option<PathBuf>,
}

/// A call that gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// Nobody listened.
    Refused,
    /// The connection broke before the reply arrived.
    ReplyLost,
    /// The connection stays open, and nothing comes.
    Never,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Refused => "connection refused",
            Self::ReplyLost => "the connection broke before the reply arrived",
            Self::Never => "no reply",
        })
    }
}

impl std::error::Error for Unanswered {}

impl World {
    /// A world whose clock begins at `start` (epoch seconds) and runs as tokio's does.
    #[must_use]
    pub fn new(state: State, start: f64) -> Self {
        Self::at_speed(state, start, 1.0)
    }

    /// A world in which every duration is `speed` times shorter while its clock runs as real time does:
    /// the function under test has a real clock, and freshness compares ages in seconds.
    /// Times after the start in `state` are durations from it, and become shorter as well.
    #[must_use]
    pub fn at_speed(state: State, start: f64, speed: f64) -> Self {
        let world = Self::unrecorded(state, start, speed);
        // The simulator's own tests send on purpose what no client would.
        if let Some(folder) = transcript_folder().filter(|_| !cfg!(test)) {
            world.record_to(&folder);
        }
        world
    }

    /// The same without a transcript, whatever the environment asks for: for worlds by the thousand.
    #[must_use]
    pub fn unrecorded(mut state: State, start: f64, speed: f64) -> Self {
        hasten(&mut state, speed);
        Self {
            inner: Arc::new(Mutex::new(Inner {
                state,
                runs: Runs::new(speed),
                calls: Vec::new(),
                transcript: None,
            })),
            clock: Clock::starting_at(start),
            speed,
        }
    }

    /// The world's time, in epoch seconds.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.clock.now()
    }

    /// Reads or changes the plain data, after everything due by now has happened. A change counts for
    /// everything that is decided later, in running commands too.
    pub fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.caught_up().state)
    }

    /// A configuration whose clients talk to this world: credentials, sleep, time and HTTP are its own.
    #[must_use]
    pub fn sdk_config(&self, region: &str) -> SdkConfig {
        self.sdk_config_of("AKIAIOSFODNN7EXAMPLE", region)
    }

    /// The same with an access key of its own, by which its calls can be told from those of others.
    #[must_use]
    pub fn sdk_config_of(&self, access_key: &str, region: &str) -> SdkConfig {
        let credentials = Credentials::new(access_key, "simulated", None, None, "sim");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(AwsRegion::new(region.to_owned()))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .sleep_impl(SharedAsyncSleep::new(TokioSleep::new()))
            .time_source(SharedTimeSource::new(self.clock))
            .http_client(InProcess::new(self.clone()))
            .build()
    }

    /// Every call so far, in the order of arrival.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Reads the data and the calls so far where they are, after everything due by now has happened: there may
    /// be much of both.
    pub fn read<R>(&self, read: impl FnOnce(&State, &[Call]) -> R) -> R {
        let inner = self.caught_up();
        read(&inner.state, &inner.calls)
    }

    /// Every published message so far, in the order of publication.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        let inner = self.lock();
        let mut messages: Vec<Message> = inner
            .state
            .topics
            .iter()
            .flat_map(|topic| topic.messages.iter().cloned())
            .collect();
        messages.sort_by(|one, other| one.at.total_cmp(&other.at));
        messages
    }

    /// What `GET /_sim/state` answers: `{now, start, hosts, commands, messages, calls}`, where `now` and
    /// `start` are epoch seconds and every other time is relative to `start`.
    #[must_use]
    pub fn snapshot(&self) -> Value {
        let (hosts, commands) = {
            let inner = self.caught_up();
            let mut hosts = Vec::new();
            let mut commands = Vec::new();
            for (name, region) in &inner.state.regions {
                hosts.extend(region.hosts.iter().map(|host| in_region(name, host)));
                commands.extend(
                    region
                        .commands
                        .iter()
                        .map(|command| in_region(name, command)),
                );
            }
            (hosts, commands)
        };
        json!({
            "now": self.now(),
            "start": self.clock.start,
            "hosts": hosts,
            "commands": commands,
            "messages": self.messages(),
            "calls": self.calls(),
        })
    }

    /// Appends every later exchange to a file of its own in `folder`, as lines of JSON.
    pub fn record_to(&self, folder: &Path) {
        let number = TRANSCRIPTS.fetch_add(1, Ordering::Relaxed);
        let name = format!("world-{}-{number:04}.jsonl", std::process::id());
        if let Err(error) = std::fs::create_dir_all(folder) {
            panic!(
                "the folder {} cannot be made: {error}; name another",
                folder.display()
            );
        }
        self.lock().transcript = Some(folder.join(name));
    }

    /// Seconds that a call takes by the real clock.
    pub(crate) fn latency(&self) -> f64 {
        self.lock().state.latency / self.speed
    }

    /// Answers one request, in the time that the call takes.
    pub(crate) async fn converse(&self, request: &Request) -> Result<Reply, Unanswered> {
        tokio::time::sleep(Duration::from_secs_f64(self.latency().max(0.0))).await;
        let answer = self.exchange(request);
        match &answer {
            Err(Unanswered::Never) => std::future::pending().await,
            Ok(reply) if reply.delay > 0.0 => {
                tokio::time::sleep(Duration::from_secs_f64(reply.delay / self.speed)).await;
            }
            _ => {}
        }
        answer
    }

    /// Answers one request; its effects have happened when this returns.
    pub(crate) fn exchange(&self, request: &Request) -> Result<Reply, Unanswered> {
        let mut inner = self.caught_up();
        let at = self.clock.elapsed();
        let request_id = wire::uuid(&format!("request {}", inner.calls.len()));
        let address = match wire::address(request) {
            Ok(address) => address,
            Err(failure) => return Ok(wire::reply_to_nobody(&failure, &request_id)),
        };
        let (operation, asked) = wire::asked(address.service, request);
        let next_page = asked
            .as_ref()
            .is_ok_and(|asked| service::is_next_page(&asked.params));
        let fault = service::next_fault(
            &mut inner.state.faults,
            &operation,
            &address.region,
            next_page,
        );
        let unanswered = match fault.as_ref().map(Fault::kind) {
            Some(FaultKind::Refused) => Some((Unanswered::Refused, "ConnectionRefused")),
            Some(FaultKind::Reset) => Some((Unanswered::ReplyLost, "ConnectionReset")),
            Some(FaultKind::LostReply) => Some((Unanswered::ReplyLost, "ReplyLost")),
            Some(FaultKind::NoReply | FaultKind::NoReplyAfter) => {
                Some((Unanswered::Never, "NoReply"))
            }
            _ => None,
        };
        // A call without an effect has no answer either.
        let reply = match (&fault, &asked) {
            (Some(fault), _) if has_no_effect(fault.kind()) => None,
            (Some(fault), _) if is_error(fault.kind()) => {
                Some(Err(service::injected(fault, address.service)))
            }
            (_, Ok(asked)) => Some(inner.answer(&self.clock, at, &address, asked)),
            (_, Err(failure)) => Some(Err(failure.clone())),
        };
        let unreadable = fault.as_ref().map(Fault::kind) == Some(FaultKind::Unreadable);
        let reply = reply.map(|outcome| {
            let error = outcome.as_ref().err().map(|failure| failure.code.clone());
            let mut reply = wire::reply(address.service, &operation, outcome, &request_id);
            if unreadable {
                reply.body = UNREADABLE.to_owned();
            }
            reply.delay = fault.as_ref().map_or(0.0, |fault| fault.seconds);
            (reply, error)
        });
        let service = address.service.name().to_owned();
        if let Some((reply, _)) = reply.as_ref().filter(|_| !unreadable) {
            inner.record(&service, &address.region, &operation, request, reply);
        }
        inner.calls.push(Call {
            at,
            region: address.region,
            service,
            operation,
            params: asked
                .map(|asked| Value::Object(asked.params))
                .unwrap_or(Value::Null),
            status: reply.as_ref().map_or(0, |(reply, _)| reply.status),
            error: match unanswered {
                Some((_, name)) => Some(name.to_owned()),
                None if unreadable => Some("Unreadable".to_owned()),
                None => reply.as_ref().and_then(|(_, error)| error.clone()),
            },
            fault,
            access_key: address.access_key,
            attempt: attempt(request),
        });
        match (unanswered, reply) {
            (Some((unanswered, _)), _) => Err(unanswered),
            (None, Some((reply, _))) => Ok(reply),
            (None, None) => Err(Unanswered::Never),
        }
    }

    fn caught_up(&self) -> MutexGuard<'_, Inner> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.runs.advance(&mut inner.state, self.clock.elapsed());
        guard
    }

    /// A panic inside `with` is a failing test; the data stays readable for what it still wants to say.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for World {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("World")
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn answer(
        &mut self,
        clock: &Clock,
        at: f64,
        address: &wire::Address,
        asked: &wire::Asked,
    ) -> Result<Output, Failure> {
        let mut context = Context {
            state: &mut self.state,
            runs: &mut self.runs,
            region: &address.region,
            at,
            start: clock.start,
        };
        service::answer(&mut context, address.service, asked)
    }

    fn record(
        &self,
        service: &str,
        region: &str,
        operation: &str,
        request: &Request,
        reply: &Reply,
    ) {
        let Some(path) = &self.transcript else { return };
        let line = json!({
            "service": service,
            "region": region,
            "operation": operation,
            "request": {
                "method": request.method, "path": request.path,
                "headers": told_headers(&request.headers), "body": request.body,
            },
            "response": { "status": reply.status, "headers": reply.headers, "body": reply.body },
        });
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        if let Err(error) = written {
            panic!(
                "the transcript {} cannot be written: {error}; name a folder that can",
                path.display()
            );
        }
    }
}

fn has_no_effect(kind: FaultKind) -> bool {
    matches!(
        kind,
        FaultKind::Refused | FaultKind::Reset | FaultKind::NoReply
    )
}

fn is_error(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::Error | FaultKind::ExpiredToken)
}

/// The SDK says `attempt=2; max=8`.
fn attempt(request: &Request) -> u32 {
    let header = request.headers.get("amz-sdk-request").map(String::as_str);
    let number = header.and_then(|text| text.split("attempt=").nth(1)?.split(';').next());
    number
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Signatures change with every run and say nothing.
fn told_headers(headers: &BTreeMap<String, String>) -> BTreeMap<&String, &String> {
    headers
        .iter()
        .filter(|(name, _)| *name != "authorization")
        .collect()
}

fn in_region(region: &str, item: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(item).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        fields.insert("region".to_owned(), region.into());
    }
    value
}

#[expect(
    clippy::disallowed_methods,
    reason = "the transcript is asked for from outside the tests"
)]
fn transcript_folder() -> Option<PathBuf> {
    std::env::var_os("SIM_TRANSCRIPT_DIR")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
}

/// Times after the start are durations from it.
fn hasten(state: &mut State, speed: f64) {
    let sooner = |time: &mut f64| {
        if *time > 0.0 {
            *time /= speed;
        }
    };
    for region in state.regions.values_mut() {
        let actions = region
            .pipelines
            .iter_mut()
            .flat_map(|pipeline| &mut pipeline.executions);
        for action in actions.flat_map(|execution| &mut execution.actions) {
            sooner(&mut action.updated_at);
            action.visible_at.iter_mut().for_each(sooner);
        }
        for deployment in &mut region.deployments {
            sooner(&mut deployment.created_at);
            deployment.completed_at.iter_mut().for_each(sooner);
        }
        for host in &mut region.hosts {
            let periods = host.agent.busy.iter_mut().chain(&mut host.agent.updates);
            periods.flatten().for_each(sooner);
        }
    }
    state.invocation_lag /= speed;
}

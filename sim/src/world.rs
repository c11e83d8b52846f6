//! The handle on a world: its clock, its data, and what has been said to it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_config::{BehaviorVersion, Region as AwsRegion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_async::rt::sleep::{SharedAsyncSleep, TokioSleep};
use aws_smithy_async::time::SharedTimeSource;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::clock::Clock;
use crate::connector::InProcess;
use crate::host::Runs;
use crate::service::{self, Context};
use crate::state::{Message, State};
use crate::wire::{self, Failure, Reply, Request};

/// Numbers the transcripts of one process, so that each world writes a file of its own.
static TRANSCRIPTS: AtomicU64 = AtomicU64::new(0);

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
    /// The error code of the answer; `ReplyLost` when the answer never arrived.
    pub error: Option<String>,
}

struct Inner {
    state: State,
    runs: Runs,
    calls: Vec<Call>,
    transcript: Option<PathBuf>,
}

/// The reply that broke off on its way.
#[derive(Debug)]
pub(crate) struct ReplyLost;

impl fmt::Display for ReplyLost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the connection broke before the reply arrived")
    }
}

impl std::error::Error for ReplyLost {}

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
    pub fn at_speed(mut state: State, start: f64, speed: f64) -> Self {
        hasten(&mut state, speed);
        let world = Self {
            inner: Arc::new(Mutex::new(Inner {
                state,
                runs: Runs::new(speed),
                calls: Vec::new(),
                transcript: None,
            })),
            clock: Clock::starting_at(start),
            speed,
        };
        // The simulator's own tests send on purpose what no client would.
        if let Some(folder) = transcript_folder().filter(|_| !cfg!(test)) {
            world.record_to(&folder);
        }
        world
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
        let credentials = Credentials::new("AKIAIOSFODNN7EXAMPLE", "simulated", None, None, "sim");
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

    /// Answers one request; its effects have happened when this returns.
    pub(crate) fn exchange(&self, request: &Request) -> Result<Reply, ReplyLost> {
        let mut inner = self.caught_up();
        let at = self.clock.elapsed();
        let request_id = wire::uuid(&format!("request {}", inner.calls.len()));
        let address = match wire::address(request) {
            Ok(address) => address,
            Err(failure) => return Ok(wire::reply_to_nobody(&failure, &request_id)),
        };
        let (operation, asked) = wire::asked(address.service, request);
        let params = asked
            .as_ref()
            .map(|asked| Value::Object(asked.params.clone()))
            .unwrap_or(Value::Null);
        let fault = service::next_fault(&mut inner.state.faults, &operation, &address.region);
        let lost = fault.as_ref().is_some_and(|fault| fault.lost_reply);
        let outcome = match fault {
            Some(fault) if !fault.lost_reply => Err(service::injected(&fault, address.service)),
            _ => asked.and_then(|asked| inner.answer(&self.clock, at, &address, &asked)),
        };
        let reply = wire::reply(address.service, &operation, &outcome, &request_id);
        let error = if lost {
            Some("ReplyLost".to_owned())
        } else {
            outcome.err().map(|failure| failure.code)
        };
        let service = address.service.name().to_owned();
        inner.record(&service, &address.region, &operation, request, &reply);
        inner.calls.push(Call {
            at,
            region: address.region,
            service,
            operation,
            params,
            status: reply.status,
            error,
        });
        if lost { Err(ReplyLost) } else { Ok(reply) }
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
    ) -> Result<Map<String, Value>, Failure> {
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

//! The Lambda function's wiring: settings, clients, and the time of each event. The story is in the library.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use aws_config::BehaviorVersion;
use codedeploy_agent_restarter::Restarter;
use codedeploy_agent_restarter::aws::Clients;
use codedeploy_agent_restarter::clock::Clock;
use codedeploy_agent_restarter::settings::{SettingProblem, Settings};
use codedeploy_agent_restarter::trigger::Home;
use lambda_runtime::{Context, Diagnostic, LambdaEvent, service_fn, tracing};
use serde_json::Value;

/// Lambda's longest timeout, and the template's: what an invocation has when its deadline makes no sense.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(900);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tracing::init_default_subscriber();
    let settings = match read_settings() {
        Ok(settings) => settings,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return ExitCode::FAILURE;
        }
    };
    let clients = Clients::new(&aws_config::load_defaults(BehaviorVersion::latest()).await);
    let print = |line: &str| println!("{line}");
    let restarter = &Restarter {
        settings,
        clients,
        print,
    };
    let run = lambda_runtime::run(service_fn(|event| answer(restarter, event)));
    match run.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the runtime ended: {error}");
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the environment"
)]
fn read_settings() -> Result<Settings, Vec<SettingProblem>> {
    Settings::read(|name| Some(std::env::var_os(name)?.to_string_lossy().into()))
}

async fn answer(restarter: &Restarter, event: LambdaEvent<Value>) -> Result<Value, Diagnostic> {
    let clock = clock_of(&event.context);
    let home = home_of(&event.context, restarter);
    let answer = restarter.handle(&event.payload, &clock, &home).await;
    answer.map_err(|error| Diagnostic {
        error_type: error.kind().to_owned(),
        error_message: error.to_string(),
    })
}

/// The event's time: now, until Lambda's deadline. Local emulators send a deadline in the past.
fn clock_of(context: &Context) -> Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    let now = SystemTime::now();
    let remaining = context
        .deadline()
        .duration_since(now)
        .unwrap_or(LONGEST_TIMEOUT);
    let since_1970 = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Clock::new(since_1970, remaining)
}

/// Where the function lives: its ARN. Local emulators send none; there, the topic's account is ours.
fn home_of(context: &Context, restarter: &Restarter) -> Home {
    let topic = &restarter.settings.topic;
    Home::of_function(&context.invoked_function_arn).unwrap_or_else(|| Home {
        account: topic.account.clone(),
        region: restarter
            .clients
            .home_region()
            .unwrap_or_else(|| topic.region.clone()),
        function: context.env_config.function_name.clone(),
    })
}

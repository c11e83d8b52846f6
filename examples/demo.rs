//! The main job, as a person would watch it: a simulated fleet, one event, the real handler.
//!
//! ```sh
//! cargo run --example demo
//! cargo run --example demo -- --bad-day
//! cargo run --example demo -- --instances 130 --fail 9 --seed 7
//! cargo run --example demo -- --event events/codedeploy-success.json --json
//! ```
//!
//! Nothing here talks to AWS: the handler and its AWS SDK are the real ones, the service behind them is
//! `sim`. Time is virtual, so minutes on the fleet pass in seconds.

use std::cell::Cell;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use codedeploy_agent_restarter::Handled;

#[path = "demo/bad_day.rs"]
mod bad_day;
#[path = "demo/screen.rs"]
mod screen;
#[path = "demo/stage.rs"]
mod stage;

use screen::Screen;
use stage::{Cast, Stage};

const HELP: &str = "\
Restarts the agents of a simulated fleet after one event, and shows it.

  cargo run --example demo -- [OPTIONS]

  --instances N   instances in the two Auto Scaling groups, 0 to 1000
                  (default 24)
  --fail N        how many of them fail to restart (default 1); besides these,
                  one is busy, one was lost by Systems Manager and one is
                  launching
  --bad-day       in place of that fleet, four fleets with 39 instances on which
                  all of it happens: each outcome, and problems; goes with none
                  of --instances, --fail and --event
  --seed N        another fleet, the same each time (default 1)
  --event FILE    the event, as in events/
                  (default events/pipeline-succeeded.json)
  --json          print only the JSON that the function returns
  --help          print this";

/// What the command line asks for.
struct Options {
    cast: Cast,
    /// The bad day in place of the cast.
    bad_day: bool,
    event: Option<PathBuf>,
    json: bool,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)) {
        Ok(None) => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Some(options)) => match play(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => fail(&problem),
        },
        Err(problem) => fail(&format!("{problem}; --help tells what is accepted")),
    }
}

fn fail(problem: &str) -> ExitCode {
    eprintln!("{problem}");
    ExitCode::from(2)
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options {
        cast: Cast::default(),
        bad_day: false,
        event: None,
        json: false,
    };
    let mut failing = None;
    let mut fixed_by_bad_day = None;
    while let Some(word) = words.next() {
        let mut value = |accepted: &str| {
            words
                .next()
                .ok_or_else(|| format!("{word} needs a value: {accepted}"))
        };
        if ["--instances", "--fail", "--event"].contains(&word.as_str()) {
            fixed_by_bad_day = Some(word.clone());
        }
        match word.as_str() {
            "--bad-day" => options.bad_day = true,
            "--instances" => options.cast.instances = number(&word, &value("0 to 1000")?, 1000)?,
            "--fail" => {
                options.cast.fail = number(&word, &value("0 to 1000")?, 1000)?;
                failing = Some(options.cast.fail);
            }
            "--seed" => options.cast.seed = number(&word, &value("a whole number")?, u64::MAX)?,
            "--event" => options.event = Some(value("a file")?.into()),
            "--json" => options.json = true,
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("{word} is no option of the demo")),
        }
    }
    if let (true, Some(option)) = (options.bad_day, fixed_by_bad_day) {
        return Err(format!(
            "--bad-day has its own fleets and event: {option} does not go with it"
        ));
    }
    let Cast {
        instances, fail, ..
    } = options.cast;
    match failing {
        Some(_) if fail > instances => Err(format!(
            "--fail {fail} is more than --instances {instances}"
        )),
        _ => {
            options.cast.fail = fail.min(instances);
            Ok(Some(options))
        }
    }
}

fn number<T>(option: &str, text: &str, most: T) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    text.parse()
        .ok()
        .filter(|number| *number <= most)
        .ok_or_else(|| format!("{option} {text:?} is no whole number from 0 to {most}"))
}

fn play(options: &Options) -> Result<(), String> {
    let event = match &options.event {
        None => include_str!("../events/pipeline-succeeded.json").to_owned(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))?,
    };
    let event = serde_json::from_str(&event)
        .map_err(|error| format!("the event is no JSON: {error}; see events/ for examples"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| format!("tokio does not start: {error}"))?;
    runtime.block_on(async {
        let stage = match options.bad_day {
            true => Stage::set_bad_day(event, options.cast.seed),
            false => Stage::set(event, &options.cast),
        };
        if options.json {
            let (_, answer) = stage.deliver().await?;
            // Whoever closes the output early has read enough.
            let _ = writeln!(std::io::stdout(), "{answer:#}");
            return Ok(());
        }
        show(&stage).await?;
        let calm = !options.bad_day && options.event.is_none();
        if calm {
            Screen::hint("A day on which all of it happens: cargo run --example demo -- --bad-day");
        }
        Ok(())
    })
}

/// The event, the plan, the restarts, the outcomes, the messages, the answer.
async fn show(stage: &Stage) -> Result<(), String> {
    let mut screen = Screen::new();
    screen.event(stage);
    let planned = stage.plan().await?;
    screen.plan(&planned);

    let done = Cell::new(false);
    let deliver = async {
        let delivered = stage.deliver().await;
        done.set(true);
        delivered
    };
    let (delivered, ()) = tokio::join!(deliver, screen.watch(stage, &planned, &done));
    let (handled, answer) = delivered?;
    if let Handled::Done(report) = &handled {
        if !stage.is_dry_run() {
            screen.table(report);
        }
        screen.messages(stage, stage.is_dry_run());
    }
    screen.answer(&answer);
    Ok(())
}

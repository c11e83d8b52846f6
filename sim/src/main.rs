//! The command line of the simulated AWS.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use sim::server::Server;
use sim::{State, World};
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
A simulated AWS on a loopback port, as codedeploy-agent-restarter sees it.

usage: sim serve --world FILE [--port N] [--speed N]

  --world FILE  the world as JSON; sim/README.md explains every field, sim/worlds/example.json is one
  --port N      0 to 65535 on 127.0.0.1; 0, the default, takes any that is free
  --speed N     makes every duration of the world N times shorter, up to 10000; 1 is the default
  --help        this text

It prints one line when it is ready, answers GET /_sim/state with the world's state as JSON,
and ends on SIGINT or SIGTERM.";

/// The greatest speed: beyond it the moments of a world can no longer be told apart.
const FASTEST: f64 = 10_000.0;

/// What the arguments ask for.
#[derive(Debug, PartialEq)]
enum Order {
    Help,
    Serve {
        world: String,
        port: u16,
        speed: f64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match parse(std::env::args().skip(1)) {
        Ok(Order::Help) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Ok(Order::Serve { world, port, speed }) => serve(&world, port, speed).await,
        Err(problem) => Err(problem),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("sim: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Order, String> {
    match arguments.next().as_deref() {
        Some("serve") => {}
        Some("--help" | "-h" | "help") => return Ok(Order::Help),
        Some(other) => {
            return Err(format!(
                "unknown command {other:?}: the only one is serve; see sim --help"
            ));
        }
        None => return Err("no command: write sim serve --world FILE; see sim --help".to_owned()),
    }
    let (mut world, mut port, mut speed) = (None, 0, 1.0);
    while let Some(option) = arguments.next() {
        if option == "--help" || option == "-h" {
            return Ok(Order::Help);
        }
        if !["--world", "--port", "--speed"].contains(&option.as_str()) {
            return Err(format!(
                "unknown option {option:?}: there are --world, --port and --speed; see sim --help"
            ));
        }
        let Some(value) = arguments.next() else {
            return Err(format!(
                "{option} has no value: write {option} and then one; see sim --help"
            ));
        };
        match option.as_str() {
            "--world" => world = Some(value),
            "--port" => {
                port = value
                    .parse()
                    .map_err(|_error| format!("--port {value:?}: give a number from 0 to 65535"))?;
            }
            _ => {
                speed = value
                    .parse()
                    .ok()
                    .filter(|speed: &f64| *speed > 0.0 && *speed <= FASTEST)
                    .ok_or_else(|| {
                        format!("--speed {value:?}: give a number above 0 and up to {FASTEST}, such as 10")
                    })?;
            }
        }
    }
    let world =
        world.ok_or("no world: add --world FILE, for instance --world sim/worlds/example.json")?;
    Ok(Order::Serve { world, port, speed })
}

async fn serve(path: &str, port: u16, speed: f64) -> Result<(), String> {
    let world = World::at_speed(read(path)?, real_now(), speed);
    let server = Server::bind(world, port).await.map_err(|error| {
        format!("port {port} cannot be opened: {error}; take another, or --port 0 for any")
    })?;
    let address = server
        .address()
        .map_err(|error| format!("the port has no address: {error}"))?;
    let mut terminated =
        signal(SignalKind::terminate()).map_err(|error| format!("no signal handler: {error}"))?;
    println!("sim listens on http://{address}");
    tokio::select! {
        biased;
        _ = terminated.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
        never = server.run() => match never {},
    }
    Ok(())
}

fn read(path: &str) -> Result<State, String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        format!("the world {path} cannot be read: {error}; name a file of JSON with --world")
    })?;
    let wrong = |problem: &str| {
        format!("the world {path} is not valid: {problem}; sim/README.md explains every field")
    };
    // Otherwise an array would be read as the fields in their order.
    if !text.trim_start().starts_with('{') {
        return Err(wrong("it is not a JSON object"));
    }
    let state: State = serde_json::from_str(&text).map_err(|error| wrong(&error.to_string()))?;
    match state.problems().as_slice() {
        [] => Ok(state),
        problems => Err(wrong(&problems.join("; "))),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a served world begins at the real now"
)]
fn real_now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Order, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_read_and_wrong_ones_named() {
        let order = Order::Serve {
            world: "w.json".to_owned(),
            port: 4600,
            speed: 10.0,
        };
        assert_eq!(
            parsed("serve --port 4600 --world w.json --speed 10"),
            Ok(order)
        );
        assert_eq!(parsed("serve --help"), Ok(Order::Help));
        for (line, named) in [
            ("", "sim serve"),
            ("start", "\"start\""),
            ("serve", "--world FILE"),
            ("serve --world", "--world has no value"),
            ("serve --world w --port 70000", "0 to 65535"),
            ("serve --world w --speed 0", "above 0"),
            ("serve --world w --speed -1", "above 0"),
            ("serve --world w --speed 1e300", "up to 10000"),
            ("serve --world w --sped 2", "\"--sped\""),
        ] {
            let problem = parsed(line).unwrap_err();
            assert!(problem.contains(named), "{line}: {problem}");
        }
    }

    #[test]
    fn a_world_that_cannot_be_read_is_named() {
        assert!(
            read("no-such-file.json")
                .unwrap_err()
                .contains("no-such-file.json cannot be read")
        );
        let folder = std::env::temp_dir().join(format!("sim-worlds-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("world.json");
        let problem = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(path.to_str().unwrap()).unwrap_err()
        };
        for (text, named) in [
            ("{ \"regions\": ", "EOF"),
            ("{} {}", "trailing"),
            ("[]", "not a JSON object"),
            (r#"{ "regionz": {} }"#, "regionz"),
            (r#"{ "latency": -5 }"#, "latency -5"),
            (
                r#"{ "faults": [{ "operation": "SendComand" }] }"#,
                "\"SendComand\"; one of ListActionExecutions",
            ),
        ] {
            let told = problem(text);
            assert!(told.contains(named), "{text}: {told}");
            assert!(told.contains("world.json is not valid"), "{text}: {told}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

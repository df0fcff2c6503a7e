//! The command line of the agent. Called by `main`.

mod control;
mod doctor;
mod face;
mod get;
mod look;
mod machine;
mod provider;
mod reap;
mod sweep;
mod target;
mod run;
mod store;

use std::ffi::OsString;
use std::process::Command as Process;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::deadman::{self, Orders, Pulse, UNDER_GUARD};
use crate::error::{Error, ExitStatus};
use crate::orders::Order;
use crate::run as supervised;

/// Words that begin a command of the agent; anything else is the trainer's.
const COMMANDS: &[&str] = &[
    "run",
    "drill",
    "limits",
    "yield",
    "credentials",
    "verify",
    "probe-store",
    "provider",
    "doctor",
    "power-off",
    "sweep",
    "reap",
    "status",
    "logs",
    "artifacts",
    "stop",
    "checkpoint",
    "openapi",
    "help",
    "--help",
    "-h",
    "--version",
    "-V",
];
/// Supervises a trainer and keeps its checkpoints in a store.
#[derive(Debug, Parser)]
#[command(name = "agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a trainer for a job: claim it, resume it, publish its checkpoints, restart it.
    Run(Box<run::Run>),
    /// Rehearse something that goes wrong, on a live job.
    Drill(control::Drill),
    /// Change the limits of a live job.
    Limits(control::Limits),
    /// Have a live job leave its machine, so that another goes on with it.
    Yield(control::Plain),
    /// Hand this command's own temporary keys to the holder of a job, before its keys end.
    Credentials(control::Credentials),
    /// Check everything that a store holds of a job.
    Verify {
        #[command(flatten)]
        place: Place,
        /// Read every byte instead of sizes and the store's own checksums.
        #[arg(long)]
        deep: bool,
    },
    /// Find out what a store can do: whether one job has one trainer there, whatever happens.
    ProbeStore {
        /// s3://bucket/prefix or a folder.
        #[arg(env = "AGENT_STORE", default_value = "./store")]
        store: String,
    },
    /// Say whose machine this is, what it costs and how it would be given back.
    Provider(provider::Show),
    /// Check machine, provider, store, network, clock, tokens, disk and trainer, a line for each.
    Doctor(doctor::Doctor),
    /// Give a machine back, and try for as long as it takes.
    PowerOff(provider::PowerOff),
    /// Many trials of one trainer, by any number of workers.
    #[command(subcommand)]
    Sweep(sweep::Sweep),
    /// List jobs whose holder fell silent without writing down an end.
    Reap(reap::Reap),
    /// What a job is doing, asked of its agent or its store.
    Status(look::Status),
    /// What a job has printed.
    Logs(look::Logs),
    /// The files that a job has made.
    Artifacts(look::ArtifactsArgs),
    /// End a job's run: save, publish, leave.
    Stop(control::Stop),
    /// Save a checkpoint now and publish it.
    Checkpoint(control::Plain),
    /// The description of the HTTP API (OpenAPI 3.1).
    Openapi,
}

#[derive(Clone, Debug, clap::Args)]
struct Place {
    /// Where jobs are kept: s3://bucket/prefix or a folder.
    #[arg(long, env = "AGENT_STORE", default_value = "./store")]
    store: String,
    /// Name of the job: words of letters, digits, '.', '_' and '-', joined by '/'.
    #[arg(long, env = "AGENT_JOB", default_value = "default")]
    job: String,
}

/// `90`, `90s`, `15m`, `6h`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(split.unwrap_or(text.len()));
    let scale = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" => 60.0,
        "h" => 3600.0,
        _ => {
            return Err(format!(
                "expected a number with ms, s, m or h, got {text:?}"
            ));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("expected a duration such as 90s or 15m, got {text:?}"))?;
    Duration::try_from_secs_f64(number * scale).map_err(|error| format!("{text:?}: {error}"))
}

/// Runs what the arguments (without the program's name) ask for. What is for people to read goes to
/// `print`.
///
/// # Errors
/// If the command could not be carried out; the exit status says more.
pub fn main(
    mut arguments: Vec<OsString>,
    print: &mut dyn FnMut(&str),
) -> Result<ExitStatus, Error> {
    let guarded = arguments.first().is_some_and(|word| word == UNDER_GUARD);
    if guarded {
        arguments.remove(0);
    }
    let first = arguments
        .first()
        .map(|word| word.to_string_lossy().into_owned());
    match first {
        Some(word) if !COMMANDS.contains(&word.as_str()) => Err(become_trainer(arguments)),
        _ => {
            let words = std::iter::once("agent".into()).chain(arguments.iter().cloned());
            let cli = match Cli::try_parse_from(words) {
                Ok(cli) => cli,
                Err(error) => {
                    let failed = error.use_stderr();
                    print(&error.to_string());
                    let status = if failed {
                        ExitStatus::Usage
                    } else {
                        ExitStatus::Completed
                    };
                    return Ok(status);
                }
            };
            let mut pulse = Pulse::default();
            if let Some(orders) = cli.command.orders() {
                let failed = || Error::machine("dead-man's switch");
                if !guarded && std::process::id() == 1 {
                    let code = deadman::be_first(&orders, &arguments);
                    return code.map(ExitStatus::of_code).map_err(failed());
                }
                let started = if guarded {
                    Pulse::to_parent()
                } else {
                    Pulse::start(orders)
                };
                pulse = started.map_err(failed())?;
            }
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(Error::machine("threads"))?;
            let status = runtime.block_on(obey(cli.command, pulse.clone(), print));
            // Tasks that wait for a store do not hold the end up.
            runtime.shutdown_background();
            pulse.bye();
            status
        }
    }
}

impl Command {
    /// What the dead-man's switch is told, where a command runs trainers.
    fn orders(&self) -> Option<Orders> {
        match self {
            Self::Run(run) => Some(run.orders()),
            Self::Sweep(sweep) => sweep.orders(),
            _ => None,
        }
    }
}

async fn obey(
    command: Command,
    pulse: Pulse,
    print: &mut dyn FnMut(&str),
) -> Result<ExitStatus, Error> {
    match command {
        Command::Run(run) => run.obey(pulse).await,
        Command::Drill(drill) => drill.give(print).await,
        Command::Limits(limits) => limits.give(print).await,
        Command::Credentials(args) => args.give(print).await,
        Command::Yield(args) => args.give(Order::Yield, print).await,
        Command::Verify { place, deep } => store::verify(&place, deep, print).await,
        Command::ProbeStore { store: at } => store::probe_store(&at, print).await,
        Command::Provider(show) => provider::show(show, print).await,
        Command::Doctor(doctor) => doctor.obey(print).await,
        Command::PowerOff(order) => provider::power_off(order, print).await,
        Command::Sweep(sweep) => sweep.obey(pulse, print).await,
        Command::Reap(reap) => reap.obey(print).await,
        Command::Status(args) => look::status(&args, print).await,
        Command::Logs(args) => look::logs(&args, print).await,
        Command::Artifacts(args) => look::artifacts(&args, print).await,
        Command::Stop(args) => args.give(print).await,
        Command::Checkpoint(args) => args.give(Order::Checkpoint, print).await,
        Command::Openapi => {
            print(&crate::http::document());
            Ok(ExitStatus::Completed)
        }
    }
}

/// Hands the process over to the trainer: returns only if that failed.
fn become_trainer(arguments: Vec<OsString>) -> Error {
    use std::os::unix::process::CommandExt;
    let program = supervised::find_program("trainer".into());
    let source = Process::new(&program).args(arguments).exec();
    Error::Machine {
        what: program.to_string_lossy().into_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "m", "5 days", "1e999", "-3"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}

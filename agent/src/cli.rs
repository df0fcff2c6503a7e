//! The command line of the agent. Called by `main`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command as Process;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use protocol::RunDir;

use crate::checkpoints::{self, Depth, Policy, Transfer};
use crate::clock::BootClock;
use crate::error::{Error, ExitStatus};
use crate::job::{Holder, Job};
use crate::lease::Terms;
use crate::redact::Redactor;
use crate::run::{self, Options};
use crate::state::{LeaseMode, OnLost, Settings};
use crate::storage::open::open;
use crate::storage::probe;

/// Words that begin a command of the agent; anything else is the trainer's.
const COMMANDS: &[&str] = &[
    "run",
    "verify",
    "probe-store",
    "help",
    "--help",
    "-h",
    "--version",
    "-V",
];
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
const STATUS_EVERY: Duration = Duration::from_secs(5);
const LOGS_EVERY: Duration = Duration::from_secs(10);
const KILL_BUDGET_MAX: Duration = Duration::from_secs(5);

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
    Run(Run),
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
}

#[derive(Debug, clap::Args)]
struct Place {
    /// Where jobs are kept: s3://bucket/prefix or a folder.
    #[arg(long, env = "AGENT_STORE", default_value = "./store")]
    store: String,
    /// Name of the job: words of letters, digits, '.', '_' and '-', joined by '/'.
    #[arg(long, env = "AGENT_JOB", default_value = "default")]
    job: String,
}

#[derive(Debug, clap::Args)]
struct Run {
    #[command(flatten)]
    place: Place,
    /// The trainer's directory on this machine [default: runs/JOB].
    #[arg(long, env = "AGENT_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// What the lease means: strict stops training before it can be lost, lenient goes on
    /// unpublished, off is for a single container and any store.
    #[arg(long, env = "AGENT_LEASE", value_enum, default_value = "strict")]
    lease: LeaseArg,
    /// What to do while another agent has the job.
    #[arg(long, env = "AGENT_ON_LOST", value_enum, default_value = "exit")]
    on_lost: OnLostArg,
    /// Go on with a job that has ended.
    #[arg(long)]
    again: bool,
    /// Failures in a row without a new checkpoint that are followed by a restart.
    #[arg(long, env = "AGENT_MAX_RESTARTS", default_value_t = 5)]
    max_restarts: u32,
    /// From a signal to the moment that the machine is gone.
    #[arg(long, env = "AGENT_GRACE", value_parser = duration, default_value = "30s")]
    grace: Duration,
    /// How long training may make no progress.
    #[arg(long, env = "AGENT_STALL", value_parser = duration, default_value = "15m")]
    stall: Duration,
    /// How long the trainer may take from its start to training.
    #[arg(long, env = "AGENT_START_DEADLINE", value_parser = duration, default_value = "30m")]
    start_deadline: Duration,
    /// How long a store that cannot be reached is waited for before and after training.
    #[arg(long, env = "AGENT_STORE_PATIENCE", value_parser = duration, default_value = "1h")]
    store_patience: Duration,
    /// How long a lease outlives its last beat.
    #[arg(long, env = "AGENT_TTL", value_parser = duration, default_value = "60s")]
    ttl: Duration,
    /// Checkpoints to keep in the store; the best one is kept besides.
    #[arg(long, env = "AGENT_KEEP_LAST", default_value_t = 3)]
    keep_last: usize,
    /// Keep every checkpoint whose step is a multiple of this as well.
    #[arg(long, env = "AGENT_KEEP_EVERY")]
    keep_every: Option<u64>,
    /// A secret of the agent's environment that the trainer gets all the same; may be repeated.
    #[arg(long)]
    pass_env: Vec<String>,
    /// The trainer and its arguments; {run_dir} stands for its directory.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LeaseArg {
    Strict,
    Lenient,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnLostArg {
    Exit,
    Standby,
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
pub fn main(arguments: Vec<OsString>, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
    let first = arguments
        .first()
        .map(|word| word.to_string_lossy().into_owned());
    match first {
        Some(word) if !COMMANDS.contains(&word.as_str()) => Err(become_trainer(arguments)),
        _ => {
            let words = std::iter::once("agent".into()).chain(arguments);
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
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(Error::machine("threads"))?;
            let status = runtime.block_on(obey(cli.command, print));
            // Tasks that wait for a store do not hold the end up.
            runtime.shutdown_background();
            status
        }
    }
}

async fn obey(command: Command, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
    match command {
        Command::Run(run) => run::run(run.options().await?).await,
        Command::Verify { place, deep } => verify(&place, deep, print).await,
        Command::ProbeStore { store } => probe_store(&store, print).await,
    }
}

/// Hands the process over to the trainer: returns only if that failed.
fn become_trainer(arguments: Vec<OsString>) -> Error {
    use std::os::unix::process::CommandExt;
    let program = run::find_program("trainer".into());
    let source = Process::new(&program).args(arguments).exec();
    Error::Machine {
        what: program.to_string_lossy().into_owned(),
        source,
    }
}

impl Run {
    async fn options(self) -> Result<Options, Error> {
        let job = Job::new(&self.place.job).map_err(|error| Error::Usage(error.to_string()))?;
        let run_dir = self
            .run_dir
            .unwrap_or_else(|| PathBuf::from("runs").join(job.id()));
        let run_dir =
            std::path::absolute(&run_dir).map_err(Error::machine(run_dir.display().to_string()))?;
        let terms = Terms {
            ttl: self.ttl,
            slack: (self.ttl / 12).min(Duration::from_secs(5)),
            ..Terms::default()
        };
        let settings = Settings {
            lease: match self.lease {
                LeaseArg::Strict => LeaseMode::Strict,
                LeaseArg::Lenient => LeaseMode::Lenient,
                LeaseArg::Off => LeaseMode::Off,
            },
            on_lost: match self.on_lost {
                OnLostArg::Exit => OnLost::Exit,
                OnLostArg::Standby => OnLost::Standby,
            },
            again: self.again,
            ttl: terms.ttl,
            kill_budget: (terms.ttl / 8).min(KILL_BUDGET_MAX),
            rho: terms.rho,
            restarts_max: self.max_restarts,
            backoff_first: BACKOFF_FIRST,
            backoff_max: BACKOFF_MAX,
            stall: self.stall,
            start_patience: self.start_deadline,
            save_patience: self.grace,
            store_patience: self.store_patience,
            status_every: STATUS_EVERY,
            logs_every: LOGS_EVERY,
        };
        Ok(Options {
            store: open(&self.place.store).await?,
            job,
            run_dir: RunDir::new(run_dir),
            holder: holder(),
            settings,
            terms,
            policy: Policy {
                keep_last: self.keep_last,
                keep_every: self.keep_every,
                ..Policy::default()
            },
            transfer: Transfer::default(),
            command: self.command,
            grace: self.grace,
            pass_env: self.pass_env,
            redactor: Arc::new(Redactor::from_env()),
            clock: Arc::new(BootClock),
        })
    }
}

/// Who we are, for people and for a restart on this machine.
fn holder() -> Holder {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let host = read("/proc/sys/kernel/hostname");
    Holder {
        agent: format!("{}:{}", host.trim(), std::process::id()),
        boot: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
        ..Holder::default()
    }
}

async fn verify(
    place: &Place,
    deep: bool,
    print: &mut dyn FnMut(&str),
) -> Result<ExitStatus, Error> {
    let job = Job::new(&place.job).map_err(|error| Error::Usage(error.to_string()))?;
    let store = open(&place.store).await?;
    let depth = if deep { Depth::Bytes } else { Depth::Heads };
    let report = checkpoints::verify(&store, &job, depth, &Transfer::default()).await;
    let report = report.map_err(|error| Error::Bad(error.to_string()))?;
    print(&format!(
        "job {} in {}: epoch {}",
        job.id(),
        store.name(),
        report.epochs
    ));
    for commit in &report.history {
        print(&format!(
            "checkpoint of step {}, epoch {}",
            commit.step, commit.epoch
        ));
    }
    for commit in &report.orphans {
        print(&format!("orphan, does not count: {commit}"));
    }
    if report.unnamed_files > 0 {
        let (files, bytes) = (report.unnamed_files, report.unnamed_bytes);
        print(&format!(
            "{files} files ({bytes} bytes) belong to no checkpoint"
        ));
    }
    for problem in &report.problems {
        print(&format!("problem: {problem}"));
    }
    if report.problems.is_empty() {
        print("sound");
        Ok(ExitStatus::Completed)
    } else {
        Ok(ExitStatus::Failed)
    }
}

async fn probe_store(store: &str, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
    let store = open(store).await?;
    let limit = probe::CHECK_MAX.as_secs();
    print(&format!(
        "asking {}, at most {limit} s for each check",
        store.name()
    ));
    let verdict = probe::probe(&store, fastrand::u64(..), |row| print(row)).await?;
    print(&verdict.summary());
    if verdict.allows_lease() {
        Ok(ExitStatus::Completed)
    } else {
        Ok(ExitStatus::Unfit)
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

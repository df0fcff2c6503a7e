//! `agent run`: its flags, and what they mean for the supervisor.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use protocol::RunDir;

use super::face::FaceArgs;
use super::machine::{Found, LimitFlags, MachineFlags};
use super::{Place, duration};
use crate::checkpoints::{Policy, Transfer};
use crate::clock::BootClock;
use crate::deadman::{Orders, Pulse};
use crate::error::{Error, ExitStatus};
use crate::job::{Holder, Job};
use crate::lease::Terms;
use crate::limits::{Age, Limits};
use crate::provider::{Instance, PowerOff};
use crate::redact::Redactor;
use crate::run::{self as supervised, Machine, Options, Outage};
use crate::state::{LeaseMode, OnLost, Settings};
use crate::storage::Storage;
use crate::storage::open::open;
use crate::sweep::Bounds;

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
const STATUS_EVERY: Duration = Duration::from_secs(5);
const LOGS_EVERY: Duration = Duration::from_secs(10);
const KILL_BUDGET_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    #[command(flatten)]
    place: Place,
    /// The trainer's directory on this machine [default: runs/JOB].
    #[arg(long, env = "AGENT_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// What to do while another agent has the job.
    #[arg(long, env = "AGENT_ON_LOST", value_enum, default_value = "exit")]
    on_lost: OnLostArg,
    /// Go on with a job that has ended.
    #[arg(long)]
    again: bool,
    #[command(flatten)]
    supervision: Supervision,
    #[command(flatten)]
    face: FaceArgs,
    /// The trainer and its arguments; {run_dir} stands for its directory.
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

/// How a trainer is looked after, whatever the job: what `agent sweep work` takes as well.
#[derive(Debug, clap::Args)]
pub(super) struct Supervision {
    /// What the lease means: strict stops training before it can be lost, lenient goes on
    /// unpublished, off is for a single container and any store.
    #[arg(long, env = "AGENT_LEASE", value_enum, default_value = "strict")]
    lease: LeaseArg,
    /// Failures in a row without a new checkpoint that are followed by a restart.
    #[arg(long, env = "AGENT_MAX_RESTARTS", default_value_t = 5)]
    max_restarts: u32,
    /// From a signal to the moment that the machine is gone.
    #[arg(long, env = "AGENT_GRACE", value_parser = duration, default_value = "30s")]
    grace: Duration,
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    machine: MachineFlags,
    /// A trainer that is silent for so long before it trains is restarted.
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

impl Run {
    /// What the dead-man's switch is told.
    pub(super) fn orders(&self) -> Orders {
        self.supervision.orders()
    }

    /// Runs the job. A machine on which that cannot be begun is given back as well.
    pub(super) async fn obey(self: Box<Self>, pulse: Pulse) -> Result<ExitStatus, Error> {
        let host = self.supervision.host(pulse).await;
        let ended = self.run(&host).await;
        if let Err(error) = &ended {
            host.give_back(&format!("error: {error}")).await;
        }
        ended
    }

    async fn run(self: Box<Self>, host: &Host) -> Result<ExitStatus, Error> {
        let redactor = Arc::new(Redactor::from_env());
        let mut face = self.face.face(&redactor)?;
        face.config = self.config(&redactor);
        let options = Options {
            redactor,
            ..self.options(host).await?
        };
        supervised::run_with(options, face).await
    }

    /// The settings as they are, for people; secrets masked.
    fn config(&self, redactor: &Redactor) -> serde_json::Value {
        let mut config = serde_json::json!({
            "store": self.place.store,
            "job": self.place.job,
            "lease": format!("{:?}", self.supervision.lease).to_lowercase(),
            "on_lost": format!("{:?}", self.on_lost).to_lowercase(),
            "max_restarts": self.supervision.max_restarts,
            "grace_seconds": self.supervision.grace.as_secs_f64(),
            "start_deadline_seconds": self.supervision.start_deadline.as_secs_f64(),
            "store_patience_seconds": self.supervision.store_patience.as_secs_f64(),
            "ttl_seconds": self.supervision.ttl.as_secs_f64(),
            "keep_last": self.supervision.keep_last,
            "command": self.command,
        });
        crate::status::redact(&mut config, redactor);
        config
    }

    async fn options(self: Box<Self>, host: &Host) -> Result<Options, Error> {
        let supervision = &self.supervision;
        supervision.check(host)?;
        let job = Job::new(&self.place.job).map_err(|error| Error::Usage(error.to_string()))?;
        let store = open(&self.place.store).await?;
        let run_dir = self
            .run_dir
            .unwrap_or_else(|| PathBuf::from("runs").join(job.id()));
        let run_dir =
            std::path::absolute(&run_dir).map_err(Error::machine(run_dir.display().to_string()))?;
        let mut options = supervision.options(host, store, job, run_dir, self.command)?;
        options.settings.on_lost = match self.on_lost {
            OnLostArg::Exit => OnLost::Exit,
            OnLostArg::Standby => OnLost::Standby,
        };
        options.settings.again = self.again;
        Ok(options)
    }
}

/// The machine that we are on, and who watches over it.
pub(super) struct Host {
    found: Found,
    pulse: Pulse,
}

impl Host {
    /// Gives the machine back, where it is one that may be, after saying why.
    pub(super) async fn give_back(&self, why: &str) {
        let how = self.found.power_off;
        if how == PowerOff::None {
            return;
        }
        let say = |text: String| {
            // Nobody is left to tell if standard error is closed.
            writeln!(std::io::stderr(), "agent: {text}").ok();
        };
        say(format!("{why}; giving the machine back"));
        self.found.switch.power_off(how, say).await;
    }

    /// What bounds a worker on this machine between its runs.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            pulse: self.pulse.clone(),
            hard: self.found.hard(),
            idle: self.found.limits.idle,
        }
    }

    /// Dollars an hour, storage included; `None` if nobody knows.
    pub(super) async fn price(&self) -> Option<f64> {
        let told = self.found.switch.adapter().price().await;
        let price = told.or_else(|| self.found.price.clone())?;
        Some(price.per_hour + price.storage_per_hour)
    }
}

impl Supervision {
    /// What the dead-man's switch is told.
    pub(super) fn orders(&self) -> Orders {
        self.machine.orders(&self.limits)
    }

    /// Finds out whose machine this is.
    pub(super) async fn host(&self, pulse: Pulse) -> Host {
        Host {
            found: Found::out(&self.machine, &self.limits).await,
            pulse,
        }
    }

    /// # Errors
    /// If a limit cannot be held on this machine.
    pub(super) fn check(&self, host: &Host) -> Result<(), Error> {
        host.found.check(&self.machine)
    }

    /// Whether the user promises that there is one container.
    pub(super) fn is_unleased(&self) -> bool {
        matches!(self.lease, LeaseArg::Off)
    }

    /// The agent's part, for a job that is left to whoever has it, and not gone on with once it has
    /// ended.
    ///
    /// # Errors
    /// If a flag is not what it should be.
    pub(super) fn options(
        &self,
        host: &Host,
        store: Arc<dyn Storage>,
        job: Job,
        run_dir: PathBuf,
        command: Vec<String>,
    ) -> Result<Options, Error> {
        let found = &host.found;
        let terms = Terms {
            ttl: self.ttl,
            slack: (self.ttl / 12).min(Duration::from_secs(5)),
            ..Terms::default()
        };
        let webhook = self.machine.webhook()?;
        let mut settings = Settings {
            lease: match self.lease {
                LeaseArg::Strict => LeaseMode::Strict,
                LeaseArg::Lenient => LeaseMode::Lenient,
                LeaseArg::Off => LeaseMode::Off,
            },
            on_lost: OnLost::Exit,
            takes_keys: store.takes_keys(),
            again: false,
            ttl: terms.ttl,
            kill_budget: (terms.ttl / 8).min(KILL_BUDGET_MAX),
            rho: terms.rho,
            restarts_max: self.max_restarts,
            backoff_first: BACKOFF_FIRST,
            backoff_max: BACKOFF_MAX,
            start_patience: self.start_deadline,
            save_patience: self.grace,
            store_patience: self.store_patience,
            status_every: STATUS_EVERY,
            logs_every: LOGS_EVERY,
            limits: Limits::default(),
            age: Age::default(),
            price: None,
            power_off: PowerOff::None,
        };
        found.fill(&mut settings);
        let outage = Outage::default();
        Ok(Options {
            store: outage.over(store),
            job,
            run_dir: RunDir::new(run_dir),
            holder: holder(found.switch.adapter().instance()),
            settings,
            terms,
            policy: Policy {
                keep_last: self.keep_last,
                keep_every: self.keep_every,
                ..Policy::default()
            },
            transfer: Transfer::default(),
            command,
            grace: self.grace,
            pass_env: self.pass_env.clone(),
            redactor: Arc::new(Redactor::from_env()),
            clock: Arc::new(BootClock),
            first_epoch: None,
            machine: Machine {
                switch: Some(Arc::clone(&found.switch)),
                pulse: host.pulse.clone(),
                webhook,
                outage,
                words: found.describe(),
            },
        })
    }
}

/// Who we are, for people and for a restart on this machine.
fn holder(instance: &Instance) -> Holder {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let host = read("/proc/sys/kernel/hostname");
    Holder {
        agent: format!("{}:{}", host.trim(), std::process::id()),
        boot: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
        provider: Some(instance.kind.name().to_owned()),
        instance: instance.id.clone(),
        gpu: instance
            .machine
            .clone()
            .or_else(|| super::machine::gpus().0),
    }
}

//! `agent sweep`: create, work, status.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;

use super::run::{Host, Supervision};
use crate::deadman::{Orders, Pulse};
use crate::error::{Error, ExitStatus};
use crate::provider::PowerOff;
use crate::storage::Storage;
use crate::storage::open::open;
use crate::storage::retry::{Policy, Retry};
use crate::sweep::{Creation, Place, Plan, Spec, SweepError, overview, work};

/// A store that does not answer is asked again for so long.
const PATIENCE: Policy = Policy::until(Duration::from_secs(60));

#[derive(Debug, Subcommand)]
pub(super) enum Sweep {
    /// Write a sweep into a store, once. The same again is fine.
    Create {
        /// sweep.toml: the keys, their values, the budget.
        file: PathBuf,
        /// Where jobs are kept: s3://bucket/prefix or a folder.
        #[arg(long, env = "AGENT_STORE", default_value = "./store")]
        store: String,
        /// Name of the sweep, before the file's own.
        #[arg(long)]
        name: Option<String>,
    },
    /// Take one trial after another, until nothing is left for this worker.
    Work(Box<Work>),
    /// Show every trial, the best first.
    Status {
        #[command(flatten)]
        at: At,
        #[arg(long)]
        json: bool,
    },
}

/// A sweep in a store.
#[derive(Debug, clap::Args)]
pub(super) struct At {
    /// s3://bucket/prefix/sweeps/NAME or FOLDER/sweeps/NAME.
    sweep: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct Work {
    #[command(flatten)]
    at: At,
    /// Below this each trial has its directory on this machine [default: runs/sweeps/NAME].
    #[arg(long, env = "AGENT_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// Wait for the trials of other workers, too, in case that they die; not longer than --idle.
    #[arg(long)]
    stay: bool,
    /// Order of the trials [default: another for each worker].
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    supervision: Supervision,
    /// Flags for the trainer on this machine; if the first word is none, it is the program.
    #[arg(last = true)]
    words: Vec<String>,
}

impl At {
    async fn open(&self) -> Result<(Arc<dyn Storage>, Place), Error> {
        let Some((store, name)) = Place::split(&self.sweep) else {
            let text = format!("expected …/sweeps/NAME, got {:?}", self.sweep);
            return Err(Error::Usage(text));
        };
        let place = Place::new(name).map_err(SweepError::from)?;
        Ok((open(store).await?, place))
    }
}

impl Sweep {
    /// What the dead-man's switch is told.
    pub(super) fn orders(&self) -> Option<Orders> {
        match self {
            Self::Work(work) => Some(work.supervision.orders()),
            Self::Create { .. } | Self::Status { .. } => None,
        }
    }

    pub(super) async fn obey(
        self,
        pulse: Pulse,
        print: &mut dyn FnMut(&str),
    ) -> Result<ExitStatus, Error> {
        match self {
            Self::Create { file, store, name } => {
                let text = std::fs::read_to_string(&file)
                    .map_err(Error::machine(file.display().to_string()))?;
                let spec = Spec::from_toml(&text, name.as_deref())?;
                let place = Place::new(&spec.name).map_err(SweepError::from)?;
                let at = store.trim_end_matches('/').to_owned();
                let store = Retry::new(open(&store).await?, PATIENCE, fastrand::u64(..));
                let creation = spec.create(&store, &place).await?;
                let what = match creation {
                    Creation::New => "created",
                    Creation::Same => "is there already",
                };
                let (name, count) = (&spec.name, spec.trials.len());
                print(&format!("sweep {name} {what}: {count} trials"));
                print(&format!("agent sweep work {at}/sweeps/{name}"));
                Ok(ExitStatus::Completed)
            }
            Self::Work(work) => work.obey(pulse, print).await,
            Self::Status { at, json } => {
                let (store, place) = at.open().await?;
                let overview = overview(&store, &place).await?;
                match json {
                    true => print(&overview.to_json().to_string()),
                    false => print(&overview.to_text()),
                }
                Ok(ExitStatus::Completed)
            }
        }
    }
}

impl Work {
    /// Works, and gives the machine back in the end, whatever came of it: but not after a notice,
    /// when it goes, or is kept, by whoever gave that.
    async fn obey(
        self: Box<Self>,
        pulse: Pulse,
        print: &mut dyn FnMut(&str),
    ) -> Result<ExitStatus, Error> {
        let host = Arc::new(self.supervision.host(pulse).await);
        let ended = self.work(&host, print).await;
        let why = match &ended {
            Ok(ExitStatus::Resumable) => return ended,
            Ok(status) => format!("sweep: exit status {status}"),
            Err(error) => format!("error: {error}"),
        };
        host.give_back(&why).await;
        ended
    }

    async fn work(
        self: Box<Self>,
        host: &Arc<Host>,
        print: &mut dyn FnMut(&str),
    ) -> Result<ExitStatus, Error> {
        if self.supervision.is_unleased() {
            let text = "a sweep rests on leases: expected --lease strict or lenient";
            return Err(Error::Usage(text.to_owned()));
        }
        self.supervision.check(host)?;
        let (store, place) = self.at.open().await?;
        let steady = Retry::new(Arc::clone(&store), PATIENCE, fastrand::u64(..));
        let spec = Spec::read(&steady, &place).await?;
        let runs = self.run_dir;
        let runs = runs.unwrap_or_else(|| PathBuf::from("runs/sweeps").join(&spec.name));
        let runs = std::path::absolute(&runs).map_err(Error::machine("run directory"))?;
        let (supervision, of_runs) = (self.supervision, Arc::clone(&store));
        let of_host = Arc::clone(host);
        let plan = Plan {
            store,
            place,
            spec,
            runs,
            words: self.words,
            usd_per_hour: host.price().await,
            stay: self.stay,
            seed: self.seed.unwrap_or_else(|| fastrand::u64(..)),
            bounds: host.bounds(),
            options: Box::new(move |job, run_dir, command| {
                let store = Arc::clone(&of_runs);
                let options = supervision.options(&of_host, store, job, run_dir, command);
                let mut options = options?;
                // The machine goes after the last trial, not after each, and what it cost before
                // this one is no cost of this one.
                options.settings.power_off = PowerOff::None;
                options.settings.age.paid = Duration::ZERO;
                Ok(options)
            }),
        };
        work(&plan, print).await
    }
}

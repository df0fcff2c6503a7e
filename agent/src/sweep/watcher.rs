//! Beside a run: reads its evaluations, judges them at the rungs, and asks the run to stop when it
//! is not among the best or its money is used up. Called by the worker.
//!
//! It asks as an orchestrator would, through `control/` in the store, so that a run has one way to
//! be stopped.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use protocol::{Event, RunDir};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Rungs, SweepError, Verdict};
use crate::clock::{Clock, Moment};
use crate::follow::Events;
use crate::job::Job;
use crate::orders::{Order, StopBody, StopMode, leave};
use crate::storage::Storage;

/// Between two looks at the run.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Reads of the events file in one look.
const READS_MAX: usize = 64;

/// Why a run was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Not among the best at a rung.
    Halved,
    /// What was reserved for it is used up.
    Money,
}

/// How long a run may go on with what was reserved for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    pub(super) since: Moment,
    /// Asked to save, publish and leave.
    pub(super) soft: Duration,
    /// Asked to leave at once.
    pub(super) hard: Duration,
}

pub(super) struct Watcher {
    store: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    job: Job,
    trial: String,
    events: Events,
    allowance: Option<Allowance>,
    /// An order that was not heard is given again after this.
    again_after: Duration,
    pub(super) rungs: Option<Rungs>,
    rung: u32,
    /// Evaluations that are not judged yet: updates made and validation loss.
    evaluations: VecDeque<(u64, f64)>,
    pub(super) why: Option<Why>,
    ordered: Option<Moment>,
    hurried: bool,
}

impl Watcher {
    pub(super) fn new(
        store: &Arc<dyn Storage>,
        clock: &Arc<dyn Clock>,
        (job, trial): (&Job, &str),
        run_dir: &RunDir,
        allowance: Option<Allowance>,
        again_after: Duration,
        rungs: Option<Rungs>,
    ) -> Self {
        Self {
            store: Arc::clone(store),
            clock: Arc::clone(clock),
            job: job.clone(),
            trial: trial.to_owned(),
            events: Events::new(run_dir.events()),
            allowance,
            again_after,
            rungs,
            rung: 0,
            evaluations: VecDeque::new(),
            why: None,
            ordered: None,
            hurried: false,
        }
    }

    /// Watches until the run is over. What fails now is tried again at the next look.
    pub(super) async fn watch(mut self, mut over: oneshot::Receiver<()>) -> Self {
        loop {
            let last = timeout(LOOK_EVERY, &mut over).await.is_ok();
            self.read();
            self.judge().await.ok();
            if last {
                return self;
            }
            self.steer().await.ok();
        }
    }

    fn read(&mut self) {
        if self.rungs.is_none() {
            return;
        }
        for _ in 0..READS_MAX {
            let Ok(polled) = self.events.poll() else {
                return;
            };
            for record in polled.records {
                if let Event::Eval { step, val_loss, .. } = record.event {
                    self.evaluations.push_back((step, val_loss));
                }
            }
            if !polled.more {
                return;
            }
        }
    }

    async fn judge(&mut self) -> Result<(), SweepError> {
        let Some(rungs) = &mut self.rungs else {
            return Ok(());
        };
        while let Some(&(step, loss)) = self.evaluations.front() {
            while self.why.is_none()
                && let Some(at) = rungs.step(self.rung)
                && step >= at
            {
                if rungs.judge(self.rung, &self.trial, step, loss).await? == Verdict::Stop {
                    self.why = Some(Why::Halved);
                }
                self.rung += 1;
            }
            self.evaluations.pop_front();
        }
        Ok(())
    }

    async fn steer(&mut self) -> Result<(), SweepError> {
        let now = self.clock.now();
        let mut hurry = false;
        if let Some(allowance) = &self.allowance {
            let spent = now.since(allowance.since);
            if spent >= allowance.soft && self.why.is_none() {
                self.why = Some(Why::Money);
            }
            hurry = spent >= allowance.hard;
        }
        let due = self
            .ordered
            .is_none_or(|at| now.since(at) >= self.again_after);
        if self.why.is_some() && (due || (hurry && !self.hurried)) {
            order_stop(&*self.store, &self.job, hurry).await?;
            self.ordered = Some(now);
            self.hurried = hurry;
        }
        Ok(())
    }
}

/// Asks whoever runs a job to stop.
async fn order_stop(store: &dyn Storage, job: &Job, now: bool) -> Result<(), SweepError> {
    let mode = if now {
        StopMode::Now
    } else {
        StopMode::Graceful
    };
    let stop = StopBody {
        mode,
        ..StopBody::default()
    };
    leave(store, job, &Order::Stop(stop)).await?;
    Ok(())
}

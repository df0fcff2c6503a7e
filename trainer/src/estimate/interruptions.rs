//! What it adds to a run that its machine is taken away now and then, and how often to save
//! because of that. Called by the estimate.
//!
//! With a time M between interruptions, a checkpoint every tau that holds training up for delta,
//! and R to be back at work, a run of T takes about T (1 + delta/tau + (tau/2 + R)/M), least
//! at tau = sqrt(2 delta M): J. W. Young, "A first order approximation to the optimum checkpoint
//! interval", CACM 17(9), 1974; refined by J. T. Daly, FGCS 22(3), 2006.

use serde::Serialize;

/// What is assumed of interruptions; every figure in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interruptions {
    /// M: mean time from one to the next.
    pub between_s: f64,
    /// R: until another machine trains again.
    pub restart_s: f64,
    /// delta: what a checkpoint and its upload take from training.
    pub checkpoint_s: f64,
    /// tau: from one checkpoint to the next.
    pub interval_s: f64,
}

/// Nobody publishes it for GPUs: a guess to be replaced by `--mtbf`.
pub const BETWEEN_S: f64 = 8.0 * 3600.0;
/// A machine, the image, the checkpoint: also a guess.
pub const RESTART_S: f64 = 300.0;
/// Bytes of a checkpoint for each second of training that it costs, on two busy processors:
/// `bench/RESULTS.md`, "Publish and restore".
pub(super) const CHECKPOINT_BYTES_PER_S: f64 = 1.4e9;
/// Weights and both moments in fp32.
pub(super) const CHECKPOINT_BYTES_PER_PARAMETER: f64 = 12.0;

impl Interruptions {
    /// Seconds that a run of `work_s` takes where it may be interrupted. One that ends before its
    /// first checkpoint loses half of itself.
    pub fn expected_s(&self, work_s: f64) -> f64 {
        let interval = self.interval_s.min(work_s);
        let saving = if self.interval_s < work_s {
            self.checkpoint_s / self.interval_s
        } else {
            0.0
        };
        work_s * (1.0 + saving + (interval / 2.0 + self.restart_s) / self.between_s)
    }

    /// The interval that costs least, by Daly's higher-order formula, which is Young's for
    /// checkpoints that take no time.
    pub fn best_interval_s(&self) -> f64 {
        let (delta, m) = (self.checkpoint_s, self.between_s);
        if delta >= 2.0 * m {
            return m;
        }
        let ratio = delta / (2.0 * m);
        (2.0 * delta * m).sqrt() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - delta
    }
}

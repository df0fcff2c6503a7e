//! Losses on fixed windows of both splits: nanoGPT's `estimate_loss` without its influence on
//! training and without its noise from evaluation to evaluation.

use crate::data::{Loader, Split};
use crate::engine::Engine;
use crate::error::Result;

/// Mean losses, nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Losses {
    pub train: f64,
    pub val: f64,
}

/// Means over `eval_iters` batches of each split. `None` if `stop` said so in between.
pub fn losses(
    engine: &mut dyn Engine,
    loader: &Loader,
    eval_iters: u64,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Losses>> {
    let mut means = [0.0; 2];
    for (mean, split) in means.iter_mut().zip([Split::Train, Split::Val]) {
        let mut batches = loader.eval_batches(split, eval_iters);
        let Some(loss) = engine.mean_loss(&mut batches, stop)? else {
            return Ok(None);
        };
        *mean = loss;
    }
    Ok(Some(Losses {
        train: means[0],
        val: means[1],
    }))
}

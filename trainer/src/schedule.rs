//! The learning rate of each iteration, nanoGPT's: linear warm-up, cosine decay, then `min_lr`.

use crate::config::Config;

/// Learning rate of iteration `step`, counted from 0.
pub fn learning_rate(config: &Config, step: u64) -> f64 {
    if !config.decay_lr {
        return config.learning_rate;
    }
    if step < config.warmup_iters {
        return config.learning_rate * (step + 1) as f64 / (config.warmup_iters + 1) as f64;
    }
    if step > config.lr_decay_iters {
        return config.min_lr;
    }
    let decay_iters = config.lr_decay_iters - config.warmup_iters;
    // nanoGPT divides 0 by 0 where the decay has no length; the decay is then over.
    let progress = match decay_iters {
        0 => 1.0,
        _ => (step - config.warmup_iters) as f64 / decay_iters as f64,
    };
    let weight = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
    config.min_lr + weight * (config.learning_rate - config.min_lr)
}

#[cfg(test)]
mod tests;

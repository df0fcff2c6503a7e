//! The schedule at its corners.

use super::learning_rate;
use crate::config::Config;

fn config() -> Config {
    let words = [
        "learning_rate=1e-3",
        "min_lr=1e-4",
        "warmup_iters=10",
        "lr_decay_iters=110",
    ];
    let words: Vec<String> = words.iter().map(|word| format!("--{word}")).collect();
    Config::resolve(None, &words)
        .expect("these keys are valid")
        .config
}

#[test]
fn warms_up_decays_and_stays() {
    let config = config();
    let at = |step| learning_rate(&config, step);
    assert!((at(0) - 1e-3 / 11.0).abs() < 1e-12);
    assert!((at(9) - 1e-3 * 10.0 / 11.0).abs() < 1e-12);
    assert!((at(10) - 1e-3).abs() < 1e-12);
    assert!((at(60) - 5.5e-4).abs() < 1e-12);
    assert!((at(110) - 1e-4).abs() < 1e-12);
    assert_eq!(at(111), 1e-4);
}

#[test]
fn without_decay_it_is_constant_from_the_start() {
    let constant = Config {
        decay_lr: false,
        ..config()
    };
    assert_eq!(
        (learning_rate(&constant, 0), learning_rate(&constant, 1000)),
        (1e-3, 1e-3)
    );
}

#[test]
fn a_decay_of_no_length_ends_at_the_minimum() {
    let instant = Config {
        lr_decay_iters: 10,
        ..config()
    };
    assert_eq!(learning_rate(&instant, 10), 1e-4);
}

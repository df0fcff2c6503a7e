//! Ages and names of limits.

use super::*;

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

#[test]
fn a_container_counts_from_its_own_start_and_a_fresh_machine_from_its_boot() {
    let up = minutes(10 * 24 * 60);
    let started = up - minutes(5);
    let age = Age::of(Kind::Vast, up, started);
    assert_eq!((age.wall, age.paid), (minutes(5), minutes(5)));

    let age = Age::of(Kind::Lambda, minutes(20), minutes(15));
    assert_eq!((age.wall, age.paid), (minutes(5), minutes(20)));
    let age = Age::of(Kind::Aws, minutes(20), Duration::from_secs(1));
    assert_eq!((age.wall, age.paid), (minutes(20), minutes(20)));
}

#[test]
fn a_machine_that_serves_others_too_counts_from_the_agents_start() {
    let up = minutes(10 * 24 * 60);
    assert_eq!(Age::of(Kind::Local, up, Duration::ZERO), Age::default());
    assert_eq!(Age::of(Kind::Slurm, minutes(3), minutes(2)), Age::default());
    // A rented machine with a history, and the agent started on it by hand.
    let age = Age::of(Kind::Lambda, up, Duration::from_secs(2));
    assert_eq!(age, Age::default());
}

#[test]
fn the_start_of_a_process_is_read_past_any_name() {
    let stat = "1 (a) b (c) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 1 2";
    assert_eq!(start_of_process(stat), Some(Duration::from_millis(123_450)));
    assert_eq!(start_of_process("1 (a"), None);
    let own = std::fs::read_to_string("/proc/self/stat").unwrap();
    assert!(start_of_process(&own).is_some_and(|start| start > Duration::ZERO));
}

#[test]
fn every_default_of_time_is_finite() {
    let it = Limits::default();
    let times = [it.wall, it.idle, it.stall, it.boot, it.claim];
    assert!(times.iter().all(Option::is_some));
    let times = [it.restore, it.fetch, it.first_step];
    assert!(times.iter().all(Option::is_some));
}

//! A trial's lease as workers use it: who failed, and who may write its end.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{BootClock, Clock};
use crate::job::{Holder, Job, LeaseReason, Nonce};
use crate::lease::{self, Claim, Claimant, Standing, Terms};
use crate::storage::Storage;
use crate::storage::faults::{Faulty, Plan};
use crate::storage::memory::Memory;
use crate::sweep::trial::{Hand, POISON, failures};

const LIMIT: Duration = Duration::from_secs(10);

fn holder(agent: &str) -> Holder {
    Holder {
        agent: agent.to_owned(),
        ..Holder::default()
    }
}

/// Claims the next epoch as `agent`, and leaves with this word or without one.
async fn hold(store: &dyn Storage, job: &Job, agent: &str, left: Option<&str>) {
    let terms = Terms::default();
    let look = lease::look(store, job, &terms).await.unwrap();
    let claimant = Claimant {
        nonce: Nonce::from_bits(u128::from(fastrand::u64(..))),
        holder: holder(agent),
        attempt: 1,
        reason: LeaseReason::Released,
    };
    let claim = lease::claim(store, &BootClock, job, &terms, &look, &claimant, LIMIT).await;
    let Claim::Won(lease) = claim.unwrap() else {
        panic!("{agent} was not alone");
    };
    if let Some(word) = left {
        let released = lease::release(store, job, &terms, &lease.record, word, LIMIT).await;
        released.unwrap();
    }
}

#[tokio::test]
async fn only_a_trials_own_failures_are_counted() {
    let store = Memory::new();
    let job = Job::new("sweeps/s/trials/t").unwrap();
    assert_eq!(failures(&store, &job).await.unwrap(), 0);
    let steps = [
        ("a", Some("preempted"), 0),
        ("b", Some("oom_killed"), 1),
        // Silent, which could be a fault of the trial.
        ("c", None, 2),
        ("d", Some("expired"), 2),
        ("e", Some("store_unavailable"), 2),
        ("f", Some("failed"), 3),
    ];
    for (agent, left, expected) in steps {
        hold(&store, &job, agent, left).await;
        assert_eq!(failures(&store, &job).await.unwrap(), expected, "{agent}");
    }
    // One that lost its lease and took it up again itself.
    hold(&store, &job, "g", None).await;
    hold(&store, &job, "g", Some("preempted")).await;
    assert_eq!(failures(&store, &job).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn of_many_workers_one_writes_the_end_whatever_the_store_does() {
    for seed in 0..30 {
        let memory: Arc<dyn Storage> = Arc::new(Memory::new());
        let job = Job::new("sweeps/s/trials/t").unwrap();
        hold(&*memory, &job, "first", Some("failed")).await;
        let plan = Plan {
            seed,
            fail_before: 0.1,
            fail_after: 0.1,
            conflict: 0.05,
            delay: 0.2,
            late: 0.05,
            delay_max: Duration::from_secs(1),
            ..Plan::default()
        };
        let clock: Arc<dyn Clock> = Arc::new(BootClock);
        let store: Arc<dyn Storage> =
            Arc::new(Faulty::new(Arc::clone(&memory), Arc::clone(&clock), plan));
        let terms = Terms::default();
        let worker = |i: u32| {
            let (store, clock, job) = (Arc::clone(&store), Arc::clone(&clock), job.clone());
            async move {
                for _ in 0..50 {
                    let look = lease::look(&*store, &job, &terms).await;
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..50))).await;
                    let Ok(look) = look else { continue };
                    match look.standing() {
                        Standing::Done => return,
                        Standing::Released => {}
                        _ => continue,
                    }
                    let hand = Hand {
                        store: &*store,
                        clock: &*clock,
                        terms: &terms,
                        holder: &holder(&format!("w{i}")),
                    };
                    hand.conclude(&job, &look, POISON).await.ok();
                }
            }
        };
        let workers: Vec<_> = (0..6).map(|i| tokio::spawn(worker(i))).collect();
        for worker in workers {
            worker.await.unwrap();
        }
        let look = lease::look(&*memory, &job, &terms).await.unwrap();
        let ends = memory.list(&job.finals(), None, 100).await.unwrap();
        // A worker whose own claim was lost on the way may have left the trial to a ttl's end.
        let done = look.standing() == Standing::Done;
        assert!(
            ends.len() <= 1 && done == (ends.len() == 1),
            "seed {seed}: {ends:?}"
        );
        assert!(done || look.standing() == Standing::Held, "seed {seed}");
    }
}

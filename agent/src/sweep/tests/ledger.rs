//! The ledger under races and faults: nobody overspends, nothing is counted twice or lost.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::BootClock;
use crate::storage::Storage;
use crate::storage::faults::{Fault, Faulty, Operation, Plan};
use crate::storage::memory::Memory;
use crate::sweep::{Ledger, Place, Reserve, usd};

const LIMIT: f64 = 1.0;
/// A claim's worst case, and what it really takes.
const CLAIM: u64 = 90_000;
const REAL: u64 = 37_000;
const WORKERS: usize = 12;

fn place() -> Place {
    Place::new("s").unwrap()
}

fn ledger(store: &Arc<dyn Storage>, owner: &str) -> Ledger {
    Ledger::new(store, &place(), LIMIT, owner)
}

/// Reads every entry and checks each against the one before: within the budget, and no money moved
/// but by one step. Gives what was spent in the end.
async fn check(store: &dyn Storage) -> u64 {
    let mut n = 0;
    let mut spent = 0;
    for entry in store.list(&place().budgets(), None, 100_000).await.unwrap() {
        let bytes = store.get(&entry.key).await.unwrap().bytes;
        let entry: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        n += 1;
        assert_eq!(entry["n"], n, "a gap");
        let reserved = entry["reserved"].as_array().unwrap().iter();
        let reserved: u64 = reserved.map(|it| it["microusd"].as_u64().unwrap()).sum();
        let now = entry["spent_microusd"].as_u64().unwrap();
        assert!(now >= spent, "{entry}");
        spent = now;
        assert!(usd(spent + reserved) <= LIMIT, "over the budget: {entry}");
    }
    spent
}

/// Reserves and settles until the budget is spent; how often.
async fn spend(store: Arc<dyn Storage>, owner: String) -> u64 {
    let mut ledger = ledger(&store, &owner);
    let mut claims = 0;
    loop {
        let trial = format!("{owner}-{claims}");
        match ledger.reserve(&trial, 1, CLAIM, 1_000_000).await.unwrap() {
            Reserve::Made => {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(1..20))).await;
                ledger.settle(&trial, REAL).await.unwrap();
                claims += 1;
            }
            Reserve::Short => tokio::time::sleep(Duration::from_millis(10)).await,
            Reserve::Spent => return claims,
        }
    }
}

async fn race(store: &Arc<dyn Storage>) -> u64 {
    let workers = (0..WORKERS).map(|i| tokio::spawn(spend(Arc::clone(store), format!("w{i}"))));
    let mut claims = 0;
    for worker in workers.collect::<Vec<_>>() {
        claims += worker.await.unwrap();
    }
    claims
}

/// As many as fit: another claim's worst case would not.
fn expected() -> u64 {
    (1_000_000 - CLAIM) / REAL + 1
}

#[tokio::test(start_paused = true)]
async fn many_workers_spend_the_budget_and_no_more() {
    let store: Arc<dyn Storage> = Arc::new(Memory::new());
    let claims = race(&store).await;
    assert_eq!(claims, expected());
    assert_eq!(check(&*store).await, claims * REAL);
}

#[tokio::test(start_paused = true)]
async fn lost_late_and_refused_requests_move_no_money() {
    for seed in 0..20 {
        let memory: Arc<dyn Storage> = Arc::new(Memory::new());
        let plan = Plan {
            seed,
            fail_before: 0.05,
            fail_after: 0.1,
            conflict: 0.05,
            slow_down: 0.05,
            delay: 0.1,
            late: 0.1,
            delay_max: Duration::from_secs(2),
            ..Plan::default()
        };
        let store: Arc<dyn Storage> =
            Arc::new(Faulty::new(Arc::clone(&memory), Arc::new(BootClock), plan));
        let claims = race(&store).await;
        assert_eq!(claims, expected(), "seed {seed}");
        assert_eq!(check(&*memory).await, claims * REAL, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reservation_whose_answer_never_came_is_given_back() {
    let memory: Arc<dyn Storage> = Arc::new(Memory::new());
    let faulty = Arc::new(Faulty::new(
        Arc::clone(&memory),
        Arc::new(BootClock),
        Plan::default(),
    ));
    let store: Arc<dyn Storage> = Arc::clone(&faulty) as Arc<dyn Storage>;
    let mut own = ledger(&store, "a");
    assert_eq!(own.reserve("t", 1, 1, 1).await.unwrap(), Reserve::Made);
    own.settle("t", 1).await.unwrap();
    // It arrives long after it was given up.
    faulty.next(Operation::Create, Fault::Late(Duration::from_secs(90)));
    for _ in 0..100 {
        faulty.next(Operation::Create, Fault::Before);
    }
    own.reserve("t", 2, CLAIM, 1).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(120)).await;
    let mut other = ledger(&memory, "b");
    assert_eq!(other.refresh().await.unwrap().reserved.len(), 1);
    let mut own = ledger(&memory, "a");
    assert_eq!(own.reserve("u", 1, CLAIM, 1).await.unwrap(), Reserve::Made);
    let account = other.refresh().await.unwrap();
    assert_eq!(account.reserved.len(), 1);
    assert_eq!(account.reserved[0].trial, "u");
}

#[tokio::test]
async fn a_dead_workers_reservation_is_booked_once() {
    let store: Arc<dyn Storage> = Arc::new(Memory::new());
    let (mut dead, mut one) = (ledger(&store, "dead"), ledger(&store, "one"));
    let mut two = ledger(&store, "two");
    dead.reserve("t", 1, 600_000, 1).await.unwrap();
    assert_eq!(
        one.reserve("u", 1, 600_000, 1).await.unwrap(),
        Reserve::Short
    );
    let left = one.refresh().await.unwrap().reserved[0].clone();
    one.reclaim(&left, 100_000).await.unwrap();
    two.reclaim(&left, 200_000).await.unwrap();
    // It was alive after all, and late.
    dead.settle("t", 300_000).await.unwrap();
    assert_eq!(check(&*store).await, 100_000);
    assert_eq!(
        one.reserve("u", 1, 600_000, 1).await.unwrap(),
        Reserve::Made
    );
    // More than was reserved is never booked for the dead.
    let made = two.refresh().await.unwrap().reserved[0].clone();
    two.reclaim(&made, 900_000).await.unwrap();
    assert_eq!(check(&*store).await, 700_000);
    assert_eq!(
        two.reserve("v", 1, 400_000, 1).await.unwrap(),
        Reserve::Spent
    );
}

//! Tests of `money`: what the dead have reserved comes back, and what they spent does not.

use super::*;
use crate::job::{BeatRecord, LeaseReason, Nonce, VERSION, to_bytes};
use crate::lease::{Claim, Claimant};
use crate::storage::memory::Memory;

/// The boot clock of a test: tokio's, paused.
struct Paused(tokio::time::Instant);

impl Clock for Paused {
    fn now(&self) -> Moment {
        Moment::since_boot(self.0.elapsed())
    }
}

/// A dollar is a thousand seconds, and a claim may last a thousand.
const PRICE: u64 = 3_600_000;
const CLAIM: u64 = 1_000_000;

fn cashier(store: &Arc<dyn Storage>, clock: &Arc<dyn Clock>, agent: &str) -> Cashier {
    let place = Place::new("s").unwrap();
    let holder = Holder {
        agent: agent.to_owned(),
        ..Holder::default()
    };
    Cashier {
        store: Arc::clone(store),
        clock: Arc::clone(clock),
        terms: Terms::default(),
        ledger: Ledger::new(store, &place, 1.5, agent),
        place,
        holder,
        claim_microusd: CLAIM,
        microusd_per_hour: PRICE,
        suspects: BTreeMap::new(),
    }
}

async fn claim(it: &Cashier, job: &Job) -> LeaseRecord {
    let look = lease::look(&*it.store, job, &it.terms).await.unwrap();
    let claimant = Claimant {
        nonce: Nonce::from_bits(1),
        holder: it.holder.clone(),
        attempt: 1,
        reason: LeaseReason::First,
    };
    let limit = Duration::from_secs(5);
    let (store, clock) = (&*it.store, &*it.clock);
    let claim = lease::claim(store, clock, job, &it.terms, &look, &claimant, limit).await;
    match claim.unwrap() {
        Claim::Won(lease) => lease.record,
        other => panic!("{other:?}"),
    }
}

async fn beat(store: &dyn Storage, job: &Job, lease: &LeaseRecord, seq: u64) {
    let record = BeatRecord {
        version: VERSION,
        epoch: lease.epoch,
        seq,
        nonce: lease.nonce.clone(),
        step: seq,
        spent_usd: 0.0,
        machine_usd: 0.0,
    };
    store
        .put(&job.beat(lease.epoch), to_bytes(&record))
        .await
        .unwrap();
}

async fn grants(it: &mut Cashier, job: &Job) -> bool {
    matches!(it.grant("u", job, 1).await.unwrap(), Grant::For(_))
}

fn world() -> (Arc<dyn Storage>, Arc<dyn Clock>, Job, Job) {
    let clock: Arc<dyn Clock> = Arc::new(Paused(tokio::time::Instant::now()));
    let store: Arc<dyn Storage> = Arc::new(Memory::with_clock(Arc::clone(&clock)));
    let place = Place::new("s").unwrap();
    let (t, u) = (place.trial("t").unwrap(), place.trial("u").unwrap());
    (store, clock, t, u)
}

#[tokio::test(start_paused = true)]
async fn a_silent_holders_money_comes_back_once_it_cannot_train_any_more() {
    let (store, clock, t, u) = world();
    let (mut dying, mut other) = (cashier(&store, &clock, "a"), cashier(&store, &clock, "b"));
    assert!(matches!(
        dying.grant("t", &t, 1).await.unwrap(),
        Grant::For(_)
    ));
    let lease = claim(&dying, &t).await;
    for seq in 1..=20 {
        beat(&*store, &t, &lease, seq).await;
        assert!(!grants(&mut other, &u).await, "it lives: beat {seq}");
        tokio::time::sleep(Duration::from_secs(15)).await;
    }
    // 300 s have passed, the last beat was 15 s ago; a ttl of 60 s has to pass.
    let mut waited = 15;
    while !grants(&mut other, &u).await {
        tokio::time::sleep(Duration::from_secs(5)).await;
        waited += 5;
        assert!(waited < 200, "never");
    }
    assert!(waited >= 65, "taken after {waited} s");
    // Nobody can use the dead one's epoch: another has taken the next.
    let look = lease::look(&*store, &t, &other.terms).await.unwrap();
    assert_eq!((look.epoch(), look.standing()), (2, Standing::Released));
    let account = other.ledger.refresh().await.unwrap();
    // From the reservation to the last beat, a ttl, and the margin: a thousandth each second.
    assert_eq!(account.spent_microusd, 1000 * (285 + 60 + MARGIN_S));
    assert_eq!(account.reserved.len(), 1);
    // It wakes up: what is booked stays booked.
    dying.settle("t", clock.now()).await.unwrap();
    let spent = other.ledger.refresh().await.unwrap().spent_microusd;
    assert_eq!(spent, 1000 * (285 + 60 + MARGIN_S));
}

#[tokio::test(start_paused = true)]
async fn one_that_never_claimed_is_fenced_and_has_spent_nothing() {
    let (store, clock, t, u) = world();
    let (mut dying, mut other) = (cashier(&store, &clock, "a"), cashier(&store, &clock, "b"));
    assert!(matches!(
        dying.grant("t", &t, 1).await.unwrap(),
        Grant::For(_)
    ));
    assert!(!grants(&mut other, &u).await);
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert!(grants(&mut other, &u).await);
    assert_eq!(other.ledger.refresh().await.unwrap().spent_microusd, 0);
    // The epoch that was paid for is gone.
    let look = lease::look(&*store, &t, &other.terms).await.unwrap();
    assert_eq!((look.epoch(), look.standing()), (1, Standing::Released));
}

#[tokio::test(start_paused = true)]
async fn whoever_takes_a_trial_over_books_what_the_one_before_spent() {
    let (store, clock, t, _) = world();
    let (mut dying, mut other) = (cashier(&store, &clock, "a"), cashier(&store, &clock, "b"));
    assert!(matches!(
        dying.grant("t", &t, 1).await.unwrap(),
        Grant::For(_)
    ));
    let lease = claim(&dying, &t).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    beat(&*store, &t, &lease, 1).await;
    let granted = other.grant("t", &t, 2).await.unwrap();
    // 0.163 spent, 1 reserved, of 1.5.
    assert!(matches!(granted, Grant::For(_)));
    let account = other.ledger.refresh().await.unwrap();
    assert_eq!(account.spent_microusd, 1000 * (100 + 60 + MARGIN_S));
    assert_eq!(account.reserved[0].owner, "b");
}

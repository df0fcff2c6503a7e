//! The lease against a store in memory, with and without faults. Time is tokio's, paused.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::job::{CommitRecord, to_bytes};
use crate::storage::Created;
use crate::storage::faults::{Fault, Faulty, Operation, Plan};
use crate::storage::memory::Memory;

const DEADLINE: Duration = Duration::from_secs(60);

/// The boot clock of a test: tokio's.
struct Paused(tokio::time::Instant);

impl Clock for Paused {
    fn now(&self) -> Moment {
        Moment::since_boot(self.0.elapsed())
    }
}

struct World {
    memory: Arc<Memory>,
    store: Arc<Faulty>,
    clock: Arc<dyn Clock>,
    job: Job,
    terms: Terms,
}

impl World {
    fn new(plan: Plan) -> Self {
        Self::of(plan, |memory| memory)
    }

    fn of(plan: Plan, change: impl FnOnce(Memory) -> Memory) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(Paused(tokio::time::Instant::now()));
        let memory = Arc::new(change(Memory::with_clock(Arc::clone(&clock))));
        let store = Faulty::new(
            Arc::clone(&memory) as Arc<dyn Storage>,
            Arc::clone(&clock),
            plan,
        );
        Self {
            memory,
            store: Arc::new(store),
            clock,
            job: Job::new("j").unwrap(),
            terms: Terms::default(),
        }
    }

    async fn look(&self) -> Look {
        look(self.memory.as_ref(), &self.job, &self.terms)
            .await
            .unwrap()
    }

    async fn try_claim(&self, look: &Look, claimant: &Claimant) -> Result<Claim, JobError> {
        let (store, clock) = (self.store.as_ref(), self.clock.as_ref());
        claim(
            store,
            clock,
            &self.job,
            &self.terms,
            look,
            claimant,
            DEADLINE,
        )
        .await
    }

    async fn win(&self, bits: u128, reason: LeaseReason) -> Lease {
        let look = self.look().await;
        match self
            .try_claim(&look, &claimant(bits, reason))
            .await
            .unwrap()
        {
            Claim::Won(lease) => lease,
            other => panic!("expected to win, got {other:?}"),
        }
    }

    async fn beat(&self, lease: &Lease, seq: u64) -> Result<Beat, JobError> {
        let record = BeatRecord {
            version: VERSION,
            epoch: lease.epoch(),
            seq,
            nonce: lease.record.nonce.clone(),
            step: 0,
            spent_usd: 0.0,
            machine_usd: 0.0,
        };
        let (store, clock) = (self.store.as_ref(), self.clock.as_ref());
        beat(store, clock, &self.job, &self.terms, &record).await
    }

    async fn commit(&self, epoch: u64, step: u64) -> CommitId {
        let record = CommitRecord {
            version: VERSION,
            epoch,
            step,
            nonce: Nonce::from_bits(u128::from(1000 * epoch + step)),
            files: Vec::new(),
            parent: None,
            config_hash: String::new(),
            val_loss: None,
            run_digest: None,
        };
        let key = self.job.commit(record.id());
        let created = self.memory.create(&key, to_bytes(&record)).await.unwrap();
        assert!(matches!(created, Created::New(_)), "{key}");
        record.id()
    }
}

fn claimant(bits: u128, reason: LeaseReason) -> Claimant {
    Claimant {
        nonce: Nonce::from_bits(bits),
        holder: Holder {
            agent: format!("agent {bits}"),
            boot: "b".to_owned(),
            ..Holder::default()
        },
        attempt: 1,
        reason,
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_goes_from_free_to_held_to_released_to_done() {
    let world = World::new(Plan::default());
    assert_eq!(world.look().await.standing(), Standing::Free);
    let lease = world.win(1, LeaseReason::First).await;
    assert_eq!((lease.epoch(), lease.base()), (1, None));
    assert_eq!(world.look().await.standing(), Standing::Held);
    assert_eq!(world.look().await.top.unwrap().beat, None);
    assert!(matches!(world.beat(&lease, 1).await, Ok(Beat::Held { .. })));
    assert!(world.look().await.top.unwrap().beat.is_some());

    let (store, job, terms) = (world.store.as_ref(), &world.job, &world.terms);
    for _ in 0..2 {
        // Again, as after a lost answer: still fine.
        release(store, job, terms, &lease.record, "stopped", DEADLINE)
            .await
            .unwrap();
    }
    assert_eq!(world.look().await.standing(), Standing::Released);
    let next = world.win(2, LeaseReason::Released).await;
    assert_eq!(next.epoch(), 2);
    assert!(matches!(world.beat(&lease, 2).await, Ok(Beat::Lost(Some(by))) if by == next.record));

    let end = |lease: &Lease| FinalRecord {
        version: VERSION,
        epoch: lease.epoch(),
        nonce: lease.record.nonce.clone(),
        status: "completed".to_owned(),
        reason: String::new(),
        exit: 0,
        cost_usd: None,
        commit: None,
    };
    // A zombie's end is void.
    finish(store, job, terms, &end(&lease), DEADLINE)
        .await
        .unwrap();
    assert_eq!(world.look().await.standing(), Standing::Held);
    finish(store, job, terms, &end(&next), DEADLINE)
        .await
        .unwrap();
    release(store, job, terms, &next.record, "completed", DEADLINE)
        .await
        .unwrap();
    assert_eq!(world.look().await.standing(), Standing::Done);
}

#[tokio::test(start_paused = true)]
async fn of_many_racers_one_wins_whatever_the_store_does() {
    for seed in 0..40 {
        let world = Arc::new(World::new(Plan {
            seed,
            fail_before: 0.1,
            fail_after: 0.2,
            conflict: 0.3,
            slow_down: 0.05,
            delay: 0.1,
            delay_max: Duration::from_secs(30),
            late: 0.1,
            ..Plan::default()
        }));
        let mut racers = tokio::task::JoinSet::new();
        for racer in 1..=20 {
            let world = Arc::clone(&world);
            racers.spawn(async move {
                let claimant = claimant(racer, LeaseReason::First);
                let free = Look { top: None };
                let mut answer = world.try_claim(&free, &claimant).await;
                // What is not known is found out with the same nonce.
                for _ in 0..50 {
                    if answer.is_ok() {
                        break;
                    }
                    let (job, terms) = (&world.job, &world.terms);
                    let Ok(seen) = look(world.store.as_ref(), job, terms).await else {
                        continue;
                    };
                    answer = match &seen.top {
                        Some(top) if top.record.nonce != claimant.nonce => {
                            Ok(Claim::Lost(top.record.clone()))
                        }
                        _ => world.try_claim(&seen, &claimant).await,
                    };
                }
                answer.unwrap_or_else(|e| panic!("seed {seed}: {e}"))
            });
        }
        let answers = racers.join_all().await;
        let won: Vec<_> = answers
            .iter()
            .filter_map(|answer| match answer {
                Claim::Won(lease) => Some(&lease.record),
                _ => None,
            })
            .collect();
        assert_eq!(won.len(), 1, "seed {seed}");
        let top = world.look().await.top.unwrap();
        assert_eq!(top.record, *won[0], "seed {seed}");
        assert_eq!(top.record.epoch, 1, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn lost_answers_and_conflicts_are_settled_by_the_nonce() {
    for fault in [
        Fault::After,
        Fault::Conflict,
        Fault::Before,
        Fault::SlowDown,
    ] {
        let world = World::new(Plan::default());
        world.store.next(Operation::Create, fault);
        let lease = world.win(1, LeaseReason::First).await;
        assert_eq!(
            world.look().await.top.unwrap().record,
            lease.record,
            "{fault:?}"
        );
    }
    // The answer is lost, and so is every look at what became of it: not known, then found.
    let world = World::new(Plan::default());
    world.store.next(Operation::Create, Fault::After);
    for _ in 0..2 {
        world.store.next(Operation::Get, Fault::Before);
    }
    let one = claimant(1, LeaseReason::First);
    let free = Look { top: None };
    let (store, clock) = (world.store.as_ref(), world.clock.as_ref());
    let short = Duration::from_millis(150);
    let unknown = claim(store, clock, &world.job, &world.terms, &free, &one, short).await;
    assert!(unknown.is_err_and(|e| e.is_transient()));
    let rival = claimant(2, LeaseReason::First);
    assert!(
        matches!(world.try_claim(&free, &rival).await, Ok(Claim::Lost(by)) if by.nonce == one.nonce)
    );
    // Somebody may be about to take it by now, so it is not ours, but a dead holder's.
    let seen = world.look().await;
    assert!(world.try_claim(&seen, &one).await.is_err());
    assert_eq!(world.look().await.top.unwrap().beat, None, "no beat for it");
    assert_eq!(world.win(3, LeaseReason::Restarted).await.epoch(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_took_long_to_create_is_not_ours() {
    let world = World::new(Plan::default());
    for _ in 0..10 {
        world.store.next(Operation::Create, Fault::Before);
    }
    let one = claimant(1, LeaseReason::First);
    let claimed = world.try_claim(&Look { top: None }, &one).await;
    assert!(claimed.is_err_and(|e| e.is_transient()));
    assert_eq!(world.look().await.top.unwrap().record.nonce, one.nonce);
    // To revoke is not to hold: that may take long.
    for _ in 0..10 {
        world.store.next(Operation::Create, Fault::Before);
    }
    let (store, clock, job) = (world.store.as_ref(), world.clock.as_ref(), &world.job);
    let nonce = Nonce::from_bits(9);
    let revoked = revoke(store, clock, job, &world.terms, nonce, DEADLINE).await;
    assert!(revoked.unwrap().is_some_and(|record| record.is_revoked()));
}

#[tokio::test(start_paused = true)]
async fn the_base_is_the_fence() {
    let world = World::new(Plan::default());
    world.win(1, LeaseReason::First).await;
    world.commit(1, 100).await;
    let newest = world.commit(1, 200).await;
    assert_eq!(
        world.win(2, LeaseReason::Expired).await.base(),
        Some(newest)
    );
    // A zombie's, and of an epoch long gone: neither is a base.
    world.commit(1, 300).await;
    assert_eq!(
        world.win(3, LeaseReason::Expired).await.base(),
        Some(newest)
    );
    let own = world.commit(3, 150).await;
    assert_eq!(world.win(4, LeaseReason::Expired).await.base(), Some(own));
}

#[tokio::test(start_paused = true)]
async fn a_beat_is_valid_from_before_it_was_sent() {
    let world = World::new(Plan::default());
    let lease = world.win(1, LeaseReason::First).await;
    let sent = world.clock.now();
    world
        .store
        .next(Operation::Put, Fault::DelayAfter(Duration::from_secs(7)));
    let answer = world.beat(&lease, 1).await.unwrap();
    let valid_until = sent + world.terms.validity();
    assert_eq!(answer, Beat::Held { valid_until });
    assert!(world.clock.now() > sent);
    // An answer after ttl/6 is none.
    let sent = world.clock.now();
    world
        .store
        .next(Operation::Put, Fault::DelayAfter(Duration::from_secs(11)));
    assert!(world.beat(&lease, 2).await.is_err_and(|e| e.is_transient()));
    assert_eq!(world.clock.now().since(sent), world.terms.request_limit());
    // A beat that got through is no proof without the look at the next epoch.
    world.store.next(Operation::Get, Fault::Before);
    assert!(world.beat(&lease, 3).await.is_err());
    // And a loss is one even if the beat itself did not get through.
    world.win(2, LeaseReason::Restarted).await;
    world.store.next(Operation::Put, Fault::Before);
    assert!(matches!(
        world.beat(&lease, 4).await,
        Ok(Beat::Lost(Some(_)))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_sign_of_life_stops_a_takeover() {
    // Also where listings tell no tags.
    for change in [|memory| memory, Memory::without_listed_tags] {
        let world = World::of(Plan::default(), change);
        let lease = world.win(1, LeaseReason::First).await;
        world.beat(&lease, 1).await.unwrap();
        let seen = world.look().await;
        world.beat(&lease, 2).await.unwrap();
        let beaten = world.look().await;
        assert_ne!(beaten.top.unwrap().beat, seen.top.as_ref().unwrap().beat);
        let taker = claimant(2, LeaseReason::Expired);
        assert_eq!(world.try_claim(&seen, &taker).await.unwrap(), Claim::Alive);
        assert_eq!(world.look().await.epoch(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn revoking_takes_the_lease_and_releasing_gives_it_back() {
    let world = World::new(Plan::default());
    let lease = world.win(1, LeaseReason::First).await;
    let base = world.commit(1, 100).await;
    let (store, clock, job, terms) = (
        world.store.as_ref(),
        world.clock.as_ref(),
        &world.job,
        &world.terms,
    );
    world.store.next(Operation::Create, Fault::After);
    let nonce = Nonce::from_bits(9);
    let revoked = revoke(store, clock, job, terms, nonce, DEADLINE)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((revoked.epoch, revoked.base), (2, Some(base)));
    assert_eq!(revoked.holder.agent, Holder::ORCHESTRATOR);
    assert_eq!(world.look().await.standing(), Standing::Revoked);
    assert!(matches!(world.beat(&lease, 1).await, Ok(Beat::Lost(Some(by))) if by.is_revoked()));
    let again = revoke(store, clock, job, terms, Nonce::from_bits(10), DEADLINE)
        .await
        .unwrap();
    assert_eq!(again, Some(revoked.clone()));
    release(store, job, terms, &revoked, "go on", DEADLINE)
        .await
        .unwrap();
    assert_eq!(world.look().await.standing(), Standing::Released);
    assert_eq!(world.win(3, LeaseReason::Released).await.base(), Some(base));
}

#[tokio::test(start_paused = true)]
async fn an_error_is_never_nobody() {
    let world = World::new(Plan::default());
    world.store.set_down(true);
    let (store, job, terms) = (world.store.as_ref(), &world.job, &world.terms);
    assert!(
        look(store, job, terms)
            .await
            .is_err_and(|e| e.is_transient())
    );
    world.store.set_down(false);
    world.memory.put(&job.lease(1), "{".into()).await.unwrap();
    let broken = look(store, job, terms).await;
    assert!(
        matches!(broken, Err(JobError::Malformed { .. })),
        "{broken:?}"
    );
    let newer = r#"{"version": 2, "epoch": 1}"#;
    world.memory.put(&job.lease(1), newer.into()).await.unwrap();
    let broken = look(store, job, terms).await.unwrap_err().to_string();
    assert!(broken.contains("newer than this program's 1"), "{broken}");
}

fn top(epoch: u64, beat: Option<&str>, ttl_s: u64) -> Top {
    Top {
        record: LeaseRecord {
            version: VERSION,
            epoch,
            nonce: Nonce::from_bits(1),
            holder: Holder::default(),
            ttl_ms: 1000 * ttl_s,
            base: None,
            attempt: 1,
            reason: LeaseReason::First,
        },
        beat: beat.map(str::to_owned),
        released: false,
        end: None,
    }
}

#[test]
fn a_watch_expires_only_after_an_unchanged_sign() {
    let terms = Terms::default();
    let at = |ms: u64| Moment::since_boot(Duration::from_millis(ms));
    let mut watch = Watch::default();
    // 60 s * 1.01 + 5 s
    assert_eq!(
        watch.see(&terms, &top(1, None, 60), at(0)),
        Silence::Until(at(65_600))
    );
    assert_eq!(
        watch.see(&terms, &top(1, None, 60), at(65_599)),
        Silence::Until(at(65_600))
    );
    assert_eq!(
        watch.see(&terms, &top(1, Some("a"), 60), at(65_600)),
        Silence::Until(at(131_200))
    );
    assert_eq!(
        watch.see(&terms, &top(1, Some("b"), 60), at(131_199)),
        Silence::Until(at(196_799))
    );
    assert_eq!(
        watch.see(&terms, &top(2, Some("b"), 60), at(196_798)),
        Silence::Until(at(262_398))
    );
    // The holder's own ttl counts, not ours.
    assert_eq!(
        watch.see(&terms, &top(2, Some("b"), 120), at(262_398)),
        Silence::Until(at(322_998))
    );
    assert_eq!(
        watch.see(&terms, &top(2, Some("b"), 60), at(262_398)),
        Silence::Expired
    );
}

/// Holder and taker with clocks whose rates differ by up to rho: the holder's certainty ends before
/// any takeover, over random beats, delays and outages.
#[test]
fn nobody_takes_over_while_the_holder_is_certain() {
    let terms = Terms::default();
    for seed in 0..2_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let rates = [1.0 - terms.rho / 2.0, 1.0, 1.0 + terms.rho / 2.0];
        let (holder_rate, taker_rate) = (
            *random.choice(&rates).unwrap(),
            *random.choice(&rates).unwrap(),
        );
        let clock =
            |true_s: f64, rate: f64| Moment::since_boot(Duration::from_secs_f64(true_s * rate));
        // True time of each beat's sending, landing in the store.
        let (mut now, mut beats) = (10.0, Vec::new());
        for _ in 0..8 {
            let lands = now + 10.0 * random.f64();
            if random.f64() < 0.7 {
                beats.push((now, lands));
            }
            now = lands.max(now + 15.0)
                + if random.u8(0..8) == 0 {
                    60.0 * random.f64()
                } else {
                    0.0
                };
        }
        let mut watch = Watch::default();
        let mut at = 10.0 + random.f64();
        let expired = loop {
            let landed = beats.iter().rposition(|(_, lands)| *lands <= at);
            let tag = landed.map(|n| n.to_string());
            let answered = at + random.f64();
            if watch.see(
                &terms,
                &top(1, tag.as_deref(), 60),
                clock(answered, taker_rate),
            ) == Silence::Expired
            {
                // The claim looks once more at the beat.
                if beats
                    .iter()
                    .rposition(|(_, lands)| *lands <= answered)
                    .map(|n| n.to_string())
                    == tag
                {
                    break answered;
                }
            }
            at = answered + 5.0 * random.f64();
        };
        // Beats that landed before the takeover are the only ones that extend anything: later ones
        // find the next epoch.
        let last = beats
            .iter()
            .filter(|(_, lands)| *lands <= expired)
            .map(|(sent, _)| *sent);
        let sent = last.fold(0.0, f64::max);
        let valid_until = clock(sent, holder_rate) + terms.validity();
        assert!(valid_until < clock(expired, holder_rate), "seed {seed}");
    }
}

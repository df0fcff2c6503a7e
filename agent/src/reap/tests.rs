//! Tests of `reap`: who is left behind, and who is not.

use super::*;
use crate::clock::Moment;
use crate::job::{BeatRecord, FinalRecord, Holder, LeaseReason, LeaseRecord, Nonce, VERSION};
use crate::job::{ReleasedRecord, to_bytes};
use crate::storage::memory::Memory;

const TTL: Duration = Duration::from_secs(60);

/// The boot clock of a test: tokio's, paused.
struct Paused(tokio::time::Instant);

impl Clock for Paused {
    fn now(&self) -> Moment {
        Moment::since_boot(self.0.elapsed())
    }
}

fn nonce() -> Nonce {
    Nonce::from_bits(7)
}

async fn hold(store: &dyn Storage, id: &str, epoch: u64) -> Job {
    let job = Job::new(id).unwrap();
    let record = LeaseRecord {
        version: VERSION,
        epoch,
        nonce: nonce(),
        holder: Holder {
            agent: format!("host-of-{id}"),
            provider: Some("vast".to_owned()),
            instance: Some("i-1".to_owned()),
            ..Holder::default()
        },
        ttl_ms: u64::try_from(TTL.as_millis()).unwrap(),
        base: None,
        attempt: 1,
        reason: LeaseReason::First,
    };
    store
        .create(&job.lease(epoch), to_bytes(&record))
        .await
        .unwrap();
    beat(store, &job, epoch, 1).await;
    job
}

async fn beat(store: &dyn Storage, job: &Job, epoch: u64, seq: u64) {
    let record = BeatRecord {
        version: VERSION,
        epoch,
        seq,
        nonce: nonce(),
        step: 40 + seq,
        spent_usd: 0.5,
        machine_usd: 0.0,
    };
    store
        .put(&job.beat(epoch), to_bytes(&record))
        .await
        .unwrap();
}

async fn fill(store: &dyn Storage) -> Job {
    let released = hold(store, "released", 1).await;
    let record = ReleasedRecord {
        version: VERSION,
        epoch: 1,
        nonce: nonce(),
        reason: "preempted".to_owned(),
    };
    store
        .create(&released.released(1), to_bytes(&record))
        .await
        .unwrap();
    let done = hold(store, "done", 1).await;
    let end = FinalRecord {
        version: VERSION,
        epoch: 1,
        nonce: nonce(),
        status: "completed".to_owned(),
        reason: "succeeded".to_owned(),
        exit: 0,
        cost_usd: None,
        commit: None,
    };
    store
        .create(&done.final_of(1), to_bytes(&end))
        .await
        .unwrap();
    hold(store, "dead", 1).await;
    hold(store, "dead", 2).await;
    hold(store, "sweeps/s/trials/0123", 1).await;
    hold(store, "alive", 1).await
}

#[tokio::test(start_paused = true)]
async fn a_silent_job_is_listed_and_a_live_or_ended_one_is_not() {
    let clock = Arc::new(Paused(tokio::time::Instant::now()));
    let store: Arc<dyn Storage> = Arc::new(Memory::with_clock(clock.clone()));
    let alive = fill(&*store).await;
    let beats = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for seq in 2.. {
                tokio::time::sleep(TTL / 4).await;
                beat(&*store, &alive, 1, seq).await;
            }
        })
    };
    let found = reap(&store, &*clock, Silent::Watched, Some(3600.0)).await;
    beats.abort();
    let found = found.unwrap();
    let names: Vec<(&str, u64)> = found.iter().map(|it| (it.job.as_str(), it.epoch)).collect();
    assert_eq!(names, [("dead", 2), ("sweeps/s/trials/0123", 1)]);
    assert_eq!(found[0].holder, "host-of-dead");
    assert_eq!(found[0].instance.as_deref(), Some("i-1"));
    assert_eq!((found[0].step, found[0].spent_usd), (Some(41), Some(0.5)));
    // A dollar a second, for as long as it was watched.
    let wasted = found[0].wasted_usd.unwrap();
    assert!((60.0..100.0).contains(&wasted), "{wasted}");
}

#[tokio::test(start_paused = true)]
async fn the_stores_clock_tells_without_watching() {
    let clock = Arc::new(Paused(tokio::time::Instant::now()));
    let store: Arc<dyn Storage> = Arc::new(Memory::with_clock(clock.clone()));
    fill(&*store).await;
    let since = |since| reap(&store, &*clock, Silent::Since(since), None);
    assert_eq!(since(Duration::from_secs(3600)).await.unwrap(), []);
    assert_eq!(since(Duration::ZERO).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_job_behind_many_objects_is_found() {
    let store: Arc<dyn Storage> = Arc::new(Memory::new());
    for step in 0..3000 {
        let id = crate::job::CommitId { epoch: 1, step };
        let job = Job::new("big").unwrap();
        let key = format!("{}model", job.data(id, &nonce()));
        store.put(&key, "x".into()).await.unwrap();
        store
            .put(&job.log_segment(1, step), "x".into())
            .await
            .unwrap();
        store
            .put(&format!("strange/data/{step:08}"), "x".into())
            .await
            .unwrap();
    }
    hold(&*store, "big", 1).await;
    // A folder of a job's own name is no folder of a job.
    hold(&*store, "my/data/set", 1).await;
    hold(&*store, "zebra", 1).await;
    let jobs = jobs(&*store).await.unwrap();
    let ids: Vec<&str> = jobs.iter().map(Job::id).collect();
    assert_eq!(ids, ["big", "my/data/set", "zebra"]);
}

//! Everything that can be wrong with a job in a store is told.

use std::sync::Arc;

use bytes::Bytes;

use crate::checkpoints::kit::{Halting, Host, World, allowed, id};
use crate::checkpoints::{Depth, Policy, prune, verify};
use crate::job::{BeatRecord, FinalRecord, VERSION, to_bytes};
use crate::storage::Storage;

/// Two commits of epoch 1, one of epoch 2.
async fn sound() -> World {
    let (world, host) = (World::new(), Host::new());
    world.lease(1, None).await;
    host.save(10, 0, None);
    host.save(20, 0, None);
    host.save(30, 0, None);
    world.publish(&host, 1, 10, None).await;
    world.publish(&host, 1, 20, Some(id(1, 10))).await;
    world.lease(2, Some(id(1, 20))).await;
    world.publish(&host, 2, 30, Some(id(1, 20))).await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_sound_job_has_no_problems() {
    let report = sound().await.assert_sound("sound").await;
    assert_eq!(report.epochs, 2);
    assert_eq!(report.history, [id(2, 30), id(1, 20), id(1, 10)]);
    assert_eq!((report.orphans, report.unnamed_files), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_pruned_meanwhile_is_no_problem() {
    for requests in 0.. {
        let world = sound().await;
        let (memory, job) = (world.memory.clone(), world.job.clone());
        let transfer = world.transfer;
        let pruning = Box::pin(async move {
            let policy = Policy {
                keep_best: false,
                keep_last: 2,
                ..Policy::default()
            };
            let pruned = prune(&memory, &job, 2, None, &policy, &transfer, &allowed).await;
            assert_eq!(pruned.unwrap().commits, [id(1, 10)]);
        });
        let store = Halting::meanwhile(&world.memory, requests, pruning);
        let seen: Arc<dyn Storage> = store.clone();
        let report = verify(&seen, &world.job, Depth::Bytes, &world.transfer).await;
        let report = report.unwrap();
        if !store.happened() {
            assert!(requests > 10, "verify asks more than {requests} times");
            break;
        }
        assert_eq!(
            report.problems,
            [] as [&str; 0],
            "after {requests} requests"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn every_inconsistency_is_told() {
    let cases = [
        ("a lease is missing", "expected epoch 1"),
        ("a lease is no lease", "not a record of this protocol"),
        ("a lease is another epoch's", "epoch or base is off"),
        ("a stranger's lease", "no key of a job"),
        ("a stranger's commit", "no key of a job"),
        ("a stranger's data", "no key of a job"),
        ("a stranger's beat", "not by the holder"),
        ("a stranger's end", "not by the holder"),
        ("a commit of no epoch", "its epoch was never claimed"),
        ("a commit is another's", "expected commit"),
        ("a commit of a newer protocol", "newer than this program's"),
        ("two of one nonce", "same nonce"),
        ("the base is gone", "its commit is not there"),
        ("a file is gone", "not there"),
        ("a file is cut", "expected 200 bytes"),
        ("a file is flipped", "crc64nvme"),
    ];
    for (case, expected) in cases {
        let world = sound().await;
        spoil(&world, case).await;
        let report = verify(&world.memory, &world.job, Depth::Heads, &world.transfer).await;
        let report = report.unwrap();
        let told = report
            .problems
            .iter()
            .any(|problem| problem.contains(expected));
        assert!(told, "{case}: {:?}", report.problems);
    }
}

/// Makes the case true.
async fn spoil(world: &World, case: &str) {
    let (job, memory) = (&world.job, &world.memory);
    let put = async |key: String, body: Bytes| {
        memory.put(&key, body).await.unwrap();
    };
    let mut commit = world.commit(id(1, 20)).await;
    let file = job.key(&commit.files[0].key);
    let mut contents = memory.get(&file).await.unwrap().bytes.to_vec();
    let beat = BeatRecord {
        version: VERSION,
        epoch: 2,
        seq: 1,
        nonce: world.nonce(),
        step: 0,
        spent_usd: 0.0,
        machine_usd: 0.0,
    };
    match case {
        "a lease is missing" => memory.delete(&job.lease(1)).await.unwrap(),
        "a lease is no lease" => put(job.lease(1), "[]".into()).await,
        "a lease is another epoch's" => {
            let lease = memory.get(&job.lease(2)).await.unwrap().bytes;
            put(job.lease(1), lease).await;
        }
        "a stranger's lease" => put(format!("{}x.json", job.leases()), "{}".into()).await,
        "a stranger's commit" => put(format!("{}latest", job.commits()), "{}".into()).await,
        "a stranger's data" => put(format!("{}x", job.all_data()), "{}".into()).await,
        "a stranger's beat" => put(job.beat(2), to_bytes(&beat)).await,
        "a stranger's end" => {
            let end = FinalRecord {
                version: VERSION,
                epoch: 2,
                nonce: world.nonce(),
                status: "completed".to_owned(),
                reason: String::new(),
                exit: 0,
                cost_usd: None,
                commit: None,
            };
            put(job.final_of(2), to_bytes(&end)).await;
        }
        "a commit of no epoch" => {
            commit.epoch = 7;
            put(job.commit(id(7, 20)), to_bytes(&commit)).await;
        }
        "a commit is another's" => put(job.commit(id(1, 10)), to_bytes(&commit)).await,
        "a commit of a newer protocol" => {
            commit.version = VERSION + 1;
            put(job.commit(id(1, 20)), to_bytes(&commit)).await;
        }
        "two of one nonce" => {
            commit.step = 15;
            put(job.commit(id(1, 15)), to_bytes(&commit)).await;
        }
        "the base is gone" => memory.delete(&job.commit(id(1, 20))).await.unwrap(),
        "a file is gone" => memory.delete(&file).await.unwrap(),
        "a file is cut" => put(file, Bytes::from(contents[..150].to_vec())).await,
        _ => {
            contents[0] ^= 1;
            put(file, Bytes::from(contents)).await;
        }
    }
}

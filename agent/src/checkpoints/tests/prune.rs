//! What is removed, what stays, and kills in between.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::checkpoints::kit::{Halting, Host, World, allowed, id};
use crate::checkpoints::prune::superfluous;
use crate::checkpoints::{CheckpointError, Policy, Pruned, prune, sweep};
use crate::job::CommitId;

const HOUR: Duration = Duration::from_secs(3600);

/// Only what is never deleted.
const LEAST: Policy = Policy {
    settled: None,
    keep_last: 0,
    keep_best: false,
    keep_every: None,
};

async fn pruned(world: &World, epoch: u64, resumed: Option<CommitId>, policy: &Policy) -> Pruned {
    let (memory, job, transfer) = (&world.memory, &world.job, &world.transfer);
    prune(memory, job, epoch, resumed, policy, transfer, &allowed)
        .await
        .unwrap()
}

/// Epoch 1 with steps 10 to 50 upon which epoch 2 published 60 to 90.
async fn nine() -> World {
    let (world, host) = (World::new(), Host::new());
    let mut parent = None;
    for (epoch, steps) in [(1, 1..=5), (2, 6..=9)] {
        world.lease(epoch, parent).await;
        for step in steps {
            let loss = (step as f64 - 3.0).abs();
            host.save(10 * step, 0, Some(loss));
            parent = Some(world.publish(&host, epoch, 10 * step, parent).await);
        }
    }
    world
}

async fn left(world: &World) -> Vec<u64> {
    let listed = world
        .memory
        .list(&world.job.commits(), None, 100)
        .await
        .unwrap();
    let ids = listed
        .iter()
        .map(|entry| world.job.parse_commit(&entry.key).unwrap());
    ids.map(|id| id.step).collect()
}

#[tokio::test(start_paused = true)]
async fn what_the_policy_keeps_stays() {
    for (policy, resumed, expected) in [
        (LEAST, None, vec![50, 80, 90]),
        (LEAST, Some(id(1, 20)), vec![20, 50, 80, 90]),
        (
            Policy {
                settled: None,
                keep_last: 4,
                ..LEAST
            },
            None,
            vec![50, 60, 70, 80, 90],
        ),
        (
            Policy {
                keep_best: true,
                ..LEAST
            },
            None,
            vec![30, 50, 80, 90],
        ),
        (
            Policy {
                keep_every: Some(40),
                ..LEAST
            },
            None,
            vec![40, 50, 80, 90],
        ),
        (Policy::default(), Some(id(1, 50)), vec![30, 50, 70, 80, 90]),
    ] {
        let world = nine().await;
        let pruned = pruned(&world, 2, resumed, &policy).await;
        assert_eq!(left(&world).await, expected, "{policy:?}");
        assert_eq!(pruned.commits.len() + expected.len(), 9);
        assert!(pruned.bytes > 0);
        let report = world.assert_sound(&format!("{policy:?}")).await;
        assert_eq!(report.unnamed_files, 0, "data went with its commit");
        assert_eq!(world.history().await[0], id(2, 90));
    }
}

/// Never the base, the newest two or the one resumed from, whatever the policy.
#[test]
fn the_essential_ones_are_never_superfluous() {
    for seed in 0..3_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut commits = Vec::new();
        let (mut epoch, mut step) = (1, 1);
        for _ in 0..random.usize(0..12) {
            epoch += u64::from(random.u8(0..3) == 0);
            step += random.u64(1..9);
            let losses = [None, Some(f64::NAN), Some(random.f64())];
            commits.push((id(epoch, step), *random.choice(&losses).unwrap()));
        }
        commits.reverse();
        let kept: BTreeSet<CommitId> = commits
            .iter()
            .map(|(id, _)| *id)
            .filter(|_| random.u8(0..4) == 0)
            .collect();
        let policy = Policy {
            settled: None,
            keep_last: random.usize(0..5),
            keep_best: random.bool(),
            keep_every: [None, Some(0), Some(3)][random.usize(0..3)],
        };
        let gone = superfluous(&commits, &kept, &policy);
        for (place, (id, loss)) in commits.iter().enumerate() {
            let better = |other: &Option<f64>| other.is_some_and(|other| Some(other) < *loss);
            let best = loss.is_some_and(|loss| !loss.is_nan())
                && !commits.iter().any(|(_, other)| better(other));
            let major = policy.keep_every == Some(3) && id.step % 3 == 0;
            let stays = place < policy.keep_last.max(2)
                || kept.contains(id)
                || major
                || (policy.keep_best && best);
            assert_eq!(
                gone.contains(id),
                !stays,
                "seed {seed}: {id} of {commits:?}"
            );
        }
    }
}

/// A kill at every request: no commit without its data, at any moment.
#[tokio::test(start_paused = true)]
async fn a_kill_while_pruning_leaves_no_commit_without_data() {
    let mut requests = 0;
    loop {
        let world = nine().await;
        let halting = Halting::after(&world.memory, requests, true);
        let run = prune(
            &halting,
            &world.job,
            2,
            None,
            &LEAST,
            &world.transfer,
            &allowed,
        );
        let killed = tokio::time::timeout(Duration::from_secs(60), run).await;
        world.assert_sound(&format!("{requests} requests")).await;
        assert_eq!(world.history().await[..2], [id(2, 90), id(2, 80)]);
        if killed.is_ok_and(|run| run.is_ok()) {
            break;
        }
        // A later one, or the sweep, removes the rest.
        pruned(&world, 2, None, &LEAST).await;
        tokio::time::advance(25 * HOUR).await;
        sweep(
            &world.memory,
            &world.job,
            2,
            None,
            &world.transfer,
            &allowed,
        )
        .await
        .unwrap();
        let report = world
            .assert_sound(&format!("{requests} requests, swept"))
            .await;
        assert_eq!(
            (report.unnamed_files, left(&world).await),
            (0, vec![50, 80, 90])
        );
        requests += 3;
    }
    assert!(requests > 40, "{requests}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_without_a_lease() {
    let world = nine().await;
    let all = left(&world).await;
    let (memory, job, transfer) = (&world.memory, &world.job, &world.transfer);
    let refused = |answer: Result<_, CheckpointError>| {
        assert!(
            matches!(answer, Err(CheckpointError::NotPermitted { .. })),
            "{answer:?}"
        );
    };
    refused(
        prune(memory, job, 2, None, &LEAST, transfer, &|| false)
            .await
            .map(drop),
    );
    refused(
        prune(memory, job, 1, None, &LEAST, transfer, &allowed)
            .await
            .map(drop),
    );
    refused(
        sweep(memory, job, 1, None, transfer, &allowed)
            .await
            .map(drop),
    );
    world.lease(3, Some(id(2, 90))).await;
    refused(
        prune(memory, job, 2, None, &LEAST, transfer, &allowed)
            .await
            .map(drop),
    );
    // Nothing newer of our own is there yet.
    assert_eq!(pruned(&world, 3, None, &LEAST).await, Pruned::default());
    assert_eq!(left(&world).await, all);
}

#[tokio::test(start_paused = true)]
async fn the_sweep_takes_what_is_old_and_unnamed_and_nothing_else() {
    let (world, host) = (World::new(), Host::new());
    world.lease(1, None).await;
    host.save(10, 0, None);
    world.publish(&host, 1, 10, None).await;
    world.lease(2, Some(id(1, 10))).await;
    // A zombie's commit, two uploads cut off, one of them still on its way; a stranger's object.
    host.save(20, 0, None);
    world.publish(&host, 1, 20, None).await;
    let mut cut = Vec::new();
    for step in [30, 40] {
        host.save(step, 0, None);
        let mut upload = world.upload(&host, 2, step, None).await;
        let halting = Halting::after(&world.memory, 14, true);
        let silent = |_| ();
        let run = upload.run(&halting, &world.transfer, &allowed, &silent);
        assert!(
            tokio::time::timeout(Duration::from_secs(60), run)
                .await
                .is_err()
        );
        cut.push(upload);
    }
    let stranger = format!("{}notes.txt", world.job.all_data());
    world.memory.put(&stranger, "mine".into()).await.unwrap();
    let sweep = async || {
        let (memory, job, in_flight) = (&world.memory, &world.job, Some(cut[1].nonce()));
        sweep(memory, job, 2, in_flight, &world.transfer, &allowed)
            .await
            .unwrap()
    };
    tokio::time::advance(20 * HOUR).await;
    assert_eq!(
        sweep().await.objects + sweep().await.uploads,
        0,
        "younger than a day"
    );
    tokio::time::advance(5 * HOUR).await;
    let swept = sweep().await;
    assert!(swept.objects > 5 && swept.uploads > 0, "{swept:?}");
    assert_eq!(left(&world).await, [10]);
    let pending = world
        .memory
        .list_uploads(&world.job.all_data())
        .await
        .unwrap();
    let in_flight = |key: &str| key.contains(cut[1].nonce().as_str());
    assert!(!pending.is_empty() && pending.iter().all(|pending| in_flight(&pending.key)));
    assert!(world.memory.get(&stranger).await.is_ok());
    assert_eq!(world.history().await, [id(1, 10)]);
}

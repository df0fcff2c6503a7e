//! Restoring from a store in memory: damage, faults, kills, strangers and full disks.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use protocol::RunDir;

use super::*;
use crate::checkpoints::kit::{CONFIG, Halting, Host, World, id};
use crate::job::to_bytes;
use crate::storage::faults::{Fault, Operation};

/// Three commits of epoch 1, and epoch 2 claimed upon them; the host that made them.
async fn three() -> (World, Host) {
    let (world, host) = (World::new(), Host::new());
    world.lease(1, None).await;
    assert_eq!(world.restore(&host, 1).await.unwrap().source, Source::Fresh);
    let mut parent = None;
    for step in [10, 20, 30] {
        host.save(step, 0, None);
        parent = Some(world.publish(&host, 1, step, parent).await);
    }
    world.lease(2, parent).await;
    (world, host)
}

fn store(step: u64) -> impl Fn(&Source) -> bool {
    move |source| matches!(source, Source::Store { commit, .. } if commit.step == step)
}

#[tokio::test(start_paused = true)]
async fn the_newest_comes_back_byte_for_byte() {
    let (world, host) = three().await;
    let other = Host::new();
    let restored = world.restore(&other, 2).await.unwrap();
    assert!(store(30)(&restored.source), "{restored:?}");
    assert_eq!(
        (restored.parent, restored.findings),
        (Some(id(1, 30)), vec![])
    );
    assert_eq!(other.contents(30), host.contents(30));
    assert_eq!(other.steps(), [30]);
    let fetched = world.faulty.calls(Operation::GetRange);
    // Again, as after a restart of the trainer: it is there already.
    let again = world.restore(&other, 2).await.unwrap();
    assert_eq!(again.source, Source::Local { step: 30 });
    assert_eq!(world.faulty.calls(Operation::GetRange), fetched);
}

/// Everything that can be wrong with a checkpoint in the store: it is named, the next one is taken.
#[tokio::test(start_paused = true)]
async fn a_bad_one_is_reported_and_the_next_is_taken() {
    for damage in [
        "gone",
        "cut",
        "flipped",
        "longer",
        "commit",
        "another's",
        "path",
    ] {
        let (world, host) = three().await;
        let mut commit = world.commit(id(1, 30)).await;
        let key = world.job.key(&commit.files[0].key);
        let whole = world.memory.get(&key).await.unwrap().bytes;
        let mut other = whole.to_vec();
        match damage {
            "gone" => world.memory.delete(&key).await.unwrap(),
            "cut" => other.truncate(whole.len() - 1),
            "flipped" => other[17] ^= 1,
            "longer" => other.push(0),
            "commit" => {
                let key = world.job.commit(id(1, 30));
                world
                    .memory
                    .put(&key, Bytes::from_static(b"{\"version\":1}"))
                    .await
                    .unwrap();
            }
            "another's" => commit.nonce = world.nonce(),
            _ => commit.files[0].key = "data/../../../../etc/passwd".to_owned(),
        }
        if other != whole {
            world.memory.put(&key, Bytes::from(other)).await.unwrap();
        }
        if ["another's", "path"].contains(&damage) {
            let key = world.job.commit(id(1, 30));
            world.memory.put(&key, to_bytes(&commit)).await.unwrap();
        }
        let other = Host::new();
        if damage == "commit" {
            // Its parent cannot be read, so there is no next one: an error, never a fresh start.
            let error = world.restore(&other, 2).await.unwrap_err();
            assert!(
                matches!(error, CheckpointError::NoneWhole { .. }),
                "{error}"
            );
            assert_eq!(other.steps(), [] as [u64; 0]);
            continue;
        }
        let restored = world.restore(&other, 2).await.unwrap();
        assert!(store(20)(&restored.source), "{damage}: {restored:?}");
        assert_eq!(restored.parent, Some(id(1, 20)), "{damage}");
        let named =
            matches!(&restored.findings[..], [Finding::Bad { commit, .. }] if *commit == id(1, 30));
        assert!(named, "{damage}: {:?}", restored.findings);
        assert_eq!(other.contents(20), host.contents(20), "{damage}");
        assert_eq!(other.steps(), [20], "{damage}");
        assert!(!world.verify().await.problems.is_empty(), "{damage}");
        // What goes on from the older one is local to it, although the newest is still bad.
        other.save(25, 0, None);
        let again = world.restore(&other, 2).await.unwrap();
        assert_eq!(again.source, Source::Local { step: 25 }, "{damage}");
    }
}

/// Damage that the store's HEAD does not show, since the checksum fits the damage.
#[tokio::test(start_paused = true)]
async fn sha256_has_the_last_word() {
    let (world, _) = three().await;
    let mut commit = world.commit(id(1, 30)).await;
    let key = world.job.key(&commit.files[0].key);
    let mut other = world.memory.get(&key).await.unwrap().bytes.to_vec();
    other[3] ^= 0x80;
    commit.files[0].crc64nvme = crate::storage::crc64::crc64nvme(&other);
    world.memory.put(&key, Bytes::from(other)).await.unwrap();
    world
        .memory
        .put(&world.job.commit(id(1, 30)), to_bytes(&commit))
        .await
        .unwrap();
    let host = Host::new();
    let restored = world.restore(&host, 2).await.unwrap();
    assert!(store(20)(&restored.source), "{restored:?}");
    let told = format!("{:?}", restored.findings);
    assert!(told.contains("of sha256"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn nothing_whole_is_an_error_and_never_a_fresh_start() {
    let (world, _) = three().await;
    for step in [10, 20, 30] {
        let commit = world.commit(id(1, step)).await;
        world
            .memory
            .delete(&world.job.key(&commit.files[1].key))
            .await
            .unwrap();
    }
    let host = Host::new();
    let error = world.restore(&host, 2).await.unwrap_err();
    let CheckpointError::NoneWhole { count, newest, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((*count, *newest), (3, id(1, 30)));
    assert!(error.to_string().contains("hint: "), "{error}");
    assert_eq!(host.steps(), [] as [u64; 0]);
}

#[tokio::test(start_paused = true)]
async fn transient_errors_are_retried_and_then_an_error() {
    let (world, host) = three().await;
    let other = Host::new();
    for _ in 0..10 {
        for operation in [
            Operation::List,
            Operation::Get,
            Operation::Head,
            Operation::GetRange,
        ] {
            world.faulty.next(operation, Fault::SlowDown);
        }
    }
    let restored = world.restore(&other, 2).await.unwrap();
    assert_eq!(
        (restored.findings, other.contents(30)),
        (vec![], host.contents(30))
    );
    for operation in [
        Operation::List,
        Operation::Get,
        Operation::Head,
        Operation::GetRange,
    ] {
        let other = Host::new();
        for _ in 0..500 {
            world.faulty.next(operation, Fault::Before);
        }
        let error = restore(&world.store, &world.job, 2, &other.run_dir, &world.transfer).await;
        let error = error.unwrap_err();
        assert!(error.is_transient(), "{operation:?}: {error}");
        assert_eq!(other.steps(), [] as [u64; 0], "{operation:?}");
        // Until none is left.
        while world.restore(&other, 2).await.is_err() {}
    }
}

/// A kill at every request of a restore: the next one gets there, and does not fetch anew what it
/// has.
#[tokio::test(start_paused = true)]
async fn a_killed_restore_is_gone_on_with() {
    let (world, host) = three().await;
    let pieces: u64 = {
        let commit = world.commit(id(1, 30)).await;
        commit
            .files
            .iter()
            .map(|file| file.bytes.div_ceil(128))
            .sum()
    };
    let mut killed_at = 0;
    let mut gone_on_with = 0;
    loop {
        let other = Host::new();
        let halting = Halting::after(&world.memory, killed_at, true);
        let run = restore(&halting, &world.job, 2, &other.run_dir, &world.transfer);
        let killed = tokio::time::timeout(Duration::from_secs(60), run).await;
        if matches!(killed, Ok(Ok(_))) {
            break;
        }
        assert_eq!(other.steps(), [] as [u64; 0], "{killed_at}");
        let before = world.faulty.calls(Operation::GetRange);
        world.restore(&other, 2).await.unwrap();
        let fetched = world.faulty.calls(Operation::GetRange) - before;
        gone_on_with += u64::from(fetched < pieces);
        assert_eq!(other.contents(30), host.contents(30), "{killed_at}");
        killed_at += 1;
    }
    assert!(killed_at > pieces, "{killed_at}");
    assert!(gone_on_with + 6 > pieces, "{gone_on_with} of {pieces}");
}

/// What a killed restore left behind is checked like everything else.
#[tokio::test(start_paused = true)]
async fn a_damaged_partial_download_is_fetched_anew() {
    let (world, host) = three().await;
    let other = Host::new();
    let halting = Halting::after(&world.memory, 18, true);
    let run = restore(&halting, &world.job, 2, &other.run_dir, &world.transfer);
    assert!(
        tokio::time::timeout(Duration::from_secs(60), run)
            .await
            .is_err()
    );
    let mut spoiled = 0;
    let home = other
        .run_dir
        .root()
        .join(".restore")
        .join(RunDir::checkpoint_name(30));
    for commit in fs::read_dir(home).unwrap() {
        for file in fs::read_dir(commit.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let mut contents = fs::read(&path).unwrap();
            if contents.len() > 100 {
                contents[5] ^= 1;
                fs::write(path, contents).unwrap();
                spoiled += 1;
            }
        }
    }
    assert!(spoiled > 0);
    let restored = world.restore(&other, 2).await.unwrap();
    assert_eq!(
        (restored.findings, other.contents(30)),
        (vec![], host.contents(30))
    );
}

#[tokio::test(start_paused = true)]
async fn a_local_one_that_descends_from_the_newest_is_taken() {
    let (world, host) = three().await;
    // The same host: it published 30 itself.
    host.save(40, 0, None);
    let restored = world.restore(&host, 2).await.unwrap();
    assert_eq!(restored.source, Source::Local { step: 40 });
    assert_eq!(
        (restored.parent, restored.findings),
        (Some(id(1, 30)), vec![])
    );
    assert_eq!(world.faulty.calls(Operation::GetRange), 0);
    // Another host, which restored 30 and went on from it.
    let other = Host::new();
    world.lease(3, Some(id(1, 30))).await;
    world.restore(&other, 3).await.unwrap();
    other.save(35, 1, None);
    world.lease(4, Some(id(1, 30))).await;
    let restored = world.restore(&other, 4).await.unwrap();
    assert_eq!(restored.source, Source::Local { step: 35 });
}

#[tokio::test(start_paused = true)]
async fn a_local_one_of_a_lost_line_is_set_aside() {
    let (world, host) = three().await;
    host.save(40, 0, None);
    // Another host took over and published; ours comes back with work that nobody went on from.
    let other = Host::new();
    world.restore(&other, 2).await.unwrap();
    other.save(33, 1, None);
    world.publish(&other, 2, 33, Some(id(1, 30))).await;
    world.lease(3, Some(id(2, 33))).await;
    let restored = world.restore(&host, 3).await.unwrap();
    assert!(store(33)(&restored.source), "{restored:?}");
    assert_eq!(host.contents(33), other.contents(33));
    assert_eq!(
        *host.steps().last().unwrap(),
        33,
        "nothing newer for a trainer to take"
    );
    let aside = |step: u64| Finding::SetAside {
        step,
        detail: "not of the job's history".to_owned(),
    };
    assert!(
        restored.findings.contains(&aside(40)),
        "{:?}",
        restored.findings
    );
    assert!(host.run_dir.root().join(".aside/step_0000000040").exists());
}

#[tokio::test(start_paused = true)]
async fn a_damaged_local_one_is_set_aside() {
    let (world, host) = three().await;
    host.save(40, 0, None);
    fs::write(
        host.run_dir.checkpoint(40).join(RunDir::STATE),
        "x".repeat(40),
    )
    .unwrap();
    let restored = world.restore(&host, 2).await.unwrap();
    assert_eq!(
        restored.source,
        Source::Local { step: 30 },
        "which is the commit itself"
    );
    assert_eq!(host.steps(), [10, 20, 30]);
    let told = format!("{:?}", restored.findings);
    assert!(
        told.contains("step: 40") && told.contains("state.json"),
        "{told}"
    );
    // Of the commit's step, but not the commit: another config, or damaged.
    let manifest = host.run_dir.checkpoint(30).join(RunDir::MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace(CONFIG, "decaf")).unwrap();
    let restored = world.restore(&host, 2).await.unwrap();
    assert!(store(30)(&restored.source), "{restored:?}");
    assert_eq!(fs::read_to_string(&manifest).unwrap(), text);
}

#[tokio::test(start_paused = true)]
async fn another_config_is_not_preferred() {
    let (world, host) = three().await;
    host.save(40, 0, None);
    let manifest = host.run_dir.checkpoint(40).join(RunDir::MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace(CONFIG, "decaf")).unwrap();
    let restored = world.restore(&host, 2).await.unwrap();
    assert_eq!(restored.source, Source::Local { step: 30 });
    assert_eq!(host.steps(), [10, 20, 30]);
}

#[tokio::test(start_paused = true)]
async fn before_the_first_commit_local_work_counts_too() {
    let (world, host) = (World::new(), Host::new());
    world.lease(1, None).await;
    world.restore(&host, 1).await.unwrap();
    host.save(5, 0, None);
    world.lease(2, None).await;
    let restored = world.restore(&host, 2).await.unwrap();
    assert_eq!(
        (restored.source, restored.parent),
        (Source::Local { step: 5 }, None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_strangers_run_directory_is_left_alone() {
    let (world, host) = (World::new(), Host::new());
    world.lease(1, None).await;
    host.save(5, 0, None);
    let before = host.contents(5);
    let error = world.restore(&host, 1).await.unwrap_err();
    assert!(
        matches!(error, CheckpointError::Foreign { step: 5, .. }),
        "{error}"
    );
    let other = Job::new("other").unwrap();
    Note::of(&other, 1, None)
        .write(&host.run_dir)
        .await
        .unwrap();
    let error = world.restore(&host, 1).await.unwrap_err().to_string();
    assert!(
        error.contains("expected checkpoints of job j only"),
        "{error}"
    );
    assert!(error.contains("step 5 of job other\nhint: "), "{error}");
    assert_eq!(host.contents(5), before);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_told_before_anything_is_fetched() {
    let (world, _) = three().await;
    let host = Host::new();
    let mut commit = world.commit(id(1, 30)).await;
    commit.files[0].bytes = 1 << 60;
    let store = Arc::new(steady(&world.store, &world.transfer));
    let download = Download::new(&store, &world.job, &commit, &host.run_dir, &world.transfer);
    let error = download.fetch().await.unwrap_err();
    assert!(
        matches!(error, CheckpointError::NoSpace { step: 30, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("not enough disk space"),
        "{error}"
    );
    assert_eq!(world.faulty.calls(Operation::GetRange), 0);
}

//! Staging and publishing, with kills and faults at every request.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use protocol::RunDir;

use crate::checkpoints::kit::{Halting, Host, World, allowed, id, silent};
use crate::checkpoints::{
    CheckpointError, Progress, Published, Source, Transfer, clear_stage, stage, sweep,
};
use crate::storage::crc64::crc64nvme;
use crate::storage::faults::{Fault, Operation, Plan};

const DAY: Duration = Duration::from_secs(24 * 3600 + 1);

#[tokio::test]
async fn staging_survives_the_trainers_pruning_and_sums_right() {
    let (world, host) = (World::new(), Host::new());
    host.save(7, 0, Some(1.5));
    let before = host.contents(7).unwrap();
    let staged = stage(&host.run_dir, 7, &world.transfer).await.unwrap();
    fs::remove_dir_all(host.run_dir.checkpoint(7)).unwrap();
    assert_eq!(staged.step(), 7);
    assert_eq!(staged.files.last().unwrap().name, RunDir::MANIFEST);
    for file in &staged.files {
        let contents = fs::read(staged.folder.join(&file.name)).unwrap();
        assert_eq!(contents, before[&file.name]);
        assert_eq!(file.crc64nvme, crc64nvme(&contents), "{}", file.name);
        let mut parts: Vec<u64> = contents.chunks(128).map(crc64nvme).collect();
        if parts.is_empty() {
            parts.push(crc64nvme(b""));
        }
        assert_eq!(file.part_crc64nvme, parts, "{}", file.name);
    }
    let folder = staged.folder.clone();
    staged.discard().await.unwrap();
    assert!(!folder.exists());
}

#[tokio::test]
async fn what_is_not_a_whole_checkpoint_is_not_staged() {
    let (world, host) = (World::new(), Host::new());
    let stage = async |step| {
        stage(&host.run_dir, step, &world.transfer)
            .await
            .unwrap_err()
    };
    assert!(matches!(stage(1).await, CheckpointError::Gone { .. }));
    host.save(2, 0, None);
    let model = host.run_dir.checkpoint(2).join(RunDir::MODEL);
    let mut contents = fs::read(&model).unwrap();
    contents[100] ^= 1;
    fs::write(&model, &contents).unwrap();
    let error = stage(2).await;
    assert!(matches!(error, CheckpointError::Damaged { .. }), "{error}");
    assert!(
        error.to_string().contains("expected 200 bytes of sha256"),
        "{error}"
    );
    fs::remove_file(&model).unwrap();
    assert!(matches!(stage(2).await, CheckpointError::Damaged { .. }));
    host.save(3, 0, None);
    let manifest = host.run_dir.checkpoint(3).join(RunDir::MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace(RunDir::MODEL, "../../config.toml")).unwrap();
    assert!(matches!(stage(3).await, CheckpointError::Damaged { .. }));
    let left = fs::read_dir(host.run_dir.root().join(".publish")).unwrap();
    assert_eq!(left.count(), 0, "nothing stays staged");
}

#[test]
fn parts_are_few_enough_for_every_store() {
    use crate::checkpoints::stage::part_bytes;
    let least = Transfer::default().part_bytes_min;
    assert_eq!(part_bytes(0, least), 16 << 20);
    assert_eq!(part_bytes(9_000 * (16 << 20), least), 16 << 20);
    assert_eq!(part_bytes(9_000 * (16 << 20) + 1, least), 17 << 20);
    for bytes in [1 << 40, 5 << 40] {
        assert!(
            u64::div_ceil(bytes, part_bytes(bytes, least)) <= 9_000,
            "{bytes}"
        );
    }
}

/// A kill at every request, before or after it was carried out: there is no moment at which the
/// history names anything that is not whole. Then the same upload goes on, or a new process comes.
#[tokio::test(start_paused = true)]
async fn a_kill_at_any_request_leaves_only_whole_checkpoints() {
    let mut requests = 0;
    let mut finished = false;
    while !finished {
        for (carried_out, same_process) in
            [(false, true), (true, true), (false, false), (true, false)]
        {
            let context = format!("{requests} requests, {carried_out}, {same_process}");
            let (world, host) = (World::new(), Host::new());
            world.lease(1, None).await;
            host.save(10, 0, None);
            let first = world.publish(&host, 1, 10, None).await;
            host.save(20, 0, None);
            let mut upload = world.upload(&host, 1, 20, Some(first)).await;
            let halting = Halting::after(&world.memory, requests, carried_out);
            let run = upload.run(&halting, &world.transfer, &allowed, &silent);
            let killed = tokio::time::timeout(Duration::from_secs(60), run).await;
            finished = matches!(killed, Ok(Ok(_)));
            let killed_alive = killed.is_err() || matches!(&killed, Ok(Err(_)));
            assert!(finished || killed_alive, "{context}");

            world.assert_sound(&context).await;
            let newest = world.history().await[0];
            assert!(newest == first || newest == id(1, 20), "{context}");
            let other = Host::new();
            let restored = world.restore(&other, 1).await.unwrap();
            assert_eq!(restored.source.step(), newest.step, "{context}");
            assert_eq!(
                other.contents(newest.step),
                host.contents(newest.step),
                "{context}"
            );

            if !same_process {
                // A process that died: its stage is cleared, the same step comes again.
                drop(upload);
                clear_stage(&host.run_dir).await.unwrap();
                upload = world.upload(&host, 1, 20, Some(first)).await;
            }
            let published = upload
                .run(&world.memory, &world.transfer, &allowed, &silent)
                .await;
            let committed = published.unwrap();
            if same_process {
                assert!(matches!(committed, Published::Committed(_)), "{context}");
            }
            upload.close(world.memory.as_ref()).await.unwrap();
            assert_eq!(world.history().await, [id(1, 20), first], "{context}");
            world.assert_sound(&context).await;

            tokio::time::advance(DAY).await;
            sweep(
                &world.memory,
                &world.job,
                1,
                None,
                &world.transfer,
                &allowed,
            )
            .await
            .unwrap();
            let report = world.assert_sound(&context).await;
            let left = (report.unnamed_files, report.unfinished_uploads);
            assert_eq!(left, (0, 0), "{context}");
        }
        requests += 1;
        assert!(requests < 200, "an upload this small takes fewer");
    }
    assert!(requests > 15, "the loop went through the steps: {requests}");
}

#[tokio::test(start_paused = true)]
async fn faults_at_random_do_not_spoil_a_publish() {
    for seed in 0..60 {
        let world = World::with(Plan {
            seed,
            fail_before: 0.1,
            fail_after: 0.15,
            conflict: 0.15,
            slow_down: 0.1,
            delay: 0.1,
            delay_max: Duration::from_secs(60),
            late: 0.05,
            ..Plan::default()
        });
        let host = Host::new();
        world.lease(1, None).await;
        let mut parent = None;
        for step in [10, 20, 30] {
            host.save(step, 0, None);
            let mut upload = world.upload(&host, 1, step, parent).await;
            let published = upload
                .run(&world.store, &world.transfer, &allowed, &silent)
                .await;
            let published = published.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert!(
                matches!(&published, Published::Committed(_)),
                "seed {seed}: {published:?}"
            );
            parent = Some(id(1, step));
            upload.close(world.memory.as_ref()).await.unwrap();
        }
        assert_eq!(
            world.history().await,
            [id(1, 30), id(1, 20), id(1, 10)],
            "seed {seed}"
        );
        world.assert_sound(&format!("seed {seed}")).await;
        let other = Host::new();
        let restored = world.restore(&other, 1).await.unwrap();
        assert_eq!(restored.findings, [], "seed {seed}");
        assert_eq!(other.contents(30), host.contents(30), "seed {seed}");
    }
}

/// The permit is asked after the last file is verified, and then nothing comes before the commit.
#[tokio::test(start_paused = true)]
async fn without_a_permit_nothing_is_committed() {
    let (world, host) = (World::new(), Host::new());
    world.lease(1, None).await;
    host.save(10, 0, None);
    let mut upload = world.upload(&host, 1, 10, None).await;
    let refused = upload
        .run(&world.store, &world.transfer, &|| false, &silent)
        .await;
    assert!(
        matches!(refused, Err(CheckpointError::NotPermitted { .. })),
        "{refused:?}"
    );
    assert_eq!(world.faulty.calls(Operation::Create), 0);
    assert_eq!(upload.progress().bytes_done, upload.progress().bytes_total);
    assert_eq!(world.history().await, []);
    // Asked anew before every try of the create.
    let asked = AtomicU64::new(0);
    let once = || asked.fetch_add(1, Ordering::SeqCst) == 0;
    world.faulty.next(Operation::Create, Fault::Conflict);
    let refused = upload
        .run(&world.store, &world.transfer, &once, &silent)
        .await;
    assert!(
        matches!(refused, Err(CheckpointError::NotPermitted { .. })),
        "{refused:?}"
    );
    assert_eq!((asked.into_inner(), world.history().await), (2, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_comes_again_stays_as_it_was_first() {
    let (world, host) = (World::new(), Host::new());
    world.lease(1, None).await;
    host.save(10, 0, None);
    world.publish(&host, 1, 10, None).await;
    let first = host.contents(10).unwrap();
    host.save(10, 1, None);
    assert_ne!(host.contents(10).unwrap(), first);
    let mut upload = world.upload(&host, 1, 10, None).await;
    let published = upload
        .run(&world.store, &world.transfer, &allowed, &silent)
        .await;
    assert!(
        matches!(published, Ok(Published::Already(_))),
        "{published:?}"
    );
    let other = Host::new();
    world.restore(&other, 1).await.unwrap();
    assert_eq!(other.contents(10).unwrap(), first);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_the_store_forgot_begins_anew() {
    let (world, host) = (World::new(), Host::new());
    world.lease(1, None).await;
    host.save(10, 0, None);
    for requests in 1..20 {
        let mut upload = world.upload(&host, 1, 10, None).await;
        let halting = Halting::after(&world.memory, requests, true);
        let run = upload.run(&halting, &world.transfer, &allowed, &silent);
        assert!(
            tokio::time::timeout(Duration::from_secs(60), run)
                .await
                .is_err(),
            "{requests}"
        );
        for pending in world
            .memory
            .list_uploads(&world.job.all_data())
            .await
            .unwrap()
        {
            world
                .memory
                .abort_upload(&pending.key, &pending.upload)
                .await
                .unwrap();
        }
        let refuse = || false;
        let run = upload
            .run(&world.memory, &world.transfer, &refuse, &silent)
            .await;
        assert!(
            matches!(run, Err(CheckpointError::NotPermitted { .. })),
            "{requests}: {run:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_an_error_and_what_got_through_is_kept() {
    let (world, host) = (World::new(), Host::new());
    world.lease(1, None).await;
    host.save(10, 0, None);
    let mut upload = world.upload(&host, 1, 10, None).await;
    let pieces = upload.pieces_total();
    let told = std::sync::Mutex::new(Vec::<Progress>::new());
    let tell = |progress: Progress| {
        let mut told = told.lock().unwrap();
        told.push(progress);
        world.faulty.set_down(told.len() >= 3);
    };
    let cut = upload
        .run(&world.store, &world.transfer, &allowed, &tell)
        .await;
    assert!(matches!(&cut, Err(e) if e.is_transient()), "{cut:?}");
    let sent = world.faulty.calls(Operation::UploadPart) + world.faulty.calls(Operation::Put);
    assert!(upload.progress().bytes_done > 0);
    world.faulty.set_down(false);
    upload
        .run(&world.store, &world.transfer, &allowed, &silent)
        .await
        .unwrap();
    let again =
        world.faulty.calls(Operation::UploadPart) + world.faulty.calls(Operation::Put) - sent;
    assert!(
        again + 3 <= pieces,
        "{again} of {pieces} pieces were sent again"
    );
    let other = Host::new();
    let restored = world.restore(&other, 1).await.unwrap();
    assert!(matches!(restored.source, Source::Store { .. }));
}

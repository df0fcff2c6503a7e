//! Which commits count.

use crate::checkpoints::kit::{Host, World, id};
use crate::checkpoints::{CheckpointError, Finding, history};

/// Epoch, step, parent.
type Made = (u64, u64, Option<(u64, u64)>);

async fn publish(world: &World, host: &Host, commits: &[Made]) {
    for (epoch, step, parent) in commits {
        host.save(*step, *epoch, None);
        let parent = parent.map(|(epoch, step)| id(epoch, step));
        world.publish(host, *epoch, *step, parent).await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_the_fences_let_through_counts() {
    let (world, host) = (World::new(), Host::new());
    world.lease(1, None).await;
    publish(
        &world,
        &host,
        &[
            (1, 10, None),
            (1, 20, Some((1, 10))),
            (1, 30, Some((1, 20))),
        ],
    )
    .await;
    assert_eq!(world.history().await, [id(1, 30), id(1, 20), id(1, 10)]);
    world.lease(2, Some(id(1, 20))).await;
    assert_eq!(
        world.history().await,
        [id(1, 20), id(1, 10)],
        "30 came after the fence"
    );
    publish(&world, &host, &[(1, 40, Some((1, 30)))]).await;
    assert_eq!(
        world.history().await,
        [id(1, 20), id(1, 10)],
        "however late"
    );
    publish(
        &world,
        &host,
        &[(2, 25, Some((1, 20))), (2, 30, Some((2, 25)))],
    )
    .await;
    let line = [id(2, 30), id(2, 25), id(1, 20), id(1, 10)];
    assert_eq!(world.history().await, line);
    // An epoch without a commit passes its base on.
    world.lease(3, Some(id(2, 30))).await;
    world.lease(4, Some(id(2, 30))).await;
    assert_eq!(world.history().await, line);
    let report = world.assert_sound("fences").await;
    assert_eq!(report.orphans, [id(1, 30), id(1, 40)]);
}

#[tokio::test(start_paused = true)]
async fn a_job_without_commits_is_empty_for_certain() {
    let (world, host) = (World::new(), Host::new());
    let read = async || {
        history(&world.memory, &world.job, &world.transfer)
            .await
            .unwrap()
    };
    assert!(read().await.is_definitely_empty());
    world.lease(1, None).await;
    assert!(read().await.is_definitely_empty());
    publish(&world, &host, &[(1, 10, None)]).await;
    assert!(!read().await.is_definitely_empty());
    world.lease(2, None).await;
    assert!(
        read().await.is_definitely_empty(),
        "it came after the fence"
    );
    world.lease(3, Some(id(2, 5))).await;
    let lost = read().await;
    assert!(
        !lost.is_definitely_empty(),
        "its base is lost, which is not none"
    );
    assert!(matches!(&lost.findings[..], [Finding::Bad { commit, .. }] if *commit == id(2, 5)));
}

#[tokio::test(start_paused = true)]
async fn an_error_listing_is_never_none() {
    let world = World::new();
    world.faulty.set_down(true);
    let error = history(&world.store, &world.job, &world.transfer).await;
    assert!(matches!(&error, Err(e) if e.is_transient()), "{error:?}");
    let host = Host::new();
    let error = world.restore(&host, 1).await;
    assert!(
        matches!(&error, Err(CheckpointError::Job(e)) if e.is_transient()),
        "{error:?}"
    );
    assert!(!host.run_dir.checkpoints().exists());
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_goes_in_circles_ends() {
    let (world, host) = (World::new(), Host::new());
    world.lease(1, None).await;
    publish(
        &world,
        &host,
        &[(1, 10, Some((1, 20))), (1, 20, Some((1, 10)))],
    )
    .await;
    world.lease(2, Some(id(1, 20))).await;
    let found = history(&world.memory, &world.job, &world.transfer)
        .await
        .unwrap();
    let ids: Vec<_> = found.commits.iter().map(|commit| commit.id()).collect();
    assert_eq!(ids, [id(1, 20), id(1, 10)]);
    assert!(matches!(&found.findings[..], [Finding::Bad { commit, .. }] if *commit == id(1, 20)));
}

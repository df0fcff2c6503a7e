//! `agent verify` and `agent probe-store`: what a store holds and what it can do.

use super::Place;
use crate::checkpoints::{self, Depth, Transfer};
use crate::error::{Error, ExitStatus};
use crate::job::Job;
use crate::storage::open::open;
use crate::storage::probe;

pub(super) async fn verify(
    place: &Place,
    deep: bool,
    print: &mut dyn FnMut(&str),
) -> Result<ExitStatus, Error> {
    let job = Job::new(&place.job).map_err(|error| Error::Usage(error.to_string()))?;
    let store = open(&place.store).await?;
    let depth = if deep { Depth::Bytes } else { Depth::Heads };
    let report = checkpoints::verify(&store, &job, depth, &Transfer::default()).await;
    let report = report.map_err(|error| Error::Bad(error.to_string()))?;
    print(&format!(
        "job {} in {}: epoch {}",
        job.id(),
        store.name(),
        report.epochs
    ));
    for commit in &report.history {
        print(&format!(
            "checkpoint of step {}, epoch {}",
            commit.step, commit.epoch
        ));
    }
    for commit in &report.orphans {
        print(&format!("orphan, does not count: {commit}"));
    }
    if report.unnamed_files > 0 {
        let (files, bytes) = (report.unnamed_files, report.unnamed_bytes);
        print(&format!(
            "{files} files ({bytes} bytes) belong to no checkpoint"
        ));
    }
    for problem in &report.problems {
        print(&format!("problem: {problem}"));
    }
    if report.problems.is_empty() {
        print("sound");
        Ok(ExitStatus::Completed)
    } else {
        Ok(ExitStatus::Failed)
    }
}

pub(super) async fn probe_store(
    store: &str,
    print: &mut dyn FnMut(&str),
) -> Result<ExitStatus, Error> {
    let store = open(store).await?;
    let limit = probe::CHECK_MAX.as_secs();
    print(&format!(
        "asking {}, at most {limit} s for each check",
        store.name()
    ));
    let verdict = probe::probe(&store, fastrand::u64(..), |row| print(row)).await?;
    print(&verdict.summary());
    if verdict.allows_lease() {
        Ok(ExitStatus::Completed)
    } else {
        Ok(ExitStatus::Unfit)
    }
}

//! The checkpoint to start from, brought into the run directory. Called by the supervisor's loop
//! before the trainer starts.
//!
//! When a local checkpoint is preferred to the store's newest: it is whole, its step is not lower,
//! its config hash is the same, and it descends from that very commit, which is so if this run
//! directory was the one that published it (same epoch: an epoch has one holder) or restored it.

mod download;
mod local;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use protocol::RunDir;

use self::download::Download;
pub(super) use self::download::examine;
use self::local::{Candidate, Note};
use super::{CheckpointError, Finding, History, Transfer, history, steady};
use crate::job::{CommitId, CommitRecord, Job};
use crate::storage::Storage;

/// What the trainer will resume from, and what was noticed on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    pub source: Source,
    /// The newest commit that this run goes on from: the parent of what it publishes next.
    pub parent: Option<CommitId>,
    pub findings: Vec<Finding>,
}

/// Where the run starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From step 0: the store has nothing of this job, for certain.
    Fresh,
    /// A local checkpoint, whole, that descends from the newest commit.
    Local { step: u64 },
    /// A commit, downloaded and verified.
    Store { commit: CommitId, bytes: u64 },
}

impl Source {
    pub fn step(&self) -> u64 {
        match self {
            Self::Fresh => 0,
            Self::Local { step } => *step,
            Self::Store { commit, .. } => commit.step,
        }
    }
}

/// Makes the newest checkpoint of the job the newest of the run directory. With a live lease of
/// `epoch`, while no trainer runs.
///
/// # Errors
/// Transient errors after the transfer's deadline; `NoneWhole` if the store has checkpoints and
/// none is whole; `NoSpace`; `Foreign` if the run directory belongs to another job.
pub async fn restore(
    store: &Arc<dyn Storage>,
    job: &Job,
    epoch: u64,
    run_dir: &RunDir,
    transfer: &Transfer,
) -> Result<Restored, CheckpointError> {
    let History {
        base,
        commits,
        mut findings,
        ..
    } = history(store, job, transfer).await?;
    let note = Note::read(run_dir).await?;
    let candidates = local::candidates(run_dir).await?;
    if let Some(newest) = candidates.first() {
        local::check_owner(note.as_ref(), run_dir, job, newest.step)?;
    }
    let retrying = Arc::new(steady(store, transfer));
    let mut aside = Aside::default();
    for commit in &commits {
        let id = commit.id();
        let local = take_local(&note, &candidates, Some(commit), &mut aside).await?;
        let download = Download::new(&retrying, job, commit, run_dir, transfer);
        let source = match local {
            Some(step) => Source::Local { step },
            None => match download.obtain().await? {
                Ok(bytes) => Source::Store { commit: id, bytes },
                Err(detail) => {
                    findings.push(Finding::Bad { commit: id, detail });
                    continue;
                }
            },
        };
        let same_line = note
            .as_ref()
            .is_some_and(|note| note.descends_from(Some(id)));
        let keep_older = matches!(source, Source::Local { .. }) || same_line;
        aside.beyond(&candidates, &source, keep_older);
        aside.carry_out(run_dir, &mut findings).await?;
        // Before the checkpoint appears, so that it is never taken for a stranger's.
        Note::of(job, epoch, Some(id)).write(run_dir).await?;
        if matches!(source, Source::Store { .. }) {
            download::appear(run_dir, id.step).await?;
        }
        return Ok(Restored {
            source,
            parent: Some(id),
            findings,
        });
    }
    if let Some(error) = none_whole(&commits, &findings) {
        return Err(error);
    }
    assert!(
        commits.is_empty() && base.is_none(),
        "a commit was neither taken nor found bad"
    );
    let local = take_local(&note, &candidates, None, &mut aside).await?;
    let source = local.map_or(Source::Fresh, |step| Source::Local { step });
    aside.beyond(&candidates, &source, local.is_some());
    aside.carry_out(run_dir, &mut findings).await?;
    Note::of(job, epoch, None).write(run_dir).await?;
    Ok(Restored {
        source,
        parent: None,
        findings,
    })
}

/// What to say of a store whose checkpoints were all found bad; `None` if it has none.
fn none_whole(commits: &[CommitRecord], findings: &[Finding]) -> Option<CheckpointError> {
    let Some(Finding::Bad { commit, detail }) = findings.first() else {
        return None;
    };
    Some(CheckpointError::NoneWhole {
        count: findings.len(),
        newest: commits.first().map_or(*commit, CommitRecord::id),
        detail: detail.clone(),
    })
}

/// Local checkpoints that must not be resumed from, and why.
#[derive(Default)]
struct Aside {
    steps: Vec<(u64, String)>,
}

impl Aside {
    fn add(&mut self, step: u64, detail: &str) {
        if self.steps.iter().all(|(known, _)| *known != step) {
            self.steps.push((step, detail.to_owned()));
        }
    }

    /// All that a trainer would take instead of the one chosen, or, if that turned out damaged,
    /// after it.
    fn beyond(&mut self, candidates: &[Candidate], source: &Source, keep_older: bool) {
        for Candidate { step, .. } in candidates {
            let chosen = *source == Source::Local { step: *step };
            if !chosen && (*step >= source.step() || !keep_older) {
                self.add(*step, "not of the job's history");
            }
        }
    }

    async fn carry_out(
        self,
        run_dir: &RunDir,
        findings: &mut Vec<Finding>,
    ) -> Result<(), CheckpointError> {
        if self.steps.is_empty() {
            return Ok(());
        }
        local::set_aside(run_dir, self.steps.iter().map(|(step, _)| *step).collect()).await?;
        let told = self.steps.into_iter();
        findings.extend(told.map(|(step, detail)| Finding::SetAside { step, detail }));
        Ok(())
    }
}

/// The newest local checkpoint that may stand in for a commit, or for an empty store.
async fn take_local(
    note: &Option<Note>,
    candidates: &[Candidate],
    commit: Option<&CommitRecord>,
    aside: &mut Aside,
) -> Result<Option<u64>, CheckpointError> {
    let descends = note
        .as_ref()
        .is_some_and(|note| note.descends_from(commit.map(CommitRecord::id)));
    for candidate in candidates {
        let fits = match commit {
            None => descends,
            // The commit itself, byte for byte, however it came here.
            Some(commit) if candidate.step == commit.step => candidate.is_commit(commit),
            Some(commit) => {
                descends
                    && candidate.step > commit.step
                    && candidate.manifest.config_hash == commit.config_hash
            }
        };
        if !fits {
            continue;
        }
        match candidate.damage().await? {
            None => return Ok(Some(candidate.step)),
            Some(detail) => aside.add(candidate.step, &detail),
        }
    }
    Ok(None)
}

//! Which checkpoints stay and which go. Called by `Checkpoints` when it opens a run and after each
//! save.

use std::fs;

use protocol::RunDir;

use super::files;
use super::read;
use crate::error::{Error, Result};

/// Tidies after a trainer that was killed: a checkpoint set aside whose successor never moved in
/// goes back to its place, all else with a temporary name is deleted. Only for the one who holds
/// the run's lock.
pub(super) fn sweep(run: &RunDir) -> Result<()> {
    let folder = run.checkpoints();
    for entry in fs::read_dir(&folder).map_err(Error::write(&folder))? {
        let entry = entry.map_err(Error::write(&folder))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with(RunDir::TEMPORARY_PREFIX) {
            continue;
        }
        match files::set_aside_step(name).map(|step| run.checkpoint(step)) {
            Some(home) if !files::is_there(&home) => files::rename(&entry.path(), &home)?,
            Some(_) => files::discard(run, &entry.path())?,
            None => files::remove(&entry.path())?,
        }
    }
    files::sync_dir(&folder)
}

/// Deletes what need not stay now that the checkpoint of step `written` is in place.
///
/// # Errors
/// [`Error::Write`] for the first that cannot be deleted.
pub(super) fn prune(run: &RunDir, written: u64, keep_last: u64) -> Result<()> {
    let aside = files::set_aside(run, written);
    if files::is_there(&aside) {
        files::discard(run, &aside)?;
    }
    let whole: Vec<_> = read::list(run)?
        .into_iter()
        .filter_map(|listed| Some((listed.step, listed.path, listed.manifest.ok()?.val_loss)))
        .collect();
    let steps: Vec<_> = whole.iter().map(|&(step, _, loss)| (step, loss)).collect();
    let superfluous = superfluous(&steps, written, keep_last);
    for (step, path, _) in &whole {
        if superfluous.contains(step) {
            files::discard(run, path)?;
        }
    }
    Ok(())
}

/// The steps to delete of all whole checkpoints (step, validation loss), newest first.
///
/// The newest `keep_last` stay, at least one, and the best one: the first to reach the lowest
/// validation loss. Those beyond `written` are not judged and do not count: the run was resumed
/// from before them, perhaps because they are damaged in a way that a look at sizes does not show,
/// and then only the one just written is sure to be good.
pub(super) fn superfluous(whole: &[(u64, Option<f64>)], written: u64, keep_last: u64) -> Vec<u64> {
    let judged = || whole.iter().filter(|(step, _)| *step <= written);
    let best = judged()
        .filter_map(|&(step, loss)| Some((loss.filter(|loss| !loss.is_nan())?, step)))
        .min_by(|(a, i), (b, j)| a.total_cmp(b).then(i.cmp(j)))
        .map(|(_, step)| step);
    judged()
        .map(|&(step, _)| step)
        .skip(usize::try_from(keep_last.max(1)).unwrap_or(usize::MAX))
        .filter(|&step| Some(step) != best)
        .collect()
}

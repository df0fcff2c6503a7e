//! Keeps the agent alive when memory runs out: the kernel is to take the trainer, which can be
//! restarted, not the one who restarts it.

use std::fs;
use std::io;
use std::sync::OnceLock;

const SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// Low enough that anything else goes first, above the value (-1000) that exempts altogether: an
/// agent that grows without bound is a fault that has to end.
const SHIELDED: i32 = -900;

/// What the agent was started with, which is what its trainers get.
static INHERITED: OnceLock<i32> = OnceLock::new();

/// Makes the kernel's out-of-memory killer prefer every other process. `false` if this process may
/// not (it takes `CAP_SYS_RESOURCE`), and then nothing changes.
///
/// # Errors
/// If the kernel's file cannot be read or written for another reason.
pub fn shield_from_oom() -> io::Result<bool> {
    let inherited = score_adj()?;
    if inherited <= SHIELDED {
        return Ok(true);
    }
    match set_score_adj(SHIELDED) {
        Ok(()) => {
            INHERITED.get_or_init(|| inherited);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

/// The value for a trainer.
pub(super) fn of_trainers() -> io::Result<i32> {
    INHERITED
        .get()
        .map_or_else(score_adj, |&inherited| Ok(inherited))
}

pub(super) fn set_score_adj(score_adj: i32) -> io::Result<()> {
    fs::write(SCORE_ADJ, score_adj.to_string())
}

fn score_adj() -> io::Result<i32> {
    let text = fs::read_to_string(SCORE_ADJ)?;
    text.trim().parse().map_err(io::Error::other)
}

//! What a trainer finds in its environment: the agent's, without its secrets, and its own place.

use std::env;
use std::ffi::OsString;
use std::path::Path;

use crate::redact;

/// The variable that names where a trainer writes its checkpoints.
pub(super) const CHECKPOINTS: &str = "AGENT_CKPT_DIR";

/// The rule for a trainer's environment.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Set for the trainer; wins over what the agent has.
    pub set: Vec<(OsString, OsString)>,
    /// Names of the agent's secrets that the trainer gets all the same.
    pub pass: Vec<String>,
}

impl Environment {
    /// The variables of an attempt. `checkpoints` is where the trainer writes them, `resume_from`
    /// the checkpoint directory that it goes on from, `error_file` where a Python trainer may leave
    /// its last exception (torchelastic's protocol).
    pub fn of_attempt(
        job: &str,
        attempt: u32,
        epoch: u64,
        checkpoints: &Path,
        resume_from: Option<&Path>,
        error_file: &Path,
    ) -> Self {
        let resume_from = resume_from.map(|path| path.as_os_str().to_owned());
        let set = [
            ("AGENT_JOB_ID", OsString::from(job)),
            ("AGENT_ATTEMPT", attempt.to_string().into()),
            ("AGENT_EPOCH", epoch.to_string().into()),
            (CHECKPOINTS, checkpoints.into()),
            ("AGENT_RESUME_FROM", resume_from.unwrap_or_default()),
            ("TORCHELASTIC_ERROR_FILE", error_file.into()),
            // A Python trainer's lines come as they are printed, not in blocks of 8 KiB.
            ("PYTHONUNBUFFERED", "1".into()),
        ];
        Self {
            set: set.map(|(name, value)| (name.into(), value)).into(),
            pass: Vec::new(),
        }
    }

    /// All variables, from those that the agent itself was given.
    pub(super) fn resolve(&self) -> Vec<(OsString, OsString)> {
        self.resolve_from(env::vars_os())
    }

    pub(super) fn resolve_from(
        &self,
        agents: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Vec<(OsString, OsString)> {
        let inherited = agents.into_iter().filter(|(name, _)| {
            let text = name.to_string_lossy();
            let passed = self.pass.iter().any(|pass| *pass == text);
            let replaced = self.set.iter().any(|(set, _)| set == name);
            !replaced && (passed || !redact::is_the_agents(&text))
        });
        inherited.chain(self.set.iter().cloned()).collect()
    }
}

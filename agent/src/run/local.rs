//! What the agent keeps in the run directory of itself: that it alone uses it, and under which
//! nonces it claimed. Called when a run begins and before each claim.
//!
//! Whoever has the lock knows that every former agent of this directory is dead. So a lease that
//! one of them claimed in this boot is nobody's, and is claimed anew without waiting for its end.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use protocol::RunDir;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::job::Nonce;

/// Nonces kept: those of claims that may still be the newest.
const NONCES_MAX: usize = 16;

/// A run directory that is ours as long as this lives.
pub struct Local {
    path: PathBuf,
    memory: Memory,
    _lock: File,
}

#[derive(Default, Serialize, Deserialize)]
struct Memory {
    boot: String,
    nonces: Vec<Nonce>,
}

impl Local {
    /// Takes the run directory, making it where it is not there. `None`: another agent has it.
    ///
    /// # Errors
    /// If the directory cannot be used.
    pub fn open(run_dir: &RunDir, boot: &str) -> Result<Option<Self>, Error> {
        let root = run_dir.root();
        let failed = |path: &std::path::Path| Error::machine(path.display().to_string());
        fs::create_dir_all(root).map_err(failed(root))?;
        let lock_path = root.join("agent.lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(failed(&lock_path)(error.into())),
        }
        let path = root.join("agent.json");
        let found = fs::read(&path).ok();
        let found = found.and_then(|bytes| serde_json::from_slice::<Memory>(&bytes).ok());
        let memory = match found {
            Some(memory) if memory.boot == boot => memory,
            _ => Memory {
                boot: boot.to_owned(),
                nonces: Vec::new(),
            },
        };
        Ok(Some(Self {
            path,
            memory,
            _lock: lock,
        }))
    }

    /// Whether the claim with this nonce was made here, by this process or a dead one.
    pub fn made(&self, nonce: &Nonce) -> bool {
        self.memory.nonces.contains(nonce)
    }

    /// Notes a nonce before it is claimed with.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn note(&mut self, nonce: &Nonce) -> io::Result<()> {
        let nonces = &mut self.memory.nonces;
        nonces.push(nonce.clone());
        let old = nonces.len().saturating_sub(NONCES_MAX);
        nonces.drain(..old);
        let text = serde_json::to_vec(&self.memory).expect("it holds only strings");
        let aside = self.path.with_extension("json.new");
        fs::write(&aside, text)?;
        fs::rename(aside, &self.path)
    }
}

//! The lock on a run directory: one trainer at a time. Taken by `train` before it touches a file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};

use protocol::RunDir;

use crate::error::{Error, Result};

/// Held for as long as this value lives; the operating system lets go of it however the process
/// ends. The file stays: deleting a lock's file lets two processes lock two files of one name.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Makes the run directory if there is none, and locks it.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process holds it, [`Error::Write`] if it cannot be made.
    pub fn acquire(run: &RunDir) -> Result<Self> {
        let path = run.lock();
        std::fs::create_dir_all(run.root()).map_err(Error::write(run.root()))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::write(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(Error::write(&path)(error)),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // For the message only: without it the message is shorter.
                let holder = match file.read_to_string(&mut pid) {
                    Ok(_) if !pid.trim().is_empty() => format!(" (pid {})", pid.trim()),
                    _ => String::new(),
                };
                return Err(Error::Locked(format!(
                    "run directory {} is in use by another trainer{holder}\n\
                     hint: wait for it, stop it, or name another --out_dir",
                    run.root().display()
                )));
            }
        }
        file.set_len(0)
            .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .map_err(Error::write(&path))?;
        Ok(Self { _file: file })
    }
}

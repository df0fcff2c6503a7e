//! The trainer's one error type: a variant for each case that ends in its own exit code.

use std::io;
use std::path::{Path, PathBuf};

use protocol::ExitCode;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the trainer gives up. Messages say what, where, expected, got; a line that begins with
/// `hint:` says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Faults of the configuration or command line, all of them at once.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// Missing, malformed or unsuitable data or checkpoint.
    #[error("{0}")]
    Data(String),
    /// The device asked for is not usable here.
    #[error("{0}")]
    Device(String),
    /// A file of the run could not be written.
    #[error("cannot write {}: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    /// The run directory is taken by another process.
    #[error("{0}")]
    Locked(String),
    /// The last checkpoint of a run is not on disk.
    #[error("{0}")]
    NotSaved(String),
    /// Loss or gradients ran away.
    #[error("{0}")]
    Diverged(String),
    /// A stop was asked for before there was anything to save.
    #[error("stopped on request")]
    Stopped,
    /// A GPU failed at work: it, its driver, or a fault of ours.
    #[error("{0}")]
    Gpu(String),
    /// candle refused an operation: a fault of ours.
    #[error("engine: {0}")]
    Engine(#[from] candle_core::Error),
}

impl Error {
    /// A single fault of the configuration or command line.
    pub fn config(message: impl Into<String>) -> Self {
        Self::Config(vec![message.into()])
    }

    /// For `map_err` on anything that writes `path`.
    pub fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }

    /// For `map_err` on anything that reads `path`.
    pub fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Data(format!("cannot read {}: {source}", path.display()))
    }

    /// The exit code for this error; `None` for a crash.
    pub fn exit_code(&self) -> Option<ExitCode> {
        match self {
            Self::Config(_) => Some(ExitCode::Config),
            Self::Data(_) => Some(ExitCode::Data),
            Self::Device(_) => Some(ExitCode::Device),
            Self::Write { .. } | Self::Locked(_) | Self::NotSaved(_) => Some(ExitCode::CannotWrite),
            Self::Diverged(_) => Some(ExitCode::Diverged),
            Self::Stopped => Some(ExitCode::Stopped),
            Self::Gpu(_) | Self::Engine(_) => None,
        }
    }
}

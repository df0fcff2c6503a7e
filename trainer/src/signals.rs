//! The signals a trainer answers to: SIGTERM and SIGINT stop it after a checkpoint, a second one at
//! once; SIGUSR1 asks for a checkpoint.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::ExitCode;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

/// What has been asked for since the process started.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    stop: Arc<AtomicBool>,
    checkpoint: Arc<AtomicBool>,
    /// There is nothing to save yet: a stop ends the process at once.
    nothing_to_save: Arc<AtomicBool>,
}

impl Signals {
    /// Takes over the signals of this process. Until [`Self::training_begins`], a stop exits with
    /// [`ExitCode::Stopped`] where it stands.
    pub fn install() -> io::Result<Self> {
        let signals = Self::default();
        signals.nothing_to_save.store(true, Ordering::SeqCst);
        for signal in [SIGTERM, SIGINT] {
            // Handlers run in this order. The shell's convention for death by a signal is 128 + n.
            let stopped = i32::from(ExitCode::Stopped.code());
            flag::register_conditional_shutdown(
                signal,
                stopped,
                Arc::clone(&signals.nothing_to_save),
            )?;
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&signals.stop))?;
            flag::register(signal, Arc::clone(&signals.stop))?;
        }
        flag::register(SIGUSR1, Arc::clone(&signals.checkpoint))?;
        Ok(signals)
    }

    /// From here on a stop means: checkpoint first.
    pub fn training_begins(&self) {
        self.nothing_to_save.store(false, Ordering::SeqCst);
    }

    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Whether a checkpoint was asked for since the last call.
    pub fn take_checkpoint_request(&self) -> bool {
        self.checkpoint.swap(false, Ordering::SeqCst)
    }

    /// For callers that stop a run from within the process.
    pub fn request_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

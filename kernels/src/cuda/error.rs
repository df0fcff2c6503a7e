//! What can go wrong on a device.

/// A failure of a device or of a launch.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// There is no device to work on; the text says what is missing and what to do.
    #[error("{0}")]
    Unavailable(String),

    #[error("{device}: kernel {kernel} does not exist")]
    UnknownKernel { kernel: String, device: String },

    #[error("{device}: kernel {kernel}: {expected} arguments expected, got {got}")]
    ArgumentCount {
        kernel: String,
        device: String,
        expected: usize,
        got: usize,
    },

    #[error("{device}: kernel {kernel}: argument {index} must be {expected}, got {got}")]
    Argument {
        kernel: String,
        device: String,
        index: usize,
        expected: String,
        got: String,
    },

    #[error(
        "{device}: kernel {kernel} cannot be launched with grid {grid:?}, block {block:?} and \
         {shared_bytes} bytes of shared memory: {reason}"
    )]
    Launch {
        kernel: String,
        device: String,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        reason: String,
    },

    #[error("{device}: no memory for {bytes} bytes")]
    OutOfMemory { device: String, bytes: usize },

    /// What cannot be recorded.
    #[error("{device}: capture: {reason}")]
    Capture { device: String, reason: String },

    /// What the driver refused, or what went wrong in work that was launched earlier.
    #[error("{device}: {doing}: {reason}")]
    Driver {
        device: String,
        doing: String,
        reason: String,
    },
}

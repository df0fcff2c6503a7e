//! Files as they are, and those that gzip or zstd packed, as one stream of bytes. Called by
//! `prepare` and by `locate`.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

use crate::{Error, Result};

const BUFFER_BYTES: usize = 1 << 18;

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// What the last extension of a name says, and the name without it.
    pub fn of(name: &str) -> (Self, &str) {
        if let Some(rest) = name.strip_suffix(".gz") {
            (Self::Gzip, rest)
        } else if let Some(rest) = name.strip_suffix(".zst") {
            (Self::Zstd, rest)
        } else {
            (Self::Plain, name)
        }
    }

    /// Opens the file at `path` to be read unpacked; `read` hears of the packed bytes.
    ///
    /// # Errors
    /// [`Error::Data`] if the file cannot be read.
    pub(super) fn open(self, path: &Path, read: &Arc<AtomicU64>) -> Result<Box<dyn Read + Send>> {
        let file = File::open(path).map_err(Error::read(path))?;
        let counted = Counted {
            file,
            read: Arc::clone(read),
        };
        let reader = BufReader::with_capacity(BUFFER_BYTES, counted);
        Ok(match self {
            Self::Plain => Box::new(reader),
            Self::Gzip => Box::new(MultiGzDecoder::new(reader)),
            Self::Zstd => Box::new(
                zstd::stream::read::Decoder::with_buffer(reader).map_err(Error::read(path))?,
            ),
        })
    }

    /// For `map_err` on what reads the file that a person knows as `name`.
    pub(super) fn cannot_read(self, name: &str) -> impl Fn(io::Error) -> Error {
        let name = name.to_owned();
        let format = match self {
            Self::Plain => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        };
        move |error| {
            Error::Data(match format {
                Some(format) => format!(
                    "{name}: expected a whole {format} stream, got a damaged one: {error}\n\
                     hint: the file was cut short or damaged; fetch or copy it again"
                ),
                None => format!("cannot read {name}: {error}"),
            })
        }
    }

    /// Unpacks the file at `from` into one at `to`.
    ///
    /// # Errors
    /// [`Error::Data`] if the file, called `name`, is damaged; [`Error::Write`] if the disk
    /// refuses.
    pub fn unpack(self, from: &Path, name: &str, to: &Path) -> Result<()> {
        let mut reader = self.open(from, &Arc::default())?;
        let mut file = File::create(to).map_err(Error::write(to))?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    io::Write::write_all(&mut file, &buffer[..read]).map_err(Error::write(to))?
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.cannot_read(name)(error)),
            }
        }
    }
}

/// A file that tells how much of it was read.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

//! Writes a token file piece by piece. Called by preparation.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::shard::Format;
use crate::error::{Error, Result};

const WRITE_BUFFER_BYTES: usize = 1 << 20;
/// Ids that are turned into bytes at a time.
const PIECE_TOKENS: usize = 1 << 12;

/// Writes a token file piece by piece.
#[derive(Debug)]
pub struct TokenWriter {
    path: PathBuf,
    file: BufWriter<File>,
    format: Format,
    vocab_size: usize,
    count: u64,
}

impl TokenWriter {
    /// Creates the file at `path`, or empties it. The caller gives a temporary name and renames.
    ///
    /// # Errors
    /// [`Error::Write`] when the file cannot be created.
    pub fn create(path: &Path, vocab_size: usize) -> Result<Self> {
        let format = Format::of(vocab_size);
        let file = File::create(path).map_err(Error::write(path))?;
        let mut file = BufWriter::with_capacity(WRITE_BUFFER_BYTES, file);
        file.write_all(&format.header(0))
            .map_err(Error::write(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            format,
            vocab_size,
            count: 0,
        })
    }

    /// Appends `ids`.
    ///
    /// # Errors
    /// [`Error::Data`] when an id is not of the vocabulary (nothing of `ids` is written then),
    /// [`Error::Write`] when the disk refuses.
    pub fn write(&mut self, ids: &[u32]) -> Result<()> {
        if let Some(index) = ids.iter().position(|id| *id as usize >= self.vocab_size) {
            return Err(Error::Data(format!(
                "{}: token {} is id {}, but the vocabulary has {} ids (0 to {})",
                self.path.display(),
                self.count + index as u64,
                ids[index],
                self.vocab_size,
                self.vocab_size - 1
            )));
        }
        let written = match self.format {
            Format::U32 => self.write_in_pieces(ids, |id, bytes: &mut [u8; 4]| {
                *bytes = id.to_le_bytes();
            }),
            Format::U16 | Format::Llmc => self.write_in_pieces(ids, |id, bytes: &mut [u8; 2]| {
                *bytes = (id as u16).to_le_bytes();
            }),
        };
        written.map_err(Error::write(&self.path))?;
        self.count += ids.len() as u64;
        Ok(())
    }

    /// Writes many ids at a time: a call for each would take longer than to make it.
    fn write_in_pieces<const BYTES: usize>(
        &mut self,
        ids: &[u32],
        write: impl Fn(u32, &mut [u8; BYTES]),
    ) -> io::Result<()> {
        let mut bytes = [[0; BYTES]; PIECE_TOKENS];
        for ids in ids.chunks(PIECE_TOKENS) {
            for (id, bytes) in ids.iter().zip(&mut bytes) {
                write(*id, bytes);
            }
            self.file.write_all(bytes[..ids.len()].as_flattened())?;
        }
        Ok(())
    }

    /// Completes the header, flushes to the disk and returns the number of tokens written.
    ///
    /// # Errors
    /// [`Error::Write`] when the disk refuses.
    pub fn finish(self) -> Result<u64> {
        let Self {
            path,
            file,
            format,
            count,
            ..
        } = self;
        let mut file = file
            .into_inner()
            .map_err(|error| Error::write(&path)(error.into_error()))?;
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(&format.header(count)))
            .and_then(|()| file.sync_all())
            .map_err(Error::write(&path))?;
        Ok(count)
    }
}

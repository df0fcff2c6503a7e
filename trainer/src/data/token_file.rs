//! Token files: nanoGPT's `.bin`, llm.c's, and the same for vocabularies that 16 bits cannot hold.
//!
//! nanoGPT's: little-endian `u16`, nothing else. llm.c's: a header of 256 `i32` (magic 20240520,
//! version 1, token count, zeros), then `u16`. Beyond 65,536 ids: a header of 24 bytes (magic
//! `ANNEAL32`, `u32` version 1, `u32` reserved 0, `u64` token count), then `u32`; all
//! little-endian. Preparation writes the first and the last, [`super::Dataset`] opens and checks
//! any, the loader copies windows out of the mapping.

mod shard;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use shard::Shard;
pub use writer::TokenWriter;

use crate::error::Result;

/// Largest vocabulary whose ids fit into 16 bits.
pub const VOCAB_SIZE_U16_MAX: usize = 1 << 16;

/// The tokens of one file, or of several that follow each other, or of a part of them, mapped into
/// memory: pages are read when they are used.
#[derive(Debug)]
pub struct TokenFile {
    shards: Vec<Arc<Shard>>,
    /// The first token of each shard.
    starts: Vec<usize>,
    /// Tokens of the first shard that belong to another part.
    skipped: usize,
    /// Tokens.
    len: usize,
}

impl TokenFile {
    /// Maps the token file at `path`, whose ids are to lie below `vocab_size`. The ids themselves
    /// are read by [`Self::check_ids`].
    ///
    /// # Errors
    /// [`crate::Error::Data`] when the file is missing, empty, of a length that its format cannot
    /// have, or not in a format that this vocabulary calls for.
    pub fn open(path: &Path, vocab_size: usize) -> Result<Self> {
        Self::open_all(&[path.to_owned()], vocab_size)
    }

    /// Maps files of which each goes on where the one before ended.
    ///
    /// # Errors
    /// As [`Self::open`].
    ///
    /// # Panics
    /// When there are none.
    pub fn open_all(paths: &[PathBuf], vocab_size: usize) -> Result<Self> {
        assert!(!paths.is_empty(), "a token file of no files");
        let mut shards = Vec::with_capacity(paths.len());
        let mut starts = Vec::with_capacity(paths.len());
        let mut len = 0;
        for path in paths {
            let shard = Shard::open(path, vocab_size)?;
            starts.push(len);
            len += shard.len();
            shards.push(Arc::new(shard));
        }
        Ok(Self {
            shards,
            starts,
            skipped: 0,
            len,
        })
    }

    /// Makes sure that the file at `path` is one of llm.c's, where only its path says that it is of
    /// tokens.
    ///
    /// # Errors
    /// [`crate::Error::Data`] if its header is another's.
    pub fn expect_llmc(path: &Path) -> Result<()> {
        shard::expect_llmc(path)
    }

    /// The first `at` tokens, and the others.
    ///
    /// # Panics
    /// When one of them would be empty, or this is a part already.
    pub fn split(self, at: usize) -> (Self, Self) {
        assert!(0 < at && at < self.len && self.skipped == 0, "two parts");
        // The last shard that begins before the cut, and the last that begins at it or before.
        let before = self.starts.partition_point(|start| *start < at);
        let first = self.starts.partition_point(|start| *start <= at) - 1;
        let second = Self {
            shards: self.shards[first..].to_vec(),
            starts: self.starts[first..]
                .iter()
                .map(|start| start - self.starts[first])
                .collect(),
            skipped: at - self.starts[first],
            len: self.len - at,
        };
        let mut first = self;
        first.shards.truncate(before);
        first.starts.truncate(before);
        first.len = at;
        (first, second)
    }

    /// Number of tokens, at least 1.
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty file is refused at open"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The file, or the first of several.
    pub fn path(&self) -> &Path {
        self.shards[0].path()
    }

    /// Copies the tokens `start..start + out.len()` into `out`.
    ///
    /// # Panics
    /// When the range passes the end of the file.
    pub fn copy(&self, start: usize, mut out: &mut [u32]) {
        assert!(
            start <= self.len && out.len() <= self.len - start,
            "{} tokens from {start} of {}, which holds {}",
            out.len(),
            self.path().display(),
            self.len
        );
        let start = start + self.skipped;
        // The first shard starts at 0, so that one of them always qualifies.
        let mut index = self.starts.partition_point(|first| *first <= start) - 1;
        let mut within = start - self.starts[index];
        while !out.is_empty() {
            let shard = &self.shards[index];
            let count = out.len().min(shard.len() - within);
            let (now, later) = out.split_at_mut(count);
            shard.copy(within, now);
            out = later;
            (index, within) = (index + 1, 0);
        }
    }

    /// Verifies that every id lies below the vocabulary. A success is remembered beside each file
    /// (`<name>.checked`) by size, modification time and vocabulary, so that it is read once; where
    /// that note cannot be written, the next run scans again.
    ///
    /// # Errors
    /// [`crate::Error::Data`] naming the first id at or beyond the vocabulary and its position.
    pub fn check_ids(&self) -> Result<()> {
        self.shards.iter().try_for_each(|shard| shard.check_ids())
    }
}

#[cfg(test)]
mod tests;

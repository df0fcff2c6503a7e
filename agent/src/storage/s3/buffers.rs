//! Memory for large answers, used again as long as others are on their way. Called by `s3`.
//!
//! Allocated anew for each range, freed buffers stay with the C library's allocator, some for every
//! thread: a restore took 92 MiB where 32 are in flight.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Buffers that were lent, and those that are free until the last comes back.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers(Arc<Mutex<Shelf>>);

#[derive(Debug, Default)]
struct Shelf {
    free: Vec<Vec<u8>>,
    lent: usize,
}

/// One that is lent: empty at first, and back on the shelf when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    /// An empty buffer with room for so many bytes.
    pub(super) fn lend(&self, bytes: usize) -> Buffer {
        let mut shelf = self.shelf();
        shelf.lent += 1;
        let mut memory = shelf.free.pop().unwrap_or_default();
        drop(shelf);
        memory.reserve_exact(bytes);
        Buffer {
            memory,
            home: self.clone(),
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.memory.extend_from_slice(bytes);
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut memory = std::mem::take(&mut self.memory);
        memory.clear();
        let mut shelf = self.home.shelf();
        shelf.lent -= 1;
        if shelf.lent > 0 {
            shelf.free.push(memory);
        } else {
            shelf.free.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn memory_is_used_again_and_none_is_kept() {
        let buffers = Buffers::default();
        let mut first = buffers.lend(1000);
        first.extend(b"first");
        let second = buffers.lend(10);
        let place = first.as_ref().as_ptr();
        let shown = Bytes::from_owner(first);
        assert_eq!(shown, "first");
        let part = shown.slice(1..3);
        drop(shown);
        assert_eq!(part, "ir", "it is not back while a part of it is used");
        assert!(buffers.shelf().free.is_empty());
        drop(part);

        let mut third = buffers.lend(1000);
        assert!(third.as_ref().is_empty());
        third.extend(b"third");
        assert_eq!(third.as_ref().as_ptr(), place);
        drop(second);
        assert_eq!(buffers.shelf().free.len(), 1);
        drop(third);
        let shelf = buffers.shelf();
        assert_eq!((shelf.free.len(), shelf.lent), (0, 0));
    }
}

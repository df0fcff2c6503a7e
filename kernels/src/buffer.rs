//! Flat memory that begins at a cache line, where the CPU engine keeps parameters and activations,
//! and products what they pack.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Bytes of a cache line. A vector register across two lines costs two accesses, and two threads
/// that share a line take it from each other.
const LINE: usize = 64;

/// Bytes of a large page, of which an operation needs a handful where it needs a thousand small
/// ones: translating their addresses took a tenth of the time of a large model.
const LARGE_PAGE: usize = 2 << 20;

/// Numbers, zero at first, from a cache line on; in large pages if they fill one.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Fresh from the system: what was touched before stays in small pages. `None` if empty.
    map: Option<MmapMut>,
    /// Bytes before the first number.
    start: usize,
    /// Bytes of the numbers.
    bytes: usize,
}

impl Buffer {
    /// `len` zeros.
    ///
    /// # Panics
    /// If the system has no memory left, which a run's plan makes sure of before.
    pub fn zeros(len: usize) -> Self {
        let bytes = len * size_of::<f32>();
        if bytes == 0 {
            return Self::default();
        }
        let line = if bytes >= LARGE_PAGE {
            LARGE_PAGE
        } else {
            LINE
        };
        let map = MmapMut::map_anon(bytes + line).expect("a run's memory was checked before");
        let start = map.as_ptr().align_offset(line);
        #[cfg(target_os = "linux")]
        if line == LARGE_PAGE {
            // A kernel without large pages refuses, and small ones do as well.
            map.advise_range(memmap2::Advice::HugePage, start, bytes)
                .ok();
        }
        Self {
            map: Some(map),
            start,
            bytes,
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.map {
            Some(map) => bytemuck::cast_slice(&map[self.start..][..self.bytes]),
            None => &[],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.map {
            Some(map) => bytemuck::cast_slice_mut(&mut map[self.start..][..self.bytes]),
            None => &mut [],
        }
    }
}

//! Flat memory that begins at a cache line, where the engine keeps parameters and activations.

use std::ops::{Deref, DerefMut};

use crate::machine;

/// Elements of a cache line. A vector register across two lines costs two accesses, and two
/// threads that share a line take it from each other.
const LINE: usize = 16;

/// Elements of a large page.
const LARGE: usize = machine::LARGE_PAGE / size_of::<f32>();

/// Numbers, zero at first, from a cache line on, in large pages if they fill some.
#[derive(Default)]
pub(super) struct Buffer {
    data: Vec<f32>,
    start: usize,
}

impl Buffer {
    pub(super) fn zeros(len: usize) -> Self {
        let line = if len >= LARGE { LARGE } else { LINE };
        // Fresh zeros are not touched, so the part before the first line takes no memory.
        let data = vec![0.0; len + line - 1];
        let start = data.as_ptr().align_offset(line * size_of::<f32>());
        assert!(start < line, "floats lie at multiples of their size");
        let mut buffer = Self { data, start };
        buffer.data.truncate(start + len);
        machine::use_large_pages(&mut buffer);
        buffer
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[self.start..]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..]
    }
}

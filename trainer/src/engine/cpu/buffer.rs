//! Flat memory that begins at a cache line, where the engine keeps parameters and activations.

use std::ops::{Deref, DerefMut};

/// Elements of a cache line. A vector register across two lines costs two accesses, and two
/// threads that share a line take it from each other.
const LINE: usize = 16;

/// Numbers, zero at first, from the first cache line of an allocation on.
#[derive(Default)]
pub(super) struct Buffer {
    data: Vec<f32>,
    start: usize,
}

impl Buffer {
    pub(super) fn zeros(len: usize) -> Self {
        let data = vec![0.0; len + LINE - 1];
        let start = data.as_ptr().align_offset(LINE * size_of::<f32>());
        assert!(start < LINE, "floats lie at multiples of their size");
        let mut buffer = Self { data, start };
        buffer.data.truncate(start + len);
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

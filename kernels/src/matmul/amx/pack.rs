//! Operands cut into three bf16 and laid out as AMX's tiles take them.
//!
//! A strip is 16 rows of a, or 16 columns of b, over a depth; a step of it is 32 of the depth, one
//! tile for each of the three parts. A tile of a holds a row in each line, one of b a column in
//! each double word; a double word holds two elements of the depth, here always `p` and `p + 16`
//! of the step, so that two registers go into one without a shuffle. Sums take them in that order.

use std::arch::x86_64::*;

use super::kernel::SIDE;
use crate::buffer::Buffer;
use crate::matmul::tile::{Product, View};
use crate::matmul::transpose::square_16;

/// Depth of a step.
pub(super) const STEP: usize = 32;

/// Lines of a step of a strip: three tiles.
pub(super) const STEP_LINES: usize = 3 * SIDE;

/// A cache line: a row of a tile, pairs of bf16.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Line([u32; SIDE]);

// SAFETY: integers without gaps.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// 16 x 16 elements.
#[repr(C, align(64))]
struct Square([f32; SIDE * SIDE]);

impl Square {
    const ZEROS: Self = Self([0.0; SIDE * SIDE]);
}

/// A block of an operand: of each step, the tiles of all strips, one behind the other.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    pub(super) lines: &'a [Line],
    /// An even number.
    pub(super) strips: usize,
}

impl Packed<'_> {
    /// The block from a strip on, of which `strips` is the distance from step to step.
    pub(super) fn from(self, strip: usize) -> Self {
        assert!(strip.is_multiple_of(2) && strip < self.strips);
        Self {
            lines: &self.lines[strip * STEP_LINES..],
            strips: self.strips,
        }
    }

    /// Steps of which the first two strips are there.
    pub(super) fn steps(&self) -> usize {
        let step = self.strips * STEP_LINES;
        (self.lines.len() + step).saturating_sub(2 * STEP_LINES) / step
    }
}

/// One operand, seen from its strips: index `i` is a row of a or a column of b, `l` the depth.
pub(super) struct Operand<'a> {
    data: &'a [f32],
    /// Between neighbours of the index that is not contiguous.
    stride: usize,
    /// Whether neighbours in depth are contiguous, or those of one depth.
    is_deep: bool,
    /// Whether squares must be transposed: a's lines are its rows, b's its depth.
    transposes: bool,
}

impl<'a> Operand<'a> {
    pub(super) fn left(product: &Product<'a>) -> Self {
        let View { data, row, col } = product.a;
        Self::new(data, [row, col], true)
    }

    pub(super) fn right(product: &Product<'a>) -> Self {
        let View { data, row, col } = product.b;
        Self::new(data, [col, row], false)
    }

    fn new(data: &'a [f32], [along, deep]: [usize; 2], is_left: bool) -> Self {
        assert!(along == 1 || deep == 1, "an operand without gaps");
        let is_deep = deep == 1;
        Self {
            data,
            stride: if is_deep { along } else { deep },
            is_deep,
            transposes: is_deep != is_left,
        }
    }

    /// Whether neighbours in depth are contiguous.
    pub(super) fn is_deep(&self) -> bool {
        self.is_deep
    }

    /// Steps that are worth packing at a time: of those before, whole lines were fetched.
    pub(super) fn steps_least(&self) -> usize {
        if self.is_deep { 4 } else { 1 }
    }

    /// The strips of indices from .. to, packed into the buffer.
    pub(super) fn packed<'b>(
        &self,
        indices: [usize; 2],
        depth: [usize; 2],
        buffer: &'b mut Buffer,
    ) -> Packed<'b> {
        let strips = super::strips(indices);
        let lines = super::room_for(strips * super::steps(depth) * STEP_LINES, buffer);
        self.pack(lines, indices, depth);
        Packed { lines, strips }
    }

    /// Packs the strips of indices from .. to, an even number of them; what lies beyond is zero.
    pub(super) fn pack(&self, to: &mut [Line], [from, end]: [usize; 2], depth: [usize; 2]) {
        assert!(super::is_there());
        let (strips, steps) = (super::strips([from, end]), super::steps(depth));
        assert!(end > from && depth[1] > depth[0] && to.len() == strips * steps * STEP_LINES);
        let last = match self.is_deep {
            true => (end - 1) * self.stride + depth[1] - 1,
            false => (depth[1] - 1) * self.stride + end - 1,
        };
        assert!(last < self.data.len(), "an operand");
        let mut pack = |strip: usize, step: usize| {
            let to = &mut to[(step * strips + strip) * STEP_LINES..][..STEP_LINES];
            let to = to.try_into().expect("a step");
            let (i, l) = (from + strip * SIDE, depth[0] + step * STEP);
            let size = [end.saturating_sub(i).min(SIDE), (depth[1] - l).min(STEP)];
            // SAFETY: AVX-512 is there where tiles are; all elements before `end` and the depth's
            // end are in the data by the lines above.
            unsafe {
                if size == [SIDE, STEP] {
                    self.step(to, i, l);
                } else {
                    self.last_step(to, i, l, size);
                }
            }
        };
        // What is contiguous, one after the other.
        if self.is_deep {
            (0..strips).for_each(|strip| (0..steps).for_each(|step| pack(strip, step)));
        } else {
            (0..steps).for_each(|step| (0..strips).for_each(|strip| pack(strip, step)));
        }
    }

    /// One whole step.
    ///
    /// # Safety
    /// AVX-512 is there, and the data holds indices i..i + 16 of depths l..l + 32.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn step(&self, to: &mut [Line; STEP_LINES], i: usize, l: usize) {
        let stride = self.stride;
        // SAFETY: the caller's promise.
        let halves = unsafe {
            let data = self.data.as_ptr();
            match self.is_deep {
                true => [0, SIDE].map(|half| data.add(i * stride + l + half)),
                false => [0, SIDE].map(|half| data.add((l + half) * stride + i)),
            }
        };
        // Those of the next step.
        let ahead =
            halves.map(|half| half.wrapping_add(if self.is_deep { STEP } else { STEP * stride }));
        // SAFETY: the caller's promise.
        unsafe {
            if self.transposes {
                let mut squares = [Square::ZEROS; 2];
                for (square, half) in squares.iter_mut().zip(halves) {
                    square_16((square.0.as_mut_ptr(), SIDE), (half, stride));
                }
                cut(
                    to,
                    squares.each_ref().map(|square| square.0.as_ptr()),
                    SIDE,
                    (ahead, stride),
                );
            } else {
                cut(to, halves, stride, (ahead, stride));
            }
        }
    }

    /// A step at the end of the indices or the depth, zero beyond.
    ///
    /// # Safety
    /// AVX-512 is there, and the data holds as many as `size` says.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn last_step(
        &self,
        to: &mut [Line; STEP_LINES],
        i: usize,
        l: usize,
        [count, depth]: [usize; 2],
    ) {
        let mut squares = [Square::ZEROS; 2];
        for (half, square) in squares.iter_mut().enumerate() {
            let deep = depth.saturating_sub(half * SIDE).min(SIDE);
            let l = l + half * SIDE;
            for (i_in, l_in) in (0..count).flat_map(|i| (0..deep).map(move |l| (i, l))) {
                let at = match self.is_deep {
                    true => (i + i_in) * self.stride + l + l_in,
                    false => (l + l_in) * self.stride + i + i_in,
                };
                // Lines of a are rows, lines of b depths.
                let is_left = self.is_deep != self.transposes;
                let line = if is_left { [i_in, l_in] } else { [l_in, i_in] };
                square.0[line[0] * SIDE + line[1]] = self.data[at];
            }
        }
        // SAFETY: the caller's promise.
        unsafe {
            let squares = squares.each_ref().map(|square| square.0.as_ptr());
            cut(to, squares, SIDE, (squares, SIDE));
        }
    }
}

/// Cuts 16 lines of two registers each into the three tiles of their parts.
///
/// The nearest bf16 is found by adding half of its last place to the bits; what is left after two
/// of them fits into the third. A NaN's bits may overflow there, but not in the third part.
///
/// # Safety
/// 16 lines of 16 elements at `stride` can be read behind either pointer.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn cut(
    to: &mut [Line; STEP_LINES],
    halves: [*const f32; 2],
    stride: usize,
    (ahead, ahead_stride): ([*const f32; 2], usize),
) {
    let half = _mm512_set1_epi32(0x8000);
    let top = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    let nearest = |x: __m512| {
        let bits = _mm512_add_epi32(_mm512_castps_si512(x), half);
        _mm512_castsi512_ps(_mm512_and_si512(bits, top))
    };
    for line in 0..SIDE {
        for half in ahead {
            _mm_prefetch::<_MM_HINT_T0>(half.wrapping_add(line * ahead_stride).cast());
        }
        // SAFETY: the caller's promise.
        let x = halves.map(|half| unsafe { _mm512_loadu_ps(half.add(line * stride)) });
        let first = x.map(nearest);
        let rest = [0, 1].map(|i| _mm512_sub_ps(x[i], first[i]));
        let second = rest.map(nearest);
        let third = [0, 1].map(|i| _mm512_sub_ps(rest[i], second[i]));
        for (part, pair) in [first, second, third].into_iter().enumerate() {
            let [low, high] = pair.map(|x| _mm512_castps_si512(x));
            let low = _mm512_srli_epi32::<16>(low);
            // low | (high & top)
            let pair = _mm512_ternarylogic_epi32::<0xf8>(low, high, top);
            // SAFETY: a line of the step, on a cache line.
            unsafe { _mm512_store_si512((&raw mut to[part * SIDE + line]).cast(), pair) };
        }
    }
}

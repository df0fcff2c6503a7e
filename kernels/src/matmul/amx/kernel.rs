//! 32 x 32 elements of the result, summed up in four of AMX's eight tiles; the other four hold two
//! strips of a and two of b. `amx.rs` packs and calls.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::pack::{Line, Packed, STEP_LINES};

/// Rows of a tile, and columns in f32.
pub(super) const SIDE: usize = 16;

/// Whether the machine has tiles of bf16, and Linux gives this process their state.
///
/// CPUID 7.0 and XCR0 as in Intel's manual, volume 1, 13.3 and 18; `arch_prctl` as in the kernel's
/// Documentation/arch/x86/xstate.rst. The permission holds for all threads.
pub(super) fn permitted() -> bool {
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    const TILE_STATES: u64 = 1 << 17 | 1 << 18;
    const OSXSAVE: u32 = 1 << 27;
    let leaf = __cpuid_count(7, 0);
    if leaf.edx & BF16_AND_TILES != BF16_AND_TILES || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    // SAFETY: OSXSAVE says that the instruction is there.
    if unsafe { xcr0() } & TILE_STATES != TILE_STATES {
        return false;
    }
    request()
}

/// # Safety
/// The operating system has enabled XSAVE.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: the caller's promise.
    unsafe { _xgetbv(0) }
}

#[cfg(target_os = "linux")]
fn request() -> bool {
    const SYS_ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call that touches no memory of this process.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn request() -> bool {
    false
}

/// Configured tiles of this thread, all of 16 rows of 64 bytes; given back when dropped.
pub(super) struct Tiles(PhantomData<*const ()>);

/// LDTILECFG's operand for palette 1.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    pub(super) fn new() -> Self {
        assert!(super::is_there());
        let mut configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_per_row: [0; 16],
            rows: [0; 16],
        };
        configuration.bytes_per_row[..8].fill(size_of::<Line>() as u16);
        configuration.rows[..8].fill(SIDE as u8);
        // SAFETY: the machine has tiles and the process may use them.
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) &raw const configuration,
                options(nostack, preserves_flags, readonly),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            );
        }
        Self(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the machine has tiles.
        unsafe {
            asm!(
                "tilerelease",
                options(nomem, nostack, preserves_flags),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            );
        }
    }
}

/// At most 32 x 32 elements of the result: out `=` a · b (+ before).
pub(super) struct Sums<'a> {
    /// Packed rows and columns, of which the first two strips count.
    pub(super) a: Packed<'a>,
    pub(super) b: Packed<'a>,
    /// Element (i, j) at `i * stride + j`.
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    /// Rows and columns.
    pub(super) size: [usize; 2],
    /// What the product is added to, laid out as `out`; null if there is nothing.
    pub(super) before: *const f32,
    /// Another buffer, laid out as `out`, that is wanted when the sums are there; or `out`.
    pub(super) beside: *const f32,
}

/// Buffers of the same layout, of which 32 x 32 elements are fetched.
struct Wanted {
    out: *const f32,
    beside: *const f32,
    stride: usize,
}

/// Where 32 x 32 sums wait for what they are added to.
pub(super) struct Room([Line; 4 * SIDE]);

impl Room {
    pub(super) fn new() -> Self {
        Self([Line::default(); 4 * SIDE])
    }
}

impl Sums<'_> {
    /// Whether the sums are the result, and all of them are wanted.
    fn are_all(&self) -> bool {
        self.before.is_null() && self.size == [2 * SIDE; 2]
    }

    /// Computes them, as far as they can be without waiting. `meanwhile` is called after each step,
    /// with its number and that of all.
    ///
    /// # Safety
    /// The elements of out are the caller's.
    pub(super) unsafe fn compute(
        &self,
        tiles: &Tiles,
        room: &mut Room,
        meanwhile: impl FnMut(usize, usize),
    ) {
        assert!(self.size.iter().all(|size| (1..=2 * SIDE).contains(size)));
        let (to, stride) = match self.are_all() {
            true => (self.out, self.stride),
            false => (room.0.as_mut_ptr().cast::<f32>(), 2 * SIDE),
        };
        let wanted = Wanted {
            out: self.out,
            beside: self.beside,
            stride: self.stride,
        };
        // SAFETY: all of the 32 x 32 elements are the caller's, or those of the room, 32 rows of
        // two lines.
        unsafe { multiply(tiles, [self.a, self.b], (to, stride), wanted, meanwhile) };
    }

    /// Does what is left for some rows, in the room that they were computed with.
    ///
    /// # Safety
    /// The elements of out are the caller's, those of `before` may be read.
    pub(super) unsafe fn finish(&self, room: &Room, rows: Range<usize>) {
        assert!(rows.end <= self.size[0]);
        if !self.are_all() {
            // SAFETY: the caller's promise; AVX-512 is there where tiles are.
            unsafe { self.add(room.0.as_ptr().cast(), rows) };
        }
    }

    /// out = sums (32, 32) (+ before) in these rows, as far as they are wanted.
    ///
    /// # Safety
    /// As of `compute`.
    #[target_feature(enable = "avx512f")]
    unsafe fn add(&self, sums: *const f32, rows: Range<usize>) {
        let cols = self.size[1];
        let masks = [0, SIDE].map(|from| {
            let width = cols.saturating_sub(from).min(SIDE);
            u16::MAX.checked_shr((SIDE - width) as u32).unwrap_or(0)
        });
        for i in rows {
            for (j, mask) in [0, SIDE].into_iter().zip(masks) {
                let at = i * self.stride + j;
                // SAFETY: masked elements are not touched, the others are the caller's.
                unsafe {
                    let mut sum = _mm512_loadu_ps(sums.add(i * 2 * SIDE + j));
                    if !self.before.is_null() {
                        let before = _mm512_maskz_loadu_ps(mask, self.before.wrapping_add(at));
                        sum = _mm512_add_ps(before, sum);
                    }
                    _mm512_mask_storeu_ps(self.out.wrapping_add(at), mask, sum);
                }
            }
        }
    }
}

/// One step of the sums: the six products of parts, each needs its own tiles, but neighbours share
/// those of one side. `$out` and `$beside` follow every other product.
macro_rules! step {
    ($out:literal, $beside:literal) => {
        concat!(
            // a1 b3
            "tileloadd tmm4, [{a} + {line}]\n",
            "tileloadd tmm6, [{b} + {line} + 2048]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            $out,
            "tileloadd tmm7, [{b} + {line} + 5120]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            $beside,
            "tileloadd tmm5, [{a} + {line} + 3072]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            $out,
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            $beside,
            // a1 b2
            "tileloadd tmm6, [{b} + {line} + 1024]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            $out,
            "tileloadd tmm7, [{b} + {line} + 4096]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            $beside,
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            $out,
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            $beside,
            // a2 b2
            "tileloadd tmm4, [{a} + {line} + 1024]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            $out,
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            $beside,
            "tileloadd tmm5, [{a} + {line} + 4096]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            $out,
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            $beside,
            // a2 b1
            "tileloadd tmm6, [{b} + {line}]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            $out,
            "tileloadd tmm7, [{b} + {line} + 3072]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            $beside,
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            $out,
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            $beside,
            // a3 b1
            "tileloadd tmm4, [{a} + {line} + 2048]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            $out,
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            $beside,
            "tileloadd tmm5, [{a} + {line} + 5120]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            $out,
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            $beside,
            // a1 b1
            "tileloadd tmm4, [{a} + {line}]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            $out,
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            $beside,
            "tileloadd tmm5, [{a} + {line} + 3072]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            $out,
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            $beside,
        )
    };
}

/// Products of a step after which a row of either buffer is fetched.
const ROWS_PER_STEP: usize = 12;

/// to (32, 32), rows of `stride` elements, = the product of two strips of a and two of b.
/// Meanwhile 32 rows of the wanted buffers are fetched, a few at a time: many at once would hold
/// up the tiles.
///
/// Tiles 0 to 3 hold the sums from one block of instructions to the next: the compiler makes no
/// code of its own that uses tiles.
///
/// # Safety
/// The elements of `to` are the caller's.
#[inline(always)]
unsafe fn multiply(
    _tiles: &Tiles,
    [a, b]: [Packed<'_>; 2],
    (to, stride): (*mut f32, usize),
    wanted: Wanted,
    mut meanwhile: impl FnMut(usize, usize),
) {
    let steps = a.steps();
    assert_eq!(b.steps(), steps, "steps of the strips");
    let fetching = (2 * SIDE).div_ceil(ROWS_PER_STEP);
    let row = wanted.stride * size_of::<f32>();
    let (mut out, mut beside) = (wanted.out, wanted.beside);
    // SAFETY: the tiles are configured; no memory is touched.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nomem, nostack, preserves_flags),
        );
    }
    for step in 0..steps {
        let from = [a, b].map(|packed| &raw const packed.lines[step * packed.strips * STEP_LINES]);
        // SAFETY: the tiles are configured; 6 KiB are read of each step, which are there by the
        // lines above; a fetch touches nothing.
        unsafe {
            if step < fetching {
                asm!(
                    step!(
                        "prefetchw [{out}]\nprefetchw [{out} + 64]\n\
                         add {out}, {row}\n",
                        "prefetcht0 [{beside}]\nprefetcht0 [{beside} + 64]\n\
                         add {beside}, {row}\n"
                    ),
                    a = in(reg) from[0],
                    b = in(reg) from[1],
                    line = in(reg) size_of::<Line>(),
                    out = inout(reg) out,
                    beside = inout(reg) beside,
                    row = in(reg) row,
                    options(nostack, readonly),
                );
            } else {
                asm!(
                    step!("", ""),
                    a = in(reg) from[0],
                    b = in(reg) from[1],
                    line = in(reg) size_of::<Line>(),
                    options(nostack, readonly, preserves_flags),
                );
            }
        }
        meanwhile(step, steps);
    }
    // SAFETY: the tiles are configured; 32 rows at `to` are written by the caller's leave.
    unsafe {
        asm!(
            "tilestored [{to} + {stride}], tmm0",
            "tilestored [{to} + {stride} + 64], tmm1",
            "tilestored [{below} + {stride}], tmm2",
            "tilestored [{below} + {stride} + 64], tmm3",
            to = in(reg) to,
            below = in(reg) to.wrapping_add(SIDE * stride),
            stride = in(reg) stride * size_of::<f32>(),
            options(nostack, preserves_flags),
        );
    }
}

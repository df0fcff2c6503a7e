//! Whether the emulator finds what it is there for: the kernels of `planted.cu` are wrong, each in
//! one way, and must be caught with kernel, block, thread and line.
//!
//! Each runs in a child process: this program again, told by a variable what to run.
//! Under a sanitizer (see `sanitize.sh`) some reports come from it, and races are found that no
//! schedule shows.

#![expect(unsafe_code, reason = "launches of broken kernels")]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::ffi::c_void;
use std::process::{Command, Output};

use emulator::{Kernel, Memory, Order, Schedule};

const SOURCE: &str = include_str!("planted.cu");
const SANITIZER: &str = env!("ANNEAL_EMULATOR_SANITIZE");
const CASE: &str = "ANNEAL_PLANTED_CASE";
const THREADS: usize = 64;

/// How a case is launched. Its text is what the child is told: the fields between commas.
#[derive(Clone, Copy, Debug)]
struct Case {
    kernel: &'static str,
    schedule: Schedule,
    elements: usize,
    blocks: u32,
    shared_bytes: usize,
}

const FORWARD: Schedule = Schedule {
    order: Order::Forward,
    seed: 1,
    late: 1,
    wave: 1,
    threads: 1,
};
const REVERSE: Schedule = Schedule {
    order: Order::Reverse,
    ..FORWARD
};
const RANDOM: Schedule = Schedule {
    order: Order::Random,
    ..FORWARD
};

impl Case {
    const fn new(kernel: &'static str) -> Self {
        Self {
            kernel,
            schedule: FORWARD,
            elements: THREADS,
            blocks: 1,
            shared_bytes: 0,
        }
    }

    /// Runs the kernel here; the elements of `out`.
    fn launch(&self) -> Vec<f32> {
        let kernel = Kernel::find(self.kernel).expect(self.kernel);
        let memory = |len: usize| Memory::new(len * size_of::<f32>()).unwrap();
        let (out, input) = (memory(self.elements), memory(THREADS));
        for i in 0..THREADS {
            // SAFETY: the memory has as many elements and is aligned.
            unsafe { input.as_ptr().cast::<f32>().add(i).write(i as f32 + 1.0) }
        }
        let mut pointers = [out.as_ptr(), input.as_ptr()];
        let mut arguments = pointers
            .each_mut()
            .map(|p| std::ptr::from_mut(p).cast::<c_void>());
        let (grid, block) = ([self.blocks, 1, 1], [THREADS as u32, 1, 1]);
        let (shared_bytes, schedule) = (self.shared_bytes, &self.schedule);
        // SAFETY: two pointers to floats; what else the kernel touches is what is to be found.
        unsafe { kernel.launch(grid, block, shared_bytes, schedule, &mut arguments) }
        // SAFETY: the memory holds as many elements.
        unsafe { std::slice::from_raw_parts(out.as_ptr().cast(), self.elements).to_vec() }
    }

    /// Runs it in a child. `name` is the test's own, which the child runs.
    fn run(&self, name: &str) -> Output {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
        command.env(CASE, "1").output().unwrap()
    }
}

/// Runs the case in a child, which must die and say all of `expected`.
fn caught(name: &str, case: Case, expected: &[&str]) {
    if std::env::var_os(CASE).is_some() {
        case.launch();
        return;
    }
    let output = case.run(name);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{} was not caught", case.kernel);
    let kernel = format!("emulator: kernel {}", case.kernel);
    for part in expected.iter().chain([&kernel.as_str()]) {
        assert!(
            text.contains(part),
            "{}: expected `{part}`, got:\n{text}",
            case.kernel
        );
    }
}

/// `planted.cu:LINE` of the line that is marked for the kernel.
fn line(kernel: &str) -> String {
    let mark = format!("// PLANTED: {kernel}");
    let line = SOURCE.lines().position(|line| line.ends_with(&mark));
    format!("planted.cu:{}", line.expect(kernel) + 1)
}

macro_rules! planted {
    ($($name:ident: $case:expr, [$($expected:expr),*];)*) => {$(
        #[test]
        fn $name() {
            caught(stringify!($name), $case, &[$(&$expected),*]);
        }
    )*};
}

const fn case(kernel: &'static str) -> Case {
    Case::new(kernel)
}

planted! {
    divergent_barrier: case("divergent_barrier"),
        ["block (0, 0, 0), thread (32, 0, 0)", "planted.cu:", "divergent barrier"];
    exit_before_barrier: case("exit_before_barrier"),
        ["thread (40, 0, 0)", "divergent barrier: this thread exits", line("exit_before_barrier")];
    exit_before_barrier_in_reverse: Case { schedule: REVERSE, ..case("exit_before_barrier") },
        ["thread (40, 0, 0)", "this thread exits", line("exit_before_barrier")];
    misaligned_vector: case("misaligned_vector"),
        ["thread (0, 0, 0)", line("misaligned_vector"), "a 16-byte vector at"];
    misaligned_copy: case("misaligned_copy"),
        ["thread (0, 0, 0)", line("misaligned_copy"), "the source of cp.async"];
    misaligned_copy_to: case("misaligned_copy_to"),
        ["thread (0, 0, 0)", line("misaligned_copy_to"), "the destination of cp.async"];
    misaligned_load_matrix: case("misaligned_load_matrix"),
        ["thread (", line("misaligned_load_matrix"), "a row of ldmatrix"];
    load_matrix_outside: case("load_matrix_outside"),
        ["thread (", line("load_matrix_outside"), "outside the block's shared memory"];
    mismatched_collectives: case("mismatched_collectives"),
        ["thread (1, 0, 0)", "mismatched collectives", "__shfl_xor_sync", "__ballot_sync"];
    mismatched_masks: case("mismatched_masks"),
        ["thread (1, 0, 0)", "mismatched collectives", "mask 0xffff", "mask 0xffffffff"];
    shuffle_outside_mask: case("shuffle_outside_mask"),
        [line("shuffle_outside_mask"), "lane 0 reads lane 16, which is not in the mask"];
    absent_lane: case("absent_lane"),
        ["thread (0, 0, 0)", line("absent_lane"), "deadlock: waits in __shfl_xor_sync"];
    deadlock: case("deadlock"),
        ["thread (0, 0, 0)", line("deadlock"), "deadlock: waits in a barrier"];
    shared_exhausted: Case { shared_bytes: 99 << 10, ..case("shared_exhausted") },
        [line("shared_exhausted"), "at most 101376 bytes", "got 256 of static arrays and 101376"];
    global_overrun: case("global_overrun"),
        ["thread (7, 0, 0)", "which is no memory of the kernel"];
    global_read_overrun: case("global_read_overrun"),
        ["thread (9, 0, 0)", "which is no memory of the kernel"];
    global_overrun_near: Case { elements: 62, ..case("global_overrun_near") },
        [overrun("a write 0 bytes beyond the end of the memory of argument 0 (248 bytes)")];
    global_underrun: case("global_underrun"),
        [overrun("a write 4 bytes before the memory of argument 0 (256 bytes)")];
    static_overrun: case("static_overrun"),
        ["thread (63, 0, 0)", overrun("a write 0 bytes beyond the end of shared array words"),
            overrun(&full_line("static_overrun"))];
    static_overrun_far: case("static_overrun_far"),
        [overrun("a write 80 bytes beyond the end of shared array words (256 bytes"),
            overrun(&full_line("static_overrun_far"))];
    dynamic_overrun: Case { shared_bytes: 256, ..case("dynamic_overrun") },
        ["thread (5, 0, 0)", overrun(&format!("{}: a write 0 bytes beyond the end of dynamic",
            line("dynamic_overrun")))];
}

/// What the emulator says of memory, or the sanitizer, which is quicker.
fn overrun(text: &str) -> String {
    let text = match SANITIZER {
        "address" => "AddressSanitizer",
        _ => text,
    };
    text.to_owned()
}

fn full_line(kernel: &str) -> String {
    format!("{}/tests/{}", env!("CARGO_MANIFEST_DIR"), line(kernel))
}

/// Whether the kernel's result is what its right twin gives, in each of the schedules.
fn right(kernel: &'static str, schedules: &[Schedule], expected: impl Fn(usize) -> f32) -> bool {
    schedules.iter().all(|&schedule| {
        let out = Case {
            schedule,
            ..case(kernel)
        }
        .launch();
        out.iter().enumerate().all(|(t, &x)| x == expected(t))
    })
}

/// A race must not be run under the sanitizer that ends the process at it.
fn ends_at_races() -> bool {
    SANITIZER == "thread"
}

#[test]
fn a_missing_barrier_shows_in_every_order() {
    let next = |t| ((t + 1) % 64) as f32 + 1.0;
    for schedule in [FORWARD, REVERSE, RANDOM] {
        assert!(right("fine_barrier", &[schedule], next));
        if !ends_at_races() {
            assert!(!right("missing_barrier", &[schedule], next), "{schedule:?}");
        }
    }
}

#[test]
fn a_wait_that_is_too_late_shows_where_copies_land_late() {
    let same = |t| t as f32 + 1.0;
    let early = Schedule { late: 0, ..FORWARD };
    assert!(right("fine_wait", &[FORWARD, early], same));
    assert!(right("late_wait", &[early], same));
    assert!(!right("late_wait", &[FORWARD], same));
}

#[test]
fn a_missing_barrier_after_a_wait_shows() {
    if !ends_at_races() {
        let reversed = |t| (63 - t) as f32 + 1.0;
        assert!(!right("wait_without_barrier", &[FORWARD], reversed));
        assert!(!right("wait_without_barrier", &[REVERSE], reversed));
    }
}

#[test]
fn what_is_right_is_not_reported() {
    let neighbour = |t: usize| (t ^ 1) as f32 + 1.0;
    let blocks = Case {
        blocks: 5,
        schedule: Schedule { wave: 2, ..RANDOM },
        ..case("fine_blocks")
    };
    let reversed: Vec<f32> = (0..THREADS).map(|t| (64 - t) as f32).collect();
    assert_eq!(blocks.launch(), reversed);
    assert!(right(
        "fine_syncwarp",
        &[FORWARD, REVERSE, RANDOM],
        neighbour
    ));
}

/// Results happen to be right: only the sanitizer knows.
#[test]
fn races_that_no_result_shows_are_left_to_the_sanitizer() {
    let neighbour = |t: usize| (t ^ 1) as f32 + 1.0;
    if !ends_at_races() {
        assert!(right(
            "shuffle_for_syncwarp",
            &[FORWARD, REVERSE, RANDOM],
            neighbour
        ));
    }
}

/// With a sanitizer these are caught; without, nobody claims that they are.
macro_rules! sanitized {
    ($($sanitizer:literal: $name:ident, $case:expr, [$($expected:expr),*];)*) => {$(
        #[test]
        fn $name() {
            if SANITIZER == $sanitizer {
                caught(stringify!($name), $case, &[$($expected),*]);
            }
        }
    )*};
}

sanitized! {
    "thread": race_of_a_missing_barrier, case("missing_barrier"),
        ["ThreadSanitizer: data race", "planted.cu"];
    "thread": race_of_a_shuffle_for_syncwarp, case("shuffle_for_syncwarp"),
        ["ThreadSanitizer: data race", "planted.cu"];
    "thread": race_of_a_wait_without_barrier, case("wait_without_barrier"),
        ["ThreadSanitizer: data race"];
    "thread": race_of_blocks,
        Case { blocks: 2, schedule: Schedule { wave: 2, ..FORWARD }, ..case("blocks_race") },
        ["ThreadSanitizer: data race", "planted.cu"];
    "undefined": undefined_shift, case("shift_too_far"),
        ["planted.cu", "shift exponent 40 is too large"];
}

//! The machine a run is on: threads, memory, and the process-wide settings that must be made before
//! the first thread starts.

use std::fs;
use std::thread;

/// Threads for a run: `requested`, or every core this process may use if that is 0.
pub fn threads(requested: usize) -> usize {
    match requested {
        0 => thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// Sets thread counts and the allocator for the whole process.
///
/// candle takes its thread counts from the environment only. Its pool for element-wise operations
/// spins while it waits, which costs more than it gains beside a busy neighbour, so that one gets a
/// single thread; matrix products use all of them. Every tensor is a fresh allocation: keeping
/// large blocks in the heap instead of returning them saves a page fault for each 4 KiB.
///
/// To be called before any other thread exists.
pub fn configure(threads: usize) {
    let variables = [
        ("RAYON_NUM_THREADS", threads.to_string()),
        ("CANDLE_NUM_THREADS", "1".to_owned()),
    ];
    for (name, value) in variables {
        #[expect(
            unsafe_code,
            reason = "candle offers no other way to set its thread counts"
        )]
        // SAFETY: the caller guarantees that no other thread exists, so none reads the environment.
        unsafe {
            std::env::set_var(name, value);
        }
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // Some releases of glibc refuse a threshold above half of a heap's size.
        const HALF_A_HEAP: libc::c_int = 32 << 20;
        let set = |option, bytes| {
            #[expect(unsafe_code, reason = "the allocator's settings are a C interface")]
            // SAFETY: mallopt takes any integers; a value it does not like is refused.
            let is_taken = unsafe { libc::mallopt(option, bytes) } == 1;
            is_taken
        };
        const NEVER: libc::c_int = 1 << 30;
        if !set(libc::M_MMAP_THRESHOLD, NEVER) {
            set(libc::M_MMAP_THRESHOLD, HALF_A_HEAP);
        }
        set(libc::M_TRIM_THRESHOLD, NEVER);
        set(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Gives back to the system what was freed, and `configure` made the heap keep.
pub fn release_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "the allocator's settings are a C interface")]
        // SAFETY: malloc_trim touches nothing that is in use.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Memory this process may still take, bytes: what the kernel has available, or what the cgroup's
/// limit leaves, whichever is less. `None` where neither can be read.
pub fn memory_available() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let kernel = read("/proc/meminfo").and_then(|text| kibibytes(&text, "MemAvailable:"));
    let number = |path: &str| read(path).and_then(|text| text.trim().parse::<u64>().ok());
    let cgroups = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ];
    let left = cgroups
        .iter()
        .filter_map(|(limit, used)| Some(number(limit)?.saturating_sub(number(used)?)));
    left.chain(kernel).min()
}

/// Largest resident memory of this process so far, bytes.
pub fn peak_memory() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The value of a `Key:   123 kB` line, in bytes.
fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// This program as the person called it, for the commands that it proposes.
pub fn program() -> String {
    std::env::args()
        .next()
        .unwrap_or_else(|| "trainer".to_owned())
}

/// A size for people: `12.8 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A count for people: `1,003,854`.
pub fn human_count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_sizes_read_well() {
        assert_eq!(human_count(7), "7");
        assert_eq!(human_count(1_003_854), "1,003,854");
        assert_eq!(human_count(491_520), "491,520");
        assert_eq!(human_bytes(512), "512 B");
        assert_eq!(human_bytes(13_421_773), "12.8 MiB");
        assert_eq!(human_bytes(80 << 30), "80.0 GiB");
    }

    #[test]
    fn the_kernels_tables_are_read() {
        let status = "VmPeak:\t  100 kB\nVmHWM:\t    2048 kB\n";
        assert_eq!(kibibytes(status, "VmHWM:"), Some(2048 * 1024));
        assert_eq!(kibibytes(status, "VmRSS:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_memory_and_threads() {
        let peak = peak_memory().unwrap();
        assert!(peak > 1 << 20, "{peak}");
        assert!(memory_available().unwrap() > 1 << 20);
        assert!(threads(0) >= 1);
        assert_eq!(threads(3), 3);
    }
}

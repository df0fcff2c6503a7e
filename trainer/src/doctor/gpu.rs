//! Driver, libraries, GPUs and the precision that a run would compute in. Called by the doctor.

use std::fs;
use std::path::{Path, PathBuf};

use protocol::ExitCode;

use super::{Check, failed};
use crate::config::Config;
use crate::engine::Place;

const LIBRARY: &str = "libcuda.so.1";

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let root = Path::new("/");
    let mut checks = vec![driver(
        kernel_driver(root).as_deref(),
        library(root).as_deref(),
        cfg!(feature = "cuda"),
    )];
    checks.extend(device(config, &gpus(root)));
    checks
}

/// The version of the driver in the kernel.
fn kernel_driver(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join("proc/driver/nvidia/version")).ok()?;
    version_of(&text)
}

/// The first word of `NVRM version: … Kernel Module  580.65.06  …` that begins with digits and a
/// dot.
pub(super) fn version_of(text: &str) -> Option<String> {
    let line = text
        .lines()
        .find(|line| line.starts_with("NVRM version:"))?;
    let is_version = |word: &&str| {
        let (major, rest) = word.split_once('.').unwrap_or(("", ""));
        major.parse::<u32>().is_ok() && rest.starts_with(|c: char| c.is_ascii_digit())
    };
    line.split_whitespace().find(is_version).map(str::to_owned)
}

/// Where the driver's library lies, as the loader would find it.
pub(super) fn library(root: &Path) -> Option<PathBuf> {
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let given = path.split(':').filter(|dir| !dir.is_empty());
    let usual = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/nvidia/lib64",
        "/usr/local/nvidia/lib",
        "/usr/lib/wsl/lib",
    ];
    let mut places = given.chain(usual).map(|dir| {
        let below = dir.strip_prefix('/').unwrap_or(dir);
        root.join(below).join(LIBRARY)
    });
    places.find(|path| path.exists()).or_else(|| {
        // The loader's cache holds paths between zero bytes.
        let cache = fs::read(root.join("etc/ld.so.cache")).ok()?;
        let mut entries = cache.split(|&byte| byte == 0);
        let entry = entries.find(|entry| entry.ends_with(b"/libcuda.so.1"))?;
        Some(PathBuf::from(String::from_utf8_lossy(entry).into_owned()))
    })
}

/// Names of the GPUs that the kernel's driver has.
pub(super) fn gpus(root: &Path) -> Vec<String> {
    let Ok(folders) = fs::read_dir(root.join("proc/driver/nvidia/gpus")) else {
        return Vec::new();
    };
    let name = |folder: fs::DirEntry| {
        let text = fs::read_to_string(folder.path().join("information")).ok()?;
        let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(model.trim().to_owned())
    };
    folders.flatten().filter_map(name).collect()
}

/// `built` says whether this program can use a GPU at all.
pub(super) fn driver(kernel: Option<&str>, library: Option<&Path>, built: bool) -> Check {
    const MAJOR_MIN: u32 = 525;
    let found = match (kernel, library) {
        (None, None) if built => {
            return Check::warning(
                "driver",
                format!("no NVIDIA driver ({LIBRARY} was not found): runs use the CPU"),
                "install the driver, 525 or later; in a container, pass the GPUs in (--gpus all)",
            );
        }
        (None, None) => return Check::ok("driver", "no NVIDIA driver: runs use the CPU"),
        (Some(version), None) => {
            return Check::error(
                "driver",
                ExitCode::Device,
                format!("the kernel has driver {version}, but {LIBRARY} was not found"),
                "in a container, start it with --gpus all and the NVIDIA container toolkit",
            );
        }
        (version, Some(library)) => {
            let version = version.unwrap_or("of unknown version");
            format!("NVIDIA driver {version}, {}", library.display())
        }
    };
    let major = kernel.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    if major.is_some_and(|major| major < MAJOR_MIN) {
        return Check::error(
            "driver",
            ExitCode::Device,
            format!("{found}: too old"),
            format!("update it to {MAJOR_MIN} or later"),
        );
    }
    if !built {
        return Check::warning(
            "driver",
            format!("{found}: this program is built for the CPU only, the GPU stays idle"),
            "build it with --features cuda (needs nvcc)",
        );
    }
    Check::ok("driver", found)
}

/// The device that the config would compute on, its precision and memory.
fn device(config: &Config, gpus: &[String]) -> Vec<Check> {
    let found = if gpus.is_empty() {
        "no NVIDIA GPU".to_owned()
    } else {
        gpus.join(", ")
    };
    match Place::open(&config.device) {
        Err(error) => {
            let mut check = failed("gpu", ExitCode::Device, &error);
            check.found = format!("{found}; {}", check.found);
            vec![check]
        }
        Ok(Place::Cpu) => vec![
            Check::ok(
                "gpu",
                format!("{found}; device={} is the CPU", config.device),
            ),
            dtype_on_cpu(config),
        ],
        #[cfg(any(test, feature = "device"))]
        Ok(Place::Gpu(device)) => on_gpu(config, &device),
    }
}

fn dtype_on_cpu(config: &Config) -> Check {
    match config.dtype.as_str() {
        "auto" | "float32" => Check::ok("dtype", "float32"),
        other => Check::warning(
            "dtype",
            format!("float32: the CPU computes in nothing else, whatever dtype={other} says"),
            "--dtype=auto",
        ),
    }
}

#[cfg(any(test, feature = "device"))]
fn on_gpu(config: &Config, device: &kernels::cuda::Device) -> Vec<Check> {
    let properties = device.properties();
    let (major, minor) = properties.compute_capability;
    let has_bf16 = major >= 8;
    let mut checks = vec![Check::ok(
        "gpu",
        format!(
            "{}, compute capability {major}.{minor} (kernels: 7.5 and later), {} multiprocessors",
            device.name(),
            properties.multiprocessors
        ),
    )];
    checks.push(match config.dtype.as_str() {
        "bfloat16" if !has_bf16 => Check::error(
            "dtype",
            ExitCode::Config,
            format!("bfloat16: {} has none", device.name()),
            "--dtype=float16, or auto",
        ),
        "float32" => Check::warning(
            "dtype",
            "float32: several times slower than 16 bits, and twice the activations",
            "--dtype=auto",
        ),
        "auto" if has_bf16 => Check::ok("dtype", "bfloat16, weights in float32"),
        "auto" => Check::ok("dtype", "float16 with loss scaling, weights in float32"),
        other => Check::ok("dtype", other),
    });
    let memory =
        || -> Option<(u64, u64)> { Some((device.free_bytes().ok()??, device.used_bytes().ok()??)) };
    if let Some((free, used)) = memory() {
        checks.push(gpu_memory(free, used));
    }
    checks
}

/// Free and used bytes of a GPU that nothing of ours is on yet.
#[cfg(any(test, feature = "device"))]
pub(super) fn gpu_memory(free: u64, used: u64) -> Check {
    use crate::machine::human_bytes;
    let found = format!("{} free of {}", human_bytes(free), human_bytes(free + used));
    // The driver and our own context take about so much.
    const OWN: u64 = 1 << 30;
    if used > OWN && used > free / 10 {
        return Check::warning(
            "gpu memory",
            format!("{found}: somebody else uses the GPU, a run gets what is left"),
            "nvidia-smi shows who",
        );
    }
    Check::ok("gpu memory", found)
}

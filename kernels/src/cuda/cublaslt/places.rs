//! Where libcublasLt may lie. Asked by `Library::open`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::VARIABLE;

/// The newest first: an older one is tried where the driver is too old for it.
const NAMES: [&str; 2] = ["libcublasLt.so.13", "libcublasLt.so.12"];
/// Where pip puts NVIDIA's libraries, below a folder of packages.
const WHEELS: [&str; 2] = ["nvidia/cu13/lib", "nvidia/cublas/lib"];

/// What may be loaded, in order: by path where such a file is there, at last by name, which asks
/// the loader for its own folders. `variable` reads the environment.
pub(super) fn candidates(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    if let Some(wanted) = variable(VARIABLE).map(PathBuf::from) {
        return if wanted.is_dir() {
            NAMES.map(|name| wanted.join(name)).into()
        } else {
            vec![wanted]
        };
    }
    let mut folders = Vec::new();
    for home in ["CUDA_HOME", "CUDA_PATH"] {
        folders.extend(variable(home).map(|home| Path::new(&home).join("lib64")));
    }
    if let Some(list) = variable("LD_LIBRARY_PATH") {
        folders.extend(std::env::split_paths(&list));
    }
    let mut pythons: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(|name| variable(name).map(|home| Path::new(&home).join("lib")))
        .collect();
    pythons.extend(variable("HOME").map(|home| Path::new(&home).join(".local/lib")));
    for lib in ["/usr/local/lib", "/usr/lib", "/opt/conda/lib"] {
        pythons.push(lib.into());
    }
    folders.extend(pythons.iter().flat_map(|lib| wheels(lib)));
    folders.push("/usr/local/cuda/lib64".into());
    let by_path = NAMES
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .filter(|file| file.is_absolute() && file.is_file());
    let mut found: Vec<PathBuf> = by_path.collect();
    found.extend(NAMES.map(PathBuf::from));
    found
}

/// Folders of NVIDIA's libraries in the packages of the Pythons below `lib`.
fn wheels(lib: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(lib) else {
        return Vec::new();
    };
    let mut pythons: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
        .map(|entry| entry.path())
        .collect();
    pythons.sort();
    let packages = pythons.iter().rev().flat_map(|python| {
        ["site-packages", "dist-packages"].map(|packages| python.join(packages))
    });
    packages
        .flat_map(|packages| WHEELS.map(|wheel| packages.join(wheel)))
        .filter(|folder| folder.is_dir())
        .collect()
}

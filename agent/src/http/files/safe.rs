//! Opening files below a directory and nowhere else. Called by the artifacts.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

/// Folders within folders.
const DEPTH_MAX: usize = 16;

/// The agent's own files: they are no artifact.
const OWN: [&str; 5] = [
    "agent.lock",
    "agent.json",
    "agent.json.new",
    "lock",
    "stage",
];

/// Whether a path is of a file that is shown: plain words, none of them hidden or the agent's own.
pub(crate) fn is_shown(path: &str) -> bool {
    let words: Vec<&str> = path.split('/').collect();
    let plain =
        |word: &&str| !word.is_empty() && !word.starts_with('.') && !word.contains(['\\', '\0']);
    let own = OWN.contains(&words[0]) || path.starts_with("logs/spool");
    words.len() <= DEPTH_MAX && words.iter().all(plain) && !own
}

/// Opens a file below `root`. No component may be a link: each is opened by its name in the folder
/// before it.
///
/// # Errors
/// If it is not there, or is not reached by folders alone.
pub(crate) fn open(root: &Path, path: &str) -> io::Result<File> {
    if !is_shown(path) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The root itself is the user's choice and may be a link.
    let mut at = openat(CWD, root, folder, Mode::empty())?;
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    for word in folders.split('/').filter(|word| !word.is_empty()) {
        at = openat(&at, word, folder | OFlags::NOFOLLOW, Mode::empty())?;
    }
    // A pipe in the place of a file must not hold the reader up.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(File::from(openat(&at, name, flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_the_directory_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(dir.path().join("secret"), "no").unwrap();
        std::fs::write(root.join("a/b/file"), "yes").unwrap();
        symlink(dir.path().join("secret"), root.join("link")).unwrap();
        symlink(dir.path(), root.join("up")).unwrap();
        symlink(root.join("a"), root.join("inner")).unwrap();
        let mut text = String::new();
        open(&root, "a/b/file")
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "yes");
        for path in [
            "../secret",
            "a/../../secret",
            "a/./b/file",
            "/etc/passwd",
            "link",
            "up/secret",
            "up/run/a/b/file",
            "inner/b/file",
            "a//b/file",
            "",
            ".",
            "a/b/file\0",
            "agent.json",
            ".hidden",
            "checkpoints/.tmp-x/model",
        ] {
            assert!(open(&root, path).is_err(), "{path:?}");
        }
    }
}

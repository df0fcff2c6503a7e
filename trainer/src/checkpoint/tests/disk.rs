//! Disks that are full or read-only, folders that are not there, and the lock: nothing simulated.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::*;

/// A snapshot of about 6 × `floats` × 4 bytes.
fn large(step: u64, floats: usize) -> Snapshot {
    let mut snapshot = snapshot(step, 1);
    let EngineState {
        parameters,
        exp_avg,
        exp_avg_sq,
        ..
    } = &mut snapshot.engine;
    for group in [parameters, exp_avg, exp_avg_sq] {
        group[0].shape = vec![2, floats];
        group[0].data = vec![0.5; 2 * floats];
    }
    snapshot
}

/// Saves on a disk with room for a small checkpoint but not for a large one; does nothing where no
/// folder is set.
#[test]
fn little_room() {
    let Some(folder) = child_folder() else { return };
    let cause = std::env::var("ANNEAL_TEST_CAUSE").unwrap();
    let run = RunDir::new(folder);
    let mut checkpoints = Checkpoints::open(run.clone(), 1).unwrap();
    hand_over(&mut checkpoints, snapshot(1, 1));
    hand_over(&mut checkpoints, large(2, 50_000));
    let outcomes = checkpoints.finish();
    let [
        SaveOutcome::Written { step: 1, .. },
        SaveOutcome::Failed { step: 2, error },
    ] = outcomes.as_slice()
    else {
        panic!("{outcomes:?}");
    };
    assert!(error.starts_with("cannot write "), "{error}");
    assert!(error.contains("model.safetensors: "), "{error}");
    assert!(error.contains(&cause), "{error}");
    assert_eq!(names(&run), ["step_0000000001"]);
    assert!(is_same(&newest(&run).unwrap(), &snapshot(1, 1)));

    // A large state of the run: the save fails in another file, and training goes on.
    let mut wordy = snapshot(3, 1);
    wordy.state.config = "x".repeat(400_000);
    hand_over(&mut checkpoints, wordy);
    let outcomes = checkpoints.finish();
    let [SaveOutcome::Failed { step: 3, error }] = outcomes.as_slice() else {
        panic!("{outcomes:?}");
    };
    assert!(error.contains("state.json: "), "{error}");
    let error = atomic_write(&run.config(), &[b'x'; 400_000]).unwrap_err();
    assert_eq!(error.exit_code(), Some(ExitCode::CannotWrite));
    assert!(!run.config().exists());

    hand_over(&mut checkpoints, snapshot(4, 1));
    assert!(matches!(
        checkpoints.finish().as_slice(),
        [SaveOutcome::Written { step: 4, .. }]
    ));
    assert_eq!(names(&run), ["step_0000000004"]);
    let root: Vec<_> = fs::read_dir(run.root()).unwrap().collect();
    assert_eq!(root.len(), 1, "{root:?}");
    println!("little room: done");
}

/// Runs [`little_room`] from within `sh -c prelude`, by way of `wrapper`.
fn with_little_room(wrapper: &[&str], prelude: &str, cause: &str) {
    let folder = tempfile::tempdir().unwrap();
    let plain = child("disk::little_room", folder.path());
    let output = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .args(["-c", &format!("{prelude} && exec \"$0\" \"$@\"")])
        .arg(plain.get_program())
        .args(plain.get_args())
        .env("ANNEAL_TEST_FOLDER", folder.path())
        .env("ANNEAL_TEST_CAUSE", cause)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("little room: done"), "{text}");
}

/// The kernel refuses to make a file larger than the limit, as it does on a disk that is full.
#[test]
fn a_file_that_cannot_grow_fails_that_save_alone() {
    with_little_room(&["sh"], "trap '' XFSZ && ulimit -f 256", "File too large");
}

/// Where the system lets us mount, the disk is really full.
#[test]
fn a_full_disk_fails_that_save_alone() {
    let unshare = ["unshare", "--map-root-user", "--mount", "sh"];
    let mount = "mount -t tmpfs -o size=256k tmpfs \"$ANNEAL_TEST_FOLDER\"";
    let folder = tempfile::tempdir().unwrap();
    let may_mount = Command::new(unshare[0])
        .args(&unshare[1..])
        .args(["-c", mount])
        .env("ANNEAL_TEST_FOLDER", folder.path())
        .output()
        .is_ok_and(|output| output.status.success());
    if may_mount {
        with_little_room(&unshare, mount, "No space left on device");
    } else {
        println!("not run: no mount namespaces here; the test of the file limit stands for it");
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    // Nobody makes a directory in /proc, not even root.
    for root in [file.join("run"), "/proc/anneal".into()] {
        let run = RunDir::new(&root);
        let errors = [
            RunLock::acquire(&run).unwrap_err(),
            Checkpoints::open(run.clone(), 1).unwrap_err(),
            atomic_write(&run.config(), b"x").unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.exit_code(), Some(ExitCode::CannotWrite), "{error}");
            let message = error.to_string();
            let expected = format!("cannot write {}", root.display());
            assert!(message.starts_with(&expected), "{message}");
        }
    }
}

#[test]
fn a_folder_that_goes_away_fails_the_save_and_not_the_run() {
    let (_folder, run) = run();
    let mut checkpoints = Checkpoints::open(run.clone(), 1).unwrap();
    fs::remove_dir(run.checkpoints()).unwrap();
    fs::write(run.checkpoints(), "in the way").unwrap();
    hand_over(&mut checkpoints, snapshot(1, 1));
    let outcomes = checkpoints.finish();
    assert!(
        matches!(outcomes.as_slice(), [SaveOutcome::Failed { step: 1, .. }]),
        "{outcomes:?}"
    );
    fs::remove_file(run.checkpoints()).unwrap();
    hand_over(&mut checkpoints, snapshot(2, 1));
    assert!(matches!(
        checkpoints.finish().as_slice(),
        [SaveOutcome::Written { step: 2, .. }]
    ));
}

#[test]
fn atomic_write_replaces_a_file_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    for contents in ["a long first text", "short"] {
        atomic_write(&path, contents.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), contents);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

/// Holds the lock until it is killed; does nothing where no folder is set.
#[test]
fn holder() {
    let Some(folder) = child_folder() else { return };
    let _lock = RunLock::acquire(&RunDir::new(folder)).unwrap();
    println!("\nlocked");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_run_in_use_is_refused_until_its_trainer_is_gone() {
    let (_folder, run) = run();
    let mut holder = child("disk::holder", run.root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "locked"));

    let error = RunLock::acquire(&run).unwrap_err();
    assert!(matches!(error, Error::Locked(_)), "{error:?}");
    let expected = format!(
        "run directory {} is in use by another trainer (pid {})\nhint: ",
        run.root().display(),
        holder.id()
    );
    assert!(error.to_string().starts_with(&expected), "{error}");

    holder.kill().unwrap();
    holder.wait().unwrap();
    let lock = RunLock::acquire(&run).unwrap();
    let pid = fs::read_to_string(run.lock()).unwrap();
    assert_eq!(pid, format!("{}\n", std::process::id()));
    assert!(RunLock::acquire(&run).is_err());
    drop(lock);
    assert!(RunLock::acquire(&run).is_ok());
}

//! A process killed ahead of any single operation on the disk leaves the old checkpoint or the new
//! one, whole. Each test starts this binary again and again, to be killed one operation later.

use std::cell::RefCell;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::write;
use super::*;

const OPERATIONS: &str = "ANNEAL_TEST_OPERATIONS";
const JOB: &str = "ANNEAL_TEST_JOB";
/// Exit status of a process that was stopped on the way.
const KILLED: i32 = 86;
/// More operations than any of these jobs takes.
const OPERATIONS_MAX: u64 = 500;

thread_local! {
    static TRACE: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Called ahead of each operation that changes the disk. In a child that is to be killed it ends
/// the process once as many as it was granted are done; nothing is unwound, flushed or cleaned up.
pub(in crate::checkpoint) fn before(operation: &str, path: &Path) {
    static LEFT: LazyLock<Option<AtomicU64>> = LazyLock::new(|| {
        let granted = std::env::var(OPERATIONS).ok()?;
        Some(AtomicU64::new(granted.parse().expect("a number")))
    });
    if let Some(left) = LEFT.as_ref()
        && left.fetch_sub(1, Ordering::SeqCst) == 0
    {
        #[expect(clippy::exit, reason = "stands for SIGKILL")]
        std::process::exit(KILLED);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let line = format!("{operation} {name}");
    TRACE.with_borrow_mut(|trace| {
        if trace.last() != Some(&line) {
            trace.push(line);
        }
    });
}

/// The process that is killed; does nothing where no job is set.
#[test]
fn victim() {
    let Some(folder) = child_folder() else { return };
    let job = std::env::var(JOB).unwrap();
    let [step, seed] = [0, 1].map(|field| job.split(' ').nth(field).unwrap());
    let run = RunDir::new(folder);
    save(
        &run,
        1,
        &snapshot(step.parse().unwrap(), seed.parse().unwrap()),
    );
}

/// Starts a save of `new` on a copy of `prepared` and kills it ahead of its first operation, then
/// ahead of its second, and so on until it gets through. Each time `old` or `new` must be there.
fn kill_everywhere(prepared: &RunDir, old: Option<&Snapshot>, new: (u64, u32)) {
    let snapshot = snapshot(new.0, new.1);
    let (mut found_old, mut found_new) = (0, 0);
    for operations in 0..OPERATIONS_MAX {
        let (_folder, run) = run();
        copy(prepared.root(), run.root());
        let output = child("kill::victim", run.root())
            .env(OPERATIONS, operations.to_string())
            .env(JOB, format!("{} {}", new.0, new.1))
            .output()
            .unwrap();
        let code = output.status.code();
        assert!([Some(0), Some(KILLED)].contains(&code), "{output:?}");

        let check = |when: &str| {
            // Panics if anything but a whole checkpoint is taken for one.
            let loaded = newest(&run);
            let is_new = loaded.as_ref().is_some_and(|it| is_same(it, &snapshot));
            let is_old = match (&loaded, old) {
                (Some(loaded), Some(old)) => is_same(loaded, old),
                (loaded, old) => loaded.is_none() && old.is_none(),
            };
            assert!(is_new || is_old, "{when}, {operations}: {:?}", names(&run));
            is_new
        };
        let was_new = check("as it was left");
        found_new += u64::from(was_new);
        found_old += u64::from(!was_new);
        if code == Some(0) {
            assert!(was_new, "saved, but the older one is found");
            assert!(found_new > 1 && found_old > 10, "{found_new} {found_old}");
            assert_eq!(names(&run), [RunDir::checkpoint_name(new.0)]);
            return;
        }

        drop(Checkpoints::open(run.clone(), 1).unwrap());
        assert_eq!(check("tidied"), was_new, "tidying changed which is newest");
        let left = names(&run);
        assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
        save(&run, 1, &snapshot);
        assert!(check("saved again"));
        assert_eq!(names(&run), [RunDir::checkpoint_name(new.0)]);
    }
    panic!("not done after {OPERATIONS_MAX} operations");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn killed_in_the_first_save() {
    let (_folder, prepared) = run();
    fs::create_dir_all(prepared.root()).unwrap();
    kill_everywhere(&prepared, None, (10, 2));
}

#[test]
fn killed_while_saving_and_pruning() {
    let (_folder, prepared) = run();
    let old = snapshot(10, 1);
    save(&prepared, 1, &old);
    kill_everywhere(&prepared, Some(&old), (20, 2));
}

#[test]
fn killed_while_replacing_the_only_checkpoint() {
    let (_folder, prepared) = run();
    let old = snapshot(10, 1);
    save(&prepared, 1, &old);
    kill_everywhere(&prepared, Some(&old), (10, 2));
}

/// Killed once between the two renames, and then again while tidying and saving anew.
#[test]
fn killed_again_after_a_kill_between_the_renames() {
    let (_folder, prepared) = run();
    let old = snapshot(10, 1);
    save(&prepared, 1, &old);
    let aside = files::set_aside(&prepared, 10);
    fs::rename(prepared.checkpoint(10), &aside).unwrap();
    copy(
        &aside,
        &prepared.checkpoints().join(".tmp-step_0000000010-1"),
    );
    let rest = prepared.checkpoints().join(".tmp-delete-step_0000000005");
    fs::create_dir_all(rest.join("deeper")).unwrap();
    kill_everywhere(&prepared, Some(&old), (10, 2));
}

#[test]
fn the_manifest_is_written_last_and_everything_is_synced_before_it_shows() {
    let (_folder, run) = run();
    save(&run, 1, &snapshot(7, 1));
    TRACE.take();
    write::write(&run, &snapshot(7, 2)).unwrap();
    let trace = TRACE.take().join("\n");
    let trace = trace.replace(&format!("-{}", std::process::id()), "-PID");
    expect![[r#"
        mkdir .tmp-step_0000000007-PID
        create model.safetensors
        write model.safetensors
        sync model.safetensors
        create optimizer.safetensors
        write optimizer.safetensors
        sync optimizer.safetensors
        create state.json
        write state.json
        sync state.json
        create vocab.json
        write vocab.json
        sync vocab.json
        create manifest.json
        write manifest.json
        sync manifest.json
        sync .tmp-step_0000000007-PID
        rename .tmp-old-step_0000000007
        rename step_0000000007
        sync checkpoints"#]]
    .assert_eq(&trace);
}

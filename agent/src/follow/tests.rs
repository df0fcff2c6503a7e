//! Tests of `follow`: every way in which the file is not just appended to.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use protocol::{Event, Manifest, Record, RunDir};

use super::*;

fn line(message: &str) -> String {
    let event = Event::Warning {
        message: message.to_owned(),
    };
    let time = "2026-01-02T03:04:05Z".to_owned();
    Record {
        time,
        elapsed_s: 1.0,
        event,
    }
    .to_line()
        + "\n"
}

fn append(path: &Path, bytes: impl AsRef<[u8]>) {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(bytes.as_ref()).unwrap();
}

fn messages(polled: &Polled) -> Vec<&str> {
    let message = |record: &'_ Record| match &record.event {
        Event::Warning { .. } => (),
        other => panic!("{other:?}"),
    };
    polled.records.iter().for_each(message);
    let text = polled
        .records
        .iter()
        .filter_map(|record| match &record.event {
            Event::Warning { message } => Some(message.as_str()),
            _ => None,
        });
    text.collect()
}

struct Fixture {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    events: Events,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let events = Events::new(&path);
    Fixture {
        _dir: dir,
        path,
        events,
    }
}

#[test]
fn a_file_that_appears_later_is_read_from_its_start() {
    let mut f = fixture();
    assert_eq!(f.events.poll().unwrap(), Polled::default());
    assert_eq!(f.events.position(), None);
    append(&f.path, line("a") + &line("b"));
    assert_eq!(messages(&f.events.poll().unwrap()), ["a", "b"]);
    assert_eq!(f.events.poll().unwrap(), Polled::default());
    append(&f.path, line("c"));
    assert_eq!(messages(&f.events.poll().unwrap()), ["c"]);
}

#[test]
fn a_torn_line_waits_for_its_end() {
    let mut f = fixture();
    let text = line("é");
    // Every cut, also inside the two bytes of the letter.
    for cut in 1..text.len() {
        append(&f.path, &text.as_bytes()[..cut]);
        assert_eq!(f.events.poll().unwrap(), Polled::default(), "{cut}");
        append(&f.path, &text.as_bytes()[cut..]);
        assert_eq!(messages(&f.events.poll().unwrap()), ["é"], "{cut}");
    }
}

#[test]
fn an_event_behind_a_torn_line_is_not_lost() {
    let mut f = fixture();
    append(&f.path, &line("lost")[..20]);
    append(&f.path, line("kept"));
    let polled = f.events.poll().unwrap();
    assert_eq!(messages(&polled), ["kept"]);
}

#[test]
fn lines_that_are_no_events_are_counted_and_skipped() {
    let mut f = fixture();
    append(&f.path, "{\"time\":\"x\",\"event\":\"novel\"}\n\n");
    append(&f.path, b"\xff\xfe\n");
    append(&f.path, line("a"));
    let polled = f.events.poll().unwrap();
    assert_eq!(messages(&polled), ["a"]);
    assert_eq!(polled.skipped_lines, 2);
}

#[test]
fn a_huge_line_is_skipped_in_bounded_memory() {
    let mut f = fixture();
    let mut huge = vec![b'x'; 3 * 1024 * 1024];
    huge.push(b'\n');
    append(&f.path, line("a"));
    append(&f.path, huge);
    append(&f.path, line("b"));
    let (mut seen, mut skipped, mut polls) = (Vec::new(), 0, 0);
    loop {
        let polled = f.events.poll().unwrap();
        seen.extend(messages(&polled).into_iter().map(str::to_owned));
        skipped += polled.skipped_lines;
        polls += 1;
        if !polled.more {
            break;
        }
    }
    assert_eq!(seen, ["a", "b"]);
    assert_eq!(skipped, 1);
    assert!(polls > 3, "{polls}");
}

#[test]
fn a_file_cut_short_is_read_from_its_start() {
    let mut f = fixture();
    append(&f.path, line("a") + &line("b") + "half");
    f.events.poll().unwrap();
    File::create(&f.path).unwrap();
    append(&f.path, line("c"));
    let polled = f.events.poll().unwrap();
    assert!(polled.started_over);
    assert_eq!(messages(&polled), ["c"]);
    assert_eq!(polled.skipped_lines, 1);
}

#[test]
fn a_file_cut_short_and_grown_again_between_two_looks_is_noticed() {
    let mut f = fixture();
    append(&f.path, line("a"));
    f.events.poll().unwrap();
    File::create(&f.path).unwrap();
    append(&f.path, line("b") + &line("c"));
    let polled = f.events.poll().unwrap();
    assert!(polled.started_over);
    assert_eq!(messages(&polled), ["b", "c"]);
}

#[test]
fn a_replaced_file_is_read_after_the_rest_of_the_old_one() {
    let mut f = fixture();
    append(&f.path, line("a"));
    f.events.poll().unwrap();
    append(&f.path, line("b"));
    let aside = f.path.with_extension("1");
    fs::rename(&f.path, &aside).unwrap();
    append(&f.path, line("c"));
    assert_eq!(messages(&f.events.poll().unwrap()), ["b"]);
    append(&aside, line("late"));
    assert_eq!(messages(&f.events.poll().unwrap()), ["late"]);
    let polled = f.events.poll().unwrap();
    assert!(polled.started_over && polled.more);
    assert_eq!(messages(&f.events.poll().unwrap()), ["c"]);
}

#[test]
fn a_restarted_agent_goes_on_where_it_stopped() {
    let mut f = fixture();
    append(&f.path, line("a") + &line("b")[..30]);
    f.events.poll().unwrap();
    let kept = serde_json::to_string(&f.events.position().unwrap()).unwrap();
    append(&f.path, &line("b")[30..]);
    append(&f.path, line("c"));
    let mut again = Events::resume(&f.path, serde_json::from_str(&kept).unwrap());
    let polled = again.poll().unwrap();
    assert!(!polled.started_over);
    assert_eq!(messages(&polled), ["b", "c"]);
}

#[test]
fn a_restarted_agent_does_not_take_another_file_for_the_old_one() {
    let mut f = fixture();
    append(&f.path, line("a"));
    f.events.poll().unwrap();
    let position = f.events.position().unwrap();
    // The same inode with other contents, as after its number was used again.
    File::create(&f.path).unwrap();
    append(&f.path, line("b") + &line("c"));
    let mut again = Events::resume(&f.path, position.clone());
    let polled = again.poll().unwrap();
    assert!(polled.started_over);
    assert_eq!(messages(&polled), ["b", "c"]);
    // Another inode.
    fs::remove_file(&f.path).unwrap();
    let _takes_the_old_number = File::create(f.path.with_extension("other")).unwrap();
    append(&f.path, line("a") + &line("d"));
    let polled = Events::resume(&f.path, position).poll().unwrap();
    assert!(polled.started_over);
    assert_eq!(messages(&polled), ["a", "d"]);
}

fn write_checkpoint(run_dir: &RunDir, step: u64, val_loss: f64) {
    let dir = run_dir.checkpoint(step);
    fs::create_dir_all(&dir).unwrap();
    let manifest = Manifest {
        format_version: 1,
        step,
        val_loss: Some(val_loss),
        config_hash: "00".to_owned(),
        time: "2026-01-02T03:04:05Z".to_owned(),
        files: std::collections::BTreeMap::new(),
    };
    let temporary = dir.join("manifest.tmp");
    fs::write(&temporary, manifest.to_json()).unwrap();
    fs::rename(temporary, dir.join(RunDir::MANIFEST)).unwrap();
}

#[test]
fn each_checkpoint_is_new_once() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::new(dir.path());
    let mut checkpoints = Checkpoints::new(run_dir.clone());
    assert_eq!(checkpoints.poll().unwrap(), []);
    write_checkpoint(&run_dir, 20, 1.0);
    write_checkpoint(&run_dir, 10, 2.0);
    fs::create_dir_all(run_dir.checkpoint(30)).unwrap();
    fs::create_dir_all(run_dir.checkpoints().join(".tmp-step_0000000040")).unwrap();
    let new = checkpoints.poll().unwrap();
    assert_eq!(new.iter().map(|new| new.step).collect::<Vec<_>>(), [10, 20]);
    assert_eq!(new[0].manifest.val_loss, Some(2.0));
    assert_eq!(checkpoints.poll().unwrap(), []);
    write_checkpoint(&run_dir, 30, 0.5);
    assert_eq!(checkpoints.poll().unwrap().len(), 1);
}

#[test]
fn a_step_written_again_is_new_again_and_a_pruned_one_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::new(dir.path());
    let mut checkpoints = Checkpoints::new(run_dir.clone());
    write_checkpoint(&run_dir, 10, 1.0);
    assert_eq!(checkpoints.poll().unwrap().len(), 1);
    write_checkpoint(&run_dir, 10, 3.0);
    assert_eq!(checkpoints.poll().unwrap()[0].manifest.val_loss, Some(3.0));
    fs::remove_dir_all(run_dir.checkpoint(10)).unwrap();
    assert_eq!(checkpoints.poll().unwrap(), []);
    write_checkpoint(&run_dir, 10, 4.0);
    assert_eq!(checkpoints.poll().unwrap().len(), 1);
}

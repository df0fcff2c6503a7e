//! Tests of `logs`: lines out of bytes, limits, and the whole of it behind one sink.

use std::io::Write;
use std::sync::mpsc;
use std::time::Instant;

use super::assemble::{Assembler, PROGRESS_EVERY, without_controls};
use super::limit::Limit;
use super::queue::Popped;
use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).into_owned()
}

/// The lines of a stream that comes in these pieces, with a look at progress bars after each.
fn assembled(pieces: &[&str]) -> Vec<String> {
    let mut assembler = Assembler::default();
    let mut lines = Vec::new();
    let start = Instant::now();
    for (index, piece) in pieces.iter().enumerate() {
        assembler.push(piece.as_bytes(), |line, _| lines.push(text(line)));
        let now = start + PROGRESS_EVERY * u32::try_from(index).unwrap();
        assembler.tick(now, |line, _| lines.push(text(line)));
    }
    assembler.finish(|line, _| lines.push(text(line)));
    lines
}

#[test]
fn lines_come_whole_however_they_are_cut() {
    let whole = "one\n\ntwo\r\nthree\r\n\r\nhalf";
    let expected = ["one", "", "two", "three", "", "half"];
    assert_eq!(assembled(&[whole]), expected);
    for cut in 0..=whole.len() {
        let (a, b) = whole.split_at(cut);
        assert_eq!(assembled(&[a, b]), expected, "{a:?} {b:?}");
    }
}

#[test]
fn a_progress_bar_shows_its_last_state_of_each_half_second() {
    // As tqdm draws: a carriage return, then the state.
    assert_eq!(
        assembled(&["\r 1%\r 2%\r 3%", "\r 4%\r 5%", "\r 6%\r100%\nnext\n"]),
        [" 2%", " 4%", "100%", "next"]
    );
    let mut assembler = Assembler::default();
    let now = Instant::now();
    let mut shown = 0;
    for _ in 0..1000 {
        assembler.push(b"50%\r", |_, _| panic!("no line ended"));
        assembler.tick(now, |_, _| shown += 1);
    }
    assert_eq!(shown, 1);
}

#[test]
fn a_line_without_end_costs_no_memory() {
    let mut assembler = Assembler::default();
    for _ in 0..1024 {
        assembler.push(&[b'x'; 64 * 1024], |_, _| panic!("no line ended"));
    }
    let mut lengths = Vec::new();
    assembler.push(b"\nnext\n", |line, cut| lengths.push((line.len(), cut)));
    assert_eq!(lengths, [(20 * 1024, 65_536 * 1024 - 20 * 1024), (4, 0)]);
}

#[test]
fn nothing_of_a_torn_line_is_kept() {
    let mut assembler = Assembler::default();
    let mut lines = Vec::new();
    assembler.push(b"whole\nfirst hal", |line, _| lines.push(text(line)));
    assert_eq!(assembler.tear(), 9);
    assembler.push(b"second half\nwhole\n", |line, _| lines.push(text(line)));
    assert_eq!(lines, ["whole", "whole"]);
}

#[test]
fn terminal_codes_are_stripped() {
    for (raw, plain) in [
        ("\u{1b}[1;31mred\u{1b}[0m", "red"),
        ("\u{1b}]0;title\u{7}text", "text"),
        ("\u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{1b}\\", "link"),
        ("\u{1b}(Btab\tbell\u{7}\u{0}", "tab\tbell"),
        ("cut\u{1b}[", "cut"),
        ("cut\u{1b}", "cut"),
        ("naïve 日本", "naïve 日本"),
    ] {
        assert_eq!(without_controls(raw), plain, "{raw:?}");
    }
}

#[test]
fn the_queue_gives_up_its_oldest_and_never_what_weighs_nothing() {
    let queue = Queue::new(10);
    queue.push(0, "control");
    queue.push(6, "old");
    queue.push(4, "middle");
    queue.push(5, "new");
    assert_eq!(queue.pop(Duration::ZERO), Popped::Item("control"));
    assert_eq!(queue.pop(Duration::ZERO), Popped::Item("middle"));
    assert_eq!(queue.pop(Duration::ZERO), Popped::Item("new"));
    assert_eq!(queue.pop(Duration::ZERO), Popped::Idle);
    queue.push(1, "last");
    queue.close();
    assert_eq!(queue.pop(PATIENCE), Popped::Item("last"));
    assert_eq!(queue.pop(PATIENCE), Popped::Closed);
}

#[test]
fn a_flood_is_limited_and_its_last_lines_are_kept() {
    let start = Instant::now();
    let mut limit = Limit::new(start);
    let line_bytes = 1024;
    let passed = (0..100_000).filter(|&n| limit.pass(line_bytes, n, start).is_some());
    assert_eq!(passed.count(), 16 * 1024);
    assert_eq!(limit.tick(start + Duration::from_secs(3)), None);
    let released = limit.tick(start + Duration::from_secs(5)).unwrap();
    assert_eq!(released.items, (100_000 - 128..100_000).collect::<Vec<_>>());
    let left_out = 100_000 - 16 * 1024 - 128;
    assert_eq!(released.left_out_bytes, left_out * 1024);
    // Now lines flow again.
    assert_eq!(limit.pass(1, 7, start + Duration::from_secs(5)), Some(7));
}

/// What was written to a console.
#[derive(Clone, Debug, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    fn text(&self) -> String {
        text(&self.0.lock().unwrap())
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    logs: Logs,
    stdout: Screen,
    stderr: Screen,
}

fn fixture_with(variables: &[(&str, &str)]) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let (stdout, stderr) = (Screen::default(), Screen::default());
    let console = Console {
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
    };
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let redactor = Redactor::from_variables(variables.iter().map(owned));
    let logs = Logs::open(dir.path(), Arc::new(redactor), console).unwrap();
    Fixture {
        dir,
        logs,
        stdout,
        stderr,
    }
}

fn lines_of(segment: &Segment) -> Vec<Line> {
    let ndjson = zstd::decode_all(segment.bytes.as_slice()).unwrap();
    let lines = str::from_utf8(&ndjson).unwrap().lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn texts(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.line.as_str()).collect()
}

#[tokio::test]
async fn a_line_reaches_console_file_memory_and_segment() {
    let f = fixture_with(&[]);
    let sink = f.logs.begin(3);
    sink.write(Source::Stdout, b"iter 0: \x1b[1mloss\x1b[0m 4.2\n");
    sink.write(Source::Stderr, b"warn\xffing\nunfinished");
    sink.end(Source::Stderr);
    f.logs.note("restarting");
    assert!(f.logs.flush(PATIENCE).await);

    let tail = f.logs.tail(10);
    let all = [
        "iter 0: loss 4.2",
        "warn\u{fffd}ing",
        "unfinished",
        "restarting",
    ];
    assert_eq!(texts(&tail), all);
    let seqs: Vec<u64> = tail.iter().map(|line| line.seq).collect();
    let first = first_seq(3);
    assert_eq!(seqs, [first, first + 1, first + 2, first + 3]);
    let sources = [
        Source::Stdout,
        Source::Stderr,
        Source::Stderr,
        Source::Agent,
    ];
    assert!(tail.iter().map(|line| line.source).eq(sources));

    let segment = f.logs.next_segment().unwrap();
    assert_eq!(segment.key, "logs/a0003/seg-00000000.ndjson.zst");
    assert_eq!(lines_of(&segment), tail);

    let file = std::fs::read_to_string(f.dir.path().join("a0003.log")).unwrap();
    assert_eq!(file.lines().count(), 4);
    assert!(file.contains("Z stderr unfinished\n"), "{file}");
    assert_eq!(f.stdout.text(), "iter 0: \u{1b}[1mloss\u{1b}[0m 4.2\n");
    assert_eq!(f.stderr.text(), "warn\u{fffd}ing\nunfinished\nrestarting\n");
}

#[tokio::test]
async fn a_secret_is_stored_and_shown_nowhere() {
    let secret = "wJalrXUtnFEMI/K7MDENG";
    let f = fixture_with(&[("AWS_SECRET_ACCESS_KEY", secret)]);
    let sink = f.logs.begin(1);
    // Coloured in the middle, across two writes, and across the line cap.
    let (a, b) = secret.split_at(7);
    sink.write(Source::Stdout, format!("key {a}").as_bytes());
    sink.write(
        Source::Stdout,
        format!("{b}\n\x1b[1m{a}\x1b[0m{b}\n").as_bytes(),
    );
    let padding = "x".repeat(16 * 1024 - 10);
    sink.write(Source::Stderr, format!("{padding}{secret}\n").as_bytes());
    f.logs.note(&format!("note {secret}"));
    assert!(f.logs.flush(PATIENCE).await);
    assert_eq!(f.logs.tail(9).len(), 4);
    let segment = zstd::decode_all(f.logs.next_segment().unwrap().bytes.as_slice()).unwrap();
    let file = std::fs::read_to_string(f.dir.path().join("a0001.log")).unwrap();
    for place in [text(&segment), file, f.stdout.text() + &f.stderr.text()] {
        assert_eq!(place.matches("[redact").count(), 4, "{place}");
        assert!(!place.contains(a) && !place.contains(b), "{place}");
    }
}

#[tokio::test]
async fn a_long_line_is_capped_and_says_so() {
    let f = fixture_with(&[]);
    let sink = f.logs.begin(1);
    sink.write(
        Source::Stdout,
        &[vec![b'x'; 100_000], b"\n".to_vec()].concat(),
    );
    assert!(f.logs.flush(PATIENCE).await);
    let line = &f.logs.tail(1)[0].line;
    assert_eq!(line.len(), 16 * 1024 + " [83616 more bytes]".len());
    assert!(line.ends_with("xx [83616 more bytes]"));
}

#[tokio::test]
async fn one_cursor_goes_over_attempts_and_pages_meet() {
    let f = fixture_with(&[]);
    for attempt in 1..=3 {
        let sink = f.logs.begin(attempt);
        for n in 0..10 {
            sink.write(Source::Stdout, format!("{attempt}.{n}\n").as_bytes());
        }
        sink.end(Source::Stdout);
    }
    assert!(f.logs.flush(PATIENCE).await);
    let mut query = Query {
        limit: 7,
        ..Query::default()
    };
    let mut all = Vec::new();
    loop {
        let page = f.logs.page(&query);
        assert!(!page.missed);
        all.extend(page.lines);
        query.after = page.next;
        if !page.has_more {
            break;
        }
    }
    assert_eq!(all.len(), 30);
    assert!(all.is_sorted_by_key(|line| line.seq));
    query.after = Some(first_seq(2) + 4);
    query.grep = Some(".9".to_owned());
    assert_eq!(texts(&f.logs.page(&query).lines), ["2.9", "3.9"]);
    query.source = Some(Source::Stderr);
    assert_eq!(f.logs.page(&query).lines, []);
    let newest = Query {
        tail: Some(2),
        up_to: Some(first_seq(3)),
        limit: 7,
        ..Query::default()
    };
    let page = f.logs.page(&newest);
    assert_eq!(texts(&page.lines), ["2.9", "3.0"]);
    assert_eq!(page.next, Some(first_seq(3)));
    let from_time = Some(all[25].time.clone());
    let later = Query {
        from_time: from_time.clone(),
        limit: 100,
        ..Query::default()
    };
    assert!(f.logs.page(&later).lines.len() >= 5);
    let earlier = Query {
        until_time: from_time,
        from_time: Some("2000".to_owned()),
        limit: 100,
        ..Query::default()
    };
    let both = f.logs.page(&later).lines.len() + f.logs.page(&earlier).lines.len();
    assert_eq!(both, 30);
    assert_eq!(f.logs.counts().stdout_lines, 30);
}

#[tokio::test]
async fn what_came_before_the_first_attempt_is_stored_with_it() {
    let f = fixture_with(&[]);
    for n in 0..300 {
        f.logs.note(&format!("waiting {n:03}"));
    }
    assert!(f.logs.flush(PATIENCE).await);
    assert_eq!(f.logs.next_segment(), None, "it belongs to no attempt yet");
    assert_eq!(texts(&f.logs.tail(1)), ["waiting 299"]);

    // When the lease is ours, and when the trainer starts.
    f.logs.begin(7);
    f.logs.note("has the lease");
    assert!(f.logs.flush(PATIENCE).await);
    f.logs.begin(7);
    f.logs.note("the trainer starts");
    assert!(f.logs.flush(PATIENCE).await);

    let mut lines = Vec::new();
    for number in 0..2 {
        let segment = f.logs.next_segment().unwrap();
        assert_eq!(
            segment.key,
            format!("logs/a0007/seg-{number:08}.ndjson.zst")
        );
        lines.extend(lines_of(&segment));
        f.logs.stored(&segment.key);
    }
    assert_eq!(lines.len(), 1 + 256 + 2);
    let lost = "waiting 000\n".len() * (300 - 256);
    assert_eq!(lines[0].gap.as_ref().unwrap().bytes, lost as u64);
    assert_eq!(lines[1].line, "waiting 044");
    assert_eq!(lines[258].line, "the trainer starts");
    for (line, seq) in lines.iter().zip(first_seq(7)..) {
        assert_eq!((line.attempt, line.seq), (7, seq));
    }
    assert_eq!(f.logs.next_segment(), None);
}

#[tokio::test]
async fn segments_wait_for_the_store_also_over_a_restart() {
    let f = fixture_with(&[]);
    for attempt in [1, 2] {
        let sink = f.logs.begin(attempt);
        sink.write(Source::Stdout, b"a line\n");
        assert!(f.logs.flush(PATIENCE).await);
    }
    let first = f.logs.next_segment().unwrap();
    assert_eq!(
        f.logs.next_segment().as_ref(),
        Some(&first),
        "offered until stored"
    );
    f.logs.stored(&first.key);
    let Fixture { dir, logs, .. } = f;
    drop(logs);

    std::fs::write(dir.path().join("spool/.tmp"), "torn").unwrap();
    let redactor = Arc::new(Redactor::from_variables([]));
    let again = Logs::open(dir.path(), redactor, Console::default()).unwrap();
    let second = again.next_segment().unwrap();
    assert_eq!(second.key, "logs/a0002/seg-00000000.ndjson.zst");
    again.stored(&second.key);
    assert_eq!(again.next_segment(), None);
    assert_eq!(again.waiting_bytes(), 0);
    assert_eq!(
        std::fs::read_dir(dir.path().join("spool")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn segments_are_cut_by_size() {
    let f = fixture_with(&[]);
    let sink = f.logs.begin(1);
    for n in 0..300 {
        // Not compressible to nothing, and below the queue's bound in all.
        let line = format!("{n} {}\n", "0123456789".repeat(1000));
        sink.write(Source::Stdout, line.as_bytes());
    }
    assert!(f.logs.flush(PATIENCE).await);
    let (mut lines, mut keys) = (Vec::new(), Vec::new());
    while let Some(segment) = f.logs.next_segment() {
        lines.extend(lines_of(&segment));
        f.logs.stored(&segment.key);
        keys.push(segment.key);
    }
    assert_eq!(lines.len(), 300);
    assert_eq!(keys.len(), 3);
    assert_eq!(keys[2], "logs/a0001/seg-00000002.ndjson.zst");
}

/// A console that takes nothing before it is allowed to.
struct Stuck(mpsc::Receiver<()>, Screen);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _until_the_other_side_is_gone = self.0.recv();
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_stuck_console_costs_lines_on_the_screen_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (release, stuck) = mpsc::channel();
    let screen = Screen::default();
    let console = Console {
        stdout: Box::new(Stuck(stuck, screen.clone())),
        stderr: Box::new(io::sink()),
    };
    let redactor = Arc::new(Redactor::from_variables([]));
    let logs = Logs::open(dir.path(), redactor, console).unwrap();
    let sink = logs.begin(1);
    for n in 0..300 {
        sink.write(
            Source::Stdout,
            format!("{n} {}\n", "x".repeat(10_000)).as_bytes(),
        );
    }
    // The console holds up only who waits for it.
    assert!(!logs.flush(Duration::from_millis(100)).await);
    let start = Instant::now();
    while logs.tail(1000).len() < 300 && start.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(logs.tail(1000).len(), 300);
    drop(release);
    assert!(logs.flush(PATIENCE).await);
    let shown = screen.text();
    assert!(shown.contains("\n299 x"));
    assert!(shown.contains("bytes not shown: the console is too slow]"));
    assert!(shown.len() < 1_200_000, "{}", shown.len());
}

#[tokio::test]
async fn a_directory_that_takes_no_files_costs_only_the_files() {
    let f = fixture_with(&[]);
    // A file where the directories were: nothing can be made in it, by root either.
    std::fs::remove_dir_all(f.dir.path()).unwrap();
    std::fs::write(f.dir.path(), "in the way").unwrap();
    let sink = f.logs.begin(1);
    sink.write(Source::Stdout, b"still here\n");
    assert!(f.logs.flush(PATIENCE).await);
    assert_eq!(texts(&f.logs.tail(1)), ["still here"]);
    assert_eq!(lines_of(&f.logs.next_segment().unwrap()).len(), 1);
    std::fs::remove_file(f.dir.path()).unwrap();
    std::fs::create_dir(f.dir.path()).unwrap();
}

#[tokio::test]
async fn what_the_queue_gave_up_is_told_by_a_gap() {
    let f = fixture_with(&[]);
    let sink = f.logs.begin(1);
    sink.write(Source::Stdout, b"first\n");
    assert!(f.logs.flush(PATIENCE).await);
    // The thread is kept from the queue while it overflows.
    let held = f.logs.core.lock().unwrap();
    let chunk = format!("{}\n", "x".repeat(4095)).repeat(16);
    for _ in 0..200 {
        sink.write(Source::Stdout, chunk.as_bytes());
    }
    sink.write(Source::Stdout, b"last\n");
    sink.end(Source::Stdout);
    drop(held);
    assert!(f.logs.flush(PATIENCE).await);
    assert_eq!(f.logs.tail(1)[0].line, "last");
    let mut gaps = Vec::new();
    while let Some(segment) = f.logs.next_segment() {
        gaps.extend(lines_of(&segment).into_iter().filter_map(|line| line.gap));
        f.logs.stored(&segment.key);
    }
    // The thread may have taken one piece in the middle before it had to wait.
    assert!((1..=2).contains(&gaps.len()), "{gaps:?}");
    let lost: u64 = gaps.iter().map(|gap| gap.bytes).sum();
    assert!(lost > 8_000_000, "{gaps:?}");
}

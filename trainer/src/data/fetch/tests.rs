//! Fetching from real HTTP servers on the loopback interface: resumed, refused, misled.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

/// How a server treats a request.
#[derive(Clone, Copy)]
enum Manner {
    /// Serves ranges as HTTP wants it.
    Ranges,
    /// Sends everything, whatever is asked for.
    Whole,
    /// Announces everything, sends this many bytes more than was asked from, then hangs up.
    HangsUpAfter(usize),
    Status(u16),
}

/// Of each request: the `Range` and how many bytes of the body were sent.
type Log = Mutex<Vec<(Option<String>, usize)>>;

/// An HTTP server on this machine that treats its first request in the first manner, and so on;
/// the last manner is for all that follow.
struct Server {
    url: String,
    log: Arc<Log>,
}

impl Server {
    fn start(body: Vec<u8>, etag: &'static str, manners: &'static [Manner]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/text.txt", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&log);
        thread::spawn(move || {
            let mut manners = manners.iter();
            let mut manner = manners.next().unwrap();
            for stream in listener.incoming() {
                answer(stream.unwrap(), &body, etag, *manner, &shared);
                manner = manners.next().unwrap_or(manner);
            }
        });
        Self { url, log }
    }

    fn log(&self) -> Vec<(Option<String>, usize)> {
        self.log.lock().unwrap().clone()
    }
}

fn answer(mut stream: TcpStream, body: &[u8], etag: &str, manner: Manner, log: &Log) {
    let mut range = None;
    let mut if_range = None;
    for line in BufReader::new(&stream).lines() {
        let line = line.unwrap();
        if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "range" => range = Some(value.to_owned()),
                "if-range" => if_range = Some(value.to_owned()),
                _ => {}
            }
        }
        if line.is_empty() {
            break;
        }
    }
    let from = match (&range, manner) {
        (Some(range), Manner::Ranges | Manner::HangsUpAfter(_))
            if if_range.as_ref().is_none_or(|tag| tag == etag) =>
        {
            range
                .strip_prefix("bytes=")
                .unwrap()
                .strip_suffix('-')
                .unwrap()
                .parse()
                .unwrap()
        }
        _ => 0,
    };
    let (status, send) = match manner {
        Manner::Status(status) => (status, 0),
        _ if from > body.len() => (416, 0),
        Manner::HangsUpAfter(bytes) => (if from > 0 { 206 } else { 200 }, bytes),
        _ => (if from > 0 { 206 } else { 200 }, body.len() - from),
    };
    let rest = if status < 300 { &body[from..] } else { &[] };
    let mut head = format!(
        "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {}\r\n",
        rest.len()
    );
    if !etag.is_empty() {
        head.push_str(&format!("ETag: {etag}\r\n"));
    }
    if status == 206 {
        let (last, all) = (body.len() - 1, body.len());
        head.push_str(&format!("Content-Range: bytes {from}-{last}/{all}\r\n"));
    }
    // Before anything is sent, so that whoever has read the answer finds it in the log.
    log.lock().unwrap().push((range, send));
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(b"\r\n").unwrap();
    // The client hangs up when it has seen enough.
    stream.write_all(&rest[..send]).ok();
}

/// 300,000 bytes without a pattern.
fn body() -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(300_000).collect()
}

fn digest(bytes: &[u8]) -> String {
    sha256(&mut &bytes[..]).unwrap()
}

/// Fetches into a folder of its own; gives what was returned, the file and the names left behind.
fn fetched(
    sources: &[&str],
    sha256: Option<&str>,
    bytes: Option<u64>,
    part: Option<&[u8]>,
) -> (Result<String>, Option<Vec<u8>>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("text.txt");
    if let Some(part) = part {
        fs::write(dir.path().join("text.txt.part"), part).unwrap();
    }
    let sources: Vec<String> = sources.iter().map(|&source| source.to_owned()).collect();
    let wanted = Wanted {
        sources: &sources,
        sha256,
        bytes,
    };
    let result = fetch_with(wanted, Access::default(), &to, &mut |_, _| {});
    let mut names: Vec<String> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    (result, fs::read(&to).ok(), names)
}

#[test]
fn a_file_is_fetched_whole_and_progress_told() {
    let body = body();
    let server = Server::start(body.clone(), "", &[Manner::Ranges]);
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("text.txt");
    let sources = [server.url.clone()];
    let wanted = Wanted {
        sources: &sources,
        sha256: Some(&digest(&body)),
        bytes: Some(300_000),
    };
    let mut told = Vec::new();
    let source = fetch_with(wanted, Access::default(), &to, &mut |done, total| {
        told.push((done, total))
    })
    .unwrap();
    assert_eq!(source, server.url);
    assert!(fs::read(&to).unwrap() == body);
    assert!(!dir.path().join("text.txt.part").exists());
    assert_eq!(told.first(), Some(&(0, Some(300_000))));
    assert_eq!(told.last(), Some(&(300_000, Some(300_000))));
    assert!(told.is_sorted());
    assert_eq!(server.log(), [(None, 300_000)]);
}

#[test]
fn an_interrupted_download_goes_on_where_it_broke_off() {
    let body = body();
    let manners = &[Manner::HangsUpAfter(100_000), Manner::Ranges];
    for (etag, sha256) in [("", Some(digest(&body))), ("\"v1\"", None)] {
        let server = Server::start(body.clone(), etag, manners);
        let (result, file, _) = fetched(&[&server.url], sha256.as_deref(), None, None);
        assert_eq!(result.unwrap(), server.url);
        assert!(file.unwrap() == body);
        assert_eq!(
            server.log(),
            [(None, 100_000), (Some("bytes=100000-".to_owned()), 200_000)]
        );
    }
}

#[test]
fn a_part_of_an_earlier_run_is_continued_if_a_checksum_can_tell() {
    let body = body();
    let server = Server::start(body.clone(), "", &[Manner::Ranges]);
    let part = Some(&body[..250_000]);
    let (_, file, names) = fetched(&[&server.url], Some(&digest(&body)), None, part);
    assert!(file.unwrap() == body);
    assert_eq!(names, ["text.txt"]);
    let (_, file, _) = fetched(&[&server.url], None, None, part);
    assert!(file.unwrap() == body);
    let rest = (Some("bytes=250000-".to_owned()), 50_000);
    assert_eq!(server.log(), [rest, (None, 300_000)]);
    // A part that is whole already needs no server at all.
    let whole = fetched(
        &["http://127.0.0.1:1/"],
        Some(&digest(&body)),
        Some(300_000),
        Some(&body),
    );
    assert!(whole.0.is_ok() && whole.1.unwrap() == body);
}

#[test]
fn a_part_that_is_wrong_or_too_long_is_fetched_anew() {
    let body = body();
    for part in [&vec![7; 1_000], &vec![7; 300_000], &vec![7; 400_000]] {
        let server = Server::start(body.clone(), "", &[Manner::Ranges]);
        for bytes in [None, Some(300_000)] {
            let digest = digest(&body);
            let (result, file, _) = fetched(&[&server.url], Some(&digest), bytes, Some(part));
            result.unwrap();
            assert!(file.unwrap() == body);
        }
    }
}

#[test]
fn a_server_that_ignores_ranges_is_taken_from_the_beginning() {
    let body = body();
    let server = Server::start(
        body.clone(),
        "",
        &[Manner::HangsUpAfter(1_000), Manner::Whole],
    );
    let (_, file, _) = fetched(&[&server.url], Some(&digest(&body)), None, None);
    assert!(file.unwrap() == body);
    let second = (Some("bytes=1000-".to_owned()), 300_000);
    assert_eq!(server.log(), [(None, 1_000), second]);
}

#[test]
fn a_download_that_keeps_breaking_off_but_advances_comes_to_its_end() {
    let body = body();
    let server = Server::start(body.clone(), "", &[Manner::HangsUpAfter(60_000)]);
    let (_, file, _) = fetched(&[&server.url], Some(&digest(&body)), None, None);
    assert!(file.unwrap() == body);
    assert_eq!(server.log().len(), 5);
}

#[test]
fn a_source_that_has_it_not_or_wrongly_is_passed_over() {
    let body = body();
    let absent = Server::start(Vec::new(), "", &[Manner::Status(404)]);
    let wrong = Server::start(vec![7; 300_000], "", &[Manner::Ranges]);
    let short = Server::start(vec![7; 30], "", &[Manner::Ranges]);
    let good = Server::start(body.clone(), "", &[Manner::Ranges]);
    let (result, file, names) = fetched(
        &[
            "/nonexistent/file",
            &absent.url,
            &wrong.url,
            &short.url,
            &good.url,
        ],
        Some(&digest(&body)),
        Some(300_000),
        None,
    );
    assert_eq!(result.unwrap(), good.url);
    assert!(file.unwrap() == body);
    assert_eq!(names, ["text.txt"]);
    assert_eq!(absent.log().len(), 1, "404 is not worth a second attempt");
    assert_eq!(wrong.log(), [(None, 300_000)], "nor is a wrong checksum");
}

#[test]
fn a_server_in_trouble_is_asked_again_but_not_forever() {
    let body = body();
    let mended = Server::start(body.clone(), "", &[Manner::Status(503), Manner::Ranges]);
    assert!(fetched(&[&mended.url], None, None, None).1.unwrap() == body);
    let broken = Server::start(Vec::new(), "", &[Manner::Status(503)]);
    let (result, _, names) = fetched(&[&broken.url], None, None, None);
    assert!(result.unwrap_err().to_string().contains("HTTP 503"));
    assert!(names.is_empty(), "{names:?}");
    assert_eq!(broken.log().len(), 3);
}

#[test]
fn files_of_this_machine_are_copied_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a text.txt");
    fs::write(&path, b"text").unwrap();
    let plain = path.to_str().unwrap();
    let url = format!("file://{}", plain.replace(' ', "%20"));
    for source in [plain, &url] {
        let (result, file, _) = fetched(&[source], Some(&digest(b"text")), Some(4), Some(b"other"));
        assert_eq!(result.unwrap(), source);
        assert_eq!(file.unwrap(), b"text");
    }
}

#[test]
fn if_all_sources_fail_each_is_named_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"text").unwrap();
    let server = Server::start(Vec::new(), "", &[Manner::Status(404)]);
    // A port that was free a moment ago refuses connections.
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let sources = [
        server.url.clone(),
        format!("http://{closed}/text.txt"),
        "/nonexistent/file".to_owned(),
        "file://relative".to_owned(),
        "s3://bucket/text.txt".to_owned(),
        dir.path().display().to_string(),
        file.display().to_string(),
    ];
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    let (result, left, names) = fetched(&sources, Some("another"), None, None);
    let message = result
        .unwrap_err()
        .to_string()
        .replace(&server.url, "SERVER")
        .replace(&closed.to_string(), "CLOSED")
        .replace(dir.path().to_str().unwrap(), "DIR")
        .replace(&digest(b"text"), "DIGEST");
    expect_test::expect![[r#"
        cannot fetch the text; tried:
          SERVER: HTTP 404
          http://CLOSED/text.txt: io: Connection refused (os error 111)
          /nonexistent/file: No such file or directory (os error 2)
          file://relative: not of the form file:///path
          s3://bucket/text.txt: expected https://, http://, file:// or a path, got s3://
          DIR: not a file
          DIR/file: SHA-256 is DIGEST, expected another"#]]
    .assert_eq(&message);
    assert_eq!((left, names), (None, Vec::new()));
}

#[test]
fn two_that_fetch_at_once_do_not_disturb_each_other() {
    let body = body();
    let server = Server::start(body.clone(), "", &[Manner::Ranges]);
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("text.txt");
    // As another process would, half way.
    let mut other = Part::open(&to).unwrap();
    other
        .receive(
            &mut &body[..150_000],
            None,
            Wanted {
                sources: &[],
                sha256: None,
                bytes: None,
            },
            Access::default(),
            &mut |_, _| {},
        )
        .ok()
        .unwrap();
    let sources = [server.url.clone()];
    let digest = digest(&body);
    let wanted = Wanted {
        sources: &sources,
        sha256: Some(&digest),
        bytes: None,
    };
    fetch_with(wanted, Access::default(), &to, &mut |_, _| {}).unwrap();
    assert!(fs::read(&to).unwrap() == body);
    assert_eq!(other.len().unwrap(), 150_000);
    assert_eq!(server.log(), [(None, 300_000)]);
}

#[test]
fn a_disk_that_refuses_is_not_blamed_on_the_source() {
    let sources = ["http://127.0.0.1:1/".to_owned()];
    let wanted = Wanted {
        sources: &sources,
        sha256: None,
        bytes: None,
    };
    let error = fetch_with(
        wanted,
        Access::default(),
        Path::new("/nonexistent/text.txt"),
        &mut |_, _| {},
    )
    .unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error}");
}

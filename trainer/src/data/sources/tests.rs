//! From names to files: folders and globs, a hub on this machine with pages, redirections and
//! tokens, and what is said of names that mean nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha2::{Digest, Sha256};

use super::super::dataset::DatasetInfo;
use super::super::fetch::hexadecimal;
use super::super::prepare::{Collection, IfPresent, TokenizerChoice, prepare_documents};
use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_of_the_test";

fn no_env(_: &str) -> Option<OsString> {
    None
}

fn names(found: &Found) -> Vec<&str> {
    found.files.iter().map(|file| file.name.as_str()).collect()
}

fn find_one(source: &str) -> Result<Found> {
    find(&[source.to_owned()], &no_env)
}

#[test]
fn folders_and_globs_give_their_files_sorted() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    for name in [
        "b.txt",
        "a/z.jsonl.gz",
        "a/b/c.parquet",
        "a.ndjson.zst",
        "notes.md",
        ".hidden.txt",
        "c.txt",
    ] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let all = [
        "a/b/c.parquet",
        "a/z.jsonl.gz",
        "a.ndjson.zst",
        "b.txt",
        "c.txt",
    ]
    .map(at);
    let found = find_one(&at("")).unwrap();
    assert_eq!(names(&found), all);
    assert!(!found.is_one_text);
    let kinds: Vec<_> = found.files.iter().map(|f| (f.kind, f.packing)).collect();
    assert_eq!(
        kinds,
        [
            (Kind::Parquet, Packing::Plain),
            (Kind::Lines, Packing::Gzip),
            (Kind::Lines, Packing::Zstd),
            (Kind::Text, Packing::Plain),
            (Kind::Text, Packing::Plain),
        ]
    );
    assert!(found.files.iter().all(|file| file.bytes == Some(1)));
    assert_eq!(names(&find_one(&at("?.txt")).unwrap()), all[3..]);
    assert_eq!(names(&find_one(&at("**/*.parquet")).unwrap()), all[..1]);
    // Several sources keep the order that they were named in.
    let two = find(&[at("c.txt"), at("a")], &no_env).unwrap();
    assert_eq!(names(&two), [&all[4], &all[0], &all[1]]);
    assert_eq!(two.source, format!("{} {}", at("c.txt"), at("a")));

    // A text that is named itself is one text, whatever its name; a text of a folder is not.
    for (source, is_one_text) in [("b.txt", true), ("notes.md", true), ("b.tx?", false)] {
        let found = find_one(&at(source)).unwrap();
        assert_eq!(
            (found.files.len(), found.is_one_text),
            (1, is_one_text),
            "{source}"
        );
    }
    assert!(!find_one(&at("a/z.jsonl.gz")).unwrap().is_one_text);
}

#[test]
fn names_that_mean_nothing_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().display().to_string();
    for (source, needle) in [
        (empty.as_str(), "expected files that end with .txt, .jsonl"),
        (&format!("{empty}/*.txt"), "got none that match"),
        ("gopher://x/y.txt", "got gopher://"),
        ("no-such-name", "Face hub, openwebtext, fineweb,"),
        ("hf://datasets/one", "expected hf://datasets/OWNER/NAME"),
        ("hf://models/a/b", "expected hf://datasets/OWNER/NAME"),
        ("s3:///key.txt", "expected s3://BUCKET/KEY"),
        ("[.txt", "expected a glob"),
    ] {
        let message = find_one(source).err().expect(source).to_string();
        assert!(message.contains(needle), "{source}: {message}");
    }
}

#[test]
fn a_name_comes_from_the_file_the_folder_or_the_place_before_a_glob() {
    for (source, name) in [
        ("a/b/poems.txt", "poems"),
        ("web.jsonl.gz", "web"),
        ("data/books/", "books"),
        ("data/books/*/x-?.parquet", "books"),
        ("*.txt", "text"),
        ("https://example.org/a/web.parquet?token=x/y", "web"),
        ("s3://bucket/crawl/part-*.jsonl.zst", "crawl"),
        ("hf://datasets/o/n/sample/10BT", "10BT"),
        (".", "text"),
    ] {
        assert_eq!(stem(source), name, "{source}");
    }
}

/// A hub and where it keeps its files, as two servers.
struct Hub {
    endpoint: String,
    /// Request lines of either.
    asked: Arc<Mutex<Vec<String>>>,
}

type Files = BTreeMap<String, Vec<u8>>;

impl Hub {
    /// Serves a repository as the hub's documentation says: entries of a tree in pages of two, the
    /// next one in `Link`; `resolve` sends on to a storage, where the token is not to go.
    fn start(files: Files) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let storage = {
            let files = files.clone();
            let mut is_first = true;
            serve(&asked, move |_, path, headers| {
                assert!(!headers.contains_key("authorization"), "the token went on");
                let bytes = &files[path.strip_prefix("/storage/").unwrap()];
                let from = headers.get("range").map_or(0, |range| {
                    let from = range.strip_prefix("bytes=").unwrap();
                    from.strip_suffix('-').unwrap().parse().unwrap()
                });
                let (status, last, all) = (
                    if from > 0 { 206 } else { 200 },
                    bytes.len() - 1,
                    bytes.len(),
                );
                // The first answer breaks off.
                let until = if is_first { all / 2 } else { all };
                is_first = false;
                Answer {
                    status,
                    headers: format!("ETag: \"1\"\r\nContent-Range: bytes {from}-{last}/{all}\r\n"),
                    announced: all - from,
                    body: bytes[from..until].to_vec(),
                }
            })
        };
        let endpoint = serve(&asked, move |own, path, headers| {
            let answer = |status, headers: String, body: Vec<u8>| Answer {
                status,
                headers,
                announced: body.len(),
                body,
            };
            let token = headers.get("authorization").map(String::as_str);
            if token != Some(&format!("Bearer {TOKEN}")) {
                return answer(401, String::new(), Vec::new());
            }
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            if path.starts_with("/api/datasets/") && path.ends_with("/revision/main") {
                let body = format!(r#"{{"id": "o/n", "sha": "{COMMIT}"}}"#);
                return answer(200, String::new(), body.into_bytes());
            }
            if let Some((_, below)) = path.split_once(&format!("/tree/{COMMIT}")) {
                let (page, next) = page(&files, below.trim_start_matches('/'), query);
                let link = next.map_or_else(String::new, |next| {
                    format!("Link: <{own}{path}?recursive=true&cursor={next}>; rel=\"next\"\r\n")
                });
                return answer(200, link, page.into_bytes());
            }
            let (_, name) = path.split_once(&format!("/resolve/{COMMIT}/")).unwrap();
            // Another host by its name.
            let storage = storage.replace("127.0.0.1", "localhost");
            let location = format!("Location: {storage}/storage/{name}\r\n");
            answer(302, location, Vec::new())
        });
        Self { endpoint, asked }
    }

    fn env(&self) -> impl Fn(&str) -> Option<OsString> + '_ {
        |name| match name {
            "HF_ENDPOINT" => Some(format!("{}/", self.endpoint).into()),
            "HF_TOKEN" => Some(TOKEN.into()),
            _ => None,
        }
    }

    fn downloads(&self) -> usize {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|path| path.contains("/storage/"))
            .count()
    }
}

/// Two entries of a folder, from the cursor of the query on, and the next cursor.
fn page(files: &Files, folder: &str, query: &str) -> (String, Option<usize>) {
    assert!(query.starts_with("recursive=true"), "{query}");
    let entries: Vec<String> = files
        .iter()
        .filter(|(name, _)| name.starts_with(folder))
        .map(|(name, bytes)| {
            let oid = hexadecimal(&Sha256::digest(bytes));
            let size = bytes.len();
            format!(
                r#"{{"type":"file","oid":"a1","size":{size},"path":"{name}",
                "lfs":{{"oid":"{oid}","size":{size},"pointerSize":134}}}}"#
            )
        })
        .chain([r#"{"type":"directory","oid":"b2","size":0,"path":"x.txt"}"#.into()])
        .collect();
    let first: usize = query
        .split_once("cursor=")
        .map_or(0, |(_, cursor)| cursor.parse().unwrap());
    let last = entries.len().min(first + 2);
    let page = format!("[{}]", entries[first..last].join(","));
    (page, (last < entries.len()).then_some(last))
}

struct Answer {
    status: u16,
    headers: String,
    announced: usize,
    body: Vec<u8>,
}

/// An HTTP server on this machine, and its address; `answer` gets it, the path and the headers.
fn serve(
    asked: &Arc<Mutex<Vec<String>>>,
    mut answer: impl FnMut(&str, &str, &BTreeMap<String, String>) -> Answer + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = format!("http://{}", listener.local_addr().unwrap());
    let address = own.clone();
    let asked = Arc::clone(asked);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            let path = first.split(' ').nth(1).unwrap().to_owned();
            let headers = lines
                .map(|line| line.unwrap())
                .take_while(|line| !line.is_empty())
                .map(|line| {
                    let (name, value) = line.split_once(": ").unwrap();
                    (name.to_ascii_lowercase(), value.to_owned())
                })
                .collect();
            asked.lock().unwrap().push(path.clone());
            let Answer {
                status,
                headers,
                announced,
                body,
            } = answer(&own, &path, &headers);
            let head = format!(
                "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {announced}\r\n\
                 {headers}\r\n"
            );
            // A client that has seen enough may be gone.
            stream.write_all(head.as_bytes()).ok();
            stream.write_all(&body).ok();
        }
    });
    address
}

fn prepare(found: &Found, downloads: &Path, out_dir: &Path) -> Result<DatasetInfo> {
    let collection = Collection {
        files: &found.files,
        field: "text",
        source: &found.source,
        name: "test",
        tokenizer: &TokenizerChoice::Gpt2,
        val_fraction: 0.1,
        seed: Collection::SEED,
        if_present: IfPresent::Refuse,
        downloads,
    };
    prepare_documents(&collection, out_dir, &|_| {})
}

fn lines(from: usize) -> Vec<u8> {
    (from..from + 2000)
        .flat_map(|i| format!("{{\"text\": \"document number {i}\"}}\n").into_bytes())
        .collect()
}

#[test]
fn a_dataset_of_the_hub_is_listed_fetched_and_prepared_by_name() {
    let mut files = Files::new();
    for i in [2, 0, 1] {
        files.insert(format!("sample/10BT/00{i}_00000.jsonl"), lines(2000 * i));
    }
    files.insert("sample/10BT/notes.md".to_owned(), b"#".to_vec());
    files.insert("sample/100BT/x.jsonl".to_owned(), b"not asked for".to_vec());
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.jsonl");
    fs::write(
        &whole,
        lines(0)
            .into_iter()
            .chain(lines(2000))
            .chain(lines(4000))
            .collect::<Vec<_>>(),
    )
    .unwrap();
    let hub = Hub::start(files);
    let found = find(&["fineweb".to_owned()], &hub.env()).unwrap();
    assert_eq!(
        found.source,
        format!("hf://datasets/HuggingFaceFW/fineweb@{COMMIT}/sample/10BT")
    );
    let urls: Vec<String> = (0..3)
        .map(|i| {
            let base = format!("{}/datasets/HuggingFaceFW/fineweb", hub.endpoint);
            format!("{base}/resolve/{COMMIT}/sample/10BT/00{i}_00000.jsonl")
        })
        .collect();
    assert_eq!(names(&found), urls);
    let downloads = dir.path().join("cache");
    let out = dir.path().join("out");
    prepare(&found, &downloads, &out).unwrap();
    // One broke off and was taken up again.
    assert_eq!(hub.downloads(), 4);
    assert_eq!(fs::read_dir(&downloads).unwrap().count(), 0);
    let local = find_one(&whole.display().to_string()).unwrap();
    let expected = dir.path().join("expected");
    prepare(&local, Path::new(""), &expected).unwrap();
    for name in ["train.bin", "val.bin"] {
        assert!(fs::read(out.join(name)).unwrap() == fs::read(expected.join(name)).unwrap());
    }
}

#[test]
fn a_file_of_the_hub_and_a_whole_repository_are_listed() {
    let mut files = Files::new();
    for name in [
        "a/1.jsonl",
        "a/2.jsonl",
        "data/b 1.parquet",
        "data/a.parquet",
    ] {
        files.insert(name.to_owned(), b"x".to_vec());
    }
    let hub = Hub::start(files);
    let source = "hf://datasets/o/n@main/a/2.jsonl";
    let one = find(&[source.to_owned()], &hub.env()).unwrap();
    let base = format!("{}/datasets/o/n/resolve/{COMMIT}", hub.endpoint);
    assert_eq!(names(&one), [format!("{base}/a/2.jsonl")]);
    // Of a whole repository, Parquet where there is any.
    let found = find(&["openwebtext".to_owned()], &hub.env()).unwrap();
    let base = format!(
        "{}/datasets/Skylion007/openwebtext/resolve/{COMMIT}",
        hub.endpoint
    );
    assert_eq!(
        names(&found),
        [
            format!("{base}/data/a.parquet"),
            format!("{base}/data/b%201.parquet")
        ]
    );
    let offline = |name: &str| (name == "HF_HUB_OFFLINE").then(|| "1".into());
    let error = find(&["openwebtext".to_owned()], &offline).err().unwrap();
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    let refused = |name: &str| (name == "HF_ENDPOINT").then(|| hub.endpoint.clone().into());
    let error = find(&["openwebtext".to_owned()], &refused).err().unwrap();
    let message = error.to_string();
    assert!(
        message.contains("HTTP 401") && message.contains("HF_TOKEN"),
        "{message}"
    );
}

#[test]
fn what_was_fetched_and_verified_serves_another_try() {
    let mut files = Files::new();
    files.insert("a.jsonl".to_owned(), lines(0));
    files.insert("b.jsonl".to_owned(), [lines(0), b"{}\n".to_vec()].concat());
    let hub = Hub::start(files);
    let dir = tempfile::tempdir().unwrap();
    let (downloads, out) = (dir.path().join("cache"), dir.path().join("out"));
    let found = find(&["hf://datasets/o/n".to_owned()], &hub.env()).unwrap();
    for _ in 0..2 {
        let message = prepare(&found, &downloads, &out).unwrap_err().to_string();
        assert!(message.contains("b.jsonl: line 2001: "), "{message}");
        assert!(!message.contains(TOKEN) && !out.exists());
        assert_eq!(
            (hub.downloads(), fs::read_dir(&downloads).unwrap().count()),
            (3, 2)
        );
    }
    // What is damaged meanwhile is fetched anew.
    let kept = fs::read_dir(&downloads)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::write(kept, "damaged").unwrap();
    prepare(&found, &downloads, &out).unwrap_err();
    assert_eq!(hub.downloads(), 4);
}

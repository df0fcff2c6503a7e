//! A hub on this machine: what is fetched, verified, cached and found again.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use sha2::{Digest, Sha256};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves `files` as the hub's API does, to those who show `token` if there is one, and tells each
/// path that it was asked for.
fn serve(
    files: Vec<(&'static str, Vec<u8>)>,
    oid: Option<String>,
    token: Option<&'static str>,
) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, paths) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            let head = lines
                .map(|line| line.unwrap())
                .take_while(|line| !line.is_empty());
            let head: Vec<String> = head.map(|line| line.to_ascii_lowercase()).collect();
            let is_known =
                token.is_none_or(|token| head.contains(&format!("authorization: bearer {token}")));
            let path = first.split(' ').nth(1).unwrap().to_owned();
            let list = files.iter().map(|(name, bytes)| {
                let digest = Sha256::digest(bytes);
                let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                let oid = oid.clone().unwrap_or(hex);
                format!(
                    r#"{{"type":"file","path":"{name}","size":{},"lfs":{{"oid":"{oid}"}}}}"#,
                    bytes.len()
                )
            });
            let body = if path.ends_with("/revision/main") {
                Some(format!(r#"{{"id":"x","sha":"{COMMIT}"}}"#).into_bytes())
            } else if path.contains("/tree/") {
                Some(format!("[{}]", list.collect::<Vec<_>>().join(",")).into_bytes())
            } else {
                let named = |(name, _): &&(&str, Vec<u8>)| path.ends_with(&format!("/{name}"));
                files.iter().find(named).map(|(_, bytes)| bytes.clone())
            };
            let (status, body) = match body {
                _ if !is_known => ("401 Unauthorized", Vec::new()),
                Some(body) => ("200 OK", body),
                None => ("404 Not Found", Vec::new()),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            // A client that has seen enough may be gone.
            stream.write_all(head.as_bytes()).ok();
            stream.write_all(&body).ok();
            asked.send(path).ok();
        }
    });
    (format!("http://{address}"), paths)
}

fn hub(endpoint: &str, home: &Path) -> Hub {
    Hub::of(|name| match name {
        "HF_ENDPOINT" => Some(endpoint.into()),
        "HF_HOME" => Some(home.into()),
        _ => None,
    })
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (CONFIG, b"{}".to_vec()),
        (WEIGHTS, vec![7; 100_000]),
        ("pytorch_model.bin", vec![1; 10]),
    ]
}

#[test]
fn a_model_is_fetched_once_and_found_where_python_looks() {
    let home = tempfile::tempdir().unwrap();
    let (endpoint, paths) = serve(files(), None, None);
    let hub = hub(&endpoint, home.path());
    let folder = hub.folder("gpt2", &mut |_, _, _| ()).unwrap();
    let cache = home.path().join("hub/models--openai-community--gpt2");
    assert_eq!(folder, cache.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(cache.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), vec![7; 100_000]);
    assert!(!folder.join("pytorch_model.bin").exists());
    assert_eq!(paths.try_iter().count(), 4);
    assert_eq!(hub.folder("gpt2", &mut |_, _, _| ()).unwrap(), folder);
    assert_eq!(paths.try_iter().count(), 0);
}

#[test]
fn a_model_that_is_not_open_to_all_wants_a_token() {
    let home = tempfile::tempdir().unwrap();
    let (endpoint, _paths) = serve(files(), None, Some("hf_secret"));
    let mut hub = hub(&endpoint, home.path());
    let error = hub
        .folder("a/b", &mut |_, _, _| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("HTTP 401") && error.contains("HF_TOKEN"),
        "{error}"
    );
    hub.hub.token = Some("hf_secret".to_owned());
    let folder = hub.folder("a/b", &mut |_, _, _| ()).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), vec![7; 100_000]);
}

#[test]
fn what_does_not_have_the_hubs_digest_is_not_used() {
    let home = tempfile::tempdir().unwrap();
    let (endpoint, _paths) = serve(files(), Some("0".repeat(64)), None);
    let hub = hub(&endpoint, home.path());
    let error = hub
        .folder("a/b", &mut |_, _, _| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("hint: ") && error.contains("HF_ENDPOINT"),
        "{error}"
    );
    assert!(hub.cached("a/b").is_none());
}

#[test]
fn names_that_are_none_and_machines_without_a_network_are_told() {
    let home = tempfile::tempdir().unwrap();
    let nowhere = hub("http://127.0.0.1:9", home.path());
    for name in ["a/../b", "../b", "a/b/c", "/absent", "a/"] {
        let error = nowhere
            .folder(name, &mut |_, _, _| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no such folder"), "{name}: {error}");
    }
    let error = nowhere
        .folder("a/b", &mut |_, _, _| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("http://127.0.0.1:9/api/models/a/b/revision/main: "),
        "{error}"
    );
    let mut offline = nowhere;
    offline.hub.offline = true;
    let error = offline
        .folder("a/b", &mut |_, _, _| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
}

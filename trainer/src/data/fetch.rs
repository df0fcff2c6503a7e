//! Fetching one file from a list of places: HTTP with resume, or another place on the disk.
//! Called by `locate`, which names the places and uses the file.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that sends nothing for this long is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts at one source in a row that bring nothing new.
const IDLE_ATTEMPTS_MAX: u32 = 3;
/// Attempts at one source altogether.
const ATTEMPTS_MAX: u32 = 100;
/// Before the second attempt; doubled for each one after it that brings nothing new.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// Processes that fetch the same file at the same time, each into a part of its own.
const PARTS_MAX: u32 = 64;
const BUFFER_BYTES: usize = 1 << 16;

/// Hears of the bytes at hand and of how many there will be, where that is known.
pub type Progress<'a> = dyn FnMut(u64, Option<u64>) + 'a;

/// What is to be fetched.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Where it may be: `https://`, `http://`, `file://` or a plain path; tried in this order.
    pub sources: &'a [String],
    /// Lower-case hexadecimal. Without it, nothing left by an earlier run is built upon.
    pub sha256: Option<&'a str>,
    pub bytes: Option<u64>,
}

/// How a fetch goes about it.
#[derive(Clone, Copy, Default)]
pub struct Access<'a> {
    /// Named in errors in the place of the source, whose URL may carry a signature.
    pub name: Option<&'a str>,
    /// A token for `Authorization`; where the server sends us on, it does not go.
    pub bearer: Option<&'a str>,
    /// Set by another thread to give up.
    pub cancel: Option<&'a AtomicBool>,
}

/// Why an attempt failed, and what follows from it.
enum Fault {
    /// Another attempt may do better.
    Passing(String),
    /// This source will not do.
    Lasting(String),
    /// No source will do: the disk refuses.
    Fatal(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// Brings the file to `to`, verified, flushed and renamed from `<to>.part`, and returns the source
/// that served it. A part from an earlier run is continued, not fetched again.
///
/// # Errors
/// `Error::Data` listing why each source failed, to which the caller adds what to do about it;
/// `Error::Write` if the disk refuses; [`Error::Stopped`] when it was to give up.
pub fn fetch_with(
    wanted: Wanted<'_>,
    access: Access<'_>,
    to: &Path,
    progress: &mut Progress<'_>,
) -> Result<String> {
    let mut part = Part::open(to)?;
    if wanted.sha256.is_none() {
        part.truncate(0)?;
    }
    let mut faults = Vec::new();
    for source in wanted.sources {
        match from_source(source, wanted, access, &mut part, progress) {
            Ok(()) => {
                part.file.sync_all().map_err(Error::write(&part.path))?;
                fs::rename(&part.path, to).map_err(Error::write(to))?;
                return Ok(source.clone());
            }
            Err(Fault::Fatal(error)) => return Err(error),
            Err(Fault::Passing(fault) | Fault::Lasting(fault)) => {
                faults.push(format!("  {}: {fault}", access.name.unwrap_or(source)));
                if wanted.sha256.is_none() {
                    part.truncate(0)?;
                }
            }
        }
    }
    if part.len()? == 0 {
        fs::remove_file(&part.path).map_err(Error::write(&part.path))?;
    }
    Err(Error::Data(format!(
        "cannot fetch the text; tried:\n{}",
        faults.join("\n")
    )))
}

/// Attempts one source until the file is whole and verified.
fn from_source(
    source: &str,
    wanted: Wanted<'_>,
    access: Access<'_>,
    part: &mut Part,
    progress: &mut Progress<'_>,
) -> Result<(), Fault> {
    let mut idle = 0;
    let mut validator = None;
    for _ in 0..ATTEMPTS_MAX {
        let before = part.len()?;
        let attempt = if wanted.bytes == Some(before) {
            Ok(())
        } else if let Some(path) = local_path(source)? {
            copy(&path, wanted, access, part, progress)
        } else {
            download(source, wanted, access, part, &mut validator, progress)
        };
        let fault = match attempt.and_then(|()| part.verify(wanted, before)) {
            Ok(()) => return Ok(()),
            Err(Fault::Passing(fault)) => fault,
            Err(other) => return Err(other),
        };
        if part.len()? > before {
            idle = 0;
        } else {
            idle += 1;
        }
        if idle == IDLE_ATTEMPTS_MAX {
            return Err(Fault::Lasting(fault));
        }
        thread::sleep(RETRY_DELAY * 2u32.pow(idle));
    }
    Err(Fault::Lasting(format!(
        "no end after {ATTEMPTS_MAX} attempts"
    )))
}

/// The path that a source names on this machine; `None` for a URL of the network.
fn local_path(source: &str) -> Result<Option<PathBuf>, Fault> {
    let Some((scheme, rest)) = source.split_once("://") else {
        return Ok(Some(PathBuf::from(source)));
    };
    match scheme {
        "http" | "https" => Ok(None),
        "file" => {
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            match percent_decoded(path) {
                Some(path) if path.starts_with('/') => Ok(Some(PathBuf::from(path))),
                _ => Err(Fault::Lasting("not of the form file:///path".to_owned())),
            }
        }
        _ => Err(Fault::Lasting(format!(
            "expected https://, http://, file:// or a path, got {scheme}://"
        ))),
    }
}

/// `%20` and the like as the characters that they stand for; `None` if that is no text.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// Copies a file of this machine into the part, from its beginning.
fn copy(
    path: &Path,
    wanted: Wanted<'_>,
    access: Access<'_>,
    part: &mut Part,
    progress: &mut Progress<'_>,
) -> Result<(), Fault> {
    let cannot_read = |error: io::Error| Fault::Lasting(error.to_string());
    let mut file = File::open(path).map_err(cannot_read)?;
    let metadata = file.metadata().map_err(cannot_read)?;
    if !metadata.is_file() {
        return Err(Fault::Lasting("not a file".to_owned()));
    }
    check_size(Some(metadata.len()), wanted)?;
    part.truncate(0)?;
    part.receive(&mut file, Some(metadata.len()), wanted, access, progress)
}

/// Asks the server for what the part lacks. `validator` names the version of the file that the
/// server sent before, so that two versions are never joined.
fn download(
    url: &str,
    wanted: Wanted<'_>,
    access: Access<'_>,
    part: &mut Part,
    validator: &mut Option<String>,
    progress: &mut Progress<'_>,
) -> Result<(), Fault> {
    // With a checksum any beginning may be continued: a wrong one is found out at the end.
    if wanted.sha256.is_none() && validator.is_none() {
        part.truncate(0)?;
    }
    let from = part.len()?;
    let mut request = agent().get(url);
    if let Some(bearer) = access.bearer {
        request = request.header("Authorization", format!("Bearer {bearer}"));
    }
    if from > 0 {
        request = request.header("Range", format!("bytes={from}-"));
        if let Some(validator) = validator {
            request = request.header("If-Range", validator.as_str());
        }
    }
    let response = request.call().map_err(|error| match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => Fault::Lasting(error.to_string()),
        _ => Fault::Passing(error.to_string()),
    })?;
    let total = match response.status().as_u16() {
        // The server sends everything, whatever was asked for.
        200 => {
            part.truncate(0)?;
            response.body().content_length()
        }
        206 => match content_range(&response) {
            Some((start, total)) if start == from => total,
            _ => {
                part.truncate(0)?;
                return Err(Fault::Passing("another range than asked for".to_owned()));
            }
        },
        416 => {
            part.truncate(0)?;
            return Err(Fault::Passing(
                "HTTP 416: it has no more than we have".to_owned(),
            ));
        }
        status @ (408 | 425 | 429 | 500..) => return Err(Fault::Passing(format!("HTTP {status}"))),
        status => return Err(Fault::Lasting(format!("HTTP {status}"))),
    };
    check_size(total, wanted)?;
    *validator = ["etag", "last-modified"]
        .iter()
        .filter_map(|name| response.headers().get(*name)?.to_str().ok())
        // A weak tag does not promise the same bytes.
        .find(|value| !value.starts_with("W/"))
        .map(str::to_owned);
    part.receive(
        &mut response.into_body().into_reader(),
        total,
        wanted,
        access,
        progress,
    )
}

/// A small answer from a server, tried again where another attempt may do better; or what went
/// wrong, which does not show the URL.
pub(super) fn get(url: &str, bearer: Option<&str>) -> Result<Response<Body>, String> {
    let mut fault = String::new();
    for attempt in 0..IDLE_ATTEMPTS_MAX {
        if attempt > 0 {
            thread::sleep(RETRY_DELAY * 2u32.pow(attempt));
        }
        let mut request = agent().get(url);
        if let Some(bearer) = bearer {
            request = request.header("Authorization", format!("Bearer {bearer}"));
        }
        match request.call() {
            Ok(answer) => match answer.status().as_u16() {
                200..300 => return Ok(answer),
                status @ (408 | 425 | 429 | 500..) => fault = format!("HTTP {status}"),
                status => return Err(format!("HTTP {status}")),
            },
            Err(error @ (ureq::Error::BadUri(_) | ureq::Error::Http(_))) => {
                return Err(error.to_string());
            }
            Err(error) => fault = error.to_string(),
        }
    }
    Err(fault)
}

/// A client with the time-outs of a download, which tells the status of an answer, whatever it is.
fn agent() -> Agent {
    // Proxies are taken from the environment, which is what the default configuration does.
    Agent::config_builder()
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(STALL_TIMEOUT))
        .timeout_per_read(Some(STALL_TIMEOUT))
        .http_status_as_error(false)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .build()
        .new_agent()
}

/// The first byte and the size of the whole from `Content-Range: bytes 5-9/10`.
fn content_range<B>(response: &Response<B>) -> Option<(u64, Option<u64>)> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    let (range, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()))
}

fn check_size(size: Option<u64>, wanted: Wanted<'_>) -> Result<(), Fault> {
    match (size, wanted.bytes) {
        (Some(size), Some(bytes)) if size != bytes => Err(Fault::Lasting(format!(
            "has {size} bytes, expected {bytes}"
        ))),
        _ => Ok(()),
    }
}

/// `<to>.part`: what has been fetched so far, locked against other processes.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    /// Opens `<to>.part`, or `<to>.1.part` and so on if other processes are at work on those.
    fn open(to: &Path) -> Result<Self> {
        let named = |suffix: String| {
            let mut path = to.as_os_str().to_owned();
            path.push(suffix);
            PathBuf::from(path)
        };
        let open = |path: &Path| {
            File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(path)
                .map_err(Error::write(path))
        };
        let numbered = (1..PARTS_MAX).map(|number| format!(".{number}.part"));
        for suffix in std::iter::once(".part".to_owned()).chain(numbered) {
            let path = named(suffix);
            let file = open(&path)?;
            match file.try_lock() {
                // Between opening and locking, the other process may have renamed this very file.
                Ok(()) if is_at(&file, &path) => return Ok(Self { path, file }),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                // Some network file systems know no locks: the number of the process must do.
                Err(TryLockError::Error(_)) => {
                    let path = named(format!(".{}.part", std::process::id()));
                    let file = open(&path)?;
                    return Ok(Self { path, file });
                }
            }
        }
        Err(Error::Locked(format!(
            "{}: {PARTS_MAX} processes are fetching it already",
            to.display()
        )))
    }

    fn len(&self) -> Result<u64> {
        let metadata = self.file.metadata().map_err(Error::read(&self.path))?;
        Ok(metadata.len())
    }

    fn truncate(&mut self, bytes: u64) -> Result<()> {
        self.file.set_len(bytes).map_err(Error::write(&self.path))
    }

    /// Appends what `from` gives until its end, which `total` foretells.
    fn receive(
        &mut self,
        from: &mut dyn Read,
        total: Option<u64>,
        wanted: Wanted<'_>,
        access: Access<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<(), Fault> {
        let end = SeekFrom::End(0);
        let mut done = self.file.seek(end).map_err(Error::write(&self.path))?;
        let total = total.or(wanted.bytes);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            progress(done, total);
            let is_cancelled = access.cancel.map(|cancel| cancel.load(Ordering::Relaxed));
            if is_cancelled == Some(true) {
                return Err(Fault::Fatal(Error::Stopped));
            }
            let received = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(Fault::Passing(format!("broke off at byte {done}: {error}")));
                }
            };
            self.file
                .write_all(&buffer[..received])
                .map_err(Error::write(&self.path))?;
            done += received as u64;
            if wanted.bytes.is_some_and(|bytes| done > bytes) {
                self.truncate(0)?;
                check_size(Some(done), wanted)?;
            }
        }
        match total {
            Some(total) if done < total => {
                Err(Fault::Passing(format!("ended at byte {done} of {total}")))
            }
            _ => Ok(()),
        }
    }

    /// Compares the whole part, of which `inherited` bytes were there before this attempt, with
    /// what is wanted; a part that differs is emptied.
    fn verify(&mut self, wanted: Wanted<'_>, inherited: u64) -> Result<(), Fault> {
        check_size(Some(self.len()?), wanted)?;
        let Some(expected) = wanted.sha256 else {
            return Ok(());
        };
        let reading = |error| Error::read(&self.path)(error);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0)).map_err(reading)?;
        let got = sha256(&mut file).map_err(reading)?;
        if got == expected {
            return Ok(());
        }
        self.truncate(0)?;
        let fault = format!("SHA-256 is {got}, expected {expected}");
        if inherited > 0 {
            // The beginning may have come from elsewhere: this source is asked for all of it.
            Err(Fault::Passing(fault))
        } else {
            Err(Fault::Lasting(fault))
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// SHA-256 of all that `from` gives, lower-case hexadecimal.
pub fn sha256(from: &mut dyn Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hash.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hexadecimal(&hash.finalize()))
}

/// `bytes` as lower-case hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;

//! A store in a folder, the default (`./store`). Called by `open`.
//!
//! An object is the file `<root>/<key>`, so people can look at it. Files appear whole: written
//! aside, synced, then renamed (put) or linked (create: `link(2)` has one winner), and the
//! folder synced. `<root>/.anneal/` holds what is being written; no key leads there.

mod upload;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use self::upload::Uploads;
use super::{
    Body, Created, Entry, Head, Object, Part, PendingUpload, Storage, StorageError, UploadId, keys,
};

/// What a killed process left half written is removed after this long.
const LEFT_OVER_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often a write is tried again whose folder somebody else removed, being empty, meanwhile.
const FOLDER_ATTEMPTS_MAX: u32 = 8;

/// Objects in a folder of this machine, or of a network file system.
pub struct Local {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    name: String,
    uploads: Uploads,
}

/// What was asked, for the message of an error.
#[derive(Clone)]
struct Request {
    operation: &'static str,
    key: String,
}

impl Local {
    /// The store in `root`, which is made if it is not there.
    ///
    /// # Errors
    /// If the folder can be neither made nor written to.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let root = root.into();
        let name = root.display().to_string();
        let inner = Inner {
            uploads: Uploads::new(root.join(keys::RESERVED).join("uploads")),
            name,
            root,
        };
        let made = inner.make_folders();
        made.map_err(|e| inner.explain("open", "", &e))?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Runs blocking work on a thread for it.
    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl FnOnce(&Inner, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let wrong =
            |detail: String| StorageError::permanent(&self.inner.name, operation, key, detail);
        keys::check(key).map_err(wrong)?;
        let inner = Arc::clone(&self.inner);
        let path = inner.root.join(key);
        let request = Request {
            operation,
            key: key.to_owned(),
        };
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&inner, &path);
            done.map_err(|e| inner.explain(request.operation, &request.key, &e))
        });
        done.await.map_err(|e| wrong(e.to_string()))?
    }
}

impl Inner {
    fn make_folders(&self) -> io::Result<()> {
        let scratch = self.scratch();
        fs::create_dir_all(&scratch)?;
        for entry in fs::read_dir(&scratch)? {
            match remove_left_over(&entry?) {
                // Others are at work there, and clear it as well.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        self.uploads.make_folder()
    }

    /// Where files are written before they appear.
    fn scratch(&self) -> PathBuf {
        self.root.join(keys::RESERVED).join("tmp")
    }

    /// A store whose folder is gone (a disk not mounted) is not an empty store.
    fn check_root(&self) -> io::Result<()> {
        let there = fs::metadata(self.scratch());
        there.map(|_| ()).map_err(|e| {
            let gone = format!("the store's own folder {} is gone: {e}", keys::RESERVED);
            io::Error::new(ErrorKind::NotADirectory, gone)
        })
    }

    /// Writes the bytes aside and gives them to `publish` as a file to make visible; its tag.
    fn write(
        &self,
        path: &Path,
        bytes: &[u8],
        publish: impl Fn(&Path, &Path) -> io::Result<()>,
    ) -> io::Result<String> {
        self.check_root()?;
        let aside = self.scratch().join(unique());
        let written = (|| {
            let mut file = File::create_new(&aside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            appear(&self.root, &aside, path, &publish)?;
            Ok(tag(&file.metadata()?))
        })();
        match fs::remove_file(&aside) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => written,
        }
    }

    /// Everything below `folder` whose key starts with `prefix`, unsorted.
    fn walk(&self, folder: &Path, prefix: &str, found: &mut Vec<Entry>) -> io::Result<()> {
        let entries = match fs::read_dir(folder) {
            Err(e) if is_absence(&e) => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let relative = path.strip_prefix(&self.root).expect("below the root");
            // A name that is not UTF-8 is no key of ours.
            let Some(key) = relative.to_str() else {
                continue;
            };
            if keys::check(key).is_err() {
                continue;
            }
            let metadata = match fs::metadata(&path) {
                Err(e) if is_absence(&e) => continue,
                metadata => metadata?,
            };
            if metadata.is_dir() {
                self.walk(&path, prefix, found)?;
            } else if key.starts_with(prefix) {
                let age = metadata.modified()?.elapsed();
                found.push(Entry {
                    key: key.to_owned(),
                    bytes: metadata.len(),
                    tag: tag(&metadata),
                    age_s: Some(age.unwrap_or_default().as_secs()),
                });
            }
        }
        Ok(())
    }

    fn explain(&self, operation: &'static str, key: &str, error: &io::Error) -> StorageError {
        if is_absence(error) && !key.is_empty() {
            return StorageError::missing(&self.name, key);
        }
        let transient = matches!(
            error.kind(),
            ErrorKind::Interrupted
                | ErrorKind::TimedOut
                | ErrorKind::WouldBlock
                | ErrorKind::ResourceBusy
                | ErrorKind::StaleNetworkFileHandle
                | ErrorKind::OutOfMemory
        );
        // The device's own errors: a network file system's come and go.
        let transient = transient
            || error.raw_os_error().is_some_and(|code| {
                let code = rustix::io::Errno::from_raw_os_error(code);
                matches!(
                    code,
                    rustix::io::Errno::IO | rustix::io::Errno::MFILE | rustix::io::Errno::NFILE
                )
            });
        if transient {
            return StorageError::transient(&self.name, operation, key, error);
        }
        let hint = match error.kind() {
            ErrorKind::Unsupported => {
                "; hint: this file system has no hard links, which one winner depends on"
            }
            _ => "",
        };
        StorageError::permanent(&self.name, operation, key, format!("{error}{hint}"))
    }
}

#[async_trait]
impl Storage for Local {
    fn name(&self) -> String {
        self.inner.name.clone()
    }

    async fn get(&self, key: &str) -> Result<Object, StorageError> {
        self.run("get", key, |inner, path| {
            let mut file = inner.read(path)?;
            let metadata = file.metadata()?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(Object {
                bytes: Bytes::from(bytes),
                tag: tag(&metadata),
            })
        })
        .await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.run("get", key, move |inner, path| {
            let file = inner.read(path)?;
            let end = range.end.min(file.metadata()?.len());
            let size = end.saturating_sub(range.start);
            let mut bytes = vec![0; usize::try_from(size).expect("a range fits in memory")];
            file.read_exact_at(&mut bytes, range.start)?;
            Ok(Bytes::from(bytes))
        })
        .await
    }

    async fn head(&self, key: &str) -> Result<Head, StorageError> {
        self.run("head", key, |inner, path| {
            let metadata = inner.read(path)?.metadata()?;
            Ok(Head {
                bytes: metadata.len(),
                tag: tag(&metadata),
                crc64nvme: None,
            })
        })
        .await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<String, StorageError> {
        self.run("put", key, move |inner, path| {
            inner.write(path, &body, |aside, path| fs::rename(aside, path))
        })
        .await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        self.run("create", key, move |inner, path| {
            let written = inner.write(path, &body, |aside, path| fs::hard_link(aside, path));
            match written {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(Created::Exists),
                Err(e) if e.kind() == ErrorKind::PermissionDenied && inner.can_write() => {
                    Err(io::Error::new(ErrorKind::Unsupported, e.to_string()))
                }
                written => Ok(Created::New(written?)),
            }
        })
        .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        // The folder to look in is all of the prefix up to its last slash.
        let folder = prefix.rsplit_once('/').map(|(folder, _)| folder);
        let wrong = |e| StorageError::permanent(&self.inner.name, "list", prefix, e);
        folder.map_or(Ok(()), keys::check).map_err(wrong)?;
        let folder = folder.map_or_else(String::new, str::to_owned);
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        // Only for its checks of a key: the listing's own paths are made here.
        self.run("list", "all", move |inner, _| {
            inner.check_root()?;
            let mut found = Vec::new();
            inner.walk(&inner.root.join(folder), &prefix, &mut found)?;
            found.retain(|entry| after.as_ref().is_none_or(|after| entry.key > *after));
            found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            found.truncate(max);
            Ok(found)
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.run("delete", key, |inner, path| {
            inner.check_root()?;
            match fs::remove_file(path) {
                Err(e) if is_absence(&e) || path.is_dir() => return Ok(()),
                removed => removed?,
            }
            let mut folder = path.parent().expect("a key is below the root");
            // Removing a folder fails unless it is empty, which is what is wanted.
            while folder != inner.root && fs::remove_dir(folder).is_ok() {
                folder = folder.parent().expect("below the root");
            }
            sync_folder(folder)
        })
        .await
    }

    async fn begin_upload(&self, key: &str) -> Result<UploadId, StorageError> {
        let name = key.to_owned();
        self.run("begin upload of", key, move |inner, _| {
            inner.check_root()?;
            inner.uploads.begin(&name)
        })
        .await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        body: Body,
        crc64nvme: u64,
    ) -> Result<Part, StorageError> {
        let (name, upload) = (key.to_owned(), upload.clone());
        self.run("upload part of", key, move |inner, _| {
            let uploads = &inner.uploads;
            uploads.part(&name, &upload, number, &body, crc64nvme)
        })
        .await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        crc64nvme: u64,
    ) -> Result<(), StorageError> {
        let (name, upload, parts) = (key.to_owned(), upload.clone(), parts.to_vec());
        self.run("complete", key, move |inner, path| {
            let body = inner.uploads.assemble(&name, &upload, &parts, crc64nvme)?;
            appear(&inner.root, &body, path, &|body, path| {
                fs::rename(body, path)
            })?;
            inner.uploads.abort(&upload)
        })
        .await
    }

    async fn abort_upload(&self, key: &str, upload: &UploadId) -> Result<(), StorageError> {
        let upload = upload.clone();
        self.run("abort upload of", key, move |inner, _| {
            inner.uploads.abort(&upload)
        })
        .await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StorageError> {
        let prefix = prefix.to_owned();
        self.run("list uploads of", "all", move |inner, _| {
            inner.check_root()?;
            inner.uploads.list(&prefix)
        })
        .await
    }
}

impl Inner {
    /// Opens an object; a folder is none.
    fn read(&self, path: &Path) -> io::Result<File> {
        let opened = File::open(path);
        if opened.as_ref().is_err_and(is_absence) {
            self.check_root()?;
        }
        let file = opened?;
        if file.metadata()?.is_dir() {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(file)
    }

    fn can_write(&self) -> bool {
        let probe = self.scratch().join(unique());
        File::create_new(&probe).is_ok() && fs::remove_file(&probe).is_ok()
    }
}

/// Makes the file at `aside` visible at `path`, for good: the folders on the way are made and
/// synced.
fn appear(
    root: &Path,
    aside: &Path,
    path: &Path,
    publish: &impl Fn(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let folder = path.parent().expect("a key is below the root");
    let mut attempt = 1;
    loop {
        match fs::create_dir_all(folder).and_then(|()| publish(aside, path)) {
            Err(e) if e.kind() == ErrorKind::NotFound && attempt < FOLDER_ATTEMPTS_MAX => {
                attempt += 1;
            }
            published => break published?,
        }
    }
    for folder in folder.ancestors() {
        sync_folder(folder)?;
        if folder == root {
            break;
        }
    }
    Ok(())
}

fn remove_left_over(entry: &fs::DirEntry) -> io::Result<()> {
    let age = SystemTime::now().duration_since(entry.metadata()?.modified()?);
    if age.is_ok_and(|age| age > LEFT_OVER_AGE_MAX) {
        fs::remove_file(entry.path())?;
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder) {
        // Removed by somebody else, being empty.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        opened => opened?.sync_all(),
    }
}

/// Another file, another tag: every write makes a new file.
fn tag(metadata: &fs::Metadata) -> String {
    format!(
        "{:x}-{:x}.{:09}-{:x}",
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.len()
    )
}

/// A file name that no other process or thread uses.
fn unique() -> String {
    format!("{:08x}-{:016x}", std::process::id(), fastrand::u64(..))
}

fn is_absence(error: &io::Error) -> bool {
    // A file where the key wants a folder: no such key either.
    error.kind() == ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NOTDIR.raw_os_error())
}

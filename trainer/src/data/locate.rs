//! From the name of a dataset to the dataset: found prepared, or made from a text that is found,
//! fetched or generated. Called when training starts and by `trainer prepare`.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::corpus;
use super::dataset::{Dataset, DatasetInfo, TRAIN};
use super::fetch::{self, Access, Wanted};
use super::parts;
use super::prepare::{
    Collection, IfPresent, OnProgress, Packing, Place, Preparation, Progress, SourceFile, Stage,
    Text, TokenizerChoice, prepare, prepare_documents,
};
use super::sources;
use crate::config::Config;
use crate::{Error, Result};

/// Raised when a known name comes to mean other tokens, so that what an earlier version left in
/// the cache is not taken for it.
const RECIPE: u32 = 1;
/// Length of the text of `quickstart`.
const QUICKSTART_CHARS: usize = 1_000_000;

const DATA_ROOT: &str = "data";
const TINY_SHAKESPEARE_BYTES: u64 = 1_115_394;
const TINY_SHAKESPEARE_SHA256: &str =
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed";
/// Where tiny Shakespeare lies below a root or a mirror.
const TINY_SHAKESPEARE_PATH: &str = "tinyshakespeare/input.txt";
const TINY_SHAKESPEARE_URLS: [&str; 3] = [
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
    "https://github.com/karpathy/char-rnn/raw/master/data/tinyshakespeare/input.txt",
];

/// A dataset that the program can make by itself.
struct Known {
    name: &'static str,
    tokenizer: TokenizerChoice,
    origin: Origin,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Generated,
    TinyShakespeare,
}

static KNOWN: [Known; 3] = [
    Known {
        name: "quickstart",
        tokenizer: TokenizerChoice::Char,
        origin: Origin::Generated,
    },
    Known {
        name: "shakespeare_char",
        tokenizer: TokenizerChoice::Char,
        origin: Origin::TinyShakespeare,
    },
    Known {
        name: "shakespeare",
        tokenizer: TokenizerChoice::Gpt2,
        origin: Origin::TinyShakespeare,
    },
];

/// Where datasets and texts are looked for, and where new ones go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// `--data_dir`, else `$ANNEAL_DATA`, else `data`.
    root: PathBuf,
    /// Whether `root` is `--data_dir`, which may itself be a dataset.
    is_root_given: bool,
    /// In order; what cannot be written into one goes to the next.
    caches: Vec<PathBuf>,
    /// URLs tried before the built-in ones.
    mirrors: Vec<String>,
    urls: Vec<String>,
}

impl Places {
    /// What the command line and the environment (`ANNEAL_DATA`, `ANNEAL_CACHE`, `XDG_CACHE_HOME`,
    /// `HOME`) say; empty values count as none.
    pub fn new(data_dir: &Path, data_url: &str) -> Self {
        Self::of(data_dir, data_url, |name| env::var_os(name))
    }

    fn of(data_dir: &Path, data_url: &str, env: impl Fn(&str) -> Option<OsString>) -> Self {
        let variable = |name| env(name).filter(|value| !value.is_empty());
        let data = variable("ANNEAL_DATA");
        // A path that is not UTF-8 is no URL.
        let is_url = |value: &OsString| value.to_str().is_some_and(|value| value.contains("://"));
        let is_root_given = !data_dir.as_os_str().is_empty();
        let root = match &data {
            _ if is_root_given => data_dir.to_owned(),
            Some(folder) if !is_url(folder) => PathBuf::from(folder),
            _ => PathBuf::from(DATA_ROOT),
        };
        let cache = variable("ANNEAL_CACHE").map(PathBuf::from).or_else(|| {
            variable("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")))
                .map(|caches| caches.join("anneal"))
        });
        let mirrors = [
            Some(data_url.to_owned()),
            data.and_then(|value| value.into_string().ok()),
        ]
        .into_iter()
        .flatten()
        .filter(|url| url.contains("://") || url == data_url)
        .filter(|url| !url.is_empty())
        // A folder on a server holds the text where a folder on the disk does.
        .map(|url| {
            if url.ends_with('/') {
                url + TINY_SHAKESPEARE_PATH
            } else {
                url
            }
        });
        Self {
            root,
            is_root_given,
            caches: cache
                .into_iter()
                .chain([PathBuf::from(DATA_ROOT)])
                .collect(),
            mirrors: mirrors.collect(),
            urls: TINY_SHAKESPEARE_URLS.map(str::to_owned).to_vec(),
        }
    }

    /// Folders that may hold the dataset `name` prepared, in the order of preference.
    pub(crate) fn prepared(&self, name: &str) -> Vec<PathBuf> {
        let mut dirs = vec![self.root.join(name)];
        if self.is_root_given {
            dirs.push(self.root.clone());
        }
        dirs.extend(self.caches.iter().map(|cache| cached(cache, name)));
        dirs
    }

    /// The first cache that can be written into.
    fn writable_cache(&self) -> Result<&Path> {
        let mut refused = None;
        for cache in &self.caches {
            let probe = cache.join(format!(".tmp-probe-{}", std::process::id()));
            let tried = fs::create_dir_all(cache).and_then(|()| File::create(&probe));
            match tried {
                Ok(_) => {
                    // Another thread of this process may have removed it already.
                    fs::remove_file(&probe).ok();
                    return Ok(cache);
                }
                Err(error) => refused = Some(Error::write(cache)(error)),
            }
        }
        Err(refused.expect("there is always a last cache"))
    }
}

/// The folder of a dataset in a cache.
fn cached(cache: &Path, name: &str) -> PathBuf {
    let folder = match known(name) {
        Some(known) => format!("{}-{RECIPE}", known.name),
        None => name.to_owned(),
    };
    cache.join("datasets").join(folder)
}

fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

/// Opens the dataset that the config names; one of the known names is prepared first if need be.
///
/// # Errors
/// `Error::Data` if the name means nothing, saying where it was looked for, or if the text cannot
/// be had, or if what is there is damaged; `Error::Write` if nothing can be written.
pub fn locate(config: &Config, progress: OnProgress<'_>) -> Result<Dataset> {
    let places = Places::new(&config.data_dir, &config.data_url);
    locate_in(&places, &config.dataset, progress)
}

fn locate_in(places: &Places, name: &str, progress: OnProgress<'_>) -> Result<Dataset> {
    if let Some(dataset) = present(places, name) {
        return dataset;
    }
    let prepared = places.prepared(name);
    match known(name) {
        Some(known) => {
            let cache = places.writable_cache()?;
            let dir = cached(cache, name);
            let order = Order {
                name,
                tokenizer: known.tokenizer.clone(),
                val_fraction: Preparation::VAL_FRACTION,
                if_present: IfPresent::Keep,
            };
            make_known(known, &order, places, &dir, progress)?;
            Dataset::open(&dir)
        }
        None if sources::recipe(name).is_some() => Err(Error::Data(format!(
            "no dataset {name:?}; looked for {TRAIN} in:\n{}\n\
             hint: `trainer prepare {name}` fetches it and makes its tokens, which takes hours",
            list(
                prepared.iter().map(|dir| format!("  {}", dir.display())),
                "\n"
            )
        ))),
        None if parts::is_path(name) => Err(Error::Data(format!(
            "{name}: expected a dataset, or token files of llm.c's, got nothing there\n\
             hint: paths begin at the folder that the program was started in; datasets with a name \
             lie in --data_dir"
        ))),
        None => Err(Error::Data(format!(
            "no dataset {name:?}; looked for {TRAIN} in:\n{}\n\
             hint: the program can make {}\n\
             hint: a text of your own becomes one by `trainer prepare FILE --name {name}`",
            list(
                prepared.iter().map(|dir| format!("  {}", dir.display())),
                "\n"
            ),
            known_names(),
        ))),
    }
}

/// The dataset of this name, if it is there: prepared in a place for datasets, or at a path.
fn present(places: &Places, name: &str) -> Option<Result<Dataset>> {
    let prepared = places.prepared(name);
    if let Some(dir) = prepared.iter().find(|dir| parts::is_in(dir)) {
        return Some(Dataset::open(dir));
    }
    if !parts::is_path(name) {
        return None;
    }
    let folder = Path::new(name);
    if folder.is_dir() && parts::has_token_files(folder) {
        return Some(Dataset::open(folder));
    }
    match parts::of_path(name) {
        Ok(None) => None,
        Ok(Some(parts)) => Some(Dataset::open_files(name, sources::stem(name), &parts)),
        Err(error) => Some(Err(error)),
    }
}

/// The dataset that the config names, where it is there already.
pub fn find(config: &Config) -> Option<Result<Dataset>> {
    let places = Places::new(&config.data_dir, &config.data_url);
    present(&places, &config.dataset)
}

/// Whether the program makes a dataset of this name by itself, and whether that takes a download.
pub fn can_make(name: &str) -> Option<bool> {
    known(name).map(|known| known.origin == Origin::TinyShakespeare)
}

/// Whether `trainer prepare` knows where to fetch a dataset of this name.
pub fn is_recipe(name: &str) -> bool {
    sources::recipe(name).is_some()
}

/// Folders where a dataset that is made by itself may be put, the first that can be written.
pub fn caches(config: &Config) -> Vec<PathBuf> {
    Places::new(&config.data_dir, &config.data_url).caches
}

pub(super) fn known_names() -> String {
    list(KNOWN.iter().map(|known| known.name.to_owned()), ", ")
}

fn list(items: impl Iterator<Item = String>, between: &str) -> String {
    items.collect::<Vec<_>>().join(between)
}

/// What `trainer prepare` was asked for.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// A known name, or what [`sources`] finds files by.
    pub sources: Vec<String>,
    /// Its name afterwards; by default the known name or the file's without its extensions.
    pub name: Option<&'a str>,
    /// By default the known name's, GPT-2's for documents, else of characters.
    pub tokenizer: Option<TokenizerChoice>,
    /// By default nanoGPT's: 0.1 of a text, 0.0005 of documents.
    pub val_fraction: Option<f64>,
    /// The field or column of a document's text.
    pub field: &'a str,
    /// Says which documents are held back.
    pub seed: u64,
    /// By default `<data_dir>/<name>`; for a known name as it is, the cache.
    pub out_dir: Option<&'a Path>,
    /// Whether a dataset that is there already is replaced.
    pub overwrite: bool,
}

/// How a dataset is to come out.
struct Order<'a> {
    name: &'a str,
    tokenizer: TokenizerChoice,
    val_fraction: f64,
    if_present: IfPresent,
}

impl<'a> Order<'a> {
    fn of(&'a self, text: Text<'a>, source: &'a str) -> Preparation<'a> {
        Preparation {
            text,
            source,
            name: self.name,
            tokenizer: &self.tokenizer,
            val_fraction: self.val_fraction,
            entropy_per_token: None,
            if_present: self.if_present,
        }
    }
}

impl Request<'_> {
    /// Whether nothing is wanted otherwise than it is by default.
    fn is_plain(&self) -> bool {
        self.name.is_none()
            && self.tokenizer.is_none()
            && self.val_fraction.is_none()
            && self.out_dir.is_none()
    }
}

/// Prepares what a person asked for and returns the folder and what it holds. A known name asked
/// for as it is and there already is left as it is.
///
/// # Errors
/// As [`locate`] and [`prepare`]; `Error::Config` if the folder holds a dataset already.
pub fn prepare_named_or_path(
    request: &Request<'_>,
    places: &Places,
    progress: OnProgress<'_>,
) -> Result<(PathBuf, DatasetInfo)> {
    let [first, others @ ..] = request.sources.as_slice() else {
        return Err(Error::config(
            "expected a SOURCE to prepare, got none\n\
             hint: a file, folder, glob, URL or known name; `trainer prepare --help` lists them",
        ));
    };
    let known = known(first).filter(|_| others.is_empty());
    let name = match (request.name, known) {
        (Some(name), _) => name,
        (None, Some(known)) => known.name,
        (None, None) => sources::stem(first),
    };
    let is_plain = known.is_some() && request.is_plain();
    if is_plain && !request.overwrite {
        let dataset = locate_in(places, name, progress)?;
        return Ok((dataset.dir.clone(), dataset.info.clone()));
    }
    let out_dir = match request.out_dir {
        Some(dir) => dir.to_owned(),
        None if is_plain => cached(places.writable_cache()?, name),
        None => places.root.join(name),
    };
    let if_present = if request.overwrite {
        IfPresent::Replace
    } else {
        IfPresent::Refuse
    };
    let order = |default: &TokenizerChoice| Order {
        name,
        tokenizer: request.tokenizer.clone().unwrap_or_else(|| default.clone()),
        val_fraction: request.val_fraction.unwrap_or(Preparation::VAL_FRACTION),
        if_present,
    };
    if let Some(known) = known {
        let info = make_known(known, &order(&known.tokenizer), places, &out_dir, progress)?;
        return Ok((out_dir, info));
    }
    let found = sources::find(&request.sources, &|name| env::var_os(name))?;
    let info = if found.is_one_text {
        let order = order(&TokenizerChoice::Char);
        make_from_text(&found.files[0], &order, places, &out_dir, progress)?
    } else {
        // Where nothing is to be fetched, nothing is to be written but the dataset.
        let is_here = |file: &SourceFile| matches!(file.place, Place::Here(_));
        let downloads = if found.files.iter().all(is_here) {
            PathBuf::new()
        } else {
            places.writable_cache()?.join("sources")
        };
        let collection = Collection {
            files: &found.files,
            field: request.field,
            source: &found.source,
            name,
            tokenizer: &order(&TokenizerChoice::Gpt2).tokenizer,
            val_fraction: request.val_fraction.unwrap_or(Collection::VAL_FRACTION),
            seed: request.seed,
            if_present,
            downloads: &downloads,
        };
        prepare_documents(&collection, &out_dir, progress)?
    };
    Ok((out_dir, info))
}

/// Prepares a dataset that the program knows.
fn make_known(
    known: &Known,
    order: &Order<'_>,
    places: &Places,
    out_dir: &Path,
    progress: OnProgress<'_>,
) -> Result<DatasetInfo> {
    match known.origin {
        Origin::Generated => {
            let corpus = corpus::generate(QUICKSTART_CHARS);
            let preparation = Preparation {
                // Of other tokens than characters the entropy is not known.
                entropy_per_token: (order.tokenizer == TokenizerChoice::Char)
                    .then_some(corpus.entropy_per_char),
                ..order.of(Text::Inline(&corpus.text), "generated")
            };
            prepare(&preparation, out_dir, progress)
        }
        Origin::TinyShakespeare => {
            let (path, source) = tiny_shakespeare(places, known.name, progress)?;
            prepare(&order.of(Text::File(&path), &source), out_dir, progress)
        }
    }
}

/// The text of tiny Shakespeare and where it came from: found in the root, in a cache, or fetched.
fn tiny_shakespeare(
    places: &Places,
    name: &str,
    progress: OnProgress<'_>,
) -> Result<(PathBuf, String)> {
    for path in [
        places.root.join(name).join("input.txt"),
        places.root.join(TINY_SHAKESPEARE_PATH),
        places.root.join("input.txt"),
    ] {
        if path.exists() {
            if !is_tiny_shakespeare(&path)? {
                return Err(Error::Data(format!(
                    "{}: expected tiny Shakespeare ({TINY_SHAKESPEARE_BYTES} bytes, SHA-256 \
                     {TINY_SHAKESPEARE_SHA256}), got another text\n\
                     hint: prepare a text of your own under a name of its own: \
                     `trainer prepare {} --name NAME`",
                    path.display(),
                    path.display()
                )));
            }
            let source = path.display().to_string();
            return Ok((path, source));
        }
    }
    let in_cache = |cache: &Path| cache.join("sources/tinyshakespeare.txt");
    for path in places.caches.iter().map(|cache| in_cache(cache)) {
        // One that is damaged is fetched again.
        if path.exists() && is_tiny_shakespeare(&path)? {
            let source = path.display().to_string();
            return Ok((path, source));
        }
    }
    let path = in_cache(places.writable_cache()?);
    let sources: Vec<String> = [places.mirrors.clone(), places.urls.clone()].concat();
    let wanted = Wanted {
        sources: &sources,
        sha256: Some(TINY_SHAKESPEARE_SHA256),
        bytes: Some(TINY_SHAKESPEARE_BYTES),
    };
    let source = fetched(wanted, Access::default(), &path, progress).map_err(|error| {
        with_hint(
            error,
            &format!(
                "hint: put the file at {}\n\
                 hint: or set --data_dir or ANNEAL_DATA to a folder that has it as \
                 {TINY_SHAKESPEARE_PATH}\n\
                 hint: or name a mirror by --data_url (https://, http:// or file://)",
                path.display()
            ),
        )
    })?;
    Ok((path, source))
}

fn is_tiny_shakespeare(path: &Path) -> Result<bool> {
    let mut file = File::open(path).map_err(Error::read(path))?;
    let bytes = file.metadata().map_err(Error::read(path))?.len();
    if bytes != TINY_SHAKESPEARE_BYTES {
        return Ok(false);
    }
    let sha256 = fetch::sha256(&mut file).map_err(Error::read(path))?;
    Ok(sha256 == TINY_SHAKESPEARE_SHA256)
}

/// Prepares one text; what is fetched or unpacked for that is removed again.
fn make_from_text(
    file: &SourceFile,
    order: &Order<'_>,
    places: &Places,
    out_dir: &Path,
    progress: OnProgress<'_>,
) -> Result<DatasetInfo> {
    let scratch = |what: &str| -> Result<PathBuf> {
        let dir = places.writable_cache()?.join("sources");
        fs::create_dir_all(&dir).map_err(Error::write(&dir))?;
        let stem = sources::stem(&file.name);
        Ok(dir.join(format!("{stem}-{}{what}", std::process::id())))
    };
    let mut temporary = Vec::new();
    let mut path = match &file.place {
        Place::Here(path) => path.clone(),
        Place::There(remote) => {
            let path = scratch("")?;
            let sources = [remote.url.clone()];
            let wanted = Wanted {
                sources: &sources,
                sha256: None,
                bytes: file.bytes,
            };
            let access = Access {
                name: Some(&file.name),
                ..Access::default()
            };
            let hint = format!("hint: {}", remote.hint);
            fetched(wanted, access, &path, progress).map_err(|error| with_hint(error, &hint))?;
            temporary.push(path.clone());
            path
        }
    };
    let mut made = Ok(());
    if file.packing != Packing::Plain {
        let unpacked = scratch(".txt")?;
        temporary.push(unpacked.clone());
        made = file.packing.unpack(&path, &file.name, &unpacked);
        path = unpacked;
    }
    let made =
        made.and_then(|()| prepare(&order.of(Text::File(&path), &file.name), out_dir, progress));
    for path in temporary {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::write(&path)(error));
            }
            _ => {}
        }
    }
    made
}

/// Fetches into a folder that may not be there yet.
fn fetched(
    wanted: Wanted<'_>,
    access: Access<'_>,
    to: &Path,
    progress: OnProgress<'_>,
) -> Result<String> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).map_err(Error::write(dir))?;
    }
    fetch::fetch_with(wanted, access, to, &mut |done, total| {
        progress(Progress {
            stage: Stage::Fetching,
            done,
            total,
        });
    })
}

fn with_hint(error: Error, hint: &str) -> Error {
    match error {
        Error::Data(message) => Error::Data(format!("{message}\n{hint}")),
        other => other,
    }
}

#[cfg(test)]
mod tests;

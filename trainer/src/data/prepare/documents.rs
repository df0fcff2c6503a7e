//! Preparation of documents: files here and elsewhere, of which each line, row or text is one.
//!
//! Three kinds of threads: one brings files here, one reads batches of them, the others make
//! tokens, which are written in the order of the documents. So a source of any size takes the
//! memory of a few batches, and any number of threads gives the same bytes. Called by `locate`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::super::dataset::{self, DatasetInfo};
use super::super::fetch::{self, Access, Wanted, hexadecimal};
use super::super::token_file::TokenWriter;
use super::folder::{self, IfPresent, Workshop};
use super::pieces::CutRule;
use super::records::{Batch, Batches, Kind, LocalFile};
use super::unpack::Packing;
use super::{Alphabet, FORMAT_VERSION, OnProgress, PART_TOKENS_MIN, Progress, Stage};
use super::{TokenizerChoice, pipeline};
use crate::philox::{Philox, Stream};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// While a file is awaited, progress is told this often.
const REPORT: Duration = Duration::from_millis(200);
/// Tokens that end a text, of GPT-2, Llama 3, SentencePiece's and BERT's vocabularies.
const ENDS: [&str; 5] = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]"];
/// What ends a document where tokens are characters.
const CHAR_END: &str = "\n";

/// Files of documents, and what to make of them.
pub struct Collection<'a> {
    /// In the order of their documents.
    pub files: &'a [SourceFile],
    /// The field of a line of JSON, or the column, that holds the text.
    pub field: &'a str,
    /// Where the files come from, as `dataset.json` shall say it.
    pub source: &'a str,
    pub name: &'a str,
    pub tokenizer: &'a TokenizerChoice,
    /// Documents that are held back for validation; which ones, `seed` and their numbers say.
    pub val_fraction: f64,
    pub seed: u64,
    pub if_present: IfPresent,
    /// Downloads whose checksum is known stay here until the dataset is whole, for another try.
    pub downloads: &'a Path,
}

impl Collection<'_> {
    /// nanoGPT's, for OpenWebText: its `prepare.py` has `test_size=0.0005, seed=2357`.
    pub const VAL_FRACTION: f64 = 0.0005;
    pub const SEED: u64 = 2357;
}

/// A file of a source.
#[derive(Clone)]
pub struct SourceFile {
    /// As a person knows it: a path or a URL, without secrets.
    pub name: String,
    pub kind: Kind,
    pub packing: Packing,
    pub place: Place,
    /// Its size, packed as it is.
    pub bytes: Option<u64>,
}

/// Where a file is.
#[derive(Clone)]
pub enum Place {
    Here(PathBuf),
    There(Remote),
}

/// A file on a server. Its URL may carry a signature: it is never shown.
#[derive(Clone)]
pub struct Remote {
    pub url: String,
    /// A token for `Authorization`.
    pub bearer: Option<String>,
    /// Lower-case hexadecimal.
    pub sha256: Option<String>,
    /// What a person may do when it cannot be had.
    pub hint: &'static str,
}

/// Makes the dataset folder `out_dir` as [`super::prepare`] does, of documents: each is followed
/// by the token that ends a text, as in nanoGPT's preparation of OpenWebText.
///
/// # Errors
/// `Error::Data` for what is no text, or not where it should be, naming file and line; for
/// documents too few; `Error::Write` if the disk refuses; `Error::Config` if `out_dir` holds a
/// dataset that is to be left alone, or the tokenizer has no token that ends a text.
pub fn prepare_documents(
    collection: &Collection<'_>,
    out_dir: &Path,
    progress: OnProgress<'_>,
) -> Result<DatasetInfo> {
    super::check_val_fraction(collection.val_fraction)?;
    folder::check(out_dir, collection.if_present)?;
    let given = collection.tokenizer.open()?;
    let workshop = Workshop::open(out_dir)?;
    let scratch = workshop.dir().join("sources");
    fs::create_dir(&scratch).map_err(Error::write(&scratch))?;
    let passes = Passes {
        collection,
        scratch: &scratch,
        progress,
    };
    let tokenizer = match given {
        Some(tokenizer) => tokenizer,
        None => Tokenizer::from_chars(passes.alphabet()?)?,
    };
    let end = end_of_document(&tokenizer)?;
    let [train, val] = [dataset::TRAIN, dataset::VAL].map(|name| workshop.dir().join(name));
    let vocab_size = tokenizer.vocab_size();
    let mut outputs = [
        Output::create(&train, vocab_size)?,
        Output::create(&val, vocab_size)?,
    ];
    passes.encode(&tokenizer, &end, &mut outputs)?;
    let documents: u64 = outputs.iter().map(|output| output.documents).sum();
    let [train, val] = outputs.map(Output::finish);
    let ((train_tokens, train_hash), (val_tokens, val_hash)) = (train?, val?);
    if train_tokens < PART_TOKENS_MIN || val_tokens < PART_TOKENS_MIN {
        return Err(Error::Data(format!(
            "{}: {documents} documents give {train_tokens} training and {val_tokens} validation \
             tokens, expected {PART_TOKENS_MIN} or more of each\n\
             hint: --val_fraction is the share of documents held back, now {}: try 0.1",
            collection.source, collection.val_fraction
        )));
    }
    fs::remove_dir_all(&scratch).map_err(Error::write(&scratch))?;
    tokenizer.save(workshop.dir())?;
    let info = DatasetInfo {
        format_version: FORMAT_VERSION,
        name: collection.name.to_owned(),
        tokenizer: collection.tokenizer.name().to_owned(),
        vocab_size,
        train_tokens,
        val_tokens,
        source: collection.source.to_owned(),
        source_sha256: hexadecimal(&Sha256::digest([train_hash, val_hash].concat())),
        entropy_per_token: None,
    };
    dataset::write_info(workshop.dir(), &info)?;
    workshop.install(out_dir, collection.if_present)?;
    for file in collection.files {
        if let Some(path) = kept(file, collection.downloads) {
            // The dataset is there; what cannot be removed only takes place.
            fs::remove_file(path).ok();
        }
    }
    Ok(info)
}

/// The ids after each document.
fn end_of_document(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    if let Tokenizer::Char(_) = tokenizer {
        return tokenizer.encode_ordinary(CHAR_END);
    }
    let end = ENDS.iter().find_map(|token| tokenizer.special_id(token));
    end.map(|id| vec![id]).ok_or_else(|| {
        Error::config(format!(
            "--tokenizer: expected a token that ends a text ({}), got a vocabulary without one\n\
             hint: such a token separates the documents; add it to the tokenizer's special tokens",
            ENDS.join(", ")
        ))
    })
}

/// Whether the document of this number is held back. A pure function of number and seed, so that
/// neither threads nor other documents have a say.
fn is_held_back(draws: &Philox, document: u64, val_fraction: f64) -> bool {
    // The third word tells these draws from those that make a corpus.
    let block = draws.block([document as u32, (document >> 32) as u32, 1, 0]);
    let bits = u64::from(block[0]) | u64::from(block[1]) << 32;
    // 53 bits, uniform in [0, 1).
    ((bits >> 11) as f64) < val_fraction * (1u64 << 53) as f64
}

/// A token file in the making.
struct Output {
    writer: TokenWriter,
    /// Over the ids as 32-bit numbers.
    hash: Sha256,
    documents: u64,
}

impl Output {
    fn create(path: &Path, vocab_size: usize) -> Result<Self> {
        Ok(Self {
            writer: TokenWriter::create(path, vocab_size)?,
            hash: Sha256::new(),
            documents: 0,
        })
    }

    fn write(&mut self, part: &Part) -> Result<()> {
        self.hash.update(bytemuck::cast_slice::<u32, u8>(&part.ids));
        self.documents += part.documents;
        self.writer.write(&part.ids)
    }

    fn finish(self) -> Result<(u64, Vec<u8>)> {
        Ok((self.writer.finish()?, self.hash.finalize().to_vec()))
    }
}

/// What a batch adds to a token file.
#[derive(Default)]
struct Part {
    ids: Vec<u32>,
    documents: u64,
}

/// Passes over the documents.
struct Passes<'a> {
    collection: &'a Collection<'a>,
    /// For files that are of no use to another process.
    scratch: &'a Path,
    progress: OnProgress<'a>,
}

impl Passes<'_> {
    /// Every character of the documents, and the one between them.
    fn alphabet(&self) -> Result<Vec<char>> {
        let mut all = Alphabet::new();
        all.look_at(CHAR_END);
        let work = |batch: Batch| {
            let mut alphabet = Alphabet::new();
            batch.documents(self.collection.field, &mut |_, text, _| {
                alphabet.look_at(text);
                Ok(())
            })?;
            Ok(alphabet.chars().collect::<String>())
        };
        self.run(Stage::Scanning, false, work, |chars| {
            all.look_at(&chars);
            Ok(())
        })?;
        Ok(all.chars().collect())
    }

    fn encode(&self, tokenizer: &Tokenizer, end: &[u32], outputs: &mut [Output; 2]) -> Result<()> {
        let draws = Philox::new(self.collection.seed, Stream::Corpus);
        let work = |batch: Batch| {
            let mut parts = [Part::default(), Part::default()];
            batch.documents(self.collection.field, &mut |document, text, is_end| {
                let held_back = is_held_back(&draws, document, self.collection.val_fraction);
                let part = &mut parts[usize::from(held_back)];
                part.ids.extend(tokenizer.encode_ordinary(text)?);
                if is_end {
                    part.ids.extend_from_slice(end);
                    part.documents += 1;
                }
                Ok(())
            })?;
            Ok(parts)
        };
        self.run(Stage::Encoding, true, work, |parts| {
            for (output, part) in outputs.iter_mut().zip(&parts) {
                output.write(part)?;
            }
            Ok(())
        })
    }

    /// One pass. `is_last`: files that nobody needs any more are removed on the way.
    fn run<R: Send>(
        &self,
        stage: Stage,
        is_last: bool,
        work: impl Fn(Batch) -> Result<R> + Sync,
        mut sink: impl FnMut(R) -> Result<()>,
    ) -> Result<()> {
        let collection = self.collection;
        let sizes = collection.files.iter().map(|file| file.bytes);
        let total: Option<u64> = sizes.sum();
        let (read, fetched, cancel) = (Arc::default(), AtomicU64::new(0), AtomicBool::new(false));
        // One file is read, one waits, one is on its way.
        let (files_in, files) = sync_channel(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let files_in = files_in;
                for (file, index) in collection.files.iter().zip(0u64..) {
                    let here = self.bring(file, index, is_last, &fetched, &cancel);
                    let failed = here.is_err();
                    if files_in.send(here).is_err() || failed {
                        return;
                    }
                }
            });
            let files = Awaited {
                files,
                fetched: &fetched,
                total,
                progress: self.progress,
            };
            let rule = CutRule::of(collection.tokenizer);
            let done = pipeline::in_order(
                rayon::current_num_threads(),
                Batches::new(files, collection.field, rule, &read),
                work,
                |result| {
                    sink(result)?;
                    (self.progress)(Progress {
                        stage,
                        done: read.load(Ordering::Relaxed),
                        total,
                    });
                    Ok(())
                },
            );
            cancel.store(true, Ordering::Relaxed);
            done
        })
    }

    /// The file on this machine: as it is, fetched, unpacked where it is read here and there.
    fn bring(
        &self,
        file: &SourceFile,
        index: u64,
        is_last: bool,
        fetched: &AtomicU64,
        cancel: &AtomicBool,
    ) -> Result<LocalFile> {
        let mut local = LocalFile {
            name: Arc::from(file.name.as_str()),
            kind: file.kind,
            packing: file.packing,
            path: PathBuf::new(),
            is_temporary: false,
        };
        match &file.place {
            Place::Here(path) => local.path = path.clone(),
            Place::There(remote) => {
                let keep = kept(file, self.collection.downloads);
                local.is_temporary = is_last && keep.is_none();
                local.path = keep.unwrap_or_else(|| self.scratch.join(format!("{index}.fetched")));
                // A pass before this one may have brought it.
                fetch_if_missing(file, remote, &local.path, fetched, cancel)?;
            }
        }
        // Parquet is read from its end.
        if file.kind == Kind::Parquet && file.packing != Packing::Plain {
            let to = self.scratch.join(format!("{index}.unpacked"));
            if !to.exists() {
                file.packing.unpack(&local.path, &file.name, &to)?;
            }
            if local.is_temporary {
                fs::remove_file(&local.path).map_err(Error::write(&local.path))?;
            }
            local.packing = Packing::Plain;
            local.path = to;
            local.is_temporary = is_last;
        }
        Ok(local)
    }
}

/// Where the file stays until the dataset is whole: one whose checksum is known.
fn kept(file: &SourceFile, downloads: &Path) -> Option<PathBuf> {
    match &file.place {
        Place::There(remote) => Some(downloads.join(remote.sha256.as_ref()?)),
        Place::Here(_) => None,
    }
}

fn fetch_if_missing(
    file: &SourceFile,
    remote: &Remote,
    path: &Path,
    fetched: &AtomicU64,
    cancel: &AtomicBool,
) -> Result<()> {
    if path.exists() {
        let Some(expected) = &remote.sha256 else {
            return Ok(());
        };
        let mut there = fs::File::open(path).map_err(Error::read(path))?;
        if fetch::sha256(&mut there).map_err(Error::read(path))? == *expected {
            return Ok(());
        }
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::write(dir))?;
    }
    let before = fetched.load(Ordering::Relaxed);
    let wanted = Wanted {
        sources: std::slice::from_ref(&remote.url),
        sha256: remote.sha256.as_deref(),
        bytes: file.bytes,
    };
    let access = Access {
        name: Some(&file.name),
        bearer: remote.bearer.as_deref(),
        cancel: Some(cancel),
    };
    let told = &mut |done, _| fetched.store(before + done, Ordering::Relaxed);
    match fetch::fetch_with(wanted, access, path, told) {
        Ok(_) => Ok(()),
        Err(Error::Data(message)) => Err(Error::Data(format!("{message}\nhint: {}", remote.hint))),
        Err(error) => Err(error),
    }
}

/// Files on their way; who waits for one says how far it is.
struct Awaited<'a> {
    files: Receiver<Result<LocalFile>>,
    fetched: &'a AtomicU64,
    total: Option<u64>,
    progress: OnProgress<'a>,
}

impl Iterator for Awaited<'_> {
    type Item = Result<LocalFile>;

    fn next(&mut self) -> Option<Result<LocalFile>> {
        loop {
            match self.files.recv_timeout(REPORT) {
                Ok(file) => return Some(file),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    let done = self.fetched.load(Ordering::Relaxed);
                    if done > 0 {
                        (self.progress)(Progress {
                            stage: Stage::Fetching,
                            done,
                            total: self.total,
                        });
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! The documents of files: lines of JSON, rows of Parquet, texts; read in batches of about one
//! size, each of which a thread takes apart by itself. Called by `documents`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::json::Field;
use super::not_utf8;
use super::pieces::{CutRule, PieceFault, Pieces};
use super::unpack::Packing;
use crate::{Error, Result};

/// What is read before a batch is given out.
const BATCH_BYTES: usize = 512 << 10;
/// A longer line is no document.
const LINE_BYTES_MAX: usize = 1 << 30;
/// Rows read at a time.
const ROWS: usize = 64;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One document.
    Text,
    /// A document a line, in a field of a JSON object.
    Lines,
    /// A document a row, in a column.
    Parquet,
}

impl Kind {
    /// What the extension of a name says, after that of its packing.
    pub fn of(name: &str) -> Option<Self> {
        match Path::new(name).extension()?.to_str()? {
            "txt" => Some(Self::Text),
            "jsonl" | "ndjson" => Some(Self::Lines),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// A file on this machine.
#[derive(Debug)]
pub(super) struct LocalFile {
    /// As a person knows it.
    pub(super) name: Arc<str>,
    pub(super) kind: Kind,
    pub(super) packing: Packing,
    pub(super) path: PathBuf,
    /// Removed once it is read.
    pub(super) is_temporary: bool,
}

/// Documents, or a piece of one.
pub(super) enum Batch {
    Lines {
        name: Arc<str>,
        /// The number of the first line in the file, from 0.
        first: u64,
        /// The number of the first line's document.
        document: u64,
        lines: Vec<u8>,
    },
    Rows {
        name: Arc<str>,
        first: u64,
        document: u64,
        texts: Vec<ByteArray>,
    },
    Piece {
        document: u64,
        text: String,
        is_last: bool,
    },
}

/// The batches of files. A document's number is its line, row or file, counted over all of them;
/// an empty line has a number, too, but no document.
pub(super) struct Batches<'a, F> {
    files: F,
    field: &'a str,
    rule: CutRule,
    /// Bytes of the files that are read, packed as they are.
    read: Arc<AtomicU64>,
    current: Option<(LocalFile, Reader)>,
    /// Documents before the current place.
    documents: u64,
}

enum Reader {
    Lines(Lines),
    Rows(Box<Rows>),
    Text(Pieces<'static>, Option<String>),
}

impl<'a, F: Iterator<Item = Result<LocalFile>>> Batches<'a, F> {
    pub(super) fn new(files: F, field: &'a str, rule: CutRule, read: &Arc<AtomicU64>) -> Self {
        Self {
            files,
            field,
            rule,
            read: Arc::clone(read),
            current: None,
            documents: 0,
        }
    }

    fn open(&self, file: &LocalFile) -> Result<Reader> {
        let unpacked = || file.packing.open(&file.path, &self.read);
        Ok(match file.kind {
            Kind::Lines => Reader::Lines(Lines {
                reader: unpacked()?,
                buffer: Vec::new(),
                lines: 0,
                is_at_end: false,
            }),
            Kind::Parquet => {
                assert!(file.packing == Packing::Plain, "unpacked by `documents`");
                Reader::Rows(Box::new(Rows::open(file, self.field, &self.read)?))
            }
            Kind::Text => {
                let mut pieces = Pieces::new(unpacked()?, self.rule, BATCH_BYTES);
                let first = next_piece(&mut pieces, file)?;
                Reader::Text(pieces, Some(first.unwrap_or_default()))
            }
        })
    }

    fn advance(&mut self) -> Result<Option<Batch>> {
        loop {
            let (file, mut reader) = match self.current.take() {
                Some(current) => current,
                None => {
                    let Some(file) = self.files.next() else {
                        return Ok(None);
                    };
                    let file = file?;
                    let reader = self.open(&file)?;
                    (file, reader)
                }
            };
            let batch = match &mut reader {
                Reader::Lines(lines) => lines.next(&file, &mut self.documents)?,
                Reader::Rows(rows) => rows.next(&file, &mut self.documents)?,
                Reader::Text(pieces, held) => match held.take() {
                    None => None,
                    Some(text) => {
                        // One piece ahead, so that the last is known for it.
                        *held = next_piece(pieces, &file)?;
                        let document = self.documents;
                        self.documents += u64::from(held.is_none());
                        Some(Batch::Piece {
                            document,
                            text,
                            is_last: held.is_none(),
                        })
                    }
                },
            };
            if batch.is_some() {
                self.current = Some((file, reader));
                return Ok(batch);
            }
            if file.is_temporary {
                std::fs::remove_file(&file.path).map_err(Error::write(&file.path))?;
            }
        }
    }
}

impl<F: Iterator<Item = Result<LocalFile>>> Iterator for Batches<'_, F> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        self.advance().transpose()
    }
}

fn next_piece(pieces: &mut Pieces<'static>, file: &LocalFile) -> Result<Option<String>> {
    pieces.next().map_err(|fault| match fault {
        PieceFault::Read(error) => file.packing.cannot_read(&file.name)(error),
        PieceFault::NotUtf8 { offset, byte } => not_utf8(&file.name, offset, byte),
    })
}

impl Batch {
    /// Tells `visit` the number of each document, its text, and whether it ends with it.
    ///
    /// # Errors
    /// [`Error::Data`] naming file and line of what is no text; whatever `visit` says.
    pub(super) fn documents(
        &self,
        field: &str,
        visit: &mut dyn FnMut(u64, &str, bool) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Lines {
                name,
                first,
                document,
                lines,
            } => {
                let way = Field::new(field);
                let lines = lines.strip_suffix(b"\n").unwrap_or(lines);
                for (line, i) in lines.split(|byte| *byte == b'\n').zip(0..) {
                    if line.iter().all(u8::is_ascii_whitespace) {
                        continue;
                    }
                    let text = way.text(line).map_err(|fault| {
                        Error::Data(format!(
                            "{name}: line {}: expected a JSON object with a text {field:?}, got {}\
                             \nhint: {}",
                            first + i + 1,
                            fault.got,
                            fault.hint
                        ))
                    })?;
                    visit(document + i, &text, true)?;
                }
                Ok(())
            }
            Self::Rows {
                name,
                first,
                document,
                texts,
            } => {
                for (bytes, i) in texts.iter().zip(0..) {
                    let text = std::str::from_utf8(bytes.data()).map_err(|error| {
                        Error::Data(format!(
                            "{name}: row {}: expected UTF-8 in the column {field:?}, got the byte \
                             0x{:02X} at offset {}\nhint: --field names a column of texts",
                            first + i + 1,
                            bytes.data()[error.valid_up_to()],
                            error.valid_up_to()
                        ))
                    })?;
                    visit(document + i, text, true)?;
                }
                Ok(())
            }
            Self::Piece {
                document,
                text,
                is_last,
            } => visit(*document, text, *is_last),
        }
    }
}

/// Lines of a file, a batch at a time.
struct Lines {
    reader: Box<dyn Read + Send>,
    /// Read, but not given out: the beginning of a line.
    buffer: Vec<u8>,
    lines: u64,
    is_at_end: bool,
}

impl Lines {
    fn next(&mut self, file: &LocalFile, documents: &mut u64) -> Result<Option<Batch>> {
        let end = loop {
            if self.is_at_end {
                break self.buffer.len();
            }
            let before = self.buffer.len();
            let wanted = BATCH_BYTES.max(before);
            (&mut self.reader)
                .take(wanted as u64)
                .read_to_end(&mut self.buffer)
                .map_err(|error| file.packing.cannot_read(&file.name)(error))?;
            self.is_at_end = self.buffer.len() < before + wanted;
            let new = &self.buffer[before..];
            if let Some(last) = new.iter().rposition(|byte| *byte == b'\n') {
                break before + last + 1;
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(Error::Data(format!(
                    "{}: line {}: expected at most {LINE_BYTES_MAX} bytes, got more\n\
                     hint: JSON Lines have one document a line; is it one?",
                    file.name,
                    self.lines + 1
                )));
            }
        };
        if end == 0 {
            return Ok(None);
        }
        let rest = self.buffer.split_off(end);
        let mut lines = std::mem::replace(&mut self.buffer, rest);
        let (first, document) = (self.lines, *documents);
        let ends = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        let count = ends + u64::from(lines.last() != Some(&b'\n'));
        self.lines += count;
        *documents += count;
        // Some programs begin a file with a byte order mark.
        if first == 0 && lines.starts_with(b"\xEF\xBB\xBF") {
            lines.drain(..3);
        }
        Ok(Some(Batch::Lines {
            name: Arc::clone(&file.name),
            first,
            document,
            lines,
        }))
    }
}

/// A column of a Parquet file, a batch at a time.
struct Rows {
    file: SerializedFileReader<File>,
    field: String,
    column: usize,
    /// The definition level of a value that is there.
    whole_level: i16,
    /// Row groups that were begun.
    groups: usize,
    current: Option<ColumnReaderImpl<ByteArrayType>>,
    rows: u64,
    /// Bytes of the file that stand for a row group in the progress.
    group_bytes: u64,
    read: Arc<AtomicU64>,
}

impl Rows {
    fn open(file: &LocalFile, field: &str, read: &Arc<AtomicU64>) -> Result<Self> {
        let opened = File::open(&file.path).map_err(Error::read(&file.path))?;
        let bytes = opened.metadata().map_err(Error::read(&file.path))?.len();
        let reader = SerializedFileReader::new(opened).map_err(damaged(file))?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let columns = schema.columns();
        let Some(column) = columns.iter().position(|c| c.path().string() == field) else {
            let names: Vec<String> = columns.iter().map(|c| c.path().string()).collect();
            return Err(Error::Data(format!(
                "{}: expected a column {field:?}, got the columns {}\n\
                 hint: --field names the column that holds the texts",
                file.name,
                names.join(", ")
            )));
        };
        let about = &columns[column];
        if about.physical_type() != Type::BYTE_ARRAY || about.max_rep_level() > 0 {
            let list = if about.max_rep_level() > 0 {
                "a list of "
            } else {
                ""
            };
            return Err(Error::Data(format!(
                "{}: expected texts in the column {field:?}, got {list}{}\n\
                 hint: --field names the column that holds the texts",
                file.name,
                about.physical_type()
            )));
        }
        let groups = reader.num_row_groups() as u64;
        Ok(Self {
            field: field.to_owned(),
            whole_level: about.max_def_level(),
            file: reader,
            column,
            groups: 0,
            current: None,
            rows: 0,
            group_bytes: bytes / groups.max(1),
            read: Arc::clone(read),
        })
    }

    fn next(&mut self, file: &LocalFile, documents: &mut u64) -> Result<Option<Batch>> {
        let mut texts: Vec<ByteArray> = Vec::new();
        let (mut bytes, mut levels) = (0, Vec::new());
        while bytes < BATCH_BYTES {
            let Some(reader) = &mut self.current else {
                if self.groups == self.file.num_row_groups() {
                    break;
                }
                let group = self.file.get_row_group(self.groups);
                let reader = group.and_then(|group| group.get_column_reader(self.column));
                let ColumnReader::ByteArrayColumnReader(reader) = reader.map_err(damaged(file))?
                else {
                    unreachable!("the type was looked at");
                };
                self.current = Some(reader);
                self.groups += 1;
                self.read.fetch_add(self.group_bytes, Ordering::Relaxed);
                continue;
            };
            let before = texts.len();
            levels.clear();
            let read = reader.read_records(ROWS, Some(&mut levels), None, &mut texts);
            let (records, values, _) = read.map_err(damaged(file))?;
            if values < records {
                let missing = levels.iter().position(|level| *level < self.whole_level);
                let row = self.rows + (before + missing.unwrap_or_default()) as u64;
                return Err(Error::Data(format!(
                    "{}: row {}: expected a text in the column {:?}, got null\n\
                     hint: leave such rows out, or choose another column by --field",
                    file.name,
                    row + 1,
                    self.field
                )));
            }
            if records == 0 {
                self.current = None;
            }
            bytes += texts[before..].iter().map(ByteArray::len).sum::<usize>();
        }
        if texts.is_empty() {
            return Ok(None);
        }
        let (first, document) = (self.rows, *documents);
        self.rows += texts.len() as u64;
        *documents += texts.len() as u64;
        Ok(Some(Batch::Rows {
            name: Arc::clone(&file.name),
            first,
            document,
            texts,
        }))
    }
}

fn damaged(file: &LocalFile) -> impl FnOnce(ParquetError) -> Error {
    let name = Arc::clone(&file.name);
    move |error| {
        let what = match error {
            ParquetError::External(error) if error.is::<io::Error>() => error.to_string(),
            other => other.to_string(),
        };
        Error::Data(format!(
            "{name}: expected a whole Parquet file, got a damaged one: {what}\n\
             hint: the file was cut short or damaged; fetch or copy it again"
        ))
    }
}

//! The local log of one attempt: `a<attempt>.log`, and `a<attempt>.log.1` with what came before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::Line;

/// Size at which the file is put aside; the one put aside before is lost then.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Logs of earlier attempts are removed, oldest first, beyond this.
const DIRECTORY_BYTES_MAX: u64 = 128 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
}

impl LogFile {
    pub(super) fn open(dir: &Path, attempt: u32) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("a{attempt:04}.log"));
        remove_oldest(dir)?;
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path,
            file: BufWriter::new(file),
            bytes,
        })
    }

    pub(super) fn write(&mut self, line: &Line) -> io::Result<()> {
        if self.bytes >= FILE_BYTES_MAX {
            self.file.flush()?;
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(&self.path)?;
            self.file = BufWriter::new(file);
            self.bytes = 0;
        }
        let text = format!("{} {} {}\n", line.time, line.source, line.line);
        self.bytes += text.len() as u64;
        self.file.write_all(text.as_bytes())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn remove_oldest(dir: &Path) -> io::Result<()> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('a') && name.contains(".log") {
            logs.push((
                entry.metadata()?.modified()?,
                entry.metadata()?.len(),
                entry.path(),
            ));
        }
    }
    logs.sort();
    let mut bytes: u64 = logs.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, size, path) in logs {
        if bytes <= DIRECTORY_BYTES_MAX {
            break;
        }
        fs::remove_file(path)?;
        bytes -= size;
    }
    Ok(())
}

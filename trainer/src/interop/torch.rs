//! Reads what `torch.save` wrote: a zip of a pickle and one file for each tensor's storage, as
//! `torch/serialization.py` lays them out. Nothing in it is run. Called by `nanogpt`.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result};
use crate::pickle::{Id, Pickle, Value};

/// The name of the pickle, below the archive's one folder.
const PICKLE: &str = "data.pkl";
/// More values than this are in no checkpoint.
const PICKLE_BYTES_MAX: u64 = 256 << 20;

const REBUILD_TENSOR: &str = "torch._utils._rebuild_tensor_v2";
const REBUILD_PARAMETER: &str = "torch._utils._rebuild_parameter";
/// Storage classes, bytes of an element, and how one becomes fp32.
const STORAGES: [(&str, usize, Widen); 6] = [
    ("torch.FloatStorage", 4, |b| {
        f32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }),
    ("torch.HalfStorage", 2, |b| {
        half::f16::from_le_bytes([b[0], b[1]]).to_f32()
    }),
    ("torch.BFloat16Storage", 2, |b| {
        half::bf16::from_le_bytes([b[0], b[1]]).to_f32()
    }),
    ("torch.DoubleStorage", 8, |b| {
        f64::from_le_bytes(b.try_into().expect("8 bytes")) as f32
    }),
    ("torch.LongStorage", 8, |b| {
        i64::from_le_bytes(b.try_into().expect("8 bytes")) as f32
    }),
    ("torch.IntStorage", 4, |b| {
        i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32
    }),
];

type Widen = fn(&[u8]) -> f32;

/// An open file of PyTorch.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
    /// Folder in the archive, with its slash.
    folder: String,
    pub pickle: Pickle,
}

/// A tensor in fp32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl TorchFile {
    /// # Errors
    /// [`Error::Data`] if it cannot be read, is of another format, or would run code.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::read(path))?;
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            Error::Data(format!(
                "{}: expected a file of torch.save (a zip archive), got something else or a part \
                 of one: {error}\nhint: PyTorch before 1.6 wrote another format; load and save it \
                 again with a newer one",
                path.display()
            ))
        })?;
        let fault = |what: String| Error::Data(format!("{}: {what}", path.display()));
        let name = (0..archive.len())
            .filter_map(|index| {
                let entry = archive.by_index_data(index).ok()?;
                entry.name().ok().map(|name| name.into_owned())
            })
            .find(|name| name.split_once('/').is_some_and(|(_, rest)| rest == PICKLE));
        let Some(name) = name else {
            return Err(fault(format!(
                "expected {PICKLE} in the archive, got none\nhint: a model saved by torch.jit or \
                 another program is no checkpoint"
            )));
        };
        let folder = name[..name.len() - PICKLE.len()].to_owned();
        if let Ok(order) = read_entry(&mut archive, &format!("{folder}byteorder"), 16)
            && order != b"little"
        {
            return Err(fault(
                "expected little-endian numbers, got others".to_owned(),
            ));
        }
        let bytes = read_entry(&mut archive, &name, PICKLE_BYTES_MAX).map_err(fault)?;
        let mut globals = vec![REBUILD_TENSOR, REBUILD_PARAMETER];
        globals.extend(STORAGES.iter().map(|(name, ..)| *name));
        let pickle = Pickle::parse(&bytes, &globals).map_err(fault)?;
        Ok(Self {
            path: path.to_owned(),
            archive,
            folder,
            pickle,
        })
    }

    /// For `map_err`: a fault of this file.
    pub fn fault(&self, what: impl AsRef<str>) -> Error {
        Error::Data(format!("{}: {}", self.path.display(), what.as_ref()))
    }

    /// Whether a value is a tensor.
    pub fn is_tensor(&self, id: Id) -> bool {
        matches!(self.pickle.get(id), Value::Call { callable, .. }
            if [REBUILD_TENSOR, REBUILD_PARAMETER].contains(&callable.as_str()))
    }

    /// Reads a tensor, which `name` calls in errors.
    ///
    /// # Errors
    /// [`Error::Data`] if it is none, or is not stored as it says.
    pub fn tensor(&mut self, id: Id, name: &str) -> Result<Tensor> {
        let (place, shape) = self
            .place(id)
            .map_err(|what| self.fault(format!("tensor {name}: {what}")))?;
        let entry = format!("{}data/{}", self.folder, place.key);
        let bytes = read_entry(&mut self.archive, &entry, u64::MAX)
            .map_err(|what| self.fault(format!("tensor {name}: {what}")))?;
        let count: usize = shape.iter().product();
        let wanted = place
            .offset
            .checked_mul(place.element_bytes)
            .zip(count.checked_mul(place.element_bytes))
            .and_then(|(start, len)| bytes.get(start..start.checked_add(len)?));
        let Some(wanted) = wanted else {
            return Err(self.fault(format!(
                "tensor {name}: expected {count} numbers of {} bytes from number {} on, got a \
                 storage of {} bytes",
                place.element_bytes,
                place.offset,
                bytes.len()
            )));
        };
        let numbers = wanted.chunks_exact(place.element_bytes);
        Ok(Tensor {
            data: numbers.map(place.widen).collect(),
            shape,
        })
    }

    /// Which storage a tensor lies in: two with the same key are one.
    pub fn storage_key(&self, id: Id) -> Option<String> {
        self.place(id).ok().map(|(place, _)| place.key)
    }

    /// Where a tensor lies, and its shape.
    fn place(&self, id: Id) -> Result<(Place, Vec<usize>), String> {
        let pickle = &self.pickle;
        let Value::Call {
            callable,
            arguments,
        } = pickle.get(id)
        else {
            return Err("expected a tensor, got another value".to_owned());
        };
        let arguments = pickle.items(*arguments);
        if callable == REBUILD_PARAMETER {
            let inner = arguments.first().copied();
            // A parameter holds a tensor, never another parameter.
            return match inner.map(|inner| (inner, pickle.get(inner))) {
                Some((inner, Value::Call { callable, .. })) if callable == REBUILD_TENSOR => {
                    self.place(inner)
                }
                _ => Err("expected a tensor in the parameter".to_owned()),
            };
        }
        let &[storage, offset, shape, strides, ..] = arguments else {
            return Err("expected storage, offset, shape and strides".to_owned());
        };
        let whole = |id: Id| match pickle.get(id) {
            Value::Int(int) => {
                usize::try_from(*int).map_err(|_| format!("a size or an offset of {int}"))
            }
            _ => Err("expected whole numbers for shape and offset".to_owned()),
        };
        let list = |id: Id| {
            let items = pickle.items(id).iter();
            items.map(|id| whole(*id)).collect::<Result<Vec<_>, _>>()
        };
        let (shape, strides) = (list(shape)?, list(strides)?);
        let mut expected = 1usize;
        for (size, stride) in shape.iter().zip(&strides).rev() {
            if *size != 1 && *stride != expected {
                return Err(format!(
                    "expected a row-major layout, got strides {strides:?} for shape {shape:?}"
                ));
            }
            let next = expected.checked_mul(*size);
            expected = next.ok_or_else(|| format!("a shape of {shape:?}"))?;
        }
        if shape.len() != strides.len() {
            return Err("expected as many strides as dimensions".to_owned());
        }
        let Value::Persistent(storage) = pickle.get(storage) else {
            return Err("expected a storage".to_owned());
        };
        let parts: Vec<&Value> = pickle
            .items(*storage)
            .iter()
            .map(|i| pickle.get(*i))
            .collect();
        let [_, Value::Global(class), Value::Text(key), ..] = parts[..] else {
            return Err("expected a storage with its class and key".to_owned());
        };
        let Some((_, element_bytes, widen)) = STORAGES.iter().find(|(name, ..)| name == class)
        else {
            return Err(format!("expected a storage of numbers, got {class}"));
        };
        let place = Place {
            key: key.clone(),
            offset: whole(offset)?,
            element_bytes: *element_bytes,
            widen: *widen,
        };
        Ok((place, shape))
    }
}

/// Where a tensor lies.
struct Place {
    key: String,
    /// In elements.
    offset: usize,
    element_bytes: usize,
    widen: Widen,
}

/// The contents of an uncompressed entry, whose size the file itself vouches for.
fn read_entry(
    archive: &mut ZipArchive<BufReader<File>>,
    name: &str,
    bytes_max: u64,
) -> Result<Vec<u8>, String> {
    let mut entry = archive
        .by_name(name)
        .map_err(|error| format!("{name:?} in the archive: {error}"))?;
    if entry.compression() != CompressionMethod::Stored {
        return Err(format!("{name:?} in the archive: expected it uncompressed"));
    }
    let size = entry.size();
    if size > bytes_max {
        return Err(format!(
            "{name:?} in the archive: expected at most {bytes_max} bytes, got {size}"
        ));
    }
    // Grows with what is really read: the size is only a claim.
    let mut bytes = Vec::new();
    entry
        .read_to_end(&mut bytes)
        .map_err(|error| format!("{name:?} in the archive: {error}"))?;
    if bytes.len() as u64 != size {
        return Err(format!(
            "{name:?} in the archive: expected {size} bytes, got {}",
            bytes.len()
        ));
    }
    Ok(bytes)
}

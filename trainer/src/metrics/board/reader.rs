//! Event files as TensorBoard reads them: records by their checksums, files by their names, and at
//! a start nothing more of what was told of that step and later. The oracle of the tests, here and
//! of the whole program; it shares nothing with what writes.

use std::fs;
use std::path::{Path, PathBuf};

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    Version(String),
    Start,
    /// Tag and value.
    Scalar(String, f32),
    /// Tag and text.
    Text(String, String),
}

/// A record of an event file, and each value of a summary.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) time: f64,
    pub(crate) step: u64,
    pub(crate) what: What,
}

/// A protobuf field.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Event files of a folder in the order in which they are read.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Every record of a file, up to one that is torn.
pub(crate) fn read(path: &Path) -> Vec<Told> {
    let bytes = fs::read(path).unwrap();
    let number = |at: &[u8]| u32::from_le_bytes(at[..4].try_into().unwrap());
    let (mut rest, mut told) = (&bytes[..], Vec::new());
    while rest.len() >= 12 {
        let len = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(number(&rest[8..]), masked_crc(&rest[..8]), "of a length");
        if rest.len() < 16 + len {
            break;
        }
        let data = &rest[12..12 + len];
        assert_eq!(number(&rest[12 + len..]), masked_crc(data), "of data");
        told.extend(event(data));
        rest = &rest[16 + len..];
    }
    told
}

/// What is shown of a folder.
pub(crate) fn shown(folder: &Path) -> Vec<Told> {
    let mut shown: Vec<Told> = Vec::new();
    for file in files(folder) {
        for told in read(&file) {
            match told.what {
                What::Start => shown.retain(|before| before.step < told.step),
                What::Version(_) => {}
                _ => shown.push(told),
            }
        }
    }
    shown
}

fn event(data: &[u8]) -> Vec<Told> {
    let (mut time, mut step, mut said) = (0.0, 0, Vec::new());
    for (field, value) in fields(data) {
        match (field, value) {
            (1, Field::Number(bits)) => time = f64::from_bits(bits),
            (2, Field::Number(number)) => step = number,
            (3, Field::Bytes(text)) => said.push(What::Version(utf8(text))),
            (5, Field::Bytes(summary)) => {
                said.extend(fields(summary).into_iter().map(|(_, value)| match value {
                    Field::Bytes(value) => summary_value(value),
                    Field::Number(_) => panic!("a summary of numbers"),
                }));
            }
            (7, Field::Bytes(session)) => match fields(session)[..] {
                [(1, Field::Number(1))] => said.push(What::Start),
                _ => panic!("another session than a start"),
            },
            (other, _) => panic!("field {other} of an event"),
        }
    }
    let told = |what| Told { time, step, what };
    said.into_iter().map(told).collect()
}

fn summary_value(data: &[u8]) -> What {
    let (mut tag, mut scalar, mut text) = (String::new(), None, None);
    for (field, value) in fields(data) {
        match (field, value) {
            (1, Field::Bytes(name)) => tag = utf8(name),
            (2, Field::Number(bits)) => scalar = Some(f32::from_bits(bits as u32)),
            (8, Field::Bytes(tensor)) => {
                for (field, value) in fields(tensor) {
                    if let (8, Field::Bytes(value)) = (field, value) {
                        text = Some(utf8(value));
                    }
                }
            }
            _ => {}
        }
    }
    match (scalar, text) {
        (Some(value), None) => What::Scalar(tag, value),
        (None, Some(text)) => What::Text(tag, text),
        _ => panic!("{tag}: a value that is no scalar and no text"),
    }
}

fn fields(mut data: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let mut take = |len: usize| {
            let (now, later) = data.split_at(len);
            data = later;
            now
        };
        let value = match key & 7 {
            1 => Field::Number(u64::from_le_bytes(take(8).try_into().unwrap())),
            5 => Field::Number(u64::from(u32::from_le_bytes(take(4).try_into().unwrap()))),
            0 => Field::Number(varint(&mut data)),
            2 => {
                let len = varint(&mut data) as usize;
                let (now, later) = data.split_at(len);
                data = later;
                Field::Bytes(now)
            }
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, value));
    }
    fields
}

fn varint(data: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = data.split_first().unwrap();
        *data = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return number;
        }
    }
    panic!("a number without an end")
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// CRC-32C bit by bit, masked as TensorFlow does.
fn masked_crc(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

//! TensorBoard's event files: scalars, texts and hyper-parameters of a run, record by record.
//! Called by `board` while a run goes on and by `interop::tensorboard` for one that is there.
//!
//! A file is a row of TFRecords, each an `Event` in protobuf: `record_writer.cc`, `event.proto`,
//! `summary.proto` and `tensor.proto` of `tensorflow/core`. Every function here makes one record.

use crc_fast::{CrcAlgorithm, checksum};

/// TensorBoard takes every file with this in its name for one of its own.
pub const PREFIX: &str = "events.out.tfevents.";
/// The end of the names of ours.
pub const SUFFIX: &str = ".anneal";

/// TensorFlow's type of texts.
const DT_STRING: u64 = 7;
/// `SessionLog.START`.
const SESSION_START: u64 = 1;

/// Begins every file; `at`, here and below, in seconds since 1970.
pub fn version(at: f64) -> Vec<u8> {
    record(&[time(at), text_field(3, "brain.Event:2")].concat())
}

/// A start from `step`: readers forget what was told of that step and of later ones.
pub fn start(at: f64, step: u64) -> Vec<u8> {
    let session = bytes_field(7, &number_field(1, SESSION_START));
    record(&[time(at), number_field(2, step), session].concat())
}

/// The hyper-parameters, as TOML.
pub fn config(at: f64, step: u64, toml: &str) -> Vec<u8> {
    let markdown = format!("```\n{toml}```");
    event(at, step, &text_value("config", &markdown))
}

/// What iteration `step` measured: training loss, learning rate, norm of the gradient, tokens per
/// second and MFU.
pub fn iteration(at: f64, step: u64, measured: [Option<f64>; 5]) -> Vec<u8> {
    const TAGS: [&str; 5] = [
        "loss/iteration",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "mfu",
    ];
    let values = TAGS.into_iter().zip(measured);
    let values = values.filter_map(|(tag, value)| Some(scalar_value(tag, value?)));
    event(at, step, &values.collect::<Vec<_>>().concat())
}

/// Both losses after `step` updates.
pub fn evaluation(at: f64, step: u64, train: f64, val: f64) -> Vec<u8> {
    let values = [
        scalar_value("loss/train", train),
        scalar_value("loss/val", val),
    ];
    event(at, step, &values.concat())
}

/// Text that the model wrote after `step` updates.
pub fn sample(at: f64, step: u64, text: &str) -> Vec<u8> {
    let markdown = format!("```\n{text}\n```");
    event(at, step, &text_value("sample", &markdown))
}

/// An event with the values of a summary.
fn event(at: f64, step: u64, values: &[u8]) -> Vec<u8> {
    let summary = bytes_field(5, values);
    record(&[time(at), number_field(2, step), summary].concat())
}

/// A TFRecord: length, its checksum, data, its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    let (len_crc, data_crc) = (masked_crc32c(&len), masked_crc32c(data));
    [
        &len,
        &len_crc.to_le_bytes()[..],
        data,
        &data_crc.to_le_bytes(),
    ]
    .concat()
}

fn masked_crc32c(data: &[u8]) -> u32 {
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, data) as u32;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// `Event.wall_time`.
fn time(seconds: f64) -> Vec<u8> {
    [&[1 << 3 | 1], &seconds.to_le_bytes()[..]].concat()
}

/// `Summary.value` with a number.
fn scalar_value(tag: &str, value: f64) -> Vec<u8> {
    let number = [&[2 << 3 | 5], &(value as f32).to_le_bytes()[..]].concat();
    bytes_field(1, &[text_field(1, tag), number].concat())
}

/// `Summary.value` with a text, as TensorBoard's plugin for texts wants it.
fn text_value(tag: &str, text: &str) -> Vec<u8> {
    let plugin = bytes_field(9, &bytes_field(1, &text_field(1, "text")));
    let tensor = [number_field(1, DT_STRING), text_field(8, text)].concat();
    bytes_field(
        1,
        &[text_field(1, tag), bytes_field(8, &tensor), plugin].concat(),
    )
}

fn text_field(field: u8, text: &str) -> Vec<u8> {
    bytes_field(field, text.as_bytes())
}

/// A protobuf field of bytes, texts and messages among them.
fn bytes_field(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    varint(&mut out, bytes.len() as u64);
    out.extend(bytes);
    out
}

fn number_field(field: u8, number: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    varint(&mut out, number);
    out
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests;

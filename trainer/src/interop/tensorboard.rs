//! TensorBoard's event files: scalars, texts and hyper-parameters of a run. Called by
//! `trainer export --format tensorboard`.
//!
//! A file is a row of TFRecords, each an `Event` in protobuf: `record_writer.cc`, `event.proto`,
//! `summary.proto` and `tensor.proto` of `tensorflow/core`.

use std::fs;
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, checksum};

use super::history::History;
use crate::checkpoint::atomic_write;
use crate::error::{Error, Result};

/// TensorFlow's type of texts.
const DT_STRING: u64 = 7;

/// Writes the whole history as one event file in `folder`, replacing the one of the export before.
///
/// # Errors
/// [`Error::Write`].
pub fn write(history: &History, config: &str, folder: &Path) -> Result<PathBuf> {
    let begin = history.steps.values().map(|step| step.time);
    let begin = begin.fold(f64::INFINITY, f64::min);
    let begin = if begin.is_finite() { begin } else { 0.0 };
    let mut out = Vec::new();
    record(
        &mut out,
        &[time(begin), text_field(3, "brain.Event:2")].concat(),
    );
    let markdown = format!("```\n{config}```");
    event(&mut out, begin, 0, &text_value("config", &markdown));
    for (&step, made) in &history.steps {
        let scalars = [
            ("loss/iteration", Some(made.loss)),
            ("learning_rate", Some(made.learning_rate)),
            ("grad_norm", Some(made.grad_norm)),
            ("tokens_per_second", Some(made.tokens_per_second)),
            ("mfu", made.mfu),
        ];
        let values = scalars
            .into_iter()
            .filter_map(|(tag, value)| Some(scalar_value(tag, value?)));
        event(
            &mut out,
            made.time,
            step,
            &values.collect::<Vec<_>>().concat(),
        );
    }
    for (&step, seen) in &history.evaluations {
        let values = [
            scalar_value("loss/train", seen.train),
            scalar_value("loss/val", seen.val),
        ];
        event(&mut out, seen.time, step, &values.concat());
    }
    for (&step, (time, text)) in &history.samples {
        let markdown = format!("```\n{text}\n```");
        event(&mut out, *time, step, &text_value("sample", &markdown));
    }
    fs::create_dir_all(folder).map_err(Error::write(folder))?;
    // TensorBoard takes every file with `tfevents` in its name for one of its own.
    let path = folder.join("events.out.tfevents.0.anneal");
    atomic_write(&path, &out)?;
    Ok(path)
}

/// Adds an event with the values of a summary.
fn event(out: &mut Vec<u8>, at: f64, step: u64, values: &[u8]) {
    let summary = bytes_field(5, values);
    record(out, &[time(at), number_field(2, step), summary].concat());
}

/// Adds a TFRecord: length, its checksum, data, its checksum.
fn record(out: &mut Vec<u8>, data: &[u8]) {
    let len = (data.len() as u64).to_le_bytes();
    out.extend(len);
    out.extend(masked_crc32c(&len).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc32c(data).to_le_bytes());
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

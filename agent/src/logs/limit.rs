//! Bounds what a trainer that floods its output costs in store and disk: beyond an allowance lines
//! are left out, but the last ones before it goes quiet are kept, for they tell why.

use std::collections::VecDeque;
use std::time::Instant;

/// Bytes that may come at once, and how many a second are allowed beyond them.
const BURST_BYTES: f64 = 16.0 * 1024.0 * 1024.0;
const BYTES_PER_SECOND: f64 = 256.0 * 1024.0;

/// Once the allowance is used up, lines flow again when this much has come back.
const RESUME_BYTES: f64 = 1024.0 * 1024.0;

/// Most bytes of the newest lines held meanwhile.
const HELD_BYTES_MAX: usize = 128 * 1024;

/// An allowance of bytes that fills up with time.
#[derive(Debug)]
pub(super) struct Limit<T> {
    allowance: f64,
    filled: Instant,
    held: VecDeque<(usize, T)>,
    held_bytes: usize,
    closed: bool,
    left_out_bytes: u64,
}

/// Lines that flow again, and how many bytes are missing before them.
#[derive(Debug, PartialEq)]
pub(super) struct Released<T> {
    pub(super) left_out_bytes: u64,
    pub(super) items: Vec<T>,
}

impl<T> Limit<T> {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            allowance: BURST_BYTES,
            filled: now,
            held: VecDeque::new(),
            held_bytes: 0,
            closed: false,
            left_out_bytes: 0,
        }
    }

    /// Gives the item back if it may pass at once.
    pub(super) fn pass(&mut self, bytes: usize, item: T, now: Instant) -> Option<T> {
        self.fill(now);
        if !self.closed && self.allowance >= bytes as f64 {
            self.allowance -= bytes as f64;
            return Some(item);
        }
        self.closed = true;
        self.held.push_back((bytes, item));
        self.held_bytes += bytes;
        while self.held_bytes > HELD_BYTES_MAX
            && let Some((bytes, _)) = self.held.pop_front()
        {
            self.held_bytes -= bytes;
            self.left_out_bytes += bytes as u64;
        }
        None
    }

    /// What was held, once enough of the allowance is back.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Released<T>> {
        self.fill(now);
        if !self.closed || self.allowance < RESUME_BYTES {
            return None;
        }
        Some(self.release())
    }

    /// What is held, now: the stream is at its end.
    pub(super) fn release(&mut self) -> Released<T> {
        self.allowance -= self.held_bytes as f64;
        self.held_bytes = 0;
        self.closed = false;
        Released {
            left_out_bytes: std::mem::take(&mut self.left_out_bytes),
            items: self.held.drain(..).map(|(_, item)| item).collect(),
        }
    }

    fn fill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.filled).as_secs_f64();
        self.allowance = (self.allowance + seconds * BYTES_PER_SECOND).min(BURST_BYTES);
        self.filled = now;
    }
}

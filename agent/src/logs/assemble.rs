//! Makes lines of the bytes of one stream: caps their length, collapses progress bars, strips the
//! terminal's codes.

use std::borrow::Cow;
use std::time::{Duration, Instant};

/// Longest line that is kept, bytes; what is beyond is counted and left out.
pub(super) const LINE_BYTES_MAX: usize = 16 * 1024;

/// Kept beyond the cap until secrets are masked, so that one across the cap is seen whole.
const MARGIN_BYTES: usize = 4 * 1024;

/// A progress bar shows its last state this often.
pub(super) const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Puts one stream's lines together.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    line: Vec<u8>,
    /// Bytes of the line that did not fit.
    cut_bytes: u64,
    /// The state of a line that ended with a carriage return and may be overwritten.
    frame: Option<(Vec<u8>, u64)>,
    /// When a frame was last emitted.
    shown: Option<Instant>,
    /// The last thing emitted was a frame and nothing followed: a newline now only ends it.
    after_frame: bool,
    /// Inside a line whose start was lost.
    skipping: bool,
}

impl Assembler {
    /// Takes the next bytes. `emit` gets each whole line, without its end, and how many of its
    /// bytes were left out.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(&[u8], u64)) {
        while let Some(end) = bytes.iter().position(|&byte| matches!(byte, b'\n' | b'\r')) {
            self.extend(&bytes[..end]);
            if bytes[end] == b'\n' {
                self.newline(&mut emit);
            } else {
                self.carriage_return();
            }
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes);
    }

    /// Emits a progress bar's last state if it is time.
    pub(super) fn tick(&mut self, now: Instant, mut emit: impl FnMut(&[u8], u64)) {
        let due = self.shown.is_none_or(|shown| now - shown >= PROGRESS_EVERY);
        if due && let Some((frame, cut_bytes)) = self.frame.take() {
            emit(&frame, cut_bytes);
            self.shown = Some(now);
            self.after_frame = true;
        }
    }

    /// Bytes were lost here. The lines that they tore are dropped: half a secret is not recognised.
    /// Returns how many bytes that takes away.
    pub(super) fn tear(&mut self) -> u64 {
        let frame = self
            .frame
            .take()
            .map_or(0, |(frame, cut)| frame.len() as u64 + cut);
        let line = self.line.len() as u64 + self.cut_bytes;
        self.clear();
        self.skipping = true;
        frame + line
    }

    /// The stream is at its end: emits what is left.
    pub(super) fn finish(&mut self, mut emit: impl FnMut(&[u8], u64)) {
        if !self.line.is_empty() && !self.skipping {
            emit(&self.line, self.cut_bytes);
        } else if let Some((frame, cut_bytes)) = &self.frame {
            emit(frame, *cut_bytes);
        }
        *self = Self::default();
    }

    fn extend(&mut self, bytes: &[u8]) {
        if self.skipping || bytes.is_empty() {
            return;
        }
        self.after_frame = false;
        let room = (LINE_BYTES_MAX + MARGIN_BYTES).saturating_sub(self.line.len());
        let (kept, cut) = bytes.split_at(room.min(bytes.len()));
        self.line.extend_from_slice(kept);
        self.cut_bytes += cut.len() as u64;
    }

    fn newline(&mut self, emit: &mut impl FnMut(&[u8], u64)) {
        if self.skipping || self.after_frame {
            self.skipping = false;
            self.after_frame = false;
        } else if self.line.is_empty()
            && let Some((frame, cut_bytes)) = &self.frame
        {
            emit(frame, *cut_bytes);
        } else {
            emit(&self.line, self.cut_bytes);
        }
        self.frame = None;
        self.clear();
    }

    fn carriage_return(&mut self) {
        if !self.skipping && !self.line.is_empty() {
            self.frame = Some((std::mem::take(&mut self.line), self.cut_bytes));
        }
        self.skipping = false;
        self.clear();
    }

    fn clear(&mut self) {
        self.line.clear();
        self.cut_bytes = 0;
    }
}

/// The text without the terminal's control sequences (ECMA-48) and control characters.
pub(super) fn without_controls(text: &str) -> Cow<'_, str> {
    let is_control = |c: char| c.is_control() && c != '\t';
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_sequence(&mut chars),
            c if is_control(c) => {}
            c => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

/// Reads past the rest of a sequence that an escape character began.
fn skip_sequence(chars: &mut std::str::Chars<'_>) {
    match chars.next() {
        // Control sequence: parameters, then one letter.
        Some('[') => {
            let _last = chars.find(|c| matches!(c, '@'..='~'));
        }
        // A string for the terminal (title, link), up to BEL or ESC \.
        Some(']' | 'P' | '_' | '^' | 'X') => loop {
            match chars.next() {
                Some('\u{1b}') => {
                    let _backslash = chars.next();
                    break;
                }
                Some('\u{7}') | None => break,
                Some(_) => {}
            }
        },
        // Choice of a character set: one more character.
        Some('(' | ')' | '*' | '+' | '#' | '%' | ' ') => {
            let _set = chars.next();
        }
        Some(_) | None => {}
    }
}

//! The newest lines in memory, for tail and search.

use std::collections::VecDeque;

use super::{Line, Page, Query};

/// Most bytes of lines kept.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a line weighs besides its text.
const LINE_OVERHEAD_BYTES: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Ring {
    lines: VecDeque<Line>,
    bytes: usize,
    /// The newest line that is not kept any more.
    forgotten: Option<u64>,
}

impl Ring {
    pub(super) fn push(&mut self, line: Line) {
        self.bytes += weight(&line);
        self.lines.push_back(line);
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= weight(&oldest);
            self.forgotten = Some(oldest.seq);
        }
    }

    pub(super) fn tail(&self, count: usize) -> Vec<Line> {
        let start = self.lines.len().saturating_sub(count);
        self.lines.range(start..).cloned().collect()
    }

    pub(super) fn page(&self, query: &Query) -> Page {
        let start = match query.after {
            Some(after) => self.lines.partition_point(|line| line.seq <= after),
            None => 0,
        };
        let mut page = Page {
            lines: Vec::new(),
            next: query.after,
            has_more: false,
            missed: self.forgotten > query.after,
        };
        let end = match query.up_to {
            Some(up_to) => self.lines.partition_point(|line| line.seq <= up_to),
            None => self.lines.len(),
        };
        let lines = self.lines.range(start.min(end)..end);
        if let Some(tail) = query.tail {
            let newest = lines.rev().filter(|line| query.wants(line));
            page.lines = newest.take(tail.min(query.limit)).cloned().collect();
            page.lines.reverse();
            page.next = end
                .checked_sub(1)
                .map(|last| self.lines[last].seq)
                .or(page.next);
            return page;
        }
        for line in lines {
            if page.lines.len() == query.limit {
                page.has_more = true;
                break;
            }
            page.next = Some(line.seq);
            if query.wants(line) {
                page.lines.push(line.clone());
            }
        }
        page
    }
}

impl Query {
    fn wants(&self, line: &Line) -> bool {
        self.source.is_none_or(|source| source == line.source)
            && self
                .from_time
                .as_ref()
                .is_none_or(|from| line.time >= *from)
            && self
                .until_time
                .as_ref()
                .is_none_or(|until| line.time < *until)
            && self
                .grep
                .as_ref()
                .is_none_or(|text| line.line.contains(text))
    }
}

fn weight(line: &Line) -> usize {
    line.line.len() + LINE_OVERHEAD_BYTES
}

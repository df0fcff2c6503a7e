//! A queue bounded by bytes that gives up its oldest item rather than let the writer wait: the
//! newest output is the most worth having.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    bytes_max: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(usize, T)>,
    bytes: usize,
    closed: bool,
}

/// What a reader gets.
#[derive(Debug, PartialEq)]
pub(super) enum Popped<T> {
    Item(T),
    /// Nothing came in time.
    Idle,
    /// Nothing is left and nothing will come.
    Closed,
}

impl<T> Queue<T> {
    pub(super) fn new(bytes_max: usize) -> Self {
        let state = State {
            items: VecDeque::new(),
            bytes: 0,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            filled: Condvar::new(),
            bytes_max,
        }
    }

    /// Appends an item that weighs so many bytes; those of weight zero are never given up.
    pub(super) fn push(&self, bytes: usize, item: T) {
        let mut state = self.lock();
        while bytes > 0 && state.bytes + bytes > self.bytes_max {
            let Some(oldest) = state.items.iter().position(|(bytes, _)| *bytes > 0) else {
                break;
            };
            if let Some((bytes, _)) = state.items.remove(oldest) {
                state.bytes -= bytes;
            }
        }
        state.bytes += bytes;
        state.items.push_back((bytes, item));
        drop(state);
        self.filled.notify_one();
    }

    /// Takes the oldest item, waiting for one as long as `limit`.
    pub(super) fn pop(&self, limit: Duration) -> Popped<T> {
        let state = self.lock();
        let waited = self
            .filled
            .wait_timeout_while(state, limit, |s| s.items.is_empty() && !s.closed);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match state.items.pop_front() {
            Some((bytes, item)) => {
                state.bytes -= bytes;
                Popped::Item(item)
            }
            None if state.closed => Popped::Closed,
            None => Popped::Idle,
        }
    }

    /// The reader takes what is left and ends.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

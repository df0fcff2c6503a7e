//! Byte-pair encoding of ordinary text, for GPT-2's tokenizer. Called by `Subword`.
//!
//! A text is cut into words; a short word that was met before is looked up, any other is merged
//! pair by pair, lowest rank first, leftmost among equals. A token's id is the rank of the merge
//! that makes it, and the lookup is by the pair of ids.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Mutex;

use super::words::Words;

/// Words of at most this many bytes are remembered: with its length, one fills 16 bytes.
const KNOWN_BYTES_MAX: usize = 15;
/// Words of more tokens are not: with their number, they fill 16 bytes.
const KNOWN_TOKENS_MAX: usize = 7;
/// Words that a thread remembers, as a power of two: 32 bytes each, so that all stay in the cache
/// of a core.
const KNOWN_BITS: u32 = 15;
/// Up to this many bytes, a pass over a word for each merge is faster than a heap.
const SCAN_BYTES_MAX: usize = 64;
/// In the place of a rank: the pair is not merged.
const NEVER: u32 = u32::MAX;

/// A vocabulary that is made by merges of pairs.
pub(super) struct Bpe {
    words: Words,
    /// The token of each byte.
    bytes: [u16; 256],
    pairs: Pairs,
    /// What threads remember that are not at work now.
    known: Mutex<Vec<Known>>,
}

impl Bpe {
    /// `bytes` are the tokens of single bytes, `merges` the pairs with what they make.
    pub(super) fn new(bytes: [u16; 256], merges: &[([u16; 2], u16)]) -> Self {
        Self {
            words: Words::new(),
            bytes,
            pairs: Pairs::new(merges),
            known: Mutex::new(Vec::new()),
        }
    }

    /// The ids of `text`, in which special tokens are text.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let lock = || self.known.lock().expect("nothing panics with the lock");
        let mut known = lock().pop().unwrap_or_default();
        // English has about four bytes a token.
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut start = 0;
        while start < text.len() {
            let end = self.words.end(text, start);
            let word = &text.as_bytes()[start..end];
            if word.len() > KNOWN_BYTES_MAX {
                self.merge(word, &mut ids);
            } else {
                let key = packed(text.as_bytes(), start, word.len());
                let slot = &mut known.slots[place(key)];
                if slot.key != key {
                    let before = ids.len();
                    self.merge(word, &mut ids);
                    slot.keep(key, &ids[before..]);
                } else {
                    let tokens = &slot.tokens[..usize::from(slot.count)];
                    ids.extend(tokens.iter().map(|id| u32::from(*id)));
                }
            }
            start = end;
        }
        lock().push(known);
        ids
    }

    /// Appends the tokens of one word.
    fn merge(&self, word: &[u8], ids: &mut Vec<u32>) {
        let first = ids.len();
        ids.extend(
            word.iter()
                .map(|byte| u32::from(self.bytes[usize::from(*byte)])),
        );
        if word.len() <= SCAN_BYTES_MAX {
            self.merge_by_scans(ids, first);
        } else {
            self.merge_by_heap(ids, first);
        }
    }

    /// Merges the tokens from `first` on: a pass for each merge.
    fn merge_by_scans(&self, ids: &mut Vec<u32>, first: usize) {
        let mut ranks = [NEVER; SCAN_BYTES_MAX];
        let mut count = ids.len() - first;
        let tokens = &mut ids[first..];
        // ranks[i] is of the pair (i, i + 1); the last token has none.
        for i in 1..count {
            ranks[i - 1] = self.pairs.rank(tokens[i - 1], tokens[i]);
        }
        loop {
            let pairs = ranks[..count].iter().zip(0..);
            let Some((&rank, at)) = pairs.min_by_key(|(rank, at)| (**rank, *at)) else {
                return;
            };
            if rank == NEVER {
                break;
            }
            tokens[at] = rank;
            tokens.copy_within(at + 2..count, at + 1);
            ranks.copy_within(at + 1..count, at);
            count -= 1;
            ranks[at] = match tokens[..count].get(at + 1) {
                Some(next) => self.pairs.rank(rank, *next),
                None => NEVER,
            };
            if at > 0 {
                ranks[at - 1] = self.pairs.rank(tokens[at - 1], rank);
            }
        }
        ids.truncate(first + count);
    }

    /// The same in O(n log n), for words that nobody wrote.
    fn merge_by_heap(&self, ids: &mut Vec<u32>, first: usize) {
        const GONE: u32 = u32::MAX;
        let tokens = &mut ids[first..];
        let count = tokens.len();
        // The neighbours that are left: what is not below `count` is none.
        let mut before: Vec<usize> = (0..count).map(|i| i.wrapping_sub(1)).collect();
        let mut after: Vec<usize> = (1..=count).collect();
        let rank = |tokens: &[u32], at: usize, next: usize| match tokens.get(next) {
            Some(right) => self.pairs.rank(tokens[at], *right),
            None => NEVER,
        };
        let mut heap: BinaryHeap<_> = (0..count)
            .map(|at| Reverse((rank(tokens, at, at + 1), at)))
            .filter(|Reverse((rank, _))| *rank != NEVER)
            .collect();
        while let Some(Reverse((lowest, at))) = heap.pop() {
            // The pair may have changed since.
            if tokens[at] == GONE || rank(tokens, at, after[at]) != lowest {
                continue;
            }
            let gone = after[at];
            tokens[at] = lowest;
            tokens[gone] = GONE;
            after[at] = after[gone];
            if let Some(link) = before.get_mut(after[at]) {
                *link = at;
            }
            for left in [before[at], at] {
                if left < count {
                    let rank = rank(tokens, left, after[left]);
                    if rank != NEVER {
                        heap.push(Reverse((rank, left)));
                    }
                }
            }
        }
        let mut kept = 0;
        for i in 0..count {
            if tokens[i] != GONE {
                tokens[kept] = tokens[i];
                kept += 1;
            }
        }
        ids.truncate(first + kept);
    }
}

/// What pairs of tokens make: a table of open addresses.
struct Pairs {
    /// The pair, `left << 16 | right`, and what it makes; [`NEVER`] where there is none.
    slots: Box<[(u32, u32)]>,
    shift: u32,
}

impl Pairs {
    fn new(merges: &[([u16; 2], u16)]) -> Self {
        // At most half full, so that a search that fails is short, too.
        let bits = (2 * merges.len())
            .next_power_of_two()
            .trailing_zeros()
            .max(1);
        let mut slots = vec![(0, NEVER); 1 << bits].into_boxed_slice();
        let shift = u32::BITS - bits;
        for ([left, right], made) in merges {
            let pair = u32::from(*left) << 16 | u32::from(*right);
            let mut at = Self::place(pair, shift);
            while slots[at].1 != NEVER {
                at = (at + 1) % slots.len();
            }
            slots[at] = (pair, u32::from(*made));
        }
        Self { slots, shift }
    }

    fn place(pair: u32, shift: u32) -> usize {
        // Fibonacci hashing: 2^32 divided by the golden ratio.
        (pair.wrapping_mul(0x9E37_79B9) >> shift) as usize
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        let pair = left << 16 | right;
        let mut at = Self::place(pair, self.shift);
        loop {
            let (held, made) = self.slots[at];
            if made == NEVER || held == pair {
                return made;
            }
            at = (at + 1) % self.slots.len();
        }
    }
}

/// The words that a thread met last, each at the one place that its bytes give it.
struct Known {
    slots: Box<[Slot]>,
}

/// A word and its tokens.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// [`packed`]; 0 where there is none.
    key: u128,
    tokens: [u16; KNOWN_TOKENS_MAX],
    count: u16,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            slots: vec![Slot::default(); 1 << KNOWN_BITS].into_boxed_slice(),
        }
    }
}

impl Slot {
    fn keep(&mut self, key: u128, ids: &[u32]) {
        if ids.len() > KNOWN_TOKENS_MAX {
            return;
        }
        self.key = key;
        self.count = ids.len() as u16;
        for (token, id) in self.tokens.iter_mut().zip(ids) {
            *token = *id as u16;
        }
    }
}

/// A word of `len` bytes, at most [`KNOWN_BYTES_MAX`], with its length in the highest byte.
#[inline]
fn packed(text: &[u8], start: usize, len: usize) -> u128 {
    let bits = 8 * len;
    let bytes = match text.get(start..start + 16) {
        Some(bytes) => {
            let bytes: &[u8; 16] = bytes.try_into().expect("16 bytes");
            u128::from_le_bytes(*bytes) & ((1 << bits) - 1)
        }
        None => {
            let mut bytes = [0; 16];
            bytes[..len].copy_from_slice(&text[start..start + len]);
            u128::from_le_bytes(bytes)
        }
    };
    bytes | (len as u128) << 120
}

/// The place of a packed word: both halves multiplied by odd constants, the highest bits kept.
#[inline]
fn place(key: u128) -> usize {
    let low = (key as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let high = ((key >> 64) as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    let mixed = (low ^ high.rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> (u64::BITS - KNOWN_BITS)) as usize
}

#[cfg(test)]
mod tests;

//! GPT-2's pattern by hand: where a text is cut into words before bytes are merged. Called by
//! `bpe`.
//!
//! The pattern, as GPT-2's `encoder.py` has it:
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

use regex_syntax::hir::{Class as Set, HirKind};

/// What the pattern asks of a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

/// The class of every character.
pub(super) struct Words {
    /// By code point.
    classes: Box<[Class]>,
}

impl Words {
    pub(super) fn new() -> Self {
        let mut classes = vec![Class::Other; char::MAX as usize + 1].into_boxed_slice();
        for (pattern, class) in [
            (r"\p{L}", Class::Letter),
            (r"\p{N}", Class::Number),
            (r"\s", Class::Space),
        ] {
            let set = regex_syntax::parse(pattern).expect("a class of Unicode");
            let HirKind::Class(Set::Unicode(set)) = set.kind() else {
                unreachable!("{pattern} is a class of characters");
            };
            for range in set.iter() {
                classes[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        Self { classes }
    }

    /// The end of the word that begins at `start`, which is the end of another word or 0.
    pub(super) fn end(&self, text: &str, start: usize) -> usize {
        let bytes = text.as_bytes();
        if bytes[start] == b'\''
            && let Some(letters) = contraction(&bytes[start + 1..])
        {
            return start + 1 + letters;
        }
        let first = start + usize::from(bytes[start] == b' ');
        if first < bytes.len() {
            let (class, mut end) = self.class(text, first);
            if class != Class::Space {
                while end < bytes.len() {
                    let (next, after) = self.class(text, end);
                    if next != class {
                        break;
                    }
                    end = after;
                }
                return end;
            }
        }
        // White space leaves its last character to the word after it, if that is not all of it.
        let (mut last, mut end) = (start, start);
        while end < bytes.len() {
            let (next, after) = self.class(text, end);
            if next != Class::Space {
                return if last == start { end } else { last };
            }
            (last, end) = (end, after);
        }
        end
    }

    /// The class of the character that begins at `at`, and where the next one begins.
    #[inline(always)]
    fn class(&self, text: &str, at: usize) -> (Class, usize) {
        let byte = text.as_bytes()[at];
        if byte < 0x80 {
            return (self.classes[usize::from(byte)], at + 1);
        }
        let char = text[at..].chars().next().expect("a character begins here");
        (self.classes[char as usize], at + char.len_utf8())
    }
}

/// The letters after an apostrophe that belong to it.
fn contraction(after: &[u8]) -> Option<usize> {
    match after {
        [b's' | b't' | b'm' | b'd', ..] => Some(1),
        [b'r', b'e', ..] | [b'v', b'e', ..] | [b'l', b'l', ..] => Some(2),
        _ => None,
    }
}

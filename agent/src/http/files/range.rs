//! The header `Range` (RFC 9110 §14) and base64 (RFC 4648 §4). Called by the artifacts.

/// Bytes from `start` on, before `end`; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// What a header asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Everything; also where the header makes no sense, or asks for several parts.
    Whole,
    Part(Range),
    /// Bytes that the file does not have.
    Nothing,
}

/// Reads the header's text for a file of so many bytes.
pub(crate) fn read(text: &str, bytes: u64) -> Asked {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // One beyond all numbers is beyond all files.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let Some((unit, range)) = text.split_once('=') else {
        return Asked::Whole;
    };
    let Some((first, last)) = range.trim().split_once('-') else {
        return Asked::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Asked::Whole;
    }
    let (start, end) = match (first.trim(), last.trim()) {
        ("", last) => match number(last) {
            Some(0) => return Asked::Nothing,
            Some(count) => (bytes.saturating_sub(count), bytes),
            None => return Asked::Whole,
        },
        (first, "") => match number(first) {
            Some(first) => (first, bytes),
            None => return Asked::Whole,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => {
                (first, last.saturating_add(1).min(bytes))
            }
            _ => return Asked::Whole,
        },
    };
    if start < end {
        Asked::Part(Range { start, end })
    } else {
        Asked::Nothing
    }
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(match digit <= chunk.len() {
                true => char::from(DIGITS[value as usize]),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_has_them() {
        let part = |start, end| Asked::Part(Range { start, end });
        for (text, asked) in [
            ("bytes=0-4", part(0, 5)),
            ("bytes=5-", part(5, 10)),
            ("bytes=-3", part(7, 10)),
            ("bytes=-30", part(0, 10)),
            ("bytes=9-99999999999999999999999", part(9, 10)),
            ("bytes=10-", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            ("bytes=99999999999999999999999-", Asked::Nothing),
            ("bytes=4-2", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("bytes=x-", Asked::Whole),
            ("items=0-1", Asked::Whole),
            ("bytes", Asked::Whole),
            ("", Asked::Whole),
        ] {
            assert_eq!(read(text, 10), asked, "{text}");
        }
        assert_eq!(read("bytes=0-", 0), Asked::Nothing);
    }

    #[test]
    fn base64_is_the_standards() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_answered_with_bytes_that_are_there(text in ".*", bytes: u64) {
            if let Asked::Part(range) = read(&text, bytes) {
                assert!(range.start < range.end && range.end <= bytes);
            }
        }

        #[test]
        fn any_range_is_answered_with_bytes_that_are_there(
            first in proptest::option::of(0_u64..40),
            last in proptest::option::of(0_u64..40),
            bytes in 0_u64..20,
        ) {
            let number = |n: Option<u64>| n.map_or_else(String::new, |n| n.to_string());
            let text = format!("bytes={}-{}", number(first), number(last));
            if let Asked::Part(range) = read(&text, bytes) {
                assert!(range.start < range.end && range.end <= bytes);
            }
        }
    }
}

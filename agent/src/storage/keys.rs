//! What a key may look like, and in what order parts make an object: the same for every store, so
//! that what works in a folder works in a bucket. Called by the stores.

use super::Part;

/// What a store keeps for itself; no key begins with it.
pub(super) const RESERVED: &str = ".anneal";
/// S3 allows 1,024 bytes; a prefix needs some of them.
const KEY_BYTES_MAX: usize = 900;
/// The longest file name of the usual file systems.
const COMPONENT_BYTES_MAX: usize = 255;
/// S3's limit on the number of parts.
pub(super) const PARTS_MAX: u32 = 10_000;
/// S3's least size of every part but the last.
pub(super) const PART_BYTES_MIN: u64 = 5 << 20;

/// Why a key is none, if it is none.
pub(super) fn check(key: &str) -> Result<(), String> {
    if key.len() > KEY_BYTES_MAX {
        return Err(format!(
            "expected a key of at most {KEY_BYTES_MAX} bytes, got {}",
            key.len()
        ));
    }
    let first = key.split('/').next().unwrap_or_default();
    if first == RESERVED {
        return Err(format!("expected a key outside {RESERVED}"));
    }
    for component in key.split('/') {
        if component.is_empty() || component == "." || component == ".." {
            return Err(format!(
                "expected a relative key without empty, . and .. parts, got {key:?}"
            ));
        }
        if component.len() > COMPONENT_BYTES_MAX {
            return Err(format!(
                "expected at most {COMPONENT_BYTES_MAX} bytes between two slashes, got {}",
                component.len()
            ));
        }
        if component.chars().any(|c| c.is_control() || c == '\\') {
            return Err(format!(
                "expected a key without control characters and backslashes, got {key:?}"
            ));
        }
    }
    Ok(())
}

/// Why a part's number is none, if it is none.
pub(super) fn check_part(number: u32) -> Result<(), String> {
    if (1..=PARTS_MAX).contains(&number) {
        return Ok(());
    }
    Err(format!(
        "expected a part from 1 to {PARTS_MAX}, got {number}"
    ))
}

/// Why these parts do not make an object, if they do not: they are numbered from 1 without a gap.
pub(super) fn check_parts(parts: &[Part]) -> Result<(), String> {
    if parts.is_empty() {
        return Err("expected at least one part, got none".to_owned());
    }
    for (expected, part) in (1..).zip(parts) {
        check_part(part.number)?;
        if part.number != expected {
            return Err(format!("expected part {expected}, got {}", part.number));
        }
    }
    Ok(())
}

/// Why these sizes are not those of one object's parts, if they are not.
pub(super) fn check_sizes(sizes: &[u64], least: u64) -> Result<(), String> {
    let Some((last, others)) = sizes.split_last() else {
        return Ok(());
    };
    let Some(first) = others.first() else {
        return Ok(());
    };
    for (number, size) in (1..).zip(others) {
        if *size < least {
            return Err(format!(
                "part {number} has {size} bytes, expected at least {least}"
            ));
        }
        if size != first {
            return Err(format!(
                "part {number} has {size} bytes, expected {first} as part 1"
            ));
        }
    }
    if last > first {
        return Err(format!(
            "the last part has {last} bytes, expected at most {first} as part 1"
        ));
    }
    Ok(())
}

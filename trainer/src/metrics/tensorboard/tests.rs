//! The two encodings that event files are made of.

use super::*;

#[test]
fn records_have_tensorflows_checksums() {
    // RFC 3720, B.4: the CRC-32C of 32 zeros; its mask is TensorFlow's.
    assert_eq!(checksum(CrcAlgorithm::Crc32Iscsi, &[0; 32]), 0x8a91_36aa);
    let masked = 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8);
    assert_eq!(masked_crc32c(&[0; 32]), masked);
    let out = record(b"abc");
    assert_eq!(out.len(), 8 + 4 + 3 + 4);
    assert_eq!(out[..8], 3u64.to_le_bytes());
}

#[test]
fn fields_are_protobufs() {
    // The specification's own examples: field 1 = 150, field 2 = "testing".
    assert_eq!(number_field(1, 150), [0x08, 0x96, 0x01]);
    assert_eq!(text_field(2, "testing"), b"\x12\x07testing");
    let value = scalar_value("a", 1.0);
    assert_eq!(value, b"\x0a\x08\x0a\x01a\x15\x00\x00\x80\x3f");
}

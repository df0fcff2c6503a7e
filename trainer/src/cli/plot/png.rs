//! Pixels as a PNG file (ISO/IEC 15948): three chunks, of which one holds the deflated rows. Called
//! by `trainer plot`.

use std::io::Write;

use crc_fast::{CrcAlgorithm, checksum};
use flate2::Compression;
use flate2::write::ZlibEncoder;

const SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";
const BYTES_PER_PIXEL: usize = 3;
/// 8 bits a channel, red, green and blue; the only compression and filtering there is; no
/// interlacing.
const FORMAT: [u8; 5] = [8, 2, 0, 0, 0];
/// Of a row: each byte as it is.
const NO_FILTER: u8 = 0;

/// The file of these pixels, row by row from above, red, green and blue.
pub(super) fn encode(pixels: &[u8], width: u32) -> Vec<u8> {
    let row = width as usize * BYTES_PER_PIXEL;
    assert!(row > 0 && pixels.len().is_multiple_of(row), "whole rows");
    let height = u32::try_from(pixels.len() / row).expect("a picture of a few thousand rows");
    let mut rows = ZlibEncoder::new(Vec::new(), Compression::default());
    for row in pixels.chunks_exact(row) {
        rows.write_all(&[NO_FILTER])
            .and_then(|()| rows.write_all(row))
            .expect("memory takes whatever is written");
    }
    let rows = rows.finish().expect("memory takes whatever is written");
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &FORMAT].concat();
    let mut file = SIGNATURE.to_vec();
    for (kind, data) in [(b"IHDR", &header), (b"IDAT", &rows), (b"IEND", &Vec::new())] {
        let len = u32::try_from(data.len()).expect("a picture of a few megabytes");
        file.extend(len.to_be_bytes());
        let start = file.len();
        file.extend(kind);
        file.extend(data);
        let crc = checksum(CrcAlgorithm::Crc32IsoHdlc, &file[start..]) as u32;
        file.extend(crc.to_be_bytes());
    }
    file
}

//! The kernels that nvcc compiled: a fatbin for each source, with machine code for every target,
//! packed with zstd. The table is made by this crate's build.rs.

use std::sync::OnceLock;

/// One source's kernels.
#[derive(Debug)]
pub(super) struct Fatbin {
    /// The room, or `room/file` where the file has another name.
    pub(super) name: &'static str,
    /// Of all targets together: some kernels exist from 8.0 on.
    pub(super) kernels: &'static [&'static str],
    /// A zstd frame with a checksum.
    packed: &'static [u8],
    /// Of what is in it: bytes, and FNV-1a of them.
    length: usize,
    hash: u64,
    /// In words of 16 bytes, as the driver's own loaders align it.
    unpacked: &'static Unpacked,
}

type Unpacked = OnceLock<Box<[u128]>>;

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

impl Fatbin {
    /// As `cuModuleLoadData` takes it; unpacked once, and there as long as the program.
    pub(super) fn bytes(&self) -> &'static [u8] {
        let words = self.unpacked.get_or_init(|| {
            let mut words = vec![0; self.length.div_ceil(size_of::<u128>())];
            let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..self.length];
            let unpacked = zstd::bulk::decompress_to_buffer(self.packed, bytes);
            let length = unpacked.expect("build.rs packed it, and its checksum is in it");
            assert_eq!(length, self.length, "{}", self.name);
            words.into()
        });
        &bytemuck::cast_slice(words)[..self.length]
    }
}

/// The fatbin that holds a kernel.
pub(super) fn find(kernel: &str) -> Option<&'static Fatbin> {
    FATBINS
        .iter()
        .find(|fatbin| fatbin.kernels.contains(&kernel))
}

/// A number for the fatbins of these rooms.
pub(super) fn hash(rooms: &[&str]) -> u64 {
    let room = |fatbin: &&Fatbin| rooms.contains(&fatbin.name.split('/').next().unwrap_or(""));
    let hashes = FATBINS.iter().filter(room).map(|fatbin| fatbin.hash);
    fnv_1a(&hashes.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
}

/// As build.rs has it.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::{FATBINS, find, fnv_1a, hash};

    #[test]
    fn the_emulator_and_nvcc_have_the_same_kernels() {
        let mut emulated: Vec<&str> = emulator::Kernel::all()
            .map(|kernel| kernel.name())
            .collect();
        let mut compiled: Vec<&str> = FATBINS.iter().flat_map(|f| f.kernels).copied().collect();
        emulated.sort_unstable();
        compiled.sort_unstable();
        assert!(!compiled.is_empty());
        assert_eq!(emulated, compiled);
    }

    #[test]
    fn every_fatbin_is_one_and_is_found_by_its_kernels() {
        for fatbin in FATBINS {
            // The magic number and version of NVIDIA's format, as `cuobjdump` reads it.
            assert_eq!(
                fatbin.bytes()[..4],
                0xBA55_ED50_u32.to_le_bytes(),
                "{}",
                fatbin.name
            );
            assert_eq!(fatbin.bytes().as_ptr() as usize % 16, 0, "{}", fatbin.name);
            for kernel in fatbin.kernels {
                assert_eq!(find(kernel).expect(kernel).name, fatbin.name);
            }
        }
        assert!(find("no_such_kernel").is_none());
    }

    #[test]
    fn what_is_unpacked_is_what_nvcc_wrote() {
        for fatbin in FATBINS {
            let bytes = fatbin.bytes();
            assert_eq!(bytes.len(), fatbin.length, "{}", fatbin.name);
            assert_eq!(fnv_1a(bytes), fatbin.hash, "{}", fatbin.name);
            // Once, whoever asks.
            assert_eq!(fatbin.bytes().as_ptr(), bytes.as_ptr(), "{}", fatbin.name);
        }
        assert_ne!(hash(&["matmul"]), hash(&["gelu"]));
    }

    #[test]
    fn a_damaged_fatbin_is_not_loaded() {
        let fatbin = &FATBINS[0];
        let mut packed = fatbin.packed.to_vec();
        let middle = packed.len() / 2;
        packed[middle] ^= 1;
        assert!(zstd::bulk::decompress(&packed, fatbin.length).is_err());
    }
}

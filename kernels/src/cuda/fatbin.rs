//! The kernels that nvcc compiled: a fatbin for each source, with machine code for every target.
//! The table is made by this crate's build.rs.

/// One source's kernels, as `cuModuleLoadData` takes them.
#[derive(Debug)]
pub(super) struct Fatbin {
    /// The room, or `room/file` where the file has another name.
    pub(super) name: &'static str,
    /// Of all targets together: some kernels exist from 8.0 on.
    pub(super) kernels: &'static [&'static str],
    pub(super) bytes: &'static [u8],
}

/// Bytes where the driver may read them in vectors.
#[repr(C, align(16))]
struct Aligned<const N: usize>([u8; N]);

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The fatbin that holds a kernel.
pub(super) fn find(kernel: &str) -> Option<&'static Fatbin> {
    FATBINS
        .iter()
        .find(|fatbin| fatbin.kernels.contains(&kernel))
}

/// FNV-1a of the fatbins of these rooms.
pub(super) fn hash(rooms: &[&str]) -> u64 {
    let room = |fatbin: &&Fatbin| rooms.contains(&fatbin.name.split('/').next().unwrap_or(""));
    let bytes = FATBINS.iter().filter(room).flat_map(|fatbin| fatbin.bytes);
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::{FATBINS, find};

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
                fatbin.bytes[..4],
                0xBA55_ED50_u32.to_le_bytes(),
                "{}",
                fatbin.name
            );
            assert_eq!(fatbin.bytes.as_ptr() as usize % 16, 0, "{}", fatbin.name);
            for kernel in fatbin.kernels {
                assert_eq!(find(kernel).expect(kernel).name, fatbin.name);
            }
        }
        assert!(find("no_such_kernel").is_none());
    }
}

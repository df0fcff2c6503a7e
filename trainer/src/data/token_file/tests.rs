//! Token files: round trips, every refusal, and the note that spares the second scan.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::shard::{CHECK_TOKENS, Stamp};
use super::*;
use crate::error::Error;

fn write(path: &Path, vocab_size: usize, ids: &[u32]) -> u64 {
    let mut writer = TokenWriter::create(path, vocab_size).unwrap();
    writer.write(ids).unwrap();
    writer.finish().unwrap()
}

fn read(path: &Path, vocab_size: usize) -> Vec<u32> {
    let file = TokenFile::open(path, vocab_size).unwrap();
    file.check_ids().unwrap();
    let mut ids = vec![0; file.len()];
    file.copy(0, &mut ids);
    ids
}

fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result.unwrap_err() {
        Error::Data(message) => message,
        other => panic!("expected a data error, got {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_written_is_read(
        vocab_size in prop_oneof![1usize..300, 65_530usize..65_545, 1_000_000usize..1_000_010],
        raw in prop::collection::vec(any::<u32>(), 1..2_000),
        cut in any::<prop::sample::Index>(),
    ) {
        let ids: Vec<u32> = raw.iter().map(|id| id % vocab_size as u32).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.bin");
        let mut writer = TokenWriter::create(&path, vocab_size).unwrap();
        let cut = cut.index(ids.len());
        writer.write(&ids[..cut]).unwrap();
        writer.write(&ids[cut..]).unwrap();
        prop_assert_eq!(writer.finish().unwrap(), ids.len() as u64);
        prop_assert_eq!(&read(&path, vocab_size), &ids);
        let file = TokenFile::open(&path, vocab_size).unwrap();
        let mut tail = vec![0; ids.len() - cut];
        file.copy(cut, &mut tail);
        prop_assert_eq!(&tail[..], &ids[cut..]);
    }
}

#[test]
fn small_vocabularies_are_written_as_nanogpt_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    write(&path, 50_257, &[1, 258, 50_256]);
    assert_eq!(fs::read(&path).unwrap(), [1, 0, 2, 1, 0x50, 0xC4]);
}

#[test]
fn large_vocabularies_have_a_header() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    assert_eq!(write(&path, 70_000, &[69_999, 3]), 2);
    let mut expected = b"ANNEAL32".to_vec();
    expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend([0x6F, 0x11, 0x01, 0x00, 3, 0, 0, 0]);
    assert_eq!(fs::read(&path).unwrap(), expected);
    assert_eq!(read(&path, 70_000), [69_999, 3]);
}

#[test]
fn missing_empty_and_odd_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    let shown = path.display().to_string();
    let message = refusal(TokenFile::open(&path, 65));
    assert!(
        message.starts_with(&format!("cannot read {shown}")),
        "{message}"
    );
    fs::write(&path, []).unwrap();
    let message = refusal(TokenFile::open(&path, 65));
    assert!(
        message.contains(&shown) && message.contains("got an empty file"),
        "{message}"
    );
    fs::write(&path, [1, 0, 2]).unwrap();
    let message = refusal(TokenFile::open(&path, 65));
    assert!(
        message.contains(&shown) && message.contains("got 3 bytes"),
        "{message}"
    );
    let message = refusal(TokenFile::open(folder.path(), 65));
    assert!(message.contains("got a folder"), "{message}");
}

#[test]
fn headers_that_disagree_with_the_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    write(&path, 70_000, &[1, 2, 3]);
    let whole = fs::read(&path).unwrap();
    let message = refusal(TokenFile::open(&path, 65));
    assert!(message.contains("got the 32-bit format"), "{message}");
    for cut in [1, 4] {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let message = refusal(TokenFile::open(&path, 70_000));
        let got = format!("got {} bytes", 12 - cut);
        assert!(
            message.contains("expected 3 tokens") && message.contains(&got),
            "{message}"
        );
    }
    let mut newer = whole.clone();
    newer[8] = 2;
    fs::write(&path, &newer).unwrap();
    let message = refusal(TokenFile::open(&path, 70_000));
    assert!(message.contains("got version 2"), "{message}");
    write(&path, 70_000, &[]);
    let message = refusal(TokenFile::open(&path, 70_000));
    assert!(message.contains("got none"), "{message}");
    write(&path, 65, &[1; 100]);
    let message = refusal(TokenFile::open(&path, 70_000));
    assert!(message.contains("without its header"), "{message}");
}

#[test]
fn the_writer_refuses_ids_beyond_the_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = TokenWriter::create(&folder.path().join("train.bin"), 65).unwrap();
    writer.write(&[64; 10]).unwrap();
    let message = refusal(writer.write(&[64, 65]));
    assert!(message.contains("token 11 is id 65"), "{message}");
}

#[test]
fn the_first_id_beyond_the_vocabulary_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    for (vocab_size, smaller) in [(1_000, 900), (80_000, 70_000)] {
        let mut ids = vec![smaller as u32 - 1; 3 * CHECK_TOKENS + 17];
        write(&path, vocab_size, &ids);
        TokenFile::open(&path, smaller)
            .unwrap()
            .check_ids()
            .unwrap();
        for position in [0, CHECK_TOKENS - 1, 2 * CHECK_TOKENS, ids.len() - 1]
            .into_iter()
            .rev()
        {
            ids[position] = smaller as u32;
            write(&path, vocab_size, &ids);
            let message = refusal(TokenFile::open(&path, smaller).unwrap().check_ids());
            let expected = format!(
                "{}: token {position} is id {smaller}, but the vocabulary has {smaller} ids",
                path.display()
            );
            assert!(message.starts_with(&expected), "{message}");
        }
    }
}

/// Puts an id beyond the vocabulary behind the back of the note: same size, and `time` as the time
/// of modification.
fn spoil(path: &Path, time: SystemTime) {
    let mut bytes = fs::read(path).unwrap();
    bytes[0] = 200;
    fs::write(path, bytes).unwrap();
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

#[test]
fn a_check_is_remembered_by_size_time_and_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    write(&path, 65, &[1, 2, 3]);
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    TokenFile::open(&path, 65).unwrap().check_ids().unwrap();
    spoil(&path, time);
    // Nothing that is looked at has changed: the scan is skipped.
    TokenFile::open(&path, 65).unwrap().check_ids().unwrap();
    refusal(TokenFile::open(&path, 64).unwrap().check_ids());
    spoil(&path, time + Duration::from_nanos(1));
    refusal(TokenFile::open(&path, 65).unwrap().check_ids());
    spoil(&path, time);
    let mut longer = fs::read(&path).unwrap();
    longer.extend([1, 0]);
    fs::write(&path, longer).unwrap();
    spoil(&path, time);
    refusal(TokenFile::open(&path, 65).unwrap().check_ids());
}

#[test]
fn a_damaged_note_is_ignored_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    let note = folder.path().join("train.bin.checked");
    write(&path, 65, &[1, 2, 3]);
    fs::write(&note, "{\"vocab_size\":").unwrap();
    let file = TokenFile::open(&path, 65).unwrap();
    file.check_ids().unwrap();
    assert_eq!(
        serde_json::from_slice::<Stamp>(&fs::read(&note).unwrap()).unwrap(),
        file.shards[0].stamp
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_note_that_cannot_be_written_is_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    write(&path, 65, &[1, 2, 3]);
    // A folder in the note's place refuses the write for root too, whom permissions do not stop.
    fs::create_dir(folder.path().join("train.bin.checked")).unwrap();
    TokenFile::open(&path, 65).unwrap().check_ids().unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
#[should_panic(expected = "which holds 3")]
fn a_window_past_the_end_is_our_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    write(&path, 65, &[1, 2, 3]);
    TokenFile::open(&path, 65).unwrap().copy(2, &mut [0; 2]);
}

/// A file as llm.c's `data_common.py` writes it.
fn llmc(path: &Path, [magic, version, count]: [i32; 3], ids: &[u16]) {
    let mut header = [0i32; 256];
    header[..3].copy_from_slice(&[magic, version, count]);
    let header = header.iter().flat_map(|number| number.to_le_bytes());
    let body = ids.iter().flat_map(|id| id.to_le_bytes());
    fs::write(path, header.chain(body).collect::<Vec<u8>>()).unwrap();
}

#[test]
fn files_of_llmc_are_read_by_their_header() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.bin");
    llmc(&path, [20_240_520, 1, 4], &[50_256, 1, 2, 3]);
    assert_eq!(read(&path, 50_257), [50_256, 1, 2, 3]);
    llmc(&path, [20_240_520, 1, 2], &[50_256, 50_257]);
    let message = refusal(TokenFile::open(&path, 50_257).unwrap().check_ids());
    assert!(message.contains("token 1 is id 50257"), "{message}");

    for (header, ids, needles) in [
        ([20_240_520, 2, 1], &[7][..], ["version 1", "got version 2"]),
        (
            [20_240_520, 1, 5],
            &[7, 8],
            ["1034 bytes for 5", "got 1028"],
        ),
        ([20_240_520, 1, 0], &[], ["expected token ids", "got none"]),
    ] {
        llmc(&path, header, ids);
        let message = refusal(TokenFile::open(&path, 50_257));
        for needle in needles {
            assert!(message.contains(needle), "{needle:?}: {message}");
        }
    }
    // Cut short within the header.
    llmc(&path, [20_240_520, 1, 3], &[1, 2, 3]);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..100]).unwrap();
    let message = refusal(TokenFile::open(&path, 50_257));
    assert!(
        message.contains("expected 1030 bytes for 3 tokens"),
        "{message}"
    );
    // nanoGPT's files may begin with any ids, these too.
    let [low, high] = [20_240_520u32 as u16, (20_240_520u32 >> 16) as u16];
    let ids = [low, high, 1, 0, 9].map(u32::from);
    write(&path, 60_000, &ids);
    assert_eq!(read(&path, 60_000), ids);
}

#[test]
fn shards_follow_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a", "b", "c"].map(|name| folder.path().join(name));
    llmc(&paths[0], [20_240_520, 1, 3], &[0, 1, 2]);
    write(&paths[1], 50_257, &[3]);
    llmc(&paths[2], [20_240_520, 1, 4], &[4, 5, 6, 7]);
    let file = TokenFile::open_all(&paths, 50_257).unwrap();
    file.check_ids().unwrap();
    assert_eq!((file.len(), file.path()), (8, paths[0].as_path()));
    for start in 0..=8 {
        for end in start..=8 {
            let mut ids = vec![99; end - start];
            file.copy(start, &mut ids);
            assert_eq!(ids, (start as u32..end as u32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_cut_anywhere_leaves_two_parts() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a", "b", "c"].map(|name| folder.path().join(name));
    llmc(&paths[0], [20_240_520, 1, 3], &[0, 1, 2]);
    llmc(&paths[1], [20_240_520, 1, 2], &[3, 4]);
    llmc(&paths[2], [20_240_520, 1, 3], &[5, 6, 7]);
    for at in 1..8 {
        let (first, second) = TokenFile::open_all(&paths, 50_257).unwrap().split(at);
        assert_eq!((first.len(), second.len()), (at, 8 - at));
        let holder = [0, 0, 0, 1, 1, 2, 2, 2][at];
        assert_eq!(second.path(), paths[holder], "cut at {at}");
        for (file, begin) in [(&first, 0), (&second, at)] {
            for start in 0..=file.len() {
                for end in start..=file.len() {
                    let mut ids = vec![99; end - start];
                    file.copy(start, &mut ids);
                    let expected: Vec<u32> =
                        ((begin + start) as u32..(begin + end) as u32).collect();
                    assert_eq!(ids, expected, "cut at {at}");
                }
            }
        }
    }
}

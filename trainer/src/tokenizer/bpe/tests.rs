//! Our encoding against the `tokenizers` crate and tiktoken: any text, long words, any thread.

use std::thread;

use proptest::prelude::*;

use super::super::gpt2;
use super::*;

const TINY_SHAKESPEARE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../shared/data/tinyshakespeare/input.txt"
);

/// The encoding, and the same vocabulary in the `tokenizers` crate, for which special tokens are
/// text.
fn both() -> (Bpe, tokenizers::Tokenizer) {
    let (mut oracle, ours) = gpt2::build().unwrap();
    oracle.set_encode_special_tokens(true);
    (ours, oracle)
}

fn oracles(oracle: &tokenizers::Tokenizer, text: &str) -> Vec<u32> {
    let encoding = oracle.encode_fast(text, false).unwrap();
    encoding.get_ids().to_vec()
}

/// Characters from all over Unicode, those that the pattern tells apart more often than others.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => "[a-zA-Z]{1,9}",
        2 => " {1,4}",
        1 => r"[\s]{1,4}",
        1 => "'(s|t|re|ve|m|ll|d|S|x|r|l|v)?",
        1 => r"\p{N}{1,5}",
        1 => r"\p{L}{1,6}",
        1 => r"[^\s\p{L}\p{N}]{1,6}",
        1 => r"\p{M}{1,3}",
        1 => any::<char>().prop_map(String::from),
        1 => ("[a-z]{1,3}", 1usize..60).prop_map(|(word, times)| word.repeat(times)),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

#[test]
fn any_text_gives_the_ids_of_the_tokenizers_crate() {
    let (ours, oracle) = both();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3000));
    runner
        .run(&any_text(), |text| {
            let got = ours.encode(&text);
            prop_assert_eq!(&got, &oracles(&oracle, &text), "{:?}", &text);
            // Once more, from what is remembered.
            prop_assert_eq!(ours.encode(&text), got, "{:?}", &text);
            Ok(())
        })
        .unwrap();
}

#[test]
fn every_character_is_classed_as_tiktokens_pattern_classes_it() {
    let (ours, _) = both();
    let tiktoken = tiktoken_rs::r50k_base_singleton();
    for first in (0..=u32::from(char::MAX)).step_by(64) {
        let mut text = String::new();
        for char in (first..first + 64).filter_map(char::from_u32) {
            // Words before and after: a letter would join the first, a number the second.
            text.extend(['a', char, '1', ' ', char, char, ' ', char]);
        }
        assert!(
            ours.encode(&text) == tiktoken.encode_ordinary(&text),
            "from U+{first:04X}"
        );
    }
}

#[test]
fn shakespeare_gives_the_ids_of_the_tokenizers_crate() {
    let (ours, oracle) = both();
    let text = std::fs::read_to_string(TINY_SHAKESPEARE).expect(TINY_SHAKESPEARE);
    assert!(ours.encode(&text) == oracles(&oracle, &text));
}

#[test]
fn both_ways_of_merging_agree() {
    let (ours, _) = both();
    let text = std::fs::read_to_string(TINY_SHAKESPEARE).expect(TINY_SHAKESPEARE);
    let letters: Vec<u8> = text.bytes().filter(u8::is_ascii_alphabetic).collect();
    for word in letters.chunks(SCAN_BYTES_MAX).take(2_000) {
        let bytes = word
            .iter()
            .map(|byte| u32::from(ours.bytes[usize::from(*byte)]));
        let mut scanned: Vec<u32> = [7].into_iter().chain(bytes).collect();
        let mut heaped = scanned.clone();
        ours.merge_by_scans(&mut scanned, 1);
        ours.merge_by_heap(&mut heaped, 1);
        assert_eq!(scanned, heaped, "{word:?}");
        assert!(scanned.len() < word.len());
    }
}

#[test]
fn a_long_word_takes_no_time_to_speak_of_and_gives_tiktokens_ids() {
    let (ours, oracle) = both();
    let text = "abcdefghij".repeat(3_000);
    assert!(ours.encode(&text) == oracles(&oracle, &text));
    // A pass for each merge would take hours.
    assert!(ours.encode(&"xyz".repeat(1_000_000)).len() > 1_000_000);
}

#[test]
fn threads_that_encode_at_once_give_the_same_ids() {
    let (ours, _) = both();
    let text = std::fs::read_to_string(TINY_SHAKESPEARE).expect(TINY_SHAKESPEARE);
    let expected = ours.encode(&text);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(ours.encode(&text) == expected));
        }
    });
}

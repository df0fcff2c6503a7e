//! Tokenizers: known counts, round trips, tiktoken's own answers, streams.

use std::path::Path;

use proptest::prelude::*;

use super::*;

const TINY_SHAKESPEARE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../shared/data/tinyshakespeare/input.txt"
);

/// Text that has broken tokenizers before.
const NASTY: &[&str] = &[
    "",
    " ",
    "\n",
    "a",
    "Hello, world!",
    "I'm you're they've he'll we'd it's 'S 'LL can''t",
    "  two  spaces   three    four\tand\ttabs \t mixed",
    "line\n\n\nbreaks\r\n\r\nof \n both  \n  kinds   ",
    "trailing spaces     ",
    "1234567890 12 3 4th ½ ² ١٢٣ 四",
    "naïve café Straße İstanbul ﬁ Ω ≈ ç √ ∫",
    "日本語のテキスト。中文文本！ 한국어 텍스트",
    "😀😃 👨‍👩‍👧‍👦 🇩🇪 e\u{301} \u{200b}\u{feff}",
    "\u{0} \u{1}\u{7f}\u{80}\u{85}\u{a0}\u{2028}\u{3000}x",
    "fn main() { println!(\"{}\", a[0] as u8 + b'x'); } // -->",
    "<|endoftext|>",
    "a <|endoftext|> b<|endoftext|><|endoftext|>",
];

fn shakespeare() -> String {
    std::fs::read_to_string(TINY_SHAKESPEARE).expect(TINY_SHAKESPEARE)
}

/// GPT-2's tokenizer as it comes back from its own file: without the fast way.
fn gpt2_from_file() -> Tokenizer {
    let gpt2 = Tokenizer::gpt2().unwrap();
    Tokenizer::from_bytes(gpt2.file_name(), &gpt2.to_bytes()).unwrap()
}

/// A tokenizer that is not byte-level: a piece of a word begins with `##`.
fn wordpiece() -> Tokenizer {
    let json = r###"{"version":"1.0","truncation":{"direction":"Right","max_length":3,
        "strategy":"LongestFirst","stride":0},"padding":null,
        "added_tokens":[{"id":9,"content":"[SEP]","single_word":false,"lstrip":false,
        "rstrip":false,"normalized":false,"special":true}],
        "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,
        "decoder":{"type":"WordPiece","prefix":"##","cleanup":false},
        "model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",
        "max_input_chars_per_word":100,
        "vocab":{"[UNK]":0,"to":1,"be":2,"##day":3,"or":4,"not":5,"[SEP]":9}}}"###;
    Tokenizer::from_bytes(RunDir::TOKENIZER, json.as_bytes()).unwrap()
}

#[test]
fn characters_of_shakespeare_are_sorted_and_read_back() {
    let text = shakespeare();
    let tokenizer = Tokenizer::from_chars(text.chars()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 65);
    assert_eq!(tokenizer.padded_vocab_size(), 65);
    assert_eq!(tokenizer.encode("\n !z").unwrap(), [0, 1, 2, 64]);
    let ids = tokenizer.encode_ordinary(&text).unwrap();
    assert_eq!(ids.len(), 1_115_394);
    assert!(tokenizer.decode(&ids) == text);
    assert_eq!(tokenizer.special_id("<|endoftext|>"), None);
}

#[test]
fn characters_that_the_vocabulary_lacks_are_all_named() {
    let tokenizer = Tokenizer::from_chars("ab\n".chars()).unwrap();
    let error = tokenizer.encode("a😀béé").unwrap_err();
    assert!(matches!(error, Error::Data(_)));
    expect_test::expect![[r#"
        the text holds characters that the vocabulary lacks: 'é' (U+00E9), '😀' (U+1F600)
        hint: the vocabulary has 3 characters: '\n', 'a', 'b'"#]]
    .assert_eq(&error.to_string());

    let many: String = ('\u{4e00}'..'\u{4f00}').collect();
    let message = tokenizer.encode(&many).unwrap_err().to_string();
    assert!(
        message.contains("'丧' (U+4E27) and 216 more\nhint:"),
        "{message}"
    );
}

#[test]
fn ids_beyond_the_vocabulary_decode_to_the_replacement_character() {
    let chars = Tokenizer::from_chars("ab".chars()).unwrap();
    assert_eq!(chars.decode(&[0, 2, 1, u32::MAX]), "a\u{fffd}b\u{fffd}");
    let gpt2 = Tokenizer::gpt2().unwrap();
    assert_eq!(
        gpt2.decode(&[15496, 50257, 11, 50303]),
        "Hello\u{fffd},\u{fffd}"
    );
    assert_eq!(
        wordpiece().decode(&[1, 3, 7, 2, 5, 900]),
        "today\u{fffd}be not\u{fffd}"
    );
}

#[test]
fn gpt2_has_its_known_ids_and_counts() {
    let gpt2 = Tokenizer::gpt2().unwrap();
    assert_eq!(
        (gpt2.vocab_size(), gpt2.padded_vocab_size()),
        (50257, 50304)
    );
    assert_eq!(gpt2.special_id("<|endoftext|>"), Some(50256));
    assert_eq!(gpt2.special_id("Hello"), None);
    assert_eq!(gpt2.encode("Hello world").unwrap(), [15496, 995]);

    let text = shakespeare();
    let cut = text.chars().count() * 9 / 10;
    let cut = text.char_indices().nth(cut).unwrap().0;
    for tokenizer in [gpt2, gpt2_from_file()] {
        let train = tokenizer.encode_ordinary(&text[..cut]).unwrap();
        let val = tokenizer.encode_ordinary(&text[cut..]).unwrap();
        assert_eq!((train.len(), val.len()), (301_966, 36_059));
        assert!(train == tiktoken_rs::r50k_base_singleton().encode_ordinary(&text[..cut]));
        assert!(tokenizer.decode(&train) == text[..cut]);
    }
}

#[test]
fn gpt2_agrees_with_tiktoken_on_nasty_text_and_reads_it_back() {
    let tiktoken = tiktoken_rs::r50k_base_singleton();
    let gpt2 = Tokenizer::gpt2().unwrap();
    let from_file = gpt2_from_file();
    for text in NASTY {
        let expected = tiktoken.encode_ordinary(text);
        assert_eq!(gpt2.encode_ordinary(text).unwrap(), expected, "{text:?}");
        assert_eq!(
            from_file.encode_ordinary(text).unwrap(),
            expected,
            "{text:?}"
        );
        let special = tiktoken.encode_with_special_tokens(text);
        assert_eq!(gpt2.encode(text).unwrap(), special, "{text:?}");
        assert_eq!(gpt2.decode(&expected), *text);
        assert_eq!(gpt2.decode(&special), *text);
    }
    assert_eq!(gpt2.encode("<|endoftext|>").unwrap(), [50256]);
    assert_eq!(gpt2.encode_ordinary("<|endoftext|>").unwrap().len(), 7);
}

#[test]
fn gpt2_survives_long_runs_without_a_break() {
    let gpt2 = Tokenizer::gpt2().unwrap();
    for run in [" ", "\n", "x", "-", "é", " \n"] {
        let text = run.repeat(250_000);
        let ids = gpt2.encode_ordinary(&format!("{text}y")).unwrap();
        assert!(gpt2.decode(&ids) == format!("{text}y"), "{run:?}");
    }
    // Beyond a limit the fast way would panic.
    let ids = gpt2
        .encode_ordinary(&format!("a{}y", " ".repeat(3_000_000)))
        .unwrap();
    assert_eq!(ids.len(), 3_000_001, "{:?}", &ids[..5]);
    assert_eq!((ids[0], ids[3_000_000]), (64, 331));
}

proptest! {
    #[test]
    fn gpt2_agrees_with_tiktoken_on_any_text(text in "(\\PC|[ \n\r\ta-z'])*") {
        let gpt2 = Tokenizer::gpt2().unwrap();
        let expected = tiktoken_rs::r50k_base_singleton().encode_ordinary(&text);
        prop_assert_eq!(gpt2.encode(&text).unwrap(), &expected[..]);
        prop_assert_eq!(gpt2.decode(&expected), text);
    }

    #[test]
    fn a_stream_of_any_ids_gives_the_same_text_as_all_at_once(
        ids in prop::collection::vec(prop_oneof![0u32..256, 0u32..50304], 0..50)
    ) {
        let gpt2 = Tokenizer::gpt2().unwrap();
        let mut stream = gpt2.decode_stream();
        let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
        text.push_str(&stream.finish());
        prop_assert_eq!(text, gpt2.decode(&ids));
    }
}

#[test]
fn a_stream_waits_for_the_rest_of_a_character() {
    let gpt2 = Tokenizer::gpt2().unwrap();
    let ids = gpt2.encode("a😀!").unwrap();
    let mut stream = gpt2.decode_stream();
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
    assert!(
        pieces.len() > 3,
        "one of the characters must be cut: {pieces:?}"
    );
    assert_eq!(pieces.first().map(String::as_str), Some("a"));
    assert!(
        pieces.iter().all(|piece| !piece.contains('\u{fffd}')),
        "{pieces:?}"
    );
    assert_eq!(pieces.concat(), "a😀!");

    let mut stream = gpt2.decode_stream();
    let held: String = ids[..2].iter().map(|id| stream.push(*id)).collect();
    assert_eq!((held.as_str(), stream.finish().as_str()), ("a", "\u{fffd}"));

    let chars = Tokenizer::from_chars("ab".chars()).unwrap();
    let mut stream = chars.decode_stream();
    assert_eq!(
        [stream.push(1), stream.push(9), stream.finish()],
        ["b", "\u{fffd}", ""]
    );
}

#[test]
fn a_tokenizer_of_another_kind_is_neither_cut_short_nor_glued_together() {
    let tokenizer = wordpiece();
    assert_eq!(
        (tokenizer.vocab_size(), tokenizer.padded_vocab_size()),
        (10, 64)
    );
    // The file asks for truncation to 3 tokens.
    let ids = tokenizer.encode("to be today or not [SEP]").unwrap();
    assert_eq!(ids, [1, 2, 1, 3, 4, 5, 9]);
    assert!(!tokenizer.encode_ordinary("to [SEP]").unwrap().contains(&9));
    let mut stream = tokenizer.decode_stream();
    let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
    text.push_str(&stream.finish());
    assert_eq!(text, "to be today or not [SEP]");
    assert_eq!(text, tokenizer.decode(&ids));
}

#[test]
fn tokenizers_are_saved_and_loaded_as_they_were() {
    for tokenizer in [
        Tokenizer::from_chars("hé\n😀\"\\".chars()).unwrap(),
        Tokenizer::gpt2().unwrap(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        let names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [tokenizer.file_name()]);
        let loaded = Tokenizer::load(dir.path()).unwrap().unwrap();
        assert_eq!(loaded.file_name(), tokenizer.file_name());
        assert!(loaded.to_bytes() == tokenizer.to_bytes());
        assert_eq!(
            loaded.encode("hé").unwrap(),
            tokenizer.encode("hé").unwrap()
        );
        let missing = tokenizer
            .save(Path::new("/nonexistent/folder"))
            .unwrap_err();
        assert!(matches!(missing, Error::Write { .. }), "{missing}");
    }
    assert!(
        Tokenizer::load(Path::new("/nonexistent"))
            .unwrap()
            .is_none()
    );
}

#[test]
fn the_vocabulary_file_is_as_documented_and_checked() {
    let tokenizer = Tokenizer::from_chars(" a\n".chars()).unwrap();
    let text = String::from_utf8(tokenizer.to_bytes()).unwrap();
    assert_eq!(text, r#"{"format_version":1,"chars":["\n"," ","a"]}"#);
    // The order of the file is the order of the ids, sorted or not.
    let unsorted = r#"{"format_version":1,"chars":["b","a"]}"#;
    let unsorted = Tokenizer::from_bytes(RunDir::VOCAB, unsorted.as_bytes()).unwrap();
    assert_eq!(unsorted.encode("ab").unwrap(), [1, 0]);
    for (text, fault) in [
        (
            r#"{"format_version":2,"chars":["a"]}"#,
            "vocabulary format 2, expected 1",
        ),
        (
            r#"{"format_version":1,"chars":["ab"]}"#,
            "expected one character",
        ),
        (
            r#"{"format_version":1,"chars":[""]}"#,
            "expected one character",
        ),
        (
            r#"{"format_version":1,"chars":["a","a"]}"#,
            "holds 'a' (U+0061) twice",
        ),
        (r#"{"format_version":1,"chars":[]}"#, "without characters"),
        ("[]", "not a vocabulary of characters"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(RunDir::VOCAB), text).unwrap();
        let message = Tokenizer::load(dir.path()).err().unwrap().to_string();
        assert!(
            message.contains(fault) && message.contains("vocab.json: "),
            "{message}"
        );
    }
    let message = Tokenizer::from_bytes(RunDir::TOKENIZER, b"{}")
        .err()
        .unwrap()
        .to_string();
    assert!(
        message.contains("not a tokenizer of the Hugging Face format"),
        "{message}"
    );
    assert!(Tokenizer::from_bytes("merges.txt", b"").is_err());
}

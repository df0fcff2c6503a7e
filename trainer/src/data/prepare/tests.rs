//! Preparation by pieces against the whole text at once, known counts, and bad texts.

use std::fs;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::super::dataset::Dataset;
use super::super::token_file::TokenFile;
use super::*;

const TINY_SHAKESPEARE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../shared/data/tinyshakespeare/input.txt"
);

fn preparation<'a>(text: Text<'a>, tokenizer: &'a TokenizerChoice) -> Preparation<'a> {
    Preparation {
        text,
        source: "a test",
        name: "test",
        tokenizer,
        val_fraction: Preparation::VAL_FRACTION,
        entropy_per_token: None,
        if_present: IfPresent::Refuse,
    }
}

fn prepared(text: &str, tokenizer: &TokenizerChoice, piece_bytes: usize) -> Result<[Vec<u32>; 2]> {
    let dir = tempfile::tempdir().unwrap();
    let out_dir = dir.path().join("set");
    let preparation = preparation(Text::Inline(text), tokenizer);
    let info = prepare_in_pieces(&preparation, &out_dir, piece_bytes, &|_| {})?;
    let tokens = |name, count| {
        let file = TokenFile::open(&out_dir.join(name), info.vocab_size).unwrap();
        assert_eq!(file.len() as u64, count);
        let mut tokens = vec![0; file.len()];
        file.copy(0, &mut tokens);
        tokens
    };
    Ok([
        tokens("train.bin", info.train_tokens),
        tokens("val.bin", info.val_tokens),
    ])
}

/// The two parts of a text, encoded in one go.
fn at_once(text: &str, tokenizer: &Tokenizer) -> [Vec<u32>; 2] {
    let chars: Vec<char> = text.chars().collect();
    let at = (chars.len() as f64 * 0.9) as usize;
    let encode = |part: &[char]| {
        let part: String = part.iter().collect();
        tokenizer.encode_ordinary(&part).unwrap()
    };
    [encode(&chars[..at]), encode(&chars[at..])]
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// GPT-2's vocabulary and the token `.\n`, with a pattern that, like Llama's, takes line feeds
/// along with punctuation.
fn llama_like(dir: &Path) -> TokenizerChoice {
    let gpt2 = String::from_utf8(Tokenizer::gpt2().unwrap().to_bytes()).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&gpt2).unwrap();
    let pattern = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    json["model"]["vocab"][".Ċ"] = 50_257.into();
    let merges = json["model"]["merges"].as_array_mut().unwrap();
    merges.push(serde_json::json!([".", "Ċ"]));
    let path = dir.join("own.json");
    fs::write(&path, json.to_string()).unwrap();
    TokenizerChoice::Json(path)
}

#[test]
fn shakespeare_has_nanogpts_counts() {
    for (tokenizer, file, vocab_size, train_tokens, val_tokens) in [
        (TokenizerChoice::Char, "vocab.json", 65, 1_003_854, 111_540),
        (
            TokenizerChoice::Gpt2,
            "tokenizer.json",
            50_257,
            301_966,
            36_059,
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out_dir = dir.path().join("deeper/set");
        let preparation = preparation(Text::File(Path::new(TINY_SHAKESPEARE)), &tokenizer);
        let told = Mutex::new(Vec::new());
        let info = prepare(&preparation, &out_dir, &|now| {
            told.lock().unwrap().push(now)
        })
        .unwrap();
        assert_eq!(
            (info.vocab_size, info.train_tokens, info.val_tokens),
            (vocab_size, train_tokens, val_tokens)
        );
        assert_eq!(
            info.source_sha256,
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
        );
        let mut expected = ["dataset.json", file, "train.bin", "val.bin"];
        expected.sort_unstable();
        assert_eq!(names(&out_dir), expected);
        assert_eq!(names(&dir.path().join("deeper")), ["set"]);
        let dataset = Dataset::open(&out_dir).unwrap();
        assert_eq!(dataset.info, info);

        let text = fs::read_to_string(TINY_SHAKESPEARE).unwrap();
        let tokenizer = Tokenizer::load(&out_dir).unwrap().unwrap();
        let mut val = vec![0; dataset.val.len()];
        dataset.val.copy(0, &mut val);
        assert!(tokenizer.decode(&val) == text[1_003_854..]);

        let told = told.into_inner().unwrap();
        for stage in [Stage::Scanning, Stage::Encoding] {
            let done: Vec<u64> = told
                .iter()
                .filter(|now| now.stage == stage)
                .map(|now| now.done)
                .collect();
            assert!(
                done.is_sorted() && done.last() == Some(&1_115_394),
                "{stage:?} {done:?}"
            );
        }
        assert!(told.iter().all(|now| now.total == Some(1_115_394)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pieces_give_the_same_tokens_as_the_whole_text(
        text in "([a-z']{1,4}|[ \n\r\t]{1,3}|[.,!é语😀\u{300}\u{3000}1-3]{1,2}){20,120}",
        piece_bytes in 4usize..60,
    ) {
        let chars = Tokenizer::from_chars(text.chars()).unwrap();
        for (choice, tokenizer) in [
            (TokenizerChoice::Char, chars),
            (TokenizerChoice::Gpt2, Tokenizer::gpt2().unwrap()),
        ] {
            let got = prepared(&text, &choice, piece_bytes).unwrap();
            prop_assert_eq!(got, at_once(&text, &tokenizer), "{:?}", choice);
        }
    }
}

#[test]
fn pieces_for_a_tokenizer_of_ones_own_give_the_same_tokens_too() {
    let dir = tempfile::tempdir().unwrap();
    let choice = llama_like(dir.path());
    let TokenizerChoice::Json(path) = &choice else {
        unreachable!()
    };
    let tokenizer = Tokenizer::from_file(path).unwrap();
    let shakespeare = fs::read_to_string(TINY_SHAKESPEARE).unwrap();
    let text = &shakespeare[..100_000];
    let whole = at_once(text, &tokenizer);
    for piece_bytes in [64, 1_000, 30_000] {
        assert!(
            prepared(text, &choice, piece_bytes).unwrap() == whole,
            "{piece_bytes}"
        );
    }
    // The rule matters: cut before any white space, the same text gives other tokens.
    let cut = text.find(".\nI").unwrap() + 1;
    let mut parts = tokenizer.encode_ordinary(&text[..cut]).unwrap();
    parts.extend(tokenizer.encode_ordinary(&text[cut..]).unwrap());
    assert_ne!(parts, tokenizer.encode_ordinary(text).unwrap());
}

#[test]
fn a_text_without_a_place_to_cut_is_prepared_all_the_same() {
    let text = "xyz".repeat(5_000);
    let [train, val] = prepared(&text, &TokenizerChoice::Gpt2, 50).unwrap();
    let gpt2 = Tokenizer::gpt2().unwrap();
    assert_eq!(gpt2.decode(&train) + &gpt2.decode(&val), text);
}

#[test]
fn special_tokens_in_the_text_are_text() {
    let text = "a<|endoftext|>b ".repeat(20);
    let [train, _] = prepared(&text, &TokenizerChoice::Gpt2, 1000).unwrap();
    assert!(!train.contains(&50_256));
}

#[test]
fn the_split_falls_between_characters_in_texts_of_many_blocks() {
    // 3 bytes a character, so that blocks end within one.
    let text = "語".repeat(3_000_000) + &"é".repeat(1_000_000);
    let [train, val] = prepared(&text, &TokenizerChoice::Char, 1 << 20).unwrap();
    assert_eq!((train.len(), val.len()), (3_600_000, 400_000));
    let count = |ids: &[u32], id| ids.iter().filter(|other| **other == id).count();
    assert_eq!((count(&train, 0), count(&train, 1)), (600_000, 3_000_000));
    assert_eq!(count(&val, 0), 400_000);
}

#[test]
fn a_text_that_is_not_utf8_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("latin1.txt");
    // The first block ends within the last whole character before the fault.
    let mut bytes = "語".repeat(BLOCK_BYTES / 3 + 1).into_bytes();
    let offset = bytes.len();
    bytes.extend_from_slice(b"\xE9t\xE9");
    for (bytes, offset, byte) in [
        (bytes, offset, "E9"),
        // Cut short within a character.
        ("aé".as_bytes()[..2].to_vec(), 1, "C3"),
    ] {
        fs::write(&path, bytes).unwrap();
        let source = path.display().to_string();
        let preparation = Preparation {
            source: &source,
            ..preparation(Text::File(&path), &TokenizerChoice::Char)
        };
        let error = prepare(&preparation, &dir.path().join("set"), &|_| {}).unwrap_err();
        assert!(matches!(error, Error::Data(_)));
        let expected =
            format!("latin1.txt: expected UTF-8, got the byte 0x{byte} at offset {offset}");
        assert!(error.to_string().contains(&expected), "{error}");
        assert_eq!(names(dir.path()), ["latin1.txt"]);
    }
}

#[test]
fn unsuitable_texts_and_settings_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out_dir = dir.path().join("set");
    let char = TokenizerChoice::Char;
    let json = TokenizerChoice::Json(dir.path().join("absent.json"));
    let message = |preparation: &Preparation<'_>| {
        let error = prepare(preparation, &out_dir, &|_| {}).unwrap_err();
        error.to_string()
    };
    let empty = message(&preparation(Text::Inline(""), &char));
    assert_eq!(empty, "a test: an empty text");
    let short = message(&preparation(Text::Inline("0123456789"), &char));
    expect_test::expect![[r#"
        a test: 10 characters give 9 training and 1 validation tokens, expected 2 or more
        hint: use a longer text"#]]
    .assert_eq(&short);
    for val_fraction in [0.0, 1.0, -1.0, f64::NAN] {
        let preparation = Preparation {
            val_fraction,
            ..preparation(Text::Inline("0123456789"), &char)
        };
        assert!(message(&preparation).contains("between 0 and 1"));
    }
    assert!(message(&preparation(Text::Inline("a b c"), &json)).contains("absent.json"));
    let folder = message(&preparation(Text::File(dir.path()), &char));
    assert!(folder.ends_with(": not a file"), "{folder}");
    let absent = message(&preparation(
        Text::File(Path::new("/nonexistent/text")),
        &char,
    ));
    assert!(absent.contains("cannot read /nonexistent/text"), "{absent}");
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn another_fraction_can_be_held_back() {
    let text: String = ('a'..='z').cycle().take(1000).collect();
    let dir = tempfile::tempdir().unwrap();
    let preparation = Preparation {
        val_fraction: 0.25,
        entropy_per_token: Some(1.5),
        ..preparation(Text::Inline(&text), &TokenizerChoice::Char)
    };
    let info = prepare(&preparation, &dir.path().join("set"), &|_| {}).unwrap();
    assert_eq!((info.train_tokens, info.val_tokens), (750, 250));
    assert_eq!(info.entropy_per_token, Some(1.5));
}

#[test]
fn a_dataset_that_is_there_is_refused_kept_or_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let out_dir = dir.path().join("set");
    // As in nanoGPT's layout, where the text lies beside the dataset.
    fs::create_dir(&out_dir).unwrap();
    fs::write(out_dir.join("input.txt"), "mine").unwrap();
    let text = "to be or not to be ".repeat(10);
    let first = preparation(Text::Inline(&text), &TokenizerChoice::Char);
    prepare(&first, &out_dir, &|_| {}).unwrap();
    let before = fs::read(out_dir.join("train.bin")).unwrap();

    let other = Preparation {
        tokenizer: &TokenizerChoice::Gpt2,
        ..first.clone()
    };
    let error = prepare(&other, &out_dir, &|_| {}).unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error}");
    let keep = Preparation {
        if_present: IfPresent::Keep,
        ..other.clone()
    };
    prepare(&keep, &out_dir, &|_| {}).unwrap();
    assert!(fs::read(out_dir.join("train.bin")).unwrap() == before);
    assert_eq!(Dataset::open(&out_dir).unwrap().info.tokenizer, "char");

    let replace = Preparation {
        if_present: IfPresent::Replace,
        ..other
    };
    let info = prepare(&replace, &out_dir, &|_| {}).unwrap();
    assert_eq!(Dataset::open(&out_dir).unwrap().info, info);
    let left: Vec<String> = names(&out_dir)
        .into_iter()
        .filter(|name| !name.ends_with(".checked"))
        .collect();
    assert_eq!(
        left,
        [
            "dataset.json",
            "input.txt",
            "tokenizer.json",
            "train.bin",
            "val.bin"
        ]
    );
    assert_eq!(names(dir.path()), ["set"]);
}

#[test]
fn folders_of_dead_preparations_are_cleared_away_and_those_at_work_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, age_s: u64, lock: bool| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        let lock = lock.then(|| File::create(path.join("lock")).unwrap());
        let time = SystemTime::now() - Duration::from_secs(age_s);
        File::open(&path).unwrap().set_modified(time).unwrap();
        lock
    };
    make(".tmp-dead", 60, true);
    make(".tmp-young", 0, true);
    make(".tmp-unlocked", 60, false);
    make(".tmp-old", 100_000, false);
    make("other", 100_000, false);
    let held = make(".tmp-held", 60, true).unwrap();
    held.try_lock().unwrap();

    let text = "to be or not to be ".repeat(10);
    let preparation = preparation(Text::Inline(&text), &TokenizerChoice::Char);
    prepare(&preparation, &dir.path().join("set"), &|_| {}).unwrap();
    assert_eq!(
        names(dir.path()),
        [".tmp-held", ".tmp-unlocked", ".tmp-young", "other", "set"]
    );
}

#[test]
fn many_that_prepare_at_once_all_succeed() {
    let dir = tempfile::tempdir().unwrap();
    let out_dir = dir.path().join("set");
    let text = "to be or not to be ".repeat(1000);
    let preparation = Preparation {
        if_present: IfPresent::Keep,
        ..preparation(Text::Inline(&text), &TokenizerChoice::Char)
    };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let info = prepare(&preparation, &out_dir, &|_| {}).unwrap();
                assert_eq!(Dataset::open(&out_dir).unwrap().info, info);
            });
        }
    });
    let left = names(dir.path());
    assert_eq!(left, ["set"]);
}

#[test]
fn tokenizers_are_chosen_by_name_or_path() {
    let parse = |text| TokenizerChoice::parse(text).ok();
    assert_eq!(parse("char"), Some(TokenizerChoice::Char));
    assert_eq!(parse("gpt2"), Some(TokenizerChoice::Gpt2));
    let path = PathBuf::from("a/tokenizer.json");
    assert_eq!(parse("a/tokenizer.json"), Some(TokenizerChoice::Json(path)));
    assert_eq!(parse("gpt4"), None);
}

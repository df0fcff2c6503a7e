//! Datasets: our own and nanoGPT's folders, refusals, and what the fingerprint notices.

use super::super::token_file::TokenWriter;
use super::*;

fn info() -> DatasetInfo {
    DatasetInfo {
        format_version: 1,
        name: "letters".to_owned(),
        tokenizer: "char".to_owned(),
        vocab_size: 3,
        train_tokens: 4,
        val_tokens: 2,
        source: "letters.txt".to_owned(),
        source_sha256: "00".to_owned(),
        entropy_per_token: Some(1.0986),
    }
}

fn write_tokens(dir: &Path, name: &str, vocab_size: usize, ids: &[u32]) {
    let mut writer = TokenWriter::create(&dir.join(name), vocab_size).unwrap();
    writer.write(ids).unwrap();
    writer.finish().unwrap();
}

/// A whole dataset of three characters.
fn letters() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_tokens(dir, TRAIN, 3, &[0, 1, 2, 1]);
    write_tokens(dir, VAL, 3, &[2, 0]);
    let vocab = r#"{"format_version":1,"chars":["a","b","\n"]}"#;
    fs::write(dir.join(VOCAB), vocab).unwrap();
    write_info(dir, &info()).unwrap();
    folder
}

fn refusal(dir: &Path) -> String {
    match Dataset::open(dir).unwrap_err() {
        Error::Data(message) => message,
        other => panic!("expected a data error, got {other:?}"),
    }
}

#[test]
fn a_prepared_folder_opens_as_it_was_described() {
    let folder = letters();
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(dataset.info, info());
    assert_eq!(dataset.dir, folder.path());
    assert_eq!((dataset.train.len(), dataset.val.len()), (4, 2));
    let without_entropy = DatasetInfo {
        entropy_per_token: None,
        ..info()
    };
    write_info(folder.path(), &without_entropy).unwrap();
    assert_eq!(Dataset::open(folder.path()).unwrap().info, without_entropy);
}

#[test]
fn a_folder_of_nanogpt_s_opens_with_gpt2() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("openwebtext");
    fs::create_dir(&dir).unwrap();
    write_tokens(&dir, TRAIN, 50_257, &[50_256, 0, 11]);
    write_tokens(&dir, VAL, 50_257, &[1, 2]);
    let dataset = Dataset::open(&dir).unwrap();
    let expected = DatasetInfo {
        name: "openwebtext".to_owned(),
        tokenizer: "gpt2".to_owned(),
        vocab_size: 50_257,
        train_tokens: 3,
        val_tokens: 2,
        source: dir.display().to_string(),
        source_sha256: String::new(),
        entropy_per_token: None,
        ..info()
    };
    assert_eq!(dataset.info, expected);
}

#[test]
fn a_folder_without_description_takes_its_tokenizer_s_vocabulary() {
    let folder = letters();
    fs::remove_file(folder.path().join(INFO)).unwrap();
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(
        (dataset.info.tokenizer.as_str(), dataset.info.vocab_size),
        ("char", 3)
    );
    fs::write(folder.path().join(VOCAB), r#"{"chars":["a","b"]}"#).unwrap();
    assert!(refusal(folder.path()).contains("token 2 is id 2, but the vocabulary has 2 ids"));
    fs::write(folder.path().join(VOCAB), r#"{"chars":[]}"#).unwrap();
    assert!(refusal(folder.path()).contains("vocab.json: expected characters, got none"));
    fs::remove_file(folder.path().join(VOCAB)).unwrap();
    let tokenizer = r#"{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":null,
        "post_processor":null,"decoder":null,"truncation":null,"padding":null,
        "model":{"type":"WordLevel","vocab":{"a":0,"b":1,"c":9},"unk_token":"a"}}"#;
    fs::write(folder.path().join(TOKENIZER), tokenizer).unwrap();
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(
        (dataset.info.tokenizer.as_str(), dataset.info.vocab_size),
        ("json", 10)
    );
    fs::write(folder.path().join(TOKENIZER), "{}").unwrap();
    assert!(refusal(folder.path()).contains("tokenizer.json: expected a tokenizer, got"));
}

#[test]
fn a_pickled_vocabulary_is_read_and_never_taken_for_gpt2() {
    let folder = letters();
    fs::remove_file(folder.path().join(INFO)).unwrap();
    fs::remove_file(folder.path().join(VOCAB)).unwrap();
    let meta = folder.path().join(META);
    // `pickle.dumps({"itos": {0: "a", 1: "b", 2: "\n"}}, 4)`.
    let pickle = b"\x80\x04\x95\x1f\0\0\0\0\0\0\0}\x94\x8c\x04itos\x94}\x94(K\0\x8c\x01a\x94K\x01\
        \x8c\x01b\x94K\x02\x8c\x01\n\x94us.";
    fs::write(&meta, pickle).unwrap();
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(
        (dataset.info.tokenizer.as_str(), dataset.info.vocab_size),
        ("char", 3)
    );
    let tokenizer = Tokenizer::load(folder.path()).unwrap().unwrap();
    assert_eq!(tokenizer.encode("\nab").unwrap(), [2, 0, 1]);
    let other = [&pickle[..pickle.len() - 5], b"c\x94us."].concat();
    fs::write(&meta, other).unwrap();
    let changed = Dataset::open(folder.path()).unwrap();
    assert_ne!(changed.fingerprint(), dataset.fingerprint());
    for damaged in [&[0x80, 4][..], b"cposix\nsystem\nX\x02\0\0\0ls\x85R."] {
        fs::write(&meta, damaged).unwrap();
        let message = refusal(folder.path());
        assert!(
            message.contains("meta.pkl") && message.contains("hint: "),
            "{message}"
        );
    }
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let folder = letters();
    let dir = folder.path();
    let message = refusal(&dir.join("absent"));
    assert!(
        message.starts_with("no dataset in ") && message.contains("hint: "),
        "{message}"
    );
    for (change, expected) in [
        (r#""format_version": 2"#, "expected format_version 1, got 2"),
        (
            r#""vocab_size": 0"#,
            "expected a vocab_size of 1 to 4294967295, got 0",
        ),
        (
            r#""train_tokens": 5"#,
            "train.bin: expected 5 tokens, as dataset.json says, got 4",
        ),
        (
            r#""val_tokens": 1"#,
            "val.bin: expected 1 tokens, as dataset.json says, got 2",
        ),
        (r#""val_tokens": -1"#, "dataset.json: invalid value"),
    ] {
        write_info(dir, &info()).unwrap();
        let text = fs::read_to_string(dir.join(INFO)).unwrap();
        let key = change.split(' ').next().unwrap();
        let changed: Vec<String> = text
            .lines()
            .map(|line| match line.trim().starts_with(key) {
                true => format!("{change},"),
                false => line.to_owned(),
            })
            .collect();
        fs::write(dir.join(INFO), changed.join("\n")).unwrap();
        let message = refusal(dir);
        assert!(message.contains(expected), "{message}");
    }
    fs::write(dir.join(INFO), "{").unwrap();
    assert!(refusal(dir).contains("dataset.json: expected a description of a dataset, got EOF"));
    write_info(dir, &info()).unwrap();
    fs::remove_file(dir.join(VAL)).unwrap();
    assert!(refusal(dir).contains("val.bin: No such file"));
    write_tokens(dir, VAL, 4, &[3, 0]);
    assert!(refusal(dir).contains("val.bin: token 0 is id 3"));
}

#[test]
fn the_fingerprint_follows_the_content() {
    let folder = letters();
    let dir = folder.path();
    let fingerprint = || Dataset::open(dir).unwrap().fingerprint();
    let first = fingerprint();
    assert_eq!(first.len(), 64);
    assert_eq!(fingerprint(), first);
    let renamed = DatasetInfo {
        name: "other".to_owned(),
        source: "elsewhere".to_owned(),
        ..info()
    };
    write_info(dir, &renamed).unwrap();
    assert_eq!(fingerprint(), first, "name and place are not content");
    let mut seen = vec![first];
    let mut differs = |what: &str| {
        let next = fingerprint();
        assert!(!seen.contains(&next), "{what}");
        seen.push(next);
    };
    write_tokens(dir, TRAIN, 3, &[0, 1, 2, 2]);
    differs("a token of train.bin");
    let vocab = r#"{"format_version":1,"chars":["b","a","\n"]}"#;
    fs::write(dir.join(VOCAB), vocab).unwrap();
    differs("the order of the characters");
    let other_text = DatasetInfo {
        source_sha256: "01".to_owned(),
        ..info()
    };
    write_info(dir, &other_text).unwrap();
    differs("the text");
    let other_vocabulary = DatasetInfo {
        vocab_size: 4,
        ..info()
    };
    write_info(dir, &other_vocabulary).unwrap();
    differs("the vocabulary");
}

#[test]
fn a_folder_of_llmc_s_shards_opens_with_gpt2() {
    for (train, val) in [
        (
            &["fineweb_train_000001.bin", "fineweb_train_000002.bin"][..],
            "fineweb_val_000000.bin",
        ),
        (&["tiny_train.bin"], "tiny_val.bin"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        assert!(!parts::is_in(folder.path()));
        let mut expected = Vec::new();
        // Written backwards, for the names are to give the order.
        for (number, name) in train.iter().enumerate().rev() {
            let ids = [50_256, number as u16, 7];
            fs::write(folder.path().join(name), shard(&ids)).unwrap();
            expected.splice(0..0, ids.map(u32::from));
        }
        fs::write(folder.path().join(val), shard(&[50_256, 5])).unwrap();
        fs::write(folder.path().join("constrain.bin"), "not one").unwrap();
        assert!(parts::is_in(folder.path()));
        let dataset = Dataset::open(folder.path()).unwrap();
        let mut got = vec![0; dataset.train.len()];
        dataset.train.copy(0, &mut got);
        assert_eq!((got, dataset.val.len()), (expected, 2));
        assert_eq!(
            (dataset.info.tokenizer.as_str(), dataset.info.vocab_size),
            ("gpt2", 50_257)
        );
    }
}

/// A file of llm.c's.
fn shard(ids: &[u16]) -> Vec<u8> {
    let mut header = [0i32; 256];
    header[..3].copy_from_slice(&[20_240_520, 1, ids.len() as i32]);
    let header = header.iter().flat_map(|number| number.to_le_bytes());
    let body = ids.iter().flat_map(|id| id.to_le_bytes());
    header.chain(body).collect()
}

fn open_path(path: &Path) -> Result<Dataset> {
    let what = path.to_str().unwrap();
    Dataset::open_files(what, "mine", &parts::of_path(what)?.unwrap())
}

fn ids(file: &TokenFile) -> Vec<u32> {
    let mut ids = vec![0; file.len()];
    file.copy(0, &mut ids);
    ids
}

#[test]
fn without_a_file_for_validation_the_end_is_held_back() {
    let folder = tempfile::tempdir().unwrap();
    for (name, first) in [("a_1.bin", 0), ("a_2.bin", 15)] {
        let ids: Vec<u16> = (first..first + 15).collect();
        fs::write(folder.path().join(name), shard(&ids)).unwrap();
    }
    // What lies beside them belongs to something else.
    fs::write(folder.path().join(VOCAB), r#"{"chars":["a","b"]}"#).unwrap();
    let one = open_path(&folder.path().join("a_1.bin")).unwrap();
    assert_eq!(
        (ids(&one.train), ids(&one.val)),
        ((0..14).collect(), vec![14])
    );
    let both = open_path(&folder.path().join("a_*.bin")).unwrap();
    assert_eq!(ids(&both.train), (0..27).collect::<Vec<_>>());
    assert_eq!(ids(&both.val), [27, 28, 29]);
    let expected = DatasetInfo {
        name: "mine".to_owned(),
        tokenizer: "gpt2".to_owned(),
        vocab_size: 50_257,
        train_tokens: 27,
        val_tokens: 3,
        source: folder.path().join("a_*.bin").display().to_string(),
        source_sha256: String::new(),
        entropy_per_token: None,
        ..info()
    };
    assert_eq!(both.info, expected);
    assert_ne!(one.fingerprint(), both.fingerprint());

    let none = folder.path().join("few.bin");
    fs::write(&none, shard(&[1; 9])).unwrap();
    let message = open_path(&none).unwrap_err().to_string();
    assert!(
        message.contains("few.bin: expected at least 10 tokens"),
        "{message}"
    );
}

#[test]
fn no_more_is_held_back_than_evaluations_look_at() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.bin");
    let count = 42_000_000;
    let file = File::create(&path).unwrap();
    // Zeros are tokens, too.
    file.set_len(1024 + 2 * count).unwrap();
    let header = &shard(&[0; 3])[..1024];
    std::os::unix::fs::FileExt::write_all_at(&file, header, 0).unwrap();
    let told = (count as u32).to_le_bytes();
    std::os::unix::fs::FileExt::write_all_at(&file, &told, 8).unwrap();
    let dataset = open_path(&path).unwrap();
    assert_eq!(dataset.info.val_tokens, 4_194_304);
    assert_eq!(dataset.info.train_tokens, count - 4_194_304);
}

#[test]
fn what_is_no_token_file_of_llmc_s_is_refused_with_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.bin");
    let good = shard(&[7; 40]);
    let with = |at: usize, number: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        bytes
    };
    for (bytes, expected) in [
        (
            vec![1; 90],
            "(magic 20240520, header of 1024 bytes), got magic 16843009",
        ),
        (
            with(0, 20_240_801),
            "got tokens of LLaMA 3 (magic 20240801)",
        ),
        (vec![0; 5], "got 5 bytes"),
        (
            with(100, 1),
            "got more than zeros in the rest of its header",
        ),
        (
            with(4, 2),
            "expected version 1 of llm.c's token files (magic 20240520), got version 2",
        ),
        (
            good[..1100].to_vec(),
            "expected 1104 bytes for 40 tokens, as its header says, got 1100",
        ),
        (
            good[..500].to_vec(),
            "expected 1104 bytes for 40 tokens, as its header says, got 500",
        ),
        (
            with(1028, 50_257),
            "x.bin: token 2 is id 50257, but the vocabulary has 50257 ids",
        ),
    ] {
        fs::write(&path, bytes).unwrap();
        let message = open_path(&path).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("hint: "), "{message}");
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(open_path(&path).unwrap().info.train_tokens, 36);
}

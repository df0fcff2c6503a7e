//! Documents from real files: every format gives the same tokens, any number of threads too; and
//! what is said of files that are damaged or hold something else.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::super::super::dataset::Dataset;
use super::*;

/// Texts of many kinds, one of them longer than a batch.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = (0..400)
        .map(|i| format!("Document {i}: naïve “text”,\n\twith {} lines.\n", i * i).repeat(i % 9))
        .collect();
    texts.push("A long one, word by word. ".repeat(50_000));
    texts.push("語".repeat(300));
    texts
}

fn json_lines(texts: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (text, i) in texts.iter().zip(0..) {
        let line = serde_json::json!({"id": i, "meta": {"body": text}, "text": text});
        bytes.extend_from_slice(line.to_string().as_bytes());
        bytes.push(b'\n');
    }
    bytes
}

fn parquet(path: &Path, texts: &[String], compression: Compression, has_nulls: bool) {
    let schema = "message m { required int64 id; optional binary text (UTF8);
                  optional group tags (LIST) { repeated group list {
                  optional binary element (UTF8); } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_data_page_size_limit(10_000)
        .build();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for texts in texts.chunks(150) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let ids: Vec<i64> = (0..texts.len() as i64).collect();
        let ids_in = column.typed::<parquet::data_type::Int64Type>();
        ids_in.write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let mut levels = vec![1; texts.len()];
        let mut values: Vec<ByteArray> = texts.iter().map(|t| t.as_str().into()).collect();
        if has_nulls {
            levels[2] = 0;
            values.remove(2);
        }
        let texts_in = column.typed::<ByteArrayType>();
        texts_in.write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let none = vec![0; texts.len()];
        let tags_in = column.typed::<ByteArrayType>();
        tags_in.write_batch(&[], Some(&none), Some(&none)).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn here(path: &Path, kind: Kind, packing: Packing) -> SourceFile {
    SourceFile {
        name: path.display().to_string(),
        kind,
        packing,
        place: Place::Here(path.to_owned()),
        bytes: Some(path.metadata().unwrap().len()),
    }
}

struct Order<'a> {
    files: Vec<SourceFile>,
    field: &'a str,
    tokenizer: TokenizerChoice,
    val_fraction: f64,
    seed: u64,
}

impl Order<'_> {
    fn of(files: Vec<SourceFile>) -> Self {
        Self {
            files,
            field: "text",
            tokenizer: TokenizerChoice::Gpt2,
            val_fraction: 0.1,
            seed: Collection::SEED,
        }
    }

    fn prepare(&self, out_dir: &Path, progress: OnProgress<'_>) -> Result<DatasetInfo> {
        let collection = Collection {
            files: &self.files,
            field: self.field,
            source: "a test",
            name: "test",
            tokenizer: &self.tokenizer,
            val_fraction: self.val_fraction,
            seed: self.seed,
            if_present: IfPresent::Refuse,
            downloads: Path::new(""),
        };
        prepare_documents(&collection, out_dir, progress)
    }

    /// The tokens of both splits.
    fn tokens(&self) -> [Vec<u32>; 2] {
        let dir = tempfile::tempdir().unwrap();
        let out_dir = dir.path().join("set");
        let info = self.prepare(&out_dir, &|_| {}).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(&out_dir).unwrap().count(), 4);
        let dataset = Dataset::open(&out_dir).unwrap();
        assert_eq!(dataset.info, info);
        [&dataset.train, &dataset.val].map(|file| {
            let mut ids = vec![0; file.len()];
            file.copy(0, &mut ids);
            ids
        })
    }

    fn refusal(&self) -> String {
        let dir = tempfile::tempdir().unwrap();
        let error = self.prepare(&dir.path().join("set"), &|_| {}).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{error}");
        error.to_string()
    }
}

/// The documents encoded one by one, each with its end, by what is held back.
fn one_by_one(texts: &[String], tokenizer: &Tokenizer, end: u32, seed: u64) -> [Vec<u32>; 2] {
    let draws = Philox::new(seed, Stream::Corpus);
    let mut parts = [Vec::new(), Vec::new()];
    for (text, i) in texts.iter().zip(0..) {
        let part = &mut parts[usize::from(is_held_back(&draws, i, 0.1))];
        part.extend(tokenizer.encode_ordinary(text).unwrap());
        part.push(end);
    }
    parts
}

#[test]
fn every_format_gives_the_tokens_of_the_documents_one_by_one() {
    let texts = texts();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let lines = json_lines(&texts);
    fs::write(path("a.jsonl"), &lines).unwrap();
    fs::write(path("a.jsonl.gz"), gzip(&lines)).unwrap();
    fs::write(
        path("a.jsonl.zst"),
        zstd::encode_all(&lines[..], 1).unwrap(),
    )
    .unwrap();
    // Without a last line feed, and of two members.
    let (one, two) = lines.split_at(lines.len() / 2);
    let members = [gzip(one), gzip(&two[..two.len() - 1])].concat();
    fs::write(path("b.jsonl.gz"), members).unwrap();
    for (name, compression) in [
        ("plain", Compression::UNCOMPRESSED),
        ("snappy", Compression::SNAPPY),
        ("gzip", Compression::GZIP(Default::default())),
        ("zstd", Compression::ZSTD(Default::default())),
    ] {
        parquet(&path(name), &texts, compression, false);
    }
    fs::write(path("packed"), gzip(&fs::read(path("snappy")).unwrap())).unwrap();
    let mut files = Vec::new();
    for (text, i) in texts.iter().zip(0..) {
        fs::write(path(&format!("{i:03}.txt")), text).unwrap();
        files.push(here(
            &path(&format!("{i:03}.txt")),
            Kind::Text,
            Packing::Plain,
        ));
    }

    let gpt2 = Tokenizer::gpt2().unwrap();
    let expected = one_by_one(&texts, &gpt2, 50_256, Collection::SEED);
    assert!(expected[1].len() > 1000);
    let mut orders = vec![("texts", Order::of(files))];
    for (name, kind, packing) in [
        ("a.jsonl", Kind::Lines, Packing::Plain),
        ("a.jsonl.gz", Kind::Lines, Packing::Gzip),
        ("a.jsonl.zst", Kind::Lines, Packing::Zstd),
        ("b.jsonl.gz", Kind::Lines, Packing::Gzip),
        ("plain", Kind::Parquet, Packing::Plain),
        ("snappy", Kind::Parquet, Packing::Plain),
        ("gzip", Kind::Parquet, Packing::Plain),
        ("zstd", Kind::Parquet, Packing::Plain),
        ("packed", Kind::Parquet, Packing::Gzip),
    ] {
        orders.push((name, Order::of(vec![here(&path(name), kind, packing)])));
    }
    for (name, order) in orders {
        assert!(order.tokens() == expected, "{name}");
    }
    let nested = Order {
        field: "meta.body",
        ..Order::of(vec![here(&path("a.jsonl"), Kind::Lines, Packing::Plain)])
    };
    assert!(nested.tokens() == expected);
    let other_seed = Order {
        seed: 1,
        ..Order::of(vec![here(&path("a.jsonl"), Kind::Lines, Packing::Plain)])
    };
    assert!(other_seed.tokens() == one_by_one(&texts, &gpt2, 50_256, 1));
}

#[test]
fn documents_of_characters_end_with_a_line_feed() {
    let texts = ["abc", "", "bca", "x y", "cab"]
        .map(str::to_owned)
        .into_iter()
        .cycle()
        .take(100)
        .collect::<Vec<_>>();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ndjson");
    fs::write(&path, json_lines(&texts)).unwrap();
    let order = Order {
        tokenizer: TokenizerChoice::Char,
        ..Order::of(vec![here(&path, Kind::Lines, Packing::Plain)])
    };
    let chars = Tokenizer::from_chars("\n abcxy".chars()).unwrap();
    assert!(order.tokens() == one_by_one(&texts, &chars, 0, Collection::SEED));
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let texts = texts();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, json_lines(&texts)).unwrap();
    let order = Order::of(vec![here(&path, Kind::Lines, Packing::Plain)]);
    let mut seen = Vec::new();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let out_dir = dir.path().join(threads.to_string());
        let told = Mutex::new(Vec::new());
        pool.build().unwrap().install(|| {
            order
                .prepare(&out_dir, &|now| told.lock().unwrap().push(now))
                .unwrap();
        });
        let files = ["train.bin", "val.bin", "dataset.json", "tokenizer.json"];
        seen.push(files.map(|name| fs::read(out_dir.join(name)).unwrap()));
        let told = told.into_inner().unwrap();
        let size = path.metadata().unwrap().len();
        assert!(told.iter().all(|now| now.total == Some(size)));
        assert_eq!(told.last().map(|now| now.done), Some(size));
    }
    assert!(seen[0] == seen[1] && seen[0] == seen[2]);
}

#[test]
fn documents_are_held_back_at_the_rate_asked_for_and_by_the_seed() {
    let held = |seed, fraction| -> Vec<u64> {
        let draws = Philox::new(seed, Stream::Corpus);
        (0..100_000)
            .filter(|document| is_held_back(&draws, *document, fraction))
            .collect()
    };
    let few = held(2357, 0.0005);
    assert!((30..=70).contains(&few.len()), "{}", few.len());
    let more = held(2357, 0.1);
    assert!((9_700..=10_300).contains(&more.len()), "{}", more.len());
    // A larger share holds the smaller one, another seed other documents.
    assert!(few.iter().all(|document| more.contains(document)));
    assert_ne!(few, held(2358, 0.0005));
    let draws = Philox::new(1, Stream::Corpus);
    assert_eq!(
        (0..1000)
            .filter(|i| is_held_back(&draws, i << 32, 0.5))
            .count()
            / 100,
        (0..1000).filter(|i| is_held_back(&draws, *i, 0.5)).count() / 100
    );
}

/// Asserts that a file of these bytes is refused with its name, all of `needles` and a hint.
#[track_caller]
fn check(bytes: &[u8], kind: Kind, packing: Packing, field: &str, needles: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, bytes).unwrap();
    let order = Order {
        field,
        ..Order::of(vec![here(&path, kind, packing)])
    };
    let message = order.refusal();
    for needle in needles {
        assert!(message.contains(needle), "{needle:?} is not in {message:?}");
    }
    assert!(message.contains("file: "), "{message}");
    assert!(message.contains("\nhint: "), "{message}");
}

fn short_texts() -> Vec<String> {
    (0..3000).map(|i| format!("text {i}")).collect()
}

#[test]
fn lines_without_a_text_are_refused_with_their_place() {
    let lines = json_lines(&short_texts());
    for (line, needles) in [
        (
            "{\"text\": \"x\"",
            ["line 3001: expected a JSON object", "EOF while parsing"],
        ),
        (
            "\n\n{\"body\": \"x\"}",
            ["line 3003: ", "a text \"text\", got an object of body"],
        ),
        ("{\"text\": 7}", ["line 3001: ", "integer `7`"]),
    ] {
        let bytes = [&lines[..], line.as_bytes(), b"\n", &lines[..]].concat();
        check(&bytes, Kind::Lines, Packing::Plain, "text", &needles);
    }
    let needles = ["expected UTF-8, got the byte 0xE9 at offset 3"];
    check(b"caf\xE9", Kind::Text, Packing::Plain, "text", &needles);
}

#[test]
fn packed_files_that_are_damaged_are_refused() {
    let lines = json_lines(&short_texts());
    for (packed, packing, name) in [
        (gzip(&lines), Packing::Gzip, "gzip"),
        (
            zstd::encode_all(&lines[..], 1).unwrap(),
            Packing::Zstd,
            "zstd",
        ),
    ] {
        let expected = format!("expected a whole {name} stream, got a damaged one");
        let cut = &packed[..packed.len() - packed.len() / 3];
        for kind in [Kind::Lines, Kind::Text, Kind::Parquet] {
            check(cut, kind, packing, "text", &[&expected, "cut short"]);
        }
        // Not packed at all.
        check(&lines, Kind::Lines, packing, "text", &[&expected]);
    }
}

#[test]
fn tables_that_are_damaged_or_have_no_texts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let table = dir.path().join("table");
    let bytes = |has_nulls| {
        parquet(&table, &short_texts(), Compression::SNAPPY, has_nulls);
        fs::read(&table).unwrap()
    };
    let whole = bytes(false);
    let plain = Packing::Plain;
    let damaged = "expected a whole Parquet file, got a damaged one";
    let half = &whole[..whole.len() / 2];
    check(half, Kind::Parquet, plain, "text", &[damaged, "cut short"]);
    check(b"{}", Kind::Parquet, plain, "text", &[damaged]);
    let needles = ["row 3: expected a text", "got null"];
    check(&bytes(true), Kind::Parquet, plain, "text", &needles);
    for (field, needles) in [
        (
            "body",
            &["expected a column \"body\"", "id, text, tags.list.element"][..],
        ),
        ("id", &["expected texts in the column \"id\", got INT64"]),
        ("tags.list.element", &["got a list of BYTE_ARRAY"]),
    ] {
        check(&whole, Kind::Parquet, plain, field, needles);
    }
}

#[test]
fn too_few_documents_and_unsuitable_settings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, json_lines(&["one".to_owned(), "two".to_owned()])).unwrap();
    let order = || Order::of(vec![here(&path, Kind::Lines, Packing::Plain)]);
    let few = Order {
        val_fraction: 0.0005,
        ..order()
    };
    let message = few.refusal();
    for needle in [
        "a test: 2 documents",
        "0 validation tokens",
        "--val_fraction",
    ] {
        assert!(message.contains(needle), "{message}");
    }
    let empty = dir.path().join("empty.jsonl");
    fs::write(&empty, "").unwrap();
    let message = Order::of(vec![here(&empty, Kind::Lines, Packing::Plain)]).refusal();
    assert!(message.contains("0 documents"), "{message}");
    let none = Order {
        val_fraction: 1.0,
        ..order()
    };
    assert!(
        none.refusal()
            .contains("val_fraction: expected a number between 0 and 1")
    );

    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],
        "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,
        "decoder":null,"model":{"type":"WordLevel","unk_token":"a","vocab":{"a":0,"b":1}}}"#;
    let tokenizer = dir.path().join("endless.json");
    fs::write(&tokenizer, json).unwrap();
    let endless = Order {
        tokenizer: TokenizerChoice::Json(tokenizer),
        ..order()
    };
    let message = endless.refusal();
    assert!(
        message.contains("expected a token that ends a text (<|endoftext|>"),
        "{message}"
    );
}

//! From a name to a dataset: every place it may be found in, and what is said where it is not.

use std::sync::Mutex;

use super::*;
use crate::tokenizer::Tokenizer;

const TINY_SHAKESPEARE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../shared/data/tinyshakespeare/input.txt"
);

/// Places within `dir` and no network.
fn places(dir: &Path) -> Places {
    Places {
        root: dir.join("data"),
        is_root_given: false,
        caches: vec![dir.join("cache")],
        mirrors: Vec::new(),
        urls: vec![dir.join("server/input.txt").display().to_string()],
    }
}

fn put(from: &str, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).expect(from);
}

fn request(what: &str) -> Request<'static> {
    Request {
        sources: vec![what.to_owned()],
        name: None,
        tokenizer: None,
        val_fraction: None,
        field: "text",
        seed: Collection::SEED,
        out_dir: None,
        overwrite: false,
    }
}

#[test]
fn the_environment_says_where_to_look() {
    let of = |data_dir: &str, data_url: &str, variables: &[(&str, &str)]| {
        let variables: Vec<(String, OsString)> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
            .collect();
        Places::of(Path::new(data_dir), data_url, |name| {
            let found = variables.iter().find(|(other, _)| other == name);
            found.map(|(_, value)| value.clone())
        })
    };
    let home = ("HOME", "/home/me");
    let plain = of("", "", &[home, ("ANNEAL_DATA", "")]);
    assert_eq!(plain.root, Path::new("data"));
    assert_eq!(
        plain.caches,
        [Path::new("/home/me/.cache/anneal"), Path::new("data")]
    );
    assert_eq!(plain.mirrors, Vec::<String>::new());
    let prepared = plain.prepared("mine");
    assert_eq!(
        prepared,
        [
            "data/mine",
            "/home/me/.cache/anneal/datasets/mine",
            "data/datasets/mine"
        ]
        .map(PathBuf::from)
    );

    let xdg = ("XDG_CACHE_HOME", "/xdg");
    let given = of("/given", "", &[home, xdg, ("ANNEAL_DATA", "/env")]);
    assert_eq!(given.root, Path::new("/given"));
    assert_eq!(given.caches[0], Path::new("/xdg/anneal"));
    assert_eq!(
        given.prepared("mine")[..2],
        ["/given/mine", "/given"].map(PathBuf::from)
    );

    let cache = ("ANNEAL_CACHE", "/cache");
    let env = of("", "", &[home, xdg, cache, ("ANNEAL_DATA", "/env")]);
    assert_eq!(
        (env.root.as_path(), env.is_root_given),
        (Path::new("/env"), false)
    );
    assert_eq!(env.caches[0], Path::new("/cache"));

    let url = of(
        "",
        "file:///mirror/",
        &[("ANNEAL_DATA", "https://example.org/t.txt")],
    );
    assert_eq!(url.root, Path::new("data"));
    assert_eq!(url.caches, [Path::new("data")]);
    assert_eq!(
        url.mirrors,
        [
            "file:///mirror/tinyshakespeare/input.txt",
            "https://example.org/t.txt"
        ]
    );
    assert_eq!(of("", "a/path.txt", &[]).mirrors, ["a/path.txt"]);
}

#[test]
fn quickstart_is_generated_and_its_entropy_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path());
    let dataset = locate_in(&places, "quickstart", &|_| {}).unwrap();
    assert_eq!(dataset.dir, dir.path().join("cache/datasets/quickstart-1"));
    assert_eq!(
        (
            dataset.info.source.as_str(),
            dataset.info.tokenizer.as_str()
        ),
        ("generated", "char")
    );
    let corpus = corpus::generate(QUICKSTART_CHARS);
    assert_eq!(
        dataset.info.entropy_per_token,
        Some(corpus.entropy_per_char)
    );
    let tokens = dataset.info.train_tokens + dataset.info.val_tokens;
    assert_eq!(tokens, corpus.text.len() as u64);
    // If this fails, the generator changed: raise RECIPE along with it.
    expect_test::expect!["c0d7317e4c0af4c4cab259398925545b6589a4746d4a0865e1522d7b7c4bb365"]
        .assert_eq(&dataset.info.source_sha256);
    // The second time it is there already.
    let none = |_| panic!("nothing is left to do");
    assert_eq!(
        locate_in(&places, "quickstart", &none).unwrap().info,
        dataset.info
    );
    // By other tokens the same text has another entropy, which is not known.
    let gpt2 = Request {
        tokenizer: Some(TokenizerChoice::Gpt2),
        ..request("quickstart")
    };
    let (out_dir, info) = prepare_named_or_path(&gpt2, &places, &|_| {}).unwrap();
    assert_eq!(out_dir, dir.path().join("data/quickstart"));
    assert_eq!(info.entropy_per_token, None);
}

#[test]
fn shakespeare_is_found_in_every_place_and_prepared_into_the_cache() {
    for (place, name, train_tokens) in [
        (
            "data/shakespeare_char/input.txt",
            "shakespeare_char",
            1_003_854,
        ),
        ("data/tinyshakespeare/input.txt", "shakespeare", 301_966),
        ("data/input.txt", "shakespeare_char", 1_003_854),
        (
            "cache/sources/tinyshakespeare.txt",
            "shakespeare_char",
            1_003_854,
        ),
        ("server/input.txt", "shakespeare", 301_966),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        put(TINY_SHAKESPEARE, &dir.path().join(place));
        let stages = Mutex::new(Vec::new());
        let note = |now: Progress| stages.lock().unwrap().push(now.stage);
        let dataset = locate_in(&places, name, &note).unwrap();
        assert_eq!(
            dataset.dir,
            dir.path().join(format!("cache/datasets/{name}-1"))
        );
        assert_eq!(dataset.info.train_tokens, train_tokens);
        assert_eq!(
            dataset.info.source,
            dir.path().join(place).display().to_string()
        );
        let is_fetched = place == "server/input.txt";
        assert_eq!(
            stages.lock().unwrap().contains(&Stage::Fetching),
            is_fetched
        );
        let copy = dir.path().join("cache/sources/tinyshakespeare.txt");
        assert_eq!(copy.exists(), is_fetched || place.starts_with("cache"));
        // The second time the text is not needed.
        fs::remove_file(dir.path().join(place)).unwrap();
        assert_eq!(
            locate_in(&places, name, &|_| {}).unwrap().info,
            dataset.info
        );
    }
}

#[test]
fn a_mirror_is_asked_before_the_built_in_sources() {
    let dir = tempfile::tempdir().unwrap();
    let mut places = places(dir.path());
    put(TINY_SHAKESPEARE, &dir.path().join("server/input.txt"));
    put(TINY_SHAKESPEARE, &dir.path().join("mirror/input.txt"));
    let mirror = format!("file://{}", dir.path().join("mirror/input.txt").display());
    places.mirrors = vec!["/nonexistent".to_owned(), mirror.clone()];
    let dataset = locate_in(&places, "shakespeare_char", &|_| {}).unwrap();
    assert_eq!(dataset.info.source, mirror);
}

#[test]
fn a_damaged_source_in_the_cache_is_fetched_again_and_one_in_the_root_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path());
    put(TINY_SHAKESPEARE, &dir.path().join("server/input.txt"));
    let in_cache = dir.path().join("cache/sources/tinyshakespeare.txt");
    put(TINY_SHAKESPEARE, &in_cache);
    let mut text = fs::read(&in_cache).unwrap();
    text[1000] ^= 1;
    fs::write(&in_cache, &text).unwrap();
    let in_root = dir.path().join("data/input.txt");
    put(in_cache.to_str().unwrap(), &in_root);

    let message = locate_in(&places, "shakespeare", &|_| {})
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("data/input.txt: expected tiny Shakespeare"),
        "{message}"
    );
    fs::remove_file(in_root).unwrap();
    let dataset = locate_in(&places, "shakespeare", &|_| {}).unwrap();
    assert_eq!(dataset.info.source_sha256, TINY_SHAKESPEARE_SHA256);
}

#[test]
fn a_prepared_dataset_is_preferred_in_the_order_of_the_places() {
    let dir = tempfile::tempdir().unwrap();
    let mut places = places(dir.path());
    places.is_root_given = true;
    let text = dir.path().join("my.text.txt");
    for (out_dir, repeats) in [("cache/datasets/my", 10), ("data", 11), ("data/my", 12)] {
        fs::write(&text, "to be or not to be ".repeat(repeats)).unwrap();
        let out_dir = dir.path().join(out_dir);
        let request = Request {
            out_dir: Some(&out_dir),
            ..request(text.to_str().unwrap())
        };
        let (made, info) = prepare_named_or_path(&request, &places, &|_| {}).unwrap();
        assert_eq!(
            (made.as_path(), info.name.as_str()),
            (out_dir.as_path(), "my.text")
        );
        assert_eq!(locate_in(&places, "my", &|_| {}).unwrap().dir, out_dir);
    }
    places.is_root_given = false;
    fs::remove_dir_all(dir.path().join("data/my")).unwrap();
    let found = locate_in(&places, "my", &|_| {}).unwrap();
    assert_eq!(found.dir, dir.path().join("cache/datasets/my"));
}

#[test]
fn what_another_version_left_in_the_cache_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path());
    let text = dir.path().join("other.txt");
    fs::write(&text, "another generator".repeat(10)).unwrap();
    for folder in ["quickstart", "quickstart-0"] {
        let out_dir = dir.path().join("cache/datasets").join(folder);
        let request = Request {
            out_dir: Some(&out_dir),
            ..request(text.to_str().unwrap())
        };
        prepare_named_or_path(&request, &places, &|_| {}).unwrap();
    }
    let dataset = locate_in(&places, "quickstart", &|_| {}).unwrap();
    assert_eq!(dataset.info.source, "generated");
}

#[test]
fn a_text_of_ones_own_is_prepared_below_the_root_and_then_found() {
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path());
    let text = dir.path().join("poem.txt");
    fs::write(&text, "to be or not to be ".repeat(100)).unwrap();
    let url = format!("file://{}?version=2", text.display());
    fs::copy(&text, dir.path().join("poem.txt?version=2")).unwrap();
    for (what, name) in [
        (text.to_str().unwrap(), None),
        (url.as_str(), Some("other")),
    ] {
        let request = Request {
            name,
            tokenizer: Some(TokenizerChoice::Gpt2),
            val_fraction: Some(0.5),
            ..request(what)
        };
        let (out_dir, info) = prepare_named_or_path(&request, &places, &|_| {}).unwrap();
        let name = name.unwrap_or("poem");
        assert_eq!(out_dir, dir.path().join("data").join(name));
        assert_eq!((info.name.as_str(), info.source.as_str()), (name, what));
        assert!(info.train_tokens.abs_diff(info.val_tokens) <= 2, "{info:?}");
        let found = locate_in(&places, name, &|_| {}).unwrap();
        assert_eq!(found.info, info);
        assert_eq!(
            Tokenizer::load(&found.dir).unwrap().unwrap().vocab_size(),
            50_257
        );
        let error = prepare_named_or_path(&request, &places, &|_| {}).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
        let again = Request {
            overwrite: true,
            ..request
        };
        prepare_named_or_path(&again, &places, &|_| {}).unwrap();
    }
    // The text behind the URL was fetched and is not kept.
    let left: Vec<_> = fs::read_dir(dir.path().join("cache/sources"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(
        sources::stem("https://example.org/a/b.c.txt?x=/y.z#w"),
        "b.c"
    );
}

#[test]
fn a_known_name_is_prepared_once_unless_it_is_to_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path());
    put(TINY_SHAKESPEARE, &dir.path().join("data/input.txt"));
    let plain = request("shakespeare_char");
    let (out_dir, info) = prepare_named_or_path(&plain, &places, &|_| {}).unwrap();
    assert_eq!(
        out_dir,
        dir.path().join("cache/datasets/shakespeare_char-1")
    );
    let none = |_| panic!("nothing is left to do");
    assert_eq!(
        prepare_named_or_path(&plain, &places, &none).unwrap(),
        (out_dir.clone(), info)
    );
    fs::write(out_dir.join(TRAIN), "damaged").unwrap();
    let overwrite = Request {
        overwrite: true,
        ..plain
    };
    prepare_named_or_path(&overwrite, &places, &|_| {}).unwrap();
    assert!(Dataset::open(&out_dir).is_ok());
}

#[test]
fn names_that_mean_nothing_and_texts_that_cannot_be_had_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut places = places(dir.path());
    let shown = |error: Error| {
        assert!(matches!(error, Error::Data(_)), "{error}");
        error
            .to_string()
            .replace(dir.path().to_str().unwrap(), "DIR")
    };
    let unknown = locate_in(&places, "shakespear", &|_| {}).unwrap_err();
    let expected = expect_test::expect![[r#"
        no dataset "shakespear"; looked for train.bin in:
          DIR/data/shakespear
          DIR/cache/datasets/shakespear
        hint: the program can make quickstart, shakespeare_char, shakespeare
        hint: a text of your own becomes one by `trainer prepare FILE --name shakespear`"#]];
    expected.assert_eq(&shown(unknown));
    let absent = prepare_named_or_path(&request("absent.txt"), &places, &|_| {}).unwrap_err();
    let expected = expect_test::expect![[r#"
        absent.txt: no such file, and no dataset of that name
        hint: the program can make quickstart, shakespeare_char, shakespeare
        hint: and from the Hugging Face hub, openwebtext, fineweb, fineweb-10B, fineweb-edu"#]];
    expected.assert_eq(&shown(absent));
    places.mirrors = vec!["ftp://example.org/t".to_owned()];
    let unfetched = locate_in(&places, "shakespeare_char", &|_| {}).unwrap_err();
    let expected = expect_test::expect![[r#"
        cannot fetch the text; tried:
          ftp://example.org/t: expected https://, http://, file:// or a path, got ftp://
          DIR/server/input.txt: No such file or directory (os error 2)
        hint: put the file at DIR/cache/sources/tinyshakespeare.txt
        hint: or set --data_dir or ANNEAL_DATA to a folder that has it as tinyshakespeare/input.txt
        hint: or name a mirror by --data_url (https://, http:// or file://)"#]];
    expected.assert_eq(&shown(unfetched));
    let url = prepare_named_or_path(&request("file:///absent.txt"), &places, &|_| {}).unwrap_err();
    let expected = expect_test::expect![[r#"
        cannot fetch the text; tried:
          file:///absent.txt: No such file or directory (os error 2)
        hint: fetch it by other means and give its path"#]];
    expected.assert_eq(&shown(url));
}

#[test]
fn a_cache_that_cannot_be_written_gives_way_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut places = places(dir.path());
    // A file where the folder should be refuses even the superuser.
    fs::write(dir.path().join("cache"), "in the way").unwrap();
    places.caches.push(dir.path().join("data"));
    let dataset = locate_in(&places, "quickstart", &|_| {}).unwrap();
    assert_eq!(dataset.dir, dir.path().join("data/datasets/quickstart-1"));
    places.caches.pop();
    places.root = dir.path().join("elsewhere");
    let error = locate_in(&places, "quickstart", &|_| {}).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error}");
}

#[test]
fn trainers_that_start_at_once_share_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path());
    put(TINY_SHAKESPEARE, &dir.path().join("server/input.txt"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let dataset = locate_in(&places, "shakespeare_char", &|_| {}).unwrap();
                assert_eq!(dataset.info.train_tokens, 1_003_854);
            });
        }
    });
}

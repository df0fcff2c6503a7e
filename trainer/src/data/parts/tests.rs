//! Names of files, and the parts that they are.

use super::*;

/// A folder with empty files of these names.
fn folder(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        fs::write(folder.path().join(name), "").unwrap();
    }
    folder
}

/// The names of training and of validation, and whether headers are asked for.
fn names(parts: &Parts) -> (Vec<String>, Vec<String>, bool) {
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let all = |paths: &[PathBuf]| paths.iter().map(name).collect();
    (all(&parts.train), all(&parts.val), parts.needs_header)
}

fn expect(parts: &Parts, train: &[&str], val: &[&str], needs_header: bool) {
    let owned = |names: &[&str]| -> Vec<String> { names.iter().map(|n| (*n).to_owned()).collect() };
    assert_eq!(names(parts), (owned(train), owned(val), needs_header));
}

#[test]
fn a_name_may_be_a_path() {
    for name in [
        "a/b",
        "./a",
        "/a",
        "x.bin",
        "shard_*.bin",
        "shard_?",
        "x[12].bin",
    ] {
        assert!(is_path(name), "{name}");
    }
    for name in ["shakespeare", "fineweb-10B", "data.v2", "binary"] {
        assert!(!is_path(name), "{name}");
    }
}

#[test]
fn folders_are_told_by_their_files() {
    for (files, train, val, needs_header) in [
        (
            &["train.bin", "val.bin", "x_1.bin"][..],
            &["train.bin"][..],
            &["val.bin"][..],
            false,
        ),
        // Whatever is missed of nanoGPT's is named.
        (&["train.bin"], &["train.bin"], &["val.bin"], false),
        (&["val.bin", "x.bin"], &["train.bin"], &["val.bin"], false),
        (&["input.txt"], &["train.bin"], &["val.bin"], false),
        (
            &[
                "f_train_02.bin",
                "f_train_01.bin",
                "f_val_00.bin",
                "constrain.bin",
            ],
            &["f_train_01.bin", "f_train_02.bin"],
            &["f_val_00.bin"],
            false,
        ),
        (
            &["f_train_01.bin", "a.bin"],
            &["f_train_01.bin"],
            &[],
            false,
        ),
        (
            &["b.bin", "a.bin", "valid.bin", "notes.txt"],
            &["a.bin", "b.bin"],
            &["valid.bin"],
            true,
        ),
        (&["retrieval_train.txt", "a.bin"], &["a.bin"], &[], true),
    ] {
        let folder = folder(files);
        expect(&of_folder(folder.path()).unwrap(), train, val, needs_header);
    }
}

#[test]
fn a_file_or_a_glob_is_divided_by_names() {
    let folder = folder(&[
        "s_1.bin",
        "s_2.bin",
        "s_val.bin",
        "interval_train.bin",
        "s_3.txt",
    ]);
    let at = |name: &str| folder.path().join(name).display().to_string();
    let one = of_path(&at("s_1.bin")).unwrap().unwrap();
    expect(&one, &["s_1.bin"], &[], true);
    let glob = of_path(&at("s_*")).unwrap().unwrap();
    expect(&glob, &["s_1.bin", "s_2.bin"], &["s_val.bin"], true);
    let odd = of_path(&at("interval_train.bin")).unwrap().unwrap();
    expect(&odd, &["interval_train.bin"], &[], true);
    assert_eq!(of_path(&at("absent.bin")).unwrap(), None);
    assert_eq!(of_path(&at("")).unwrap(), None);
    for (what, expected) in [
        ("s_val.bin", "expected tokens to train on, got "),
        (
            "t_*.bin",
            "expected token files that end in .bin, got none that match",
        ),
        ("s_[.bin", "expected a glob, got "),
    ] {
        let message = of_path(&at(what)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

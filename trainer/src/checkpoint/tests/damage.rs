//! Damaged checkpoints are told apart from whole ones, named, and passed over.

use std::collections::HashMap;

use protocol::{FileEntry, Manifest};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::*;

const FILES: [&str; 5] = [
    RunDir::MODEL,
    RunDir::OPTIMIZER,
    RunDir::STATE,
    RunDir::VOCAB,
    RunDir::MANIFEST,
];

fn message(result: Result<Loaded>) -> String {
    let error = result.expect_err("damage was not noticed");
    assert_eq!(error.exit_code(), Some(ExitCode::Data), "{error}");
    error.to_string()
}

#[test]
fn any_flipped_bit_is_noticed() {
    let (_folder, run) = run();
    let mut snapshot = snapshot(5, 1);
    snapshot.val_loss = Some(1.25);
    save(&run, 1, &snapshot);
    let folder = run.checkpoint(5);
    let whole = load(&folder).unwrap();
    for file in FILES {
        let path = folder.join(file);
        let bytes = fs::read(&path).unwrap();
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1 << (position % 8);
            fs::write(&path, &flipped).unwrap();
            match load(&folder) {
                // The time in the manifest is for people; nothing follows from it.
                Ok(mut loaded) if file == RunDir::MANIFEST => {
                    loaded.manifest.time.clone_from(&whole.manifest.time);
                    assert_eq!(loaded, whole, "{file}, byte {position}");
                }
                result => {
                    let message = message(result);
                    if file != RunDir::MANIFEST {
                        let name = format!("is damaged: {file}: sha256 expected ");
                        assert!(message.contains(&name), "{position}: {message}");
                    }
                }
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(load(&folder).unwrap(), whole);
}

#[test]
fn a_file_cut_short_grown_or_gone_is_named() {
    let (_folder, run) = run();
    save(&run, 1, &snapshot(5, 1));
    let folder = run.checkpoint(5);
    for file in FILES {
        let path = folder.join(file);
        let bytes = fs::read(&path).unwrap();
        let named = format!("is damaged: {file}: ");
        let longer = [bytes.as_slice(), b"x"].concat();
        for contents in [&bytes[..0], &bytes[..bytes.len() - 1], &longer] {
            fs::write(&path, contents).unwrap();
            let message = message(load(&folder));
            assert!(message.contains(&named), "{message}");
            let listed = list(&run).unwrap();
            assert!(listed[0].manifest.is_err(), "seen without reading it all");
            if file != RunDir::MANIFEST {
                let sizes = format!("bytes expected {} got {}", bytes.len(), contents.len());
                assert!(message.contains(&sizes), "{message}");
            }
        }
        fs::remove_file(&path).unwrap();
        let message = message(load(&folder));
        assert!(
            message.ends_with(&format!("{named}is missing")),
            "{message}"
        );
        fs::write(&path, &bytes).unwrap();
    }
    assert!(load(&folder).is_ok());
}

/// Puts other contents under a file's name, with size and checksum as they should be.
fn reseal(folder: &Path, file: &str, contents: &[u8]) {
    let entry = files::write_file(&folder.join(file), contents).unwrap();
    edit_manifest(folder, |manifest| {
        manifest.files.insert(file.to_owned(), entry);
    });
}

fn edit_manifest(folder: &Path, edit: impl FnOnce(&mut Manifest)) {
    let path = folder.join(RunDir::MANIFEST);
    let mut manifest = Manifest::parse(&fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut manifest);
    fs::write(&path, manifest.to_json()).unwrap();
}

type Tensors = HashMap<String, (Dtype, Vec<usize>)>;
type EditTensors = fn(&mut Tensors, &mut HashMap<String, String>);

/// File, what is done to its tensors or metadata, and how the error ends.
const UNFIT: [(&str, EditTensors, &str); 9] = [
    (
        RunDir::MODEL,
        |tensors, _| tensors.get_mut("lm_head.bias").unwrap().0 = Dtype::BF16,
        "tensor lm_head.bias: dtype expected F32 got BF16",
    ),
    (
        RunDir::MODEL,
        |tensors, _| tensors.get_mut("lm_head.bias").unwrap().1 = vec![6],
        "tensor exp_avg.lm_head.bias: expected the parameter's shape [6], got [7]",
    ),
    (
        RunDir::MODEL,
        |tensors, _| drop(tensors.remove("lm_head.bias")),
        "tensor exp_avg.lm_head.bias belongs to no parameter",
    ),
    (
        RunDir::MODEL,
        |_, metadata| drop(metadata.insert("step".to_owned(), "6".to_owned())),
        "step expected 5 got 6",
    ),
    (
        RunDir::OPTIMIZER,
        |tensors, _| drop(tensors.remove("exp_avg_sq.lm_head.bias")),
        "tensor exp_avg_sq.lm_head.bias is missing",
    ),
    (
        RunDir::OPTIMIZER,
        |tensors, _| {
            let shape = vec![28];
            tensors.get_mut("exp_avg.transformer.wte.weight").unwrap().1 = shape;
        },
        "wte.weight: expected the parameter's shape [7, 4], got [28]",
    ),
    (
        RunDir::OPTIMIZER,
        |tensors, _| drop(tensors.insert("extra".to_owned(), (Dtype::F32, vec![1]))),
        "tensor extra belongs to no parameter",
    ),
    (
        RunDir::OPTIMIZER,
        |_, metadata| drop(metadata.remove("updates")),
        "metadata has no updates",
    ),
    (
        RunDir::OPTIMIZER,
        |_, metadata| drop(metadata.insert("updates".to_owned(), "-1".to_owned())),
        "metadata updates: expected a number, got \"-1\"",
    ),
];

#[test]
fn tensors_that_do_not_fit_are_named_even_under_a_right_checksum() {
    for (file, edit, expected) in UNFIT {
        let (_folder, run) = run();
        save(&run, 1, &snapshot(5, 1));
        let folder = run.checkpoint(5);
        let bytes = fs::read(folder.join(file)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let mut metadata = header.metadata().clone().unwrap();
        let about = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            (name, (info.dtype, info.shape.clone()))
        };
        let mut tensors: Tensors = header.tensors().into_iter().map(about).collect();
        edit(&mut tensors, &mut metadata);
        let zeros = [0; 1000];
        let views = tensors.into_iter().map(|(name, (dtype, shape))| {
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (
                name,
                TensorView::new(dtype, shape, &zeros[..bytes]).unwrap(),
            )
        });
        let contents = safetensors::serialize(views, Some(metadata)).unwrap();
        reseal(&folder, file, &contents);
        let message = message(load(&folder));
        assert!(message.ends_with(expected), "{message}\nnot {expected}");
    }
}

#[test]
fn contents_that_do_not_parse_are_named_even_under_a_right_checksum() {
    for (file, contents) in [
        (RunDir::MODEL, "not a safetensors file"),
        (RunDir::OPTIMIZER, "\u{8}\0\0\0\0\0\0\0{\"a\": 1}"),
        (RunDir::STATE, "{}"),
    ] {
        let (_folder, run) = run();
        save(&run, 1, &snapshot(5, 1));
        reseal(&run.checkpoint(5), file, contents.as_bytes());
        let message = message(load(&run.checkpoint(5)));
        assert!(message.contains(&format!("damaged: {file}: ")), "{message}");
    }
}

#[test]
fn a_manifest_that_disagrees_is_refused() {
    let entry = || FileEntry {
        bytes: 0,
        sha256: String::new(),
    };
    type Edit = Box<dyn Fn(&mut Manifest)>;
    let cases: [(Edit, &str); 6] = [
        (
            Box::new(|manifest| manifest.step = 6),
            "manifest.json: step expected 5 got 6",
        ),
        (
            Box::new(|manifest| manifest.val_loss = Some(0.5)),
            "manifest.json: val_loss expected none got 0.5",
        ),
        (
            Box::new(|manifest| manifest.config_hash.clear()),
            "manifest.json: config_hash expected c0ffee got ",
        ),
        (
            Box::new(|manifest| manifest.format_version = 2),
            "cannot be read: manifest.json: checkpoint format 2 is newer than this program's 1",
        ),
        (
            Box::new(|manifest| drop(manifest.files.remove(RunDir::OPTIMIZER))),
            "manifest.json: optimizer.safetensors is not listed",
        ),
        (
            Box::new(move |manifest| drop(manifest.files.insert("../lock".to_owned(), entry()))),
            "manifest.json: unknown file \"../lock\"",
        ),
    ];
    for (edit, expected) in cases {
        let (_folder, run) = run();
        save(&run, 1, &snapshot(5, 1));
        edit_manifest(&run.checkpoint(5), edit);
        let message = message(load(&run.checkpoint(5)));
        assert!(message.ends_with(expected), "{message}\nnot {expected}");
    }
}

fn flip_last_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_newest_that_verifies_is_loaded_and_the_others_are_told() {
    let (_folder, run) = run();
    let load = || {
        let mut warnings = Vec::new();
        let loaded = load_newest(&run, &mut |warning| warnings.push(warning));
        (loaded, warnings)
    };
    assert!(matches!(load().0, Ok(None)), "no folder");
    for step in [10, 20, 30] {
        save(&run, 5, &snapshot(step, 1));
    }
    // Names that are not ours, and what is under construction.
    for other in [
        "latest",
        "step_5",
        "step_00000000040",
        ".tmp-step_0000000050-1",
    ] {
        fs::create_dir(run.checkpoints().join(other)).unwrap();
    }
    assert_eq!(newest(&run).unwrap().state.step, 30);

    flip_last_byte(&run.checkpoint(30).join(RunDir::OPTIMIZER));
    fs::remove_file(run.checkpoint(20).join(RunDir::MANIFEST)).unwrap();
    let (loaded, warnings) = load();
    assert!(is_same(&loaded.unwrap().unwrap(), &snapshot(10, 1)));
    let [sha256, manifest] = warnings.as_slice() else {
        panic!("{warnings:?}");
    };
    let place = |step| run.checkpoint(step).display().to_string();
    let start = format!(
        "checkpoint {} is damaged: optimizer.safetensors: sha256 expected ",
        place(30)
    );
    assert!(sha256.starts_with(&start), "{sha256}");
    assert!(sha256.ends_with("; trying the one before"), "{sha256}");
    let expected = "is damaged: manifest.json: is missing; trying the one before";
    assert_eq!(*manifest, format!("checkpoint {} {expected}", place(20)));

    // Sampling does not look at the optimizer.
    let model = load_newest_model(&run, &mut |warning| panic!("{warning}"));
    assert_eq!(model.unwrap().unwrap().state.step, 30);

    flip_last_byte(&run.checkpoint(10).join(RunDir::MODEL));
    let (loaded, warnings) = load();
    assert_eq!(warnings.len(), 3);
    assert!(!warnings[2].contains("before"), "{warnings:?}");
    let error = loaded.unwrap_err();
    assert_eq!(error.exit_code(), Some(ExitCode::Data));
    assert!(
        error
            .to_string()
            .starts_with("none of the 3 checkpoints in ")
    );
}

#[test]
fn a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one() {
    let (_folder, run) = run();
    fs::create_dir_all(run.root()).unwrap();
    fs::write(run.checkpoints(), "").unwrap();
    let error = load_newest(&run, &mut |_| {}).unwrap_err();
    assert_eq!(error.exit_code(), Some(ExitCode::Data));
}

//! The file of choices: kept, read again, and not believed where it is broken or of another
//! machine. Ways are timed on the emulator, where the times mean nothing.

use half::bf16;
use kernels::cuda::{Device, Schedule};
use tempfile::TempDir;

use super::*;
use crate::engine::cuda::memory::layout;
use crate::engine::cuda::plans::plans;
use crate::engine::{Recompute, Shape};
use crate::model::{Gelu, ModelConfig};

fn model() -> ModelConfig {
    ModelConfig {
        n_layer: 1,
        n_head: 1,
        n_embd: 16,
        block_size: 8,
        vocab_size: 40,
        bias: true,
        gelu: Gelu::Tanh,
    }
}

fn selection(folder: &TempDir) -> Selection {
    Selection {
        mode: Mode::Auto,
        tf32: true,
        folders: vec![folder.path().to_owned()],
        pick: Some(Pick::FastestOfLibrary),
    }
}

fn selected<T: Precision>(selection: &Selection) -> Selected<T> {
    let device = Device::emulator(Schedule::default());
    let model = model();
    let shape = Shape {
        batch_size: 1,
        block_size: 8,
        recompute: Recompute::None,
    };
    let [training, evaluation, _] = plans::<T>(&model, false, shape);
    select(
        &device,
        selection,
        &[&training, &evaluation],
        &layout(&model),
    )
    .unwrap()
}

/// The one file below the folder.
fn file(folder: &TempDir) -> PathBuf {
    let mut files = fs::read_dir(folder.path().join("autotune")).unwrap();
    let path = files.next().unwrap().unwrap().path();
    assert!(
        files.next().is_none(),
        "nothing is left over beside {}",
        path.display()
    );
    path
}

fn is_timed(selected: &[String]) -> bool {
    selected.iter().any(|note| note.contains(" timed"))
}

#[test]
fn choices_are_kept_and_taken_again_to_the_bit() {
    let folder = TempDir::new().unwrap();
    let first = selected::<bf16>(&selection(&folder));
    assert!(is_timed(&first.notes), "{:?}", first.notes);
    // Four weights and the head: forward and both gradients, of which two are of the same sizes;
    // GELU's forward again without `pre`.
    assert_eq!(first.choices.len(), 3 * 5, "{:#?}", first.table());
    let text = fs::read_to_string(file(&folder)).unwrap();
    let again = selected::<bf16>(&selection(&folder));
    assert!(!is_timed(&again.notes), "{:?}", again.notes);
    assert_eq!(again.choices, first.choices);
    assert_eq!(fs::read_to_string(file(&folder)).unwrap(), text);
    for (task, measured) in &again.choices {
        assert_eq!(again.products.way(task), measured.way);
        assert!(matches!(measured.way, Way::Library { .. }), "{task:?}");
    }
    // Another type's are added to the same file.
    let other = selected::<f32>(&selection(&folder));
    assert!(is_timed(&other.notes));
    assert!(!is_timed(&selected::<bf16>(&selection(&folder)).notes));
    assert!(!is_timed(&selected::<f32>(&selection(&folder)).notes));
    let full = Selection {
        tf32: false,
        ..selection(&folder)
    };
    assert!(
        is_timed(&selected::<f32>(&full).notes),
        "TF32's are not full fp32's"
    );
}

#[test]
fn a_broken_or_foreign_file_is_told_and_made_anew() {
    let folder = TempDir::new().unwrap();
    selected::<bf16>(&selection(&folder));
    let (path, whole) = (file(&folder), fs::read_to_string(file(&folder)).unwrap());
    for (from, to, expected) in [
        ("{", "", "not a file of choices"),
        ("\"driver\": 0", "\"driver\": 12080", "driver: 12080"),
        ("\"format\": 1", "\"format\": 2", "format: 2"),
        ("\"kernels\": 0", "\"kernels\": 5", "kernels: 5"),
    ] {
        let text = whole.replacen(from, to, 1);
        assert_ne!(text, whole, "{from}");
        fs::write(&path, text).unwrap();
        let notes = selected::<bf16>(&selection(&folder)).notes;
        let told = notes.iter().find(|note| note.contains(expected));
        assert!(
            told.is_some_and(|note| note.ends_with("timed again")),
            "{notes:?}"
        );
        assert!(is_timed(&notes));
        assert!(
            !is_timed(&selected::<bf16>(&selection(&folder)).notes),
            "it was replaced"
        );
    }
    // A single choice that the library does not know is timed again alone.
    let begin = whole.find("\"algorithm\": \"").unwrap() + "\"algorithm\": \"".len();
    for wrong in ["00".repeat(64), "xy".to_owned()] {
        let text = [&whole[..begin], &*wrong, &whole[begin + 128..]].concat();
        fs::write(&path, text).unwrap();
        let notes = selected::<bf16>(&selection(&folder)).notes;
        assert!(
            notes.iter().any(|note| note.contains("products: 1 timed")),
            "{notes:?}"
        );
    }
}

#[test]
fn without_a_folder_products_are_timed_every_time() {
    let selection = Selection {
        folders: Vec::new(),
        ..selection(&TempDir::new().unwrap())
    };
    let notes = selected::<bf16>(&selection).notes;
    let told = |note: &String| note.contains("cannot be kept: there is no folder for it");
    assert!(notes.iter().any(told), "{notes:?}");
}

#[test]
fn notes_say_who_computes() {
    let folder = TempDir::new().unwrap();
    let own = selected::<f32>(&Selection::off());
    assert_eq!(own.notes, ["products: the program's own kernels"]);
    assert!(own.table().is_empty() && own.products.library().is_none());
    // On the emulator `auto` times nothing.
    let auto = Selection {
        pick: None,
        ..selection(&folder)
    };
    assert_eq!(selected::<f32>(&auto).notes, own.notes);
    let on = selected::<f32>(&Selection {
        mode: Mode::On,
        ..auto
    });
    assert!(
        on.notes[0].starts_with("products: cuBLASLt 12.0.0 ("),
        "{:?}",
        on.notes
    );
    assert!(on.notes[0].ends_with("for 15 of 15"), "{:?}", on.notes);
    assert!(
        on.notes[1].starts_with("tf32: cuBLASLt rounds"),
        "{:?}",
        on.notes
    );
    let table = on.table();
    let line = table
        .iter()
        .find(|line| line.contains("backward weight bias m=8 k=16 n=48"));
    let line = line.unwrap_or_else(|| panic!("{table:#?}"));
    assert!(
        line.contains("cuBLASLt, algorithm 1, tile 20, stages 0, splits 1: not timed"),
        "{line}"
    );
    assert!(
        selected::<bf16>(&selection(&folder))
            .notes
            .iter()
            .all(|note| !note.contains("tf32"))
    );
}

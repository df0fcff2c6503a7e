//! Batches are pure, fair and separate. Each token here is its own position, so that a window shows
//! where it was cut.

use std::collections::{BTreeSet, HashSet};

use super::super::dataset::{DatasetInfo, TRAIN, VAL, write_info};
use super::super::token_file::TokenWriter;
use super::*;

const VOCAB_SIZE: usize = 60_000;

fn dataset(train_tokens: u32, val_tokens: u32) -> (tempfile::TempDir, Arc<Dataset>) {
    let folder = tempfile::tempdir().unwrap();
    for (name, tokens) in [(TRAIN, train_tokens), (VAL, val_tokens)] {
        let mut writer = TokenWriter::create(&folder.path().join(name), VOCAB_SIZE).unwrap();
        writer.write(&(0..tokens).collect::<Vec<_>>()).unwrap();
        writer.finish().unwrap();
    }
    let info = DatasetInfo {
        format_version: 1,
        name: "positions".to_owned(),
        tokenizer: "gpt2".to_owned(),
        vocab_size: VOCAB_SIZE,
        train_tokens: train_tokens.into(),
        val_tokens: val_tokens.into(),
        source: "generated".to_owned(),
        source_sha256: String::new(),
        entropy_per_token: None,
    };
    write_info(folder.path(), &info).unwrap();
    let dataset = Arc::new(Dataset::open(folder.path()).unwrap());
    (folder, dataset)
}

/// Starts of a batch's windows, after a check that each is a window and has its targets.
fn starts(batch: &Batch) -> Vec<usize> {
    let (b, t) = (batch.batch_size, batch.block_size);
    assert_eq!((batch.inputs.len(), batch.targets.len()), (b * t, b * t));
    let rows = batch.inputs.chunks(t).zip(batch.targets.chunks(t));
    rows.map(|(inputs, targets)| {
        for (place, (input, target)) in inputs.iter().zip(targets).enumerate() {
            assert_eq!(*input as usize, inputs[0] as usize + place);
            assert_eq!(*target, *input + 1);
        }
        inputs[0] as usize
    })
    .collect()
}

#[test]
fn a_batch_depends_on_its_arguments_alone() {
    let (_folder, dataset) = dataset(5_000, 500);
    for sampling in [Sampling::Random, Sampling::Epoch] {
        let make = |seed| Loader::new(dataset.clone(), 4, 16, 3, sampling, seed).unwrap();
        let forward = make(7);
        let calls: Vec<(u64, u64)> = (0..20).flat_map(|s| (0..3).map(move |m| (s, m))).collect();
        let batches: Vec<Batch> = calls.iter().map(|(s, m)| forward.batch(*s, *m)).collect();
        let backward = make(7);
        for ((step, micro), batch) in calls.iter().zip(&batches).rev() {
            assert_eq!(
                &backward.batch(*step, *micro),
                batch,
                "{sampling:?} {step} {micro}"
            );
        }
        let distinct: HashSet<Vec<usize>> = batches.iter().map(starts).collect();
        assert_eq!(distinct.len(), batches.len(), "{sampling:?}");
        assert_ne!(make(8).batch(0, 0), batches[0], "{sampling:?}");
        assert_ne!(make(7 + (1 << 32)).batch(0, 0), batches[0], "{sampling:?}");
        // Steps that agree in their low 32 bits are still different steps.
        assert_ne!(forward.batch(1 << 32, 0), batches[0], "{sampling:?}");
    }
}

#[test]
fn random_starts_cover_the_range_uniformly() {
    let (_folder, dataset) = dataset(1_016, 500);
    // 1,000 possible starts, as nanoGPT's randint(len - block_size).
    let loader = Loader::new(dataset, 50, 16, 2, Sampling::Random, 1).unwrap();
    let mut counts = vec![0u32; 1_000];
    for step in 0..1_000 {
        for micro in 0..2 {
            for start in starts(&loader.batch(step, micro)) {
                counts[start] += 1;
            }
        }
    }
    let expected = 100_000.0 / 1_000.0;
    let chi_square: f64 = counts
        .iter()
        .map(|count| (f64::from(*count) - expected).powi(2) / expected)
        .sum();
    // 999 degrees of freedom: mean 999, standard deviation 44.7; five of them either way.
    assert!((775.0..1_223.0).contains(&chi_square), "{chi_square}");
}

#[test]
fn an_epoch_visits_each_window_once() {
    for tokens in [17u32, 32, 33, 34, 48, 49, 50, 65, 1_000, 4_097] {
        let (_folder, dataset) = dataset(tokens, 500);
        let loader = Loader::new(dataset, 1, 16, 2, Sampling::Epoch, 3).unwrap();
        let windows = ((tokens as u64 - 1) / 16).saturating_sub(1).max(1);
        let mut shifts = BTreeSet::new();
        let mut orders = HashSet::new();
        for epoch in 0..20 {
            let samples = epoch * windows..(epoch + 1) * windows;
            let order: Vec<usize> = samples
                .map(|sample| starts(&loader.batch(sample / 2, sample % 2))[0])
                .collect();
            let shift = order.iter().min().unwrap();
            let visited: BTreeSet<usize> = order.iter().copied().collect();
            let cut: BTreeSet<usize> = (0..windows as usize).map(|w| shift + w * 16).collect();
            assert_eq!(visited, cut, "{tokens} tokens, epoch {epoch}");
            assert_eq!(order.len(), visited.len(), "{tokens} tokens, epoch {epoch}");
            shifts.insert(*shift);
            orders.insert(order);
        }
        if tokens == 17 {
            assert_eq!(shifts.len(), 1, "a text of one window cannot be shifted");
        }
        if tokens >= 1_000 {
            assert_eq!(
                orders.len(),
                20,
                "{tokens} tokens: epochs repeat their order"
            );
            assert!(shifts.len() > 8, "{tokens} tokens: shifts {shifts:?}");
        }
    }
}

#[test]
fn epochs_reach_every_token() {
    let (_folder, dataset) = dataset(100, 500);
    let loader = Loader::new(dataset, 5, 16, 1, Sampling::Epoch, 3).unwrap();
    let mut seen = BTreeSet::new();
    for step in 0..500 {
        let batch = loader.batch(step, 0);
        seen.extend(batch.inputs);
        seen.extend(batch.targets);
    }
    assert_eq!(seen, (0..100).collect());
}

#[test]
fn epoch_order_is_shuffled() {
    // A permutation without structure: neighbours end up a third of the range apart on average,
    // with a standard deviation of 0.24 / sqrt(n).
    let philox = Philox::new(5, Stream::TrainData);
    for count in [1_000u64, 1_024, 1_025, 100_000] {
        let places: Vec<f64> = (0..count)
            .map(|index| permute(&philox, 9, index, count) as f64 / count as f64)
            .collect();
        let steps = places.windows(2).map(|pair| (pair[1] - pair[0]).abs());
        let mean = steps.sum::<f64>() / (count - 1) as f64;
        assert!((mean - 1.0 / 3.0).abs() < 0.05, "{count}: {mean}");
        let fixed = (0..count).filter(|i| permute(&philox, 9, *i, count) == *i);
        assert!(fixed.count() < 10, "{count}");
    }
}

#[test]
fn micro_batches_of_a_step_follow_each_other() {
    let (_folder, dataset) = dataset(5_000, 500);
    let whole = Loader::new(dataset.clone(), 12, 16, 1, Sampling::Epoch, 3).unwrap();
    let parts = Loader::new(dataset, 4, 16, 3, Sampling::Epoch, 3).unwrap();
    for step in 0..60 {
        let joined: Vec<usize> = (0..3).flat_map(|m| starts(&parts.batch(step, m))).collect();
        assert_eq!(starts(&whole.batch(step, 0)), joined);
    }
}

#[test]
fn evaluation_has_its_own_fixed_windows() {
    let (_folder, dataset) = dataset(5_000, 500);
    let make = |sampling, seed| Loader::new(dataset.clone(), 4, 16, 1, sampling, seed).unwrap();
    let loader = make(Sampling::Random, 1);
    let look = |loader: &Loader, split| -> Vec<Batch> { loader.eval_batches(split, 10).collect() };
    let train = loader.batch(3, 0);
    let first = look(&loader, Split::Val);
    assert_eq!(first.len(), 10);
    assert_eq!(loader.batch(3, 0), train);
    assert_eq!(look(&loader, Split::Val), first);
    assert_eq!(look(&make(Sampling::Epoch, 2), Split::Val), first);
    assert_ne!(look(&loader, Split::Train), first);
}

#[test]
fn evaluation_windows_are_stratified() {
    let (_folder, dataset) = dataset(5_016, 516);
    let loader = Loader::new(dataset, 4, 16, 1, Sampling::Random, 1).unwrap();
    for (split, starts_of_split) in [(Split::Train, 5_000), (Split::Val, 500)] {
        let found: Vec<usize> = loader
            .eval_batches(split, 25)
            .flat_map(|batch| starts(&batch))
            .collect();
        let stratum = starts_of_split / 100;
        for (index, start) in found.iter().enumerate() {
            assert_eq!(start / stratum, index, "{split:?}");
        }
        let places: HashSet<usize> = found.iter().map(|start| start % stratum).collect();
        assert!(
            places.len() > 3,
            "{split:?}: every window at the same place of its stratum"
        );
    }
}

#[test]
fn evaluation_may_ask_for_more_windows_than_there_are() {
    let (_folder, dataset) = dataset(500, 17);
    let loader = Loader::new(dataset.clone(), 4, 16, 1, Sampling::Random, 1).unwrap();
    for batch in loader.eval_batches(Split::Val, 200) {
        assert_eq!(starts(&batch), [0; 4]);
    }
    let all: BTreeSet<usize> = loader
        .eval_batches(Split::Train, 2_000)
        .flat_map(|batch| starts(&batch))
        .collect();
    assert_eq!(all, (0..484).collect());
}

#[test]
fn a_split_shorter_than_a_window_is_refused() {
    for (train_tokens, val_tokens, name) in [(16, 500, TRAIN), (500, 16, VAL)] {
        let (_folder, dataset) = dataset(train_tokens, val_tokens);
        let path = dataset.dir.join(name);
        let result = Loader::new(dataset, 4, 16, 1, Sampling::Random, 1);
        let Err(Error::Data(message)) = result else {
            panic!("expected a data error");
        };
        let expected = format!(
            "{}: expected at least 17 tokens (block_size 16 and one target), got 16\n\
             hint: set block_size to at most 15, or use more text",
            path.display()
        );
        assert_eq!(message, expected);
    }
}

#[test]
fn sampling_is_read_from_the_config_s_words() {
    assert_eq!("random".parse::<Sampling>().unwrap(), Sampling::Random);
    assert_eq!("epoch".parse::<Sampling>().unwrap(), Sampling::Epoch);
    let message = "epochs".parse::<Sampling>().unwrap_err().to_string();
    assert_eq!(
        message,
        "sampling: expected `random` or `epoch`, got `epochs`"
    );
}

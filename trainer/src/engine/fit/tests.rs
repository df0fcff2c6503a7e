//! What is refused, what is proposed instead, and which batch size is chosen.

use super::*;
use protocol::ExitCode;

/// GPT-2 124M.
fn gpt2() -> ModelConfig {
    ModelConfig {
        n_layer: 12,
        n_head: 12,
        n_embd: 768,
        block_size: 1024,
        vocab_size: 50304,
        bias: false,
        gelu: crate::model::Gelu::Erf,
    }
}

const SHAPE: Shape = Shape {
    batch_size: 16,
    block_size: 1024,
    recompute: Recompute::Gelu,
};

fn needs<'a>(model: &'a ModelConfig, place: &Place) -> Needs<'a> {
    let config = Config::default();
    Needs::of(place, &config, model).unwrap().unwrap()
}

fn gpu() -> Place {
    let schedule = kernels::cuda::Schedule::default();
    Place::Gpu(kernels::cuda::Device::emulator(schedule))
}

#[test]
fn a_run_that_does_not_fit_is_refused_with_a_batch_size_that_does() {
    let model = gpt2();
    for place in [Place::Cpu, gpu()] {
        let needed = |batch_size, recompute| {
            let shape = Shape {
                batch_size,
                recompute,
                ..SHAPE
            };
            needs(&model, &place).memory(shape).total()
        };
        let check = |available| needs(&model, &place).with_available(available).check(SHAPE);
        let refusal = |available| {
            let error = check(available).unwrap_err();
            assert_eq!(error.exit_code(), Some(ExitCode::Config));
            error.to_string()
        };
        assert!(check(needed(16, Recompute::Gelu)).is_ok());
        for (available, expected) in [
            (
                needed(16, Recompute::Gelu) - 1,
                "hint: --recompute=block fits",
            ),
            (needed(2, Recompute::Gelu), "hint: --batch_size=2 fits"),
            (
                needed(1, Recompute::Block),
                "--batch_size=1 --recompute=block fits",
            ),
            (1 << 30, "a smaller model"),
        ] {
            let text = refusal(available);
            assert!(text.contains(expected), "{place:?}: {text}");
        }
    }
}

#[test]
fn an_automatic_batch_divides_the_sequences_of_a_step_and_fills_a_gpu() {
    let model = gpt2();
    // With memory for so many sequences and the part that is left free.
    let chosen = |place: &Place, batch_size, of: u64, part: u64| {
        let shape = Shape {
            batch_size,
            ..SHAPE
        };
        let enough = needs(&model, place).memory(shape).total() / part * of + of;
        let needs = needs(&model, place).with_available(enough);
        needs.batch_size(SHAPE, 480)
    };
    // 25 would fit; 24 divides 480.
    assert_eq!(chosen(&gpu(), 25, 20, 19), Some(24));
    assert_eq!(chosen(&gpu(), 1000, 20, 19), Some(480));
    assert_eq!(chosen(&Place::Cpu, 25, 4, 3), Some(16));
    assert_eq!(chosen(&Place::Cpu, 7, 4, 3), Some(6));
    let nothing = needs(&model, &gpu()).with_available(1 << 20);
    assert_eq!(nothing.batch_size(SHAPE, 480), None);
}

#[test]
fn backward_computes_again_what_memory_asks_for() {
    let model = gpt2();
    let chosen = |key: &str, available| {
        let words = ["--batch_size=16".to_owned(), format!("--recompute={key}")];
        let config = Config::resolve(None, &words).unwrap().config;
        let needs = needs(&model, &Place::Cpu).with_available(available);
        needs.shape(&config).recompute
    };
    let enough = |recompute| {
        let shape = Shape { recompute, ..SHAPE };
        needs(&model, &Place::Cpu).memory(shape).total() / 3 * 4 + 8
    };
    let (none, gelu) = (enough(Recompute::None), enough(Recompute::Gelu));
    assert_eq!(chosen("auto", none), Recompute::None);
    assert_eq!(chosen("auto", none - 64), Recompute::Gelu);
    assert_eq!(chosen("auto", gelu), Recompute::Gelu);
    assert_eq!(chosen("auto", gelu - 64), Recompute::Block);
    assert_eq!(chosen("none", 8), Recompute::None);
    assert_eq!(chosen("gelu", none), Recompute::Gelu);
    assert_eq!(chosen("block", none), Recompute::Block);
}

#[test]
fn an_automatic_batch_keeps_the_tokens_of_a_step() {
    let words: Vec<String> = [
        "--batch_size=12",
        "--gradient_accumulation_steps=40",
        "--batch_size=auto",
        "--device=cpu",
        "--n_layer=2",
        "--n_embd=32",
        "--n_head=2",
    ]
    .map(str::to_owned)
    .into();
    let config = Config::resolve(None, &words).unwrap().config;
    assert!(config.fit_batch && config.batch_size == 12);
    let small = ModelConfig {
        n_layer: 2,
        n_head: 2,
        n_embd: 32,
        ..gpt2()
    };
    let fitted = fitted(&gpu(), &config, &small, 0).unwrap();
    assert!(fitted.batch_size > 12, "{}", fitted.batch_size);
    assert_eq!(fitted.tokens_per_iteration(), config.tokens_per_iteration());
    let again = Config::from_toml_str(&fitted.to_toml()).unwrap();
    assert_eq!(again, fitted, "a resumed run may fit another device");
    let fixed = Config {
        fit_batch: false,
        ..config
    };
    assert_eq!(super::fitted(&gpu(), &fixed, &small, 0).unwrap(), fixed);
}

#[test]
fn more_micro_steps_than_can_be_counted_are_refused() {
    // Memory for a batch of 1 alone.
    let words: Vec<String> = ["--batch_size=2", "--gradient_accumulation_steps=40000"]
        .map(str::to_owned)
        .into();
    let config = Config::resolve(None, &words).unwrap().config;
    let (config, model) = (
        Config {
            fit_batch: true,
            ..config
        },
        gpt2(),
    );
    let needs = needs(&model, &gpu());
    let shape = |batch_size| Shape {
        batch_size,
        block_size: config.block_size,
        recompute: Recompute::Block,
    };
    let one = needs.memory(shape(1)).total();
    let needs = needs.with_available(one / 19 * 20 + 20);
    let refused = needs.fitted(&config).unwrap_err().to_string();
    assert!(
        refused.contains("80000") && refused.contains("65536"),
        "{refused}"
    );
    let fewer = Config {
        gradient_accumulation_steps: 30_000,
        ..config
    };
    assert_eq!(
        needs.fitted(&fewer).unwrap().gradient_accumulation_steps,
        60_000
    );
}

#[test]
fn a_dataset_that_is_kept_leaves_less_for_the_batch() {
    let model = gpt2();
    let shape = |batch_size| Shape {
        batch_size,
        block_size: 1024,
        recompute: Recompute::None,
    };
    let dataset = 256 << 20;
    let available = needs(&model, &gpu()).memory(shape(8)).total();
    let largest = |dataset| {
        let needs = needs(&model, &gpu()).with_available(available);
        needs.with_dataset(dataset).largest(shape(8), 8)
    };
    assert_eq!(largest(0), 8);
    assert!((1..8).contains(&largest(dataset)), "{}", largest(dataset));
    let needs = needs(&model, &gpu()).with_dataset(dataset);
    let table = needs.table(shape(8)).join("\n");
    assert!(
        table.contains("dataset") && table.contains("256.0 MiB"),
        "{table}"
    );
}

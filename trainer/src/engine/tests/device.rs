//! The engine for GPUs, on the emulator: whole steps against the CPU's engine in every precision,
//! graphs against launches, and what fp16 does when it overflows.

use half::{bf16, f16};
use kernels::matmul::cuda::products::Pick;

use super::*;
use crate::data::dataset::{DatasetInfo, TRAIN, VAL, write_info};
use crate::data::token_file::TokenWriter;
use crate::data::{Loader, Sampling, Split};
use crate::philox::{Philox, Stream as RandomStream};

/// Two layers whose sizes are multiples of nothing, or of what vectors want.
fn model(odd: bool) -> ModelConfig {
    ModelConfig {
        n_layer: 2,
        n_head: 2,
        n_embd: if odd { 36 } else { 64 },
        block_size: 24,
        vocab_size: if odd { 61 } else { 128 },
        bias: odd,
        gelu: crate::model::Gelu::of(if odd { "tanh" } else { "erf" }),
    }
}

const SHAPE: Shape = Shape {
    batch_size: 2,
    block_size: 19,
    recompute: Recompute::None,
};

/// A batch in which each token follows from the one before, so that there is something to learn.
fn batch(model: &ModelConfig, salt: u64) -> Batch {
    let mut random = Philox::new(3, RandomStream::TrainData).sequence([salt as u32, 0, 0]);
    let vocab_size = model.vocab_size as u64;
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    for _ in 0..SHAPE.batch_size {
        let mut token = random.below(vocab_size);
        for _ in 0..SHAPE.block_size {
            inputs.push(token as u32);
            token = (token * 7 + 3) % vocab_size;
            targets.push(token as u32);
        }
    }
    Batch::of_tokens(inputs, targets, SHAPE.batch_size, SHAPE.block_size)
}

fn cuda<T: Precision>(
    model: &ModelConfig,
    dropout: f64,
    recompute: Recompute,
    order: Order,
    launch: Launch,
    selection: &Selection,
) -> CudaEngine<T> {
    let shape = Shape { recompute, ..SHAPE };
    let (device, hyper) = (device(order), hyper(dropout, 2));
    CudaEngine::new(&device, model, hyper, shape, launch, selection).unwrap()
}

/// An iteration of two micro-steps, up to its gradients.
fn accumulate(engine: &mut dyn Probe, step: u64) -> Vec<NamedTensor> {
    let model = engine.model().clone();
    for micro in 0..2 {
        let batch = batch(&model, 2 * step + micro);
        engine
            .forward_backward(&batch, MicroStep { step, micro })
            .unwrap();
    }
    engine.gradients()
}

fn iteration(engine: &mut dyn Probe, step: u64) -> UpdateStats {
    accumulate(engine, step);
    engine.update(3e-3).unwrap()
}

/// The difference of two lists of tensors in relation to the second, norms over all elements.
fn relative_error(got: &[NamedTensor], expected: &[NamedTensor]) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!((&got.name, &got.shape), (&expected.name, &expected.shape));
        for (x, y) in got.data.iter().zip(&expected.data) {
            assert!(x.is_finite(), "{}: {x}", got.name);
            error += f64::from(x - y).powi(2);
            norm += f64::from(*y).powi(2);
        }
    }
    (error / norm).sqrt()
}

/// Gradients, losses and twenty steps of a precision against the CPU's engine. `gradients` and
/// `losses` are the largest relative errors allowed.
fn check_precision<T: Precision>(gradients: f64, losses: f64, selection: &Selection) {
    for (odd, dropout) in [(true, 0.0), (false, 0.2)] {
        let what = format!("{} {odd} {dropout}", T::NAME);
        let model = model(odd);
        let mut cpu = CpuEngine::new(&model, hyper(dropout, 2), SHAPE);
        let mut cuda = cuda::<T>(
            &model,
            dropout,
            Recompute::None,
            Order::Random,
            Launch::Graphs,
            selection,
        );
        let expected = accumulate(&mut cpu, 0);
        let error = relative_error(&accumulate(&mut cuda, 0), &expected);
        assert!(error < gradients, "{what}: gradients: {error:e}");
        // A mask that differed anywhere would show in every gradient.
        let near = |a: f64, b: f64| (a - b).abs() < losses * b.abs();
        let pair = (cuda.update(3e-3).unwrap(), cpu.update(3e-3).unwrap());
        assert!(near(pair.0.loss, pair.1.loss), "{what}: {pair:?}");
        for step in 1..20 {
            let pair = (iteration(&mut cuda, step), iteration(&mut cpu, step));
            assert!(near(pair.0.loss, pair.1.loss), "{what}: {step}: {pair:?}");
        }
        let evaluated = batch(&model, 99);
        let pair = (
            cuda.loss(&evaluated).unwrap(),
            cpu.loss(&evaluated).unwrap(),
        );
        assert!(near(pair.0, pair.1), "{what}: evaluation: {pair:?}");
        assert!(pair.1 < 3.5, "{what}: nothing was learned: {pair:?}");
    }
}

/// Both add in fp32, in different orders; twenty steps carry that on.
#[test]
fn fp32_is_the_cpus_engine() {
    check_precision::<f32>(2e-6, 2e-5, &Selection::off());
}

/// A rounding of activations is 2^-9; some tens of them one after the other.
#[test]
fn bf16_is_the_cpus_engine_rounded() {
    check_precision::<bf16>(2e-2, 1e-2, &Selection::off());
}

/// As above with 2^-12.
#[test]
fn fp16_is_the_cpus_engine_rounded() {
    check_precision::<f16>(3e-3, 2e-3, &Selection::off());
}

/// Every product that cuBLASLt takes is its, with as much or as little in its epilogue as can be.
/// On the emulator the library is the emulator's own.
fn library(pick: Pick) -> Selection {
    Selection {
        mode: Mode::On,
        tf32: false,
        pick: Some(pick),
        ..Selection::off()
    }
}

#[test]
fn with_cublaslt_fp32_is_the_cpus_engine() {
    for pick in [Pick::First, Pick::Last] {
        check_precision::<f32>(2e-6, 2e-5, &library(pick));
    }
}

#[test]
fn with_cublaslt_bf16_and_fp16_are_the_cpus_engine_rounded() {
    for pick in [Pick::First, Pick::Last] {
        check_precision::<bf16>(2e-2, 1e-2, &library(pick));
        check_precision::<f16>(3e-3, 2e-3, &library(pick));
    }
}

/// Factors have 10 bits of mantissa, as in fp16, but sums and activations stay in fp32.
#[test]
fn tf32_is_used_where_it_is_asked_for() {
    let tf32 = Selection {
        tf32: true,
        ..library(Pick::First)
    };
    check_precision::<f32>(3e-3, 2e-3, &tf32);
    let model = model(false);
    let gradients = |selection: &Selection| {
        let (none, order) = (Recompute::None, Order::Forward);
        let mut engine = cuda::<f32>(&model, 0.0, none, order, Launch::Graphs, selection);
        accumulate(&mut engine, 0)
    };
    let error = relative_error(&gradients(&tf32), &gradients(&library(Pick::First)));
    let has_tf32 = device(Order::Forward).properties().compute_capability >= (8, 0);
    assert!(!has_tf32 || error > 1e-5, "{error:e}");
}

#[test]
fn with_cublaslt_graphs_launches_and_recomputing_give_the_same_bits() {
    check_bits(&library(Pick::First));
    check_bits(&library(Pick::Last));
}

/// All that is left after some steps, to the bit. Each piece of work is done three times: kernel by
/// kernel, recorded, and repeated.
fn run<T: Precision>(
    recompute: Recompute,
    order: Order,
    launch: Launch,
    selection: &Selection,
) -> (Vec<UpdateStats>, EngineState, [f64; 3]) {
    let model = model(true);
    let mut engine = cuda::<T>(&model, 0.2, recompute, order, launch, selection);
    let stats = (0..3).map(|step| iteration(&mut engine, step)).collect();
    let losses = [50, 51, 52].map(|salt| engine.loss(&batch(&model, salt)).unwrap());
    (stats, engine.state().unwrap(), losses)
}

#[test]
fn graphs_launches_and_recomputing_give_the_same_bits() {
    check_bits(&Selection::off());
}

fn check_bits(selection: &Selection) {
    let expected = run::<bf16>(Recompute::None, Order::Forward, Launch::Direct, selection);
    for (recompute, order) in [
        (Recompute::None, Order::Forward),
        (Recompute::None, Order::Reverse),
        (Recompute::Gelu, Order::Random),
        (Recompute::Block, Order::Random),
    ] {
        let got = run::<bf16>(recompute, order, Launch::Graphs, selection);
        assert!(got == expected, "{recompute:?} {order:?}");
    }
}

#[test]
fn a_run_goes_on_from_its_state_to_the_bit_and_on_other_engines() {
    let model = model(false);
    let engine = || {
        cuda::<f16>(
            &model,
            0.1,
            Recompute::Gelu,
            Order::Random,
            Launch::Graphs,
            &Selection::off(),
        )
    };
    let mut whole = engine();
    for step in 0..2 {
        iteration(&mut whole, step);
    }
    let state = whole.state().unwrap();
    let mut resumed = engine();
    resumed.load_state(&state).unwrap();
    assert_eq!(resumed.state().unwrap(), state);
    for step in 2..4 {
        assert_eq!(
            iteration(&mut whole, step),
            iteration(&mut resumed, step),
            "step {step}"
        );
    }
    assert_eq!(whole.state().unwrap(), resumed.state().unwrap());

    // What another engine writes has no loss scale, and this one's is none of another's business.
    let mut cpu = CpuEngine::new(&model, hyper(0.1, 2), SHAPE);
    cpu.load_state(&state).unwrap();
    iteration(&mut cpu, 2);
    let mut back = engine();
    back.load_state(&cpu.state().unwrap()).unwrap();
    assert_eq!(back.state().unwrap().updates, 3);
    assert!(iteration(&mut back, 3).grad_norm.is_finite());
}

#[test]
fn an_overflow_in_fp16_leaves_the_update_out_and_halves_the_scale() {
    let model = model(false);
    let mut engine = cuda::<f16>(
        &model,
        0.0,
        Recompute::None,
        Order::Random,
        Launch::Graphs,
        &Selection::off(),
    );
    let mut state = engine.state().unwrap();
    // So large that the gradients of the logits' weights do not fit fp16.
    state.loss_scale = Some(LossScale {
        scale: 16_777_216.0,
        good_steps: 7,
    });
    engine.load_state(&state).unwrap();
    let stats = iteration(&mut engine, 0);
    assert!(stats.overflowed && stats.loss.is_finite(), "{stats:?}");
    let after = engine.state().unwrap();
    assert_eq!(
        (&after.parameters, &after.exp_avg, after.updates),
        (&state.parameters, &state.exp_avg, 0)
    );
    let scale = after.loss_scale.unwrap();
    assert_eq!((scale.scale, scale.good_steps), (8_388_608.0, 0));
    // It comes down until a step fits.
    let steps = (1..20).map(|step| iteration(&mut engine, step));
    assert!(steps.skip_while(|stats| stats.overflowed).count() > 0);
    assert!(engine.state().unwrap().updates > 0);
}

#[test]
fn memory_is_what_was_foreseen() {
    let model = model(true);
    let properties = device(Order::Forward).properties().clone();
    for (selection, library) in [(Selection::off(), false), (library(Pick::First), true)] {
        let (none, order) = (Recompute::None, Order::Forward);
        let engine = cuda::<bf16>(&model, 0.2, none, order, Launch::Direct, &selection);
        let memory = super::super::cuda::memory::<bf16>;
        let foreseen = memory(&model, true, SHAPE, &properties, library);
        assert_eq!(engine.memory(), Some(foreseen));
    }
}

#[test]
fn a_snapshot_that_cannot_be_pinned_is_the_same_and_says_so() {
    let model = model(true);
    let make = |device: Device, prepared| {
        let (hyper, none) = (hyper(0.0, 2), Selection::off());
        let made = CudaEngine::<bf16>::new(&device, &model, hyper, SHAPE, Launch::Graphs, &none);
        let mut engine = made.unwrap();
        if prepared {
            engine.prepare_snapshots();
        }
        iteration(&mut engine, 0);
        let state = engine.snapshot().unwrap()().unwrap();
        (engine, state)
    };
    let emulator = || Device::emulator(Schedule::default());
    let (mut pinned, expected) = make(emulator(), true);
    assert_eq!(pinned.state().unwrap(), expected);
    assert_eq!(pinned.take_warnings(), Vec::<String>::new());
    // Enough for whatever else the engine keeps there.
    let bytes = model.parameter_count() as usize * size_of::<f32>() / 2;
    for prepared in [true, false] {
        let (mut engine, state) = make(emulator().with_pinned_bytes_max(bytes), prepared);
        assert!(state == expected, "{prepared}");
        let warnings = engine.take_warnings().join("\n");
        assert!(warnings.contains("cannot be pinned"), "{warnings}");
        assert_eq!(engine.take_warnings(), Vec::<String>::new(), "told twice");
        assert!(engine.snapshot().unwrap()().unwrap() == expected);
    }
}

/// Losses of evaluations of so many batches, each as a whole.
fn evaluations<T: Precision>(eval_iters: u64, order: Order, selection: &Selection) -> Vec<f64> {
    let model = model(true);
    let hyper = Hyperparameters {
        eval_iters,
        ..hyper(0.0, 1)
    };
    let device = device(order);
    let made = CudaEngine::<T>::new(&device, &model, hyper, SHAPE, Launch::Graphs, selection);
    let mut engine = made.unwrap();
    let notes = engine.notes(false).join("\n");
    assert_eq!(
        notes.contains("batches in a pass"),
        eval_iters > 1,
        "{notes}"
    );
    if eval_iters > 1 {
        assert!(notes.contains("evaluation: 3 batches in a pass"), "{notes}");
    }
    // Training in between shares the arena. The third evaluation of a size repeats graphs.
    let mut losses = Vec::new();
    for (step, count) in [3, 11, 1, 7, 2].into_iter().enumerate() {
        let at = MicroStep {
            step: step as u64,
            micro: 0,
        };
        engine.forward_backward(&batch(&model, 1), at).unwrap();
        engine.update(3e-3).unwrap();
        let mut batches = (0..count).map(|salt| batch(&model, salt));
        losses.push(engine.mean_loss(&mut batches, &|| false).unwrap().unwrap());
    }
    losses
}

#[test]
fn batches_that_are_evaluated_together_have_the_losses_of_each_alone() {
    fn check<T: Precision>() {
        let own = Selection::off();
        let alone = evaluations::<T>(1, Order::Forward, &own);
        assert!(alone.windows(2).all(|pair| pair[0] != pair[1]));
        for order in [Order::Forward, Order::Random] {
            assert_eq!(
                evaluations::<T>(3, order, &own),
                alone,
                "{} {order:?}",
                T::NAME
            );
        }
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
    // The library adds up as it likes.
    let alone = evaluations::<f32>(1, Order::Forward, &library(Pick::First));
    let together = evaluations::<f32>(3, Order::Forward, &library(Pick::First));
    for (a, b) in together.iter().zip(&alone) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

/// A dataset of ids below 61, held as those of a vocabulary of this size.
fn dataset(vocab_size: usize) -> (tempfile::TempDir, std::sync::Arc<Dataset>) {
    let folder = tempfile::tempdir().unwrap();
    let lengths = [(TRAIN, 701), (VAL, 97)];
    for (name, len) in lengths {
        let mut writer = TokenWriter::create(&folder.path().join(name), vocab_size).unwrap();
        let ids: Vec<u32> = (0..len).map(|i| (i * i + 5 * i + i / 7) % 61).collect();
        writer.write(&ids).unwrap();
        writer.finish().unwrap();
    }
    let info = DatasetInfo {
        format_version: 1,
        name: "squares".to_owned(),
        tokenizer: "gpt2".to_owned(),
        vocab_size,
        train_tokens: lengths[0].1.into(),
        val_tokens: lengths[1].1.into(),
        source: "generated".to_owned(),
        source_sha256: String::new(),
        entropy_per_token: None,
    };
    write_info(folder.path(), &info).unwrap();
    let dataset = std::sync::Arc::new(Dataset::open(folder.path()).unwrap());
    (folder, dataset)
}

#[test]
fn a_dataset_on_the_device_gives_the_same_bits_as_batches_that_are_sent() {
    let model = model(true);
    for (vocab_size, bytes) in [(61, 2 * (701 + 97)), (70_000, 4 * (701 + 97))] {
        let (_folder, dataset) = dataset(vocab_size);
        let loader = Loader::new(
            std::sync::Arc::clone(&dataset),
            SHAPE.batch_size,
            SHAPE.block_size,
            2,
            Sampling::Random,
            7,
        );
        let loader = loader.unwrap();
        let run = |keeps: bool| {
            let (none, order) = (Recompute::None, Order::Random);
            let own = Selection::off();
            let mut engine = cuda::<bf16>(&model, 0.2, none, order, Launch::Graphs, &own);
            let before = engine.memory().unwrap().total();
            if keeps {
                engine.keep_dataset(&dataset).unwrap();
                assert_eq!(engine.memory().unwrap().total(), before + bytes);
            }
            let mut stats = Vec::new();
            for step in 0..3 {
                for micro in 0..2 {
                    let mut batch = loader.batch(step, micro);
                    if keeps {
                        // What is not looked at need not be right.
                        batch.inputs.fill(0);
                        batch.targets.fill(0);
                    }
                    let at = MicroStep { step, micro };
                    engine.forward_backward(&batch, at).unwrap();
                }
                stats.push(engine.update(3e-3).unwrap());
            }
            let losses = [Split::Train, Split::Val].map(|split| {
                let mut batches = loader.eval_batches(split, 7);
                engine.mean_loss(&mut batches, &|| false).unwrap()
            });
            // Batches of no dataset go on being sent.
            let other = engine.loss(&self::batch(&model, 5)).unwrap();
            (stats, losses, other, engine.state().unwrap())
        };
        assert!(run(true) == run(false), "{vocab_size}");
    }
}

/// Logits of a growing sequence, token by token and each as a prompt of its own.
fn check_generation<T: Precision>(
    model: &ModelConfig,
    tolerance: f64,
    change: impl Fn(CudaEngine<T>) -> CudaEngine<T>,
) {
    let shape = Shape {
        batch_size: 1,
        block_size: model.block_size,
        recompute: Recompute::None,
    };
    let engine = || -> CudaEngine<T> {
        let (device, hyper) = (device(Order::Random), hyper(0.0, 1));
        let own = Selection::off();
        CudaEngine::new(&device, model, hyper, shape, Launch::Graphs, &own).unwrap()
    };
    let (mut growing, mut prompts) = (change(engine()), engine());
    let vocab_size = model.vocab_size as u32;
    let text: Vec<u32> = (0..model.block_size as u32)
        .map(|i| (i * i + 7 * i) % vocab_size)
        .collect();
    for end in 1..=text.len() {
        // Two tokens at once now and then.
        if end % 5 == 3 {
            continue;
        }
        let got = growing.logits(&text[..end]).unwrap();
        // A sequence that shares nothing with the one before.
        prompts.logits(&[vocab_size - 1 - text[0]]).unwrap();
        let expected = prompts.logits(&text[..end]).unwrap();
        let square = |x: f32| f64::from(x).powi(2);
        let pairs = got.iter().zip(&expected);
        let error = pairs.map(|(&a, &b)| square(a - b)).sum::<f64>();
        let norm = expected.iter().map(|&x| square(x)).sum::<f64>();
        let error = (error / norm).sqrt();
        assert!(error < tolerance, "{} {end}: {error:e}", T::NAME);
    }
}

#[test]
fn tokens_that_follow_a_prompt_are_as_if_they_were_in_it() {
    check_generation::<f32>(&model(true), 1e-5, |engine| engine);
    check_generation::<bf16>(&model(true), 2e-2, |engine| engine);
    check_generation::<f16>(&model(false), 3e-3, |engine| engine);
}

/// As for models whose rows of weights do not fit shared memory: every token is a prompt.
#[test]
fn without_a_decoder_generation_is_the_same() {
    check_generation::<f32>(&model(true), 1e-6, |engine| engine.without_decoder());
}

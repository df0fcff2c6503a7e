//! The estimate against figures worked out by hand, public ones, and the engine itself.

use super::cards::Share;
use super::interruptions::Interruptions;
use super::*;
use crate::engine::plan::Op;
use crate::engine::{Recompute, Shape};

fn gpt2_124m() -> (Config, ModelConfig) {
    of("gpt2_124m", &[])
}

fn of(name: &str, words: &[&str]) -> (Config, ModelConfig) {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let config = Config::resolve(Some(name), &words).unwrap().config;
    let model = ModelConfig {
        n_layer: config.n_layer,
        n_head: config.n_head,
        n_embd: config.n_embd,
        block_size: config.block_size,
        vocab_size: if config.vocab_size == 0 {
            50_304
        } else {
            config.vocab_size
        },
        bias: config.bias,
        gelu: crate::model::Gelu::default(),
    };
    (config, model)
}

fn close(a: f64, b: f64, part: f64) -> bool {
    (a - b).abs() <= part * b.abs()
}

fn card(name: &str) -> &'static Card {
    Card::named(name)[0]
}

#[test]
fn the_plan_has_the_flops_that_a_hand_counts() {
    let (config, model) = gpt2_124m();
    let planned = Planner::new(&config, &model).planned(16, Recompute::None);
    let sum = |plan: &Plan| plan.ops.iter().map(|op| op.flops(plan)).sum::<f64>();
    // Layers 6 x 12 C² L, head 6 V C, causal attention 2 + 5 products of T C L each.
    let (c, l, t, v) = (768.0, 12.0, 1024.0, 50_304.0);
    let by_hand = 72.0 * c * c * l + 6.0 * v * c + 7.0 * (t + 1.0) * c * l;
    let rows = 16.0 * 1024.0;
    assert!(
        close(sum(&planned.training) / rows, by_hand, 1e-9),
        "{by_hand}"
    );
    assert!(
        close(by_hand, 807.5e6, 1e-3),
        "the figure of the data sheet's floor: {by_hand}"
    );
    assert!(close(
        sum(&planned.evaluation) / rows,
        255.9e6 + 10.2e6,
        0.02
    ));
    let again = Planner::new(&config, &model).planned(16, Recompute::Block);
    let more = sum(&again.training) / sum(&planned.training);
    assert!(
        (1.15..1.30).contains(&more),
        "a second forward of the blocks: {more}"
    );
}

#[test]
fn memory_is_the_engines() {
    let device = kernels::cuda::Device::emulator(kernels::cuda::Schedule::default());
    let processors = device.properties().multiprocessors;
    let place = Place::Gpu(device);
    for (name, words, batch_size) in [
        ("shakespeare_char", &["--vocab_size=65"][..], 64),
        ("gpt2_124m", &[][..], 16),
        ("gpt2_350m", &["--dropout=0.1", "--bias=true"][..], 4),
    ] {
        let words = [words, &["--dtype=bfloat16"]].concat();
        let (config, model) = of(name, &words);
        let needs = Needs::of(&place, &config, &model).unwrap().unwrap();
        let planner = Planner::new(&config, &model);
        for recompute in [Recompute::None, Recompute::Gelu, Recompute::Block] {
            let block_size = config.block_size;
            let engine = needs.memory(Shape {
                batch_size,
                block_size,
                recompute,
            });
            let ours = planner.memory(batch_size, recompute, processors);
            assert_eq!(
                (ours.weights, ours.gradients, ours.moments, ours.activations),
                (
                    engine.weights,
                    engine.gradients,
                    engine.moments,
                    engine.activations
                ),
                "{name} {recompute:?}"
            );
            assert!(
                ours.workspace >= engine.workspace,
                "{name}: {ours:?} {engine:?}"
            );
            let total = (ours.total() as f64, engine.total() as f64);
            assert!(total.0 <= 1.10 * total.1, "{name}: {total:?}");
        }
    }
}

#[test]
fn scratch_is_never_less_than_the_room_asks_for() {
    for card in Card::all().iter().filter(|card| card.is_supported()) {
        let properties = kernels::cuda::Properties {
            name: card.name.to_owned(),
            compute_capability: card.compute_capability,
            shared_bytes_max: 99 << 10,
            multiprocessors: card.multiprocessors,
        };
        for m in [256, 1024, 4096, 16_384, 65_536] {
            for (k, n) in [
                (384, 1152),
                (384, 65),
                (768, 2304),
                (768, 3072),
                (3072, 768),
            ] {
                let dims = kernels::matmul::Dims { m, k, n };
                let room = kernels::matmul::cuda::scratch_len(dims, &properties);
                let bound = memory::product_scratch(m, k, n, card.multiprocessors);
                assert!(bound >= room, "{}: {dims:?}: {bound} < {room}", card.name);
            }
        }
        let head = kernels::matmul::Dims {
            m: 10_432,
            k: 768,
            n: 50_304,
        };
        let room = kernels::matmul::cuda::scratch_len(head, &properties);
        let bound = memory::product_scratch(head.m, head.k, head.n, card.multiprocessors);
        assert!(
            bound >= room && bound < 1 << 27,
            "{}: {bound} {room}",
            card.name
        );
    }
    assert_eq!(memory::CHANNELS_MAX, kernels::layernorm::cuda::CHANNELS_MAX);
    assert_eq!(
        memory::HEAD_SIZE_MAX,
        kernels::attention::cuda::HEAD_SIZE_MAX
    );
}

#[test]
fn a_plan_takes_what_its_bounds_add_up_to() {
    let (config, model) = gpt2_124m();
    let planned = Planner::new(&config, &model).planned(1, Recompute::None);
    let plan = &planned.training;
    let rates = |products, attention, bytes, gap_s| Rates {
        products,
        attention,
        bytes,
        gap_s,
    };
    let endless = 1e30;
    let of = |select: fn(&Op) -> bool| -> f64 {
        let ops = plan.ops.iter().filter(|op| select(op));
        ops.map(|op| op.flops(plan)).sum()
    };
    let is_attention = |op: &Op| matches!(op, Op::Attention { .. } | Op::AttentionBackward { .. });
    let products = of(|op| !matches!(op, Op::Attention { .. } | Op::AttentionBackward { .. }));
    let attention = of(is_attention);
    assert!(close(
        rates(1e12, endless, endless, 0.0).plan_s(plan),
        products / 1e12,
        1e-6
    ));
    assert!(close(
        rates(endless, 1e12, endless, 0.0).plan_s(plan),
        attention / 1e12,
        1e-6
    ));
    let bytes: f64 = plan.ops.iter().map(|op| op.bytes(plan)).sum();
    assert!(close(
        rates(endless, endless, 1e12, 0.0).plan_s(plan),
        bytes / 1e12,
        1e-6
    ));
    let gaps = rates(endless, endless, endless, 1e-6).plan_s(plan);
    assert!(close(gaps, plan.ops.len() as f64 * 1e-6, 1e-6));
    // 38 bytes for each of 10⁹ parameters at 1 TB/s.
    let update = rates(endless, endless, 1e12, 0.0).update_s(1_000_000_000);
    assert!(close(update, 0.038, 1e-9), "{update}");
}

#[test]
fn tokens_per_second_lie_between_public_figures() {
    let rate = |gpu: &str, (config, model): (Config, ModelConfig)| {
        let card = card(gpu);
        let planner = Planner::new(&config, &model);
        let fit = planner.fit(card).unwrap();
        run_on(card, &fit, &planner, &Work::of(&config), &model).tokens_per_second
    };
    // nanoGPT: 8 x A100, 5 x 12 x 1024 tokens in 562 ms each; llm.c: 10B tokens in 90 minutes.
    let a100 = rate("A100-80GB", gpt2_124m());
    assert!((109e3..231e3).contains(&a100), "{a100}");
    // PyTorch 2.5 and llm.c on H100s: 462 000 and 463 000; ours has no wgmma.
    let h100 = rate("H100", gpt2_124m());
    assert!((1.3 * a100..463e3).contains(&h100), "{h100}");
    // nanoGPT: 5000 iterations in about 3 minutes on an A100, 23 ms each; the floor is 3.6 ms.
    let char_ = rate("A100-40GB", of("shakespeare_char", &["--vocab_size=65"]));
    let ms = 16_384.0 / char_ * 1e3;
    assert!((5.0..23.0).contains(&ms), "{ms}");
}

#[test]
fn interruptions_cost_what_young_and_daly_say() {
    let of = Interruptions {
        between_s: 28_800.0,
        restart_s: 300.0,
        checkpoint_s: 1.2,
        interval_s: 600.0,
    };
    // 36 000 (1 + 1.2/600 + (300 + 300)/28 800)
    assert!(close(of.expected_s(36_000.0), 36_822.0, 1e-9));
    // sqrt(2 x 1 x 28 800) = 240; Daly: 240 (1 + sqrt(1/57 600)/3 + 1/57 600/9) - 1 = 239.33.
    let of = Interruptions {
        checkpoint_s: 1.0,
        ..of
    };
    assert!(
        close(of.best_interval_s(), 239.3338, 1e-5),
        "{}",
        of.best_interval_s()
    );
    let at = |interval_s| Interruptions { interval_s, ..of }.expected_s(36_000.0);
    assert!(at(240.0) < at(120.0) && at(240.0) < at(480.0));
    // A run without checkpoints loses half of itself.
    let lost = Interruptions {
        interval_s: f64::INFINITY,
        ..of
    }
    .expected_s(3600.0);
    assert!(
        close(lost, 3600.0 * (1.0 + 2100.0 / 28_800.0), 1e-9),
        "{lost}"
    );
}

#[test]
fn every_priced_machine_has_a_data_sheet() {
    let prices = prices::shipped();
    assert!(prices.len() > 20);
    let of = |provider: &str, machine: &str| {
        let is_it = |price: &&Price| {
            price.provider == provider && price.machine.as_deref() == Some(machine)
        };
        prices.iter().find(is_it).unwrap()
    };
    let p4d = of("aws", "p4d.24xlarge");
    assert_eq!((p4d.card.name, p4d.gpus), ("A100-40GB", 8));
    assert_eq!((p4d.on_demand, p4d.spot), (Some(32.77), Some(9.83)));
    let wrong = "storage = []\n[[gpu]]\nprovider = \"modal\"\nname = \"H1000\"\non_demand = 1.0\n\
                 as_of = \"2025\"";
    let error = prices::parse(wrong).unwrap_err().to_string();
    assert!(error.contains("H1000: no data sheet"), "{error}");
}

#[test]
fn cards_are_found_by_their_words() {
    let names =
        |wanted: &str| -> Vec<&str> { Card::named(wanted).iter().map(|card| card.name).collect() };
    assert_eq!(names("a100"), ["A100-80GB", "A100-40GB"]);
    assert_eq!(names("A100-80GB"), ["A100-80GB"]);
    assert_eq!(names("4090"), ["RTX 4090"]);
    assert_eq!(names("A10"), ["A10"]);
    assert!(names("Voodoo").is_empty() && names("").is_empty());
    assert_eq!(card("T4").dtype(), "float16");
    let Share { products, .. } = card("H100").share();
    assert!(close(products, 0.279, 1e-9), "0.45 of 0.62: {products}");
}

#[test]
fn what_does_not_run_says_why() {
    let (config, model) = gpt2_124m();
    let planner = Planner::new(&config, &model);
    let why = planner.fit(card("V100")).unwrap_err();
    assert_eq!(why, "no kernels for compute capability 7.0");
    let (config, model) = of("gpt2_1558m", &[]);
    let planner = Planner::new(&config, &model);
    let why = planner.fit(card("L4")).unwrap_err();
    // 18 bytes for each of 1558 million parameters are 26 GiB.
    assert!(
        why.starts_with("needs 2") && why.contains("has 20."),
        "{why}"
    );
    let fit = planner.fit(card("H100")).unwrap();
    let sequences = config.batch_size as u64 * config.gradient_accumulation_steps;
    assert_eq!(fit.shape.batch_size as u64 * fit.accumulation, sequences);
    assert!(fit.memory.total() <= Planner::room(card("H100")));
}

#[test]
fn evaluations_are_counted_as_the_loop_makes_them() {
    let count = |words: &[&str]| {
        let (config, _) = of("shakespeare_char", words);
        let work = Work::of(&config);
        (work.iterations, work.evaluations)
    };
    assert_eq!(count(&[]), (5000, 21), "before the first and every 250");
    assert_eq!(count(&["--max_iters=600"]), (600, 4), "0, 250, 500, 600");
    assert_eq!(count(&["--eval_only=true"]), (0, 1));
}

/// Rows of two cards, without what no choice looks at.
fn two() -> Estimate {
    let (config, model) = gpt2_124m();
    let filter = Filter {
        provider: Some("aws".to_owned()),
        ..Filter::default()
    };
    let mut estimate = estimate(&config, &model, &filter).unwrap();
    estimate.rows.retain(|row| row.run.is_some());
    let row = estimate.rows.remove(0);
    let row = |gpu, hours: f64, on_demand: f64, spot: Option<f64>| {
        let mut row = row.clone();
        let run = row.run.as_mut().unwrap();
        (run.hours, run.spot_hours) = (hours, 1.1 * hours);
        row.gpu = gpu;
        row.marks.clear();
        row.on_demand_usd = Some(on_demand);
        row.spot_usd = spot;
        row
    };
    let mut rows = vec![
        row("fast", 2.0, 10.0, Some(6.0)),
        row("slow", 10.0, 4.0, None),
    ];
    mark(&mut rows);
    Estimate { rows, ..estimate }
}

#[test]
fn a_pick_keeps_what_it_is_asked_to() {
    let wanted = |budget_usd, deadline_hours, spot| Wanted {
        budget_usd,
        deadline_hours,
        spot,
    };
    let picked = |wanted| {
        let mut estimate = two();
        let pick = pick(&mut estimate, &wanted);
        let gpu = pick
            .offer
            .map(|offer| (estimate.rows[offer.row].gpu, offer.spot));
        (gpu, pick)
    };
    let marks: Vec<_> = two()
        .rows
        .into_iter()
        .map(|row| (row.gpu, row.marks))
        .collect();
    assert_eq!(
        marks,
        [("slow", vec!["cheapest"]), ("fast", vec!["fastest"])]
    );
    assert_eq!(
        picked(wanted(None, Some(3.0), None)).0,
        Some(("fast", true)),
        "6 < 10"
    );
    assert_eq!(
        picked(wanted(None, Some(2.0), None)).0,
        Some(("fast", false)),
        "spot takes 2.2"
    );
    assert_eq!(
        picked(wanted(Some(7.0), None, None)).0,
        Some(("fast", true)),
        "fastest within 7"
    );
    assert_eq!(
        picked(wanted(Some(5.0), None, None)).0,
        Some(("slow", false))
    );
    assert_eq!(
        picked(wanted(None, None, Some(true))).0,
        Some(("fast", true))
    );
    assert_eq!(
        picked(wanted(Some(20.0), Some(24.0), None)).0,
        Some(("slow", false))
    );
    let (none, pick) = picked(wanted(Some(5.0), Some(3.0), None));
    assert_eq!(none, None);
    assert_eq!(pick.why, "nothing is within $5.00 and done in 3.0 h");
    let hint = pick.hint.unwrap();
    assert!(hint.contains("larger budget: fast of aws"), "{hint}");
    assert!(hint.contains("spot, 2.2 h, $6.00"), "{hint}");
    let (none, pick) = picked(wanted(Some(1.0), None, None));
    assert_eq!(none, None);
    assert!(pick.hint.unwrap().contains("the cheapest is slow"));
}

#[test]
fn the_table_fits_120_columns() {
    let (config, model) = of("gpt2_774m", &[]);
    let mut estimate = estimate(&config, &model, &Filter::default()).unwrap();
    let wanted = Wanted {
        budget_usd: Some(1e4),
        ..Wanted::default()
    };
    pick(&mut estimate, &wanted);
    let lines = lines(&estimate);
    for line in &lines {
        assert!(line.chars().count() <= 120, "{}: {line}", line.len());
    }
    assert!(lines.iter().any(|line| line.contains("fastest, picked")));
    assert!(
        lines
            .iter()
            .any(|line| line.contains("no kernels for compute capability 7.0"))
    );
}

//! Memory is never shared by two buffers that are alive together, and parameters lie in order.

use super::*;

fn model(bias: bool) -> ModelConfig {
    ModelConfig {
        n_layer: 3,
        n_head: 2,
        n_embd: 16,
        block_size: 8,
        vocab_size: 33,
        bias,
        gelu: crate::model::Gelu::Erf,
    }
}

fn target(model: &ModelConfig, dtype: Dtype) -> Target {
    Target {
        dtype,
        alignment: 64,
        logits_stride: model.vocab_size.next_multiple_of(8),
        logits_elements_max: 1 << 26,
        attention_scratch: 40,
    }
}

fn plans() -> Vec<Plan> {
    let mut plans = Vec::new();
    for recompute in [Recompute::None, Recompute::Gelu, Recompute::Block] {
        for (backward, dropout) in [(true, true), (true, false), (false, false)] {
            for (losses, dtype) in [(true, Dtype::F32), (false, Dtype::F32), (true, Dtype::BF16)] {
                let model = model(dropout);
                let request = PlanRequest {
                    model: &model,
                    batch_size: 2,
                    block_size: 8,
                    backward: backward && losses,
                    dropout: dropout && losses,
                    recompute,
                    losses,
                    target: target(&model, dtype),
                };
                plans.push(request.build());
            }
        }
    }
    plans
}

#[test]
fn buffers_that_are_alive_together_share_no_memory() {
    for plan in plans() {
        for (i, a) in plan.buffers.iter().enumerate() {
            assert!(a.place.start % 64 == 0 && a.place.len() == a.bytes());
            for b in &plan.buffers[..i] {
                let alive_together = a.life.0 <= b.life.1 && b.life.0 <= a.life.1;
                let overlap = a.place.start < b.place.end && b.place.start < a.place.end;
                assert!(!(alive_together && overlap), "{a:?} {b:?}");
            }
        }
    }
}

#[test]
fn the_arena_holds_every_buffer_and_little_else() {
    for plan in plans() {
        let end = plan.buffers.iter().map(|buffer| buffer.place.end).max();
        assert_eq!(end, Some(plan.arena_bytes));
        // No plan can do with less than what is alive at its fullest operation.
        let alive = |index: usize| {
            let alive = plan
                .buffers
                .iter()
                .filter(|b| b.life.0 <= index && index <= b.life.1);
            alive.map(Buffer::bytes).sum::<usize>()
        };
        let least = (0..plan.ops.len()).map(alive).max().unwrap();
        assert!(plan.arena_bytes >= least);
        assert!(
            plan.arena_bytes as f64 <= 1.25 * least as f64,
            "{}",
            plan.arena_bytes
        );
    }
}

#[test]
fn a_vocabulary_too_large_for_all_logits_at_once_is_taken_in_chunks() {
    let model = ModelConfig {
        vocab_size: 1 << 24,
        ..model(false)
    };
    let request = PlanRequest {
        model: &model,
        batch_size: 3,
        block_size: 3,
        backward: true,
        dropout: false,
        recompute: Recompute::None,
        losses: true,
        target: target(&model, Dtype::F32),
    };
    let rows = request.build().ops.into_iter().filter_map(|op| match op {
        Op::Classifier { rows, .. } => Some(rows),
        _ => None,
    });
    assert_eq!(rows.collect::<Vec<_>>(), [0..4, 4..8, 8..9]);
}

#[test]
fn parameters_that_decay_lie_in_front() {
    let layout = Layout::of(&model(true));
    let mut end = 0;
    let mut places: Vec<_> = layout.parameters.iter().zip(&layout.places).collect();
    places.sort_by_key(|(_, place)| place.start);
    for (parameter, place) in places {
        assert_eq!(
            (place.start, place.len()),
            (end, parameter.elements()),
            "{}",
            parameter.name
        );
        assert_eq!(
            parameter.decays(),
            place.end <= layout.decayed,
            "{}",
            parameter.name
        );
        end = place.end;
    }
    assert_eq!(end, layout.elements);
    assert_eq!(end as u64, model(true).parameter_count());
}

#[test]
fn padding_moves_no_parameter_to_the_other_side_and_is_no_parameter() {
    let (model, plain) = (model(true), Layout::of(&model(true)));
    let layout = Layout::padded(&model, 64, 40);
    assert_eq!(layout.padded_wte, 0..40 * 16);
    let mut order: Vec<usize> = (0..layout.places.len()).collect();
    order.sort_by_key(|&i| layout.places[i].start);
    let mut end = 0;
    for i in order {
        let place = &layout.places[i];
        assert!(place.start >= end && place.start.is_multiple_of(64));
        assert_eq!(place.len(), plain.places[i].len());
        assert_eq!(place.end <= layout.decayed, layout.parameters[i].decays());
        end = if i == 0 {
            layout.padded_wte.end
        } else {
            place.end
        };
    }
    assert_eq!(end, layout.elements);
}

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
    }
}

fn plans() -> Vec<Plan> {
    let mut plans = Vec::new();
    for recompute in [Recompute::None, Recompute::Gelu, Recompute::Block] {
        for (backward, dropout) in [(true, true), (true, false), (false, false)] {
            for losses in [true, false] {
                let model = model(dropout);
                let request = PlanRequest {
                    model: &model,
                    batch_size: 2,
                    block_size: 8,
                    backward: backward && losses,
                    dropout: dropout && losses,
                    recompute,
                    losses,
                    attention_scratch: 40,
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
        assert_eq!(end, Some(plan.arena_elements));
        // No plan can do with less than what is alive at its fullest operation.
        let alive = |index: usize| {
            let alive = plan
                .buffers
                .iter()
                .filter(|b| b.life.0 <= index && index <= b.life.1);
            alive.map(|buffer| buffer.elements).sum::<usize>()
        };
        let least = (0..plan.ops.len()).map(alive).max().unwrap();
        assert!(plan.arena_elements >= least);
        assert!(
            plan.arena_elements as f64 <= 1.25 * least as f64,
            "{}",
            plan.arena_elements
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
        attention_scratch: 0,
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

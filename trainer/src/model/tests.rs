//! Parameter counts against nanoGPT's printed figures, and the statistics of the initialisation.

use super::*;

fn shakespeare_char() -> ModelConfig {
    ModelConfig {
        n_layer: 6,
        n_head: 6,
        n_embd: 384,
        block_size: 256,
        vocab_size: 65,
        bias: false,
        gelu: Gelu::Erf,
    }
}

#[test]
fn counts_are_those_that_nanogpt_prints() {
    let model = shakespeare_char();
    assert_eq!(model.parameter_count(), 10_745_088);
    assert_eq!(
        format!(
            "{:.2}M",
            model.parameter_count_without_positions() as f64 / 1e6
        ),
        "10.65M"
    );
    let (decayed, others): (Vec<_>, Vec<_>) =
        model.parameters().into_iter().partition(Parameter::decays);
    let total = |list: &[Parameter]| list.iter().map(Parameter::elements).sum::<usize>();
    assert_eq!((decayed.len(), total(&decayed)), (26, 10_740_096));
    assert_eq!((others.len(), total(&others)), (13, 4_992));

    let gpt2 = ModelConfig {
        n_layer: 12,
        n_head: 12,
        n_embd: 768,
        block_size: 1024,
        vocab_size: 50304,
        bias: false,
        gelu: Gelu::Erf,
    };
    assert_eq!(gpt2.parameter_count(), 124_373_760);
    assert_eq!(
        format!(
            "{:.2}M",
            gpt2.parameter_count_without_positions() as f64 / 1e6
        ),
        "123.59M"
    );
}

#[test]
fn flops_of_shakespeare_char_are_those_of_the_formula() {
    let flops = shakespeare_char().flops_per_token();
    assert_eq!(flops, 6.0 * 10_646_784.0 + 12.0 * 6.0 * 384.0 * 256.0);
}

#[test]
fn initialisation_follows_nanogpt_statistically() {
    let model = ModelConfig {
        bias: true,
        ..shakespeare_char()
    };
    for (tensor, parameter) in model.initialise(1337).iter().zip(model.parameters()) {
        assert_eq!(
            (&tensor.name, &tensor.shape),
            (&parameter.name, &parameter.shape)
        );
        let n = tensor.data.len() as f64;
        let mean = tensor.data.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = tensor
            .data
            .iter()
            .map(|&x| (f64::from(x) - mean).powi(2))
            .sum::<f64>()
            / n;
        let std = variance.sqrt();
        let expected = if tensor.name.ends_with("c_proj.weight") {
            0.02 / 12f64.sqrt()
        } else if tensor.name.contains("ln_") || tensor.name.ends_with("bias") {
            let value = if tensor.name.ends_with("bias") {
                0.0
            } else {
                1.0
            };
            assert!(tensor.data.iter().all(|&x| x == value), "{}", tensor.name);
            continue;
        } else {
            0.02
        };
        // Five standard errors of the mean and of the standard deviation.
        assert!(
            mean.abs() < 5.0 * expected / n.sqrt(),
            "{}: mean {mean}",
            tensor.name
        );
        let error = 5.0 * expected / (2.0 * n).sqrt();
        assert!(
            (std - expected).abs() < error,
            "{}: std {std}, not {expected}",
            tensor.name
        );
        let beyond = tensor
            .data
            .iter()
            .filter(|&&x| f64::from(x).abs() > 2.0 * expected)
            .count();
        let share = beyond as f64 / n;
        assert!(
            (share - 0.0455).abs() < 0.01,
            "{}: {share} beyond 2 sigma",
            tensor.name
        );
    }
}

#[test]
fn seeds_and_tensors_differ() {
    let model = shakespeare_char();
    let (first, again, other) = (
        model.initialise(1),
        model.initialise(1),
        model.initialise(2),
    );
    assert_eq!(first, again);
    assert_ne!(first[0].data, other[0].data);
    assert_ne!(first[3].data[..100], first[9].data[..100]);
}

//! AdamW against the formula in f64, and clipping.

use super::*;

/// Three updates in f64, straight from the paper's algorithm.
fn reference(gradients: &[f64], adamw: AdamW) -> f64 {
    let (mut p, mut m, mut v) = (0.5f64, 0.0f64, 0.0f64);
    for (t, &gradient) in gradients.iter().enumerate() {
        let g = gradient * f64::from(adamw.gradient_scale);
        m = adamw.beta1 * m + (1.0 - adamw.beta1) * g;
        v = adamw.beta2 * v + (1.0 - adamw.beta2) * g * g;
        let exponent = t as i32 + 1;
        let m_hat = m / (1.0 - adamw.beta1.powi(exponent));
        let v_hat = v / (1.0 - adamw.beta2.powi(exponent));
        p -= adamw.learning_rate * adamw.weight_decay * p;
        p -= adamw.learning_rate * m_hat / (v_hat.sqrt() + adamw.eps);
    }
    p
}

#[test]
fn follows_the_formula_with_bias_correction_and_decoupled_decay() {
    let gradients = [0.3, -1.7, 0.02];
    let adamw = AdamW {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        update: 1,
        gradient_scale: 0.7,
    };
    // Longer than one chunk, so that the chunk boundary is crossed too.
    let n = CHUNK + 3;
    let (mut p, mut m, mut v) = (vec![0.5f32; n], vec![0.0; n], vec![0.0; n]);
    for (t, gradient) in gradients.iter().enumerate() {
        let step = AdamW {
            update: t as u64 + 1,
            ..adamw
        };
        step.apply(&mut p, &vec![*gradient as f32; n], &mut m, &mut v);
    }
    let expected = reference(&gradients, adamw);
    for value in p {
        assert!(
            (f64::from(value) - expected).abs() < 1e-7,
            "{value} {expected}"
        );
    }
}

#[test]
fn the_norm_is_global_and_clipping_brings_it_to_the_limit() {
    let gradients = vec![vec![3.0f32; 2 * CHUNK], vec![4.0; 1]];
    let norm = global_norm(&gradients);
    assert!((norm - (9.0 * 2.0 * CHUNK as f64 + 16.0).sqrt()).abs() < 1e-9);
    assert!((norm * f64::from(clip_factor(norm, 1.0)) - 1.0).abs() < 1e-5);
    assert_eq!(clip_factor(0.5, 1.0), 1.0);
    assert_eq!(clip_factor(1e9, 0.0), 1.0);
    assert!(!global_norm(&[vec![f32::NAN]]).is_finite());
}

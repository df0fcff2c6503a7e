//! GELU on the CPU. Called by the plan, and by the epilogues of the matrix multiplication.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::simd::{self, PIECE};

/// out = gelu(x).
pub fn forward(out: &mut [f32], x: &[f32]) {
    assert_eq!(out.len(), x.len());
    let pieces = out.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
    pieces.for_each(|(out, x)| forward_piece(out, x));
}

/// dx *= gelu'(x).
pub fn backward(dx: &mut [f32], x: &[f32]) {
    assert_eq!(dx.len(), x.len());
    let pieces = dx.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
    pieces.for_each(|(dx, x)| backward_piece(dx, x));
}

/// out = gelu(x) in the form with tanh.
pub fn forward_tanh(out: &mut [f32], x: &[f32]) {
    assert_eq!(out.len(), x.len());
    let pieces = out.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
    pieces.for_each(|(out, x)| forward_tanh_piece(out, x));
}

/// dx *= gelu'(x) in the form with tanh.
pub fn backward_tanh(dx: &mut [f32], x: &[f32]) {
    assert_eq!(dx.len(), x.len());
    let pieces = dx.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
    pieces.for_each(|(dx, x)| backward_tanh_piece(dx, x));
}

/// gelu(x) of one element.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    let (cdf, _) = simd::normal(x);
    x * cdf
}

/// gelu'(x) of one element.
#[inline(always)]
pub fn derivative(x: f32) -> f32 {
    let (cdf, density) = simd::normal(x);
    x.mul_add(density, cdf)
}

/// σ(2u) of one element and the derivative of 2u.
#[inline(always)]
fn sigmoid(x: f32) -> (f32, f32) {
    const SCALE: f32 = 2.0 * 0.797_884_6; // 2 sqrt(2/π)
    const CUBIC: f32 = 0.044_715;
    let square = x * x;
    let twice_u = SCALE * x * CUBIC.mul_add(square, 1.0);
    let slope = SCALE * (3.0 * CUBIC).mul_add(square, 1.0);
    (1.0 / (1.0 + simd::exp(-twice_u)), slope)
}

/// gelu(x) of one element in the form with tanh.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    x * sigmoid(x).0
}

/// gelu'(x) of one element in the form with tanh.
#[inline(always)]
pub fn derivative_tanh(x: f32) -> f32 {
    let (sigmoid, slope) = sigmoid(x);
    sigmoid * (x * slope).mul_add(1.0 - sigmoid, 1.0)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_piece(out: &mut [f32], x: &[f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = gelu(x);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward_piece(dx: &mut [f32], x: &[f32]) {
    for (dx, &x) in dx.iter_mut().zip(x) {
        *dx *= derivative(x);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_tanh_piece(out: &mut [f32], x: &[f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = gelu_tanh(x);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward_tanh_piece(dx: &mut [f32], x: &[f32]) {
    for (dx, &x) in dx.iter_mut().zip(x) {
        *dx *= derivative_tanh(x);
    }
}

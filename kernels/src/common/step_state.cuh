// What changes from step to step, in device memory: kernels read it, so that a captured graph
// replays unchanged. Written by the room controller alone. Words as in controller/mod.rs.
#pragma once
#include "device.cuh"

struct StepState {
    // Index of the iteration, from 0: the learning rate's and the report's.
    unsigned step_low, step_high;
    // Added to it for what is drawn: batches and dropout. Grows where a run was rolled back.
    unsigned data_offset_low, data_offset_high;
    // Index within the accumulation, from 0.
    unsigned micro_step;
    // AdamW's updates so far; a skipped step makes none.
    unsigned updates;
    // Two words of a Philox counter, of this micro-step.
    unsigned at[2];
    // Sum of the micro-steps' mean losses, in nats.
    float loss_sum;
    // Factor of the loss's gradient, against underflow in fp16; a power of two.
    float loss_scale;
    // Steps without overflow since the loss scale last changed.
    unsigned good_steps;

    // Of the update at hand.
    unsigned skip;
    float grad_norm;        // before clipping, without the loss scale
    float gradient_scale;   // clipping and the inverse of the loss scale
    float learning_rate;
    float decay;            // 1 - learning rate x weight decay
    float step_size;        // learning rate / (1 - beta1^t)
    float root_correction2; // sqrt(1 - beta2^t)
    unsigned nonfinite;     // gradients that are not finite

    // Reports written to the ring so far.
    unsigned reports;
};
constexpr int STEP_STATE_WORDS = 20;
static_assert(sizeof(StepState) == 4 * STEP_STATE_WORDS, "words as in controller/mod.rs");

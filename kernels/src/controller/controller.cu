// The controller of a step: what a host would decide between two steps, decided on the device, so
// that nothing waits for the host and a captured graph replays unchanged. Formulas: mod.rs.
// One block each; the work of one thread but for the sums, which have a fixed order.
#include "../common/step_state.cuh"

constexpr int THREADS = 256;

// Words as in controller/mod.rs: what stays the same over a run.
struct Settings {
    double learning_rate, min_lr;
    double warmup_iters, lr_decay_iters;  // lr_decay_iters < 0: the rate is constant
    double beta1, beta2, weight_decay, grad_clip;
    double micro_steps;
    double loss_scale_growth_steps;  // 0: the scale stays what it is
    double loss_scale_max;
};
constexpr int SETTINGS_WORDS = 11;
static_assert(sizeof(Settings) == 8 * SETTINGS_WORDS, "words as in controller/mod.rs");

// A line of the ring of reports.
struct Report {
    unsigned step_low, step_high;
    float loss, grad_norm, learning_rate, loss_scale;
    unsigned skipped, nonfinite;
};
constexpr int REPORT_WORDS = 8;
static_assert(sizeof(Report) == 4 * REPORT_WORDS, "words as in controller/mod.rs");

__device__ __forceinline__ unsigned long long wide(unsigned low, unsigned high) {
    return static_cast<unsigned long long>(high) << 32 | low;
}

// The counter's words of a micro-step, as MicroStep::counter of the engines.
__device__ __forceinline__ void set_at(StepState& s) {
    const unsigned long long step = wide(s.step_low, s.step_high) +
                                    wide(s.data_offset_low, s.data_offset_high);
    s.at[0] = unsigned(step);
    s.at[1] = unsigned(step >> 32) | s.micro_step << 16;
}

// Σ x over the block in a fixed order, in every thread.
__device__ __forceinline__ double block_sum_f64(double x) {
    SHARED(double, sums, THREADS);
    sums[threadIdx.x] = x;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    const double sum = sums[0];
    __syncthreads();
    return sum;
}

// The first micro-step of an iteration begins.
__device__ __forceinline__ void controller_begin(unsigned* state) {
    if (threadIdx.x != 0) return;
    StepState& s = *reinterpret_cast<StepState*>(state);
    s.micro_step = 0;
    s.loss_sum = 0.0f;
    set_at(s);
}

// A micro-step is done: its mean loss is added, and the next begins.
__device__ __forceinline__ void controller_micro_step(unsigned* state, const float* losses,
                                                      int rows) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < rows; i += THREADS) sum += losses[i];
    sum = block_sum_f64(sum);
    if (threadIdx.x != 0) return;
    StepState& s = *reinterpret_cast<StepState*>(state);
    s.loss_sum += float(sum / rows);
    s.micro_step += 1;
    set_at(s);
}

// nanoGPT's schedule, as the trainer's schedule.rs.
__device__ __forceinline__ double learning_rate(const Settings& c, double step) {
    constexpr double PI = 3.14159265358979323846;
    if (c.lr_decay_iters < 0.0) return c.learning_rate;
    if (step < c.warmup_iters) return c.learning_rate * (step + 1.0) / (c.warmup_iters + 1.0);
    if (step > c.lr_decay_iters) return c.min_lr;
    const double decay_iters = c.lr_decay_iters - c.warmup_iters;
    const double progress = decay_iters == 0.0 ? 1.0 : (step - c.warmup_iters) / decay_iters;
    return c.min_lr + 0.5 * (1.0 + cos(PI * progress)) * (c.learning_rate - c.min_lr);
}

// x^n by squaring, with the products that the host's powi makes.
__device__ __forceinline__ double power(double x, unsigned n) {
    double result = 1.0;
    for (;;) {
        if (n & 1) result = __dmul_rn(result, x);
        n /= 2;
        if (n == 0) return result;
        x = __dmul_rn(x, x);
    }
}

// The loss scale after this step: halved where something overflowed, doubled after many good steps.
__device__ __forceinline__ void adjust_loss_scale(StepState& s, const Settings& c) {
    if (c.loss_scale_growth_steps == 0.0) return;
    if (s.skip) {
        s.loss_scale = fmaxf(0.5f * s.loss_scale, 1.0f);
        s.good_steps = 0;
    } else if (++s.good_steps >= c.loss_scale_growth_steps) {
        s.loss_scale = fminf(2.0f * s.loss_scale, float(c.loss_scale_max));
        s.good_steps = 0;
    }
}

// All micro-steps are done: what AdamW needs, a report, and the loss scale of the next step.
__device__ __forceinline__ void controller_update(unsigned* state, unsigned* ring,
                                                  const unsigned long long* settings,
                                                  const unsigned long long* partials,
                                                  const unsigned* nonfinite, int count,
                                                  int ring_len) {
    double sum = 0.0, bad = 0.0;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        double partial;
        memcpy(&partial, &partials[i], sizeof(partial));
        sum += partial;
        bad += nonfinite[i];
    }
    sum = block_sum_f64(sum);
    bad = block_sum_f64(bad);
    if (threadIdx.x != 0) return;

    StepState& s = *reinterpret_cast<StepState*>(state);
    const Settings& c = *reinterpret_cast<const Settings*>(settings);
    const double step = double(wide(s.step_low, s.step_high));
    const double norm = sqrt(sum) / s.loss_scale;
    const float loss = s.loss_sum / float(c.micro_steps);
    s.nonfinite = bad > 4294967295.0 ? 0xFFFFFFFFu : unsigned(bad);
    s.grad_norm = float(norm);
    // x - x is 0 for what is finite, else NaN.
    s.skip = !(loss - loss == 0.0f && norm - norm == 0.0) || s.nonfinite != 0;
    const double rate = learning_rate(c, step);
    s.learning_rate = float(rate);
    const float loss_scale = s.loss_scale;
    if (!s.skip) {
        s.updates += 1;
        const double clip = c.grad_clip == 0.0 ? 1.0 : fmin(c.grad_clip / (norm + 1e-6), 1.0);
        s.gradient_scale = float(clip) / loss_scale;
        s.decay = float(1.0 - rate * c.weight_decay);
        s.step_size = float(rate / (1.0 - power(c.beta1, s.updates)));
        s.root_correction2 = float(sqrt(1.0 - power(c.beta2, s.updates)));
    }
    reinterpret_cast<Report*>(ring)[s.reports % unsigned(ring_len)] =
        Report{s.step_low,      s.step_high, loss,   s.grad_norm,
               s.learning_rate, loss_scale,  s.skip, s.nonfinite};
    s.reports += 1;
    adjust_loss_scale(s, c);
}

// The update is done: the next iteration.
__device__ __forceinline__ void controller_end(unsigned* state) {
    if (threadIdx.x != 0) return;
    StepState& s = *reinterpret_cast<StepState*>(state);
    const unsigned long long step = wide(s.step_low, s.step_high) + 1;
    s.step_low = unsigned(step);
    s.step_high = unsigned(step >> 32);
}

KERNEL(controller_begin_step, 32, (unsigned* state), (state), controller_begin)
KERNEL(controller_end_micro_step, THREADS, (unsigned* state, const float* losses, int rows),
       (state, losses, rows), controller_micro_step)
KERNEL(controller_prepare_update, THREADS,
       (unsigned* state, unsigned* ring, const unsigned long long* settings,
        const unsigned long long* partials, const unsigned* nonfinite, int count, int ring_len),
       (state, ring, settings, partials, nonfinite, count, ring_len), controller_update)
KERNEL(controller_end_step, 32, (unsigned* state), (state), controller_end)

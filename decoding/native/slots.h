// Slots: rows of one text that say tokens at once, mixed by MLP-Mixers (shuffle/shufflelm/mixer.py); and ShuffleLM's heads
// behind them. Called layer by layer from Python, starting the layers takes longer than computing them.

#pragma once

#include "model.h"
#include "top.h"

extern "C" {

struct MixerBlock {
    const float *slot_norm, *up, *up_bias, *down, *down_bias;  // [d], [2 K, K], [2 K], [K, 2 K], [K]
    const float* channel_norm;
    Linear channels_up, channels_down;
};

// What ShuffleLM reads off its slots, at most K of them; J positions, M frequencies, V tokens.
struct SlotHeads {
    int64_t hidden, slots, blocks, frequencies, positions;
    float eps, temperature;
    double least;            // of a keep logit
    const MixerBlock* block;
    const float *norm;       // behind the mixers, or null
    const float *places;     // [2 M, J]
    Linear readout, head;    // 2 M angles and a keep logit; V logits
};

// Out, of the n slots that are kept, in their order, which are ``kept``: their keep logits, scores [n, J] and their mean
// positions ``expected`` (where M is not 0), and logits [n, V] or, where these are null, the likeliest token of each.
struct Said {
    int64_t *kept, *tokens;
    float *keep, *scores, *expected, *logits;
};
}

namespace {

// Applied to n floats; the last vector may hold fewer.
template <class F>
inline void each(int64_t n, const float* from, float* to, F function) {
    for (int64_t i = 0; i < n; i += LANES) store_some((Words)function(load_some(from + i, n - i), i), to + i, n - i);
}

// x / 2 (1 + erf(x / sqrt 2)), erf by Abramowitz and Stegun 7.1.26, whose error is below 1.5e-7.
inline Floats gelu(Floats x) {
    const Floats z = (x < 0 ? -x : x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
    Floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Floats erf = 1.0f - p * t * exponential(-z * z);
    return 0.5f * x * (1.0f + (x < 0 ? -erf : erf));
}

// The angles of 2 M numbers, in place, and how well they fit each position: the mean cosine of the errors.
inline void score_positions(float* angles, int64_t width, const float* places, int64_t positions, float* scores) {
    for (int64_t i = 0; i < width; i += 2) {
        const float length = std::sqrt(angles[i] * angles[i] + angles[i + 1] * angles[i + 1]), norm = std::max(length, 1e-12f);
        angles[i] /= norm, angles[i + 1] /= norm;
    }
    std::fill(scores, scores + positions, 0.0f);
    for (int64_t i = 0; i < width; i++)
        for (int64_t j = 0; j < positions; j++) scores[j] += angles[i] * places[i * positions + j];
    for (int64_t j = 0; j < positions; j++) scores[j] /= width / 2;
}

// The slots' states x [K, d] and what mixing them takes. W: the type of the weights of large products.
template <class W>
struct Slots {
    typedef Packed<W> Rows;
    int64_t K, d;
    float eps;
    float *x, *wide, *next;  // [K, d], and room for [K, 2 d] each
    typename Rows::Input* entering;

    Rows packed(int64_t rows, int64_t k) const { return {entering, rows, Rows::padded(k), even<W>(rows)}; }

    // Run by the first thread alone, between two barriers.
    template <class F>
    void alone(F step) const {
#pragma omp barrier
        if (omp_get_thread_num() == 0) step();
#pragma omp barrier
    }

    void enter(const float* from, int64_t rows, int64_t k) const {
        const Rows to = packed(rows, k);
        for (int64_t r = 0; r < rows; r++) to.write(r, 0, from + r * k, k);
    }

    void normalise(const float* weight, float* to) const {
        for (int64_t k = 0; k < K; k++) {
            const float scale = inverse_rms(x + k * d, d, eps);
            for (int64_t i = 0; i < d; i++) to[k * d + i] = x[k * d + i] * scale * weight[i];
        }
    }

    void across(const MixerBlock& b) const {
        normalise(b.slot_norm, wide);
        for (int64_t u = 0; u < 2 * K; u++) {
            float* raised = next + u * d;
            std::fill(raised, raised + d, b.up_bias[u]);
            for (int64_t k = 0; k < K; k++)
                for (int64_t i = 0; i < d; i++) raised[i] += b.up[u * K + k] * wide[k * d + i];
            each(d, raised, raised, [](Floats y, int64_t) { return gelu(y); });
        }
        for (int64_t k = 0; k < K; k++) {
            for (int64_t i = 0; i < d; i++) x[k * d + i] += b.down_bias[k];
            for (int64_t u = 0; u < 2 * K; u++)
                for (int64_t i = 0; i < d; i++) x[k * d + i] += b.down[k * 2 * K + u] * next[u * d + i];
        }
    }

    // Run by all threads.
    void mix(const MixerBlock* blocks, int64_t count) const {
        for (int64_t index = 0; index < count; index++) {
            const MixerBlock& b = blocks[index];
            alone([&] {
                across(b);
                normalise(b.channel_norm, wide);
                enter(wide, K, d);
            });
            product<W, Store::SET>(b.channels_up, packed(K, d), 0, next);
            alone([&] {
                each(2 * K * d, next, next, [](Floats y, int64_t) { return gelu(y); });
                enter(next, K, 2 * d);
            });
            product<W, Store::ADD>(b.channels_down, packed(K, 2 * d), 0, x);
        }
    }
};

// ShuffleLM's heads (shuffle/shufflelm/model.py) and which slots are kept (shuffle/shufflelm/ordering.py).
template <class W>
struct Heads : Slots<W> {
    typedef Slots<W> Base;
    using Base::K, Base::d, Base::x, Base::wide, Base::next, Base::alone, Base::enter, Base::packed;
    const SlotHeads& m;
    const Said& said;
    float *read, *logits;
    int64_t count = 0;  // of kept slots

    Heads(const SlotHeads& heads, const Said& out, int64_t slots) : m(heads), said(out) { K = slots, d = m.hidden, this->eps = m.eps; }

    // Where everything lies; the floats that the scratch memory needs.
    int64_t place(float* scratch) {
        float* at = scratch;
        const auto take = [&](int64_t floats) { return std::exchange(at, at + (floats + LANES) / LANES * LANES); };
        x = take(K * d), wide = take(2 * K * d), next = take(2 * K * d), read = take(K * m.readout.n);
        this->entering = reinterpret_cast<typename Base::Rows::Input*>(take(K * Base::Rows::floats(2 * d)));
        logits = said.logits ? said.logits : take(K * m.head.n);
        return at - scratch;
    }

    float keep_of(int64_t k) const { return read[(k + 1) * m.readout.n - 1]; }

    // Which slots are kept, the best one at least, and where they would stand.
    void keep() {
        int64_t best = 0;
        for (int64_t k = 1; k < K; k++)
            if (keep_of(k) > keep_of(best)) best = k;
        for (int64_t k = 0; k < K; k++)
            if (keep_of(k) >= m.least) said.kept[count++] = k;
        if (!count) said.kept[count++] = best;
        for (int64_t n = 0; n < count; n++) said.keep[n] = keep_of(said.kept[n]);
        for (int64_t n = 0; m.frequencies && n < count; n++) {
            float* scores = said.scores + n * m.positions;
            score_positions(read + said.kept[n] * m.readout.n, 2 * m.frequencies, m.places, m.positions, scores);
            const float most = *std::max_element(scores, scores + m.positions);
            float sum = 0, mean = 0;
            for (int64_t j = 0; j < m.positions; j++) {
                const float chance = std::exp((scores[j] - most) / m.temperature);
                sum += chance, mean += chance * j;
            }
            said.expected[n] = mean / sum;
        }
    }

    // Run by all threads.
    void say(const float* hidden) {
        alone([&] { std::copy(hidden, hidden + K * d, x); });
        this->mix(m.block, m.blocks);
        alone([&] {
            if (m.norm) this->normalise(m.norm, wide);
            else std::copy(x, x + K * d, wide);
            enter(wide, K, d);
        });
        product<W, Store::SET>(m.readout, packed(K, d), 0, read);
        alone([&] {
            keep();
            for (int64_t n = 0; n < count; n++) packed(count, d).write(n, 0, wide + said.kept[n] * d, d);
        });
        product<W, Store::SET>(m.head, packed(count, d), 0, logits);
        if (said.logits) return;
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t n = 0; n < count; n++) {
            float most;
            top_of_row(logits + n * m.head.n, m.head.n, 1, &most, said.tokens + n, nullptr);
        }
    }
};

// What the slots say of which the backbone's last states are ``hidden``, [slots, d]; returns how many are kept.
template <class W>
int64_t slots_say(const SlotHeads& heads, const float* hidden, int64_t slots, float* scratch, const Said& said) {
    Heads<W> shared(heads, said, slots);
    shared.place(scratch);
#pragma omp parallel
    shared.say(hidden);
    return shared.count;
}

}  // namespace

extern "C" {

int64_t slots_scratch_floats(const SlotHeads* heads, int64_t slots) {
    return Heads<float>(*heads, {}, slots).place(nullptr);
}

int64_t slots_say_float32(const SlotHeads* heads, const float* hidden, int64_t slots, float* scratch, const Said* said) {
    return slots_say<float>(*heads, hidden, slots, scratch, *said);
}

int64_t slots_say_bfloat16(const SlotHeads* heads, const float* hidden, int64_t slots, float* scratch, const Said* said) {
    return slots_say<bf16>(*heads, hidden, slots, scratch, *said);
}
}

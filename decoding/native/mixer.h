// FasterDecodeMixer's guesses from one hidden state (shuffle/fasterdecodemixer): a few products, read once, and between
// them steps too small to be shared out. Called layer by layer, starting the layers takes longer than reading them.
//
// Products are shared out by panels; the first thread takes the small steps, and each waits where it needs the other's.

#pragma once

#include "slots.h"
#include "top.h"

extern "C" {

// K slots, J positions, S tokens of the shortlist; row S of the tables is any other token.
struct Mixer {
    int64_t hidden, slots, positions, shortlist, context, blocks, rotary, candidates;
    float eps, sharpness;
    Linear merge, fan, readout, blend, output;
    const MixerBlock* block;
    const float *embedded, *follow, *rows;  // [S + 1, d]
    const float *place_of_slot, *keep_of_slot, *places;  // [K, rotary], [K], [rotary, J]
};
}

namespace {

inline float dot(const float* a, const float* b, int64_t n) {
    Floats sum{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sum = multiply_add(sum, load<Floats>(a + i), load<Floats>(b + i));
    float found = total(sum);
    for (; i < n; i++) found += a[i] * b[i];
    return found;
}

inline float log_total(const float* row, int64_t n) { return log_total(row, n, *std::max_element(row, row + n)); }

struct Guess : Slots<bf16> {
    const Mixer& m;
    const float* hidden;
    const int64_t* context;
    int64_t J, S, C;
    float *read, *blended, *logits, *mixed, *links;  // scratch
    float *weights, *keep_logits, *totals, *told;
    int64_t *homes, *best;
    float *chosen, *chances, *after, *keep;  // out

    Guess(const Mixer& mixer, const float* state, const int64_t* tokens) : m(mixer), hidden(state), context(tokens) {}

    // Where everything lies; the floats that the scratch memory needs.
    int64_t place(float* scratch, float* out) {
        eps = m.eps, d = m.hidden, K = m.slots, J = m.positions, S = m.shortlist, C = m.candidates;
        float* at = scratch;
        const auto take = [&](int64_t floats) { return std::exchange(at, at + (floats + LANES) / LANES * LANES); };
        const int64_t widest = std::max((1 + m.context) * d, 2 * K * d);
        wide = take(widest), x = take(K * d), next = take(2 * K * d), read = take(K * (m.rotary + 1)), blended = take(K * d);
        logits = take(K * S), mixed = take(J * S), links = take(K * C * C);
        weights = take(K * J), keep_logits = take(K), totals = take(K), told = take(K * C * d);
        entering = reinterpret_cast<Rows::Input*>(take(widest + K + 1));
        homes = reinterpret_cast<int64_t*>(take(2 * K)), best = reinterpret_cast<int64_t*>(take(2 * J * C));
        chosen = out, chances = chosen + J * C, after = chances + J * C, keep = after + (J - 1) * C * C;
        return at - scratch;
    }

    void fan_out() {
        alone([&] {
            std::copy(hidden, hidden + d, wide);
            for (int64_t c = 0; c < m.context; c++)
                std::copy(m.embedded + context[c] * d, m.embedded + (context[c] + 1) * d, wide + (1 + c) * d);
            enter(wide, 1, (1 + m.context) * d);
        });
        product<bf16, Store::SET>(m.merge, packed(1, (1 + m.context) * d), 0, next);
        alone([&] {
            each(d, next, wide, [&](Floats y, int64_t i) { return load_some(hidden + i, d - i) + silu(y); });
            enter(wide, 1, d);
        });
        product<bf16, Store::SET>(m.fan, packed(1, d), 0, next);
        alone([&] {
            for (int64_t k = 0; k < K; k++)
                each(d, next + k * d, x + k * d, [&](Floats y, int64_t i) { return load_some(wide + i, d - i) + silu(y); });
        });
    }

    // Each slot's position, and its share in each: softmax over the slots of sharpness * score + log sigmoid(keep).
    void stand() const {
        const int64_t stride = m.rotary + 1;
        for (int64_t k = 0; k < K; k++) {
            float* angle = read + k * stride;
            for (int64_t i = 0; i < m.rotary; i++) angle[i] += m.place_of_slot[k * m.rotary + i];
            keep_logits[k] = angle[m.rotary] + m.keep_of_slot[k];
            float* score = weights + k * J;
            score_positions(angle, m.rotary, m.places, J, score);
            homes[k] = std::max_element(score, score + J) - score;
            const float kept = -std::log1p(std::exp(-std::abs(keep_logits[k]))) + std::min(keep_logits[k], 0.0f);
            for (int64_t j = 0; j < J; j++) score[j] = m.sharpness * score[j] + kept;
        }
        for (int64_t j = 0; j < J; j++) {
            float most = weights[j], sum = 0;
            for (int64_t k = 1; k < K; k++) most = std::max(most, weights[k * J + j]);
            for (int64_t k = 0; k < K; k++) sum += weights[k * J + j] = std::exp(weights[k * J + j] - most);
            for (int64_t k = 0; k < K; k++) weights[k * J + j] /= sum;
        }
    }

    // What a slot says once it is told the token before its own.
    void tell(int64_t k, int64_t row, float* to) const {
        const float *follows = m.follow + row * d, *blend = blended + k * d;
        each(d, x + k * d, to, [&](Floats state, int64_t i) {
            return state + silu(load_some(blend + i, d - i) + load_some(follows + i, d - i));
        });
    }

    void say() {
        alone([&] { enter(x, K, d); });
        product<bf16, Store::SET>(m.readout, packed(K, d), 0, read);
        product<bf16, Store::SET>(m.blend, packed(K, d), 0, blended);
        alone([&] {
            stand();
            for (int64_t k = 0; k < K; k++) tell(k, homes[k] ? S : context[m.context - 1], wide + k * d);
            enter(wide, K, d);
        });
        product<bf16, Store::SET>(m.output, packed(K, d), 0, logits);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t k = 0; k < K; k++) {
            totals[k] = log_total(logits + k * S, S);
            each(S, logits + k * S, logits + k * S, [&](Floats y, int64_t) { return exponential(y - totals[k]); });
        }
#pragma omp for schedule(static)
        for (int64_t j = 0; j < J; j++) {
            float* row = mixed + j * S;
            each(S, logits, row, [&](Floats y, int64_t) { return y * weights[j]; });
            for (int64_t k = 1; k < K; k++)
                each(S, logits + k * S, row, [&](Floats y, int64_t i) { return load_some(row + i, S - i) + y * weights[k * J + j]; });
            top_of_row(row, S, C, chances + j * C, best + j * C, nullptr);
            std::copy(best + j * C, best + (j + 1) * C, chosen + j * C);
        }
    }

    // The chance of each candidate of a slot's position after each of the position before. All but the candidates keep the
    // weight that they had before the slot was told.
    void link() {
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < K * C; pair++) {
            const int64_t k = pair / C, home = homes[k];
            if (home == 0) continue;
            const int64_t* children = best + home * C;
            float *row = links + pair * C, *state = told + pair * d, known = 0;
            tell(k, best[(home - 1) * C + pair % C], state);
            for (int64_t b = 0; b < C; b++) {
                row[b] = dot(state, m.rows + children[b] * d, d);
                known += logits[k * S + children[b]];
            }
            const float others = std::log(std::max(1 - known, 1e-6f)) + totals[k], among = log_total(row, C);
            const float all_of_it = std::max(among, others) + std::log1p(std::exp(-std::abs(among - others)));
            for (int64_t b = 0; b < C; b++) row[b] = std::exp(row[b] - all_of_it);
        }
        alone([&] {
            for (int64_t j = 0; j < J; j++) {
                float share = 0;
                keep[j] = 0;
                for (int64_t k = 0; k < K; k++) {
                    if (homes[k] != j) continue;
                    share += weights[k * J + j];
                    keep[j] = std::max(keep[j], 1 / (1 + std::exp(-keep_logits[k])));
                }
                if (j == 0) continue;
                for (int64_t ab = 0; ab < C * C; ab++) {
                    float sum = 0;
                    for (int64_t k = 0; k < K; k++)
                        if (homes[k] == j) sum += weights[k * J + j] * links[k * C * C + ab];
                    // A position that no slot calls home has no links: its candidates stand as they are.
                    after[(j - 1) * C * C + ab] = share > 0 ? sum / std::max(share, 1e-9f) : chances[j * C + ab % C];
                }
            }
        });
    }
};

}  // namespace

extern "C" {

int64_t mixer_scratch_floats(const Mixer* m) {
    return Guess(*m, nullptr, nullptr).place(nullptr, nullptr);
}

// What the slots say after the tokens ``context`` (rows of the shortlist), the last of which was chosen from ``hidden``:
// each position's candidates, their chances, their links, and the keep chances, [J C + J C + (J - 1) C C + J].
void mixer_guess(const Mixer* m, const float* hidden, const int64_t* context, float* scratch, float* out) {
    Guess shared(*m, hidden, context);
    shared.place(scratch, out);
#pragma omp parallel
    {
        shared.fan_out();
        shared.mix(m->block, m->blocks);
        shared.say();
        shared.link();
    }
}
}

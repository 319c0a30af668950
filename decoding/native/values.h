// Sums of the values of a batch's rows, weighted by the scores of attention.

#pragma once

#include <type_traits>

#include "model.h"

namespace {

constexpr int VALUES = 64;  // keys whose values are laid out, and added to the sums of all queries, together
inline int64_t whole(int64_t dim) { return (dim + LANES - 1) / LANES * LANES; }  // in whole vectors

// What sums of values are made of: two keys to a multiply-add where it takes two neighbours of bfloat16, otherwise one,
// widened. Of two neighbours the instruction adds the odd one first, each sum rounded to float32: with the earlier key
// there, it is one key after the other, wherever in the cache each lies. Measured at 1,000 keys: a pass takes 0.90 to 0.98
// of the time.
template <class T>
using Weighted = std::conditional_t<Product<T>::PAIR == 2 && Product<T>::STEPS == 1, Product<T>, Product<float>>;

// Up to LANES numbers of a row of values, each as the upper half of a word, which is its float.
inline Words halves(const bf16* row, int64_t count) {
    Halves some{};
    count < LANES ? std::memcpy(&some, row, sizeof(bf16) * count) : std::memcpy(&some, row, sizeof(some));
    return __builtin_convertvector(some, Words) << 16;
}
inline Words halves(const float* row, int64_t count) { return (Words)load_some(row, count); }

// ``count`` rows of values as words, [count / KEYS][wide]; ``wide`` is ``dim`` in whole vectors.
template <int KEYS, class T>
void lay_out_values(const T* rows, int64_t count, int64_t dim, int64_t wide, float* to) {
    for (int64_t j = 0; j < count; j += KEYS, to += wide)
        for (int64_t i = 0; i < dim; i += LANES) {
            Words words = halves(rows + j * dim + i, dim - i);
            if (KEYS == 2 && j + 1 < count) words |= halves(rows + (j + 1) * dim + i, dim - i) >> 16;
            std::memcpy(to + i, &words, sizeof(words));
        }
}

// Scores of ``leading`` keys in pairs, each a word, earlier key above; what one word holds is read before it is written.
inline void pair_up(float* row, int64_t leading) {
    Ints early, late;
    for (int lane = 0; lane < LANES; lane++) early[lane] = 2 * lane, late[lane] = 2 * lane + 1;
    for (int64_t i = 0; i < leading; i += 2 * LANES) {
        const Floats first = load_some(row + i, leading - i);
        const Floats second = leading - i > LANES ? load_some(row + i + LANES, leading - i - LANES) : Floats{};
        const Words words =
            upper(__builtin_shuffle(first, second, early)) << 16 | upper(__builtin_shuffle(first, second, late));
        store_some(words, row + i / 2, (leading - i + 1) / 2);
    }
}

// Scores of ``count`` keys to what multiplies the words of their values, in place, rounded to T: those of the first
// ``leading`` in pairs where two keys are taken at once, each of the others alone.
template <class T>
void enter_scores(float* row, int64_t leading, int64_t count) {
    if (std::is_same_v<T, float>) return;
    int64_t from = 0, to = 0;
    if (Weighted<T>::PAIR == 2) pair_up(row, leading), from = leading, to = (leading + 1) / 2;
    for (; from < count; from += LANES, to += LANES)
        store_some(upper(load_some(row + from, count - from)) << 16, row + to, count - from);
}

// sums[q] += scores[q][j] * values[j] for Q queries and N vectors of each, j one after the other.
template <class S, int Q, int N>
inline void add_lanes(const float* values, const float* scores, int64_t wide, int64_t stride, int64_t count, float* sums) {
    Floats sum[Q][N];
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sum[q][n] = load<Floats>(sums + q * wide + n * LANES);
    for (int64_t j = 0; j < count; j++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            const auto* words = reinterpret_cast<const typename S::Number*>(values + j * wide + n * LANES);
            const typename S::Lanes lanes = S::template lanes<0>(words);
#pragma GCC unroll 4
            for (int q = 0; q < Q; q++)
                sum[q][n] = S::add(sum[q][n], lanes, reinterpret_cast<const typename S::Input*>(scores + q * stride + j));
        }
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) std::memcpy(sums + q * wide + n * LANES, &sum[q][n], sizeof(Floats));
}

template <class S, int Q>
void add_weighted(int64_t queries, const float* values, const float* scores, int64_t wide, int64_t stride, int64_t count,
                  float* sums) {
    if constexpr (Q > 1)
        if (queries < Q) return add_weighted<S, Q - 1>(queries, values, scores, wide, stride, count, sums);
    int64_t i = 0;
    constexpr int N = REGISTERS / 8;
    for (; i + N * LANES <= wide; i += N * LANES) add_lanes<S, Q, N>(values + i, scores, wide, stride, count, sums + i);
    for (; i < wide; i += LANES) add_lanes<S, Q, 1>(values + i, scores, wide, stride, count, sums + i);
}

// sums[q] = the values weighted by the scores, a key at a time in the order of its position.
template <class T, class E>
void add_values(const Run<T, E>& run, int index, int head, int64_t first, int64_t queries, int64_t stride, float* scores,
                float* block, float* sums) {
    typedef Weighted<T> S;
    constexpr int KEYS = S::PAIR;
    const int64_t dim = run.m.head_dim, wide = whole(dim), group = run.m.heads / run.m.kv_heads, before = run.length(first);
    const T* rows = run.values(index, head, first);
    const auto seen = [&](int64_t q) -> const Sight& { return run.sight[first + q / group]; };
    std::fill(sums, sums + queries * wide, 0.0f);
    int64_t most = 0;
    for (int64_t q = 0; q < queries; q++) {
        const int64_t leading = before + seen(q).leading;
        most = std::max(most, leading);
        enter_scores<T>(scores + q * stride, leading, leading + int64_t(seen(q).others.size()));
    }
    for (int64_t at = 0; at < most; at += VALUES) {
        lay_out_values<KEYS>(rows + at * dim, std::min<int64_t>(VALUES, most - at), dim, wide, block);
        const auto words = [&](int64_t q) {
            return (std::clamp<int64_t>(before + seen(q).leading - at, 0, VALUES) + KEYS - 1) / KEYS;
        };
        for (int64_t q = 0; q < queries;) {  // up to four queries to each value that is loaded
            const int64_t here = words(q);
            int64_t alike = 1;
            while (alike < 4 && q + alike < queries && words(q + alike) == here) alike++;
            add_weighted<S, 4>(alike, block, scores + q * stride + at / KEYS, wide, stride, here, sums + q * wide);
            q += alike;
        }
    }
    for (int64_t q = 0; q < queries; q++) {
        int64_t at = (before + seen(q).leading + KEYS - 1) / KEYS;
        for (const int32_t other : seen(q).others) {
            lay_out_values<1>(rows + (before + other) * dim, 1, dim, wide, block);
            add_weighted<S, 1>(1, block, scores + q * stride + at++, wide, stride, 1, sums + q * wide);
        }
    }
}

}  // namespace

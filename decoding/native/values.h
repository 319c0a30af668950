// Sums of the values of a batch's rows, weighted by the scores of attention.

#pragma once

#include <type_traits>

#include "piece.h"

namespace {

constexpr int VALUES = 64;  // keys whose values are laid out, and added to the sums of all queries, together
inline int64_t whole(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }  // in whole vectors

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

// Some columns of ``count`` rows of values, ``apart`` numbers from one row to the next, as words [count / KEYS][wide];
// ``wide`` is ``columns`` in whole vectors.
template <int KEYS, class T>
void lay_out_values(const T* rows, int64_t apart, int64_t count, int64_t columns, int64_t wide, float* to) {
    for (int64_t j = 0; j < count; j += KEYS, to += wide)
        for (int64_t i = 0; i < columns; i += LANES) {
            Words words = halves(rows + j * apart + i, columns - i);
            if (KEYS == 2 && j + 1 < count) words |= halves(rows + (j + 1) * apart + i, columns - i) >> 16;
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

// What is added to the sums of some queries: ``count`` values, each times the queries' scores.
struct Addition {
    const float *values, *scores;  // [count, apart], [queries, stride]
    int64_t apart, stride, count;
    float* sums;  // [queries, wide]
    int64_t wide;
};

// sums[q] += scores[q][j] * values[j] for Q queries and N vectors of each from ``at`` on, j one after the other.
template <class S, int Q, int N>
inline void add_lanes(const Addition& of, int64_t at) {
    Floats sum[Q][N];
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sum[q][n] = load<Floats>(of.sums + q * of.wide + at + n * LANES);
    const float *values = of.values + at, *scores = of.scores;
    const int64_t apart = of.apart, stride = of.stride;
    for (int64_t j = 0; j < of.count; j++) {
        typename S::Lanes lanes[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            lanes[n] = S::template lanes<0>(reinterpret_cast<const typename S::Number*>(values + j * apart + n * LANES));
            hold(lanes[n]);
        }
#pragma GCC unroll 8
        for (int q = 0; q < Q; q++)
#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
                sum[q][n] = S::add(sum[q][n], lanes[n], reinterpret_cast<const typename S::Input*>(scores + q * stride + j));
    }
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) std::memcpy(of.sums + q * of.wide + at + n * LANES, &sum[q][n], sizeof(Floats));
}

constexpr int TOGETHER = LANES == 8 ? 6 : 4;  // queries whose sums of N vectors registers hold, beside the N and one score

template <class S, int Q>
void add_weighted(int64_t queries, const Addition& of) {
    if constexpr (Q > 1)
        if (queries < Q) return add_weighted<S, Q - 1>(queries, of);
    int64_t i = 0;
    constexpr int N = REGISTERS / 8;
    for (; i + N * LANES <= of.wide; i += N * LANES) add_lanes<S, Q, N>(of, i);
    for (; i + 2 * LANES <= of.wide; i += 2 * LANES) add_lanes<S, Q, 2>(of, i);
    for (; i < of.wide; i += LANES) add_lanes<S, Q, 1>(of, i);
}

// sums[q] = columns [from, to) of the values weighted by the scores, a key at a time in the order of its position.
template <class T>
void add_values(const Piece<T>& piece, int64_t from, int64_t to, float* block, float* sums) {
    typedef Weighted<T> S;
    constexpr int KEYS = S::PAIR;
    const int64_t columns = to - from, wide = whole(columns);
    const T* rows = piece.values + from;
    // Floats in whole vectors are what is multiplied already.
    const bool as_they_are = std::is_same_v<T, float> && columns == wide;
    const auto addition = [&](int64_t q, int64_t key, int64_t score, int64_t count) {
        const float *scores = piece.scores_of(q) + score, *as_laid_out = block;
        const float* values = as_they_are ? reinterpret_cast<const float*>(rows + key * piece.dim) : as_laid_out;
        return Addition{values, scores, as_they_are ? piece.dim : wide, piece.stride, count, sums + q * wide, wide};
    };
    std::fill(sums, sums + piece.queries * wide, 0.0f);
    int64_t most = 0;
    for (int64_t q = 0; q < piece.queries; q++) most = std::max(most, piece.leading(q));
    for (int64_t at = 0; at < most; at += VALUES) {
        if (!as_they_are)
            lay_out_values<KEYS>(rows + at * piece.dim, piece.dim, std::min<int64_t>(VALUES, most - at), columns, wide, block);
        const auto words = [&](int64_t q) { return (std::clamp<int64_t>(piece.leading(q) - at, 0, VALUES) + KEYS - 1) / KEYS; };
        for (int64_t q = 0; q < piece.queries;) {  // up to TOGETHER queries to each value that is loaded
            const int64_t here = words(q);
            int64_t alike = 1;
            while (alike < TOGETHER && q + alike < piece.queries && words(q + alike) == here) alike++;
            add_weighted<S, TOGETHER>(alike, addition(q, at, at / KEYS, here));
            q += alike;
        }
    }
    for (int64_t q = 0; q < piece.queries; q++) {
        int64_t at = (piece.leading(q) + KEYS - 1) / KEYS;
        for (const int32_t other : piece.seen(q).others) {
            const int64_t key = piece.before + other;
            if (!as_they_are) lay_out_values<1>(rows + key * piece.dim, piece.dim, 1, columns, wide, block);
            add_weighted<S, 1>(1, addition(q, key, at++, 1));
        }
    }
}

}  // namespace

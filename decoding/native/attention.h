// Attention of the rows of a batch over the cache, each row its keys in the order of their positions.

#pragma once

#include "model.h"

namespace {

inline void rotate(const Model& m, const float* from, const float* norm, int64_t position, float* to) {
    const int64_t half = m.head_dim / 2;
    const float scale = norm ? inverse_rms(from, m.head_dim, m.eps) : 1.0f;
    const float *cosine = m.cosine + position * m.head_dim, *sine = m.sine + position * m.head_dim;
    const auto at = [&](int64_t i) { return norm ? from[i] * scale * norm[i] : from[i]; };
    for (int64_t i = 0; i < half; i++) to[i] = at(i) * cosine[i] + at(i + half) * sine[i];
    for (int64_t i = half; i < m.head_dim; i++) to[i] = at(i) * cosine[i] + at(i - half) * sine[i];
}

template <class T>
inline void narrow_all(const float* from, int64_t count, T* to) {
    T lanes[LANES];
    for (int64_t i = 0; i < count; i += LANES) {
        narrow(load_some(from + i, count - i), lanes);
        std::memcpy(to + i, lanes, sizeof(T) * std::min<int64_t>(LANES, count - i));
    }
}

template <class T, class E>
void write_cache(const Run<T, E>& run, const Layer& layer, int index) {
    const Model& m = run.m;
    const Batch& b = run.b;
    const auto [from, to] = run.share(b.width * m.kv_heads);
    std::vector<float> key_row(m.head_dim);
    for (int64_t item = from; item < to; item++) {
        const int64_t w = item / m.kv_heads, head = item % m.kv_heads, row = run.slot(w) * m.head_dim;
        const float* key = run.qkv + w * run.qkv_width + (m.heads + head) * m.head_dim;
        const float* value = key + m.kv_heads * m.head_dim;
        rotate(m, key, layer.key_norm, b.positions[w], key_row.data());
        narrow_all(key_row.data(), m.head_dim, run.keys(index, int(head), w) + row);
        narrow_all(value, m.head_dim, run.values(index, int(head), w) + row);
    }
}

// Up to 16 keys as a panel of weights: [dim / pair][16][pair].
template <class T>
void lay_out(const T* rows, int64_t dim, int count, float* to) {
    constexpr int PAIR = Product<T>::PAIR;
    T* panel = reinterpret_cast<T*>(to);
    if (count < PANEL) std::memset(panel, 0, sizeof(T) * PANEL * dim);
    for (int64_t i = 0; i < dim; i += PAIR)
        for (int lane = 0; lane < count; lane++)
            std::memcpy(panel + (i * PANEL + lane * PAIR), rows + lane * dim + i, sizeof(T) * PAIR);
}

// Scores to probabilities, in place.
inline void soften(float* row, int64_t count, float scale) {
    Floats highest = Floats{} - INFINITY, parts{};
    for (int64_t i = 0; i + LANES <= count; i += LANES) {
        const Floats part = load<Floats>(row + i);
        highest = part > highest ? part : highest;
    }
    float most = highest_of(highest);
    for (int64_t i = count / LANES * LANES; i < count; i++) most = std::max(most, row[i]);
    for (int64_t i = 0; i < count; i += LANES) {
        Floats part = exponential((load<Floats>(row + i) - most) * scale);
        for (int lane = int(std::min<int64_t>(LANES, count - i)); lane < LANES; lane++) part[lane] = 0;
        std::memcpy(row + i, &part, sizeof(part));
        parts += part;
    }
    const float share_of_one = 1.0f / total(parts);
    for (int64_t i = 0; i < count; i++) row[i] *= share_of_one;
}

template <int Q, int N>
inline void add_lanes(const float* rows, const float* weights, int64_t dim, int64_t stride, int64_t count,
                      float* sums) {
    Floats sum[Q][N];
    for (int q = 0; q < Q; q++)
        for (int n = 0; n < N; n++) sum[q][n] = load<Floats>(sums + q * dim + n * LANES);
    for (int64_t j = 0; j < count; j++)
        for (int n = 0; n < N; n++) {
            const Floats row = load<Floats>(rows + j * dim + n * LANES);
            for (int q = 0; q < Q; q++)
                sum[q][n] = multiply_add(sum[q][n], row, all(weights[q * stride + j]));
        }
    for (int q = 0; q < Q; q++)
        for (int n = 0; n < N; n++) std::memcpy(sums + q * dim + n * LANES, &sum[q][n], sizeof(Floats));
}

// sums[q] += weights[q][j] * rows[j] for Q queries, j one after the other.
template <int Q>
void add_weighted(const float* rows, const float* weights, int64_t dim, int64_t stride, int64_t count, float* sums) {
    int64_t i = 0;
    constexpr int N = REGISTERS / 8;
    for (; i + N * LANES <= dim; i += N * LANES) add_lanes<Q, N>(rows + i, weights, dim, stride, count, sums + i);
    for (; i + LANES <= dim; i += LANES) add_lanes<Q, 1>(rows + i, weights, dim, stride, count, sums + i);
    for (; i < dim; i++)
        for (int q = 0; q < Q; q++)
            for (int64_t j = 0; j < count; j++)
                sums[q * dim + i] = std::fma(weights[q * stride + j], rows[j * dim + i], sums[q * dim + i]);
}

// sums[q] = the values weighted by the scores, a key at a time in the order of its position.
template <class T, class E>
void add_values(const Run<T, E>& run, int index, int head, int64_t first, int64_t queries, int64_t stride,
                const float* scores, float* block, float* sums) {
    const int64_t dim = run.m.head_dim, group = run.m.heads / run.m.kv_heads, before = run.length(first);
    const T* rows = run.values(index, head, first);
    const std::vector<Sight>& sight = run.sight;
    std::fill(sums, sums + queries * dim, 0.0f);
    int64_t most = 0;
    for (int64_t q = 0; q < queries; q++) most = std::max(most, before + sight[first + q / group].leading);
    for (int64_t at = 0; at < most; at += PANEL) {
        const int64_t filled = std::min<int64_t>(PANEL, most - at);
        for (int64_t i = 0; i < filled * dim; i++) block[i] = widen(rows[at * dim + i]);
        const auto count = [&](int64_t q) {
            return std::clamp<int64_t>(before + sight[first + q / group].leading - at, 0, filled);
        };
        for (int64_t q = 0; q < queries; q++) {
            const float* weights = scores + q * stride + at;
            const bool together = q + 4 <= queries && count(q) == filled && count(q + 3) == filled &&
                                  count(q + 1) == filled && count(q + 2) == filled;
            if (together) {  // four queries to each value that is loaded
                add_weighted<4>(block, weights, dim, stride, filled, sums + q * dim);
                q += 3;
            } else {
                add_weighted<1>(block, weights, dim, stride, count(q), sums + q * dim);
            }
        }
    }
    for (int64_t q = 0; q < queries; q++) {
        const Sight& seen = sight[first + q / group];
        int64_t at = before + seen.leading;
        for (const int32_t other : seen.others) {
            for (int64_t i = 0; i < dim; i++) block[i] = widen(rows[(before + other) * dim + i]);
            add_weighted<1>(block, scores + q * stride + at++, dim, stride, 1, sums + q * dim);
        }
    }
}

template <class T, class E>
void attend_piece(const Run<T, E>& run, const Layer& layer, int index, int head, int64_t first, int64_t last) {
    const Model& m = run.m;
    const Batch& b = run.b;
    const std::vector<Sight>& sight = run.sight;
    static thread_local std::vector<float> memory;
    const int64_t group = m.heads / m.kv_heads, queries = (last - first) * group, dim = m.head_dim;
    int64_t end = 0;  // one past the last row of the cache that a query sees
    for (int64_t w = first; w < last; w++)
        end = std::max(end, run.length(w) + (sight[w].others.empty() ? sight[w].leading : w + 1));
    const int64_t blocks = (end + PANEL - 1) / PANEL, stride = blocks * PANEL;
    memory.resize(queries * (stride + 2 * dim) + 2 * PANEL * dim);
    float* scores = memory.data();                                     // [queries, stride]
    float* sums = scores + queries * stride;                           // [queries, dim]
    float* block = sums + queries * dim;                               // [16, dim] of values, or keys laid out
    const Packed<T> query{reinterpret_cast<typename Packed<T>::Input*>(block + 2 * PANEL * dim), queries, dim};
    for (int64_t q = 0; q < queries; q++) {
        const int64_t w = first + q / group;
        const float* own = run.qkv + w * run.qkv_width + (head * group + q % group) * dim;
        rotate(m, own, layer.query_norm, b.positions[w], sums);
        query.write(q, 0, sums, dim);
    }
    for (int64_t at = 0; at < blocks; at++) {
        lay_out(run.keys(index, head, first) + at * PANEL * dim, dim, int(std::min<int64_t>(PANEL, end - at * PANEL)), block);
        for (int64_t q = 0; q < queries; q += ROWS) {
            Floats found[ROWS * PARTS];
            const int some = int(std::min<int64_t>(ROWS, queries - q));
            panel_times(reinterpret_cast<const T*>(block), query.block(q), some, int(dim), found);
            for (int i = 0; i < some; i++)
                std::memcpy(scores + (q + i) * stride + at * PANEL, found + i * PARTS, PARTS * sizeof(Floats));
        }
    }
    for (int64_t q = 0; q < queries; q++) {
        const Sight& seen = sight[first + q / group];
        float* row = scores + q * stride;
        int64_t count = run.length(first) + seen.leading;
        for (const int32_t other : seen.others) row[count++] = row[run.length(first) + other];
        soften(row, count, 1.0f / std::sqrt(float(dim)));
    }
    add_values(run, index, head, first, queries, stride, scores, block, sums);
    for (int64_t q = 0; q < queries; q++) {
        const int64_t w = first + q / group;
        run.packed(run.input, m.heads * dim).write(w, (head * group + q % group) * dim, sums + q * dim, dim);
    }
}

// Attention of the rows from ``start`` on; what it gives is the input of the output projection. Work is shared out in
// pieces of some rows and one key head, whose keys are laid out once for all the queries of the piece.
template <class T, class E>
void attend(const Run<T, E>& run, const Layer& layer, int index, int64_t start) {
    const Model& m = run.m;
    const Batch& b = run.b;
    const int64_t group = m.heads / m.kv_heads, threads = omp_get_num_threads(), count = b.width - start;
    // No more queries than stay in the nearest cache, and a piece for each thread; a text of its own is its own piece.
    const int64_t most = std::min(std::max<int64_t>(1, 48 / group), (count + threads - 1) / threads);
    const int64_t rows = b.caches ? 1 : most;
    const int64_t pieces = (count + rows - 1) / rows;
    const auto [from, to] = run.share(pieces * m.kv_heads);
    for (int64_t item = from; item < to; item++) {
        const int64_t first = start + item / m.kv_heads * rows;
        attend_piece(run, layer, index, int(item % m.kv_heads), first, std::min(b.width, first + rows));
    }
}

}  // namespace

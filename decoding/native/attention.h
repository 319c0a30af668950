// Attention of the rows of a batch over the cache, each row its keys in the order of their positions.

#pragma once

#include "values.h"

namespace {

inline void rotate(const Model& m, const float* from, const float* norm, int64_t position, float* to) {
    const int64_t half = m.head_dim / 2;
    const float scale = norm ? inverse_rms(from, m.head_dim, m.eps) : 1.0f;
    const float *cosine = m.cosine + position * m.head_dim, *sine = m.sine + position * m.head_dim;
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        Floats first = load<Floats>(from + i), second = load<Floats>(from + i + half);
        if (norm) first = first * scale * load<Floats>(norm + i), second = second * scale * load<Floats>(norm + i + half);
        const Floats low = first * load<Floats>(cosine + i) + second * load<Floats>(sine + i);
        const Floats high = second * load<Floats>(cosine + i + half) + first * load<Floats>(sine + i + half);
        std::memcpy(to + i, &low, sizeof(low));
        std::memcpy(to + i + half, &high, sizeof(high));
    }
    for (; i < half; i++) {
        const float first = norm ? from[i] * scale * norm[i] : from[i];
        const float second = norm ? from[i + half] * scale * norm[i + half] : from[i + half];
        to[i] = first * cosine[i] + second * sine[i];
        to[i + half] = second * cosine[i + half] + first * sine[i + half];
    }
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
    const auto [from, to] = share(b.width * m.kv_heads);
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

// The first whole vector from an address on: a load of one that lies across two lines of the cache takes twice as long.
inline float* aligned(float* at) {
    const uintptr_t line = sizeof(Floats);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(at) + line - 1) / line * line);
}

// Memory is asked, into the second cache, for what comes next while this block is worked on; beyond the last there is no
// harm in it.
template <class T>
inline void ask_for(const T* rows, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(rows + i, 0, 2);
}

// Up to 16 keys as a panel of weights: [dim / pair][16][pair]. A pair, or a float, is moved as the word of 32 bits it is.
template <class T>
void lay_out(const T* rows, int64_t dim, int count, float* to) {
    const int64_t words = dim / Product<T>::PAIR;
    const float* from = reinterpret_cast<const float*>(rows);
    int64_t i = 0;
    for (; i + LANES <= words; i += LANES)
        for (int first = 0; first < PANEL; first += LANES) {
            Floats block[LANES];
            for (int lane = 0; lane < LANES; lane++)
                block[lane] = first + lane < count ? load<Floats>(from + (first + lane) * words + i) : Floats{};
            transpose(block);
            for (int lane = 0; lane < LANES; lane++)
                std::memcpy(to + (i + lane) * PANEL + first, &block[lane], sizeof(Floats));
        }
    for (; i < words; i++) {
        std::memset(to + i * PANEL, 0, PANEL * sizeof(float));
        for (int key = 0; key < count; key++) std::memcpy(to + i * PANEL + key, from + key * words + i, sizeof(float));
    }
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
        if (count - i < LANES) part = load_some((const float*)&part, count - i);
        std::memcpy(row + i, &part, sizeof(part));
        parts += part;
    }
    const float share_of_one = 1.0f / total(parts);
    for (int64_t i = 0; i < count; i++) row[i] *= share_of_one;
}

template <class T, class E>
void attend_piece(const Run<T, E>& run, const Layer& layer, int index, int head, int64_t first, int64_t last) {
    const Model& m = run.m;
    const Batch& b = run.b;
    const std::vector<Sight>& sight = run.sight;
    static thread_local std::vector<float> memory;
    const int64_t group = m.heads / m.kv_heads, queries = (last - first) * group;
    const int64_t dim = m.head_dim, wide = whole(dim);
    int64_t end = 0;  // one past the last row of the cache that a query sees
    for (int64_t w = first; w < last; w++)
        end = std::max(end, run.length(w) + (sight[w].others.empty() ? sight[w].leading : w + 1));
    const int64_t blocks = (end + PANEL - 1) / PANEL, stride = blocks * PANEL;
    const int64_t needed = queries * (stride + wide + dim) + VALUES * wide + LANES;
    if (int64_t(memory.size()) < needed) memory.resize(needed);
    float* scores = aligned(memory.data());   // [queries, stride]
    float* block = scores + queries * stride;  // [64, wide] of values, or [dim, 16] of keys laid out
    float* sums = block + VALUES * wide;       // [queries, wide]
    const Packed<T> query{reinterpret_cast<typename Packed<T>::Input*>(sums + queries * wide), queries, dim, ROWS};
    for (int64_t q = 0; q < queries; q++) {
        const int64_t w = first + q / group;
        const float* own = run.qkv + w * run.qkv_width + (head * group + q % group) * dim;
        rotate(m, own, layer.query_norm, b.positions[w], sums);
        query.write(q, 0, sums, dim);
    }
    for (int64_t at = 0; at < blocks; at++) {
        // The values come while scores are worked out. Measured at 1,000 keys: a pass takes 0.92 to 0.94 of the time.
        ask_for(run.keys(index, head, first) + (at + 2) * PANEL * dim, PANEL * dim);
        ask_for(run.values(index, head, first) + at * PANEL * dim, PANEL * dim);
        lay_out(run.keys(index, head, first) + at * PANEL * dim, dim, int(std::min<int64_t>(PANEL, end - at * PANEL)), block);
        for (int64_t q = 0; q < queries; q += ROWS) {
            Floats found[ROWS * PARTS];
            const int some = int(std::min<int64_t>(ROWS, queries - q));
            const Ahead<1> nothing{{reinterpret_cast<const char*>(block)}, 0};
            panels_times<T, 1>({reinterpret_cast<const T*>(block)}, query.block(q), some, int(dim), found, nothing);
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
        run.packed(run.input, m.heads * dim).write(w, (head * group + q % group) * dim, sums + q * wide, dim);
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
    // In turn: the later rows of a prompt see more.
    for (int64_t item = omp_get_thread_num(); item < pieces * m.kv_heads; item += threads) {
        const int64_t first = start + item / m.kv_heads * rows;
        attend_piece(run, layer, index, int(item % m.kv_heads), first, std::min(b.width, first + rows));
    }
}

}  // namespace

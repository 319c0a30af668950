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

// One query of a piece, rotated to its position. ``rotated``: memory for ``dim`` numbers.
template <class T, class E>
void enter_query(const Run<T, E>& run, const Layer& layer, const Piece<T>& piece, int64_t q, float* rotated) {
    const int64_t w = piece.row_of(q);
    rotate(run.m, run.qkv + w * run.qkv_width + piece.column(q), layer.query_norm, run.b.positions[w], rotated);
    piece.query.write(q, 0, rotated, piece.dim);
}

// Scores of the keys of blocks [from, to) for all queries, each block laid out in ``memory``. ``ask`` is called with each,
// and asks memory for values: they come while scores are worked out. Measured at 1,000 keys: 0.92 to 0.94 of a pass's time.
template <class T, class Ask>
void score(const Piece<T>& piece, int64_t from, int64_t to, float* memory, const Ask& ask) {
    const int64_t dim = piece.dim;
    const Ahead<1> nothing{{reinterpret_cast<const char*>(memory)}, 0};
    for (int64_t at = from; at < to; at++) {
        ask_for(piece.keys + (at + 2) * PANEL * dim, PANEL * dim);
        ask(at);
        lay_out(piece.keys + at * PANEL * dim, dim, int(std::min<int64_t>(PANEL, piece.end - at * PANEL)), memory);
        for (int64_t q = 0; q < piece.queries; q += ROWS) {
            Floats found[ROWS * PARTS];
            const int some = int(std::min<int64_t>(ROWS, piece.queries - q));
            panels_times<T, 1>({reinterpret_cast<const T*>(memory)}, piece.query.block(q), some, int(dim), found, nothing);
            for (int i = 0; i < some; i++)
                std::memcpy(piece.scores_of(q + i) + at * PANEL, found + i * PARTS, PARTS * sizeof(Floats));
        }
    }
}

// A query's scores to what values are multiplied with: those of the keys that it sees, side by side.
template <class T>
void weigh(const Piece<T>& piece, int64_t q) {
    float* row = piece.scores_of(q);
    int64_t count = piece.leading(q);
    for (const int32_t other : piece.seen(q).others) row[count++] = row[piece.before + other];
    soften(row, count, 1.0f / std::sqrt(float(piece.dim)));
    enter_scores<T>(row, piece.leading(q), count);
}

// Columns [from, to) of the weighted values, to what enters the output projection.
template <class T, class E>
void sum_up(const Run<T, E>& run, const Piece<T>& piece, int64_t from, int64_t to, float* memory) {
    const int64_t wide = whole(to - from);
    float* sums = memory + VALUES * wide;
    add_values(piece, from, to, memory, sums);
    const Packed<E> output = run.packed(run.input, run.m.heads * piece.dim);
    for (int64_t q = 0; q < piece.queries; q++)
        output.write(piece.row_of(q), piece.column(q) + from, sums + q * wide, to - from);
}

// Memory of this thread alone, for its share of ``queries`` and what it lays out, and ``more`` behind it.
inline float* own_memory(int64_t queries, int64_t dim, int64_t more = 0) {
    static thread_local std::vector<float> memory;
    const int64_t needed = (VALUES + queries) * whole(dim) + LANES + more;
    if (int64_t(memory.size()) < needed) memory.resize(needed);
    return aligned(memory.data());
}

// The rows of a piece at most: those whose queries stay in the nearest cache.
inline int64_t tallest(const Model& m) { return std::max<int64_t>(1, 48 / (m.heads / m.kv_heads)); }

// Few rows are one piece to a key head, with all their queries, and every thread works on each of them: scores are shared
// out by keys and sums by columns. So three key heads keep two threads as busy as four do, or eight, and a key is laid
// out once. A number is worked out as by one thread alone.
template <class T, class E>
struct Together {
    const Run<T, E>& run;
    const Layer& layer;
    int index;
    int64_t start;
    int64_t queries = (run.b.width - start) * (run.m.heads / run.m.kv_heads), dim = run.m.head_dim;
    int64_t end = last_key(run, start, run.b.width);

    static bool suits(const Run<T, E>& run, int64_t start) { return !run.b.caches && run.b.width - start <= tallest(run.m); }

    // This thread's part of a head, of each of which there are ``parts``.
    std::pair<int64_t, int64_t> part(int64_t head, int64_t parts) const {
        const auto [first, last] = share(run.m.kv_heads * parts);
        return {std::clamp<int64_t>(first - head * parts, 0, parts), std::clamp<int64_t>(last - head * parts, 0, parts)};
    }

    // Calls ``work`` with each piece that this thread has a part of, and with the part.
    template <class Work>
    void each(int64_t parts, const Work& work) const {
        for (int head = 0; head < run.m.kv_heads; head++) {
            const auto [from, to] = part(head, parts);
            float* scores = run.scores + head * Piece<T>::floats(queries, dim, end);
            if (from < to) work(Piece<T>(run, index, head, start, run.b.width, end, scores), from, to);
        }
    }

    void enter_queries() const {
        float* memory = own_memory(queries, dim);
        each(queries, [&](const Piece<T>& piece, int64_t from, int64_t to) {
            for (int64_t q = from; q < to; q++) enter_query(run, layer, piece, q, memory);
        });
    }

    void attend() const {
        const int64_t blocks = Piece<T>::blocks_of(end), vectors = whole(dim) / LANES;
        float* memory = own_memory(queries, dim);
        each(blocks, [&](const Piece<T>& piece, int64_t from, int64_t to) {
            const auto [low, high] = part(piece.head, vectors);  // what this thread will sum up, all keys of it
            score(piece, from, to, memory, [&, low = low, high = high](int64_t at) {
                const int64_t stop = (at + 1 - from) * blocks / (to - from) * PANEL;
                for (int64_t key = (at - from) * blocks / (to - from) * PANEL; key < stop; key++)
                    ask_for(piece.values + key * dim + low * LANES, (high - low) * LANES);
            });
        });
#pragma omp barrier
        each(queries, [&](const Piece<T>& piece, int64_t from, int64_t to) {
            for (int64_t q = from; q < to; q++) weigh(piece, q);
        });
#pragma omp barrier
        each(vectors, [&](const Piece<T>& piece, int64_t from, int64_t to) {
            sum_up(run, piece, from * LANES, std::min(dim, to * LANES), memory);
        });
    }
};

// Queries that the threads will share, each entered by one of them; a barrier comes before ``attend``.
template <class T, class E>
void enter_queries(const Run<T, E>& run, const Layer& layer, int index, int64_t start) {
    if (Together<T, E>::suits(run, start)) Together<T, E>{run, layer, index, start}.enter_queries();
}

// A piece by one thread: some rows and one key head.
template <class T, class E>
void attend_piece(const Run<T, E>& run, const Layer& layer, int index, int head, int64_t first, int64_t last) {
    const int64_t dim = run.m.head_dim, queries = (last - first) * (run.m.heads / run.m.kv_heads);
    const int64_t end = last_key(run, first, last), floats = Piece<T>::floats(queries, dim, end);
    float* scores = own_memory(queries, dim, floats);
    float* memory = scores + floats;
    const Piece<T> piece(run, index, head, first, last, end, scores);
    for (int64_t q = 0; q < queries; q++) enter_query(run, layer, piece, q, memory);
    score(piece, 0, piece.blocks, memory, [&](int64_t at) { ask_for(piece.values + at * PANEL * dim, PANEL * dim); });
    for (int64_t q = 0; q < queries; q++) weigh(piece, q);
    sum_up(run, piece, 0, dim, memory);
}

// Attention of the rows from ``start`` on; what it gives is the input of the output projection. The many rows of a prompt
// are shared out in pieces, whose keys are laid out once for all the queries of the piece.
template <class T, class E>
void attend(const Run<T, E>& run, const Layer& layer, int index, int64_t start) {
    if (Together<T, E>::suits(run, start)) return Together<T, E>{run, layer, index, start}.attend();
    const Model& m = run.m;
    const Batch& b = run.b;
    const int64_t threads = omp_get_num_threads(), count = b.width - start;
    // A piece for each thread; a text of its own is its own piece.
    const int64_t rows = b.caches ? 1 : std::min(tallest(m), (count + threads - 1) / threads);
    const int64_t pieces = (count + rows - 1) / rows;
    // In turn: the later rows of a prompt see more.
    for (int64_t item = omp_get_thread_num(); item < pieces * m.kv_heads; item += threads) {
        const int64_t first = start + item / m.kv_heads * rows;
        attend_piece(run, layer, index, int(item % m.kv_heads), first, std::min(b.width, first + rows));
    }
}

}  // namespace

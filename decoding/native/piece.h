// A piece of attention's work: one key head, and the queries of some rows that look at it.

#pragma once

#include "model.h"

namespace {

// One past the last key that a row of [first, last) sees.
template <class T, class E>
int64_t last_key(const Run<T, E>& run, int64_t first, int64_t last) {
    int64_t end = 0;
    for (int64_t w = first; w < last; w++)
        end = std::max(end, run.length(w) + (run.sight[w].others.empty() ? run.sight[w].leading : w + 1));
    return end;
}

template <class T>
struct Piece {
    const T *keys, *values;  // of the head, [capacity, dim]
    const Sight* sight;      // of each row
    int64_t head, first;     // its number, and that of the first row
    int64_t before, end;     // keys that are committed; one past the last that a query sees
    int64_t group, dim;      // queries of a row; numbers of a query, a key or a value
    int64_t queries, blocks;  // of all rows; of 16 keys
    // From the scores of one query to the next: an odd number of lines, for at 4096 bytes all would share a few places of the
    // processor's cache. Measured there: a pass of 12 or 16 rows takes 0.93 of the time.
    int64_t stride;
    float* scores;  // [queries, stride]
    Packed<T> query;

    // ``memory`` has room for ``floats``, from a whole vector on.
    template <class E>
    Piece(const Run<T, E>& run, int index, int head, int64_t first, int64_t last, int64_t end, float* memory)
        : keys(run.keys(index, head, first)), values(run.values(index, head, first)), sight(&run.sight[first]), head(head),
          first(first), before(run.length(first)), end(end), group(run.m.heads / run.m.kv_heads), dim(run.m.head_dim),
          queries((last - first) * group), blocks(blocks_of(end)), stride(stride_of(end)), scores(memory),
          query{reinterpret_cast<typename Packed<T>::Input*>(memory + queries * stride), queries, dim, ROWS} {}

    static int64_t blocks_of(int64_t count) { return (count + PANEL - 1) / PANEL; }
    static int64_t stride_of(int64_t end) { return (blocks_of(end) | 1) * PANEL; }
    static int64_t floats(int64_t queries, int64_t dim, int64_t end) {
        return queries * stride_of(end) + blocks_of(queries * dim) * PANEL;
    }

    float* scores_of(int64_t q) const { return scores + q * stride; }
    int64_t row_of(int64_t q) const { return first + q / group; }
    int64_t column(int64_t q) const { return (head * group + q % group) * dim; }  // in a row of all heads
    const Sight& seen(int64_t q) const { return sight[q / group]; }
    int64_t leading(int64_t q) const { return before + seen(q).leading; }  // keys it sees, one after the other
};

}  // namespace

// A whole product of rows with a linear layer's weight, its panels shared out among the threads.

#pragma once

#include <omp.h>

#include <utility>

#include "int8.h"

extern "C" {

struct Linear {
    const void* weight;  // packed
    const float* bias;   // or null
    int64_t n, k;        // k is padded to a whole number of pairs, in int8 of blocks
};
}

namespace {

// The part of [0, count) that is this thread's.
inline std::pair<int64_t, int64_t> share(int64_t count) {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    return {count * thread / threads, count * (thread + 1) / threads};
}

template <class W>
inline const W* panel(const Linear& linear, int64_t p) {
    return static_cast<const W*>(linear.weight) + p * Panel<W>::stride(linear.k);
}

// Rows from ``first`` on, ``count`` of them, of ``all`` that take a panel.
struct Block {
    int64_t first, count, all;
};

constexpr int64_t AT_HAND = 1 << 18;  // bytes of weights that the second cache has room for beside those multiplied
constexpr int64_t NEAR = 4096;        // bytes from what is multiplied to what is asked for, where panels are too large

// What a block of rows asks for while it multiplies ``panels``: its part of the panels ``further`` on, which have come
// before their turn.
template <class W, int P>
inline Ahead<P> ahead(const W* const (&panels)[P], int64_t k, const Block& block, int64_t further) {
    const int64_t bytes = Panel<W>::stride(k) * int64_t(sizeof(W));
    const bool whole = 2 * bytes <= AT_HAND;
    Ahead<P> found{{}, whole ? 64 * block.count / block.all : 64};
    for (int p = 0; p < P; p++)
        found.at[p] = reinterpret_cast<const char*>(panels[p]) + (whole ? further * bytes + bytes * block.first / block.all : NEAR);
    return found;
}

template <class W>
inline void one_panel(const W* panel, const typename Panel<W>::Input* x, const Block& block, int64_t k, Floats* sums) {
    panels_times<W, 1>({panel}, x, int(block.count), int(k), sums, ahead<W>({panel}, k, block, 1));
}

// Two panels of as many inputs times a block of rows; sums [2][rows][PARTS].
template <class W>
inline void two_panels(const W* const (&panels)[2], const typename Panel<W>::Input* x, const Block& block, int64_t k,
                       int64_t further, Floats* sums) {
    const int rows = int(block.count);
    if constexpr (Panel<W>::TALL < ROWS) {
        panels_times<W, 2, Panel<W>::TALL>(panels, x, rows, int(k), sums, ahead<W>(panels, k, block, further));
    } else {
        for (int p = 0; p < 2; p++) one_panel<W>(panels[p], x, block, k, sums + p * rows * PARTS);
    }
}

// y[row, n] (=, +=) from[row] . weight[n] + bias[n] for the rows from ``first_row`` on, the first of y.
template <class W, Store HOW>
void product(const Linear& linear, const Packed<W>& from, int64_t first_row, float* y) {
    constexpr int64_t together = Panel<W>::TALL < ROWS ? 2 : 1;
    const int64_t tall = from.tall, panels = (linear.n + PANEL - 1) / PANEL;
    const int64_t start = first_row / tall * tall;
    const auto [first, last] = share((panels + together - 1) / together);
    Floats sums[2 * ROWS * PARTS];
    for (int64_t p = first * together; p < last * together; p += together) {
        const int64_t end = std::min(panels, p + together);
        for (int64_t r = start; r < from.rows; r += tall) {
            const int some = int(std::min(tall, from.rows - r)), skip = int(std::max<int64_t>(0, first_row - r));
            const Block block{r - start, some, from.rows - start};
            if (end == p + 2)
                two_panels<W>({panel<W>(linear, p), panel<W>(linear, p + 1)}, from.block(r), block, linear.k, 2, sums);
            else
                one_panel<W>(panel<W>(linear, p), from.block(r), block, linear.k, sums);
            for (int64_t q = p; q < end; q++) {
                const int count = int(std::min<int64_t>(PANEL, linear.n - q * PANEL));
                const float* bias = linear.bias ? linear.bias + q * PANEL : nullptr;
                float* to = y + (r + skip - first_row) * linear.n + q * PANEL;
                store<HOW>(sums + ((q - p) * some + skip) * PARTS, some - skip, bias, to, linear.n, count);
            }
        }
    }
}

}  // namespace

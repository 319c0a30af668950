// The one product that everything here is made of: a panel of 16 outputs, or two of them, times a block of rows.

#pragma once

#include "lanes.h"

namespace {

// Rows enter products in blocks of up to ``tall``, laid out as [k / pair][rows of the block][pair]: what one multiply-add
// takes of each row then lies side by side. The block that starts at row r begins at r * k.
template <class T>
struct Packed {
    typedef typename Product<T>::Input Input;
    Input* data;
    int64_t rows, k, tall;

    static constexpr bool IN_BLOCKS = false;  // numbers enter one by one

    static int64_t padded(int64_t k) { return (k + Product<T>::PAIR - 1) / Product<T>::PAIR * Product<T>::PAIR; }
    static int64_t floats(int64_t k) { return k + 1; }  // that hold a row of k
    const Input* block(int64_t row) const { return data + row * k; }

    // Write values[0..count) of one row from column ``at`` on, a multiple of the pair; beyond the last comes a zero.
    void write(int64_t row, int64_t at, const float* values, int64_t count) const {
        constexpr int PAIR = Product<T>::PAIR;
        const int64_t first = row / tall * tall, some = std::min(tall, rows - first);
        Input* to = data + first * k + at * some + (row - first) * PAIR;
        Input lanes[LANES];
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) {
            Product<T>::enter(load<Floats>(values + i), lanes);
#pragma GCC unroll 16
            for (int j = 0; j < LANES; j += PAIR) std::memcpy(to + j / PAIR * some * PAIR, lanes + j, sizeof(Input) * PAIR);
            to += LANES * some;
        }
        if (i == count) return;
        Product<T>::enter(load_some(values + i, count - i), lanes);
        for (int j = 0; j < count - i; j += PAIR, to += some * PAIR) std::memcpy(to, lanes + j, sizeof(Input) * PAIR);
    }
};

// The weights that memory is asked for while others are multiplied. Each line of 64 bytes that is multiplied asks for what
// lies ``at``, and moves it ``step`` bytes: where several blocks of rows take a panel, each asks for its part of what comes
// after it, so that memory does not wait while the later blocks multiply. Into the second cache and not the first, where
// it would push out what is being multiplied. Measured: passes of 1 to 48 rows take 0.82 to 0.91 of the time.
template <int P>
struct Ahead {
    const char* at[P];
    int64_t step;

    void ask() {
        for (int p = 0; p < P; p++) __builtin_prefetch(at[p], 0, 2), at[p] += step;
    }
};

// One multiply-add of P panels and R rows at a place of the inner dimension, ``at`` numbers into the panels.
template <class W, int P, int R, int STEP>
inline void panel_step(const W* const (&panels)[P], int64_t at, const typename Product<W>::Input* x,
                       Floats (&sum)[R][P * PARTS]) {
    constexpr int PAIR = Product<W>::PAIR;
    typename Product<W>::Lanes lanes[P * PARTS];
#pragma GCC unroll 4
    for (int part = 0; part < P * PARTS; part++)
        lanes[part] = Product<W>::template lanes<STEP>(panels[part / PARTS] + at + part % PARTS * LANES * PAIR);
#pragma GCC unroll 4
    for (int part = 0; part < P * PARTS; part++) hold(lanes[part]);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int part = 0; part < P * PARTS; part++)
            sum[r][part] = Product<W>::add(sum[r][part], lanes[part], x + r * PAIR + STEP);
}

// With 16 registers the sums of a block fill them, and a function by itself leaves them to it. Measured with AVX2, against
// inlined ones: a pass in bfloat16 takes 0.94 to 0.97 of the time from 1 to 96 rows, in float32 the same; bits are the same.
#if defined(__AVX__) && !defined(__AVX512F__)
#define BY_ITSELF __attribute__((noinline))
#else
#define BY_ITSELF inline
#endif

// P panels of weights times a block of R rows: sums [P][R][PARTS]. A sum's bits depend neither on P nor on R.
template <class W>
struct Panel {
    typedef typename Product<W>::Input Input;
    // Rows of a block at most. Where a panel is one vector, two are taken at once and a block has fewer rows: a number of
    // a row then serves two multiply-adds, which wait for their loads, and memory is asked for two stretches of weights at
    // a time. Measured: with many rows 1.4 times as fast, with 16 and with one 1.15 times.
    static constexpr int TALL = PARTS == 1 && REGISTERS == 32 ? 12 : ROWS;

    static int64_t stride(int64_t k) { return PANEL * k; }  // weights from one panel to the next

    template <int R, int P>
    static BY_ITSELF void rows(const W* const (&panels)[P], const Input* x, int k, Floats* sums, Ahead<P> ahead) {
        constexpr int PAIR = Product<W>::PAIR;
        Floats sum[R][P * PARTS];
        for (int r = 0; r < R; r++)
            for (int part = 0; part < P * PARTS; part++) sum[r][part] = Floats{};
        for (int i = 0; i < k; i += PAIR) {
            ahead.ask();
            panel_step<W, P, R, 0>(panels, i * PANEL, x + i * R, sum);
            if constexpr (Product<W>::STEPS == 2) panel_step<W, P, R, 1>(panels, i * PANEL, x + i * R, sum);
        }
        for (int r = 0; r < R; r++)
            for (int part = 0; part < P * PARTS; part++)
                sums[(part / PARTS * R + r) * PARTS + part % PARTS] = sum[r][part];
    }
};

// Rows of a block where ``rows`` rows take a panel: no more blocks than must be, and none much lower than the others. The
// few sums of a low one wait for each other, so that six rows and then two take as long as ten in two blocks of five.
template <class W>
inline int64_t even(int64_t rows) {
    rows = std::max<int64_t>(1, rows);
    const int64_t blocks = (rows + Panel<W>::TALL - 1) / Panel<W>::TALL;
    return (rows + blocks - 1) / blocks;
}

template <class W, int P, int R = ROWS>
inline void panels_times(const W* const (&panels)[P], const typename Panel<W>::Input* x, int rows, int k, Floats* sums,
                         Ahead<P> ahead) {
    if (rows == R) return Panel<W>::template rows<R>(panels, x, k, sums, ahead);
    if constexpr (R > 1) panels_times<W, P, R - 1>(panels, x, rows, k, sums, ahead);
}

// Rows of sums to rows of floats: y[row][n0..n0+count) = sum (+ bias) (+ what is there).
enum class Store { SET, ADD };

template <Store HOW>
inline void store(const Floats* sums, int rows, const float* bias, float* y, size_t stride, int count) {
    for (int r = 0; r < rows; r++)
        for (int part = 0; part < PARTS; part++) {
            const Floats sum = sums[r * PARTS + part];
            float* out = y + r * stride + part * LANES;
            const int some = std::min(LANES, count - part * LANES);
            if (some == LANES && !bias) {
                const Floats value = HOW == Store::ADD ? load<Floats>(out) + sum : sum;
                std::memcpy(out, &value, sizeof(value));
                continue;
            }
            for (int lane = 0; lane < some; lane++) {
                const float value = sum[lane] + (bias ? bias[part * LANES + lane] : 0.0f);
                out[lane] = HOW == Store::ADD ? out[lane] + value : value;
            }
        }
}

}  // namespace

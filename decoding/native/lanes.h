// The processor's vectors, their numbers (float32, bfloat16, int8), and the one product that everything here is made of.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;  // floats of one vector, vectors that the processor holds
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif
constexpr int PANEL = 16;             // outputs of one panel of weights, keys of one block of attention
constexpr int PARTS = PANEL / LANES;  // vectors that their sums take
// Rows whose sums are held in registers together, beside a place of a panel and one number of a row.
constexpr int ROWS = LANES == 16 ? 16 : (REGISTERS - 4) / PARTS;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

struct bf16 {
    uint16_t bits;
};

inline float widen(bf16 x) {
    uint32_t word = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &word, 4);
    return y;
}
inline float widen(float x) { return x; }

typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(2 * LANES)));

inline void narrow(Floats x, float* y) { std::memcpy(y, &x, sizeof(x)); }
inline Words upper(Floats x) { return ((Words)x + 0x7fff + (((Words)x >> 16) & 1)) >> 16; }  // to nearest, ties to even
inline void narrow(Floats x, bf16* y) {
    const Halves halves = __builtin_convertvector(upper(x), Halves);
    std::memcpy(y, &halves, sizeof(halves));
}

template <class T>
inline T load(const void* at) {
    T value;
    std::memcpy(&value, at, sizeof(T));
    return value;
}

inline Floats all(float x) { return x - Floats{}; }  // and not x + 0, which makes 0 of -0 and so costs an addition

// sum + a * b, rounded once where the processor can. By name: left to the compiler (-ffp-contract), it is rounded once in
// one copy of a loop and twice in another, and a row's bits would depend on how many rows are read with it.
inline Floats multiply_add(Floats sum, Floats a, Floats b) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif defined(__aarch64__)
    return (Floats)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
    return sum + a * b;
#endif
}

// What one multiply-add takes: the weights of one part of a panel at one place of the inner dimension, as they are held
// in a register (Lanes), and the numbers of one row there (Input). A place is PAIR neighbours, taken in STEPS turns.
// add: sum + weights * x. enter: floats to Inputs.
template <class W>
struct Product;

template <>
struct Product<float> {
    static constexpr int PAIR = 1, STEPS = 1;
    typedef float Input;
    typedef Floats Lanes;
    template <int STEP>
    static inline Lanes lanes(const float* weights) { return load<Floats>(weights); }
    static inline Floats add(Floats sum, Lanes weights, const float* x) { return multiply_add(sum, weights, all(*x)); }
    static inline void enter(Floats x, float* y) { narrow(x, y); }
};

template <>
struct Product<bf16> {
    static constexpr int PAIR = 2;
#ifdef __AVX512BF16__
    static constexpr int STEPS = 1;
    typedef bf16 Input;
    typedef __m512bh Lanes;
    template <int STEP>
    static inline Lanes lanes(const bf16* weights) { return (__m512bh)load<__m512i>(weights); }
    static inline Floats add(Floats sum, Lanes weights, const bf16* x) {
        return (Floats)_mm512_dpbf16_ps((__m512)sum, weights, (__m512bh)_mm512_set1_epi32(load<int32_t>(x)));
    }
    static inline void enter(Floats x, bf16* y) { narrow(x, y); }
#else
    static constexpr int STEPS = 2;
    typedef float Input;  // rounded to bfloat16, and widened once, not at every panel
    typedef Floats Lanes;
    template <int STEP>
    static inline Lanes lanes(const bf16* weights) {
        const Words words = load<Words>(weights);
        return STEP == 0 ? (Floats)(words << 16) : (Floats)(words & 0xffff0000u);
    }
    static inline Floats add(Floats sum, Lanes weights, const float* x) { return multiply_add(sum, weights, all(*x)); }
    static inline void enter(Floats x, float* y) { narrow((Floats)(upper(x) << 16), y); }
#endif
};

// Whole numbers from -127 to 127, all of which bfloat16 holds exactly; the scale of each output comes after the sum.
template <>
struct Product<int8_t> : Product<bf16> {
    template <int STEP>
    static inline Lanes lanes(const int8_t* weights) {
#ifdef __AVX512BF16__
        const __m512i low = _mm512_cvtepi8_epi32(load<__m128i>(weights));
        const __m512i high = _mm512_cvtepi8_epi32(load<__m128i>(weights + LANES));
        return _mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(high), _mm512_cvtepi32_ps(low));
#else
        const Shorts pairs = load<Shorts>(weights);
        return __builtin_convertvector(STEP == 0 ? (Shorts)((Halves)pairs << 8) >> 8 : pairs >> 8, Floats);
#endif
    }
};

// The first ``count`` of a vector's floats, zeros behind them.
inline Floats load_some(const float* at, int64_t count) {
    if (count >= LANES) return load<Floats>(at);
    Floats value{};
    std::memcpy(&value, at, count * sizeof(float));
    return value;
}

inline Floats exponential(Floats x) {  // 2^n times a polynomial on [-ln2/2, ln2/2], relative error below 1e-6
    x = x < -87.0f ? Floats{} - 87.0f : x;
    x = x > 88.0f ? Floats{} + 88.0f : x;  // above 88.4, n + 127 is no exponent of a number any more
    const Ints n = __builtin_convertvector(x * 1.44269504f + (x < 0 ? Floats{} - 0.5f : Floats{} + 0.5f), Ints);
    const Floats whole = __builtin_convertvector(n, Floats);
    const Floats r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Floats p = r * (1.0f / 720) + (1.0f / 120);
    p = p * r + (1.0f / 24);
    p = p * r + (1.0f / 6);
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return p * (Floats)((n + 127) << 23);
}

inline float total(Floats x) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
}

// Rows enter products in blocks of up to ROWS, laid out as [k / pair][rows of the block][pair]: what one multiply-add
// takes of each row then lies side by side. The block that starts at row r begins at r * k.
template <class T>
struct Packed {
    typedef typename Product<T>::Input Input;
    Input* data;
    int64_t rows, k;

    static int64_t padded(int64_t k) { return (k + Product<T>::PAIR - 1) / Product<T>::PAIR * Product<T>::PAIR; }
    const Input* block(int64_t row) const { return data + row * k; }

    // Write values[0..count) of one row from column ``at`` on, a multiple of the pair; beyond the last comes a zero.
    void write(int64_t row, int64_t at, const float* values, int64_t count) const {
        constexpr int PAIR = Product<T>::PAIR;
        const int64_t first = row / ROWS * ROWS, some = std::min<int64_t>(ROWS, rows - first);
        Input* to = data + first * k + at * some + (row - first) * PAIR;
        Input lanes[LANES];
        for (int64_t i = 0; i < count; i += LANES) {
            const int64_t here = std::min<int64_t>(LANES, count - i);
            Product<T>::enter(load_some(values + i, here), lanes);
            for (int64_t j = 0; j < here; j += PAIR, to += some * PAIR) std::memcpy(to, lanes + j, sizeof(Input) * PAIR);
        }
    }
};

constexpr int AHEAD = 4096;  // bytes of weights that are asked for before they are needed; measured

template <class W, int R, int STEP>
inline void panel_step(const W* weights, const typename Product<W>::Input* x, Floats (&sum)[R][PARTS]) {
    constexpr int PAIR = Product<W>::PAIR;
    typename Product<W>::Lanes lanes[PARTS];
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; part++)
        lanes[part] = Product<W>::template lanes<STEP>(weights + part * LANES * PAIR);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++)
            sum[r][part] = Product<W>::add(sum[r][part], lanes[part], x + r * PAIR + STEP);
}

// One panel of weights times a block of R rows: sums [R][PARTS].
template <class W, int R>
inline void panel_rows(const W* panel, const typename Product<W>::Input* x, int k, Floats* sums) {
    constexpr int PAIR = Product<W>::PAIR;
    Floats sum[R][PARTS];
    for (int r = 0; r < R; r++)
        for (int part = 0; part < PARTS; part++) sum[r][part] = Floats{};
    for (int i = 0; i < k; i += PAIR) {
        if (R > 3) __builtin_prefetch(reinterpret_cast<const char*>(panel + i * PANEL) + AHEAD);
        panel_step<W, R, 0>(panel + i * PANEL, x + i * R, sum);
        if constexpr (Product<W>::STEPS == 2) panel_step<W, R, 1>(panel + i * PANEL, x + i * R, sum);
    }
    for (int r = 0; r < R; r++)
        for (int part = 0; part < PARTS; part++) sums[r * PARTS + part] = sum[r][part];
}

template <class W, int R = ROWS>
inline void panel_times(const W* panel, const typename Product<W>::Input* x, int rows, int k, Floats* sums) {
    if (rows == R) return panel_rows<W, R>(panel, x, k, sums);
    if constexpr (R > 1) panel_times<W, R - 1>(panel, x, rows, k, sums);
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

// The processor's vectors, their numbers (float32, bfloat16), and what one multiply-add of them takes.

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

// A vector that several multiply-adds take, to a register. With AVX2 the compiler has each of fewer than five read it from
// memory again, and then loads take the time: measured, a panel times four rows takes 0.70 of the time with it, three 0.84.
template <class Lanes>
inline void hold(Lanes& lanes) {
#if defined(__AVX__) && !defined(__AVX512F__)
    asm("" : "+x"(lanes));
#endif
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
    typedef float Number, Input;
    typedef Floats Lanes;
    template <int STEP>
    static inline Lanes lanes(const float* weights) { return load<Floats>(weights); }
    static inline Floats add(Floats sum, Lanes weights, const float* x) { return multiply_add(sum, weights, all(*x)); }
    static inline void enter(Floats x, float* y) { narrow(x, y); }
};

template <>
struct Product<bf16> {
    static constexpr int PAIR = 2;
    typedef bf16 Number;
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

// The first whole vector from an address on: a load of one that lies across two lines of the cache takes twice as long.
inline float* aligned(float* at) {
    const uintptr_t line = sizeof(Floats);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(at) + line - 1) / line * line);
}

// The first ``count`` of a vector's floats, zeros behind them.
inline Floats load_some(const float* at, int64_t count) {
    if (count >= LANES) return load<Floats>(at);
    Floats value{};
    std::memcpy(&value, at, count * sizeof(float));
    return value;
}

// The first ``count`` of a vector's words, to memory; what lies behind them there stays.
inline void store_some(Words words, float* at, int64_t count) {
    count < LANES ? std::memcpy(at, &words, count * sizeof(float)) : std::memcpy(at, &words, sizeof(words));
}

// Word j of vector i to word i of vector j.
inline void transpose(Floats (&rows)[LANES]) {
#if defined(__AVX512F__)
    __m512 pairs[16], quads[16];
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_ps((__m512)rows[i], (__m512)rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps((__m512)rows[i], (__m512)rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int half = 0; half < 2; half++) {
            const __m512d low = (__m512d)pairs[i + half], high = (__m512d)pairs[i + 2 + half];
            quads[i + 2 * half] = (__m512)_mm512_unpacklo_pd(low, high);
            quads[i + 2 * half + 1] = (__m512)_mm512_unpackhi_pd(low, high);
        }
    for (int i = 0; i < 4; i++) {  // quads[4 g + i]: words i, 4 + i, 8 + i and 12 + i of rows 4 g to 4 g + 3
        const __m512 low = _mm512_shuffle_f32x4(quads[i], quads[4 + i], 0x88);
        const __m512 high = _mm512_shuffle_f32x4(quads[8 + i], quads[12 + i], 0x88);
        const __m512 low_odd = _mm512_shuffle_f32x4(quads[i], quads[4 + i], 0xdd);
        const __m512 high_odd = _mm512_shuffle_f32x4(quads[8 + i], quads[12 + i], 0xdd);
        rows[i] = (Floats)_mm512_shuffle_f32x4(low, high, 0x88);
        rows[8 + i] = (Floats)_mm512_shuffle_f32x4(low, high, 0xdd);
        rows[4 + i] = (Floats)_mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
        rows[12 + i] = (Floats)_mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
    }
#elif defined(__AVX__)
    __m256 pairs[8], quads[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps((__m256)rows[i], (__m256)rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps((__m256)rows[i], (__m256)rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int half = 0; half < 2; half++) {
            const __m256d low = (__m256d)pairs[i + half], high = (__m256d)pairs[i + 2 + half];
            quads[i + 2 * half] = (__m256)_mm256_unpacklo_pd(low, high);
            quads[i + 2 * half + 1] = (__m256)_mm256_unpackhi_pd(low, high);
        }
    for (int i = 0; i < 4; i++) {  // quads[4 g + i]: words i and 4 + i of rows 4 g to 4 g + 3
        rows[i] = (Floats)_mm256_permute2f128_ps(quads[i], quads[4 + i], 0x20);
        rows[4 + i] = (Floats)_mm256_permute2f128_ps(quads[i], quads[4 + i], 0x31);
    }
#else
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < i; j++) {
            const float word = rows[i][j];
            rows[i][j] = rows[j][i];
            rows[j][i] = word;
        }
#endif
}

__attribute__((always_inline)) inline Floats exponential(Floats x) {  // 2^n times a polynomial on [-ln2/2, ln2/2], relative error below 1e-6
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

inline Floats silu(Floats x) { return x / (1.0f + exponential(-x)); }

inline float highest_of(Floats x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float most = x[0];
    for (int lane = 1; lane < LANES; lane++) most = std::max(most, x[lane]);
    return most;
#endif
}

inline bool any(Ints x) {  // of what comparisons make: all bits of a lane, or none
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)x, (__m512i)x);
#else
    int32_t found = 0;
    for (int lane = 0; lane < LANES; lane++) found |= x[lane];
    return found;
#endif
}

inline int32_t total(Ints x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)x);
#else
    int32_t sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
#endif
}

inline float total(Floats x) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
}

}  // namespace

// The product in int8: weights and what they are multiplied with are whole numbers from -127 to 127 in blocks of 32
// along the inner dimension, each block with a scale of its own. A block's sum is exact, whatever order it is taken in;
// the sums of the blocks are added up in float32, one block after the other.
//
// Weights are kept as number + 128, for the processor multiplies unsigned by signed numbers: a row's sums start at -128
// times the sum of its own numbers, and come out right.

#pragma once

#include "panels.h"

namespace {

constexpr int BLOCK = 32;
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
constexpr int PLACE = 4;  // neighbours that one instruction multiplies and adds up in each output
typedef int8_t Whole;
#else
constexpr int PLACE = 2;
typedef int16_t Whole;
#endif

// sum + the PLACE weights of each output times the PLACE numbers of a row.
inline Ints add_whole(Ints sum, const uint8_t* weights, const Whole* x) {
#if defined(__AVX512VNNI__)
    // By name: the compiler loads x into a register of its own first, which costs a tenth of the time of 16 rows.
    __m512i all = (__m512i)sum;
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(all) : "v"(load<__m512i>(weights)), "m"(*(const int32_t*)x));
    return (Ints)all;
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
    const __m256i numbers = _mm256_set1_epi32(load<int32_t>(x));
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, load<__m256i>(weights), numbers);
#elif defined(__AVX512BW__)
    const __m512i pairs = _mm512_cvtepu8_epi16(load<__m256i>(weights)), numbers = _mm512_set1_epi32(load<int32_t>(x));
    return sum + (Ints)_mm512_madd_epi16(pairs, numbers);
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_cvtepu8_epi16(load<__m128i>(weights)), numbers = _mm256_set1_epi32(load<int32_t>(x));
    return sum + (Ints)_mm256_madd_epi16(pairs, numbers);
#else
    const Ints pairs = __builtin_convertvector(load<Halves>(weights), Ints);
    return sum + (pairs & 0xff) * x[0] + (pairs >> 8) * x[1];
#endif
}

// A block of rows: [k / 32], of each [32 / place][rows of the block][place] numbers, [rows] scales and [rows] starts.
// What is written of a row is kept as it is until a block of it is whole and enters.
template <>
struct Packed<int8_t> {
    typedef float Input;
    static constexpr bool IN_BLOCKS = true;
    static constexpr int64_t BLOCK_BYTES = BLOCK * sizeof(Whole) + sizeof(float) + sizeof(int32_t);  // of one row
    float* data;
    int64_t rows, k, tall;

    static int64_t padded(int64_t k) { return k; }
    static int64_t blocks(int64_t k) { return (k + BLOCK - 1) / BLOCK; }
    static int64_t floats(int64_t k) { return k + blocks(k) * BLOCK_BYTES / int64_t(sizeof(float)); }

    char* block(int64_t row) const { return reinterpret_cast<char*>(data + rows * k) + row * blocks(k) * BLOCK_BYTES; }

    void write(int64_t row, int64_t at, const float* values, int64_t count) const {
        std::memcpy(data + row * k + at, values, count * sizeof(float));
    }

    void enter(int64_t row, int64_t from, int64_t end) const {  // the row's blocks from ``from`` to ``end``
        const int64_t first = row / tall * tall, some = std::min(tall, rows - first), r = row - first;
        char* to = block(first) + from * some * BLOCK_BYTES;
        for (int64_t at = from * BLOCK; at < std::min(k, end * BLOCK); at += BLOCK, to += some * BLOCK_BYTES) {
            Floats values[BLOCK / LANES], highest{};
            for (int i = 0; i < BLOCK / LANES; i++) {
                const int64_t left = k - at - i * LANES;
                values[i] = left > 0 ? load_some(data + row * k + at + i * LANES, left) : Floats{};
                const Floats size = values[i] < 0 ? -values[i] : values[i];
                highest = size > highest ? size : highest;
            }
            const float most = highest_of(highest), scale = most / 127, inverse = most > 0 ? 127 / most : 0.0f;
            Ints sums{};
            Whole numbers[BLOCK];
            for (int i = 0; i < BLOCK / LANES; i++) {
                const Floats x = values[i] * inverse;
                const Ints whole = __builtin_convertvector(x + (x < 0 ? Floats{} - 0.5f : Floats{} + 0.5f), Ints);
                sums += whole;
                typedef Whole Narrow __attribute__((vector_size(sizeof(Whole) * LANES)));
                const Narrow narrow = __builtin_convertvector(whole, Narrow);
                std::memcpy(numbers + i * LANES, &narrow, sizeof(narrow));
            }
            const int32_t start = -128 * total(sums);
            for (int place = 0; place < BLOCK / PLACE; place++)
                std::memcpy(to + (place * some + r) * PLACE * sizeof(Whole), numbers + place * PLACE, PLACE * sizeof(Whole));
            char* behind = to + some * BLOCK * sizeof(Whole);
            std::memcpy(behind + r * sizeof(float), &scale, sizeof(scale));
            std::memcpy(behind + some * sizeof(float) + r * sizeof(int32_t), &start, sizeof(start));
        }
    }
};

// A panel of weights: [k / 32], of each 16 scales in bfloat16 and [32 / place][16][place] numbers.
template <>
struct Panel<int8_t> {
    static constexpr int64_t SCALE_BYTES = PANEL * sizeof(bf16), BLOCK_BYTES = SCALE_BYTES + PANEL * BLOCK;
    typedef char Input;
    static constexpr int TALL = ROWS;  // two panels would need twice the registers that there are

    static int64_t stride(int64_t k) { return k / BLOCK * BLOCK_BYTES; }

    template <int R>
    static inline void rows(const int8_t* const (&panels)[1], const char* x, int k, Floats* sums, Ahead<1> ahead) {
        const int8_t* panel = panels[0];
        Floats sum[R][PARTS];
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; part++) sum[r][part] = Floats{};
        for (int at = 0; at < k; at += BLOCK, panel += BLOCK_BYTES, x += R * Packed<int8_t>::BLOCK_BYTES) {
            const Whole* numbers = reinterpret_cast<const Whole*>(x);
            const char *scales = x + R * BLOCK * sizeof(Whole), *starts = scales + R * sizeof(float);
            const uint8_t* weights = reinterpret_cast<const uint8_t*>(panel) + SCALE_BYTES;
            for (int64_t line = 0; line < BLOCK_BYTES; line += 64) ahead.ask();
            Ints whole[R][PARTS];
#pragma GCC unroll 16
            for (int r = 0; r < R; r++)
                for (int part = 0; part < PARTS; part++) whole[r][part] = Ints{} + load<int32_t>(starts + r * sizeof(int32_t));
            for (int place = 0; place < BLOCK / PLACE; place++, weights += PANEL * PLACE)
#pragma GCC unroll 16
                for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                    for (int part = 0; part < PARTS; part++)
                        whole[r][part] =
                            add_whole(whole[r][part], weights + part * LANES * PLACE, numbers + (place * R + r) * PLACE);
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; part++) {
                const Words words = __builtin_convertvector(load<Halves>(panel + part * LANES * sizeof(bf16)), Words);
                const Floats scale = (Floats)(words << 16);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) {
                    const Floats own = __builtin_convertvector(whole[r][part], Floats) * load<float>(scales + r * sizeof(float));
                    sum[r][part] = multiply_add(sum[r][part], own, scale);
                }
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; part++) sums[r * PARTS + part] = sum[r][part];
    }
};

}  // namespace

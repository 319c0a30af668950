// The forward pass of a Llama-family model over a narrow batch of rows, for processors.
//
// At batch size 1 a decode step reads every weight once, and its time is the time of reading. So one call runs all
// layers in one team of threads, and nothing but memory is waited for.
//
// A row's arithmetic does not depend on the rows beside it, nor on where its keys lie: every product accumulates over
// the inner dimension in one order, and attention takes a row's keys in the order of their positions, first the
// committed ones and then the row's own ancestors. So a token has the same logits, bit for bit, whether it was read alone
// or as a node of any tree: a lossless method is exact in every precision.
//
// Layouts: packed weights [n/16][k/pair][16][pair], zero-padded, so that 16 outputs are the lanes of one vector; pair is
// 2 in bfloat16 (its multiply-add takes two neighbours at once) and 1 in float32; for int8 see int8.h. Activations are
// float32 and are rounded where they enter a product or the cache. Cache: [layers][2][kv heads][capacity][head dim].

#include <algorithm>

#include "attention.h"
#include "mixer.h"
#include "model.h"
#include "product.h"
#include "slots.h"
#include "top.h"

namespace {

// T: the type of the cache and of what attention multiplies; W: that of the weights and of what they are multiplied with.
template <class T, class W>
struct Forward : Run<T, W> {
    typedef Run<T, W> Base;
    using Base::m, Base::b, Base::x, Base::normal, Base::qkv, Base::input, Base::activated;
    using Base::Base, Base::packed;
    const int64_t tall = even<W>(b.width);  // rows of a block that enters products

    // Shared out by rows; in int8, where numbers of all rows enter products side by side and it takes longer, by columns,
    // so that no two threads write to the same lines of the processor's cache.
    void normalise(const float* weight, int64_t start) {
        constexpr bool BY_COLUMNS = Packed<W>::IN_BLOCKS;
        const int64_t blocks = (m.hidden + BLOCK - 1) / BLOCK;
        const auto [first, last] = share(BY_COLUMNS ? blocks : b.width - start);
        const int64_t from = BY_COLUMNS ? first * BLOCK : 0, end = BY_COLUMNS ? std::min(m.hidden, last * BLOCK) : m.hidden;
        if (from >= end) return;
        const Packed<W> to = packed(input, m.hidden);
        for (int64_t w = BY_COLUMNS ? start : start + first; w < (BY_COLUMNS ? b.width : start + last); w++) {
            const float *row = x + w * m.hidden, scale = inverse_rms(row, m.hidden, m.eps);
            float* y = normal + w * m.hidden;
            for (int64_t i = from; i < end; i++) y[i] = row[i] * scale * weight[i];
            to.write(w, from, y + from, end - from);
            if constexpr (BY_COLUMNS) to.enter(w, first, last);
        }
    }

    // Rows that several threads wrote: where only whole blocks can enter products, they do now.
    void enter(const Packed<W>& rows, int64_t start) {
        if constexpr (Packed<W>::IN_BLOCKS) {
            const auto [first, last] = share(rows.blocks(rows.k));
            for (int64_t w = start; w < b.width; w++) rows.enter(w, first, last);
#pragma omp barrier
        }
    }

    // activated = silu(gate) * up, panel by panel.
    void gate_and_up(const Layer& layer, int64_t start) {
        const auto [first, last] = share(m.intermediate / PANEL);
        const Packed<W> from = packed(input, m.hidden), to = packed(activated, m.intermediate);
        Floats sums[2 * ROWS * PARTS];
        for (int64_t p = first; p < last; p++) {
            for (int64_t r = start; r < b.width; r += tall) {
                const int some = int(std::min(tall, b.width - r));
                const Block block{r - start, some, b.width - start};
                two_panels<W>({panel<W>(layer.gate, p), panel<W>(layer.up, p)}, from.block(r), block, layer.gate.k, 1, sums);
                const Floats *gates = sums, *ups = sums + some * PARTS;
                for (int i = 0; i < some * PARTS; i++) {
                    const int64_t at = p * PANEL + i % PARTS * LANES;
                    const Floats g = gates[i] + (layer.gate.bias ? load<Floats>(layer.gate.bias + at) : Floats{});
                    const Floats up = ups[i] + (layer.up.bias ? load<Floats>(layer.up.bias + at) : Floats{});
                    const Floats y = silu(g) * up;
                    float values[LANES];
                    std::memcpy(values, &y, sizeof(y));
                    to.write(r + i / PARTS, at, values, LANES);
                }
            }
        }
    }

    void embed() {
        const auto [from, to] = share(b.width);
        const T* table = static_cast<const T*>(m.embedding);
        for (int64_t w = from; w < to; w++)
            for (int64_t i = 0; i < m.hidden; i++) x[w * m.hidden + i] = widen(table[b.tokens[w] * m.hidden + i]);
    }

    // The whole pass, run by every thread of a team; each barrier is where one needs what the others wrote. Of rows
    // that nothing is wanted of, the last layer writes keys and values alone; its products take whole blocks of rows.
    void all_layers() {
        embed();
#pragma omp barrier
        for (int index = 0; index < m.num_layers; index++) {
            const Layer& layer = m.layers[index];
            const int64_t start = index + 1 < m.num_layers ? 0 : b.first_row / tall * tall;
            float* rows = x + start * m.hidden;
            normalise(layer.input_norm, 0);
#pragma omp barrier
            product<W, Store::SET>(layer.query_key_value, packed(input, m.hidden), 0, qkv);
#pragma omp barrier
            write_cache(*this, layer, index);
            enter_queries(*this, layer, index, start);
#pragma omp barrier
            attend(*this, layer, index, start);
#pragma omp barrier
            enter(packed(input, m.heads * m.head_dim), start);
            product<W, Store::ADD>(layer.output, packed(input, m.heads * m.head_dim), start, rows);
#pragma omp barrier
            normalise(layer.mlp_norm, start);
#pragma omp barrier
            gate_and_up(layer, start);
#pragma omp barrier
            enter(packed(activated, m.intermediate), start);
            product<W, Store::ADD>(layer.down, packed(activated, m.intermediate), start, rows);
#pragma omp barrier
        }
        normalise(m.norm, b.first_row / tall * tall);
#pragma omp barrier
        const auto [from, to] = share((b.width - b.first_row) * m.hidden);
        const float* wanted = normal + b.first_row * m.hidden;
        std::copy(wanted + from, wanted + to, b.hidden + from);
        if (b.logits) product<W, Store::SET>(m.head, packed(input, m.hidden), b.first_row, b.logits);
    }
};

template <class T, class W>
void run(const Model& model, const Batch& batch) {
    Forward<T, W> shared(model, batch);
#pragma omp parallel
    shared.all_layers();
}

}  // namespace

extern "C" {

// The sum of n numbers, each thread reading its own stretch: as fast as memory can be read, which is a limit to measure.
float sum_of(const float* data, int64_t n) {
    float sum = 0;
#pragma omp parallel reduction(+ : sum)
    {
        constexpr int AT_ONCE = 8;
        const auto [from, to] = share(n / (AT_ONCE * LANES));
        Floats sums[AT_ONCE] = {};
        for (int64_t i = from; i < to; i++)
            for (int k = 0; k < AT_ONCE; k++) sums[k] += load<Floats>(data + (i * AT_ONCE + k) * LANES);
        for (int k = 0; k < AT_ONCE; k++) sum += total(sums[k]);
    }
    for (int64_t i = n / (8 * LANES) * 8 * LANES; i < n; i++) sum += data[i];
    return sum;
}

// The floats of scratch memory that a batch needs, in whatever type: int8 needs the most.
int64_t scratch_floats(const Model* m, int64_t width, int64_t capacity) {
    const int64_t qkv = (m->heads + 2 * m->kv_heads) * m->head_dim, most = std::max(m->hidden, m->heads * m->head_dim);
    const int64_t queries = std::min(width, tallest(*m)) * (m->heads / m->kv_heads);
    const int64_t scores = m->kv_heads * Piece<float>::floats(queries, m->head_dim, capacity) + LANES;
    return width * (2 * m->hidden + qkv + Packed<int8_t>::floats(most) + Packed<int8_t>::floats(m->intermediate)) + scores;
}

int64_t int8_place() { return PLACE; }  // of weights in int8: neighbours that lie side by side

// y[row] = x[row] . weight + bias for ``rows`` rows of ``k`` floats, the weight in bfloat16: what a drafter computes.
void multiply_bfloat16(const Linear* linear, const float* x, int64_t rows, int64_t k, float* scratch, float* y) {
    typedef Packed<bf16> Rows;
    const Rows packed{reinterpret_cast<Rows::Input*>(scratch), rows, linear->k, even<bf16>(rows)};
    for (int64_t row = 0; row < rows; row++) packed.write(row, 0, x + row * k, k);
#pragma omp parallel
    product<bf16, Store::SET>(*linear, packed, 0, y);
}

void forward_float32(const Model* model, const Batch* batch) { run<float, float>(*model, *batch); }
void forward_bfloat16(const Model* model, const Batch* batch) { run<bf16, bf16>(*model, *batch); }
void forward_int8(const Model* model, const Batch* batch) { run<bf16, int8_t>(*model, *batch); }
}

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
// 2 in bfloat16 (its multiply-add takes two neighbours at once) and 1 in float32. Activations are float32 and are
// rounded where they enter a product or the cache. Cache: [layers][2][kv heads][capacity][head dim].

#include <omp.h>

#include <vector>

#include "lanes.h"
#include "top.h"


extern "C" {

struct Linear {
    const void* weight;  // packed
    const float* bias;   // or null
    int64_t n, k;        // k is padded to a whole number of pairs
};

struct Layer {
    const float* input_norm;
    Linear query_key_value;
    const float* query_norm;  // or null
    const float* key_norm;    // or null
    Linear output;
    const float* mlp_norm;
    Linear gate, up, down;
};

struct Model {
    int64_t num_layers, hidden, intermediate, heads, kv_heads, head_dim;
    float eps;
    const void* embedding;     // [v, d]
    const float *cosine, *sine;  // [positions, head_dim], the sine with the sign of the rotation
    const Layer* layers;
    const float* norm;
    Linear head;
};

struct Batch {
    int64_t width, length, capacity;
    const int64_t *tokens, *positions, *parents;  // parents: -1 for the root
    void* cache;
    // Or each row its own text: caches [width] of one capacity, lengths [width]; parents are then not read.
    void** caches;
    const int64_t* lengths;
    float* scratch;          // see scratch_floats
    float* hidden;           // [width, d] out, normalised
    int64_t first_logit_row;  // logits of the rows from here on
    float* logits;           // [width - first_logit_row, head.n] out
};
}

namespace {

// Which rows of this batch a row sees: the first ``leading`` ones, then ``others`` in the order of their depth.
struct Sight {
    int64_t leading;
    std::vector<int32_t> others;
};

std::vector<Sight> sights(const Batch& b) {
    if (b.caches) return std::vector<Sight>(b.width, {1, {}});
    std::vector<Sight> found(b.width);
    for (int64_t w = 0; w < b.width; w++) {
        const int64_t parent = b.parents[w];
        if (parent < 0) {
            found[w].leading = w == 0;
            if (w) found[w].others = {int32_t(w)};
        } else if (parent == w - 1 && found[parent].leading == w) {
            found[w].leading = w + 1;
        } else {
            found[w] = found[parent];
            found[w].others.push_back(int32_t(w));
        }
    }
    return found;
}

// What the threads share while they run one batch; pointers into the scratch memory.
template <class T>
struct Run {
    const Model& m;
    const Batch& b;
    int64_t qkv_width;
    float *x, *normal, *qkv;   // [w, hidden], [w, hidden], [w, qkv_width]
    T *input, *activated;      // packed rows: what enters the next product
    std::vector<Sight> sight;  // of each row

    Run(const Model& model, const Batch& batch) : m(model), b(batch) {
        qkv_width = (m.heads + 2 * m.kv_heads) * m.head_dim;
        x = b.scratch;
        normal = x + b.width * m.hidden;
        qkv = normal + b.width * m.hidden;
        input = reinterpret_cast<T*>(qkv + b.width * qkv_width);
        activated = input + b.width * (std::max(m.hidden, m.heads * m.head_dim) + 1);
        sight = sights(b);
    }

    // Where row w's keys and values are written, and how many committed ones it sees.
    int64_t slot(int64_t w) const { return b.caches ? b.lengths[w] : b.length + w; }
    int64_t length(int64_t w) const { return b.caches ? b.lengths[w] : b.length; }

    T* keys(int layer, int head, int64_t w) const {
        T* cache = static_cast<T*>(b.caches ? b.caches[w] : b.cache);
        return cache + ((int64_t(layer) * 2) * m.kv_heads + head) * b.capacity * m.head_dim;
    }
    T* values(int layer, int head, int64_t w) const {
        return keys(layer, head, w) + m.kv_heads * b.capacity * m.head_dim;
    }

    // The part of [0, count) that is this thread's.
    static std::pair<int64_t, int64_t> share(int64_t count) {
        const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
        return {count * thread / threads, count * (thread + 1) / threads};
    }

    static float inverse_rms(const float* row, int64_t n, float eps) {
        Floats squares{};
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES) squares += load<Floats>(row + i) * load<Floats>(row + i);
        float sum = total(squares);
        for (; i < n; i++) sum += row[i] * row[i];
        return 1.0f / std::sqrt(sum / n + eps);
    }

    void normalise(const float* weight) {
        const auto [from, to] = share(b.width);
        for (int64_t w = from; w < to; w++) {
            const float* row = x + w * m.hidden;
            const float scale = inverse_rms(row, m.hidden, m.eps);
            for (int64_t i = 0; i < m.hidden; i++) normal[w * m.hidden + i] = row[i] * scale * weight[i];
            packed(input, m.hidden).write(w, 0, normal + w * m.hidden, m.hidden);
        }
    }

    Packed<T> packed(T* data, int64_t k) const { return {data, b.width, Packed<T>::padded(k)}; }

    // y[row, n] (=, +=) from[row] . weight[n] + bias[n]; the panels are shared out among the threads.
    template <Store HOW>
    void product(const Linear& linear, const Packed<T>& from, int64_t first_row, float* y) {
        const auto [first, last] = share((linear.n + LANES - 1) / LANES);
        Floats sums[ROWS];
        for (int64_t p = first; p < last; p++) {
            const T* panel = static_cast<const T*>(linear.weight) + p * LANES * linear.k;
            const int count = int(std::min<int64_t>(LANES, linear.n - p * LANES));
            const float* bias = linear.bias ? linear.bias + p * LANES : nullptr;
            for (int64_t r = first_row / ROWS * ROWS; r < b.width; r += ROWS) {
                const int some = int(std::min<int64_t>(ROWS, b.width - r)), skip = int(std::max<int64_t>(0, first_row - r));
                panel_times(panel, from.block(r), some, int(linear.k), sums);
                float* to = y + (r + skip - first_row) * linear.n + p * LANES;
                store<HOW>(sums + skip, some - skip, bias, to, linear.n, count);
            }
        }
    }

    // activated = silu(gate) * up, panel by panel.
    void gate_and_up(const Layer& layer) {
        const auto [first, last] = share(m.intermediate / LANES);
        const int64_t k = layer.gate.k;
        const Packed<T> from = packed(input, m.hidden), to = packed(activated, m.intermediate);
        Floats gates[ROWS], ups[ROWS];
        for (int64_t p = first; p < last; p++) {
            const T* gate = static_cast<const T*>(layer.gate.weight) + p * LANES * k;
            const T* up = static_cast<const T*>(layer.up.weight) + p * LANES * k;
            const Floats gate_bias = layer.gate.bias ? load<Floats>(layer.gate.bias + p * LANES) : Floats{};
            const Floats up_bias = layer.up.bias ? load<Floats>(layer.up.bias + p * LANES) : Floats{};
            for (int64_t r = 0; r < b.width; r += ROWS) {
                const int some = int(std::min<int64_t>(ROWS, b.width - r));
                panel_times(gate, from.block(r), some, int(k), gates);
                panel_times(up, from.block(r), some, int(k), ups);
                for (int i = 0; i < some; i++) {
                    const Floats g = gates[i] + gate_bias, y = g / (1.0f + exponential(-g)) * (ups[i] + up_bias);
                    float values[LANES];
                    std::memcpy(values, &y, sizeof(y));
                    to.write(r + i, p * LANES, values, LANES);
                }
            }
        }
    }

    void rotate(const float* from, const float* norm, int64_t position, float* to) const {
        const int64_t half = m.head_dim / 2;
        const float scale = norm ? inverse_rms(from, m.head_dim, m.eps) : 1.0f;
        const float *cosine = m.cosine + position * m.head_dim, *sine = m.sine + position * m.head_dim;
        const auto at = [&](int64_t i) { return norm ? from[i] * scale * norm[i] : from[i]; };
        for (int64_t i = 0; i < half; i++) to[i] = at(i) * cosine[i] + at(i + half) * sine[i];
        for (int64_t i = half; i < m.head_dim; i++) to[i] = at(i) * cosine[i] + at(i - half) * sine[i];
    }

    void write_cache(const Layer& layer, int index) {
        const auto [from, to] = share(b.width * m.kv_heads);
        std::vector<float> key_row(m.head_dim);
        for (int64_t item = from; item < to; item++) {
            const int64_t w = item / m.kv_heads, head = item % m.kv_heads, row = slot(w) * m.head_dim;
            const float* key = qkv + w * qkv_width + (m.heads + head) * m.head_dim;
            const float* value = key + m.kv_heads * m.head_dim;
            rotate(key, layer.key_norm, b.positions[w], key_row.data());
            // A cache row is a packed row that is alone in its block.
            Packed<T>{keys(index, int(head), w) + row, 1, m.head_dim}.write(0, 0, key_row.data(), m.head_dim);
            Packed<T>{values(index, int(head), w) + row, 1, m.head_dim}.write(0, 0, value, m.head_dim);
        }
    }

    // Attention of all rows; what it gives is the input of the output projection. Work is shared out in pieces of some
    // rows and one key head, whose keys are laid out once for all the queries of the piece.
    void attend(const Layer& layer, int index) {
        const int64_t group = m.heads / m.kv_heads, rows = b.caches ? 1 : std::max<int64_t>(1, 48 / group);
        const int64_t pieces = (b.width + rows - 1) / rows;
        const auto [from, to] = share(pieces * m.kv_heads);
        for (int64_t item = from; item < to; item++) {
            const int64_t first = item / m.kv_heads * rows;
            attend_piece(layer, index, int(item % m.kv_heads), first, std::min(b.width, first + rows));
        }
    }

    void attend_piece(const Layer& layer, int index, int head, int64_t first, int64_t last) {
        static thread_local std::vector<float> memory;
        const int64_t group = m.heads / m.kv_heads, queries = (last - first) * group, dim = m.head_dim;
        int64_t end = 0;  // one past the last row of the cache that a query sees
        for (int64_t w = first; w < last; w++)
            end = std::max(end, length(w) + (sight[w].others.empty() ? sight[w].leading : w + 1));
        const int64_t blocks = (end + LANES - 1) / LANES, stride = blocks * LANES;
        memory.resize(queries * (stride + 2 * dim) + 2 * LANES * dim);
        float* scores = memory.data();                                     // [queries, stride]
        float* sums = scores + queries * stride;                           // [queries, dim]
        float* block = sums + queries * dim;                               // [16, dim] of values, or keys laid out
        const Packed<T> query{reinterpret_cast<T*>(block + 2 * LANES * dim), queries, dim};
        for (int64_t q = 0; q < queries; q++) {
            const int64_t w = first + q / group;
            const float* own = qkv + w * qkv_width + (head * group + q % group) * dim;
            rotate(own, layer.query_norm, b.positions[w], sums);
            query.write(q, 0, sums, dim);
        }
        for (int64_t at = 0; at < blocks; at++) {
            lay_out(keys(index, head, first) + at * LANES * dim, int(std::min<int64_t>(LANES, end - at * LANES)), block);
            for (int64_t q = 0; q < queries; q += ROWS) {
                Floats found[ROWS];
                const int some = int(std::min<int64_t>(ROWS, queries - q));
                panel_times(reinterpret_cast<const T*>(block), query.block(q), some, int(dim), found);
                for (int i = 0; i < some; i++) std::memcpy(scores + (q + i) * stride + at * LANES, &found[i], sizeof(Floats));
            }
        }
        for (int64_t q = 0; q < queries; q++) {
            const Sight& seen = sight[first + q / group];
            float* row = scores + q * stride;
            int64_t count = length(first) + seen.leading;
            for (const int32_t other : seen.others) row[count++] = row[length(first) + other];
            soften(row, count);
        }
        add_values(index, head, first, queries, stride, scores, block, sums);
        for (int64_t q = 0; q < queries; q++) {
            const int64_t w = first + q / group;
            packed(input, m.heads * dim).write(w, (head * group + q % group) * dim, sums + q * dim, dim);
        }
    }

    // Up to 16 keys as a panel of weights: [dim / pair][16][pair].
    void lay_out(const T* rows, int count, float* to) const {
        constexpr int PAIR = Product<T>::PAIR;
        T* panel = reinterpret_cast<T*>(to);
        if (count < LANES) std::memset(panel, 0, sizeof(T) * LANES * m.head_dim);
        for (int64_t i = 0; i < m.head_dim; i += PAIR)
            for (int lane = 0; lane < count; lane++)
                std::memcpy(panel + (i * LANES + lane * PAIR), rows + lane * m.head_dim + i, sizeof(T) * PAIR);
    }

    // Scores to probabilities, in place.
    void soften(float* row, int64_t count) const {
        const float scale = 1.0f / std::sqrt(float(m.head_dim));
        Floats highest = Floats{} - INFINITY, parts{};
        for (int64_t i = 0; i + LANES <= count; i += LANES) {
            const Floats part = load<Floats>(row + i);
            highest = part > highest ? part : highest;
        }
        float most = highest[0];
        for (int lane = 1; lane < LANES; lane++) most = std::max(most, highest[lane]);
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

    // sums[q] = the values weighted by the scores, a key at a time in the order of its position.
    void add_values(int index, int head, int64_t first, int64_t queries, int64_t stride, const float* scores, float* block,
                    float* sums) const {
        const int64_t dim = m.head_dim, group = m.heads / m.kv_heads;
        const T* rows = values(index, head, first);
        const int64_t before = length(first);
        std::fill(sums, sums + queries * dim, 0.0f);
        int64_t most = 0;
        for (int64_t q = 0; q < queries; q++) most = std::max(most, before + sight[first + q / group].leading);
        for (int64_t at = 0; at < most; at += LANES) {
            const int64_t filled = std::min<int64_t>(LANES, most - at);
            for (int64_t i = 0; i < filled * dim; i++) block[i] = widen(rows[at * dim + i]);
            const auto count = [&](int64_t q) {
                return std::clamp<int64_t>(before + sight[first + q / group].leading - at, 0, filled);
            };
            for (int64_t q = 0; q < queries; q++) {
                const float* weights = scores + q * stride + at;
                const bool together = q + 4 <= queries && count(q) == filled && count(q + 3) == filled &&
                                      count(q + 1) == filled && count(q + 2) == filled;
                if (together) {  // four queries to each value that is loaded
                    add_weighted<4>(block, weights, stride, filled, sums + q * dim);
                    q += 3;
                } else {
                    add_weighted<1>(block, weights, stride, count(q), sums + q * dim);
                }
            }
        }
        for (int64_t q = 0; q < queries; q++) {
            const Sight& seen = sight[first + q / group];
            int64_t at = before + seen.leading;
            for (const int32_t other : seen.others) {
                for (int64_t i = 0; i < dim; i++) block[i] = widen(rows[(before + other) * dim + i]);
                add_weighted<1>(block, scores + q * stride + at++, stride, 1, sums + q * dim);
            }
        }
    }

    // sums[q] += weights[q][j] * rows[j] for Q queries, j one after the other.
    template <int Q>
    void add_weighted(const float* rows, const float* weights, int64_t stride, int64_t count, float* sums) const {
        const int64_t dim = m.head_dim;
        int64_t i = 0;
        for (; i + 4 * LANES <= dim; i += 4 * LANES) add_lanes<Q, 4>(rows + i, weights, stride, count, sums + i);
        for (; i + LANES <= dim; i += LANES) add_lanes<Q, 1>(rows + i, weights, stride, count, sums + i);
        for (; i < dim; i++)
            for (int q = 0; q < Q; q++)
                for (int64_t j = 0; j < count; j++)
                    sums[q * dim + i] = std::fma(weights[q * stride + j], rows[j * dim + i], sums[q * dim + i]);
    }

    template <int Q, int N>
    void add_lanes(const float* rows, const float* weights, int64_t stride, int64_t count, float* sums) const {
        Floats sum[Q][N];
        for (int q = 0; q < Q; q++)
            for (int n = 0; n < N; n++) sum[q][n] = load<Floats>(sums + q * m.head_dim + n * LANES);
        for (int64_t j = 0; j < count; j++)
            for (int n = 0; n < N; n++) {
                const Floats row = load<Floats>(rows + j * m.head_dim + n * LANES);
                for (int q = 0; q < Q; q++) sum[q][n] += weights[q * stride + j] * row;
            }
        for (int q = 0; q < Q; q++)
            for (int n = 0; n < N; n++) std::memcpy(sums + q * m.head_dim + n * LANES, &sum[q][n], sizeof(Floats));
    }

    void embed() {
        const auto [from, to] = share(b.width);
        const T* table = static_cast<const T*>(m.embedding);
        for (int64_t w = from; w < to; w++)
            for (int64_t i = 0; i < m.hidden; i++) x[w * m.hidden + i] = widen(table[b.tokens[w] * m.hidden + i]);
    }

    // The whole pass, run by every thread of a team; each barrier is where one needs what the others wrote.
    void all_layers() {
        embed();
        for (int index = 0; index < m.num_layers; index++) {
            const Layer& layer = m.layers[index];
            normalise(layer.input_norm);
#pragma omp barrier
            product<Store::SET>(layer.query_key_value, packed(input, m.hidden), 0, qkv);
#pragma omp barrier
            write_cache(layer, index);
#pragma omp barrier
            attend(layer, index);
#pragma omp barrier
            product<Store::ADD>(layer.output, packed(input, m.heads * m.head_dim), 0, x);
#pragma omp barrier
            normalise(layer.mlp_norm);
#pragma omp barrier
            gate_and_up(layer);
#pragma omp barrier
            product<Store::ADD>(layer.down, packed(activated, m.intermediate), 0, x);
#pragma omp barrier
        }
        normalise(m.norm);
#pragma omp barrier
        const auto [from, to] = share(b.width * m.hidden);
        std::copy(normal + from, normal + to, b.hidden + from);
        product<Store::SET>(m.head, packed(input, m.hidden), b.first_logit_row, b.logits);
    }
};

template <class T>
void run(const Model& model, const Batch& batch) {
    Run<T> shared(model, batch);
#pragma omp parallel
    shared.all_layers();
}

}  // namespace

extern "C" {

int64_t scratch_floats(const Model* m, int64_t width) {
    const int64_t qkv = (m->heads + 2 * m->kv_heads) * m->head_dim;
    return width * (2 * m->hidden + qkv + std::max(m->hidden, m->heads * m->head_dim) + 1 + m->intermediate + 1);
}

void forward_float32(const Model* model, const Batch* batch) { run<float>(*model, *batch); }
void forward_bfloat16(const Model* model, const Batch* batch) { run<bf16>(*model, *batch); }
}

// What the compiled code is called with, and what its threads share while they run it.

#pragma once

#include <vector>

#include "product.h"

extern "C" {

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
    const int64_t* leading;  // or, in place of parents, how many leading rows of the batch each row sees
    void* cache;
    // Or each row its own text: caches [width] of one capacity, lengths [width]; parents are then not read.
    void** caches;
    const int64_t* lengths;
    float* scratch;          // see scratch_floats
    int64_t first_row;       // what follows is wanted of the rows from here on
    float* hidden;           // [width - first_row, d] out, normalised
    float* logits;           // [width - first_row, head.n] out, or null
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
    if (b.leading) {
        for (int64_t w = 0; w < b.width; w++) found[w].leading = b.leading[w];
        return found;
    }
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

// What the threads share while they run one batch; pointers into the scratch memory. T: the type of the cache and of what
// attention multiplies. E: that of what is multiplied with weights.
template <class T, class E>
struct Run {
    const Model& m;
    const Batch& b;
    int64_t qkv_width;
    float *x, *normal, *qkv;   // [w, hidden], [w, hidden], [w, qkv_width]
    typedef typename Packed<E>::Input Input;
    Input *input, *activated;  // packed rows: what enters the next product
    float* scores;             // of attention where the threads work on it together
    std::vector<Sight> sight;  // of each row

    Run(const Model& model, const Batch& batch) : m(model), b(batch) {
        qkv_width = (m.heads + 2 * m.kv_heads) * m.head_dim;
        x = b.scratch;
        normal = x + b.width * m.hidden;
        qkv = normal + b.width * m.hidden;
        input = reinterpret_cast<Input*>(qkv + b.width * qkv_width);
        activated = reinterpret_cast<Input*>(reinterpret_cast<float*>(input) +
                                             b.width * Packed<E>::floats(std::max(m.hidden, m.heads * m.head_dim)));
        scores = aligned(reinterpret_cast<float*>(activated) + b.width * Packed<E>::floats(m.intermediate));
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

    Packed<E> packed(Input* data, int64_t k) const { return {data, b.width, Packed<E>::padded(k), even<E>(b.width)}; }
};

inline float inverse_rms(const float* row, int64_t n, float eps) {
    Floats squares{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) squares += load<Floats>(row + i) * load<Floats>(row + i);
    float sum = total(squares);
    for (; i < n; i++) sum += row[i] * row[i];
    return 1.0f / std::sqrt(sum / n + eps);
}

}  // namespace

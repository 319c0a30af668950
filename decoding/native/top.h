// The k largest of each row, the first of equal ones first, and the logarithm of the row's sum of exponentials.

#pragma once

#include <omp.h>

#include "lanes.h"

namespace {

// The logarithm of a row's sum of exponentials, its largest number being known.
inline float log_total(const float* row, int64_t n, float most) {
    Floats parts{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) parts += exponential(load<Floats>(row + i) - most);
    float sum = total(parts);
    for (; i < n; i++) sum += std::exp(row[i] - most);
    return most + std::log(sum);
}

inline void top_of_row(const float* row, int64_t n, int64_t k, float* values, int64_t* ids, float* sum) {
    int64_t found = 0;
    const auto offer = [&](float value, int64_t id) {
        if (found == k && !(value > values[k - 1])) return;
        int64_t at = found < k ? found++ : k - 1;
        for (; at > 0 && value > values[at - 1]; at--) values[at] = values[at - 1], ids[at] = ids[at - 1];
        values[at] = value, ids[at] = id;
    };
    int64_t i = 0;
    for (; i < std::min(k, n); i++) offer(row[i], i);
    constexpr int AT_ONCE = 8;  // almost no eight vectors hold anything larger than the k-th so far
    for (; i + AT_ONCE * LANES <= n; i += AT_ONCE * LANES) {
        Floats most = load<Floats>(row + i);
#pragma GCC unroll 8
        for (int part = 1; part < AT_ONCE; part++) {
            const Floats other = load<Floats>(row + i + part * LANES);
            most = other > most ? other : most;
        }
        if (any(most > values[k - 1]))
            for (int j = 0; j < AT_ONCE * LANES; j++) offer(row[i + j], i + j);
    }
    for (; i < n; i++) offer(row[i], i);
    if (sum) *sum = log_total(row, n, values[0]);
}

}  // namespace

// Of ``count`` rows of ``n`` numbers, each row ``stride`` numbers behind the one before.
extern "C" void top_k(const float* rows, int64_t count, int64_t n, int64_t stride, int64_t k, float* values, int64_t* ids,
                      float* log_totals) {
#pragma omp parallel for schedule(static) if (count > 1)
    for (int64_t r = 0; r < count; r++)
        top_of_row(rows + r * stride, n, k, values + r * k, ids + r * k, log_totals ? log_totals + r : nullptr);
}

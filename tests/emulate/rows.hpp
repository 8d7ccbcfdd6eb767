// Kernels that go over rows of values: norms, rotation, activations, rounding, sums.
#pragma once
#include "formats.hpp"

namespace rows {

using namespace check;
constexpr unsigned PADDING = 512; // products.rs

// Values of rows with what rounding and norms must bear: zeros, one large value among small ones, tiny ones.
inline std::vector<float> awkward(unsigned count, unsigned width) {
    std::vector<float> x = any.floats(size_t(count) * width, 4.0f);
    for (unsigned r = 0; r < count; r++) {
        float *row = &x[size_t(r) * width];
        if (r % 4 == 1) std::fill(row, row + width, 0.0f);
        if (r % 4 == 2) row[width - 1] = -30000.0f;
        if (r % 4 == 3) for (unsigned i = 0; i < width; i++) row[i] *= 1e-6f;
    }
    return x;
}

// Row r of rounded rows; `values` is padded.
inline void check_rounded_row(const u8 *rounded, const std::vector<float> &values, size_t r) {
    size_t blocks = values.size() / 32;
    for (size_t b = 0; b < blocks; b++) formats::check_rounded(rounded + (r * blocks + b) * 36, &values[b * 32], r * blocks + b);
}

// CudaKernels::round (products.rs).
template <class X>
void round_rows(const char *name, void (*kernel)(const X *, u8 *, float *, int, int), unsigned count, unsigned width, bool widens) {
    CASE("%u rows of %u%s", count, width, widens ? ", widened" : "");
    std::vector<float> values = awkward(count, width);
    Buffer<X> x(values.size());
    for (size_t i = 0; i < values.size(); i++) {
        narrow(values[i], &x[i]);
        values[i] = widen(x[i]);
    }
    unsigned padded = next_multiple(width, PADDING);
    Buffer<u8> to(size_t(count) * padded / 32 * 36);
    Buffer<float> wide(values.size());
    emulate::launch(name, kernel, dim3{div_ceil(padded, 128), count}, dim3{128}, 0, x.at, to.at, widens ? wide.at : nullptr, width, padded);
    for (size_t r = 0; r < count; r++) {
        std::vector<float> row(padded, 0.0f);
        std::copy_n(&values[r * width], width, row.begin());
        check_rounded_row(to, row, r);
    }
    for (size_t i = 0; widens && i < values.size(); i++) same("wide", i, wide[i], values[i]);
}

// Kernels::rms_norm (cuda/mod.rs).
inline void norm(unsigned count, unsigned len, unsigned groups, unsigned rest) {
    CASE("%u rows of %u groups of %u and %u more", count, groups, len, rest);
    unsigned width = groups * len + rest, padded = next_multiple(width, PADDING), threads = std::min(std::max(next_multiple(len, 32), 32u), 512u);
    const float eps = 1e-6f;
    bool whole = len == width && width % 32 == 0 && count <= 63;
    Buffer<float> x(awkward(count, width)), weight(any.floats(len)), y(size_t(count) * width);
    Buffer<u8> rounded(whole ? size_t(count) * padded / 32 * 36 : 0);
    LAUNCH(rms_norm, dim3{count * groups}, dim3{threads}, 0, x.at, weight.at, y.at, whole ? rounded.at : nullptr, len, width, groups, padded, eps);
    for (size_t r = 0; r < count; r++) {
        const float *row = &x[r * width];
        for (unsigned g = 0; g < groups; g++) {
            double squares = 0.0;
            for (unsigned i = 0; i < len; i++) squares += double(row[g * len + i]) * row[g * len + i];
            for (unsigned i = 0; i < len; i++) {
                double want = row[g * len + i] / std::sqrt(squares / len + eps) * weight[i];
                near("y", r * width + g * len + i, y[r * width + g * len + i], want, 2e-6 * std::fabs(want));
            }
        }
        for (unsigned i = groups * len; i < width; i++) same("rest", r * width + i, y[r * width + i], row[i]);
        std::vector<float> normed(padded, 0.0f);
        std::copy_n(&y[r * width], width, normed.begin());
        if (whole) check_rounded_row(rounded, normed, r);
    }
}

// Kernels::rope (cuda/mod.rs).
inline void rotation(unsigned tokens, unsigned heads, int head_dim, int first, int pairs, bool neox) {
    CASE("%u tokens, %u heads of %d, %d pairs from %d, %s", tokens, heads, head_dim, pairs, first, neox ? "halves" : "neighbours");
    const int positions = 50;
    size_t width = heads * unsigned(head_dim), total = tokens * width;
    Buffer<float> x(any.floats(total)), y(total), cos(size_t(positions * pairs)), sin(size_t(positions * pairs));
    Buffer<u32> at(any.indexes(tokens, positions));
    at[tokens - 1] = positions - 1;
    for (int i = 0; i < positions * pairs; i++) {
        cos[size_t(i)] = std::cos(i * 0.37f);
        sin[size_t(i)] = std::sin(i * 0.37f);
    }
    LAUNCH_FLAT(rope, total, x.at, cos.at, sin.at, at.at, y.at, total, width, head_dim, first, pairs, neox);
    for (size_t t = 0; t < tokens; t++)
        for (unsigned h = 0; h < heads; h++) {
            size_t head = t * width + h * unsigned(head_dim);
            const float *from = &x[head];
            std::vector<double> want(from, from + head_dim);
            for (int p = 0; p < pairs; p++) {
                int a = first + (neox ? p : 2 * p), b = neox ? a + pairs : a + 1;
                double c = cos[at[t] * size_t(pairs) + size_t(p)], s = sin[at[t] * size_t(pairs) + size_t(p)];
                want[size_t(a)] = from[a] * c - from[b] * s;
                want[size_t(b)] = from[a] * s + from[b] * c;
            }
            for (size_t d = 0; d < want.size(); d++) near("y", head + d, y[head + d], want[d], 1e-6);
        }
}

inline double activation(double g, double u, int kind) {
    if (kind == 1) {
        g = std::min(g, 7.0);
        u = std::min(std::max(u, -7.0), 7.0) + 1.0;
    }
    return g / (1.0 + std::exp(-(kind == 1 ? 1.702 : 1.0) * g)) * u;
}

// Gates and their factors, of a size that clamps some.
inline void gates(std::vector<float> &gate, std::vector<float> &up, size_t n) {
    gate = any.floats(n, 12.0f);
    up = any.floats(n, 12.0f);
    gate[0] = -200.0f; // e^200 is infinite as a float
}

// Kernels::glu (cuda/mod.rs) and CudaKernels::activated (products.rs).
inline void gated(unsigned count, unsigned width, int kind) {
    CASE("%u rows of %u, kind %d", count, width, kind);
    std::vector<float> g, u;
    gates(g, u, size_t(count) * width);
    unsigned padded = next_multiple(width, PADDING);
    Buffer<float> gate(g), up(u), y(g.size());
    LAUNCH_FLAT(glu, g.size(), gate.at, up.at, y.at, g.size(), kind);
    for (size_t i = 0; i < g.size(); i++) {
        double want = activation(g[i], u[i], kind);
        near("y", i, y[i], want, 1e-5 * (1.0 + std::fabs(want)));
    }
    Buffer<u8> rounded(size_t(count) * padded / 32 * 36);
    LAUNCH(glu_round, dim3{div_ceil(padded, 128), count}, dim3{128}, 0, gate.at, up.at, rounded.at, width, padded, kind);
    for (size_t r = 0; r < count; r++) {
        std::vector<float> row(padded, 0.0f);
        std::copy_n(&y[r * width], width, row.begin());
        check_rounded_row(rounded, row, r);
    }
}

// CudaKernels::halve, and what CudaKernels::dense does with a product of its halves (products.rs).
inline void halved(unsigned count, unsigned width, bool gated, int kind) {
    CASE("%u rows of %u%s, kind %d", count, width, gated ? " gated" : "", kind);
    std::vector<float> values = awkward(count, width), g = values, u;
    if (gated) {
        gates(g, u, values.size());
        for (size_t i = 0; i < g.size(); i++) values[i] = float(activation(g[i], u[i], kind));
    } else if (count > 4) {
        values[2 * width] = g[2 * width] = 1e30f; // no half is so large
        for (size_t i = 4 * size_t(width); i < values.size(); i++) values[i] = g[i] = 1e-39f; // and the inverse of this is infinite
    }
    Buffer<float> x(g), up(u), scales(count);
    Buffer<u16> y(values.size());
    LAUNCH(halve, dim3{count}, dim3{256}, 0, x.at, gated ? up.at : nullptr, y.at, scales.at, width, kind);
    for (size_t r = 0; r < count; r++) {
        double most = 0.0;
        for (unsigned i = 0; i < width; i++) most = std::max(most, double(std::fabs(values[r * width + i])));
        near("scale", r, scales[r], most, 2e-6 * most);
        for (unsigned i = 0; i < width; i++) {
            double want = most > 1e-37 ? values[r * width + i] / most : 0.0; // less is as good as nothing
            near("y", r * width + i, widen(y[r * width + i]), want, half_step(want) + 3e-6);
        }
    }
    Buffer<float> wide(values.size());
    LAUNCH_FLAT(unhalve, wide.count, y.at, scales.at, wide.at, wide.count, width);
    for (size_t i = 0; i < wide.count; i++) {
        same("wide", i, wide[i], widen(y[i]) * scales[i / width]);
        near("wide", i, wide[i], values[i], 6e-4 * scales[i / width] + 1e-37);
    }
}

// Kernels::add_chosen, Kernels::combine and Kernels::add (cuda/mod.rs).
inline void sums(unsigned tokens, unsigned k, unsigned n, unsigned experts) {
    CASE("%u tokens, %u of %u experts, %u values", tokens, k, experts, n);
    size_t total = size_t(tokens) * k * n;
    Buffer<float> x(any.floats(total)), bias(any.floats(size_t(experts) * n)), y(total), weights(any.floats(tokens * k));
    Buffer<u32> ids(any.indexes(tokens * k, int(experts)));
    ids[0] = 0;
    ids[tokens * k - 1] = experts - 1;
    LAUNCH_FLAT(add_chosen, total, x.at, bias.at, ids.at, y.at, total, n);
    for (size_t i = 0; i < total; i++) same("y", i, y[i], x[i] + bias[size_t(ids[i / n]) * n + i % n]);
    for (bool weighted : {false, true}) {
        Buffer<float> sum(size_t(tokens) * n);
        LAUNCH_FLAT(combine, sum.count, x.at, weighted ? weights.at : nullptr, sum.at, sum.count, n, k);
        for (size_t i = 0; i < sum.count; i++) {
            double want = 0.0;
            for (size_t j = 0; j < k; j++) want += double(x[(i / n * k + j) * n + i % n]) * (weighted ? weights[i / n * k + j] : 1.0f);
            near("sum", i, sum[i], want, 1e-6 * k);
        }
    }
    Buffer<float> z(total);
    LAUNCH_FLAT(add_scaled, total, x.at, y.at, z.at, total, -0.75f);
    for (size_t i = 0; i < total; i++) near("z", i, z[i], x[i] - 0.75 * y[i], 1e-6);
}

inline void all() {
    for (unsigned width : {1u, 31u, 32u, 33u, 127u, 511u, 512u, 513u, 1100u}) {
        round_rows("round_f32", round_f32, 5, width, width % 2);
        round_rows("round_f16", round_f16, 5, width, width % 2 == 0);
    }
    for (unsigned len : {1u, 2u, 31u, 32u, 33u, 64u, 96u, 511u, 512u, 513u, 544u, 1056u}) norm(5, len, 1, 0);
    norm(64, 32, 1, 0); // too many rows to be rounded
    norm(2, 64, 3, 0);
    norm(3, 128, 2, 40);
    norm(3, 7, 5, 6);
    for (bool neox : {false, true}) {
        rotation(1, 1, 2, 0, 1, neox);
        rotation(3, 3, 64, 0, 32, neox);
        rotation(2, 2, 128, 0, 20, neox);
        rotation(3, 2, 96, 64, 16, neox);
        rotation(5, 1, 10, 3, 2, neox);
    }
    for (int kind : {0, 1})
        for (unsigned width : {1u, 31u, 32u, 255u, 256u, 257u, 513u}) {
            gated(3, width, kind);
            halved(3, width, true, kind);
            halved(5, width, false, kind);
        }
    sums(1, 1, 1, 1);
    sums(3, 2, 85, 5);
    sums(2, 8, 16, 128);
    sums(7, 3, 256, 4);
}

} // namespace rows

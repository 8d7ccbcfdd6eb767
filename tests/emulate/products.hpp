// Products with quantized weights, with halves and with floats.
#pragma once
#include "formats.hpp"
#include "routing.hpp"

namespace products {

using namespace check;
using routing::ByExpert;
constexpr unsigned PADDING = 512, EACH_PAIRS = 8, TILE_PAIRS = 64, TILE_ROWS = 128; // products.rs

struct Kernels {
    void (*product)(const u8 *, const u8 *, const u32 *, const u32 *, float *, int, int, int, int);
    void (*expand)(const u8 *, u16 *, i64);
};
// own_kernels (products.rs).
inline Kernels own_kernels(const formats::Format &f) {
#define OWN(type) if (!std::strcmp(f.name, #type)) return {experts_##type, expand_##type}
    OWN(q4_0);
    OWN(q4_1);
    OWN(q5_0);
    OWN(q5_1);
    OWN(q8_0);
    OWN(iq4_nl);
    OWN(iq4_xs);
    OWN(mxfp4);
    OWN(q2_k);
    OWN(q3_k);
    OWN(q4_k);
    OWN(q5_k);
    OWN(q6_k);
#undef OWN
    std::abort();
}

// CudaKernels::expanded (products.rs).
inline void expanded(const formats::Format &f, unsigned blocks) {
    std::string name = std::string("expand_") + f.name;
    CASE("%u blocks", blocks);
    Buffer<u8> w(formats::random_blocks(f, blocks));
    size_t values = size_t(blocks) * f.block;
    Buffer<u16> y(values);
    emulate::launch(name.c_str(), own_kernels(f).expand, dim3{div_ceil(unsigned(values / 32), 256)}, dim3{256}, 0, w.at, y.at, values / 32);
    for (size_t i = 0; i < values; i++) {
        const u8 *block = &w[i / f.block * f.bytes];
        int at = int(i % f.block);
        double want = f.value(block, at), minimum = f.minimum ? f.minimum(block, at) : 0.0;
        near("y", i, widen(y[i]), want, half_step(want) + 1e-6 * (std::fabs(want) + std::fabs(minimum)));
    }
}

// BF16 stacks as halves (CudaKernels::shared).
inline void expanded_bf16(unsigned count) {
    CASE("%u values", count);
    Buffer<bf16> w(count);
    Buffer<u16> y(count);
    for (size_t i = 0; i < count; i++) w[i] = bf16{u16(float_bits(any.within(i % 3 ? 1.0f : 70000.0f)) >> 16)};
    LAUNCH(expand_bf16, dim3{div_ceil(count, 256)}, dim3{256}, 0, w.at, y.at, count);
    for (size_t i = 0; i < count; i++) same("y", i, y[i], nearest_half(widen(w[i])));
}

// Rows of Q8_1 as the kernels that round make them, and nothing that may be read behind their columns.
inline std::vector<u8> rounded_rows(unsigned count, unsigned cols) {
    unsigned padded = next_multiple(cols, PADDING);
    std::vector<u8> all(size_t(count) * padded / 32 * 36, 0xff);
    for (unsigned r = 0; r < count; r++)
        for (unsigned b = 0; b < cols / 32; b++) {
            u8 *block = &all[(size_t(r) * padded / 32 + b) * 36];
            uint16_t scale = nearest_half(any.below(9) ? std::fabs(any.within(0.1f)) : 0.0f), sum;
            int codes = 0;
            for (int i = 0; i < 32; i++) codes += (int8_t)(block[4 + i] = u8(any.below(8) ? any.below(255) - 127 : 127));
            narrow(widen(scale) * float(codes), &sum);
            std::memcpy(block, &scale, 2);
            std::memcpy(block + 2, &sum, 2);
        }
    return all;
}

// A row of a matrix times a row of Q8_1: what it should be, and what sizes were added, which errors are measured by.
struct Product { double want = 0.0, size = 0.0; };
inline Product product(const formats::Format &f, const u8 *w, const u8 *x, unsigned cols) {
    Product p;
    for (unsigned b = 0; b < cols / 32; b++) {
        formats::Rounded r = formats::rounded(x + b * 36);
        const u8 *block = w + b * 32 / f.block * f.bytes;
        int first = int(b * 32 % f.block);
        for (int i = 0; i < 32; i++) {
            double v = f.value(block, first + i) * r.scale * r.codes[i];
            p.want += v;
            p.size += std::fabs(v) * 1e-6;
        }
        // What a block's minimum takes off is summed apart.
        if (f.minimum) p.size += std::fabs(f.minimum(block, first)) * 1e-6 * r.scale * 127 * 32;
    }
    return p;
}

struct Shape { unsigned n, cols, experts, per_row; };

inline void check_products(const formats::Format &f, const Shape &s, u8 *w, u8 *x, const std::vector<u32> &ids, float *y) {
    size_t row_bytes = size_t(s.cols) / f.block * f.bytes, x_bytes = size_t(next_multiple(s.cols, PADDING)) / 32 * 36;
    for (size_t pair = 0; pair < ids.size(); pair++)
        for (unsigned row = 0; row < s.n; row++) {
            Product p = product(f, w + (ids[pair] * s.n + row) * row_bytes, x + pair / s.per_row * x_bytes, s.cols);
            near("y", pair * s.n + row, y[pair * s.n + row], p.want, p.size + 1e-12);
        }
}

// CudaKernels::each (products.rs): pairs alone, or those of an expert together.
inline void each(const formats::Format &f, const Shape &s, std::vector<u32> ids, bool alone) {
    std::string name = std::string("experts_") + f.name;
    while (ids.size() % s.per_row) ids.push_back(ids.back());
    Buffer<u8> w(formats::random_blocks(f, size_t(s.experts) * s.n * s.cols / f.block)), x(rounded_rows(unsigned(ids.size()) / s.per_row, s.cols));
    Buffer<float> y(ids.size() * s.n);
    Buffer<u32> of(ids);
    ByExpert by(ids, s.experts, EACH_PAIRS);
    CASE("%zu pairs of %u experts, %u x %u, %u pairs a row%s", ids.size(), s.experts, s.n, s.cols, s.per_row, alone ? ", each alone" : "");
    emulate::launch(name.c_str(), own_kernels(f).product, dim3{div_ceil(s.n, 8), alone ? unsigned(ids.size()) : by.tiles_max}, dim3{128}, 0,
                    w.at, x.at, alone ? of.at : by.pairs.at, alone ? nullptr : by.tiles.at, y.at, s.n, s.cols, next_multiple(s.cols, PADDING),
                    s.per_row);
    check_products(f, s, w, x, ids, y);
}

// CudaKernels::integers with CudaKernels::one_expert (products.rs): rows of a dense product as pairs of one expert.
inline void dense(const formats::Format &f, unsigned rows, unsigned n, unsigned cols) {
    std::string name = std::string("experts_") + f.name;
    CASE("%u rows, dense, %u x %u", rows, n, cols);
    Buffer<u8> w(formats::random_blocks(f, size_t(n) * cols / f.block)), x(rounded_rows(rows, cols));
    Buffer<float> y(size_t(rows) * n);
    std::vector<u32> words = {div_ceil(rows, EACH_PAIRS), 0, 0, 0}, order(rows);
    std::iota(order.begin(), order.end(), 0);
    for (u32 at = 0; at < rows; at += EACH_PAIRS) words.insert(words.end(), {0, at, std::min(rows, at + EACH_PAIRS), 0});
    Buffer<u32> pairs(order), tiles(words);
    emulate::launch(name.c_str(), own_kernels(f).product, dim3{div_ceil(n, 8), div_ceil(rows, EACH_PAIRS)}, dim3{128}, 0, w.at, x.at, pairs.at,
                    tiles.at, y.at, n, cols, next_multiple(cols, PADDING), 1);
    check_products(f, {n, cols, 1, 1}, w, x, std::vector<u32>(rows, 0), y);
}

// CudaKernels::shared (products.rs).
inline void on_tensor_cores(const Shape &s, std::vector<u32> ids) {
    while (ids.size() % s.per_row) ids.push_back(ids.back());
    size_t rows = ids.size() / s.per_row;
    Buffer<u16> x(any.halves(rows * s.cols)), w(any.halves(size_t(s.experts) * s.n * s.cols));
    Buffer<float> scales(any.floats(rows, 3.0f)), y(ids.size() * s.n);
    ByExpert by(ids, s.experts, TILE_PAIRS);
    CASE("%zu pairs of %u experts, %u x %u, %u pairs a row", ids.size(), s.experts, s.n, s.cols, s.per_row);
    LAUNCH(experts_f16, dim3{div_ceil(s.n, TILE_ROWS), by.tiles_max}, dim3{256}, 0, x.at, scales.at, w.at, by.pairs.at, by.tiles.at, y.at, s.n,
           s.cols, s.per_row);
    for (size_t pair = 0; pair < ids.size(); pair++)
        for (unsigned row = 0; row < s.n; row++) {
            const u16 *a = &x[pair / s.per_row * s.cols], *b = &w[(size_t(ids[pair]) * s.n + row) * s.cols];
            double want = 0.0;
            for (unsigned i = 0; i < s.cols; i++) want += double(widen(a[i])) * widen(b[i]);
            near("y", pair * s.n + row, y[pair * s.n + row], want * scales[pair / s.per_row], 1e-6 * s.cols);
        }
}

// CudaKernels::each_float (products.rs).
template <class W>
void gathered(const char *name, void (*kernel)(const float *, const void *, const u32 *, float *, int, int, int, int), unsigned tokens, unsigned k,
              unsigned rows, unsigned cols, bool slots) {
    const unsigned experts = 4;
    CASE("%u tokens, %u experts each, %u x %u%s", tokens, k, rows, cols, slots ? ", a row a pair" : "");
    Buffer<W> w(size_t(experts) * rows * cols);
    for (size_t i = 0; i < w.count; i++) {
        uint32_t bits = float_bits(any.within(1.0f));
        if constexpr (sizeof(W) == 4) w[i] = __uint_as_float(bits);
        else if constexpr (std::is_same_v<W, bf16>) w[i] = bf16{u16(bits >> 16)};
        else narrow(__uint_as_float(bits), &w[i]);
    }
    Buffer<float> x(any.floats(size_t(tokens) * (slots ? k : 1) * cols)), y(size_t(tokens) * k * rows);
    Buffer<u32> ids(any.indexes(tokens * k, experts));
    ids[0] = experts - 1;
    ids[tokens * k - 1] = 0;
    emulate::launch(name, kernel, dim3{tokens * k, div_ceil(rows, 4)}, dim3{128}, 0, x.at, w.at, ids.at, y.at, rows, cols, k, slots ? k : 1);
    for (size_t pair = 0; pair < tokens * k; pair++)
        for (size_t r = 0; r < rows; r++) {
            double want = 0.0;
            for (size_t i = 0; i < cols; i++) want += double(x[(slots ? pair : pair / k) * cols + i]) * widen(w[(ids[pair] * rows + r) * cols + i]);
            near("y", pair * rows + r, y[pair * rows + r], want, 1e-6 * cols);
        }
}

inline void all() {
    for (const formats::Format &f : formats::ALL) {
        for (unsigned blocks : {1u, 2u, 33u}) expanded(f, blocks);
        expanded(f, 257 * 32 / unsigned(f.block) + 1); // more than one block of threads
        unsigned once = unsigned(f.block), wide = 1024 + 256; // so many columns that lanes come again
        std::vector<u32> uneven = routing::chosen({9, 0, 1, 8, 0, 3});
        each(f, {7, once, 6, 3}, uneven, false);
        each(f, {9, 3 * once, 6, 1}, uneven, false);
        each(f, {2, wide, 3, 2}, {2, 0, 2, 2, 2, 1}, false);
        each(f, {1, once, 6, 2}, {5, 0}, true);
        each(f, {17, 2 * once, 6, 1}, {0, 5, 5, 3}, true);
        for (unsigned rows : {2u, 7u, 8u, 9u, 32u}) dense(f, rows, rows == 8 ? 8 : 3, rows == 7 ? wide : once);
    }

    for (unsigned count : {1u, 255u, 600u}) expanded_bf16(count);
    on_tensor_cores({1, 32, 1, 1}, {0});
    on_tensor_cores({2, 64, 3, 1}, routing::chosen({0, 2, 1}));
    on_tensor_cores({127, 96, 4, 2}, routing::chosen({7, 8, 0, 9}));
    on_tensor_cores({128, 32, 5, 4}, routing::chosen({63, 0, 64, 65, 0}));
    on_tensor_cores({129, 160, 2, 1}, routing::chosen({1, 129}));
    on_tensor_cores({31, 256, 2, 3}, routing::chosen({33, 32}));

    for (unsigned cols : {1u, 31u, 32u, 33u, 100u})
        for (bool slots : {false, true}) {
            gathered<float>("gather_f32", gather_f32, 2, 2, 5, cols, slots);
            gathered<u16>("gather_f16", gather_f16, 3, 1, 4, cols, slots);
            gathered<bf16>("gather_bf16", gather_bf16, 1, 3, 1, cols, slots);
        }
}

} // namespace products

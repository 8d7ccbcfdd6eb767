// Attention over pages, and what writes them.
#pragma once
#include "check.hpp"

namespace attention {

using namespace check;

// A layer's heads and pages. Latent: one KV head, whose values are the first of its keys.
struct Layer {
    int heads, kv_heads, key_dim, value_dim, block;
    bool latent = false;
    int window = 0;
    bool sinks = false;
};

// One sequence's tokens of a step: their number, the position of the first, and how many blocks at the front its table lacks.
struct Span { int len, start, gone = 0; };

// The most blocks that a table may lack: those before what the span's first token sees.
inline int gone_max(const Layer &l, const Span &s) { return l.window > 0 ? std::max(0, s.start + 1 - l.window) / l.block : 0; }

// Where a value lies in pages: module `pages` (gpu/pages.rs), Place::index (host.rs).
struct Place {
    int heads, dim, block, x; // x 0: values; latent if there are no heads
    size_t index(int64_t slot, int head, int d) const {
        size_t page = size_t(slot / block), in = size_t(slot % block);
        if (heads == 0) return size_t(slot) * dim + d;
        if (x == 0) return ((page * heads + head) * dim + d) * block + in;
        return (((page * heads + head) * (dim / x) + d / x) * block + in) * x + d % x;
    }
};
template <class P>
Place key_place_of(const Layer &l) { return {l.latent ? 0 : l.kv_heads, l.key_dim, l.block, int(16 / sizeof(P))}; }
inline Place value_place_of(const Layer &l) { return {l.kv_heads, l.value_dim, l.block, 0}; }

// Pages of some sequences. What belongs to none of their positions is NaN, as another's last block could be.
template <class P>
struct Pages {
    std::vector<std::vector<u32>> tables; // without what has gone
    int width = 1;
    Buffer<P> keys, values;
    Pages(const Layer &l, const std::vector<Span> &spans, int blocks)
        : keys(size_t(blocks) * l.block * l.key_dim * l.kv_heads), values(l.latent ? 0 : size_t(blocks) * l.block * l.value_dim * l.kv_heads) {
        std::vector<u32> free(blocks);
        for (int i = 0; i < blocks; i++) free[i] = u32(i);
        Place key = key_place_of<P>(l), value = value_place_of(l);
        for (const Span &s : spans) {
            std::vector<u32> table;
            for (int at = s.gone * l.block; at < s.start + s.len; at += l.block) {
                size_t pick = table.empty() && tables.empty() ? free.size() - 1 : any.below(int(free.size())); // the last block is someone's
                table.push_back(free[pick]);
                free.erase(free.begin() + pick);
                for (int p = at; p < std::min(at + l.block, s.start + s.len); p++)
                    for (int h = 0; h < l.kv_heads; h++) {
                        int64_t slot = int64_t(table.back()) * l.block + p % l.block;
                        for (int d = 0; d < l.key_dim; d++) narrow(any.within(1.5f), &keys[key.index(slot, h, d)]);
                        for (int d = 0; !l.latent && d < l.value_dim; d++) narrow(any.within(1.0f), &values[value.index(slot, h, d)]);
                    }
            }
            width = std::max(width, int(table.size()));
            tables.push_back(table);
        }
    }
    static int enough(const Layer &l, const std::vector<Span> &spans) {
        int blocks = 1; // which is nobody's
        for (const Span &s : spans) blocks += int(div_ceil(s.start + s.len, l.block)) - s.gone;
        return blocks;
    }
};

// Reference: one query head at one position. `q` is what the kernel under test makes of it.
template <class P>
std::vector<double> attend_one(const Layer &l, Pages<P> &pages, size_t span, const Span &s, int position, int head, const std::vector<double> &q,
                               const float *sinks) {
    Place key = key_place_of<P>(l), value = value_place_of(l);
    int kv_head = head / (l.heads / l.kv_heads);
    std::vector<double> scores, out(l.value_dim, 0.0);
    std::vector<int64_t> slots;
    for (int p = l.window > 0 ? std::max(0, position + 1 - l.window) : 0; p <= position; p++) {
        slots.push_back(int64_t(pages.tables[span][p / l.block - s.gone]) * l.block + p % l.block);
        double score = 0.0;
        for (int d = 0; d < l.key_dim; d++) score += q[d] * widen(pages.keys[key.index(slots.back(), kv_head, d)]);
        scores.push_back(score);
    }
    double most = sinks ? sinks[head] : -INFINITY, sum = 0.0;
    for (double score : scores) most = std::max(most, score);
    if (sinks) sum = std::exp(sinks[head] - most);
    for (double &score : scores) sum += score = std::exp(score - most);
    for (size_t i = 0; i < slots.size(); i++)
        for (int d = 0; d < l.value_dim; d++)
            out[d] += scores[i] / sum * widen(l.latent ? pages.keys[key.index(slots[i], 0, d)] : pages.values[value.index(slots[i], kv_head, d)]);
    return out;
}

inline float scale_of(const Layer &l) { return 1.0f / std::sqrt(float(l.key_dim)); }

// Queries, some so large that one key outweighs all others.
inline std::vector<float> queries(const Layer &l, int tokens) {
    std::vector<float> q = any.floats(size_t(tokens) * l.heads * l.key_dim, 2.0f);
    for (size_t i = 0; i < q.size(); i++)
        if (i / l.key_dim % 5 == 4) q[i] *= 12.0f;
    return q;
}

// CudaKernels::tensor (attend.rs).
inline void flash(const Layer &l, const Span &s) {
    CASE("%d tokens from %d, %d blocks of %d gone, %d heads over %d of %d, window %d%s", s.len, s.start, s.gone, l.block, l.heads, l.kv_heads,
         l.key_dim, l.window, l.sinks ? ", sinks" : "");
    const unsigned tensor_rows = 64, tensor_keys = 64;
    Pages<u16> pages(l, {s}, Pages<u16>::enough(l, {s}));
    Buffer<float> q(queries(l, s.len)), sinks(any.floats(l.heads, 3.0f)), out(size_t(s.len) * l.heads * l.key_dim);
    Buffer<u32> table(pages.tables[0]);
    unsigned rows = unsigned(s.len * (l.heads / l.kv_heads));
    size_t shared = 2 * 2 * tensor_keys * l.key_dim * 2;
    float scale = scale_of(l);
    emulate::launch(l.key_dim == 64 ? "flash_64" : "flash_128", l.key_dim == 64 ? flash_64 : flash_128,
                    dim3{div_ceil(rows, tensor_rows), unsigned(l.kv_heads)}, dim3{128}, shared, q.at, pages.keys.at, pages.values.at, table.at,
                    l.sinks ? sinks.at : nullptr, out.at, s.len, s.start, s.gone, l.heads, l.kv_heads, l.block, scale, l.window);
    for (int t = 0; t < s.len; t++)
        for (int h = 0; h < l.heads; h++) {
            size_t row = size_t(t) * l.heads + h;
            std::vector<double> rounded; // the kernel's queries are halves, for powers of two
            for (int d = 0; d < l.key_dim; d++)
                rounded.push_back(widen(nearest_half(q[row * l.key_dim + d] * scale * 1.44269504f)) / 1.4426950408889634);
            std::vector<double> want = attend_one(l, pages, 0, s, s.start + t, h, rounded, l.sinks ? sinks.at : nullptr);
            // Weights are halves too, and values at most 1.
            for (int d = 0; d < l.key_dim; d++) near("out", row * l.key_dim + d, out[row * l.key_dim + d], want[d], 6e-4);
        }
}

// CudaKernels::own_attention and CudaKernels::join (attend.rs).
template <class P>
void own(const char *name, decltype(attend_f32) *kernel, const Layer &l, const std::vector<Span> &spans) {
    const unsigned busy = 264, own_heads = 8, own_tile = 16;
    int tokens = 0, longest = 0;
    std::vector<u32> positions, span_of, firsts, tables;
    Pages<P> pages(l, spans, Pages<P>::enough(l, spans));
    for (size_t i = 0; i < spans.size(); i++) {
        const Span &s = spans[i];
        for (int t = 0; t < s.len; t++) {
            positions.push_back(u32(s.start + t));
            span_of.push_back(u32(i));
        }
        tokens += s.len;
        firsts.push_back(u32(s.gone));
        // StepIndex::new (index.rs) pads tables with block 0.
        std::vector<u32> padded = pages.tables[i];
        padded.resize(pages.width, 0);
        tables.insert(tables.end(), padded.begin(), padded.end());
        longest = std::max(longest, s.start + s.len - (l.window > 0 ? std::max(0, s.start + 1 - l.window) : 0));
    }
    unsigned tile_groups = div_ceil(l.heads / l.kv_heads, own_heads), rows = tokens * l.kv_heads * tile_groups;
    unsigned parts = std::max(std::min(div_ceil(busy, rows), div_ceil(longest, 4 * own_tile)), 1u);
    CASE("%zu spans, the first of %d tokens from %d with %d blocks of %d gone, %d heads over %d of %d and %d, window %d%s%s, %u parts", spans.size(),
         spans[0].len, spans[0].start, spans[0].gone, l.block, l.heads, l.kv_heads, l.key_dim, l.value_dim, l.window, l.latent ? ", latent" : "",
         l.sinks ? ", sinks" : "", parts);
    Buffer<float> q(queries(l, tokens)), sinks(any.floats(l.heads, 3.0f)), out(size_t(tokens) * l.heads * l.value_dim);
    size_t scratch = parts > 1 ? size_t(tokens) * l.heads * parts : 0;
    Buffer<float> parts_out(scratch * l.value_dim), maxima(scratch), sums(scratch);
    Buffer<u32> table(tables), first(firsts), of(span_of), at(positions);
    size_t held = l.latent ? 0 : own_tile * l.value_dim;
    size_t floats = own_heads * l.key_dim + own_tile * (l.key_dim + 1) + held + own_heads * own_tile + 3 * own_heads;
    float scale = scale_of(l);
    bool joined = parts > 1;
    emulate::launch(name, kernel, dim3{unsigned(tokens), l.kv_heads * tile_groups, parts}, dim3{128}, floats * 4, q.at, pages.keys.at,
                    l.latent ? nullptr : pages.values.at, table.at, first.at, of.at, at.at, l.sinks ? sinks.at : nullptr, out.at,
                    joined ? parts_out.at : nullptr, joined ? maxima.at : nullptr, joined ? sums.at : nullptr, l.heads, l.kv_heads, l.key_dim,
                    l.value_dim, l.block, pages.width, scale, l.window, tile_groups);
    if (joined)
        LAUNCH(attend_join, dim3{unsigned(tokens * l.heads)}, dim3{128}, 0, parts_out.at, maxima.at, sums.at, l.sinks ? sinks.at : nullptr, out.at,
               l.heads, l.value_dim, parts);
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < l.heads; h++) {
            size_t row = size_t(t) * l.heads + h;
            std::vector<double> scaled;
            for (int d = 0; d < l.key_dim; d++) scaled.push_back(double(q[row * l.key_dim + d]) * scale);
            size_t span = span_of[t];
            std::vector<double> want = attend_one(l, pages, span, spans[span], int(positions[t]), h, scaled, l.sinks ? sinks.at : nullptr);
            for (int d = 0; d < l.value_dim; d++) near("out", row * l.value_dim + d, out[row * l.value_dim + d], want[d], 5e-5);
        }
}

// Kernels::write (cuda/mod.rs). A slot below 0 is no place.
template <class P, class Kernel, class Latent>
void write(const char *name, Kernel *kernel, Latent *latent, const Layer &l, const std::vector<i64> &slots, int blocks) {
    CASE("%zu tokens into blocks of %d, %d heads of %d and %d%s", slots.size(), l.block, l.kv_heads, l.key_dim, l.value_dim,
         l.latent ? ", latent" : "");
    size_t keys = size_t(l.kv_heads) * l.key_dim, values = l.latent ? 0 : size_t(l.kv_heads) * l.value_dim, held = size_t(blocks) * l.block;
    Buffer<float> k(any.floats(slots.size() * keys)), v(any.floats(slots.size() * values));
    Buffer<P> key_pages(held * keys), value_pages(held * values);
    Buffer<i64> at(slots);
    dim3 grid{unsigned(slots.size())};
    if (l.latent) emulate::launch(name, latent, grid, dim3{128}, 0, k.at, key_pages.at, at.at, l.key_dim);
    else
        emulate::launch(name, kernel, grid, dim3{256}, 0, k.at, v.at, key_pages.at, value_pages.at, at.at, l.kv_heads, l.key_dim, l.value_dim,
                        l.block);
    Buffer<P> want_keys(key_pages.count), want_values(value_pages.count);
    Place key = key_place_of<P>(l), value = value_place_of(l);
    for (size_t t = 0; t < slots.size(); t++)
        for (int h = 0; slots[t] >= 0 && h < l.kv_heads; h++) {
            size_t head = t * l.kv_heads + h;
            for (int d = 0; d < l.key_dim; d++) narrow(k[head * l.key_dim + d], &want_keys[key.index(slots[t], h, d)]);
            for (int d = 0; values > 0 && d < l.value_dim; d++) narrow(v[head * l.value_dim + d], &want_values[value.index(slots[t], h, d)]);
        }
    // Also what nobody wrote is as it was.
    for (size_t i = 0; i < want_keys.count; i++) same("a key is right", i, std::memcmp(&key_pages[i], &want_keys[i], sizeof(P)) == 0, 1);
    for (size_t i = 0; i < want_values.count; i++) same("a value is right", i, std::memcmp(&value_pages[i], &want_values[i], sizeof(P)) == 0, 1);
}

inline void all() {
    for (int block : {8, 16, 32}) {
        std::vector<i64> slots = {block * 3 - 1, -1, 0, block, block + 1};
        for (Layer l : {Layer{2, 2, 64, 64, block}, Layer{1, 1, 8, 5, block}, Layer{3, 3, 128, 72, block}}) {
            write<float>("write_pages_f32", write_pages_f32, write_latent_f32, l, slots, 3);
            write<u16>("write_pages_f16", write_pages_f16, write_latent_f16, l, slots, 3);
        }
        Layer latent{1, 1, 72, 64, block, true};
        write<float>("write_latent_f32", write_pages_f32, write_latent_f32, latent, slots, 3);
        write<u16>("write_latent_f16", write_pages_f16, write_latent_f16, latent, slots, 3);
    }

    for (int dim : {64, 128})
        for (int block : {8, 16, 32}) {
            for (Span s : {Span{1, 0}, Span{2, 0}, Span{7, 1}, Span{9, 63}, Span{3, 64}, Span{17, 127}}) flash({2, 2, dim, dim, block}, s);
            flash({8, 1, dim, dim, block, false, 0, true}, {8, 5});
            flash({7, 1, dim, dim, block, false, 0, false}, {10, 58});
            for (int window : {1, 5, 64, 100})
                for (Span s : {Span{2, 0}, Span{9, 130}, Span{33, 61}}) {
                    Layer l{6, 2, dim, dim, block, false, window, s.len == 9};
                    s.gone = gone_max(l, s);
                    if (dim == 64 || window == 5) flash(l, s);
                    if (s.gone > 1) flash(l, {s.len, s.start, s.gone / 2});
                }
        }
    for (int len : {63, 64, 65}) flash({1, 1, 64, 64, 16}, {len, 64 - len / 2});
    flash({3, 1, 128, 128, 8, false, 20, true}, {43, 70, 6}); // 129 rows

    auto both = [](const Layer &l, const std::vector<Span> &spans) {
        own<float>("attend_f32", attend_f32, l, spans);
        own<u16>("attend_f16", attend_f16, l, spans);
    };
    for (int block : {8, 16, 32}) {
        both({2, 2, 64, 64, block}, {{1, 0}});
        both({2, 1, 64, 64, block, false, 0, true}, {{3, 14}, {1, 17}, {2, 0}});
        both({9, 1, 80, 40, block, false, 0, true}, {{1, 100}, {2, 30}});
        for (int window : {1, 5, 40}) {
            Layer l{6, 3, 128, 128, block, false, window, window == 5};
            std::vector<Span> spans = {{1, 150}, {2, 3}, {1, 47}};
            for (Span &s : spans) s.gone = gone_max(l, s);
            both(l, spans);
        }
        both({4, 1, 72, 64, block, true}, {{1, 70}, {3, 15}});
    }
    both({16, 1, 64, 64, 16}, {{1, 63}, {1, 64}, {1, 65}, {1, 255}});
    both({11, 1, 576, 512, 16, true}, {{1, 66}});
    both({1, 1, 192, 128, 16}, {{1, 0}, {1, 270}}); // the first has nothing for most parts
    both({8, 8, 32, 512, 8, false, 33, true}, {{2, 40, 1}});
}

} // namespace attention

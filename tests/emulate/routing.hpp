// Which experts a token has, and pairs of token and expert in the order of experts.
#pragma once
#include <numeric>

#include "check.hpp"

namespace routing {

using namespace check;

struct Spec {
    int experts, k, gating; // 0: softmax, 1: sigmoid, 2: softmax over the chosen
    int groups = 1, used = 1, best = 1;
    bool normalise = false, bias = false, choice = false;
    enum Logits { Random, Equal, Few, Nan } logits = Random;
};

// One token's, by choose_experts' rule (reference.rs). Scores are what experts are chosen by.
struct Expected {
    std::vector<double> value, score;
    Expected(const float *row, const float *bias, const float *choice, const Spec &spec) {
        double sum = 0.0, top = -INFINITY;
        for (int e = 0; e < spec.experts; e++) {
            value.push_back(double(row[e]) + (bias ? bias[e] : 0.0f));
            top = std::max(top, value.back());
        }
        for (double &v : value) {
            if (spec.gating == 0) v = std::exp(v - top);
            if (spec.gating == 1) v = 1.0 / (1.0 + std::exp(-v));
            sum += v;
        }
        for (int e = 0; e < spec.experts; e++) {
            if (spec.gating == 0) value[e] /= sum;
            score.push_back(value[e] + (choice ? choice[e] : 0.0f));
        }
        if (spec.groups > 1) close(spec);
    }
    void close(const Spec &spec) {
        int each = spec.experts / spec.groups;
        std::vector<double> of_group;
        for (int g = 0; g < spec.groups; g++) {
            std::vector<double> sorted(score.begin() + g * each, score.begin() + (g + 1) * each);
            std::sort(sorted.rbegin(), sorted.rend());
            of_group.push_back(spec.best == 2 && each > 1 ? sorted[0] + sorted[1] : sorted[0]);
        }
        std::vector<int> order(of_group.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return of_group[a] > of_group[b]; });
        for (int i = spec.used; i < spec.groups; i++)
            for (int e = 0; e < each; e++) score[order[i] * each + e] = -INFINITY;
    }
    std::vector<int> best(int k) const {
        std::vector<int> order(score.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return score[a] > score[b]; });
        order.resize(k);
        return order;
    }
};

// Kernels::route (cuda/mod.rs).
inline void route_tokens(unsigned tokens, const Spec &spec) {
    CASE("%u tokens, %d of %d experts, gating %d, %d of %d groups by %d, logits %d", tokens, spec.k, spec.experts, spec.gating, spec.used,
         spec.groups, spec.best, spec.logits);
    const float sum_min = 6.103515625e-5f, factor = 2.5f;
    size_t experts = spec.experts;
    std::vector<float> logits = any.floats(tokens * experts, 3.0f);
    for (float &v : logits) {
        if (spec.logits == Spec::Equal) v = 0.5f;
        if (spec.logits == Spec::Few) v = float(any.below(3));
        if (spec.logits == Spec::Nan && any.below(3) == 0) v = NAN;
    }
    Buffer<float> row(logits), bias(any.floats(experts, 0.5f)), choice(any.floats(experts, 0.5f)), weights(tokens * spec.k);
    Buffer<u32> ids(tokens * spec.k);
    size_t shared = 4 * (2 * experts + spec.groups) + experts + spec.groups;
    LAUNCH(route, dim3{tokens}, dim3{32}, shared, row.at, spec.bias ? bias.at : nullptr, spec.choice ? choice.at : nullptr, ids.at, weights.at,
           spec.experts, spec.k, spec.gating, spec.groups, spec.used, spec.best, spec.normalise, sum_min, factor);
    for (unsigned t = 0; t < tokens; t++) {
        const u32 *id = &ids[t * spec.k];
        std::vector<bool> seen(experts, false);
        for (int j = 0; j < spec.k; j++) {
            // Whatever the logits are: indexes that exist, each once.
            same("a new expert", t * spec.k + j, id[j] < experts && !seen[id[j]], 1);
            if (id[j] < experts) seen[id[j]] = true;
        }
        if (spec.logits == Spec::Nan) continue;
        Expected expected(&row[t * experts], spec.bias ? bias.at : nullptr, spec.choice ? choice.at : nullptr, spec);
        std::vector<int> order = expected.best(spec.k);
        std::vector<double> want;
        for (int j = 0; j < spec.k; j++) {
            // Floats may see two as equal that are not quite.
            bool close = id[j] < experts && std::fabs(expected.score[id[j]] - expected.score[order[j]]) < 1e-6;
            if (!close || spec.logits != Spec::Random) same("expert", t * spec.k + j, id[j], order[j]);
            want.push_back(expected.value[order[j]]);
        }
        if (spec.gating == 2) {
            double most = *std::max_element(want.begin(), want.end()), sum = 0.0;
            for (double &w : want) sum += w = std::exp(w - most);
            for (double &w : want) w /= sum;
        }
        double sum = spec.normalise ? std::max(std::accumulate(want.begin(), want.end(), 0.0), double(sum_min)) : 1.0;
        for (int j = 0; j < spec.k; j++) near("weight", t * spec.k + j, weights[t * spec.k + j], want[j] / sum * factor, 5e-6);
    }
}

// Ids of pairs, by how many each expert has, in an order as if random.
inline std::vector<u32> chosen(const std::vector<int> &counts) {
    std::vector<u32> ids;
    for (size_t e = 0; e < counts.size(); e++) ids.insert(ids.end(), counts[e], u32(e));
    for (size_t i = ids.size(); i > 1; i--) std::swap(ids[i - 1], ids[any.below(int(i))]);
    return ids;
}

// ByExpert (products.rs): pairs sorted by expert, and their tiles, of which there is room for `tiles_max`.
struct ByExpert {
    unsigned tiles_max;
    Buffer<u32> pairs, tiles;
    // CudaKernels::by_expert (products.rs).
    ByExpert(const std::vector<u32> &ids, unsigned experts, unsigned size)
        : tiles_max(unsigned(ids.size()) / size + std::min(experts, unsigned(ids.size()))), pairs(ids.size()), tiles(4 + 4 * tiles_max) {
        Buffer<u32> from(ids);
        LAUNCH(sort_experts, dim3{1}, dim3{1024}, 8 * experts, from.at, pairs.at, tiles.at, ids.size(), experts, size);
    }
};

inline void sorted(const std::vector<int> &counts, unsigned size) {
    std::vector<u32> ids = chosen(counts);
    CASE("%zu pairs of %zu experts in tiles of %u", ids.size(), counts.size(), size);
    ByExpert by(ids, unsigned(counts.size()), size);
    std::vector<u32> order(ids.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](u32 a, u32 b) { return ids[a] < ids[b]; });
    for (size_t i = 0; i < ids.size(); i++) same("pair", i, by.pairs[i], order[i]);
    size_t n = 0, begin = 0;
    for (size_t e = 0; e < counts.size(); e++)
        for (size_t end = begin + counts[e]; begin < end; n++) {
            size_t to = std::min<size_t>(begin + size, end);
            if (n >= by.tiles_max) return same("room for tiles", n, by.tiles_max, n + 1);
            u32 *tile = &by.tiles[4 + 4 * n];
            same("a tile's expert", n, tile[0], e);
            same("a tile's first pair", n, tile[1], begin);
            same("a tile's end", n, tile[2], to);
            begin = to;
        }
    same("tiles", 0, by.tiles[0], n);
}

inline void all() {
    for (int gating : {0, 1, 2})
        for (int experts : {1, 2, 31, 32, 33, 64, 128}) {
            Spec spec{experts, std::min(experts, 4), gating};
            spec.normalise = experts % 2;
            spec.bias = experts % 32 == 0;
            spec.choice = experts > 32;
            for (Spec::Logits logits : {Spec::Random, Spec::Equal, Spec::Few, Spec::Nan}) {
                spec.logits = logits;
                if (logits != Spec::Random) spec.bias = spec.choice = false;
                route_tokens(3, spec);
            }
        }
    route_tokens(2, {7, 7, 0});
    route_tokens(1, {1024, 32, 1});
    for (Spec::Logits logits : {Spec::Random, Spec::Equal, Spec::Nan}) {
        route_tokens(3, {64, 6, 0, 8, 3, 1, false, false, false, logits});
        route_tokens(3, {256, 8, 1, 8, 4, 2, true, false, logits == Spec::Random, logits});
        route_tokens(2, {66, 4, 1, 33, 2, 2, true, false, false, logits});
        route_tokens(2, {40, 4, 1, 40, 4, 2, true, false, false, logits}); // groups of one have no second best
        route_tokens(2, {6, 3, 0, 2, 1, 1, true, false, false, logits});
    }

    for (unsigned size : {8u, 64u}) {
        sorted({1}, size);
        sorted({65, 0}, size);
        sorted({0, 0, 64, 1, 9, 0, 128, 63, 7, 8, 0}, size);
        std::vector<int> many(1024, 0);
        many[0] = 33;
        many[1023] = 130;
        many[31] = many[32] = 1;
        sorted(many, size);
        sorted(std::vector<int>(1023, 1), size);
        std::vector<int> uneven(128);
        for (int &count : uneven) count = any.below(24);
        sorted(uneven, size);
    }
}

} // namespace routing

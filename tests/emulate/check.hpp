// Inputs, and comparisons of kernels' results with what is expected of them.
#pragma once
#include "shim.hpp"

namespace check {

// A device's memory of exactly so many values, what is around them poisoned; spoilt until something is written.
template <class T>
struct Buffer {
    size_t count;
    T *at;
    explicit Buffer(size_t count) : count(count), at((T *)std::malloc(std::max<size_t>(count * sizeof(T), 1))) {
        emulate::spoil((volatile char *)at, (volatile char *)(at + count));
    }
    explicit Buffer(const std::vector<T> &values) : Buffer(values.size()) { std::copy(values.begin(), values.end(), at); }
    Buffer(const Buffer &) = delete;
    ~Buffer() { std::free(at); }
    operator T *() { return at; }
    T &operator[](size_t i) { return at[i]; }
};

// The same numbers in every run: SplitMix64.
struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    int below(int n) { return int(next() % uint64_t(n)); }
    float within(float size) { return (float(next() >> 40) / float(1 << 23) - 1.0f) * size; }
    std::vector<float> floats(size_t n, float size = 1.0f) {
        std::vector<float> all(n);
        for (float &v : all) v = within(size);
        return all;
    }
    std::vector<uint16_t> halves(size_t n, float size = 1.0f) {
        std::vector<uint16_t> all(n);
        for (uint16_t &v : all) v = nearest_half(within(size));
        return all;
    }
    // Random, each below n.
    std::vector<uint32_t> indexes(size_t count, int n) {
        std::vector<uint32_t> all(count);
        for (uint32_t &v : all) v = uint32_t(below(n));
        return all;
    }
};
static Random any{1};

static long checks = 0, failures = 0;
static char now[256]; // the case

#define CASE(...) std::snprintf(check::now, sizeof(check::now), __VA_ARGS__)

// `got` is `want` but for `tolerance`; NaN never is.
inline void near(const char *what, size_t i, double got, double want, double tolerance) {
    checks++;
    if (std::fabs(got - want) <= tolerance || got == want) return;
    if (++failures <= 20)
        std::printf("WRONG: %s, %s: %s[%zu] is %.9g, not %.9g (within %.3g)\n", emulate::kernel_name, now, what, i, got, want, tolerance);
}
inline void same(const char *what, size_t i, double got, double want) { near(what, i, got, want, 0.0); }

// Half a unit in the last place of a half, and a little for what was computed in floats.
inline double half_step(double v) { return std::ldexp(std::fabs(v), -11) * 1.01 + std::ldexp(1.0, -25) * 1.01; }

// Rust's usize::div_ceil and next_multiple_of.
inline unsigned div_ceil(unsigned a, unsigned b) { return (a + b - 1) / b; }
inline unsigned next_multiple(unsigned a, unsigned b) { return div_ceil(a, b) * b; }

} // namespace check

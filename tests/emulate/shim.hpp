// CUDA's words, and those that own.cu has in assembly, for a machine of fibers (machine.hpp).
#pragma once
#include <algorithm>
#include <cmath>

#include "machine.hpp"

#define EMULATED
#define __global__ __attribute__((section("kernels")))
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Blocks run one after the other, so one copy will do; it is spoilt between them.
#define __shared__ static __attribute__((section("shared_memory")))

static float *const room = emulate::room_bytes;

struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
using std::max;
using std::min;
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }

inline uint32_t float_bits(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
}
inline float __expf(float v) { return std::exp(v); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline unsigned atomicAdd(unsigned *at, unsigned v) {
    unsigned before = *at;
    *at += v;
    return before;
}

// Four bytes each.
inline int __vsub4(int a, int b) {
    unsigned all = 0;
    for (int i = 0; i < 32; i += 8) all |= ((unsigned(a) >> i) - (unsigned(b) >> i) & 255) << i;
    return int(all);
}
// Byte i of the result is the one of the eight of x and y, x's first, that nibble i of `of` says.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned of) {
    uint64_t both = uint64_t(y) << 32 | x;
    unsigned all = 0;
    for (int i = 0; i < 4; i++) all |= unsigned(both >> 8 * (of >> 4 * i & 7) & 255) << 8 * i;
    return all;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 32; i += 8) sum += int(int8_t(a >> i)) * int8_t(b >> i);
    return sum;
}

// Halves: a sign, 5 bits of exponent, 10 of fraction.
static const std::vector<float> half_values = [] {
    std::vector<float> all(1 << 16);
    for (int half = 0; half < 1 << 16; half++) {
        int exponent = half >> 10 & 31, fraction = half & 1023;
        float v = std::ldexp(exponent ? 1024.0f + fraction : float(fraction), std::max(exponent, 1) - 25);
        if (exponent == 31) v = fraction ? NAN : INFINITY;
        all[half] = half >> 15 ? -v : v;
    }
    return all;
}();
inline float widen(uint16_t half) { return half_values[half]; }
inline float emulate::half_value(uint16_t half) { return half_values[half]; }
// To the nearest, of two equally near ones the even.
inline uint16_t nearest_half(float v) {
    uint16_t sign = std::signbit(v) ? 0x8000 : 0;
    float size = std::fabs(v);
    if (std::isnan(v)) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent = size > 0.0f ? std::max(std::ilogb(size), -14) : -14;
    // In units of the last place, where the step to the next exponent carries by itself.
    return sign | uint16_t(((exponent + 14) << 10) + int(std::nearbyint(std::ldexp(size, 10 - exponent))));
}
inline void narrow(float v, uint16_t *to) { *to = nearest_half(v); }

// Barriers and what lanes tell each other.
inline void __syncthreads() { emulate::wait(emulate::Thread::AtBlock); }
inline uint32_t meet(emulate::Meeting meeting) {
    emulate::threads[emulate::current].meeting = &meeting;
    emulate::wait(emulate::Thread::AtWarp);
    return meeting.out;
}
inline void whole_warp(unsigned mask) {
    if (mask != 0xffffffffu) emulate::fail("a part of a warp (%x) is not emulated", mask);
}
inline void __syncwarp() { meet({emulate::Meeting::Sync}); }
template <class T>
T exchange(emulate::Meeting::Kind kind, unsigned mask, T v, int argument) {
    static_assert(sizeof(T) == 4);
    whole_warp(mask);
    emulate::Meeting meeting{kind, argument};
    std::memcpy(&meeting.in, &v, 4);
    uint32_t out = meet(meeting);
    std::memcpy(&v, &out, 4);
    return v;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lanes) { return exchange(emulate::Meeting::Xor, mask, v, lanes); }
template <class T>
T __shfl_up_sync(unsigned mask, T v, int lanes) { return exchange(emulate::Meeting::Up, mask, v, lanes); }
inline unsigned __ballot_sync(unsigned mask, bool v) { return exchange(emulate::Meeting::Ballot, mask, unsigned(v), 0); }

// Asynchronous copies happen when they are asked for, or when they are waited for: whichever is worse depends on what is missing.
inline void copy_now(const emulate::Copy &copy) {
    if (copy.there) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
}
inline void copy16(void *to, const void *from, bool there) {
    if (!emulate::is_shared(to) || emulate::is_shared(from)) emulate::fail("a copy that is not from global to shared memory");
    if (((uintptr_t)to | (uintptr_t)from) % 16) emulate::fail("a copy of 16 bytes from %p to %p", from, to);
    emulate::Copy copy{to, from, there};
    if (emulate::order == emulate::Order::Ascending) emulate::threads[emulate::current].groups.back().push_back(copy);
    else copy_now(copy);
}
inline void commit_copies() { emulate::threads[emulate::current].groups.emplace_back(); }
template <int N>
void await_copies() {
    auto &groups = emulate::threads[emulate::current].groups;
    while (groups.size() > N + 1) {
        for (const emulate::Copy &copy : groups.front()) copy_now(copy);
        groups.erase(groups.begin());
    }
}

// Matrices of halves.
inline void fragments(uint32_t *to, const uint16_t *row) {
    if (!emulate::is_shared(row) || (uintptr_t)row % 16) emulate::fail("a row of a matrix at %p", (const void *)row);
    emulate::Meeting meeting{emulate::Meeting::Fragments};
    meeting.row = row;
    meeting.to = to;
    meet(meeting);
}
inline void multiply(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
    uint32_t b[2] = {b0, b1};
    emulate::Meeting meeting{emulate::Meeting::Multiply};
    meeting.c = c;
    meeting.a = a;
    meeting.b = b;
    meet(meeting);
}

// ggml's blocks from their definitions, value by value: independent of own.cu's decoders, which read 32 values at once.
#pragma once
#include "check.hpp"

namespace formats {

struct Format {
    const char *name;
    int block, bytes;
    double (*value)(const uint8_t *block, int i);
    double (*minimum)(const uint8_t *block, int i); // what is taken off a value for its sub-block's least; may be null
    std::vector<int> halves;                       // where in a block there are factors
    bool power = false;                            // its first byte is a power of two's exponent
};

inline double half(const uint8_t *at) { return widen(uint16_t(at[0] | at[1] << 8)); }
inline int bits(int byte, int shift, int count) { return byte >> shift & ((1 << count) - 1); }
// The first 16 of 32 values are low nibbles, the others high ones.
inline int nibble(const uint8_t *qs, int i) { return bits(qs[i % 16], i / 16 * 4, 4); }

inline double q4_0(const uint8_t *b, int i) { return half(b) * (nibble(b + 2, i) - 8); }
inline double q4_1(const uint8_t *b, int i) { return half(b) * nibble(b + 4, i) + half(b + 2); }
inline int fifth_bit(const uint8_t *qh, int i) { return bits(qh[i / 8], i % 8, 1) << 4; }
inline double q5_0(const uint8_t *b, int i) { return half(b) * ((nibble(b + 6, i) | fifth_bit(b + 2, i)) - 16); }
inline double q5_1(const uint8_t *b, int i) { return half(b) * (nibble(b + 8, i) | fifth_bit(b + 4, i)) + half(b + 2); }
inline double q8_0(const uint8_t *b, int i) { return half(b) * (int8_t)b[2 + i]; }

inline double non_linear(const uint8_t *qs, int i) {
    static const int values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return values[nibble(qs, i)];
}
inline double iq4_nl(const uint8_t *b, int i) { return half(b) * non_linear(b + 2, i); }
// A sub-block of 32 has four bits of its scale in bytes from 4 on, two more in the two bytes before.
inline double iq4_xs(const uint8_t *b, int i) {
    int sub = i / 32, scale = bits(b[4 + sub / 2], sub % 2 * 4, 4) | bits(b[2 + sub / 4], sub % 4 * 2, 2) << 4;
    return half(b) * (scale - 32) * non_linear(b + 8 + sub * 16, i % 32);
}
// E2M1 (OCP Microscaling Formats 1.0, 5.3.3): a sign, two bits of exponent, one of fraction; times a power of two.
inline double mxfp4(const uint8_t *b, int i) {
    int code = nibble(b + 1, i), exponent = bits(code, 1, 2), fraction = code & 1;
    double size = exponent ? std::ldexp(2 + fraction, exponent - 2) : fraction * 0.5;
    return std::ldexp(code & 8 ? -size : size, b[0] - 127);
}

// Of 256 values each half has 32 bytes of codes, of which run j of 32 values has bit pair j.
inline int pair_of_bits(const uint8_t *qs, int i) { return bits(qs[i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2); }
inline double q2_k_minimum(const uint8_t *b, int i) { return half(b + 82) * bits(b[i / 16], 4, 4); }
inline double q2_k(const uint8_t *b, int i) { return half(b + 80) * bits(b[i / 16], 0, 4) * pair_of_bits(b + 16, i) - q2_k_minimum(b, i); }
inline double q3_k(const uint8_t *b, int i) {
    const uint8_t *scales = b + 96;
    int sub = i / 16;
    int scale = bits(scales[sub % 8], sub / 8 * 4, 4) | bits(scales[8 + sub % 4], sub / 4 * 2, 2) << 4;
    int code = pair_of_bits(b + 32, i) | bits(b[i % 32], i / 32, 1) << 2;
    return half(b + 108) * (scale - 32) * (code - 4);
}

// Eight scales and eight minima of 6 bits in 12 bytes.
inline int six(const uint8_t *s, int sub, bool minimum) {
    if (sub < 4) return bits(s[minimum ? sub + 4 : sub], 0, 6);
    return bits(s[sub + 4], minimum ? 4 : 0, 4) | bits(s[minimum ? sub : sub - 4], 6, 2) << 4;
}
inline double sixes_minimum(const uint8_t *b, int i) { return half(b + 2) * six(b + 4, i / 32, true); }
inline double sixes(const uint8_t *b, int i, int code) { return half(b) * six(b + 4, i / 32, false) * code - sixes_minimum(b, i); }
inline double q4_k(const uint8_t *b, int i) { return sixes(b, i, bits(b[16 + i / 64 * 32 + i % 32], i / 32 % 2 * 4, 4)); }
inline double q5_k(const uint8_t *b, int i) {
    return sixes(b, i, bits(b[48 + i / 64 * 32 + i % 32], i / 32 % 2 * 4, 4) | bits(b[16 + i % 32], i / 32, 1) << 4);
}
inline double q6_k(const uint8_t *b, int i) {
    int quarter = i / 32 % 4;
    int low = bits(b[i / 128 * 64 + quarter % 2 * 32 + i % 32], quarter / 2 * 4, 4), high = bits(b[128 + i / 128 * 32 + i % 32], quarter * 2, 2);
    return half(b + 208) * (int8_t)b[192 + i / 16] * ((low | high << 4) - 32);
}

// For products with rounded rows, whose sums are of the values before: what a block's minimum takes off, Q4_0's and Q5_0's offset included.
inline double q4_0_minimum(const uint8_t *b, int) { return half(b) * 8; }
inline double q4_1_minimum(const uint8_t *b, int) { return -half(b + 2); }
inline double q5_0_minimum(const uint8_t *b, int) { return half(b) * 16; }

static const std::vector<Format> ALL = {
    {"q4_0", 32, 18, q4_0, q4_0_minimum, {0}},
    {"q4_1", 32, 20, q4_1, q4_1_minimum, {0, 2}},
    {"q5_0", 32, 22, q5_0, q5_0_minimum, {0}},
    {"q5_1", 32, 24, q5_1, q4_1_minimum, {0, 2}},
    {"q8_0", 32, 34, q8_0, nullptr, {0}},
    {"iq4_nl", 32, 18, iq4_nl, nullptr, {0}},
    {"iq4_xs", 256, 136, iq4_xs, nullptr, {0}},
    {"mxfp4", 32, 17, mxfp4, nullptr, {}, true},
    {"q2_k", 256, 84, q2_k, q2_k_minimum, {80, 82}},
    {"q3_k", 256, 110, q3_k, nullptr, {108}},
    {"q4_k", 256, 144, q4_k, sixes_minimum, {0, 2}},
    {"q5_k", 256, 176, q5_k, sixes_minimum, {0, 2}},
    {"q6_k", 256, 210, q6_k, nullptr, {208}},
};

// Blocks of random bytes, some of all ones and all zeros, with factors of either sign, of none and of less than a half's normal values.
// Behind them four bytes more (BEHIND, weight.rs).
inline std::vector<uint8_t> random_blocks(const Format &f, size_t count) {
    std::vector<uint8_t> all(count * size_t(f.bytes) + 4);
    for (size_t i = 0; i < count; i++) {
        uint8_t *b = &all[i * size_t(f.bytes)];
        int kind = check::any.below(8);
        for (int j = 0; j < f.bytes; j++) b[j] = kind == 0 ? 0xff : kind == 1 ? 0 : uint8_t(check::any.next());
        if (f.power) b[0] = uint8_t(check::any.below(8) ? 100 + check::any.below(30) : check::any.below(3));
        for (int at : f.halves) {
            int size = check::any.below(12);
            uint16_t d = nearest_half(check::any.within(size == 0 ? 0.0f : size == 1 ? 3e-5f : size == 2 ? 0.5f : 0.01f));
            b[at] = uint8_t(d);
            b[at + 1] = uint8_t(d >> 8);
        }
    }
    return all;
}

// Rows of Q8_1: 36 bytes for 32 values.
struct Rounded {
    double scale, sum;
    const int8_t *codes;
};
inline Rounded rounded(const uint8_t *block) { return {half(block), half(block + 2), (const int8_t *)block + 4}; }

// That a block is 32 values rounded, by ggml's rule: codes are multiples of the largest value's 127th part.
inline void check_rounded(const uint8_t *block, const float *values, size_t index) {
    float most = 0.0f;
    double sum = 0.0, sizes = 0.0;
    for (int i = 0; i < 32; i++) {
        most = std::max(most, std::fabs(values[i]));
        sum += values[i];
        sizes += std::fabs(values[i]);
    }
    Rounded r = rounded(block);
    check::near("scale", index, r.scale, most / 127.0, check::half_step(most / 127.0));
    check::near("sum", index, r.sum, sum, check::half_step(sum) + 1e-6 * sizes);
    for (int i = 0; i < 32; i++) check::same("code", index * 32 + size_t(i), r.codes[i], most > 0.0f ? std::round(values[i] / (most / 127.0f)) : 0);
}

} // namespace formats

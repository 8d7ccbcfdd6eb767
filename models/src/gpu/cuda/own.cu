// Frugal's own kernels, compiled at start by NVRTC for the GPU at hand; no headers, so that none need be installed.
// Activations are F32. Each kernel's contract is that of its twin in host.rs or kernels.rs.

#ifdef __CUDACC_RTC__
#define INFINITY __int_as_float(0x7f800000)
#endif
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

// What C++ has no words for. tests/emulate has these in plain C++, and runs the rest of this file on a processor.
#ifndef EMULATED
extern __shared__ float room[];
__device__ __forceinline__ float widen(u16 half) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(half));
    return v;
}
__device__ __forceinline__ void narrow(float v, u16 *to) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(*to) : "f"(v));
}
__device__ __forceinline__ void copy16(void *to, const void *from, bool there) {
    u32 shared_at = (u32)__cvta_generic_to_shared(to);
    int bytes = there ? 16 : 0; // what is not copied is zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_at), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
// All groups of this thread's copies but the last `N` have arrived.
template <int N>
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(N)); }
__device__ __forceinline__ void fragments(u32 *to, const u16 *from) {
    u32 at = (u32)__cvta_generic_to_shared(from);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at));
}
__device__ __forceinline__ void multiply(float *c, const u32 *a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

__device__ __forceinline__ float widen(float v) { return v; }
struct bf16 { u16 bits; };
__device__ __forceinline__ float widen(bf16 v) { return __uint_as_float((u32)v.bits << 16); }
__device__ __forceinline__ void narrow(float v, float *to) { *to = v; }

__device__ __forceinline__ float warp_sum(float v) {
    for (int mask = 16; mask > 0; mask >>= 1) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}
__device__ __forceinline__ float sigmoid(float v) { return 1.0f / (1.0f + __expf(-v)); }

// 32 values of a warp, one each, as a block of Q8_1 (36 bytes: scale and sum as halves, codes), the form that mistral.rs' and
// candle's integer products read (mistralrs-quant 0.8.1, kernels/indexed_moe/indexed_moe.cu, quantize_q8_1).
__device__ __forceinline__ void round_block(float v, u8 *block, int lane) {
    float most = fabsf(v);
    for (int mask = 16; mask > 0; mask >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, mask));
    float sum = warp_sum(v), scale = most / 127.0f;
    ((signed char *)block)[4 + lane] = most == 0.0f ? 0 : (signed char)roundf(v / scale);
    if (lane == 0) {
        narrow(scale, (u16 *)block);
        narrow(fminf(fmaxf(sum, -65504.0f), 65504.0f), (u16 *)block + 1); // the largest half: infinity less infinity is no number
    }
}

// Rows of x [rows, width] as Q8_1, padded with zeros to `padded` columns. One warp per block of 32.
template <typename X>
__device__ __forceinline__ void round_rows(const X *x, u8 *rounded, float *wide, int width, int padded) {
    int block = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, i = block * 32 + lane;
    if (block >= padded / 32) return;
    float v = i < width ? widen(x[(i64)blockIdx.y * width + i]) : 0.0f;
    if (wide && i < width) wide[(i64)blockIdx.y * width + i] = v;
    round_block(v, rounded + ((i64)blockIdx.y * (padded / 32) + block) * 36, lane);
}
extern "C" __global__ void round_f32(const float *x, u8 *rounded, float *wide, int width, int padded) { round_rows(x, rounded, wide, width, padded); }
extern "C" __global__ void round_f16(const u16 *x, u8 *rounded, float *wide, int width, int padded) { round_rows(x, rounded, wide, width, padded); }

// One block of threads per group of `len` values; the last of a row copies what is behind the groups. With `rounded` (one group a
// row, of whole blocks of 32) also as Q8_1.
extern "C" __global__ void rms_norm(
    const float *x, const float *weight, float *y, u8 *rounded, int len, int width, int groups, int padded, float eps
) {
    __shared__ float parts[32];
    int group = blockIdx.x % groups;
    i64 row = blockIdx.x / groups;
    const float *from = x + row * width + group * len;
    float *to = y + row * width + group * len;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < len; i += blockDim.x) sum += from[i] * from[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < (blockDim.x + 31) / 32 ? parts[threadIdx.x] : 0.0f;
        sum = warp_sum(sum);
        if (threadIdx.x == 0) parts[0] = sum;
    }
    __syncthreads();
    float factor = rsqrtf(parts[0] / len + eps);
    for (int i = threadIdx.x; i < len; i += blockDim.x) {
        float v = from[i] * factor * weight[i];
        to[i] = v;
        if (rounded) round_block(v, rounded + (row * (padded / 32) + i / 32) * 36, threadIdx.x % 32);
    }
    if (rounded)
        for (int i = len + threadIdx.x; i < padded; i += blockDim.x)
            round_block(0.0f, rounded + (row * (padded / 32) + i / 32) * 36, threadIdx.x % 32);
    if (group == groups - 1)
        for (int i = groups * len + threadIdx.x; i < width; i += blockDim.x) y[row * width + i] = x[row * width + i];
}

// One thread per value. `neox`: pairs are (i, i + pairs), else (2i, 2i + 1), behind the first `first` values of a head.
extern "C" __global__ void rope(
    const float *x, const float *cos, const float *sin, const u32 *positions, float *y,
    i64 total, int width, int head_dim, int first, int pairs, int neox
) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= total) return;
    int i = (int)(at % width) % head_dim - first;
    if (i < 0 || i >= 2 * pairs) { y[at] = x[at]; return; }
    int pair = neox ? i % pairs : i / 2;
    bool second = neox ? i >= pairs : i % 2;
    int other = neox ? pairs : 1;
    i64 angle = (i64)positions[at / width] * pairs + pair;
    float c = cos[angle], s = sin[angle];
    y[at] = second ? x[at - other] * s + x[at] * c : x[at] * c - x[at + other] * s;
}

// kind 0: SiLU(gate) * up; kind 1: gpt-oss' clamped form.
__device__ __forceinline__ float activate(float g, float u, int kind) {
    if (kind == 0) return g * sigmoid(g) * u;
    g = fminf(g, 7.0f);
    u = fminf(fmaxf(u, -7.0f), 7.0f);
    return g * sigmoid(1.702f * g) * (u + 1.0f);
}
extern "C" __global__ void glu(const float *gate, const float *up, float *y, i64 total, int kind) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < total) y[at] = activate(gate[at], up[at], kind);
}

// The same of rows of `width`, as Q8_1 alone.
extern "C" __global__ void glu_round(const float *gate, const float *up, u8 *rounded, int width, int padded, int kind) {
    int block = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, i = block * 32 + lane;
    if (block >= padded / 32) return;
    i64 at = (i64)blockIdx.y * width + i;
    float v = i < width ? activate(gate[at], up[at], kind) : 0.0f;
    round_block(v, rounded + ((i64)blockIdx.y * (padded / 32) + block) * 36, lane);
}

// Rows as halves of their largest value, which the products' results are multiplied with: no value is too large for a half.
// One block of threads per row; with `up`, of the activation of both.
extern "C" __global__ void halve(const float *x, const float *up, u16 *y, float *scales, int width, int kind) {
    __shared__ float parts[32];
    i64 row = (i64)blockIdx.x * width;
    float most = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float v = up ? activate(x[row + i], up[row + i], kind) : x[row + i];
        most = fmaxf(most, fabsf(v));
    }
    for (int mask = 16; mask > 0; mask >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, mask));
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = most;
    __syncthreads();
    most = 0.0f;
    for (int i = 0; i < blockDim.x / 32; i++) most = fmaxf(most, parts[i]);
    float inverse = most > 1e-37f ? 1.0f / most : 0.0f; // of much less it is infinite
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float v = up ? activate(x[row + i], up[row + i], kind) : x[row + i];
        narrow(v * inverse, y + row + i);
    }
    if (threadIdx.x == 0) scales[blockIdx.x] = most;
}

// x [rows, n] halves times a row's scale.
extern "C" __global__ void unhalve(const u16 *x, const float *scales, float *y, i64 total, int n) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < total) y[at] = widen(x[at]) * scales[at / n];
}

// x [tokens, k, n], bias [experts, n], ids [tokens, k].
extern "C" __global__ void add_chosen(const float *x, const float *bias, const u32 *ids, float *y, i64 total, int n) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= total) return;
    y[at] = x[at] + bias[(i64)ids[at / n] * n + at % n];
}

// x [tokens, k, n], weights [tokens, k] or null for ones.
extern "C" __global__ void combine(const float *x, const float *weights, float *y, i64 total, int n, int k) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= total) return;
    i64 token = at / n;
    float sum = 0.0f;
    for (int j = 0; j < k; j++) {
        float v = x[(token * k + j) * n + at % n];
        sum += weights ? weights[token * k + j] * v : v;
    }
    y[at] = sum;
}

extern "C" __global__ void add_scaled(const float *x, const float *y, float *z, i64 total, float factor) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < total) z[at] = fmaf(factor, y[at], x[at]);
}

// The lane-wise largest of v, the smaller index among equals; every lane gets it.
__device__ __forceinline__ void warp_best(float &v, int &index) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        float w = __shfl_xor_sync(0xffffffffu, v, mask);
        int other = __shfl_xor_sync(0xffffffffu, index, mask);
        if (other >= 0 && (index < 0 || w > v || (w == v && other < index))) { v = w; index = other; }
    }
}

// The best of n scores that are not taken; -1 if all are.
__device__ __forceinline__ int best_left(const float *scores, const u8 *taken, int n, int lane) {
    float v = 0.0f;
    int index = -1;
    for (int i = lane; i < n; i += 32)
        if (!taken[i] && (index < 0 || scores[i] > v)) { v = scores[i]; index = i; }
    warp_best(v, index);
    return index;
}

// One warp per token. gating 0: softmax, 1: sigmoid, 2: softmax over the chosen. Groups of equal size; group_best 1 or 2.
extern "C" __global__ void route(
    const float *logits, const float *bias, const float *choice, u32 *ids, float *weights,
    int experts, int k, int gating, int groups, int groups_used, int group_best, int normalise, float sum_min, float scale
) {
    float *value = room, *score = room + experts, *group_score = score + experts;
    u8 *taken = (u8 *)(group_score + groups), *closed = taken + experts;
    int lane = threadIdx.x;
    const float *row = logits + (i64)blockIdx.x * experts;
    float top = -INFINITY;
    for (int i = lane; i < experts; i += 32) {
        value[i] = row[i] + (bias ? bias[i] : 0.0f);
        top = fmaxf(top, value[i]);
    }
    for (int mask = 16; mask > 0; mask >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
    float sum = 0.0f;
    for (int i = lane; i < experts; i += 32) {
        if (gating == 0) value[i] = expf(value[i] - top);
        if (gating == 1) value[i] = 1.0f / (1.0f + expf(-value[i]));
        sum += value[i];
    }
    sum = warp_sum(sum);
    for (int i = lane; i < experts; i += 32) {
        if (gating == 0) value[i] /= sum;
        score[i] = value[i] + (choice ? choice[i] : 0.0f);
        taken[i] = 0;
    }
    __syncwarp();
    if (groups > 1) {
        int each = experts / groups;
        for (int g = lane; g < groups; g += 32) {
            float first = -INFINITY, second = -INFINITY;
            for (int i = g * each; i < (g + 1) * each; i++) {
                float v = score[i];
                if (v > first) { second = first; first = v; }
                else if (v > second) second = v;
            }
            group_score[g] = group_best == 2 && each > 1 ? first + second : first;
            closed[g] = 0;
        }
        __syncwarp();
        for (int n = 0; n < groups_used; n++) {
            int g = best_left(group_score, closed, groups, lane);
            if (lane == 0 && g >= 0) closed[g] = 1; // which is to say open
            __syncwarp();
        }
        for (int i = lane; i < experts; i += 32)
            if (!closed[i / each]) score[i] = -INFINITY;
        __syncwarp();
    }
    u32 *id = ids + (i64)blockIdx.x * k;
    float *weight = weights + (i64)blockIdx.x * k;
    for (int j = 0; j < k; j++) {
        int e = best_left(score, taken, experts, lane);
        if (lane == 0) { taken[e] = 1; id[j] = e; weight[j] = value[e]; }
        __syncwarp();
    }
    if (lane != 0) return;
    if (gating == 2) {
        float most = -INFINITY, total = 0.0f;
        for (int j = 0; j < k; j++) most = fmaxf(most, weight[j]);
        for (int j = 0; j < k; j++) total += weight[j] = expf(weight[j] - most);
        for (int j = 0; j < k; j++) weight[j] /= total;
    }
    float total = 1.0f;
    if (normalise) {
        total = 0.0f;
        for (int j = 0; j < k; j++) total += weight[j];
        total = fmaxf(total, sum_min);
    }
    for (int j = 0; j < k; j++) weight[j] = weight[j] / total * scale;
}

// Inclusive sum over the block's 1024 threads.
__device__ __forceinline__ u32 block_scan(u32 v, u32 *parts) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int step = 1; step < 32; step *= 2) {
        u32 other = __shfl_up_sync(0xffffffffu, v, step);
        if (lane >= step) v += other;
    }
    __syncthreads();
    if (lane == 31) parts[warp] = v;
    __syncthreads();
    u32 before = 0;
    for (int w = 0; w < warp; w++) before += parts[w];
    return v + before;
}

// (token, slot) pairs in ascending order of expert, and of pair within one expert; and the tiles of up to `size` pairs of one expert
// each: expert, first pair and end in `pairs`; `tiles[0]` is how many, from word 4 on four words each. One block of 1024 threads,
// at most 1024 experts. Shared memory: 2 * experts words.
extern "C" __global__ void __launch_bounds__(1024) sort_experts(const u32 *ids, u32 *pairs, u32 *tiles, int total, int experts, int size) {
    __shared__ u32 parts[32];
    u32 *counts = (u32 *)room, *begins = counts + experts;
    int t = threadIdx.x;
    if (t < experts) counts[t] = 0;
    __syncthreads();
    for (int i = t; i < total; i += 1024) atomicAdd(&counts[ids[i]], 1u);
    __syncthreads();
    u32 count = t < experts ? counts[t] : 0, mine = (count + size - 1) / size;
    u32 end = block_scan(count, parts), tile = block_scan(mine, parts);
    if (t < experts) begins[t] = end - count;
    if (t == 1023) tiles[0] = tile;
    for (u32 n = 0; n < mine; n++) {
        u32 *to = tiles + 4 + 4 * (tile - mine + n), at = end - count + n * size;
        to[0] = t;
        to[1] = at;
        to[2] = min(at + size, end);
    }
    __syncthreads();
    int lane = t % 32;
    for (int e = t / 32; e < experts; e += 32) {
        if (counts[e] == 0) continue;
        u32 at = begins[e];
        for (int first = 0; first < total; first += 32) {
            int i = first + lane;
            bool found = i < total && ids[i] == e;
            u32 all = __ballot_sync(0xffffffffu, found);
            if (found) pairs[at + __popc(all & ((1u << lane) - 1))] = i;
            at += __popc(all);
        }
    }
}

// 32 weights as a kernel of integers wants them: codes in bytes, the first 16 times d[0] and the others times d[1], less m of each.
struct Weights {
    int q[8];
    float d[2], m[2];
};
__device__ __forceinline__ int word(const u8 *from) { return *(const int *)from; }
__device__ __forceinline__ int word2(const u8 *from) { return ((const u16 *)from)[0] | (u32)((const u16 *)from)[1] << 16; }
// At any address; words around it are read.
__device__ __forceinline__ int word1(const u8 *from) {
    const u32 *at = (const u32 *)((size_t)from & ~(size_t)3);
    return __funnelshift_r(at[0], at[1], 8 * ((size_t)from & 3));
}
__device__ __forceinline__ float half_at(const u8 *from) { return widen(*(const u16 *)from); }
// Four bits as the fifth bits of four bytes.
__device__ __forceinline__ int fifth(u32 bits) { return ((bits & 15) * 0x00204081u & 0x01010101u) << 4; }
__device__ __forceinline__ void factors(Weights &w, float d, float m) { w.d[0] = w.d[1] = d; w.m[0] = w.m[1] = m; }

// Formats: ggml's blocks (models/src/quant has one file for each). BLOCK values in BYTES; MINS 0: m is not used, 1: one for all 32, 2: each its own.
// 16 bytes of nibbles, low ones first, with a fifth bit each if there are `high` ones; `read` as the block's alignment allows.
__device__ __forceinline__ void nibbles(const u8 *from, int (*read)(const u8 *), u32 high, Weights &w) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int v = read(from + 4 * i);
        w.q[i] = (v & 0x0f0f0f0f) | fifth(high >> 4 * i);
        w.q[i + 4] = (v >> 4 & 0x0f0f0f0f) | fifth(high >> (16 + 4 * i));
    }
}
struct Q4_0 {
    static const int BLOCK = 32, BYTES = 18, MINS = 1;
    static __device__ __forceinline__ void decode(const u8 *b, int, Weights &w) {
        nibbles(b + 2, word2, 0, w);
        factors(w, half_at(b), 8.0f * half_at(b));
    }
};
struct Q4_1 {
    static const int BLOCK = 32, BYTES = 20, MINS = 1;
    static __device__ __forceinline__ void decode(const u8 *b, int, Weights &w) {
        nibbles(b + 4, word, 0, w);
        factors(w, half_at(b), -half_at(b + 2));
    }
};
struct Q5_0 {
    static const int BLOCK = 32, BYTES = 22, MINS = 1;
    static __device__ __forceinline__ void decode(const u8 *b, int, Weights &w) {
        nibbles(b + 6, word2, word2(b + 2), w);
        factors(w, half_at(b), 16.0f * half_at(b));
    }
};
struct Q5_1 {
    static const int BLOCK = 32, BYTES = 24, MINS = 1;
    static __device__ __forceinline__ void decode(const u8 *b, int, Weights &w) {
        nibbles(b + 8, word, word(b + 4), w);
        factors(w, half_at(b), -half_at(b + 2));
    }
};
struct Q8_0 {
    static const int BLOCK = 32, BYTES = 34, MINS = 0;
    static __device__ __forceinline__ void decode(const u8 *b, int, Weights &w) {
#pragma unroll
        for (int i = 0; i < 8; i++) w.q[i] = word2(b + 2 + 4 * i);
        factors(w, half_at(b), 0.0f);
    }
};
// 16 bytes of nibbles as `nibbles` has them, each looked up among the table's 16 bytes: a nibble's lower bits choose one of each half of
// the table, then its upper bit one of these.
__device__ __forceinline__ void look_up(const u8 *from, int (*read)(const u8 *), const u32 (&table)[4], Weights &w) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 v = read(from + 4 * i), of[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 four = v >> 16 * h, lower = four & 0x7777;
            of[h] = __byte_perm(__byte_perm(table[0], table[1], lower), __byte_perm(table[2], table[3], lower), 0x3210 | (four & 0x8888) >> 1);
        }
        w.q[i] = __byte_perm(of[0], of[1], 0x6420);
        w.q[i + 4] = __byte_perm(of[0], of[1], 0x7531);
    }
}
#define NON_LINEAR {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u}
struct IQ4_NL {
    static const int BLOCK = 32, BYTES = 18, MINS = 0;
    static __device__ __forceinline__ void decode(const u8 *b, int, Weights &w) {
        const u32 table[4] = NON_LINEAR;
        look_up(b + 2, word2, table, w);
        factors(w, half_at(b), 0.0f);
    }
};
struct IQ4_XS {
    static const int BLOCK = 256, BYTES = 136, MINS = 0;
    static __device__ __forceinline__ void decode(const u8 *b, int sub, Weights &w) {
        const u32 table[4] = NON_LINEAR;
        look_up(b + 8 + 16 * sub, word, table, w);
        int scale = (b[4 + sub / 2] >> 4 * (sub % 2) & 15) | (*(const u16 *)(b + 2) >> 2 * sub & 3) << 4;
        factors(w, half_at(b) * (scale - 32), 0.0f);
    }
};
struct MXFP4 {
    static const int BLOCK = 32, BYTES = 17, MINS = 0;
    static __device__ __forceinline__ void decode(const u8 *b, int, Weights &w) {
        const u32 table[4] = {0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu};
        look_up(b + 1, word1, table, w);
        u32 e = b[0]; // 2^(e - 128), subnormal below 2
        factors(w, __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23), 0.0f);
    }
};
struct Q2_K {
    static const int BLOCK = 256, BYTES = 84, MINS = 2;
    static __device__ __forceinline__ void decode(const u8 *b, int sub, Weights &w) {
        const u8 *qs = b + 16 + sub / 4 * 32;
#pragma unroll
        for (int i = 0; i < 8; i++) w.q[i] = word(qs + 4 * i) >> 2 * (sub % 4) & 0x03030303;
        float d = half_at(b + 80), m = half_at(b + 82);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u8 s = b[2 * sub + h];
            w.d[h] = d * (s & 15);
            w.m[h] = m * (s >> 4);
        }
    }
};
struct Q3_K {
    static const int BLOCK = 256, BYTES = 110, MINS = 0;
    static __device__ __forceinline__ void decode(const u8 *b, int sub, Weights &w) {
        const u8 *qs = b + 32 + sub / 4 * 32, *scales = b + 96;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int high = word2(b + 4 * i) >> sub & 0x01010101;
            w.q[i] = __vsub4((word2(qs + 4 * i) >> 2 * (sub % 4) & 0x03030303) | high << 2, 0x04040404);
        }
        float d = half_at(b + 108);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int at = 2 * sub + h;
            int low = at < 8 ? scales[at] & 15 : scales[at - 8] >> 4, top = scales[8 + at % 4] >> 2 * (at / 4) & 3;
            w.d[h] = d * ((low | top << 4) - 32);
        }
    }
};
__device__ __forceinline__ void scale_min(const u8 *s, int sub, int &scale, int &min) {
    if (sub < 4) { scale = s[sub] & 63; min = s[sub + 4] & 63; return; }
    scale = (s[sub + 4] & 15) | s[sub - 4] >> 6 << 4;
    min = s[sub + 4] >> 4 | s[sub] >> 6 << 4;
}
struct Q4_K {
    static const int BLOCK = 256, BYTES = 144, MINS = 1;
    static __device__ __forceinline__ void decode(const u8 *b, int sub, Weights &w) {
        const int4 *qs = (const int4 *)(b + 16 + sub / 2 * 32);
        int shift = sub % 2 * 4, scale, min;
        int4 first = qs[0], second = qs[1];
        int v[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
        for (int i = 0; i < 8; i++) w.q[i] = v[i] >> shift & 0x0f0f0f0f;
        scale_min(b + 4, sub, scale, min);
        factors(w, half_at(b) * scale, half_at(b + 2) * min);
    }
};
struct Q5_K {
    static const int BLOCK = 256, BYTES = 176, MINS = 1;
    static __device__ __forceinline__ void decode(const u8 *b, int sub, Weights &w) {
        const u8 *qs = b + 48 + sub / 2 * 32;
        int shift = sub % 2 * 4, scale, min;
#pragma unroll
        for (int i = 0; i < 8; i++) w.q[i] = (word(qs + 4 * i) >> shift & 0x0f0f0f0f) | (word(b + 16 + 4 * i) >> sub & 0x01010101) << 4;
        scale_min(b + 4, sub, scale, min);
        factors(w, half_at(b) * scale, half_at(b + 2) * min);
    }
};
struct Q6_K {
    static const int BLOCK = 256, BYTES = 210, MINS = 0;
    static __device__ __forceinline__ void decode(const u8 *b, int sub, Weights &w) {
        int r = sub % 4;
        const u8 *ql = b + sub / 4 * 64 + r % 2 * 32, *qh = b + 128 + sub / 4 * 32;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int low = word2(ql + 4 * i) >> r / 2 * 4 & 0x0f0f0f0f, high = word2(qh + 4 * i) >> 2 * r & 0x03030303;
            w.q[i] = __vsub4(low | high << 4, 0x20202020);
        }
        float d = half_at(b + 208);
        w.d[0] = d * (signed char)b[192 + 2 * sub];
        w.d[1] = d * (signed char)b[193 + 2 * sub];
    }
};

// Quantized weights as halves, one thread per 32 of them.
template <typename F>
__device__ __forceinline__ void expand(const u8 *w, u16 *y, i64 blocks) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= blocks) return;
    const int subs = F::BLOCK / 32;
    Weights a;
    F::decode(w + at / subs * F::BYTES, (int)(at % subs), a);
    u32 halves[16];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u16 four[4];
#pragma unroll
        for (int b = 0; b < 4; b++) {
            float v = a.d[i / 4] * (float)(signed char)(a.q[i] >> 8 * b);
            if (F::MINS == 1) v -= a.m[0];
            if (F::MINS == 2) v -= a.m[i / 4];
            narrow(v, four + b);
        }
        halves[2 * i] = four[0] | (u32)four[1] << 16;
        halves[2 * i + 1] = four[2] | (u32)four[3] << 16;
    }
    uint4 *to = (uint4 *)(y + at * 32);
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = make_uint4(halves[4 * i], halves[4 * i + 1], halves[4 * i + 2], halves[4 * i + 3]);
}
extern "C" __global__ void expand_bf16(const bf16 *w, u16 *y, i64 total) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total) narrow(widen(w[i]), y + i);
}
#define EXPAND(name, F) extern "C" __global__ void name(const u8 *w, u16 *y, i64 blocks) { expand<F>(w, y, blocks); }
EXPAND(expand_q4_0, Q4_0)
EXPAND(expand_q4_1, Q4_1)
EXPAND(expand_q5_0, Q5_0)
EXPAND(expand_q5_1, Q5_1)
EXPAND(expand_q8_0, Q8_0)
EXPAND(expand_iq4_nl, IQ4_NL)
EXPAND(expand_iq4_xs, IQ4_XS)
EXPAND(expand_mxfp4, MXFP4)
EXPAND(expand_q2_k, Q2_K)
EXPAND(expand_q3_k, Q3_K)
EXPAND(expand_q4_k, Q4_K)
EXPAND(expand_q5_k, Q5_K)
EXPAND(expand_q6_k, Q6_K)

// Products of experts with the pairs that chose them, in integers: each tile of up to EACH pairs reads its expert's weights once. x: rows
// of Q8_1, a pair's is pair / per_row; y [pairs, n]. With `tiles` null a pair is a tile and `pairs` are the experts of the pairs.
// One warp per two rows of the matrix; a lane has every 32nd of their blocks of 32 columns.
#define EACH 8
template <typename F>
__device__ __forceinline__ void experts_int(const u8 *w, const u8 *x, const u32 *pairs, const u32 *tiles, float *y, int n, int k, int padded, int per_row) {
    int expert, begin, count;
    if (tiles) {
        if (blockIdx.y >= tiles[0]) return;
        const u32 *tile = tiles + 4 + 4 * blockIdx.y;
        expert = tile[0];
        begin = tile[1];
        count = tile[2] - begin;
    } else {
        expert = pairs[blockIdx.y];
        begin = blockIdx.y;
        count = 1;
    }
    int row = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * 2, lane = threadIdx.x % 32;
    if (row >= n) return;
    i64 row_bytes = (i64)(k / F::BLOCK) * F::BYTES;
    const u8 *first = w + ((i64)expert * n + row) * row_bytes, *second = row + 1 < n ? first + row_bytes : first;
    const u8 *from[EACH];
    u32 pair[EACH];
#pragma unroll
    for (int p = 0; p < EACH; p++) {
        pair[p] = tiles ? pairs[begin + min(p, count - 1)] : begin;
        from[p] = x + (i64)(pair[p] / per_row) * (padded / 32) * 36;
    }
    float sum[2][EACH];
#pragma unroll
    for (int p = 0; p < EACH; p++) sum[0][p] = sum[1][p] = 0.0f;
    const int subs = F::BLOCK / 32;
    for (int s = lane; s < k / 32; s += 32) {
        Weights a[2];
        F::decode(first + (i64)(s / subs) * F::BYTES, s % subs, a[0]);
        F::decode(second + (i64)(s / subs) * F::BYTES, s % subs, a[1]);
#pragma unroll
        for (int p = 0; p < EACH; p++) {
            if (p >= count) break;
            const int *block = (const int *)(from[p] + s * 36);
            int both = block[0], q[8];
#pragma unroll
            for (int i = 0; i < 8; i++) q[i] = block[i + 1];
            // The block's own sum of values, behind its scale, is a half: one too large is infinite. Codes' sums are not.
            float scale = widen((u16)both);
            int ones[2] = {0, 0};
            if (F::MINS)
#pragma unroll
                for (int i = 0; i < 8; i++) ones[i / 4] = __dp4a(0x01010101, q[i], ones[i / 4]);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                int dot[2] = {0, 0};
#pragma unroll
                for (int i = 0; i < 8; i++) dot[i / 4] = __dp4a(a[r].q[i], q[i], dot[i / 4]);
                float v = scale * (a[r].d[0] * dot[0] + a[r].d[1] * dot[1]);
                if (F::MINS) v -= scale * (a[r].m[0] * ones[0] + a[r].m[1] * ones[1]);
                sum[r][p] += v;
            }
        }
    }
#pragma unroll
    for (int p = 0; p < EACH; p++) {
        if (p >= count) break;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float v = warp_sum(sum[r][p]);
            if (lane == 0 && row + r < n) y[(i64)pair[p] * n + row + r] = v;
        }
    }
}
#define EXPERTS_INT(name, F) \
    extern "C" __global__ void __launch_bounds__(128) name( \
        const u8 *w, const u8 *x, const u32 *pairs, const u32 *tiles, float *y, int n, int k, int padded, int per_row \
    ) { experts_int<F>(w, x, pairs, tiles, y, n, k, padded, per_row); }
EXPERTS_INT(experts_q4_0, Q4_0)
EXPERTS_INT(experts_q4_1, Q4_1)
EXPERTS_INT(experts_q5_0, Q5_0)
EXPERTS_INT(experts_q5_1, Q5_1)
EXPERTS_INT(experts_q8_0, Q8_0)
EXPERTS_INT(experts_iq4_nl, IQ4_NL)
EXPERTS_INT(experts_iq4_xs, IQ4_XS)
EXPERTS_INT(experts_mxfp4, MXFP4)
EXPERTS_INT(experts_q2_k, Q2_K)
EXPERTS_INT(experts_q3_k, Q3_K)
EXPERTS_INT(experts_q4_k, Q4_K)
EXPERTS_INT(experts_q5_k, Q5_K)
EXPERTS_INT(experts_q6_k, Q6_K)

// Products of experts with the pairs that chose them, on tensor cores: x [rows, k] halves with a scale each, w [experts, n, k] halves,
// to y [pairs, n]. A pair's row of x is pair / per_row. k is a multiple of 32.
// One block of 256 threads per (tile of 64 pairs, 128 rows of the matrix): 8 warps of 32 x 32; three stages of 32 columns in shared
// memory, rows of 32 halves in four pieces of 16 bytes whose places are turned by the row, so that ldmatrix meets every bank once.
#define PAIRS 64
#define ROWS 128
#define COLS 32
#define STAGES 3
__device__ __forceinline__ int place(int row, int piece) { return row * COLS + ((piece ^ (row >> 1)) & 3) * 8; }
extern "C" __global__ void __launch_bounds__(256) experts_f16(
    const u16 *x, const float *scales, const u16 *w, const u32 *pairs, const u32 *tiles, float *y, int n, int k, int per_row
) {
    if (blockIdx.y >= tiles[0]) return;
    __shared__ __align__(16) u16 as[STAGES][PAIRS * COLS];
    __shared__ __align__(16) u16 bs[STAGES][ROWS * COLS];
    const u32 *tile = tiles + 4 + 4 * blockIdx.y;
    int expert = tile[0], begin = tile[1], count = tile[2] - tile[1], row0 = blockIdx.x * ROWS;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, m0 = warp % 2 * 32, n0 = warp / 2 * 32;
    // Each thread copies one piece of x and two of w per stage.
    int piece = threadIdx.x % 4, a_row = threadIdx.x / 4;
    bool a_there = a_row < count;
    const u16 *a_from = x + (a_there ? (i64)(pairs[begin + a_row] / per_row) * k : 0) + piece * 8;
    const u16 *b_from[2];
    bool b_there[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = row0 + a_row + i * 64;
        b_there[i] = row < n;
        b_from[i] = w + ((i64)expert * n + (b_there[i] ? row : 0)) * k + piece * 8;
    }
    float c[2][4][4];
#pragma unroll
    for (int i = 0; i < 32; i++) (&c[0][0][0])[i] = 0.0f;
    int steps = k / COLS;
    auto fetch = [&](int step) {
        if (step < steps) {
            int stage = step % STAGES;
            copy16(as[stage] + place(a_row, piece), a_from + step * COLS, a_there);
#pragma unroll
            for (int i = 0; i < 2; i++) copy16(bs[stage] + place(a_row + i * 64, piece), b_from[i] + step * COLS, b_there[i]);
        }
        commit_copies();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) fetch(i);
    for (int step = 0; step < steps; step++) {
        await_copies<STAGES - 2>();
        __syncthreads();
        fetch(step + STAGES - 1);
        const u16 *a = as[step % STAGES], *b = bs[step % STAGES];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 af[2][4], bf[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) fragments(af[i], a + place(m0 + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
            for (int i = 0; i < 2; i++) fragments(bf[i], b + place(n0 + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) multiply(c[i][j], af[i], bf[j / 2][j % 2], bf[j / 2][j % 2 + 2]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int m = m0 + i * 16 + h * 8 + lane / 4;
            if (m >= count) continue;
            u32 pair = pairs[begin + m];
            float scale = scales[pair / per_row];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int col = row0 + n0 + j * 8 + lane % 4 * 2;
                if (col < n) y[(i64)pair * n + col] = c[i][j][h * 2] * scale;
                if (col + 1 < n) y[(i64)pair * n + col + 1] = c[i][j][h * 2 + 1] * scale;
            }
        }
}

// One warp per (row of the matrix, pair of token and slot): x [tokens, x_slots, cols], w [experts, rows, cols].
template <typename W>
__device__ __forceinline__ void gather(const float *x, const W *w, const u32 *ids, float *y, int rows, int cols, int k, int x_slots) {
    int row = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    int pair = blockIdx.x;
    const float *from = x + (i64)(x_slots == 1 ? pair / k : pair) * cols;
    const W *weight = w + ((i64)ids[pair] * rows + row) * cols;
    float sum = 0.0f;
    for (int i = lane; i < cols; i += 32) sum += from[i] * widen(weight[i]);
    sum = warp_sum(sum);
    if (lane == 0) y[(i64)pair * rows + row] = sum;
}
#define GATHER(name, W) \
    extern "C" __global__ void name(const float *x, const void *w, const u32 *ids, float *y, int rows, int cols, int k, int x_slots) { \
        gather<W>(x, (const W *)w, ids, y, rows, cols, k, x_slots); \
    }
GATHER(gather_f32, float)
GATHER(gather_f16, u16)
GATHER(gather_bf16, bf16)

// Writes keys of a latent cache: k [tokens, dim], pages [blocks, block, dim].
template <typename P>
__device__ __forceinline__ void write_latent(const float *k, P *pages, const i64 *slots, int dim) {
    i64 slot = slots[blockIdx.x];
    if (slot < 0) return;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) narrow(k[(i64)blockIdx.x * dim + i], pages + slot * dim + i);
}
extern "C" __global__ void write_latent_f32(const float *k, float *pages, const i64 *slots, int dim) { write_latent(k, pages, slots, dim); }
extern "C" __global__ void write_latent_f16(const float *k, u16 *pages, const i64 *slots, int dim) { write_latent(k, pages, slots, dim); }

// Attention of one span over pages of halves, on tensor cores: FlashAttention-2's online softmax (Dao 2023). One block of 4 warps per
// (64 rows, KV head); a row is a query head of a token, and the heads of a group are neighbours, so that they share what is read.
// Keys of a tile lie in shared memory as [key][dim], values as [dim][key], which is how pages have them; pieces of 16 bytes, their places
// turned by the row. Positions of a tile that the sequence has not are zeros, also what another left in its last block.
#define FLASH_ROWS 64
#define FLASH_KEYS 64
template <int D>
__device__ __forceinline__ int key_place(int key, int piece) { return key * D + ((piece ^ key) & 7 | piece & ~7) * 8; }
__device__ __forceinline__ int value_place(int dim, int piece) { return dim * FLASH_KEYS + ((piece ^ dim) & 7) * 8; }
template <int D>
__device__ __forceinline__ void flash(
    const float *q, const u16 *keys, const u16 *values, const u32 *table, const float *sinks, float *out,
    int tokens, int start, int table_first, int heads, int kv_heads, int block, float scale, int window
) {
    u16 *tiles = (u16 *)room; // two stages of keys, then of values
    const int size = FLASH_KEYS * D;
    int group = heads / kv_heads, kv_head = blockIdx.y, rows = tokens * group, row0 = blockIdx.x * FLASH_ROWS;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int last = min(row0 + FLASH_ROWS, rows) - 1;
    int end = start + last / group + 1, lowest = window > 0 ? max(0, start + row0 / group + 1 - window) : 0;
    int held = table_first * block; // positions before are gone
    auto fetch = [&](int tile, int stage) {
        u16 *ks = tiles + stage * size, *vs = tiles + (2 + stage) * size;
        int first = tile * FLASH_KEYS;
        for (int i = threadIdx.x; i < FLASH_KEYS * (D / 8); i += 128) {
            int key = i % FLASH_KEYS, piece = i / FLASH_KEYS, p = first + key;
            bool there = p < end && p >= held;
            i64 page = there ? table[p / block - table_first] : 0;
            copy16(ks + key_place<D>(key, piece), keys + (((page * kv_heads + kv_head) * (D / 8) + piece) * block + p % block) * 8, there);
        }
        for (int i = threadIdx.x; i < D * (FLASH_KEYS / 8); i += 128) {
            int piece = i % (FLASH_KEYS / 8), dim = i / (FLASH_KEYS / 8), p = first + piece * 8;
            bool there = p < end && p >= held;
            i64 page = there ? table[p / block - table_first] : 0;
            copy16(vs + value_place(dim, piece), values + ((page * kv_heads + kv_head) * D + dim) * block + p % block, there);
        }
        commit_copies();
    };
    // Rows lane / 4 and that + 8 of the warp's 16 are this thread's.
    int row[2] = {row0 + warp * 16 + lane / 4, row0 + warp * 16 + lane / 4 + 8};
    int position[2], first_seen[2];
    u32 qf[D / 16][4];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = min(row[h], rows - 1), token = r / group;
        position[h] = start + token;
        first_seen[h] = window > 0 ? max(0, position[h] + 1 - window) : 0;
        const float *from = q + ((i64)token * heads + kv_head * group + r % group) * D + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < D / 16; i++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                u16 a, b;
                narrow(from[i * 16 + c * 8] * scale * 1.44269504f, &a);
                narrow(from[i * 16 + c * 8 + 1] * scale * 1.44269504f, &b);
                qf[i][c * 2 + h] = a | (u32)b << 16;
            }
    }
    float acc[D / 8][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < D / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] = 0.0f;
    int tile = lowest / FLASH_KEYS, tiles_end = (end + FLASH_KEYS - 1) / FLASH_KEYS;
    fetch(tile, 0);
    for (int stage = 0; tile < tiles_end; tile++, stage ^= 1) {
        if (tile + 1 < tiles_end) {
            fetch(tile + 1, stage ^ 1);
            await_copies<1>();
        } else {
            await_copies<0>();
        }
        __syncthreads();
        u16 *ks = tiles + stage * size, *vs = tiles + (2 + stage) * size;
        int first = tile * FLASH_KEYS, over = end - first;
        if (over < FLASH_KEYS && over % 8) {
            for (int dim = threadIdx.x; dim < D; dim += 128)
                for (int k = over; k % 8; k++) vs[value_place(dim, k / 8) + k % 8] = 0;
            __syncthreads();
        }
        float s[FLASH_KEYS / 8][4];
#pragma unroll
        for (int i = 0; i < FLASH_KEYS / 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) s[i][j] = 0.0f;
#pragma unroll
        for (int k = 0; k < D / 16; k++)
#pragma unroll
            for (int n = 0; n < FLASH_KEYS / 16; n++) {
                u32 f[4];
                fragments(f, ks + key_place<D>(n * 16 + lane % 16, k * 2 + lane / 16));
                multiply(s[n * 2], qf[k], f[0], f[2]);
                multiply(s[n * 2 + 1], qf[k], f[1], f[3]);
            }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = most[h];
#pragma unroll
            for (int i = 0; i < FLASH_KEYS / 8; i++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    int p = first + i * 8 + lane % 4 * 2 + c;
                    float &v = s[i][h * 2 + c];
                    if (p > position[h] || p < first_seen[h]) v = -INFINITY;
                    top = fmaxf(top, v);
                }
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            float base = top == -INFINITY ? 0.0f : top, correction = exp2f(most[h] - base), total = 0.0f;
            most[h] = top;
#pragma unroll
            for (int i = 0; i < FLASH_KEYS / 8; i++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float &v = s[i][h * 2 + c];
                    v = exp2f(v - base);
                    total += v;
                }
            sum[h] = sum[h] * correction + total;
#pragma unroll
            for (int i = 0; i < D / 8; i++) {
                acc[i][h * 2] *= correction;
                acc[i][h * 2 + 1] *= correction;
            }
        }
#pragma unroll
        for (int k = 0; k < FLASH_KEYS / 16; k++) {
            u32 pf[4];
#pragma unroll
            for (int c = 0; c < 2; c++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    u16 a, b;
                    narrow(s[k * 2 + c][h * 2], &a);
                    narrow(s[k * 2 + c][h * 2 + 1], &b);
                    pf[c * 2 + h] = a | (u32)b << 16;
                }
#pragma unroll
            for (int n = 0; n < D / 16; n++) {
                u32 f[4];
                fragments(f, vs + value_place(n * 16 + lane % 16, k * 2 + lane / 16));
                multiply(acc[n * 2], pf, f[0], f[2]);
                multiply(acc[n * 2 + 1], pf, f[1], f[3]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
        if (row[h] >= rows) continue;
        int query_head = kv_head * group + row[h] % group;
        float factor = 1.0f;
        if (sinks) {
            float sink = sinks[query_head] * 1.44269504f, top = fmaxf(most[h], sink);
            factor = exp2f(most[h] - top);
            sum[h] = sum[h] * factor + exp2f(sink - top);
        }
        float *to = out + ((i64)(row[h] / group) * heads + query_head) * D + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            to[i * 8] = acc[i][h * 2] * factor / sum[h];
            to[i * 8 + 1] = acc[i][h * 2 + 1] * factor / sum[h];
        }
    }
}
#define FLASH(name, D) \
    extern "C" __global__ void __launch_bounds__(128) name( \
        const float *q, const u16 *keys, const u16 *values, const u32 *table, const float *sinks, float *out, \
        int tokens, int start, int table_first, int heads, int kv_heads, int block, float scale, int window \
    ) { flash<D>(q, keys, values, table, sinks, out, tokens, start, table_first, heads, kv_heads, block, scale, window); }
FLASH(flash_64, 64)
FLASH(flash_128, 128)

// Writes k and v [tokens, kv_heads, dim] into pages of mistral.rs' layout. One thread per value of the larger.
template <typename P>
__device__ __forceinline__ void write_pages(
    const float *k, const float *v, P *keys, P *values, const i64 *slots, int kv_heads, int key_dim, int value_dim, int block
) {
    const int x = 16 / sizeof(P);
    i64 slot = slots[blockIdx.x];
    if (slot < 0) return;
    i64 page = slot / block, in = slot % block;
    for (int i = threadIdx.x; i < kv_heads * key_dim; i += blockDim.x) {
        int head = i / key_dim, d = i % key_dim;
        narrow(k[(i64)blockIdx.x * kv_heads * key_dim + i], keys + (((page * kv_heads + head) * (key_dim / x) + d / x) * block + in) * x + d % x);
    }
    for (int i = threadIdx.x; i < kv_heads * value_dim; i += blockDim.x) {
        int head = i / value_dim, d = i % value_dim;
        narrow(v[(i64)blockIdx.x * kv_heads * value_dim + i], values + ((page * kv_heads + head) * value_dim + d) * block + in);
    }
}
extern "C" __global__ void write_pages_f32(const float *k, const float *v, float *keys, float *values, const i64 *slots, int kv_heads, int key_dim, int value_dim, int block) {
    write_pages(k, v, keys, values, slots, kv_heads, key_dim, value_dim, block);
}
extern "C" __global__ void write_pages_f16(const float *k, const float *v, u16 *keys, u16 *values, const i64 *slots, int kv_heads, int key_dim, int value_dim, int block) {
    write_pages(k, v, keys, values, slots, kv_heads, key_dim, value_dim, block);
}

// Attention of any shape: one block of 128 threads per (token, KV head, 8 query heads, part of the context).
// Latent pages [blocks, block, key_dim] (values null: a value is the first of its key); else keys [blocks, kv_heads, key_dim / x, block, x],
// values [blocks, kv_heads, value_dim, block]. `window` 0: all positions. With one part the result goes to `out`, else each part's
// to `parts_out` with its maximum and sum, for attend_join.
#define HEADS 8
#define TILE 16
#define VALUES_MAX 4
template <typename P>
__device__ __forceinline__ void attend(
    const float *q, const P *keys, const P *values, const u32 *tables, const u32 *firsts, const u32 *span_of, const u32 *positions,
    const float *sinks, float *out, float *parts_out, float *parts_max, float *parts_sum,
    int heads, int kv_heads, int key_dim, int value_dim, int block, int width, float scale, int window, int tile_groups
) {
    const int x = 16 / sizeof(P), stride = key_dim + 1;
    float *qs = room, *ks = qs + HEADS * key_dim, *vs = ks + TILE * stride, *ps = vs + (values ? TILE * value_dim : 0);
    float *corrections = ps + HEADS * TILE, *sums = corrections + HEADS, *maxima = sums + HEADS;
    int token = blockIdx.x, kv_head = blockIdx.y / tile_groups, part = blockIdx.z, parts = gridDim.z;
    int group = heads / kv_heads, first_head = blockIdx.y % tile_groups * HEADS;
    int count = min(HEADS, group - first_head);
    int position = positions[token];
    const u32 *table = tables + (i64)span_of[token] * width;
    int table_first = firsts[span_of[token]];
    int begin = window > 0 ? max(0, position + 1 - window) : 0, end = position + 1;
    int each = (end - begin + parts - 1) / parts;
    begin += part * each;
    end = min(end, begin + each);
    const float *query = q + ((i64)token * heads + kv_head * group + first_head) * key_dim;
    for (int i = threadIdx.x; i < count * key_dim; i += blockDim.x) qs[i] = query[i] * scale;
    float acc[HEADS][VALUES_MAX];
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int i = 0; i < VALUES_MAX; i++) acc[h][i] = 0.0f;
    float most = -INFINITY, sum = 0.0f; // of head threadIdx.x / TILE, in each of its threads
    int head = threadIdx.x / TILE, lane = threadIdx.x % TILE;
    for (int at = begin; at < end; at += TILE) {
        int n = min(TILE, end - at);
        __syncthreads();
        for (int i = threadIdx.x; i < n * key_dim; i += blockDim.x) {
            int p, d;
            if (values) { p = i / x % n; d = i / (x * n) * x + i % x; } else { p = i / key_dim; d = i % key_dim; }
            i64 page = table[(at + p) / block - table_first];
            int in = (at + p) % block;
            i64 from = values ? (((page * kv_heads + kv_head) * (key_dim / x) + d / x) * block + in) * x + d % x
                              : (page * block + in) * key_dim + d;
            ks[p * stride + d] = widen(keys[from]);
        }
        if (values)
            for (int i = threadIdx.x; i < n * value_dim; i += blockDim.x) {
                int p = i % n, d = i / n;
                i64 page = table[(at + p) / block - table_first];
                vs[p * value_dim + d] = widen(values[((page * kv_heads + kv_head) * value_dim + d) * block + (at + p) % block]);
            }
        __syncthreads();
        float s = -INFINITY;
        if (head < count && lane < n) {
            s = 0.0f;
            for (int d = 0; d < key_dim; d++) s += qs[head * key_dim + d] * ks[lane * stride + d];
        }
        float largest = s;
        for (int mask = TILE / 2; mask > 0; mask >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, mask));
        largest = fmaxf(largest, most);
        float correction = most == -INFINITY ? 0.0f : __expf(most - largest);
        float p = s == -INFINITY ? 0.0f : __expf(s - largest);
        float total = p;
        for (int mask = TILE / 2; mask > 0; mask >>= 1) total += __shfl_xor_sync(0xffffffffu, total, mask);
        sum = sum * correction + total;
        most = largest;
        if (head < HEADS) ps[head * TILE + lane] = p;
        if (lane == 0 && head < HEADS) corrections[head] = correction;
        __syncthreads();
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int i = 0; i < VALUES_MAX; i++) acc[h][i] *= corrections[h];
        const float *from = values ? vs : ks;
        int step = values ? value_dim : stride;
        for (int p = 0; p < n; p++)
#pragma unroll
            for (int i = 0; i < VALUES_MAX; i++) {
                int d = i * 128 + threadIdx.x;
                if (d >= value_dim) continue;
                float v = from[p * step + d];
#pragma unroll
                for (int h = 0; h < HEADS; h++) acc[h][i] += ps[h * TILE + p] * v;
            }
    }
    if (lane == 0 && head < HEADS) { sums[head] = sum; maxima[head] = most; }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        if (h >= count) continue;
        int query_head = kv_head * group + first_head + h;
        i64 row = (i64)token * heads + query_head;
        if (parts > 1) {
            i64 to = row * parts + part;
            if (threadIdx.x == 0) { parts_max[to] = maxima[h]; parts_sum[to] = sums[h]; }
#pragma unroll
            for (int i = 0; i < VALUES_MAX; i++) {
                int d = i * 128 + threadIdx.x;
                if (d < value_dim) parts_out[to * value_dim + d] = acc[h][i];
            }
            continue;
        }
        float most = maxima[h], sum = sums[h], factor = 1.0f;
        if (sinks) {
            float largest = fmaxf(most, sinks[query_head]);
            factor = __expf(most - largest);
            sum = sum * factor + __expf(sinks[query_head] - largest);
        }
#pragma unroll
        for (int i = 0; i < VALUES_MAX; i++) {
            int d = i * 128 + threadIdx.x;
            if (d < value_dim) out[row * value_dim + d] = acc[h][i] * factor / sum;
        }
    }
}
#define ATTEND(name, P) \
    extern "C" __global__ void __launch_bounds__(128) name( \
        const float *q, const void *keys, const void *values, const u32 *tables, const u32 *firsts, const u32 *span_of, const u32 *positions, \
        const float *sinks, float *out, float *parts_out, float *parts_max, float *parts_sum, \
        int heads, int kv_heads, int key_dim, int value_dim, int block, int width, float scale, int window, int tile_groups \
    ) { \
        attend<P>(q, (const P *)keys, (const P *)values, tables, firsts, span_of, positions, sinks, out, parts_out, parts_max, parts_sum, \
                  heads, kv_heads, key_dim, value_dim, block, width, scale, window, tile_groups); \
    }
ATTEND(attend_f32, float)
ATTEND(attend_f16, u16)

// One block per (token, head): joins the parts that `attend` left.
extern "C" __global__ void attend_join(
    const float *parts_out, const float *parts_max, const float *parts_sum, const float *sinks, float *out, int heads, int value_dim, int parts
) {
    i64 row = blockIdx.x;
    float most = -INFINITY;
    for (int p = 0; p < parts; p++) most = fmaxf(most, parts_max[row * parts + p]);
    if (sinks) most = fmaxf(most, sinks[row % heads]);
    float sum = sinks ? __expf(sinks[row % heads] - most) : 0.0f;
    for (int p = 0; p < parts; p++) {
        float m = parts_max[row * parts + p];
        if (m > -INFINITY) sum += parts_sum[row * parts + p] * __expf(m - most);
    }
    for (int d = threadIdx.x; d < value_dim; d += blockDim.x) {
        float v = 0.0f;
        for (int p = 0; p < parts; p++) {
            float m = parts_max[row * parts + p];
            if (m > -INFINITY) v += parts_out[(row * parts + p) * value_dim + d] * __expf(m - most);
        }
        out[row * value_dim + d] = v / sum;
    }
}

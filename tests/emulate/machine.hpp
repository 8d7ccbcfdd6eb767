// A GPU as far as kernels can tell: a grid's blocks run one after the other, the threads of a block as fibers on one processor.
//
// A thread runs until it waits for its warp or its block, so between two barriers threads do not alternate: one after the other does all its
// work, in ascending order or, so that a missing barrier shows whichever side comes first, descending. Whatever is found wrong ends the
// program: a barrier or a warp's operation that some threads do not reach, a launch that a GPU would refuse.
// Absent on purpose: time, caches, warps that run in lockstep, memory models.
#pragma once
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

struct dim3 { unsigned x = 1, y = 1, z = 1; };
// What kernels read of their place, of the thread that runs.
static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulate {

// Most bytes of shared memory that a block can have on an H100; Own::compile (launch.rs) takes 1024 off.
constexpr size_t SHARED_MAX = (227 << 10) - 1024;
constexpr unsigned WARP = 32, THREADS_MAX = 1024;
constexpr size_t STACK = 128 << 10, GUARD = 4 << 10;

// Orders of threads, and with them when asynchronous copies happen: as early as they can, or as late.
enum class Order { Ascending, Descending };
static Order order = Order::Ascending;

// What a warp does together. Lanes must agree on the operation and its argument.
struct Meeting {
    enum Kind { Sync, Xor, Up, Ballot, Fragments, Multiply } kind;
    int argument = 0;
    uint32_t in = 0, out = 0;         // Xor, Up, Ballot
    const uint16_t *row = nullptr;    // Fragments: one row of a matrix
    uint32_t *to = nullptr;           // its words
    float *c = nullptr;               // Multiply
    const uint32_t *a = nullptr, *b = nullptr;
};

// An asynchronous copy of 16 bytes that has not happened.
struct Copy { void *to; const void *from; bool there; };

struct Thread {
    enum State { Ready, AtWarp, AtBlock, Done } state = Done;
    void *stack_pointer = nullptr;
    Meeting *meeting = nullptr;
    std::vector<std::vector<Copy>> groups; // copies by group, the last one not committed
};

static std::vector<Thread> threads(THREADS_MAX);
static unsigned current;
static void *scheduler;
static std::function<void()> body;
static const char *kernel_name = "";
static std::map<std::string, long> launches;

// Dynamic shared memory; what a launch did not ask for is poisoned.
alignas(128) static float room_bytes[SHARED_MAX / sizeof(float)];
// Static arrays of kernels lie in a section of their own.
extern "C" char __start_shared_memory[], __stop_shared_memory[];

[[noreturn, gnu::format(printf, 1, 2)]] static void fail(const char *format, ...) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s, block (%u, %u, %u), thread %u, %s: ", kernel_name, blockIdx.x, blockIdx.y, blockIdx.z, current,
                 order == Order::Ascending ? "ascending" : "descending");
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    _exit(1); // not exit: this may be a fiber's stack
}

inline bool is_shared(const void *at) {
    auto within = [at](const void *from, const void *to) { return std::less_equal<>()(from, at) && std::less<>()(at, to); };
    return within(room_bytes, std::end(room_bytes)) || within(__start_shared_memory, __stop_shared_memory);
}

// Swaps stacks; what a function may not change lies on them. From System V's ABI for x86-64.
extern "C" void emulate_switch(void **save, void *to);
asm(R"(
.text
.globl emulate_switch
emulate_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

inline void wait(Thread::State state) {
    Thread &thread = threads[current];
    thread.state = state;
    emulate_switch(&thread.stack_pointer, scheduler);
}

// A fiber's whole life: one thread of each block after the other.
inline void live() {
    for (;;) {
        body();
        wait(Thread::Done);
    }
}

inline void begin(Thread &thread) {
    thread.state = Thread::Ready;
    thread.groups.assign(1, {});
    if (thread.stack_pointer) return;
    void *memory = mmap(nullptr, STACK + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, GUARD, PROT_NONE) != 0) fail("no stack");
    void **top = (void **)((char *)memory + GUARD + STACK) - 3; // where 16 divides the place of what `ret` finds
    *--top = (void *)live;
    thread.stack_pointer = top - 6;
}

inline void resume(unsigned t) {
    current = t;
    threadIdx = {t % blockDim.x, t / blockDim.x, 0};
    emulate_switch(&scheduler, threads[t].stack_pointer);
}

float half_value(uint16_t half);

// c += a b of 16 x 16 and 16 x 8 halves, held by a warp as PTX's mma.m16n8k16 says ("Matrix Fragments for mma.m16n8k16").
inline void multiply_fragments(Meeting *const *lanes) {
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < WARP; lane++)
        for (unsigned i = 0; i < 8; i++) {
            unsigned row = lane / 4 + i / 2 % 2 * 8, k = lane % 4 * 2 + i % 2 + i / 4 * 8;
            a[row][k] = half_value(uint16_t(lanes[lane]->a[i / 2] >> i % 2 * 16));
            if (i < 4) b[lane % 4 * 2 + i % 2 + i / 2 * 8][lane / 4] = half_value(uint16_t(lanes[lane]->b[i / 2] >> i % 2 * 16));
        }
    for (unsigned lane = 0; lane < WARP; lane++)
        for (unsigned i = 0; i < 4; i++) {
            const float *row = a[lane / 4 + i / 2 * 8];
            float sum = 0.0f;
            for (unsigned k = 0; k < 16; k++) sum += row[k] * b[k][lane % 4 * 2 + i % 2];
            lanes[lane]->c[i] += sum;
        }
}

// Not for results but for speed, and what own.cu says of itself: the 8 rows of 16 bytes of a matrix lie in different banks.
inline void check_banks(Meeting *const *lanes) {
    for (unsigned first = 0; first < WARP; first += 8) {
        unsigned banks = 0;
        for (unsigned i = 0; i < 8; i++) banks |= 1u << (uintptr_t)lanes[first + i]->row / 16 % 8;
        if (banks != 255) fail("rows of a matrix share banks");
    }
}

// All lanes of a warp have come.
inline void meet(Meeting *const *lanes) {
    uint32_t ballot = 0;
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (lanes[lane]->kind != lanes[0]->kind || lanes[lane]->argument != lanes[0]->argument)
            fail("lanes of a warp do different things: %d(%d) and %d(%d)", lanes[0]->kind, lanes[0]->argument, lanes[lane]->kind,
                 lanes[lane]->argument);
        ballot |= uint32_t(lanes[lane]->in != 0) << lane;
    }
    unsigned argument = unsigned(lanes[0]->argument);
    if (lanes[0]->kind == Meeting::Fragments) check_banks(lanes);
    if (lanes[0]->kind == Meeting::Multiply) return multiply_fragments(lanes);
    for (unsigned lane = 0; lane < WARP; lane++) {
        Meeting &m = *lanes[lane];
        switch (m.kind) {
        case Meeting::Xor: m.out = lanes[(lane ^ argument) % WARP]->in; break;
        case Meeting::Up: m.out = lanes[lane >= argument ? lane - argument : lane]->in; break;
        case Meeting::Ballot: m.out = ballot; break;
        case Meeting::Fragments: // of four 8 x 8 matrices, rows 8 j to 8 j + 7 are those that lanes 8 j to 8 j + 7 name
            for (unsigned j = 0; j < 4; j++) std::memcpy(&m.to[j], lanes[8 * j + lane / 4]->row + lane % 4 * 2, 4);
            break;
        default: break;
        }
    }
}

// Runs a warp until its lanes wait for the block or have ended.
inline void run_warp(unsigned first) {
    for (bool ran = true; ran;) {
        ran = false;
        unsigned at_warp = 0;
        Meeting *lanes[WARP];
        for (unsigned i = 0; i < WARP; i++) {
            unsigned lane = order == Order::Ascending ? i : WARP - 1 - i;
            Thread &thread = threads[first + lane];
            if (thread.state == Thread::Ready) {
                resume(first + lane);
                ran = true;
            }
            at_warp += thread.state == Thread::AtWarp;
            lanes[lane] = thread.meeting;
        }
        if (at_warp == 0) continue;
        if (at_warp != WARP) fail("%u lanes of a warp wait for the others, which have ended or wait for the block", at_warp);
        meet(lanes);
        for (unsigned lane = 0; lane < WARP; lane++) threads[first + lane].state = Thread::Ready;
        ran = true;
    }
}

// What is in shared memory before a block begins, and what kernels' results are before they are written: NaN as floats and halves, and no
// index. Not instrumented, for between the arrays lies what must not be touched.
[[gnu::no_sanitize("address", "undefined")]] inline void spoil(volatile char *from, volatile char *to) {
    while (from < to) *from++ = char(0xff);
}

inline void run_block(unsigned count) {
    spoil(__start_shared_memory, __stop_shared_memory);
    for (unsigned t = 0; t < count; t++) begin(threads[t]);
    for (;;) {
        for (unsigned w = 0; w < count; w += WARP) run_warp(order == Order::Ascending ? w : count - WARP - w);
        unsigned done = 0;
        for (unsigned t = 0; t < count; t++) done += threads[t].state == Thread::Done;
        if (done == count) return;
        if (done > 0) fail("%u threads have ended, the others wait for the block", done);
        for (unsigned t = 0; t < count; t++) threads[t].state = Thread::Ready;
    }
}

// Mirrors Own::launch (launch.rs): what it refuses is refused here.
template <class... Parameters, class... Arguments>
void launch(const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Arguments... arguments) {
    kernel_name = name;
    unsigned count = block.x * block.y;
    auto whole = [](unsigned n, unsigned most) { return n > 0 && n <= most; };
    if (!whole(grid.x, INT32_MAX) || !whole(grid.y, 65535) || !whole(grid.z, 65535) || !whole(count, THREADS_MAX) || shared > SHARED_MAX)
        fail("a grid of (%u, %u, %u), %u threads and %zu bytes cannot be launched", grid.x, grid.y, grid.z, count, shared);
    if (count % WARP) fail("warps that are not full are not emulated");
    launches[name]++;
    gridDim = grid;
    blockDim = block;
    body = [=] { kernel(static_cast<Parameters>(arguments)...); };
    char *room = (char *)room_bytes;
    ASAN_UNPOISON_MEMORY_REGION(room, SHARED_MAX);
    ASAN_POISON_MEMORY_REGION(room + shared, SHARED_MAX - shared);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = {x, y, z};
                spoil(room, room + shared);
                run_block(count);
            }
}

} // namespace emulate

// Own::launch, and Own::launch_flat: one thread per value.
#define LAUNCH(kernel, ...) emulate::launch(#kernel, kernel, __VA_ARGS__)
#define LAUNCH_FLAT(kernel, values, ...) LAUNCH(kernel, dim3{unsigned(((values) + 255) / 256)}, dim3{256}, 0, __VA_ARGS__)

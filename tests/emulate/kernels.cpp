// Runs every kernel of own.cu on a processor, with sanitizers, beside plain references written from the definitions; tests/emulate.sh
// compiles this. Prints the kernels that ran and how often.
#include "shim.hpp"

#include "../../models/src/gpu/cuda/own.cu"

#include "attention.hpp"
#include "products.hpp"
#include "rows.hpp"
#include "routing.hpp"

// The references rest on these.
static void conversions() {
    emulate::kernel_name = "halves";
    CASE("every half and what is between two");
    for (u32 half = 0; half < 0x7c00; half++) {
        check::same("half", half, nearest_half(widen(u16(half))), half);
        check::same("-half", half, nearest_half(-widen(u16(half))), half | 0x8000);
        float next = half == 0x7bff ? 65536.0f : widen(u16(half + 1)), middle = (widen(u16(half)) + next) / 2;
        check::same("middle", half, nearest_half(middle), half + half % 2);
        check::same("below", half, nearest_half(std::nextafter(middle, 0.0f)), half);
        check::same("above", half, nearest_half(std::nextafter(middle, INFINITY)), half + 1);
    }
    check::same("half of one", 0, nearest_half(1.0f), 0x3c00);
    check::same("half of a third", 0, nearest_half(1.0f / 3.0f), 0x3555);
}

int main() {
    conversions();
    for (emulate::Order order : {emulate::Order::Ascending, emulate::Order::Descending}) {
        emulate::order = order;
        rows::all();
        routing::all();
        products::all();
        attention::all();
    }
    for (const auto &[name, count] : emulate::launches) std::printf("%s %ld\n", name.c_str(), count);
    std::fprintf(stderr, "%ld values checked, %ld wrong\n", check::checks, check::failures);
    return check::failures ? 1 : 0;
}

// The routed scan backward. A task is a slot: some blocks of channels of one image and group. Each block walks all
// routes, one after the other, and adds to the gradient of x where it lies.
#include "routed_scan.h"

#include "selective_scan_backward_steps.h"

namespace SF_ISA {
namespace {

template <typename T>
void run_slot(const sf_routes &r, int64_t image, int64_t group, int64_t slot, int64_t vectors, void *memory) {
    const sf_scan &s = r.scan;
    const int64_t begin = slot * vectors / s.slots, end = (slot + 1) * vectors / s.slots;
    for_blocks<T>(s, begin, end, [&](int64_t from, int64_t to, bool first) {
        for (int64_t route = 0; route < r.routes; ++route) {
            const sf_scan one = scan_of<T>(r, image, route);
            // Of [slots, b, L, K, G, N].
            const int64_t partial =
                (((slot * s.batch + image) * r.tokens * r.routes + route) * s.groups + group) * s.states;
            run_vectors<T, false>(one, walk_of(r, route, r.shared), 0, group, from, to,
                                  {(T *)s.grad_B + partial, (T *)s.grad_C + partial, first}, memory);
        }
    });
}

template <typename T>
int routed_backward(const sf_routes &r) {
    if (leaves_the_map(r)) return SF_BAD_ARGUMENT;
    const sf_scan &s = r.scan;
    const int64_t group_channels = s.channels / s.groups, sequences = s.batch * s.groups;
    const int64_t vectors = (group_channels + lanes<T>::count - 1) / lanes<T>::count;
    int failed = 0;
#pragma omp parallel for num_threads(s.threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < sequences * s.slots; ++task) {
        const flush_denormals guard;
        aligned_buffer memory(working_bytes<T>(s));
        if (!memory.data) {
            __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
            continue;
        }
        const int64_t sequence = task / s.slots;
        run_slot<T>(r, sequence / s.groups, sequence % s.groups, task % s.slots, vectors, memory.data);
    }
    return failed ? SF_NO_MEMORY : SF_OK;
}

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(routed_scan_backward_f32)(const sf_routes *r) { return SF_ISA::routed_backward<float>(*r); }
SF_EXPORT(routed_scan_backward_f64)(const sf_routes *r) { return SF_ISA::routed_backward<double>(*r); }

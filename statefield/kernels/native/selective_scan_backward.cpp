// The selective scan backward. A task is a slot: some blocks of channels of one sequence and group.
#include "selective_scan_backward_steps.h"

namespace SF_ISA {
namespace {

template <typename T>
void run_slot(const sf_scan &s, int64_t sequence, int64_t slot, int64_t vectors, void *memory) {
    const in_order walk(s);
    const int64_t batch = sequence / s.groups, group = sequence % s.groups, N = s.states;
    const int64_t begin = slot * vectors / s.slots, end = (slot + 1) * vectors / s.slots;
    const int64_t partial = ((slot * s.batch + batch) * s.length * s.groups + group) * N;
    T *const grad_B = s.b_constant ? nullptr : (T *)s.grad_B + partial;
    T *const grad_C = s.c_constant ? nullptr : (T *)s.grad_C + partial;
    for_blocks<T>(s, begin, end, [&](int64_t from, int64_t to, bool first) {
        run_vectors<T, true>(s, walk, batch, group, from, to, {grad_B, grad_C, first}, memory);
    });
}

template <typename T>
int backward(const sf_scan &s) {
    const int64_t group_channels = s.channels / s.groups;
    const int64_t vectors = (group_channels + lanes<T>::count - 1) / lanes<T>::count;
    int failed = 0;
#pragma omp parallel for num_threads(s.threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < s.batch * s.groups * s.slots; ++task) {
        const flush_denormals guard;
        aligned_buffer memory(working_bytes<T>(s));
        if (!memory.data) {
            __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
            continue;
        }
        run_slot<T>(s, task / s.slots, task % s.slots, vectors, memory.data);
    }
    return failed ? SF_NO_MEMORY : SF_OK;
}

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(selective_scan_backward_f32)(const sf_scan *s) { return SF_ISA::backward<float>(*s); }
SF_EXPORT(selective_scan_backward_f64)(const sf_scan *s) { return SF_ISA::backward<double>(*s); }

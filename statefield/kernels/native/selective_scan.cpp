// The selective scan forward. A task is a block of channels of one sequence; a vector lane is a channel; the states of a
// block stay in the first-level cache from the first step to the last.
#include "selective_scan_steps.h"

namespace SF_ISA {
namespace {

template <typename T>
void run_sequence(const sf_scan &s, const block<T> &k) {
    const in_order walk(s);
    if (s.b_constant && s.c_constant) return run_steps<T, 0, true, true>(s, k, walk, 0, s.length);
    if (s.b_constant) return run_steps<T, 0, true, false>(s, k, walk, 0, s.length);
    // One state read out by a constant: the states themselves, as Spatial-Mamba takes them to its fusion.
    if (s.c_constant && s.states == 1) return run_steps<T, 1, false, true>(s, k, walk, 0, s.length);
    if (s.c_constant) return run_steps<T, 0, false, true>(s, k, walk, 0, s.length);
    run_varying<T>(s, k, walk, 0, s.length);
}

template <typename T>
int forward(const sf_scan &s) {
    const int64_t group_channels = s.channels / s.groups;
    const int64_t vectors = (group_channels + lanes<T>::count - 1) / lanes<T>::count;
    // State and A of a block fill half of a first-level cache of 32 KiB.
    const int64_t most = 16384 / (2 * s.states * SF_VECTOR_BYTES);
    const blocking cut(s.batch * s.groups, vectors, most < 1 ? 1 : most, s.threads);
    int failed = 0;
#pragma omp parallel for num_threads(s.threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < cut.tasks; ++task) {
        const flush_denormals guard;
        aligned_buffer memory(block<T>::bytes(s, cut.longest));
        if (!memory.data) {
            __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
            continue;
        }
        block<T> k(s, cut, task, memory.data);
        k.begin(s, (const T *)s.initial);
        run_sequence<T>(s, k);
        k.finish((T *)s.last, s);
        drain_streams();
    }
    return failed ? SF_NO_MEMORY : SF_OK;
}

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(selective_scan_forward_f32)(const sf_scan *s) { return SF_ISA::forward<float>(*s); }
SF_EXPORT(selective_scan_forward_f64)(const sf_scan *s) { return SF_ISA::forward<double>(*s); }

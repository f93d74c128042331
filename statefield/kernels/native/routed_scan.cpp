// The routed scan forward. A task is a block of channels of one image; it walks the routes one after the other and adds
// to the output where it lies, so that the order of the sum is always the same.
#include "routed_scan.h"

#include "selective_scan_steps.h"

namespace SF_ISA {
namespace {

template <typename T>
int routed_forward(const sf_routes &r) {
    if (leaves_the_map(r)) return SF_BAD_ARGUMENT;
    const sf_scan &s = r.scan;
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
        const int64_t sequence = task / cut.per_sequence, part = task % cut.per_sequence;
        for (int64_t route = 0; route < r.routes; ++route) {
            const sf_scan one = scan_of<T>(r, sequence / s.groups, route);
            block<T> k(one, 0, sequence % s.groups, cut.first_vector(part), cut.first_vector(part + 1), memory.data);
            k.begin(one, nullptr);
            run_varying<T>(one, k, walk_of(r, route, r.merged), 0, one.length);
        }
    }
    return failed ? SF_NO_MEMORY : SF_OK;
}

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(routed_scan_forward_f32)(const sf_routes *r) { return SF_ISA::routed_forward<float>(*r); }
SF_EXPORT(routed_scan_forward_f64)(const sf_routes *r) { return SF_ISA::routed_forward<double>(*r); }

// Bidirectional WKV forward, in time that is linear in tokens: from the right for the sums behind every segment, then
// from the left for the outputs.
#include "wkv_block.h"

namespace SF_ISA {
namespace {

template <typename T, bool Kernel>
struct wkv_forward {
    using V = vec<T>;

    static bool task(const sf_wkv &p, const blocking &cut, int64_t number) {
        wkv_block<T> b(p, cut, number);
        aligned_buffer memory(b.bytes() + (size_t)b.columns * sizeof(wkv_left<T>) +
                              (size_t)b.span * (sizeof(V) + sizeof(wkv_pair<T>)));
        if (!memory.data) return false;
        wkv_left<T> *carried = (wkv_left<T> *)b.place(memory.data);
        V *weight = (V *)(carried + b.columns);
        wkv_pair<T> *behind = (wkv_pair<T> *)(weight + b.span);
        for (int64_t c = 0; c < b.columns; ++c) carried[c] = wkv_left<T>::none();
        b.template look_right<Kernel>();
        for (int64_t segment = 0; segment < b.segments; ++segment) {
            b.pack(b.values, b.v, segment, splat((T)1));
            for (int64_t c = 0; c < b.columns; ++c) {
                V *value = b.values + c * b.span;
                wkv_left<T> left = carried[c];
                const V M = left.template top<Kernel>(b.exponent[segment * b.columns + c]);
                left.template enter<Kernel>(M, b.constants[c].drift);
                const auto mean = [=](int64_t i, V n, V d, const wkv_left<T> &) { value[i] = n / d; };
                wkv_walk<T, Kernel>(b, wkv_constants<T>(b.constants[c]), segment, c, M, left, weight, behind, mean);
                left.template leave<Kernel>(M);
                carried[c] = left;
            }
            b.unpack(p.y, b.values, segment);
        }
        return true;
    }
};

template <typename T>
int forward(const sf_wkv &p) {
    const blocking cut(p.batch, (p.channels + lanes<T>::count - 1) / lanes<T>::count, kWkvColumns, p.threads);
    int failed = 0;
#pragma omp parallel for num_threads(p.threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < cut.tasks; ++task) {
        const flush_denormals guard;
        const bool done =
            p.chunk ? wkv_forward<T, true>::task(p, cut, task) : wkv_forward<T, false>::task(p, cut, task);
        if (!done) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    }
    return failed ? SF_NO_MEMORY : SF_OK;
}

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(wkv_forward_f32)(const sf_wkv *p) { return SF_ISA::forward<float>(*p); }
SF_EXPORT(wkv_forward_f64)(const sf_wkv *p) { return SF_ISA::forward<double>(*p); }

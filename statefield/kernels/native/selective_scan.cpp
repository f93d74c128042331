// The selective scan forward. A task is a block of channels of one sequence; a vector lane is a channel; the states of a
// block stay in the first-level cache from the first step to the last.
#include "selective_scan.h"

#include "selective_scan_block.h"

namespace SF_ISA {
namespace {

// The steps [begin, end) of one block. `Fixed` is the number of states where it is known when compiling (the loop over
// states is unrolled), else 0. `Decaying` promises dt * A <= 0.
template <typename T, int Fixed, bool ConstantB, bool ConstantC, bool Decaying>
struct forward_steps {
    static constexpr int W = lanes<T>::count;
    using V = vec<T>;

    // What the loops read at every step, in locals: through the references each would be loaded again after each store.
    const int64_t N;
    // Two rows on, in elements. Threads walk different columns of the same rows, and the CPU's own prefetcher does not
    // follow from row to row: fetching by hand took 15 to 30 % off at one state (2 threads). Past the end it does nothing.
    const int64_t ahead;
    const bool soft, gated, streaming;
    V *const state, *const dt;
    const V *const A2, *const tableB, *const tableC, *const D, *const bias;

    forward_steps(const sf_scan &s, const block<T> &k)
        : N(Fixed ? Fixed : s.states), ahead(2 * s.channels), soft(s.softplus), gated(s.z.data),
          streaming(streams(s)), state(k.state), dt(k.dt), A2(k.A2), tableB(k.B),
          tableC(k.C), D(k.D), bias(k.bias) {}

    // The step sizes of the channels in one pack P, from vector v on. `left` of its lanes are channels; `Whole` says all
    // are. In a loop of its own before that of `channels`: two short chains of dependent operations overlap with those
    // of the neighbours, one long chain does not (measured: 30 % of the time at one state).
    template <typename P, bool Whole>
    SF_INLINE void step_sizes(int64_t v, const T *delta, int64_t left) const {
        __builtin_prefetch(delta + v * W + ahead);
        P x = read<P, Whole>(delta + v * W, left) + at<P>(bias + v, 1);
        if (Decaying || soft) x = softplus(x);
        put(dt + v, 1, x);
    }

    // One step of these channels.
    template <typename P, bool Whole>
    SF_INLINE void channels(int64_t v, const T *u, const T *z, const T *B, const T *C, T *out, int64_t left) const {
        __builtin_prefetch(u + v * W + ahead);
        if (!streaming) __builtin_prefetch(out + v * W + ahead, 1);
        const P x = read<P, Whole>(u + v * W, left), step = at<P>(dt + v, 1);
        const P dtx = step * x;
        P y = at<P>(D + v, 1) * x;
#pragma GCC unroll 4
        for (int64_t n = 0; n < N; ++n) {
            const int64_t place = v * N + n;
            const P exponent = step * at<P>(A2 + place, N);
            const P decay = Decaying ? exp2_nonpositive(exponent) : exp2(exponent);
            const P b = ConstantB ? at<P>(tableB + place, N) : all<P>(B[n]);
            const P c = ConstantC ? at<P>(tableC + place, N) : all<P>(C[n]);
            const P now = decay * at<P>(state + place, N) + dtx * b;
            put(state + place, N, now);
            y = y + c * now;
        }
        if (gated) {
            const P gate = read<P, Whole>(z + v * W, left);
            y = y * (gate * sigmoid(gate));
        }
        write<P, Whole>(out + v * W, y, left);
    }

    template <typename P, bool Whole>
    static SF_INLINE P read(const T *from, int64_t left) {
        if constexpr (Whole)
            return memory<P>::read(from);
        else
            return load_part(from, left);
    }
    template <typename P, bool Whole>
    SF_INLINE void write(T *to, P x, int64_t left) const {
        if constexpr (!Whole)
            store_part(to, x, left);
        else if (streaming)
            memory<P>::stream_to(to, x);
        else
            memory<P>::write(to, x);
    }
    // Whether the output goes past the caches: where it is larger than most of them and its rows fall on vectors.
    // Took 15 to 35 % off at one state and 50 MB; a small output would be missed by whoever reads it next.
    static bool streams(const sf_scan &s) {
        const int64_t bytes = s.batch * s.length * s.channels * (int64_t)sizeof(T);
        return bytes >= (32 << 20) && s.channels / s.groups % W == 0 && (uintptr_t)s.out % SF_VECTOR_BYTES == 0;
    }
    // The entries of one vector, or of two neighbouring ones, in a table with `N` entries a vector.
    template <typename P>
    static SF_INLINE P at(const V *entry, int64_t N) {
        if constexpr (pack<P>::vectors == 2)
            return {entry[0], entry[N]};
        else
            return entry[0];
    }
    static SF_INLINE void put(V *entry, int64_t, V x) { entry[0] = x; }
    static SF_INLINE void put(V *entry, int64_t N, twin<V> x) {
        entry[0] = x.a;
        entry[N] = x.b;
    }

    static void run(const sf_scan &s, const block<T> &k, int64_t begin, int64_t end) {
        const forward_steps steps(s, k);
        const rows<T> u(s.u, k.batch, k.first), delta(s.delta, k.batch, k.first), z(s.z, k.batch, k.first);
        const rows<T> B(s.B, k.batch, k.group * s.states), C(s.C, k.batch, k.group * s.states);
        const int64_t whole = k.width / W, left = k.width - whole * W, row = s.channels, chunk = s.chunk;
        const bool kept = s.kept;
        T *out = (T *)s.out + (k.batch * s.length + begin) * row + k.first;
        for (int64_t t = begin; t < end; ++t, out += row) {
            if (kept && t % chunk == 0) k.keep(s, t / chunk);
            const T *u_t = u.at(t), *delta_t = delta.at(t), *z_t = z.at(t), *B_t = B.at(t), *C_t = C.at(t);
            int64_t v = 0;
            for (; v + 2 <= whole; v += 2) steps.template step_sizes<twin<V>, true>(v, delta_t, 0);
            if (v < whole) steps.template step_sizes<V, true>(v++, delta_t, 0);
            if (left) steps.template step_sizes<V, false>(v, delta_t, left);
            v = 0;
            for (; v + 2 <= whole; v += 2) steps.template channels<twin<V>, true>(v, u_t, z_t, B_t, C_t, out, 0);
            if (v < whole) steps.template channels<V, true>(v++, u_t, z_t, B_t, C_t, out, 0);
            if (left) steps.template channels<V, false>(v, u_t, z_t, B_t, C_t, out, left);
        }
    }
};

template <typename T, int Fixed, bool ConstantB, bool ConstantC>
void run_steps(const sf_scan &s, const block<T> &k, int64_t begin, int64_t end) {
    if (s.softplus && k.decaying)
        forward_steps<T, Fixed, ConstantB, ConstantC, true>::run(s, k, begin, end);
    else
        forward_steps<T, Fixed, ConstantB, ConstantC, false>::run(s, k, begin, end);
}

template <typename T>
void run_steps(const sf_scan &s, const block<T> &k, int64_t begin, int64_t end) {
    if (s.b_constant && s.c_constant) return run_steps<T, 0, true, true>(s, k, begin, end);
    if (s.b_constant) return run_steps<T, 0, true, false>(s, k, begin, end);
    // One state read out by a constant: the states themselves, as Spatial-Mamba takes them to its fusion.
    if (s.c_constant && s.states == 1) return run_steps<T, 1, false, true>(s, k, begin, end);
    if (s.c_constant) return run_steps<T, 0, false, true>(s, k, begin, end);
    switch (s.states) {
        case 1: return run_steps<T, 1, false, false>(s, k, begin, end);
        case 4: return run_steps<T, 4, false, false>(s, k, begin, end);
        case 8: return run_steps<T, 8, false, false>(s, k, begin, end);
        case 16: return run_steps<T, 16, false, false>(s, k, begin, end);
        default: return run_steps<T, 0, false, false>(s, k, begin, end);
    }
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
        run_steps<T>(s, k, 0, s.length);
        k.finish((T *)s.last, s);
        drain_streams();
    }
    return failed ? SF_NO_MEMORY : SF_OK;
}

}  // namespace
}  // namespace SF_ISA

SF_EXPORT(selective_scan_forward_f32)(const sf_scan *s) { return SF_ISA::forward<float>(*s); }
SF_EXPORT(selective_scan_forward_f64)(const sf_scan *s) { return SF_ISA::forward<double>(*s); }

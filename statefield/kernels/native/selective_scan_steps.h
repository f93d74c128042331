// The steps of the selective scan forward: what selective_scan.cpp and routed_scan.cpp share.
#pragma once
#include "selective_scan_block.h"

namespace SF_ISA {
namespace {

// The steps [begin, end) of one block. `Fixed` is the number of states where it is known when compiling (the loop over
// states is unrolled), else 0. `Decaying` promises dt * A <= 0. `Walk` says which row a step reads and writes.
template <typename T, class Walk, int Fixed, bool ConstantB, bool ConstantC, bool Decaying>
struct forward_steps {
    static constexpr int W = lanes<T>::count;
    using V = vec<T>;

    // The rows of one step; how far on those lie that are fetched ahead, in elements; whether the output is added to.
    struct step_rows {
        const T *u, *z, *B, *C;
        T *out;
        int64_t ahead_u, ahead_out;
        bool adds;
    };

    // What the loops read at every step, in locals: through the references each would be loaded again after each store.
    const int64_t N;
    const bool soft, gated, streaming;
    V *const state, *const dt, *const small;
    const V *const A2, *const tableB, *const tableC, *const D, *const bias;

    forward_steps(const sf_scan &s, const block<T> &k)
        : N(Fixed ? Fixed : s.states), soft(s.softplus), gated(Walk::gated && s.z.data),
          streaming(Walk::streams && streams(s)),
          state(k.state), dt(k.dt), small(k.small), A2(k.A2), tableB(k.B), tableC(k.C), D(k.D), bias(k.bias) {}

    // The step sizes of the channels in one pack P, from vector v on. `left` of its lanes are channels; `Whole` says all
    // are. In two loops of their own before that of `channels`, the exponential and then the logarithm of softplus:
    // short chains of dependent operations overlap with those of the neighbours, one long chain does not (measured at
    // one state: from one loop to two 30 % of the time, from two to three 14 %).
    template <typename P, bool Whole>
    SF_INLINE void step_sizes(int64_t v, const T *delta, int64_t ahead, int64_t left) const {
        __builtin_prefetch(delta + v * W + ahead);
        const P x = read<P, Whole>(delta + v * W, left) + at<P>(bias + v, 1);
        put(dt + v, 1, x);
        if (Decaying || soft) put(small + v, 1, softplus_exp(x));
    }
    template <typename P>
    SF_INLINE void soften(int64_t v) const {
        put(dt + v, 1, softplus_from(at<P>(dt + v, 1), at<P>(small + v, 1)));
    }

    // One step of these channels.
    template <typename P, bool Whole>
    SF_INLINE void channels(int64_t v, const step_rows &at_t, int64_t left) const {
        const T *const u = at_t.u, *const z = at_t.z, *const B = at_t.B, *const C = at_t.C;
        T *const out = at_t.out;
        __builtin_prefetch(u + v * W + at_t.ahead_u);
        if (!streaming) __builtin_prefetch(out + v * W + at_t.ahead_out, 1);
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
        if (Walk::gated && gated) {
            const P gate = read<P, Whole>(z + v * W, left);
            y = y * (gate * sigmoid(gate));
        }
        if (at_t.adds) y = y + read<P, Whole>(out + v * W, left);
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

    static void run(const sf_scan &s, const block<T> &k, const Walk &walk, int64_t begin, int64_t end) {
        const forward_steps steps(s, k);
        const rows<T> u(s.u, k.batch, k.first), delta(s.delta, k.batch, k.first), z(s.z, k.batch, k.first);
        const rows<T> B(s.B, k.batch, k.group * s.states), C(s.C, k.batch, k.group * s.states);
        const int64_t whole = k.width / W, left = k.width - whole * W, chunk = s.chunk;
        const bool kept = s.kept;
        T *const out = (T *)s.out + k.batch * s.length * walk.out_row + k.first;
        for (int64_t t = begin; t < end; ++t) {
            if (kept && t % chunk == 0) k.keep(s, t / chunk);
            // Two steps on. Threads walk different columns of the same rows, and the CPU's own prefetcher does not
            // follow from row to row: fetching by hand took 15 to 30 % off at one state (2 threads).
            const int64_t row = walk.row(t), ahead = walk.row_ahead(t) - row;
            const step_rows at_t{u.at(row), z.at(row), B.at(row), C.at(row), out + row * walk.out_row,
                                 ahead * u.stride, ahead * walk.out_row, walk.adds};
            const T *const delta_t = delta.at(row);
            const int64_t ahead_delta = ahead * delta.stride;
            int64_t v = 0;
            for (; v + 2 <= whole; v += 2) steps.template step_sizes<twin<V>, true>(v, delta_t, ahead_delta, 0);
            if (v < whole) steps.template step_sizes<V, true>(v++, delta_t, ahead_delta, 0);
            if (left) steps.template step_sizes<V, false>(v, delta_t, ahead_delta, left);
            if (Decaying || steps.soft) {
                for (v = 0; v + 2 <= k.vectors; v += 2) steps.template soften<twin<V>>(v);
                if (v < k.vectors) steps.template soften<V>(v);
            }
            v = 0;
            for (; v + 2 <= whole; v += 2) steps.template channels<twin<V>, true>(v, at_t, 0);
            if (v < whole) steps.template channels<V, true>(v++, at_t, 0);
            if (left) steps.template channels<V, false>(v, at_t, left);
        }
    }
};

template <typename T, int Fixed, bool ConstantB, bool ConstantC, class Walk>
void run_steps(const sf_scan &s, const block<T> &k, const Walk &walk, int64_t begin, int64_t end) {
    if (s.softplus && k.decaying)
        forward_steps<T, Walk, Fixed, ConstantB, ConstantC, true>::run(s, k, walk, begin, end);
    else
        forward_steps<T, Walk, Fixed, ConstantB, ConstantC, false>::run(s, k, walk, begin, end);
}

// B and C vary in time.
template <typename T, class Walk>
void run_varying(const sf_scan &s, const block<T> &k, const Walk &walk, int64_t begin, int64_t end) {
    switch (s.states) {
        case 1: return run_steps<T, 1, false, false>(s, k, walk, begin, end);
        case 4: return run_steps<T, 4, false, false>(s, k, walk, begin, end);
        case 8: return run_steps<T, 8, false, false>(s, k, walk, begin, end);
        case 16: return run_steps<T, 16, false, false>(s, k, walk, begin, end);
        default: return run_steps<T, 0, false, false>(s, k, walk, begin, end);
    }
}

}  // namespace
}  // namespace SF_ISA

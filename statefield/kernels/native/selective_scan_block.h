// A block: some neighbouring channels of one sequence, their parameters and states as vectors, a lane a channel.
#pragma once
#include "selective_scan.h"
#include "simd.h"

namespace SF_ISA {

// How the vectors of all sequences and groups are cut into tasks.
struct blocking {
    int64_t per_sequence, tasks, longest, vectors;

    // `sequences` is batch * groups, `vectors` the vectors of one group's channels, at most `most` of them in a block.
    blocking(int64_t sequences, int64_t vectors, int64_t most, int64_t threads) : vectors(vectors) {
        per_sequence = (vectors + most - 1) / most;
        // Few tasks have to share out evenly over the threads; many do anyway.
        while (sequences * per_sequence < 8 * threads && (sequences * per_sequence) % threads != 0 &&
               per_sequence < vectors)
            ++per_sequence;
        longest = (vectors + per_sequence - 1) / per_sequence;
        tasks = sequences * per_sequence;
    }
    int64_t first_vector(int64_t part) const { return part * vectors / per_sequence; }
};

// Rows of a strided [B, L, ...] tensor of one batch entry, from a column on. Null stays null.
template <typename T>
struct rows {
    const T *base;
    int64_t stride;
    rows(const sf_strided &x, int64_t batch, int64_t column)
        : base(x.data ? (const T *)x.data + batch * x.batch_stride + column : nullptr), stride(x.row_stride) {}
    SF_INLINE const T *at(int64_t t) const { return base ? base + t * stride : nullptr; }
};

// Which row of its tensors a sequence has at a step; whether results are stored or added, may be stored past the
// caches, may be gated. In order: row t at step t.
struct in_order {
    static constexpr bool adds = false, streams = true, gated = true;
    const int64_t out_row, delta_row, weights_row;  // from row to row of out (or grad_u), grad_delta, grad_B: elements

    explicit in_order(const sf_scan &s)
        : out_row(s.channels), delta_row(s.channels), weights_row(s.groups * s.states) {}
    SF_INLINE int64_t row(int64_t t) const { return t; }
    SF_INLINE int64_t row_ahead(int64_t t) const { return t + 2; }
};
// Along a route: step t is at token order[t], and where another route has been before, results are added.
struct along_route {
    static constexpr bool streams = false, gated = false;  // the next route reads what this one has written
    const int64_t *order;
    const int64_t last, out_row, delta_row, weights_row;
    const bool adds;

    SF_INLINE int64_t row(int64_t t) const { return order[t]; }
    SF_INLINE int64_t row_ahead(int64_t t) const { return order[t + 2 < last ? t + 2 : last]; }
};

template <typename T>
struct block {
    using V = vec<T>;
    static constexpr int W = lanes<T>::count;

    int64_t batch, group;
    int64_t first, width, vectors;  // channels [first, first + width)
    V *state, *A2, *B, *C;          // [vectors][N]; A2 is A log2(e); B and C where constant in time
    V *D, *bias;                    // [vectors]
    V *dt, *small;                  // [vectors] of the step at hand: dt, and exp(-|delta + bias|)
    bool decaying;                  // no entry of A is positive (or NaN)

    static size_t bytes(const sf_scan &s, int64_t vectors) {
        const int64_t tables = 2 + (s.b_constant != 0) + (s.c_constant != 0);
        return (size_t)(vectors * (tables * s.states + 4)) * sizeof(V);
    }

    block(const sf_scan &s, int64_t batch, int64_t group, int64_t first_vector, int64_t end_vector, void *memory)
        : batch(batch), group(group) {
        const int64_t share = s.channels / s.groups;
        const int64_t begin = first_vector * W, end = end_vector * W < share ? end_vector * W : share;
        first = group * share + begin;
        width = end - begin;
        vectors = end_vector - first_vector;
        const int64_t N = s.states;
        state = (V *)memory;
        A2 = state + vectors * N;
        D = A2 + vectors * N;
        bias = D + vectors;
        dt = bias + vectors;
        small = dt + vectors;
        B = small + vectors;
        C = B + (s.b_constant ? vectors * N : 0);
        const T *A = (const T *)s.A + first * N;
        gather(A2, A, N);
        decaying = true;
        for (int64_t i = 0; i < width * N; ++i) decaying &= A[i] <= 0;
        for (int64_t i = 0; i < vectors * N; ++i) A2[i] *= (T)LOG2E;
        if (s.b_constant) gather(B, (const T *)s.B.data + first * N, N);
        if (s.c_constant) gather(C, (const T *)s.C.data + first * N, N);
        gather(D, s.D ? (const T *)s.D + first : nullptr, 1);
        gather(bias, s.delta_bias ? (const T *)s.delta_bias + first : nullptr, 1);
    }
    block(const sf_scan &s, const blocking &cut, int64_t task, void *memory)
        : block(s, task / cut.per_sequence / s.groups, task / cut.per_sequence % s.groups,
                cut.first_vector(task % cut.per_sequence), cut.first_vector(task % cut.per_sequence + 1), memory) {}

    // table[v][n] = rows[channel][n]; channels beyond the width, and all of them when there is no table, are zero.
    void gather(V *table, const T *from, int64_t N) const {
        memset((void *)table, 0, (size_t)(vectors * N) * sizeof(V));
        if (!from) return;
        for (int64_t d = 0; d < width; ++d)
            for (int64_t n = 0; n < N; ++n) table[d / W * N + n][d % W] = from[d * N + n];
    }
    void scatter(T *to, const V *table, int64_t N) const {
        for (int64_t d = 0; d < width; ++d)
            for (int64_t n = 0; n < N; ++n) to[d * N + n] = table[d / W * N + n][d % W];
    }

    void begin(const sf_scan &s, const T *initial) {
        gather(state, initial ? initial + (batch * s.channels + first) * s.states : nullptr, s.states);
    }
    void finish(T *last, const sf_scan &s) const { scatter(last + (batch * s.channels + first) * s.states, state, s.states); }

    // Row n of kept chunk `chunk`, at this block's first channel.
    T *kept_row(const sf_scan &s, int64_t chunk, int64_t n) const {
        const int64_t chunks = (s.length + s.chunk - 1) / s.chunk;
        return (T *)s.kept + ((batch * chunks + chunk) * s.states + n) * s.channels + first;
    }
    void keep(const sf_scan &s, int64_t chunk) const {
        for (int64_t n = 0; n < s.states; ++n) {
            T *row = kept_row(s, chunk, n);
            for (int64_t v = 0; v < vectors; ++v) {
                const int64_t left = width - v * W;
                if (left >= W)
                    store(row + v * W, state[v * s.states + n]);
                else
                    store_part(row + v * W, state[v * s.states + n], left);
            }
        }
    }
};

}  // namespace SF_ISA

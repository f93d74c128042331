// The steps of the selective scan backward: what selective_scan_backward.cpp and routed_scan_backward.cpp share. A block
// is walked from its last chunk to its first; the states of a chunk are computed again from the state kept before it.
//
// With a_t = exp(dt_t A), h_t = a_t h_{t-1} + dt_t x_t B_t, y_t = sum_n C_t h_t + D x_t, and g_t the gradient of h_t:
//     g_t = C_t dy_t + a_{t+1} g_{t+1}            dC_t = sum_d dy_t h_t        dB_t = sum_d g_t dt_t x_t
//     d(dt x)_t = sum_n g_t B_t                   dA = sum_t (g_t h_{t-1} a_t) dt_t
//     d(dt)_t = x_t d(dt x)_t + sum_n (g_t h_{t-1} a_t) A
// Sums over channels are taken in the order of the blocks, sums over time from the end: the same on every run.
#pragma once
#include "selective_scan_block.h"

namespace SF_ISA {
namespace {

// Working memory of a task for one block and one chunk; [v][t] are `pitch` vectors for each vector of channels.
template <typename T>
struct chunk_tables {
    using V = vec<T>;
    int64_t pitch;             // two more than a chunk: a power of two would crowd few sets of the first-level cache
    V *dt, *dtx, *dy;          // [v][t] step size, step size times input, gradient of y before the gate
    V *slope;                  // [v][t] of the softplus: d(dt) / d(delta)
    V *grad_dt, *grad_dtx;     // [v][t] sums over the states
    V *y;                      // [v][t] y before the gate; only where there is one
    V *decay, *h;              // [t], [t + 1] of the vector and state at hand
    V *sum_b, *sum_c;          // [t] of the state at hand, lanes still apart
    T *B, *C;                  // [n][t] of the chunk, where they vary in time
    V *carry, *grad_A;         // [v][n] gradient that flows to the chunk before; sum over time
    V *grad_b, *grad_c;        // [v][n] where B, C are constant in time
    V *grad_D, *grad_bias;     // [v]

    static int64_t count(const sf_scan &s, int64_t vectors) {
        return vectors * (6 + (s.z.data != nullptr)) * (s.chunk + 2) + 4 * s.chunk + 1 + vectors * (4 * s.states + 2) +
               2 * weights(s);
    }
    static int64_t weights(const sf_scan &s) { return (s.states * s.chunk + lanes<T>::count - 1) / lanes<T>::count; }
    chunk_tables(const sf_scan &s, int64_t vectors, V *memory) : pitch(s.chunk + 2) {
        const int64_t table = vectors * pitch, small = vectors * s.states;
        auto take = [&memory](int64_t size) {
            V *const mine = memory;
            memory += size;
            return mine;
        };
        dt = take(table), dtx = take(table), dy = take(table), slope = take(table);
        grad_dt = take(table), grad_dtx = take(table);
        y = take(s.z.data ? table : 0);
        decay = take(s.chunk), h = take(s.chunk + 1), sum_b = take(s.chunk), sum_c = take(s.chunk);
        carry = take(small), grad_A = take(small), grad_b = take(small), grad_c = take(small);
        grad_D = take(vectors), grad_bias = take(vectors);
        B = (T *)take(weights(s)), C = (T *)take(weights(s));
    }
};

template <typename T, class Walk, bool ConstantB, bool ConstantC, bool Decaying>
struct backward_steps {
    static constexpr int W = lanes<T>::count;
    using V = vec<T>;

    const sf_scan &s;
    const block<T> &k;
    const chunk_tables<T> &m;
    const Walk &walk;
    T *const grad_B, *const grad_C;  // this slot's rows of this sequence and group, [L, G, N] from group g on
    const bool first_block;          // of the slot: its sums are stored, those of the others added

    static SF_INLINE V read(const T *from, int64_t left) { return left >= W ? load(from) : load_part(from, left); }
    static SF_INLINE void write(T *to, V x, int64_t left) {
        if (left >= W)
            store(to, x);
        else
            store_part(to, x, left);
    }

    // What `prepare` will read in the chunk before, and what `conclude` will write in this one: threads walk different
    // columns of the same rows, and along a route rows lie anywhere, so the CPU's own prefetcher sees none of it coming.
    // Took 20 to 30 % off the routed scan at one state.
    SF_INLINE void fetch_ahead(int64_t row, int64_t next, const rows<T> &u, const rows<T> &delta,
                               const rows<T> &grad_out) const {
        const int64_t place = k.batch * s.length + row;
        const char *const grad_u = (const char *)((T *)s.grad_u + place * walk.out_row + k.first);
        const char *const grad_delta = (const char *)((T *)s.grad_delta + place * walk.delta_row + k.first);
        const char *const x = (const char *)u.at(next), *const step = (const char *)delta.at(next);
        const char *const dy = (const char *)grad_out.at(next);
        for (int64_t byte = 0; byte < k.width * (int64_t)sizeof(T); byte += 64) {
            __builtin_prefetch(grad_u + byte, 1);
            __builtin_prefetch(grad_delta + byte, 1);
            __builtin_prefetch(x + byte);
            __builtin_prefetch(step + byte);
            __builtin_prefetch(dy + byte);
        }
    }

    // Fills dt, dtx, dy, the slopes, B and C for the steps [t0, t0 + steps).
    void prepare(int64_t t0, int64_t steps) const {
        const rows<T> u(s.u, k.batch, k.first), delta(s.delta, k.batch, k.first), z(s.z, k.batch, k.first);
        const rows<T> grad_out(s.grad_out, k.batch, k.first);
        const rows<T> B(s.B, k.batch, k.group * s.states), C(s.C, k.batch, k.group * s.states);
        for (int64_t t = 0; t < steps; ++t) {
            const int64_t row = walk.row(t0 + t);
            for (int64_t n = 0; n < s.states; ++n) {
                if (!ConstantB) m.B[n * s.chunk + t] = B.at(row)[n];
                if (!ConstantC) m.C[n * s.chunk + t] = C.at(row)[n];
            }
            const T *u_t = u.at(row), *delta_t = delta.at(row), *dy_t = grad_out.at(row);
            fetch_ahead(row, walk.row(t0 + t < s.chunk ? t0 + t : t0 + t - s.chunk), u, delta, grad_out);
            // As in the forward: two loops with short chains of dependent operations.
            for (int64_t v = 0; v < k.vectors; ++v) {
                const int64_t place = v * m.pitch + t;
                const V step = read(delta_t + v * W, k.width - v * W) + k.bias[v];
                m.dt[place] = step;
                if (s.softplus) m.slope[place] = softplus_exp(step);
            }
            for (int64_t v = 0; v < k.vectors; ++v) {
                const int64_t place = v * m.pitch + t, left = k.width - v * W;
                V step = m.dt[place];
                if (s.softplus) {
                    const V small = m.slope[place];
                    m.slope[place] = softplus_slope(step, small);
                    step = softplus_from(step, small);
                }
                const V x = read(u_t + v * W, left);
                V dy = read(dy_t + v * W, left);
                m.dt[place] = step;
                m.dtx[place] = step * x;
                if (s.z.data) {
                    const V gate = read(z.at(row) + v * W, left);
                    dy *= gate * sigmoid(gate);
                    m.y[place] = k.D[v] * x;
                }
                m.dy[place] = dy;
            }
        }
    }

    // State n of vector v through the chunk, forwards and back. The first state's sums are stored, those of the others
    // added.
    template <bool Gated, bool First>
    SF_INLINE void state(int64_t v, int64_t n, int64_t steps) const {
        const int64_t place = v * s.states + n;
        const T *const B = m.B + n * s.chunk, *const C = m.C + n * s.chunk;
        const V A2 = k.A2[place], A = A2 * splat((T)(1 / LOG2E));
        const V *dt = m.dt + v * m.pitch, *dtx = m.dtx + v * m.pitch, *dy = m.dy + v * m.pitch;
        V *y = m.y + v * m.pitch;
        V *const decay = m.decay, *const h = m.h;
        const V constant_b = ConstantB ? k.B[place] : V{}, constant_c = ConstantC ? k.C[place] : V{};

        V now = h[0];
        for (int64_t t = 0; t < steps; ++t) {
            const V a = Decaying ? exp2_nonpositive(dt[t] * A2) : exp2(dt[t] * A2);
            decay[t] = a;
            now = a * now + dtx[t] * (ConstantB ? constant_b : splat(B[t]));
            h[t + 1] = now;
            if (Gated) y[t] += now * (ConstantC ? constant_c : splat(C[t]));
        }

        V g = m.carry[place], sum_A{}, sum_b{}, sum_c{};
        V *grad_dt = m.grad_dt + v * m.pitch, *grad_dtx = m.grad_dtx + v * m.pitch;
        for (int64_t t = steps - 1; t >= 0; --t) {
            g += dy[t] * (ConstantC ? constant_c : splat(C[t]));
            if (ConstantC)
                sum_c += dy[t] * h[t + 1];
            else
                m.sum_c[t] += dy[t] * h[t + 1];
            if (ConstantB)
                sum_b += g * dtx[t];
            else
                m.sum_b[t] += g * dtx[t];
            const V through_x = g * (ConstantB ? constant_b : splat(B[t]));
            grad_dtx[t] = First ? through_x : grad_dtx[t] + through_x;
            g *= decay[t];
            const V through = g * h[t];
            sum_A += through * dt[t];
            grad_dt[t] = First ? through * A : grad_dt[t] + through * A;
        }
        m.carry[place] = g;
        m.grad_A[place] += sum_A;
        if (ConstantB) m.grad_b[place] += sum_b;
        if (ConstantC) m.grad_c[place] += sum_c;
    }

    template <bool Gated>
    void states(int64_t chunk, int64_t t0, int64_t steps) const {
        for (int64_t n = 0; n < s.states; ++n) {
            for (int64_t t = 0; t < steps; ++t) m.sum_b[t] = m.sum_c[t] = V{};
            const T *kept = k.kept_row(s, chunk, n);
            for (int64_t v = 0; v < k.vectors; ++v) {
                m.h[0] = read(kept + v * W, k.width - v * W);
                if (n == 0)
                    state<Gated, true>(v, n, steps);
                else
                    state<Gated, false>(v, n, steps);
            }
            for (int64_t t = 0; t < steps; ++t) {
                const int64_t place = walk.row(t0 + t) * walk.weights_row + n;
                if (!ConstantB) add(grad_B + place, sum_lanes<T>(m.sum_b[t]));
                if (!ConstantC) add(grad_C + place, sum_lanes<T>(m.sum_c[t]));
            }
        }
    }
    SF_INLINE void add(T *to, T sum) const { *to = first_block ? sum : *to + sum; }

    // The gradients of u, delta and z, and the sums for D and the bias.
    void conclude(int64_t t0, int64_t steps) const {
        const rows<T> u(s.u, k.batch, k.first), z(s.z, k.batch, k.first), grad_out(s.grad_out, k.batch, k.first);
        for (int64_t t = 0; t < steps; ++t) {
            const int64_t row = walk.row(t0 + t), place_in_batch = k.batch * s.length + row;
            const T *u_t = u.at(row);
            T *const grad_u = (T *)s.grad_u + place_in_batch * walk.out_row + k.first;
            T *const grad_delta = (T *)s.grad_delta + place_in_batch * walk.delta_row + k.first;
            for (int64_t v = 0; v < k.vectors; ++v) {
                const int64_t place = v * m.pitch + t, left = k.width - v * W;
                const V x = read(u_t + v * W, left), dy = m.dy[place];
                V dx = m.grad_dtx[place] * m.dt[place] + k.D[v] * dy;
                if (walk.adds) dx += read(grad_u + v * W, left);
                write(grad_u + v * W, dx, left);
                V slope = m.grad_dt[place] + m.grad_dtx[place] * x;
                if (s.softplus) slope *= m.slope[place];
                write(grad_delta + v * W, slope, left);
                m.grad_bias[v] += slope;
                m.grad_D[v] += dy * x;
                if (s.z.data) {
                    const V gate = read(z.at(row) + v * W, left), open = sigmoid(gate), one = splat<T>(1);
                    const V dz = read(grad_out.at(row) + v * W, left) * m.y[place] * open * (one + gate * (one - open));
                    write((T *)s.grad_z + place_in_batch * s.channels + k.first + v * W, dz, left);
                }
            }
        }
    }

    // sigmoid(x) from exp(-|x|). Above 20 the softplus is x itself; in float32 the sigmoid is 1 there anyway.
    static SF_INLINE vf softplus_slope(vf x, vf small) {
        const vf one = splat(1.0f), rest = one / (one + small);
        return x < 0 ? small * rest : rest;
    }
    static SF_INLINE vd softplus_slope(vd x, vd small) {
        const vd one = splat(1.0), rest = one / (one + small);
        return x > 20 ? one : x < 0 ? small * rest : rest;
    }

    void run() const {
        const int64_t last = (s.length - 1) / s.chunk;
        for (int64_t chunk = last; chunk >= 0; --chunk) {
            const int64_t t0 = chunk * s.chunk, steps = s.length - t0 < s.chunk ? s.length - t0 : s.chunk;
            prepare(t0, steps);
            if (s.z.data)
                states<true>(chunk, t0, steps);
            else
                states<false>(chunk, t0, steps);
            conclude(t0, steps);
        }
    }
};

template <typename T, bool ConstantB, bool ConstantC, class Walk>
void run_block(const sf_scan &s, const block<T> &k, const chunk_tables<T> &m, const Walk &walk, T *grad_B, T *grad_C,
               bool first_block) {
    if (s.softplus && k.decaying)
        backward_steps<T, Walk, ConstantB, ConstantC, true>{s, k, m, walk, grad_B, grad_C, first_block}.run();
    else
        backward_steps<T, Walk, ConstantB, ConstantC, false>{s, k, m, walk, grad_B, grad_C, first_block}.run();
}

// How many vectors a block has at most, so that its tables stay in the second-level cache; and what a block needs.
inline int64_t most_vectors(const sf_scan &s) {
    const int64_t most = 131072 / (6 * s.chunk * SF_VECTOR_BYTES);
    return most < 1 ? 1 : most;
}
// The vectors [begin, end) in as few blocks as possible, and equal ones: `run(first, end, is_first)` for each.
template <class Run>
void for_blocks(const sf_scan &s, int64_t begin, int64_t end, const Run &run) {
    const int64_t count = end - begin, most = most_vectors(s), parts = (count + most - 1) / most;
    for (int64_t part = 0; part < parts; ++part)
        run(begin + part * count / parts, begin + (part + 1) * count / parts, part == 0);
}
template <typename T>
size_t working_bytes(const sf_scan &s) {
    const int64_t most = most_vectors(s);
    return block<T>::bytes(s, most) + (size_t)chunk_tables<T>::count(s, most) * sizeof(vec<T>);
}

// The vectors [begin, end) of the channels of a group. `Constants`: B or C may be constant in time.
template <typename T, bool Constants, class Walk>
void run_vectors(const sf_scan &s, const Walk &walk, int64_t batch, int64_t group, int64_t begin, int64_t end,
                 T *grad_B, T *grad_C, bool first_block, void *memory) {
    using V = vec<T>;
    const int64_t N = s.states;
    const block<T> k(s, batch, group, begin, end, memory);
    const chunk_tables<T> m(s, k.vectors, (V *)memory + block<T>::bytes(s, k.vectors) / sizeof(V));
    const int64_t of_channels = (batch * s.channels + k.first) * N;
    k.gather(m.carry, s.grad_last ? (const T *)s.grad_last + of_channels : nullptr, N);
    k.gather(m.grad_A, nullptr, N), k.gather(m.grad_b, nullptr, N), k.gather(m.grad_c, nullptr, N);
    k.gather(m.grad_D, nullptr, 1), k.gather(m.grad_bias, nullptr, 1);

    if (Constants && s.b_constant && s.c_constant)
        run_block<T, Constants, Constants>(s, k, m, walk, grad_B, grad_C, first_block);
    else if (Constants && s.b_constant)
        run_block<T, Constants, false>(s, k, m, walk, grad_B, grad_C, first_block);
    else if (Constants && s.c_constant)
        run_block<T, false, Constants>(s, k, m, walk, grad_B, grad_C, first_block);
    else
        run_block<T, false, false>(s, k, m, walk, grad_B, grad_C, first_block);

    k.scatter((T *)s.grad_A + of_channels, m.grad_A, N);
    if (s.b_constant) k.scatter((T *)s.grad_B + of_channels, m.grad_b, N);
    if (s.c_constant) k.scatter((T *)s.grad_C + of_channels, m.grad_c, N);
    if (s.grad_initial) k.scatter((T *)s.grad_initial + of_channels, m.carry, N);
    if (s.grad_D) k.scatter((T *)s.grad_D + batch * s.channels + k.first, m.grad_D, 1);
    if (s.grad_bias) k.scatter((T *)s.grad_bias + batch * s.channels + k.first, m.grad_bias, 1);
}

}  // namespace
}  // namespace SF_ISA

// The backward of several states: state by state over tables of a chunk, [v][t], so that a loop over time has its state
// and its sums in registers.
#pragma once
#include "selective_scan_backward_block.h"

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

    static int64_t count(const sf_scan &s, int64_t vectors) {
        return vectors * (6 + (s.z.data != nullptr)) * (s.chunk + 2) + 4 * s.chunk + 1 + 2 * weights(s);
    }
    static int64_t weights(const sf_scan &s) { return (s.states * s.chunk + lanes<T>::count - 1) / lanes<T>::count; }
    chunk_tables(const sf_scan &s, int64_t vectors, V *memory) : pitch(s.chunk + 2) {
        const int64_t table = vectors * pitch;
        auto take = [&memory](int64_t size) {
            V *const mine = memory;
            memory += size;
            return mine;
        };
        dt = take(table), dtx = take(table), dy = take(table), slope = take(table);
        grad_dt = take(table), grad_dtx = take(table);
        y = take(s.z.data ? table : 0);
        decay = take(s.chunk), h = take(s.chunk + 1), sum_b = take(s.chunk), sum_c = take(s.chunk);
        B = (T *)take(weights(s)), C = (T *)take(weights(s));
    }
};

template <typename T, class Walk, bool ConstantB, bool ConstantC, bool Decaying>
struct many_states_steps {
    static constexpr int W = lanes<T>::count;
    using V = vec<T>;

    const sf_scan &s;
    const block<T> &k;
    const block_sums<T> &sums;
    const chunk_tables<T> &m;
    const Walk &walk;
    const weight_gradients<T> &grad;

    // What `prepare` will read in the chunk before, and what `conclude` will write in this one: threads walk different
    // columns of the same rows, and along a route rows lie anywhere, so the CPU's own prefetcher sees none of it coming.
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

        V g = sums.carry[place], sum_A{}, sum_b{}, sum_c{};
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
        sums.carry[place] = g;
        sums.grad_A[place] += sum_A;
        if (ConstantB) sums.grad_b[place] += sum_b;
        if (ConstantC) sums.grad_c[place] += sum_c;
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
                if (!ConstantB) grad.add(grad.B + place, sum_lanes<T>(m.sum_b[t]));
                if (!ConstantC) grad.add(grad.C + place, sum_lanes<T>(m.sum_c[t]));
            }
        }
    }

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
                sums.grad_bias[v] += slope;
                sums.grad_D[v] += dy * x;
                if (s.z.data) {
                    const V gate = read(z.at(row) + v * W, left), open = sigmoid(gate), one = splat<T>(1);
                    const V dz = read(grad_out.at(row) + v * W, left) * m.y[place] * open * (one + gate * (one - open));
                    write((T *)s.grad_z + place_in_batch * s.channels + k.first + v * W, dz, left);
                }
            }
        }
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

}  // namespace
}  // namespace SF_ISA

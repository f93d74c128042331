// The backward of one state (VMamba's and Spatial-Mamba's): it waits for memory, not for arithmetic. Tables lie in the
// order of the tensors, [t][v], and two sweeps over a chunk touch every row once each: the states forwards, all
// gradients back. The sums over channels of a step stay in registers.
#pragma once
#include "selective_scan_backward_block.h"

namespace SF_ISA {
namespace {

// Working memory of a task for one block and one chunk.
template <typename T>
struct one_state_tables {
    using V = vec<T>;
    V *dt, *slope, *decay;  // [t][v] step size, d(dt) / d(delta), a_t
    V *h;                   // [t + 1][v] state before and after each step

    static int64_t count(const sf_scan &s, int64_t vectors) { return vectors * (4 * s.chunk + 1); }
    one_state_tables(const sf_scan &s, int64_t vectors, V *memory)
        : dt(memory), slope(dt + vectors * s.chunk), decay(slope + vectors * s.chunk), h(decay + vectors * s.chunk) {}
};

template <typename T, class Walk, bool ConstantB, bool ConstantC, bool Decaying>
struct one_state_steps {
    static constexpr int W = lanes<T>::count;
    using V = vec<T>;

    const sf_scan &s;
    const block<T> &k;
    const block_sums<T> &sums;
    const one_state_tables<T> &m;
    const Walk &walk;
    const weight_gradients<T> &grad;
    const rows<T> u, delta, z, grad_out, B, C;

    one_state_steps(const sf_scan &s, const block<T> &k, const block_sums<T> &sums, const one_state_tables<T> &m,
                    const Walk &walk, const weight_gradients<T> &grad)
        : s(s), k(k), sums(sums), m(m), walk(walk), grad(grad), u(s.u, k.batch, k.first),
          delta(s.delta, k.batch, k.first), z(s.z, k.batch, k.first), grad_out(s.grad_out, k.batch, k.first),
          B(s.B, k.batch, k.group), C(s.C, k.batch, k.group) {}

    // Fills the tables for the steps [t0, t0 + steps).
    void forwards(int64_t t0, int64_t steps) const {
        const int64_t whole = k.width / W, vectors = k.vectors;
        const T *const kept = k.kept_row(s, t0 / s.chunk, 0);
        for (int64_t v = 0; v < vectors; ++v) m.h[v] = read(kept + v * W, k.width - v * W);
        for (int64_t t = 0; t < steps; ++t) {
            const int64_t row = walk.row(t0 + t);
            const T *const delta_t = delta.at(row), *const u_t = u.at(row);
            const T *const delta_ahead = delta.at(walk.row_ahead(t0 + t)), *const u_ahead = u.at(walk.row_ahead(t0 + t));
            V *const dt = m.dt + t * vectors, *const slope = m.slope + t * vectors;
            // As in the forward: loops with short chains of dependent operations.
            const auto step_size = [&](int64_t v, V step) {
                step += k.bias[v];
                dt[v] = step;
                if (Decaying || s.softplus) slope[v] = softplus_exp(step);
            };
            for (int64_t v = 0; v < whole; ++v) {
                __builtin_prefetch(delta_ahead + v * W);
                step_size(v, load(delta_t + v * W));
            }
            if (whole < vectors) step_size(whole, load_part(delta_t + whole * W, k.width - whole * W));
            if (Decaying || s.softplus)
                for (int64_t v = 0; v < vectors; ++v) {
                    const V step = dt[v], small = slope[v];
                    slope[v] = softplus_slope(step, small);
                    dt[v] = softplus_from(step, small);
                }
            V *const decay = m.decay + t * vectors;
            const V *const before = m.h + t * vectors;
            V *const after = m.h + (t + 1) * vectors;
            const T b = ConstantB ? 0 : B.at(row)[0];
            const auto state = [&](int64_t v, V x) {
                const V exponent = dt[v] * k.A2[v], a = Decaying ? exp2_nonpositive(exponent) : exp2(exponent);
                decay[v] = a;
                after[v] = a * before[v] + dt[v] * x * (ConstantB ? k.B[v] : splat(b));
            };
            for (int64_t v = 0; v < whole; ++v) {
                __builtin_prefetch(u_ahead + v * W);
                state(v, load(u_t + v * W));
            }
            if (whole < vectors) state(whole, load_part(u_t + whole * W, k.width - whole * W));
        }
    }

    // All gradients, from the last step of the chunk to its first.
    template <bool Gated>
    void backwards(int64_t t0, int64_t steps) const {
        const int64_t whole = k.width / W, vectors = k.vectors;
        const V log_2 = splat((T)(1 / LOG2E));
        for (int64_t t = steps - 1; t >= 0; --t) {
            const int64_t row = walk.row(t0 + t), place = k.batch * s.length + row;
            const T *const u_t = u.at(row), *const dy_t = grad_out.at(row), *const z_t = z.at(row);
            const T b = ConstantB ? 0 : B.at(row)[0], c = ConstantC ? 0 : C.at(row)[0];
            T *const grad_u = (T *)s.grad_u + place * walk.out_row + k.first;
            T *const grad_delta = (T *)s.grad_delta + place * walk.delta_row + k.first;
            T *const grad_z = Gated ? (T *)s.grad_z + place * s.channels + k.first : nullptr;
            const int64_t earlier = t0 + t >= 2 ? walk.row(t0 + t - 2) - row : 0;
            const int64_t ahead_dy = earlier * grad_out.stride, ahead_u = earlier * walk.out_row,
                          ahead_delta = earlier * walk.delta_row;
            V sum_b{}, sum_c{};
            const V *const dt = m.dt + t * vectors, *const slope = m.slope + t * vectors;
            const V *const decay = m.decay + t * vectors, *const before = m.h + t * vectors;
            const V *const after = before + vectors;
            const auto channels = [&](int64_t v, int64_t left) {
                const V x = read(u_t + v * W, left), step = dt[v], state = after[v];
                const V weight_b = ConstantB ? k.B[v] : splat(b), weight_c = ConstantC ? k.C[v] : splat(c);
                V dy = read(dy_t + v * W, left);
                if constexpr (Gated) {
                    const V gate = read(z_t + v * W, left), open = sigmoid(gate), one = splat<T>(1);
                    const V y = k.D[v] * x + state * weight_c;
                    write(grad_z + v * W, dy * y * open * (one + gate * (one - open)), left);
                    dy *= gate * open;
                }
                V g = sums.carry[v] + dy * weight_c;
                if constexpr (ConstantC)
                    sums.grad_c[v] += dy * state;
                else
                    sum_c += dy * state;
                if constexpr (ConstantB)
                    sums.grad_b[v] += g * step * x;
                else
                    sum_b += g * (step * x);
                const V through_x = g * weight_b;
                g *= decay[v];
                sums.carry[v] = g;
                const V through = g * before[v];
                sums.grad_A[v] += through * step;
                V dx = through_x * step + k.D[v] * dy;
                if (walk.adds) dx += read(grad_u + v * W, left);
                write(grad_u + v * W, dx, left);
                V to_step = through * (k.A2[v] * log_2) + through_x * x;
                if (Decaying || s.softplus) to_step *= slope[v];
                write(grad_delta + v * W, to_step, left);
                sums.grad_bias[v] += to_step;
                sums.grad_D[v] += dy * x;
            };
            for (int64_t v = 0; v < whole; ++v) {
                __builtin_prefetch(dy_t + v * W + ahead_dy);
                __builtin_prefetch(grad_u + v * W + ahead_u, 1);
                __builtin_prefetch(grad_delta + v * W + ahead_delta, 1);
                channels(v, W);
            }
            if (whole < vectors) channels(whole, k.width - whole * W);
            const int64_t weights = row * walk.weights_row;
            if (!ConstantB) grad.add(grad.B + weights, sum_lanes<T>(sum_b));
            if (!ConstantC) grad.add(grad.C + weights, sum_lanes<T>(sum_c));
        }
    }

    void run() const {
        for (int64_t t0 = (s.length - 1) / s.chunk * s.chunk; t0 >= 0; t0 -= s.chunk) {
            const int64_t steps = s.length - t0 < s.chunk ? s.length - t0 : s.chunk;
            forwards(t0, steps);
            if (s.z.data)
                backwards<true>(t0, steps);
            else
                backwards<false>(t0, steps);
        }
    }
};

}  // namespace
}  // namespace SF_ISA

// The structure-aware scan in one pass, backward. A task walks one line of channels of one image upwards. The states of a
// row are scanned again from the states before it, which the forward kept; they and g = C * grad stay in rings of packed
// rows. When the rows around row i are there, the fusion gives grad_h of row i, and the scan runs backwards through it:
//     lambda_t = grad_h_t + decay_{t+1} lambda_{t+1}
//     grad_B_t = lambda_t . dt_t u_t                        grad_decay_t = lambda_t h_{t-1},  decay = exp(dt A)
#include "fusion_gradients.h"
#include "scan_rows.h"

namespace SF_ISA {
namespace {

template <class T> struct BackwardScanTask {
    Scan<T> scan;
    Shape shape;
    const Taps &taps;
    GradientRings<T> rings;
    int64_t lines;
    const T *grad, *C, *kept, *D;       // D: lines
    T *grad_u, *grad_delta;
    T *tap_sums;                        // [B][lines][taps] lines
    T *D_sums, *bias_sums, *A_sums;     // [B][lines], [B][lines], [B][lines][N] lines
    T *B_sums, *C_sums;                 // [lines][B, H, W, N]

    // A thread's scratch behind the rings: dt and the decays of the rows from i - reach to i, and of row i the states
    // before it, grad_h, the gradients of dt and of dt * u, and the carry lambda * decay.
    int64_t row() const { return shape.width * kLine<T>; }
    int64_t step_rows() const { return taps.row_reach + 1; }
    int64_t elements() const {
        return (step_rows() + 2) * row() + (step_rows() + 1) * shape.states * row() +
               (shape.states + 1) * kLine<T>;
    }
    int64_t scratch_bytes() const { return rings.bytes() + elements() * (int64_t)sizeof(T); }

    struct Scratch {
        typename GradientRings<T>::Scratch rings;
        T *dt, *grad_dt, *grad_drive, *decays, *grad_h, *before, *carry;
    };
    Scratch scratch(char *memory) const {
        Scratch s;
        s.rings = rings.scratch(memory);
        s.dt = (T *)(memory + rings.bytes());
        s.grad_dt = s.dt + step_rows() * row();
        s.grad_drive = s.grad_dt + row();
        s.decays = s.grad_drive + row();
        s.grad_h = s.decays + step_rows() * shape.states * row();
        s.before = s.grad_h + shape.states * row();
        s.carry = s.before + kLine<T>;
        return s;
    }
    T *dt_row(const Scratch &s, int64_t i) const { return s.dt + i % step_rows() * row(); }
    T *decay_row(const Scratch &s, int64_t i, int64_t n) const {
        return s.decays + (i % step_rows() * shape.states + n) * row();
    }
    int64_t valid(int64_t line) const { return shape.channels - line * kLine<T>; }
    const T *state_before(int64_t b, int64_t i, int64_t n, int64_t line) const {
        return kept + ((b * shape.height + i) * shape.states + n) * shape.channels + line * kLine<T>;
    }
    T *line_sums(T *sums, int64_t b, int64_t line, int64_t width) const {
        return sums + (b * lines + line) * width * kLine<T>;
    }
    T *value_sums(T *sums, int64_t line, int64_t pixel, int64_t n) const {
        return sums + (line * shape.batch * shape.height * shape.width + pixel) * shape.states + n;
    }

    void run(int64_t task, char *memory) const {
        const Scratch s = scratch(memory);
        const int64_t line = task % lines, b = task / lines;
        memset(line_sums(tap_sums, b, line, taps.count), 0, (size_t)taps.count * kLineBytes);
        memset(line_sums(A_sums, b, line, shape.states), 0, (size_t)shape.states * kLineBytes);
        memset(line_sums(D_sums, b, line, 1), 0, kLineBytes);
        memset(line_sums(bias_sums, b, line, 1), 0, kLineBytes);
        memset(s.carry, 0, (size_t)shape.states * kLineBytes);
        int64_t next = shape.height - 1;
        for (int64_t i = shape.height - 1; i >= 0; --i) {
            for (; next >= greatest(i - taps.row_reach, 0); --next) prepare(b, next, line, s);
            fusion_gradients(b, i, line, s);
            memset(s.grad_dt, 0, (size_t)(2 * row()) * sizeof(T));  // and grad_drive behind it
            for (int64_t n = 0; n < shape.states; ++n) scan_backwards(b, i, line, n, s);
            finish_row(b, i, line, s);
        }
    }

    void prepare(int64_t b, int64_t i, int64_t line, const Scratch &s) const {
        const int64_t pixel = scan.pixel(b, i), slot = rings.around(i).slot;
        T *drive = s.grad_drive;  // free until row i's turn comes
        scan.steps(b, i, line, dt_row(s, i), drive);
        for (int64_t n = 0; n < shape.states; ++n) {
            vec<T> state[kVectors];
            load_line(state_before(b, i, n, line), valid(line), state);
            for (int v = 0; v < kVectors; ++v) store(s.before + v * lanes<T>::count, state[v]);
            T *h = rings.h_row(s.rings, slot, n);
            scan.states(b, i, line, n, dt_row(s, i), drive, s.before, rings.packed.interior(h), decay_row(s, i, n));
            rings.packed.pad(h);
            rings.packed_grad.pack(grad + pixel * shape.channels + line * kLine<T>, shape.channels, valid(line),
                                   C + pixel * shape.states + n, shape.states, rings.g_row(s.rings, slot, n));
        }
    }

    void fusion_gradients(int64_t b, int64_t i, int64_t line, const Scratch &s) const {
        const int64_t pixel = scan.pixel(b, i);
        for (int64_t n = 0; n < shape.states; ++n) {
            rings.gather_grad_h(line, i, n, s.rings, s.grad_h + n * row(), kLine<T>, kLine<T>);
            rings.read_taps(line, i, n, s.rings);
            for_tiles(0, shape.width,
                      ReadOut<T>{s.rings.taps, taps.count, grad + pixel * shape.channels + line * kLine<T>, shape.channels,
                                 valid(line), value_sums(C_sums, line, pixel, n), shape.states});
            rings.add_tap_sums(line_sums(tap_sums, b, line, taps.count), i, n, s.rings);
        }
    }

    void scan_backwards(int64_t b, int64_t i, int64_t line, int64_t n, const Scratch &s) const {
        constexpr int count = lanes<T>::count;
        const int64_t pixel = scan.pixel(b, i);
        const T *h = rings.packed.interior(rings.h_row(s.rings, rings.around(i).slot, n)), *grad_h = s.grad_h + n * row();
        const T *dt = dt_row(s, i), *decays = decay_row(s, i, n);
        const T *u = scan.u + pixel * shape.channels + line * kLine<T>;
        T *B_sum = value_sums(B_sums, line, pixel, n), *own_carry = s.carry + n * kLine<T>;
        vec<T> carry[kVectors], first[kVectors], a[kVectors], A_sum[kVectors];
        load_line(own_carry, kLine<T>, carry);
        load_line(state_before(b, i, n, line), valid(line), first);
        load_line(scan.A_lines + (line * shape.states + n) * kLine<T>, kLine<T>, a);
        for (int v = 0; v < kVectors; ++v) {
            a[v] *= (T)(1 / LOG2E);
            A_sum[v] = vec<T>{};
        }
        for (int64_t j = shape.width - 1; j >= 0; --j) {
            const T B = scan.B[(pixel + j) * shape.states + n];
            vec<T> x[kVectors], for_B = vec<T>{};
            load_line(u + j * shape.channels, valid(line), x);
            for (int v = 0; v < kVectors; ++v) {
                const int64_t at = j * kLine<T> + v * count;
                const vec<T> lambda = load(grad_h + at) + carry[v], step = load(dt + at);
                const vec<T> before = j > 0 ? load(h + at - kLine<T>) : first[v];
                carry[v] = lambda * load(decays + at);
                const vec<T> to_exponent = carry[v] * before;
                A_sum[v] += to_exponent * step;
                store(s.grad_dt + at, load(s.grad_dt + at) + to_exponent * a[v]);
                store(s.grad_drive + at, load(s.grad_drive + at) + lambda * B);
                for_B += lambda * (step * x[v]);
            }
            B_sum[j * shape.states] = sum_lanes<T>(for_B);
        }
        for (int v = 0; v < kVectors; ++v) store(own_carry + v * count, carry[v]);
        add_to_line(line_sums(A_sums, b, line, shape.states) + n * kLine<T>, A_sum);
    }

    // grad_u, grad_delta of row i and its shares of grad_D and grad_bias.
    void finish_row(int64_t b, int64_t i, int64_t line, const Scratch &s) const {
        constexpr int count = lanes<T>::count;
        const int64_t first = scan.pixel(b, i) * shape.channels + line * kLine<T>;
        const T *dt = dt_row(s, i);
        vec<T> D_line[kVectors], bias[kVectors], D_sum[kVectors], bias_sum[kVectors];
        load_line(D + line * kLine<T>, kLine<T>, D_line);
        load_line(scan.bias_lines + line * kLine<T>, kLine<T>, bias);
        for (int v = 0; v < kVectors; ++v) D_sum[v] = bias_sum[v] = vec<T>{};
        for (int64_t j = 0; j < shape.width; ++j) {
            const int64_t at = first + j * shape.channels;
            vec<T> x[kVectors], given[kVectors], raw[kVectors], to_u[kVectors], to_delta[kVectors];
            load_line(scan.u + at, valid(line), x);
            load_line(grad + at, valid(line), given);
            load_line(scan.delta + at, valid(line), raw);
            for (int v = 0; v < kVectors; ++v) {
                const int64_t place = j * kLine<T> + v * count;
                const vec<T> drive = load(s.grad_drive + place);
                to_u[v] = drive * load(dt + place) + given[v] * D_line[v];
                to_delta[v] = load(s.grad_dt + place) + drive * x[v];
                if (scan.with_softplus) to_delta[v] *= sigmoid(raw[v] + bias[v]);
                D_sum[v] += given[v] * x[v];
                bias_sum[v] += to_delta[v];
            }
            store_line(grad_u + at, valid(line), to_u);
            store_line(grad_delta + at, valid(line), to_delta);
        }
        add_to_line(line_sums(D_sums, b, line, 1), D_sum);
        add_to_line(line_sums(bias_sums, b, line, 1), bias_sum);
    }
};

template <class T>
int structure_aware_backward(const T *grad, const T *kept, const T *u, const T *delta, const T *A, const T *B, const T *C,
                             const T *D, const T *weight, const T *alpha, const T *bias, T *grad_u, T *grad_delta,
                             T *grad_A, T *grad_B, T *grad_C, T *grad_D, T *grad_weight, T *grad_alpha, T *grad_bias,
                             const int64_t *sizes, const int64_t *dilations, int64_t kernels, int64_t softplus,
                             int64_t threads) {
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    const Taps taps(dilations, kernels, shape.height, shape.width);
    const int64_t lines = (shape.channels + kLine<T> - 1) / kLine<T>, tasks = shape.batch * lines, N = shape.states;
    const int64_t values = shape.batch * shape.height * shape.width * N;
    aligned_buffer parameters((size_t)(lines * (taps.count + 2 + N)) * kLineBytes);
    aligned_buffer sums((size_t)(tasks * (taps.count + 2 + N)) * kLineBytes);
    aligned_buffer of_values((size_t)(2 * lines * values) * sizeof(T));
    aligned_buffer alpha_shares((size_t)(kernels * shape.channels) * sizeof(double));
    if (!taps.memory.data || !parameters.data || !sums.data || !of_values.data || !alpha_shares.data) return SF_NO_MEMORY;
    T *merged = (T *)parameters.data, *D_lines = merged + lines * taps.count * kLine<T>;
    T *bias_lines = D_lines + lines * kLine<T>, *A_lines = bias_lines + lines * kLine<T>;
    T *tap_sums = (T *)sums.data, *D_sums = tap_sums + tasks * taps.count * kLine<T>;
    T *bias_sums = D_sums + tasks * kLine<T>, *A_sums = bias_sums + tasks * kLine<T>;
    T *B_sums = (T *)of_values.data, *C_sums = B_sums + lines * values;
    double *shares = (double *)alpha_shares.data;
    pad_channels(D, shape.channels, lines, D_lines);
    pad_channels(bias, shape.channels, lines, bias_lines);
    Scan<T>::pack_A(A, shape, lines, A_lines);
    const Scan<T> scan{shape, u, delta, B, A_lines, bias_lines, softplus != 0};
    const GradientRings<T> rings{shape, taps, {shape.width, taps.column_reach}, {taps, shape.width}, merged};
    const BackwardScanTask<T> task{scan, shape, taps, rings, lines, grad, C, kept, D_lines, grad_u, grad_delta,
                                   tap_sums, D_sums, bias_sums, A_sums, B_sums, C_sums};
    const PartialSums<T> all_taps{tap_sums, shape.batch, lines, taps.count}, all_D{D_sums, shape.batch, lines, 1};
    const PartialSums<T> all_bias{bias_sums, shape.batch, lines, 1}, all_A{A_sums, shape.batch, lines, N};

    const int code = run_tasks(
        task, tasks, threads, taps, lines, weight, alpha, kernels, shape.channels, merged, [&] {
#pragma omp for schedule(static)
            for (int64_t e = 0; e < shape.channels; ++e) {
                channel_gradients(all_taps, taps, e, shape.channels, kernels, weight, alpha, grad_weight, shares);
                grad_D[e] = (T)all_D.of(e);
                if (grad_bias != nullptr) grad_bias[e] = (T)all_bias.of(e);
                for (int64_t n = 0; n < N; ++n) grad_A[e * N + n] = (T)all_A.of(e, n);
            }
#pragma omp for schedule(static)
            for (int64_t at = 0; at < values; ++at) {
                grad_B[at] = over_lines(B_sums, lines, values, at);
                grad_C[at] = over_lines(C_sums, lines, values, at);
            }
        });
    if (code != SF_OK) return code;
    alpha_gradients(shares, kernels, shape.channels, grad_alpha);
    return SF_OK;
}

}  // namespace
}  // namespace SF_ISA

#define SF_STRUCTURE_AWARE_BACKWARD(suffix, T)                                                                         \
    SF_EXPORT(structure_aware_scan_backward_##suffix)                                                                  \
    (const T *grad, const T *kept, const T *u, const T *delta, const T *A, const T *B, const T *C, const T *D,         \
     const T *weight, const T *alpha, const T *bias, T *grad_u, T *grad_delta, T *grad_A, T *grad_B, T *grad_C,        \
     T *grad_D, T *grad_weight, T *grad_alpha, T *grad_bias, const int64_t *sizes, const int64_t *dilations,           \
     int64_t kernels, int64_t softplus, int64_t threads) {                                                             \
        return SF_ISA::structure_aware_backward<T>(grad, kept, u, delta, A, B, C, D, weight, alpha, bias, grad_u,      \
                                                   grad_delta, grad_A, grad_B, grad_C, grad_D, grad_weight,            \
                                                   grad_alpha, grad_bias, sizes, dilations, kernels, softplus,         \
                                                   threads);                                                           \
    }
SF_STRUCTURE_AWARE_BACKWARD(f32, float)
SF_STRUCTURE_AWARE_BACKWARD(f64, double)

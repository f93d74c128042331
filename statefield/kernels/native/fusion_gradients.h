// The gradients of state fusion, row by row: what state_fusion_backward.cpp, state_fusion_3d_backward.cpp and
// structure_aware_scan_backward.cpp share.
// Two rings of packed rows lie in the cache: h, and g = C * grad, the gradient of the fused states. From them come, for
// one row of one line of one state,
//     grad_h     the mirrored gather over g
//     the taps   sum over pixels of g * h at each tap
//     grad_C     grad . fused, with the fused states gathered again
#pragma once
#include "fusion_rows.h"

namespace SF_ISA {

// Gathered lines, written out as they are.
template <class T> struct PlainRow {
    const Tap<T> *taps;
    int count;
    T *to;
    int64_t stride, valid;
    template <int P> void tile(int64_t j) const {
        vec<T> acc[P][kVectors];
        gather<T, P>(taps, count, j, acc);
        for (int p = 0; p < P; ++p) store_line(to + (j + p) * stride, valid, acc[p]);
    }
};

// to[j * states] = grad[j] . fused[j] over the channels of one line.
template <class T> struct ReadOut {
    const Tap<T> *taps;
    int count;
    const T *grad;
    int64_t stride, valid;
    T *to;
    int64_t states;
    template <int P> void tile(int64_t j) const {
        vec<T> fused[P][kVectors];
        gather<T, P>(taps, count, j, fused);
        for (int p = 0; p < P; ++p) {
            vec<T> given[kVectors];
            load_line(grad + (j + p) * stride, valid, given);
            vec<T> sum = fused[p][0] * given[0];
            for (int v = 1; v < kVectors; ++v) sum += fused[p][v] * given[v];
            to[(j + p) * states] = sum_lanes<T>(sum);
        }
    }
};

// sums[t] += sum over a row of `width` pixels of g * what tap t reads, for some taps at once.
template <class T, int G> void add_tap_group(T *sums, const T *g, const Tap<T> *group, int64_t width) {
    constexpr int count = lanes<T>::count;
    vec<T> acc[G][kVectors];
    const T *source[G];
#pragma GCC unroll 8
    for (int q = 0; q < G; ++q) {
        source[q] = group[q].source;
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) acc[q][v] = vec<T>{};
    }
    for (int64_t at = 0; at < width * kLine<T>; at += kLine<T>) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            const vec<T> given = load(g + at + v * count);
#pragma GCC unroll 8
            for (int q = 0; q < G; ++q) acc[q][v] += given * load(source[q] + at + v * count);
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < G; ++q)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            T *sum = sums + q * kLine<T> + v * count;
            store(sum, load(sum) + acc[q][v]);
        }
}
template <class T> void add_row_of_taps(const Tap<T> *taps, int count, const T *g, int64_t width, T *sums) {
    int t = 0;
    for (; t + kTapGroup <= count; t += kTapGroup)
        add_tap_group<T, kTapGroup>(sums + t * kLine<T>, g, taps + t, width);
    for (; t < count; ++t) add_tap_group<T, 1>(sums + t * kLine<T>, g, taps + t, width);
}

template <class T> struct GradientRings {
    Shape shape;
    const Taps &taps;
    PaddedRow<T> packed;
    GradientRow<T> packed_grad;
    const T *merged;  // [lines][taps] lines

    // A thread's scratch: the ring of h, the ring of g, the sums of g's rows at the rims, the taps of a row.
    int64_t ring_rows() const { return 2 * taps.row_reach + 1; }
    int64_t h_elements() const { return packed.columns() * kLine<T>; }
    int64_t g_elements() const { return packed_grad.columns() * kLine<T>; }
    int64_t h_ring() const { return ring_rows() * shape.states * h_elements(); }
    int64_t g_ring() const { return ring_rows() * shape.states * g_elements(); }
    int64_t rim_rows() const { return taps.num_row_steps * g_elements(); }
    int64_t bytes() const {
        return (h_ring() + g_ring() + rim_rows()) * (int64_t)sizeof(T) + to_line(taps.count * (int64_t)sizeof(Tap<T>));
    }
    struct Scratch {
        T *h, *g, *rim;
        Tap<T> *taps;
    };
    Scratch scratch(char *memory) const {
        T *first = (T *)memory;
        return {first, first + h_ring(), first + h_ring() + g_ring(),
                (Tap<T> *)(first + h_ring() + g_ring() + rim_rows())};
    }
    RingPlace around(int64_t row) const { return {ring_rows(), row}; }
    T *h_row(const Scratch &s, int64_t slot, int64_t n) const { return s.h + (slot * shape.states + n) * h_elements(); }
    T *g_row(const Scratch &s, int64_t slot, int64_t n) const { return s.g + (slot * shape.states + n) * g_elements(); }
    const T *weights(int64_t line) const { return merged + line * taps.count * kLine<T>; }

    // Where the packed row of g lies that holds what row i gets from taps at distance dy; null where that is nothing.
    const T *giving_row(const RingPlace &ring, int dy, int64_t n, const Scratch &s) const {
        const Readers readers(ring.row, dy, shape.height);
        if (readers.none()) return nullptr;
        if (readers.one()) return g_row(s, ring.of(readers.first), n);
        return s.rim + Taps::place(taps.row_steps, taps.num_row_steps, dy < 0 ? -dy : dy) * g_elements();
    }

    void sum_rim_rows(const RingPlace &ring, int64_t n, const Scratch &s) const {
        for (int step = 0; step < taps.num_row_steps; ++step) {
            T *sum = s.rim + step * g_elements();
            memset(sum, 0, (size_t)g_elements() * sizeof(T));
            const int away = ring.row == 0 ? -taps.row_steps[step] : taps.row_steps[step];
            const Readers readers(ring.row, away, shape.height);
            for (int64_t row = readers.first; row <= readers.last; ++row)
                packed_grad.add_lines(sum, g_row(s, ring.of(row), n), packed_grad.columns());
        }
    }

    // grad_h of row i to pixels `stride` apart.
    void gather_grad_h(int64_t line, int64_t i, int64_t n, const Scratch &s, T *to, int64_t stride, int64_t valid) const {
        const RingPlace ring = around(i);
        if (i == 0 || i == shape.height - 1) sum_rim_rows(ring, n, s);
        int count = 0;
        for (int t = 0; t < taps.count; ++t) {
            const T *row = giving_row(ring, taps.dy[t], n, s);
            if (row != nullptr) s.taps[count++] = {row + packed_grad.line_of(-taps.dx[t]), weights(line) + t * kLine<T>};
        }
        for_tiles(1, shape.width - 1, PlainRow<T>{s.taps, count, to, stride, valid});
        for (int64_t j = 0; j < shape.width; j += greatest(shape.width - 1, 1)) {  // the columns at the rims
            count = 0;
            for (int t = 0; t < taps.count; ++t) {
                const T *row = giving_row(ring, taps.dy[t], n, s);
                const int64_t held = packed_grad.place(j, taps.dx[t]);
                if (row != nullptr && held >= 0) s.taps[count++] = {row + held, weights(line) + t * kLine<T>};
            }
            PlainRow<T>{s.taps, count, to + j * stride, stride, valid}.template tile<1>(0);
        }
    }

    // Points the taps of the scratch at the rows of h that row i reads.
    void read_taps(int64_t line, int64_t i, int64_t n, const Scratch &s) const {
        aim_taps(taps, around(i), shape.height, s.h + n * h_elements(), shape.states * h_elements(),
                 packed.reach * (int64_t)kLine<T>, weights(line), s.taps);
    }

    // sums[t] += sum over row i of g * h at tap t. A row is summed by itself first, so sums stay short.
    void add_tap_sums(T *sums, int64_t i, int64_t n, const Scratch &s) const {
        add_row_of_taps(s.taps, taps.count, g_row(s, around(i).slot, n) + packed_grad.line_of(0), shape.width, sums);
    }
};

// Adds a line of a row's sums to a task's partial sums.
template <class T> SF_INLINE void add_to_line(T *sums, const vec<T> *line) {
    for (int v = 0; v < kVectors; ++v) {
        T *part = sums + v * lanes<T>::count;
        store(part, load(part) + line[v]);
    }
}

// Sums of the tasks' partial sums, [parts][lines][width] lines, in float64 and in the order of the tasks.
template <class T> struct PartialSums {
    const T *sums;
    int64_t parts, lines, width;
    double of(int64_t e, int64_t at = 0) const {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part)
            sum += sums[((part * lines + e / kLine<T>) * width + at) * kLine<T> + e % kLine<T>];
        return sum;
    }
};

// grad_weight [K, E, 3, 3] (of volumes [K, E, 3, 3, 3]) of one channel, and the channel's share of grad_alpha for each
// kernel, shares [K, E].
template <class T>
void channel_gradients(const PartialSums<T> &tap_sums, const Taps &taps, int64_t e, int64_t channels, int64_t kernels,
                       const T *weight, const T *alpha, T *grad_weight, double *shares) {
    for (int64_t k = 0; k < kernels; ++k) {
        double share = 0;
        for (int a = 0; a < taps.per_kernel; ++a) {
            const int64_t at = (k * channels + e) * taps.per_kernel + a;
            const double sum = tap_sums.of(e, taps.of[k * taps.per_kernel + a]);
            grad_weight[at] = (T)(alpha[k] * sum);
            share += weight[at] * sum;
        }
        shares[k * channels + e] = share;
    }
}
template <class T> void alpha_gradients(const double *shares, int64_t kernels, int64_t channels, T *grad_alpha) {
    for (int64_t k = 0; k < kernels; ++k) {
        double sum = 0;
        for (int64_t e = 0; e < channels; ++e) sum += shares[k * channels + e];
        grad_alpha[k] = (T)sum;
    }
}

// The sum over lines of what each line gave for value `at`.
template <class T> SF_INLINE T over_lines(const T *sums, int64_t lines, int64_t values, int64_t at) {
    T sum = sums[at];
    for (int64_t line = 1; line < lines; ++line) sum += sums[line * values + at];
    return sum;
}

// What a backward of state fusion is given, and where its gradients go.
template <class T> struct FusionGradients {
    const T *grad, *h, *weight, *alpha, *C, *D, *u;
    T *grad_h, *grad_weight, *grad_alpha, *grad_C, *grad_D, *grad_u;
    int64_t kernels, channels, batch, values;  // values: of C, one a pixel and state

    // grad_u = D * grad of `count` pixels from `first` on, elements into u, of one line of channels, and their share of
    // grad_D.
    void skip(int64_t first, int64_t count, int64_t valid, const T *D_line, T *sum) const {
        vec<T> by[kVectors], total[kVectors];
        load_line(D_line, kLine<T>, by);
        for (int v = 0; v < kVectors; ++v) total[v] = vec<T>{};
        for (int64_t j = 0; j < count; ++j) {
            const int64_t at = first + j * channels;
            vec<T> given[kVectors], read[kVectors];
            load_line(grad + at, valid, given);
            load_line(u + at, valid, read);
            for (int v = 0; v < kVectors; ++v) {
                total[v] += given[v] * read[v];
                given[v] *= by[v];
            }
            store_line(grad_u + at, valid, given);
        }
        add_to_line(sum, total);
    }

    // Runs what make(merged, D, tap_sums, D_sums, C_sums) returns: the tasks, from lines of merged taps and of D; they
    // write partial sums [batch * chunks][lines][taps], [batch * chunks][lines] lines, and [lines][values] scalars.
    template <class Make> int run(const Taps &taps, const Cut &cut, int64_t threads, Make make) const {
        const int64_t parts = batch * cut.chunks, lines = cut.lines;
        aligned_buffer weights((size_t)(lines * (taps.count + 1)) * kLineBytes);
        aligned_buffer sums((size_t)(parts * lines * (taps.count + 1)) * kLineBytes);
        aligned_buffer C_memory(C != nullptr ? (size_t)(lines * values) * sizeof(T) : 0);
        aligned_buffer alpha_shares((size_t)(kernels * channels) * sizeof(double));
        if (!weights.data || !sums.data || !C_memory.data || !alpha_shares.data) return SF_NO_MEMORY;
        T *merged = (T *)weights.data, *D_lines = merged + lines * taps.count * kLine<T>;
        T *tap_sums = (T *)sums.data, *D_sums = tap_sums + parts * lines * taps.count * kLine<T>;
        T *C_sums = (T *)C_memory.data;
        double *shares = (double *)alpha_shares.data;
        pad_channels(D, channels, lines, D_lines);
        const PartialSums<T> all_taps{tap_sums, parts, lines, taps.count}, all_D{D_sums, parts, lines, 1};
        const int code = run_tasks(
            make(merged, D_lines, tap_sums, D_sums, C_sums), cut.tasks, threads, taps, lines, weight, alpha, kernels,
            channels, merged, [&] {
#pragma omp for schedule(static)
                for (int64_t e = 0; e < channels; ++e) {
                    channel_gradients(all_taps, taps, e, channels, kernels, weight, alpha, grad_weight, shares);
                    if (D != nullptr) grad_D[e] = (T)all_D.of(e);
                }
                if (C != nullptr) {
#pragma omp for schedule(static)
                    for (int64_t at = 0; at < values; ++at) grad_C[at] = over_lines((const T *)C_sums, lines, values, at);
                }
            });
        if (code == SF_OK) alpha_gradients(shares, kernels, channels, grad_alpha);
        return code;
    }
};

}  // namespace SF_ISA

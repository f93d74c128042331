// State fusion, backward. A task walks down some rows of one line of channels of one image, with two rings of packed
// rows in the cache: h, and g = C * grad, the gradient of the fused states. From them it gives for each of its rows
//     grad_h       the mirrored gather over g
//     the taps     sum over pixels of g * h at each tap, as a partial sum of this task
//     grad_C       grad . fused (a partial sum over its channels), with the fused states gathered again
//     grad_u, grad_D
// Partial sums are added in a fixed order afterwards.
#include "fusion_rows.h"

namespace SF_ISA {
namespace {

template <class T> struct BackwardTask {
    const T *grad, *h, *C, *u;
    T *grad_h, *grad_u;
    Shape shape;
    const Taps &taps;
    Cut cut;
    PaddedRow<T> packed;
    GradientRow<T> packed_grad;
    const T *merged, *D;      // lines
    T *tap_sums;              // [batch * chunks][lines][taps] lines
    T *D_sums;                // [batch * chunks][lines] lines
    T *C_sums;                // [lines][B, H, W, N]

    // A thread's scratch: the ring of h, the ring of g, the sums of g's rows at the rims, the taps of a row.
    int64_t ring_rows() const { return 2 * taps.row_reach + 1; }
    int64_t h_elements() const { return packed.columns() * kLine<T>; }
    int64_t g_elements() const { return packed_grad.columns() * kLine<T>; }
    int64_t h_ring() const { return ring_rows() * shape.states * h_elements(); }
    int64_t g_ring() const { return ring_rows() * shape.states * g_elements(); }
    int64_t rim_rows() const { return taps.num_row_steps * g_elements(); }
    int64_t scratch_bytes() const {
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
    T *h_row(const Scratch &s, int64_t row, int64_t n) const {
        return s.h + (row % ring_rows() * shape.states + n) * h_elements();
    }
    T *g_row(const Scratch &s, int64_t row, int64_t n) const {
        return s.g + (row % ring_rows() * shape.states + n) * g_elements();
    }
    int64_t pixel(const Place &place, int64_t row) const {
        return (place.batch * shape.height + row) * shape.width;
    }
    int64_t valid(const Place &place) const { return shape.channels - place.line * kLine<T>; }

    void run(int64_t task, char *memory) const {
        const Scratch s = scratch(memory);
        const Place place(task, cut, shape.height);
        T *own_taps = tap_sums + (place.part * cut.lines + place.line) * taps.count * kLine<T>;
        T *own_D = D_sums + (place.part * cut.lines + place.line) * kLine<T>;
        memset(own_taps, 0, (size_t)taps.count * kLineBytes);
        memset(own_D, 0, kLineBytes);
        int64_t next = greatest(place.first - taps.row_reach, 0);
        for (int64_t i = place.first; i < place.last; ++i) {
            for (; next <= least(i + taps.row_reach, shape.height - 1); ++next) pack(place, next, s);
            for (int64_t n = 0; n < shape.states; ++n) {
                gather_grad_h(place, i, n, s);
                read_taps(place, i, n, s);
                if (C != nullptr) read_out(place, i, n, s);
                add_tap_sums(own_taps, g_row(s, i, n) + packed_grad.line_of(0), s);
            }
            if (u != nullptr) skip(place, i, own_D);
        }
    }

    void pack(const Place &place, int64_t row, const Scratch &s) const {
        const int64_t at = pixel(place, row), channel = place.line * kLine<T>;
        for (int64_t n = 0; n < shape.states; ++n) {
            packed.pack(h + (at * shape.states + n) * shape.channels + channel, shape.states * shape.channels,
                        valid(place), h_row(s, row, n));
            if (C != nullptr)
                packed_grad.pack(grad + at * shape.channels + channel, shape.channels, valid(place),
                                 C + at * shape.states + n, shape.states, g_row(s, row, n));
            else
                packed_grad.pack(grad + (at * shape.states + n) * shape.channels + channel,
                                 shape.states * shape.channels, valid(place), nullptr, 0, g_row(s, row, n));
        }
    }

    // Where the packed row of g lies that holds what row i gets from taps at distance dy; null where that is nothing.
    const T *giving_row(int64_t i, int dy, int64_t n, const Scratch &s) const {
        const Readers readers(i, dy, shape.height);
        if (readers.none()) return nullptr;
        if (readers.one()) return g_row(s, readers.first, n);
        return s.rim + Taps::place(taps.row_steps, taps.num_row_steps, dy < 0 ? -dy : dy) * g_elements();
    }

    void sum_rim_rows(int64_t i, int64_t n, const Scratch &s) const {
        for (int step = 0; step < taps.num_row_steps; ++step) {
            T *sum = s.rim + step * g_elements();
            memset(sum, 0, (size_t)g_elements() * sizeof(T));
            const Readers readers(i, i == 0 ? -taps.row_steps[step] : taps.row_steps[step], shape.height);
            for (int64_t row = readers.first; row <= readers.last; ++row)
                packed_grad.add_lines(sum, g_row(s, row, n), packed_grad.columns());
        }
    }

    void gather_grad_h(const Place &place, int64_t i, int64_t n, const Scratch &s) const {
        const T *weights = merged + place.line * taps.count * kLine<T>;
        const int64_t stride = shape.states * shape.channels;
        T *to = grad_h + (pixel(place, i) * shape.states + n) * shape.channels + place.line * kLine<T>;
        if (i == 0 || i == shape.height - 1) sum_rim_rows(i, n, s);
        int count = 0;
        for (int t = 0; t < taps.count; ++t) {
            const T *row = giving_row(i, taps.dy[t], n, s);
            if (row != nullptr) s.taps[count++] = {row + packed_grad.line_of(-taps.dx[t]), weights + t * kLine<T>};
        }
        for_tiles(1, shape.width - 1, PlainRow{s.taps, count, to, stride, valid(place)});
        for (int64_t j = 0; j < shape.width; j += greatest(shape.width - 1, 1)) {  // the columns at the rims
            count = 0;
            for (int t = 0; t < taps.count; ++t) {
                const T *row = giving_row(i, taps.dy[t], n, s);
                const int64_t held = packed_grad.place(j, taps.dx[t]);
                if (row != nullptr && held >= 0) s.taps[count++] = {row + held, weights + t * kLine<T>};
            }
            PlainRow{s.taps, count, to + j * stride, stride, valid(place)}.template tile<1>(0);
        }
    }

    // Gathered lines, written out as they are.
    struct PlainRow {
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

    void read_taps(const Place &place, int64_t i, int64_t n, const Scratch &s) const {
        const T *weights = merged + place.line * taps.count * kLine<T>;
        for (int t = 0; t < taps.count; ++t) {
            const int64_t row = clamped(i + taps.dy[t], 0, shape.height - 1);
            s.taps[t] = {packed.interior(h_row(s, row, n)) + taps.dx[t] * kLine<T>, weights + t * kLine<T>};
        }
    }

    // This line's share of grad_C[j] = grad[j] . fused[j].
    struct ReadOut {
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
    void read_out(const Place &place, int64_t i, int64_t n, const Scratch &s) const {
        const int64_t at = pixel(place, i), pixels = shape.batch * shape.height * shape.width;
        const T *from = grad + at * shape.channels + place.line * kLine<T>;
        T *to = C_sums + (place.line * pixels + at) * shape.states + n;
        for_tiles(0, shape.width, ReadOut{s.taps, taps.count, from, shape.channels, valid(place), to, shape.states});
    }

    // sums[t] += sum over the row of g * h at tap t. A row is summed by itself first, so sums stay short.
    void add_tap_sums(T *sums, const T *g, const Scratch &s) const {
        int t = 0;
        for (; t + kTapGroup <= taps.count; t += kTapGroup) add_tap_group<kTapGroup>(sums + t * kLine<T>, g, s.taps + t);
        for (; t < taps.count; ++t) add_tap_group<1>(sums + t * kLine<T>, g, s.taps + t);
    }
    template <int G> void add_tap_group(T *sums, const T *g, const Tap<T> *group) const {
        constexpr int count = lanes<T>::count;
        vec<T> acc[G][kVectors];
        const T *source[G];
#pragma GCC unroll 8
        for (int q = 0; q < G; ++q) {
            source[q] = group[q].source;
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) acc[q][v] = vec<T>{};
        }
        for (int64_t at = 0; at < shape.width * kLine<T>; at += kLine<T>) {
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

    // grad_u = D * grad, and the row's share of grad_D.
    void skip(const Place &place, int64_t i, T *sum) const {
        const int64_t first = pixel(place, i) * shape.channels + place.line * kLine<T>;
        vec<T> D_line[kVectors], total[kVectors];
        load_line(D + place.line * kLine<T>, kLine<T>, D_line);
        for (int v = 0; v < kVectors; ++v) total[v] = vec<T>{};
        for (int64_t j = 0; j < shape.width; ++j) {
            const int64_t at = first + j * shape.channels;
            vec<T> given[kVectors], read[kVectors];
            load_line(grad + at, valid(place), given);
            load_line(u + at, valid(place), read);
            for (int v = 0; v < kVectors; ++v) {
                total[v] += given[v] * read[v];
                given[v] *= D_line[v];
            }
            store_line(grad_u + at, valid(place), given);
        }
        for (int v = 0; v < kVectors; ++v) {
            T *part = sum + v * lanes<T>::count;
            store(part, load(part) + total[v]);
        }
    }
};

// Sums over the tasks, in float64 and in their order: grad_weight [K, E, 3, 3], grad_alpha [K], grad_D [E], grad_C.
template <class T> struct Partial {
    Shape shape;
    const Taps &taps;
    Cut cut;
    const T *tap_sums, *D_sums, *C_sums;

    double tap(int64_t e, int t) const {
        double sum = 0;
        for (int64_t part = 0; part < shape.batch * cut.chunks; ++part)
            sum += tap_sums[((part * cut.lines + e / kLine<T>) * taps.count + t) * kLine<T> + e % kLine<T>];
        return sum;
    }
    // grad_alpha's shares, one a channel and kernel, come back in alpha_shares [K, E].
    void channel(int64_t e, int64_t kernels, const T *weight, const T *alpha, T *grad_weight, double *alpha_shares) const {
        for (int64_t k = 0; k < kernels; ++k) {
            double share = 0;
            for (int a = 0; a < 9; ++a) {
                const int64_t at = (k * shape.channels + e) * 9 + a;
                const double sum = tap(e, taps.of[k * 9 + a]);
                grad_weight[at] = (T)(alpha[k] * sum);
                share += weight[at] * sum;
            }
            alpha_shares[k * shape.channels + e] = share;
        }
    }
    T D(int64_t e) const {
        double sum = 0;
        for (int64_t part = 0; part < shape.batch * cut.chunks; ++part) sum += D_sums[part * cut.lines * kLine<T> + e];
        return (T)sum;
    }
    T C(int64_t at, int64_t values) const {
        T sum = C_sums[at];
        for (int64_t line = 1; line < cut.lines; ++line) sum += C_sums[line * values + at];
        return sum;
    }
};

template <class T>
int fusion_backward(const T *grad, const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *grad_h,
                    T *grad_weight, T *grad_alpha, T *grad_C, T *grad_D, T *grad_u, const int64_t *sizes,
                    const int64_t *dilations, int64_t kernels, int64_t threads) {
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    const Taps taps(dilations, kernels, shape.height, shape.width);
    if (taps.memory.data == nullptr) return SF_NO_MEMORY;
    const PaddedRow<T> packed{shape.width, taps.column_reach};
    const GradientRow<T> packed_grad{taps, shape.width};
    const Cut cut(shape, kLine<T>);
    const int64_t parts = shape.batch * cut.chunks, C_values = shape.batch * shape.height * shape.width * shape.states;
    aligned_buffer weights((size_t)(cut.lines * (taps.count + 1)) * kLineBytes);
    aligned_buffer sums((size_t)(parts * cut.lines * (taps.count + 1)) * kLineBytes);
    aligned_buffer C_sums(C != nullptr ? (size_t)(cut.lines * C_values) * sizeof(T) : 0);
    aligned_buffer alpha_shares((size_t)(kernels * shape.channels) * sizeof(double));
    if (!weights.data || !sums.data || !C_sums.data || !alpha_shares.data) return SF_NO_MEMORY;
    T *merged = (T *)weights.data, *D_lines = merged + cut.lines * taps.count * kLine<T>;
    T *tap_sums = (T *)sums.data, *D_sums = tap_sums + parts * cut.lines * taps.count * kLine<T>;
    double *shares = (double *)alpha_shares.data;
    pad_channels(D, shape.channels, cut.lines, D_lines);
    const BackwardTask<T> task{grad, h, C, u, grad_h, grad_u, shape, taps, cut, packed, packed_grad, merged, D_lines,
                               tap_sums, D_sums, (T *)C_sums.data};
    const Partial<T> partial{shape, taps, cut, tap_sums, D_sums, (const T *)C_sums.data};

    threads = clamped(cut.tasks, 1, threads);
    aligned_buffer scratch((size_t)(threads * task.scratch_bytes()));
    if (scratch.data == nullptr) return SF_NO_MEMORY;
#pragma omp parallel num_threads(threads)
    {
        char *own = (char *)scratch.data + this_thread() * task.scratch_bytes();
#pragma omp for schedule(static)
        for (int64_t line = 0; line < cut.lines; ++line)
            merge_weights(taps, weight, alpha, kernels, shape.channels, line, merged + line * taps.count * kLine<T>);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < cut.tasks; ++t) task.run(t, own);
#pragma omp for schedule(static)
        for (int64_t e = 0; e < shape.channels; ++e) {
            partial.channel(e, kernels, weight, alpha, grad_weight, shares);
            if (D != nullptr) grad_D[e] = partial.D(e);
        }
        if (C != nullptr) {
#pragma omp for schedule(static)
            for (int64_t at = 0; at < C_values; ++at) grad_C[at] = partial.C(at, C_values);
        }
    }
    for (int64_t k = 0; k < kernels; ++k) {
        double sum = 0;
        for (int64_t e = 0; e < shape.channels; ++e) sum += shares[k * shape.channels + e];
        grad_alpha[k] = (T)sum;
    }
    return SF_OK;
}

}  // namespace
}  // namespace SF_ISA

#define SF_FUSION_BACKWARD(suffix, T)                                                                                  \
    SF_EXPORT(state_fusion_backward_##suffix)                                                                          \
    (const T *grad, const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *grad_h,        \
     T *grad_weight, T *grad_alpha, T *grad_C, T *grad_D, T *grad_u, const int64_t *sizes, const int64_t *dilations,   \
     int64_t kernels, int64_t threads) {                                                                               \
        return SF_ISA::fusion_backward<T>(grad, h, weight, alpha, C, D, u, grad_h, grad_weight, grad_alpha, grad_C,    \
                                          grad_D, grad_u, sizes, dilations, kernels, threads);                         \
    }
SF_FUSION_BACKWARD(f32, float)
SF_FUSION_BACKWARD(f64, double)

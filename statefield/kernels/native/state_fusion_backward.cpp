// State fusion, backward. A task walks down some rows of one line of channels of one image and gives grad_h and grad_u of
// its rows, and partial sums of the other gradients, which are added in a fixed order afterwards.
#include "fusion_gradients.h"

namespace SF_ISA {
namespace {

template <class T> struct BackwardTask {
    const T *grad, *h, *C, *u;
    T *grad_h, *grad_u;
    Shape shape;
    const Taps &taps;
    Cut cut;
    GradientRings<T> rings;
    const T *D;   // lines
    T *tap_sums;  // [batch * chunks][lines][taps] lines
    T *D_sums;    // [batch * chunks][lines] lines
    T *C_sums;    // [lines][B, H, W, N]

    using Scratch = typename GradientRings<T>::Scratch;

    int64_t pixel(const Place &place, int64_t row) const {
        return (place.batch * shape.height + row) * shape.width;
    }
    int64_t valid(const Place &place) const { return shape.channels - place.line * kLine<T>; }

    void run(int64_t task, char *memory) const {
        const Scratch s = rings.scratch(memory);
        const Place place(task, cut, shape.height);
        T *own_taps = tap_sums + (place.part * cut.lines + place.line) * taps.count * kLine<T>;
        T *own_D = D_sums + (place.part * cut.lines + place.line) * kLine<T>;
        memset(own_taps, 0, (size_t)taps.count * kLineBytes);
        memset(own_D, 0, kLineBytes);
        int64_t next = greatest(place.first - taps.row_reach, 0);
        for (int64_t i = place.first; i < place.last; ++i) {
            for (; next <= least(i + taps.row_reach, shape.height - 1); ++next) pack(place, next, s);
            for (int64_t n = 0; n < shape.states; ++n) {
                T *to = grad_h + (pixel(place, i) * shape.states + n) * shape.channels + place.line * kLine<T>;
                rings.gather_grad_h(place.line, i, n, s, to, shape.states * shape.channels, valid(place));
                rings.read_taps(place.line, i, n, s);
                if (C != nullptr) read_out(place, i, n, s);
                rings.add_tap_sums(own_taps, i, n, s);
            }
            if (u != nullptr) skip(place, i, own_D);
        }
    }

    void pack(const Place &place, int64_t row, const Scratch &s) const {
        const int64_t at = pixel(place, row), channel = place.line * kLine<T>, slot = rings.around(row).slot;
        for (int64_t n = 0; n < shape.states; ++n) {
            rings.packed.pack(h + (at * shape.states + n) * shape.channels + channel, shape.states * shape.channels,
                              valid(place), rings.h_row(s, slot, n));
            if (C != nullptr)
                rings.packed_grad.pack(grad + at * shape.channels + channel, shape.channels, valid(place),
                                       C + at * shape.states + n, shape.states, rings.g_row(s, slot, n));
            else
                rings.packed_grad.pack(grad + (at * shape.states + n) * shape.channels + channel,
                                       shape.states * shape.channels, valid(place), nullptr, 0, rings.g_row(s, slot, n));
        }
    }

    void read_out(const Place &place, int64_t i, int64_t n, const Scratch &s) const {
        const int64_t at = pixel(place, i), pixels = shape.batch * shape.height * shape.width;
        const T *from = grad + at * shape.channels + place.line * kLine<T>;
        T *to = C_sums + (place.line * pixels + at) * shape.states + n;
        for_tiles(0, shape.width, ReadOut<T>{s.taps, taps.count, from, shape.channels, valid(place), to, shape.states});
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
        add_to_line(sum, total);
    }
};

template <class T>
int fusion_backward(const T *grad, const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *grad_h,
                    T *grad_weight, T *grad_alpha, T *grad_C, T *grad_D, T *grad_u, const int64_t *sizes,
                    const int64_t *dilations, int64_t kernels, int64_t threads) {
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    const Taps taps(dilations, kernels, shape.height, shape.width);
    if (taps.memory.data == nullptr) return SF_NO_MEMORY;
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
    const GradientRings<T> rings{shape, taps, {shape.width, taps.column_reach}, {taps, shape.width}, merged};
    const BackwardTask<T> task{grad, h, C, u, grad_h, grad_u, shape, taps, cut, rings, D_lines, tap_sums, D_sums,
                               (T *)C_sums.data};
    const PartialSums<T> all_taps{tap_sums, parts, cut.lines, taps.count}, all_D{D_sums, parts, cut.lines, 1};

    threads = clamped(cut.tasks, 1, threads);
    aligned_buffer scratch((size_t)(threads * rings.bytes()));
    if (scratch.data == nullptr) return SF_NO_MEMORY;
#pragma omp parallel num_threads(threads)
    {
        char *own = (char *)scratch.data + this_thread() * rings.bytes();
#pragma omp for schedule(static)
        for (int64_t line = 0; line < cut.lines; ++line)
            merge_weights(taps, weight, alpha, kernels, shape.channels, line, merged + line * taps.count * kLine<T>);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < cut.tasks; ++t) task.run(t, own);
#pragma omp for schedule(static)
        for (int64_t e = 0; e < shape.channels; ++e) {
            channel_gradients(all_taps, taps, e, shape.channels, kernels, weight, alpha, grad_weight, shares);
            if (D != nullptr) grad_D[e] = (T)all_D.of(e);
        }
        if (C != nullptr) {
#pragma omp for schedule(static)
            for (int64_t at = 0; at < C_values; ++at)
                grad_C[at] = over_lines((const T *)C_sums.data, cut.lines, C_values, at);
        }
    }
    alpha_gradients(shares, kernels, shape.channels, grad_alpha);
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

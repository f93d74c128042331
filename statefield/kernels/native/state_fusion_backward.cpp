// State fusion, backward. A task walks down some rows of one line of channels of one image and gives grad_h and grad_u of
// its rows, and partial sums of the other gradients, which are added in a fixed order afterwards.
#include "fusion_gradients.h"

namespace SF_ISA {
namespace {

template <class T> struct BackwardTask {
    const FusionGradients<T> &of;
    Shape shape;
    const Taps &taps;
    Cut cut;
    GradientRings<T> rings;
    const T *D;   // lines
    T *tap_sums;  // [batch * chunks][lines][taps] lines
    T *D_sums;    // [batch * chunks][lines] lines
    T *C_sums;    // [lines][B, H, W, N]

    using Scratch = typename GradientRings<T>::Scratch;

    int64_t scratch_bytes() const { return rings.bytes(); }

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
                T *to = of.grad_h + (pixel(place, i) * shape.states + n) * shape.channels + place.line * kLine<T>;
                rings.gather_grad_h(place.line, i, n, s, to, shape.states * shape.channels, valid(place));
                rings.read_taps(place.line, i, n, s);
                if (of.C != nullptr) read_out(place, i, n, s);
                rings.add_tap_sums(own_taps, i, n, s);
            }
            const int64_t first = pixel(place, i) * shape.channels + place.line * kLine<T>;
            if (of.u != nullptr) of.skip(first, shape.width, valid(place), D + place.line * kLine<T>, own_D);
        }
    }

    void pack(const Place &place, int64_t row, const Scratch &s) const {
        const int64_t at = pixel(place, row), channel = place.line * kLine<T>, slot = rings.around(row).slot;
        for (int64_t n = 0; n < shape.states; ++n) {
            rings.packed.pack(of.h + (at * shape.states + n) * shape.channels + channel, shape.states * shape.channels,
                              valid(place), rings.h_row(s, slot, n));
            if (of.C != nullptr)
                rings.packed_grad.pack(of.grad + at * shape.channels + channel, shape.channels, valid(place),
                                       of.C + at * shape.states + n, shape.states, rings.g_row(s, slot, n));
            else
                rings.packed_grad.pack(of.grad + (at * shape.states + n) * shape.channels + channel,
                                       shape.states * shape.channels, valid(place), nullptr, 0, rings.g_row(s, slot, n));
        }
    }

    void read_out(const Place &place, int64_t i, int64_t n, const Scratch &s) const {
        const int64_t at = pixel(place, i), pixels = shape.batch * shape.height * shape.width;
        const T *from = of.grad + at * shape.channels + place.line * kLine<T>;
        T *to = C_sums + (place.line * pixels + at) * shape.states + n;
        for_tiles(0, shape.width, ReadOut<T>{s.taps, taps.count, from, shape.channels, valid(place), to, shape.states});
    }
};

template <class T>
int fusion_backward(const FusionGradients<T> &of, const Shape &shape, const int64_t *dilations, int64_t threads) {
    const Taps taps(dilations, of.kernels, shape.height, shape.width);
    if (taps.memory.data == nullptr) return SF_NO_MEMORY;
    const Cut cut(shape, kLine<T>);
    return of.run(taps, cut, threads, [&](const T *merged, const T *D, T *tap_sums, T *D_sums, T *C_sums) {
        const GradientRings<T> rings{shape, taps, {shape.width, taps.column_reach}, {taps, shape.width}, merged};
        return BackwardTask<T>{of, shape, taps, cut, rings, D, tap_sums, D_sums, C_sums};
    });
}

}  // namespace
}  // namespace SF_ISA

#define SF_FUSION_BACKWARD(suffix, T)                                                                                  \
    SF_EXPORT(state_fusion_backward_##suffix)                                                                          \
    (const T *grad, const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *grad_h,        \
     T *grad_weight, T *grad_alpha, T *grad_C, T *grad_D, T *grad_u, const int64_t *sizes, const int64_t *dilations,   \
     int64_t kernels, int64_t threads) {                                                                               \
        const SF_ISA::Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};                                   \
        const SF_ISA::FusionGradients<T> of{                                                                           \
            grad, h, weight, alpha, C, D, u, grad_h, grad_weight, grad_alpha, grad_C, grad_D, grad_u, kernels,         \
            shape.channels, shape.batch, shape.batch * shape.height * shape.width * shape.states};                     \
        return SF_ISA::fusion_backward<T>(of, shape, dilations, threads);                                              \
    }
SF_FUSION_BACKWARD(f32, float)
SF_FUSION_BACKWARD(f64, double)

// State fusion: fused = sum of taps over clamped neighbours, y = sum_n C_n * fused_n + D * u. Forward.
#include "fusion_rows.h"

namespace SF_ISA {
namespace {

template <class T> struct ForwardTask {
    const T *h, *C, *u;
    T *y;
    Shape shape;
    const Taps &taps;
    Cut cut;
    PaddedRow<T> packed;
    const T *merged, *D;  // lines

    // A thread's scratch: the ring of packed rows, [row % ring_rows][N], and the taps of a row, [N][taps].
    int64_t row_elements() const { return packed.columns() * kLine<T>; }
    int64_t ring_rows() const { return 2 * taps.row_reach + 1; }
    int64_t ring_bytes() const { return ring_rows() * shape.states * row_elements() * (int64_t)sizeof(T); }
    int64_t scratch_bytes() const {
        return ring_bytes() + to_line(shape.states * taps.count * (int64_t)sizeof(Tap<T>));
    }
    T *packed_row(char *scratch, int64_t slot, int64_t n) const {
        return (T *)scratch + (slot * shape.states + n) * row_elements();
    }

    void run(int64_t task, char *scratch) const {
        const Place place(task, cut, shape.height);
        int64_t next = greatest(place.first - taps.row_reach, 0);
        for (int64_t i = place.first; i < place.last; ++i) {
            for (; next <= least(i + taps.row_reach, shape.height - 1); ++next) pack(place, next, scratch);
            emit(place, i, scratch);
        }
    }

    void pack(const Place &place, int64_t row, char *scratch) const {
        const int64_t pixel = (place.batch * shape.height + row) * shape.width, channel = place.line * kLine<T>;
        for (int64_t n = 0; n < shape.states; ++n)
            packed.pack(h + (pixel * shape.states + n) * shape.channels + channel, shape.states * shape.channels,
                        shape.channels - channel, packed_row(scratch, row % ring_rows(), n));
    }

    void emit(const Place &place, int64_t i, char *scratch) const {
        Tap<T> *sources = (Tap<T> *)(scratch + ring_bytes());
        const T *weights = merged + place.line * taps.count * kLine<T>;
        const RingPlace ring(ring_rows(), i);
        for (int64_t n = 0; n < shape.states; ++n)
            aim_taps(taps, ring, shape.height, (T *)scratch + n * row_elements(), shape.states * row_elements(),
                     packed.reach * (int64_t)kLine<T>, weights, sources + n * taps.count);
        const int64_t channel = place.line * kLine<T>, pixel = (place.batch * shape.height + i) * shape.width;
        const OutputRow<T> output{sources,
                                  taps.count,
                                  (int)shape.states,
                                  C == nullptr ? nullptr : C + pixel * shape.states,
                                  D + channel,
                                  u == nullptr ? nullptr : u + pixel * shape.channels + channel,
                                  y + pixel * (C == nullptr ? shape.states : 1) * shape.channels + channel,
                                  shape.channels,
                                  shape.channels - channel};
        for_tiles(0, shape.width, output);
    }
};

template <class T>
int fusion_forward(const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *y,
                   const int64_t *sizes, const int64_t *dilations, int64_t kernels, int64_t threads) {
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    const Taps taps(dilations, kernels, shape.height, shape.width);
    const Cut cut = Cut::even(shape, kLine<T>, threads);
    aligned_buffer weights((size_t)(cut.lines * (taps.count + 1)) * kLineBytes);
    if (taps.memory.data == nullptr || weights.data == nullptr) return SF_NO_MEMORY;
    T *merged = (T *)weights.data, *D_lines = merged + cut.lines * taps.count * kLine<T>;
    pad_channels(D, shape.channels, cut.lines, D_lines);
    const PaddedRow<T> packed{shape.width, taps.column_reach};
    const ForwardTask<T> task{h, C, u, y, shape, taps, cut, packed, merged, D_lines};
    return run_tasks(task, cut.tasks, threads, taps, cut.lines, weight, alpha, kernels, shape.channels,
                     merged, [] {});
}

}  // namespace
}  // namespace SF_ISA

#define SF_FUSION_FORWARD(suffix, T)                                                                                   \
    SF_EXPORT(state_fusion_forward_##suffix)                                                                           \
    (const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *y, const int64_t *sizes,      \
     const int64_t *dilations, int64_t kernels, int64_t threads) {                                                             \
        return SF_ISA::fusion_forward<T>(h, weight, alpha, C, D, u, y, sizes, dilations, kernels, threads);                   \
    }
SF_FUSION_FORWARD(f32, float)
SF_FUSION_FORWARD(f64, double)

// State fusion of volumes: fused = sum of taps over clamped neighbours, y = sum_n C_n * fused_n + D * u. Forward.
#include "fusion_slices.h"

namespace SF_ISA {
namespace {

template <class T> struct ForwardTask {
    const T *h, *C, *u;
    T *y;
    VolumeShape shape;
    const VolumeTaps &taps;
    Cut cut;
    SliceRing<T> ring;
    const T *merged, *D;  // lines

    // A thread's scratch: the ring of packed slices, and the taps of a row, [N][taps].
    int64_t ring_bytes() const { return ring.elements() * (int64_t)sizeof(T); }
    int64_t scratch_bytes() const {
        return ring_bytes() + to_line(shape.states * taps.count * (int64_t)sizeof(Tap<T>));
    }

    void run(int64_t task, char *scratch) const {
        const Place place(task, cut, shape.depth);
        int64_t next = greatest(place.first - taps.slice_reach, 0);
        for (int64_t z = place.first; z < place.last; ++z) {
            for (; next <= least(z + taps.slice_reach, shape.depth - 1); ++next) ring.pack(h, place, next, (T *)scratch);
            for (int64_t row = 0; row < shape.height; ++row) emit(place, z, row, scratch);
        }
    }

    void emit(const Place &place, int64_t z, int64_t row, char *scratch) const {
        Tap<T> *sources = (Tap<T> *)(scratch + ring_bytes());
        const T *weights = merged + place.line * taps.count * kLine<T>;
        for (int64_t n = 0; n < shape.states; ++n)
            ring.aim(ring.around(z), row, n, (const T *)scratch, weights, sources + n * taps.count);
        const int64_t channel = place.line * kLine<T>, voxel = shape.voxel(place.batch, z, row);
        const OutputRow<T> output{sources,
                                  taps.count,
                                  (int)shape.states,
                                  C == nullptr ? nullptr : C + voxel * shape.states,
                                  D + channel,
                                  u == nullptr ? nullptr : u + voxel * shape.channels + channel,
                                  y + voxel * (C == nullptr ? shape.states : 1) * shape.channels + channel,
                                  shape.channels,
                                  shape.channels - channel};
        for_tiles(0, shape.width, output);
    }
};

template <class T>
int fusion_3d_forward(const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *y,
                      const int64_t *sizes, const int64_t *dilations, int64_t kernels, int64_t threads) {
    const VolumeShape shape(sizes);
    const VolumeTaps taps(dilations, kernels, shape.depth, shape.height, shape.width);
    const Cut cut = Cut::even(shape.of_slices(), kLine<T>, threads);
    aligned_buffer weights((size_t)(cut.lines * (taps.count + 1)) * kLineBytes);
    if (taps.memory.data == nullptr || weights.data == nullptr) return SF_NO_MEMORY;
    T *merged = (T *)weights.data, *D_lines = merged + cut.lines * taps.count * kLine<T>;
    pad_channels(D, shape.channels, cut.lines, D_lines);
    const SliceRing<T> ring{shape, taps, {shape.width, taps.column_reach}};
    const ForwardTask<T> task{h, C, u, y, shape, taps, cut, ring, merged, D_lines};
    return run_tasks(task, cut.tasks, threads, taps, cut.lines, weight, alpha, kernels, shape.channels,
                     merged, [] {});
}

}  // namespace
}  // namespace SF_ISA

#define SF_FUSION_3D_FORWARD(suffix, T)                                                                                \
    SF_EXPORT(state_fusion_3d_forward_##suffix)                                                                        \
    (const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *y, const int64_t *sizes,      \
     const int64_t *dilations, int64_t kernels, int64_t threads) {                                                     \
        return SF_ISA::fusion_3d_forward<T>(h, weight, alpha, C, D, u, y, sizes, dilations, kernels, threads);         \
    }
SF_FUSION_3D_FORWARD(f32, float)
SF_FUSION_3D_FORWARD(f64, double)

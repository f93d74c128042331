// State fusion of volumes, slice by slice: what state_fusion_3d.cpp and state_fusion_3d_backward.cpp share.
//
// As in fusion_rows.h, with slices in place of rows: a task works on one line of channels of one volume, and the last
// 2 * reach + 1 slices lie packed in a ring, each row with its padding written out.
#pragma once
#include "fusion_rows.h"

namespace SF_ISA {

struct VolumeShape {
    int64_t batch, depth, height, width, states, channels;
    explicit VolumeShape(const int64_t *sizes)
        : batch(sizes[0]), depth(sizes[1]), height(sizes[2]), width(sizes[3]), states(sizes[4]), channels(sizes[5]) {}
    Shape of_slices() const { return {batch, depth, height * width, states, channels}; }  // to cut along the depth
    int64_t voxels() const { return batch * depth * height * width; }
    int64_t voxel(int64_t b, int64_t z, int64_t y) const { return ((b * depth + z) * height + y) * width; }
};

// The distinct places that the 27 K taps read: 79 for dilations 1, 3, 5.
struct VolumeTaps : Taps {
    int *dz = nullptr, *slice_steps = nullptr;
    int num_slice_steps = 0, slice_reach = 0;

    VolumeTaps(const int64_t *dilations, int64_t kernels, int64_t depth, int64_t height, int64_t width)
        : Taps((size_t)(kernels * (4 * 27 + 3)) * sizeof(int), 27) {
        if (memory.data == nullptr) return;
        dz = (int *)memory.data;
        dy = dz + kernels * 27;
        dx = dy + kernels * 27;
        of = dx + kernels * 27;
        slice_steps = of + kernels * 27;
        row_steps = slice_steps + kernels;
        column_steps = row_steps + kernels;
        for (int a = -1; a <= 1; ++a)
            for (int b = -1; b <= 1; ++b)
                for (int64_t k = 0; k < kernels; ++k)
                    for (int c = -1; c <= 1; ++c) add(a, b, c, k, dilations[k], depth, height, width);
        for (int s = 0; s < num_slice_steps; ++s) slice_reach = (int)greatest(slice_reach, slice_steps[s]);
        for (int s = 0; s < num_row_steps; ++s) row_reach = (int)greatest(row_reach, row_steps[s]);
        for (int s = 0; s < num_column_steps; ++s) column_reach = (int)greatest(column_reach, column_steps[s]);
    }

  private:
    void add(int a, int b, int c, int64_t k, int64_t dilation, int64_t depth, int64_t height, int64_t width) {
        const int z = a * (int)least(dilation, depth - 1);
        const int y = b * (int)least(dilation, height - 1);
        const int x = c * (int)least(dilation, width - 1);
        int t = 0;
        while (t < count && (dz[t] != z || dy[t] != y || dx[t] != x)) ++t;
        of[k * 27 + (a + 1) * 9 + (b + 1) * 3 + c + 1] = t;
        dz[t] = z;
        dy[t] = y;
        dx[t] = x;
        if (t == count) ++count;
        note(slice_steps, num_slice_steps, z);
        note(row_steps, num_row_steps, y);
        note(column_steps, num_column_steps, x);
    }
};

// A ring of packed slices of h, [slot][N][H] rows.
template <class T> struct SliceRing {
    VolumeShape shape;
    const VolumeTaps &taps;
    PaddedRow<T> packed;

    int64_t slots() const { return 2 * taps.slice_reach + 1; }
    int64_t row_elements() const { return packed.columns() * kLine<T>; }
    int64_t state_elements() const { return shape.height * row_elements(); }
    int64_t slot_elements() const { return shape.states * state_elements(); }
    int64_t elements() const { return slots() * slot_elements(); }
    RingPlace around(int64_t z) const { return {slots(), z}; }

    void pack(const T *h, const Place &place, int64_t z, T *ring) const {
        const int64_t channel = place.line * kLine<T>;
        T *slot = ring + (z % slots()) * slot_elements();
        for (int64_t y = 0; y < shape.height; ++y)
            for (int64_t n = 0; n < shape.states; ++n) {
                const int64_t from = (shape.voxel(place.batch, z, y) * shape.states + n) * shape.channels + channel;
                packed.pack(h + from, shape.states * shape.channels, shape.channels - channel,
                            slot + n * state_elements() + y * row_elements());
            }
    }

    // Points the taps at what row y of slice `place.row` reads of state n.
    void aim(const RingPlace &place, int64_t y, int64_t n, const T *ring, const T *weights, Tap<T> *aimed) const {
        const T *of_state = ring + n * state_elements() + packed.reach * (int64_t)kLine<T>, *row = nullptr;
        for (int t = 0; t < taps.count; ++t) {
            if (t == 0 || taps.dz[t] != taps.dz[t - 1] || taps.dy[t] != taps.dy[t - 1])
                row = of_state + place.of(clamped(place.row + taps.dz[t], 0, shape.depth - 1)) * slot_elements() +
                      clamped(y + taps.dy[t], 0, shape.height - 1) * row_elements();
            aimed[t].source = row + taps.dx[t] * kLine<T>;
            aimed[t].weight = weights + t * kLine<T>;
        }
    }
};

}  // namespace SF_ISA

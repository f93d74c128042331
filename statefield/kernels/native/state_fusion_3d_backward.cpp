// State fusion of volumes, backward. A task walks through some slices of one line of channels of one volume and gives
// grad_h and grad_u of them, and partial sums of the other gradients, which are added in a fixed order afterwards.
#include "fusion_gradients.h"
#include "fusion_slices.h"

namespace SF_ISA {
namespace {

// A ring of packed slices of g = C * grad, [slot][N] planes. Replicate padding makes a row or slice at the rim collect
// from every place that was clamped to it: behind its H rows a plane holds, for each distance s > 0, the sum of its first
// s + 1 rows and then likewise of its last; sums of the first or the last slices are made when that rim is reached.
template <class T> struct GradientRing {
    VolumeShape shape;
    const VolumeTaps &taps;
    GradientRow<T> packed;

    int64_t slots() const { return 2 * taps.slice_reach + 1; }
    int64_t rows() const { return shape.height + 2 * taps.num_row_steps; }
    int64_t row_elements() const { return packed.columns() * kLine<T>; }
    int64_t plane_elements() const { return rows() * row_elements(); }
    int64_t elements() const { return slots() * shape.states * plane_elements(); }
    int64_t rim_elements() const { return taps.num_slice_steps * plane_elements(); }
    T *plane(T *ring, int64_t slot, int64_t n) const { return ring + (slot * shape.states + n) * plane_elements(); }

    void pack(const T *grad, const T *C, const Place &place, int64_t z, T *ring) const {
        const int64_t channel = place.line * kLine<T>, valid = shape.channels - channel;
        for (int64_t n = 0; n < shape.states; ++n) {
            T *to = plane(ring, z % slots(), n);
            for (int64_t y = 0; y < shape.height; ++y) {
                const int64_t at = shape.voxel(place.batch, z, y);
                T *row = to + y * row_elements();
                if (C != nullptr)
                    packed.pack(grad + at * shape.channels + channel, shape.channels, valid, C + at * shape.states + n,
                                shape.states, row);
                else
                    packed.pack(grad + (at * shape.states + n) * shape.channels + channel,
                                shape.states * shape.channels, valid, nullptr, 0, row);
            }
            sum_rows(to);
        }
    }
    void sum_rows(T *plane) const {
        memset(plane + shape.height * row_elements(), 0,
               (size_t)(2 * taps.num_row_steps * row_elements()) * sizeof(T));
        for (int s = 0; s < taps.num_row_steps; ++s)
            for (int far = 0; far < 2; ++far) {
                T *sum = plane + (shape.height + far * taps.num_row_steps + s) * row_elements();
                const int64_t first = far ? shape.height - 1 - taps.row_steps[s] : 0;
                for (int64_t y = first; y <= first + taps.row_steps[s]; ++y)
                    packed.add_lines(sum, plane + y * row_elements(), packed.columns());
            }
    }
    // The sums of slices that slice `place.row`, the first or the last, collects.
    void sum_slices(const RingPlace &place, int64_t n, T *ring, T *rim) const {
        for (int s = 0; s < taps.num_slice_steps; ++s) {
            T *sum = rim + s * plane_elements();
            memset(sum, 0, (size_t)plane_elements() * sizeof(T));
            const Readers readers(place.row, place.row == 0 ? -taps.slice_steps[s] : taps.slice_steps[s], shape.depth);
            for (int64_t z = readers.first; z <= readers.last; ++z)
                packed.add_lines(sum, plane(ring, place.of(z), n), rows() * packed.columns());
        }
    }

    // Where a packed row lies that holds what row y of slice `place.row` gets from tap t; null where that is nothing.
    const T *giving_row(const RingPlace &place, int64_t y, int t, int64_t n, T *ring, const T *rim) const {
        const Readers slices(place.row, taps.dz[t], shape.depth), readers(y, taps.dy[t], shape.height);
        if (slices.none() || readers.none()) return nullptr;
        const T *from = slices.one() ? plane(ring, place.of(slices.first), n)
                                     : rim + step(taps.slice_steps, taps.num_slice_steps, taps.dz[t]) * plane_elements();
        int64_t row = readers.first;
        if (!readers.one())
            row = shape.height + (y == 0 ? 0 : taps.num_row_steps) + step(taps.row_steps, taps.num_row_steps, taps.dy[t]);
        return from + row * row_elements();
    }
    static int step(const int *steps, int count, int signed_step) {
        return Taps::place(steps, count, signed_step < 0 ? -signed_step : signed_step);
    }
};

template <class T> struct BackwardTask {
    const FusionGradients<T> &of;
    VolumeShape shape;
    const VolumeTaps &taps;
    Cut cut;
    SliceRing<T> h_ring;
    GradientRing<T> g_ring;
    const T *merged, *D;  // lines
    T *tap_sums;          // [batch * chunks][lines][taps] lines
    T *D_sums;            // [batch * chunks][lines] lines
    T *C_sums;            // [lines][B, D, H, W, N]

    int64_t scratch_bytes() const {
        return (h_ring.elements() + g_ring.elements() + g_ring.rim_elements()) * (int64_t)sizeof(T) +
               to_line(taps.count * (int64_t)sizeof(Tap<T>));
    }
    int64_t valid(const Place &place) const { return shape.channels - place.line * kLine<T>; }
    const T *weights(const Place &place) const { return merged + place.line * taps.count * kLine<T>; }

    void run(int64_t task, char *memory) const {
        T *own_h = (T *)memory, *own_g = own_h + h_ring.elements(), *rim = own_g + g_ring.elements();
        Tap<T> *aimed = (Tap<T> *)(rim + g_ring.rim_elements());
        const Place place(task, cut, shape.depth);
        T *own_taps = tap_sums + (place.part * cut.lines + place.line) * taps.count * kLine<T>;
        T *own_D = D_sums + (place.part * cut.lines + place.line) * kLine<T>;
        memset(own_taps, 0, (size_t)taps.count * kLineBytes);
        memset(own_D, 0, kLineBytes);
        int64_t next = greatest(place.first - taps.slice_reach, 0);
        for (int64_t z = place.first; z < place.last; ++z) {
            for (; next <= least(z + taps.slice_reach, shape.depth - 1); ++next) {
                h_ring.pack(of.h, place, next, own_h);
                g_ring.pack(of.grad, of.C, place, next, own_g);
            }
            const RingPlace around = h_ring.around(z);
            for (int64_t n = 0; n < shape.states; ++n) {
                if (z == 0 || z == shape.depth - 1) g_ring.sum_slices(around, n, own_g, rim);
                for (int64_t y = 0; y < shape.height; ++y) {
                    gather_grad_h(place, around, y, n, own_g, rim, aimed);
                    h_ring.aim(around, y, n, own_h, weights(place), aimed);
                    if (of.C != nullptr) read_out(place, z, y, n, aimed);
                    const T *g = g_ring.plane(own_g, around.slot, n) + y * g_ring.row_elements();
                    add_row_of_taps(aimed, taps.count, g + g_ring.packed.line_of(0), shape.width, own_taps);
                }
            }
            if (of.u == nullptr) continue;
            for (int64_t y = 0; y < shape.height; ++y) {
                const int64_t first = shape.voxel(place.batch, z, y) * shape.channels + place.line * kLine<T>;
                of.skip(first, shape.width, valid(place), D + place.line * kLine<T>, own_D);
            }
        }
    }

    void gather_grad_h(const Place &place, const RingPlace &around, int64_t y, int64_t n, T *ring, const T *rim,
                       Tap<T> *aimed) const {
        const int64_t voxel = shape.voxel(place.batch, around.row, y), stride = shape.states * shape.channels;
        T *to = of.grad_h + (voxel * shape.states + n) * shape.channels + place.line * kLine<T>;
        const GradientRow<T> &packed = g_ring.packed;
        int count = 0;
        for (int t = 0; t < taps.count; ++t) {
            const T *row = g_ring.giving_row(around, y, t, n, ring, rim);
            if (row != nullptr)
                aimed[count++] = {row + packed.line_of(-taps.dx[t]), weights(place) + t * kLine<T>};
        }
        for_tiles(1, shape.width - 1, PlainRow<T>{aimed, count, to, stride, valid(place)});
        for (int64_t j = 0; j < shape.width; j += greatest(shape.width - 1, 1)) {  // the columns at the rims
            count = 0;
            for (int t = 0; t < taps.count; ++t) {
                const T *row = g_ring.giving_row(around, y, t, n, ring, rim);
                const int64_t held = packed.place(j, taps.dx[t]);
                if (row != nullptr && held >= 0) aimed[count++] = {row + held, weights(place) + t * kLine<T>};
            }
            PlainRow<T>{aimed, count, to + j * stride, stride, valid(place)}.template tile<1>(0);
        }
    }

    void read_out(const Place &place, int64_t z, int64_t y, int64_t n, const Tap<T> *aimed) const {
        const int64_t at = shape.voxel(place.batch, z, y);
        const T *from = of.grad + at * shape.channels + place.line * kLine<T>;
        T *to = C_sums + (place.line * shape.voxels() + at) * shape.states + n;
        for_tiles(0, shape.width, ReadOut<T>{aimed, taps.count, from, shape.channels, valid(place), to, shape.states});
    }
};

template <class T>
int fusion_3d_backward(const FusionGradients<T> &of, const VolumeShape &shape, const int64_t *dilations, int64_t threads) {
    const VolumeTaps taps(dilations, of.kernels, shape.depth, shape.height, shape.width);
    if (taps.memory.data == nullptr) return SF_NO_MEMORY;
    const Cut cut(shape.of_slices(), kLine<T>);
    return of.run(taps, cut, threads, [&](const T *merged, const T *D, T *tap_sums, T *D_sums, T *C_sums) {
        const SliceRing<T> h_ring{shape, taps, {shape.width, taps.column_reach}};
        const GradientRing<T> g_ring{shape, taps, {taps, shape.width}};
        return BackwardTask<T>{of, shape, taps, cut, h_ring, g_ring, merged, D, tap_sums, D_sums, C_sums};
    });
}

}  // namespace
}  // namespace SF_ISA

#define SF_FUSION_3D_BACKWARD(suffix, T)                                                                               \
    SF_EXPORT(state_fusion_3d_backward_##suffix)                                                                       \
    (const T *grad, const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *grad_h,        \
     T *grad_weight, T *grad_alpha, T *grad_C, T *grad_D, T *grad_u, const int64_t *sizes, const int64_t *dilations,   \
     int64_t kernels, int64_t threads) {                                                                               \
        const SF_ISA::VolumeShape shape(sizes);                                                                        \
        const SF_ISA::FusionGradients<T> of{                                                                           \
            grad, h, weight, alpha, C, D, u, grad_h, grad_weight, grad_alpha, grad_C, grad_D, grad_u, kernels,         \
            shape.channels, shape.batch, shape.voxels() * shape.states};                                               \
        return SF_ISA::fusion_3d_backward<T>(of, shape, dilations, threads);                                           \
    }
SF_FUSION_3D_BACKWARD(f32, float)
SF_FUSION_3D_BACKWARD(f64, double)

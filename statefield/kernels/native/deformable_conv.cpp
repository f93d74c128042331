// The deformable convolution, forward and backward. A vector lane is a channel of a group.
//
// Where a group's points lie is worked out once a pixel: four places in memory and four shares for each. A place outside
// the map leads to a row of zeros (or, for gradients, to a row that nobody reads), so the loops over channels know nothing
// of borders. The backward of x is a scatter: a task has channels of its own and walks the whole map.
#include "selective_scan_block.h"

// A [B, H, W, ...] tensor: what an index along each axis adds, in elements. `group` is that of [B, H, W, G, ...].
struct sf_map {
    const void *data;
    int64_t batch, row, pixel, group;
};

// The C side of `_Problem` in deformable_conv/native.py, field by field.
struct sf_deformable {
    int64_t batch, height, width, groups, channels, side, parts, threads;  // `channels` of a group
    double dilation;
    struct sf_map x, grad;        // [B, H, W, G D], the last axis dense
    struct sf_map offset, mask;   // [B, H, W, G, P, 2], [B, H, W, G, P], the last axes dense
    void *y;                      // [B, H, W, G D]
    void *grad_x;                 // [B, H, W, G D]
    void *grad_offset;            // [parts, B, H, W, G, P, 2]: a partial sum for each part of a group's channels
    void *grad_mask;              // [parts, B, H, W, G, P]
};

namespace SF_ISA {
namespace {

// The sum of a vector's lanes, halves first: one order on every run.
template <typename T, int Count>
struct lane_sum {
    typedef T half __attribute__((vector_size(Count / 2 * sizeof(T))));
    template <typename V>
    static SF_INLINE T of(const V &x) {
        half low, high;
        memcpy(&low, &x, sizeof(half));
        memcpy(&high, (const char *)&x + sizeof(half), sizeof(half));
        return lane_sum<T, Count / 2>::of(low + high);
    }
};
template <typename T>
struct lane_sum<T, 2> {
    template <typename V>
    static SF_INLINE T of(const V &x) {
        return x[0] + x[1];
    }
};

SF_INLINE float floor_of(float x) { return __builtin_floorf(x); }
SF_INLINE double floor_of(double x) { return __builtin_floor(x); }

// A point that a pixel reads: its four pixels (upper left, upper right, lower left, lower right), their shares.
template <typename T>
struct point {
    int64_t top, left;  // of the upper left one
    bool inside[4], reaches;
    T share[4], fx, fy;

    // Where the four are in a map with these steps; `outside` for those beyond its borders.
    template <typename E>
    SF_INLINE void places(E *map, int64_t row, int64_t pixel, E *outside, E *found[4]) const {
        const int64_t corner = top * row + left * pixel;
        found[0] = inside[0] ? map + corner : outside;
        found[1] = inside[1] ? map + corner + pixel : outside;
        found[2] = inside[2] ? map + corner + row : outside;
        found[3] = inside[3] ? map + corner + row + pixel : outside;
    }
};

template <typename T>
struct points {
    const sf_deformable &p;
    const int64_t count;
    T *grid_x, *grid_y;  // [P]: the regular grid
    point<T> *of;        // [P]

    static size_t bytes(const sf_deformable &p) {
        return (size_t)(p.side * p.side) * (sizeof(point<T>) + 2 * sizeof(T)) + 64;
    }
    points(const sf_deformable &p, void *memory)
        : p(p), count(p.side * p.side), of((point<T> *)memory) {
        grid_x = (T *)(of + count);
        grid_y = grid_x + count;
        for (int64_t i = 0; i < p.side; ++i)
            for (int64_t j = 0; j < p.side; ++j) {
                grid_x[i * p.side + j] = (T)(p.dilation * ((double)i - (double)(p.side - 1) / 2));
                grid_y[i * p.side + j] = (T)(p.dilation * ((double)j - (double)(p.side - 1) / 2));
            }
    }

    // `distance` from a pixel along an axis: the pixel before that place, the share of the way to the next one.
    static SF_INLINE bool place(int64_t pixel, T distance, int64_t size, int64_t &before, T &share) {
        const T far = (T)(size + 1);
        distance = distance > far ? far : distance < -far ? -far : distance;  // a NaN stays
        const T whole = floor_of(distance);
        share = distance - whole;
        before = pixel + (distance == distance ? (int64_t)whole : 0);
        return !(before < -1 || before >= size || (before == -1 && share == 0));
    }

    static SF_INLINE bool within(int64_t index, int64_t size) { return (uint64_t)index < (uint64_t)size; }

    SF_INLINE void locate(int64_t row, int64_t column, const T *offset) {
        for (int64_t k = 0; k < count; ++k) {
            point<T> &a = of[k];
            const bool columns = place(column, grid_x[k] + offset[2 * k], p.width, a.left, a.fx);
            const bool rows = place(row, grid_y[k] + offset[2 * k + 1], p.height, a.top, a.fy);
            a.reaches = columns & rows;
            const bool up = within(a.top, p.height), down = within(a.top + 1, p.height);
            const bool near = within(a.left, p.width), next = within(a.left + 1, p.width);
            a.inside[0] = up & near;
            a.inside[1] = up & next;
            a.inside[2] = down & near;
            a.inside[3] = down & next;
            a.share[0] = (1 - a.fy) * (1 - a.fx);
            a.share[1] = (1 - a.fy) * a.fx;
            a.share[2] = a.fy * (1 - a.fx);
            a.share[3] = a.fy * a.fx;
        }
    }
};

template <typename T, bool Whole>
SF_INLINE vec<T> take(const T *from, int64_t left) {
    if constexpr (Whole)
        return load(from);
    else
        return load_part(from, left);
}
template <typename T, bool Whole>
SF_INLINE void give(T *to, vec<T> x, int64_t left) {
    if constexpr (Whole)
        store(to, x);
    else
        store_part(to, x, left);
}

template <typename T>
struct deformable {
    static constexpr int W = lanes<T>::count;
    using V = vec<T>;

    static const T *element(const sf_map &map, int64_t batch, int64_t row, int64_t column, int64_t group) {
        return (const T *)map.data + batch * map.batch + row * map.row + column * map.pixel + group * map.group;
    }

    // What the forward reads: a pixel's channels of the group, and how much of them.
    struct reading {
        const T *from;
        T weight;
    };

    // `Vectors` vectors of channels at once, so that a weight is fetched once for all; two sums each, since one would wait
    // for itself. The number of readings is even.
    template <int Vectors, bool Whole>
    static SF_INLINE void weigh(const reading *readings, int64_t count, int64_t channel, T *y, int64_t left) {
        V a[Vectors] = {}, b[Vectors] = {};
        for (int64_t k = 0; k < count; k += 2) {
            const V u = splat(readings[k].weight), v = splat(readings[k + 1].weight);
            const T *p = readings[k].from + channel, *q = readings[k + 1].from + channel;
#pragma GCC unroll 4
            for (int i = 0; i < Vectors; ++i) {
                a[i] += u * take<T, Whole>(p + i * W, left);
                b[i] += v * take<T, Whole>(q + i * W, left);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < Vectors; ++i) give<T, Whole>(y + channel + i * W, a[i] + b[i], left);
    }

    static int forward(const sf_deformable &p) {
        const int64_t count = p.side * p.side, D = p.channels;
        int failed = 0;
#pragma omp parallel for num_threads(p.threads) schedule(static)
        for (int64_t task = 0; task < p.batch * p.height; ++task) {
            const size_t located = (points<T>::bytes(p) + 63) / 64 * 64;
            const size_t listed = ((size_t)(4 * count) * sizeof(reading) + 63) / 64 * 64;
            aligned_buffer memory(located + listed + (size_t)D * sizeof(T));
            if (!memory.data) {
                __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
                continue;
            }
            points<T> here(p, memory.data);
            reading *readings = (reading *)((char *)memory.data + located);
            T *nothing = (T *)((char *)readings + listed);
            memset((void *)nothing, 0, (size_t)D * sizeof(T));
            const int64_t batch = task / p.height, row = task % p.height;
            const T *plane = element(p.x, batch, 0, 0, 0);
            T *y = (T *)p.y + task * p.width * p.groups * D;
            for (int64_t column = 0; column < p.width; ++column)
                for (int64_t group = 0; group < p.groups; ++group, y += D) {
                    here.locate(row, column, element(p.offset, batch, row, column, group));
                    const T *mask = element(p.mask, batch, row, column, group);
                    const int64_t used = list(p, here, mask, plane + group * D, nothing, readings);
                    int64_t c = 0;
                    for (; c + 4 * W <= D; c += 4 * W) weigh<4, true>(readings, used, c, y, W);
                    for (; c + 2 * W <= D; c += 2 * W) weigh<2, true>(readings, used, c, y, W);
                    for (; c + W <= D; c += W) weigh<1, true>(readings, used, c, y, W);
                    if (c < D) weigh<1, false>(readings, used, c, y, D - c);
                }
        }
        return failed ? SF_NO_MEMORY : SF_OK;
    }

    // Four readings for each point that reaches the map; returns how many. A mask that is no number says so in the result
    // even where its point does not reach.
    static SF_INLINE int64_t list(const sf_deformable &p, const points<T> &here, const T *mask, const T *plane,
                                  const T *nothing, reading *readings) {
        reading *next = readings;
        for (int64_t k = 0; k < here.count; ++k) {
            const point<T> &a = here.of[k];
            const T *from[4] = {nothing, nothing, nothing, nothing};
            if (a.reaches)
                a.places(plane, p.x.row, p.x.pixel, nothing, from);
            else if (mask[k] - mask[k] == 0)
                continue;
            for (int64_t c = 0; c < 4; ++c, ++next) *next = {from[c], mask[k] * a.share[c]};
        }
        return next - readings;
    }

    static int backward(const sf_deformable &p) {
        const blocking cut(p.batch * p.groups, (p.channels + W - 1) / W, p.channels, p.threads);
        if (cut.per_sequence > p.parts) return SF_BAD_ARGUMENT;
        int failed = 0;
#pragma omp parallel for num_threads(p.threads) schedule(dynamic, 1)
        for (int64_t task = 0; task < cut.tasks; ++task) {
            const flush_denormals guard;
            const size_t located = (points<T>::bytes(p) + 63) / 64 * 64;
            const int64_t part = task % cut.per_sequence, sequence = task / cut.per_sequence;
            const int64_t first = cut.first_vector(part) * W, end = cut.first_vector(part + 1) * W;
            const int64_t last = end < p.channels ? end : p.channels;
            const size_t row_bytes = (size_t)(last - first) * sizeof(T);
            aligned_buffer memory(located + 2 * row_bytes);
            if (!memory.data) {
                __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
                continue;
            }
            T *nothing = (T *)((char *)memory.data + located), *unread = nothing + (last - first);
            memset((void *)nothing, 0, 2 * row_bytes);
            scatter(p, sequence / p.groups, sequence % p.groups, part, first, last, memory.data, nothing, unread);
        }
        return failed ? SF_NO_MEMORY : SF_OK;
    }

    // Channels [first, last) of one group of one batch entry, over the whole map.
    static void scatter(const sf_deformable &p, int64_t batch, int64_t group, int64_t part, int64_t first, int64_t last,
                        void *memory, const T *nothing, T *unread) {
        points<T> here(p, memory);
        const int64_t wide = p.groups * p.channels, begin = group * p.channels + first, pixels = p.height * p.width;
        const T *plane = element(p.x, batch, 0, 0, 0) + begin;
        T *grad_plane = (T *)p.grad_x + batch * pixels * wide + begin;
        for (int64_t q = 0; q < pixels; ++q) memset((void *)(grad_plane + q * wide), 0, (size_t)(last - first) * sizeof(T));
        for (int64_t row = 0; row < p.height; ++row)
            for (int64_t column = 0; column < p.width; ++column) {
                here.locate(row, column, element(p.offset, batch, row, column, group));
                const T *mask = element(p.mask, batch, row, column, group);
                const T *grad = element(p.grad, batch, row, column, 0) + begin;
                const int64_t entry = (part * p.batch + batch) * pixels + row * p.width + column;
                T *grad_mask = (T *)p.grad_mask + (entry * p.groups + group) * here.count;
                T *grad_offset = (T *)p.grad_offset + (entry * p.groups + group) * here.count * 2;
                for (int64_t k = 0; k < here.count; ++k) {
                    const point<T> &a = here.of[k];
                    if (!a.reaches) {
                        grad_mask[k] = grad_offset[2 * k] = grad_offset[2 * k + 1] = 0;
                        continue;
                    }
                    const T *from[4];
                    T *to[4], weight[4];
                    a.places(plane, p.x.row, p.x.pixel, nothing, from);
                    a.places(grad_plane, p.width * wide, wide, unread, to);
                    for (int64_t c = 0; c < 4; ++c) weight[c] = mask[k] * a.share[c];
                    V dot[4] = {};
                    int64_t c = 0;
                    for (; c + W <= last - first; c += W) spread<true>(grad, from, to, weight, dot, c, W);
                    if (c < last - first) spread<false>(grad, from, to, weight, dot, c, last - first - c);
                    // Sums over lanes last: they are what takes time.
                    const V of_mask = splat(a.share[0]) * dot[0] + splat(a.share[1]) * dot[1] +
                                      splat(a.share[2]) * dot[2] + splat(a.share[3]) * dot[3];
                    const V of_x = splat(1 - a.fy) * (dot[1] - dot[0]) + splat(a.fy) * (dot[3] - dot[2]);
                    const V of_y = splat(1 - a.fx) * (dot[2] - dot[0]) + splat(a.fx) * (dot[3] - dot[1]);
                    grad_mask[k] = lane_sum<T, W>::of(of_mask);
                    grad_offset[2 * k] = mask[k] * lane_sum<T, W>::of(of_x);
                    grad_offset[2 * k + 1] = mask[k] * lane_sum<T, W>::of(of_y);
                }
            }
    }

    // A vector of channels of one point: its products with the four pixels, and its share in their gradients.
    template <bool Whole>
    static SF_INLINE void spread(const T *grad, const T *const *from, T *const *to, const T *weight, V *dot, int64_t channel,
                                 int64_t left) {
        const V g = take<T, Whole>(grad + channel, left);
#pragma GCC unroll 4
        for (int64_t c = 0; c < 4; ++c) {
            dot[c] += g * take<T, Whole>(from[c] + channel, left);
            give<T, Whole>(to[c] + channel, take<T, Whole>(to[c] + channel, left) + splat(weight[c]) * g, left);
        }
    }
};

}  // namespace

// How many parts the channels of a group are cut into: the size of the partial sums that the backward leaves.
template <typename T>
int parts_of(const sf_deformable &p) {
    constexpr int W = lanes<T>::count;
    return (int)blocking(p.batch * p.groups, (p.channels + W - 1) / W, p.channels, p.threads).per_sequence;
}

}  // namespace SF_ISA

SF_EXPORT(deformable_conv_parts_f32)(const sf_deformable *p) { return SF_ISA::parts_of<float>(*p); }
SF_EXPORT(deformable_conv_parts_f64)(const sf_deformable *p) { return SF_ISA::parts_of<double>(*p); }
SF_EXPORT(deformable_conv_forward_f32)(const sf_deformable *p) { return SF_ISA::deformable<float>::forward(*p); }
SF_EXPORT(deformable_conv_forward_f64)(const sf_deformable *p) { return SF_ISA::deformable<double>::forward(*p); }
SF_EXPORT(deformable_conv_backward_f32)(const sf_deformable *p) { return SF_ISA::deformable<float>::backward(*p); }
SF_EXPORT(deformable_conv_backward_f64)(const sf_deformable *p) { return SF_ISA::deformable<double>::backward(*p); }

// State fusion, row by row: what state_fusion.cpp, state_fusion_3d.cpp and structure_aware_scan.cpp share.
//
// Channels are cut into lines of 64 bytes (16 floats, 8 doubles: one cache line). A task works on one line of one
// image: rows of h are copied into a ring of packed rows, [column][line], with the padding written out, so the taps
// need no clamping and no bounds, and the ring of the last 2 * reach + 1 rows stays in the second-level cache.
//
// The backward is the same gather with mirrored taps over packed rows of the gradient. Replicate padding makes a row or
// column at the rim of the map collect from every place that was clamped to it; these sums of rows and columns are
// packed as further rows and columns, so the rim is gathered as the interior is, only from other addresses.
#pragma once
#include "simd.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace SF_ISA {

constexpr int kLineBytes = 64;
// Pixels a tile: as many accumulators as fit in the registers beside the weights. 7 divides the maps of common images
// (224 / 4 = 56, 28, 14, 7), and a 7 x 2 tile needs the fewest loads a multiplication that 16 registers allow.
#if defined(SF_ISA_avx512)
constexpr int kPixels = 14;
#elif defined(SF_ISA_avx2)
constexpr int kPixels = 7;
#elif defined(SF_ISA_neon)
constexpr int kPixels = 4;
#else
constexpr int kPixels = 2;
#endif
constexpr int kVectors = kLineBytes / SF_VECTOR_BYTES;              // vectors a line
constexpr int kTapGroup = kVectors >= 4 ? 2 : 8 / kVectors;         // taps whose weight gradients grow together
template <class T> constexpr int kLine = kLineBytes / (int)sizeof(T);  // channels a line

SF_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SF_INLINE int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }
SF_INLINE int64_t clamped(int64_t x, int64_t low, int64_t high) { return least(greatest(x, low), high); }
SF_INLINE int this_thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// The first `valid` channels of a line from or to memory; the others are zero.
template <class T> SF_INLINE void load_line(const T *from, int64_t valid, vec<T> *line) {
    constexpr int count = lanes<T>::count;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
        if (valid >= kLine<T>)
            line[v] = load(from + v * count);
        else
            line[v] = valid > v * count ? load_part(from + v * count, least(valid - v * count, count)) : vec<T>{};
    }
}
template <class T> SF_INLINE void store_line(T *to, int64_t valid, const vec<T> *line) {
    constexpr int count = lanes<T>::count;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
        if (valid >= kLine<T>)
            store(to + v * count, line[v]);
        else if (valid > v * count)
            store_part(to + v * count, line[v], least(valid - v * count, count));
    }
}
template <class T> SF_INLINE T sum_line(const vec<T> *line) {
    T total = 0;
    for (int v = 0; v < kVectors; ++v) total += sum_lanes<T>(line[v]);
    return total;
}

// The distinct places that the 9 K taps read, relative to the output pixel. Farther than the map is wide is the same as
// exactly that far, so a small map has fewer of them.
struct Taps {
    aligned_buffer memory;
    int count = 0;
    int *dy = nullptr, *dx = nullptr;                        // [count]
    int per_kernel = 9;
    int *of = nullptr;                                       // [K * per_kernel] -> distinct tap
    int *row_steps = nullptr, *column_steps = nullptr;       // the distinct distances > 0
    int num_row_steps = 0, num_column_steps = 0;
    int row_reach = 0, column_reach = 0;                     // the farthest of them

    Taps(const int64_t *dilations, int64_t kernels, int64_t height, int64_t width)
        : memory((size_t)(kernels * (3 * 9 + 2)) * sizeof(int)) {
        if (memory.data == nullptr) return;
        dy = (int *)memory.data;
        dx = dy + kernels * 9;
        of = dx + kernels * 9;
        row_steps = of + kernels * 9;
        column_steps = row_steps + kernels;
        for (int a = -1; a <= 1; ++a)  // outermost, so that most taps lie in the row of the tap before them
            for (int64_t k = 0; k < kernels; ++k)
                for (int b = -1; b <= 1; ++b) {
                    const int y = a * (int)least(dilations[k], height - 1);
                    const int x = b * (int)least(dilations[k], width - 1);
                    int t = 0;
                    while (t < count && (dy[t] != y || dx[t] != x)) ++t;
                    of[k * 9 + (a + 1) * 3 + b + 1] = t;
                    dy[t] = y;
                    dx[t] = x;
                    if (t == count) ++count;
                    note(row_steps, num_row_steps, y);
                    note(column_steps, num_column_steps, x);
                }
        for (int s = 0; s < num_row_steps; ++s) row_reach = (int)greatest(row_reach, row_steps[s]);
        for (int s = 0; s < num_column_steps; ++s) column_reach = (int)greatest(column_reach, column_steps[s]);
    }
    static int place(const int *steps, int count, int step) {
        int s = 0;
        while (s < count && steps[s] != step) ++s;
        return s;
    }

  protected:
    Taps(size_t bytes, int per_kernel) : memory(bytes), per_kernel(per_kernel) {}  // VolumeTaps fills it
    static void note(int *steps, int &count, int step) {
        if (step > 0 && place(steps, count, step) == count) steps[count++] = step;
    }
};

struct Shape {
    int64_t batch, height, width, states, channels;
};

// How the work is cut: a task gives out some rows of one line of one image.
struct Cut {
    int64_t lines;   // of all channels
    int64_t rows;    // a task's, the last one's of an image may be fewer
    int64_t chunks;  // tasks down an image
    int64_t tasks;

    // For a backward: the cut depends on the shape alone, never on the number of threads, so that sums over tasks are the
    // same whatever runs them. 16 tasks keep many threads busy; more of them would pack more rows twice.
    Cut(const Shape &shape, int per_line) : Cut(shape, per_line, 16, 0) {}

    // For a forward, which sums nothing over tasks: as few cuts down an image as share out evenly over the threads. A cut
    // costs up to 2 * reach rows that are packed twice (7 % of the time at 56 rows and dilations 1, 3, 5).
    static Cut even(const Shape &shape, int per_line, int64_t threads) { return Cut(shape, per_line, 4 * threads, threads); }

  private:
    Cut(const Shape &shape, int per_line, int64_t enough, int64_t evenly_over) {
        constexpr int64_t fewest = 8;  // rows: a task packs up to 2 * reach rows beside its own
        lines = (shape.channels + per_line - 1) / per_line;
        const int64_t columns = greatest(shape.batch * lines, 1);
        int64_t wanted = (enough - 1) / columns + 1;
        for (int64_t fewer = 1; evenly_over > 0 && fewer < wanted; ++fewer)
            if (columns * fewer % evenly_over == 0) wanted = fewer;
        rows = greatest((shape.height + wanted - 1) / wanted, fewest);
        chunks = (shape.height + rows - 1) / rows;
        tasks = shape.batch * chunks * lines;
    }
};

struct Place {  // of a task in the whole
    int64_t line, part, batch, first, last;
    Place(int64_t task, const Cut &cut, int64_t height)
        : line(task % cut.lines), part(task / cut.lines), batch(part / cut.chunks),
          first(part % cut.chunks * cut.rows), last(least(first + cut.rows, height)) {}
};

// merged[tap][channel in line] of one line: the sum of alpha_k * weight_k over the taps k that share a place; zeros
// behind the last channel. Made anew in every call: the weights may have changed.
template <class T>
void merge_weights(const Taps &taps, const T *weight, const T *alpha, int64_t kernels, int64_t channels, int64_t line,
                   T *merged) {
    memset(merged, 0, (size_t)taps.count * kLineBytes);
    const int64_t first = line * kLine<T>, valid = least(channels - first, kLine<T>);
    for (int64_t k = 0; k < kernels; ++k)
        for (int tap = 0; tap < taps.per_kernel; ++tap) {
            const T *from = weight + (k * channels + first) * taps.per_kernel + tap;
            T *to = merged + taps.of[k * taps.per_kernel + tap] * kLine<T>;
            if (valid == kLine<T>)
                for (int e = 0; e < kLine<T>; ++e) to[e] += alpha[k] * from[e * taps.per_kernel];
            else
                for (int64_t e = 0; e < valid; ++e) to[e] += alpha[k] * from[e * taps.per_kernel];
        }
}

// [E] as lines, zeros behind the last channel (all zero where `from` is null).
template <class T> void pad_channels(const T *from, int64_t channels, int64_t lines, T *to) {
    memset(to, 0, (size_t)(lines * kLine<T>) * sizeof(T));
    if (from != nullptr) memcpy(to, from, (size_t)channels * sizeof(T));
}

// Merges the taps of all lines, then runs the tasks, every thread with scratch of its own, and then after(), which all
// threads enter: loops over sums of the tasks.
template <class T, class Task, class After>
int run_tasks(const Task &task, int64_t tasks, int64_t threads, const Taps &taps, int64_t lines, const T *weight,
              const T *alpha, int64_t kernels, int64_t channels, T *merged, After after) {
    threads = clamped(tasks, 1, threads);
    const int64_t bytes = task.scratch_bytes();
    aligned_buffer scratch((size_t)(threads * bytes));
    if (scratch.data == nullptr) return SF_NO_MEMORY;
#pragma omp parallel num_threads(threads)
    {
        const flush_denormals flushed;
        char *own = (char *)scratch.data + this_thread() * bytes;
#pragma omp for schedule(static)
        for (int64_t line = 0; line < lines; ++line)
            merge_weights(taps, weight, alpha, kernels, channels, line, merged + line * taps.count * kLine<T>);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < tasks; ++t) task.run(t, own);
        after();
    }
    return SF_OK;
}

// Where rows near `row` lie in a ring of `slots`: one division for a row, none for its taps.
struct RingPlace {
    int64_t slots, row, slot;
    RingPlace(int64_t slots, int64_t row) : slots(slots), row(row), slot(row % slots) {}
    int64_t of(int64_t near) const {
        const int64_t at = slot + near - row;
        return at < 0 ? at + slots : at >= slots ? at - slots : at;
    }
};

template <class T> struct Tap {
    const T *source;  // the packed row that this tap reads, at the column that pixel 0 reads
    const T *weight;  // one line
};

// Points the taps of row i at its packed neighbours: `rows` is the ring's first row of a state, its rows lie `row_stride`
// apart, and their pixel 0 lies at `inside`.
template <class T>
SF_INLINE void aim_taps(const Taps &taps, const RingPlace &ring, int64_t height, const T *rows, int64_t row_stride,
                        int64_t inside, const T *weights, Tap<T> *aimed) {
    const T *row = nullptr;
    for (int t = 0; t < taps.count; ++t) {
        if (t == 0 || taps.dy[t] != taps.dy[t - 1])
            row = rows + ring.of(clamped(ring.row + taps.dy[t], 0, height - 1)) * row_stride + inside;
        aimed[t].source = row + taps.dx[t] * kLine<T>;
        aimed[t].weight = weights + t * kLine<T>;
    }
}

// acc[p] = sum over taps of weight * source at pixel first + p.
template <class T, int P>
SF_INLINE void gather(const Tap<T> *taps, int count, int64_t first, vec<T> (&acc)[P][kVectors]) {
    vec<T> sum[P][kVectors];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sum[p][v] = vec<T>{};
    for (int t = 0; t < count; ++t) {
        const T *source = taps[t].source + first * kLine<T>;
        asm("" : "+r"(source));  // one register and constant distances; GCC would keep a register for each pixel
        vec<T> weight[kVectors];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) weight[v] = load(taps[t].weight + v * lanes<T>::count);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
            for (int v = 0; v < kVectors; ++v) sum[p][v] += weight[v] * load(source + p * kLine<T> + v * lanes<T>::count);
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) acc[p][v] = sum[p][v];
}

// Calls run.template tile<P>(pixel) for all pixels from `first` to `last`, in tiles of kPixels, then smaller ones.
template <class Run> inline void for_tiles(int64_t first, int64_t last, Run &&run) {
    int64_t pixel = first;
    for (; pixel + kPixels <= last; pixel += kPixels) run.template tile<kPixels>(pixel);
    if constexpr (kPixels > 7)
        for (; pixel + 7 <= last; pixel += 7) run.template tile<7>(pixel);
    if constexpr (kPixels > 4)
        for (; pixel + 4 <= last; pixel += 4) run.template tile<4>(pixel);
    if constexpr (kPixels > 2)
        for (; pixel + 2 <= last; pixel += 2) run.template tile<2>(pixel);
    for (; pixel < last; ++pixel) run.template tile<1>(pixel);
}

constexpr int kAhead = 16;  // pixels between a prefetch and its use

// Packed rows of h: [reach copies of column 0][W columns][reach copies of column W - 1], each one line wide.
inline int64_t to_line(int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

template <class T> struct PaddedRow {
    int64_t width;
    int reach;
    int64_t columns() const { return width + 2 * reach; }
    T *interior(T *row) const { return row + reach * kLine<T>; }
    void pad(T *row) const {
        T *inside = interior(row);
        const T *last = inside + (width - 1) * kLine<T>;
        for (int c = 0; c < reach; ++c) {
            memcpy(row + c * kLine<T>, inside, kLineBytes);
            memcpy(inside + (width + c) * kLine<T>, last, kLineBytes);
        }
    }
    // Copies pixels that lie `stride` elements apart.
    void pack(const T *from, int64_t stride, int64_t valid, T *row) const {
        for (int64_t j = 0; j < width; ++j) {
            vec<T> line[kVectors];
            load_line(from + j * stride, valid, line);
            __builtin_prefetch(from + (j + kAhead) * stride);
            for (int v = 0; v < kVectors; ++v) store(interior(row) + j * kLine<T> + v * lanes<T>::count, line[v]);
        }
        pad(row);
    }
};

// One output row of one line: y[j] = sum_n C[j, n] * fused_n[j] + D * u[j], or fused itself where C is null.
template <class T> struct OutputRow {
    const Tap<T> *taps;  // [N][count]: where state n's packed rows lie
    int count, states;
    const T *C;          // [W][N] or null
    const T *D;          // one line
    const T *u;          // [W][stride] or null
    T *y;                // with C [W][stride], else [W][N][stride]
    int64_t stride;      // E
    int64_t valid;       // channels from here on, of which a line takes the first

    template <int P> void tile(int64_t j) const {
        vec<T> fused[P][kVectors];
        if (C == nullptr) {
            for (int n = 0; n < states; ++n) {
                gather<T, P>(taps + n * count, count, j, fused);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) store_line(y + ((j + p) * states + n) * stride, valid, fused[p]);
            }
            return;
        }
        for (int p = 0; p < P; ++p) {
            if (u != nullptr) __builtin_prefetch(u + (j + p + kAhead) * stride);
            __builtin_prefetch(y + (j + p + kAhead) * stride, 1);
        }
        gather<T, P>(taps, count, j, fused);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) fused[p][v] *= C[(j + p) * states];
        for (int n = 1; n < states; ++n) {
            vec<T> more[P][kVectors];
            gather<T, P>(taps + n * count, count, j, more);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) fused[p][v] += C[(j + p) * states + n] * more[p][v];
        }
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            if (u != nullptr) {
                vec<T> skipped[kVectors];
                load_line(u + (j + p) * stride, valid, skipped);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) fused[p][v] += skipped[v] * load(D + v * lanes<T>::count);
            }
            store_line(y + (j + p) * stride, valid, fused[p]);
        }
    }
};

// The places that were clamped to `at` by a tap at distance `step` on an axis of `size`: first to last, maybe none.
struct Readers {
    int64_t first, last;
    Readers(int64_t at, int64_t step, int64_t size) : first(at - step), last(at - step) {
        if (size == 1) {
            first = last = 0;
        } else if (at == 0) {
            first = 0;
            last = least(-step, size - 1);
        } else if (at == size - 1) {
            first = greatest(size - 1 - step, 0);
            last = size - 1;
        }
        first = greatest(first, 0);
        last = least(last, size - 1);
    }
    bool none() const { return first > last; }
    bool one() const { return first == last; }
};

// Packed rows of the fused states' gradient: [reach zeros][W columns][reach zeros][for each distance s > 0 the sum of the
// first s + 1 columns][likewise of the last], each one line wide.
template <class T> struct GradientRow {
    const Taps &taps;
    int64_t width;

    int64_t columns() const { return width + 2 * taps.column_reach + 2 * taps.num_column_steps; }
    int64_t line_of(int64_t column) const { return (taps.column_reach + column) * kLine<T>; }
    // Where a packed row holds what a tap at distance `step` gives to column `at`; -1 where it gives nothing.
    int64_t place(int64_t at, int step) const {
        const Readers readers(at, step, width);
        if (readers.none()) return -1;
        if (readers.one()) return line_of(readers.first);
        const int sums = (int)width + taps.column_reach;  // behind the columns and their zeros
        const int s = Taps::place(taps.column_steps, taps.num_column_steps, step < 0 ? -step : step);
        return line_of(sums + (at == 0 ? s : taps.num_column_steps + s));
    }
    // Packs W pixels that lie `stride` apart, each times scale[j * scale_stride] where scale is given.
    void pack(const T *from, int64_t stride, int64_t valid, const T *scale, int64_t scale_stride, T *row) const {
        memset(row, 0, (size_t)taps.column_reach * kLineBytes);
        memset(row + line_of(width), 0, (size_t)(taps.column_reach + 2 * taps.num_column_steps) * kLineBytes);
        for (int64_t j = 0; j < width; ++j) {
            vec<T> line[kVectors];
            load_line(from + j * stride, valid, line);
            const T by = scale == nullptr ? T(1) : scale[j * scale_stride];
            for (int v = 0; v < kVectors; ++v) store(row + line_of(j) + v * lanes<T>::count, by * line[v]);
        }
        for (int s = 0; s < taps.num_column_steps; ++s)
            for (int far = 0; far < 2; ++far) {
                T *sum = row + line_of(width + taps.column_reach + far * taps.num_column_steps + s);
                const int64_t first = far ? width - 1 - taps.column_steps[s] : 0;
                for (int64_t j = first; j <= first + taps.column_steps[s]; ++j) add_lines(sum, row + line_of(j), 1);
            }
    }
    static void add_lines(T *to, const T *from, int64_t count) {
        for (int64_t i = 0; i < count * kLine<T>; ++i) to[i] += from[i];
    }
};

}  // namespace SF_ISA

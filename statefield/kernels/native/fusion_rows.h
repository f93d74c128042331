// State fusion, row by row: what state_fusion.cpp and structure_aware_scan.cpp share.
//
// Channels are cut into lines of 64 bytes (16 floats, 8 doubles: one cache line). A task works on a few lines of one
// image: rows of h are copied into a ring of packed rows, [column][line], with the padding written out, so the taps need
// no clamping and no bounds, and the ring of the last 2 * reach + 1 rows stays in the second-level cache.
//
// The backward is the same gather with mirrored taps over packed rows of the gradient. Replicate padding makes a row or
// column at the rim of the map collect from every place that was clamped to it; these sums of rows and columns are
// packed as further rows and columns, so the rim is gathered as the interior is, only from other addresses.
#pragma once
#include <algorithm>
#include <new>
#include <vector>

#include "abi.h"

namespace fusion {

constexpr int kLineBytes = 64;
#if defined(SF_ISA_avx512)
constexpr int kVectorBytes = 64;
constexpr int kPixels = 8;  // pixels a tile: as many accumulators as fit in the registers beside the weights
#elif defined(SF_ISA_avx2)
constexpr int kVectorBytes = 32;
constexpr int kPixels = 4;
#elif defined(SF_ISA_neon)
constexpr int kVectorBytes = 16;
constexpr int kPixels = 4;
#else
constexpr int kVectorBytes = 16;
constexpr int kPixels = 2;
#endif
constexpr int kVectors = kLineBytes / kVectorBytes;     // vectors a line
constexpr int kTapGroup = std::max(2, 8 / kVectors);    // taps whose weight gradients are accumulated together
template <class T> constexpr int kLine = kLineBytes / static_cast<int>(sizeof(T));   // channels a line
template <class T> constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T> struct VectorOf { typedef T type __attribute__((vector_size(kVectorBytes))); };
template <class T> using Vector = typename VectorOf<T>::type;

template <class T> inline Vector<T> load(const T *from) {
    Vector<T> v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}
template <class T> inline void store(T *to, Vector<T> v) { __builtin_memcpy(to, &v, sizeof v); }

// The first `valid` channels of a line from or to memory; the others are zero.
template <class T> inline void load_line(const T *from, int valid, Vector<T> *line) {
    if (valid >= kLine<T>) {
        for (int v = 0; v < kVectors; ++v) line[v] = load(from + v * kLanes<T>);
        return;
    }
    alignas(kLineBytes) T part[kLine<T>] = {};
    for (int e = 0; e < valid; ++e) part[e] = from[e];
    for (int v = 0; v < kVectors; ++v) line[v] = load(part + v * kLanes<T>);
}
template <class T> inline void store_line(T *to, int valid, const Vector<T> *line) {
    if (valid >= kLine<T>) {
        for (int v = 0; v < kVectors; ++v) store(to + v * kLanes<T>, line[v]);
        return;
    }
    alignas(kLineBytes) T part[kLine<T>];
    for (int v = 0; v < kVectors; ++v) store(part + v * kLanes<T>, line[v]);
    for (int e = 0; e < valid; ++e) to[e] = part[e];
}
template <class T> inline T sum_line(const Vector<T> *line) {
    T total = 0;
    for (int v = 0; v < kVectors; ++v)
        for (int l = 0; l < kLanes<T>; ++l) total += line[v][l];
    return total;
}

// The distinct places that the 9 K taps read, relative to the output pixel. Farther than the map is wide is the same as
// exactly that far, so a small map has fewer of them.
struct Taps {
    std::vector<int> dy, dx;        // one a distinct tap
    std::vector<int> of;            // [K * 9] -> distinct tap
    std::vector<int> row_steps, column_steps;  // the distinct distances > 0
    int row_reach = 0, column_reach = 0;

    Taps(const int64_t *dilations, int kernels, int64_t height, int64_t width) {
        for (int k = 0; k < kernels; ++k)
            for (int a = -1; a <= 1; ++a)
                for (int b = -1; b <= 1; ++b) {
                    const int y = a * static_cast<int>(std::min<int64_t>(dilations[k], height - 1));
                    const int x = b * static_cast<int>(std::min<int64_t>(dilations[k], width - 1));
                    int t = 0;
                    while (t < count() && (dy[t] != y || dx[t] != x)) ++t;
                    if (t == count()) {
                        dy.push_back(y);
                        dx.push_back(x);
                    }
                    of.push_back(t);
                    note(row_steps, y);
                    note(column_steps, x);
                }
        for (int step : row_steps) row_reach = std::max(row_reach, step);
        for (int step : column_steps) column_reach = std::max(column_reach, step);
    }
    int count() const { return static_cast<int>(dy.size()); }
    static int place(const std::vector<int> &steps, int step) {
        return static_cast<int>(std::find(steps.begin(), steps.end(), step) - steps.begin());
    }

  private:
    static void note(std::vector<int> &steps, int step) {
        if (step > 0 && place(steps, step) == static_cast<int>(steps.size())) steps.push_back(step);
    }
};

struct Shape {
    int64_t batch, height, width, states, channels;
};

// How the work is cut. It depends on the shape alone, never on the number of threads: sums over tasks are the same
// whatever runs them.
struct Cut {
    int lines;        // lines of all channels
    int task_lines;   // lines a task works on together
    int blocks;       // tasks along the channels
    int64_t rows;     // rows a task gives out
    int64_t chunks;   // tasks along the rows of an image

    Cut(int64_t channels, int per_line, int64_t height, int64_t bytes_per_line, int64_t cache_bytes, int64_t task_rows) {
        lines = static_cast<int>((channels + per_line - 1) / per_line);
        const int most = static_cast<int>(std::clamp<int64_t>(cache_bytes / std::max<int64_t>(bytes_per_line, 1), 1, 4));
        blocks = (lines + most - 1) / most;
        task_lines = (lines + blocks - 1) / blocks;
        blocks = (lines + task_lines - 1) / task_lines;
        chunks = (height + task_rows - 1) / task_rows;
        rows = (height + chunks - 1) / chunks;
        chunks = (height + rows - 1) / rows;
    }
};

// 64-byte aligned memory that frees itself; `data` is null when there is none to be had.
template <class T> struct Memory {
    T *data;
    explicit Memory(int64_t count)
        : data(static_cast<T *>(::operator new(static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T),
                                               std::align_val_t(kLineBytes), std::nothrow))) {}
    ~Memory() { ::operator delete(data, std::align_val_t(kLineBytes)); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
};

inline int64_t to_line(int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

// merged[line][tap][channel in line] = sum of alpha_k * weight_k over the taps k that share a place; zeros behind the
// last channel. Made anew in every call: the weights may have changed.
template <class T>
void merge_weights(const Taps &taps, const T *weight, const T *alpha, int kernels, int64_t channels, int lines, T *merged) {
    const int count = taps.count();
    std::fill(merged, merged + static_cast<int64_t>(lines) * count * kLine<T>, T(0));
    for (int k = 0; k < kernels; ++k)
        for (int64_t e = 0; e < channels; ++e)
            for (int tap = 0; tap < 9; ++tap)
                merged[(e / kLine<T> * count + taps.of[k * 9 + tap]) * kLine<T> + e % kLine<T>] +=
                    alpha[k] * weight[(k * channels + e) * 9 + tap];
}

// [E] as lines, zeros behind the last channel (all zero where `from` is null).
template <class T> void pad_channels(const T *from, int64_t channels, int lines, T *to) {
    std::fill(to, to + static_cast<int64_t>(lines) * kLine<T>, T(0));
    if (from != nullptr) std::copy(from, from + channels, to);
}

template <class T> struct Tap {
    const T *source;  // the packed row that this tap reads, at the column that pixel 0 reads
    const T *weight;  // one line
};

// acc[p] = sum over taps of weight * source at pixel first + p.
template <class T, int P>
inline __attribute__((always_inline)) void gather(const Tap<T> *taps, int count, int64_t first, Vector<T> (&acc)[P][kVectors]) {
    Vector<T> sum[P][kVectors];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[p][v] = Vector<T>{};
    for (int t = 0; t < count; ++t) {
        const T *source = taps[t].source + first * kLine<T>;
        Vector<T> weight[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) weight[v] = load(taps[t].weight + v * kLanes<T>);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[p][v] += weight[v] * load(source + p * kLine<T> + v * kLanes<T>);
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) acc[p][v] = sum[p][v];
}

// Calls run.template tile<P>(pixel) for all pixels from `first` to `last`, in tiles of kPixels, then 2, then 1.
template <class Run> inline void for_tiles(int64_t first, int64_t last, Run &&run) {
    int64_t pixel = first;
    for (; pixel + kPixels <= last; pixel += kPixels) run.template tile<kPixels>(pixel);
    if constexpr (kPixels > 4)
        for (; pixel + 4 <= last; pixel += 4) run.template tile<4>(pixel);
    if constexpr (kPixels > 2)
        for (; pixel + 2 <= last; pixel += 2) run.template tile<2>(pixel);
    for (; pixel < last; ++pixel) run.template tile<1>(pixel);
}

// Packed rows of h: [reach copies of column 0][W columns][reach copies of column W - 1], each one line wide.
template <class T> struct PaddedRow {
    int64_t width;
    int reach;
    int64_t columns() const { return width + 2 * reach; }
    T *interior(T *row) const { return row + reach * kLine<T>; }
    void pad(T *row) const {
        T *inside = interior(row);
        const T *last = inside + (width - 1) * kLine<T>;
        for (int c = 0; c < reach; ++c) {
            std::copy(inside, inside + kLine<T>, row + c * kLine<T>);
            std::copy(last, last + kLine<T>, inside + (width + c) * kLine<T>);
        }
    }
    // Copies pixels that lie `stride` elements apart.
    void pack(const T *from, int64_t stride, int valid, T *row) const {
        T *to = interior(row);
        for (int64_t j = 0; j < width; ++j) {
            Vector<T> line[kVectors];
            load_line(from + j * stride, valid, line);
            for (int v = 0; v < kVectors; ++v) store(to + j * kLine<T> + v * kLanes<T>, line[v]);
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
    int valid;

    template <int P> void tile(int64_t j) const {
        Vector<T> fused[P][kVectors];
        if (C == nullptr) {
            for (int n = 0; n < states; ++n) {
                gather<T, P>(taps + n * count, count, j, fused);
                for (int p = 0; p < P; ++p) store_line(y + ((j + p) * states + n) * stride, valid, fused[p]);
            }
            return;
        }
        Vector<T> out[P][kVectors];
        for (int p = 0; p < P; ++p) {
            if (u != nullptr) load_line(u + (j + p) * stride, valid, out[p]);
            for (int v = 0; v < kVectors; ++v)
                out[p][v] = u != nullptr ? out[p][v] * load(D + v * kLanes<T>) : Vector<T>{};
        }
        for (int n = 0; n < states; ++n) {
            gather<T, P>(taps + n * count, count, j, fused);
            for (int p = 0; p < P; ++p)
                for (int v = 0; v < kVectors; ++v) out[p][v] += C[(j + p) * states + n] * fused[p][v];
        }
        for (int p = 0; p < P; ++p) store_line(y + (j + p) * stride, valid, out[p]);
    }
};

}  // namespace fusion

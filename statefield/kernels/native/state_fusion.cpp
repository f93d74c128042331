// State fusion: fused = sum of taps over clamped neighbours, y = sum_n C_n * fused_n + D * u. Forward.
#include "fusion_rows.h"

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
#endif

namespace fusion {
namespace {

constexpr int64_t kTaskRows = 16;              // the 2 * reach rows that a task packs beside its own cost little then
constexpr int64_t kCacheBytes = 192 * 1024;    // of rings in the second-level cache

template <class T> struct ForwardTask {
    const T *h, *C, *u;
    T *y;
    Shape shape;
    const Taps &taps;
    Cut cut;
    PaddedRow<T> packed;
    const T *merged, *D;  // lines

    int64_t row_elements() const { return packed.columns() * kLine<T>; }
    int64_t ring_rows() const { return 2 * taps.row_reach + 1; }
    int64_t scratch_elements() const { return ring_rows() * shape.states * cut.task_lines * row_elements(); }

    T *packed_row(T *ring, int64_t row, int64_t n, int line) const {
        return ring + (((row % ring_rows()) * shape.states + n) * cut.task_lines + line) * row_elements();
    }

    void run(int64_t task, T *ring, Tap<T> *sources) const {
        const int first_line = static_cast<int>(task % cut.blocks) * cut.task_lines;
        const int lines = std::min(cut.task_lines, cut.lines - first_line);
        const int64_t b = task / cut.blocks / cut.chunks, first = task / cut.blocks % cut.chunks * cut.rows;
        const int64_t last = std::min(first + cut.rows, shape.height);
        int64_t next = std::max<int64_t>(first - taps.row_reach, 0);
        for (int64_t i = first; i < last; ++i) {
            for (; next <= std::min(i + taps.row_reach, shape.height - 1); ++next) pack(b, next, first_line, lines, ring);
            for (int line = 0; line < lines; ++line) emit(b, i, first_line, line, ring, sources);
        }
    }

    void pack(int64_t b, int64_t row, int first_line, int lines, T *ring) const {
        const int64_t pixel = (b * shape.height + row) * shape.width;
        for (int64_t n = 0; n < shape.states; ++n)
            for (int line = 0; line < lines; ++line) {
                const int64_t channel = static_cast<int64_t>(first_line + line) * kLine<T>;
                packed.pack(h + (pixel * shape.states + n) * shape.channels + channel, shape.states * shape.channels,
                            static_cast<int>(shape.channels - channel), packed_row(ring, row, n, line));
            }
    }

    void emit(int64_t b, int64_t i, int first_line, int line, T *ring, Tap<T> *sources) const {
        const int count = taps.count();
        const T *weights = merged + static_cast<int64_t>(first_line + line) * count * kLine<T>;
        for (int64_t n = 0; n < shape.states; ++n)
            for (int t = 0; t < count; ++t) {
                const int64_t row = std::clamp<int64_t>(i + taps.dy[t], 0, shape.height - 1);
                sources[n * count + t] = {packed.interior(packed_row(ring, row, n, line)) + taps.dx[t] * kLine<T>,
                                          weights + t * kLine<T>};
            }
        const int64_t channel = static_cast<int64_t>(first_line + line) * kLine<T>;
        const int64_t pixel = (b * shape.height + i) * shape.width;
        const int64_t wide = C == nullptr ? shape.states : 1;
        const OutputRow<T> output{sources,
                                  count,
                                  static_cast<int>(shape.states),
                                  C == nullptr ? nullptr : C + pixel * shape.states,
                                  D + channel,
                                  u == nullptr ? nullptr : u + pixel * shape.channels + channel,
                                  y + pixel * wide * shape.channels + channel,
                                  shape.channels,
                                  static_cast<int>(std::min<int64_t>(shape.channels - channel, kLine<T>))};
        for_tiles(0, shape.width, output);
    }
};

template <class T>
int forward(const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *y, const int64_t *sizes,
            const int64_t *dilations, int kernels, int threads) {
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    const Taps taps(dilations, kernels, shape.height, shape.width);
    const PaddedRow<T> packed{shape.width, taps.column_reach};
    const Cut cut(shape.channels, kLine<T>, shape.height,
                  (2 * taps.row_reach + 1) * packed.columns() * shape.states * kLineBytes, kCacheBytes, kTaskRows);
    Memory<T> merged(static_cast<int64_t>(cut.lines) * taps.count() * kLine<T>), D_lines(cut.lines * kLine<T>);
    if (merged.data == nullptr || D_lines.data == nullptr) return SF_NO_MEMORY;
    merge_weights(taps, weight, alpha, kernels, shape.channels, cut.lines, merged.data);
    pad_channels(D, shape.channels, cut.lines, D_lines.data);
    const ForwardTask<T> task{h, C, u, y, shape, taps, cut, packed, merged.data, D_lines.data};

    const int64_t tasks = shape.batch * cut.chunks * cut.blocks;
    threads = static_cast<int>(std::clamp<int64_t>(tasks, 1, threads));
    Memory<T> rings(threads * task.scratch_elements());
    std::vector<Tap<T>> sources(static_cast<size_t>(threads) * shape.states * taps.count());
    if (rings.data == nullptr) return SF_NO_MEMORY;
#pragma omp parallel num_threads(threads)
    {
        T *ring = rings.data + omp_get_thread_num() * task.scratch_elements();
        Tap<T> *own = sources.data() + omp_get_thread_num() * shape.states * taps.count();
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < tasks; ++t) task.run(t, ring, own);
    }
    return SF_OK;
}

}  // namespace
}  // namespace fusion

#define SF_FUSION_FORWARD(suffix, T)                                                                                   \
    SF_EXPORT(state_fusion_forward_##suffix)                                                                           \
    (const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *y, const int64_t *sizes,      \
     const int64_t *dilations, int kernels, int threads) {                                                             \
        return fusion::forward<T>(h, weight, alpha, C, D, u, y, sizes, dilations, kernels, threads);                   \
    }
SF_FUSION_FORWARD(f32, float)
SF_FUSION_FORWARD(f64, double)

// State fusion: fused = sum of taps over clamped neighbours, y = sum_n C_n * fused_n + D * u. Forward.
#include "fusion_rows.h"

namespace SF_ISA {
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
        const int first_line = (int)(task % cut.blocks) * cut.task_lines;
        const int lines = (int)least(cut.task_lines, cut.lines - first_line);
        const int64_t b = task / cut.blocks / cut.chunks, first = task / cut.blocks % cut.chunks * cut.rows;
        const int64_t last = least(first + cut.rows, shape.height);
        int64_t next = greatest(first - taps.row_reach, 0);
        for (int64_t i = first; i < last; ++i) {
            for (; next <= least(i + taps.row_reach, shape.height - 1); ++next) pack(b, next, first_line, lines, ring);
            for (int line = 0; line < lines; ++line) emit(b, i, first_line, line, ring, sources);
        }
    }

    void pack(int64_t b, int64_t row, int first_line, int lines, T *ring) const {
        const int64_t pixel = (b * shape.height + row) * shape.width, channel = (int64_t)first_line * kLine<T>;
        for (int64_t n = 0; n < shape.states; ++n)
            packed.pack(h + (pixel * shape.states + n) * shape.channels + channel, shape.states * shape.channels,
                        shape.channels - channel, lines, packed_row(ring, row, n, 0), row_elements());
    }

    void emit(int64_t b, int64_t i, int first_line, int line, T *ring, Tap<T> *sources) const {
        const int count = taps.count;
        const T *weights = merged + (int64_t)(first_line + line) * count * kLine<T>;
        for (int64_t n = 0; n < shape.states; ++n)
            for (int t = 0; t < count; ++t) {
                const int64_t row = clamped(i + taps.dy[t], 0, shape.height - 1);
                sources[n * count + t] = {packed.interior(packed_row(ring, row, n, line)) + taps.dx[t] * kLine<T>,
                                          weights + t * kLine<T>};
            }
        const int64_t channel = (int64_t)(first_line + line) * kLine<T>;
        const int64_t pixel = (b * shape.height + i) * shape.width;
        const int64_t wide = C == nullptr ? shape.states : 1;
        const OutputRow<T> output{sources,
                                  count,
                                  (int)(shape.states),
                                  C == nullptr ? nullptr : C + pixel * shape.states,
                                  D + channel,
                                  u == nullptr ? nullptr : u + pixel * shape.channels + channel,
                                  y + pixel * wide * shape.channels + channel,
                                  shape.channels,
                                  (int)(least(shape.channels - channel, kLine<T>))};
        for_tiles(0, shape.width, output);
    }
};

template <class T>
int fusion_forward(const T *h, const T *weight, const T *alpha, const T *C, const T *D, const T *u, T *y, const int64_t *sizes,
            const int64_t *dilations, int64_t kernels, int64_t threads) {
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    const Taps taps(dilations, kernels, shape.height, shape.width);
    const PaddedRow<T> packed{shape.width, taps.column_reach};
    const Cut cut(shape.channels, kLine<T>, shape.height,
                  (2 * taps.row_reach + 1) * packed.columns() * shape.states * kLineBytes, kCacheBytes, kTaskRows);
    aligned_buffer weights((size_t)(cut.lines * (taps.count + 1)) * kLineBytes);
    if (taps.memory.data == nullptr || weights.data == nullptr) return SF_NO_MEMORY;
    T *merged = (T *)weights.data, *D_lines = merged + (int64_t)cut.lines * taps.count * kLine<T>;
    pad_channels(D, shape.channels, cut.lines, D_lines);
    const ForwardTask<T> task{h, C, u, y, shape, taps, cut, packed, merged, D_lines};

    const int64_t tasks = shape.batch * cut.chunks * cut.blocks;
    threads = clamped(tasks, 1, threads);
    const int64_t ring_bytes = task.scratch_elements() * (int64_t)sizeof(T);
    const int64_t thread_bytes = ring_bytes + to_line(shape.states * taps.count * (int64_t)sizeof(Tap<T>));
    aligned_buffer scratch((size_t)(threads * thread_bytes));
    if (scratch.data == nullptr) return SF_NO_MEMORY;
#pragma omp parallel num_threads(threads)
    {
        char *own_scratch = (char *)scratch.data + this_thread() * thread_bytes;
        T *ring = (T *)own_scratch;
        Tap<T> *own = (Tap<T> *)(own_scratch + ring_bytes);
#pragma omp for schedule(static)
        for (int64_t line = 0; line < cut.lines; ++line)
            merge_weights(taps, weight, alpha, kernels, shape.channels, line, merged + line * taps.count * kLine<T>);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < tasks; ++t) task.run(t, ring, own);
    }
    return SF_OK;
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

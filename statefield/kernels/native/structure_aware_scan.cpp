// The structure-aware scan in one pass, forward: a task scans one line of channels of one image row by row into the ring
// of packed rows and gives out a fused row as soon as the rows below it exist. States never reach memory, except those
// before each row where a backward will need them.
#include "scan_rows.h"

namespace SF_ISA {
namespace {

template <class T> struct ScanTask {
    Scan<T> scan;
    Shape shape;
    const T *C, *D;  // D: lines
    T *y, *kept;     // kept: [B, H, N, E], the states before each row, or null
    const Taps &taps;
    int64_t lines;
    PaddedRow<T> packed;
    const T *merged;

    int64_t row_elements() const { return packed.columns() * kLine<T>; }
    int64_t ring_rows() const { return 2 * taps.row_reach + 1; }
    int64_t ring_elements() const { return ring_rows() * shape.states * row_elements(); }
    int64_t line_elements() const { return (2 * shape.width + shape.states) * kLine<T>; }  // dt, drive, the states
    int64_t scratch_bytes() const {
        return (ring_elements() + line_elements()) * (int64_t)sizeof(T) +
               to_line(shape.states * taps.count * (int64_t)sizeof(Tap<T>));
    }
    T *packed_row(T *ring, int64_t slot, int64_t n) const {
        return ring + (slot * shape.states + n) * row_elements();
    }

    void run(int64_t task, char *scratch) const {
        const int64_t line = task % lines, b = task / lines;
        T *ring = (T *)scratch;
        memset(ring + ring_elements() + 2 * shape.width * kLine<T>, 0, (size_t)shape.states * kLineBytes);
        int64_t next = 0;
        for (int64_t i = 0; i < shape.height; ++i) {
            for (; next <= least(i + taps.row_reach, shape.height - 1); ++next) scan_row(b, next, line, ring);
            emit(b, i, line, ring);
        }
    }

    void scan_row(int64_t b, int64_t row, int64_t line, T *ring) const {
        T *dt = ring + ring_elements(), *drive = dt + shape.width * kLine<T>, *state = drive + shape.width * kLine<T>;
        scan.steps(b, row, line, dt, drive);
        for (int64_t n = 0; n < shape.states; ++n) {
            if (kept != nullptr) {
                vec<T> before[kVectors];
                load_line(state + n * kLine<T>, kLine<T>, before);
                store_line(kept + ((b * shape.height + row) * shape.states + n) * shape.channels + line * kLine<T>,
                           shape.channels - line * kLine<T>, before);
            }
            T *h = packed_row(ring, row % ring_rows(), n);
            scan.states(b, row, line, n, dt, drive, state + n * kLine<T>, packed.interior(h), nullptr);
            packed.pad(h);
        }
    }

    void emit(int64_t b, int64_t i, int64_t line, T *ring) const {
        Tap<T> *sources = (Tap<T> *)(ring + ring_elements() + line_elements());
        const RingPlace place(ring_rows(), i);
        for (int64_t n = 0; n < shape.states; ++n)
            aim_taps(taps, place, shape.height, ring + n * row_elements(), shape.states * row_elements(),
                     packed.reach * (int64_t)kLine<T>, merged + line * taps.count * kLine<T>, sources + n * taps.count);
        const int64_t channel = line * kLine<T>, pixel = scan.pixel(b, i);
        const OutputRow<T> output{sources, taps.count, (int)shape.states, C + pixel * shape.states, D + channel,
                                  scan.u + pixel * shape.channels + channel, y + pixel * shape.channels + channel,
                                  shape.channels, shape.channels - channel};
        for_tiles(0, shape.width, output);
    }
};

template <class T>
int structure_aware_forward(const T *u, const T *delta, const T *A, const T *B, const T *C, const T *D, const T *weight,
                            const T *alpha, const T *bias, T *y, T *kept, const int64_t *sizes, const int64_t *dilations,
                            int64_t kernels, int64_t softplus, int64_t threads) {
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    const Taps taps(dilations, kernels, shape.height, shape.width);
    const int64_t lines = (shape.channels + kLine<T> - 1) / kLine<T>, tasks = shape.batch * lines;
    aligned_buffer parameters((size_t)(lines * (taps.count + 2 + shape.states)) * kLineBytes);
    if (taps.memory.data == nullptr || parameters.data == nullptr) return SF_NO_MEMORY;
    T *merged = (T *)parameters.data, *D_lines = merged + lines * taps.count * kLine<T>;
    T *bias_lines = D_lines + lines * kLine<T>, *A_lines = bias_lines + lines * kLine<T>;
    pad_channels(D, shape.channels, lines, D_lines);
    pad_channels(bias, shape.channels, lines, bias_lines);
    Scan<T>::pack_A(A, shape, lines, A_lines);
    const Scan<T> scan{shape, u, delta, B, A_lines, bias_lines, softplus != 0};
    const ScanTask<T> task{scan, shape, C, D_lines, y, kept, taps, lines, {shape.width, taps.column_reach}, merged};
    return run_tasks(task, tasks, threads, taps, lines, weight, alpha, kernels, shape.channels,
                     merged, [] {});
}

}  // namespace
}  // namespace SF_ISA

#define SF_STRUCTURE_AWARE_FORWARD(suffix, T)                                                                          \
    SF_EXPORT(structure_aware_scan_forward_##suffix)                                                                   \
    (const T *u, const T *delta, const T *A, const T *B, const T *C, const T *D, const T *weight, const T *alpha,      \
     const T *bias, T *y, T *kept, const int64_t *sizes, const int64_t *dilations, int64_t kernels, int64_t softplus,  \
     int64_t threads) {                                                                                                \
        return SF_ISA::structure_aware_forward<T>(u, delta, A, B, C, D, weight, alpha, bias, y, kept, sizes,           \
                                                  dilations, kernels, softplus, threads);                              \
    }
SF_STRUCTURE_AWARE_FORWARD(f32, float)
SF_STRUCTURE_AWARE_FORWARD(f64, double)

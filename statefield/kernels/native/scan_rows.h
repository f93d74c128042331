// The raster scan of one line of channels, row by row: what structure_aware_scan*.cpp share.
//     dt = softplus(delta + bias)      h = exp(dt A) h + dt u B
#pragma once
#include "fusion_rows.h"

namespace SF_ISA {

// The scan's tensors: u, delta [B, H, W, E]; A [E, N]; B [B, H, W, N]; bias [E] or null.
template <class T> struct Scan {
    Shape shape;
    const T *u, *delta, *B;
    const T *A_lines;     // [lines][N] lines: A log2(e), zeros behind the last channel
    const T *bias_lines;  // [lines] lines
    bool with_softplus;

    static void pack_A(const T *A, const Shape &shape, int64_t lines, T *to) {
        memset(to, 0, (size_t)(lines * shape.states) * kLineBytes);
        for (int64_t e = 0; e < shape.channels; ++e)
            for (int64_t n = 0; n < shape.states; ++n)
                to[(e / kLine<T> * shape.states + n) * kLine<T> + e % kLine<T>] = A[e * shape.states + n] * (T)LOG2E;
    }

    int64_t pixel(int64_t b, int64_t row) const { return (b * shape.height + row) * shape.width; }

    // dt and dt * u of a row, [W] lines each.
    void steps(int64_t b, int64_t row, int64_t line, T *dt, T *drive) const {
        constexpr int count = lanes<T>::count;
        const int64_t first = pixel(b, row) * shape.channels + line * kLine<T>, valid = shape.channels - line * kLine<T>;
        vec<T> bias[kVectors];
        load_line(bias_lines + line * kLine<T>, kLine<T>, bias);
        for (int64_t j = 0; j < shape.width; ++j) {
            vec<T> step[kVectors], x[kVectors];
            load_line(delta + first + j * shape.channels, valid, step);
            load_line(u + first + j * shape.channels, valid, x);
            for (int v = 0; v < kVectors; ++v) {
                step[v] += bias[v];
                if (with_softplus) step[v] = softplus(step[v]);
                store(dt + j * kLine<T> + v * count, step[v]);
                store(drive + j * kLine<T> + v * count, step[v] * x[v]);
            }
        }
    }

    // The states of one n along a row into its packed row's interior, from and to `state` (one line). The decays
    // exp(dt A) are kept where `decays` is given.
    void states(int64_t b, int64_t row, int64_t line, int64_t n, const T *dt, const T *drive, T *state, T *h, T *decays) const {
        constexpr int count = lanes<T>::count;
        const T *B_row = B + pixel(b, row) * shape.states + n;
        vec<T> a[kVectors], last[kVectors];
        load_line(A_lines + (line * shape.states + n) * kLine<T>, kLine<T>, a);
        load_line(state, kLine<T>, last);
        for (int64_t j = 0; j < shape.width; ++j)
            for (int v = 0; v < kVectors; ++v) {
                const int64_t at = j * kLine<T> + v * count;
                const vec<T> decay = exp2(load(dt + at) * a[v]);
                last[v] = decay * last[v] + load(drive + at) * B_row[j * shape.states];
                store(h + at, last[v]);
                if (decays != nullptr) store(decays + at, decay);
            }
        for (int v = 0; v < kVectors; ++v) store(state + v * count, last[v]);
    }
};

}  // namespace SF_ISA

// What the forward and the backward of mLSTM share: a head's gates, its normaliser, and the weights within a chunk.
//
// Every weight is a product of gates f', i' <= 1, made row by row as the recurrence makes it: no sum of log f is ever
// formed, so nothing is lost to rounding however long the sequence, and an exponential is taken once a step, not once a
// pair of steps.
#pragma once
#include "matrix_tiles.h"
#include "mlstm.h"

namespace SF_ISA {
namespace mlstm {

template <typename T>
SF_INLINE const T *row_of(const sf_mlstm_rows &x, int64_t batch, int64_t head, int64_t step) {
    return (const T *)x.data + batch * x.batch_stride + head * x.head_stride + step * x.row_stride;
}

// Hands out pieces of one allocation; with no memory behind it, it only counts.
struct pieces {
    char *data;
    size_t used = 0;
    explicit pieces(void *memory) : data((char *)memory) {}

    template <typename T>
    T *take(int64_t count) {
        T *piece = data ? (T *)(data + used) : nullptr;
        used += ((size_t)padded_columns<T>(count) * sizeof(T) + 63) / 64 * 64;
        return piece;
    }
    template <typename T>
    matrix<T> take_matrix(int64_t rows, int64_t columns) {
        const int64_t ld = leading_dimension<T>(columns);
        return {take<T>(rows * ld), ld};
    }
};

template <typename T>
SF_INLINE typename lanes<T>::ints lane_numbers() {
    typename lanes<T>::ints n{};
    for (int i = 0; i < lanes<T>::count; ++i) n[i] = i;
    return n;
}
template <typename T>
using lane_number = decltype(typename lanes<T>::ints{}[0] + 0);

// The gates of a whole sequence.
template <typename T>
struct gates {
    T *decay;   // f'_t = exp(log sigmoid(f_t) + m_{t-1} - m_t)
    T *take;    // i'_t = exp(i_t - m_t)
    T *m;       // the stabiliser
    T *decays;  // the share of m_t's gradient that goes to the decayed m_{t-1}: 1, 0, or 1/2 where both are equal
    T largest;  // of all m
    int64_t where_largest;

    gates(pieces &memory, int64_t length) {
        decay = memory.take<T>(length);
        take = memory.take<T>(length);
        m = memory.take<T>(length);
        decays = memory.take<T>(length);
    }

    void read(const T *i, const T *f, int64_t length, const T *start) {
        constexpr int W = lanes<T>::count;
        const int64_t padded = padded_columns<T>(length);
        for (int64_t t = 0; t < padded; t += W) {
            const int64_t left = length - t;
            const vec<T> raw = left >= W ? load(f + t) : load_part(f + t, left < 0 ? 0 : left);
            store(decay + t, -softplus(-raw));
        }
        double last = start ? (double)*start : -INFINITY;  // float32 would let m drift over many steps
        largest = -INFINITY, where_largest = 0;
        for (int64_t t = 0; t < length; ++t) {
            const double decayed = (double)decay[t] + last, taken = (double)i[t];
            last = decayed > taken ? decayed : taken;
            if (decayed != decayed) last = decayed;
            decays[t] = decayed > taken ? (T)1 : decayed == taken ? (T)0.5 : (T)0;
            decay[t] = (T)(decayed - last);
            take[t] = (T)(taken - last);
            m[t] = (T)last;
            if (m[t] > largest) largest = m[t], where_largest = t;
        }
        for (int64_t t = length; t < padded; ++t) decay[t] = take[t] = m[t] = 0;
        for (int64_t t = 0; t < padded; t += W) {
            store(decay + t, exp(load(decay + t)));
            store(take + t, exp(load(take + t)));
        }
    }
};

// h_t = readout_t * by_t. Above and below are multiplied by exp(m - max(m, 0)), so that nothing overflows.
template <typename T>
struct normalizer {
    T *by;
    T *eps_share;  // the part of the divisor that is eps
    T *sum_slope;  // d divisor / d (n_t . q_t), as a share of the divisor

    normalizer(pieces &memory, int64_t chunk) {
        by = memory.take<T>(chunk);
        eps_share = memory.take<T>(chunk);
        sum_slope = memory.take<T>(chunk);
    }

    // m and sums hold `count` values and then anything up to a whole vector.
    void set(const T *m, const T *sums, int64_t count, double eps, bool rowwise, T largest) {
        constexpr int W = lanes<T>::count;
        const vec<T> zero{}, one = splat((T)1), most = splat((T)80);
        for (int64_t t = 0; t < count; t += W) {
            const vec<T> m_t = load(m + t), sum = load(sums + t);
            const vec<T> at_least_0 = at_least(m_t, zero);
            const vec<T> scale = exp(m_t - at_least_0), least = exp(-at_least_0);
            vec<T> excess = (rowwise ? m_t : splat(largest)) - at_least_0;
            excess = excess > most ? most : excess;
            const vec<T> eps_t = splat((T)eps) * exp(excess), size = scale * magnitude(sum);
            const vec<T> divisor = at_least(size, least) + eps_t;
            store(by + t, scale / divisor);
            store(eps_share + t, eps_t / divisor);
            const vec<T> half = size == least ? splat((T)0.5) : zero;
            const vec<T> share = size > least ? one : half;
            const vec<T> sign = sum > zero ? one : (sum < zero ? -one : zero);
            store(sum_slope + t, share * sign * scale / divisor);
        }
    }
};

// One chunk's weights, row by row: row[s] is what step s has in the state after step t, for s <= t.
template <typename T>
struct weight_row {
    T *row;        // after the last step: what each step has in the chunk's last state
    T *from_start; // what the state before the chunk has in the state after step t

    weight_row(pieces &memory, int64_t chunk) {
        row = memory.take<T>(chunk);
        from_start = memory.take<T>(chunk);
    }

    // visit(t, s, weights of s, s + 1, ...) for every vector that holds an s <= t; then finish(t, end of these).
    template <typename Visit, typename Finish>
    SF_INLINE void walk(const T *decay, const T *take, int64_t count, Visit visit, Finish finish) {
        constexpr int W = lanes<T>::count;
        memset(row, 0, (size_t)padded_columns<T>(count) * sizeof(T));
        const typename lanes<T>::ints lane = lane_numbers<T>();
        T whole = 1;
        for (int64_t t = 0; t < count; ++t) {
            const vec<T> by = splat(decay[t]);
            whole *= decay[t];
            from_start[t] = whole;
            int64_t s = 0;
            for (; s + W <= t; s += W) {
                const vec<T> x = by * load(row + s);
                store(row + s, x);
                visit(t, s, x);
            }
            const vec<T> x = lane == (lane_number<T>)(t - s) ? splat(take[t]) : by * load(row + s);
            store(row + s, x);
            visit(t, s, x);
            finish(t, s + W);
        }
    }
};

// How far behind the diagonal a row of weights has to hold zeros: a tile of rows reads all of them up to its last row's.
SF_INLINE int64_t end_of_zeros(int64_t t, int64_t count) {
    const int64_t end = t + MOST_TILE_ROWS;
    return end < count ? end : count;
}

// sums = scale * m, where the tile lies.
template <typename T, int R>
SF_INLINE void begin_with(tile<T, R> &sums, matrix<T> m, int64_t i0, int64_t j0, T scale) {
    constexpr int W = lanes<T>::count;
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i) {
        sums.sum[i][0] = splat(scale) * load(m.row(i0 + i) + j0);
        sums.sum[i][1] = splat(scale) * load(m.row(i0 + i) + j0 + W);
    }
}

// out[t, s] = left_t . right_s for s <= t; right_by_channel is [DH, steps].
template <typename T>
SF_INLINE void dots_at_and_below(matrix<T> left, matrix<T> right_by_channel, int64_t count, int64_t channels,
                                 matrix<T> out) {
    for_tiles<T>(count, count, [&](auto sums, int64_t i0, int64_t j0) {
        if (j0 >= i0 + sums.rows) return;
        sums.add(plain(left), i0, right_by_channel, j0, 0, channels);
        sums.store_to(out, i0, j0);
    });
}

template <typename T>
SF_INLINE void scale_row(T *row, T by, int64_t columns) {
    for (int64_t c = 0; c < columns; c += lanes<T>::count) store(row + c, splat(by) * load(row + c));
}

template <typename T>
SF_INLINE void clear(matrix<T> m, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) memset(m.row(r), 0, (size_t)padded_columns<T>(columns) * sizeof(T));
}

template <typename T>
SF_INLINE T dot(const T *a, const T *b, int64_t columns) {  // both with zeros up to a whole vector
    vec<T> sum{};
    for (int64_t c = 0; c < columns; c += lanes<T>::count) sum += load(a + c) * load(b + c);
    return sum_lanes<T>(sum);
}

// to[c, r] = from[r, c] for 8 x 8 elements. In registers it takes a third of the time that scalars take; a chunk has
// several such turns, each a tenth of a product.
template <typename T>
SF_INLINE void transpose_block(T *to, int64_t to_row, const T *from, int64_t from_row) {
    for (int r = 0; r < 8; ++r)
        for (int c = 0; c < 8; ++c) to[c * to_row + r] = from[r * from_row + c];
}
#if defined(SF_ISA_avx2) || defined(SF_ISA_avx512)
template <>
SF_INLINE void transpose_block<float>(float *to, int64_t to_row, const float *from, int64_t from_row) {
    __m256 x[8], y[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) x[r] = _mm256_loadu_ps(from + r * from_row);
#pragma GCC unroll 4
    for (int r = 0; r < 8; r += 2) {
        y[r] = _mm256_unpacklo_ps(x[r], x[r + 1]);
        y[r + 1] = _mm256_unpackhi_ps(x[r], x[r + 1]);
    }
#pragma GCC unroll 2
    for (int r = 0; r < 8; r += 4) {
        x[r] = _mm256_shuffle_ps(y[r], y[r + 2], 0x44);
        x[r + 1] = _mm256_shuffle_ps(y[r], y[r + 2], 0xEE);
        x[r + 2] = _mm256_shuffle_ps(y[r + 1], y[r + 3], 0x44);
        x[r + 3] = _mm256_shuffle_ps(y[r + 1], y[r + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        _mm256_storeu_ps(to + r * to_row, _mm256_permute2f128_ps(x[r], x[r + 4], 0x20));
        _mm256_storeu_ps(to + (r + 4) * to_row, _mm256_permute2f128_ps(x[r], x[r + 4], 0x31));
    }
}
#endif

// to[c, r] = from[r, c] for r < rows, c < columns; nothing else is touched.
template <typename T>
void turn(T *to, int64_t to_row, const T *from, int64_t from_row, int64_t rows, int64_t columns) {
    const int64_t whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
    for (int64_t c = 0; c < whole_columns; c += 8)
        for (int64_t r = 0; r < whole_rows; r += 8)
            transpose_block(to + c * to_row + r, to_row, from + r * from_row + c, from_row);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) to[c * to_row + r] = from[r * from_row + c];
}

// The same into scratch, with zeros behind the columns of `to` up to a whole tile.
template <typename T>
SF_INLINE void turn_into(matrix<T> to, const T *from, int64_t from_row, int64_t rows, int64_t columns) {
    turn(to.data, to.ld, from, from_row, rows, columns);
    const int64_t behind = padded_columns<T>(rows) - rows;
    if (behind)
        for (int64_t c = 0; c < columns; ++c) memset(to.row(c) + rows, 0, (size_t)behind * sizeof(T));
}

}  // namespace mlstm
}  // namespace SF_ISA

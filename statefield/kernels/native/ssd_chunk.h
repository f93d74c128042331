// What the forward and the backward of Mamba-2's scan share: one head's steps of one chunk, and its decays.
#pragma once
#include "matrix_tiles.h"
#include "ssd.h"

namespace SF_ISA {

template <typename T>
SF_INLINE const T *row_of(const sf_heads &t, int64_t batch, int64_t step, int64_t head) {
    return (const T *)t.data + batch * t.batch_stride + step * t.row_stride + head * t.head_stride;
}

// Hands out pieces of one allocation; with no memory behind it, it only counts.
struct arena {
    char *data;
    size_t used = 0;
    explicit arena(void *memory) : data((char *)memory) {}

    template <typename T>
    T *take(int64_t count) {
        T *piece = data ? (T *)(data + used) : nullptr;
        used += ((size_t)count * sizeof(T) + 63) / 64 * 64;
        return piece;
    }
    template <typename T>
    matrix<T> take_matrix(int64_t rows, int64_t columns) {
        const int64_t ld = leading_dimension<T>(columns);
        return {take<T>(rows * ld), ld};
    }
};

// A task: the heads [first, last) of one group of one sequence.
struct task_place {
    int64_t batch, group, slot, first, last;

    task_place(const sf_ssd &s, int64_t task) {
        const int64_t in_group = s.heads / s.groups;
        slot = task % s.slots;
        group = task / s.slots % s.groups;
        batch = task / (s.slots * s.groups);
        first = group * in_group + in_group * slot / s.slots;
        last = group * in_group + in_group * (slot + 1) / s.slots;
    }
};

// One head's step sizes in a chunk of `count` steps, and the running sum cum of dt A log2(e): exponents of 2. The sum is
// formed in float64 and held as two numbers, high + low: late in a chunk it may be thousands, and the decay over a small
// step, a difference of two of them, would be lost to rounding.
template <typename T>
struct head_steps {
    T *dt, *slope;        // step sizes; d step / d dt, for the backward
    T *high, *low;        // cum
    T *from_start;        // 2^cum_l
    T *until_last;        // 2^(cum_last - cum_s)
    T whole;              // 2^cum_last

    head_steps(arena &a, int64_t chunk) {
        const int64_t n = padded_columns<T>(chunk);
        T **const pieces[] = {&dt, &slope, &high, &low, &from_start, &until_last};
        for (T **piece : pieces) *piece = a.take<T>(n);
    }

    void read(const sf_ssd &s, int64_t batch, int64_t begin, int64_t count, int64_t head, bool with_slope) {
        constexpr int W = lanes<T>::count;
        const T *given = row_of<T>(s.dt, batch, begin, head);
        const T bias = s.bias ? ((const T *)s.bias)[head] : (T)0;
        const int64_t padded = padded_columns<T>(count);
        for (int64_t l = 0; l < count; ++l) dt[l] = given[l * s.dt.row_stride] + bias;
        for (int64_t l = count; l < padded; ++l) dt[l] = 0;
        const vec<T> least = splat((T)s.dt_min), most = splat((T)s.dt_max), one = splat((T)1);
        for (int64_t l = 0; l < padded; l += W) {
            const vec<T> raw = load(dt + l), step = s.softplus ? softplus(raw) : raw;
            vec<T> clamped = step < least ? least : step;
            clamped = clamped > most ? most : clamped;
            store(dt + l, clamped);
            if (!with_slope) continue;
            vec<T> rise = one;
            if (s.softplus) rise = raw > splat((T)20) ? one : sigmoid(raw);
            const vec<T> zero{};
            rise = step < least ? zero : rise;
            store(slope + l, step > most ? zero : rise);
        }
        const double a = (double)((const T *)s.A)[head];
        double sum = 0;
        for (int64_t l = 0; l < count; ++l) {
            sum += (double)dt[l] * a * LOG2E;
            high[l] = (T)sum;
            low[l] = (T)(sum - (double)high[l]);
        }
        for (int64_t l = count; l < padded; ++l) high[l] = low[l] = 0;
        const vec<T> last_high = splat(high[count - 1]), last_low = splat(low[count - 1]);
        for (int64_t l = 0; l < padded; l += W) {
            const vec<T> up = load(high + l), rest = load(low + l);
            store(from_start + l, exp2(up));
            store(until_last + l, exp2((last_high - up) + (last_low - rest)));
        }
        whole = from_start[count - 1];
    }

    // 2^(cum_l - cum_s) for the lanes s, s + 1, ...
    SF_INLINE vec<T> decay(int64_t l, int64_t s) const {
        return exp2((splat(high[l]) - load(high + s)) + (splat(low[l]) - load(low + s)));
    }
};

// 0, 1, 2, ... as a vector, to tell the lanes at and below the diagonal.
template <typename T>
SF_INLINE typename lanes<T>::ints lane_numbers() {
    typename lanes<T>::ints n{};
    for (int i = 0; i < lanes<T>::count; ++i) n[i] = i;
    return n;
}
template <typename T>
using lane_number = decltype(typename lanes<T>::ints{}[0] + 0);
// x in the lanes 0 ... last_lane, zero in the others.
template <typename T>
SF_INLINE vec<T> up_to(int64_t last_lane, vec<T> x) {
    const typename lanes<T>::ints inside = lane_numbers<T>() <= (lane_number<T>)last_lane;
    return (vec<T>)((typename lanes<T>::ints)x & inside);
}

// scores[l, s] = C_l . B_s at and below the diagonal, for all heads of a group.
template <typename T>
inline void score(matrix<T> C, matrix<T> B_by_state, int64_t count, int64_t states, matrix<T> scores) {
    for_tiles<T>(count, count, [&](auto sums, int64_t i0, int64_t j0) {
        if (j0 >= i0 + sums.rows) return;
        sums.add(plain(C), i0, B_by_state, j0, 0, states);
        sums.store_to(scores, i0, j0);
    });
}

// y_l = 2^cum_l C_l H + sum over s <= l of weights[l, s] dtx_s: the output before skip and gate.
template <typename T>
inline void read_out(
    matrix<T> C, matrix<T> H, const T *from_start, matrix<T> weights, matrix<T> dtx, int64_t count, int64_t states,
    int64_t channels, matrix<T> y) {
    for_tiles<T>(count, channels, [&](auto sums, int64_t i0, int64_t j0) {
        sums.add(plain(C), i0, H, j0, 0, states);
        sums.scale_rows(from_start + i0);
        sums.add(plain(weights), i0, dtx, j0, 0, i0 + sums.rows);
        sums.store_to(y, i0, j0);
    });
}

// How far behind the diagonal a row of weights has to hold zeros: a tile of rows reads all of them up to its last row's.
template <typename T>
SF_INLINE int64_t end_of_zeros(int64_t l, int64_t count) {
    const int64_t end = l + MOST_TILE_ROWS;
    return end < count ? end : count;
}

// dtx_s = dt_s x_s
template <typename T>
inline void scale_inputs(const T *x, int64_t row, const T *dt, int64_t count, int64_t channels, matrix<T> dtx) {
    constexpr int W = lanes<T>::count;
    const int64_t whole = channels / W * W, padded = padded_columns<T>(channels);
    for (int64_t l = 0; l < count; ++l) {
        const vec<T> step = splat(dt[l]);
        const T *from = x + l * row;
        T *to = dtx.row(l);
        int64_t c = 0;
        for (; c < whole; c += W) store(to + c, step * load(from + c));
        if (c < channels) {
            store(to + c, step * load_part(from + c, channels - c));
            c += W;
        }
        for (; c < padded; c += W) store(to + c, vec<T>{});
    }
}

// A state [p, n] as the caller holds it into rows over n, and back.
template <typename T>
inline void state_from(const T *given, int64_t states, int64_t channels, matrix<T> H) {
    if (given != nullptr) return transpose(given, states, channels, states, H);
    for (int64_t n = 0; n < states; ++n) memset(H.row(n), 0, (size_t)padded_columns<T>(channels) * sizeof(T));
}
template <typename T>
inline void state_to(matrix<T> H, int64_t states, int64_t channels, T *to) {
    for (int64_t n = 0; n < states; ++n)
        for (int64_t c = 0; c < channels; ++c) to[c * states + n] = H.row(n)[c];
}

}  // namespace SF_ISA

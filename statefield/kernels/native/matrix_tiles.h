// Products of small row-major matrices, tile by tile, so that what stands around a product (the decay of a state, a
// triangle of zeros, the sum with another product) happens while its sums are in registers.
//
// The right-hand operand is scratch: rows `ld` apart whose columns behind the last are zeros up to a whole tile. `ld` is
// an odd number of cache lines, so that a column of it falls on all sets of the first-level cache and not on a few.
#pragma once
#include "simd.h"

namespace SF_ISA {

template <typename T>
constexpr int TILE_COLUMNS = 2 * lanes<T>::count;
// 6 x 2 sums, 2 vectors of the right operand and one broadcast element of the left fill the 16 registers of AVX2.
constexpr int MOST_TILE_ROWS = 6;

template <typename T>
inline int64_t padded_columns(int64_t columns) {
    return (columns + TILE_COLUMNS<T> - 1) / TILE_COLUMNS<T> * TILE_COLUMNS<T>;
}
template <typename T>
inline int64_t leading_dimension(int64_t columns) {
    constexpr int64_t line = 64 / sizeof(T);
    const int64_t lines = (padded_columns<T>(columns) + line - 1) / line;
    return (lines | 1) * line;
}

// Rows of scratch.
template <typename T>
struct matrix {
    T *data;
    int64_t ld;
    T *row(int64_t i) const { return data + i * ld; }
};

// The left-hand operand of a product: element (i, k) lies at data + i * row + k * step.
template <typename T>
struct left_operand {
    const T *data;
    int64_t row, step;
};
template <typename T>
SF_INLINE left_operand<T> plain(matrix<T> m) {
    return {m.data, m.ld, 1};
}
template <typename T>
SF_INLINE left_operand<T> transposed(matrix<T> m) {
    return {m.data, 1, m.ld};
}

// R x TILE_COLUMNS sums.
template <typename T, int R>
struct tile {
    static constexpr int W = lanes<T>::count;
    static constexpr int rows = R;
    vec<T> sum[R][2];

    SF_INLINE tile() {
#pragma GCC unroll 6
        for (int i = 0; i < R; ++i) sum[i][0] = sum[i][1] = vec<T>{};
    }
    // sum[i, :] += left[i0 + i, k] * right[k, j0 ...] for k in [begin, end)
    SF_INLINE void add(left_operand<T> left, int64_t i0, matrix<T> right, int64_t j0, int64_t begin, int64_t end) {
        const T *l = left.data + i0 * left.row + begin * left.step, *r = right.data + begin * right.ld + j0;
        const int64_t row = left.row, step = left.step, ld = right.ld;
        for (int64_t k = begin; k < end; ++k, l += step, r += ld) {
            const vec<T> low = load(r), high = load(r + W);
#pragma GCC unroll 6
            for (int i = 0; i < R; ++i) {
                const vec<T> value = splat(l[i * row]);
                sum[i][0] += value * low;
                sum[i][1] += value * high;
            }
        }
    }
    SF_INLINE void scale_rows(const T *by) {
#pragma GCC unroll 6
        for (int i = 0; i < R; ++i) {
            const vec<T> value = splat(by[i]);
            sum[i][0] *= value;
            sum[i][1] *= value;
        }
    }
    SF_INLINE void store_to(matrix<T> m, int64_t i0, int64_t j0) const {
#pragma GCC unroll 6
        for (int i = 0; i < R; ++i) {
            store(m.row(i0 + i) + j0, sum[i][0]);
            store(m.row(i0 + i) + j0 + W, sum[i][1]);
        }
    }
};

// visit(tile, i0, j0) for tiles, all sums zero, that cover rows x columns from row i0 and column j0 on. Those of one
// column follow one another, so that its share of the right operand stays in the cache.
template <typename T, typename Visit>
SF_INLINE void for_tiles(int64_t rows, int64_t columns, Visit visit) {
    for (int64_t j0 = 0; j0 < columns; j0 += TILE_COLUMNS<T>) {
        int64_t i0 = 0;
        for (; i0 + 6 <= rows; i0 += 6) visit(tile<T, 6>(), i0, j0);
        if (rows - i0 >= 4) {
            visit(tile<T, 4>(), i0, j0);
            i0 += 4;
        }
        if (rows - i0 >= 2) {
            visit(tile<T, 2>(), i0, j0);
            i0 += 2;
        }
        if (rows - i0 >= 1) visit(tile<T, 1>(), i0, j0);
    }
}

// The first `rows` x `columns` of `from`, rows `row` apart, with zeros behind them up to a whole tile.
template <typename T>
inline void copy_rows(const T *from, int64_t row, int64_t rows, int64_t columns, matrix<T> to) {
    const int64_t behind = padded_columns<T>(columns) - columns;
    for (int64_t i = 0; i < rows; ++i) {
        memcpy(to.row(i), from + i * row, (size_t)columns * sizeof(T));
        if (behind) memset(to.row(i) + columns, 0, (size_t)behind * sizeof(T));
    }
}

// to[j, i] = from[i, j], with zeros behind the columns of `to`. Blocks of 8 x 8 elements, so that both sides stay in the
// cache and the compiler can hold a block in registers.
template <typename T>
inline void transpose(const T *from, int64_t row, int64_t rows, int64_t columns, matrix<T> to) {
    constexpr int64_t S = 8;
    int64_t i0 = 0;
    for (; i0 + S <= rows; i0 += S) {
        int64_t j0 = 0;
        for (; j0 + S <= columns; j0 += S) {
            T block[S][S];
            for (int i = 0; i < S; ++i) memcpy(block[i], from + (i0 + i) * row + j0, sizeof block[i]);
            for (int j = 0; j < S; ++j)
                for (int i = 0; i < S; ++i) to.row(j0 + j)[i0 + i] = block[i][j];
        }
        for (; j0 < columns; ++j0)
            for (int i = 0; i < S; ++i) to.row(j0)[i0 + i] = from[(i0 + i) * row + j0];
    }
    for (; i0 < rows; ++i0)
        for (int64_t j = 0; j < columns; ++j) to.row(j)[i0] = from[i0 * row + j];
    const int64_t behind = padded_columns<T>(rows) - rows;
    if (behind)
        for (int64_t j = 0; j < columns; ++j) memset(to.row(j) + rows, 0, (size_t)behind * sizeof(T));
}

}  // namespace SF_ISA

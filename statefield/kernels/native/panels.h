// Matrix products whose right-hand side lies in panels: [K, PANEL], two vectors wide, packed row after row.
//
// Operators that are matrix products call a library for them where what stands around the product is cheap. Here the
// scaling of one operand, and what is added to the result, would each be a pass over memory as long as the product
// itself; inside the product's own loads and stores they cost nothing.
#pragma once
#include "simd.h"

// Of a lambda that a product calls for each row: it has to vanish into the loop.
#define SF_LAMBDA __attribute__((always_inline))

namespace SF_ISA {

template <typename T>
constexpr int PANEL = 2 * lanes<T>::count;

// Rows of a tile: 6 x 2 sums, 2 operands and one broadcast value fill the 16 registers of AVX2.
constexpr int TILE_ROWS = 6;

inline int64_t panels_of(int64_t columns, int64_t panel) { return (columns + panel - 1) / panel; }

// `count` columns of a row as one panel row, zero behind them. Whole: count is PANEL and more.
template <bool Whole, typename T>
SF_INLINE twin<vec<T>> load_panel(const T *row, int64_t count) {
    constexpr int W = lanes<T>::count;
    if (Whole || count >= 2 * W) return {load(row), load(row + W)};
    if (count > W) return {load(row), load_part(row + W, count - W)};
    return {load_part(row, count), vec<T>{}};
}
template <bool Whole, typename T>
SF_INLINE void store_panel(T *row, twin<vec<T>> x, int64_t count) {
    constexpr int W = lanes<T>::count;
    if (Whole || count >= 2 * W) {
        store(row, x.a);
        store(row + W, x.b);
    } else if (count > W) {
        store(row, x.a);
        store_part(row + W, x.b, count - W);
    } else {
        store_part(row, x.a, count);
    }
}

// run(whole, column) for the first column of each panel; `whole` is a compile-time constant: whether the panel is full.
struct yes {
    static constexpr bool value = true;
};
struct no {
    static constexpr bool value = false;
};
template <typename T, typename Run>
SF_INLINE void for_each_panel(int64_t columns, Run run) {
    int64_t column = 0;
    for (; column + PANEL<T> <= columns; column += PANEL<T>) run(yes{}, column);
    if (column < columns) run(no{}, column);
}

// finish(i, sum over k < depth of left[i * row + k * step] * right[k, :]) for i in [first, first + ROWS).
template <int ROWS, typename T, typename Finish>
SF_INLINE void tile_product(
    const T *left, int64_t row, int64_t step, const T *right, int64_t depth, int64_t first, Finish finish) {
    constexpr int W = lanes<T>::count;
    vec<T> low[ROWS] = {}, high[ROWS] = {};
    const T *l = left + first * row;
    for (int64_t k = 0; k < depth; ++k, l += step, right += PANEL<T>) {
        const vec<T> r = load(right), s = load(right + W);
#pragma GCC unroll 6
        for (int i = 0; i < ROWS; ++i) {
            const vec<T> value = splat(l[i * row]);
            low[i] += value * r;
            high[i] += value * s;
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < ROWS; ++i) finish(first + i, twin<vec<T>>{low[i], high[i]});
}

// The same for all i in [0, rows). Where `row` is 1 and `step` is not, `left` is a transposed matrix.
template <typename T, typename Finish>
SF_INLINE void panel_product(
    const T *left, int64_t row, int64_t step, const T *right, int64_t depth, int64_t rows, Finish finish) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS) tile_product<TILE_ROWS>(left, row, step, right, depth, i, finish);
    switch (rows - i) {
        case 5: return tile_product<5>(left, row, step, right, depth, i, finish);
        case 4: return tile_product<4>(left, row, step, right, depth, i, finish);
        case 3: return tile_product<3>(left, row, step, right, depth, i, finish);
        case 2: return tile_product<2>(left, row, step, right, depth, i, finish);
        case 1: return tile_product<1>(left, row, step, right, depth, i, finish);
        default: return;
    }
}

}  // namespace SF_ISA

// What stands around the matrix products of HSM-SSD's hidden states: w_l = softmax over positions of dt, times B_l, and
// the gradients through both. A row is one state of one batch entry, [L]; rows are independent. The maths is in
// README.md of kernels/hsm_ssd.
#include "simd.h"

namespace SF_ISA {
namespace {

// run(full, l) for vectors of a row, `full` lanes of each; a row of L is walked in the same order on every run.
template <typename T, typename Run>
SF_INLINE void for_each_vector(int64_t length, Run run) {
    constexpr int W = lanes<T>::count;
    int64_t l = 0;
    for (; l + W <= length; l += W) run((int64_t)W, l);
    if (l < length) run(length - l, l);
}

template <typename T>
SF_INLINE vec<T> read(const T *row, int64_t count) {
    return count == lanes<T>::count ? load(row) : load_part(row, count);
}
template <typename T>
SF_INLINE void write(T *row, vec<T> x, int64_t count) {
    if (count == lanes<T>::count)
        store(row, x);
    else
        store_part(row, x, count);
}

// exp(x - largest) for x <= largest.
template <typename T>
SF_INLINE vec<T> raised(vec<T> x, T largest) {
    return exp2_nonpositive((x - splat(largest)) * splat((T)LOG2E));
}

template <typename T>
void weigh(const T *dt, const T *B, T *weights, T *largest, T *total, int64_t length) {
    constexpr int W = lanes<T>::count;
    vec<T> most = splat(dt[0]);
    for_each_vector<T>(length, [&](int64_t count, int64_t l) {
        if (count == W) {
            most = at_least(load(dt + l), most);
        } else {
            for (int64_t i = 0; i < count; ++i) most[0] = dt[l + i] > most[0] ? dt[l + i] : most[0];
        }
    });
    *largest = most[0];
    for (int i = 1; i < W; ++i) *largest = most[i] > *largest ? most[i] : *largest;

    vec<T> sums{};
    T rest = 0;
    for_each_vector<T>(length, [&](int64_t count, int64_t l) {
        const vec<T> e = raised(read(dt + l, count), *largest);
        if (count == W) {
            sums += e;
        } else {
            for (int64_t i = 0; i < count; ++i) rest += e[i];
        }
        write(weights + l, e * read(B + l, count), count);
    });
    *total = sum_lanes<T>(sums) + rest;
    const vec<T> share = splat(T(1) / *total);
    for_each_vector<T>(length, [&](int64_t count, int64_t l) {
        write(weights + l, read((const T *)weights + l, count) * share, count);
    });
}

template <typename T>
int forward(
    const T *dt, const T *B, T *weights, T *softmax, int64_t batch, int64_t states, int64_t length, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < batch * states; ++row) {
        T *largest = softmax + row / states * 2 * states + row % states;
        weigh(dt + row * length, B + row * length, weights + row * length, largest, largest + states, length);
    }
    return SF_OK;
}

// mean [B, N]: the sum over positions of weights * grad_weights, which is that over channels of h * dh.
template <typename T>
int backward(
    const T *dt, const T *B, const T *softmax, const T *grad_weights, const T *mean, T *weights, T *grad_dt, T *grad_B,
    int64_t batch, int64_t states, int64_t length, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < batch * states; ++row) {
        const T *normaliser = softmax + row / states * 2 * states + row % states;
        const T largest = normaliser[0], part = T(1) / normaliser[states];
        const int64_t first = row * length;
        for_each_vector<T>(length, [&](int64_t count, int64_t l) {
            const int64_t at = first + l;
            const vec<T> share = raised(read(dt + at, count), largest) * splat(part);
            const vec<T> b = read(B + at, count), grad = read(grad_weights + at, count);
            write(weights + at, share * b, count);
            write(grad_B + at, share * grad, count);
            write(grad_dt + at, share * (b * grad - splat(mean[row])), count);
        });
    }
    return SF_OK;
}

}  // namespace
}  // namespace SF_ISA

#define SF_HSM_SSD(T, suffix)                                                                                       \
    SF_EXPORT(hsm_ssd_forward_##suffix)                                                                             \
    (const T *dt, const T *B, T *weights, T *softmax, int64_t batch, int64_t states, int64_t length,                \
     int64_t threads) {                                                                                             \
        return SF_ISA::forward<T>(dt, B, weights, softmax, batch, states, length, threads);                         \
    }                                                                                                               \
    SF_EXPORT(hsm_ssd_backward_##suffix)                                                                            \
    (const T *dt, const T *B, const T *softmax, const T *grad_weights, const T *mean, T *weights, T *grad_dt,       \
     T *grad_B, int64_t batch, int64_t states, int64_t length, int64_t threads) {                                   \
        return SF_ISA::backward<T>(                                                                                 \
            dt, B, softmax, grad_weights, mean, weights, grad_dt, grad_B, batch, states, length, threads);          \
    }
SF_HSM_SSD(float, f32)
SF_HSM_SSD(double, f64)

// What the backward of the selective scan has for one block, however many states there are.
//
// With a_t = exp(dt_t A), h_t = a_t h_{t-1} + dt_t x_t B_t, y_t = sum_n C_t h_t + D x_t, and g_t the gradient of h_t:
//     g_t = C_t dy_t + a_{t+1} g_{t+1}            dC_t = sum_d dy_t h_t        dB_t = sum_d g_t dt_t x_t
//     d(dt x)_t = sum_n g_t B_t                   dA = sum_t (g_t h_{t-1} a_t) dt_t
//     d(dt)_t = x_t d(dt x)_t + sum_n (g_t h_{t-1} a_t) A
// A block is walked from its last chunk to its first; the states of a chunk are computed again from the state kept
// before it. Sums over channels are taken in the order of the blocks, sums over time from the end: the same on every run.
#pragma once
#include "selective_scan_block.h"

namespace SF_ISA {
namespace {

// What a block sums up from its last chunk to its first.
template <typename T>
struct block_sums {
    using V = vec<T>;
    V *carry, *grad_A;     // [v][n] gradient that flows to the chunk before; sum over time
    V *grad_b, *grad_c;    // [v][n] where B, C are constant in time
    V *grad_D, *grad_bias; // [v]

    static int64_t count(const sf_scan &s, int64_t vectors) { return vectors * (4 * s.states + 2); }

    // Takes `count` vectors of memory: the carry from the gradient of the last state, zero for the rest.
    block_sums(const sf_scan &s, const block<T> &k, V *memory) {
        const int64_t small = k.vectors * s.states;
        carry = memory, grad_A = carry + small, grad_b = grad_A + small, grad_c = grad_b + small;
        grad_D = grad_c + small, grad_bias = grad_D + k.vectors;
        memset((void *)memory, 0, (size_t)count(s, k.vectors) * sizeof(V));
        if (s.grad_last) k.gather(carry, (const T *)s.grad_last + of_channels(s, k), s.states);
    }
    void finish(const sf_scan &s, const block<T> &k) const {
        const int64_t N = s.states, place = of_channels(s, k), channel = k.batch * s.channels + k.first;
        k.scatter((T *)s.grad_A + place, grad_A, N);
        if (s.b_constant) k.scatter((T *)s.grad_B + place, grad_b, N);
        if (s.c_constant) k.scatter((T *)s.grad_C + place, grad_c, N);
        if (s.grad_initial) k.scatter((T *)s.grad_initial + place, carry, N);
        if (s.grad_D) k.scatter((T *)s.grad_D + channel, grad_D, 1);
        if (s.grad_bias) k.scatter((T *)s.grad_bias + channel, grad_bias, 1);
    }
    static int64_t of_channels(const sf_scan &s, const block<T> &k) {
        return (k.batch * s.channels + k.first) * s.states;
    }
};

// The gradients of B and C: one slot's rows of one sequence and group, [L, G, N] from group g on. The first block of the
// slot stores its sums, the others add theirs.
template <typename T>
struct weight_gradients {
    T *const B, *const C;
    const bool first_block;
    SF_INLINE void add(T *to, T sum) const { *to = first_block ? sum : *to + sum; }
};

// A vector of which `left` lanes are channels; whole where a vector has as many.
template <typename T>
SF_INLINE vec<T> read(const T *from, int64_t left) {
    return left >= lanes<T>::count ? load(from) : load_part(from, left);
}
template <typename T>
SF_INLINE void write(T *to, vec<T> x, int64_t left) {
    if (left >= lanes<T>::count)
        store(to, x);
    else
        store_part(to, x, left);
}

// The slope of softplus from exp(-|x|). Above 20 the softplus is x itself; in float32 the sigmoid is 1 there anyway.
SF_INLINE vec<float> softplus_slope(vec<float> x, vec<float> small) {
    const vec<float> one = splat(1.0f), rest = one / (one + small);
    return x < 0 ? small * rest : rest;
}
SF_INLINE vec<double> softplus_slope(vec<double> x, vec<double> small) {
    const vec<double> one = splat(1.0), rest = one / (one + small);
    return x > 20 ? one : x < 0 ? small * rest : rest;
}

}  // namespace
}  // namespace SF_ISA

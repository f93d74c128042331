// Vectors: GCC/clang vector extensions of the width that suits the instruction set, and the few functions that the
// kernels need on them. A lane is a channel.
#pragma once
#include <math.h>

#include "abi.h"

#if defined(SF_ISA_avx512)
#define SF_VECTOR_BYTES 64
#elif defined(SF_ISA_avx2)
#define SF_VECTOR_BYTES 32
#else
#define SF_VECTOR_BYTES 16  // SSE2, NEON, and whatever the compiler makes of it elsewhere
#endif

#if defined(SF_ISA_avx512) || defined(SF_ISA_avx2)
#include <immintrin.h>
#endif

#define SF_INLINE inline __attribute__((always_inline))

namespace SF_ISA {

template <typename T>
struct lanes;
template <>
struct lanes<float> {
    typedef float vec __attribute__((vector_size(SF_VECTOR_BYTES)));
    typedef float loose __attribute__((vector_size(SF_VECTOR_BYTES), aligned(4), may_alias));
    typedef int32_t ints __attribute__((vector_size(SF_VECTOR_BYTES)));
    static constexpr int count = SF_VECTOR_BYTES / 4;
};
template <>
struct lanes<double> {
    typedef double vec __attribute__((vector_size(SF_VECTOR_BYTES)));
    typedef double loose __attribute__((vector_size(SF_VECTOR_BYTES), aligned(8), may_alias));
    typedef int64_t ints __attribute__((vector_size(SF_VECTOR_BYTES)));
    static constexpr int count = SF_VECTOR_BYTES / 8;
};

template <typename T>
using vec = typename lanes<T>::vec;

using vf = vec<float>;
using vd = vec<double>;

template <typename T>
SF_INLINE vec<T> splat(T x) {
    return x - vec<T>{};
}
template <typename T>
SF_INLINE vec<T> load(const T *p) {
    return *(const typename lanes<T>::loose *)p;
}
template <typename T>
SF_INLINE void store(T *p, vec<T> x) {
    *(typename lanes<T>::loose *)p = x;
}
// The first `count` lanes; the others are zero, and memory behind them is not touched.
template <typename T>
SF_INLINE vec<T> load_part(const T *p, int64_t count) {
    vec<T> x{};
    memcpy(&x, p, (size_t)count * sizeof(T));
    return x;
}
template <typename T>
SF_INLINE void store_part(T *p, vec<T> x, int64_t count) {
    memcpy(p, &x, (size_t)count * sizeof(T));
}

// A comparison that is false for NaN keeps x, so NaN passes through both.
template <typename V>
SF_INLINE V at_least(V x, V low) {
    return low > x ? low : x;
}
template <typename V>
SF_INLINE V at_most(V x, V high) {
    return high < x ? high : x;
}

template <typename T>
SF_INLINE T sum_lanes(vec<T> x) {
    T total = 0;  // in lane order: the same on every run
    for (int i = 0; i < lanes<T>::count; ++i) total += x[i];
    return total;
}

// 2^x, relative error below 1.6e-7. Results below 2^-126 become 2^-126, above 2^128 infinity; NaN stays NaN.
SF_INLINE vf exp2(vf x) {
    x = at_most(at_least(x, splat(-126.0f)), splat(128.0f));
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the mantissa.
    const vf shifted = x + 12582912.0f;
    const vf f = x - (shifted - 12582912.0f);  // in [-1/2, 1/2]
    // Minimax polynomial of 2^f with 2^0 = 1 exactly (a step with dt = 0 changes no state): relative error 9.2e-8.
    vf p = splat(1.3264727076685023e-3f);
    p = p * f + 9.671512663505966e-3f;
    p = p * f + 5.550733743513231e-2f;
    p = p * f + 2.402224208485268e-1f;
    p = p * f + 6.93146977599183e-1f;
    p = p * f + 1.0f;
    return (vf)((lanes<float>::ints)p + ((lanes<float>::ints)shifted << 23));
}
SF_INLINE vd exp2(vd x) {
    for (int i = 0; i < lanes<double>::count; ++i) x[i] = ::exp2(x[i]);
    return x;
}

constexpr double LOG2E = 1.4426950408889634074;

template <typename T>
SF_INLINE vec<T> exp(vec<T> x) {
    return exp2(x * (T)LOG2E);
}

// log(1 + e) for e in [0, 1]: e times a minimax polynomial of log(1 + e) / e, relative error 3e-8.
SF_INLINE vf log1p_unit(vf e) {
    vf p = splat(5.232682980969179e-3f);
    p = p * e - 2.9505193563975515e-2f;
    p = p * e + 7.822587825489502e-2f;
    p = p * e - 1.3663239550016787e-1f;
    p = p * e + 1.910600382496296e-1f;
    p = p * e - 2.484298146370974e-1f;
    p = p * e + 3.331909671337183e-1f;
    p = p * e - 4.9999493135967016e-1f;
    p = p * e + 9.999999698792055e-1f;
    return p * e;
}
SF_INLINE vd log1p_unit(vd e) {
    for (int i = 0; i < lanes<double>::count; ++i) e[i] = ::log1p(e[i]);
    return e;
}

// log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)); above 20 the second term is below 2.1e-9 and x alone remains.
template <typename T>
SF_INLINE vec<T> softplus(vec<T> x) {
    const vec<T> zero{};
    const vec<T> magnitude = x < zero ? -x : x;
    const vec<T> soft = at_least(x, zero) + log1p_unit(exp<T>(-magnitude));
    return x > splat<T>(20) ? x : soft;
}
template <typename T>
SF_INLINE vec<T> sigmoid(vec<T> x) {
    return (T)1 / ((T)1 + exp<T>(-x));
}

// Working memory of one thread, aligned to cache lines; `data` is null when there was none to have.
struct aligned_buffer {
    void *data;
    explicit aligned_buffer(size_t bytes) : data(nullptr) {
        if (posix_memalign(&data, 64, bytes ? bytes : 64) != 0) data = nullptr;
    }
    ~aligned_buffer() { free(data); }
    aligned_buffer(const aligned_buffer &) = delete;
    aligned_buffer &operator=(const aligned_buffer &) = delete;
};

// While one lives, the thread's tiny results are flushed to zero: a state that decays over blank input would otherwise
// become denormal, and denormal arithmetic is up to a hundred times slower.
struct flush_denormals {
#if defined(__x86_64__)
    unsigned saved;
    flush_denormals() : saved(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(saved | 0x8040); }
    ~flush_denormals() { __builtin_ia32_ldmxcsr(saved); }
#else
    flush_denormals() {}
#endif
};

}  // namespace SF_ISA

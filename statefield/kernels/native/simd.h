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

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(SF_ISA_neon)
#include <arm_neon.h>
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

// Two neighbouring vectors that go through the same arithmetic: the long dependency chains of exp and softplus leave the
// CPU idle when it follows one at a time.
template <typename V>
struct twin {
    V a, b;
};

template <typename V>
SF_INLINE twin<V> operator+(twin<V> x, twin<V> y) {
    return {x.a + y.a, x.b + y.b};
}
template <typename V>
SF_INLINE twin<V> operator-(twin<V> x, twin<V> y) {
    return {x.a - y.a, x.b - y.b};
}
template <typename V>
SF_INLINE twin<V> operator*(twin<V> x, twin<V> y) {
    return {x.a * y.a, x.b * y.b};
}
template <typename V>
SF_INLINE twin<V> operator/(twin<V> x, twin<V> y) {
    return {x.a / y.a, x.b / y.b};
}

// What a kernel loads and computes with: a vector or a twin.
template <typename P>
struct pack;
template <>
struct pack<vf> {
    using scalar = float;
    using ints = lanes<float>::ints;
    static constexpr int vectors = 1;
};
template <>
struct pack<vd> {
    using scalar = double;
    using ints = lanes<double>::ints;
    static constexpr int vectors = 1;
};
template <typename V>
struct pack<twin<V>> {
    using scalar = typename pack<V>::scalar;
    static constexpr int vectors = 2;
};
template <typename P>
using scalar_of = typename pack<P>::scalar;

// All lanes equal to x.
template <typename P>
struct make;
template <>
struct make<vf> {
    static SF_INLINE vf all(float x) { return x - vf{}; }
};
template <>
struct make<vd> {
    static SF_INLINE vd all(double x) { return x - vd{}; }
};
template <typename V>
struct make<twin<V>> {
    static SF_INLINE twin<V> all(scalar_of<V> x) { return {make<V>::all(x), make<V>::all(x)}; }
};
template <typename P>
SF_INLINE P all(scalar_of<P> x) {
    return make<P>::all(x);
}
template <typename T>
SF_INLINE vec<T> splat(T x) {
    return make<vec<T>>::all(x);
}

template <typename T>
SF_INLINE vec<T> load(const T *p) {
    return *(const typename lanes<T>::loose *)p;
}
template <typename T>
SF_INLINE void store(T *p, vec<T> x) {
    *(typename lanes<T>::loose *)p = x;
}
// Stores past the caches, for results so large that the caches would have lost them before anybody reads them: the line is
// written without being read first. `p` is a multiple of the vector's size. `drain_streams` before others read it.
#if defined(__x86_64__)
SF_INLINE void stream(float *p, vec<float> x) {
#if defined(SF_ISA_avx512)
    _mm512_stream_ps(p, x);
#elif defined(SF_ISA_avx2)
    _mm256_stream_ps(p, x);
#else
    _mm_stream_ps(p, x);
#endif
}
SF_INLINE void drain_streams() { _mm_sfence(); }
#else
SF_INLINE void stream(float *p, vec<float> x) { store(p, x); }
SF_INLINE void drain_streams() {}
#endif
SF_INLINE void stream(double *p, vec<double> x) { store(p, x); }

// A vector or a twin from p on.
template <typename P>
struct memory {
    using T = scalar_of<P>;
    static SF_INLINE P read(const T *p) { return load(p); }
    static SF_INLINE void write(T *p, P x) { store(p, x); }
    static SF_INLINE void stream_to(T *p, P x) { stream(p, x); }
};
template <typename V>
struct memory<twin<V>> {
    using T = scalar_of<V>;
    static constexpr int W = sizeof(V) / sizeof(T);
    static SF_INLINE twin<V> read(const T *p) { return {load(p), load(p + W)}; }
    static SF_INLINE void write(T *p, twin<V> x) {
        store(p, x.a);
        store(p + W, x.b);
    }
    static SF_INLINE void stream_to(T *p, twin<V> x) {
        stream(p, x.a);
        stream(p + W, x.b);
    }
};
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

// max and min that keep a NaN in x. The compilers make two instructions of the comparison, so it is spelled out where one
// instruction does it: MAXPS returns its second operand when either is NaN.
#if defined(SF_ISA_avx512)
// The forms with a mask, of all lanes: g++ 12 takes the undefined operand inside _mm512_max_ps for a mistake of ours.
SF_INLINE vf at_least(vf x, vf low) { return _mm512_maskz_max_ps((__mmask16)-1, low, x); }
SF_INLINE vf at_most(vf x, vf high) { return _mm512_maskz_min_ps((__mmask16)-1, high, x); }
#elif defined(SF_ISA_avx2)
SF_INLINE vf at_least(vf x, vf low) { return _mm256_max_ps(low, x); }
SF_INLINE vf at_most(vf x, vf high) { return _mm256_min_ps(high, x); }
#elif defined(__SSE2__)
SF_INLINE vf at_least(vf x, vf low) { return _mm_max_ps(low, x); }
SF_INLINE vf at_most(vf x, vf high) { return _mm_min_ps(high, x); }
#elif defined(SF_ISA_neon)
SF_INLINE vf at_least(vf x, vf low) { return vmaxq_f32(low, x); }
SF_INLINE vf at_most(vf x, vf high) { return vminq_f32(high, x); }
#else
SF_INLINE vf at_least(vf x, vf low) { return low > x ? low : x; }
SF_INLINE vf at_most(vf x, vf high) { return high < x ? high : x; }
#endif
SF_INLINE vd at_least(vd x, vd low) { return low > x ? low : x; }
template <typename V>
SF_INLINE twin<V> at_least(twin<V> x, twin<V> low) {
    return {at_least(x.a, low.a), at_least(x.b, low.b)};
}
template <typename V>
SF_INLINE twin<V> at_most(twin<V> x, twin<V> high) {
    return {at_most(x.a, high.a), at_most(x.b, high.b)};
}

SF_INLINE vf magnitude(vf x) { return (vf)((lanes<float>::ints)x & 0x7fffffff); }
SF_INLINE vd magnitude(vd x) { return (vd)((lanes<double>::ints)x & 0x7fffffffffffffffLL); }
template <typename V>
SF_INLINE twin<V> magnitude(twin<V> x) {
    return {magnitude(x.a), magnitude(x.b)};
}

template <typename T>
SF_INLINE T sum_lanes(vec<T> x) {
    T total = 0;  // in lane order: the same on every run
    for (int i = 0; i < lanes<T>::count; ++i) total += x[i];
    return total;
}

// x * 2^k, where the low bits of `shifted` hold the integer k.
SF_INLINE vf scale_by_power(vf x, vf shifted) {
    return (vf)((lanes<float>::ints)x + ((lanes<float>::ints)shifted << 23));
}
SF_INLINE twin<vf> scale_by_power(twin<vf> x, twin<vf> shifted) {
    return {scale_by_power(x.a, shifted.a), scale_by_power(x.b, shifted.b)};
}

template <typename P>
struct float_functions {
    static SF_INLINE P c(float x) { return all<P>(x); }

    static SF_INLINE P exp2_in_range(P x) {
        // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the mantissa.
        const P shifted = x + c(12582912.0f);
        const P f = x - (shifted - c(12582912.0f));  // in [-1/2, 1/2]
        // Minimax polynomial of 2^f with 2^0 = 1 exactly (a step with dt = 0 changes no state): relative error 9.2e-8.
        P p = c(1.3264727076685023e-3f);
        p = p * f + c(9.671512663505966e-3f);
        p = p * f + c(5.550733743513231e-2f);
        p = p * f + c(2.402224208485268e-1f);
        p = p * f + c(6.93146977599183e-1f);
        p = p * f + c(1.0f);
        return scale_by_power(p, shifted);
    }
    // 2^x, relative error below 1.6e-7. Results below 2^-126 become 2^-126, above 2^128 infinity; NaN stays NaN.
    static SF_INLINE P exp2(P x) { return exp2_in_range(at_most(at_least(x, c(-126.0f)), c(128.0f))); }
    static SF_INLINE P exp2_nonpositive(P x) { return exp2_in_range(at_least(x, c(-126.0f))); }

    // log(1 + e) for e in [0, 1]: e times a minimax polynomial of log(1 + e) / e, relative error 3e-8.
    static SF_INLINE P log1p_unit(P e) {
        P p = c(5.232682980969179e-3f);
        p = p * e + c(-2.9505193563975515e-2f);
        p = p * e + c(7.822587825489502e-2f);
        p = p * e + c(-1.3663239550016787e-1f);
        p = p * e + c(1.910600382496296e-1f);
        p = p * e + c(-2.484298146370974e-1f);
        p = p * e + c(3.331909671337183e-1f);
        p = p * e + c(-4.9999493135967016e-1f);
        p = p * e + c(9.999999698792055e-1f);
        return p * e;
    }
};

// float64 exists for checking gradients, so libm, lane by lane, will do.
template <typename P>
struct double_functions;
template <>
struct double_functions<vd> {
    static vd exp2(vd x) {
        for (int i = 0; i < lanes<double>::count; ++i) x[i] = ::exp2(x[i]);
        return x;
    }
    static vd exp2_nonpositive(vd x) { return exp2(x); }
    static vd log1p_unit(vd e) {
        for (int i = 0; i < lanes<double>::count; ++i) e[i] = ::log1p(e[i]);
        return e;
    }
};
template <>
struct double_functions<twin<vd>> {
    using one = double_functions<vd>;
    static twin<vd> exp2(twin<vd> x) { return {one::exp2(x.a), one::exp2(x.b)}; }
    static twin<vd> exp2_nonpositive(twin<vd> x) { return exp2(x); }
    static twin<vd> log1p_unit(twin<vd> e) { return {one::log1p_unit(e.a), one::log1p_unit(e.b)}; }
};

template <typename P, typename T = scalar_of<P>>
struct functions : double_functions<P> {};
template <typename P>
struct functions<P, float> : float_functions<P> {};

constexpr double LOG2E = 1.4426950408889634074;

template <typename P>
SF_INLINE P exp2(P x) {
    return functions<P>::exp2(x);
}
// The same where x <= 0 is known (or x is NaN).
template <typename P>
SF_INLINE P exp2_nonpositive(P x) {
    return functions<P>::exp2_nonpositive(x);
}
template <typename P>
SF_INLINE P exp(P x) {
    return exp2(x * all<P>((scalar_of<P>)LOG2E));
}

SF_INLINE vd keep_above_20(vd x, vd soft) { return x > splat(20.0) ? x : soft; }
SF_INLINE twin<vd> keep_above_20(twin<vd> x, twin<vd> soft) {
    return {keep_above_20(x.a, soft.a), keep_above_20(x.b, soft.b)};
}
// In float32 log1p(exp(-20)) is less than half a unit in the last place of 20: there is nothing to choose.
SF_INLINE vf keep_above_20(vf, vf soft) { return soft; }
SF_INLINE twin<vf> keep_above_20(twin<vf>, twin<vf> soft) { return soft; }

// log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), and x alone above 20, as the official kernel has it.
// In two halves for loops that are better off with short chains: the exponential, and what is made of it.
template <typename P>
SF_INLINE P softplus_exp(P x) {
    return exp2_nonpositive(magnitude(x) * all<P>((scalar_of<P>)-LOG2E));
}
template <typename P>
SF_INLINE P softplus_from(P x, P small) {
    return keep_above_20(x, at_least(x, P{}) + functions<P>::log1p_unit(small));
}
template <typename P>
SF_INLINE P softplus(P x) {
    return softplus_from(x, softplus_exp(x));
}
template <typename P>
SF_INLINE P sigmoid(P x) {
    const P one = all<P>(1);
    return one / (one + exp(x * all<P>(-1)));
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

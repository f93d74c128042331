// The arguments of the routed scan: the C side of `_Routes` in routed_scan/native.py, field by field.
//
// Layouts, channels-last, at the tokens' places: x [b, L, E] or [b, L, K, E]; delta [b, L, K, E]; B, C [b, L, K, G, N];
// A [K, E, N]; D, delta_bias [K, E]; y [b, L, E] or [b, L, K, E]; kept [b, K, ceil(T / chunk), N, E].
#pragma once
#include "selective_scan_block.h"

struct sf_routes {
    // The scan of one route: length is the steps T of a route, channels is E; u is x, out is y. Its pointers and its
    // strides over batch and time are those of the whole tensors. z, initial, last, grad_last, grad_z, grad_initial and
    // constant B and C are not there.
    struct sf_scan scan;
    const int64_t *order;                                     // [K, T]: the token at each step
    int64_t routes, tokens;                                   // K, L
    int64_t merged, shared;                                   // y is the sum over the routes; one x for all of them
    int64_t u_route, delta_route, B_route, C_route, grad_out_route;  // from route to route, in elements
};

namespace SF_ISA {
namespace {

SF_INLINE void shift(sf_strided &x, int64_t elements, size_t size) {
    if (x.data) x.data = (const char *)x.data + elements * (int64_t)size;
}
SF_INLINE void shift(const void *&x, int64_t elements, size_t size) {
    if (x) x = (const char *)x + elements * (int64_t)size;
}
SF_INLINE void shift(void *&x, int64_t elements, size_t size) {
    if (x) x = (char *)x + elements * (int64_t)size;
}

// The scan of route k in batch entry b, as one with a batch of one.
template <typename T>
sf_scan scan_of(const sf_routes &r, int64_t b, int64_t k) {
    sf_scan s = r.scan;
    const int64_t E = s.channels, N = s.states, K = r.routes, chunks = (s.length + s.chunk - 1) / s.chunk;
    s.batch = 1;
    shift(s.u, b * s.u.batch_stride + k * r.u_route, sizeof(T));
    shift(s.delta, b * s.delta.batch_stride + k * r.delta_route, sizeof(T));
    shift(s.B, b * s.B.batch_stride + k * r.B_route, sizeof(T));
    shift(s.C, b * s.C.batch_stride + k * r.C_route, sizeof(T));
    shift(s.grad_out, b * s.grad_out.batch_stride + k * r.grad_out_route, sizeof(T));
    shift(s.A, k * E * N, sizeof(T));
    shift(s.D, k * E, sizeof(T));
    shift(s.delta_bias, k * E, sizeof(T));
    shift(s.kept, (b * K + k) * chunks * N * E, sizeof(T));
    shift(s.out, r.merged ? b * r.tokens * E : (b * r.tokens * K + k) * E, sizeof(T));
    shift(s.grad_u, r.shared ? b * r.tokens * E : (b * r.tokens * K + k) * E, sizeof(T));
    shift(s.grad_delta, (b * r.tokens * K + k) * E, sizeof(T));
    shift(s.grad_A, (b * K + k) * E * N, sizeof(T));
    shift(s.grad_D, (b * K + k) * E, sizeof(T));
    shift(s.grad_bias, (b * K + k) * E, sizeof(T));
    return s;
}

// `summed`: the tensor written (y, or the gradient of x) is one for all routes. The first route to pass everywhere
// finds nothing to add to; where routes leave tokens out, the tensor was filled with zeros before.
inline along_route walk_of(const sf_routes &r, int64_t k, bool summed) {
    const int64_t T = r.scan.length, E = r.scan.channels;
    return {r.order + k * T,
            T - 1,
            summed ? E : r.routes * E,
            r.routes * E,
            r.routes * r.scan.groups * r.scan.states,
            summed && (k > 0 || T < r.tokens)};
}

// A token that is none would be read and written outside of the tensors.
inline bool leaves_the_map(const sf_routes &r) {
    bool outside = false;
    for (int64_t i = 0; i < r.routes * r.scan.length; ++i) outside |= (uint64_t)r.order[i] >= (uint64_t)r.tokens;
    return outside;
}

}  // namespace
}  // namespace SF_ISA

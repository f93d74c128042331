// The arguments of the selective scan: the C side of `_Scan` in selective_scan/native.py, field by field.
//
// Layouts, channels-last: u, delta, z, out [B, L, D]; B, C [B, L, G, N] or, constant in time, [D, N]; A [D, N];
// D, delta_bias [D]; states outside of loops [B, D, N]; kept [B, ceil(L / chunk), N, D]. Absent tensors are null.
// u, delta, z, B, C, grad_out have strides over batch and time, in elements; their last axis is dense, and so is G.
#pragma once
#include "abi.h"

struct sf_strided {
    const void *data;
    int64_t batch_stride, row_stride;
};

struct sf_scan {
    int64_t batch, length, channels, states, groups;
    int64_t chunk;        // a state is kept every so many steps
    int64_t softplus;     // 1: dt = softplus(delta + bias)
    int64_t b_constant, c_constant;
    int64_t slots;        // backward: parts into which the channels of a group are dealt, each with partial dB and dC
    int64_t threads;
    struct sf_strided u, delta, z, B, C;
    const void *A, *D, *delta_bias, *initial;
    void *out, *last, *kept;
    // The backward reads `kept` as well, and these:
    struct sf_strided grad_out;
    const void *grad_last;
    // Partial sums: one a batch entry for parameters ([B, D, N], [B, D]), one a slot for B and C ([S, B, L, G, N]);
    // the gradients of a constant B or C are [B, D, N].
    void *grad_u, *grad_delta, *grad_A, *grad_B, *grad_C, *grad_D, *grad_z, *grad_bias, *grad_initial;
};

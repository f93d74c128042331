// The arguments of Mamba-2's scan: the C side of `_Scan` in ssd/native.py, field by field.
//
// Layouts: x, z, out [b, L, h, p]; dt [b, L, h]; A, bias [h]; D [h, p]; B, C [b, L, g, n]; initial, last [b, h, p, n];
// kept [b, ceil(L / chunk), h, n, p]. Absent tensors are null. Tensors with strides have a dense last axis.
#pragma once
#include "abi.h"

// Strides, in elements, over the batch, over time, and over heads or groups.
struct sf_heads {
    const void *data;
    int64_t batch_stride, row_stride, head_stride;
};

struct sf_ssd {
    int64_t batch, length, heads, channels, states, groups;
    int64_t chunk;    // steps
    int64_t softplus; // 1: step sizes are softplus(dt + bias), clamped to [dt_min, dt_max]
    int64_t slots;    // parts into which the heads of a group are dealt; in the backward each has partial dB and dC
    int64_t threads;
    double dt_min, dt_max;
    struct sf_heads x, dt, B, C, z;
    const void *A, *D, *bias, *initial;
    void *out, *last, *kept;
    // The backward reads `kept` as well, and these:
    struct sf_heads grad_out;
    const void *grad_last;
    // Partial sums: one a batch entry for parameters ([b, h], D [b, h, p]), one a slot for B and C ([S, b, L, g, n]).
    void *grad_x, *grad_dt, *grad_A, *grad_B, *grad_C, *grad_D, *grad_z, *grad_bias, *grad_initial;
};

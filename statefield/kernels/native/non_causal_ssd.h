// The arguments of the non-causal state-space duality: the C side of `_Duality` in non_causal_ssd/native.py.
//
// x, grad [B, L, H, P], dt [B, L, H], B and C [B, L, G, N] have strides over batch and positions, in elements, and are
// dense behind them; everything else is dense: A, D [H], state [B, H, N, P], and results. Absent tensors are null.
// Head h reads group h mod G.
#pragma once
#include "abi.h"

struct sf_rows {
    const void *data;
    int64_t batch_stride, row_stride;
};

struct sf_duality {
    int64_t batch, length, heads, channels, states, groups;
    int64_t threads;
    struct sf_rows x, dt, B, C;
    const void *A, *D;
    void *y, *state;  // the forward writes them, the backward reads state
    struct sf_rows grad;
    void *grad_x, *grad_dt, *grad_A, *grad_B, *grad_C, *grad_D;
};

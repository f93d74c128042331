// What native.py of mlstm hands over. All tensors are float32 (or all float64); float64 is for checking gradients.
#pragma once
#include "abi.h"

// [B, NH, S, DH], dense in its last axis.
struct sf_mlstm_rows {
    const void *data;
    int64_t batch_stride, head_stride, row_stride;
};

// Shapes as op.py tells them; what is not marked is contiguous. A null pointer is an argument that is not there.
struct sf_mlstm {
    int64_t batch, heads, length, channels, chunk;
    int64_t rowwise;  // stabilize_rowwise
    int64_t slots;    // forward: into how many parts a head's value channels are dealt
    int64_t threads;
    double eps;
    sf_mlstm_rows q, k, v;
    const void *i, *f, *C, *n, *m;
    void *h, *last_C, *last_n, *last_m, *states_C, *states_n, *sums, *stabilizers;  // read by the backward
    sf_mlstm_rows grad_h;
    const void *grad_last_C, *grad_last_n, *grad_last_m;
    void *grad_q, *grad_k, *grad_v, *grad_i, *grad_f, *grad_C, *grad_n, *grad_m;
};

// The arguments of bidirectional WKV: the C side of `_Problem` in wkv/native.py, field by field.
//
// k, v, grad [B, T, C] with strides over batch and token, in elements, and a dense last axis; w, u [C]; y, grad_k,
// grad_v [B, T, C] dense; grad_w, grad_u [B, C], a partial sum for each batch entry. grad and grad_* are the backward's.
#pragma once
#include "selective_scan.h"

struct sf_wkv {
    int64_t batch, tokens, channels;
    int64_t chunk;     // tokens of a chunk of the official kernel; 0: the paper's formula
    int64_t official;  // backward: dk and dv with the paper's weights, as the official backward has them
    int64_t threads;
    struct sf_strided k, v, grad;
    const void *w, *u;
    void *y, *grad_w, *grad_u, *grad_k, *grad_v;
};

"""The Triton kernels of Mamba-2's scan; triton.py launches them, README.md has the maths.

A chunk of one head is a program, in three steps: what each chunk makes from a zero state (`states_kernel`), a walk over
the chunks that turns this into the state before each (`chain_kernel`), and the outputs (`output_kernel`). Backwards the
first two run from the other end, on gradients of states; then `inputs_kernel`, `weights_kernel` and `steps_kernel` give
the gradients of x and z, of B and C, and of dt. They are three, and compute the two triangles of a chunk twice, because
all that one would have to hold at a time does not fit the registers. For the same reason products go through n and p in
pieces of K.

Products are tl.dot on operands of the state's dtype. PRECISION is "ieee" for float32 and float64 inputs; for 16-bit
inputs "tf32x3", three products on the tensor cores, because states and gradients of parameters are float32 even then.
Gradients of B and C are sums over heads, those of A, D and the bias over chunks: each program writes its own part, and
the launcher adds them in a fixed order. No atomics, so two runs give equal bits.

Legend: b batch, L length, h heads, p channels, n states, g groups, M chunks. A suffix names a tensor's axes: l, s the
steps of a chunk (later, earlier), n states, p channels. Sizes in capitals are powers of two, at least 16; what lies
behind the real sizes is zero. ACC is float32 (float64 for float64 inputs) whatever the inputs are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from statefield.kernels.selective_scan.triton_kernels import _sigmoid, _softplus

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _place(heads, groups, chunk, length, Q: tl.constexpr):
    """This program's chunk, batch, head, group, and the steps of the chunk: rows of the sequence, and which exist."""
    m = tl.program_id(0)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    step = tl.arange(0, Q)
    row = m * chunk + step
    return m, batch, head, head // (heads // groups), row, (step < chunk) & (row < length)


@triton.jit
def _tile(pointer, row, row_stride, mask_row, column, num_columns, ACC: tl.constexpr):
    """Rows of a tensor whose last axis is dense, in ACC; zero outside."""
    mask = mask_row[:, None] & (column < num_columns)[None, :]
    return tl.load(pointer + row.to(tl.int64)[:, None] * row_stride + column[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def _head_steps(
    dt, bias, A, batch, head, row, mask, dt_batch, dt_row, dt_head,
    SOFTPLUS: tl.constexpr, DT_MIN: tl.constexpr, DT_MAX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Step sizes and their slope against dt; the running sum of dt A log2(e) as two numbers, high + low.

    The sum is formed in float64: late in a chunk it may be thousands, and the decay over a small step, a difference of
    two of them, would be lost to rounding.
    """
    given = tl.load(dt + batch * dt_batch + row.to(tl.int64) * dt_row + head * dt_head, mask=mask, other=0.0).to(ACC)
    if bias is not None:
        given += tl.load(bias + head).to(ACC)
    slope = tl.full(given.shape, 1.0, ACC)
    step = given
    if SOFTPLUS:
        step, slope = _softplus(given)
    # tl.full: a limit written into tl.minimum would be rounded to float32
    least, most = tl.full(step.shape, DT_MIN, ACC), tl.full(step.shape, DT_MAX, ACC)
    slope = tl.where((step < least) | (step > most), 0.0, slope)
    step = tl.where(step < least, least, step)
    step = tl.where(step > most, most, step)
    step = tl.where(mask, step, 0.0)
    exponent = step.to(tl.float64) * (tl.load(A + head).to(tl.float64) * _LOG2_E)
    total = tl.cumsum(exponent, 0)
    high = total.to(ACC)
    return step, slope, high, (total - high.to(tl.float64)).to(ACC)


@triton.jit
def _at_end(values, Q: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, Q) == Q - 1, values, 0.0), 0)


@triton.jit
def _until_last(high, low, Q: tl.constexpr):
    """exp(cum_last - cum_s): steps that do not exist have dt = 0, so the running sum ends at the last one's."""
    return tl.exp2((_at_end(high, Q) - high) + (_at_end(low, Q) - low))


@triton.jit
def _decays(high, low, Q: tl.constexpr):
    """exp(cum_l - cum_s) for s <= l, [Q, Q]; zero above the diagonal, where it could be infinite."""
    difference = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    step = tl.arange(0, Q)
    return tl.exp2(tl.where(step[:, None] >= step[None, :], difference, float("-inf")))


@triton.jit
def _product(left, right, PRECISION: tl.constexpr, ACC: tl.constexpr):
    return tl.dot(left, right, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def states_kernel(
    weights, rows, z, dt, bias, A, made, exponents,
    length, chunk, heads, groups, channels, states,
    weights_batch, weights_row, weights_group, rows_batch, rows_row, rows_head, z_batch, z_row, z_head,
    dt_batch, dt_row, dt_head,
    BACKWARDS: tl.constexpr, SOFTPLUS: tl.constexpr, DT_MIN: tl.constexpr, DT_MAX: tl.constexpr,
    Q: tl.constexpr, N: tl.constexpr, P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What a chunk makes from a zero state: the state after it, from weights = B and rows = x. BACKWARDS the gradient
    of the state before it, from weights = C and rows = dy, which is that of the output, here taken through the gate.

    made [b, M, h, n, p]. exponents [b, M, h]: log2 of the decay of the whole chunk.
    """
    m, batch, head, group, row, mask = _place(heads, groups, chunk, length, Q)
    blocks = tl.cdiv(states, N)
    n = tl.program_id(2) % blocks * N + tl.arange(0, N)
    p = tl.program_id(2) // blocks * P + tl.arange(0, P)
    step, _slope, high, low = _head_steps(
        dt, bias, A, batch, head, row, mask, dt_batch, dt_row, dt_head, SOFTPLUS, DT_MIN, DT_MAX, ACC
    )
    of_head = rows + batch * rows_batch + head * rows_head
    rows_lp = _tile(of_head, row, rows_row, mask, p, channels, ACC)
    if BACKWARDS:
        if z is not None:
            z_lp = _tile(z + batch * z_batch + head * z_head, row, z_row, mask, p, channels, ACC)
            rows_lp *= z_lp * _sigmoid(z_lp)
        rows_lp *= tl.exp2(high)[:, None]
    else:
        rows_lp *= (step * _until_last(high, low, Q))[:, None]
    of_group = weights + batch * weights_batch + group * weights_group
    weights_ln = _tile(of_group, row, weights_row, mask, n, states, ACC)
    made_np = _product(tl.trans(weights_ln), rows_lp, PRECISION, ACC)
    place = (batch * tl.num_programs(0) + m) * heads + head
    mask_np = (n < states)[:, None] & (p < channels)[None, :]
    tl.store(made + (place * states + n[:, None]) * channels + p[None, :], made_np, mask=mask_np)
    if tl.program_id(2) == 0:
        tl.store(exponents + place, _at_end(high, Q))


@triton.jit
def chain_kernel(
    states, exponents, start, end, num_chunks, heads, channels, num_states,
    start_batch, start_head, start_channel, start_state,
    BACKWARDS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Overwrites what each chunk makes [b, M, h, n, p] with what enters it: the state before it, or BACKWARDS the
    gradient of the state after it. `start` (or None) [b, h, p, n] enters the sequence, `end` (or None) leaves it.
    """
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # of a state [n, p]
    mask = element < num_states * channels
    n, p = element // channels, element % channels
    carry = tl.zeros(element.shape, ACC)
    if start is not None:
        place = batch * start_batch + head * start_head + p * start_channel + n * start_state
        carry = tl.load(start + place, mask=mask, other=0.0).to(ACC)
    for walked in range(0, num_chunks):
        m = (num_chunks - 1 - walked) if BACKWARDS else walked
        at_chunk = (batch * num_chunks + m) * heads + head
        at = states + at_chunk * num_states * channels + element
        made = tl.load(at, mask=mask, other=0.0)
        tl.store(at, carry, mask=mask)
        carry = tl.exp2(tl.load(exponents + at_chunk)) * carry + made
    if end is not None:
        tl.store(end + ((batch * heads + head) * channels + p) * num_states + n, carry, mask=mask)


@triton.jit
def output_kernel(
    x, z, dt, bias, A, B, C, D, states, out,
    length, chunk, heads, groups, channels, num_states,
    x_batch, x_row, x_head, z_batch, z_row, z_head, dt_batch, dt_row, dt_head,
    B_batch, B_row, B_group, C_batch, C_row, C_group,
    SOFTPLUS: tl.constexpr, DT_MIN: tl.constexpr, DT_MAX: tl.constexpr,
    Q: tl.constexpr, N: tl.constexpr, P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The output of P channels of a chunk, from the states before the chunks."""
    m, batch, head, group, row, mask = _place(heads, groups, chunk, length, Q)
    p = tl.program_id(2) * P + tl.arange(0, P)
    step, _slope, high, low = _head_steps(
        dt, bias, A, batch, head, row, mask, dt_batch, dt_row, dt_head, SOFTPLUS, DT_MIN, DT_MAX, ACC
    )
    before = states + ((batch * tl.num_programs(0) + m) * heads + head) * num_states * channels
    scores_ls = tl.zeros((Q, Q), ACC)
    y_lp = tl.zeros((Q, P), ACC)
    for n0 in range(0, num_states, K):
        n = n0 + tl.arange(0, K)
        B_sn = _tile(B + batch * B_batch + group * B_group, row, B_row, mask, n, num_states, ACC)
        C_ln = _tile(C + batch * C_batch + group * C_group, row, C_row, mask, n, num_states, ACC)
        H_np = _tile(before, n, channels, n < num_states, p, channels, ACC)
        scores_ls += _product(C_ln, tl.trans(B_sn), PRECISION, ACC)
        y_lp += _product(C_ln, H_np, PRECISION, ACC)
    x_lp = _tile(x + batch * x_batch + head * x_head, row, x_row, mask, p, channels, ACC)
    y_lp *= tl.exp2(high)[:, None]
    y_lp += _product(scores_ls * _decays(high, low, Q), step[:, None] * x_lp, PRECISION, ACC)
    if D is not None:
        y_lp += tl.load(D + head * channels + p, mask=p < channels, other=0.0).to(ACC)[None, :] * x_lp
    if z is not None:
        z_lp = _tile(z + batch * z_batch + head * z_head, row, z_row, mask, p, channels, ACC)
        y_lp *= z_lp * _sigmoid(z_lp)
    place = ((batch * length + row)[:, None] * heads + head) * channels + p[None, :]
    tl.store(out + place, y_lp, mask=mask[:, None] & (p < channels)[None, :])


@triton.jit
def _grad_y(grad_y, z, row, grad_y_row, z_row, mask, p, channels, ACC: tl.constexpr):
    """The gradient of the output before the gate."""
    dy_lp = _tile(grad_y, row, grad_y_row, mask, p, channels, ACC)
    if z is not None:
        z_lp = _tile(z, row, z_row, mask, p, channels, ACC)
        dy_lp *= z_lp * _sigmoid(z_lp)
    return dy_lp


@triton.jit
def inputs_kernel(
    x, z, dt, bias, A, B, C, D, grad_y, states, grad_states, grad_x, grad_z, partial_dt, partial_D,
    batches, length, chunk, heads, groups, channels, num_states,
    x_batch, x_row, x_head, z_batch, z_row, z_head, dt_batch, dt_row, dt_head,
    B_batch, B_row, B_group, C_batch, C_row, C_group, grad_y_batch, grad_y_row, grad_y_head,
    SOFTPLUS: tl.constexpr, DT_MIN: tl.constexpr, DT_MAX: tl.constexpr,
    Q: tl.constexpr, N: tl.constexpr, P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradients of P channels of x and z, and their part of those of dt (by way of dt x) and of D.

    partial_dt [p blocks, b, L, h]; partial_D [b, M, h, p].
    """
    m, batch, head, group, row, mask = _place(heads, groups, chunk, length, Q)
    p = tl.program_id(2) * P + tl.arange(0, P)
    mask_lp = mask[:, None] & (p < channels)[None, :]
    step, _slope, high, low = _head_steps(
        dt, bias, A, batch, head, row, mask, dt_batch, dt_row, dt_head, SOFTPLUS, DT_MIN, DT_MAX, ACC
    )
    place = (batch * tl.num_programs(0) + m) * heads + head
    place_l = (batch * length + row) * heads + head
    scores_ls = tl.zeros((Q, Q), ACC)
    grad_dtx_lp = tl.zeros((Q, P), ACC)
    y_lp = tl.zeros((Q, P), ACC)
    for n0 in range(0, num_states, K):
        n = n0 + tl.arange(0, K)
        B_sn = _tile(B + batch * B_batch + group * B_group, row, B_row, mask, n, num_states, ACC)
        C_ln = _tile(C + batch * C_batch + group * C_group, row, C_row, mask, n, num_states, ACC)
        after = grad_states + place * num_states * channels
        grad_H_np = _tile(after, n, channels, n < num_states, p, channels, ACC)
        scores_ls += _product(C_ln, tl.trans(B_sn), PRECISION, ACC)
        grad_dtx_lp += _product(B_sn, grad_H_np, PRECISION, ACC)
        if z is not None:  # the gate needs the output once more
            before = states + place * num_states * channels
            H_np = _tile(before, n, channels, n < num_states, p, channels, ACC)
            y_lp += _product(C_ln, H_np, PRECISION, ACC)
    weights_ls = scores_ls * _decays(high, low, Q)
    x_lp = _tile(x + batch * x_batch + head * x_head, row, x_row, mask, p, channels, ACC)
    dy_lp = _tile(grad_y + batch * grad_y_batch + head * grad_y_head, row, grad_y_row, mask, p, channels, ACC)
    if D is not None:
        D_p = tl.load(D + head * channels + p, mask=p < channels, other=0.0).to(ACC)
    if z is not None:
        y_lp = y_lp * tl.exp2(high)[:, None] + _product(weights_ls, step[:, None] * x_lp, PRECISION, ACC)
        if D is not None:
            y_lp += D_p[None, :] * x_lp
        z_lp = _tile(z + batch * z_batch + head * z_head, row, z_row, mask, p, channels, ACC)
        gate_lp = _sigmoid(z_lp)
        grad_z_lp = dy_lp * y_lp * gate_lp * (1 + z_lp * (1 - gate_lp))
        tl.store(grad_z + place_l[:, None] * channels + p[None, :], grad_z_lp, mask=mask_lp)
        dy_lp *= z_lp * gate_lp
    grad_dtx_lp *= _until_last(high, low, Q)[:, None]
    grad_dtx_lp += _product(tl.trans(weights_ls), dy_lp, PRECISION, ACC)
    of_block = partial_dt + tl.program_id(2).to(tl.int64) * batches * length * heads
    tl.store(of_block + place_l, tl.sum(x_lp * grad_dtx_lp, 1), mask=mask)
    grad_x_lp = step[:, None] * grad_dtx_lp
    if D is not None:
        grad_x_lp += D_p[None, :] * dy_lp
        tl.store(partial_D + place * channels + p, tl.sum(dy_lp * x_lp, 0), mask=p < channels)
    tl.store(grad_x + place_l[:, None] * channels + p[None, :], grad_x_lp, mask=mask_lp)


@triton.jit
def weights_kernel(
    x, z, dt, bias, A, B, C, grad_y, states, grad_states,
    partial_B, partial_C, partial_entering, partial_leaving, partial_across,
    batches, length, chunk, heads, groups, channels, num_states,
    x_batch, x_row, x_head, z_batch, z_row, z_head, dt_batch, dt_row, dt_head,
    B_batch, B_row, B_group, C_batch, C_row, C_group, grad_y_batch, grad_y_row, grad_y_head,
    SOFTPLUS: tl.constexpr, DT_MIN: tl.constexpr, DT_MAX: tl.constexpr,
    Q: tl.constexpr, N: tl.constexpr, P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradients of N states of B and C by way of one head, and their part of that of cum through the states.

    partial_B, partial_C [h / g, b, L, g, n]. Through the state before the chunk: partial_entering [n blocks, b, L, h];
    through that after it: partial_leaving, likewise; from the one to the other: partial_across [n blocks, b, M, h].
    """
    m, batch, head, group, row, mask = _place(heads, groups, chunk, length, Q)
    n = tl.program_id(2) * N + tl.arange(0, N)
    step, _slope, high, low = _head_steps(
        dt, bias, A, batch, head, row, mask, dt_batch, dt_row, dt_head, SOFTPLUS, DT_MIN, DT_MAX, ACC
    )
    place = (batch * tl.num_programs(0) + m) * heads + head
    before, after = states + place * num_states * channels, grad_states + place * num_states * channels
    x += batch * x_batch + head * x_head
    grad_y += batch * grad_y_batch + head * grad_y_head
    if z is not None:
        z += batch * z_batch + head * z_head
    products_ls = tl.zeros((Q, Q), ACC)  # dy_l . dtx_s
    grad_B_sn = tl.zeros((Q, N), ACC)
    grad_C_ln = tl.zeros((Q, N), ACC)
    across = tl.zeros((N,), ACC)
    for p0 in range(0, channels, K):
        p = p0 + tl.arange(0, K)
        dy_lp = _grad_y(grad_y, z, row, grad_y_row, z_row, mask, p, channels, ACC)
        dtx_lp = step[:, None] * _tile(x, row, x_row, mask, p, channels, ACC)
        H_np = _tile(before, n, channels, n < num_states, p, channels, ACC)
        grad_H_np = _tile(after, n, channels, n < num_states, p, channels, ACC)
        products_ls += _product(dy_lp, tl.trans(dtx_lp), PRECISION, ACC)
        grad_C_ln += _product(dy_lp, tl.trans(H_np), PRECISION, ACC)
        grad_B_sn += _product(dtx_lp, tl.trans(grad_H_np), PRECISION, ACC)
        across += tl.sum(H_np * grad_H_np, 1)
    B_sn = _tile(B + batch * B_batch + group * B_group, row, B_row, mask, n, num_states, ACC)
    C_ln = _tile(C + batch * C_batch + group * C_group, row, C_row, mask, n, num_states, ACC)
    grad_C_ln *= tl.exp2(high)[:, None]
    grad_B_sn *= _until_last(high, low, Q)[:, None]
    block = tl.program_id(2).to(tl.int64) * batches
    place_l = ((block + batch) * length + row) * heads + head
    tl.store(partial_entering + place_l, tl.sum(C_ln * grad_C_ln, 1), mask=mask)
    tl.store(partial_leaving + place_l, tl.sum(B_sn * grad_B_sn, 1), mask=mask)
    tl.store(partial_across + block * tl.num_programs(0) * heads + place, tl.sum(across, 0))
    products_ls *= _decays(high, low, Q)
    grad_C_ln += _product(products_ls, B_sn, PRECISION, ACC)
    grad_B_sn += _product(tl.trans(products_ls), C_ln, PRECISION, ACC)
    in_group = head % (heads // groups)
    place_ln = (((in_group * batches + batch) * length + row) * groups + group)[:, None] * num_states + n[None, :]
    mask_ln = mask[:, None] & (n < num_states)[None, :]
    tl.store(partial_C + place_ln, grad_C_ln, mask=mask_ln)
    tl.store(partial_B + place_ln, grad_B_sn, mask=mask_ln)


@triton.jit
def steps_kernel(
    x, z, dt, bias, A, B, C, grad_y, partial_dt, partial_entering, partial_leaving, partial_across,
    grad_dt, partial_A, partial_bias,
    channel_blocks, state_blocks, batches, length, chunk, heads, groups, channels, num_states,
    x_batch, x_row, x_head, z_batch, z_row, z_head, dt_batch, dt_row, dt_head,
    B_batch, B_row, B_group, C_batch, C_row, C_group, grad_y_batch, grad_y_row, grad_y_head,
    SOFTPLUS: tl.constexpr, DT_MIN: tl.constexpr, DT_MAX: tl.constexpr,
    Q: tl.constexpr, N: tl.constexpr, P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of dt, from the parts that inputs_kernel and weights_kernel left, and what flows inside the chunk.

    partial_A, partial_bias [b, M, h].
    """
    m, batch, head, group, row, mask = _place(heads, groups, chunk, length, Q)
    step, slope, high, low = _head_steps(
        dt, bias, A, batch, head, row, mask, dt_batch, dt_row, dt_head, SOFTPLUS, DT_MIN, DT_MAX, ACC
    )
    x += batch * x_batch + head * x_head
    grad_y += batch * grad_y_batch + head * grad_y_head
    if z is not None:
        z += batch * z_batch + head * z_head
    scores_ls = tl.zeros((Q, Q), ACC)
    for n0 in range(0, num_states, K):
        n = n0 + tl.arange(0, K)
        B_sn = _tile(B + batch * B_batch + group * B_group, row, B_row, mask, n, num_states, ACC)
        C_ln = _tile(C + batch * C_batch + group * C_group, row, C_row, mask, n, num_states, ACC)
        scores_ls += _product(C_ln, tl.trans(B_sn), PRECISION, ACC)
    products_ls = tl.zeros((Q, Q), ACC)
    for p0 in range(0, channels, K):
        p = p0 + tl.arange(0, K)
        dy_lp = _grad_y(grad_y, z, row, grad_y_row, z_row, mask, p, channels, ACC)
        dtx_lp = step[:, None] * _tile(x, row, x_row, mask, p, channels, ACC)
        products_ls += _product(dy_lp, tl.trans(dtx_lp), PRECISION, ACC)
    # The diagonal is left out: its terms would be added and taken off again, rounded.
    later = tl.arange(0, Q)[:, None] > tl.arange(0, Q)[None, :]
    both_ls = tl.where(later, scores_ls * _decays(high, low, Q) * products_ls, 0.0)
    after = tl.sum(both_ls, 1) - tl.sum(both_ls, 0)  # of cum, from this step on; then with what enters by the state

    place = (batch * tl.num_programs(0) + m) * heads + head
    place_l = (batch * length + row) * heads + head
    leaving = tl.zeros((Q,), ACC)
    across = tl.exp2(_at_end(high, Q)) * 0
    at_l, at = place_l, place
    for _block in range(0, state_blocks):
        after += tl.load(partial_entering + at_l, mask=mask, other=0.0)
        leaving += tl.load(partial_leaving + at_l, mask=mask, other=0.0)
        across += tl.load(partial_across + at)
        at_l += batches * length * heads
        at += batches * tl.num_programs(0) * heads
    through_x = tl.zeros((Q,), ACC)
    at_l = place_l
    for _block in range(0, channel_blocks):
        through_x += tl.load(partial_dt + at_l, mask=mask, other=0.0)
        at_l += batches * length * heads

    # The gradient of dt_t A: what comes from t or later, and, through the state after, from before t. In float64,
    # because what came in at a step goes out again at another.
    across *= tl.exp2(_at_end(high, Q))
    earlier = tl.cumsum(leaving.to(tl.float64), 0) - leaving
    exponent = (tl.cumsum(after.to(tl.float64), 0, reverse=True) + earlier + across).to(ACC)
    grad_dt_l = (through_x + tl.load(A + head).to(ACC) * exponent) * slope
    tl.store(grad_dt + place_l, grad_dt_l, mask=mask)
    tl.store(partial_A + place, tl.sum(step * exponent, 0))
    if bias is not None:
        tl.store(partial_bias + place, tl.sum(tl.where(mask, grad_dt_l, 0.0), 0))

"""The Triton kernels of mLSTM; triton.py launches them, README.md has the maths.

Forward: `gates_kernel` turns the gates of a head into weights, `states_kernel` walks the chunks with one tile of the
state and leaves the state before each, `output_kernel` makes the outputs of a chunk. Backward: `rows_kernel` makes what
is between the steps of a chunk, `grad_states_kernel` walks the chunks from the end with one tile of the state's
gradient, `grad_inputs_kernel` makes the gradients of q, k, v of a chunk, `grad_gates_kernel` those of the gates.

The weight of step s in step t of one chunk is exp(a_s - A_t): a_s is i_s less the sum of log sigmoid(f) from the
chunk's start to s, A_t the largest a so far (of the state before the chunk: its m). Both are formed in float64 and held
as two numbers, high + low: late in a chunk that forgets fast they may be hundreds, and their difference would be
rounding.

Products are tl.dot on operands of the state's dtype. PRECISION is "tf32x3" unless inputs are float64: three products on
the tensor cores, about as exact as float32. ("ieee" multiplies outside the tensor cores and, because Triton then holds
the whole depth of a product in registers, spills 5 KB a thread at these tiles.) Sums over blocks of channels are
written as partial sums, which are added in a fixed order: no atomics, so two runs give equal bits.

Legend: a suffix names a tensor's axes: t, s the steps of a chunk (later, earlier), k, v the channels of a block. L is
the chunk, BLOCK the channels of a block, powers of two, at least 16; what lies behind the real sizes is zero. A head of
a batch is a `sequence`. ACC is float32 (float64 for float64 inputs).
"""

from __future__ import annotations

import triton
import triton.language as tl

from statefield.kernels.selective_scan.triton_kernels import _sigmoid, _softplus

_LOG2_E = tl.constexpr(1.4426950408889634)
_NOTHING = tl.constexpr(-1e30)  # the logarithm of no weight; with infinity differences would be NaN


@triton.jit
def _exp(x):
    return tl.exp2(x * tl.full([], _LOG2_E, x.dtype))


@triton.jit
def _larger(value_1, count_1, value_2, count_2):
    """The larger of two, and how often it came: a step that equals all before it shares their gradient."""
    count = tl.where(value_1 > value_2, count_1, tl.where(value_2 > value_1, count_2, count_1 + count_2))
    return tl.maximum(value_1, value_2), count


@triton.jit
def _earlier(factor_1, added_1, factor_2, added_2):
    """Two affine maps, the second, of an earlier step, after the first."""
    return factor_2 * factor_1, added_2 + factor_2 * added_1


@triton.jit
def _dot(left, right, ACC: tl.constexpr, PRECISION: tl.constexpr):
    return tl.dot(left, right, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _block(pointer, row, row_stride, mask_row, column, channels, ACC: tl.constexpr):
    """Rows whose last axis is dense, in ACC; zero outside."""
    mask = mask_row[:, None] & (column < channels)[None, :]
    return tl.load(pointer + row.to(tl.int64)[:, None] * row_stride + column[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def _store_block(pointer, value, row, row_stride, mask_row, column, channels):
    mask = mask_row[:, None] & (column < channels)[None, :]
    tl.store(pointer + row.to(tl.int64)[:, None] * row_stride + column[None, :], value, mask=mask)


@triton.jit
def _root(ROOT: tl.constexpr, ACC: tl.constexpr):
    return tl.full([], ROOT, ACC)  # a float64 constant where ACC is: as a plain number it would be rounded to float32


@triton.jit
def _place(length, L: tl.constexpr):
    """This program's chunk among all, sequence, chunk, steps within the sequence, and which of them exist."""
    chunks = tl.cdiv(length, L)
    program = tl.program_id(0).to(tl.int64)
    sequence = program // chunks
    chunk = program % chunks
    step = chunk * L + tl.arange(0, L)
    return program, sequence, chunk, step, step < length


@triton.jit
def _of_steps(pointer, sequence, step, mask, length):
    return tl.load(pointer + sequence * length + step, mask=mask, other=0.0)


@triton.jit
def _weights(a_high, a_low, A_high, A_low, sequence, step, mask, length, L: tl.constexpr):
    """ts: what step s has in the state after step t, zero for s > t."""
    highest_s = _of_steps(a_high, sequence, step, mask, length)
    lowest_s = _of_steps(a_low, sequence, step, mask, length)
    high_t = _of_steps(A_high, sequence, step, mask, length)
    low_t = _of_steps(A_low, sequence, step, mask, length)
    exponent_ts = (highest_s[None, :] - high_t[:, None]) + (lowest_s[None, :] - low_t[:, None])
    at = tl.arange(0, L)
    wanted_ts = (at[None, :] <= at[:, None]) & mask[:, None]
    return tl.where(wanted_ts, _exp(tl.where(wanted_ts, exponent_ts, 0.0)), 0.0)


@triton.jit
def _normalizer(m_t, sum_t, largest, sequence, EPS: tl.constexpr, ACC: tl.constexpr):
    """What the readout is multiplied with; eps as a share of the divisor; the divisor's slope against n . q, as a share
    of it. Above and below are multiplied by exp(m - max(m, 0)), so that nothing overflows.
    """
    at_least_0 = tl.maximum(m_t, 0.0)
    scale, least = _exp(m_t - at_least_0), _exp(-at_least_0)
    stabilizer = m_t
    if largest is not None:
        stabilizer = tl.load(largest + sequence) + tl.zeros_like(m_t)
    eps = tl.full([], EPS, ACC) * _exp(tl.minimum(stabilizer - at_least_0, 80.0))
    size = scale * tl.abs(sum_t)
    divisor = tl.maximum(size, least) + eps
    share = tl.where(size > least, 1.0, tl.where(size == least, 0.5, 0.0))
    sign = tl.where(sum_t > 0, 1.0, tl.where(sum_t < 0, -1.0, 0.0))
    return scale / divisor, eps / divisor, share * sign * scale / divisor


@triton.jit
def gates_kernel(
    i, f, start_m, a_high, a_low, A_high, A_low, from_start, to_end, m, decays, last_m, length,
    L: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The weights of one head's steps.

    from_start: what the state before the chunk has in the state after step t; to_end: what step s has in the chunk's
    last state; decays: the share of m_t's gradient that goes to the decayed m before it.
    """
    sequence = tl.program_id(0).to(tl.int64)
    before = tl.full([], _NOTHING, tl.float64)
    if start_m is not None:
        before = tl.maximum(tl.load(start_m + sequence).to(tl.float64), _NOTHING)
    for chunk in range(0, tl.cdiv(length, L)):
        step = chunk * L + tl.arange(0, L)
        mask = step < length
        place = sequence * length + step
        soft, _slope = _softplus(-tl.load(f + place, mask=mask, other=0.0).to(ACC))
        log_forget = tl.where(mask, -soft, 0.0).to(tl.float64)
        total = tl.cumsum(log_forget, 0)
        taken = tl.load(i + place, mask=mask, other=0.0).to(tl.float64)
        a = tl.where(mask, tl.maximum(taken - total, _NOTHING), _NOTHING)
        largest, times = tl.associative_scan((a, tl.full(a.shape, 1.0, tl.float32)), 0, _larger)
        A, times = _larger(largest, times, before, 1.0)
        at_end = tl.max(A, 0)
        tl.store(a_high + place, a.to(ACC), mask=mask)
        tl.store(a_low + place, (a - a.to(ACC).to(tl.float64)).to(ACC), mask=mask)
        tl.store(A_high + place, A.to(ACC), mask=mask)
        tl.store(A_low + place, (A - A.to(ACC).to(tl.float64)).to(ACC), mask=mask)
        tl.store(from_start + place, _exp((before - A).to(ACC)), mask=mask)
        tl.store(to_end + place, _exp((a - at_end).to(ACC)), mask=mask)
        tl.store(m + place, (total + A).to(ACC), mask=mask)
        tl.store(decays + place, tl.where(a < A, 1.0, tl.where(times > 1.5, 0.5, 0.0)).to(ACC), mask=mask)
        before = tl.sum(log_forget, 0) + at_end
    tl.store(last_m + sequence, before.to(ACC))


@triton.jit
def states_kernel(
    k, v, start_C, start_n, from_start, to_end, states_C, states_n, last_C, last_n,
    heads, length, channels, k_batch, k_head, k_row, v_batch, v_head, v_row,
    ROOT: tl.constexpr, L: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a head's state: before each chunk, and after the last."""
    sequence = tl.program_id(0).to(tl.int64)
    batch, head = sequence // heads, sequence % heads
    blocks = tl.cdiv(channels, BLOCK)
    of_v, of_k = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    value, key = of_v * BLOCK + tl.arange(0, BLOCK), of_k * BLOCK + tl.arange(0, BLOCK)
    is_value, is_key = value < channels, key < channels
    C_vk = tl.zeros([BLOCK, BLOCK], ACC)
    n_k = tl.zeros([BLOCK], ACC)
    if start_C is not None:
        C_vk = _block(start_C + sequence * channels * channels, value, channels, is_value, key, channels, ACC)
        n_k = tl.load(start_n + sequence * channels + key, mask=is_key, other=0.0).to(ACC)
    chunks = tl.cdiv(length, L)
    for chunk in range(0, chunks):
        state = sequence * chunks + chunk
        _store_block(states_C + state * channels * channels, C_vk, value, channels, is_value, key, channels)
        if of_v == 0:
            tl.store(states_n + state * channels + key, n_k, mask=is_key)
        whole = tl.load(from_start + sequence * length + tl.minimum((chunk + 1) * L, length) - 1)
        C_vk *= whole
        n_k *= whole
        for first in range(0, L, STEPS):
            step = chunk * L + first + tl.arange(0, STEPS)
            mask = step < length
            k_tk = _block(k + batch * k_batch + head * k_head, step, k_row, mask, key, channels, ACC)
            k_tk *= _root(ROOT, ACC) * _of_steps(to_end, sequence, step, mask, length)[:, None]
            v_tv = _block(v + batch * v_batch + head * v_head, step, v_row, mask, value, channels, ACC)
            C_vk += _dot(tl.trans(v_tv), k_tk, ACC, PRECISION)
            n_k += tl.sum(k_tk, 0)
    _store_block(last_C + sequence * channels * channels, C_vk, value, channels, is_value, key, channels)
    if of_v == 0:
        tl.store(last_n + sequence * channels + key, n_k, mask=is_key)


@triton.jit
def output_kernel(
    q, k, v, a_high, a_low, A_high, A_low, from_start, m, largest, states_C, states_n, h, sums,
    heads, length, channels, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    EPS: tl.constexpr, ROOT: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of value channels of the outputs of one chunk."""
    state, sequence, _chunk, step, mask = _place(length, L)
    batch, head = sequence // heads, sequence % heads
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    scores_ts = tl.zeros([L, L], ACC)
    out_tv = tl.zeros([L, BLOCK], ACC)
    sum_t = tl.zeros([L], ACC)
    for block in range(0, tl.cdiv(channels, BLOCK)):
        key = block * BLOCK + tl.arange(0, BLOCK)
        q_tk = _block(q + batch * q_batch + head * q_head, step, q_row, mask, key, channels, ACC)
        k_sk = _block(k + batch * k_batch + head * k_head, step, k_row, mask, key, channels, ACC) * _root(ROOT, ACC)
        C_vk = _block(states_C + state * channels * channels, value, channels, value < channels, key, channels, ACC)
        n_k = tl.load(states_n + state * channels + key, mask=key < channels, other=0.0)
        scores_ts += _dot(q_tk, tl.trans(k_sk), ACC, PRECISION)
        out_tv += _dot(q_tk, tl.trans(C_vk), ACC, PRECISION)
        sum_t += tl.sum(q_tk * n_k[None, :], 1)
    from_start_t = _of_steps(from_start, sequence, step, mask, length)
    weights_ts = scores_ts * _weights(a_high, a_low, A_high, A_low, sequence, step, mask, length, L)
    sum_t = from_start_t * sum_t + tl.sum(weights_ts, 1)
    v_sv = _block(v + batch * v_batch + head * v_head, step, v_row, mask, value, channels, ACC)
    out_tv = from_start_t[:, None] * out_tv + _dot(weights_ts, v_sv, ACC, PRECISION)
    m_t = _of_steps(m, sequence, step, mask, length)
    by_t, _eps_share_t, _slope_t = _normalizer(m_t, sum_t, largest, sequence, EPS, ACC)
    out_tv *= by_t[:, None]
    _store_block(h + sequence * length * channels, out_tv, step, channels, mask, value, channels)
    if tl.program_id(1) == 0:
        tl.store(sums + sequence * length + step, sum_t, mask=mask)


@triton.jit
def rows_kernel(
    q, k, v, grad_h, a_high, a_low, A_high, A_low, from_start, m, sums, largest, states_C,
    weights, grad_scores, by, grad_sums, grad_m, moved_within, moved_by_step,
    heads, length, channels, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    g_batch, g_head, g_row,
    EPS: tl.constexpr, ROOT: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What lies between the steps of one chunk: the weights of v and the gradient of q k^T, both [L, L]; by step what
    the readout is multiplied with, the gradients of n . q and of eps's m, and what the gradients of the weights'
    logarithms sum to over the pairs that span a step, and by their earlier step.

    A row's gradient of its divisor is -<dL/dh_t, h_t>, summed from what it will nearly cancel: the gradients of the
    row's weights.
    """
    state, sequence, _chunk, step, mask = _place(length, L)
    batch, head = sequence // heads, sequence % heads
    blocks = tl.cdiv(channels, BLOCK)
    sum_t = _of_steps(sums, sequence, step, mask, length)
    m_t = _of_steps(m, sequence, step, mask, length)
    by_t, eps_share_t, slope_t = _normalizer(m_t, sum_t, largest, sequence, EPS, ACC)
    from_start_t = _of_steps(from_start, sequence, step, mask, length)

    scores_ts = tl.zeros([L, L], ACC)
    for block in range(0, blocks):
        key = block * BLOCK + tl.arange(0, BLOCK)
        q_tk = _block(q + batch * q_batch + head * q_head, step, q_row, mask, key, channels, ACC)
        k_sk = _block(k + batch * k_batch + head * k_head, step, k_row, mask, key, channels, ACC) * _root(ROOT, ACC)
        scores_ts += _dot(q_tk, tl.trans(k_sk), ACC, PRECISION)
    grad_ts = tl.zeros([L, L], ACC)
    along_t = tl.zeros([L], ACC)
    for block in range(0, blocks):
        value = block * BLOCK + tl.arange(0, BLOCK)
        g_tv = _block(grad_h + batch * g_batch + head * g_head, step, g_row, mask, value, channels, ACC)
        g_tv *= by_t[:, None]
        v_sv = _block(v + batch * v_batch + head * v_head, step, v_row, mask, value, channels, ACC)
        grad_ts += _dot(g_tv, tl.trans(v_sv), ACC, PRECISION)
        read_tv = tl.zeros([L, BLOCK], ACC)
        for inner in range(0, blocks):
            key = inner * BLOCK + tl.arange(0, BLOCK)
            q_tk = _block(q + batch * q_batch + head * q_head, step, q_row, mask, key, channels, ACC)
            C = states_C + state * channels * channels
            C_vk = _block(C, value, channels, value < channels, key, channels, ACC)
            read_tv += _dot(q_tk, tl.trans(C_vk), ACC, PRECISION)
        along_t += tl.sum(read_tv * g_tv, 1)
    weight_ts = _weights(a_high, a_low, A_high, A_low, sequence, step, mask, length, L)
    scores_ts *= weight_ts
    along_t = from_start_t * along_t + tl.sum(scores_ts * grad_ts, 1)
    grad_sum_t = -along_t * slope_t
    grad_ts += grad_sum_t[:, None]
    moved_ts = scores_ts * grad_ts
    at = tl.arange(0, L)
    pair = state * L * L + at[:, None] * L + at[None, :]
    tl.store(weights + pair, scores_ts)
    tl.store(grad_scores + pair, weight_ts * grad_ts)
    place = sequence * length + step
    tl.store(by + place, by_t, mask=mask)
    tl.store(grad_sums + place, grad_sum_t, mask=mask)
    tl.store(grad_m + place, -along_t * eps_share_t, mask=mask)
    tl.store(moved_by_step + place, tl.sum(moved_ts, 0), mask=mask)
    later_ts = tl.cumsum(moved_ts, 0, reverse=True)
    spanning_t = tl.sum(tl.where(at[None, :] < at[:, None], later_ts, 0.0), 1)
    tl.store(moved_within + place, spanning_t, mask=mask)


@triton.jit
def grad_states_kernel(
    q, grad_h, by, grad_sums, from_start, states_C, states_n, grad_last_C, grad_last_n,
    grad_states_C, grad_states_n, through, grad_C, grad_n,
    heads, length, channels, q_batch, q_head, q_row, g_batch, g_head, g_row,
    ROOT: tl.constexpr, L: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient of a head's state: behind each chunk, and before the first.

    through: this tile's part of the gradient of the logarithm of what a chunk leaves of the state before it.
    """
    sequence = tl.program_id(0).to(tl.int64)
    batch, head = sequence // heads, sequence % heads
    blocks = tl.cdiv(channels, BLOCK)
    of_v, of_k = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    value, key = of_v * BLOCK + tl.arange(0, BLOCK), of_k * BLOCK + tl.arange(0, BLOCK)
    is_value, is_key = value < channels, key < channels
    G_vk = tl.zeros([BLOCK, BLOCK], ACC)
    g_k = tl.zeros([BLOCK], ACC)
    if grad_last_C is not None:
        G_vk = _block(grad_last_C + sequence * channels * channels, value, channels, is_value, key, channels, ACC)
    if grad_last_n is not None:
        g_k = tl.load(grad_last_n + sequence * channels + key, mask=is_key, other=0.0).to(ACC)
    chunks = tl.cdiv(length, L)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        state = sequence * chunks + chunk
        _store_block(grad_states_C + state * channels * channels, G_vk, value, channels, is_value, key, channels)
        whole = tl.load(from_start + sequence * length + tl.minimum((chunk + 1) * L, length) - 1)
        C_vk = _block(states_C + state * channels * channels, value, channels, is_value, key, channels, ACC)
        part = tl.sum(tl.sum(G_vk * C_vk, 1), 0)
        if of_v == 0:
            tl.store(grad_states_n + state * channels + key, g_k, mask=is_key)
            part += tl.sum(g_k * tl.load(states_n + state * channels + key, mask=is_key, other=0.0), 0)
        tl.store(through + state * blocks * blocks + tl.program_id(1), whole * part)
        G_vk *= whole
        g_k *= whole
        for first in range(0, L, STEPS):
            step = chunk * L + first + tl.arange(0, STEPS)
            mask = step < length
            q_tk = _block(q + batch * q_batch + head * q_head, step, q_row, mask, key, channels, ACC)
            q_tk *= _of_steps(from_start, sequence, step, mask, length)[:, None]
            g_tv = _block(grad_h + batch * g_batch + head * g_head, step, g_row, mask, value, channels, ACC)
            g_tv *= _of_steps(by, sequence, step, mask, length)[:, None]
            G_vk += _dot(tl.trans(g_tv), q_tk, ACC, PRECISION)
            g_k += tl.sum(_of_steps(grad_sums, sequence, step, mask, length)[:, None] * q_tk, 0)
    if grad_C is not None:
        _store_block(grad_C + sequence * channels * channels, G_vk, value, channels, is_value, key, channels)
        if of_v == 0:
            tl.store(grad_n + sequence * channels + key, g_k, mask=is_key)


@triton.jit
def grad_inputs_kernel(
    q, k, v, grad_h, by, grad_sums, from_start, to_end, weights, grad_scores,
    states_C, states_n, grad_states_C, grad_states_n, grad_q, grad_k, grad_v, moved_from_before, moved_to_behind,
    heads, length, channels, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    g_batch, g_head, g_row,
    ROOT: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of channels of the gradients of q, k and v of one chunk, and its part of what q and k tell of the pairs
    with a step before or behind the chunk.
    """
    state, sequence, _chunk, step, mask = _place(length, L)
    batch, head = sequence // heads, sequence % heads
    blocks = tl.cdiv(channels, BLOCK)
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_own = own < channels
    at = tl.arange(0, L)
    pair = state * L * L + at[:, None] * L + at[None, :]
    root = _root(ROOT, ACC)
    q_at, k_at = q + batch * q_batch + head * q_head, k + batch * k_batch + head * k_head
    v_at, g_at = v + batch * v_batch + head * v_head, grad_h + batch * g_batch + head * g_head
    C, grad_C = states_C + state * channels * channels, grad_states_C + state * channels * channels
    by_t = _of_steps(by, sequence, step, mask, length)
    from_start_t = _of_steps(from_start, sequence, step, mask, length)
    to_end_t = _of_steps(to_end, sequence, step, mask, length)
    grad_sum_t = _of_steps(grad_sums, sequence, step, mask, length)
    place = sequence * length + step
    part = place * blocks + tl.program_id(1)
    out = sequence * length * channels

    v_to = tl.zeros([L, BLOCK], ACC)  # one gradient after the other: together they would not fit the registers
    for block in range(0, blocks):
        other = block * BLOCK + tl.arange(0, BLOCK)
        k_tk = _block(k_at, step, k_row, mask, other, channels, ACC) * root
        v_to += _dot(k_tk, tl.trans(_block(grad_C, own, channels, is_own, other, channels, ACC)), ACC, PRECISION)
    g_tv = _block(g_at, step, g_row, mask, own, channels, ACC) * by_t[:, None]
    v_to = to_end_t[:, None] * v_to + _dot(tl.trans(tl.load(weights + pair)), g_tv, ACC, PRECISION)
    _store_block(grad_v + out, v_to, step, channels, mask, own, channels)

    q_to = tl.zeros([L, BLOCK], ACC)
    for block in range(0, blocks):
        other = block * BLOCK + tl.arange(0, BLOCK)
        g_tv = _block(g_at, step, g_row, mask, other, channels, ACC) * by_t[:, None]
        q_to += _dot(g_tv, _block(C, other, channels, other < channels, own, channels, ACC), ACC, PRECISION)
    q_tk = _block(q_at, step, q_row, mask, own, channels, ACC)
    k_tk = _block(k_at, step, k_row, mask, own, channels, ACC) * root
    n_k = tl.load(states_n + state * channels + own, mask=is_own, other=0.0)
    q_to = from_start_t[:, None] * (q_to + grad_sum_t[:, None] * n_k[None, :])
    tl.store(moved_from_before + part, tl.sum(q_to * q_tk, 1), mask=mask)
    q_to += _dot(tl.load(grad_scores + pair), k_tk, ACC, PRECISION)
    _store_block(grad_q + out, q_to, step, channels, mask, own, channels)

    k_to = tl.zeros([L, BLOCK], ACC)
    for block in range(0, blocks):
        other = block * BLOCK + tl.arange(0, BLOCK)
        v_tv = _block(v_at, step, v_row, mask, other, channels, ACC)
        k_to += _dot(v_tv, _block(grad_C, other, channels, other < channels, own, channels, ACC), ACC, PRECISION)
    q_tk = _block(q_at, step, q_row, mask, own, channels, ACC)
    k_tk = _block(k_at, step, k_row, mask, own, channels, ACC) * root
    grad_n_k = tl.load(grad_states_n + state * channels + own, mask=is_own, other=0.0)
    k_to = to_end_t[:, None] * (k_to + grad_n_k[None, :])
    tl.store(moved_to_behind + part, tl.sum(k_to * k_tk, 1), mask=mask)
    k_to += _dot(tl.trans(tl.load(grad_scores + pair)), q_tk, ACC, PRECISION)
    _store_block(grad_k + out, k_to * root, step, channels, mask, own, channels)


@triton.jit
def grad_gates_kernel(
    f, decays, grad_m, grad_last_m, moved_within, moved_by_step, moved_from_before, moved_to_behind, through,
    grad_i, grad_f, grad_start_m, length, blocks, tiles, L: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradients of one head's gates, chunk by chunk from its end.

    dL/dlog f'_j is the gradient of the logarithms of all weights of a step before j in one from j on. They come in four
    parts: both steps within the chunk, the earlier before it, the later behind it, or both outside. m passes its
    gradient to i where it took that, else to log f and to the m before: an affine map of what comes from later.
    """
    sequence = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, L)
    entering = tl.zeros([], ACC)
    if grad_last_m is not None:
        entering += tl.load(grad_last_m + sequence)
    chunks = tl.cdiv(length, L)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        step = chunk * L + at
        mask = step < length
        place = sequence * length + step
        from_before = tl.zeros([L], ACC)
        to_behind = tl.zeros([L], ACC)
        for block in range(0, blocks):
            from_before += tl.load(moved_from_before + place * blocks + block, mask=mask, other=0.0)
            to_behind += tl.load(moved_to_behind + place * blocks + block, mask=mask, other=0.0)
        past = tl.zeros([], ACC)
        for tile in range(0, tiles):
            past += tl.load(through + (sequence * chunks + chunk) * tiles + tile)
        grad_forget = tl.load(moved_within + place, mask=mask, other=0.0) + past
        grad_forget += tl.sum(tl.where(at[None, :] >= at[:, None], from_before[None, :], 0.0), 1)
        grad_forget += tl.sum(tl.where(at[None, :] < at[:, None], to_behind[None, :], 0.0), 1)

        decays_next = tl.load(decays + place + 1, mask=step + 1 < length, other=1.0)
        own = tl.load(grad_m + place, mask=mask, other=0.0)
        factor, added = tl.associative_scan((decays_next, own), 0, _earlier, reverse=True)
        of_m = added + factor * entering
        entering = tl.sum(tl.where(at == 0, of_m, 0.0), 0)
        decays_t = tl.load(decays + place, mask=mask, other=0.0)
        grad_forget += decays_t * of_m
        grad_take = tl.load(moved_by_step + place, mask=mask, other=0.0) + to_behind + (1 - decays_t) * of_m
        f_t = tl.load(f + place, mask=mask, other=0.0).to(ACC)
        tl.store(grad_i + place, grad_take, mask=mask)
        tl.store(grad_f + place, grad_forget * _sigmoid(-f_t), mask=mask)
    if grad_start_m is not None:
        tl.store(grad_start_m + sequence, entering * tl.load(decays + sequence * length))

"""The Triton kernels of bidirectional WKV; triton.py launches them, README.md has the maths.

How time is walked. It is cut into segments, in mode "kernel" the chunks of the official kernel, that run side by side:
a program owns BLOCK channels of one segment and walks it token by token, a channel a thread. What a segment adds to the
sums of the tokens on either side (`sums_kernel`) is chained from segment to segment (`chain_kernel`); then every
segment knows what lies left and right of it (`mean_kernel`, `gradients_kernel`). No sum is shared between programs, so
two runs give equal bits. What a program writes in one loop and reads in the next is parted by a barrier, because which
thread holds a channel is Triton's choice.

How a sum is held. As p, n, d: the true sums of weight * value and of weight are n 2^p and d 2^p, p a running maximum.
`n_w`, `d_w` are their derivatives with respect to w, which the backward carries along (GRADIENT). Exponents are base 2:
`k_2`, `u_2`, `w_2` are k, u, w times log2(e). A step of distance, exp(-w), is applied to p.

a_t = dL/d(numerator, denominator) of token t = g_t / d_t (1, -y_t) is held likewise, with p of the other sign.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_NOTHING = tl.constexpr(-1e30)  # the exponent of an empty sum


@triton.jit
def _join(p_1, p_2):
    """The larger exponent, and what brings either sum to it: one exponential, because one of the two is 1."""
    apart = p_1 - p_2
    small = tl.exp2(-tl.abs(apart))
    return tl.maximum(p_1, p_2), tl.where(apart >= 0, 1.0, small), tl.where(apart >= 0, small, 1.0)


@triton.jit
def _place(tokens, channels, length, BLOCK: tl.constexpr):
    """This program's batch, channels, which of these exist, its segment's first token and number of tokens."""
    blocks = tl.cdiv(channels, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    begin = tl.program_id(1) * length
    return batch, channel, channel < channels, begin, tl.minimum(length, tokens - begin)


@triton.jit
def _read(pointer, channel, mask, ACC: tl.constexpr):
    return tl.load(pointer + channel, mask=mask, other=0.0).to(ACC)


@triton.jit
def _read_sum(pointer, part, mask):
    """p, n, d whose parts lie `part` apart."""
    p = tl.load(pointer, mask=mask, other=0.0)
    return p, tl.load(pointer + part, mask=mask, other=0.0), tl.load(pointer + 2 * part, mask=mask, other=0.0)


@triton.jit
def _write_sum(pointer, part, mask, p, n, d):
    tl.store(pointer, p, mask=mask)
    tl.store(pointer + part, n, mask=mask)
    tl.store(pointer + 2 * part, d, mask=mask)


@triton.jit
def sums_kernel(
    w, k, v, sums, tokens, channels, length, k_batch, k_row, v_batch, v_row,
    GRADIENT: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sums [2, PARTS, B, S, C]: each segment as its last token sees it, without a step, and as its first token does."""
    batch, channel, mask, begin, count = _place(tokens, channels, length, BLOCK)
    segments = tl.num_programs(1)
    part = (tl.num_programs(0) // tl.cdiv(channels, BLOCK)).to(tl.int64) * segments * channels
    w_2 = _read(w, channel, mask, ACC) * _LOG2_E
    zero = tl.zeros([BLOCK], ACC)
    left_p, right_p = zero + _NOTHING, zero + _NOTHING
    left_n, left_d, left_n_w, left_d_w = zero, zero, zero, zero
    right_n, right_d, right_n_w, right_d_w = zero, zero, zero, zero
    for i in range(0, count):
        row = begin + i
        k_2 = _read(k + batch * k_batch + row * k_row, channel, mask, ACC) * _LOG2_E
        value = _read(v + batch * v_batch + row * v_row, channel, mask, ACC)
        left_p, old, new = _join(left_p - w_2, k_2)
        if GRADIENT:
            left_n_w = (left_n_w - left_n) * old
            left_d_w = (left_d_w - left_d) * old
        left_n = left_n * old + new * value
        left_d = left_d * old + new
        right_p, old, new = _join(right_p, k_2 - i * w_2)
        right_n = right_n * old + new * value
        right_d = right_d * old + new
        if GRADIENT:
            right_n_w = right_n_w * old - i * new * value
            right_d_w = right_d_w * old - i * new
    at = sums + (batch * segments + tl.program_id(1)) * channels + channel
    _write_sum(at, part, mask, left_p, left_n, left_d)
    _write_sum(at + PARTS * part, part, mask, right_p, right_n, right_d)
    if GRADIENT:
        tl.store(at + 3 * part, left_n_w, mask=mask)
        tl.store(at + 4 * part, left_d_w, mask=mask)
        tl.store(at + (PARTS + 3) * part, right_n_w, mask=mask)
        tl.store(at + (PARTS + 4) * part, right_d_w, mask=mask)


@triton.jit
def chain_kernel(
    w, sums, tokens, channels, length, segments,
    STEPS: tl.constexpr, GRADIENT: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Overwrites each segment's sums with those that enter it: from the left in sums[0], from the right in sums[1].

    STEPS: how many steps (1 or 0) lie between a segment and its neighbour on top of those within the segments.
    """
    blocks = tl.cdiv(channels, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = channel < channels
    rightwards = tl.program_id(1) == 0
    part = (tl.num_programs(0) // blocks).to(tl.int64) * segments * channels
    w_2 = _read(w, channel, mask, ACC) * _LOG2_E
    zero = tl.zeros([BLOCK], ACC)
    p = zero + _NOTHING
    n, d, n_w, d_w = zero, zero, zero, zero
    for walked in range(0, segments):
        segment = tl.where(rightwards, walked, segments - 1 - walked)
        at = sums + tl.program_id(1) * PARTS * part + (batch * segments + segment) * channels + channel
        own_p, own_n, own_d = _read_sum(at, part, mask)
        _write_sum(at, part, mask, p, n, d)
        count = tl.minimum(length, tokens - segment * length)
        if GRADIENT:
            own_n_w = tl.load(at + 3 * part, mask=mask, other=0.0) - STEPS * own_n
            own_d_w = tl.load(at + 4 * part, mask=mask, other=0.0) - STEPS * own_d
            tl.store(at + 3 * part, n_w, mask=mask)
            tl.store(at + 4 * part, d_w, mask=mask)
        p, old, new = _join(p - count * w_2, own_p - STEPS * w_2)
        if GRADIENT:
            n_w = (n_w - count * n) * old + own_n_w * new
            d_w = (d_w - count * d) * old + own_d_w * new
        n = n * old + own_n * new
        d = d * old + own_d * new


@triton.jit
def mean_kernel(
    w, u, k, v, sums, scratch, y, grad, sums_of_a, partial_w,
    tokens, channels, length, k_batch, k_row, v_batch, v_row, grad_batch, grad_row,
    KERNEL: tl.constexpr, GRADIENT: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The outputs y of one segment; or, with GRADIENT, a in their place.

    scratch [PARTS, B, T, C] holds what lies right of each token, and then, with GRADIENT, a (p, n, d). sums_of_a
    [2, 3, B, S, C]: of each segment, as its last token and as its first token sees them. partial_w [B, S, C]: dw.
    """
    batch, channel, mask, begin, count = _place(tokens, channels, length, BLOCK)
    segments = tl.num_programs(1)
    batches = (tl.num_programs(0) // tl.cdiv(channels, BLOCK)).to(tl.int64)
    part = batches * segments * channels
    row_part = batches * tokens * channels
    entering = (batch * segments + tl.program_id(1)) * channels + channel
    w_2 = _read(w, channel, mask, ACC) * _LOG2_E
    u_2 = _read(u, channel, mask, ACC) * _LOG2_E
    zero = tl.zeros([BLOCK], ACC)

    p, n, d = _read_sum(sums + PARTS * part + entering, part, mask)
    if GRADIENT:
        n_w = tl.load(sums + (PARTS + 3) * part + entering, mask=mask, other=0.0)
        d_w = tl.load(sums + (PARTS + 4) * part + entering, mask=mask, other=0.0)
    for walked in range(0, count):
        row = begin + count - 1 - walked
        at = scratch + (batch * tokens + row) * channels + channel
        _write_sum(at, row_part, mask, p, n, d)
        k_2 = _read(k + batch * k_batch + row * k_row, channel, mask, ACC) * _LOG2_E
        value = _read(v + batch * v_batch + row * v_row, channel, mask, ACC)
        if GRADIENT:
            tl.store(at + 3 * row_part, n_w, mask=mask)
            tl.store(at + 4 * row_part, d_w, mask=mask)
        if KERNEL:  # the token itself is a step away, too
            p, old, new = _join(p, k_2)
            p -= w_2
        else:
            p, old, new = _join(p - w_2, k_2)
        if GRADIENT:
            n_w = (n_w - n) * old
            d_w = (d_w - d) * old
            if KERNEL:
                n_w -= new * value
                d_w -= new
        n = n * old + new * value
        d = d * old + new

    tl.debug_barrier()
    left_p, left_n, left_d = _read_sum(sums + entering, part, mask)
    second_p, second_n, second_d = zero + _NOTHING, zero, zero
    second_n_w, second_d_w, grad_w = zero, zero, zero
    growth, factor = zero, zero
    if KERNEL:
        growth = tl.exp2(w_2)
        factor = _one_minus_exp(w_2 / _LOG2_E)
    if GRADIENT:
        left_n_w = tl.load(sums + 3 * part + entering, mask=mask, other=0.0)
        left_d_w = tl.load(sums + 4 * part + entering, mask=mask, other=0.0)
        last_p, first_p = zero + _NOTHING, zero + _NOTHING
        last_n, last_d, first_n, first_d = zero, zero, zero, zero
    for i in range(0, count):
        row = begin + i
        at = scratch + (batch * tokens + row) * channels + channel
        k_2 = _read(k + batch * k_batch + row * k_row, channel, mask, ACC) * _LOG2_E
        value = _read(v + batch * v_batch + row * v_row, channel, mask, ACC)
        right_p, right_n, right_d = _read_sum(at, row_part, mask)
        if KERNEL and i > 0:
            second_p, old, new = _join(second_p + w_2, k_2)
            if GRADIENT:
                second_n_w = (second_n_w + second_n) * old
                second_d_w = (second_d_w + second_d) * old
            second_n = second_n * old + new * value
            second_d = second_d * old + new
        top = tl.maximum(tl.maximum(left_p, right_p), tl.maximum(second_p, u_2 + k_2))
        of_left, of_right = tl.exp2(left_p - top), tl.exp2(right_p - top)
        own = tl.exp2(u_2 + k_2 - top)
        n = left_n * of_left + right_n * of_right + own * value
        d = left_d * of_left + right_d * of_right + own
        if KERNEL:
            of_second = tl.exp2(second_p - top)
            n += factor * of_second * second_n
            d += factor * of_second * second_d
        if GRADIENT:
            n_w = left_n_w * of_left + tl.load(at + 3 * row_part, mask=mask, other=0.0) * of_right
            d_w = left_d_w * of_left + tl.load(at + 4 * row_part, mask=mask, other=0.0) * of_right
            if KERNEL:
                n_w += of_second * (factor * second_n_w - growth * second_n)
                d_w += of_second * (factor * second_d_w - growth * second_d)
            a_n = _read(grad + batch * grad_batch + row * grad_row, channel, mask, ACC) / tl.where(mask, d, 1.0)
            a_d = -a_n * n / tl.where(mask, d, 1.0)
            grad_w += a_n * n_w + a_d * d_w
            _write_sum(at, row_part, mask, -top, a_n, a_d)
            last_p, old, new = _join(last_p - w_2, -top)
            last_n = last_n * old + a_n * new
            last_d = last_d * old + a_d * new
            first_p, old, new = _join(first_p, -top - i * w_2)
            first_n = first_n * old + a_n * new
            first_d = first_d * old + a_d * new
        else:
            tl.store(y + (batch * tokens + row) * channels + channel, n / tl.where(mask, d, 1.0), mask=mask)
        left_p, old, new = _join(left_p - w_2, k_2)
        if GRADIENT:
            left_n_w = (left_n_w - left_n) * old
            left_d_w = (left_d_w - left_d) * old
        left_n = left_n * old + new * value
        left_d = left_d * old + new
    if GRADIENT:
        tl.store(partial_w + entering, grad_w, mask=mask)
        _write_sum(sums_of_a + entering, part, mask, last_p, last_n, last_d)
        _write_sum(sums_of_a + 3 * part + entering, part, mask, first_p, first_n, first_d)


@triton.jit
def _one_minus_exp(x):
    """1 - exp(x), by its series where the difference would lose digits."""
    series = -x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7))))))
    return tl.where(tl.abs(x) < 0.25, series, 1 - tl.exp2(x * _LOG2_E))


@triton.jit
def gradients_kernel(
    w, u, k, v, sums_of_a, scratch, grad_k, grad_v, partial_u,
    tokens, channels, length, k_batch, k_row, v_batch, v_row,
    EXACT_KERNEL: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dk and dv [B, T, C] of one segment in ACC, and its part of du, from a of all tokens.

    EXACT_KERNEL: with the weights of mode "kernel"; else with the paper's.
    """
    batch, channel, mask, begin, count = _place(tokens, channels, length, BLOCK)
    segments = tl.num_programs(1)
    batches = (tl.num_programs(0) // tl.cdiv(channels, BLOCK)).to(tl.int64)
    part = batches * segments * channels
    row_part = batches * tokens * channels
    entering = (batch * segments + tl.program_id(1)) * channels + channel
    w_2 = _read(w, channel, mask, ACC) * _LOG2_E
    u_2 = _read(u, channel, mask, ACC) * _LOG2_E
    grad_u = tl.zeros([BLOCK], ACC)

    p, n, d = _read_sum(sums_of_a + entering, part, mask)
    if EXACT_KERNEL:
        p -= w_2  # a token's neighbour is a step away
    for i in range(0, count):
        row = begin + i
        at = (batch * tokens + row) * channels + channel
        k_2 = _read(k + batch * k_batch + row * k_row, channel, mask, ACC) * _LOG2_E
        value = _read(v + batch * v_batch + row * v_row, channel, mask, ACC)
        a_p, a_n, a_d = _read_sum(scratch + at, row_part, mask)
        own = tl.exp2(u_2 + k_2 + a_p)
        grad_u += own * (a_n * value + a_d)
        seen = tl.exp2(k_2 + p)
        tl.store(grad_v + at, own * a_n + seen * n, mask=mask)
        tl.store(grad_k + at, own * a_d + seen * d, mask=mask)
        p, old, new = _join(p - w_2, a_p - w_2 if EXACT_KERNEL else a_p)
        n = n * old + a_n * new
        d = d * old + a_d * new
    tl.store(partial_u + entering, grad_u, mask=mask)

    tl.debug_barrier()
    p, n, d = _read_sum(sums_of_a + 3 * part + entering, part, mask)
    second_p = tl.zeros([BLOCK], ACC) + _NOTHING
    second_n, second_d = tl.zeros([BLOCK], ACC), tl.zeros([BLOCK], ACC)
    if EXACT_KERNEL:
        p -= w_2  # the next chunk is a step further away
        factor = _one_minus_exp(w_2 / _LOG2_E)
    for walked in range(0, count):
        row = begin + count - 1 - walked
        at = (batch * tokens + row) * channels + channel
        k_2 = _read(k + batch * k_batch + row * k_row, channel, mask, ACC) * _LOG2_E
        value = _read(v + batch * v_batch + row * v_row, channel, mask, ACC)
        a_p, a_n, a_d = _read_sum(scratch + at, row_part, mask)
        seen = tl.exp2(k_2 + p)
        of_value = tl.load(grad_v + at, mask=mask, other=0.0) + seen * n
        alone = tl.load(grad_k + at, mask=mask, other=0.0) + seen * d
        if EXACT_KERNEL:
            second_p, old, new = _join(second_p + w_2, a_p)
            second_n = second_n * old + a_n * new
            second_d = second_d * old + a_d * new
            if walked < count - 1:
                again = factor * tl.exp2(k_2 + second_p)
                of_value += again * second_n
                alone += again * second_d
        tl.store(grad_v + at, of_value, mask=mask)
        tl.store(grad_k + at, value * of_value + alone, mask=mask)
        p, old, new = _join(p - w_2, a_p)
        n = n * old + a_n * new
        d = d * old + a_d * new

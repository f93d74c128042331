"""The Triton kernels of the routed scan; triton.py launches them, README.md has the maths.

They walk time as the kernels of the selective scan do (selective_scan/triton_kernels.py tells how, and has the parts
that are shared), with one difference: step t of route k reads and writes the rows of token order[k, t]. Channels lie
side by side in memory, so a gathered row is read in whole sectors, as a row in raster order is. Where outputs are made,
the order is read one tile ahead, so that no address waits for it.

Routes are walked by programs of their own, or one after the other by the same program, which then adds each to what the
routes before it left at the token (forward: y; backward: grad_x of a shared x). That needs no atomics: a token and a
channel belong to one program. A barrier parts the routes, since threads of the program may meet at a token.

Legend: b batch, L tokens, T steps, K routes, E channels of a route, N states, G groups, S segments of time. A suffix
names a tensor's axes as in the selective scan: t the steps of a tile, n states, e channels (two axes each), ne a state
(four axes), tne the states of a tile (five). Programs are numbered over (batch, K, G, blocks of channels), the routes
left out where one program walks them all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from statefield.kernels.selective_scan.triton_kernels import (
    _LN_2,
    _LOG2_E,
    _advance,
    _along_channels,
    _along_states,
    _decays,
    _dt,
    _lanes,
    _place,
    _retreat,
    _rows,
    _states,
    _step,
    _sum_channels,
    _sum_states,
)


@triton.jit
def _route_place(routes, groups, group_channels, LOOPED: tl.constexpr, CHANNELS: tl.constexpr, LD: tl.constexpr):
    """This program's batch, first route, group, block, channels of the route and which of these exist."""
    if LOOPED:
        batch, group, block, e, mask_e = _place(groups, group_channels, CHANNELS, LD)
        first = 0
    else:
        batch, place, block, d, mask_e = _place(routes * groups, group_channels, CHANNELS, LD)
        first = place // groups
        group = place % groups
        e = d - first * groups * group_channels
    return batch, first, group, block, e, mask_e


@triton.jit
def _tokens(order, step, steps):
    """The tokens that a route visits at these steps; 0 behind its end, where everything is masked."""
    return tl.load(order + step, mask=step < steps, other=0)


@triton.jit
def _matrix(A, e_ne, n_ne, num_states, mask_ne, ACC: tl.constexpr):
    """A of a route, times log2(e) (see _decays)."""
    return tl.load(A + e_ne * num_states + n_ne, mask=mask_ne, other=0.0).to(ACC) * _LOG2_E


@triton.jit
def _bias(delta_bias, offset):
    if delta_bias is not None:
        delta_bias += offset
    return delta_bias


@triton.jit
def routed_forward_kernel(
    x, delta, A, B, C, D, delta_bias, order, start, y, states,
    length, routes, steps, segment_length, groups, group_channels, num_states,
    x_batch, x_row, x_route, delta_batch, delta_row, delta_route,
    B_batch, B_row, B_route, B_group, C_batch, C_row, C_route, C_group, y_row, y_route,
    start_batch, start_segment, start_channel, start_state,
    LOOPED: tl.constexpr, ROUTES: tl.constexpr, ALL_VISITED: tl.constexpr,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    STATES: tl.constexpr, CHANNELS: tl.constexpr, LN: tl.constexpr, LD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The outputs of one segment of time of ROUTES routes. Also keeps the state before every CHUNK steps.

    LOOPED: this program walks all routes, and each adds to what is in y; y has been zeroed unless ALL_VISITED says
    that the first route comes by every token.
    """
    batch, first, group, _block, e, mask_e = _route_place(routes, groups, group_channels, LOOPED, CHANNELS, LD)
    segment = tl.program_id(1)
    channels = groups * group_channels
    t, n = tl.arange(0, TILE), _lanes(STATES, LN)
    n_ne, e_ne = n[:, None, :, None], e[None, :, None, :]
    mask_ne = (n < num_states)[:, None, :, None] & mask_e[None, :, None, :]
    begin = segment.to(tl.int64) * segment_length
    end = tl.minimum(begin + segment_length, steps)

    for walked in range(0, ROUTES):
        route = first + walked
        if LOOPED:
            tl.debug_barrier()
        A_ne = _matrix(A + route * channels * num_states, e_ne, n_ne, num_states, mask_ne, ACC)
        h_ne = tl.zeros(A_ne.shape, ACC)
        if start is not None:
            place_ne = segment * start_segment + (route * channels + e_ne) * start_channel + n_ne * start_state
            h_ne = tl.load(start + batch * start_batch + place_ne, mask=mask_ne, other=0.0).to(ACC)
        bias = _bias(delta_bias, route * channels)
        x_k = x + batch * x_batch + route * x_route
        delta_k = delta + batch * delta_batch + route * delta_route
        B_k = B + batch * B_batch + route * B_route + group * B_group
        C_k = C + batch * C_batch + route * C_route + group * C_group
        y_k = y + batch * length * y_row + route * y_route
        order_k = order + route * steps

        row = _tokens(order_k, begin + t, steps)
        for tile in range(0, tl.cdiv(end - begin, TILE).to(tl.int32)):
            step = begin + tile * TILE
            next_row = _tokens(order_k, step + TILE + t, steps)
            exists_t = (step + t < steps)[:, None, None]
            mask_te = exists_t & mask_e[None, :, :]
            mask_tn = exists_t & (n < num_states)[None, :, :]
            if states is not None and step % CHUNK == 0:
                kept = ((batch * routes + route) * tl.cdiv(steps, CHUNK) + step // CHUNK) * num_states * channels
                tl.store(states + kept + n_ne * channels + e_ne, h_ne, mask=mask_ne)
            x_te = _rows(x_k, row, x_row, e, mask_te, ACC)
            dt_te, _slope_te = _dt(delta_k, bias, row, delta_row, e, mask_te, SOFTPLUS, ACC)
            B_tn = _rows(B_k, row, B_row, n, mask_tn, ACC)
            C_tn = _rows(C_k, row, C_row, n, mask_tn, ACC)
            input_tne = _along_channels(dt_te * x_te) * _along_states(B_tn)
            h_tne = _states(_decays(dt_te, A_ne), input_tne, h_ne, t == 0)
            h_ne = _step(h_tne, t == TILE - 1)
            y_te = _sum_states(h_tne * _along_states(C_tn))
            if D is not None:
                y_te += tl.load(D + route * channels + e, mask=mask_e, other=0.0).to(ACC)[None, :, :] * x_te
            place_te = row[:, None, None] * y_row + e[None, :, :]
            if LOOPED:
                mask_old = mask_te & (walked > 0) if ALL_VISITED else mask_te
                y_te += tl.load(y_k + place_te, mask=mask_old, other=0.0).to(ACC)
            tl.store(y_k + place_te, y_te, mask=mask_te)
            row = next_row


@triton.jit
def routed_backward_kernel(
    x, delta, A, B, C, D, delta_bias, order, states, grad_y, entering, scratch,
    grad_x, grad_delta, partial_A, partial_B, partial_C, partial_D, partial_bias,
    batches, length, routes, steps, segment_length, groups, group_channels, num_states,
    x_batch, x_row, x_route, delta_batch, delta_row, delta_route,
    B_batch, B_row, B_route, B_group, C_batch, C_row, C_route, C_group,
    grad_y_batch, grad_y_row, grad_y_route, grad_x_row, grad_x_route,
    entering_batch, entering_segment, entering_channel, entering_state,
    LOOPED: tl.constexpr, ROUTES: tl.constexpr, ALL_VISITED: tl.constexpr,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    STATES: tl.constexpr, CHANNELS: tl.constexpr, LN: tl.constexpr, LD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """All gradients of one segment of time of ROUTES routes, chunk by chunk from its end.

    `entering` is dL/dh after the segment. A chunk is walked twice, forwards from its kept state and then backwards, as
    in the selective scan; LOOPED and ALL_VISITED speak of grad_x as they do of y in the forward.
    """
    batch, first, group, block, e, mask_e = _route_place(routes, groups, group_channels, LOOPED, CHANNELS, LD)
    segment = tl.program_id(1)
    channels = groups * group_channels
    t, n = tl.arange(0, TILE), _lanes(STATES, LN)
    n_ne, e_ne = n[:, None, :, None], e[None, :, None, :]
    mask_ne = (n < num_states)[:, None, :, None] & mask_e[None, :, None, :]
    TILES: tl.constexpr = CHUNK // TILE
    begin = segment.to(tl.int64) * segment_length
    num_chunks = tl.cdiv(tl.minimum(segment_length, steps - begin), CHUNK).to(tl.int32)
    program = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + segment
    note_ne = program * TILES * STATES * CHANNELS + n_ne * CHANNELS + e_ne - group * group_channels - block * CHANNELS

    for walked in range(0, ROUTES):
        route = first + walked
        if LOOPED:
            tl.debug_barrier()
        A_ne = _matrix(A + route * channels * num_states, e_ne, n_ne, num_states, mask_ne, ACC)
        grad_A_ne = tl.zeros(A_ne.shape, ACC)
        grad_D_e = tl.zeros(e.shape, ACC)
        grad_bias_e = tl.zeros(e.shape, ACC)
        K_ne = tl.zeros(A_ne.shape, ACC)
        if entering is not None:
            place_ne = segment * entering_segment + (route * channels + e_ne) * entering_channel + n_ne * entering_state
            K_ne = tl.load(entering + batch * entering_batch + place_ne, mask=mask_ne, other=0.0).to(ACC)
        bias = _bias(delta_bias, route * channels)
        x_k = x + batch * x_batch + route * x_route
        delta_k = delta + batch * delta_batch + route * delta_route
        B_k = B + batch * B_batch + route * B_route + group * B_group
        C_k = C + batch * C_batch + route * C_route + group * C_group
        grad_y_k = grad_y + batch * grad_y_batch + route * grad_y_route
        grad_x_k = grad_x + batch * length * grad_x_row + route * grad_x_route
        grad_delta_k = grad_delta + (batch * length * routes + route) * channels
        order_k = order + route * steps

        for later_chunks in range(0, num_chunks):
            chunk_begin = begin + (num_chunks - 1 - later_chunks) * CHUNK
            num_tiles = tl.cdiv(tl.minimum(CHUNK, steps - chunk_begin), TILE).to(tl.int32)
            kept = ((batch * routes + route) * tl.cdiv(steps, CHUNK) + chunk_begin // CHUNK) * num_states * channels
            h_ne = tl.load(states + kept + n_ne * channels + e_ne, mask=mask_ne, other=0.0)
            if TILES > 1:
                tl.debug_barrier()  # nobody still reads the notes of the chunk before
                tl.store(scratch + note_ne, h_ne)
                for tile in range(1, num_tiles):
                    step = chunk_begin + (tile - 1) * TILE + t
                    row = _tokens(order_k, step, steps)
                    mask_te = (step < steps)[:, None, None] & mask_e[None, :, :]
                    mask_tn = (step < steps)[:, None, None] & (n < num_states)[None, :, :]
                    x_te = _rows(x_k, row, x_row, e, mask_te, ACC)
                    dt_te, slope_te = _dt(delta_k, bias, row, delta_row, e, mask_te, SOFTPLUS, ACC)
                    B_tn = _rows(B_k, row, B_row, n, mask_tn, ACC)
                    input_tne = _along_channels(dt_te * x_te) * _along_states(B_tn)
                    h_ne = _step(_states(_decays(dt_te, A_ne), input_tne, h_ne, t == 0), t == TILE - 1)
                    tl.store(scratch + note_ne + tile * STATES * CHANNELS, h_ne)
                tl.debug_barrier()  # what one thread noted another may read

            row = _tokens(order_k, chunk_begin + (num_tiles - 1) * TILE + t, steps)
            for later_tiles in range(0, num_tiles):
                tile = num_tiles - 1 - later_tiles
                step = chunk_begin + tile * TILE + t
                next_row = _tokens(order_k, tl.maximum(step - TILE, 0), steps)
                mask_te = (step < steps)[:, None, None] & mask_e[None, :, :]
                mask_tn = (step < steps)[:, None, None] & (n < num_states)[None, :, :]
                if TILES > 1:
                    h_ne = tl.load(scratch + note_ne + tile * STATES * CHANNELS)
                x_te = _rows(x_k, row, x_row, e, mask_te, ACC)
                dt_te, slope_te = _dt(delta_k, bias, row, delta_row, e, mask_te, SOFTPLUS, ACC)
                B_tne = _along_states(_rows(B_k, row, B_row, n, mask_tn, ACC))
                C_tn = _rows(C_k, row, C_row, n, mask_tn, ACC)
                decay_tne = _decays(dt_te, A_ne)
                input_tne = _along_channels(dt_te * x_te) * B_tne
                h_tne = _states(decay_tne, input_tne, h_ne, t == 0)
                grad_y_te = _rows(grad_y_k, row, grad_y_row, e, mask_te, ACC)

                token_row = (((block * batches + batch) * length + row) * routes + route) * groups + group
                place_tn = token_row[:, None, None] * num_states + n[None, :, :]
                grad_y_tne = _along_channels(grad_y_te)
                tl.store(partial_C + place_tn, _sum_channels(h_tne * grad_y_tne), mask=mask_tn)

                through_C_tne = _along_states(C_tn) * grad_y_tne
                final = (t == TILE - 1)[:, None, None, None, None]
                through_C_tne = tl.where(final, through_C_tne + K_ne[None], through_C_tne)
                ones_tne = tl.full(decay_tne.shape, 1.0, ACC)
                _decay_tne, K_tne, G_tne, _pass_tne = tl.associative_scan(
                    (decay_tne, decay_tne * through_C_tne, through_C_tne, ones_tne), 0, _retreat, reverse=True
                )
                K_ne = _step(K_tne, t == 0)

                grad_B_tn = _sum_channels(G_tne * _along_channels(dt_te * x_te))
                tl.store(partial_B + place_tn, grad_B_tn, mask=mask_tn)
                G_decayed_tne = G_tne * (h_tne - input_tne)
                grad_A_ne += tl.sum(G_decayed_tne * _along_channels(dt_te), 0)
                through_B_te = _sum_states(G_tne * B_tne)
                grad_dt_te = x_te * through_B_te + _sum_states(G_decayed_tne * A_ne[None]) * _LN_2
                grad_delta_te = tl.where(mask_te, grad_dt_te * slope_te, 0.0)
                place_te = row[:, None, None] * (routes * channels) + e[None, :, :]
                tl.store(grad_delta_k + place_te, grad_delta_te, mask=mask_te)
                if delta_bias is not None:
                    grad_bias_e += tl.sum(grad_delta_te, 0)
                grad_x_te = dt_te * through_B_te
                if D is not None:
                    D_e = tl.load(D + route * channels + e, mask=mask_e, other=0.0).to(ACC)
                    grad_x_te += D_e[None, :, :] * grad_y_te
                    grad_D_e += tl.sum(grad_y_te * x_te, 0)
                place_te = row[:, None, None] * grad_x_row + e[None, :, :]
                if LOOPED:
                    mask_old = mask_te & (walked > 0) if ALL_VISITED else mask_te
                    grad_x_te += tl.load(grad_x_k + place_te, mask=mask_old, other=0.0).to(ACC)
                tl.store(grad_x_k + place_te, grad_x_te, mask=mask_te)
                row = next_row

        place = (batch * tl.num_programs(1) + segment) * routes + route
        tl.store(partial_A + (place * num_states + n_ne) * channels + e_ne, grad_A_ne, mask=mask_ne)
        if D is not None:
            tl.store(partial_D + place * channels + e, grad_D_e, mask=mask_e)
        if delta_bias is not None:
            tl.store(partial_bias + place * channels + e, grad_bias_e, mask=mask_e)


@triton.jit
def routed_segment_kernel(
    x, delta, A, weights, delta_bias, order, grad_y, reached, total_dt,
    routes, steps, segment_length, groups, group_channels, num_states,
    x_batch, x_row, x_route, delta_batch, delta_row, delta_route,
    weights_batch, weights_row, weights_route, weights_group, grad_y_batch, grad_y_row, grad_y_route,
    SOFTPLUS: tl.constexpr, BACKWARDS: tl.constexpr, TILE: tl.constexpr,
    STATES: tl.constexpr, CHANNELS: tl.constexpr, LN: tl.constexpr, LD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What a segment does to a zero state (with weights = B), or BACKWARDS to a zero gradient (with weights = C).

    reached [b, S, N, K E]: the state after the segment, or the gradient of the state before it. total_dt [b, S, K E]:
    the sum of dt, so that the whole segment decays by exp(total_dt A). The selective scan's `chain_kernel` goes on.
    """
    batch, route, group, _block, e, mask_e = _route_place(routes, groups, group_channels, False, CHANNELS, LD)
    segment = tl.program_id(1)
    channels = groups * group_channels
    t, n = tl.arange(0, TILE), _lanes(STATES, LN)
    n_ne, e_ne = n[:, None, :, None], e[None, :, None, :]
    mask_ne = (n < num_states)[:, None, :, None] & mask_e[None, :, None, :]
    A_ne = _matrix(A + route * channels * num_states, e_ne, n_ne, num_states, mask_ne, ACC)
    bias = _bias(delta_bias, route * channels)
    carry_ne = tl.zeros(A_ne.shape, ACC)
    total_e = tl.zeros(e.shape, ACC)
    begin = segment.to(tl.int64) * segment_length
    num_tiles = tl.cdiv(tl.minimum(segment_length, steps - begin), TILE).to(tl.int32)
    for walked in range(0, num_tiles):
        step = begin + ((num_tiles - 1 - walked) if BACKWARDS else walked) * TILE + t
        row = _tokens(order + route * steps, step, steps)
        mask_te = (step < steps)[:, None, None] & mask_e[None, :, :]
        mask_tn = (step < steps)[:, None, None] & (n < num_states)[None, :, :]
        delta_k = delta + batch * delta_batch + route * delta_route
        dt_te, _slope_te = _dt(delta_k, bias, row, delta_row, e, mask_te, SOFTPLUS, ACC)
        total_e += tl.sum(dt_te, 0)
        decay_tne = _decays(dt_te, A_ne)
        weights_k = weights + batch * weights_batch + route * weights_route + group * weights_group
        weights_tne = _along_states(_rows(weights_k, row, weights_row, n, mask_tn, ACC))
        if BACKWARDS:
            grad_y_k = grad_y + batch * grad_y_batch + route * grad_y_route
            through_C_tne = weights_tne * _along_channels(_rows(grad_y_k, row, grad_y_row, e, mask_te, ACC))
            final = (t == TILE - 1)[:, None, None, None, None]
            through_C_tne = tl.where(final, through_C_tne + carry_ne[None], through_C_tne)
            _decay_tne, K_tne = tl.associative_scan((decay_tne, decay_tne * through_C_tne), 0, _advance, reverse=True)
            carry_ne = _step(K_tne, t == 0)
        else:
            x_te = _rows(x + batch * x_batch + route * x_route, row, x_row, e, mask_te, ACC)
            input_tne = _along_channels(dt_te * x_te) * weights_tne
            carry_ne = _step(_states(decay_tne, input_tne, carry_ne, t == 0), t == TILE - 1)
    place = (batch * tl.num_programs(1) + segment) * num_states
    d_ne = route * channels + e_ne
    tl.store(reached + (place + n_ne) * (routes * channels) + d_ne, carry_ne, mask=mask_ne)
    place = (batch * tl.num_programs(1) + segment) * routes + route
    tl.store(total_dt + place * channels + e, total_e, mask=mask_e)

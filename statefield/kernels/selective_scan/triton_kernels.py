"""The Triton kernels of the selective scan; triton.py launches them, README.md has the maths.

How time is walked. A program owns CHANNELS channels of one sequence with all their states, and walks its stretch of
time in tiles of TILE steps, each step of the tile held by the same threads, so the scan over a tile is a chain of
multiply-adds in registers. A tile is a composition of affine maps h -> a h + x, which `tl.associative_scan` composes.
Backwards the maps are composed from the other end: K_t = a_t G_t with G_t = dL/dh_t = C_t dy_t + K_{t+1}. The decayed
state a_t h_{t-1} is read off as h_t - x_t, so neither exponentials nor states are shifted in time.

Where threads lie. Triton deals a tensor's last axes to the 32 threads of a warp and keeps the others in registers. So
the axes of states and channels are each cut in two, n = [N / LN, LN] and d = [CHANNELS / LD, LD], and a state is
[N / LN, CHANNELS / LD, LN, LD]: LN x LD = 32 threads lie along both. The forward only sums over states: with LN = 1 no
thread asks another. The backward sums over states (du, ddelta) and over channels (dB, dC): LN = 4, LD = 8 needs a
quarter of the shuffles of either extreme. Tensors get new axes by indexing with None and never by reshape, through
which Triton would drag the layout of a load into the scan.

Sums over channels (dB, dC), batch and segments (dA, dD, d delta_bias) are written as partial sums, one a program, which
the launcher adds in a fixed order: no atomics, so two runs give equal bits.

Legend: B batch, L length, D channels, N states, G groups, S segments. A suffix names a tensor's axes: t the steps of a
tile, n states (two axes), d channels (two axes), nd a state (four axes), tnd the states of a tile (five). States and
sums are ACC (float32; float64 for float64 inputs) whatever the inputs are.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _advance(decay_1, h_1, decay_2, h_2):
    """The step (or run of steps) 1, then 2, as one affine map of the state."""
    return decay_1 * decay_2, decay_2 * h_1 + h_2


@triton.jit
def _retreat(decay_1, K_1, G_1, pass_1, decay_2, K_2, G_2, pass_2):
    """Backwards in time: the later run 1, then the earlier run 2.

    A run maps the gradient K that enters at its end to K + decay * (entering) before its first step, and to
    G + pass * (entering) at the state after its first step; `pass` is 1 for a single step.
    """
    return decay_1 * decay_2, K_2 + decay_2 * K_1, G_2 + pass_2 * K_1, pass_2 * decay_1


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) and its slope, the logistic function of x.

    log1p(e) for e = exp(-|x|) in [0, 1] is e times a polynomial of degree 9 (Chebyshev nodes; relative error below 2e-7
    in float32): log(1 + e) would lose e's digits, and one exponential is all that the special function units do here.
    """
    e = tl.exp2(-tl.abs(x) * _LOG2_E)
    if x.dtype == tl.float64:
        log1p = tl.where(e < 1e-5, e - 0.5 * e * e + e * e * e / 3, tl.log(1 + e))
    else:
        log1p = 0.01954252743781 - 0.00317605705277 * e
        log1p = -0.05637361320964 + e * log1p
        log1p = 0.10543623839524 + e * log1p
        log1p = -0.15269667104466 + e * log1p
        log1p = 0.19663274269437 + e * log1p
        log1p = -0.24951616265726 + e * log1p
        log1p = 0.33329710499263 + e * log1p
        log1p = -0.49999892648080 + e * log1p
        log1p = e * (0.99999999469629 + e * log1p)
    return tl.maximum(x, 0.0) + log1p, tl.where(x >= 0, 1.0, e) / (1 + e)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp2(-x * _LOG2_E))


@triton.jit
def _lanes(COUNT: tl.constexpr, LANES: tl.constexpr):
    """0 .. COUNT - 1 as [COUNT / LANES, LANES]."""
    return tl.arange(0, COUNT // LANES)[:, None] * LANES + tl.arange(0, LANES)[None, :]


@triton.jit
def _place(groups, group_channels, CHANNELS: tl.constexpr, LD: tl.constexpr):
    """This program's batch, group, block within the group, channels and which of these exist."""
    blocks = tl.cdiv(group_channels, CHANNELS)
    program = tl.program_id(0)
    inner_d = program % blocks * CHANNELS + _lanes(CHANNELS, LD)
    group = program // blocks % groups
    batch = (program // blocks // groups).to(tl.int64)
    return batch, group, program % blocks, group * group_channels + inner_d, inner_d < group_channels


@triton.jit
def _along_states(x_tn):
    """tn as tnd, the same for every channel."""
    return x_tn[:, :, None, :, None]


@triton.jit
def _along_channels(x_td):
    """td as tnd, the same for every state."""
    return x_td[:, None, :, None, :]


@triton.jit
def _sum_states(x_tnd):
    """tnd -> td. The axis in registers goes first, the one across threads last."""
    return tl.sum(tl.sum(x_tnd, 1), 2)


@triton.jit
def _sum_channels(x_tnd):
    """tnd -> tn."""
    return tl.sum(tl.sum(x_tnd, 2), 3)


@triton.jit
def _step(x_tnd, is_step_t):
    """nd: the one step of a tile for which is_step_t holds."""
    return tl.sum(tl.where(is_step_t[:, None, None, None, None], x_tnd, 0.0), 0)


@triton.jit
def _rows(pointer, row, stride, column, mask, ACC: tl.constexpr):
    """td or tn of a matrix whose rows lie `stride` apart; 0 outside the mask."""
    return tl.load(pointer + row[:, None, None] * stride + column[None, :, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def _dt(delta, delta_bias, row, stride, d, mask_td, SOFTPLUS: tl.constexpr, ACC: tl.constexpr):
    """dt (td) and its slope d dt / d delta. Steps that do not exist get dt = 0: they change no state."""
    dt_td = _rows(delta, row, stride, d, mask_td, ACC)
    if delta_bias is not None:
        dt_td += tl.load(delta_bias + d[None, :, :], mask=mask_td, other=0.0).to(ACC)
    slope_td = tl.full(dt_td.shape, 1.0, ACC)
    if SOFTPLUS:
        dt_td, slope_td = _softplus(dt_td)
    return tl.where(mask_td, dt_td, 0.0), slope_td


@triton.jit
def _decays(dt_td, A_nd):
    """exp(dt A) of every step. A comes multiplied by log2(e), so that it costs one multiplication and one exp2."""
    return tl.exp2(_along_channels(dt_td) * A_nd[None])


@triton.jit
def _states(decay_tnd, input_tnd, h_nd, first_t):
    """The state after every step of a tile, from the state h_nd before it."""
    first = first_t[:, None, None, None, None]
    input_tnd = tl.where(first, decay_tnd * h_nd[None] + input_tnd, input_tnd)
    _decay_tnd, h_tnd = tl.associative_scan((decay_tnd, input_tnd), 0, _advance)
    return h_tnd


@triton.jit
def scan_forward_kernel(
    u, delta, A, B, C, D, z, delta_bias, start, out, last, states,
    length, segment_length, groups, group_channels, num_states,
    u_batch, u_row, delta_batch, delta_row, z_batch, z_row, B_batch, B_row, B_group, C_batch, C_row, C_group,
    start_batch, start_segment, start_channel, start_state,
    B_VARIES: tl.constexpr, C_VARIES: tl.constexpr, SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    STATES: tl.constexpr, CHANNELS: tl.constexpr, LN: tl.constexpr, LD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The outputs of one segment of time, from the state before it. Also keeps the state before every CHUNK steps."""
    batch, group, _block, d, mask_d = _place(groups, group_channels, CHANNELS, LD)
    segment = tl.program_id(1)
    channels = groups * group_channels
    t, n = tl.arange(0, TILE), _lanes(STATES, LN)
    n_nd, d_nd = n[:, None, :, None], d[None, :, None, :]
    mask_nd = (n < num_states)[:, None, :, None] & mask_d[None, :, None, :]

    A_nd = tl.load(A + d_nd * num_states + n_nd, mask=mask_nd, other=0.0).to(ACC) * _LOG2_E
    if not B_VARIES:
        B_tnx = tl.load(B + d_nd * num_states + n_nd, mask=mask_nd, other=0.0).to(ACC)[None]
    if not C_VARIES:
        C_tnx = tl.load(C + d_nd * num_states + n_nd, mask=mask_nd, other=0.0).to(ACC)[None]
    h_nd = tl.zeros(A_nd.shape, ACC)
    if start is not None:
        place_nd = batch * start_batch + segment * start_segment + d_nd * start_channel + n_nd * start_state
        h_nd = tl.load(start + place_nd, mask=mask_nd, other=0.0).to(ACC)

    begin = segment.to(tl.int64) * segment_length
    num_tiles = tl.cdiv(tl.minimum(segment_length, length - segment * segment_length), TILE)
    for tile in range(0, num_tiles):
        step = begin + tile * TILE
        row = step + t
        mask_td = (row < length)[:, None, None] & mask_d[None, :, :]
        mask_tn = (row < length)[:, None, None] & (n < num_states)[None, :, :]
        if states is not None and step % CHUNK == 0:
            kept = (batch * tl.cdiv(length, CHUNK) + step // CHUNK) * num_states * channels
            tl.store(states + kept + n_nd * channels + d_nd, h_nd, mask=mask_nd)
        u_td = _rows(u + batch * u_batch, row, u_row, d, mask_td, ACC)
        dt_td, _slope_td = _dt(delta + batch * delta_batch, delta_bias, row, delta_row, d, mask_td, SOFTPLUS, ACC)
        if B_VARIES:
            B_tnx = _along_states(_rows(B + batch * B_batch + group * B_group, row, B_row, n, mask_tn, ACC))
        if C_VARIES:
            C_tn = _rows(C + batch * C_batch + group * C_group, row, C_row, n, mask_tn, ACC)
        h_tnd = _states(_decays(dt_td, A_nd), _along_channels(dt_td * u_td) * B_tnx, h_nd, t == 0)
        h_nd = _step(h_tnd, t == TILE - 1)
        if C_VARIES:
            C_tnx = _along_states(C_tn)  # here and not above: Triton copies C to every thread where it is spread
        y_td = _sum_states(h_tnd * C_tnx)
        if D is not None:
            y_td += tl.load(D + d, mask=mask_d, other=0.0).to(ACC)[None, :, :] * u_td
        if z is not None:
            z_td = _rows(z + batch * z_batch, row, z_row, d, mask_td, ACC)
            y_td *= z_td * _sigmoid(z_td)
        tl.store(out + (batch * length + row)[:, None, None] * channels + d[None, :, :], y_td, mask=mask_td)
        if step + TILE >= length:  # in the loop: after it, Triton would carry the state in two layouts
            tl.store(last + (batch * channels + d_nd) * num_states + n_nd, h_nd, mask=mask_nd)


@triton.jit
def scan_backward_kernel(
    u, delta, A, B, C, D, z, delta_bias, states, grad_out, entering, scratch,
    grad_u, grad_delta, grad_z, partial_A, partial_B, partial_C, partial_D, partial_bias, grad_start,
    batches, length, segment_length, groups, group_channels, num_states,
    u_batch, u_row, delta_batch, delta_row, z_batch, z_row, B_batch, B_row, B_group, C_batch, C_row, C_group,
    grad_out_batch, grad_out_row, entering_batch, entering_segment, entering_channel, entering_state,
    B_VARIES: tl.constexpr, C_VARIES: tl.constexpr, SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    STATES: tl.constexpr, CHANNELS: tl.constexpr, LN: tl.constexpr, LD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """All gradients of one segment of time, chunk by chunk from its end; `entering` is dL/dh after the segment.

    A chunk is walked twice: forwards from its kept state, to note the state before each tile in `scratch`, then
    backwards tile by tile with all states of the tile in registers.
    """
    batch, group, block, d, mask_d = _place(groups, group_channels, CHANNELS, LD)
    segment = tl.program_id(1)
    channels = groups * group_channels
    t, n = tl.arange(0, TILE), _lanes(STATES, LN)
    n_nd, d_nd = n[:, None, :, None], d[None, :, None, :]
    mask_nd = (n < num_states)[:, None, :, None] & mask_d[None, :, None, :]
    TILES: tl.constexpr = CHUNK // TILE

    A_nd = tl.load(A + d_nd * num_states + n_nd, mask=mask_nd, other=0.0).to(ACC) * _LOG2_E
    if not B_VARIES:
        B_tnx = tl.load(B + d_nd * num_states + n_nd, mask=mask_nd, other=0.0).to(ACC)[None]
        grad_B_nd = tl.zeros(A_nd.shape, ACC)
    if not C_VARIES:
        C_tnx = tl.load(C + d_nd * num_states + n_nd, mask=mask_nd, other=0.0).to(ACC)[None]
        grad_C_nd = tl.zeros(A_nd.shape, ACC)
    grad_A_nd = tl.zeros(A_nd.shape, ACC)
    grad_D_d = tl.zeros(d.shape, ACC)
    grad_bias_d = tl.zeros(d.shape, ACC)
    K_nd = tl.zeros(A_nd.shape, ACC)
    if entering is not None:
        place_nd = batch * entering_batch + segment * entering_segment + d_nd * entering_channel + n_nd * entering_state
        K_nd = tl.load(entering + place_nd, mask=mask_nd, other=0.0).to(ACC)

    program = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + segment
    note_nd = program * TILES * STATES * CHANNELS + n_nd * CHANNELS + d_nd - group * group_channels - block * CHANNELS
    begin = segment.to(tl.int64) * segment_length
    num_chunks = tl.cdiv(tl.minimum(segment_length, length - segment * segment_length), CHUNK)
    for later_chunks in range(0, num_chunks):
        chunk_begin = begin + (num_chunks - 1 - later_chunks) * CHUNK
        num_tiles = tl.cdiv(tl.minimum(CHUNK, length - chunk_begin), TILE).to(tl.int32)
        kept = (batch * tl.cdiv(length, CHUNK) + chunk_begin // CHUNK) * num_states * channels
        h_nd = tl.load(states + kept + n_nd * channels + d_nd, mask=mask_nd, other=0.0)
        if TILES > 1:
            tl.debug_barrier()  # nobody still reads the notes of the chunk before
            tl.store(scratch + note_nd, h_nd)
            for tile in range(1, num_tiles):
                row = chunk_begin + (tile - 1) * TILE + t
                mask_td = (row < length)[:, None, None] & mask_d[None, :, :]
                mask_tn = (row < length)[:, None, None] & (n < num_states)[None, :, :]
                u_td = _rows(u + batch * u_batch, row, u_row, d, mask_td, ACC)
                dt_td, slope_td = _dt(
                    delta + batch * delta_batch, delta_bias, row, delta_row, d, mask_td, SOFTPLUS, ACC
                )
                if B_VARIES:
                    B_tnx = _along_states(_rows(B + batch * B_batch + group * B_group, row, B_row, n, mask_tn, ACC))
                input_tnd = _along_channels(dt_td * u_td) * B_tnx
                h_nd = _step(_states(_decays(dt_td, A_nd), input_tnd, h_nd, t == 0), t == TILE - 1)
                tl.store(scratch + note_nd + tile * STATES * CHANNELS, h_nd)
            tl.debug_barrier()  # what one thread noted another may read

        for later_tiles in range(0, num_tiles):
            tile = num_tiles - 1 - later_tiles
            row = chunk_begin + tile * TILE + t
            mask_td = (row < length)[:, None, None] & mask_d[None, :, :]
            mask_tn = (row < length)[:, None, None] & (n < num_states)[None, :, :]
            if TILES > 1:
                h_nd = tl.load(scratch + note_nd + tile * STATES * CHANNELS)
            u_td = _rows(u + batch * u_batch, row, u_row, d, mask_td, ACC)
            dt_td, slope_td = _dt(delta + batch * delta_batch, delta_bias, row, delta_row, d, mask_td, SOFTPLUS, ACC)
            if B_VARIES:
                B_tnx = _along_states(_rows(B + batch * B_batch + group * B_group, row, B_row, n, mask_tn, ACC))
            if C_VARIES:
                C_tn = _rows(C + batch * C_batch + group * C_group, row, C_row, n, mask_tn, ACC)
            decay_tnd = _decays(dt_td, A_nd)
            input_tnd = _along_channels(dt_td * u_td) * B_tnx
            h_tnd = _states(decay_tnd, input_tnd, h_nd, t == 0)
            if C_VARIES:
                C_tnx = _along_states(C_tn)

            grad_y_td = _rows(grad_out + batch * grad_out_batch, row, grad_out_row, d, mask_td, ACC)
            place_td = (batch * length + row)[:, None, None] * channels + d[None, :, :]
            if z is not None:
                z_td = _rows(z + batch * z_batch, row, z_row, d, mask_td, ACC)
                sigmoid_td = _sigmoid(z_td)
                y_td = _sum_states(h_tnd * C_tnx)
                if D is not None:
                    y_td += tl.load(D + d, mask=mask_d, other=0.0).to(ACC)[None, :, :] * u_td
                grad_z_td = grad_y_td * y_td * sigmoid_td * (1 + z_td * (1 - sigmoid_td))
                tl.store(grad_z + place_td, grad_z_td, mask=mask_td)
                grad_y_td *= z_td * sigmoid_td

            grad_y_tnx = _along_channels(grad_y_td)
            group_row = ((block * batches + batch) * length + row) * groups + group
            place_tn = group_row[:, None, None] * num_states + n[None, :, :]
            if C_VARIES:
                tl.store(partial_C + place_tn, _sum_channels(h_tnd * grad_y_tnx), mask=mask_tn)
            else:
                grad_C_nd += tl.sum(h_tnd * grad_y_tnx, 0)

            through_C_tnd = C_tnx * grad_y_tnx
            final = (t == TILE - 1)[:, None, None, None, None]
            through_C_tnd = tl.where(final, through_C_tnd + K_nd[None], through_C_tnd)
            ones_tnd = tl.full(decay_tnd.shape, 1.0, ACC)
            _decay_tnd, K_tnd, G_tnd, _pass_tnd = tl.associative_scan(
                (decay_tnd, decay_tnd * through_C_tnd, through_C_tnd, ones_tnd), 0, _retreat, reverse=True
            )
            K_nd = _step(K_tnd, t == 0)

            if B_VARIES:
                grad_B_tn = _sum_channels(G_tnd * _along_channels(dt_td * u_td))
                tl.store(partial_B + place_tn, grad_B_tn, mask=mask_tn)
            else:
                grad_B_nd += tl.sum(G_tnd * _along_channels(dt_td * u_td), 0)
            G_decayed_tnd = G_tnd * (h_tnd - input_tnd)
            grad_A_nd += tl.sum(G_decayed_tnd * _along_channels(dt_td), 0)
            through_B_td = _sum_states(G_tnd * B_tnx)
            grad_dt_td = u_td * through_B_td + _sum_states(G_decayed_tnd * A_nd[None]) * _LN_2
            grad_delta_td = tl.where(mask_td, grad_dt_td * slope_td, 0.0)
            tl.store(grad_delta + place_td, grad_delta_td, mask=mask_td)
            grad_u_td = dt_td * through_B_td
            if D is not None:
                grad_u_td += tl.load(D + d, mask=mask_d, other=0.0).to(ACC)[None, :, :] * grad_y_td
                grad_D_d += tl.sum(grad_y_td * u_td, 0)
            tl.store(grad_u + place_td, grad_u_td, mask=mask_td)
            if delta_bias is not None:
                grad_bias_d += tl.sum(grad_delta_td, 0)

    place = batch * tl.num_programs(1) + segment
    place_nd = (place * num_states + n_nd) * channels + d_nd
    tl.store(partial_A + place_nd, grad_A_nd, mask=mask_nd)
    if not B_VARIES:
        tl.store(partial_B + place_nd, grad_B_nd, mask=mask_nd)
    if not C_VARIES:
        tl.store(partial_C + place_nd, grad_C_nd, mask=mask_nd)
    if D is not None:
        tl.store(partial_D + place * channels + d, grad_D_d, mask=mask_d)
    if delta_bias is not None:
        tl.store(partial_bias + place * channels + d, grad_bias_d, mask=mask_d)
    if grad_start is not None and segment == 0:
        tl.store(grad_start + (batch * channels + d_nd) * num_states + n_nd, K_nd, mask=mask_nd)


@triton.jit
def segment_kernel(
    u, delta, A, weights, z, delta_bias, grad_out, reached, total_dt,
    length, segment_length, groups, group_channels, num_states,
    u_batch, u_row, delta_batch, delta_row, z_batch, z_row, weights_batch, weights_row, weights_group,
    grad_out_batch, grad_out_row,
    VARIES: tl.constexpr, SOFTPLUS: tl.constexpr, BACKWARDS: tl.constexpr, TILE: tl.constexpr,
    STATES: tl.constexpr, CHANNELS: tl.constexpr, LN: tl.constexpr, LD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What a segment does to a zero state (with weights = B), or BACKWARDS to a zero gradient (with weights = C).

    reached [B, S, N, D]: the state after the segment, or the gradient of the state before it. total_dt [B, S, D]: the
    sum of dt, so that the whole segment decays by exp(total_dt A).
    """
    batch, group, _block, d, mask_d = _place(groups, group_channels, CHANNELS, LD)
    segment = tl.program_id(1)
    channels = groups * group_channels
    t, n = tl.arange(0, TILE), _lanes(STATES, LN)
    n_nd, d_nd = n[:, None, :, None], d[None, :, None, :]
    mask_nd = (n < num_states)[:, None, :, None] & mask_d[None, :, None, :]

    A_nd = tl.load(A + d_nd * num_states + n_nd, mask=mask_nd, other=0.0).to(ACC) * _LOG2_E
    if not VARIES:
        weights_tnx = tl.load(weights + d_nd * num_states + n_nd, mask=mask_nd, other=0.0).to(ACC)[None]
    carry_nd = tl.zeros(A_nd.shape, ACC)
    total_d = tl.zeros(d.shape, ACC)
    begin = segment.to(tl.int64) * segment_length
    num_tiles = tl.cdiv(tl.minimum(segment_length, length - segment * segment_length), TILE)
    for walked in range(0, num_tiles):
        row = begin + ((num_tiles - 1 - walked) if BACKWARDS else walked) * TILE + t
        mask_td = (row < length)[:, None, None] & mask_d[None, :, :]
        mask_tn = (row < length)[:, None, None] & (n < num_states)[None, :, :]
        dt_td, _slope_td = _dt(delta + batch * delta_batch, delta_bias, row, delta_row, d, mask_td, SOFTPLUS, ACC)
        total_d += tl.sum(dt_td, 0)
        decay_tnd = _decays(dt_td, A_nd)
        if VARIES:
            of_group = weights + batch * weights_batch + group * weights_group
            weights_tnx = _along_states(_rows(of_group, row, weights_row, n, mask_tn, ACC))
        if BACKWARDS:
            grad_y_td = _rows(grad_out + batch * grad_out_batch, row, grad_out_row, d, mask_td, ACC)
            if z is not None:
                z_td = _rows(z + batch * z_batch, row, z_row, d, mask_td, ACC)
                grad_y_td *= z_td * _sigmoid(z_td)
            through_C_tnd = weights_tnx * _along_channels(grad_y_td)
            final = (t == TILE - 1)[:, None, None, None, None]
            through_C_tnd = tl.where(final, through_C_tnd + carry_nd[None], through_C_tnd)
            _decay_tnd, K_tnd = tl.associative_scan((decay_tnd, decay_tnd * through_C_tnd), 0, _advance, reverse=True)
            carry_nd = _step(K_tnd, t == 0)
        else:
            u_td = _rows(u + batch * u_batch, row, u_row, d, mask_td, ACC)
            input_tnd = _along_channels(dt_td * u_td) * weights_tnx
            carry_nd = _step(_states(decay_tnd, input_tnd, carry_nd, t == 0), t == TILE - 1)
    place = batch * tl.num_programs(1) + segment
    tl.store(reached + (place * num_states + n_nd) * channels + d_nd, carry_nd, mask=mask_nd)
    tl.store(total_dt + place * channels + d, total_d, mask=mask_d)


@triton.jit
def chain_kernel(
    A, start, reached, total_dt, num_segments, groups, group_channels, num_states,
    start_batch, start_channel, start_state,
    BACKWARDS: tl.constexpr,
    STATES: tl.constexpr, CHANNELS: tl.constexpr, LN: tl.constexpr, LD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Overwrites `reached` with what enters each segment: the state before it, or BACKWARDS the gradient after it."""
    batch, _group, _block, d, mask_d = _place(groups, group_channels, CHANNELS, LD)
    channels = groups * group_channels
    n = _lanes(STATES, LN)
    n_nd, d_nd = n[:, None, :, None], d[None, :, None, :]
    mask_nd = (n < num_states)[:, None, :, None] & mask_d[None, :, None, :]
    A_nd = tl.load(A + d_nd * num_states + n_nd, mask=mask_nd, other=0.0).to(ACC) * _LOG2_E
    carry_nd = tl.zeros(A_nd.shape, ACC)
    if start is not None:
        place_nd = batch * start_batch + d_nd * start_channel + n_nd * start_state
        carry_nd = tl.load(start + place_nd, mask=mask_nd, other=0.0).to(ACC)
    for walked in range(0, num_segments):
        place = batch * num_segments + ((num_segments - 1 - walked) if BACKWARDS else walked)
        place_nd = (place * num_states + n_nd) * channels + d_nd
        reached_nd = tl.load(reached + place_nd, mask=mask_nd, other=0.0)
        total_nd = tl.load(total_dt + place * channels + d_nd, mask=mask_nd, other=0.0)
        tl.store(reached + place_nd, carry_nd, mask=mask_nd)
        carry_nd = tl.exp2(total_nd * A_nd) * carry_nd + reached_nd

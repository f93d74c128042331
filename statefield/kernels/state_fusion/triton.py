"""State fusion on GPUs: Triton kernels and their launchers. README.md has the maths, op.py the contract.

Forward. A program makes a tile of PIXELS x CHANNELS outputs: for each distinct tap it loads the tile again, shifted,
with the coordinates clamped to the map (that is replicate padding). Tiles are square, so most of the 25 loads of a
value come from the cache of the same multiprocessor. The ring of a kernel is a loop, not unrolled: with all 25 taps in
one piece the compiler issues every load at once and spills them (7 KB a thread, against none).

Backward. `fusion_taps_kernel` walks the same tiles and gives all that sums over pixels or channels: the gradients of
the taps, of C, D and u. The gradient of h is a gather, so no two programs add to the same place: an inner pixel p is
read only by the outputs p - offset (`fusion_inner_kernel`). A pixel on the border of the map is also read by every
output whose neighbour lies outside beyond it (`fusion_border_kernel` visits exactly those). Partial sums, one a
program, are added by torch in a fixed order: no atomics, so two runs give equal bits.

Legend: B batch, H x W map, N states, E channels, K kernels, one a dilation; suffix p: the pixels of a tile, e: channels
of a program. Taps are numbered 0 for the centre, which all kernels share, and 1 + 8 k + r for the ring r of kernel k.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _tap(weight, alpha, k, place, e, mask_e, channels):
    """One tap of kernel k, of all channels [e], multiplied by the kernel's alpha; place = 3 * row + column."""
    return tl.load(alpha + k) * tl.load(weight + (k * channels + e) * 9 + place, mask=mask_e, other=0.0)


@triton.jit
def _ring_place(r):
    """The ring of a 3 x 3 kernel, counted 0 .. 7 in reading order, as 3 * row + column."""
    return r + r // 4


@triton.jit
def _center(weight, alpha, e, mask_e, channels, KERNELS: tl.constexpr):
    """The centre taps of all kernels together."""
    tap_e = _tap(weight, alpha, 0, 4, e, mask_e, channels)
    for k in tl.static_range(1, KERNELS):
        tap_e += _tap(weight, alpha, k, 4, e, mask_e, channels)
    return tap_e


@triton.jit
def _place(height, width, states, channels, PIXELS: tl.constexpr, SIDE: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's tile, state, batch, pixels and channels. Tiles run fastest, so that neighbours run together."""
    tiles_x = tl.cdiv(width, SIDE)
    tiles = tl.cdiv(height, PIXELS // SIDE) * tiles_x
    blocks = tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0)
    tile = program % tiles
    block = program // tiles % blocks
    state = program // tiles // blocks % states
    batch = (program // tiles // blocks // states).to(tl.int64)
    pixel = tl.arange(0, PIXELS)
    i_p = tile // tiles_x * (PIXELS // SIDE) + pixel // SIDE
    j_p = tile % tiles_x * SIDE + pixel % SIDE
    return tile, block, state, batch, i_p, j_p, block * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def _neighbours(h, i_p, j_p, dy, dx, height, width, h_row, h_column, e, mask_e):
    """[p, e]: the values at an offset from each pixel, clamped to the map. h points at one batch and state."""
    row_p = tl.minimum(tl.maximum(i_p + dy, 0), height - 1)
    column_p = tl.minimum(tl.maximum(j_p + dx, 0), width - 1)
    place_p = row_p.to(tl.int64) * h_row + column_p * h_column
    return tl.load(h + place_p[:, None] + e[None, :], mask=mask_e[None, :], other=0.0)


@triton.jit
def fusion_forward_kernel(
    h, weight, alpha, C, D, u, out,
    height, width, states, channels, h_batch, h_row, h_column, h_state,
    DILATIONS: tl.constexpr, KERNELS: tl.constexpr,
    PIXELS: tl.constexpr, SIDE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The fused states of one state [B, H, W, N, E]; with C, y [B, H, W, E], the sum over all states."""
    _tile, _block, first, batch, i_p, j_p, e = _place(
        height, width, states if C is None else 1, channels, PIXELS, SIDE, CHANNELS
    )
    mask_e = e < channels
    mask = ((i_p < height) & (j_p < width))[:, None] & mask_e[None, :]
    pixel_p = (batch * height + i_p) * width + j_p
    y = tl.zeros([PIXELS, CHANNELS], out.dtype.element_ty)
    for state in range(first, first + 1 if C is None else states):
        of_state = h + batch * h_batch + state * h_state
        fused = _center(weight, alpha, e, mask_e, channels, KERNELS)[None, :] * _neighbours(
            of_state, i_p, j_p, 0, 0, height, width, h_row, h_column, e, mask_e
        )
        for k in tl.static_range(KERNELS):
            for r in range(8):
                place = _ring_place(r)
                dy, dx = (place // 3 - 1) * DILATIONS[k], (place % 3 - 1) * DILATIONS[k]
                fused += _tap(weight, alpha, k, place, e, mask_e, channels)[None, :] * _neighbours(
                    of_state, i_p, j_p, dy, dx, height, width, h_row, h_column, e, mask_e
                )
        if C is not None:
            fused *= tl.load(C + pixel_p * states + state, mask=(i_p < height) & (j_p < width), other=0.0)[:, None]
        y += fused
    if C is None:
        tl.store(out + ((pixel_p * states + first) * channels)[:, None] + e[None, :], y, mask=mask)
    else:
        place_pe = (pixel_p * channels)[:, None] + e[None, :]
        if D is not None:
            skip_e = tl.load(D + e, mask=mask_e, other=0.0)
            y += skip_e[None, :] * tl.load(u + place_pe, mask=mask, other=0.0)
        tl.store(out + place_pe, y, mask=mask)


@triton.jit
def fusion_taps_kernel(
    grad, h, weight, alpha, C, D, u, grad_fused, partial_taps, partial_C, partial_D, grad_u,
    batches, height, width, states, channels, h_batch, h_row, h_column, h_state,
    DILATIONS: tl.constexpr, KERNELS: tl.constexpr,
    PIXELS: tl.constexpr, SIDE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradients of taps, C, D and u, and with C that of the fused states, which the gather for h needs.

    grad: of the output. partial_taps [B x tiles x N, 1 + 8 K, E]; partial_C [blocks, B, H, W, N];
    partial_D [B x tiles, E].
    """
    tile, block, state, batch, i_p, j_p, e = _place(height, width, states, channels, PIXELS, SIDE, CHANNELS)
    tiles = tl.cdiv(width, SIDE) * tl.cdiv(height, PIXELS // SIDE)
    mask_p, mask_e = (i_p < height) & (j_p < width), e < channels
    mask = mask_p[:, None] & mask_e[None, :]
    pixel_p = (batch * height + i_p) * width + j_p
    of_state = h + batch * h_batch + state * h_state
    place_pe = (pixel_p * channels)[:, None] + e[None, :]
    fused_place_pe = ((pixel_p * states + state) * channels)[:, None] + e[None, :]
    if C is None:
        grad_fused_pe = tl.load(grad + fused_place_pe, mask=mask, other=0.0)
    else:
        grad_pe = tl.load(grad + place_pe, mask=mask, other=0.0)
        grad_fused_pe = grad_pe * tl.load(C + pixel_p * states + state, mask=mask_p, other=0.0)[:, None]
        tl.store(grad_fused + fused_place_pe, grad_fused_pe, mask=mask)

    taps = partial_taps + ((batch * tiles + tile) * states + state) * (1 + 8 * KERNELS) * channels
    value_pe = _neighbours(of_state, i_p, j_p, 0, 0, height, width, h_row, h_column, e, mask_e)
    tl.store(taps + e, tl.sum(grad_fused_pe * value_pe, 0), mask=mask_e)
    if C is not None:
        fused_pe = _center(weight, alpha, e, mask_e, channels, KERNELS)[None, :] * value_pe
    for k in tl.static_range(KERNELS):
        for r in range(8):
            place = _ring_place(r)
            dy, dx = (place // 3 - 1) * DILATIONS[k], (place % 3 - 1) * DILATIONS[k]
            value_pe = _neighbours(of_state, i_p, j_p, dy, dx, height, width, h_row, h_column, e, mask_e)
            tl.store(taps + (1 + 8 * k + r) * channels + e, tl.sum(grad_fused_pe * value_pe, 0), mask=mask_e)
            if C is not None:
                fused_pe += _tap(weight, alpha, k, place, e, mask_e, channels)[None, :] * value_pe

    if C is not None:
        of_block = partial_C + block * batches * height * width * states
        tl.store(of_block + pixel_p * states + state, tl.sum(grad_pe * fused_pe, 1), mask=mask_p)
        if D is not None and state == 0:
            u_pe = tl.load(u + place_pe, mask=mask, other=0.0)
            tl.store(partial_D + (batch * tiles + tile) * channels + e, tl.sum(grad_pe * u_pe, 0), mask=mask_e)
            skip_e = tl.load(D + e, mask=mask_e, other=0.0)
            tl.store(grad_u + place_pe, skip_e[None, :] * grad_pe, mask=mask)


@triton.jit
def _gathered(grad_fused, i_p, j_p, dy, dx, height, width, states, channels, e, mask_e):
    """[p, e]: the gradient of the output that reads pixel p at an offset; 0 where that output is outside the map."""
    row_p, column_p = i_p - dy, j_p - dx
    inside_p = (row_p >= 0) & (row_p < height) & (column_p >= 0) & (column_p < width)
    place_p = (row_p.to(tl.int64) * width + column_p) * states * channels
    return tl.load(grad_fused + place_p[:, None] + e[None, :], mask=inside_p[:, None] & mask_e[None, :], other=0.0)


@triton.jit
def fusion_inner_kernel(
    grad_fused, weight, alpha, grad_h, height, width, states, channels,
    DILATIONS: tl.constexpr, KERNELS: tl.constexpr,
    PIXELS: tl.constexpr, SIDE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of h at the pixels that are not on the border of the map."""
    _tile, _block, state, batch, i_p, j_p, e = _place(height, width, states, channels, PIXELS, SIDE, CHANNELS)
    mask_e = e < channels
    offset = (batch * height * width * states + state) * channels
    of_state = grad_fused + offset
    grad_pe = _center(weight, alpha, e, mask_e, channels, KERNELS)[None, :] * _gathered(
        of_state, i_p, j_p, 0, 0, height, width, states, channels, e, mask_e
    )
    for k in tl.static_range(KERNELS):
        for r in range(8):
            place = _ring_place(r)
            dy, dx = (place // 3 - 1) * DILATIONS[k], (place % 3 - 1) * DILATIONS[k]
            grad_pe += _tap(weight, alpha, k, place, e, mask_e, channels)[None, :] * _gathered(
                of_state, i_p, j_p, dy, dx, height, width, states, channels, e, mask_e
            )
    inner_p = (i_p > 0) & (i_p < height - 1) & (j_p > 0) & (j_p < width - 1)
    place_p = (i_p.to(tl.int64) * width + j_p) * states * channels
    tl.store(grad_h + offset + place_p[:, None] + e[None, :], grad_pe, mask=inner_p[:, None] & mask_e[None, :])


@triton.jit
def _readers(at, offset, count):
    """The first and last output along one axis that read coordinate `at` at an offset, clamped to 0 .. count - 1."""
    first = tl.maximum(tl.where(at == 0, 0, at - offset), 0)
    last = tl.minimum(tl.where(at == count - 1, count - 1, at - offset), count - 1)
    return first, last


@triton.jit
def _sum_of_readers(grad_fused, i, j, dy, dx, height, width, states, channels, e, mask_e, ROWS: tl.constexpr):
    """[e]: the gradients of all outputs that read pixel (i, j) through the tap at offset (dy, dx)."""
    first_row, last_row = _readers(i, dy, height)
    first_column, last_column = _readers(j, dx, width)
    total = tl.zeros([ROWS, e.shape[0]], grad_fused.dtype.element_ty)
    for top in range(first_row, last_row + 1, ROWS):
        row = top + tl.arange(0, ROWS)
        mask = (row <= last_row)[:, None] & mask_e[None, :]
        for column in range(first_column, last_column + 1):
            place = (row.to(tl.int64) * width + column) * states * channels
            total += tl.load(grad_fused + place[:, None] + e[None, :], mask=mask, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def fusion_border_kernel(
    grad_fused, weight, alpha, grad_h, height, width, states, channels,
    DILATIONS: tl.constexpr, KERNELS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of h at one pixel of the border of the map; ROWS of the outputs that read it at once."""
    sides_y, sides_x = tl.minimum(height, 2), tl.minimum(width, 2)
    pixels = width * sides_y + tl.maximum(height - 2, 0) * sides_x
    blocks = tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0)
    pixel = program % pixels
    e = program // pixels % blocks * CHANNELS + tl.arange(0, CHANNELS)
    mask_e = e < channels
    state = program // pixels // blocks % states
    batch = (program // pixels // blocks // states).to(tl.int64)
    # Numbered: the first row, the last row, then the ends of the rows between.
    between = pixel - width * sides_y
    in_rows = between < 0
    i = tl.where(in_rows, pixel // width * (height - 1), 1 + between // sides_x)
    j = tl.where(in_rows, pixel % width, between % sides_x * (width - 1))

    offset = (batch * height * width * states + state) * channels
    of_state = grad_fused + offset
    grad_e = _center(weight, alpha, e, mask_e, channels, KERNELS) * _sum_of_readers(
        of_state, i, j, 0, 0, height, width, states, channels, e, mask_e, ROWS
    )
    for k in tl.static_range(KERNELS):
        for r in range(8):
            place = _ring_place(r)
            dy, dx = (place // 3 - 1) * DILATIONS[k], (place % 3 - 1) * DILATIONS[k]
            grad_e += _tap(weight, alpha, k, place, e, mask_e, channels) * _sum_of_readers(
                of_state, i, j, dy, dx, height, width, states, channels, e, mask_e, ROWS
            )
    tl.store(grad_h + offset + (i.to(tl.int64) * width + j) * states * channels + e, grad_e, mask=mask_e)


def forward(
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: Sequence[int],
) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    batch, height, width, states, channels = h.shape
    h = h if h.stride(-1) == 1 else h.contiguous()
    weight, alpha, C, D, u = (_dense(t) for t in (weight, alpha, C, D, u))
    out = h.new_empty(h.shape if C is None else (batch, height, width, channels))
    tiles, blocks, constants = _tiling(height, width, channels)
    with _on(h.device):
        fusion_forward_kernel[(tiles * blocks * batch * (states if C is None else 1),)](
            h, weight, alpha, C, D, u, out, height, width, states, channels, *h.stride()[:4], **_kernels(dilations),
            **constants,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: Sequence[int],
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract)."""
    batch, height, width, states, channels = h.shape
    h = h if h.stride(-1) == 1 else h.contiguous()
    grad, weight, alpha, C, D, u = (_dense(t) for t in (grad, weight, alpha, C, D, u))
    tiles, blocks, constants = _tiling(height, width, channels)
    kernels = _kernels(dilations)
    grad_h = h.new_empty(h.shape)
    grad_fused = grad if C is None else h.new_empty(h.shape)
    partial_taps = h.new_empty(batch * tiles * states, 1 + 8 * len(dilations), channels)
    partial_C = None if C is None else h.new_empty(blocks, *C.shape)
    partial_D = None if D is None else h.new_empty(batch * tiles, channels)
    grad_u = None if u is None else u.new_empty(u.shape)
    grid = (tiles * blocks * states * batch,)
    with _on(h.device):
        fusion_taps_kernel[grid](
            grad, h, weight, alpha, C, D, u, grad_fused, partial_taps, partial_C, partial_D, grad_u,
            batch, height, width, states, channels, *h.stride()[:4], **kernels, **constants,
        )  # fmt: skip
        sizes = (height, width, states, channels)
        if min(height, width) > 2:
            fusion_inner_kernel[grid](grad_fused, weight, alpha, grad_h, *sizes, **kernels, **constants)
        border = width * min(height, 2) + max(height - 2, 0) * min(width, 2)
        fusion_border_kernel[(border * blocks * states * batch,)](
            grad_fused, weight, alpha, grad_h, *sizes, **kernels,
            ROWS=triton.next_power_of_2(min(max(dilations), 15) + 1), CHANNELS=constants["CHANNELS"],
            num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip

    taps = partial_taps.sum(0)
    rings = taps[1:].reshape(len(dilations), 8, channels)
    center = taps[None, :1].expand(len(dilations), 1, channels)
    of_kernels = torch.cat([rings[:, :4], center, rings[:, 4:]], 1).transpose(1, 2).reshape(weight.shape)
    return (
        grad_h,
        alpha[:, None, None, None] * of_kernels,
        (weight * of_kernels).sum((1, 2, 3)),
        None if partial_C is None else partial_C.sum(0),
        None if partial_D is None else partial_D.sum(0),
        grad_u,
    )


def _tiling(height: int, width: int, channels: int) -> tuple[int, int, dict[str, int]]:
    """Tiles of a map, blocks of channels, and the kernels' constants.

    A tile of 16 x 16 pixels with the reach of dilation 5 takes 2.6 values from the L2 cache for each of its own, one of
    8 x 8 five.
    """
    rows, side = min(16, triton.next_power_of_2(height)), min(16, triton.next_power_of_2(width))
    block = min(32, triton.next_power_of_2(channels))
    num_warps = max(1, min(16, rows * side * block // 512))
    tiles = triton.cdiv(height, rows) * triton.cdiv(width, side)
    constants = {"PIXELS": rows * side, "SIDE": side, "CHANNELS": block}
    return tiles, triton.cdiv(channels, block), {**constants, "num_warps": num_warps, "enable_fp_fusion": True}


def _kernels(dilations: Sequence[int]) -> dict[str, Any]:
    return {"DILATIONS": tuple(dilations), "KERNELS": len(dilations)}


def _dense(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which has to be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

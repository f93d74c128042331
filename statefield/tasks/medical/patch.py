"""How large a patch and how many of them: as large as the median case, as far as memory allows.

nnU-Net's way (Isensee et al. 2021): begin with the median size, or with as many millimetres along each axis as 256^3
(or 2048^2) voxels make where the case is larger; take off the axis whose patch covers most of the case until as many
patches as a batch must have fit into memory; then fill memory with more of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from statefield.errors import ConfigError
from statefield.tasks.medical.topology import Topology, topology_of

LARGEST_VOXELS = {2: 2048**2, 3: 256**3}
_OVERHEAD = 1.2  # gradients on their way and the library's own buffers, beside what the backward pass keeps
PLANNED_NETS = ("residual_unet", "u_mamba", "xlstm_unet")  # nets that take strides, kernels and features
_BYTES_OF_WEIGHT = 16  # itself, its gradient and two moments of AdamW
_BYTES_KEPT = {True: 2, False: 4}  # bfloat16 on a GPU, float32 on a CPU
_FEWEST = {(True, 2): 12, (True, 3): 2, (False, 2): 8, (False, 3): 2}  # patches of a batch by (on_gpu, dims)


@dataclass(frozen=True)
class PatchPlan:
    """The patch and the batch, what they follow from, and the stages of the net if it takes any.

    multiple: what the net divides each side by.
    """

    patch_size: tuple[int, ...]
    batch_size: int
    multiple: tuple[int, ...]
    topology: Topology | None
    patch_reason: str
    batch_reason: str


@dataclass(frozen=True)
class _Cost:
    """What training needs for patches of about one size: `size` is what they become."""

    size: tuple[int, ...]
    multiple: tuple[int, ...]
    topology: Topology | None
    bytes_a_patch: float
    bytes_of_weights: float


def plan_patch(
    median: Sequence[int],
    spacing: Sequence[float],
    *,
    net: str | None,
    encoder: str,
    decoder: str,
    in_channels: int,
    num_classes: int,
    on_gpu: bool,
    memory_gb: float,
    num_voxels: int,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> PatchPlan:
    """The patch and batch for cases of `median` voxels, `spacing` mm apart (1.0 where not known).

    Args:
        net: a whole net; None: `decoder` on `encoder`.
        num_voxels: of all training cases, after resampling: a batch has a twentieth of them at most.
        patch_size, batch_size: where they are decided already.

    Raises `ConfigError` when one patch of the smallest size does not fit into `memory_gb`.
    """
    dims = len(median)
    cost_of = _cost_function(spacing, net, encoder, decoder, in_channels, num_classes, on_gpu, dims)
    available = memory_gb * 1e9
    fewest = batch_size or _FEWEST[on_gpu, dims]
    if patch_size is not None:
        cost = cost_of(tuple(patch_size))
        size, reason = tuple(int(n) for n in patch_size), "given"
    else:
        edge = (LARGEST_VOXELS[dims] * math.prod(spacing)) ** (1 / dims)  # mm of a cube of so many voxels
        start = tuple(max(1, min(int(n), round(edge / mm))) for n, mm in zip(median, spacing, strict=True))
        cost = _shrunk(cost_of, cost_of(start), median, fewest, available)
        size = cost.size
        reason = f"the largest of which {fewest} fit into {memory_gb:g} GB"
        if cost.size == cost_of(tuple(median)).size:
            reason = "the whole of it, as there is memory enough"
    fitting = int((available - cost.bytes_of_weights) // cost.bytes_a_patch)
    if patch_size is None and fitting < (batch_size or 2):
        needed = (cost.bytes_a_patch * (batch_size or 2) + cost.bytes_of_weights) / 1e9
        raise ConfigError(
            f"{memory_gb:g} GB of memory are too few for {net or encoder}: {batch_size or 2} patches of the smallest "
            f"size, {' x '.join(map(str, size))}, need {needed:.2g} GB. Give more with --memory, or a smaller net."
        )
    why = "given"
    if batch_size is None:
        twentieth = round(0.05 * num_voxels / math.prod(size))
        batch_size = max(2, min(fitting, twentieth))
        used = (batch_size * cost.bytes_a_patch + cost.bytes_of_weights) / 1e9
        why = f"about {used:.2g} GB of {memory_gb:g} GB in training"
        if min(fitting, twentieth) < 2:
            why += "; fewer than two would make unsteady steps"
        elif twentieth < fitting:
            why += "; more would be above a twentieth of all training voxels in one step"
    return PatchPlan(size, batch_size, cost.multiple, cost.topology, reason, why)


def _shrunk(
    cost_of: Callable[[tuple[int, ...]], _Cost], cost: _Cost, median: Sequence[int], fewest: int, available: float
) -> _Cost:
    """The first of ever smaller patches of which `fewest` fit; the smallest there is when none does."""
    while fewest * cost.bytes_a_patch + cost.bytes_of_weights > available:
        shares = sorted(range(len(median)), key=lambda axis: cost.size[axis] / median[axis], reverse=True)
        for axis in shares:
            size = list(cost.size)
            size[axis] -= cost.multiple[axis]
            if size[axis] < max(cost.multiple[axis], 8):
                continue
            smaller = cost_of(tuple(size))
            if math.prod(smaller.size) < math.prod(cost.size):
                cost = smaller
                break
        else:
            return cost
    return cost


def _cost_function(
    spacing: Sequence[float],
    net: str | None,
    encoder: str,
    decoder: str,
    in_channels: int,
    num_classes: int,
    on_gpu: bool,
    dims: int,
) -> Callable[[tuple[int, ...]], _Cost]:
    each = _BYTES_KEPT[on_gpu] * _OVERHEAD

    if net in PLANNED_NETS:

        def of_stages(size: tuple[int, ...]) -> _Cost:
            topology = topology_of(size, spacing, base_features=32 if on_gpu else 16, blocks=2 if on_gpu else 1)
            multiple = tuple(2**times for times in topology.halvings)
            kept = topology.numbers_kept(num_classes) * each
            weights = topology.num_parameters(in_channels) * _BYTES_OF_WEIGHT
            return _Cost(topology.patch_size, multiple, topology, kept, weights)

        return of_stages

    from statefield.tasks.medical.memory import measured_encoder, measured_net

    if net is None:
        kept, num_parameters = measured_encoder(encoder, decoder, in_channels, num_classes)
        step = 32
    else:
        kept, num_parameters = measured_net(net, dims, in_channels, num_classes)
        step = 32 if dims == 2 else 16

    def of_pixels(size: tuple[int, ...]) -> _Cost:
        padded = tuple(-(-n // step) * step for n in size)
        bytes_a_patch = kept * math.prod(padded) * each
        return _Cost(padded, (step,) * dims, None, bytes_a_patch, num_parameters * _BYTES_OF_WEIGHT)

    return of_pixels

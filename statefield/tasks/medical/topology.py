"""How a U-Net halves its maps for a patch and a spacing, and how much of it training keeps in memory.

The rules are nnU-Net's (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z, methods, "Rule-based parameters"; the code
of its second version): an axis is halved while it has room, but a coarse one not before the others have come within a
factor of two of its spacing; kernels are one voxel wide along an axis until then. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SMALLEST_EDGE = 4  # voxels that an axis keeps at the bottom of the net
LARGEST_FEATURES = {2: 512, 3: 320}


@dataclass(frozen=True)
class Topology:
    """Stages of a residual U-Net, the image's own resolution first, and the patch that they fit.

    Args:
        patch_size: a multiple of what the strides divide by, along every axis.
        strides, kernel_sizes: one number for each axis, of each stage; the first stage has strides of 1.
        features: channels of each stage.
        depths, decoder_depths: blocks of each stage, from the image down and from the bottom up.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    depths: tuple[int, ...]
    decoder_depths: tuple[int, ...]

    @property
    def halvings(self) -> tuple[int, ...]:
        """How often each axis is halved."""
        return tuple(round(math.log2(step)) for step in _products(self.strides))

    def numbers_kept(self, num_classes: int) -> int:
        """Numbers that autograd keeps of one patch for the backward pass of `ResidualUNet` (its heads included).

        Of a block, six maps (what each convolution, norm and activation was given); of a decoder stage, the enlarged
        map and the joined one too; of each head, its logits. What a layer of U-Mamba keeps is not in it: it stands at
        the bottom, where a map has a few hundred voxels.
        """
        voxels = math.prod(self.patch_size)
        sizes = [voxels // math.prod(_products(self.strides[: s + 1])) for s in range(len(self.strides))]
        kept = 6 * self.depths[0] * self.features[0] * voxels  # the stem
        for size, channels, depth in zip(sizes, self.features, self.depths, strict=True):
            kept += 6 * depth * channels * size
        for place, depth in enumerate(self.decoder_depths):
            s = len(self.features) - 2 - place
            enlarged, joined = self.features[s + 1], 2 * self.features[s]
            kept += (enlarged + joined + 6 * depth * self.features[s] + 2 * num_classes) * sizes[s]
        return kept

    def num_parameters(self, in_channels: int) -> int:
        """Weights of its convolutions, which are nearly all it has."""
        dims = len(self.patch_size)
        total, below = 0, in_channels
        stages = [(self.features[0], self.kernel_sizes[0], self.depths[0])]
        stages += list(zip(self.features, self.kernel_sizes, self.depths, strict=True))
        for place, depth in enumerate(self.decoder_depths):
            s = len(self.features) - 2 - place
            total += self.features[s + 1] * self.features[s]
            total += _block_weights(2 * self.features[s], self.features[s], self.kernel_sizes[s], depth, dims)
        for channels, kernel, depth in stages:
            total += _block_weights(below, channels, kernel, depth, dims)
            below = channels
        return total


def topology_of(
    size: Sequence[int],
    spacing: Sequence[float],
    *,
    base_features: int,
    blocks: int = 2,
    smallest_edge: int = SMALLEST_EDGE,
) -> Topology:
    """The stages for patches of about `size` voxels of `spacing` (mm; 1.0 for each axis where not known).

    Args:
        base_features: channels of the first stage; each further one has twice as many, up to 512 (2-D) or 320 (3-D).
        blocks: residual blocks of a stage, in the upper half of the net; one in the lower.

    The patch is `size`, rounded up to what the strides divide by.

    >>> plan = topology_of((20, 320, 256), (3.6, 0.6, 0.6), base_features=32)
    >>> plan.strides
    ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    >>> plan.kernel_sizes[:4], plan.patch_size
    (((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)), (20, 320, 256))
    """
    dims = len(size)
    edges, lengths = [int(n) for n in size], [float(mm) for mm in spacing]
    strides, kernels = [(1,) * dims], [_kernel(lengths, (1,) * dims)]
    while True:
        roomy = [axis for axis in range(dims) if edges[axis] >= 2 * smallest_edge]
        finest = min((lengths[axis] for axis in roomy), default=0.0)
        halved = [axis for axis in roomy if lengths[axis] < 2 * finest]
        if not halved or (len(halved) == 1 and edges[halved[0]] < 3 * smallest_edge):
            break
        for axis in halved:
            edges[axis] = math.ceil(edges[axis] / 2)
            lengths[axis] *= 2
        strides.append(tuple(2 if axis in halved else 1 for axis in range(dims)))
        kernels.append(_kernel(lengths, kernels[-1]))
    stages = len(strides)
    features = tuple(min(base_features * 2**s, LARGEST_FEATURES[dims]) for s in range(stages))
    steps = _products(strides)
    return Topology(
        patch_size=tuple(-(-int(n) // step) * step for n, step in zip(size, steps, strict=True)),
        strides=tuple(strides),
        kernel_sizes=tuple(kernels),
        features=features,
        depths=tuple(1 if s >= math.ceil(stages / 2) else blocks for s in range(stages)),
        decoder_depths=tuple(1 if s >= math.ceil((stages - 1) / 2 + 0.5) else blocks for s in range(stages - 1)),
    )


def _kernel(lengths: Sequence[float], before: Sequence[int]) -> tuple[int, ...]:
    """Three along axes whose spacing is within a factor of two of the finest, or that had three already; else one."""
    return tuple(3 if was == 3 or mm < 2 * min(lengths) else 1 for mm, was in zip(lengths, before, strict=True))


def _products(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(math.prod(steps) for steps in zip(*strides, strict=True))


def _block_weights(below: int, channels: int, kernel: Sequence[int], depth: int, dims: int) -> int:
    assert len(kernel) == dims
    width = math.prod(kernel)
    return width * below * channels + below * channels + width * (2 * depth - 1) * channels * channels

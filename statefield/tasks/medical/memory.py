"""What training keeps in memory for a pixel of its patches, measured on the net itself."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from statefield.tasks.common.network import SegmentationNet
from statefield.tasks.medical.nets import NETS

# Of the encoders that plans choose, with the decoder unet and a detail path of 16 channels: (numbers kept for a pixel,
# parameters), as `measured` gives them for one channel and three classes. Others are built and measured.
KNOWN = {"spatial_mamba_nano": (586.0, 5_796_000), "spatial_mamba_tiny": (1320.0, 29_371_000)}
_EDGE = {2: 64, 3: 32}


def numbers_kept(net: nn.Module, image: Tensor) -> int:
    """How many bytes / 4 autograd keeps for the backward pass of `net(image)`, weights aside, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        net(image)
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights) // 4


def measured_encoder(encoder: str, decoder: str, in_channels: int, num_classes: int) -> tuple[float, int]:
    """(numbers kept for a pixel, parameters) of a decoder on an encoder, for slices."""
    if decoder == "unet" and encoder in KNOWN:
        return KNOWN[encoder]
    return _measured_encoder(encoder, decoder, in_channels, num_classes)


@lru_cache(maxsize=16)
def _measured_encoder(encoder: str, decoder: str, in_channels: int, num_classes: int) -> tuple[float, int]:
    with torch.random.fork_rng(devices=[]):
        net = SegmentationNet(encoder, decoder, in_channels=in_channels, num_classes=num_classes, detail_channels=16)
        return _of(net, in_channels, 2)


@lru_cache(maxsize=16)
def measured_net(name: str, spatial_dims: int, in_channels: int, num_classes: int) -> tuple[float, int]:
    """(numbers kept for a voxel, parameters) of a whole net as it comes, without arguments of its own.

    Raises: UnknownName: no such net. ConfigError: it does not exist in so many dimensions.
    """
    with torch.random.fork_rng(devices=[]):
        net: Any = NETS[name](spatial_dims, in_channels, num_classes)
        return _of(net, in_channels, spatial_dims)


def _of(net: nn.Module, in_channels: int, spatial_dims: int) -> tuple[float, int]:
    sides = (_EDGE[spatial_dims],) * spatial_dims
    kept = numbers_kept(net.train(), torch.randn(2, in_channels, *sides))
    return kept / (2 * _EDGE[spatial_dims] ** spatial_dims), sum(p.numel() for p in net.parameters())

"""Vision state-space backbones, each a timm model.

Importing this package registers them, after which `timm.create_model("spatial_mamba_tiny", features_only=True)` and
`smp.Unet("tu-spatial_mamba_tiny", encoder_weights=None)` know their names.
"""

from __future__ import annotations

import fnmatch
from typing import Any

import timm
from torch import nn

from statefield.backbones import (
    adventurer,
    efficientvim,
    efficientvmamba,
    hrvmamba,
    mambaout,
    mobilemamba,
    msvmamba,
    plainmamba,
    res_vmamba,
    rwkv_sam,
    shufflemamba,
    spatial_mamba,
    vil,
    vim,
    vim2,
    vision_rwkv,
    vmamba,
    vssd,
)
from statefield.backbones._mixers import without_scan
from statefield.backbones._register import BACKBONES, BackboneInfo
from statefield.errors import ConfigError, UnknownName

__all__ = [
    "BACKBONES",
    "BackboneInfo",
    "adventurer",
    "create_encoder",
    "create_model",
    "efficientvim",
    "efficientvmamba",
    "hrvmamba",
    "list_models",
    "mambaout",
    "mobilemamba",
    "msvmamba",
    "plainmamba",
    "res_vmamba",
    "rwkv_sam",
    "shufflemamba",
    "spatial_mamba",
    "vil",
    "vim",
    "vim2",
    "vision_rwkv",
    "vmamba",
    "vssd",
    "without_scan",
]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a backbone by name: one of ours, or any other that timm has.

    Args:
        name: see `list_models`; `timm.list_models` for the others.
        **kwargs: timm's (`in_chans`, `num_classes`, `features_only`, `out_indices`, `output_stride`, ...) and the
            family's own, for example `d_state` or `feature_norms` of `spatial_mamba.SpatialMamba`.

    Raises:
        UnknownName: neither we nor timm have the name; the nearest ones are offered.

    >>> create_model("spatial_mamba_nano", num_classes=0).num_features
    256
    """
    if not timm.is_model(name):
        raise UnknownName.among("backbone", name, [*BACKBONES, *timm.list_models()])
    return timm.create_model(name, **kwargs)


_VOLUMETRIC = ("VMamba", "Vim")  # the families whose models take spatial_dims=3


def create_encoder(name: str, spatial_dims: int = 2, in_channels: int = 3, **kwargs: Any) -> nn.Module:
    """The maps of a backbone, for images or volumes, in MONAI's spelling of the arguments.

    Args:
        name: see `list_models`. For volumes one of the families VMamba (strides 4, 8, 16, 32) and Vim (stride 16, and 4
            to 32 for its `_pyramid` names).
        spatial_dims: 2 or 3. in_channels: any number. **kwargs: as for `create_model`.

    Returns:
        A module: [B, in_channels, *S] -> maps [B, C, *ceil(S / stride)], the finest first, for any sides.
        `feature_info.channels()` and `feature_info.reduction()` tell C and the strides.

    Raises:
        ConfigError: volumes asked of a family that has images only. UnknownName: see `create_model`.

    >>> import torch
    >>> encoder = create_encoder("vmamba_tiny_s1l8", 3, 1, dims=8, depths=(1, 1, 1, 1))
    >>> [list(one.shape) for one in encoder(torch.zeros(1, 1, 24, 32, 40))][:2]
    [[1, 8, 6, 8, 10], [1, 16, 3, 4, 5]]
    """
    if spatial_dims == 2:
        return create_model(name, features_only=True, in_chans=in_channels, **kwargs)
    if name in BACKBONES and BACKBONES[name].family not in _VOLUMETRIC:
        raise ConfigError(
            f"{name} takes images only (spatial_dims 2), {spatial_dims} was given: families for volumes are "
            f"{' and '.join(_VOLUMETRIC)}."
        )
    if name not in BACKBONES:
        raise UnknownName.among(
            "backbone for volumes", name, [n for n in BACKBONES if BACKBONES[n].family in _VOLUMETRIC]
        )
    return create_model(name, features_only=True, spatial_dims=spatial_dims, in_chans=in_channels, **kwargs)


def list_models(pattern: str = "") -> list[str]:
    """Names of our backbones that contain `pattern`, or match it where it holds `*`, `?` or `[`; smallest first."""
    wildcard = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [name for name in BACKBONES if fnmatch.fnmatchcase(name, wildcard)]

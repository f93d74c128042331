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
    msvmamba,
    plainmamba,
    res_vmamba,
    rwkv_sam,
    shufflemamba,
    spatial_mamba,
    vil,
    vim,
    vision_rwkv,
    vmamba,
    vssd,
)
from statefield.backbones._register import BACKBONES, BackboneInfo
from statefield.errors import UnknownName

__all__ = [
    "BACKBONES",
    "BackboneInfo",
    "adventurer",
    "create_model",
    "efficientvim",
    "efficientvmamba",
    "hrvmamba",
    "list_models",
    "mambaout",
    "msvmamba",
    "plainmamba",
    "res_vmamba",
    "rwkv_sam",
    "shufflemamba",
    "spatial_mamba",
    "vil",
    "vim",
    "vision_rwkv",
    "vmamba",
    "vssd",
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


def list_models(pattern: str = "") -> list[str]:
    """Names of our backbones that contain `pattern`, or match it where it holds `*`, `?` or `[`; smallest first."""
    wildcard = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [name for name in BACKBONES if fnmatch.fnmatchcase(name, wildcard)]

"""One door into timm's registry: it checks a name before timm sees it, and keeps what timm has no field for.

timm only warns when a name is registered twice, and forgets the first model; here that is an error.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg
from timm.models import register_model as register_in_timm
from torch import nn

from statefield.errors import CheckpointError, ConfigError
from statefield.registry import Registry

# segmentation_models_pytorch treats names with these substrings, or these beginnings, in special ways.
_FORBIDDEN_PARTS = ("tresnet", "dla")
_FORBIDDEN_BEGINNINGS = ("regnet", "res2", "resnest", "mobilenetv3", "gernet")


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of one backbone besides its code.

    Attributes:
        family: the module that defines it, in the paper's spelling ("Spatial-Mamba").
        origin: "paper" where the configuration is the authors', "statefield" where it is ours.
        published_top1: the authors' ImageNet-1K top-1 accuracy in percent, None where none is published; at 224 x 224,
            or at the `input_size` of the model's timm cfg where that is another.
        weights_license: licence of the authors' weight files: "... (repository)" is that of the repository which
            publishes them, where it says nothing else of weights; "none stated", "none released"; None: not verified.
        source: where the authors publish code and weights.
        paper: the paper that describes it.
    """

    family: str
    origin: str
    published_top1: float | None
    weights_license: str | None
    source: str
    paper: str


BACKBONES: Registry[BackboneInfo] = Registry("backbone")


def register_backbone(info: BackboneInfo) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """A decorator for a timm entry function: files it in timm and in `BACKBONES` under the function's name.

    The function's module must hold `default_cfgs` above it, with that name as a key.

    Raises:
        ConfigError: the name is taken in timm, or is one that segmentation_models_pytorch would treat specially.
    """

    def file(entry: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        name = entry.__name__
        check_backbone_name(name)
        BACKBONES.register(name)(info)
        return register_in_timm(entry)

    return file


def imagenet_cfg(
    source: str,
    papers: str | tuple[str, ...],
    *,
    first_conv: str,
    classifier: str | tuple[str, ...],
    size: int = 224,
    pool: int | None = None,
    crop_pct: float = 0.875,
    **more: Any,
) -> dict[str, Any]:
    """timm's description of a classifier of ImageNet-1K, without hosted weights unless `more` names them.

    Args:
        source: where the authors publish code and weights. papers: "arXiv:..." of each.
        first_conv, classifier: names of the first convolution and of the linear layer (or layers) of the head.
        size: side of the image. pool: side of the last map; None where the model pools something else than a map.
        crop_pct: share of the resized image's side that evaluation crops.
    """
    return {
        "url": None if "hf_hub_id" in more else "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": None if pool is None else (pool, pool),
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": classifier,
        "origin_url": source,
        "paper_ids": papers,
        **more,
    }


def register_sizes(
    module: str, sizes: Mapping[str, tuple[BackboneInfo, dict[str, Any]]], create: Callable[..., nn.Module]
) -> None:
    """Register the sizes of a family that differ in their arguments alone, each as a function of its name in `module`.

    Args:
        module: `__name__` of the family's module, which holds `default_cfgs` with every name.
        sizes: name -> what is known of it, and its default arguments.
        create: called as `create(name, pretrained, **arguments)`.
    """

    def file(name: str, info: BackboneInfo, defaults: dict[str, Any]) -> None:
        def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
            return create(name, pretrained, **(defaults | kwargs))

        given = ", ".join(f"{key} {value}" for key, value in defaults.items())
        entry.__name__ = entry.__qualname__ = name
        entry.__module__ = module
        entry.__doc__ = f"{name} of {info.paper}: {given or 'the defaults of its class'}."
        setattr(sys.modules[module], name, register_backbone(info)(entry))

    for name, (info, defaults) in sizes.items():
        file(name, info, defaults)


def check_backbone_name(name: str) -> None:
    """`ConfigError` unless `name` is free in timm and plain to segmentation_models_pytorch."""
    if any(part in name for part in _FORBIDDEN_PARTS) or name.startswith(_FORBIDDEN_BEGINNINGS):
        raise ConfigError(
            f"the backbone name {name!r} will not do: segmentation_models_pytorch rewires names that contain "
            f"{' or '.join(_FORBIDDEN_PARTS)} or begin with {', '.join(_FORBIDDEN_BEGINNINGS)}; choose another."
        )
    if timm.is_model(name):
        raise ConfigError(f"timm already has a model named {name!r}: choose another name, or use timm's.")


def has_hosted_weights(name: str) -> bool:
    """Whether `pretrained=True` finds weights to download: of the variants of timm's own models, whose weights fit."""
    cfg = timm.get_pretrained_cfg(name)
    return cfg is not None and bool(cfg.has_weights)


def build_backbone(
    model_cls: Callable[..., nn.Module],
    name: str,
    pretrained: bool,
    filter_fn: Callable[[dict[str, Any], nn.Module], dict[str, Any]],
    *,
    feature_indices: tuple[int, ...] = (0, 1, 2, 3),
    **kwargs: Any,
) -> nn.Module:
    """Build through timm, so that `features_only`, `out_indices` and `pretrained_cfg_overlay` mean what they do there.

    `features_only=True` without `out_indices` gives the maps at `feature_indices`, all four of a four-stage backbone.
    They are taken from inside the whole model ("getter"): timm's default wrapper rebuilds a net from its children and
    loses what `forward` does.

    Raises:
        CheckpointError: `pretrained`, and nobody hosts weights.
        ConfigError: `output_stride`, and the family has none.
    """
    if "output_stride" in kwargs and "output_stride" not in inspect.signature(model_cls).parameters:
        raise ConfigError(
            f"output_stride {kwargs['output_stride']} cannot be had from {name}: the strides of its maps are fixed. "
            f"Choose a decoder that takes strides 4 to 32 (Unet, FPN, UPerNet, ...), or a backbone that can be dilated."
        )
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    given = any(overlay.get(key) for key in ("file", "url", "hf_hub_id", "state_dict"))
    if pretrained and not given and not has_hosted_weights(name):
        raise CheckpointError(
            f"{name} has no weights that could be downloaded by name. Build it with pretrained=False (in "
            f"segmentation_models_pytorch: encoder_weights=None); its authors' files are at {BACKBONES[name].source}: "
            f"`statefield convert FILE OUT.safetensors --model {name}`, then statefield.load_checkpoint(model, OUT)."
        )
    return build_model_with_cfg(
        model_cls,
        name,
        pretrained,
        feature_cfg={"out_indices": feature_indices, "feature_cls": "getter"},
        pretrained_filter_fn=filter_fn,
        **kwargs,
    )

"""MobileMamba's goldens: the classifiers, the block, and the parts of its mixer.

The goldens were computed without a GPU, where the authors' code falls back on a merge of the two scans that mixes the
images of a batch (`mixed`). Where a golden has more than one image, our scans are merged here, and only here, as that
fallback does; what they are merged from, and all around them, is the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from systems import Built, builder, take
from torch import Tensor, nn

from statefield.backbones import create_model, mobilemamba
from statefield.backbones._mixers.wavelet import LocalConv, MultiReceptiveFieldMixer, RasterScanMixer, WaveletScanMixer
from statefield.errors import ConfigError

_BUILT_IN = {
    "forward_type": "v052d",
    "stages": ["s", "s", "s"],
    "type": "s",
    "wt_levels": 1,
    "wt_type": "db1",
    "stride": 1,
    "bias": True,
    "d_state": 1,
    "has_skip": True,
}
_WITHOUT_EFFECT = ("img_size", "drop_path", "drop", "note", "resolution", "window_resolution", "input_resolution")
_WANTED = {
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "embed_dim": "dims",
    "depth": "depths",
    "global_ratio": "global_ratios",
    "local_ratio": "local_ratios",
    "kernels": "kernel_sizes",
    "ssm_ratio": "expand",
    "distillation": "distillation",
}
_OF_BLOCKS = {
    "global_ratio": "global_ratio",
    "local_ratio": "local_ratio",
    "kernels": "kernel_size",
    "ssm_ratio": "expand",
}
# The official constructors' own: the blocks' scans have one inner channel for each that they are given.
_EXPAND = {"expand": 1.0}


def mixed(there: Tensor, back: Tensor) -> Tensor:
    """The sum of two scans [B, H, W, E] as the authors' fallback without a GPU has it.

    The two have shapes [B, E, L] and [B, 1, E, L] when they are added, so that each image's way back meets the way
    there of every image, and the sum over what should be an axis of one entry adds them all up:

        y_b = sum_j there_j + B back_b         instead of         there_b + back_b

    One image gives the same either way, and by its description their code for the GPU has nothing of it. That this is
    what happens was concluded from the goldens: with it they agree to 1e-5 of std, without it the output of a mixer's
    scans is off by a third, everything beside them agreeing.
    """
    return there.sum(0, keepdim=True) + there.shape[0] * back


class _Merge(torch.autograd.Function):
    """`mixed`, with the gradient of the plain sum: theirs has a backward pass of its own, which deals it out."""

    @staticmethod
    def forward(ctx: Any, there: Tensor, back: Tensor) -> Tensor:
        return mixed(there, back)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0]


class _Deal(torch.autograd.Function):
    """The input of both scans, whose gradients are `mixed`: the backward pass of dealing out is the merge."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        return u.clone(), u.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return mixed(*gradients)


def merged_as_without_gpu(scan: Callable[..., Tensor], u: Tensor) -> Tensor:
    """The merged scans of u [B, H, W, E] in the authors' fallback; `scan` is `RasterScanMixer.scan`."""
    there, back = _Deal.apply(u)
    return _Merge.apply(scan(there, merge=False)[..., 0, :], scan(back, merge=False)[..., 1, :])


def _merge_as_official(module: nn.Module, x: Tensor) -> None:
    """Let the module's scans be merged as the golden's were, which matters for more than one image."""
    if x.shape[0] > 1:
        for mixer in module.modules():
            if isinstance(mixer, RasterScanMixer):
                plain = partial(RasterScanMixer.scan, mixer)
                mixer.scan = partial(merged_as_without_gpu, plain)  # type: ignore[method-assign]


def _options(kwargs: dict[str, Any], wanted: dict[str, str]) -> dict[str, Any]:
    for name, value in _BUILT_IN.items():
        if name in kwargs and kwargs[name] != value:
            raise ConfigError(f"the official argument {name} is {kwargs[name]!r}: only {value!r} has a counterpart.")
    down = kwargs.get("down_ops", [["subsample", 2], ["subsample", 2], [""]])
    if [list(op) for op in down] != [["subsample", 2], ["subsample", 2], [""]]:
        raise ConfigError(f"the official argument down_ops is {down!r}: two halvings are what has a counterpart.")
    return take(kwargs, wanted, ("down_ops", *_BUILT_IN, *_WITHOUT_EFFECT))


def _classifier(name: str, kwargs: dict[str, Any], defaults: dict[str, Any]) -> Built:
    model = create_model(name, **(defaults | _options(kwargs, _WANTED)))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        _merge_as_official(model, inputs["x"])
        stem = model.stem_maps(inputs["x"])[-1]
        first = model.stages[0](stem)
        second = model.stages[1](first)
        last = model.last_stage(second)
        maps = {"patch_embed": stem, "blocks1": first, "blocks2": second, "blocks3": last}
        return {"logits": model.forward_head(model.forward_features(inputs["x"]))} | {
            key: feature_map.permute(0, 3, 1, 2) for key, feature_map in maps.items()
        }

    return Built(run, model, mobilemamba.checkpoint_filter_fn)


def _of_size(name: str) -> Callable[[dict[str, Any]], Built]:
    return lambda kwargs: _classifier(name, kwargs, {})


for _size in ("t2", "t4", "s6", "b1", "b2", "b4"):
    builder("mobilemamba", f"MobileMamba_{_size.upper()}")(_of_size(f"mobilemamba_{_size}"))


@builder("mobilemamba", "MobileMamba")
def _any_classifier(kwargs: dict[str, Any]) -> Built:
    missing = {"embed_dim", "depth", "global_ratio", "local_ratio", "kernels"} - set(kwargs)
    if missing:
        raise ConfigError(f"the official arguments {', '.join(sorted(missing))} are needed: name them in the kwargs.")
    return _classifier("mobilemamba_t2", kwargs, _EXPAND)


def _on_maps(module: nn.Module) -> Built:
    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        _merge_as_official(module, inputs["x"])
        return {"y": module(inputs["x"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}

    return Built(run, module, mobilemamba.checkpoint_filter_fn)


@builder("mobilemamba", "MobileMambaBlock")
def _block(kwargs: dict[str, Any]) -> Built:
    wanted = {"ed": "channels", "dim": "channels"} | _OF_BLOCKS
    return _on_maps(mobilemamba.MobileMambaBlock(**(_EXPAND | _options(kwargs, wanted))))


@builder("mobilemamba", "MobileMambaModule", "MobileMambaBlockWindow")
def _mixer(kwargs: dict[str, Any]) -> Built:
    return _on_maps(MultiReceptiveFieldMixer(**(_EXPAND | _options(kwargs, {"dim": "channels"} | _OF_BLOCKS))))


def _square(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without the second of two numbers of channels, which have to be equal."""
    kwargs = dict(kwargs)
    width = kwargs["in_channels"]
    if kwargs.pop("out_channels", width) != width:
        raise ConfigError(f"the official argument out_channels differs from in_channels {width}: that is no operation.")
    return kwargs


@builder("mobilemamba", "MBWTConv2d")
def _wavelet_scan(kwargs: dict[str, Any]) -> Built:
    wanted = {"in_channels": "channels", "kernel_size": "kernel_size", "ssm_ratio": "expand"}
    return _on_maps(WaveletScanMixer(**({"kernel_size": 5} | _EXPAND | _options(_square(kwargs), wanted))))


@builder("mobilemamba", "DWConv2d_BN_ReLU")
def _local(kwargs: dict[str, Any]) -> Built:
    wanted = {"in_channels": "channels", "kernel_size": "kernel_size"}
    return _on_maps(LocalConv(**_options(_square(kwargs), wanted)))


@builder("mobilemamba", "PatchMerging")
def _merging(kwargs: dict[str, Any]) -> Built:
    options = _options(kwargs, {"dim": "channels", "out_dim": "out_channels"})
    return _on_maps(mobilemamba.MobileMambaMerging(**options))


@builder("mobilemamba", "SS2D")
def _scan(kwargs: dict[str, Any]) -> Built:
    options = _options(kwargs, {"d_model": "channels", "ssm_ratio": "expand", "dt_rank": "dt_rank"})
    if options.get("dt_rank") == "auto":
        del options["dt_rank"]
    return _on_maps(RasterScanMixer(**options))

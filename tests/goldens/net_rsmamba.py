"""The goldens of RSMamba: the classifiers with their orders of tokens, and the mixer of their layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import recipe
import torch
from systems import Built, builder, take
from torch import Tensor, nn
from watch import Watch

from statefield.backbones._mixers import OrientedMixer
from statefield.errors import ConfigError
from statefield.tasks.remote_sensing.nets import RSMamba, rsmamba

_SIZES = {"s": "small", "b": "base", "l": "large", "h": "huge"}
_PATHS: dict[str, dict[str, Any]] = {
    "forward": {"paths": ("forward",)},
    "forward_reverse_mean": {"paths": ("forward", "reverse"), "fusion": "mean"},
    "forward_reverse_gate": {"paths": ("forward", "reverse")},
    "forward_reverse_shuffle_mean": {"fusion": "mean"},
    "forward_reverse_shuffle_gate": {},
}
_HAS = {
    "out_type": "avg_featmap",
    "with_cls_token": False,
    "final_norm": True,
    "patch_size": 16,
    "cls_position": "none",
}


class _RecordedOrders(RSMamba):
    """Shuffled as the golden's maker did it: in an order that the layer's number defines."""

    def shuffled_order(self, layer: int, tokens: int, device: torch.device) -> Tensor:
        order = np.argsort(recipe.uniform(f"perm.{layer}", (tokens,)), kind="stable")
        return torch.from_numpy(order).to(device)


def _net(backbone: dict[str, Any], num_classes: int) -> Built:
    backbone = dict(backbone)
    arch, path = backbone.pop("arch", "b"), backbone.pop("path_type", "forward_reverse_shuffle_gate")
    if isinstance(arch, dict):
        size: Any = (arch["embed_dims"], arch["num_layers"])
        known = arch.get("feedforward_channels", 2 * size[0]) == 2 * size[0]
    else:
        size, known = _SIZES.get(arch), arch in _SIZES
    if not known or path not in _PATHS:
        raise ConfigError(f"the architecture {arch!r} with the path type {path!r} has no counterpart.")
    if (patches := backbone.pop("patch_cfg", {"stride": rsmamba.STRIDE})) != {"stride": rsmamba.STRIDE}:
        raise ConfigError(f"patches with {patches} have no counterpart; ours have the stride {rsmamba.STRIDE}.")
    for name, value in _HAS.items():
        if backbone.pop(name, value) != value:
            raise ConfigError(f"RSMamba with another {name} than {value!r} has no counterpart.")
    without_effect = ("drop_rate", "drop_path_rate", "init_cfg", "interpolate_mode", "pe_type", "type")
    options = {"img_size": 224} | take(backbone, {"in_channels": "in_channels", "img_size": "img_size"}, without_effect)
    side = options.pop("img_size")
    if not isinstance(side, int):
        if len(set(side)) > 1:
            raise ConfigError(f"positions learned for an image of {side} have no counterpart; ours are for squares.")
        side = side[0]
    net = _RecordedOrders(num_classes=num_classes, size=size, image_size=side, **options, **_PATHS[path])
    watch = Watch()
    watch.on(net.patch_embed, "patch_embed tokens", lambda x: x.flatten(2).transpose(1, 2))
    watch.on(net.norm, "ln1")
    watch.on(net.pooled_norm, "backbone output")
    for index, layer in enumerate(net.layers):
        watch.on(layer.mixer, f"mixer of layer {index}")
        if layer.gate is not None:
            watch.on(layer.gate, f"gate of layer {index}", lambda scores: scores.softmax(-1))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        scores = net(inputs["x"])
        return ({"logits": scores} if num_classes else {}) | watch.longest_first()

    return Built(run, net, rsmamba.checkpoint_filter_fn)


@builder("rsmamba", "RSMamba + LinearClsHead fc")
def _classifier(kwargs: dict[str, Any]) -> Built:
    return _net(kwargs["backbone"], kwargs["num_classes"])


@builder("rsmamba", "RSMamba")
def _backbone(kwargs: dict[str, Any]) -> Built:
    return _net(kwargs.get("backbone", kwargs), 0)


def _mixer_names(entries: dict[str, Any], _module: nn.Module) -> dict[str, Any]:
    prefix = "layers.0."
    renamed = {rsmamba.rename_official_key(prefix + key): value for key, value in entries.items()}
    return {name.removeprefix(f"{prefix}mixer."): value for name, value in renamed.items()}


@builder("rsmamba", "MambaMixer")
def _mixer(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    for name, value in {"use_conv_bias": True, "use_bias": False, "hidden_act": "silu"}.items():
        if kwargs.pop(name, value) != value:
            raise ConfigError(f"a mixer with another {name} than {value!r} has no counterpart.")
    expand = kwargs.pop("intermediate_size", 2 * kwargs["hidden_size"]) / kwargs["hidden_size"]
    wanted = {
        "hidden_size": "channels",
        "time_step_rank": "dt_rank",
        "state_size": "d_state",
        "conv_kernel": "d_conv",
    }
    mixer = OrientedMixer(expand=expand, **take(kwargs, wanted, ("expand",)))
    return Built(lambda inputs: {"mixer output": mixer(inputs["x"])}, mixer, _mixer_names)

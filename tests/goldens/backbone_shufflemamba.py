"""ShuffleMamba's goldens: both token layouts by the names of the authors' constructors, and one layer, shuffled."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from backbone_vim import streams
from systems import Built, builder, take
from torch import Tensor

from statefield.backbones import create_model, shufflemamba
from statefield.backbones._mixers import BidirectionalMixer
from statefield.errors import ConfigError

_TRAINING_ONLY = ("drop_rate", "drop_path_rate", "drop_path", "initializer_cfg", "device", "dtype", "pretrained")
_MODEL = {
    "num_classes": "num_classes",
    "img_size": "img_size",
    "channels": "in_chans",
    "stride": "stride",
    "shuffle_rate": "shuffle_rate",
}
_WITHOUT_EFFECT = ("layer_idx", "residual_in_fp32", "fused_add_norm", "biscan")


def _norm(kwargs: dict[str, Any]) -> str:
    """Takes the norm's name out of official arguments."""
    return "rms" if kwargs.pop("rms_norm", False) else "layer"


def _built(name: str, options: dict[str, Any]) -> Built:
    model = create_model(name, **options)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        found = streams(model, inputs)
        found["forward_features"] = model.head.pre_logits(found["forward_features"])
        return found | {"shuffle probability per layer": torch.tensor(model.shuffle_rates)}

    return Built(run, model, shufflemamba.checkpoint_filter_fn)


def _constructor(name: str) -> Any:
    return lambda kwargs: _built(name, take(kwargs, _MODEL, _TRAINING_ONLY))


for _size in ("tiny", "small", "middle", "base", "large"):
    builder("shufflemamba", f"models_shuffle.mambar_{_size}_patch16_224")(_constructor(f"shufflemamba_{_size}"))
builder("shufflemamba", "models_shuffle.mambar_large_patch16_224_40")(_constructor("shufflemamba_large_depth40"))
for _size in ("tiny", "small", "base", "large"):
    builder("shufflemamba", f"models_reg.mambar_{_size}_patch16_224")(_constructor(f"shufflemamba_reg_{_size}"))


def _class(names: dict[str, str], defaults: dict[str, Any]) -> Any:
    """A builder of the official class itself, with its own defaults."""

    def build(kwargs: dict[str, Any]) -> Built:
        kwargs = dict(kwargs)
        norm = _norm(kwargs)
        wanted = _MODEL | {"embed_dim": "dim", "depth": "num_layers", "patch_size": "patch_size"} | names
        options = defaults | take(kwargs, wanted, (*_TRAINING_ONLY, *_WITHOUT_EFFECT))
        if options.get("registers") == 0:
            raise ConfigError("only models with class tokens have a counterpart.")
        return _built("shufflemamba_tiny", {"norm": norm} | options)

    return build


_REGISTERS = {"num_cls_tokens": "registers", "cls_reduce": "reduce"}
builder("shufflemamba", "models_shuffle.VisionMamba")(_class({}, {}))
builder("shufflemamba", "models_reg.VisionMamba")(_class(_REGISTERS, {"registers": 1}))


@builder("shufflemamba", "mamba_custom.Mamba")
def _mixer(kwargs: dict[str, Any]) -> Built:
    names = {"d_model": "channels", "d_state": "d_state", "d_conv": "d_conv", "expand": "expand"}
    mixer = BidirectionalMixer(**take(kwargs, names, (*_TRAINING_ONLY, *_WITHOUT_EFFECT, "use_fast_path")))
    return Built(lambda inputs: {"module output": mixer(inputs["x"])}, mixer, shufflemamba.checkpoint_filter_fn)


@builder("shufflemamba", *(f"models_{name}.shuffle_forward on create_block" for name in ("shuffle", "reg")))
def _layer(kwargs: dict[str, Any]) -> Built:
    """The second block of a model whose second block is always shuffled; the permutation is the golden's."""
    kwargs = dict(kwargs)
    if "permutation" not in kwargs:
        raise ConfigError("a shuffled layer is compared with one permutation, and this golden names none.")
    permutation = torch.tensor(kwargs.pop("permutation"))
    norm = _norm(kwargs)
    options = take(kwargs, {"d_model": "dim"}, (*_TRAINING_ONLY, *_WITHOUT_EFFECT))
    model = create_model(
        "shufflemamba_tiny", num_layers=2, norm=norm, drop_path_rate=0.0, shuffle_rate=1.0, num_classes=0, **options
    )

    def layer(tokens: Tensor, training: bool) -> Tensor:
        """What the layer adds to its tokens. The authors keep the two apart: "hidden states" and "residual"."""
        model.train(training)
        with mock.patch("torch.randperm", return_value=permutation):
            return model.run_block(1, tokens, ()) - tokens

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        x = inputs["x"]
        tokens = x + inputs["residual"]
        return {
            "hidden states, shuffled, residual=None": layer(x, True),
            "residual, shuffled, residual=None": x,
            "hidden states, shuffled": layer(tokens, True),
            "residual, shuffled": tokens,
            "hidden states, not shuffled": layer(tokens, False),
            "residual, not shuffled": tokens,
        }

    return Built(run, model.blocks[1], shufflemamba.checkpoint_filter_fn)

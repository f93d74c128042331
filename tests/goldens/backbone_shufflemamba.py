"""ShuffleMamba's goldens: both token layouts by the names of the authors' constructors, and one layer, shuffled."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from backbone_vim import streams
from systems import Built, builder, take
from torch import Tensor

from statefield.backbones import create_model, shufflemamba
from statefield.errors import ConfigError

_TRAINING_ONLY = ("drop_rate", "drop_path_rate", "drop_path", "initializer_cfg", "device", "dtype", "pretrained")
_MODEL = {
    "num_classes": "num_classes",
    "img_size": "img_size",
    "channels": "in_chans",
    "stride": "stride",
    "shuffle_rate": "shuffle_rate",
}
_WITHOUT_EFFECT = ("layer_idx", "residual_in_fp32", "fused_add_norm")


def _model(name: str) -> Any:
    def build(kwargs: dict[str, Any]) -> Built:
        model = create_model(name, **take(kwargs, _MODEL, _TRAINING_ONLY))

        def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
            found = streams(model, inputs)
            found["forward_features"] = model.head.pre_logits(found["forward_features"])
            return found | {"shuffle probability per layer": torch.tensor(model.shuffle_rates)}

        return Built(run, model, shufflemamba.checkpoint_filter_fn)

    return build


for _size in ("tiny", "small", "middle", "base", "large"):
    builder("shufflemamba", f"models_shuffle.mambar_{_size}_patch16_224")(_model(f"shufflemamba_{_size}"))
builder("shufflemamba", "models_shuffle.mambar_large_patch16_224_40")(_model("shufflemamba_large_depth40"))
for _size in ("tiny", "small", "base", "large"):
    builder("shufflemamba", f"models_reg.mambar_{_size}_patch16_224")(_model(f"shufflemamba_reg_{_size}"))


@builder("shufflemamba", "models_shuffle.shuffle_forward on create_block")
def _layer(kwargs: dict[str, Any]) -> Built:
    """The second block of a model whose second block is always shuffled; the permutation is the golden's."""
    kwargs = dict(kwargs)
    if "permutation" not in kwargs:
        raise ConfigError("a shuffled layer is compared with one permutation, and this golden names none.")
    permutation = torch.tensor(kwargs.pop("permutation"))
    norm = "rms" if kwargs.pop("rms_norm", False) else "layer"
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

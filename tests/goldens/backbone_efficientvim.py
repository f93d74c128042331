"""EfficientViM's goldens: classifiers, plain and distilled, and one block; the mixer alone is among the operators'."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from timm.models.efficientvim import EfficientViMBlock
from torch import Tensor

from statefield.backbones import create_model, efficientvim
from statefield.backbones.efficientvim import on_our_operator

_ARGUMENTS = {
    "in_dim": "in_chans",
    "num_classes": "num_classes",
    "embed_dim": "embed_dim",
    "depths": "depths",
    "mlp_ratio": "mlp_ratio",
    "ssd_expand": "ssd_expand",
    "state_dim": "state_dim",
}


def _classifier(size: str, kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    kind = "_dist" if kwargs.pop("distillation", False) else ""
    model = create_model(f"efficientvim_{size}{kind}_pyramid", **take(kwargs, _ARGUMENTS, ("pretrained",)))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        x = model.patch_embed(inputs["x"])
        found = {"logits": model(inputs["x"])}
        for index, stage in enumerate(model.stages):
            stage_map, x, hidden = stage(x)
            found |= {
                f"stage {index} map before downsample": stage_map,
                f"hidden state h of the last block of stage {index}": hidden,
                f"stages.{index} output x": x,
            }
        return found

    return Built(run, model, efficientvim.checkpoint_filter_fn)


for _size in ("m1", "m2", "m3", "m4"):
    builder("efficientvim", f"EfficientViM_{_size.upper()}")(
        lambda kwargs, size=_size: _classifier(size, kwargs)  # type: ignore[misc]
    )


@builder("efficientvim", "EfficientViM")
def _any_size(kwargs: dict[str, Any]) -> Built:
    of_the_class = {"embed_dim": (128, 256, 512), "depths": (2, 2, 2), "state_dim": (49, 25, 9)}
    return _classifier("m2", of_the_class | kwargs)


@builder("efficientvim", "EfficientViMBlock")
def _block(kwargs: dict[str, Any]) -> Built:
    wanted = {"dim": "dim", "mlp_ratio": "mlp_ratio", "ssd_expand": "ssd_expand", "state_dim": "state_dim"}
    block = on_our_operator(EfficientViMBlock(**take(kwargs, wanted)))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        x, hidden = block(inputs["x"])
        return {"x": x, "h": hidden}

    return Built(run, block, efficientvim.checkpoint_filter_fn)

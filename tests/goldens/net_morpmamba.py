"""The golden of MorpMamba, a Keras model: its kernels keep their layout, and are turned into ours in every call.

So gradients are compared in the layout that the golden has them in.
"""

from __future__ import annotations

from typing import Any

import torch
from systems import Built, builder, take
from torch import Tensor, nn
from torch.func import functional_call
from watch import Watch

from statefield.tasks.remote_sensing.nets import MorpMamba

_DENSE = {
    "attention.query": "multi_head_attention.query",
    "attention.key": "multi_head_attention.key",
    "attention.value": "multi_head_attention.value",
    "gates.spatial_gate": "feature_enhancement.spatial_gate",
    "gates.spectral_gate": "feature_enhancement.spectral_gate",
    "recurrence.transition": "state_space_model.state_transition",
    "recurrence.update": "state_space_model.state_update",
    "hidden": "dense",
    "head": "classifier",
}
_MORPHOLOGY = [(kind, step) for kind in ("spatial", "spectral") for step in ("erosion", "dilation")]
_ARGUMENTS = {
    "out_channels": "channels",
    "num_heads": "heads",
    "state_dim": "d_state",
    "bands": "in_channels",
    "window": "window",
    "num_classes": "num_classes",
}


def _keras_names(net: MorpMamba, ours: str) -> list[str]:
    """What Keras calls the kernels that a weight of ours is made of."""
    owner, _, what = ours.rpartition(".")
    for kind, step in _MORPHOLOGY:
        if owner == f"tokens.{kind}_{step}":
            count = net.get_parameter(ours).shape[0]
            return [f"token_generation.{step}_layer_{kind}.depthwise_conv.{one}.kernel" for one in range(count)]
    theirs = "token_generation.conv" if owner == "tokens.conv" else _DENSE[owner]
    return [f"{theirs}.{'kernel' if what == 'weight' else what}"]


def _as_keras(weight: Tensor) -> Tensor:
    """[out, in] -> [in, out], or [out, in, h, w] -> [h, w, in, out]; a bias as it is."""
    return weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.mT if weight.ndim == 2 else weight


def _as_ours(kernel: Tensor) -> Tensor:
    return kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.mT if kernel.ndim == 2 else kernel


def _own_name(key: str) -> str:
    return f"kernels.{key.replace('.', '/')}"


def _filter(entries: dict[str, Any], _module: nn.Module) -> dict[str, Any]:
    return {_own_name(key): value for key, value in entries.items()}


class _KerasKernels(nn.Module):
    """The kernels of a net as Keras holds them."""

    def __init__(self, net: MorpMamba) -> None:
        super().__init__()
        self.sources = {name: _keras_names(net, name) for name, _ in net.named_parameters()}
        self.kernels = nn.ParameterDict()
        for name, weight in net.named_parameters():
            parts = weight.split(1) if len(self.sources[name]) > 1 else [weight]
            for key, part in zip(self.sources[name], parts, strict=True):
                self.kernels[key.replace(".", "/")] = nn.Parameter(_as_keras(part.detach()).clone())

    def ours(self) -> dict[str, Tensor]:
        return {
            name: torch.cat([_as_ours(self.kernels[key.replace(".", "/")]) for key in keys])
            for name, keys in self.sources.items()
        }


@builder("morpmamba", "SSMambaModel")
def _model(kwargs: dict[str, Any]) -> Built:
    net = MorpMamba(**take(kwargs, _ARGUMENTS)).eval()
    kernels, watch = _KerasKernels(net), Watch()
    for module, names in (
        (net.tokens, ("spatial tokens", "spectral tokens")),
        (net.gates, ("spatial enhanced", "spectral enhanced")),
    ):
        for place, name in enumerate(names):
            watch.on(module, name, lambda both, place=place: both[place])
    watch.on(net.attention, "attention output")
    watch.on(net.recurrence, "last state")

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        logits = functional_call(net, kernels.ours(), (inputs["x"].permute(0, 3, 1, 2),))
        return {"softmax output": logits.softmax(-1), "classifier pre-softmax": logits} | watch.seen

    return Built(run, kernels, _filter)

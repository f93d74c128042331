"""The table of systems: from the class and arguments that a golden names to our module or function.

A later system adds its builders in a module `operators_<op>.py`, `backbone_<family>.py` or `net_<name>.py` of its own,
which this one finds: a function of the golden's `kwargs` under `@builder(system, official class)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from statefield.backbones import create_model, spatial_mamba
from statefield.backbones._mixers import StateFusion, StructureAwareMixer
from statefield.backbones.checkpoints import FilterFn, backbone_of
from statefield.errors import ConfigError
from statefield.kernels import selective_scan, state_fusion
from statefield.kernels.structure_aware_scan import scan_states
from statefield.registry import Registry


@dataclass(frozen=True)
class Built:
    """Our side of a golden.

    Attributes:
        run: from the golden's inputs by argument name to our outputs. An output is named as the golden's description
            of it begins; one whose description nobody foresaw is taken by its position.
        module: what takes the official weights; None for a plain function.
        filter_fn: official names to ours.
    """

    run: Callable[[dict[str, Any]], dict[str, Tensor]]
    module: nn.Module | None = None
    filter_fn: FilterFn | None = None


Builder = Callable[[dict[str, Any]], Built]
BUILDERS: Registry[Builder] = Registry("golden system")


def builder(system: str, *classes: str) -> Callable[[Builder], Builder]:
    """File a builder for official classes (or functions) of a system."""

    def file(build: Builder) -> Builder:
        for cls in classes:
            BUILDERS.register(f"{system} {cls}")(build)
        return build

    return file


def take(kwargs: dict[str, Any], wanted: dict[str, str], without_effect: Iterable[str] = ()) -> dict[str, Any]:
    """Official arguments under our names; `ConfigError` for one that is in neither list.

    Args:
        wanted: official name -> our name. without_effect: official names that do not matter in eval mode.
    """
    unknown = sorted(set(kwargs) - set(wanted) - set(without_effect))
    if unknown:
        raise ConfigError(f"the official argument {', '.join(unknown)} has no counterpart in this table yet.")
    return {ours: kwargs[theirs] for theirs, ours in wanted.items() if theirs in kwargs}


@builder("mamba_ssm", "selective_scan_ref", "selective_scan_fn")
def _selective_scan(kwargs: dict[str, Any]) -> Built:
    options = take(kwargs, {"delta_softplus": "delta_softplus", "return_last_state": "return_state"})

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        result = selective_scan(**inputs, **options)
        return {"out": result[0], "last_state": result[1]} if isinstance(result, tuple) else {"out": result}

    return Built(run)


_MODEL_ARGUMENTS = {
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "dims": "dims",
    "depths": "depths",
    "d_state": "d_state",
    "mlp_ratio": "mlp_ratio",
}
_TRAINING_ONLY = ("drop_path", "drop_path_rate", "drop_rate", "attn_drop_rate", "dropout", "use_checkpoint", "dt_init")
_FIXED = (
    "img_size",
    "patch_size",
    "norm_layer",
    "patch_norm",
)  # the goldens' models have a value that we have built in


def _spatial_mamba_model(kwargs: dict[str, Any], **form: Any) -> nn.Module:
    options = {"dims": 64, "depths": (2, 4, 8, 4)} | take(kwargs, _MODEL_ARGUMENTS, (*_TRAINING_ONLY, *_FIXED))
    return create_model("spatial_mamba_tiny", **options, **form)


@builder("spatial_mamba", "SpatialMamba")
def _classifier(kwargs: dict[str, Any]) -> Built:
    model = _spatial_mamba_model(kwargs)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        last, maps = model.forward_intermediates(inputs["x"])
        stages = {f"stage {index} feature map": feature_map for index, feature_map in enumerate(maps)}
        return {"logits": model.forward_head(last)} | stages

    return Built(run, model, spatial_mamba.checkpoint_filter_fn)


@builder("spatial_mamba", "Backbone_SpatialMamba")
def _dense_backbone(kwargs: dict[str, Any]) -> Built:
    stages = tuple(range(len(kwargs.get("depths", range(4)))))
    taken = tuple(kwargs.get("out_indices", stages))
    kwargs = {name: value for name, value in kwargs.items() if name not in ("out_indices", "pretrained", "num_classes")}
    model = _spatial_mamba_model(kwargs, features_only=True, feature_norms=True, out_indices=taken)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {f"outs[{index}]": feature_map for index, feature_map in enumerate(model(inputs["x"]))}

    return Built(run, backbone_of(model), spatial_mamba.checkpoint_filter_fn)


@builder("spatial_mamba", "SpatialMambaBlock")
def _block(kwargs: dict[str, Any]) -> Built:
    arguments = {"hidden_dim": "channels", "d_state": "d_state", "expand": "expand", "mlp_ratio": "mlp_ratio"}
    block = spatial_mamba.SpatialMambaBlock(**take(kwargs, arguments, (*_TRAINING_ONLY, *_FIXED)))
    if "norm_layer" not in kwargs:  # the authors' bare block has another default than their models give it
        block.norm1.eps = block.norm2.eps = 1e-6
    return Built(lambda inputs: {"module output": block(inputs["x"])}, block, spatial_mamba.checkpoint_filter_fn)


@builder("spatial_mamba", "StructureAwareSSM")
def _mixer(kwargs: dict[str, Any]) -> Built:
    arguments = {"d_model": "channels", "d_state": "d_state", "expand": "expand", "d_conv": "d_conv"}
    arguments |= {} if kwargs.get("dt_rank", "auto") == "auto" else {"dt_rank": "dt_rank"}
    initial_values = ("dt_rank", "dt_min", "dt_max", "dt_scale", "dt_init_floor")
    mixer = StructureAwareMixer(**take(kwargs, arguments, (*_TRAINING_ONLY, *initial_values)))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        u, delta, B, _ = mixer.scan_inputs(mixer.in_proj(inputs["x"]).chunk(2, dim=-1)[0])
        states = scan_states(u, delta, mixer.decay(), B, mixer.dt_bias, delta_softplus=True)
        fused = state_fusion(states, mixer.fusion.weight(), mixer.fusion.alpha)
        return {
            "module output": mixer(inputs["x"]),
            "scan states": _channels_first(states),
            "fused states": _channels_first(fused),
        }

    return Built(run, mixer, spatial_mamba.checkpoint_filter_fn)


@builder("spatial_mamba", "StateFusion")
def _fusion(kwargs: dict[str, Any]) -> Built:
    fusion = StateFusion(**take(kwargs, {"dim": "channels"}))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        fused = state_fusion(inputs["x"].permute(0, 2, 3, 1), fusion.weight(), fusion.alpha)
        return {"module output": fused.permute(0, 3, 1, 2)}

    return Built(run, fusion, spatial_mamba.checkpoint_filter_fn)


def _channels_first(states: Tensor) -> Tensor:
    """[B, H, W, N, E] -> [B, E, H, W], or [B, E, N, H, W] where N > 1."""
    states = states.permute(0, 4, 3, 1, 2)
    return states.squeeze(2) if states.shape[2] == 1 else states


for _path in sorted(Path(__file__).parent.glob("[bno]*_*.py")):  # last, because they import `builder` from here
    importlib.import_module(_path.stem)

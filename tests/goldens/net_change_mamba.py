"""The goldens of ChangeMamba: the three nets, and the block that they are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import backbone_vmamba
from systems import Built, builder, take
from torch import Tensor, nn
from watch import Watch

from statefield.backbones import vmamba
from statefield.backbones._mixers import CrossScanMixer
from statefield.backbones.vmamba import VMambaBlock
from statefield.errors import ConfigError
from statefield.tasks.remote_sensing.nets import MambaBCD, MambaBDA, MambaSCD, change_mamba
from statefield.tasks.remote_sensing.nets.change_decoders import ChangeDecoder
from statefield.tasks.remote_sensing.nets.siamese import SiameseNet

_FORMS = {"v3noz": "v3_noz", "v05noz": "v05_noz"}  # names of VMamba's second form without a gate, then and now
_OF_BLOCKS = ("d_state", "expand", "gated", "conv_bias", "mlp_ratio")  # decoders have it as the encoder does


def _as_vmamba(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments as the authors of VMamba name them."""
    form = kwargs.get("forward_type", "v3noz")
    return kwargs | {"forward_type": _FORMS.get(form, form)}


def _net_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    if kwargs.get("ssm_dt_rank", "auto") != "auto" or kwargs.get("norm_layer", "ln") not in ("ln", "LN"):
        raise ConfigError("a rank of step sizes of one's own, and norms over channels-first maps, have no counterpart.")
    without_effect = ("pretrained", "num_classes", "ssm_rank_ratio")  # num_classes: of a classifier that is deleted
    options = backbone_vmamba._options(_as_vmamba({k: v for k, v in kwargs.items() if k not in without_effect}))
    in_channels = options.pop("in_chans", 3)
    if options.pop("duality"):
        raise ConfigError("decoders on Mamba-2 scans have no counterpart.")
    of_blocks = {name: options[name] for name in _OF_BLOCKS if name in options}
    return {"in_channels": in_channels, "encoder_args": options, "block_args": of_blocks}


def _watch_change_decoder(watch: Watch, decoder: ChangeDecoder, name: str) -> None:
    watch.on(decoder, f"{name} output")
    for level, parts in enumerate(decoder.levels, start=1):
        for number, part in enumerate((parts.parallel, parts.cross, parts.sequential), start=1):
            watch.on(part, f"{name}.st_block_{level}{number}")
        watch.on(parts.fuse, f"{name}.fuse_layer_{level}")
    for level, smooth in enumerate(decoder.smooth, start=1):
        watch.on(smooth, f"{name}.smooth_layer_{level}")


def _built(net: SiameseNet, names: dict[str, str], outputs: Callable[[Any], dict[str, Tensor]]) -> Built:
    """Args: names: our decoder -> theirs. outputs: from what the net gives."""
    watch = Watch()
    for ours, theirs in names.items():
        decoder = net.get_submodule(ours)
        if isinstance(decoder, ChangeDecoder):
            _watch_change_decoder(watch, decoder, theirs)
        else:
            watch.on(decoder, f"{theirs} output")

    def watch_encoder(_module: nn.Module, _inputs: Any, maps: list[Tensor]) -> None:
        for level, both in enumerate(maps):
            for date, one in zip(("pre", "post"), both.chunk(2), strict=True):
                watch.seen[f"encoder({date})[{level}]"] = one

    net.encoder.register_forward_hook(watch_encoder)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        found = net(inputs["pre_data"], inputs["post_data"])
        return outputs(found) | watch.longest_first()

    return Built(run, net, change_mamba.checkpoint_filter_fn)


@builder("change_mamba", "STMambaBCD", "ChangeMambaBCD")
def _binary(kwargs: dict[str, Any]) -> Built:
    net = MambaBCD(**_net_arguments(kwargs))
    return _built(net, {"decoder": "decoder"}, lambda logits: {"logits": logits})


@builder("change_mamba", "STMambaSCD", "ChangeMambaSCD")
def _semantic(kwargs: dict[str, Any]) -> Built:
    classes = {"output_cd": "num_classes", "output_clf": "num_semantic_classes"}
    rest = {name: value for name, value in kwargs.items() if name not in classes}
    net = MambaSCD(**take({name: kwargs[name] for name in classes}, classes), **_net_arguments(rest))
    names = {"decoder": "decoder_bcd", "decoder_before": "decoder_T1", "decoder_after": "decoder_T2"}
    described = ("change logits", "T1 semantic logits", "T2 semantic logits")
    return _built(net, names, lambda found: dict(zip(described, found, strict=True)))


@builder("change_mamba", "STMambaBDA", "ChangeMambaBDA")
def _damage(kwargs: dict[str, Any]) -> Built:
    classes = {"output_damage": "num_classes", "output_building": "num_building_classes"}
    rest = {name: value for name, value in kwargs.items() if name not in classes}
    net = MambaBDA(**take({name: kwargs[name] for name in classes}, classes), **_net_arguments(rest))
    names = {"decoder": "decoder_damage", "decoder_before": "decoder_building"}
    return _built(net, names, lambda found: dict(zip(("building logits", "damage logits"), found, strict=True)))


@builder("change_mamba", "Backbone_VSSM")
def _encoder(kwargs: dict[str, Any]) -> Built:
    return backbone_vmamba._dense({k: v for k, v in _as_vmamba(kwargs).items() if k != "ssm_rank_ratio"})


@builder("change_mamba", "SS2D")
def _mixer(kwargs: dict[str, Any]) -> Built:
    return backbone_vmamba._mixer({k: v for k, v in _as_vmamba(kwargs).items() if k != "ssm_rank_ratio"})


_ACTIVATIONS = {"ssm_act_layer": ("nn.SiLU", "silu"), "mlp_act_layer": ("nn.GELU", "gelu")}
_TRAINING_ONLY = ("drop_path", "ssm_drop_rate", "ssm_init", "mlp_drop_rate", "use_checkpoint", "ssm_rank_ratio")


@builder("change_mamba", "VSSBlock")
def _block(kwargs: dict[str, Any]) -> Built:
    kwargs = _as_vmamba(kwargs)
    fixed = {"channel_first": False, "gmlp": False, "ssm_dt_rank": "auto", "post_norm": False}
    for name, value in fixed.items():
        if kwargs.pop(name, value) != value:
            raise ConfigError(f"a block with another {name} than {value!r} has no counterpart.")
    for name, known in _ACTIVATIONS.items():
        if kwargs.pop(name, known[0]) not in known:
            raise ConfigError(f"a block with another {name} than {known[0]} has no counterpart.")
    wanted = {
        "hidden_dim": "channels",
        "ssm_d_state": "d_state",
        "ssm_ratio": "expand",
        "ssm_conv": "d_conv",
        "ssm_conv_bias": "conv_bias",
        "mlp_ratio": "mlp_ratio",
    }
    options = take(kwargs, wanted, (*_TRAINING_ONLY, "forward_type", "norm_layer"))
    channels, mlp_ratio = options.pop("channels"), options.pop("mlp_ratio", 4.0)
    block = VMambaBlock(channels, CrossScanMixer(channels, gated=False, **options), mlp_ratio=mlp_ratio)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {"block output": block(inputs["x"]), "op = SS2D": block.mixer(block.norm1(inputs["x"]))}

    return Built(run, block, vmamba.checkpoint_filter_fn)

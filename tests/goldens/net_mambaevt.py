"""The goldens of MambaEVT: the block of its backbone, tracker and head, and the memory of templates."""

from __future__ import annotations

from typing import Any

import torch
from systems import Built, builder, take
from torch import Tensor
from watch import Watch

from statefield.backbones import vim
from statefield.backbones.vim import VimBlock
from statefield.errors import ConfigError
from statefield.tasks.tracking.nets import MambaEVT, TemplateMemory, mamba_evt

_BIDIRECTIONAL = {"bimamba_type": "v2", "if_devide_out": True}
_FUSED = {"rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True}
_VIM_SMALL = "vim_small_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"


def _without(kwargs: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The arguments beside those that we have built in; `ConfigError` where one has another value."""
    for name, value in known.items():
        if kwargs.get(name, value) != value:
            raise ConfigError(f"another {name} than {value!r} has no counterpart.")
    return {name: value for name, value in kwargs.items() if name not in known}


@builder("mambaevt", "create_block")
def _block(kwargs: dict[str, Any]) -> Built:
    block = VimBlock(**take(_without(kwargs, _BIDIRECTIONAL | _FUSED), {"d_model": "dim"}))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        residual = inputs["x"] + inputs["residual"]  # the authors' block adds first, ours last
        return {"hidden": block.mixer(block.norm(residual)), "residual": residual}

    return Built(run, block, vim.checkpoint_filter_fn)


@builder("mambaevt", "OSTrack")
def _tracker(kwargs: dict[str, Any]) -> Built:
    head = kwargs["box_head_kwargs"]
    fixed = {"backbone": _VIM_SMALL, "box_head": "CenterPredictor", "head_type": "CENTER"}
    rest = _without(kwargs, fixed)
    of_backbone = _without(rest["backbone_kwargs"], {"img_size": 224})
    options = take(of_backbone, {}, ("pretrained", "num_classes", "drop_rate", "drop_path_rate", "drop_block_rate"))
    take(head, {}, ("inplanes", "channel", "feat_sz", "stride"))
    net = MambaEVT(search_size=head["feat_sz"] * head["stride"], head_channels=head["channel"], **options)
    watch = Watch()
    for index, block in enumerate(net.blocks):
        watch.on(block.mixer, f"joint pass, layer {index} hidden")
    watch.on(net.norm, "joint tokens")

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        dynamic = net.encode_templates(inputs["dynamic"][None])
        maps = net(inputs["template"], dynamic, inputs["search"])
        found = {"score_map": maps.score, "size_map": maps.size, "offset_map": maps.offset, "dynamic feature": dynamic}
        return found | {"pred_boxes": maps.boxes()[:, None]} | watch.longest_first()

    return Built(run, net, mamba_evt.checkpoint_filter_fn)


@builder("mambaevt", "THOR_Wrapper")
def _memory(kwargs: dict[str, Any]) -> Built:
    backbone = _without(kwargs["backbone"], _BIDIRECTIONAL)
    net = MambaEVT(**take(backbone, {"embed_dim": "dim", "depth": "num_layers", "patch_size": "patch_size"}))
    net.head = torch.nn.Identity()  # the golden has the backbone alone
    sizes = {"st_capacity": "short_capacity", "lt_capacity": "long_capacity", "sample_interval": "interval"} | {
        "lb": "lower_bound"
    }
    memory = TemplateMemory(net.encode_templates, **take(kwargs, sizes, ("backbone", "w", "frame_no")))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        base = inputs["base"][0]
        memory.start(base)
        features, long_grams, short_grams, likeness = [], [], [], []
        for weight, noise, number in zip(kwargs["w"], inputs["noise"], kwargs["frame_no"], strict=True):
            features.append(memory.observe(weight * base + (1 - weight**2) ** 0.5 * noise, number)[0])
            long_grams.append(memory.long.gram.clone())
            short_grams.append(memory.short.gram.clone())
            if number % memory.interval == 0:
                likeness.append(memory.short.likeness())
        return {
            "dynamic template": torch.stack(features),
            "LT gram": torch.stack(long_grams),
            "ST gram": torch.stack(short_grams),
            "normed_div_measure": torch.tensor(likeness),
        }

    return Built(run, net, mamba_evt.checkpoint_filter_fn)

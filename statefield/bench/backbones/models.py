"""Which models the benchmark of backbones takes, and how each is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import set_fused_attn, use_fused_attn
from torch import Tensor, nn

import statefield.backbones  # noqa: F401  registers our names in timm
from statefield.bench.memory import extra_mib_of_each


@dataclass(frozen=True)
class Family:
    """The two models of a family that are measured.

    Attributes:
        like_swin_tiny: the one whose number of parameters is nearest (as a ratio) to Swin-T's 28 M, in the form that
            gives maps at several strides where it has one, and of patches of 16 where those can be chosen.
        smallest: what runs on the reference loop too, which takes minutes for larger ones.
    """

    like_swin_tiny: str
    smallest: str


FAMILIES = {
    "Spatial-Mamba": Family("spatial_mamba_tiny", "spatial_mamba_nano"),
    "VMamba": Family("vmamba_tiny_s1l8", "vmamba_tiny_s1l8"),
    "MSVMamba": Family("msvmamba_tiny", "msvmamba_nano"),
    "EfficientVMamba": Family("efficientvmamba_base", "efficientvmamba_tiny"),
    "Res-VMamba": Family("res_vmamba_small", "res_vmamba_small"),
    "HRVMamba": Family("hrvmamba_small", "hrvmamba_nano"),
    "MobileMamba": Family("mobilemamba_b1", "mobilemamba_t2"),
    "ViM2": Family("vim2_tiny", "vim2_tiny"),
    "Vim": Family("vim_small_pyramid", "vim_tiny"),
    "PlainMamba": Family("plainmamba_l2_pyramid", "plainmamba_l1"),
    "ShuffleMamba": Family("shufflemamba_small_pyramid", "shufflemamba_tiny"),
    "Adventurer": Family("adventurer_small_patch16_pyramid", "adventurer_tiny_patch16"),
    "VSSD": Family("vssd_tiny", "vssd_micro"),
    "EfficientViM": Family("efficientvim_m4_pyramid", "efficientvim_m1_pyramid"),
    "ViL": Family("vil2_small_pyramid", "vil2_tiny"),
    "Vision-RWKV": Family("vision_rwkv_small_pyramid", "vision_rwkv_tiny"),
    "RWKV-SAM": Family("rwkv_sam_small", "rwkv_sam_tiny"),
}
CONTROLS = {  # what the families are held against: an attention, a convolution, and Mamba's block without its scan
    "Swin-T": "swin_tiny_patch4_window7_224",
    "ConvNeXt-T": "convnext_tiny",
    "MambaOut-T": "mambaout_tiny",
}
CONTROL_FAMILY = "MambaOut"  # of ours; timm's own model of it is among the controls


def build(name: str, side: int, *, features: bool = False, materialised: bool = False) -> nn.Module:
    """A model in evaluation, with weights as new and the same in every process.

    Args:
        name: ours or timm's. side: of the images; models with position embeddings or windows are built for it.
        features: the maps that a dense decoder takes, in place of class scores.
        materialised: attention that holds its matrix of weights, as the first transformers' code did, in place of
            torch's fused one.
    """
    options: dict[str, Any] = {"features_only": True} if features else {"num_classes": 1000}
    if name.startswith(("swin", "deit")):
        options["img_size"] = side
    torch.manual_seed(0)
    before = use_fused_attn()
    set_fused_attn(not materialised)  # timm's switch, read when a model is built
    try:
        return timm.create_model(name, **options).eval()
    finally:
        set_fused_attn(bool(before))


def image(side: int) -> Tensor:
    """One image, [1, 3, side, side]."""
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def call(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """The model on one image, without gradients."""
    return torch.no_grad()(lambda: model(x))


def prepare(name: str, side: int, features: bool = False, materialised: bool = False) -> Callable[[], object]:
    """That of a model by its name, for `memory.extra_mib`; arguments as of `build`."""
    return call(build(name, side, features=features, materialised=materialised), image(side))


def extra_mib_of(cases: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The most memory that `prepare`'s calls hold beyond weights and image; None where the system does not tell."""
    return extra_mib_of_each(f"{__name__}:prepare", cases, [{**case, "side": 32} for case in cases])


def weights_mib(model: nn.Module) -> float:
    """Parameters and buffers."""
    return sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers())) / 2**20

"""The goldens of VM-UNet and MHS-VM: the nets, their blocks and the multi-head scan."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor
from watch import Watch

from statefield.backbones._mixers import CrossScanMixer
from statefield.backbones._mixers.multi_head_scan import MultiHeadScan, ScanHead
from statefield.backbones.vmamba import VMambaBlock
from statefield.errors import ConfigError
from statefield.tasks.medical.nets import MultiHeadScanUNet, VMUNet, vm_unet

_WIDTHS = {"dims": "dims", "depths": "depths", "depths_decoder": "decoder_depths", "d_state": "d_state"}
_TRAINING_ONLY = ("drop_path", "drop_path_rate", "drop_rate", "attn_drop_rate", "load_ckpt_path", "use_checkpoint")
_HEAD_NAMES = "CXSZ"


def _as_sequence(x: Tensor) -> Tensor:  # [B, H, W, s] -> [B, s, L]
    return x.flatten(1, 2).transpose(1, 2)


def _watch_heads(watch: Watch, scan: MultiHeadScan, prefix: str) -> None:
    for letter, head in zip(_HEAD_NAMES, scan.heads, strict=False):
        assert isinstance(head, ScanHead)
        watch.on(head, f"{prefix}scanhead_{letter} ", _as_sequence)
        watch.on(head, f"{prefix}scanhead_{letter} after", _as_sequence)


def _watched(net: VMUNet, prefix: str) -> Watch:
    watch = Watch()
    watch.on(net.stem, f"{prefix}patch_embed")
    last = len(net.stages) - 1
    for index, stage in enumerate(net.stages):
        closing = net.stages[index + 1].downsample if index < last else stage
        watch.on(closing.blocks if index == last else closing, f"{prefix}layers.{index}")
        for place, block in enumerate(stage.blocks):
            watch.on(block, f"{prefix}layers.{index}.blocks.{place}")
            if isinstance(net, MultiHeadScanUNet):
                inner = f"{prefix}layers.{index}.blocks.{place}.self_attention.mhs"
                watch.on(block.mixer.scan, inner)
                _watch_heads(watch, block.mixer.scan, f"{inner}.")
    for index, stage in enumerate(net.decoder):
        watch.on(stage, f"{prefix}layers_up.{index}")
    watch.on(net.final_up, f"{prefix}final_up")
    return watch


def _run(net: VMUNet, first: str, prefix: str) -> Any:
    watch = _watched(net, prefix)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        x = inputs["x"]
        logits = net(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 and net.in_channels == 3 else x)
        single = logits.shape[1] == 1
        ends = {first: logits, "wrapper output": logits.sigmoid() if single else logits}
        return ends | watch.longest_first()

    return run


@builder("vm_unet", "VMUNet")
def _vm_unet(kwargs: dict[str, Any]) -> Built:
    channels = {"input_channels": "in_channels", "num_classes": "out_channels"}
    options = {"in_channels": 3, "out_channels": 1} | take(kwargs, channels | _WIDTHS, _TRAINING_ONLY)
    net = VMUNet(2, options.pop("in_channels"), options.pop("out_channels"), **options)
    return Built(_run(net, "vmunet(x): logits", "vmunet."), net, vm_unet.checkpoint_filter_fn)


def _core(kwargs: dict[str, Any], net_cls: Any, **extra: Any) -> Built:
    channels = {"in_chans": "in_channels", "num_classes": "out_channels"}
    fixed = (*_TRAINING_ONLY, "patch_size", "norm_layer", "patch_norm", "route_size", "dims_decoder")
    options = {"in_channels": 3, "out_channels": 1000} | take(kwargs, channels | _WIDTHS, fixed)
    net = net_cls(2, options.pop("in_channels"), options.pop("out_channels"), **options, **extra)
    return Built(_run(net, "logits", ""), net, vm_unet.checkpoint_filter_fn)


@builder("vm_unet", "VSSM")
def _vm_unet_core(kwargs: dict[str, Any]) -> Built:
    return _core(kwargs, VMUNet)


@builder("mhs_vm", "VSSM")
def _mhs_vm(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    return _core(kwargs, MultiHeadScanUNet, **_head_options(kwargs.pop("para_dict", {})))


def _head_options(told: dict[str, Any]) -> dict[str, Any]:
    told = dict(told)
    if not told.pop("with_proj", True):
        raise ConfigError("heads without a projection before them have no counterpart.")
    return take(told, {"head_num": "heads", "gfu_t": "threshold"})


@builder("mhs_vm", "MHSM")
def _multi_head_scan(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    heads = _head_options(kwargs.pop("para_dict", {}))
    options = take(kwargs, {"d_model": "channels", "d_state": "d_state"}, ("route_size_tokens", "route_size"))
    scan = MultiHeadScan(options.pop("channels"), **options, **heads)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        x = inputs["x"].permute(0, 2, 3, 1)
        found = {"MHSM output": scan(x)}
        shares = scan.in_proj(x).chunk(len(scan.heads), dim=-1)
        for letter, head, share in zip(_HEAD_NAMES, scan.heads, shares, strict=False):
            routes = head.scan(share)
            found[f"scanhead_{letter} after"] = _as_sequence(head.fuse(routes))
            found[f"scanhead_{letter}.scanning"] = routes.flatten(1, 2).permute(0, 2, 3, 1)  # [B, 4, s, L]
        return found

    return Built(run, scan, vm_unet.checkpoint_filter_fn)


@builder("vm_unet", "VSSBlock")
def _block(kwargs: dict[str, Any]) -> Built:
    options = take(kwargs, {"hidden_dim": "channels", "d_state": "d_state"}, (*_TRAINING_ONLY, "norm_layer"))
    channels = options.pop("channels")
    block = VMambaBlock(channels, CrossScanMixer(channels, **options))
    if "norm_layer" not in kwargs:  # the authors' bare block has another default than their nets give it
        block.norm1.eps = 1e-6

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {"block output": block(inputs["x"]), "self_attention": block.mixer(block.norm1(inputs["x"]))}

    return Built(run, block, vm_unet.checkpoint_filter_fn)

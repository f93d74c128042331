"""Every net that scans, without its scans: what stays is as it was, all is read, and a pixel sees its surroundings.

Norms over the whole image (instance and group norms) look far by themselves, and are no scan; they are taken out where
it is asked how far a pixel sees.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from statefield.backbones import without_scan
from statefield.backbones._mixers import Scanning
from statefield.tasks.common.network import SegmentationNet
from statefield.tasks.medical.nets import NETS

FLAT, DEEP = (1, 1, 128, 8), (1, 1, 48, 8, 8)
# The net's arguments, and an image that is long along its first axis.
TINY = {
    "lightm_unet": ({"filters": 8, "depths": (1, 1), "decoder_depths": (1,)}, FLAT),
    "mhs_vm": ({"dims": 8, "depths": (1, 1), "decoder_depths": (1, 1), "d_state": 2, "threshold": 0.0}, FLAT),
    "segmamba": ({"features": (4, 4, 8, 8), "depths": (1, 1, 1, 1), "hidden": 8}, (1, 1, 320, 16, 16)),
    "spatial_mamba_unet": ({"features": (4, 8), "depths": (1, 1)}, DEEP),
    "u_mamba": ({"features": (4, 8), "depths": (1, 1), "decoder_depths": (1,)}, FLAT),
    "vm_unet": ({"dims": 8, "depths": (1, 1), "decoder_depths": (1, 1), "d_state": 2}, FLAT),
    "xlstm_unet": ({"features": (4, 8), "depths": (1, 1), "decoder_depths": (1,)}, FLAT),
}
WITHOUT = {"dynunet", "residual_unet", "segresnet"}


def _net(name: str) -> nn.Module:
    torch.manual_seed(0)
    arguments, shape = TINY[name]
    return NETS[name](len(shape) - 2, 1, 2, **arguments)


def _image(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_every_net_scans_or_is_a_control_that_does_not():
    assert set(TINY) | WITHOUT == set(NETS)
    for name in TINY:
        assert any(isinstance(module, Scanning) for module in _net(name).modules()), name


@pytest.mark.parametrize("name", TINY)
def test_what_stays_is_as_it_was_and_all_of_it_learns(name):
    whole, net = _net(name).state_dict(), without_scan(_net(name))
    kept = net.state_dict()
    assert kept.keys() < whole.keys()
    assert [key for key, value in kept.items() if not torch.equal(value, whole[key])] == []
    shape = (2, 1, *[32] * 3) if name == "segmamba" else (2, 1, *[8] * (len(TINY[name][1]) - 2))
    net(_image(shape)).square().sum().backward()
    assert [key for key, parameter in net.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", TINY)
def test_a_pixel_hears_of_the_far_end_by_scans_alone(name, monkeypatch):
    monkeypatch.setattr(functional, "instance_norm", lambda x: x)
    net, image = _net(name).eval(), _image(TINY[name][1])
    _take_out_norms(net)
    changed = image.clone()
    changed[:, :, 0] += 10
    with torch.no_grad():
        difference = (net(changed) - net(image)).abs()
        assert difference[:, :, -1].max() > 0
        without_scan(net)
        difference = (net(changed) - net(image)).abs()
    assert difference[:, :, 0].max() > 0
    assert difference[:, :, -1].max() == 0


def test_an_encoder_under_a_decoder_of_smp_loses_its_scans_too():
    torch.manual_seed(0)
    arguments = {"dims": 8, "depths": (1, 1, 1, 1)}
    net = SegmentationNet("spatial_mamba_nano", in_channels=1, num_classes=2, encoder_args=arguments).eval()
    image = _image((1, 1, 640, 32))
    changed = image.clone()
    changed[:, :, 0] += 10
    with torch.no_grad():
        assert (net(changed) - net(image))[:, :, -1].abs().max() > 0
        count = sum(parameter.numel() for parameter in net.parameters())
        without_scan(net)
        assert torch.equal(net(changed)[:, :, -1], net(image)[:, :, -1])
    assert sum(parameter.numel() for parameter in net.parameters()) < count


def _take_out_norms(net: nn.Module) -> None:
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d | nn.GroupNorm):
                setattr(module, name, nn.Identity())

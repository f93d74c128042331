"""The control without scan: every mixer becomes local, keeps all else, and holds no parameter that nothing reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from statefield.backbones import BACKBONES, create_model, without_scan
from statefield.backbones._mixers import (
    TRI_ORIENTED,
    BidirectionalMixer,
    ChannelScanMixer,
    CrossDualityMixer,
    CrossScanMixer,
    DirectionAwareMixer,
    DualityMixer,
    HiddenStateMixer,
    MatrixMemoryMixer,
    MultiHeadScanMixer,
    NonCausalDualityMixer,
    OrientedMixer,
    Scanning,
    SpatialMix,
    StructureAwareMixer,
)
from statefield.backbones._mixers.atrous import AtrousScanMixer
from statefield.backbones._mixers.deformable import DeformableScanMixer
from statefield.backbones._mixers.multi_scale import MultiScaleMixer
from statefield.backbones._mixers.wavelet import WaveletScanMixer
from statefield.errors import ConfigError

SEQUENCE, MAP, VOLUME = (1, 150, 8), (1, 21, 19, 8), (1, 7, 15, 13, 8)
# How to build a mixer of 8 channels, what it mixes, and how far its convolutions may look along each axis.
MIXERS = {
    "oriented": (lambda: OrientedMixer(8, d_state=2), SEQUENCE, 4),
    "oriented, map": (lambda: OrientedMixer(8, d_state=2), MAP, 4),  # its convolution follows the rows
    "three orientations": (lambda: OrientedMixer(8, d_state=2, routes=TRI_ORIENTED), VOLUME, 15),
    "bidirectional": (lambda: BidirectionalMixer(8, d_state=2), SEQUENCE, 4),
    "cross": (lambda: CrossScanMixer(8, d_state=2), MAP, 2),
    "cross, volume": (lambda: CrossScanMixer(8, d_state=2, spatial_dims=3), VOLUME, 2),
    "cross duality": (lambda: CrossDualityMixer(16, d_state=4, heads=2), (1, 21, 19, 16), 2),
    "direction aware": (lambda: DirectionAwareMixer(8, d_state=2), MAP, 4),
    "duality": (lambda: DualityMixer(8, d_state=4, head_dim=8), SEQUENCE, 4),
    "non-causal duality": (lambda: NonCausalDualityMixer(8, heads=2, d_state=4), MAP, 2),
    "multi-head": (lambda: MultiHeadScanMixer(8, d_state=2), MAP, 2),
    "atrous": (lambda: AtrousScanMixer(8, d_state=2), MAP, 2),
    "deformable": (lambda: DeformableScanMixer(8), MAP, 3),
    "wavelet": (lambda: WaveletScanMixer(8), MAP, 5),
    "wkv": (lambda: SpatialMix(8, layer=1, num_layers=2), MAP, 2),
    "structure aware": (lambda: StructureAwareMixer(8, d_state=2), MAP, 7),
    "structure aware, volume": (lambda: StructureAwareMixer(8, spatial_dims=3), VOLUME, 7),
}


def _seeded(build) -> nn.Module:
    torch.manual_seed(0)
    module = build().eval()
    with torch.no_grad():  # initial values of zero or one would hide what is read
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def _reached(module: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """The cells, as coordinates [cells, axes], whose result changes with the first cell's input."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[(0, *[0] * (len(shape) - 2))] += 1
    with torch.no_grad():
        return (module(changed) - module(x)).abs().amax(-1)[0].nonzero()


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_without_its_scan_looks_no_farther_than_its_convolutions(name):
    build, shape, reach = MIXERS[name]
    mixer = _seeded(build)
    assert int(_reached(mixer, shape).max()) > reach or shape is VOLUME
    before = len(_reached(mixer, shape))
    local = _reached(without_scan(mixer), shape)
    assert 1 <= len(local) < before / 2
    assert int(local.max()) <= reach


@pytest.mark.parametrize("name", MIXERS)
def test_what_stays_is_as_it_was_and_all_of_it_is_read(name):
    build, shape, _ = MIXERS[name]
    whole = {key: value.clone() for key, value in _seeded(build).state_dict().items()}
    mixer = without_scan(_seeded(build))
    kept = mixer.state_dict()
    assert kept.keys() < whole.keys()
    for key, value in kept.items():  # of a projection to value, gate and more the first rows
        assert torch.equal(value, whole[key][: len(value)] if value.dim() else whole[key]), key
    mixer(torch.randn(shape)).square().sum().backward()
    learned = {key: parameter for key, parameter in mixer.named_parameters() if parameter.requires_grad}
    assert [key for key, parameter in learned.items() if parameter.grad is None] == []


def test_every_mixer_that_scans_is_tried_here():
    def below(cls: type) -> set[type]:
        return {cls, *(one for each in cls.__subclasses__() for one in below(each))}

    tried = {type(module) for build, *_ in MIXERS.values() for module in build().modules()}
    apart = {ChannelScanMixer, HiddenStateMixer, MatrixMemoryMixer, MultiScaleMixer}  # in tests of their own
    bases = {"Scanning", "Recurrences"}
    assert {cls for cls in below(Scanning) if cls.__name__ not in bases} <= tried | apart


def test_a_matrix_memory_without_scan_gives_each_token_its_own_value():
    mixer = _seeded(lambda: MatrixMemoryMixer(8, conv="causal"))
    x = torch.randn(1, 40, 8)
    changed = x.clone()
    changed[0, 3] += 1
    with torch.no_grad():
        assert (mixer(changed, ()) - mixer(x, ()))[0, 20:].abs().max() > 0
        without_scan(mixer)
        difference = (mixer(changed, ()) - mixer(x, ())).abs().amax(-1)[0]
    assert difference.nonzero().flatten().tolist() == [3, 4, 5, 6]  # four taps
    assert {key.split(".")[0] for key in mixer.state_dict()} == {
        "in_proj", "conv", "v_proj", "out_norm", "skip", "out_proj",
    }  # fmt: skip


def test_hidden_states_without_scan_are_the_cells_themselves():
    mixer = _seeded(lambda: HiddenStateMixer(8, d_state=4))
    x = torch.randn(1, 8, 5, 6)
    changed = x.clone()
    changed[0, :, 0, 0] += 1
    with torch.no_grad():
        assert (mixer(changed)[0] - mixer(x)[0])[..., 4, 5].abs().max() > 0
        without_scan(mixer)
        y, h = mixer(x)
        difference = (mixer(changed)[0] - y).abs().amax(1)[0]
    assert difference.nonzero().tolist() == [[0, 0]]
    assert y.shape == x.shape and torch.equal(h, y.flatten(2))


def test_a_scan_over_channels_and_one_of_two_scales_lose_what_drove_them():
    x = torch.randn(2, 9, 7, 8)
    for mixer in (ChannelScanMixer(8, d_state=2), MultiScaleMixer(8)):
        without_scan(mixer)
        assert not {"x_proj", "dt_proj", "dt_bias", "A_log", "D"} & {key for key, _ in mixer.named_parameters()}
        mixer(x).square().sum().backward()
        assert [key for key, parameter in mixer.named_parameters() if parameter.grad is None] == []


SMALLEST = {BACKBONES[name].family: name for name in reversed(list(BACKBONES))}  # they are listed smallest first
SCANNING = {family: name for family, name in SMALLEST.items() if family != "MambaOut"}


FAST = ("Spatial-Mamba", "Vim", "VMamba", "Vision-RWKV")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if family in FAST else pytest.mark.slow) for family, n in SCANNING.items()]
)
def test_a_backbone_of_every_family_gives_maps_of_the_same_shapes_with_fewer_parameters(name):
    """On meta tensors: shapes without computing."""
    with torch.device("meta"), torch.no_grad():
        model = create_model(name, features_only=True).eval()
        count = sum(parameter.numel() for parameter in model.parameters())
        without_scan(model)
        maps = model(torch.zeros(1, 3, 64, 64))
    assert sum(parameter.numel() for parameter in model.parameters()) < count
    info = zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    assert [tuple(each.shape) for each in maps] == [(1, width, 64 // step, 64 // step) for width, step in info]


def test_what_has_no_scan_is_refused():
    with pytest.raises(ConfigError, match="has no scan that could be left out"):
        without_scan(nn.Linear(2, 2))

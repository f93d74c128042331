"""Whole nets by name on volumes: any size, windows of one size, deep supervision, and which nets there are."""

from __future__ import annotations

import pytest
import torch

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.medical.nets import NETS
from statefield.tasks.medical.nets.whole import WholeNet, nets_of, nets_with_deep_supervision

RESIDUAL = {"features": [4, 8, 8], "depths": [1, 1, 1], "decoder_depths": [1, 1]}
NARROW = {
    "lightm_unet": {"filters": 8, "depths": [1, 1, 1], "decoder_depths": [1, 1]},
    "residual_unet": RESIDUAL,
    "segmamba": {"features": [4, 4, 4, 4], "depths": [1, 1, 1, 1], "hidden": 4},
    "u_mamba": RESIDUAL,
    "xlstm_unet": RESIDUAL,
}


def _net(name: str, **settings) -> WholeNet:
    net_args = settings.pop("net_args", NARROW[name])
    return WholeNet(name, spatial_dims=3, in_channels=2, num_classes=3, net_args=net_args, **settings)


@pytest.mark.parametrize("name", NARROW)
def test_volumes_of_any_size_are_padded_and_cropped(name):
    net = _net(name).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 2, 5, 17, 10)).shape == (1, 3, 5, 17, 10)
        whole = torch.randn(1, 2, 16, 32, 16)
        torch.testing.assert_close(net(whole), net.body(whole))
    assert net.image_size is None
    with pytest.raises(ShapeError, match=r"needs \[B, 2, D, H, W\]"):
        net(torch.zeros(1, 2, 16, 16))


def test_the_padding_repeats_the_far_edge():
    net = _net("residual_unet").eval()
    image = torch.randn(1, 2, 6, 8, 8)
    repeated = torch.cat([image, image[:, :, -1:], image[:, :, -1:]], dim=2)
    with torch.no_grad():
        torch.testing.assert_close(net(image), net(repeated)[:, :, :6])


def test_every_net_says_in_how_many_dimensions_it_exists():
    assert all(set(cls.dimensions) <= {2, 3} and cls.dimensions for cls in NETS.values())
    assert set(NARROW) <= set(nets_of(3)) <= set(NETS)
    assert {"vm_unet", "mhs_vm"} & set(nets_of(3)) == set()
    assert "segmamba" not in nets_of(2)
    for name, cls in NETS.items():
        for absent in {2, 3} - set(cls.dimensions):
            with pytest.raises(ConfigError, match=f"spatial_dims={absent} cannot be had"):
                WholeNet(name, spatial_dims=absent, in_channels=1, num_classes=2, net_args={})


@pytest.mark.parametrize("name", ["u_mamba", "xlstm_unet"])
def test_a_net_for_one_size_is_built_for_the_patch_unless_it_is_told_another(name):
    along = RESIDUAL | {"place": "encoder"}
    assert _net(name, net_args=along, image_size=(8, 16, 16)).image_size == (8, 16, 16)
    told = along | {"image_size": (8, 8, 8)}
    assert _net(name, net_args=told, image_size=(8, 16, 16)).image_size == (8, 8, 8)
    assert _net(name, image_size=(8, 16, 16)).image_size is None  # one layer at the bottom takes any size
    with pytest.raises(ConfigError, match=r"\(8, 16, 18\) are not multiples of \(4, 4, 4\)"):
        _net(name, net_args=along, image_size=(8, 16, 18))


@pytest.mark.parametrize("name", ["residual_unet", "u_mamba", "xlstm_unet"])
def test_with_deep_supervision_there_are_coarser_logits_in_training_only(name):
    assert name in nets_with_deep_supervision(3)
    net = _net(name, deep_supervision=True, image_size=(8, 16, 16))
    image = torch.randn(2, 2, 8, 16, 16)
    assert [tuple(logits.shape) for logits in net(image)] == [(2, 3, 8, 16, 16), (2, 3, 4, 8, 8)]
    sum(logits.sum() for logits in net(image)).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    with pytest.raises(ShapeError, match=r"multiples of \(4, 4, 4\)"):
        net(torch.randn(1, 2, 8, 16, 18))
    with torch.no_grad():
        assert net.eval()(torch.randn(1, 2, 7, 16, 18)).shape == (1, 3, 7, 16, 18)


def test_a_patch_that_shrinks_to_one_voxel_is_refused_where_norms_need_more():
    for name, size in (("residual_unet", (4, 3, 4)), ("segmamba", (16, 16, 16))):
        with pytest.raises(ConfigError, match=r"to a single pixel.*larger along one axis"):
            _net(name, image_size=size)
    _net("lightm_unet", image_size=(4, 4, 4))  # its norms are over groups of channels
    _net("residual_unet", image_size=(4, 4, 8))(torch.randn(1, 2, 4, 4, 8)).sum().backward()


def test_deep_supervision_of_a_net_with_one_output_is_refused_and_others_are_named():
    with pytest.raises(ConfigError, match=r"'segmamba' has one output only.*residual_unet, .*u_mamba"):
        _net("segmamba", deep_supervision=True)

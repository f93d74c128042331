"""The Spatial-Mamba U-Net in two and three dimensions: shapes, gradients, implementations, initial values, control."""

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from statefield.backbones import without_scan
from statefield.backbones._mixers import StructureAwareMixer
from statefield.errors import ConfigError, ShapeError
from statefield.kernels import native, use_kernels
from statefield.tasks.medical.nets import SpatialMambaUNet

SMALL = {"features": (4, 8, 8), "depths": (1, 1, 2)}
TINY = {"features": (32, 64, 128, 256, 512), "depths": (1, 2, 4, 8, 4)}


def _small(spatial_dims: int, **options) -> SpatialMambaUNet:
    torch.manual_seed(0)
    return SpatialMambaUNet(spatial_dims, 1, 2, **(SMALL | options))


def _image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "spatial_dims, options, count",
    [(2, {}, 4_144_734), (3, {}, 6_321_150), (2, TINY, 28_301_561), (3, TINY, 37_006_649)],
)
def test_parameters_are_as_many_as_the_documents_say(spatial_dims, options, count):
    with torch.device("meta"):
        net = SpatialMambaUNet(spatial_dims, 1, 3, **options)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize("shape", [(16, 8), (8, 16, 4)])
def test_logits_have_the_size_of_the_image_and_every_parameter_learns(shape):
    net = SpatialMambaUNet(len(shape), 2, 3, **SMALL)
    logits = net(_image(2, 2, *shape))
    assert logits.shape == (2, 3, *shape)
    logits.square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    assert net.no_weight_decay() <= {name for name, _ in net.named_parameters()}


def test_strides_may_differ_by_axis():
    net = _small(3, strides=(1, (1, 2, 2), 2)).eval()
    assert net.multiple == (2, 4, 4)
    with torch.no_grad():
        assert net(_image(1, 1, 6, 8, 12)).shape == (1, 2, 6, 8, 12)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_deep_supervision_gives_a_list_in_training_alone(spatial_dims):
    net, x = _small(spatial_dims, deep_supervision=True), _image(2, 1, *[8] * spatial_dims)
    assert [tuple(level.shape[2:]) for level in net(x)] == [(8,) * spatial_dims, (4,) * spatial_dims]
    net.eval()
    torch.testing.assert_close(net(x), net.all_logits(x)[0])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_works_inside_monais_sliding_window(spatial_dims):
    net, image = _small(spatial_dims).eval(), _image(1, 1, *[8] * spatial_dims)
    with torch.no_grad():
        torch.testing.assert_close(sliding_window_inference(image, image.shape[2:], 1, net), net(image))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_native_and_chunked_kernels_give_what_the_reference_gives(spatial_dims):
    net, image = _small(spatial_dims), _image(2, 1, *[8] * spatial_dims)

    def run(implementation: str) -> tuple[torch.Tensor, ...]:
        with use_kernels(implementation):
            logits = net(image)
            return logits, *torch.autograd.grad(logits.square().mean(), list(net.parameters()))

    wanted = run("reference")
    for implementation in ("chunked",) if native.unavailable() else ("chunked", "native"):
        for found, expected in zip(run(implementation), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_fusion_of_a_constant_begins_as_on_a_map():
    of_map, of_volume = (StructureAwareMixer(4, spatial_dims=dims).fusion for dims in (2, 3))
    for ours, theirs in zip(of_volume.weight(), of_map.weight(), strict=True):
        torch.testing.assert_close(ours.sum((1, 2, 3)), theirs.sum((1, 2)))


def test_initial_values_of_the_encoder_are_spatial_mambas():
    net = _small(3, features=(4, 32, 32))
    linear = next(module for module in net.encoder.modules() if isinstance(module, nn.Linear))
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    mixer = next(module for module in net.encoder.modules() if isinstance(module, StructureAwareMixer))
    assert torch.equal(mixer.A_log, torch.zeros_like(mixer.A_log)) and torch.equal(mixer.D, torch.ones(64))
    step = nn.functional.softplus(mixer.dt_bias)
    assert step.min() >= 1e-4 and step.max() <= 0.1 + 1e-6


def test_a_voxel_at_the_far_end_of_the_scan_is_seen_and_without_scan_it_is_not():
    """In the first scanning stage: the last voxel, 24 slices behind the first, hears of it by the scan alone."""
    stage = _small(3, depths=(1, 1, 1)).encoder[1].eval()
    with torch.no_grad():
        for module in stage.modules():
            if isinstance(module, StructureAwareMixer):
                module.dt_bias.fill_(-6)  # forgets slowly
                module.in_proj.weight.mul_(50)
    image = _image(1, 4, 48, 4, 4)
    changed = image.clone()
    changed[:, :, 0, 0, 0] += 100
    with torch.no_grad():
        assert (stage(changed) - stage(image))[:, :, -1].abs().max() > 1e-6
        without_scan(stage)
        assert torch.equal(stage(changed)[:, :, -1], stage(image)[:, :, -1])


def test_it_is_exported_with_its_operators():
    net = _small(3).eval()
    image = _image(1, 1, 8, 8, 8)
    program = torch.export.export(net, (image,))
    called = {str(node.target) for node in program.graph.nodes}
    assert any("statefield.state_fusion_3d" in target for target in called)
    torch.testing.assert_close(program.module()(image), net(image))


def test_stages_and_sides_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="names 3 stages, and depths 2"):
        SpatialMambaUNet(3, 1, 2, features=(4, 8, 8), depths=(1, 1))
    with pytest.raises(ConfigError, match="spatial_dims=1"):
        SpatialMambaUNet(1, 1, 2)
    with pytest.raises(ShapeError, match="multiples of 4"):
        _small(2)(torch.zeros(1, 1, 8, 6))

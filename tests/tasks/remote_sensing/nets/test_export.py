"""Every net is exported as one graph that gives what the net gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from statefield.tasks.remote_sensing.nets import (
    FCSiamDiff,
    MambaBDA,
    MambaSCD,
    MorpMamba,
    RSMamba,
    SpectralSpatialCNN,
    SpectralSpatialMamba,
)

SMALL = {"encoder_args": {"dims": 8, "depths": (1, 1, 1, 1)}, "width": 8}
CASES: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "semantic change": (lambda: MambaSCD(13, **SMALL), [(1, 13, 37, 50)] * 2),
    "damage, another encoder": (lambda: MambaBDA(encoder="convnext_atto", width=8), [(1, 3, 64, 70)] * 2),
    "fc_siam_diff": (lambda: FCSiamDiff(width=4), [(1, 3, 33, 40)] * 2),
    "rsmamba": (lambda: RSMamba(size=(8, 2), num_classes=5, image_size=32), [(1, 3, 32, 45)]),
    "cnn3d": (lambda: SpectralSpatialCNN(20, 9), [(2, 20, 5, 5)]),
    "spectral_spatial_mamba": (lambda: SpectralSpatialMamba(20, 9), [(2, 20, 7, 7)]),
    "morpmamba": (lambda: MorpMamba(15, 9), [(2, 15, 4, 4)]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_exported_graph_gives_the_same(name):
    torch.manual_seed(0)
    build, shapes = CASES[name]
    net, images = build().eval(), tuple(torch.randn(shape) for shape in shapes)
    with torch.no_grad():
        expected, found = net(*images), torch.export.export(net, images).module()(*images)
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        expected, found = (expected,), (found,)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)

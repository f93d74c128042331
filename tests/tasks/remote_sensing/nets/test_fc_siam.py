"""FC-Siam-diff: its size, its skips, and images of any sides."""

import pytest
import torch

from statefield.errors import ShapeError
from statefield.tasks.remote_sensing.nets import CHANGE_NETS, FCSiamDiff


def dates(channels: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.randn(2, 2, channels, height, width, generator=torch.Generator().manual_seed(0))
    return first, second


def test_has_the_size_that_comparisons_give_it():
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in FCSiamDiff(3, 2).parameters())
    # 3 x 3 convolutions with bias, two values a channel for each norm: 1.35 M in the tables of later papers
    pairs = [(3, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 128)]
    pairs += [(256, 128), (128, 128), (128, 64), (128, 64), (64, 64), (64, 32), (64, 32), (32, 16), (32, 16)]
    enlarging, last = [(128, 128), (64, 64), (32, 32), (16, 16)], (16, 2)
    convolutions = sum(9 * entering * leaving + leaving for entering, leaving in [*pairs, *enlarging, last])
    assert count == convolutions + sum(2 * leaving for _, leaving in pairs) == 1_350_146


@pytest.mark.parametrize("sides", [(32, 32), (37, 51), (16, 90), (5, 3)])
def test_logits_have_the_sides_of_the_image(sides):
    net = FCSiamDiff(13, 2, width=4).eval()
    with torch.no_grad():
        assert net(*dates(13, *sides)).shape == (2, 2, *sides)


def test_every_parameter_learns():
    net = FCSiamDiff(3, 2, width=4, drop_rate=0.0).eval()
    net(*dates(3, 32, 32)).square().sum().backward()
    silent = [name for name, one in net.named_parameters() if one.grad is None or not one.grad.abs().max() > 0]
    assert silent == []


def test_two_equal_dates_have_no_difference_to_pass_on():
    net = FCSiamDiff(3, 2, width=4).eval()
    image, _ = dates(3, 32, 32)
    skipped = []
    for stage in net.up:
        stage.register_forward_hook(lambda _m, given, _o: skipped.append(given[0].chunk(2, dim=1)[1]))
    with torch.no_grad():
        net(image, image)
        assert [one.abs().max().item() for one in skipped] == [0.0] * 4
        skipped.clear()
        net(*dates(3, 32, 32))
    assert all(one.min() >= 0 and one.max() > 0 for one in skipped)


def test_the_way_up_begins_with_the_later_date():
    net = FCSiamDiff(3, 2, width=4).eval()
    before, after = dates(3, 32, 32)
    deepest = []
    net.enlarge[-1].register_forward_hook(lambda _m, given, _o: deepest.append(given[0]))
    with torch.no_grad():
        net(before, after), net(after, after), net(before, before)
    torch.testing.assert_close(deepest[0], deepest[1])
    assert not torch.allclose(deepest[0], deepest[2])


def test_refuses_dates_that_do_not_fit():
    net = FCSiamDiff(3, 2, width=4)
    before, after = dates(3, 32, 32)
    with pytest.raises(ShapeError, match="FCSiamDiff got images of shapes"):
        net(before, after[..., 1:])
    with pytest.raises(ShapeError, match=r"needs \[B, 3, H, W\]"):
        net(before[:, :2], after)


@pytest.mark.parametrize("name", CHANGE_NETS)
def test_every_net_of_two_dates_is_built_by_name_with_channels_and_classes(name):
    with torch.device("meta"):
        net = CHANGE_NETS[name](4, 3)
    assert net.in_channels == 4
    assert net.classifier.out_channels == 3

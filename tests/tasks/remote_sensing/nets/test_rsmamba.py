"""RSMamba: published sizes, patches, orders of tokens, and what is random when."""

import pytest
import torch

from statefield.backbones import without_scan
from statefield.backbones.checkpoints import load_entries
from statefield.errors import CheckpointError, ConfigError, ShapeError
from statefield.tasks.remote_sensing.nets import RSMamba, rsmamba

PUBLISHED = {"small": 4_351_104, "base": 6_377_088, "large": 16_241_152, "huge": 33_046_400}  # without the head


@pytest.fixture
def tiny():
    """The class with a size for tests: 8 channels, 2 layers."""

    def build(**options) -> RSMamba:
        torch.manual_seed(0)
        return RSMamba(num_classes=5, size=(8, 2), **{"image_size": 32} | options)

    return build


def image(height: int = 32, width: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_as_many_as_the_authors_code_has(size):
    with torch.device("meta"):
        backbone, classifier = RSMamba(num_classes=0, size=size), RSMamba(num_classes=21, size=size)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert count == PUBLISHED[size]
    head = (rsmamba.SIZES[size][0] + 1) * 21
    assert sum(parameter.numel() for parameter in classifier.parameters()) == count + head


def test_an_image_of_224_has_28_patches_a_side_the_last_ones_over_zeros(tiny):
    net = tiny(image_size=224)
    assert net.pos_embed.shape == (1, 784, 8)
    x = image(24, 20)
    patches = net.embed(x)
    assert patches.shape == (2, 8, 3, 3)
    padded = torch.zeros(2, 3, 32, 32)
    padded[..., :24, :20] = x
    torch.testing.assert_close(patches[:, :, 2, 2], net.patch_embed(padded[..., 16:32, 16:32])[:, :, 0, 0])


@pytest.mark.parametrize("sides", [(32, 32), (45, 27), (8, 8), (3, 70)])
def test_takes_images_of_any_sides(tiny, sides):
    with torch.no_grad():
        scores = tiny(in_channels=13).eval()(image(*sides, channels=13))
    assert scores.shape == (2, 5)
    assert scores.isfinite().all()


def test_every_parameter_learns(tiny):
    net = tiny()
    net(image()).square().sum().backward()
    silent = [name for name, one in net.named_parameters() if one.grad is None or not one.grad.abs().max() > 0]
    assert silent == []


def test_a_prediction_can_be_repeated_unless_orders_are_drawn_as_the_authors_do(tiny):
    with torch.no_grad():
        net = tiny().eval()
        torch.testing.assert_close(net(image()), net(image()), rtol=0, atol=0)
        assert not torch.equal(net.train()(image()), net(image()))
        fresh = tiny(shuffle="fresh").eval()
        assert not torch.equal(fresh(image()), fresh(image()))
        torch.manual_seed(3)
        first = fresh(image())
        torch.manual_seed(3)
        torch.testing.assert_close(fresh(image()), first, rtol=0, atol=0)


def test_layers_are_shuffled_apart_and_every_path_is_put_back(tiny):
    net = tiny().eval()
    orders = [net.orders(layer, 16, torch.device("cpu")) for layer in range(2)]
    assert orders[0][0] is None
    assert orders[0][1].tolist() == list(range(15, -1, -1))
    assert sorted(orders[0][2].tolist()) == list(range(16))
    assert not torch.equal(orders[0][2], orders[1][2])
    # a mixer that sees each token by itself gives the same in every order, so each path is 2 y and so is their mean
    layer, x = net.layers[0], torch.randn(1, 16, 8)
    layer.mixer = torch.nn.Linear(8, 8)
    torch.testing.assert_close(layer(x, torch.nn.Identity(), orders[0]), x + layer.mixer(x))


@pytest.mark.parametrize("tokens", [1, 2, 36, 784])
def test_fixed_orders_are_permutations_without_a_trend(tokens):
    orders = [rsmamba.scrambled_order(layer, tokens) for layer in range(48)]
    assert all(sorted(one.tolist()) == list(range(tokens)) for one in orders)
    if tokens >= 36:
        assert len({tuple(one.tolist()) for one in orders}) == 48
        places = torch.arange(float(tokens))
        trends = torch.stack([torch.corrcoef(torch.stack([places, one.float()]))[0, 1] for one in orders])
        # of random orders a correlation has the spread 1 / sqrt(tokens - 1), the mean of 48 a seventh of that
        spread = (tokens - 1) ** -0.5
        assert trends.abs().max() < 4 * spread
        assert trends.mean().abs() < 4 * spread / 48**0.5


def test_compiles_to_one_graph(tiny):
    net = tiny().eval()
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(image()), net(image()))


def test_a_gate_weighs_paths_by_their_means(tiny):
    layer = tiny().layers[0]
    paths = [torch.full((1, 4, 8), float(value)) for value in (0, 1, 2)]
    with torch.no_grad():
        layer.gate.weight.zero_()
        torch.testing.assert_close(layer.shares(paths), torch.full((1, 3), 1 / 3))
        layer.gate.weight[2, 16:] = 0.5  # the third path's mean, 2, over 8 channels: a score of 8
        expected = torch.tensor([[0.0, 0.0, 8.0]]).softmax(-1)
        torch.testing.assert_close(layer.shares(paths), expected)


@pytest.mark.parametrize(
    "options, gate",
    [
        ({"paths": ("forward",)}, None),
        ({"paths": ("forward", "reverse")}, (2, 16)),
        ({}, (3, 24)),
        ({"fusion": "mean"}, None),
    ],
)
def test_variants_of_the_paths(tiny, options, gate):
    net = tiny(**options).eval()
    assert (None if net.layers[0].gate is None else tuple(net.layers[0].gate.weight.shape)) == gate
    with torch.no_grad():
        assert net(image()).shape == (2, 5)


def test_step_sizes_begin_as_any_linear_layer_does(tiny):
    bias = tiny().layers[0].mixer.forwards.dt_proj.bias  # Mamba's own would lie between -9.2 and -2.2
    assert bias.abs().max() <= 1


def test_a_file_of_the_authors_loads_strictly(tiny):
    net = tiny()
    rename = {"head.": "head.fc.", "patch_embed.": "backbone.patch_embed.projection.", "norm.": "backbone.ln1."}
    rename |= {"pooled_norm.": "backbone.ln2.", "pre_norm.": "backbone.pre_norm.", "pos_embed": "backbone.pos_embed"}
    theirs = {}
    for name, value in net.state_dict().items():
        for ours, official in rename.items():
            if name.startswith(ours):
                theirs[official + name.removeprefix(ours)] = value
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            rest = rest.removeprefix("mixer.").removeprefix("forwards.")
            gate = rest == "gate.weight"
            theirs[f"backbone.gate_layers.{index}.0.weight" if gate else f"backbone.layers.{index}.{rest}"] = value
    report = load_entries(net, theirs, source="file")
    assert len(report.loaded) == len(theirs) == len(net.state_dict())
    assert [name for name in net.state_dict() if rsmamba.rename_official_key(name) != name] == []
    with pytest.raises(CheckpointError, match="pos_embed"):
        load_entries(tiny(image_size=64), theirs, source="file")


def test_a_control_without_scans_runs(tiny):
    net = without_scan(tiny()).eval()
    with torch.no_grad():
        assert net(image()).isfinite().all()


def test_refuses_what_it_cannot_do(tiny):
    with pytest.raises(ConfigError, match="no size 'giant'"):
        RSMamba(size="giant")
    with pytest.raises(ConfigError, match="first two or all three"):
        tiny(paths=("reverse",))
    with pytest.raises(ConfigError, match="fusion 'sum'"):
        tiny(fusion="sum")
    with pytest.raises(ShapeError, match=r"needs \[B, 3, H, W\]"):
        tiny()(image(channels=4))

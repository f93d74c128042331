"""ChangeMamba: published sizes, the authors' names, the three mechanisms, and any encoder, channels and sides."""

import re

import pytest
import torch
from torch import nn

from statefield.backbones import create_model, without_scan
from statefield.backbones.checkpoints import load_checkpoint, load_entries
from statefield.errors import CheckpointError, ConfigError, ShapeError, UnknownName
from statefield.tasks.remote_sensing.nets import (
    BuildingDamage,
    ChangeDecoder,
    MambaBCD,
    MambaBDA,
    MambaSCD,
    SemanticChange,
    SemanticDecoder,
    change_mamba,
)
from statefield.tasks.remote_sensing.nets.change_decoders import SpatioTemporalLevel

PUBLISHED = [  # verified by building the authors' code: net, size, all parameters, those of the encoder
    (MambaBCD, "tiny", 32_613_506, 27_993_984),
    (MambaSCD, "tiny", 37_125_641, 27_993_984),
    (MambaBDA, "tiny", 34_869_767, 27_993_984),
    (MambaBCD, "small", 53_999_618, 49_380_096),
    (MambaSCD, "small", 58_511_753, 49_380_096),
    (MambaBDA, "small", 56_255_879, 49_380_096),
    (MambaBCD, "base", 92_399_874, 87_534_592),
    (MambaSCD, "base", 97_034_889, 87_534_592),
    (MambaBDA, "base", 94_717_575, 87_534_592),
]
SMALL = {"encoder_args": {"dims": 8, "depths": (1, 1, 1, 1), "drop_path_rate": 0.0}, "width": 8}
NETS = [MambaBCD, MambaSCD, MambaBDA]
every_net = pytest.mark.parametrize("net_cls", NETS)
ENCODERS = {  # a scanning one, an isotropic one's pyramid, two convolutional ones, and one whose maps are channels-last
    "spatial_mamba_nano": {},
    "vim_tiny_pyramid": {"num_layers": 4, "dim": 16},
    "convnext_atto": {},
    "resnet10t": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 8, "depths": (1, 1, 1, 1), "strict_img_size": False},
}


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def dates(channels: int, height: int, width: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, batch, channels, height, width, generator=generator)
    return first, second


def all_logits(found: torch.Tensor | SemanticChange | BuildingDamage) -> list[torch.Tensor]:
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize("net_cls, size, whole, encoder", PUBLISHED)
def test_parameters_are_as_many_as_the_authors_code_has(net_cls, size, whole, encoder):
    with torch.device("meta"):
        net = net_cls(encoder=size)
    assert (parameters_of(net), parameters_of(net.encoder)) == (whole, encoder)


@every_net
@pytest.mark.parametrize("sides", [(32, 64), (37, 51), (5, 3)])
def test_logits_have_the_sides_of_the_image_whatever_they_are(net_cls, sides):
    net = net_cls(13, **SMALL).eval()
    with torch.no_grad():
        found = all_logits(net(*dates(13, *sides, batch=2)))
    classes = {MambaBCD: [2], MambaSCD: [2, 7, 7], MambaBDA: [2, 5]}[net_cls]
    assert [tuple(one.shape) for one in found] == [(2, count, *sides) for count in classes]
    assert all(one.isfinite().all() for one in found)


@every_net
def test_every_parameter_learns(net_cls):
    net = net_cls(3, **SMALL)
    for module in net.modules():  # stochastic depth may leave a block out
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    sum(one.square().sum() for one in all_logits(net(*dates(3, 64, 64, batch=2)))).backward()
    # what a batch norm subtracts again learns nothing: the bias of the convolution before it
    before_norms = {
        f"{name}.0.bias"
        for name, module in net.named_modules()
        if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d)
    }
    silent = [name for name, one in net.named_parameters() if one.grad is None or not one.grad.abs().max() > 0]
    assert set(silent) <= before_norms


@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_encoder_takes_thirteen_channels_and_odd_sides(encoder):
    net = MambaBCD(13, encoder=encoder, encoder_args=ENCODERS[encoder], width=8).eval()
    before, after = dates(13, 70, 91)
    with torch.no_grad():
        logits = net(before, after)
        padded = [nn.functional.pad(one, (0, 5, 0, 26), mode="replicate") for one in (before, after)]
        assert net.multiple == 32
        torch.testing.assert_close(logits, net(*padded)[..., :70, :91])
    assert logits.shape == (1, 2, 70, 91)
    assert len(net.widths) == 4


def test_the_encoder_sees_both_dates_with_the_same_weights():
    net = MambaBCD(3, **SMALL).eval()
    before, after = dates(3, 32, 32)
    with torch.no_grad():
        first, second = net.features(before, after)
        swapped = net.features(after, before)
        alone = net.encoder(before)
    for level in range(4):
        torch.testing.assert_close(first[level], alone[level])
        torch.testing.assert_close(first[level], swapped[1][level])
        torch.testing.assert_close(second[level], swapped[0][level])


class Recorder(nn.Module):
    """A block that changes nothing and remembers what it was given."""

    def __init__(self, _channels: int) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return x


def test_the_three_mechanisms_lay_out_the_dates_as_the_paper_says():
    level = SpatioTemporalLevel(2, 2, Recorder)
    for part in (level.parallel, level.cross, level.sequential):
        part.conv = nn.Identity()
    fused: list[torch.Tensor] = []
    level.fuse = nn.Identity()
    level.fuse.register_forward_hook(lambda _m, given, _o: fused.append(given[0]))
    before, after = torch.arange(12.0).view(1, 2, 2, 3), 100 + torch.arange(12.0).view(1, 2, 2, 3)
    level(before, after)

    assert level.parallel.block.seen[0].shape == (1, 2, 3, 4)  # [B, h, w, 2 C]
    # the first row of the first channel: before is 0, 1, 2, after is 100, 101, 102
    assert level.cross.block.seen[0][0, 0, :, 0].tolist() == [0, 100, 1, 101, 2, 102]
    assert level.sequential.block.seen[0][0, 0, :, 0].tolist() == [0, 1, 2, 100, 101, 102]
    torch.testing.assert_close(fused[0], torch.cat([before, after, before, after, before, after], dim=1))


def test_a_change_decoder_adds_coarser_levels_before_it_smooths():
    decoder = ChangeDecoder((3, 4), width=2, make_block=Recorder).eval()
    given = [torch.randn(1, 3, 7, 5), torch.randn(1, 4, 4, 3)]
    fine, coarse = (level(one, one) for level, one in zip(decoder.levels, given, strict=True))
    enlarged = nn.functional.interpolate(coarse, (7, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoder(given, given), decoder.smooth[0](enlarged + fine))


def test_a_semantic_decoder_has_blocks_behind_its_smoothing():
    decoder = SemanticDecoder((3, 4), width=2, make_block=Recorder).eval()
    given = [torch.randn(1, 3, 7, 5), torch.randn(1, 4, 4, 3)]
    decoder(given)
    coarse = decoder.deepest.conv(given[1])
    enlarged = nn.functional.interpolate(coarse, (7, 5), mode="bilinear", align_corners=False)
    smoothed = decoder.smooth[0](enlarged + decoder.lateral[0](given[0]))
    torch.testing.assert_close(decoder.blocks[0].block.seen[0].permute(0, 3, 1, 2), smoothed)
    torch.testing.assert_close(decoder(given), decoder.last(smoothed))


def test_one_classifier_serves_both_dates_of_semantic_change():
    net = MambaSCD(3, **SMALL).eval()
    net.decoder_after = net.decoder_before
    before, after = dates(3, 32, 32)
    with torch.no_grad():
        there, back = net(before, after), net(after, before)
    torch.testing.assert_close(there.before, back.after)
    torch.testing.assert_close(there.after, back.before)
    assert not torch.allclose(there.change, back.change)  # the order of the dates matters to it


def test_buildings_are_found_in_the_image_before_alone():
    net = MambaBDA(3, **SMALL).eval()
    before, after = dates(3, 32, 32)
    with torch.no_grad():
        first, second = net(before, after), net(before, before)
    torch.testing.assert_close(first.building, second.building)
    assert not torch.allclose(first.damage, second.damage)


@every_net
def test_a_control_without_scans_is_as_wide_and_lacks_only_the_recurrences(net_cls):
    net, control = (net_cls(3, encoder="convnext_atto", width=8) for _ in range(2))
    lost = set(net.state_dict()) - set(without_scan(control).state_dict())
    assert {name.rpartition(".")[2] for name in lost} == {"x_proj", "dt_proj", "dt_bias", "A_log", "D"}
    with torch.no_grad():
        assert all(one.isfinite().all() for one in all_logits(control.eval()(*dates(3, 64, 64))))


def test_refuses_what_it_cannot_do():
    with pytest.raises(UnknownName, match="spatial_mamba_tiny"):
        MambaBCD(encoder="spatial_mamba_tini")
    with pytest.raises(ConfigError, match=r"a pyramid is needed.*'vim_tiny_pyramid'"):
        MambaBCD(encoder="vim_tiny", encoder_args={"num_layers": 4, "dim": 16})
    with pytest.raises(ConfigError, match="no_such"):
        MambaBCD(encoder="convnext_atto", encoder_args={"no_such": 1})
    with pytest.raises(ConfigError, match=r"no depth: block_args may hold d_state"):
        MambaBCD(**SMALL, block_args={"depth": 1})
    net = MambaBCD(3, **SMALL)
    before, after = dates(3, 32, 32)
    with pytest.raises(ShapeError, match=r"image after of shape \[1, 2, 32, 32\] and needs \[B, 3, H, W\]"):
        net(before, after[:, :2])
    with pytest.raises(ShapeError, match="align the rasters"):
        net(before, after[..., 1:])
    with pytest.raises(ConfigError, match="one level at least"):
        ChangeDecoder(())


def official_name(name: str, parts: dict[str, str]) -> str:
    """What the authors call a parameter of ours: the way back, written apart from the way there."""
    part, rest = name.split(".", 1)
    mixer = {"dt_proj": "dt_projs_weight", "dt_bias": "dt_projs_bias", "x_proj": "x_proj_weight", "A_log": "A_logs"}
    mixer |= {"D": "Ds", "conv.weight": "conv2d.weight"}

    def block(text: str) -> str:
        text = re.sub(r"^norm1\.", "norm.", text)
        if text.startswith("mixer."):
            inner = text.removeprefix("mixer.")
            return f"op.{mixer.get(inner, inner)}"
        return text

    if part == "encoder":
        rest = rest.removeprefix("model.")
        if stem := re.match(r"stem\.(conv1|norm1|conv2|norm2)\.", rest):
            where = {"conv1": 0, "norm1": 2, "conv2": 5, "norm2": 7}[stem[1]]
            return f"encoder.patch_embed.{where}.{rest[stem.end() :]}"
        if down := re.match(r"stages\.(\d)\.downsample\.(conv|norm)\.", rest):
            where = {"conv": 1, "norm": 3}[down[2]]
            return f"encoder.layers.{int(down[1]) - 1}.downsample.{where}.{rest[down.end() :]}"
        if norm := re.match(r"feature_norms\.(\d)\.", rest):
            return f"encoder.outnorm{norm[1]}.{rest[norm.end() :]}"
        inside = re.match(r"stages\.(\d)\.blocks\.(\d)\.", rest)
        return f"encoder.layers.{inside[1]}.blocks.{inside[2]}.{block(rest[inside.end() :])}"
    theirs = parts[part]
    if part.endswith("classifier"):
        return f"{theirs}.{rest}"
    level = int(found[0]) + 1 if (found := re.findall(r"\.(\d)\.", f".{rest}")) else 0
    tail = rest.split(".", 2)[-1]
    if rest.startswith("levels.") and ".fuse." not in rest:
        kind, place, inner = tail.split(".", 2)
        number = {"parallel": 1, "cross": 2, "sequential": 3}[kind]
        return f"{theirs}.st_block_{level}{number}.{0 if place == 'conv' else 2}.{block(inner)}"
    if rest.startswith("levels."):
        return f"{theirs}.fuse_layer_{level}.{tail.removeprefix('fuse.')}"
    semantic = "_semantic" if part != "decoder" else ""
    if rest.startswith("smooth."):
        return f"{theirs}.smooth_layer_{level}{semantic}.{tail}"
    if rest.startswith("last."):
        return f"{theirs}.smooth_layer_0_semantic.{rest.removeprefix('last.')}"
    if rest.startswith("lateral."):
        return f"{theirs}.trans_layer_{level}.{tail}"
    if rest.startswith("deepest.conv."):
        return f"{theirs}.st_block_4_semantic.0.{rest.removeprefix('deepest.conv.')}"
    if rest.startswith("deepest."):
        return f"{theirs}.st_block_4_semantic.2.{block(rest.removeprefix('deepest.block.'))}"
    return f"{theirs}.st_block_{level}_semantic.1.{block(tail.removeprefix('block.'))}"


PARTS = {
    MambaBCD: {"decoder": "decoder", "classifier": "main_clf"},
    MambaSCD: {
        "decoder": "decoder_bcd",
        "decoder_before": "decoder_T1",
        "decoder_after": "decoder_T2",
        "classifier": "main_clf_cd",
        "semantic_classifier": "aux_clf",
    },
    MambaBDA: {
        "decoder": "decoder_damage",
        "decoder_before": "decoder_building",
        "classifier": "main_clf",
        "semantic_classifier": "aux_clf",
    },
}


@every_net
def test_a_file_of_the_authors_loads_strictly_and_counted(net_cls, tmp_path):
    net, fresh = net_cls(3, **SMALL), net_cls(3, **SMALL)
    theirs = {official_name(name, PARTS[net_cls]): value for name, value in net.state_dict().items()}
    assert len(theirs) == len(net.state_dict())
    torch.save(theirs, tmp_path / "official.pth")
    report = load_checkpoint(fresh, tmp_path / "official.pth")
    assert len(report.loaded) == len(theirs)
    loaded = fresh.state_dict()
    assert [name for name, value in net.state_dict().items() if not torch.equal(loaded[name], value)] == []
    del theirs[next(name for name in theirs if "st_block_42.2.op.A_logs" in name)]
    with pytest.raises(CheckpointError, match=r"1 missing \(decoder.levels.3.cross.block.mixer.A_log\)"):
        load_entries(fresh, theirs, source="file")


def test_weights_of_a_classifier_fill_the_encoder_and_thirteen_channels_repeat_its_three(tmp_path):
    arguments = {"dims": 8, "depths": (1, 1, 1, 1), "expand": 2.0}
    classifier = create_model("vmamba_tiny_s2l5", num_classes=4, **arguments)
    torch.save({"model": classifier.state_dict()}, tmp_path / "classifier.pth")
    net = MambaBCD(13, **SMALL)
    report = load_checkpoint(net.encoder, tmp_path / "classifier.pth", fresh=("feature_norms",))
    assert len(report.fresh) == 8  # weight and bias of the norms that a classifier has not
    assert {name.split(".")[0] for name in report.set_aside} == {"norm", "head"}
    assert len(report.loaded) + len(report.set_aside) == len(classifier.state_dict())
    assert report.adapted == ("stem.conv1.weight: 3 -> 13 channels",)
    ours, theirs = net.encoder.model.stem.conv1.weight, classifier.stem.conv1.weight
    torch.testing.assert_close(ours[:, 3:6] * 13 / 3, theirs)


@every_net
def test_names_of_ours_are_left_alone(net_cls):
    for name in net_cls(3, **SMALL).state_dict():
        assert change_mamba.rename_official_key(name) == name


def test_recurrences_are_exempt_from_weight_decay():
    net = MambaBCD(3, encoder="spatial_mamba_nano", width=8)
    exempt = net.no_weight_decay()
    assert exempt <= set(dict(net.named_parameters()))
    assert {"decoder.levels.0.cross.block.mixer.A_log", "encoder.model.stages.0.blocks.0.mixer.A_log"} <= exempt

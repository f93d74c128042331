"""What every registered backbone must do to serve timm, segmentation_models_pytorch and training at large.

Tests over `list_models()` build the published configuration on the meta device; those that compute run a twin of each
family, of one block a stage and few channels.
"""

from __future__ import annotations

import re

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from statefield.backbones import BACKBONES, create_model, list_models
from statefield.backbones._isotropic import Isotropic
from statefield.backbones._register import check_backbone_name, has_hosted_weights
from statefield.backbones.checkpoints import backbone_of, load_entries
from statefield.errors import ConfigError

SHUFFLE_TWIN = {"dim": 8, "num_layers": 4, "d_state": 2, "img_size": 32, "drop_path_rate": 0.0, "shuffle_rate": 0.0}
TWINS = {
    "Spatial-Mamba": ("spatial_mamba_nano", {"dims": 8, "depths": (1, 1, 1, 1), "drop_path_rate": 0.0}),
    "EfficientVMamba": (
        "efficientvmamba_tiny",
        {"dims": 8, "depths": (1, 1, 1, 1), "d_state": 2, "drop_path_rate": 0.0},
    ),
    "MSVMamba": ("msvmamba_nano", {"dims": 8, "depths": (1, 1, 1, 1), "drop_path_rate": 0.0}),
    "VMamba": ("vmamba_tiny_s1l8", {"dims": 8, "depths": (1, 1, 1, 1), "drop_path_rate": 0.0}),
    "VMamba on Mamba-2": ("vmamba_tiny_m2", {"dims": 16, "depths": (1, 1, 1, 1), "d_state": 4, "drop_path_rate": 0.0}),
    "VMamba, vanilla": (
        "vmamba_vanilla_tiny",
        {"dims": 8, "depths": (1, 1, 1, 1), "d_state": 2, "drop_path_rate": 0.0},
    ),
    "ViM2": ("vim2_tiny", {"dims": 8, "depths": (1, 2, 1, 1), "d_state": 2, "drop_path_rate": 0.0}),
    "Res-VMamba": ("res_vmamba_small", {"dims": 8, "depths": (1, 1, 1, 1), "d_state": 2, "drop_path_rate": 0.0}),
    "VSSD": ("vssd_micro", {"dims": 16, "depths": (1, 1, 1, 1), "d_state": 4, "drop_path_rate": 0.0}),
    "Vim": ("vim_tiny_pyramid", {"dim": 8, "num_layers": 4, "d_state": 4, "img_size": 32}),
    "PlainMamba": ("plainmamba_l1_pyramid", {"dim": 8, "num_layers": 4, "d_state": 2, "img_size": 32}),
    "ViL": ("vil2_tiny_pyramid", {"dim": 8, "num_layers": 4, "img_size": 32}),
    "Vision-RWKV": ("vision_rwkv_tiny_pyramid", {"dim": 8, "num_layers": 4, "img_size": 32}),
    "Adventurer": (
        "adventurer_tiny_patch16_pyramid",
        {"dim": 8, "num_layers": 4, "d_state": 4, "head_dim": 8, "img_size": 32},
    ),
    "ShuffleMamba": (
        "shufflemamba_reg_tiny_pyramid",
        SHUFFLE_TWIN | {"registers": 3, "reduce": 2},
    ),
    "MambaOut": ("mambaout_femto_pyramid", {"dims": 8, "depths": (1, 1, 1, 1), "drop_path_rate": 0.0}),
    "EfficientViM": (
        "efficientvim_m1_pyramid",
        {"embed_dim": (16, 8, 8), "depths": (1, 1, 1), "state_dim": (4, 3, 2)},
    ),
    "EfficientViM, distilled": (
        "efficientvim_m1_dist_pyramid",
        {"embed_dim": (16, 8, 8), "depths": (1, 1, 1), "state_dim": (4, 3, 2)},
    ),
    "HRVMamba": (
        "hrvmamba_nano",
        {
            "dims": 8,
            "units": (1, 1, 1),
            "depths": (1, 1, 1),
            "num_bottlenecks": 1,
            "bottleneck_dim": 8,
            "fusion_dims": (8, 8, 16, 16),
            "drop_path_rate": 0.0,
        },
    ),
    "MobileMamba": (
        "mobilemamba_t2",
        {"dims": (24, 32, 32), "depths": (1, 1, 1), "expand": 0.5, "drop_path_rate": 0.0},
    ),
    "RWKV-SAM": ("rwkv_sam_tiny", {"dims": (8, 8, 8), "depths": (1, 1), "num_layers": 2}),
}
# The same families without a pyramid: maps of one size behind every block.
ISOTROPIC_TWINS = {
    "Vim": ("vim_tiny", {"dim": 8, "num_layers": 4, "d_state": 4, "img_size": 32}),
    "PlainMamba": (
        "plainmamba_l1",
        {"dim": 8, "num_layers": 4, "d_state": 2, "img_size": 32, "drop_path_rate": 0.0},
    ),
    "ViL": ("vil2_tiny", {"dim": 8, "num_layers": 4, "img_size": 32}),
    "ViL, first version": ("vil_tiny", {"dim": 8, "num_layers": 4, "img_size": 32}),
    "Adventurer": (
        "adventurer_tiny_patch8",
        {"dim": 8, "num_layers": 4, "d_state": 4, "head_dim": 8, "img_size": 32},
    ),
    "ShuffleMamba": (
        "shufflemamba_tiny",
        SHUFFLE_TWIN,
    ),
    "ShuffleMamba with registers": (
        "shufflemamba_reg_tiny",
        SHUFFLE_TWIN | {"registers": 3, "reduce": 2},
    ),
    "Vision-RWKV": ("vision_rwkv_small", {"dim": 8, "num_layers": 4, "img_size": 32, "drop_path_rate": 0.0}),
}
FIXED_STRIDES = (
    "Vim",
    "PlainMamba",
    "ViL",
    "Vision-RWKV",
    "Adventurer",
    "ShuffleMamba",
)  # of isotropic bodies
FIXED_STRIDES += ("EfficientViM", "EfficientViM, distilled")  # whose stem makes two of the maps
FIXED_STRIDES += ("HRVMamba",)  # whose branches meet by being enlarged
# The parts that maps do not need, where they are not a norm and a head.
HEAD_PARTS = {
    "MambaOut": {"head"},
    "EfficientViM": {"norm", "heads", "weights"},
    "EfficientViM, distilled": {"norm", "heads", "heads_dist", "weights", "weights_dist"},
    "HRVMamba": {"fusion", "head"},
    "MobileMamba": {"head"},
}
WITHOUT_EFFECT = (".mixer.A",)  # EfficientViM's: it cancels in the softmax, and is there for the weights' sake
DEEPER = ("MobileMamba",)  # whose last stage has stride 64
STRIDED_DECODERS = ("deeplabv3", "deeplabv3plus", "pan")  # ask the encoder for an output stride
SMP_DECODERS = (
    *("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet"),
    *("deeplabv3", "deeplabv3plus", "pan", "upernet", "segformer", "dpt"),
)

every_name = pytest.mark.parametrize("name", list_models())
# Traces of them take a quarter of a minute and more: left to the slow tests.
LONG_TRACES = ("Adventurer", "EfficientVMamba", "HRVMamba", "MSVMamba", "PlainMamba", "ViM2", "Vision-RWKV")

every_family = pytest.mark.parametrize("family", TWINS)
every_traced_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) if name in LONG_TRACES else name for name in TWINS]
)
every_isotropic_family = pytest.mark.parametrize("family", ISOTROPIC_TWINS)


def test_every_family_has_a_twin():
    assert {BACKBONES[name].family for name, _ in TWINS.values()} == {info.family for info in BACKBONES.values()}


def twin(family: str, **kwargs) -> nn.Module:
    name, small = TWINS[family]
    torch.manual_seed(0)
    return create_model(name, **(small | kwargs))


def isotropic_twin(family: str, **kwargs) -> nn.Module:
    name, small = ISOTROPIC_TWINS[family]
    torch.manual_seed(0)
    return create_model(name, **(small | kwargs))


def head_parts(family: str) -> set[str]:
    return HEAD_PARTS.get(family, {"norm", "head"})


def dilatable(family: str) -> bool:
    """Whether the family has an output stride. The others have to refuse it."""
    return family not in FIXED_STRIDES


def responses(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """All that a model says of an image, in one vector: class scores and every map."""
    last, maps = model.forward_intermediates(x)
    return torch.cat([model.forward_head(last).flatten(), *(feature_map.flatten() for feature_map in maps)])


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@every_name
def test_builds_on_the_meta_device_with_no_arguments_and_tells_its_pyramid(name):
    with torch.device("meta"):
        wrapped = timm.create_model(name, features_only=True)
        whole = timm.create_model(name)
    assert all(parameter.is_meta for parameter in whole.parameters())
    reductions = wrapped.feature_info.reduction()
    if isinstance(whole, Isotropic):
        assert len(reductions) == 4 and len(set(reductions)) == 1 and reductions[0] in (1, 2, 4, 8, 16)
    else:
        assert reductions == [4, 8, 16, 32]
    chosen = [whole.feature_info[index] for index in wrapped.feature_info.out_indices]
    assert wrapped.feature_info.channels() == [info["num_chs"] for info in chosen]
    for info in whole.feature_info:
        whole.get_submodule(info["module"])


@every_name
def test_the_cfg_names_the_first_convolution_and_the_classifier(name):
    with torch.device("meta"):
        model = timm.create_model(name, in_chans=7, num_classes=13)
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).weight.shape[1] == 7
    named = model.pretrained_cfg["classifier"]  # one, or the names of several that are added up
    heads = [model.get_submodule(head) for head in ((named,) if isinstance(named, str) else named)]
    assert all(head.out_features == 13 for head in heads)
    assert set(_classifiers(model)) == set(heads)
    model.reset_classifier(3)
    assert model.num_classes == 3 and all(head.out_features == 3 for head in _classifiers(model))
    assert not model.pretrained_cfg["fixed_input_size"]


def _classifiers(model: nn.Module) -> list[nn.Module]:
    """The linear layers that give class scores: one, or several that are added up."""
    given = model.get_classifier()
    parts = given if isinstance(given, tuple) else (given,)
    return [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]


@every_name
def test_every_parameter_belongs_to_a_layer_group_and_unknown_arguments_are_refused(name):
    from timm.models import group_parameters

    with torch.device("meta"):
        model = timm.create_model(name)
        for coarse in (False, True):
            groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
            assert set(groups) == {parameter for parameter, _ in model.named_parameters()}
            assert len(set(groups.values())) > 3
        assert model.no_weight_decay() <= {parameter for parameter, _ in model.named_parameters()}
        with pytest.raises(TypeError, match="nonsense"):
            timm.create_model(name, nonsense=1)


@pytest.mark.parametrize("name", [name for name in list_models() if not has_hosted_weights(name)])
def test_asking_for_weights_that_nobody_hosts_says_where_they_are(name):
    with pytest.raises(RuntimeError, match=rf"statefield convert FILE OUT.safetensors --model {name}"):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize("name", ["spatial_tresnet", "mamba_dla", "regnet_mamba", "res2mamba", "resnet18"])
def test_a_name_that_timm_owns_or_smp_rewires_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        check_backbone_name(name)


@every_family
def test_features_only_gives_the_same_maps_as_the_whole_model(family):
    whole, x = twin(family).eval(), image(2, 3, 64, 96)
    wrapped = twin(family, features_only=True).eval()
    report = load_entries(wrapped, whole.state_dict(), source="the whole model")
    assert {name.removeprefix("body.").split(".")[0] for name in report.set_aside} == head_parts(family)
    with torch.no_grad():
        last, inside = whole.forward_intermediates(x)
        outside = wrapped(x)
        torch.testing.assert_close(whole(x), whole.forward_head(last))
        torch.testing.assert_close(whole.forward_features(x), last)
    assert [tuple(m.shape[-2:]) for m in outside] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for ours, theirs in zip(outside, inside, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@every_family
@pytest.mark.parametrize("indices", [(1,), (0, 2), (-1,), (-3, -2)])
def test_chosen_maps_are_those_of_all_maps(family, indices):
    whole, x = twin(family).eval(), image(1, 3, 32, 32)
    wrapped = twin(family, features_only=True, out_indices=indices).eval()
    load_entries(wrapped, whole.state_dict(), source="the whole model")
    with torch.no_grad():
        everything = whole.forward_intermediates(x, intermediates_only=True)
        channels_last = whole.forward_intermediates(x, indices, output_fmt="NHWC", intermediates_only=True)
        chosen = wrapped(x)
    for index, ours, nhwc in zip(indices, chosen, channels_last, strict=True):
        torch.testing.assert_close(ours, everything[index], rtol=0, atol=0)
        torch.testing.assert_close(nhwc.permute(0, 3, 1, 2), everything[index], rtol=0, atol=0)
    assert wrapped.feature_info.channels() == [everything[index].shape[1] for index in indices]


@every_family
@pytest.mark.parametrize(("output_stride", "reductions"), [(8, [4, 8, 8, 8]), (16, [4, 8, 16, 16])])
def test_output_stride_is_honoured_and_reported_or_refused(family, output_stride, reductions):
    if not dilatable(family):
        with pytest.raises(ConfigError, match=f"output_stride {output_stride} cannot be had"):
            twin(family, features_only=True, output_stride=output_stride)
        return
    wrapped = twin(family, features_only=True, output_stride=output_stride).eval()
    assert wrapped.feature_info.reduction() == reductions
    with torch.no_grad():
        maps = wrapped(image(1, 3, 64, 32))
    assert [tuple(m.shape[-2:]) for m in maps] == [(64 // r, 32 // r) for r in reductions]


@every_family
@pytest.mark.parametrize("output_stride", [1, 4, 64])
def test_an_impossible_output_stride_is_refused(family, output_stride):
    with pytest.raises(ConfigError, match=f"output_stride {output_stride} "):
        twin(family, output_stride=output_stride)


@every_family
@pytest.mark.parametrize("in_chans", [1, 3, 13])
@pytest.mark.parametrize("size", [(64, 64), (37, 51), (5, 1)])
def test_any_channels_and_any_size(family, in_chans, size):
    wrapped = twin(family, features_only=True, in_chans=in_chans).eval()
    with torch.no_grad():
        maps = wrapped(image(2, in_chans, *size))
    for feature_map, reduction in zip(maps, (4, 8, 16, 32), strict=True):
        assert feature_map.shape[-2:] == tuple(-(-side // reduction) for side in size)
        assert torch.isfinite(feature_map).all()


@every_family
@pytest.mark.parametrize("decoder", SMP_DECODERS)
def test_smp_decoders_run_forward_and_backward(family, decoder):
    name, small = TWINS[family]
    if decoder in STRIDED_DECODERS and not dilatable(family):
        with pytest.raises(ConfigError, match="output_stride"):
            smp.create_model(decoder, f"tu-{name}", encoder_weights=None, **small)
        return
    side = 128 if decoder == "pan" else 64  # PAN's pooling pyramid needs 128
    options = small | ({"decoder_readout": "ignore"} if decoder == "dpt" else {})  # the others have no such readout
    model = smp.create_model(decoder, f"tu-{name}", encoder_weights=None, in_channels=2, classes=3, **options)
    logits = model.train()(image(2, 2, side, side))
    assert logits.shape == (2, 3, side, side)
    logits.square().mean().backward()
    unreached = {key for key, p in model.encoder.named_parameters() if p.requires_grad and p.grad is None}
    if decoder == "dpt":  # keeps the whole model, with a head that its maps do not pass
        unreached = {
            key
            for key in unreached
            if not key.removeprefix("model.").removeprefix("body.").startswith(tuple(head_parts(family)))
        }
    if decoder == "pspnet":  # reads the last of its maps alone
        elsewhere = ".exchanges." if family == "HRVMamba" else ".neck."
        unreached = {key for key in unreached if elsewhere not in key}
    assert unreached == set()
    assert model.encoder.model.get_parameter(_first_convolution(model.encoder.model)).grad.abs().max() > 0


def _first_convolution(model: nn.Module) -> str:
    prefix = "" if backbone_of(model) is model else "model."
    return f"{prefix}{backbone_of(model).pretrained_cfg['first_conv']}.weight"


@every_family
def test_gradient_checkpointing_gives_equal_gradients(family):
    model, x = twin(family).train(), image(2, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        responses(model, x).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@every_family
def test_evaluation_follows_every_change_of_a_parameter(family):
    """Nothing derived from weights is cached: eval, change, eval again shows the change, for each kind of parameter."""
    side = 128 if family in DEEPER else 64  # a recurrence over a single pixel forgets nothing
    model, x = twin(family).train(), image(1, 3, side, side)
    generator = torch.Generator().manual_seed(2)
    of_each_kind = {re.sub(r"(?<=\.)\d+(?=\.)", "#", name): name for name, _ in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # as new, a recurrence may add less than float32 resolves
            spread = 0.01 if name.endswith(".offset_mask.weight") else 0.3  # or points leave a map of four pixels
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
        for _ in range(20):  # statistics of batch norms: without them activations grow until sigmoids saturate
            model(image(2, 3, 64, 64))
        model.eval()
        before = responses(model, x)
        for name in (name for name in of_each_kind.values() if not name.endswith(WITHOUT_EFFECT)):
            parameter = model.get_parameter(name)
            kept = parameter.clone()
            parameter.add_(torch.rand(parameter.shape, generator=generator) + 0.5)
            assert (responses(model, x) - before).abs().max() > 0, f"{name} has no effect after an evaluation"
            parameter.copy_(kept)
        torch.testing.assert_close(responses(model, x), before, rtol=0, atol=0)


@every_family
def test_bfloat16_autocast_stays_finite_and_near(family):
    model, x = twin(family).train(), image(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        everything = responses(model, x)
    everything.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.requires_grad)
    model.eval()
    with torch.no_grad():
        exact = responses(model, x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = responses(model, x).float()
    # bfloat16 keeps 8 bits, so a relative error of about 1/256 enters at every layer
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


@every_traced_family
def test_compiles_as_one_graph(family):
    wrapped, x = twin(family, features_only=True).eval(), image(1, 3, 64, 32)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(wrapped, fullgraph=True, backend="aot_eager")(x)
        for ours, theirs in zip(compiled, wrapped(x), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="its poolings tie a program to the parities of the example")
@every_traced_family
def test_exports_once_for_every_size(family):
    wrapped, auto = twin(family, features_only=True).eval(), torch.export.Dim.AUTO
    with torch.no_grad():
        program = torch.export.export(
            wrapped, (image(2, 3, 64, 96),), dynamic_shapes=({0: auto, 2: auto, 3: auto},), strict=False
        )
        other = image(3, 3, 37, 70)
        for ours, theirs in zip(program.module()(other), wrapped(other), strict=True):
            torch.testing.assert_close(ours, theirs)


@every_family
def test_a_state_dict_survives_a_round_trip_through_a_fresh_model(family):
    first, second, x = twin(family).eval(), twin(family).eval(), image(1, 3, 32, 32)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.normal_()
        report = load_entries(second, first.state_dict(), source="first")
        assert len(report.loaded) == len(first.state_dict())
        torch.testing.assert_close(second(x), first(x), rtol=0, atol=0)
    assert backbone_of(second) is second


@every_isotropic_family
def test_isotropic_maps_are_the_blocks_tokens_without_class_tokens(family):
    whole, x = isotropic_twin(family, num_classes=5).eval(), image(2, 3, 48, 64)
    wrapped = isotropic_twin(family, features_only=True).eval()
    load_entries(wrapped, whole.state_dict(), source="the whole model")
    stride = whole.feature_info[0]["reduction"]
    with torch.no_grad():
        tokens, maps = whole.forward_intermediates(x)
        outside = wrapped(x)
        assert len(maps) == len(whole.blocks) == 4
        for ours, theirs in zip(outside, maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert all(m.shape == (2, whole.embed_dim, 48 // stride, 64 // stride) for m in maps)
        torch.testing.assert_close(whole(x), whole.forward_head(tokens))
        torch.testing.assert_close(whole.forward_features(x), tokens)
        normed = whole.forward_intermediates(x, [-1], norm=True, intermediates_only=True)[0]
        torch.testing.assert_close(whole.patches(tokens), normed.flatten(2).transpose(1, 2))


@every_isotropic_family
@pytest.mark.parametrize("size", [(64, 64), (37, 51), (5, 1)])
def test_isotropic_models_take_any_size(family, size):
    whole = isotropic_twin(family, num_classes=5, in_chans=2).eval()
    with torch.no_grad():
        scores = whole(image(2, 2, *size))
    assert scores.shape == (2, 5) and torch.isfinite(scores).all()


@every_isotropic_family
def test_shuffled_layers_change_training_alone_and_put_tokens_back(family):
    """Each block without exchange between tokens leaves no trace of the shuffle; with it, only training differs."""
    x = image(2, 3, 48, 64)
    plain, shuffled = isotropic_twin(family).eval(), isotropic_twin(family, shuffle_rate=1.0).eval()
    with torch.no_grad():
        torch.testing.assert_close(shuffled(x), plain(x), rtol=0, atol=0)
        plain.train(), shuffled.train()
        torch.manual_seed(0)
        assert (shuffled(x) - plain(x)).abs().max() > 0
        for model in (plain, shuffled):
            for block in model.blocks:
                block.forward = lambda tokens, grid: tokens * 2
        torch.testing.assert_close(shuffled(x), plain(x))
    assert shuffled.shuffle_rates == pytest.approx([0, 1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@every_isotropic_family
def test_gradient_checkpointing_gives_equal_gradients_in_an_isotropic_model(family, drop_path_rate):
    """The same layers are dropped in the second forward pass that checkpointing makes."""
    model = isotropic_twin(family, num_classes=3, drop_path_rate=drop_path_rate).train()
    x = image(2, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(2)
        model(x).square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)

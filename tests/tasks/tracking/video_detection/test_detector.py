"""The detector with a memory: it forgets between videos, takes any size, and learns through its memory."""

import copy
import dataclasses

import pytest
import torch
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from statefield.backbones import create_model
from statefield.errors import CheckpointError, ConfigError, ShapeError, UnknownName
from statefield.tasks.common.checkpointing import save_weights
from statefield.tasks.tracking.nets import MemoryAggregation, MemoryBank
from statefield.tasks.tracking.video_detection.detector import VideoDetector
from statefield.tasks.tracking.video_detection.instances import InstanceHead
from statefield.tasks.tracking.video_detection.recipe import DetectionConfig, MemoryConfig, VideoModelConfig

MEMORY = MemoryConfig(heads=2, max_length=60, key_length=20, kept_pixels=6, kept_proposals=5)
CONFIG = VideoModelConfig(
    encoder="spatial_mamba_nano",
    encoder_args={"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)},
    stride=8,
    channels=8,
    head_width=16,
    anchor_sizes=(16, 32),
    anchor_ratios=(1.0,),
    short_side=(32,),
    long_side=64,
    memory=MEMORY,
    detection=DetectionConfig(proposals=12, training_proposals=20, sampled_proposals=16, max_detections=10),
)


def built(num_classes: int = 3, **changes) -> VideoDetector:
    """A detector whose memory counts, as after training: a new one's adds nothing yet."""
    net = new(num_classes, **changes)
    learned(net)
    return net


def new(num_classes: int = 3, **changes) -> VideoDetector:
    torch.manual_seed(0)
    return VideoDetector(dataclasses.replace(CONFIG, **changes), num_classes)


def learned(*modules: torch.nn.Module) -> None:
    """Draw the output layers of aggregations as other layers are drawn."""
    for module in modules:
        for one in module.modules():
            if isinstance(one, MemoryAggregation):
                one.out.reset_parameters()


def frames(count: int, size: tuple[int, int] = (33, 47), seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for _ in range(count)]


def watched(net: VideoDetector, video: list[torch.Tensor], **started) -> list[torch.Tensor]:
    """Boxes and scores of each frame."""
    with torch.inference_mode():
        net.start(7, **started)
        found = [net.detect(frame) for frame in video]
    return [torch.cat((one.boxes, one.scores[:, None]), 1) for one in found]


def target(*boxes: list[float], label: int = 1) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.full((len(boxes),), label),
    }


def test_training_begins_at_the_detector_without_memory():
    """What the memory adds is learned from nothing: features of an untrained encoder would be noise to look at."""
    net, control = new(), new(memory=None).eval()
    shared = {name: value for name, value in net.state_dict().items() if "aggregation" not in name}
    assert shared.keys() == control.state_dict().keys()
    control.load_state_dict(shared)
    for found, expected in zip(watched(net.eval(), frames(3)), watched(control, frames(3)), strict=True):
        assert torch.equal(found, expected)
    losses = net.train().losses(frames(1), [target([2, 2, 20, 20])], [frames(2, seed=1)])
    sum(losses.values()).backward()
    outs = [one.out.weight.grad for one in net.modules() if isinstance(one, MemoryAggregation)]
    assert len(outs) == 3 and all(one.any() for one in outs)


def test_a_video_depends_on_no_video_before_it():
    net, first, second = built().eval(), frames(3, seed=1), frames(4, seed=2)
    alone = watched(net, second)
    watched(net, first)
    again = watched(net, second)
    assert len(alone) == 4
    assert all(torch.equal(one, other) for one, other in zip(alone, again, strict=True))


def test_a_frame_depends_on_the_frames_before_it_and_on_none_after():
    net, video = built().eval(), frames(4)
    whole = watched(net, video)
    assert all(torch.equal(one, other) for one, other in zip(watched(net, video[:2]), whole[:2], strict=True))
    other = watched(net, [*frames(1, seed=9), *video[1:]])
    assert not torch.equal(whole[1], other[1])
    control = built(memory=None).eval()
    assert torch.equal(watched(control, video)[3], watched(control, video[3:])[0])


def test_the_first_frame_of_pixels_alone_is_that_of_a_detector_without_memory():
    pixels = built(memory=dataclasses.replace(MEMORY, instances=False)).eval()
    control = built(memory=None).eval()
    control.load_state_dict({name: value for name, value in pixels.state_dict().items() if "pixels" not in name})
    first, second = watched(pixels, frames(2))
    assert torch.equal(first, watched(control, frames(1))[0])
    assert not torch.equal(second, watched(control, frames(2))[1])


def test_what_is_remembered_is_bounded():
    net = built().eval()
    watched(net, frames(20))
    most = MEMORY.max_length + max(MEMORY.kept_pixels, MEMORY.kept_proposals)
    banks = [net.pixels.bank, *(one.bank for one in net.instances.aggregations)]
    assert [bank.features.shape[1] for bank in banks] == [8, 16, 16]
    assert all(MEMORY.max_length - 6 <= len(bank) <= most for bank in banks)
    net.start(0)
    assert [len(bank) for bank in banks] == [0, 0, 0]


def test_references_fill_the_memory_before_the_first_frame():
    net, video = built().eval(), frames(2)
    with torch.inference_mode():
        net.start(7, frames(3, seed=5))
    assert len(net.pixels.bank) == 3 * MEMORY.kept_pixels
    assert [len(one.bank) for one in net.instances.aggregations] == [3 * MEMORY.kept_proposals] * 2
    assert not torch.equal(watched(net, video, references=frames(3, seed=5))[0], watched(net, video)[0])
    control = built(memory=None).eval()
    assert torch.equal(watched(control, video, references=video)[0], watched(control, video)[0])


@pytest.mark.parametrize("maps", ["single", "pyramid"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 9), (70, 20)])
def test_boxes_are_within_a_frame_of_any_size(maps, size):
    anchors = (16.0, 32.0) if maps == "single" else (16.0, 32.0, 64.0)
    net = built(maps=maps, anchor_sizes=anchors).eval()
    with torch.inference_mode():
        net.start(0)
        for frame in frames(2, size):
            found = net.detect(frame)
            assert found.boxes.shape == (len(found.scores), 4) and len(found.scores) <= 10
            assert (found.boxes >= 0).all()
            assert (found.boxes[:, 0::2] <= size[1]).all() and (found.boxes[:, 1::2] <= size[0]).all()
            assert (found.scores[:-1] >= found.scores[1:]).all()
            assert set(found.labels.tolist()) <= {1, 2, 3}


@pytest.mark.parametrize("num_classes", [1, 30])
def test_any_number_of_classes_is_told_apart(num_classes):
    net = built(num_classes)
    with torch.inference_mode():
        net.eval().start(0)
        assert set(net.detect(frames(1)[0]).labels.tolist()) <= set(range(1, num_classes + 1))
    losses = net.train().losses(frames(1), [target([2, 2, 20, 20], label=num_classes)], [frames(2)])
    assert all(torch.isfinite(value) for value in losses.values())


def test_losses_reach_every_parameter_of_the_memory_and_frames_of_several_sizes_go_together():
    net = built().train()
    keys = [*frames(1, (33, 47)), *frames(1, (40, 30))]
    references = [frames(2, (33, 47), seed=1), frames(1, (40, 30), seed=2)]
    losses = net.losses(keys, [target([2, 2, 20, 20]), target([5, 5, 25, 30], [0, 0, 9, 9], label=3)], references)
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    sum(losses.values()).backward()
    without = [name for name, one in net.named_parameters() if one.grad is None or not one.grad.any()]
    assert [name for name in without if "aggregation" in name and "key.bias" not in name] == []
    assert [name for name in without if not name.startswith("maps.encoder") and "key.bias" not in name] == []


def test_a_frame_without_an_object_teaches_background_alone():
    net = built().train()
    losses = net.losses(frames(1), [target()], [frames(1)])
    assert losses["loss_box_reg"] == 0 and losses["loss_rpn_box_reg"] == 0
    assert losses["loss_classifier"] > 0 and losses["loss_objectness"] > 0


def test_references_of_one_video_do_not_reach_another_of_the_batch():
    # an encoder without batch norms, which see the whole batch in training
    net = built(encoder="convnext_atto", encoder_args={"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}).train()
    keys, targets = [frames(1)[0], frames(1, seed=3)[0]], [target([2, 2, 20, 20])] * 2
    references = [frames(1, seed=1), frames(1, seed=2)]
    for group in references:
        group[0].requires_grad_()
    captured = []
    net.heads.box_predictor.register_forward_hook(lambda module, inputs, output: captured.append(inputs[0]))
    torch.manual_seed(1)
    net.losses(keys, targets, references)
    features = captured[0]
    of_first = 16  # sampled proposals of a frame
    assert len(features) == 2 * of_first
    gradients = torch.autograd.grad(features[:of_first].sum(), [group[0] for group in references], allow_unused=True)
    assert gradients[0].abs().sum() > 0
    assert gradients[1] is None or gradients[1].abs().sum() == 0


def test_without_a_memory_the_box_head_is_torchvisions():
    head, theirs = InstanceHead(8 * 49, 16, [], 5), TwoMLPHead(8 * 49, 16)
    theirs.fc6.load_state_dict(head.layers[0].state_dict())
    theirs.fc7.load_state_dict(head.layers[1].state_dict())
    pooled = torch.rand(6, 8, 7, 7)
    assert torch.allclose(head.follow(pooled, is_first=True), theirs(pooled), atol=1e-6)
    assert torch.allclose(head([pooled[:2], pooled[2:]]), theirs(pooled), atol=1e-6)


def test_the_first_frame_looks_at_itself_and_joins_the_memory_twice():
    """As in the authors' code: what is written before a look is plain, what is written after it enhanced."""
    aggregations = [MemoryAggregation(16, 2, MemoryBank(100, 100)) for _ in range(2)]
    learned(*aggregations)
    head, pooled = InstanceHead(8 * 49, 16, aggregations, 5), torch.rand(6, 8, 7, 7)
    with torch.inference_mode():
        found = head.follow(pooled, is_first=True)
        plain = head.layers[0](pooled.flatten(1))
        enhanced = plain + aggregations[0](plain, plain[:5])
        assert torch.allclose(aggregations[0].bank.features, torch.cat((plain[:5], enhanced[:5])), atol=1e-6)
        second = head.layers[1](enhanced.relu())
        expected = (second + aggregations[1](second, second[:5])).relu()
        assert torch.allclose(found, expected, atol=1e-6)
        head.follow(pooled, is_first=False)
        assert len(aggregations[1].bank) == 15


def test_no_proposal_is_no_detection():
    aggregations = [MemoryAggregation(16, 2, MemoryBank(100, 100)) for _ in range(2)]
    head = InstanceHead(8 * 49, 16, aggregations, 5)
    assert head.follow(torch.zeros(0, 8, 7, 7), is_first=True).shape == (0, 16)
    assert torch.isfinite(head.follow(torch.rand(2, 8, 7, 7), is_first=False)).all()
    assert torch.isfinite(head([torch.rand(2, 8, 7, 7)], [torch.zeros(0, 8, 7, 7)])).all()


def test_a_copy_has_a_memory_of_its_own():
    net = built().eval()
    other, video = copy.deepcopy(net), frames(3)
    before = watched(net, video)
    watched(other, frames(5, seed=4))
    assert all(torch.equal(one, two) for one, two in zip(before, watched(net, video), strict=True))
    assert other.pixels.bank is not net.pixels.bank


def test_norms_of_the_encoder_are_named_so_that_nothing_decays_them():
    net = built()
    assert net.no_weight_decay() <= set(dict(net.named_parameters()))
    assert len(net.no_weight_decay()) > 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"encoder": "spatial_mamba_nanno"}, UnknownName, "did you mean"),
        ({"encoder_args": {"width": 3}}, ConfigError, "cannot give feature maps"),
        ({"stride": 6}, ConfigError, r"maps of the strides \[4, 8, 16, 32\]"),
        ({"maps": "pyramid"}, ConfigError, "3 maps cannot share evenly"),
    ],
)
def test_what_cannot_be_built_is_said(changes, error, message):
    with pytest.raises(error, match=message):
        built(**changes)


def test_an_encoder_begins_with_given_weights_or_says_why_not(tmp_path):
    arguments = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
    encoder = create_model("spatial_mamba_nano", num_classes=5, **arguments)
    save_weights(encoder.state_dict(), tmp_path / "encoder.safetensors", {})
    net = built(encoder_weights=tmp_path / "encoder.safetensors")
    mine, theirs = net.maps.encoder.model.state_dict(), encoder.state_dict()
    shared = [name for name in mine if name in theirs]
    assert len(shared) > 20
    assert all(torch.equal(mine[name], theirs[name]) for name in shared)
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        built(encoder_args=arguments, encoder_weights=tmp_path / "none.safetensors")


def test_frozen_batch_norms_stay_as_they_are():
    net = built(encoder="resnet10t", encoder_args={}, freeze_batch_norm=True).train()
    before = {name: value.clone() for name, value in net.state_dict().items() if "running" in name}
    net.losses(frames(1), [target([2, 2, 20, 20])], [frames(1)])
    assert before
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_what_is_no_frame_is_refused():
    net = built().eval()
    with pytest.raises(ShapeError, match=r"\[3, H, W\] is needed"):
        net.detect(torch.zeros(1, 8, 8))
    with pytest.raises(ShapeError, match="without references"):
        net.train().losses(frames(1), [target()], [[]])

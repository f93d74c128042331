"""`VideoDetector`: Faster R-CNN of torchvision's parts over any encoder, its features enhanced by a memory (MAMBA).

Shape legend: B key frames, R references of all of them, C channels, h x w points of a map, N proposals of a frame.

    frame -> maps -> [pixels: map + aggregation(map, bank of pixels)] -> proposals -> pooled
          -> [instances: after each layer of the box head, x + aggregation(x, bank of that layer)] -> classes and boxes

In training the features of reference frames of the same video stand for the memory; in use the banks are filled by the
frames that went before (`start`, `detect`, `detect`, ...).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from statefield.backbones.checkpoints import backbone_of
from statefield.errors import ConfigError, ShapeError
from statefield.tasks.tracking.nets import MemoryAggregation, MemoryBank, PixelAggregation
from statefield.tasks.tracking.nets.memory_aggregation import Permute
from statefield.tasks.tracking.video_detection.instances import InstanceHead
from statefield.tasks.tracking.video_detection.maps import PADDED_TO, FeatureMaps
from statefield.tasks.tracking.video_detection.recipe import MemoryConfig, VideoModelConfig

__all__ = ["Found", "Target", "VideoDetector"]

Maps = OrderedDict[str, Tensor]
Target = dict[str, Tensor]  # boxes float32 [N, 4] (left, top, right, bottom, pixels), labels int64 [N] from 1
_POOLED = 7
# torchvision's (and Detectron's) for Faster R-CNN
_RPN_IOU, _RPN_SAMPLED, _BOX_IOU, _RPN_NMS = (0.7, 0.3), 256, (0.5, 0.5), 0.7


@dataclass(frozen=True)
class Found:
    """What is in a frame, best first: boxes float32 [M, 4] (left, top, right, bottom, pixels), scores float32 [M] (0 to
    1), labels int64 [M] from 1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class VideoDetector(nn.Module):
    """The detector of a recipe.

    Args: num_classes: of objects, the background not counted.

    Raises: ConfigError, UnknownName, CheckpointError: settings that cannot be built.

    Source: Sun et al., MAMBA: Multi-level Aggregation via Memory Bank for Video Object Detection, AAAI 2021 (arXiv
    2401.09923); guanxiongsun/vfe.pytorch at a44d847 for the level of instances.
    """

    def __init__(self, config: VideoModelConfig, num_classes: int) -> None:
        super().__init__()
        detection, memory = config.detection, config.memory
        self.maps = FeatureMaps(config)
        self.transform = GeneralizedRCNNTransform(
            config.short_side, config.long_side, list(config.mean), list(config.std), size_divisible=PADDED_TO
        )
        self.generator = torch.Generator()
        self.pixels = _pixel_level(config, self._permute) if memory is not None and memory.pixels else None
        self.pixel_map = self.maps.names[0] if config.maps == "single" else _middle(self.maps)
        anchors = AnchorGenerator(
            _sizes(config, len(self.maps.names)), (tuple(config.anchor_ratios),) * len(self.maps.names)
        )
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(config.channels, anchors.num_anchors_per_location()[0]),
            *_RPN_IOU,
            _RPN_SAMPLED,
            0.5,
            {"training": 2 * detection.training_proposals, "testing": 4 * detection.proposals},
            {"training": detection.training_proposals, "testing": detection.proposals},
            _RPN_NMS,
        )
        levels = InstanceHead.num_layers if memory is not None and memory.instances else 0
        aggregations = [
            MemoryAggregation(config.head_width, memory.heads, _bank(memory, self._permute))
            for _ in range(levels)
            if memory is not None
        ]
        self.heads = RoIHeads(
            MultiScaleRoIAlign(list(self.maps.names), _POOLED, sampling_ratio=2),
            InstanceHead(
                config.channels * _POOLED**2,
                config.head_width,
                aggregations,
                memory.kept_proposals if memory is not None else 0,
            ),
            FastRCNNPredictor(config.head_width, num_classes + 1),
            *_BOX_IOU,
            detection.sampled_proposals,
            0.25,
            None,
            detection.least_score,
            detection.nms_iou,
            detection.max_detections,
        )
        self.has_memory = memory is not None
        self._num_seen = 0

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay would harm, as the encoder declares them."""
        encoder = backbone_of(self.maps.encoder)
        declared = getattr(encoder, "no_weight_decay", None)
        prefix = "maps.encoder" if encoder is self.maps.encoder else "maps.encoder.model"
        return {f"{prefix}.{name}" for name in declared()} if callable(declared) else set()

    def parameters_of_enhancements(self) -> frozenset[str]:
        """Names of what a detector without a memory has not."""
        return frozenset(
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, MemoryAggregation)
            for name, _ in module.named_parameters()
        )

    @property
    def instances(self) -> InstanceHead:
        head = self.heads.box_head
        assert isinstance(head, InstanceHead)
        return head

    def losses(
        self, keys: Sequence[Tensor], targets: Sequence[Target], references: Sequence[Sequence[Tensor]]
    ) -> dict[str, Tensor]:
        """The four losses of Faster R-CNN on key frames, in training mode.

        Args:
            keys: B frames, float32 [3, H, W] in [0, 1]. targets: of each.
            references: of each key frame one or more frames of its video; not looked at without a memory.
        """
        count = len(keys)
        if not self.has_memory:
            references = [()] * count
        if self.has_memory and not all(references):
            raise ShapeError("a key frame without references: a detector with a memory needs one or more.")
        others = [one for group in references for one in group]
        boxes = [one["boxes"] for one in targets] + [one.new_zeros((0, 4)) for one in others]
        images, resized = self.transform([*keys, *others], [{"boxes": one} for one in boxes])
        resized_targets = [
            {"boxes": one["boxes"], "labels": target["labels"]}
            for one, target in zip(resized[:count], targets, strict=True)
        ]
        maps = self.maps(images.tensors)
        key_maps = OrderedDict((name, one[:count]) for name, one in maps.items())
        key_images = ImageList(images.tensors[:count], images.image_sizes[:count])
        pooled_references: list[Tensor] | None = None
        if others:
            reference_maps = OrderedDict((name, one[count:]) for name, one in maps.items())
            reference_images = ImageList(images.tensors[count:], images.image_sizes[count:])
            with torch.no_grad():
                proposals, objectness = self._propose(reference_images, reference_maps)
            lengths = [len(group) for group in references]
            if self.pixels is not None:
                key_maps = self._with_pixels(key_maps, reference_maps, objectness, reference_images, lengths)
            kept = [one[: self.instances.kept] for one in proposals]
            pooled = self.heads.box_roi_pool(reference_maps, kept, reference_images.image_sizes)
            by_frame = pooled.split([len(one) for one in kept])
            pooled_references = [torch.cat(one) for one in _groups(by_frame, lengths)]
        proposals, losses = self.rpn(key_images, key_maps, resized_targets)
        proposals, _, labels, wanted = self.heads.select_training_samples(proposals, resized_targets)
        pooled = self.heads.box_roi_pool(key_maps, proposals, key_images.image_sizes)
        features = self.instances(pooled.split([len(one) for one in proposals]), pooled_references)
        loss_class, loss_box = fastrcnn_loss(*self.heads.box_predictor(features), labels, wanted)
        return {**losses, "loss_classifier": loss_class, "loss_box_reg": loss_box}

    def start(self, seed: int, references: Sequence[Tensor] = ()) -> None:
        """A new video begins: forget the one before, and draw what is read and forgotten by this seed.

        Args: references: frames of it, float32 [3, H, W] in [0, 1], that the memory is filled with.
        """
        self.generator.manual_seed(seed)
        self.instances.forget()
        if self.pixels is not None:
            self.pixels.bank.reset()
        self._num_seen = 0
        for frame in references if self.has_memory else ():
            images, maps = self._seen(frame)
            proposals, objectness = self._propose(images, maps)
            if self.pixels is not None:
                self._remember_pixels(images, maps, objectness)
            self.instances.remember(self.heads.box_roi_pool(maps, proposals, images.image_sizes))

    def detect(self, frame: Tensor) -> Found:
        """What is in the next frame of the video, float32 [3, H, W] in [0, 1]; in eval mode, without gradients."""
        images, maps = self._seen(frame)
        if self.pixels is not None:
            maps[self.pixel_map] = self.pixels(maps[self.pixel_map])
        proposals, objectness = self._propose(images, maps)
        if self.pixels is not None:
            self._remember_pixels(images, maps, objectness)
        pooled = self.heads.box_roi_pool(maps, proposals, images.image_sizes)
        features = self.instances.follow(pooled, is_first=self._num_seen == 0)
        self._num_seen += 1
        logits, deltas = self.heads.box_predictor(features)
        boxes, scores, labels = self.heads.postprocess_detections(logits, deltas, proposals, images.image_sizes)
        found = [{"boxes": boxes[0], "scores": scores[0], "labels": labels[0]}]
        size = (int(frame.shape[-2]), int(frame.shape[-1]))
        (one,) = self.transform.postprocess(found, images.image_sizes, [size])
        return Found(one["boxes"], one["scores"], one["labels"])

    def _seen(self, frame: Tensor) -> tuple[ImageList, Maps]:
        if frame.ndim != 3 or frame.shape[0] != 3:
            raise ShapeError(f"a frame of shape {list(frame.shape)}: [3, H, W] is needed.")
        images, _ = self.transform([frame])
        return images, self.maps(images.tensors)

    def _propose(self, images: ImageList, maps: Maps) -> tuple[list[Tensor], Tensor]:
        """Proposals of each frame, best first, [N, 4], and the objectness [B, h, w] of the points of the pixels' map.

        As `RegionProposalNetwork.forward`, which keeps the objectness to itself and, in training, asks for targets.
        """
        features = list(maps.values())
        objectness, deltas = self.rpn.head(features)
        of_pixels = objectness[self.maps.names.index(self.pixel_map)].amax(1)
        anchors = self.rpn.anchor_generator(images, features)
        counts = [one[0].numel() for one in objectness]
        flat, flat_deltas = concat_box_prediction_layers(objectness, deltas)
        boxes = self.rpn.box_coder.decode(flat_deltas.detach(), anchors).view(len(anchors), -1, 4)
        proposals, _ = self.rpn.filter_proposals(boxes, flat, images.image_sizes, counts)
        return proposals, of_pixels.detach()

    def _with_pixels(
        self, keys: Maps, others: Maps, objectness: Tensor, images: ImageList, lengths: Sequence[int]
    ) -> Maps:
        """The maps of key frames, that of the pixels enhanced by the likeliest pixels of their references."""
        assert self.pixels is not None
        foreground = _inside(objectness, images)
        chosen = self.pixels.likeliest(others[self.pixel_map], foreground)
        enhanced = [
            self.pixels(one[None], torch.cat(group))
            for one, group in zip(keys[self.pixel_map], _groups(chosen, lengths), strict=True)
        ]
        return OrderedDict(keys, **{self.pixel_map: torch.cat(enhanced)})

    def _remember_pixels(self, images: ImageList, maps: Maps, objectness: Tensor) -> None:
        assert self.pixels is not None
        self.pixels.remember(maps[self.pixel_map], _inside(objectness, images))

    def _permute(self, count: int, device: torch.device) -> Tensor:
        """A random order by the video's own generator, so that a video's result depends on nothing before it."""
        return torch.randperm(count, generator=self.generator).to(device)


def _pixel_level(config: VideoModelConfig, permute: Permute) -> PixelAggregation:
    assert config.memory is not None
    bank = _bank(config.memory, permute)
    return PixelAggregation(config.channels, config.memory.heads, bank, config.memory.kept_pixels)


def _bank(memory: MemoryConfig, permute: Permute) -> MemoryBank:
    return MemoryBank(memory.max_length, memory.key_length, permute)


def _sizes(config: VideoModelConfig, num_levels: int) -> tuple[tuple[float, ...], ...]:
    """The anchors' sides of each level: all of them for one map, an equal part each for a pyramid."""
    sizes = tuple(sorted(config.anchor_sizes))
    each, left = divmod(len(sizes), num_levels)
    if left:
        raise ConfigError(
            f"model.anchor_sizes has {len(sizes)} numbers, which {num_levels} maps cannot share evenly: give one or "
            "more for each."
        )
    return tuple(sizes[level * each : (level + 1) * each] for level in range(num_levels))


def _middle(maps: FeatureMaps) -> str:
    """The map of a pyramid that pixels are remembered of: stride 16, or the coarsest that is finer."""
    fine = [name for name, stride in zip(maps.names, maps.strides, strict=True) if stride <= 16]
    return fine[-1] if fine else maps.names[0]


def _inside(objectness: Tensor, images: ImageList) -> Tensor:
    """Objectness [B, h, w], least where a frame was padded to the size of its batch."""
    height, width = images.tensors.shape[-2:]
    result = objectness.clone()
    for one, (rows, columns) in zip(result, images.image_sizes, strict=True):
        one[-(-rows * one.shape[0] // height) :] = -torch.inf
        one[:, -(-columns * one.shape[1] // width) :] = -torch.inf
    return result


def _groups(values: Sequence[Tensor], lengths: Sequence[int]) -> list[list[Tensor]]:
    found, begin = [], 0
    for length in lengths:
        found.append(list(values[begin : begin + length]))
        begin += length
    return found

"""The three questions that are put to a pair of images, and all that depends on which it is: targets, loss, decision,
scores.

    binary     what has changed                                    one map of logits
    semantic   from which class to which                           three: change, before, after
    damage     where buildings stood, and how badly each is hit    two: building, damage

Shape legend: B pairs, K classes of a map, H x W pixels. A net's maps in one tensor have their K behind one another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from statefield.datasets.sample import ChangeInfo
from statefield.errors import ConfigError
from statefield.tasks.remote_sensing import change_metrics, damage_metrics
from statefield.tasks.remote_sensing.change_metrics import Scores
from statefield.tasks.remote_sensing.change_recipe import ChangeTaskName
from statefield.tasks.remote_sensing.loss_config import (
    BinaryChangeLossConfig,
    DamageLossConfig,
    SemanticChangeLossConfig,
)
from statefield.tasks.remote_sensing.losses import BinaryChangeLoss, DamageLoss, SemanticChangeLoss
from statefield.tasks.remote_sensing.semantic_change_metrics import ChangeMaps, SemanticChangeMetrics

MaskName = Literal["mask", "before_mask", "after_mask"]
Labels = NDArray[Any]
_NEVER = -1e4  # what is added to the logit of an output that was not trained; infinite would not blend


class Layer(NamedTuple):
    """One map of a net: its name, and the class of each of its outputs."""

    name: str
    classes: tuple[str, ...]


class ChangeKind(ABC):
    """One question, put to one dataset.

    Attributes: masks: the targets that a sample must have. gate: the one whose class 1 the threshold is for. score: the
    score by which the best epoch is chosen. shown: the scores that the history has. layers: the net's maps.

    Raises: ConfigError: a dataset that cannot answer it, or unknown or impossible weights of the loss.
    """

    name: ClassVar[ChangeTaskName]
    masks: ClassVar[tuple[MaskName, ...]]
    gate: ClassVar[MaskName]
    score: ClassVar[str]
    shown: ClassVar[tuple[str, ...]]
    swaps: ClassVar[bool]  # whether exchanging the dates leaves a truth

    def __init__(self, info: ChangeInfo) -> None:
        self.info = info

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]: ...

    @abstractmethod
    def net_arguments(self) -> dict[str, int]:
        """The numbers of classes, as the net's constructor calls them."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """The scalar loss of the net's outputs on a batch of targets int64 [B, H, W]."""

    @abstractmethod
    def observe(self, decided: Mapping[str, Labels], target: Mapping[str, Labels], case: str) -> Any:
        """A state that adds, of one pair: class maps [H, W] by layer, and targets [H, W] by mask."""

    @abstractmethod
    def summarise(self, state: Any) -> Scores:
        """The scores of states that were added."""

    @abstractmethod
    def maps(self, decided: Mapping[str, Labels]) -> dict[str, Labels]:
        """What is drawn and written: classes only where the first map says that there is something."""

    def shifts(self, threshold: float) -> list[Tensor]:
        """What is added to each map's logits [K] so that the largest is the decision.

        The first map says 1 where its probability of class 1 is above `threshold`; output 0 of the others, which no
        loss trains, is never chosen.
        """
        if not 0 < threshold < 1:
            raise ConfigError(f"inference.threshold = {threshold}: a probability between 0 and 1, or val, is needed.")
        first = torch.tensor([0.0, -float(np.log(threshold / (1 - threshold)))])
        others = [torch.tensor([_NEVER] + [0.0] * (len(layer.classes) - 1)) for layer in self.layers[1:]]
        return [first, *others]

    def decide(self, logits: Tensor) -> dict[str, Tensor]:
        """The class of each pixel by layer, uint8 [B, H, W], of shifted logits [B, all K, H, W]."""
        parts = logits.split([len(layer.classes) for layer in self.layers], dim=1)
        return {layer.name: part.argmax(dim=1).to(torch.uint8) for layer, part in zip(self.layers, parts, strict=True)}


class BinaryChange(ChangeKind):
    """What has changed."""

    name, masks, gate, swaps = "binary", ("mask",), "mask", True
    score = "F1/change (pooled)"
    shown = ("F1/change (pooled)", "IoU/change (pooled)")

    def __init__(self, info: ChangeInfo, loss: Mapping[str, float]) -> None:
        super().__init__(info)
        _require_classes("mask", info.classes, 2, "unchanged and changed", "mamba_bda is for damage of buildings")
        self._loss = BinaryChangeLoss(_weights(BinaryChangeLossConfig, loss))

    @property
    def layers(self) -> tuple[Layer, ...]:
        return (Layer("change", self.info.classes),)

    def net_arguments(self) -> dict[str, int]:
        return {"num_classes": 2}

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        return self._loss(outputs, batch["mask"])

    def observe(self, decided: Mapping[str, Labels], target: Mapping[str, Labels], case: str) -> Any:
        return change_metrics.observe(decided["change"], target["mask"])

    def summarise(self, state: Any) -> Scores:
        return change_metrics.summarise(state)

    def maps(self, decided: Mapping[str, Labels]) -> dict[str, Labels]:
        return dict(decided)


class SemanticChangeKind(ChangeKind):
    """From which class to which."""

    name, masks, gate = "semantic", ("mask", "before_mask", "after_mask"), "mask"
    swaps = True
    score = "SeK (pooled)"
    shown = ("SeK (pooled)", "Fscd/transitions (pooled)", "IoU/change (pooled)")

    def __init__(self, info: ChangeInfo, loss: Mapping[str, float]) -> None:
        super().__init__(info)
        _require_classes("mask", info.classes, 2, "unchanged and changed", "")
        if len(info.before_classes) < 2 or info.before_classes != info.after_classes:
            raise ConfigError(
                f"model.net mamba_scd needs the same classes at both dates, the first of them 'unchanged'; the dataset "
                f"has {list(info.before_classes)} before and {list(info.after_classes)} after. Use mamba_bcd for maps "
                "of change alone."
            )
        self._loss = SemanticChangeLoss(_weights(SemanticChangeLossConfig, loss))
        self._metrics = SemanticChangeMetrics(len(info.before_classes) - 1)

    @property
    def layers(self) -> tuple[Layer, ...]:
        info = self.info
        return (
            Layer("change", info.classes),
            Layer("before", info.before_classes),
            Layer("after", info.after_classes),
        )

    def net_arguments(self) -> dict[str, int]:
        return {"num_classes": 2, "num_semantic_classes": len(self.info.before_classes)}

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        return self._loss(*outputs, batch["mask"], batch["before_mask"], batch["after_mask"])

    def observe(self, decided: Mapping[str, Labels], target: Mapping[str, Labels], case: str) -> Any:
        given = ChangeMaps(decided["change"], decided["before"], decided["after"])
        return self._metrics.observe(
            given, ChangeMaps(target["mask"], target["before_mask"], target["after_mask"]), case=case
        )

    def summarise(self, state: Any) -> Scores:
        return self._metrics.summarise(state)

    def maps(self, decided: Mapping[str, Labels]) -> dict[str, Labels]:
        changed = decided["change"]
        return {"change": changed, "before": decided["before"] * changed, "after": decided["after"] * changed}


class BuildingDamageKind(ChangeKind):
    """Where buildings stood, and how badly each is hit."""

    name, masks, gate, swaps = "damage", ("mask", "before_mask"), "before_mask", False
    score = "F1/overall (0.3 building + 0.7 damage)"
    shown = (score, "F1/building (pooled)", "F1/damage (harmonic mean of the four)")

    def __init__(self, info: ChangeInfo, loss: Mapping[str, float]) -> None:
        super().__init__(info)
        grades = len(damage_metrics.DAMAGES) + 1
        _require_classes("mask", info.classes, grades, f"background, {', '.join(damage_metrics.DAMAGES)}", "")
        _require_classes("mask before the event", info.before_classes, 2, "background and building", "")
        self._loss = DamageLoss(_weights(DamageLossConfig, loss))

    @property
    def layers(self) -> tuple[Layer, ...]:
        return (Layer("building", self.info.before_classes), Layer("damage", self.info.classes))

    def net_arguments(self) -> dict[str, int]:
        return {"num_classes": len(self.info.classes), "num_building_classes": 2}

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        return self._loss(*outputs, batch["before_mask"], batch["mask"])

    def observe(self, decided: Mapping[str, Labels], target: Mapping[str, Labels], case: str) -> Any:
        return damage_metrics.observe(decided["building"], decided["damage"], target["before_mask"], target["mask"])

    def summarise(self, state: Any) -> Scores:
        return damage_metrics.summarise(state)

    def maps(self, decided: Mapping[str, Labels]) -> dict[str, Labels]:
        return {"building": decided["building"], "damage": decided["damage"] * decided["building"]}


_KINDS: dict[ChangeTaskName, type[Any]] = {
    "binary": BinaryChange,
    "semantic": SemanticChangeKind,
    "damage": BuildingDamageKind,
}


def change_kind(task: ChangeTaskName, info: ChangeInfo, loss: Mapping[str, float]) -> ChangeKind:
    """The question of a recipe's net, put to a dataset; `loss` has the weights that are not ChangeMamba's."""
    return _KINDS[task](info, loss)


class ShiftedLogits(nn.Module):
    """A net of two dates with constants added to its logits, so that the largest logit is the decision.

    Args: net: net(before, after) -> [B, K, H, W], or a NamedTuple of such. shifts: [K] for each of its maps.
    """

    shift_0: Tensor

    def __init__(self, net: nn.Module, shifts: Sequence[Tensor]) -> None:
        super().__init__()
        self.net = net
        for index, shift in enumerate(shifts):
            self.register_buffer(f"shift_{index}", shift.reshape(1, -1, 1, 1))

    def forward(self, before: Tensor, after: Tensor) -> Any:
        outputs = self.net(before, after)
        if isinstance(outputs, Tensor):
            return outputs + self.shift_0
        shifted = (one + getattr(self, f"shift_{index}") for index, one in enumerate(outputs))
        return type(outputs)(*shifted)


def _weights(config: type[Any], given: Mapping[str, float]) -> Any:
    known = list(config.__dataclass_fields__)
    if unknown := sorted(set(given) - set(known)):
        raise ConfigError(f"model.loss has no weight {', '.join(unknown)}; of this net it may have {', '.join(known)}.")
    return config(**given)


def _require_classes(what: str, classes: Sequence[str], count: int, needed: str, remedy: str) -> None:
    if len(classes) != count:
        raise ConfigError(
            f"the dataset's {what} has {len(classes)} classes ({', '.join(classes) or 'there is none'}), and this net "
            f"needs {count}: {needed}. Choose another model.net{f' ({remedy})' if remedy else ''} or another dataset."
        )

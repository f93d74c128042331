"""`SceneTask`: trains a classifier of scenes and validates it on whole ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from statefield.backbones import create_model, without_scan
from statefield.errors import CheckpointError, ConfigError, StatefieldError
from statefield.tasks.common import confusion
from statefield.tasks.common.checkpointing import load_weights, read_weights
from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.common.module import DensePredictionTask
from statefield.tasks.common.parallel import of_all
from statefield.tasks.remote_sensing import scene_metrics
from statefield.tasks.remote_sensing.nets import RSMamba
from statefield.tasks.remote_sensing.scene_images import SceneBatch, SceneItem
from statefield.tasks.remote_sensing.scene_recipe import SceneModelConfig

VALIDATION_SCORE = "F1/macro"


class SceneTask(DensePredictionTask):
    """Classification of scenes. After each validation `epoch_scores` holds OA and F1/macro of the validation scenes.

    Args:
        config: net, loss and optimiser.
        classes: names by label. num_channels: of the images. image_size: their side, pixels.
        seed, total_steps, max_skipped_steps: see `DensePredictionTask`.

    Raises: ConfigError, UnknownName: a net that cannot be built so.
    """

    def __init__(
        self,
        config: SceneModelConfig,
        *,
        classes: tuple[str, ...],
        num_channels: int,
        image_size: int,
        seed: int,
        total_steps: int,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__(
            lr=config.lr,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
            seed=seed,
            total_steps=total_steps,
            average_decay=config.average_decay,
            max_skipped_steps=max_skipped_steps,
        )
        self.classes, self.loss = classes, config.loss
        self.net = classifier(config, len(classes), num_channels, image_size)
        mixes: list[Any] = [
            mix(alpha=alpha, num_classes=len(classes))
            for mix, alpha in ((v2.MixUp, config.loss.mixup), (v2.CutMix, config.loss.cutmix))
            if alpha > 0
        ]
        self._mix = v2.RandomChoice(mixes) if mixes else None
        self._seen: dict[str, tuple[int, int]] = {}

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())

    def forward(self, image: Tensor) -> Tensor:
        """Raw logits [B, K] of normalised scenes [B, C, S, S]."""
        return self.net(image)

    def batch_loss(self, batch: SceneItem) -> Tensor:
        image: Tensor = batch["image"]
        target = torch.as_tensor(batch["label"], device=image.device)
        if self._mix is not None:  # draws from torch's generator, which is seeded for each batch
            image, target = self._mix(image, target)
        return functional.cross_entropy(self.net(image), target, label_smoothing=self.loss.label_smoothing)

    def on_validation_epoch_start(self) -> None:
        self._seen = {}

    def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
        predicted = self.evaluated(batch["image"]).argmax(1).tolist()
        self._seen |= dict(zip(batch["cases"], zip(predicted, batch["label"].tolist(), strict=True), strict=True))

    def on_validation_epoch_end(self) -> None:
        # a scene that two processes saw, so that each has equally many, counts once
        pairs = list({case: pair for one in of_all(self._seen) for case, pair in one.items()}.values())
        state = ConfusionState.empty(len(self.classes))
        if pairs:
            predicted, wanted = np.array(pairs).T
            state = confusion.observe(predicted, wanted, num_classes=len(self.classes))
        scores = scene_metrics.summarise(state, self.classes).values
        self.epoch_scores = {name: scores[name] for name in ("OA", VALIDATION_SCORE)}

    def on_train_epoch_start(self) -> None:
        self.epoch_scores = {}  # an epoch without validation has no scores

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"] = list(self.classes)


def classifier(config: SceneModelConfig, num_classes: int, num_channels: int, image_size: int) -> nn.Module:
    """The net of a recipe, [B, num_channels, image_size, image_size] -> logits [B, num_classes], as initialised."""
    net: nn.Module
    try:
        if config.net == "rsmamba":
            net = RSMamba(num_channels, num_classes, **{"image_size": image_size} | _tupled(config.net_args))
        else:
            net = create_model(
                config.encoder, **{"in_chans": num_channels, "num_classes": num_classes} | config.encoder_args
            )
    except StatefieldError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        what = f"net_args {config.net_args} of rsmamba" if config.net else f"{config.encoder_args} of {config.encoder}"
        raise ConfigError(f"the net cannot be built with {what}: {error}") from error
    return without_scan(net) if config.without_scan else net


def start_from(net: nn.Module, config: SceneModelConfig) -> None:
    """Fill `net` from `config.weights`, with `new_classifier` all but the classifier.

    Raises: CheckpointError: the file is missing or damaged, or does not fit entry by entry.
    """
    assert config.weights is not None
    if not config.new_classifier:
        load_weights(net, config.weights)
        return
    last = _classifier_name(net)
    body = {name: value for name, value in read_weights(config.weights).items() if not name.startswith(f"{last}.")}
    needed = {name: value for name, value in net.state_dict().items() if not name.startswith(f"{last}.")}
    missing, unknown = sorted(set(needed) - set(body)), sorted(set(body) - set(needed))
    other = [name for name in body if name in needed and body[name].shape != needed[name].shape]
    if missing or unknown or other:
        raise CheckpointError(
            f"{config.weights} does not fit the net, its classifier {last!r} left out: {len(missing)} entries are "
            f"missing ({', '.join(missing[:3])}), {len(unknown)} unknown ({', '.join(unknown[:3])}), {len(other)} of "
            f"another shape ({', '.join(other[:3])}). Give weights of the same net and image_size."
        )
    net.load_state_dict(body, strict=False)


def _classifier_name(net: nn.Module) -> str:
    """Where the last linear layer is: an encoder of timm says so, of RSMamba it is `head`."""
    named = getattr(net, "pretrained_cfg", {}).get("classifier", "head")
    return named if isinstance(named, str) else named[0]


def _tupled(arguments: dict[str, Any]) -> dict[str, Any]:
    """YAML has lists where the net takes tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}

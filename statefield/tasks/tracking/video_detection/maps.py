"""Feature maps of any encoder for a detector: one map, or a pyramid (torchvision's FPN)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from statefield.backbones import create_encoder
from statefield.backbones.checkpoints import load_checkpoint
from statefield.errors import ConfigError, StatefieldError
from statefield.tasks.tracking.video_detection.recipe import VideoModelConfig

__all__ = ["FeatureMaps"]

PADDED_TO = 32  # frames are padded to a multiple of the coarsest stride


class FeatureMaps(nn.Module):
    """Images [B, 3, H, W], sides multiples of 32, -> maps by name, [B, channels, H / stride, W / stride].

    "single": the encoder's maps of stride `config.stride` and above, added up from the coarsest down at that stride;
    "pyramid": all of them, each by itself after what is above was added.

    Raises:
        UnknownName, ConfigError: an encoder that cannot be built, or has no map of the stride.
        CheckpointError: weights that do not fit the encoder, entry by entry.
    """

    def __init__(self, config: VideoModelConfig) -> None:
        super().__init__()
        try:
            self.encoder = create_encoder(config.encoder, 2, 3, **config.encoder_args)
        except StatefieldError:
            raise
        except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
            raise ConfigError(
                f"the encoder {config.encoder} cannot give feature maps with {config.encoder_args}: {error}"
            ) from error
        if config.encoder_weights is not None:
            load_checkpoint(self.encoder, config.encoder_weights, fresh=("feature_norms",))
        if config.freeze_batch_norm:
            self.encoder = freeze_batch_norm_2d(self.encoder)
        info: Any = self.encoder.feature_info
        strides: list[int] = list(info.reduction())
        widths: list[int] = list(info.channels())
        self.taken = [index for index, stride in enumerate(strides) if stride >= config.stride]
        if config.stride not in strides or max(strides) > PADDED_TO:
            raise ConfigError(
                f"model.stride = {config.stride}: {config.encoder} has maps of the strides {strides}; one of these, up "
                f"to {PADDED_TO}, is needed. Its `_pyramid` form, where there is one, has several."
            )
        self.widths = [widths[index] for index in self.taken]
        self.pyramid = FeaturePyramidNetwork(self.widths, config.channels)
        self.strides = tuple(strides[index] for index in self.taken)
        if config.maps == "single":
            self.strides = self.strides[:1]
            for level in range(1, len(self.taken)):
                self.pyramid.layer_blocks[level] = nn.Identity()  # smooths what nobody looks at
        self.names = tuple(f"stride {stride}" for stride in self.strides)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        found = self.encoder(images)
        chosen = [_channels_first(found[index], width) for index, width in zip(self.taken, self.widths, strict=True)]
        maps = self.pyramid(OrderedDict((str(level), one) for level, one in enumerate(chosen)))
        return OrderedDict((name, maps[str(level)]) for level, name in enumerate(self.names))


def _channels_first(feature_map: Tensor, width: int) -> Tensor:
    """[B, C, h, w] of a map that may be [B, h, w, C], as some of timm's transformers give theirs."""
    if feature_map.shape[1] != width and feature_map.shape[-1] == width:
        return feature_map.permute(0, 3, 1, 2).contiguous()
    return feature_map

"""`SegmentationNet`: any decoder of segmentation_models_pytorch on any timm encoder, for images of any size.

Shape legend: B images, C channels, K classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import statefield.backbones  # noqa: F401  (registers our models in timm)
from statefield.errors import ConfigError, ShapeError, UnknownName

DECODERS = (
    "deeplabv3",
    "deeplabv3plus",
    "dpt",
    "fpn",
    "linknet",
    "manet",
    "pan",
    "pspnet",
    "segformer",
    "unet",
    "unetplusplus",
    "upernet",
)


class SegmentationNet(nn.Module):
    """Encoder, decoder and classifier: [B, C, H, W] float -> raw logits [B, K, H, W].

    Most timm encoders begin at stride 4, so whatever is thinner than that reaches the logits blurred. `detail_channels`
    adds the missing path, as U-shaped transformers do: two 3x3 convolutions at full resolution whose output is
    concatenated with the decoder's before the classifier.

    Args:
        encoder: a timm model name (ours included) that can give a pyramid of features.
        decoder: one of `DECODERS`.
        in_channels: C. num_classes: K, background included.
        detail_channels: width of the full-resolution path; 0 leaves it out.
        decoder_args: further arguments of the smp model, e.g. `decoder_channels`.
        encoder_args: further arguments of the timm model, e.g. `drop_path_rate`.
        shuffle_rate: of stochastic layer-wise shuffle, an argument of every encoder of ours that reads its image as a
            sequence of tokens; None: the encoder's own.

    Raises:
        UnknownName: no such encoder or decoder. ConfigError: the two cannot be joined, or refuse an argument.
    """

    def __init__(
        self,
        encoder: str,
        decoder: str = "unet",
        *,
        in_channels: int,
        num_classes: int,
        detail_channels: int = 0,
        decoder_args: Mapping[str, Any] | None = None,
        encoder_args: Mapping[str, Any] | None = None,
        shuffle_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        arguments = dict(encoder_args or {}) | ({} if shuffle_rate is None else {"shuffle_rate": shuffle_rate})
        self.body = _smp_model(encoder, decoder, in_channels, num_classes, dict(decoder_args or {}), arguments)
        self.multiple = int(self.body.encoder.output_stride)
        # PAN halves the deepest map (stride 16 here) three times more
        self.smallest = 128 if decoder == "pan" else self.multiple
        self.detail: nn.Module | None = None
        if detail_channels:
            if decoder == "dpt":
                raise ConfigError(
                    "detail_channels with decoder 'dpt' cannot work: its head has no full-resolution map to join. "
                    "Set detail_channels to 0, or choose another decoder."
                )
            self.detail = nn.Sequential(
                _convolution(in_channels, detail_channels), _convolution(detail_channels, detail_channels)
            )
            decoded_channels = self.body.segmentation_head[0].in_channels
            self.body.segmentation_head = nn.Identity()
            self.classifier = nn.Conv2d(decoded_channels + detail_channels, num_classes, 3, padding=1)
        # Convolutions on CPU run 1.1 to 1.6 times faster so (measured on a U-Net of convnext_atto), and our own blocks
        # are channels-last by nature.
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """Raw logits [B, K, H, W] of `image` [B, C, H, W]; any H, W >= 1 (padded by its edge, and cropped back)."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ShapeError(
                f"the net got an image of shape {tuple(image.shape)} and needs [B, {self.in_channels}, H, W]: "
                "check the number of channels (slice_context included)."
            )
        height, width = image.shape[-2:]
        below = max(-height % self.multiple, self.smallest - height)
        right = max(-width % self.multiple, self.smallest - width)
        padded = functional.pad(image, (0, right, 0, below), mode="replicate") if below or right else image
        padded = padded.contiguous(memory_format=torch.channels_last)
        if self.detail is None:
            logits = self.body(padded)
        else:
            decoded = self.body.decoder(self.body.encoder(padded))
            if decoded.shape[-2:] != padded.shape[-2:]:
                decoded = functional.interpolate(decoded, padded.shape[-2:], mode="bilinear", align_corners=False)
            logits = self.classifier(torch.cat([decoded, self.detail(padded)], dim=1))
        return logits[..., :height, :width]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay would harm, as the encoder declares them."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if module is not self and callable(getattr(module, "no_weight_decay", None))
            for name in module.no_weight_decay()
        }


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


def _smp_model(
    encoder: str,
    decoder: str,
    in_channels: int,
    num_classes: int,
    decoder_args: dict[str, Any],
    encoder_args: dict[str, Any],
) -> Any:
    if not timm.is_model(encoder.split(".")[0]):
        raise UnknownName.among("encoder", encoder, timm.list_models())
    if decoder not in DECODERS:
        raise UnknownName.among("decoder", decoder, DECODERS)
    try:
        return smp.create_model(
            arch=decoder,
            encoder_name=f"tu-{encoder}",
            encoder_weights=None,
            in_channels=in_channels,
            classes=num_classes,
            **decoder_args,
            **encoder_args,
        )
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, AssertionError) as error:
        if isinstance(error, TypeError) and "'shuffle_rate'" in str(error):
            raise ConfigError(
                f"shuffle_rate {encoder_args['shuffle_rate']} was given, and the encoder {encoder!r} does not read its "
                "image as one sequence of tokens, which could be shuffled. Leave it out (null), or choose an encoder "
                "that does: those in `statefield models '*_pyramid'` whose name begins with vim, vil, plainmamba, "
                "vision_rwkv, adventurer or shufflemamba."
            ) from error
        raise ConfigError(
            f"the decoder {decoder!r} cannot be built on the encoder {encoder!r} with decoder_args={decoder_args} and "
            f"encoder_args={encoder_args}: {error} Choose another pair or other arguments; "
            "`statefield models` lists our encoders."
        ) from error

"""`SiameseNet`: one encoder for both dates, and what every net of two images has around it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, cat, nn
from torch.nn import functional

from statefield.backbones import BACKBONES, create_encoder
from statefield.errors import ConfigError, ShapeError, StatefieldError

# ChangeMamba's encoders: VMamba in a form of the authors' own (their configuration files "0229"), between its sizes.
_OFFICIAL_FORM = {"expand": 2.0, "d_state": 1, "mlp_ratio": 4.0, "feature_norms": True}
OFFICIAL_ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": _OFFICIAL_FORM | {"dims": 96, "depths": (2, 2, 4, 2), "drop_path_rate": 0.2},
    "small": _OFFICIAL_FORM | {"dims": 96, "depths": (2, 2, 15, 2), "drop_path_rate": 0.3},
    "base": _OFFICIAL_FORM | {"dims": 128, "depths": (2, 2, 15, 2), "drop_path_rate": 0.6},
}
_LEVELS = 4


class SiameseNet(nn.Module):
    """The part that nets of two dates share: an encoder whose weights see both, and the sizes of images.

    Both dates go through the encoder as one batch, so batch norms (of a ResNet, say) see the two together.

    Args:
        encoder: "tiny", "small" or "base", which are ChangeMamba's own VMambas; or the name of any timm model, ours
            included, that gives a pyramid of maps. Its last four maps are used (fewer where it has fewer).
        in_channels: C of an image of one date. encoder_args: further arguments of the encoder; `feature_norms=True`
            gives those of ours the norm behind each map that ChangeMamba's own have.

    Weights of a classifier: `load_checkpoint(net.encoder, FILE)`, with `fresh=("feature_norms",)` where it has those.

    Sizes: the official encoders take an image of any sides as the authors' code does: maps are rounded up, and the
    logits are resized to the image. For any other encoder the image is padded by its edge to multiples of `multiple`,
    and the logits are cropped.

    Attributes: widths: channels of the maps, the finest first. multiple: the encoder's largest stride.

    Raises:
        UnknownName: no such encoder. ConfigError: one without a pyramid, or an argument that it does not take.
        ShapeError (forward): dates of different sizes, or of other channels.
    """

    def __init__(self, encoder: str, in_channels: int, encoder_args: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.pads = encoder not in OFFICIAL_ENCODERS
        self.encoder = _encoder(encoder, in_channels, dict(encoder_args or {}))
        info: Any = self.encoder.feature_info
        reductions = info.reduction()[-_LEVELS:]
        if any(finer >= coarser for finer, coarser in pairwise(reductions)):
            pyramid = f"{encoder}_pyramid"
            remedy = f"Choose {pyramid!r}." if pyramid in BACKBONES else "`statefield models` lists ours."
            raise ConfigError(
                f"the encoder {encoder!r} gives maps at strides {', '.join(map(str, reductions))}: a pyramid is "
                f"needed, each map smaller than the one before. {remedy}"
            )
        self.widths = tuple(info.channels()[-_LEVELS:])
        self.multiple = int(reductions[-1])

    def padded(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Both dates as the encoder takes them; `ShapeError` unless they are [B, C, H, W] of one shape."""
        check_dates(type(self).__name__, self.in_channels, before, after)
        if not self.pads:
            return before, after
        below, right = -before.shape[-2] % self.multiple, -before.shape[-1] % self.multiple
        if not (below or right):
            return before, after
        pad = (0, right, 0, below)
        return functional.pad(before, pad, mode="replicate"), functional.pad(after, pad, mode="replicate")

    def features(self, before: Tensor, after: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps [B, C_l, H_l, W_l] of each date, the finest first."""
        maps = self.encoder(cat([before, after]))[-_LEVELS:]
        if str(getattr(self.encoder, "output_fmt", "NCHW")).endswith("NHWC"):
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        of_both = [one.unflatten(0, (2, -1)) for one in maps]  # chunk(2) binds an exported graph to a batch
        return [one[0] for one in of_both], [one[1] for one in of_both]

    def at_full_size(self, logits: Tensor, padded: Tensor, image: Tensor) -> Tensor:
        """Logits resized to the image that the encoder saw, without what was added to it."""
        return resized(logits, padded)[..., : image.shape[-2], : image.shape[-1]]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that drive recurrences, and what the encoder declares besides."""
        declared = {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D", ".dt_bias"))}
        for prefix, module in self.encoder.named_modules(prefix="encoder"):
            if callable(getattr(module, "no_weight_decay", None)):
                declared |= {f"{prefix}.{name}" for name in module.no_weight_decay()}
        return declared


def check_dates(net: str, in_channels: int, before: Tensor, after: Tensor) -> None:
    """`ShapeError` unless both dates are [B, in_channels, H, W] of one shape."""
    for date, image in (("before", before), ("after", after)):
        if image.ndim != 4 or image.shape[1] != in_channels:
            raise ShapeError(
                f"{net} got the image {date} of shape {list(image.shape)} and needs [B, {in_channels}, H, W]."
            )
    if before.shape != after.shape:
        raise ShapeError(
            f"{net} got images of shapes {list(before.shape)} before and {list(after.shape)} after: both dates need "
            "one size and pixels that lie upon each other; align the rasters first."
        )


def resized(x: Tensor, like: Tensor) -> Tensor:
    """x [B, C, h, w] at the sides of `like`, bilinearly, corners not aligned."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _encoder(name: str, in_channels: int, arguments: dict[str, Any]) -> nn.Module:
    if name in OFFICIAL_ENCODERS:
        name, arguments = "vmamba_tiny_s2l5", OFFICIAL_ENCODERS[name] | arguments
    try:
        return create_encoder(name, 2, in_channels, **arguments)
    except StatefieldError:
        raise
    except (TypeError, RuntimeError, AssertionError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"the encoder {name!r} cannot be built with encoder_args={arguments} to give a pyramid of maps: {error} "
            "Choose another encoder (`statefield models` lists ours) or other arguments."
        ) from error

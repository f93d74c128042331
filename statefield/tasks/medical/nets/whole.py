"""`WholeNet`: a net of this folder by its name, for slices of any size."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.medical.nets import NETS


class WholeNet(nn.Module):
    """A net for slices: [B, C, H, W] float -> raw logits [B, K, H, W], padded by its edge to what the net takes.

    Args:
        name: of `NETS`. in_channels: C. num_classes: K, background included. net_args: further arguments of the net.

    Raises:
        UnknownName: no such net. ConfigError: an argument that it does not take or cannot work with.
    """

    def __init__(self, name: str, *, in_channels: int, num_classes: int, net_args: Mapping[str, Any]) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        cls = NETS[name]
        known = [key for key in inspect.signature(cls).parameters if key not in ("in_channels", "out_channels")]
        unknown = sorted(set(net_args) - set(known) | set(net_args) & {"spatial_dims", "deep_supervision"})
        if unknown:
            raise ConfigError(
                f"the net {name!r} takes no {', '.join(unknown)} here; net_args may hold "
                f"{', '.join(key for key in known if key not in ('spatial_dims', 'deep_supervision'))}."
            )
        self.body = cls(2, in_channels, num_classes, **net_args)
        step = self.body.multiple
        self.multiples = (step, step) if isinstance(step, int) else tuple(step)

    def forward(self, image: Tensor) -> Tensor:
        """Raw logits [B, K, H, W] of `image` [B, C, H, W]; any H, W >= 1."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ShapeError(
                f"the net got an image of shape {tuple(image.shape)} and needs [B, {self.in_channels}, H, W]: "
                "check the number of channels (slice_context included)."
            )
        height, width = image.shape[-2:]
        below, right = (-side % step for side, step in zip((height, width), self.multiples, strict=True))
        padded = functional.pad(image, (0, right, 0, below), mode="replicate") if below or right else image
        return self.body(padded)[..., :height, :width]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay would harm, as the net declares them."""
        declared = getattr(self.body, "no_weight_decay", None)
        return {f"body.{name}" for name in declared()} if callable(declared) else set()

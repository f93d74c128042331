"""`WholeNet`: a net of this folder by its name, for slices or volumes of any size."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.medical.nets import NETS

_SET_HERE = ("spatial_dims", "in_channels", "out_channels", "deep_supervision")  # by other settings than net_args


class WholeNet(nn.Module):
    """A net for slices or volumes: [B, C, *S] float -> raw logits [B, K, *S], padded by its edge to what the net takes.

    With `deep_supervision` it gives, in training, a list of logits, the largest first; images must then have sides that
    are multiples of `multiples`, so that each voxel of a smaller map stands for whole voxels of the image.

    Args:
        name: of `NETS`. spatial_dims: 2 or 3. in_channels: C. num_classes: K, background included.
        net_args: further arguments of the net.
        image_size: sides of the images that it will see; what a net needs that is built for one size, and takes from
            here unless `net_args` has its own. None: they differ.
        deep_supervision: see above.

    Attributes: multiples: of each axis, what its sides are padded to. image_size: the only sides that the net takes,
        None where it takes any.

    Raises:
        UnknownName: no such net. ConfigError: an argument that it does not take or cannot work with.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int,
        num_classes: int,
        net_args: Mapping[str, Any],
        spatial_dims: Literal[2, 3] = 2,
        image_size: Sequence[int] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels, self.num_classes = spatial_dims, in_channels, num_classes
        self.deep_supervision = deep_supervision
        cls = NETS[name]
        known = list(inspect.signature(cls).parameters)
        unknown = sorted({key for key in net_args if key not in known or key in _SET_HERE})
        if unknown:
            raise ConfigError(
                f"the net {name!r} takes no {', '.join(unknown)} here; net_args may hold "
                f"{', '.join(key for key in known if key not in _SET_HERE)}."
            )
        if deep_supervision and "deep_supervision" not in known:
            raise ConfigError(
                f"model.deep_supervision is true, but the net {name!r} has one output only. Set it to false, or choose "
                f"a net that has coarser ones: {', '.join(nets_with_deep_supervision(spatial_dims))}."
            )
        arguments = dict(net_args) | ({"deep_supervision": True} if deep_supervision else {})
        if image_size is not None and "image_size" not in arguments and _is_for_one_size(cls, arguments):
            arguments["image_size"] = tuple(image_size)
        self.body = cls(spatial_dims, in_channels, num_classes, **arguments)
        step = self.body.multiple
        self.multiples = (step,) * spatial_dims if isinstance(step, int) else tuple(step)
        fixed = getattr(self.body, "image_size", None)
        self.image_size = None if fixed is None else tuple(fixed)
        for sides, reason in (
            (self.image_size, f"the net {name!r} with place='encoder' is built for one size of image"),
            (image_size if deep_supervision else None, "deep supervision compares maps of 1/2, 1/4, ... of the patch"),
        ):
            if sides is not None and any(side % step for side, step in zip(sides, self.multiples, strict=True)):
                raise ConfigError(
                    f"{reason}, and {tuple(sides)} are not multiples of {self.multiples}, by which the net shrinks its "
                    "maps: choose such sides for data.patch_size (or image_size in net_args)."
                )
        if image_size is not None:
            self._require_variance(name, image_size)

    def _require_variance(self, name: str, image_size: Sequence[int]) -> None:
        """Raise `ConfigError` where an instance norm would see a single pixel, which has no variance to train with."""
        norms = (nn.InstanceNorm2d, nn.InstanceNorm3d)
        if any(side > step for side, step in zip(image_size, self.multiples, strict=True)):
            return
        if any(isinstance(module, norms) for module in self.body.modules()):
            raise ConfigError(
                f"data.patch_size = {tuple(image_size)}: the net {name!r} shrinks it by {self.multiples} to a single "
                "pixel, which its norms cannot be trained with. Choose a patch that is larger along one axis at least, "
                "or a net of fewer stages."
            )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Raw logits [B, K, *S] of `image` [B, C, *S]; any sides >= 1. A list of them: see the class."""
        if image.ndim != self.spatial_dims + 2 or image.shape[1] != self.in_channels:
            raise ShapeError(
                f"the net got an image of shape {tuple(image.shape)} and needs [B, {self.in_channels}, "
                f"{', '.join('DHW'[3 - self.spatial_dims :])}]: check the number of channels (slice_context included)."
            )
        sides = image.shape[2:]
        missing = [-side % step for side, step in zip(sides, self.multiples, strict=True)]
        if not any(missing):
            return self.body(image)
        if self.deep_supervision and self.training:
            raise ShapeError(
                f"the net got an image of shape {tuple(image.shape)} in training with deep supervision, which needs "
                f"sides that are multiples of {self.multiples}: choose such a data.patch_size."
            )
        padding = [edge for count in reversed(missing) for edge in (0, count)]
        logits = self.body(functional.pad(image, padding, mode="replicate"))
        return logits[(..., *(slice(side) for side in sides))]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay would harm, as the net declares them."""
        declared = getattr(self.body, "no_weight_decay", None)
        return {f"body.{name}" for name in declared()} if callable(declared) else set()


def nets_of(spatial_dims: int) -> list[str]:
    """The names of the nets that exist in so many dimensions."""
    return sorted(name for name, cls in NETS.items() if spatial_dims in getattr(cls, "dimensions", ()))


def nets_with_deep_supervision(spatial_dims: int) -> list[str]:
    """Of those, the names of the nets with coarser outputs."""
    return [name for name in nets_of(spatial_dims) if "deep_supervision" in inspect.signature(NETS[name]).parameters]


def _is_for_one_size(cls: type, arguments: Mapping[str, Any]) -> bool:
    """Whether the net has to be told the sides of its images."""
    size = inspect.signature(cls).parameters.get("image_size")
    return size is not None and (size.default is inspect.Parameter.empty or arguments.get("place") == "encoder")

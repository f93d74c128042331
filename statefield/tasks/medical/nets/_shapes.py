"""What every net checks of its arguments and of its image, told in one way."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from statefield.errors import ConfigError, ShapeError


def check_dims(net: str, spatial_dims: int, possible: Sequence[int]) -> None:
    """`ConfigError` unless the net exists in so many dimensions."""
    if spatial_dims not in possible:
        raise ConfigError(
            f"{net} with spatial_dims={spatial_dims} cannot be had: choose {' or '.join(map(str, possible))}."
        )


def check_image(net: str, image: Tensor, spatial_dims: int, in_channels: int, multiple: int) -> None:
    """`ShapeError` unless the image is [B, in_channels, *S] with sides that are multiples of `multiple`."""
    sides = image.shape[2:]
    wanted = f"[B, {in_channels}, {', '.join('DHW'[3 - spatial_dims :])}]"
    if len(sides) != spatial_dims or image.shape[1] != in_channels:
        raise ShapeError(f"{net} got an image of shape {list(image.shape)} and needs {wanted}.")
    if any(side < multiple or side % multiple for side in sides):
        raise ShapeError(
            f"{net} got an image of shape {list(image.shape)}: its sides have to be multiples of {multiple}; pad it, "
            "or predict windows of such a size."
        )

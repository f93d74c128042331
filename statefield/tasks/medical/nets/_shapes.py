"""What every net checks of its arguments and of its image, told in one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from statefield.errors import ConfigError, ShapeError


def check_dims(net: str, spatial_dims: int, possible: Sequence[int]) -> None:
    """`ConfigError` unless the net exists in so many dimensions."""
    if spatial_dims not in possible:
        raise ConfigError(
            f"{net} with spatial_dims={spatial_dims} cannot be had: choose {' or '.join(map(str, possible))}."
        )


def check_image(
    net: str,
    image: Tensor,
    spatial_dims: int,
    in_channels: int,
    multiple: int | Sequence[int],
    *,
    image_size: Sequence[int] | None = None,
) -> None:
    """`ShapeError` unless the image is [B, in_channels, *S] with sides that are multiples of `multiple`.

    Args: image_size: where given, the only sides that there may be.
    """
    sides = tuple(image.shape[2:])
    got = f"{net} got an image of shape {list(image.shape)}"
    if len(sides) != spatial_dims or image.shape[1] != in_channels:
        raise ShapeError(f"{got} and needs [B, {in_channels}, {', '.join('DHW'[3 - spatial_dims :])}].")
    steps = (multiple,) * spatial_dims if isinstance(multiple, int) else tuple(multiple)
    if any(side < step or side % step for side, step in zip(sides, steps, strict=True)):
        wanted = str(steps[0]) if len(set(steps)) == 1 else " and ".join(map(str, steps))
        raise ShapeError(
            f"{got}: its sides have to be multiples of {wanted}; pad it, or predict windows of such a size."
        )
    if image_size is not None and sides != tuple(image_size):
        raise ShapeError(f"{got}, and it was built for images of {list(image_size)}: predict windows of that size.")


def convolution(spatial_dims: int) -> Callable[..., nn.Module]:
    """The class of convolutions in so many dimensions."""
    return {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]


def instance_norm(spatial_dims: int) -> Callable[..., nn.Module]:
    """The class of instance norms in so many dimensions."""
    return {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[spatial_dims]


def max_pool(spatial_dims: int) -> Callable[..., nn.Module]:
    """The class of max pooling in so many dimensions."""
    return {2: nn.MaxPool2d, 3: nn.MaxPool3d}[spatial_dims]


def upsampling(spatial_dims: int) -> nn.Module:
    """Twice the size, linearly, as MONAI's `nontrainable` upsampling does it (corners not aligned)."""
    return nn.Upsample(scale_factor=2, mode={2: "bilinear", 3: "trilinear"}[spatial_dims], align_corners=False)

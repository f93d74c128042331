"""What every operator asks of its tensors, whatever their shapes: one device, and numbers that gradients can be of."""

from __future__ import annotations

from torch import Tensor

from statefield.errors import ShapeError


def check_tensors(operator: str, **tensors: Tensor | None) -> None:
    """Refuse tensors that are not real and floating, or not on the first one's device; None is an argument not given.

    Raises:
        ShapeError: names the operator and the argument.
    """
    names = iter(tensors.items())
    of, first = next(names)
    assert first is not None, "the first argument of an operator is given"
    device = first.device
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ShapeError(
                f"{operator}: {name} is {tensor.dtype}, it has to be real and floating (float32, float64, bfloat16 or "
                f"float16)."
            )
        if tensor.device != device:
            raise ShapeError(f"{operator}: {name} is on {tensor.device} and {of} on {device}: move them together.")

"""What is exported: a net, an example of its inputs, and what the file says of itself. Each field makes its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

__all__ = ["Subject"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A net as a file of another runtime is to hold it.

    Attributes:
        name: of the model, for people.
        net: in eval mode, float32, on the CPU; called with the inputs by position.
        inputs: an example of each by name, in that order; the first axis of each is the batch, of 2 or more.
        outputs: names of what it returns, in that order.
        spatial: for each input, which of its axes are rows and columns, or planes: those that `any size` frees. Empty
            where the net has one size.
        about: what the file says of itself: text by name. Lists are JSON.
    """

    name: str
    net: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    spatial: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

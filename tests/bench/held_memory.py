"""Calls whose memory is known, for the test that measures it in another process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def call_that_holds(output_mib: int, scratch_mib: int) -> Callable[[], Tensor]:
    """A call that holds two tensors of scratch_mib at once, gives one back, and makes an output beside the other."""

    def call() -> Tensor:
        touched = torch.full((scratch_mib << 18,), 1.0) + 1
        return torch.full((output_mib << 18,), float(touched[0]))

    return call


def call_that_asks_in_vain() -> Callable[[], Tensor]:
    """A call that asks for 64 MiB and never touches them."""
    return lambda: torch.empty(64 << 18)

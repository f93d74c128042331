"""What training may use of a machine, from which a plan takes the size of patches and nets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from statefield.datasets.readers.mapped import available_bytes
from statefield.errors import ConfigError


@dataclass(frozen=True)
class Budget:
    """What training may use.

    Args:
        device: "cpu" or "gpu".
        memory_gb: for weights, optimiser and what the backward pass needs.
        reason: where the number comes from, in a clause.
        free_gb: main memory that the cases may use. cores: of the CPU.
    """

    device: Literal["cpu", "gpu"]
    memory_gb: float
    reason: str
    free_gb: float
    cores: int

    def __post_init__(self) -> None:
        if not self.memory_gb > 0:
            raise ConfigError(f"a budget of {self.memory_gb} GB of memory given: a number above 0 is needed.")


def machine_budget(device: Literal["auto", "cpu", "gpu"] = "auto", memory_gb: float | None = None) -> Budget:
    """The budget of this machine, or what of it is not given.

    A GPU's is nine tenths of its memory. A CPU's bounds the time of a step and not the memory, which it has enough of:
    a quarter of a GB for each core, with which a step of the nets planned here takes about a second or two.
    """
    import torch

    free_gb, cores = available_bytes() / 1e9, os.cpu_count() or 1
    chosen = ("gpu" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if memory_gb is not None:
        return Budget(chosen, memory_gb, "as given", free_gb, cores)
    if chosen == "cpu":
        why = f"a quarter for each of {cores} cores, as time is the limit"
        return Budget("cpu", min(4.0, max(0.5, cores / 4)), why, free_gb, cores)
    if not torch.cuda.is_available():
        why = "there is no GPU here to ask, so that of nnU-Net's own plans is taken; --memory sets it"
        return Budget("gpu", 8.0, why, free_gb, cores)
    properties = torch.cuda.get_device_properties(0)
    whole = properties.total_memory / 1e9
    return Budget(
        "gpu", round(0.9 * whole, 1), f"nine tenths of the {whole:.0f} GB of {properties.name}", free_gb, cores
    )

"""Several processes that train one net: how they are started, and sums over all of them.

Each process has its share of every batch. What a loss sums over pixels is summed over the processes before it is
divided (`summed`), so that the loss, and the mean of the processes' gradients, are those of one process with the whole
batch. Without a process group there is one process, and everything here is the identity.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy as FabricDDPStrategy
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, distributed

from statefield.errors import ConfigError
from statefield.tasks.common.config import TrainerConfig

# The first process also predicts held-out cases and writes files while the others wait for it.
_PATIENCE = timedelta(days=2)


def is_parallel(settings: TrainerConfig) -> bool:
    """Whether the settings ask for more than one process, or for a strategy that needs a process group."""
    return settings.devices != 1 or settings.num_nodes > 1 or settings.strategy != "auto"


def launch(settings: TrainerConfig) -> None:
    """Start the other processes and join them, where the settings ask for several; again, it does nothing.

    Under torchrun and SLURM they are there already. Else this program is started again, with its own command line, once
    for each further device of this machine; each copy runs up to this call and joins.
    """
    if not is_parallel(settings) or distributed.is_initialized():
        return
    Fabric(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=FabricDDPStrategy(timeout=_PATIENCE),
    ).launch()


def strategy_of(settings: TrainerConfig) -> str | Strategy:
    """Lightning's strategy: DDP copies the net to each process; FSDP2 shards weights, gradients and moments."""
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=num_processes(), tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    if is_parallel(settings):
        # an encoder may have parameters that its pyramid of features does not need
        return DDPStrategy(find_unused_parameters=True, timeout=_PATIENCE)
    return "auto"


def num_processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if distributed.is_initialized():
        distributed.barrier()


def of_all(value: Any) -> list[Any]:
    """The value that each process gives, by rank."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    distributed.all_gather_object(values, value)
    return values


def share_of_batch(batch_size: int) -> int:
    """Patches of a batch for each process. Raises `ConfigError` where it does not divide."""
    share, left = divmod(batch_size, num_processes())
    if left or not share:
        raise ConfigError(
            f"data.batch_size = {batch_size} cannot be shared evenly by {num_processes()} processes: it is the whole "
            "batch, of all devices together, so make it a multiple of their number."
        )
    return share


def summed(value: Tensor) -> Tensor:
    """The sum of `value` over all processes, the same in each.

    Its gradient is that of the sum, times the number of processes: DDP and FSDP2 take the mean of the processes'
    gradients, and their sum is what one process would have. Nothing is sent in the backward pass.
    """
    return _Sum.apply(value) if num_processes() > 1 else value


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * num_processes()

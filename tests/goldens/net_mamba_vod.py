"""The goldens of MAMBA video object detection: its aggregator over a memory bank."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import recipe
import torch
from systems import Built, builder, take
from torch import Tensor

from statefield.errors import ConfigError
from statefield.tasks.tracking.nets import MemoryAggregation, MemoryBank, memory_aggregation


@builder("mamba_vod", "MambaAggregator")
def _aggregator(kwargs: dict[str, Any]) -> Built:
    bank = dict(kwargs["memory_cfg"])
    for policy in ("sampling_policy", "updating_policy"):
        if bank.pop(policy, "random") != "random":
            raise ConfigError(f"another {policy} than 'random' has no counterpart.")
    lengths = take(bank, {"max_length": "max_length", "key_length": "key_length"})
    wanted = {"in_channels": "channels", "num_attention_blocks": "heads"}
    aggregation = MemoryAggregation(**take(kwargs, wanted, ("memory_cfg",)))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        calls = count()

        def recorded(places: int, device: torch.device) -> Tensor:
            order = np.argsort(recipe.uniform(f"perm.{next(calls)}", (places,)), kind="stable")
            return torch.from_numpy(order).to(device)

        aggregation.bank = MemoryBank(**lengths, permute=recorded)
        added = aggregation(inputs["x"], inputs["ref_x"])
        found = {"agg(x, ref_x), first frame": added}
        if "frames" not in inputs:
            return found
        aggregation.bank.write(inputs["ref_x"])
        aggregation.bank.write((inputs["x"] + added)[:5])
        for number, frame in enumerate(inputs["frames"]):
            added = aggregation(frame)
            found[f"agg(frames[{number}]"] = added
            aggregation.bank.write((frame + added)[:5])
        return found | {"memory bank": aggregation.bank.features}

    return Built(run, aggregation, memory_aggregation.checkpoint_filter_fn)

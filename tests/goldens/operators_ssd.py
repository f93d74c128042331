"""Mamba-2's scan in the table of systems: systems.py imports this module to file its builder."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor

from statefield.kernels import ssd

_ARGUMENTS = {
    "chunk_size": "chunk_size",
    "block_len": "chunk_size",
    "dt_softplus": "dt_softplus",
    "dt_limit": "dt_limit",
    "return_final_states": "return_state",
}


@builder("mamba_ssm", "ssd_minimal_discrete", "mamba_chunk_scan_combined", "ssd_chunk_scan_combined_ref")
def _ssd(kwargs: dict[str, Any]) -> Built:
    options = take(kwargs, _ARGUMENTS, ("state_dtype", "return_varlen_states"))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        given = dict(inputs)
        plain = {_ARGUMENTS[name]: given.pop(name) for name in list(given) if name in _ARGUMENTS}
        given["initial_state"] = given.pop("initial_states", None)
        result = ssd(**given, **(options | plain))
        return {"out": result[0], "final states": result[1]} if isinstance(result, tuple) else {"out": result}

    return Built(run)

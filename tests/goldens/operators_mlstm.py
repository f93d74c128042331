"""The mLSTM cell of NX-AI/vision-lstm: from the goldens of its function to `mlstm`."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import mlstm


@builder("vil", "parallel_stabilized_simple")
def _parallel_stabilized_simple(kwargs: dict[str, Any]) -> Built:
    """The official function takes its causal mask as an argument, which may only be the one it would make itself."""
    if kwargs.get("lower_triangular_matrix") is not None:
        raise ConfigError(
            "the official argument lower_triangular_matrix is given: mlstm is causal and takes no other mask."
        )
    kwargs = {name: value for name, value in kwargs.items() if name != "lower_triangular_matrix"}
    options = take(kwargs, {"eps": "eps", "stabilize_rowwise": "stabilize_rowwise"})

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        names = {"queries": "q", "keys": "k", "values": "v", "igate_preact": "i", "fgate_preact": "f"}
        return {"h": mlstm(**{names.get(name, name): value for name, value in inputs.items()}, **options)}

    return Built(run)

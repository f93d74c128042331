"""Compile every Triton kernel for three generations of NVIDIA GPUs, and note registers and spills. Needs no GPU.

python benchmarks/triton_registers.py       writes benchmarks/results/triton_registers.json; docs/kernels_gpu.md has
                                            it as a table (python benchmarks/tables.py fills it in)

What is compiled stands in each operator's cases.py (`compiled`).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from statefield.files import write_json
from statefield.kernels.ahead_of_time import Compiled, Launch, compile_launch, compiled_cases, launches_of
from statefield.tasks.common.environment import describe_environment

CAPABILITIES = (80, 90, 100)


def main() -> None:
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="statefield-triton-"))
    rows = []
    for name, (family, sized) in compiled_cases().items():
        for launch in launches_of(family, sized):
            compiled = [compile_launch(launch, capability) for capability in CAPABILITIES]
            rows.append(_row(name, launch, sized.dtype, compiled))
            print(
                f"{name:28} {launch.name:24} registers {rows[-1]['registers']}, stack {rows[-1]['stack_bytes']} bytes"
            )
    report = {"environment": describe_environment(("torch", "triton")), "kernels": rows}
    path = Path(__file__).parent / "results" / "triton_registers.json"
    write_json(path, report)
    print(f"wrote {path}")


def _row(name: str, launch: Launch, dtype: torch.dtype, compiled: list[Compiled]) -> dict[str, object]:
    hopper = compiled[CAPABILITIES.index(90)]
    return {
        "case": name,
        "kernel": launch.name.removesuffix("_kernel"),
        "dtype": str(dtype).removeprefix("torch."),
        "num_warps": launch.options.get("num_warps", 4),  # Triton's own number where the launcher names none
        "registers": " / ".join(str(found.registers) for found in compiled),
        "stack_bytes": " / ".join(str(found.stack_bytes) for found in compiled),
        "exponentials": hopper.instructions.get("MUFU.EX2", 0),
        "shuffles": hopper.instructions.get("SHFL", 0),
        "arithmetic": sum(hopper.instructions.get(mnemonic, 0) for mnemonic in ("FADD", "FMUL", "FFMA")),
        "instructions": sum(hopper.instructions.values()),
    }


if __name__ == "__main__":
    main()

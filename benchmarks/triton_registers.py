"""Compile every Triton kernel for three generations of NVIDIA GPUs, and note registers and spills. Needs no GPU.

python benchmarks/triton_registers.py       writes benchmarks/results/triton_registers.json; docs/kernels_gpu.md has
                                            it as a table (python benchmarks/tables.py fills it in)
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from statefield.files import write_json
from statefield.kernels.ahead_of_time import Compiled, Launch, compile_launch, launches_of
from statefield.kernels.conformance import FusionCase, ScanCase
from statefield.tasks.common.environment import describe_environment

CAPABILITIES = (80, 90, 100)
_WITHOUT_STATES = ("initial_state", "grad_last")
CASES = {
    "scan, N = 16, z": (ScanCase(2, 64, 192, 16, absent=_WITHOUT_STATES), torch.bfloat16),
    "scan, N = 1": (ScanCase(2, 64, 128, 1, constant="C", absent=("D", "z", *_WITHOUT_STATES)), torch.float32),
    "scan, N = 64, z": (ScanCase(2, 64, 192, 64, absent=_WITHOUT_STATES), torch.bfloat16),
    "scan, N = 16, cut in time": (ScanCase(1, 128, 192, 16, absent=_WITHOUT_STATES, segmented=True), torch.bfloat16),
    "fusion, N = 1": (FusionCase(2, 16, 16, 1, 128), torch.float32),
}


def main() -> None:
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="statefield-triton-"))
    rows = []
    for name, (case, dtype) in CASES.items():
        for launch in launches_of(case, dtype):
            compiled = [compile_launch(launch, capability) for capability in CAPABILITIES]
            rows.append(_row(name, launch, dtype, compiled))
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
        "num_warps": launch.options["num_warps"],
        "registers": " / ".join(str(found.registers) for found in compiled),
        "stack_bytes": " / ".join(str(found.stack_bytes) for found in compiled),
        "exponentials": hopper.instructions.get("MUFU.EX2", 0),
        "shuffles": hopper.instructions.get("SHFL", 0),
        "arithmetic": sum(hopper.instructions.get(mnemonic, 0) for mnemonic in ("FADD", "FMUL", "FFMA")),
        "instructions": sum(hopper.instructions.values()),
    }


if __name__ == "__main__":
    main()

"""What benchmarks/gpu.sh runs: every operator on this GPU, each in a process of its own, and one table of all.

Roofs, measured in the same run. Bytes: what has to be read and written once, at the rate of a large `copy_`.
Exponentials: at the rate of a kernel that does nothing else. Matrix products: at the rate of torch.matmul in bfloat16
(float32 where the case is). An operator cannot be faster than the latest of them; its share of that is printed. An
operator with a wrong case is not timed; one that fails, hangs or dies is told, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from statefield.files import write_json
from statefield.kernels import conformance, self_check
from statefield.tasks.common.environment import describe_environment

GOALS = {"forward": 0.70, "backward": 0.55}


@dataclass(frozen=True)
class Row:
    """One timed direction of one case. `share` is the time that the latest roof allows over the time taken."""

    operator: str
    case: str
    dtype: str
    direction: str
    milliseconds: float
    byte_roof_ms: float
    exp_roof_ms: float
    matrix_roof_ms: float
    share: float
    goal: float
    times_faster: dict[str, float | None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, under TRITON_INTERPRET=1")
    parser.add_argument("--out", type=Path, default=None, help="write the numbers to this file")
    parser.add_argument("--op", action="append", help="only this operator (may be given again)")
    parser.add_argument("--limit-s", type=float, default=1200, help="seconds after which an operator is given up")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("No CUDA device is visible to torch: run this on a machine with an NVIDIA GPU, or with --dry-run.")
        return 2
    names = [name for name in conformance.families() if name in (options.op or [name])]
    unknown = sorted(set(options.op or ()) - set(names))
    if unknown:
        print(f"no operator is named {', '.join(unknown)}; there are {', '.join(conformance.families())}.")
        return 2
    environment = describe_environment(("torch", "triton"))
    print(", ".join(f"{key} {value}" for key, value in environment.items()), flush=True)
    rounds = 1 if options.dry_run else 5 if options.quick else 30
    common = ["--rounds", str(rounds), *(["--dry-run"] if options.dry_run else [])]
    ceilings, problem = run_alone("roofs", common, options.limit_s)
    if problem:
        print(f"the roofs could not be measured: {problem}")
        return 1
    wrong: dict[str, list[str]] = {}
    rows: list[Row] = []
    for name in names:
        found, problem = run_alone(name, common, options.limit_s)
        if problem or found["wrong"]:
            wrong[name] = [problem] if problem else found["wrong"]
        rows += [row_of(timed, ceilings) for timed in ([] if problem else found["timed"])]
    if not options.dry_run:
        wrong |= first_uses()
    print_table(rows, ceilings)
    for name, told in wrong.items():
        print(f"WRONG {name}: {len(told)} of its checks, the first: {told[0]}")
    print(f"\n{len(set(names) - set(wrong))} of {len(names)} operators are right.")
    if options.out is not None and not options.dry_run:
        report = {"environment": environment, "roofs": ceilings, "wrong": wrong, "rows": [asdict(row) for row in rows]}
        write_json(options.out, report)
        print(f"wrote {options.out}")
    return 1 if wrong else 0


def run_alone(what: str, common: list[str], limit_s: float) -> tuple[dict[str, Any], str]:
    """Run gpu_operator.py for an operator (or "roofs"), its output passing through; what it found, and what went wrong
    with the process itself.
    """
    script = Path(__file__).with_name("gpu_operator.py")
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, str(script), what, *common, "--found", str(found)]
        try:
            done = subprocess.run(command, timeout=limit_s, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            return {}, f"given up after {limit_s:.0f} s"
        if not found.is_file():
            return {}, f"its process ended with status {done.returncode}; what it said stands above"
        return json.loads(found.read_text(encoding="utf-8")), ""


def row_of(timed: dict[str, Any], ceilings: dict[str, float]) -> Row:
    """A timing held against the roofs."""
    matrix = ceilings["matrix_flops_float32" if timed["dtype"] in ("float32", "float64") else "matrix_flops_bfloat16"]
    byte_ms, exp_ms = timed["bytes"] / ceilings["bytes"], timed["exponentials"] / ceilings["exponentials"]
    matrix_ms = timed["matrix_flops"] / matrix
    return Row(
        timed["operator"], timed["case"], timed["dtype"], timed["direction"], timed["milliseconds"], byte_ms, exp_ms,
        matrix_ms, max(byte_ms, exp_ms, matrix_ms) / timed["milliseconds"], GOALS[timed["direction"]],
        timed["times_faster"],
    )  # fmt: skip


def first_uses() -> dict[str, list[str]]:
    """The start-up self-check of every implementation that this machine runs, as `statefield doctor` makes it."""
    wrong: dict[str, list[str]] = {}
    print()
    for row in self_check.self_check():
        verdict = f"WRONG: {row.problem}" if row.problem else "equal"
        print(f"self-check {row.op:22} {row.device:5} {row.implementation:8} {row.error:.1e}  {verdict}", flush=True)
        if row.problem:
            wrong[f"{row.op} ({row.implementation}, {row.device})"] = [row.problem]
    return wrong


def print_table(rows: list[Row], ceilings: dict[str, float]) -> None:
    print(
        f"\nroofs: {ceilings['bytes'] / 1e6:.0f} GB/s copied, {ceilings['exponentials'] / 1e6:.0f} G exponentials/s, "
        f"matrix products {ceilings['matrix_flops_bfloat16'] / 1e9:.1f} TFLOP/s in bfloat16, "
        f"{ceilings['matrix_flops_float32'] / 1e9:.1f} in float32; their columns are milliseconds\n"
    )
    headings = f"{'ms':>9} {'bytes':>9} {'exp':>9} {'matrix':>9} {'share':>6} {'goal':>5}"
    print(f"{'case':64} {'':8} {headings}         times faster than")
    for row in rows:
        rivals = ", ".join(
            f"{name} {'-' if times is None else f'{times:.1f}'}" for name, times in row.times_faster.items()
        )
        case = f"{row.operator}: {row.case}, {row.dtype}"
        print(
            f"{case[:64]:64} {row.direction:8} {row.milliseconds:9.3f} {row.byte_roof_ms:9.3f} {row.exp_roof_ms:9.3f} "
            f"{row.matrix_roof_ms:9.3f} {row.share:6.0%} {row.goal:5.0%} "
            f"{'met   ' if row.share >= row.goal else 'missed'}  {rivals}"
        )


if __name__ == "__main__":
    sys.exit(main())

"""What benchmarks/gpu.sh runs: correctness of every operator on this GPU, then its speed beside the machine's roofs.

Roofs, measured in the same run. Bytes: what has to be read and written once, at the rate of a large `copy_`.
Exponentials: at the rate of a kernel that does nothing else. Matrix products: at the rate of torch.matmul in bfloat16
(float32 where the case is). An operator cannot be faster than the latest of them; its share of that is printed. An
operator with a wrong case is not timed, one that fails is told and the rest goes on.

Which cases are checked and timed stands in each operator's cases.py (`variants`, `large`, `measured`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from statefield.files import write_json
from statefield.kernels import conformance, use_kernels
from statefield.kernels._choice import OPERATORS
from statefield.kernels.conformance import Family, Sized
from statefield.tasks.common.environment import describe_environment

GOALS = {"forward": 0.70, "backward": 0.55}
RIVALS = ("reference", "chunked")


@dataclass(frozen=True)
class Roofs:
    """What the machine reaches, each a millisecond."""

    bytes: float
    exponentials: float
    matrix_flops: dict[str, float]  # by dtype


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
    times_faster: dict[str, float]  # than the named rival, forward


@triton.jit
def _exponentials_kernel(out, REPEATS: tl.constexpr, BLOCK: tl.constexpr):
    """REPEATS exponentials for each element, chained in registers; eight elements a thread hide the latency."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = place.to(tl.float32) * 1e-9
    for _ in range(REPEATS):
        x = tl.exp2(x * -0.5)
    tl.store(out + place, x)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, under TRITON_INTERPRET=1")
    parser.add_argument("--out", type=Path, default=None, help="write the numbers to this file")
    parser.add_argument("--op", action="append", help="only this operator (may be given again)")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("No CUDA device is visible to torch: run this on a machine with an NVIDIA GPU, or with --dry-run.")
        return 1
    device = "cpu" if options.dry_run else "cuda"
    chosen = {name: family for name, family in conformance.families().items() if name in (options.op or [name])}
    wrong = {name: told for name, family in chosen.items() if (told := check(family, device, tiny=options.dry_run))}
    rounds = 1 if options.dry_run else 5 if options.quick else 30
    ceilings = roofs(device, rounds)
    products = ", ".join(f"{rate / 1e9:.1f} TFLOP/s {dtype}" for dtype, rate in ceilings.matrix_flops.items())
    print(
        f"\nroofs: {ceilings.bytes / 1e6:.0f} GB/s copied, {ceilings.exponentials / 1e6:.0f} G exponentials/s, "
        f"matrix products {products}\n"
    )
    headings = f"{'ms':>9} {'bytes':>9} {'exp':>9} {'matrix':>9} {'share':>6} {'goal':>5}"
    print(f"{'case':64} {'':8} {headings}  times faster than")
    rows: list[Row] = []
    for name, family in chosen.items():
        if name in wrong:
            print(f"{name}: not timed, its results are wrong")
            continue
        try:
            for row in measure(family, device, rounds, ceilings, tiny=options.dry_run):
                rows.append(row)
                _print(row)
        except Exception as problem:  # a kernel that fails must not hide what the others do; it is told and counted
            print(f"{name}: FAILED while it was timed: {type(problem).__name__}: {problem}")
            wrong[name] = [f"while it was timed: {type(problem).__name__}: {problem}"]
    if options.out is not None and not options.dry_run:
        report = {
            "environment": describe_environment(("torch", "triton")) | {"gpu": torch.cuda.get_device_name()},
            "roofs": asdict(ceilings),
            "wrong": wrong,
            "rows": [asdict(row) for row in rows],
        }
        write_json(options.out, report)
        print(f"\nwrote {options.out}")
    print(
        f"\n{len(chosen) - len(wrong)} of {len(chosen)} operators are right" + "".join(f"; wrong: {n}" for n in wrong)
    )
    return 1 if wrong else 0


def check(family: Family, device: str, *, tiny: bool) -> list[str]:
    """Run an operator's cases and print one line each; the lines of the wrong ones."""
    dtypes = (torch.float32,) if tiny else (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    variants = [next(n for n in family.variants if n.startswith("one"))] if tiny else [*family.variants, *family.large]
    implementation = "triton" if OPERATORS[family.name].has("triton") else None
    wrong = []
    for variant in variants:
        for dtype in dtypes:
            try:
                findings = conformance.check(family.name, variant, implementation, device=device, dtype=dtype)
            except Exception as problem:  # told and counted; the other cases say whether it is the only one
                told = f"{family.name} {variant} {dtype}: {type(problem).__name__}: {problem}"
                print(f"FAILED {told}", flush=True)
                wrong.append(told)
                continue
            bad = [finding for finding in findings if not finding.passed]
            worst = max(findings, key=lambda finding: finding.error / (finding.tolerance or 1))
            told = f"{family.name:20} {variant:32} {dtype!s:15} worst {worst.tensor} {worst.error:.1e}"
            print(f"{'wrong' if bad else 'ok':6} {told}", flush=True)
            for finding in bad:
                print(f"       {finding.tensor}: {finding.error:.2e}, allowed {finding.tolerance:.0e}")
                wrong.append(f"{told}, allowed {finding.tolerance:.0e}")
    return wrong


def roofs(device: str, rounds: int) -> Roofs:
    count = 1 << (14 if device == "cpu" else 28)
    source, target = torch.zeros(count, device=device), torch.empty(count, device=device)
    copied = 2 * 4 * count / median_ms(lambda: target.copy_(source), device, rounds)
    programs, repeats, block = (1, 2, 256) if device == "cpu" else (8192, 4096, 1024)
    out = torch.empty(programs * block, device=device)

    def exponentials() -> None:
        _exponentials_kernel[(programs,)](out, REPEATS=repeats, BLOCK=block, num_warps=4, enable_fp_fusion=True)

    exp = programs * repeats * block / median_ms(exponentials, device, rounds)
    side = 64 if device == "cpu" else 8192
    products = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(side, side, device=device).to(dtype)
        products[_short(dtype)] = 2 * side**3 / median_ms(lambda a=a: a @ a, device, rounds)
    return Roofs(copied, exp, products)


def measure(family: Family, device: str, rounds: int, ceilings: Roofs, *, tiny: bool) -> Iterator[Row]:
    """Forward and backward of each measured case; of a dry run one small variant in its place."""
    cases = family.measured
    if tiny:
        smallest = next(variant for name, variant in family.variants.items() if name.startswith("one"))
        cases = {name: Sized(smallest) for name in list(family.measured)[:1]}
    for name, sized in cases.items():
        yield from _measure(family, name, sized, device, rounds, ceilings)


def _measure(family: Family, name: str, sized: Sized, device: str, rounds: int, ceilings: Roofs) -> Iterator[Row]:
    given = conformance.draw(family, sized, sized.dtype, device=device, mixed=sized.dtype.itemsize == 2)
    leaves = list(conformance.tensors_of(given).values())
    forced = use_kernels("triton") if OPERATORS[family.name].has("triton") else nullcontext()
    with forced:
        outputs = conformance.outputs_of(family, given)
        flowing = conformance.cotangents(outputs)

        def forward() -> object:
            with torch.no_grad():
                return conformance.outputs_of(family, given)

        def backward() -> object:
            return torch.autograd.grad(outputs, leaves, flowing, retain_graph=True)

        taken = {"forward": median_ms(forward, device, rounds), "backward": median_ms(backward, device, rounds)}
    times_faster = {}
    for rival in RIVALS:
        if OPERATORS[family.name].has(rival):
            with use_kernels(rival):
                times_faster[rival] = median_ms(forward, device, min(rounds, 3)) / taken["forward"]
    read, written = sum(map(_bytes, leaves)), sum(map(_bytes, outputs))
    # A backward reads inputs and cotangents and writes gradients; it owes the forward's exponentials once more, and two
    # matrix products for each of the forward's.
    needs = {"forward": (read + written, 1), "backward": (2 * read + written, 2)}
    for direction, (size, products) in needs.items():
        byte_ms, exp_ms = size / ceilings.bytes, sized.exponentials / ceilings.exponentials
        rate = ceilings.matrix_flops["bfloat16" if sized.dtype.itemsize == 2 else "float32"]
        matrix_ms = products * sized.matrix_flops / rate
        share = max(byte_ms, exp_ms, matrix_ms) / taken[direction]
        yield Row(
            family.name, name, _short(sized.dtype), direction, taken[direction], byte_ms, exp_ms, matrix_ms, share,
            GOALS[direction], times_faster if direction == "forward" else {},
        )  # fmt: skip


def median_ms(run: Callable[[], object], device: str, rounds: int) -> float:
    """The median time of `run`, after one unmeasured call that compiles; the GPU's L2 cache is emptied before each."""
    run()
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    flush = torch.empty(256 << 20, dtype=torch.int8, device=device)
    samples = []
    for _ in range(rounds):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end))
    return statistics.median(samples)


def _print(row: Row) -> None:
    rivals = ", ".join(f"{name} {times:.0f}x" for name, times in row.times_faster.items())
    print(
        f"{f'{row.operator}: {row.case} {row.dtype}'[:64]:64} {row.direction:8} {row.milliseconds:9.3f} "
        f"{row.byte_roof_ms:9.3f} {row.exp_roof_ms:9.3f} {row.matrix_roof_ms:9.3f} {row.share:6.0%} {row.goal:5.0%}  "
        f"{rivals}",
        flush=True,
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())

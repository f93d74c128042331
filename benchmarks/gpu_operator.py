"""One operator on this GPU: is it right, and how long does it take? gpu_kernels.py starts this once for each operator.

A process of its own, because a kernel that reaches outside its memory takes the whole process's GPU context with it.

Which cases are checked and timed stands in the operator's cases.py (`variants`, `large`, `measured`).
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

RIVALS = ("reference", "chunked")


@dataclass(frozen=True)
class Timed:
    """One direction of one case: its time, and what it needs of the machine."""

    operator: str
    case: str
    dtype: str
    direction: str
    milliseconds: float
    bytes: int  # inputs and outputs once each; of a backward also cotangents and gradients
    exponentials: int
    matrix_flops: int
    times_faster: dict[str, float | None]  # than the named rival, forward; None where the rival failed


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
    parser.add_argument("what", help="an operator, or 'roofs'")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--dry-run", action="store_true", help="one tiny case on the CPU, under TRITON_INTERPRET=1")
    parser.add_argument("--found", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    if options.what == "roofs":
        write_json(options.found, measured_roofs(device, options.rounds))
        return 0
    family = conformance.family_of(options.what)
    wrong = check(family, device, tiny=options.dry_run)
    timed: list[Timed] = []
    if not wrong:
        cases = _tiny(family) if options.dry_run else family.measured
        for name, sized in cases.items():
            try:
                timed += measure(family, name, sized, device, options.rounds)
            except Exception as problem:  # told and counted; the other cases are still timed
                wrong.append(f"{name}, while it was timed: {type(problem).__name__}: {problem}")
                print(f"FAILED {family.name} {wrong[-1]}", flush=True)
    write_json(options.found, {"wrong": wrong, "timed": [asdict(row) for row in timed]})
    return 1 if wrong else 0


def check(family: Family, device: str, *, tiny: bool) -> list[str]:
    """Run an operator's cases and print one line each; the lines of the wrong ones."""
    wrong = []
    for variant, dtype, memory in _checks(family, tiny):
        told = f"{family.name:20} {variant:28} {_short(dtype):8} {memory:6}"
        try:
            findings = conformance.check(
                family.name, variant, _implementation(family), device=device, dtype=dtype, memory=memory
            )
        except Exception as problem:  # told and counted; the other cases say whether it is the only one
            wrong.append(f"{told} {type(problem).__name__}: {problem}")
            print(f"FAILED {wrong[-1]}", flush=True)
            continue
        bad = [finding for finding in findings if not finding.passed]
        worst = max(findings, key=lambda finding: finding.error / (finding.tolerance or 1))
        told = f"{told} worst {worst.tensor} {worst.error:.1e}, allowed {worst.tolerance:.0e}"
        print(f"{'wrong' if bad else 'ok':6} {told}", flush=True)
        if bad:
            wrong.append(f"{told}; wrong: {', '.join(finding.tensor for finding in bad)}")
    return wrong


def _checks(family: Family, tiny: bool) -> Iterator[tuple[str, torch.dtype, conformance.Memory]]:
    """Every variant in every dtype; the awkward ones also in other orders of memory."""
    if tiny:
        yield _smallest(family), torch.float32, "dense"
        return
    for variant in (*family.variants, *family.large):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            yield variant, dtype, "dense"
    for variant in family.in_other_memory_orders():
        yield variant, torch.float32, "gaps"
        yield variant, torch.float32, "slices"


def measured_roofs(device: str, rounds: int) -> dict[str, float]:
    """What the machine reaches each millisecond: bytes copied, exponentials, and operations in matrix products."""
    count = 1 << (14 if device == "cpu" else 28)
    source, target = torch.zeros(count, device=device), torch.empty(count, device=device)
    copied = 2 * 4 * count / median_ms(lambda: target.copy_(source), device, rounds)
    programs, repeats, block = (1, 2, 256) if device == "cpu" else (8192, 4096, 1024)
    out = torch.empty(programs * block, device=device)

    def exponentials() -> None:
        _exponentials_kernel[(programs,)](out, REPEATS=repeats, BLOCK=block, num_warps=4, enable_fp_fusion=True)

    found = {"bytes": copied, "exponentials": programs * repeats * block / median_ms(exponentials, device, rounds)}
    side = 64 if device == "cpu" else 8192
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(side, side, device=device).to(dtype)
        found[f"matrix_flops_{_short(dtype)}"] = 2 * side**3 / median_ms(lambda a=a: a @ a, device, rounds)
    return found


def measure(family: Family, name: str, sized: Sized, device: str, rounds: int) -> Iterator[Timed]:
    """Forward and backward of one case."""
    given = conformance.draw(family, sized, sized.dtype, device=device, mixed=sized.dtype.itemsize == 2)
    leaves = list(conformance.tensors_of(given).values())
    implementation = _implementation(family)
    with nullcontext() if implementation is None else use_kernels(implementation):
        outputs = conformance.outputs_of(family, given)
        flowing = conformance.cotangents(outputs)

        def forward() -> object:
            with torch.no_grad():
                return conformance.outputs_of(family, given)

        def backward() -> object:
            return torch.autograd.grad(outputs, leaves, flowing, retain_graph=True)

        taken = {"forward": median_ms(forward, device, rounds), "backward": median_ms(backward, device, rounds)}
    faster = {
        rival: _times_faster(rival, forward, taken["forward"], device, rounds)
        for rival in RIVALS
        if OPERATORS[family.name].has(rival)
    }
    read, written = sum(map(_bytes, leaves)), sum(map(_bytes, outputs))
    # A backward reads inputs and cotangents and writes gradients; it owes the forward's exponentials once more, and two
    # matrix products for each of the forward's.
    for direction, size, products in (("forward", read + written, 1), ("backward", 2 * read + written, 2)):
        yield Timed(
            family.name, name, _short(sized.dtype), direction, taken[direction], size, sized.exponentials,
            products * sized.matrix_flops, faster if direction == "forward" else {},
        )  # fmt: skip


def _times_faster(rival: str, forward: Callable[[], object], taken: float, device: str, rounds: int) -> float | None:
    try:
        with use_kernels(rival):
            return median_ms(forward, device, min(rounds, 3)) / taken
    except Exception as problem:  # a rival that needs too much memory, say: it is told, and is no fault of ours
        print(f"the {rival} form could not be timed: {type(problem).__name__}: {problem}", flush=True)
        return None


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


def _implementation(family: Family) -> str | None:
    """Triton where the operator has it; one that is composed of others runs as it does by itself."""
    return "triton" if OPERATORS[family.name].has("triton") else None


def _smallest(family: Family) -> str:
    return next((name for name in family.variants if name.startswith("one")), family.tiny)


def _tiny(family: Family) -> dict[str, Sized]:
    """The smallest variant, in place of what is measured."""
    return {_smallest(family): Sized(family.variants[_smallest(family)])} if family.measured else {}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())

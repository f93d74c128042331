"""What benchmarks/gpu.sh runs: correctness of the Triton kernels on this GPU, then their speed beside both roofs.

Roofs, measured in the same run. Bytes: what has to be read and written once, at the rate of a large `copy_`.
Exponentials: one for each state and step, at the rate of a kernel that does nothing else. A kernel cannot be faster
than the later of the two; its share of that is printed. An operator with a wrong case is not timed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from statefield.files import write_json
from statefield.kernels import conformance
from statefield.kernels.conformance import FusionCase, ScanCase
from statefield.kernels.selective_scan import chunked
from statefield.kernels.selective_scan import reference as scan_reference
from statefield.kernels.selective_scan import triton as scan
from statefield.kernels.state_fusion import reference as fusion_reference
from statefield.kernels.state_fusion import triton as fusion
from statefield.tasks.common.environment import describe_environment

_WITHOUT_STATES = ("initial_state", "grad_last")
SCANS = (
    (ScanCase(8, 3136, 384, 16, absent=("z", *_WITHOUT_STATES)), torch.bfloat16),
    (ScanCase(8, 3136, 384, 16, absent=_WITHOUT_STATES), torch.bfloat16),
    (ScanCase(1, 16384, 192, 16, absent=("z", *_WITHOUT_STATES)), torch.bfloat16),
    (ScanCase(32, 3136, 384, 1, absent=("z", *_WITHOUT_STATES)), torch.bfloat16),
    (ScanCase(32, 3136, 128, 1, constant="C", absent=("D", "z", *_WITHOUT_STATES)), torch.float32),
)
FUSIONS = (
    (FusionCase(32, 56, 56, 1, 128), torch.float32),
    (FusionCase(32, 14, 14, 1, 512), torch.float32),
    (FusionCase(32, 7, 7, 1, 1024), torch.float32),
)
GOALS = {"forward": 0.70, "backward": 0.55}


@dataclass(frozen=True)
class Row:
    """One timed kernel launch sequence. `share` is the time that the later roof allows over the time taken."""

    case: str
    dtype: str
    direction: str
    milliseconds: float
    byte_roof_ms: float
    exp_roof_ms: float
    share: float
    goal: float
    times_faster: dict[str, float]  # than the named rival; not timed where the rival would take too long


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
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernels_gpu.json")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("No CUDA device is visible to torch: run this on a machine with an NVIDIA GPU, or with --dry-run.")
        return 1
    device = "cpu" if options.dry_run else "cuda"
    wrong = check_all(device, tiny=options.dry_run)
    rounds = 1 if options.dry_run else 5 if options.quick else 30
    bytes_per_ms, exp_per_ms = roofs(device, rounds)
    print(f"\nroofs: {bytes_per_ms / 1e6:.0f} GB/s copied, {exp_per_ms / 1e6:.0f} G exponentials/s")
    print(f"\n{'case':58} {'':9} {'ms':>9} {'bytes':>9} {'exp':>9} {'share':>6} {'goal':>5}  times faster than")
    rows = []
    for op, cases in (("selective_scan", SCANS), ("state_fusion", FUSIONS)):
        if op in wrong:
            print(f"{op}: not timed, its results are wrong")
            continue
        for case, dtype in cases[:1] if options.dry_run else cases:
            small = _shrunk(case) if options.dry_run else case
            for row in measure(small, dtype, device, rounds, bytes_per_ms, exp_per_ms):
                rows.append(row)
                rivals = ", ".join(f"{name} {times:.0f}x" for name, times in row.times_faster.items())
                print(
                    f"{row.case[:58]:58} {row.direction:9} {row.milliseconds:9.3f} {row.byte_roof_ms:9.3f} "
                    f"{row.exp_roof_ms:9.3f} {row.share:6.0%} {row.goal:5.0%}  {rivals}"
                )
    if not options.dry_run:
        write_json(
            options.out,
            {
                "environment": describe_environment(("torch", "triton")),
                "roofs": {"copy_gbps": bytes_per_ms / 1e6, "exp_gps": exp_per_ms / 1e6},
                "wrong": sorted(wrong),
                "rows": [asdict(row) for row in rows],
            },
        )
        print(f"\nwrote {options.out}")
    return 1 if wrong else 0


def check_all(device: str, *, tiny: bool) -> set[str]:
    """Run every conformance case and print one line each; the operators with a wrong one."""
    wrong = set()
    dtypes = (torch.float32,) if tiny else (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for op in ("selective_scan", "state_fusion"):
        cases = list(conformance.cases_named(op, large=not tiny).items())
        for name, case in cases[:1] if tiny else cases:
            for dtype in dtypes:
                findings = conformance.check(op, "triton", case, device, dtype)
                bad = [finding for finding in findings if not finding.passed]
                worst = max(findings, key=lambda finding: finding.error / (finding.tolerance or 1))
                verdict = "wrong" if bad else "ok"
                print(f"{verdict:6} {op:15} {name:70} {dtype!s:15} worst {worst.tensor} {worst.error:.1e}")
                for finding in bad:
                    print(f"       {finding.tensor}: {finding.error:.2e}, allowed {finding.tolerance:.0e}")
                    wrong.add(op)
    return wrong


def roofs(device: str, rounds: int) -> tuple[float, float]:
    """Bytes a millisecond of a large copy (read and written), and exponentials a millisecond."""
    count = 1 << (14 if device == "cpu" else 28)
    source, target = torch.zeros(count, device=device), torch.empty(count, device=device)
    copied = 2 * 4 * count / median_ms(lambda: target.copy_(source), device, rounds)
    programs, repeats, block = (1, 2, 256) if device == "cpu" else (8192, 4096, 1024)
    out = torch.empty(programs * block, device=device)

    def exponentials() -> None:
        _exponentials_kernel[(programs,)](out, REPEATS=repeats, BLOCK=block, num_warps=4, enable_fp_fusion=True)

    return copied, programs * repeats * block / median_ms(exponentials, device, rounds)


def measure(
    case: ScanCase | FusionCase, dtype: torch.dtype, device: str, rounds: int, bytes_per_ms: float, exp_per_ms: float
) -> list[Row]:
    """Forward and backward of one case."""
    inputs = (
        conformance.scan_inputs(case, dtype) if isinstance(case, ScanCase) else conformance.fusion_inputs(case, dtype)
    )
    on_device = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    if isinstance(case, ScanCase):
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
        given = (*(on_device[name] for name in names), on_device["delta_softplus"])
        out, _, states = scan.forward(*given, True)
        read = sum(_bytes(on_device[name]) for name in names)
        exponentials = case.batch * case.length * case.channels * (case.states + 1 + (on_device["z"] is not None))
        needs = {"forward": read + _bytes(out), "backward": 2 * read + _bytes(on_device["grad_out"]) + _bytes(states)}
        runs = {
            "forward": lambda: scan.forward(*given, False),
            "backward": lambda: scan.backward(on_device["grad_out"], None, states, *given),
        }
        rivals = {
            "loop": lambda: scan_reference.forward(*given, False),
            "chunked PyTorch": lambda: chunked.forward(*given, False),
        }
    else:
        names = ("h", "weight", "alpha", "C", "D", "u")
        given = (*(on_device[name] for name in names), on_device["dilations"])
        out = fusion.forward(*given)
        read, exponentials = sum(_bytes(on_device[name]) for name in names), 0
        needs = {"forward": read + _bytes(out), "backward": 2 * read + _bytes(on_device["grad"])}
        runs = {
            "forward": lambda: fusion.forward(*given),
            "backward": lambda: fusion.backward(on_device["grad"], *given),
        }
        rivals = {"PyTorch": lambda: fusion_reference.forward(*given)}
    rows = []
    for direction, run in runs.items():
        taken = median_ms(run, device, rounds)
        byte_ms, exp_ms = needs[direction] / bytes_per_ms, exponentials / exp_per_ms
        times_faster = {}
        if direction == "forward":
            times_faster = {name: median_ms(rival, device, min(rounds, 3)) / taken for name, rival in rivals.items()}
        name = ", ".join(
            f"{key} {value}" for key, value in vars(case).items() if isinstance(value, int) and key not in _FLAGS
        )
        share = max(byte_ms, exp_ms) / taken
        shown = f"{'scan' if isinstance(case, ScanCase) else 'fusion'} {name}"
        if isinstance(case, ScanCase) and "z" not in case.absent:
            shown += ", gated"
        text = str(dtype).removeprefix("torch.")
        rows.append(Row(shown, text, direction, taken, byte_ms, exp_ms, share, GOALS[direction], times_faster))
    return rows


_FLAGS = ("softplus", "strided", "segmented", "groups")


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


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else math.prod(tensor.shape) * tensor.element_size()


def _shrunk(case: ScanCase | FusionCase) -> ScanCase | FusionCase:
    if isinstance(case, ScanCase):
        return ScanCase(1, 5, 3, min(case.states, 2), constant=case.constant, absent=case.absent)
    return FusionCase(1, 2, 2, 1, 1, dilations=(1,))


if __name__ == "__main__":
    sys.exit(main())

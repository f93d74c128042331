"""Does a file compute what the net does, and how fast: both run in turns, on the same inputs, in one process."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from statefield.errors import ExportError
from statefield.tasks.common.export.quiet import quietly
from statefield.tasks.common.export.subject import Subject

__all__ = ["TOLERANCE", "Agreement", "compare", "random_inputs"]

TOLERANCE = 1e-4
_SCALE = 1.0  # outputs whose largest value is above this may differ by as large a share of it
_STRETCHES = ((1.3, 1.1), (0.6, 1.9))  # sizes that are tried where any may come: larger, and of another shape
_SECONDS = 1.0  # spent on each side's timing, at most twice that


@dataclass(frozen=True)
class Agreement:
    """What the comparison found.

    Attributes:
        difference: the largest |difference| of any output, over the inputs and batches that were tried; of outputs
            with values beyond 1, as a share of their largest.
        batches: numbers of inputs at once that were tried.
        torch_ms, runtime_ms: medians of single calls with one input at once; None where time was not taken.
        threads: that both had.
    """

    difference: float
    batches: tuple[int, ...]
    torch_ms: float | None
    runtime_ms: float | None
    threads: int

    @property
    def passed(self) -> bool:
        return self.difference <= TOLERANCE  # False for NaN


def compare(
    subject: Subject,
    path: Path,
    *,
    any_batch: bool = True,
    least: Mapping[str, Mapping[int, int]] | None = None,
    timed: bool = True,
) -> Agreement:
    """Run `path` beside the net.

    Args:
        any_batch: also with one input at once and with one more than the example has.
        least: for each input, its axes of any size and their smallest sides; these are tried with other sizes too,
            larger and smaller, that nothing divides.

    Raises:
        ExportError: the file cannot be loaded, or not be run with what the net can.
    """
    run = load(path, tuple(subject.inputs))
    given = len(next(iter(subject.inputs.values())))
    batches = tuple(sorted({1, given, given + 1})) if any_batch else (given,)
    worst = 0.0
    stretches = ((1.0, 1.0), *(_STRETCHES if least else ()))
    for seed, (batch, stretch) in enumerate(itertools.product(batches, stretches)):
        inputs = random_inputs(subject, batch, seed, stretch, least or {})
        wanted = _net(subject, inputs)
        try:
            found = run(inputs)
        except Exception as error:
            shapes = ", ".join(
                f"{name} {list(given.shape)}" for name, given in zip(subject.inputs, inputs, strict=True)
            )
            raise ExportError(
                f"the file of {subject.name} cannot be run with {shapes}, as the net can: {str(error)[:300]}. Export "
                "it for one size (without --any-size) or for one number of inputs (--batch)."
            ) from error
        worst = max(worst, _difference(wanted, found))
    torch_ms = runtime_ms = None
    if timed:
        one = random_inputs(subject, 1 if any_batch else given, 0)
        torch_ms, runtime_ms = _in_turns(lambda: _net(subject, one), lambda: run(one))
    return Agreement(worst, batches, torch_ms, runtime_ms, torch.get_num_threads())


def load(path: Path, names: Sequence[str]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """A function that runs a written file: inputs in order -> outputs in order."""
    if path.suffix == ".pt2":
        with quietly():
            module = torch.export.load(str(path)).module()

        def run_torch(inputs: Sequence[Tensor]) -> list[Tensor]:
            with torch.no_grad():
                return _tensors(module(*inputs))

        return run_torch
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as the net beside it has
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {str(error)[:400]}") from error
    known = {entry.name for entry in session.get_inputs()}

    def run_onnx(inputs: Sequence[Tensor]) -> list[Tensor]:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True) if name in known}
        return [torch.from_numpy(np.asarray(found)) for found in session.run(None, feeds)]

    return run_onnx


def random_inputs(
    subject: Subject,
    batch: int,
    seed: int,
    stretch: Sequence[float] = (1.0,),
    least: Mapping[str, Mapping[int, int]] = MappingProxyType({}),
) -> list[Tensor]:
    """Inputs of the example's shapes with another batch: normal floats; integers are the example's, repeated.

    Args:
        least: for each input, the axes that may have any size and their smallest sides.
        stretch: how many times as long these are, one after the other, and from the first again.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for name, example in subject.inputs.items():
        shape = [batch, *example.shape[1:]]
        for (axis, side), factor in zip(least.get(name, {}).items(), itertools.cycle(stretch), strict=False):
            shape[axis] = max(side, round(factor * shape[axis]))
        if example.is_floating_point():
            drawn.append(torch.randn(shape, generator=generator))
        else:
            drawn.append(example[torch.arange(batch) % len(example)])
    return drawn


def _net(subject: Subject, inputs: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return _tensors(subject.net(*inputs))


def _tensors(found: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def _difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    worst = 0.0
    for ours, theirs in zip(wanted, found, strict=True):
        if ours.shape != theirs.shape:
            raise ExportError(f"the file gives {list(theirs.shape)} where the net gives {list(ours.shape)}.")
        scale = max(_SCALE, float(ours.abs().max()))
        difference = float((ours.double() - theirs.double()).abs().max()) / scale
        worst = max(worst, float("inf") if difference != difference else difference)  # max() passes over a NaN
    return worst


def _in_turns(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Medians in milliseconds of two calls that alternate, so that a busy machine slows both."""
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    while len(times[0]) < 3 or (time.perf_counter() - begin < 2 * _SECONDS and len(times[0]) < 100):
        for call, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])

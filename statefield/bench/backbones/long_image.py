"""Vim-tiny beside DeiT-tiny on one large image: time and memory of a scan against those of attention."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from statefield.bench.backbones.models import build, call, extra_mib_of, image, weights_mib
from statefield.bench.kernels.report import Goal, goal
from statefield.bench.timing import in_turns, median_ratio


@dataclass(frozen=True)
class LongImageRow:
    """A classifier on one image of `side` x `side`. `extra_mib` is the most memory beyond weights and image, None where
    the system does not tell; `peak_mib` is that and the weights."""

    model: str
    attention: str
    side: int
    ms: float
    weights_mib: float
    extra_mib: float | None
    peak_mib: float | None


def measure(side: int, rounds: int) -> tuple[list[LongImageRow], list[Goal]]:
    """Rows of Vim-tiny and of DeiT-tiny with both kinds of attention, and the goals, which are the Vim paper's.

    The paper's 2.8 times as fast with 86.8 % less memory are of a GPU, against attention that holds its matrix.
    """
    models = {
        "-": ("vim_tiny", False),
        "fused": ("deit_tiny_patch16_224", False),
        "materialised": ("deit_tiny_patch16_224", True),
    }
    x = image(side)
    built = {kind: build(name, side, materialised=held) for kind, (name, held) in models.items()}
    times = in_turns({kind: call(model, x) for kind, model in built.items()}, rounds=rounds)
    extra = extra_mib_of([{"name": name, "side": side, "materialised": held} for name, held in models.values()])
    rows = []
    for (kind, (name, _)), more in zip(models.items(), extra, strict=True):
        weights = weights_mib(built[kind])
        peak = None if more is None else weights + more
        rows.append(LongImageRow(name, kind, side, 1e3 * statistics.median(times[kind]), weights, more, peak))
    faster = {kind: median_ratio(times, kind, "-") for kind in ("fused", "materialised")}
    return rows, _goals({row.attention: row for row in rows}, faster, side)


def _goals(rows: dict[str, LongImageRow], faster: dict[str, float], side: int) -> list[Goal]:
    goals = [
        goal(f"Vim-tiny at {side}: times as fast as DeiT-tiny, {kind} attention", times, 2.8)
        for kind, times in faster.items()
    ]
    vim, held = rows["-"], rows["materialised"]
    less = None if vim.peak_mib is None or held.peak_mib is None else 100 * (1 - vim.peak_mib / held.peak_mib)
    return [*goals, goal(f"Vim-tiny at {side}: % less memory than DeiT-tiny, materialised attention", less, 86.8)]

"""The protocol of `statefield bench inference`: a volume of many classes predicted in little memory, file to file.

A synthetic volume of 512 x 512 x 512 voxels is segmented into 100 classes under a memory budget of 3 GB; the limit the
project has set itself is 4 GB for the process, libraries included. Beside it stands what MONAI's plain inferer
would need for its buffers alone (computed: it holds the logits of all classes), and both are run, each in a process of
its own, on a volume that fits. The net is two convolutions: what is measured is inference around a net, not a net.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from statefield.bench.inference.cases import Case, run_apart, write_volume
from statefield.bench.kernels.report import Goal, goal
from statefield.datasets.readers.nifti import read_labels
from statefield.tasks.common.environment import describe_environment

__all__ = ["Case", "InferenceReport", "InferenceRow", "run_inference_benchmark"]

LARGE = Case(side=512, num_classes=100, roi=(16, 128, 128), memory_gb=3.0)
FITTING = Case(side=192, num_classes=20, roi=(64, 64, 64), memory_gb=None)
LIMIT_GB = 4.0
LEAST_AGREEMENT = 0.9999  # of labels; the rest are ties within rounding


@dataclass(frozen=True)
class InferenceRow:
    """One prediction. `seconds` from file to file and `peak_gb` of the process: None where they were not measured.

    volume: voxels and classes. by: "statefield", or "MONAI". how: "measured", or "computed" (the bytes of MONAI's
    buffers: logits of all classes, weights, image and labels). budget_gb: what `--memory` was set to. agreement: the
    share of labels equal to MONAI's.
    """

    volume: str
    by: str
    how: str
    seconds: float | None
    peak_gb: float
    budget_gb: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class InferenceReport:
    """All that a run found; the fields are as of `statefield.bench.kernels.Report`, without roofs."""

    environment: dict[str, str]
    load_before: float
    rows: tuple[InferenceRow, ...]
    goals: tuple[Goal, ...]
    correct: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_inference_benchmark(*, quick: bool = False, folder: Path | None = None) -> InferenceReport:
    """Measure all on the CPU: about ten minutes, and 3 GB of disk under `folder` (the system's temporary one).

    Quick: 64 voxels a side and few classes, to see that all works; the goal is left out.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    large = Case(side=64, num_classes=5, roi=(16, 32, 32), memory_gb=0.005) if quick else LARGE
    fitting = Case(side=48, num_classes=5, roi=(32, 32, 32), memory_gb=None) if quick else FITTING
    with tempfile.TemporaryDirectory(prefix="statefield-bench-", dir=folder) as place:
        work = Path(place)
        first = _measured(large, "statefield", work)
        ours, theirs = (_measured(fitting, by, work) for by in ("statefield", "MONAI"))
        agreement = _agreement(work, fitting)
    rows = (
        first,
        InferenceRow(large.in_words, "MONAI", "computed", None, monai_bytes(large) / 1e9),
        InferenceRow(**(asdict(ours) | {"agreement": agreement})),
        theirs,
    )
    name = f"peak GB, {large.in_words}"
    return InferenceReport(
        environment=describe_environment(),
        load_before=load,
        rows=rows,
        goals=() if quick else (goal(name, first.peak_gb, LIMIT_GB, at_most=True),),
        correct=agreement >= LEAST_AGREEMENT,
    )


def monai_bytes(case: Case) -> int:
    """What `monai.inferers.sliding_window_inference` and an argmax hold at once, in bytes.

    float32 logits of all classes, one weight per voxel, the image, and int64 labels; window and net come on top.
    """
    return case.side**3 * (4 * case.num_classes + 4 + 4 + 8)


def _measured(case: Case, by: str, work: Path) -> InferenceRow:
    volume = work / f"volume_{case.side}.nii"
    if not volume.exists():
        write_volume(volume, case.side)
    found = run_apart(case, by, volume, work / f"{by}_{case.side}.nii.gz")
    return InferenceRow(case.in_words, by, "measured", found["seconds"], found["peak_gb"], found["budget_gb"])


def _agreement(work: Path, case: Case) -> float:
    ours, theirs = (read_labels(work / f"{by}_{case.side}.nii.gz").array for by in ("statefield", "MONAI"))
    return float((ours == theirs).mean())

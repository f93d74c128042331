"""What the training cases of a dataset are like: sizes, spacings, intensities and classes, each case read once.

fingerprint = fingerprint_dataset(adapter, info, root)
fingerprint.write(Path("fingerprint.json"))

It is what nnU-Net calls by the same name (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z), and all that
`statefield.tasks.medical.plan` looks at. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.adapter import DatasetAdapter
from statefield.datasets.sample import DatasetInfo, Record, Sample
from statefield.errors import ConfigError, DataError, LabelError, StatefieldError
from statefield.files import write_text

SEED = 1234  # of the sampled voxels; nnU-Net's
VOXELS_SAMPLED = 10_000_000  # at most, over all cases: their percentiles are then steady to about 1e-4 of the range
_VOXELS_PER_CASE = 100_000

Progress = Callable[[int, int, str], None]  # cases done, cases in all, the case just done


@dataclass(frozen=True, eq=False)
class CaseFingerprint:
    """What one case is like.

    Args:
        case, path: its name and its (first) image file.
        shape: voxels, (D, H, W) or (H, W). spacing: mm between voxels, in the same order; 1.0 where not known.
        spacing_known: whether the file states a spacing.
        box: first index and one past the last, for each axis, of the voxels that are not 0 in every channel.
        low, high: the smallest and the largest intensity of each channel, in the file's units.
        voxels: voxels of each class. unlabelled: voxels without a label.
        foreground: float32 [C, n], intensities of voxels of classes above 0: all of them, or a sample without
            repetition that follows from the case's name.
    """

    case: str
    path: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    spacing_known: bool
    box: tuple[tuple[int, int], ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    voxels: tuple[int, ...]
    unlabelled: int
    foreground: NDArray[np.float32]

    @property
    def box_share(self) -> float:
        """The box's share of the image, 0 to 1."""
        return float(np.prod([(end - start) / n for (start, end), n in zip(self.box, self.shape, strict=True)]))

    @property
    def voxel_mm(self) -> float:
        """The volume of a voxel in mm^3 (area of a pixel in mm^2); 1.0 where no spacing is known."""
        return float(np.prod(self.spacing)) if self.spacing_known else 1.0


@dataclass(frozen=True)
class Intensities:
    """Of the foreground's sampled voxels in one channel, in the files' units; NaN where there is no foreground."""

    mean: float
    std: float
    median: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The cases of a dataset, or of a part of it: parts add by `+` and do not depend on the order."""

    info: DatasetInfo
    layout: str
    root: Path | None
    cases: tuple[CaseFingerprint, ...] = field(repr=False)

    def __add__(self, other: Fingerprint) -> Fingerprint:
        if self.info != other.info:
            raise ConfigError(
                f"fingerprints of {self.root} and {other.root} cannot be added: their classes or channels differ "
                f"({self.info} and {other.info})."
            )
        cases = {case.case: case for case in (*self.cases, *other.cases)}
        if len(cases) < len(self.cases) + len(other.cases):
            raise ConfigError(f"fingerprints of {self.root} and {other.root} share cases: each may be counted once.")
        return Fingerprint(self.info, self.layout, self.root, tuple(cases[name] for name in sorted(cases)))

    @property
    def spacing_known(self) -> bool:
        """Whether every case states its spacing."""
        return all(case.spacing_known for case in self.cases)

    @property
    def shapes(self) -> NDArray[np.int64]:
        """[N, dims], a row a case."""
        return np.array([case.shape for case in self.cases], dtype=np.int64)

    @property
    def spacings(self) -> NDArray[np.float64]:
        """[N, dims] in mm, a row a case; 1.0 where not known."""
        return np.array([case.spacing for case in self.cases], dtype=np.float64)

    @property
    def voxels(self) -> NDArray[np.int64]:
        """[N, K], voxels of each class in each case."""
        return np.array([case.voxels for case in self.cases], dtype=np.int64)

    def intensities(self, channel: int) -> Intensities:
        """Of the foreground of all cases; each counts by the voxels sampled from it."""
        values = np.concatenate([case.foreground[channel] for case in self.cases]).astype(np.float64)
        if not values.size:
            return Intensities(*(float("nan"),) * 5)
        low, median, high = np.percentile(values, (0.5, 50, 99.5))
        return Intensities(float(values.mean()), float(values.std()), float(median), float(low), float(high))

    def summary(self) -> dict[str, Any]:
        """Everything but the sampled voxels, as plain numbers and texts (fingerprint.json); lengths in mm."""
        voxels, info = self.voxels, self.info
        intensities = {}
        for index, name in enumerate(info.channels):
            found = self.intensities(index)
            intensities[name] = {
                "foreground": {name: _short(value) for name, value in vars(found).items()},
                "lowest": _short(min(case.low[index] for case in self.cases)),
                "highest": _short(max(case.high[index] for case in self.cases)),
            }
        classes = {}
        for label, name in enumerate(info.classes):
            shown = voxels[:, label] > 0
            volumes = [case.voxels[label] * case.voxel_mm for case in self.cases if case.voxels[label]]
            unit = ("mm3" if self.shapes.shape[1] == 3 else "mm2") if self.spacing_known else "voxels"
            classes[name] = {
                "label": label,
                "num_cases": int(shown.sum()),
                "share_of_voxels": _short(voxels[:, label].sum() / max(1, voxels.sum())),
                f"median_{unit}": _short(float(np.median(volumes))) if volumes else None,
            }
        return {
            "dataset": {
                "root": None if self.root is None else str(self.root),
                "layout": self.layout,
                "channels": list(info.channels),
                "classes": list(info.classes),
                "num_training_cases": len(self.cases),
            },
            "axes": ["slices", "rows", "columns"][-self.shapes.shape[1] :],
            "shape": _spread(self.shapes),
            "spacing_mm": _spread(self.spacings) if self.spacing_known else None,
            "nonzero_box_share": _spread(np.array([case.box_share for case in self.cases])),
            "intensities": intensities,
            "num_foreground_voxels_sampled": int(sum(case.foreground.shape[1] for case in self.cases)),
            "classes": classes,
            "cases": {case.case: _case_summary(case, info) for case in self.cases},
        }

    def write(self, path: Path) -> None:
        """Write `text()`."""
        write_text(path, self.text())

    def text(self) -> str:
        """`summary()` as JSON, with numbers that belong together on one line."""
        text = json.dumps(self.summary(), indent=2, ensure_ascii=False, allow_nan=False)
        for numbers in (r"\[[\d\s.,e+-]+\]", r"\[\s+\[[\d\s.,e+\[\]-]+\]\s+\]"):
            text = re.sub(numbers, lambda found: re.sub(r"(?<=\[)\s+|\s+(?=\])", "", " ".join(found[0].split())), text)
        return text + "\n"


def fingerprint_dataset(
    adapter: DatasetAdapter,
    info: DatasetInfo,
    root: Path | None,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Fingerprint:
    """Read every training case of a dataset once.

    Args:
        adapter, info: as `open_dataset` gives them.
        jobs: cases read at the same time, in threads (unpacking and numpy let others run); None: one a processor, four
            at most. The result does not depend on it.
        progress: called after each case with the cases done, the cases in all, and the case's name.

    Raises:
        DataError: cases that cannot be read, all of them named with their reasons; or no foreground in any.
        DatasetLayoutError: from the adapter, when there are no training cases.
    """
    jobs = min(4, os.cpu_count() or 1) if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs}: at least 1 is needed.")
    records = adapter.records(root, "train")
    if not records:
        raise DataError(f"{root or adapter.name}: the split 'train' has no case; a plan needs at least one.")
    most = max(1, min(_VOXELS_PER_CASE, VOXELS_SAMPLED // len(records)))
    found: list[CaseFingerprint] = []
    failures: dict[str, StatefieldError] = {}
    for done, (record, outcome) in enumerate(_read_all(adapter, info, records, most, jobs), start=1):
        if isinstance(outcome, CaseFingerprint):
            found.append(outcome)
        else:
            failures[record.case] = outcome
        if progress is not None:
            progress(done, len(records), record.case)
    if failures:
        listed = "\n".join(f"  {case}: {failures[case]}" for case in sorted(failures))
        raise DataError(
            f"{root or adapter.name}: {len(failures)} of {len(records)} training cases cannot be used. Repair them, or "
            f"take them out of the dataset:\n{listed}"
        )
    fingerprint = Fingerprint(info, adapter.name, root, tuple(sorted(found, key=lambda case: case.case)))
    if not fingerprint.voxels[:, 1:].any():
        raise DataError(
            f"{root or adapter.name}: none of {len(records)} training cases shows a class other than "
            f"{info.classes[0]!r} ({', '.join(info.classes[1:])}): check the label files and their values."
        )
    return fingerprint


def fingerprint_case(
    record: Record, sample: Sample, info: DatasetInfo, most: int = _VOXELS_PER_CASE
) -> CaseFingerprint:
    """What one case is like; at most `most` foreground voxels are kept.

    Raises `DataError` when it has no mask, or holds values that are not finite; `LabelError` for labels of no class.
    """
    image, meta = sample["image"], sample["meta"]
    if "mask" not in sample:
        raise DataError(f"{meta['path']}: no labels; training needs them.")
    mask = sample["mask"]
    low = image.min(axis=tuple(range(1, image.ndim)))
    high = image.max(axis=tuple(range(1, image.ndim)))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise DataError(f"{meta['path']}: intensities that are NaN or infinite; finite values are needed.")
    labelled = mask.ravel()[mask.ravel() >= 0]
    voxels = np.bincount(labelled, minlength=len(info.classes))
    if len(voxels) > len(info.classes):
        raise LabelError(
            f"{record.mask or meta['path']}: label value {len(voxels) - 1} found; the declared classes are 0 to "
            f"{len(info.classes) - 1}. Correct the labels, or declare the classes that are missing."
        )
    chosen = np.flatnonzero(mask.ravel() > 0)
    if len(chosen) > most:
        seed = int.from_bytes(hashlib.sha256(f"{SEED}:{record.case}".encode()).digest()[:8], "little")
        chosen = chosen[np.sort(np.random.default_rng(seed).choice(len(chosen), most, replace=False))]
    return CaseFingerprint(
        case=record.case,
        path=str(meta["path"]),
        shape=tuple(int(n) for n in mask.shape),
        spacing=tuple(float(mm) for mm in meta["spacing"]),
        spacing_known=bool(meta["spacing_known"]),
        box=_nonzero_box(image),
        low=tuple(float(value) for value in low),
        high=tuple(float(value) for value in high),
        voxels=tuple(int(count) for count in voxels),
        unlabelled=int(mask.size - labelled.size),
        foreground=image.reshape(len(image), -1)[:, chosen].astype(np.float32),
    )


def _read_all(
    adapter: DatasetAdapter, info: DatasetInfo, records: Sequence[Record], most: int, jobs: int
) -> Iterator[tuple[Record, CaseFingerprint | StatefieldError]]:
    """Each record with what it is like, or why it cannot be used; no more than `jobs` cases are in memory."""

    def read(record: Record) -> CaseFingerprint | StatefieldError:
        try:
            return fingerprint_case(record, adapter.load(record), info, most)
        except StatefieldError as error:
            return error

    waiting = iter(records)
    with ThreadPoolExecutor(jobs) as pool:
        running: dict[Future[CaseFingerprint | StatefieldError], Record] = {}
        try:
            while True:
                for record in waiting:
                    running[pool.submit(read, record)] = record
                    if len(running) >= jobs:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()


def _nonzero_box(image: NDArray[np.float32]) -> tuple[tuple[int, int], ...]:
    """The smallest box around the voxels of `image` [C, *S] that are not 0 in every channel; all of it if none is."""
    shown = (image != 0).any(axis=0)
    box = []
    for axis in range(shown.ndim):
        places = np.flatnonzero(shown.any(axis=tuple(other for other in range(shown.ndim) if other != axis)))
        box.append((int(places[0]), int(places[-1]) + 1) if places.size else (0, shown.shape[axis]))
    return tuple(box)


def _case_summary(case: CaseFingerprint, info: DatasetInfo) -> dict[str, Any]:
    shown = {name: count for name, count in zip(info.classes, case.voxels, strict=True) if count}
    return {
        "path": case.path,
        "shape": list(case.shape),
        "spacing_mm": [_short(mm) for mm in case.spacing] if case.spacing_known else None,
        "nonzero_box": [list(ends) for ends in case.box],
        "intensity": [[_short(low), _short(high)] for low, high in zip(case.low, case.high, strict=True)],
        "voxels": shown | ({"without label": case.unlabelled} if case.unlabelled else {}),
    }


def _spread(rows: NDArray[Any]) -> dict[str, Any]:
    def plain(values: Any) -> Any:
        return [_short(value) for value in values] if np.ndim(values) else _short(float(values))

    return {"median": plain(np.median(rows, axis=0)), "least": plain(rows.min(axis=0)), "most": plain(rows.max(axis=0))}


def _short(value: Any) -> float | int | None:
    """Six digits, which say all that the data do; whole numbers as such; None, which JSON has, for NaN."""
    short = float(f"{float(value):.6g}")
    return None if math.isnan(short) else int(short) if short.is_integer() else short

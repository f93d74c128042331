"""One prediction in a process of its own, from a volume in a file to labels in a file, and what it took.

The peak is the high-water mark of resident memory: pages that the process touched and has not handed back, those of
files mapped into memory among them. Linux tells it for the program itself; `getrusage`, elsewhere, includes what the
process was before it became this program.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Case:
    """A cube of `side` voxels into `num_classes` classes; windows of `roi` overlap by a quarter. memory_gb: the budget,
    None for what is free.
    """

    side: int
    num_classes: int
    roi: tuple[int, int, int]
    memory_gb: float | None

    @property
    def in_words(self) -> str:
        return f"{self.side} x {self.side} x {self.side}, {self.num_classes} classes"


def run_apart(case: Case, by: str, volume: Path, labels: Path) -> dict[str, Any]:
    """seconds, peak_gb and budget_gb of predicting `volume` into `labels` in a new process."""
    order = json.dumps({"case": asdict(case), "by": by, "volume": str(volume), "labels": str(labels)})
    command = [sys.executable, "-m", "statefield.bench.inference.cases", order]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise RuntimeError(f"predicting {case.in_words} by {by} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def write_volume(path: Path, side: int) -> None:
    """Waves of several lengths with noise, int16, isotropic 1 mm, written slice by slice."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((side, side, side))
    header.set_sform(np.eye(4), code=1)
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    with path.open("wb") as stream:
        header.write_to(stream)
        for z in range(side):
            waves = 300 * np.sin(x / 23 + z / 31) + 200 * np.cos(y / 17) * np.sin(z / 11) + rng.normal(0, 30, x.shape)
            stream.write(waves.astype(np.int16).tobytes(order="F"))


def net_of(num_classes: int) -> Any:
    """[n, 1, d, h, w] -> [n, K, d, h, w]: a 3 x 3 x 3 convolution to 8 channels, ReLU, and one voxel's to K classes."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv3d(8, num_classes, 1)).eval()


def _predict_ours(case: Case, volume: Path, labels: Path) -> None:
    from statefield.datasets.sample import DatasetInfo
    from statefield.tasks.common.config import InferenceConfig, NormalisationConfig
    from statefield.tasks.medical.inputs import find_cases, place_outputs
    from statefield.tasks.medical.predict import Memory, predict_cases

    cases = find_cases([volume], 1)
    (outcome,) = predict_cases(
        net_of(case.num_classes),
        cases,
        place_outputs(cases, labels),
        info=DatasetInfo(tuple(f"class {k}" for k in range(case.num_classes)), ("waves",), 3),
        normalisation=NormalisationConfig(),
        slice_context=0,
        roi=case.roi,
        inference=InferenceConfig(overlap=0.25, batch_size=1),
        memory=Memory(None if case.memory_gb is None else int(case.memory_gb * 1e9)),
        tell=lambda line: print(line, file=sys.stderr),
    )
    if outcome.error is not None:
        raise outcome.error


def _predict_monai(case: Case, volume: Path, labels: Path) -> None:
    import torch
    from monai.inferers import sliding_window_inference

    from statefield.datasets.adapter import load_files
    from statefield.datasets.readers.nifti import write_nifti
    from statefield.tasks.common.config import NormalisationConfig
    from statefield.tasks.common.normalisation import normalise

    sample = load_files([volume])
    image = torch.from_numpy(normalise(sample["image"], NormalisationConfig()))[None]
    with torch.no_grad():
        logits = sliding_window_inference(
            image, case.roi, 1, net_of(case.num_classes), overlap=0.25, mode="gaussian", sigma_scale=0.125
        )
    assert isinstance(logits, torch.Tensor)
    write_nifti(labels, logits.argmax(1)[0].numpy(), sample["meta"])


def peak_gb() -> float:
    """The most resident memory that this process has had, GB."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    import resource  # here: not every system has it

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _main() -> None:
    order = json.loads(sys.argv[1])
    case = Case(**order["case"] | {"roi": tuple(order["case"]["roi"])})
    predict = {"statefield": _predict_ours, "MONAI": _predict_monai}[order["by"]]
    start = time.perf_counter()
    predict(case, Path(order["volume"]), Path(order["labels"]))
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_gb": peak_gb(), "budget_gb": case.memory_gb}))


if __name__ == "__main__":
    _main()

"""One measurement in a process of its own: a pair of rasters predicted, or tiles compared with the whole image."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from statefield.bench.inference.cases import peak_gb
from statefield.bench.raster.pair import BLOCK, patches_of, write_pair

_TILE, _OVERLAP, _BATCH = 256, 0.25, 4
_ALONE = 5  # batches that the net is timed with alone
_SEAM_TILE, _SEAM_MARGIN = 512, 128  # more than the reach of the net without scans; windows start at multiples of 16


@dataclass(frozen=True)
class RasterCase:
    """A pair of `side` x `side` pixels; full: with data everywhere, not in a strip only."""

    side: int
    full: bool

    @property
    def size(self) -> str:
        return f"{self.side:,} x {self.side:,}"

    @property
    def data(self) -> str:
        return "everywhere" if self.full else f"{BLOCK} rows"

    @property
    def in_words(self) -> str:
        return f"{self.size}, data {'everywhere' if self.full else 'in a strip of ' + self.data}"


def run_apart(what: str, case: RasterCase, patches: Sequence[Path], folder: Path) -> dict[str, Any]:
    """The measurement `what` ("predict" or "seams") in a new process; its files under `folder` are removed."""
    place = folder / f"{what}_{case.side}"
    place.mkdir(parents=True)
    order = {"what": what, "case": asdict(case), "patches": [str(path) for path in patches], "folder": str(place)}
    # the pair is written by a process of its own, so that its memory is not counted
    for step in ("write", "measure") if what == "predict" else ("measure",):
        command = [sys.executable, "-m", "statefield.bench.raster.cases", json.dumps(order | {"step": step})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise RuntimeError(f"measuring {case.in_words} failed ({step}):\n{done.stderr}")
    shutil.rmtree(place)
    return json.loads(done.stdout.splitlines()[-1])


def narrow_net() -> tuple[Any, str]:
    """The net that is run, with random weights, and what it is."""
    import torch

    from statefield.tasks.remote_sensing.nets import MambaBCD

    torch.manual_seed(0)
    dims, width = (16, 32, 64, 128), 16
    net = MambaBCD(encoder="spatial_mamba_nano", encoder_args={"dims": dims}, width=width)
    parameters = sum(value.numel() for value in net.parameters())
    return net.eval(), f"MambaBCD on Spatial-Mamba of widths {dims}, decoder {width} wide, {parameters / 1e6:.2f} M"


def _predict(case: RasterCase, folder: Path) -> dict[str, Any]:
    import torch

    from statefield.tasks.remote_sensing.raster_predict import predict_raster
    from statefield.tasks.remote_sensing.raster_sources import BandScaling

    net, about = narrow_net()
    inside = 0.0

    class Timed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, before: torch.Tensor, after: torch.Tensor) -> Any:
            nonlocal inside
            start = time.perf_counter()
            found = self.net(before, after)
            inside += time.perf_counter() - start
            return found

    windows = torch.zeros(_BATCH, 3, _TILE, _TILE)
    with torch.no_grad():
        net(windows, windows)  # kernels are compared with their references at their first use
    images = [folder / f"{date}_{case.side}.tif" for date in ("before", "after")]
    output = folder / "change.tif"
    start = time.perf_counter()
    found = predict_raster(
        Timed(),
        images,
        output,
        tile=_TILE,
        overlap=_OVERLAP,
        batch_size=_BATCH,
        scaling=BandScaling.standardised([128.0] * 3, [64.0] * 3),
    )
    seconds = time.perf_counter() - start
    peak = peak_gb()
    with torch.no_grad():
        start = time.perf_counter()
        for _ in range(_ALONE):
            net(windows, windows)
        alone = (time.perf_counter() - start) / (_ALONE * _BATCH)
    with rasterio.open(images[0]) as given, rasterio.open(output) as written:
        same = given.crs.to_wkt() == written.crs.to_wkt() and given.transform == written.transform
        same = same and given.shape == written.shape and given.nodata == written.nodata
    return {
        "net": about,
        "tiles": found.num_tiles,
        "skipped": found.num_skipped,
        "seconds": seconds,
        "net_seconds": inside,
        "net_share": inside / seconds,
        "alone_share": alone * found.num_tiles / seconds,
        "peak_gb": peak,
        "same_grid": same,
    }


def _seams(patches: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """Tiles from files against the arrays in memory: with a margin wider than a net's reach, and blended."""
    import torch

    from statefield.tasks.common.tiling import sliding_window
    from statefield.tasks.remote_sensing.nets import FCSiamDiff

    side = _SEAM_TILE + 2 * (_SEAM_TILE - 2 * _SEAM_MARGIN)
    paths = write_pair(folder, side, patches_of(patches)[0], full=True)
    arrays = []
    for path in paths:
        with rasterio.open(path) as dataset:
            arrays.append(torch.from_numpy((dataset.read().astype(np.float32) - 128) / 64)[None])
    torch.manual_seed(0)
    local, (scanning, _) = FCSiamDiff(3).eval(), narrow_net()
    with torch.no_grad():
        whole = local(*arrays)[0].softmax(dim=0).numpy()
        blended = sliding_window(
            torch.cat(arrays, dim=1), lambda x: scanning(x[:, :3], x[:, 3:]), (_TILE, _TILE), overlap=_OVERLAP
        )[0]
    found = [
        (
            "FC-Siam-diff in tiles with a margin, and the whole image at once",
            local,
            _SEAM_TILE,
            0.5,
            _SEAM_MARGIN,
            whole,
        ),
        (
            "MambaBCD in tiles from files, and the same blending in memory",
            scanning,
            _TILE,
            _OVERLAP,
            0,
            blended.softmax(dim=0).numpy(),
        ),
    ]
    return [
        {"name": name, "error": _largest_difference(paths, folder, net, tile, overlap, margin, expected)}
        for name, net, tile, overlap, margin, expected in found
    ]


def _largest_difference(
    paths: tuple[Path, Path], folder: Path, net: Any, tile: int, overlap: float, margin: int, expected: Any
) -> float:
    from statefield.tasks.remote_sensing.raster_predict import predict_raster
    from statefield.tasks.remote_sensing.raster_sources import BandScaling

    predict_raster(
        net,
        paths,
        folder / "seam.tif",
        tile=tile,
        overlap=overlap,
        margin=margin,
        band_columns=BLOCK,
        scaling=BandScaling.standardised([128.0] * 3, [64.0] * 3),
        probabilities=folder / "seam_p.tif",
    )
    with rasterio.open(folder / "seam_p.tif") as dataset:
        return float(np.abs(dataset.read() - expected).max())


def _main() -> None:
    order = json.loads(sys.argv[1])
    case, folder = RasterCase(**order["case"]), Path(order["folder"])
    patches = [Path(path) for path in order["patches"]]
    if order["step"] == "write":
        write_pair(folder, case.side, patches_of(patches)[0], full=case.full)
    elif order["what"] == "predict":
        print(json.dumps(_predict(case, folder)))
    else:
        print(json.dumps({"seams": _seams(patches, folder)}))


if __name__ == "__main__":
    _main()

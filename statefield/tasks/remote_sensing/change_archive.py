"""Maps of change for a list of pairs: the jobs of an archive, and the work that is done with each.

jobs = pair_jobs(read_pairs("pairs.csv"), Path("maps"))
result = run_archive(ChangeMaps(run=Path("runs/oscd")), jobs, Path("maps"))
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statefield.datasets.readers.raster import is_remote
from statefield.errors import ConfigError, DataError
from statefield.files import read_text, require_file_name
from statefield.tasks.common.archive import Job
from statefield.tasks.common.archive.jobs import Do, digests, listed
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.remote_sensing.change_run import THRESHOLD_FILE
from statefield.tasks.remote_sensing.raster_model import (
    RasterModel,
    change_model_of_run,
    change_model_of_weights,
    predict_with,
)
from statefield.tasks.remote_sensing.raster_output import unfinished_folder
from statefield.tasks.remote_sensing.raster_predict import RasterPrediction

COLUMNS = ("name", "before", "after")
_LONGEST_NAME = 100  # bytes: the names of parts and of temporary files are longer


@dataclass(frozen=True)
class Pair:
    """A row of a list: two rasters, and the name of what becomes of them. Paths are absolute, or URLs."""

    name: str
    before: str
    after: str


def read_pairs(path: str | os.PathLike[str], *, allow_remote: bool = False) -> list[Pair]:
    """The pairs of a CSV with the columns name, before and after, in any order; others are not looked at.

    Args:
        path: of the CSV, in UTF-8. Paths in it are absolute, or begin at its folder.
        allow_remote: it may hold URLs and GDAL's `/vsi` paths, too.

    Raises: DataError for a file without these columns or without a row, and for rows that cannot be done: no name that
        a file can have, a name twice, a raster that does not exist. All rows are looked at, and the first ten named.
    """
    source = Path(path)
    lines = csv.reader(read_text(source).splitlines())
    try:
        header = [text.strip() for text in next(lines, [])]
        rows = [(lines.line_num, row) for row in lines if any(text.strip() for text in row)]
    except csv.Error as error:
        raise DataError(f"{source}, line {lines.line_num}: this is no CSV ({error}).") from error
    if any(header.count(name) != 1 for name in COLUMNS):
        raise DataError(
            f"{source}: its first line is {', '.join(header)[:100]!r}; a header that names the columns "
            f"{','.join(COLUMNS)} is needed, with commas between them."
        )
    if not rows:
        raise DataError(f"{source}: no row after the header; each pair needs one.")
    places = [header.index(name) for name in COLUMNS]
    folder = source.absolute().parent
    pairs: list[Pair] = []
    seen: dict[str, int] = {}
    wrong = []
    for number, row in rows:
        if len(row) != len(header):
            wrong.append(f"line {number}: {len(row)} fields where the header has {len(header)}")
            continue
        name, before, after = (row[place].strip() for place in places)
        pair = Pair(name, _absolute(before, folder), _absolute(after, folder))
        pairs.append(pair)
        wrong += [f"line {number}: {text}" for text in _wrong_with(pair, seen, allow_remote)]
        seen.setdefault(name, number)
    if wrong:
        raise DataError(f"{source}: {listed(wrong)}. Nothing was started.")
    return pairs


def pair_jobs(pairs: Sequence[Pair], output: Path, *, probabilities: bool = False, polygons: bool = False) -> list[Job]:
    """A job for each pair: NAME.tif in the folder `output`, and if asked for NAME_probabilities.tif, NAME.gpkg."""
    endings = [".tif", *(["_probabilities.tif"] if probabilities else []), *([".gpkg"] if polygons else [])]
    folder = output.absolute()
    return [
        Job(pair.name, (pair.before, pair.after), tuple(str(folder / f"{pair.name}{end}") for end in endings))
        for pair in pairs
    ]


@dataclass(frozen=True)
class ChangeMaps:
    """The work: a map of change of two rasters by one net.

    Args:
        run: a run of `change train`; or weights: the file of a net, with model, encoder, mean and std as of
            `change_model_of_weights`. Absolute paths, where workers are on other machines.
        options: further arguments of `predict_with`, as JSON has them.
    """

    run: Path | None = None
    weights: Path | None = None
    model: str | None = None
    encoder: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> RasterModel:
        """The net; errors are those of `change_model_of_run` and `change_model_of_weights`."""
        if self.run is not None:
            return change_model_of_run(self.run)
        if self.weights is None:
            raise ConfigError("a net is needed: the folder of a run, or a file of weights.")
        return change_model_of_weights(self.weights, self.model, encoder=self.encoder, mean=self.mean, std=self.std)[0]

    @property
    def settings(self) -> dict[str, Any]:
        """What the maps depend on."""
        if self.run is not None:
            place = RunFolder(self.run)
            files = [place.config, place.dataset, place.weights, place.root / THRESHOLD_FILE]
            return {"work": "change", "model": digests(files, place.root), "options": dict(self.options)}
        assert self.weights is not None
        told = {"model": self.model, "encoder": self.encoder, "mean": self.mean, "std": self.std}
        found = digests([self.weights], self.weights.parent)
        return {"work": "change", "model": [*found.values()], **{f"{name} given": told[name] for name in told}} | {
            "options": dict(self.options)
        }

    def begin(self, device: str) -> Do:
        model = self.load()

        def do(job: Job, was_killed: bool) -> dict[str, Any]:
            return _told(self._predict(model, job, device, resume=was_killed), model)

        return do

    def _predict(self, model: RasterModel, job: Job, device: str, *, resume: bool) -> RasterPrediction:
        output, *others = job.outputs
        more: dict[str, Any] = {"polygons" if path.endswith(".gpkg") else "probabilities": path for path in others}
        more |= {"device": device, **self.options}
        strips = unfinished_folder(Path(output))
        try:
            return predict_with(model, job.inputs, output, resume=resume, **more)
        except ConfigError:
            if not (resume and strips.exists()):
                raise
            shutil.rmtree(strips)  # of inputs that have changed since that attempt
            return predict_with(model, job.inputs, output, **more)


def _told(found: RasterPrediction, model: RasterModel) -> dict[str, Any]:
    """What a record notes: the size of the map in pixels, pixels of each class of each layer, polygons."""
    classes = {
        layer: dict(zip(legend.names, counts, strict=True))
        for (layer, _), legend, counts in zip(found.layers, model.legends, found.counts, strict=True)
    }
    return {"height": found.height, "width": found.width, "pixels": classes, "polygons": found.num_polygons}


def _absolute(text: str, folder: Path) -> str:
    return text if not text or is_remote(text) else str(folder / text)


def _wrong_with(pair: Pair, seen: Mapping[str, int], allow_remote: bool) -> list[str]:
    wrong = []
    try:
        require_file_name(pair.name, "")
        if len(pair.name.encode()) > _LONGEST_NAME or pair.name.startswith("."):
            raise DataError
    except DataError:
        wrong.append(
            f"the name {pair.name[:60]!r} cannot be a file's (1 to {_LONGEST_NAME} bytes, no slash, no dot in front)"
        )
    if pair.name in seen:
        wrong.append(f"the name {pair.name!r} is that of line {seen[pair.name]} too")
    for column, path in (("before", pair.before), ("after", pair.after)):
        if not path:
            wrong.append(f"{column} is empty")
        elif is_remote(path):
            wrong += [] if allow_remote else [f"{path} is no file on this machine (--allow-remote opens URLs)"]
        elif not Path(path).is_file():
            wrong.append(f"{path} does not exist")
    return wrong

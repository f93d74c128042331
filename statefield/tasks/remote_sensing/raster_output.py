"""What a prediction leaves on disk: strips as they are finished, with a journal; then cloud-optimised GeoTIFFs.

Finished strips go into a raw file in a folder beside the output, `.NAME.partial`, each at a fixed place. Once its bytes
are on the disk the journal gets a line with their checksum. A GeoTIFF would not do for this: its directory is written
when it is closed, so one that was killed is lost. When all strips are there they become a tiled GeoTIFF, from which
GDAL's COG driver makes the output with its overviews; that takes the output's name in one rename.

Shape legend: L layers (label maps), K probabilities, H rows, W columns.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import shutil
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.windows import Window

from statefield.datasets.readers.raster import RasterHeader
from statefield.errors import ConfigError, DataError
from statefield.files import atomic_path, sync_folder, write_text
from statefield.tasks.remote_sensing.raster_blocks import BLOCK, Layout

UNSEEN = 255  # in the raw file: a pixel without data
_JOURNAL, _LABELS, _PROBABILITIES = "journal", "labels.raw", "probabilities.raw"

Layers = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Strip:
    """One finished strip: labels uint8 [L, h, w] and probabilities float32 [K, h, w]; None where the net never ran."""

    number: int
    labels: NDArray[np.uint8] | None
    probabilities: NDArray[np.float32] | None


@dataclass(frozen=True)
class Legend:
    """Names of the classes, from 0, and their colours (red, green, blue), each 0 to 255."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        values = [part for colour in self.colours for part in colour]
        if len(self.names) != len(self.colours) or not all(0 <= value <= 255 for value in values):
            raise ConfigError(
                f"legend of {len(self.names)} names and {len(self.colours)} colours: each class needs a name and a "
                "colour of three numbers from 0 to 255."
            )


class Strips:
    """The folder of strips of one prediction, and its journal.

    Args:
        output: the file that the strips will become. settings: whatever the strips depend on; a folder left by other
            settings cannot be resumed. resume: go on with what is there; otherwise it is removed.

    Raises: ConfigError when `resume` finds strips of other settings. Nothing is written before `begin`.
    """

    def __init__(
        self, output: Path, layout: Layout, settings: dict[str, Any], *, resume: bool, probabilities: bool
    ) -> None:
        self.folder = unfinished_folder(output)
        self.layout, self.settings, self.with_probabilities = layout, settings, probabilities
        self.layers: Layers | None = None
        self._checksums: list[list[int] | None] = []
        self._made: list[Path] = []  # folders that `begin` had to make, the innermost first
        if resume and (self.folder / _JOURNAL).is_file():
            self._restore()

    @property
    def done(self) -> int:
        """How many strips are finished, from the first."""
        return len(self._checksums)

    @property
    def total(self) -> int:
        """How many there will be."""
        return len(self.layout.bands) * len(self.layout.strips)

    def begin(self) -> None:
        """Make the folder; one that was not resumed is emptied first."""
        if not self.done:
            for leftover in (self.folder, finished_folder(self.folder)):
                shutil.rmtree(leftover, ignore_errors=True)
            self.layers = None
        self._made = [folder for folder in self.folder.absolute().parents if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [self.settings, *([{"layers": self.layers}] if self.layers else [])]
        lines += [{"strip": number, "crc32": sums} for number, sums in enumerate(self._checksums)]
        write_text(self.folder / _JOURNAL, "".join(map(_line, lines)))

    def remove(self) -> None:
        """Remove the folder, and those that were made for it unless there is something in them now.

        It loses its name first: one that was removed in part would be begun anew.
        """
        gone = finished_folder(self.folder)
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(FileNotFoundError):
            self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def add(self, strip: Strip) -> None:
        """Write the next strip to the disk, then to the journal."""
        assert strip.number == self.done
        sums: list[int] | None = None
        if strip.labels is not None:
            parts: list[tuple[str, NDArray[Any]]] = [(_LABELS, strip.labels)]
            if self.with_probabilities:
                assert strip.probabilities is not None
                parts.append((_PROBABILITIES, strip.probabilities))
            sums = [self._store(name, strip.number, array) for name, array in parts]
        self._checksums.append(sums)
        self._note({"strip": strip.number, "crc32": sums})

    def name_layers(self, layers: Layers) -> None:
        """Note which label maps there are, with their numbers of classes; before the first strip that has any."""
        self.layers = layers
        self._note({"layers": layers})

    def labels(self, number: int) -> NDArray[np.uint8]:
        """Labels [L, h, w] of a finished strip, `UNSEEN` where there is no data."""
        assert self.layers is not None
        return self._load(_LABELS, number, len(self.layers), np.uint8, UNSEEN)

    def probabilities(self, number: int) -> NDArray[np.float32]:
        """Probabilities [K, h, w] of a finished strip, NaN where there is no data."""
        assert self.layers is not None
        return self._load(_PROBABILITIES, number, sum(size for _, size in self.layers), np.float32, np.nan)

    def _place(self, number: int) -> tuple[int, int]:
        band, strip = divmod(number, len(self.layout.strips))
        (top, bottom), (left, right) = self.layout.strips[strip], self.layout.bands[band]
        return bottom - top, right - left

    def _store(self, name: str, number: int, array: NDArray[Any]) -> int:
        content = np.ascontiguousarray(array).tobytes()
        offset = number * array.shape[0] * BLOCK * self.layout.band_columns * array.itemsize
        path = self.folder / name
        with path.open("rb+" if path.exists() else "wb") as file:
            file.seek(offset)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return zlib.crc32(content)

    def _load(self, name: str, number: int, count: int, dtype: Any, empty: float) -> NDArray[Any]:
        shape = (count, *self._place(number))
        if self._checksums[number] is None:
            return np.full(shape, empty, dtype)
        size = np.dtype(dtype).itemsize
        with (self.folder / name).open("rb") as file:
            file.seek(number * count * BLOCK * self.layout.band_columns * size)
            content = file.read(int(np.prod(shape)) * size)
        if zlib.crc32(content) != self._checksums[number][0 if name == _LABELS else 1]:  # type: ignore[index]
            raise DataError(f"{self.folder / name}: strip {number} changed on the disk. Start again without resume.")
        return np.frombuffer(content, dtype).reshape(shape)

    def _note(self, entry: dict[str, Any]) -> None:
        with (self.folder / _JOURNAL).open("a", encoding="utf-8") as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())

    def _restore(self) -> None:
        entries = _entries((self.folder / _JOURNAL).read_text(encoding="utf-8", errors="replace"))
        settings = next(entries, None)
        if settings is None:
            return
        ours = json.loads(json.dumps(self.settings))
        if settings != ours:
            changed = sorted(key for key in {*settings, *ours} if settings.get(key) != ours.get(key))
            raise ConfigError(
                f"{self.folder} was begun with other settings ({', '.join(changed)}), so its strips cannot be used. "
                "Run without resume to start again, or with the settings of then."
            )
        for entry in entries:
            if "layers" in entry:
                self.layers = tuple((name, size) for name, size in entry["layers"])
            elif entry["strip"] == self.done:
                self._checksums.append(entry["crc32"])
                if not self._holds(self.done - 1):
                    self._checksums.pop()
                    return

    def _holds(self, number: int) -> bool:
        if self._checksums[number] is None:
            return True
        try:
            self.labels(number)
            if self.with_probabilities:
                self.probabilities(number)
        except (DataError, OSError):
            return False
        return True


def unfinished_folder(output: Path) -> Path:
    """Where the strips of a prediction lie until `output` and all that goes with it are written."""
    return output.with_name(f".{output.name}.partial")


def finished_folder(unfinished: Path) -> Path:
    """The name of that folder while it is removed."""
    return unfinished.with_suffix(".finished")


class StripWriter:
    """A thread that adds strips to the folder; what fails there is raised by the next `put` or on leaving."""

    def __init__(self, strips: Strips) -> None:
        self._strips = strips
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write strips", daemon=True)

    def __enter__(self) -> StripWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def put(self, action: Callable[[], None]) -> None:
        """Have `action` (which adds a strip) done after those before it."""
        if self._error is not None:
            raise self._error
        self._queue.put(action)

    def _run(self) -> None:
        while (action := self._queue.get()) is not None:
            if self._error is None:
                try:
                    action()
                except BaseException as error:  # told to the thread that puts strips
                    self._error = error


def output_nodata(header: RasterHeader, layers: Layers, *, may_lack: bool, wanted: int | None) -> int | None:
    """The output's nodata value: `wanted`; else the input's where it is no class and fits a byte; else 255.

    None when neither the inputs can have pixels without data nor one is wanted.

    Raises: ConfigError for a wanted value that is a class.
    """
    largest = max(size for _, size in layers)
    if wanted is not None:
        if not largest <= wanted <= 255:
            raise ConfigError(f"nodata={wanted}: a value from {largest} to 255 is needed, below are the classes.")
        return wanted
    if not may_lack:
        return None
    given = header.nodata
    if given is not None and given == int(given if np.isfinite(given) else -1) and largest <= given <= 255:
        return int(given)
    return UNSEEN


def write_labels(
    output: Path,
    strips: Strips,
    header: RasterHeader,
    *,
    nodata: int | None,
    legends: Sequence[Legend],
    point: bool,
) -> tuple[tuple[int, ...], ...]:
    """The finished strips as a cloud-optimised GeoTIFF of uint8, one band per layer, with overviews by majority.

    Returns: how many pixels each class of each layer has.
    """
    assert strips.layers is not None
    counts = np.zeros((len(strips.layers), UNSEEN + 1), np.int64)

    def blocks() -> Iterator[tuple[Window, NDArray[Any]]]:
        for window, number in _windows(strips.layout):
            labels = strips.labels(number)
            for layer, found in enumerate(labels):
                counts[layer] += np.bincount(found.ravel(), minlength=UNSEEN + 1)
            yield window, labels if nodata is None else np.where(labels == UNSEEN, np.uint8(nodata), labels)

    def describe(dataset: Any) -> None:
        for band, ((name, _), legend) in enumerate(zip(strips.layers or (), legends, strict=True), start=1):
            dataset.set_band_description(band, name)
            dataset.update_tags(band, **{f"CLASS_{value}": text for value, text in enumerate(legend.names)})
        if len(legends) == 1:  # a TIFF has one palette, and only for a single band
            colours: dict[int, tuple[int, ...]] = {value: (*rgb, 255) for value, rgb in enumerate(legends[0].colours)}
            dataset.write_colormap(1, colours if nodata is None else {**colours, nodata: (0, 0, 0, 0)})

    options = {"compress": "DEFLATE", "overview_resampling": "MODE", "resampling": "MODE"}
    profile = {"count": len(strips.layers), "dtype": "uint8", "nodata": nodata}
    _write_cog(output, strips.folder, header, profile, options, blocks(), describe, point=point)
    return tuple(tuple(row[:size].tolist()) for row, (_, size) in zip(counts, strips.layers, strict=True))


def write_probabilities(
    output: Path, strips: Strips, header: RasterHeader, *, names: Sequence[str], point: bool
) -> None:
    """The finished strips' probabilities as a cloud-optimised GeoTIFF of float32, a band per class, NaN for no data."""

    def blocks() -> Iterator[tuple[Window, NDArray[Any]]]:
        for window, number in _windows(strips.layout):
            yield window, strips.probabilities(number)

    def describe(dataset: Any) -> None:
        for band, name in enumerate(names, start=1):
            dataset.set_band_description(band, name)

    options = {"compress": "DEFLATE", "predictor": "YES", "overview_resampling": "AVERAGE", "resampling": "AVERAGE"}
    profile = {"count": len(names), "dtype": "float32", "nodata": float("nan")}
    _write_cog(output, strips.folder, header, profile, options, blocks(), describe, point=point)


def _windows(layout: Layout) -> Iterator[tuple[Window, int]]:
    for strip, (top, bottom) in enumerate(layout.strips):
        for band, (left, right) in enumerate(layout.bands):
            yield Window(left, top, right - left, bottom - top), band * len(layout.strips) + strip


def _write_cog(
    output: Path,
    folder: Path,
    header: RasterHeader,
    profile: dict[str, Any],
    options: dict[str, str],
    blocks: Iterator[tuple[Window, NDArray[Any]]],
    describe: Callable[[Any], None],
    *,
    point: bool,
) -> None:
    tiled, cog = folder / "tiled.tif", folder / "cog.tif"
    place: dict[str, Any] = {"crs": None if header.crs is None else CRS.from_wkt(header.crs)}
    if header.transform is not None:
        place["transform"] = Affine(*header.transform)
    size = {"width": header.width, "height": header.height, "bigtiff": "IF_SAFER"}
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "DEFLATE", "zlevel": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the input says as little of its place
        with rasterio.open(tiled, "w", driver="GTiff", **size, **layout, **profile, **place) as dataset:
            if point:  # the way in which the input's transform was written
                dataset.update_tags(AREA_OR_POINT="Point")
            describe(dataset)
            for window, array in blocks:
                dataset.write(array, window=window)
        rasterio.shutil.copy(tiled, cog, driver="COG", blocksize=BLOCK, bigtiff="IF_SAFER", **options)
    tiled.unlink()
    with cog.open("rb+") as file:
        os.fsync(file.fileno())
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        cog.replace(
            output
        )  # made in `folder`, not by `atomic_path`, so that a killed run leaves one folder and no more
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic_path(output) as partial:  # another disk than that of the label map
            shutil.copyfile(cog, partial)
        cog.unlink()
    sync_folder(output.parent)


def _line(entry: dict[str, Any]) -> str:
    text = json.dumps(entry, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _entries(text: str) -> Iterator[dict[str, Any]]:
    """The journal's lines up to the first that is not whole."""
    for line in text.splitlines():
        checksum, _, entry = line.partition(" ")
        if checksum != f"{zlib.crc32(entry.encode()):08x}":
            return
        yield json.loads(entry)

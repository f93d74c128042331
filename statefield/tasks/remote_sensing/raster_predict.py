"""Label maps of rasters of any size: one image or two dates in, a cloud-optimised GeoTIFF on the same grid out.

The way of a pixel: `raster_sources` opens and aligns the inputs; `raster_blocks` walks windows over bands of columns,
with a reading thread per input, and blends their logits; this file takes the largest class; `raster_output` stores
finished strips, which survive a kill, and makes the file.

Shape legend: B windows, C bands of an input, K classes, T the tile's side.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from torch import Tensor, nn

from statefield.datasets.readers.raster import DRIVER
from statefield.errors import ConfigError, DataError, ShapeError
from statefield.files import remove_partials
from statefield.tasks.common.figures import class_colour
from statefield.tasks.common.tiling import mirrored
from statefield.tasks.remote_sensing.output_paths import require_outputs
from statefield.tasks.remote_sensing.polygons import require_crs, write_polygons
from statefield.tasks.remote_sensing.raster_blocks import Finished, Layout, ReadAhead, walk
from statefield.tasks.remote_sensing.raster_output import (
    UNSEEN,
    Layers,
    Legend,
    Strip,
    Strips,
    StripWriter,
    output_nodata,
    write_labels,
    write_probabilities,
)
from statefield.tasks.remote_sensing.raster_sources import BandScaling, Source, describe, on_one_grid

_LOG = logging.getLogger(__name__)
_CACHE_MB = 64  # GDAL's cache of decoded blocks is 5 % of the machine's memory unless told
_BATCH_BYTES = 2 << 30  # of windows that go to the net at a time

CHANGE_LEGEND = Legend(("unchanged", "changed"), ((0, 0, 0), (213, 94, 0)))

Net = Callable[..., Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RasterPrediction:
    """What was written, and how it came about.

    output: the label map, of height x width pixels. layers: (name, number of classes) of each of its bands. nodata: its
    value of pixels without data, or None. num_tiles: windows that went through the net in this call. num_skipped:
    windows without one valid pixel. num_resumed: strips taken from an earlier call. num_polygons: None when none were
    asked for. counts: pixels of each class, for each layer; pixels without data are in none.
    """

    output: Path
    height: int
    width: int
    layers: Layers
    nodata: int | None
    num_tiles: int
    num_skipped: int
    num_resumed: int
    num_polygons: int | None
    counts: tuple[tuple[int, ...], ...]


def predict_raster(
    net: Net,
    images: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    tile: int = 256,
    overlap: float = 0.25,
    margin: int = 0,
    batch_size: int = 4,
    band_columns: int = 4096,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str | None = None,
    bands: Sequence[int] | None = None,
    scaling: BandScaling | Sequence[BandScaling] | None = None,
    align: bool = False,
    legends: Sequence[Legend] = (),
    nodata: int | None = None,
    probabilities: str | os.PathLike[str] | None = None,
    polygons: str | os.PathLike[str] | None = None,
    polygon_classes: Sequence[int] | None = None,
    polygon_layer: int = 0,
    within: str | None = None,
    resume: bool = False,
    driver: str = DRIVER,
    allow_remote: bool = False,
    progress: Progress | None = None,
) -> RasterPrediction:
    """The classes of every pixel of one raster or of a pair, with the first one's place on the ground.

    Memory holds `tile` rows of `band_columns` columns of the inputs and of the logits, whatever the raster's size. A
    pixel without data in any input (nodata, alpha or mask, NaN) is without data in the output and 0 in what the net
    sees, as is everything beyond the edge of a raster smaller than a tile. Windows without data are skipped.

    Args:
        net: one argument float32 [B, C, T, T] per image -> logits [B, K, T, T], or a NamedTuple of such logits, each
            of which becomes a band of the output. A module is put in eval mode.
        images: paths of one raster or two. output: the .tif to write; it appears whole or not at all.
        tile, overlap: side of the windows in pixels; the part of it that neighbours share, in [0, 1).
        margin: pixels along a window's inner sides whose logits are not used, at most half of what neighbours share.
            Where it is the net's reach or more, the result is that of the whole image at once, without any seam.
        batch_size: windows at a time. band_columns: columns that are in memory together, a multiple of 512.
        mirror_axes: 0 rows, 1 columns: also predict mirrored windows, and average the logits.
        device: where the net runs.
        bands: numbers from 1, in the net's order; None: all but alpha. Taken of each image.
        scaling: of the bands, for all images or one for each.
        align: warp the second image to the first one's grid (bilinear) where they differ.
        legends: names and colours of the classes of each layer; default: unchanged, changed for two classes of a
            pair, else numbers.
        nodata: the output's; None: the input's where it is no class and fits a byte, else 255; none without need.
        probabilities: also write softmax probabilities, float32, a band per class and layer.
        polygons: also write the regions of `polygon_classes` (None: all but 0) of the layer `polygon_layer` (from 0),
            as GeoPackage (.gpkg) or GeoJSON (.geojson), see `write_polygons`.
        within: a layer whose class 0 makes every other layer 0, too: classes of what changed hold only where something
            changed, damage only where there is a building.
        resume: go on from the strips that a killed run left in `.NAME.partial` beside the output. The file is the same
            as without interruption.
        driver: of GDAL, the only one tried. allow_remote: open URLs and `/vsi` paths.
        progress: called as progress(tiles done, tiles in all).

    Raises:
        ConfigError: settings that cannot work; a remote path without `allow_remote`; strips of other settings.
        DataError: an input that is damaged, or not on the other's grid; no pixel with data. Nothing is written then.
        ShapeError, CheckpointError: the net's output has another size, or is NaN. Finished strips are kept.
    """
    output = Path(output)
    require_outputs(
        [] if isinstance(images, str) else [os.fspath(path) for path in images], output, probabilities, polygons
    )
    with raster_environment():
        sources = open_sources(images, bands, scaling, align, driver, allow_remote)
        header = sources[0].header
        if polygons is not None:
            require_crs(polygons, header.path, header.crs)
        layout = Layout(header.height, header.width, tile, overlap, band_columns, margin)
        channels = sum(len(source.bands) for source in sources)
        if batch_size < 1 or batch_size * channels * tile * tile * 4 > _BATCH_BYTES:
            raise ConfigError(f"batch_size={batch_size}: 1 or more, and at most 2 GiB of windows, can go to the net.")
        settings = _settings(net, sources, layout, batch_size, mirror_axes, probabilities is not None, within)
        strips = Strips(output, layout, settings, resume=resume, probabilities=probabilities is not None)
        if resume:
            for target in (output, probabilities, polygons):
                if target is not None:
                    remove_partials(target)
        resumed = strips.done
        if resumed:
            _LOG.info("%s: going on after %d of %d finished strips.", output, resumed, strips.total)
        may_lack = any(source.may_lack for source in sources)

        def decided(layers: Layers) -> tuple[int | None, list[Legend]]:
            value = output_nodata(header, layers, may_lack=may_lack, wanted=nodata)
            if not 0 <= polygon_layer < len(layers):
                raise ConfigError(f"polygon_layer={polygon_layer}: the net has {len(layers)} layers, counted from 0.")
            if within is not None and within not in dict(layers):
                raise ConfigError(f"within={within!r}: the net's layers are {', '.join(dict(layers))}.")
            return value, _legends(legends, layers, len(sources))

        if strips.layers is not None:
            decided(strips.layers)
        run = _Run(net, sources, layout, strips, batch_size, mirror_axes, device, progress, decided, within)
        try:
            run.finish_strips()
            if strips.layers is None:
                raise DataError(f"{' and '.join(source.path for source in sources)}: no pixel has data in all of them.")
        except BaseException as error:
            if isinstance(error, DataError) or not strips.done:  # other inputs are needed, and other strips then
                strips.remove()
            raise
        value, chosen = decided(strips.layers)
        if header.nodata is not None and value != header.nodata:
            _LOG.warning(
                "%s: nodata is %s, since the input's %s is a class or does not fit a byte.",
                output,
                value,
                header.nodata,
            )
        point = _is_point(sources[0])
        if probabilities is not None:
            names = [
                f"{layer} {name}"
                for (layer, _), legend in zip(strips.layers, chosen, strict=True)
                for name in legend.names
            ]
            write_probabilities(Path(probabilities), strips, header, names=names, point=point)
        counts = write_labels(output, strips, header, nodata=value, legends=chosen, point=point)
        count = None
        if polygons is not None:
            of_layer = chosen[polygon_layer].names
            count = write_polygons(output, polygons, classes=polygon_classes, names=of_layer, band=polygon_layer + 1)
        strips.remove()
    size = (header.height, header.width)
    return RasterPrediction(output, *size, strips.layers, value, run.num_tiles, run.num_skipped, resumed, count, counts)


class _Run:
    """The strips that are still missing: read, predicted, handed to the writer."""

    def __init__(
        self,
        net: Net,
        sources: Sequence[Source],
        layout: Layout,
        strips: Strips,
        batch_size: int,
        mirror_axes: Sequence[int],
        device: torch.device | str | None,
        progress: Progress | None,
        check: Callable[[Layers], object],
        within: str | None,
    ) -> None:
        self._within = within
        self._net, self._sources, self._layout, self._strips = net, sources, layout, strips
        self._batch_size, self._device, self._progress, self._check = batch_size, device, progress, check
        if len(set(mirror_axes)) != len(mirror_axes) or any(axis not in (0, 1) for axis in mirror_axes):
            raise ConfigError(f"mirror_axes={tuple(mirror_axes)}: 0 (rows), 1 (columns) or both.")
        self._joint = mirrored(self._joined, mirror_axes)
        self._channels = [len(source.bands) for source in sources]
        self._layers = strips.layers
        self._pieces: list[tuple[np.ndarray | None, np.ndarray | None, int]] = []
        self._num_added = strips.done
        self._total = layout.num_tiles()
        self._before = self._total - (layout.num_tiles(strips.done) if strips.done < strips.total else 0)
        self.num_tiles = self.num_skipped = 0

    def finish_strips(self) -> None:
        if self._strips.done == self._strips.total:
            return
        done = self._strips.done
        module = self._net if isinstance(self._net, nn.Module) else None
        was_training = module is not None and module.training
        with ExitStack() as stack:
            if module is not None:
                module.eval()
                stack.callback(module.train, was_training)
            self._strips.begin()
            writer = stack.enter_context(StripWriter(self._strips))
            readers = [stack.enter_context(ReadAhead(source, self._layout, done)) for source in self._sources]
            found = walk(
                readers,
                self._joint,
                self._layout,
                sum(self._channels),
                done,
                batch_size=self._batch_size,
                device=self._device,
                progress=self._tell,
            )
            for rows in found:
                self._take(rows, writer)

    def _tell(self, num_tiles: int, num_skipped: int) -> None:
        self.num_tiles += num_tiles
        self.num_skipped += num_skipped
        if self._progress is not None:
            self._progress(self._before + self.num_tiles + self.num_skipped, self._total)

    def _joined(self, windows: Tensor) -> Tensor:
        """All images' channels in one tensor -> all layers' logits in one."""
        given = self._net(*windows.split(self._channels, dim=1))
        outputs: tuple[Any, ...] = given if isinstance(given, tuple) else (given,)
        for logits in outputs:
            if not isinstance(logits, Tensor) or logits.shape[2:] != windows.shape[2:] or len(logits) != len(windows):
                told = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ShapeError(
                    f"the net returned {told} for windows of shape {tuple(windows.shape)}: logits [{len(windows)}, K, "
                    f"{windows.shape[2]}, {windows.shape[3]}] are needed, or a tuple of such."
                )
        names = getattr(given, "_fields", None) or [f"layer_{number}" for number in range(len(outputs))]
        names = ("class",) if isinstance(given, Tensor) else names
        layers = tuple((str(name), logits.shape[1]) for name, logits in zip(names, outputs, strict=True))
        if self._layers is None:
            if not all(2 <= size <= UNSEEN for _, size in layers):
                sizes = ", ".join(f"{name}: {size}" for name, size in layers)
                raise ShapeError(f"the net gives logits of {sizes} classes; 2 to {UNSEEN} can be written as bytes.")
            self._check(layers)  # with the first windows, not after hours
            self._layers = layers
        if layers != self._layers:
            raise ShapeError(f"the net's layers are {layers} where they were {self._layers} in earlier windows.")
        return torch.cat([logits.float() for logits in outputs], dim=1)

    def _take(self, found: Finished, writer: StripWriter) -> None:
        """Finished rows become labels; whole strips go to the writer."""
        labels, chances = self._decided(found)
        row = found.start
        while row < found.stop:
            strip = self._num_added % len(self._layout.strips)
            bottom = self._layout.strips[strip][1]
            stop = min(bottom, found.stop)
            part = slice(row - found.start, stop - found.start)
            self._pieces.append(
                (
                    None if labels is None else labels[:, part],
                    None if chances is None else chances[:, part],
                    stop - row,
                )
            )
            row = stop
            if row == bottom:
                self._hand_over(writer, found.valid.shape[1])

    def _decided(self, found: Finished) -> tuple[np.ndarray | None, np.ndarray | None]:
        if found.logits is None or not found.valid.any():
            return None, None
        assert self._layers is not None
        missing = ~found.valid
        groups = found.logits.split([size for _, size in self._layers])
        labels = np.stack([_largest(group).numpy() for group in groups])
        if self._within is not None:
            labels *= labels[[name for name, _ in self._layers].index(self._within)] > 0
        labels[:, missing] = UNSEEN
        if not self._strips.with_probabilities:
            return labels, None
        chances = torch.cat([group.softmax(dim=0) for group in groups]).numpy()
        chances[:, missing] = np.nan
        return labels, chances

    def _hand_over(self, writer: StripWriter, columns: int) -> None:
        strips, layers, number = self._strips, self._layers, self._num_added
        pieces, self._pieces = self._pieces, []
        self._num_added += 1
        if all(labels is None for labels, _, _ in pieces):
            writer.put(lambda: strips.add(Strip(number, None, None)))
            return
        assert layers is not None
        channels = sum(size for _, size in layers)
        labels = np.concatenate(
            [np.full((len(layers), rows, columns), UNSEEN, np.uint8) if a is None else a for a, _, rows in pieces],
            axis=1,
        )
        chances = None
        if strips.with_probabilities:
            parts = [
                np.full((channels, rows, columns), np.nan, np.float32) if b is None else b for _, b, rows in pieces
            ]
            chances = np.concatenate(parts, axis=1)

        def add() -> None:
            if strips.layers is None:
                strips.name_layers(layers)
            strips.add(Strip(number, labels, chances))

        writer.put(add)


def _largest(logits: Tensor) -> Tensor:
    """The first class of the largest logit, [K, h, w] -> uint8 [h, w]; on a CPU 4 to 10 times as fast as argmax."""
    best, labels = logits[0], torch.zeros(logits.shape[1:], dtype=torch.uint8)
    for number in range(1, len(logits)):
        labels.masked_fill_(logits[number] > best, number)
        best = torch.maximum(best, logits[number])
    return labels


def raster_environment() -> Any:
    """The settings of GDAL under which rasters are read and written: a small cache of blocks, no side files."""
    return rasterio.Env(GDAL_CACHEMAX=_CACHE_MB << 20, GDAL_PAM_ENABLED="NO")


def open_sources(
    images: Sequence[str | os.PathLike[str]],
    bands: Sequence[int] | None = None,
    scaling: BandScaling | Sequence[BandScaling] | None = None,
    align: bool = False,
    driver: str = DRIVER,
    allow_remote: bool = False,
) -> list[Source]:
    """One raster or two on one grid, checked, nothing decoded; arguments and errors are those of `predict_raster`."""
    if isinstance(images, (str, os.PathLike)) or len(images) not in (1, 2):
        raise ConfigError(f"images={images!r}: a list of one path, or of two (before, after), is needed.")
    scalings = [scaling] * len(images) if scaling is None or isinstance(scaling, BandScaling) else list(scaling)
    if len(scalings) != len(images):
        raise ConfigError(f"{len(scalings)} scalings for {len(images)} images: one for all or one for each is needed.")
    found = [
        describe(path, bands=bands, scaling=part, driver=driver, allow_remote=allow_remote)
        for path, part in zip(images, scalings, strict=True)
    ]
    if len(found) == 2:
        if len(found[0].bands) != len(found[1].bands):
            raise DataError(
                f"{found[0].path} has {len(found[0].bands)} bands and {found[1].path} {len(found[1].bands)}: the same "
                "bands are needed of both; choose them with --bands (bands=)."
            )
        found[1] = on_one_grid(found[0], found[1], align=align)
    return found


def _settings(
    net: Net,
    sources: Sequence[Source],
    layout: Layout,
    batch_size: int,
    mirror_axes: Sequence[int],
    chances: bool,
    within: str | None,
) -> dict[str, Any]:
    """All that the bits of a strip depend on, as far as it can be known of a net."""
    inputs = []
    for source in sources:
        path = Path(source.path)
        state = path.stat() if path.is_file() else None
        scaling = source.scaling
        inputs.append(
            {
                "path": str(path.resolve()) if state else source.path,
                "bytes": state.st_size if state else None,
                "changed_ns": state.st_mtime_ns if state else None,
                "bands": source.bands,
                "scaling": None
                if scaling is None
                else [scaling.offset, scaling.scale, scaling.clip, scaling.keep_zero],
                "warped": source.warped,
            }
        )
    return {
        "inputs": inputs,
        "size": [layout.height, layout.width],
        "tile": layout.tile,
        "overlap": layout.overlap,
        "margin": layout.margin,
        "band_columns": layout.band_columns,
        "batch_size": batch_size,
        "mirror_axes": sorted(mirror_axes),
        "probabilities": chances,
        "within": within,
        "weights": _checksum(net) if isinstance(net, nn.Module) else None,
    }


def _checksum(net: nn.Module) -> int:
    total = 0
    for name, value in net.state_dict().items():
        total = zlib.crc32(name.encode(), total)
        if isinstance(value, Tensor):
            content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            total = zlib.crc32(content.numpy().data, total)
    return total


def _legends(given: Sequence[Legend], layers: Layers, num_images: int) -> list[Legend]:
    if given:
        if [len(legend.names) for legend in given] != [size for _, size in layers]:
            told = ", ".join(f"{name}: {size}" for name, size in layers)
            raise ConfigError(f"{len(given)} legends of other numbers of classes than the net's layers ({told}).")
        return list(given)
    if num_images == 2 and layers == (("class", 2),):
        return [CHANGE_LEGEND]
    return [legend_of([f"class {index}" for index in range(size)]) for _, size in layers]


def legend_of(names: Sequence[str]) -> Legend:
    """The names with the colours that classes have in reports."""
    codes = [class_colour(index) for index in range(len(names))]
    colours = [(int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)) for code in codes]
    return Legend(tuple(names), tuple(colours))


def _is_point(source: Source) -> bool:
    with source.open() as dataset:
        return dataset.tags().get("AREA_OR_POINT") == "Point"

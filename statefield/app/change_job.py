"""Two dates of a place through a net, and the map that shows both with the polygons of what changed.

The map is one drawing (SVG) that holds its pictures: no tiles, no server of maps, nothing is loaded.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import transform as to_other_system

from statefield.datasets.readers.raster import RasterHeader, read_header
from statefield.errors import DataError
from statefield.files import write_text
from statefield.tasks.common.figures import displayed
from statefield.tasks.remote_sensing.change_figures import shown_bands
from statefield.tasks.remote_sensing.outlines import Outline
from statefield.tasks.remote_sensing.picture_rasters import as_raster
from statefield.tasks.remote_sensing.polygons import pixel_outlines, write_polygons
from statefield.tasks.remote_sensing.raster_model import (
    RasterModel,
    change_model_of_run,
    change_model_of_weights,
    predict_with,
)
from statefield.tasks.remote_sensing.raster_output import Legend
from statefield.tasks.remote_sensing.raster_sources import Source, describe, on_one_grid

Progress = Callable[[int, int], None]
_PICTURE_PX = 1024  # the longer side of a date in the map
_MOST_DRAWN = 1500  # polygons in the map, the largest first; the files have all
_BRIGHT = "#FF6B1A"  # of class 1 where the legend's colour is dark: outlines lie on photographs


@dataclass(frozen=True)
class ChangeResult:
    """map_html: the drawing. facts: (what, value) for people. files: what there is to download."""

    map_html: str
    facts: tuple[tuple[str, str], ...]
    num_polygons: int
    files: tuple[Path, ...]


class ChangeJob:
    """The net of a run folder, or of a file of weights.

    Raises: those of `load_change_run` and `load_change_net`.
    """

    def __init__(self, source: Path, device: str, model_name: str | None = None) -> None:
        self.model: RasterModel = (
            change_model_of_weights(source, model_name)[0] if source.is_file() else change_model_of_run(source)
        )
        self.device = device

    @property
    def about(self) -> str:
        """The model in a sentence."""
        classes = "; ".join(", ".join(legend.names[1:]) for legend in self.model.legends)
        return f"{self.model.about}: {', '.join(self.model.channels)} at two dates → {classes}"

    def map(
        self, before: Path, after: Path, folder: Path, *, align: bool = False, progress: Progress | None = None
    ) -> ChangeResult:
        """Predict as `statefield change predict` does, and draw.

        Args:
            before, after: GeoTIFFs, or pictures of one size. folder: for the result's files.
            align: warp the second to the first one's grid. progress: called as progress(tiles done, in all).

        Raises: DataError for rasters that cannot be read, lie elsewhere, or have other bands than the net's.
        """
        first, second = (as_raster(path, _made(folder / date)) for path, date in ((before, "1"), (after, "2")))
        header = read_header(first)
        output, layer = folder / "change.tif", self.model.polygon_layer
        packed = folder / "change.gpkg"
        found = predict_with(
            self.model,
            [first, second],
            output,
            align=align,
            device=self.device,
            polygons=packed,
            progress=progress,
        )
        files = [output, packed]
        if header.crs is not None:
            plain = folder / "change.geojson"
            write_polygons(output, plain, names=self.model.legends[layer].names, band=layer + 1)
            files.insert(1, plain)
        outlines = sorted(pixel_outlines(output, band=layer + 1), key=lambda one: -_area(one))
        drawn = outlines[:_MOST_DRAWN]
        legend = self.model.legends[layer]
        map_html = _drawing(self._pictures(first, second, align), drawn, legend, header)
        page = folder / "map.html"
        write_text(page, _PAGE.format(map=map_html))
        facts = _facts(self.model.legends, found.counts, header, len(outlines), len(drawn))
        return ChangeResult(map_html, facts, len(outlines), (*files, page))

    def _pictures(self, first: Path, second: Path, align: bool) -> tuple[bytes, bytes]:
        sources = [describe(first), describe(second)]
        sources[1] = on_one_grid(sources[0], sources[1], align=align)
        return _picture(sources[0], self.model), _picture(sources[1], self.model)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _picture(source: Source, model: RasterModel) -> bytes:
    """A date as PNG, no more than `_PICTURE_PX` wide or high, in true colours where the bands are known."""
    channels = model.channels
    if model.bands and len(source.bands) == model.num_image_bands:
        bands = model.bands
    else:
        bands, channels = source.bands, channels if len(channels) == len(source.bands) else ()
    scale = min(1.0, _PICTURE_PX / max(source.header.height, source.header.width))
    shape = (max(1, round(source.header.height * scale)), max(1, round(source.header.width * scale)))
    try:
        with source.open() as dataset:
            read = {"out_shape": (len(bands), *shape), "resampling": Resampling.average}
            values: NDArray[np.float32] = dataset.read(list(bands), **read).astype(np.float32)
            valid = dataset.dataset_mask(out_shape=shape) > 0
    except RasterioError as error:
        raise DataError(f"{Path(source.path).name}: could not be read for the map ({error}).") from error
    values[:, ~valid] = np.nan
    stream = io.BytesIO()
    Image.fromarray(displayed(shown_bands(values, channels))).save(stream, format="PNG")
    return stream.getvalue()


def _area(outline: Outline) -> float:
    """Pixels."""
    rings = [ring.astype(np.float64) for ring in outline.rings]
    return sum(float((ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1]).sum()) / 2 for ring in rings)


def _drawing(pictures: tuple[bytes, bytes], outlines: Sequence[Outline], legend: Legend, header: RasterHeader) -> str:
    """The map: both dates, the polygons above, a scale bar and the corner's place."""
    width, height = header.width, header.height
    parts = [
        f'<svg class="sf-map" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'preserveAspectRatio="xMidYMid meet" role="img" aria-label="map of change">'
    ]
    for date, content in zip(("before", "after"), pictures, strict=True):
        data = base64.b64encode(content).decode()
        parts.append(
            f'<image class="sf-{date}" href="data:image/png;base64,{data}" width="{width}" height="{height}" '
            'preserveAspectRatio="none"/>'
        )
    parts.append('<g class="sf-polygons">')
    square_metres = _square_metres(header)
    for number, outline in enumerate(outlines, start=1):
        rings = " ".join("M" + " L".join(f"{x} {y}" for x, y in ring[:-1].tolist()) + " Z" for ring in outline.rings)
        name = legend.names[outline.value]
        told = f"{number}. {name}: {_size(_area(outline), square_metres)}"
        parts.append(
            f'<path d="{rings}" fill="{_colour(legend, outline.value)}" stroke="{_colour(legend, outline.value)}" '
            f'fill-rule="evenodd" vector-effect="non-scaling-stroke"><title>{html.escape(told)}</title></path>'
        )
    parts.append("</g></svg>")
    keys = "".join(
        f'<span><i style="background:{_colour(legend, index)}"></i>{html.escape(name)}</span>'
        for index, name in enumerate(legend.names)
        if index
    )
    under = f'<div class="sf-legend">{keys}{_scale_bar(header)}</div>{_corners(header)}'
    return f'<div class="sf-frame">{"".join(parts)}{under}</div>'


def _colour(legend: Legend, index: int) -> str:
    red, green, blue = legend.colours[index]
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 100
    return _BRIGHT if dark and len(legend.names) == 2 else f"#{red:02X}{green:02X}{blue:02X}"


def _square_metres(header: RasterHeader) -> float | None:
    """Of a pixel, where the system's units are metres on the ground."""
    if header.crs is None or header.transform is None:
        return None
    system = CRS.from_wkt(header.crs)
    if not system.is_projected:
        return None
    a, b, _, d, e, _ = header.transform
    return abs(a * e - b * d) * float(system.linear_units_factor[1]) ** 2


def _size(pixels: float, square_metres: float | None) -> str:
    if square_metres is None:
        return f"{pixels:,.0f} pixels"
    area = pixels * square_metres
    return f"{area / 10_000:,.2f} ha" if area >= 10_000 else f"{area:,.0f} m²"


def _scale_bar(header: RasterHeader) -> str:
    """A bar of a round length, about a fifth of the map wide."""
    square_metres = _square_metres(header)
    if square_metres is None:
        return ""
    wide = header.width * math.sqrt(square_metres)
    step = 10 ** math.floor(math.log10(wide / 5))
    length = max(factor * step for factor in (1, 2, 5) if factor * step <= wide / 5)
    name = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    return f'<span class="sf-scale" style="width:{100 * length / wide:.3f}%">{name}</span>'


def _corners(header: RasterHeader) -> str:
    """Longitude and latitude of the upper left and lower right corners, where the raster says where it lies."""
    if header.crs is None or header.transform is None:
        return '<p class="sf-note">No place on the ground is known of these files: the polygons are in pixels.</p>'
    a, b, c, d, e, f = header.transform
    places = [(a * x + b * y + c, d * x + e * y + f) for x, y in ((0, 0), (header.width, header.height))]
    try:
        xs, ys = to_other_system(CRS.from_wkt(header.crs), CRS.from_epsg(4326), *zip(*places, strict=True))[:2]
    except RasterioError:
        return ""
    (west, east), (north, south) = xs, ys
    return f'<p class="sf-note">{north:.5f}°, {west:.5f}° (upper left) to {south:.5f}°, {east:.5f}° (lower right)</p>'


def _facts(
    legends: Sequence[Legend], counts: Sequence[Sequence[int]], header: RasterHeader, num_polygons: int, num_drawn: int
) -> tuple[tuple[str, str], ...]:
    square_metres = _square_metres(header)
    facts = [("size", f"{header.width} × {header.height} pixels")]
    for legend, of_layer in zip(legends, counts, strict=True):
        total = max(sum(of_layer), 1)
        facts += [
            (name, f"{100 * count / total:.3g} % ({_size(count, square_metres)})")
            for name, count in list(zip(legend.names, of_layer, strict=True))[1:]
        ]
    drawn = "" if num_drawn == num_polygons else f", of which the {num_drawn} largest are drawn"
    return (*facts, ("polygons", f"{num_polygons}{drawn}"))


# how the map looks, on the page and in the file map.html
MAP_CSS = """
.sf-frame { max-width: 900px; margin: 0 auto; font: 14px system-ui, sans-serif; --sf-opacity: 0.35; }
.sf-map { display: block; width: 100%; max-height: 78vh; background: #15181d; border-radius: 6px; }
.sf-map path { fill-opacity: var(--sf-opacity); stroke-width: 2px; }
.sf-map path:hover { stroke: #fff; fill-opacity: 0.75; }
.sf-frame[data-date="before"] .sf-after { display: none; }
.sf-frame[data-polygons="off"] .sf-polygons { display: none; }
.sf-legend { display: flex; gap: 18px; align-items: center; flex-wrap: wrap; padding: 8px 2px 0; }
.sf-legend i { display: inline-block; width: 14px; height: 14px; border-radius: 3px; margin-right: 6px;
  vertical-align: -2px; }
.sf-scale { border: 2px solid currentColor; border-top: 0; text-align: center; margin-left: auto; font-size: 12px;
  line-height: 14px; }
.sf-note { margin: 6px 2px 0; font-size: 12.5px; opacity: 0.8; }
"""

_PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Map of change</title><style>'
    + MAP_CSS.replace("{", "{{").replace("}", "}}")
    + "</style></head><body>{map}</body></html>\n"
)

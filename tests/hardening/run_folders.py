"""Folders in the place of runs, and GeoTIFFs that are none."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from hardening.case import Case, Write, both, patched, write_bytes, write_text
from hardening.images import picture_bytes

_OTHER = b"folder: 3\nseeds: many\n"
_USES = {
    "medical_predict": "medical predict --run AT/run AT/a.png --output AT/out.png --device cpu",
    "medical_test": "medical test --run AT/run --output AT/out",
    "change_test": "change test --run AT/run",
    "change_predict": "change predict AT/a.tif AT/b.tif --run AT/run -o AT/out.tif --device cpu",
    "segment_predict": "segment predict AT/a.tif --run AT/run -o AT/out.tif --device cpu",
    "scene_predict": "scene predict --run AT/run AT/a.png --output AT/out.csv",
    "hyperspectral_predict": "hyperspectral predict AT/a.npy --run AT/run -o AT/out.tif",
    "sot_track": "sot track AT/frames --run AT/run --output AT/out --init 1 1 5 5 --device cpu",
    "video_detect": "video detect AT/frames --run AT/run --output AT/out.json --device cpu",
}


def runs() -> list[Case]:
    """Every command that uses a run, on what is no run of its kind."""
    cases = []
    for name, command in _USES.items():
        says = ("/run|run/",)
        cases += [
            Case(f"{name}_missing", _inputs, command, says),
            Case(f"{name}_empty", both(_inputs, lambda at: (at / "run").mkdir()), command, says),
            Case(f"{name}_a_file", both(_inputs, write_text("run", "")), command, says),
            Case(f"{name}_binary_config", both(_inputs, _run_with(bytes(range(256)))), command, says),
            Case(f"{name}_config_of_code", both(_inputs, _run_with(b"a: !!python/name:os.system\n")), command, says),
            Case(
                f"{name}_other_config",
                both(_inputs, _run_with(b"folder: 3\nseeds: many\n")),
                command,
                ("run|seeds|folder",),
            ),
        ]
    return cases


def _run_with(config: bytes) -> Write:
    return both(write_bytes("run/config.yaml", config), write_bytes("run/classifiers/a/classifier.json", config))


def _inputs(at: Path) -> None:
    from fakes.rasters import write_raster

    (at / "frames").mkdir()
    for name in ("a.png", "frames/0001.png"):
        (at / name).write_bytes(picture_bytes("PNG"))
    for name in ("a.tif", "b.tif"):
        write_raster(at / name, 20, 24)
    np.save(at / "a.npy", np.zeros((4, 5, 6)))


def rasters() -> list[Case]:
    """GeoTIFFs, and what goes by their name, as `change evaluate` finds them."""

    def spoilt(change) -> Write:
        def write(at: Path) -> None:
            from fakes.rasters import write_raster

            for name in ("p.tif", "t.tif"):
                raster = write_raster(at / name, 20, 24, bands=1)
                raster.array[:] %= 2
                raster.save()
            path = at / "p.tif"
            content = change(path.read_bytes())
            path.write_bytes(content)

        return write

    def tag(content: bytes, number: int, value: int, kind: str = "<H") -> bytes:
        """Another value of the first tag with this number (short tags of one value, in the first directory)."""
        start = struct.unpack_from("<I", content, 4)[0]
        for entry in range(struct.unpack_from("<H", content, start)[0]):
            place = start + 2 + 12 * entry
            if struct.unpack_from("<H", content, place)[0] == number:
                return patched(content, place + 8, struct.pack(kind, value))
        raise AssertionError(number)

    def loop(content: bytes) -> bytes:
        start = struct.unpack_from("<I", content, 4)[0]
        count = struct.unpack_from("<H", content, start)[0]
        return patched(content, start + 2 + 12 * count, struct.pack("<I", start))

    virtual = b'<VRTDataset rasterXSize="24" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
    virtual += b"<SourceFilename>/etc/passwd</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    changes = {
        **{f"cut_at_{cut}": lambda content, cut=cut: content[:cut] for cut in (0, 4, 8, 100, 400)},
        "cut_by_one": lambda content: content[: len(content) // 2],
        "vrt": lambda content: virtual,
        "mrf": lambda content: b"<MRF_META><CachedSource><Source>/etc/passwd</Source></CachedSource></MRF_META>",
        "wms": lambda content: (
            b'<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1/</ServerUrl></Service></GDAL_WMS>'
        ),
        "ascii_grid": lambda content: b"ncols 2\nnrows 2\nxllcorner 0\nyllcorner 0\ncellsize 1\n1 2\n3 4\n",
        "gml": lambda content: b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
        "bigtiff_header_alone": lambda content: b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**62),
        "directory_beyond_the_file": lambda content: patched(content, 4, struct.pack("<I", 2**31)),
        "no_width": lambda content: tag(content, 256, 0),
        "bits_of_77": lambda content: tag(content, 258, 77),
        "unknown_compression": lambda content: tag(content, 259, 65_000),
        "huge_tiles": lambda content: tag(content, 322, 65_520),
        "no_samples": lambda content: tag(content, 277, 0),
        "sixty_thousand_samples": lambda content: tag(content, 277, 60_000),
        "tile_beyond_the_file": lambda content: tag(content, 324, 2**31 - 1, "<I"),
    }
    command = "change evaluate AT/p.tif AT/t.tif --json AT/o.json --csv AT/o.csv"
    cases = [Case(name, spoilt(change), command, ("p.tif",)) for name, change in changes.items()]
    sound = spoilt(lambda content: content)
    for number, name in enumerate(
        ("https://example.org/a.tif", "/vsicurl/http://example.org/a.tif", "/vsizip/a.zip/a.tif")
    ):
        cases.append(Case(f"remote_{number}", sound, f"change evaluate {name} AT/t.tif", ("a.tif",)))
    return cases

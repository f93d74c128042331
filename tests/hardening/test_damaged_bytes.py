"""Sound files with bytes flipped or cut at random: every reader reads what is there, or raises one of our errors."""

from __future__ import annotations

import gzip
import json
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from fakes.rasters import write_raster
from hardening.case import bounded_memory
from hardening.cubes import DATA, HEADER, matlab_bytes
from hardening.events import aedat4_bytes
from hardening.images import picture_bytes, volume_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

from statefield.backbones._checkpoint_files import read_checkpoint
from statefield.datasets.events import read_events
from statefield.datasets.hyperspectral.cubes import read_cube
from statefield.datasets.readers.hdf5 import read_array as read_hdf5_array
from statefield.datasets.readers.image import read_image, read_mask
from statefield.datasets.readers.matlab import read_matlab
from statefield.datasets.readers.nifti import read_volume
from statefield.datasets.readers.npz import read_array
from statefield.datasets.readers.raster import read_raster
from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.coco_json import read_annotations
from statefield.datasets.tracking.detections import read_detections
from statefield.datasets.tracking.kitti_text import read_kitti_tracks
from statefield.datasets.tracking.mot_text import read_mot_results
from statefield.datasets.tracking.number_rows import read_rows
from statefield.datasets.tracking.vot import find_vot_sequences
from statefield.errors import StatefieldError
from statefield.tasks.common.checkpointing import read_weights
from statefield.tasks.common.recipes import read_settings

_T = np.array([5, 70, 130, 4000])


@dataclass(frozen=True)
class Reader:
    """sound: writes a sound file. read: reads the file, which every test damages in its own way."""

    name: str
    file: str
    sound: Callable[[Path], object]
    read: Callable[[Path], Any]


def _bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _torch_file(path: Path) -> None:
    torch.save({"model": {"a.weight": torch.zeros(3, 4), "b": torch.zeros(2)}}, path)


def _npz(path: Path) -> None:
    np.savez(path, image=np.arange(24.0).reshape(4, 6))


def _matlab(path: Path) -> None:
    scipy.io.savemat(path, {"a": np.eye(4)})


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["image"] = np.arange(24.0).reshape(4, 6)


def _envi(path: Path) -> None:
    path.write_text(HEADER)
    path.with_suffix(".dat").write_bytes(DATA)


def _events_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name, values in (("t", _T), ("x", [1, 2, 3, 4]), ("y", [4, 3, 2, 1]), ("p", [0, 1, 1, 0])):
            file[f"events/{name}"] = np.array(values)


def _events_npz(path: Path) -> None:
    np.savez(path, t=_T, x=np.array([1, 2, 3, 4]), y=np.array([4, 3, 2, 1]), p=np.array([0, 1, 1, 0]))


_WORDS = [(8 << 28) | 0, (1 << 28) | (5 << 22) | (3 << 11) | 4, (9 << 22) | (2 << 11) | 1, (8 << 28) | 2]
_EVT2 = b"% evt 2.0\n% geometry 640x480\n% end\n" + struct.pack("<4I", *_WORDS)
_EVT3 = b"% evt 3.0\n% geometry 640x480\n% end\n" + struct.pack("<5H", 0x8000, 0x6001, 0x0004, 0x2803, 0x3007)
_COCO = {
    "images": [{"id": 1, "file_name": "a/000001.jpg", "width": 9, "height": 9}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}],
    "categories": [{"id": 1, "name": "car"}],
}
_VOT = {"ants": {"gt_rect": [[1, 1, 9, 1, 9, 9, 1, 9]] * 3, "width": 20, "height": 20}}
_ROWS = b"1,7,11,10,20,40,1,-1,-1,-1\n2,7,12.5,10,20,40,1,-1,-1,-1\n"
_KITTI = b"0 1 Pedestrian 0 0 -1.0 10 10 30 50 -1 -1 -1 -1 -1 -1 -1 0.9\n"


def _read_kitti(path: Path) -> None:
    read_kitti_tracks(path, num_frames=3, is_ground_truth=False, bad=BadRows(path))


READERS = [
    *(
        Reader(f"picture_{end}", f"a.{end}", _bytes(picture_bytes(kind)), read_image)
        for kind, end in (("PNG", "png"), ("JPEG", "jpg"), ("TIFF", "tif"), ("BMP", "bmp"), ("GIF", "gif"))
    ),
    Reader("mask", "a.png", _bytes(picture_bytes("PNG")), read_mask),
    Reader("nifti", "a.nii", _bytes(volume_bytes()), read_volume),
    Reader("nifti2", "a.nii", _bytes(volume_bytes(nifti2=True)), read_volume),
    Reader("nifti_packed", "a.nii.gz", _bytes(gzip.compress(volume_bytes(), mtime=0)), read_volume),
    Reader("geotiff", "a.tif", lambda path: write_raster(path, 20, 24), read_raster),
    Reader("geotiff_packed", "a.tif", lambda path: write_raster(path, 20, 24, compress="DEFLATE"), read_raster),
    Reader("npz", "a.npz", _npz, lambda path: read_array(path, "image", 2)),
    Reader(
        "matlab", "a.mat", lambda path: scipy.io.savemat(path, {"a": np.eye(4)}), lambda p: read_matlab(p, ("a",), 2)
    ),
    Reader("hdf5", "a.h5", _hdf5, lambda path: read_hdf5_array(path, "image", 2)),
    Reader("cube", "a.npy", lambda path: np.save(path, np.zeros((4, 5, 6))), read_cube),
    Reader(
        "cube_envi",
        "a.hdr",
        lambda path: (path.write_text(HEADER), path.with_suffix(".dat").write_bytes(DATA)),
        read_cube,
    ),
    Reader("cube_matlab", "a.mat", _bytes(matlab_bytes()), read_cube),
    Reader("events_aedat4", "a.aedat4", _bytes(aedat4_bytes()), read_events),
    Reader("events_evt2", "a.raw", _bytes(_EVT2), read_events),
    Reader("events_evt3", "a.raw", _bytes(_EVT3), read_events),
    Reader("events_text", "a.csv", _bytes(b"t,x,y,p\n5,1,4,0\n70,2,3,1\n"), read_events),
    Reader("events_npz", "a.npz", _events_npz, read_events),
    Reader("events_npy", "a.npy", lambda path: np.save(path, np.array([[5, 9, 8, 1], [70, 3, 7, 0]])), read_events),
    Reader("events_hdf5", "a.h5", _events_hdf5, read_events),
    Reader("tracks", "a.txt", _bytes(_ROWS), lambda path: read_mot_results(path, num_frames=4, bad=BadRows(path))),
    Reader("tracks_kitti", "a.txt", _bytes(_KITTI), _read_kitti),
    Reader("boxes", "a.txt", _bytes(b"10,10,20,20\n11,10,20,20\n"), lambda path: read_rows(path, 4, "a box")),
    Reader("coco", "a.json", _bytes(json.dumps(_COCO).encode()), read_annotations),
    Reader("coco_to_link", "a.json", _bytes(json.dumps(_COCO).encode()), read_detections),
    Reader("vot", "a.json", _bytes(json.dumps(_VOT).encode()), find_vot_sequences),
    Reader("torch", "a.pth", _torch_file, read_checkpoint),
    Reader("safetensors", "a.safetensors", _bytes(safetensors_bytes({"a": torch.zeros(3)})), read_checkpoint),
    Reader("weights", "a.safetensors", _bytes(safetensors_bytes({"a": torch.zeros(3)})), read_weights),
    Reader("recipe", "a.yaml", _bytes(b"run: a\ntrainer: {max_epochs: 3}\nx: [1, 2.5, null]\n"), read_settings),
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_bytes_are_read_or_refused(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEFIELD_MEMORY_LIMIT_GB", "0.1")
    path = tmp_path / reader.file
    reader.sound(path)
    content = path.read_bytes()
    files = sorted(tmp_path.iterdir())
    reader.read(path)

    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(
        flips=st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6),
        end=st.one_of(st.just(len(content)), st.integers(0, len(content))),
    )
    def damaged(flips: list[tuple[int, int]], end: int) -> None:
        spoilt = bytearray(content)
        for place, value in flips:
            spoilt[place] = value
        path.write_bytes(bytes(spoilt[:end]))
        try:
            with bounded_memory(2**29):
                reader.read(path)
        except StatefieldError as error:
            assert f"{path.stem}." in str(error)  # of a header and its data either may be wrong

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of values that the damage made
        damaged()
    assert sorted(tmp_path.iterdir()) == files

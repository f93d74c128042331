"""Prediction: a normalised volume through a 2-D net, slice by slice, and label maps back into the input's own format.

Shape legend: C channels, D slices, H x W pixels, K classes. A photograph is a volume of one slice.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from statefield.datasets.adapter import load_files
from statefield.datasets.readers.image import write_mask
from statefield.datasets.readers.nifti import SUFFIXES as NIFTI_SUFFIXES
from statefield.datasets.readers.nifti import restore, write_nifti
from statefield.datasets.sample import DatasetInfo, Meta
from statefield.errors import ConfigError, ShapeError, StatefieldError
from statefield.files import atomic_path
from statefield.tasks.common.config import InferenceConfig, NormalisationConfig
from statefield.tasks.common.figures import displayed, tinted
from statefield.tasks.common.tiling import Progress, sliding_window
from statefield.tasks.common.volumes import normalise, stack_neighbours
from statefield.tasks.medical.inputs import InputCase, OutputFiles


@dataclass(frozen=True, eq=False)
class Prediction:
    """labels: int64 [D, H, W], the most probable class; probabilities: float32 [K, D, H, W] in 0..1, when asked for."""

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32] | None = None


def segment_volume(
    net: Callable[[Tensor], Tensor],
    image: NDArray[np.float32],
    *,
    slice_context: int,
    roi: tuple[int, ...] | None,
    inference: InferenceConfig,
    with_probabilities: bool = False,
    progress: Progress | None = None,
) -> Prediction:
    """Predict every slice of a volume.

    Slices go through the net `inference.batch_size` at a time and are reduced to labels at once, so memory holds the
    logits of that many slices and not those of the volume.

    Args:
        net: windows [n, (2k+1) * C, h, w] -> logits [n, K, h, w], k = `slice_context`. A module is in eval mode during
            the call (and in its former mode afterwards) and gets its windows on its own device.
        image: [C, D, H, W], normalised as in training.
        slice_context: how many neighbours on each side the net sees as further channels.
        roi: the window in pixels; None: a whole slice.
        inference: overlap, weighting, batch size and mirroring (of both in-plane axes). Its `roi` is not looked at.
        with_probabilities: keep the softmax of the blended logits too.
        progress: called as `progress(slices_done, D)`.

    Raises: ShapeError for an image that is not [C, D, H, W], and whatever the net says about its channels.
    """
    if image.ndim != 4 or 0 in image.shape:
        raise ShapeError(f"an image of shape {image.shape} given; [C, D, H, W] without empty axes is needed.")
    depth, size = image.shape[1], (int(image.shape[2]), int(image.shape[3]))
    labels = np.empty((depth, *size), dtype=np.int64)
    probabilities: NDArray[np.float32] | None = None
    with _evaluating(net) as device:
        for start in range(0, depth, inference.batch_size):
            stop = min(start + inference.batch_size, depth)
            slices = np.stack([stack_neighbours(image, index, slice_context) for index in range(start, stop)])
            logits = sliding_window(
                torch.from_numpy(slices),
                net,
                roi or size,
                overlap=inference.overlap,
                batch_size=inference.batch_size,
                weighting=inference.weighting,
                mirror_axes=(0, 1) if inference.mirror else (),
                device=device,
            )
            labels[start:stop] = logits.argmax(1).numpy()
            if with_probabilities:
                if probabilities is None:
                    probabilities = np.empty((logits.shape[1], *labels.shape), dtype=np.float32)
                probabilities[:, start:stop] = logits.softmax(1).transpose(0, 1).numpy()
            if progress is not None:
                progress(stop, depth)
    return Prediction(labels, probabilities)


@dataclass(frozen=True)
class Outcome:
    """What became of a case: written, kept (all its files existed), or failed, with the reason."""

    case: InputCase
    files: OutputFiles
    status: Literal["written", "kept", "failed"]
    error: StatefieldError | None = None


def predict_cases(
    net: Callable[[Tensor], Tensor],
    cases: Sequence[InputCase],
    outputs: Sequence[OutputFiles],
    *,
    info: DatasetInfo,
    normalisation: NormalisationConfig,
    slice_context: int,
    roi: tuple[int, ...] | None,
    inference: InferenceConfig,
    overwrite: bool = False,
    progress: Callable[[InputCase, int, int], None] | None = None,
) -> Iterator[Outcome]:
    """Predict cases one after the other; a case that cannot be read or predicted fails alone, and the next one follows.

    Args:
        net, slice_context, roi, inference: as for `segment_volume`.
        outputs: the files of each case, as `place_outputs` gives them. Files that exist are left as they are.
        info: classes and channels of the training data; a case with other channels fails.
        normalisation: that of training.
        overwrite: predict all cases, and replace files that exist.
        progress: called as `progress(case, slices_done, slices)`.

    Yields an `Outcome` per case, in order.
    """
    for case, files in zip(cases, outputs, strict=True):
        wanted = files.wanted() if overwrite else files.missing()
        if not wanted:
            yield Outcome(case, files, "kept")
            continue
        try:
            sample = load_files(case.files, case=case.name, info=info)
            image = sample["image"] if sample["image"].ndim == 4 else sample["image"][:, None]
            prediction = segment_volume(
                net,
                normalise(image, normalisation),
                slice_context=slice_context,
                roi=roi,
                inference=inference,
                with_probabilities=files.probabilities in wanted,
                progress=None if progress is None else partial(progress, case),
            )
            if files.labels in wanted:
                write_prediction(files.labels, prediction.labels, sample["meta"])
            if files.probabilities in wanted and prediction.probabilities is not None:
                write_probabilities(files.probabilities, prediction.probabilities, sample["meta"])
            if files.overlay in wanted:
                write_overlay(files.overlay, image, prediction.labels)
        except StatefieldError as error:
            yield Outcome(case, files, "failed", error)
        else:
            yield Outcome(case, files, "written")


@contextmanager
def _evaluating(net: Callable[[Tensor], Tensor]) -> Iterator[torch.device | None]:
    """A module in eval mode, and the device of its first parameter; anything else runs where the image is."""
    if not isinstance(net, nn.Module):
        yield None
        return
    training = net.training
    net.eval()
    try:
        yield next((parameter.device for parameter in net.parameters()), None)
    finally:
        net.train(training)


def write_prediction(path: Path, labels: NDArray[np.int64], meta: Meta) -> None:
    """Write label indices in the input's own format, whole or not at all.

    A case from a NIfTI file becomes a NIfTI with exactly that file's affine, shape, orientation, sform and qform; a
    photograph becomes a grey PNG whose pixel values are the label indices.

    Args:
        path: ends in .nii, .nii.gz or .png, as the case needs.
        labels: [D, H, W] as predicted; [1, H, W] or [H, W] for a photograph.
        meta: the meta of the case's sample.

    Raises: ConfigError where path and case do not fit; ShapeError where labels and case do not.
    """
    if meta["file"] is not None:
        if not path.name.endswith(NIFTI_SUFFIXES):
            raise ConfigError(
                f"{path}: the prediction of the volume {meta['path']} is a volume: name the output .nii.gz or .nii."
            )
        write_nifti(path, labels, meta)
        return
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path}: the prediction of the picture {meta['path']} is a picture: name the output .png.")
    write_mask(path, _single_slice(labels, meta))


def write_probabilities(path: Path, probabilities: NDArray[np.float32], meta: Meta) -> None:
    """Write class probabilities [K, D, H, W], whole or not at all.

    A volume becomes a NIfTI of float32 (x, y, z, K) that lies on the input; a photograph, for which no common format
    holds K channels of floats, a NumPy archive (.npz) with the array "probabilities" [K, H, W].

    Raises: ConfigError for a path of another suffix; ShapeError where array and case do not fit.
    """
    geometry = meta["file"]
    if geometry is None:
        if path.suffix != ".npz":
            raise ConfigError(f"{path}: probabilities of the picture {meta['path']} are written as .npz.")
        with atomic_path(path) as unfinished, unfinished.open("wb") as stream:
            np.savez_compressed(stream, probabilities=_single_slice(probabilities, meta))
        return
    if not path.name.endswith(NIFTI_SUFFIXES):
        raise ConfigError(f"{path}: probabilities of the volume {meta['path']} are written as .nii.gz or .nii.")
    values = restore(probabilities.astype(np.float32, copy=False), meta)
    if values.ndim == 3:  # the file is a single 2-D slice: NIfTI has its classes on the fourth axis all the same
        values = values[:, :, None, :]
    is_nifti2 = len(geometry.header) == nib.Nifti2Header.template_dtype.itemsize
    header = (nib.Nifti2Header if is_nifti2 else nib.Nifti1Header)(geometry.header)
    header.set_data_dtype(np.float32)
    header.set_data_shape(values.shape)
    for name in ("cal_max", "cal_min", "vox_offset", "scl_slope", "scl_inter"):
        header[name] = 0
    header["descrip"] = b"class probabilities"
    header["aux_file"] = b""
    header.set_intent("none")
    content = (nib.Nifti2Image if is_nifti2 else nib.Nifti1Image)(values, header.get_best_affine(), header).to_bytes()
    with atomic_path(path) as unfinished:
        unfinished.write_bytes(gzip.compress(content, 6, mtime=0) if path.name.endswith(".gz") else content)


def write_overlay(path: Path, image: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Write a PNG of `image` [C, D, H, W] with `labels` [D, H, W] washed over it, for eyes and not for programs.

    Of a volume, the slice with most foreground is drawn, the front of the body up.
    """
    index = int(np.argmax((labels > 0).sum(axis=(1, 2))))
    picture = tinted(displayed(image[:, index]), labels[index])
    with atomic_path(path) as unfinished:
        Image.fromarray(picture[::-1] if len(labels) > 1 else picture).save(unfinished, format="PNG")


def _single_slice(array: NDArray[Any], meta: Meta) -> NDArray[Any]:
    """`array` without its slice axis: [..., 1, H, W] to [..., H, W]. Labels that are [H, W] already stay."""
    if array.ndim == 2:
        return array
    if array.shape[-3] != 1:
        raise ShapeError(f"{meta['path']} is a picture, but its prediction has {array.shape[-3]} slices.")
    return array[..., 0, :, :]

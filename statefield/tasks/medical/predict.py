"""Prediction: volumes and pictures through a trained net, and label maps back into the input's own format.

    file -> normalised -> resampled to the net's spacing -> windows -> logits -> the file's grid -> labels -> file

Shape legend: C channels, K classes, D x H x W the grid of the file, d x h x w that of the net. A photograph is a volume
of one slice.

Logits come and go row by row (`logit_rows`). The arrays that a case needs as a whole (voxels, the net's image, labels,
probabilities if asked for) are in memory while they fit into the budget, and in temporary files mapped into memory
beyond it; the same steps run on either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from torch import Tensor, nn

from statefield.datasets.adapter import load_files
from statefield.datasets.readers.image import write_mask
from statefield.datasets.readers.limits import memory_limit_bytes
from statefield.datasets.readers.mapped import Workspace, available_bytes
from statefield.datasets.readers.nifti import SUFFIXES as NIFTI_SUFFIXES
from statefield.datasets.readers.nifti import restore, write_nifti, write_voxels
from statefield.datasets.readers.nifti_mapped import map_case, stored_size
from statefield.datasets.sample import DatasetInfo, Meta
from statefield.errors import ConfigError, ShapeError, StatefieldError
from statefield.files import atomic_path
from statefield.tasks.common.config import InferenceConfig, NormalisationConfig
from statefield.tasks.common.figures import displayed, tinted
from statefield.tasks.common.tiling import Progress
from statefield.tasks.common.volumes import Grid, Spacing
from statefield.tasks.medical.inputs import InputCase, OutputFiles
from statefield.tasks.medical.logit_rows import bands_needed, logit_rows, most_probable, same_grid
from statefield.tasks.medical.preparation import ArraySource, Source, prepare

Labels = NDArray[np.unsignedinteger]
Postprocess = Callable[[Labels], Labels]  # label maps [D, H, W] of any integer dtype, maybe changed in place

# what a budget is for: the arrays of a case, the logits in flight; the rest is the net's and the libraries' own
_SHARE_OF_ARRAYS, _SHARE_OF_LOGITS = 0.4, 0.4
_SHARE_OF_AVAILABLE = 0.6


class Allocate(Protocol):
    """`np.empty`, or something that gives an array mapped from a file."""

    def __call__(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class Prediction:
    """labels: [D, H, W], the most probable class, uint8 (uint16 for more than 256 classes); probabilities: float32
    [K, D, H, W] in 0..1, when asked for.
    """

    labels: Labels
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
    grid: Grid | None = None,
    num_bands: int = 1,
    allocate: Allocate = np.empty,
) -> Prediction:
    """Predict a volume: with a net of slices slice by slice, with a net of volumes in overlapping windows.

    Logits are reduced to labels row by row, so memory holds those of one row of windows, or of
    `inference.batch_size` slices, and not those of the volume.

    Args:
        net: windows [n, (2k+1) * C, h, w] -> logits [n, K, h, w], k = `slice_context`, or for volumes windows
            [n, C, d, h, w] -> [n, K, d, h, w]. A module is in eval mode during the call (and in its former mode
            afterwards) and gets its windows on its own device.
        image: [C, d, h, w], normalised as in training, at the spacing of training; may be mapped from a file.
        slice_context: how many neighbours on each side the net sees as further channels; 0 for volumes.
        roi: the window in pixels: three sides for a net of volumes, two for one of slices; None: a whole slice.
        inference: overlap, weighting, batch size and mirroring (of all axes of a window). Its `roi` is not looked at.
        with_probabilities: keep the softmax of the blended logits too.
        progress: called as `progress(slices_done, d)`; for volumes with the windows done and their number.
        grid: where the image was resampled, from which grid: logits are interpolated back to it, and labels and
            probabilities are on it.
        num_bands: for volumes, into how many bands the logits of a row of windows are divided to save memory.
        allocate: makes the arrays of the result.

    Raises: ShapeError for an image that is not [C, d, h, w]; CheckpointError for logits that are NaN; and whatever the
        net says about its channels.
    """
    if image.ndim != 4 or 0 in image.shape:
        raise ShapeError(f"an image of shape {image.shape} given; [C, D, H, W] without empty axes is needed.")
    grid = grid or same_grid(image.shape[1:])
    labels: Labels | None = None
    probabilities: NDArray[np.float32] | None = None
    with _evaluating(net) as device:
        rows = logit_rows(
            net,
            image,
            grid=grid,
            slice_context=slice_context,
            roi=roi,
            inference=inference,
            num_bands=num_bands,
            device=device,
            progress=progress,
        )
        for row in rows:
            if labels is None:
                num_classes = len(row.logits)
                labels = allocate(grid.shape, np.uint8 if num_classes <= 256 else np.uint16)
                if with_probabilities:
                    probabilities = allocate((num_classes, *grid.shape), np.float32)
            most_probable(row.logits, labels[row.index, row.start : row.stop])
            if probabilities is not None:
                probabilities[:, row.index, row.start : row.stop] = torch.from_numpy(row.logits).softmax(0).numpy()
    assert labels is not None
    return Prediction(labels, probabilities)


@dataclass(frozen=True)
class Outcome:
    """What became of a case: written, kept (all its files existed), or failed, with the reason."""

    case: InputCase
    files: OutputFiles
    status: Literal["written", "kept", "failed"]
    error: StatefieldError | None = None


@dataclass(frozen=True)
class Memory:
    """How much memory the arrays of prediction may take, and where they go beyond it.

    budget: bytes for a case's arrays (two fifths), the logits in flight (two fifths) and the net's own; None: three
    fifths of what is available when the case begins. scratch: the folder of temporary files; None: that of the output.
    """

    budget: int | None = None
    scratch: Path | None = None

    def settled(self) -> Memory:
        """The same with the budget in numbers, as memory is now."""
        return self if self.budget is not None else Memory(int(_SHARE_OF_AVAILABLE * available_bytes()), self.scratch)

    @property
    def of_arrays(self) -> int:
        """Bytes for the arrays of a case."""
        return int(_SHARE_OF_ARRAYS * (self.settled().budget or 0))

    @property
    def of_logits(self) -> int:
        """Bytes for the logits in flight."""
        return int(_SHARE_OF_LOGITS * (self.settled().budget or 0))


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
    spacing: Spacing | None = None,
    postprocess: Postprocess | None = None,
    memory: Memory | None = None,
    overwrite: bool = False,
    progress: Callable[[InputCase, int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Outcome]:
    """Predict cases one after the other; a case that cannot be read or predicted fails alone, and the next one follows.

    Args:
        net, slice_context, roi, inference: as for `segment_volume`. Anything that gives logits is a net.
        outputs: the files of each case, as `place_outputs` gives them. Files that exist are left as they are.
        info: classes and channels of the training data; a case with other channels fails.
        normalisation, spacing: those of training. Labels are on the grid of the file whatever the spacing.
        postprocess: applied to the label map on the file's grid. It may change its argument in place.
        memory: how much to take. Where arrays go changes nothing in the result; more bands of columns can change
            logits by a rounding error, where the number of windows that a batch holds does.
        overwrite: predict all cases, and replace files that exist.
        progress: called as `progress(case, done, total)`, as `segment_volume` calls it.
        tell: called with a line for each case that does not fit in memory.

    Yields an `Outcome` per case, in order.
    """
    memory = memory or Memory()
    for case, files in zip(cases, outputs, strict=True):
        wanted = files.wanted() if overwrite else files.missing()
        if not wanted:
            yield Outcome(case, files, "kept")
            continue
        now = memory.settled()
        try:
            with Workspace(now.of_arrays, now.scratch or files.labels.parent) as workspace:
                source, meta = _open(case, info, workspace)
                grid = Grid.of(source.shape[1:], meta, spacing)
                image = prepare(source, normalisation, grid, workspace)
                bands = bands_needed(grid, roi, len(info.classes), now.of_logits)
                if tell is not None and (workspace.on_disk or bands > 1):
                    tell(_in_words(case, workspace, bands, now.budget or 0))
                prediction = segment_volume(
                    net,
                    image,
                    slice_context=slice_context,
                    roi=roi,
                    inference=inference,
                    with_probabilities=files.probabilities in wanted,
                    progress=_releasing(workspace, None if progress is None else partial(progress, case)),
                    grid=grid,
                    num_bands=bands,
                    allocate=workspace.empty,
                )
                labels = prediction.labels if postprocess is None else postprocess(prediction.labels)
                if files.labels in wanted:
                    write_prediction(files.labels, labels, meta)
                if files.probabilities in wanted and prediction.probabilities is not None:
                    write_probabilities(files.probabilities, prediction.probabilities, meta)
                if files.overlay in wanted:
                    write_overlay(files.overlay, source, labels)
        except StatefieldError as error:
            yield Outcome(case, files, "failed", error)
        else:
            yield Outcome(case, files, "written")


def _open(case: InputCase, info: DatasetInfo, workspace: Workspace) -> tuple[Source, Meta]:
    """The voxels of a case, in memory if there is room for them."""
    if case.is_volume:
        # decoded as stored, turned and as float32, with a mark per voxel while they are checked
        sizes = [stored_size(path) for path in case.files]
        needed = sum(count * (dtype.itemsize + 4 + 4 + 1) for count, dtype in sizes)
        largest = max(count * max(dtype.itemsize, 4) for count, dtype in sizes)
        if not workspace.fits(needed) or largest > memory_limit_bytes():
            mapped = map_case(case.files, workspace, case=case.name)
            if mapped.shape[0] != len(info.channels):
                raise ShapeError(
                    f"{case.files[0]}: {mapped.shape[0]} channels found; the dataset has {len(info.channels)} "
                    f"({', '.join(info.channels)}). Bring every case to the same channels."
                )
            return mapped, mapped.meta
        workspace.in_memory += sum(4 * count for count, _ in sizes)
    sample = load_files(case.files, case=case.name, info=info)
    image = sample["image"] if sample["image"].ndim == 4 else sample["image"][:, None]
    return ArraySource(image), sample["meta"]


def _in_words(case: InputCase, workspace: Workspace, bands: int, budget: int) -> str:
    parts = [f"{workspace.on_disk / 1e9:.2g} GB of voxels in temporary files"] if workspace.on_disk else []
    parts += [f"logits in {bands} bands of columns"] if bands > 1 else []
    return f"{case.name}: larger than the memory budget of {budget / 1e9:.2g} GB: {', '.join(parts)}."


def _releasing(workspace: Workspace, progress: Progress | None) -> Progress:
    """`progress`, and files' pages handed back with every step: what is read again comes from the system's cache."""

    def told(done: int, total: int) -> None:
        workspace.release()
        if progress is not None:
            progress(done, total)

    return told


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


def write_prediction(path: Path, labels: NDArray[np.integer[Any]], meta: Meta) -> None:
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
    values = restore(probabilities, meta)
    if values.ndim == 3:  # the file is a single 2-D slice: NIfTI has its classes on the fourth axis all the same
        values = values[:, :, None, :]
    write_voxels(path, values, geometry, dtype=np.dtype(np.float32), description="class probabilities")


def write_overlay(path: Path, source: Source, labels: NDArray[np.integer[Any]]) -> None:
    """Write a PNG of an image [C, D, H, W] with `labels` [D, H, W] washed over it, for eyes and not for programs.

    Of a volume, the slice with most foreground is drawn, the front of the body up.
    """
    index = int(np.argmax([np.count_nonzero(one) for one in labels]))
    shown = np.concatenate([source.read(channel, index, index + 1) for channel in range(source.shape[0])])
    picture = tinted(displayed(shown), labels[index])
    with atomic_path(path) as unfinished:
        Image.fromarray(picture[::-1] if len(labels) > 1 else picture).save(unfinished, format="PNG")


def _single_slice(array: NDArray[Any], meta: Meta) -> NDArray[Any]:
    """`array` without its slice axis: [..., 1, H, W] to [..., H, W]. Labels that are [H, W] already stay."""
    if array.ndim == 2:
        return array
    if array.shape[-3] != 1:
        raise ShapeError(f"{meta['path']} is a picture, but its prediction has {array.shape[-3]} slices.")
    return array[..., 0, :, :]

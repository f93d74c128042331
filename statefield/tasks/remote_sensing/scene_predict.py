"""Classes of scenes that nobody has labelled: images or folders of them -> a table, written whole or not at all."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from statefield.datasets.readers.picture import SUFFIXES
from statefield.datasets.scenes import load_scene
from statefield.errors import ConfigError, DataError, ShapeError
from statefield.files import write_json, write_text
from statefield.tasks.remote_sensing.scene_images import Array, Progress, centre
from statefield.tasks.remote_sensing.scene_run import SceneRun

log = logging.getLogger(__name__)

OnBad = Literal["fail", "skip"]


@dataclass(frozen=True)
class SceneAnswer:
    """What a net says of one image: the likeliest classes with their probabilities, or why it could not be read."""

    file: Path
    best: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def images_of(inputs: Sequence[Path]) -> list[Path]:
    """Every image that is named, or lies in a folder named or below it; sorted within a folder, each once.

    Raises `DataError` for a name that is neither, a file of another kind, or a folder without an image.
    """
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(
                one
                for one in path.rglob("*")
                if one.is_file() and one.suffix.lower() in SUFFIXES and not one.name.startswith(".")
            )
            if not inside:
                raise DataError(f"{path}: no image in this folder; files ending in {', '.join(SUFFIXES)} are needed.")
            found += inside
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder.")
        elif path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path}: not an image by its name; files ending in {', '.join(SUFFIXES)} are needed.")
        else:
            found.append(path)
    return list(dict.fromkeys(found))


@torch.inference_mode()
def predict(
    run: SceneRun,
    files: Sequence[Path],
    *,
    top: int = 1,
    batch_size: int | None = None,
    on_bad: OnBad = "fail",
    progress: Progress | None = None,
) -> list[SceneAnswer]:
    """The `top` likeliest classes of each image, in the order of `files`.

    Args:
        batch_size: images of one forward pass; None: that of training.
        on_bad: of images that cannot be read: "fail" raises, "skip" gives them an answer that says why.

    Raises: DataError, ShapeError: an image that is damaged, or has other channels than the net. ConfigError: top.
    """
    info, data = run.info, run.recipe.data
    if not 1 <= top <= len(info.classes):
        raise ConfigError(f"--top {top}: a number from 1 to the {len(info.classes)} classes of the run is needed.")
    size = data.batch_size if batch_size is None else batch_size
    if size < 1:
        raise ConfigError(f"--batch-size {size}: 1 or more is needed.")
    device = next(run.task.net.parameters()).device
    answers: list[SceneAnswer] = []
    for first in range(0, len(files), size):
        part = files[first : first + size]
        images: dict[Path, Array] = {}
        errors: dict[Path, str] = {}
        for path in part:
            try:
                image, _ = load_scene(path, path.stem, len(info.channels))
            except (DataError, ShapeError) as error:
                if on_bad == "fail":
                    raise
                log.warning("left out: %s", error)
                errors[path] = str(error)
                continue
            images[path] = info.normalised(centre(image, edge=data.resized_edge, side=data.image_size))
        if images:
            stacked = torch.from_numpy(np.stack(list(images.values()))).to(device)
            shares = run.task.net(stacked).float().softmax(dim=1).cpu().numpy()
            ranked = np.argsort(-shares, axis=1, kind="stable")[:, :top]
            best = {
                path: tuple((info.classes[k], float(row[k])) for k in order)
                for path, row, order in zip(images, shares, ranked, strict=True)
            }
        answers += [
            SceneAnswer(path, best[path]) if path in images else SceneAnswer(path, (), errors[path]) for path in part
        ]
        if progress is not None:
            progress("predicting", len(answers), len(files))
    return answers


def write_answers(output: Path, answers: Sequence[SceneAnswer]) -> None:
    """Write the answers as CSV (file, class, probability, class_2, ..., error) or JSON, by the name's ending.

    Raises: ConfigError: another ending.
    """
    require_output(output)
    if output.suffix.lower() == ".json":
        rows = [
            {"file": str(one.file)}
            | (
                {"error": one.error}
                if one.error
                else {"classes": [{"class": k, "probability": p} for k, p in one.best]}
            )
            for one in answers
        ]
        write_json(output, rows)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    top = max((len(one.best) for one in answers), default=1) or 1
    numbers = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    writer.writerow(["file", *(f"{name}{number}" for number in numbers for name in ("class", "probability")), "error"])
    for one in answers:
        cells = [cell for name, share in one.best for cell in (name, f"{share:.6f}")]
        writer.writerow([one.file, *cells, *[""] * (2 * top - len(cells)), one.error or ""])
    write_text(output, text.getvalue())


def require_output(output: Path) -> None:
    """Raise `ConfigError` unless the name says CSV or JSON."""
    if output.suffix.lower() not in (".csv", ".json"):
        raise ConfigError(f"--output {output}: a name that ends in .csv or .json is needed.")
    if output.is_dir():
        raise ConfigError(f"--output {output}: that is a folder; the name of a file is needed.")

"""From an authors' checkpoint to a safetensors file that says what it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from statefield import __version__
from statefield.backbones import BACKBONES, create_model
from statefield.backbones._checkpoint_files import read_checkpoint
from statefield.backbones.checkpoints import (
    LoadReport,
    backbone_of,
    family_filter,
    load_checkpoint,
    outline_of,
    pretrained_cfg_of,
)
from statefield.errors import ConfigError, UnknownName
from statefield.files import atomic_path


def convert_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    model_name: str,
    *,
    container: str | None = None,
    overwrite: bool = False,
) -> LoadReport:
    """Read `source`, load it strictly into `model_name`, write the model's weights to `target`.

    The form of the model follows the file: with a head of as many classes as it has, or none; with norms on the
    feature maps where it has them; for as many image channels. The target's metadata name the model and that form, the
    source with its sha256, and our version.

    Args:
        target: ends in .safetensors; its folder is made where it is missing.
        container: see `load_checkpoint`.
        overwrite: replace a target that exists.

    Raises:
        ConfigError: the target is no safetensors name, or exists. CheckpointError: see `load_checkpoint`.
        UnknownName: no backbone of ours. In each case nothing is written.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise ConfigError(f"the output {target} must end in .safetensors.")
    if target.exists() and not overwrite:
        raise ConfigError(
            f"{target} exists: choose another output, or pass --overwrite (overwrite=True) to replace it."
        )
    if model_name not in BACKBONES:
        raise UnknownName.among("backbone", model_name, BACKBONES)
    outline = outline_of(model_name)
    entries = family_filter(outline)(read_checkpoint(source, container).entries, outline)
    form = _form(entries, pretrained_cfg_of(outline))
    model = create_model(model_name, **form)
    report = load_checkpoint(model, source, container=container)
    weights = {name: value.contiguous() for name, value in backbone_of(model).state_dict().items()}
    metadata = {
        "format": "pt",
        "model": model_name,
        "model_arguments": ", ".join(f"{name}={value}" for name, value in form.items()),
        "source": source.name,
        "source_sha256": _sha256(source),
        "source_container": report.container,
        "statefield_version": __version__,
    }
    with atomic_path(target) as partial:
        save_file(weights, partial, metadata)
    return report


def _form(entries: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `create_model` that give the model the parts which a file has."""
    form: dict[str, Any] = {}
    head = entries.get(f"{cfg['classifier']}.weight")
    stem = entries.get(f"{cfg['first_conv']}.weight")
    if head is not None:
        form["num_classes"] = head.shape[0]
    elif any(name.startswith("norm.") for name in entries):
        form["num_classes"] = 0
    else:
        form["features_only"] = True
    if any(name.startswith("feature_norms.") for name in entries):
        form["feature_norms"] = True
    if stem is not None and stem.ndim == 4:
        form["in_chans"] = stem.shape[1]
    return form


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""From an authors' checkpoint to a safetensors file that says what it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from statefield import __version__
from statefield.backbones import BACKBONES, create_model
from statefield.backbones._checkpoint_files import read_checkpoint
from statefield.backbones._isotropic import Isotropic, PatchEmbed
from statefield.backbones.checkpoints import (
    LoadReport,
    backbone_of,
    family_filter,
    load_checkpoint,
    pretrained_cfg_of,
)
from statefield.errors import ConfigError, StatefieldError, UnknownName
from statefield.files import atomic_path


def convert_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    model_name: str,
    *,
    container: str | None = None,
    overwrite: bool = False,
    **arguments: Any,
) -> LoadReport:
    """Read `source`, load it strictly into `model_name`, write the model's weights to `target`.

    The form of the model follows the file: with a head of as many classes as it has, or none; with norms on the
    feature maps where it has them; for as many image channels; with positions for as many patches. The target's
    metadata name the model and that form, the source with its sha256, and our version.

    Args:
        target: ends in .safetensors; its folder is made where it is missing.
        container: see `load_checkpoint`.
        overwrite: replace a target that exists.
        **arguments: of `create_model`, for a file of a model that differs from the published one (`depths`, ...).

    Raises:
        ConfigError: the target is no safetensors name, or exists; or the model does not take the arguments.
        CheckpointError: see `load_checkpoint`. UnknownName: no backbone of ours. In each case nothing is written.
    """
    source, target = Path(source), Path(target)
    require_target(target, overwrite=overwrite)
    if model_name not in BACKBONES:
        raise UnknownName.among("backbone", model_name, BACKBONES)
    outline = _outline(model_name, arguments)
    entries = family_filter(outline)(read_checkpoint(source, container).entries, outline)
    form = arguments | _form(entries, outline)
    model = create_model(model_name, **form)
    report = load_checkpoint(model, source, container=container)
    write_converted(backbone_of(model), target, model_name, form, source, report)
    return report


def require_target(target: Path, *, overwrite: bool) -> None:
    """`ConfigError` for a target that is no safetensors name, or exists and may not be replaced."""
    if target.suffix != ".safetensors":
        raise ConfigError(f"the output {target} must end in .safetensors.")
    if target.exists() and not overwrite:
        raise ConfigError(
            f"{target} exists: choose another output, or pass --overwrite (overwrite=True) to replace it."
        )


def write_converted(
    model: nn.Module,
    target: Path,
    model_name: str,
    arguments: Mapping[str, Any],
    source: Path,
    report: LoadReport,
    **notes: str,
) -> None:
    """The weights of `model` as safetensors, whole or not at all, with metadata that say what and whence they are."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    metadata = {
        "format": "pt",
        "model": model_name,
        "model_arguments": ", ".join(f"{name}={value}" for name, value in arguments.items()),
        "source": source.name,
        "source_sha256": _sha256(source),
        "source_container": report.container,
        "statefield_version": __version__,
        **notes,
    }
    with atomic_path(target) as partial:
        save_file(weights, partial, metadata)


def _outline(model_name: str, arguments: dict[str, Any]) -> nn.Module:
    """The model without memory for its weights; `ConfigError` for arguments that it does not take."""
    try:
        with torch.device("meta"):
            return create_model(model_name, **arguments)
    except StatefieldError:
        raise  # the net says by itself what it needs
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        if not arguments:
            raise
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{model_name} does not take these arguments ({said}): {arguments}.") from None


def _form(entries: Mapping[str, Tensor], outline: nn.Module) -> dict[str, Any]:
    """The arguments of `create_model` that give the model the parts which a file has."""
    form: dict[str, Any] = {}
    cfg = pretrained_cfg_of(outline)
    classifiers = cfg["classifier"] if isinstance(cfg["classifier"], tuple) else (cfg["classifier"],)
    head = next((entries[f"{one}.weight"] for one in classifiers if f"{one}.weight" in entries), None)
    stem = entries.get(f"{cfg['first_conv']}.weight")
    if head is not None:
        form["num_classes"] = head.shape[0]
    elif any(name.startswith(("norm.", "body.norm.")) for name in entries):
        form["num_classes"] = 0
    else:
        form["features_only"] = True
    if any(name.startswith("feature_norms.") for name in entries):
        form["feature_norms"] = True
    if stem is not None and stem.ndim == 4:
        form["in_chans"] = stem.shape[1]
    return form | _image_size(entries, outline)


def _image_size(entries: Mapping[str, Tensor], outline: nn.Module) -> dict[str, int]:
    """`img_size` where the file has positions for another square of patches than the model's own."""
    body = getattr(outline, "body", outline)
    positions = entries.get("pos_embed", entries.get("body.pos_embed"))
    if positions is None or not isinstance(body, Isotropic) or body.learned_grid is None:
        return {}
    count = positions.shape[1]
    if count == body.pos_embed.shape[1]:
        return {}
    for side in range(isqrt(count), 0, -1):  # class tokens may have positions too
        if body.position_count((side, side)) == count:
            if isinstance(body.patch_embed, PatchEmbed):
                return {"img_size": (side - 1) * body.patch_embed.stride + body.patch_embed.patch_size}
            return {"img_size": side * body.feature_info[0]["reduction"]}
    return {}  # no square: the strict comparison says so


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""MambaEVT from files: the authors' and ours. The form of the net follows from the shapes in them.

statefield convert MambaEVT_ep0050.pth.tar mamba_evt.safetensors --model mamba_evt
statefield sot track EventVOT/test --weights mamba_evt.safetensors --output results/mamba_evt
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from statefield.backbones._checkpoint_files import read_checkpoint
from statefield.backbones.checkpoints import LoadReport, load_entries
from statefield.backbones.conversion import require_target, write_converted
from statefield.errors import CheckpointError, ConfigError
from statefield.tasks.tracking.nets.mamba_evt import MambaEVT, rename_official_key

__all__ = ["MAMBA_EVT", "convert_mamba_evt", "form_of", "load_initial_weights", "load_mamba_evt"]

MAMBA_EVT = "mamba_evt"
_OWN_PARTS = ("head", "pos_embed_search", "pos_embed_static", "pos_embed_dynamic")  # what no image classifier has
_OF_CLASSIFIERS = ("head.", "pos_embed", "cls_token")
_log = logging.getLogger(__name__)


def convert_mamba_evt(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    name: str = MAMBA_EVT,
    *,
    container: str | None = None,
    overwrite: bool = False,
    **arguments: Any,
) -> LoadReport:
    """Read a checkpoint of MambaEVT, load it strictly, and write it as safetensors that `sot track --weights` takes.

    Args:
        name: "mamba_evt". target, container, overwrite: as of `backbones.conversion.convert_checkpoint`.
        **arguments: of `MambaEVT`; nothing of its form has to be said.

    Returns: the counted report. Raises: as `load_mamba_evt`; ConfigError for the target. Nothing is written then.
    """
    source, target = Path(source), Path(target)
    require_target(target, overwrite=overwrite)
    net, report = load_mamba_evt(source, container=container, **arguments)
    form = form_of(net.state_dict(), str(source)) | arguments
    write_converted(net, target, name, form, source, report)
    return report


def load_mamba_evt(
    path: str | os.PathLike[str], *, container: str | None = None, **arguments: Any
) -> tuple[MambaEVT, LoadReport]:
    """The net of a file in eval mode, every entry loaded, and the counted report.

    Args:
        path: what `convert_mamba_evt` or a training wrote, or a file of the authors' (.pth, .pth.tar).
        **arguments: of `MambaEVT`, beside what follows from the file.

    Raises:
        CheckpointError: damaged, unsafe, of another net, or not fitting entry by entry. ConfigError: an argument that
        the net does not take.
    """
    found = read_checkpoint(path, container, whole=True)
    form = form_of({rename_official_key(key): value for key, value in found.entries.items()}, str(path)) | arguments
    try:
        net = MambaEVT(**form)
    except TypeError as error:
        raise ConfigError(f"{MAMBA_EVT} does not take these arguments ({error}): {form}.") from None
    report = load_entries(net, found.entries, source=str(path))
    report = dataclasses.replace(report, container=found.container, ignored={**found.ignored, **report.ignored})
    _log.info("%s\n%s", path, "\n".join(report.lines()))
    return net.eval(), report


def form_of(entries: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The arguments of `MambaEVT` that a file's entries (under our names) are of.

    Raises: CheckpointError: it is of another net, or of one without scans (a control, which is no tracker to keep).
    """
    needed = {
        "patch_embed.proj.weight": 4,
        "pos_embed_search": 3,
        "pos_embed_static": 3,
        "head.score.0.0.weight": 4,
        "blocks.0.mixer.forwards.A_log": 2,
    }
    missing = [name for name, ndim in needed.items() if name not in entries or entries[name].ndim != ndim]
    if missing:
        raise CheckpointError(
            f"{source} has no {missing[0]} of a {MAMBA_EVT} ({len(entries)} entries found): it is of another net, or "
            "of its backbone alone, with which a training can begin (--model.weights)."
        )
    patches, states = entries["patch_embed.proj.weight"], entries["blocks.0.mixer.forwards.A_log"]
    dim, patch_size = patches.shape[0], patches.shape[-1]
    return {
        "in_channels": patches.shape[1],
        "template_size": isqrt(entries["pos_embed_static"].shape[1]) * patch_size,
        "search_size": isqrt(entries["pos_embed_search"].shape[1]) * patch_size,
        "patch_size": patch_size,
        "dim": dim,
        "num_layers": len({key.split(".")[1] for key in entries if key.startswith("blocks.")}),
        "d_state": states.shape[1],
        "expand": states.shape[0] / dim,
        "head_channels": entries["head.score.0.0.weight"].shape[0],
    }


def load_initial_weights(net: MambaEVT, path: str | os.PathLike[str]) -> LoadReport:
    """Begin a training with a file: of the whole net, or of a Vim that classifies images, without its head.

    Of a Vim, patches, blocks and norm are loaded, every one of them; positions and head keep their initial values, as
    in the authors' recipe.

    Returns: the counted report, also logged. Raises: CheckpointError: a file that does not fit; `net` is as it was.
    """
    found = read_checkpoint(path, whole=True)
    renamed = {rename_official_key(key): value for key, value in found.entries.items()}
    if "head.score.0.0.weight" in renamed:
        report = load_entries(net, found.entries, source=str(path))
    else:
        left = {key: value for key, value in renamed.items() if not key.startswith(_OF_CLASSIFIERS)}
        aside = tuple(key for key in renamed if key not in left)
        report = load_entries(net, left, source=str(path), fresh=_OWN_PARTS)
        report = dataclasses.replace(report, ignored={"of an image classifier": aside, **report.ignored})
    _log.info("%s\n%s", path, "\n".join(report.lines()))
    return report

"""RSMamba from the authors' files (mmpretrain's containers): the form of the net follows from the shapes in them.

statefield convert rsmamba_aid_b.pth rsmamba_aid.safetensors --model rsmamba
statefield scene train --config recipes/remote_sensing/aid.yaml --model.weights rsmamba_aid.safetensors ...
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from statefield.backbones._checkpoint_files import read_checkpoint
from statefield.backbones.checkpoints import LoadReport, load_checkpoint
from statefield.backbones.conversion import require_target, write_converted
from statefield.errors import CheckpointError, ConfigError
from statefield.tasks.remote_sensing.nets.rsmamba import PATHS, SIZES, STRIDE, RSMamba, rename_official_key

RSMAMBA = "rsmamba"


def convert_rsmamba(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    name: str = RSMAMBA,
    *,
    container: str | None = None,
    overwrite: bool = False,
    **arguments: Any,
) -> LoadReport:
    """Read a checkpoint of RSMamba, load it strictly, and write it as safetensors that `model.weights` takes.

    Args:
        name: "rsmamba". target, container, overwrite: as of `backbones.conversion.convert_checkpoint`.
        **arguments: of `RSMamba`, where they do not follow from the file: `paths` and `fusion` of a net without gates.

    Returns: the counted report. Raises: as `load_checkpoint`; ConfigError for the target, or for a file without gates
    where `paths` is not given. Nothing is written then.
    """
    source, target = Path(source), Path(target)
    require_target(target, overwrite=overwrite)
    found = read_checkpoint(source, container).entries
    form = form_of({rename_official_key(key): value for key, value in found.items()}, str(source)) | arguments
    if "paths" not in form:
        raise ConfigError(
            f"{source} has no gates, so nothing in it tells how many orders its layers read the tokens in: give --set "
            "\"paths=('forward',)\", or --set fusion=mean with \"paths=('forward', 'reverse')\" or "
            "\"paths=('forward', 'reverse', 'shuffle')\"."
        )
    try:
        net = RSMamba(**form)
    except TypeError as error:
        raise ConfigError(f"{name} does not take these arguments ({error}): {form}.") from None
    report = load_checkpoint(net, source, container=container)
    write_converted(net, target, name, form, source, report)
    return report


def form_of(entries: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The arguments of `RSMamba` that a file's entries (under our names) are of; without `paths` where it has no gates.

    Raises: CheckpointError: it is of another net.
    """
    patches, positions = entries.get("patch_embed.weight"), entries.get("pos_embed")
    if patches is None or positions is None or patches.ndim != 4 or positions.ndim != 3:
        raise CheckpointError(
            f"{source} has no patch_embed.weight and pos_embed of an RSMamba ({len(entries)} entries found): it is of "
            "another net."
        )
    channels = patches.shape[0]
    layers = len({key.split(".")[1] for key in entries if key.startswith("layers.")})
    size = next((known for known, form in SIZES.items() if form == (channels, layers)), (channels, layers))
    side = isqrt(positions.shape[1])
    form: dict[str, Any] = {
        "in_channels": patches.shape[1],
        "num_classes": entries["head.weight"].shape[0] if "head.weight" in entries else 0,
        "size": size,
        "image_size": side * STRIDE,
    }
    gate = entries.get("layers.0.gate.weight")
    if gate is not None:
        form["paths"] = PATHS[: gate.shape[0]]
    return form

"""Whole nets of two dates from files: the authors' of ChangeMamba, and ours, which say themselves what they are.

    statefield convert MambaBCD_Tiny.pth bcd.safetensors --model mamba_bcd
    net, report = load_change_net("bcd.safetensors")

The form of a net follows its file: channels of an image and numbers of classes by the shapes of weights, ChangeMamba's
own encoder (tiny, small, base) by the one whose entries the file has. Any other encoder has to be named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from statefield.backbones._checkpoint_files import read_checkpoint
from statefield.backbones.checkpoints import LoadReport, backbone_of, load_checkpoint, pretrained_cfg_of
from statefield.backbones.conversion import require_target, write_converted
from statefield.errors import CheckpointError, ConfigError
from statefield.tasks.remote_sensing.nets import CHANGE_NETS
from statefield.tasks.remote_sensing.nets.change_mamba import checkpoint_filter_fn
from statefield.tasks.remote_sensing.nets.siamese import OFFICIAL_ENCODERS

_SEMANTIC = {"mamba_scd": "num_semantic_classes", "mamba_bda": "num_building_classes"}
ChangeMamba = Literal["mamba_bcd", "mamba_bda", "mamba_scd"]
CHANGE_MAMBAS: tuple[ChangeMamba, ...] = get_args(ChangeMamba)
_ARGUMENTS = "statefield_arguments"  # in a file's metadata: JSON of the net's arguments


def convert_change_net(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    name: str,
    *,
    container: str | None = None,
    overwrite: bool = False,
    **arguments: Any,
) -> LoadReport:
    """Read a checkpoint of a whole net, load it strictly, and write it as safetensors that `load_change_net` takes.

    Args:
        name: one of `CHANGE_MAMBAS`. target, container, overwrite: as of `backbones.conversion.convert_checkpoint`.
        **arguments: of the net, where they do not follow from the file: `encoder`, `encoder_args`, `block_args`.

    Returns: the counted report. Raises: as `load_change_net`; ConfigError for the target. Nothing is written then.
    """
    source, target = Path(source), Path(target)
    require_target(target, overwrite=overwrite)
    form = _form(read_checkpoint(source, container).entries, name, arguments, str(source))
    net = _built(name, form)
    report = load_checkpoint(net, source, container=container)
    write_converted(net, target, name, form, source, report, **{_ARGUMENTS: json.dumps(form)})
    return report


def load_change_net(
    path: str | os.PathLike[str], name: str | None = None, **arguments: Any
) -> tuple[ChangeMamba, Any, LoadReport]:
    """A net of two dates in eval mode with the weights of a file, strictly: (its name, the net, the counted report).

    Args:
        path: what `convert_change_net` wrote, or a file of the authors' (.pth).
        name: one of `CHANGE_MAMBAS`; may be left out where the file says it.
        **arguments: as of `convert_change_net`; a file that says its own must not be told others.

    Raises:
        CheckpointError: the file is damaged or unsafe, or is not of that net.
        ConfigError: no name, and none in the file; arguments other than the file's; an encoder that has to be named.
        UnknownName: no such encoder.
    """
    source = str(path)
    entries = read_checkpoint(path).entries
    said = _metadata(Path(path))
    told = said.get("model")
    if name is None and told not in CHANGE_MAMBAS:
        raise ConfigError(
            f"{source} does not say which net it is of: name it with --model, one of {', '.join(CHANGE_MAMBAS)}."
        )
    if name is not None and told is not None and name != told:
        raise CheckpointError(f"{source} holds weights of {told}, and {name} was asked for. Leave --model out.")
    name = name or told
    assert name is not None
    try:
        stored: dict[str, Any] = dict(json.loads(said.get(_ARGUMENTS, "{}")))
    except (ValueError, RecursionError, TypeError) as error:
        raise CheckpointError(
            f"{source}: its arguments of the net cannot be read ({error}). Convert it again."
        ) from error
    if stored:
        others = {key: value for key, value in arguments.items() if stored.get(key) != value}
        if others:
            known = ", ".join(f"{key}={stored.get(key)!r}" for key in others)
            raise ConfigError(f"{source} was converted with {known}, and {others} was given. Leave that out.")
        form = stored
    else:
        form = _form(entries, name, arguments, source)
    net = _built(name, form)
    return cast(ChangeMamba, name), net.eval(), load_checkpoint(net, path)


def _form(entries: Mapping[str, Tensor], name: str, given: dict[str, Any], source: str) -> dict[str, Any]:
    """The arguments of the net that a file is of; what is `given` is taken as it is."""
    if name not in CHANGE_MAMBAS:
        raise ConfigError(f"{name}: files of {', '.join(CHANGE_MAMBAS)} can be read.")
    entries = {**entries, **checkpoint_filter_fn(dict(entries), nn.Module())}  # an encoder of timm's keeps its names
    form = dict(given)
    heads = {"num_classes": "classifier.weight"}
    if name in _SEMANTIC:
        heads[_SEMANTIC[name]] = "semantic_classifier.weight"
    for argument, entry in heads.items():
        if entry not in entries or entries[entry].ndim != 4:
            raise CheckpointError(
                f"{source} has no {entry} of a {name} ({len(entries)} entries found): it is of another net, or of the "
                "encoder alone. `statefield convert` takes an encoder's file with --model vmamba_...."
            )
        form.setdefault(argument, entries[entry].shape[0])
    width = entries["classifier.weight"].shape[1]
    if width != 128:
        form.setdefault("width", width)
    if "encoder" not in form:
        form["encoder"] = _official_encoder(entries, source)
    if "in_channels" not in form:
        with torch.device("meta"):
            encoder = _built("mamba_bcd", {"encoder": form["encoder"], **_of_encoder(form)}).encoder
        first = pretrained_cfg_of(backbone_of(encoder)).get("first_conv")
        within = "encoder.model" if backbone_of(encoder) is not encoder else "encoder"
        stem = entries.get(f"{within}.{first}.weight")
        if stem is not None and stem.ndim == 4:
            form["in_channels"] = stem.shape[1]
    return form


def _of_encoder(form: Mapping[str, Any]) -> dict[str, Any]:
    return {"encoder_args": form["encoder_args"]} if "encoder_args" in form else {}


def _official_encoder(entries: Mapping[str, Tensor], source: str) -> str:
    """Which of ChangeMamba's encoders has the names and shapes that the file has, but for the image's channels."""
    theirs = {
        key: value.shape for key, value in entries.items() if key.startswith("encoder.model.") and value.ndim != 4
    }
    for encoder in OFFICIAL_ENCODERS:
        with torch.device("meta"):
            outline = _built("mamba_bcd", {"encoder": encoder})
        ours = {f"encoder.{key}": value for key, value in outline.encoder.state_dict().items()}
        if theirs == {key: value.shape for key, value in ours.items() if value.ndim != 4}:
            return encoder
    raise ConfigError(
        f"{source}: its encoder is none of ChangeMamba's own ({', '.join(OFFICIAL_ENCODERS)}); name it, with "
        "--set encoder=NAME for `statefield convert` or --encoder NAME for `change predict`."
    )


def _built(name: str, form: Mapping[str, Any]) -> Any:
    try:
        return CHANGE_NETS[name](**form)
    except TypeError as error:
        raise ConfigError(f"{name} does not take these arguments ({error}): {dict(form)}.") from None


def _metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; nothing for any other file, or one that cannot be read (told later)."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            return opened.metadata() or {}
    except SafetensorError:
        return {}

"""Opening weight files that strangers made: what a file claims is checked before anything is built from it."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from statefield.errors import CheckpointError

# Dicts of weights in a file, in the order of preference: the weights as trained, then averages over the training. The
# next two are timm's and OpenMMLab's averages. Trackers of the pytracking family say "net".
CONTAINERS = ("model", "state_dict", "model_ema", "state_dict_ema", "ema_state_dict", "net")
MAX_HEADER_BYTES = 16 * 2**20  # a thousand tensors take about 100 kB
_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
# How toolboxes store an encoder beside its heads: detectron2's wrapper of plain backbones, and OpenMMLab.
_TOOLBOX_PREFIXES = ("backbone.net.", "backbone.")
_CLASSIFIER_PREFIX = "head."  # the head of an image classifier there; dense ones have "decode_head." and the like
# Numbers that tools put among the weights: torch's and OpenMMLab's averages count their steps, thop its operations.
_BOOKKEEPING = re.compile(r"(?:^|\.)(?:steps|n_averaged|total_ops|total_params)$")

OTHER_PARTS = "other parts that the toolbox stored beside the backbone"
BOOKKEEPING = "no weights: counts that averaging or profiling left"


class _InertMapping:
    """Stands in for a dict-like settings class: an OrderedDict, which the unpickler fills without running code."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _InertObject:
    """Stands in for any other object that is not weights: takes whatever it is built from, and keeps none of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


# Training scripts store their settings and scores beside the weights. The unpickler may meet these names and no others;
# each becomes an inert stand-in, so no code of theirs runs and none of them needs to be installed.
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *(
        (_InertMapping, name)
        for name in ("yacs.config.CfgNode", "mmengine.config.config.ConfigDict", "easydict.EasyDict")
    ),
    *(
        (_InertObject, name)
        for name in (
            "argparse.Namespace",
            "mmengine.logging.history_buffer.HistoryBuffer",
            "pathlib.PosixPath",
            "pathlib._local.PosixPath",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy.ndarray",
            "numpy.dtype",
            "lib.train.admin.settings.Settings",  # trackers of the pytracking family: settings and means of losses
            "lib.train.admin.local.EnvironmentSettings",
            "lib.train.admin.stats.AverageMeter",
            "lib.train.admin.stats.StatValue",
        )
    ),
]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        entries: the backbone's tensors by name, without the prefixes of wrappers.
        container: the dict of the file that they were in, "" for none.
        ignored: what of the container is not among `entries`: the reason -> names as the file has them.
        metadata: a safetensors file's own notes.
    """

    entries: dict[str, Tensor]
    container: str = ""
    ignored: dict[str, tuple[str, ...]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike[str], container: str | None = None, *, whole: bool = False) -> Checkpoint:
    """The tensors of a .safetensors or PyTorch file, on the CPU, without running code from it.

    Args:
        container: the dict of a PyTorch file to read; by default the first of `CONTAINERS` that is there, or the
            whole file where it is a plain state dict.
        whole: the file is of a whole net: what stands beside a backbone belongs to it, and names stay as they are.

    Raises:
        CheckpointError: no such file; truncated; more than weights in it; no tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file {path}: check the path.")
    if path.suffix == ".safetensors":
        entries, metadata = _read_safetensors(path)
        return Checkpoint(entries, metadata=metadata)
    tensors, found = _unwrap(_read_pickle(path), container, path)
    counts = tuple(name for name, value in tensors.items() if _BOOKKEEPING.search(name) and value.numel() == 1)
    plain = _strip_wrappers({k: v for k, v in tensors.items() if k not in counts})
    entries, others = (plain, ()) if whole else _backbone_alone(plain)
    ignored = {reason: names for reason, names in ((OTHER_PARTS, others), (BOOKKEEPING, counts)) if names}
    return Checkpoint(entries, found, ignored)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{path} is not a whole safetensors file: its header claims {header_bytes} bytes, the file has {size} "
                f"(headers above {MAX_HEADER_BYTES} bytes are refused); fetch or convert it again."
            )
        _check_header(file.read(header_bytes), path)
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}; fetch or convert it again.") from None


def _check_header(header: bytes, path: Path) -> None:
    try:
        described = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has an unreadable header ({error}); fetch or convert it again.") from None
    if not isinstance(described, dict):
        raise CheckpointError(f"{path} has a header that describes no tensors; fetch or convert it again.")


def _packed_records(path: Path) -> list[str]:
    """The names of compressed records; none of a file that is no zip archive."""
    if not zipfile.is_zipfile(path):  # which raises BadZipFile, too, of some that are damaged
        return []
    with zipfile.ZipFile(path) as archive:
        return [item.filename for item in archive.infolist() if item.compress_type != zipfile.ZIP_STORED]


def _read_pickle(path: Path) -> Any:
    try:
        packed = _packed_records(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:  # also names that are no UTF-8
        raise CheckpointError(f"{path} is damaged: its list of records cannot be read ({error}).") from error
    if packed:  # torch.save stores plainly; compressed records can unpack to any size
        raise CheckpointError(f"{path} holds compressed records ({packed[0]}), which torch.save never writes: refused.")
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            # of pickles that torch did not write; whether they are weights is told by what is in them
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights, and opening it could run code, so it was not opened: "
            f"{_refused_part(error)}. Ask its publisher for a file of tensors only (safetensors)."
        ) from None
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        reason = str(error).split(". ")[0].splitlines() or ["it ends too early"]
        raise CheckpointError(f"{path} is not a whole PyTorch file: {reason[0]}. Fetch it again.") from None


def _refused_part(error: Exception) -> str:
    """The name that torch's unpickler refused, out of its long advice (which includes how to switch the check off)."""
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it asks for {name[1]}" if name else "it is no pickle of plain tensors"


def _unwrap(stored: Any, container: str | None, path: Path) -> tuple[dict[str, Tensor], str]:
    found = ""
    if isinstance(stored, Mapping):
        held = [name for name in CONTAINERS if isinstance(stored.get(name), Mapping) and stored[name]]
        if container is not None and container not in held:
            raise CheckpointError(
                f"{path} has no container {container!r}; it has {held or 'none: it is one state dict'}."
            )
        if held:
            found = container or held[0]
            stored = stored[found]
    tensors = {}
    if isinstance(stored, Mapping):
        tensors = {str(key): value for key, value in stored.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no state dict: a dict of tensors, or one under {', '.join(CONTAINERS)}, is needed."
        )
    return tensors, found


def _strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = list(tensors)
    for prefix in (*_WRAPPERS, *_WRAPPERS):  # either may stand outside the other
        if all(name.startswith(prefix) for name in names):
            names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, tensors.values(), strict=True))


def _backbone_alone(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The encoder's entries without a toolbox's prefix, and an image classifier's; the names of all others."""
    prefix = next((one for one in _TOOLBOX_PREFIXES if any(name.startswith(one) for name in tensors)), None)
    if prefix is None:
        return tensors, ()
    head = [name for name in tensors if name.startswith(_CLASSIFIER_PREFIX)]
    ours = (prefix,) if any(tensors[name].ndim > 2 for name in head) else (prefix, _CLASSIFIER_PREFIX)  # not dense
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(ours)}
    return inside, tuple(name for name in tensors if not name.startswith(ours))

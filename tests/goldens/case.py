"""One golden file, read and checked: what a paper's own code computed from weights and inputs that names define."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import recipe
import torch
from torch import Tensor

SHARE_OF_STD = 1e-4  # agreement: the largest difference is at most this share of the golden's own std

# Systems whose files define different classes of one name: there the file belongs to the class.
_TOLD_APART_BY_FILE = ("hrvmamba", "shufflemamba")

# Arguments that a golden states beside the others: a fixed draw in place of a random one, what a sequence is made by.
_ARGUMENTS_APART = ("permutation", "w", "frame_no")

_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "neg_exp": lambda x: -np.exp(x),
}


class BrokenGolden(ValueError):
    """A file that is no golden: damaged, or without something that every golden has."""


@dataclass(frozen=True)
class Expected:
    """One output or gradient: values stored at every `stride`-th place of a tensor of `shape`."""

    label: str
    description: str
    values: np.ndarray
    shape: tuple[int, ...]
    stride: int
    std: float
    suggested_atol: float
    noise: float = 0.0  # how far the golden's own float32 values were measured to lie from float64

    @property
    def tolerance(self) -> float:
        """A share of std; and where the golden's own noise is more than a tenth of that, the noise on top of it.

        Ours may be the share from the exact values, and the golden its noise from them on the other side.
        """
        bound = SHARE_OF_STD * self.std
        return max(bound + (self.noise if self.noise > bound / 10 else 0.0), self.suggested_atol)

    @property
    def ill_conditioned(self) -> bool:
        """Whether the golden itself says that float32 is not enough to tell."""
        bound = SHARE_OF_STD * self.std
        return self.noise > bound / 10 or self.suggested_atol > bound

    def error(self, ours: Tensor) -> float:
        """The largest absolute difference, NaN where either side has one; `BrokenGolden` where shapes differ."""
        if tuple(ours.shape) != self.shape:
            raise BrokenGolden(f"{self.label} has shape {self.shape} in the golden, {tuple(ours.shape)} in ours")
        values = ours.detach().double().reshape(-1)[:: self.stride].numpy()
        return float(np.abs(values - self.values.reshape(-1)).max(initial=0.0))


@dataclass(frozen=True)
class GoldenCase:
    """A golden file.

    Attributes:
        system, cls, kwargs: whose code, which class or function of it, and its arguments.
        shapes: official state-dict key -> shape, every key of the official model.
        weights: the keys that the recipe fills. Those left out (`constants`, index tables) keep our own values.
        inputs: argument -> tensor (ready to be differentiated) or plain value.
        outputs, gradients: what is compared; gradients by official parameter key or input name.
        cotangent: what multiplies output 0 before the sum that is differentiated, None without gradients.
        dtype: what the golden was computed in; weights and inputs are float32 numbers in either.
    """

    path: Path
    system: str
    cls: str
    kwargs: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    weights: dict[str, Tensor]
    inputs: dict[str, Any]
    outputs: tuple[Expected, ...]
    gradients: dict[str, Expected]
    cotangent: Tensor | None
    dtype: torch.dtype


def read_case(path: Path) -> GoldenCase:
    """Read a golden file; `BrokenGolden` says what is wrong with one that cannot be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:  # numpy leaks a path it cannot read
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(str(arrays.pop("meta")))
        # What the official code draws anew in every call, and the golden's maker gave the recipe's values.
        meta["keys"] += meta.get("injected_keys") or []
        return _case(path, meta, arrays)
    except BrokenGolden:
        raise
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise BrokenGolden(f"cannot be read as a golden: {type(error).__name__}: {error}") from error


def official_class(meta: dict[str, Any]) -> str:
    """The class or function that a golden names, without its module: `models/net.py:Net` and `models.Net` are Net.

    With the last part of its module, `net.Net`, for systems that have different classes of one name.
    """
    *modules, name = re.split(r"[:./]", meta["cls"].split("(")[0])
    files = [module for module in modules if module != "py"]
    return f"{files[-1]}.{name.strip()}" if meta["system"] in _TOLD_APART_BY_FILE and files else name.strip()


def _case(path: Path, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> GoldenCase:
    if not meta["outputs"]:
        raise BrokenGolden("it declares no outputs, so there is nothing to compare")
    outputs = tuple(
        _expected(f"out.{index}", declared["name"], arrays[f"out.{index}"], declared)
        for index, declared in enumerate(meta["outputs"])
    )
    statistics = meta.get("grad_stats") or {}
    noise = (meta.get("checks") or {}).get("grad_fp32_vs_fp64_max_abs") or {}
    gradients = {
        name: _expected(f"grad.{name}", "", values, statistics.get(name, {}), float(noise.get(name) or 0.0))
        for name, values in ((n.removeprefix("grad."), a) for n, a in arrays.items() if n.startswith("grad."))
    }
    cotangent = None
    if gradients:
        told = meta.get("cotangent") or {"key": "cotangent", "shape": outputs[0].shape}
        cotangent = torch.from_numpy(recipe.tensor(told["key"], tuple(told["shape"])))
    dtype = torch.float64 if (meta.get("env") or {}).get("dtype") == "float64" else torch.float32
    return GoldenCase(
        path=path,
        system=meta["system"],
        cls=official_class(meta),
        kwargs=(meta.get("kwargs") or {}) | {name: meta[name] for name in _ARGUMENTS_APART if name in meta},
        shapes={key: tuple(shape) for key, shape, _ in meta["keys"]},
        weights=_weights(meta),
        inputs={name: _input(told) for name, told in meta["inputs"].items()},
        outputs=outputs,
        gradients=gradients,
        cotangent=cotangent,
        dtype=dtype,
    )


def _expected(label: str, description: str, values: np.ndarray, told: dict[str, Any], noise: float = 0.0) -> Expected:
    stored = told.get("stored", "full")
    shape = tuple(told.get("shape", values.shape))
    stride = 1 if stored == "full" else int(stored["flat_stride"])
    count = -(-int(np.prod(shape, dtype=np.int64)) // stride)
    if values.size != count:
        raise BrokenGolden(f"{label} holds {values.size} values, its shape {shape} and stride {stride} need {count}")
    std = told.get("std")
    if np.prod(shape) == 1:
        std = np.abs(values).item()  # one value has no spread: agreement is a share of itself
    return Expected(
        label=label,
        description=description,
        values=values.astype(np.float64),
        shape=shape,
        stride=stride,
        std=float(values.std() if std is None else std),
        suggested_atol=float(told.get("suggested_atol") or 0.0),
        noise=noise,
    )


def _weights(meta: dict[str, Any]) -> dict[str, Tensor]:
    """The recipe's fill of the official keys; a count of batches, which nothing reads in eval mode, is 0."""
    filled = {key: torch.from_numpy(value) for key, value in recipe.state_dict(meta["keys"]).items()}
    constants = tuple(meta.get("constants") or ())
    filled = {key: value for key, value in filled.items() if not any(part in key for part in constants)}
    for alias, original in (meta.get("aliases") or {}).items():
        filled[alias] = filled[original]
    for key, shape, _ in meta["keys"]:
        if key.endswith("num_batches_tracked"):
            filled[key] = torch.zeros(shape, dtype=torch.int64)
    return filled


def _input(told: dict[str, Any]) -> Any:
    if "value" in told:
        return told["value"]
    transform = told.get("transform", "identity")
    if transform not in _TRANSFORMS:
        raise BrokenGolden(f"the input transform {transform!r} is unknown; known: {', '.join(_TRANSFORMS)}")
    plain = recipe.tensor(told["key"], tuple(told["shape"])).astype(np.float64)
    values = _TRANSFORMS[transform](told.get("scale", 1.0) * plain + told.get("offset", 0.0))
    return torch.from_numpy(values.astype(np.float32)).requires_grad_()

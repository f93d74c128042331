"""Writing an exported program: `.pt2` for torch itself, `.onnx` for everything else."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from statefield.errors import ConfigError, ExportError, StatefieldError
from statefield.tasks.common.export.onnx_model import onnx_model
from statefield.tasks.common.export.quiet import quietly
from statefield.tasks.common.export.subject import Subject

__all__ = ["LARGEST_ONNX_BYTES", "SUFFIXES", "require_packages", "write"]

SUFFIXES = (".onnx", ".pt2")
LARGEST_ONNX_BYTES = 2**31 - 2**20  # of one protobuf message; the graph itself needs some of it
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages(path: Path) -> None:
    """Raise `ConfigError` unless `path` ends in `.onnx` or `.pt2` and what writes and checks that is installed."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"{path} ends in {path.suffix or 'nothing'!r}: name a file that ends in .onnx, for ONNX Runtime and "
            "others, or in .pt2, for torch itself."
        )
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        raise ConfigError(
            f"{path} needs {', '.join(missing)}, which is not installed here: pip install 'statefield[export]'."
        )


def write(program: ExportedProgram, subject: Subject, path: Path, about: Mapping[str, str]) -> int:
    """Write the program to `path`; returns the number of nodes of its graph.

    Raises:
        ConfigError: a name that ends otherwise, or packages that are missing. ExportError: an operation that ONNX has
        not, or weights that one ONNX file cannot hold.
    """
    require_packages(path)
    if path.suffix == ".pt2":
        with quietly():
            torch.export.save(program, str(path), extra_files=dict(about))
        return sum(node.op == "call_function" for node in program.graph.nodes)
    return _write_onnx(program, subject, path, about)


def _write_onnx(program: ExportedProgram, subject: Subject, path: Path, about: Mapping[str, str]) -> int:
    import onnx

    weights = sum(tensor.nbytes for tensor in (*program.state_dict.values(), *program.constants.values()))
    if weights > LARGEST_ONNX_BYTES:
        raise ExportError(
            f"{subject.name} has {weights / 2**30:.1f} GiB of weights, and one ONNX file holds less than 2 GiB: write "
            "a .pt2 file, or export a smaller model."
        )
    try:
        with quietly():
            model = onnx_model(program, subject)
    except StatefieldError:
        raise
    except Exception as error:
        raise ExportError(f"ONNX cannot hold {subject.name}: {_cause(error)}") from error
    for name, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    model.producer_name = "statefield"
    model.producer_version = about.get("statefield", "")
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return len(model.graph.node)


def _cause(error: BaseException) -> str:
    """The innermost of what was raised, in a line: there the operation is named."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:500]}"

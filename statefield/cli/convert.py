"""`statefield convert IN.pth OUT.safetensors --model NAME`: an official checkpoint, checked, under our names."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from statefield.errors import UnknownName

if TYPE_CHECKING:
    from statefield.backbones.checkpoints import LoadReport


def convert(argv: list[str]) -> int:
    """Convert one file and print the counted report; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="statefield convert",
        description="Load an official checkpoint strictly into one of our backbones, or into a whole net of "
        "ChangeMamba, RSMamba or MambaEVT, and write it as safetensors. No code from the file is run, and a file that "
        "does not fit entry by entry is refused.",
    )
    parser.add_argument("source", metavar="IN", help="a checkpoint of the authors' (.pth, .pt, .ckpt) or of ours")
    parser.add_argument("target", metavar="OUT.safetensors", help="the file to write")
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="what it belongs to: a backbone (statefield models), or mamba_bcd, mamba_scd, mamba_bda, rsmamba or "
        "mamba_evt",
    )
    parser.add_argument(
        "--container", metavar="KEY", help="the dict of the file to read, such as model_ema (default: model, if any)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_argument,
        metavar="NAME=VALUE",
        help="an argument of the model, where the file is of another than the published one: --set depths=(2,2,9,2)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    options = parser.parse_args(argv)

    report = _conversion_of(options.model)(
        options.source,
        options.target,
        options.model,
        container=options.container,
        overwrite=options.overwrite,
        **dict(options.set),
    )
    inside = f", container {report.container!r}" if report.container else ""
    print(f"{options.source}{inside} -> {options.model}")
    print("\n".join(report.lines()))
    print(f"wrote {options.target}")
    return 0


def _conversion_of(name: str) -> Callable[..., LoadReport]:
    # here: they import torch
    from statefield.backbones import BACKBONES
    from statefield.backbones.conversion import convert_checkpoint
    from statefield.tasks.remote_sensing.nets.checkpoints import CHANGE_MAMBAS, convert_change_net
    from statefield.tasks.remote_sensing.nets.scene_checkpoints import RSMAMBA, convert_rsmamba
    from statefield.tasks.tracking.nets.mamba_evt_checkpoints import MAMBA_EVT, convert_mamba_evt

    if name in CHANGE_MAMBAS:
        return convert_change_net
    if name == RSMAMBA:
        return convert_rsmamba
    if name == MAMBA_EVT:
        return convert_mamba_evt
    if name not in BACKBONES:
        raise UnknownName.among("model", name, [*BACKBONES, *CHANGE_MAMBAS, RSMAMBA, MAMBA_EVT])
    return convert_checkpoint


def _argument(text: str) -> tuple[str, Any]:
    """`("depths", (2, 2, 9, 2))` from "depths=(2, 2, 9, 2)"; a value that is no Python literal is a string."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()) or name in ("source", "target", "model_name", "container", "overwrite"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE with the name of an argument of the model")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value

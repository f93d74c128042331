"""`statefield export`: a trained run, or a backbone, as a file that runs without statefield."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from statefield.errors import ConfigError

if TYPE_CHECKING:
    from statefield.tasks.common.export import Exported, Subject

_EPILOG = """
examples:
  statefield export runs/demo -o demo.onnx                       a medical segmentation, for ONNX Runtime and others
  statefield export runs/oscd -o oscd.onnx --size 256 256        change detection, in windows of that size
  statefield export runs/mtp -o mtp.pt2                          the motion of tracks, for torch without statefield
  statefield export runs/mamba_evt -o templates.onnx --part templates
  statefield export vmamba_tiny_s1l8 -o vmamba.onnx --checkpoint vmamba_tiny.safetensors --features

The file is compared with the net before it appears: an output that differs by more than 1e-4 is an error.
"""


def export(argv: list[str]) -> int:
    """Write a file, compare it with the net, print what it is and how fast both are."""
    parser = argparse.ArgumentParser(
        prog="statefield export",
        description="Write a trained model, or a backbone, as ONNX (.onnx) or as an exported program of torch (.pt2). "
        "Neither needs statefield to run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a run folder, or the name of a backbone (`statefield models`)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the file to write, .onnx or .pt2")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="rows and columns, slices before them (default: the model's own)",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="exactly so many inputs at once (default: any number)")
    parser.add_argument("--any-size", action="store_true", help="any rows and columns, of models without a scan")
    parser.add_argument(
        "--part",
        choices=("search", "templates"),
        default="search",
        help="of a tracker of one object: what finds the target, or what makes the dynamic template "
        "(default: %(default)s)",
    )
    parser.add_argument("--features", action="store_true", help="of a backbone: its maps in place of its classifier")
    parser.add_argument("--checkpoint", type=Path, help="of a backbone: its weights (default: random ones)")
    parser.add_argument("--no-timing", action="store_true", help="do not take the time of the net and of the file")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    options = parser.parse_args(argv)
    _require_sound(options)

    from statefield.tasks.common.export.files import require_packages

    require_packages(options.output)
    from statefield.cli.run_output import console_of_errors, set_threads

    set_threads(options.threads)

    from statefield.tasks.common.export import export as write

    subject = _with_batch(_subject(options), options.batch)
    with console_of_errors().status(subject.name) as status:
        found = write(
            subject,
            options.output,
            any_batch=options.batch is None,
            any_size=options.any_size,
            timed=not options.no_timing,
            announce=status.update,
        )
    print(_told(found))
    if subject.about.get("weights") == "random":
        print(f"\nIts weights are random: give those of {options.model} with --checkpoint.")
    return 0


def _require_sound(options: argparse.Namespace) -> None:
    if options.size is not None and (len(options.size) not in (2, 3) or min(options.size) < 1):
        raise ConfigError(
            f"--size {' '.join(map(str, options.size))}: rows and columns, or slices, rows and columns, are needed, "
            "each 1 or more."
        )
    if options.batch is not None and options.batch < 1:
        raise ConfigError(f"--batch {options.batch}: 1 or more is needed.")
    is_run = Path(options.model).exists()
    if is_run and (options.features or options.checkpoint):
        raise ConfigError(
            f"{options.model} is a trained run, which has its own weights and outputs: --features and --checkpoint are "
            "for a backbone by its name."
        )


def _subject(options: argparse.Namespace) -> Subject:
    place = Path(options.model)
    if not place.exists() and ("/" in options.model or place.suffix):
        raise ConfigError(f"{place} does not exist: a run folder, or a name that `statefield models` lists, is needed.")
    if place.exists():
        return _OF_RUNS[_kind(place)](place, options)

    from statefield.tasks.common.export import backbone_subject

    if options.size is not None and len(options.size) != 2:
        raise ConfigError(f"--size of a backbone has two numbers, rows and columns; {len(options.size)} were given.")
    return backbone_subject(
        options.model,
        size=None if options.size is None else tuple(options.size),
        features=options.features,
        checkpoint=options.checkpoint,
    )


def _kind(folder: Path) -> str:
    """The field that a run folder is of: that whose settings of the model its config.yaml has.

    Raises:
        ConfigError: not a run folder, or one of a command whose nets are not exported.
    """
    from statefield.tasks.common.recipes import read_settings
    from statefield.tasks.common.run_folder import RunFolder
    from statefield.tasks.medical.recipe import SegmentationRecipe
    from statefield.tasks.remote_sensing.change_recipe import ChangeRecipe
    from statefield.tasks.remote_sensing.scene_recipe import SceneRecipe
    from statefield.tasks.tracking.motion.recipe import MotionRecipe
    from statefield.tasks.tracking.single_object.recipe import SotRecipe

    place = RunFolder(folder)
    place.require()
    stored = read_settings(place.config)
    recipes: dict[str, Any] = {
        "medical": SegmentationRecipe,
        "change": ChangeRecipe,
        "scene": SceneRecipe,
        "mot": MotionRecipe,
        "sot": SotRecipe,
    }
    for kind, recipe in recipes.items():
        if set(stored) <= _settings(recipe) and _is_model_of(stored.get("model"), recipe):
            return kind
    makers = ", ".join(f"`statefield {kind} train`" for kind in recipes)
    raise ConfigError(
        f"{place.config} is of no run that can be exported: {makers} make such. "
        " Detection in videos keeps a memory from frame to frame, and hyperspectral runs hold several "
        "classifiers: these stay with statefield."
    )


def _is_model_of(stored: Any, recipe: Any) -> bool:
    """Whether these are settings of that recipe's model; a run of an earlier version may have fewer."""
    return isinstance(stored, dict) and bool(stored) and set(stored) <= _settings(get_type_hints(recipe)["model"])


def _settings(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _medical(folder: Path, options: argparse.Namespace) -> Subject:
    from statefield.tasks.medical.export import subject

    return subject(folder, options.size)


def _change(folder: Path, options: argparse.Namespace) -> Subject:
    from statefield.tasks.remote_sensing.export import change_subject

    return change_subject(folder, options.size)


def _scene(folder: Path, options: argparse.Namespace) -> Subject:
    from statefield.tasks.remote_sensing.export import scene_subject

    return scene_subject(folder, options.size)


def _mot(folder: Path, options: argparse.Namespace) -> Subject:
    from statefield.tasks.tracking.export import motion_subject

    return motion_subject(folder, options.size)


def _sot(folder: Path, options: argparse.Namespace) -> Subject:
    from statefield.tasks.tracking.export import tracker_subject

    return tracker_subject(folder, options.size, options.part)


_OF_RUNS: dict[str, Callable[[Path, argparse.Namespace], Subject]] = {
    "medical": _medical,
    "change": _change,
    "scene": _scene,
    "mot": _mot,
    "sot": _sot,
}


def _with_batch(subject: Subject, batch: int | None) -> Subject:
    """The subject with so many inputs at once in its example."""
    if batch is None:
        return subject
    inputs = {name: example[[row % len(example) for row in range(batch)]] for name, example in subject.inputs.items()}
    return dataclasses.replace(subject, inputs=inputs)


def _told(found: Exported) -> str:
    agreement = found.agreement
    batches = ", ".join(map(str, agreement.batches))
    rows = [
        ("model", found.name),
        ("file", f"{found.path}, {found.num_bytes / 2**20:.1f} MiB, {found.nodes:,} operations"),
        ("difference", f"{agreement.difference:.1e} at most, with {batches} inputs at once (1e-4 is allowed)"),
    ]
    if agreement.torch_ms is not None and agreement.runtime_ms is not None:
        runtime = "onnxruntime" if found.path.suffix == ".onnx" else "torch, the file"
        rows.append(("statefield", f"{agreement.torch_ms:.1f} ms a call ({agreement.threads} threads)"))
        rows.append((runtime, f"{agreement.runtime_ms:.1f} ms a call"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

"""`statefield medical predict`: images in, label maps out, with the model of a run."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from statefield.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

    from statefield.tasks.common.config import InferenceConfig
    from statefield.tasks.medical.inputs import InputCase
    from statefield.tasks.medical.predict import Outcome

_EPILOG = """
Volumes (.nii, .nii.gz) become label volumes that lie exactly on the input; pictures (.png, .jpg, .tif, ...) become
grey PNGs whose values are the label indices. Files of one channel each are named as nnU-Net names them:
case_0000.nii.gz, case_0001.nii.gz.

examples:
  statefield medical predict --run runs/demo scan.nii.gz --output scan_labels.nii.gz
  statefield medical predict --run runs/demo imagesTs/ --output predictions/ --tta
"""


def predict(argv: list[str]) -> int:
    """Run the command; 0 when every case is predicted (or was), 2 when any failed."""
    options = _parser().parse_args(argv)

    import torch

    from statefield.tasks.medical.inputs import find_cases, place_outputs
    from statefield.tasks.medical.predict import predict_cases
    from statefield.tasks.medical.run import load_run

    device = _device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    run = load_run(options.run)
    cases = find_cases(options.inputs, len(run.info.channels))
    outputs = place_outputs(cases, options.output, probabilities=options.probabilities, overlay=options.overlay)
    with _bar() as bar:
        task = bar.add_task("", total=None)

        def show(case: InputCase, done: int, total: int) -> None:
            bar.update(task, description=case.name, completed=done, total=total)

        outcomes = list(
            predict_cases(
                run.net.to(device),
                cases,
                outputs,
                info=run.info,
                normalisation=run.normalisation,
                slice_context=run.slice_context,
                roi=run.roi,
                inference=_inference(run.inference, options),
                overwrite=options.overwrite,
                progress=show,
            )
        )
    return _summarise(outcomes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield medical predict",
        description="Segment images or volumes with a trained model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", metavar="INPUT", type=Path, nargs="+", help="an image or volume, or a folder of them")
    add("--run", type=Path, required=True, help="the run folder of `statefield medical train`")
    add("--output", type=Path, required=True, help="a folder, or a file name when there is one case")
    add("--tta", action="store_true", help="average over mirrored copies: a little better, 4 x slower")
    add("--overlap", type=float, help="share of a window that its neighbour covers too, 0 to below 1")
    add("--batch-size", type=int, help="windows per forward pass: changes speed and memory, not the result")
    add("--probabilities", action="store_true", help="write class probabilities too")
    add("--overlay", action="store_true", help="write a picture of image and labels too")
    add("--overwrite", action="store_true", help="replace outputs that exist; without it they are kept")
    add("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")
    add("--threads", type=int, help="CPU threads (default: all cores)")
    return parser


def _inference(trained: InferenceConfig, options: argparse.Namespace) -> InferenceConfig:
    """The run's own settings, with what the command line says in their place."""
    if options.overlap is not None and not 0 <= options.overlap < 1:
        raise ConfigError(f"--overlap {options.overlap}: a share from 0 to below 1 is needed.")
    if options.batch_size is not None and options.batch_size < 1:
        raise ConfigError(f"--batch-size {options.batch_size}: at least 1 is needed.")
    given = {"overlap": options.overlap, "batch_size": options.batch_size, "mirror": options.tta or None}
    return dataclasses.replace(trained, **{name: value for name, value in given.items() if value is not None})


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is no device: auto, cpu, cuda or cuda:N is needed.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: {torch.cuda.device_count()} GPUs are usable here. `statefield doctor` says why; "
            "--device cpu works everywhere."
        )
    return device


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("slices"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)


def _summarise(outcomes: Sequence[Outcome]) -> int:
    by_status = {status: [o for o in outcomes if o.status == status] for status in ("written", "kept", "failed")}
    for outcome in by_status["written"]:
        print(outcome.files.labels)
    if by_status["kept"]:
        kept = by_status["kept"]
        print(f"{len(kept)} kept as they were, such as {kept[0].files.labels} (--overwrite replaces them)")
    for outcome in by_status["failed"]:
        text = f"statefield: {type(outcome.error).__name__}: {outcome.error}"
        print(textwrap.fill(text, width=110, break_long_words=False, break_on_hyphens=False), file=sys.stderr)
    if by_status["failed"] and len(outcomes) > 1:
        names = ", ".join(outcome.case.name for outcome in by_status["failed"])
        print(f"statefield: {len(by_status['failed'])} of {len(outcomes)} cases failed: {names}", file=sys.stderr)
    return 2 if by_status["failed"] else 0

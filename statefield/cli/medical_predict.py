"""`statefield medical predict`: images in, label maps out, with the model of a run."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statefield.cli.devices import device_of
from statefield.cli.worker_options import WORKERS, add_worker_options, pool_of, run_jobs
from statefield.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

    from statefield.tasks.common.archive import Pool
    from statefield.tasks.medical.inputs import InputCase, OutputFiles
    from statefield.tasks.medical.predict import Memory, Outcome

_EPILOG = f"""
Volumes (.nii, .nii.gz) become label volumes that lie exactly on the input; pictures (.png, .jpg, .tif, ...) become
grey PNGs whose values are the label indices. Files of one channel each are named as nnU-Net names them:
case_0000.nii.gz, case_0001.nii.gz. A run with folds, and several runs, predict together: the mean of their
probabilities. The run's post-processing is applied, if it has one.

A volume is brought to the spacing that the net was trained at, and its labels back. What does not fit into --memory
goes into temporary files beside the output (or in --scratch), and the logits of many classes are made band by band;
a line says so. The labels are the same.
{WORKERS}
examples:
  statefield medical predict --run runs/demo scan.nii.gz --output scan_labels.nii.gz
  statefield medical predict --run runs/demo imagesTs/ --output predictions/ --tta
  statefield medical predict --run runs/a --run runs/b imagesTs/ --output predictions/ --probabilities
  statefield medical predict --run runs/demo imagesTs/ --output predictions/ --workers 4
  statefield medical predict --run runs/body whole_body.nii.gz --output out/ --memory 4GB --scratch /data/tmp
"""


def predict(argv: list[str]) -> int:
    """Run the command; 0 when every case is predicted (or was), 2 when any failed."""
    options = _parser().parse_args(argv)
    pool = pool_of(options)

    import torch

    from statefield.datasets.readers.mapped import parse_size
    from statefield.tasks.medical.ensemble import load_ensemble
    from statefield.tasks.medical.inputs import find_cases, place_outputs
    from statefield.tasks.medical.postprocessing import load_postprocessing
    from statefield.tasks.medical.predict import Memory, predict_cases

    device = device_of(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    memory = Memory(None if options.memory is None else parse_size(options.memory), options.scratch)
    run = load_ensemble(options.run)
    cases = find_cases(options.inputs, len(run.info.channels))
    outputs = place_outputs(cases, options.output, probabilities=options.probabilities, overlay=options.overlay)
    inference = _inference(options)
    if pool is not None:
        return _over_workers(options, cases, outputs, inference, memory, pool)
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
                inference=dataclasses.replace(run.inference, **inference),
                spacing=run.spacing,
                postprocess=None if options.no_postprocess else load_postprocessing(run.folder.root),
                memory=memory,
                overwrite=options.overwrite,
                progress=show,
                tell=lambda line: bar.console.print(line, highlight=False, soft_wrap=True),
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
    add(
        "--run",
        type=Path,
        action="append",
        required=True,
        help="the run folder of `statefield medical train`; several times for an ensemble",
    )
    add("--output", type=Path, required=True, help="a folder, or a file name when there is one case")
    add("--tta", action="store_true", help="average over mirrored copies: a little better; 4 x slower, volumes 8 x")
    add("--overlap", type=float, help="share of a window that its neighbour covers too, 0 to below 1")
    add("--batch-size", type=int, help="windows per forward pass: changes speed and memory, not the result")
    add("--probabilities", action="store_true", help="write class probabilities too")
    add("--no-postprocess", action="store_true", help="leave out the run's post-processing (largest components)")
    add("--overlay", action="store_true", help="write a picture of image and labels too")
    add("--overwrite", action="store_true", help="replace outputs that exist; without it they are kept")
    add("--memory", metavar="SIZE", help="e.g. 4GB: what a case may take (default: 60 %% of what is free)")
    add("--scratch", type=Path, metavar="DIR", help="where temporary files go (default: beside the output)")
    add("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")
    add("--threads", type=int, help="CPU threads (default: all cores)")
    add_worker_options(parser)
    return parser


def _inference(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says in place of the run's own settings."""
    if options.overlap is not None and not 0 <= options.overlap < 1:
        raise ConfigError(f"--overlap {options.overlap}: a share from 0 to below 1 is needed.")
    if options.batch_size is not None and options.batch_size < 1:
        raise ConfigError(f"--batch-size {options.batch_size}: at least 1 is needed.")
    given = {"overlap": options.overlap, "batch_size": options.batch_size, "mirror": options.tta or None}
    return {name: value for name, value in given.items() if value is not None}


def _over_workers(
    options: argparse.Namespace,
    cases: Sequence[InputCase],
    outputs: Sequence[OutputFiles],
    inference: dict[str, Any],
    memory: Memory,
    pool: Pool,
) -> int:
    from statefield.tasks.medical.archive import MedicalLabels, case_jobs

    folder = outputs[0].labels.parent
    if folder != options.output:
        raise ConfigError(f"--output {options.output}: with workers a folder is needed, which holds their ledger, too.")
    work = MedicalLabels(
        runs=tuple(run.absolute() for run in options.run),
        inference=inference,
        probabilities=options.probabilities,
        overlay=options.overlay,
        postprocess=not options.no_postprocess,
        memory=memory,
        cpus=pool.cpus_per_worker,
    )
    return run_jobs(options, work, case_jobs(cases, outputs), folder, pool, "cases")


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("slices or windows"))
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

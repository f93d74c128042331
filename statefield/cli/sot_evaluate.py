"""`statefield sot evaluate`: score single-object trackers as the benchmarks' own toolkits do."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from statefield.errors import ConfigError, DatasetLayoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from statefield.tasks.tracking.sot.evaluation import Evaluation

_EPILOG = """
Ground truth is recognised by its layout: LaSOT, OTB, GOT-10k, TrackingNet, UAV123, EventVOT, COESOT, VisEvent,
FE108/FE240hz, VOT, pysot's JSON files, or plain SEQ.txt. --protocol chooses another toolkit's rules;
docs/tracking_sot.md tells how they differ. Scores of boxes are in percent.

examples:
  statefield sot evaluate --gt LaSOT/ --results results/ostrack results/mixformer --report report.html
  statefield sot evaluate --gt VisEvent/annos --results ceutrack_visevent --on-bad skip --protocol visevent visible
  statefield sot evaluate --gt VOT2018.json --results results/baseline_of_tracker --protocol vot2018 --json scores.json
  statefield sot evaluate --gt UAV123/ --results trackers/ --csv scores.csv --latex table.tex --plots figures/
"""
_MOST_ROWS_SHOWN = 40


def evaluate(argv: list[str]) -> int:
    """The verb: returns 0, or raises one of our errors."""
    arguments = _parser().parse_args(argv)
    names = _sequence_names(arguments.sequences)
    screen = Console(stderr=True)
    with Progress(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    ) as progress:
        bar = progress.add_task("", total=None)

        def started(count: int) -> None:
            progress.update(bar, total=count)

        def on_sequence(name: str) -> None:
            progress.update(bar, advance=1, description=name)

        evaluations = _evaluations(arguments, names, started, on_sequence)
    _print(Console(), evaluations, all_rows=arguments.all)
    _write(arguments, argv, evaluations)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield sot evaluate",
        description="Score single-object trackers: success (AUC), precision, normalised precision, AO, SR50/SR75, and\n"
        "VOT's EAO, accuracy and robustness, each by the rules of its benchmark.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--gt", type=Path, required=True, metavar="PATH", help="folder of the ground truth, or VOT JSON"
    )
    parser.add_argument(
        "--results", type=Path, nargs="+", required=True, metavar="DIR", help="a tracker's folder, or a folder of such"
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        default=["auto"],
        metavar="NAME",
        help="whose rules (default: those of the layout): otb, lasot, lasot-got10k, got10k, trackingnet, uav123, "
        "eventvot, coesot, visevent, fe240hz, visible, mmtracking, vot2016 ... vot2022; several give a table each",
    )
    parser.add_argument(
        "--sequences", nargs="+", metavar="NAME", help="only these sequences, or a file that lists them"
    )
    parser.add_argument(
        "--boxes", choices=("xywh", "xyxy"), default="xywh", help="predicted boxes: left top width height, or corners"
    )
    parser.add_argument(
        "--on-bad",
        choices=("error", "skip"),
        default="error",
        help="a result that is missing or broken is an error, or its sequence is left out for all trackers, and told",
    )
    parser.add_argument(
        "--eao-interval",
        type=int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="run lengths of VOT's EAO (default: the year's)",
    )
    parser.add_argument("--all", action="store_true", help="show all tables, those of sequences included")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, curves included")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row for each number of the tables")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="write the tables for a paper")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write the curves as PNG and PDF")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page with tables and curves")
    return parser


def _evaluations(
    arguments: argparse.Namespace,
    names: tuple[str, ...] | None,
    started: Callable[[int], None],
    on_sequence: Callable[[str], None],
) -> list[Evaluation]:
    from statefield.datasets.tracking.single_object import find_sequences
    from statefield.datasets.tracking.single_object_results import find_trackers
    from statefield.datasets.tracking.vot import boxes_of_regions, find_vot_sequences, find_vot_trackers, is_vot
    from statefield.tasks.tracking.sot.evaluation import evaluate_one_pass
    from statefield.tasks.tracking.sot.protocols import VOT_PROTOCOLS, protocol_named
    from statefield.tasks.tracking.sot.vot import RESET_YEARS
    from statefield.tasks.tracking.sot.vot_evaluation import evaluate_vot, require_anchors

    if not arguments.gt.exists():
        raise DatasetLayoutError(f"--gt {arguments.gt}: no such file or folder.")
    wanted = list(dict.fromkeys(arguments.protocol))
    if wanted == ["auto"]:
        wanted = _named_protocols(arguments.gt)
    years = [name for name in wanted if name in VOT_PROTOCOLS]
    one_pass = [protocol_named(name) for name in wanted if name not in (*VOT_PROTOCOLS, "auto")]
    is_regions = bool(years) or (is_vot(arguments.gt) and not one_pass)
    if is_regions:
        if one_pass:
            raise ConfigError(f"--protocol {' '.join(wanted)}: VOT's protocols stand alone; run the others separately.")
        regions = find_vot_sequences(arguments.gt, names)
        years = years or [_vot_year(arguments.gt, anchored=any(one.anchor_runs() for one in regions))]
        started(len(regions) * len(years))
        evaluations = []
        for year in years:
            require_anchors(year, regions)
            found = find_vot_trackers(arguments.results, regions, anchored=year not in RESET_YEARS)
            interval = tuple(arguments.eao_interval) if arguments.eao_interval else None
            evaluations.append(
                evaluate_vot(year, regions, found, interval=interval, on_bad=arguments.on_bad, on_sequence=on_sequence)
            )
        return evaluations
    if arguments.eao_interval:
        raise ConfigError("--eao-interval belongs to VOT's protocols, such as --protocol vot2018.")
    if is_vot(arguments.gt):
        sequences = boxes_of_regions(find_vot_sequences(arguments.gt, names))
    else:
        layout, sequences = find_sequences(arguments.gt, names)
        one_pass = one_pass or [protocol_named(_of_its_own(name, arguments.gt)) for name in layout.protocols]
    trackers = find_trackers(arguments.results, [sequence.name for sequence in sequences])
    started(len(sequences))
    return evaluate_one_pass(
        one_pass,
        sequences,
        trackers,
        corners=arguments.boxes,
        on_bad=arguments.on_bad,
        on_sequence=on_sequence,
    )


def _named_protocols(path: Path) -> list[str]:
    """pysot keeps other benchmarks in JSON files as well, OTB100.json or LaSOT.json: their name tells the protocol."""
    names = {"otb": "otb", "lasot": "lasot", "uav": "uav123", "got": "got10k", "trackingnet": "trackingnet"}
    if path.suffix != ".json":
        return ["auto"]
    return [name for start, name in names.items() if path.stem.lower().startswith(start)] or ["auto"]


def _of_its_own(protocol: str, path: Path) -> str:
    """COESOT's and VisEvent's data are laid out and scored as EventVOT's, but under their own name."""
    written = str(path.resolve()).lower()
    others = [name for name in ("coesot", "visevent") if name in written]
    return others[0] if protocol == "eventvot" and others else protocol


def _vot_year(path: Path, anchored: bool) -> str:
    """The year from the name of the ground truth; anchors came with VOT2020 and have one interval since."""
    from statefield.tasks.tracking.sot.protocols import VOT_PROTOCOLS

    found = re.findall(r"vot[-_ ]?(?:st|lt)?[-_ ]?(20\d\d)", str(path.resolve()).lower())
    if found and f"vot{found[-1]}" in VOT_PROTOCOLS:
        return f"vot{found[-1]}"
    if anchored:
        return "vot2022"
    raise ConfigError(
        f"--gt {path}: its name does not tell the year of VOT, on which EAO's interval depends. Say "
        "--protocol vot2018 (100 to 356 frames), vot2019 (46 to 291), vot2016, vot2017, or vot2020 and later."
    )


def _sequence_names(given: list[str] | None) -> tuple[str, ...] | None:
    if not given:
        return None
    if len(given) == 1 and Path(given[0]).is_file():
        from statefield.datasets.tracking.number_rows import text_lines

        given = [line.strip() for line in text_lines(given[0]) if line.strip()]
    return tuple(dict.fromkeys(given))


def _print(console: Console, evaluations: list[Evaluation], all_rows: bool) -> None:
    from statefield.tasks.tracking.score_tables import screen_table

    said: set[str] = set()
    for evaluation in evaluations:
        kept_for_files = []
        seen: set[str] = set()
        for table in evaluation.tables():
            # of the tables of one kind, the first, which is of the main score
            is_long = table.heading == "sequence" and len(table.rows) > _MOST_ROWS_SHOWN
            if all_rows or (table.heading not in seen and not is_long):
                console.print(screen_table(table, console.width))
            else:
                kept_for_files.append(table.title.partition(": ")[2])
            seen.add(table.heading)
        if kept_for_files:
            console.print(f"not shown: {', '.join(kept_for_files)}; see --all, --csv or --json", soft_wrap=True)
        for note in evaluation.notes:
            if note not in said:
                console.print(note, soft_wrap=True, highlight=False)
        said.update(evaluation.notes)


def _write(arguments: argparse.Namespace, argv: list[str], evaluations: list[Evaluation]) -> None:
    from statefield.files import write_json, write_text
    from statefield.tasks.tracking.score_tables import csv_text, latex_text

    console = Console()
    command = shlex.join(["statefield", "sot", "evaluate", *argv])
    tables = [table for evaluation in evaluations for table in evaluation.tables()]
    if arguments.json is not None:
        inputs = {"gt": str(arguments.gt), "results": [str(path) for path in arguments.results], "command": command}
        write_json(arguments.json, inputs | {"evaluations": [evaluation.as_json() for evaluation in evaluations]})
        console.print(f"written: {arguments.json} (every number and curve)", soft_wrap=True)
    if arguments.csv is not None:
        write_text(arguments.csv, csv_text(tables))
        console.print(f"written: {arguments.csv} (one row for each number)", soft_wrap=True)
    if arguments.latex is not None:
        write_text(arguments.latex, latex_text([table for table in tables if table.heading != "sequence"]))
        console.print(f"written: {arguments.latex} (tables without sequences)", soft_wrap=True)
    plots = [plot for evaluation in evaluations for plot in evaluation.plots]
    if arguments.plots is not None:
        from statefield.tasks.tracking.score_plots import save_plots

        written = save_plots(arguments.plots, plots)
        console.print(f"written: {len(written)} files in {arguments.plots} (PNG and PDF)", soft_wrap=True)
    if arguments.report is not None:
        from statefield.tasks.tracking.score_report import write_score_report

        notes = [f"{one.title}: {note}" for one in evaluations for note in one.notes]
        title = f"Trackers on {evaluations[0].title}"
        write_score_report(arguments.report, title=title, tables=tables, plots=plots, notes=notes, command=command)
        console.print(f"written: {arguments.report} (tables and curves on one page)", soft_wrap=True)

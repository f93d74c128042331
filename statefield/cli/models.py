"""`statefield models [PATTERN]`: the backbones, what they cost and where their weights come from."""

from __future__ import annotations

import argparse
import json
from typing import Any


def models(argv: list[str]) -> int:
    """Print a table of backbones, or the same as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="statefield models",
        description="List the backbones: parameters with an ImageNet-1K head, multiply-adds at 224 x 224, the accuracy "
        "that their authors publish, and whether they compute what their authors' code does. timm's own models work "
        "wherever these do: timm.list_models().",
    )
    parser.add_argument("pattern", nargs="?", default="", help="part of a name, or a pattern with * and ?")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)

    from statefield.backbones import BACKBONES, list_models  # here: it imports torch
    from statefield.errors import UnknownName

    names = list_models(options.pattern)
    if not names:
        raise UnknownName.among("backbone", options.pattern, BACKBONES)
    rows = [_row(name) for name in names]
    print(json.dumps(rows, indent=2) if options.json else _table(rows))
    return 0


def _row(name: str) -> dict[str, Any]:
    from statefield.backbones import BACKBONES
    from statefield.backbones.agreement import agreement_of
    from statefield.backbones.cost import recorded_cost

    info, cost, agreement = BACKBONES[name], recorded_cost(name), agreement_of(name)
    return {
        "name": name,
        "family": info.family,
        "configuration_by": info.origin,
        "parameters": cost.parameters,
        "gmacs_at_224": round(cost.multiply_adds / 1e9, 3),
        "published_top1": info.published_top1,
        "weights_license": _license(info.origin, info.weights_license),
        "goldens": agreement.goldens if agreement else 0,
        "goldens_pass": agreement.passes if agreement else None,
        "goldens_worst_error": agreement.worst if agreement else None,
        "source": info.source,
        "paper": info.paper,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    header = ("name", "family", "parameters", "GMACs", "top-1 %", "weights' licence", "goldens", "source")
    cells = [
        (
            row["name"],
            row["family"],
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['gmacs_at_224']:.2f}",
            "-" if row["published_top1"] is None else f"{row['published_top1']:.1f} *",
            row["weights_license"],
            _goldens(row),
            row["source"],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (header, *cells)) for column in range(len(header))]
    numeric = {2, 3, 4}
    lines = [
        "  ".join(
            f"{cell:>{width}}" if column in numeric else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *cells)
    ]
    notes = (
        "* published by the authors for ImageNet-1K, at 224 x 224 or the size's own resolution; not measured here",
        "goldens: files of numbers from the authors' code for the family, and the largest error of outputs, gradients",
        "as a share of the golden's standard deviation, as tests/goldens/check.py recorded it; '-': none",
    )
    return "\n".join([*lines, "", *notes])


def _license(origin: str, license_: str | None) -> str:
    """Of the authors' weight files: the name of a licence, or why there is none."""
    if license_ is not None:
        return license_
    return "not verified" if origin == "paper" else "no weights (ours)"


def _goldens(row: dict[str, Any]) -> str:
    if not row["goldens"]:
        return "-"
    worst = "no comparison" if row["goldens_worst_error"] is None else f"{row['goldens_worst_error']:.0e}"
    return f"{row['goldens']} {'pass' if row['goldens_pass'] else 'MISS'}, {worst}"

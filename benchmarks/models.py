"""Count every backbone for statefield/backbones/costs.json, and write benchmarks/results/models.json, for documents.

The second is what `statefield models --json` tells. Takes some minutes.

python benchmarks/models.py && python benchmarks/tables.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path

from rich.progress import track

from statefield.backbones import list_models
from statefield.backbones.cost import RECORD, model_cost
from statefield.cli.models import models
from statefield.files import write_json

RESULT = Path(__file__).parent / "results" / "models.json"


def main() -> None:
    names = track(list_models(), "counting")
    write_json(RECORD, {name: dataclasses.asdict(model_cost(name)) for name in names})
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        models(["--json"])
    write_json(RESULT, {"models": json.loads(said.getvalue())})


if __name__ == "__main__":
    main()

"""Write benchmarks/results/models.json, for the documents' tables: what `statefield models --json` tells.

python benchmarks/models.py && python benchmarks/tables.py
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from statefield.cli.models import models
from statefield.files import write_json

RESULT = Path(__file__).parent / "results" / "models.json"


def main() -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        models(["--json"])
    write_json(RESULT, {"models": json.loads(said.getvalue())})


if __name__ == "__main__":
    main()

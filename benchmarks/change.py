"""Train a recipe of change detection with several seeds, its control beside it, and keep the scores in
benchmarks/results.

    python benchmarks/change.py recipes/remote_sensing/oscd.yaml --data.root data/OSCD --seeds 0 1 2
    python benchmarks/change.py recipes/remote_sensing/oscd.yaml --data.root data/OSCD --runs /scratch/oscd

Every other option is passed on to `statefield change train`. A seed whose run is whole already (its metrics.json is
there) is not trained again. The data must be fetched first: none of it is part of this repository.

The file benchmarks/results/change_NAME.json holds, for each contender, the mean over the seeds of every number of the
run's comparison, the values of the single seeds beside it, and each seed's whole test scores.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # its neighbour, also where this file is loaded by its path

from training import compared as compared
from training import run

if __name__ == "__main__":
    raise SystemExit(run("change", __doc__))

"""Train a recipe on real data with several seeds, its control beside it, and keep the scores in benchmarks/results.

    python benchmarks/medical.py recipes/medical/drive.yaml --data.root data/DRIVE --seeds 0 1 2
    python benchmarks/medical.py recipes/medical/acdc.yaml --data.root data/acdc --runs /scratch/acdc

Every other option is passed on to `statefield medical train`. A seed whose run is whole already (its metrics.json is
there) is not trained again. The data must be fetched first: none of it is part of this repository.

The file benchmarks/results/medical_NAME.json holds, for each contender, the mean over the seeds of every number of the
run's comparison, the values of the single seeds beside it, and each seed's whole test scores.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # its neighbour, also where this file is loaded by its path

from training import compared as compared
from training import run

if __name__ == "__main__":
    raise SystemExit(run("medical", __doc__))

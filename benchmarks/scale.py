"""Write benchmarks/results/scale.json: what an archive costs besides its jobs, and what workers gain on this machine.

    python benchmarks/scale.py && python benchmarks/tables.py
    python benchmarks/scale.py --only ledger        measure this anew, keep the rest

`overhead`: jobs that write a line, so that what is left is the ledger, and Ray. `begin` is the time to the first
finished job: Ray's start, its workers', the import of torch, the model. `per job` is that between first and last,
by their number less one.
`archives`: `statefield change predict-archive` on generated pairs, and `statefield medical predict` on generated
volumes, with nets of random weights (time does not ask what they know), one thread for each worker.
`ledger`: of so many jobs that are done: a record's write (two a job), how long a run takes to see that nothing is
missing, and what the records take of the disk.
`on_paper`: what follows for larger archives and more workers. It is computed from the rows above, not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the writers of made-up data

from fakes.medical import write_pairs_of_volumes  # noqa: E402
from fakes.rasters import change_pair  # noqa: E402

from statefield.cli.main import main as statefield  # noqa: E402
from statefield.files import write_json, write_text  # noqa: E402
from statefield.tasks.common.archive import Job, Ledger, Pool, Record, Work, run_archive  # noqa: E402
from statefield.tasks.common.archive.ledger import InputState, Output  # noqa: E402
from statefield.tasks.common.config import TrainerConfig  # noqa: E402
from statefield.tasks.common.environment import describe_environment  # noqa: E402
from statefield.tasks.medical.archive import MedicalLabels, case_jobs  # noqa: E402
from statefield.tasks.medical.inputs import find_cases, place_outputs  # noqa: E402
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe  # noqa: E402
from statefield.tasks.medical.run import train  # noqa: E402
from statefield.tasks.remote_sensing.change_archive import ChangeMaps, pair_jobs, read_pairs  # noqa: E402
from statefield.tasks.remote_sensing.nets import MambaBCD  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "scale.json"
SIDE_PX, NUM_PAIRS = 256, 24
VOLUME, NUM_VOLUMES = (128, 128, 16), 24
POOLS: tuple[tuple[str, Pool | None], ...] = (
    ("this process", None),
    ("1 worker", Pool(workers=1)),
    ("2 workers", Pool(workers=2)),
)


@dataclass(frozen=True)
class Lines:
    """Work that takes no time: a line in a file."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"work": "lines"}

    def begin(self, device: str):
        def do(job: Job, was_killed: bool) -> dict[str, Any]:
            write_text(job.outputs[0], f"{job.name}\n")
            return {}

        return do


@dataclass(frozen=True)
class Timed:
    """The work, with the processor time of each job in its notes: what others do on the machine is not in it."""

    work: Work

    @property
    def settings(self) -> dict[str, Any]:
        return self.work.settings

    def begin(self, device: str):
        do = self.work.begin(device)

        def timed(job: Job, was_killed: bool) -> dict[str, Any]:
            start = time.process_time()
            do(job, was_killed)
            return {"cpu_s": time.process_time() - start}

        return timed


def measured(work: Work, jobs: Sequence[Job], folder: Path, pool: Pool | None) -> dict[str, Any]:
    """Seconds to the first finished job, between one and the next from then on, and in all."""
    moments: list[float] = []
    start = time.perf_counter()

    def told(done: int, total: int) -> None:
        if done:
            moments.append(time.perf_counter() - start)

    result = run_archive(Timed(work), jobs, folder, pool=pool, progress=told)
    if len(result.done) != len(jobs):
        raise RuntimeError(f"{len(result.failed)} jobs failed: {[one.error for one in result.failed[:3]]}")
    steady = (moments[-1] - moments[0]) / (len(jobs) - 1)
    whole = time.perf_counter() - start
    cpu_s = statistics.median(one.notes["cpu_s"] for one in result.done)
    load = os.getloadavg()[0]  # processes that wanted a core, over the last minute: others take their part of the time
    return {
        "jobs": len(jobs),
        "begin_s": moments[0],
        "per_job_s": steady,
        "whole_s": whole,
        "cpu_s": cpu_s,
        "load": load,
    }


def overhead(place: Path) -> list[dict[str, Any]]:
    rows = []
    for name, pool in POOLS:
        folder = place / name.replace(" ", "_")
        jobs = [Job(f"job{number}", (), (str(folder / f"{number}.txt"),)) for number in range(300)]
        rows.append({"where": name, **measured(Lines(), jobs, folder, pool)})
        rows[-1]["per_job_ms"] = 1000 * rows[-1].pop("per_job_s")
        print(json.dumps(rows[-1]), flush=True)
    return rows


def archives(place: Path) -> list[dict[str, Any]]:
    kinds = {"change predict-archive": _change(place), "medical predict": _medical(place)}
    rows = []
    for kind, (work, jobs_in, unit) in kinds.items():
        sums = set()
        for name, pool in POOLS:
            folder = place / kind.replace(" ", "_") / name.replace(" ", "_")
            row = measured(work, jobs_in(folder), folder, pool)
            sums.add((folder / "SHA256SUMS").read_text())
            rows.append({"command": kind, "where": name, "unit": unit, **row, "per_hour": 3600 / row["per_job_s"]})
            print(json.dumps(rows[-1]), flush=True)
        same = len(sums) == 1
        for row in rows[-len(POOLS) :]:
            row["gain"] = rows[-len(POOLS)]["per_job_s"] / row["per_job_s"]
            row["same_files"] = "yes" if same else "no"
    return rows


def _change(place: Path) -> tuple[Work, Any, str]:
    torch.manual_seed(0)
    net = MambaBCD(encoder="spatial_mamba_nano")
    torch.save(net.state_dict(), place / "net.pth")
    words = ["convert", "net.pth", "net.safetensors", "--model", "mamba_bcd", "--set", "encoder=spatial_mamba_nano"]
    words[1:3] = [str(place / word) for word in words[1:3]]
    if statefield(words):
        raise RuntimeError("the net could not be converted")
    rows = ["name,before,after"]
    for number in range(NUM_PAIRS):
        (place / f"pair{number}").mkdir()
        change_pair(place / f"pair{number}", SIDE_PX, SIDE_PX, seed=number)
        rows.append(f"place{number},pair{number}/before.tif,pair{number}/after.tif")
    write_text(place / "pairs.csv", "\n".join(rows) + "\n")
    pairs = read_pairs(place / "pairs.csv")
    work = ChangeMaps(weights=place / "net.safetensors")
    return work, lambda folder: pair_jobs(pairs, folder), f"pair of {SIDE_PX} x {SIDE_PX} px"


def _medical(place: Path) -> tuple[Work, Any, str]:
    data = write_pairs_of_volumes(place / "volumes", num_cases=NUM_VOLUMES, shape=VOLUME)
    recipe = SegmentationRecipe(
        run=place / "run",
        data=DataConfig(root=data, patch_size=(64, 64), batch_size=2, augment="none"),
        model=ModelConfig(encoder="spatial_mamba_nano"),
        trainer=TrainerConfig(fast_dev_run=True, accelerator="cpu"),
    )
    train(recipe)
    cases = find_cases([data / "images"], 1)
    work = MedicalLabels((place / "run",))
    size = " x ".join(map(str, VOLUME))
    return work, lambda folder: case_jobs(cases, place_outputs(cases, folder)), f"volume of {size}"


def ledgers(place: Path) -> list[dict[str, Any]]:
    rows = []
    for count in (10_000, 100_000):
        folder = place / f"of_{count}"
        folder.mkdir()
        jobs = [_done_job(folder, number) for number in range(count)]
        ledger = Ledger(folder)
        ledger.open(Lines().settings, overwrite=False)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ledger.write, (_record(job, folder) for job in jobs)))
        start = time.perf_counter()
        for job in jobs[:500]:
            ledger.write(_record(job, folder))
        write_ms = (time.perf_counter() - start) * 1000 / 500
        start, busy = time.perf_counter(), time.process_time()
        result = run_archive(Lines(), jobs, folder)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        if len(result.kept) != count:
            raise RuntimeError("a job was done again")
        blocks = sum(path.stat().st_blocks * 512 for path in (ledger.root / "records").iterdir())
        row = {"records": count, "write_ms": write_ms, "resume_s": seconds, "resume_cpu_s": busy, "mb": blocks / 1e6}
        rows.append({**row, "load": os.getloadavg()[0]})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def on_paper(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hours of larger archives, by the measured rows of pairs: not measured.

    A job is taken to need the processor seconds of here on a core of its own, and the command to hand out jobs no
    faster than it handed out those that write a line.
    """
    of_pairs = {row["where"]: row for row in found["archives"] if row["command"] == "change predict-archive"}
    alone, two = of_pairs["this process"], of_pairs["2 workers"]
    handing_out_s = next(row["per_job_ms"] for row in found["overhead"] if row["where"] == "2 workers") / 1000
    rows = []
    for count in (1_000, 10_000, 100_000, 1_000_000):
        row: dict[str, Any] = {"jobs": count, "alone_h": count * alone["cpu_s"] / 3600}
        for workers in (2, 32, 256):
            per_job = max(two["cpu_s"] / workers, handing_out_s)
            row[f"workers_{workers}_h"] = count * per_job / 3600
        rows.append(row)
    return rows


def _done_job(folder: Path, number: int) -> Job:
    """With the file of an output, and two inputs that all share."""
    output = folder / f"{number}.txt"
    output.touch()
    inputs = (str(folder / "before"), str(folder / "after"))
    for path in inputs:
        if not os.path.exists(path):  # noqa: PTH110
            Path(path).touch()
    return Job(f"job{number}", inputs, (str(output),))


def _record(job: Job, folder: Path) -> Record:
    inputs = tuple(map(InputState.of, job.inputs))
    notes = {"height": 512, "width": 512, "pixels": {"class": {"unchanged": 200_000, "changed": 62_144}}}
    output = Output(Path(job.outputs[0]).name, 0, "0" * 64)
    return Record(job.name, "done", 1, "machine:12345", inputs, (output,), 1.234, notes=notes)


def main() -> None:
    measures = {"overhead": overhead, "archives": archives, "ledger": ledgers}
    parser = argparse.ArgumentParser(description="Measure what archives cost, and what workers gain.")
    parser.add_argument("--only", nargs="+", choices=measures, help="measure these anew, keep the others")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for name in options.only or measures:
        with tempfile.TemporaryDirectory(prefix="scale-") as place:
            found[name] = measures[name](Path(place))
        if {"overhead", "archives"} <= set(found):
            found["on_paper"] = on_paper(found)
        found["environment"] = describe_environment((*_PACKAGES, "ray"))
        write_json(RESULT, found)


_PACKAGES = ("statefield", "torch", "timm", "numpy")

if __name__ == "__main__":
    main()

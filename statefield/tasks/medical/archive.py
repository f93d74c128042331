"""Label maps of many cases: the jobs of an archive, and the work that is done with each.

jobs = case_jobs(cases, place_outputs(cases, Path("labels")))
result = run_archive(MedicalLabels((Path("runs/demo"),)), jobs, Path("labels"), pool=Pool(workers=4))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statefield.datasets.readers.mapped import available_bytes
from statefield.tasks.common.archive import Job
from statefield.tasks.common.archive.jobs import Do, digests
from statefield.tasks.medical.ensemble import load_ensemble
from statefield.tasks.medical.inputs import InputCase, OutputFiles
from statefield.tasks.medical.postprocessing import FILE_NAME, load_postprocessing
from statefield.tasks.medical.predict import Memory, predict_cases

_FILES = ("config.yaml", "dataset.json", "weights.safetensors", FILE_NAME)
_SHARE_OF_AVAILABLE = 0.6  # as without workers, where one case has it all


def case_jobs(cases: Sequence[InputCase], outputs: Sequence[OutputFiles]) -> list[Job]:
    """A job for each case, named as its file of labels."""
    return [
        Job(files.labels.name, _absolute(case.files), _absolute(files.wanted()))
        for case, files in zip(cases, outputs, strict=True)
    ]


@dataclass(frozen=True)
class MedicalLabels:
    """The work: a case through the net of one run, or of several together, as `predict_cases` does it.

    Args:
        runs: folders of `medical train`; absolute paths, where workers are on other machines.
        inference: settings in place of the run's own, see `InferenceConfig`.
        probabilities, overlay: whether jobs have these outputs, after the labels.
        postprocess: apply the post-processing of the first run, if it has one.
        memory: what a case may take; without a budget, a worker's part of three fifths of what is free: that of its
            `cpus` among the machine's.
    """

    runs: tuple[Path, ...]
    inference: Mapping[str, Any] = field(default_factory=dict)
    probabilities: bool = False
    overlay: bool = False
    postprocess: bool = True
    memory: Memory = field(default_factory=Memory)
    cpus: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        """What the labels depend on; memory and cores change where arrays lie."""
        places = [(run, [run, *sorted(run.glob("fold_*"))]) for run in self.runs]
        models = [digests((at / name for at in folders for name in _FILES), run) for run, folders in places]
        return {
            "work": "medical",
            "models": models,
            "inference": dict(self.inference),
            "outputs": {"probabilities": self.probabilities, "overlay": self.overlay},
            "postprocess": self.postprocess,
        }

    def begin(self, device: str) -> Do:
        run = load_ensemble(self.runs)
        net = run.net.to(device)
        inference = dataclasses.replace(run.inference, **self.inference)
        postprocess = load_postprocessing(run.folder.root) if self.postprocess else None

        def do(job: Job, was_killed: bool) -> dict[str, Any]:
            (outcome,) = predict_cases(
                net,
                [InputCase(job.name, tuple(map(Path, job.inputs)))],
                [self._files(job)],
                info=run.info,
                normalisation=run.normalisation,
                slice_context=run.slice_context,
                roi=run.roi,
                inference=inference,
                spacing=run.spacing,
                postprocess=postprocess,
                memory=self._memory(),
                overwrite=True,
            )
            if outcome.error is not None:
                raise outcome.error
            return {}

        return do

    def _files(self, job: Job) -> OutputFiles:
        labels, *others = map(Path, job.outputs)
        probabilities = others.pop(0) if self.probabilities else None
        return OutputFiles(labels, probabilities, others.pop(0) if self.overlay else None)

    def _memory(self) -> Memory:
        if self.memory.budget is not None:
            return self.memory
        share = min(1.0, self.cpus / (os.cpu_count() or 1))
        return Memory(int(_SHARE_OF_AVAILABLE * share * available_bytes()), self.memory.scratch)


def _absolute(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(str(path.absolute()) for path in paths)

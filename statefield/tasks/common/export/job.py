"""A subject to a file that was tried: trace, write beside the target, run it beside the net, only then put it there."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from statefield.errors import ExportError
from statefield.files import atomic_path
from statefield.tasks.common.export.agreement import TOLERANCE, Agreement, compare
from statefield.tasks.common.export.files import require_packages, write
from statefield.tasks.common.export.program import least_sizes, program_of
from statefield.tasks.common.export.subject import Subject

__all__ = ["Exported", "export"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A file that computes what its net does.

    Attributes: name: of the model. path: of the file. num_bytes: its size. nodes: operations of its graph.
    """

    name: str
    path: Path
    num_bytes: int
    nodes: int
    agreement: Agreement


def export(
    subject: Subject,
    path: Path,
    *,
    any_batch: bool = True,
    any_size: bool = False,
    timed: bool = True,
    announce: Callable[[str], None] = log.info,
) -> Exported:
    """Write `subject` to `path` (.onnx or .pt2), after comparing the file with the net.

    Args:
        any_batch: as many inputs at once as one likes, in place of the example's number.
        any_size: rows and columns too, where no operator stands against it.
        timed: take the time of both.
        announce: gets a line at each of the three stages; a net of many scans takes minutes.

    Raises:
        ConfigError: the name of the file, or packages that are missing.
        ExportError: the net cannot be traced or held by such a file, or the file computes something else than it; then
            nothing is written.
    """
    require_packages(path)
    announce(f"tracing {subject.name}")
    # ONNX puts the operators in later, each form traced once. Not with free sizes: a form may need how they relate.
    program = program_of(subject, any_batch=any_batch, any_size=any_size, whole=path.suffix == ".onnx" and not any_size)
    inputs = {name: ["any" if any_batch else len(x), *x.shape[1:]] for name, x in subject.inputs.items()}
    least = least_sizes(subject, program) if any_size else {}
    for name, axes in least.items():
        for axis, side in axes.items():
            inputs[name][axis] = f">= {side}"
    about = {**subject.about, "inputs": json.dumps(inputs), "outputs": json.dumps(subject.outputs)}
    with atomic_path(path) as partial:
        announce(f"writing {path.name}")
        nodes = write(program, subject, partial, about)
        announce(f"comparing {path.name} with the net")
        agreement = compare(subject, partial, any_batch=any_batch, least=least, timed=timed)
        if not agreement.passed and any_size:
            raise ExportError(
                f"the file of {subject.name} differs from the net by {agreement.difference:.1e} at another size than "
                "the example's: the net's own code chooses by the size (padding to whole patches, say), and a file "
                f"holds one choice. {path} was not written: leave --any-size out, and give the size with --size."
            )
        if not agreement.passed:
            raise ExportError(
                f"the file of {subject.name} differs from the net by {agreement.difference:.1e}, and {TOLERANCE:.0e} "
                f"is allowed: {path} was not written. Please report the model and these numbers."
            )
        num_bytes = partial.stat().st_size
    return Exported(subject.name, path, num_bytes, nodes, agreement)

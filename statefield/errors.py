"""The exceptions that statefield raises on purpose.

    StatefieldError
    |-- ShapeError          (ValueError)         a tensor or array of the wrong shape, dtype or layout
    |-- UnknownName         (LookupError)        a name that no registry holds; offers the nearest ones
    |-- ConfigError         (ValueError)         a setting, or a combination of settings, that cannot work
    |-- DataError           (ValueError)         a file that cannot be read or holds impossible values
    |   `-- LabelError                           a label value outside the declared classes
    |-- DatasetLayoutError  (FileNotFoundError)  a folder that is not laid out as its adapter expects
    |   `-- EmptySplit                           a split without a case
    |-- CheckpointError     (RuntimeError)       weights that do not fit the model, or a damaged file
    |-- TrainingDiverged    (ArithmeticError)    a loss that is no longer a number
    |-- ExportError         (RuntimeError)       a model that no file of another runtime can hold
    `-- KernelUnavailable   (RuntimeError)       a kernel implementation asked for by name that cannot run here

Each is also the builtin in brackets, so callers that know nothing of statefield can catch it. A message is one
paragraph: what was given, what is needed, what to do. The command line prints that paragraph and exits with
status 2; anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class StatefieldError(Exception):
    """The root: everything statefield raises on purpose."""


class ShapeError(StatefieldError, ValueError):
    """A tensor or array of the wrong shape, dtype or layout."""


class UnknownName(StatefieldError, LookupError):
    """A name that no registry holds."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> UnknownName:
        """The error for `name`, with the nearest of the `known` names as a suggestion."""
        import difflib  # only who errs waits for it

        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(names) or 'none'}."
        )
        return cls(f"unknown {kind} {name!r}: {hint}")


class ConfigError(StatefieldError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(StatefieldError, ValueError):
    """A file that cannot be read or holds impossible values; the message names the file."""


class LabelError(DataError):
    """A label value outside the declared classes; the message names the file and the values."""


class DatasetLayoutError(StatefieldError, FileNotFoundError):
    """A folder that is not laid out as its adapter expects; the message names the folder and the layout."""


class EmptySplit(DatasetLayoutError):
    """A split that no case belongs to; the message names the dataset and says why."""


class CheckpointError(StatefieldError, RuntimeError):
    """Weights that do not fit the model, or a checkpoint file that is damaged or unsafe to open."""


class TrainingDiverged(StatefieldError, ArithmeticError):
    """A loss that is no longer a number; the message names the step and the files of its batch."""


class ExportError(StatefieldError, RuntimeError):
    """A model that cannot be written for another runtime; the message names the operator, or what else forbids it."""


class KernelUnavailable(StatefieldError, RuntimeError):
    """A kernel implementation asked for by name that cannot run here; the message says why."""

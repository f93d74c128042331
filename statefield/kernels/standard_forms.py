"""Every operator in operations that other runtimes know: the table that export puts in place of `torch.ops.statefield`.

    program.run_decompositions(decompositions())

An operator's folder holds its form in `standard.py`, with a function `forward` that has the operator's own arguments.
Its truth is the reference, as for every implementation: tests compare the two over all cases of the operator.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from statefield.errors import ExportError
from statefield.kernels._choice import OPERATORS


def standard_form(name: str) -> Callable[..., Any]:
    """The standard form of one operator, with the arguments of `torch.ops.statefield.<name>`.

    Raises:
        ExportError: the operator has none.
    """
    home = f"{OPERATORS[name].package}.standard"
    if importlib.util.find_spec(home) is None:
        raise ExportError(
            f"the operator {name} has no standard form ({home.replace('.', '/')}.py is missing), so no file without "
            "statefield can hold it."
        )
    form: Callable[..., Any] = importlib.import_module(home).forward
    return form


def decompositions() -> dict[Any, Callable[..., Any]]:
    """`torch.ops.statefield.<name>.default` -> its standard form, for all operators.

    `route_orders` is not among them: what it gives is a constant, which a program has to hold as one.
    """
    importlib.import_module("statefield.kernels")  # registers the operators
    return {getattr(torch.ops.statefield, name).default: standard_form(name) for name in OPERATORS}

"""From a net to a program of standard operations, which plain torch runs and ONNX can be made of.

`torch.export` keeps our operators whole. They are replaced by their standard forms (`kernels/standard_forms.py`), and
the routes of their scans by constants; what is left knows nothing of statefield.
"""

from __future__ import annotations

import torch
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from statefield.errors import ExportError, StatefieldError
from statefield.kernels.standard_forms import decompositions
from statefield.tasks.common.export.quiet import quietly
from statefield.tasks.common.export.subject import Subject

__all__ = ["LARGEST_BATCH", "least_sizes", "program_of"]

LARGEST_BATCH = 4096
_ROUTES = "statefield.route_orders.default"
_ENDLESS = 2**20  # a side that may be longer than this may be as long as one likes
# Whose forms hold for sizes that are not known. Of the others, those of the scans are written out for one number of
# tokens; those of ssd, mlstm and wkv divide it by the length of their chunks, which no file of ours got right.
_ANY_SIZE = ("causal_conv1d", "deformable_conv", "hsm_ssd", "non_causal_ssd", "state_fusion")


def program_of(
    subject: Subject, *, any_batch: bool = True, any_size: bool = False, whole: bool = False
) -> ExportedProgram:
    """The net as a program of standard operations.

    Args:
        any_batch: the first axis of every input may have any size from 1 to `LARGEST_BATCH`.
        any_size: so may rows and columns.
        whole: leave our operators as they are, all but the routes.

    The net's parameters need no gradient afterwards.

    Raises:
        ExportError: an operator, or the net itself, is not to be had so; names it.
    """
    if any_size and not any(subject.spatial.values()):
        raise ExportError(f"{subject.name} takes inputs of one size: leave --any-size out.")
    for parameter in subject.net.parameters():
        parameter.requires_grad_(False)
    shapes = _dynamic_shapes(subject, any_batch=any_batch, any_size=any_size)
    try:
        with quietly():
            inputs = tuple(subject.inputs.values())
            program = torch.export.export(subject.net, inputs, dynamic_shapes=shapes, strict=False)
    except StatefieldError:
        raise
    except Exception as error:
        raise ExportError(
            f"torch.export cannot trace {subject.name} with {_varied(any_batch, any_size)}: {_first_lines(error)}"
        ) from error
    if any_size:
        _require_free_sizes(subject, program)
        least_sizes(subject, program)
    _hold_routes(program)
    if whole:
        return program
    with quietly():
        program = program.run_decompositions(decompositions())
    left = sorted({str(node.target) for node in program.graph.nodes if str(node.target).startswith("statefield.")})
    if left:
        raise ExportError(
            f"{subject.name} uses {', '.join(left)}, which has no standard form: no other runtime can hold it."
        )
    return program


def _dynamic_shapes(subject: Subject, *, any_batch: bool, any_size: bool) -> tuple[dict[int, object], ...]:
    batch = Dim("batch", min=1, max=LARGEST_BATCH)
    shapes = []
    for name in subject.inputs:
        free: dict[int, object] = {0: batch} if any_batch else {}
        if any_size:
            free |= dict.fromkeys(subject.spatial.get(name, ()), Dim.AUTO)
        shapes.append(free)
    return tuple(shapes)


def _require_free_sizes(subject: Subject, program: ExportedProgram) -> None:
    """Raise `ExportError` where the program is of one size after all: of an operator's form, or of the net's own code.

    Said here: the decomposition would find it too, but minutes later.
    """
    targets = {str(node.target) for node in program.graph.nodes}
    operators = {target.split(".")[1] for target in targets if target.startswith("statefield.")}
    bound = sorted(operators - {*_ANY_SIZE, "route_orders"})
    if bound:
        raise ExportError(
            f"{subject.name} cannot be exported for any size: the standard form of its operator {', '.join(bound)} is "
            "for one number of tokens. Leave --any-size out, and give the size with --size."
        )
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, given in zip(subject.inputs, program.graph_signature.user_inputs, strict=True):
        shape = nodes[str(given)].meta["val"].shape
        fixed = [axis for axis in subject.spatial.get(name, ()) if isinstance(shape[axis], int)]
        if fixed:
            raise ExportError(
                f"{subject.name} cannot be exported for any size: its own code is bound to {list(shape)} of {name}. "
                "Leave --any-size out, and give the size with --size."
            )


def least_sizes(subject: Subject, program: ExportedProgram) -> dict[str, dict[int, int]]:
    """For each input, its axes of any size and the smallest side that the program holds for.

    Torch reasons with the sizes of the example: what had more than one pixel there is taken to have it always.

    Raises:
        ExportError: the program does not hold for larger sides, since a map of the example has a single pixel.
    """
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    least: dict[str, dict[int, int]] = {}
    for name, given in zip(subject.inputs, program.graph_signature.user_inputs, strict=True):
        shape = nodes[str(given)].meta["val"].shape
        for axis in subject.spatial.get(name, ()):
            bounds = program.range_constraints[shape[axis].node.expr]
            if bounds.upper < _ENDLESS:
                raise ExportError(
                    f"{subject.name} cannot be exported for any size from an example of "
                    f"{list(subject.inputs[name].shape)}: a map inside has a single pixel there, and the file would "
                    f"hold for sides up to {bounds.upper} alone. Give a larger example, twice as large or more, with "
                    "--size."
                )
            least.setdefault(name, {})[axis] = int(bounds.lower)
    return least


def _hold_routes(program: ExportedProgram) -> None:
    """Replace every look-up of routes by a constant of the program.

    A decomposition cannot make one: what it creates while it is traced has to follow from its inputs.
    """
    specs = program.graph_signature.input_specs
    first = next(number for number, spec in enumerate(specs) if spec.kind == InputKind.USER_INPUT)
    first_input = [node for node in program.graph.nodes if node.op == "placeholder"][first]
    known: dict[tuple[str, tuple[int, ...]], Node] = {}
    for node in list(program.graph.nodes):
        if str(node.target) != _ROUTES:
            continue
        names, shape = node.args[0], tuple(node.args[1])
        if (names, shape) not in known:
            name = f"route_orders_{len(known)}"
            with program.graph.inserting_before(first_input):
                held = program.graph.placeholder(name)
            held.meta["val"] = node.meta["val"]
            program.constants[name] = torch.ops.statefield.route_orders(names, list(shape), torch.device("cpu"))
            specs.insert(first, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(held.name), name, None))
            first += 1
            known[names, shape] = held
        node.replace_all_uses_with(known[names, shape])
        program.graph.erase_node(node)
    program.graph_module.recompile()


def _varied(any_batch: bool, any_size: bool) -> str:
    free = [what for what, wanted in (("batch", any_batch), ("size", any_size)) if wanted]
    return f"any {' and '.join(free)}" if free else "these sizes"


def _first_lines(error: Exception) -> str:
    """What torch says, without the pages behind it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:400]}"

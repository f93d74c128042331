"""A program as an ONNX model: each operator is traced once for a set of shapes, and copied to wherever it is called.

A deep net calls one operator with the same shapes in every block, and its standard form has a hundred operations and
more. Traced anew for each call, forms were most of what torch walks through, three times. So the net is translated with
its operators whole, as calls of functions; these are traced beside it and put in the place of their calls at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from statefield.kernels.standard_forms import decompositions
from statefield.tasks.common.export.subject import Subject

__all__ = ["OPSET", "onnx_model"]

OPSET = 18
_DOMAIN = "statefield"
_BATCH = 2  # of the example with which a form is traced


def onnx_model(program: ExportedProgram, subject: Subject) -> Any:
    """The model, an `onnx.ModelProto`, of standard operations alone.

    Raises whatever torch's exporter raises.
    """
    import onnx_ir

    functions = _Functions()
    model = _translated(
        program,
        tuple(subject.inputs.values()),
        functions.callers(),
        input_names=list(subject.inputs),
        output_names=list(subject.outputs),
    )
    functions.put_in(model)
    _tidy(model)
    return onnx_ir.to_proto(model)


def _translated(
    program: ExportedProgram, inputs: tuple[Tensor, ...], callers: Mapping[Any, Callable[..., Any]], **options: Any
) -> Any:
    """The program as torch translates it, constants computed: a model of onnx_ir. `callers` translate our operators.

    Torch's `optimize=True` is left out for its rewriting by patterns, which took three quarters of an export's time;
    onnxruntime has its own, when it loads a file.
    """
    from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass
    from onnxscript import optimizer

    exported = torch.onnx.export(
        program,
        inputs,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
        optimize=False,
        custom_translation_table={
            torch.ops.aten.conv3d.default: _conv3d,
            torch.ops.aten.sort.stable: _stable_sort,
            **callers,
        },
        **options,
    )
    assert exported is not None
    InlinePass()(exported.model)  # of functions of torch's own
    optimizer.fold_constants(exported.model)
    RemoveUnusedNodesPass()(exported.model)
    return exported.model


def _conv3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    groups: int = 1,
) -> Any:
    """A convolution of volumes. onnxscript gives one without a bias a bias of shape [C, 2], which no runtime takes."""
    from onnxscript import opset18

    with_bias = (x, weight) if bias is None else (x, weight, bias)
    return opset18.Conv(
        *with_bias, strides=list(stride), pads=[*padding, *padding], dilations=list(dilation), group=groups
    )


def _stable_sort(x: Any, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Any:
    """Sorted values and their indices, which onnxscript has not: TopK of all, where of equals the first comes first."""
    from onnxscript import opset18

    operators: Any = opset18  # whose types know no values that are being traced
    count = operators.Gather(operators.Shape(x), operators.Constant(value_ints=[dim]))
    return operators.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def _tidy(model: Any) -> None:
    """Keep once what is there twice, drop what nobody reads and where in whose source an operation came from."""
    from onnx_ir import passes
    from onnx_ir.passes import common

    passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.ClearMetadataAndDocStringPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


class _Functions:
    """Our operators as functions of one model, by operator, shapes and settings."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Any] = {}

    def callers(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        """Operator -> what adds a call of its function to the model that is being translated."""
        return {operator: self._caller(operator, form) for operator, form in decompositions().items()}

    def put_in(self, model: Any) -> None:
        """Replace the calls in `model` by the operations of the functions."""
        from onnx_ir.passes.common import InlinePass

        for function in self._known.values():
            model.functions[function.identifier()] = function
        InlinePass()(model)

    def _caller(self, operator: Any, form: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            import onnx_ir
            from onnxscript import evaluator

            key = (operator, *map(_signature, arguments))
            if key not in self._known:
                name = f"{operator.name().split('::')[1]}_{len(self._known)}"
                self._known[key] = _function(name, form, arguments)
            function = self._known[key]
            given = [argument for argument in arguments if isinstance(argument, onnx_ir.Value)]
            node = onnx_ir.Node(_DOMAIN, function.name, given, num_outputs=len(function.outputs))
            evaluator.default().nodes.append(node)  # type: ignore[attr-defined]  # of torch's recorder of operations
            return node.outputs if len(node.outputs) > 1 else node.outputs[0]

        return call


def _function(name: str, form: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """A standard form as a function of onnx_ir, for arguments that are values of a model, or settings."""
    import onnx_ir

    examples = [_example(argument) if isinstance(argument, onnx_ir.Value) else argument for argument in arguments]
    tensors = tuple(example for example in examples if isinstance(example, Tensor))
    batch = Dim("batch", min=1)
    values = [argument for argument in arguments if isinstance(argument, onnx_ir.Value)]
    free = tuple({} if isinstance(_sides(value)[0], int) else {0: batch} for value in values)
    program = torch.export.export(_Form(form, examples), tensors, dynamic_shapes=(free,), strict=False)
    graph = _translated(program, tensors, {}).graph
    for node in graph:
        for value in node.outputs:
            value.shape = None  # the batch of a call may be several times that of the model
    for value in list(graph.initializers.values()):  # a function has none
        constant = onnx_ir.node("Constant", [], {"value": value.const_value})
        value.replace_all_uses_with(constant.outputs[0])
        graph.initializers.pop(value.name)
        graph.insert_before(graph[0], constant)
    return onnx_ir.Function(_DOMAIN, name, graph=graph, attributes=[])


class _Form(nn.Module):
    """A standard form with its settings, called with its tensors."""

    def __init__(self, form: Callable[..., Any], arguments: Sequence[Any]) -> None:
        super().__init__()
        self.form = form
        self.arguments = arguments

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        return self.form(*(next(given) if isinstance(known, Tensor) else known for known in self.arguments))


def _signature(argument: Any) -> Any:
    import onnx_ir

    if isinstance(argument, onnx_ir.Value):
        return argument.dtype, tuple(map(str, _sides(argument)))
    return tuple(argument) if isinstance(argument, list) else argument


def _example(value: Any) -> Tensor:
    """Zeros of a value's shape; the only side that may be unknown is the batch."""
    sides = [side if isinstance(side, int) else _BATCH for side in _sides(value)]
    return torch.zeros(sides, dtype=getattr(torch, value.dtype.numpy().name))


def _sides(value: Any) -> Sequence[Any]:
    """An int for every side that is known."""
    assert value.shape is not None  # torch sets the shapes of all it translates
    return tuple(value.shape)

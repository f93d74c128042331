"""Every operator, every implementation that runs on this machine's CPU, against the operator's reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from statefield.errors import ConfigError, KernelUnavailable, UnknownName
from statefield.kernels import _choice, implementations, native, use_kernels
from statefield.kernels import conformance as cases

FAMILIES = cases.families()
FAST = [
    (name, implementation)
    for name in FAMILIES
    for implementation in ("chunked", "native")
    if _choice.OPERATORS[name].has(implementation)
]
FAST_VARIANTS = [(*pair, variant) for pair in FAST for variant in FAMILIES[pair[0]].variants]
OPS = [name for name, family in FAMILIES.items() if family.op is not None]


@pytest.fixture(autouse=True)
def native_or_skip(request):
    chosen = request.node.callspec.params.get("implementation") if hasattr(request.node, "callspec") else None
    if chosen == "native" and native.unavailable():
        pytest.skip(native.unavailable())


def test_every_registered_operator_has_cases():
    assert cases.operators_without_cases() == []
    assert set(_choice.OPERATORS) == set(FAMILIES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "implementation", "variant"), FAST_VARIANTS)
def test_values_and_every_gradient_equal_the_reference(name, implementation, variant, dtype):
    family = FAMILIES[name]
    arguments = cases.draw(family, variant, dtype)
    with use_kernels("reference"):
        wanted = cases.values_and_gradients(family, arguments)
    with use_kernels(implementation):
        found = cases.values_and_gradients(family, arguments)
    assert cases.differences(found, wanted, dtype) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("name", "implementation"), FAST)
def test_sixteen_bit_inputs_give_the_float32_result_rounded_once(name, implementation, dtype):
    """Against the reference in float32 on the same rounded inputs: a state kept in 16 bits would be far outside."""
    family = FAMILIES[name]
    variant = family.odd
    short = cases.draw(family, variant, dtype)
    long = {n: v.detach().float().requires_grad_() if isinstance(v, Tensor) else v for n, v in short.items()}
    with use_kernels("reference"):
        wanted = cases.values_and_gradients(family, long)
    with use_kernels(implementation):
        found = cases.values_and_gradients(family, short)
    assert found["out.0"].dtype == dtype
    assert all(found[f"grad.{n}"].dtype == dtype for n in cases.tensors_of(short))
    rounded = {n: value.to(found[n].dtype) for n, value in wanted.items()}
    assert cases.differences(found, rounded, dtype) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("name", "implementation"), FAST)
def test_sixteen_bit_data_with_float32_parameters_equals_the_reference_in_float64(name, implementation, dtype):
    findings = cases.check(name, FAMILIES[name].odd, implementation, dtype=dtype)
    assert [finding for finding in findings if not finding.passed] == []


@pytest.mark.parametrize("memory", ["gaps", "slices"])
@pytest.mark.parametrize(("name", "implementation"), FAST)
def test_memory_order_does_not_matter(name, implementation, memory):
    """The same numbers with gaps between elements and axes out of order, and as slices of a wider projection."""
    family = FAMILIES[name]
    for variant in family.in_other_memory_orders():
        dense, loose = cases.draw(family, variant), cases.draw(family, variant, memory=memory)
        assert any(not value.is_contiguous() for value in cases.tensors_of(loose).values())
        with use_kernels(implementation):
            wanted, found = (cases.values_and_gradients(family, a) for a in (dense, loose))
        assert cases.differences(found, wanted, torch.float32) == []


@pytest.mark.parametrize(("name", "implementation"), FAST)
def test_a_backward_may_run_in_another_implementation_than_its_forward(name, implementation):
    """What a forward keeps means the same everywhere: `use_kernels` may end between the two."""
    family = FAMILIES[name]
    for first, second in ((implementation, "reference"), ("reference", implementation)):
        arguments = cases.draw(family, family.odd)
        leaves = list(cases.tensors_of(arguments).values())
        with use_kernels("reference"):
            wanted = cases.values_and_gradients(family, arguments)
        with use_kernels(first):
            outputs = cases.outputs_of(family, arguments)
        with use_kernels(second):
            grads = torch.autograd.grad(outputs, leaves, cases.cotangents(outputs))
        found = {f"out.{index}": out.detach() for index, out in enumerate(outputs)}
        found |= {f"grad.{key}": grad for key, grad in zip(cases.tensors_of(arguments), grads, strict=True)}
        assert cases.differences(found, wanted, torch.float32) == []


@pytest.fixture
def poisoned_memory():
    with cases.poisoned_memory():
        assert torch.zeros(1).new_empty(3).isnan().all()
        yield


@pytest.mark.parametrize(("name", "implementation"), FAST)
def test_every_element_is_written(name, implementation, poisoned_memory):
    family = FAMILIES[name]
    for variant in family.variants:
        with use_kernels(implementation):
            found = cases.values_and_gradients(family, cases.draw(family, variant))
        assert [n for n, value in found.items() if value.isnan().any()] == []


@pytest.mark.parametrize(("name", "implementation"), FAST)
def test_two_runs_are_equal_bit_for_bit(name, implementation):
    family = FAMILIES[name]
    for variant in family.variants:
        arguments = cases.draw(family, variant)
        with use_kernels(implementation):
            first, second = (cases.values_and_gradients(family, arguments) for _ in range(2))
        assert [n for n, value in first.items() if not torch.equal(value, second[n])] == []


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own reading of it
@pytest.mark.parametrize("name", OPS)
def test_operators_keep_the_rules_of_torch_library(name):
    family = FAMILIES[name]
    for variant in ("tiny", family.odd):
        torch.library.opcheck(family.op, family.op_arguments(cases.draw(family, variant, torch.float64)))


@pytest.mark.parametrize(("name", "implementation"), FAST)
def test_gradients_equal_finite_differences(name, implementation):
    family = FAMILIES[name]
    arguments = cases.draw(family, family.tiny, torch.float64)
    leaves = cases.tensors_of(arguments)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        return cases.outputs_of(family, arguments | dict(zip(leaves, values, strict=True)))

    with use_kernels(implementation):
        assert torch.autograd.gradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_compiles_as_one_graph(name):
    family = FAMILIES[name]
    arguments = cases.draw(family, family.odd)
    wanted = cases.values_and_gradients(family, arguments)
    torch.compiler.reset()
    compiled = torch.compile(family.function, fullgraph=True, backend="aot_eager")
    found = cases.values_and_gradients(_with_function(family, compiled), arguments)
    assert cases.differences(found, wanted, torch.float32) == []


def _with_function(family: cases.Family, function: Any) -> cases.Family:
    return cases.Family(**{**vars(family), "function": function})


class _Call(torch.nn.Module):
    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, tensors: dict[str, Tensor]) -> Any:
        return self.function(**tensors, **self.options)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_exports_to_a_graph_that_holds_the_operator(name):
    family = FAMILIES[name]
    arguments = cases.draw(family, family.odd)
    tensors = {n: value.detach() for n, value in cases.tensors_of(arguments).items()}
    options = {n: value for n, value in arguments.items() if n not in tensors}
    program = torch.export.export(_Call(family.function, options), (tensors,))
    called = {str(node.target) for node in program.graph.nodes}
    assert any(target.startswith("statefield.") for target in called)
    wanted, found = family.function(**tensors, **options), program.module()(tensors)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("name", "implementation"), FAST)
def test_autocast_keeps_the_computation_in_float32(name, implementation):
    family = FAMILIES[name]
    arguments = cases.draw(family, family.odd)
    short = {n: v.detach().bfloat16() if isinstance(v, Tensor) and v.dim() > 2 else v for n, v in arguments.items()}
    long = {n: v.float() if isinstance(v, Tensor) else v for n, v in short.items()}
    with use_kernels(implementation), torch.no_grad():
        wanted = cases.outputs_of(family, long)
        with torch.autocast("cpu", torch.bfloat16):
            found = cases.outputs_of(family, short)
    assert [out.dtype for out in found] == [torch.float32] * len(found)
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=TOLERANCE_32, atol=TOLERANCE_32)


TOLERANCE_32 = cases.TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_meta_tensors_give_shapes_without_computing(name):
    family = FAMILIES[name]
    for variant in family.variants:
        arguments = cases.draw(family, variant)
        real = cases.outputs_of(family, arguments)
        meta = cases.outputs_of(
            family, {n: v.detach().to("meta") if isinstance(v, Tensor) else v for n, v in arguments.items()}
        )
        assert [(m.shape, m.dtype, m.stride()) for m in meta] == [(r.shape, r.dtype, r.stride()) for r in real]
        assert all(m.is_meta for m in meta)


@pytest.mark.parametrize(("name", "implementation"), FAST)
def test_vmap_over_data_equals_a_loop(name, implementation):
    family = FAMILIES[name]
    variant = family.odd
    draws = [cases.draw(family, variant, seed=seed) for seed in range(2)]
    fixed = {n: v.detach() if isinstance(v, Tensor) else v for n, v in draws[0].items() if n not in family.mapped}
    stacked = {n: torch.stack([d[n].detach() for d in draws]) for n in family.mapped if n in draws[0]}
    with use_kernels(implementation):
        found = torch.vmap(lambda given: family.function(**fixed, **given))(stacked)
        found = found if isinstance(found, tuple) else (found,)
        looped = [cases.outputs_of(family, fixed | {n: v[i] for n, v in stacked.items()}) for i in range(2)]
    for place, got in enumerate(found):
        torch.testing.assert_close(got, torch.stack([out[place].detach() for out in looped]))


@pytest.mark.parametrize(("name", "parameter"), [("selective_scan", "A"), ("state_fusion", "weight")])
def test_vmap_over_parameters_is_refused_by_name(name, parameter):
    family = FAMILIES[name]
    arguments = cases.draw(family, family.tiny)
    given = {n: v.detach() if isinstance(v, Tensor) else v for n, v in arguments.items()}
    with pytest.raises(ConfigError, match=f"vmap over {parameter}"):
        torch.vmap(lambda value: family.function(**(given | {parameter: value})))(
            given[parameter].expand(2, *given[parameter].shape)
        )


@pytest.mark.parametrize("name", OPS)
def test_an_empty_batch_gives_empty_results_and_zero_gradients(name):
    family = FAMILIES[name]
    variant = family.odd
    arguments = {
        n: v.detach()[:0].requires_grad_() if n in family.mapped and isinstance(v, Tensor) else v
        for n, v in cases.draw(family, variant).items()
    }
    found = cases.values_and_gradients(family, arguments)
    assert found["out.0"].numel() == 0
    assert all(not value.any() for n, value in found.items() if n.startswith("grad."))


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "plain"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_instruction_set_of_this_cpu_equals_the_reference(name, isa, monkeypatch):
    if isa not in native.supported_isas():
        pytest.skip(f"this CPU and this build do not run {isa}")
    monkeypatch.setenv("STATEFIELD_ISA", isa)
    family = FAMILIES[name]
    for variant in family.variants:
        arguments = cases.draw(family, variant)
        with use_kernels("reference"):
            wanted = cases.values_and_gradients(family, arguments)
        with use_kernels("native"):
            found = cases.values_and_gradients(family, arguments)
        assert cases.differences(found, wanted, torch.float32) == []


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_any_number_of_threads_gives_the_same(name, threads):
    if native.unavailable():
        pytest.skip(native.unavailable())
    family = FAMILIES[name]
    before = torch.get_num_threads()
    try:
        for variant in family.variants:
            arguments = cases.draw(family, variant)
            with use_kernels("reference"):
                wanted = cases.values_and_gradients(family, arguments)
            torch.set_num_threads(threads)
            with use_kernels("native"):
                found = cases.values_and_gradients(family, arguments)
            assert cases.differences(found, wanted, torch.float32) == []
    finally:
        torch.set_num_threads(before)


def test_a_forced_implementation_that_cannot_run_is_an_error_that_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = cases.draw(FAMILIES["selective_scan"], "tiny")
    with use_kernels("triton"), pytest.raises(KernelUnavailable, match="triton implementation of selective_scan"):
        FAMILIES["selective_scan"].function(**arguments)


def test_an_unknown_implementation_is_an_error_with_a_suggestion(monkeypatch):
    with pytest.raises(UnknownName, match="did you mean 'native'"), use_kernels("nativ"):
        pass
    monkeypatch.setenv("STATEFIELD_KERNELS", "refrence")
    with pytest.raises(UnknownName, match="did you mean 'reference'"):
        implementations()


def test_exactly_one_implementation_is_chosen_for_each_operator_on_cpu():
    rows = [row for row in implementations() if row.device == "cpu"]
    for name in _choice.OPERATORS:
        assert [row.available for row in rows if row.op == name and row.chosen] == [True]
        assert all(bool(row.reason) != row.available for row in rows if row.op == name)


def test_without_a_native_library_the_chunked_form_runs_and_the_reason_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(native, "unavailable", lambda: "the native library was not built")
    family = FAMILIES["selective_scan"]
    operator = _choice.OPERATORS["selective_scan"]
    monkeypatch.setattr(operator, "chosen", {})
    arguments = cases.draw(family, "odd_grouped")
    with caplog.at_level("WARNING", logger="statefield"):
        cases.values_and_gradients(family, arguments)
        found = cases.values_and_gradients(family, arguments)
    assert len(caplog.messages) == 1
    assert "chunked" in caplog.messages[0] and "not built" in caplog.messages[0]
    with use_kernels("chunked"):
        wanted = cases.values_and_gradients(family, arguments)
    assert cases.differences(found, wanted, torch.float32) == []

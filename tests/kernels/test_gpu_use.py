"""The operators as programs on a GPU use them: compiled, recorded, on other streams and devices, under autocast."""

import pytest
import torch

from statefield.kernels import _choice, conformance, self_check

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch"),
]
FAMILIES = conformance.families()


@pytest.fixture(autouse=True)
def checked_anew(monkeypatch, tmp_path):
    for operator in _choice.OPERATORS.values():
        monkeypatch.setattr(operator, "chosen", {})
        monkeypatch.setattr(operator, "rejected", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def odd(name, device=DEVICE):
    return FAMILIES[name], conformance.draw(FAMILIES[name], FAMILIES[name].odd, device=device)


def without_gradients(arguments):
    return {n: value.detach() if isinstance(value, torch.Tensor) else value for n, value in arguments.items()}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []


def test_every_implementation_on_the_gpu_passes_the_self_check():
    rows = [row for row in self_check.self_check() if row.device == "cuda"]
    assert {row.op for row in rows if row.implementation == "triton"} == {
        name for name, operator in _choice.OPERATORS.items() if operator.has("triton")
    }
    assert [row for row in rows if row.problem] == []


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_first_use_takes_triton_and_rejects_nothing(name, caplog):
    family, arguments = odd(name)
    with caplog.at_level("WARNING", logger="statefield"):
        conformance.values_and_gradients(family, arguments)
    operator = _choice.OPERATORS[name]
    assert caplog.messages == [] and operator.rejected == {}
    if operator.has("triton"):
        assert operator.chosen["cuda", None].__name__ == operator.homes["triton"]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_compiled_by_inductor_it_gives_what_it_gives_by_itself(name):
    family, arguments = odd(name)
    wanted = conformance.values_and_gradients(family, arguments)
    torch.compiler.reset()
    compiled = torch.compile(family.function, fullgraph=True)
    leaves = conformance.tensors_of(arguments)
    outputs = compiled(**arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = torch.autograd.grad(outputs, list(leaves.values()), conformance.cotangents(outputs))
    found = {f"out.{place}": out.detach() for place, out in enumerate(outputs)}
    found |= {f"grad.{key}": grad for key, grad in zip(leaves, grads, strict=True)}
    assert conformance.differences(found, wanted, torch.float32) == []


@pytest.mark.parametrize("name", list(FAMILIES))
def test_recorded_in_a_cuda_graph_it_runs_again_on_new_numbers(name):
    family, arguments = odd(name)
    arguments = without_gradients(arguments)
    other = without_gradients(conformance.draw(family, family.odd, seed=1, device=DEVICE))
    with torch.no_grad():
        wanted = [out.clone() for out in conformance.outputs_of(family, other)]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            conformance.outputs_of(family, arguments)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = conformance.outputs_of(family, arguments)
        for key, value in conformance.tensors_of(arguments).items():
            value.copy_(other[key])
        graph.replay()
    assert all(torch.equal(out, expected) for out, expected in zip(outputs, wanted, strict=True))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_on_another_stream_it_waits_for_its_inputs(name):
    family, arguments = odd(name)
    wanted = conformance.values_and_gradients(family, arguments)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        torch.cuda._sleep(50_000_000)  # what the stream has to do first
        late = {
            key: value.detach().clone().requires_grad_() if value.is_floating_point() else value
            for key, value in arguments.items()
            if isinstance(value, torch.Tensor)
        }
        found = conformance.values_and_gradients(family, arguments | late)
    aside.synchronize()
    assert_equal(found, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("name", list(FAMILIES))
def test_on_a_gpu_that_is_not_the_current_one(name):
    family, arguments = odd(name, "cuda:1")
    found = conformance.values_and_gradients(family, arguments)
    assert {value.device.index for value in found.values()} == {1}
    wanted = conformance.values_and_gradients(*odd(name, "cuda:0"))
    assert (
        conformance.differences({key: value.to("cuda:0") for key, value in found.items()}, wanted, torch.float32) == []
    )


@pytest.mark.parametrize("name", list(FAMILIES))
def test_autocast_keeps_the_computation_in_float32(name):
    family, arguments = odd(name)
    arguments = without_gradients(arguments)
    wanted = conformance.outputs_of(family, arguments)
    with torch.autocast("cuda", torch.bfloat16):
        found = conformance.outputs_of(family, arguments)
    assert [out.dtype for out in found] == [torch.float32] * len(found)
    assert all(torch.equal(out, expected) for out, expected in zip(found, wanted, strict=True))

"""At its first use a kernel is compared with its reference, and replaced, loudly, where it is wrong."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from statefield.errors import ConfigError
from statefield.kernels import _choice, conformance, implementations, native, self_check, use_kernels
from statefield.kernels.selective_scan import chunked
from statefield.kernels.selective_scan import native as in_cpp

pytestmark = pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable() or "-")
FAMILY = conformance.family_of("selective_scan")


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch, tmp_path):
    """The registry as a new process has it, and a memory of its own."""
    for operator in _choice.OPERATORS.values():
        monkeypatch.setattr(operator, "chosen", {})
        monkeypatch.setattr(operator, "rejected", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("STATEFIELD_SELF_CHECK", raising=False)
    monkeypatch.delenv("STATEFIELD_KERNELS", raising=False)


@pytest.fixture
def checks(monkeypatch):
    """The checks that were made, as (operator, implementation)."""
    made = []
    right = self_check._error

    def counted(family, implementation, device):
        made.append((family.name, implementation))
        return right(family, implementation, device)

    monkeypatch.setattr(self_check, "_error", counted)
    return made


def forget_choices(monkeypatch):
    monkeypatch.setattr(_choice.OPERATORS["selective_scan"], "chosen", {})
    monkeypatch.setattr(_choice.OPERATORS["selective_scan"], "rejected", {})


def remembered(tmp_path):
    return sorted(file.name.rpartition("-")[0] for file in (tmp_path / "statefield" / "self_check").glob("*"))


def scan(variant="odd_grouped"):
    return conformance.values_and_gradients(FAMILY, conformance.draw(FAMILY, variant))


def by(implementation, variant="odd_grouped"):
    with use_kernels(implementation):
        return scan(variant)


def make_wrong(monkeypatch, module, change):
    right = module.forward
    monkeypatch.setattr(module, "forward", lambda *given: change(right(*given)))


def one_percent_more(result):
    return (result[0] * 1.01, *result[1:])


def test_a_wrong_kernel_is_replaced_by_the_next_and_said_once(monkeypatch, caplog):
    make_wrong(monkeypatch, in_cpp, one_percent_more)
    with caplog.at_level("WARNING", logger="statefield"):
        found, again = scan(), scan()
    wanted = by("chunked")
    assert all(torch.equal(found[name], wanted[name]) and torch.equal(again[name], wanted[name]) for name in wanted)
    wrong, slower = caplog.records
    assert wrong.levelname == "ERROR"
    assert "native implementation of selective_scan is WRONG" in wrong.message and "1.0e-02" in wrong.message
    assert "chunked implementation, which is slower" in slower.message
    rows = {row.implementation: row for row in implementations() if (row.op, row.device) == ("selective_scan", "cpu")}
    assert rows["chunked"].chosen and rows["native"].can_run and not rows["native"].available
    assert "wrong on this machine" in rows["native"].reason


def test_a_wrong_gradient_is_seen_too(monkeypatch, caplog):
    right = in_cpp.backward
    monkeypatch.setattr(in_cpp, "backward", lambda *given: (right(*given)[0] * 1.01, *right(*given)[1:]))
    scan()
    assert "native implementation of selective_scan is WRONG" in caplog.records[0].message


def test_a_kernel_that_gives_nan_or_fails_is_replaced(monkeypatch, caplog):
    make_wrong(monkeypatch, in_cpp, lambda result: (result[0] * torch.nan, *result[1:]))
    assert not scan()["out.0"].isnan().any()
    assert "differs from the reference by nan" in caplog.records[0].message
    forget_choices(monkeypatch)
    caplog.clear()

    def fails(*given):
        raise OSError("illegal instruction")

    monkeypatch.setattr(in_cpp, "forward", fails)
    assert torch.equal(scan()["out.0"], by("chunked")["out.0"])
    assert "it failed with OSError: illegal instruction" in caplog.records[0].message


def test_where_all_fast_ones_are_wrong_the_reference_runs(monkeypatch):
    make_wrong(monkeypatch, in_cpp, one_percent_more)
    make_wrong(monkeypatch, chunked, one_percent_more)
    found, wanted = scan(), by("reference")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_right_kernel_is_checked_once_for_an_installation(monkeypatch, tmp_path, checks):
    scan()
    scan("one_step")
    assert checks == [("selective_scan", "native")]
    assert remembered(tmp_path) == ["selective_scan-native-cpu"]
    forget_choices(monkeypatch)  # as another process would begin
    scan()
    assert checks == [("selective_scan", "native")]


@pytest.mark.parametrize("changed", ["torch", "our code", "the library's file"])
def test_another_torch_or_build_is_checked_anew(monkeypatch, tmp_path, checks, changed):
    scan()
    forget_choices(monkeypatch)
    if changed == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0")
    elif changed == "our code":
        monkeypatch.setattr(self_check, "_sources", lambda: "changed")
    else:
        other = tmp_path / "other.so"
        other.write_bytes(b"")
        monkeypatch.setattr(native, "library_path", lambda: other)
    scan()
    assert checks == [("selective_scan", "native")] * 2


def test_that_a_kernel_was_wrong_is_found_anew_by_every_process(monkeypatch, tmp_path, checks):
    make_wrong(monkeypatch, in_cpp, one_percent_more)
    scan()
    forget_choices(monkeypatch)
    scan()
    assert checks == [("selective_scan", "native"), ("selective_scan", "chunked"), ("selective_scan", "native")]
    assert remembered(tmp_path) == ["selective_scan-chunked-cpu"]


def test_what_is_forced_runs_unchecked(checks):
    by("chunked")
    by("native")
    assert checks == []


def test_checks_can_be_turned_off(monkeypatch, checks):
    monkeypatch.setenv("STATEFIELD_SELF_CHECK", "0")
    make_wrong(monkeypatch, in_cpp, one_percent_more)
    assert torch.equal(scan()["out.0"], by("native")["out.0"])
    assert checks == []
    forget_choices(monkeypatch)
    monkeypatch.setenv("STATEFIELD_SELF_CHECK", "no")
    with pytest.raises(ConfigError, match="STATEFIELD_SELF_CHECK is 'no'"):
        scan()


def test_a_memory_that_cannot_be_written_costs_only_time(monkeypatch, tmp_path, checks):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    wanted = by("native")
    for _ in range(2):
        forget_choices(monkeypatch)
        assert torch.equal(scan()["out.0"], wanted["out.0"])
    assert checks == [("selective_scan", "native")] * 2


def _first_use(context, given):
    with context:
        return FAMILY.function(**given)


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")],
    ids=["no_grad", "inference_mode", "autocast", "default_device"],
)
def test_the_caller_s_modes_do_not_reach_the_check(checks, caplog, context):
    given = {n: v.detach() if isinstance(v, torch.Tensor) else v for n, v in conformance.draw(FAMILY, "tiny").items()}
    found = _first_use(context(), given)
    assert checks == [("selective_scan", "native")] and caplog.records == []
    with use_kernels("native"):
        wanted = FAMILY.function(**given)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_check_is_not_counted_nor_does_it_draw_from_the_global_generator(checks):
    given = conformance.draw(FAMILY, "tiny")
    with use_kernels("native"), FlopCounterMode(display=False) as wanted:
        FAMILY.function(**given)
    before = torch.get_rng_state()
    with FlopCounterMode(display=False) as found:
        FAMILY.function(**given)
    assert checks == [("selective_scan", "native")]
    assert found.get_total_flops() == wanted.get_total_flops()
    assert torch.equal(torch.get_rng_state(), before)


def test_first_use_inside_compile_and_vmap_and_a_backward(checks):
    torch.compiler.reset()
    wanted = by("native")
    compiled = torch.compile(FAMILY.function, fullgraph=True, backend="aot_eager")
    arguments = conformance.draw(FAMILY, "odd_grouped")
    outputs = compiled(**arguments)
    assert all(torch.equal(out, wanted[f"out.{place}"]) for place, out in enumerate(outputs))

    _choice.OPERATORS["selective_scan"].chosen.clear()
    given = {n: v.detach() if isinstance(v, torch.Tensor) else v for n, v in conformance.draw(FAMILY, "tiny").items()}
    u = torch.stack([given.pop("u")] * 2)
    assert torch.vmap(lambda u: FAMILY.function(u=u, **given))(u)[0].shape == u.shape

    with use_kernels("native"):
        outputs = conformance.outputs_of(FAMILY, arguments)
    _choice.OPERATORS["selective_scan"].chosen.clear()
    leaves = conformance.tensors_of(arguments)
    grads = torch.autograd.grad(outputs, list(leaves.values()), conformance.cotangents(outputs))
    assert all(torch.equal(grad, wanted[f"grad.{name}"]) for name, grad in zip(leaves, grads, strict=True))
    assert checks == [("selective_scan", "native")]


def test_exporting_checks_nothing_and_the_exported_program_does(checks):
    class Scan(torch.nn.Module):
        def forward(self, u, delta, A, B, C):
            return FAMILY.function(u, delta, A, B, C)

    u, A, B = torch.randn(1, 2, 5), -torch.ones(2, 3), torch.randn(1, 3, 5)
    program = torch.export.export(Scan(), (u, u, A, B, B))
    assert checks == []
    program.module()(u, u, A, B, B)
    assert checks == [("selective_scan", "native")]


def test_other_threads_never_run_what_is_being_checked(monkeypatch):
    """While a wrong kernel is on trial, a thread beside it that has forced another gets that other."""
    on_trial, answered = threading.Event(), threading.Event()
    seen = []

    def wrong_and_slow(*given):
        on_trial.set()
        assert answered.wait(20)
        raise RuntimeError("wrong")

    monkeypatch.setattr(in_cpp, "forward", wrong_and_slow)

    def beside():
        assert on_trial.wait(20)
        seen.append(_choice.forced_implementation())
        seen.append(_choice.OPERATORS["state_fusion"].choice("cpu"))
        answered.set()

    thread = threading.Thread(target=beside)
    thread.start()
    scan()
    thread.join()
    assert seen == [None, "native"]


def test_two_threads_make_one_check(checks):
    threads = [threading.Thread(target=scan) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert checks == [("selective_scan", "native")]


@pytest.mark.parametrize("name", list(_choice.OPERATORS))
def test_every_operator_passes_its_first_use(name, caplog):
    family = conformance.family_of(name)
    with caplog.at_level("WARNING", logger="statefield"):
        conformance.values_and_gradients(family, conformance.draw(family, family.tiny))
    assert caplog.messages == []
    assert _choice.OPERATORS[name].rejected == {}


def test_nothing_is_checked_while_a_cuda_graph_records(monkeypatch, checks):
    operator = _choice.Operator(
        "selective_scan", {name: _choice.OPERATORS["selective_scan"].homes[name] for name in ("chunked", "reference")}
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert operator.implementation("cuda") is chunked
    assert checks == [] and operator.chosen == {}


def test_rounding_that_the_user_allows_is_no_fault(monkeypatch):
    allowed = {}
    for precision in ("highest", "high", "medium"):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
        allowed[precision] = self_check.ALLOWED[self_check._precision("cpu")]
    assert allowed["highest"] < 2**-11 < allowed["high"] < 2**-5 < allowed["medium"]  # TF32: 2^-11, bfloat16: 2^-8

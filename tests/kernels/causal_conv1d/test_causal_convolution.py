"""The causal convolution beside torch's own, in both directions, and its errors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from statefield.errors import ConfigError, ShapeError
from statefield.kernels import causal_conv1d, implementations, use_kernels

RUNNING_HERE = [
    row.implementation
    for row in implementations()
    if row.op == "causal_conv1d" and row.device == "cpu" and row.available
]


def _draw(taps=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for shape in ((2, 11, 50), (11, taps), (11,))]


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_it_is_torchs_padded_convolution_cut_and_activated(implementation, taps):
    x, weight, bias = _draw(taps)
    wanted = functional.conv1d(x, weight[:, None], bias, padding=taps - 1, groups=11)[..., :50]
    with use_kernels(implementation):
        torch.testing.assert_close(causal_conv1d(x, weight, bias), wanted, rtol=1e-5, atol=1e-5)
        found = causal_conv1d(x, weight, bias, "silu")
    torch.testing.assert_close(found, functional.silu(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_reverse_is_the_convolution_of_the_sequence_turned_round(implementation):
    x, weight, bias = _draw()
    with use_kernels(implementation):
        turned = causal_conv1d(x.flip(-1), weight, bias, "silu").flip(-1)
        torch.testing.assert_close(causal_conv1d(x, weight, bias, "silu", reverse=True), turned)


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_a_later_step_changes_no_earlier_output(implementation):
    x, weight, bias = _draw()
    changed = x.clone()
    changed[..., 20] = torch.nan
    with use_kernels(implementation):
        y = causal_conv1d(changed, weight, bias, "silu")
    assert y[..., :20].isfinite().all() and y[..., 20:24].isnan().all() and y[..., 24:].isfinite().all()


def test_arguments_that_do_not_fit_are_named():
    x, weight, bias = _draw()
    with pytest.raises(ShapeError, match="squeeze"):
        causal_conv1d(x, weight[:, None], bias)
    with pytest.raises(ShapeError, match=r"bias has shape \[10\]"):
        causal_conv1d(x, weight, bias[:10])
    with pytest.raises(ShapeError, match="x has shape"):
        causal_conv1d(x[0], weight, bias)
    with pytest.raises(ShapeError, match=r"weight is torch\.int64"):
        causal_conv1d(x, weight.long(), bias)
    with pytest.raises(ConfigError, match="activation is 'relu'"):
        causal_conv1d(x, weight, bias, "relu")
    with pytest.raises(ConfigError, match="layout"):
        causal_conv1d(x, weight, bias, layout="dbl")

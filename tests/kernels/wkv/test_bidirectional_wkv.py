"""Bidirectional WKV: what its options mean, by hand-worked sums, and what long or extreme inputs do."""

from __future__ import annotations

import math

import pytest
import torch

from statefield.errors import ConfigError, ShapeError
from statefield.kernels import implementations, use_kernels, wkv

RUNNING_HERE = [
    row.implementation for row in implementations() if row.op == "wkv" and row.device == "cpu" and row.available
]


def _draw(tokens, channels, *, batch=1, decay=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = (batch, tokens, channels)
    return (decay + randn(channels)) / tokens, randn(channels) / tokens, randn(*size), randn(*size)


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_three_tokens_by_hand(implementation):
    """w = log 2, u = log 3, keys log 1, log 5, log 7. One chunk of three tokens: its first has no second weight."""
    w, u = torch.tensor([math.log(2.0)]), torch.tensor([math.log(3.0)])
    k = torch.tensor([1.0, 5.0, 7.0]).log().view(1, 3, 1)
    v = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1)
    with use_kernels(implementation):
        paper, kernel = wkv(w, u, k, v, mode="paper").flatten(), wkv(w, u, k, v, splits=1).flatten()
    rows = [
        [3, 5, 7 / 2],
        [1, 15, 7],
        [1 / 2, 5, 21],
    ]
    assert paper.tolist() == pytest.approx([_mean(row) for row in rows], rel=1e-6)
    # behind: one step further; the second weight of tokens 1, 2 on themselves (1 - 2) and of 1 seen from 2, twice that
    rows = [
        [3, 5 / 2, 7 / 4],
        [1, 15 - 5, 7 / 2],
        [1 / 2, 5 - 5 * 2, 21 - 7],
    ]
    assert kernel.tolist() == pytest.approx([_mean(row) for row in rows], rel=1e-5)


def _mean(weights):
    return sum(weight * value for weight, value in zip(weights, (1, 10, 100), strict=True)) / sum(weights)


@pytest.mark.parametrize("tokens", [196, 333])
def test_the_two_modes_differ_a_little_as_the_official_kernel_does_from_the_paper(tokens):
    w, u, k, v = _draw(tokens, 16)
    apart = (wkv(w, u, k, v) - wkv(w, u, k, v, mode="paper")).abs().max()
    assert 1e-5 < apart < 5e-3


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_the_official_gradient_differs_in_keys_and_values_alone(implementation):
    given = [x.requires_grad_() for x in _draw(67, 5)]
    cotangent = torch.randn(1, 67, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with use_kernels(implementation):
        exact = torch.autograd.grad(wkv(*given), given, cotangent)
        official = torch.autograd.grad(wkv(*given, gradient="official"), given, cotangent)
        paper = [
            torch.autograd.grad(wkv(*given, mode="paper", gradient=g), given, cotangent) for g in ("exact", "official")
        ]
    torch.testing.assert_close(official[:2], exact[:2])
    for ours, theirs in zip(exact[2:], official[2:], strict=True):
        assert 1e-5 < (ours - theirs).abs().max() < 0.1
    torch.testing.assert_close(paper[0], paper[1], rtol=0, atol=0)


@pytest.mark.parametrize("implementation", sorted(set(RUNNING_HERE) - {"reference"}))
def test_rounding_does_not_add_up_over_a_long_sequence(implementation):
    """exp(-w) in float32 is off by up to 6e-8, which 3000 steps would multiply."""
    given = _draw(3000, 3)
    with use_kernels("chunked"):
        wanted = wkv(*given)
    with use_kernels(implementation):
        found = wkv(*(x.float() for x in given))
    assert (found - wanted).abs().max() / wanted.abs().max() < 5e-6


@pytest.mark.parametrize("mode", ["kernel", "paper"])
@pytest.mark.parametrize("implementation", sorted(set(RUNNING_HERE) - {"reference"}))
def test_weights_far_outside_float32_give_the_same_mean(implementation, mode):
    """Keys between -300 and 300: exp of them is 0 or infinite in float32."""
    w, u, k, v = (x.float() for x in _draw(90, 7))
    k = 100 * k
    with use_kernels("reference"):
        wanted = wkv(*(x.double() for x in (w, u, k, v)), mode=mode)
    with use_kernels(implementation):
        found = wkv(w, u, k, v, mode=mode)
    assert (found - wanted).abs().max() < 1e-4


def test_arguments_that_do_not_fit_are_named():
    w, u, k, v = _draw(5, 3)
    with pytest.raises(ShapeError, match=r"w has shape \[2\], it has to be \[3\]"):
        wkv(w[:2], u, k, v)
    with pytest.raises(ShapeError, match="v has shape"):
        wkv(w, u, k, v[:, :4])
    with pytest.raises(ShapeError, match="T, C >= 1"):
        wkv(w, u, k[:, :0], v[:, :0])
    with pytest.raises(ShapeError, match=r"u is torch\.int64"):
        wkv(w, u.long(), k, v)
    with pytest.raises(ConfigError, match="mode is 'cuda'"):
        wkv(w, u, k, v, mode="cuda")
    with pytest.raises(ConfigError, match="gradient is"):
        wkv(w, u, k, v, gradient="paper")
    with pytest.raises(ConfigError, match="splits is 0"):
        wkv(w, u, k, v, splits=0)

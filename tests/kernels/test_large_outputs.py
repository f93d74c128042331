"""Outputs of 32 MiB and more take another way to memory (past the caches): the numbers must be the same."""

from __future__ import annotations

import pytest
import torch

from statefield.kernels import native, selective_scan, use_kernels


@pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable())
@pytest.mark.parametrize("channels", [8192, 8200, 8195], ids=["whole", "odd vectors", "odd channels"])
def test_a_scan_into_a_large_output_equals_the_scans_of_its_halves(channels):
    generator = torch.Generator().manual_seed(0)
    batch, length = 2, 520
    u, delta = torch.randn(2, batch, length, channels, generator=generator)
    B, C = torch.randn(2, batch, length, 1, generator=generator)
    A = -torch.rand(channels, 1, generator=generator)
    with use_kernels("native"):
        whole = selective_scan(u, delta, A, B, C, delta_softplus=True, layout="bld")
        halves = [
            selective_scan(
                u[i : i + 1], delta[i : i + 1], A, B[i : i + 1], C[i : i + 1], delta_softplus=True, layout="bld"
            )
            for i in range(batch)
        ]
    assert whole.numel() * 4 >= 32 << 20 > halves[0].numel() * 4
    assert torch.equal(whole, torch.cat(halves))

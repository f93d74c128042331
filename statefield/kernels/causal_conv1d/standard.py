"""The causal convolution in standard operations: its definition is that already, K shifted products."""

from __future__ import annotations

from statefield.kernels.causal_conv1d.reference import forward

__all__ = ["forward"]

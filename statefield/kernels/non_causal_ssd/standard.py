"""The non-causal state-space duality in standard operations: two products of matrices, as in chunked.py."""

from __future__ import annotations

from statefield.kernels.non_causal_ssd.chunked import forward

__all__ = ["forward"]

"""The hidden states of HSM-SSD in standard operations: a softmax and a product of matrices, as in chunked.py."""

from __future__ import annotations

from statefield.kernels.hsm_ssd.chunked import forward

__all__ = ["forward"]

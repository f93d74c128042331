"""Memory for large outputs: reused when free, never while it is in use, and bounded."""

from __future__ import annotations

import gc
import os
import threading

import pytest
import torch

from statefield.errors import ConfigError
from statefield.kernels.native.memory import RecycledMemory, _limit

MIB = 1 << 20
SHAPE = (3, 1 << 20)  # 12 MiB of float32


def test_memory_is_handed_out_again_once_no_tensor_shares_it():
    memory = RecycledMemory(64 * MIB)
    first = memory.empty(SHAPE, torch.float32)
    address, row = first.data_ptr(), first[1]
    assert address % (2 * MIB) == 0 and first.is_contiguous() and first.shape == SHAPE
    del first
    second = memory.empty(SHAPE, torch.float32)
    assert second.data_ptr() != address  # `row` still shares the first one's memory
    del row
    assert memory.unused > 0
    third = memory.empty((SHAPE[0] * SHAPE[1] // 2,), torch.float64)
    assert third.data_ptr() == address and memory.unused == 0


def test_a_block_serves_only_sizes_near_its_own():
    memory = RecycledMemory(64 * MIB)
    address = memory.empty((40 * MIB,), torch.uint8).data_ptr()
    held = memory.empty((16 * MIB,), torch.uint8)
    assert held.data_ptr() != address and memory.unused >= 40 * MIB
    assert memory.empty((36 * MIB,), torch.uint8).data_ptr() == address


def test_what_is_kept_stays_below_the_limit():
    memory = RecycledMemory(32 * MIB)
    tensors = [memory.empty((10 * MIB,), torch.uint8) for _ in range(6)]
    last = tensors[-1].data_ptr()
    while tensors:
        del tensors[0]
        assert memory.unused <= memory.limit
    assert memory.empty((10 * MIB,), torch.uint8).data_ptr() == last

    none = RecycledMemory(0)
    none.empty(SHAPE, torch.float32)
    assert none.unused == 0


def test_tensors_live_in_autograd_graphs_and_other_threads():
    memory = RecycledMemory(64 * MIB)
    x = memory.empty(SHAPE, torch.float32).fill_(2.0).requires_grad_()
    y = (x * x).sum()
    worker = threading.Thread(target=y.backward)
    worker.start()
    worker.join()
    assert torch.equal(x.grad, torch.full(SHAPE, 4.0))
    del x, y
    gc.collect()
    assert memory.unused > 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of a process with threads, from Python 3.12 on
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_a_copy_of_its_own():
    tensor = RecycledMemory(0).empty(SHAPE, torch.float32).zero_()
    child = os.fork()
    if child == 0:
        tensor.view(-1)[0] = 1.0
        os._exit(0)
    os.waitpid(child, 0)
    assert tensor.view(-1)[0] == 0


def test_the_limit_is_read_in_mib_and_a_wrong_one_is_named(monkeypatch):
    monkeypatch.setenv("STATEFIELD_RECYCLED_MIB", "3")
    assert _limit() == 3 * MIB
    monkeypatch.setenv("STATEFIELD_RECYCLED_MIB", "-1")
    with pytest.raises(ConfigError, match="STATEFIELD_RECYCLED_MIB='-1'"):
        _limit()

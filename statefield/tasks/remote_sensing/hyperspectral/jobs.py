"""Runs that do not depend on each other, in processes of one thread each, with their progress.

Small nets gain little from several threads of one process, and lose much where other programs want the cores as well;
processes of one thread each do not. A run's result is the same however many there are: each has one thread always.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits

T = TypeVar("T")
Report = Callable[[int, float], None]  # the number of a run and the share of it that is done
Work = Callable[..., T]  # (common, item, report) -> result

_messages: Any = None  # in a worker: where its progress goes
_common: Any = None  # in a worker: what all runs need


def run_all(work: Work[T], common: Any, items: Sequence[Any], *, jobs: int, report: Report) -> Iterator[tuple[int, T]]:
    """`work(common, item, report)` of each item: (its number, the result), in the order in which they end.

    Args:
        work: a function of a module, so that another process finds it; `report` takes the share that is done.
        common: sent to each process once. jobs: processes; with 1 it runs in this one.
        report: called in this process with the number of an item and the share of it that is done.

    Raises: what `work` raises; the runs that have not begun are given up.
    """
    if jobs <= 1 or len(items) <= 1:
        with one_thread():
            for number, item in enumerate(items):
                yield number, work(common, item, lambda share, number=number: report(number, share))
        return
    context = multiprocessing.get_context("spawn")  # forked copies of torch's thread pools may hang
    messages = context.Queue()
    workers = min(jobs, len(items))
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(messages, common)) as executor:
        waiting: dict[Future[T], int] = {
            executor.submit(_run, work, number, item): number for number, item in enumerate(items)
        }
        try:
            while waiting:
                ended, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                with contextlib.suppress(queue.Empty):
                    while True:
                        report(*messages.get_nowait())
                for future in ended:
                    yield waiting.pop(future), future.result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch, BLAS and OpenMP with one thread inside the block, and as before behind it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _begin(messages: Any, common: Any) -> None:
    global _messages, _common
    _messages, _common = messages, common
    torch.set_num_threads(1)
    threadpool_limits(1)  # for good: it is undone only where it is used as a block


def _run(work: Work[T], number: int, item: Any) -> T:
    return work(_common, item, lambda share: _messages.put((number, share)))

"""Sequences side by side, in as many threads as there are processors: NumPy lets others run while it computes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], size: Callable[[Item], int]) -> list[Result]:
    """`work(item)` of every item, in their order; the largest begin first.

    Raises: what `work` raises of the first item, in their order, for which it does.
    """
    workers = min(len(items), _processors())
    if workers < 2:
        return [work(item) for item in items]
    waiting = sorted(range(len(items)), key=lambda position: size(items[position]))
    results: dict[int, Result] = {}
    errors: dict[int, BaseException] = {}

    def run() -> None:
        while waiting and not errors:
            try:
                position = waiting.pop()
            except IndexError:
                return
            try:
                results[position] = work(items[position])
            except BaseException as error:
                errors[position] = error

    threads = [threading.Thread(target=run) for _ in range(workers - 1)]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        thread.join()
    for position in range(min(errors, default=-1) + 1):  # as if one had been after the other
        if position in errors:
            raise errors[position]
        if position not in results:
            work(items[position])
    return [results[position] for position in range(len(items))]


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

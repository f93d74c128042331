"""Timing side by side: contenders take turns, so that what slows the machine slows them all; medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Roofs:
    """What the machine reaches: the ceilings that kernels are held against.

    Attributes:
        copy_gbps: bytes read plus bytes written by `Tensor.copy_` between two tensors, in 1e9 bytes a second.
        exp_gps: exponentials by `torch.exp(out=)`, float32, in 1e9 a second; the better of a large and a cached tensor.
    """

    copy_gbps: float
    exp_gps: float


def race(contenders: Mapping[str, Callable[[], object]], *, seconds: float, rounds: int = 5) -> dict[str, float]:
    """The median time of each contender in seconds.

    In each round every contender runs some times in a row (one unmeasured, then as often as fits its share of the
    round). At least `rounds` rounds, then more until `seconds` have passed; a contender that takes longer than a third
    of a second runs in three rounds only.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    done = 0
    while done < rounds or time.perf_counter() - began < seconds:
        for name, run in contenders.items():
            slow = bool(samples[name]) and min(samples[name]) > 1 / 3
            if slow and len(samples[name]) >= 3:
                continue
            if not slow:
                run()
            share = seconds / rounds / len(contenders)
            until = time.perf_counter() + share
            while True:
                start = time.perf_counter()
                run()
                samples[name].append(time.perf_counter() - start)
                if time.perf_counter() >= until or slow:
                    break
        done += 1
    return {name: statistics.median(times) for name, times in samples.items()}


def in_turns(contenders: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Each contender's time in seconds in each round, after one round that is not measured.

    A round runs every contender once, one after the other: for calls of seconds, where the machine is another one a
    minute later and only neighbours can be compared (`median_ratio`).
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for done in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if done:
                times[name].append(time.perf_counter() - start)
    return times


def median_ratio(times: Mapping[str, list[float]], over: str, under: str) -> float:
    """The median over the rounds of `in_turns` of one contender's time divided by another's."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def roof_contenders(elements: int, exponentials: int) -> dict[str, Callable[[], object]]:
    """What measures the roofs, to be raced beside the kernels: see `roofs`. Sizes are those of the kernels' tensors."""
    source, target = torch.rand(elements), torch.empty(elements).fill_(0)
    large, large_out = torch.rand(exponentials), torch.empty(exponentials).fill_(0)
    cached, cached_out = torch.rand(1 << 16), torch.empty(1 << 16).fill_(0)
    return {
        "copy": lambda: target.copy_(source),
        "exp": lambda: torch.exp(large, out=large_out),
        "exp, cached": lambda: _repeat_exp(cached, cached_out, max(1, exponentials >> 20)),
    }


def _repeat_exp(x: Tensor, out: Tensor, times: int) -> None:
    for _ in range(times):
        torch.exp(x, out=out)


def roofs(times: Mapping[str, float], elements: int, exponentials: int) -> Roofs:
    """The roofs from the times of `roof_contenders(elements, exponentials)`."""
    cached = max(1, exponentials >> 20) * (1 << 16)
    return Roofs(
        copy_gbps=2 * 4 * elements / times["copy"] / 1e9,
        exp_gps=max(exponentials / times["exp"], cached / times["exp, cached"]) / 1e9,
    )

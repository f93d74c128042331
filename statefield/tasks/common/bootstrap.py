"""How sure a mean over cases is: the percentile bootstrap, with cases as the unit that is drawn."""

from __future__ import annotations

import numpy as np

NUM_RESAMPLES = 2000
_MOST_VALUES_AT_ONCE = 20_000_000  # 160 MB of float64


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval of `class_mean(values)` when whole cases are drawn with replacement.

    Args:
        values: float64 [cases, classes], NaN where a class has no score in a case.
        level: coverage in (0, 1).

    Returns:
        (low, high); (NaN, NaN) for fewer than two cases. Resamples without any score are left out.
    """
    num_cases = len(values)
    if num_cases < 2 or not np.isfinite(values).any():
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    step = max(1, _MOST_VALUES_AT_ONCE // max(1, values.size))
    means = []
    for first in range(0, num_resamples, step):
        drawn = rng.integers(0, num_cases, (min(step, num_resamples - first), num_cases))
        means.append(class_mean(values[drawn]))
    statistics = np.concatenate(means)
    low, high = np.nanpercentile(statistics, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def case_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the cases that have a score: [..., cases, classes] -> [..., classes], NaN where none has."""
    scored = np.isfinite(values)
    count = scored.sum(axis=-2)
    total = np.where(scored, values, 0.0).sum(axis=-2)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def class_mean(values: np.ndarray) -> np.ndarray:
    """Unweighted mean over the classes that have a score of their case means: [..., cases, classes] -> [...]."""
    per_class = case_mean(values)
    return case_mean(per_class[..., None])[..., 0]

"""Normalisation measures in passes over slices what numpy measures of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from statefield.tasks.common.config import NormalisationConfig
from statefield.tasks.common.normalisation import Intensities, apply, measure, normalise, percentiles

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, array_shapes(min_dims=1, max_dims=2, max_side=20), elements=FLOATS),
    st.tuples(st.floats(0, 100), st.floats(0, 100)).map(sorted),
)
def test_percentiles_are_those_of_numpy(values: np.ndarray, shares: list[float]) -> None:
    found = percentiles(lambda: iter(values), (shares[0], shares[1]))
    expected = np.percentile(values.astype(np.float64), shares)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * max(1e-30, np.abs(expected).max()))


def test_percentiles_pass_zero_minus_zero_and_repeats() -> None:
    values = np.float32([-0.0, 0.0, 0.0, 1e-45, -1e-45, 5, 5, 5])
    assert percentiles(lambda: iter([values]), (0, 100)) == (float(np.float32(-1e-45)), 5.0)
    assert percentiles(lambda: iter([values[:0]]), (0, 100)) is None


@pytest.mark.parametrize("method", ["zscore", "zscore_nonzero"])
@pytest.mark.parametrize("clip", [None, (0.5, 99.5)])
def test_z_scores_are_those_of_numpy(method: str, clip: tuple[float, float] | None) -> None:
    rng = np.random.default_rng(0)
    image = (rng.normal(300, 40, (2, 7, 9, 8)) * (rng.random((2, 7, 9, 8)) > 0.3)).astype(np.float32)
    image[1, 2] = 0  # a slice without anything to count
    made = normalise(image, NormalisationConfig(method=method, clip_percentiles=clip))
    for values, found in zip(image, made, strict=True):
        counted = values != 0 if method == "zscore_nonzero" else np.ones_like(values, dtype=bool)
        chosen = values[counted].astype(np.float64)
        low, high = np.percentile(chosen, clip) if clip else (-np.inf, np.inf)
        clipped = chosen.clip(low, high)
        expected = np.where(counted, (values.clip(low, high) - clipped.mean()) / clipped.std(), 0)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_photograph_is_one_slice() -> None:
    image = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
    config = NormalisationConfig()
    assert np.array_equal(normalise(image, config), normalise(image[:, None], config)[:, 0])


def test_slabs_measured_and_applied_are_the_whole_bit_for_bit() -> None:
    image = np.random.default_rng(1).gamma(2, 50, (1, 11, 6, 7)).astype(np.float32)
    config = NormalisationConfig(clip_percentiles=(1, 98))
    passes = 0

    def slices():
        nonlocal passes
        passes += 1
        return iter(image[0].copy())

    intensities = measure(slices, config)
    assert passes == 3
    parts = [apply(image[0, start : start + 4], config, intensities) for start in (0, 4, 8)]
    assert np.array_equal(np.concatenate(parts), normalise(image, config)[0])


def test_nothing_is_measured_where_the_settings_say_all() -> None:
    config = NormalisationConfig(method="range", low=0, high=10)

    def refuse():
        raise AssertionError("read")

    assert measure(refuse, config) == Intensities()

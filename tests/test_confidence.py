"""The confidence of a run's numbers covers the truth about as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from solvers.evaluate.confidence import FEWEST_BATCHES, Estimate, half_width, mean, quantile

RUNS = 300


def coverage(hits: list[bool]) -> tuple[float, float]:
    """Share of hits, and five standard errors of a share of 0.95."""
    return sum(hits) / len(hits), 5 * math.sqrt(0.95 * 0.05 / len(hits))


def correlated(rng: np.random.Generator, count: int, keep: float = 0.8) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Normal values of variance 1 that follow each other with correlation ``keep``."""
    values = np.empty(count)
    values[0] = rng.normal()
    for i, push in enumerate(rng.normal(0.0, math.sqrt(1 - keep**2), count - 1), start=1):
        values[i] = keep * values[i - 1] + push
    return values


def test_the_interval_of_a_mean_covers_it_though_values_depend_on_each_other() -> None:
    rng = np.random.default_rng(1)
    estimates = [mean(correlated(rng, 2000)) for _ in range(RUNS)]
    share, slack = coverage([abs(e.value) <= e.half_width for e in estimates])
    assert abs(share - 0.95) < slack + 0.02  # batches of 100 still depend on each other a little


def test_the_interval_of_a_percentile_covers_it() -> None:
    rng = np.random.default_rng(2)
    estimates = [quantile(rng.exponential(1.0, 4000), 0.95) for _ in range(RUNS)]
    share, slack = coverage([abs(e.value - math.log(20)) <= e.half_width for e in estimates])
    assert abs(share - 0.95) < slack


def test_a_run_too_short_to_say_says_so() -> None:
    assert math.isnan(quantile(np.arange(100.0), 0.99).half_width)
    assert quantile(np.arange(100.0), 0.99).value == 98.0
    assert math.isnan(mean(np.zeros(0)).value)
    assert math.isnan(half_width(1.0, [1.0] * (FEWEST_BATCHES - 1)))


def test_ends_of_an_interval() -> None:
    assert (Estimate(value=2.0, half_width=0.5).low, Estimate(value=2.0, half_width=0.5).high) == (1.5, 2.5)
    assert Estimate(value=2.0).low == Estimate(value=2.0).high == 2.0


@pytest.mark.parametrize("count", [40, 400])
def test_values_that_are_all_alike_leave_no_doubt(count: int) -> None:
    assert mean(np.full(count, 3.0)) == Estimate(value=3.0, half_width=0.0)

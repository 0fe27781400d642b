"""Demand from a load history: fast up, slowly down, noise allowed for."""

from __future__ import annotations

import random
from statistics import NormalDist, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.errors import InvalidInput
from solvers.forecast import HOLD_S, MAX_GROWTH_RATIO, Load, expected_demand


def steady(rate: float, seconds: int = 600, step: int = 30, window_s: float = 60.0) -> list[Load]:
    return [(float(t), rate, window_s) for t in range(0, seconds + 1, step)]


def ask(history: list[Load], quantile: float = 0.9, horizon_s: float = 120.0, now_s: float | None = None) -> float:
    at_s = max(time_s for time_s, _, _ in history) if now_s is None else now_s
    return expected_demand(history, now_s=at_s, horizon_s=horizon_s, quantile=quantile)


def test_a_steady_load_is_planned_at_its_poisson_quantile() -> None:
    assert ask(steady(9.0), quantile=0.5) == pytest.approx(9.0)
    assert ask(steady(9.0), quantile=0.9) == pytest.approx(9.0 + 1.2816 * (9.0 / 60.0) ** 0.5, abs=1e-3)


def test_a_surge_counts_at_once() -> None:
    assert ask([*steady(10.0), (630.0, 25.0, 60.0)]) >= 25.0


def test_a_jump_is_a_new_level_and_neither_a_slope_nor_a_scatter() -> None:
    jump = [*steady(90.0, seconds=300, step=60), *((360.0 + t, 160.0, 60.0) for t in range(0, 241, 60))]
    assert ask(jump, quantile=0.5, horizon_s=600.0) == pytest.approx(160.0)
    assert ask(jump, quantile=0.9, horizon_s=600.0) == pytest.approx(160.0 + 1.2816 * (160.0 / 60.0) ** 0.5, abs=1e-3)


def test_a_load_that_varies_more_than_requests_by_chance_is_planned_higher() -> None:
    rng, z = random.Random(5), NormalDist()
    found = []
    for _ in range(200):
        bursts = [(float(t), max(0.0, rng.gauss(100.0, 20.0)), 60.0) for t in range(0, 601, 60)]
        high, higher = (ask(bursts, quantile=z.cdf(sigmas), horizon_s=0.0) for sigmas in (4.0, 5.0))
        found.append(higher - high)
    # One deviation of 20 apart. The median of nine steps errs by about 40 %, that of two hundred such by 4 %.
    assert median(found) == pytest.approx(20.0, rel=0.15)


def test_a_dip_is_waited_out_and_a_lasting_fall_followed() -> None:
    fall = [*steady(20.0), *((600.0 + t, 5.0, 60.0) for t in range(30, int(HOLD_S) + 600, 30))]
    early = [sample for sample in fall if sample[0] <= 660.0]
    assert ask(early) >= 20.0
    assert ask(fall) < 7.0


def test_a_rising_load_is_planned_ahead_but_not_beyond_the_bound() -> None:
    ramp = [(float(t), 10.0 + 0.02 * t, 60.0) for t in range(0, 601, 30)]
    last = ramp[-1][1]
    assert ask(ramp, quantile=0.5) == pytest.approx(last + 0.02 * 120.0, rel=0.01)
    assert ask(ramp, quantile=0.5, horizon_s=1e6) == pytest.approx(last * (1 + MAX_GROWTH_RATIO), rel=1e-6)


def test_noise_alone_makes_no_trend() -> None:
    rng = random.Random(4)
    far, near = [], []
    for _ in range(200):
        noisy = [(float(t), max(0.0, rng.gauss(10.0, 1.0)), 60.0) for t in range(0, 601, 30)]
        far.append(ask(noisy, quantile=0.5, horizon_s=120.0))
        near.append(ask(noisy, quantile=0.5, horizon_s=0.0))
    moved = sum(f > n for f, n in zip(far, near, strict=True))
    # Slopes beyond two standard errors upwards: 3.8 % of noise (t with 9 degrees); 16 of 200 is 3 sigma above 7.7.
    assert moved <= 16


def test_overlapping_windows_do_not_fake_a_trend() -> None:
    often = [(float(t), 10.0 + min(t, 60) / 60.0, 600.0) for t in range(0, 601, 5)]
    assert ask(often, quantile=0.5, horizon_s=1000.0) == pytest.approx(11.0)


def test_zero_load_is_zero_and_no_load_history_is_an_error() -> None:
    assert ask(steady(0.0)) == 0.0
    with pytest.raises(InvalidInput, match="no sample up to 5 s; hold what runs"):
        expected_demand([(10.0, 1.0, 60.0)], now_s=5.0, horizon_s=0.0, quantile=0.9)


@pytest.mark.parametrize(
    ("quantile", "rate", "window_s"), [(1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (0.5, -1.0, 1.0), (0.5, 1.0, 0.0)]
)
def test_nonsense_is_refused(quantile: float, rate: float, window_s: float) -> None:
    with pytest.raises(InvalidInput):
        expected_demand([(0.0, rate, window_s)], now_s=0.0, horizon_s=0.0, quantile=quantile)


@given(
    st.lists(
        st.tuples(st.integers(0, 2000), st.floats(0, 1e4), st.sampled_from([15.0, 60.0])), min_size=1, max_size=40
    ),
    st.floats(0.5, 0.99),
)
def test_never_below_the_newest_sample_and_more_quantile_is_never_less(rows: list[Load], quantile: float) -> None:
    history = [(float(t), rate, window) for t, rate, window in rows]
    newest = max(history)[1]
    low, high = ask(history, quantile=0.5), ask(history, quantile=quantile)
    assert newest - 1e-9 <= low <= high + 1e-9
    assert ask(history[::-1], quantile=quantile) == pytest.approx(high, rel=1e-9, abs=1e-9)

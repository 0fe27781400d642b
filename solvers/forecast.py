"""From a short load history to the demand that planning uses: a quantile at a horizon.

Level plus a bounded trend plus what the load varies by. Up fast, down slowly: a rising load counts at once, a falling
one only after it stayed low for ``HOLD_S``, because a replica too many costs minutes of its price and one too few
breaks SLOs for a whole cold start.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from statistics import NormalDist, fmean, median

from solvers.errors import InvalidInput

Load = tuple[float, float, float]
"""``(time_s, requests_per_s, window_s)``: the mean rate over the window that ended at the time."""

LEVEL_S = 90.0  # the level is the mean over so long; one minute's rate alone is mostly noise
TREND_S = 600.0  # a slope needs several windows to stand out from Poisson noise
HOLD_S = 300.0  # two to three cold starts: a dip shorter than that is not worth a stop and a start
MAX_GROWTH_RATIO = 0.5  # of the level until the horizon; steeper slopes are mostly noise
MIN_TREND_SAMPLES = 5
MEDIAN_TO_DEVIATION = 1.4826  # of a normal distribution: standard deviation over median absolute deviation
TREND_ERRORS = 2.0  # standard errors that a slope must exceed to be believed


def expected_demand(history: Sequence[Load], *, now_s: float, horizon_s: float, quantile: float) -> float:
    r"""Forecast the load at the horizon, at a quantile.

    .. math:: \max(\ell + \min(\max(b,0)\,h, g\,\ell) + z_q \sqrt{\max(s^2, \ell/w)}, \text{floor})

    with level :math:`\ell`, slope :math:`b` over the last ten minutes (only when it exceeds two standard errors, and
    never more than the median slope between neighbours: one jump is a new level, no slope), scatter :math:`s` of the
    samples from one to the next, and the Poisson variance :math:`\ell/w` of one window's mean.
    The floor is the highest level of the last five minutes.

    Parameters
    ----------
    history : sequence of (time_s, requests_per_s, window_s)
        In any order; samples after ``now_s`` do not count.
    now_s, horizon_s : float, s
        Time of asking, and how far ahead; at least a cold start.
    quantile : float
        Between 0 and 1; 0.5 plans for the expectation.

    Returns
    -------
    float, requests per second
        Not below the newest sample's level.

    Raises
    ------
    InvalidInput
        On an empty history ("no load" is a sample of 0.0), and on a quantile or window that is none.

    Examples
    --------
    >>> expected_demand([(0.0, 4.0, 60.0), (60.0, 4.0, 60.0)], now_s=60.0, horizon_s=120.0, quantile=0.5)
    4.0
    """
    samples = _checked(history, now_s, quantile)
    level = _level(samples, samples[-1][0])
    window_s = median(sample[2] for sample in samples)
    slope, scatter = _trend(_apart([sample for sample in samples if sample[0] > samples[-1][0] - TREND_S]))
    growth = min(max(slope, 0.0) * max(horizon_s, 0.0), MAX_GROWTH_RATIO * level)
    spread = NormalDist().inv_cdf(quantile) * sqrt(max(scatter**2, level / window_s))
    floor = max(_level(samples, at_s) for at_s, _, _ in samples if at_s > now_s - HOLD_S or at_s == samples[-1][0])
    return max(level + growth + spread, floor, 0.0)


def _checked(history: Sequence[Load], now_s: float, quantile: float) -> list[Load]:
    samples = sorted(sample for sample in history if sample[0] <= now_s)
    if not samples:
        raise InvalidInput(
            "load history", "", f"has no sample up to {now_s:.0f} s", "hold what runs until there is one"
        )
    if not 0.0 < quantile < 1.0:
        raise InvalidInput("load history", "quantile", f"is {quantile}", "use a number between 0 and 1, as 0.9")
    bad = next((s for s in samples if not s[2] > 0.0 or not 0.0 <= s[1] < float("inf")), None)
    if bad is not None:
        problem = f"sample at {bad[0]:.0f} s has {bad[1]} requests/s over {bad[2]} s"
        raise InvalidInput("load history", "", problem, "rates are finite and not negative, windows longer than 0 s")
    return samples


def _level(samples: Sequence[Load], at_s: float) -> float:
    """Mean of the samples of the last minute and a half, but never below the newest."""
    recent = [rate for time_s, rate, _ in samples if at_s - LEVEL_S < time_s <= at_s]
    return max(fmean(recent), recent[-1])


def _apart(samples: Sequence[Load]) -> list[Load]:
    """Thin out to windows that do not overlap, newest first: overlapping ones err together and fake a slope."""
    kept: list[Load] = []
    for sample in reversed(samples):
        if not kept or sample[0] <= kept[-1][0] - kept[-1][2]:
            kept.append(sample)
    return kept


def _trend(samples: Sequence[Load]) -> tuple[float, float]:
    """Slope (0 unless it stands out) and the scatter of neighbouring samples; newest first."""
    rates = [rate for _, rate, _ in samples]
    if len(samples) < MIN_TREND_SAMPLES:
        return 0.0, 0.0
    mean_s, mean_rate = fmean(time_s for time_s, _, _ in samples), fmean(rates)
    spread_s = sum((time_s - mean_s) ** 2 for time_s, _, _ in samples)
    if spread_s <= 0.0:
        return 0.0, _scatter(samples)
    slope = sum((time_s - mean_s) * (rate - mean_rate) for time_s, rate, _ in samples) / spread_s
    residuals = [rate - mean_rate - slope * (time_s - mean_s) for time_s, rate, _ in samples]
    error = sqrt(sum(r * r for r in residuals) / (len(samples) - 2) / spread_s)
    is_believed = abs(slope) > TREND_ERRORS * error
    return min(slope, _usual_slope(samples)) if is_believed else 0.0, _scatter(samples)


def _usual_slope(samples: Sequence[Load]) -> float:
    """Median slope between neighbours: a jump of the load counts once among them, a ramp every time."""
    return median((one[1] - other[1]) / (one[0] - other[0]) for one, other in pairwise(samples))


def _scatter(samples: Sequence[Load]) -> float:
    """Standard deviation of one sample, from the median step between neighbours: no jump, no ramp adds to it.

    Source: the correction for few samples is that of Croux and Rousseeuw, "Time-efficient algorithms for two highly
    robust estimators of scale" (1992).
    """
    steps = [one[1] - other[1] for one, other in pairwise(samples)]
    usual, few = median(steps), len(steps) / (len(steps) - 0.8)
    return few * MEDIAN_TO_DEVIATION * median(abs(step - usual) for step in steps) / sqrt(2.0)

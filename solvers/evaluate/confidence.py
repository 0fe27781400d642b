r"""How far a number of one run can be trusted: batch means, and sectioning for percentiles.

A run is cut into ``BATCHES`` stretches of consecutive requests (or of time). Requests of one stretch depend on each
other, stretches hardly do, so the scatter of the stretches' own values says how far the whole run's value may be off:

.. math:: h = t_{0.975,\,b-1} \sqrt{\frac{1}{b(b-1)} \sum_i (y_i - y)^2}

with :math:`y` the value of the whole run (sectioning: centred there, because a percentile of a short stretch is
biased and the mean of such would be too).

Source: Asmussen and Glynn, "Stochastic Simulation" (2007), chapter IV.5 (batch means) and III.5a (sectioning).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

BATCHES = 20
FEWEST_BATCHES = 5
BEYOND = 4  # values above the percentile that a batch should hold, or its own percentile is its largest value
METHOD = "95 % half-width by sectioning (batch means over consecutive requests)"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value of a run and the half-width of its 95 % interval; NaN where the run is too short to say."""

    value: float
    half_width: float = nan

    @property
    def low(self) -> float:
        """Lower end; the value itself where the width is unknown."""
        return self.value if isnan(self.half_width) else self.value - self.half_width

    @property
    def high(self) -> float:
        """Upper end; the value itself where the width is unknown."""
        return self.value if isnan(self.half_width) else self.value + self.half_width


NOTHING = Estimate(value=nan)


def half_width(whole: float, parts: Sequence[float]) -> float:
    """Half-width around a value from the same statistic of each batch; NaN with fewer than ``FEWEST_BATCHES``."""
    known = [part for part in parts if not isnan(part)]
    if len(known) < FEWEST_BATCHES:
        return nan
    spread = sum((part - whole) ** 2 for part in known) / (len(known) * (len(known) - 1))
    return float(stdtrit(len(known) - 1, 0.975)) * sqrt(spread)


def mean(values: Floats) -> Estimate:
    """Estimate a mean from values in order of time, (N,)."""
    return _estimate(values, lambda part: float(part.mean()), BATCHES)


def quantile(values: Floats, ratio: float) -> Estimate:
    """Estimate a percentile from values in order of time, (N,)."""
    fits = int(len(values) * (1.0 - ratio) / BEYOND)
    return _estimate(values, lambda part: float(np.quantile(part, ratio, method="inverted_cdf")), min(BATCHES, fits))


def _estimate(values: Floats, statistic: Callable[[Floats], float], batches: int) -> Estimate:
    if not len(values):
        return NOTHING
    whole = statistic(values)
    if batches < FEWEST_BATCHES or len(values) < 2 * batches:
        return Estimate(value=whole)
    parts = [statistic(part) for part in np.array_split(values, batches)]
    return Estimate(value=whole, half_width=half_width(whole, parts))

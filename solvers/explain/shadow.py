"""What one more or one less of something is worth, as values that need no solver to read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ShadowPrice:
    """What one more and one less of a limit's units are worth, USD per hour and unit, and how far that holds.

    Attributes
    ----------
    more_holds_for, less_holds_for : float
        Units up to which the price is within a tenth of what is said.
    """

    limit: str
    subject: str
    unit: str
    more_usd_per_hour: float
    more_holds_for: float
    less_usd_per_hour: float
    less_holds_for: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One loss, and what it is predicted to change, USD per hour; see ``predict.Prediction``."""

    change: str
    low_usd_per_hour: float
    expected_usd_per_hour: float
    high_usd_per_hour: float
    short: tuple[str, ...]
    keeps_cuts: bool = False

"""Pools of a service as the check of a bound counts them: what sizes carry and cost, exact where they were asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from solvers.engine import Role

PREFILL = Role.PREFILL
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEAR = 1e-6  # of a part; far above the rounding of a division
FAR = 1.1  # times the cheapest rate of a role; dearer pools count as one until a value rests on them
MOST_APART = 3  # pools of a role told apart to begin with
CURVE_ENDS = 64  # replicas; the sizing knows no further economies of scale
MOST_TOLD = 400  # replicas of a pool up to which sizes are told apart once a value rests on more than those above
BEYOND = -1  # a size: more than those told apart
FIRST_SIZES = (4, 16)


@dataclass(slots=True, kw_only=True)
class Stock:
    """One pool (at one power cap) of one service, with what its replicas cost where.

    Attributes
    ----------
    pair : tuple
        The same for all caps of one pool, of which a plan has one.
    units_usd_per_hour : (U,) float, ascending
        What replica after replica costs beside running: places' prices, starts, kept starts; as many as fit.
    sized : callable
        Size to what one replica carries (requests/s) and what running it costs (USD/h).
    group : tuple
        Prefill and decode must be of the same to pair.
    hoped_per_s : float
        What no replica of the pool carries more than, as long as its largest size was not asked for.
    told : int
        Sizes up to which are told apart; what lies beyond is a line, which hides part of a replica.
    """

    pair: tuple[str, ...]
    role: Role
    units_usd_per_hour: Floats
    price_usd_per_hour: float
    idle_usd_per_hour: float
    sized: Callable[[int], tuple[float, float]]
    known: dict[int, tuple[float, float]] = field(default_factory=dict)
    group: tuple[str, ...] = ()
    hoped_per_s: float = math.inf
    told: int = CURVE_ENDS
    _curve: tuple[tuple[float, int, int, int], tuple[Ints, Floats]] | None = field(default=None, init=False)

    @property
    def most(self) -> int:
        """The largest size that is told apart."""
        return min(self.told, len(self.units_usd_per_hour))

    @property
    def rate_per_s(self) -> float:
        """No replica of the pool carries more."""
        return self.known[self.most][0] if self.is_sized else self.hoped_per_s

    @property
    def is_sized(self) -> bool:
        """True once the largest size was asked for."""
        return self.most in self.known

    @property
    def slope(self) -> float:
        """USD per request/s that no size undercuts."""
        rate = self.rate_per_s
        return (float(self.units_usd_per_hour[0]) + self.idle_usd_per_hour) / rate if rate > 0.0 else np.inf

    def given_usd_per_hour(self, told_apart: int) -> float:
        """What replicas beyond those told apart give at most, where keeping them is worth more than they cost."""
        left = self.units_usd_per_hour[told_apart:]
        if not len(left) or left[0] + self.idle_usd_per_hour >= 0.0:  # the usual case
            return 0.0
        return float(-np.minimum(0.0, left + self.idle_usd_per_hour).sum())

    def ask(self, size: int) -> bool:
        """Make a size exact; False when it was."""
        if size in self.known:
            return False
        self.known[size] = self.sized(size)
        return True

    @property
    def may_tell_more(self) -> bool:
        return self.most < min(MOST_TOLD, len(self.units_usd_per_hour))

    def is_hoped(self, size: int) -> bool:
        """Tell whether what is said of a size, of any (0) or of those ``BEYOND``, could be made exact."""
        if size == BEYOND:
            return self.may_tell_more
        return size == 0 or (size <= self.most and size not in self.known)

    def tell_more(self) -> bool:
        """Tell more sizes apart; False when as many were as may be."""
        if not self.may_tell_more:
            return False
        self.told = MOST_TOLD
        self.ask(self.most)
        return True

    def curve(self, demand_per_s: float, parts: int) -> tuple[Ints, Floats]:
        """Parts carried and price of every size from 0 that is told apart."""
        key = demand_per_s, parts, len(self.known), self.most
        if self._curve is None or self._curve[0] != key:
            self._curve = key, self._found_curve(demand_per_s, parts)
        return self._curve[1]

    def _found_curve(self, demand_per_s: float, parts: int) -> tuple[Ints, Floats]:
        sizes = np.arange(self.most + 1)
        known = np.array(sorted(self.known))
        rates, runs = np.array([self.known[n] for n in known.tolist()]).T
        above = np.minimum(np.searchsorted(known, sizes), len(known) - 1)
        below = np.searchsorted(known, sizes, side="right") - 1
        smaller = np.where(below >= 0, runs[np.maximum(below, 0)], self.idle_usd_per_hour)
        exact = np.isin(sizes, known)
        run = np.where(exact, runs[above], np.minimum(smaller, runs[above]))
        paid = np.concatenate([[0.0], np.cumsum(self.units_usd_per_hour[: self.most])])
        return load_parts(sizes * rates[above], demand_per_s, parts), paid + sizes * run


def first_apart(stocks: Sequence[Stock]) -> set[int]:
    """The pools that look cheap, to be told apart, with a few sizes made exact."""
    _size_hoped(stocks)
    apart: set[int] = set()
    for of in sorted({(stock.role, stock.group) for stock in stocks}):
        able = [i for i, s in enumerate(stocks) if (s.role, s.group) == of and s.is_sized and np.isfinite(s.slope)]
        mine = sorted((stocks[i].slope, i) for i in able)
        apart |= {i for slope, i in mine[:MOST_APART] if slope <= FAR * mine[0][0]}
    for i in apart:
        tell_apart(stocks[i])
    return apart


def _size_hoped(stocks: Sequence[Stock]) -> None:
    """Size the pools that could be cheap, best first; what cannot be by a wide margin is left to hope."""
    best: dict[tuple[Role, tuple[str, ...]], float] = {}
    for stock in (stock for stock in stocks if stock.is_sized):
        best[stock.role, stock.group] = min(best.get((stock.role, stock.group), math.inf), stock.slope)
    pairs = [usd + best.get((Role.DECODE, group), math.inf) for (role, group), usd in best.items() if role is PREFILL]
    least = min([*pairs, best.get((Role.MIXED, ()), math.inf)])
    for stock in sorted((stock for stock in stocks if not stock.is_sized), key=lambda stock: stock.slope):
        if stock.slope > FAR * least:
            return
        stock.ask(stock.most)
        least = min(least, stock.slope)


def tell_apart(stock: Stock) -> None:
    """Make a few sizes of a pool exact, and its largest."""
    stock.ask(stock.most)
    for size in FIRST_SIZES:
        if size < stock.most:
            stock.ask(size)


def load_parts(carried: Floats, demand_per_s: float, parts: int) -> Ints:
    if parts == 0:
        return np.zeros(len(carried), dtype=np.int64)
    return np.ceil(np.minimum(carried / demand_per_s, 1.0) * parts - NEAR).astype(np.int64)

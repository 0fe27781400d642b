"""One way for every service, so that together they fit: what they share is priced until no way is worth adding.

Column generation: the relaxed choice among the ways found so far prices GPU groups and watts, every service names its
cheapest way at the prices (``menus.py``), and so on. Lagrange's bound holds at any prices, for every plan, and is far
above the plain relaxation's, because ways are whole. The pools of the ways are those that the whole model needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from solvers.errors import SolveFailed
from solvers.fleet import PoolKey
from solvers.planner.menus.menus import FINE_GRID, GRID, Least, Menu, Way, build_menus
from solvers.planner.model.relax import Arrays, solve_linear
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.pools.sizer import Sizer

SHARED = ("gpus", "power", "power_whole", "quota_gpus", "quota_power", "resources")
MOST_PRICINGS = 30
SMOOTHING = 0.5  # share of the best prices so far in the next ones; the newest alone swing
CLOSED = 0.1  # of the gap asked: pricing stops when the relaxed choice and its bound agree this well

Enough = Callable[[float], bool]
"""Told the bound so far; says that more of it would be of no use."""


@dataclass(slots=True, kw_only=True)
class Composer:
    """Ways found so far, and the rows that they share. ``gap`` is the relative gap asked of the whole decision."""

    cells: Cells
    menus: Sequence[Menu]
    shared: sp.csr_array
    room: Floats
    gap: float
    seconds: float
    ways: list[Way] = field(default_factory=list)
    known: set[tuple[int, bytes]] = field(default_factory=set)
    prices: Floats = field(default_factory=lambda: np.zeros(0))  # those that the bound was found at

    @classmethod
    def of(
        cls, cells: Cells, arrays: Arrays, sizer: Sizer, *, gap: float, seconds: float, least: Least | None = None
    ) -> Composer | None:
        """Take the rows of GPUs and power from the stated model; None when a pool is too large for menus."""
        menus = build_menus(cells, sizer, least)
        if menus is None:
            return None
        rows = shared_rows(arrays)
        shared = sp.csr_array(arrays.matrix.tocsr()[rows][:, arrays.columns["replicas"]])
        made = cls(cells=cells, menus=menus, shared=shared, room=arrays.row_upper[rows], gap=gap, seconds=seconds)
        for menu in menus:
            made.add(menu.nothing())
        return made

    def add(self, way: Way | None) -> bool:
        """Remember a way that is new; one that does not fit by itself still shows what to price."""
        if way is None or (way.service, way.replicas.tobytes()) in self.known:
            return False
        self.known.add((way.service, way.replicas.tobytes()))
        self.ways.append(way)
        return True

    def pools(self) -> set[PoolKey]:
        """Pools that any way uses."""
        used = np.sum([way.replicas for way in self.ways], axis=0)
        return {self.cells.pools[p].pool for p in self.cells.cell_pool[used > 0.0]}

    def bound(self, duals: Floats, arrays: Arrays, is_enough: Enough) -> float:
        """Bound the objective from below, adding ways on the way, until none is worth adding.

        Parameters
        ----------
        duals : (rows,) float
            Prices to begin with, of the relaxed model's rows.
        """
        best, prices = -np.inf, np.maximum(0.0, -duals[shared_rows(arrays)])
        best_prices = self.prices = prices
        for _ in range(MOST_PRICINGS):
            value = self._value(prices)
            if value > best:
                best, best_prices = value, prices
                self.prices = prices
            asked = self.asked(prices)
            found = [self.add(menu.cheapest(asked)) for menu in self.menus]
            if is_enough(best):
                return best
            relaxed = solve_linear(self.choice(), time_limit_s=self.seconds)
            if relaxed.duals is None:
                raise SolveFailed("the choice of ways gave no prices")
            newest = np.maximum(0.0, -relaxed.duals[len(self.menus) :])
            if relaxed.value - best <= CLOSED * self.gap * abs(relaxed.value):
                break
            if not any(found) and np.allclose(prices, newest, rtol=1e-6, atol=1e-9):
                break
            prices = newest if not any(found) else SMOOTHING * best_prices + (1.0 - SMOOTHING) * newest
        return max(best, self._value(best_prices, FINE_GRID))

    def _value(self, prices: Floats, grid: int = GRID) -> float:
        """Lagrange's bound: the services' least values at the prices, less what all of the room would fetch."""
        asked = self.asked(prices)
        return sum(menu.least_value(asked, grid) for menu in self.menus) - float(prices @ self.room)

    def asked(self, prices: Floats) -> Floats:
        """What a replica of each cell pays for what it shares, USD per hour; (C,)."""
        asked: Floats = self.shared.T @ prices
        return asked

    def relaxed(self, room: Floats, pricings: int) -> tuple[float, Floats]:
        """Price the relaxed choice with other room than the fleet's; up to so many rounds add ways on the way.

        Returns
        -------
        float, USD per hour
            Worth of the relaxed choice among the ways known then; never below that among all ways.
        (R,) float
            Prices of the shared rows there.
        """
        while True:
            solved = solve_linear(self.choice(room), time_limit_s=self.seconds)
            if solved.duals is None:
                raise SolveFailed("the choice of ways gave no prices")
            prices = np.maximum(0.0, -solved.duals[len(self.menus) :])
            asked, pricings = self.asked(prices), pricings - 1
            found = [self.add(menu.cheapest(asked)) for menu in self.menus] if pricings >= 0 else []
            if not any(found):
                return solved.value, prices

    def choice(self, room: Floats | None = None) -> Arrays:
        """State the choice: one way for each service, shared rows kept within their room (or another)."""
        most = self.room if room is None else room
        of = np.array([way.service for way in self.ways])
        one = sp.csr_array([[float(s == menu.service) for s in of] for menu in self.menus])
        used = self.shared @ sp.csc_array(np.array([way.replicas for way in self.ways]).T)
        ones = np.ones(len(self.menus))
        return Arrays(
            cost=np.array([way.cost_usd_per_hour + way.penalty_usd_per_hour for way in self.ways]),
            matrix=sp.csc_array(sp.vstack([one, used])),
            row_lower=np.concatenate([ones, np.full(len(most), -np.inf)]),
            row_upper=np.concatenate([ones, most]),
            lower=np.zeros(len(of)),
            upper=np.full(len(of), np.inf),
            whole=np.zeros(len(of), dtype=bool),
            columns={},
            rows=(),
        )


def shared_rows(arrays: Arrays) -> list[int]:
    """Rows of the model that services share."""
    return [row for row, (limit, _) in enumerate(arrays.rows) if limit in SHARED]

"""One way for every service, so that together they fit: what they share is priced until no way is worth adding.

Column generation: the relaxed choice among the ways found so far prices GPU groups and watts, every service names its
cheapest way at the prices (``menus.py``), and so on. Lagrange's bound holds at any prices, for every plan, and is far
above the plain relaxation's, because ways are whole. The pools of the ways are those that the whole model needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse as sp

from solvers.cells import Cells, Floats, Ints
from solvers.errors import SolveFailed
from solvers.fleet import PoolKey
from solvers.menus import FINE_GRID, GRID, Least, Menu, Prices, Way, build_menus
from solvers.options import Sizer
from solvers.relax import Arrays, solve_linear

SHARED = ("gpus", "power", "power_whole")
MOST_PRICINGS = 30
SMOOTHING = 0.5  # share of the best prices so far in the next ones; the newest alone swing
HELD_PRICE = 30.0  # most that a held shortage is priced at, as a multiple of its penalty
CLOSED = 0.1  # of the gap asked: pricing stops when the relaxed choice and its bound agree this well

Enough = Callable[[float], bool]
"""Told the bound so far; says that more of it would be of no use."""

Held = tuple[Ints, float]
"""Services, and the most USD per hour of penalties that they may come to together."""


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

    @classmethod
    def of(
        cls, cells: Cells, arrays: Arrays, sizer: Sizer, *, gap: float, seconds: float, least: Least | None = None
    ) -> Composer | None:
        """Take the rows of GPUs and power from the stated model; None when a pool is too large for menus."""
        menus = build_menus(cells, sizer, least)
        if menus is None:
            return None
        rows = _shared_rows(arrays)
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

    def up_to(self, rank: int) -> Composer:
        """Leave the services of lower tiers out; ways that are found come back by ``add``."""
        of_rank = [service.tier_rank for service in self.cells.services]
        menus = [menu for menu in self.menus if of_rank[menu.service] <= rank]
        return replace(
            self,
            menus=menus,
            ways=[way for way in self.ways if of_rank[way.service] <= rank],
            known=set(self.known),
        )

    def bound(self, duals: Floats, arrays: Arrays, is_enough: Enough, held: Sequence[Held] = ()) -> float:
        """Bound the objective from below, adding ways on the way, until none is worth adding.

        Parameters
        ----------
        duals : (rows,) float
            Prices to begin with, of the relaxed model's rows.
        held : sequence of Held
            Shortages that every plan in question keeps to; the bound is on those plans.
        """
        first = np.maximum(0.0, -duals[_shared_rows(arrays)])
        best, prices = -np.inf, np.concatenate([first, np.ones(len(held))])
        best_prices = prices
        for _ in range(MOST_PRICINGS):
            asked = {menu.service: self._asked(prices, held, menu.service) for menu in self.menus}
            value = self._value(prices, held)
            if value > best:
                best, best_prices = value, prices
            found = [self.add(menu.cheapest(asked[menu.service])) for menu in self.menus]
            if is_enough(best):
                return best
            relaxed = solve_linear(self._choice(held), time_limit_s=self.seconds)
            if relaxed.duals is None:
                raise SolveFailed("the choice of ways gave no prices")
            newest = np.maximum(0.0, -relaxed.duals[len(self.menus) :])
            if relaxed.value - best <= CLOSED * self.gap * abs(relaxed.value):
                break
            if not any(found) and np.allclose(prices, newest, rtol=1e-6, atol=1e-9):
                break
            prices = newest if not any(found) else SMOOTHING * best_prices + (1.0 - SMOOTHING) * newest
        return max(best, self._value(best_prices, held, FINE_GRID))

    def _value(self, prices: Floats, held: Sequence[Held], grid: int = GRID) -> float:
        """Lagrange's bound: the services' least values at the prices, less what all of the room would fetch."""
        asked = [(menu, self._asked(prices, held, menu.service)) for menu in self.menus]
        paid = float(prices @ np.concatenate([self.room, [most for _, most in held]]))
        return sum(menu.least_value(own, grid) for menu, own in asked) - paid

    def _asked(self, prices: Floats, held: Sequence[Held], service: int) -> Prices:
        shared, extra = prices[: len(self.room)], prices[len(self.room) :]
        dearer = sum(price for price, (mine, _) in zip(extra, held, strict=True) if service in mine)
        return Prices(cell=self.shared.T @ shared, penalty=1.0 + float(dearer))

    def _choice(self, held: Sequence[Held]) -> Arrays:
        """State the choice: one way for each service, shared rows kept, and held shortages where ways allow."""
        penalty = np.array([way.penalty_usd_per_hour for way in self.ways])
        of = np.array([way.service for way in self.ways])
        one = sp.csr_array([[float(s == service) for s in of] for service in (menu.service for menu in self.menus)])
        used = self.shared @ sp.csc_array(np.array([way.replicas for way in self.ways]).T)
        lacks = [sp.csr_array((penalty * np.isin(of, mine))[None, :]) for mine, _ in held]
        ones, slack = np.ones(len(self.menus)), np.zeros((len(one.indptr) - 1 + len(self.room), len(held)))
        upper = np.concatenate([ones, self.room, [most for _, most in held]])
        over = sp.csc_array(np.concatenate([slack, -np.eye(len(held))]))
        own = np.array([way.cost_usd_per_hour for way in self.ways]) + penalty
        return Arrays(
            cost=np.concatenate([own, np.full(len(held), HELD_PRICE)]),
            matrix=sp.csc_array(sp.hstack([sp.vstack([one, used, *lacks]), over])),
            row_lower=np.concatenate([ones, np.full(len(upper) - len(ones), -np.inf)]),
            row_upper=upper,
            lower=np.zeros(len(of) + len(held)),
            upper=np.full(len(of) + len(held), np.inf),
            whole=np.zeros(len(of) + len(held), dtype=bool),
            columns={},
            rows=(),
        )


def _shared_rows(arrays: Arrays) -> list[int]:
    return [row for row, (limit, _) in enumerate(arrays.rows) if limit in SHARED]

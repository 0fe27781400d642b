"""The least priced value of one service in a large fleet, and a way that comes near it.

``menus.py`` lists every size of every pool. Where pools have hundreds of replicas that is too much, so here only the
pools that look cheap at the prices are kept apart: their small sizes one by one, what lies beyond as a line at the
capacity of the largest. All other pools together carry load at the cheapest rate that any of them could reach. Both
leave out limits and never add any, so the value stays below that of every way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from solvers.derived import Derives, derived
from solvers.engine import Role
from solvers.planner.pools.cells import Floats, Ints

PARTS = 1000  # of the demand; a load is rounded up to whole parts
ANY_PENALTY = 0.0, np.inf  # no limit to what may be left undone
LEAST_EVERY, MOST_EVERY = 32, 64  # sizes told apart; half a replica of as many is what the line beyond hides
WORK_SIZES = 1000  # sizes told apart of a pool, over all services
KNOWN_SIZES = (1, 2, 4, 8, 16, 32)  # sized before they are used; sizes between count as the next larger
KEPT = 6  # pools of a role told apart
MOST_APART = 96  # sizes of a role told apart, when its pools are small and there is room for more of them
FAR = 1.35  # times the cheapest rate of the role; dearer pools never make a way
PAIR_ROLES = (Role.PREFILL, Role.DECODE)
ROLES = (*PAIR_ROLES, Role.MIXED)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stocks(Derives):
    """The pools of one service as parallel arrays. Axes: P pools, C cells of these pools, sorted by pool.

    Attributes
    ----------
    every : int
        Sizes of a pool that are told apart; what lies beyond is a line.
    first : (P + 1,) int
        Where each pool's cells begin.
    room, now : (C,) int
        Replicas that fit, and that run there.
    base : (P,) int
        The first of the pools that are this one at another power cap; itself when there is no other.
    terms_usd_per_hour : (C,) float
        What a replica there costs beside list prices, see ``Cells.terms_usd_per_hour``.
    groups : (P,) str
        KV group of each pool where the service has several, else empty; mixed pools bear that of the first.
    floor_replicas, floor_usd_per_hour : int, float
        Replicas that each chain should have at least, and what each that is missing costs.
    apart : frozenset of int
        Pools of which all sizes are told apart; their curves know the largest.
    rate_per_s, run_usd_per_hour : (P,) float
        Of one replica, no pool does better: the rate of the largest size, the draw of an idle GPU.
    """

    service: int
    demand_per_s: float
    parts: int
    every: int
    unserved_usd_per_hour: float
    fair_ratio: float
    roles: tuple[Role, ...]
    cells: slice
    first: Ints
    base: Ints
    terms_usd_per_hour: Floats
    room: Ints
    now: Ints
    most: Ints
    rate_per_s: Floats
    run_usd_per_hour: Floats
    start_usd_per_hour: Floats
    stop_usd_per_hour: Floats
    stop_all_usd_per_hour: float
    floor_replicas: int = 0
    floor_usd_per_hour: float = 0.0
    groups: tuple[str, ...] = ()
    apart: frozenset[int] = frozenset()

    def told(self, pool: int) -> int:
        """Up to which size the sizes of a pool are told apart."""
        return int(self.most[pool]) if pool in self.apart else self.every

    @property
    def pair_groups(self) -> tuple[str, ...]:
        """KV groups of the pools; one without a name where all may pair."""
        return tuple(sorted(set(self.groups))) or ("",)

    def is_of(self, pool: int, role: Role, group: str) -> bool:
        """Tell whether the pool is of the role and, unless it is mixed, of the KV group."""
        return self.roles[pool] is role and (role is Role.MIXED or not self.groups or self.groups[pool] == group)

    def units(self, pool: int, asked: Floats) -> tuple[Floats, Ints, Ints]:
        """Price of one replica, how many at that price, and their cell, cheapest first; runs before new in a cell."""
        at = slice(int(self.first[pool]), int(self.first[pool + 1]))
        now, here = np.minimum(self.now[at], self.room[at]), asked[at] + self.terms_usd_per_hour[at]
        price, count, cell = here + self.start_usd_per_hour[pool], self.room[at] - now, np.arange(at.start, at.stop)
        if now.any():
            price, cell = np.concatenate([here - self.stop_usd_per_hour[pool], price]), np.tile(cell, 2)
            count = np.concatenate([now, count])
        order = np.argsort(price, kind="stable")
        order = order[count[order] > 0]
        return price[order], count[order], cell[order]

    def cheapest_usd(self, asked: Floats) -> Floats:
        """Least price of a replica of each pool, (P,)."""
        per_cell = asked + self.terms_usd_per_hour + derived(self, _churn_usd)
        least: Floats = np.minimum.reduceat(per_cell, self.first[:-1])
        return least + self.run_usd_per_hour

    def worth_keeping(self, pool: int, asked: Floats) -> tuple[Ints, Floats]:
        """How many replicas cost less to keep, even idle, than to stop, and what one of them gives back, by price."""
        price, count, _ = self.units(pool, asked)
        gives = -(price + self.run_usd_per_hour[pool])
        return count[gives > 0.0], gives[gives > 0.0]

    def kept_beyond(self, kept: Collection[int], asked: Floats, sizes: Mapping[int, int]) -> dict[int, int]:
        """Sizes of the pools in ``kept`` that have all that is told apart, with what is worth keeping beyond."""
        full = [(p, n) for p, n in sizes.items() if p in kept and n >= self.told(p)]
        return {p: max(n, min(int(self.worth_keeping(p, asked)[0].sum()), int(self.most[p]))) for p, n in full}


def _churn_usd(stocks: Stocks) -> Floats:
    """What the first replica of each cell pays for being started, or saves by not being stopped, (C,)."""
    cells = np.diff(stocks.first)
    stop, start = np.repeat(stocks.stop_usd_per_hour, cells), np.repeat(stocks.start_usd_per_hour, cells)
    return np.where(stocks.now > 0, -stop, start)


def pool_by_cell(stocks: Stocks) -> list[int]:
    """The pool of each of the cells, by its index inside the service."""
    found: list[int] = np.repeat(np.arange(len(stocks.first) - 1), np.diff(stocks.first)).tolist()
    return found


def members(stocks: Stocks) -> dict[tuple[Role, str], Ints]:
    """Pools of each role and KV group."""
    pools = range(len(stocks.roles))
    return {
        (role, group): np.array([p for p in pools if stocks.is_of(p, role, group)], dtype=np.int64)
        for role in ROLES
        for group in (*stocks.pair_groups, "")
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """What the least value is made of: sizes by pool, the share served, and pools to tell apart from now on."""

    value_usd_per_hour: float
    sizes: Mapping[int, int]
    served_ratio: float
    wanted: frozenset[int]
    least_served_ratio: float = 0.0
    """What all ways in question serve."""
    parts: int = PARTS
    """Of the demand, to which loads were rounded up."""
    asked_sizes: tuple[tuple[int, int], ...]
    """(pool, size) that the value rests on and that only a hopeful guess stands for so far."""
    by_side: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """Sizes by (pool, side), where it matters on which side of what pairs may not cross replicas are."""


def choose_kept(stocks: Stocks, asked: Floats, wanted: frozenset[int]) -> frozenset[int]:
    """Pools to tell apart at the prices: the cheapest per request of each role, and those wanted before."""
    cheapest, of_role = stocks.cheapest_usd(asked), derived(stocks, members)
    ratio = np.maximum(0.0, cheapest) / stocks.rate_per_s
    kept = set(wanted) | set(np.flatnonzero(cheapest < 0.0).tolist())  # what is worth keeping is counted one by one
    for role, group in product(ROLES, stocks.pair_groups):
        mine = of_role[role, group]
        mine, sizes = mine[np.argsort(ratio[mine], kind="stable")].tolist(), 0
        for rank, pool in enumerate(mine):
            sizes += min(LEAST_EVERY, int(stocks.most[pool]))
            if ratio[pool] > FAR * ratio[mine[0]] or (rank >= KEPT and sizes > MOST_APART):
                break
            kept.add(pool)
    return frozenset(kept)

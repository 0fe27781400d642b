"""The least priced value of one service in a large fleet, and a way that comes near it.

``menus.py`` lists every size of every pool. Where pools have hundreds of replicas that is too much, so here only the
pools that look cheap at the prices are kept apart: their small sizes one by one, what lies beyond as a line at the
capacity of the largest. All other pools together carry load at the cheapest rate that any of them could reach. Both
leave out limits and never add any, so the value stays below that of every way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np

from solvers.derived import Derives, derived
from solvers.engine import Role
from solvers.planner.cells import Floats, Ints
from solvers.planner.curve import Curve
from solvers.planner.min_plus import in_turn, parts_of, slide
from solvers.planner.penalties import EXCESS_WEIGHT

PARTS = 1000  # of the demand; a load is rounded up to whole parts
ANY_PENALTY = 0.0, np.inf  # no limit to what may be left undone
NEAR = 1e-6  # of a part; far above the rounding of a division
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


def _members(stocks: Stocks) -> dict[tuple[Role, str], Ints]:
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
    asked_sizes: tuple[tuple[int, int], ...]
    """(pool, size) that the value rests on and that only a hopeful guess stands for so far."""
    by_side: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """Sizes by (pool, side), where it matters on which side of what pairs may not cross replicas are."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Stage:
    """A table before and after one pool (or the rest of a role), to find the way back."""

    pool: int  # -1 for the rest of a role, -2 for the pairs of prefill and decode
    before: Floats
    loads: Ints
    costs: Floats
    lines: tuple[tuple[Floats, Floats, int], ...] = ()  # (table before, slope by part as table, parts)
    rest: int = -1
    part_rate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Group:
    """Least cost of pairs of one KV group by parts carried, and how it came about."""

    table: Floats
    stages: Mapping[Role, list[_Stage]]


def least_value(
    stocks: Stocks,
    curves: Mapping[int, Curve],
    kept: frozenset[int],
    asked: Floats,
    is_safe: bool = False,
    weight: float = 1.0,
    crossing_usd_per_hour: Mapping[str, float] | None = None,
    penalties: tuple[float, float] = ANY_PENALTY,
) -> Pick:
    """Find the least priced value of the service at the prices of its cells.

    Parameters
    ----------
    curves : mapping of pool to Curve
        Of the pools in ``kept``, which are told apart.
    asked : (C,) float
        What a replica of each cell pays for what services share, USD per hour.
    is_safe : bool
        Round loads down, among the pools in ``kept`` alone: no bound, but what carries all carries it.
    weight : float
        Times its penalties, what the service pays for what it leaves undone.
    crossing_usd_per_hour : mapping of KV group to float, optional
        What pairs of the whole demand pay for what ``asked`` gives their replicas, see ``wide_links.py``.
    penalties : (float, float)
        USD per hour that the ways in question leave undone, at least and at most; no way has an infinite value.
    """
    floor = _floor_usd(stocks, asked, weight)
    if stocks.demand_per_s <= 0.0:
        given = _given_usd(stocks, frozenset(), asked)
        nothing = stocks.stop_all_usd_per_hour + max(0.0, floor) - given
        return Pick(value_usd_per_hour=nothing, sizes={}, served_ratio=1.0, wanted=frozenset(), asked_sizes=())
    cheapest = np.maximum(0.0, stocks.cheapest_usd(asked))  # what replicas give back is taken off below
    ratio = cheapest / stocks.rate_per_s * stocks.demand_per_s / stocks.parts  # USD per part
    empty = np.full(stocks.parts + 1, np.inf)
    empty[0] = 0.0
    of_role = partial(_role_table, stocks, curves, kept, asked, ratio, is_safe)
    groups: list[_Group] = []
    for group in stocks.pair_groups:
        stages: dict[Role, list[_Stage]] = {role: [] for role in PAIR_ROLES}
        prefill, decode = (of_role(role, group, empty, stages[role]) for role in PAIR_ROLES)
        usd = (crossing_usd_per_hour or {}).get(group, 0.0) / stocks.parts  # loads were rounded up by less than a part
        groups.append(
            _Group(table=prefill + decode + usd * np.maximum(0.0, np.arange(-1, stocks.parts)), stages=stages)
        )
    totals, mixed = in_turn([group.table for group in groups]), list[_Stage]()
    paid = _paid(stocks, floor, weight, of_role(Role.MIXED, "", totals[-1], mixed), penalties)
    part = int(np.argmin(paid))
    sizes, wanted, guessed = _way_back(stocks, curves, groups, totals, mixed, part)
    given = 0.0 if is_safe else _given_usd(stocks, kept, asked)
    return Pick(
        value_usd_per_hour=float(paid[part]) - given + stocks.stop_all_usd_per_hour,
        sizes=sizes | stocks.kept_beyond(kept, asked, sizes),
        served_ratio=part / stocks.parts,
        least_served_ratio=int(np.argmax(paid < np.inf)) / stocks.parts,
        wanted=frozenset(wanted),
        asked_sizes=tuple(guessed),
    )


def _given_usd(stocks: Stocks, kept: frozenset[int], asked: Floats) -> float:
    """What replicas that are not told apart, free in the tables, give back at most by not being stopped."""
    given = 0.0
    for pool in np.flatnonzero(stocks.cheapest_usd(asked) < 0.0).tolist() if stocks.roles else ():
        count, gives = stocks.worth_keeping(pool, asked)
        told = min(stocks.told(pool), int(stocks.most[pool])) if pool in kept else 0
        given += float(np.diff(np.maximum(0, np.cumsum(count) - told), prepend=0) @ gives)
    return given


def _paid(stocks: Stocks, floor: float, weight: float, table: Floats, penalties: tuple[float, float]) -> Floats:
    """Cost by parts carried, at least that of the floor, with what stays undone."""
    (least, most), lacking = penalties, 1.0 - np.arange(stocks.parts + 1) / stocks.parts
    beyond = np.maximum(0.0, lacking - stocks.fair_ratio)
    unserved = stocks.unserved_usd_per_hour * (lacking + EXCESS_WEIGHT * beyond)
    paid: Floats = np.maximum(np.maximum(table, floor) + weight * unserved, table + weight * least)
    paid[unserved > most] = np.inf
    return paid


def _floor_usd(stocks: Stocks, asked: Floats, weight: float) -> float:
    """What the replicas of the floor, or their lack, cost at least: no way has less, whatever it serves."""
    if not stocks.roles:
        return 0.0
    least = stocks.cheapest_usd(asked)
    if least.min() < 0.0:
        return -np.inf  # what runs may be worth keeping for what stopping costs: more than the floor, or none
    missing = weight * stocks.floor_usd_per_hour
    by_role = {role: min((least[p] for p, r in enumerate(stocks.roles) if r is role), default=np.inf) for role in ROLES}
    pair = min(missing, by_role[Role.PREFILL]) + min(missing, by_role[Role.DECODE])
    return stocks.floor_replicas * float(min(pair, by_role[Role.MIXED]))


def choose_kept(stocks: Stocks, asked: Floats, wanted: frozenset[int]) -> frozenset[int]:
    """Pools to tell apart at the prices: the cheapest per request of each role, and those wanted before."""
    cheapest, members = stocks.cheapest_usd(asked), derived(stocks, _members)
    ratio = np.maximum(0.0, cheapest) / stocks.rate_per_s
    kept = set(wanted) | set(np.flatnonzero(cheapest < 0.0).tolist())  # what is worth keeping is counted one by one
    for role, group in product(ROLES, stocks.pair_groups):
        mine = members[role, group]
        mine, sizes = mine[np.argsort(ratio[mine], kind="stable")].tolist(), 0
        for rank, pool in enumerate(mine):
            sizes += min(LEAST_EVERY, int(stocks.most[pool]))
            if ratio[pool] > FAR * ratio[mine[0]] or (rank >= KEPT and sizes > MOST_APART):
                break
            kept.add(pool)
    return frozenset(kept)


def _role_table(
    stocks: Stocks,
    curves: Mapping[int, Curve],
    kept: frozenset[int],
    asked: Floats,
    ratio: Floats,
    is_safe: bool,
    role: Role,
    group: str,
    table: Floats,
    stages: list[_Stage],
) -> Floats:
    """Least cost by parts carried at least, once the pools of a role and KV group may add to ``table``."""
    mine = derived(stocks, _members)[role, group].tolist()
    rest = min((p for p in mine if p not in kept), key=lambda p: (ratio[p], p), default=-1)
    if rest >= 0 and not is_safe:
        slope = ratio[rest] * np.arange(stocks.parts + 1)
        stages.append(_Stage(pool=-1, before=table, loads=np.zeros(0, int), costs=slope, rest=rest))
        table = np.minimum.accumulate(table - slope) + slope
    for pool in sorted((p for p in mine if p in kept), key=lambda p: (ratio[p], p)):
        table = _with_pool(stocks, curves[pool], pool, asked, table, stages, is_safe)
    return table


def _with_pool(
    stocks: Stocks, curve: Curve, pool: int, asked: Floats, table: Floats, stages: list[_Stage], is_safe: bool
) -> Floats:
    price, count, _ = stocks.units(pool, asked)
    most = min(stocks.told(pool), int(stocks.most[pool]), int(count.sum()))
    carried, run = curve.sizes(most)
    exact = carried / stocks.demand_per_s * stocks.parts
    loads = (np.floor(exact + NEAR) if is_safe else np.ceil(exact - NEAR)).astype(np.int64)
    first = np.repeat(price, np.minimum(count, most))[:most]
    costs = run + np.concatenate([[0.0], np.cumsum(first)])
    stage = _Stage(pool=pool, before=table, loads=loads, costs=costs)
    grown, worst = table.copy(), table[-1]
    for size in range(1, most + 1):
        load, cost = int(loads[size]), costs[size]
        if table[0] + cost >= worst:
            if first[size - 1] >= 0.0:  # from here on every replica costs something
                break
            continue
        if load >= stocks.parts:
            np.minimum(grown, table[0] + cost, out=grown)
            worst = grown[-1]
            continue
        np.minimum(grown[:load], table[0] + cost, out=grown[:load])
        np.minimum(grown[load:], table[:-load] + cost if load else table + cost, out=grown[load:])
        worst = min(worst, grown[-1])
    if most == stocks.told(pool) and most < int(stocks.most[pool]) and loads[most] < stocks.parts:
        grown = _with_line(stocks, pool, price, count, table, grown, stage, float(run[most] / most))
    stages.append(stage)
    return grown


def _with_line(
    stocks: Stocks,
    pool: int,
    price: Floats,
    count: Ints,
    table: Floats,
    grown: Floats,
    stage: _Stage,
    run_usd_per_hour: float,
) -> Floats:
    """Sizes beyond those told apart: parts of replicas, the cheapest units that are left first."""
    per_replica = stocks.rate_per_s[pool] / stocks.demand_per_s * stocks.parts
    every = stocks.every
    load = int(np.ceil(every * per_replica - NEAR))
    if load >= stocks.parts or table[0] + stage.costs[every] >= grown[-1]:
        return grown
    line = np.full_like(table, np.inf)
    line[load:] = table[:-load] + stage.costs[every]
    line[:load] = table[0] + stage.costs[every]
    taken, lines, parts = every, [], np.arange(stocks.parts + 1)
    for unit, number in zip(price.tolist(), count.tolist(), strict=True):
        left = number - min(taken, number)
        taken -= number - left
        if left <= 0:
            continue
        slope = max(0.0, unit + run_usd_per_hour) / per_replica * parts
        width = int(np.ceil(left * per_replica))
        lines.append((line, slope, width))
        line = slide(line - slope, width) + slope
        if width >= stocks.parts:
            break
    stage.lines, stage.part_rate = tuple(lines), per_replica
    return np.minimum(grown, line)


def _way_back(
    stocks: Stocks,
    curves: Mapping[int, Curve],
    groups: Sequence[_Group],
    totals: Sequence[Floats],
    mixed: Sequence[_Stage],
    part: int,
) -> tuple[dict[int, int], set[int], list[tuple[int, int]]]:
    sizes: dict[int, int] = {}
    wanted: set[int] = set()
    part = _role_back(mixed, part, sizes, wanted)
    for group, mine in zip(groups, parts_of([g.table for g in groups], totals, part), strict=True):
        for role in PAIR_ROLES:
            _role_back(group.stages[role], mine, sizes, wanted)
    guessed = [
        (p, n)
        for p, n in sorted(sizes.items())
        if p in curves and n <= stocks.told(p) and n not in curves[p].rate_per_s
    ]
    return sizes, wanted, guessed


def _role_back(stages: Sequence[_Stage], part: int, sizes: dict[int, int], wanted: set[int]) -> int:
    """Sizes of the pools of a role that reach the part at its value; returns the part that is left to others."""
    for stage in reversed(stages):
        if stage.pool < 0:
            tried = stage.before[: part + 1] + (stage.costs[part] - stage.costs[: part + 1])
            left = int(np.argmin(tried))
            if left < part:
                wanted.add(stage.rest)
                sizes[stage.rest] = sizes.get(stage.rest, 0) + 1
            part = left
            continue
        below = np.maximum(0, part - stage.loads)
        tried = stage.before[below] + stage.costs
        size = int(np.argmin(tried))
        left = int(below[size])
        if stage.lines and (ended := _line_back(stage, part)) is not None and ended[0] < tried[size] - 1e-9:
            size, left = ended[1], ended[2]
        if size:
            sizes[stage.pool] = size
        part = left
    return part


def _line_back(stage: _Stage, part: int) -> tuple[float, int, int] | None:
    """Value, size and what is left to others, when the pool is larger than the sizes told apart."""
    at, value, moved = part, None, 0
    for before, slope, width in reversed(stage.lines):
        low = max(0, at - width)
        tried = before[low : at + 1] - slope[low : at + 1] + slope[at]
        best = int(np.argmin(tried))
        value = float(tried[best]) if value is None else value
        moved += at - (low + best)
        at = low + best
    if value is None or not np.isfinite(value):
        return None
    every = len(stage.loads) - 1
    load = int(np.ceil(every * stage.part_rate - NEAR))
    return value, every + int(np.ceil(moved / stage.part_rate - NEAR)), max(0, at - load)

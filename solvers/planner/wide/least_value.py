"""The least priced value of one service in a large fleet: tables of least cost by load, and the way back through them.

Loads are counted in whole parts of the demand, rounded up. Finely cut ones take long, so a coarse table says first
about how far the least value lies above that of divisible replicas. Sizes that alone cost more than that above the best
rate of their role cannot belong to it. Replicas are counted towards the floor only where the least value lacks some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.engine import Role
from solvers.planner.menus.min_plus import in_turn, parts_of
from solvers.planner.pools.cells import Floats, Ints
from solvers.planner.wide.curve import Curve
from solvers.planner.wide.load_tables import Stage, Task, Told, role_back, role_table
from solvers.planner.wide.stocks import ANY_PENALTY, PAIR_ROLES, PARTS, ROLES, Pick, Stocks

LEAST_PRUNED = 8  # times as finely cut as coarse tables, loads whose tables are worth being preceded by those
LOOSE_RATIO = 0.003  # of the coarse value, what the fine one is guessed to lie above it at most
ROUNDED = 8.0  # parts that roundings of loads may differ by
ROUNDING = 1e-9  # relative, of sums of costs
MOST_FLOOR = 6  # replicas that are counted towards a floor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Group:
    """Least cost of pairs of one KV group by parts carried, and how it came about."""

    table: Floats
    by_role: Mapping[Role, Floats]
    stages: Mapping[Role, list[Stage]]

    def with_missing(self, role: Role, floor: int, part: int, missing_usd_per_hour: float) -> int:
        """Of a floor, how many replicas the role has where those that are missing are paid for."""
        counts = np.arange(floor + 1)
        return int(np.argmin(self.by_role[role][: floor + 1, part] + (floor - counts) * missing_usd_per_hour))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tables:
    """Tables of a service by replicas counted towards the floor and parts carried, and what is paid by parts."""

    groups: Sequence[_Group]
    totals: Sequence[Floats]
    mixed: list[Stage]
    table: Floats
    paid: Floats

    @property
    def usd_per_hour(self) -> float:
        return float(self.paid.min())


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
        return _idle(stocks, asked, floor)
    task = Task(
        stocks=stocks,
        curves=curves,
        kept=kept,
        asked=asked,
        is_safe=is_safe,
        weight=weight,
        crossing_usd_per_hour=crossing_usd_per_hour or {},
        penalties=penalties,
        floor_usd_per_hour=floor,
        cheapest_usd_per_hour=stocks.cheapest_usd(asked),
        parts=stocks.parts,
    )
    return _picked(task)


def _idle(stocks: Stocks, asked: Floats, floor_usd_per_hour: float) -> Pick:
    """The pick of a service that nobody asks anything of: its floor, or what is worth keeping."""
    given = _given_usd(stocks, frozenset(), asked)
    nothing = stocks.stop_all_usd_per_hour + max(0.0, floor_usd_per_hour) - given
    return Pick(value_usd_per_hour=nothing, sizes={}, served_ratio=1.0, wanted=frozenset(), asked_sizes=())


def _picked(task: Task) -> Pick:
    """The pick of a service with demand."""
    tables, sizes, wanted = _solved(task)
    part, stocks, curves = int(np.argmin(tables.paid)), task.stocks, task.curves
    given = 0.0 if task.is_safe else _given_usd(stocks, task.kept, task.asked)
    return Pick(
        value_usd_per_hour=float(tables.paid[part]) - given + stocks.stop_all_usd_per_hour,
        sizes=sizes | stocks.kept_beyond(task.kept, task.asked, sizes),
        served_ratio=part / stocks.parts,
        parts=stocks.parts,
        least_served_ratio=int(np.argmax(tables.paid < np.inf)) / stocks.parts,
        wanted=frozenset(wanted),
        asked_sizes=tuple(
            (p, n)
            for p, n in sorted(sizes.items())
            if p in curves and n <= stocks.told(p) and n not in curves[p].rate_per_s
        ),
    )


def _solved(task: Task) -> tuple[_Tables, dict[int, int], set[int]]:
    """Tables whose least is that of all sizes, the sizes that it is made of, and what to tell apart of them."""
    told = task.told()
    useful = _Useful.of(task, told)
    tables = useful.tables(task, useful.guess_usd_per_hour)
    sizes, wanted = _way_back(task, tables, int(np.argmin(tables.paid)))
    floor = min(task.stocks.floor_replicas, MOST_FLOOR)
    if not task.is_plain or not (lacking := _lacking_usd(task, floor, sizes)):
        return tables, sizes, wanted
    (least, most), value = task.penalties, tables.usd_per_hour + lacking
    floored = replace(task, floor=floor, penalties=(0.0, most))  # missing replicas are part of what is left undone
    while True:
        plain = useful.tables(task, value) if least > 0.0 else tables
        by_load, by_penalty = useful.tables(floored, value), plain.table[0] + task.weight * least
        by_penalty = np.where(np.isfinite(by_load.paid) & (least > 0.0), by_penalty, -np.inf)
        again = replace(by_load, paid=np.maximum(by_load.paid, by_penalty))
        if useful.least is None or not again.usd_per_hour > value:
            break
        value = again.usd_per_hour
    part = int(np.argmin(again.paid))
    is_by_load = by_load.paid[part] >= by_penalty[part]
    return again, *(_way_back(floored, by_load, part) if is_by_load else _way_back(task, plain, part))


def _lacking_usd(task: Task, floor: int, sizes: Mapping[int, int]) -> float:
    """What the replicas that sizes lack of a floor cost at least, paid for or added."""
    counts, roles, usd = dict.fromkeys(ROLES, 0), task.stocks.roles, 0.0
    for pool, size in sizes.items():
        counts[roles[pool]] += size
    for role in PAIR_ROLES:
        mine = [cost for p, cost in enumerate(task.cheapest_usd_per_hour.tolist()) if roles[p] is role]
        lacks = max(0, floor - counts[role] - counts[Role.MIXED])
        usd += lacks * min(task.missing_usd_per_hour, min(mine, default=np.inf))
    return usd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Useful:
    """Which sizes can belong to a value, by what they cost above the best rate of their role.

    ``best`` are the roles' best rates, ``least`` what is paid at least if one role had its best rate and its replicas
    were divisible; None where every size is to be looked at.
    """

    told: Mapping[int, Told]
    best: Mapping[Role, float]
    least: Mapping[Role, float] | None
    guess_usd_per_hour: float

    @classmethod
    def of(cls, task: Task, told: Mapping[int, Told]) -> _Useful:
        """Look at loads cut coarsely first, where they are cut finely."""
        if not task.is_plain or task.parts < LEAST_PRUNED * PARTS:
            return cls(told=told, best={}, least=None, guess_usd_per_hour=np.inf)
        coarse, best = replace(task, parts=PARTS), _best_rates(task, told)
        near = {pool: one.rounded_up(task.parts, PARTS) for pool, one in told.items()}
        first = _tables(coarse, near, {pool: np.arange(1, len(one.loads)) for pool, one in near.items()})
        rates = {role: rate * task.parts / PARTS for role, rate in best.items()}
        return cls(
            told=told,
            best=best,
            least=_least_by_role(coarse, first, rates, task.parts),
            guess_usd_per_hour=first.usd_per_hour * (1.0 + LOOSE_RATIO),
        )

    def tables(self, task: Task, guess_usd_per_hour: float) -> _Tables:
        """Tables of the sizes that can belong to a value no higher than guessed; where it is higher, of more."""
        value = guess_usd_per_hour
        while True:
            tables = _tables(task, self.told, {pool: self._sizes(task, pool, value) for pool in self.told})
            if self.least is None or not tables.usd_per_hour > value:
                return tables
            value = tables.usd_per_hour

    def _sizes(self, task: Task, pool: int, value: float) -> Ints:
        one, role = self.told[pool], task.stocks.roles[pool]
        if self.least is None:
            return np.arange(1, len(one.loads))
        over = one.costs - self.best[role] * np.minimum(one.loads, task.parts)
        sizes: Ints = np.flatnonzero(over[1:] <= value - self.least[role] + ROUNDING * one.costs[1:]) + 1
        return sizes


def _best_rates(task: Task, told: Mapping[int, Told]) -> dict[Role, float]:
    """USD per part of each role, at best: no size of any pool costs less by what it carries."""
    ratio, best = task.ratio, dict.fromkeys(ROLES, np.inf)
    for pool, role in enumerate(task.stocks.roles):
        best[role] = min(best[role], float(ratio[pool]))
        if pool in told and len(told[pool].loads) > 1:
            loads = np.clip(told[pool].loads[1:], 1, task.parts)
            best[role] = min(best[role], float((told[pool].costs[1:] / loads).min()))
    return best


def _least_by_role(coarse: Task, tables: _Tables, best: Mapping[Role, float], fine_parts: int) -> dict[Role, float]:
    """What is paid at least, floors aside, if replicas of one role had its best rate and were divisible.

    Mixed ones count as divisible beside both others. A size of the role adds to that what it costs above the best rate.
    """
    (pairs,), parts = tables.groups, np.arange(coarse.parts + 1)
    prefill, decode, mixed = (_line(best[role], parts) for role in ROLES)
    found: dict[Role, float] = {}
    for role, table in (
        (Role.PREFILL, prefill + pairs.by_role[Role.DECODE][0]),
        (Role.DECODE, decode + pairs.by_role[Role.PREFILL][0]),
        (Role.MIXED, pairs.table[0]),
    ):
        beside = np.minimum.accumulate(table - mixed) + mixed if np.isfinite(best[Role.MIXED]) else table
        found[role] = float(coarse.paid(beside, -np.inf).min()) * (1.0 - ROUNDED / fine_parts)
    return found


def _line(rate: float, parts: Ints) -> Floats:
    """What parts cost at a rate; only none cost nothing where there is no rate."""
    line: Floats = np.where(parts > 0, rate, 0.0) * np.maximum(1, parts)
    return line


def _tables(task: Task, told: Mapping[int, Told], useful: Mapping[int, Ints]) -> _Tables:
    empty = np.full((task.floor + 1, task.parts + 1), np.inf)
    empty[0, 0] = 0.0
    groups: list[_Group] = []
    for group in task.stocks.pair_groups:
        stages: dict[Role, list[Stage]] = {role: [] for role in PAIR_ROLES}
        by_role = {role: role_table(task, told, useful, role, group, empty, stages[role]) for role in PAIR_ROLES}
        usd = task.crossing_usd_per_hour.get(group, 0.0) / task.parts  # loads were rounded up by less than a part
        crossing = usd * np.maximum(0.0, np.arange(-1, task.parts)) if usd else 0.0
        prefill, decode = (_with_missing(by_role[role], task.missing_usd_per_hour) for role in PAIR_ROLES)
        groups.append(_Group(table=prefill + decode + crossing, by_role=by_role, stages=stages))
    totals, mixed = in_turn([group.table[0] for group in groups]), list[Stage]()
    start = groups[0].table if task.floor else totals[-1][None]
    table = role_table(task, told, useful, Role.MIXED, "", start, mixed)
    paid = task.paid(table[task.floor], task.floor_usd_per_hour)
    return _Tables(groups=groups, totals=totals, mixed=mixed, table=table, paid=paid)


def _with_missing(table: Floats, missing_usd_per_hour: float) -> Floats:
    """Least cost by floor and parts where replicas that are missing may be paid for."""
    paid = table.copy() if len(table) > 1 else table
    for floor in range(1, len(table)):
        np.minimum(paid[floor], paid[floor - 1] + missing_usd_per_hour, out=paid[floor])
    return paid


def _given_usd(stocks: Stocks, kept: frozenset[int], asked: Floats) -> float:
    """What replicas that are not told apart, free in the tables, give back at most by not being stopped."""
    given = 0.0
    for pool in np.flatnonzero(stocks.cheapest_usd(asked) < 0.0).tolist() if stocks.roles else ():
        count, gives = stocks.worth_keeping(pool, asked)
        told = min(stocks.told(pool), int(stocks.most[pool])) if pool in kept else 0
        given += float(np.diff(np.maximum(0, np.cumsum(count) - told), prepend=0) @ gives)
    return given


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


def _way_back(task: Task, tables: _Tables, part: int) -> tuple[dict[int, int], set[int]]:
    """Sizes by pool that reach the part at its value, the rest's pools among them, which are to be told apart."""
    sizes: dict[int, int] = {}
    wanted: set[int] = set()
    part, floor = role_back(tables.mixed, part, task.floor, sizes, wanted)
    divided = [part] if task.floor else parts_of([group.table[0] for group in tables.groups], tables.totals, part)
    for group, mine in zip(tables.groups, divided, strict=True):
        for role in PAIR_ROLES:
            has = group.with_missing(role, floor, mine, task.missing_usd_per_hour)
            role_back(group.stages[role], mine, has, sizes, wanted)
    return sizes, wanted

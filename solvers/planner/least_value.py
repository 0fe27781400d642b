"""The least priced value of one service in a large fleet: tables of least cost by load, and the way back through them.

Loads are counted in whole parts of the demand, rounded up. Finely cut ones take long, so a coarse table says first
about how far the least value lies above that of divisible replicas. Sizes that alone cost more than that above the best
rate of their role cannot belong to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.derived import derived
from solvers.engine import Role
from solvers.planner.cells import Floats, Ints
from solvers.planner.curve import Curve
from solvers.planner.min_plus import in_turn, parts_of, slide
from solvers.planner.penalties import EXCESS_WEIGHT
from solvers.planner.stocks import ANY_PENALTY, PAIR_ROLES, PARTS, ROLES, Pick, Stocks, members

NEAR = 1e-6  # of a part; far above the rounding of a division
LEAST_PRUNED = 8  # times as finely cut as coarse tables, loads whose tables are worth being preceded by those
LOOSE_RATIO = 0.003  # of the coarse value, what the fine one is guessed to lie above it at most
ROUNDED = 4.0  # parts that roundings of loads may differ by
ROUNDING = 1e-9  # relative, of sums of costs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Told:
    """Sizes 0, 1, … of one pool: load in parts, cost, and the price of the replica that each adds.

    ``price`` and ``count`` are the units, cheapest first. ``beyond_usd_per_hour`` is what a replica costs to run
    beyond these sizes, None where there are none.
    """

    price: Floats
    count: Ints
    loads: Ints
    costs: Floats
    added: Floats
    beyond_usd_per_hour: float | None

    def rounded_up(self, parts: int, coarse: int) -> _Told:
        """The same with loads in fewer parts, none of which carries less."""
        return replace(self, loads=-(-self.loads * coarse // parts))


@dataclass(slots=True, kw_only=True, eq=False)
class _Stage:
    """A table before and after one pool (or the rest of a role), to find the way back."""

    pool: int  # -1 for the rest of a role
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
    by_role: Mapping[Role, Floats]
    stages: Mapping[Role, list[_Stage]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tables:
    """Tables of a service, what is paid by parts carried, and the least of that."""

    groups: Sequence[_Group]
    totals: Sequence[Floats]
    mixed: list[_Stage]
    paid: Floats

    @property
    def usd_per_hour(self) -> float:
        return float(self.paid.min())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Task:
    """What ``least_value`` was asked, with loads in so many parts; ``ratio`` (P,) is USD per part at best."""

    stocks: Stocks
    curves: Mapping[int, Curve]
    kept: frozenset[int]
    asked: Floats
    is_safe: bool
    weight: float
    crossing_usd_per_hour: Mapping[str, float]
    penalties: tuple[float, float]
    floor_usd_per_hour: float
    cheapest_usd_per_hour: Floats
    parts: int

    @property
    def ratio(self) -> Floats:
        """USD per part, of each pool at best; what replicas give back is taken off elsewhere."""
        cheapest = np.maximum(0.0, self.cheapest_usd_per_hour)
        ratio: Floats = cheapest / self.stocks.rate_per_s * self.stocks.demand_per_s / self.parts
        return ratio

    def told(self) -> dict[int, _Told]:
        """Sizes of the pools that are told apart."""
        return {pool: self._told(pool) for pool in sorted(self.kept)}

    def _told(self, pool: int) -> _Told:
        stocks = self.stocks
        price, count, _ = stocks.units(pool, self.asked)
        most = min(stocks.told(pool), int(stocks.most[pool]), int(count.sum()))
        carried, run = self.curves[pool].sizes(most)
        exact = carried / stocks.demand_per_s * self.parts
        loads = (np.floor(exact + NEAR) if self.is_safe else np.ceil(exact - NEAR)).astype(np.int64)
        added = np.repeat(price, np.minimum(count, most))[:most]
        has_more = most == stocks.told(pool) and most < int(stocks.most[pool]) and loads[most] < self.parts
        return _Told(
            price=price,
            count=count,
            loads=loads,
            costs=run + np.concatenate([[0.0], np.cumsum(added)]),
            added=added,
            beyond_usd_per_hour=float(run[most] / most) if has_more else None,
        )

    def paid(self, table: Floats, floor: float) -> Floats:
        """Cost by parts carried, at least that of the floor, with what stays undone."""
        (least, most), stocks = self.penalties, self.stocks
        lacking: Floats = 1.0 - np.arange(self.parts + 1) / self.parts
        unserved: Floats = lacking + EXCESS_WEIGHT * np.maximum(0.0, lacking - stocks.fair_ratio)
        unserved *= stocks.unserved_usd_per_hour
        paid: Floats = np.maximum(table, floor) + self.weight * unserved
        if self.penalties != ANY_PENALTY:
            paid = np.maximum(paid, table + self.weight * least)
            paid[unserved > most] = np.inf
        return paid


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
    task = _Task(
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
    tables = _solved(task)
    part = int(np.argmin(tables.paid))
    sizes, wanted, guessed = _way_back(task, tables, part)
    given = 0.0 if is_safe else _given_usd(stocks, kept, asked)
    return Pick(
        value_usd_per_hour=float(tables.paid[part]) - given + stocks.stop_all_usd_per_hour,
        sizes=sizes | stocks.kept_beyond(kept, asked, sizes),
        served_ratio=part / stocks.parts,
        least_served_ratio=int(np.argmax(tables.paid < np.inf)) / stocks.parts,
        wanted=frozenset(wanted),
        asked_sizes=tuple(guessed),
    )


def _solved(task: _Task) -> _Tables:
    """Tables whose least is that of all sizes; where loads are cut finely, of the sizes that can belong to it."""
    told = task.told()
    is_plain = not (task.is_safe or task.crossing_usd_per_hour or (task.cheapest_usd_per_hour < 0.0).any())
    if not is_plain or task.parts < LEAST_PRUNED * PARTS or len(task.stocks.pair_groups) > 1:
        return _tables(task, told, {pool: np.arange(1, len(one.loads)) for pool, one in told.items()})
    coarse, best = replace(task, parts=PARTS), _best_rates(task, told)
    near = {pool: one.rounded_up(task.parts, PARTS) for pool, one in told.items()}
    first = _tables(coarse, near, {pool: np.arange(1, len(one.loads)) for pool, one in near.items()})
    least = _least_by_role(coarse, first, {role: rate * task.parts / PARTS for role, rate in best.items()}, task.parts)
    value = first.usd_per_hour * (1.0 + LOOSE_RATIO)
    while True:
        tables = _tables(task, told, _useful(task, told, best, {role: value - usd for role, usd in least.items()}))
        if not tables.usd_per_hour > value:
            return tables
        value = tables.usd_per_hour


def _best_rates(task: _Task, told: Mapping[int, _Told]) -> dict[Role, float]:
    """USD per part of each role, at best: no size of any pool costs less by what it carries."""
    ratio, best = task.ratio, dict.fromkeys(ROLES, np.inf)
    for pool, role in enumerate(task.stocks.roles):
        best[role] = min(best[role], float(ratio[pool]))
        if pool in told and len(told[pool].loads) > 1:
            loads = np.clip(told[pool].loads[1:], 1, task.parts)
            best[role] = min(best[role], float((told[pool].costs[1:] / loads).min()))
    return best


def _least_by_role(coarse: _Task, tables: _Tables, best: Mapping[Role, float], fine_parts: int) -> dict[Role, float]:
    """What is paid at least, floors aside, if replicas of one role had its best rate and were divisible.

    Mixed ones count as divisible beside both others. A size of the role adds to that what it costs above the best rate.
    """
    (pairs,), parts = tables.groups, np.arange(coarse.parts + 1)
    prefill, decode, mixed = (_line(best[role], parts) for role in ROLES)
    found: dict[Role, float] = {}
    for role, table in (
        (Role.PREFILL, prefill + pairs.by_role[Role.DECODE]),
        (Role.DECODE, decode + pairs.by_role[Role.PREFILL]),
        (Role.MIXED, pairs.table),
    ):
        beside = np.minimum.accumulate(table - mixed) + mixed if np.isfinite(best[Role.MIXED]) else table
        found[role] = float(coarse.paid(beside, -np.inf).min()) * (1.0 - ROUNDED / fine_parts)
    return found


def _line(rate: float, parts: Ints) -> Floats:
    """What parts cost at a rate; only none cost nothing where there is no rate."""
    line: Floats = np.where(parts > 0, rate, 0.0) * np.maximum(1, parts)
    return line


def _useful(
    task: _Task, told: Mapping[int, _Told], best: Mapping[Role, float], loose: Mapping[Role, float]
) -> dict[int, Ints]:
    """Sizes that cost no more than so much above the best rate of their role, by pool."""
    found: dict[int, Ints] = {}
    for pool, one in told.items():
        role = task.stocks.roles[pool]
        over = one.costs - best[role] * np.minimum(one.loads, task.parts)
        found[pool] = np.flatnonzero(over[1:] <= loose[role] + ROUNDING * one.costs[1:]) + 1
    return found


def _tables(task: _Task, told: Mapping[int, _Told], useful: Mapping[int, Ints]) -> _Tables:
    empty = np.full(task.parts + 1, np.inf)
    empty[0] = 0.0
    groups: list[_Group] = []
    for group in task.stocks.pair_groups:
        stages: dict[Role, list[_Stage]] = {role: [] for role in PAIR_ROLES}
        by_role = {role: _role_table(task, told, useful, role, group, empty, stages[role]) for role in PAIR_ROLES}
        usd = task.crossing_usd_per_hour.get(group, 0.0) / task.parts  # loads were rounded up by less than a part
        crossing = usd * np.maximum(0.0, np.arange(-1, task.parts)) if usd else 0.0
        table = by_role[Role.PREFILL] + by_role[Role.DECODE] + crossing
        groups.append(_Group(table=table, by_role=by_role, stages=stages))
    totals, mixed = in_turn([group.table for group in groups]), list[_Stage]()
    table = _role_table(task, told, useful, Role.MIXED, "", totals[-1], mixed)
    return _Tables(groups=groups, totals=totals, mixed=mixed, paid=task.paid(table, task.floor_usd_per_hour))


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


def _role_table(
    task: _Task,
    told: Mapping[int, _Told],
    useful: Mapping[int, Ints],
    role: Role,
    group: str,
    table: Floats,
    stages: list[_Stage],
) -> Floats:
    """Least cost by parts carried at least, once the pools of a role and KV group may add to ``table``."""
    mine, ratio = derived(task.stocks, members)[role, group].tolist(), task.ratio
    rest = min((p for p in mine if p not in task.kept), key=lambda p: (ratio[p], p), default=-1)
    if rest >= 0 and not task.is_safe:
        slope = ratio[rest] * np.arange(task.parts + 1)
        stages.append(_Stage(pool=-1, before=table, loads=np.zeros(0, int), costs=slope, rest=rest))
        table = np.minimum.accumulate(table - slope) + slope
    for pool in sorted((p for p in mine if p in task.kept), key=lambda p: (ratio[p], p)):
        if len(useful[pool]):
            table = _with_pool(task, pool, told[pool], useful[pool], table, stages)
    return table


def _with_pool(task: _Task, pool: int, told: _Told, useful: Ints, table: Floats, stages: list[_Stage]) -> Floats:
    stage = _Stage(pool=pool, before=table, loads=told.loads, costs=told.costs)
    grown, moved, worst, parts = table.copy(), np.empty_like(table), table[-1], task.parts
    for size, load, cost in zip(useful.tolist(), told.loads[useful].tolist(), told.costs[useful].tolist(), strict=True):
        alone = table[0] + cost
        if alone >= worst:
            if told.added[size - 1] >= 0.0:  # from here on every replica costs something
                break
            continue
        if load >= parts:
            np.minimum(grown, alone, out=grown)
            worst = grown[-1]
            continue
        grown[grown[:load].searchsorted(alone) : load] = alone
        np.add(table[: parts + 1 - load], cost, out=moved[load:])
        np.minimum(grown[load:], moved[load:], out=grown[load:])
        worst = min(worst, grown[-1])
    if told.beyond_usd_per_hour is not None and useful[-1] == len(told.loads) - 1:
        grown = _with_line(task, pool, told, table, grown, stage, told.beyond_usd_per_hour)
    stages.append(stage)
    return grown


def _with_line(
    task: _Task, pool: int, told: _Told, table: Floats, grown: Floats, stage: _Stage, run_usd_per_hour: float
) -> Floats:
    """Sizes beyond those told apart: parts of replicas, the cheapest units that are left first."""
    per_replica = task.stocks.rate_per_s[pool] / task.stocks.demand_per_s * task.parts
    every = task.stocks.every
    load = int(np.ceil(every * per_replica - NEAR))
    if load >= task.parts or table[0] + stage.costs[every] >= grown[-1]:
        return grown
    line = np.full_like(table, np.inf)
    line[load:] = table[:-load] + stage.costs[every]
    line[:load] = table[0] + stage.costs[every]
    taken, lines, parts = every, [], np.arange(task.parts + 1)
    for unit, number in zip(told.price.tolist(), told.count.tolist(), strict=True):
        left = number - min(taken, number)
        taken -= number - left
        if left <= 0:
            continue
        slope = max(0.0, unit + run_usd_per_hour) / per_replica * parts
        width = int(np.ceil(left * per_replica))
        lines.append((line, slope, width))
        line = slide(line - slope, width) + slope
        if width >= task.parts:
            break
    stage.lines, stage.part_rate = tuple(lines), per_replica
    return np.minimum(grown, line)


def _way_back(task: _Task, tables: _Tables, part: int) -> tuple[dict[int, int], set[int], list[tuple[int, int]]]:
    """Sizes by pool that reach the part at its value, the rest's pools among them, and sizes that were guessed."""
    sizes: dict[int, int] = {}
    wanted: set[int] = set()
    part = _role_back(tables.mixed, part, sizes, wanted)
    divided = parts_of([group.table for group in tables.groups], tables.totals, part)
    for group, mine in zip(tables.groups, divided, strict=True):
        for role in PAIR_ROLES:
            _role_back(group.stages[role], mine, sizes, wanted)
    curves = task.curves
    guessed = [
        (p, n)
        for p, n in sorted(sizes.items())
        if p in curves and n <= task.stocks.told(p) and n not in curves[p].rate_per_s
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

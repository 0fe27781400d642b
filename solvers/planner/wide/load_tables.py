"""Tables of what the pools of one role cost at least, by load carried and replicas counted; and the way back.

Loads are counted in whole parts of the demand, rounded up. A pool adds its sizes to a table one by one, and what lies
beyond those as a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.derived import derived
from solvers.engine import Role
from solvers.planner.menus.min_plus import slide
from solvers.planner.pools.cells import Floats, Ints
from solvers.planner.pools.penalties import EXCESS_WEIGHT
from solvers.planner.wide.curve import Curve
from solvers.planner.wide.stocks import ANY_PENALTY, MOST_EVERY, PARTS, Stocks, members

NEAR = 1e-6  # of a part; far above the rounding of a division
MOST_AT_ONCE = 40_000  # loads times sizes that are added at once; rows of more no longer fit the processor's caches
TOGETHER = 8  # pools told apart at once when a value rests on one that is not, of few services that are finely cut


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Told:
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

    def rounded_up(self, parts: int, coarse: int) -> Told:
        """The same with loads in fewer parts, none of which carries less."""
        return replace(self, loads=-(-self.loads * coarse // parts))


@dataclass(slots=True, kw_only=True, eq=False)
class Stage:
    """A table before and after one pool (or the rest of a role), to find the way back."""

    pool: int  # -1 for the rest of a role
    before: Floats
    loads: Ints
    costs: Floats
    lines: tuple[tuple[Floats, Floats, int], ...] = ()  # (table before, slope by part as table, parts)
    begun: int = 0  # parts that a replica of the rest pays for
    slope: float = 0.0  # of the rest beyond those, by part
    rest: tuple[int, ...] = ()  # the cheapest pool of the rest by what it carries, and those that would be it next
    part_rate: float = 0.0
    cheapest: tuple[int, float] = (-1, np.inf)  # of the rest: the pool whose replica costs least, and what that costs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What ``least_value`` was asked, with loads in so many parts and replicas counted towards so much of the floor."""

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
    floor: int = 0

    @property
    def is_plain(self) -> bool:
        """True where no replica gives anything back, and pairs are all of one group."""
        is_bound = not (self.is_safe or self.crossing_usd_per_hour)
        return is_bound and len(self.stocks.pair_groups) == 1 and bool((self.cheapest_usd_per_hour >= 0.0).all())

    @property
    def missing_usd_per_hour(self) -> float:
        """What a replica below the floor costs in either chain."""
        return self.weight * self.stocks.floor_usd_per_hour

    @property
    def ratio(self) -> Floats:
        """USD per part, of each pool at best; what replicas give back is taken off elsewhere."""
        cheapest = np.maximum(0.0, self.cheapest_usd_per_hour)
        ratio: Floats = cheapest / self.stocks.rate_per_s * self.stocks.demand_per_s / self.parts
        return ratio

    def told(self) -> dict[int, Told]:
        """Sizes of the pools that are told apart."""
        return {pool: self._told(pool) for pool in sorted(self.kept)}

    def _told(self, pool: int) -> Told:
        stocks = self.stocks
        price, count, _ = stocks.units(pool, self.asked)
        most = min(stocks.told(pool), int(stocks.most[pool]), int(count.sum()))
        carried, run = self.curves[pool].sizes(most)
        exact = carried / stocks.demand_per_s * self.parts
        loads = (np.floor(exact + NEAR) if self.is_safe else np.ceil(exact - NEAR)).astype(np.int64)
        added = np.repeat(price, np.minimum(count, most))[:most]
        has_more = most == stocks.told(pool) and most < int(stocks.most[pool]) and loads[most] < self.parts
        return Told(
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


def role_table(
    task: Task,
    told: Mapping[int, Told],
    useful: Mapping[int, Ints],
    role: Role,
    group: str,
    table: Floats,
    stages: list[Stage],
) -> Floats:
    """Least cost by parts carried at least, once the pools of a role and KV group may add to ``table``."""
    mine, ratio = derived(task.stocks, members)[role, group].tolist(), task.ratio
    rest = [p for p in mine if p not in task.kept]
    if rest and not task.is_safe:
        stages.append(_stage_of_rest(task, rest, table))
        table = _with_rest(stages[-1])
    for pool in sorted((p for p in mine if p in task.kept), key=lambda p: (ratio[p], p)):
        if len(useful[pool]):
            table = _with_pool(task, pool, told[pool], useful[pool], table, stages)
    return table


def _stage_of_rest(task: Task, rest: Sequence[int], table: Floats) -> Stage:
    """Pools that are not told apart: they carry at the best rate of any, a replica costs the least of any.

    What they carry ends within a part, so one part more than a rate pays for is theirs.
    """
    ratio, cheapest = task.ratio, task.cheapest_usd_per_hour
    together = TOGETHER if task.stocks.every == MOST_EVERY and task.stocks.parts > PARTS else 1
    best = sorted(rest, key=lambda p: (ratio[p], p))[:together]
    least = min(rest, key=lambda p: (cheapest[p], p))
    first, slope = max(0.0, float(cheapest[least])), float(ratio[best[0]])
    begun = min(task.parts, int(np.ceil(first / slope)) + 1 if slope > 0.0 else 1)
    costs = first + slope * np.maximum(0, np.arange(task.parts + 1) - begun)
    costs[0] = 0.0
    return Stage(
        pool=-1,
        before=table,
        loads=np.zeros(0, int),
        costs=costs,
        begun=begun,
        slope=slope,
        rest=tuple(best),
        cheapest=(least, float(cheapest[least])),
    )


def _with_rest(stage: Stage) -> Floats:
    """Let the rest carry any load, and count towards the floor by the replica."""
    before, line = stage.before, stage.slope * np.arange(stage.before.shape[1])
    first = np.concatenate([np.repeat(before[:, :1], stage.begun, axis=1), before[:, : -stage.begun]], axis=1)
    more = np.minimum.accumulate(first + stage.costs[1] - line, axis=1) + line
    carried: Floats = np.minimum(before, more)
    table = carried.copy() if len(carried) > 1 else carried
    for floor in range(1, len(table)):
        for count in range(1, floor + 1):
            alone = stage.before[floor - count, 0] + count * stage.cheapest[1]
            np.minimum(table[floor], np.maximum(carried[floor - count], alone), out=table[floor])
    return table


def _with_pool(task: Task, pool: int, told: Told, useful: Ints, table: Floats, stages: list[Stage]) -> Floats:
    stage = Stage(pool=pool, before=table, loads=told.loads, costs=told.costs)
    if not task.floor and table.size * len(useful) <= MOST_AT_ONCE:
        grown = _with_sizes(table, told.loads[useful], told.costs[useful])
    else:
        grown = _with_each_size(task, told, useful, table)
    if told.beyond_usd_per_hour is not None and useful[-1] == len(told.loads) - 1:
        grown = _with_line(task, pool, told, table[0], grown, stage, told.beyond_usd_per_hour)
    stages.append(stage)
    return grown


def _with_sizes(table: Floats, loads: Ints, costs: Floats) -> Floats:
    """Let sizes add their loads to a table without a floor, all at once: what a call takes is more than a short row."""
    end = table.shape[1]
    most = min(int(loads.max()), end)
    padded = np.concatenate([np.repeat(table[0, :1], most), table[0]])
    shifted: Floats = np.ndarray((most + 1, end), padded.dtype, padded, strides=padded.strides * 2)  # by most, …, 1, 0
    moved = shifted[most - np.minimum(loads, end)]
    moved += costs[:, None]
    grown: Floats = np.minimum(table, moved.min(axis=0))
    return grown


def _with_each_size(task: Task, told: Told, useful: Ints, table: Floats) -> Floats:
    """Let sizes add their loads to a table one by one, until none is worth its cost."""
    grown, moved = table.copy(), np.empty_like(table[0])
    for size, load, cost in zip(useful.tolist(), told.loads[useful].tolist(), told.costs[useful].tolist(), strict=True):
        is_used = _add_size(table[0], load, cost, grown[0], moved)
        for floor in range(1, task.floor + 1):
            is_used |= _add_size(table[max(0, floor - size)], load, cost, grown[floor], moved)
        if not is_used and size >= task.floor and told.added[size - 1] >= 0.0:
            break  # from here on every replica costs something
    return grown


def _add_size(table: Floats, load: int, cost: float, grown: Floats, moved: Floats) -> bool:
    """Let a size add its load to a table; False where it costs more by itself than all that is to be carried."""
    alone, end = table[0] + cost, len(table)
    if alone >= grown[-1]:
        return False
    load = min(load, end)
    grown[grown[:load].searchsorted(alone) : load] = alone
    if load < end:
        np.add(table[: end - load], cost, out=moved[load:])
        np.minimum(grown[load:], moved[load:], out=grown[load:])
    return True


def _with_line(
    task: Task, pool: int, told: Told, table: Floats, grown: Floats, stage: Stage, run_usd_per_hour: float
) -> Floats:
    """Sizes beyond those told apart: parts of replicas, the cheapest units that are left first."""
    per_replica = task.stocks.rate_per_s[pool] / task.stocks.demand_per_s * task.parts
    every = task.stocks.every
    load = _begun(every, per_replica)
    if load >= task.parts or table[0] + stage.costs[every] >= grown[:, -1].max():
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


def _begun(size: int, part_rate: float) -> int:
    """Parts of a size, and one more that replicas beyond it may begin: theirs end within a part."""
    return int(np.ceil(size * part_rate - NEAR)) + 1


def role_back(
    stages: Sequence[Stage], part: int, floor: int, sizes: dict[int, int], wanted: set[int]
) -> tuple[int, int]:
    """Sizes of the pools of a role that reach the part and floor at their value; what is left of both to others."""
    for stage in reversed(stages):
        if stage.pool < 0:
            part, floor = _rest_back(stage, part, floor, sizes, wanted)
            continue
        below = np.maximum(0, part - stage.loads)
        floors = np.maximum(0, floor - np.arange(len(stage.loads)))
        tried = stage.before[floors, below] + stage.costs
        size = int(np.argmin(tried))
        left, floor_left = int(below[size]), int(floors[size])
        if stage.lines and (ended := _line_back(stage, part)) is not None and ended[0] < tried[size] - 1e-9:
            size, left, floor_left = ended[1], ended[2], 0
        if size:
            sizes[stage.pool] = size
        part, floor = left, floor_left
    return part, floor


def _rest_back(stage: Stage, part: int, floor: int, sizes: dict[int, int], wanted: set[int]) -> tuple[int, int]:
    """What the rest adds at a part and a floor; what is left of both to others."""
    found: list[tuple[float, int, int]] = []
    for count in range(floor + 1):
        before = stage.before[floor - count]
        tried = before[: part + 1] + stage.costs[part::-1]
        left = int(np.argmin(tried))
        alone = before[0] + count * stage.cheapest[1] if count else -np.inf
        found.append((max(float(tried[left]), float(alone)), count, left))
    _, count, left = min(found)
    if left < part:
        wanted.update(stage.rest)
        if part - left <= stage.begun:  # it is the cheapest replica that pays for these
            wanted.add(stage.cheapest[0])
        sizes[stage.rest[0]] = sizes.get(stage.rest[0], 0) + 1
    if count > (left < part):
        pool = stage.cheapest[0]
        wanted.add(pool)
        sizes[pool] = sizes.get(pool, 0) + count - (left < part)
    return left, floor - count


def _line_back(stage: Stage, part: int) -> tuple[float, int, int] | None:
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
    load = _begun(every, stage.part_rate)
    return value, every + int(np.ceil(moved / stage.part_rate - NEAR)), max(0, at - load)

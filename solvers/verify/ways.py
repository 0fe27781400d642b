"""The least that one service can cost at prices: its pools combined by the load they carry, never too dear.

Everything here errs to the low side: loads are rounded up to parts of the demand, sizes that were not asked for count
at the rate of a larger and the draw of a smaller one, pools that look dear carry load at the best rate of any of them.
``Stock.ask`` makes sizes exact; ``least`` says which ones its answer rests on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import minimum_filter1d

from solvers.engine import Role
from solvers.verify.stock import BEYOND, NEAR, Floats, Ints, Stock, tell_apart

PAIR = (Role.PREFILL, Role.DECODE)
TOGETHER = 3  # pools that are told apart at once when a value rests on the cheapest of them
MOST_STRETCHES = 12  # of units at about one price, beyond the sizes told apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a service is asked and what failing it weighs. ``floor`` replicas in each chain, 0 to leave that out.

    ``missing`` says how much a chain (prompts, then tokens) lacks that has 0, 1, … ``floor`` replicas; where it says
    nothing, what is left to the floor.
    ``served_ratio`` is the most of the demand that any way can serve, and ``least_usd_per_hour`` what any way pays for
    replicas and those it lacks, for whatever reason. Of penalties, the ways in question have at least
    ``least_penalty_usd_per_hour`` and at most ``most_penalty_usd_per_hour``.
    """

    demand_per_s: float
    unserved_usd_per_hour: float
    fair_ratio: float
    floor: int
    floor_usd_per_hour: float
    served_ratio: float = 1.0
    least_usd_per_hour: float = -math.inf
    least_penalty_usd_per_hour: float = 0.0
    most_penalty_usd_per_hour: float = math.inf
    missing: tuple[tuple[int, ...], ...] = ()

    def lacks(self, chain: int) -> Ints:
        """What the chain lacks by its replicas; (floor + 1,)."""
        every = np.arange(self.floor, -1, -1)
        return np.array(self.missing[chain], dtype=np.int64) if self.missing else every


@dataclass(slots=True, kw_only=True)
class _Stage:
    """A table before one pool, or before all that are not told apart, and what it was changed by."""

    before: Floats
    stock: int
    amounts: Ints
    costs: Floats
    sizes: Ints
    stocks: Ints
    beyond: Sequence[_Beyond] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beyond:
    """Replicas of a pool beyond those told apart, as parts of replicas.

    Of ``stock``, ``begun`` parts are carried by those told apart; then, stretch by stretch, a table to start from, the
    price of a part, and how many parts are had at that price.
    """

    stock: int
    begun: int
    stretches: Sequence[tuple[Floats, float, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """The value, and what it rests on that is only hoped for: (stock, size).

    Size 0 stands for a pool that is not told apart, ``BEYOND`` for more replicas than are.
    """

    usd_per_hour: float
    hoped: tuple[tuple[int, int], ...]


Tables = dict[tuple[Role, tuple[str, ...]], tuple[object, Floats, list["_Stage"]]]
"""What the last look found of each role and group, and what it rests on."""

Crossing = Mapping[tuple[str, ...], float]
"""USD per hour by group: what pairs of the whole demand pay for what prices give their replicas."""


def least(
    stocks: Sequence[Stock],
    apart: set[int],
    asked: Asked,
    parts: int,
    tables_before: Tables | None = None,
    crossing_usd_per_hour: Crossing | None = None,
) -> Least:
    """Find a value that no way of running the service undercuts.

    Parameters
    ----------
    tables_before : dict, optional
        Of the last look at the same service, for the roles of which nothing new is known; brought up to date.

    Raises
    ------
    ValueError
        A floor is asked of pools that pair in several groups, which tables by load alone do not know.
    """
    memo: Tables = {} if tables_before is None else tables_before
    parts = parts if asked.demand_per_s > 0.0 else 0
    both = _Both.of(memo, stocks, apart, asked, parts, crossing_usd_per_hour or {})
    table, mixed = _remembered(memo, stocks, apart, asked, (Role.MIXED, ()), both.totals[-1])
    by_load, by_penalty, paid = _paid(table, asked)
    part = int(np.argmin(paid))
    uses: list[tuple[int, int]] = []
    floor, left = _back(mixed, asked.floor if by_load[part] >= by_penalty[part] else 0, part, uses)
    both.back(floor, left, uses)
    gives = [s.given_usd_per_hour(s.most if i in apart else 0) for i, s in enumerate(stocks)]
    hoped = {(i, n) for i, n in uses if stocks[i].is_hoped(n)}
    hoped |= {(i, 0) for i, usd in enumerate(gives) if usd > 0.0 and i not in apart}
    return Least(usd_per_hour=float(paid[part]) - math.fsum(gives), hoped=tuple(sorted(hoped)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Both:
    """Prefill and decode together, by group: least costs of each role, of their pairs, and of the first groups' pairs.

    ``sides`` are the stages of either role, ``kept`` the floors that they keep, missing replicas paid for.
    """

    sides: Sequence[Sequence[list[_Stage]]]
    kept: Sequence[Sequence[Ints]]
    pairs: Sequence[Floats]
    totals: Sequence[Floats]

    @classmethod
    def of(
        cls, memo: Tables, stocks: Sequence[Stock], apart: set[int], asked: Asked, parts: int, crossing: Crossing
    ) -> _Both:
        """Combine the roles of each group, then the groups."""
        groups = sorted({stock.group for stock in stocks if stock.role is not Role.MIXED}) or [()]
        if asked.floor and len(groups) > 1:
            raise ValueError(f"a floor of {asked.floor} replicas in {len(groups)} groups; leave the floor out")
        empty = np.full((asked.floor + 1, parts + 1), np.inf)
        empty[0, 0] = 0.0
        found = [[_remembered(memo, stocks, apart, asked, (role, group), empty) for role in PAIR] for group in groups]
        usd = asked.floor_usd_per_hour
        kept = [[_with_missing(t, usd, asked.lacks(chain)) for chain, (t, _) in enumerate(side)] for side in found]
        before = np.maximum(0.0, np.arange(-1, parts)) / max(1, parts)
        pairs = [
            prefill[0] + decode[0] + crossing.get(group, 0.0) * before  # loads were rounded up by less than a part
            for group, (prefill, decode) in zip(groups, kept, strict=True)
        ]
        totals = [pairs[0]]
        for pair in pairs[1:]:
            totals.append(_shared_out(totals[-1], pair))
        return cls(
            sides=[[stages for _, stages in side] for side in found],
            kept=[[floors for _, floors in side] for side in kept],
            pairs=pairs,
            totals=totals,
        )

    def back(self, floor: int, load: int, uses: list[tuple[int, int]]) -> None:
        """Add what the value of all groups at (floor, load) rests on."""
        for side, kept, mine in zip(self.sides, self.kept, _divided(self.pairs, self.totals, load), strict=True):
            for stages, floors in zip(side, kept, strict=True):
                _back(stages, int(floors[floor, mine]), mine, uses)


def _paid(table: Floats, asked: Asked) -> tuple[Floats, Floats, Floats]:
    """Costs by parts carried: with the penalties of the rest, with the least penalties asked, and all in all."""
    parts = table.shape[1] - 1
    lacking = 1.0 - np.arange(parts + 1) / max(1, parts) if parts else np.zeros(1)
    beyond = np.maximum(0.0, lacking - asked.fair_ratio)
    unserved = asked.unserved_usd_per_hour * (lacking + beyond)
    by_load = np.maximum(table[asked.floor], asked.least_usd_per_hour) + unserved
    by_penalty = table[0] + asked.least_penalty_usd_per_hour
    paid = np.where(unserved <= asked.most_penalty_usd_per_hour, np.maximum(by_load, by_penalty), np.inf)
    return by_load, by_penalty, paid[: int(np.ceil(asked.served_ratio * parts)) + 1]


def _shared_out(one: Floats, other: Floats) -> Floats:
    """Least cost of at least each load when it is shared out between two tables, (1, N) each."""
    few, many = sorted((one[0], other[0]), key=lambda table: len(_rises(table)))
    total = np.full(len(few), np.inf)
    for part in _rises(few):
        if few[part] + many[0] < total[-1]:  # else all that is asked is had for less
            np.minimum(total[: part + 1], few[part] + many[0], out=total[: part + 1])
            np.minimum(total[part:], few[part] + many[: len(many) - part], out=total[part:])
    return total[None, :]


def _rises(table: Floats) -> Ints:
    """Loads after which more costs more."""
    return np.flatnonzero(np.isfinite(table) & (np.append(table[1:], np.inf) > table))


def _divided(tables: Sequence[Floats], totals: Sequence[Floats], load: int) -> list[int]:
    """Part of the load that each table takes, where ``totals`` are the least costs of the first, the first two, …"""
    found: list[int] = []
    for table, before in zip(tables[:0:-1], totals[-2::-1], strict=True):
        mine = int(np.argmin(table[0, : load + 1] + before[0, load::-1]))
        found.append(mine)
        load -= mine
    return [load, *reversed(found)]


def _with_missing(table: Floats, floor_usd_per_hour: float, missing: Ints) -> tuple[Floats, Ints]:
    """Least cost by floor and load when missing replicas may be paid for; and the floor that is kept.

    What is left of the whole floor stands on mixed replicas, which count for the chain too.
    """
    paid, kept = table.copy(), np.zeros(table.shape, dtype=np.int64)
    for floor in range(len(table)):
        lacking = missing[len(table) - 1 - floor :][: floor + 1, None] * floor_usd_per_hour + table[: floor + 1]
        kept[floor] = np.argmin(lacking, axis=0)
        paid[floor] = np.min(lacking, axis=0)
    return paid, kept


def _remembered(
    memo: Tables,
    stocks: Sequence[Stock],
    apart: set[int],
    asked: Asked,
    of: tuple[Role, tuple[str, ...]],
    table: Floats,
) -> tuple[Floats, list[_Stage]]:
    """The tables of a role and group, found anew only when a pool of them, or the table to begin with, is another."""
    members = [i for i, s in enumerate(stocks) if (s.role, s.group if s.role is not Role.MIXED else ()) == of]
    rests_on = (
        tuple((len(stocks[i].known), stocks[i].most, i in apart) for i in members),
        asked,
        table.shape,
        table.tobytes(),
    )
    before = memo.get(of)
    if before is None or before[0] != rests_on:
        memo[of] = rests_on, *_combined(stocks, apart, asked, members, table)
    return memo[of][1], memo[of][2]


def _combined(
    stocks: Sequence[Stock], apart: set[int], asked: Asked, members: Sequence[int], table: Floats
) -> tuple[Floats, list[_Stage]]:
    """Least cost by (replicas at least, parts at least) once the pools of a role and group add to the table."""
    stages: list[_Stage] = []
    parts = table.shape[1] - 1
    mine = [i for i in members if stocks[i].rate_per_s > 0.0]
    if rest := [i for i in mine if i not in apart]:
        stages.append(_rest_stage(stocks, rest, asked, table))
        table = _with_rest(stages[-1], table)
    pairs: dict[tuple[str, ...], list[int]] = {}
    for i in sorted((i for i in mine if i in apart), key=lambda i: (stocks[i].slope, i)):
        pairs.setdefault(stocks[i].pair, []).append(i)
    for members in pairs.values():
        stage = _stage(stocks, members, asked, table, parts)
        stages.append(stage)
        table = _with_sizes(stage, table)
    return table, stages


def _rest_stage(stocks: Sequence[Stock], rest: Sequence[int], asked: Asked, table: Floats) -> _Stage:
    """Pools that are not told apart: parts at the best rate of any, and no less than the cheapest replica of any."""
    parts = table.shape[1] - 1
    whole = [max(0.0, float(stocks[i].units_usd_per_hour[0]) + stocks[i].idle_usd_per_hour) for i in rest]
    steepest = min(rest, key=lambda i: stocks[i].slope)
    slope = max(0.0, stocks[steepest].slope) * asked.demand_per_s / max(1, parts)
    begun = min(parts, int(np.ceil(min(whole) / slope)) + 1) if slope > 0.0 else parts
    costs = min(whole) + slope * np.maximum(0.0, np.arange(parts + 1) - begun)
    costs[0] = 0.0
    none = np.zeros(0, dtype=np.int64)
    cheapest = rest[int(np.argmin(whole))]
    return _Stage(
        before=table, stock=steepest, amounts=none, costs=costs, sizes=none, stocks=np.array([steepest, cheapest])
    )


def _with_rest(stage: _Stage, table: Floats) -> Floats:
    """The table when pools that are not told apart may carry any part, as ``stage.costs`` says."""
    parts = table.shape[1] - 1
    begun = int(np.searchsorted(stage.costs[1:], stage.costs[min(1, parts)], side="right"))
    slope = stage.costs[-1] - stage.costs[-2] if begun < parts else 0.0
    return np.minimum(table, _slid(_shifted(table, begun) + stage.costs[min(1, parts)], slope, parts + 1))


def _stage(stocks: Sequence[Stock], members: Sequence[int], asked: Asked, table: Floats, parts: int) -> _Stage:
    """The sizes of one pool at any of its caps, nothing first."""
    amounts, costs = [np.zeros(1, dtype=np.int64)], [np.zeros(1)]
    sizes, owners = [np.zeros(1, dtype=np.int64)], [np.full(1, members[0])]
    beyond: list[_Beyond] = []
    for i in members:
        amount, cost = stocks[i].curve(asked.demand_per_s, parts)
        amounts.append(amount[1:])
        costs.append(cost[1:])
        sizes.append(np.arange(1, len(amount)))
        owners.append(np.full(len(amount) - 1, i))
        if (more := _beyond(stocks[i], i, asked, table, float(cost[-1]))) is not None:
            beyond.append(more)
    return _Stage(
        before=table,
        stock=members[0],
        amounts=np.concatenate(amounts),
        costs=np.concatenate(costs),
        sizes=np.concatenate(sizes),
        stocks=np.concatenate(owners),
        beyond=beyond,
    )


def _beyond(stock: Stock, index: int, asked: Asked, table: Floats, cost: float) -> _Beyond | None:
    """Sizes beyond those told apart, at the rate of the largest of these; None where they are of no use."""
    units, parts = stock.units_usd_per_hour[stock.most :], table.shape[1] - 1
    per_replica = stock.rate_per_s / asked.demand_per_s * parts if parts else 0.0
    if not len(units) or per_replica * stock.most >= parts:
        return None
    begun = int(np.ceil(stock.most * per_replica - NEAR)) + 1  # what lies beyond ends within a part
    start, stretches = _shifted(table, begun) + cost, list[tuple[Floats, float, int]]()
    useful = units[: int(np.ceil((parts + 1) / per_replica))]
    for bunch in _stretches(useful):
        slope = max(0.0, float(bunch[0]) + stock.known[stock.most][1]) / per_replica
        width = int(np.ceil(len(bunch) * per_replica))
        stretches.append((start, slope, width))
        start = _slid(start, slope, width)
    return _Beyond(stock=index, begun=begun, stretches=stretches)


def _stretches(units: Floats) -> list[Floats]:
    """Cut ascending prices where they jump most; the first of a stretch speaks for all of it."""
    jumps = np.diff(units)
    largest = np.argsort(-jumps, kind="stable")[: MOST_STRETCHES - 1]
    return np.split(units, np.sort(largest[jumps[largest] > 0.0]) + 1)


def _shifted(table: Floats, parts: int) -> Floats:
    """The table when so many parts more are carried; those above the floor count for any floor."""
    top = np.repeat(table.min(axis=0, keepdims=True), len(table), axis=0)
    return np.concatenate([np.repeat(top[:, :1], parts, axis=1), top[:, : top.shape[1] - parts]], axis=1)


def _slid(table: Floats, slope: float, width: int) -> Floats:
    """The table when up to so many parts more may be carried at the slope."""
    line = slope * np.arange(table.shape[1])
    flat = table - line
    if width >= table.shape[1]:
        slid: Floats = np.minimum.accumulate(flat, axis=1) + line
        return slid
    lowest: Floats = minimum_filter1d(flat, width + 1, axis=1, mode="constant", cval=np.inf, origin=width // 2)
    return lowest + line


def _with_sizes(stage: _Stage, table: Floats) -> Floats:
    grown, parts = table.copy(), table.shape[1] - 1
    floors = np.arange(len(table))
    for amount, cost, size in zip(
        stage.amounts[1:].tolist(), stage.costs[1:].tolist(), stage.sizes[1:].tolist(), strict=True
    ):
        if table[0, 0] + cost >= grown[-1, -1]:  # all that is asked is had for less
            continue
        if len(table) == 1:  # the usual case, without a copy of the table
            np.minimum(grown[0, :amount], table[0, 0] + cost, out=grown[0, :amount])
            np.minimum(grown[0, amount:], table[0, : parts + 1 - amount] + cost, out=grown[0, amount:])
            continue
        below = table[np.maximum(0, floors - size)]
        np.minimum(grown[:, :amount], below[:, :1] + cost, out=grown[:, :amount])
        np.minimum(grown[:, amount:], below[:, : parts + 1 - amount] + cost, out=grown[:, amount:])
    for more in stage.beyond:
        np.minimum(grown, _slid(*more.stretches[-1]), out=grown)
    return grown


def _back(stages: Sequence[_Stage], floor: int, part: int, uses: list[tuple[int, int]]) -> tuple[int, int]:
    """What the value at (floor, part) is made of; returns the floor and the part that were there before."""
    for stage in reversed(stages):
        if not len(stage.sizes):
            tried = stage.before.min(axis=0)[part::-1] + stage.costs[: part + 1]
            tried[0] = stage.before[floor, part]
            if taken := int(np.argmin(tried)):
                uses += [(i, 0) for i in stage.stocks.tolist()]
                part -= taken
                floor = int(np.argmin(stage.before[:, part]))
            continue
        rows, columns = np.maximum(0, floor - stage.sizes), np.maximum(0, part - stage.amounts)
        tried = stage.before[rows, columns] + stage.costs
        entry = int(np.argmin(tried))
        ended = [(*_beyond_back(more, floor, part), more.stock) for more in stage.beyond]
        if ended and min(ended)[0] < tried[entry] - 1e-9:
            _, part, stock = min(ended)
            floor = int(np.argmin(stage.before[: floor + 1, part]))
            uses.append((stock, BEYOND))  # the size at which they begin is exact already
            continue
        if stage.sizes[entry]:
            uses.append((int(stage.stocks[entry]), int(stage.sizes[entry])))
        floor, part = int(rows[entry]), int(columns[entry])
    return floor, part


def _beyond_back(more: _Beyond, floor: int, part: int) -> tuple[float, int]:
    """Value at (floor, part) with more replicas than are told apart, and the part that is left to others."""
    at, found = part, np.inf
    for start, slope, width in reversed(more.stretches):
        low = max(0, at - width)
        tried = start[floor, low : at + 1] + slope * (at - np.arange(low, at + 1))
        best = int(np.argmin(tried))
        found = float(tried[best]) if at == part and not np.isfinite(found) else found
        at = low + best
    return found, max(0, at - more.begun)


def _next_to(stocks: Sequence[Stock], apart: set[int], index: int) -> list[int]:
    """A pool that is not told apart and those that the value would rest on next, were it dearer."""
    of = stocks[index].role, stocks[index].group
    alike = [i for i, s in enumerate(stocks) if (s.role, s.group) == of and i not in apart and np.isfinite(s.slope)]
    return [index, *sorted((i for i in alike if i != index), key=lambda i: (stocks[i].slope, i))[: TOGETHER - 1]]


def refine(stocks: Sequence[Stock], apart: set[int], found: Least) -> bool:
    """Make exact what the value rests on; False when all of it was."""
    is_changed = False
    for index, size in found.hoped:
        if size == BEYOND:
            is_changed = stocks[index].tell_more() or is_changed
        elif size:
            is_changed = stocks[index].ask(size) or is_changed
        elif index not in apart:
            for more in _next_to(stocks, apart, index):
                apart.add(more)
                tell_apart(stocks[more])
            is_changed = True
    return is_changed


def value(stocks: Sequence[Stock], apart: set[int], asked: Asked, parts: int, rounds: int) -> float:
    """The least value once up to so many rounds have made exact what it rests on."""
    found = least(stocks, apart, asked, parts)
    for _ in range(rounds):
        if not refine(stocks, apart, found):
            break
        found = least(stocks, apart, asked, parts)
    return found.usd_per_hour

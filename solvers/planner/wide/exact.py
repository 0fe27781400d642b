"""The least value of a service with whole replicas and pairs by side, as a small integer model at prices.

``stocks.py`` lets replicas of one price stand on any side, so a service may prefill on one side of a link and decode on
another at the mean of what both ways would pay. Here every side has its own flow. Sizes of pools are left out instead:
a replica carries what one of the largest pool does and draws what is drawn at the best size. Both values are bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from solvers.engine import Role
from solvers.planner.model.relax import SPARED, Arrays, solve_whole
from solvers.planner.pools.cells import Floats, Ints
from solvers.planner.pools.penalties import EXCESS_WEIGHT
from solvers.planner.wide.curve import Curve
from solvers.planner.wide.stocks import PAIR_ROLES, Stocks
from solvers.programme import Run, stacked

MOST_NODES = 100
LOST = 0.02  # of a replica's rate, what a pool of one has to carry less for sizes to be told apart
EXACT_GAP = 0.1  # of the gap asked, what a search may leave open


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crossing:
    """Sides of a service's cells, and what a request pays to leave and to enter each, by KV group.

    Attributes
    ----------
    side : (C,) int
        Of each cell, from 0.
    usd : mapping of KV group to ((K + 1,) float, (K + 1,) float)
        USD per hour for a request per second.
    takes : mapping of KV group to (K + 1,) float, optional
        What a request per second takes of a link there, each way.
    most : (K + 1,) float, optional
        Links of each side; without them any number of requests may cross.
    """

    side: Ints
    usd: Mapping[str, tuple[Floats, Floats]]
    takes: Mapping[str, Floats] = field(default_factory=dict)
    most: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """A bound on what the service costs at the prices, and what comes near it: replicas of each cell, (C,)."""

    bound_usd_per_hour: float
    replicas: Floats
    served_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """What replicas cost and draw at least, and carry at most, by the size of their pool, which may come in parts.

    Attributes
    ----------
    whole : tuple of int
        The whole pool of each of the stocks' pools.
    lines : mapping of whole pool to ((USD per hour at size 0, USD per hour and replica), …)
        A pool costs and draws no less than any of its lines says; the first begins at nothing.
    carries : mapping of whole pool to (requests/s at size 0, requests/s and replica)
        A pool of one or more replicas carries no more than its line says.
    most : (P,) float
        Replicas of each whole pool.
    pairs : mapping of the stocks' pool to requests/s
        What pairs of a KV group carry at most for each replica there, of either role; of all its pools or of none.
    """

    whole: tuple[int, ...]
    lines: Mapping[int, tuple[tuple[float, float], ...]]
    carries: Mapping[int, tuple[float, float]]
    most: Floats
    pairs: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stated:
    """A service's model: the cell of each of its first columns, where what is unserved stands, and what crosses.

    ``crossed`` is by side, way (0 out, 1 in) and column, with what a request per second takes of a link.
    """

    arrays: Arrays
    cell: Ints
    unserved: int
    crossed: Sequence[tuple[int, int, int, float]]

    def replicas(self, x: Floats, cells: int) -> Floats:
        """Replicas of each cell in a solution, (C,)."""
        found = np.zeros(cells)
        np.add.at(found, self.cell, np.round(x[: len(self.cell)]))
        return found

    def served_ratio(self, x: Floats, demand_per_s: float) -> float:
        """Share of the demand that a solution serves."""
        return max(0.0, 1.0 - float(x[self.unserved]) / demand_per_s)


@dataclass(slots=True, kw_only=True)
class _Model:
    """Columns and rows in the making; rows are entries by column, and their ends."""

    cost: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    rows: list[Mapping[int, float]] = field(default_factory=list)
    ends: list[tuple[float, float]] = field(default_factory=list)

    def column(self, cost: float = 0.0, upper: float = np.inf) -> int:
        """A new column, at least 0; returns where it is."""
        self.cost.append(cost)
        self.upper.append(upper)
        return len(self.cost) - 1

    def row(self, entries: Mapping[int, float], least: float, most: float) -> None:
        self.rows.append(entries)
        self.ends.append((least, most))

    def arrays(self, whole: int) -> Arrays:
        """The model with its first columns whole."""
        return Arrays(
            cost=np.array(self.cost),
            matrix=stacked(self.rows, len(self.cost)),
            row_lower=np.array([least for least, _ in self.ends]),
            row_upper=np.array([most for _, most in self.ends]),
            lower=np.zeros(len(self.cost)),
            upper=np.array(self.upper),
            whole=np.arange(len(self.cost)) < whole,
            columns={},
            rows=(),
        )


def least_whole(
    stocks: Stocks,
    draws: Draws,
    asked: Floats,
    crossing: Crossing | None,
    *,
    weight: float,
    gap: float,
    time_limit_s: float,
    run: Run,
) -> Found:
    """Bound the service at the prices, no replica divided and no pair anywhere but where it is.

    Parameters
    ----------
    draws : Draws
        What replicas cost and draw at least.
    asked : (C,) float
        What a replica of each cell pays for what services share, USD per hour.
    crossing : Crossing, optional
        Without it no pair crosses from one of the stocks' groups to another, and inside all may pair.
    weight : float
        Times its penalties, what the service pays for what it leaves undone.
    gap : float
        Relative gap asked of the whole decision.

    Raises
    ------
    SolveFailed
        When HiGHS gives no solution within its nodes.
    """
    stated = state_whole(stocks, draws, asked, crossing, weight=weight)
    solved = solve_whole(
        stated.arrays,
        relative_gap=EXACT_GAP * gap,
        time_limit_s=time_limit_s,
        node_limit=MOST_NODES,
        run=run,
        spared=SPARED,
    )
    return Found(
        bound_usd_per_hour=solved.bound + stocks.stop_all_usd_per_hour,
        replicas=stated.replicas(solved.x, len(asked)),
        served_ratio=stated.served_ratio(solved.x, stocks.demand_per_s),
    )


def draws_of(stocks: Stocks, curves: Mapping[int, Curve], whole: Sequence[int]) -> Draws:
    """Lines below what pools cost and draw by size; idle where no curve is known."""
    lines: dict[int, tuple[tuple[float, float], ...]] = {
        pool: ((0.0, float(usd)),) for pool, usd in enumerate(stocks.run_usd_per_hour)
    }
    for pool, curve in curves.items():
        told, most = min(stocks.told(pool), int(stocks.most[pool])), int(stocks.most[pool])
        if told and curve.rate_per_s:
            run = curve.sizes(told)[1]
            beyond = [(most, most * run[told] / told)] if most > told else []
            lines[pool] = tuple(_lines_below([*enumerate(run.tolist()), *beyond]))
    above = {pool: _line_above(stocks, pool, curve) for pool, curve in sorted(curves.items()) if pool in whole}
    carries = {pool: line for pool, line in above.items() if line is not None}
    return Draws(whole=tuple(whole), lines=lines, carries=carries, most=stocks.most.astype(float))


def _line_above(stocks: Stocks, pool: int, curve: Curve) -> tuple[float, float] | None:
    """The line through what one replica carries that no size passes; None where small pools carry nearly as much."""
    told, most, rate = stocks.told(pool), int(stocks.most[pool]), float(stocks.rate_per_s[pool])
    told = min(told, most)
    if told < 1 or most < 2 or not curve.rate_per_s:
        return None
    carried = curve.sizes(told)[0].tolist()
    points = [*enumerate(carried[1:], start=1), *((n, n * rate) for n in (told + 1, most) if n > told)]
    slope = max((load - carried[1]) / (n - 1) for n, load in points[1:])
    return (carried[1] - slope, slope) if carried[1] < (1.0 - LOST) * rate else None


def _lines_below(points: Sequence[tuple[int, float]]) -> Iterator[tuple[float, float]]:
    """(value at none, slope) of the lines of the lower convex hull of points, by size."""
    hull: list[tuple[int, float]] = []
    for n, usd in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (n, usd)):
            hull.pop()
        hull.append((n, usd))
    for one, other in pairwise(hull):
        yield one[1] - _slope(one, other) * one[0], _slope(one, other)


def _slope(one: tuple[int, float], other: tuple[int, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def state_whole(stocks: Stocks, draws: Draws, asked: Floats, crossing: Crossing | None, *, weight: float) -> Stated:
    """State the model of ``least_whole``, whose parameters these are."""
    mine = _Replicas.of(stocks, draws, asked)
    model = mine.model
    used = {p: model.column(upper=1.0) for p in sorted(draws.carries)}
    whole, lacks = len(model.cost), weight * stocks.unserved_usd_per_hour / stocks.demand_per_s
    unserved, beyond = model.column(lacks), model.column(EXCESS_WEIGHT * lacks)
    model.row({unserved: 1.0, beyond: -1.0}, -np.inf, stocks.fair_ratio * stocks.demand_per_s)
    mine.draw()
    mixed = mine.flow(mine.are(Role.MIXED))
    flowing: dict[Role, list[int]] = {Role.MIXED: [mixed], **{role: [] for role in PAIR_ROLES}}
    crossed: list[tuple[int, int, int, float]] = []
    for group in stocks.pair_groups:
        flows, over = mine.pair(group, crossing)
        takes = crossing.takes.get(group, np.zeros(0)) if crossing else np.zeros(0)
        crossed += [(at, way, column, float(takes[at])) for (at, way), column in over.items() if len(takes)]
        for role in PAIR_ROLES:
            flowing[role] += flows[role]
        mine.limit_pairs(group, flows)
    for role, columns in flowing.items():
        mine.limit_small(role, used, columns)
    for role in PAIR_ROLES:
        served = dict.fromkeys([unserved, mixed, *flowing[role]], 1.0)
        model.row(served, stocks.demand_per_s, stocks.demand_per_s)
    if crossing is not None and len(crossing.most):
        _limit_links(model, crossed, crossing.most)
    return Stated(arrays=model.arrays(whole), cell=mine.cell, unserved=unserved, crossed=crossed)


def _limit_links(model: _Model, crossed: Sequence[tuple[int, int, int, float]], most: Floats) -> None:
    """No more crosses than the links of a side carry each way; ``crossed`` is by side, way, column and what it takes.

    What one service may send alone prices leave open: they are of what all send together.
    """
    rows: dict[tuple[int, int], dict[int, float]] = {}
    for at, way, column, takes in crossed:
        rows.setdefault((at, way), {})[column] = takes
    for (at, _), row in sorted(rows.items()):
        if any(row.values()):
            model.row(row, -np.inf, float(most[at]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replicas:
    """A model's columns of replicas, which come first: the cell of each and its pool, (N,)."""

    stocks: Stocks
    draws: Draws
    model: _Model
    cell: Ints
    pool: Ints

    @classmethod
    def of(cls, stocks: Stocks, draws: Draws, asked: Floats) -> _Replicas:
        """Replicas of each cell that are started, then those that stay; no pool is larger than it may be."""
        usd = asked + stocks.terms_usd_per_hour
        model, pool = _Model(), np.repeat(np.arange(len(stocks.roles)), np.diff(stocks.first))
        now = np.minimum(stocks.now, stocks.room)
        stays = np.flatnonzero(now)
        for at in range(len(usd)):
            model.column(float(usd[at] + stocks.start_usd_per_hour[pool[at]]), float(stocks.room[at] - now[at]))
        for at in stays.tolist():
            model.column(float(usd[at] - stocks.stop_usd_per_hour[pool[at]]), float(now[at]))
        cell = np.concatenate([np.arange(len(usd)), stays])
        for p, most in enumerate(stocks.most.tolist()):
            held = np.flatnonzero(pool[cell] == p).tolist()
            if sum(model.upper[column] for column in held) > most:
                model.row(dict.fromkeys(held, 1.0), -np.inf, float(most))
        return cls(stocks=stocks, draws=draws, model=model, cell=cell, pool=pool[cell])

    @property
    def whole(self) -> Ints:
        """The whole pool of each column."""
        return np.array(self.draws.whole, dtype=np.int64)[self.pool]

    def are(self, role: Role, group: str | None = None) -> NDArray[np.bool_]:
        """Which columns are of a role, and of a KV group if one is named."""
        stocks = self.stocks
        able = [stocks.roles[p] is role if group is None else stocks.is_of(p, role, group) for p in self.pool.tolist()]
        return np.array(able, dtype=bool)

    def draw(self) -> None:
        """What replicas cost and draw: by the size of their pool, the largest of its lines."""
        whole = self.whole
        for p in sorted(set(whole.tolist())):
            mine, lines = np.flatnonzero(whole == p).tolist(), self.draws.lines[p]
            first = lines[0][1]
            for column in mine:
                self.model.cost[column] += first
            if len(lines) > 1:
                more = self.model.column(1.0)
                for none, slope in lines[1:]:
                    self.model.row(dict.fromkeys(mine, slope - first) | {more: -1.0}, -np.inf, -none)

    def flow(self, are_mine: NDArray[np.bool_]) -> int:
        """A column for what some of the columns carry, requests/s."""
        flow = self.model.column()
        rates = {column: -self._rate_per_s(column) for column in np.flatnonzero(are_mine).tolist()}
        self.model.row({flow: 1.0} | rates, -np.inf, 0.0)
        return flow

    def _rate_per_s(self, column: int) -> float:
        return float(self.stocks.rate_per_s[self.pool[column]])

    def pair(self, group: str, crossing: Crossing | None) -> tuple[dict[Role, list[int]], dict[tuple[int, int], int]]:
        """Prefill and decode of a KV group carry the same on each side but for what crosses.

        Returns their flows, and the columns of what crosses by side and way.
        """
        are = {role: self.are(role, group) for role in PAIR_ROLES}
        side = np.zeros(len(self.cell), dtype=np.int64) if crossing is None else crossing.side[self.cell]
        crossed, all_flows = dict[int, float](), {role: list[int]() for role in PAIR_ROLES}
        over: dict[tuple[int, int], int] = {}
        for at in sorted(set(side[are[Role.PREFILL] | are[Role.DECODE]].tolist())):
            flows = [self.flow(are[role] & (side == at)) for role in PAIR_ROLES]
            balance = dict(zip(flows, (1.0, -1.0), strict=True))
            for role, flow in zip(PAIR_ROLES, flows, strict=True):
                all_flows[role].append(flow)
            if crossing is not None:
                out, into = (self.model.column(float(paid[at])) for paid in crossing.usd[group])
                balance |= {out: -1.0, into: 1.0}
                crossed |= {out: 1.0, into: -1.0}
                over |= {(at, 0): out, (at, 1): into}
            self.model.row(balance, 0.0, 0.0)
        if crossed:
            self.model.row(crossed, 0.0, 0.0)
        return all_flows, over

    def limit_pairs(self, group: str, flows: Mapping[Role, Sequence[int]]) -> None:
        """Pairs of a KV group carry no more than its replicas of both roles do as pairs."""
        mine = np.flatnonzero(self.are(Role.PREFILL, group) | self.are(Role.DECODE, group)).tolist()
        pairs, pool = self.draws.pairs, self.pool.tolist()
        if not mine or not all(pool[column] in pairs for column in mine):
            return
        for columns in flows.values():
            row = {column: -pairs[pool[column]] for column in mine}
            self.model.row(row | dict.fromkeys(columns, 1.0), -np.inf, 0.0)

    def limit_small(self, role: Role, used: Mapping[int, int], flows: Sequence[int]) -> None:
        """Flows of a role are no more than what its pools carry, a small one less than a large one.

        ``used`` is the column that is 0 or 1, by whole pool.
        """
        mine, whole = np.flatnonzero(self.are(role)).tolist(), self.whole.tolist()
        small = used.keys() & {whole[column] for column in mine}
        if not small:
            return
        row, carries = dict.fromkeys(flows, 1.0), self.draws.carries
        for column in mine:
            row[column] = -(carries[whole[column]][1] if whole[column] in small else self._rate_per_s(column))
        for p in sorted(small):
            held = [column for column in mine if whole[column] == p]
            row[used[p]] = -carries[p][0]
            self.model.row(dict.fromkeys(held, 1.0) | {used[p]: -self.draws.most[p]}, -np.inf, 0.0)
        self.model.row(row, -np.inf, 0.0)

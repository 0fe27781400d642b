"""One service of a large fleet in full, pairs by side and all, beside the ways known of every other service.

At prices a service whose pairs depend on places stands where it is cheapest, all on one side or all on another, and no
whole way takes the mix of both that fits. So it is stated in replicas with what services share as rows, and the others
choose among their ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from solvers.planner.model.relax import Arrays, solve_whole
from solvers.planner.placing.places import cell_counts
from solvers.planner.pools.cells import Floats, Ints
from solvers.planner.pools.tally import Worth
from solvers.planner.wide.exact import Stated
from solvers.planner.wide.stocks import Stocks
from solvers.planner.wide.wide import Wide

MOST_WAYS = 30  # of every other service, those nearest in price
MOST_NODES = 60
GAP = 0.1  # of the gap asked, what the search may leave open


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A plan at hand, the way that it takes of each service, (S,), and what ways cost above the best, (W,)."""

    wide: Wide
    held: Ints
    over_usd_per_hour: Floats

    @classmethod
    def of(cls, wide: Wide, worth: Worth) -> Beside:
        ways = list(wide.maker.of_counts(cell_counts(wide.cells, worth.counts)))
        wide.table.take(ways)
        return cls(
            wide=wide,
            held=np.array([wide.table.index(way) for way in ways], dtype=np.int64),
            over_usd_per_hour=wide.over_usd_per_hour(),
        )

    def in_turn(self) -> list[int]:
        """Services whose pairs depend on places, those first whose ways leave most open."""
        over = self.over_usd_per_hour[self.held]
        able = (s for s, stocks in enumerate(self.wide.stocks) if stocks.demand_per_s and self._is_placed(s))
        return sorted(able, key=lambda s: (-over[s], s))

    def _is_placed(self, service: int) -> bool:
        """Tell whether it matters where the service's prefill and decode are."""
        return self.wide.sides[service] is not None or len(self.wide.stocks[service].pair_groups) > 1

    def chosen(self, service: int) -> list[Floats]:
        """Replicas of the best plan found with one service in full and ways of all others, (C,).

        As they were found, and completed to a way at the exact sizes of their pools.
        """
        wide, among = self.wide, self._among(service)
        stocks = wide.stocks[service]
        stated, order = wide.search.stated(stocks)
        solved = solve_whole(
            self._together(stated, self._taken(stocks, stated, order), among),
            relative_gap=GAP * wide.gap,
            time_limit_s=wide.seconds,
            node_limit=MOST_NODES,
            start=self._start(stocks, stated, order, among),
            run=wide.crew.whole,
        )
        own = np.zeros(len(order))
        own[order] = stated.replicas(solved.x, len(order))
        wide.search.learn(stocks, own)
        shares = solved.x[len(stated.arrays.cost) :]
        others = wide.table.replicas([index for index, share in zip(among, shares, strict=True) if share > 0.5])
        amounts: dict[int, float] = {stocks.cells.start + int(c): float(own[c]) for c in np.flatnonzero(own)}
        served = stated.served_ratio(solved.x, stocks.demand_per_s)
        way = wide.maker.rounded(service, amounts, served, wide.asked(wide.prices))
        wide.table.add(way)
        whole: dict[int, float] = dict(way.replicas) if way is not None else amounts
        found = [amounts] if whole == amounts else [amounts, whole]
        return [_with(others, counts) for counts in found]

    def _start(self, stocks: Stocks, stated: Stated, order: Ints, among: list[int]) -> Floats:
        """The plan at hand in these columns."""
        start = np.full(len(stated.arrays.cost), np.nan)
        held = {
            cell - stocks.cells.start: float(n) for cell, n in self.wide.table.ways[self.held[stocks.service]].replicas
        }
        left = np.array([held.get(int(c), 0.0) for c in order])
        for column in range(len(stated.cell) - 1, -1, -1):  # those that stay come last
            cell = stated.cell[column]
            start[column] = min(left[cell], stated.arrays.upper[column])
            left[cell] -= start[column]
        return np.append(start, np.isin(among, self.held).astype(float))

    def _among(self, service: int) -> list[int]:
        """Ways of the others: the best at the prices, and those held."""
        over, among = self.over_usd_per_hour, set(self.held.tolist())
        of = self.wide.table.service[: len(over)]
        for s in range(len(self.held)):
            mine = np.flatnonzero(of == s)
            among |= set(mine[np.argsort(over[mine], kind="stable")][:MOST_WAYS].tolist())
        return [index for index in sorted(among) if of[index] != service]

    def _taken(self, stocks: Stocks, stated: Stated, order: Ints) -> sp.csr_array:
        """What the service's columns take of the shared rows: replicas of their cells, and what crosses of links."""
        wide, columns = self.wide, len(stated.arrays.cost)
        cells = wide.shared.tocsc()[:, stocks.cells.start + order[stated.cell]]
        replicas = sp.csr_array(sp.hstack([cells, sp.csc_array((len(wide.room), columns - len(stated.cell)))]))
        sent = [
            (wide.table.first_link + way * len(wide.links.links) + side - 1, column, takes)
            for side, way, column, takes in stated.crossed
            if side
        ]
        if not sent:
            return replicas
        row, column, takes = (np.array(part) for part in zip(*sent, strict=True))
        return sp.csr_array(replicas + sp.csr_array((takes, (row, column)), shape=replicas.shape))

    def _together(self, stated: Stated, taken: sp.csr_array, among: list[int]) -> Arrays:
        """The service's columns, then a column for each way of another; what all share last."""
        wide, own = self.wide, stated.arrays
        services, used = wide.table.service[among], wide.table.used
        others = np.unique(services)
        at = np.searchsorted(others, services), np.arange(len(among))
        one = sp.csr_array((np.ones(len(among)), at), shape=(len(others), len(among)))
        room = np.maximum(wide.room, used[:, self.held].sum(axis=1))
        ones, ways = np.ones(len(others)), np.ones(len(among))
        cost, penalty = wide.table.costs
        return Arrays(
            cost=np.concatenate([own.cost, (cost + penalty)[among]]),
            matrix=sp.csc_array(sp.block_array([[own.matrix, None], [None, one], [taken, used[:, among]]])),
            row_lower=np.concatenate([own.row_lower, ones, np.full(len(room), -np.inf)]),
            row_upper=np.concatenate([own.row_upper, ones, room]),
            lower=np.concatenate([own.lower, 0.0 * ways]),
            upper=np.concatenate([own.upper, ways]),
            whole=np.concatenate([own.whole, ways > 0.0]),
            columns={},
            rows=(),
        )


def _with(others: Floats, counts: Mapping[int, float]) -> Floats:
    total = others.copy()
    for cell, count in counts.items():
        total[cell] += count
    return total

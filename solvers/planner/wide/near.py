"""Near a plan of a large fleet: which services could change much at little loss, what ways near its own make of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from solvers.planner.model.relax import UNUSED, solve_whole
from solvers.planner.placing.places import cell_counts
from solvers.planner.pools.cells import Floats, Ints
from solvers.planner.pools.tally import Worth
from solvers.planner.wide.rows import ways_near
from solvers.planner.wide.ways import SparseWay
from solvers.planner.wide.wide import SPLIT, Wide

NEAR_OF_FEW, AMONG_FEW, NODES_OF_FEW = 60, 300, 10  # ways near a plan's of each service, those chosen among, nodes
MOST_NEAR, MOST_AMONG, LEAST_NEAR, MOST_NODES = 2000, 1000, 12, 20  # of all services together, of each, and nodes
AMPLE = 8.0  # times the seconds of other solves, long before which nodes are to end one
NEAR_GAP = 0.2  # of the gap asked, what the choice may leave open
IN_REACH = 0.1  # of what is open in all, what a way may cost more for a service to take it


@dataclass(slots=True, kw_only=True)
class Neighbours:
    """The ways near each way of a plan, which most services keep from one plan to the next; anew at other prices."""

    prices: Floats = field(default_factory=lambda: np.zeros(0))
    known: dict[tuple[int, tuple[tuple[int, int], ...]], list[SparseWay]] = field(default_factory=dict)

    def of(self, wide: Wide, ways: Iterable[SparseWay]) -> Iterator[SparseWay]:
        """Those near each of the ways, the best at the prices."""
        if not np.array_equal(self.prices, wide.prices):
            self.prices, self.known = wide.prices, {}
        asked, weights, most = wide.asked(wide.prices), wide.weights(wide.prices), _share(wide, MOST_NEAR, NEAR_OF_FEW)
        for way in ways:
            key = way.service, way.replicas
            if key not in self.known:
                self.known[key] = ways_near(wide.maker, way, asked, weights, most)
            yield from self.known[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """A plan among the ways known: where its own stand, what each way costs above the best at the prices.

    Attributes
    ----------
    held : (S,) int
        Index of the plan's own way of each service.
    over_usd_per_hour : (W,) float
        Priced value of each way above the least of its service.
    open_usd_per_hour : float
        What the plan costs above the bound.
    """

    wide: Wide
    replicas: Floats
    held: Ints
    over_usd_per_hour: Floats
    open_usd_per_hour: float

    @classmethod
    def of(cls, wide: Wide, worth: Worth, known: Neighbours) -> Near:
        """Find the ways near the plan's own, the best of each service at the prices."""
        replicas, table = cell_counts(wide.cells, worth.counts), wide.table
        ways = list(wide.maker.of_counts(replicas))
        table.take([*ways, *known.of(wide, ways)])
        held = np.array([table.index(way) for way in ways], dtype=np.int64)
        return cls(
            wide=wide,
            replicas=replicas,
            held=held,
            over_usd_per_hour=wide.over_usd_per_hour(),
            open_usd_per_hour=float((table.costs[0] + table.costs[1])[held].sum()) - wide.best,
        )

    def chosen(self) -> Floats:
        """Take one way of each service so that they cost least, among the best at the prices; (C,) replicas."""
        wide, among = self.wide, self._among()
        room = np.maximum(wide.room - wide.unusable, np.minimum(wide.room, wide.shared @ self.replicas))
        held = wide.held_usd_per_hour
        chosen = solve_whole(
            wide.table.choice(np.append(room, held), len(held), among, is_whole=True),
            relative_gap=NEAR_GAP * wide.gap,
            time_limit_s=AMPLE * wide.seconds,
            node_limit=MOST_NODES if wide.has_many else NODES_OF_FEW,
            start=np.isin(among, self.held).astype(float),
            run=wide.crew.whole,
            spared=UNUSED,
        )
        return wide.table.replicas([way for way, share in zip(among, chosen.x, strict=True) if share > 0.5])

    def _among(self) -> list[int]:
        """Ways that a better plan may have, the best of each service."""
        service, over = self.wide.table.service, self.over_usd_per_hour
        most, among = _share(self.wide, MOST_AMONG, AMONG_FEW), set(self.held.tolist())
        for s in range(len(self.held)):
            mine = np.flatnonzero((service == s) & (over <= self.open_usd_per_hour))
            among |= set(mine[np.argsort(over[mine], kind="stable")][:most].tolist())
        return sorted(among)

    def swings_usd_per_hour(self) -> Floats:
        """Room, in its price, that each service could take or leave by another way at little loss; (S,).

        A service that could as well go without leaves nothing open either way, and decides over the room of others.
        """
        wide, service, over = self.wide, self.wide.table.service, self.over_usd_per_hour
        room = wide.table.used.T @ wide.prices[: len(wide.room)]
        near = over <= (over[self.held] + IN_REACH * self.open_usd_per_hour)[service]
        found = np.zeros(len(self.held))
        np.maximum.at(found, service[near], np.abs(room - room[self.held][service])[near])
        return np.minimum(found, max(0.0, self.open_usd_per_hour))


def _share(wide: Wide, most: int, of_few: int) -> int:
    """How many of something each service has."""
    return max(LEAST_NEAR, most // len(wide.stocks)) if wide.has_many else of_few


def split_usd_per_hour(wide: Wide) -> Floats:
    """How far the room that each service takes, in its price, lies from the mean of its relaxed choice; (S,)."""
    shares, table, found = wide.relaxed().x, wide.table, np.zeros(len(wide.stocks))
    for s in range(len(found)):
        mine = np.flatnonzero((table.service == s) & (shares > SPLIT))
        taken = table.used[:, mine].toarray() * wide.prices[: len(wide.room), None]
        found[s] = np.abs(taken - (taken @ shares[mine])[:, None]).sum(axis=0) @ shares[mine]
    return found

"""Links between locations in a large fleet: rows that ways share, and what crossing costs in the least value.

What crosses from one side of the links to another pays to leave the one and to enter the other. Take any price of a
side between minus what entering it costs and what leaving it costs. Prefill on all sides times their prices, less
decode times them, comes to no more than what crossing pays. So the least value stays below that of every way when
prefill pays the price of its side and decode gets it, and pairs may then be anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.pairing import ANYWHERE_INSIDE, Domain
from solvers.planner.bays.links import Route, usd_per_hour
from solvers.planner.model.limits_pairs import WAYS, crossing_bytes
from solvers.planner.pools.cells import Cells, Floats, Ints
from solvers.planner.pools.penalties import worth_serving_per_s
from solvers.planner.wide.exact import Crossing
from solvers.planner.wide.sides import EVERYWHERE
from solvers.planner.wide.stocks import Stocks
from solvers.problem import KvLink

USUAL = 0.05  # of the dearest service at its cheapest, what a whole link that is free so far may be priced at
PAIR_ROLES = (Role.PREFILL, Role.DECODE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WideLinks:
    """Classes K of interchangeable links, and the services that cross them.

    Attributes
    ----------
    links : tuple of KvLink
        One of each class.
    numbers : (K,) float
        Links of each class; what crosses is counted in whole links.
    services : frozenset of int
    """

    cells: Cells
    links: tuple[KvLink, ...]
    numbers: Floats
    services: frozenset[int]

    @classmethod
    def of(cls, cells: Cells) -> WideLinks:
        named = [cells.links.links[names[0]] for names in cells.grouping.links]
        crossing = {s for s, service in enumerate(cells.services) if service.name in cells.links.order}
        return cls(
            cells=cells,
            links=tuple(named),
            numbers=np.array([len(names) for names in cells.grouping.links], dtype=float),
            services=frozenset(crossing) if named else frozenset(),
        )

    @property
    def rooms(self) -> Floats:
        """Links by class, out and then in, (2 K,)."""
        return np.tile(self.numbers, len(WAYS)) if self.services else np.zeros(0)

    def floor(self, stocks: tuple[Stocks, ...]) -> Floats:
        """What a whole link may be priced at to begin with, (2 K,)."""
        usd = [_cheapest_usd(stocks[s]) for s in sorted(self.services)]
        return np.full(len(self.rooms), USUAL * max(usd, default=0.0))

    def side(self, cell: int) -> int:
        """Class of links that a cell hangs on, from 1; 0 for none."""
        return int(self.cells.grouping.group_link[self.cells.cell_group[cell]]) + 1

    def sent(
        self, service: int, carried: Mapping[tuple[PoolKey, int], float], able_per_s: float
    ) -> tuple[float, float, tuple[tuple[int, float], ...]]:
        """What is served, what crossing costs, USD per hour, and what it takes of each row, by what pools carry."""
        group_of = self.cells.pairing.group
        groups = {group_of(pool) for pool, _ in carried if pool.role is not Role.MIXED}
        route = Route.of(
            carried,
            lambda pool, side: Domain(group=group_of(pool), site=_site(side)),
            {group: crossing_bytes(self.cells, service, group) for group in sorted(groups)},
        )
        usd, rows = 0.0, list[tuple[int, float]]()
        served_per_s = worth_serving_per_s(
            route.near_per_s,
            able_per_s,
            route.usd_per_request(able_per_s, {str(k): link for k, link in enumerate(self.links, start=1)}),
            demand_per_s=float(self.cells.demand_per_s[service]),
            unserved_usd_per_hour=float(self.cells.penalty_usd_per_hour[service]),
            fair_ratio=float(self.cells.fair_ratio[service]),
        )
        for (site, role), sent in route.traffic(served_per_s).items():
            link = self.links[int(site) - 1]
            usd += usd_per_hour(link, sent)
            rows.append((PAIR_ROLES.index(role) * len(self.links) + int(site) - 1, sent / link.bytes_per_s))
        return served_per_s, usd, tuple(sorted(rows))

    def terms(self, stocks: Stocks, asked: Floats, prices: Floats) -> tuple[Floats, dict[str, float]]:
        """What prefill and decode of each cell get for being where they are, and what crossing pays for it.

        Parameters
        ----------
        asked : (C,) float
            What a replica of each cell pays for what services share, USD per hour.
        prices : (2 K,) float
            Of a whole link, USD per hour.

        Returns
        -------
        (C,) float, mapping of KV group to float
            USD per hour: of a replica, none above zero, and of the service's whole demand in pairs of the group.
        """
        added, whole = np.zeros(len(asked)), dict[str, float]()
        sides = np.array([self.side(c) for c in range(stocks.cells.start, stocks.cells.stop)], dtype=np.int64)
        pool = np.repeat(np.arange(len(stocks.roles)), np.diff(stocks.first))
        usd = _usd_per_request(stocks, asked, pool)
        for group in stocks.pair_groups:
            mine = [
                np.array([stocks.is_of(p, role, group) for p in range(len(stocks.roles))], dtype=bool)[pool]
                for role in PAIR_ROLES
            ]
            worth = self._worth(stocks, group, prices, [_least_by_side(usd, sides, of, len(self.links)) for of in mine])
            rate = stocks.rate_per_s[pool]
            added += np.where(mine[0], (worth - worth.max())[sides] * rate, 0.0)
            added += np.where(mine[1], (worth.min() - worth)[sides] * rate, 0.0)
            whole[group] = float(worth.max() - worth.min()) * stocks.demand_per_s
        return added, whole

    def crossing(self, stocks: Stocks, prices: Floats) -> Crossing:
        """Sides of the cells, and what leaving and entering them costs at the prices of whole links, (2 K,)."""
        sides = np.array([self.side(c) for c in range(stocks.cells.start, stocks.cells.stop)], dtype=np.int64)
        usd = {group: self._crossing_usd(stocks, group, prices) for group in stocks.pair_groups}
        takes = {group: np.append(0.0, self._taken(stocks, group)) for group in stocks.pair_groups}
        return Crossing(side=sides, usd=usd, takes=takes, most=np.append(np.inf, self.numbers))

    def _taken(self, stocks: Stocks, group: str) -> Floats:
        """What one request per second takes of a link of each class."""
        return self._bytes(stocks, group) / np.array([link.bytes_per_s for link in self.links])

    def _worth(self, stocks: Stocks, group: str, prices: Floats, least: list[Floats]) -> Floats:
        """Find the prices of sides, USD per hour for a request per second: the best, were replicas divisible."""
        leave, enter = self._crossing_usd(stocks, group, prices)
        prefill, decode = least
        best = min((prefill + decode).min(), (prefill + leave).min() + (decode + enter).min())
        if not np.isfinite(best):
            return np.zeros(len(leave))
        prefill = np.minimum(prefill, best)
        worth = np.maximum((prefill + leave).min() - prefill, -enter)
        worth = np.minimum(worth, leave)
        gets = (worth.max() - worth, worth - worth.min())  # no replica may get more than it costs
        scale = min((least[i][at] / gets[i][at] for i in range(2) for at in np.flatnonzero(gets[i] > 0.0)), default=1.0)
        found: Floats = worth * min(1.0, max(0.0, float(scale)))
        return found

    def _crossing_usd(self, stocks: Stocks, group: str, prices: Floats) -> tuple[Floats, Floats]:
        """What leaving and entering a side costs, USD per hour for a request per second; nothing where no link is."""
        size, share = self._bytes(stocks, group), self._taken(stocks, group)
        paid = np.array([usd_per_hour(link, size) for link in self.links])
        out, into = (paid + share * of for of in np.split(prices, len(WAYS)))
        return np.append(0.0, out), np.append(0.0, into)

    def _bytes(self, stocks: Stocks, group: str) -> float:
        """What one request hands over in the group; in the only one where the stocks name none."""
        if group:
            return crossing_bytes(self.cells, stocks.service, group)
        if stocks.cells.start == stocks.cells.stop:  # nothing can serve it, so nothing is handed over
            return 0.0
        first = self.cells.pools[int(self.cells.cell_pool[stocks.cells.start])].pool
        return crossing_bytes(self.cells, stocks.service, self.cells.pairing.group(first))


def _site(side: int) -> str:
    return ANYWHERE_INSIDE if side in (0, EVERYWHERE) else str(side)


def _usd_per_request(stocks: Stocks, asked: Floats, pool: Ints) -> Floats:
    """Least cost of a request per second in each cell, (C,)."""
    churn = np.where(stocks.now > 0, -stocks.stop_usd_per_hour[pool], stocks.start_usd_per_hour[pool])
    usd: Floats = np.maximum(0.0, asked + stocks.terms_usd_per_hour + churn + stocks.run_usd_per_hour[pool])
    return usd / stocks.rate_per_s[pool]


def _least_by_side(usd: Floats, sides: Ints, are_mine: Floats, links: int) -> Floats:
    """Least of the cells on each side, (K + 1,); infinite where there are none."""
    least = np.full(links + 1, np.inf)
    np.minimum.at(least, sides[are_mine], usd[are_mine])
    return least


def _cheapest_usd(stocks: Stocks) -> float:
    """Least that it costs to carry the whole demand in one role."""
    if not stocks.roles:
        return 0.0
    return float((stocks.run_usd_per_hour / stocks.rate_per_s).min()) * stocks.demand_per_s

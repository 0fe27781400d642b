"""Stocks of a service whose pairs may not leave a location, cut by where they are.

Each prefill and decode pool is cut into one for every class of interchangeable locations, and pairs form in each class
by themselves, as in KV groups. A pool keeps the capacity of its whole size, which its parts do not know: they carry
what no size of the whole pool could better, and draw the least, so that the value stays below that of every way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from solvers.engine import Role
from solvers.fleet import ANYWHERE, PoolKey
from solvers.pairing import Domain, Pairing, Pairs
from solvers.planner.pools.cells import Cells, Ints
from solvers.planner.wide.curve import Curve
from solvers.planner.wide.site_rates import SiteRates, site_rates
from solvers.planner.wide.stocks import Pick, Stocks

EVERYWHERE = -1  # side of mixed pools
MOST_PARTS = 2000  # of the demand; adding up sides takes their square


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sides:
    """A service's pools, prefill and decode once for every side that they are on.

    Attributes
    ----------
    stocks : Stocks
        Of the parts; their KV groups name the side too.
    whole : tuple of (int, int)
        The service's pool and the side, of each part.
    order : (C,) int
        Where each cell of ``stocks`` is among the service's own.
    of_cell : (C,) int
        Side of each of the service's own cells.
    are_whole : tuple of bool
        True for parts that have all cells of their pool.
    rates : SiteRates
        What replicas are good for beside what can pair with them.
    is_local : bool
        True when pairs may not cross from side to side, False when they need not.
    """

    stocks: Stocks
    whole: tuple[tuple[int, int], ...]
    order: Ints
    of_cell: Ints
    are_whole: tuple[bool, ...]
    rates: SiteRates
    is_local: bool

    @classmethod
    def of(cls, cells: Cells, stocks: Stocks) -> Sides | None:
        """Cut the stocks, by links where pairs may cross those; None for services whose pairs may be anywhere."""
        name, grouping = cells.services[stocks.service].name, cells.grouping
        is_local = name in cells.pairing.local
        if not (is_local or (name in cells.links.order and grouping.links)) or not stocks.roles:
            return None
        sides = grouping.group_site if is_local else [link + 1 for link in grouping.group_link]  # 0 for no link
        of_cell = np.array([sides[g] for g in cells.cell_group[stocks.cells]], dtype=np.int64)
        parts: list[tuple[int, int]] = []
        inside: list[Ints] = []
        for pool, role in enumerate(stocks.roles):
            mine = np.arange(stocks.first[pool], stocks.first[pool + 1])
            sides = [EVERYWHERE] if role is Role.MIXED else sorted({int(side) for side in of_cell[mine]})
            for side in sides:
                parts.append((pool, side))
                inside.append(mine if side == EVERYWHERE else mine[of_cell[mine] == side])
        order = np.concatenate(inside)
        rates = site_rates(cells, stocks, of_cell) if is_local else SiteRates()
        return cls(
            stocks=_cut(stocks, parts, inside, order, rates.paired_per_s),
            rates=rates,
            whole=tuple(parts),
            order=order,
            of_cell=of_cell,
            is_local=is_local,
            are_whole=tuple(
                len(cells_) == int(stocks.first[pool + 1] - stocks.first[pool])
                for (pool, _), cells_ in zip(parts, inside, strict=True)
            ),
        )

    def finer(self, parts: int) -> Sides:
        """The same with loads cut into so many parts, up to a number that many sides can be added up in."""
        return self.in_parts(max(self.stocks.parts, min(MOST_PARTS, parts)))

    def in_parts(self, parts: int) -> Sides:
        """The same with loads cut into so many parts."""
        return replace(self, stocks=replace(self.stocks, parts=parts))

    def pools(self, parts: Collection[int]) -> frozenset[int]:
        """The service's pools that parts are of."""
        return frozenset(self.whole[part][0] for part in parts)

    def curves(self, curves: Mapping[int, Curve], parts: Collection[int]) -> dict[int, Curve]:
        """What parts carry and cost at most and at least, by what is known of their pools."""
        return {
            part: self._at_most(part, curves) if self.are_whole[part] else self._hopeful(part, curves)
            for part in sorted(parts)
        }

    def in_bundles(self, stocks: Stocks) -> Stocks:
        """The parts with replicas that carry what the cheapest bundles have a use for; ``stocks`` is not cut."""
        used = [float(stocks.rate_per_s[part[0]]) * self.rates.bundled_ratio.get(part, 1.0) for part in self.whole]
        return replace(self.stocks, rate_per_s=np.minimum(self.stocks.rate_per_s, used))

    def useful(
        self, able: Mapping[tuple[int, int], float], counts: Mapping[tuple[int, int], int]
    ) -> dict[tuple[int, int], float]:
        """What replicas are good for in bundles, by pool and side, of what they are able to carry.

        What can stand beside a replica carries what it does in the largest pool: less where theirs are small.
        """
        if not self.rates.paired_per_s.keys() & able.keys():
            return {part: self.rates.useful(rate, counts[part], part) for part, rate in able.items()}
        index = {part: i for i, part in enumerate(self.whole)}
        best: dict[tuple[Role, str], float] = {}
        for part, rate in able.items():
            key = self.stocks.roles[index[part]], self.stocks.groups[index[part]]
            ratio = min(1.0, rate / (counts[part] * float(self.stocks.rate_per_s[index[part]])))
            best[key] = max(best.get(key, 0.0), ratio)
        other = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL, Role.MIXED: Role.MIXED}
        beside = {
            part: best.get((other[self.stocks.roles[index[part]]], self.stocks.groups[index[part]]), 1.0)
            for part in able
        }
        return {part: self.rates.useful(rate, counts[part], part, beside[part]) for part, rate in able.items()}

    def as_served(self) -> Sides:
        """The same where all counts that replicas carry, whether they came in whole bundles or not."""
        return replace(self, rates=replace(self.rates, bundled_ratio={}))

    def _at_most(self, part: int, curves: Mapping[int, Curve]) -> Curve:
        """What the whole pool carries, no replica more than can pair with it."""
        curve, most = curves[self.whole[part][0]], self.rates.paired_per_s.get(self.whole[part])
        if most is None:
            return curve
        return replace(curve, rate_per_s={n: min(rate, n * most) for n, rate in curve.rate_per_s.items()})

    def _hopeful(self, part: int, curves: Mapping[int, Curve]) -> Curve:
        """Every replica at the rate of the pool's largest size."""
        curve, rate = curves[self.whole[part][0]], float(self.stocks.rate_per_s[part])
        return Curve(rate_per_s={n: n * rate for n in curve.rate_per_s}, run_usd_per_hour=curve.run_usd_per_hour)

    def pick(self, pick: Pick) -> Pick:
        """What was picked of parts in terms of the service's pools; the parts wanted stay parts."""
        sizes: dict[int, int] = {}
        for part, size in pick.sizes.items():
            pool = self.whole[part][0]
            sizes[pool] = sizes.get(pool, 0) + size
        return replace(
            pick,
            sizes=sizes,
            asked_sizes=tuple((self.whole[part][0], size) for part, size in pick.asked_sizes if self.are_whole[part]),
            by_side={self.whole[part]: size for part, size in sorted(pick.sizes.items())},
        )


def _cut(
    stocks: Stocks,
    parts: list[tuple[int, int]],
    inside: list[Ints],
    order: Ints,
    paired: Mapping[tuple[int, int], float],
) -> Stocks:
    at = np.array([pool for pool, _ in parts], dtype=np.int64)
    index = {part: i for i, part in enumerate(parts)}
    room = np.array([int(stocks.room[mine].sum()) for mine in inside], dtype=np.int64)
    named = [f"{stocks.groups[pool] if stocks.groups else ''}@{side}" for pool, side in parts]
    first = min((name for name, (_, side) in zip(named, parts, strict=True) if side != EVERYWHERE), default="")
    return replace(
        stocks,
        roles=tuple(stocks.roles[pool] for pool in at),
        first=np.concatenate([[0], np.cumsum([len(mine) for mine in inside])]),
        base=np.array([index[int(stocks.base[pool]), side] for pool, side in parts], dtype=np.int64),
        terms_usd_per_hour=stocks.terms_usd_per_hour[order],
        room=stocks.room[order],
        now=stocks.now[order],
        most=np.minimum(stocks.most[at], room),
        rate_per_s=np.array([paired.get(part, float(stocks.rate_per_s[part[0]])) for part in parts]),
        run_usd_per_hour=stocks.run_usd_per_hour[at],
        start_usd_per_hour=stocks.start_usd_per_hour[at],
        stop_usd_per_hour=stocks.stop_usd_per_hour[at],
        groups=tuple(first if side == EVERYWHERE else name for name, (_, side) in zip(named, parts, strict=True)),
    )


def domain_of(pairing: Pairing, pool: PoolKey, side: int) -> Domain:
    """The domain that a pool's replicas pair in: that of their side, where sides matter."""
    if side == EVERYWHERE:
        return pairing.domain(pool, ANYWHERE)
    return Domain(group=pairing.group(pool), site=f"side {side}")


def pairs_of(pairing: Pairing, service: str, carried: Mapping[tuple[PoolKey, int], float]) -> Pairs:
    """Add up by domain what a service's pools carry on each side."""
    summed: dict[tuple[Role, Domain], float] = {}
    for (pool, side), rate in carried.items():
        key = pool.role, domain_of(pairing, pool, side)
        summed[key] = summed.get(key, 0.0) + rate
    is_parted = service in pairing.parted or any(side != EVERYWHERE for _, side in carried)
    return Pairs.of(summed, is_parted=is_parted)


def by_side(stocks: Stocks, pick: Pick, sizes: Mapping[int, int]) -> dict[tuple[int, int], int]:
    """Sizes by pool and side, each pool at the cap that it has in ``sizes``; everywhere, where sides do not matter."""
    if not pick.by_side:
        return {(pool, EVERYWHERE): size for pool, size in sizes.items()}
    level = {int(stocks.base[pool]): pool for pool in sizes}
    found: dict[tuple[int, int], int] = {}
    for (pool, side), size in pick.by_side.items():
        key = level[int(stocks.base[pool])], side
        found[key] = found.get(key, 0) + size
    return found

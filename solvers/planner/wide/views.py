"""How a large fleet's services are looked at, at prices: whole, cut by side, or with what crossing links pays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from solvers.planner.pools.cells import Floats
from solvers.planner.wide.curve import Curve
from solvers.planner.wide.links import WideLinks
from solvers.planner.wide.sides import Sides
from solvers.planner.wide.stocks import ANY_PENALTY, Pick, Stocks, choose_kept

NEAR_PARTS = 250  # of the demand, for ways that cross no link though they may: no bound comes of them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """A service's stocks, whole or cut, at prices; ``asked`` (C,) is what a replica of each of their cells pays."""

    stocks: Stocks
    asked: Floats
    cut: Sides | None = None
    crossing_usd_per_hour: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, stocks: Stocks, asked: Floats, cut: Sides | None) -> View:
        """Cut the stocks and prices where they are to be cut."""
        return (
            cls(stocks=stocks, asked=asked) if cut is None else cls(stocks=cut.stocks, asked=asked[cut.order], cut=cut)
        )

    @property
    def service(self) -> int:
        return self.stocks.service

    def pools(self, kept: Collection[int]) -> frozenset[int]:
        """The service's pools that those of the view are of."""
        return frozenset(kept) if self.cut is None else self.cut.pools(kept)

    def curves(self, known: Mapping[int, Curve], kept: Collection[int]) -> dict[int, Curve]:
        """What the pools of the view carry and cost."""
        return {pool: known[pool] for pool in sorted(kept)} if self.cut is None else self.cut.curves(known, kept)

    def work(
        self,
        known: Mapping[int, Curve],
        kept: frozenset[int],
        is_safe: bool,
        weight: float,
        penalties: Mapping[int, tuple[float, float]],
    ) -> tuple[Any, ...]:
        """What ``least_value`` is told, of plans that leave so much undone, at least and at most, by service."""
        limits = penalties.get(self.service, ANY_PENALTY)
        crossing = self.crossing_usd_per_hour
        return self.stocks, self.curves(known, kept), kept, self.asked, is_safe, weight, crossing, limits

    def pick(self, pick: Pick) -> Pick:
        """What was picked in terms of the service's pools."""
        return pick if self.cut is None else self.cut.pick(pick)


def near_of(sides: Sequence[Sides | None], links: WideLinks) -> list[int]:
    """Services that may cross links, which are looked at once more as if they might not."""
    return [s for s in sorted(links.services) if sides[s] is not None]


def views_at(
    stocks: Sequence[Stocks], sides: Sequence[Sides | None], links: WideLinks, asked: Floats, prices: Floats
) -> list[View]:
    """Every service's view that bounds it, then those of ``near_of``.

    Parameters
    ----------
    asked : (C,) float
        What a replica of each cell of the fleet pays for what services share, USD per hour.
    prices : (2 K,) float
        Of whole links, USD per hour.
    """
    found: list[View] = []
    for s, (mine, cut) in enumerate(zip(stocks, sides, strict=True)):
        if s in links.services:
            added, crossing = links.terms(mine, asked[mine.cells], prices)
            found.append(View(stocks=mine, asked=asked[mine.cells] + added, crossing_usd_per_hour=crossing))
        else:
            found.append(View.of(mine, asked[mine.cells], cut))
    cuts = ((stocks[s], sides[s]) for s in near_of(sides, links))
    return found + [View.of(mine, asked[mine.cells], cut and cut.in_parts(NEAR_PARTS)) for mine, cut in cuts]


def told_apart(
    views: Sequence[View], wanted: Sequence[frozenset[int]], services: int
) -> tuple[list[frozenset[int]], list[frozenset[int]]]:
    """Pools that each view tells apart, those wanted before among them, and what that is by service."""
    apart = [
        choose_kept(view.stocks, view.asked, wanted[v]) if view.stocks.demand_per_s else frozenset[int]()
        for v, view in enumerate(views)
    ]
    by_service = [frozenset[int]()] * services
    for view, kept in zip(views, apart, strict=True):
        by_service[view.service] |= view.pools(kept)
    return apart, by_service

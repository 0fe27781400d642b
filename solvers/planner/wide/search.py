"""Least values of services whose pairs depend on places, raised by search where prices alone leave much open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.errors import SolveFailed
from solvers.planner.pools.cells import Floats, Ints
from solvers.planner.wide.curve_book import CurveBook
from solvers.planner.wide.exact import Crossing, Draws, Found, Stated, draws_of, least_whole, state_whole
from solvers.planner.wide.links import WideLinks
from solvers.planner.wide.sides import Sides
from solvers.planner.wide.stocks import Stocks
from solvers.planner.wide.way_table import WayTable
from solvers.planner.wide.ways import WayMaker
from solvers.programme import Run

MOST_ROUNDS, WORK_CELLS = 6, 5000  # times that all services are searched, and those times their cells
OPEN = 0.05  # of a service's part of the gap asked, what has to be open to search it


@dataclass(slots=True, kw_only=True)
class SideSearch:
    """Searches services for which it matters on which side replicas are; ``done`` says how often it has so far.

    ``gap`` is the relative gap asked of the whole decision. ``added`` is what the last search added to least values,
    ``in_best`` what searching has added to the best bound: USD per hour that leave no evidence.
    """

    maker: WayMaker
    links: WideLinks
    book: CurveBook
    run: Run
    gap: float
    seconds: float
    done: int = 0
    is_on: bool = False
    added: float = 0.0
    in_best: float = 0.0

    @property
    def rounds(self) -> int:
        """How often all such services may be searched; 0 where there are none."""
        work = sum(len(stocks.room) for stocks, _ in self._cut())
        return min(MOST_ROUNDS, max(1, WORK_CELLS // work)) if work else 0

    @property
    def is_over(self) -> bool:
        """Tell whether services were searched as often as they may be, the first time included."""
        return self.done >= (self.rounds + 1) * len(self._cut())

    def _cut(self) -> list[tuple[Stocks, Sides]]:
        return [
            (stocks, cut) for stocks, cut in zip(self.maker.stocks, self.maker.sides, strict=True) if cut is not None
        ]

    def raised(
        self, table: WayTable, stocks: Sequence[Stocks], values: Floats, room: Floats, prices: Floats, weights: Floats
    ) -> Floats:
        """Raise least values, (S,), where they lie below the best way known, and remember the ways that turn up.

        Parameters
        ----------
        room : (R,) float
            Of the shared rows: a way that it would not do for is none.
        prices : (R,) float
            Of the shared rows, links among them, USD per hour.
        weights : (S,) float
            Times its penalties, what each service pays for what it leaves undone.
        """
        asked, raised, known = table.shared.T @ prices, values.copy(), np.full(len(values), np.inf)
        np.minimum.at(known, table.service, np.where(table.overfull(room), np.inf, table.priced(prices, weights)))
        least = OPEN * self.gap * float(np.abs(values).sum()) / len(values)
        for s in np.argsort(values - known, kind="stable").tolist():
            if known[s] - values[s] <= least or self.is_over:
                break
            if self.maker.sides[s] is None or stocks[s].demand_per_s <= 0.0:
                continue
            self.done += 1
            try:
                found = self._searched(stocks[s], asked[stocks[s].cells], prices[table.first_link :], weights[s])
            except (SolveFailed, ArithmeticError):
                continue  # what prices alone say of it stands
            raised[s] = max(values[s], found[0].bound_usd_per_hour)
            for one in found:
                self.learn(stocks[s], one.replicas)
                first = stocks[s].cells.start
                amounts = {first + int(c): float(one.replicas[c]) for c in np.flatnonzero(one.replicas)}
                table.add(self.maker.rounded(s, amounts, one.served_ratio, asked))
        self.added = float((raised - values).sum())
        return raised

    def _searched(self, stocks: Stocks, asked: Floats, of_links: Floats, weight: float) -> list[Found]:
        """What bounds the service, and where bundles leave something to spare, what counts that too."""
        found, cut = [], self.maker.sides[stocks.service]
        for is_bundled in (False, True) if cut is not None and cut.rates.bundled_ratio else (False,):
            of, draws, crossing, order = self._view(stocks, of_links, is_bundled=is_bundled)
            one = least_whole(
                of,
                draws,
                asked[order],
                crossing,
                weight=float(weight),
                gap=self.gap,
                time_limit_s=self.seconds,
                run=self.run,
            )
            replicas = np.zeros(len(asked))
            replicas[order] = one.replicas
            found.append(replace(one, replicas=replicas))
        return found

    def stated(self, stocks: Stocks) -> tuple[Stated, Ints]:
        """The model of a service at no prices, in whole bundles where it has such, and the order of its cells, (C,)."""
        nothing = np.zeros(len(self.links.rooms))
        of, draws, crossing, order = self._view(stocks, nothing, is_bundled=True)
        return state_whole(of, draws, np.zeros(len(order)), crossing, weight=1.0), order

    def _view(
        self, stocks: Stocks, of_links: Floats, *, is_bundled: bool
    ) -> tuple[Stocks, Draws, Crossing | None, Ints]:
        """What a model of the service is made of, and where its cells are among the service's own."""
        cut, curves = self.maker.sides[stocks.service], self.book.curves[stocks.service]
        if cut is None or not cut.is_local:
            draws = draws_of(stocks, curves, range(len(stocks.roles)))
            crossing = self.links.crossing(stocks, of_links) if stocks.service in self.links.services else None
            return stocks, draws, crossing, np.arange(len(stocks.room))
        draws = draws_of(stocks, curves, [pool for pool, _ in cut.whole])
        lone = {pool for pool, _ in cut.rates.paired_per_s}  # carry less for what can stand beside them
        carries = {pool: line for pool, line in draws.carries.items() if pool not in lone}
        of = cut.in_bundles(stocks) if is_bundled else cut.stocks
        known = cut.rates.by_replica_per_s
        pairs = {part: known[key] for part, key in enumerate(cut.whole) if key in known}
        return of, replace(draws, carries=carries, pairs=pairs), None, cut.order

    def learn(self, stocks: Stocks, replicas: Floats) -> None:
        """Size the pools of what was found, (C,), so that the next search knows what they draw and carry."""
        s, sizes = stocks.service, np.add.reduceat(replicas, stocks.first[:-1]).astype(int)
        used = [int(pool) for pool in np.flatnonzero(sizes)]
        self.book.know([frozenset(used) if other == s else frozenset() for other in range(len(self.book.curves))])
        for pool in used:
            if int(sizes[pool]) not in self.book.curves[s][pool].rate_per_s:
                self.book.learn(s, pool, int(sizes[pool]))

"""Large fleets: ways of every service at prices of what they share, and the choice of one way each.

What ``compose.py`` does for small fleets with every size of every pool, this does with the pools that look cheap
(``stocks.py``). The choice of ways is whole: what the relaxed choice splits is blended into ways of its own, and a
small integer model takes one way for each service. What is left to do is to place it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse as sp

from solvers.fleet import PoolKey
from solvers.planner.menus.compose import Enough, shared_rows
from solvers.planner.model.relax import Arrays, Solution, duals_of, solve_linear
from solvers.planner.placing.places import cell_counts
from solvers.planner.placing.tiers import lacking_columns
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.pools.crew import Crew
from solvers.planner.pools.sizer import Sizer
from solvers.planner.pools.tally import CLEAR_SHARE, Worth
from solvers.planner.wide.apart import closer_stocks, cut_finer
from solvers.planner.wide.curve_book import CurveBook
from solvers.planner.wide.least_value import least_value
from solvers.planner.wide.links import WideLinks
from solvers.planner.wide.pace import Pace
from solvers.planner.wide.price_box import BoxStep, box_step
from solvers.planner.wide.rows import priced_ways, tiers_of, usd_per_unit
from solvers.planner.wide.search import SideSearch
from solvers.planner.wide.sides import Sides
from solvers.planner.wide.stock_taking import build_stocks
from solvers.planner.wide.stocks import Pick, Stocks
from solvers.planner.wide.views import View, near_of, told_apart, views_at
from solvers.planner.wide.way_table import WayTable
from solvers.planner.wide.ways import SparseWay, WayMaker

MOST_PRICINGS, LEAST_PRICINGS = 60, 10
WORK_PRICINGS = 2000  # least values of one service, over all pricings
TRUST = 1.0  # times a row's best price, how far the next may lie from it
NEAR_TRUST, NEAR_SPARED = 0.3, 2  # the same where a plan of nearly the same problem is at hand; pricings spared then
FAR_AWAY = 0.1  # of the relaxed choice, what prices of a plan before may leave open at first
COARSE_SPARED = 3  # pricings that are spared where loads are cut finely from the first on
USUAL = 0.05  # of a replica's running cost, what a row that is free so far may be priced at
FINE_TRUST, SEARCH_TRUST = 0.06, 1.0  # the least trust that finely cut loads begin with, and that of searching
FAR_WORSE = 0.5  # of what is open; prices whose bound lies so far below the best were too far away
MOST_COMPLETED = 2  # pricings in the end whose ways carry all that they promise
LEAST_COMPLETED = 0.1  # of the gap asked, what one has to bring before another where a plan is at hand
MOSTLY_HIDDEN = 0.5  # of what is open beside held tiers, hidden values that are looked at more closely at once
HIDDEN = 0.5  # of a service's part of the gap asked, that its least value may hide
RAISED = 0.1  # of the gap asked, what pricing beside held tiers has to bring to go on where services are few
MOST_TOLD_APART, WORK_TOLD_APART = 2, 80  # times that hidden values are looked for, and those times services
WELL = 0.1  # of what is open, what a bound beside held tiers has to rise by for the box to be wider
SHORT = 0.05  # of what the relaxed choice costs, penalties that say that the fleet is overloaded
LEAST_FINE = 6  # pricings kept for finely cut loads
WIDER = 4.0  # how much more trust the prices get when a box keeps nothing better
CLOSED = 0.3  # of the gap asked: pricing stops when the relaxed choice and its bound agree this well
SMOOTHING = 0.5  # share of the best prices so far in the next ones; the newest alone swing
MOST_CHOSEN = 20  # services whose ways are chosen all at once where something is short
MOST_DIVED = 100  # services that are decided one after another where something is short, before all are at once
SPLIT = 1e-4  # shares of ways below count as none
USUAL_TIER = 3.0  # times a tier's penalties, what holding it may be priced at that was free so far
HELD_TRUST = 0.25  # what many services begin with beside held tiers
TIERS_TRUST = 16.0  # times as far as the prices of rows, those of held tiers may go at once: nobody knows them
HELD_SLACK = 1e-6  # relative, of what a held tier lacks
ROUGHLY = 0.5  # of a clear difference, what a tier may lack more than in a rough plan; places may cost the rest
OUTSIDE = 10.0  # times the largest penalty, what a way costs that is not of the branch in question


@dataclass(slots=True, kw_only=True)
class Wide:
    """Ways found so far, and the rows that they share. ``gap`` is the relative gap asked of the whole decision.

    ``held_usd_per_hour`` (T,) is what the first T tiers may leave undone, in penalties; ``prices`` are those of the
    shared rows, then those of the held tiers. ``picks`` are what the least ``values`` there are made of, until they are
    looked at more closely. ``unusable`` (R,) is room where replicas found no place, ``used`` what the plan at hand
    takes all the same. ``penalties`` says what the plans in question leave undone of some services, USD per hour, at
    least and at most; ``branches``, if any, together hold all of these.
    """

    cells: Cells
    crew: Crew
    stocks: Sequence[Stocks]
    sides: list[Sides | None]
    links: WideLinks
    shared: sp.csr_array
    table: WayTable
    room: Floats
    gap: float
    seconds: float
    maker: WayMaker
    book: CurveBook
    kept: list[frozenset[int]]
    near: list[int]
    wanted: list[frozenset[int]]
    floor: Floats
    search: SideSearch
    prices: Floats = field(default_factory=lambda: np.zeros(0))
    best: float = -np.inf
    trust: float = TRUST
    closed: float = CLOSED
    is_fine: bool = False
    is_short: bool = False
    is_held: bool = False
    is_near: bool = False
    values: Floats = field(default_factory=lambda: np.zeros(0))
    picks: Sequence[Pick] = ()
    held_usd_per_hour: Floats = field(default_factory=lambda: np.zeros(0))
    unusable: Floats = field(default_factory=lambda: np.zeros(0))
    used: Floats = field(default_factory=lambda: np.zeros(0))
    penalties: dict[int, tuple[float, float]] = field(default_factory=dict)
    branches: list[Wide] = field(default_factory=list)

    @classmethod
    def of(cls, cells: Cells, arrays: Arrays, sizer: Sizer, crew: Crew, *, gap: float, seconds: float) -> Wide:
        rows = shared_rows(arrays)
        stocks = build_stocks(cells)
        sides = [Sides.of(cells, mine) for mine in stocks]
        links = WideLinks.of(cells)
        maker = WayMaker(cells=cells, sizer=sizer, stocks=stocks, sides=sides, links=links)
        shared = sp.csr_array(arrays.matrix.tocsr()[rows][:, arrays.columns["replicas"]])
        floor, first_link = USUAL * usd_per_unit(cells, shared), len(rows)
        shared = sp.csr_array(sp.vstack([shared, sp.csr_array((len(links.rooms), shared.shape[1]))]))
        room = np.append(arrays.row_upper[rows], links.rooms)
        book = CurveBook(cells=cells, maker=maker, crew=crew, curves=tuple({} for _ in stocks))
        return cls(
            cells=cells,
            crew=crew,
            search=SideSearch(maker=maker, links=links, book=book, run=crew.whole, gap=gap, seconds=seconds),
            stocks=stocks,
            sides=sides,
            links=links,
            shared=shared,
            table=WayTable(shared=shared, tiers=tiers_of(cells), first_link=first_link),
            floor=np.append(floor, links.floor(stocks)),
            room=room,
            unusable=np.zeros(len(room)),
            used=np.zeros(len(room)),
            gap=gap,
            seconds=seconds,
            maker=maker,
            book=book,
            kept=[frozenset() for _ in stocks],
            near=(near := near_of(sides, links)),
            wanted=[frozenset() for _ in (*stocks, *near)],
        )

    def begin(self, prices: Floats, running: Worth | None = None, *, is_near: bool = False) -> None:
        """Begin at prices of the shared rows, (R,), and where a plan was made before with the ways of what is left.

        ``is_near`` where these prices are that plan's: coarsely cut loads would hardly say more.
        """
        self.prices, self.best = np.append(prices, np.zeros(len(self.links.rooms))), -np.inf  # links are free so far
        self.table.take(self.maker.nothing())
        if running is not None:
            self.trust = NEAR_TRUST
            self.at_hand(running)
        self.is_near = is_near
        if is_near:
            self._cut_finer()

    @property
    def has_many(self) -> bool:
        """Tell whether services are too many for their ways to be chosen all at once where something is short."""
        return len(self.stocks) > MOST_CHOSEN

    @property
    def has_very_many(self) -> bool:
        """Tell whether services are too many to be decided one after another before a choice at once."""
        return len(self.stocks) > MOST_DIVED

    def foresee(self, relaxed: Solution, arrays: Arrays) -> None:
        """Tell whether so much is asked that tiers are to be held at once: divisible replicas at their best fall short.

        Of fewer services ways are chosen before; their prices are wanted.
        """
        lacking = lacking_columns(self.cells, arrays, np.arange(len(self.stocks)))
        usd = float(arrays.cost[lacking] @ relaxed.x[lacking])
        self.is_short = self.has_many and usd > SHORT * abs(relaxed.value)

    def first(self) -> float:
        """Bound the objective at the prices begun with, finding ways; not where tiers come first, at other prices."""
        if not self.is_short:
            self.best = self.priced(self.prices)
        return self.best

    def is_far(self) -> bool:
        """Tell whether the prices begun with say so little that the relaxation's are worth their time."""
        value = self.relaxed().value
        return value - self.best > FAR_AWAY * abs(value)

    def bound(self, is_enough: Enough) -> float:
        """Raise the bound, finding ways as it goes: loads cut coarsely first, then finely, where less is rounded."""
        self.unusable = np.zeros(len(self.room))
        if self.is_short and not self.is_held:  # what is left to price is priced beside held tiers
            return self.best
        if self.is_held:
            self._raised_beside_held(is_enough)
        left = max(LEAST_PRICINGS, min(MOST_PRICINGS, WORK_PRICINGS // len(self.stocks)))
        left -= (NEAR_SPARED if self.trust <= NEAR_TRUST else 0) + (COARSE_SPARED if self.is_fine else 0)
        for is_first in () if self.is_held else (True,) if self.is_fine else (True, False):
            left -= self.raised(left if self.is_fine else left - LEAST_FINE, is_enough)
            if is_enough(self.best) or self._looks_short(is_first):
                return self.best
            if not self.is_fine:
                self._cut_finer()
        if self.search.rounds and not (is_enough(self.best) or self.is_held):
            self.search.is_on, self.trust = True, SEARCH_TRUST
            self.priced(self.prices)
            self.raised(self.search.rounds, is_enough)
        before = np.inf
        for _ in range(0 if self.is_held and self.has_many else MOST_COMPLETED):
            if is_enough(self.best):
                break
            relaxed = self.relaxed()
            is_vain = self.is_near and before - relaxed.value < LEAST_COMPLETED * self.gap * abs(relaxed.value)
            if is_vain or not self._completed(self.choice_prices(relaxed)):
                break
            before = relaxed.value
        return self.best

    def _looks_short(self, is_new: bool) -> bool:
        """Tell whether much of what the relaxed choice costs is penalties: then it is the tiers' bound that counts."""
        if is_new:
            relaxed = self.relaxed()
            # what is open between the choice and its bound may be penalties that ways not yet found would spare
            sure_usd = float(relaxed.x @ self.table.costs[1]) - max(0.0, relaxed.value - self.best)
            self.is_short = sure_usd > SHORT * abs(relaxed.value)
        return self.is_short

    def _raised_beside_held(self, is_enough: Enough) -> None:
        """Price with tiers held, loads and sizes told apart more closely where least values hide something.

        Of many services only once so: where they are decided tells more, and what tiers are held at after that.
        """
        if self.has_many:
            self.trust = HELD_TRUST
        most = 1 if self.has_many else max(MOST_TOLD_APART, WORK_TOLD_APART // len(self.stocks))
        for left in range(most, -1, -1):
            before = self.best
            self.raised(LEAST_PRICINGS, is_enough)
            is_raised = left > MOST_TOLD_APART and self.best - before > RAISED * self.gap * abs(self.best)
            if is_enough(self.best) or not left or not (self._look_closer() or is_raised):
                break

    def raised(self, pricings: int, is_enough: Enough) -> int:
        """Price until nothing more is to be had; returns how often."""
        is_hurried, begun = self.is_held and self.has_many and not self.penalties, self.best
        pace = Pace(is_search=self.search.is_on, is_hurried=is_hurried)
        for done in range(pricings):
            step = self._step()
            pace.open_usd_per_hour.append(open_usd := step.value - self.best)
            is_closed = open_usd <= self.closed * self.gap * abs(step.value)
            is_told = not self.is_fine or self.search.rounds > 0 or self.is_held
            is_over = pace.is_over(np.inf if is_told else self.gap * abs(step.value))
            if is_enough(self.best) or is_over or (is_closed and step.is_free):
                return done
            if is_closed:
                self.trust *= WIDER
                continue
            if is_hurried and self.best > begun and self._hidden_usd_per_hour() > MOSTLY_HIDDEN * open_usd:
                self._look_closer(is_hurried=True)  # the prices begun with say too little for that
            before, best = len(self.table.ways), self.best
            kept = 0.0 if is_hurried and step.is_free else SMOOTHING
            value = self.priced(kept * self.prices + (1.0 - kept) * step.prices)
            is_new = len(self.table.ways) > before and not self.search.is_on
            pace.gained(value, best, is_new=is_new)
            if value < best - FAR_WORSE * open_usd or (value <= best and not (is_new and not self.penalties)):
                self.trust /= 2.0
            elif value > best and not (is_new or step.is_free):  # nothing but the box is in the way
                self.trust *= 2.0
                pace.begin_again()
            elif is_hurried and not step.is_free and value > best + WELL * open_usd:
                self.trust *= 2.0
        return pricings

    def _cut_finer(self) -> None:
        self.is_fine, self.trust = True, max(self.trust, FINE_TRUST)
        self.stocks, self.sides = cut_finer(self.stocks, self.sides)

    def _look_closer(self, *, is_hurried: bool = False) -> bool:
        """Look more closely at what least values hide at the best prices, once; True if there was anything to do.

        Then price again there, unless ``is_hurried``: as long as every pricing counts, which very fine loads make slow.
        """
        picks, self.picks = self.picks, ()
        finer = closer_stocks(
            self.stocks,
            [pick if cut is None else None for pick, cut in zip(picks, self.sides, strict=False)],
            book=self.book,
            asked=self.asked(self.prices),
            weights=self.weights(self.prices),
            most_hidden=HIDDEN * self.gap * abs(self.best) / len(self.stocks),
            is_hurried=is_hurried,
        )
        if finer:
            self.stocks = [finer.get(s, stocks) for s, stocks in enumerate(self.stocks)]
            self.trust = max(self.trust, FINE_TRUST)
            if not is_hurried:
                self.priced(self.prices)
        return bool(finer)

    def _hidden_usd_per_hour(self) -> float:
        """How far the best ways known lie above the least values, at the best prices; 0 once that was looked at."""
        hidden = np.full(len(self.stocks), np.inf if self.picks else 0.0)
        np.minimum.at(hidden, self.table.service, self.over_usd_per_hour())
        return float(hidden.sum())

    def _step(self) -> BoxStep:
        """The best prices for the ways known so far, near the best prices so far."""
        reach = self.trust * (self.prices + self.floor)
        reach[len(self.room) :] *= TIERS_TRUST
        low = np.maximum(0.0, self.prices - reach)
        return box_step(self.choice(), self._rooms(), low, self.prices + reach, time_limit_s=self.seconds)

    def _completed(self, prices: Floats) -> bool:
        """Find ways that carry all that their parts promise, where rounding had let others fall short; True if new."""
        return self._take(self._picks(prices, is_safe=True), self.asked(prices))

    def hold(self, worth: Worth, *, is_rough: bool = False) -> None:
        """Look for no plan from now on that leaves any tier but the last more short than this one, clearly if rough."""
        *above, _ = worth.lacking_usd_by_tier.items()
        held = np.array([lacks for _, lacks in above]) * (1.0 + HELD_SLACK) + HELD_SLACK
        if is_rough:
            held += ROUGHLY * CLEAR_SHARE * np.array([worth.demand_usd_by_tier[rank] for rank, _ in above])
        prices = self.prices[len(self.room) :]
        if not len(self.held_usd_per_hour):
            prices = np.zeros(len(held))
            self.floor = np.append(self.floor, np.full(len(held), USUAL_TIER))
            self.prices = np.append(self.prices, prices)
        else:
            self.best += float(prices @ (self.held_usd_per_hour - held))
        self.held_usd_per_hour, self.is_held = held, True
        self._cut_finer()
        self.at_hand(worth)

    def bound_beside(self, worth: Worth) -> float:
        """The bound of the plans that leave no tier but the last more short than this one does."""
        return self.best - self.drift_usd_per_hour(worth)

    def drift_usd_per_hour(self, worth: Worth) -> float:
        """What a plan lacks more than the tiers are held at, in their prices: so much lower is the bound beside it."""
        *above, _ = worth.lacking_usd_by_tier.values()
        prices = self.prices[len(self.room) :]
        return float(prices @ np.maximum(0.0, np.array(above) - self.held_usd_per_hour))

    def at_hand(self, worth: Worth) -> list[SparseWay]:
        """The ways of a plan at hand, which stays possible whatever room turned out to be of no use."""
        replicas = cell_counts(self.cells, worth.counts)
        self.used = self.shared @ replicas
        ways = list(self.maker.of_counts(replicas))
        self.table.take(ways)
        return ways

    def _usable(self) -> Floats:
        room = np.maximum(self.room - self.unusable, np.minimum(self.room, self.used))
        return np.append(room, self.held_usd_per_hour)

    def _rooms(self) -> Floats:
        return np.append(self.room, self.held_usd_per_hour)

    def weights(self, prices: Floats) -> Floats:
        """What each service pays for what it leaves undone, times its penalties, (S,)."""
        of_tier = np.append(1.0 + prices[len(self.room) :], 1.0)
        return of_tier[np.minimum(self.table.tiers, len(of_tier) - 1)]

    def priced(self, prices: Floats) -> float:
        """Bound the objective at the prices, and find the ways that these like best."""
        picks = self._picks(prices)
        self._take(picks, self.asked(prices))
        values = np.array([pick.value_usd_per_hour for pick in picks[: len(self.stocks)]])
        if self.search.is_on:
            shared, weights = prices[: len(self.room)], self.weights(prices)
            values = self.search.raised(self.table, self.stocks, values, self.room, shared, weights)
        value = float(values.sum() - prices @ self._rooms())
        if value > self.best:
            self.best, self.prices, self.values, self.search.in_best = value, prices, values, self.search.added
        if prices is self.prices:
            self.picks = picks
        return value

    def left_open(self, worth: Worth) -> list[float]:
        """What each service's part of a plan costs at the prices above the least that it could, USD per hour."""
        ways, asked = list(self.maker.of_counts(cell_counts(self.cells, worth.counts))), self.asked(self.prices)
        return list(map(float, priced_ways(ways, asked, self.weights(self.prices)) - self.values))

    def sizes_near(self, services: Sequence[int], most: int, *, are_unlike: bool = False) -> list[tuple[PoolKey, int]]:
        """Pools and their sizes in the best ways of services at the prices, so many of each service."""
        values, of_best = self.priced_ways(self.prices), self.table.sizes_of_best
        return [size for s in services for size in of_best(s, values, most, self.cells, are_unlike=are_unlike)]

    def priced_ways(self, prices: Floats) -> Floats:
        """What the ways known so far cost at the prices, (W,)."""
        return self.table.priced(prices[: len(self.room)], self.weights(prices))

    def over_usd_per_hour(self) -> Floats:
        """What the ways known so far cost at the prices above the least that their services could, (W,)."""
        return np.asarray(self.priced_ways(self.prices) - self.values[self.table.service])

    def size_ahead(self) -> None:
        """Have the crew size what the first pricing tells apart, while this process does something else."""
        self.book.size_ahead(told_apart(self._views(self.prices), self.wanted, len(self.stocks))[1])

    def _views(self, prices: Floats) -> list[View]:
        of_links = prices[self.table.first_link : len(self.room)]
        return views_at(self.stocks, self.sides, self.links, self.asked(prices), of_links)

    def _picks(self, prices: Floats, *, is_safe: bool = False) -> list[Pick]:
        """What is best of each service at the prices, then of those that may cross links what is best without."""
        views, weights = self._views(prices), self.weights(prices)
        apart, self.kept = told_apart(views, self.wanted, len(self.stocks))
        self.book.know(self.kept)
        work = [
            view.work(self.book.curves[view.service], kept, is_safe, float(weights[view.service]), self.penalties)
            for view, kept in zip(views, apart, strict=True)
        ]
        return [view.pick(pick) for view, pick in zip(views, self.crew.each(least_value, work), strict=True)]

    def _take(self, picks: Sequence[Pick], asked: Floats) -> bool:
        """Remember the ways of the picks, and size what they rest on."""
        is_new = False
        for v, (s, pick) in enumerate(zip([*range(len(self.stocks)), *self.near], picks, strict=True)):
            self.wanted[v] |= pick.wanted
            for pool, size in pick.asked_sizes:
                self.book.learn(s, pool, size)
                is_new = True
            is_new = self.table.add(self.maker.way(s, pick, asked)) or bool(pick.wanted) or is_new
            if v >= len(self.stocks):  # what completes it may stand on another side of a link
                is_new = self.table.add(self.maker.way(s, pick, asked, may_cross=True)) or is_new
        return is_new

    def asked(self, prices: Floats) -> Floats:
        return np.asarray(self.shared.T @ prices[: len(self.room)])

    def relaxed(self, among: Sequence[int] | None = None) -> Solution:  # of all ways known so far without it
        return solve_linear(self.choice(among), time_limit_s=self.seconds)

    def choice_prices(self, relaxed: Solution) -> Floats:
        return np.asarray(np.maximum(0.0, -duals_of(relaxed)[len(self.stocks) :]))

    def choice(self, among: Sequence[int] | None = None, *, is_whole: bool = False) -> Arrays:
        choice = self.table.choice(self._usable(), len(self.held_usd_per_hour), among, is_whole=is_whole)
        outside = self.table.outside(self.penalties)
        if self.search.is_on:  # the least values that it finds know of no such ways
            outside = outside | self.table.overfull(self.room)
        beyond = OUTSIDE * max(1.0, float(self.table.costs[1].max(initial=0.0)))
        return replace(choice, cost=choice.cost + beyond * (outside if among is None else outside[among]))

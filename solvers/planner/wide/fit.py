"""A few services of a large fleet at a time, cell by cell at exact sizes, beside what the others hold.

Where a fleet is a little short, the last few replicas are most of the objective, and the ways at hand seldom fit
together. So the services that hold most of what a plan leaves open are planned anew by the model of small fleets, with
the pools of their best ways; every other service keeps what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from solvers.deadline import AGAIN_UNTIL
from solvers.errors import SolveFailed
from solvers.fleet import PoolKey
from solvers.planner.model.relax import LEAN, UNUSED, Arrays, Solution, solve_whole, state
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.places import Placed, cell_counts, start_columns
from solvers.planner.placing.repack import unusable
from solvers.planner.placing.tiers import held_in_sum, is_clearly_better, is_taken, keeps_held, lacking_above
from solvers.planner.pools.cells import Cells, Floats, build_cells
from solvers.planner.pools.options import Options, PoolOption, Step
from solvers.planner.pools.sizer import Sizer
from solvers.planner.pools.tally import Worth, best_of
from solvers.planner.wide.near import AMPLE, Near, Neighbours, split_usd_per_hour
from solvers.planner.wide.wide import HELD_SLACK, Wide
from solvers.programme import Word
from solvers.sizing import Capacity

AT_ONCE, OTHERS = 4, 4  # services planned anew together, and more that may take their places
AT_ONCE_OF_FEW = (3, 3, 4, 4, 5)  # the same of few services, by how often in turn that was in vain: fewer are soon done
LEAST_FITS, MOST_FITS, FITS_RATIO = 10, 40, 0.8  # times that some are: so many for every service
LEAST_IDLE, IDLE_SERVICES = 5, 8  # times in vain that end it: one for so many services
MOST_NEARBY = 6  # times in turn that ways near a plan's are chosen among
MOST_ROUNDS, ROUNDS_OF_FEW = 4, 1  # times that some are planned anew and then ways near the plan's are chosen among
LEAST_ROUND, LEAST_FIT = 0.1, 0.02  # of the gap asked, what one more of them has to bring, and a fit to count
SWING = 0.1  # of the room that a service could take or leave, what counts as open
SPLIT_SWING = (
    0.3  # of the room, in its price, by which the ways differ that the relaxed choice splits a service between
)
MOST_NODES, NODES_OF_FEW = 10, 20
MOST_TRIES = 2  # times that the same are planned, while some replica of the plan finds no place
MOST_WAYS = 10  # of a service, the best at the prices: their pools are what it may have
WAYS_OF_FEW = 4  # the same of few services, ways with pools of their own
NEAR_SIZES, NEAR_RATIO = 3, 0.1  # around the sizes of those ways, which sizes are told apart
FIT_GAP = 0.2  # of the gap asked, what one such plan may leave open
ROUGH_GAP = 1.0  # the same of a plan that is fitted again

Settled = Callable[[Cells, Floats, Arrays], Worth]
Seated = Callable[[Cells, Floats], Placed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitter:
    """What plans are fitted with; ``gap`` is the relative gap asked, ``settled`` gives replicas their places."""

    desk: Desk
    wide: Wide
    gap: float
    settled: Settled
    seated: Seated
    placed: Callable[[Floats], Worth]
    unusable: dict[tuple[str, str], float] = field(default_factory=dict)
    neighbours: Neighbours = field(default_factory=Neighbours)

    def run(self, best: Worth, is_done: Callable[[Worth], bool]) -> Worth:
        """Plan some services at a time anew and choose among ways near the plan's in turn, until that brings little.

        Of few services the choice is quick and comes first; of many it takes longer than most fits. Of very many one
        choice brings more than all fits that there is time for.
        """
        is_near_first = self.wide.has_very_many or not self.wide.has_many
        best = self._nearby(best, is_done) if is_near_first and not is_done(best) else best
        for stage in (self._fits, self._nearby) * (MOST_ROUNDS if self.wide.has_many else ROUNDS_OF_FEW):
            before, best = best.objective_usd_per_hour, best if is_done(best) else stage(best, is_done)
            if is_done(best) or before - best.objective_usd_per_hour < LEAST_ROUND * self.gap * before:
                break
        return best

    def _nearby(self, best: Worth, is_done: Callable[[Worth], bool]) -> Worth:
        """Choose among ways near the plan's, and then near those of what that finds, while it brings something."""
        for _ in range(MOST_NEARBY):
            before, found = best.objective_usd_per_hour, self.placed(Near.of(self.wide, best, self.neighbours).chosen())
            best = found if self._is_taken(found, best) else best
            if is_done(best) or before - best.objective_usd_per_hour < LEAST_FIT * self.gap * before:
                break
        return best

    def _fits(self, best: Worth, is_done: Callable[[Worth], bool]) -> Worth:
        """Plan the services with most to gain anew, some at a time, until that brings nothing."""
        failed: dict[int, int] = {}
        closed: set[frozenset[int]] = set()
        idle, count = 0, len(self.wide.stocks)
        scores = self._scores(best)
        for _ in range(max(LEAST_FITS, min(MOST_FITS, round(FITS_RATIO * count)))):
            free = self._next(scores, failed, closed, self._at_once(idle))
            if not free or idle >= max(LEAST_IDLE, count // IDLE_SERVICES) or is_done(best):
                break
            found, is_closed = self.fitted(best, free, MOST_WAYS if self.wide.has_many else WAYS_OF_FEW)
            gained = 0.0
            if found is not None and self._is_taken(found, best):
                gained, best = best.objective_usd_per_hour - found.objective_usd_per_hour, found
                scores = self._scores(best)
            if gained > LEAST_FIT * self.gap * best.objective_usd_per_hour:
                idle, failed, closed = 0, {}, set()
            else:
                idle += 1
                failed |= {s: failed.get(s, 0) + 1 for s in free}
            closed |= {frozenset(free)} if is_closed or gained <= 0.0 else set()
        return best

    def _is_taken(self, found: Worth, best: Worth) -> bool:
        """Judge by what tiers are held at, and hold them anew where one is clearly less short."""
        held = self._held(best)
        if not is_taken(found, best, held):
            return False
        above = sorted(best.lacking_usd_by_tier)[: len(held)]
        if len(self.wide.held_usd_per_hour) and any(is_clearly_better(found, best, rank) for rank in above):
            self.wide.hold(found)
        return True

    def _held(self, best: Worth) -> Floats:
        """What each tier but the last may leave undone, in penalties."""
        if len(self.wide.held_usd_per_hour):
            return self.wide.held_usd_per_hour
        return lacking_above(best) * (1.0 + HELD_SLACK) + HELD_SLACK

    def _scores(self, best: Worth) -> list[float]:
        """What services leave open, and part of what they could do to others by another way; by service."""
        swings = SWING * Near.of(self.wide, best, self.neighbours).swings_usd_per_hour()
        if not self.wide.has_many:
            least = min(self.wide.branches, key=lambda branch: branch.best, default=self.wide)
            swings += SPLIT_SWING * np.minimum(split_usd_per_hour(least), best.objective_usd_per_hour - least.best)
        return [left + float(swing) for left, swing in zip(self.wide.left_open(best), swings, strict=True)]

    def _at_once(self, idle: int) -> int:
        return AT_ONCE if self.wide.has_many else AT_ONCE_OF_FEW[min(idle, len(AT_ONCE_OF_FEW) - 1)]

    def _next(
        self, scores: Sequence[float], failed: Mapping[int, int], closed: Collection[frozenset[int]], count: int
    ) -> tuple[int, ...]:
        """So many services of the highest scores, those that were of no use in vain before counting for less."""
        worth = [score / (1.0 + failed.get(s, 0)) for s, score in enumerate(scores)]
        order = sorted(range(len(scores)), key=lambda s: (-worth[s], s))[: count + OTHERS]
        able = (tuple(sorted(free)) for free in combinations(order, min(count, len(order))))
        left = [free for free in able if frozenset(free) not in closed]
        return min(left, key=lambda free: (-sum(worth[s] for s in free), free), default=())

    def fitted(
        self, best: Worth, free: Sequence[int], ways: int = MOST_WAYS, *, is_rough: bool = False
    ) -> tuple[Worth | None, bool]:
        """The best plan found that changes these services only, and whether no other is better.

        Parameters
        ----------
        ways : int
            How many of each service, the best at the prices, say what pools it may have.
        is_rough : bool
            The plan is fitted again, some of these services at a time.
        """
        cells, arrays = self._model(best, free, ways)
        start = start_columns(cells, arrays, best.counts)
        if start is None:  # what is placed anywhere has no cell of its own
            return None, True
        replicas = arrays.columns["replicas"]
        fixed = np.flatnonzero(~np.isin(cells.pool_service[cells.cell_pool], free)) + replicas.start
        lower, upper = arrays.lower.copy(), arrays.upper.copy()
        lower[fixed] = upper[fixed] = start[fixed]
        arrays = replace(held_in_sum(cells, arrays, self._held(best)), lower=lower, upper=upper)
        found: list[Worth] = []
        for _ in range(MOST_TRIES):
            try:
                solved = self._solved(self._usable(cells, arrays, best), start, is_rough=is_rough)
            except SolveFailed:  # for want of time or nodes
                return self._best_kept(found, best), False
            found.append(self.settled(cells, solved.x, arrays))
            placed = self.seated(cells, solved.x[replicas])
            lost = unusable(cells, arrays, solved.x[replicas], placed) if placed.left else {}
            if not lost or self.desk.crew.is_late(AGAIN_UNTIL):
                break
            for row, room in lost.items():
                self.unusable[row] = self.unusable.get(row, 0.0) + room
        return self._best_kept(found, best), solved.word is Word.OPTIMAL

    def _best_kept(self, found: Sequence[Worth], best: Worth) -> Worth | None:
        """The best of those that keep what tiers are held at beside a plan at hand, or of all where none does."""
        kept = [one for one in found if keeps_held(one, self._held(best))] or found
        return best_of(kept) if kept else None

    def _usable(self, cells: Cells, arrays: Arrays, best: Worth) -> Arrays:
        """Leave out room where replicas found no place, but what the plan at hand takes of it all the same."""
        rows = [r for r, row in enumerate(arrays.rows) if row in self.unusable]
        if not rows:
            return arrays
        used = arrays.matrix.tocsr()[rows][:, arrays.columns["replicas"]] @ cell_counts(cells, best.counts)
        most = arrays.row_upper.copy()
        most[rows] = np.maximum(used, most[rows] - [self.unusable[arrays.rows[r]] for r in rows])
        return replace(arrays, row_upper=most)

    def _solved(self, arrays: Arrays, start: Floats, *, is_rough: bool) -> Solution:
        return solve_whole(
            arrays,
            relative_gap=(ROUGH_GAP if is_rough else FIT_GAP) * self.gap,
            time_limit_s=AMPLE * self.wide.seconds,
            node_limit=MOST_NODES if self.wide.has_many else NODES_OF_FEW,
            start=start,
            run=self.desk.crew.whole,
            spared=LEAN if self.wide.has_many else UNUSED,
        )

    def _model(self, best: Worth, free: Sequence[int], ways: int) -> tuple[Cells, Arrays]:
        """The model of small fleets: free services with the pools of their best ways, others with what they have."""
        sizes = _sizes(best)
        for pool, size in self.wide.sizes_near(free, ways, are_unlike=not self.wide.has_many):
            sizes.setdefault(pool, set()).add(size)
        names = {self.wide.cells.services[s].name for s in free}
        pools = [
            replace(
                option, steps=exact_steps(option, self.desk.sizer, sizes[option.pool], option.pool.service in names)
            )
            for option in self.desk.options.pools
            if option.pool in sizes
        ]
        options = Options(pools=tuple(pools), unfit=self.desk.options.unfit)
        cells = build_cells(self.desk.problem, options, fair_ratio=self.desk.penalties.fair_ratio)
        whole = self.wide.cells
        cells = replace(
            cells, penalty_usd_per_hour=whole.penalty_usd_per_hour, floor_usd_per_hour=whole.floor_usd_per_hour
        )
        return cells, state(cells)


def _sizes(worth: Worth) -> dict[PoolKey, set[int]]:
    totals: dict[PoolKey, int] = {}
    for (pool, _), count in sorted(worth.counts.items()):
        totals[pool] = totals.get(pool, 0) + count
    return {pool: {total} for pool, total in totals.items()}


def exact_steps(option: PoolOption, sizer: Sizer, sizes: Iterable[int], is_free: bool) -> tuple[Step, ...]:
    """A step for every size near the given ones; those between count as the worse end of their range.

    Parameters
    ----------
    is_free : bool
        Without it the given sizes alone are told apart.
    """
    told = sorted({size for given in sizes for size in (_near(given) if is_free else (given,)) if size <= option.most})
    return tuple(_steps(option, sizer, told))


def _near(size: int) -> range:
    reach = max(NEAR_SIZES, round(NEAR_RATIO * size))
    return range(max(1, size - reach), size + reach + 1)


def _steps(option: PoolOption, sizer: Sizer, told: Sequence[int]) -> Iterator[Step]:
    """Steps from one to the most, those told apart one size wide."""
    lower = 1
    for size in (*told, option.most + 1):
        if lower < size:
            yield _step(option, sizer, lower, size - 1)
        if size <= option.most:
            yield _step(option, sizer, size, size)
        lower = size + 1


def _step(option: PoolOption, sizer: Sizer, lower: int, upper: int) -> Step:
    ends = [sizer.at(option.pool, option.profile, size) for size in (lower, upper)]
    return Step(
        lower=lower,
        upper=upper,
        capacity_requests_per_s=min(end.requests_per_s if isinstance(end, Capacity) else 0.0 for end in ends),
        gpu_watts=max(
            end.gpu_watts if isinstance(end, Capacity) else option.profile.idle_watts_per_gpu for end in ends
        ),
    )

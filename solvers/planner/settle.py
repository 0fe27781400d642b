"""From the columns of a solved model to counts that have their places, caps and filled leftovers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from solvers.errors import SOLVER_FAULTS, SolveFailed
from solvers.fleet import PoolKey
from solvers.planner.bays.nodes import Counts
from solvers.planner.model.relax import Arrays, Solution, state
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.pack_nodes import pack
from solvers.planner.placing.pair_seats import seated_by_pairs
from solvers.planner.placing.places import Placed, place, start_columns, with_totals
from solvers.planner.placing.recap import recapped
from solvers.planner.placing.repack import repacked
from solvers.planner.placing.rounding import fill
from solvers.planner.placing.urgent import placed_urgent_first
from solvers.planner.pools.caps import one_level
from solvers.planner.pools.cells import Cells, Floats, build_cells
from solvers.planner.pools.tally import Worth, best_of

SPLIT_CELLS = 1500  # up to so many cells bays are told apart by what runs there; beyond, their churn is counted in sum
MOST_RECAPS = 4  # times that caps are chosen again and what they free is filled
FEW_SHORT, SMALL = 0.02, 400  # of a plan's objective, penalties that many bays are not chosen anew for; and what is few


@dataclass(slots=True, kw_only=True)
class Settler:
    """Gives replicas their places.

    Attributes
    ----------
    base : mapping
        What every plan in question holds at least.
    whole, seconds : callable
        Solves with whole numbers from a start, and says how long a solve may take.
    faults : list of str
        Told what failed, and stands in for it.
    seats : tuple
        Replicas by cell that were settled last, and where they stand.
    """

    desk: Desk
    base: Counts
    whole: Callable[[Arrays, Floats | None], Solution]
    seconds: Callable[[], float]
    faults: list[str]
    seats: tuple[bytes, Placed | None] = field(default=(b"", None))

    def settled(self, cells: Cells, x: Floats, arrays: Arrays, *, is_rough: bool = False) -> Worth:
        """Give every replica its place; in large fleets filling elsewhere may do, else bays are chosen anew.

        Not for what is ``is_rough``: then filling has to do there.
        """
        replicas = x[arrays.columns["replicas"]]
        placed = self._placed(cells, replicas)
        if placed.left and self.desk.is_large:
            placed = placed_urgent_first(cells, replicas, placed, lambda first: self._placed(cells, replicas, first))
        self.seats = replicas.tobytes(), placed
        if not placed.left or not self.desk.is_wide:
            return self._filled(cells, replicas, placed)
        plain = [self._filled(cells, replicas, placed)] if self.desk.is_large else []
        if plain and (is_rough or not plain[0].short):
            return plain[0]
        is_few = any(w.penalty_usd_per_hour <= FEW_SHORT * abs(w.objective_usd_per_hour) for w in plain)
        run, most_columns = self.desk.crew.whole, SMALL if is_few else np.inf
        again = repacked(cells, replicas, placed, run=run, time_limit_s=self.seconds(), most_columns=most_columns)
        if plain and again is placed:
            return plain[0]
        self.seats = replicas.tobytes(), again
        return best_of([*plain, self._filled(cells, replicas, again)])

    def seated(self, cells: Cells, replicas: Floats) -> Placed:
        """Where counts were placed; those that were settled last are known."""
        known, placed = self.seats
        return placed if placed and known == replicas.tobytes() else self._placed(cells, replicas)

    def _placed(self, cells: Cells, replicas: Floats, first: Mapping[int, int] | None = None) -> Placed:
        mend = partial(seated_by_pairs, run=self.desk.crew.whole, time_limit_s=self.seconds())
        return place(cells, replicas, self.desk.sizer, first, mend)

    def _filled(self, cells: Cells, replicas: Floats, placed: Placed) -> Worth:
        """What power or groups leave over is solved again bay by bay, then filled."""
        is_uneven = self.desk.is_uneven
        if not self.desk.is_wide and (placed.left or is_uneven(placed.counts)):  # large fleets have too many bays
            placed = self._placed_bay_by_bay(cells, placed)
        elif self.desk.is_wide and (
            (placed.left and not self.desk.is_large)
            or is_uneven(placed.counts, are_all=False, are_paid=max(map(len, cells.grouping.links), default=0) > 1)
        ):  # ways know what single links are paid, and pairs that may not cross have the best of places
            placed = self._placed_as_chosen(cells, replicas, placed)
        counts = one_level(placed.counts)  # more than one only where a solve failed and its relaxation was rounded
        for key, count in pack(self.desk.problem, counts).left.items():
            counts[key] -= count
        desk, room = self.desk, placed.room.copy()
        filled = desk.worth(fill(desk.problem, desk.sizer, desk.fill_options(), room, counts, self.base))
        return self._recapped(best_of([desk.worth(counts), filled]))

    def _recapped(self, worth: Worth) -> Worth:
        """Choose the caps again at exact capacities, and fill what is short with the watts that this frees."""
        desk, best = self.desk, worth
        if not desk.is_capped:
            return worth
        for _ in range(MOST_RECAPS):
            try:
                counts = recapped(desk.problem, desk.sizer, desk.options, desk.penalties, best.counts, desk.crew.whole)
            except SOLVER_FAULTS as fault:
                self.faults.append(f"caps: {fault}")
                break
            tried = best_of([best, desk.worth(counts), desk.repaired(counts, self.base)])
            if not tried.is_better_than(best):
                break
            best = tried
        return best

    def _placed_bay_by_bay(self, cells: Cells, placed: Placed) -> Placed:
        only = {pool for pool, _ in placed.counts} | self.desk.wanted
        fine = self._bay_by_bay(cells, only)
        arrays = state(fine)
        try:
            whole = self.whole(arrays, start_columns(fine, arrays, placed.counts))
        except SOLVER_FAULTS as fault:
            self.faults.append(f"places: {fault}")
            return placed
        return _no_worse(placed, place(fine, whole.x[arrays.columns["replicas"]]))

    def _placed_as_chosen(self, cells: Cells, replicas: Floats, placed: Placed) -> Placed:
        """Find every replica of the chosen pools a bay by the solver, where there are few bays; none is given up."""
        totals = {
            cells.pools[p].pool: n
            for p, n in enumerate(np.bincount(cells.cell_pool, weights=np.round(replicas)).tolist())
            if n > 0.0
        }
        fine = self._bay_by_bay(cells, totals.keys())
        if len(fine.cell_pool) > SPLIT_CELLS:
            return placed
        arrays = state(fine)
        try:
            whole = self.whole(with_totals(fine, arrays, totals), None)
        except SolveFailed:  # no bays hold just these
            return placed
        return _no_worse(placed, place(fine, whole.x[arrays.columns["replicas"]]))

    def _bay_by_bay(self, cells: Cells, only: Collection[PoolKey]) -> Cells:
        """Cells of some pools in every single bay."""
        fair_ratio = self.desk.penalties.fair_ratio
        return build_cells(cells.problem, self.desk.options, one_by_one=True, only=only, fair_ratio=fair_ratio)


def _no_worse(before: Placed, again: Placed) -> Placed:
    return again if again.left <= before.left else before

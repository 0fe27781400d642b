"""The solves of one decision: relaxation, whole replicas, places, narrower size steps, and the tiers' order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import cvxpy as cp
import numpy as np

from solvers.assemble import Prices, assemble, read_prices
from solvers.bound import dual_bound
from solvers.cells import Cells, Floats, build_cells
from solvers.desk import Desk
from solvers.errors import SolveFailed
from solvers.fleet import PoolKey
from solvers.options import find_options, step_at
from solvers.packing import pack
from solvers.places import Placed, place, start_columns
from solvers.plan import Plan
from solvers.relax import Arrays, Solution, solve_linear, solve_whole, state
from solvers.rounding import fill
from solvers.shortage import reasons_by_service
from solvers.tally import Worth
from solvers.tiers import protect_higher_tiers
from solvers.verify import verify

MOST_ROUNDS = 4
SPLIT_CELLS = 1500  # up to so many cells bays are told apart by what runs there; beyond, their churn is counted in sum
NODE_WORK = 3e7  # branch-and-bound nodes × whole columns^1.5: bounds the work of a solve rather than its seconds
SOLVER_GAP = 0.7  # of the gap asked: what is left is for places and for size steps
SOLVER_FAULTS = (SolveFailed, cp.error.SolverError, ArithmeticError, ValueError, RuntimeError)


@dataclass(slots=True, kw_only=True)
class Search:
    """State of a search. ``bound_usd_per_hour`` only rises, from 0: nothing pays for itself. ``faults`` only grow."""

    desk: Desk
    bound_usd_per_hour: float = 0.0
    prices: Prices = field(default_factory=Prices)
    rounds: int = 0
    is_protected: bool = False
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    refined: dict[PoolKey, set[int]] = field(default_factory=dict)

    def run(self, starts: Sequence[Worth]) -> Worth:
        """Return the best counts found. Never raises: what fails is noted, and the greedy plan remains."""
        best = min([*starts, self.desk.repaired({})], key=_value)
        if not self.desk.problem.services:  # nothing is asked, so nothing is placed; there is no model to state
            best = self.desk.repaired({})
            self._raise_bound(best.objective_usd_per_hour)
            return best
        while self.rounds < MOST_ROUNDS:
            try:
                found, narrower = self._round(best)
            except SOLVER_FAULTS as fault:
                self.faults.append(f"round {self.rounds + 1}: {fault}")
                self.notes.append(f"solver failed in round {self.rounds + 1}, the best plan so far stands")
                break
            self.rounds += 1
            if self.is_protected:
                return found  # worth less by weight, and right by tier
            best = min(best, found, key=_value)
            if self._proved(best) or not narrower:
                break
        return best

    def _proved(self, worth: Worth) -> bool:
        gap = worth.objective_usd_per_hour - self.bound_usd_per_hour
        return gap <= self.desk.problem.policy.relative_gap * abs(worth.objective_usd_per_hour)

    def _round(self, best: Worth) -> tuple[Worth, bool]:
        """Solve once; says too whether narrower size steps could still change something."""
        cells = self._cells()
        arrays = state(cells)
        relaxed = solve_linear(arrays, time_limit_s=self._seconds())
        self.prices = read_prices(cells, arrays, _given(relaxed.duals))
        self._raise_bound(dual_bound(arrays, _given(relaxed.duals)))
        if self._proved(best) and not best.short:  # a short plan's tiers are looked at below
            return best, False
        try:
            whole = self._solve(cells, arrays, best)
        except SOLVER_FAULTS as fault:
            self.faults.append(f"whole replicas: {fault}")
            self.notes.append("whole-replica solve failed, the relaxation was rounded down and filled")
            return self._settled(cells, np.floor(relaxed.x + 1e-6), arrays), False
        found = self._settled(cells, whole.x, arrays)
        return found, self._narrow(cells, arrays, whole.x)

    def _solve(self, cells: Cells, arrays: Arrays, best: Worth) -> Solution:
        start = start_columns(cells, arrays, best.counts)
        whole = self._whole(arrays, start)
        self._raise_bound(whole.bound)
        protected = protect_higher_tiers(cells, arrays, whole, lambda changed, x: self._whole(changed, x))
        if protected is not whole:
            self.is_protected = True
            self.notes.append("a lower tier gave way: the weights alone would have left a higher tier short")
        return protected

    def _whole(self, arrays: Arrays, start: Floats | None) -> Solution:
        return solve_whole(
            arrays,
            relative_gap=SOLVER_GAP * self.desk.problem.policy.relative_gap,
            time_limit_s=self._seconds(),
            node_limit=max(50, int(NODE_WORK / max(1, arrays.whole.sum()) ** 1.5)),
            start=start,
        )

    def _seconds(self) -> float:
        """Share of the time limit that one solve may take; rounds get less and less, so that their sum keeps it."""
        return self.desk.problem.policy.time_limit_s / 2.0 ** (self.rounds + 1)

    def _raise_bound(self, bound: float) -> None:
        if np.isfinite(bound):
            self.bound_usd_per_hour = max(self.bound_usd_per_hour, bound)

    def _cells(self) -> Cells:
        options = self.desk.options
        if self.refined:
            options = find_options(self.desk.problem, self.desk.sizer, refined=self.refined, wanted=self.desk.wanted)
        cells = build_cells(self.desk.problem, options)
        if len(cells.cell_pool) > SPLIT_CELLS:
            cells = build_cells(self.desk.problem, options, split_running=False)
        return cells

    def _settled(self, cells: Cells, x: Floats, arrays: Arrays) -> Worth:
        """Give every replica its place; what power or groups leave over is solved again bay by bay, then filled."""
        placed = place(cells, x[arrays.columns["replicas"]])
        if placed.left:
            placed = self._placed_bay_by_bay(cells, placed)
        counts = dict(placed.counts)
        for key, count in pack(self.desk.problem, counts).left.items():
            counts[key] -= count
        desk = self.desk
        as_placed = desk.worth(counts)
        filled = desk.worth(fill(desk.problem, desk.sizer, desk.options, placed.room, counts))
        return min(as_placed, filled, key=_value)

    def _placed_bay_by_bay(self, cells: Cells, placed: Placed) -> Placed:
        only = {pool for pool, _ in placed.counts} | self.desk.wanted
        fine = build_cells(cells.problem, self.desk.options, one_by_one=True, only=only)
        arrays = state(fine)
        try:
            whole = self._whole(arrays, start_columns(fine, arrays, placed.counts))
        except SOLVER_FAULTS as fault:
            self.faults.append(f"places: {fault}")
            return placed
        again = place(fine, whole.x[arrays.columns["replicas"]])
        return again if again.left == 0 else placed

    def _narrow(self, cells: Cells, arrays: Arrays, x: Floats) -> bool:
        """Give the sizes that came out a step of their own where the step promised more than they carry."""
        changed = False
        totals = np.bincount(
            cells.cell_pool, weights=np.round(x[arrays.columns["replicas"]]), minlength=len(cells.pools)
        )
        for option, total in zip(cells.pools, totals.astype(int), strict=True):
            step = step_at(option, int(total))
            if step is None or step.lower == step.upper:
                continue
            sizes = self.refined.setdefault(option.pool, set())
            changed = changed or total not in sizes
            sizes |= {int(total), int(total) + 1}
        return changed

    def write(self, worth: Worth, notes: Collection[str] = ()) -> tuple[Plan, tuple[str, ...]]:
        """Write a plan and check it; a plan with violations must not be used."""
        plan = assemble(
            self.desk.problem,
            worth,
            prices=self.prices,
            bound_usd_per_hour=self.bound_usd_per_hour,
            rounds=self.rounds,
            notes=(*notes, *self.notes),
            reasons=reasons_by_service(self.desk.problem, self.desk.options, worth),
        )
        return plan, verify(plan, self.desk.problem)


def _value(worth: Worth) -> float:
    return worth.objective_usd_per_hour


def _given(duals: Floats | None) -> Floats:
    if duals is None:
        raise SolveFailed("the relaxation gave no prices")
    return duals

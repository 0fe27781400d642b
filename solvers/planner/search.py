"""The solves of one decision: relaxation, whole replicas, places, narrower size steps, and the tiers' order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from solvers.certificate import Certificate
from solvers.deadline import PRICES_UNTIL
from solvers.errors import SOLVER_FAULTS
from solvers.fleet import PoolKey
from solvers.plan import Plan
from solvers.planner.assemble import Prices, assemble, read_prices
from solvers.planner.bays.nodes import Counts
from solvers.planner.fine import fine_counts
from solvers.planner.menus.compose import Composer, Enough, shared_rows
from solvers.planner.menus.menus import Least
from solvers.planner.model.limits import LIMITS, SHARED_LIMITS
from solvers.planner.model.relax import Arrays, Solution, duals_of, solve_linear, solve_whole, state
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.places import cell_counts, narrowed, start_columns
from solvers.planner.placing.shortage import reasons_by_service
from solvers.planner.placing.tiers import (
    IN_ORDER_NOTE,
    InOrder,
    held_in_sum,
    hold_higher_tiers,
    lacking_values,
    lacks,
    relaxed_lacks_clearly,
)
from solvers.planner.pools.cells import Cells, Floats, build_cells
from solvers.planner.pools.floors import pinned_most
from solvers.planner.pools.options import find_options
from solvers.planner.pools.tally import Worth, best_of
from solvers.planner.proof.bound import dual_bound, priced_duals
from solvers.planner.proof.certify import Evidence, best_certificate, certificate, held_tiers, in_branches, known_duals
from solvers.planner.settle import SPLIT_CELLS, Settler
from solvers.planner.wide.branches import bound_of_branches, branch_prices
from solvers.planner.wide.choice import Chooser
from solvers.planner.wide.relaxed_ways import rounded, take_near
from solvers.planner.wide.wide import Wide
from solvers.verify import verify

MOST_ROUNDS = 4
NODE_WORK = 3e7  # branch-and-bound nodes × whole columns^1.5: bounds the work of a solve rather than its seconds
FAILED_NOTE = "a stage failed, the best plan before it stands"
HELD_NOTE = "the bound is that of plans that leave no tier but the last more short than this one"
SMALL = 150  # whole columns of a model that the solver searches through in no time
SOLVER_GAP = 0.7  # of the gap asked: what is left is for places and for size steps


@dataclass(slots=True, kw_only=True)
class Search:
    """State of a search. ``bound_usd_per_hour`` only rises, from 0: nothing pays for itself. ``faults`` only grow.

    ``base`` is what every plan in question holds at least: a search that only extends it.
    """

    desk: Desk
    base: Counts = field(default_factory=dict)
    on_plan: Callable[[Plan], None] | None = None
    bound_usd_per_hour: float = 0.0
    prices: Prices = field(default_factory=Prices)
    evidence: Evidence = field(default_factory=Evidence)
    rounds: int = 0
    composer: Composer | None = None
    in_order: InOrder | None = None
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    refined: dict[PoolKey, set[int]] = field(default_factory=dict)
    settler: Settler = field(init=False)

    def __post_init__(self) -> None:
        self.settler = Settler(
            desk=self.desk, base=self.base, whole=self._whole, seconds=self._seconds, faults=self.faults
        )

    def run(self, starts: Sequence[Worth], is_enough: Enough = lambda bound: False) -> Worth:
        """Return the best counts found. Never raises: what fails is noted, and the greedy plan remains.

        Parameters
        ----------
        is_enough : callable
            Told a bound on the objective of every plan; True ends the search, as nothing found would be of use.
        """
        if self.desk.is_wide and not self.base and self.desk.problem.services:
            return self._run_wide(starts, is_enough)
        best = best_of([*starts, self.desk.repaired(self.base, self.base) if self.base else self.desk.greedy()])
        if not self.desk.problem.services:  # nothing is asked, so nothing is placed; there is no model to state
            best = self.desk.greedy()
            self._raise_bound(best.objective_usd_per_hour)
            return best
        if self.desk.is_wide:
            return best  # what is cheapest to add to something is found by filling
        while self.rounds < MOST_ROUNDS:
            try:
                found, narrower = self._round(best, is_enough)
            except SOLVER_FAULTS as fault:
                self.faults.append(f"round {self.rounds + 1}: {fault}")
                self.notes.append(f"solver failed in round {self.rounds + 1}, the best plan so far stands")
                break
            self.rounds += 1
            best = best_of([best, found])
            if self._proved(best) or is_enough(self.bound_usd_per_hour) or not narrower or self.desk.crew.is_late():
                break
        return self._fine(best)

    def _fine(self, best: Worth) -> Worth:
        """Set the caps of a short plan between their levels, where that clearly serves more."""
        if not best.short or not best.counts or not self.desk.is_capped:
            return best
        try:
            fine = self.desk.worth(fine_counts(self.desk, best))
        except SOLVER_FAULTS as fault:
            self.faults.append(f"caps between levels: {fault}")
            return best
        if self.desk.empty_room().take_all(fine.counts) or not fine.is_clearly_less_short_than(best):
            return best
        return fine

    def _run_wide(self, starts: Sequence[Worth], is_enough: Enough) -> Worth:
        """Find ways at prices and take one of each service; what is known so far, or the greedy plan, if that fails."""
        if not self.desk.is_large and all(start.short for start in starts):
            starts = [*starts, self.desk.greedy()]
        best = best_of(starts) if starts else None
        if best is not None:
            self._tell(best)
        try:
            cells = self._cells()
            near = self._near(best)
            arrays = state(cells, LIMITS if near is None else SHARED_LIMITS)
            wide = Wide.of(cells, arrays, self.desk.sizer, self.desk.crew, gap=self._gap(), seconds=self._seconds())
            best, duals = self._begun(cells, arrays, wide, best, near)
            self._raise_bound(wide.first())
            if near is not None and wide.is_far():
                arrays = state(cells)
                best, duals = self._begun(cells, arrays, wide, best, None)
                self._raise_bound(wide.first())
            early = best
            self._raise_bound(wide.bound(lambda b: is_enough(b) or self._proved_by(early, b) or self._is_priced()))
            self._certify(
                best_certificate(cells, arrays, duals, wide.prices[: len(wide.room)], wide.best - wide.search.in_best)
            )
            self.rounds += 1
            if is_enough(self.bound_usd_per_hour) or self._proved(best):
                return best
            return self._fine(self._chooser(cells, arrays, wide).run(best))
        except SOLVER_FAULTS as fault:
            self._told_fault(fault, "ways")
            return best or self.desk.greedy()

    def _near(self, best: Worth | None) -> Certificate | None:
        """The prices of the plan before; None where that and what is at hand are short."""
        known = self.desk.certificate
        return None if best is None or known is None or (best.short and known.held) else known

    def _begun(
        self, cells: Cells, arrays: Arrays, wide: Wide, best: Worth | None, near: Certificate | None
    ) -> tuple[Worth, Floats]:
        """Begin at the prices of the plan before where they are near, else at the relaxation's."""
        if best is not None and near is not None:
            return best, self._begin(cells, arrays, wide, known_duals(cells, arrays, near), best, is_near=True)
        relaxed = solve_linear(arrays, time_limit_s=self._seconds())
        duals = self._begin(cells, arrays, wide, duals_of(relaxed), best if self.desk.certificate is not None else None)
        wide.foresee(relaxed, arrays)
        wide.size_ahead()
        if wide.is_short and (wide.has_very_many or relaxed_lacks_clearly(cells, arrays, relaxed.x)):
            # whole replicas would lack no less, or of very many services so much that filling is wanted all the same
            first = self.desk.greedy()
        else:
            first = self._placed(cells, arrays, rounded(wide, relaxed, arrays), is_rough=wide.is_short)
        if (early := best_of([*([best] if best else []), first])) is not best:
            self._tell(early)
        wide.is_short = wide.is_short and lacks(early, self._gap())  # what serving costs more than lacking is no lack
        return early, duals

    def _begin(
        self, cells: Cells, arrays: Arrays, wide: Wide, duals: Floats, running: Worth | None, *, is_near: bool = False
    ) -> Floats:
        self.prices = read_prices(cells, arrays, duals)
        self._raise_bound(dual_bound(arrays, duals))
        wide.begin(np.maximum(0.0, -duals[shared_rows(arrays)]), running, is_near=is_near)
        return duals

    def _chooser(self, cells: Cells, arrays: Arrays, wide: Wide) -> Chooser:
        return Chooser(
            desk=self.desk,
            cells=cells,
            wide=wide,
            gap=self._gap(),
            placed=lambda replicas: self._placed(cells, arrays, replicas),
            seated=self.settler.seated,
            is_done=lambda worth: self._proved(worth) or self.desk.crew.is_late(),
            raise_bound=lambda worth: self._raise_held_bound(cells, arrays, wide, worth),
            told_fault=self._told_fault,
            settled=self.settler.settled,
            relaxed_beside=lambda: self._relaxed_beside(cells, arrays, wide),
        )

    def _relaxed_beside(self, cells: Cells, arrays: Arrays, wide: Wide) -> Floats:
        """Prices of the shared rows, links as free, and of the held tiers where replicas are divisible, (R + T,).

        The ways near what is placed there are remembered.
        """
        held = held_in_sum(cells, arrays, wide.held_usd_per_hour)
        relaxed = solve_linear(held, time_limit_s=self._seconds())
        prices = np.maximum(0.0, -duals_of(relaxed))
        rows, tiers = prices[shared_rows(arrays)], prices[len(arrays.rows) :]
        beside = np.concatenate([rows, np.zeros(len(wide.room) - len(rows)), tiers])
        take_near(wide, relaxed, held, beside)
        return beside

    def _told_fault(self, fault: Exception, stage: str = "choice") -> None:
        """Keep what a stage failed with; a solve that time ran out for is no failure worth a note."""
        self.faults.append(f"{stage}: {fault}")
        is_told = FAILED_NOTE in self.notes or self.desk.crew.is_late()
        self.notes += [] if is_told else [FAILED_NOTE]

    def _raise_held_bound(self, cells: Cells, arrays: Arrays, wide: Wide, worth: Worth) -> None:
        """Take a bound of the plans that keep the tiers in order as this one does, and say so."""
        before, bound = self.bound_usd_per_hour, min(wide.bound_beside(worth), worth.objective_usd_per_hour)
        self._raise_bound(min(bound_of_branches(wide, worth), worth.objective_usd_per_hour))
        if self.bound_usd_per_hour > before:
            self.evidence.hold(before, held_tiers(worth, wide.prices[len(wide.room) :]))
            shown = certificate(cells, arrays, wide.prices[: len(wide.room)], bound - wide.search.in_best)
            are_apart = self.bound_usd_per_hour > bound
            self._certify(in_branches(cells, arrays, shown, branch_prices(wide, worth)) if are_apart else shown)
            self.notes += [] if HELD_NOTE in self.notes else [HELD_NOTE]

    def _tell(self, worth: Worth) -> None:
        """Hand an early plan to who asked for it, if it passes the check."""
        if self.on_plan is not None:
            plan, violations = self.write(worth, ("an early stage",))
            if not violations:
                self.on_plan(plan)

    def _placed(self, cells: Cells, arrays: Arrays, replicas: Floats, *, is_rough: bool = False) -> Worth:
        x = np.zeros(len(arrays.cost))
        x[arrays.columns["replicas"]] = replicas
        return self.settler.settled(cells, x, arrays, is_rough=is_rough)

    def _proved(self, worth: Worth) -> bool:
        gap = worth.objective_usd_per_hour - self.bound_usd_per_hour
        return gap <= self.desk.problem.policy.relative_gap * abs(worth.objective_usd_per_hour)

    def _round(self, best: Worth, is_enough: Enough) -> tuple[Worth, bool]:
        """Solve once; says too whether narrower size steps could still change something."""
        cells = self._cells()
        arrays, least = self._based(cells, state(cells))
        relaxed = solve_linear(arrays, time_limit_s=self._seconds())
        duals = priced_duals(arrays, relaxed, shared_rows(arrays), time_limit_s=self._seconds())
        self.prices = read_prices(cells, arrays, duals)
        self._raise_bound(dual_bound(arrays, duals))
        if self.rounds == 0:  # ways have exact sizes: rounds that narrow steps would find the same
            self.composer = self._composed(
                cells, arrays, duals, least, lambda b: is_enough(b) or self._proved_by(best, b) or self._is_priced()
            )
        composer = self.composer
        if is_enough(self.bound_usd_per_hour) or (self._proved(best) and not best.short):  # tiers are looked at below
            return best, False
        try:
            found, narrower = self._searched(cells, arrays, composer, best)
            if found.short and composer is not None and not self.desk.crew.is_late():
                found = best_of([found, self._in_order(cells, arrays, composer, found)])
                found = best_of([found, *self._at_exact_sizes(found)])
        except SOLVER_FAULTS as fault:
            self.faults.append(f"whole replicas: {fault}")
            self.notes.append("whole-replica solve failed, the relaxation was rounded down and filled")
            return self.settler.settled(cells, np.floor(relaxed.x + 1e-6), arrays), False
        return found, narrower and not found.short

    def _searched(self, cells: Cells, arrays: Arrays, composer: Composer | None, best: Worth) -> tuple[Worth, bool]:
        lean, few = self._lean(cells, arrays, composer, best)
        whole = self._whole(few, start_columns(lean, few, best.counts))
        if few is arrays:
            self._raise_bound(whole.bound)
        if composer is None:
            whole = (self._held(lean, few, whole.x) or (whole, few))[0]
        return self.settler.settled(lean, whole.x, few), narrowed(lean, whole.x[few.columns["replicas"]], self.refined)

    def _in_order(self, cells: Cells, arrays: Arrays, composer: Composer, found: Worth) -> Worth:
        """Solve with every pool and the least shortage of each tier held: small work once those are known.

        Where caps are open the pools of the ways have to do: with every cap of every pool it is no small work.
        """
        if self.desk.is_capped:
            cells, arrays = self._lean(cells, arrays, composer, found)
        whole = self._held(cells, arrays, lacking_values(cells, arrays, found), is_wanted=True)
        if whole is None:
            return found
        solution, held = whole
        if not self.desk.is_capped and np.isfinite(solution.bound):
            self.in_order = InOrder(usd_per_hour=solution.bound, cells=cells, arrays=held)
        return self.settler.settled(cells, solution.x, arrays)

    def _held(
        self, cells: Cells, arrays: Arrays, x: Floats, *, is_wanted: bool = False
    ) -> tuple[Solution, Arrays] | None:
        """Solve with higher tiers held at their least shortage, as said; None when nothing is to be gained by it."""
        held, start, is_changed = hold_higher_tiers(cells, arrays, x, self._whole)
        if not is_changed and not is_wanted:
            return None
        if is_changed:
            self.notes.append("a lower tier gave way: the weights alone would have left a higher tier short")
        return self._whole(held, start), held

    def _composed(
        self, cells: Cells, arrays: Arrays, duals: Floats, least: Least, is_enough: Enough
    ) -> Composer | None:
        """Find the ways that matter and raise the bound; None when the fleet is too large for that."""
        seconds = self._seconds()
        composer = Composer.of(cells, arrays, self.desk.sizer, gap=self._gap(), seconds=seconds, least=least)
        if composer is not None:
            self._raise_bound(value := composer.bound(duals, arrays, is_enough))
            self._certify(best_certificate(cells, arrays, duals, composer.prices, value))
        else:
            self._certify(best_certificate(cells, arrays, duals, np.zeros(0), -np.inf))
        return composer

    def _proved_by(self, best: Worth, bound: float) -> bool:
        value = best.objective_usd_per_hour
        return not best.short and value - bound <= self.desk.problem.policy.relative_gap * abs(value)

    def _is_priced(self) -> bool:
        """Tell whether what is left of the time is needed to choose and to place."""
        return self.desk.crew.is_late(PRICES_UNTIL)

    def _based(self, cells: Cells, arrays: Arrays) -> tuple[Arrays, dict[int, int]]:
        """Ask for at least the replicas of the base in every cell."""
        least = {c: n for c, n in enumerate(cell_counts(cells, self.base)) if n > 0}
        lower = arrays.lower.copy()
        for cell, count in least.items():
            column = arrays.columns["replicas"].start + cell
            lower[column] = min(float(count), arrays.upper[column])
        return replace(arrays, lower=lower), least

    def _lean(self, cells: Cells, arrays: Arrays, composer: Composer | None, best: Worth) -> tuple[Cells, Arrays]:
        """Leave out pools that no way uses, where the whole model is too large to be searched through."""
        if composer is None or arrays.whole.sum() <= SMALL:
            return cells, arrays
        only = composer.pools() | {pool for pool, _ in best.counts} | {pool for pool, _ in self.base} | self._pinned()
        lean = self._cells(only)
        return lean, self._based(lean, state(lean))[0]

    def _pinned(self) -> set[PoolKey]:
        """Pools that could keep a pin, or spread a load: no way knows of places."""
        services = {service.name: service for service in self.desk.problem.services}
        pools = (option.pool for option in self.desk.options.pools)
        return {pool for pool in pools if pinned_most(services[pool.service], pool) or services[pool.service].hangs}

    def _gap(self) -> float:
        return SOLVER_GAP * self.desk.problem.policy.relative_gap

    def _whole(self, arrays: Arrays, start: Floats | None) -> Solution:
        return solve_whole(
            arrays,
            relative_gap=self._gap(),
            time_limit_s=self._seconds(),
            node_limit=max(50, int(NODE_WORK / max(1, arrays.whole.sum()) ** 1.5)),
            start=start,
            run=self.desk.crew.whole,
        )

    def _seconds(self) -> float:
        """Share of the time limit that one solve may take; rounds get less and less, so that their sum keeps it."""
        return self.desk.problem.policy.time_limit_s / 2.0 ** (self.rounds + 1)

    def _certify(self, shown: Certificate) -> None:
        """Keep the prices that the bound so far rests on; what rises later rises by search."""
        if not self.base:
            self.evidence.shown = shown

    def _raise_bound(self, bound: float) -> None:
        if np.isfinite(bound):
            self.bound_usd_per_hour = max(self.bound_usd_per_hour, bound)

    def _cells(self, only: Collection[PoolKey] | None = None) -> Cells:
        options = self.desk.options
        if self.refined:
            options = find_options(self.desk.problem, self.desk.sizer, refined=self.refined, wanted=self.desk.wanted)
        fair_ratio = self.desk.penalties.fair_ratio
        plain = build_cells(self.desk.problem, options, split_running=False, only=only, fair_ratio=fair_ratio)
        if len(plain.cell_pool) > SPLIT_CELLS or not self.desk.problem.running:  # apart they would be more, or the same
            return plain
        apart = build_cells(self.desk.problem, options, only=only, fair_ratio=fair_ratio)
        return apart if len(apart.cell_pool) <= SPLIT_CELLS else plain

    def _at_exact_sizes(self, worth: Worth) -> list[Worth]:
        """Where caps are open: solve the pools of a short plan again, every size with what it carries exactly."""
        if not self.desk.is_capped:
            return []
        used = {pool.uncapped for pool, _ in worth.counts}
        only = [option for option in self.desk.options.pools if option.pool.uncapped in used]
        refined = {option.pool: range(1, option.most + 1) for option in only}
        options = find_options(self.desk.problem, self.desk.sizer, refined=refined, wanted=self.desk.wanted)
        fair_ratio = self.desk.penalties.fair_ratio
        cells = build_cells(self.desk.problem, options, only={o.pool for o in only}, fair_ratio=fair_ratio)
        arrays = self._based(cells, state(cells))[0]
        x = self._whole(arrays, start_columns(cells, arrays, worth.counts)).x
        whole = self._held(cells, arrays, x)
        return [self.settler.settled(cells, x if whole is None else whole[0].x, arrays)]

    def write(self, worth: Worth, notes: Collection[str] = ()) -> tuple[Plan, tuple[str, ...]]:
        """Write a plan and check it; a plan with violations must not be used."""
        bound, shown = self.evidence.of(worth, self.bound_usd_per_hour)
        if self.in_order is not None and self.in_order.usd_per_hour > bound and self.in_order.covers(worth):
            bound, notes = self.in_order.usd_per_hour, (*notes, IN_ORDER_NOTE)
            shown = shown and replace(shown, is_searched=True)
        plan = assemble(
            self.desk.problem,
            worth,
            prices=self.prices,
            bound_usd_per_hour=bound,
            rounds=self.rounds,
            notes=(*notes, *self.notes),
            reasons=reasons_by_service(self.desk.problem, self.desk.options, worth),
        )
        plan = replace(plan, certificate=shown)
        return plan, verify(plan, self.desk.problem, capacity_of=self.desk.sizer.capacity_of)

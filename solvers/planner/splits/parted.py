"""Deciding a fleet in which some services may be split by size: a few cuts are decided in full, and the best is taken.

Leaving every service whole is always among them when a fleet is decided for the first time, so a split never costs more
than none. A cut in force is held like everything in force: another must serve more, or save enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from solvers.certificate import Certificate
from solvers.errors import SolveFailed
from solvers.plan import Plan, SplitPrice
from solvers.planner.placing.tiers import IN_ORDER_NOTE
from solvers.planner.pools.crew import Crew
from solvers.planner.splits.cuts import Book, open_book, stops_usd_per_hour
from solvers.planner.splits.splitting import (
    Cuts,
    cuts_of,
    cuts_running,
    dropped,
    joined,
    split,
    split_plan,
    spoken,
    with_evidence,
)
from solvers.problem import Problem
from solvers.sizes import SizeRange, tiles
from solvers.sizing import CapacityOf, replica_capacity
from solvers.verify import verify

MOST_TRIED = 4
"""Cuts of the whole fleet that are decided in full, at most."""

MOST_PRICED = 3
"""The same where each is the best at the prices of the one before, and none where it was tried."""

CLEAR = 2e-3  # of a service's demand; smaller differences of what is short decide nothing

ROUTED = "; by prompt length where a service is split"

Decide = Callable[[Problem, Plan | None], Plan]
"""Plans a problem of plain services, given the plan in force."""


def concerns(problem: Problem, previous: Plan | None) -> bool:
    """True when something is or was split, or may be."""
    if any(service.splits_by_size for service in problem.services) or (previous is not None and previous.parts):
        return True
    return any(pool.sizes for (pool, _), count in problem.running.items() if count)


def plan_parts(
    problem: Problem,
    previous: Plan | None,
    decide: Decide,
    capacity_of: CapacityOf,
    *,
    crew: Crew | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> Plan:
    """Decide the fleet with the cuts that are worth it.

    Parameters
    ----------
    decide : callable
        Plans a fleet of plain services; its answers are checked here, joined.
    crew : Crew, optional
        Who sizes the pools of large fleets, and until when: later no further cut is begun.
    on_plan : callable, optional
        Told the verified plan of each cut that is decided.

    Raises
    ------
    SolveFailed
        When no cut, nor none at all, led to a plan that passes ``verify``.
    """
    splitting = [service.name for service in problem.services if service.splits_by_size]
    held = _in_force(problem, previous, splitting)
    book = open_book(problem, capacity_of, held, splitting, crew)
    bench = _Bench(
        problem=problem,
        previous=previous,
        decide=decide,
        capacity_of=capacity_of,
        on_plan=on_plan,
        held=held,
        book=book,
        crew=crew or Crew(),
    )
    bench.search(any(problem.running.values()) or bool(held))
    return bench.answer()


def with_estimates(plan: Plan, problem: Problem, capacity_of: CapacityOf = replica_capacity) -> Plan:
    """Add what services that declare nothing would save if their routers could split, where that is anything.

    Each is weighed alone, at the prices of the fleet: an estimate, and none for a service that is short. Large fleets
    are left as they are: there it would take as long as the decision.
    """
    splitting = {service.name for service in problem.services if service.splits_by_size}
    silent = [s.service for s in plan.services if s.service not in splitting and not s.short_because]
    if not silent or Crew().finds_wide(problem):
        return plan
    whole = split(problem, {})
    book = open_book(whole, capacity_of, {}, silent)
    rows = [
        SplitPrice(
            service=service,
            sizes=tuple(sizes.label for sizes in ranges),
            usd_per_hour=book.saving_usd_per_hour(service, ranges),
            is_estimate=True,
            is_declared=False,
        )
        for service, ranges in book.best().items()
    ]
    return replace(plan, splits=tuple(sorted((*plan.splits, *rows), key=lambda row: row.service)))


def _in_force(problem: Problem, previous: Plan | None, splitting: Sequence[str]) -> Cuts:
    """Cuts that are planned, or else run, of services that still declare that they split."""
    found = cuts_of(previous) if previous is not None and previous.services else cuts_running(problem)
    return {name: ranges for name, ranges in found.items() if name in splitting and tiles(ranges)}


def _is_worth_trying(book: Book, held: Cuts, best: Cuts, problem: Problem) -> bool:
    """True when the best cuts promise to save what a change must save at least, or what is held cannot be weighed."""
    if not set(held) <= set(book.starts):  # nothing of the service is left to be told apart
        return True
    total = saving = 0.0
    for service in book.starts:
        try:
            now = book.value_usd_per_hour(service, held.get(service, ()))
        except KeyError:  # held at places that no longer lie between sizes
            return True
        total += now
        saving += now - book.value_usd_per_hour(service, best.get(service, ()))
    return saving > max(problem.policy.min_saving_ratio, 1e-6) * abs(total)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    cuts: Cuts
    plan: Plan

    @property
    def paid_usd_per_hour(self) -> float:
        """Objective less penalties."""
        return self.plan.report.objective_usd_per_hour - sum(row.penalty_usd_per_hour for row in self.plan.services)


@dataclass(slots=True, kw_only=True)
class _Bench:
    """Plans of the cuts that were tried."""

    problem: Problem
    previous: Plan | None
    decide: Decide
    capacity_of: CapacityOf
    held: Cuts
    book: Book
    on_plan: Callable[[Plan], None]
    crew: Crew
    prices: Certificate | None = None
    tried: list[_Tried] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def search(self, is_running: bool) -> None:
        """Try what is in force and, if that promises enough, the best; from nothing, all that may be cheaper."""
        self.try_cuts(self.held if is_running else {})
        if self.tried and self.crew.is_late():
            return
        self._reprice()
        best = self.book.best()
        if is_running:
            if best != self.held and (not self.tried or _is_worth_trying(self.book, self.held, best, self.problem)):
                self.try_cuts(best)
            return
        while all(best != tried.cuts for tried in self.tried) and len(self.tried) + len(self.faults) < MOST_PRICED:
            self.try_cuts(best)
            if self.tried and self.crew.is_late():
                return
            self._reprice()  # of a fleet too large for menus: what was dear may be cheap beside other parts
            best = self.book.best()
        for bound, cuts in self.book.ranked():
            is_last = len(self.tried) + len(self.faults) >= MOST_TRIED
            if not self.tried or is_last or self._is_near(bound) or self.crew.is_late():
                return
            if all(cuts != tried.cuts for tried in self.tried):
                self.try_cuts(cuts)

    def _reprice(self) -> None:
        """Weigh ranges at the prices of the last plan, where they are not priced yet."""
        if self.prices is not None:
            self.book, self.prices = self.book.at(self.prices), None

    def _is_near(self, bound: float) -> bool:
        """True when no plan with so high a bound is clearly better than the best so far, which serves all."""
        value = min(tried.plan.report.objective_usd_per_hour for tried in self.tried)
        if self._best().plan.is_short:  # who is less short is better at any price
            return False
        return bound >= value - 0.1 * self.problem.policy.relative_gap * abs(value)

    def try_cuts(self, cuts: Cuts) -> None:
        """Decide the fleet with the cuts; a plan that fails the check is told and left."""
        parted = split(replace(self.problem, serving_usd_per_request=self.book.serving_usd_per_request), cuts)
        is_held = cuts == self.held
        if not is_held:  # what is in force is another cut: nothing of it is kept for its own sake
            parted = replace(parted, policy=replace(parted.policy, min_saving_ratio=0.0))
        before = split_plan(self.previous, cuts) if self.previous is not None and is_held else None
        try:
            plan = self.decide(parted, before)
        except SolveFailed as fault:
            self.faults.append(f"{_said(cuts)}: {fault}")
            return
        self.prices = plan.certificate
        stops = stops_usd_per_hour(self.problem, dropped(self.problem, cuts))
        plan = joined(plan, self.problem, cuts)
        bound = plan.report.bound_usd_per_hour + stops
        gap = self.problem.policy.relative_gap
        plan = with_evidence(plan, stops_usd_per_hour=stops, bound_usd_per_hour=bound, gap_ratio=gap)
        if faults := verify(plan, self.problem, capacity_of=self.capacity_of):
            self.faults += [f"{_said(cuts)}: {fault}" for fault in faults]
            return
        self.tried.append(_Tried(cuts=cuts, plan=plan))
        self.on_plan(plan)

    def answer(self) -> Plan:
        if not self.tried:
            self.try_cuts({})
        if not self.tried:
            raise SolveFailed("no cut led to a sound plan: " + "; ".join(dict.fromkeys(self.faults)))
        best = self._best()
        bound, is_whole_family = self._bound()
        plan = with_evidence(
            best.plan,
            stops_usd_per_hour=0.0,
            bound_usd_per_hour=bound,
            gap_ratio=self.problem.policy.relative_gap,
        )
        said = [spoken(note, best.cuts) for note in plan.report.notes if note != IN_ORDER_NOTE]
        if any(IN_ORDER_NOTE in tried.plan.report.notes for tried in self.tried):
            said.append(IN_ORDER_NOTE)
        notes = (*said, *self._notes(is_whole_family))
        return replace(
            plan,
            report=replace(plan.report, notes=notes),
            splits=self._prices(best),
            routing=plan.routing + (ROUTED if best.cuts else ""),
        )

    def _bound(self) -> tuple[float, bool]:
        """Bound of the plans in question, and whether these are those of every cut on offer."""
        decided = min(tried.plan.report.bound_usd_per_hour for tried in self.tried)
        offered = [tried.cuts for tried in self.tried if self.book.offers(tried.cuts)]
        if len(offered) == self.book.offered:
            return decided, True
        if self.book.bound_usd_per_hour is None:
            return decided, False
        others = (bound for bound, cuts in self.book.ranked() if cuts not in offered)
        return min(decided, next(others, self.book.bound_usd_per_hour)), True

    def _best(self) -> _Tried:
        """The best plan; what is in force stays unless another serves more or saves enough."""
        best = self.tried[0]
        is_running = any(self.problem.running.values())
        for other in self.tried[1:]:
            least = 0.0
            if best.cuts == self.held and is_running:
                least = self.problem.policy.min_saving_ratio * best.plan.report.cost_usd_per_hour
            if _is_better(self.problem, other, best, least):
                best = other
        return best

    def _prices(self, best: _Tried) -> tuple[SplitPrice, ...]:
        """What each service that may be split would cost more whole."""
        whole = next((tried for tried in self.tried if not tried.cuts), None)
        rows = []
        for service in self.book.starts:
            ranges = best.cuts.get(service, ())
            exact = whole is not None and list(best.cuts) in ([], [service])
            rows.append(
                SplitPrice(
                    service=service,
                    sizes=tuple(sizes.label for sizes in ranges),
                    usd_per_hour=_difference(whole, best) if exact and whole else self._saving(service, ranges),
                    is_estimate=not exact,
                )
            )
        return tuple(rows)

    def _saving(self, service: str, ranges: tuple[SizeRange, ...]) -> float:
        try:
            return max(0.0, self.book.saving_usd_per_hour(service, ranges))
        except KeyError:  # in force at places that are no longer weighed
            return 0.0

    def _notes(self, is_whole_family: bool) -> list[str]:
        notes = [f"a plan was left because it failed the check: {fault}" for fault in dict.fromkeys(self.faults)]
        places = [f"{name} at {', '.join(map(str, starts))}" for name, starts in self.book.starts.items()]
        tried = [row.cuts for row in self.tried]
        others = [_said(cuts) for cuts in tried if not (is_whole_family and self.book.offers(cuts))]
        covered = [f"that cut {'; '.join(places)} prompt tokens, at any of these or none"] if is_whole_family else []
        covered += [f"cut as decided ({' or '.join(others)})"] if others else []
        if places or others:
            notes.append(f"the bound covers plans {' and those '.join(covered)}")
        return notes


def _difference(whole: _Tried, best: _Tried) -> float:
    """What the plan without splits is worth more: money and what is short, at its price."""
    return max(0.0, whole.plan.report.objective_usd_per_hour - best.plan.report.objective_usd_per_hour)


def _said(cuts: Cuts) -> str:
    said = (f"{service} into {', '.join(sizes.label for sizes in ranges)}" for service, ranges in cuts.items())
    return "; ".join(said) or "no split"


def _is_better(problem: Problem, one: _Tried, other: _Tried, least_usd_per_hour: float) -> bool:
    """True when the first tier that clearly differs lacks less, or none does and it is cheaper by enough.

    What is short is counted in parts of demand: penalties of services that nothing serves whole are no measure of it.
    """
    mine, theirs = _short_by_tier(problem, one.plan), _short_by_tier(problem, other.plan)
    for rank in sorted(mine):
        if abs(mine[rank] - theirs[rank]) > CLEAR:
            return mine[rank] < theirs[rank]
    saving = other.paid_usd_per_hour - one.paid_usd_per_hour
    if least_usd_per_hour > 0.0:
        return saving > least_usd_per_hour
    return one.plan.report.objective_usd_per_hour < other.plan.report.objective_usd_per_hour


def _short_by_tier(problem: Problem, plan: Plan) -> dict[int, float]:
    """Unserved parts of demand, summed over the services of each tier."""
    ranks = {service.name: service.tier_rank for service in problem.services}
    sums = dict.fromkeys(ranks.values(), 0.0)
    for row in plan.services:
        sums[ranks[row.service]] += row.unserved_requests_per_s / max(row.demand_requests_per_s, 1e-12)
    return sums

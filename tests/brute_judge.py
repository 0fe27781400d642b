"""How plans of tiny fleets under many rules stand to the best of all counts, at all caps, under all cuts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.fleet import PoolKey
from solvers.plan import Placement, Plan, PoolPlan
from solvers.planner import desk_for, make_plan
from solvers.planner.placing.tiers import IN_ORDER_NOTE
from solvers.planner.pools.crew import WIDE_GPUS, Crew
from solvers.planner.pools.tally import SAME_SHORTAGE
from solvers.planner.search import HELD_NOTE
from solvers.planner.splits.cuts import open_book, stops_usd_per_hour
from solvers.planner.splits.splitting import Cuts, as_part, cuts_of, dropped, split, whole_name
from solvers.problem import Problem
from solvers.verify import verify, verify_places
from solvers.verify.bound import verify_bound
from tests.brute_mixed import CAPS, Mixed, draw
from tests.brute_oracle import Oracle, Spot, Value
from tests.split_world import every_cut
from tests.test_against_brute_force import TOLERANCE

MOST_COUNTS = 1500  # of all pools that fit, each tried
MOST_PARTED = 400  # the same where every cut is tried
CLEAR = 2e-3


def drawn(first: int, count: int, only: Sequence[str] = ()) -> Iterator[tuple[int, Mixed]]:
    """Fleets by seed; those with too many counts are drawn again."""
    for seed in range(first, first + count):
        rng = np.random.default_rng([seed, 41])
        case = draw(rng, only)
        while Tried.of(case) is None:
            case = draw(rng, only)
        yield seed, case


@dataclass(frozen=True)
class Cut:
    """One cut: its oracle, all counts that fit, and what stops whatever is decided."""

    cuts: Cuts
    oracle: Oracle
    counts: Sequence[dict[Spot, int]]
    stops_usd_per_hour: float

    def best(self, is_in: Callable[[Value], bool] = lambda value: True) -> tuple[float, Value | None]:
        """The least objective of the counts that are in question, and what they come to."""
        values = (value for value in map(self.oracle.value, self.counts) if is_in(value))
        found = min(values, key=lambda value: value.usd_per_hour, default=None)
        return (math.inf if found is None else found.usd_per_hour + self.stops_usd_per_hour), found


@dataclass(frozen=True)
class Tried:
    """Everything that a fleet could be given."""

    case: Mixed
    cuts: Sequence[Cut]

    @classmethod
    def of(cls, case: Mixed, wide_gpus: int = WIDE_GPUS) -> Tried | None:
        """None where there is too much to try."""
        problem, found = case.problem, list[Cut]()
        every = every_cut(problem)
        if len(every) > 1:
            names = [service.name for service in problem.services if service.splits_by_size]
            book = open_book(problem, case.capacity_of, {}, names, Crew(wide_gpus=wide_gpus))
            problem = replace(problem, serving_usd_per_request=book.serving_usd_per_request)
        for cuts in every:
            parted = split(problem, cuts) if len(every) > 1 else problem
            desk = desk_for(parted, case.capacity_of, crew=Crew(wide_gpus=wide_gpus))
            oracle = Oracle(problem=parted, capacity_of=case.capacity_of, penalties=desk.penalties)
            counts = oracle.every(MOST_COUNTS if len(every) == 1 else MOST_PARTED)
            if counts is None:
                return None
            stops = stops_usd_per_hour(problem, dropped(problem, cuts)) if len(every) > 1 else 0.0
            found.append(Cut(cuts=cuts, oracle=oracle, counts=counts, stops_usd_per_hour=stops))
        return cls(case=case, cuts=found)

    def of_plan(self, plan: Plan) -> tuple[Cut, dict[Spot, int]] | None:
        """The cut that a plan has, and its counts there at the caps of its pools; None for a cut not tried."""
        mine = cuts_of(plan)
        cut = next((cut for cut in self.cuts if dict(cut.cuts) == mine), None)
        if cut is None:
            return None
        kinds = self.case.problem.gpu_classes
        caps = {row.pool: row.cap_watts for row in plan.pools}
        counts: dict[Spot, int] = {}
        for row in plan.placements:
            cap = caps[row.pool] if caps[row.pool] < kinds[row.pool.gpu_class].max_cap_watts else 0.0
            counts[replace(as_part(row.pool), cap_watts=cap), row.location] = row.replicas
        return cut, counts


# ---------------------------------------------------------------- how plans stand to it

FAULTS = ("fails", "check", "room", "worth", "places", "bound", "evidence", "other cost", "too cheap", "cut")
"""First words of verdicts that are bugs."""


def judged(case: Mixed, wide_gpus: int = WIDE_GPUS) -> str:
    """Plan a fleet, and say how the plan stands to the best of all counts."""
    tried = Tried.of(case, wide_gpus)
    assert tried is not None
    try:
        plan = make_plan(case.problem, capacity_of=case.capacity_of, wide_gpus=wide_gpus)
    except Exception as fault:  # noqa: BLE001  # whatever it is, it is told with its seed
        return f"fails: {type(fault).__name__} {fault}"
    if faults := verify(plan, case.problem, capacity_of=case.capacity_of):
        return f"check: {faults[0]}"
    if (at := tried.of_plan(plan)) is None:
        return "cut: not among those that were tried"
    return _beside_the_best(tried, plan, *at, is_wide=wide_gpus == 0)


def _beside_the_best(tried: Tried, plan: Plan, cut: Cut, counts: dict[Spot, int], *, is_wide: bool) -> str:
    found, oracle = plan.report.objective_usd_per_hour, cut.oracle
    if not oracle.fits(counts):
        return "room: the oracle finds none for the plan"
    worth = oracle.value(counts)
    if _differ(found, worth.usd_per_hour + cut.stops_usd_per_hour):
        return f"worth: plan says {found:.6f}, oracle {worth.usd_per_hour + cut.stops_usd_per_hour:.6f}"
    is_between = any(pool.cap_watts not in (0.0, *CAPS) for pool, _ in counts)
    in_question = _in_question(oracle.problem, plan, worth)
    value = min(other.best(in_question)[0] for other in _covered(tried, plan))
    bound = plan.report.bound_usd_per_hour
    if bound > value * (1.0 + TOLERANCE) + 1e-6 and not is_between:
        return f"bound: {bound:.6f} above the optimum {value:.6f}"
    check = verify_bound(plan, tried.case.problem, capacity_of=tried.case.capacity_of)
    if check is not None and not check.is_supported:
        return f"evidence: {check}"
    if check is not None and check.recomputed_usd_per_hour > value * (1.0 + TOLERANCE) + 1e-6:
        return f"evidence: recomputed {check.recomputed_usd_per_hour:.6f} above the optimum {value:.6f}"
    least, best = min((other.best() for other in tried.cuts), key=lambda row: row[0])
    assert best is not None
    return _cost_verdict(plan, least, (worth, best), is_between=is_between, is_wide=is_wide)


def _in_question(problem: Problem, plan: Plan, worth: Value) -> Callable[[Value], bool]:
    """Which plans the bound is of, by the plan's own words: those that leave higher tiers no worse off, or all."""
    last = max(service.tier_rank for service in problem.services)
    parts = [service.name for service in problem.services if service.tier_rank < last]
    above = {*parts, *(whole_name(part)[0] for part in parts)}

    def keeps_tiers(value: Value) -> bool:
        return all(
            usd <= worth.lacking[rank] * (1.0 + 1e-6) + 1e-6 for rank, usd in value.lacking.items() if rank < last
        )

    kept = {**worth.undone, **_by_whole(worth)}

    def keeps_services(value: Value) -> bool:
        mine = {**value.undone, **_by_whole(value)}
        rows = [(mine[name], kept[name]) for name in above if name in mine]  # parts of other cuts count as wholes
        return all(
            unserved <= most + 1e-6 * (1.0 + most) and missing <= few for (unserved, missing), (most, few) in rows
        )

    if HELD_NOTE in plan.report.notes:
        return keeps_tiers
    return keeps_services if IN_ORDER_NOTE in plan.report.notes else lambda value: True


def _by_whole(value: Value) -> dict[str, tuple[float, int]]:
    """What services leave undone, all parts of each together: other cuts have other parts."""
    sums: dict[str, tuple[float, int]] = {}
    for name, (unserved, missing) in value.undone.items():
        service = whole_name(name)[0]
        before = sums.get(service, (0.0, 0))
        sums[service] = before[0] + unserved, before[1] + missing
    return sums


def _covered(tried: Tried, plan: Plan) -> Sequence[Cut]:
    """The cuts that the plan says its bound covers."""
    (said, *_) = [note for note in plan.report.notes if note.startswith("the bound covers plans")] or [""]
    if "at any of these or none" in said or not said:
        return tried.cuts
    named = said.partition("(")[2].rpartition(")")[0].split(" or ")
    return [cut for cut in tried.cuts if _cut_words(cut.cuts) in named]


def _cut_words(cuts: Cuts) -> str:
    said = (f"{name} into {', '.join(sizes.label for sizes in ranges)}" for name, ranges in cuts.items())
    return "; ".join(said) or "no split"


def _cost_verdict(plan: Plan, best: float, worths: tuple[Value, Value], *, is_between: bool, is_wide: bool) -> str:
    """Say how a plan stands to the least objective; ``worths`` are its own and that of the best counts."""
    notes, found = plan.report.notes, plan.report.objective_usd_per_hour
    lacking, lacks = (worth.lacking for worth in worths)
    if not _differ(found, best):
        return "optimal cost"
    if found < best:
        return "cheaper, at caps between the levels" if is_between else f"too cheap: {found:.6f} of {best:.6f}"
    if any("lower tier gave way" in note for note in notes):
        return "dearer by its weights, to keep tiers in order"
    if is_between:
        return "dearer, at caps between the levels"
    if any(lacking[rank] < lacks[rank] * (1.0 - CLEAR) - 1e-6 for rank in lacking):
        return "dearer by its weights, to serve what they would shed"
    if found <= best * (1.0 + 2.0 * SAME_SHORTAGE) and plan.is_short and any(n.startswith("kept") for n in notes):
        return "as short as the best, kept what ran"
    if plan.is_short and plan.splits:
        return "short, dearer, where parts count by demand"
    if is_wide:
        return "dearer, on the large fleets' road"
    return f"other cost: {found:.6f}, least {best:.6f} ({found / best - 1.0:.2%})"


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > TOLERANCE * max(abs(one), abs(other)) + 1e-6


def disagreements(case: Mixed, rng: np.random.Generator, tries: int = 20) -> list[str]:
    """Hold the planner's room and worth, and the check of places, to the oracle's on counts drawn at random."""
    problem = replace(case.problem, services=tuple(replace(s, splits_by_size=False) for s in case.problem.services))
    desk = desk_for(problem, case.capacity_of)
    oracle = Oracle(problem=problem, capacity_of=case.capacity_of, penalties=desk.penalties)
    known = {(option.pool, option.is_anywhere) for option in desk.options.pools}
    pools, found = list(oracle.pools()), list[str]()
    shown = make_plan(problem, capacity_of=case.capacity_of)
    for _ in range(tries if pools else 0):
        counts: dict[Spot, int] = {}
        for pool, at in pools:
            levels = oracle.levels(pool)
            level = levels[int(rng.integers(0, len(levels)))]
            for where in at:
                if (n := int(rng.choice([0, 0, 0, 1, 2]))) and (level, where == "*") in known:
                    counts[level, where] = n
        value = oracle.value(counts).usd_per_hour
        if _differ(value, desk.worth(counts).objective_usd_per_hour):
            found.append(f"worth: of {_said(counts)} {desk.worth(counts).objective_usd_per_hour:.6f}, is {value:.6f}")
        is_room = oracle.fits(counts)
        if is_room != desk.fits(counts):
            found.append(f"room: for {_said(counts)} planner {not is_room}, oracle {is_room}")
        faults = verify_places(with_counts(shown, problem, counts), problem)
        if is_room == bool(faults):
            found.append(f"places: of {_said(counts)} oracle {is_room}, check {faults[:1]}")
    return found


def with_counts(plan: Plan, problem: Problem, counts: Mapping[Spot, int]) -> Plan:
    """The plan with other placements, as far as the check of places looks."""
    totals: dict[PoolKey, int] = {}
    rows = []
    for (pool, at), n in sorted(counts.items()):
        totals[pool] = totals.get(pool, 0) + n
        rows.append(Placement(pool=replace(pool, cap_watts=0.0), location=at, replicas=n))
    pools = [
        PoolPlan(
            pool=replace(pool, cap_watts=0.0),
            replicas=n,
            demand_ratio=0.0,
            capacity_requests_per_s=0.0,
            cap_watts=pool.cap_watts or problem.gpu_classes[pool.gpu_class].max_cap_watts,
            reserved_watts=0.0,
            planned_watts=0.0,
            cost_usd_per_hour=0.0,
        )
        for pool, n in sorted(totals.items())
    ]
    return replace(plan, placements=tuple(sorted(rows)), pools=tuple(sorted(pools, key=lambda row: row.pool)))


def _said(counts: Mapping[Spot, int]) -> str:
    return ", ".join(f"{n} {pool}@{at}" for (pool, at), n in sorted(counts.items()))

"""The one entry point: size → state → round → place → verify, with fallbacks that still end in a checked plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

from solvers.deadline import Clock, Deadline
from solvers.errors import SOLVER_FAULTS, SolveFailed
from solvers.plan import Plan, Relief, SolveStatus
from solvers.planner.bays.nodes import Counts
from solvers.planner.checks import check_problem
from solvers.planner.heap import rare_collections
from solvers.planner.overload import is_far_beyond, said_in_full, within_reach
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.fairness import MOST_CELLS
from solvers.planner.pools.caps import at_options, at_plan, planned_counts
from solvers.planner.pools.crew import WIDE_GPUS, Aside, Crew
from solvers.planner.pools.sizings import Sizings
from solvers.planner.pools.tally import Worth, best_of
from solvers.planner.relief import find_relief
from solvers.planner.search import Search
from solvers.planner.splits.parted import concerns, plan_parts
from solvers.problem import Problem
from solvers.sizing import CapacityOf, replica_capacity
from solvers.verify import verify

GROWTH_RATIO = 0.05
"""Demand that a plan carries beyond what is asked when what is in force no longer does: noise of load is no surge."""

GROWTH_SAVING = 3.0
"""Times ``min_saving_ratio`` that another plan must save against growing: what is swapped serves nothing meanwhile."""

SPARE_RATIO = 0.1
"""Demand that a plan made only to save money must carry beyond what is asked; load swings by as much within minutes."""

STAND_IN = "the solver's plan failed the check, a simpler one stands in"


def make_plan(
    problem: Problem,
    *,
    previous: Plan | None = None,
    capacity_of: CapacityOf = replica_capacity,
    workers: int = 1,
    is_isolated: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    sizings: Sizings | None = None,
    wide_gpus: int = WIDE_GPUS,
    clock: Clock | None = None,
) -> Plan:
    """Decide pools, counts and places for the whole fleet.

    Parameters
    ----------
    previous : Plan, optional
        The plan in force. It stays unless it no longer fits, something else serves more, or something else saves at
        least ``policy.min_saving_ratio`` of its cost.
    capacity_of : callable
        ``solvers.sizing.replica_capacity`` or a table with its signature.
    workers : int
        Processes that share the work on large fleets (joblib's). The plan does not depend on their number.
    is_isolated : bool
        Let HiGHS search for whole numbers in a process of its own: should it crash or hang, that search is given up,
        counted and told in the notes, and the decision falls back as for any solve that fails.
    on_plan : callable, optional
        Told every verified plan that an early stage of a large fleet leaves, before the last one is returned.
    sizings : Sizings, optional
        What sizing said in earlier decisions, and where this one's answers are kept. The plan is the same without; not
        used for services that are split by size.
    wide_gpus : int
        Fleets of more GPUs are solved by ways at prices (``solvers/README.md``, large fleets), smaller ones whole.
    clock : callable, optional
        Seconds, such as ``time.monotonic``. With it nothing is begun that could do without once
        ``policy.time_limit_s`` are over, and the notes say so; without it the plan depends on the problem alone.

    Returns
    -------
    Plan
        Verified. Demand that cannot be met is no error: ``plan.is_short`` and ``short_because`` say so.

    Raises
    ------
    InvalidInput
        The problem itself is malformed (see ``checks.check_problem``).
    SolveFailed
        No stage led to a plan that passes ``verify``; the message lists what failed.
    """
    check_problem(problem)
    deadline = Deadline.after(problem.policy.time_limit_s, clock)
    crew = Crew(workers=workers, is_isolated=is_isolated, wide_gpus=wide_gpus, deadline=deadline)
    with rare_collections():
        if concerns(problem, previous):
            return _decided_in_parts(problem, previous, capacity_of, crew, on_plan)
        return _decided(problem, previous, capacity_of, replace(crew, sizings=sizings), on_plan)


def _decided_in_parts(
    problem: Problem,
    previous: Plan | None,
    capacity_of: CapacityOf,
    crew: Crew,
    on_plan: Callable[[Plan], None] | None,
) -> Plan:
    """Decide a fleet some of whose services are split by size; every cut has a crew of its own."""

    def decide(parted: Problem, before: Plan | None) -> Plan:
        return _decided(parted, before, capacity_of, replace(crew, lost=0, lost_solves=0))

    early = {"on_plan": on_plan} if on_plan is not None else {}
    plan = plan_parts(problem, previous, decide, capacity_of, crew=crew, **early)
    return _with_losses(crew, replace(plan, certificate=None))  # its prices are of one cut


def _decided(
    problem: Problem,
    previous: Plan | None,
    capacity_of: CapacityOf,
    crew: Crew,
    on_plan: Callable[[Plan], None] | None = None,
) -> Plan:
    """Decide a fleet whose services are all plain."""
    reachable = within_reach(Desk.of(problem, capacity_of, previous, crew)) if is_far_beyond(problem) else problem
    if reachable is problem:
        return _planned(problem, previous, capacity_of, crew, on_plan)[1]
    desk, plan = _planned(reachable, previous, capacity_of, crew)
    plan = said_in_full(desk, plan, problem)
    if violations := verify(plan, problem, capacity_of=capacity_of):
        raise SolveFailed("the plan of what is within reach is none of what is asked: " + "; ".join(violations))
    return plan


def _planned(
    problem: Problem,
    previous: Plan | None,
    capacity_of: CapacityOf,
    crew: Crew,
    on_plan: Callable[[Plan], None] | None = None,
) -> tuple[Desk, Plan]:
    in_force = _in_force(problem, previous)
    desk = desk_for(problem, capacity_of, previous, crew)
    relief = desk.crew.aside = Aside(do=partial(find_relief, desk))
    kept = [desk.worth(counts) for counts in in_force if desk.fits(counts)]
    repaired = [*(desk.repaired(counts) for counts in in_force), *_without_caps(desk)]
    search = Search(desk=desk, on_plan=on_plan)
    tried = list(_tried(desk, search, in_force, kept, repaired))
    faults = list(search.faults)
    stand_ins = chain(kept, repaired, (desk.greedy() for _ in range(1)))
    for worth, note in chain(tried, ((worth, STAND_IN) for worth in stand_ins)):
        plan, violations = search.write(worth, (note,) if note else ())
        if not violations:
            return desk, _with_losses(desk.crew, _with_relief(relief, plan))
        faults += violations
    raise SolveFailed("no stage led to a sound plan: " + "; ".join(dict.fromkeys(faults)))


def _with_losses(crew: Crew, plan: Plan) -> Plan:
    """Say how much work the workers lost and, of a plan that is not proved, whether time ran out."""
    said = (*crew.notes(), *(() if plan.report.status is SolveStatus.OPTIMAL else crew.late_notes()))
    new = [note for note in said if note not in plan.report.notes]
    return replace(plan, report=replace(plan.report, notes=(*plan.report.notes, *new))) if new else plan


def _with_relief(relief: Aside[tuple[Relief, ...]], plan: Plan) -> Plan:
    """Say what would help a plan that is short; a solver that fails at it takes nothing from the plan."""
    if not any(service.short_because for service in plan.services):
        return plan
    try:
        return replace(plan, relief=relief.answer())
    except SOLVER_FAULTS as fault:
        notes = (*plan.report.notes, f"no relief was found: {fault}")
        return replace(plan, report=replace(plan.report, notes=notes))


def desk_for(
    problem: Problem,
    capacity_of: CapacityOf = replica_capacity,
    previous: Plan | None = None,
    crew: Crew | None = None,
) -> Desk:
    """Work out what a decision weighs; where nothing at hand serves all, fair shares too."""
    desk = Desk.of(problem, capacity_of, previous, crew)
    if len(desk.options.pools) > MOST_CELLS:  # too many to share fairly: spare the look at what is at hand
        return desk
    in_force = _in_force(problem, previous)
    held = (desk.worth(counts) for counts in in_force if desk.fits(counts))
    if not problem.services or any(not worth.short for worth in held):
        return desk
    if desk.is_large or not (desk.is_wide or desk.greedy().short):
        return desk
    try:
        return desk.shared_fairly()
    except SOLVER_FAULTS:  # told by the search itself, which states the same model
        return desk


def _tried(
    desk: Desk, search: Search, in_force: Sequence[Counts], kept: Sequence[Worth], repaired: Sequence[Worth]
) -> Iterator[tuple[Worth, str]]:
    """Counts in the order in which they are tried, with a note on why: what stays, what grows, what is cheapest."""
    able, is_calm = [worth for worth in kept if not worth.short], desk.problem.policy.min_saving_ratio > 0.0
    if is_calm and in_force and not able:
        search.run([*kept, *repaired], lambda bound: True)  # for the bound; the search itself may not be needed
        if (grown := _grown(desk, in_force[0])) is not None:
            yield grown, f"made for {GROWTH_RATIO:.0%} more than is asked, so that the next swing of load moves nothing"
            return
    found = search.run([*kept, *repaired], lambda bound: any(_is_near(desk, worth, bound) for worth in able))
    if is_calm and not (all(_stays(desk, worth, found) for worth in able) or desk.crew.is_late()):
        found = best_of([_with_spare(desk, able), *able])
    for worth in kept:
        if _stays(desk, worth, found):
            yield worth, _kept_note(desk, worth, found)
    yield found, ""


def _without_caps(desk: Desk) -> list[Worth]:
    """The plan with every pool at its highest cap, to begin with where caps are open: the answer is never worse."""
    problem = desk.problem
    if all(option.pool.cap_watts == 0.0 for option in desk.options.pools):
        return []
    plain = replace(problem, policy=replace(problem.policy, power_caps=False))
    found = Search(desk=Desk.of(plain, desk.sizer.capacity_of, crew=desk.crew)).run([])
    return [desk.worth(at_options(found.counts, (option.pool for option in desk.options.pools)))]


def _grown(desk: Desk, counts: Counts) -> Worth | None:
    """What is in force with the cheapest additions, or what saves enough against that; None when either is short."""
    roomier = desk.scaled(1.0 + GROWTH_RATIO)
    base = roomier.fitting(counts)
    if not base:
        return None
    grown = Search(desk=roomier, base=base).run([])
    if desk.crew.is_late():
        return None if grown.short else desk.worth(grown.counts)
    least = GROWTH_SAVING * desk.problem.policy.min_saving_ratio
    found = Search(desk=roomier).run([grown], lambda bound: _is_near(roomier, grown, bound, least))
    best = grown if _stays(roomier, grown, found, least) else found
    return None if best.short else desk.worth(best.counts)


def _with_spare(desk: Desk, able: Sequence[Worth]) -> Worth:
    """Find the cheapest plan that would carry clearly more than is asked: what stops now is not started again soon."""
    roomier = desk.scaled(1.0 + SPARE_RATIO)
    found = Search(desk=roomier).run([], lambda bound: any(_is_near(desk, worth, bound) for worth in able))
    return desk.worth(found.counts)


def _in_force(problem: Problem, previous: Plan | None) -> list[Counts]:
    """What could stay as it is: the last plan's counts, then what runs."""
    planned = planned_counts(problem, previous) if previous else {}
    running = {key: count for key, count in sorted(problem.running.items()) if count > 0}
    running = at_plan(problem, previous, running)
    return [planned, *([running] if running != planned else [])] if planned else [running] if running else []


def _is_near(desk: Desk, worth: Worth, bound: float, least: float | None = None) -> bool:
    """True when no plan saves enough against this one, whatever it looks like."""
    least = desk.problem.policy.min_saving_ratio if least is None else least
    return not worth.short and worth.paid_usd_per_hour - bound < max(least, 1e-6) * worth.cost_usd_per_hour


def _saving_ratio(worth: Worth, found: Worth) -> float:
    saving = worth.paid_usd_per_hour - found.paid_usd_per_hour
    return saving / max(worth.cost_usd_per_hour, 1e-9)


def _stays(desk: Desk, worth: Worth, found: Worth, least: float | None = None) -> bool:
    """True when moving would only save money, and too little."""
    least = desk.problem.policy.min_saving_ratio if least is None else least
    return worth.serves_no_less_than(found) and _saving_ratio(worth, found) < max(least, 1e-6)


def _kept_note(desk: Desk, worth: Worth, found: Worth) -> str:
    saving, least = _saving_ratio(worth, found), desk.problem.policy.min_saving_ratio
    return f"kept what is planned or runs: moving saves {max(0.0, saving):.1%}, at least {least:.1%} is asked"

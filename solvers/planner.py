"""The one entry point: size → state → round → place → verify, with fallbacks that still end in a checked plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from solvers.checks import check_problem
from solvers.desk import Desk
from solvers.errors import SolveFailed
from solvers.options import CapacityOf
from solvers.packing import Counts
from solvers.plan import Plan
from solvers.problem import Problem
from solvers.search import Search
from solvers.sizing import replica_capacity
from solvers.tally import Worth


def make_plan(problem: Problem, *, previous: Plan | None = None, capacity_of: CapacityOf = replica_capacity) -> Plan:
    """Decide pools, counts and places for the whole fleet.

    Parameters
    ----------
    previous : Plan, optional
        The plan in force. It stays unless it no longer fits, something else serves more, or something else saves at
        least ``policy.min_saving_ratio`` of its cost.
    capacity_of : callable
        ``solvers.sizing.replica_capacity`` or a table with its signature.

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
    desk = Desk.of(problem, capacity_of, previous)
    kept = [desk.worth(counts) for counts in _in_force(problem, previous) if desk.fits(counts)]
    repaired = [desk.repaired(counts) for counts in _in_force(problem, previous)]
    search = Search(desk=desk)
    found = search.run([*kept, *repaired])
    faults = list(search.faults)
    for worth, note in _by_preference(desk, kept, repaired, found):
        plan, violations = search.write(worth, note)
        if not violations:
            return plan
        faults += violations
    raise SolveFailed("no stage led to a sound plan: " + "; ".join(dict.fromkeys(faults)))


def _in_force(problem: Problem, previous: Plan | None) -> list[Counts]:
    """What could stay as it is: the last plan's counts, then what runs."""
    planned = {(row.pool, row.location): row.replicas for row in previous.placements} if previous else {}
    running = {key: count for key, count in sorted(problem.running.items()) if count > 0}
    return [counts for counts in (planned, running) if counts]


def _by_preference(
    desk: Desk, kept: Sequence[Worth], repaired: Sequence[Worth], found: Worth
) -> Iterator[tuple[Worth, tuple[str, ...]]]:
    """Counts in the order in which they are tried, with a note on why."""
    for worth in kept:
        if _stays(desk, worth, found):
            yield worth, (_kept_note(desk, worth, found),)
    yield found, ()
    for worth in (*kept, *repaired, desk.repaired({})):
        yield worth, ("the solver's plan failed the check, a simpler one stands in",)


def _saving_ratio(worth: Worth, found: Worth) -> float:
    saving = worth.paid_usd_per_hour - found.paid_usd_per_hour
    return saving / max(worth.cost_usd_per_hour, 1e-9)


def _stays(desk: Desk, worth: Worth, found: Worth) -> bool:
    """True when moving would only save money, and too little."""
    least = desk.problem.policy.min_saving_ratio
    return worth.serves_no_less_than(found) and _saving_ratio(worth, found) < max(least, 1e-6)


def _kept_note(desk: Desk, worth: Worth, found: Worth) -> str:
    saving, least = _saving_ratio(worth, found), desk.problem.policy.min_saving_ratio
    return f"kept what is planned or runs: moving saves {max(0.0, saving):.1%}, at least {least:.1%} is asked"

"""The shortest form of an explanation: a few lines a service, for the status of a plan that must stay small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from solvers.explain import Case, Explanation
from solvers.explain.words import range_words, switch_words
from solvers.plan import Plan, ServiceWhy
from solvers.planner.options import CapacityOf
from solvers.problem import Problem
from solvers.sizing import replica_capacity

MOST_SERVICES = 32
MOST_LINE = 253
"""Characters of a line; with four lines a service, all of it stays under 32 KiB."""


def with_reasons(plan: Plan, problem: Problem, *, capacity_of: CapacityOf = replica_capacity) -> Plan:
    """Add a few lines on why, for the services that are short and then the dearest, ``MOST_SERVICES`` at most.

    Where more are planned, scarce things are told apart less finely than the decision did.
    """
    names = _told(plan)
    asked = tuple(service for service in problem.services if service.name in names)
    narrow = replace(problem, services=asked) if len(asked) < len(problem.services) else problem
    whys = (case.explained() for case in Case.each(plan, narrow, sorted(names), capacity_of))
    return replace(plan, whys=tuple(ServiceWhy(service=why.service, lines=tuple(lines(why))) for why in whys))


def _told(plan: Plan) -> set[str]:
    cost: dict[str, float] = {}
    for pool in plan.pools:
        cost[pool.pool.service] = cost.get(pool.pool.service, 0.0) + pool.cost_usd_per_hour
    order = sorted(plan.services, key=lambda s: (not s.short_because, -cost.get(s.service, 0.0), s.service))
    return {service.service for service in order[:MOST_SERVICES]}


def lines(why: Explanation) -> Iterator[str]:
    """Up to which demand, which other ways at what extra cost, at which price another would win; four at most."""
    found = []
    if why.demand_range is not None:
        found.append(range_words(why.demand_range))
    for way in why.rejected:
        names = " + ".join(f"{count} of {name}" for name, count in way.pools)
        found.append(f"rather than {names}: {way.extra_at_scarcity_usd_per_hour:+.2f} USD/h, scarce things paid for")
    found += [switch_words(switch) for switch in why.switches[:1]]
    yield from (line[:MOST_LINE] for line in found)

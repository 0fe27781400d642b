"""The shortest form of an explanation: a few lines a service, for the status of a plan that must stay small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest

from solvers.explain import Case, Explanation
from solvers.explain.parts import names_of, renamed
from solvers.explain.words import range_words, switch_words
from solvers.plan import Plan, ServiceWhy
from solvers.planner.splits.splitting import opened, whole_name
from solvers.problem import Problem
from solvers.sizing import CapacityOf, replica_capacity

MOST_SERVICES = 32
MOST_LINES = 4
MOST_LINE = 253
"""Characters of a line; with four lines a service, all of it stays under 32 KiB."""


def with_reasons(plan: Plan, problem: Problem, *, capacity_of: CapacityOf = replica_capacity) -> Plan:
    """Add a few lines on why, for the services that are short and then the dearest, ``MOST_SERVICES`` at most.

    Where more are planned, scarce things are told apart less finely than the decision did.
    """
    told = sorted(_told(plan))
    plain, parted = opened(plan, problem)
    names = [name for service in told for name in names_of(plan, service)]
    asked = tuple(service for service in parted.services if service.name in names)
    narrow = replace(parted, services=asked) if len(asked) < len(parted.services) else parted
    whys = {case.row.service: case.explained(is_brief=True) for case in Case.each(plain, narrow, names, capacity_of)}
    rows = (ServiceWhy(service=name, lines=_lines_of([whys[part] for part in names_of(plan, name)])) for name in told)
    return replace(plan, whys=tuple(renamed(row, plan) for row in rows))


def _lines_of(whys: Sequence[Explanation]) -> tuple[str, ...]:
    """Lines of a service: where it is split, the first ones of every part, with its sizes."""
    said = [tuple(lines(why)) for why in whys]
    if len(whys) == 1:
        return said[0]
    labels = [whole_name(why.service)[1] for why in whys]
    parts = zip_longest(*([f"{label}: {line}" for line in mine] for label, mine in zip(labels, said, strict=True)))
    return tuple(line[:MOST_LINE] for row in parts for line in row if line)[:MOST_LINES]


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

"""Explanations of services that are split by size: each part as a plain service, then together as the service."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from solvers.explain.reasons import DemandRange
from solvers.plan import Plan
from solvers.planner.splits.splitting import cuts_of, part_name, spoken

if TYPE_CHECKING:
    from solvers.explain import Explanation


Told = TypeVar("Told")

POOL = r"((?:/[\w.-]+){3})"
"""Role, GPU class and configuration: what follows the service in a pool's name; sizes and cap come after."""


def names_of(plan: Plan, service: str) -> list[str]:
    """Names of a service's parts in ``opened``; its own where it is whole."""
    return [part_name(service, sizes) for sizes in cuts_of(plan).get(service, ())] or [service]


def explained_whole(plan: Plan, service: str, explain_one: Callable[[str], Explanation]) -> Explanation:
    """Explain every part of a service, and say it of the service; of one that is whole, as it is."""
    whys = [explain_one(name) for name in names_of(plan, service)]
    if len(whys) == 1:
        return whys[0]
    row = next(row for row in plan.services if row.service == service)
    first = whys[0]
    whole = replace(
        first,
        service=service,
        demand_requests_per_s=row.demand_requests_per_s,
        served_requests_per_s=row.served_requests_per_s,
        usd_per_hour=sum(why.usd_per_hour for why in whys),
        chosen=_all(whys, "chosen"),
        counts=_all(whys, "counts"),
        caps=_all(whys, "caps"),
        demand_range=_together(whys, row.demand_requests_per_s),
        rejected=_all(whys, "rejected"),
        swaps=_all(whys, "swaps"),
        switches=tuple(dict.fromkeys(_all(whys, "switches"))),
        prices=tuple({(p.limit, p.subject): p for p in _all(whys, "prices")}.values()),
        short_because=row.short_because,
        relief=plan.relief if row.short_because else (),
        losses=tuple(dict.fromkeys(_all(whys, "losses"))),
        unfit=tuple(f"{why.service}: {reason}" for why in whys for reason in why.unfit),
    )
    return renamed(whole, plan)


def _all(whys: Sequence[Explanation], field: str) -> tuple[Any, ...]:
    return tuple(row for why in whys for row in getattr(why, field))


def _together(whys: Sequence[Explanation], demand_per_s: float) -> DemandRange | None:
    """Demand of the whole at which the first part would change, the mix kept."""
    ranges = [(why.demand_range, why.demand_requests_per_s) for why in whys]
    known = [(found, asked) for found, asked in ranges if found is not None and asked > 0.0]
    if len(known) < len(ranges):
        return None
    return DemandRange(
        least_requests_per_s=demand_per_s * max(found.least_requests_per_s / asked for found, asked in known),
        most_requests_per_s=demand_per_s * min(found.most_requests_per_s / asked for found, asked in known),
    )


def renamed(value: Told, plan: Plan) -> Told:
    """The value with pools and parts named as the plan names them."""
    cuts = cuts_of(plan)
    pools = [
        (re.compile(re.escape(part_name(service, sizes)) + POOL), rf"{service}\1/{sizes.label}")
        for service, ranges in cuts.items()
        for sizes in ranges
    ]

    def name(text: str) -> str:
        for pattern, said in pools:
            text = pattern.sub(said, text)
        return spoken(text, cuts)

    told: Told = _renamed(value, name)
    return told


def _renamed(value: Any, name: Callable[[str], str]) -> Any:
    if type(value) is str:
        return name(value)
    if isinstance(value, tuple):
        return tuple(_renamed(part, name) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: _renamed(getattr(value, field.name), name) for field in fields(value)}
        return replace(value, **changed)
    return value

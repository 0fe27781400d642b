"""The check of a plan's bound: found again from the problem at the prices that the plan shows, by its own arithmetic.

At any prices of what services share, no plan costs less than what each service would pay by itself, its cheapest way,
less what all of the room would fetch. The prices are the planner's word; rooms, places, rates and cheapest ways are
worked out here, from the problem, without its modeller or anything else of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from solvers.certificate import Certificate, HeldTier, ServiceWeights, Undone
from solvers.plan import Plan
from solvers.problem import Problem
from solvers.verify.branches import in_branch
from solvers.verify.cases import ANY, MOST_ROUNDS, Case
from solvers.verify.claims import CapacityOf, MostOf
from solvers.verify.evidence import evidence_faults
from solvers.verify.market import Market
from solvers.verify.sides import add_pairs

LOOKS = ((4000, False), (4000, True), (16000, True))
"""Parts of a service's demand that loads are rounded up to, and whether floors are counted: closer and closer looks."""

MOST_PARTS = 4_000_000  # of all services together
FINEST = ((64_000, 50), (128_000, 10))  # parts, and services that are looked at so closely, one by one

LARGE = 50_000  # parts of all services together, from which on a look takes long
RELATIVE = 1e-9
GRID_TOLERANCE = 1e-3
"""Of the bound: loads are rounded up to parts here and elsewhere, by at most a part for each pool of a way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCheck:
    """What came of it.

    Attributes
    ----------
    claimed_usd_per_hour : float
        The bound that the plan states.
    priced_usd_per_hour : float
        What of it the plan says to follow from prices.
    recomputed_usd_per_hour : float
        What follows from them here.
    is_searched : bool
        The rest comes from a solver's branch and bound, which leaves no evidence.
    is_held : bool
        The bound is of the plans that leave no tier but the last more short than this one.
    fault : str
        What makes the evidence worthless by itself; empty for nothing.
    """

    claimed_usd_per_hour: float
    priced_usd_per_hour: float
    recomputed_usd_per_hour: float
    is_searched: bool
    is_held: bool = False
    fault: str = ""

    @property
    def supported_ratio(self) -> float:
        """How much of the claimed bound was found again, at most all of it; 0 where the evidence is worthless."""
        if self.fault or not self.recomputed_usd_per_hour > 0.0:
            return 0.0 if self.fault or self.claimed_usd_per_hour > 0.0 else 1.0
        return min(1.0, self.recomputed_usd_per_hour / max(self.claimed_usd_per_hour, 1e-9))

    @property
    def is_supported(self) -> bool:
        """True when what follows from prices was found again, up to the rounding of loads."""
        slack = GRID_TOLERANCE * abs(self.priced_usd_per_hour) + 1e-6
        return not self.fault and self.recomputed_usd_per_hour >= self.priced_usd_per_hour - slack

    @property
    def is_all_found(self) -> bool:
        """True when the whole of the claimed bound was found again, whoever found it."""
        return self.recomputed_usd_per_hour >= self.claimed_usd_per_hour * (1.0 - GRID_TOLERANCE) - 1e-6

    def __str__(self) -> str:
        claimed, recomputed = f"{self.claimed_usd_per_hour:.6f}", f"{self.recomputed_usd_per_hour:.6f}"
        if self.fault:
            return f"claimed bound not supported: {self.fault}"
        if not self.is_supported:
            claimed = f"{self.priced_usd_per_hour:.6f}"
            return f"claimed bound not supported: claimed {claimed}, recomputed {recomputed}"
        if self.is_searched and not self.is_all_found:
            share = f"{math.floor(1000.0 * self.supported_ratio) / 10.0:.1f} %"  # never rounded up to all of it
            return f"bound by search: claimed {claimed}, prices alone support {recomputed} ({share})"
        of = ", of plans that leave no tier but the last more short" if self.is_held else ""
        return f"bound supported: claimed {claimed}, recomputed {recomputed}{of}"


def verify_bound(
    plan: Plan, problem: Problem, *, capacity_of: CapacityOf, most_of: MostOf | None = None
) -> BoundCheck | None:
    """Find the plan's bound again; None when the plan shows no prices.

    Parameters
    ----------
    capacity_of : callable
        The sizing, by which every rate is worked out anew.
    most_of : callable, optional
        What mixed pools cannot carry more than; those that are too dear even so are not sized.

    Notes
    -----
    What services share is whole groups of GPUs, watts, CPU and the like, links, quotas and ceilings. Who may pair with
    whom counts (``sides.py``); pins and spread as far as places that there are not make them cost (``reach.py``);
    shares of spot nodes above zero are left out. Leaving a rule out keeps the bound true: one that rests on it may not
    be found again.
    """
    shown = plan.certificate
    if shown is None:
        return None
    claimed, fault = plan.report.bound_usd_per_hour, next(evidence_faults(plan, problem, shown), "")
    is_searched = shown.is_searched and claimed > shown.usd_per_hour * (1.0 + RELATIVE)
    priced = min(claimed, shown.usd_per_hour) if shown.is_searched else claimed
    return BoundCheck(
        claimed_usd_per_hour=claimed,
        priced_usd_per_hour=priced,
        recomputed_usd_per_hour=-math.inf
        if fault
        else _least_of_branches(shown, problem, capacity_of, most_of, enough=claimed, will_do=priced),
        is_searched=is_searched,
        is_held=bool(shown.held),
        fault=fault,
    )


def _least_of_branches(
    shown: Certificate,
    problem: Problem,
    capacity_of: CapacityOf,
    most_of: MostOf | None,
    *,
    enough: float,
    will_do: float,
) -> float:
    """The least bound of any branch at its own prices; that of all plans where there are no branches."""
    parts = [(in_branch(shown, branch), branch.undone) for branch in shown.branches] or [(shown, ())]
    return min(
        recomputed(part, problem, capacity_of, undone, most_of=most_of, enough=enough, will_do=will_do)
        for part, undone in parts
    )


def recomputed(
    shown: Certificate,
    problem: Problem,
    capacity_of: CapacityOf,
    undone: Sequence[Undone] = (),
    *,
    most_of: MostOf | None = None,
    enough: float = math.inf,
    will_do: float = math.inf,
) -> float:
    """Bound at the prices, USD per hour, the objective of every plan that leaves so much undone.

    It looks no closer once there is enough.

    In large fleets it looks no closer either once it has what will do.

    Prices below 0 count as 0, and weights are taken as shown: with them the objective is told.
    """
    market = Market.of(problem, shown)
    weights = _weights(problem, shown)
    if any(service.name not in weights for service in problem.services):
        return -math.inf
    fetched = market.fetched_usd_per_hour() + math.fsum(
        price * max(0.0, tier.lacking_usd_per_hour) for tier, price in _held(shown)
    )
    spans = {row.service: (row.least_usd_per_hour, row.most_usd_per_hour) for row in undone}
    times = _times(shown)
    looks = [
        _Look(case=case, weights=weights[name], span_usd_per_hour=(weighed * least_usd, weighed * most_usd))
        for case in _cases(problem, market, capacity_of, most_of)
        for name, (least_usd, most_usd) in [(case.service.name, spans.get(case.service.name, ANY))]
        for weighed in [times.get(case.service.tier_rank, 1.0)]
    ]
    return _closer_and_closer(looks, fetched, enough=enough, will_do=will_do)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One service with what failing it weighs, and what its penalties may add up to."""

    case: Case
    weights: ServiceWeights
    span_usd_per_hour: tuple[float, float]

    def at(self, parts: int, with_floors: bool) -> None:
        self.case.look(parts, with_floors, self.weights, self.span_usd_per_hour)


def _cases(problem: Problem, market: Market, capacity_of: CapacityOf, most_of: MostOf | None) -> list[Case]:
    """All services at the prices, by name."""
    cases = [
        Case(problem=problem, service=service, market=market, capacity_of=capacity_of, most_of=most_of)
        for service in sorted(problem.services, key=lambda s: s.name)
    ]
    for case in cases:
        case.begin()
        add_pairs(case)
    return cases


def _closer_and_closer(looks: Sequence[_Look], fetched: float, *, enough: float, will_do: float) -> float:
    """Look at all services, on more parts each time, then at the weightiest one by one, until there is enough."""
    cases = [look.case for look in looks]
    for parts, with_floors in LOOKS:
        if parts * len(cases) > MOST_PARTS:
            break
        for look in looks:
            look.at(parts, with_floors)
        is_large = parts * len(cases) > LARGE
        if is_large and will_do > 0.0:
            enough = min(enough, will_do)
        for _ in range(MOST_ROUNDS):
            if (total := _sum(cases, fetched)) >= enough:
                return total
            changed = [case.refine() for case in cases]
            if not any(changed):
                break
    heaviest = sorted(looks, key=lambda look: -look.weights.unserved_usd_per_hour)
    for parts, look in ((parts, look) for parts, most in FINEST for look in heaviest[:most]):
        if (total := _sum(cases, fetched)) >= enough:
            return total
        look.at(parts, True)
        look.case.settle()
    return _sum(cases, fetched)


def _held(shown: Certificate) -> list[tuple[HeldTier, float]]:
    """Held tiers with what their prices count as; a price of no amount is none."""
    return [(tier, tier.price_ratio if 0.0 < tier.price_ratio < math.inf else 0.0) for tier in shown.held]


def _times(shown: Certificate) -> dict[int, float]:
    """Times its penalties, what each held tier pays for what it leaves undone."""
    times: dict[int, float] = {}
    for tier, price in _held(shown):
        times[tier.tier_rank] = times.get(tier.tier_rank, 1.0) + price
    return times


def _weights(problem: Problem, shown: Certificate) -> dict[str, ServiceWeights]:
    """What failing weighs by service: those of a held tier pay its price too."""
    times = _times(shown)
    ranks = {service.name: service.tier_rank for service in problem.services}
    weights: dict[str, ServiceWeights] = {}
    for row in shown.weights:
        w = times.get(ranks.get(row.service, -1), 1.0)
        weights[row.service] = replace(
            row, unserved_usd_per_hour=w * row.unserved_usd_per_hour, floor_usd_per_hour=w * row.floor_usd_per_hour
        )
    return weights


def _sum(cases: Sequence[Case], fetched: float) -> float:
    values = [case.usd_per_hour for case in cases]
    if math.inf in values:  # no way of a service leaves so much undone
        return math.inf
    return math.fsum(values) - fetched - RELATIVE * (math.fsum(map(abs, values)) + abs(fetched))

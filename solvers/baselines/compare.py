"""Plans for one problem side by side: what each leaves unserved, tier by tier, what it costs, and which is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from solvers.plan import Plan
from solvers.planner import desk_for
from solvers.planner.pools.caps import planned_counts
from solvers.planner.pools.tally import CLEAR_SHARE, Worth
from solvers.problem import Problem
from solvers.sizing import CapacityOf, replica_capacity
from solvers.verify import verify

NOTICEABLE = 1e-6  # of a tier's whole demand, or of a cost; below is the rounding of sums


class Verdict(StrEnum):
    """How the first plan stands to another: by what is short from the top tier down, then by cost.

    Shortages of a tier that differ by less than ``tally.CLEAR_SHARE`` of its demand are one, as for the planner itself;
    ``EVEN`` costs differ by less than the gap that the decision may leave open.
    """

    LESS_SHORT = "less short"
    CHEAPER = "cheaper"
    EVEN = "even"
    DEARER = "dearer"
    MORE_SHORT = "more short"


WORSE = (Verdict.DEARER, Verdict.MORE_SHORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One plan among others.

    Attributes
    ----------
    cost_usd_per_hour : float
        GPUs and energy of what runs.
    paid_usd_per_hour : float
        The same with starts and stops.
    unserved_ratio : mapping of tier to float
        Requests that the tier's services leave, over what they are asked.
    shortage_ratio : mapping of tier to float
        The same as the policy weighs it, floors included: a request of a large model weighs more than one of a small.
    cost_ratio : float
        Cost over that of the first plan.
    verdict : Verdict
        Of the first plan against this one.
    strict_verdict : Verdict
        The same when the least difference of shortage counts.
    """

    name: str
    cost_usd_per_hour: float
    paid_usd_per_hour: float
    unserved_ratio: Mapping[str, float]
    shortage_ratio: Mapping[str, float]
    cost_ratio: float
    verdict: Verdict
    strict_verdict: Verdict
    violations: int


def compare(
    problem: Problem, plans: Mapping[str, Plan], *, capacity_of: CapacityOf = replica_capacity
) -> tuple[Standing, ...]:
    """Set plans for the same problem side by side; the first is the one that others are held against."""
    desk = desk_for(problem, capacity_of)
    worths = {name: desk.worth(planned_counts(problem, plan)) for name, plan in plans.items()}
    first = next(iter(worths.values()))
    return tuple(
        Standing(
            name=name,
            cost_usd_per_hour=worth.cost_usd_per_hour,
            paid_usd_per_hour=worth.paid_usd_per_hour,
            unserved_ratio=_unserved(problem, worth),
            shortage_ratio={tier: _shortage(worth, rank) for tier, rank in _ranks(problem).items()},
            cost_ratio=worth.cost_usd_per_hour / first.cost_usd_per_hour if first.cost_usd_per_hour > 0.0 else 1.0,
            verdict=judge(first, worth, problem.policy.relative_gap),
            strict_verdict=judge(first, worth, problem.policy.relative_gap, NOTICEABLE),
            violations=len(verify(plans[name], problem)),
        )
        for name, worth in worths.items()
    )


def judge(first: Worth, other: Worth, gap_ratio: float, clear_ratio: float = CLEAR_SHARE) -> Verdict:
    """Compare what two plans leave short, from the top tier down; where that is the same, what they pay."""
    for rank in sorted(first.lacking_usd_by_tier):
        difference = _shortage(first, rank) - _shortage(other, rank)
        if abs(difference) > clear_ratio:
            return Verdict.LESS_SHORT if difference < 0.0 else Verdict.MORE_SHORT
    saved = other.paid_usd_per_hour - first.paid_usd_per_hour
    if saved < -max(NOTICEABLE, gap_ratio) * other.paid_usd_per_hour:
        return Verdict.DEARER
    return Verdict.CHEAPER if saved > NOTICEABLE * other.paid_usd_per_hour else Verdict.EVEN


def _shortage(worth: Worth, rank: int) -> float:
    whole = worth.demand_usd_by_tier[rank]
    return worth.lacking_usd_by_tier[rank] / whole if whole > 0.0 else worth.lacking_usd_by_tier[rank]


def _ranks(problem: Problem) -> dict[str, int]:
    return {
        service.tier: service.tier_rank for service in sorted(problem.services, key=lambda s: (s.tier_rank, s.tier))
    }


def _unserved(problem: Problem, worth: Worth) -> dict[str, float]:
    found = {}
    for tier in _ranks(problem):
        names = [service.name for service in problem.services if service.tier == tier]
        asked = sum(worth.demand_per_s[name] for name in names)
        found[tier] = sum(worth.unserved_per_s(name) for name in names) / asked if asked > 0.0 else 0.0
    return found

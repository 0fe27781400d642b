"""Why a service got these pools and not others, what would change that, and what differs between two plans.

This module and what it imports load no solver; ``solvers.explain.pricing`` solves linear problems for what only they
can tell: how far a price holds, and what the whole fleet would pay for another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from solvers.errors import InvalidInput
from solvers.explain import words
from solvers.explain.difference import CountChange, DomainChange, PlanDifference, difference
from solvers.explain.parts import explained_whole
from solvers.explain.reasons import (
    CapReason,
    CountReason,
    DemandRange,
    PriceSwitch,
    cap_reasons,
    count_reasons,
    demand_range,
    fewer_by_one,
    price_switches,
)
from solvers.explain.shadow import Loss, ShadowPrice
from solvers.explain.swaps import PoolSwap, pool_swaps
from solvers.explain.ways import (
    Alternative,
    ChosenPool,
    Ranked,
    alternative,
    apart_by_class,
    chosen_pool,
    ranked_ways,
    scarcity,
)
from solvers.fleet import PoolKey
from solvers.plan import Binding, LinkPlan, Plan, Relief, ServicePlan
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.cells import build_cells
from solvers.planner.splits.splitting import opened
from solvers.problem import Problem
from solvers.sizing import CapacityOf, replica_capacity

MOST_REJECTED = 2

__all__ = [
    "Alternative",
    "CapReason",
    "ChosenPool",
    "CountChange",
    "CountReason",
    "DemandRange",
    "DomainChange",
    "Explanation",
    "Loss",
    "PlanDifference",
    "PoolSwap",
    "PriceSwitch",
    "ShadowPrice",
    "difference",
    "explain",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The evidence for one service, as values; ``text()`` says it in words.

    Attributes
    ----------
    counts : tuple of CountReason
        Why each chosen pool has no replica fewer.
    caps : tuple of CapReason
        What the power caps below the highest cost and save.
    switches : tuple of PriceSwitch
        Prices of GPU classes at which the decision would change, nearest first.
    prices : tuple of ShadowPrice
        Scarce things that the service uses or could use; empty where that was not worked out.
    relief : tuple of Relief
        The cheapest that would serve all that the plan leaves unserved, of a service that is short.
    swaps : tuple of PoolSwap
        The best other GPU class of each pool; empty in the short form, and where pools depend on where they stand.
    links : tuple of LinkPlan
        Links between locations that carry anything, of a service whose keys and values may cross them.
    losses : tuple of Loss
        What losing the service, its GPUs or its watts would change; empty where nobody asked.
    """

    service: str
    tier: str
    demand_requests_per_s: float
    served_requests_per_s: float
    usd_per_hour: float
    chosen: tuple[ChosenPool, ...]
    counts: tuple[CountReason, ...]
    caps: tuple[CapReason, ...]
    demand_range: DemandRange | None
    rejected: tuple[Alternative, ...]
    switches: tuple[PriceSwitch, ...]
    binding: tuple[Binding, ...]
    prices: tuple[ShadowPrice, ...]
    short_because: tuple[str, ...]
    relief: tuple[Relief, ...]
    swaps: tuple[PoolSwap, ...]
    links: tuple[LinkPlan, ...]
    losses: tuple[Loss, ...]
    unfit: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, words and numbers, for JSON and YAML."""
        return asdict(self, dict_factory=_plain)

    def text(self) -> str:
        """A few lines for a terminal."""
        return "\n".join(words.lines(self))


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, StrEnum) else value for key, value in pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One service of a plan with all that an explanation rests on."""

    plan: Plan
    desk: Desk
    row: ServicePlan
    ways: tuple[Ranked, ...]
    scarce: Mapping[PoolKey, float]

    @classmethod
    def of(cls, plan: Plan, problem: Problem, service: str, capacity_of: CapacityOf) -> Case:
        return next(cls.each(plan, problem, [service], capacity_of))

    @classmethod
    def each(cls, plan: Plan, problem: Problem, services: Sequence[str], capacity_of: CapacityOf) -> Iterator[Case]:
        """Several services; what they share is worked out once."""
        rows = {row.service: row for row in plan.services}
        for service in services:
            if service not in rows:
                names = ", ".join(rows) or "none"
                raise InvalidInput(f"ServedModel/{service}", "", "is not in the plan", f"planned are: {names}")
        desk = Desk.of(problem, capacity_of, plan)
        scarce = scarcity(plan, build_cells(problem, desk.options))
        for service in services:
            pools = [pool for pool in plan.pools if pool.pool.service == service]
            ways = ranked_ways(desk, plan, rows[service], pools, scarce)
            yield cls(plan=plan, desk=desk, row=rows[service], ways=tuple(ways), scarce=scarce)

    def _links(self) -> tuple[LinkPlan, ...]:
        used = (row for row in self.plan.links if row.outgoing_bytes_per_s or row.incoming_bytes_per_s)
        return tuple(used) if self.row.service in self.desk.sizer.links.order else ()

    @property
    def rejected(self) -> tuple[Ranked, ...]:
        """The best ways that were not taken; after the first, those on other GPU classes, as long as there are any."""
        return tuple(apart_by_class(self.ways))[:MOST_REJECTED]

    def explained(self, *, is_brief: bool = False) -> Explanation:
        """All that needs no solver; in brief without what takes longer to find."""
        pools = [pool for pool in self.plan.pools if pool.pool.service == self.row.service]
        fewer = fewer_by_one(self.desk, self.plan, pools)
        return Explanation(
            service=self.row.service,
            tier=self.row.tier,
            demand_requests_per_s=self.row.demand_requests_per_s,
            served_requests_per_s=self.row.served_requests_per_s,
            usd_per_hour=sum(pool.cost_usd_per_hour for pool in pools),
            chosen=tuple(chosen_pool(self.plan, pool, self.row) for pool in pools),
            counts=count_reasons(self.row, fewer),
            caps=cap_reasons(self.desk, self.plan, pools, self.scarce),
            demand_range=demand_range(self.desk, self.plan, self.row, fewer),
            rejected=tuple(alternative(self.plan, self.desk, self.row, ranked) for ranked in self.rejected),
            switches=price_switches(self.desk, pools, self.ways),
            binding=self.plan.bindings,
            prices=(),
            short_because=self.row.short_because,
            relief=self.plan.relief if self.row.short_because else (),
            swaps=() if is_brief else pool_swaps(self.desk, self.plan, self.row, pools, self.scarce),
            links=self._links(),
            losses=(),
            unfit=self.desk.options.unfit.get(self.row.service, ()),
        )


def explain(plan: Plan, problem: Problem, service: str, *, capacity_of: CapacityOf = replica_capacity) -> Explanation:
    """Explain the plan of one service, from the plan and the sizing alone; of one split by size, part by part.

    Raises
    ------
    InvalidInput
        The plan holds no such service.
    """
    plain, parted = opened(plan, problem)
    return explained_whole(plan, service, lambda name: Case.of(plain, parted, name, capacity_of).explained())

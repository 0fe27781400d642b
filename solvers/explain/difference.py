"""What changes from one plan to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from solvers.fleet import PoolKey
from solvers.plan import DomainPlan, Plan


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class CountChange:
    """Replicas of one pool at one location in two plans."""

    pool: PoolKey
    location: str
    from_replicas: int
    to_replicas: int


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class DomainChange:
    """Reserved and planned watts of one power domain, new less old."""

    domain: str
    reserved_watts: float
    planned_watts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDifference:
    """What changes from one plan to another; rows that stay as they are do not appear."""

    placements: tuple[CountChange, ...]
    domains: tuple[DomainChange, ...]
    served_requests_per_s: Mapping[str, float]
    cost_usd_per_hour: float

    @property
    def starting_replicas(self) -> int:
        return sum(max(0, row.to_replicas - row.from_replicas) for row in self.placements)

    @property
    def stopping_replicas(self) -> int:
        return sum(max(0, row.from_replicas - row.to_replicas) for row in self.placements)

    @property
    def is_empty(self) -> bool:
        return not self.placements


def difference(old: Plan, new: Plan) -> PlanDifference:
    """Compare two plans, row by row; numbers are new less old."""
    before = {(p.pool, p.location): p.replicas for p in old.placements}
    after = {(p.pool, p.location): p.replicas for p in new.placements}
    was, now = ({d.domain: d for d in plan.domains} for plan in (old, new))
    served, serves = ({s.service: s.served_requests_per_s for s in plan.services} for plan in (old, new))
    changes = {name: serves.get(name, 0.0) - served.get(name, 0.0) for name in sorted({*served, *serves})}
    return PlanDifference(
        placements=tuple(
            CountChange(pool=key[0], location=key[1], from_replicas=before.get(key, 0), to_replicas=after.get(key, 0))
            for key in sorted({*before, *after})
            if before.get(key, 0) != after.get(key, 0)
        ),
        domains=tuple(
            change
            for name in sorted({*was, *now})
            if (change := _domain_change(name, was.get(name), now.get(name))).reserved_watts or change.planned_watts
        ),
        served_requests_per_s={name: change for name, change in changes.items() if change},
        cost_usd_per_hour=new.report.cost_usd_per_hour - old.report.cost_usd_per_hour,
    )


def _domain_change(name: str, old: DomainPlan | None, new: DomainPlan | None) -> DomainChange:
    reserved = (new.reserved_watts if new else 0.0) - (old.reserved_watts if old else 0.0)
    planned = (new.planned_watts if new else 0.0) - (old.planned_watts if old else 0.0)
    return DomainChange(domain=name, reserved_watts=reserved, planned_watts=planned)

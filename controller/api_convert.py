"""Plans, differences and explanations as messages of the Placement service."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from controller import placement_pb2 as pb
from solvers.engine import EngineConfig, Role
from solvers.fleet import PoolKey
from solvers.plan import Binding, DomainPlan, Plan, PoolPlan, ServicePlan, SolveReport, SolveStatus

ROLES: Mapping[Role, pb.Role] = {
    Role.PREFILL: pb.ROLE_PREFILL,
    Role.DECODE: pb.ROLE_DECODE,
    Role.MIXED: pb.ROLE_MIXED,
}
STATUSES: Mapping[SolveStatus, pb.SolveStatus] = {
    SolveStatus.OPTIMAL: pb.SOLVE_STATUS_OPTIMAL,
    SolveStatus.FEASIBLE: pb.SOLVE_STATUS_FEASIBLE,
    SolveStatus.FAILED: pb.SOLVE_STATUS_FAILED,
}


def plan_message(plan: Plan, number: int) -> pb.Plan:
    """Render a plan; ``number`` is that of its FleetPlan, 0 when it has none."""
    return pb.Plan(
        number=number,
        decision_hash=plan.decision_hash,
        pools=pool_messages(plan, (pool.pool.service for pool in plan.pools)),
        services=map(service_message, plan.services),
        domains=map(_domain_message, plan.domains),
        bindings=map(binding_message, plan.bindings),
        report=_report_message(plan.report),
        routing=plan.routing,
        is_short=plan.is_short,
    )


def difference_message(old: Plan, new: Plan) -> pb.PlanDifference:
    """Render what differs between two plans; only what changes."""
    before, after = _counts(old), _counts(new)
    changes = [
        pb.PlacementDifference(
            pool=pool_key_message(pool),
            location=location,
            from_replicas=before[pool, location],
            to_replicas=after[pool, location],
        )
        for pool, location in sorted(before.keys() | after.keys())
        if before[pool, location] != after[pool, location]
    ]
    deltas = [change.to_replicas - change.from_replicas for change in changes]
    return pb.PlanDifference(
        placements=changes,
        services=_service_differences(old, new),
        domains=_domain_differences(old, new),
        from_cost_usd_per_hour=old.report.cost_usd_per_hour,
        to_cost_usd_per_hour=new.report.cost_usd_per_hour,
        starting_replicas=sum(delta for delta in deltas if delta > 0),
        stopping_replicas=-sum(delta for delta in deltas if delta < 0),
    )


def pool_messages(plan: Plan, services: Iterable[str]) -> list[pb.PoolPlan]:
    """Render the pools of some services that have replicas, each with where they go."""
    wanted = set(services)
    places: dict[PoolKey, list[pb.LocationReplicas]] = defaultdict(list)
    for placement in plan.placements:
        if placement.replicas:
            row = pb.LocationReplicas(location=placement.location, replicas=placement.replicas)
            places[placement.pool].append(row)
    return [_pool_message(p, places[p.pool]) for p in plan.pools if p.replicas and p.pool.service in wanted]


def config_message(config: EngineConfig) -> pb.EngineConfig:
    """Render an engine configuration."""
    return pb.EngineConfig(
        engine=config.engine,
        tensor_parallel=config.tensor_parallel,
        pipeline_parallel=config.pipeline_parallel,
        expert_parallel=config.expert_parallel,
        data_parallel=config.data_parallel,
        variant=config.variant,
        gpus=config.gpus,
        label=config.label,
    )


def pool_key_message(pool: PoolKey) -> pb.Pool:
    """Render what identifies a pool."""
    config = config_message(pool.config)
    return pb.Pool(service=pool.service, role=ROLES[pool.role], gpu_class=pool.gpu_class, config=config)


def service_message(service: ServicePlan) -> pb.ServicePlan:
    """Render what a service gets."""
    return pb.ServicePlan(
        service=service.service,
        tier=service.tier,
        demand_requests_per_s=service.demand_requests_per_s,
        served_requests_per_s=service.served_requests_per_s,
        unserved_requests_per_s=service.unserved_requests_per_s,
        short_because=service.short_because,
    )


def binding_message(binding: Binding) -> pb.Binding:
    """Render a limit with no slack left."""
    return pb.Binding(
        limit=binding.limit,
        subject=binding.subject,
        unit=binding.unit,
        price_usd_per_hour=binding.price_usd_per_hour,
    )


def _counts(plan: Plan) -> Counter[tuple[PoolKey, str]]:
    return Counter({(row.pool, row.location): row.replicas for row in plan.placements})


def _service_differences(old: Plan, new: Plan) -> list[pb.ServiceDifference]:
    before = {row.service: row.served_requests_per_s for row in old.services}
    after = {row.service: row.served_requests_per_s for row in new.services}
    return [
        pb.ServiceDifference(service=name, from_served_requests_per_s=now, to_served_requests_per_s=then)
        for name, now, then in _changes(before, after)
    ]


def _domain_differences(old: Plan, new: Plan) -> list[pb.DomainDifference]:
    before = {row.domain: row.reserved_watts for row in old.domains}
    after = {row.domain: row.reserved_watts for row in new.domains}
    return [
        pb.DomainDifference(domain=name, from_reserved_watts=now, to_reserved_watts=then)
        for name, now, then in _changes(before, after)
    ]


def _changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Names with another number than before, absent ones counting as 0; rounding errors are no change."""
    both = [(name, before.get(name, 0.0), after.get(name, 0.0)) for name in sorted(before.keys() | after.keys())]
    return [row for row in both if not math.isclose(row[1], row[2], rel_tol=1e-9, abs_tol=1e-9)]


def _pool_message(pool: PoolPlan, places: Iterable[pb.LocationReplicas]) -> pb.PoolPlan:
    return pb.PoolPlan(
        pool=pool_key_message(pool.pool),
        replicas=pool.replicas,
        placements=places,
        demand_ratio=pool.demand_ratio,
        capacity_requests_per_s=pool.capacity_requests_per_s,
        cap_watts=pool.cap_watts,
        reserved_watts=pool.reserved_watts,
        planned_watts=pool.planned_watts,
        cost_usd_per_hour=pool.cost_usd_per_hour,
    )


def _domain_message(domain: DomainPlan) -> pb.DomainPlan:
    return pb.DomainPlan(
        domain=domain.domain,
        budget_watts=domain.budget_watts,
        reserved_watts=domain.reserved_watts,
        planned_watts=domain.planned_watts,
        price_usd_per_kilowatt_hour=domain.price_usd_per_kilowatt_hour,
    )


def _report_message(report: SolveReport) -> pb.SolveReport:
    return pb.SolveReport(
        status=STATUSES[report.status],
        objective_usd_per_hour=report.objective_usd_per_hour,
        bound_usd_per_hour=report.bound_usd_per_hour,
        gap_ratio=report.gap_ratio,
        cost_usd_per_hour=report.cost_usd_per_hour,
        rounds=report.rounds,
        notes=report.notes,
    )

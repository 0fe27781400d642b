"""Plans, differences and explanations as messages of the Placement service."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from controller import placement_pb2 as pb
from solvers.engine import EngineConfig, Role
from solvers.explain import Alternative, CountChange, DemandRange, Explanation, PriceSwitch, difference
from solvers.explain.reasons import CapReason
from solvers.explain.shadow import Loss, ShadowPrice
from solvers.explain.swaps import PoolSwap
from solvers.fleet import PoolKey
from solvers.plan import (
    Binding,
    DomainPlan,
    LinkPlan,
    PartPlan,
    Plan,
    PoolPlan,
    Relief,
    ServicePlan,
    SolveReport,
    SolveStatus,
    SplitPrice,
)

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
        parts=map(_part_message, plan.parts),
        splits=map(_split_message, plan.splits),
        relief=map(relief_message, plan.relief),
        links=map(_link_message, plan.links),
    )


def difference_message(old: Plan, new: Plan) -> pb.PlanDifference:
    """Render what differs between two plans; only what changes."""
    change = difference(old, new)
    served = {row.service: row.served_requests_per_s for row in old.services}
    serves = {row.service: row.served_requests_per_s for row in new.services}
    was = {row.domain: row.reserved_watts for row in old.domains}
    now = {row.domain: row.reserved_watts for row in new.domains}
    return pb.PlanDifference(
        placements=map(_placement_difference, change.placements),
        services=[
            pb.ServiceDifference(
                service=name,
                from_served_requests_per_s=served.get(name, 0.0),
                to_served_requests_per_s=serves.get(name, 0.0),
            )
            for name in change.served_requests_per_s
        ],
        domains=[
            pb.DomainDifference(
                domain=row.domain,
                from_reserved_watts=was.get(row.domain, 0.0),
                to_reserved_watts=now.get(row.domain, 0.0),
            )
            for row in change.domains
        ],
        from_cost_usd_per_hour=old.report.cost_usd_per_hour,
        to_cost_usd_per_hour=new.report.cost_usd_per_hour,
        starting_replicas=change.starting_replicas,
        stopping_replicas=change.stopping_replicas,
    )


def explanation_message(why: Explanation, plan: Plan, number: int) -> pb.ExplainResponse:
    """Render why a service got what it got in ``plan``."""
    used = {each.pool: each for each in why.chosen}
    rows = [row for row in plan.pools if row.replicas and row.pool.service == why.service]
    return pb.ExplainResponse(
        number=number,
        text=why.text(),
        service=next(service_message(row) for row in plan.services if row.service == why.service),
        chosen=[
            pb.ChosenPool(
                pool=message,
                used_ratio=used[str(row.pool)].used_ratio,
                cost_usd_per_thousand_requests=used[str(row.pool)].usd_per_thousand_requests,
            )
            for row, message in zip(rows, pool_messages(plan, (why.service,)), strict=True)
        ],
        rejected=map(_alternative_message, why.rejected),
        bindings=map(binding_message, why.binding),
        unfit=why.unfit,
        counts=[
            pb.CountReason(
                pool=reason.pool,
                replicas=reason.replicas,
                kept_by=str(reason.kept_by),
                one_less_serves_requests_per_s=reason.one_less_serves_requests_per_s,
            )
            for reason in why.counts
        ],
        demand_range=_range_message(why.demand_range),
        switches=map(_switch_message, why.switches),
        caps=map(_cap_message, why.caps),
        relief=map(relief_message, why.relief),
        prices=map(_price_message, why.prices),
        losses=map(_loss_message, why.losses),
        links=map(_link_message, why.links),
        swaps=map(_swap_message, why.swaps),
    )


def _cap_message(cap: CapReason) -> pb.CapReason:
    return pb.CapReason(
        pool=cap.pool,
        cap_watts=cap.cap_watts,
        max_cap_watts=cap.max_cap_watts,
        speed_ratio=cap.speed_ratio,
        saved_watts=cap.saved_watts,
        worth_usd_per_hour=cap.worth_usd_per_hour,
        lower_cap_watts=cap.lower_cap_watts,
        lower_speed_ratio=cap.lower_speed_ratio,
    )


def _swap_message(swap: PoolSwap) -> pb.PoolSwap:
    return pb.PoolSwap(
        pool=swap.pool,
        instead=pb.PoolCount(pool=swap.instead, replicas=swap.replicas),
        extra_usd_per_hour=swap.extra_usd_per_hour,
        extra_at_scarcity_usd_per_hour=swap.extra_at_scarcity_usd_per_hour,
        blocked_by=swap.blocked_by,
    )


def _price_message(price: ShadowPrice) -> pb.ShadowPrice:
    return pb.ShadowPrice(
        limit=price.limit,
        subject=price.subject,
        unit=price.unit,
        more_usd_per_hour=price.more_usd_per_hour,
        more_holds_for_units=price.more_holds_for,
        less_usd_per_hour=price.less_usd_per_hour,
        less_holds_for_units=price.less_holds_for,
    )


def _loss_message(loss: Loss) -> pb.Loss:
    return pb.Loss(
        change=loss.change,
        low_usd_per_hour=loss.low_usd_per_hour,
        expected_usd_per_hour=loss.expected_usd_per_hour,
        high_usd_per_hour=loss.high_usd_per_hour,
        short=loss.short,
        keeps_cuts=loss.keeps_cuts,
    )


def relief_message(row: Relief) -> pb.Relief:
    """Render what would help a plan that is short."""
    return pb.Relief(
        limit=row.limit,
        subject=row.subject,
        unit=row.unit,
        amount_units=row.amount,
        price_usd_per_hour=row.usd_per_hour,
        is_estimate=row.is_estimate,
        first_serves_requests_per_s=row.first_serves_requests_per_s,
        first_saves_usd_per_hour=row.first_saves_usd_per_hour,
    )


def _link_message(row: LinkPlan) -> pb.LinkPlan:
    return pb.LinkPlan(
        link=row.link,
        bytes_per_s=row.bytes_per_s,
        outgoing_bytes_per_s=row.outgoing_bytes_per_s,
        incoming_bytes_per_s=row.incoming_bytes_per_s,
        cost_usd_per_hour=row.usd_per_hour,
    )


def _range_message(carried: DemandRange | None) -> pb.DemandRange | None:
    if carried is None:
        return None
    return pb.DemandRange(
        least_requests_per_s=carried.least_requests_per_s, most_requests_per_s=carried.most_requests_per_s
    )


def _switch_message(switch: PriceSwitch) -> pb.PriceSwitch:
    return pb.PriceSwitch(
        gpu_class=switch.gpu_class,
        now_usd_per_hour=switch.now_usd_per_hour,
        at_usd_per_hour=switch.at_usd_per_hour,
        pools=[pb.PoolCount(pool=name, replicas=count) for name, count in switch.pools],
    )


def _alternative_message(way: Alternative) -> pb.Alternative:
    return pb.Alternative(
        pools=[pb.PoolCount(pool=name, replicas=count) for name, count in way.pools],
        cost_usd_per_hour=way.usd_per_hour,
        cost_usd_per_thousand_requests=way.usd_per_thousand_requests,
        extra_usd_per_hour=way.extra_usd_per_hour,
        extra_at_scarcity_usd_per_hour=way.extra_at_scarcity_usd_per_hour,
        blocked_by=way.blocked_by,
        fleet_low_usd_per_hour=way.fleet_low_usd_per_hour,
        fleet_high_usd_per_hour=way.fleet_high_usd_per_hour,
        fleet_expected_usd_per_hour=way.fleet_expected_usd_per_hour,
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
    return pb.Pool(
        service=pool.service, role=ROLES[pool.role], gpu_class=pool.gpu_class, config=config, sizes=pool.sizes
    )


def _part_message(part: PartPlan) -> pb.PartPlan:
    return pb.PartPlan(
        service=part.service,
        sizes=part.sizes,
        demand_requests_per_s=part.demand_requests_per_s,
        served_requests_per_s=part.served_requests_per_s,
    )


def _split_message(split: SplitPrice) -> pb.SplitPrice:
    return pb.SplitPrice(
        service=split.service,
        sizes=split.sizes,
        price_usd_per_hour=split.usd_per_hour,
        is_estimate=split.is_estimate,
        is_declared=split.is_declared,
    )


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


def _placement_difference(change: CountChange) -> pb.PlacementDifference:
    return pb.PlacementDifference(
        pool=pool_key_message(change.pool),
        location=change.location,
        from_replicas=change.from_replicas,
        to_replicas=change.to_replicas,
    )


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
        nodes_per_replica=pool.nodes_per_replica,
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

"""FleetPlan: a plan → the bodies of its parts, and back.

Rounding: watts to whole watts, rates to thousandths of a request per second, money to thousandths of a US dollar (an
hour, or an hour and kilowatt), shares and the gap to millionths. Placements and the decision hash survive exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from controller.schema import API_VERSION, FleetPlanSpec
from controller.schema_plan import PlanPoolKey, PlanReport
from controller.validation import Json, subject_of, validate_spec
from solvers.engine import EngineConfig
from solvers.errors import InvalidInput
from solvers.fleet import PoolKey
from solvers.plan import (
    Binding,
    DomainPlan,
    LinkPlan,
    PartPlan,
    Placement,
    Plan,
    PoolPlan,
    Relief,
    ServicePlan,
    SolveReport,
    SplitPrice,
)

PART_BYTES = 256 * 1024
"""Largest part: etcd refuses objects of 1.5 MiB, and managed fields and status come on top of the body."""

ROOM_BYTES = 16 * 1024
"""Of a part, kept free for what the server adds: managed fields, defaults, status."""

PLAN_LABEL = "penstock.dev/plan"
LOCATIONS_PER_ROW = 64
"""Places in one row before a pool continues in the next: small rows fill parts well."""

TEXT_LIMIT = 1024
SECTIONS = ("services", "pools", "placements", "domains", "bindings", "relief", "sizeRanges", "splitPrices", "links")

Row = dict[str, Any]


def plan_name(number: int, part: int = 1) -> str:
    """Name of a plan's part; the first part carries the plan's own name.

    >>> plan_name(123), plan_name(123, 2)
    ('plan-000123', 'plan-000123-part-2')
    """
    return f"plan-{number:06d}" + (f"-part-{part}" if part > 1 else "")


def render_fleet_plan(plan: Plan, number: int, *, part_bytes: int = PART_BYTES) -> list[dict[str, Any]]:
    """Make the bodies of a plan's parts, in the order in which to create them: the first one takes the number.

    Parameters
    ----------
    plan : Plan
    number : int
        One above the last plan's.
    part_bytes : int
        No body is larger, as compact JSON.

    Raises
    ------
    InvalidInput
        When the plan holds a number that is not finite where one is needed.
    """
    common = {
        "decisionHash": plan.decision_hash,
        "routing": plan.routing[:253],
        "report": _render_report(plan.report, plan_name(number)),
    }
    empty = _body(number, 999, 999, common, {})
    parts = list(_fill_parts(_rows(plan), part_bytes - ROOM_BYTES - _size(empty)))
    return [_body(number, place, len(parts), common, lists) for place, lists in enumerate(parts, start=1)]


def _body(number: int, part: int, parts: int, common: Row, lists: Mapping[str, list[Row]]) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "FleetPlan",
        "metadata": {"name": plan_name(number, part), "labels": {PLAN_LABEL: plan_name(number)}},
        "spec": {"number": number, "part": part, "parts": parts, **common, **lists},
    }


def _size(value: object) -> int:
    return len(json.dumps(value, separators=(",", ":")).encode())


def _fill_parts(rows: Iterable[tuple[str, Row]], room_bytes: int) -> Iterator[dict[str, list[Row]]]:
    """Fill one part after the other; there is at least one."""
    lists: dict[str, list[Row]] = {}
    used = 0
    for section, row in rows:
        size = _size(row) + 1 + len(section) * (section not in lists) + 8
        if used + size > room_bytes and lists:
            yield lists
            lists, used = {}, 0
        lists.setdefault(section, []).append(row)
        used += size
    yield lists


def _rows(plan: Plan) -> Iterator[tuple[str, Row]]:
    yield from (("services", _render_service(service)) for service in plan.services)
    yield from (("pools", _render_pool(pool)) for pool in plan.pools)
    yield from (("placements", row) for row in _render_placements(plan.placements))
    yield from (("domains", _render_domain(domain)) for domain in plan.domains)
    yield from (("bindings", _render_binding(binding)) for binding in plan.bindings)
    yield from (("relief", _render_relief(row)) for row in plan.relief)
    yield from (("sizeRanges", _render_part(row)) for row in plan.parts)
    yield from (("splitPrices", _render_split(row)) for row in plan.splits)
    yield from (("links", _render_link(row)) for row in plan.links)


def _render_key(pool: PoolKey) -> Row:
    return {
        "service": pool.service,
        "role": str(pool.role),
        "gpuClass": pool.gpu_class,
        "engine": pool.config.engine,
        "config": pool.config.label,
        **({"sizes": pool.sizes} if pool.sizes else {}),
    }


def _render_pool(pool: PoolPlan) -> Row:
    several = {"nodesPerReplica": pool.nodes_per_replica} if pool.nodes_per_replica > 1 else {}
    return {
        **_render_key(pool.pool),
        **several,
        "replicas": pool.replicas,
        "demandPartsPerMillion": round(pool.demand_ratio * 1e6),
        "capacityMilliRequestsPerSecond": round(pool.capacity_requests_per_s * 1e3),
        "capWatts": round(pool.cap_watts),
        "reservedWatts": round(pool.reserved_watts),
        "plannedWatts": round(pool.planned_watts),
        "costMilliUsdPerHour": round(pool.cost_usd_per_hour * 1e3),
    }


def _render_placements(placements: Sequence[Placement]) -> Iterator[Row]:
    """Group places by pool, at most ``LOCATIONS_PER_ROW`` in a row."""
    for pool, group in groupby(sorted(placements), key=lambda placement: placement.pool):
        places = [{"location": placement.location, "replicas": placement.replicas} for placement in group]
        for start in range(0, len(places), LOCATIONS_PER_ROW):
            yield _render_key(pool) | {"locations": places[start : start + LOCATIONS_PER_ROW]}


def _render_service(service: ServicePlan) -> Row:
    demand = round(service.demand_requests_per_s * 1e3)
    # What the plan calls served in full stays so: rounding must not make a service look short.
    is_short = service.unserved_requests_per_s > 1e-6 * max(1.0, service.demand_requests_per_s)
    served = round(service.served_requests_per_s * 1e3) if is_short else demand
    return {
        "service": service.service,
        "tier": service.tier,
        "demandMilliRequestsPerSecond": demand,
        "servedMilliRequestsPerSecond": served,
        "shortBecause": [reason[:TEXT_LIMIT] for reason in service.short_because[:32]],
    }


def _render_domain(domain: DomainPlan) -> Row:
    return {
        "domain": domain.domain,
        "budgetWatts": round(domain.budget_watts),
        "reservedWatts": round(domain.reserved_watts),
        "plannedWatts": round(domain.planned_watts),
        "priceMilliUsdPerKilowattHour": round(domain.price_usd_per_kilowatt_hour * 1e3),
    }


def _render_binding(binding: Binding) -> Row:
    return {
        "limit": binding.limit[:253],
        "subject": binding.subject[:253],
        "unit": binding.unit[:63],
        "priceMilliUsdPerHour": round(binding.price_usd_per_hour * 1e3),
    }


def _render_relief(row: Relief) -> Row:
    return {
        "limit": row.limit[:253],
        "subject": row.subject[:253],
        "unit": row.unit[:63],
        "milliAmount": round(row.amount * 1e3),
        "priceMilliUsdPerHour": round(row.usd_per_hour * 1e3),
        **({"isEstimate": True} if row.is_estimate else {}),
        "firstMilliRequestsPerSecond": round(row.first_serves_requests_per_s * 1e3),
        "firstMilliUsdPerHour": round(row.first_saves_usd_per_hour * 1e3),
    }


def _render_link(row: LinkPlan) -> Row:
    return {
        "link": row.link,
        "bytesPerSecond": round(row.bytes_per_s),
        "outgoingBytesPerSecond": round(row.outgoing_bytes_per_s),
        "incomingBytesPerSecond": round(row.incoming_bytes_per_s),
        "costMilliUsdPerHour": round(row.usd_per_hour * 1e3),
    }


def _render_part(row: PartPlan) -> Row:
    return {
        "service": row.service,
        "sizes": row.sizes,
        "demandMilliRequestsPerSecond": round(row.demand_requests_per_s * 1e3),
        "servedMilliRequestsPerSecond": round(row.served_requests_per_s * 1e3),
    }


def _render_split(row: SplitPrice) -> Row:
    return {
        "service": row.service,
        "sizes": list(row.sizes),
        "priceMilliUsdPerHour": round(row.usd_per_hour * 1e3),
        "isEstimate": row.is_estimate,
        "isDeclared": row.is_declared,
    }


def _render_report(report: SolveReport, name: str) -> Row:
    if not (math.isfinite(report.objective_usd_per_hour) and math.isfinite(report.cost_usd_per_hour)):
        raise InvalidInput(f"FleetPlan/{name}", "spec.report", "objective and cost must be finite", "drop the plan")
    proved = math.isfinite(report.bound_usd_per_hour) and math.isfinite(report.gap_ratio)
    evidence = {
        "boundMilliUsdPerHour": round(report.bound_usd_per_hour * 1e3),
        "gapPartsPerMillion": max(0, round(report.gap_ratio * 1e6)),
    } if proved else {}  # fmt: skip
    return {
        "status": str(report.status),
        "objectiveMilliUsdPerHour": round(report.objective_usd_per_hour * 1e3),
        **evidence,
        "costMilliUsdPerHour": round(report.cost_usd_per_hour * 1e3),
        "rounds": report.rounds,
        "notes": [note[:TEXT_LIMIT] for note in report.notes[:64]],
    }


def parse_fleet_plan(bodies: Sequence[Json]) -> Plan:
    """Put a plan together from the bodies of all its parts, in any order.

    Raises
    ------
    InvalidInput
        When a part is missing, belongs to another plan, or is wrong.
    """
    specs = sorted((validate_spec(body, FleetPlanSpec) for body in bodies), key=lambda spec: spec.part)
    _check_whole(specs, subject_of(bodies[0]) if bodies else "FleetPlan")
    first = specs[0]
    return Plan(
        placements=tuple(sorted(_parse_placements(specs))),
        pools=tuple(_parse_pools(specs)),
        services=tuple(_parse_services(specs)),
        domains=tuple(_parse_domains(specs)),
        bindings=tuple(_parse_bindings(specs)),
        relief=tuple(_parse_relief(specs)),
        parts=tuple(_parse_parts(specs)),
        splits=tuple(_parse_splits(specs)),
        links=tuple(_parse_links(specs)),
        report=_parse_report(first.report),
        routing=first.routing,
    )


def _check_whole(specs: Sequence[FleetPlanSpec], subject: str) -> None:
    if not specs:
        raise InvalidInput(subject, "spec.parts", "no part is there", "give every part of one plan")
    wanted = list(range(1, specs[0].parts + 1))
    have = [spec.part for spec in specs]
    if have != wanted or len({(spec.number, spec.decision_hash) for spec in specs}) != 1:
        raise InvalidInput(subject, "spec.part", f"has parts {have} of {wanted}", "give every part of one plan, once")


def _parse_key(spec: PlanPoolKey) -> PoolKey:
    config = EngineConfig.from_label(spec.config, spec.engine)
    return PoolKey(service=spec.service, role=spec.role, gpu_class=spec.gpu_class, config=config, sizes=spec.sizes)


def _parse_placements(specs: Sequence[FleetPlanSpec]) -> Iterator[Placement]:
    for row in (row for spec in specs for row in spec.placements):
        pool = _parse_key(row)
        for place in row.locations:
            yield Placement(pool=pool, location=place.location, replicas=place.replicas)


def _parse_pools(specs: Sequence[FleetPlanSpec]) -> Iterator[PoolPlan]:
    for row in (row for spec in specs for row in spec.pools):
        yield PoolPlan(
            pool=_parse_key(row),
            replicas=row.replicas,
            demand_ratio=row.demand_parts_per_million / 1e6,
            capacity_requests_per_s=row.capacity_milli_requests_per_second / 1e3,
            cap_watts=float(row.cap_watts),
            reserved_watts=float(row.reserved_watts),
            planned_watts=float(row.planned_watts),
            cost_usd_per_hour=row.cost_milli_usd_per_hour / 1e3,
            nodes_per_replica=row.nodes_per_replica,
        )


def _parse_services(specs: Sequence[FleetPlanSpec]) -> Iterator[ServicePlan]:
    for row in (row for spec in specs for row in spec.services):
        yield ServicePlan(
            service=row.service,
            tier=row.tier,
            demand_requests_per_s=row.demand_milli_requests_per_second / 1e3,
            served_requests_per_s=row.served_milli_requests_per_second / 1e3,
            short_because=row.short_because,
        )


def _parse_domains(specs: Sequence[FleetPlanSpec]) -> Iterator[DomainPlan]:
    for row in (row for spec in specs for row in spec.domains):
        yield DomainPlan(
            domain=row.domain,
            budget_watts=float(row.budget_watts),
            reserved_watts=float(row.reserved_watts),
            planned_watts=float(row.planned_watts),
            price_usd_per_kilowatt_hour=row.price_milli_usd_per_kilowatt_hour / 1e3,
        )


def _parse_bindings(specs: Sequence[FleetPlanSpec]) -> Iterator[Binding]:
    for row in (row for spec in specs for row in spec.bindings):
        price = row.price_milli_usd_per_hour / 1e3
        yield Binding(limit=row.limit, subject=row.subject, unit=row.unit, price_usd_per_hour=price)


def _parse_relief(specs: Sequence[FleetPlanSpec]) -> Iterator[Relief]:
    for row in (row for spec in specs for row in spec.relief):
        yield Relief(
            limit=row.limit,
            subject=row.subject,
            unit=row.unit,
            amount=row.milli_amount / 1e3,
            usd_per_hour=row.price_milli_usd_per_hour / 1e3,
            is_estimate=row.is_estimate,
            first_serves_requests_per_s=row.first_milli_requests_per_second / 1e3,
            first_saves_usd_per_hour=row.first_milli_usd_per_hour / 1e3,
        )


def _parse_parts(specs: Sequence[FleetPlanSpec]) -> Iterator[PartPlan]:
    for row in (row for spec in specs for row in spec.size_ranges):
        yield PartPlan(
            service=row.service,
            sizes=row.sizes,
            demand_requests_per_s=row.demand_milli_requests_per_second / 1e3,
            served_requests_per_s=row.served_milli_requests_per_second / 1e3,
        )


def _parse_splits(specs: Sequence[FleetPlanSpec]) -> Iterator[SplitPrice]:
    for row in (row for spec in specs for row in spec.split_prices):
        yield SplitPrice(
            service=row.service,
            sizes=row.sizes,
            usd_per_hour=row.price_milli_usd_per_hour / 1e3,
            is_estimate=row.is_estimate,
            is_declared=row.is_declared,
        )


def _parse_links(specs: Sequence[FleetPlanSpec]) -> Iterator[LinkPlan]:
    for row in (row for spec in specs for row in spec.links):
        yield LinkPlan(
            link=row.link,
            bytes_per_s=float(row.bytes_per_second),
            outgoing_bytes_per_s=float(row.outgoing_bytes_per_second),
            incoming_bytes_per_s=float(row.incoming_bytes_per_second),
            usd_per_hour=row.cost_milli_usd_per_hour / 1e3,
        )


def _parse_report(row: PlanReport) -> SolveReport:
    bound, gap = row.bound_milli_usd_per_hour, row.gap_parts_per_million
    return SolveReport(
        status=row.status,
        objective_usd_per_hour=row.objective_milli_usd_per_hour / 1e3,
        bound_usd_per_hour=-math.inf if bound is None else bound / 1e3,
        gap_ratio=math.inf if gap is None else gap / 1e6,
        cost_usd_per_hour=row.cost_milli_usd_per_hour / 1e3,
        rounds=row.rounds,
        notes=row.notes,
    )

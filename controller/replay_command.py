"""``penstock replay``: serve a request trace with a plan's replicas in simulation, and judge every SLO."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from controller.output import add_output_argument, print_output
from controller.plan_bodies import parse_fleet_plan
from controller.planning import add_folder_arguments, observe_folder, parse_assignment, with_demands
from controller.tables import Cell, render_table
from controller.traces import Trace, load_trace, scale_trace, synthetic_trace
from solvers.engine import ProfileKey
from solvers.errors import InvalidInput
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem
from solvers.simulate import Fleet, Result, ServiceResult, SimRequest, itl_limits, replay
from solvers.workload import Slo

EXIT_MISSED = 2
SYNTHETIC_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A replay with what it was asked to keep."""

    problem: Problem
    plan: Plan
    result: Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_folder_arguments(parser)
    parser.add_argument("--trace", type=Path, metavar="FILE", help="Azure CSV, Mooncake JSONL or plain CSV "
                        "(default: ten synthetic minutes of the seed)")  # fmt: skip
    parser.add_argument("--plan", type=Path, metavar="FILE", help="FleetPlan to replay (default: plan the folder now)")
    parser.add_argument(
        "--factor", action="append", default=[], metavar="NAMESPACE/NAME=FACTOR",
        help="multiply the trace for a service (repeatable; default: up to the load that is planned for)",
    )  # fmt: skip
    parser.add_argument("--until", type=float, default=float("inf"), metavar="SECONDS", help="stop there")
    parser.add_argument("--seed", type=int, default=1, help="of the synthetic trace and of scaling (default 1)")
    add_output_argument(parser)
    parser.epilog = "Exit code: 0 every SLO was met; 2 some was missed; 1 bad input."


def run(args: argparse.Namespace) -> int:
    """Replay and print; exit code 2 when an SLO was missed or requests were rejected or never served."""
    problem = with_demands(observe_folder(args.folder).problem, args.demand)
    plan = make_plan(problem) if args.plan is None else load_plan(args.plan)
    trace = load_trace(args.trace) if args.trace else synthetic_trace(args.seed, SYNTHETIC_S)
    requests = [*_requests(problem, trace, _factors(problem, trace, args.factor), args.seed)]
    slos = {service.name: service.slos for service in problem.services}
    result = replay(_fleet(problem, plan, slos), requests, slos=slos, until_s=args.until)
    judged = Judged(problem=problem, plan=plan, result=result)
    print_output(args.output, _data(judged), lambda: "\n\n".join(_sections(judged)))
    return 0 if _all_met(result) else EXIT_MISSED


def load_plan(path: Path) -> Plan:
    """Read a FleetPlan as ``penstock plan -o yaml`` or ``kubectl get fplan -o yaml`` writes it."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(str(path), "", f"cannot be read: {error}", "give a FleetPlan in YAML or JSON") from error
    if not isinstance(document, dict):
        raise InvalidInput(str(path), "", "holds no object", "give a FleetPlan in YAML or JSON")
    return parse_fleet_plan(document["items"] if document.get("kind") == "List" else [document])


def _factors(problem: Problem, trace: Trace, overrides: list[str]) -> dict[str, float]:
    span_s = max(trace[-1].arrival_s, 1e-9)
    rate_per_s = len(trace) / span_s
    factors = {name: demand.requests_per_s / rate_per_s for name, demand in sorted(problem.demands.items())}
    for override in overrides:
        service, factor = parse_assignment("--factor", override)
        if service not in factors:
            known = ", ".join(factors) or "none"
            raise InvalidInput("--factor", "", f"names no planned service: {service!r}", f"planned are {known}")
        factors[service] = factor
    return {service: factor for service, factor in factors.items() if factor > 0}


def _requests(problem: Problem, trace: Trace, factors: Mapping[str, float], seed: int) -> Iterator[SimRequest]:
    for index, (service, factor) in enumerate(factors.items()):
        for number, request in enumerate(scale_trace(trace, factor, seed + index)):
            yield SimRequest(
                name=f"{service}#{number}",
                service=service,
                arrival_s=request.arrival_s,
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
            )


def _fleet(problem: Problem, plan: Plan, slos: Mapping[str, tuple[Slo, ...]]) -> Fleet:
    fleet = Fleet(itl_limits_s=itl_limits(slos))
    models = {service.name: service.model for service in problem.services}
    for row in plan.placements:
        pool = row.pool
        if pool.service not in models:
            raise InvalidInput(
                "plan", "", f"places {pool.service}, which the folder lacks", "replay it with its folder"
            )
        key = ProfileKey(model=models[pool.service], gpu_class=pool.gpu_class, config=pool.config)
        if key not in problem.profiles:
            raise InvalidInput("plan", "", f"has pool {pool}, for which the folder has no EngineProfile", "add one")
        for number in range(row.replicas):
            fleet.add_replica(f"{pool}@{row.location}#{number}", pool.service, pool.role, problem.profiles[key])
    return fleet


def _all_met(result: Result) -> bool:
    services = result.services.values()
    kept = all(slo.is_met for service in services for slo in service.attained)
    return kept and not result.rejected and not result.unfinished


def _data(judged: Judged) -> dict[str, Any]:
    result = judged.result
    return {
        "services": [_service_data(service) for _, service in sorted(result.services.items())],
        "unfinishedRequests": result.unfinished,
        "rejected": [{"request": r.name, "reason": r.reason} for r in result.rejected],
        "makespanSeconds": round(result.makespan_s, 3),
        "energyKilowattHours": round(result.energy_joules / 3.6e6, 4),
        "costUsdPerHour": round(judged.plan.report.cost_usd_per_hour, 4),
        "extrapolatedSteps": result.extrapolated_steps,
    }


def _service_data(service: ServiceResult) -> dict[str, Any]:
    def milliseconds(values: Mapping[float, float]) -> dict[str, float]:
        return {f"p{100 * ratio:g}": round(1000 * value, 3) for ratio, value in values.items()}

    return {
        "service": service.service,
        "requests": service.submitted,
        "finished": service.finished,
        "rejected": service.rejected,
        "outputTokens": service.output_tokens,
        "ttftMilliseconds": milliseconds(service.ttft_s),
        "itlMilliseconds": milliseconds(service.itl_s),
        "goodputRequestsPerSecond": round(service.goodput_requests_per_s, 4),
        "slos": [
            {
                "metric": str(kept.slo.metric),
                "percentile": 100 * kept.slo.percentile_ratio,
                "limitMilliseconds": round(1000 * kept.slo.limit_s, 3),
                "attainedMilliseconds": round(1000 * kept.value_s, 3),
                "withinRatio": round(kept.within_ratio, 6),
                "met": kept.is_met,
            }
            for kept in service.attained
        ],
    }


def _sections(judged: Judged) -> Iterator[str]:
    result = judged.result
    headers = ("SERVICE", "REQUESTS", "SLO", "LIMIT MS", "ATTAINED MS", "WITHIN %", "MET", "GOODPUT/S")
    yield render_table(headers, _rows(result))
    yield (
        f"{result.makespan_s:.0f} s replayed, {result.energy_joules / 3.6e6:.2f} kWh, "
        f"{judged.plan.report.cost_usd_per_hour:.2f} USD/h, {result.unfinished} requests unfinished, "
        f"{len(result.rejected)} rejected"
    )
    if result.rejected:
        yield "\n".join(f"rejected: {row.name}: {row.reason}" for row in result.rejected[:5])


def _rows(result: Result) -> Iterator[tuple[Cell, ...]]:
    for name, service in sorted(result.services.items()):
        for kept in service.attained:
            label = f"{kept.slo.metric} p{100 * kept.slo.percentile_ratio:g}"
            limit, value = 1000 * kept.slo.limit_s, 1000 * kept.value_s
            met, within = "yes" if kept.is_met else "NO", 100 * kept.within_ratio
            yield name, service.submitted, label, limit, value, within, met, service.goodput_requests_per_s

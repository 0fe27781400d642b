"""``penstock replay``: serve a request trace with a plan's replicas in simulation, and judge every SLO."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from controller.output import add_output_argument, print_output
from controller.plan_bodies import parse_fleet_plan
from controller.planning import add_folder_arguments, observe_folder, parse_assignment, with_demands
from controller.tables import Cell, render_table
from controller.traces import Trace, load_trace
from controller.traces_made import scale_trace, synthetic_trace
from solvers.engine import ProfileKey
from solvers.errors import InvalidInput
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem
from solvers.simulate import Attained, Fleet, Result, ServiceResult, SimRequest, itl_limits, replay
from solvers.workload import Slo

EXIT_MISSED = 2
SYNTHETIC_S = 600.0
LISTS = frozenset({"List", "FleetPlanList"})


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
        help="multiply the trace for a service (repeatable; default: up to the load that is planned for; a trace "
        "without duration stays as it is)",
    )  # fmt: skip
    parser.add_argument("--until", type=float, default=float("inf"), metavar="SECONDS", help="stop there")
    parser.add_argument("--seed", type=int, default=1, help="of the synthetic trace and of scaling (default 1)")
    add_output_argument(parser)
    parser.epilog = "Exit code: 0 every SLO was met; 2 some was missed; 1 bad input."


def run(args: argparse.Namespace) -> int:
    """Replay and print; exit code 2 when an SLO was missed, or a service or some of its requests were not served."""
    if not args.until >= 0:
        raise InvalidInput("--until", "", f"is {args.until}", "give 0 or more seconds")
    observation = observe_folder(args.folder)
    for fault in observation.faults:
        print(f"warning: {fault}", file=sys.stderr)
    problem = with_demands(observation.problem, args.demand)
    plan = make_plan(problem) if args.plan is None else load_plan(args.plan)
    trace = load_trace(args.trace) if args.trace else synthetic_trace(args.seed, SYNTHETIC_S)
    requests = [*_requests(problem, trace, _factors(problem, trace, args.factor), args.seed)]
    if not requests:
        raise InvalidInput("requests", "", "are none for any planned service", "give more --demand or --factor")
    slos = {service.name: service.slos for service in problem.services}
    result = replay(_fleet(problem, plan, slos), requests, slos=slos, until_s=args.until)
    judged = Judged(problem=problem, plan=plan, result=result)
    print_output(args.output, _data(judged), lambda: "\n\n".join(_sections(judged)))
    is_whole = not any(fault.subject.startswith("ServedModel/") for fault in observation.faults)
    return 0 if is_whole and _all_met(result) else EXIT_MISSED


def load_plan(path: Path) -> Plan:
    """Read a FleetPlan as ``penstock plan -o yaml`` or ``kubectl get fplan -o yaml`` writes it.

    Raises
    ------
    InvalidInput
        When the file cannot be read, holds anything else, or is not one whole plan.
    """
    remedy = "give a FleetPlan in YAML or JSON"
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(str(path), "", f"cannot be read: {said}", remedy) from error
    bodies = [body for document in documents for body in _listed(document)]
    for number, body in enumerate(bodies, start=1):
        kind = body.get("kind") if isinstance(body, dict) else None
        if kind != "FleetPlan":
            raise InvalidInput(f"{path}:{number}", "kind", f"is {kind!r}", remedy)
    if not bodies:
        raise InvalidInput(str(path), "", "holds no object", remedy)
    return parse_fleet_plan(bodies)


def _listed(document: Any) -> list[Any]:
    """Objects of a document: the items of a list, or itself; an empty document has none."""
    if isinstance(document, dict) and document.get("kind") in LISTS:
        items = document.get("items")
        return items if isinstance(items, list) else []
    return [] if document is None else [document]


def _factors(problem: Problem, trace: Trace, overrides: list[str]) -> dict[str, float]:
    span_s = trace[-1].arrival_s
    factors = {
        name: demand.requests_per_s * span_s / len(trace) if span_s > 0 else float(demand.requests_per_s > 0)
        for name, demand in sorted(problem.demands.items())
    }
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
    return kept and not (result.rejected or result.timed_out or result.unfinished)


def _is_met(service: ServiceResult, kept: Attained) -> bool:
    """Judge as the result does, but a service that served none of its requests met nothing."""
    return kept.is_met and (service.finished > 0 or not service.submitted)


def _milliseconds(seconds: float) -> float | None:
    """Round to microseconds; NaN, which no output format knows, becomes None."""
    return None if math.isnan(seconds) else round(1000 * seconds, 3)


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
        "extrapolatedPrompts": result.extrapolated_prompts,
    }


def _service_data(service: ServiceResult) -> dict[str, Any]:
    def milliseconds(values: Mapping[float, float]) -> dict[str, float | None]:
        return {f"p{100 * ratio:g}": _milliseconds(value) for ratio, value in values.items()}

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
                "limitMilliseconds": _milliseconds(kept.slo.limit_s),
                "attainedMilliseconds": _milliseconds(kept.value_s),
                "withinRatio": round(kept.within_ratio, 6) if service.finished else None,
                "met": _is_met(service, kept),
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
    if result.extrapolated_steps or result.extrapolated_prompts:
        steps, prompts = result.extrapolated_steps, result.extrapolated_prompts
        yield f"note: {steps} decode steps and {prompts} prompts lie beyond the tables of their profiles"


def _rows(result: Result) -> Iterator[tuple[Cell, ...]]:
    for name, service in sorted(result.services.items()):
        for kept in service.attained:
            label = f"{kept.slo.metric} p{100 * kept.slo.percentile_ratio:g}"
            limit, value = 1000 * kept.slo.limit_s, _milliseconds(kept.value_s)
            met, within = (
                "yes" if _is_met(service, kept) else "NO",
                100 * kept.within_ratio if service.finished else "-",
            )
            attained = "-" if value is None else value
            yield name, service.submitted, label, limit, attained, within, met, service.goodput_requests_per_s

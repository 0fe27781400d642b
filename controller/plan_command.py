"""``penstock plan``: decide placements from manifests, without a cluster, and print the FleetPlan."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial

from controller.arguments import positive
from controller.clusters import on_cluster
from controller.output import add_output_argument, one_object, print_output
from controller.plan_bodies import render_fleet_plan
from controller.planning import Planned, add_folder_arguments, add_trace_argument, decided, plan_folder
from controller.specs import PLAN_FEASIBLE
from controller.tables import MISSING, Cell, render_table
from solvers.baselines import BASELINES
from solvers.baselines.compare import Standing, compare
from solvers.explain.words import relief_row
from solvers.fleet import ANYWHERE, PoolKey
from solvers.plan import Plan
from solvers.planner.splits.parted import with_estimates
from solvers.problem import Problem
from solvers.sizing import most_requests_per_s, replica_capacity
from solvers.verify.bound import verify_bound

EXIT_OK, EXIT_BAD_INPUT, EXIT_SHORT = 0, 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_folder_arguments(parser)
    add_trace_argument(parser)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--baseline", choices=sorted(BASELINES), help="decide as others do, to see what that costs")
    other.add_argument("--compare", action="store_true", help="set the plan beside those of all baselines")
    other.add_argument(
        "--replay", action="store_true",
        help="let a simulation of the planned demand refute the plan, and decide again where it does",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, metavar="N",
        help="processes that share the work on fleets of more than 512 GPUs; the plan is the same (default: the cores)",
    )  # fmt: skip
    parser.add_argument("--cluster", metavar="dask[=ADDRESS]", help="share it on a Dask (or ray[=ADDRESS]) cluster")
    parser.add_argument(
        "--verify-bound", action="store_true",
        help="find the plan's bound again at the prices it shows, by other arithmetic than the planner's",
    )  # fmt: skip
    add_output_argument(parser)
    parser.epilog = (
        "Exit code: 0 all demand is met; 2 some is not, with reasons; "
        "1 bad input (the rest is planned), or a bound that was not found again."
    )


def run(args: argparse.Namespace) -> int:
    """Plan and print what can be planned; the exit code says whether that is all that was asked."""
    with on_cluster(args.cluster, args.workers) if args.cluster else nullcontext():
        planned = plan_folder(args, _decider(args))
    if args.compare:
        return _print_comparison(args.output, planned)
    planned = replace(planned, plan=with_estimates(planned.plan, planned.problem))
    body = one_object(render_fleet_plan(planned.plan, number=1))
    print_output(args.output, body, lambda: "\n\n".join(_sections(planned.plan, args.power_caps)))
    return exit_code(planned) if not args.verify_bound or _says_bound(planned) else EXIT_BAD_INPUT


def _says_bound(planned: Planned) -> bool:
    """Say on standard error whether the plan's bound was found again; False when it was not."""
    check = verify_bound(planned.plan, planned.problem, capacity_of=replica_capacity, most_of=most_requests_per_s)
    print(check or "the bound shows no prices that could be checked", file=sys.stderr)
    return check is None or check.is_supported


def _decider(args: argparse.Namespace) -> Callable[[Problem], Plan]:
    """Who decides: the planner, one that a simulation may refute, or a baseline."""
    if args.replay:
        return _replayed
    return BASELINES.get(args.baseline, partial(_as_the_policy_says, workers=args.workers))


def _as_the_policy_says(problem: Problem, *, workers: int) -> Plan:
    if problem.policy.replay:
        return _replayed(problem)
    return decided(problem, workers=workers)


def _replayed(problem: Problem) -> Plan:
    from solvers.refute import refuted_plan  # the simulation is loaded only when it is asked for

    return refuted_plan(problem).plan


def _print_comparison(output: str, planned: Planned) -> int:
    plans = {"ours": planned.plan, **{name: decide(planned.problem) for name, decide in BASELINES.items()}}
    standings = compare(planned.problem, plans)
    data = {"plans": [asdict(standing) for standing in standings]}
    print_output(output, json.loads(json.dumps(data)), lambda: comparison_table(standings))
    return exit_code(planned)


def comparison_table(standings: Sequence[Standing]) -> str:
    """One row for each plan: cost, its ratio to the first, how short every tier is, how the first stands to it.

    Shortage is as the policy weighs it: a request of a large model counts for more than one of a small.
    """
    tiers = list(standings[0].shortage_ratio)
    headers = ("PLAN", "USD/H", "RATIO", *(f"{tier.upper()} SHORT %" for tier in tiers), "OURS IS")
    return render_table(headers, (_standing_row(standing, tiers, standings[0]) for standing in standings))


def _standing_row(standing: Standing, tiers: Sequence[str], first: Standing) -> tuple[Cell, ...]:
    short = (100.0 * standing.shortage_ratio[tier] for tier in tiers)
    verdict = MISSING if standing is first else str(standing.verdict)
    return standing.name, standing.cost_usd_per_hour, standing.cost_ratio, *short, verdict


def exit_code(planned: Planned) -> int:
    """Tell an object that is wrong from a demand or an SLO that nothing can meet, and both from a plan that does."""
    conditions = {fault.condition for fault in planned.observation.faults}
    if conditions - {PLAN_FEASIBLE}:
        return EXIT_BAD_INPUT
    return EXIT_SHORT if planned.plan.is_short or conditions else EXIT_OK


def _sections(plan: Plan, with_caps: bool) -> Iterator[str]:
    yield _headline(plan)
    caps = ("CAP W",) if with_caps else ()
    sizes = ("PROMPTS",) if plan.parts else ()
    nodes = ("NODES EACH",) if _has_groups(plan) else ()
    header = ("SERVICE", "ROLE", "GPU CLASS", "CONFIG", *sizes, "REPLICAS", *nodes, *caps, "WHERE", "USD/H")
    pools = list(_pool_rows(plan, with_caps))
    yield render_table(header, pools) if pools else "no replicas" if plan.services else "no service is planned"
    if plan.services:
        yield render_table(("SERVICE", "TIER", "DEMAND/S", "SERVED/S"), _service_rows(plan))
    if plan.domains:
        yield render_table(("POWER", "BUDGET W", "RESERVED W", "PLANNED W", "USD/H PER KW MORE"), _domain_rows(plan))
    if plan.links:
        yield render_table(("KV LINK", "GB/S", "OUT GB/S", "IN GB/S", "USD/H"), _link_rows(plan))
    if plan.splits:
        yield "\n".join(split_lines(plan))
    short = [f"short: {s.service}: {reason}" for s in plan.services for reason in s.short_because]
    notes = [f"note: {note}" for note in plan.report.notes]
    if short or notes:
        yield "\n".join([*short, *_relief_lines(plan), *notes])


def _link_rows(plan: Plan) -> Iterator[tuple[Cell, ...]]:
    for row in plan.links:
        rates = (row.bytes_per_s, row.outgoing_bytes_per_s, row.incoming_bytes_per_s)
        yield row.link, *(rate / 1e9 for rate in rates), row.usd_per_hour


def _relief_lines(plan: Plan) -> Iterator[str]:
    """What together would be enough, the dearest first."""
    for row in plan.relief:
        yield f"relief: {relief_row(row)}"


def split_lines(plan: Plan) -> Iterator[str]:
    """What splitting by size is worth; services that it would not help are left out."""
    for row in plan.splits:
        about, ranges = "about " * row.is_estimate, " and ".join(row.sizes)
        if not row.sizes:
            yield f"split: {row.service}: no split of its sizes saves anything"
        elif row.is_declared:
            yield f"split: {row.service}: {ranges}; not splitting would cost {about}{row.usd_per_hour:.2f} USD/h more"
        else:
            yield (
                f"split: {row.service}: routing.splitsBySize would save about {row.usd_per_hour:.2f} USD/h "
                f"(estimate, {ranges})"
            )


def _headline(plan: Plan) -> str:
    report = plan.report
    return (
        f"{report.status}: {report.cost_usd_per_hour:.2f} USD/h, objective {report.objective_usd_per_hour:.2f}, "
        f"bound {report.bound_usd_per_hour:.2f}, gap {100 * report.gap_ratio:.2f} %"
    )


def _has_groups(plan: Plan) -> bool:
    """True when some replica stands on several nodes."""
    return any(pool.nodes_per_replica > 1 for pool in plan.pools)


def _pool_rows(plan: Plan, with_caps: bool) -> Iterator[tuple[Cell, ...]]:
    for pool in plan.pools:
        if pool.replicas:
            key = pool.pool
            caps = (round(pool.cap_watts),) if with_caps else ()
            sizes = (key.sizes or "all",) if plan.parts else ()
            what = key.service, str(key.role), key.gpu_class, key.config.label, *sizes, pool.replicas
            nodes = (pool.nodes_per_replica,) if _has_groups(plan) else ()
            yield *what, *nodes, *caps, _where(plan, key), pool.cost_usd_per_hour


def _where(plan: Plan, pool: PoolKey) -> str:
    rows = [row for row in plan.placements if row.pool == pool and row.replicas]
    return ", ".join("any node" if row.location == ANYWHERE else f"{row.location} ×{row.replicas}" for row in rows)


def _service_rows(plan: Plan) -> Iterator[tuple[Cell, ...]]:
    for service in plan.services:
        yield service.service, service.tier, service.demand_requests_per_s, service.served_requests_per_s


def _domain_rows(plan: Plan) -> Iterator[tuple[Cell, ...]]:
    for domain in plan.domains:
        watts = (round(w) for w in (domain.budget_watts, domain.reserved_watts, domain.planned_watts))
        yield domain.domain, *watts, domain.price_usd_per_kilowatt_hour

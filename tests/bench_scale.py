"""Plan synthetic fleets of 100 to 12,500 nodes and say how long it took, what it costs, and what is proved.

Run: ``python -m tests.bench_scale [--sizes S,M,L] [--seeds 3] [--overload] [--warm] [--unlimited] [-o json]``; see
``--help``.
The baseline, planned in the same process, fills service by service in the order of their tiers with what is cheapest
per request (``Desk.repaired``); *x cheaper* is its objective over the plan's. Seconds are this machine's: *cpu* counts
this process alone, and is what to judge by where others share the machine. Warm plans start from the running plan with
every demand shifted by a normal factor of spread ``--sigma``, with ``minSavingRatio`` 0: what is kept for calm is
measured elsewhere. They know what sizing said for the cold plan, as an operator's process does (``Sizings``), and the
modeller is loaded before the clock starts, as it is in an operator's process once that has planned. *family_mb* is the
most that this process, its workers and HiGHS's processes held at once while planning (pages they share count for each),
*rss_mb* the most that this process held so far, checks included.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from solvers.deadline import Clock
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.sizings import Sizings
from solvers.problem import Policy, Problem
from solvers.sizing import most_requests_per_s, replica_capacity
from solvers.verify import verify
from solvers.verify.bound import verify_bound
from tests import synthetic
from tests.printed_rows import add_output, written
from tests.processes import peak_of_family

OVERLOADS = (1.3, 2.0)  # times the usual load
LIMITS_S = {"XS": 5.0, "S": 5.0, "M": 8.0, "L": 20.0}
Row = dict[str, object]


def cases(args: argparse.Namespace) -> Iterator[tuple[str, int, float]]:
    """(size, seed, load), smallest first."""
    loads = [args.load, *(args.load * times for times in OVERLOADS)] if args.overload else [args.load]
    for size in args.sizes:
        for load in loads:
            for seed in range(1, args.seeds + 1):
                yield size, seed, load


def measured(
    name: str,
    problem: Problem,
    workers: int,
    previous: Plan | None = None,
    sizings: Sizings | None = None,
    clock: Clock | None = time.perf_counter,
) -> tuple[Plan, Row]:
    """Plan once; times, evidence, and the check's own time."""
    first: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    with peak_of_family() as peak:
        plan = make_plan(
            problem,
            previous=previous,
            workers=workers,
            on_plan=lambda _: first.append(time.perf_counter() - wall),
            sizings=sizings,
            clock=clock,
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    began = time.process_time()
    faults = verify(plan, problem)
    checked = time.process_time() - began
    began = time.process_time()
    bound = verify_bound(plan, problem, capacity_of=replica_capacity, most_of=most_requests_per_s)
    bound_s = time.process_time() - began
    report = plan.report
    return plan, {
        "plan": name,
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "first_s": round(first[0], 2) if first else round(wall, 2),
        "objective": round(report.objective_usd_per_hour, 2),
        "bound": round(report.bound_usd_per_hour, 2),
        "gap": f"{report.gap_ratio:.2%}",
        "penalties": round(sum(row.penalty_usd_per_hour for row in plan.services), 2),
        "unserved": unserved(plan),
        "verify_s": round(checked, 2),
        "faults": len(faults),
        "bound_s": round(bound_s, 2),
        "bound is": "no prices" if bound is None else str(bound).partition(":")[0],
        "supported": "-" if bound is None else f"{math.floor(1000.0 * bound.supported_ratio) / 10.0:.1f} %",
        "family_mb": round(peak.resident_bytes / 1e6),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def unserved(plan: Plan) -> str:
    """Share of the demand that is unserved, by tier, the highest first."""
    asked: dict[str, float] = {}
    lost: dict[str, float] = {}
    for row in plan.services:
        asked[row.tier] = asked.get(row.tier, 0.0) + row.demand_requests_per_s
        lost[row.tier] = lost.get(row.tier, 0.0) + row.unserved_requests_per_s
    return "/".join(f"{lost[tier] / asked[tier]:.1%}" for tier in synthetic.TIERS if asked.get(tier))


def rows(args: argparse.Namespace) -> Iterator[Row]:
    clock = None if args.unlimited else time.perf_counter
    for size, seed, load in cases(args):
        policy = Policy(time_limit_s=LIMITS_S[size], min_saving_ratio=0.0)
        problem = synthetic.make_problem(synthetic.SIZES[size], seed, load=load, policy=policy)
        name = f"{size} seed {seed} load {load:g}"
        print(f"planning {name}: {len(problem.nodes)} nodes, {len(problem.services)} services", file=sys.stderr)
        sizings = (
            Sizings()
        )  # empty for the cold plan; the warm one begins with what that asked for, as an operator does
        plan, row = measured(name, problem, args.workers, sizings=sizings, clock=clock)
        if args.baseline:
            row["x cheaper"] = round(greedy_usd_per_hour(problem) / plan.report.objective_usd_per_hour, 3)
        yield row
        if args.warm:
            moved = synthetic.shifted(problem, plan, args.sigma, seed)
            yield measured(f"{name}, shifted", moved, args.workers, plan, sizings, clock)[1]


def greedy_usd_per_hour(problem: Problem) -> float:
    return Desk.of(replace(problem, running={}), replica_capacity).repaired({}).objective_usd_per_hour


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=synthetic.sizes, default="S,M,L", help="of " + ", ".join(synthetic.SIZES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--load", type=float, default=synthetic.LOAD)
    parser.add_argument("--overload", action="store_true", help="1.3 and 2 times the load too")
    parser.add_argument("--warm", action="store_true", help="plan again from what runs, with shifted demand")
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--unlimited", action="store_true", help="go on past the size's time limit, while it helps")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--baseline", action="store_true", help="plan with the greedy too (slow where services are many)"
    )
    add_output(parser)
    args = parser.parse_args()
    print(written(list(rows(args)), args.output))


if __name__ == "__main__":
    main()

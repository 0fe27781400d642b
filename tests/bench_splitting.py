"""Plan synthetic fleets whose routers split by size beside the same fleets whose do not: price, parts, time.

Run: ``python -m tests.bench_splitting [--sizes XS,S] [--seeds 3] [--workers 1] [-o json]``. The baseline, planned in
the same process, is the plan without splits; *x dearer* is its objective over that with splits, never below 1 where
both serve all. Seconds are processor seconds of this process.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify
from tests import synthetic
from tests.printed_rows import add_output, written

Row = dict[str, str | int | float]


def splitting(problem: Problem) -> Problem:
    """Let every router split."""
    return replace(problem, services=tuple(replace(service, splits_by_size=True) for service in problem.services))


def timed(problem: Problem, workers: int) -> tuple[Plan, float]:
    began = time.process_time()
    plan = make_plan(problem, workers=workers)
    return plan, time.process_time() - began


def compared(size: str, seed: int, workers: int) -> Row:
    """Plan one fleet both ways."""
    problem = synthetic.make_problem(synthetic.SIZES[size], seed)
    whole, whole_s = timed(problem, workers)
    split, split_s = timed(splitting(problem), workers)
    served = [sum(row.served_requests_per_s for row in plan.services) for plan in (whole, split)]
    return {
        "fleet": f"{size}-{seed}",
        "services": len(problem.services),
        "split": len({row.service for row in split.parts}),
        "parts": len(split.parts),
        "whole_usd": round(whole.report.objective_usd_per_hour, 2),
        "split_usd": round(split.report.objective_usd_per_hour, 2),
        "x_dearer": round(whole.report.objective_usd_per_hour / split.report.objective_usd_per_hour, 4),
        "served_ratio": round(served[1] / served[0], 4),
        "gap_ratio": round(split.report.gap_ratio, 4),
        "whole_cpu_s": round(whole_s, 2),
        "split_cpu_s": round(split_s, 2),
        "sound": not verify(split, splitting(problem), capacity_of=replica_capacity),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="XS,S", help="fleets of synthetic.SIZES, by comma")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    add_output(parser)
    args = parser.parse_args()
    rows: list[Row] = []
    for size in args.sizes.split(","):
        for seed in range(1, args.seeds + 1):
            rows.append(compared(size, seed, args.workers))
            print(f"{size}-{seed}: {rows[-1]['x_dearer']} times as dear without", file=sys.stderr)
    print(written(rows, args.output))
    return 0 if all(row["sound"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

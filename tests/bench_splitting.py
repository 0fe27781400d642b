"""Plan synthetic fleets whose routers split by size beside the same fleets whose do not: price, parts, time.

Run: ``python -m tests.bench_splitting [--sizes documents,XS,S,readers] [--seeds 3] [--workers 1] [--tiny N]``. The
baseline, planned in the same process, is the plan without splits; *x dearer* is its objective over that with splits,
never below 1 where both serve all. *rent usd* is the objective with the cut that list rents like best, or with none
where that is cheaper. *documents* is one service for which a split pays, *readers* are large fleets of such. Seconds
are processor seconds of this process. With ``--tiny N`` so many tiny fleets are held against every count of every
pool under every cut instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import replace

from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.splits.cuts import open_book
from solvers.planner.splits.splitting import split
from solvers.problem import Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify
from tests import synthetic
from tests.printed_rows import add_output, written
from tests.split_world import best_by_trying, documents, drawn_small, readers
from tests.test_against_brute_force import TOLERANCE

DOCUMENTS, READERS = "documents", "readers"
PROGRESS = 50  # fleets between two lines of progress
BAD = ("fails the check", "bound above the optimum", "dearer", "dearer, split")
Row = dict[str, str | int | float]


def plain(problem: Problem) -> Problem:
    """Let no router split."""
    return replace(problem, services=tuple(replace(service, splits_by_size=False) for service in problem.services))


def splitting(problem: Problem) -> Problem:
    """Let every router split."""
    return replace(problem, services=tuple(replace(service, splits_by_size=True) for service in problem.services))


def timed(problem: Problem, workers: int) -> tuple[Plan, float]:
    began = time.process_time()
    plan = make_plan(problem, workers=workers)
    return plan, time.process_time() - began


def whole_of(size: str, seed: int) -> Problem:
    """A fleet whose routers do not split."""
    if size == DOCUMENTS:
        return documents(splits=False)
    return plain(readers(seed) if size == READERS else synthetic.make_problem(synthetic.SIZES[size], seed))


def by_rent(problem: Problem, whole: Plan, workers: int) -> float:
    """The objective with the cut that list rents like best, or with none; USD per hour."""
    names = [service.name for service in problem.services]
    book = open_book(problem, replica_capacity, {}, names)
    weighed = replace(problem, serving_usd_per_request=book.serving_usd_per_request)
    plan = make_plan(plain(split(weighed, book.best())), workers=workers) if book.best() else whole
    return min(plan.report.objective_usd_per_hour, whole.report.objective_usd_per_hour)


def compared(size: str, seed: int, workers: int) -> Row:
    """Plan one fleet both ways."""
    problem = whole_of(size, seed)
    whole, whole_s = timed(problem, workers)
    parted, split_s = timed(splitting(problem), workers)
    served = [sum(row.served_requests_per_s for row in plan.services) for plan in (whole, parted)]
    return {
        "fleet": f"{size}-{seed}",
        "services": len(problem.services),
        "split": len({row.service for row in parted.parts}),
        "parts": len(parted.parts),
        "whole_usd": round(whole.report.objective_usd_per_hour, 2),
        "split_usd": round(parted.report.objective_usd_per_hour, 2),
        "rent_usd": round(by_rent(splitting(problem), whole, workers), 2),
        "x_dearer": round(whole.report.objective_usd_per_hour / parted.report.objective_usd_per_hour, 4),
        "served_ratio": round(served[1] / served[0], 4),
        "gap_ratio": round(parted.report.gap_ratio, 4),
        "whole_cpu_s": round(whole_s, 2),
        "split_cpu_s": round(split_s, 2),
        "sound": not verify(parted, splitting(problem), capacity_of=replica_capacity),
    }


def judged(seed: int) -> str:
    """How the plan of a tiny fleet stands to the best of all counts under every cut."""
    problem, sized = drawn_small(seed)
    plan = make_plan(problem, capacity_of=sized.capacity_of)
    by_cut, found = best_by_trying(problem, sized), plan.report.objective_usd_per_hour
    best, margin = min(by_cut), TOLERANCE * abs(min(by_cut))
    if verify(plan, problem, capacity_of=sized.capacity_of) or found < best - margin:
        return "fails the check"
    if not plan.is_short and plan.report.bound_usd_per_hour > best + margin:
        return "bound above the optimum"
    split = ", split" if plan.parts else ""
    if found <= best + margin:
        return "least objective" + split
    return ("short, dearer" if plan.is_short else "keeps what runs" if problem.running else "dearer") + split


def tiny(count: int) -> list[Row]:
    """How many tiny fleets there are of each verdict."""
    verdicts: Counter[str] = Counter()
    for seed in range(count):
        verdicts[judged(seed)] += 1
        if seed % PROGRESS == PROGRESS - 1:
            print(f"[{seed + 1}/{count}] {dict(verdicts)}", file=sys.stderr)
    return [{"plans": verdict, "fleets": fleets} for verdict, fleets in sorted(verdicts.items())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes",
        default=f"{DOCUMENTS},XS,S,{READERS}",
        help=f"by comma, of synthetic.SIZES, {DOCUMENTS} and {READERS}",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tiny", type=int, default=0, metavar="N", help="hold so many tiny fleets against everything")
    add_output(parser)
    args = parser.parse_args()
    if args.tiny:
        print(written(judgements := tiny(args.tiny), args.output))
        return int(any(row["plans"] in BAD for row in judgements))
    rows: list[Row] = []
    for size in args.sizes.split(","):
        for seed in range(1, 1 + (1 if size == DOCUMENTS else args.seeds)):
            rows.append(compared(size, seed, args.workers))
            print(f"{size}-{seed}: {rows[-1]['x_dearer']} times as dear without", file=sys.stderr)
    print(written(rows, args.output))
    return 0 if all(row["sound"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Hold the planner against every count of every pool on random tiny fleets: ``make bench-brute-force``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter

from controller.tables import render_table
from solvers.plan import Plan
from solvers.planner import desk_for, make_plan
from solvers.planner.pools.tally import SAME_SHORTAGE
from solvers.verify import verify
from tests.test_against_brute_force import TOLERANCE, Tiny, best_counts, drawn

PROGRESS = 100  # fleets between two lines of progress


def judge(case: Tiny, plan: Plan) -> str:
    """Say how a plan stands to the best of all counts."""
    best, counts = best_counts(case)
    found, notes = plan.report.objective_usd_per_hour, plan.report.notes
    if verify(plan, case.problem):
        return "fails the check"
    if plan.report.bound_usd_per_hour > best * (1.0 + TOLERANCE) and not plan.is_short:
        return "bound above the optimum"
    if abs(found - best) <= TOLERANCE * abs(best):
        return "optimal cost"
    if found > best and any("lower tier gave way" in note for note in notes):
        return "dearer by its weights, to keep tiers in order"
    if best < found <= best * (1.0 + 2.0 * SAME_SHORTAGE) and plan.is_short:
        return "as short as the best, kept what ran"
    desk = desk_for(case.problem, case.capacity_of)
    planned = {(row.pool, row.location): row.replicas for row in plan.placements}
    if desk.worth(planned).is_clearly_less_short_than(desk.worth(counts)):
        return "dearer by its weights, to serve what they would shed"
    return "another cost"


def main() -> None:
    """Draw, plan, try everything, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleets", type=int, default=2000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args()
    verdicts: Counter[str] = Counter()
    seconds = {"planning": 0.0, "trying everything": 0.0}
    for number, (seed, case) in enumerate(drawn(args.first_seed, args.fleets), start=1):
        began_s = time.process_time()
        plan = make_plan(case.problem, capacity_of=case.capacity_of)
        planned_s = time.process_time()
        verdict = judge(case, plan)
        seconds["planning"] += planned_s - began_s
        seconds["trying everything"] += time.process_time() - planned_s
        verdicts[verdict] += 1
        if verdict in ("fails the check", "bound above the optimum", "another cost"):
            print(f"seed {seed}: {verdict}", file=sys.stderr)
        if number % PROGRESS == 0:
            print(f"[{number}/{args.fleets}] {dict(verdicts)}", file=sys.stderr)
    ratio = seconds["trying everything"] / max(seconds["planning"], 1e-9)
    if args.output == "json":
        print(json.dumps({"fleets": args.fleets, "verdicts": dict(sorted(verdicts.items())), "seconds": dict(seconds)}))
        return
    print(render_table(("PLANS", "FLEETS"), [(verdict, count) for verdict, count in sorted(verdicts.items())]))
    print(f"\nprocessor time of trying everything over planning: {ratio:.2f}")


if __name__ == "__main__":
    main()

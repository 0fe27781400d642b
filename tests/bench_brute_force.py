"""Hold the planner against every count of every pool on random tiny fleets: ``make bench-brute-force``.

``--mixed`` draws fleets with rules of many families at once (links, KV groups, pins, quotas, spot nodes, spread, CPUs,
what runs, power caps, splits by size and more), ``--families`` all of those that are named. There an oracle of its own
(``tests/brute_oracle.py``) says what there is room for and what counts are worth, tries all of them at all caps under
all cuts, and judges the plan, its bound and the check of its bound. With ``--wide`` the fleets take the road of large
ones, whose plans may be dearer, but never their bounds. ``--counts`` holds the planner's room and worth, and the
check's, to the oracle's for so many counts drawn at random in each fleet.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter

import numpy as np

from controller.tables import render_table
from solvers.plan import Plan
from solvers.planner import desk_for, make_plan
from solvers.planner.pools.crew import WIDE_GPUS
from solvers.planner.pools.tally import SAME_SHORTAGE
from solvers.verify import verify
from tests import brute_judge, brute_mixed
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


def mixed(args: argparse.Namespace) -> int:
    """Judge fleets under many rules; 1 where anything is a fault."""
    verdicts: Counter[str] = Counter()
    families: Counter[str] = Counter()
    for number, (seed, case) in enumerate(brute_judge.drawn(args.first_seed, args.fleets, args.families), start=1):
        said = [brute_judge.judged(case, 0 if args.wide else WIDE_GPUS)]
        said += brute_judge.disagreements(case, np.random.default_rng(seed), args.counts) if args.counts else []
        for words in said:
            verdict = words.partition(":")[0]
            verdicts[verdict] += 1
            if verdict in brute_judge.FAULTS:
                print(f"seed {seed} ({', '.join(case.families)}): {words}", file=sys.stderr)
        families.update(case.families)
        if number % PROGRESS == 0:
            print(f"[{number}/{args.fleets}] {dict(verdicts)}", file=sys.stderr)
    if args.output == "json":
        print(
            json.dumps({"fleets": args.fleets, "verdicts": dict(verdicts), "families": dict(families)}, sort_keys=True)
        )
    else:
        print(render_table(("PLANS", "FLEETS"), sorted(verdicts.items())))
        print()
        print(render_table(("FAMILY", "FLEETS"), sorted(families.items())))
    return int(any(verdict in brute_judge.FAULTS for verdict in verdicts))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleets", type=int, default=2000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--mixed", action="store_true", help="rules of all families at random")
    names = ", ".join(brute_mixed.FAMILIES)
    parser.add_argument("--families", type=_families, default=(), metavar="A,B", help=f"all of these instead: {names}")
    parser.add_argument("--wide", action="store_true", help="plan mixed fleets as large ones")
    parser.add_argument("--counts", type=int, default=0, metavar="N", help="counts at random for each mixed fleet")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser.parse_args()


def _families(said: str) -> tuple[str, ...]:
    names = tuple(name for name in said.split(",") if name)
    if unknown := sorted(set(names) - set(brute_mixed.FAMILIES)):
        raise argparse.ArgumentTypeError(f"no such family: {', '.join(unknown)}")
    return names


def main() -> None:
    """Draw, plan, try everything, count."""
    args = _arguments()
    if args.mixed or args.families:
        raise SystemExit(mixed(args))
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

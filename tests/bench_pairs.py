"""Plan large fleets where one service in three pairs prefill and decode by place: gap and time beside the others.

Run: ``python -m tests.bench_pairs [--sizes S,M] [--seeds 1] [--worlds rooms,racks] [--workers 1] [-o json]``.
*free* is the baseline: the same fleet and services, whose keys and values may go anywhere at no cost. *x free* is what
a plan costs over that. *rooms* and *racks*: keys and values may not leave one. *fabrics*: pairs inside one GPU class
only. *bounded* and *priced*: links between four rooms that carry little, or cost by the byte. *bound is* what the check
finds of the bound in *bound_s* seconds of processor, *supported* how much of it; *rss_mb* is the most memory so far.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from solvers.problem import Policy
from tests import synthetic
from tests.bench_scale import LIMITS_S, Row, measured
from tests.pair_world import WORLDS
from tests.printed_rows import add_output, written

PLANNED = ("plan", "wall_s", "cpu_s", "objective", "bound", "gap", "penalties", "unserved", "faults")
CHECKED = ("bound is", "supported", "bound_s", "rss_mb")


def rows(args: argparse.Namespace) -> Iterator[Row]:
    for size in args.sizes:
        for seed in range(1, args.seeds + 1):
            policy = Policy(time_limit_s=args.patience * LIMITS_S[size], min_saving_ratio=0.0)
            problem = synthetic.make_problem(synthetic.SIZES[size], seed, load=args.load, policy=policy)
            free = 0.0
            for world in args.worlds.split(","):
                print(f"planning {size} seed {seed}, {world}", file=sys.stderr)
                plan, row = measured(f"{size} seed {seed} {world}", WORLDS[world](problem), args.workers)
                free = plan.report.objective_usd_per_hour if world == "free" else free
                shown = {key: row[key] for key in (*PLANNED, *CHECKED)}
                print(f"gap {row['gap']}, {row['cpu_s']} s of CPU", file=sys.stderr)
                yield shown | ({"x free": round(plan.report.objective_usd_per_hour / free, 3)} if free else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=synthetic.sizes, default="S,M", help="of " + ", ".join(synthetic.SIZES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--load", type=float, default=synthetic.LOAD)
    parser.add_argument("--worlds", default=",".join(WORLDS), help="of " + ", ".join(WORLDS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--patience", type=float, default=10.0, help="times the usual limit of time")
    add_output(parser)
    args = parser.parse_args()
    print(written(list(rows(args)), args.output))


if __name__ == "__main__":
    main()

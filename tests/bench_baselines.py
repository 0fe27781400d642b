"""Our plans and those of the baselines side by side: ``python -m tests.bench_baselines [--sizes S] [--seeds 0 1 2]``.

Synthetic fleets (``tests/synthetic.py``) by size and seed, each in four cases: 100, 90 and 80 % of its power budgets,
and with most nodes of its most used GPU class gone. Starting costs nothing here, so cost is what runs. *Ours* says how
our plan stands to the row: by what is short from the top tier down, then by cost. Shortages of a tier within a fifth of
a percent of its demand are one; costs within the gap that the policy leaves open are ``even``. Shortage is as the
policy weighs it, missing floors included: a request of a large model counts for more than one of a small (JSON has the
plain share of requests too). The exit code is 1 when any row says that ours is worse.

A case takes some ten seconds of processor at S and half a minute to two at M (``--sizes M --seeds 0``: three minutes in
all, progress on stderr); ``--cases`` and ``--baselines`` take fewer, and L is for those who can wait.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from controller.tables import Cell, render_table
from solvers.baselines import BASELINES
from solvers.baselines.compare import WORSE, Standing, Verdict, compare
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Policy, Problem
from tests import synthetic

POWER = {"100": 1.0, "90": 0.9, "80": 0.8}
SCARCE = "scarce"
CASES = {**{name: f"power {name} %" for name in POWER}, SCARCE: "one class scarce"}
SCARCE_SHARE = 0.25  # of the most used class's nodes stay


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One plan of one case."""

    size: str
    seed: int
    case: str
    cpu_s: float
    gap_ratio: float
    standing: Standing


def with_power(problem: Problem, ratio: float) -> Problem:
    """Give every domain so much of its budget."""
    domains = {n: replace(d, budget_watts=ratio * d.budget_watts) for n, d in problem.domains.items()}
    return replace(problem, domains=domains)


def with_scarce_class(problem: Problem, plan: Plan) -> Problem:
    """Take away most nodes of the class that the plan uses most, every few in order of name."""
    used: dict[str, int] = {}
    for row in plan.placements:
        used[row.pool.gpu_class] = used.get(row.pool.gpu_class, 0) + row.replicas * row.pool.config.gpus
    scarce = max(sorted(used), key=lambda g: used[g])
    mine = sorted(node.name for node in problem.nodes if node.gpu_class == scarce)
    kept = set(mine[:: round(1.0 / SCARCE_SHARE)])
    nodes = tuple(n for n in problem.nodes if n.gpu_class != scarce or n.name in kept)
    return replace(problem, nodes=nodes)


def changed(problem: Problem, case: str) -> Problem:
    """The fleet of a case."""
    if case in POWER:
        return with_power(problem, POWER[case])
    return with_scarce_class(problem, BASELINES["greedy"](problem))


@dataclass(slots=True)
class Progress:
    """Says on stderr which plan is made now, of how many, and what the ones before took."""

    plans: int
    made: int = 0

    def say(self, what: str) -> None:
        self.made += 1
        print(f"{self.made}/{self.plans} {what}; {time.process_time():.0f} s of processor so far", file=sys.stderr)


def measure(args: argparse.Namespace, size: str, seed: int, progress: Progress) -> Iterator[Row]:
    """Solve every case with ours and with the baselines."""
    policy = Policy(start_cost_hours=0.0, time_limit_s=args.limit, power_caps=args.caps)
    base = synthetic.make_problem(synthetic.SIZES[size], seed, load=args.load, policy=policy)
    for case, problem in ((CASES[name], changed(base, name)) for name in args.cases):
        plans, spent = {}, {}
        for name in ("ours", *args.baselines):
            progress.say(f"{size}, seed {seed}, {case}: {name}")
            decide: Callable[[Problem], Plan] = BASELINES.get(name, make_plan)
            start = time.process_time()
            plans[name] = decide(problem)
            spent[name] = time.process_time() - start
        for standing in compare(problem, plans):
            gap = plans[standing.name].report.gap_ratio
            yield Row(size=size, seed=seed, case=case, cpu_s=spent[standing.name], gap_ratio=gap, standing=standing)


def table(rows: list[Row]) -> str:
    tiers = list(dict.fromkeys(tier for row in rows for tier in row.standing.shortage_ratio))
    headers = ("SIZE", "SEED", "CASE", "PLAN", "USD/H", "RATIO", *(f"{tier} % SHORT" for tier in tiers))
    return render_table((*headers, "OURS IS", "GAP %", "CPU S"), (cells(row, tiers) for row in rows))


def cells(row: Row, tiers: list[str]) -> tuple[Cell, ...]:
    s = row.standing
    short = (100.0 * s.shortage_ratio.get(tier, 0.0) for tier in tiers)
    is_ours = s.name == "ours"
    verdict, gap = ("-", 100.0 * row.gap_ratio) if is_ours else (str(s.verdict), "-")
    return row.size, row.seed, row.case, s.name, s.cost_usd_per_hour, s.cost_ratio, *short, verdict, gap, row.cpu_s


def summary(rows: list[Row]) -> dict[str, Any]:
    """Count how often ours is worse, and say which cases."""
    others = [row for row in rows if row.standing.name != "ours"]
    worse = [label(r) for r in others if r.standing.verdict in WORSE]
    hardly = [label(r) for r in others if r.standing.strict_verdict is Verdict.MORE_SHORT and label(r) not in worse]
    return {
        "compared": len(others),
        "worse": worse,
        "hardly_more_short": hardly,
        "never_worse": not worse,
        "violations": sum(row.standing.violations for row in rows),
    }


def label(row: Row) -> str:
    return f"{row.size}/{row.seed}/{row.case}/{row.standing.name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(synthetic.SIZES), default=["S"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), default=list(CASES), help="percent of power, or scarce"
    )
    parser.add_argument("--baselines", nargs="+", choices=list(BASELINES), default=list(BASELINES))
    parser.add_argument("--load", type=float, default=synthetic.LOAD, help="demand, see tests/synthetic.py")
    parser.add_argument("--caps", action="store_true", help="let ours choose power caps")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds that our plan may take")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args()
    runs = list(product(args.sizes, args.seeds))
    progress = Progress(len(runs) * len(args.cases) * (1 + len(args.baselines)))
    rows = [row for size, seed in runs for row in measure(args, size, seed, progress)]
    told = summary(rows)
    if args.output == "json":
        print(json.dumps({"rows": [asdict(row) for row in rows], **told}, indent=2))
    else:
        print(table(rows))
        print(f"ours against {told['compared']} plans: {'never worse' if told['never_worse'] else 'worse'}")
        for case in told["worse"]:
            print(f"  worse: {case}")
        for case in told["hardly_more_short"]:
            print(f"  more short, too little to count: {case}")
    return 0 if told["never_worse"] and not told["violations"] else 1


if __name__ == "__main__":
    sys.exit(main())

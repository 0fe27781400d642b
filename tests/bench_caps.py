"""What power caps bring where watts are short: plans with a cap for every pool, without caps, and with one for all.

Run: ``python -m tests.bench_caps [--sizes XS] [--seeds 0 1 2] [--load 0.8] [--power 1.0 0.9 0.8] [-o table|json]``.
Drawn fleets (``tests/synthetic.py``) whose budgets are scaled to each of ``--power``. ``uniform`` caps every GPU of the
fleet at that part of its highest cap and plans jointly under it, which is kinder than clamping each deployment by
itself. Shares unserved are by tier, of demand, top tier first. Every plan is verified; the exit code is 1 when caps
ever leave more short than no caps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from solvers.engine import EngineProfile
from solvers.engine.curves import capped
from solvers.errors import OutOfRange
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Policy, Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify
from tests import synthetic

CLEAR = 2e-3  # of a tier's demand: what counts as served alike, as in the planner


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One plan. ``unserved_ratio`` is by tier, the most important first."""

    size: str
    seed: int
    power: float
    plan: str
    usd_per_hour: float
    unserved_ratio: tuple[float, ...]
    capped_gpus_ratio: float
    gap_ratio: float
    cpu_s: float
    violations: int


def with_caps(problem: Problem, power: float) -> Problem:
    del power
    return replace(problem, policy=replace(problem.policy, power_caps=True))


def without_caps(problem: Problem, power: float) -> Problem:
    del power
    return problem


def uniform(problem: Problem, power: float) -> Problem:
    """Every GPU capped at the same part of its highest cap; profiles that do not know the speed there fall out."""
    classes = {name: replace(c, max_cap_watts=power * c.max_cap_watts) for name, c in problem.gpu_classes.items()}
    slowed = {key: _slowed(p, classes[key.gpu_class].max_cap_watts) for key, p in problem.profiles.items()}
    return replace(problem, gpu_classes=classes, profiles={key: p for key, p in slowed.items() if p is not None})


def _slowed(profile: EngineProfile, cap_watts: float) -> EngineProfile | None:
    try:
        return capped(profile, cap_watts)
    except OutOfRange:
        return None


PLANS = {"caps": with_caps, "no caps": without_caps, "uniform": uniform}


def measure(size: str, seed: int, power: float, load: float, limit_s: float) -> Iterator[Row]:
    policy = Policy(start_cost_hours=0.0, time_limit_s=limit_s)
    drawn = synthetic.make_problem(synthetic.SIZES[size], seed, load=load, policy=policy)
    domains = {name: replace(d, budget_watts=power * d.budget_watts) for name, d in drawn.domains.items()}
    for name, change in PLANS.items():
        print(f"{size}, seed {seed}, power {power:.0%}: {name}", file=sys.stderr, flush=True)
        problem = change(replace(drawn, domains=domains), power)
        start = time.process_time()
        plan = make_plan(problem)
        spent = time.process_time() - start
        yield _row(size, seed, power, name, plan, problem, spent)


def _row(size: str, seed: int, power: float, name: str, plan: Plan, problem: Problem, cpu_s: float) -> Row:
    highest = {g: kind.max_cap_watts for g, kind in problem.gpu_classes.items()}
    gpus = sum(pool.replicas * pool.pool.config.gpus for pool in plan.pools)
    below = sum(
        pool.replicas * pool.pool.config.gpus for pool in plan.pools if pool.cap_watts < highest[pool.pool.gpu_class]
    )
    asked, lacking = dict.fromkeys(synthetic.TIERS, 0.0), dict.fromkeys(synthetic.TIERS, 0.0)
    for service in plan.services:
        asked[service.tier] += service.demand_requests_per_s
        lacking[service.tier] += service.unserved_requests_per_s
    return Row(
        size=size,
        seed=seed,
        power=power,
        plan=name,
        usd_per_hour=round(plan.report.cost_usd_per_hour, 2),
        unserved_ratio=tuple(round(lacking[t] / asked[t], 4) if asked[t] else 0.0 for t in synthetic.TIERS),
        capped_gpus_ratio=round(below / gpus, 3) if gpus else 0.0,
        gap_ratio=round(plan.report.gap_ratio, 4),
        cpu_s=round(cpu_s, 1),
        violations=len(verify(plan, problem, capacity_of=replica_capacity)),
    )


def is_worse(row: Row, other: Row) -> bool:
    """True when the first tier that clearly differs lacks more, or none differs and it costs more than gaps leave."""
    for mine, theirs in zip(row.unserved_ratio, other.unserved_ratio, strict=True):
        if abs(mine - theirs) > CLEAR:
            return mine > theirs
    return row.usd_per_hour > other.usd_per_hour * (1.0 + max(row.gap_ratio, 0.01)) and sum(row.unserved_ratio) == 0.0


def table(rows: list[Row]) -> str:
    head = (
        "size",
        "seed",
        "power",
        "plan",
        "usd/h",
        *(f"{t} %" for t in synthetic.TIERS),
        "capped",
        "gap %",
        "cpu s",
    )
    text = [head] + [
        (
            *(r.size, str(r.seed), f"{r.power:.0%}", r.plan, f"{r.usd_per_hour:.2f}"),
            *(f"{100 * share:.2f}" for share in r.unserved_ratio),
            *(f"{r.capped_gpus_ratio:.0%}", f"{100 * r.gap_ratio:.2f}", f"{r.cpu_s}"),
        )
        for r in rows
    ]
    width = [max(len(line[k]) for line in text) for k in range(len(head))]
    return "\n".join("  ".join(value.rjust(w) for value, w in zip(line, width, strict=True)) for line in text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(synthetic.SIZES), default=["XS"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--load", type=float, default=0.8, help="demand, see tests/synthetic.py (0.8)")
    parser.add_argument("--power", type=float, nargs="+", default=[1.0, 0.9, 0.8], help="of the drawn budgets")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds that a plan may take")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args()
    rows = [
        row
        for size in args.sizes
        for seed in args.seeds
        for power in args.power
        for row in measure(size, seed, power, args.load, args.limit)
    ]
    trios = [rows[i : i + len(PLANS)] for i in range(0, len(rows), len(PLANS))]
    worse = [
        f"{own.size}/{own.seed}/{own.power:.0%} than {o.plan}"
        for own, *others in trios
        for o in others
        if is_worse(own, o)
    ]
    print(json.dumps([asdict(row) for row in rows], indent=1) if args.output == "json" else table(rows))
    if args.output == "table":
        print("caps against the other plans: " + ("worse in " + ", ".join(worse) if worse else "never worse"))
    return 1 if any("no caps" in case for case in worse) or any(row.violations for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

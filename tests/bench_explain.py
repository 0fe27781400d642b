"""What ``solvers.explain.predict`` says of changes against deciding anew: ``python -m tests.bench_explain``.

Random small fleets (the demonstration's, at drawn demand and budgets) and larger ones, five changes each: a GPU less,
a kilowatt less, a service less, mostly where a limit binds. Each is predicted, then decided anew from the plan in
force. *Within* says whether the real change lies between what was predicted as least and most, *near* whether it is
what was expected, both to within the gap of the new decision. *Duals* is what the prices alone would have said (units
times price; the cost of a service for a service), the baseline. The exit code is 1 when a case is not within. With
``--split`` the fleets have a service that may be split by size.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from controller.tables import Cell, render_table
from solvers.explain.changes import Change, RemoveGpus, RemoveService, RemoveWatts, changed
from solvers.explain.predict import Prediction, Predictor
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.bays.grouping import Grouping
from solvers.problem import Policy, Problem
from tests import fleets, split_world, synthetic

PER_FLEET = 5
SMALL_SHARE = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One change: predicted, and real. ``gap`` and ``before`` are USD per hour too."""

    fleet: str
    change: str
    low: float
    expected: float
    high: float
    duals: float
    real: float
    gap: float
    before: float
    is_within: bool
    is_near: bool
    predict_cpu_s: float
    solve_cpu_s: float


def draw_fleet(index: int, cases: int, rng: np.random.Generator) -> tuple[str, Problem]:
    """A small fleet for the first cases, a larger one for the others; tight ones and overloaded ones among them."""
    if index < SMALL_SHARE * cases / PER_FLEET:
        scale, budget = float(rng.uniform(1.0, 7.0)), float(rng.uniform(0.45, 0.8))
        return f"small {index}", fleets.demo(scale, budget_ratio=budget)
    nodes, load, power = int(rng.integers(40, 160)), float(rng.uniform(0.3, 0.6)), float(rng.uniform(0.5, 0.7))
    size = synthetic.Size(nodes=nodes, services=nodes // 12, rows=4, designs=4)
    return f"{nodes} nodes", synthetic.make_problem(size, index, load=load, power_ratio=power)


def draw_split(index: int, rng: np.random.Generator) -> tuple[str, Problem]:
    """A service that may be split by size, on more or less of cheap and of fast GPUs, and not always the watts."""
    problem = split_world.documents(float(rng.uniform(20.0, 90.0)), policy=Policy())
    fast, cheap = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    domains = {name: replace(d, budget_watts=float(rng.uniform(4e3, 4e4))) for name, d in problem.domains.items()}
    nodes = (*problem.nodes[:fast], *problem.nodes[6 : 6 + cheap])
    return f"split {index}", replace(problem, nodes=nodes, domains=domains)


def draw_changes(predictor: Predictor, rng: np.random.Generator) -> list[Change]:
    """All that could be taken away, in drawn order, scarce things first most of the time."""
    scarce, others = list(dict.fromkeys(scarce_things(predictor))), list(dict.fromkeys(used_things(predictor)))
    rest = [change for change in others if change not in scarce]
    keys = [rng.uniform(0.0, 1.0) for _ in scarce] + [rng.uniform(0.4, 1.4) for _ in rest]
    order = np.argsort(keys)
    return [[*scarce, *rest][int(i)] for i in order[:PER_FLEET]]


def scarce_things(predictor: Predictor) -> Iterator[Change]:
    """One member of every group whose limit has a price, and every service."""
    priced = {(b.limit, b.subject.split(" x")[0]) for b in predictor.plan.bindings}
    grouping = predictor.market.cells.grouping
    for domains in grouping.domain_groups:
        if ("power", domains.label) in priced:
            yield RemoveWatts(domain=domains.domains[0])
    for bays in grouping.groups:
        if ("gpus", bays.label) in priced:
            yield RemoveGpus(gpu_class=bays.gpu_class, location=bays.bays[0].location)
    yield from (RemoveService(service=service.name) for service in predictor.problem.services)


def used_things(predictor: Predictor) -> Iterator[Change]:
    """A GPU wherever replicas run, and a kilowatt of every feed there."""
    for row in predictor.plan.placements:
        yield RemoveGpus(gpu_class=row.pool.gpu_class, location=row.location)
        key = (row.location, row.pool.gpu_class)
        node = next(n for n in predictor.problem.nodes if (n.location, n.gpu_class) == key)
        yield from (RemoveWatts(domain=domain) for domain in node.domains)


def by_duals(predictor: Predictor, change: Change) -> float:
    """What prices alone say: they hold for the next unit at best."""
    prices = {(b.limit, b.subject): b.price_usd_per_hour for b in predictor.plan.bindings}
    grouping: Grouping = predictor.market.cells.grouping
    if isinstance(change, RemoveWatts):
        labels = [group.label for group in grouping.domain_groups if change.domain in group.domains]
        return change.watts / 1000.0 * sum(prices.get(("power", label), 0.0) for label in labels)
    if isinstance(change, RemoveGpus):
        key = (change.location, change.gpu_class)
        labels = [group.label for group in grouping.groups if any(bay.key == key for bay in group.bays)]
        return change.gpus * sum(prices.get(("gpus", f"{label} x1"), 0.0) for label in labels)
    return -sum(p.cost_usd_per_hour for p in predictor.plan.pools if p.pool.service == change.service)


def measure(args: argparse.Namespace) -> Iterator[Case]:
    """Draw, predict, decide anew."""
    rng = fleets.seeded(args.seed)
    for index in range(-(-args.cases // PER_FLEET)):
        name, problem = draw_split(index, rng) if args.split else draw_fleet(index, args.cases, rng)
        policy = replace(problem.policy, relative_gap=args.gap, min_saving_ratio=0.0, start_cost_hours=0.0)
        problem = replace(problem, policy=replace(policy, time_limit_s=args.limit))
        predictor = Predictor.of(problem, make_plan(problem))
        for change in draw_changes(predictor, rng)[: args.cases - PER_FLEET * index]:
            print(f"{name}: {change}", file=sys.stderr)
            yield judged(name, predictor, change)


def judged(name: str, predictor: Predictor, change: Change) -> Case:
    """Predict a change and decide anew with it."""
    start = time.process_time()
    told = predictor.after(change)
    middle = time.process_time()
    again = make_plan(changed(predictor.problem, change), previous=predictor.plan)
    end = time.process_time()
    before = predictor.plan.report.objective_usd_per_hour
    return Case(
        fleet=name,
        change=str(change),
        low=told.low_usd_per_hour,
        expected=told.expected_usd_per_hour,
        high=told.high_usd_per_hour,
        duals=by_duals(predictor, change),
        **_verdict(told, again, before),
        before=before,
        predict_cpu_s=middle - start,
        solve_cpu_s=end - middle,
    )


def _verdict(told: Prediction, again: Plan, before: float) -> dict[str, Any]:
    value, gap_ratio = again.report.objective_usd_per_hour, again.report.gap_ratio
    real, gap = value - before, gap_ratio * abs(value) + 1e-6 * before
    return {
        "real": real,
        "gap": gap,
        "is_within": told.low_usd_per_hour - gap <= real <= told.high_usd_per_hour + gap,
        "is_near": abs(told.expected_usd_per_hour - real) <= gap,
    }


def summary(cases: list[Case]) -> dict[str, Any]:
    """Shares within and near, how wide intervals are, and how far off expected and the duals are, over the cost."""
    costs = np.array([case.before for case in cases])
    width = np.array([case.high - case.low for case in cases]) / costs
    off, off_duals = (
        np.array([abs(getattr(case, which) - case.real) for case in cases]) / costs for which in ("expected", "duals")
    )
    return {
        "cases": len(cases),
        "within": sum(case.is_within for case in cases),
        "near": sum(case.is_near for case in cases),
        "median_width_ratio": float(np.median(width)),
        "mean_error_ratio": float(off.mean()),
        "mean_error_ratio_of_duals": float(off_duals.mean()),
        "solve_over_predict_cpu": sum(c.solve_cpu_s for c in cases) / max(1e-9, sum(c.predict_cpu_s for c in cases)),
    }


def table(cases: list[Case]) -> str:
    headers = ("FLEET", "CHANGE", "LOW", "EXPECTED", "HIGH", "DUALS", "REAL", "GAP", "COST", "WITHIN", "NEAR")
    return render_table(headers, map(cells, cases))


def cells(case: Case) -> tuple[Cell, ...]:
    numbers = (case.low, case.expected, case.high, case.duals, case.real, case.gap, case.before)
    return case.fleet, case.change, *numbers, "yes" if case.is_within else "NO", "yes" if case.is_near else "no"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gap", type=float, default=0.01, help="relative gap that every decision is asked for")
    parser.add_argument("--split", action="store_true", help="draw fleets whose service may be split by size instead")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds that a decision may take")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args()
    cases = list(measure(args))
    told = summary(cases)
    if args.output == "json":
        print(json.dumps({"cases": [asdict(case) for case in cases], "summary": told}, indent=2))
    else:
        print(table(cases))
        print(f"within: {told['within']} of {told['cases']}, near: {told['near']}")
        print(f"median width {told['median_width_ratio']:.2%} of the cost")
        errors = f"{told['mean_error_ratio']:.2%} of the cost, duals alone {told['mean_error_ratio_of_duals']:.2%}"
        print(f"mean error of what was expected {errors}")
        print(f"deciding anew takes {told['solve_over_predict_cpu']:.1f} times the processor time of predicting")
    return 0 if told["within"] == told["cases"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""Plan a real fleet's node list and say how long it took, what it costs, and what is proved.

Run: ``python -m tests.bench_planner [--services 10] [--budget 0.85] [--load 0.5] [--seed 1]``. Reads
``fleets/openb_node_list_gpu_node.csv`` under ``$PENSTOCK_DATA`` or ``../shared/data``: 1,213 nodes, in racks of eight
like nodes and rows of ten racks. Budgets, services and engine curves are made here, by seed.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from solvers.engine import EngineProfile, Role
from solvers.fleet import Node
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.placing.desk import Desk
from solvers.problem import Policy, Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify
from solvers.workload import ServedModel, SizeBucket
from tests import fleets

RACK_NODES, ROW_RACKS = 8, 10
# model in the list: compute and memory speed against h100-sxm, idle W, cap W, host W, USD/h, memory GiB
MODELS = {
    "A10": (0.13, 0.18, 20.0, 150.0, 60.0, 0.60, 24),
    "G2": (0.36, 0.26, 35.0, 350.0, 80.0, 0.80, 48),
    "G3": (0.32, 0.60, 50.0, 400.0, 100.0, 1.30, 80),
    "P100": (0.02, 0.20, 25.0, 250.0, 60.0, 0.35, 16),
    "T4": (0.06, 0.09, 10.0, 70.0, 40.0, 0.25, 16),
    "V100M16": (0.12, 0.27, 30.0, 300.0, 80.0, 0.60, 16),
    "V100M32": (0.12, 0.27, 30.0, 300.0, 80.0, 0.70, 32),
}
SIZES = ((1.5, (1,)), (3.0, (1, 2)), (8.0, (1, 2, 4)), (14.0, (2, 4, 8)), (32.0, (4, 8)))
"""Models by billion parameters, with the tensor-parallel degrees that are measured."""


def data_folder() -> Path:
    return Path(os.environ.get("PENSTOCK_DATA") or Path(__file__).parents[2] / "shared" / "data")


def read_nodes(path: Path) -> tuple[Node, ...]:
    """Racks of like nodes, filled in the order of the list."""
    with path.open(newline="") as lines:
        rows = sorted(csv.DictReader(lines), key=lambda row: (row["model"], row["gpu"], row["sn"]))
    nodes, rack, inside, kind = [], -1, RACK_NODES, ("", "")
    for row in rows:
        if inside == RACK_NODES or kind != (row["model"], row["gpu"]):
            rack, inside, kind = rack + 1, 0, (row["model"], row["gpu"])
        inside += 1
        nodes.append(_node(row, rack))
    return tuple(nodes)


def _node(row: dict[str, str], rack: int) -> Node:
    gpus, location = int(row["gpu"]), f"rack-{rack:03d}"
    return Node(
        name=row["sn"],
        gpu_class=row["model"],
        location=location,
        gpus_total=gpus,
        gpus_usable=gpus,
        domains=tuple(sorted((location, f"row-{rack // ROW_RACKS:02d}", "site"))),
    )


def services(count: int, rng: np.random.Generator) -> Iterator[tuple[ServedModel, tuple[SizeBucket, ...]]]:
    for index in range(count):
        size, _ = SIZES[index % len(SIZES)]
        served = fleets.service(
            f"svc-{index}",
            f"model-{index % len(SIZES)}",
            rank=index % 3,
            ttft_s=float(rng.choice([1.0, 2.0, 4.0])) * (1.0 + size / 16.0),
            itl_s=float(rng.choice([0.05, 0.08, 0.12])) * (1.0 + size / 32.0),
        )
        prompts = int(rng.choice([256, 512, 1024]))
        yield (
            served,
            (
                SizeBucket(prompt_tokens=prompts, output_tokens=64, weight_ratio=0.7),
                SizeBucket(prompt_tokens=3 * prompts, output_tokens=192, weight_ratio=0.3),
            ),
        )


def build(args: argparse.Namespace) -> Problem:
    """Draw services, give each an equal part of what the fleet could carry for it alone, and set the budgets."""
    rng = np.random.default_rng(args.seed)
    nodes = read_nodes(data_folder() / "fleets" / "openb_node_list_gpu_node.csv")
    fleets.CLASSES = {**fleets.CLASSES, **MODELS}
    profiles = [
        profile
        for index, (size, degrees) in enumerate(SIZES)
        for kind in MODELS
        for degree in degrees
        if (profile := fleets.profile(f"model-{index}", kind, degree, size)).kv_capacity_tokens > 20_000
    ]
    drawn = list(services(args.services, rng))
    built = fleets.problem(
        [(served, 1.0) for served, _ in drawn], nodes, profiles, policy=Policy(time_limit_s=args.limit)
    )
    mixes = {served.name: mix for served, mix in drawn}
    built = replace(built, domains=fleets.budgets(built, args.budget))
    one = {name: replace(d, mix=mixes[name]) for name, d in built.demands.items()}
    alone = carried_alone(replace(built, demands=one))
    demands = {
        name: replace(d, requests_per_s=round(args.load * alone[name] / args.services * rng.uniform(0.5, 1.5), 2))
        for name, d in one.items()
    }
    return replace(built, demands=demands)


def carried_alone(problem: Problem) -> dict[str, float]:
    """A service's rate if the whole fleet were its own: each class by its best pair or mixed pool."""
    carried = {}
    for served in problem.services:
        total = 0.0
        for name in problem.gpu_classes:
            total += max(
                (_rate(problem, served, p) for p in problem.profiles.values() if p.key.gpu_class == name), default=0.0
            )
        carried[served.name] = total
    return carried


def _rate(problem: Problem, served: ServedModel, profile: EngineProfile) -> float:
    if profile.key.model != served.model:
        return 0.0
    gpus = profile.key.config.gpus
    groups = sum(n.gpus_usable // gpus for n in problem.nodes if n.gpu_class == profile.key.gpu_class)
    rates = {}
    for role in Role:
        sized = replica_capacity(profile, role, problem.demands[served.name].mix, served.slos, pool_replicas=64)
        rates[role] = getattr(sized, "requests_per_s", 0.0)
    pair = [rates[Role.PREFILL], rates[Role.DECODE]]
    return groups * max(rates[Role.MIXED], pair[0] * pair[1] / sum(pair) if min(pair) > 0.0 else 0.0)


def report(name: str, plan: Plan, problem: Problem, seconds: float) -> None:
    evidence = plan.report
    asked = sum(s.demand_requests_per_s for s in plan.services)
    short = sum(s.unserved_requests_per_s for s in plan.services) / asked
    print(
        f"{name:<28} {seconds:7.2f} s  objective {evidence.objective_usd_per_hour:12.2f}  bound "
        f"{evidence.bound_usd_per_hour:12.2f} USD/h  gap {evidence.gap_ratio:7.3%}  {evidence.status}  rounds "
        f"{evidence.rounds}  unserved {short:.2%}  GPUs {sum(p.replicas * p.pool.config.gpus for p in plan.pools)}  "
        f"violations {len(verify(plan, problem))}"
    )
    for note in evidence.notes:
        print(f"  note: {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--services", type=int, default=10)
    parser.add_argument("--budget", type=float, default=0.85, help="budget of each domain over its ceiling")
    parser.add_argument("--load", type=float, default=0.5, help="demand over what the fleet carries")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=60.0)
    problem = build(args := parser.parse_args())
    print(f"{len(problem.nodes)} nodes, {sum(n.gpus_usable for n in problem.nodes)} GPUs, {args.services} services")
    start = time.perf_counter()
    greedy = Desk.of(problem, replica_capacity).repaired({})
    seconds = time.perf_counter() - start
    print(f"{'greedy, tier by tier':<28} {seconds:7.2f} s  objective {greedy.objective_usd_per_hour:12.2f}")
    start = time.perf_counter()
    plan = make_plan(problem)
    report("first plan", plan, problem, time.perf_counter() - start)
    ratio = greedy.objective_usd_per_hour / plan.report.objective_usd_per_hour
    cost = greedy.cost_usd_per_hour / plan.report.cost_usd_per_hour
    print(f"greedy / plan {ratio:.3f} in objective, {cost:.3f} in cost")
    running = {(row.pool, row.location): row.replicas for row in plan.placements}
    settled = replace(problem, running=running)
    for name, factor in (("same demand, running", 1.0), ("demand +2 %, running", 1.02), ("demand +30 %, running", 1.3)):
        demands = {n: replace(d, requests_per_s=factor * d.requests_per_s) for n, d in problem.demands.items()}
        changed = replace(settled, demands=demands)
        start = time.perf_counter()
        again = make_plan(changed, previous=plan)
        report(name, again, changed, time.perf_counter() - start)
        print(f"  same decision: {again.decision_hash == plan.decision_hash}")


if __name__ == "__main__":
    main()

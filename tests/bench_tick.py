"""Time the tick on drawn fleets, hot, against stating and solving the same programme cold, in one process.

Run: ``python -m tests.bench_tick [--sizes S,M,L] [--seeds 0] [--ticks 15] [-o table|json]``. The plan ticked on is the
greedy one (``Desk.repaired``), so that the bench says nothing of the planner. ``cold`` is the median of a new model
per tick: cvxpy states it, a new HiGHS solves it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from solvers.capping.model import CapModel
from solvers.plan import Plan
from solvers.planner.placing.desk import Desk
from solvers.planner.search import Search
from solvers.problem import Problem
from solvers.sizing import replica_capacity
from solvers.tick import Ticker
from solvers.workload import Demand
from tests.synthetic import SIZES, make_problem, sizes

AIMS_MS = {"S": 2.0, "M": 15.0, "L": 200.0}
Change = Callable[[Problem, np.random.Generator], tuple[dict[str, float], dict[str, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fleet and one kind of change; milliseconds are medians over the ticks."""

    size: str
    seed: int
    change: str
    cells: int
    segments: int
    tick_ms: float
    tick_cpu_ms: float
    most_ms: float
    cold_ms: float
    times_faster: float
    shed_services: int


def scattered(sigma: float) -> Change:
    """Move every demand by a factor of that spread."""

    def change(problem: Problem, rng: np.random.Generator) -> tuple[dict[str, float], dict[str, float]]:
        return {n: d.requests_per_s * float(np.exp(sigma * rng.standard_normal())) for n, d in _demands(problem)}, {}

    return change


def one_surge(problem: Problem, rng: np.random.Generator) -> tuple[dict[str, float], dict[str, float]]:
    """One service asks for 30 % more."""
    demands = {n: d.requests_per_s for n, d in _demands(problem)}
    name = sorted(demands)[int(rng.integers(len(demands)))]
    return {**demands, name: 1.3 * demands[name]}, {}


def cut_site(problem: Problem, rng: np.random.Generator) -> tuple[dict[str, float], dict[str, float]]:
    """The site loses a tenth to an eighth of its budget."""
    return {n: d.requests_per_s for n, d in _demands(problem)}, {
        "site": _budget(problem, "site") * rng.uniform(0.875, 0.9)
    }


def cut_row(problem: Problem, rng: np.random.Generator) -> tuple[dict[str, float], dict[str, float]]:
    """One row loses 30 %."""
    rows = sorted(name for name in problem.domains if name.startswith("row") and "rack" not in name)
    row = rows[int(rng.integers(len(rows)))]
    return {n: d.requests_per_s for n, d in _demands(problem)}, {row: 0.7 * _budget(problem, row)}


CHANGES: dict[str, Change] = {
    "one service +30 %": one_surge,
    "all ±1 %": scattered(0.01),
    "all ±5 %": scattered(0.05),
    "all ±10 %": scattered(0.10),
    "site -10 %": cut_site,
    "a row -30 %": cut_row,
}


def _demands(problem: Problem) -> list[tuple[str, Demand]]:
    return sorted(problem.demands.items())


def _budget(problem: Problem, name: str) -> float:
    return problem.domains[name].budget_watts


def greedy_plan(problem: Problem) -> Plan:
    """A verified plan without a solve."""
    desk = Desk.of(problem, replica_capacity)
    plan, violations = Search(desk=desk).write(desk.repaired({}))
    if violations:
        raise SystemExit(f"the greedy plan fails its check: {violations[0]}")
    return plan


def measure(size: str, seed: int, ticks: int) -> Iterator[Row]:
    """Tick one fleet under every kind of change."""
    problem = make_problem(SIZES[size], seed)
    say(f"{size} seed {seed}: planning")
    ticker = Ticker(problem, greedy_plan(problem))
    model, energy = ticker._model, problem.policy.energy_usd_per_kilowatt_hour
    if model is None:
        raise SystemExit("nothing is placed")
    ticker.tick()
    for name, change in CHANGES.items():
        say(f"{size} seed {seed}: {name}")
        rng, wall, cpu, shed = np.random.default_rng(seed), [], [], 0
        for _ in range(ticks):
            demands, budgets = change(problem, rng)
            started, cpu_started = time.perf_counter(), time.process_time()
            tick = ticker.tick(demands, budgets)
            wall.append(1e3 * (time.perf_counter() - started))
            cpu.append(1e3 * (time.process_time() - cpu_started))
            shed = max(shed, len(tick.unserved_per_s))
        cold = [_cold_ms(ticker, energy, *change(problem, rng)) for _ in range(2)]
        median = statistics.median(wall)
        yield Row(
            size=size,
            seed=seed,
            change=name,
            cells=len(ticker.cells.places),
            segments=len(model.segments.cell),
            tick_ms=round(median, 2),
            tick_cpu_ms=round(statistics.median(cpu), 2),
            most_ms=round(max(wall), 2),
            cold_ms=round(min(cold), 1),
            times_faster=round(min(cold) / median, 1),
            shed_services=shed,
        )


def _cold_ms(ticker: Ticker, energy: float, demands: dict[str, float], budgets: dict[str, float]) -> float:
    asked = np.array([demands[name] for name in ticker.cells.services])
    room = ticker._room_watts(ticker._usable(budgets))
    started = time.perf_counter()
    CapModel(ticker.cells, energy).solve(asked, room)
    return 1e3 * (time.perf_counter() - started)


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def table(rows: list[Row]) -> str:
    head = ("size", "seed", "change", "cells", "segments", "tick ms", "cpu ms", "most ms", "cold ms", "times", "aim ms")
    lines = [head] + [
        (
            r.size,
            r.seed,
            r.change,
            r.cells,
            r.segments,
            r.tick_ms,
            r.tick_cpu_ms,
            r.most_ms,
            r.cold_ms,
            r.times_faster,
            AIMS_MS.get(r.size, ""),
        )
        for r in rows
    ]
    text = [[str(value) for value in line] for line in lines]
    width = [max(len(line[k]) for line in text) for k in range(len(head))]
    return "\n".join("  ".join(value.ljust(w) for value, w in zip(line, width, strict=True)).rstrip() for line in text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=sizes, default="S,M,L", help="fleets of tests.synthetic (%(default)s)")
    parser.add_argument("--seeds", default="0", help="seeds, as 0,1,2 (0)")
    parser.add_argument("--ticks", type=int, default=15, help="ticks of each kind of change (15)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args()
    rows = [
        row
        for size in args.sizes
        for seed in map(int, args.seeds.split(","))
        for row in measure(size, seed, args.ticks)
    ]
    print(table(rows) if args.output == "table" else json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()

"""Fill a real fleet with its tasks, one by one as they come, and say how much of its GPUs each policy allocates.

Run: ``python -m tests.bench_openb [--seeds 10] [--first-seed 100] [--plain 1] [-o json]``. Reads the node and pod lists
of ``fleets/`` under ``$PENSTOCK_DATA`` or ``../shared/data``. Tasks are drawn with replacement until they ask for 130 %
of the fleet's GPUs; none is refused that fits, and none leaves.

The mix that is expected is the pod list. Every policy is numpy over all hosts at once. "FGD, plain" scores every
feasible host anew for every task, as published; the other FGD rows keep scores as our policy does, and differ only in
the value: they say what comes of the book-keeping and what of the value.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controller.tables import render_table
from solvers.packing.fragmentation import Mix, Task, UsableByOne
from solvers.packing.online import Host, OnlinePlacer, Room
from tests.placement_baselines import PlainFgd, ScoredFgd, best_fit, dot_product, random_fit

NODES, PODS = "openb_node_list_gpu_node.csv", "openb_pod_list_default.csv"
DEMAND_RATIO = 1.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one policy did with one sequence of arrivals."""

    policy: str
    seed: int
    allocated_ratio: float
    fragmented_ratio: float
    refused: int
    cpu_s: float
    wall_s: float


def data_folder() -> Path:
    return Path(os.environ.get("PENSTOCK_DATA") or Path(__file__).parents[2] / "shared" / "data") / "fleets"


def read_hosts(path: Path) -> list[Host]:
    with path.open(newline="") as lines:
        return [
            Host(
                name=row["sn"],
                cpu_milli=int(row["cpu_milli"]),
                memory_mib=int(row["memory_mib"]),
                gpus=int(row["gpu"]),
                model=row["model"],
            )
            for row in csv.DictReader(lines)
        ]


def read_tasks(path: Path) -> list[Task]:
    with path.open(newline="") as lines:
        return [
            Task(
                cpu_milli=int(row["cpu_milli"]),
                memory_mib=int(row["memory_mib"]),
                gpus=int(row["num_gpu"]),
                gpu_milli=int(row["gpu_milli"]),
                models=tuple(sorted(filter(None, row["gpu_spec"].split("|")))),
            )
            for row in csv.DictReader(lines)
        ]


def arrivals(hosts: Sequence[Host], tasks: Sequence[Task], seed: int) -> list[Task]:
    """Tasks drawn with replacement until they ask for ``DEMAND_RATIO`` of the GPUs."""
    rng, wanted = np.random.default_rng(seed), DEMAND_RATIO * 1000 * sum(host.gpus for host in hosts)
    drawn: list[Task] = []
    while wanted > 0:
        drawn.append(tasks[int(rng.integers(len(tasks)))])
        wanted -= drawn[-1].total_milli
    return drawn


def simple(choose: Callable[[Room, Task], Any], room: Room) -> Callable[[int, Task], bool]:
    """Place by a rule that looks at the room alone."""

    def place(number: int, task: Task) -> bool:
        choice = choose(room, task)
        if choice is not None:
            room.take(choice[0], task, choice[1])
        return choice is not None

    return place


def placing(placer: OnlinePlacer) -> Callable[[int, Task], bool]:
    return lambda number, task: placer.place(str(number), task) is not None


def _by_lot(fgd: ScoredFgd) -> Callable[[int, Task], bool]:
    def place(number: int, task: Task) -> bool:
        choice = fgd.choose(fgd.room, task)
        if choice is not None:
            fgd.placer.place_at(str(number), task, choice[0])
        return choice is not None

    return place


def policies(
    hosts: list[Host], expected: Mapping[Task, float], seed: int, *, plain: bool
) -> Iterable[tuple[str, Room, Callable[[int, Task], bool]]]:
    """Name, room and rule of each; made when asked for, so that a run starts from an empty fleet."""
    rng = np.random.default_rng([seed, 1])
    for name, choose in (("random fit", random_fit(rng)), ("dot product", dot_product), ("best fit", best_fit)):
        room = Room(hosts)
        yield name, room, simple(choose, room)
    if plain:
        fgd = PlainFgd(hosts, expected, np.random.default_rng([seed, 2]))
        yield "FGD, plain", fgd.room, simple(fgd.choose, fgd.room)
    kept = ScoredFgd(hosts, expected, np.random.default_rng([seed, 2]))
    yield "FGD, scores kept", kept.room, _by_lot(kept)
    steepest = OnlinePlacer(hosts, expected, value=lambda mix: UsableByOne(mix=mix))
    yield "FGD, steepest, scores kept", steepest.room, placing(steepest)
    ours = OnlinePlacer(hosts, expected)
    yield "ours", ours.room, placing(ours)


def fragmented_ratio(room: Room, expected: Mapping[Task, float]) -> float:
    states = room.states(np.arange(len(room.hosts)))
    lost = states.free_milli() - UsableByOne(mix=Mix.of(expected, room.models))(states)
    return float(lost.sum()) / room.capacity_milli


def run_seed(hosts: list[Host], tasks: list[Task], seed: int, *, plain: bool) -> list[Run]:
    expected, sequence, runs = Counter(tasks), arrivals(hosts, tasks, seed), []
    for name, room, place in policies(hosts, expected, seed, plain=plain):
        cpu, wall = time.process_time(), time.perf_counter()
        refused = sum(not place(number, task) for number, task in enumerate(sequence))
        cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
        allocated = 1.0 - float(room.gaps.sum()) / room.capacity_milli
        runs.append(
            Run(
                policy=name,
                seed=seed,
                allocated_ratio=allocated,
                fragmented_ratio=fragmented_ratio(room, expected),
                refused=refused,
                cpu_s=cpu_s,
                wall_s=wall_s,
            )
        )
        print(f"seed {seed}: {name}: {allocated:.2%} in {cpu_s:.1f} s of CPU", file=sys.stderr)
    return runs


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per policy; times are medians over seeds, ratios are to plain FGD."""
    names = list(dict.fromkeys(run.policy for run in runs))
    of = {name: [run for run in runs if run.policy == name] for name in names}
    plain = [run.cpu_s for run in of.get("FGD, plain", [])]
    return [
        {
            "policy": name,
            "seeds": len(of[name]),
            "allocated_mean": float(np.mean([r.allocated_ratio for r in of[name]])),
            "allocated_least": min(r.allocated_ratio for r in of[name]),
            "allocated_most": max(r.allocated_ratio for r in of[name]),
            "allocated_deviation": float(np.std([r.allocated_ratio for r in of[name]])),
            "fragmented_mean": float(np.mean([r.fragmented_ratio for r in of[name]])),
            "cpu_s": float(np.median([r.cpu_s for r in of[name]])),
            "wall_s": float(np.median([r.wall_s for r in of[name]])),
            "of_plain_fgd_time": float(np.median([r.cpu_s for r in of[name]]) / np.median(plain)) if plain else None,
        }
        for name in names
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    headers = (
        "POLICY",
        "SEEDS",
        "ALLOCATED %",
        "LEAST",
        "MOST",
        "DEVIATION",
        "FRAGMENTED %",
        "CPU S",
        "WALL S",
        "TIME",
    )
    percent = ("allocated_mean", "allocated_least", "allocated_most", "allocated_deviation", "fragmented_mean")
    body = [
        (
            row["policy"],
            row["seeds"],
            *(f"{100 * row[key]:.2f}" for key in percent),
            f"{row['cpu_s']:.2f}",
            f"{row['wall_s']:.2f}",
            "-" if row["of_plain_fgd_time"] is None else f"{row['of_plain_fgd_time']:.3f}",
        )
        for row in rows
    ]
    return (
        render_table(headers, body)
        + "\n\nDEVIATION is the standard deviation over seeds, TIME is CPU time over that of plain FGD."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="sequences of arrivals")
    parser.add_argument("--first-seed", type=int, default=100, help="0-3 are those that the policy was tuned on")
    parser.add_argument("--plain", type=int, default=1, help="of these, sequences on which plain FGD runs too")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args()
    folder = data_folder()
    if not (folder / NODES).exists() or not (folder / PODS).exists():
        sys.exit(f"{folder}: holds no {NODES} and {PODS}; set PENSTOCK_DATA to the folder above fleets/")
    hosts, tasks = read_hosts(folder / NODES), read_tasks(folder / PODS)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    runs = [run for k, seed in enumerate(seeds) for run in run_seed(hosts, tasks, seed, plain=k < args.plain)]
    rows = summary(runs)
    print(json.dumps(rows, indent=2) if args.output == "json" else table(rows))


if __name__ == "__main__":
    main()

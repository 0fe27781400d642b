"""Pack bins, class by class, and say how many packings are proved to be the best there are.

Run: ``python -m tests.bench_packing [--seeds 3] [--classes U T V W H] [--largest 1000] [-o json]``. Instances are
made here, by seed. U and T are the classes of Falkenauer, "A hybrid grouping genetic algorithm for bin packing",
Journal of Heuristics 2 (1996): U has sizes of 20 to 100 in bins of 150, T has triplets that fill bins of 1000 exactly
(a first item of 380 to 490, a second of 250 to half of what is left, a third that is the rest). V has sizes drawn for
each of two resources, W of four; H has replicas on hosts of 8 GPUs, 192 cores, 2000 GB and 8 network ports.

BINS/L2 is bins over the Martello-Toth bound (or the largest one-resource bound); FFD/BINS is what first fit decreasing
takes, run in the same process. Times are of the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from controller.tables import render_table
from solvers.packing.bins import pack_bins
from solvers.packing.bounds import rows_bound
from solvers.packing.fit import RULES, fit_decreasing, orders
from solvers.packing.items import Ints, Kinds, read_items

Instance = tuple[Ints, tuple[int, ...]]


def falkenauer_u(count: int, rng: np.random.Generator) -> Instance:
    return rng.integers(20, 101, (count, 1)), (150,)


def falkenauer_t(count: int, rng: np.random.Generator) -> Instance:
    triplets = []
    for _ in range(count // 3):
        first = int(rng.integers(380, 491))
        second = int(rng.integers(250, (1000 - first) // 2 + 1))
        triplets += [first, second, 1000 - first - second]
    return np.array(triplets).reshape(-1, 1), (1000,)


def vectors(count: int, rng: np.random.Generator, *, resources: int = 2) -> Instance:
    return rng.integers(100, 401, (count, resources)), (1000,) * resources


def hosts(count: int, rng: np.random.Generator) -> Instance:
    """Some twelve kinds of replicas of 1 to 8 GPUs, about so many in all, with CPU, memory and ports beside them."""
    gpus = rng.choice([1, 1, 2, 2, 4, 8], 12)
    cores, gigabytes = gpus * rng.choice([8, 16, 22], 12), np.minimum(1900, gpus * rng.choice([60, 150, 250, 420], 12))
    ports = np.where(gpus >= 4, gpus, rng.choice([0, 1, 2], 12))
    copies = np.maximum(1, (rng.dirichlet(np.ones(12)) * count).astype(int))
    return np.repeat(np.c_[gpus, cores, gigabytes, ports], copies, axis=0), (8, 192, 2000, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    make: Callable[[int, np.random.Generator], Instance]
    sizes: tuple[int, ...]


FAMILIES = {
    "U": Family(make=falkenauer_u, sizes=(120, 250, 500, 1000)),
    "T": Family(make=falkenauer_t, sizes=(60, 120, 249, 501, 999)),
    "V": Family(make=vectors, sizes=(50, 100)),
    "W": Family(make=partial(vectors, resources=4), sizes=(50, 100)),
    "H": Family(make=hosts, sizes=(200, 1000, 4000)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All instances of one class and size."""

    family: str
    items: int
    instances: int
    proved: int
    bins: int
    lower_bound: int
    bins_over_rows_bound: float
    ffd_over_bins: float
    cpu_s_median: float
    cpu_s_most: float


def first_fit_decreasing(kinds: Kinds) -> int:
    order = next(orders(kinds, kinds.demand))
    return fit_decreasing(kinds, kinds.demand, np.zeros_like(kinds.count), order, RULES["first fit"]).cost(kinds)


def run(family: str, size: int, seeds: Sequence[int]) -> Row:
    bins, bounds, rows, greedy, times, proved = 0, 0, 0, 0, [], 0
    for seed in seeds:
        items, capacity = FAMILIES[family].make(size, np.random.default_rng([ord(family), size, seed]))
        start = time.process_time()
        packing = pack_bins(items, capacity)
        times.append(time.process_time() - start)
        kinds = read_items(items, capacity)
        bins, bounds, proved = bins + packing.cost, bounds + packing.lower_bound, proved + packing.is_proved
        rows, greedy = rows + rows_bound(kinds), greedy + first_fit_decreasing(kinds)
        told = f"{packing.cost} bins, bound {packing.lower_bound}, {times[-1]:.1f} s of CPU"
        print(f"{family} {size}, seed {seed}: {told}", file=sys.stderr)
    return Row(
        family=family,
        items=size,
        instances=len(seeds),
        proved=proved,
        bins=bins,
        lower_bound=bounds,
        bins_over_rows_bound=bins / rows,
        ffd_over_bins=greedy / bins,
        cpu_s_median=float(np.median(times)),
        cpu_s_most=max(times),
    )


def rows(families: Sequence[str], seeds: Sequence[int], largest: int) -> Iterator[Row]:
    for family in families:
        for size in FAMILIES[family].sizes:
            if size <= largest:
                yield run(family, size, seeds)


def table(results: Sequence[Row]) -> str:
    headers = ("CLASS", "ITEMS", "INSTANCES", "PROVED", "BINS", "BOUND", "BINS/L2", "FFD/BINS", "MEDIAN S", "MOST S")
    body: list[tuple[Any, ...]] = [
        (
            *(row.family, row.items, row.instances, row.proved, row.bins, row.lower_bound),
            *(f"{row.bins_over_rows_bound:.4f}", f"{row.ffd_over_bins:.4f}"),
            *(f"{row.cpu_s_median:.2f}", f"{row.cpu_s_most:.2f}"),
        )
        for row in results
    ]
    return render_table(headers, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="instances of each class and size")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--classes", nargs="+", choices=sorted(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--largest", type=int, default=4000, help="leave out sizes above")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    found = list(rows(args.classes, seeds, args.largest))
    if args.output == "json":
        print(json.dumps([{name: getattr(row, name) for name in Row.__slots__} for row in found], indent=2))
    else:
        print(table(found))


if __name__ == "__main__":
    main()

"""What computing prompts together would carry, beside one after another: ``python -m tests.bench_batches [-o json]``.

Equal prompts arrive by Poisson at one replica. One after another each takes 1; a batch takes all that wait, up to
``--batch`` of them, and costs a part of what they cost alone (``--ratio``, at the full batch; linear below it), but
its first prompt waits for its last. For each TTFT limit, in times of one prompt, the table says the load at which 95 %
just keep it, in prompts by the time of one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np

from controller.tables import render_table

PROMPTS = 40_000
SETTLED = 2_000
HALVINGS = 12
HIGHEST = 1.6


def late_ratio(load: float, limit: float, batch: int, ratio: float, seed: int) -> float:
    """Share of prompts whose answer takes longer than the limit."""
    each = (ratio * batch - 1.0) / (batch - 1.0) if batch > 1 else 1.0  # of every prompt after the first
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1.0 / load, PROMPTS)).tolist()
    free, first, late = 0.0, 0, 0
    while first < PROMPTS:
        free, end = max(free, arrivals[first]), first + 1
        while end < min(PROMPTS, first + batch) and arrivals[end] <= free:
            end += 1
        free += 1.0 + (end - first - 1) * each
        late += sum(free - at > limit for at in arrivals[max(first, SETTLED) : end])
        first = end
    return late / (PROMPTS - SETTLED)


def carried(limit: float, batch: int, ratio: float, seed: int) -> float:
    """The load at which 95 % keep the limit."""
    low, high = 0.0, HIGHEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if late_ratio(middle, limit, batch, ratio, seed) <= 0.05 else (low, middle)
    return low


def rows_of(limits: Sequence[float], batch: int, ratios: Sequence[float], seed: int) -> list[dict[str, float]]:
    """Loads by ratio; a ratio of 1 stands for one after another."""
    return [
        {"ratio": ratio} | {f"{limit:g}": carried(limit, batch if ratio < 1.0 else 1, ratio, seed) for limit in limits}
        for ratio in (1.0, *ratios)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", type=float, nargs="+", default=[2.0, 3.0, 5.0, 10.0, 20.0], metavar="TIMES")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.96, 0.91, 0.67], metavar="R")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="most prompts together (default 4)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args()
    rows = rows_of(args.limits, args.batch, args.ratio, args.seed)
    if args.output == "json":
        print(json.dumps(rows, indent=2))
        return
    headers = ("COST OF EACH", *(f"LIMIT {limit:g}" for limit in args.limits))
    print(render_table(headers, [[round(value, 3) for value in row.values()] for row in rows]))


if __name__ == "__main__":
    main()

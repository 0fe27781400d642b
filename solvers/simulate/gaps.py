"""Token gaps from the log of runs: histograms by replica, and exact percentiles.

A row of the log stands for ``steps * batch`` gaps in an arithmetic progression, less the first step of its ``fresh``
sequences, which yields first tokens. Nothing here looks at single tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, log

import numpy as np
from numpy.typing import NDArray

from solvers.simulate.results import BUCKET_RATIO, GapHistogram

Ints = NDArray[np.int64]
RUN = np.dtype([
    ("start", np.int64), ("step", np.int64), ("growth", np.int64),
    ("replica", np.int32), ("steps", np.int32), ("batch", np.int32), ("fresh", np.int32),
])  # fmt: skip
FEW = 64  # rows that are quicker one by one
PER_LOG = 1.0 / log(BUCKET_RATIO)
BUCKETS = 1 << 13


def count_gaps(runs: NDArray[np.void], into: Mapping[int, GapHistogram] | Sequence[GapHistogram]) -> None:
    """Add the gaps of logged runs to the histograms of their replicas."""
    if len(runs) <= FEW:
        for start, step, growth, replica, steps, batch, fresh in runs.tolist():
            del start
            into[replica].add_run(step, growth, steps, batch, fresh)
        return
    keys, counts = _bucketed(runs)
    found, where = np.unique(keys, return_inverse=True)
    totals = np.bincount(where, counts)  # whole numbers below 2**53, so exact
    for key, total in zip(found.tolist(), totals.tolist(), strict=True):
        histogram = into[key // BUCKETS].counts
        histogram[key % BUCKETS] = histogram.get(key % BUCKETS, 0) + int(total)


def _bucketed(runs: NDArray[np.void]) -> tuple[Ints, Ints]:
    """(replica * BUCKETS + bucket, gaps) of the pieces of runs that lie in one bucket each."""
    step, growth, steps = runs["step"], runs["growth"], runs["steps"].astype(np.int64)
    base, batch = runs["replica"].astype(np.int64) * BUCKETS, runs["batch"].astype(np.int64)
    low = (np.log(step) * PER_LOG).astype(np.int64)
    high = (np.log(step + (steps - 1) * growth) * PER_LOG).astype(np.int64)
    keys, counts = [base + low], [-runs["fresh"].astype(np.int64)]
    rows, done, bucket = np.arange(len(runs)), np.zeros(len(runs), np.int64), low.copy()
    while len(rows):
        is_last = bucket >= high[rows]
        tops = np.exp((bucket + 1) / PER_LOG).astype(np.int64) + 1
        upto = np.minimum(steps[rows], (tops - 1 - step[rows]) // np.maximum(1, growth[rows]) + 1)
        upto = np.where(is_last, steps[rows], np.maximum(upto, done))
        keys.append(base[rows] + bucket)
        counts.append((upto - done) * batch[rows])
        going = ~is_last
        rows, done, bucket = rows[going], upto[going], bucket[going] + 1
    return np.concatenate(keys), np.concatenate(counts)


def count_of(runs: NDArray[np.void]) -> int:
    """Gaps in all."""
    return int((runs["steps"].astype(np.int64) * runs["batch"] - runs["fresh"]).sum())


def exact_quantiles(runs: NDArray[np.void], ratios: Iterable[float]) -> dict[float, int]:
    """Smallest gaps in ticks that at least each ratio of all gaps does not exceed; empty without gaps.

    Bisection on whole ticks; at each step only runs that reach over the interval are counted again.
    """
    total = count_of(runs)
    if total == 0:
        return {}
    columns = [runs["step"], runs["growth"], *(runs[name].astype(np.int64) for name in ("steps", "batch", "fresh"))]
    return {ratio: _quantile(columns, max(1, ceil(ratio * total - 1e-9))) for ratio in ratios}


def _quantile(columns: Sequence[Ints], need: int) -> int:
    """The gap number ``need`` in order of size."""
    step, growth, steps, _, _ = columns
    low, high, below = int(step.min()) - 1, int((step + (steps - 1) * growth).max()), 0
    while high - low > 1:
        middle = (low + high) // 2 if high < 2 * max(1, low) else int(np.sqrt(float(max(1, low)) * high))
        middle = min(max(middle, low + 1), high - 1)
        if below + _upto(columns, middle) >= need:
            high, kept = middle, columns[0] <= middle
        else:
            low, kept = middle, columns[0] + (columns[2] - 1) * columns[1] > middle
            below += _upto([column[~kept] for column in columns], middle)
        columns = [column[kept] for column in columns]
    return high


def _upto(columns: Sequence[Ints], ticks: int) -> int:
    """Gaps of at most ``ticks``."""
    step, growth, steps, batch, fresh = columns
    reached = np.where(growth > 0, (ticks - step) // np.maximum(1, growth) + 1, steps)
    reached = np.where(step <= ticks, np.minimum(steps, reached), 0)
    return int((reached * batch - fresh * (step <= ticks)).sum())


def late_ratio(runs: NDArray[np.void], limit: int) -> float:
    """Share of gaps that exceed ``limit`` ticks; 0 when there are none."""
    total = count_of(runs)
    columns = [runs["step"], runs["growth"], *(runs[name].astype(np.int64) for name in ("steps", "batch", "fresh"))]
    return 1.0 - _upto(columns, limit) / total if total else 0.0

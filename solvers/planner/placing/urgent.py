"""Replicas that found no place, given one before all others, what runs among them.

What runs stays where it runs as far as there is room, which leaves gaps that larger replicas do not fit into. Those few
that found none go in first, then what stays, then the rest; who finds none now goes in first the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from solvers.planner.placing.places import Placed, cell_counts
from solvers.planner.placing.repack import is_movable, worth_usd_per_hour
from solvers.planner.pools.cells import Cells, Floats

MOST_TRIES = 2  # each takes as long as placing once


def placed_urgent_first(
    cells: Cells, replicas: Floats, placed: Placed, again: Callable[[Mapping[int, int]], Placed]
) -> Placed:
    """Place counts by cell, (C,), again while some found no place; the least worth without one counts.

    Parameters
    ----------
    again : callable
        Places all counts, those that it is told by cell first.
    """
    first, lost = dict[int, int](), _lost(cells, replicas, placed)
    least = _worth(cells, lost)
    for _ in range(MOST_TRIES):
        urgent = [c for c in np.flatnonzero(lost).tolist() if is_movable(cells, c)]
        if not urgent:
            break
        for cell in urgent:
            first[cell] = first.get(cell, 0) + round(float(lost[cell]))
        tried = again(first)
        lost = _lost(cells, replicas, tried)
        if (worth := _worth(cells, lost)) < least:
            placed, least = tried, worth
    return placed


def _worth(cells: Cells, lost: Floats) -> float:
    """What replicas by cell, (C,), would bring, USD per hour."""
    return sum(float(lost[c]) * worth_usd_per_hour(cells, int(cells.cell_pool[c])) for c in np.flatnonzero(lost))


def _lost(cells: Cells, replicas: Floats, placed: Placed) -> Floats:
    """Replicas by cell that found no place, (C,)."""
    return np.maximum(0.0, np.round(replicas) - cell_counts(cells, placed.counts))

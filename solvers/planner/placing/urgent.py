"""Replicas that found no place, given one before all others, what runs among them.

What runs stays where it runs as far as there is room, which leaves gaps that larger replicas do not fit into. Those few
that found none go in first, then what stays, then the rest; who finds none now goes in first the next time.
"""

from __future__ import annotations

import numpy as np

from solvers.planner.placing.places import Placed, cell_counts, place
from solvers.planner.placing.repack import is_movable
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.pools.sizer import Sizer

MOST_TRIES = 2  # each takes as long as placing once


def placed_urgent_first(cells: Cells, replicas: Floats, placed: Placed, sizer: Sizer | None = None) -> Placed:
    """Place counts by cell, (C,), again while some found no place; the one of least GPUs without any, the first of equals."""
    first: dict[int, int] = {}
    gpus = np.array([option.gpus for option in cells.pools])[cells.cell_pool]
    least, tried = np.inf, placed
    for _ in range(MOST_TRIES + 1):
        lost = np.maximum(0.0, np.round(replicas) - cell_counts(cells, tried.counts))
        if float(lost @ gpus) < least:
            placed, least = tried, float(lost @ gpus)
        urgent = [c for c in np.flatnonzero(lost).tolist() if is_movable(cells, c)]
        if not urgent:
            break
        for cell in urgent:
            first[cell] = first.get(cell, 0) + round(float(lost[cell]))
        tried = place(cells, replicas, sizer, first)
    return placed

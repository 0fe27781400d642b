"""Replicas that found no place, given one before all others, what runs among them.

What runs stays where it runs as far as there is room, which leaves gaps that larger replicas do not fit into. Those few
that found none go in first, then what stays, then the rest. To do so again with who finds none then gains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from solvers.planner.placing.places import Placed, lost_counts
from solvers.planner.placing.repack import is_movable, worth_usd_per_hour
from solvers.planner.pools.cells import Cells, Floats


def placed_urgent_first(
    cells: Cells, replicas: Floats, placed: Placed, again: Callable[[Mapping[int, int]], Placed]
) -> Placed:
    """Place counts by cell, (C,), again where some found no place; as before unless less worth is without one then.

    Parameters
    ----------
    again : callable
        Places all counts, those that it is told by cell first.
    """
    lost = lost_counts(cells, replicas, placed)
    first = {c: round(float(lost[c])) for c in np.flatnonzero(lost).tolist() if is_movable(cells, c)}
    tried = again(first) if first else placed
    return tried if _worth(cells, lost_counts(cells, replicas, tried)) < _worth(cells, lost) else placed


def _worth(cells: Cells, lost: Floats) -> float:
    """What replicas by cell, (C,), would bring, USD per hour."""
    return sum(float(lost[c]) * worth_usd_per_hour(cells, int(cells.cell_pool[c])) for c in np.flatnonzero(lost))

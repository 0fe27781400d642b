"""Whole ways near what the relaxed model places: a first plan before any size but theirs is worked out, and more.

Prices alone find few ways that fit together while the ways known are few; those near the relaxation's own do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp

from solvers.planner.model.relax import Arrays, Solution
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.wide.ways import SparseWay
from solvers.planner.wide.wide import SPLIT, Wide


def rounded(wide: Wide, relaxed: Solution, arrays: Arrays) -> Floats:
    """What the relaxed model places, in whole ways, (C,) replicas: higher tiers first, as far as they fit."""
    maker, asked = wide.maker, wide.asked(wide.prices)
    ways = [maker.rounded(s, parts, served, asked) for s, parts, served in _placed(wide, relaxed, arrays)]
    return _as_they_fit([way for way in ways if way is not None], wide.cells, wide.shared, wide.room)


def take_near(wide: Wide, relaxed: Solution, arrays: Arrays, prices: Floats) -> None:
    """Remember the whole ways near what the relaxed model places of each service."""
    asked = wide.asked(prices)
    for s, parts, served in _placed(wide, relaxed, arrays):
        wide.table.take(wide.maker.near_parts(s, parts, served, asked))


def _placed(wide: Wide, relaxed: Solution, arrays: Arrays) -> Iterator[tuple[int, dict[int, float], float]]:
    """Each service, parts of its replicas by cell, and how much of it they serve."""
    parts, unserved = relaxed.x[arrays.columns["replicas"]], relaxed.x[arrays.columns["unserved"]]
    for s, stocks in enumerate(wide.stocks):
        inside = stocks.cells.start + np.flatnonzero(parts[stocks.cells] > SPLIT)
        yield s, {int(cell): float(parts[cell]) for cell in inside}, min(1.0, 1.0 - float(unserved[s]))


def _as_they_fit(ways: Sequence[SparseWay], cells: Cells, shared: sp.csr_array, room: Floats) -> Floats:
    """Ways of different services, higher tiers first, each as far as there is room; (C,) replicas."""
    room, columns = room.copy(), shared.tocsc()
    total = np.zeros(len(cells.cell_pool))
    for way in sorted(ways, key=lambda way: (cells.services[way.service].tier_rank, way.service)):
        for cell, count in way.replicas:
            at = slice(columns.indptr[cell], columns.indptr[cell + 1])
            rows, uses = columns.indices[at], columns.data[at]
            fits = int(np.floor((room[rows] / uses).min() + 1e-9)) if len(rows) else count
            taken = max(0, min(count, fits))
            room[rows] -= taken * uses
            total[cell] += taken
    return total

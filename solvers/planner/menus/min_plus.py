"""Tables of the least cost by load, added up where the load is shared out between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EVERY = 32  # loads tried between two looks at whether others can still be of use


def shared_out(tables: Sequence[Floats]) -> Floats:
    r"""Least cost of at least each load, divided in any whole parts: :math:`t(n) = \min_m a(m) + b(n - m)`.

    Parameters
    ----------
    tables : sequence of (N,) float
        Least cost of 0, 1, … parts at least; none decreases.

    Examples
    --------
    >>> shared_out([np.array([0.0, 5.0, 5.0]), np.array([0.0, 2.0, 9.0])]).tolist()
    [0.0, 2.0, 5.0]
    """
    total = tables[0]
    for table in tables[1:]:
        one, other = sorted((total, table), key=lambda values: len(_rises(values)))
        total = np.full(len(table), np.inf)
        for part in _worth_adding(one, other, total):
            np.minimum(total[: part + 1], one[part] + other[0], out=total[: part + 1])
            np.minimum(total[part:], one[part] + other[: len(other) - part], out=total[part:])
    return total


def _worth_adding(one: Floats, other: Floats, total: Floats) -> Iterator[int]:
    """Loads of a table that can still lower the sum in the making: with the other's least slope, best first."""
    rises, loads = _rises(one), np.arange(len(one))
    slope = float(((other[1:] - other[0]) / loads[1:]).min(initial=np.inf))
    slope = slope if np.isfinite(slope) else 0.0
    above = one[rises] + other[0] - slope * rises
    most = np.inf
    for done, at in enumerate(np.argsort(above, kind="stable").tolist()):
        if done % EVERY == 0:
            most = float((total - slope * loads).max())
        if above[at] >= most:
            return
        yield int(rises[at])


def divided(tables: Sequence[Floats], paid: Floats) -> list[int]:
    """Parts that each table takes where all together, and what is paid by load, cost least.

    Parameters
    ----------
    tables : sequence of (N,) float
        As for ``shared_out``.
    paid : (N,) float
        Beside the tables, by load.
    """
    totals = in_turn(tables)
    return parts_of(tables, totals, int(np.argmin(totals[-1] + paid)))


def in_turn(tables: Sequence[Floats]) -> list[Floats]:
    """Least cost by load of the first table, of the first two, and so on."""
    totals = [tables[0]]
    for table in tables[1:]:
        totals.append(shared_out([totals[-1], table]))
    return totals


def parts_of(tables: Sequence[Floats], totals: Sequence[Floats], load: int) -> list[int]:
    """Parts of a load that each table takes at least cost; ``totals`` as ``in_turn`` finds them."""
    parts: list[int] = []
    for table, before in zip(tables[:0:-1], totals[-2::-1], strict=True):
        part = int(np.argmin(table[: load + 1] + before[load::-1]))
        parts.append(part)
        load -= part
    return [load, *reversed(parts)]


def _rises(costs: Floats) -> NDArray[np.int64]:
    """Loads after which the cost rises: all others are carried for nothing."""
    return np.flatnonzero(np.isfinite(costs) & (np.append(costs[1:], np.inf) > costs))


def slide(values: Floats, width: int) -> Floats:
    """Least value within so many parts below each part; every pass doubles how far it looks, or nearly."""
    if width >= len(values):
        return np.minimum.accumulate(values)
    least, reach = values.copy(), 0
    while reach < width:
        step = min(reach + 1, width - reach)
        least[step:] = np.minimum(least[step:], least[:-step])
        reach += step
    return least

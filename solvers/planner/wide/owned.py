"""What a way keeps on nodes that nobody takes away."""

from __future__ import annotations

from collections.abc import Mapping

from solvers.engine import Role
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.wide.rules import is_spot, pool_of
from solvers.planner.wide.stocks import Stocks


def owned_per_s(
    cells: Cells, stocks: Stocks, by_cell: Mapping[int, int], rate_per_s: Mapping[int, float], roles: tuple[Role, ...]
) -> float:
    """Requests per second that replicas of the roles carry on such nodes, each at the rate of its pool."""
    carried = 0.0
    for cell, count in by_cell.items():
        pool = pool_of(stocks, cell)
        if count > 0 and stocks.roles[pool] in roles and not is_spot(cells, cell):
            carried += count * rate_per_s[pool]
    return carried


def moved_to_owned(
    cells: Cells,
    stocks: Stocks,
    by_cell: dict[int, int],
    rate_per_s: Mapping[int, float],
    roles: tuple[Role, ...],
    asked: Floats,
) -> bool:
    """Move the replica there that it costs least to have elsewhere; False when none can be moved."""
    usd = asked[stocks.cells] + stocks.terms_usd_per_hour
    moves: list[tuple[float, int, int]] = []
    for cell in [c for c, n in by_cell.items() if n > 0 and is_spot(cells, c)]:
        pool = pool_of(stocks, cell)
        if stocks.roles[pool] not in roles:
            continue
        for to in range(int(stocks.first[pool]), int(stocks.first[pool + 1])):
            at = stocks.cells.start + to
            if not is_spot(cells, at) and by_cell.get(at, 0) < int(stocks.room[to]):
                moves.append((float(usd[to] - usd[cell - stocks.cells.start]) / rate_per_s[pool], cell, at))
    if not moves:
        return False
    _, cell, at = min(moves)
    by_cell[cell] -= 1
    by_cell[at] = by_cell.get(at, 0) + 1
    return True

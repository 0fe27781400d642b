"""What services ask of a way beside load: one cap for a pool, replicas where they are pinned, enough to spread."""

from __future__ import annotations

from collections.abc import Mapping

from solvers.derived import derived
from solvers.planner.pools.cells import Cells
from solvers.planner.pools.floors import least_locations
from solvers.planner.wide.stocks import Stocks, pool_by_cell
from solvers.workload import Pin, ServedModel


def least_replicas(service: ServedModel) -> int:
    """Replicas that each chain of the service needs: its floor, and one for every location asked for."""
    return max(service.min_replicas, least_locations(service))


def pool_of(stocks: Stocks, cell: int) -> int:
    """The pool of a cell, by its index inside the service."""
    inside: int = cell - stocks.cells.start
    return derived(stocks, pool_by_cell)[inside]


def at_one_cap(stocks: Stocks, sizes: Mapping[int, int]) -> dict[int, int]:
    """Sizes by pool, each pool at the cap that most of its replicas have; the first among equals."""
    found: dict[int, list[int]] = {}
    for pool in sorted(sizes, key=lambda p: (-sizes[p], p)):
        found.setdefault(int(stocks.base[pool]), []).append(pool)
    return {levels[0]: sum(sizes[pool] for pool in levels) for levels in found.values()}


def amounts_at_one_cap(stocks: Stocks, amounts: Mapping[int, float]) -> dict[int, float]:
    """Replicas by cell, moved to the cells of the cap that most replicas of a pool have."""
    by_pool: dict[int, float] = {}
    for cell, amount in sorted(amounts.items()):
        by_pool[pool_of(stocks, cell)] = by_pool.get(pool_of(stocks, cell), 0.0) + amount
    level: dict[int, int] = {}
    for pool in sorted(by_pool, key=lambda p: (-by_pool[p], p)):
        level.setdefault(int(stocks.base[pool]), pool)
    moved: dict[int, float] = {}
    for cell, amount in sorted(amounts.items()):
        pool = pool_of(stocks, cell)
        to = cell + int(stocks.first[level[int(stocks.base[pool])]] - stocks.first[pool])  # same groups, same order
        moved[to] = moved.get(to, 0.0) + amount
    return moved


def other_caps(stocks: Stocks, sizes: Mapping[int, int]) -> frozenset[int]:
    """Pools that the sizes have at another cap."""
    held = {int(stocks.base[pool]): pool for pool, size in sizes.items() if size > 0}
    return frozenset(p for p, base in enumerate(stocks.base.tolist()) if held.get(base, p) != p)


def pin_cells(cells: Cells, stocks: Stocks, pin: Pin) -> list[int]:
    """Cells whose replicas keep the pin; its location is a group of its own."""
    found = []
    for cell in range(stocks.cells.start, stocks.cells.stop):
        pool = cells.pools[int(cells.cell_pool[cell])].pool
        location = cells.grouping.groups[int(cells.cell_group[cell])].bays[0].location
        if pin.counts(pool.role, pool.gpu_class, location):
            found.append(cell)
    return found


def pinned_cells(cells: Cells, stocks: Stocks, by_cell: Mapping[int, int]) -> set[int]:
    """Cells of a service that can spare none of their replicas for a pin's sake."""
    found = set[int]()
    for pin in cells.services[stocks.service].pins:
        mine = pin_cells(cells, stocks, pin)
        if sum(by_cell.get(cell, 0) for cell in mine) <= pin.replicas:
            found.update(mine)
    return found


def is_spot(cells: Cells, cell: int) -> bool:
    """Tell whether the nodes of a cell may be taken away."""
    return cells.grouping.groups[int(cells.cell_group[cell])].bays[0].terms.reclaims_per_hour > 0.0

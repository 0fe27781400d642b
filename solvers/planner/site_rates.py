"""What a replica carries at most for what can stand beside it, where keys and values may not leave a location.

A location has room for few large replicas. Where four prefill replicas would keep one decode replica busy and two
replicas fit, that decode replica carries a quarter: at no location do pairs carry more than the replicas of either role
do at such rates. Rates are those of a location where nothing else is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from solvers.engine import Role
from solvers.planner.cells import Cells, Floats, Ints
from solvers.planner.grouping import WATT_TOLERANCE, Bay, domain_rooms
from solvers.planner.stocks import PAIR_ROLES, Stocks

MOST_GPUS = 128  # of a location; in a larger one hardly anything is lost
LOST = 1e-6  # of a rate, what counts as none


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """Replicas of one pool at one class of locations, ``watts`` above idle draw each."""

    pool: int
    bay: Bay
    gpus: int
    watts: float
    rate_per_s: float


def paired_rates(cells: Cells, stocks: Stocks, of_cell: Ints) -> dict[tuple[int, int], float]:
    """Requests per second that no replica carries more than, by pool and side, where that is less than its rate.

    Parameters
    ----------
    of_cell : (C,) int
        The class of locations of each of the service's cells.
    """
    rooms = domain_rooms(cells.problem)
    items: dict[tuple[int, str], dict[Role, list[_Item]]] = {}
    pool_of = np.repeat(np.arange(len(stocks.roles)), np.diff(stocks.first))
    for inside, (pool, side) in enumerate(zip(pool_of.tolist(), of_cell.tolist(), strict=True)):
        option = cells.pools[int(cells.cell_pool[stocks.cells.start + inside])]
        item = _Item(
            pool=pool,
            bay=cells.grouping.groups[int(cells.cell_group[stocks.cells.start + inside])].bays[0],
            gpus=option.gpus,
            watts=option.reserved_watts,
            rate_per_s=float(stocks.rate_per_s[pool]),
        )
        group = stocks.groups[pool] if stocks.groups else ""
        items.setdefault((side, group), {role: [] for role in Role})[stocks.roles[pool]].append(item)
    found: dict[tuple[int, int], float] = {}
    for (side, _), of in items.items():
        for role, other in (PAIR_ROLES, PAIR_ROLES[::-1]):
            beside = _Beside.of(of[other], rooms)
            for item in of[role] if beside.gpus <= MOST_GPUS else ():
                rate = beside.rate_per_s(item)
                if rate < item.rate_per_s * (1.0 - LOST):
                    found[item.pool, side] = rate
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beside:
    """The other role's replicas at a location: the most that some GPUs of each bay carry, and what limits those.

    ``carried`` is by bay: its GPUs, the least watts of one that is used, and (G + 1,) requests per second.
    """

    rooms: dict[str, float]
    carried: tuple[tuple[Bay, float, Floats], ...]

    @classmethod
    def of(cls, items: Sequence[_Item], rooms: dict[str, float]) -> _Beside:
        bays = {item.bay.key: item.bay for item in items}
        mine = {key: [item for item in items if item.bay.key == key] for key in sorted(bays)}
        carried = (
            (bays[key], min(i.watts / i.gpus for i in of), _most_carried(of, sum(bays[key].free)))
            for key, of in mine.items()
        )
        return cls(rooms=rooms, carried=tuple(carried))

    @property
    def gpus(self) -> int:
        return sum(len(carried) - 1 for *_, carried in self.carried)

    def rate_per_s(self, item: _Item) -> float:
        """The most that one of the item's replicas carries, for any number of them."""
        count = np.arange(1, item.bay.slots(item.gpus) + 1)
        paired = np.zeros(len(count))
        for bay, watts, carried in self.carried:
            gpus = sum(bay.free) - (item.gpus * count if bay.key == item.bay.key else 0 * count)
            for domain in bay.charged:
                left = self.rooms[domain] - (item.watts * count if domain in item.bay.charged else 0.0 * count)
                gpus = np.minimum(gpus, np.floor((left + WATT_TOLERANCE) / watts)) if watts > 0.0 else gpus
            paired += carried[np.clip(gpus, 0, len(carried) - 1).astype(np.int64)]
        return min(item.rate_per_s, float((paired / count).max(initial=0.0)))


def _most_carried(items: Iterable[_Item], gpus: int) -> Floats:
    """The most that replicas on so many GPUs carry, (G + 1,): any number of each."""
    rate: dict[int, float] = {}
    for item in items:
        rate[item.gpus] = max(rate.get(item.gpus, 0.0), item.rate_per_s)
    best = np.zeros(gpus + 1)
    for have in range(1, gpus + 1):
        best[have] = max([best[have - 1], *(best[have - g] + r for g, r in rate.items() if g <= have)])
    return best

"""What a replica carries at most for what can stand beside it, where keys and values may not leave a location.

A location has room for few large replicas. Where four prefill replicas would keep one decode replica busy and two
replicas fit, that decode replica carries a quarter: at no location do pairs carry more than the replicas of either role
do at such rates. Rates are those of a location where nothing else is.

Ways are made with less: replicas come in bundles of both roles, and the cheapest bundle that there is room for leaves
part of one role to spare. What a whole bundle serves is what its replicas are counted for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from solvers.engine import Role
from solvers.planner.bays.grouping import WATT_TOLERANCE, Bay, domain_rooms
from solvers.planner.pools.cells import Cells, Floats, Ints
from solvers.planner.wide.stocks import FAR, PAIR_ROLES, Stocks

MOST_GPUS = 128  # of a location; in a larger one hardly anything is lost
USELESS = 1e-6  # of its rate, what a replica counts for that nothing can stand beside: above zero, to divide by
LOST = 1e-6  # of a rate, what counts as none


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """Replicas of one pool at one class of locations, ``watts`` above idle draw each."""

    pool: int
    bay: Bay
    gpus: int
    watts: float
    rate_per_s: float
    usd_per_hour: float

    @property
    def usd_per_request(self) -> float:
        return self.usd_per_hour / self.rate_per_s


Items = dict[tuple[int, str], dict[Role, list[_Item]]]
Rooms = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRates:
    """By pool and side, where it is less than all that a replica carries.

    Attributes
    ----------
    paired_per_s : mapping of (int, int) to float
        What no replica carries more than, for what can stand beside it.
    bundled_ratio : mapping of (int, int) to float
        The part of what it carries that the cheapest bundle has a use for.
    by_replica_per_s : mapping of (int, int) to float
        What pairs there carry at most for each replica of either role: its GPUs, at the best that whole replicas of
        both make of any number of GPUs of one location; only where locations have one class of GPU.
    """

    paired_per_s: Mapping[tuple[int, int], float] = field(default_factory=dict)
    bundled_ratio: Mapping[tuple[int, int], float] = field(default_factory=dict)
    by_replica_per_s: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def useful(self, able_per_s: float, replicas: int, part: tuple[int, int], beside_ratio: float = 1.0) -> float:
        """What replicas are good for in bundles, of what they can carry, beside others that carry a part of theirs."""
        most = replicas * self.paired_per_s.get(part, np.inf) * beside_ratio
        return min(able_per_s * self.bundled_ratio.get(part, 1.0), most)


def site_rates(cells: Cells, stocks: Stocks, of_cell: Ints) -> SiteRates:
    """Look at every class of locations that the service's pairs may not leave.

    Parameters
    ----------
    of_cell : (C,) int
        The class of locations of each of the service's cells.
    """
    rooms, items = domain_rooms(cells.problem), _items(cells, stocks, of_cell)
    return SiteRates(
        paired_per_s=_paired(items, rooms),
        bundled_ratio=_bundled(items, rooms),
        by_replica_per_s=_by_replica(items, rooms),
    )


def _items(cells: Cells, stocks: Stocks, of_cell: Ints) -> Items:
    """Prefill and decode by side and KV group."""
    items: Items = {}
    pool_of = np.repeat(np.arange(len(stocks.roles)), np.diff(stocks.first))
    for inside, (pool, side) in enumerate(zip(pool_of.tolist(), of_cell.tolist(), strict=True)):
        option = cells.pools[int(cells.cell_pool[stocks.cells.start + inside])]
        item = _Item(
            pool=pool,
            bay=cells.grouping.groups[int(cells.cell_group[stocks.cells.start + inside])].bays[0],
            gpus=option.gpus,
            watts=option.reserved_watts,
            rate_per_s=float(stocks.rate_per_s[pool]),
            usd_per_hour=option.price_usd_per_hour,
        )
        group = stocks.groups[pool] if stocks.groups else ""
        items.setdefault((side, group), {role: [] for role in Role})[stocks.roles[pool]].append(item)
    return items


def _paired(items: Items, rooms: Rooms) -> dict[tuple[int, int], float]:
    """What no replica carries more than, where that is less than its rate."""
    found: dict[tuple[int, int], float] = {}
    for (side, _), of in items.items():
        for role, other in (PAIR_ROLES, PAIR_ROLES[::-1]):
            beside = _Beside.of(of[other], rooms)
            for item in of[role] if beside.gpus <= MOST_GPUS else ():
                rate = beside.rate_per_s(item)
                if rate < item.rate_per_s * (1.0 - LOST):
                    found[item.pool, side] = max(rate, USELESS * item.rate_per_s)
    return found


def _by_replica(items: Items, rooms: Rooms) -> dict[tuple[int, int], float]:
    """GPUs of each pool, times the most that pairs on any number of GPUs of a location carry for each GPU."""
    found: dict[tuple[int, int], float] = {}
    for (side, _), of in items.items():
        prefill, decode = (_Beside.of(of[role], rooms) for role in PAIR_ROLES)
        bays = {bay.key for beside in (prefill, decode) for bay, *_ in beside.carried}
        if len(bays) != 1 or not (prefill.carried and decode.carried) or prefill.gpus > MOST_GPUS:
            continue
        most = _most_paired(prefill.carried[0][2], decode.carried[0][2])
        per_gpu = float((most[1:] / np.arange(1, len(most))).max(initial=0.0))
        found |= {(item.pool, side): item.gpus * per_gpu for role in PAIR_ROLES for item in of[role]}
    return found


def _most_paired(prefill: Floats, decode: Floats) -> Floats:
    """The most that pairs on so many GPUs carry, (G + 1,), by what either role carries at most on some of them."""
    return np.array([np.minimum(prefill[: g + 1], decode[g::-1]).max() for g in range(len(prefill))])


def _bundled(items: Items, rooms: Rooms) -> dict[tuple[int, int], float]:
    """The used part of each pool in the cheapest bundle that it is in, with others that are not dear."""
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for (side, _), of in items.items():
        prefill, decode = (_not_dear(of[role]) for role in PAIR_ROLES)
        for one, other in product(prefill, decode):
            for item, (usd, ratio) in zip((one, other), _cheapest(one, other, rooms), strict=False):
                found[item.pool, side] = min(found.get((item.pool, side), (np.inf, 1.0)), (usd, ratio))
    return {part: ratio for part, (_, ratio) in found.items() if ratio < 1.0 - LOST}


def _not_dear(items: Sequence[_Item]) -> list[_Item]:
    least = min((item.usd_per_request for item in items), default=0.0)
    return [item for item in items if item.usd_per_request <= FAR * least and sum(item.bay.free) <= MOST_GPUS]


def _cheapest(one: _Item, other: _Item, rooms: Rooms) -> list[tuple[float, float]]:
    """USD per hour for a request per second of the cheapest bundle of both, and the used part of each; none if none."""
    some = np.repeat(np.arange(1.0, one.bay.slots(one.gpus) + 1.0), 2)
    others = some * one.rate_per_s / other.rate_per_s
    others = np.where(np.arange(len(some)) % 2, np.ceil(others - LOST), np.floor(others + LOST))
    fits = (others >= 1.0) & (others <= other.bay.slots(other.gpus))
    if one.bay.key == other.bay.key:
        fits &= some * one.gpus + others * other.gpus <= sum(one.bay.free)
    for domain in {*one.bay.charged, *other.bay.charged}:
        draws = [item.watts if domain in item.bay.charged else 0.0 for item in (one, other)]
        fits &= some * draws[0] + others * draws[1] <= rooms[domain] + WATT_TOLERANCE
    if not fits.any():
        return []
    some, others = some[fits], others[fits]
    paired = np.minimum(some * one.rate_per_s, others * other.rate_per_s)
    usd = (some * one.usd_per_hour + others * other.usd_per_hour) / paired
    at = int(np.argmin(usd))
    used = (float(paired[at] / (n[at] * i.rate_per_s)) for n, i in ((some, one), (others, other)))
    return [(float(usd[at]), ratio) for ratio in used]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beside:
    """The other role's replicas at a location: the most that some GPUs of each bay carry, and what limits those.

    ``carried`` is by bay: its GPUs, the least watts of one that is used, and (G + 1,) requests per second.
    """

    rooms: Rooms
    carried: tuple[tuple[Bay, float, Floats], ...]

    @classmethod
    def of(cls, items: Sequence[_Item], rooms: Rooms) -> _Beside:
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

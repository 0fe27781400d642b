"""The cheapest way to run one service at given prices of what services share, with exact pool sizes.

A way is found without a solver: the sizes of the pools of a role are combined by the load they carry, on a grid of
the service's demand, and roles are then joined to chains. Rounding load down on the grid gives ways that keep what they
promise; rounding it up gives a value that no way can undercut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.engine import Role
from solvers.fleet import ANYWHERE
from solvers.pairing import Domain, Pairs
from solvers.planner.menus.min_plus import divided, shared_out
from solvers.planner.pools.cells import Cells, Floats, Ints
from solvers.planner.pools.floors import least_locations
from solvers.planner.pools.options import PoolOption
from solvers.planner.pools.penalties import EXCESS_WEIGHT
from solvers.planner.pools.sizer import Sizer
from solvers.planner.pools.tally import ROUNDING
from solvers.sizing import Capacity

GRID = 1000  # parts of the demand; rounding costs the bound at most a part for each pool of a role
FINE_GRID = 8000  # for the last word on a bound
NEAR = 1e-6  # of a part; far above the rounding of a division
MOST_FLOOR = 6  # floors beyond are counted in the ways, not in the bound
MOST_SIZE = 64  # replicas of one pool; larger fleets have no use for whole-number care

PAIR = (Role.PREFILL, Role.DECODE)

Least = Mapping[int, int]
"""Replicas by cell that a way must have."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Way:
    """One way to run one service. ``cost`` is GPUs, energy, starts and stops; ``penalty`` what it leaves undone."""

    service: int
    replicas: Floats  # (C,)
    cost_usd_per_hour: float
    penalty_usd_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shelf:
    """The sizes of one pool, 0…N, and the units that it is filled from.

    Attributes
    ----------
    base : int
        The same for all power caps of one pool, of which a way takes at most one.
    carried_per_s, run_usd_per_hour, churn_usd_per_hour : (N + 1,) float
        Of the whole pool; ``churn`` only for a pool placed ``Class``, whose starts and stops are counted in sum.
    unit_cell : (U,) int
    unit_usd_per_hour : (U,) float
        Start price of a new replica, less the stop price for one that runs and is kept, and the terms of its nodes.
    is_forced : (U,) bool
        Units that are taken before all others.
    group : str
        KV group, where a service has several.
    """

    role: Role
    group: str
    base: int
    carried_per_s: Floats
    run_usd_per_hour: Floats
    churn_usd_per_hour: Floats
    unit_cell: Ints
    unit_usd_per_hour: Floats
    is_forced: NDArray[np.bool_]

    def order(self, cell_prices: Floats) -> tuple[Ints, Floats]:
        """Units in the order in which they are taken, and their price summed up to each size."""
        prices = self.unit_usd_per_hour + cell_prices[self.unit_cell]
        order = np.lexsort((prices, ~self.is_forced))[: len(self.carried_per_s) - 1]
        summed = np.concatenate([[0.0], np.cumsum(prices[order])])
        return order, summed + self.run_usd_per_hour + self.churn_usd_per_hour

    def parts(self, demand_per_s: float, parts: int, *, is_up: bool) -> Ints:
        """Load of every size in so many parts of the demand, rounded up or down; (N + 1,)."""
        if parts == 0:
            return np.zeros(len(self.carried_per_s), dtype=np.int64)
        load = np.minimum(self.carried_per_s, demand_per_s) / demand_per_s * parts
        return (np.ceil(load - NEAR) if is_up else np.floor(load + NEAR)).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Menu:
    """All ways to run one service. ``groups`` are those of its pools that pair inside themselves only."""

    service: int
    shelves: tuple[Shelf, ...]
    demand_per_s: float
    unserved_usd_per_hour: float
    fair_ratio: float
    missing_usd_per_hour: float
    min_replicas: int
    max_replicas: int
    stop_usd_per_hour: float  # of all that runs; units that are kept take their part back
    cells: int
    groups: tuple[str, ...] = ("",)

    @property
    def _floor(self) -> int:
        return min(self.min_replicas, MOST_FLOOR)

    def cheapest(self, prices: Floats) -> Way | None:
        """The best way on the grid that keeps its promise; None when it breaks a ceiling.

        Where pools pair in groups, the best of those that use one group beside mixed pools, and of the best mix of all.
        """
        orders = [shelf.order(prices) for shelf in self.shelves]
        tried = [self._cheapest_of(group, orders) for group in self.groups]
        ways = [way for way in (*tried, self._cheapest_mix(orders)) if way is not None]

        def value(way: Way) -> float:
            return way.cost_usd_per_hour + way.penalty_usd_per_hour + float(prices @ way.replicas)

        return min(ways, key=value, default=None)

    def _cheapest_of(self, group: str, orders: Sequence[tuple[Ints, Floats]]) -> Way | None:
        tables = {role: self._table(role, orders, self._parts(GRID), is_up=False, group=group) for role in Role}
        _, levels = self._join(tables)
        sizes = self._fewest()
        for role, (floor, part) in levels.items():
            for index, size in tables[role].sizes(floor, part):
                sizes[index] = size
        return self.way(sizes, [order for order, _ in orders])

    def nothing(self) -> Way | None:
        """The way with as few replicas as may be."""
        free = np.zeros(self.cells)
        return self.way(self._fewest(), [shelf.order(free)[0] for shelf in self.shelves])

    def _fewest(self) -> list[int]:
        return [int(np.argmax(np.isfinite(shelf.run_usd_per_hour))) for shelf in self.shelves]

    def least_value(self, prices: Floats, grid: int = GRID) -> float:
        """A value at the prices that no way undercuts, USD per hour; the finer the grid, the higher.

        Where pools pair in groups it is the higher of two: that with the groups left out, and that with the floors.
        """
        orders = [shelf.order(prices) for shelf in self.shelves]
        tables = {role: self._table(role, orders, self._parts(grid), is_up=True) for role in Role}
        value = self._join(tables)[0]
        if len(self.groups) > 1:
            value = max(value, self._in_groups(orders))
        return value + self.stop_usd_per_hour

    def _in_groups(self, orders: Sequence[tuple[Ints, Floats]]) -> float:
        """Least value over all mixes of groups, floors left out."""
        tables = self._group_tables(orders, is_up=True)
        return float((shared_out([_sum_of(sides) for sides in tables]) + self._unserved_by_part()).min())

    def _cheapest_mix(self, orders: Sequence[tuple[Ints, Floats]]) -> Way | None:
        """The best way that may use several groups, floors left out; None where there is one."""
        if len(self.groups) <= 1:
            return None
        tables, sizes = self._group_tables(orders, is_up=False), self._fewest()
        parts = divided([_sum_of(sides) for sides in tables], self._unserved_by_part())
        for sides, part in zip(tables, parts, strict=True):
            for table in sides:
                for index, size in table.sizes(0, part):
                    sizes[index] = size
        return self.way(sizes, [order for order, _ in orders])

    def _group_tables(self, orders: Sequence[tuple[Ints, Floats]], *, is_up: bool) -> list[tuple[_Table, ...]]:
        """Tables of mixed pools, and of both sides of each group."""
        parts = self._parts(GRID)
        mixed = self._table(Role.MIXED, orders, parts, is_up=is_up)
        return [
            (mixed,),
            *(
                tuple(self._table(role, orders, parts, is_up=is_up, group=group) for role in PAIR)
                for group in self.groups
            ),
        ]

    def _unserved_by_part(self) -> Floats:
        parts = self._parts(GRID)
        return self._unserved_usd_per_hour(1.0 - np.arange(parts + 1) / parts) if parts else np.zeros(1)

    def way(self, sizes: Sequence[int], orders: Sequence[Ints]) -> Way | None:
        """Write down the sizes of all shelves, at their exact capacity."""
        replicas, cost = np.zeros(self.cells), self.stop_usd_per_hour
        carried, count = dict[tuple[Role, Domain], float](), dict.fromkeys(Role, 0)
        for shelf, size, order in zip(self.shelves, sizes, orders, strict=True):
            units = order[:size]
            np.add.at(replicas, shelf.unit_cell[units], 1.0)
            cost += float(shelf.unit_usd_per_hour[units].sum())
            cost += float(shelf.run_usd_per_hour[size] + shelf.churn_usd_per_hour[size])
            key = shelf.role, Domain(group=shelf.group)
            carried[key] = carried.get(key, 0.0) + float(shelf.carried_per_s[size])
            count[shelf.role] += size
        if max(count.values()) > self.max_replicas:
            return None
        return Way(
            service=self.service,
            replicas=replicas,
            cost_usd_per_hour=cost,
            penalty_usd_per_hour=self._penalty(carried, count),
        )

    def _penalty(self, carried: Mapping[tuple[Role, Domain], float], count: Mapping[Role, int]) -> float:
        chains = (count[Role.PREFILL] + count[Role.MIXED], count[Role.DECODE] + count[Role.MIXED])
        missing = sum(max(0, self.min_replicas - able) for able in chains)
        unserved = 0.0
        if self.demand_per_s > 0.0:
            able = Pairs.of(carried, is_parted=len(self.groups) > 1).able_per_s
            unserved = max(0.0, 1.0 - able * (1.0 + ROUNDING) / self.demand_per_s)
        return float(self._unserved_usd_per_hour(np.array(unserved))) + self.missing_usd_per_hour * missing

    def _unserved_usd_per_hour(self, ratios: Floats) -> Floats:
        """Price of such parts of the demand unserved."""
        beyond = np.maximum(0.0, ratios - self.fair_ratio)
        priced: Floats = self.unserved_usd_per_hour * (ratios + EXCESS_WEIGHT * beyond)
        return priced

    def _parts(self, grid: int) -> int:
        return grid if self.demand_per_s > 0.0 else 0

    def _table(
        self, role: Role, orders: Sequence[tuple[Ints, Floats]], parts: int, *, is_up: bool, group: str | None = None
    ) -> _Table:
        """Combine the pools of a role; of one group, where it is given."""
        pools: dict[int, list[_Level]] = {}
        for index, shelf in enumerate(self.shelves):
            if shelf.role is role and (group is None or role is Role.MIXED or shelf.group == group):
                amounts = shelf.parts(self.demand_per_s, parts, is_up=is_up)
                pools.setdefault(shelf.base, []).append(_Level(shelf=index, amounts=amounts, costs=orders[index][1]))
        return _Table.of([_Choice.of(levels) for levels in pools.values()], self._floor, parts)

    def _join(self, tables: Mapping[Role, _Table]) -> tuple[float, dict[Role, tuple[int, int]]]:
        """Least value over what mixed pools carry and what pairs carry, and each role's (floor, part)."""
        best, levels = np.inf, {}
        mixed = tables[Role.MIXED].least
        parts = mixed.shape[1] - 1
        for floor in range(self._floor + 1):
            pairs = [_with_missing(tables[r].least, self._floor - floor, self) for r in (Role.PREFILL, Role.DECODE)]
            pair = pairs[0][0] + pairs[1][0]
            m, t = _steps(mixed[floor]), _steps(pair)
            value = mixed[floor][m][:, None] + pair[t][None, :]
            if parts:
                lacking = np.maximum(0.0, 1.0 - (m[:, None] + t[None, :]) / parts)
                value = value + self._unserved_usd_per_hour(lacking)
            at = int(np.argmin(value)) if value.size else 0
            if value.size and value.flat[at] < best - 1e-12:
                best = float(value.flat[at])
                part_mixed, part_pair = int(m[at // len(t)]), int(t[at % len(t)])
                levels = {
                    Role.MIXED: (floor, part_mixed),
                    Role.PREFILL: (int(pairs[0][1][part_pair]), part_pair),
                    Role.DECODE: (int(pairs[1][1][part_pair]), part_pair),
                }
        return best, levels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Level:
    """The sizes of one pool at one power cap, 0…N, at the prices in question."""

    shelf: int
    amounts: Ints
    costs: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Choice:
    """What one pool may be: nothing, or a size at one of its caps; (E,) each, nothing first."""

    shelf: Ints
    size: Ints
    amount: Ints
    cost: Floats

    @classmethod
    def of(cls, levels: Sequence[_Level]) -> _Choice:
        nothing = np.array([level.costs[0] for level in levels])  # infinite where replicas must be kept at the level
        others = [float(nothing[:i].sum() + nothing[i + 1 :].sum()) for i in range(len(levels))]
        sizes = [np.arange(1, len(level.costs)) for level in levels]
        shelves = [np.full(len(size), level.shelf) for level, size in zip(levels, sizes, strict=True)]
        return cls(
            shelf=np.concatenate([[levels[0].shelf], *shelves]),
            size=np.concatenate([[0], *sizes]),
            amount=np.concatenate([levels[0].amounts[:1], *(level.amounts[1:] for level in levels)]),
            cost=np.concatenate(
                [[nothing.sum()], *(level.costs[1:] + other for level, other in zip(levels, others, strict=True))]
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Table:
    """Least cost of a role by (replicas at least, load at least), and which choice of each pool it takes."""

    least: Floats  # (floor + 1, parts + 1)
    picks: tuple[Ints, ...]
    choices: tuple[_Choice, ...]

    @classmethod
    def of(cls, choices: Sequence[_Choice], floor: int, parts: int) -> _Table:
        least = np.full((floor + 1, parts + 1), np.inf)
        least[0, 0] = 0.0
        floors, loads = np.arange(floor + 1), np.arange(parts + 1)
        picks: list[Ints] = []
        for choice in choices:
            grown, pick = least + choice.cost[0], np.zeros(least.shape, dtype=np.int64)
            for entry in range(1, len(choice.cost)):
                below = least[np.maximum(0, floors - choice.size[entry])]
                tried = below.take(np.maximum(0, loads - choice.amount[entry]), axis=1) + choice.cost[entry]
                better = tried < grown
                np.copyto(grown, tried, where=better)
                pick[better] = entry
            least = grown
            picks.append(pick)
        return cls(least=least, picks=tuple(picks), choices=tuple(choices))

    def sizes(self, floor: int, part: int) -> list[tuple[int, int]]:
        """(shelf, size) of what each pool is."""
        found = []
        for pick, choice in zip(reversed(self.picks), reversed(self.choices), strict=True):
            entry = int(pick[floor, part])
            size = int(choice.size[entry])
            found.append((int(choice.shelf[entry]), size))
            floor, part = max(0, floor - size), max(0, part - int(choice.amount[entry]))
        return found[::-1]


def _sum_of(sides: Sequence[_Table]) -> Floats:
    """Least cost by load that all sides carry, whatever the replicas."""
    total: Floats = np.sum([table.least[0] for table in sides], axis=0)
    return total


def _with_missing(least: Floats, floor: int, menu: Menu) -> tuple[Floats, Ints]:
    """Least cost by load when so many replicas are asked and each that is missing is paid for; and the floor kept."""
    lacking = (floor - np.arange(floor + 1)) * menu.missing_usd_per_hour
    paid = least[: floor + 1] + lacking[:, None]
    kept = np.argmin(paid, axis=0)
    return paid[kept, np.arange(paid.shape[1])], kept


def _steps(costs: Floats) -> Ints:
    """Loads after which the cost rises: all others are carried for nothing."""
    return np.flatnonzero(np.isfinite(costs) & (np.append(costs[1:], np.inf) > costs))


def build_menus(cells: Cells, sizer: Sizer, least: Least | None = None) -> tuple[Menu, ...] | None:
    """List the pools of every service with all their sizes; None when a pool has too many.

    Parameters
    ----------
    least : mapping of cell to int, optional
        Replicas that every way keeps.
    """
    if any(option.most > MOST_SIZE for option in cells.pools):
        return None
    menus: list[Menu] = []
    terms = cells.terms_usd_per_hour()
    for s, service in enumerate(cells.services):
        rate = float(cells.demand_per_s[s])
        pools = [int(p) for p in np.flatnonzero(cells.pool_service == s)]
        menus.append(
            Menu(
                service=s,
                shelves=tuple(_shelf(cells, sizer, p, least or {}, terms) for p in pools),
                demand_per_s=rate,
                unserved_usd_per_hour=float(cells.penalty_usd_per_hour[s]),
                fair_ratio=float(cells.fair_ratio[s]),
                missing_usd_per_hour=float(cells.floor_usd_per_hour[s]),
                min_replicas=max(service.min_replicas, least_locations(service)),  # a replica at each location
                max_replicas=service.max_replicas,
                stop_usd_per_hour=_stop_usd_per_hour(cells, pools),
                cells=len(cells.cell_pool),
                groups=sizer.pairing.groups_of(service, [cells.pools[p].pool for p in pools]),
            )
        )
    return tuple(menus)


def _stop_usd_per_hour(cells: Cells, pools: Sequence[int]) -> float:
    """Price of stopping all that runs of the pools."""
    mine = np.isin(cells.held_pool, pools)
    return float(cells.stop_usd_per_hour(cells.held_pool[mine]) @ cells.held_now[mine])


def _shelf(cells: Cells, sizer: Sizer, pool: int, least: Least, terms_usd_per_hour: Floats) -> Shelf:
    option = cells.pools[pool]
    mine = np.flatnonzero(cells.cell_pool == pool)
    room = {int(c): min(option.most, cells.grouping.groups[int(cells.cell_group[c])].slots(option.gpus)) for c in mine}
    start, stop = (float(of(np.array([pool]))[0]) for of in (cells.start_usd_per_hour, cells.stop_usd_per_hour))
    now = {(int(p), int(g)): int(n) for p, g, n in zip(cells.held_pool, cells.held_group, cells.held_now, strict=True)}
    unit_cell = np.repeat(np.array(list(room), dtype=np.int64), list(room.values()))
    within = np.concatenate([np.arange(n) for n in room.values()]) if room else np.zeros(0, dtype=np.int64)
    base = int(cells.pool_base[pool])
    kept = np.array([now.get((base, int(cells.cell_group[c])), 0) for c in unit_cell], dtype=np.int64)
    forced = np.array([least.get(int(c), 0) for c in unit_cell], dtype=np.int64)
    sizes = np.arange(min(option.most, len(unit_cell)) + 1)
    anywhere = option.is_anywhere
    runs = now.get((base, -1), 0)
    carried, run = _sized(option, sizer, cells.policy.energy_usd_per_kilowatt_hour, len(sizes))
    below = sizes < min(int(sum(least.get(int(c), 0) for c in mine)), len(sizes) - 1)
    return Shelf(
        role=option.pool.role,
        group=sizer.pairing.domain(option.pool, ANYWHERE).group,
        base=base,
        carried_per_s=carried,
        run_usd_per_hour=np.where(below, np.inf, run),
        churn_usd_per_hour=start * np.maximum(0, sizes - runs) - stop * np.minimum(runs, sizes)
        if anywhere
        else 0.0 * run,
        unit_cell=unit_cell,
        unit_usd_per_hour=np.zeros(len(unit_cell))
        if anywhere
        else np.where(within < kept, -stop, start) + terms_usd_per_hour[unit_cell],
        is_forced=within < forced,
    )


def _sized(option: PoolOption, sizer: Sizer, energy: float, count: int) -> tuple[Floats, Floats]:
    """Load and price of every size, 0 first."""
    carried, run = np.zeros(count), np.zeros(count)
    for size in range(1, count):
        sized = sizer.at(option.pool, option.profile, size) if sizer.problem.demands[option.pool.service].mix else None
        able = isinstance(sized, Capacity)
        watts = sized.gpu_watts if isinstance(sized, Capacity) else option.profile.idle_watts_per_gpu
        carried[size] = size * sized.requests_per_s if isinstance(sized, Capacity) and able else 0.0
        run[size] = size * (option.price_usd_per_hour + energy * option.replica_watts(watts) / 1000.0)
    return carried, run

"""Replicas onto bays: what fits is kept in a ledger of whole GPU groups and free watts.

For group sizes that divide one another the group test is exact, degraded nodes included: at each size q, the replicas
of q GPUs or more, counted as ⌊gpus/q⌋ each, must not pass Σ ⌊free/q⌋ over the nodes; best fit by decreasing size then
always succeeds. The same holds one level up, for replicas of several nodes and islands of whole nodes. For other sizes
the test is necessary and the packing itself (``pack_nodes``) decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from solvers.engine import Role
from solvers.fleet import ANYWHERE, GpuClass, PoolKey
from solvers.planner.bays.grouping import WATT_TOLERANCE, Bay, domain_rooms, limited_bays
from solvers.planner.bays.quotas import QuotaLedger
from solvers.planner.bays.shelves import Requests, ShelfRoom, requests_by_role
from solvers.power import charged_domains, pool_extra_watts
from solvers.problem import Problem
from solvers.spans import groups_taken

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_ORDERS = 500  # sequences of bays that are kept in order; groups of bays and bays of classes come again and again

Shape = tuple[int, Requests]
"""GPUs of a replica, and what each of its pods asks for beside them where that may run out anywhere."""

Counts = Mapping[tuple[PoolKey, str], int]
"""Replicas by (pool, location), ``ANYWHERE`` for pools placed ``Class``."""


@dataclass(slots=True, kw_only=True)
class BayTables:
    """The bays of a room as arrays, kept along with it: large fleets have thousands.

    Attributes
    ----------
    charged : (B, K) int
        Domains that each bay draws from, as indices into ``watts``; filled up with the last one, which never binds.
    watts : (D + 1,) float
        Free watts by domain.
    spare : mapping of Shape to (B,) int
        Replicas of that shape that each bay can still take.
    stale : mapping of Shape to mapping of int to Bay
        Rows where something was taken since, for which that is to be looked up again.
    """

    row_of: dict[tuple[str, str], int]
    domain_of: dict[str, int]
    charged: Ints
    watts: Floats
    spare: dict[Shape, Ints] = field(default_factory=dict)
    stale: dict[Shape, dict[int, Bay]] = field(default_factory=dict)
    _orders: dict[int, tuple[Sequence[Bay], tuple[Bay, ...], Ints]] = field(default_factory=dict)

    @classmethod
    def of(cls, bays: Mapping[tuple[str, str], Bay], free_watts: Mapping[str, float]) -> BayTables:
        domain_of = {name: index for index, name in enumerate(free_watts)}
        widest = max((len(bay.charged) for bay in bays.values()), default=0)
        charged = np.full((len(bays), max(1, widest)), len(domain_of), dtype=np.int64)
        for row, bay in enumerate(bays.values()):
            charged[row, : len(bay.charged)] = [domain_of[d] for d in bay.charged]
        return cls(
            row_of={key: row for row, key in enumerate(bays)},
            domain_of=domain_of,
            charged=charged,
            watts=np.array([*free_watts.values(), np.inf]),
        )

    def in_order(self, bays: Sequence[Bay]) -> tuple[tuple[Bay, ...], Ints]:
        """The bays by location, and their rows, (N,); worked out once for each sequence, which is kept."""
        if id(bays) not in self._orders:
            if len(self._orders) >= MOST_ORDERS:
                self._orders.clear()
            order = tuple(sorted(bays, key=lambda bay: bay.location))
            rows = np.array([self.row_of[bay.key] for bay in order], dtype=np.int64)
            self._orders[id(bays)] = bays, order, rows
        return self._orders[id(bays)][1:]

    def note(self, bay: Bay, free_watts: Mapping[str, float], charged: Iterable[str]) -> None:
        """Follow what was taken at a bay, with the watts that are left of what it was charged to."""
        row = self.row_of[bay.key]
        for rows in self.stale.values():
            rows[row] = bay
        for domain in charged:
            self.watts[self.domain_of[domain]] = free_watts[domain]


@dataclass(slots=True, kw_only=True)
class Room:
    """What is still free in every bay and every limiting power domain, as replicas are taken in one by one."""

    bays: dict[tuple[str, str], Bay]
    free_watts: dict[str, float]
    class_charges: dict[str, tuple[str, ...]]
    gpu_classes: Mapping[str, GpuClass]
    quotas: QuotaLedger
    locations: Mapping[str, tuple[str, ...]]
    refusing: frozenset[str]
    held: dict[tuple[str, str], dict[int, int]] = field(default_factory=dict)
    slots: dict[tuple[tuple[str, str], int], int] = field(default_factory=dict)
    able: dict[tuple[str, tuple[str, ...], bool], tuple[Bay, ...]] = field(default_factory=dict)
    tables: BayTables | None = None
    watts_of: dict[PoolKey, float] = field(default_factory=dict)
    requests: Mapping[tuple[str, Role], Requests] = field(default_factory=dict)
    shelves: ShelfRoom = field(default_factory=ShelfRoom)

    @classmethod
    def of(cls, problem: Problem) -> Room:
        """Start empty: nothing of ours is placed."""
        rooms = domain_rooms(problem)
        reach = {
            g: tuple(d for d in charged_domains(problem.nodes, g, ANYWHERE) if d in rooms)
            for g in sorted(problem.gpu_classes)
        }
        bays = {bay.key: bay for bay in limited_bays(problem)}
        return cls(
            bays=bays,
            free_watts=dict(rooms),
            class_charges=reach,
            gpu_classes=problem.gpu_classes,
            quotas=QuotaLedger.of(problem),
            locations={service.name: service.locations for service in problem.services if service.locations},
            refusing=frozenset(s.name for s in problem.services if s.max_spot_ratio <= 0.0),
            requests=requests_by_role(problem) if any(bay.shelf for bay in bays.values()) else {},
        )

    def copy(self) -> Room:
        """The same room to try something in."""
        return replace(
            self,
            free_watts=dict(self.free_watts),
            quotas=self.quotas.copy(),
            held={key: dict(sizes) for key, sizes in self.held.items()},
            tables=None,
            shelves=self.shelves.copy(),
        )

    def shape(self, pool: PoolKey) -> Shape:
        """What one replica of the pool needs of nodes."""
        return pool.config.gpus, self.requests.get((pool.service, pool.role), ())

    def spare(self, bay: Bay, shape: Shape) -> int:
        """Replicas of a shape that the bay can still take."""
        groups = self.spare_groups(bay, shape[0])
        return self.shelves.spare(bay, shape, groups) if bay.shelf and groups else groups

    def spare_groups(self, bay: Bay, gpus: int) -> int:
        """Replicas of so many GPUs that the bay can still take, as far as GPUs go."""
        key, node_gpus = bay.key, bay.node_gpus
        held = self.held.get(key)
        if not held:
            return self._slots(bay, key, gpus)
        spare: list[int] = []
        for size in (gpus, *[q for q in held if q < gpus]):
            left = self._slots(bay, key, size)
            for taken, count in held.items():
                if taken >= size and count:
                    left -= count * groups_taken(taken, size, node_gpus)
            spare.append(left // groups_taken(gpus, size, node_gpus))
        return max(0, min(spare))

    def _slots(self, bay: Bay, key: tuple[str, str], size: int) -> int:
        slots = self.slots.get((key, size))
        if slots is None:
            slots = self.slots[key, size] = bay.slots(size)
        return slots

    def extra_watts(self, pool: PoolKey) -> float:
        """Watts that one replica adds to its domains."""
        watts = self.watts_of.get(pool)
        if watts is None:
            watts = self.watts_of[pool] = pool_extra_watts(self.gpu_classes, pool)
        return watts

    def charged(self, pool: PoolKey, location: str) -> tuple[str, ...]:
        """Limiting domains that a replica at the location draws from."""
        if location == ANYWHERE:
            return self.class_charges[pool.gpu_class]
        return self.bays[location, pool.gpu_class].charged

    def watts_left(self, pool: PoolKey, location: str) -> float:
        """Free watts of the tightest domain, infinite when none limits."""
        return min((self.free_watts[d] for d in self.charged(pool, location)), default=float("inf"))

    def room(self, pool: PoolKey, location: str, bay: Bay | None = None) -> int:
        """Replicas of the pool that the location (or the bay, for a pool placed ``Class``) can still take."""
        at = bay or self.bays.get((location, pool.gpu_class))
        return 0 if at is None else self._room_of(pool, location, self.spare(at, self.shape(pool)))

    def _room_of(self, pool: PoolKey, location: str, groups: int) -> int:
        """As many replicas as quotas and watts allow too, where so many find GPUs."""
        if not groups:
            return 0
        groups = self.quotas.room(pool, groups)
        extra = self.extra_watts(pool)
        watts = self.watts_left(pool, location)
        if groups == 0 or extra <= 0.0 or watts == float("inf"):
            return groups
        return min(groups, int((watts + WATT_TOLERANCE) // extra))

    def has_room(self, pool: PoolKey, location: str | None = None) -> bool:
        """Tell whether a replica fits anywhere that its service may go, as far as GPUs, quotas and watts go.

        ``location`` is that of a pool placed ``Class``.
        """
        _, rows = self._tables(self.shape(pool)).in_order(self.bays_of(pool))
        return self._best_row(pool, rows, location) is not None

    def take(self, pool: PoolKey, location: str, count: int, bay: Bay | None = None) -> int:
        """Take in up to ``count`` replicas; returns how many."""
        at = bay or self.bays.get((location, pool.gpu_class))
        taken = min(count, self.room(pool, location, bay))
        return 0 if at is None or taken <= 0 else self._take_in(pool, location, taken, at)

    def _take_in(self, pool: PoolKey, location: str, count: int, at: Bay) -> int:
        """Take in replicas for which there is room; fewer where pods cannot be arranged so."""
        charged = self.charged(pool, location)
        taken = self.shelves.take(at, self.shape(pool), count)
        if taken > 0:
            held = self.held.setdefault(at.key, {})
            held[pool.config.gpus] = held.get(pool.config.gpus, 0) + taken
            self.quotas.take(pool, taken)
            watts = taken * self.extra_watts(pool)
            for domain in charged:
                self.free_watts[domain] -= watts
        if self.tables is not None:
            self.tables.note(at, self.free_watts, charged)
        return taken

    def release(self, pool: PoolKey, location: str, count: int) -> None:
        """Give back replicas that were taken in at a location where only GPUs and watts may run out."""
        bay = self.bays[location, pool.gpu_class]
        self.held[bay.key][pool.config.gpus] -= count
        self.quotas.take(pool, -count)
        for domain in self.charged(pool, location):
            self.free_watts[domain] += count * self.extra_watts(pool)
        self.tables = None

    def bays_of(self, pool: PoolKey) -> tuple[Bay, ...]:
        """Bays of the pool's class that its service may use; looked for once."""
        where, is_refusing = self.locations.get(pool.service, ()), pool.service in self.refusing
        key = (pool.gpu_class, where, is_refusing)
        if key not in self.able:
            mine = (bay for bay in self.bays.values() if bay.gpu_class == pool.gpu_class)
            mine = (bay for bay in mine if not where or bay.location in where)
            self.able[key] = tuple(bay for bay in mine if not is_refusing or bay.terms.reclaims_per_hour <= 0.0)
        return self.able[key]

    def take_all(self, counts: Counts) -> dict[tuple[PoolKey, str], int]:
        """Take in all that fits, larger groups first, located before class-wide; returns what does not fit."""
        left: dict[tuple[PoolKey, str], int] = {}
        for (pool, location), count in in_packing_order(counts):
            missing = count - self._take_at(pool, location, count)
            if missing:
                left[pool, location] = missing
        return left

    def _take_at(self, pool: PoolKey, location: str, count: int) -> int:
        if location != ANYWHERE:
            return self.take(pool, location, count)
        taken = 0
        while taken < count and (bay := self.anywhere_bay(pool)) is not None:
            taken += self.take(pool, ANYWHERE, 1, bay)
        return taken

    def anywhere_bay(self, pool: PoolKey) -> Bay | None:
        """The bay of the class with most spare groups, for a replica that may land on any node."""
        return self.best_bay(pool, self.bays_of(pool), ANYWHERE)

    def spread(self, pool: PoolKey, count: int, bays: Sequence[Bay], location: str | None = None) -> dict[str, int]:
        """Take in up to ``count`` replicas over the bays, best bay first, half of its room at a time.

        Returns
        -------
        dict of location to int
            ``location`` itself for a pool placed ``Class``.
        """
        added: dict[str, int] = {}
        left, shape = count, self.shape(pool)
        tables = self._tables(shape)
        order, rows = tables.in_order(bays)
        while left and (at := self._best_row(pool, rows, location)) is not None:
            bay = order[at]
            where = location or bay.location
            most = self._room_of(pool, where, int(tables.spare[shape][rows[at]]))
            half = (most + 1) // 2  # one at a time would look at every bay for every replica
            taken = self._take_in(pool, where, min(left, half), bay)
            added[where] = added.get(where, 0) + taken
            left -= taken
        return added

    def _tables(self, shape: Shape) -> BayTables:
        """The bays as arrays, with what each can take of the shape."""
        if self.tables is None:
            self.tables = BayTables.of(self.bays, self.free_watts)
        if shape not in self.tables.spare:
            spare = [self.spare(bay, shape) for bay in self.bays.values()]
            self.tables.spare[shape], self.tables.stale[shape] = np.array(spare, dtype=np.int64), {}
        for row, bay in self.tables.stale[shape].items():
            self.tables.spare[shape][row] = self.spare(bay, shape)
        self.tables.stale[shape].clear()
        return self.tables

    def _best_row(self, pool: PoolKey, rows: Ints, location: str | None) -> int | None:
        """Index into ``rows`` of the bay that ``best_bay`` would choose, rows sorted by location."""
        if len(rows) == 0 or self.quotas.room(pool, 1) == 0:
            return None
        tables, extra = self._tables(self.shape(pool)), self.extra_watts(pool)
        spare = tables.spare[self.shape(pool)][rows]
        if location is None:
            watts = tables.watts[tables.charged[rows]].min(axis=1)
        else:
            watts = np.full(len(rows), self.watts_left(pool, location))
        able = spare > 0
        if extra > 0.0:
            able &= watts + WATT_TOLERANCE >= extra
        if not able.any():
            return None
        most = np.where(able, watts, -np.inf)
        first = np.where(able & (most == most.max()), spare, -1)
        return int(np.argmax(first))

    def best_bay(self, pool: PoolKey, bays: Iterable[Bay], location: str | None = None) -> Bay | None:
        """The bay with room whose tightest feed keeps most watts (worst fit), then most spare groups, then by name."""
        able = [
            (-self.watts_left(pool, where), -self.spare(bay, self.shape(pool)), bay.location, bay)
            for bay in bays
            if self.room(pool, where := location or bay.location, bay) > 0
        ]
        return min(able, key=lambda row: row[:3], default=(0, 0, "", None))[3]


def in_packing_order(counts: Counts) -> list[tuple[tuple[PoolKey, str], int]]:
    """Sort by what leaves least choice: located first, then larger groups, then name."""
    rows = [(key, count) for key, count in counts.items() if count > 0]
    return sorted(rows, key=lambda row: (row[0][1] == ANYWHERE, -row[0][0].config.gpus, row[0]))

"""Places for prefill and decode replicas whose keys and values may not leave a location: both by the bundle.

The model counts pairs by class of locations, but they form inside each single one. Spread one by one, prefill and
decode would hardly anywhere come in proportion. So each location in turn gets so many of both as carry about the same,
as much as it has room for, and replicas that nothing pairs with are put off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.planner.bays.grouping import WATT_TOLERANCE, Bay
from solvers.planner.bays.nodes import Room
from solvers.planner.placing.pair_seats import Seat, Seating
from solvers.planner.pools.cells import Cells, Floats, Ints
from solvers.planner.pools.options import PoolOption
from solvers.planner.pools.sizer import Sizer
from solvers.spans import groups_taken

MOST_AT_ONCE = 64  # replicas of a pool taken in at once; a large location takes bundle after bundle
UNPAIRED = (20.0, 2.0, 0.2), (2.0, 0.2), (0.2,)
"""Times its price, what capacity counts for that nothing at its location pairs with: in turn, and ways to begin."""
LOST = 1e-9  # of what could pair, what is as good as none

Mend = Callable[[Seating], dict[tuple[PoolKey, str], int]]
"""Where replicas stand, by pool and location (``seated_by_pairs``)."""

Stands = Mapping[tuple[PoolKey, str], int]
"""Replicas by (pool, location)."""

Carried = dict[str, tuple[float, float]]
"""What prefill and decode carry by location, requests/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What stands where, and what it carries in pools of so many replicas, placed or not.

    Attributes
    ----------
    sizes : (P,) int
        Replicas of each pool.
    counts : mapping of (pool, location) to int
        Replicas that have their places.
    sizer : Sizer, optional
        Says what replicas carry; those of the largest pool without it.
    """

    cells: Cells
    sizes: Ints
    counts: dict[tuple[PoolKey, str], int]
    sizer: Sizer | None

    @classmethod
    def of(
        cls, cells: Cells, replicas: Floats, counts: dict[tuple[PoolKey, str], int], sizer: Sizer | None
    ) -> Standing:
        """With replicas by cell, (C,)."""
        sizes = np.bincount(cells.cell_pool, weights=np.round(replicas), minlength=len(cells.pools)).astype(np.int64)
        return cls(cells=cells, sizes=sizes, counts=counts, sizer=sizer)

    def rate_per_s(self, p: int) -> float:
        """What one replica of a pool carries."""
        option, size = self.cells.pools[p], int(self.sizes[p])
        if self.sizer is None:
            return option.steps[-1].capacity_requests_per_s
        return self.sizer.carried(option.pool, option.profile, size) / size if size else 0.0

    def add(self, added: Stands, sign: int = 1) -> None:
        """Write down what was placed, or taken up again."""
        for row, taken in added.items():
            self.counts[row] = self.counts.get(row, 0) + sign * taken
            if not self.counts[row]:
                del self.counts[row]

    def short_per_s(self, service: int) -> float:
        """What a service's demand lacks of pairs as they stand, with all mixed replicas, placed or not."""
        cells = self.cells
        mine = [(p, option.pool) for p, option in enumerate(cells.pools) if cells.pool_service[p] == service]
        able = sum(int(self.sizes[p]) * self.rate_per_s(p) for p, o in mine if o.role is Role.MIXED and self.sizes[p])
        likes = {cells.pairing.group(pool): pool for _, pool in mine if pool.role is not Role.MIXED}
        for _, like in sorted(likes.items()):
            able += sum(min(both) for both in self.carried(like).values())
        return float(cells.demand_per_s[service]) - able

    def carried(self, like: PoolKey) -> Carried:
        """What prefill and decode of the pool's service and KV group carry where they are placed already."""
        group_of, index = self.cells.pairing.group, {option.pool: p for p, option in enumerate(self.cells.pools)}
        group, found = group_of(like), Carried()
        for (pool, at), count in self.counts.items():
            if pool.service == like.service and pool.role is not Role.MIXED and group_of(pool) == group:
                prefill, decode = found.get(at, (0.0, 0.0))
                rate = count * self.rate_per_s(index[pool])
                is_prefill = pool.role is Role.PREFILL
                found[at] = (prefill + rate, decode) if is_prefill else (prefill, decode + rate)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """Replicas of one cell: what each carries, and USD per hour for a request per second."""

    cell: int
    option: PoolOption
    rate_per_s: float

    @property
    def usd_per_request(self) -> float:
        return self.option.price_usd_per_hour / self.rate_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bundle:
    """So many replicas of two cells for one location."""

    worth_usd: float
    prefill: int
    decode: int


@dataclass(slots=True, kw_only=True)
class _Part:
    """A service's replicas of one KV group in one class of locations.

    ``carried`` says what prefill and decode there carry by location, ``spare`` how many times the other's capacity each
    role may have for nothing to be wasted, ``unpaired`` what more counts for.
    """

    room: Room
    prefill: Sequence[_Kind]
    decode: Sequence[_Kind]
    bays: Mapping[tuple[int, str], Bay]
    wanted: dict[int, int]
    carried: dict[str, tuple[float, float]]
    spare: tuple[float, float]
    unpaired: float = 0.0
    known: dict[tuple[str, int, int], _Bundle | None] = field(default_factory=dict)

    def tried(self, unpaired: Sequence[float]) -> tuple[_Part, dict[tuple[PoolKey, str], int]]:
        """The same after bundles were taken in; this one stays as it is."""
        part = replace(self, room=self.room.copy(), wanted=dict(self.wanted), carried=dict(self.carried), known={})
        return part, part.fill(unpaired)

    @property
    def paired_per_s(self) -> float:
        """What pairs carry at all locations."""
        return sum(min(both) for both in self.carried.values())

    @property
    def most_per_s(self) -> float:
        """What they would carry if all that is wanted stood where it pairs."""
        of = ((kind.rate_per_s * self.wanted[kind.cell] for kind in kinds) for kinds in (self.prefill, self.decode))
        there = (sum(both[i] for both in self.carried.values()) for i in range(2))
        return min(sum(wanted) + at for wanted, at in zip(of, there, strict=True))

    def fill(self, unpaired: Sequence[float]) -> dict[tuple[PoolKey, str], int]:
        """Take bundles in, the best first; what finds no place together stays wanted."""
        added: dict[tuple[PoolKey, str], int] = {}
        sites = sorted({at for _, at in self.bays})
        for self.unpaired in unpaired:
            self.known = {}
            self._filled(sites, added)
        return added

    def mended(
        self,
        before: Mapping[str, tuple[float, float]],
        added: Mapping[tuple[PoolKey, str], int],
        short_per_s: float,
        mend: Mend,
    ) -> dict[tuple[PoolKey, str], int]:
        """Take up what was added and choose places for it and what was left anew; as they were if that is no better.

        ``before`` is what stood before it was added.
        """
        kinds = [*((0, kind) for kind in self.prefill), *((1, kind) for kind in self.decode)]
        if any(bay.shelf for bay in self.bays.values()):
            return dict(added)
        for (pool, at), count in added.items():
            self.room.release(pool, at, count)
        sites, cell = sorted({at for _, at in self.bays}), {kind.option.pool: kind.cell for _, kind in kinds}
        for (pool, _), count in added.items():
            self.wanted[cell[pool]] += count
        seats = [
            Seat(
                pool=kind.option.pool,
                role=role,
                rate_per_s=kind.rate_per_s,
                most=self.wanted[kind.cell],
                bays=tuple(self.bays[kind.cell, at] for at in sites if (kind.cell, at) in self.bays),
            )
            for role, kind in kinds
        ]
        paired = sum(min(self.carried.get(at, (0.0, 0.0))) for at in sites)
        wanted_per_s = paired + short_per_s
        found = mend(Seating(seats=seats, before=before, room=self.room, start=added, wanted_per_s=wanted_per_s))
        return self._seated(found) or self._seated(added) or {}

    def _seated(self, found: Mapping[tuple[PoolKey, str], int]) -> dict[tuple[PoolKey, str], int] | None:
        """Take replicas in where they are to stand, larger ones first; None, and none of them, if one does not fit."""
        cell = {kind.option.pool: kind.cell for kind in (*self.prefill, *self.decode)}
        taken: dict[tuple[PoolKey, str], int] = {}
        for pool, at in sorted(found, key=lambda key: (-key[0].config.gpus, key)):
            bay, count = self.bays[cell[pool], at], found[pool, at]
            taken[pool, at] = self.room.take(pool, at, count, bay)
            if taken[pool, at] < count:
                for (other, where), gone in taken.items():
                    self.room.release(other, where, gone)
                return None
        for (pool, _), count in taken.items():
            self.wanted[cell[pool]] -= count
        return taken

    def _filled(self, sites: Sequence[str], added: dict[tuple[PoolKey, str], int]) -> None:
        while best := self._best(sites):
            site, prefill, decode, bundle = best
            taken = [
                self._take(kind, site, count, added)
                for kind, count in ((prefill, bundle.prefill), (decode, bundle.decode))
            ]
            mine = self.carried.get(site, (0.0, 0.0))
            self.carried[site] = mine[0] + taken[0] * prefill.rate_per_s, mine[1] + taken[1] * decode.rate_per_s
            is_over = not any(taken)  # what the room says of each does not hold of both
            self.known = {key: None if is_over else known for key, known in self.known.items() if key[0] != site}
            if is_over:
                self.known |= {(site, p.cell, d.cell): None for p in self.prefill for d in self.decode}

    def _take(self, kind: _Kind, site: str, count: int, added: dict[tuple[PoolKey, str], int]) -> int:
        bay = self.bays.get((kind.cell, site))
        taken = self.room.take(kind.option.pool, site, count, bay) if bay is not None else 0
        if taken:
            key = kind.option.pool, site
            added[key] = added.get(key, 0) + taken
            self.wanted[kind.cell] -= taken
        return taken

    def _best(self, sites: Sequence[str]) -> tuple[str, _Kind, _Kind, _Bundle] | None:
        best: tuple[str, _Kind, _Kind, _Bundle] | None = None
        for site in sites:
            for p in self.prefill:
                for d in self.decode:
                    if (bundle := self._known(site, p, d)) and (best is None or bundle.worth_usd > best[3].worth_usd):
                        best = site, p, d, bundle
        return best

    def _known(self, site: str, prefill: _Kind, decode: _Kind) -> _Bundle | None:
        """The best bundle for the location, worked out anew only where more would be taken than is left."""
        key = site, prefill.cell, decode.cell
        known = self.known.get(key)
        is_old = known is not None and (
            known.prefill > self.wanted[prefill.cell] or known.decode > self.wanted[decode.cell]
        )
        if key not in self.known or is_old:
            self.known[key] = self._bundle(site, prefill, decode)
        return self.known[key]

    def _bundle(self, site: str, prefill: _Kind, decode: _Kind) -> _Bundle | None:
        """So many of both as carry most there for least that nothing pairs with."""
        most = [self._most(kind, site) for kind in (prefill, decode)]
        if not any(most):
            return None
        some, others = (np.arange(count + 1, dtype=np.float64) for count in most)
        counts = some[:, None], others[None, :]
        before = self.carried.get(site, (0.0, 0.0))
        after = before[0] + counts[0] * prefill.rate_per_s, before[1] + counts[1] * decode.rate_per_s
        usd = prefill.usd_per_request, decode.usd_per_request
        worth = self._worth(after[0], after[1], usd) - self._worth(np.array(before[0]), np.array(before[1]), usd)
        worth = np.where(self._fits(site, prefill, decode, *counts), worth, -np.inf)
        at = np.unravel_index(int(np.argmax(worth)), worth.shape)
        if not worth[at] > 0.0:
            return None
        return _Bundle(worth_usd=float(worth[at]), prefill=int(at[0]), decode=int(at[1]))

    def _worth(self, prefill: Floats, decode: Floats, usd: tuple[float, float]) -> Floats:
        over = np.maximum(0.0, prefill - self.spare[0] * decode), np.maximum(0.0, decode - self.spare[1] * prefill)
        worth: Floats = sum(usd) * np.minimum(prefill, decode) - self.unpaired * (usd[0] * over[0] + usd[1] * over[1])
        return worth

    def _most(self, kind: _Kind, site: str) -> int:
        bay = self.bays.get((kind.cell, site))
        if bay is None:
            return 0
        return min(self.wanted[kind.cell], self.room.room(kind.option.pool, site, bay), MOST_AT_ONCE)

    def _fits(self, site: str, prefill: _Kind, decode: _Kind, some: Floats, others: Floats) -> Floats:
        """Tell which counts of both there is room for: whole groups of GPUs, and watts."""
        fits = np.ones((some.shape[0], others.shape[1]), dtype=bool)
        one, other = (self.bays.get((kind.cell, site)) for kind in (prefill, decode))
        if one is None or other is None:
            return fits
        pools = prefill.option.pool, decode.option.pool
        watts = min(self.room.watts_left(pool, site) for pool in pools) + WATT_TOLERANCE
        fits &= some * self.room.extra_watts(pools[0]) + others * self.room.extra_watts(pools[1]) <= watts
        if one.key == other.key:
            size = min(pool.config.gpus for pool in pools)
            taken = [groups_taken(pool.config.gpus, size, one.node_gpus) for pool in pools]
            fits &= some * taken[0] + others * taken[1] <= self.room.spare_groups(one, size)
        return fits


def pair_up(standing: Standing, wanted: dict[int, int], room: Room, mend: Mend | None = None) -> None:
    """Place what can be of prefill and decode that may not be apart; takes it off ``wanted``, by cell.

    Parameters
    ----------
    standing : Standing
        What is placed already; added to.
    mend : callable, optional
        Solves small integer models, which services that come out short get their places by.
    """
    cells = standing.cells
    made: dict[int, list[tuple[_Part, Carried, dict[tuple[PoolKey, str], int]]]] = {}
    for mine in _in_turn(cells, wanted):
        part = _part(standing, mine, wanted, room)
        if part is None:
            continue
        before, added = dict(part.carried), part.fill(_best_way(part))
        standing.add(added)
        made.setdefault(int(cells.pool_service[cells.cell_pool[mine[0]]]), []).append((part, before, added))
    if mend is None:
        return
    for service, of in sorted(made.items()):
        short_per_s = standing.short_per_s(service)
        for part, before, added in of:
            if short_per_s > LOST * float(cells.demand_per_s[service]):
                standing.add(added, -1)
                standing.add(part.mended(before, added, short_per_s, mend))
                short_per_s = standing.short_per_s(service)


def _in_turn(cells: Cells, wanted: Mapping[int, int]) -> list[list[int]]:
    """Cells by service, class of locations and KV group, those with large replicas first: whole nodes are soon gone."""
    parts: dict[tuple[int, int, str], list[int]] = {}
    for cell in wanted:
        option, service = cells.pools[cells.cell_pool[cell]], int(cells.pool_service[cells.cell_pool[cell]])
        if option.pool.role is not Role.MIXED and option.pool.service in cells.pairing.local and not option.is_anywhere:
            key = service, int(cells.grouping.group_site[cells.cell_group[cell]]), cells.pairing.group(option.pool)
            parts.setdefault(key, []).append(cell)
    each = {key: [(cells.pools[cells.cell_pool[c]].gpus, wanted[c]) for c in mine] for key, mine in parts.items()}
    size = {key: (max(gpus for gpus, _ in of), sum(gpus * count for gpus, count in of)) for key, of in each.items()}
    return [parts[key] for key in sorted(parts, key=lambda key: (-size[key][0], -size[key][1], key))]


def _best_way(part: _Part) -> Sequence[float]:
    """How to begin so that most pairs: bundles that waste nothing may leave behind what no bundle is made of."""
    best: Sequence[float] = UNPAIRED[0]
    most, able = 0.0, part.most_per_s
    for unpaired in UNPAIRED:
        paired = part.tried(unpaired)[0].paired_per_s
        best, most = (unpaired, paired) if paired > most * (1.0 + LOST) else (best, most)
        if most >= able * (1.0 - LOST):
            break
    return best


def _part(standing: Standing, mine: Sequence[int], wanted: dict[int, int], room: Room) -> _Part | None:
    cells = standing.cells
    kinds: dict[Role, list[_Kind]] = {Role.PREFILL: [], Role.DECODE: []}
    for cell in mine:
        option, rate = cells.pools[cells.cell_pool[cell]], standing.rate_per_s(int(cells.cell_pool[cell]))
        if rate > 0.0:
            kinds[option.pool.role].append(_Kind(cell=cell, option=option, rate_per_s=rate))
    total = [sum(wanted[kind.cell] * kind.rate_per_s for kind in of) for of in kinds.values()]
    bays = {(c, bay.location): bay for c in mine for bay in cells.grouping.groups[int(cells.cell_group[c])].bays}
    if not all(total) or len({at for _, at in bays}) == 1:
        return None
    return _Part(
        room=room,
        prefill=kinds[Role.PREFILL],
        decode=kinds[Role.DECODE],
        bays=bays,
        wanted=wanted,
        carried=standing.carried(cells.pools[cells.cell_pool[mine[0]]].pool),
        spare=(max(1.0, total[0] / total[1]), max(1.0, total[1] / total[0])),
    )

"""Whole ways of a service in a large fleet: sizes completed until they carry what they should, then shaved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.pairing import Domain, Pairs
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.pools.options import PoolOption
from solvers.planner.pools.penalties import EXCESS_WEIGHT
from solvers.planner.pools.sizer import Sizer
from solvers.planner.pools.tally import ROUNDING
from solvers.planner.wide.links import WideLinks
from solvers.planner.wide.owned import moved_to_owned, owned_per_s
from solvers.planner.wide.rules import (
    amounts_at_one_cap,
    at_one_cap,
    least_replicas,
    other_caps,
    pin_cells,
    pinned_cells,
    pool_of,
)
from solvers.planner.wide.sides import EVERYWHERE, Sides, by_side, domain_of, pairs_of
from solvers.planner.wide.stocks import Pick, Stocks
from solvers.sizing import Capacity

CHAIN_ROLES = ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED))
MOST_ADDED = 60  # blocks added to one way; a way that needs more is given up
MOST_SHAVED = 200
POOLS_NEAR, CELLS_NEAR = 3, 2  # of a role, and of a pool: where a near way may grow
NEAR_AMOUNTS = (1, 2)  # replicas that come or go by themselves in a way near another


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseWay:
    """One way to run one service: (cell, replicas), sorted. ``penalty`` is what it leaves undone."""

    service: int
    replicas: tuple[tuple[int, int], ...]
    cost_usd_per_hour: float
    penalty_usd_per_hour: float
    sends: tuple[tuple[int, float], ...] = ()
    """What of whole links it takes, by row of ``wide_links.py``."""


@dataclass(slots=True, kw_only=True)
class _Draft:
    """Counts by cell in the making, sums by pool (index inside the service); ``cut`` where pairs may not cross."""

    by_cell: dict[int, int]
    by_pool: dict[int, int]
    cut: Sides | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WayMaker:
    """Writes ways down at the exact capacity of their sizes."""

    cells: Cells
    sizer: Sizer
    stocks: Sequence[Stocks]
    sides: Sequence[Sides | None] = ()
    links: WideLinks | None = None

    def option(self, service: int, pool: int) -> PoolOption:
        """The pool by its index inside the service."""
        stocks = self.stocks[service]
        return self.cells.pools[int(self.cells.cell_pool[stocks.cells.start + int(stocks.first[pool])])]

    def nothing(self) -> Iterator[SparseWay]:
        """For every service, the way without a replica."""
        for s in range(len(self.stocks)):
            yield self._written(s, self._new(s))

    def of_counts(self, replicas: Floats) -> Iterator[SparseWay]:
        """For every service, its part of replicas by cell, (C,)."""
        for s, stocks in enumerate(self.stocks):
            mine = np.flatnonzero(replicas[stocks.cells]) + stocks.cells.start
            yield self._written(s, self._draft(s, {int(cell): round(float(replicas[cell])) for cell in mine}))

    def near(self, service: int, way: SparseWay, cells: Sequence[int]) -> Iterator[SparseWay]:
        """Ways with a few replicas less in one cell, a few more in another, or both, on about as many GPUs."""
        held = dict(way.replicas)
        for less in (None, *held):
            for more in (None, *cells):
                for gone, come in self._amounts(service, less, more):
                    counts = dict(held)
                    if less is not None:
                        counts[less] -= gone
                    if more is not None:
                        counts[more] = counts.get(more, 0) + come
                    if less != more and min(counts.values()) >= 0 and self._is_allowed(service, counts):
                        yield self._written(service, self._draft(service, counts))

    def cells_near(self, service: int, way: SparseWay, asked: Floats) -> list[int]:
        """Cells that a way may grow in: where it is, and the cheapest cells of the cheapest pools per request."""
        stocks, counts = self.stocks[service], [cell for cell, _ in way.replicas]
        if stocks.demand_per_s <= 0.0:
            return counts
        per_request = stocks.cheapest_usd(asked[stocks.cells]) / stocks.rate_per_s
        found = set(counts)
        for role in Role:
            mine = [p for p in np.argsort(per_request, kind="stable").tolist() if stocks.roles[p] is role]
            for pool in mine[:POOLS_NEAR]:
                found |= {stocks.cells.start + int(c) for c in stocks.units(pool, asked[stocks.cells])[2][:CELLS_NEAR]}
        return sorted(found)

    def _amounts(self, service: int, less: int | None, more: int | None) -> list[tuple[int, int]]:
        """How many replicas go and come when one cell gives to another."""
        if less is None or more is None:
            return [(n, n) for n in NEAR_AMOUNTS]
        gpus = [self.option(service, self._pool_of(service, cell)).gpus for cell in (less, more)]
        return sorted({(1, 1), (1, max(1, gpus[0] // gpus[1])), (max(1, gpus[1] // gpus[0]), 1)})

    def _draft(self, service: int, counts: dict[int, int]) -> _Draft:
        draft = self._new(service)
        for cell, count in sorted(counts.items()):
            if count > 0:
                self._put(service, draft, self._pool_of(service, cell), cell, count)
        return draft

    def _is_allowed(self, service: int, counts: dict[int, int]) -> bool:
        """True when cells, pools and roles have room for as many, and every pool has one cap."""
        stocks, draft, in_role = self.stocks[service], self._draft(service, counts), dict.fromkeys(Role, 0)
        for pool, count in draft.by_pool.items():
            in_role[stocks.roles[pool]] += count
        return (
            all(n <= stocks.room[cell - stocks.cells.start] for cell, n in draft.by_cell.items())
            and all(n <= stocks.most[pool] for pool, n in draft.by_pool.items())
            and max(in_role.values()) <= self.cells.services[service].max_replicas
            and not other_caps(stocks, draft.by_pool) & draft.by_pool.keys()
        )

    def way(self, service: int, pick: Pick, asked: Floats, *, may_cross: bool = False) -> SparseWay | None:
        """Make the pick whole: as many replicas as it needs at their exact capacity, in their cheapest cells.

        ``may_cross`` completes what was picked by side wherever it is cheapest.
        """
        draft, sizes = self._new(service, is_near=bool(pick.by_side)), at_one_cap(self.stocks[service], pick.sizes)
        self._pins_kept(service, draft, asked, sorted(sizes))
        for (pool, side), size in sorted(by_side(self.stocks[service], pick, sizes).items()):
            here = self._by_side(service, draft).get((pool, side), 0)
            self._add(service, draft, pool, size - here, asked, side)
        served = pick.served_ratio
        if served < 1.0:  # loads were rounded up: what is left unserved anyway need not be carried to the last part
            served = max(pick.least_served_ratio, served - (len(pick.sizes) + 1) / pick.parts)
        return self._finished(
            service, self._as_served(service, draft) if may_cross else draft, served, asked, sorted(sizes)
        )

    def near_parts(
        self, service: int, amounts: dict[int, float], served: float, asked: Floats
    ) -> Iterator[SparseWay | None]:
        """Whole ways near parts of replicas by cell: rounded down and completed, rounded down alone, and rounded."""
        for lift, ratio in ((1e-6, served), (1e-6, 0.0), (0.5, served)):
            yield self.rounded(service, amounts, ratio, asked, lift)

    def rounded(
        self, service: int, amounts: dict[int, float], served: float, asked: Floats, lift: float = 1e-6
    ) -> SparseWay | None:
        """A whole way near parts of replicas by cell: lifted, rounded down, completed until it carries its part."""
        amounts, draft = amounts_at_one_cap(self.stocks[service], amounts), self._new(service)
        pools = sorted({self._pool_of(service, cell) for cell in amounts})
        for cell in sorted(cell for cell, amount in amounts.items() if int(amount + lift) > 0):
            self._put(service, draft, self._pool_of(service, cell), cell, int(amounts[cell] + lift))
        self._pins_kept(service, draft, asked, pools)
        return self._finished(service, draft, served, asked, pools)

    def _pool_of(self, service: int, cell: int) -> int:
        return pool_of(self.stocks[service], cell)

    def _put(self, service: int, draft: _Draft, pool: int, cell: int, count: int) -> None:
        draft.by_cell[cell] = draft.by_cell.get(cell, 0) + count
        draft.by_pool[pool] = draft.by_pool.get(pool, 0) + count

    def _by_side(self, service: int, draft: _Draft) -> dict[tuple[int, int], int]:
        """Replicas by pool and side."""
        if draft.cut is None:
            return {(pool, EVERYWHERE): count for pool, count in draft.by_pool.items()}
        found: dict[tuple[int, int], int] = {}
        for cell, count in draft.by_cell.items():
            key = self._pool_of(service, cell), self._side(service, draft, cell)
            found[key] = found.get(key, 0) + count
        return found

    def _new(self, service: int, *, is_near: bool = False) -> _Draft:
        """A way to begin with; ``is_near`` when its pairs shall not cross although they may."""
        cut = self.sides[service] if self.sides else None
        return _Draft(by_cell={}, by_pool={}, cut=cut if cut is not None and (is_near or cut.is_local) else None)

    def _as_served(self, service: int, draft: _Draft) -> _Draft:
        """The way with its pairs wherever they may be."""
        return replace(draft, cut=(cut := self._new(service).cut) and cut.as_served())

    def _side(self, service: int, draft: _Draft, cell: int) -> int:
        """Side of pairs that the cell is on, where that matters."""
        cut, is_mixed = draft.cut, self.stocks[service].roles[self._pool_of(service, cell)] is Role.MIXED
        return EVERYWHERE if cut is None or is_mixed else int(cut.of_cell[cell - self.stocks[service].cells.start])

    def _add(self, service: int, draft: _Draft, pool: int, count: int, asked: Floats, side: int = EVERYWHERE) -> int:
        """Put replicas into their cheapest cells, on one side or on any; returns how many found room."""
        stocks = self.stocks[service]
        left = min(count, int(stocks.most[pool]) - draft.by_pool.get(pool, 0))
        _, numbers, cells = stocks.units(pool, asked[stocks.cells])
        held = {c: draft.by_cell.get(stocks.cells.start + c, 0) for c in set(cells.tolist())}
        added = 0
        for number, inside in zip(numbers.tolist(), cells.tolist(), strict=True):
            if side not in (EVERYWHERE, self._side(service, draft, stocks.cells.start + inside)):
                continue
            gone = min(number, held[inside])  # what the draft holds of a cell is what was cheapest there
            held[inside] -= gone
            taken = min(left - added, number - gone)
            if taken > 0:
                self._put(service, draft, pool, stocks.cells.start + inside, taken)
                added += taken
            if added >= left:
                break
        return added

    def _carried(self, service: int, pool: int, size: int) -> float:
        option = self.option(service, pool)
        return self.sizer.carried(option.pool, option.profile, size) if size > 0 else 0.0

    def _pairs(self, service: int, draft: _Draft) -> Pairs:
        able: dict[tuple[int, int], float] = {}
        counts = {part: count for part, count in sorted(self._by_side(service, draft).items()) if count > 0}
        for (pool, side), count in counts.items():
            size = draft.by_pool[pool]
            able[pool, side] = self._carried(service, pool, size) * (count / size if count < size else 1.0)
        able = draft.cut.useful(able, counts) if draft.cut else able
        carried = {(self.option(service, pool).pool, side): rate for (pool, side), rate in able.items()}
        return pairs_of(self.sizer.pairing, self.cells.services[service].name, carried)

    def _domain(self, service: int, pool: int, side: int) -> Domain:
        return domain_of(self.sizer.pairing, self.option(service, pool).pool, side)

    def _finished(
        self, service: int, draft: _Draft, served_ratio: float, asked: Floats, pools: Sequence[int]
    ) -> SparseWay | None:
        target = served_ratio * self.stocks[service].demand_per_s
        if not self._completed(service, draft, target, asked, pools):
            return None
        self._floors_kept(service, draft, asked, pools)
        self._owned_kept(service, draft, target, asked)
        self._shaved(service, draft, target, asked)
        counts = dict.fromkeys(Role, 0)
        for pool, size in draft.by_pool.items():
            counts[self.stocks[service].roles[pool]] += size
        if max(counts.values()) > self.cells.services[service].max_replicas:
            return None
        return self._written(service, draft)

    def _pins_kept(self, service: int, draft: _Draft, asked: Floats, pools: Sequence[int]) -> None:
        """Put what pins ask for where they ask for it, in the way's own pools where one will do."""
        stocks = self.stocks[service]
        for pin in self.cells.services[service].pins:
            cells = pin_cells(self.cells, stocks, pin)
            missing = pin.replicas - sum(draft.by_cell.get(cell, 0) for cell in cells)
            able = ((self._pool_of(service, c) not in pools, asked[c], c) for c in cells)
            for _, _, cell in sorted(able):
                pool, room = self._pool_of(service, cell), int(stocks.room[cell - stocks.cells.start])
                taken = min(missing, room - draft.by_cell.get(cell, 0))
                if taken > 0 and pool not in other_caps(stocks, draft.by_pool):
                    self._put(service, draft, pool, cell, taken)
                    missing -= taken

    def _completed(self, service: int, draft: _Draft, target: float, asked: Floats, pools: Sequence[int]) -> bool:
        """Add the cheapest blocks until the way carries the target; of any pool, where they pair in groups."""
        stocks = self.stocks[service]
        if self.cells.services[service].name in self.sizer.pairing.parted:
            pools = range(len(stocks.roles))
        least, blocked = dict[tuple[int, int], float](), set[tuple[int, int, int]]()
        for _ in range(MOST_ADDED):
            pairs = self._pairs(service, draft)
            if target - pairs.able_per_s <= ROUNDING * target:
                return True
            least = least or self._least_by_side(service, draft, pools, asked)
            best: tuple[float, int, int, int] | None = None
            others = other_caps(self.stocks[service], draft.by_pool)
            for (pool, side), usd in least.items():
                if pool in others:
                    continue
                wanted = pairs.wants(stocks.roles[pool], self._domain(service, pool, side), target)
                now = draft.by_pool.get(pool, 0)
                base, rate = self._carried(service, pool, now), float(stocks.rate_per_s[pool])
                for block in sorted({1, max(1, math.ceil(max(wanted) / rate - 1e-9))}):
                    if (pool, block, side) in blocked or now + block > stocks.most[pool]:
                        continue
                    gain = self._carried(service, pool, now + block) - base
                    useful = sum(min(gain, want) for want in wanted)
                    if useful > 0.0:
                        tried = (block * usd / useful, pool, block, side)
                        best = tried if best is None or tried < best else best
            if best is None:
                return False
            if self._add(service, draft, best[1], best[2], asked, best[3]) < best[2]:
                blocked.add(best[1:])
        return False

    def _least_by_side(
        self, service: int, draft: _Draft, pools: Iterable[int], asked: Floats
    ) -> dict[tuple[int, int], float]:
        """Least price of a replica by pool and side."""
        stocks = self.stocks[service]
        least = stocks.cheapest_usd(asked[stocks.cells])
        cut = draft.cut
        if cut is None:
            return {(pool, EVERYWHERE): float(least[pool]) for pool in pools}
        by_part = cut.stocks.cheapest_usd(asked[stocks.cells][cut.order]).tolist()
        return {part: usd for part, usd in zip(cut.whole, by_part, strict=True) if part[0] in pools}

    def _floors_kept(self, service: int, draft: _Draft, asked: Floats, pools: Sequence[int]) -> None:
        """Add the cheapest replicas that a floor lacks, where the way has a pool for them."""
        stocks, floor = self.stocks[service], least_replicas(self.cells.services[service])
        for roles in CHAIN_ROLES:
            count = sum(n for pool, n in draft.by_pool.items() if stocks.roles[pool] in roles)
            if count >= floor:
                continue
            least, others = stocks.cheapest_usd(asked[stocks.cells]), other_caps(stocks, draft.by_pool)
            able = [p for p, role in enumerate(stocks.roles) if role in roles and p not in others]
            able = sorted([p for p in able if p in pools] or able, key=lambda p: (least[p], p))
            for pool in able:
                if count >= floor:
                    break
                count += self._add(service, draft, pool, floor - count, asked)

    def _owned_kept(self, service: int, draft: _Draft, target: float, asked: Floats) -> None:
        """Move replicas off nodes that may be taken away until what stays carries its part of the target."""
        keeps = 1.0 - self.cells.services[service].max_spot_ratio
        if not 0.0 < keeps < 1.0:
            return
        stocks = self.stocks[service]
        rate = {p: self._carried(service, p, n) / n for p, n in draft.by_pool.items() if n}
        for roles in CHAIN_ROLES:
            while owned_per_s(self.cells, stocks, draft.by_cell, rate, roles) < keeps * target * (1.0 - ROUNDING):
                if not moved_to_owned(self.cells, stocks, draft.by_cell, rate, roles, asked):
                    break

    def _shaved(self, service: int, draft: _Draft, target: float, asked: Floats) -> None:
        """Take away what the way can do without, the dearest first."""
        stocks, least = self.stocks[service], least_replicas(self.cells.services[service])
        price = stocks.cheapest_usd(asked[stocks.cells])
        for pool in sorted(draft.by_pool, key=lambda p: (-price[p], p)):
            for _ in range(MOST_SHAVED):
                pinned = pinned_cells(self.cells, stocks, draft.by_cell)
                held = (c for c in draft.by_cell if draft.by_cell[c] > 0 and c not in pinned)
                mine = [c for c in held if self._pool_of(service, c) == pool]
                dearest = sorted(mine, key=lambda c: (-asked[c] - self._last_usd(service, pool, c, draft), -c))
                able = {self._side(service, draft, c): c for c in reversed(dearest)}.values()
                spare = [c for c in dearest if c in able and self._suffices(service, draft, c, target, least)][:1]
                if not spare:
                    break
                draft.by_cell[spare[0]] -= 1
                draft.by_pool[pool] -= 1

    def _last_usd(self, service: int, pool: int, cell: int, draft: _Draft) -> float:
        """What the cell's last replica pays for its node and for being started, or saves by not being stopped."""
        stocks = self.stocks[service]
        is_new = draft.by_cell[cell] > int(stocks.now[cell - stocks.cells.start])
        churn = stocks.start_usd_per_hour[pool] if is_new else -stocks.stop_usd_per_hour[pool]
        return float(churn + stocks.terms_usd_per_hour[cell - stocks.cells.start])

    def _suffices(self, service: int, now: _Draft, cell: int, target: float, least: int) -> bool:
        """Tell whether the way does without one replica of the cell."""
        roles, pool = self.stocks[service].roles, self._pool_of(service, cell)
        by_cell = {**now.by_cell, cell: now.by_cell[cell] - 1}
        fewer = replace(now, by_cell=by_cell, by_pool={**now.by_pool, pool: now.by_pool[pool] - 1})
        for chain in CHAIN_ROLES:
            left, had = (sum(n for p, n in draft.by_pool.items() if roles[p] in chain) for draft in (fewer, now))
            if left < min(least, had):
                return False
        able = self._pairs(service, fewer).able_per_s
        wanted = target if target > 0.0 else self._pairs(service, now).able_per_s
        return able >= min(wanted, self.stocks[service].demand_per_s) * (1.0 - ROUNDING)

    def _written(self, service: int, draft: _Draft) -> SparseWay:
        """Price the way: GPUs and energy at its sizes, starts and stops, and what it leaves undone."""
        stocks, energy = self.stocks[service], self.cells.policy.energy_usd_per_kilowatt_hour
        cost = stocks.stop_all_usd_per_hour
        for pool, size in sorted(draft.by_pool.items()):
            option = self.option(service, pool)
            if size <= 0:
                continue
            sized = self.sizer.at(option.pool, option.profile, size)
            watts = sized.gpu_watts if isinstance(sized, Capacity) else option.profile.idle_watts_per_gpu
            cost += size * (option.price_usd_per_hour + energy * option.replica_watts(watts) / 1000.0)
        replicas = tuple(sorted((cell, count) for cell, count in draft.by_cell.items() if count > 0))
        kept_anywhere: dict[int, int] = {}
        for cell, count in replicas:
            pool, inside = self._pool_of(service, cell), cell - stocks.cells.start
            kept = min(count, int(stocks.now[inside]) - kept_anywhere.get(pool, 0))
            if self.option(service, pool).is_anywhere:
                kept_anywhere[pool] = kept_anywhere.get(pool, 0) + kept
            cost += float(stocks.terms_usd_per_hour[inside]) * count
            cost += (
                float(stocks.start_usd_per_hour[pool]) * (count - kept) - float(stocks.stop_usd_per_hour[pool]) * kept
            )
        served, paid, sends = self._sent(service, draft)
        return SparseWay(
            service=service,
            replicas=replicas,
            cost_usd_per_hour=cost + paid,
            penalty_usd_per_hour=self._penalty(service, draft, served),
            sends=sends,
        )

    def _sent(self, service: int, draft: _Draft) -> tuple[float, float, tuple[tuple[int, float], ...]]:
        """What is served or could be, requests/s, what crossing links costs for it, and what it takes of them."""
        able = self._pairs(service, self._as_served(service, draft)).able_per_s
        if self.links is None or service not in self.links.services:
            return able, 0.0, ()
        carried: dict[tuple[PoolKey, int], float] = {}
        for cell, count in draft.by_cell.items():
            pool = self._pool_of(service, cell)
            key = self.option(service, pool).pool, self.links.side(cell)
            rate = self._carried(service, pool, draft.by_pool[pool]) / max(1, draft.by_pool[pool])
            carried[key] = carried.get(key, 0.0) + count * rate
        return self.links.sent(service, carried, min(able, self.stocks[service].demand_per_s))

    def _penalty(self, service: int, draft: _Draft, able: float) -> float:
        by_pool = draft.by_pool
        stocks, roles = self.stocks[service], self.stocks[service].roles
        least = self.cells.services[service].min_replicas
        missing = sum(
            max(0, least - sum(n for pool, n in by_pool.items() if roles[pool] in chain)) for chain in CHAIN_ROLES
        )
        for pin in self.cells.services[service].pins:
            there = sum(draft.by_cell.get(cell, 0) for cell in pin_cells(self.cells, stocks, pin))
            missing += max(0, pin.replicas - there)
        lacking = 0.0
        if stocks.demand_per_s > 0.0:
            lacking = max(0.0, 1.0 - able * (1.0 + ROUNDING) / stocks.demand_per_s)
        beyond = max(0.0, lacking - float(self.cells.fair_ratio[service]))
        unserved = stocks.unserved_usd_per_hour * (lacking + EXCESS_WEIGHT * beyond)
        return unserved + float(self.cells.floor_usd_per_hour[service]) * missing

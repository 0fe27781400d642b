"""Replicas that found no bay, given one: who goes where is chosen anew by a small integer model around them.

A model over groups of interchangeable bays may ask for what no greedy order fits into the bays one by one. Here the
replicas of the bays in question are taken up again and just those bays are filled anew: whole groups of GPUs at each
bay, watts of every domain with what stays elsewhere taken off.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from solvers.engine import Role
from solvers.errors import SolveFailed
from solvers.fleet import PoolKey
from solvers.planner.bays.grouping import Bay
from solvers.planner.bays.nodes import Room
from solvers.planner.model.relax import WHOLE_TOLERANCE, Arrays
from solvers.planner.placing.places import Placed, cell_counts, lost_counts
from solvers.planner.placing.room_rows import Row, Stand, group_rows, watt_rows
from solvers.planner.pools.cells import Cells, Floats
from solvers.programme import Programme, Run, stacked

MOST_COLUMNS = 1500  # kinds of replicas times bays that are filled anew together
MOST_NODES = 20
REPACK_GAP = 1e-6  # of what is placed: the last replica of the least worth still shows
SUMMED = ("gpus", "power_whole")  # limits whose rows count what is whole in each of several members

Seats = dict[tuple[int, int], int]
"""Replicas by (unit, bay of the scope)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A pool in the bays of a scope that are one to it; ``wanted`` of its replicas are to stand in any of them.

    ``worth_usd_per_hour`` is what one replica brings, ``keeping_usd_per_hour`` what one spares by staying.
    """

    pool: PoolKey
    gpus: int
    watts: float
    bays: tuple[int, ...]
    wanted: int
    worth_usd_per_hour: float
    keeping_usd_per_hour: float = 0.0
    running: Mapping[int, int] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[int, float, tuple[int, ...]]:
        """What nobody can tell its replicas by."""
        return self.gpus, self.watts, self.bays


def repacked(
    cells: Cells,
    replicas: Floats,
    placed: Placed,
    *,
    run: Run,
    time_limit_s: float,
    most_columns: float = math.inf,
) -> Placed:
    """Give replicas that found no place one, as many as are worth most; never less than what was placed.

    What runs stays where it runs unless its bay is needed. Services that care for places stay where they are, and so
    does what stands where more than GPUs and watts may run out. A solve that fails leaves its bays as they were.

    Parameters
    ----------
    replicas : (C,) float
        Whole counts by cell; what ``placed`` lacks of them is left over.
    run : callable
        Solves an integer programme.
    most_columns : float
        Where kinds of replicas times bays are more, all stay where they are.
    """
    for groups in _scopes(cells, _left_over(cells, replicas, placed)):
        bays = _bays(cells, groups, placed.room)
        units = _units(cells, groups, bays, replicas, placed)
        if len({unit.kind for unit in units}) * len(bays) > most_columns:
            continue
        bays, units = _fewer(bays, units, placed)
        before = _seated(units, bays, placed)
        room = placed.room.copy()
        for (unit, at), count in before.items():
            room.release(units[unit].pool, bays[at].location, count)
        try:
            after = seats_chosen(units, bays, room, before, run=run, time_limit_s=time_limit_s)
        except SolveFailed:
            continue
        if value_of(units, after) > value_of(units, before) * (1.0 + REPACK_GAP):
            placed = _moved(placed, units, bays, (before, after), room)
    return placed


def _left_over(cells: Cells, replicas: Floats, placed: Placed) -> Floats:
    """Replicas by cell that found no place and may stand in any bay of theirs, (C,)."""
    lost = lost_counts(cells, replicas, placed)
    return np.where([is_movable(cells, c) for c in range(len(lost))], lost, 0.0)


def is_movable(cells: Cells, cell: int) -> bool:
    """True where it does not matter in which bay of its group a replica of the cell stands."""
    option, service = cells.pools[cells.cell_pool[cell]], cells.services[cells.pool_service[cells.cell_pool[cell]]]
    is_paired = cells.by_place(service.name) and option.pool.role is not Role.MIXED
    has_shelf = cells.grouping.groups[cells.cell_group[cell]].bays[0].shelf is not None
    return not (option.is_anywhere or is_paired or service.is_spread or service.pins or has_shelf)


def unusable(cells: Cells, arrays: Arrays, replicas: Floats, placed: Placed) -> dict[tuple[str, str], float]:
    """Room that rows of interchangeable members have in sum and that no single member has, by (limit, subject).

    It is what a replica that found no place would take of the rows of groups of bays and of domains where no member
    has room for another.
    """
    have = cell_counts(cells, placed.counts)
    missing = np.bincount(cells.cell_pool, np.round(replicas) - have, minlength=len(cells.pools))
    found: dict[tuple[str, str], float] = {}
    first, matrix = arrays.columns["replicas"].start, arrays.matrix.tocsc()
    for c in np.flatnonzero((np.round(replicas) > have) & (missing[cells.cell_pool] > 0.0)):
        labels, lost = _full(cells, int(c), placed.room), float(min(missing[cells.cell_pool[c]], replicas[c] - have[c]))
        missing[cells.cell_pool[c]] -= lost
        column = matrix[:, [first + int(c)]].tocoo()
        for row, use in zip(column.row.tolist(), column.data.tolist(), strict=True):
            limit, subject = arrays.rows[row]
            if limit in SUMMED and subject.startswith(labels):
                found[limit, subject] = found.get((limit, subject), 0.0) + use * lost
    return found


def _full(cells: Cells, cell: int, room: Room) -> tuple[str, ...]:
    """How subjects begin of rows about groups, and classes of domains, none of whose members has room for another."""
    option, g = cells.pools[cells.cell_pool[cell]], int(cells.cell_group[cell])
    group, shape = cells.grouping.groups[g], room.shape(option.pool)
    labels = [group.label + " x"] if all(room.spare(bay, shape) == 0 for bay in group.bays) else []
    for (at, d), _ in sorted(cells.grouping.charges.items()):
        domains = cells.grouping.domain_groups[d]
        if at == g and max(room.free_watts[name] for name in domains.domains) < option.reserved_watts:
            labels += [domains.label + " by "] if len(domains.domains) > 1 else []
    return tuple(labels)


def _scopes(cells: Cells, lost: Floats) -> Iterator[list[int]]:
    """Groups of bays with something left over, each with those that share a domain which only some bays draw from."""
    parts = _parts(cells)
    seen = dict.fromkeys(parts[g] for g in sorted({int(cells.cell_group[c]) for c in np.flatnonzero(lost)}))
    for part in seen:
        yield [g for g, mine in enumerate(parts) if mine == part]


def _parts(cells: Cells) -> list[int]:
    """A number for each group of bays, the same where a bay chosen in one changes what bays of the other have."""
    part = list(range(len(cells.grouping.groups)))
    first: dict[str, int] = {}
    for g, group in enumerate(cells.grouping.groups):
        fed = [frozenset(bay.charged) for bay in group.bays]
        for domain in sorted(fed[0].union(*fed) - fed[0].intersection(*fed)):
            other = part[first.setdefault(domain, g)]
            part = [part[g] if p == other else p for p in part]
    return part


def _bays(cells: Cells, groups: Collection[int], room: Room) -> list[Bay]:
    """The bays of groups, those with most watts left first."""

    def watts_left(bay: Bay) -> float:
        return min((room.free_watts[d] for d in bay.charged), default=math.inf)

    bays = (bay for g in groups for bay in cells.grouping.groups[g].bays)
    return sorted(bays, key=lambda bay: (-watts_left(bay), bay.key))


def _units(cells: Cells, groups: Collection[int], bays: Sequence[Bay], replicas: Floats, placed: Placed) -> list[Unit]:
    """The pools that want to be in groups, once for all bays that cost them the same."""
    inside = [int(c) for c in np.flatnonzero(np.isin(cells.cell_group, list(groups))) if is_movable(cells, int(c))]
    terms, wanted = cells.terms_usd_per_hour(), np.maximum(np.round(replicas), cell_counts(cells, placed.counts))
    found: dict[tuple[int, float], list[int]] = {}
    for c in inside:
        found.setdefault((int(cells.cell_pool[c]), float(terms[c])), []).append(c)
    at = {bay.key: index for index, bay in enumerate(bays)}
    return [
        _unit(cells, p, int(wanted[mine].sum()), sorted(at[bay.key] for c in mine for bay in _of(cells, c)), bays)
        for (p, _), mine in sorted(found.items())
        if wanted[mine].sum() > 0
    ]


def _of(cells: Cells, cell: int) -> tuple[Bay, ...]:
    return cells.grouping.groups[int(cells.cell_group[cell])].bays


def worth_usd_per_hour(cells: Cells, p: int) -> float:
    """What a placed replica of a pool brings: its rent, and penalties of what it would carry in the largest pool."""
    option, s = cells.pools[p], int(cells.pool_service[p])
    demand = float(cells.demand_per_s[s])
    part = min(1.0, option.steps[-1].capacity_requests_per_s / demand) if demand > 0.0 else 0.0
    return option.price_usd_per_hour + part * float(cells.penalty_usd_per_hour[s])


def _unit(cells: Cells, p: int, wanted: int, at: Sequence[int], bays: Sequence[Bay]) -> Unit:
    option, only = cells.pools[p], np.array([p])
    running = {b: cells.problem.running.get((option.pool.uncapped, bays[b].location), 0) for b in at}
    return Unit(
        pool=option.pool,
        gpus=option.gpus,
        watts=option.reserved_watts,
        bays=tuple(at),
        wanted=wanted,
        worth_usd_per_hour=worth_usd_per_hour(cells, p),
        keeping_usd_per_hour=float((cells.start_usd_per_hour(only) + cells.stop_usd_per_hour(only))[0]),
        running={b: now for b, now in running.items() if now > 0},
    )


def _fewer(bays: list[Bay], units: list[Unit], placed: Placed) -> tuple[list[Bay], list[Unit]]:
    """Leave the bays with fewest watts to spare as they are, where there are too many; what they hold stays there."""
    kinds = len({unit.kind for unit in units})
    count = max(2, MOST_COLUMNS // max(1, kinds))
    if len(bays) <= count:
        return bays, units
    kept = [_cut(unit, bays, count, placed) for unit in units]
    return bays[:count], [unit for unit in kept if unit.bays and unit.wanted]


def _cut(unit: Unit, bays: Sequence[Bay], count: int, placed: Placed) -> Unit:
    away = sum(placed.counts.get((unit.pool, bays[b].location), 0) for b in unit.bays if b >= count)
    return Unit(
        pool=unit.pool,
        gpus=unit.gpus,
        watts=unit.watts,
        bays=tuple(b for b in unit.bays if b < count),
        wanted=unit.wanted - away,
        worth_usd_per_hour=unit.worth_usd_per_hour,
        keeping_usd_per_hour=unit.keeping_usd_per_hour,
        running={b: now for b, now in unit.running.items() if b < count},
    )


def _seated(units: Sequence[Unit], bays: Sequence[Bay], placed: Placed) -> Seats:
    pairs = [(u, b) for u, unit in enumerate(units) for b in unit.bays]
    counts = {(u, b): placed.counts.get((units[u].pool, bays[b].location), 0) for u, b in pairs}
    return {key: count for key, count in counts.items() if count > 0}


def value_of(units: Sequence[Unit], seats: Seats) -> float:
    """What seated replicas are worth, and what those that stay where they run spare; USD per hour."""
    placed = sum(units[u].worth_usd_per_hour * n for (u, _), n in seats.items())
    kept = ((units[u], min(n, units[u].running.get(b, 0))) for (u, b), n in seats.items())
    return placed + sum(unit.keeping_usd_per_hour * n for unit, n in kept)


def _moved(
    placed: Placed, units: Sequence[Unit], bays: Sequence[Bay], seats: tuple[Seats, Seats], room: Room
) -> Placed:
    """Write the seats down; as they were, when the ledger of room refuses any."""
    before, after = seats
    counts = dict(placed.counts)
    for (u, b), n in before.items():
        counts[units[u].pool, bays[b].location] -= n
    for (u, b), n in sorted(after.items(), key=lambda row: (-units[row[0][0]].gpus, row[0])):
        key = units[u].pool, bays[b].location
        if room.take(*key, n) < n:
            return placed
        counts[key] = counts.get(key, 0) + n
    more = sum(after.values()) - sum(before.values())
    kept = {key: n for key, n in sorted(counts.items()) if n > 0}
    return Placed(counts=kept, room=room, left=placed.left - more)


def seats_chosen(
    units: Sequence[Unit], bays: Sequence[Bay], room: Room, before: Seats, *, run: Run, time_limit_s: float
) -> Seats:
    """Choose seats of most worth in the bays.

    Replicas of as many GPUs and watts that may stand in the same bays are one kind; who of a kind stands where matters
    only for what runs. Columns: replicas of each kind by bay, placed replicas of each unit, those that stay where they
    run.

    Parameters
    ----------
    room : Room
        What is free when none of the units' replicas stands in the bays.
    before : mapping of (unit, bay) to int
        Seats to begin with.

    Raises
    ------
    SolveFailed
        The solver found nothing.
    """
    model = _Model.of(units, bays)
    matrix, most = model.rows(room)
    programme = Programme(
        matrix=matrix,
        cost=model.costs(),
        columns=(np.zeros(len(model.upper)), model.upper),
        rows=(np.where(np.arange(len(most)) < len(model.kinds), 0.0, -np.inf), most),
        whole=np.ones(len(model.upper), dtype=bool),
        options={
            "time_limit": time_limit_s,
            "mip_rel_gap": REPACK_GAP,
            "mip_max_nodes": MOST_NODES,
            "mip_feasibility_tolerance": WHOLE_TOLERANCE,
        },
        start=model.start(before),
    )
    return model.seats(np.round(run(programme).x).astype(int).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """Columns in order: (kind, bay), units, (unit, bay) where some of it runs."""

    units: Sequence[Unit]
    bays: Sequence[Bay]
    kinds: Mapping[tuple[int, float, tuple[int, ...]], int]
    stands: Mapping[tuple[int, int], int]
    keeps: Mapping[tuple[int, int], int]
    upper: Floats

    @classmethod
    def of(cls, units: Sequence[Unit], bays: Sequence[Bay]) -> _Model:
        kinds = {kind: k for k, kind in enumerate(dict.fromkeys(unit.kind for unit in units))}
        wanted = [0] * len(kinds)
        for unit in units:
            wanted[kinds[unit.kind]] += unit.wanted
        pairs = [(k, b) for kind, k in kinds.items() for b in kind[2]]
        running = [(u, b) for u, unit in enumerate(units) for b in sorted(unit.running)]
        first = len(pairs) + len(units)
        upper = [wanted[k] for k, _ in pairs]
        upper += [unit.wanted for unit in units]
        upper += [min(units[u].wanted, units[u].running[b]) for u, b in running]
        return cls(
            units=units,
            bays=bays,
            kinds=kinds,
            stands={pair: at for at, pair in enumerate(pairs)},
            keeps={pair: first + at for at, pair in enumerate(running)},
            upper=np.array(upper, dtype=float),
        )

    def costs(self) -> Floats:
        """What is gained, as a cost."""
        cost, first = np.zeros(len(self.upper)), len(self.stands)
        cost[first : first + len(self.units)] = [-unit.worth_usd_per_hour for unit in self.units]
        for (u, _), column in self.keeps.items():
            cost[column] = -self.units[u].keeping_usd_per_hour
        return cost

    def rows(self, room: Room) -> tuple[sp.csc_array, Floats]:
        """The sum of each kind, then what is kept, groups of GPUs, watts: matrix and what each row has at most."""
        kinds = {k: kind for kind, k in self.kinds.items()}
        standing = [
            Stand(column=column, bay=self.bays[b], gpus=kinds[k][0], watts=kinds[k][1])
            for (k, b), column in sorted(self.stands.items(), key=lambda row: (row[0][1], row[1]))
        ]
        limits = *group_rows(standing, room), *watt_rows(standing, room, are_whole=True)
        rows, most = zip(*self._sums(), *self._kept(), *limits, strict=True)
        return stacked(rows, len(self.upper)), np.array(most)

    def _sums(self) -> Iterator[Row]:
        for k in self.kinds.values():
            mine = {column: 1.0 for (kind, _), column in self.stands.items() if kind == k}
            yield mine | {len(self.stands) + u: -1.0 for u in self._units_of(k)}, 0.0

    def _units_of(self, kind: int) -> list[int]:
        return [u for u, unit in enumerate(self.units) if self.kinds[unit.kind] == kind]

    def _kept(self) -> Iterator[Row]:
        """No more stay than there are, of each unit and of each kind at each bay."""
        by_unit: dict[int, dict[int, float]] = {}
        by_stand: dict[int, dict[int, float]] = {}
        for (u, b), column in self.keeps.items():
            by_unit.setdefault(len(self.stands) + u, {})[column] = 1.0
            by_stand.setdefault(self.stands[self.kinds[self.units[u].kind], b], {})[column] = 1.0
        for whole, parts in (*sorted(by_unit.items()), *sorted(by_stand.items())):
            yield parts | {whole: -1.0}, 0.0

    def start(self, before: Seats) -> Floats:
        x = np.zeros(len(self.upper))
        for (u, b), count in before.items():
            x[self.stands[self.kinds[self.units[u].kind], b]] += count
            x[len(self.stands) + u] += count
            if (u, b) in self.keeps:
                x[self.keeps[u, b]] = min(count, self.upper[self.keeps[u, b]])
        return x

    def seats(self, x: Sequence[int]) -> Seats:
        """Who sits where: what stays first, the rest of each unit in turn where its kind has seats left."""
        seats = {pair: x[column] for pair, column in self.keeps.items() if x[column] > 0}
        for kind, k in self.kinds.items():
            free = {b: x[self.stands[k, b]] for b in kind[2]}
            for u in self._units_of(k):
                for b in kind[2]:
                    free[b] -= seats.get((u, b), 0)
            for u in self._units_of(k):
                left = x[len(self.stands) + u] - sum(seats.get((u, b), 0) for b in kind[2])
                for b in kind[2]:
                    taken = max(0, min(left, free[b]))
                    if taken:
                        seats[u, b] = seats.get((u, b), 0) + taken
                    free[b], left = free[b] - taken, left - taken
        return seats

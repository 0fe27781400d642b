"""Ways of a large fleet as they are found, and what each takes of what services share, column by column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from solvers.fleet import PoolKey
from solvers.planner.model.relax import Arrays
from solvers.planner.pools.cells import Cells, Floats, Ints
from solvers.planner.wide.rows import NEAR_ROOM, costs, numbers, sends
from solvers.planner.wide.ways import SparseWay

Flags = NDArray[np.bool_]

LEAST_UNLIKE = 2  # ways of a service, the best, that count whatever pools they have


@dataclass(slots=True, kw_only=True)
class WayTable:
    """Ways W in the order in which they were found; columns are worked out once, when first asked for.

    Attributes
    ----------
    shared : (R, C) sparse
        What a replica of each cell takes of each shared row.
    tiers : (S,) int
        Place of each service's tier.
    first_link : int
        The row where those of links begin, which are taken by ways as a whole.
    """

    shared: sp.csr_array
    tiers: Ints
    first_link: int
    ways: list[SparseWay] = field(default_factory=list)
    _known: dict[tuple[int, tuple[tuple[int, int], ...]], int] = field(default_factory=dict)
    _used: sp.csc_array | None = None
    _service: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _cost: Floats = field(default_factory=lambda: np.zeros(0))
    _penalty: Floats = field(default_factory=lambda: np.zeros(0))

    def apart(self) -> WayTable:
        """The same ways, to which others may be added that are none of this table's."""
        return replace(self, ways=[*self.ways], _known={**self._known})

    def add(self, way: SparseWay | None) -> bool:
        """Remember a way; False when it is none or known."""
        if way is None or (way.service, way.replicas) in self._known:
            return False
        self._known[way.service, way.replicas] = len(self.ways)
        self.ways.append(way)
        return True

    def take(self, ways: Iterable[SparseWay | None]) -> None:
        """Remember ways."""
        for way in ways:
            self.add(way)

    def index(self, way: SparseWay) -> int:
        """Where a known way stands."""
        return self._known[way.service, way.replicas]

    @property
    def used(self) -> sp.csc_array:
        """What each way takes of the shared rows, (R, W)."""
        self._look()
        return self._used

    @property
    def service(self) -> Ints:
        """The service of each way, (W,)."""
        self._look()
        return self._service

    @property
    def costs(self) -> tuple[Floats, Floats]:
        """What each way costs, and the penalties of what it leaves undone, (W,) each."""
        self._look()
        return self._cost, self._penalty

    def outside(self, penalties: Mapping[int, tuple[float, float]]) -> Flags:
        """True for ways that leave less or more undone than they may, least and most by service; (W,)."""
        penalty, is_out = self.costs[1], np.zeros(len(self.ways), dtype=bool)
        for s, (least, most) in penalties.items():
            is_out |= (self.service == s) & ((penalty < least) | (penalty > most))
        return is_out

    def replicas(self, chosen: Sequence[int]) -> Floats:
        """Replicas by cell of some ways together, (C,)."""
        total: Floats = numbers([self.ways[index] for index in chosen], self.shared.shape[1]).sum(axis=1)
        return total

    def _look(self) -> None:
        """Work out the columns of the ways that are new."""
        fresh = self.ways[len(self._service) :]
        if not fresh and self._used is not None:
            return
        used, (cost, penalty) = sp.csc_array(self.shared @ numbers(fresh, self.shared.shape[1])), costs(fresh)
        if self.first_link < self.shared.shape[0]:
            used = sp.csc_array(used + sends(fresh, self.first_link, self.shared.shape[0]))
        self._used = used if self._used is None else sp.csc_array(sp.hstack([self._used, used]))
        self._service = np.append(self._service, np.array([way.service for way in fresh], dtype=np.int64))
        self._cost, self._penalty = np.append(self._cost, cost), np.append(self._penalty, penalty)

    def sizes(self, index: int, cells: Cells) -> dict[PoolKey, int]:
        """Pools of a way and how many replicas each has."""
        totals: dict[PoolKey, int] = {}
        for cell, count in self.ways[index].replicas:
            pool = cells.pools[int(cells.cell_pool[cell])].pool
            totals[pool] = totals.get(pool, 0) + count
        return totals

    def sizes_of_best(
        self, service: int, values: Floats, most: int, cells: Cells, *, are_unlike: bool = False
    ) -> Iterator[tuple[PoolKey, int]]:
        """Pools and their sizes in the ways of a service whose values, (W,), are least, at most so many.

        With ``are_unlike`` a way counts, after the first two, only if it has a pool that none before it has.
        """
        mine, known = np.flatnonzero(self.service == service), set[PoolKey]()
        for rank, at in enumerate(mine[np.argsort(values[mine], kind="stable")].tolist()):
            sizes = self.sizes(at, cells)
            if are_unlike and rank >= LEAST_UNLIKE and sizes.keys() <= known:
                continue
            known |= sizes.keys()
            yield from sizes.items()
            most -= 1
            if not most:
                break

    def overfull(self, room: Floats) -> Flags:
        """True for ways that send more than links carry, (R,) being the room of the shared rows; (W,)."""
        most = room[self.first_link :, None]
        sent: Flags = (self.used.tocsr()[self.first_link :].toarray() > most * (1.0 + NEAR_ROOM)).any(axis=0)
        return sent

    def priced(self, prices: Floats, weights: Floats) -> Floats:
        """What each way costs at the prices of the shared rows, (R,), its penalties weighed by service, (S,); (W,)."""
        cost, penalty = self.costs
        priced: Floats = cost + weights[self.service] * penalty + self.used.T @ prices
        return priced

    def choice(self, room: Floats, held: int, among: Sequence[int] | None = None, *, is_whole: bool = False) -> Arrays:
        """State the choice: one way for each service, shared rows kept, no held tier more short than it may be.

        Parameters
        ----------
        room : (R + held,) float
            Of the shared rows, then what each held tier may leave undone, in penalties.
        held : int
            Tiers from the top that are held.
        among : sequence of int, optional
            Ways to choose from; all of them without it.
        """
        (cost, penalty), services, used = self.costs, self.service, self.used
        if among is not None:
            cost, penalty, services, used = cost[among], penalty[among], services[among], used[:, among]
        count, tiers = len(services), self.tiers[services]
        one = sp.csr_array((np.ones(count), (services, np.arange(count))), shape=(len(self.tiers), count))
        lacks = [sp.csr_array((penalty * (tiers == t))[None, :]) for t in range(held)]
        ones = np.ones(len(self.tiers))
        return Arrays(
            cost=cost + penalty,
            matrix=sp.csc_array(sp.vstack([one, used, *lacks])),
            row_lower=np.concatenate([ones, np.full(len(room), -np.inf)]),
            row_upper=np.concatenate([ones, room]),
            lower=np.zeros(count),
            upper=np.ones(count),
            whole=np.full(count, is_whole),
            columns={},
            rows=(),
        )

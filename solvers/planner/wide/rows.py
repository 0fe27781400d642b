"""Ways of a large fleet as arrays: what they take of what services share, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp

from solvers.planner.model.relax import Arrays
from solvers.planner.pools.cells import Cells, Floats, Ints
from solvers.planner.wide.ways import SparseWay, WayMaker

NEAR_ROOM = 1e-9  # of a row's room, what rounding may take too much
MOST_WAYS = 12  # of a service that the whole choice is made from


def numbers(ways: Sequence[SparseWay], cells: int) -> sp.csc_array:
    """Replicas by cell and way, (C, W)."""
    rows = np.array([cell for way in ways for cell, _ in way.replicas], dtype=np.int64)
    columns = np.repeat(np.arange(len(ways)), [len(way.replicas) for way in ways])
    counts = np.array([n for way in ways for _, n in way.replicas], dtype=float)
    return sp.csc_array((counts, (rows, columns)), shape=(cells, len(ways)))


def sends(ways: Sequence[SparseWay], first: int, rows: int) -> sp.csc_array:
    """What ways take of links by shared row, those of links beginning with ``first``, (R, W)."""
    at = [(first + row, index, share) for index, way in enumerate(ways) for row, share in way.sends]
    shares, places = np.array([share for *_, share in at]), np.array([place for *place, _ in at], dtype=np.int64)
    return sp.csc_array((shares, places.reshape(-1, 2).T), shape=(rows, len(ways)))


def costs(ways: Sequence[SparseWay]) -> tuple[Floats, Floats]:
    """What ways cost, and the penalties of what they leave undone, (W,) each."""
    return np.array([way.cost_usd_per_hour for way in ways]), np.array([way.penalty_usd_per_hour for way in ways])


def priced_ways(ways: Sequence[SparseWay], asked: Floats, weights: Floats) -> Floats:
    """What ways cost where a replica of each cell is ``asked``, (C,), and penalties weigh as for each service, (S,)."""
    cost, penalty = costs(ways)
    priced: Floats = cost + weights[[way.service for way in ways]] * penalty + numbers(ways, len(asked)).T @ asked
    return priced


def usd_per_unit(cells: Cells, shared: sp.csr_array) -> Floats:
    """What a unit of each shared row costs in the cheapest replica that uses it, USD per hour."""
    price = np.array([option.price_usd_per_hour for option in cells.pools])[cells.cell_pool]
    scaled = sp.csr_array((price[shared.indices] / shared.data, shared.indices, shared.indptr), shape=shared.shape)
    least = np.zeros(shared.shape[0])
    for row in range(shared.shape[0]):
        inside = scaled.data[shared.indptr[row] : shared.indptr[row + 1]]
        least[row] = inside.min() if len(inside) else 0.0
    return least


def best_ways(ways: Sequence[SparseWay], values: Floats) -> list[int]:
    """Each service's way without a replica and its best ways by their values, (W,), in order."""
    ranked = dict[int, list[tuple[float, int]]]()
    for index, (way, value) in enumerate(zip(ways, values.tolist(), strict=True)):
        ranked.setdefault(way.service, []).append((value if way.replicas else -np.inf, index))
    return sorted(index for rows in ranked.values() for _, index in sorted(rows)[: MOST_WAYS + 1])


def taken_in_turn(choice: Arrays, tiers: Ints, shares: Floats) -> Floats:
    """A whole choice to begin with: the largest share of each service that still fits, else what costs least.

    Parameters
    ----------
    choice : Arrays
        Its first rows take one way of each service; the others have room.
    tiers : (S,) int
        Place of each service's tier.
    shares : (W,) float
        Of each way in the relaxed choice.

    Returns
    -------
    (W,) float, 0 or 1
    """
    table, count = choice.matrix.toarray(), len(tiers)
    room = choice.row_upper[count:] + NEAR_ROOM * np.maximum(1.0, np.abs(choice.row_upper[count:]))
    service, used = np.argmax(table[:count] > 0.0, axis=0), table[count:]
    x = np.zeros(len(shares))
    largest = [float(shares[service == s].max(initial=0.0)) for s in range(count)]
    for s in sorted(range(count), key=lambda s: (tiers[s], -largest[s], s)):
        mine = np.flatnonzero(service == s)
        able = mine[(used[:, mine] <= room[:, None]).all(axis=0)]
        order = np.lexsort((choice.cost[able], -np.round(shares[able], 3)))
        if len(able):
            x[able[order[0]]] = 1.0
            room = room - used[:, able[order[0]]]
    return x


def blends(
    maker: WayMaker, service: int, split: Sequence[tuple[SparseWay, float]], asked: Floats
) -> Iterator[SparseWay | None]:
    """Whole ways of a service near a mix of its ways."""
    mixed, served = dict[int, float](), 0.0
    for way, share in split:
        for cell, count in way.replicas:
            mixed[cell] = mixed.get(cell, 0.0) + share * count
        lacks = way.penalty_usd_per_hour / max(maker.stocks[service].unserved_usd_per_hour, 1e-9)
        served += share * (1.0 - min(1.0, lacks))
    return maker.near_parts(service, mixed, served, asked)


def ways_near(maker: WayMaker, way: SparseWay, asked: Floats, weights: Floats, most: int) -> list[SparseWay]:
    """Ways near one, the best of them where cells are ``asked``, (C,), and penalties weigh so much, (S,)."""
    cells = maker.cells_near(way.service, way, asked)
    near = list({other.replicas: other for other in maker.near(way.service, way, cells)}.values())
    order = np.argsort(priced_ways(near, asked, weights), kind="stable")[:most]
    return [near[at] for at in order.tolist()]


def split_ways(
    ways: Sequence[SparseWay], shares: Floats, least: float
) -> Iterator[tuple[int, list[tuple[SparseWay, float]]]]:
    """Services of which several ways have a share, (W,), above ``least``, with these ways and shares."""
    found: dict[int, list[tuple[SparseWay, float]]] = {}
    for way, share in zip(ways, shares.tolist(), strict=True):
        if share > least:
            found.setdefault(way.service, []).append((way, share))
    yield from ((service, split) for service, split in sorted(found.items()) if len(split) > 1)


def tiers_of(cells: Cells) -> Ints:
    """Place of each service's tier among those that there are, (S,)."""
    tiers: Ints = np.unique([service.tier_rank for service in cells.services], return_inverse=True)[1]
    return tiers

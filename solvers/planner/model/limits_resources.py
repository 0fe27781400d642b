"""The limit of what may run out beside GPUs; stated only for bays where it may."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from solvers.planner.bays.grouping import BayGroup
from solvers.planner.bays.shelves import AMPLE, Shelf, requests_by_role
from solvers.planner.model.columns import Limit, Variables, matrix_of, triplets
from solvers.planner.pools.cells import Cells
from solvers.spans import nodes_taken

KILO, GIBI = 1e3, float(1 << 30)
RESOURCE_UNITS: Mapping[str, tuple[str, float]] = {"cpu": ("core", KILO), "memory": ("GiB", GIBI)}
"""Unit in which people count a resource, and how many of the nodes' own units that is."""

Ask = tuple[int, int, int, int]
"""Cell, GPUs of a replica on one node, nodes of a replica, what its pod asks of the resource."""


def limit_resources(cells: Cells, v: Variables) -> Limit:
    """(24) CPU, memory and the like: in sum, in shares of a node, and at each request q as ⌊ask/q⌋ against ⌊free/q⌋."""
    rows: list[tuple[int, int, float]] = []
    most: list[float] = []
    subjects: list[str] = []
    for g, group in enumerate(cells.grouping.groups):
        shelf = group.bays[0].shelf
        for at, name in enumerate(shelf.names if shelf else ()):
            asks = list(_asks(cells, g, group, name))
            if shelf is None or not asks:
                continue
            for label, weights, room in _rows(shelf, at, asks):
                rows += [(len(most), cell, weight) for (cell, *_), weight in zip(asks, weights, strict=True) if weight]
                most.append(len(group.bays) * room)
                subjects.append(f"{name} of {group.label}{label}")
    held = matrix_of(*triplets(rows), (len(most), len(cells.cell_pool)))
    constraint = held @ v.replicas <= np.array(most, dtype=float)
    return Limit(name="resources", equation=24, constraint=constraint, subjects=tuple(subjects))


def resource_unit(name: str) -> tuple[str, float]:
    """Unit in which a resource is spoken of, and how many of the nodes' own units that is."""
    return RESOURCE_UNITS.get(name, (name.rpartition("/")[2], 1.0))


def row_units(cells: Cells, subject: str) -> tuple[str, float]:
    """What a row of this limit is of (resource and group), and how many units of people one of its own is.

    Raises
    ------
    KeyError
        The subject is of no group of these cells.
    """
    groups = {group.label: group for group in cells.grouping.groups}
    name, label, amount = resource_row(subject, groups)
    return f"{name} of {label}", (amount or roomiest(groups[label], name)) / resource_unit(name)[1]


def resource_row(subject: str, groups: Collection[str]) -> tuple[str, str, float]:
    """Resource, group and request of a row of this limit, by what it is called; 0 for a row in shares of a node.

    Raises
    ------
    KeyError
        The subject is of no such group.
    """
    name, _, label = subject.partition(" of ")
    if label in groups:
        return name, label, 0.0
    label, _, size = label.rpartition(" x")
    if label not in groups:
        raise KeyError(label)
    return name, label, float(size)


def roomiest(group: BayGroup, name: str) -> float:
    """The room of one node in whose shares the plain row of a resource is written."""
    shelf = group.bays[0].shelf
    free = [spot.amounts[shelf.names.index(name)] for spot in shelf.spots] if shelf and name in shelf.names else []
    return float(max(1, *free)) if free else 1.0


def _asks(cells: Cells, g: int, group: BayGroup, name: str) -> Iterator[Ask]:
    node_gpus, requests = group.bays[0].node_gpus, requests_by_role(cells.problem)
    for cell in np.flatnonzero(cells.cell_group == g):
        pool = cells.pools[cells.cell_pool[cell]].pool
        asked = dict(requests.get((pool.service, pool.role), ())).get(name, 0)
        if asked:
            gpus = pool.config.gpus
            yield int(cell), min(gpus, node_gpus), nodes_taken(gpus, node_gpus), asked


def _rows(shelf: Shelf, at: int, asks: list[Ask]) -> Iterator[tuple[str, list[float], float]]:
    """What each row is called beyond its resource, its weights along ``asks``, and its room in one bay."""
    free = [spot.amounts[at] for spot in shelf.spots]
    if min(free) >= AMPLE:
        return
    if max(free) < AMPLE:
        unit = float(max(1, *free))  # shares of the roomiest node: bytes would spoil the numbers
        yield "", [span * asked / unit for _, _, span, asked in asks], sum(free) / unit
    for size in sorted({asked for *_, asked in asks}):
        counted = [(gpus, asked // size) for _, gpus, _, asked in asks if asked >= size]
        by_gpus, heaviest = min(gpus for gpus, _ in counted), max(weight for _, weight in counted)
        room = sum(min(spot.amounts[at] // size, spot.gpus // by_gpus * heaviest) for spot in shelf.spots)
        yield f" x{size}", [float(span * (asked // size)) for _, _, span, asked in asks], float(room)

"""What runs out beside GPUs: CPU, memory, network ports of nodes, where they could run out before the GPUs do.

A node has ample room of a resource when its GPUs, all held by the replicas that ask for most of it per GPU, could not
use it up. Bays whose nodes all have ample room of everything know nothing of this; the others carry a ``Shelf``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from solvers.engine import ProfileKey, Role
from solvers.fleet import Node
from solvers.problem import Problem
from solvers.spans import islands, nodes_taken
from solvers.workload import ServedModel

AMPLE = 2**53  # of a resource that a node does not name

Kind = tuple[int, tuple[int, ...]]
"""GPUs of a replica, and what each of its pods asks of the shelf's resources."""

Row = tuple[Kind, str, int]
"""Kind, node, and the replicas or parts of one that stand there."""

Requests = tuple[tuple[str, int], ...]
"""What a pod asks for beside GPUs: (resource, amount), sorted."""


class ShelvedBay(Protocol):
    """What a shelf's room needs to know of a bay."""

    @property
    def key(self) -> tuple[str, str]: ...

    @property
    def shelf(self) -> Shelf | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One node: free GPUs, what is free of each resource of the shelf, and its island (empty for none)."""

    name: str
    gpus: int
    amounts: tuple[int, ...]
    island: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """The nodes of a bay where ``names`` may run out; both sorted."""

    names: tuple[str, ...]
    spots: tuple[Spot, ...]
    node_gpus: int

    @property
    def outline(self) -> tuple[object, ...]:
        """What makes two shelves interchangeable: everything but names."""
        islands_of: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
        for spot in self.spots:
            islands_of.setdefault(spot.island or f"alone {spot.name}", []).append((spot.gpus, spot.amounts))
        return self.names, tuple(sorted(tuple(sorted(members)) for members in islands_of.values()))

    def most(self, kind: Kind) -> int:
        """Replicas of one kind that fit when nothing else is there."""
        return sum(_fit(self, spot.gpus, spot.amounts, kind) for spot in self.spots)


def _fit(shelf: Shelf, gpus: int, amounts: Sequence[int], kind: Kind) -> int:
    """Replicas of a kind, or parts of one that needs several nodes, that a node has room for."""
    size, asked = kind
    own = min(size, shelf.node_gpus)
    return min([gpus // own, *(have // ask for have, ask in zip(amounts, asked, strict=True) if ask)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Replicas on the nodes of a shelf: rows (kind, node, replicas there), what is left over, what stays free."""

    rows: tuple[Row, ...]
    left: Mapping[Kind, int]
    free: tuple[tuple[int, tuple[int, ...]], ...]

    def spare(self, shelf: Shelf, kind: Kind) -> int:
        """Replicas of a kind that fit beside those that are there, as they stand."""
        span = nodes_taken(kind[0], shelf.node_gpus)
        able = [_fit(shelf, gpus, amounts, kind) for gpus, amounts in self.free]
        if span == 1:
            return sum(able)
        by_island: dict[str, int] = {}
        for spot, fits in zip(shelf.spots, able, strict=True):
            if spot.island:
                by_island[spot.island] = by_island.get(spot.island, 0) + fits
        return sum(count // span for count in by_island.values())


def arrange(shelf: Shelf, wanted: Mapping[Kind, int]) -> Arrangement:
    """Best fit by falling size: each kind onto the nodes that it leaves with fewest GPUs, by name among equals.

    The same for the same counts, whatever the order they came in.
    """
    free = [[spot.gpus, *spot.amounts] for spot in shelf.spots]
    rows: list[Row] = []
    left: dict[Kind, int] = {}
    for kind, count in sorted(wanted.items(), key=lambda row: (-row[0][0], tuple(-a for a in row[0][1]))):
        put = _put_spanning if kind[0] > shelf.node_gpus else _put_single
        missing = count - put(shelf, free, kind, count, rows)
        if missing:
            left[kind] = missing
    return Arrangement(rows=tuple(rows), left=left, free=tuple((gpus, tuple(rest)) for gpus, *rest in free))


def _put_single(shelf: Shelf, free: list[list[int]], kind: Kind, count: int, rows: list[Row]) -> int:
    placed = 0
    for index in sorted(range(len(free)), key=lambda i: (free[i][0], i)):
        here = min(count - placed, _fit(shelf, free[index][0], free[index][1:], kind))
        if here > 0:
            _take(free[index], kind, here)
            rows.append((kind, shelf.spots[index].name, here))
            placed += here
    return placed


def _put_spanning(shelf: Shelf, free: list[list[int]], kind: Kind, count: int, rows: list[Row]) -> int:
    span, placed = nodes_taken(kind[0], shelf.node_gpus), 0
    while placed < count:
        able: dict[str, list[int]] = {}
        for index, spot in enumerate(shelf.spots):
            if spot.island and _fit(shelf, free[index][0], free[index][1:], kind) > 0:
                able.setdefault(spot.island, []).append(index)
        chosen = min((found for found in able.values() if len(found) >= span), key=len, default=None)
        if chosen is None:
            break
        for index in chosen[:span]:
            _take(free[index], (shelf.node_gpus, kind[1]), 1)
            rows.append((kind, shelf.spots[index].name, 1))
        placed += 1
    return placed


def _take(free: list[int], kind: Kind, count: int) -> None:
    size, asked = kind
    for at, ask in enumerate((size, *asked)):
        free[at] -= count * ask


def _most_asked(service: ServedModel) -> dict[str, int]:
    """The most that a pod of any role asks for, by resource."""
    most: dict[str, int] = {}
    for role in service.roles:
        for name, amount in service.requests.get(role, {}).items():
            most[name] = max(most.get(name, 0), amount)
    return most


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """The most that any replica asks for per GPU that it holds on a node: by class, then resource."""

    per_gpu: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, problem: Problem, node_gpus: Mapping[str, int]) -> Wants:
        asking = [(service, _most_asked(service)) for service in problem.services if service.requests]
        by_model: dict[str, list[ProfileKey]] = {}
        for key in problem.profiles if asking else ():
            by_model.setdefault(key.model, []).append(key)
        found: dict[str, dict[str, float]] = {}
        for service, asked in asking:
            for key in by_model.get(service.model, ()):
                if service.allows(key.gpu_class, key.config):
                    own = min(key.config.gpus, max(1, node_gpus.get(key.gpu_class, 1)))
                    most = found.setdefault(key.gpu_class, {})
                    for name, amount in asked.items():
                        most[name] = max(most.get(name, 0.0), amount / own)
        return cls(per_gpu=found)

    def shelf(self, problem: Problem, nodes: Sequence[Node], node_gpus: int) -> Shelf | None:
        """The shelf of a bay, None when every node has ample room of everything."""
        gpu_class = nodes[0].gpu_class
        most = self.per_gpu.get(gpu_class, {})
        if all(n.resources.get(name, AMPLE) >= r * n.gpus_usable for n in nodes for name, r in most.items()):
            return None
        names = tuple(sorted(most))
        joined = islands(nodes, problem.gpu_classes[gpu_class], node_gpus).items()
        island_of = {member: f"island {name}" for name, members in joined for member in members}
        spots = (
            Spot(
                name=node.name,
                gpus=max(0, node.gpus_usable),
                amounts=tuple(max(0, node.resources.get(name, AMPLE)) for name in names),
                island=island_of.get(node.name, ""),
            )
            for node in sorted(nodes, key=lambda n: n.name)
        )
        return Shelf(names=names, spots=tuple(spots), node_gpus=node_gpus)


def requests_by_role(problem: Problem) -> dict[tuple[str, Role], Requests]:
    """What each pod of a service's role asks for beside GPUs, sorted by name."""
    asked = ((service.name, role, service.requests.get(role, {})) for service in problem.services for role in Role)
    return {(name, role): tuple(sorted(requests.items())) for name, role, requests in asked if requests}


def kind_on(shelf: Shelf, gpus: int, requests: Requests) -> Kind:
    """A replica as the shelf sees it."""
    named = dict(requests)
    return gpus, tuple(named.get(name, 0) for name in shelf.names)


@dataclass(slots=True, kw_only=True)
class ShelfRoom:
    """What stands on the shelves of a room while replicas are taken in.

    Whatever is taken can be arranged anew by ``arrange`` from the counts alone: so can the plan, wherever it is read.
    """

    held: dict[tuple[str, str], dict[Kind, int]] = field(default_factory=dict)
    known: dict[tuple[str, str], Arrangement] = field(default_factory=dict)
    refused: set[tuple[tuple[str, str], Kind]] = field(default_factory=set)

    def copy(self) -> ShelfRoom:
        """The same shelves to try something on."""
        held = {key: dict(kinds) for key, kinds in self.held.items()}
        return ShelfRoom(held=held, known=dict(self.known), refused=set(self.refused))

    def spare(self, bay: ShelvedBay, shape: tuple[int, Requests], most: int) -> int:
        """Replicas of a shape, up to ``most``, that fit beside what stands there as it stands."""
        shelf = bay.shelf
        if shelf is None:
            return most
        kind = kind_on(shelf, *shape)
        if (bay.key, kind) in self.refused:
            return 0
        return min(most, self._arranged(bay, shelf).spare(shelf, kind))

    def take(self, bay: ShelvedBay, shape: tuple[int, Requests], count: int) -> int:
        """Take in as many of ``count`` as can be arranged with all the others; returns how many."""
        shelf = bay.shelf
        if shelf is None:
            return count
        kind, held = kind_on(shelf, *shape), self.held.setdefault(bay.key, {})
        while count > 0:
            tried = arrange(shelf, {**held, kind: held.get(kind, 0) + count})
            if not tried.left:
                held[kind] = held.get(kind, 0) + count
                self.known[bay.key] = tried
                self.refused = {row for row in self.refused if row[0] != bay.key}
                return count
            count //= 2
        self.refused.add((bay.key, kind))
        return 0

    def lacking(self, bay: ShelvedBay, shape: tuple[int, Requests]) -> list[str]:
        """Say which resources keep one more replica from the nodes that have GPUs for it."""
        shelf = bay.shelf
        if shelf is None:
            return []
        size, asked = kind_on(shelf, *shape)
        free = [rest for rest in self._arranged(bay, shelf).free if rest[0] >= min(size, shelf.node_gpus)]
        found = []
        for at, (name, ask) in enumerate(zip(shelf.names, asked, strict=True)):
            most = max((amounts[at] for _, amounts in free), default=0)
            if most < ask:
                told = f"{ask} asked for by one replica, at most {most} free on a node with the GPUs for it"
                found.append(f"resources[{name} of nodes of class {bay.key[1]}]: {told}")
        names = f"{' and '.join(shelf.names)} of nodes of class {bay.key[1]}"
        return found or [f"resources[{names}]: no node has enough of all of them beside the GPUs"]

    def _arranged(self, bay: ShelvedBay, shelf: Shelf) -> Arrangement:
        if bay.key not in self.known:
            self.known[bay.key] = arrange(shelf, self.held.get(bay.key, {}))
        return self.known[bay.key]

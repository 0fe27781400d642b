"""What is free on nodes and in racks while replicas are placed one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from solvers.packing.items import Ints

WATT_TOLERANCE = 1e-6
RESOURCES = ("gpus", "cpu_milli", "memory_mib", "nics")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRoom:
    """What is free on a node, in whole units; ``others`` are further resources, in one order for all."""

    name: str
    rack: str
    gpu_class: str
    gpus: int
    cpu_milli: int = 0
    memory_mib: int = 0
    nics: int = 0
    others: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaKind:
    """Replicas alike, and how many are wanted.

    Attributes
    ----------
    gpus, cpu_milli, memory_mib, nics : int
        Of one replica, on one node.
    others : tuple of int
        Of the further resources that nodes name.
    watts : float
        What one adds to its rack's draw.
    most_per_rack : int or None
        Spread: no more than so many in one rack.
    kv_group : str
        Kinds of one group stay in one rack together; empty for none.
    weight : float
        Worth of one when not all can be placed.
    """

    name: str
    gpu_class: str
    count: int
    gpus: int
    cpu_milli: int = 0
    memory_mib: int = 0
    nics: int = 0
    others: tuple[int, ...] = ()
    watts: float = 0.0
    most_per_rack: int | None = None
    kv_group: str = ""
    weight: float = 1.0


class Scene:
    """Arrays over nodes, kinds and racks, each sorted by name; kinds by falling size."""

    def __init__(
        self, nodes: Sequence[NodeRoom], kinds: Sequence[ReplicaKind], rack_watts: Mapping[str, float]
    ) -> None:
        self.nodes = sorted(nodes, key=lambda node: node.name)
        self.kinds = sorted(
            kinds,
            key=lambda kind: (-kind.gpus, -kind.cpu_milli, -kind.memory_mib, *(-n for n in kind.others), kind.name),
        )
        self.racks = sorted({node.rack for node in nodes})
        others = [len(node.others) for node in nodes] + [len(kind.others) for kind in kinds]
        width = len(RESOURCES) + max(others, default=0)
        self.free = np.array([_vector(node) for node in self.nodes], dtype=np.int64).reshape(len(nodes), width)
        self.size = np.array([_vector(kind) for kind in self.kinds], dtype=np.int64).reshape(len(kinds), width)
        self.rack_of = np.array([self.racks.index(node.rack) for node in self.nodes], dtype=np.int64)
        self.room_watts = np.array([rack_watts.get(rack, np.inf) for rack in self.racks], float)
        self.able = np.array([[n.gpu_class == k.gpu_class for n in self.nodes] for k in self.kinds], bool)
        self.demand = np.array([kind.count for kind in self.kinds], dtype=np.int64)
        self.weight = np.array([kind.weight for kind in self.kinds], float)
        groups = sorted({kind.kv_group for kind in kinds} - {""})
        self.groups = [[k for k, kind in enumerate(self.kinds) if kind.kv_group == group] for group in groups]
        grouped = {kind for group in self.groups for kind in group}
        self.ungrouped = [kind for kind in range(len(self.kinds)) if kind not in grouped]

    def most_per_rack(self, kind: int) -> int:
        most = self.kinds[kind].most_per_rack
        return self.kinds[kind].count if most is None else min(most, self.kinds[kind].count)

    def worth(self, placed: Ints) -> float:
        """Worth of what is placed, from (K, N) replicas."""
        return float(self.weight @ placed.sum(axis=1)) if placed.size else 0.0


def _vector(item: NodeRoom | ReplicaKind) -> list[int]:
    return [*(getattr(item, resource) for resource in RESOURCES), *item.others]


class Ledger:
    """What is free while replicas are placed one by one."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.free, self.watts = scene.free.copy(), scene.room_watts.copy()
        self.placed = np.zeros((len(scene.kinds), len(scene.nodes)), dtype=np.int64)
        self.in_rack = np.zeros((len(scene.kinds), len(scene.racks)), dtype=np.int64)

    def copy(self) -> Ledger:
        other = Ledger(self.scene)
        other.free, other.watts = self.free.copy(), self.watts.copy()
        other.placed, other.in_rack = self.placed.copy(), self.in_rack.copy()
        return other

    def take(self, kind: int, only_rack: int | None = None) -> bool:
        """Place one replica: fewest GPUs left over, then the rack with most watts left, then least left over."""
        scene, size, watts = self.scene, self.scene.size[kind], self.scene.kinds[kind].watts
        racks = (self.watts >= watts - WATT_TOLERANCE) & (self.in_rack[kind] < scene.most_per_rack(kind))
        if only_rack is not None:
            racks &= np.arange(len(racks)) == only_rack
        able = np.flatnonzero((self.free >= size).all(axis=1) & scene.able[kind] & racks[scene.rack_of])
        if not len(able):
            return False
        left = self.free[able] - size
        share = (left[:, 1:] / np.maximum(scene.free[able][:, 1:], 1)).sum(axis=1)
        node = int(able[np.lexsort((able, share, -self.watts[scene.rack_of[able]], left[:, 0]))[0]])
        self._put(kind, node)
        return True

    def _put(self, kind: int, node: int) -> None:
        rack = self.scene.rack_of[node]
        self.free[node] -= self.scene.size[kind]
        self.watts[rack] -= self.scene.kinds[kind].watts
        self.placed[kind, node] += 1
        self.in_rack[kind, rack] += 1

    def take_all(self, kinds: Sequence[int], only_rack: int | None = None) -> None:
        """Place what is still wanted of the kinds, as far as it goes."""
        for kind in kinds:
            for _ in range(self.wanted(kind)):
                if not self.take(kind, only_rack):
                    break

    def wanted(self, kind: int) -> int:
        return int(self.scene.demand[kind] - self.placed[kind].sum())

    def take_at(self, kind: int, node: int, most: int) -> None:
        """Place up to so many on one node."""
        rack, size, watts = self.scene.rack_of[node], self.scene.size[kind], self.scene.kinds[kind].watts
        spread = self.scene.most_per_rack(kind) - int(self.in_rack[kind, rack])
        for _ in range(min(most, self.wanted(kind), spread)):
            if (self.free[node] < size).any() or self.watts[rack] < watts - WATT_TOLERANCE:
                break
            self._put(kind, node)


def best_fit(scene: Scene) -> Ledger:
    """Groups first, the rest by falling size."""
    ledger = with_groups(scene)
    ledger.take_all(scene.ungrouped)
    return ledger


def with_groups(scene: Scene) -> Ledger:
    """Every group in the rack that takes most of it, beside others before it opens a rack; larger groups first."""
    ledger = Ledger(scene)
    for group in sorted(scene.groups, key=lambda kinds: -int(scene.demand[kinds] @ scene.size[kinds, 0])):
        tried = [ledger.copy() for _ in scene.racks]
        for rack, each in enumerate(tried):
            each.take_all(group, rack)
        ledger = max(tried, key=lambda each: (scene.worth(each.placed), -_open_racks(each)), default=ledger)
    return ledger


def _open_racks(ledger: Ledger) -> int:
    """Racks in use."""
    return int((ledger.in_rack.sum(axis=0) > 0).sum())

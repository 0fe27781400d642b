"""Room for one more replica: free GPUs in whole groups, and watts left in every domain it could draw from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from solvers.fleet import ANYWHERE, Node, PoolKey, Replica, ReplicaState, Snapshot
from solvers.ledger import SLACK_WATTS, WattBook
from solvers.spans import groups_taken, islands, node_sizes, nodes_taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """Why a replica may not start now. ``domain`` is empty when GPUs are what is missing."""

    text: str
    domain: str = ""


class Room:
    """A working copy of the fleet's GPUs and watts in which replicas are held and released one by one."""

    def __init__(self, snapshot: Snapshot, replicas: Iterable[Replica]) -> None:
        self._domains = snapshot.domains
        self._book = WattBook(snapshot)
        self._free = {node.name: node.gpus_usable for node in snapshot.nodes}
        self._nodes_at: dict[tuple[str, str], list[str]] = defaultdict(list)
        for node in snapshot.nodes:
            for location in {node.location, ANYWHERE}:
                self._nodes_at[node.gpu_class, location].append(node.name)
        self._sizes = node_sizes(snapshot.nodes)
        self._islands = _islands_at(snapshot, self._sizes)
        self._unplaced: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        for replica in replicas:
            self.hold(replica)

    def hold(self, replica: Replica) -> None:
        """Count the replica's GPUs and watts as taken."""
        self._move(replica, 1)

    def release(self, replica: Replica) -> None:
        """Count the replica's GPUs and watts as free again."""
        self._move(replica, -1)

    def _move(self, replica: Replica, sign: int) -> None:
        self._book.charge(replica, sign)
        if replica.state is ReplicaState.LOST:
            return  # its node offers no GPUs to anyone
        gpus, node_gpus = replica.pool.config.gpus, self._sizes.get(replica.pool.gpu_class, 0)
        span = nodes_taken(gpus, node_gpus)
        known = [name for name in replica.nodes if name in self._free]
        for name in known:
            self._free[name] -= sign * (gpus if span == 1 else node_gpus)
        if missing := span - len(known):
            still = gpus if span == missing else missing * node_gpus
            self._unplaced[replica.pool.gpu_class, replica.location][still] += sign

    def domains_of(self, replica: Replica) -> tuple[str, ...]:
        """Domains that the replica draws from, or could."""
        return self._book.domains_of(replica)

    def over(self) -> dict[str, tuple[float, float]]:
        """Domains whose worst case exceeds what may be used: (reserved, usable) watts by name."""
        reserved = self._book.reserved()
        return {
            name: (reserved[name], domain.usable_watts)
            for name, domain in sorted(self._domains.items())
            if reserved.get(name, 0.0) > domain.usable_watts + SLACK_WATTS
        }

    def is_over(self, domain: str) -> bool:
        """True when the domain's worst case exceeds what may be used."""
        usable = self._domains.get(domain)
        return usable is not None and self._book.reserved_watts(domain) > usable.usable_watts + SLACK_WATTS

    def blocker(self, pool: PoolKey, location: str) -> Blocker | None:
        """Say what keeps one more replica of the pool from starting at the location; None when nothing does."""
        return self._gpu_blocker(pool, location) or self._watt_blocker(pool, location)

    def _gpu_blocker(self, pool: PoolKey, location: str) -> Blocker | None:
        groups, node_gpus = self._unplaced_groups(pool.gpu_class, location), self._sizes.get(pool.gpu_class, 0)
        groups[pool.config.gpus] += 1
        for size in sorted({1, *groups}):
            needed = sum(groups_taken(gpus, size, node_gpus) * count for gpus, count in groups.items() if gpus >= size)
            there = self._groups_there(pool.gpu_class, location, size)
            if needed > there:
                unit = "GPUs" if size == 1 else f"groups of {size} GPUs"
                return Blocker(text=f"{there} {pool.gpu_class} {unit} are free there and {needed} are asked for")
        return None

    def _groups_there(self, gpu_class: str, location: str, size: int) -> int:
        """Groups of the size that are free: on nodes, or for larger ones on whole nodes of an island."""
        span = nodes_taken(size, self._sizes.get(gpu_class, 0))
        if span == 1:
            return sum(max(0, self._free[name]) // size for name in self._nodes_at[gpu_class, location])
        whole = self._sizes[gpu_class]
        here = self._islands[gpu_class, location]
        return sum(sum(self._free[name] == whole for name in island) // span for island in here)

    def _unplaced_groups(self, gpu_class: str, location: str) -> Counter[int]:
        """Group sizes that may still land on the location's nodes; from anywhere when the pool goes anywhere."""
        groups: Counter[int] = Counter()
        for (of_class, at), counts in self._unplaced.items():
            if of_class == gpu_class and (location == ANYWHERE or at in (location, ANYWHERE)):
                groups.update(counts)
        return +groups

    def _watt_blocker(self, pool: PoolKey, location: str) -> Blocker | None:
        extra = self._book.extra_watts(pool)
        for name in self._book.domains_at(pool, location):
            domain = self._domains.get(name)
            if domain is None or self._book.after_watts(name, extra) <= domain.usable_watts + SLACK_WATTS:
                continue
            left = domain.usable_watts - self._book.reserved_watts(name)
            need = f"one replica may draw {extra:,.0f} W more"
            return Blocker(text=f"{name} has {left:,.0f} W left and {need}", domain=name)
        return None


def _islands_at(snapshot: Snapshot, sizes: Mapping[str, int]) -> dict[tuple[str, str], list[tuple[str, ...]]]:
    """Names of the nodes on each island by (GPU class, location), anywhere included."""
    here: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in snapshot.nodes:
        here[node.gpu_class, node.location].append(node)
    found: dict[tuple[str, str], list[tuple[str, ...]]] = defaultdict(list)
    for (gpu_class, location), nodes in sorted(here.items()):
        for names in islands(nodes, snapshot.gpu_classes[gpu_class], sizes[gpu_class]).values():
            found[gpu_class, location].append(names)
            found[gpu_class, ANYWHERE].append(names)
    return found

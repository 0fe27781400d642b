"""Room for one more replica: free GPUs in whole groups, and watts left in every domain it could draw from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from solvers.fleet import ANYWHERE, PoolKey, Replica, ReplicaState, Snapshot
from solvers.ledger import SLACK_WATTS, WattBook


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
        gpus = replica.pool.config.gpus
        if replica.node in self._free:
            self._free[replica.node] -= sign * gpus
        else:
            self._unplaced[replica.pool.gpu_class, replica.location][gpus] += sign

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
        free = [max(0, self._free[name]) for name in self._nodes_at[pool.gpu_class, location]]
        groups = self._unplaced_groups(pool.gpu_class, location)
        groups[pool.config.gpus] += 1
        for size in sorted({1, *groups}):
            needed = sum(gpus // size * count for gpus, count in groups.items() if gpus >= size)
            there = sum(gpus // size for gpus in free)
            if needed > there:
                unit = "GPUs" if size == 1 else f"groups of {size} GPUs"
                return Blocker(text=f"{there} {pool.gpu_class} {unit} are free there and {needed} are asked for")
        return None

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

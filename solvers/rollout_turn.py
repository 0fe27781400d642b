"""What one step of a rollout has decided so far: who stays, who leaves, who starts, and what room that leaves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from solvers.assign import choose_leaving
from solvers.engine import Role
from solvers.fleet import PoolKey, Replica, ReplicaState, Snapshot
from solvers.ledger import unseen_replicas
from solvers.plan import Plan
from solvers.room import Room

Place = tuple[PoolKey, str]

START_PATIENCE_S = 900.0  # several cold starts; a replica not Ready by then no longer holds up other starts
LAST_RANK = 1_000_000  # of a service that the caller gave no tier: leaves first, starts last
CHAINS = {
    Role.PREFILL: (Role.PREFILL,),
    Role.DECODE: (Role.DECODE,),
    Role.MIXED: (Role.PREFILL, Role.DECODE),
}
"""The role chains that a replica serves; the plan sizes both in requests per second, so they add up."""
SERVING = (ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.READY)


class Turn:
    """What is decided so far in one step.

    ``kept`` are the replicas that stay, by place and in leaving order, nameless ones for what was not seen yet;
    ``now`` is the room with all that exists, ``later`` the room once all that leaves is gone.
    """

    def __init__(self, snapshot: Snapshot, plan: Plan, tier_ranks: Mapping[str, int]) -> None:
        self.snapshot, self._ranks = snapshot, tier_ranks
        self.want: dict[Place, int] = defaultdict(int)
        for placement in plan.placements:
            self.want[placement.pool, placement.location] += placement.replicas
        self.observed: dict[Place, list[Replica]] = defaultdict(list)
        for replica in snapshot.replicas:
            self.observed[replica.pool, replica.location].append(replica)
        unseen = unseen_replicas(snapshot)
        self.kept = self._kept(unseen)
        self.now = Room(snapshot, (*snapshot.replicas, *unseen))
        self.later = Room(snapshot, (replica for kept in self.kept.values() for replica in kept))
        self.chains = Chains(plan, self.want, self.kept)
        self.dropped: dict[Place, list[Replica]] = defaultdict(list)
        self.started: dict[Place, int] = defaultdict(int)
        self.reasons: dict[Place, list[str]] = defaultdict(list)

    def _kept(self, unseen: list[Replica]) -> dict[Place, list[Replica]]:
        alive: dict[Place, list[Replica]] = {place: [] for place in sorted({*self.want, *self.snapshot.desired})}
        for replica in (*self.snapshot.replicas, *unseen):
            if replica.state in SERVING:
                alive.setdefault((replica.pool, replica.location), []).append(replica)
        kept = {}
        for place, replicas in sorted(alive.items()):
            excess = len(replicas) - self.asked(place)  # scaled down already, not deleted yet
            kept[place] = list(choose_leaving(replicas, len(replicas))[excess:])
        return kept

    def asked(self, place: Place) -> int:
        """Replicas that the workload asks for now."""
        return self.snapshot.desired.get(place, 0)

    def rank(self, service: str) -> int:
        return self._ranks.get(service, LAST_RANK)

    def missing(self, place: Place) -> int:
        return self.want.get(place, 0) - len(self.kept[place]) - self.started[place]

    def surplus(self, place: Place) -> int:
        return len(self.kept[place]) - self.want.get(place, 0)

    def drop(self, replica: Replica, reason: str) -> None:
        """Decide that a kept replica leaves."""
        place = replica.pool, replica.location
        self.kept[place].remove(replica)
        self.set_aside(replica)
        self.dropped[place].append(replica)
        if reason not in self.reasons[place]:
            self.reasons[place].append(reason)

    def set_aside(self, replica: Replica) -> None:
        """Count a kept replica as gone."""
        self.later.release(replica)
        self.chains.count(replica, -1)

    def take_back(self, replica: Replica) -> None:
        """Undo ``set_aside``."""
        self.later.hold(replica)
        self.chains.count(replica, 1)

    def start(self, place: Place) -> None:
        """Decide that one more replica starts."""
        self.now.hold(newcomer(place))
        self.later.hold(newcomer(place))
        self.started[place] += 1

    def is_starting(self, service: str) -> bool:
        """True when a replica of the service is on its way to Ready, or is started in this step."""
        coming = any(
            self._is_coming(r) for place, kept in self.kept.items() if place[0].service == service for r in kept
        )
        return coming or any(count and place[0].service == service for place, count in self.started.items())

    def in_flight(self) -> int:
        """Replicas asked for that are not Ready yet and may still become so in time."""
        return sum(self._is_coming(replica) for replicas in self.kept.values() for replica in replicas)

    @staticmethod
    def _is_coming(replica: Replica) -> bool:
        return replica.state is not ReplicaState.READY and replica.age_s <= START_PATIENCE_S


class Chains:
    """Ready against planned capacity of every (service, role chain).

    One Ready replica counts what the plan's sizing gives it. A pool that the plan dropped counts nothing: it may
    leave only when the planned ones carry the load without it.
    """

    def __init__(self, plan: Plan, want: Mapping[Place, int], kept: Mapping[Place, list[Replica]]) -> None:
        sized = {row.pool: row.capacity_requests_per_s / row.replicas for row in plan.pools if row.replicas > 0}
        wanted = {pool for (pool, _), count in want.items() if count > 0}
        self._weight = {pool: sized.get(pool, 0.0) or float(pool.config.gpus) for pool in wanted}
        self._target: dict[tuple[str, Role], float] = defaultdict(float)
        self._ready: dict[tuple[str, Role], float] = defaultdict(float)
        self._ready_replicas: dict[tuple[str, Role], int] = defaultdict(int)
        for (pool, _), count in want.items():
            for chain in _chains(pool):
                self._target[chain] += count * self._weight.get(pool, 0.0)
        for replicas in kept.values():
            for replica in replicas:
                self.count(replica, 1)

    def count(self, replica: Replica, sign: int) -> None:
        """Add a Ready replica to its chains, or take it off with ``sign`` −1."""
        if replica.state is ReplicaState.READY:
            for chain in _chains(replica.pool):
                self._ready[chain] += sign * self._weight.get(replica.pool, 0.0)
                self._ready_replicas[chain] += sign

    def is_last(self, replica: Replica) -> bool:
        """True for the last Ready replica of a chain that the plan still wants."""
        return replica.state is ReplicaState.READY and any(
            self._target[chain] > 0 and self._ready_replicas[chain] <= 1 for chain in _chains(replica.pool)
        )

    def is_replaced(self, replica: Replica) -> bool:
        """True when the service does not need it: spare, not serving, or replaced by Ready ones."""
        if replica.state is ReplicaState.PENDING:
            return True
        if replica.state is ReplicaState.STARTING:  # may be the first to serve
            return all(self._ready_replicas[c] > 0 or self._target[c] == 0 for c in _chains(replica.pool))
        weight = self._weight.get(replica.pool, 0.0)
        return all(self._ready[c] - weight >= self._target[c] * (1 - 1e-9) for c in _chains(replica.pool))


def _chains(pool: PoolKey) -> list[tuple[str, Role]]:
    return [(pool.service, chain) for chain in CHAINS[pool.role]]


def newcomer(place: Place) -> Replica:
    """A replica that is asked for and has no node yet."""
    return Replica(name="", pool=place[0], location=place[1], node=None, state=ReplicaState.PENDING)

"""What one step of a rollout has decided so far: who stays, who leaves, who starts, and what room that leaves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from solvers.fleet import PoolKey, Replica, ReplicaState, Snapshot
from solvers.ledger import unseen_replicas
from solvers.plan import Plan
from solvers.rollout.assign import choose_leaving
from solvers.rollout.chains import START_PATIENCE_S, Chains, Place
from solvers.rollout.room import Room

LAST_RANK = 1_000_000  # of a service that the caller gave no tier: leaves first, starts last
SERVING = (ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.READY)


class Turn:
    """What is decided so far in one step.

    ``kept`` are the replicas that stay, by place and in leaving order, nameless ones for what was not seen yet;
    ``now`` is the room with all that exists, ``later`` the room once all that leaves is gone.
    """

    def __init__(
        self, snapshot: Snapshot, plan: Plan, tier_ranks: Mapping[str, int], carried: Mapping[PoolKey, float]
    ) -> None:
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
        self.chains = Chains(plan, self.want, self.kept, carried)
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

    def in_flight(self) -> int:
        """Replicas asked for that are not Ready yet and may still become so in time."""
        return sum(self.is_coming(replica) for replicas in self.kept.values() for replica in replicas)

    @staticmethod
    def is_coming(replica: Replica) -> bool:
        """True when the kept replica is not Ready yet and may still become so in time."""
        return replica.state is not ReplicaState.READY and replica.age_s <= START_PATIENCE_S


def newcomer(place: Place) -> Replica:
    """A replica that is asked for and has no node yet."""
    return Replica(name="", pool=place[0], location=place[1], node=None, state=ReplicaState.PENDING)

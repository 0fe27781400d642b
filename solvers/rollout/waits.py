"""Which services stand still: nothing that they wait for can come by itself any more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from solvers.fleet import ANYWHERE, PoolKey, ReplicaState
from solvers.rollout.chains import Place
from solvers.rollout.room import Blocker
from solvers.rollout.turn import Turn, newcomer

Holding = tuple[str, str, tuple[str, ...]]
"""GPU class, location and power domains of replicas."""


class Waits:
    """Who waits for whom.

    A service waits for those whose unwanted replicas hold the room that its missing ones need. Somebody is in motion
    as long as a replica of theirs starts, leaves, or will start once all that leaves is gone. Whoever waits for
    somebody in motion, straight or through others, is not at a standstill: the room comes by itself, as replacements
    get Ready and let old replicas go.

    Parameters
    ----------
    promised : collection of place
        Where room was made for a start in this step.
    """

    def __init__(self, turn: Turn, promised: Collection[Place] = ()) -> None:
        self._coming = _coming(turn)
        self._waiting_for: dict[str, set[str]] = defaultdict(set)  # who holds the room → who needs it
        self._not_ready = {
            pool.service
            for (pool, _), kept in turn.kept.items()
            if any(replica.state is not ReplicaState.READY for replica in kept)
        }
        moving = {pool.service for pool, _ in promised} | _in_motion(turn)
        holders = _holders(turn)
        for place in turn.want:
            if turn.missing(place) > 0 and place[0].service not in moving:
                blocker = turn.later.blocker(*place)
                if blocker is None:
                    moving.add(place[0].service)
                for service in _held_up_by(place, blocker, holders) if blocker else ():
                    self._waiting_for[service].add(place[0].service)
        self._moving = self._with_all_that_wait_for(moving)

    def _with_all_that_wait_for(self, moving: set[str]) -> set[str]:
        found, queue = set(moving), sorted(moving)
        while queue:
            for service in self._waiting_for[queue.pop()] - found:
                found.add(service)
                queue.append(service)
        return found

    def is_still(self, service: str) -> bool:
        """True when nothing that the service waits for is in motion."""
        return service not in self._moving

    def may_lose_a_replica(self, service: str) -> bool:
        """True when it stands still with all of its replicas Ready.

        One that never gets Ready ends the waiting of others (see ``START_PATIENCE_S``), but what serves in its stead
        must not be taken for it.
        """
        return self.is_still(service) and service not in self._not_ready

    def is_quiet(self, place: Place, blocker: Blocker) -> bool:
        """True when nothing starts that draws on what the start at the place lacks.

        Its getting Ready may not help here; but a rollout that is under way there is better waited for, as the plan
        may have changed by then.
        """
        return not any(is_held(place, blocker, *holding) for holding in self._coming)

    @property
    def is_all_quiet(self) -> bool:
        """True when nothing starts anywhere."""
        return not self._coming


def _coming(turn: Turn) -> set[Holding]:
    """What replicas hold that start now or are on their way to Ready."""
    starting = [newcomer(place) for place, count in turn.started.items() if count]
    coming = (r for kept in turn.kept.values() for r in kept if turn.is_coming(r))
    return {(r.pool.gpu_class, r.location, turn.later.domains_of(r)) for r in (*starting, *coming)}


def _in_motion(turn: Turn) -> set[str]:
    """Services with a replica that starts or leaves."""
    coming = {place[0].service for place, kept in turn.kept.items() if any(turn.is_coming(r) for r in kept)}
    changed = {place[0].service for moves in (turn.started, turn.dropped) for place, move in moves.items() if move}
    return coming | changed


def _holders(turn: Turn) -> dict[Holding, set[str]]:
    """Services by what their unwanted replicas hold: far fewer than the replicas."""
    found: dict[Holding, set[str]] = defaultdict(set)
    for place, kept in turn.kept.items():
        for replica in kept[: max(0, turn.surplus(place))]:
            found[replica.pool.gpu_class, replica.location, turn.later.domains_of(replica)].add(replica.pool.service)
    return found


def _held_up_by(place: Place, blocker: Blocker, holders: dict[Holding, set[str]]) -> set[str]:
    found = (services for holding, services in holders.items() if is_held(place, blocker, *holding))
    return set().union(*found)


def is_held(place: Place, blocker: Blocker, gpu_class: str, location: str, domains: tuple[str, ...]) -> bool:
    """True when what the blocker lacks is, or may come to be, held by a replica of this class, place and domains."""
    if blocker.domain:
        return blocker.domain in domains
    return gpu_class == place[0].gpu_class and is_near(location, place[1])


def is_near(one: str, other: str) -> bool:
    """True when a replica of one location could be on a node of the other."""
    return one == other or ANYWHERE in (one, other)


def is_of_class_at(pool: PoolKey, location: str, place: Place) -> bool:
    """True when the two could be on one node."""
    return pool.gpu_class == place[0].gpu_class and is_near(location, place[1])

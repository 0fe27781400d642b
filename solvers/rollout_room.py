"""How a rollout makes room for a start that is blocked: what is not wanted leaves, what is wanted moves together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from solvers.assign import LEAVING_ORDER
from solvers.fleet import ANYWHERE, PoolKey, Replica, ReplicaState
from solvers.rollout_turn import Place, Turn, newcomer
from solvers.room import Blocker

MAX_TRIES = 256  # blocked places looked at in one step; the rest wait for the next


def make_room(turn: Turn, blocked: Mapping[Place, Blocker], limit: int) -> None:
    """Let unwanted replicas go that hold what the next blocked starts need, even before they are replaced.

    One start of a place at a time, and no more than may start: what leaves early is missing until its replacement
    is Ready.
    """
    budget = max(1, limit - turn.in_flight() - sum(turn.started.values()))
    promised: set[Place] = set()
    unwanted = _unwanted(turn)
    for place, blocker in [*blocked.items()][:MAX_TRIES]:
        victims = _victims(turn, place, unwanted, promised)
        if victims is None or len(promised) >= budget:
            continue
        for victim in victims:
            unwanted.remove(victim)
            turn.drop(victim, f"makes room for {place[0]} {_where(place[1])}: {blocker.text}")
        turn.later.hold(newcomer(place))  # the room is spoken for
        promised.add(place)


def _victims(turn: Turn, place: Place, unwanted: Sequence[Replica], promised: set[Place]) -> list[Replica] | None:
    """Replicas whose leaving lets one more start at the place; None when the leaving of all would not.

    The last Ready replica of a role chain is spared as long as anything that its service waits for can still come by
    itself. When nothing can, the plan's move is a swap in place, and waiting would be for ever.
    """
    candidates, taken = [*unwanted], list[Replica]()
    while blocker := turn.later.blocker(*place):
        holders = [replica for replica in candidates if _holds(turn, replica, place, blocker)]
        spared = [replica for replica in holders if turn.chains.is_last(replica)]
        victim = next((replica for replica in holders if replica not in spared), None)
        if victim is None and all(_is_stuck(turn, r.pool.service, promised) for r in spared):
            victim = next(iter(spared), None)
        if victim is None:
            break
        candidates.remove(victim)
        turn.set_aside(victim)
        taken.append(victim)
    needed = None if blocker else [replica for replica in reversed(taken) if _is_needed(turn, replica, place)]
    for replica in taken if needed is None else needed:
        turn.take_back(replica)
    return needed


def _is_needed(turn: Turn, replica: Replica, place: Place) -> bool:
    """True when the start does not fit beside the replica; else it is taken back."""
    turn.take_back(replica)
    if turn.later.blocker(*place) is None:
        return False
    turn.set_aside(replica)
    return True


def _is_stuck(turn: Turn, service: str, promised: set[Place]) -> bool:
    """True when nothing of the service starts, and nothing will once all that leaves is gone."""
    if turn.is_starting(service) or any(pool.service == service for pool, _ in promised):
        return False
    missing = (place for place in turn.want if place[0].service == service and turn.missing(place) > 0)
    return all(turn.later.blocker(*place) for place in missing)


def _unwanted(turn: Turn) -> list[Replica]:
    """What the plan does not want, the lowest tier and the least ready first."""
    found = [r for place, kept in turn.kept.items() for r in kept[: max(0, turn.surplus(place))]]
    return sorted(found, key=lambda r: (-turn.rank(r.pool.service), LEAVING_ORDER[r.state], r.age_s, r.pool, r.name))


def _holds(turn: Turn, replica: Replica, place: Place, blocker: Blocker) -> bool:
    """True when the replica holds, or may come to hold, what the blocker lacks."""
    if blocker.domain:
        return blocker.domain in turn.later.domains_of(replica)
    return replica.pool.gpu_class == place[0].gpu_class and _is_near(replica.location, place[1])


def _is_near(one: str, other: str) -> bool:
    return one == other or ANYWHERE in (one, other)


def regroup(turn: Turn, blocked: Mapping[Place, Blocker]) -> None:
    """Move small replicas together where a start finds enough GPUs free, but not on one node.

    The last resort: only where nothing starts or leaves by itself, never the last Ready replica of a chain, and only
    what fits back beside the start. One place in one step; what moves starts again like anything else that is missing.
    """
    for place, blocker in [*blocked.items()][:MAX_TRIES]:
        if blocker.domain or not _is_still(turn, place):
            continue
        ways = (_movable(turn, place, name) for name in _nodes_at(turn, place))
        way = min((way for way in ways if way), key=_disturbance, default=None)
        if way:
            for replica in way:
                turn.drop(replica, f"moves to another node: {place[0]} needs {place[0].config.gpus} GPUs on one")
            return


def _nodes_at(turn: Turn, place: Place) -> Sequence[str]:
    nodes = (n for n in turn.snapshot.nodes if n.gpu_class == place[0].gpu_class and _is_near(n.location, place[1]))
    return [node.name for node in nodes]


def _is_still(turn: Turn, place: Place) -> bool:
    """True when nothing starts or leaves on the nodes where the replica could land."""

    def is_here(pool: PoolKey, location: str) -> bool:
        return pool.gpu_class == place[0].gpu_class and _is_near(location, place[1])

    changed = [at for moves in (turn.started, turn.dropped) for at, move in moves.items() if move]
    is_settled = all(r.state is ReplicaState.READY for r in turn.snapshot.replicas if is_here(r.pool, r.location))
    return is_settled and not any(is_here(*at) for at in changed)


def _movable(turn: Turn, place: Place, node: str) -> list[Replica] | None:
    """The smallest replicas of one node that have to move, None when moving does not help."""
    gpus = place[0].config.gpus
    here = [r for kept in turn.kept.values() for r in kept if r.node == node and r.pool.config.gpus < gpus]
    here.sort(key=lambda r: (-turn.rank(r.pool.service), r.pool.config.gpus, r.age_s, r.pool, r.name))
    moved: list[Replica] = []
    for replica in here:
        if turn.later.blocker(*place) is None:
            break
        if not turn.chains.is_last(replica):
            turn.set_aside(replica)
            moved.append(replica)
    leave_for_good = Counter({at: max(0, turn.surplus(at)) for at in {(r.pool, r.location) for r in moved}})
    back = Counter((r.pool, r.location) for r in moved) - leave_for_good
    fits = _fit(turn, [newcomer(place), *(newcomer(at) for at in sorted(back.elements()))])
    for replica in moved:
        turn.take_back(replica)
    return moved if fits else None


def _fit(turn: Turn, newcomers: Sequence[Replica]) -> bool:
    """True when all of them fit beside one another."""
    held: list[Replica] = []
    for replica in newcomers:
        if turn.later.blocker(replica.pool, replica.location) is not None:
            break
        turn.later.hold(replica)
        held.append(replica)
    for replica in held:
        turn.later.release(replica)
    return len(held) == len(newcomers)


def _disturbance(moved: Sequence[Replica]) -> tuple[int, int, tuple[str, ...]]:
    return sum(r.pool.config.gpus for r in moved), len(moved), tuple(r.name for r in moved)


def _where(location: str) -> str:
    """Name a location in a sentence."""
    return "anywhere" if location == ANYWHERE else f"in {location}"

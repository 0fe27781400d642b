"""How a rollout makes room for a start that is blocked.

A start that the plan no longer wants goes on while its service lacks capacity, unless one of a higher tier needs the
room. A Ready replica that still serves is pushed out only at a standstill: when nothing that its service waits for can
come by itself (``waits.py``), and only for capacity that a service lacks, as long as anything starts anywhere.
Then as little as possible leaves, of the lowest tier, for one start in one step.
Where GPUs are free, but not in one piece, a few small replicas move together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from solvers.fleet import ANYWHERE, PoolKey, Replica, ReplicaState
from solvers.rollout.chains import Place
from solvers.rollout.room import Blocker
from solvers.rollout.turn import Turn, newcomer
from solvers.rollout.waits import Waits, is_held, is_near, is_of_class_at

MAX_TRIES = 256  # blocked places looked at in one step; the rest wait for the next
MAX_WAYS = 16  # ways out of a standstill that are compared; the most important starts come first


def make_room(turn: Turn, blocked: Mapping[Place, Blocker], limit: int) -> None:
    """Make room for the next blocked starts, at most as many as may start."""
    if not blocked:
        return
    tried = dict([*blocked.items()][:MAX_TRIES])
    promised = _stop_starts(turn, tried, limit)
    waits = Waits(turn, promised)
    if not _end_standstill(turn, tried, waits):
        _regroup(turn, tried, waits)


def _stop_starts(turn: Turn, blocked: Mapping[Place, Blocker], limit: int) -> set[Place]:
    """Stop starts that the plan no longer wants for blocked ones of a higher tier, one of a place at a time."""
    budget = max(1, limit - turn.in_flight() - sum(turn.started.values()))
    unwanted = _unwanted(turn, lambda replica: replica.state is not ReplicaState.READY)
    promised: set[Place] = set()
    for place, blocker in blocked.items() if unwanted else ():
        rank = turn.rank(place[0].service)
        victims = _victims(turn, place, [r for r in unwanted if turn.rank(r.pool.service) > rank])
        if not victims or len(promised) >= budget:
            continue
        unwanted = [replica for replica in unwanted if replica not in victims]
        _push_out(turn, place, blocker, victims)
        promised.add(place)
    return promised


def _end_standstill(turn: Turn, blocked: Mapping[Place, Blocker], waits: Waits) -> bool:
    """Push out what does least harm, for one start, where waiting would be for ever."""
    unwanted = _unwanted(turn, lambda replica: waits.may_lose_a_replica(replica.pool.service))
    ways: list[tuple[list[Replica], Place]] = []
    for place in blocked if unwanted else ():
        victims = _victims(turn, place, unwanted, waits.is_quiet)
        if victims and (waits.is_all_quiet or _is_urgent(turn, place, victims)):
            ways.append((victims, place))
        if len(ways) >= MAX_WAYS:
            break
    if not ways:
        return False
    victims, place = min(ways, key=lambda way: _harm(turn, *way))
    place = _taker(turn, blocked, victims) or place
    _push_out(turn, place, blocked[place], victims)
    return True


def _is_urgent(turn: Turn, place: Place, victims: Sequence[Replica]) -> bool:
    """True when the start adds capacity that its service lacks, and takes it from none that is more important."""
    service = place[0].service
    is_short = turn.chains.met_ratio(service) < 1.0
    return is_short and all(turn.rank(victim.pool.service) >= turn.rank(service) for victim in victims)


def _taker(turn: Turn, blocked: Mapping[Place, Blocker], victims: Sequence[Replica]) -> Place | None:
    """The start that gets the room: the most important that fits once the victims are gone."""
    with _gone(turn, victims):
        return next((place for place in blocked if turn.later.blocker(*place) is None), None)


def _push_out(turn: Turn, place: Place, blocker: Blocker, victims: Iterable[Replica]) -> None:
    for victim in victims:
        turn.drop(victim, f"makes room for {place[0]} {_where(place[1])}: {blocker.text}")
    turn.later.hold(newcomer(place))  # the room is spoken for


def _unwanted(turn: Turn, is_meant: Callable[[Replica], bool]) -> list[Replica]:
    """What the plan does not want, the lowest tier and the least loaded first."""
    found = [r for place, kept in turn.kept.items() for r in kept[: max(0, turn.surplus(place))] if is_meant(r)]

    def order(replica: Replica) -> tuple[int, str, str, float, float, PoolKey, str]:
        pool = replica.pool
        rank, load = -turn.rank(pool.service), replica.outstanding_requests
        return rank, pool.service, pool.role, load, replica.age_s, pool, replica.name

    return sorted(found, key=order)


def _victims(
    turn: Turn,
    place: Place,
    unwanted: Sequence[Replica],
    may_act: Callable[[Place, Blocker], bool] = lambda place, blocker: True,
) -> list[Replica]:
    """Replicas whose leaving lets one more start at the place; none when the leaving of all would not.

    The last Ready replica of a role chain is taken only when nothing else makes the room.
    """
    candidates, taken = [*unwanted], list[Replica]()
    while blocker := turn.later.blocker(*place):
        is_free = may_act(place, blocker)
        holders = [replica for replica in candidates if is_free and _holds(turn, replica, place, blocker)]
        victim = min(holders, key=lambda replica: _loss(turn, replica), default=None)
        if victim is None:
            break
        candidates.remove(victim)
        turn.set_aside(victim)
        taken.append(victim)
    still_aside = taken if blocker else [replica for replica in reversed(taken) if _is_needed(turn, replica, place)]
    for replica in still_aside:
        turn.take_back(replica)
    return [] if blocker else still_aside


def _is_needed(turn: Turn, replica: Replica, place: Place) -> bool:
    """True when the start does not fit beside the replica; else it is taken back."""
    turn.take_back(replica)
    if turn.later.blocker(*place) is None:
        return False
    turn.set_aside(replica)
    return True


def _holds(turn: Turn, replica: Replica, place: Place, blocker: Blocker) -> bool:
    """True when the replica holds, or may come to hold, what the blocker lacks."""
    return is_held(place, blocker, replica.pool.gpu_class, replica.location, turn.later.domains_of(replica))


Loss = tuple[bool, int, float]
"""Whether a chain ends, how important its service is, and what share of the planned load is served no more."""


def _loss(turn: Turn, replica: Replica) -> Loss:
    service, is_last = replica.pool.service, turn.chains.is_last(replica)
    before = turn.chains.met_ratio(service)
    with _gone(turn, [replica]):
        return is_last, -turn.rank(service), before - turn.chains.met_ratio(service)


def _harm(turn: Turn, victims: Sequence[Replica], place: Place) -> tuple[int, int, float, bool, int]:
    """Chains that end, the most important tier hit, load served no more, whether another service gains, GPUs."""
    losses: list[Loss] = []
    with ExitStack() as gone:
        for replica in victims:
            losses.append(_loss(turn, replica))
            gone.enter_context(_gone(turn, [replica]))
    gains_other = any(replica.pool.service != place[0].service for replica in victims)
    gpus = sum(replica.pool.config.gpus for replica in victims)
    return sum(x[0] for x in losses), max(x[1] for x in losses), sum(x[2] for x in losses), gains_other, gpus


@contextmanager
def _gone(turn: Turn, replicas: Sequence[Replica]) -> Iterator[None]:
    """Look at the step as if the replicas had left."""
    for replica in replicas:
        turn.set_aside(replica)
    try:
        yield
    finally:
        for replica in replicas:
            turn.take_back(replica)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    """Replicas of one node that move for a start. ``is_spared``: their services serve as planned meanwhile."""

    replicas: tuple[Replica, ...]
    is_spared: bool

    @property
    def disturbance(self) -> tuple[bool, int, int, tuple[str, ...]]:
        gpus = sum(replica.pool.config.gpus for replica in self.replicas)
        return not self.is_spared, gpus, len(self.replicas), tuple(replica.name for replica in self.replicas)


def _regroup(turn: Turn, blocked: Mapping[Place, Blocker], waits: Waits) -> None:
    """Move small replicas together where a start finds enough GPUs free, but not on one node.

    The last resort: only where nothing starts or leaves by itself, never the last Ready replica of a chain, and only
    what fits back beside the start. One place in one step; what moves starts again like anything else that is missing.
    """
    for place, blocker in blocked.items():
        if blocker.domain or not waits.is_still(place[0].service) or not _is_settled(turn, place):
            continue
        moves = (_movable(turn, place, name) for name in _nodes_at(turn, place))
        allowed = (move for move in moves if move and _may_move(move, waits))
        best = min(allowed, key=lambda move: move.disturbance, default=None)
        if best:
            for replica in best.replicas:
                turn.drop(replica, f"moves to another node: {place[0]} needs {place[0].config.gpus} GPUs on one")
            return


def _may_move(move: _Move, waits: Waits) -> bool:
    return move.is_spared or all(waits.may_lose_a_replica(replica.pool.service) for replica in move.replicas)


def _nodes_at(turn: Turn, place: Place) -> Iterator[str]:
    for node in turn.snapshot.nodes:
        if node.gpu_class == place[0].gpu_class and is_near(node.location, place[1]):
            yield node.name


def _is_settled(turn: Turn, place: Place) -> bool:
    """True when nothing starts or leaves on the nodes where the replica could land."""
    changed = [at for moves in (turn.started, turn.dropped) for at, move in moves.items() if move]
    here = (r for r in turn.snapshot.replicas if is_of_class_at(r.pool, r.location, place))
    return all(r.state is ReplicaState.READY for r in here) and not any(is_of_class_at(*at, place) for at in changed)


def _movable(turn: Turn, place: Place, node: str) -> _Move | None:
    """The smallest replicas of one node that have to move, None when moving does not help."""
    gpus = place[0].config.gpus
    here = [r for kept in turn.kept.values() for r in kept if r.node == node and r.pool.config.gpus < gpus]
    here.sort(key=lambda r: (-turn.rank(r.pool.service), r.pool.config.gpus, r.age_s, r.pool, r.name))
    moved: list[Replica] = []
    is_spared = True
    for replica in here:
        if turn.later.blocker(*place) is None:
            break
        if not turn.chains.is_last(replica):
            is_spared = is_spared and turn.chains.can_spare(replica)
            turn.set_aside(replica)
            moved.append(replica)
    leave_for_good = Counter({at: max(0, turn.surplus(at)) for at in {(r.pool, r.location) for r in moved}})
    back = Counter((r.pool, r.location) for r in moved) - leave_for_good
    fits = _fit(turn, [newcomer(place), *(newcomer(at) for at in sorted(back.elements()))])
    for replica in moved:
        turn.take_back(replica)
    return _Move(replicas=tuple(moved), is_spared=is_spared) if fits and moved else None


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


def _where(location: str) -> str:
    """Name a location in a sentence."""
    return "anywhere" if location == ANYWHERE else f"in {location}"

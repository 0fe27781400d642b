"""The next safe step from what runs to what is planned.

A pure function: the same snapshot and plan give the same actions, and the state of a rollout is nowhere but in the
cluster, so an operator that was killed goes on where it stopped. In this order:

1. A domain over its budget sheds at once, all in one step: what the plan does not want first, then the lowest tier,
   then what is least ready, then what started last.
2. What the plan does not want leaves when its replacement is Ready (make before break).
3. What the plan wants starts, the most important first, when GPUs and watts are there for the worst case of
   everything that exists or is asked for.
4. Where a start is blocked, unwanted replicas that hold the room it needs leave.

No step takes a domain over its budget, and none adds to one that is over.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from solvers.assign import LEAVING_ORDER, choose_leaving
from solvers.engine import Role
from solvers.fleet import ANYWHERE, PoolKey, Replica, ReplicaState, Snapshot
from solvers.ledger import unseen_replicas
from solvers.plan import Plan
from solvers.problem import Policy
from solvers.room import Blocker, Room

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Set the replicas that one workload asks for.

    Attributes
    ----------
    leaving : tuple of str
        Pods to be marked as the ones that go, first to go first, before the number is lowered.
    reason : str
        One sentence for the Event and the log.
    """

    pool: PoolKey
    location: str
    from_replicas: int
    to_replicas: int
    leaving: tuple[str, ...] = ()
    reason: str


Action = Scale


def next_step(
    snapshot: Snapshot, plan: Plan, policy: Policy, *, tier_ranks: Mapping[str, int] | None = None
) -> tuple[Action, ...]:
    """Choose the actions that are safe to take now.

    Parameters
    ----------
    snapshot : Snapshot
        What exists and what the workloads ask for.
    plan : Plan
        What is wanted; pools that it does not name go to zero.
    tier_ranks : mapping of service to int, optional
        0 is the most important; a service that is missing leaves first and starts last.

    Returns
    -------
    tuple of Action
        Scale-downs before scale-ups, each sorted by pool and location; at most one for a (pool, location). Empty
        when the plan is reached, and when nothing may move yet.
    """
    turn = _Turn(snapshot, plan, tier_ranks or {})
    _shed_over_budget(turn)
    _release_replaced(turn)
    blocked = _start(turn, policy.max_starts_per_turn)
    _make_room(turn, blocked, policy.max_starts_per_turn)
    return turn.actions()


class _Turn:
    """What is decided so far in one step.

    ``kept`` are the replicas that stay, by place and in leaving order, nameless ones for what was not seen yet;
    ``now`` is the room with all that exists, ``later`` the room once all that leaves is gone.
    """

    def __init__(self, snapshot: Snapshot, plan: Plan, tier_ranks: Mapping[str, int]) -> None:
        self.snapshot, self._ranks = snapshot, tier_ranks
        self.want: dict[Place, int] = defaultdict(int)
        for placement in plan.placements:
            self.want[placement.pool, placement.location] += placement.replicas
        self._observed: dict[Place, list[Replica]] = defaultdict(list)
        for replica in snapshot.replicas:
            self._observed[replica.pool, replica.location].append(replica)
        unseen = unseen_replicas(snapshot)
        self.kept = self._kept(unseen)
        self.now = Room(snapshot, (*snapshot.replicas, *unseen))
        self.later = Room(snapshot, (replica for kept in self.kept.values() for replica in kept))
        self.chains = _Chains(plan, self.want, self.kept)
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
        self.now.hold(_newcomer(place))
        self.later.hold(_newcomer(place))
        self.started[place] += 1

    def is_moving(self) -> bool:
        """True when something starts or leaves already: then waiting may help."""
        is_leaving = any(replica.state is ReplicaState.LEAVING for replica in self.snapshot.replicas)
        return is_leaving or bool(self.dropped) or any(self.started.values()) or self.in_flight() > 0

    def in_flight(self) -> int:
        """Replicas asked for that are not Ready yet and may still become so in time."""
        kept = (replica for replicas in self.kept.values() for replica in replicas)
        return sum(r.state is not ReplicaState.READY and r.age_s <= START_PATIENCE_S for r in kept)

    def actions(self) -> tuple[Action, ...]:
        downs = [self._down(place) for place in sorted(place for place, gone in self.dropped.items() if gone)]
        ups = [self._up(place) for place in sorted(place for place, count in self.started.items() if count)]
        return (*downs, *ups)

    def _down(self, place: Place) -> Action:
        to_replicas = len(self.kept[place])
        named = [replica for replica in self.dropped[place] if replica.name]
        others = [r for r in self._observed[place] if r.state in LEAVING_ORDER and r not in named]
        excess = choose_leaving(others, len(others) - to_replicas)  # lost ones and those already on the way out
        return Scale(
            pool=place[0],
            location=place[1],
            from_replicas=self.asked(place),
            to_replicas=to_replicas,
            leaving=tuple(replica.name for replica in (*excess, *named)),
            reason="; ".join(self.reasons[place]),
        )

    def _up(self, place: Place) -> Action:
        asked, more = self.asked(place), self.started[place]
        reason = f"the plan wants {self.want[place]}, {asked} are asked for, and there is room for {more} more now"
        return Scale(pool=place[0], location=place[1], from_replicas=asked, to_replicas=asked + more, reason=reason)


class _Chains:
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


def _newcomer(place: Place) -> Replica:
    return Replica(name="", pool=place[0], location=place[1], node=None, state=ReplicaState.PENDING)


def _shed_over_budget(turn: _Turn) -> None:
    """Bring every domain under its budget, counting as gone what is leaving already."""
    for only_surplus in (True, False):
        over = turn.later.over()
        if not over:
            return
        for replica in _shedding_order(turn, set(over)):
            is_wanted = turn.surplus((replica.pool, replica.location)) <= 0
            domain = next((d for d in turn.later.domains_of(replica) if turn.later.is_over(d)), None)
            if domain is not None and domain in over and not (only_surplus and is_wanted):
                turn.drop(replica, _shed_reason(domain, over[domain], is_wanted))


def _shedding_order(turn: _Turn, over: set[str]) -> list[Replica]:
    kept = (replica for replicas in turn.kept.values() for replica in replicas)
    affected = [replica for replica in kept if not over.isdisjoint(turn.later.domains_of(replica))]

    def order(replica: Replica) -> tuple[int, int, float, PoolKey, str, str]:
        rank, state = -turn.rank(replica.pool.service), LEAVING_ORDER[replica.state]
        return rank, state, replica.age_s, replica.pool, replica.location, replica.name

    return sorted(affected, key=order)


def _shed_reason(domain: str, watts: tuple[float, float], is_wanted: bool) -> str:
    reserved, usable = watts
    who = "the lowest tier and the last started leave first" if is_wanted else "the plan does without"
    return f"power[{domain}] reserves {reserved:,.0f} W of {usable:,.0f} W usable: {who}"


def _release_replaced(turn: _Turn) -> None:
    """Let go what the plan does not want and the service does not need any more."""
    places = [place for place in turn.kept if turn.surplus(place) > 0]
    for place in sorted(places, key=lambda place: (turn.want.get(place, 0) > 0, place)):
        for replica in list(turn.kept[place]):
            if turn.surplus(place) > 0 and turn.chains.is_replaced(replica):
                turn.drop(replica, f"the plan wants {turn.want.get(place, 0)}, and what replaces the rest is Ready")


def _start(turn: _Turn, limit: int) -> list[tuple[Place, Blocker]]:
    """Start what has room, the most important and least filled first; return what is blocked, and by what."""
    blocked: list[tuple[Place, Blocker]] = []
    budget = limit - turn.in_flight()
    filled = _Filled(turn)
    places = (place for place in turn.want if turn.missing(place) > 0 and not turn.dropped.get(place))
    queue = [filled.order(place) for place in places]
    heapq.heapify(queue)
    while budget > 0 and queue:
        place = heapq.heappop(queue)[-1]
        order = filled.order(place)
        if queue and order > queue[0]:
            heapq.heappush(queue, order)  # its role was filled from elsewhere since
            continue
        blocker = filled.larger_first(place) or turn.now.blocker(*place)
        if blocker is not None:
            blocked.append((place, blocker))
            continue
        turn.start(place)
        filled.add(place)
        budget -= 1
        if turn.missing(place) > 0:
            heapq.heappush(queue, filled.order(place))
    return blocked


class _Filled:
    """How much of each (service, role) is there already, and which groups of GPUs wait for a node."""

    def __init__(self, turn: _Turn) -> None:
        self._turn = turn
        self._want: dict[tuple[str, Role], int] = defaultdict(int)
        self._have: dict[tuple[str, Role], int] = defaultdict(int)
        self._waiting: dict[tuple[str, str], int] = defaultdict(int)
        for (pool, location), count in turn.want.items():
            self._want[pool.service, pool.role] += count
            self._have[pool.service, pool.role] += min(count, len(turn.kept[pool, location]))
        for replica in turn.snapshot.replicas:
            if replica.state is ReplicaState.PENDING and replica.age_s <= START_PATIENCE_S:
                self._wait(replica.pool, replica.location)

    def _wait(self, pool: PoolKey, location: str) -> None:
        at = pool.gpu_class, location
        self._waiting[at] = max(self._waiting[at], pool.config.gpus)

    def add(self, place: Place) -> None:
        self._have[place[0].service, place[0].role] += 1
        self._wait(*place)

    def order(self, place: Place) -> tuple[int, float, int, Place]:
        pool, _ = place
        ratio = self._have[pool.service, pool.role] / self._want[pool.service, pool.role]
        return self._turn.rank(pool.service), ratio, -pool.config.gpus, place

    def larger_first(self, place: Place) -> Blocker | None:
        """Small groups wait until larger ones have their node, or the scheduler may break up the last whole one."""
        pool, location = place
        waiting = self._waiting[pool.gpu_class, location]
        return Blocker(text=f"a group of {waiting} GPUs gets its node first") if waiting > pool.config.gpus else None


def _make_room(turn: _Turn, blocked: list[tuple[Place, Blocker]], limit: int) -> None:
    """Let unwanted replicas go that hold what the next blocked starts need, even before they are replaced."""
    for place, blocker in blocked[: max(1, limit - turn.in_flight())]:
        victims = _victims(turn, place)
        if victims is None:
            continue
        for victim in victims:
            turn.drop(victim, f"makes room for {place[0]} {_where(place[1])}: {blocker.text}")
        turn.later.hold(_newcomer(place))  # the room is spoken for


def _victims(turn: _Turn, place: Place) -> list[Replica] | None:
    """Replicas whose leaving lets one more start at the place; None when the leaving of all would not.

    The last Ready replica of a role chain is spared, unless nothing else moves at all: then the plan's move is a
    swap in place, and waiting would be for ever.
    """
    takes_last = not turn.is_moving()
    candidates, taken = _unwanted(turn), list[Replica]()
    while blocker := turn.later.blocker(*place):
        for replica in candidates:
            if _holds(turn, replica, place, blocker) and (takes_last or not turn.chains.is_last(replica)):
                break
        else:
            break
        candidates.remove(replica)
        turn.set_aside(replica)
        taken.append(replica)
    if blocker:
        needed = None
    else:
        needed = [replica for replica in reversed(taken) if _is_needed(turn, replica, place)]
    for replica in taken if needed is None else needed:
        turn.take_back(replica)
    return needed


def _is_needed(turn: _Turn, replica: Replica, place: Place) -> bool:
    """True when the start does not fit beside the replica; else it is taken back."""
    turn.take_back(replica)
    if turn.later.blocker(*place) is None:
        return False
    turn.set_aside(replica)
    return True


def _unwanted(turn: _Turn) -> list[Replica]:
    """What the plan does not want, the lowest tier and the least ready first."""
    found = [r for place, kept in turn.kept.items() for r in kept[: max(0, turn.surplus(place))]]
    return sorted(found, key=lambda r: (-turn.rank(r.pool.service), LEAVING_ORDER[r.state], r.age_s, r.pool, r.name))


def _holds(turn: _Turn, replica: Replica, place: Place, blocker: Blocker) -> bool:
    if blocker.domain:
        return blocker.domain in turn.later.domains_of(replica)
    pool, location = place
    is_near = location == replica.location or ANYWHERE in (location, replica.location)
    return replica.pool.gpu_class == pool.gpu_class and is_near


def _where(location: str) -> str:
    """Name a location in a sentence."""
    return "anywhere" if location == ANYWHERE else f"in {location}"

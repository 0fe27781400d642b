"""The next safe step from what runs to what is planned.

A pure function: the same snapshot and plan give the same actions, and the state of a rollout is nowhere but in the
cluster, so an operator that was killed goes on where it stopped. In this order:

1. A domain over its budget sheds at once, all in one step: what has no node yet first, whosever it is, then what the
   plan does not want, then the lowest tier, then what is least ready, then what its service misses least, then what
   started last.
2. What the plan does not want leaves when the Ready replicas of its service carry without it what the plan serves
   (make before break). That holds for starts too: a plan that changes often would else never get one Ready.
3. What the plan wants starts, the most important first, when GPUs and watts are there for the worst case of
   everything that exists or is asked for.
4. Where a start is blocked and nothing that it waits for can come by itself, the least of what the plan does not want
   leaves before it is replaced; where GPUs are free but not in one piece, a few small replicas change nodes
   (``ways.py``).

No step takes a domain over its budget, and none adds to one that is over.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from solvers.engine import Role
from solvers.fleet import PoolKey, Replica, ReplicaState, Snapshot
from solvers.plan import Plan
from solvers.problem import Policy
from solvers.rollout.assign import LEAVING_ORDER, choose_leaving
from solvers.rollout.chains import Place
from solvers.rollout.room import Blocker
from solvers.rollout.turn import Turn
from solvers.rollout.ways import make_room


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

BINDING_PATIENCE_S = 60.0  # the scheduler binds what fits within seconds; what waits longer holds up nobody


def next_step(
    snapshot: Snapshot,
    plan: Plan,
    policy: Policy,
    *,
    tier_ranks: Mapping[str, int] | None = None,
    carried: Mapping[PoolKey, float] | None = None,
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
    carried : mapping of pool to float, requests/s, optional
        What one replica of a running pool carries that the plan lacks (``rollout_chains.carried_requests_per_s``);
        a pool that neither knows counts nothing until others carry the load.

    Returns
    -------
    tuple of Action
        Scale-downs before scale-ups, each sorted by pool and location; at most one for a (pool, location). Empty
        when the plan is reached, and when nothing may move yet.
    """
    turn = Turn(snapshot, plan, tier_ranks or {}, carried or {})
    _shed_over_budget(turn)
    _release_replaced(turn)
    blocked = _start(turn, policy.max_starts_per_turn)
    make_room(turn, blocked, policy.max_starts_per_turn)
    return _actions(turn)


def _actions(turn: Turn) -> tuple[Action, ...]:
    downs = [_down(turn, place) for place, gone in sorted(turn.dropped.items()) if gone]
    ups = [_up(turn, place) for place, count in sorted(turn.started.items()) if count]
    return (*downs, *ups)


def _down(turn: Turn, place: Place) -> Action:
    to_replicas = len(turn.kept[place])
    named = [replica for replica in turn.dropped[place] if replica.name]
    others = [r for r in turn.observed[place] if r.state in LEAVING_ORDER and r not in named]
    excess = choose_leaving(others, len(others) - to_replicas)  # lost ones and those already on the way out
    return Scale(
        pool=place[0],
        location=place[1],
        from_replicas=turn.asked(place),
        to_replicas=to_replicas,
        leaving=tuple(replica.name for replica in (*excess, *named)),
        reason="; ".join(turn.reasons[place]),
    )


def _up(turn: Turn, place: Place) -> Action:
    asked, more = turn.asked(place), turn.started[place]
    reason = f"the plan wants {turn.want[place]}, {asked} are asked for, and there is room for {more} more now"
    return Scale(pool=place[0], location=place[1], from_replicas=asked, to_replicas=asked + more, reason=reason)


def _shed_over_budget(turn: Turn) -> None:
    """Bring every domain under its budget, counting as gone what is leaving already."""
    for is_meant, who in SHEDDING:
        over = turn.later.over()
        affected = [
            r for kept in turn.kept.values() for r in kept if not over.keys().isdisjoint(turn.later.domains_of(r))
        ]
        for replica in _in_shedding_order(turn, [r for r in affected if is_meant(turn, r)]):
            domain = next((d for d in turn.later.domains_of(replica) if d in over and turn.later.is_over(d)), None)
            if domain is not None and is_meant(turn, replica):
                turn.drop(replica, _shed_reason(domain, over[domain], who))


SHEDDING: tuple[tuple[Callable[[Turn, Replica], bool], str], ...] = (
    (lambda turn, replica: replica.state is ReplicaState.PENDING, "what has no node yet serves nothing"),
    (lambda turn, replica: _is_spare(turn, replica), "the plan does without, and other Ready ones carry the load"),
    (lambda turn, replica: True, "the lowest tier and what its service misses least leave first"),
)
"""Who leaves in turn, and in which words, as long as a domain is over its budget.

What the plan does without but nothing replaces yet is as dear as what it wants: it goes by tier like the others.
"""


def _is_spare(turn: Turn, replica: Replica) -> bool:
    return turn.surplus((replica.pool, replica.location)) > 0 and turn.chains.can_spare(replica)


def _in_shedding_order(turn: Turn, replicas: Sequence[Replica]) -> Iterator[Replica]:
    """The lowest tier, the least ready, the least missed, the last started first, as others leave meanwhile."""

    def order(replica: Replica) -> tuple[int, int, float, float, PoolKey, str, str]:
        rank, state = -turn.rank(replica.pool.service), LEAVING_ORDER[replica.state]
        missed = -turn.chains.left_ratio(replica) if replica.state is ReplicaState.READY else 0.0
        return rank, state, missed, replica.age_s, replica.pool, replica.location, replica.name

    queue = [(order(replica), number, replica) for number, replica in enumerate(replicas)]
    heapq.heapify(queue)
    while queue:
        before, number, replica = heapq.heappop(queue)
        now = order(replica)
        if now == before:
            yield replica
        else:  # others of its service left since, so it is missed more
            heapq.heappush(queue, (now, number, replica))


def _shed_reason(domain: str, watts: tuple[float, float], who: str) -> str:
    reserved, usable = watts
    return f"power[{domain}] reserves {reserved:,.0f} W of {usable:,.0f} W usable: {who}"


def _release_replaced(turn: Turn) -> None:
    """Let go what the plan does not want and the service does not need any more."""
    places = [place for place in turn.kept if turn.surplus(place) > 0]
    for place in sorted(places, key=lambda place: (turn.want.get(place, 0) > 0, place)):
        for replica in list(turn.kept[place]):
            if turn.surplus(place) > 0 and turn.chains.can_spare(replica):
                turn.drop(replica, f"the plan wants {turn.want.get(place, 0)}: {_WHY[replica.state]}")


_WHY = {
    ReplicaState.READY: "other Ready ones carry the load",
    ReplicaState.STARTING: "a start that is not wanted any more is stopped",
    ReplicaState.PENDING: "a start that is not wanted any more is stopped",
}


def _start(turn: Turn, limit: int) -> dict[Place, Blocker]:
    """Start what has room, the most important and least filled first; return what is blocked, and by what."""
    blocked: dict[Place, Blocker] = {}
    budget = limit - turn.in_flight()
    filled = _Filled(turn)
    places = (place for place in turn.want if turn.missing(place) > 0)
    queue = [filled.order(place) for place in places]
    heapq.heapify(queue)
    while budget > 0 and queue:
        place = heapq.heappop(queue)[-1]
        order = filled.order(place)
        if queue and order > queue[0]:
            heapq.heappush(queue, order)  # its role was filled from elsewhere since
            continue
        blocker = filled.others_first(place) or turn.now.blocker(*place)
        if blocker is not None:
            blocked[place] = blocker
            continue
        turn.start(place)
        filled.add(place)
        budget -= 1
        if turn.missing(place) > 0:
            heapq.heappush(queue, filled.order(place))
    return blocked


class _Filled:
    """How much of each (service, role) is there already, and which groups of GPUs wait for a node."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._want: dict[tuple[str, Role], int] = defaultdict(int)
        self._have: dict[tuple[str, Role], int] = defaultdict(int)
        self._waiting: dict[tuple[str, str], set[int]] = defaultdict(set)
        for (pool, location), count in turn.want.items():
            self._want[pool.service, pool.role] += count
            self._have[pool.service, pool.role] += min(count, len(turn.kept[pool, location]))
        for replica in turn.snapshot.replicas:
            if replica.state is ReplicaState.PENDING and replica.age_s <= BINDING_PATIENCE_S:
                self._waiting[replica.pool.gpu_class, replica.location].add(replica.pool.config.gpus)

    def add(self, place: Place) -> None:
        pool, location = place
        self._have[pool.service, pool.role] += 1
        self._waiting[pool.gpu_class, location].add(pool.config.gpus)

    def order(self, place: Place) -> tuple[int, float, int, Place]:
        pool, _ = place
        ratio = self._have[pool.service, pool.role] / self._want[pool.service, pool.role]
        return self._turn.rank(pool.service), ratio, -pool.config.gpus, place

    def others_first(self, place: Place) -> Blocker | None:
        """Groups of one size at a time get their nodes, or the scheduler may break up what another size needs."""
        pool, location = place
        others = self._waiting[pool.gpu_class, location] - {pool.config.gpus}
        return Blocker(text=f"groups of {max(others)} GPUs get their nodes first") if others else None

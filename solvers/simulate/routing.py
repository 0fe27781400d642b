"""Where requests of one service can go: groups of replicas by role, and what waits at the gateway for them.

A request has two ways to its end: one mixed replica, or a *chain* of a prefill and a decode replica. It takes the way
with least outstanding work, and the work of a chain is the sum over its two, as a mixed replica's is the sum of its
prompts and sequences: what is ahead of the request until it ends. (The larger of the two would say how soon the chain
is done with everything, but sequences that decode well together would hide a queue of prompts from it: with 2 mixed
replicas and a chain at 70 % of what they can do, the 99th percentile of TTFT may be twice as long.) Both ends are
bound and charged at once, so a missing or slow decode side shows before a prompt is computed for it, not after.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from typing import TypeAlias, Union

from solvers.engine import Role
from solvers.simulate.replica import Replica
from solvers.simulate.results import GapHistogram, LiveRequest
from solvers.simulate.tables import NEVER

Event: TypeAlias = tuple[int, int, Union[LiveRequest, Replica, "ServiceState"]]
"""(ticks, rank at equal ticks, whose): a transfer that lands, a boundary of a replica, a patience that may end."""


class Group:
    """Replicas that one kind of work of a service is routed over; ``loads`` are ticks of outstanding work."""

    __slots__ = ("loads", "replicas")

    def __init__(self) -> None:
        self.replicas: list[Replica] = []
        self.loads: list[int] = []

    def add(self, replica: Replica) -> None:
        """Route to a replica from now on, with the work it has; replicas stay in the order in which they came."""
        place = bisect_left(self.replicas, replica.index, key=lambda r: r.index)
        self.replicas.insert(place, replica)
        self.loads.insert(place, replica.loads[0])
        replica.loads = self.loads
        self._number()

    def remove(self, replica: Replica) -> None:
        """Route no more to a replica, if it is one of the group."""
        if replica.loads is not self.loads:
            return
        self.replicas.pop(replica.slot)
        replica.loads, replica.slot = [self.loads.pop(replica.slot)], 0
        self._number()

    def _number(self) -> None:
        for slot, replica in enumerate(self.replicas):
            replica.slot = slot

    def lightest(self, request: LiveRequest, queue_limit: int, *, is_easy: bool) -> Replica | None:
        """Replica with least work that can hold the request and whose queue is shorter than the limit, if any.

        The one that came first among equals. An easy request fits everywhere.
        """
        if not self.replicas:
            return None
        if is_easy:
            replica = self.replicas[self.loads.index(min(self.loads))]
            if len(replica.queue) < queue_limit:
                return replica
        able = self.replicas if is_easy else (r for r in self.replicas if _fits(r, request))
        return min((r for r in able if len(r.queue) < queue_limit), key=lambda r: r.loads[r.slot], default=None)

    def fits(self, request: LiveRequest) -> bool:
        """True when one of the replicas could hold the request to the end of its part."""
        return any(_fits(r, request) for r in self.replicas)


class ServiceState:
    """Routing state and counters of one service.

    ``due`` is when the clock will look at the patience of whoever waits first, never later than it ends.
    """

    __slots__ = (
        "counts", "due", "easy_tokens", "gone_gaps", "groups", "index", "late_limit", "stranded", "waiting",
    )  # fmt: skip

    def __init__(self, index: int, late_limit: int) -> None:
        self.index, self.due = index, NEVER
        self.groups = {role: Group() for role in (Role.MIXED, Role.PREFILL, Role.DECODE)}
        self.waiting: deque[LiveRequest] = deque()  # at the gateway: nobody to send to
        self.stranded: deque[LiveRequest] = deque()  # computed, but the decode replicas left meanwhile
        self.late_limit = late_limit
        self.easy_tokens = 0
        self.gone_gaps = GapHistogram()
        self.counts: Counter[str] = Counter()

    def replicas(self) -> list[Replica]:
        """All that requests are routed over."""
        return [replica for group in self.groups.values() for replica in group.replicas]

    def regroup(self) -> None:
        """Find the request size below which every replica may serve, so that routing need not look."""
        self.easy_tokens = min((r.tables.kv_capacity for r in self.replicas()), default=0)

    def is_easy(self, request: LiveRequest) -> bool:
        """True when the request fits every replica there is."""
        return request.prompt + request.output < self.easy_tokens

    def choose(self, request: LiveRequest, queue_limit: int) -> tuple[Replica, Replica] | None:
        """Find where to compute the prompt and where to decode, by least work; None when every way is full.

        Only replicas whose queues are shorter than the limit count. Among equals mixed replicas go before the chain.
        """
        is_easy, (mixed, prefill, decode) = self.is_easy(request), self.groups.values()
        alone = mixed.lightest(request, queue_limit, is_easy=is_easy)
        receiver = decode.lightest(request, queue_limit, is_easy=is_easy)
        giver = prefill.lightest(request, queue_limit, is_easy=is_easy) if receiver else None
        if giver is None or receiver is None:
            return (alone, alone) if alone else None
        ahead = giver.loads[giver.slot] + receiver.loads[receiver.slot]
        return (alone, alone) if alone and alone.loads[alone.slot] <= ahead else (giver, receiver)

    def receiver(self, request: LiveRequest) -> Replica | None:
        """Find the lightest decode replica for a computed prompt, however long its queue is."""
        return self.groups[Role.DECODE].lightest(request, NEVER, is_easy=self.is_easy(request))

    def may_serve(self, request: LiveRequest) -> bool:
        """False when the request is too large for every way to its end.

        With no way at all it may wait for one, unless the prefill side is there and too small.
        """
        if self.is_easy(request):
            return True
        mixed, prefill, decode = self.groups.values()
        if mixed.replicas or (prefill.replicas and decode.replicas):
            return mixed.fits(request) or (prefill.fits(request) and decode.fits(request))
        return prefill.fits(request) or not prefill.replicas

    def sort_waiting(self) -> None:
        """Put those that began again back to where their arrival places them."""
        self.waiting = deque(sorted(self.waiting, key=lambda r: (r.arrival, r.index)))

    def take_stranded(self, replica: Replica) -> list[LiveRequest]:
        """Take out the computed prompts whose KV cache is on this replica."""
        taken = [r for r in self.stranded if r.prefill_replica == replica.index]
        self.stranded = deque(r for r in self.stranded if r.prefill_replica != replica.index)
        return taken


def _fits(replica: Replica, request: LiveRequest) -> bool:
    return replica.tables.fits(replica.role, request.prompt, request.output)


def too_large(request: LiveRequest, among: Iterable[Replica]) -> str:
    """Say why a request is rejected."""
    room = max(r.tables.kv_capacity for r in among)
    return (
        f"{request.prompt:,} prompt and {request.output:,} output tokens do not fit the KV room of any chain of "
        f"replicas (the largest holds {room:,} tokens)"
    )


def on_the_way(events: Iterable[Event], replica: Replica) -> list[LiveRequest]:
    """Requests on a link from or to the replica; asked rarely enough to look through the clock."""
    return [
        thing
        for due, _, thing in events
        if isinstance(thing, LiveRequest)
        and thing.due == due
        and replica.index in (thing.prefill_replica, thing.replica)
    ]

"""Where requests of one service can go: groups of replicas by kind of work, and what waits at the gateway for them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from typing import TypeAlias, Union

from solvers.engine import Role
from solvers.sim_replica import Replica
from solvers.sim_results import GapHistogram, LiveRequest
from solvers.sim_tables import NEVER

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

    def lightest(self) -> Replica:
        """Replica with least outstanding work; the one that came first among equals."""
        return self.replicas[self.loads.index(min(self.loads))]


class ServiceState:
    """Routing state and counters of one service.

    ``due`` is when the clock will look at the patience of whoever waits first, never later than it ends.
    """

    __slots__ = (
        "counts", "decode", "due", "easy_tokens", "entry", "gone_gaps", "index", "late_limit", "stranded", "waiting",
    )  # fmt: skip

    def __init__(self, index: int, late_limit: int) -> None:
        self.index, self.due = index, NEVER
        self.entry, self.decode = Group(), Group()
        self.waiting: deque[LiveRequest] = deque()  # at the gateway: nobody to send to
        self.stranded: deque[LiveRequest] = deque()  # computed, but no decode replica
        self.late_limit = late_limit
        self.easy_tokens = 0
        self.gone_gaps = GapHistogram()
        self.counts: Counter[str] = Counter()

    def regroup(self) -> None:
        """Find the request size below which every replica of each group may serve, so that routing need not look."""
        roles = {r.role for r in self.entry.replicas}
        sizes = [r.tables.kv_capacity for r in (*self.entry.replicas, *self.decode.replicas)]
        hard = len(roles) == 2 and not self.decode.replicas
        self.easy_tokens = 0 if hard else min(sizes, default=0)

    def choose(self, request: LiveRequest, queue_limit: int) -> Replica | None:
        """Find the entry replica with least work whose queue is not full; None when there is none."""
        group = self.entry
        able = None
        if request.prompt + request.output < self.easy_tokens and group.replicas:
            replica = group.lightest()
            if len(replica.queue) < queue_limit:
                return replica
            able = group.replicas
        free = (r for r in able or self.entries(request) if len(r.queue) < queue_limit)
        return min(free, key=lambda r: r.loads[r.slot], default=None)

    def entries(self, request: LiveRequest) -> list[Replica]:
        """Entry replicas from which the request can reach its end."""
        fitting = [r for r in self.entry.replicas if r.tables.fits(r.role, request.prompt, request.output)]
        decode_fits = any(r.tables.fits(Role.DECODE, request.prompt, request.output) for r in self.decode.replicas)
        served = [r for r in fitting if r.role is Role.MIXED or decode_fits]
        # With no decode replica at all a computed prompt may wait for one; with too small ones it may not.
        return served if served or self.decode.replicas else fitting

    def sort_waiting(self) -> None:
        """Put those that began again back to where their arrival places them."""
        self.waiting = deque(sorted(self.waiting, key=lambda r: (r.arrival, r.index)))

    def take_stranded(self, replica: Replica) -> list[LiveRequest]:
        """Take out the computed prompts whose KV cache is on this replica."""
        taken = [r for r in self.stranded if r.prefill_replica == replica.index]
        self.stranded = deque(r for r in self.stranded if r.prefill_replica != replica.index)
        return taken


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

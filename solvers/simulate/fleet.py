"""Discrete-event fleet: requests arrive, queue, are prefilled, move their KV cache, decode, and draw power.

The clock counts whole picoseconds, so equal replicas tie exactly and a run of decode steps is an exact arithmetic
progression: the fleet jumps from one change of a batch to the next. At equal times arrivals come first, then KV
transfers, then engine boundaries, and requests that give up waiting last; lower index first.

Seconds at the interface, whole ticks inside; the caller decides when: ``advance`` moves the clock, and replicas come,
drain and fail between calls. Cutting an ``advance`` in pieces changes nothing.

Routing: each request goes where least work is outstanding *in seconds of a replica's own time* (its prompts by its
prefill curve, its sequences by its decode table), so unlike pools share in proportion to what they can do: to a mixed
replica, or to a prefill replica and the decode replica bound with it from the start (``routing.py``). A computed
prompt moves over the prefill replica's own link, one transfer at a time in order; it is bound again, to the decode
replica with least work at that moment, only if its own takes no more by then.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush

from solvers.engine import EngineProfile, Role
from solvers.errors import InvalidInput
from solvers.simulate.books import FleetBooks
from solvers.simulate.replica import Replica
from solvers.simulate.results import LiveRequest, SimRequest
from solvers.simulate.routing import ServiceState, on_the_way
from solvers.simulate.tables import NEVER, compile_profile, to_ticks, to_ticks_or_never

# Ranks at equal times: of replica i it is i, of the transfer of request i and the patience of service i these + i.
TRANSFERS_FIRST, GIVE_UPS_LAST = -(1 << 60), 1 << 60


class Fleet(FleetBooks):
    """A fleet of simulated replicas serving requests of several services.

    Parameters
    ----------
    itl_limits_s : mapping of service to float s, optional
        Limit against which late token gaps are counted exactly, by gap and by request.
    record_first_tokens : bool
        Keep a row for each first token until ``take_first_tokens`` is called.
    replica_queue_limit : int, optional
        Flow control: a replica whose queue is this long gets nothing, and a chain has two such queues; requests wait
        at the gateway in order of arrival. Without it everything goes to a replica at once. Prompts bound before go
        on however long the queue of their decode replica is.
    gateway_patience_s : float, optional
        A request that is still at the gateway so long after its arrival is given up at that tick, unless a replica
        can take it at that very tick: ties go to serving. One that begins again because its replica was lost counts
        from its arrival too; when that time is over already it is served only if a replica can take it at once.
        With no decode replica new requests wait at the gateway too; prompts that were bound when the last one left
        have left the gateway and are not given up.

    Raises
    ------
    InvalidInput
        When the patience is negative or no number.
    """

    def __init__(
        self,
        *,
        itl_limits_s: Mapping[str, float] | None = None,
        record_first_tokens: bool = False,
        replica_queue_limit: int | None = None,
        gateway_patience_s: float | None = None,
    ) -> None:
        super().__init__(itl_limits_s=itl_limits_s or {}, record_first_tokens=record_first_tokens)
        if gateway_patience_s is not None and not gateway_patience_s >= 0:
            raise InvalidInput("gateway", "gateway_patience_s", f"is {gateway_patience_s}", "give 0 or more seconds")
        self._patience = to_ticks_or_never(gateway_patience_s)
        self._queue_limit = NEVER if replica_queue_limit is None else replica_queue_limit
        self._arrivals: list[LiveRequest] = []  # sorted by (arrival, index) from _next on
        self._next = 0
        self._submitted = 0

    # ------------------------------------------------------------------ the caller's side

    def add_replica(
        self, replica_id: str, service: str, role: Role, profile: EngineProfile, ready_at_s: float | None = None
    ) -> None:
        """Add a replica; it draws idle power at once and serves from ``ready_at_s`` (default: now).

        Raises
        ------
        InvalidInput
            When the name is taken or the profile is no table.
        """
        if replica_id in self._replicas:
            raise InvalidInput(f"replica/{replica_id}", "", "exists already", "remove it first or use another name")
        tables = compile_profile(profile)
        replica = Replica(
            len(self._by_index),
            replica_id,
            service,
            role,
            tables,
            now=self._now,
            late_limit=self._service(service).late_limit,
            started=self._first_tokens,
        )
        self._replicas[replica_id] = replica
        self._by_index.append(replica)
        self._names[replica.index] = replica_id
        ready_at = self._now if ready_at_s is None else max(self._now, to_ticks(ready_at_s))
        replica.due = ready_at
        if ready_at == self._now:
            self._make_ready(replica)
        else:
            heappush(self._events, (ready_at, replica.index, replica))

    def drain_replica(self, replica_id: str) -> None:
        """Send nothing new to a replica; what it holds is served to its end."""
        replica = self._find(replica_id)
        replica.is_draining = True
        self._ungroup(replica)
        self._let_in(self._services[replica.service])

    def remove_replica(self, replica_id: str) -> int:
        """Take a replica away at once, as when its node is lost.

        Returns
        -------
        int
            Requests that it held; each begins again on another replica, with its old arrival time.
        """
        replica = self._find(replica_id)
        self._ungroup(replica)
        del self._replicas[replica_id]
        service = self._services[replica.service]
        lost = replica.abandon(self._now) + on_the_way(self._events, replica) + service.take_stranded(replica)
        self._retire(replica, service)
        service.counts["rerouted"] += len(lost)
        for request in sorted(lost, key=lambda r: r.index):
            self._begin_again(request)
        service.sort_waiting()
        self._let_in(service)
        self._watch_patience(service)
        return len(lost)

    def submit(self, request: SimRequest) -> None:
        """Hand in a request that arrives now or later.

        Raises
        ------
        InvalidInput
            When it arrives in the past, or asks for no prompt or no output token.
        """
        live = LiveRequest(request, self._submitted)
        if live.arrival < self._now or live.prompt < 1 or live.output < 1:
            asked = f"arrives at {request.arrival_s} s with {live.prompt} prompt and {live.output} output tokens"
            remedy = f"give at least one token each and an arrival at or after {self.now_s} s"
            raise InvalidInput(f"request/{request.name}", "", asked, remedy)
        self._submitted += 1
        self._service(request.service).counts["submitted"] += 1
        if self._arrivals and live.arrival < self._arrivals[-1].arrival:
            insort(self._arrivals, live, lo=self._next, key=lambda r: r.arrival)
        else:
            self._arrivals.append(live)

    def set_itl_limit(self, service: str, limit_s: float | None) -> None:
        """Count gaps as late against another limit from now on; None counts none."""
        state = self._service(service)
        state.late_limit = to_ticks_or_never(limit_s)
        self.itl_limits_s.pop(service, None)
        if limit_s is not None:
            self.itl_limits_s[service] = limit_s
        for replica in self._replicas.values():
            if replica.service == service:
                replica.settle(self._now)
                replica.late_limit = state.late_limit

    def advance(self, until_s: float) -> None:
        """Process every event up to ``until_s`` (virtual seconds, may be ``inf``: until nothing is left to happen)."""
        if until_s == float("inf"):
            self._run(NEVER - 1)
            return
        until = to_ticks(until_s)
        self._run(until)
        self._now = max(self._now, until)

    # ------------------------------------------------------------------ the event loop

    def _run(self, until: int) -> None:
        events, arrivals = self._events, self._arrivals
        while True:
            due = events[0][0] if events else NEVER
            if self._next < len(arrivals) and arrivals[self._next].arrival <= due:
                request = arrivals[self._next]
                if request.arrival > until:
                    return
                self._next += 1
                self._now = request.arrival
                self._arrive(request)
                continue
            if due > until:
                self._forget_arrived()
                return
            _, _, thing = heappop(events)
            if thing.due != due:
                continue  # rescheduled since
            if isinstance(thing, Replica):
                self._now = due
                self._boundary(thing)
            elif isinstance(thing, LiveRequest):
                self._now = due
                self._deliver(thing)
            else:
                self._look_at_patience(thing, due)

    def _forget_arrived(self) -> None:
        if self._next > 4096:
            del self._arrivals[: self._next]
            self._next = 0

    def _schedule(self, replica: Replica) -> None:
        heappush(self._events, (replica.due, replica.index, replica))

    def _boundary(self, replica: Replica) -> None:
        now = self._now
        if not replica.is_ready:
            self._make_ready(replica)
            return
        was_full = len(replica.queue) >= self._queue_limit
        leaving = replica.finish_run(now) if replica.run_steps else ()
        replica.plan(now)
        if replica.due != NEVER:
            heappush(self._events, (replica.due, replica.index, replica))
        for request in leaving:
            if request.end < 0:
                self._hand_on(request)
            else:
                self._finish(request)
        if was_full and len(replica.queue) < self._queue_limit:
            self._let_in(self._services[replica.service])

    # ------------------------------------------------------------------ routing

    def _arrive(self, request: LiveRequest) -> None:
        service = self._services[request.asked.service]
        if service.waiting or not self._route(request, service):
            service.waiting.append(request)
            if len(service.waiting) == 1:
                self._watch_patience(service)

    def _let_in(self, service: ServiceState) -> None:
        """Route what waits at the gateway, as far as it goes now."""
        while service.waiting and self._route(service.waiting[0], service):
            service.waiting.popleft()

    def _watch_patience(self, service: ServiceState) -> None:
        """Have the clock look at whoever waits first when that one's patience ends; one event for the whole queue."""
        if self._patience == NEVER or not service.waiting:
            return
        due = max(self._now, service.waiting[0].arrival + self._patience)
        if due < service.due:
            service.due = due
            heappush(self._events, (due, GIVE_UPS_LAST + service.index, service))

    def _look_at_patience(self, service: ServiceState, due: int) -> None:
        """Give up the first in the queue if its time is over; time only moves on when it is."""
        service.due = NEVER
        if service.waiting and service.waiting[0].arrival + self._patience <= due:
            self._now = due
            self._time_out(service.waiting.popleft(), service, self._patience)
            self._let_in(service)
        self._watch_patience(service)

    def _route(self, request: LiveRequest, service: ServiceState) -> bool:
        """Send or reject a request; False when it must wait at the gateway."""
        way = service.choose(request, self._queue_limit)
        if way is None:
            if service.may_serve(request):
                return False
            self._reject(request, service, service.replicas())
            return True
        giver, receiver = way
        giver.loads[giver.slot] += giver.prompt_work(request)
        receiver.loads[receiver.slot] += receiver.tables.sequence_work
        request.prefill_replica, request.replica, request.routed = giver.index, receiver.index, self._now
        if giver.enqueue(request, self._now):
            self._schedule(giver)
        return True

    def _hand_on(self, request: LiveRequest) -> None:
        """Send a computed prompt to its decode replica, or to another one if that one takes no more."""
        service = self._services[request.asked.service]
        decode = service.groups[Role.DECODE]
        if request.replica < 0 or self._by_index[request.replica].loads is not decode.loads:
            self._unbind(request)
            receiver = service.receiver(request)
            if not decode.replicas:
                service.stranded.append(request)
                return
            if receiver is None:
                self._release(request)
                self._reject(request, service, decode.replicas)
                return
            receiver.loads[receiver.slot] += receiver.tables.sequence_work
            request.replica = receiver.index
        giver = self._by_index[request.prefill_replica]
        giver.link_free = max(self._now, giver.link_free) + giver.tables.transfer(request.prompt)
        request.due = giver.link_free
        heappush(self._events, (request.due, TRANSFERS_FIRST + request.index, request))

    def _unbind(self, request: LiveRequest) -> None:
        """Take a request off the work of the replica that it was to be decoded on."""
        if request.replica >= 0:
            receiver = self._by_index[request.replica]
            receiver.loads[receiver.slot] -= receiver.tables.sequence_work
            request.replica = -1

    def _deliver(self, request: LiveRequest) -> None:
        request.transferred, request.due = self._now, NEVER
        self._release(request)
        receiver = self._by_index[request.replica]
        if receiver.enqueue(request, self._now):
            self._schedule(receiver)

    def _release(self, request: LiveRequest) -> None:
        """Free the KV cache that a computed prompt holds on its prefill replica."""
        giver = self._by_index[request.prefill_replica]
        giver.kv -= request.kv
        request.kv = 0
        if giver.wake(self._now):
            self._schedule(giver)

    # ------------------------------------------------------------------ replicas come and go

    def _make_ready(self, replica: Replica) -> None:
        replica.is_ready, replica.due = True, NEVER
        if replica.is_draining:
            return
        service = self._services[replica.service]
        service.groups[replica.role].add(replica)
        service.regroup()
        stranded, service.stranded = service.stranded, deque()
        for request in stranded:  # before what waits at the gateway: their work is to be seen there
            self._hand_on(request)
        self._let_in(service)

    def _ungroup(self, replica: Replica) -> None:
        service = self._services[replica.service]
        service.groups[replica.role].remove(replica)
        service.regroup()

    def _begin_again(self, request: LiveRequest) -> None:
        if request.due != NEVER:  # it was on a link: both ends forget it
            request.due = NEVER
            self._release(request)
        self._unbind(request)
        request.restart()
        request.reroutes += 1
        self._arrive(request)

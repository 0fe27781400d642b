"""The books of a fleet: what it holds, has served, refused and drawn. Reading them changes nothing but the books."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from solvers.errors import InvalidInput
from solvers.simulate.replica import FirstTokens, Replica
from solvers.simulate.results import FinishedRequest, FirstToken, GapHistogram, LiveRequest, Rejected, ReplicaView
from solvers.simulate.routing import Event, ServiceState, on_the_way, too_large
from solvers.simulate.tables import TICKS_PER_S, to_ticks_or_never


class FleetBooks:
    """State of a fleet and everything that can be asked of it; ``Fleet`` moves it on."""

    def __init__(self, *, itl_limits_s: Mapping[str, float], record_first_tokens: bool) -> None:
        self.itl_limits_s = dict(itl_limits_s)
        self._now = 0
        self._events: list[Event] = []
        self._replicas: dict[str, Replica] = {}
        self._by_index: list[Replica] = []
        self._names: dict[int, str] = {}
        self._services: dict[str, ServiceState] = {}
        self._finished: list[LiveRequest] = []
        self._rejected: list[Rejected] = []
        self._timed_out: list[Rejected] = []
        self._first_tokens: FirstTokens = deque(maxlen=None if record_first_tokens else 0)
        self._gone_energy = 0
        self._gone_extrapolated = [0, 0]

    @property
    def now_s(self) -> float:
        """Virtual seconds since the start."""
        return self._now / TICKS_PER_S

    def settle(self) -> None:
        """Bring every replica's counts up to now; without it they stand at the last change of its batch."""
        for replica in self._replicas.values():
            replica.settle(self._now)

    def take_finished(self) -> list[FinishedRequest]:
        """Requests that finished since the last call, in order of their end."""
        taken, self._finished = self._finished, []
        return [request.finished(self._names) for request in taken]

    def take_rejected(self) -> list[Rejected]:
        """Requests rejected since the last call."""
        taken, self._rejected = self._rejected, []
        return taken

    def take_timed_out(self) -> list[Rejected]:
        """Requests given up at the gateway since the last call."""
        taken, self._timed_out = self._timed_out, []
        return taken

    def take_first_tokens(self) -> list[FirstToken]:
        """First tokens since the last call; empty unless the fleet records them."""
        taken = [FirstToken.of(row, self._names) for row in self._first_tokens]
        self._first_tokens.clear()
        return taken

    def replica_ids(self) -> tuple[str, ...]:
        """Replicas that exist now, in the order in which they came."""
        return tuple(self._replicas)

    def replica(self, replica_id: str) -> ReplicaView:
        """One replica as it stands."""
        return self._find(replica_id).view(self._now)

    def outstanding(self, replica_id: str) -> int:
        """Requests that a replica holds or waits for, transfers under way to or from it included."""
        replica = self._find(replica_id)
        return len(replica.queue) + len(replica.active) + len(on_the_way(self._events, replica))

    def queued(self, service: str) -> int:
        """Requests of a service that wait at the gateway because no replica could take them."""
        return len(self._service(service).waiting)

    def counts(self, service: str) -> Mapping[str, int]:
        """Totals of a service: submitted, finished, rejected, timed_out, rerouted, and tokens of finished ones."""
        return dict(self._service(service).counts)

    def gaps(self, service: str) -> GapHistogram:
        """Token gaps of a service so far, a copy."""
        total = GapHistogram()
        total.merge(self._service(service).gone_gaps)
        for replica in self._replicas.values():
            if replica.service == service:
                total.merge(replica.gaps)
        return total

    def energy_joules(self) -> float:
        """Energy drawn so far, replicas that are gone included."""
        gone = self._gone_energy / (1000 * TICKS_PER_S)
        return gone + sum(r.view(self._now).energy_joules for r in self._replicas.values())

    def extrapolated(self) -> tuple[int, int]:
        """(decode steps, prompts) that were read beyond the tables."""
        live = self._replicas.values()
        return (
            self._gone_extrapolated[0] + sum(r.extrapolated_steps for r in live),
            self._gone_extrapolated[1] + sum(r.extrapolated_prompts for r in live),
        )

    def services(self) -> tuple[str, ...]:
        """Services that a replica or a request has named, sorted."""
        return tuple(sorted(self._services))

    # ------------------------------------------------------------------ entries

    def _service(self, name: str) -> ServiceState:
        if name not in self._services:
            late_limit = to_ticks_or_never(self.itl_limits_s.get(name))
            self._services[name] = ServiceState(len(self._services), late_limit)
        return self._services[name]

    def _find(self, replica_id: str) -> Replica:
        if replica_id not in self._replicas:
            raise InvalidInput(f"replica/{replica_id}", "", "does not exist", "add it first")
        return self._replicas[replica_id]

    def _finish(self, request: LiveRequest) -> None:
        self._finished.append(request)
        counts = self._services[request.asked.service].counts
        counts["finished"] += 1
        counts["prompt_tokens"] += request.prompt
        counts["output_tokens"] += request.output

    def _reject(self, request: LiveRequest, service: ServiceState, among: Iterable[Replica]) -> None:
        service.counts["rejected"] += 1
        self._rejected.append(request.refused(self._now, too_large(request, among)))

    def _time_out(self, request: LiveRequest, service: ServiceState, patience: int) -> None:
        service.counts["timed_out"] += 1
        reason = f"no replica could take it in the {patience / TICKS_PER_S:g} s that the gateway lets a request wait"
        self._timed_out.append(request.refused(self._now, reason))

    def _retire(self, replica: Replica, service: ServiceState) -> None:
        """Keep the totals of a replica that goes."""
        service.gone_gaps.merge(replica.gaps)
        self._gone_energy += replica.energy
        self._gone_extrapolated[0] += replica.extrapolated_steps
        self._gone_extrapolated[1] += replica.extrapolated_prompts

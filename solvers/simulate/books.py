"""The books of a fleet: what it holds, has served, refused and drawn. Reading them changes nothing but the books."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from solvers.engine import EngineProfile, Role
from solvers.errors import InvalidInput
from solvers.simulate.gaps import RUN, count_gaps
from solvers.simulate.kernel import loop
from solvers.simulate.kernel.records import FINISHED, LEAST_WORK, METER_TICKS, NONE, REJECTED, TIMED_OUT, Replica
from solvers.simulate.requests import RequestQueue
from solvers.simulate.results import FinishedRequest, FirstToken, GapHistogram, Rejected, ReplicaView
from solvers.simulate.served import SERVED, finished_requests, refused_requests
from solvers.simulate.tables import TICKS_PER_S, EngineTables, to_ticks_or_never

JOULES = 1e9  # nanojoules: what milliwatts times microseconds are
LOG_ROWS = 1 << 16
METERED = (
    "energy", "busy", "prompt_tokens", "cached_tokens", "output_tokens", "preemptions", "service", "role", "late_gaps",
)  # fmt: skip
NEXT_ON = ("next", "out_next", "into_next")  # by leg
FIRSTS = ("service", "replica", "waited", "in_engine")


class FleetBooks(RequestQueue):
    """State of a fleet and everything that can be asked of it; ``Fleet`` moves it on."""

    def __init__(
        self, *, itl_limits_s: Mapping[str, float], policies: Mapping[str, int], record_runs: bool, compiled: bool
    ) -> None:
        super().__init__(compiled=compiled)
        self.itl_limits_s, self._policies = dict(itl_limits_s), dict(policies)
        self._services: dict[str, int] = {}
        self._asked: list[int] = []  # by service
        self._members: list[int] = []  # replicas that are not gone, by group
        self._alive: dict[str, int] = {}
        self._ids: list[str] = []
        self._served_by: list[str] = []
        self._roles: list[Role] = []
        self._profiles: list[EngineProfile] = []
        self._capacity: list[int] = []
        self._gaps: list[GapHistogram] = []
        self._nodes = self._margin = 0
        self._record_runs = record_runs
        self._ended: dict[int, list[NDArray[np.int64]]] = {FINISHED: [], REJECTED: [], TIMED_OUT: []}
        self._reasons: dict[int, str] = {}
        self._firsts: list[NDArray[np.int64]] = []
        self._runs: list[NDArray[np.void]] = []
        self._uncounted: list[NDArray[np.void]] = []
        self._make_log_room(0)

    @property
    def now_s(self) -> float:
        """Virtual seconds since the start."""
        return int(self._memory.state.now) / TICKS_PER_S

    @property
    def is_compiled(self) -> bool:
        """True when the kernel runs compiled."""
        return self._memory.is_compiled

    @property
    def events(self) -> int:
        """Events processed so far."""
        return int(self._memory.state.events)

    @property
    def requests_in_memory(self) -> int:
        """Requests that the kernel keeps: those under way, and those that ended since the last cleaning."""
        return self._slots

    def settle(self) -> None:
        """Bring every replica's counts up to now; without it they stand at the last change of its batch."""
        self._memory.run(loop.SETTLE)
        self._drain()

    def take_finished(self) -> list[FinishedRequest]:
        """Requests that finished since the last call, in order of their end."""
        rows = self.take_rows(FINISHED)
        names = self._take_names(rows)
        return finished_requests(rows, names, list(self._services), self._ids)

    def take_rejected(self) -> list[Rejected]:
        """Requests rejected since the last call."""
        rows = self.take_rows(REJECTED)
        reasons = [self._reasons.pop(serial) for serial in rows[:, SERVED.index("serial")].tolist()]
        return refused_requests(rows, self._take_names(rows), list(self._services), reasons)

    def take_timed_out(self) -> list[Rejected]:
        """Requests given up at the gateway since the last call."""
        rows = self.take_rows(TIMED_OUT)
        patience_s = int(self._memory.state.patience) / TICKS_PER_S
        reason = f"no replica could take it in the {patience_s:g} s that the gateway lets a request wait"
        return refused_requests(rows, self._take_names(rows), list(self._services), [reason] * len(rows))

    def take_rows(self, status: int) -> NDArray[np.int64]:
        """Requests that ended so since the last call, in order of their end: (rows, ``SERVED``) in ticks."""
        taken, self._ended[status] = self._ended[status], []
        return np.concatenate([np.zeros((0, len(SERVED)), np.int64), *taken])

    def take_runs(self) -> NDArray[np.void]:
        """Log of runs since the last call, as ``gaps.RUN``; empty unless the fleet records them."""
        taken, self._runs = self._runs, []
        return np.concatenate([np.zeros(0, RUN), *taken])

    def take_first_tokens(self) -> list[FirstToken]:
        """First tokens since the last call; empty unless the fleet records them."""
        self.settle()
        taken, self._firsts = self._firsts, []
        names = list(self._services)
        return [
            FirstToken.of((names[s], r, waited, in_engine), self._ids)
            for rows in taken
            for s, r, waited, in_engine in rows.tolist()
        ]

    def replica_ids(self) -> tuple[str, ...]:
        """Replicas that exist now, in the order in which they came."""
        return tuple(self._alive)

    def replica(self, replica_id: str) -> ReplicaView:
        """One replica as it stands."""
        r = self._find(replica_id)
        rep = self._memory["replicas"][r]
        holding = self._holding(rep)
        return ReplicaView(
            replica_id=replica_id,
            service=self._served_by[r],
            role=self._roles[r],
            is_ready=bool(rep.is_ready),
            is_draining=bool(rep.is_draining),
            running=int(rep.active) + holding,
            waiting=int(rep.queued) - holding,
            kv_usage_ratio=int(rep.kv) / self._capacity[r],
            draw_watts=int(rep.milliwatts) / 1000,
            energy_joules=self._energy(rep) / JOULES,
            busy_s=int(rep.busy) / TICKS_PER_S,
            prompt_tokens=int(rep.prompt_tokens),
            cached_tokens=int(rep.cached_tokens),
            output_tokens=int(rep.output_tokens),
            preemptions=int(rep.preemptions),
            gaps=self._gaps_of(r),
        )

    def _holding(self, rep: Replica) -> int:
        """Requests in the queue of a replica that have KV room already; they stand first."""
        requests, q, holding = self._memory["requests"], int(rep.head), 0
        while q != NONE and holding < rep.queued and requests[q].kv > 0:
            q, holding = int(requests[q].next), holding + 1
        return holding

    def _energy(self, rep: Replica) -> int:
        """Nanojoules drawn until now."""
        since = int(self._memory.state.now) // METER_TICKS - int(rep.metered) // METER_TICKS
        return int(rep.energy) + int(rep.milliwatts) * since

    def _gaps_of(self, r: int) -> GapHistogram:
        self._count_gaps()
        self._gaps[r].late = int(self._memory["replicas"][r].late_gaps)
        return self._gaps[r]

    def outstanding(self, replica_id: str) -> int:
        """Requests that a replica holds or waits for, transfers under way to or from it included."""
        r = self._find(replica_id)
        rep = self._memory["replicas"][r]
        return int(rep.queued) + int(rep.active) + self._on_the_way(r)

    def _on_the_way(self, r: int) -> int:
        found: set[int] = set()
        for link in self._memory["links"]:
            q = int(link.head)
            while q != NONE:
                request = self._memory["requests"][q]
                if r in (request.prefill_replica, request.replica):
                    found.add(q)
                q = int(getattr(request, NEXT_ON[link.leg]))
        return len(found)

    def queued(self, service: str) -> int:
        """Requests of a service that wait at the gateway because no replica could take them."""
        return int(self._memory["services"][self._service(service)].queued)

    def counts(self, service: str) -> Mapping[str, int]:
        """Totals of a service: submitted, finished, rejected, timed_out, rerouted, and tokens of finished ones."""
        s = self._service(service)
        state = self._memory["services"][s]
        names = ("finished", "rejected", "timed_out", "rerouted", "prompt_tokens", "output_tokens")
        return {"submitted": self._asked[s], **{name: int(getattr(state, name)) for name in names}}

    def gaps(self, service: str) -> GapHistogram:
        """Token gaps of a service so far, a copy."""
        total = GapHistogram()
        for r, name in enumerate(self._served_by):
            if name == service:
                total.merge(self._gaps_of(r))
        return total

    def energy_joules(self) -> float:
        """Energy drawn so far, replicas that are gone included."""
        replicas = self._memory["replicas"]
        return sum(self._energy(replicas[r]) for r in range(len(self._ids))) / JOULES

    def extrapolated(self) -> tuple[int, int]:
        """(decode steps, prompts) that were read beyond the tables."""
        replicas = self._memory["replicas"]
        some = [replicas[r] for r in range(len(self._ids))]
        return sum(int(rep.far_steps) for rep in some), sum(int(rep.far_prompts) for rep in some)

    def services(self) -> tuple[str, ...]:
        """Services that a replica or a request has named, sorted."""
        return tuple(sorted(self._services))

    def services_by_index(self) -> tuple[str, ...]:
        """Services in the order in which they were first named, as rows number them."""
        return tuple(self._services)

    def all_replica_ids(self) -> tuple[str, ...]:
        """Every replica that ever was, as rows number them."""
        return tuple(self._ids)

    def meters(self) -> NDArray[np.int64]:
        """Totals of all replicas so far, those gone included: (replica, ``METERED``); settle first."""
        rows = self._memory.rows("replicas", METERED, slice(0, len(self._ids)))
        rows[:, 0] = [self._energy(self._memory["replicas"][r]) for r in range(len(self._ids))]
        return rows

    # ------------------------------------------------------------------ entries

    def _service(self, name: str) -> int:
        """Index of a service; it comes into being when it is first named."""
        if name in self._services:
            return self._services[name]
        s = self._services[name] = len(self._services)
        self._asked.append(0)
        policy = self._policies.get(name, LEAST_WORK)
        late_limit = to_ticks_or_never(self.itl_limits_s.get(name))
        self._memory.add("services", s, policy=policy, late_limit=late_limit, home=len(self._members))
        self._memory.entity("gateway", s)
        self._add_groups(s)
        return s

    def _add_groups(self, s: int) -> int:
        """Make room for replicas of each role of a service in one more domain; return the first group."""
        first = len(self._members)
        for role in range(3):
            self._memory.add("groups", first + role, service=s, role=role)
            self._members.append(0)
        return first

    def _find(self, replica_id: str) -> int:
        if replica_id not in self._alive:
            raise InvalidInput(f"replica/{replica_id}", "", "does not exist", "add it first")
        return self._alive[replica_id]

    def _know(self, replica_id: str, service: str, role: Role, profile: EngineProfile, tables: EngineTables) -> None:
        """Enter a replica into the books."""
        self._alive[replica_id] = len(self._ids)
        self._ids.append(replica_id)
        self._served_by.append(service)
        self._roles.append(role)
        self._profiles.append(profile)
        self._capacity.append(tables.kv_capacity)
        self._gaps.append(GapHistogram())

    def _forget(self, replica_id: str) -> None:
        r = self._alive.pop(replica_id)
        self._members[int(self._memory["replicas"][r].group)] -= 1

    def _drain(self) -> None:
        """Take over what the kernel logged."""
        state, memory = self._memory.state, self._memory
        if state.ended:
            self._drain_ended(np.array(memory["ended"][: state.ended], np.int64))
            state.ended = 0
        if state.runs:
            fields = memory.rows("runs", RUN.names or (), slice(0, int(state.runs)))
            rows = np.empty(len(fields), RUN)
            for column, name in enumerate(RUN.names or ()):
                rows[name] = fields[:, column]
            self._uncounted.append(rows)
            state.runs = 0
            if self._record_runs:
                self._runs.append(rows)
            elif sum(map(len, self._uncounted)) > LOG_ROWS:
                self._count_gaps()
        if state.firsts:
            self._firsts.append(memory.rows("firsts", FIRSTS, slice(0, int(state.firsts))))
            state.firsts = 0

    def _drain_ended(self, which: NDArray[np.int64]) -> None:
        rows = self._memory.rows("requests", SERVED, which)
        self._dropped += len(rows)
        status = rows[:, SERVED.index("status")]
        for kind, kept in self._ended.items():
            if len(some := rows if kind == FINISHED == status.min() == status.max() else rows[status == kind]):
                kept.append(some)
        for serial, s, prompt, output in rows[status == REJECTED][:, :4].tolist():
            self._reasons[serial] = self._too_large(s, prompt, output)

    def _too_large(self, s: int, prompt: int, output: int) -> str:
        """Say why a request is rejected."""
        replicas, members, groups = self._memory["replicas"], self._memory["members"], self._memory["groups"]
        mine_of = [groups[g] for g in range(len(self._members)) if groups[g].service == s]
        among = [int(members[g.first + i]) for g in mine_of for i in range(int(g.count))]
        mine = [r for r in self._alive.values() if replicas[r].service == s]
        room = max((self._capacity[r] for r in among or mine), default=0)
        return (
            f"{prompt:,} prompt and {output:,} output tokens do not fit the KV room of any chain of "
            f"replicas (the largest holds {room:,} tokens)"
        )

    def _count_gaps(self) -> None:
        """Put the runs logged since the last time into the histograms."""
        taken, self._uncounted = self._uncounted, []
        for rows in taken:
            count_gaps(rows, self._gaps)

    def _make_log_room(self, max_batch: int) -> None:
        """Keep room in the logs for what one event may write, and for settling every replica."""
        self._margin = max(self._margin, 2 * max_batch + 16)
        count = len(self._ids) + self._margin + (LOG_ROWS if self._memory.is_compiled else LOG_ROWS // 32)
        for name in ("runs", "firsts"):
            self._memory.ensure(name, count)
        self._memory.state.runs_room = len(self._memory["runs"]) - self._margin

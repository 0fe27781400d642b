"""Discrete-event fleet: requests arrive, queue, are prefilled, move their KV cache, decode, and draw power.

The clock counts whole picoseconds, so equal replicas tie exactly and a run of decode steps is an exact arithmetic
progression: the fleet jumps from one change of a batch to the next (``kernel``). At equal times arrivals come first,
then clients that ask again, KV transfers, engine boundaries, and requests that give up waiting last; lower index first.

Seconds at the interface, whole ticks inside; the caller decides when: ``advance`` moves the clock, and replicas come,
drain and fail and caps change between calls. Cutting an ``advance`` in pieces changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import numpy as np

from solvers.engine import EngineProfile, Role
from solvers.errors import InvalidInput
from solvers.simulate.arrivals import Clients, Workload, check_workload
from solvers.simulate.kernel import loop
from solvers.simulate.kernel.clock import settle_leaf
from solvers.simulate.kernel.records import LEAST_LOADED, LEAST_WORK, NONE, PREFIX_AWARE, WEIGHTED
from solvers.simulate.prefixes import build_tree
from solvers.simulate.results import SimRequest
from solvers.simulate.tables import NEVER, TICKS_PER_S, EngineTables, compile_profile, to_ticks, to_ticks_or_never
from solvers.simulate.ways import ROLES, STRIDE, FleetWays


class Routing(StrEnum):
    """How a service shares its requests out; least work is in seconds of a replica's own time."""

    LEAST_WORK = "least-work"
    LEAST_LOADED = "least-loaded"
    WEIGHTED = "weighted"
    PREFIX_AWARE = "prefix-aware"


POLICIES = {
    Routing.LEAST_WORK: LEAST_WORK,
    Routing.LEAST_LOADED: LEAST_LOADED,
    Routing.WEIGHTED: WEIGHTED,
    Routing.PREFIX_AWARE: PREFIX_AWARE,
}


class Fleet(FleetWays):
    """A fleet of simulated replicas serving requests of several services.

    Parameters
    ----------
    itl_limits_s : mapping of service to float s, optional
        Limit against which late token gaps are counted exactly, by gap and by request.
    record_first_tokens : bool
        Keep a row for each first token until ``take_first_tokens`` is called.
    record_runs : bool
        Keep the log of runs until ``take_runs`` is called: exact percentiles of token gaps come from it.
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
    routing : mapping of service to Routing, optional
        Least work where it says nothing.
    prefix_caching : bool
        Mixed and prefill replicas keep the blocks that a workload brings.
    compiled : bool
        Run the kernel compiled, which needs numba; results are the same to the byte.

    Raises
    ------
    InvalidInput
        When the patience is negative or no number, or numba is asked for and not there.
    """

    def __init__(
        self,
        *,
        itl_limits_s: Mapping[str, float] | None = None,
        record_first_tokens: bool = False,
        record_runs: bool = False,
        replica_queue_limit: int | None = None,
        gateway_patience_s: float | None = None,
        routing: Mapping[str, Routing] | None = None,
        prefix_caching: bool = True,
        compiled: bool = False,
    ) -> None:
        if gateway_patience_s is not None and not gateway_patience_s >= 0:
            raise InvalidInput("gateway", "gateway_patience_s", f"is {gateway_patience_s}", "give 0 or more seconds")
        policies = {service: POLICIES[how] for service, how in (routing or {}).items()}
        super().__init__(itl_limits_s=itl_limits_s or {}, policies=policies, record_runs=record_runs, compiled=compiled)
        self._prefix_caching = prefix_caching
        self._tables: dict[int, tuple[int, EngineTables]] = {}
        self._used |= {"knots": 0, "numbers": 0, "rows": 0, "cached": 0}
        self._client_count = self._source_count = 0
        state = self._memory.state
        state.patience = to_ticks_or_never(gateway_patience_s)
        state.queue_limit = NEVER if replica_queue_limit is None else replica_queue_limit
        state.record_firsts = int(record_first_tokens)

    # ------------------------------------------------------------------ replicas

    def add_replica(
        self,
        replica_id: str,
        service: str,
        role: Role,
        profile: EngineProfile,
        ready_at_s: float | None = None,
        *,
        link: str | None = None,
        weight: float = 1.0,
        cap_watts: float | None = None,
        domain: str = "",
    ) -> None:
        """Add a replica; it draws idle power at once and serves from ``ready_at_s`` (default: now).

        Parameters
        ----------
        link : str, optional
            Declared link over which a prefill replica moves KV caches; without it one of its own, with the bandwidth
            of the profile, one transfer at a time.
        weight : float
            Share of the requests under weighted routing.
        cap_watts : float, optional
            Power cap of each of its GPUs.
        domain : str
            What ways lead from and to (see ``add_way``): prefill and decode replicas of a named one are reached by
            ways only. Of no meaning for mixed replicas.

        Raises
        ------
        InvalidInput
            When the name is taken, the link is not declared, the weight is not positive or the profile is no table.
        OutOfRange
            When the profile does not know so low a cap.
        """
        self._check_new(replica_id, link, weight)
        tables = compile_profile(profile, cap_watts)
        r, s, now = len(self._ids), self._service(service), int(self._memory.state.now)
        on_link, transfer = self._moves_over(link, profile) if role is Role.PREFILL else (NONE, 0)
        entity, group = self._memory.entity("replica", r), self._group(s, role, domain)
        self._memory.add(
            "replicas", r, service=s, role=ROLES.index(role), group=group, table=self._table(tables), link=on_link,
            transfer=transfer, row=self._used["rows"], stride=max(1, round(STRIDE / weight)), run_start=now,
            milliwatts=tables.idle_milliwatts, metered=now, late_limit=int(self._memory["services"][s].late_limit),
        )  # fmt: skip
        self._know(replica_id, service, role, profile, tables)
        self._make_room(r, group, tables.max_batch)
        self._serve_from(r, entity, now if ready_at_s is None else max(now, to_ticks(ready_at_s)))

    def _serve_from(self, r: int, entity: int, ready_at: int) -> None:
        if ready_at == self._memory.state.now:
            self._do(loop.READY, r)
        else:
            self._schedule(entity, ready_at)

    def _make_room(self, r: int, group: int, max_batch: int) -> None:
        """Widen what the kernel keeps for one replica more: rows of its batch, its cache, its group, the log."""
        self._used["rows"] += max_batch + 1
        for name in ("leave", "member"):
            self._memory.ensure(name, self._used["rows"])
        self._give_cache(r)
        self._widen_group(group)
        self._memory.state.replicas = r + 1
        self._make_log_room(max_batch)

    def _check_new(self, replica_id: str, link: str | None, weight: float) -> None:
        if replica_id in self._alive:
            raise InvalidInput(f"replica/{replica_id}", "", "exists already", "remove it first or use another name")
        if not weight > 0 or (link is not None and link not in self._links):
            problem = f"names no link: {link!r}" if weight > 0 else f"has weight {weight}"
            raise InvalidInput(f"replica/{replica_id}", "", problem, "declare its link first; give a weight above 0")

    def _moves_over(self, link: str | None, profile: EngineProfile) -> tuple[int, int]:
        """Link over which a prefill replica moves KV caches, a new one where none is named, and ticks for a token."""
        on_link = self._new_link(is_shared=0) if link is None else self._links[link][0]
        speed = profile.transfer_bytes_per_s if link is None else self._links[link][1]
        return on_link, round(profile.kv_bytes_per_token * TICKS_PER_S / speed)

    def set_cap(self, replica_id: str, cap_watts: float | None) -> None:
        """Change the power cap of a replica's GPUs now; None lifts it.

        The draw changes at once; what is left of the step under way is stretched or shortened in proportion.

        Raises
        ------
        OutOfRange
            When the profile does not know so low a cap.
        """
        r = self._find(replica_id)
        self._do(loop.SET_TABLE, r, self._table(compile_profile(self._profiles[r], cap_watts)))

    def drain_replica(self, replica_id: str) -> None:
        """Send nothing new to a replica; what it holds is served to its end."""
        self._do(loop.DRAIN, self._find(replica_id))

    def remove_replica(self, replica_id: str) -> int:
        """Take a replica away at once, as when its node is lost.

        Returns
        -------
        int
            Requests that it held; each begins again on another replica, with its old arrival time.
        """
        r = self._find(replica_id)
        self._do(loop.LOSE, r)
        lost = int(self._memory.state.lost)
        self._memory["lost"][:lost] = sorted(self._memory["lost"][:lost])
        self._forget(replica_id)
        self._do(loop.BEGIN_AGAIN, r, lost)
        return lost

    # ------------------------------------------------------------------ requests

    def submit(self, request: SimRequest) -> None:
        """Hand in a request that arrives now or later.

        Raises
        ------
        InvalidInput
            When it arrives in the past, or asks for no prompt or no output token.
        """
        arrival = to_ticks(request.arrival_s)
        if arrival < self._memory.state.now or request.prompt_tokens < 1 or request.output_tokens < 1:
            size = f"{request.prompt_tokens} prompt and {request.output_tokens} output tokens"
            remedy = f"give at least one token each and an arrival at or after {self.now_s} s"
            problem = f"arrives at {request.arrival_s} s with {size}"
            raise InvalidInput(f"request/{request.name}", "", problem, remedy)
        s = self._service(request.service)
        self._names[self._submitted] = request.name
        self._asked[s] += 1
        self._new.append((arrival, self._submitted, s, request.prompt_tokens, request.output_tokens, NONE))
        self._submitted += 1

    def submit_workload(self, workload: Workload) -> None:
        """Hand in requests as arrays; one workload of a fleet may bring blocks for the prefix cache.

        Raises
        ------
        InvalidInput
            When the arrays do not fit together, one arrives in the past, or an earlier workload brought blocks too.
        """
        rows = self._rows_of(workload)
        rows[:, 0] = np.rint(workload.arrival_s * TICKS_PER_S)
        if len(rows) and rows[:, 0].min() < self._memory.state.now:
            first = float(workload.arrival_s.min())
            raise InvalidInput("workload", "arrival_s", f"begins at {first} s", f"begin at or after {self.now_s} s")
        self._more.append(rows)

    def add_clients(self, clients: Clients) -> None:
        """Let clients ask the rows of a workload in turn, each as soon as its last one was answered.

        Raises
        ------
        InvalidInput
            When there are no clients, or the arrays do not fit together.
        """
        if clients.count < 1 or not clients.think_s >= 0:
            problem = f"are {clients.count} that think {clients.think_s} s"
            raise InvalidInput("clients", "", problem, "give one client or more, and 0 or more seconds")
        rows = self._rows_of(clients.workload)
        rows[:, 0] = NEVER
        first = self._append(rows)
        source = self._source_count
        self._source_count += 1
        self._memory.add("sources", source, next=first, end=first + len(rows), think=to_ticks(clients.think_s))
        for _ in range(clients.count):
            entity = self._memory.entity("client", self._client_count)
            self._memory.add("clients", self._client_count, source=source)
            self._client_count += 1
            self._schedule(entity, max(int(self._memory.state.now), to_ticks(clients.start_s)))

    def set_itl_limit(self, service: str, limit_s: float | None) -> None:
        """Count gaps as late against another limit from now on; None counts none."""
        self.settle()
        s = self._service(service)
        self.itl_limits_s.pop(service, None)
        if limit_s is not None:
            self.itl_limits_s[service] = limit_s
        limit = to_ticks_or_never(limit_s)
        self._memory["services"][s].late_limit = limit
        for r in self._alive.values():
            if self._served_by[r] == service:
                self._memory["replicas"][r].late_limit = limit

    def advance(self, until_s: float) -> None:
        """Process every event up to ``until_s`` (virtual seconds, may be ``inf``: until nothing is left to happen)."""
        until = min(NEVER - 1, to_ticks_or_never(until_s))
        self._sort_pending()
        while True:
            horizon = self._feed(until)
            while self._memory.run(loop.ADVANCE, 0, horizon) == loop.LOG_FULL:
                self._drain()
            self._drain()
            self._compact()
            if horizon == until:
                break
        if until_s != float("inf"):
            self._memory.state.now = max(int(self._memory.state.now), until)

    # ------------------------------------------------------------------ memory

    def _do(self, what: int, which: int, value: int = 0) -> None:
        """Let the kernel do something between two advances, and take over what it logged."""
        self._memory.run(what, which, value)
        self._drain()

    def _schedule(self, entity: int, at: int) -> None:
        memory = self._memory
        settle_leaf(memory["due"], memory["soonest"], 0, int(memory.state.entities), entity, at)

    def _rows_of(self, workload: Workload) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Rows for the kernel: arrival (to be set), serial, service, prompt, output, path."""
        check_workload(workload)
        indices = np.array([self._service(name) for name in workload.services] or [0], np.int64)
        rows = np.empty((len(workload), 6), np.int64)
        rows[:, 1] = np.arange(self._submitted, self._submitted + len(workload))
        rows[:, 2] = indices[workload.service]
        rows[:, 3], rows[:, 4], rows[:, 5] = workload.prompt_tokens, workload.output_tokens, self._paths(workload)
        self._names.update(zip(range(self._submitted, self._submitted + len(workload)), workload.names, strict=False))
        self._submitted += len(workload)
        for s, count in enumerate(np.bincount(rows[:, 2], minlength=len(self._asked)).tolist()):
            self._asked[s] += count
        return rows

    def _paths(self, workload: Workload) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        if not len(workload.block_starts) or not self._prefix_caching:
            return np.full(len(workload), NONE, np.int64)
        if self._nodes:
            remedy = "hand in all requests that share blocks at once"
            raise InvalidInput("workload", "block_ids", "were handed in before", remedy)
        tree = build_tree(workload)
        self._nodes = len(tree.parent)
        self._memory.state.block_tokens = workload.block_tokens
        for name in ("parent", "start", "length"):
            self._memory.replace(name, getattr(tree, name) if self._nodes else np.zeros(1, np.int64))
        for r in self._alive.values():
            self._give_cache(r)
        return tree.path

    def _give_cache(self, r: int) -> None:
        """Make room for the blocks on a replica that computes prompts."""
        replica = self._memory["replicas"][r]
        if not self._nodes or ROLES[replica.role] is Role.DECODE:
            return
        replica.cache = self._used["cached"]
        self._used["cached"] += self._nodes
        for name in ("cached", "users", "older", "newer"):
            self._memory.ensure(name, self._used["cached"])

    def _table(self, tables: EngineTables) -> int:
        """Index of the flattened curves of a profile; put them there when they are new."""
        if id(tables) in self._tables:
            return self._tables[id(tables)][0]
        memory, at = self._memory, self._used["knots"]
        flat = tables.flat()
        for name in ("knots", "values", "slopes"):
            self._used["knots"] = memory.extend(name, at, flat[name])
        index, watts = len(self._tables), self._used["numbers"]
        prefixes = memory.extend("numbers", watts, tables.decode_milliwatts())
        self._used["numbers"] = memory.extend("numbers", prefixes, tables.prefixes)
        count = len(tables.prefill_line.knots)
        memory.add(
            "tables", index, line=at, line_knots=count, last_prompt=tables.prefill_line.knots[-1],
            prefixes=len(tables.prefixes), first_prefix=prefixes, behind=at + count,
            rows=at + count * (1 + len(tables.prefixes)), row_knots=len(tables.row(1).knots), watts=watts,
            idle_milliwatts=tables.idle_milliwatts, prefill_milliwatts=tables.prefill_milliwatts,
            max_batch=tables.max_batch, kv_capacity=tables.kv_capacity, chunk_tokens=tables.chunk_tokens,
            sequence_work=tables.sequence_work, prefill_speed=tables.prefill_speed, decode_speed=tables.decode_speed,
        )  # fmt: skip
        self._tables[id(tables)] = (index, tables)  # kept alive, so that no other one gets its id
        return index

"""The replicas of one run: where they are, what they cost, and what of the inventory is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

from solvers.engine import EngineProfile, ProfileKey, Role
from solvers.engine.curves import prefill_speed_ratio
from solvers.errors import InvalidInput, OutOfRange
from solvers.evaluate.incidents import Happened, Incident, What
from solvers.evaluate.meters import Meter
from solvers.evaluate.ways import Ways
from solvers.fleet import ANYWHERE, Node, PoolKey, Replica, ReplicaState, Snapshot
from solvers.plan import Plan
from solvers.problem import Problem
from solvers.simulate import Fleet
from solvers.spans import islands, node_sizes, nodes_taken

Place = tuple[PoolKey, str]
Counts = Mapping[Place, int]


@dataclass(slots=True, kw_only=True)
class Live:
    """One replica that holds GPUs: ``each`` of every node that it stands on, none where it runs as it is written."""

    name: str
    place: Place
    nodes: tuple[str, ...]
    gpus: int
    each: int
    added_s: float
    ready_s: float
    is_leaving: bool = False

    @property
    def node(self) -> str:
        """The first of its nodes, empty for none."""
        return self.nodes[0] if self.nodes else ""


def known_pools(problem: Problem) -> dict[str, PoolKey]:
    """Pools that could be started, by how they are written: every role of a service on every profile of its model."""
    pools = (
        PoolKey(service=service.name, role=role, gpu_class=key.gpu_class, config=key.config)
        for service in problem.services
        for role in Role
        for key in problem.profiles
        if key.model == service.model
    )
    return {str(pool): pool for pool in pools}


class RunningFleet:
    """A simulated fleet with the nodes under it. Counts are asked for; what has no node waits for one.

    ``plan`` says how much of the requests goes over which of the ways that pair replicas (see ``ways``).

    Raises
    ------
    InvalidInput
        When something is asked for that the problem does not know.
    """

    def __init__(self, problem: Problem, fleet: Fleet, plan: Plan | None = None) -> None:
        self.problem, self.fleet, self.ways = problem, fleet, Ways(problem, plan, fleet)
        self.asked: dict[Place, int] = {}
        self.live: dict[str, Live] = {}
        self._free = {node.name: node.gpus_usable for node in problem.nodes}
        self._sizes = node_sizes(problem.nodes)
        self._gone: dict[Place, Meter] = defaultdict(Meter)
        self._models = {service.name: service.model for service in problem.services}
        self._caps: dict[PoolKey, float] = {}
        self._limits: dict[tuple[str, ...], Incident] = {}
        self._broken: list[tuple[float, str, int]] = []
        self._made, self._paired_s = 0, 0.0

    def profile(self, pool: PoolKey) -> EngineProfile:
        """Profile of one replica of a pool."""
        if pool.service not in self._models:
            raise InvalidInput(
                "plan", "", f"places {pool.service}, which the folder lacks", "replay it with its folder"
            )
        key = ProfileKey(model=self._models[pool.service], gpu_class=pool.gpu_class, config=pool.config)
        if key not in self.problem.profiles:
            raise InvalidInput("plan", "", f"has pool {pool}, for which the folder has no EngineProfile", "add one")
        return self.problem.profiles[key]

    # ------------------------------------------------------------------ towards what is asked

    def begin_with(self, counts: Counts) -> None:
        """Start with replicas that are Ready; they need no node, so that a plan runs as it is written."""
        for place, count in sorted(counts.items()):
            self.asked[place] = count
            for _ in range(count):
                self._add(place, self._nodes_for(place), cold=False)

    def cap(self, caps: Mapping[PoolKey, float]) -> None:
        """Set the power cap of each GPU by pool, now and for replicas to come; at the class's highest there is none."""
        for pool, watts in sorted(caps.items()):
            if self._caps.get(pool) != watts:
                self._caps[pool] = watts
                self._set_caps(live for live in self.live.values() if live.place[0] == pool)

    def _set_caps(self, replicas: Iterable[Live]) -> None:
        for live in replicas:
            self.fleet.set_cap(live.name, self._cap_of(live.place, live.node, live.name))

    def _cap_of(self, place: Place, node: str, name: str) -> float | None:
        """Cap of each GPU of a replica: the lowest of its pool's and of incidents; None at the class's highest.

        Raises
        ------
        InvalidInput
            When an incident sets a cap so low that the profile does not know it.
        """
        pool = place[0]
        limits = [each for each in self._limits.values() if each.matches(pool, place[1], node, name)]
        caps = [(each.cap_watts or inf, each.where) for each in limits] + [(self._caps.get(pool, inf), "")]
        watts, where = min(caps)
        if watts >= self.problem.gpu_classes[pool.gpu_class].max_cap_watts:
            return None
        if where:
            self._check_cap(pool, watts, where)
        return watts

    def _check_cap(self, pool: PoolKey, watts: float, where: str) -> None:
        try:
            prefill_speed_ratio(self.profile(pool), watts)
        except OutOfRange as error:
            raise InvalidInput(where, "value", f"is a cap of {watts:g} W: {error}", "") from error

    def ask(self, counts: Counts, leaving: Iterable[str] = ()) -> None:
        """Ask for so many replicas at each place; places that are not named keep what they have.

        ``leaving`` go first where a count falls; then the ones that are not Ready, then those with least to do.
        """
        marked = set(leaving)
        for place, count in sorted(counts.items()):
            self.asked[place] = count
            staying = [live for live in self.live.values() if live.place == place and not live.is_leaving]
            order = sorted(
                staying, key=lambda r: (r.name not in marked, r.ready_s <= self.now_s, self._held(r), r.name)
            )
            for live in order[: max(0, len(staying) - count)]:
                self._drain(live)
        self.reap()
        self.start_pending()

    @property
    def now_s(self) -> float:
        """Virtual seconds."""
        return self.fleet.now_s

    def start_pending(self) -> None:
        """Bind what was asked for and has no node yet, as far as GPUs are free."""
        counts: dict[Place, int] = defaultdict(int)
        for live in self.live.values():
            counts[live.place] += not live.is_leaving
        for place, wanted in sorted(self.asked.items()):
            for _ in range(wanted - counts[place]):
                nodes = self._nodes_for(place)
                if not nodes:
                    break
                self._add(place, nodes, cold=True)

    def pair(self, now_s: float) -> None:
        """Let requests go over the ways in the proportions of what is Ready by then."""
        self._paired_s = now_s
        ready: dict[Place, int] = defaultdict(int)
        for live in self.live.values() if self.ways.is_any else ():
            ready[live.place] += live.ready_s <= now_s and not live.is_leaving
        self.ways.share_out(ready)

    @property
    def next_ready_s(self) -> float:
        """Second from which ways may have other proportions."""
        starting = (live.ready_s for live in self.live.values() if live.ready_s > self._paired_s)
        return min(starting, default=inf) if self.ways.is_any else inf

    # ------------------------------------------------------------------ from outside

    @property
    def next_repair_s(self) -> float:
        """Second at which the next broken GPU is of use again."""
        return min((at_s for at_s, _, _ in self._broken), default=inf)

    def mend(self, now_s: float) -> None:
        """Give back the GPUs that are repaired by then, and start what waits for them."""
        for at_s, node, gpus in [each for each in self._broken if each[0] <= now_s]:
            self._broken.remove((at_s, node, gpus))
            self._free[node] += gpus
        self.start_pending()

    def suffer(self, incident: Incident) -> Happened:
        """Let an incident happen now.

        Raises
        ------
        InvalidInput
            When it starts a pool, or sets a cap, that the profiles do not know.
        """
        hit, again = ACTS[incident.what](self, incident)
        return Happened(incident=incident, replicas=tuple(hit), begun_again=again)

    def _meant(self, incident: Incident) -> list[Live]:
        """Replicas that an incident hits, the oldest first; what is leaving already counts for failures and caps."""
        if incident.slot is not None:
            return self._holder(incident.node, incident.slot)
        return [
            live
            for live in self.live.values()
            if any(incident.matches(*live.place, node, live.name) for node in live.nodes or ("",))
            and not (live.is_leaving and incident.what is What.DRAIN)
        ][: incident.count]

    def _holder(self, node: str, slot: int) -> list[Live]:
        """The replica that holds a GPU of a node; none when it is idle."""
        for live in self.live.values():
            if node in live.nodes:
                slot -= live.each
                if slot < 0:
                    return [live]
        return []

    def _fail(self, incident: Incident) -> tuple[list[str], int]:
        hit = self._meant(incident)
        back_s = self.now_s + incident.repair_s
        if not hit and incident.slot is not None and self._free[incident.node] > 0:
            self._break(incident.node, 1, back_s)
        again = 0
        for live in hit:
            again += self._remove(live)
            for node in live.nodes if incident.repair_s > 0 else ():
                self._break(node, live.each, back_s)
        if incident.is_of_hosts and incident.repair_s > 0:
            for one in self.problem.nodes:
                if incident.node in ("", one.name) and incident.location in ("", one.location):
                    self._break(one.name, self._free[one.name], back_s)
        return [live.name for live in hit], again

    def _break(self, node: str, gpus: int, back_s: float) -> None:
        self._free[node] -= gpus
        self._broken.append((back_s, node, gpus))

    def _drain_some(self, incident: Incident) -> tuple[list[str], int]:
        hit = self._meant(incident)
        for live in hit:
            self.asked[live.place] -= 1
            self._drain(live)
        return [live.name for live in hit], 0

    def _start_some(self, incident: Incident) -> tuple[list[str], int]:
        known = known_pools(self.problem)
        if incident.pool not in known:
            problem, remedy = f"{incident.pool!r} is no pool of a service with a profile", "write one as plans show it"
            raise InvalidInput(incident.where, "pool", problem, remedy)
        place = known[incident.pool], incident.location
        self.asked[place] = self.asked.get(place, 0) + (incident.count or 1)
        before = set(self.live)
        self.start_pending()
        return [name for name, live in self.live.items() if name not in before and live.place == place], 0

    def _limit(self, incident: Incident) -> tuple[list[str], int]:
        if incident.cap_watts is None:
            self._limits.pop(incident.names, None)
        else:
            self._limits[incident.names] = incident
        hit = self._meant(incident)
        self._set_caps(hit)
        return [live.name for live in hit], 0

    # ------------------------------------------------------------------ nodes

    def reap(self) -> None:
        """Free the GPUs of replicas that were to leave and hold nothing any more."""
        for live in [r for r in self.live.values() if r.is_leaving and not self._held(r)]:
            self._remove(live)

    def _nodes_for(self, place: Place) -> tuple[str, ...]:
        """Fullest node that fits a whole replica, by name among equals, or whole ones of an island; () for none."""
        pool, location = place
        need, size = pool.config.gpus, self._sizes.get(pool.gpu_class, 0)
        if (span := nodes_taken(need, size)) > 1:
            return self._island_for(pool, location, span, size)
        fitting = [
            (self._free[node.name], node.name)
            for node in self.problem.nodes
            if node.gpu_class == pool.gpu_class
            and location in (node.location, ANYWHERE)
            and self._free[node.name] >= need
        ]
        return (min(fitting)[1],) if fitting else ()

    def _island_for(self, pool: PoolKey, location: str, span: int, size: int) -> tuple[str, ...]:
        here: dict[str, list[Node]] = {}
        for node in self.problem.nodes:
            if node.gpu_class == pool.gpu_class and location in (node.location, ANYWHERE):
                here.setdefault(node.location, []).append(node)
        kind = self.problem.gpu_classes[pool.gpu_class]
        joined = (names for nodes in here.values() for names in islands(nodes, kind, size).values())
        whole = [[name for name in names if self._free[name] == size] for names in joined]
        fitting = [names for names in whole if len(names) >= span]
        return tuple(min(fitting, key=lambda names: (len(names), names))[:span]) if fitting else ()

    def _add(self, place: Place, nodes: tuple[str, ...], *, cold: bool) -> None:
        pool, location = place
        profile, now_s = self.profile(pool), self.now_s
        name = f"{pool}@{location}#{self._made}"
        self._made += 1
        ready_s = now_s + profile.cold_start_s if cold else now_s
        cap = self._cap_of(place, nodes[0] if nodes else "", name)
        ready, domain = ready_s if cold else None, self.ways.domain(place)
        self.fleet.add_replica(name, pool.service, pool.role, profile, ready, cap_watts=cap, domain=domain)
        gpus = pool.config.gpus
        each = gpus if len(nodes) <= 1 else self._sizes[pool.gpu_class]
        self.live[name] = Live(
            name=name, place=place, nodes=nodes, gpus=gpus, each=each, added_s=now_s, ready_s=ready_s
        )
        for node in nodes:
            self._free[node] -= each

    def _drain(self, live: Live) -> None:
        live.is_leaving = True
        self.fleet.drain_replica(live.name)

    def _remove(self, live: Live) -> int:
        self._gone[live.place].add(self.fleet.replica(live.name), live.gpus * (self.now_s - live.added_s))
        lost = self.fleet.remove_replica(live.name)
        del self.live[live.name]
        for node in live.nodes:
            self._free[node] += live.each
        return lost

    def _held(self, live: Live) -> int:
        return self.fleet.outstanding(live.name)

    # ------------------------------------------------------------------ what is seen

    def meters(self) -> dict[Place, Meter]:
        """Totals by place up to now, replicas that are gone included."""
        self.fleet.settle()
        totals: dict[Place, Meter] = defaultdict(Meter)
        for place, gone in self._gone.items():
            totals[place].merge(gone)
        for live in self.live.values():
            totals[live.place].add(self.fleet.replica(live.name), live.gpus * (self.now_s - live.added_s))
        return totals

    def counts(self) -> dict[Place, tuple[int, int]]:
        """(Ready, others that hold GPUs) by place."""
        found: dict[Place, tuple[int, int]] = {}
        for live in self.live.values():
            ready, others = found.get(live.place, (0, 0))
            is_ready = live.ready_s <= self.now_s and not live.is_leaving
            found[live.place] = (ready + is_ready, others + (not is_ready))
        return found

    def snapshot(self) -> Snapshot:
        """The fleet as the rollout sees it; what has no node is Pending."""
        replicas = [self._replica(live) for live in self.live.values()]
        have: dict[Place, int] = defaultdict(int)
        for live in self.live.values():
            have[live.place] += not live.is_leaving
        for (pool, location), wanted in sorted(self.asked.items()):
            replicas += [
                Replica(
                    name=f"{pool}@{location}?{i}",
                    pool=pool,
                    location=location,
                    node=None,
                    state=ReplicaState.PENDING,
                )
                for i in range(wanted - have[pool, location])
            ]
        return Snapshot(
            gpu_classes=self.problem.gpu_classes,
            nodes=self.problem.nodes,
            domains=self.problem.domains,
            replicas=tuple(replicas),
            desired=dict(self.asked),
        )

    def _replica(self, live: Live) -> Replica:
        state = ReplicaState.READY if live.ready_s <= self.now_s else ReplicaState.STARTING
        return Replica(
            name=live.name,
            pool=live.place[0],
            location=live.place[1],
            node=live.node or None,
            more_nodes=live.nodes[1:],
            state=ReplicaState.LEAVING if live.is_leaving else state,
            age_s=self.now_s - live.added_s,
            outstanding_requests=float(self._held(live)),
        )


ACTS: Mapping[What, Callable[[RunningFleet, Incident], tuple[list[str], int]]] = MappingProxyType({
    What.FAIL: RunningFleet._fail,
    What.DRAIN: RunningFleet._drain_some,
    What.START: RunningFleet._start_some,
    What.CAP: RunningFleet._limit,
})  # fmt: skip

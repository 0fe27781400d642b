"""The replicas of one run: where they are, what they cost, and what of the inventory is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from solvers.engine import EngineProfile, ProfileKey
from solvers.errors import InvalidInput
from solvers.fleet import ANYWHERE, PoolKey, Replica, ReplicaState, Snapshot
from solvers.problem import Problem
from solvers.simulate import Fleet, GapHistogram, ReplicaView

Place = tuple[PoolKey, str]
Counts = Mapping[Place, int]


@dataclass(slots=True, kw_only=True)
class Live:
    """One replica that holds GPUs."""

    name: str
    place: Place
    node: str
    gpus: int
    added_s: float
    ready_s: float
    is_leaving: bool = False


@dataclass(slots=True, kw_only=True)
class Meter:
    """Totals of one place: what its replicas did and drew so far."""

    joules: float = 0.0
    gpu_s: float = 0.0
    busy_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    gaps: GapHistogram = field(default_factory=GapHistogram)

    def add(self, view: ReplicaView, gpu_s: float) -> None:
        """Count one replica in, as it stands."""
        self.joules += view.energy_joules
        self.gpu_s += gpu_s
        self.busy_s += view.busy_s
        self.prompt_tokens += view.prompt_tokens
        self.cached_tokens += view.cached_tokens
        self.output_tokens += view.output_tokens
        self.preemptions += view.preemptions
        self.gaps.merge(view.gaps)

    def merge(self, other: Meter) -> None:
        """Add the totals of ``other``."""
        self.joules += other.joules
        self.gpu_s += other.gpu_s
        self.busy_s += other.busy_s
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.preemptions += other.preemptions
        self.gaps.merge(other.gaps)

    def minus(self, earlier: Meter) -> Meter:
        """What was counted since ``earlier``."""
        return Meter(
            joules=self.joules - earlier.joules,
            gpu_s=self.gpu_s - earlier.gpu_s,
            busy_s=self.busy_s - earlier.busy_s,
            prompt_tokens=self.prompt_tokens - earlier.prompt_tokens,
            cached_tokens=self.cached_tokens - earlier.cached_tokens,
            output_tokens=self.output_tokens - earlier.output_tokens,
            preemptions=self.preemptions - earlier.preemptions,
            gaps=self.gaps.minus(earlier.gaps),
        )


class RunningFleet:
    """A simulated fleet with the nodes under it. Counts are asked for; what has no node waits for one.

    Raises
    ------
    InvalidInput
        When something is asked for that the problem does not know.
    """

    def __init__(self, problem: Problem, fleet: Fleet) -> None:
        self.problem, self.fleet = problem, fleet
        self.asked: dict[Place, int] = {}
        self.live: dict[str, Live] = {}
        self._free = {node.name: node.gpus_usable for node in problem.nodes}
        self._gone: dict[Place, Meter] = defaultdict(Meter)
        self._models = {service.name: service.model for service in problem.services}
        self._caps: dict[PoolKey, float] = {}
        self._made = 0

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
                self._add(place, self._node_for(place) or "", cold=False)

    def cap(self, caps: Mapping[PoolKey, float]) -> None:
        """Set the power cap of each GPU by pool, now and for replicas to come; at the class's highest there is none."""
        for pool, watts in sorted(caps.items()):
            if self._caps.get(pool) != watts:
                self._caps[pool] = watts
                for live in self.live.values():
                    if live.place[0] == pool:
                        self.fleet.set_cap(live.name, self._cap_of(pool))

    def _cap_of(self, pool: PoolKey) -> float | None:
        watts = self._caps.get(pool)
        return None if watts is None or watts >= self.problem.gpu_classes[pool.gpu_class].max_cap_watts else watts

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
                node = self._node_for(place)
                if node is None:
                    break
                self._add(place, node, cold=True)

    def reap(self) -> None:
        """Free the GPUs of replicas that were to leave and hold nothing any more."""
        for live in [r for r in self.live.values() if r.is_leaving and not self._held(r)]:
            self._remove(live)

    def _node_for(self, place: Place) -> str | None:
        """Fullest node that still fits a whole replica, by name among equals."""
        pool, location = place
        need = pool.config.gpus
        fitting = [
            (self._free[node.name], node.name)
            for node in self.problem.nodes
            if node.gpu_class == pool.gpu_class
            and location in (node.location, ANYWHERE)
            and self._free[node.name] >= need
        ]
        return min(fitting)[1] if fitting else None

    def _add(self, place: Place, node: str, *, cold: bool) -> None:
        pool, location = place
        profile, now_s = self.profile(pool), self.now_s
        name = f"{pool}@{location}#{self._made}"
        self._made += 1
        ready_s = now_s + profile.cold_start_s if cold else now_s
        cap = self._cap_of(pool)
        self.fleet.add_replica(name, pool.service, pool.role, profile, ready_s if cold else None, cap_watts=cap)
        gpus = pool.config.gpus
        self.live[name] = Live(name=name, place=place, node=node, gpus=gpus, added_s=now_s, ready_s=ready_s)
        if node:
            self._free[node] -= gpus

    def _drain(self, live: Live) -> None:
        live.is_leaving = True
        self.fleet.drain_replica(live.name)

    def _remove(self, live: Live) -> None:
        self._gone[live.place].add(self.fleet.replica(live.name), live.gpus * (self.now_s - live.added_s))
        self.fleet.remove_replica(live.name)
        del self.live[live.name]
        if live.node:
            self._free[live.node] += live.gpus

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
            state=ReplicaState.LEAVING if live.is_leaving else state,
            age_s=self.now_s - live.added_s,
            outstanding_requests=float(self._held(live)),
        )

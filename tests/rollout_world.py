"""A small world that obeys like Kubernetes: replica sets, a scheduler, cold starts, graceful deletion.

Each of these moves on its own, in an order that the random generator chooses, so that a step of the rollout meets
every kind of half-finished state.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from solvers.engine import EngineConfig, Role
from solvers.fleet import ANYWHERE, GpuClass, Node, PoolKey, PowerDomain, Replica, ReplicaState, Snapshot
from solvers.plan import Plan
from solvers.power import extra_watts
from solvers.rollout import Action
from solvers.rollout.assign import choose_leaving
from tests.plans_by_hand import written

H100 = GpuClass(
    name="h100",
    resource_name="nvidia.com/gpu",
    node_selector={"gpu": "h100"},
    memory_bytes=80 * 2**30,
    link_island_gpus=8,
    idle_watts=75.0,
    min_cap_watts=200.0,
    max_cap_watts=700.0,
    host_share_watts=125.0,
    price_usd_per_hour=2.4,
)
L40S = replace(
    H100, name="l40s", node_selector={"gpu": "l40s"}, idle_watts=35.0, max_cap_watts=350.0, price_usd_per_hour=0.8
)
CLASSES = {"h100": H100, "l40s": L40S}

Place = tuple[PoolKey, str]


def pool(service: str = "demo/chat", role: Role = Role.MIXED, gpu_class: str = "h100", gpus: int = 2) -> PoolKey:
    return PoolKey(service=service, role=role, gpu_class=gpu_class, config=EngineConfig(tensor_parallel=gpus))


def node(name: str, location: str = "a", gpu_class: str = "h100", gpus: int = 8, **other: object) -> Node:
    fields = {"gpus_total": gpus, "gpus_usable": gpus, "domains": tuple(sorted((location, "site"))), **other}
    return Node(name=name, gpu_class=gpu_class, location=location, **fields)  # type: ignore[arg-type]


def replicas(of: PoolKey, location: str, count: int, at: str | None, **fields: object) -> tuple[Replica, ...]:
    """So many like replicas, Ready and a quarter of an hour old unless said otherwise; one second apart in age."""
    values = {"state": ReplicaState.READY, "age_s": 900.0, **fields}
    label = f"{of.service.rsplit('/')[-1]}-{of.role}-{of.config.label}-{location}-{at}-{values['state']}"
    first = float(values.pop("age_s"))  # type: ignore[arg-type]
    return tuple(
        Replica(name=f"{label}-{i}", pool=of, location=location, node=at, age_s=first + i, **values)  # type: ignore[arg-type]
        for i in range(count)
    )


def snapshot(
    nodes: Iterable[Node],
    running: Iterable[Replica] = (),
    budgets: Mapping[str, float] | None = None,
    desired: Mapping[Place, int] | None = None,
) -> Snapshot:
    """Desired counts follow what runs and is not leaving, unless given; budgets default to plenty."""
    running = tuple(running)
    asked: dict[Place, int] = {}
    for replica in running:
        asked.setdefault((replica.pool, replica.location), 0)
        asked[replica.pool, replica.location] += replica.state is not ReplicaState.LEAVING
    names = {domain for one in nodes for domain in one.domains}
    limits = {name: (budgets or {}).get(name, 1e9) for name in sorted(names)}
    return Snapshot(
        gpu_classes=CLASSES,
        nodes=tuple(nodes),
        domains={name: PowerDomain(name=name, budget_watts=watts) for name, watts in limits.items()},
        replicas=running,
        desired={**asked, **(desired or {})},
    )


def moves(actions: Iterable[Action]) -> list[tuple[str, str, int, int]]:
    """Configuration, location, from and to of each action."""
    return [(str(a.pool.config.label), a.location, a.from_replicas, a.to_replicas) for a in actions]


def plan(want: Mapping[Place, int], served: Mapping[str, float] | None = None) -> Plan:
    """A plan with these counts; one GPU carries one request per second, and services serve all that is carried."""
    counts: dict[PoolKey, int] = {}
    held: dict[PoolKey, tuple[float, dict[str, int]]] = {}
    for (of, at), count in want.items():
        counts[of] = counts.get(of, 0) + count
        held.setdefault(of, (float(of.config.gpus), {}))[1][at] = count
    rates = {s: (served or {}).get(s, able_per_s(s, counts)) for s in sorted({of.service for of in counts})}
    return written(held, rates, tier="standard")


def able_per_s(service: str, counts: Mapping[PoolKey, int]) -> float:
    """Requests per second that pass both chains of the service; of one chain where there is only one."""
    chains = [chain_per_s(service, role, counts) for role in (Role.PREFILL, Role.DECODE)]
    return min((rate for rate in chains if rate > 0.0), default=0.0)


def chain_per_s(service: str, role: Role, counts: Mapping[PoolKey, int]) -> float:
    """Requests per second that the service's replicas of one chain carry."""
    serving = ((of, n) for of, n in counts.items() if of.service == service and of.role in (role, Role.MIXED))
    return float(sum(n * of.config.gpus for of, n in serving))


@dataclass
class World:
    """Pods, what the workloads ask for, and the controllers that act on them."""

    nodes: tuple[Node, ...]
    domains: Mapping[str, PowerDomain]
    rng: random.Random
    pods: list[Replica] = field(default_factory=list)
    desired: dict[Place, int] = field(default_factory=dict)
    serial: int = 0
    doomed: set[str] = field(default_factory=set)  # deleted pods of lost nodes: nobody confirms their end

    def snapshot(self) -> Snapshot:
        return Snapshot(
            gpu_classes=CLASSES,
            nodes=self.nodes,
            domains=self.domains,
            replicas=tuple(self.pods),
            desired=dict(self.desired),
        )

    def obey(self, actions: Iterable[Action]) -> None:
        for action in actions:
            assert self.desired.get((action.pool, action.location), 0) == action.from_replicas
            self.desired[action.pool, action.location] = action.to_replicas

    def settle(self, watch: Callable[[], None] = lambda: None) -> None:
        """Move until nothing moves by itself."""
        while self.move():
            watch()

    def move(self) -> bool:
        """One controller does one thing; False when none has anything to do."""
        acts = [self._create, self._delete, self._bind, self._run, self._finish]
        self.rng.shuffle(acts)
        return any(act() for act in acts)

    def _alive(self, place: Place) -> list[Replica]:
        at = (p for p in self.pods if (p.pool, p.location) == place)
        return [p for p in at if p.state is not ReplicaState.LEAVING and p.name not in self.doomed]

    def _create(self) -> bool:
        short = [place for place, count in sorted(self.desired.items()) if len(self._alive(place)) < count]
        if not short:
            return False
        of, location = self.rng.choice(short)
        self.serial += 1
        name = f"pod-{self.serial}"
        self.pods.append(Replica(name=name, pool=of, location=location, node=None, state=ReplicaState.PENDING))
        return True

    def _delete(self) -> bool:
        for place in sorted({(p.pool, p.location) for p in self.pods}):
            alive = self._alive(place)
            for gone in choose_leaving(alive, len(alive) - self.desired.get(place, 0)):
                if gone.state is ReplicaState.LOST:
                    self.doomed.add(gone.name)
                else:
                    self._replace(gone, replace(gone, state=ReplicaState.LEAVING) if gone.node else None)
                return True
        return False

    def free_gpus(self, name: str) -> int:
        usable = next(n.gpus_usable for n in self.nodes if n.name == name)
        return usable - sum(p.pool.config.gpus for p in self.pods if p.node == name)

    def _bind(self) -> bool:
        waiting = [p for p in self.pods if p.state is ReplicaState.PENDING]
        self.rng.shuffle(waiting)
        for pod in waiting:
            fitting = [
                n.name
                for n in self.nodes
                if n.gpu_class == pod.pool.gpu_class
                and pod.location in (n.location, ANYWHERE)
                and self.free_gpus(n.name) >= pod.pool.config.gpus
            ]
            if fitting:
                self._replace(pod, replace(pod, node=self.rng.choice(fitting), state=ReplicaState.STARTING))
                return True
        return False

    def _run(self) -> bool:
        return self._advance(ReplicaState.STARTING, lambda pod: replace(pod, state=ReplicaState.READY))

    def _finish(self) -> bool:
        return self._advance(ReplicaState.LEAVING, lambda pod: None)

    def _advance(self, state: ReplicaState, change: Callable[[Replica], Replica | None]) -> bool:
        found = [p for p in self.pods if p.state is state]
        if not found:
            return False
        pod = self.rng.choice(found)
        self._replace(pod, change(pod))
        return True

    def _replace(self, old: Replica, new: Replica | None) -> None:
        self.pods.remove(old)
        if new is not None:
            self.pods.append(new)

    def draw_watts(self, domain: str) -> float:
        """What the domain would draw now if everything placed ran at its cap."""
        fed = {n.name for n in self.nodes if domain in n.domains}
        idle = sum(n.gpus_total * CLASSES[n.gpu_class].idle_watts + n.held_watts for n in self.nodes if n.name in fed)
        running = (p for p in self.pods if p.node in fed and p.state is not ReplicaState.LOST)  # these are held
        busy = sum(extra_watts(CLASSES[p.pool.gpu_class], p.pool.config) for p in running)
        return idle + busy

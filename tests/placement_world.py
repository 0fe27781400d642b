"""A small fleet with a plan, and a source of plans for tests of the gRPC server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from solvers.engine import EngineConfig, Role
from solvers.fleet import GpuClass, Node, PoolKey, PowerDomain
from solvers.plan import (
    Binding,
    DomainPlan,
    Placement,
    Plan,
    PoolPlan,
    ServicePlan,
    SolveReport,
    SolveStatus,
)
from solvers.problem import Problem
from solvers.workload import Demand, ServedModel, SizeBucket, Slo, SloMetric

TP2 = EngineConfig(tensor_parallel=2)
CHAT, CODE = "prod/chat", "prod/code"


def gpu_class(name: str, price_usd_per_hour: float) -> GpuClass:
    return GpuClass(
        name=name,
        resource_name="nvidia.com/gpu",
        node_selector={"nvidia.com/gpu.product": name.upper()},
        memory_bytes=80 * 1024**3,
        link_island_gpus=8,
        idle_watts=75.0,
        min_cap_watts=200.0,
        max_cap_watts=700.0,
        host_share_watts=100.0,
        price_usd_per_hour=price_usd_per_hour,
    )


def problem() -> Problem:
    """Two racks in a row: two h100 nodes in rack a, one l40s node in rack b; two services."""
    slos = (Slo(metric=SloMetric.TTFT, percentile_ratio=0.99, limit_s=0.8),)
    mix = (SizeBucket(prompt_tokens=1000, output_tokens=200, weight_ratio=1.0),)
    services = [
        ServedModel(name=name, model="meta-llama/Llama-3.1-8B", tier="standard", tier_rank=1, slos=slos)
        for name in (CHAT, CODE)
    ]
    nodes = [
        Node(name=name, gpu_class=kind, location=rack, gpus_total=8, gpus_usable=8, domains=("row", rack))
        for name, kind, rack in (("n1", "h100", "rack-a"), ("n2", "h100", "rack-a"), ("n3", "l40s", "rack-b"))
    ]
    return Problem(
        services=tuple(services),
        demands={name: Demand(service=name, requests_per_s=10.0, mix=mix) for name in (CHAT, CODE)},
        gpu_classes={"h100": gpu_class("h100", 2.4), "l40s": gpu_class("l40s", 0.9)},
        nodes=tuple(nodes),
        domains={
            "row": PowerDomain(name="row", budget_watts=30_000.0),
            "rack-a": PowerDomain(name="rack-a", parents=("row",), budget_watts=20_000.0),
            "rack-b": PowerDomain(name="rack-b", parents=("row",), budget_watts=10_000.0),
        },
        profiles={},
    )


def plan(*, chat_replicas: int = 2, chat_served_per_s: float = 10.0) -> Plan:
    """Chat on so many h100 replicas in rack a, code on one l40s replica in rack b."""
    pools = (
        PoolKey(service=CHAT, role=Role.MIXED, gpu_class="h100", config=TP2),
        PoolKey(service=CODE, role=Role.MIXED, gpu_class="l40s", config=EngineConfig()),
    )
    counts = (chat_replicas, 1)
    return Plan(
        placements=tuple(
            Placement(pool=pool, location=rack, replicas=count)
            for pool, rack, count in zip(pools, ("rack-a", "rack-b"), counts, strict=True)
        ),
        pools=tuple(_pool_plan(pool, count) for pool, count in zip(pools, counts, strict=True)),
        services=(
            ServicePlan(
                service=CHAT, tier="standard", demand_requests_per_s=10.0, served_requests_per_s=chat_served_per_s
            ),
            ServicePlan(service=CODE, tier="standard", demand_requests_per_s=10.0, served_requests_per_s=10.0),
        ),
        domains=(
            DomainPlan(
                domain="rack-a", budget_watts=20_000.0, reserved_watts=1_200.0 * chat_replicas, planned_watts=900.0
            ),
            DomainPlan(domain="rack-b", budget_watts=10_000.0, reserved_watts=1_325.0, planned_watts=600.0),
        ),
        bindings=(Binding(limit="gpus", subject="h100", unit="GPU", price_usd_per_hour=0.3),),
        report=SolveReport(
            status=SolveStatus.OPTIMAL,
            objective_usd_per_hour=12.0,
            bound_usd_per_hour=11.9,
            gap_ratio=0.008,
            cost_usd_per_hour=4.8 * chat_replicas + 0.9,
            rounds=2,
            notes=("as sized",),
        ),
    )


def _pool_plan(pool: PoolKey, count: int) -> PoolPlan:
    return PoolPlan(
        pool=pool,
        replicas=count,
        demand_ratio=1.0,
        capacity_requests_per_s=12.0,
        cap_watts=700.0,
        reserved_watts=1_450.0 * count,
        planned_watts=900.0 * count,
        cost_usd_per_hour=2.4 * pool.config.gpus * count,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A decision as the operator hands it out."""

    plan: Plan
    problem: Problem
    number: int


@dataclass
class Source:
    """Plans that a test sets; what-ifs are solved by ``solve``, which the test may make slow, or fail."""

    turn: Turn | None = None
    solve: Callable[[Problem, float], Plan] = lambda problem, deadline_s: plan(chat_replicas=3)
    asked: list[tuple[Problem, float]] = field(default_factory=list)
    callbacks: list[Callable[[Turn], None]] = field(default_factory=list)

    def latest(self) -> Turn | None:
        return self.turn

    def subscribe(self, callback: Callable[[Turn], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def what_if(self, changed: Problem, deadline_s: float) -> Plan:
        self.asked.append((changed, deadline_s))
        return self.solve(changed, deadline_s)

    def decide(self, number: int, *, chat_replicas: int = 2) -> None:
        """Put a new small plan in force."""
        self.put(Turn(plan=plan(chat_replicas=chat_replicas), problem=problem(), number=number))

    def put(self, turn: Turn) -> None:
        """Put a turn in force and tell everyone, as the operator's thread does."""
        self.turn = turn
        for callback in tuple(self.callbacks):
            callback(turn)


class Gate:
    """A solve that waits until the test opens it; knows how many are inside."""

    def __init__(self) -> None:
        self._open, self._entered = threading.Event(), threading.Semaphore(0)

    def __call__(self, changed: Problem, deadline_s: float) -> Plan:
        self._entered.release()
        if not self._open.wait(120.0):
            raise TimeoutError("the test never opened the gate")
        return replace(plan(), routing="through the gate")

    def wait_for(self, solves: int) -> None:
        """Return once so many solves are inside."""
        for _ in range(solves):
            assert self._entered.acquire(timeout=60.0), "no solve came in"

    def open(self) -> None:
        self._open.set()

"""Oracle: every count of every pool at every location of a tiny fleet, tried one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from solvers.engine import EngineConfig, EngineProfile, ProfileKey, ProfileSource, Role
from solvers.fleet import GpuClass, Node, PoolKey, PowerDomain
from solvers.planner import desk_for, make_plan
from solvers.planner.pools.crew import WIDE_GPUS, Crew
from solvers.planner.pools.penalties import Penalties
from solvers.planner.pools.tally import SAME_SHORTAGE
from solvers.problem import Policy, Problem
from solvers.sizing import Capacity, Unfit
from solvers.verify import verify
from solvers.workload import Demand, ServedModel, SizeBucket
from tests import fleets

FLEETS = 320
PER_TEST = 40
MOST_TRIES = 3000
MIX = (SizeBucket(prompt_tokens=100, output_tokens=10, weight_ratio=1.0),)
POLICY = Policy(relative_gap=1e-7, min_saving_ratio=0.0, start_cost_hours=0.05, time_limit_s=120.0)
TOLERANCE = 2e-6  # relative: the solver's gap plus the slack of its capacity rows, times the largest tier penalty ratio


Placed = dict[tuple[PoolKey, str], int]
"""Replicas by (pool, location)."""


@dataclass(frozen=True)
class Tiny:
    """A fleet small enough to try everything, with a table of capacities by (service, role, class)."""

    problem: Problem
    table: dict[tuple[str, Role, str], tuple[float, float, float]]  # requests/s, growth with size, watts

    def allows(self, counts: Placed) -> bool:
        """A rule beyond room and watts."""
        return True

    def limited_per_s(self, service: ServedModel, counts: Placed, able_per_s: float) -> float:
        """What may be served of what the counts could carry."""
        return able_per_s

    def terms_usd_per_hour(self, counts: Placed) -> float:
        """What the nodes cost beside their list price."""
        return 0.0

    def missing(self, service: ServedModel, counts: Placed) -> int:
        """Replicas that are missing beyond those below the floors."""
        return 0

    def capacity_of(
        self,
        profile: EngineProfile,
        role: Role,
        mix: tuple[SizeBucket, ...],
        slos: tuple[object, ...],
        *,
        pool_replicas: int,
    ) -> Capacity | Unfit:
        rate, growth, watts = self.table[profile.key.model, role, profile.key.gpu_class]
        if rate <= 0.0:
            return Unfit(reason="too slow")
        return Capacity(
            requests_per_s=rate * profile.key.config.gpus * (1.0 - growth / (1.0 + pool_replicas)),
            utilisation_ratio=0.5,
            gpu_watts=watts,
        )


def bare_profile(model: str, gpu_class: str, tensor_parallel: int) -> EngineProfile:
    config = EngineConfig(tensor_parallel=tensor_parallel)
    return EngineProfile(
        key=ProfileKey(model=model, gpu_class=gpu_class, config=config),
        source=ProfileSource.ROOFLINE,
        source_detail="table",
        prefill_tokens=(1,),
        prefill_s=(0.1,),
        decode_batches=(1,),
        decode_contexts=(1,),
        decode_step_s=((0.01,),),
        kv_capacity_tokens=1,
        kv_bytes_per_token=1,
        transfer_bytes_per_s=1.0,
        idle_watts_per_gpu=40.0,
        prefill_watts_per_gpu=300.0,
        decode_watts_per_gpu=(200.0,),
    )


def tiny(rng: np.random.Generator) -> Tiny:
    """Draw one or two services on two classes, two or three nodes of at most four GPUs, one or two budgets."""
    names = ["team/one", "team/two"][: rng.integers(1, 3)]
    few = len(names) > 1
    classes = {name: _tiny_class(name, rng) for name in ("big", "small")}
    nodes = tuple(_tiny_node(i, few, rng) for i in range(int(rng.integers(1, 3 if few else 4))))
    services = tuple(_tiny_service(name, few, rng) for name in names)
    degrees = (1,) if few else (1, 2)
    table = {
        (name, role, g): (
            float(rng.choice([0.0, *rng.uniform(0.5, 3.0, 5).round(2)])),
            float(rng.choice([0.0, rng.uniform(0.0, 0.8)])),
            float(rng.uniform(100, 300)),
        )
        for name in names
        for role in Role
        for g in classes
    }
    running = _tiny_running(nodes[0], services[0]) if nodes and rng.random() < 0.5 else {}
    domains = {
        "site": PowerDomain(name="site", budget_watts=float(rng.choice([1200, 2000, 9000]))),
        "feed-0": PowerDomain(name="feed-0", budget_watts=float(rng.choice([700, 1000, 9000]))),
        "feed-1": PowerDomain(name="feed-1", budget_watts=9000.0),
    }
    problem = Problem(
        services=services,
        demands={n: Demand(service=n, requests_per_s=round(float(rng.uniform(0.3, 6.0)), 2), mix=MIX) for n in names},
        gpu_classes=classes,
        nodes=nodes,
        domains=domains,
        profiles={p.key: p for p in (bare_profile(n, g, k) for n in names for g in classes for k in degrees)},
        running=running,
        policy=POLICY,
    )
    return Tiny(problem=problem, table=table)


def _tiny_class(name: str, rng: np.random.Generator) -> GpuClass:
    return GpuClass(
        name=name,
        resource_name="gpu",
        node_selector={},
        memory_bytes=1,
        link_island_gpus=4,
        idle_watts=40.0,
        min_cap_watts=100.0,
        max_cap_watts=float(rng.choice([300, 400])),
        host_share_watts=50.0,
        price_usd_per_hour=round(float(rng.uniform(0.5, 3.0)), 2),
    )


def _tiny_node(number: int, few: bool, rng: np.random.Generator) -> Node:
    return Node(
        name=f"n{number}",
        gpu_class=str(rng.choice(["big", "small"])),
        location=str(rng.choice(["left", "right"])),
        gpus_total=4,
        gpus_usable=int(rng.integers(1, 3 if few else 4)),
        domains=("site", f"feed-{number % 2}"),
    )


def _tiny_service(name: str, few: bool, rng: np.random.Generator) -> ServedModel:
    roles = [(Role.MIXED,), (Role.PREFILL, Role.DECODE), tuple(Role)]
    return ServedModel(
        name=name,
        model=name,
        tier=fleets.TIERS[rank := int(rng.integers(0, 3))],
        tier_rank=rank,
        slos=(),
        roles=roles[rng.integers(0, 2 if few else 3)],
        min_replicas=int(rng.choice([0, 0, 1])),
        max_replicas=int(rng.choice([2, 10])),
    )


def _tiny_running(node: Node, service: ServedModel) -> dict[tuple[PoolKey, str], int]:
    config = EngineConfig(tensor_parallel=1)
    key = PoolKey(service=service.name, role=service.roles[0], gpu_class=node.gpu_class, config=config)
    return {(key, node.location): 1}


# The oracle below states every rule of the model anew and shares no code with the planner.


def packs(free: tuple[int, ...], groups: tuple[int, ...]) -> bool:
    """Try every node for every group."""
    if not groups:
        return True
    return any(
        left >= groups[0] and packs((*free[:i], left - groups[0], *free[i + 1 :]), groups[1:])
        for i, left in enumerate(free)
    )


def spots(problem: Problem) -> list[tuple[PoolKey, str, int]]:
    """Every (pool, location) with the most replicas that its free GPUs allow."""
    found = []
    for service, (key, _) in itertools.product(problem.services, sorted(problem.profiles.items())):
        if key.model != service.model:
            continue
        for role, where in itertools.product(service.roles, ("left", "right")):
            here = [n.gpus_usable for n in problem.nodes if (n.gpu_class, n.location) == (key.gpu_class, where)]
            if most := min(service.max_replicas, sum(free // key.config.gpus for free in here)):
                pool = PoolKey(service=service.name, role=role, gpu_class=key.gpu_class, config=key.config)
                found.append((pool, where, most))
    return found


def room_for(problem: Problem, counts: dict[tuple[PoolKey, str], int]) -> bool:
    """Groups on nodes of each class and location, ceilings, and watts of every domain."""
    for where, g in itertools.product(("left", "right"), problem.gpu_classes):
        free = tuple(n.gpus_usable for n in problem.nodes if (n.gpu_class, n.location) == (g, where))
        groups = [p.config.gpus for (p, at), n in counts.items() if (p.gpu_class, at) == (g, where) for _ in range(n)]
        if sum(groups) > sum(free) or not packs(free, tuple(sorted(groups, reverse=True))):
            return False
    for service, role in itertools.product(problem.services, Role):
        if sum(n for (p, _), n in counts.items() if (p.service, p.role) == (service.name, role)) > service.max_replicas:
            return False
    return all(domain_holds(problem, counts, name) for name in problem.domains)


def domain_holds(problem: Problem, counts: dict[tuple[PoolKey, str], int], name: str) -> bool:
    inside = [n for n in problem.nodes if name in n.domains]
    idle = sum(40.0 * n.gpus_total for n in inside)
    rise = {g: c.max_cap_watts + 50.0 - 40.0 for g, c in problem.gpu_classes.items()}
    full = idle + sum(n.gpus_usable * rise[n.gpu_class] for n in inside)
    fed = {(n.gpu_class, n.location) for n in inside}
    added = sum(n * p.config.gpus * rise[p.gpu_class] for (p, at), n in counts.items() if (p.gpu_class, at) in fed)
    return added == 0.0 or min(idle + added, full) <= problem.domains[name].budget_watts + 1e-6


def value(case: Tiny, counts: dict[tuple[PoolKey, str], int], penalties: Penalties) -> float:
    """The objective, from its definition; only the prices of failing are taken as given."""
    problem, total = case.problem, case.terms_usd_per_hour(counts)
    for (pool, where), n in counts.items():
        _, _, watts = case.table[pool.service, pool.role, pool.gpu_class]
        price = problem.gpu_classes[pool.gpu_class].price_usd_per_hour
        total += n * pool.config.gpus * (price + POLICY.energy_usd_per_kilowatt_hour * (watts + 50.0) / 1000.0)
        start = problem.policy.start_cost_hours * price * pool.config.gpus
        total += max(0, n - problem.running.get((pool, where), 0)) * start
    for (pool, where), now in problem.running.items():
        price = problem.gpu_classes[pool.gpu_class].price_usd_per_hour
        stop = 0.5 * problem.policy.start_cost_hours * price * pool.config.gpus
        total += max(0, now - counts.get((pool, where), 0)) * stop
    for service in problem.services:
        sizes: dict[PoolKey, int] = {}
        for (pool, _), n in counts.items():
            if pool.service == service.name:
                sizes[pool] = sizes.get(pool, 0) + n
        rate = dict.fromkeys(Role, 0.0)
        count = dict.fromkeys(Role, 0)
        for pool, n in sizes.items():
            rate[pool.role] += n * capacity(case, pool, n)
            count[pool.role] += n
        demand = problem.demands[service.name].requests_per_s
        able = case.limited_per_s(service, counts, rate[Role.MIXED] + min(rate[Role.PREFILL], rate[Role.DECODE]))
        total += penalties.of_unserved(service.name, max(0.0, 1.0 - able / demand))
        for role in (Role.PREFILL, Role.DECODE):
            short = max(0, service.min_replicas - count[role] - count[Role.MIXED])
            total += penalties.floor_usd_per_hour[service.name] * short
        total += penalties.floor_usd_per_hour[service.name] * case.missing(service, counts)
    return total


def capacity(case: Tiny, pool: PoolKey, n: int) -> float:
    rate, growth, _ = case.table[pool.service, pool.role, pool.gpu_class]
    return rate * pool.config.gpus * (1.0 - growth / (1.0 + n))


def best_by_trying(case: Tiny, wide_gpus: int = WIDE_GPUS) -> float:
    return best_counts(case, wide_gpus)[0]


def best_counts(case: Tiny, wide_gpus: int = WIDE_GPUS) -> tuple[float, Placed]:
    """The least objective of all counts, and the first counts that have it."""
    penalties = desk_for(case.problem, case.capacity_of, crew=Crew(wide_gpus=wide_gpus)).penalties
    places = [s for s in spots(case.problem) if case.table[s[0].service, s[0].role, s[0].gpu_class][0] > 0.0]
    best: tuple[float, Placed] = (math.inf, {})
    for numbers in itertools.product(*(range(most + 1) for _, _, most in places)):
        counts = {(pool, at): n for (pool, at, _), n in zip(places, numbers, strict=True) if n}
        if case.allows(counts) and room_for(case.problem, counts):
            best = min(best, (value(case, counts, penalties), counts), key=lambda found: found[0])
    return best


def tries(case: Tiny) -> int:
    return math.prod(most + 1 for _, _, most in spots(case.problem))


def drawn(first: int, count: int) -> Iterator[tuple[int, Tiny]]:
    """Fleets by seed; those with too many combinations are drawn again."""
    for seed in range(first, first + count):
        rng = np.random.default_rng(seed)
        case = tiny(rng)
        while tries(case) > MOST_TRIES:
            case = tiny(rng)
        yield seed, case


def hold_to_best(case: Tiny, seed: int) -> float:
    """Plan a fleet under a rule, hold the plan to the best of all counts that keep it, and return that.

    What keeps tiers in order may cost more than the weights ask, and what runs may stay where it is as good.
    """
    plan = make_plan(case.problem, capacity_of=case.capacity_of)
    assert verify(plan, case.problem, capacity_of=case.capacity_of) == ()
    best, found = best_by_trying(case), plan.report.objective_usd_per_hour
    assert found >= best * (1.0 - TOLERANCE), seed
    if not any("lower tier gave way" in note for note in plan.report.notes):
        assert plan.report.bound_usd_per_hour <= best * (1.0 + TOLERANCE), seed
        is_kept = plan.is_short and any(note.startswith("kept") for note in plan.report.notes)
        assert found == pytest.approx(best, rel=2.0 * SAME_SHORTAGE if is_kept else TOLERANCE), seed
    return best


def is_bound(case: Tiny, best: float) -> bool:
    """True when the rule costs something: without it a cheaper plan could be had."""
    return best > best_by_trying(Tiny(problem=case.problem, table=case.table)) * (1.0 + TOLERANCE)


@pytest.mark.parametrize("first", range(0, FLEETS, PER_TEST))
def test_no_counts_are_cheaper_than_the_plan(first: int) -> None:
    short = protected = 0
    for seed, case in drawn(first, PER_TEST):
        plan = make_plan(case.problem, capacity_of=case.capacity_of)
        assert verify(plan, case.problem) == ()
        best, found = best_by_trying(case), plan.report.objective_usd_per_hour
        short += plan.is_short
        if any("lower tier gave way" in note for note in plan.report.notes):
            protected += 1
            assert found >= best * (1.0 - TOLERANCE), seed
            continue
        if plan.is_short and any(note.startswith("kept") for note in plan.report.notes):  # as short as the best
            assert best * (1.0 - TOLERANCE) <= found <= best * (1.0 + 2.0 * SAME_SHORTAGE), seed
            continue
        assert found == pytest.approx(best, rel=TOLERANCE), seed
        assert plan.report.bound_usd_per_hour <= best * (1.0 + TOLERANCE), seed
    assert short < PER_TEST
    assert protected <= PER_TEST // 4

"""Power caps in the joint plan: against trying every cap and every count, and against planning without caps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from solvers.engine import EngineProfile, Role
from solvers.engine.roofline import cap_curves
from solvers.fleet import GpuClass, PoolKey
from solvers.plan import Plan
from solvers.planner import desk_for, make_plan
from solvers.planner.model.relax import state
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.caps import one_level
from solvers.planner.pools.cells import build_cells
from solvers.planner.pools.crew import WIDE_GPUS, Crew
from solvers.planner.pools.options import find_options
from solvers.planner.pools.penalties import Penalties
from solvers.problem import Problem
from solvers.sizing import Capacity, Unfit, replica_capacity
from solvers.tick import Ticker
from solvers.verify import verify
from solvers.workload import SizeBucket
from tests import fleets
from tests.test_against_brute_force import POLICY, TOLERANCE, Tiny, packs, spots, tiny

FLEETS = 60
PER_TEST = 20
MOST_TRIES = 4000
CAPS = (150.0, 220.0)
PREFILL_SPEED, DECODE_SPEED = (0.6, 0.8), (0.85, 1.0)


@dataclass(frozen=True)
class Capped(Tiny):
    """A tiny fleet whose profiles know two caps; the table's rates are slowed as the profile's curves are."""

    def capacity_of(
        self,
        profile: EngineProfile,
        role: Role,
        mix: tuple[SizeBucket, ...],
        slos: tuple[object, ...],
        *,
        pool_replicas: int,
    ) -> Capacity | Unfit:
        sized = super().capacity_of(profile, role, mix, slos, pool_replicas=pool_replicas)
        if isinstance(sized, Unfit):
            return sized
        speed = 0.01 / profile.decode_step_s[0][0] if role is Role.DECODE else 0.1 / profile.prefill_s[0]
        watts = min(sized.gpu_watts, profile.prefill_watts_per_gpu)
        return replace(sized, requests_per_s=sized.requests_per_s * speed, gpu_watts=watts)


def capped_fleet(rng: np.random.Generator) -> Capped:
    """Draw a tiny fleet whose budgets often bind."""
    case = tiny(rng)
    profiles = {
        key: replace(
            profile,
            cap_watts_per_gpu=(*CAPS, 400.0),
            prefill_speed_ratio=(*PREFILL_SPEED, 1.0),
            decode_speed_ratio=(*DECODE_SPEED, 1.0),
        )
        for key, profile in case.problem.profiles.items()
    }
    domains = {
        name: replace(domain, budget_watts=float(rng.choice([500, 700, 900, 1200])))
        for name, domain in case.problem.domains.items()
    }
    problem = replace(case.problem, profiles=profiles, domains=domains, policy=replace(POLICY, power_caps=True))
    return Capped(problem=problem, table=case.table)


# The oracle states the rules anew: counts by (pool, location), a cap by pool (None: the class's highest).


def speed_at(role: Role, cap: float | None) -> float:
    if cap is None:
        return 1.0
    return (DECODE_SPEED if role is Role.DECODE else PREFILL_SPEED)[CAPS.index(cap)]


def groups_fit(problem: Problem, counts: dict[tuple[PoolKey, str], int]) -> bool:
    for where, g in itertools.product(("left", "right"), problem.gpu_classes):
        free = tuple(n.gpus_usable for n in problem.nodes if (n.gpu_class, n.location) == (g, where))
        groups = [p.config.gpus for (p, at), n in counts.items() if (p.gpu_class, at) == (g, where) for _ in range(n)]
        if sum(groups) > sum(free) or not packs(free, tuple(sorted(groups, reverse=True))):
            return False
    by_role: dict[tuple[str, Role], int] = {}
    for (pool, _), n in counts.items():
        by_role[pool.service, pool.role] = by_role.get((pool.service, pool.role), 0) + n
    return all(by_role.get((s.name, role), 0) <= s.max_replicas for s in problem.services for role in Role)


def watts_fit(problem: Problem, counts: dict[tuple[PoolKey, str], int], caps: dict[PoolKey, float | None]) -> bool:
    for name, domain in problem.domains.items():
        inside = [n for n in problem.nodes if name in n.domains]
        idle = sum(40.0 * n.gpus_total for n in inside)
        full = idle + sum(n.gpus_usable * (problem.gpu_classes[n.gpu_class].max_cap_watts + 10.0) for n in inside)
        fed = {(n.gpu_class, n.location) for n in inside}
        added = sum(
            n * p.config.gpus * ((caps[p] or problem.gpu_classes[p.gpu_class].max_cap_watts) + 10.0)
            for (p, at), n in counts.items()
            if (p.gpu_class, at) in fed
        )
        if added and min(idle + added, full) > domain.budget_watts + 1e-6:
            return False
    return True


def limits(problem: Problem, gpu_class: str) -> bool:
    """Whether watts can run short for the class at all; where not, caps are no choice."""
    fed = {name for n in problem.nodes if n.gpu_class == gpu_class for name in n.domains}
    full = {
        name: sum(
            40.0 * n.gpus_total + n.gpus_usable * (problem.gpu_classes[n.gpu_class].max_cap_watts + 10.0)
            for n in problem.nodes
            if name in n.domains
        )
        for name in fed
    }
    return any(full[name] > problem.domains[name].budget_watts + 1e-3 for name in fed)


def value(
    case: Capped, counts: dict[tuple[PoolKey, str], int], caps: dict[PoolKey, float | None], penalties: Penalties
) -> float:
    problem, total = case.problem, 0.0
    energy = POLICY.energy_usd_per_kilowatt_hour / 1000.0
    for (pool, where), n in counts.items():
        watts = min(case.table[pool.service, pool.role, pool.gpu_class][2], caps[pool] or math.inf)
        price = problem.gpu_classes[pool.gpu_class].price_usd_per_hour
        starts = max(0, n - problem.running.get((pool, where), 0))
        total += pool.config.gpus * (n * (price + energy * (watts + 50.0)) + starts * 0.05 * price)
    for (pool, where), now in problem.running.items():
        price = problem.gpu_classes[pool.gpu_class].price_usd_per_hour
        total += max(0, now - counts.get((pool, where), 0)) * 0.025 * price * pool.config.gpus
    for service in problem.services:
        rate, count, sizes = dict.fromkeys(Role, 0.0), dict.fromkeys(Role, 0), dict[PoolKey, int]()
        for (pool, _), n in counts.items():
            if pool.service == service.name:
                sizes[pool] = sizes.get(pool, 0) + n
        for pool, n in sizes.items():
            each, growth, _ = case.table[pool.service, pool.role, pool.gpu_class]
            speed = speed_at(pool.role, caps[pool])
            rate[pool.role] += n * each * speed * pool.config.gpus * (1.0 - growth / (1.0 + n))
            count[pool.role] += n
        able = rate[Role.MIXED] + min(rate[Role.PREFILL], rate[Role.DECODE])
        asked = problem.demands[service.name].requests_per_s
        total += penalties.of_unserved(service.name, max(0.0, 1.0 - able / asked))
        for role in (Role.PREFILL, Role.DECODE):
            missing = max(0, service.min_replicas - count[role] - count[Role.MIXED])
            total += penalties.floor_usd_per_hour[service.name] * missing
    return total


def best_by_trying(case: Capped, wide_gpus: int = WIDE_GPUS) -> float:
    problem, best = case.problem, math.inf
    penalties = desk_for(problem, case.capacity_of, crew=Crew(wide_gpus=wide_gpus)).penalties
    places = [s for s in spots(problem) if case.table[s[0].service, s[0].role, s[0].gpu_class][0] > 0.0]
    for numbers in itertools.product(*(range(most + 1) for _, _, most in places)):
        counts = {(pool, at): n for (pool, at, _), n in zip(places, numbers, strict=True) if n}
        if not groups_fit(problem, counts):
            continue
        used = sorted({pool for pool, _ in counts})
        for levels in itertools.product(*((None, *CAPS) if limits(problem, p.gpu_class) else (None,) for p in used)):
            caps = dict(zip(used, levels, strict=True))
            if watts_fit(problem, counts, caps):
                best = min(best, value(case, counts, caps, penalties))
    return best


def tries(case: Capped) -> int:
    """An upper bound: every place multiplies the counts, and three caps each."""
    return math.prod(3 * most + 1 for _, _, most in spots(case.problem))


def drawn(first: int, count: int) -> Iterator[tuple[int, Capped]]:
    for seed in range(first, first + count):
        rng = np.random.default_rng([seed, 77])
        case = capped_fleet(rng)
        while tries(case) > MOST_TRIES:
            case = capped_fleet(rng)
        yield seed, case


@pytest.mark.parametrize("first", range(0, FLEETS, PER_TEST))
def test_no_counts_and_caps_are_cheaper_than_the_plan(first: int) -> None:
    below = protected = between = 0
    for seed, case in drawn(first, PER_TEST):
        plan = make_plan(case.problem, capacity_of=case.capacity_of)
        assert verify(plan, case.problem, capacity_of=case.capacity_of) == ()
        best, found = best_by_trying(case), plan.report.objective_usd_per_hour
        below += any(pool.cap_watts in CAPS for pool in plan.pools)
        if any(pool.cap_watts not in (*CAPS, 300.0, 400.0) for pool in plan.pools):
            assert plan.is_short  # caps between the levels, for what they serve more
            between += 1
            continue
        assert found >= best * (1.0 - TOLERANCE), seed
        if is_protected(plan, found, best):
            protected += 1
            continue
        assert found == pytest.approx(best, rel=TOLERANCE), seed
        assert plan.report.bound_usd_per_hour <= best * (1.0 + TOLERANCE), seed
    assert below >= PER_TEST // 8
    assert protected <= PER_TEST // 4
    assert between <= PER_TEST // 2


def is_protected(plan: Plan, found: float, best: float) -> bool:
    """Tiers go before weights: a higher tier was kept, or all is served where the weights would leave some."""
    kept = any("lower tier gave way" in note for note in plan.report.notes)
    return kept or (not plan.is_short and found > best * (1.0 + TOLERANCE))


def knowing_caps(problem: Problem, *, power_caps: bool = True) -> Problem:
    """The same with profiles that know the default law of caps."""
    profiles = {
        key: replace(p, **cap_curves(p.idle_watts_per_gpu, problem.gpu_classes[key.gpu_class].max_cap_watts))
        for key, p in problem.profiles.items()
    }
    return replace(problem, profiles=profiles, policy=replace(problem.policy, power_caps=power_caps))


def scarce(scale: float = 1.0, budget_ratio: float = 0.3) -> Problem:
    """Five nodes of two classes in two racks, two services, and watts for a third of the GPUs."""
    fleet = (*fleets.nodes("h100-sxm", 2, "rack-1"), *fleets.nodes("l40s", 3, "rack-2"))
    profiles = [fleets.profile(model, name, 1, 8.0) for model in ("chat", "batch") for name in ("h100-sxm", "l40s")]
    services = (
        (fleets.service("chat", "chat", rank=0, roles=(Role.PREFILL, Role.DECODE)), 60.0 * scale),
        (fleets.service("batch", "batch", rank=1, ttft_s=2.0, roles=(Role.PREFILL, Role.DECODE)), 60.0 * scale),
    )
    built = fleets.problem(services, fleet, profiles)
    return replace(built, domains=fleets.budgets(built, budget_ratio))


@cache
def planned(*, power_caps: bool) -> tuple[Plan, Problem]:
    problem = knowing_caps(scarce(), power_caps=power_caps)
    return make_plan(problem), problem


def penalty(plan: Plan) -> float:
    return sum(service.penalty_usd_per_hour for service in plan.services)


def test_where_power_is_short_caps_serve_more() -> None:
    (with_caps, problem), (without, _) = planned(power_caps=True), planned(power_caps=False)
    assert verify(with_caps, problem, capacity_of=replica_capacity) == ()
    assert without.is_short
    assert penalty(with_caps) < penalty(without)
    assert with_caps.report.objective_usd_per_hour < without.report.objective_usd_per_hour


def test_a_plan_has_one_cap_for_a_pool_and_says_it_once() -> None:
    plan, problem = planned(power_caps=True)
    highest = {name: kind.max_cap_watts for name, kind in problem.gpu_classes.items()}
    assert len({pool.pool for pool in plan.pools}) == len(plan.pools)
    assert {pool.cap_watts for pool in (*(row.pool for row in plan.placements), *(p.pool for p in plan.pools))} == {0.0}
    assert any(pool.cap_watts < highest[pool.pool.gpu_class] for pool in plan.pools)


def test_without_the_policy_no_pool_is_capped_and_the_check_refuses_one() -> None:
    plan, problem = planned(power_caps=False)
    highest = {name: kind.max_cap_watts for name, kind in problem.gpu_classes.items()}
    assert all(pool.cap_watts == highest[pool.pool.gpu_class] for pool in plan.pools)
    capped, _ = planned(power_caps=True)
    assert any("the policy allows no caps" in fault for fault in verify(capped, problem))


def test_a_capped_plan_stays_when_asked_again_and_when_it_runs() -> None:
    problem = knowing_caps(scarce(0.5))
    plan = make_plan(problem)
    assert any(pool.cap_watts < problem.gpu_classes[pool.pool.gpu_class].max_cap_watts for pool in plan.pools)
    again = make_plan(problem, previous=plan)
    assert again.decision_hash == plan.decision_hash
    running = {(row.pool, row.location): row.replicas for row in plan.placements}
    later = make_plan(replace(problem, running=running), previous=plan)
    assert later.decision_hash == plan.decision_hash


def test_a_wrong_claim_under_a_cap_is_caught() -> None:
    plan, problem = planned(power_caps=True)
    highest = {name: kind.max_cap_watts for name, kind in problem.gpu_classes.items()}
    index = next(i for i, pool in enumerate(plan.pools) if pool.cap_watts < highest[pool.pool.gpu_class])
    row = plan.pools[index]
    other = replace(row, cap_watts=row.cap_watts + 20.0)
    wrong = replace(plan, pools=(*plan.pools[:index], other, *plan.pools[index + 1 :]))
    assert any(fault.startswith("watts[") for fault in verify(wrong, problem, capacity_of=replica_capacity))
    index = next(i for i, pool in enumerate(plan.pools) if pool.pool.role is Role.PREFILL)
    row = plan.pools[index]
    more = replace(row, capacity_requests_per_s=1.01 * row.capacity_requests_per_s)
    wrong = replace(plan, pools=(*plan.pools[:index], more, *plan.pools[index + 1 :]))
    assert any(fault.startswith("capacity[") for fault in verify(wrong, problem, capacity_of=replica_capacity))


def test_caps_that_bring_nothing_are_no_options() -> None:
    """Decode at more than it draws is slowed by no cap above that: of its upper levels only the lowest remains."""
    problem = knowing_caps(scarce())
    desk = Desk.of(problem, replica_capacity)
    levels: dict[PoolKey, list[float]] = {}
    for option in desk.options.pools:
        levels.setdefault(option.pool.uncapped, []).append(option.pool.cap_watts)
    assert all(0.0 not in caps for pool, caps in levels.items() if pool.role is Role.DECODE)
    assert any(len(caps) > 2 for pool, caps in levels.items() if pool.role is Role.PREFILL)
    roomy = knowing_caps(scarce(budget_ratio=1.1))
    assert {o.pool.cap_watts for o in find_options(roomy, desk.sizer).pools} == {0.0}


def test_the_lowest_of_several_levels_needs_no_more_watts() -> None:
    plan, _ = planned(power_caps=True)
    pool = plan.placements[0].pool
    low, high = replace(pool, cap_watts=300.0), replace(pool, cap_watts=500.0)
    assert one_level({(high, "a"): 2, (low, "a"): 1, (pool, "b"): 4}) == {(low, "a"): 3, (low, "b"): 4}


def test_caps_between_the_levels_serve_what_a_tick_would() -> None:
    plan, problem = planned(power_caps=True)
    levels = {w for p in problem.profiles.values() for w in p.cap_watts_per_gpu}
    assert any(pool.cap_watts not in levels for pool in plan.pools)
    assert all(pool.cap_watts == round(pool.cap_watts) for pool in plan.pools)
    tick = Ticker(problem, plan).tick()
    served = {s.service: s.served_requests_per_s for s in plan.services}
    for name, rate in zip(tick.services, tick.served_per_s, strict=True):
        assert served[name] == pytest.approx(rate, rel=0.01)
        assert rate >= served[name] * (1.0 - 1e-3)


def test_a_short_plan_at_such_caps_stays_when_asked_again() -> None:
    plan, problem = planned(power_caps=True)
    running = {(row.pool, row.location): row.replicas for row in plan.placements}
    again = make_plan(replace(problem, running=running), previous=plan)
    assert again.placements == plan.placements
    assert again.decision_hash == plan.decision_hash


def test_a_class_may_forbid_low_caps() -> None:
    problem = knowing_caps(scarce())

    def proud(kind: GpuClass) -> GpuClass:
        return replace(kind, min_cap_watts=0.8 * kind.max_cap_watts)

    problem = replace(problem, gpu_classes={name: proud(kind) for name, kind in problem.gpu_classes.items()})
    caps = {(o.pool.gpu_class, o.pool.cap_watts) for o in Desk.of(problem, replica_capacity).options.pools}
    assert all(not cap or cap >= problem.gpu_classes[name].min_cap_watts for name, cap in caps)
    assert any(cap for _, cap in caps)


def test_every_cap_is_a_pool_of_the_model_with_its_own_watts_and_one_size_in_all() -> None:
    problem = knowing_caps(scarce())
    desk = Desk.of(problem, replica_capacity)
    cells = build_cells(problem, desk.options)
    arrays = state(cells)
    rows = {row: index for index, row in enumerate(arrays.rows)}
    matrix = arrays.matrix.tocsr()
    site = next(index for (limit, subject), index in rows.items() if limit == "power" and "rack-1" in subject)
    watts = {o.pool: o.reserved_watts for o in desk.options.pools if o.pool.gpu_class == "h100-sxm"}
    for cell, p in enumerate(cells.cell_pool):
        pool = cells.pools[p].pool
        if pool in watts:
            kilowatts = matrix[[site], [arrays.columns["replicas"].start + cell]].item()
            assert kilowatts == pytest.approx(((pool.cap_watts or 700.0) + 150.0 - 70.0) / 1000.0)
            assert watts[pool] == pytest.approx(1000.0 * kilowatts)
    for base in {o.pool.uncapped for o in desk.options.pools}:
        steps = [t for t, p in enumerate(cells.step_pool) if cells.pools[p].pool.uncapped == base]
        if len(steps) == 1:
            continue
        row = matrix[[rows["step", f"{base} one step"]]]
        assert sorted(row.indices - arrays.columns["chosen"].start) == steps

"""Prefill and decode pair inside one KV group, and at one location where asked: kept, checked, told when it costs."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solvers.engine import EngineConfig, ProfileKey, Role
from solvers.engine.variants import with_kv_bits
from solvers.errors import InvalidInput
from solvers.fleet import PoolKey
from solvers.pairing import Domain, Pairing, Pairs
from solvers.plan import Plan
from solvers.planner import desk_for, make_plan
from solvers.planner.menus.min_plus import divided, shared_out
from solvers.planner.model.relax import state
from solvers.problem import Policy, Problem
from solvers.sizing import Unfit, replica_capacity
from solvers.tick import Ticker
from solvers.verify import verify
from solvers.workload import PlacementMode, ServedModel
from tests import fleets, synthetic
from tests.test_against_brute_force import Placed, Tiny, capacity, drawn, hold_to_best, is_bound
from tests.test_limits import cells_of, rows_text

SPLIT = (Role.PREFILL, Role.DECODE)


def planned(problem: Problem, **how: Any) -> Plan:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity, **how)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    return plan


def two_classes(groups: tuple[str, str] = ("", ""), roles: tuple[Role, ...] = SPLIT, **how: Any) -> Problem:
    """A chat service on a rack of H100 and one of L40S, each class's profile in a KV group."""
    fleet = (*fleets.nodes("h100-sxm", 2, "rack-1"), *fleets.nodes("l40s", 2, "rack-2"))
    served = replace(fleets.service("chat", "chat", roles=roles), **how)
    profiles = [
        replace(fleets.profile("chat", name, 1, 8.0), kv_compatibility_group=group)
        for name, group in zip(("h100-sxm", "l40s"), groups, strict=True)
    ]
    return fleets.problem([(served, 6.0)], fleet, profiles)


def classes_of(plan: Plan, role: Role) -> set[str]:
    return {row.pool.gpu_class for row in plan.placements if row.pool.role is role}


def test_a_group_comes_from_profile_service_engine_and_fabric() -> None:
    problem = two_classes(("fp8", ""), kv_compatibility_group="bf16")
    pairing = Pairing.of(problem)
    key = PoolKey(service="default/chat", role=Role.PREFILL, gpu_class="h100-sxm", config=EngineConfig())
    assert pairing.group(key) == "fp8 vllm"
    assert pairing.group(replace(key, gpu_class="l40s")) == "bf16 vllm"
    assert pairing.parted == {"default/chat"}
    apart = {name: replace(kind, kv_fabric=name) for name, kind in problem.gpu_classes.items()}
    by_fabric = Pairing.of(replace(two_classes(), gpu_classes=apart))
    assert by_fabric.group(key) == "vllm h100-sxm"
    assert by_fabric.parted == {"default/chat"}
    assert Pairing.of(two_classes()).parted == frozenset()
    assert Pairing.of(two_classes(("a", "b"), roles=(Role.MIXED,))).parted == frozenset()


def test_other_bits_are_another_group() -> None:
    plain = fleets.profile("chat", "h100-sxm", 1, 8.0)
    assert with_kv_bits(plain, 8).kv_compatibility_group == "kv8"
    assert with_kv_bits(replace(plain, kv_compatibility_group="nixl"), 8).kv_compatibility_group == "nixl-kv8"
    assert with_kv_bits(plain, 16).kv_compatibility_group == ""


def test_what_pairs_carry_is_the_sum_over_domains() -> None:
    one, other = Domain(group="a"), Domain(group="b")
    pairs = Pairs(
        mixed_per_s=1.0, prefill_per_s={one: 5.0, other: 2.0}, decode_per_s={one: 3.0, other: 7.0}, is_parted=True
    )
    assert pairs.able_per_s == 1.0 + 3.0 + 2.0
    assert 5.0 * pairs.share_ratio(Role.PREFILL, one) == pytest.approx(0.5)
    assert 7.0 * pairs.share_ratio(Role.DECODE, other) == pytest.approx(2.0 / 6.0)
    assert pairs.wants(Role.DECODE, one, 7.0) == (1.0, 1.0)  # up to what is asked, and to finish what is begun
    assert pairs.wants(Role.DECODE, other, 8.0) == (0.0, 0.0)
    assert pairs.wants(Role.PREFILL, one, 9.0) == (1.0, 0.0)


def test_pools_of_one_group_change_nothing() -> None:
    free, named = (state(cells_of(two_classes(groups))) for groups in (("", ""), ("x", "x")))
    assert free.rows == named.rows
    assert not {"pairs", "flow"} & {limit for limit, _ in free.rows}


def test_groups_add_a_row_each_over_shares() -> None:
    cells = cells_of(two_classes(("a", "b")))
    text = rows_text(cells, state(cells), "pairs")
    assert re.findall(r"^default/chat .*$", text, re.MULTILINE) == ["default/chat a vllm", "default/chat b vllm"]
    assert "+1 share[default/chat/prefill/h100-sxm/tp1]" in text
    assert "-1 share[default/chat/decode/h100-sxm/tp1]" in text


def test_prefill_and_decode_stay_in_one_group() -> None:
    """Without groups each role takes the class that suits it; with them no class does one role alone."""
    problem = two_classes()
    cheap = {**problem.gpu_classes, "l40s": replace(problem.gpu_classes["l40s"], price_usd_per_hour=0.3)}
    free = planned(replace(problem, gpu_classes=cheap))
    apart = planned(replace(two_classes(("a", "b")), gpu_classes=cheap))
    assert not apart.is_short
    assert classes_of(apart, Role.PREFILL) == classes_of(apart, Role.DECODE)
    assert apart.report.cost_usd_per_hour >= free.report.cost_usd_per_hour * (1.0 - 0.01)


def test_a_plan_across_groups_is_caught() -> None:
    fleet = two_classes(("a", "a"))
    only = {"h100-sxm": (Role.PREFILL,), "l40s": (Role.DECODE,)}

    def table(profile: Any, role: Role, *args: Any, **how: Any) -> Any:
        able = role in only[profile.key.gpu_class]
        return fleets.plain_capacity(profile, role, *args, **how) if able else Unfit(reason="not here")

    plan = make_plan(fleet, capacity_of=table)
    assert verify(plan, fleet) == ()
    faults = verify(plan, two_classes(("a", "b")))
    assert any(f.startswith("pairs[default/chat]: serves 6 requests/s, pairs inside one KV group") for f in faults)
    assert any(f.startswith("pairs[default/chat a vllm]: prefills 1.000000") for f in faults)


class Grouped(Tiny):
    """Pairs only inside the groups of the problem, summed over what can be paired."""

    def limited_per_s(self, service: ServedModel, counts: Placed, able_per_s: float) -> float:
        sizes: dict[PoolKey, int] = {}
        for (pool, _), n in counts.items():
            sizes[pool] = sizes.get(pool, 0) + n
        total, sides = 0.0, dict[tuple[str, str], dict[Role, float]]()
        for (pool, at), n in counts.items():
            if pool.service != service.name:
                continue
            rate = n * capacity(self, pool, sizes[pool])
            if pool.role is Role.MIXED:
                total += rate
                continue
            key = ProfileKey(model=service.model, gpu_class=pool.gpu_class, config=pool.config)
            group = self.problem.profiles[key].kv_compatibility_group
            side = sides.setdefault((group, "" if service.kv_may_cross else at), {})
            side[pool.role] = side.get(pool.role, 0.0) + rate
        return total + sum(min(side.get(Role.PREFILL, 0.0), side.get(Role.DECODE, 0.0)) for side in sides.values())


def grouped(problem: Problem, rng: np.random.Generator) -> Problem:
    """Draw a group for each class, or each size."""
    by_class = rng.random() < 0.7
    profiles = {
        key: replace(profile, kv_compatibility_group=key.gpu_class if by_class else key.config.label)
        for key, profile in problem.profiles.items()
    }
    return replace(problem, profiles=profiles)


@pytest.mark.parametrize(("first", "is_local"), [(11000, False), (11100, True), (11200, True)])
def test_no_counts_in_pairs_are_cheaper_than_the_plan(first: int, is_local: bool) -> None:
    bound = 0
    for seed, case in drawn(first, 30):
        problem = grouped(case.problem, np.random.default_rng(seed)) if first != 11100 else case.problem
        services = tuple(replace(s, kv_may_cross=not is_local) for s in problem.services)
        pairing = Grouped(problem=replace(problem, services=services), table=case.table)
        bound += is_bound(pairing, hold_to_best(pairing, seed))
    assert bound >= 2


def two_racks(**how: Any) -> Problem:
    """A chat service on two like racks of H100."""
    fleet = (*fleets.nodes("h100-sxm", 1, "rack-1"), *fleets.nodes("h100-sxm", 1, "rack-2"))
    served = replace(fleets.service("chat", "chat", roles=SPLIT), **how)
    return fleets.problem([(served, 6.0)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)])


def test_traffic_that_may_not_cross_finds_both_roles_at_each_location() -> None:
    plan = planned(two_racks(kv_may_cross=False))
    assert not plan.is_short
    held = {role: {row.location for row in plan.placements if row.pool.role is role} for role in SPLIT}
    assert held[Role.PREFILL] == held[Role.DECODE]


def test_a_plan_that_crosses_is_caught() -> None:
    plan = planned(two_racks())
    where = dict(zip(SPLIT, ("rack-1", "rack-2"), strict=True))
    placements = {row.pool: replace(row, location=where[row.pool.role]) for row in plan.placements}
    totals = {row.pool: row.replicas for row in plan.pools}
    rows = tuple(sorted(replace(row, replicas=totals[row.pool]) for row in placements.values()))
    apart = replace(plan, placements=rows)
    assert not [fault for fault in verify(apart, two_racks()) if fault.startswith(("pairs", "placements", "gpus"))]
    faults = verify(apart, two_racks(kv_may_cross=False))
    assert any("pairs inside one KV group at one location and mixed replicas carry 0" in fault for fault in faults)
    desk = desk_for(two_racks(kv_may_cross=False), fleets.plain_capacity)
    assert desk.worth({(row.pool, row.location): row.replicas for row in rows}).served_per_s["default/chat"] == 0.0


def test_class_wide_pools_cannot_keep_traffic_at_a_location() -> None:
    with pytest.raises(InvalidInput, match="placement: is Class"):
        planned(two_racks(kv_may_cross=False, placement=PlacementMode.CLASS))


@pytest.mark.parametrize("problem", [two_classes(("a", "b"), tuple(Role)), two_racks(kv_may_cross=False)])
def test_the_tick_serves_what_pairs_carry(problem: Problem) -> None:
    plan = planned(problem)
    tick = Ticker(problem, plan, capacity_of=fleets.plain_capacity).tick()
    assert tick.served_per_s.tolist() == pytest.approx([row.served_requests_per_s for row in plan.services])
    shares = {row.pool: row.demand_ratio for row in plan.pools}
    assert dict(zip(tick.pools, tick.share_ratio.tolist(), strict=True)) == pytest.approx(shares)
    ticked = Ticker(problem, plan, capacity_of=fleets.plain_capacity).tick({"default/chat": 1e6})
    more = {"default/chat": replace(problem.demands["default/chat"], requests_per_s=1e6)}
    desk = desk_for(replace(problem, demands=more), fleets.plain_capacity)
    worth = desk.worth({(row.pool, row.location): row.replicas for row in plan.placements})
    assert ticked.served_per_s[0] == pytest.approx(worth.served_per_s["default/chat"])


def test_load_is_shared_out_at_least_cost() -> None:
    rng = np.random.default_rng(5)
    tables = [np.maximum.accumulate(rng.uniform(0.0, 9.0, 12).round(1)) for _ in range(3)]
    best = [
        min(
            tables[0][a] + tables[1][b] + tables[2][c]
            for a, b, c in itertools.product(range(12), repeat=3)
            if a + b + c >= load
        )
        for load in range(12)
    ]
    assert shared_out(tables).tolist() == pytest.approx(best)
    paid = np.linspace(20.0, 0.0, 12)
    parts = divided(tables, paid)
    cost = sum(table[part] for table, part in zip(tables, parts, strict=True)) + paid[sum(parts)]
    assert cost == pytest.approx(min(np.array(best) + paid))


def test_a_large_fleet_pairs_in_groups_and_at_locations() -> None:
    problem = synthetic.make_problem(
        synthetic.Size(nodes=72, services=2, rows=4, designs=4), 1, load=0.2, policy=Policy(min_saving_ratio=0.0)
    )
    apart = {name: replace(kind, kv_fabric=name) for name, kind in problem.gpu_classes.items()}
    services = tuple(replace(s, roles=SPLIT) for s in problem.services)
    for changed in (
        replace(problem, gpu_classes=apart, services=services),
        replace(problem, services=tuple(replace(s, kv_may_cross=False) for s in services)),
    ):
        plan = make_plan(changed)
        assert verify(plan, changed, capacity_of=replica_capacity) == ()
        assert not plan.is_short
        assert plan.report.gap_ratio < 0.05

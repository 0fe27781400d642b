"""Large fleets under rules: pins, spread, spot nodes and caps, on the road that prices whole services."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from solvers.engine import Role
from solvers.plan import Plan
from solvers.planner import desk_for, make_plan
from solvers.planner.search import HELD_NOTE, Search
from solvers.planner.wide.rules import is_spot
from solvers.planner.wide.stock_taking import build_stocks
from solvers.planner.wide.stocks import Pick
from solvers.planner.wide.ways import WayMaker
from solvers.problem import KvLink, Problem
from solvers.verify import verify
from solvers.workload import Pin
from tests.pair_world import bounded, in_rooms, priced
from tests.test_against_brute_force import TOLERANCE, Tiny, best_by_trying, drawn
from tests.test_links import Linked
from tests.test_pairing import Grouped, grouped
from tests.test_planner_caps import best_by_trying as best_with_caps
from tests.test_planner_caps import drawn as capped_fleets
from tests.test_rules_together import Together, with_rules
from tests.test_wide import drawn as drawn_wide

WORST_GAP = 0.05  # of the smallest wide fleet, where a replica is some percent of the cost


@pytest.mark.parametrize("first", [9000, 9020])
def test_the_bound_lies_below_the_best_of_all_counts_under_all_rules(first: int) -> None:
    """Tiny fleets; the plan itself is equal to the best in most of them, and sound in all."""
    equal = []
    for seed, drawn_case in drawn(first, 20):
        case = Together(problem=with_rules(drawn_case.problem, np.random.default_rng(seed)), table=drawn_case.table)
        _, is_best = beside_the_best(case, seed)
        equal.append(is_best)
    assert sum(equal) > 0.6 * len(equal)


def beside_the_best(case: Tiny, seed: int) -> tuple[Plan, bool]:
    """Plan a tiny fleet as a large one, its bound below the best of all counts and itself not; whether it is equal."""
    plan = make_plan(case.problem, capacity_of=case.capacity_of, wide_gpus=0)
    assert verify(plan, case.problem, capacity_of=case.capacity_of) == ()
    best, found = best_by_trying(case, wide_gpus=0), plan.report.objective_usd_per_hour
    assert plan.report.bound_usd_per_hour <= best * (1.0 + TOLERANCE), seed
    assert found >= best * (1.0 - TOLERANCE), seed
    return plan, found <= best * (1.0 + TOLERANCE)


def pinned(problem: Problem) -> Problem:
    first, *others = problem.services
    return replace(problem, services=(replace(first, pins=(Pin(location=somewhere(problem), replicas=2),)), *others))


def somewhere(problem: Problem) -> str:
    return min(node.location for node in problem.nodes)


def spread(problem: Problem) -> Problem:
    first, second, *others = problem.services
    shared = replace(second, max_share_per_location_ratio=0.5)
    return replace(problem, services=(replace(first, min_locations=3), shared, *others))


def spot(problem: Problem) -> Problem:
    there = sorted({node.location for node in problem.nodes})[::4]
    cheap = tuple(
        replace(node, price_ratio=0.4, reclaims_per_hour=0.05) if node.location in there else node
        for node in problem.nodes
    )
    half, *others = problem.services
    return replace(problem, nodes=cheap, services=(replace(half, max_spot_ratio=0.5), *others))


def capped(problem: Problem) -> Problem:
    return replace(problem, policy=replace(problem.policy, power_caps=True))


def hold_near_the_best(problem: Problem) -> None:
    """Plan the fleet: all is served, within the gap, and the check finds nothing."""
    plan = make_plan(problem)
    assert verify(plan, problem) == ()
    assert not plan.is_short
    assert 0.0 <= plan.report.gap_ratio < WORST_GAP


@pytest.mark.parametrize("rule", [pinned, spread, spot, capped])
def test_a_wide_fleet_under_a_rule_is_sound_and_proved_near_the_best(rule: Callable[[Problem], Problem]) -> None:
    hold_near_the_best(rule(drawn_wide()))


def test_pinned_replicas_carry_load_too() -> None:
    """A pin costs a plan little where the service would need as many replicas anyway."""
    problem = drawn_wide()
    free, held = make_plan(problem), make_plan(pinned(problem))
    there = [row.replicas for row in held.placements if row.location == somewhere(problem)]
    assert sum(there) >= 2
    assert held.report.cost_usd_per_hour < 1.05 * free.report.cost_usd_per_hour


def test_each_pool_of_a_capped_wide_plan_has_one_cap() -> None:
    plan = make_plan(capped(drawn_wide()))
    assert len({row.pool for row in plan.pools}) == len(plan.pools)
    assert all(row.pool.cap_watts == 0.0 for row in plan.pools)


@pytest.mark.parametrize("most", [0.25, 0.5, 0.75, 1.0])
def test_a_way_fills_the_cheaper_spot_nodes_as_far_as_the_service_allows(most: float) -> None:
    problem = spot(drawn_wide())
    service = replace(problem.services[0], max_spot_ratio=most)
    alone = replace(problem, services=(service,), demands={service.name: problem.demands[service.name]})
    made = desk_for(alone)
    cells = Search(desk=made)._cells()
    maker = WayMaker(cells=cells, sizer=made.sizer, stocks=build_stocks(cells))
    (stocks,) = maker.stocks
    mixed = [p for p, role in enumerate(stocks.roles) if role is Role.MIXED]
    carried = {p: partial(made.sizer.carried, maker.option(0, p).pool, maker.option(0, p).profile) for p in mixed}
    pool, size = next(
        (p, n) for p in mixed for n in range(1, stocks.most[p] + 1) if carried[p](n) >= stocks.demand_per_s
    )
    pick = Pick(value_usd_per_hour=0.0, sizes={pool: size}, served_ratio=1.0, wanted=frozenset(), asked_sizes=())
    way = maker.way(0, pick, np.zeros(len(cells.cell_pool)))
    assert way is not None
    assert way.penalty_usd_per_hour == 0.0
    counts = dict(way.replicas)
    there = sum(n for cell, n in counts.items() if is_spot(cells, cell))
    rate = carried[pool](sum(counts.values())) / sum(counts.values())
    must_stay = (1.0 - most) * stocks.demand_per_s
    owned = sum(counts.values()) - there
    assert owned * rate >= must_stay * (1.0 - 1e-9)
    assert (owned - 1) * rate < must_stay, "one more could be on spot nodes"


def test_the_bound_lies_below_the_best_of_all_counts_and_caps() -> None:
    for seed, case in capped_fleets(500, 12):
        plan = make_plan(case.problem, capacity_of=case.capacity_of, wide_gpus=0)
        assert verify(plan, case.problem, capacity_of=case.capacity_of) == ()
        assert plan.report.bound_usd_per_hour <= best_with_caps(case, wide_gpus=0) * (1.0 + TOLERANCE), seed


@pytest.mark.parametrize(("first", "is_local"), [(11000, False), (11100, True), (11200, True)])
def test_the_bound_lies_below_the_best_of_all_counts_in_pairs(first: int, is_local: bool) -> None:
    """KV groups, no crossing, both; most plans are the best of all."""
    equal = []
    for seed, drawn_case in drawn(first, 30):
        problem = grouped(drawn_case.problem, np.random.default_rng(seed)) if first != 11100 else drawn_case.problem
        services = tuple(replace(s, kv_may_cross=not is_local) for s in problem.services)
        case = Grouped(problem=replace(problem, services=services), table=drawn_case.table)
        plan = make_plan(case.problem, capacity_of=case.capacity_of, wide_gpus=0)
        assert verify(plan, case.problem, capacity_of=case.capacity_of) == ()
        best, found = best_by_trying(case, wide_gpus=0), plan.report.objective_usd_per_hour
        assert found >= best * (1.0 - TOLERANCE), seed
        equal.append(found <= best * (1.0 + TOLERANCE))
        if HELD_NOTE not in plan.report.notes:
            assert plan.report.bound_usd_per_hour <= best * (1.0 + TOLERANCE), seed
    assert sum(equal) > 0.6 * len(equal)


@pytest.mark.parametrize(("first", "usd"), [(12000, 1e6), (12100, 5e6)])
def test_the_bound_lies_below_the_best_of_all_counts_over_a_link(first: int, usd: float) -> None:
    equal, crossed = [], 0
    for seed, drawn_case in drawn(first, 30):
        if len(drawn_case.problem.services) > 1:
            continue
        most = float(np.random.default_rng(seed).choice([40.0, 150.0, 1e6]))
        link = KvLink(name="up", locations=("left",), bytes_per_s=most, usd_per_terabyte=usd)
        policy = replace(drawn_case.problem.policy, kv_links=(link,))
        case = Linked(problem=replace(drawn_case.problem, policy=policy), table=drawn_case.table)
        plan, is_best = beside_the_best(case, seed)
        equal.append(is_best)
        crossed += plan.links[0].outgoing_bytes_per_s + plan.links[0].incoming_bytes_per_s > 0.0
    assert sum(equal) > 0.6 * len(equal)
    assert crossed


@pytest.mark.parametrize("rule", [in_rooms, bounded, priced])
def test_a_wide_fleet_whose_pairs_stay_near_is_proved_near_the_best(rule: Callable[[Problem], Problem]) -> None:
    hold_near_the_best(rule(drawn_wide()))


def test_the_same_bytes_where_services_are_searched() -> None:
    problem = bounded(drawn_wide())
    assert repr(make_plan(problem, workers=2, is_isolated=True)) == repr(make_plan(problem))

"""Large fleets: sound plans, true bounds, the same bytes for any number of workers."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from solvers.engine import Role
from solvers.plan import Plan
from solvers.planner import desk_for, make_plan
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.crew import Aside, Crew
from solvers.planner.search import Search
from solvers.planner.wide import wide
from solvers.planner.wide.curve import Curve
from solvers.planner.wide.least_value import least_value
from solvers.planner.wide.stock_taking import build_stocks
from solvers.planner.wide.stocks import Pick, Stocks, choose_kept
from solvers.planner.wide.ways import WayMaker
from solvers.problem import Policy, Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify
from tests import synthetic

SMALL = synthetic.Size(nodes=72, services=4, rows=4, designs=4)  # 576 GPUs: as small as a wide fleet can be
POLICY = Policy(min_saving_ratio=0.0, time_limit_s=600.0)  # seconds depend on who else is at work


def drawn(seed: int = 1, load: float = 0.4) -> Problem:
    return synthetic.make_problem(SMALL, seed, load=load, policy=POLICY)


@pytest.fixture(scope="module")
def planned() -> tuple[Problem, Plan]:
    problem = drawn()
    return problem, make_plan(problem)


def test_a_wide_plan_is_sound_and_proved_near_the_best(planned: tuple[Problem, Plan]) -> None:
    problem, plan = planned
    assert Desk.of(problem, replica_capacity).is_wide
    assert verify(plan, problem) == ()
    assert 0.0 <= plan.report.gap_ratio < 0.05


def test_the_bound_of_a_wide_fleet_lies_below_any_plan(planned: tuple[Problem, Plan]) -> None:
    problem, plan = planned
    greedy = Desk.of(problem, replica_capacity).repaired({})
    assert plan.report.bound_usd_per_hour <= plan.report.objective_usd_per_hour <= greedy.objective_usd_per_hour


def test_the_same_bytes_for_any_number_of_workers(planned: tuple[Problem, Plan]) -> None:
    problem, plan = planned
    assert repr(make_plan(problem)) == repr(plan)
    assert repr(make_plan(problem, workers=2)) == repr(plan)
    assert repr(make_plan(problem, workers=4, is_isolated=True)) == repr(plan)


def test_the_same_bytes_when_much_is_short() -> None:
    problem = drawn(load=1.2)
    assert repr(make_plan(problem, workers=4, is_isolated=True)) == repr(make_plan(problem))


def test_the_same_bytes_when_ways_are_chosen_roughly_and_relief_is_found_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wide, "MOST_DIVED", 0)
    problem = drawn(load=0.9)
    alone, together = make_plan(problem), make_plan(problem, workers=2, is_isolated=True)
    assert alone.relief
    assert repr(together) == repr(alone)


def test_the_same_bytes_when_demand_moves(planned: tuple[Problem, Plan]) -> None:
    moved, plan = synthetic.shifted(*planned, 0.1, seed=3), planned[1]
    alone = make_plan(moved, previous=plan)
    for workers in (2, 4):
        assert repr(make_plan(moved, previous=plan, workers=workers, is_isolated=True)) == repr(alone)


def test_an_early_plan_is_told_and_sound() -> None:
    problem = drawn(seed=2)
    told: list[Plan] = []
    last = make_plan(problem, on_plan=told.append)
    assert [verify(plan, problem) for plan in told] == [()] * len(told)
    assert told
    assert last.report.objective_usd_per_hour <= told[0].report.objective_usd_per_hour * (1.0 + 1e-9)


def test_an_overloaded_wide_fleet_gives_a_sound_short_plan() -> None:
    problem = drawn(load=1.2)
    plan = make_plan(problem)
    assert verify(plan, problem) == ()
    assert plan.is_short
    assert 0.0 <= plan.report.gap_ratio < 0.1


@pytest.mark.parametrize("load", [0.4, 0.6, 0.8, 1.2])
def test_no_wide_plan_is_worse_than_filling_tier_by_tier(load: float) -> None:
    problem = drawn(load=load)
    desk, plan = desk_for(problem), make_plan(problem)
    worth = desk.worth({(row.pool, row.location): row.replicas for row in plan.placements})
    assert not desk.repaired({}).is_better_than(worth)


def test_what_runs_is_counted_in_the_bound(planned: tuple[Problem, Plan]) -> None:
    problem, plan = planned
    moved = synthetic.shifted(problem, plan, 0.1, seed=3)
    again = make_plan(moved, previous=plan)
    assert verify(again, moved) == ()
    assert again.report.gap_ratio < 0.05


def stocks(demand: float, rates: list[float], prices: list[float], most: int) -> Stocks:
    """Mixed pools of one cell each."""
    count = len(rates)
    return Stocks(
        service=0,
        demand_per_s=demand,
        parts=1000,
        every=32,
        unserved_usd_per_hour=1e6,
        fair_ratio=1.0,
        roles=(Role.MIXED,) * count,
        cells=slice(0, count),
        first=np.arange(count + 1),
        base=np.arange(count),
        terms_usd_per_hour=np.zeros(count),
        room=np.full(count, most),
        now=np.zeros(count, dtype=np.int64),
        most=np.full(count, most),
        rate_per_s=np.array(rates),
        run_usd_per_hour=np.array(prices),
        start_usd_per_hour=np.zeros(count),
        stop_usd_per_hour=np.zeros(count),
        stop_all_usd_per_hour=0.0,
    )


def line(rate: float, price: float, most: int) -> Curve:
    sizes = range(1, min(most, 32) + 1)
    return Curve(rate_per_s={n: n * rate for n in sizes}, run_usd_per_hour={n: n * price for n in sizes})


@pytest.mark.parametrize("seed", range(25))
def test_the_least_value_never_lies_above_the_cheapest_whole_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates, prices = rng.uniform(0.5, 4.0, 2).round(2), rng.uniform(1.0, 5.0, 2).round(2)
    demand, most = float(rng.uniform(1.0, 150.0)), 400
    made = stocks(demand, rates.tolist(), prices.tolist(), most)
    asked = rng.uniform(0.0, 1.0, 2)
    unit = prices + asked
    best = min(
        a * unit[0] + max(0, int(np.ceil((demand - a * rates[0]) / rates[1] - 1e-9))) * unit[1] for a in range(most)
    )
    for kept in (frozenset({0, 1}), frozenset({0}), choose_kept(made, asked, frozenset())):
        curves = {p: line(float(rates[p]), float(prices[p]), most) for p in kept}
        pick = least_value(made, curves, kept, asked)
        assert pick.value_usd_per_hour <= best * (1.0 + 1e-9)
        assert pick.value_usd_per_hour >= demand * float((unit / rates).min()) * (1.0 - 1e-2)


def test_a_way_keeps_all_that_runs_before_it_starts_anything() -> None:
    """What runs in a dear place is cheaper than a start in the best place."""
    problem = drawn()
    service = replace(problem.services[0], min_replicas=4)
    demand = replace(problem.demands[service.name], requests_per_s=1e-3)
    plain = replace(problem, services=(service,), demands={service.name: demand})
    cells = Search(desk=desk_for(plain))._cells()
    mixed = [p for p, option in enumerate(cells.pools) if option.pool.role is Role.MIXED]
    pool = next(p for p in mixed if (cells.cell_pool == p).sum() > 1)
    places = [cells.grouping.groups[g].bays[0].location for g in cells.cell_group[cells.cell_pool == pool]]
    running = {(cells.pools[pool].pool, place): n for place, n in zip(places, (1, 3), strict=False)}
    desk = desk_for(replace(plain, running=running))
    cells = Search(desk=desk)._cells()
    maker = WayMaker(cells=cells, sizer=desk.sizer, stocks=build_stocks(cells))
    inside = next(p for p in range(len(maker.stocks[0].roles)) if maker.option(0, p).pool == next(iter(running))[0])
    pick = Pick(value_usd_per_hour=0.0, sizes={inside: 4}, served_ratio=1.0, wanted=frozenset(), asked_sizes=())
    way = maker.way(0, pick, np.zeros(len(cells.cell_pool)))
    assert way is not None
    assert [n for _, n in sorted(way.replicas, key=lambda row: row[1])] == [1, 3]
    assert all(n == maker.stocks[0].now[cell] for cell, n in way.replicas)


def test_a_failed_search_leaves_the_greedy_plan() -> None:
    desk = Desk.of(replace(drawn(), policy=replace(POLICY, time_limit_s=0.0)), replica_capacity)
    search = Search(desk=desk)
    worth = search.run([])
    assert worth.objective_usd_per_hour > 0.0


@pytest.mark.parametrize("weight", [1.0, 5.0])
@pytest.mark.parametrize("missing", [0.5, 3.0, 40.0])
def test_floors_raise_the_least_value_but_never_above_the_cheapest_whole_way(missing: float, weight: float) -> None:
    made = stocks(2.0, [1.0, 3.0], [4.0, 9.0], most=20)
    free = least_value(made, {}, frozenset(), np.zeros(2), weight=weight)
    made = replace(made, floor_replicas=3, floor_usd_per_hour=missing, unserved_usd_per_hour=2.0)
    floored = least_value(made, {}, frozenset(), np.zeros(2), weight=weight)
    best = min(
        4.0 * a + 9.0 * b + weight * (2.0 * missing * max(0, 3 - a - b) + 2.0 * max(0.0, 1.0 - (a + 3.0 * b) / 2.0))
        for a in range(8)
        for b in range(8)
    )
    assert min(12.0, 6.0 * weight * missing) - 1e-9 <= floored.value_usd_per_hour <= best + 1e-9
    part = 2.0 * 3.0 / made.parts  # what a replica carries ends within one
    assert 2.0 * 3.0 - 2.0 * part <= free.value_usd_per_hour  # nothing unserved at a high penalty, at the cheaper rate


def test_pieces_come_back_in_order() -> None:
    work = [(n, 2) for n in range(40)]
    assert Crew(workers=2).each(pow, work) == Crew().each(pow, work) == [n**2 for n in range(40)]


def doubled(parent: int, number: int) -> int:
    """Kill the worker that gets 7; the parent, given the same piece, answers."""
    if number == 7 and os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_pieces_done_beside_come_back_in_order_whenever_they_are_asked_for(workers: int) -> None:
    work = [(n, 2) for n in range(40)]
    begun = [Crew(workers=workers).ahead(pow, work) for _ in range(3)]
    assert [answers() for answers in begun[::-1]] == [[n**2 for n in range(40)]] * 3


def test_what_is_aside_is_done_once_and_raises_where_it_is_asked_for() -> None:
    done: list[int] = []
    aside = Aside(do=lambda: done.append(len(done)))
    crew = Crew(workers=2, aside=aside)
    for _ in range(2):
        with crew.while_solving():
            pass
    aside.answer()
    assert done == [0]
    empty: dict[str, int] = {}
    broken = Aside(do=lambda: empty["nothing"])
    with Crew(workers=2, aside=broken).while_solving():
        pass
    with pytest.raises(KeyError, match="nothing"):
        broken.answer()


def test_alone_what_is_aside_waits_until_it_is_asked_for() -> None:
    done: list[int] = []
    aside = Aside(do=lambda: done.append(1))
    with Crew(aside=aside).while_solving():
        pass
    assert not done
    aside.answer()
    assert done == [1]


def test_a_worker_that_dies_beside_costs_its_work_and_is_counted() -> None:
    crew = Crew(workers=2, is_helping=False)
    answers = crew.ahead(doubled, [(os.getpid(), number) for number in range(40)])
    assert answers() == [2 * n for n in range(40)]
    assert crew.lost > 0


def test_a_worker_that_dies_costs_its_work_and_is_counted() -> None:
    crew = Crew(workers=2, is_helping=False)
    assert crew.each(doubled, [(os.getpid(), number) for number in range(40)]) == [2 * n for n in range(40)]
    assert crew.lost > 0
    sound = Crew(workers=2)
    assert sound.each(doubled, [(os.getpid(), number) for number in (1, 2, 3)]) == [2, 4, 6]
    assert sound.lost == 0


@pytest.mark.parametrize("seed", range(60))
def test_what_lies_between_whole_parts_is_never_asked_too_much(seed: int) -> None:
    """Pools not told apart, or larger than what is, where what stays undone has ends within a part."""
    rng = np.random.default_rng(seed)
    rates, prices = rng.uniform(0.5, 1.5, 2).tolist(), rng.uniform(1.0, 60.0, 2).tolist()
    made = replace(stocks(10.0, rates, prices, most=12), parts=20, every=3, unserved_usd_per_hour=300.0)
    curves = {p: line(rates[p], prices[p], 3) for p in range(2)}
    least = float(rng.uniform(0.0, 200.0))
    penalties = (least, least + float(rng.uniform(0.0, 60.0)))
    ways = [
        (usd, 300.0 * max(0.0, 1.0 - served / 10.0))
        for a in range(13)
        for b in range(13)
        for usd, served in [(a * prices[0] + b * prices[1], a * rates[0] + b * rates[1])]
    ]
    best = min((usd + undone for usd, undone in ways if penalties[0] <= undone <= penalties[1]), default=np.inf)
    for kept in (frozenset[int](), frozenset({0}), frozenset({1}), frozenset({0, 1})):
        found = least_value(made, curves, kept, np.zeros(2), penalties=penalties)
        assert found.value_usd_per_hour <= best + 1e-9

"""Whole ways to run a service: nothing undercuts the bound, what is promised is carried, and prices steer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from solvers.engine import Role
from solvers.planner.menus.compose import Composer
from solvers.planner.menus.menus import Menu, Way, build_menus
from solvers.planner.model.relax import Arrays, solve_linear, solve_whole, state
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.cells import Cells, Floats, build_cells
from solvers.problem import Problem
from tests import fleets


def small(rate: float = 9.0, *, least: int = 0, running: int = 0) -> Problem:
    """One service on two racks of unlike GPUs, few enough sizes to try all."""
    fleet = (*fleets.nodes("h100-sxm", 1, "rack-1", gpus=4), *fleets.nodes("l40s", 1, "rack-2", gpus=4))
    served = fleets.service("chat", "chat", min_replicas=least)
    profiles = [fleets.profile("chat", name, 1, 8.0) for name in ("h100-sxm", "l40s")]
    built = fleets.problem([(served, rate)], fleet, profiles)
    if not running:
        return built
    pool = next(o.pool for o in desk_of(built).options.pools if o.pool.role is Role.MIXED)
    return fleets.problem([(served, rate)], fleet, profiles, running={(pool, "rack-1"): running})


def desk_of(problem: Problem) -> Desk:
    return Desk.of(problem, fleets.plain_capacity)


def menu_of(problem: Problem) -> tuple[Cells, Menu]:
    desk = desk_of(problem)
    cells = build_cells(problem, desk.options)
    menus = build_menus(cells, desk.sizer)
    assert menus is not None
    return cells, menus[0]


def every_way(menu: Menu, prices: Floats) -> list[Way]:
    orders = [shelf.order(prices)[0] for shelf in menu.shelves]
    sizes = itertools.product(*(range(0, len(shelf.carried_per_s)) for shelf in menu.shelves))
    return [way for chosen in sizes if (way := menu.way(chosen, orders)) is not None]


def priced(way: Way, prices: Floats) -> float:
    return way.cost_usd_per_hour + way.penalty_usd_per_hour + float(way.replicas @ prices)


@pytest.mark.parametrize("least", [0, 2])
@pytest.mark.parametrize("running", [0, 2])
@pytest.mark.parametrize("price", [0.0, 3.0])
def test_no_way_undercuts_the_least_value_and_the_cheapest_comes_close(least: int, running: int, price: float) -> None:
    cells, menu = menu_of(small(least=least, running=running))
    prices = np.where(np.arange(len(cells.cell_pool)) % 2 == 0, price, 0.0)
    best = min(priced(way, prices) for way in every_way(menu, prices))
    cheapest = menu.cheapest(prices)
    assert cheapest is not None
    assert menu.least_value(prices) <= best + 1e-9
    assert priced(cheapest, prices) == pytest.approx(best, rel=0.01)


def test_a_finer_grid_never_lowers_the_bound() -> None:
    cells, menu = menu_of(small(7.3))
    asked = np.zeros(len(cells.cell_pool))
    coarse, middle, fine = (menu.least_value(asked, grid) for grid in (50, 500, 5000))
    assert coarse <= middle + 1e-9 <= fine + 2e-9


def test_ways_keep_what_they_have_to_and_say_what_that_costs() -> None:
    problem = small()
    desk = desk_of(problem)
    cells = build_cells(problem, desk.options)
    asked = np.zeros(len(cells.cell_pool))
    free, bound = (build_menus(cells, desk.sizer, least) for least in (None, {0: 2}))
    assert free is not None
    assert bound is not None
    first, second = free[0].cheapest(asked), bound[0].cheapest(asked)
    assert first is not None
    assert second is not None
    assert second.replicas[0] >= 2.0
    assert second.cost_usd_per_hour >= first.cost_usd_per_hour
    assert bound[0].least_value(asked) >= free[0].least_value(asked)


def test_what_runs_is_cheaper_to_keep_than_to_start_and_dearer_to_stop() -> None:
    cells, menu = menu_of(small(running=2))
    nothing = menu.nothing()
    assert nothing is not None
    stop = cells.stop_usd_per_hour(cells.held_pool) @ cells.held_now
    assert nothing.cost_usd_per_hour == pytest.approx(float(stop))
    assert stop > 0.0


def composed(problem: Problem) -> tuple[Arrays, Floats, Composer]:
    desk = desk_of(problem)
    cells = build_cells(problem, desk.options)
    arrays = state(cells)
    relaxed = solve_linear(arrays, time_limit_s=10.0)
    composer = Composer.of(cells, arrays, desk.sizer, gap=0.01, seconds=10.0)
    assert composer is not None
    assert relaxed.duals is not None
    return arrays, relaxed.duals, composer


@pytest.mark.parametrize(("scale", "ratio"), [(0.5, 0.8), (1.0, 0.4), (3.0, 0.35)])
def test_the_bound_of_whole_ways_lies_between_relaxation_and_optimum(scale: float, ratio: float) -> None:
    problem = fleets.demo(scale, budget_ratio=ratio)
    arrays, duals, composer = composed(problem)
    bound = composer.bound(duals, arrays, lambda value: False)
    relaxed = solve_linear(arrays, time_limit_s=10.0).value
    whole = solve_whole(arrays, relative_gap=0.01, time_limit_s=20.0, node_limit=2000)
    assert bound <= whole.value * (1.0 + 1e-6)
    assert bound >= relaxed - 0.02 * abs(relaxed)


def test_any_prices_give_a_bound() -> None:
    problem = fleets.demo(1.0, budget_ratio=0.4)
    arrays, duals, composer = composed(problem)
    best = composer.bound(duals, arrays, lambda value: False)
    rng = fleets.seeded(5)
    for _ in range(5):
        wrong = -np.abs(rng.normal(0.0, 1.0, len(arrays.rows)))
        first = composer.bound(wrong, arrays, lambda value: True)  # the bound at the very first prices
        assert first <= best * 1.02


def test_pools_too_large_for_menus_are_left_to_the_relaxation() -> None:
    fleet = fleets.nodes("h100-sxm", 40, "rack-1")
    served = fleets.service("chat", "chat")
    problem = fleets.problem([(served, 5000.0)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)])
    desk = desk_of(problem)
    assert build_menus(build_cells(problem, desk.options), desk.sizer) is None

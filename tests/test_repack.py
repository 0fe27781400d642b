"""Replicas left over by the greedy order find places where there are any: as many as are worth most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from solvers.engine import EngineConfig, Role
from solvers.errors import SolveFailed
from solvers.fleet import PoolKey, PowerDomain
from solvers.planner import desk_for
from solvers.planner.bays.grouping import limited_bays
from solvers.planner.bays.nodes import Room
from solvers.planner.model.relax import state
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.places import Placed, cell_counts, place
from solvers.planner.placing.repack import Seats, Unit, is_movable, repacked, seats_chosen, unusable, value_of
from solvers.planner.pools.cells import Cells, build_cells
from solvers.problem import Policy, Problem
from solvers.programme import Programme, Solution, solve
from tests import synthetic

FLEET = synthetic.Size(nodes=16, services=4, rows=4, designs=2)
TINY = synthetic.Size(nodes=4, services=1, rows=2, designs=2)


def drawn(seed: int, size: synthetic.Size = FLEET) -> Problem:
    """A fleet whose feeds leave room for odd parts of what its GPUs could draw, alike in racks and rows that are."""
    rng = np.random.default_rng(seed)
    problem = synthetic.make_problem(size, seed, load=0.6, policy=Policy(min_saving_ratio=0.0))
    parts = {words: rng.uniform(0.75, 1.0) for words in (1, 2, 4)}  # site, row-01, row-01-rack-02
    rooms = {d.name: float(round(d.budget_watts * parts[len(d.name.split("-"))])) for d in problem.domains.values()}
    return replace(problem, domains={d: PowerDomain(name=d, budget_watts=watts) for d, watts in rooms.items()})


def drawn_units(problem: Problem, rng: np.random.Generator) -> Iterator[Unit]:
    bays = limited_bays(problem)
    room = Room.of(problem)
    for number, gpus in enumerate(rng.choice([1, 2, 4, 8], size=3, p=[0.2, 0.2, 0.3, 0.3]).tolist()):
        kind = bays[int(rng.integers(len(bays)))].gpu_class
        pool = PoolKey(
            service=f"prod/u{number}", role=Role.DECODE, gpu_class=kind, config=EngineConfig(tensor_parallel=gpus)
        )
        mine = tuple(b for b, bay in enumerate(bays) if bay.gpu_class == kind)
        running = {b: 1 for b in mine if rng.random() < 0.4}
        yield Unit(
            pool=pool,
            gpus=gpus,
            watts=room.extra_watts(pool),
            bays=mine,
            wanted=int(rng.integers(1, 5)),
            worth_usd_per_hour=float(rng.integers(5, 40)),
            keeping_usd_per_hour=float(rng.integers(1, 4)),
            running=running,
        )


def most_worth(units: list[Unit], room: Room) -> float:
    """Every count of every unit at every bay, those that the ledger of room takes in."""
    bays = list(room.bays.values())
    pairs = sorted(((u, b) for u, unit in enumerate(units) for b in unit.bays), key=lambda p: (-units[p[0]].gpus, p))
    best = 0.0
    for counts in product(*(range(units[u].wanted + 1) for u, _ in pairs)):
        seats = {pair: n for pair, n in zip(pairs, counts, strict=True) if n}
        totals = [sum(n for (u, _), n in seats.items() if u == mine) for mine in range(len(units))]
        if any(total > unit.wanted for total, unit in zip(totals, units, strict=True)):
            continue
        if (worth := value_of(units, seats)) <= best:
            continue
        free = room.copy()
        if all(free.take(units[u].pool, bays[b].location, n) == n for (u, b), n in seats.items()):
            best = worth
    return best


@pytest.mark.parametrize("seed", range(25))
def test_seats_are_worth_as_much_as_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = drawn(seed, TINY)
    if seed % 4 == 1:  # where only GPUs run out
        problem = replace(problem, domains={d: replace(feed, budget_watts=1e9) for d, feed in problem.domains.items()})
    units, room = list(drawn_units(problem, rng)), Room.of(problem)
    bays = list(room.bays.values())
    for unit in units:
        room.take(unit.pool, bays[unit.bays[0]].location, seed % 3)  # others that stay where they are
    before = room.copy()
    seats = seats_chosen(units, bays, room.copy(), {}, run=solve, time_limit_s=600.0)
    for (u, b), n in sorted(seats.items(), key=lambda row: -units[row[0][0]].gpus):
        assert room.take(units[u].pool, bays[b].location, n) == n
    assert value_of(units, seats) == pytest.approx(most_worth(units, before), rel=1e-5)


@pytest.fixture(scope="module", params=range(3))
def desk(request: pytest.FixtureRequest) -> Desk:
    return desk_for(drawn(request.param))


def crowded(desk: Desk, seed: int) -> tuple[Cells, np.ndarray]:
    """More of every pool than there is room for, here and there."""
    rng = np.random.default_rng(seed)
    cells = build_cells(desk.problem, desk.options)
    return cells, np.where(rng.random(len(cells.cell_pool)) < 0.2, rng.integers(0, 6, len(cells.cell_pool)), 0.0)


def placed_again(cells: Cells, replicas: np.ndarray, placed: Placed) -> Placed:
    return repacked(cells, replicas, placed, run=solve, time_limit_s=600.0)


def test_no_fewer_are_placed_and_no_pool_has_more_than_it_should(desk: Desk) -> None:
    gained = 0
    for seed in range(12):
        cells, replicas = crowded(desk, seed)
        greedy = place(cells, replicas)
        found = placed_again(cells, replicas, greedy)
        assert not Room.of(desk.problem).take_all(found.counts)
        assert found.left == replicas.sum() - sum(found.counts.values())
        wanted = np.bincount(cells.cell_pool, weights=replicas)
        have = np.bincount(cells.cell_pool, weights=cell_counts(cells, found.counts))
        assert (have <= wanted).all()
        gained += greedy.left > found.left
        assert placed_again(cells, replicas, greedy).counts == found.counts
    assert gained


def test_rows_give_up_what_a_replica_without_a_place_would_take_of_them(desk: Desk) -> None:
    seen = 0
    for seed in range(12):
        cells, replicas = crowded(desk, seed)
        arrays = state(cells)
        placed = placed_again(cells, replicas, place(cells, replicas))
        rows, lost = unusable(cells, arrays, replicas, placed), replicas - cell_counts(cells, placed.counts)
        used = dict(
            zip(arrays.rows, arrays.matrix.tocsr()[:, arrays.columns["replicas"]] @ lost.clip(0.0), strict=True)
        )
        assert all(0.0 < room <= used[row] + 1e-9 for row, room in rows.items())
        assert {limit for limit, _ in rows} <= {"gpus", "power_whole"}
        seen += len(rows)
    assert seen


def test_what_is_free_afterwards_is_what_an_empty_fleet_has_less_what_is_placed(desk: Desk) -> None:
    cells, replicas = crowded(desk, 5)
    found, fresh = placed_again(cells, replicas, place(cells, replicas)), Room.of(desk.problem)
    fresh.take_all(found.counts)
    assert found.room.free_watts == pytest.approx(fresh.free_watts)
    assert {
        bay: {q: n for q, n in held.items() if n} for bay, held in found.room.held.items() if any(held.values())
    } == {bay: held for bay, held in fresh.held.items() if held}


def test_a_solver_that_fails_leaves_the_greedy_places(desk: Desk) -> None:
    def failing(programme: Programme) -> Solution:
        raise SolveFailed("it died")

    cells, replicas = crowded(desk, 3)
    greedy = place(cells, replicas)
    assert repacked(cells, replicas, greedy, run=failing, time_limit_s=600.0) is greedy


def test_services_that_care_for_places_stay_where_they_are(desk: Desk) -> None:
    services = tuple(replace(service, min_locations=2) for service in desk.problem.services)
    problem = replace(desk.problem, services=services)
    cells = build_cells(problem, desk_for(problem).options)
    assert not any(is_movable(cells, c) for c in range(len(cells.cell_pool)))
    replicas = np.full(len(cells.cell_pool), 2.0)
    greedy = place(cells, replicas)
    assert greedy.left
    assert placed_again(cells, replicas, greedy) is greedy


def test_what_runs_stays_where_nothing_is_gained_by_moving_it() -> None:
    problem = drawn(2, TINY)
    room = Room.of(problem)
    bays = list(room.bays.values())
    pool = PoolKey(
        service="prod/a", role=Role.MIXED, gpu_class=bays[-1].gpu_class, config=EngineConfig(tensor_parallel=1)
    )
    mine = tuple(b for b, bay in enumerate(bays) if bay.gpu_class == pool.gpu_class)
    unit = Unit(
        pool=pool,
        gpus=1,
        watts=room.extra_watts(pool),
        bays=mine,
        wanted=1,
        worth_usd_per_hour=10.0,
        keeping_usd_per_hour=1.0,
        running={mine[-1]: 1},
    )
    before: Seats = {(0, mine[0]): 1}
    assert seats_chosen([unit], bays, room, before, run=solve, time_limit_s=600.0) == {(0, mine[-1]): 1}

"""Ways chosen by moves: one of each service, improved one and two at a time, beside every choice of tiny tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp

from solvers.planner import desk_for
from solvers.planner.model.relax import Arrays, solve_linear
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.cells import Floats, Ints
from solvers.planner.wide.moves import moved
from solvers.planner.wide.whole import choose_soon
from solvers.planner.wide.wide import Wide
from tests.test_wide_beside import cost_of
from tests.wide_world import priced, short_fleet


def choice_of(cost: Floats, used: Floats, services: Ints, room: Floats) -> Arrays:
    """One way for each service, (W,), inside the room, (R,), that ways take, (R, W)."""
    count = int(services.max()) + 1
    one = sp.csr_array((np.ones(len(cost)), (services, np.arange(len(cost)))), shape=(count, len(cost)))
    return Arrays(
        cost=cost,
        matrix=sp.csc_array(sp.vstack([one, sp.csr_array(used)])),
        row_lower=np.concatenate([np.ones(count), np.full(len(room), -np.inf)]),
        row_upper=np.concatenate([np.ones(count), room]),
        lower=np.zeros(len(cost)),
        upper=np.ones(len(cost)),
        whole=np.full(len(cost), True),
        columns={},
        rows=(),
    )


def drawn(seed: int) -> tuple[Arrays, Ints]:
    """Four services of four ways: the more room one takes, the less it costs; the first of each takes none."""
    rng = np.random.default_rng(seed)
    services = np.repeat(np.arange(4), 4)
    used = rng.integers(1, 9, (3, 16)).astype(float) * (np.arange(16) % 4 > 0)
    cost = 100.0 - 3.0 * used.sum(axis=0) + rng.uniform(0.0, 5.0, 16)
    return choice_of(cost, used, services, np.array([14.0, 15.0, 16.0])), services


def sound_choices(choice: Arrays, services: Ints) -> list[tuple[float, list[int]]]:
    """Cost and ways of every choice that fits, the cheapest first."""
    used, room = choice.matrix.toarray()[4:], choice.row_upper[4:]
    every = (list(ways) for ways in product(*(np.flatnonzero(services == s).tolist() for s in range(4))))
    return sorted((float(choice.cost[ways].sum()), ways) for ways in every if (used[:, ways].sum(axis=1) <= room).all())


@pytest.mark.parametrize("seed", range(30))
def test_no_change_of_one_or_two_ways_would_do_better(seed: int) -> None:
    choice, services = drawn(seed)
    relaxed = solve_linear(choice, time_limit_s=60.0)
    ways = moved(choice, services, relaxed.x, np.full(3, 3.0))[-1]
    sound = sound_choices(choice, services)
    assert services[ways].tolist() == [0, 1, 2, 3]
    cost = float(choice.cost[ways].sum())
    assert (cost, ways) in sound
    near = [other for other, held in sound if sum(a != b for a, b in zip(ways, held, strict=True)) <= 2]
    assert cost <= min(near) + 1e-6


def test_nearly_all_tiny_choices_are_within_a_twentieth_of_the_best() -> None:
    over = []
    for seed in range(60):
        choice, services = drawn(seed)
        relaxed = solve_linear(choice, time_limit_s=60.0)
        ways = moved(choice, services, relaxed.x, np.full(3, 3.0))[-1]
        best = sound_choices(choice, services)[0][0]
        over.append(float(choice.cost[ways].sum()) / best - 1.0)
    assert min(over) == pytest.approx(0.0, abs=1e-9)
    assert sum(part <= 0.05 for part in over) >= 57


def test_a_pair_is_changed_where_no_single_change_helps() -> None:
    """The second service can only have its good way once the first gives up the room for it."""
    cost, used = np.array([0.0, 4.0, 20.0, 0.0]), np.array([[2.0, 0.0, 0.0, 2.0]])
    choice = choice_of(cost, used, np.array([0, 0, 1, 1]), np.array([2.0]))
    held = np.array([1.0, 0.0, 1.0, 0.0])
    assert moved(choice, np.array([0, 0, 1, 1]), held, np.array([50.0])) == [[1, 3]]


def test_what_takes_a_little_too_much_comes_before_what_takes_none() -> None:
    """Paid at ten times its price the missing unit is worth having; at a hundred times it is not."""
    cost, used = np.array([0.0, 50.0]), np.array([[3.0, 1.0]])
    choice = choice_of(cost, used, np.array([0, 0]), np.array([2.0]))
    assert moved(choice, np.array([0, 0]), np.array([1.0, 0.0]), np.array([1.0])) == [[0], [1]]


@pytest.fixture(scope="module")
def made() -> tuple[Desk, Wide]:
    """A short fleet's ways at prices, tiers held at what filling leaves them short of."""
    desk = desk_for(short_fleet())
    wide = priced(desk)
    wide.hold(desk.repaired({}))
    return desk, wide


def test_soon_a_way_of_each_service_is_chosen_cheaper_than_by_filling(made: tuple[Desk, Wide]) -> None:
    desk, wide = made
    known = list(wide.table.ways)
    choices = choose_soon(wide)
    assert wide.table.ways == known  # what is made to fit is not remembered
    for replicas in choices:
        assert [way.service for way in wide.maker.of_counts(replicas)] == list(range(len(wide.stocks)))
    usd = [cost_of(wide, replicas) for replicas in choices]
    assert usd == sorted(usd)
    assert wide.best <= usd[-1] < desk.repaired({}).objective_usd_per_hour
    assert (wide.shared @ choices[-1] <= wide.room * (1.0 + 1e-6) + 1e-6).all()


def test_the_same_choice_whatever_else_was_looked_at(made: tuple[Desk, Wide]) -> None:
    wide = made[1]
    first = choose_soon(wide)
    again = choose_soon(replace(wide, table=wide.table.apart()))
    assert [one.tolist() for one in again] == [one.tolist() for one in first]

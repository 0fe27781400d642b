"""Replicas that what runs leaves no place to get one first; nobody gets more than asked for, and no room is passed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import pytest

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.planner import desk_for
from solvers.planner.bays.nodes import Room
from solvers.planner.placing.places import Placed, cell_counts, place
from solvers.planner.placing.repack import worth_usd_per_hour
from solvers.planner.placing.urgent import placed_urgent_first
from solvers.planner.pools.cells import Cells, build_cells
from solvers.workload import Pin
from tests import fleets
from tests.test_repack import drawn


@pytest.fixture(scope="module")
def cells() -> Cells:
    """A fleet on which a small replica runs in every bay."""
    problem = drawn(2)
    options, room = desk_for(problem).options, Room.of(problem)
    small, running = [option.pool for option in options.pools if option.gpus <= 2], dict[tuple[PoolKey, str], int]()
    for bay in room.bays.values():
        able = (pool for pool in small if pool.gpu_class == bay.gpu_class and room.take(pool, bay.location, 1))
        running |= {(pool, bay.location): 1 for pool in islice(able, 1)}
    return build_cells(replace(problem, running=running), options, split_running=False)


def asked(cells: Cells, seed: int) -> np.ndarray:
    """What runs, and more of large pools than there is room for, here and there."""
    rng = np.random.default_rng(seed)
    large = np.array([option.gpus >= 4 for option in cells.pools])[cells.cell_pool]
    some = np.where(large & (rng.random(len(large)) < 0.2), rng.integers(0, 4, len(large)), 0.0)
    return np.asarray(some + cell_counts(cells, cells.problem.running))


def without_place(cells: Cells, replicas: np.ndarray, placed: Placed) -> float:
    """What replicas without a place would bring."""
    worth = np.array([worth_usd_per_hour(cells, p) for p in range(len(cells.pools))])[cells.cell_pool]
    return float(np.maximum(0.0, replicas - cell_counts(cells, placed.counts)) @ worth)


def test_less_worth_stays_without_a_place_and_what_is_placed_fits(cells: Cells) -> None:
    gained = 0
    for seed in range(12):
        replicas = asked(cells, seed)
        plain = place(cells, replicas)
        found = placed_urgent_first(cells, replicas, plain, partial(place, cells, replicas, None))
        assert not Room.of(cells.problem).take_all(found.counts)
        assert (cell_counts(cells, found.counts) <= replicas).all()
        assert found.left == replicas.sum() - sum(found.counts.values())
        assert without_place(cells, replicas, found) <= without_place(cells, replicas, plain)
        gained += without_place(cells, replicas, found) < without_place(cells, replicas, plain)
    assert gained


def test_what_has_its_place_stays_as_it_is(cells: Cells) -> None:
    replicas = cell_counts(cells, cells.problem.running)
    plain = place(cells, replicas)
    assert not plain.left
    assert placed_urgent_first(cells, replicas, plain, partial(place, cells, replicas, None)) is plain


def test_what_is_as_good_as_before_is_left_as_it_was(cells: Cells) -> None:
    replicas = asked(cells, 0)
    plain = place(cells, replicas)
    assert plain.left
    assert placed_urgent_first(cells, replicas, plain, lambda first: replace(plain)) is plain


def test_who_may_not_stand_just_anywhere_is_given_no_place_before_others(cells: Cells) -> None:
    replicas, told = asked(cells, 0), list[Mapping[int, int]]()

    def again(first: Mapping[int, int]) -> Placed:
        told.append(first)
        return plain

    plain = place(cells, replicas)
    placed_urgent_first(cells, replicas, plain, again)
    owners = {c: int(cells.pool_service[cells.cell_pool[c]]) for c in told[0]}
    pinned = set(owners.values()).pop()
    services = [replace(s, pins=(Pin(location="a"),)) if i == pinned else s for i, s in enumerate(cells.services)]
    placed_urgent_first(replace(cells, services=tuple(services)), replicas, plain, again)
    assert told[1] == {c: n for c, n in told[0].items() if owners[c] != pinned}


def test_only_those_that_are_said_come_before_what_runs() -> None:
    """A node of eight GPUs, two of them in use, and two replicas of four: the first may have the place of what runs."""
    small, large = (fleets.profile("chat", "h100-sxm", gpus, 8.0) for gpus in (1, 4))
    service = fleets.service("chat", "chat", roles=(Role.MIXED,))
    pool = PoolKey(service=service.name, role=Role.MIXED, gpu_class="h100-sxm", config=small.key.config)
    fleet = fleets.nodes("h100-sxm", 1, "rack-a")
    problem = fleets.problem([(service, 50.0)], fleet, [small, large], running={(pool, "rack-a"): 5})
    cells = build_cells(problem, desk_for(problem).options, split_running=False)
    of = {cells.pools[p].gpus: c for c, p in enumerate(cells.cell_pool.tolist())}
    replicas = np.zeros(len(cells.cell_pool))
    replicas[of[1]], replicas[of[4]] = 5.0, 2.0

    def standing(first: Mapping[int, int] | None) -> dict[int, int]:
        return {pool.config.gpus: count for (pool, _), count in place(cells, replicas, None, first).counts.items()}

    assert standing(None) == {1: 5}
    assert standing({of[4]: 1}) == {4: 1, 1: 4}
    assert standing({of[4]: 2}) == {4: 2}

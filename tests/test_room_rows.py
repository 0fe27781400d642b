"""Rows of single bays and domains say just what the ledger of room takes in."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from solvers.engine import EngineConfig, Role
from solvers.fleet import PoolKey
from solvers.planner.bays.nodes import Room
from solvers.planner.placing.room_rows import Row, Stand, group_rows, watt_rows
from solvers.programme import stacked
from tests import fleets, synthetic
from tests.test_repack import TINY, drawn

MOST_EACH = 3  # replicas of a pool in a bay
SIZES = (1, 2, 4, 8)


def standing(room: Room, rng: np.random.Generator) -> dict[PoolKey, Stand]:
    """Three pools of different sizes in the bay of one location."""
    key = sorted(room.bays)[int(rng.integers(len(room.bays)))]
    config = [EngineConfig(tensor_parallel=int(gpus)) for gpus in rng.choice(SIZES, 3, replace=False)]
    pools = [PoolKey(service="prod/a", role=Role.MIXED, gpu_class=key[1], config=each) for each in config]
    return {
        pool: Stand(column=at, bay=room.bays[key], gpus=pool.config.gpus, watts=room.extra_watts(pool))
        for at, pool in enumerate(pools)
    }


def drawn_room(seed: int, rng: np.random.Generator) -> Room:
    """What a tiny fleet has left beside a few replicas, its feeds full or nearly so."""
    room = Room.of(drawn(seed, TINY))
    for (location, gpu_class), gpus in zip(sorted(room.bays), rng.choice(SIZES, len(room.bays)), strict=True):
        held = PoolKey(
            service="prod/b", role=Role.MIXED, gpu_class=gpu_class, config=EngineConfig(tensor_parallel=int(gpus))
        )
        room.take(held, location, int(rng.integers(3)))
    return room


def keeps(rows: list[Row], counts: tuple[int, ...]) -> bool:
    return all(sum(value * counts[c] for c, value in row.items()) <= most + 1e-9 for row, most in rows)


@pytest.mark.parametrize("seed", range(12))
def test_counts_that_keep_the_rows_are_those_that_the_ledger_takes_in(seed: int) -> None:
    rng = np.random.default_rng(seed)
    room = drawn_room(seed, rng)
    stands = standing(room, rng)
    rows = [*group_rows(stands.values(), room), *watt_rows(stands.values(), room, are_whole=False)]
    told = 0
    for counts in product(range(MOST_EACH + 1), repeat=len(stands)):
        free = room.copy()
        by_size = sorted(zip(stands, counts, strict=True), key=lambda row: -row[0].config.gpus)
        fits = all(free.take(pool, stands[pool].bay.location, n) == n for pool, n in by_size)
        assert keeps(rows, counts) == fits
        told += fits
    assert told < (MOST_EACH + 1) ** len(stands)  # something runs out


@pytest.mark.parametrize("seed", range(12))
def test_whole_counts_that_keep_the_watts_of_a_domain_keep_them_by_the_replica(seed: int) -> None:
    rng = np.random.default_rng(seed)
    room = drawn_room(seed, rng)
    stands = list(standing(room, rng).values())
    plain, more = (list(watt_rows(stands, room, are_whole=are_whole)) for are_whole in (False, True))
    assert [row for row in more if row in plain] == plain
    assert len(more) > len(plain)
    for counts in product(range(MOST_EACH + 1), repeat=len(stands)):
        assert keeps(plain, counts) == keeps(more, counts)


def test_watts_come_in_whole_replicas_of_each_size() -> None:
    room = Room.of(drawn(1, TINY))
    bay = replace(next(iter(room.bays.values())), charged=("feed",))
    room.free_watts["feed"] = 2500.0
    stands = [Stand(column=at, bay=bay, gpus=1, watts=watts) for at, watts in enumerate((400.0, 1000.0, 2.0))]
    assert list(watt_rows(stands, room, are_whole=True)) == [
        ({0: 0.4, 1: 1.0, 2: 0.002}, 2.5),
        ({0: 1.0, 1: 2.0}, 6.0),  # by 2 W a thousand and more would fit, which tells nothing
        ({1: 1.0}, 2.0),
    ]


def test_watts_for_a_whole_number_of_replicas_are_enough_for_it_however_they_were_rounded() -> None:
    room = Room.of(drawn(1, TINY))
    bay = replace(next(iter(room.bays.values())), charged=("feed",))
    room.free_watts["feed"] = 0.3  # divided by 0.1 it is a little less than three
    (_, whole) = watt_rows([Stand(column=0, bay=bay, gpus=1, watts=0.1)], room, are_whole=True)
    assert whole == ({0: 1.0}, 3.0)


def test_what_stays_is_counted_in_groups_of_its_own_size_too() -> None:
    profiles = [fleets.profile("chat", "h100-sxm", gpus, 8.0) for gpus in (4, 8)]
    fleet = fleets.nodes("h100-sxm", 2, "rack-a")
    room = Room.of(fleets.problem([(fleets.service("chat", "chat"), 1.0)], fleet, profiles))
    stand = Stand(column=0, bay=room.bays["rack-a", "h100-sxm"], gpus=8, watts=0.0)
    held = PoolKey(service="prod/b", role=Role.MIXED, gpu_class="h100-sxm", config=profiles[0].key.config)
    for count, most in ((0, 2), (1, 1), (3, 0)):
        free = room.copy()
        assert free.take(held, "rack-a", count) == count
        rows = list(group_rows([stand], free))
        assert [keeps(rows, (n,)) for n in range(3)] == [n <= most for n in range(3)]


def test_rows_stand_in_the_matrix_in_their_order() -> None:
    assert stacked([{2: 1.0, 0: -1.0}, {1: 0.5}], 4).toarray().tolist() == [[-1.0, 0.0, 1.0, 0.0], [0.0, 0.5, 0.0, 0.0]]


def test_bays_and_domains_have_rows_of_their_own() -> None:
    room = Room.of(synthetic.make_problem(TINY, 1))
    pool = PoolKey(service="prod/a", role=Role.MIXED, gpu_class=sorted(room.bays)[0][1], config=EngineConfig())
    mine = [bay for bay in room.bays.values() if bay.gpu_class == pool.gpu_class]
    watts = room.extra_watts(pool)
    stands = [Stand(column=at, bay=bay, gpus=1, watts=watts) for at, bay in enumerate(mine)]
    assert [list(row) for row, _ in group_rows(stands, room)] == [[at] for at in range(len(mine))]
    assert [most for _, most in group_rows(stands, room)] == [bay.slots(1) for bay in mine]
    charged = sorted({domain for bay in mine for domain in bay.charged})
    assert [list(row) for row, _ in watt_rows(stands, room, are_whole=False)] == [
        [at for at, bay in enumerate(mine) if domain in bay.charged] for domain in charged
    ]

"""Places for prefill and decode that pair where they stand: as good as trying all counts, and nothing is passed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest

from solvers.engine import Role
from solvers.errors import SolveFailed
from solvers.fleet import PoolKey
from solvers.planner.bays.nodes import Room
from solvers.planner.placing.pair_seats import GAP, Seat, Seating, seated_by_pairs
from solvers.programme import Programme, Solution, solve
from tests import fleets

RACKS = ("rack-a", "rack-b")
SIZES = {Role.PREFILL: 1, Role.DECODE: 2}  # GPUs of a replica
REPLICA_WATTS = 700.0 + 150.0 - 70.0  # of a GPU beyond what it draws idle
MOST = 3

Counts = Mapping[tuple[PoolKey, str], int]


@dataclass(slots=True, kw_only=True)
class Seen:
    """Solves, and keeps what came of it."""

    flow_per_s: float = 0.0

    def __call__(self, programme: Programme) -> Solution:
        solution = solve(programme)
        self.flow_per_s = -solution.value
        return solution


def drawn(seed: int) -> Seating:
    """Two racks of five to eight GPUs, some of them in use, and watts that often bind."""
    rng = np.random.default_rng(seed)
    fleet = [node for at in RACKS for node in fleets.nodes("h100-sxm", 1, at, gpus=int(rng.integers(4, 8)))]
    idle, asked = 70.0 * sum(node.gpus_total for node in fleet), float(rng.integers(4, 12))
    service = fleets.service("chat", "chat", roles=tuple(SIZES))
    profiles = [fleets.profile("chat", "h100-sxm", gpus, 8.0) for gpus in SIZES.values()]
    budgets = {"site": idle + REPLICA_WATTS * asked}
    room = Room.of(fleets.problem([(service, 1.0)], fleet, profiles, budgets=budgets))
    pools = {
        role: PoolKey(service=service.name, role=role, gpu_class="h100-sxm", config=profiles[i].key.config)
        for i, role in enumerate(SIZES)
    }
    for at in RACKS:
        room.take(pools[Role.PREFILL], at, int(rng.integers(0, 3)))
    seats = [
        Seat(
            pool=pool,
            role=index,
            rate_per_s=float(rng.uniform(1.0, 3.0)),
            most=int(rng.integers(1, MOST + 1)),
            bays=tuple(room.bays.values()),
        )
        for index, pool in enumerate(pools.values())
    ]
    before = {at: (float(rng.uniform(0.0, 2.0)), float(rng.uniform(0.0, 2.0))) for at in RACKS[: rng.integers(0, 3)]}
    return Seating(seats=seats, before=before, room=room, start={}, wanted_per_s=float(rng.uniform(2.0, 14.0)))


def all_counts(seating: Seating) -> Iterator[Counts]:
    """All that the seats allow and the room takes."""
    keys = [(seat.pool, bay.location) for seat in seating.seats for bay in seat.bays]
    most = [seat.most for seat in seating.seats for _ in seat.bays]
    for found in product(*(range(count + 1) for count in most)):
        counts = dict(zip(keys, found, strict=True))
        if is_allowed(seating, counts):
            yield counts


def is_allowed(seating: Seating, counts: Counts) -> bool:
    in_all = [sum(n for (pool, _), n in counts.items() if pool == seat.pool) for seat in seating.seats]
    return all(n <= seat.most for n, seat in zip(in_all, seating.seats, strict=True)) and not (
        seating.room.copy().take_all(counts)
    )


def paired_per_s(seating: Seating, counts: Counts) -> float:
    """What pairs carry at all places together."""
    total = 0.0
    for at in RACKS:
        able = list(seating.before.get(at, (0.0, 0.0)))
        for seat in seating.seats:
            able[seat.role] += seat.rate_per_s * counts.get((seat.pool, at), 0)
        total += min(able)
    return total


@pytest.mark.parametrize("seed", range(25))
def test_pairs_carry_as_much_as_by_the_best_of_all_counts_or_all_that_is_wanted(seed: int) -> None:
    seating, run = drawn(seed), Seen()
    found = seated_by_pairs(seating, run=run, time_limit_s=60.0)
    best = min(seating.wanted_per_s, max(paired_per_s(seating, counts) for counts in all_counts(seating)))
    assert is_allowed(seating, found)
    assert paired_per_s(seating, found) >= best * (1.0 - 2.0 * GAP)
    assert run.flow_per_s == pytest.approx(best, rel=1e-5)  # no more than is wanted


@pytest.mark.parametrize("fault", [SolveFailed, ZeroDivisionError])
def test_where_nothing_is_found_all_stand_where_they_stood(fault: type[Exception]) -> None:
    def failing(programme: Programme) -> Solution:
        raise fault("no solution")

    seating = drawn(0)
    start = {(seating.seats[0].pool, "rack-a"): 1}
    assert seated_by_pairs(replace(seating, start=start), run=failing, time_limit_s=60.0) == start

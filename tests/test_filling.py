"""Filling: the blocks that are added, checked by looking at every size, and where there is room for any."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from solvers.fleet import ANYWHERE
from solvers.planner import desk_for
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.rounding import _Growing
from solvers.planner.pools.options import PoolOption
from tests.wide_world import short_fleet

MOST = 60  # replicas that are looked at one by one


@pytest.fixture(scope="module")
def desk() -> Desk:
    return desk_for(short_fleet())


def growing(desk: Desk) -> Iterator[tuple[_Growing, PoolOption]]:
    """A few pools of each service."""
    room, options = desk.empty_room(), desk.fill_options()
    for service in desk.problem.services:
        one = _Growing(problem=desk.problem, sizer=desk.sizer, options=options, room=room, service=service, counts={})
        for option in options.of(service.name)[::3]:
            yield one, option


@pytest.mark.parametrize("now", [0, 1, 7])
def test_no_fewer_replicas_carry_what_is_wanted(now: int, desk: Desk) -> None:
    looked = 0
    for one, option in growing(desk):
        limit = min(option.most, MOST) - now
        carried = [one._carried(option, now + n) for n in range(limit + 1)]
        for share in (0.01, 0.3, 0.77, 1.0, 1.2) if limit > 0 else ():
            target = carried[0] + share * (carried[-1] - carried[0])
            enough = next((n for n, rate in enumerate(carried) if n and rate >= target), limit)
            assert one._enough(option, now, target, limit) == enough
            looked += enough > 1
    assert looked > 20


def test_from_nothing_no_block_of_another_size_is_cheaper(desk: Desk) -> None:
    looked = 0
    for one, option in growing(desk):
        most = min(option.most, MOST)
        carried = [one._carried(option, n) for n in range(most + 1)]
        for shares in ((0.4, 0.0), (0.2, 0.7), (2.0, 0.1)):
            wanted = [share * carried[most] for share in shares]
            useful = [sum(min(rate, want) for want in wanted) for rate in carried]
            least = min(n * option.price_usd_per_hour / useful[n] for n in range(1, most + 1) if useful[n] > 0.0)
            block = one._block(option, wanted, {}, "", most)
            assert block is not None
            assert block.usd_per_request_per_s <= least * (1.0 + 1e-9)
            looked += block.replicas > 1
    assert looked > 20


def test_there_is_room_where_some_bay_has_some(desk: Desk) -> None:
    room, pools, seen = desk.empty_room(), [option for _, option in growing(desk)], set[bool]()
    for step in range(40):
        for option in pools:
            where = ANYWHERE if option.is_anywhere else None
            bays = room.bays_of(option.pool)
            has = any(room.room(option.pool, where or bay.location, bay) > 0 for bay in bays)
            assert room.has_room(option.pool, where) is has
            seen.add(has)
        grown = pools[step % len(pools)]
        room.spread(grown.pool, 200, room.bays_of(grown.pool), ANYWHERE if grown.is_anywhere else None)
    assert seen == {True, False}


def test_what_has_no_room_is_not_sized(desk: Desk) -> None:
    """Its price is infinite; with room it is what its largest useful size says at most."""
    room, options = desk.empty_room(), desk.fill_options()
    service = desk.problem.services[0]
    one = _Growing(problem=desk.problem, sizer=desk.sizer, options=options, room=room, service=service, counts={})
    option = options.of(service.name)[0]
    assert 0.0 < one._least_price(option, {}) < math.inf
    while room.spread(option.pool, 1000, room.bays_of(option.pool)):
        pass
    assert one._least_price(option, {}) == math.inf
    block = one._cheapest_block({}, {}, set())
    assert block is None or block.option.pool.gpu_class != option.pool.gpu_class or block.option.gpus != option.gpus

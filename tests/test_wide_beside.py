"""One service in full beside ways of all others: nothing that is shared is overfull, and nothing found is dearer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from solvers.fleet import PoolKey
from solvers.planner import desk_for
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.cells import Floats
from solvers.planner.wide.beside import MOST_WAYS, Beside
from solvers.planner.wide.whole import choose
from solvers.planner.wide.wide import Wide
from solvers.problem import Problem
from tests import synthetic
from tests.pair_world import EVERY, bounded, by_fabric
from tests.wide_world import POLICY, SIZE, priced

MORE = 0.01  # of a plan's cost, what sizes draw and carry, of which the model knows the best, may add
PLACED = [s for s in range(SIZE.services) if s % EVERY == 0]  # services of prefill and decode alone


def cost_of(wide: Wide, replicas: Floats) -> float:
    return sum(way.cost_usd_per_hour + way.penalty_usd_per_hour for way in wide.maker.of_counts(replicas))


@pytest.fixture(scope="module", params=[by_fabric, bounded])
def made(request: pytest.FixtureRequest) -> tuple[Desk, Wide, Floats]:
    """A fleet's desk and priced ways, and what is chosen of these."""
    world: Callable[[Problem], Problem] = request.param
    desk = desk_for(world(synthetic.make_problem(SIZE, 2, load=0.4, policy=POLICY)))
    wide = priced(desk)
    return desk, wide, choose(wide, desk.repaired({}))


def begun(made: tuple[Desk, Wide, Floats]) -> Beside:
    desk, wide, held = made
    return Beside.of(wide, desk.worth(counts_of(wide, held)))


def test_a_service_in_full_takes_what_is_left_and_costs_no_more(made: tuple[Desk, Wide, Floats]) -> None:
    (_, wide, held), beside = made, begun(made)
    rows = slice(0, wide.table.first_link)  # what crosses is counted by way
    costs = []
    for service in beside.in_turn():
        found = beside.chosen(service)
        assert (wide.shared @ found[0] <= wide.room * (1.0 + 1e-6) + 1e-6)[rows].all()
        costs += [cost_of(wide, replicas) for replicas in found]
    assert min(costs) <= cost_of(wide, held) * (1.0 + MORE)


def test_services_whose_pairs_depend_on_places_come_in_turn_by_what_they_leave_open(
    made: tuple[Desk, Wide, Floats],
) -> None:
    beside = begun(made)
    parted = {s for s, stocks in enumerate(beside.wide.stocks) if len(stocks.pair_groups) > 1}
    sided = {s for s, side in enumerate(beside.wide.sides) if side is not None}
    assert set(PLACED) <= set(beside.in_turn()) == parted | sided
    assert bool(parted) != bool(sided)
    over = np.ones(len(beside.over_usd_per_hour))
    for first in beside.in_turn():
        over[beside.held] = 1.0
        over[beside.held[first]] = 2.0
        other = replace(beside, over_usd_per_hour=over)
        assert other.in_turn() == [first, *(s for s in sorted(beside.in_turn()) if s != first)]
    wide = replace(beside.wide, stocks=[replace(s, demand_per_s=0.0) for s in beside.wide.stocks])
    assert replace(beside, wide=wide).in_turn() == []


def test_others_have_their_own_ways_and_those_nearest_in_price(made: tuple[Desk, Wide, Floats]) -> None:
    beside = begun(made)
    of, over = beside.wide.table.service[: len(beside.over_usd_per_hour)], beside.over_usd_per_hour
    for service in PLACED:
        among, own = beside._among(service), np.delete(beside.held, service).tolist()
        assert service not in set(of[among].tolist())
        dear = np.where(np.isin(np.arange(len(over)), own), over.max() + 1.0, over)
        assert set(own) <= set(among) & set(replace(beside, over_usd_per_hour=dear)._among(service))
        for other in set(range(SIZE.services)) - {service}:
            mine = np.flatnonzero(of == other)
            taken = [w for w in among if of[w] == other and w != beside.held[other]]
            left = np.setdiff1d(mine, among)
            assert len(taken) <= MOST_WAYS
            assert not len(left) or max(over[taken]) <= min(over[left])


def test_the_plan_at_hand_is_what_a_search_begins_with_and_stays_possible(made: tuple[Desk, Wide, Floats]) -> None:
    (_, wide, held), beside = made, begun(made)
    tight = replace(wide, room=0.5 * wide.room)
    beside = replace(beside, wide=tight)
    for service in PLACED:
        stocks, among = tight.stocks[service], beside._among(service)
        stated, order = tight.search.stated(stocks)
        start = beside._start(stocks, stated, order, among)
        own = np.zeros(len(order))
        own[order] = stated.replicas(start, len(order))
        assert own.tolist() == held[stocks.cells].tolist()
        ways = start[len(stated.arrays.cost) :]
        assert sorted(w for w, share in zip(among, ways, strict=True) if share) == sorted(
            np.delete(beside.held, service).tolist()
        )
        together = beside._together(stated, beside._taken(stocks, stated, order), among)
        shared = together.matrix[-len(tight.room) :].tocsr()[: tight.table.first_link]
        used = shared[:, : len(stated.cell)] @ start[: len(stated.cell)] + shared[:, len(stated.arrays.cost) :] @ ways
        assert used == pytest.approx((wide.shared @ held)[: tight.table.first_link])
        assert (used <= together.row_upper[-len(tight.room) :][: tight.table.first_link] + 1e-6).all()
        assert (used > tight.room[: tight.table.first_link] + 1e-6).any()  # as it is the room would not do


def test_what_crosses_links_is_taken_of_them(made: tuple[Desk, Wide, Floats]) -> None:
    (_, wide, _), beside = made, begun(made)
    stated, order = wide.search.stated(wide.stocks[PLACED[0]])
    taken = beside._taken(wide.stocks[PLACED[0]], stated, order).toarray()[wide.table.first_link :]
    crossed = [(way, side, column, takes) for side, way, column, takes in stated.crossed if side]
    assert bool(crossed) == bool(wide.links.links)
    rows = [way * len(wide.links.links) + side - 1 for way, side, *_ in crossed]
    assert taken[rows, [column for *_, column, _ in crossed]].tolist() == [takes for *_, takes in crossed]
    assert taken.sum() == pytest.approx(sum(takes for *_, takes in crossed))


def test_those_that_stay_are_begun_with_where_they_may_and_the_others_beside_them(
    made: tuple[Desk, Wide, Floats],
) -> None:
    (_, wide, held), beside, service = made, begun(made), PLACED[0]
    stocks, among = wide.stocks[service], beside._among(service)
    stated, order = wide.search.stated(stocks)
    wanted = held[stocks.cells][order]
    cell, columns = int(np.argmax(wanted)), len(stated.cell)
    assert wanted[cell] >= 2.0
    upper = np.insert(stated.arrays.upper, columns, 1.0)  # one more column for it, of one that stays
    arrays = replace(stated.arrays, cost=np.insert(stated.arrays.cost, columns, 0.0), upper=upper)
    more = replace(stated, arrays=arrays, cell=np.append(stated.cell, cell))
    start = beside._start(stocks, more, order, among)
    assert start[columns] == 1.0
    assert start[:columns][stated.cell == cell].sum() == wanted[cell] - 1.0


def counts_of(wide: Wide, replicas: Floats) -> dict[tuple[PoolKey, str], int]:
    """Replicas at the first location of their cell's group: enough to know the cell again."""
    counts = {}
    for cell in np.flatnonzero(replicas):
        bay = wide.cells.grouping.groups[int(wide.cells.cell_group[cell])].bays[0]
        counts[wide.cells.pools[int(wide.cells.cell_pool[cell])].pool, bay.location] = int(replicas[cell])
    return counts

"""One service in full beside ways of all others: nothing that is shared is overfull, and nothing found is dearer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from solvers.fleet import PoolKey
from solvers.planner import desk_for
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.cells import Floats
from solvers.planner.wide.beside import Beside
from solvers.planner.wide.whole import choose
from solvers.planner.wide.wide import Wide
from solvers.problem import Problem
from tests import synthetic
from tests.pair_world import bounded, by_fabric
from tests.wide_world import POLICY, SIZE, priced

WORLDS = (by_fabric, bounded)
MORE = 0.01  # of a plan's cost, what sizes draw and carry, of which the model knows the best, may add


def cost_of(wide: Wide, replicas: Floats) -> float:
    return sum(way.cost_usd_per_hour + way.penalty_usd_per_hour for way in wide.maker.of_counts(replicas))


@pytest.mark.parametrize("world", WORLDS)
def test_a_service_in_full_takes_what_is_left_and_costs_no_more(world: Callable[[Problem], Problem]) -> None:
    desk: Desk = desk_for(world(synthetic.make_problem(SIZE, 2, load=0.4, policy=POLICY)))
    wide = priced(desk)
    held = choose(wide, desk.repaired({}))
    beside = Beside.of(wide, desk.worth(counts_of(wide, held)))
    services = beside.in_turn()
    assert services
    rows = slice(0, wide.table.first_link)  # what crosses is counted by way
    costs = []
    for service in services[:3]:
        found = beside.chosen(service)
        assert (wide.shared @ found[0] <= wide.room * (1.0 + 1e-6) + 1e-6)[rows].all()
        costs += [cost_of(wide, replicas) for replicas in found]
    assert min(costs) <= cost_of(wide, held) * (1.0 + MORE)


def counts_of(wide: Wide, replicas: Floats) -> dict[tuple[PoolKey, str], int]:
    """Replicas at the first location of their cell's group: enough to know the cell again."""
    counts = {}
    for cell in np.flatnonzero(replicas):
        bay = wide.cells.grouping.groups[int(wide.cells.cell_group[cell])].bays[0]
        counts[wide.cells.pools[int(wide.cells.cell_pool[cell])].pool, bay.location] = int(replicas[cell])
    return counts

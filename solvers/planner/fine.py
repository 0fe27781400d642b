"""Caps between the levels for a plan that is short: what the steps from level to level leave lying, in whole watts.

The counts and places stay. One linear programme, that of every tick, chooses a cap for every pool; none is served less.
"""

from __future__ import annotations

import numpy as np

from solvers.capping.cells import build_cap_cells, pool_cells
from solvers.planner.bays.nodes import Counts
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.caps import at_cap, by_pool
from solvers.planner.pools.tally import Worth

WATTS = 1e-3  # a budget is kept by this much
GIVEN = 1e-4  # of its demand: what a service may lose to rounding, before caps are rounded up


def fine_counts(desk: Desk, worth: Worth) -> Counts:
    """Return the counts at caps that serve more; the first solve may end without any.

    Raises
    ------
    SolveFailed
        When there is no room to round in; the counts as they are remain a plan.
    """
    from solvers.capping.model import CapModel  # here: it loads the modeller, of no use to workers

    problem, counts = desk.problem, by_pool(worth.counts)
    cells = pool_cells(build_cap_cells(problem, counts, desk.sizer.capacity_of, is_known=True))
    model = CapModel(cells, problem.policy.energy_usd_per_kilowatt_hour)
    asked = np.array([problem.demands[name].requests_per_s for name in cells.services])
    model.hold(np.array([worth.unserved_per_s(name) for name in cells.services]) + GIVEN * asked)
    usable = np.array([problem.domains[name].usable_watts for name in cells.domains])
    spare = cells.charged @ cells.cell_gpus  # a watt of every GPU, to round caps up in
    room = np.where(cells.ceiling_watts <= usable, 1e12, usable - WATTS - cells.idle_watts - spare)
    caps = np.ceil(model.caps_watts(model.solve(asked, room).used) - 1e-6)
    highest = np.array([levels.cap_watts[-1] for levels in cells.levels])
    levels = {
        pool: at_cap(pool, float(cap) if cap < most else 0.0)
        for pool, cap, most in zip(cells.pools, caps, highest, strict=True)
    }
    return {(levels[pool], location): count for (pool, location), count in counts.items()}

"""Large fleets in small, priced to the end, for what is tested of the steps that follow."""

from __future__ import annotations

import numpy as np

from solvers.planner.menus.compose import shared_rows
from solvers.planner.model.relax import solve_linear, state
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.cells import build_cells
from solvers.planner.wide.wide import Wide
from solvers.problem import Policy, Problem
from tests import synthetic

SIZE = synthetic.Size(nodes=72, services=5, rows=4, designs=4)
POLICY = Policy(min_saving_ratio=0.0, time_limit_s=600.0)  # seconds depend on who else is at work


def short_fleet(load: float = 0.7) -> Problem:
    """72 nodes and five services; at a load of 0.6 or more something stays short."""
    return synthetic.make_problem(SIZE, 2, load=load, policy=POLICY)


def priced(desk: Desk) -> Wide:
    """Every service's ways at the best prices found, nothing held."""
    cells = build_cells(desk.problem, desk.options, fair_ratio=desk.penalties.fair_ratio)
    arrays = state(cells)
    wide = Wide.of(cells, arrays, desk.sizer, desk.crew, gap=0.01, seconds=600.0)
    duals = solve_linear(arrays, time_limit_s=600.0).duals
    assert duals is not None
    wide.begin(np.maximum(0.0, -duals[shared_rows(arrays)]))
    wide.first()
    wide.bound(lambda bound: False)
    return wide

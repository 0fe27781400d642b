"""Prices of a plan before: good ones are begun with, those that say little give way to the relaxation's."""

from __future__ import annotations

import numpy as np

from solvers.planner.menus.compose import shared_rows
from solvers.planner.model.limits import SHARED_LIMITS
from solvers.planner.model.relax import duals_of, solve_linear, state
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.cells import build_cells
from solvers.planner.wide.wide import Wide
from solvers.sizing import replica_capacity
from tests.wide_world import short_fleet


def test_only_prices_that_say_little_are_far() -> None:
    desk = Desk.of(short_fleet(), replica_capacity)
    cells = build_cells(desk.problem, desk.options, fair_ratio=desk.penalties.fair_ratio)
    full, few = state(cells), state(cells, SHARED_LIMITS)
    prices = np.maximum(0.0, -duals_of(solve_linear(full, time_limit_s=600.0))[shared_rows(full)])
    wide = Wide.of(cells, few, desk.sizer, desk.crew, gap=0.01, seconds=600.0)
    wide.begin(np.zeros(len(prices)), is_near=True)
    wide.first()
    assert wide.is_far()
    far = wide.best
    wide.begin(prices)
    assert wide.first() > far
    wide.bound(lambda bound: False)
    assert not wide.is_far()

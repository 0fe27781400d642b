"""Bounds by branches: every way lies in one, no value passes a way's, and what whole replicas decide is proved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.planner import desk_for, make_plan
from solvers.planner.wide.branches import bound_of_branches, branched
from solvers.planner.wide.least_value import least_value
from solvers.planner.wide.views import views_at
from solvers.planner.wide.wide import Wide
from tests import fleets
from tests.feed_world import at_one_feed
from tests.wide_world import priced, short_fleet


@pytest.fixture(scope="module")
def short() -> Wide:
    return priced(desk_for(short_fleet(load=0.65)))


def test_no_value_of_a_branch_passes_a_way_in_it(short: Wide) -> None:
    """Of every service, between any two of its ways, on either side, at prices drawn near the best."""
    rng, table, looked = np.random.default_rng(7), short.table, 0
    for _ in range(3):
        prices = short.prices * rng.uniform(0.2, 2.0, len(short.prices))
        short.priced(prices)  # knows the pools that look cheap there
        asked, weights = short.asked(prices), short.weights(prices)
        costs = table.priced(prices[: len(short.room)], weights)
        views = views_at(short.stocks, short.sides, short.links, asked, prices[table.first_link : len(short.room)])
        for s, view in enumerate(views[: len(short.stocks)]):
            mine = np.flatnonzero(table.service == s)
            undone = np.unique(table.costs[1][mine])
            for cut in np.append(rng.uniform(0.0, undone[-1] * 1.1, 4), undone[-1]).tolist():
                for penalties in ((0.0, cut), (cut, np.inf)):
                    work = view.work(short.book.curves[s], short.kept[s], False, float(weights[s]), {s: penalties})
                    value = least_value(*work).value_usd_per_hour
                    inside = mine[~table.outside({s: penalties})[mine]]
                    assert all(value <= costs[w] * (1.0 + 1e-9) + 1e-6 for w in inside), (s, penalties)
                    looked += len(inside)
    assert looked > 500


def test_branches_leave_no_way_out(short: Wide) -> None:
    part = replace(short, penalties={1: (0.0, 500.0)})
    others = replace(short, penalties={1: (500.0, np.inf)})
    assert not (short.table.outside(part.penalties) & short.table.outside(others.penalties)).any()


def test_what_whole_replicas_decide_is_proved_by_branches() -> None:
    problem = at_one_feed()
    desk = desk_for(problem, fleets.plain_capacity)
    wide, worth = priced(desk), desk.repaired({})
    value = worth.objective_usd_per_hour
    wide.hold(worth)
    alone = wide.bound(lambda bound: False)
    wide.branches = branched(wide, value, lambda bound: value - bound <= 5e-3 * value)
    assert len(wide.branches) >= 2
    assert alone < 0.95 * value  # prices alone leave much open
    assert (1.0 - 5e-3) * value <= bound_of_branches(wide, worth) <= value * (1.0 + 1e-9)
    plan = make_plan(problem, capacity_of=fleets.plain_capacity, wide_gpus=0)
    assert plan.report.gap_ratio <= 1e-2
    assert plan.report.objective_usd_per_hour == pytest.approx(value)


def test_branches_go_on_where_they_were_left() -> None:
    desk = desk_for(at_one_feed(), fleets.plain_capacity)
    wide, worth = priced(desk), desk.repaired({})
    value = worth.objective_usd_per_hour
    wide.hold(worth)
    alone = wide.bound(lambda bound: False)
    wide.branches = first = branched(wide, value, lambda bound: bound > alone * (1.0 + 1e-6))
    before = bound_of_branches(wide, worth)
    wide.branches = branched(wide, value, lambda bound: value - bound <= 5e-3 * value)
    assert 2 <= len(first) < len(wide.branches)
    assert bound_of_branches(wide, worth) >= before > alone
    assert all(any(is_within(leaf, branch) for branch in first) for leaf in wide.branches)


def is_within(leaf: Wide, branch: Wide) -> bool:
    """Tell whether every plan of one branch lies in another."""
    inner = {s: leaf.penalties.get(s, (0.0, np.inf)) for s in branch.penalties}
    return all(low <= inner[s][0] and inner[s][1] <= high for s, (low, high) in branch.penalties.items())

"""Ways of a short large fleet decided one after another: what is decided fits, and is whole."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.planner import desk_for, make_plan
from solvers.planner.wide import dive as wide_dive
from solvers.planner.wide import wide as wide_ways
from solvers.planner.wide.dive import dived
from solvers.planner.wide.wide import Wide
from solvers.verify import verify
from tests.wide_world import priced, short_fleet


@pytest.fixture
def held() -> Wide:
    """A short fleet's ways at prices, tiers held at what filling leaves them short of."""
    desk = desk_for(short_fleet())
    wide = priced(desk)
    wide.hold(desk.repaired({}))
    wide.bound(lambda bound: False)
    return wide


def test_what_a_dive_decides_fits_and_is_one_known_way_of_each_service(
    held: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_dive, "MOST_OPEN", 2)
    stocks, bound = list(held.stocks), held.best
    found = dived(held)
    assert found is not None
    assert len(found.open) <= 2
    assert (held.shared @ found.replicas <= held.room + 1e-6).all()
    known = {(way.service, way.replicas) for way in held.table.ways}
    service_of = held.cells.pool_service[held.cells.cell_pool]
    for s in range(len(held.stocks)):
        cells = np.flatnonzero((service_of == s) & (found.replicas > 0.0))
        assert (s, tuple((int(c), int(found.replicas[c])) for c in cells)) in known
        assert not (len(cells) and s in found.open)
    assert (held.best, list(held.stocks)) == (bound, stocks)  # what it was asked about stays as it was


def test_a_dive_from_which_nothing_could_follow_is_none(held: Wide) -> None:
    held.room = held.room - 1.0 - held.room.max()
    assert dived(held) is None


def test_a_plan_of_a_dive_is_sound_the_same_for_any_workers_and_no_worse_than_filling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wide_ways, "MOST_CHOSEN", 3)
    monkeypatch.setattr(wide_dive, "MOST_OPEN", 2)
    problem = short_fleet(load=0.7)
    plan, filled = make_plan(problem, workers=2), desk_for(problem).repaired({})
    assert repr(make_plan(problem)) == repr(make_plan(problem, workers=4, is_isolated=True)) == repr(plan)
    assert verify(plan, problem) == ()
    assert plan.is_short
    worth = desk_for(problem).worth({(row.pool, row.location): row.replicas for row in plan.placements})
    assert not filled.is_better_than(worth)

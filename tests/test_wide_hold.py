"""Bounds beside held tiers: what a plan lacks more is paid for, what it lacks less is not given back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.planner import desk_for
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.tally import CLEAR_SHARE, Worth
from solvers.planner.wide.branches import _within
from solvers.planner.wide.wide import Wide
from tests.wide_world import priced, short_fleet

TIERS = (0.3, 0.7)  # prices of the two tiers that are held


@pytest.fixture(scope="module")
def desk() -> Desk:
    return desk_for(short_fleet())


@pytest.fixture(scope="module")
def made(desk: Desk) -> Wide:
    return priced(desk)


def lacking(desk: Desk, *lacks_usd: float) -> Worth:
    return replace(desk.repaired({}), lacking_usd_by_tier=dict(enumerate(lacks_usd)))


@pytest.fixture
def held(made: Wide, desk: Desk) -> Wide:
    """Tiers held at 100 and 2,000 USD per hour, the bound that of these prices."""
    wide = replace(made)
    wide.hold(lacking(desk, 100.0, 2000.0, 9e4))
    wide.prices = np.append(wide.prices[: len(wide.room)], TIERS)
    for _ in range(3):  # the first time finds sizes that are to be told apart
        wide.best = -np.inf
        wide.priced(wide.prices)
    return wide


def test_tiers_but_the_last_are_held_a_hair_above_what_a_plan_lacks(held: Wide) -> None:
    lacks = np.array([100.0, 2000.0])
    assert held.is_held
    assert (held.held_usd_per_hour > lacks).all()
    assert held.held_usd_per_hour == pytest.approx(lacks, rel=1e-4)


def test_held_roughly_tiers_may_lack_more_but_not_clearly(made: Wide, desk: Desk) -> None:
    asked = {0: 1e6, 1: 2e6, 2: 3e6}
    wide, rough = replace(made), replace(lacking(desk, 0.0, 2000.0, 9e4), demand_usd_by_tier=asked)
    wide.hold(rough, is_rough=True)
    most = replace(rough, lacking_usd_by_tier=dict(enumerate([*wide.held_usd_per_hour.tolist(), 9e4])))
    for rank in (0, 1):
        more = most.lacking_usd_by_tier[rank] - rough.lacking_usd_by_tier[rank]
        assert more == pytest.approx(0.5 * CLEAR_SHARE * asked[rank], rel=1e-3)
    assert not rough.is_clearly_less_short_than(most)


def test_a_plan_that_lacks_more_than_is_held_lowers_the_bound_by_the_price_of_it(held: Wide, desk: Desk) -> None:
    assert held.bound_beside(lacking(desk, 100.0, 2000.0, 0.0)) == held.best
    assert held.bound_beside(lacking(desk, 0.0, 0.0, 0.0)) == held.best
    assert held.bound_beside(lacking(desk, 0.0, 2500.0, 0.0)) == pytest.approx(held.best - 0.7 * 500.0, abs=0.1)
    both = held.best - 0.3 * 50.0 - 0.7 * 500.0
    assert held.bound_beside(lacking(desk, 150.0, 2500.0, 9e9)) == pytest.approx(both, abs=0.1)


@pytest.mark.parametrize("lacks_usd", [(200.0, 2600.0), (0.0, 1500.0)])
def test_held_anew_the_bound_is_that_of_the_same_prices(lacks_usd: tuple[float, float], held: Wide, desk: Desk) -> None:
    before, prices = held.best, held.prices.copy()
    held.hold(lacking(desk, *lacks_usd, 0.0))
    assert held.prices.tolist() == prices.tolist()
    assert held.best == pytest.approx(before + 0.3 * (100.0 - lacks_usd[0]) + 0.7 * (2000.0 - lacks_usd[1]), abs=0.1)
    assert held.priced(prices) == pytest.approx(held.best, rel=1e-6)


def test_a_branch_of_a_branch_keeps_what_both_say(held: Wide) -> None:
    part = _within(held, 0, (0.0, 100.0))
    deeper = _within(part, 1, (50.0, np.inf))
    assert held.penalties == {}
    assert part.penalties == {0: (0.0, 100.0)}
    assert deeper.penalties == {0: (0.0, 100.0), 1: (50.0, np.inf)}
    assert held.best <= part.best * (1.0 + 1e-9)
    assert part.best <= deeper.best * (1.0 + 1e-9)

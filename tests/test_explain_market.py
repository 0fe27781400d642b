"""Prices of what services share, without whole ways: what they say is what room is worth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.explain.market import Market
from solvers.explain.pricing import _feeds, _held, shadow_prices
from solvers.planner import desk_for
from solvers.planner.proof.bound import dual_bound
from solvers.problem import Policy
from tests import fleets

LITTLE = 1e-4  # of a row's room
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def priced() -> Market:
    policy = Policy(start_cost_hours=0.0, min_saving_ratio=0.0)
    return Market.of(desk_for(fleets.demo(4.0, budget_ratio=0.55, policy=policy)))


@pytest.fixture
def plain(priced: Market) -> Market:
    """The same where the fleet is too large for whole ways."""
    return replace(priced, composer=None)


def test_no_room_changes_the_relaxation_by_less_than_its_prices_say(plain: Market) -> None:
    value, prices = plain.priced(plain.room)
    assert value == pytest.approx(plain.relaxed.value)
    assert (prices >= 0.0).all()
    dearest = np.argsort(-prices * plain.room)[:3].tolist()
    assert (prices[dearest] > 0.0).all()
    for row in dearest:
        little = np.where(np.arange(len(prices)) == row, LITTLE * plain.room, 0.0)
        more, less = (plain.priced(plain.room + change)[0] for change in (little, -little))
        assert value - prices @ little - ROUNDING <= more <= value + ROUNDING
        assert less >= value + prices @ little - ROUNDING
        assert less > value + 10.0 * ROUNDING


def test_what_has_no_price_is_not_scarce(plain: Market) -> None:
    value, prices = plain.priced(plain.room)
    free = prices <= 1e-9
    assert free.any()
    more, _ = plain.priced(np.where(free, 2.0 * plain.room, plain.room))
    assert more == pytest.approx(value)


def test_whole_ways_raise_the_bound_above_that_of_the_relaxation(priced: Market) -> None:
    assert priced.composer is not None
    assert priced.relaxed.duals is not None
    relaxed = dual_bound(priced.arrays, priced.relaxed.duals)
    assert priced.bound_usd_per_hour > relaxed * (1.0 + 1e-6)
    assert relaxed == pytest.approx(priced.relaxed.value, rel=1e-6)


def test_a_feed_has_room_in_watts_and_in_whole_replicas(priced: Market) -> None:
    rows = {name: row for row, name in enumerate(priced.names)}
    for feed in _feeds(priced):
        plain, sizes = rows.get(("power", feed.subject)), dict[int, float]()
        for (limit, subject), row in rows.items():
            if limit == "power_whole" and subject.startswith(f"{feed.subject} by "):
                sizes[row] = float(subject.split()[-2]) / 1000.0
        assert feed.step == min(sizes.values(), default=1.0)
        for kilowatts in (feed.step, -feed.step, 3.0 * feed.step):
            added = feed.shift(kilowatts)
            assert plain is None or added[plain] == kilowatts
            for row, each in sizes.items():
                most = [int((feed.most + more) / each + 1e-6) for more in (0.0, max(-feed.most, kilowatts))]
                assert added[row] == most[1] - most[0]
            assert np.count_nonzero(added) <= len(sizes) + 1


def test_what_more_and_less_are_worth_is_what_the_prices_of_that_room_come_to(priced: Market) -> None:
    value, _ = priced.priced(priced.room)
    things = {(each.limit, each.subject): each for each in _feeds(priced)}
    told = [price for price in shadow_prices(priced) if price.limit == "power"]
    assert told
    for price in told:
        thing = things[price.limit, price.subject]
        for sign, usd in ((1.0, price.more_usd_per_hour), (-1.0, price.less_usd_per_hour)):
            units = min(thing.step, thing.most) if sign < 0.0 else thing.step
            there, _ = priced.priced(np.maximum(0.0, priced.room + thing.shift(sign * units)))
            assert usd == pytest.approx(sign * (value - there) / units, abs=1e-6)
    assert any(price.less_usd_per_hour > price.more_usd_per_hour * (1.0 + 1e-3) for price in told)


def test_a_price_holds_until_it_is_a_tenth_off() -> None:
    assert _held(lambda units: 2.0 * min(units, 12.0), 1.0, 100.0) == (2.0, 13.0)
    assert _held(lambda units: 2.0 * units, 1.0, 20.0) == (2.0, 20.0)  # as far as there is any
    assert _held(lambda units: 0.0, 1.0, 20.0) == (0.0, 0.0)

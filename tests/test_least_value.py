"""Least values of services on finely cut loads: leaving sizes out that cannot belong to them changes nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from solvers.engine import Role
from solvers.planner.pools.penalties import EXCESS_WEIGHT
from solvers.planner.wide import least_value as tables
from solvers.planner.wide import load_tables
from solvers.planner.wide.curve import Curve
from solvers.planner.wide.least_value import least_value
from solvers.planner.wide.load_tables import Task, Told
from solvers.planner.wide.stocks import ANY_PENALTY, MOST_EVERY, PARTS, Stocks

EVERY = 8  # sizes told apart
MOST = 4  # replicas of each of few pools


def drawn(seed: int) -> tuple[Stocks, dict[int, Curve], np.ndarray]:
    """Pools of all roles in two cells each, some of them larger than what is told apart."""
    rng = np.random.default_rng(seed)
    roles = [role for role in Role for _ in range(3)]
    count, most = len(roles), 40
    rates, prices = rng.uniform(0.4, 4.0, count), rng.uniform(1.0, 5.0, count)
    stocks = Stocks(
        service=0,
        demand_per_s=float(rng.uniform(3.0, 60.0)),
        parts=PARTS * tables.LEAST_PRUNED + 333,
        every=EVERY,
        unserved_usd_per_hour=float(rng.choice([40.0, 400.0, 4000.0])),
        fair_ratio=0.5,
        roles=tuple(roles),
        cells=slice(0, 2 * count),
        first=2 * np.arange(count + 1),
        base=np.arange(count),
        terms_usd_per_hour=np.zeros(2 * count),
        room=np.full(2 * count, most // 2),
        now=np.zeros(2 * count, dtype=np.int64),
        most=np.full(count, most),
        rate_per_s=rates,
        run_usd_per_hour=prices,
        start_usd_per_hour=np.zeros(count),
        stop_usd_per_hour=np.zeros(count),
        stop_all_usd_per_hour=0.0,
        floor_replicas=int(rng.integers(0, 3)),
        floor_usd_per_hour=float(rng.uniform(0.0, 20.0)),
    )
    known = {n: rng.uniform(0.7, 1.0) for n in range(1, EVERY + 1)}
    curves = {
        p: Curve(
            rate_per_s={n: n * part * rates[p] for n, part in known.items()},
            run_usd_per_hour={n: n * prices[p] for n in known},
        )
        for p in range(count)
    }
    return stocks, curves, rng.uniform(0.0, 2.0, 2 * count)


@pytest.mark.parametrize("seed", range(30))
def test_sizes_left_out_belong_to_no_least_value(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stocks, curves, asked = drawn(seed)
    told = [frozenset(p for p in curves if p % 3 < 2), frozenset(curves)]
    limits = [ANY_PENALTY, (0.1 * stocks.unserved_usd_per_hour, 0.6 * stocks.unserved_usd_per_hour)]
    asks = [(kept, weight, limit) for kept in told for weight in (1.0, 0.2) for limit in limits]

    def values() -> list[float]:
        return [
            least_value(
                stocks, {p: curves[p] for p in kept}, kept, asked, weight=weight, penalties=limit
            ).value_usd_per_hour
            for kept, weight, limit in asks
        ]

    some = values()
    with monkeypatch.context() as patched:
        patched.setattr(tables, "LEAST_PRUNED", 10 * tables.LEAST_PRUNED)
        assert values() == pytest.approx(some, rel=1e-9)


def test_a_guess_that_was_too_low_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stocks, curves, asked = drawn(1)
    value = least_value(stocks, curves, frozenset(curves), asked).value_usd_per_hour
    with monkeypatch.context() as patched:
        patched.setattr(tables, "LOOSE_RATIO", -0.2)
        assert least_value(stocks, curves, frozenset(curves), asked).value_usd_per_hour == pytest.approx(value)


def test_finer_loads_never_lower_the_value() -> None:
    stocks, curves, asked = drawn(2)
    cut = (replace(stocks, parts=PARTS * times) for times in (1, 2, 4, 8, 16, 32))
    values = [least_value(one, curves, frozenset(curves), asked).value_usd_per_hour for one in cut]
    assert all(later >= before * (1.0 - 1e-9) for before, later in pairwise(values))


@pytest.mark.parametrize("seed", range(40))
def test_the_least_value_is_that_of_the_cheapest_counts_floors_included(seed: int) -> None:
    """All counts of few pools are tried; what is rounded is little."""
    rng = np.random.default_rng(seed)
    stocks, rates, prices = few_pools(rng)
    asked, weight = rng.uniform(0.0, 2.0, len(rates)), float(rng.choice([1.0, 1.5]))
    curves = {
        p: Curve(
            rate_per_s={n: n * rates[p] for n in range(1, MOST + 1)},
            run_usd_per_hour={n: n * prices[p] for n in range(1, MOST + 1)},
        )
        for p in range(len(rates))
    }
    best = np.inf
    for counts in product(range(MOST + 1), repeat=len(rates)):
        had = {role: sum(n for n, r in zip(counts, stocks.roles, strict=True) if r is role) for role in Role}
        able = {
            role: sum(n * rate for n, rate, r in zip(counts, rates, stocks.roles, strict=True) if r is role)
            for role in Role
        }
        carried = able[Role.MIXED] + min(able[Role.PREFILL], able[Role.DECODE])
        lacks = max(0.0, 1.0 - carried / stocks.demand_per_s)
        unserved = stocks.unserved_usd_per_hour * (lacks + EXCESS_WEIGHT * max(0.0, lacks - stocks.fair_ratio))
        missing = sum(
            max(0, stocks.floor_replicas - had[role] - had[Role.MIXED]) for role in (Role.PREFILL, Role.DECODE)
        )
        cost = sum(n * (price + ask) for n, price, ask in zip(counts, prices, asked, strict=True))
        best = min(best, cost + weight * (unserved + missing * stocks.floor_usd_per_hour))
    everyone = frozenset(curves)
    value = least_value(stocks, curves, everyone, asked, weight=weight).value_usd_per_hour
    assert value == pytest.approx(best, rel=5e-3)
    assert value <= best * (1.0 + 1e-9)
    for left_out in range(len(rates)):  # what is not told apart carries and costs no worse
        kept = everyone - {left_out}
        told = least_value(stocks, {p: curves[p] for p in kept}, kept, asked, weight=weight)
        assert told.value_usd_per_hour <= best * (1.0 + 1e-4)  # less than a part of the demand


@pytest.mark.parametrize("seed", range(20))
def test_floors_beyond_those_that_are_counted_cost_the_cheapest_replicas_or_their_lack(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stocks, _, prices = few_pools(rng)
    floor, count, weight = tables.MOST_FLOOR + 4, len(prices), float(rng.choice([1.0, 1.5]))
    stocks = replace(stocks, floor_replicas=floor, room=np.full(count, floor), most=np.full(count, floor))
    asked = rng.uniform(0.0, 2.0, count)
    least = {
        role: min(price + ask for price, ask, r in zip(prices, asked, stocks.roles, strict=True) if r is role)
        for role in Role
    }
    lack = weight * stocks.floor_usd_per_hour
    pair = min(lack, least[Role.PREFILL]) + min(lack, least[Role.DECODE])
    usd = floor * min(pair, least[Role.MIXED])
    idle, busy = (
        least_value(replace(stocks, demand_per_s=rate), {}, frozenset(), asked, weight=weight).value_usd_per_hour
        for rate in (0.0, 0.01)
    )
    assert idle == pytest.approx(usd)
    assert busy >= usd * (1.0 - 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_who_has_to_leave_so_much_undone_pays_for_it_floors_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stocks, rates, prices = few_pools(rng)
    stocks = replace(stocks, floor_replicas=3, floor_usd_per_hour=0.5)
    sizes = range(1, MOST + 1)
    curves = {
        p: Curve(rate_per_s={n: n * rates[p] for n in sizes}, run_usd_per_hour={n: n * prices[p] for n in sizes})
        for p in range(len(rates))
    }
    asked, most = np.zeros(len(rates)), stocks.unserved_usd_per_hour
    for least in (0.1 * most, 0.5 * most, most):
        for weight in (1.0, 1.5):
            work = {"weight": weight, "penalties": (least, np.inf)}
            found = least_value(stocks, curves, frozenset(curves), asked, **work)  # type: ignore[arg-type]
            assert found.value_usd_per_hour >= weight * least * (1.0 - 1e-9)


def few_pools(rng: np.random.Generator) -> tuple[Stocks, list[float], list[float]]:
    """One pool or two of each role, and a floor."""
    roles = [*Role, rng.choice(list(Role))]
    count = len(roles)
    rates, prices = rng.uniform(0.5, 3.0, count), rng.uniform(1.0, 5.0, count)
    stocks = Stocks(
        service=0,
        demand_per_s=float(rng.uniform(0.5, 8.0)),
        parts=int(rng.choice([4000, 16000])),
        every=EVERY,
        unserved_usd_per_hour=float(rng.choice([20.0, 200.0])),
        fair_ratio=0.5,
        roles=tuple(roles),
        cells=slice(0, count),
        first=np.arange(count + 1),
        base=np.arange(count),
        terms_usd_per_hour=np.zeros(count),
        room=np.full(count, MOST),
        now=np.zeros(count, dtype=np.int64),
        most=np.full(count, MOST),
        rate_per_s=rates,
        run_usd_per_hour=prices,
        start_usd_per_hour=np.zeros(count),
        stop_usd_per_hour=np.zeros(count),
        stop_all_usd_per_hour=0.0,
        floor_replicas=int(rng.integers(0, 4)),
        floor_usd_per_hour=float(rng.choice([0.5, 3.0, 30.0])),
    )
    return stocks, rates.tolist(), prices.tolist()


def test_of_few_finely_cut_services_several_pools_are_told_apart_at_once() -> None:
    looked = 0
    for seed in range(12):
        stocks, curves, asked = drawn(seed)
        one, few = (
            least_value(replace(stocks, every=n), curves, frozenset(), asked) for n in (MOST_EVERY - 1, MOST_EVERY)
        )
        assert one.value_usd_per_hour == few.value_usd_per_hour  # all pools count as the best rate of any
        assert one.wanted <= few.wanted
        for role in {stocks.roles[p] for p in one.wanted}:
            mine = {p for p in few.wanted if stocks.roles[p] is role}
            assert mine == {p for p, r in enumerate(stocks.roles) if r is role}  # three of each, fewer than at once
            looked += 1
        assert few.parts == stocks.parts
    assert looked > 12


@pytest.mark.parametrize("seed", range(50))
def test_sizes_added_at_once_or_one_by_one_come_to_the_same(seed: int) -> None:
    """Whatever they carry: a larger size between known ones may carry less, and some carry more than is asked."""
    rng = np.random.default_rng(seed)
    stocks, _, asked = drawn(seed)
    parts, most = 50, 12
    loads, costs = np.append(0, rng.integers(1, 70, most)), np.append(0.0, np.cumsum(rng.uniform(0.1, 9.0, most)))
    table = np.sort(rng.uniform(0.0, 60.0, parts + 1))[None]
    told = Told(
        price=costs[:1], count=np.ones(1, int), loads=loads, costs=costs, added=np.diff(costs), beyond_usd_per_hour=None
    )
    useful = np.flatnonzero(rng.random(most) < 0.7) + 1
    task = Task(
        stocks=stocks,
        curves={},
        kept=frozenset(),
        asked=asked,
        is_safe=False,
        weight=1.0,
        crossing_usd_per_hour={},
        penalties=ANY_PENALTY,
        floor_usd_per_hour=0.0,
        cheapest_usd_per_hour=asked,
        parts=parts,
    )
    at_once = load_tables._with_sizes(table, loads[useful], costs[useful])
    assert np.array_equal(at_once, load_tables._with_each_size(task, told, useful, table))


@pytest.mark.parametrize("seed", range(10))
def test_how_sizes_are_added_changes_no_pick(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stocks, curves, asked = drawn(seed)
    picks = []
    for most in (0, 10**9):
        monkeypatch.setattr(load_tables, "MOST_AT_ONCE", most)
        picks.append(least_value(stocks, curves, frozenset(curves), asked))
    assert picks[0] == picks[1]

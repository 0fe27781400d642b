"""Least values by search of a service with sides: not above the best of all counts, and near it at even rates."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from solvers.engine import Role
from solvers.planner.pools.cells import Floats
from solvers.planner.pools.penalties import EXCESS_WEIGHT
from solvers.planner.wide.curve import Curve
from solvers.planner.wide.exact import Crossing, draws_of, least_whole
from solvers.planner.wide.stocks import Stocks
from solvers.programme import solve

GAP = 0.01
ROLES = (Role.PREFILL, Role.DECODE)
MOST = 3  # replicas of a cell


def stocks(rng: np.random.Generator, *, now: int) -> Stocks:
    """A prefill and a decode pool with a cell on each of two sides."""
    return Stocks(
        service=0,
        demand_per_s=float(rng.uniform(1.0, 5.0)),
        parts=1000,
        every=32,
        unserved_usd_per_hour=float(rng.choice([20.0, 1e4])),
        fair_ratio=float(rng.choice([0.2, 1.0])),
        roles=ROLES,
        cells=slice(0, 4),
        first=np.array([0, 2, 4]),
        base=np.arange(2),
        terms_usd_per_hour=rng.uniform(0.0, 0.5, 4),
        room=np.full(4, MOST),
        now=rng.integers(0, now + 1, 4),
        most=np.array([2 * MOST, 2 * MOST - 1]),
        rate_per_s=rng.uniform(0.7, 2.0, 2),
        run_usd_per_hour=rng.uniform(1.0, 4.0, 2),
        start_usd_per_hour=np.full(2, 0.3),
        stop_usd_per_hour=np.full(2, 0.1),
        stop_all_usd_per_hour=0.0,
    )


def best_of_all(
    made: Stocks,
    asked: Floats,
    leave: Floats,
    enter: Floats,
    lost: float = 0.0,
    more: float = 0.0,
    over_per_s: float = np.inf,
) -> float:
    """Every count in every cell, as much of the demand served as pays; all of a pool lose so much of one's rate.

    Each replica of a pool costs so much ``more`` of one's running for every other; ``over_per_s`` may cross.
    """
    found = np.inf
    for counts in product(range(MOST + 1), repeat=4):
        if counts[2] + counts[3] > made.most[1]:
            continue
        number, pool = np.array(counts), np.array([0, 0, 1, 1])
        stays = np.minimum(number, made.now)
        usd = float(number @ (asked + made.terms_usd_per_hour + made.run_usd_per_hour[pool]))
        pools = np.array([counts[0] + counts[1], counts[2] + counts[3]])
        usd += float((more * made.run_usd_per_hour * pools * np.maximum(0, pools - 1)).sum())
        usd += float((number - stays).sum()) * 0.3 - float(stays.sum()) * 0.1
        sizes = np.maximum(1, np.array([counts[0] + counts[1], counts[2] + counts[3]]))
        carried = number * (made.rate_per_s * (1.0 - lost / sizes) / (1.0 - lost / made.most))[pool]
        near = min(carried[0], carried[2]) + min(carried[1], carried[3])
        able = min(carried[0] + carried[1], carried[2] + carried[3], near + over_per_s)
        way = (0, 1) if carried[0] > carried[2] else (1, 0)
        for served in {min(near, made.demand_per_s), min(able, made.demand_per_s), *_kinks(made, able)}:
            lacking = 1.0 - served / made.demand_per_s
            beyond = EXCESS_WEIGHT * max(0.0, lacking - made.fair_ratio)
            crossing = max(0.0, served - near) * (leave[way[0]] + enter[way[1]])
            found = min(found, usd + crossing + made.unserved_usd_per_hour * (lacking + beyond))
    return found


def _kinks(made: Stocks, able: float) -> set[float]:
    fair = made.demand_per_s * (1.0 - made.fair_ratio)
    return {fair} if fair <= able else set()


@pytest.mark.parametrize("seed", range(40))
def test_a_search_finds_the_best_of_all_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made, asked = stocks(rng, now=seed % 3), rng.uniform(0.0, 2.0, 4)
    leave, enter = rng.uniform(0.0, 1.5, 2), rng.uniform(0.0, 1.5, 2)
    crossing = Crossing(side=np.array([0, 1, 0, 1]), usd={"": (leave, enter)})
    draws = draws_of(made, {}, range(2))
    found = least_whole(made, draws, asked, crossing, weight=1.0, gap=GAP, time_limit_s=60.0, run=solve)
    best = best_of_all(made, asked, leave, enter)
    assert best * (1.0 - GAP) - 1e-6 <= found.bound_usd_per_hour <= best + 1e-6
    assert (found.replicas <= made.room).all()


@pytest.mark.parametrize("seed", range(70, 100))
def test_no_more_crosses_than_links_carry(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made, asked = stocks(rng, now=0), rng.uniform(0.0, 2.0, 4)
    leave, enter, takes, most = (rng.uniform(0.0, 1.5, 2) for _ in range(4))
    usd, side = {"": (leave, enter)}, np.array([0, 1, 0, 1])
    free, found = (
        least_whole(
            made, draws_of(made, {}, range(2)), asked, crossing, weight=1.0, gap=GAP, time_limit_s=60.0, run=solve
        )
        for crossing in (Crossing(side=side, usd=usd), Crossing(side=side, usd=usd, takes={"": takes}, most=most))
    )
    best = best_of_all(made, asked, leave, enter, over_per_s=float((most / takes).min()))
    assert best * (1.0 - GAP) - 1e-6 <= found.bound_usd_per_hour <= best + 1e-6
    assert found.bound_usd_per_hour >= free.bound_usd_per_hour - GAP * best


@pytest.mark.parametrize("seed", range(40, 70))
def test_small_pools_carry_less_in_a_search_too_and_large_ones_may_cost_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made, asked, lost, more = stocks(rng, now=0), rng.uniform(0.0, 2.0, 4), 0.4, 0.1 * (seed % 2)
    leave, enter = rng.uniform(0.0, 1.5, 2), rng.uniform(0.0, 1.5, 2)
    curves = {}
    for pool, (most, rate, usd) in enumerate(zip(made.most, made.rate_per_s, made.run_usd_per_hour, strict=True)):
        rates = {n: n * float(rate) * (1.0 - lost / n) / (1.0 - lost / float(most)) for n in range(1, int(most) + 1)}
        curves[pool] = Curve(
            rate_per_s=rates, run_usd_per_hour={n: n * float(usd) * (1.0 + more * (n - 1)) for n in rates}
        )
    crossing = Crossing(side=np.array([0, 1, 0, 1]), usd={"": (leave, enter)})
    free, found = (
        least_whole(
            made, draws_of(made, known, range(2)), asked, crossing, weight=1.0, gap=GAP, time_limit_s=60.0, run=solve
        )
        for known in ({}, curves)
    )
    best = best_of_all(made, asked, leave, enter, lost, more)
    assert found.bound_usd_per_hour <= best + 1e-6
    assert best - found.bound_usd_per_hour <= best - free.bound_usd_per_hour + GAP * best
    assert found.bound_usd_per_hour >= 0.97 * best  # what a side carries is not told by size


def test_pairs_that_may_not_cross_are_on_one_side() -> None:
    """Prefill is cheap on the left, decode on the right; where they may not cross one of them is dear."""
    made = stocks(np.random.default_rng(1), now=0)
    groups = ("left", "right", "left", "right")
    parts = {"roles": (Role.PREFILL,) * 2 + (Role.DECODE,) * 2, "groups": groups, "first": np.arange(5)}
    twice = {
        name: np.repeat(getattr(made, name), 2)
        for name in ("most", "rate_per_s", "run_usd_per_hour", "start_usd_per_hour", "stop_usd_per_hour")
    }
    local = Stocks(**{name: getattr(made, name) for name in Stocks.__slots__} | parts | twice | {"base": np.arange(4)})
    asked, far = np.array([0.0, 2.0, 2.0, 0.0]), np.full(2, 1e3)
    draws = draws_of(made, {}, (0, 0, 1, 1))
    near = least_whole(local, draws, asked, None, weight=1.0, gap=GAP, time_limit_s=60.0, run=solve)
    best = best_of_all(made, asked, far, far)
    assert best * (1.0 - GAP) - 1e-6 <= near.bound_usd_per_hour <= best + 1e-6


def test_lines_lie_below_what_every_size_costs() -> None:
    made = stocks(np.random.default_rng(2), now=0)
    usd = {n: n * 5.0 - 2.0 * n**0.5 for n in (1, 2, 4, 6)}
    curve = Curve(rate_per_s={n: float(n) for n in usd}, run_usd_per_hour=usd)
    lines = draws_of(made, {0: curve}, range(2)).lines
    _, known = curve.sizes(6)
    for n in range(7):
        assert max(none + slope * n for none, slope in lines[0]) <= known[n] + 1e-9
    assert max(none + slope * 6 for none, slope in lines[0]) == pytest.approx(usd[6])
    assert lines[1] == ((0.0, made.run_usd_per_hour[1]),)

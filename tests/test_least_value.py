"""Least values of services on finely cut loads: leaving sizes out that cannot belong to them changes nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from solvers.engine import Role
from solvers.planner import least_value as tables
from solvers.planner.curve import Curve
from solvers.planner.least_value import least_value
from solvers.planner.stocks import ANY_PENALTY, PARTS, Stocks

EVERY = 8  # sizes told apart


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

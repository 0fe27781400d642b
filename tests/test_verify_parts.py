"""Least values in the check of a bound, where what replicas carry ends within a part of the demand."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.engine import Role
from solvers.verify.stock import Stock
from solvers.verify.ways import Asked, least

DEMAND_PER_S, UNSERVED_USD_PER_HOUR, MOST = 10.0, 300.0, 12


def stock(name: str, rate_per_s: float, usd_per_hour: float) -> Stock:
    """A pool of which sizes up to three are told apart, and these are known."""
    return Stock(
        pair=(name,),
        role=Role.MIXED,
        units_usd_per_hour=np.full(MOST, usd_per_hour),
        price_usd_per_hour=usd_per_hour,
        idle_usd_per_hour=0.0,
        sized=lambda size: (rate_per_s, 0.0),
        known=dict.fromkeys((1, 2, 3), (rate_per_s, 0.0)),
        told=3,
    )


@pytest.mark.parametrize("seed", range(60))
def test_what_lies_between_whole_parts_is_never_asked_too_much(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates, prices = rng.uniform(0.5, 1.5, 2).tolist(), rng.uniform(1.0, 60.0, 2).tolist()
    stocks = [stock(str(i), rate, usd) for i, (rate, usd) in enumerate(zip(rates, prices, strict=True))]
    fewest = float(rng.uniform(0.0, 200.0))
    most = fewest + float(rng.uniform(0.0, 60.0))
    asked = Asked(
        demand_per_s=DEMAND_PER_S,
        unserved_usd_per_hour=UNSERVED_USD_PER_HOUR,
        fair_ratio=1.0,
        floor=0,
        floor_usd_per_hour=0.0,
        least_penalty_usd_per_hour=fewest,
        most_penalty_usd_per_hour=most,
    )
    ways = [
        (a * prices[0] + b * prices[1], UNSERVED_USD_PER_HOUR * max(0.0, 1.0 - served / DEMAND_PER_S))
        for a in range(MOST + 1)
        for b in range(MOST + 1)
        for served in [a * rates[0] + b * rates[1]]
    ]
    best = min((usd + undone for usd, undone in ways if fewest <= undone <= most), default=np.inf)
    for apart in (set[int](), {0}, {1}, {0, 1}):
        assert least(stocks, apart, asked, 20).usd_per_hour <= best + 1e-9

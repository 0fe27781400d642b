"""Prefill and decode that may not be apart are placed by the bundle: in proportion at every location."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

from solvers.certificate import Certificate
from solvers.engine import EngineProfile, Role
from solvers.planner import desk_for, make_plan
from solvers.planner.placing.pair_seats import seated_by_pairs
from solvers.planner.placing.places import Placed, place
from solvers.planner.pools.cells import Cells, build_cells
from solvers.planner.pools.sizer import Sizer
from solvers.planner.wide.sides import Sides
from solvers.planner.wide.stock_taking import build_stocks
from solvers.planner.wide.stocks import Stocks
from solvers.programme import solve
from solvers.sizing import Capacity
from solvers.verify import verify
from solvers.verify.beside import Each, Place, most_per_s, places_of
from solvers.verify.bound import verify_bound
from solvers.verify.market import Market
from tests import fleets, synthetic
from tests.pair_world import in_racks
from tests.test_against_brute_force import TOLERANCE, best_by_trying, drawn
from tests.test_limits import cells_of
from tests.test_pairing import Grouped, grouped

PREFILL_PER_S, DECODE_PER_S = 3.0, 2.0  # of a replica: two prefill for three decode
ASKED_PER_S = 40.0


NEARLY = 0.98  # of a bound of a few replicas, what its check finds again at least


def racks_of(racks: int, gpus: int) -> Cells:
    """A service of prefill and decode only that stays inside racks, all alike."""
    served = replace(
        fleets.service("chat", "chat", roles=(Role.PREFILL, Role.DECODE), gpu_classes=("h100-sxm",)), kv_may_cross=False
    )
    fleet = [node for rack in range(racks) for node in fleets.nodes("h100-sxm", 1, f"rack-{rack}", gpus=gpus)]
    cells = cells_of(fleets.problem([(served, ASKED_PER_S)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)]))
    assert len(cells.cell_pool) == len(Role) - 1
    return cells


def capacity(curves: EngineProfile, role: Role, *_: Any, **__: Any) -> Capacity:
    rate = PREFILL_PER_S if role is Role.PREFILL else DECODE_PER_S
    return Capacity(requests_per_s=rate, utilisation_ratio=0.5, gpu_watts=500.0)


def spread(cells: Cells, prefill: int, decode: int, *, is_mended: bool = False) -> Placed:
    sizer = Sizer(problem=cells.problem, capacity_of=capacity)
    count = {Role.PREFILL: prefill, Role.DECODE: decode}
    replicas = np.array([count[cells.pools[p].pool.role] for p in cells.cell_pool], dtype=float)
    mend = partial(seated_by_pairs, run=solve, time_limit_s=10.0)
    return place(cells, replicas, sizer, mend=mend if is_mended else None)


def at_each(placed: Placed) -> list[tuple[int, int]]:
    """Prefill and decode replicas of each rack that has any, sorted."""
    found: dict[str, Counter[Role]] = {}
    for (pool, at), count in placed.counts.items():
        found.setdefault(at, Counter())[pool.role] += count
    return sorted((of[Role.PREFILL], of[Role.DECODE]) for of in found.values())


def paired_per_s(racks: list[tuple[int, int]]) -> float:
    return sum(min(prefill * PREFILL_PER_S, decode * DECODE_PER_S) for prefill, decode in racks)


def best_per_s(prefill: int, decode: int, racks: int, gpus: int) -> float:
    """The most that pairs can carry, by trying every content of every rack."""
    best = {(0, 0): 0.0}
    for _ in range(racks):
        for (p, d), carried in list(best.items()):
            for a in range(min(gpus, prefill - p) + 1):
                for b in range(min(gpus - a, decode - d) + 1):
                    to = p + a, d + b
                    best[to] = max(best.get(to, 0.0), carried + min(a * PREFILL_PER_S, b * DECODE_PER_S))
    return max(best.values())


def test_whole_bundles_stand_together() -> None:
    placed = spread(racks_of(4, 8), 6, 9)
    assert placed.left == 0
    assert paired_per_s(at_each(placed)) == 18.0  # spread one by one, no rack would have two for three


def test_what_nothing_pairs_with_comes_last() -> None:
    placed = spread(racks_of(2, 5), 2, 8)
    assert placed.left == 0
    assert paired_per_s(at_each(placed)) == 6.0


@pytest.mark.parametrize("seed", range(30))
def test_no_more_than_a_replica_a_rack_is_lost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    racks, gpus = int(rng.integers(2, 5)), int(rng.integers(4, 9))
    prefill = int(rng.integers(1, racks * gpus // 2))
    decode = int(rng.integers(1, racks * gpus - prefill + 1))
    placed = spread(racks_of(racks, gpus), prefill, decode)
    found, best = paired_per_s(at_each(placed)), best_per_s(prefill, decode, racks, gpus)
    assert placed.left == 0
    assert best - racks * DECODE_PER_S <= found <= best + 1e-9  # bundles are taken one by one, the best first


@pytest.mark.parametrize("seed", range(30))
def test_a_service_that_is_short_has_the_places_where_most_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    racks, gpus = int(rng.integers(2, 5)), int(rng.integers(4, 9))
    prefill = int(rng.integers(1, racks * gpus // 2))
    decode = int(rng.integers(1, racks * gpus - prefill + 1))
    placed = spread(racks_of(racks, gpus), prefill, decode, is_mended=True)
    found, best = paired_per_s(at_each(placed)), best_per_s(prefill, decode, racks, gpus)
    assert placed.left == 0
    assert found == pytest.approx(min(best, ASKED_PER_S)) or found >= ASKED_PER_S


def at_rates(stocks: Stocks) -> Stocks:
    rates = [PREFILL_PER_S if role is Role.PREFILL else DECODE_PER_S for role in stocks.roles]
    return replace(stocks, rate_per_s=np.array(rates))


@pytest.mark.parametrize("gpus", range(2, 12))
def test_no_location_pairs_more_than_its_replicas_may_count_for(gpus: int) -> None:
    cells = racks_of(3, gpus)
    (stocks,) = build_stocks(cells)
    cut = Sides.of(cells, at_rates(stocks))
    assert cut is not None
    each = {stocks.roles[pool]: most for (pool, _), most in cut.rates.by_replica_per_s.items()}
    contents = [(p, d) for p, d in product(range(gpus + 1), repeat=2) if 0 < p + d <= gpus]
    over = [p * each[Role.PREFILL] + d * each[Role.DECODE] - paired_per_s([(p, d)]) for p, d in contents]
    assert min(over) == pytest.approx(0.0)  # none is above, and one is as good


def test_a_replica_is_good_for_less_beside_a_small_pool() -> None:
    (stocks,) = build_stocks(cells := racks_of(3, 8))
    stocks = at_rates(stocks)
    cut = Sides.of(cells, stocks)
    assert cut is not None
    prefill, decode = sorted(cut.whole, key=lambda part: stocks.roles[part[0]] is Role.DECODE)
    cut = replace(cut, rates=replace(cut.rates, paired_per_s={prefill: 2.0}, bundled_ratio={}))
    counts = {prefill: 1, decode: 2}
    whole = cut.useful({prefill: PREFILL_PER_S, decode: 2 * DECODE_PER_S}, counts)
    small = cut.useful({prefill: PREFILL_PER_S, decode: 0.5 * 2 * DECODE_PER_S}, counts)
    assert whole == pytest.approx({prefill: 2.0, decode: 2 * DECODE_PER_S})
    assert small == pytest.approx({prefill: 0.5 * 2.0, decode: DECODE_PER_S})


@pytest.mark.parametrize("seed", range(40))
def test_no_content_of_a_location_carries_more_than_its_replicas_may_count_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gpus, watts = int(rng.integers(2, 17)), float(rng.integers(1000, 12000))
    place = Place(gpus=(("a", gpus),), watts=((watts, ("a",)),))
    draw = float(rng.integers(300, 900))
    sizes, rates = rng.choice([1, 2, 4, 8], 3), rng.uniform(0.5, 9.0, 3)
    mine, *others = (
        Each(gpu_class="a", gpus=int(g), watts=draw * g, rate_per_s=float(r)) for g, r in zip(sizes, rates, strict=True)
    )
    most = most_per_s(place, mine, tuple(others))
    for counts in product(range(1, 17), range(17), range(17)):
        used = sum(n * each.gpus for n, each in zip(counts, (mine, *others), strict=True))
        if used <= gpus and used * draw <= watts:
            beside = sum(n * each.rate_per_s for n, each in zip(counts[1:], others, strict=True))
            assert min(counts[0] * mine.rate_per_s, beside) <= counts[0] * most * (1.0 + 1e-9) + 1e-12
    assert most <= mine.rate_per_s


@pytest.mark.parametrize("first", [50000, 50020])
def test_bounds_of_pairs_by_place_planned_as_in_large_fleets_lie_below_the_best_of_all_counts(first: int) -> None:
    for seed, case in drawn(first, 10):
        roles = (Role.PREFILL, Role.DECODE) if seed % 3 else tuple(Role)
        services = tuple(replace(s, kv_may_cross=False, roles=roles) for s in case.problem.services)
        problem = replace(case.problem, services=services)
        problem = grouped(problem, np.random.default_rng(seed)) if seed % 2 else problem
        plan = make_plan(problem, capacity_of=case.capacity_of, wide_gpus=0)
        assert verify(plan, problem, capacity_of=case.capacity_of) == ()
        check = verify_bound(plan, problem, capacity_of=case.capacity_of)
        assert check is None or check.supported_ratio > NEARLY, seed
        if check is None or check.is_held:  # the bound is not of all counts
            continue
        best = best_by_trying(Grouped(problem=problem, table=case.table), 0)
        assert plan.report.bound_usd_per_hour <= best * (1.0 + TOLERANCE), seed
        assert check.recomputed_usd_per_hour <= best * (1.0 + TOLERANCE) + 1e-6, seed


@pytest.mark.parametrize("seed", range(6))
def test_planner_and_check_agree_on_what_can_stand_beside_a_replica(seed: int) -> None:
    problem = in_racks(synthetic.make_problem(synthetic.SIZES["XS"], seed))
    cells = build_cells(problem, desk_for(problem).options, split_running=False)
    capped, places = 0, places_of(problem, Market.of(problem, Certificate(usd_per_hour=0.0, rows=(), weights=())).bays)
    for stocks in build_stocks(cells):
        cut = Sides.of(cells, stocks)
        if cut is None:
            continue
        for (pool, side), rate in cut.rates.paired_per_s.items():
            by_pool = [_each(cells, stocks, p) for p in range(len(stocks.roles))]
            others = tuple(by_pool[p] for p, role in enumerate(stocks.roles) if role is not stocks.roles[pool])
            at = next(c for c in range(stocks.first[pool], stocks.first[pool + 1]) if cut.of_cell[c] == side)
            bay = cells.grouping.groups[int(cells.cell_group[stocks.cells.start + at])].bays[0]
            most = most_per_s(places[bay.location], by_pool[pool], others)
            assert rate == pytest.approx(most)
            capped += 1
    assert capped or seed


def _each(cells: Cells, stocks: Stocks, pool: int) -> Each:
    option = cells.pools[int(cells.cell_pool[stocks.cells.start + int(stocks.first[pool])])]
    rate = float(stocks.rate_per_s[pool])
    return Each(gpu_class=option.pool.gpu_class, gpus=option.gpus, watts=option.reserved_watts, rate_per_s=rate)

"""Bounds beside held tiers: what a plan lacks more is paid for, what it lacks less is not given back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.planner import desk_for, make_plan
from solvers.planner import search as search_module
from solvers.planner.menus.compose import shared_rows
from solvers.planner.model.relax import Arrays, Solution, duals_of, solve_linear, state
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.tiers import held_in_sum, lacking_columns, relaxed_lacks_clearly
from solvers.planner.pools.cells import Cells, Floats, build_cells
from solvers.planner.pools.tally import CLEAR_SHARE, Worth
from solvers.planner.search import Search
from solvers.planner.wide import wide as wide_module
from solvers.planner.wide.apart import HURRIED_FINEST
from solvers.planner.wide.branches import _within
from solvers.planner.wide.whole import choose_soon
from solvers.planner.wide.wide import Wide
from tests import synthetic
from tests.wide_world import POLICY, SIZE, priced, short_fleet

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


@pytest.fixture(scope="module")
def tiered() -> tuple[Cells, Arrays, Search]:
    """A short fleet with services of three tiers."""
    desk = desk_for(synthetic.make_problem(SIZE, 10, load=0.7, policy=POLICY))
    cells = build_cells(desk.problem, desk.options, fair_ratio=desk.penalties.fair_ratio)
    return cells, state(cells), Search(desk=desk)


def test_prices_of_divisible_replicas_beside_held_tiers_say_more_than_those_before(
    tiered: tuple[Cells, Arrays, Search],
) -> None:
    """Those of the tiers are the last."""
    cells, arrays, search = tiered
    wide = Wide.of(cells, arrays, search.desk.sizer, search.desk.crew, gap=0.01, seconds=60.0)
    plain = solve_linear(arrays, time_limit_s=60.0)
    wide.begin(np.maximum(0.0, -duals_of(plain)[shared_rows(arrays)]))
    mine = lacking_columns(cells, arrays, np.flatnonzero([service.tier_rank == 0 for service in cells.services]))
    lacks = float(arrays.cost[mine] @ plain.x[mine])  # by the penalties alone
    wide.hold(lacking(search.desk, 0.5 * lacks, 0.0, 9e9))
    prices = search._relaxed_beside(cells, arrays, wide)
    divisible = solve_linear(held_in_sum(cells, arrays, wide.held_usd_per_hour), time_limit_s=60.0)
    assert len(prices) == len(wide.prices)
    assert (prices >= 0.0).all()
    assert prices[-2] > 1.0
    assert divisible.value > 1.1 * plain.value
    begun = wide.prices
    for _ in range(2):  # the first time finds sizes that are to be told apart
        bounds = [wide.priced(each) for each in (begun, prices)]
    assert bounds[1] > 1.1 * bounds[0]


def test_ways_near_what_divisible_replicas_do_make_a_better_plan_soon(
    tiered: tuple[Cells, Arrays, Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better than the ways that one pricing finds."""
    cells, arrays, search = tiered

    def soon_usd_per_hour() -> float:
        wide = Wide.of(cells, arrays, search.desk.sizer, search.desk.crew, gap=0.01, seconds=60.0)
        wide.begin(np.zeros(len(wide.room)))
        wide.hold(search.desk.greedy())
        wide.priced(search._relaxed_beside(cells, arrays, wide))
        return min(search._placed(cells, arrays, chosen).objective_usd_per_hour for chosen in choose_soon(wide))

    near = soon_usd_per_hour()
    monkeypatch.setattr(search_module, "take_near", lambda *_: None)
    assert near < 0.95 * soon_usd_per_hour()


def test_a_fleet_foreseen_to_be_short_is_not_priced_before_tiers_are_held(
    made: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    pricings = list[None]()

    def counted(wide: Wide, prices: Floats) -> float:
        pricings.append(None)
        return 1.0

    monkeypatch.setattr(Wide, "priced", counted)
    for is_short in (True, False):
        pricings.clear()
        wide = replace(made, is_short=is_short, best=-np.inf)
        assert wide.first() == (-np.inf if is_short else 1.0)
        assert len(pricings) == (not is_short)


def test_what_is_filled_from_nothing_is_worked_out_once(desk: Desk) -> None:
    filled = desk.repaired({})
    assert desk.greedy() is desk.greedy()
    assert desk.greedy() is not filled
    assert desk.greedy() == filled


def test_a_fleet_that_serves_all_though_it_was_foreseen_to_be_short_is_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divisible replicas at the least cost may leave more undone than the plan at hand."""

    def foresee(wide: Wide, relaxed: Solution, arrays: Arrays) -> None:
        wide.is_short = True

    monkeypatch.setattr(Wide, "foresee", foresee)
    monkeypatch.setattr(wide_module, "MOST_CHOSEN", 3)
    problem = short_fleet(load=0.1)
    plan = make_plan(problem)
    assert not plan.report.notes
    assert not plan.is_short
    assert plan.report.gap_ratio <= problem.policy.relative_gap


def test_divisible_replicas_are_clearly_short_by_more_than_a_clear_difference_above_the_last_tier(
    tiered: tuple[Cells, Arrays, Search],
) -> None:
    cells, arrays, _ = tiered
    ranks = np.array([service.tier_rank for service in cells.services])
    for rank in (0, 1, 2):
        mine = np.flatnonzero(ranks == rank)
        column = arrays.columns["unserved"].start + int(mine[0])
        clear = CLEAR_SHARE * cells.penalty_usd_per_hour[mine].sum() / arrays.cost[column]
        for share in (0.9, 1.1):
            x = np.zeros(len(arrays.cost))
            x[column] = share * clear
            assert relaxed_lacks_clearly(cells, arrays, x) is (share > 1.0 and rank < 2)


def looked(wide: Wide, monkeypatch: pytest.MonkeyPatch, most_hidden: float) -> list[tuple[float, bool]]:
    """The bounds at which pricing beside held tiers looked at what is hidden more closely, and whether in a hurry."""
    seen = list[tuple[float, bool]]()
    look = Wide._look_closer

    def looking(made: Wide, *, is_hurried: bool = False) -> bool:
        seen.append((made.best, is_hurried))
        return look(made, is_hurried=is_hurried)

    monkeypatch.setattr(Wide, "_look_closer", looking)
    monkeypatch.setattr(wide_module, "MOST_CHOSEN", 0)
    monkeypatch.setattr(wide_module, "MOSTLY_HIDDEN", most_hidden)
    wide.raised(8, lambda bound: False)
    return seen


def test_what_is_mostly_hidden_is_looked_at_closely_once_the_bound_rises(
    held: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, begun = held.stocks, held.best
    seen = looked(held, monkeypatch, most_hidden=0.0)
    bounds = [bound for bound, _ in seen]
    assert seen
    assert all(is_hurried for _, is_hurried in seen)
    assert min(bounds) > begun
    assert sorted(set(bounds)) == bounds  # once at each
    parts = [(mine.parts, now.parts) for mine, now in zip(before, held.stocks, strict=True)]
    assert any(least < now for least, now in parts)
    assert all(least <= now <= HURRIED_FINEST for least, now in parts)


def test_what_hides_less_than_is_open_otherwise_is_left_for_later(held: Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(held, monkeypatch, most_hidden=1e9) == []


def test_what_is_hidden_is_what_ways_cost_above_least_values(held: Wide) -> None:
    values = held.priced_ways(held.prices)
    least = [float(values[held.table.service == s].min()) for s in range(len(held.stocks))]
    assert held._hidden_usd_per_hour() == pytest.approx(sum(least) - float(held.values.sum()))
    assert held._hidden_usd_per_hour() > 0.0
    held._look_closer(is_hurried=True)
    assert held._hidden_usd_per_hour() == pytest.approx(0.0, abs=1e-6)  # until there are picks of a better bound


def test_where_looking_closer_raises_no_bound_it_can_be_done_again(held: Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_module, "HIDDEN", 0.0)
    begun = [stocks.parts for stocks in held.stocks]
    held.best = out_of_reach = 1e12
    assert held._look_closer()
    once = [stocks.parts for stocks in held.stocks]
    assert held._look_closer()
    twice = [stocks.parts for stocks in held.stocks]
    assert held.best == out_of_reach
    assert sum(begun) < sum(once) < sum(twice)

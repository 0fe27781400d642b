"""The choice of ways: what a stage that fails leaves, which way comes first, and when tiers are held anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solvers.deadline import FITTED_UNTIL, HELD_PRICES_UNTIL, WHOLE_UNTIL, Deadline, Turns
from solvers.errors import SOLVER_FAULTS, InvalidInput, SolveFailed
from solvers.planner import desk_for
from solvers.planner.model.relax import Arrays, state
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.places import Placed
from solvers.planner.placing.tiers import lacks
from solvers.planner.pools.cells import Cells, Floats, build_cells
from solvers.planner.pools.crew import Crew
from solvers.planner.pools.tally import CLEAR_SHARE, Worth
from solvers.planner.search import Search
from solvers.planner.wide import choice
from solvers.planner.wide import wide as wide_module
from solvers.planner.wide.choice import DIVE_TURNS, LEAST_DIVE_TURNS, LEAST_TURNS, Chooser
from solvers.planner.wide.dive import MOST_OPEN, Dived
from solvers.planner.wide.fit import ROUGH_GAP
from solvers.planner.wide.wide import Wide
from solvers.programme import Programme, Solution, solve
from tests.clocks import Stepped
from tests.test_wide_fit import lacking
from tests.wide_world import priced, short_fleet

HELD_USD = (0.0, 2000.0)
TURN = 0.01  # of the time limit, what a pricing took


def never(*_: object) -> Worth:
    raise AssertionError("nothing is to be placed")


def unseated(cells: Cells, replicas: Floats) -> Placed:
    raise AssertionError("nothing is to be seated")


@pytest.fixture(scope="module")
def desk() -> Desk:
    return desk_for(short_fleet())


@pytest.fixture(scope="module")
def wide(desk: Desk) -> Wide:
    """Ways without prices, tiers held."""
    cells = build_cells(desk.problem, desk.options, fair_ratio=desk.penalties.fair_ratio)
    made = Wide.of(cells, state(cells), desk.sizer, desk.crew, gap=0.01, seconds=600.0)
    made.held_usd_per_hour = np.array(HELD_USD)
    made.prices = np.zeros(len(made.room) + len(HELD_USD))
    return made


@pytest.fixture(scope="module")
def best(desk: Desk) -> Worth:
    return lacking(desk.repaired({}), *HELD_USD, 40_000.0)


def chooser(desk: Desk, wide: Wide, told: list[Exception] | None = None) -> Chooser:
    return Chooser(
        desk=desk,
        cells=wide.cells,
        wide=wide,
        gap=0.01,
        placed=never,
        seated=unseated,
        is_done=lambda worth: False,
        raise_bound=lambda worth: None,
        told_fault=([] if told is None else told).append,
        settled=never,
        relaxed_beside=lambda: np.zeros(len(wide.room) + len(HELD_USD)),
    )


def turns_at(made: Chooser, share: float = TURN) -> Turns:
    """Pricings so far, so long each."""
    deadline = made.desk.crew.deadline
    return Turns(deadline=deadline, begun=deadline.passed_share() - 10 * share, done=10)


@pytest.mark.parametrize("fault", SOLVER_FAULTS)
def test_a_stage_that_fails_keeps_the_plan_and_is_told(
    fault: type[Exception], desk: Desk, wide: Wide, best: Worth
) -> None:
    told = list[Exception]()

    def failing(worth: Worth) -> Worth:
        raise fault("no solution")

    assert chooser(desk, wide, told)._tried(failing, best) is best
    assert [(type(each), str(each)) for each in told] == [(fault, "no solution")]


def test_what_a_stage_makes_of_a_plan_is_taken_and_nonsense_is_raised(desk: Desk, wide: Wide, best: Worth) -> None:
    told, found = list[Exception](), lacking(best, 0.0, 0.0, 0.0)

    def nonsense(worth: Worth) -> Worth:
        raise InvalidInput("a plan", "", "is none", "make one")

    assert chooser(desk, wide, told)._tried(lambda worth: found, best) is found
    with pytest.raises(InvalidInput):
        chooser(desk, wide, told)._tried(nonsense, best)
    assert told == []


@pytest.mark.parametrize(
    ("lacks_usd", "is_moved"),
    [
        ((*HELD_USD, 40_000.0), False),
        ((*HELD_USD, 90_000.0), False),
        ((*HELD_USD, 0.0), False),
        ((0.0, 2001.0, 40_000.0), True),
        ((1.0, 0.0, 40_000.0), True),
        ((0.0, 2000.0 - 0.9 * CLEAR_SHARE * 1e5, 40_000.0), False),
        ((0.0, 2000.0 - 1.1 * CLEAR_SHARE * 1e5, 40_000.0), True),
    ],
)
def test_tiers_are_held_anew_where_one_but_the_last_lacks_more_or_clearly_less(
    lacks_usd: tuple[float, ...], is_moved: bool, desk: Desk, wide: Wide, best: Worth
) -> None:
    assert chooser(desk, wide)._moves_tiers(lacking(best, *lacks_usd), best) is is_moved


def test_once_tiers_are_held_a_plan_that_drifts_from_them_is_not_taken(desk: Desk, wide: Wide, best: Worth) -> None:
    drifted = lacking(best, 0.0, 2000.0 + 0.9 * CLEAR_SHARE * 1e5, 35_000.0)
    before = replace(wide, held_usd_per_hour=np.zeros(0))
    assert chooser(desk, before)._better(best, drifted) is drifted
    assert chooser(desk, wide)._better(best, drifted) is best


def test_a_little_that_the_last_tier_lacks_is_no_reason_to_go_on(desk: Desk) -> None:
    served = desk.worth({})
    little = 0.009 * served.objective_usd_per_hour
    assert served.short
    for lacks_usd, is_reason in (
        ((0.0, 0.0, little), False),
        ((0.0, 0.0, 2.0 * little), True),
        ((0.0, 1.0, 0.0), True),
    ):
        assert lacks(replace(served, lacking_usd_by_tier=dict(enumerate(lacks_usd))), 0.01) is is_reason


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Worth, list[str]]]:
    """What a dive comes to and which ways were gone, where these find what is said."""

    def go(
        made: Chooser, best: Worth, by_dive: Worth | None, at_once: Worth, soon: Worth | None = None
    ) -> tuple[Worth, list[str]]:
        gone = list[str]()

        def going(way: str, found: Any) -> Callable[..., Any]:
            def go(*_: object) -> Any:
                gone.append(way)
                return found

            return go

        monkeypatch.setattr(Chooser, "_soon", going("soon", [soon or best]))
        monkeypatch.setattr(Chooser, "_by_dive", going("by dive", by_dive))
        monkeypatch.setattr(Chooser, "_at_once", going("at once", at_once))
        return made._chosen_of_many(best, turns_at(made)), gone

    return go


@pytest.mark.parametrize("most_dived", [100, 0])
def test_very_many_services_are_chosen_at_once_before_a_dive(
    most_dived: int,
    asked: Callable[..., tuple[Worth, list[str]]],
    desk: Desk,
    wide: Wide,
    best: Worth,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wide_module, "MOST_DIVED", most_dived)
    better, worse = lacking(best, *HELD_USD, 30_000.0), lacking(best, *HELD_USD, 50_000.0)
    order = ["by dive", "at once"] if most_dived else ["at once", "by dive"]
    assert asked(chooser(desk, wide), best, better, better) == (better, order[:1])
    assert asked(chooser(desk, wide), best, worse, worse) == (best, [*order, "soon"])
    assert asked(chooser(desk, wide), best, None, worse) == (best, [*order, "soon"])
    assert asked(chooser(desk, wide), best, worse, worse, better) == (better, [*order, "soon"])
    found = (worse, better) if most_dived else (better, worse)
    assert asked(chooser(desk, wide), best, *found) == (better, order)


def test_where_nothing_keeps_the_tiers_what_is_better_by_their_order_will_do(
    asked: Callable[..., tuple[Worth, list[str]]], desk: Desk, wide: Wide, best: Worth
) -> None:
    drifted = lacking(best, 0.0, 2000.0 + 0.9 * CLEAR_SHARE * 1e5, 30_000.0)
    worse = lacking(best, *HELD_USD, 50_000.0)
    assert asked(chooser(desk, wide), best, drifted, worse) == (drifted, ["by dive", "at once", "soon"])


@pytest.mark.parametrize(("usd_per_usd", "is_drifted"), [(0.0, True), (10.0, True), (1e4, False)])
def test_where_nothing_keeps_the_tiers_the_bound_beside_a_plan_counts(
    usd_per_usd: float, is_drifted: bool, desk: Desk, wide: Wide, best: Worth
) -> None:
    """What a plan lacks more than the tiers are held at lowers it, by their prices."""
    priced = replace(wide, prices=np.append(np.zeros(len(wide.room)), [0.0, usd_per_usd]))
    nearly, drifted = lacking(best, 0.0, 2001.0, 35_000.0), lacking(best, 0.0, 2011.0, 30_000.0)
    found = chooser(desk, priced)._best_beside(best, [nearly, drifted])
    assert found is (drifted if is_drifted else best)
    clearly = lacking(best, 0.0, 2000.0 - 1.1 * CLEAR_SHARE * 1e5, 90_000.0)
    assert chooser(desk, priced)._best_beside(best, [drifted, clearly, nearly]) is clearly


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(("most_dived", "until"), [(100, FITTED_UNTIL - LEAST_DIVE_TURNS * TURN), (0, WHOLE_UNTIL)])
def test_what_is_soon_found_has_to_do_when_a_dive_would_not_end_in_time(
    most_dived: int,
    until: float,
    is_late: bool,
    asked: Callable[..., tuple[Worth, list[str]]],
    desk: Desk,
    wide: Wide,
    best: Worth,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wide_module, "MOST_DIVED", most_dived)
    clock = Stepped(now_s=until + (1e-6 if is_late else -1e-6))
    hurried = replace(desk, crew=Crew(deadline=Deadline(clock=clock, limit_s=1.0)))
    worse, soon = lacking(best, *HELD_USD, 50_000.0), lacking(best, *HELD_USD, 35_000.0)
    found, gone = asked(chooser(hurried, wide), best, worse, worse, soon)
    if is_late:  # of very many services it was looked for before
        assert (found, gone) == ((soon, ["soon"]) if most_dived else (best, []))
    else:
        before = ["by dive", "at once"] if most_dived else ["at once", "by dive"]
        assert (found, gone) == (soon, [*before, "soon"])


@pytest.mark.parametrize("most_dived", [100, 0])
def test_of_what_is_soon_found_the_better_is_taken(
    most_dived: int, desk: Desk, wide: Wide, best: Worth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_module, "MOST_DIVED", most_dived)
    first, last = np.zeros(len(wide.cells.cell_pool)), np.ones(len(wide.cells.cell_pool))
    monkeypatch.setattr(choice, "choose_soon", lambda wide: [first, last])
    found = {id(first): lacking(best, *HELD_USD, 30_000.0), id(last): lacking(best, *HELD_USD, 35_000.0)}
    made = replace(chooser(desk, wide), placed=lambda replicas: found[id(replicas)])
    assert [*made._soon()] == [*found.values()][0 if most_dived else 1 :]  # of very many only the last
    monkeypatch.setattr(Chooser, "_by_dive", lambda made: None)
    monkeypatch.setattr(Chooser, "_at_once", lambda made, before: lacking(best, *HELD_USD, 50_000.0))
    assert made._chosen_of_many(best, turns_at(made)) is found[id(first if most_dived else last)]


@pytest.mark.parametrize("fault", SOLVER_FAULTS)
def test_what_fails_to_be_found_soon_takes_nothing_from_a_plan(
    fault: type[Exception], desk: Desk, wide: Wide, best: Worth, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(wide: Wide) -> list[Floats]:
        raise fault("too bad")

    told, worse = list[Exception](), lacking(best, *HELD_USD, 50_000.0)
    monkeypatch.setattr(choice, "choose_soon", failing)
    monkeypatch.setattr(Chooser, "_by_dive", lambda made: None)
    monkeypatch.setattr(Chooser, "_at_once", lambda made, best: worse)
    made = chooser(desk, wide, told)
    assert made._chosen_of_many(best, turns_at(made)) is best
    assert [str(one) for one in told] == ["too bad"]


def test_pricing_leaves_time_for_a_dive(desk: Desk, wide: Wide, best: Worth, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes so many pricings as these: begun at once where they would not end in time, but for the least of them."""
    steps, begun, left = [0.02, 0.05, 0.1], 0.2, list[float]()

    def priced(made: Wide, prices: Floats) -> float:
        clock.now_s += steps[len(left)]
        return -np.inf

    def bound(made: Wide, is_enough: Callable[[float], bool]) -> float:
        while not is_enough(-np.inf):
            made.priced(made.prices)
        left.append(clock.now_s)
        return made.best

    monkeypatch.setattr(Wide, "bound", bound)
    monkeypatch.setattr(Wide, "priced", priced)
    monkeypatch.setattr(wide_module, "MOST_CHOSEN", 0)
    for _ in steps:
        clock = Stepped(now_s=begun)
        crew = Crew(deadline=Deadline(clock=clock, limit_s=1.0))
        made = chooser(replace(desk, crew=crew), wide)
        assert made._priced(best).begun == begun
        assert crew.was_late
    in_time = FITTED_UNTIL - DIVE_TURNS * steps[0]
    assert in_time - steps[0] <= left[0] <= in_time + 1e-9
    assert left[1] == pytest.approx(begun + (LEAST_TURNS + 1) * steps[1])
    assert HELD_PRICES_UNTIL[False] <= left[2] + 1e-9 <= HELD_PRICES_UNTIL[False] + steps[2] + 2e-9  # none in time


@pytest.mark.parametrize("fault", SOLVER_FAULTS)
def test_where_the_relaxation_beside_held_tiers_fails_pricing_goes_on_from_the_prices_at_hand(
    fault: type[Exception], desk: Desk, wide: Wide, best: Worth, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> Floats:
        raise fault("too bad")

    told, asked = list[Exception](), list[Floats]()
    monkeypatch.setattr(Wide, "priced", lambda made, prices: asked.append(prices))
    replace(chooser(desk, wide, told), relaxed_beside=failing)._begin_beside()
    assert [prices is wide.prices for prices in asked] == [True]
    assert [str(one) for one in told] == ["too bad"]


@pytest.mark.parametrize("most_chosen", [0, 100])
def test_of_many_services_what_is_soon_found_is_at_hand_before_pricing_goes_on(
    most_chosen: int, desk: Desk, wide: Wide, best: Worth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stays where what comes after it fails; few are chosen at once, but not before."""
    soon, gone = lacking(best, *HELD_USD, 30_000.0), list[str]()

    def found(made: Chooser) -> list[Worth]:
        gone.append("soon")
        return [soon]

    def failing(made: Chooser, before: Worth, turns: Turns | None = None) -> Worth:
        raise SolveFailed(f"{before.penalty_usd_per_hour:.0f}")

    monkeypatch.setattr(wide_module, "MOST_CHOSEN", most_chosen)
    monkeypatch.setattr(Chooser, "_soon", found)
    monkeypatch.setattr(Chooser, "_closer", lambda made, worth: None)
    monkeypatch.setattr(Chooser, "_chosen_of_many", failing)
    monkeypatch.setattr(Chooser, "_chosen", failing)
    monkeypatch.setattr(Wide, "hold", lambda made, worth, is_rough=False: None)
    monkeypatch.setattr(Wide, "priced", lambda made, prices: gone.append("beside"))
    monkeypatch.setattr(Wide, "bound", lambda made, is_enough: gone.append("prices"))
    told = list[Exception]()
    at_hand = best if most_chosen else soon
    assert chooser(desk, wide, told)._in_order(best) is at_hand
    assert gone == (["beside", "prices"] if most_chosen else ["beside", "soon", "prices"])
    assert [str(one) for one in told] == [f"{at_hand.penalty_usd_per_hour:.0f}"]


STAGES = ("_chosen", "_in_order", "_fitted", "_branched", "_improved", "_beside")


@pytest.mark.parametrize("lacks_usd", [(*HELD_USD, 40_000.0), (0.0, 0.0, 0.0)])
def test_no_stage_is_begun_once_a_plan_is_done(
    lacks_usd: tuple[float, ...], desk: Desk, wide: Wide, best: Worth, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = list[str]()

    def stage(name: str) -> Callable[[Chooser, Worth], Worth]:
        def go(made: Chooser, worth: Worth) -> Worth:
            gone.append(name)
            return worth

        return go

    for name in STAGES:
        monkeypatch.setattr(Chooser, name, stage(name))

    def until(count: float) -> list[str]:
        gone.clear()
        made = replace(chooser(desk, wide), is_done=lambda worth: len(gone) >= count)
        found = lacking(best, *lacks_usd)
        assert made.run(found) is found
        return list(gone)

    every = until(np.inf)
    is_short = any(lacks_usd)
    assert ({"_in_order", "_fitted", "_branched"} <= set(every)) is is_short
    assert ({"_improved", "_beside"} <= set(every)) is not is_short
    for count in range(1, len(every) + 1):
        assert until(count) == every[:count]


def test_what_a_dive_leaves_open_is_filled_where_it_is_much(desk: Desk, wide: Wide, best: Worth) -> None:
    placed = list[Floats]()

    def place_all(replicas: Floats) -> Worth:
        placed.append(replicas)
        return best

    dive = Dived(replicas=np.zeros(len(wide.cells.cell_pool)), open=tuple(range(MOST_OPEN + 1)))
    assert replace(chooser(desk, wide), placed=place_all)._completed(dive) is best
    assert [replicas is dive.replicas for replicas in placed] == [True]


@pytest.mark.parametrize("is_failing", [False, True])
def test_what_a_dive_leaves_open_is_planned_roughly_or_filled_where_that_fails(is_failing: bool, desk: Desk) -> None:
    gaps, kept = list[float](), list[Worth]()

    def settled(cells: Cells, x: Floats, arrays: Arrays) -> Worth:
        kept.append(settler.settled(cells, x, arrays))
        return kept[-1]

    def solved(programme: Programme) -> Solution:
        gaps.append(programme.options["mip_rel_gap"])
        if is_failing:
            raise SolveFailed("too bad")
        return solve(programme)

    watched = replace(desk, crew=Crew(solve=solved))
    settler = Search(desk=desk).settler
    wide = priced(desk)
    made = replace(chooser(watched, wide), settled=settled, seated=settler.seated)
    found = made._completed(Dived(replicas=np.zeros(len(wide.cells.cell_pool)), open=(0, 1)))
    assert gaps[0] == ROUGH_GAP * made.gap
    if is_failing:
        assert (found.counts, kept) == (desk.repaired({}).counts, [])
    else:
        assert any(found is one for one in kept)


@pytest.mark.parametrize(("done_after", "chosen_in"), [(0, []), (1, [1.0]), (9, [1.0, 2.0, 3.0])])
def test_ways_are_chosen_in_the_branches_of_the_least_bounds_until_that_is_enough(
    done_after: int, chosen_in: list[float], desk: Desk, wide: Wide, best: Worth, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = [replace(wide, best=bound) for bound in (3.0, 1.0, 4.0, 2.0)]
    chosen, raised = list[float](), list[Worth]()

    def choose(branch: Wide, worth: Worth) -> Floats:
        chosen.append(branch.best)
        return np.zeros(len(wide.cells.cell_pool))

    monkeypatch.setattr(choice, "branched", lambda *_: leaves)
    monkeypatch.setattr(choice, "choose", choose)
    made = replace(
        chooser(desk, replace(wide)),
        placed=lambda replicas: best,
        is_done=lambda worth: len(chosen) >= done_after,
        raise_bound=raised.append,
    )
    assert made._branched(best) is best
    assert chosen == chosen_in
    assert len(raised) == 1 + len(chosen_in)
    assert made.wide.branches == leaves

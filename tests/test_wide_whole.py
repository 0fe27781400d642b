"""One way of each service in whole: what is chosen is known, fits, and costs no more than what it was begun with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from solvers.errors import SolveFailed
from solvers.planner import desk_for
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.cells import Floats
from solvers.planner.pools.crew import Crew
from solvers.planner.wide import whole
from solvers.planner.wide import wide as wide_module
from solvers.planner.wide.ways import SparseWay
from solvers.planner.wide.whole import choose, improve
from solvers.planner.wide.wide import Wide
from solvers.programme import Programme, Solution, solve
from tests import synthetic
from tests.test_wide_beside import cost_of, counts_of
from tests.wide_world import POLICY, SIZE, priced

ROUNDING = 1e-6


@pytest.fixture(scope="module")
def made() -> tuple[Desk, Wide]:
    desk = desk_for(synthetic.make_problem(SIZE, 2, load=0.5, policy=POLICY))
    return desk, priced(desk)


@pytest.fixture
def desk(made: tuple[Desk, Wide]) -> Desk:
    return made[0]


@pytest.fixture
def wide(made: tuple[Desk, Wide]) -> Wide:
    """Priced ways of a fleet that serves all; what a test changes of it is its own but for the ways that it finds."""
    return replace(made[1], unusable=made[1].unusable.copy())


def undone_of(wide: Wide, replicas: Floats) -> float:
    return sum(way.penalty_usd_per_hour for way in wide.maker.of_counts(replicas))


def ways_of(wide: Wide, replicas: Floats) -> list[SparseWay]:
    return list(wide.maker.of_counts(replicas))


def test_what_is_chosen_is_a_known_way_of_each_service_and_fits(desk: Desk, wide: Wide) -> None:
    chosen = choose(wide, desk.repaired({}))
    known = {(way.service, way.replicas) for way in wide.table.ways}
    assert [way.service for way in ways_of(wide, chosen)] == list(range(len(wide.stocks)))
    assert {(way.service, way.replicas) for way in ways_of(wide, chosen)} <= known
    assert (wide.shared @ chosen <= wide.room * (1.0 + ROUNDING) + ROUNDING).all()
    assert cost_of(wide, chosen) >= wide.best


def test_services_that_the_relaxed_choice_splits_get_ways_between(
    desk: Desk, wide: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def near_parts(maker: object, service: int, *_: object) -> Sequence[SparseWay]:
        asked.append(service)
        return []

    monkeypatch.setattr(type(wide.maker), "near_parts", near_parts)
    wide.at_hand(worth := desk.repaired({}))
    shares, service = wide.relaxed().x, wide.table.service
    is_split = (shares > 1e-3) & (shares < 1.0 - 1e-3)
    split = sorted(set(service[is_split].tolist()))
    assert split
    choose(wide, worth)
    assert sorted(set(asked)) == split


def test_room_where_replicas_found_no_place_is_not_used_again(desk: Desk, wide: Wide) -> None:
    worth = desk.worth({})
    first = choose(wide, worth)
    row = int(np.argmax(wide.shared @ first / np.maximum(wide.room, 1.0)))
    lost = np.where(wide.shared[[row]].toarray().ravel() > 0.0, np.ceil(0.5 * first), 0.0)
    again = choose(wide, worth, lost)
    left = np.maximum(0.0, wide.room - wide.shared @ lost)
    assert (wide.shared @ first)[row] > left[row] + 0.5
    assert (wide.shared @ again <= left * (1.0 + ROUNDING) + ROUNDING).all()
    assert wide.unusable == pytest.approx(wide.shared @ lost)


def test_what_a_plan_at_hand_uses_stays_possible_whatever_found_no_place(desk: Desk, wide: Wide) -> None:
    first = choose(wide, desk.repaired({}))
    again = choose(wide, desk.worth(counts_of(wide, first)), 1e6 * first)
    assert undone_of(wide, again) <= undone_of(wide, first) * (1.0 + ROUNDING) + ROUNDING


@pytest.mark.parametrize("is_held", [False, True])
def test_where_tiers_are_held_a_choice_begins_with_the_plan_at_hand(is_held: bool, desk: Desk, wide: Wide) -> None:
    begun = list[Floats]()

    def seen(programme: Programme) -> Solution:
        assert programme.start is not None
        begun.append(programme.start)
        return solve(programme)

    worth = desk.worth({})
    choose(replace(wide, is_held=is_held, crew=Crew(solve=seen)), worth)
    cost = np.add(*wide.table.costs)
    nothing = sum(way.cost_usd_per_hour + way.penalty_usd_per_hour for way in wide.at_hand(worth))
    assert (len(begun[0]) == len(cost)) or not is_held  # what is as dear as nothing at all leaves out no way
    assert all(start.sum() == len(wide.stocks) for start in begun)
    if is_held:
        assert cost @ begun[0] == pytest.approx(nothing)


def test_where_the_best_ways_leave_more_undone_all_are_chosen_among(
    desk: Desk, wide: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    worth = desk.repaired({})
    plain = choose(wide, worth)
    monkeypatch.setattr(whole, "best_ways", lambda ways, values: [i for i, way in enumerate(ways) if not way.replicas])
    assert undone_of(wide, choose(wide, worth)) <= undone_of(wide, plain) * (1.0 + ROUNDING)
    filled = choose(replace(wide, is_short=True), worth)  # what is short is filled or fitted afterwards
    assert not filled.any()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("failing", [0, 1])
def test_of_two_rough_searches_one_that_fails_loses_nothing_of_the_other(
    failing: int, workers: int, desk: Desk, wide: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_module, "MOST_DIVED", 0)
    asked = list[bool]()

    def fails(programme: Programme) -> Solution:
        asked.append(is_second := programme.options.get("presolve") == "off")
        if is_second == bool(failing):
            raise SolveFailed("no luck")
        return solve(programme)

    short = replace(wide, is_short=True, crew=Crew(solve=fails, workers=workers))
    assert choose(short, desk.repaired({})).any()
    assert sorted(asked) == [False, True]


def test_where_both_rough_searches_fail_the_fault_of_the_first_is_told(
    desk: Desk, wide: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_module, "MOST_DIVED", 0)

    def fails(programme: Programme) -> Solution:
        raise SolveFailed("second" if programme.options.get("presolve") == "off" else "first")

    with pytest.raises(SolveFailed, match="first"):
        choose(replace(wide, is_short=True, crew=Crew(solve=fails)), desk.repaired({}))


def test_ways_near_a_plan_cost_no_more_than_its_own(desk: Desk, wide: Wide) -> None:
    held = choose(wide, desk.repaired({}))
    known = len(wide.table.ways)
    improved = improve(wide, desk.worth(counts_of(wide, held)))
    assert len(wide.table.ways) > known
    assert cost_of(wide, improved) <= cost_of(wide, held) * (1.0 + 1e-9)
    greedy = desk.repaired({})
    assert cost_of(wide, improve(wide, greedy)) < sum(
        way.cost_usd_per_hour + way.penalty_usd_per_hour for way in wide.at_hand(greedy)
    )
    assert (wide.shared @ improved <= wide.room * (1.0 + ROUNDING) + ROUNDING).all()

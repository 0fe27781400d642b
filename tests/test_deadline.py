"""A decision ends with its time limit, by a clock that is handed in, and what it leaves is a checked plan."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from solvers.deadline import PRICES_UNTIL, Deadline, Turns
from solvers.errors import SolveFailed
from solvers.plan import Plan, SolveStatus
from solvers.planner import desk_for, make_plan
from solvers.planner.menus.compose import Composer
from solvers.planner.model.relax import Arrays
from solvers.planner.pools import crew as pools_crew
from solvers.planner.pools.cells import Cells
from solvers.planner.pools.crew import GRACE_S, Crew
from solvers.planner.pools.tally import Worth
from solvers.planner.search import FAILED_NOTE, MOST_ROUNDS, Search
from solvers.problem import Policy, Problem
from solvers.programme import Programme, Solution, solve
from solvers.verify import verify
from tests import fleets, split_world, synthetic
from tests.clocks import Stepped, Ticking
from tests.wide_world import short_fleet

LIMIT_S = 10.0
POLICY = Policy(min_saving_ratio=0.0, time_limit_s=LIMIT_S)
SMALL = synthetic.Size(nodes=72, services=4, rows=4, designs=4)  # 576 GPUs: as small as a wide fleet can be


def short() -> Problem:
    return synthetic.make_problem(SMALL, 1, load=1.2, policy=POLICY)


def small() -> Problem:
    return fleets.demo(policy=POLICY)


def in_parts() -> Problem:
    return split_world.documents(policy=POLICY)


def is_told(plan: Plan) -> bool:
    return any("the time limit of 10 s ended the search" in note for note in plan.report.notes)


@pytest.fixture(scope="module")
def unhurried() -> tuple[Plan, int]:
    """The plan for which there is time enough, and how often it looked at the clock."""
    clock = Ticking(step_s=0.0)
    return make_plan(short(), clock=clock), clock.reads


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.8])
def test_a_plan_cut_short_anywhere_is_sound_and_says_so(share: float, unhurried: tuple[Plan, int]) -> None:
    plan, reads = unhurried
    hurried = Ticking(step_s=LIMIT_S / max(0.5, share * reads))
    cut = make_plan(short(), clock=hurried)
    assert verify(cut, short()) == ()
    assert is_told(cut) is (cut.report.status is not SolveStatus.OPTIMAL)  # proved is as good as with more time
    assert not is_told(plan)
    assert hurried.reads <= reads
    assert cut.report.bound_usd_per_hour <= cut.report.objective_usd_per_hour


def test_a_clock_that_leaves_time_changes_no_byte(unhurried: tuple[Plan, int]) -> None:
    assert repr(make_plan(short())) == repr(unhurried[0])


@pytest.mark.parametrize("make", [small, in_parts])
def test_small_fleets_and_splits_end_in_time_too(make: Callable[[], Problem]) -> None:
    plan = make_plan(make(), clock=Ticking(step_s=LIMIT_S))
    assert verify(plan, make()) == ()


def test_a_solve_gets_what_is_left_but_never_nothing() -> None:
    clock, given = Stepped(now_s=100.0), list[float]()

    def seen(programme: Programme) -> Solution:
        given.append(float(programme.options["time_limit"]))
        return solve(programme)

    crew = Crew(deadline=Deadline.after(LIMIT_S, clock), solve=seen)
    for now_s in (100.0, 108.0, 112.0):
        clock.now_s = now_s
        crew.whole(one_column(time_limit=4.0))
    assert given == [4.0, 2.0, 0.5]


def test_a_solve_in_a_process_of_its_own_is_waited_for_a_little_longer_than_it_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, waited = Stepped(), list[float]()

    def here(do: Callable[[Programme], Solution], programme: Programme, *, deadline_s: float) -> Solution:
        waited.append(deadline_s - float(programme.options["time_limit"]))
        return do(programme)

    monkeypatch.setattr(pools_crew, "apart", here)
    crew = Crew(is_isolated=True, deadline=Deadline.after(LIMIT_S, clock))
    for now_s in (0.0, 8.0, 12.0):
        clock.now_s = now_s
        crew.whole(one_column(time_limit=4.0))
    assert waited == pytest.approx([GRACE_S] * 3)


def test_turns_so_far_tell_how_long_so_many_more_take() -> None:
    clock = Stepped(now_s=2.0)
    turns = Turns.of(Deadline(clock=clock, limit_s=10.0))
    assert turns.begun == 0.2
    clock.now_s, turns.done = 4.0, 4  # a twentieth of the limit each
    assert turns.allow(6, 0.71)
    assert not turns.allow(7, 0.71)
    assert Turns.of(Deadline()).allow(10**9, 0.0)  # without a clock there is always time


@pytest.mark.parametrize("is_late", [False, True])
def test_a_stage_that_time_ran_out_for_is_no_failure_worth_a_note(is_late: bool) -> None:
    deadline = Deadline(clock=Stepped(now_s=LIMIT_S if is_late else 0.0), limit_s=LIMIT_S)
    search = Search(desk=desk_for(small(), crew=Crew(deadline=deadline)))
    for _ in range(2):
        search._told_fault(SolveFailed("Time limit reached"))
    assert search.faults == ["choice: Time limit reached"] * 2
    assert search.notes == ([] if is_late else [FAILED_NOTE])


def test_prices_end_in_time_for_what_comes_after_them() -> None:
    for share, is_over in ((PRICES_UNTIL - 0.01, False), (PRICES_UNTIL, True)):
        deadline = Deadline(clock=Stepped(now_s=share * LIMIT_S), limit_s=LIMIT_S)
        assert Search(desk=desk_for(small(), crew=Crew(deadline=deadline)))._is_priced() is is_over


@pytest.mark.parametrize("is_late", [False, True])
def test_a_small_short_fleet_is_solved_tier_by_tier_only_in_time(
    is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, clock = list[Worth](), Stepped()

    def in_order(search: Search, cells: Cells, arrays: Arrays, composer: Composer, found: Worth) -> Worth:
        asked.append(found)
        return found

    monkeypatch.setattr(Search, "_in_order", in_order)
    crew = Crew(deadline=Deadline.after(LIMIT_S, clock))
    search = Search(desk=desk_for(fleets.demo(20.0, policy=POLICY), crew=crew))
    clock.now_s = LIMIT_S if is_late else 0.0
    found = search.run([])
    assert found.short
    assert bool(asked) is not is_late


@pytest.mark.parametrize(("is_late", "rounds"), [(False, MOST_ROUNDS), (True, 1)])
def test_no_further_round_is_begun_when_time_is_over(
    is_late: bool, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Search, "_round", lambda search, best, is_enough: (best, True))
    deadline = Deadline(clock=Stepped(now_s=LIMIT_S if is_late else 0.0), limit_s=LIMIT_S)
    search = Search(desk=desk_for(small(), crew=Crew(deadline=deadline)))
    search.run([])
    assert search.rounds == rounds


def test_what_was_found_before_a_stage_failed_stands() -> None:
    """All solves but the first few fail, as they would when time has run out."""
    found = [searched(short_fleet(), sound=count) for count in (0, 1, 3)]
    values = [worth.objective_usd_per_hour for worth, _ in found]
    assert all(before > after for before, after in pairwise(values))
    assert [search.notes.count(FAILED_NOTE) for _, search in found] == [1, 1, 1]


def searched(problem: Problem, sound: int) -> tuple[Worth, Search]:
    """What is found where only so many of the whole-number solves end well."""
    solves = list[Programme]()

    def failing(programme: Programme) -> Solution:
        solves.append(programme)
        if len(solves) > sound:
            raise SolveFailed("HiGHS gave no solution: Time limit reached")
        return solve(programme)

    search = Search(desk=desk_for(problem, crew=Crew(solve=failing)))
    return search.run([]), search


def test_without_a_clock_no_time_passes() -> None:
    deadline = Deadline.after(LIMIT_S, None)
    assert not deadline.is_past()
    assert deadline.seconds_for(7.0) == 7.0


def test_a_deadline_passes_by_its_shares() -> None:
    clock = Stepped(now_s=100.0)
    deadline = Deadline.after(LIMIT_S, clock)
    for now_s, passed in ((100.0, 0), (105.9, 0), (106.0, 1), (109.9, 1), (110.0, 2)):
        clock.now_s = now_s
        assert [deadline.is_past(0.6), deadline.is_past()] == [passed > 0, passed > 1]
    assert deadline.passed_share() == 1.0


def test_a_solve_may_take_what_is_left_until_a_share_of_the_limit() -> None:
    clock = Stepped(now_s=100.0)
    deadline = Deadline.after(LIMIT_S, clock)
    clock.now_s = 105.0
    assert [deadline.seconds_for(7.0), deadline.seconds_for(7.0, 0.9)] == pytest.approx([5.0, 4.0])
    clock.now_s = 109.5
    assert deadline.seconds_for(7.0, 0.9) == pytest.approx(0.05 * LIMIT_S)


def test_who_once_was_late_says_so() -> None:
    clock = Stepped(now_s=0.5 * LIMIT_S)
    crew = Crew(deadline=Deadline(clock=clock, limit_s=LIMIT_S))
    assert not crew.is_late()
    assert crew.late_notes() == ()
    assert crew.is_late(0.5)
    clock.now_s = 0.0
    assert not crew.is_late(0.5)
    assert [note.partition(" s ")[0] for note in crew.late_notes()] == ["the time limit of 10"]


def one_column(**options: Any) -> Programme:
    one = np.ones(1)
    return Programme(
        matrix=sp.csc_array(np.ones((1, 1))),
        cost=one,
        columns=(0.0 * one, 3.0 * one),
        rows=(one, 2.0 * one),
        whole=np.array([True]),
        options=options,
    )

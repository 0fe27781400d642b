"""Integer solves in a process of their own: a crash or a hang costs its piece, and is counted and told."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp

from controller.clusters import on_cluster
from solvers import planner
from solvers.apart import Child, WorkLost, apart
from solvers.errors import SolveFailed
from solvers.planner import make_plan
from solvers.planner.pools import crew
from solvers.planner.pools.crew import Crew
from solvers.problem import Problem
from solvers.programme import Programme, Run, Solution, Word, solve
from solvers.verify import verify
from tests import fleets


def knapsack(time_limit_s: float = 10.0) -> Programme:
    """Of worths 5, 4 and 3 that weigh 2, 3 and 1, the best within a weight of 5 are the first two: worth 9."""
    return Programme(
        matrix=sp.csc_array(np.array([[2.0, 3.0, 1.0]])),
        cost=np.array([-5.0, -4.0, -3.0]),
        columns=(np.zeros(3), np.ones(3)),
        rows=(np.array([-np.inf]), np.array([5.0])),
        whole=np.ones(3, dtype=bool),
        options={"time_limit": time_limit_s},
    )


def crash(programme: Programme) -> Solution:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def hang(programme: Programme) -> Solution:
    while True:
        time.sleep(0.01)


def refuse(programme: Programme) -> Solution:
    raise SolveFailed("HiGHS refused the model")


def test_a_solve_apart_gives_what_it_gives_here() -> None:
    here, there = solve(knapsack()), apart(solve, knapsack(), deadline_s=60.0)
    assert (there.word, there.value, there.bound) == (here.word, here.value, here.bound) == (Word.OPTIMAL, -9.0, -9.0)
    assert there.x.tolist() == here.x.tolist() == [1.0, 1.0, 0.0]


def test_the_child_is_kept_and_is_not_this_process() -> None:
    first, second = (apart(os.getpid, deadline_s=60.0) for _ in range(2))
    assert first == second != os.getpid()


def test_a_crash_costs_the_answer_only() -> None:
    with pytest.raises(WorkLost, match="ended with code -11"):
        apart(crash, knapsack(), deadline_s=60.0)
    assert apart(abs, -1, deadline_s=60.0) == 1


def test_a_hang_ends_at_the_deadline() -> None:
    with pytest.raises(WorkLost, match=r"did not answer in 0\.2 s"):
        apart(hang, knapsack(), deadline_s=0.2)
    assert apart(abs, -1, deadline_s=60.0) == 1


def test_what_is_raised_there_is_raised_here() -> None:
    with pytest.raises(SolveFailed, match="refused the model"):
        apart(refuse, knapsack(), deadline_s=60.0)


def test_a_child_ends_with_the_pipe_even_at_work() -> None:
    child = Child()
    assert child.ask(abs, -1, deadline_s=60.0) == 1
    assert child.end() == 0


@pytest.mark.parametrize(("broken", "grace_s", "limit_s"), [(crash, 10.0, 600.0), (hang, 0.2, 5.0)])
def test_a_plan_comes_and_says_that_solves_were_lost(
    broken: Run, grace_s: float, limit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The solver in the child dies or hangs at every integer solve; the decision falls back and is checked."""
    problem = within(fleets.demo(3.0), limit_s)
    best = make_plan(problem)
    monkeypatch.setattr(planner, "Crew", partial(Crew, solve=broken))
    monkeypatch.setattr(crew, "GRACE_S", grace_s)
    plan = make_plan(problem, is_isolated=True)
    assert verify(plan, problem) == ()
    assert any("integer solves were given up: their process died or hung" in note for note in plan.report.notes)
    assert plan.report.objective_usd_per_hour >= best.report.bound_usd_per_hour * (1.0 - 1e-9)


def within(problem: Problem, limit_s: float) -> Problem:
    """The same to be decided in so many seconds; a hang is seen after a part of them."""
    return replace(problem, policy=replace(problem.policy, time_limit_s=limit_s))


def test_the_plan_is_the_same_apart() -> None:
    problem = within(fleets.demo(3.0), 600.0)
    assert repr(make_plan(problem, is_isolated=True)) == repr(make_plan(problem))


def where(number: int) -> tuple[int, str]:
    """The number, and the thread that has it."""
    return number, threading.current_thread().name


@pytest.mark.filterwarnings("ignore")  # of the cluster's own making and closing
def test_on_a_cluster_pieces_go_there_and_integer_solves_stay_in_a_child_here() -> None:
    pytest.importorskip("distributed")
    there = Crew(workers=2, is_isolated=True)
    with on_cluster("dask", 2):  # a cluster of threads in this process
        answers = there.each(where, [(n,) for n in range(4)])
        assert there.whole(knapsack()).value == -9.0
        child = apart(os.getpid, deadline_s=60.0)
    assert [number for number, _ in answers] == [0, 1, 2, 3]
    assert "MainThread" not in {name for _, name in answers}
    assert child != os.getpid()
    assert (there.lost, there.lost_solves) == (0, 0)


def test_lost_solves_are_counted_and_others_are_not() -> None:
    sound, broken, refused = (Crew(is_isolated=True, solve=each) for each in (solve, crash, refuse))
    assert sound.whole(knapsack()).value == -9.0
    with pytest.raises(WorkLost):
        broken.whole(knapsack())
    with pytest.raises(SolveFailed):
        refused.whole(knapsack())
    assert [each.lost_solves for each in (sound, broken, refused)] == [0, 1, 0]
    assert broken.notes() == ("1 integer solves were given up: their process died or hung",)

"""The solver's process: answers, deadline, crash, memory limit, no leftovers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controller.worker import MOST_WORKERS, Allowance, Solver, SolverWorker, plan_solver, usable_workers
from solvers.errors import InvalidInput, SolveFailed
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Policy, Problem
from tests import fleets, synthetic
from tests.plans_by_hand import noted
from tests.replay_world import small_case
from tests.simcluster.poll import wait_until

MEBIBYTE = 1024**2
EMPTY = Problem(services=(), demands={}, gpu_classes={}, nodes=(), domains={}, profiles={})


def echo(problem: Problem, previous: Plan | None) -> Plan:
    return noted(f"{os.getpid()} after {previous.report.notes[0] if previous else 'nothing'}")


def hang_once(problem: Problem, previous: Plan | None) -> Plan:
    while previous is None:
        time.sleep(0.01)
    return previous


def crash(problem: Problem, previous: Plan | None) -> Plan:
    os._exit(11)


def devour(problem: Problem, previous: Plan | None) -> Plan:
    return noted(str(len(bytearray(1024 * MEBIBYTE))))


def start_children(code: str, count: int) -> list[int]:
    """Children of the solver's process that say when they are ready, and then wait."""
    program = [sys.executable, "-c", f"import time; {code}; print(flush=True); time.sleep(600)"]
    children = [subprocess.Popen(program, stdout=subprocess.PIPE) for _ in range(count)]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    return [child.pid for child in children]


def devour_together(problem: Problem, previous: Plan | None) -> Plan:
    """No process alone takes what is allowed; together they take half as much again."""
    start_children(f"held = b'1' * {400 * MEBIBYTE}", 3)
    while True:
        time.sleep(0.01)


def leave_children(problem: Problem, previous: Plan | None) -> Plan:
    """Start children, say which they are, and hang when asked again."""
    while previous is not None:
        time.sleep(0.01)
    return noted(" ".join(map(str, start_children("pass", 2))))


def kill_itself(problem: Problem, previous: Plan | None) -> Plan:
    """Leave the numbers of children in a file, and die."""
    assert previous is not None
    Path(previous.report.notes[0]).write_text(" ".join(map(str, start_children("pass", 2))))
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def refuse(problem: Problem, previous: Plan | None) -> Plan:
    raise InvalidInput("PowerDomain/a", "spec.parents", "cycle a → b → a", "remove one")


def stumble(problem: Problem, previous: Plan | None) -> Plan:
    raise ZeroDivisionError("oops")


@pytest.fixture
def make() -> Iterator[Callable[[Solver], SolverWorker]]:
    made: list[SolverWorker] = []

    def maker(solver: Solver) -> SolverWorker:
        made.append(SolverWorker(memory_bytes=768 * MEBIBYTE, solver=solver))
        return made[-1]

    yield maker
    for worker in made:
        worker.stop()


def test_the_child_stays_warm_between_solves(make: Callable[[Solver], SolverWorker]) -> None:
    worker = make(echo)
    first = worker.solve(EMPTY)
    second = worker.solve(EMPTY, replace(first))
    assert first.report.notes == (f"{worker.pid} after nothing",)
    assert second.report.notes == (f"{worker.pid} after {worker.pid} after nothing",)
    assert worker.pid != os.getpid()


def test_a_plan_comes_with_its_reasons() -> None:
    problem = fleets.demo(0.5)
    plan = plan_solver(problem, None)
    assert [why.service for why in plan.whys] == sorted(service.name for service in problem.services)


def test_a_limit_beyond_the_deadline_is_cut_to_end_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limits_s: list[float] = []

    def seen(problem: Problem, **options: Any) -> Plan:
        limits_s.append(problem.policy.time_limit_s)
        return make_plan(problem, **options)

    monkeypatch.setattr("solvers.planner.make_plan", seen)
    for limit_s in (3600.0, 20.0):
        plan_solver(fleets.demo(0.5, policy=Policy(time_limit_s=limit_s)), None, deadline_s=60.0)
    assert limits_s == [48.0, 20.0]


def test_a_solve_past_its_deadline_is_killed_and_the_next_one_works(make: Callable[[Solver], SolverWorker]) -> None:
    worker = make(hang_once)
    worker.solve(EMPTY, noted("warm"))
    hung = worker.pid
    with pytest.raises(SolveFailed, match="did not answer"):
        worker.solve(EMPTY, deadline_s=0.2)
    wait_until(lambda: not Path(f"/proc/{hung}").exists(), "the hung solver to be gone")
    assert worker.solve(EMPTY, noted("again")).report.notes == ("again",)
    assert worker.restarts == 1


def test_a_crash_is_a_failed_solve_with_the_exit_code(make: Callable[[Solver], SolverWorker]) -> None:
    worker = make(crash)
    with pytest.raises(SolveFailed, match="ended with code 11"):
        worker.solve(EMPTY)
    assert worker.restarts == 1


def test_a_solve_beyond_the_memory_limit_fails(make: Callable[[Solver], SolverWorker]) -> None:
    with pytest.raises(SolveFailed, match="ended with code 137; out of memory"):
        make(devour).solve(EMPTY)


def test_errors_of_the_solver_arrive_as_themselves(make: Callable[[Solver], SolverWorker]) -> None:
    with pytest.raises(InvalidInput, match=r"PowerDomain/a spec.parents: cycle"):
        make(refuse).solve(EMPTY)
    with pytest.raises(SolveFailed, match=r"ZeroDivisionError\('oops'\)"):
        make(stumble).solve(EMPTY)


def test_stopping_leaves_no_process(make: Callable[[Solver], SolverWorker]) -> None:
    worker = make(echo)
    worker.solve(EMPTY)
    pid = worker.pid
    worker.stop()
    assert not Path(f"/proc/{pid}").exists()


def test_stopping_ends_a_solve_in_flight_and_begins_none(make: Callable[[Solver], SolverWorker]) -> None:
    worker, failed = make(hang_once), list[str]()

    def solve() -> None:
        with pytest.raises(SolveFailed) as caught:
            worker.solve(EMPTY, deadline_s=300.0)
        failed.append(str(caught.value))

    thread = threading.Thread(target=solve)
    thread.start()
    wait_until(lambda: worker.pid is not None, "the child")
    worker.stop()
    thread.join(timeout=120.0)
    assert len(failed) == 1
    assert (worker.pid, worker.restarts) == (None, 0)
    with pytest.raises(SolveFailed, match="was stopped"):
        worker.solve(EMPTY)
    assert worker.pid is None


def is_gone(pid: int) -> bool:
    """True when there is no such process, or only its last word."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_solve_past_its_deadline_takes_its_children_with_it(make: Callable[[Solver], SolverWorker]) -> None:
    worker = make(leave_children)
    children = [int(pid) for pid in worker.solve(EMPTY).report.notes[0].split()]
    assert not any(map(is_gone, children))
    with pytest.raises(SolveFailed, match="did not answer"):
        worker.solve(EMPTY, noted("hang"), deadline_s=0.2)
    wait_until(lambda: all(map(is_gone, children)), "the children to be gone")


def test_a_crash_takes_the_children_with_it(make: Callable[[Solver], SolverWorker], tmp_path: Path) -> None:
    told = tmp_path / "children"
    with pytest.raises(SolveFailed, match="ended with code -11"):
        make(kill_itself).solve(EMPTY, noted(str(told)))
    children = [int(pid) for pid in told.read_text().split()]
    wait_until(lambda: all(map(is_gone, children)), "the children to be gone")


def test_what_children_hold_counts_towards_the_memory(make: Callable[[Solver], SolverWorker]) -> None:
    with pytest.raises(SolveFailed, match="ended with code 137; out of memory"):
        make(devour_together).solve(EMPTY)


def test_workers_are_those_asked_for_or_the_cores() -> None:
    assert usable_workers(7) == 7
    assert 1 <= usable_workers() <= MOST_WORKERS


def test_the_solvers_process_shares_its_work_and_decides_the_same() -> None:
    size = synthetic.Size(nodes=72, services=4, rows=4, designs=4)
    problem = synthetic.make_problem(size, 1, load=0.4, policy=Policy(min_saving_ratio=0.0))
    worker = SolverWorker(memory_bytes=4096 * MEBIBYTE, solver=partial(plan_solver, workers=2))
    try:
        assert repr(worker.solve(problem)) == repr(plan_solver(problem, None))
    finally:
        worker.stop()


def test_a_step_begins_only_if_the_longest_so_far_would_end_in_time() -> None:
    now_s = [0.0]
    allows = Allowance(10.0, clock=lambda: now_s[0])
    now_s[0] = 4.0
    assert allows(), "another step of 4 s ends at 8 s"
    now_s[0] = 6.5
    assert not allows(), "one more would end at 10.5 s"


def test_the_policy_lets_a_simulation_refute_plans() -> None:
    stated, plan = small_case()
    replayed = plan_solver(replace(stated, policy=replace(stated.policy, replay=True)), None, workers=2)
    assert replayed.placements == plan.placements
    assert any(note.endswith("requests refutes nothing") for note in replayed.report.notes)
    assert not any("replay" in note for note in plan_solver(stated, None).report.notes)
    late = plan_solver(replace(stated, policy=replace(stated.policy, replay=True)), None, deadline_s=0.0)
    assert "it was not replayed: the time for it was over" in late.report.notes


def test_a_replay_that_cannot_be_made_costs_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    stated, plan = small_case()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr("solvers.refute.replayed", broken)
    found = plan_solver(replace(stated, policy=replace(stated.policy, replay=True)), None)
    assert found.placements == plan.placements
    assert found.report.notes[-1].startswith("it could not be replayed: RuntimeError")

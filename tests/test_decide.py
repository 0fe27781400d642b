"""When the loop decides anew, and what becomes of answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from controller.decide import Decider, is_silent
from controller.demand import DemandView
from controller.inventory import Records
from controller.manifests import default_policy
from controller.observe import Observation, build_problem
from controller.readings import Readings
from controller.specs import Specs
from controller.turn import Decision
from solvers.errors import SolveFailed
from solvers.fleet import PowerDomain
from solvers.plan import Plan
from solvers.problem import Problem
from tests.plans_by_hand import NO_REPORT, NOTHING
from tests.simcluster.poll import wait_until


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Gate:
    """A worker that answers when it is let."""

    def __init__(self) -> None:
        self.open, self.answer = threading.Event(), NOTHING
        self.fault: Exception | None = None
        self.replays: list[bool] = []

    def solve(self, problem: Problem, previous: Plan | None = None, deadline_s: float = 60.0) -> Plan:
        self.replays.append(problem.policy.replay)
        assert self.open.wait(120.0)
        if self.fault is not None:
            raise self.fault
        return self.answer


@pytest.fixture
def world() -> Iterator[tuple[Decider, Gate, Clock]]:
    gate, clock = Gate(), Clock()
    decider = Decider(gate, deadline_s=60.0, clock=clock)
    yield decider, gate, clock
    gate.open.set()
    decider.stop()


World = tuple[Decider, Gate, Clock]


def observation(**changes: object) -> Observation:
    """Nothing at all, but for what a test says."""
    specs = Specs(policy=default_policy(), served_models=(), gpu_classes=(), power_domains=(), engine_profiles=())
    empty = build_problem(specs, Records(), Readings(taken_at_s=0.0), 0.0)
    return replace(empty, problem=replace(empty.problem, **changes))  # type: ignore[arg-type]


def answered(decider: Decider, gate: Gate) -> None:
    gate.open.set()
    wait_until(lambda: decider.has_answer, "the answer")


def test_the_first_decision_is_due_at_once_and_one_solve_is_in_flight(world: World) -> None:
    decider, gate, _ = world
    seen = observation()
    assert decider.why_now(seen, 60.0) == "no decision was made yet"
    decider.begin(seen.problem)
    assert decider.why_now(seen, 60.0) == ""
    assert not decider.collect(1.0)
    answered(decider, gate)
    assert decider.collect(1.0)
    assert decider.decision is not None
    assert (decider.decision.plan, decider.decision.made_at_s) == (NOTHING, 1.0)


def test_decisions_come_with_time_and_at_once_when_the_fleet_changes(world: World) -> None:
    decider, gate, clock = world
    seen = observation()
    decider.begin(seen.problem)
    answered(decider, gate)
    decider.collect(1.0)
    assert decider.why_now(seen, 60.0) == ""
    changed = observation(domains={"site": PowerDomain(name="site", budget_watts=1.0)})
    assert decider.why_now(changed, 60.0) == "the fleet or what is asked of it changed"
    clock.now_s += 60.0
    assert decider.why_now(seen, 60.0) == "the time for a decision has come"


def test_a_failed_solve_is_tried_again_after_a_pause_and_at_once_on_a_change(world: World) -> None:
    decider, gate, clock = world
    gate.fault = SolveFailed("no stage led to a sound plan")
    seen = observation()
    decider.begin(seen.problem)
    answered(decider, gate)
    assert not decider.collect(1.0)
    assert decider.fault == "no stage led to a sound plan"
    assert decider.why_now(seen, 60.0) == ""
    assert decider.why_now(observation(domains={"a": PowerDomain(name="a", budget_watts=1.0)}), 60.0) != ""
    clock.now_s += 5.0
    assert decider.why_now(seen, 60.0) == "the last solve failed"


def test_after_a_solve_longer_than_the_period_the_next_one_is_due_at_once(world: World) -> None:
    decider, gate, clock = world
    decider.begin(observation().problem)
    clock.now_s += 75.0
    assert decider.why_now(observation(), 60.0) == "", "one at a time"
    answered(decider, gate)
    decider.collect(1.0)
    assert decider.why_now(observation(), 60.0) == "the time for a decision has come"


def test_what_changed_during_a_solve_is_solved_at_once_after_it(world: World) -> None:
    decider, gate, _ = world
    decider.begin(observation().problem)
    newest = observation(domains={"site": PowerDomain(name="site", budget_watts=1.0)})
    assert decider.why_now(newest, 60.0) == ""
    answered(decider, gate)
    decider.collect(1.0)
    assert decider.why_now(newest, 60.0) == "the fleet or what is asked of it changed"


def test_solves_that_fail_again_and_again_are_tried_less_often(world: World) -> None:
    decider, gate, clock = world
    gate.fault, pauses_s = SolveFailed("the solver did not answer in 60.0 s and was killed"), list[float]()
    for _ in range(4):
        decider.begin(observation().problem)
        answered(decider, gate)
        decider.collect(1.0)
        failed_s = clock.now_s
        while not decider.why_now(observation(), 60.0):
            clock.now_s += 1.0
        pauses_s.append(clock.now_s - failed_s)
    assert pauses_s == [5.0, 10.0, 20.0, 40.0]
    gate.fault = None
    decider.begin(observation().problem)
    answered(decider, gate)
    assert decider.collect(1.0)
    assert (decider.fault, decider.failures) == ("", 0)


def test_after_a_failed_solve_the_next_one_is_not_replayed(world: World) -> None:
    decider, gate, _ = world
    gate.open.set()
    stated = observation().problem
    stated = replace(stated, policy=replace(stated.policy, replay=True))
    for fault in (SolveFailed("the solver did not answer in 60.0 s and was killed"), None, None):
        gate.fault = fault
        decider.begin(stated)
        wait_until(lambda: decider.has_answer, "the solve")
        decider.collect(0.0)
    assert gate.replays == [True, False, True]


def test_a_plan_that_fails_the_check_is_not_taken(world: World) -> None:
    decider, gate, _ = world
    gate.answer = replace(NOTHING, report=replace(NO_REPORT, cost_usd_per_hour=99.0))
    decider.begin(observation().problem)
    answered(decider, gate)
    assert not decider.collect(1.0)
    assert decider.decision is None
    assert "breaks" in decider.fault


def test_the_same_decision_keeps_its_number(world: World) -> None:
    decider, gate, _ = world
    decider.adopt(Decision(plan=NOTHING, problem=observation().problem, number=7))
    decider.begin(observation().problem)
    answered(decider, gate)
    assert decider.collect(2.0)
    assert decider.decision is not None
    assert decider.decision.number == 7


def test_an_answer_that_comes_after_leadership_is_dropped(world: World) -> None:
    decider, gate, _ = world
    decider.begin(observation().problem)
    decider.forget()
    gate.open.set()
    assert not decider.is_solving
    assert not decider.collect(1.0)
    assert decider.why_now(observation(), 60.0) == "no decision was made yet"


def test_solves_are_told_of_with_their_result() -> None:
    told: list[str] = []
    gate = Gate()
    decider = Decider(gate, deadline_s=1.0, on_done=lambda result, took_s: told.append(result))
    gate.open.set()
    decider.begin(observation().problem)
    wait_until(lambda: told, "a word")
    gate.fault = SolveFailed("x")
    decider.collect(0.0)
    decider.begin(observation().problem)
    wait_until(lambda: len(told) == 2, "another word")
    decider.stop()
    assert told == ["planned", "failed"]


def view(reason: str, *, is_fresh: bool) -> DemandView:
    return DemandView(demand=None, is_fresh=is_fresh, reason=reason, message="")


@pytest.mark.parametrize(
    ("views", "silent"),
    [
        ([], False),
        ([view("Declared", is_fresh=True)], False),
        ([view("Declared", is_fresh=False)], False),  # nothing runs yet: it may start on what is declared
        ([view("Held", is_fresh=False)], True),
        ([view("Absent", is_fresh=False), view("Declared", is_fresh=True)], True),
        ([view("Held", is_fresh=False), view("Gateway", is_fresh=True)], False),
    ],
)
def test_silence_is_when_all_who_should_speak_are_silent(views: list[DemandView], silent: bool) -> None:
    demands = {str(number): each for number, each in enumerate(views)}
    assert is_silent(replace(observation(), demands=demands)) is silent

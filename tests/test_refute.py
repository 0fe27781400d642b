"""The simulation refutes a plan that its sizing was too hopeful for, and only such a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.cli import main
from solvers import refute
from solvers.engine import Role
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem
from solvers.refute import LEAST_FACTOR, ROUNDS, poisson_load, refuted_plan, replayed
from solvers.sizing import Capacity, replica_capacity
from solvers.verify import verify
from tests.fleets import demand, nodes, problem, profile, service
from tests.replay_world import RATE, small_case


def hopeful(factor: float) -> Any:
    """``make_plan`` with a sizing that says ``factor`` times what the formulas do."""

    def decide(stated: Problem, *, previous: Plan | None = None, capacity_of: Any = replica_capacity) -> Plan:
        def said(*args: Any, **kwargs: Any) -> Any:
            found = capacity_of(*args, **kwargs)
            if isinstance(found, Capacity):
                return replace(found, requests_per_s=factor * found.requests_per_s)
            return found

        return make_plan(stated, previous=previous, capacity_of=said)

    return decide


def mixed_case(rate: float = 40.0) -> Problem:
    """A service that only mixed replicas may serve."""
    chat = service("chat", "llama-8b", roles=(Role.MIXED,), ttft_s=0.4, itl_s=0.03)
    return problem([(chat, rate)], nodes("h100-sxm", 3, "rack-1"), [profile("llama-8b", "h100-sxm", 1, 8.0)])


def replicas(plan: Plan) -> int:
    return sum(row.replicas for row in plan.placements)


def test_what_the_formulas_size_is_not_refuted() -> None:
    stated, plan = small_case()
    found = refuted_plan(stated)
    assert (found.rounds, found.kept, found.factors) == (0, True, {})
    assert found.plan.placements == plan.placements
    assert found.plan.report.notes[-1].endswith("requests refutes nothing")


def test_a_plan_that_is_too_small_is_refuted_and_grows_until_it_holds() -> None:
    stated = mixed_case()
    small = hopeful(2.5)(stated)
    found = refuted_plan(stated, decide=hopeful(2.5))
    assert 1 <= found.rounds <= ROUNDS
    assert found.kept
    assert replicas(found.plan) > replicas(small)
    assert any(note.startswith("refuted in round 1: default/chat") for note in found.plan.report.notes)
    assert "capacities held below the formulas': default/chat" in found.plan.report.notes[-1]
    assert all(LEAST_FACTOR <= factor < 1.0 for factor in found.factors.values())
    assert found.plan.certificate is None  # its prices are of less than the sizing gives


def test_a_plan_that_no_tightening_helps_ends_and_says_so() -> None:
    found = refuted_plan(mixed_case(), decide=hopeful(6.0))
    assert not found.kept
    assert found.rounds <= ROUNDS
    assert "still refutes default/chat" in found.plan.report.notes[-1]


def test_a_tightened_plan_passes_the_check_that_others_make() -> None:
    stated = mixed_case()
    factors = {("default/chat", Role.MIXED): LEAST_FACTOR}
    plan = make_plan(stated, capacity_of=refute._tightened(refute._asked(stated, factors)))
    assert replicas(plan) > replicas(make_plan(stated))
    assert verify(plan, stated, capacity_of=replica_capacity) == ()


def test_the_same_seed_gives_the_same_verdict() -> None:
    stated, plan = small_case()
    assert repr(replayed(stated, plan, 1)) == repr(replayed(stated, plan, 1))
    assert repr(replayed(stated, plan, 1)) != repr(replayed(stated, plan, 2))


def test_the_replayed_load_is_the_planned_one() -> None:
    stated, _ = small_case()
    load = poisson_load(stated.demands, 1000.0, 5)
    expected = RATE * 1000.0
    assert abs(load.requests - expected) < 5 * expected**0.5
    mix = stated.demands["default/chat"].mix
    mean = sum(b.weight_ratio * b.prompt_tokens for b in mix)
    assert float(load.workload.prompt_tokens.mean()) == pytest.approx(mean, rel=0.05)


def test_nothing_served_is_nothing_to_replay() -> None:
    chat = service("chat", "llama-8b")
    stated = problem([(chat, 0.0)], nodes("h100-sxm", 1, "rack-1"), [profile("llama-8b", "h100-sxm", 1, 8.0)])
    stated = replace(stated, demands={chat.name: demand(chat, 0.0)})
    assert refuted_plan(stated).plan.report.notes[-1] == "not replayed: nothing is served"


def test_the_command_plans_with_a_replay(capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(Path(__file__).parents[1] / "deploy" / "samples" / "minimal")
    assert main(["plan", "-f", folder, "--replay"]) == 0
    assert "note: the replay of " in capsys.readouterr().out


def test_who_has_no_time_gets_the_first_plan_with_a_note() -> None:
    stated = mixed_case()
    found = refuted_plan(stated, decide=hopeful(2.5), goes_on=lambda: False)
    assert (found.rounds, found.kept, found.summary) == (0, False, None)
    assert found.plan.placements == hopeful(2.5)(stated).placements
    assert found.plan.report.notes[-1] == "it was not replayed: the time for it was over"


def test_time_that_ends_after_a_replay_leaves_what_it_refuted() -> None:
    answers = iter([True, False])
    found = refuted_plan(mixed_case(), decide=hopeful(2.5), goes_on=lambda: next(answers))
    assert not found.kept
    assert "still refutes default/chat" in found.plan.report.notes[-1]
    answers = iter([True, True, False])
    found = refuted_plan(mixed_case(), decide=hopeful(2.5), goes_on=lambda: next(answers))
    assert found.rounds == 1
    assert found.plan.report.notes[-1] == "this plan was not replayed again: the time for it was over"
    assert found.plan.report.notes[-2].startswith("refuted in round 1: default/chat")

"""What sizing said is kept between decisions, and never where what it rests on has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from solvers.planner import make_plan
from solvers.planner.pools.sizings import Sizings
from solvers.problem import Policy, Problem
from solvers.sizing import replica_capacity
from tests import synthetic

SMALL = synthetic.Size(nodes=72, services=3, rows=4, designs=4)


def drawn() -> Problem:
    return synthetic.make_problem(SMALL, 3, load=0.4, policy=Policy(min_saving_ratio=0.0, time_limit_s=600.0))


def looser(problem: Problem) -> Problem:
    """Every limit a third longer."""
    by = (tuple(replace(slo, limit_s=1.3 * slo.limit_s) for slo in s.slos) for s in problem.services)
    services = (replace(s, slos=slos) for s, slos in zip(problem.services, by, strict=True))
    return replace(problem, services=tuple(services))


def shorter(problem: Problem) -> Problem:
    """The first size of each mix alone."""
    demands = {name: replace(d, mix=d.mix[:1]) for name, d in problem.demands.items()}
    return replace(problem, demands=demands)


def slower(problem: Problem) -> Problem:
    """Prompts take a tenth longer."""
    profiles = {
        key: replace(p, prefill_s=tuple(1.1 * seconds for seconds in p.prefill_s))
        for key, p in problem.profiles.items()
    }
    return replace(problem, profiles=profiles)


def fewer(problem: Problem) -> Problem:
    """The first service is gone."""
    services = problem.services[1:]
    return replace(problem, services=services, demands={s.name: problem.demands[s.name] for s in services})


def test_the_same_bytes_with_what_was_kept() -> None:
    problem, sizings = drawn(), Sizings()
    plan = make_plan(problem, sizings=sizings)
    moved = synthetic.shifted(problem, plan, 0.1, seed=3)
    kept = len(sizings.known)
    assert repr(make_plan(problem)) == repr(plan)
    warm = make_plan(moved, previous=plan, sizings=sizings, workers=2)
    assert repr(warm) == repr(make_plan(moved, previous=plan))
    assert 0 < kept < len(sizings.known) < 2 * kept


@pytest.mark.parametrize("change", [looser, shorter, slower, fewer])
def test_what_no_longer_holds_is_asked_for_again(change: Callable[[Problem], Problem]) -> None:
    problem, sizings = drawn(), Sizings()
    known = sizings.of(problem, replica_capacity)
    make_plan(problem, sizings=sizings)
    changed = change(problem)
    left = sizings.of(changed, replica_capacity)
    names = {service.name for service in changed.services}
    assert {pool.service for pool, _ in left} == (names if change is fewer else set())
    assert all(left[key] == known[key] for key in left)


def test_an_earlier_desk_keeps_the_answers_that_it_was_given() -> None:
    problem, sizings = drawn(), Sizings()
    make_plan(problem, sizings=sizings)
    before = sizings.of(problem, replica_capacity)
    count = len(before)
    assert sizings.of(looser(problem), replica_capacity) == {}
    assert len(before) == count > 0


def test_another_way_to_size_is_kept_apart() -> None:
    problem, sizings = drawn(), Sizings()
    other = partial(replica_capacity)
    assert make_plan(problem, capacity_of=other, sizings=sizings) == make_plan(problem)
    assert sizings.known == {}


def test_too_much_is_let_go() -> None:
    problem, sizings = drawn(), Sizings(most=10)
    make_plan(problem, sizings=sizings)
    assert len(sizings.known) > 10
    assert sizings.of(problem, replica_capacity) == {}

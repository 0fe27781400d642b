"""Cuts of fleets too large for menus: weighed at the prices of plans, never dearer than those that rents like best."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.planner import make_plan
from solvers.planner.pools.crew import Crew
from solvers.planner.splits.cuts import open_book
from solvers.planner.splits.parted import MOST_PRICED
from solvers.problem import Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify
from tests.bench_splitting import by_rent, whole_of
from tests.split_world import readers


def names(problem: Problem) -> list[str]:
    return [service.name for service in problem.services]


@pytest.mark.parametrize("seed", [2, 3])
def test_cuts_at_prices_are_cheaper_than_those_that_rents_like_best(seed: int) -> None:
    problem = readers(seed)
    assert Crew().finds_wide(problem)
    plan = make_plan(problem)
    assert verify(plan, problem) == ()
    assert not plan.is_short
    assert plan.parts
    whole = make_plan(whole_of("readers", seed))
    assert plan.report.objective_usd_per_hour < 0.999 * by_rent(problem, whole, 1)
    told = [note for note in plan.report.notes if note.startswith("the bound covers")]
    assert all(note.count(" or ") < MOST_PRICED for note in told)
    assert told


def test_ranges_are_weighed_at_the_prices_of_a_plan() -> None:
    """What all services are worth whole is what their bound says, and what the prices fetch for the room."""
    problem = readers(2)
    book = open_book(problem, replica_capacity, {}, names(problem))
    assert book.bound_usd_per_hour is None
    shown = make_plan(whole_of("readers", 2)).certificate
    assert shown is not None
    priced = book.at(shown)
    assert priced.alone_usd_per_hour != book.alone_usd_per_hour
    assert sum(priced.value_usd_per_hour(name, ()) for name in names(problem)) > shown.usd_per_hour
    assert all(np.isfinite(value) and value > 0.0 for value in priced.alone_usd_per_hour.values())
    for service, ranges in priced.best().items():
        assert priced.saving_usd_per_hour(service, ranges) > 0.0

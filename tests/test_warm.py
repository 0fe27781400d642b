"""Plans from a plan before: begun at its prices, sound, and proved as near the best as those without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.menus.compose import shared_rows
from solvers.planner.model.relax import state
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.cells import build_cells
from solvers.planner.proof.certify import certificate, known_duals
from solvers.planner.search import Search
from solvers.problem import Policy, Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify
from solvers.verify.bound import verify_bound
from tests import synthetic

SMALL = synthetic.Size(nodes=72, services=3, rows=4, designs=4)
POLICY = Policy(min_saving_ratio=0.0, time_limit_s=600.0)


@pytest.fixture(scope="module")
def planned() -> tuple[Problem, Plan]:
    problem = synthetic.make_problem(SMALL, 2, load=0.4, policy=POLICY)
    return problem, make_plan(problem)


def test_the_prices_of_a_certificate_are_found_again(planned: tuple[Problem, Plan]) -> None:
    problem, plan = planned
    assert plan.certificate is not None
    assert plan.certificate.rows
    cells = build_cells(problem, Desk.of(problem, replica_capacity).options)
    arrays = state(cells)
    duals = known_duals(cells, arrays, plan.certificate)
    shared = shared_rows(arrays)
    again = certificate(cells, arrays, -duals[shared], plan.certificate.usd_per_hour)
    assert sorted(again.rows, key=repr) == sorted(plan.certificate.rows, key=repr)
    assert not np.delete(duals, shared).any()


def test_places_that_are_new_cost_nothing_and_others_what_they_did(planned: tuple[Problem, Plan]) -> None:
    problem, plan = planned
    assert plan.certificate is not None
    cells = build_cells(problem, Desk.of(problem, replica_capacity).options)
    arrays = state(cells)
    row = max(plan.certificate.rows, key=lambda row: len(row.places) * row.usd_per_hour)
    fewer = replace(row, places=row.places[:1])
    alone, half = (replace(plan.certificate, rows=(one,)) for one in (row, fewer))
    full, part = (known_duals(cells, arrays, each).min() for each in (alone, half))
    assert full == pytest.approx(-row.usd_per_hour)
    assert part == pytest.approx(full / len(row.places))


def test_a_plan_from_a_plan_is_sound_and_proved_with_its_prices_and_without(planned: tuple[Problem, Plan]) -> None:
    problem, plan = planned
    moved = synthetic.shifted(problem, plan, 0.05, seed=2)
    warm = make_plan(moved, previous=plan)
    cold = make_plan(moved, previous=replace(plan, certificate=None))
    for one, other in ((warm, cold), (cold, warm)):
        assert verify(one, moved) == ()
        assert one.report.bound_usd_per_hour <= other.report.objective_usd_per_hour * (1.0 + 1e-9)
        assert one.report.gap_ratio < 0.05
    check = verify_bound(warm, moved, capacity_of=replica_capacity)
    assert check is not None
    assert str(check).startswith("bound supported")


def test_no_relaxation_is_solved_where_prices_are_known(
    planned: tuple[Problem, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, plan = planned
    desk = Desk.of(problem, replica_capacity, plan)
    counts = {(row.pool, row.location): row.replicas for row in plan.placements}
    monkeypatch.delattr("solvers.planner.search.solve_linear")
    search = Search(desk=desk)
    found = search.run([desk.worth(counts)])
    assert not search.faults
    assert found.objective_usd_per_hour <= plan.report.objective_usd_per_hour * (1.0 + 1e-9)
    assert 0.0 < search.bound_usd_per_hour <= found.objective_usd_per_hour

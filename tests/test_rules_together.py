"""Oracle: every count of tiny fleets under all rules at once, drawn at random, against the plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.planner import make_plan
from solvers.problem import Problem, Quota
from solvers.verify import verify
from solvers.workload import ServedModel
from tests.test_against_brute_force import POLICY, TOLERANCE, Placed, Tiny, best_by_trying, drawn
from tests.test_pairing import Grouped, grouped
from tests.test_pins import Pinned, pinned_somewhere
from tests.test_quotas import Allowed
from tests.test_spot import Spot
from tests.test_spread import Spread, spread

ORACLES = (Allowed, Grouped, Pinned, Spread, Spot)


class Together(Tiny):
    """What each rule's own oracle says, together."""

    @property
    def parts(self) -> list[Tiny]:
        return [oracle(problem=self.problem, table=self.table) for oracle in ORACLES]

    def allows(self, counts: Placed) -> bool:
        return all(part.allows(counts) for part in self.parts)

    def limited_per_s(self, service: ServedModel, counts: Placed, able_per_s: float) -> float:
        return min(part.limited_per_s(service, counts, able_per_s) for part in self.parts)

    def missing(self, service: ServedModel, counts: Placed) -> int:
        return sum(part.missing(service, counts) for part in self.parts)

    def terms_usd_per_hour(self, counts: Placed) -> float:
        return sum(part.terms_usd_per_hour(counts) for part in self.parts)


def with_rules(problem: Problem, rng: np.random.Generator) -> Problem:
    """Draw some of every rule."""
    services = tuple(
        replace(spread(pinned_somewhere(s, rng), rng), max_spot_ratio=float(rng.choice([0.0, 0.5, 1.0, 1.0])))
        for s in problem.services
    )
    nodes = tuple(
        replace(n, reclaims_per_hour=float(rng.choice([0.0, 0.0, 2.0])), price_ratio=float(rng.choice([0.5, 1.0])))
        for n in problem.nodes
    )
    quotas = (Quota(namespace="team", max_gpus=int(rng.integers(2, 7)), guaranteed_ratio=0.3),)
    return replace(problem, services=services, nodes=nodes, policy=replace(POLICY, quotas=quotas))


def with_pairs(problem: Problem, rng: np.random.Generator) -> Problem:
    """Draw who may pair with whom."""
    services = tuple(replace(s, kv_may_cross=bool(rng.random() < 0.5)) for s in problem.services)
    return replace(grouped(problem, rng) if rng.random() < 0.5 else problem, services=services)


@pytest.mark.parametrize("first", [9000, 9020])
def test_no_counts_under_all_rules_are_cheaper_than_the_plan(first: int) -> None:
    compared = 0
    for seed, drawn_case in drawn(first, 20):
        problem = with_pairs(with_rules(drawn_case.problem, np.random.default_rng(seed)), np.random.default_rng(seed))
        case = Together(problem=problem, table=drawn_case.table)
        plan = make_plan(problem, capacity_of=case.capacity_of)
        assert verify(plan, problem, capacity_of=case.capacity_of) == ()
        best, found = best_by_trying(case), plan.report.objective_usd_per_hour
        assert found >= best * (1.0 - TOLERANCE), seed
        if any("lower tier gave way" in note or note.startswith("kept") for note in plan.report.notes):
            continue
        assert plan.report.bound_usd_per_hour <= best * (1.0 + TOLERANCE), seed
        assert found == pytest.approx(best, rel=TOLERANCE), seed
        compared += 1
    assert compared >= 10

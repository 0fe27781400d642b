"""The check of bounds by branches: every plan lies in one, each is found again, what is not so is refused by name."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from solvers.certificate import Branch, Certificate, Undone
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.verify.bound import BoundCheck, recomputed, verify_bound
from solvers.verify.branches import branch_faults, in_branch
from tests import fleets
from tests.feed_world import at_one_feed

PROBLEM = at_one_feed()
LARGE = "default/large"
Limits = dict[str, tuple[float, float]]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(PROBLEM, capacity_of=fleets.plain_capacity, wide_gpus=0)


def shown(plan: Plan) -> Certificate:
    assert plan.certificate is not None
    return plan.certificate


def checked(plan: Plan, certificate: Certificate) -> BoundCheck:
    check = verify_bound(replace(plan, certificate=certificate), PROBLEM, capacity_of=fleets.plain_capacity)
    assert check is not None
    return check


def test_a_bound_by_branches_is_found_again(plan: Plan) -> None:
    check = checked(plan, shown(plan))
    assert len(shown(plan).branches) >= 2
    assert str(check).startswith("bound supported"), str(check)
    assert check.recomputed_usd_per_hour <= plan.report.objective_usd_per_hour * (1.0 + 1e-9)
    assert check.recomputed_usd_per_hour >= 0.99 * plan.report.objective_usd_per_hour
    alone = replace(shown(plan), branches=())
    assert not checked(plan, alone).is_supported  # the prices before any branch say much less


def test_at_any_prices_and_any_cut_the_least_branch_lies_below_the_plan(plan: Plan) -> None:
    rng = np.random.default_rng(11)
    all_undone = 2.0 * next(w.unserved_usd_per_hour for w in shown(plan).weights if w.service == LARGE)
    for _ in range(60):
        cut, values = float(rng.uniform(0.0, all_undone)), []
        for limits in ((0.0, cut), (cut, math.inf)):
            undone = (Undone(service=LARGE, least_usd_per_hour=limits[0], most_usd_per_hour=limits[1]),)
            rows = tuple(
                replace(row, usd_per_hour=row.usd_per_hour * rng.uniform(0.0, 3.0)) for row in shown(plan).rows
            )
            ratios = tuple(rng.uniform(0.0, 1.0, len(shown(plan).held)).tolist())
            branch = Branch(usd_per_hour=0.0, undone=undone, rows=rows, held_ratios=ratios)
            values.append(recomputed(in_branch(shown(plan), branch), PROBLEM, fleets.plain_capacity, undone))
        assert min(values) <= plan.report.objective_usd_per_hour * (1.0 + 1e-6), cut


def with_first(plan: Plan, branch: Branch) -> Certificate:
    return replace(shown(plan), branches=(branch, *shown(plan).branches[1:]))


def test_corrupted_branches_are_refused_by_name(plan: Plan) -> None:
    first = shown(plan).branches[0]
    halved = tuple(replace(u, least_usd_per_hour=1.0 + u.least_usd_per_hour) for u in first.undone)
    unknown = (Undone(service="default/none", least_usd_per_hour=0.0, most_usd_per_hour=1.0),)
    negative = tuple(replace(row, usd_per_hour=-1.0) for row in first.rows)
    for certificate, said in (
        (replace(shown(plan), branches=shown(plan).branches[1:]), "some plans lie in none of the branches"),
        (with_first(plan, replace(first, undone=halved)), "some plans lie in none of the branches"),
        (with_first(plan, replace(first, undone=unknown)), "branch 1 speaks of default/none"),
        (with_first(plan, replace(first, undone=(*first.undone, *first.undone))), "or twice"),
        (with_first(plan, replace(first, rows=negative)), "is -1 USD/h"),
        (with_first(plan, replace(first, usd_per_hour=math.inf)), "branch 1 supports inf USD/h"),
        (with_first(plan, replace(first, usd_per_hour=1.0)), "branch 1 supports 1 USD/h, the certificate"),
        (with_first(plan, replace(first, held_ratios=(*first.held_ratios, 0.0))), "prices of"),
    ):
        check = checked(plan, certificate)
        assert not check.is_supported
        assert said in check.fault


def test_prices_of_another_branch_support_no_claim(plan: Plan) -> None:
    """Each branch rests on prices of its own: those before any branch do not hold it up."""
    alike = tuple(replace(branch, rows=shown(plan).rows) for branch in shown(plan).branches)
    assert not checked(plan, replace(shown(plan), branches=alike)).is_supported


def tree(rng: np.random.Generator, box: Limits, depth: int) -> list[Limits]:
    if depth == 0 or rng.random() < 0.2:
        return [box]
    name = str(rng.choice(["a", "b", "c"]))
    least, most = box.get(name, (0.0, math.inf))
    cut = float(rng.uniform(least, min(most, least + 10.0)))
    return [*tree(rng, {**box, name: (least, cut)}, depth - 1), *tree(rng, {**box, name: (cut, most)}, depth - 1)]


def certificate_of(boxes: list[Limits]) -> Certificate:
    branches = tuple(
        Branch(
            usd_per_hour=1.0,
            undone=tuple(Undone(service=n, least_usd_per_hour=a, most_usd_per_hour=b) for n, (a, b) in box.items()),
            rows=(),
        )
        for box in boxes
    )
    return Certificate(usd_per_hour=1.0, rows=(), weights=(), branches=branches)


def test_trees_hold_every_plan_and_trees_that_lack_a_leaf_do_not() -> None:
    rng, looked = np.random.default_rng(5), 0
    for _ in range(60):
        boxes = [box for box in tree(rng, {}, 4) if all(a < b for a, b in box.values())]
        rng.shuffle(boxes)
        assert not list(branch_faults(certificate_of(boxes), "abc"))
        if len(boxes) > 1:
            looked += 1
            assert list(branch_faults(certificate_of(boxes[1:]), "abc")) == ["some plans lie in none of the branches"]
    assert looked > 30

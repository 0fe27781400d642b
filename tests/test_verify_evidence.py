"""Corrupted certificates: prices of nothing, weights nobody pays and tiers held at other amounts are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from solvers.certificate import (
    GPUS,
    LINK_OUT,
    POWER,
    POWER_WHOLE,
    QUOTA_GPUS,
    RESOURCES,
    RESOURCES_WHOLE,
    Certificate,
    PricedRow,
)
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Policy, Problem
from solvers.sizing import replica_capacity
from solvers.verify.bound import BoundCheck, recomputed, verify_bound
from tests import fleets, synthetic

Corrupt = Callable[[Certificate], Certificate]
SHORT = synthetic.Size(nodes=72, services=4, rows=4, designs=4)  # 576 GPUs: as small as a wide fleet can be


def checked(plan: Plan, problem: Problem) -> BoundCheck:
    check = verify_bound(plan, problem, capacity_of=replica_capacity)
    assert check is not None
    return check


@pytest.fixture(scope="module")
def short() -> tuple[Problem, Plan]:
    """A wide fleet that is asked for more than it has, so that tiers are held; its bound before any branches."""
    problem = synthetic.make_problem(SHORT, 1, load=1.2, policy=Policy(min_saving_ratio=0.0))
    plan = make_plan(problem)
    assert plan.certificate is not None
    shown = replace(plan.certificate, branches=())
    bound = recomputed(shown, problem, replica_capacity)
    report = replace(plan.report, bound_usd_per_hour=bound)
    return problem, replace(plan, report=report, certificate=replace(shown, usd_per_hour=bound))


def row(**how: Any) -> Corrupt:
    return lambda shown: replace(shown, rows=(replace(shown.rows[0], **how), *shown.rows[1:]))


def with_row(**how: Any) -> Corrupt:
    return lambda shown: replace(shown, rows=(*shown.rows, PricedRow(usd_per_hour=1.0, **how)))


def priced(times: float) -> Corrupt:
    return lambda shown: replace(
        shown, rows=tuple(replace(row, usd_per_hour=times * row.usd_per_hour) for row in shown.rows)
    )


def weight(**how: Any) -> Corrupt:
    return lambda shown: replace(shown, weights=(replace(shown.weights[0], **how), *shown.weights[1:]))


def tier(**how: Any) -> Corrupt:
    return lambda shown: replace(shown, held=(replace(shown.held[0], **how), *shown.held[1:]))


def last_tier(**how: Any) -> Corrupt:
    return lambda shown: replace(shown, held=(*shown.held[:-1], replace(shown.held[-1], **how)))


CORRUPTED: dict[str, tuple[Corrupt, str]] = {
    "a price of no number": (row(usd_per_hour=math.nan), "is nan USD/h"),
    "a price below nothing": (row(usd_per_hour=-1.0), "is -1 USD/h"),
    "a price without end": (row(usd_per_hour=math.inf), "is inf USD/h"),
    "a price of nowhere": (row(places=()), "of nothing that there is"),
    "a price of an unknown limit": (with_row(limit="rooms", places=("row-1",)), "of nothing that there is"),
    "a price at an unknown place": (
        with_row(limit=GPUS, places=("row-zz",), gpu_class="h100-sxm", size=1.0),
        "price of gpus of row-zz h100-sxm is of nothing that there is",
    ),
    "a price of an unknown domain": (with_row(limit=POWER, places=("feed-zz",)), "of nothing that there is"),
    "a price of an unknown quota": (with_row(limit=QUOTA_GPUS, places=("nobody",)), "of nothing that there is"),
    "a price of an unknown link": (
        with_row(limit=LINK_OUT, places=("up-zz",)),
        "price of link_out of up-zz is of nothing that there is",
    ),
    "a price of what nodes do not name": (
        with_row(limit=RESOURCES, places=("row-00",), gpu_class="h100-sxm", resource="cpu", size=1.0),
        "price of resources cpu of row-00 h100-sxm is of nothing that there is",
    ),
    "a price of no CPUs": (
        with_row(limit=RESOURCES_WHOLE, places=("row-00",), gpu_class="h100-sxm", resource="cpu", size=0.0),
        "is of nothing that there is",
    ),
    "a price of no size": (with_row(limit=POWER_WHOLE, places=("site",), size=0.0), "of replicas of size 0"),
    "a price of an endless size": (with_row(limit=POWER_WHOLE, places=("site",), size=math.inf), "of size inf"),
    "raised prices": (priced(1.5), "claimed bound not supported: claimed "),
    "no prices": (lambda shown: replace(shown, rows=()), "claimed bound not supported: claimed "),
    "a lost weight": (lambda shown: replace(shown, weights=shown.weights[1:]), "has 0 weights"),
    "a repeated weight": (lambda shown: replace(shown, weights=(shown.weights[0], *shown.weights)), "has 2 weights"),
    "a weight of no number": (weight(unserved_usd_per_hour=math.nan), "weighs what stays unserved nan"),
    "a weight below nothing": (weight(floor_usd_per_hour=-1.0), "weighs a floor -1"),
    "an endless weight": (weight(unserved_usd_per_hour=math.inf), "weighs what stays unserved inf"),
    "a fair share above all": (weight(fair_ratio=1.5), "has a fair share of 1.5"),
    "a fair share below nothing": (weight(fair_ratio=-0.5), "has a fair share of -0.5"),
    "support without end": (lambda shown: replace(shown, usd_per_hour=math.inf), "are said to support inf"),
    "a raised amount": (last_tier(lacking_usd_per_hour=1e6), "tier 1 is held at 1000000.000000 USD/h, the plan lacks"),
    "a lowered amount": (last_tier(lacking_usd_per_hour=0.0), "tier 1 is held at 0.000000 USD/h, the plan lacks"),
    "an amount of no number": (tier(lacking_usd_per_hour=math.nan), "tier 0 is held at nan"),
    "a raised price of a tier": (last_tier(price_ratio=5.0), "claimed bound not supported: claimed "),
    "no price of a tier": (tier(price_ratio=0.0), "claimed bound not supported: claimed "),
    "a tier's price of no number": (tier(price_ratio=math.nan), "the price of tier 0 is nan"),
    "a tier's price below nothing": (tier(price_ratio=-0.5), "the price of tier 0 is -0.5"),
    "a tier's endless price": (tier(price_ratio=math.inf), "the price of tier 0 is inf"),
    "the last tier held": (last_tier(tier_rank=2), "tier 2 is none that may be held"),
    "an unknown tier held": (last_tier(tier_rank=7), "tier 7 is none that may be held"),
    "a tier held twice": (lambda shown: replace(shown, held=(*shown.held, shown.held[0])), "is held twice"),
    "tiers not held": (lambda shown: replace(shown, held=()), "claimed bound not supported: claimed "),
}


@pytest.mark.parametrize("name", CORRUPTED)
def test_a_corrupted_certificate_is_refused_by_name(name: str, short: tuple[Problem, Plan]) -> None:
    problem, plan = short
    corrupt, words = CORRUPTED[name]
    shown = plan.certificate
    assert shown is not None
    check = checked(replace(plan, certificate=corrupt(shown)), problem)
    assert not check.is_supported
    assert words in str(check), str(check)


def test_the_bound_of_a_plan_that_holds_the_tiers_is_found_again(short: tuple[Problem, Plan]) -> None:
    problem, plan = short
    assert plan.certificate is not None
    assert [tier.tier_rank for tier in plan.certificate.held] == [0, 1]
    assert plan.certificate.held[0].price_ratio > 0.0
    check = checked(plan, problem)
    assert check.is_supported
    assert check.is_held
    assert check.supported_ratio > 0.99
    assert check.recomputed_usd_per_hour <= plan.report.objective_usd_per_hour
    priced = replace(plan.report, bound_usd_per_hour=plan.certificate.usd_per_hour)
    alone = replace(plan, report=priced, certificate=replace(plan.certificate, is_searched=False))
    said = str(checked(alone, problem))
    assert said.startswith("bound supported: claimed ")
    assert said.endswith("of plans that leave no tier but the last more short")


@pytest.mark.parametrize("prices", [(0.0, 0.0), (0.1, 0.0), (3.0, 0.2), (0.0, 5.0), (40.0, 20.0)])
def test_no_prices_of_tiers_give_a_bound_above_the_plan(
    short: tuple[Problem, Plan], prices: tuple[float, float]
) -> None:
    """The plan is one of those that lack no more than it does, so whatever the prices it costs no less."""
    problem, plan = short
    shown = plan.certificate
    assert shown is not None
    held = tuple(replace(tier, price_ratio=price) for tier, price in zip(shown.held, prices, strict=True))
    assert recomputed(replace(shown, held=held), problem, replica_capacity) <= plan.report.objective_usd_per_hour * (
        1.0 + 1e-9
    )


def test_penalties_of_missing_replicas_must_be_paid_too() -> None:
    problem = fleets.demo(0.5)
    services = tuple(replace(s, min_replicas=40) for s in problem.services)
    problem = replace(problem, services=services)
    plan = make_plan(problem)
    assert any(row.penalty_usd_per_hour > 0.0 for row in plan.services)
    assert checked(plan, problem).fault == ""
    shown = plan.certificate
    assert shown is not None
    weights = tuple(replace(row, floor_usd_per_hour=1.5 * row.floor_usd_per_hour) for row in shown.weights)
    said = str(checked(replace(plan, certificate=replace(shown, weights=weights)), problem))
    assert "its weights say" in said


def test_what_a_search_found_is_told_with_the_share_that_prices_support() -> None:
    problem = fleets.demo(3.0)
    plan = make_plan(problem)
    shown = plan.certificate
    assert shown is not None
    most = plan.report.bound_usd_per_hour
    half = replace(shown, usd_per_hour=0.5 * most, is_searched=True)
    claim = replace(plan, certificate=half, report=replace(plan.report, bound_usd_per_hour=1.25 * most))
    check = checked(claim, problem)
    assert check.is_supported
    assert check.supported_ratio == pytest.approx(0.8, abs=2e-3)
    assert str(check).startswith("bound by search: claimed ")
    assert str(check).endswith(" (79.9 %)") or str(check).endswith(" (80.0 %)")


def test_a_bound_that_was_searched_and_is_found_all_the_same_is_supported() -> None:
    problem = fleets.demo(0.5)
    plan = make_plan(problem)
    shown = plan.certificate
    assert shown is not None
    searched = replace(shown, usd_per_hour=0.5 * plan.report.bound_usd_per_hour, is_searched=True)
    said = str(checked(replace(plan, certificate=searched), problem))
    full = str(checked(plan, problem))
    assert said.startswith("bound supported: ") is full.startswith("bound supported: ")

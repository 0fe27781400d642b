"""Nodes that may be taken away: used where they pay, bounded or refused where a service says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem
from solvers.verify import verify, verify_service
from solvers.workload import PlacementMode, ServedModel
from tests import fleets
from tests.test_against_brute_force import (
    POLICY,
    Placed,
    Tiny,
    capacity,
    drawn,
    hold_to_best,
    is_bound,
)

CHAINS = ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED))


def two_racks(*, reclaims: float = 0.02, ratio: float = 0.4, rate: float = 6.0, **how: Any) -> Problem:
    """Rack-1 stays, rack-2 is cheap and may be taken away."""
    stays = fleets.nodes("h100-sxm", 2, "rack-1")
    spot = [
        replace(node, reclaims_per_hour=reclaims, price_ratio=ratio) for node in fleets.nodes("h100-sxm", 2, "rack-2")
    ]
    served = replace(fleets.service("chat", "chat", roles=(Role.MIXED,)), **how)
    return fleets.problem([(served, rate)], (*stays, *spot), [fleets.profile("chat", "h100-sxm", 1, 8.0)])


def planned(problem: Problem) -> Plan:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    return plan


def at(plan: Plan) -> dict[str, int]:
    return {row.location: row.replicas for row in plan.placements}


def test_cheap_nodes_are_used_and_cost_what_they_cost() -> None:
    cheap, full = planned(two_racks()), planned(two_racks(ratio=1.0, reclaims=0.0))
    assert set(at(cheap)) == {"rack-2"}
    (pool,) = cheap.pools
    energy = 0.12 * pool.planned_watts / 1000.0
    assert pool.cost_usd_per_hour == pytest.approx(0.4 * 2.5 * pool.replicas + energy)
    assert cheap.report.cost_usd_per_hour < full.report.cost_usd_per_hour
    started = 0.3 * 2.5 * pool.replicas
    assert cheap.report.objective_usd_per_hour == pytest.approx(
        cheap.report.cost_usd_per_hour + started * (1.0 + 0.02), rel=1e-6
    )


def test_a_node_that_is_taken_away_too_often_is_not_worth_its_price() -> None:
    """A start costs 0.3 h of the list price: two an hour eat a discount of 60 %."""
    assert set(at(planned(two_racks(reclaims=1.0)))) == {"rack-2"}
    assert set(at(planned(two_racks(reclaims=4.0)))) == {"rack-1"}


def test_a_service_may_refuse_them() -> None:
    plan = planned(two_racks(rate=40.0, max_spot_ratio=0.0))
    assert at(plan) == {"rack-1": 16}
    assert plan.services[0].short_because[0].startswith("gpus[h100-sxm]: 16 of 32 in use")


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_loss_of_all_of_them_leaves_what_was_asked(ratio: float) -> None:
    plan = planned(two_racks(max_spot_ratio=ratio))
    (pool,) = plan.pools
    stays = at(plan).get("rack-1", 0) * pool.capacity_requests_per_s / pool.replicas
    assert not plan.is_short
    assert stays >= (1.0 - ratio) * 6.0 * (1.0 - 1e-6)
    assert at(plan)["rack-2"] > 0


def test_too_much_on_them_is_caught_and_said() -> None:
    plan = planned(two_racks())
    refusing = two_racks(max_spot_ratio=0.0)
    assert "spot[default/chat]: replicas on nodes that may be taken away, none allowed" in verify(plan, refusing)
    faults = verify_service(plan, two_racks(max_spot_ratio=0.5))
    assert faults[0] == "spot[default/chat]: prefill + mixed carry 0 requests/s on nodes that stay, 3 asked"
    dearer = two_racks(ratio=0.9)
    assert any(fault.startswith("cost[") for fault in verify(plan, dearer))
    riskier = two_racks(reclaims=1.0)
    assert any(fault.startswith("objective:") for fault in verify(plan, riskier))
    all_spot = two_racks(max_spot_ratio=0.5)
    all_spot = replace(all_spot, nodes=tuple(replace(n, reclaims_per_hour=0.1) for n in all_spot.nodes))
    (short,) = planned(all_spot).services
    assert short.served_requests_per_s == 0.0


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"max_spot_ratio": -0.1}, "maxSpot: is -0.1"),
        ({"max_spot_ratio": 0.5, "placement": PlacementMode.CLASS}, "placement: is Class"),
        ({"reclaims": float("nan")}, "reclaimsPerHour: is nan"),
        ({"ratio": -1.0}, "priceRatio: is -1.0"),
    ],
)
def test_terms_that_mean_nothing_are_refused(how: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_plan(two_racks(**how))
    assert words in str(caught.value)


class Spot(Tiny):
    """The oracle with its own reading of what may be taken away."""

    def worst(self, where: str, gpu_class: str) -> tuple[float, float]:
        here = [n for n in self.problem.nodes if (n.location, n.gpu_class) == (where, gpu_class) and n.gpus_usable]
        return max(n.reclaims_per_hour for n in here), max(n.price_ratio for n in here)

    def allows(self, counts: Placed) -> bool:
        refusing = {s.name for s in self.problem.services if s.max_spot_ratio == 0.0}
        return not any(p.service in refusing and self.worst(at, p.gpu_class)[0] > 0.0 for p, at in counts)

    def terms_usd_per_hour(self, counts: Placed) -> float:
        total = 0.0
        for (pool, where), n in counts.items():
            reclaims, ratio = self.worst(where, pool.gpu_class)
            price = n * pool.config.gpus * self.problem.gpu_classes[pool.gpu_class].price_usd_per_hour
            total += price * (ratio - 1.0 + POLICY.start_cost_hours * reclaims)
        return total

    def limited_per_s(self, service: ServedModel, counts: Placed, able_per_s: float) -> float:
        if service.max_spot_ratio in (0.0, 1.0):
            return able_per_s
        sizes: dict[Any, int] = {}
        for (pool, _), n in counts.items():
            sizes[pool] = sizes.get(pool, 0) + n
        left = [
            sum(
                n * capacity(self, pool, sizes[pool])
                for (pool, where), n in counts.items()
                if pool.service == service.name and pool.role in roles and self.worst(where, pool.gpu_class)[0] == 0.0
            )
            for roles in CHAINS
        ]
        return min(able_per_s, min(left) / (1.0 - service.max_spot_ratio))


@pytest.mark.parametrize("first", [8000, 8030])
def test_no_counts_on_such_nodes_are_cheaper_than_the_plan(first: int) -> None:
    bound = 0
    for seed, drawn_case in drawn(first, 25):
        rng = np.random.default_rng(seed)
        nodes = tuple(
            replace(n, reclaims_per_hour=float(rng.choice([0.0, 2.0])), price_ratio=float(rng.choice([0.4, 1.0, 1.2])))
            for n in drawn_case.problem.nodes
        )
        services = tuple(
            replace(s, max_spot_ratio=float(rng.choice([0.0, 0.5, 1.0]))) for s in drawn_case.problem.services
        )
        problem = replace(drawn_case.problem, nodes=nodes, services=services)
        case = Spot(problem=problem, table=drawn_case.table)
        bound += is_bound(case, hold_to_best(case, seed))
    assert bound >= 5

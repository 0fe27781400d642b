"""Services that must not hang on one location: kept by every plan, checked, and said when it costs requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.model.relax import solve_linear, state
from solvers.problem import Problem
from solvers.verify import verify
from solvers.workload import PlacementMode, ServedModel
from tests import fleets
from tests.test_against_brute_force import (
    Placed,
    Tiny,
    capacity,
    drawn,
    hold_to_best,
    is_bound,
)
from tests.test_limits import cells_of

CHAINS = ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED))


def racks(count: int = 4, *, rate: float = 6.0, roles: tuple[Role, ...] = (Role.MIXED,), **how: Any) -> Problem:
    """A chat service on like racks of one H100 node."""
    fleet = tuple(node for n in range(count) for node in fleets.nodes("h100-sxm", 1, f"rack-{n}"))
    served = replace(fleets.service("chat", "chat", roles=roles), **how)
    return fleets.problem([(served, rate)], fleet, [fleets.profile("chat", "h100-sxm", tp, 8.0) for tp in (1, 2)])


def planned(problem: Problem, **how: Any) -> Plan:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity, **how)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    return plan


def at(plan: Plan, roles: tuple[Role, ...] = tuple(Role)) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in plan.placements:
        if row.pool.role in roles:
            counts[row.location] = counts.get(row.location, 0) + row.replicas
    return counts


@pytest.mark.parametrize("roles", [(Role.MIXED,), (Role.PREFILL, Role.DECODE), tuple(Role)])
@pytest.mark.parametrize("least", [2, 3])
def test_each_chain_is_at_as_many_locations_as_asked(roles: tuple[Role, ...], least: int) -> None:
    plan = planned(racks(rate=0.5, roles=roles, min_locations=least))
    assert not plan.is_short
    assert all(len(at(plan, chain)) >= least for chain in CHAINS)


@pytest.mark.parametrize("share", [0.7, 0.5, 0.34, 0.25])
def test_the_loss_of_any_location_leaves_what_was_asked(share: float) -> None:
    problem = racks(rate=12.0, max_share_per_location_ratio=share)
    plan = planned(problem)
    assert not plan.is_short
    each = {p.pool: p.capacity_requests_per_s / p.replicas for p in plan.pools}
    for lost in at(plan):
        left = sum(each[row.pool] * row.replicas for row in plan.placements if row.location != lost)
        assert left >= (1.0 - share) * 12.0 * (1.0 - 1e-6)
    free = planned(racks(rate=12.0))
    assert plan.report.cost_usd_per_hour >= free.report.cost_usd_per_hour * (1.0 - 0.01)


def test_a_spread_plan_stays_when_demand_does() -> None:
    problem = racks(rate=12.0, max_share_per_location_ratio=0.5, min_locations=3)
    plan = planned(problem)
    held = {(p.pool, p.location): p.replicas for p in plan.placements}
    again = planned(replace(problem, running=held), previous=plan)
    assert again.decision_hash == plan.decision_hash


def test_what_hangs_on_one_location_is_not_served_and_said() -> None:
    plan = planned(racks(1, rate=6.0, max_share_per_location_ratio=0.5))
    (service,) = plan.services
    assert service.served_requests_per_s == 0.0
    assert any("maxSharePerLocation: without" in reason for reason in service.short_because) or not plan.placements
    few = planned(racks(2, rate=30.0, max_share_per_location_ratio=0.4))
    (service,) = few.services
    assert 0.0 < service.served_requests_per_s < 30.0
    assert any(reason.startswith("maxSharePerLocation: without rack-") for reason in service.short_because)


def test_what_is_short_of_gpus_alone_is_not_said_to_hang_on_a_location() -> None:
    """Less is left than must be of all that is asked, yet enough for what the replicas carry together."""
    plan = planned(racks(2, rate=200.0, max_share_per_location_ratio=0.9))
    (service,) = plan.services
    each = {p.pool: p.capacity_requests_per_s / p.replicas for p in plan.pools}
    left = min(sum(each[r.pool] * r.replicas for r in plan.placements if r.location != lost) for lost in at(plan))
    assert 0.1 * service.served_requests_per_s < left < 0.1 * 200.0
    assert [reason.split("[")[0] for reason in service.short_because] == ["gpus"]


def test_too_few_locations_are_named_and_paid_for() -> None:
    plan = planned(racks(2, rate=1.0, min_locations=3))
    (service,) = plan.services
    assert not plan.is_short
    assert service.penalty_usd_per_hour > 0.0
    assert "minLocations: 1 of 3 locations are missing" in service.short_because


def test_a_plan_that_hangs_on_one_location_is_caught() -> None:
    plan = planned(racks(rate=0.5))
    (where,) = at(plan)
    faults = verify(plan, racks(rate=0.5, min_locations=2, max_share_per_location_ratio=0.5))
    assert any(f == "locations[default/chat]: prefill + mixed at 1 locations, at least 2" for f in faults)
    assert any(f.startswith(f"share[default/chat]: decode + mixed carry 0 requests/s without {where}") for f in faults)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"max_share_per_location_ratio": 0.0}, "maxSharePerLocation: is 0.0"),
        ({"max_share_per_location_ratio": float("nan")}, "maxSharePerLocation: is nan"),
        ({"min_locations": 5, "max_replicas": 4}, "minLocations: is 5, maxReplicas is 4"),
        ({"min_locations": 2, "placement": PlacementMode.CLASS}, "placement: is Class"),
    ],
)
def test_a_spread_that_means_nothing_is_refused(how: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_plan(racks(**how))
    assert words in str(caught.value)


class Spread(Tiny):
    """The oracle with its own reading of spread."""

    def chains(self, service: ServedModel, counts: Placed) -> list[dict[str, float]]:
        """Requests/s by location of each chain, at the capacity of every pool's whole size."""
        sizes: dict[Any, int] = {}
        for (pool, _), n in counts.items():
            sizes[pool] = sizes.get(pool, 0) + n
        found: list[dict[str, float]] = []
        for roles in CHAINS:
            rates: dict[str, float] = {}
            for (pool, where), n in counts.items():
                if pool.service == service.name and pool.role in roles:
                    rates[where] = rates.get(where, 0.0) + n * capacity(self, pool, sizes[pool])
            found.append(rates)
        return found

    def limited_per_s(self, service: ServedModel, counts: Placed, able_per_s: float) -> float:
        if service.max_share_per_location_ratio >= 1.0:
            return able_per_s
        left = [
            sum(rate for at, rate in rates.items() if at != lost)
            for rates in self.chains(service, counts)
            for lost in ("left", "right")
        ]
        return min(able_per_s, min(left) / (1.0 - service.max_share_per_location_ratio))

    def missing(self, service: ServedModel, counts: Placed) -> int:
        return sum(max(0, service.min_locations - len(rates)) for rates in self.chains(service, counts))


def test_like_racks_stay_one_group_and_lose_nothing_of_the_relaxation() -> None:
    problem = racks(rate=12.0, max_share_per_location_ratio=0.4, min_locations=3, roles=tuple(Role))
    values = []
    for one_by_one in (False, True):
        cells = cells_of(problem, one_by_one=one_by_one)
        values.append((len(cells.grouping.groups), solve_linear(state(cells), time_limit_s=30.0).value))
    (groups, grouped), (bays, apart) = values
    assert (groups, bays) == (1, 4)
    assert grouped == pytest.approx(apart, rel=1e-7)


@pytest.mark.parametrize("first", [7000, 7040])
def test_no_counts_that_spread_are_cheaper_than_the_plan(first: int) -> None:
    bound = 0
    for seed, drawn_case in drawn(first, 25):
        rng = np.random.default_rng(seed)
        problem = replace(drawn_case.problem, services=tuple(spread(s, rng) for s in drawn_case.problem.services))
        case = Spread(problem=problem, table=drawn_case.table)
        bound += is_bound(case, hold_to_best(case, seed))
    assert bound >= 5


def spread(service: ServedModel, rng: np.random.Generator) -> ServedModel:
    """Ask for two locations, for a share, for both, or leave the service alone."""
    share = float(rng.choice([1.0, 0.8, 0.5, 0.3]))
    return replace(service, min_locations=int(rng.choice([0, 2])), max_share_per_location_ratio=share)

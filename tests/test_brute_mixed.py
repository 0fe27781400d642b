"""Oracle: every count and cap of tiny fleets under rules of all families at once; and what it brought to light."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.engine import Role
from solvers.planner import make_plan
from solvers.problem import KvLink, Problem, Quota
from solvers.sizing import Unfit
from solvers.verify import verify
from solvers.verify.bound import verify_bound
from tests import fleets
from tests.brute_judge import FAULTS, disagreements, drawn, judged
from tests.brute_mixed import CAPS

SPLIT = (Role.PREFILL, Role.DECODE)


@pytest.mark.parametrize("first", [0, 30])
def test_no_counts_under_any_rules_are_cheaper_than_the_plan(first: int) -> None:
    told = [judged(case) for _, case in drawn(first, 5)]
    assert not [words for words in told if words.startswith(FAULTS)]


@pytest.mark.parametrize("first", [255, 290])
def test_bounds_of_the_large_fleets_road_lie_below_all_counts_under_any_rules(first: int) -> None:
    told = [judged(case, 0) for _, case in drawn(first, 3)]
    assert not [words for words in told if words.startswith(FAULTS)]


def test_planner_and_check_find_the_room_and_worth_that_the_oracle_finds() -> None:
    for seed, case in drawn(100, 5):
        assert disagreements(case, np.random.default_rng(seed)) == [], seed


def racks(*classes: str, rate: float = 6.0, **how: object) -> Problem:
    """A chat service on a rack with a node of each of the classes."""
    fleet = tuple(node for number, name in enumerate(classes) for node in fleets.nodes(name, 1, f"rack-{number}"))
    served = replace(fleets.service("chat", "chat", roles=SPLIT), **how)  # type: ignore[arg-type]
    return fleets.problem([(served, rate)], fleet, [fleets.profile("chat", name, 1, 8.0) for name in sorted(classes)])


def test_relief_never_asks_for_nothing() -> None:
    """Bytes of memory are next to no GiB; what is asked for is told all the same, and the plan passes the check."""
    problem = racks("h100-sxm", rate=60.0, requests={role: {"memory": 3} for role in SPLIT})
    problem = replace(problem, nodes=tuple(replace(node, resources={"memory": 7}) for node in problem.nodes))
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert plan.is_short
    assert any(row.limit == "resources" for row in plan.relief)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()


def test_a_large_fleet_over_links_says_that_nothing_can_serve_a_service() -> None:
    problem = racks("h100-sxm", "l40s", gpu_classes=("b200-sxm",))
    links = (KvLink(name="up", locations=("rack-0",), bytes_per_s=1e6),)
    problem = replace(problem, policy=replace(problem.policy, kv_links=links))
    plan = make_plan(problem, capacity_of=fleets.plain_capacity, wide_gpus=0)
    assert plan.services[0].served_requests_per_s == 0.0
    assert plan.services[0].short_because


def test_caps_between_levels_are_never_below_what_a_profile_knows() -> None:
    """A pool that only keeps a floor gives its watts away, down to the lowest cap that its profile knows."""
    case = next(drawn(1049, 1))[1]
    plan = make_plan(case.problem, capacity_of=case.capacity_of)
    assert plan.is_short
    assert plan.report.notes == ()
    assert {row.replicas for row in plan.pools} == {1}
    assert min(row.cap_watts for row in plan.pools) == min(CAPS) > case.problem.gpu_classes["small"].min_cap_watts


def priced_in_full(problem: Problem) -> None:
    """Its bound is found again from prices alone, for every limit that keeps a replica out by itself is known."""
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    check = verify_bound(plan, problem, capacity_of=fleets.plain_capacity)
    assert check is not None
    assert str(check).startswith("bound supported: "), str(check)


def test_a_bound_knows_what_no_replica_can_pass_by_itself() -> None:
    """A quota below one replica, a feed below one, a node with too few cores: each leaves the rack empty."""
    short = racks("h100-sxm", rate=6.0, min_replicas=1)
    policy = replace(short.policy, quotas=(Quota(namespace="default", gpu_class="h100-sxm", max_watts=400.0),))
    priced_in_full(replace(short, policy=policy))
    feed = replace(short.domains["rack-0"], budget_watts=8 * 70.0 + 100.0)
    priced_in_full(replace(short, domains={**short.domains, "rack-0": feed}))
    few = tuple(replace(node, resources={"cpu": 3}) for node in short.nodes)
    asking = replace(short.services[0], requests={role: {"cpu": 4} for role in SPLIT})
    priced_in_full(replace(short, nodes=few, services=(asking,)))


def test_gpus_have_a_price_also_where_the_only_pool_fits_as_often_as_they_allow() -> None:
    """What the pool's own bound says would be true too, but not what another pool could do with the same GPUs."""
    ((_, case),) = drawn(2202, 1)
    plan = make_plan(case.problem, capacity_of=case.capacity_of)
    assert plan.certificate is not None
    assert [row.limit for row in plan.certificate.rows] == ["gpus"]
    check = verify_bound(plan, case.problem, capacity_of=case.capacity_of)
    assert check is not None
    assert str(check).startswith("bound supported: "), str(check)


def test_locations_that_a_chain_lacks_are_counted_by_chain() -> None:
    """Nothing can decode anywhere, prefill could be at both racks: each chain lacks what is its own."""

    def prefill_only(profile: object, role: Role, *args: object, **how: object) -> object:
        if role is Role.DECODE:
            return Unfit(reason="not here")
        return fleets.plain_capacity(profile, role, *args, **how)  # type: ignore[arg-type]

    problem = racks("h100-sxm", "l40s", min_locations=2)
    plan = make_plan(problem, capacity_of=prefill_only)  # type: ignore[arg-type]
    check = verify_bound(plan, problem, capacity_of=prefill_only)
    assert check is not None
    assert check.is_supported, str(check)
    assert check.is_all_found, str(check)
    assert "minLocations: 2 of 2 locations are missing" in plan.services[0].short_because

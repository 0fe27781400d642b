"""Quotas of namespaces: kept by every plan, named when they bind, checked by the plan's own check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.explain import explain
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Policy, Problem, Quota
from solvers.verify import verify, verify_places
from solvers.workload import PlacementMode
from tests import fleets
from tests.test_against_brute_force import (
    POLICY,
    Placed,
    Tiny,
    drawn,
    hold_to_best,
    is_bound,
)

WATTS_OF_ONE = 850.0  # an H100 at its highest cap with its host's share


def two_teams(*quotas: Quota, rate: float = 6.0, **how: Any) -> Problem:
    """Two namespaces with a service each on two racks of two H100 nodes."""
    fleet = (*fleets.nodes("h100-sxm", 2, "rack-1"), *fleets.nodes("h100-sxm", 2, "rack-2"))
    one = fleets.service("chat", "chat", rank=1, roles=(Role.MIXED,), **how)
    other = replace(one, name="research/chat")
    built = fleets.problem([(one, rate), (other, rate)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)])
    return replace(built, policy=Policy(quotas=quotas))


def planned(problem: Problem) -> Plan:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    return plan


def gpus_of(plan: Plan, namespace: str) -> int:
    return sum(p.replicas * p.pool.config.gpus for p in plan.placements if p.pool.namespace == namespace)


@pytest.mark.parametrize("mode", PlacementMode)
def test_a_namespace_holds_no_more_gpus_than_its_quota_and_is_told_so(mode: PlacementMode) -> None:
    problem = two_teams(Quota(namespace="research", max_gpus=3), placement=mode)
    plan = planned(problem)
    short = {s.service: s for s in plan.services}
    assert gpus_of(plan, "research") == 3
    assert short["default/chat"].unserved_requests_per_s == 0.0
    assert short["research/chat"].short_because == ("quota_gpus[research]: 3 of 3 GPUs in use",)
    assert any(b.limit == "quota_gpus" and b.unit == "GPU" and b.price_usd_per_hour > 0.0 for b in plan.bindings)
    text = explain(plan, problem, "research/chat", capacity_of=fleets.plain_capacity).text()
    assert "quota_gpus[research] binds: one more GPU is worth" in text


def test_watts_are_counted_at_the_highest_cap_and_by_class() -> None:
    four = Quota(namespace="research", gpu_class="h100-sxm", max_watts=4.5 * WATTS_OF_ONE)
    other = Quota(namespace="research", gpu_class="l40s", max_watts=0.0)
    plan = planned(two_teams(four, other))
    assert gpus_of(plan, "research") == 4
    (reason,) = next(s.short_because for s in plan.services if s.service == "research/chat")
    assert reason == "quota_power[research h100-sxm]: 3.4 of 3.825 kW in use"


def test_a_quota_smaller_than_one_replica_says_what_it_keeps_out() -> None:
    plan = planned(two_teams(Quota(namespace="research", max_gpus=0)))
    (reason, *_) = next(s.short_because for s in plan.services if s.service == "research/chat")
    assert "one replica takes 1, quota_gpus[research] is 0" in reason


def test_what_runs_beyond_a_new_quota_is_given_up() -> None:
    free = two_teams()
    before = planned(free)
    held = {(p.pool, p.location): p.replicas for p in before.placements}
    tight = replace(two_teams(Quota(namespace="research", max_gpus=2)), running=held)
    after = make_plan(tight, previous=before, capacity_of=fleets.plain_capacity)
    assert verify(after, tight) == ()
    assert gpus_of(after, "research") == 2
    assert gpus_of(after, "default") == gpus_of(before, "default")


def test_a_plan_beyond_a_quota_is_caught() -> None:
    plan = planned(two_teams())
    count = gpus_of(plan, "research")
    few = two_teams(Quota(namespace="research", max_gpus=count - 1), Quota(namespace="default", max_watts=100.0))
    watts = f"{gpus_of(plan, 'default') * WATTS_OF_ONE:,.0f}"
    assert verify_places(plan, few) == (
        f"quota_gpus[research]: holds {count} GPUs, at most {count - 1}",
        f"quota_power[default]: holds {watts} W, at most 100 W",
    )


@pytest.mark.parametrize(
    ("quotas", "words"),
    [
        ((Quota(namespace="a", max_gpus=-1),), "quotas[0].maxGpus: is -1.0"),
        ((Quota(namespace="a", max_watts=float("nan")),), "quotas[0].maxWatts: is nan"),
        ((Quota(namespace="a", max_gpus=1), Quota(namespace="a", max_watts=1.0)), "is given 2 times"),
    ],
)
def test_a_quota_that_means_nothing_is_refused(quotas: tuple[Quota, ...], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_plan(two_teams(*quotas))
    assert words in str(caught.value)


class Allowed(Tiny):
    """The oracle with its own count of what the team holds."""

    def allows(self, counts: Placed) -> bool:
        for quota in self.problem.policy.quotas:
            gpus, watts = 0, 0.0
            for (pool, _), n in counts.items():
                if quota.gpu_class in ("", pool.gpu_class):
                    gpus += n * pool.config.gpus
                    watts += n * pool.config.gpus * (self.problem.gpu_classes[pool.gpu_class].max_cap_watts + 50.0)
            if gpus > (quota.max_gpus if quota.max_gpus is not None else 10**9):
                return False
            if watts > (quota.max_watts if quota.max_watts is not None else 1e12) + 1e-6:
                return False
        return True


@pytest.mark.parametrize("first", [5000, 5030])
def test_no_counts_within_the_quotas_are_cheaper_than_the_plan(first: int) -> None:
    bound = 0
    for seed, drawn_case in drawn(first, 30):
        rng = np.random.default_rng(seed)
        quotas = (
            Quota(namespace="team", max_gpus=int(rng.integers(1, 4))),
            Quota(namespace="team", gpu_class="big", max_watts=float(rng.choice([400.0, 900.0, 2000.0]))),
        )
        problem = replace(drawn_case.problem, policy=replace(POLICY, quotas=quotas))
        case = Allowed(problem=problem, table=drawn_case.table)
        bound += is_bound(case, hold_to_best(case, seed))
    assert bound >= 5

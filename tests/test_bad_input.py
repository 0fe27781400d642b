"""What nothing sensible can be planned with: a named error, or a plan that says what is short; never a trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from solvers.engine import EngineConfig, Role
from solvers.errors import InvalidInput
from solvers.planner import make_plan
from solvers.problem import KvLink, Problem, Quota
from solvers.sizing import replica_capacity
from solvers.verify import verify
from solvers.workload import SizeBucket, Slo, SloMetric
from tests import fleets

NAN, INF = float("nan"), float("inf")
FLEET = (*fleets.nodes("h100-sxm", 2, "rack-1"), *fleets.nodes("l40s", 1, "rack-2"))
SERVICE = fleets.service("chat", "chat")
BASE = fleets.problem([(SERVICE, 6.0)], FLEET, [fleets.profile("chat", g, 1, 8.0) for g in ("h100-sxm", "l40s")])
PROFILE = next(iter(BASE.profiles.values()))
POOL = make_plan(BASE).placements[0].pool


def demand(**how: Any) -> Problem:
    return replace(BASE, demands={SERVICE.name: replace(BASE.demands[SERVICE.name], **how)})


def sizes(*rows: tuple[int, int, float]) -> Problem:
    return demand(mix=tuple(SizeBucket(prompt_tokens=p, output_tokens=o, weight_ratio=w) for p, o, w in rows))


def service(**how: Any) -> Problem:
    return replace(BASE, services=(replace(SERVICE, **how),))


def slo(limit_s: float, percentile_ratio: float = 0.95) -> Problem:
    return service(slos=(Slo(metric=SloMetric.TTFT, percentile_ratio=percentile_ratio, limit_s=limit_s),))


def policy(**how: Any) -> Problem:
    return replace(BASE, policy=replace(BASE.policy, **how))


def every(what: str, **how: Any) -> Problem:
    changed: dict[str, Any] = {what: {name: replace(one, **how) for name, one in getattr(BASE, what).items()}}
    return replace(BASE, **changed)


def degree(tensor_parallel: int) -> Problem:
    config = EngineConfig(tensor_parallel=tensor_parallel)
    keyed = {replace(key, config=config): profile for key, profile in BASE.profiles.items()}
    return replace(BASE, profiles={key: replace(profile, key=key) for key, profile in keyed.items()})


REFUSED: dict[str, tuple[Problem, str]] = {
    "a rate of no number": (demand(requests_per_s=NAN), "demand.requestsPerSecond: is nan"),
    "a negative rate": (demand(requests_per_s=-1.0), "demand.requestsPerSecond: is -1.0"),
    "an endless rate": (demand(requests_per_s=INF), "demand.requestsPerSecond: is inf"),
    "a rate beyond the world": (demand(requests_per_s=1e300), "more than all the world asks"),
    "no demand": (replace(BASE, demands={}), "demand: is not known"),
    "prompts of nothing": (sizes((0, 10, 1.0)), "demand.mix[0]: asks 0 tokens for 10"),
    "outputs of less": (sizes((10, -1, 1.0)), "demand.mix[0]: asks 10 tokens for -1"),
    "a weight of no number": (sizes((10, 10, NAN)), "demand.mix[0].weight: is nan"),
    "weights of nothing": (sizes((10, 10, 0.0)), "demand.mix: weighs nothing"),
    "no sizes": (demand(mix=()), "demand.mix: is empty"),
    "a service twice": (replace(BASE, services=(SERVICE, SERVICE)), "ServedModel/default/chat name: is given 2 times"),
    "a node twice": (replace(BASE, nodes=(FLEET[0], FLEET[0])), "name: is given 2 times"),
    "a node of no class": (replace(BASE, gpu_classes={}), "gpuClass: 'h100-sxm' is not defined"),
    "a node of no feed": (replace(BASE, domains={}), "powerDomain: 'rack-1' is not defined"),
    "more usable than there": (replace(BASE, nodes=(replace(FLEET[0], gpus_usable=99),)), "99 usable of 8 GPUs"),
    "a budget of no number": (every("domains", budget_watts=NAN), "PowerDomain/rack-1 budgetWatts: is nan"),
    "a floor above its ceiling": (service(min_replicas=5, max_replicas=2), "minReplicas: 5 is above maxReplicas 2"),
    "a floor below nothing": (service(min_replicas=-1), "minReplicas: is -1"),
    "an SLO of no time": (slo(0.0), "slos: TTFT of 0.0 s at 0.95 is no limit"),
    "an SLO of no number": (slo(NAN), "slos: TTFT of nan s"),
    "an SLO for all and more": (slo(1.0, 2.0), "slos: TTFT of 1.0 s at 2.0"),
    "a gap of no number": (policy(relative_gap=NAN), "relative_gap: is nan"),
    "no time": (policy(time_limit_s=0.0), "time_limit_s: is 0.0"),
    "energy that pays": (policy(energy_usd_per_kilowatt_hour=-1.0), "energy_usd_per_kilowatt_hour: is -1.0"),
    "starts of no number": (policy(start_cost_hours=NAN), "start_cost_hours: is nan"),
    "tiers that pay": (policy(tier_penalties=(-1.0,)), "tier_penalties[0]: is -1.0"),
    "a price of no number": (every("gpu_classes", price_usd_per_hour=NAN), "price_usd_per_hour: is nan"),
    "caps that cross": (every("gpu_classes", max_cap_watts=0.0), "is above the highest cap 0 W"),
    "prefill that quickens": (
        every("profiles", prefill_s=PROFILE.prefill_s[::-1]),
        "EngineProfile/chat on h100-sxm/tp1 prefill_s: must be above 0 and not decrease",
    ),
    "steps that quicken": (every("profiles", decode_step_s=PROFILE.decode_step_s[::-1]), "must be above 0 and not"),
    "a table cut short": (every("profiles", decode_step_s=((0.01,),)), "decode_step_s: must have 4 rows"),
    "no table": (every("profiles", prefill_tokens=(), prefill_s=()), "prefill_tokens: must hold at least one value"),
    "negative seconds": (every("profiles", prefill_s=(-1.0, -0.5, -0.1)), "prefill_s: must be above 0"),
    "less KV cache than none": (every("profiles", kv_capacity_tokens=-1), "kv_capacity_tokens: is -1"),
    "a draw of no number": (every("profiles", prefill_watts_per_gpu=NAN), "idle_watts_per_gpu: is 70.0"),
    "a profile under another's key": (replace(BASE, profiles=dict.fromkeys(BASE.profiles, PROFILE)), "is kept as chat"),
    "half a replica running": (replace(BASE, running={(POOL, "rack-1"): 1.5}), "is 1.5; count replicas from 0"),  # type: ignore[dict-item]
    "sizes of no number": (sizes((NAN, 10, 1.0)), "demand.mix[0]: asks nan tokens"),  # type: ignore[arg-type]
    "prompts without end": (sizes((10**18, 10, 1.0)), "give at most 1e+12 tokens of each"),
    "weights beyond numbers": (sizes((10, 10, 1e308), (20, 10, 1e308)), "demand.mix: weighs inf in all"),
    "more in the cache than in the prompt": (
        demand(mix=(SizeBucket(prompt_tokens=10, output_tokens=1, weight_ratio=1.0, cached_tokens=11),)),
        "demand.mix[0].cachedTokens: finds 11 of 10 tokens in a cache",
    ),
    "the demand of another": (demand(service="default/other"), "demand: is that of 'default/other'"),
    "a rate in words": (demand(requests_per_s="six"), "demand.requestsPerSecond: is 'six'"),
    "a service without a name": (
        replace(service(name=""), demands={"": replace(BASE.demands[SERVICE.name], service="")}),
        "name: is empty; write namespace/name",
    ),
    "a role twice": (service(roles=(Role.MIXED, Role.MIXED)), "roles: names mixed, mixed; name each of prefill"),
    "no role": (service(roles=()), "roles: names none"),
    "half a replica": (service(min_replicas=1.5), "minReplicas: is 1.5"),
    "half a GPU allowed": (policy(quotas=(Quota(namespace="default", max_gpus=1.5),)), "quotas[0].maxGpus: is 1.5"),  # type: ignore[arg-type]
    "half a GPU": (replace(BASE, nodes=(replace(FLEET[0], gpus_usable=7.5),)), "gpusUsable: is 7.5"),  # type: ignore[arg-type]
    "a location named like any": (replace(BASE, nodes=(replace(FLEET[0], location="*"),)), "location: is '*'"),
    "GPUs without power": (every("gpu_classes", min_cap_watts=0.0, max_cap_watts=0.0), "max_cap_watts: is 0 W"),
    "a GPU for all the money": (every("gpu_classes", price_usd_per_hour=1e300), "price_usd_per_hour: is 1e+300"),
    "a tier of no weight": (policy(tier_penalties=(0.0,)), "tier_penalties[0]: is 0"),
    "starts for ever": (policy(start_cost_hours=1e300), "start_cost_hours: is 1e+300; give at most 1e+09"),
    "a class under another name": (
        replace(BASE, gpu_classes={"l40s": BASE.gpu_classes["l40s"], "h100-sxm": BASE.gpu_classes["l40s"]}),
        "GpuClass/l40s name: is kept as 'h100-sxm'",
    ),
    "a replica of no GPU": (degree(0), "tensor_parallel: is 0; give the GPUs that work together"),
    "no time at all": (every("profiles", prefill_s=(1e-300, 1e-300, 1e-300)), "no GPU does anything in less"),
    "a cache without end": (every("profiles", kv_capacity_tokens=INF), "kv_capacity_tokens: is inf"),
    "a link of no bytes": (
        policy(kv_links=(KvLink(name="up", locations=("rack-1",), bytes_per_s=1e-300),)),
        "kvLinks[0].bytesPerSecond: is 1e-300; give a rate above 0",
    ),
    "fewer than none running": (replace(BASE, running={(POOL, "rack-1"): -3}), "is -3; count replicas from 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_nothing_is_refused_by_name(name: str) -> None:
    problem, words = REFUSED[name]
    with pytest.raises(InvalidInput) as caught:
        make_plan(problem)
    assert words in str(caught.value)
    assert caught.value.subject


PLANNED: dict[str, tuple[Problem, bool, str]] = {
    "nothing asked": (demand(requests_per_s=0.0), False, ""),
    "next to nothing asked": (demand(requests_per_s=1e-12), False, ""),
    "no services": (replace(BASE, services=(), demands={}), False, ""),
    "nothing at all": (
        replace(BASE, services=(), demands={}, nodes=(), profiles={}, gpu_classes={}, domains={}),
        False,
        "",
    ),
    "no nodes": (replace(BASE, nodes=()), True, "there is no node of h100-sxm"),
    "no profiles": (
        replace(BASE, profiles={}),
        True,
        "nothing can serve its prompts: there is no EngineProfile of model chat",
    ),
    "a size that nothing serves": (
        sizes((100, 10, 0.5), (10**7, 10, 0.5)),
        True,
        "requests of up to 10,000,000 prompt and 10 output tokens, 5,000,055 on average while they decode: the profile",
    ),
    "budgets below idle": (every("domains", budget_watts=10.0), True, "idle GPUs draw 280 W, usable 10 W"),
    "budgets below nothing": (every("domains", budget_watts=-10.0), True, "usable -10 W"),
    "more headroom than budget": (every("domains", headroom_ratio=2.0), True, "idle GPUs draw 280 W"),
    "caps below what profiles draw": (
        every("gpu_classes", min_cap_watts=50.0, max_cap_watts=100.0),
        True,
        "mixed on h100-sxm/tp1: its GPUs would draw 386 W each, h100-sxm allows 100 W; raise maxCapWatts",
    ),
    "a class that nobody has": (service(gpu_classes=("h900",)), True, "the service allows gpuClasses h900"),
    "half of the roles": (
        service(roles=(Role.PREFILL,)),
        True,
        "nothing can serve its output tokens: its roles are prefill; add mixed",
    ),
    "free GPUs": (every("gpu_classes", price_usd_per_hour=0.0), False, ""),
    "sizes given twice": (sizes((10, 10, 0.5), (10, 10, 0.5)), False, ""),
    "weights of any sum": (sizes((100, 10, 5.0)), False, ""),
    "a ceiling of a billion": (service(max_replicas=10**9), False, ""),
    "a floor of a million": (service(min_replicas=10**6, max_replicas=10**6), False, "replicas have no place"),
    "replicas where nothing is": (replace(BASE, running={(POOL, "nowhere"): 3}), False, ""),
    "a million replicas running": (replace(BASE, running={(POOL, "rack-1"): 10**6}), False, ""),
    "a model that fits nowhere": (every("profiles", kv_capacity_tokens=0), True, "the 0 tokens of KV cache"),
    "a billion requests": (demand(requests_per_s=1e9), True, "16 of 16 in use"),
}


@pytest.mark.parametrize("name", PLANNED)
def test_what_is_hard_ends_in_a_checked_plan_that_says_what_is_short(name: str) -> None:
    problem, is_short, words = PLANNED[name]
    plan = make_plan(problem)
    assert verify(plan, problem, capacity_of=replica_capacity) == ()
    assert plan.is_short is is_short
    assert any(words in reason for s in plan.services for reason in s.short_because) or not words


@pytest.mark.parametrize("energy_usd", [0.0, 0.12])
def test_floors_and_requests_weigh_something_where_gpus_are_free(energy_usd: float) -> None:
    free = every("gpu_classes", price_usd_per_hour=0.0)
    policy = replace(BASE.policy, energy_usd_per_kilowatt_hour=energy_usd)
    idle = {SERVICE.name: replace(BASE.demands[SERVICE.name], requests_per_s=0.0)}
    for asked in (BASE.demands, idle):
        kept = make_plan(replace(free, services=(replace(SERVICE, min_replicas=3),), demands=asked, policy=policy))
        assert not kept.is_short
        for chain in ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED)):
            assert sum(row.replicas for row in kept.placements if row.pool.role in chain) >= 3


def test_a_billion_requests_are_planned_for_like_ten_thousand() -> None:
    """Far beyond what the fleet carries more demand decides nothing; the fleet is used, and the rest is said."""
    far, near = demand(requests_per_s=1e9), demand(requests_per_s=1e4)
    plan, less = make_plan(far), make_plan(near)
    served, serves = plan.services[0].served_requests_per_s, less.services[0].served_requests_per_s
    assert served == pytest.approx(serves, rel=0.05)
    assert served > 10.0
    assert plan.services[0].demand_requests_per_s == 1e9
    assert plan.report.bound_usd_per_hour <= plan.report.objective_usd_per_hour

"""Bodies → the core's types and back: units, defaults, tiers, modes, statuses, conditions, plans."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import resources
from controller.manifests import default_policy
from controller.plan_bodies import PART_BYTES, parse_fleet_plan, plan_name, render_fleet_plan
from controller.render import condition, power_state, profile_name, render_engine_profile, timestamp
from controller.render import render_served_model_status as render_status
from controller.resources import parse_engine_profile, parse_fleet_policy, parse_gpu_class, parse_power_domain
from controller.schema import KINDS, DemandSource, Management, Mode
from solvers.engine import EngineConfig, ProfileSource, Role
from solvers.errors import InvalidInput
from solvers.fleet import PowerDomain
from solvers.plan import Binding, DomainPlan, LinkPlan, Plan, ServicePlan
from solvers.problem import KvLink, Policy, Quota
from solvers.workload import Slo, SloMetric
from tests.resource_cases import Body, all_statuses, changed, good, large_plan, small_plan


def test_a_gpu_class_is_read_in_base_units() -> None:
    gpu_class = parse_gpu_class(good("GpuClass"))
    assert gpu_class.name == "h100-sxm"
    assert gpu_class.memory_bytes == 81559 * 1024 * 1024
    assert (gpu_class.idle_watts, gpu_class.min_cap_watts, gpu_class.max_cap_watts) == (75.0, 200.0, 700.0)
    assert gpu_class.price_usd_per_hour == pytest.approx(2.4)
    assert gpu_class.node_selector == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}


def test_a_topology_label_selects_the_nodes_that_carry_the_domains_name() -> None:
    parsed = parse_power_domain(good("PowerDomain"))
    assert parsed.node_selector == {"topology.penstock.dev/rack": "rack-1"}
    assert parsed.domain.usable_watts == pytest.approx(6000 * 0.95 - 200)


def test_a_domain_without_labels_has_no_nodes_of_its_own() -> None:
    body = changed(good("PowerDomain"), ("spec",), {"budgetWatts": 100, "parents": ["b", "a"]})
    parsed = parse_power_domain(body)
    assert parsed.node_selector == {}
    assert parsed.domain == PowerDomain(name="rack-1", parents=("a", "b"), budget_watts=100.0)


def test_a_profile_survives_the_round_trip() -> None:
    profile = parse_engine_profile(good("EngineProfile"))
    assert profile.key.config == EngineConfig(tensor_parallel=1)
    assert profile.source is ProfileSource.SILICON
    assert profile.prefill_s[0] == pytest.approx(7478e-6)
    assert profile.decode_step_s[2][3] == pytest.approx(17554e-6)
    assert parse_engine_profile(render_engine_profile(profile)) == profile


def test_a_profile_that_knows_no_caps_says_nothing_of_them() -> None:
    known = parse_engine_profile(good("EngineProfile"))
    assert known.prefill_speed_ratio == (0.572, 0.704, 0.814, 0.912, 1.0)
    profile = replace(known, cap_watts_per_gpu=(), prefill_speed_ratio=(), decode_speed_ratio=())
    body = render_engine_profile(profile)
    assert set(body["spec"]["power"]) == {"idleWatts", "prefillWatts", "decodeWatts"}
    assert parse_engine_profile(body) == profile


def test_every_degree_and_variant_of_a_configuration_survives_the_round_trip() -> None:
    config = EngineConfig(
        tensor_parallel=8, pipeline_parallel=2, expert_parallel=8, data_parallel=2, engine="sglang", variant="fp8"
    )
    profile = parse_engine_profile(good("EngineProfile"))
    profile = replace(profile, key=replace(profile.key, config=config))
    body = render_engine_profile(profile)
    assert parse_engine_profile(body) == profile
    assert body["metadata"]["name"] == profile_name(profile) == "llama-3.1-8b-h100-sxm-sglang-tp8-pp2-ep8-dp2-fp8"


def test_the_policy_maps_onto_the_planners() -> None:
    spec = {
        "objective": {"energyMilliUsdPerKilowattHour": 250, "startCostSeconds": 360},
        "churn": {"maxStartsPerTurn": 3, "minSavingPercent": 5},
        "solver": {"gapPermille": 20, "timeLimitSeconds": 7},
        "tiers": [{"name": "a", "namespaces": ["x", "b"]}, {"name": "b"}],
        "paused": True,
        "spot": [{"nodeSelector": {"kind": "spot"}, "reclaimsPerThousandHours": 50, "pricePercent": 40}],
        "quotas": [
            {"namespace": "team-b", "maxGpus": 8, "guaranteedPercent": 40},
            {"namespace": "team-a", "gpuClass": "l40s", "maxWatts": 4000},
        ],
    }
    parsed = parse_fleet_policy(changed(good("FleetPolicy"), ("spec",), spec))
    policy = parsed.policy
    assert policy.energy_usd_per_kilowatt_hour == pytest.approx(0.25)
    assert policy.start_cost_hours == pytest.approx(0.1)
    assert policy.max_starts_per_turn == 3
    assert policy.min_saving_ratio == pytest.approx(0.05)
    assert policy.relative_gap == pytest.approx(0.02)
    assert policy.time_limit_s == 7.0
    assert policy.tier_penalties == (20.0, 7.0)
    assert policy.quotas == (
        Quota(namespace="team-a", gpu_class="l40s", max_watts=4000.0),
        Quota(namespace="team-b", max_gpus=8, guaranteed_ratio=0.4),
    )
    assert parsed.is_paused
    (spot,) = parsed.spot
    assert (spot.reclaims_per_hour, spot.price_ratio) == (0.05, 0.4)
    assert spot.matches({"kind": "spot", "rack": "a"})
    assert not spot.matches({"rack": "a"})
    assert parsed.tiers[0].namespaces == ("b", "x")


def test_an_empty_policy_advises_and_agrees_with_the_planners_defaults() -> None:
    policy = default_policy()
    assert policy.modes == resources.Modes(replicas=Mode.ADVISE, placement=Mode.ADVISE, power_caps=Mode.OFF)
    assert policy.policy == Policy()
    assert policy.managed_nodes == {"penstock.dev/managed": "true"}


@pytest.mark.parametrize("tiers", range(1, 6))
def test_a_higher_tier_always_costs_more_to_leave_unserved(tiers: int) -> None:
    penalties = resources.tier_penalties(tiers)
    assert len(penalties) == tiers
    assert list(penalties) == sorted(set(penalties), reverse=True)
    assert penalties[-1] == 7.0


def _parse(body: Body, **policy: object) -> resources.ServedModelSpec:
    spec = {"tiers": [{"name": "critical", "namespaces": ["default", "prod"]}, {"name": "best-effort"}], **policy}
    return resources.parse_served_model(body, parse_fleet_policy(changed(good("FleetPolicy"), ("spec",), spec)))


def test_a_served_model_is_read_with_its_rank_slos_and_shares() -> None:
    parsed = _parse(changed(good("ServedModel"), ("spec", "tier"), "best-effort"))
    assert parsed.model.name == "default/chat"
    assert parsed.model.tier_rank == 1
    assert parsed.model.slos == (
        Slo(metric=SloMetric.ITL, percentile_ratio=0.95, limit_s=0.04),
        Slo(metric=SloMetric.TTFT, percentile_ratio=0.95, limit_s=0.5),
    )
    assert parsed.declared is not None
    assert parsed.declared.requests_per_s == pytest.approx(6.0)
    assert [bucket.weight_ratio for bucket in parsed.declared.mix] == [0.75, 0.25]
    assert (parsed.demand_source, parsed.management) == (DemandSource.DECLARED, Management.GENERATE)
    assert set(parsed.templates) == set(Role)


def test_ninety_nine_point_nine_percent_is_an_exact_ratio() -> None:
    body = changed(good("ServedModel"), ("spec", "slos", 0, "percentile"), 99.9)
    assert {slo.percentile_ratio for slo in _parse(body).model.slos} == {0.95, 0.999}


def test_defaults_are_filled_in_without_a_server() -> None:
    body = changed(good("ServedModel"), ("spec",), {"model": "m", "tier": "critical"})
    parsed = _parse(body)
    assert parsed.inference_pool == "chat"
    assert parsed.demand_source is DemandSource.GATEWAY
    assert parsed.management is Management.OBSERVE
    assert parsed.model.roles == tuple(Role)
    assert (parsed.model.min_replicas, parsed.model.max_replicas) == (0, 64)


def test_allowed_configurations_and_classes_reach_the_planner() -> None:
    body = changed(good("ServedModel"), ("spec", "engineConfigs"), ["tp2"])
    body = changed(body, ("spec", "gpuClasses"), ["l40s"])
    model = _parse(body).model
    assert model.allows("l40s", EngineConfig(tensor_parallel=2))
    assert not model.allows("l40s", EngineConfig(tensor_parallel=1))
    assert not model.allows("h100-sxm", EngineConfig(tensor_parallel=2))


def test_places_allowed_and_pinned_reach_the_planner() -> None:
    body = changed(good("ServedModel"), ("spec", "locations"), ["rack-2", "rack-1"])
    pins = [{"location": "rack-1", "replicas": 2, "role": "mixed"}, {"location": "rack-2", "gpuClass": "l40s"}]
    model = _parse(changed(body, ("spec", "pins"), pins)).model
    assert model.locations == ("rack-1", "rack-2")
    assert [str(pin) for pin in model.pins] == ["rack-1 mixed", "rack-2 l40s"]
    assert [pin.replicas for pin in model.pins] == [2, 1]
    spread = _parse(changed(body, ("spec", "spread"), {"minLocations": 2, "maxSharePerLocationPercent": 60})).model
    assert _parse(changed(body, ("spec", "fairWeight"), 3)).model.fair_weight == 3.0
    assert _parse(changed(body, ("spec", "maxSpotPercent"), 0)).model.max_spot_ratio == 0.0
    assert (spread.min_locations, spread.max_share_per_location_ratio) == (2, 0.6)
    with pytest.raises(InvalidInput, match="pins: must be at locations that are allowed"):
        _parse(changed(body, ("spec", "pins"), [{"location": "rack-9"}]))
    with pytest.raises(InvalidInput, match="need placement Location"):
        _parse(changed(body, ("spec", "placement"), "Class"))


def test_who_may_pair_reaches_the_planner() -> None:
    body = changed(good("ServedModel"), ("spec", "kvCompatibilityGroup"), "nixl-bf16")
    model = _parse(changed(body, ("spec", "kvMayCross"), False)).model
    assert (model.kv_compatibility_group, model.kv_may_cross) == ("nixl-bf16", False)
    assert _parse(body).model.kv_may_cross
    profile = parse_engine_profile(changed(good("EngineProfile"), ("spec", "kvCompatibilityGroup"), "fp8"))
    assert profile.kv_compatibility_group == "fp8"
    assert parse_engine_profile(render_engine_profile(profile)).kv_compatibility_group == "fp8"
    assert parse_gpu_class(changed(good("GpuClass"), ("spec", "kvFabric"), "ib-1")).kv_fabric == "ib-1"


def test_links_reach_the_planner_and_plans_say_what_crosses_them() -> None:
    up = {"name": "up-1", "locations": ["rack-2", "rack-1"], "megabytesPerSecond": 50_000}
    body = changed(good("FleetPolicy"), ("spec", "kvLinks"), [{**up, "priceMilliUsdPerTerabyte": 100}])
    link = KvLink(name="up-1", locations=("rack-1", "rack-2"), bytes_per_s=5e10, usd_per_terabyte=0.1)
    policy = parse_fleet_policy(body)
    assert policy.policy.kv_links == (link,)
    again = {**up, "name": "up-2", "locations": ["rack-2"]}
    with pytest.raises(InvalidInput, match="rack-2 hangs on 2 links"):
        parse_fleet_policy(changed(body, ("spec", "kvLinks"), [up, again]))
    loose = changed(good("ServedModel"), ("spec", "placement"), "Class")
    assert resources.parse_served_model(loose, parse_fleet_policy(good("FleetPolicy"))).model.has_pairs
    with pytest.raises(InvalidInput, match="which of FleetPolicy kvLinks"):
        resources.parse_served_model(loose, policy)
    row = LinkPlan(link="up-1", bytes_per_s=5e10, outgoing_bytes_per_s=3e9, incoming_bytes_per_s=0.0, usd_per_hour=1.08)
    plan = replace(small_plan(), links=(row,))
    assert parse_fleet_plan(render_fleet_plan(plan, 1)).links == (row,)


def test_an_unknown_tier_names_the_tiers_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"has no tier gold; use one of critical, best-effort") as refused:
        _parse(changed(good("ServedModel"), ("spec", "tier"), "gold"))
    assert refused.value.field == "spec.tier"


def test_a_namespace_outside_the_tier_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"namespace dev may not use tier critical, only default, prod"):
        _parse(changed(good("ServedModel"), ("metadata", "namespace"), "dev"))


@pytest.mark.parametrize(
    ("fleet", "own", "wanted"),
    [("Act", None, Mode.ACT), ("Act", "Advise", Mode.ADVISE), ("Advise", "Act", Mode.ADVISE), ("Off", "Act", Mode.OFF)],
)
def test_the_stricter_mode_counts(fleet: str, own: str | None, wanted: Mode) -> None:
    body = changed(good("ServedModel"), ("spec", "modes"), {"replicas": own} if own else {})
    assert _parse(body, modes={"replicas": fleet}).modes.replicas is wanted


def test_a_roles_own_template_wins() -> None:
    own = changed(good("ServedModel"), ("spec", "template", "spec", "hostNetwork"), True)["spec"]["template"]
    body = changed(good("ServedModel"), ("spec", "roleTemplates"), {"decode": own})
    templates = _parse(body).templates
    assert templates[Role.DECODE] == own
    assert templates[Role.PREFILL] == body["spec"]["template"]


# Conditions and statuses


def _ready(is_true: bool | None, now_s: float, previous: list[Body]) -> Body:
    return condition("Ready", is_true, "Reason", "message", generation=3, now_s=now_s, previous=previous)


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = _ready(False, 1000.9, [])
    assert first["lastTransitionTime"] == "1970-01-01T00:16:40Z"
    second = _ready(False, 2000.0, [first])
    assert second["lastTransitionTime"] == first["lastTransitionTime"]
    third = _ready(None, 3000.0, [{**first, "type": "Applied"}, second])
    assert (third["status"], third["lastTransitionTime"]) == ("Unknown", timestamp(3000.0))


@pytest.mark.parametrize("kind", KINDS)
def test_every_rendered_status_obeys_its_schema(kind: str) -> None:
    status = all_statuses()[kind]
    read = KINDS[kind].status.model_validate_json(json.dumps(status))
    assert read.model_dump(mode="json", by_alias=True, exclude_none=True) == status


def test_a_served_models_status_tells_ready_of_wanted_and_observed_of_slo() -> None:
    status = all_statuses()["ServedModel"]
    assert status["mixed"] == "1/2"
    assert status["prefill"] == "0/0"
    assert status["ttft"] == "412/500 ms"
    assert status["itl"] == "-/40 ms"
    assert status["usdPerHour"] == "4.80"
    assert status["pools"] == [{"role": "mixed", "gpuClass": "h100-sxm", "config": "tp1", "ready": 1, "want": 2}]


def test_a_pool_that_the_plan_dropped_is_still_shown_while_it_serves() -> None:
    spec, pool = _parse(good("ServedModel")), small_plan().pools[0].pool
    gone = replace(small_plan(), pools=(), placements=())
    status = render_status(
        spec, plan=gone, plan_name="plan-000002", ready={pool: 2}, observed={}, demand=None, conditions=()
    )
    assert status["mixed"] == "2/0"


def test_of_several_slos_the_one_in_most_trouble_is_shown() -> None:
    spec = _parse(changed(good("ServedModel"), ("spec", "slos"), [
        {"metric": "TTFT", "percentile": 50, "milliseconds": 200},
        {"metric": "TTFT", "percentile": 99, "milliseconds": 1000},
    ]))  # fmt: skip
    median, tail = spec.model.slos
    status = render_status(
        spec, plan=None, plan_name="", ready={}, observed={median: 0.3, tail: 0.9}, demand=None, conditions=()
    )
    assert status["ttft"] == "300/200 ms"
    assert "plan" not in status


@pytest.mark.parametrize(
    ("reserved", "measured", "state"),
    [(500.0, None, "Within"), (951.0, None, "Tight"), (1001.0, None, "Over"), (500.0, 1200.0, "Over")],
)
def test_the_state_of_a_domain_is_its_worst_figure(reserved: float, measured: float | None, state: str) -> None:
    domain = PowerDomain(name="d", budget_watts=1100.0, fixed_watts=100.0)
    assert power_state(domain, reserved, measured) == state


# Plans


def test_a_plan_survives_the_round_trip_to_the_stated_rounding() -> None:
    plan = small_plan()
    (body,) = render_fleet_plan(plan, 123)
    assert body["metadata"]["name"] == "plan-000123"
    again = parse_fleet_plan([body])
    assert again.pools[0].planned_watts == 801.0
    assert again == replace(plan, pools=(replace(plan.pools[0], planned_watts=801.0),))
    assert again.decision_hash == plan.decision_hash


def test_a_plan_for_ten_thousand_replicas_on_a_thousand_nodes_is_in_parts_that_fit() -> None:
    plan = large_plan()
    bodies = render_fleet_plan(plan, 7)
    sizes = [len(json.dumps(body).encode()) for body in bodies]
    assert len(bodies) > 1
    assert max(sizes) <= PART_BYTES
    assert [body["metadata"]["name"] for body in bodies] == [plan_name(7, n + 1) for n in range(len(bodies))]
    again = parse_fleet_plan(bodies[::-1])
    assert again.placements == plan.placements
    assert again.decision_hash == plan.decision_hash
    assert render_fleet_plan(again, 7) == bodies


def test_a_missing_a_double_or_a_foreign_part_is_refused() -> None:
    bodies = render_fleet_plan(large_plan(), 7)
    foreign = render_fleet_plan(large_plan(replicas=9_000), 7)
    for parts in (bodies[1:], [*bodies, bodies[0]], [foreign[0], *bodies[1:]], []):
        with pytest.raises(InvalidInput, match="give every part of one plan"):
            parse_fleet_plan(parts)


def test_a_plan_without_a_proof_has_no_bound() -> None:
    plan = small_plan()
    report = replace(plan.report, bound_usd_per_hour=-math.inf, gap_ratio=math.inf)
    (body,) = render_fleet_plan(replace(plan, report=report), 1)
    assert "boundMilliUsdPerHour" not in body["spec"]["report"]
    assert parse_fleet_plan([body]).report == report


def test_a_plan_with_a_number_that_is_none_is_refused() -> None:
    plan = small_plan()
    broken = replace(plan, report=replace(plan.report, objective_usd_per_hour=math.nan))
    with pytest.raises(InvalidInput, match="must be finite"):
        render_fleet_plan(broken, 1)


def test_nodes_of_a_replica_are_said_where_there_are_several() -> None:
    plan = small_plan()
    (alone,) = render_fleet_plan(plan, 1)
    assert "nodesPerReplica" not in alone["spec"]["pools"][0]
    (joined,) = render_fleet_plan(replace(plan, pools=(replace(plan.pools[0], nodes_per_replica=18),)), 1)
    assert joined["spec"]["pools"][0]["nodesPerReplica"] == 18
    assert [parse_fleet_plan([body]).pools[0].nodes_per_replica for body in (alone, joined)] == [1, 18]


def test_an_empty_plan_has_one_part() -> None:
    empty = replace(small_plan(), placements=(), pools=(), services=(), domains=(), bindings=())
    (body,) = render_fleet_plan(empty, 1)
    assert parse_fleet_plan([body]) == empty


_amounts = st.floats(min_value=0.0, max_value=1e6)
_words = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=1500)


@st.composite
def _plans(draw: st.DrawFn) -> Plan:
    plan = small_plan(draw(st.integers(0, 500)))
    demand = draw(_amounts)
    service = ServicePlan(
        service="default/chat",
        tier="critical",
        demand_requests_per_s=demand,
        served_requests_per_s=demand * draw(st.floats(0.0, 1.0)),
        short_because=tuple(draw(st.lists(_words, max_size=3))),
    )
    domain = DomainPlan(
        domain="rack-1", budget_watts=draw(_amounts), reserved_watts=draw(_amounts), planned_watts=draw(_amounts)
    )
    binding = Binding(limit="power", subject=draw(_words), unit="kW", price_usd_per_hour=draw(_amounts))
    pool = replace(plan.pools[0], cap_watts=draw(st.floats(0.0, 1200.0)), demand_ratio=draw(st.floats(0.0, 1.0)))
    return replace(plan, services=(service,), domains=(domain,), bindings=(binding,), pools=(pool,))


@settings(deadline=None)  # the machine may be busy
@given(_plans())
def test_any_plan_obeys_the_schema_and_reading_it_twice_changes_nothing(plan: Plan) -> None:
    bodies = render_fleet_plan(plan, 1)
    once = parse_fleet_plan(bodies)
    assert once.placements == plan.placements
    assert once.decision_hash == plan.decision_hash
    assert once.is_short == plan.is_short or plan.services[0].unserved_requests_per_s <= 0.001
    assert abs(once.services[0].demand_requests_per_s - plan.services[0].demand_requests_per_s) <= 0.0005001
    assert abs(once.domains[0].reserved_watts - plan.domains[0].reserved_watts) <= 0.5
    assert parse_fleet_plan(render_fleet_plan(once, 1)) == once


def test_a_replay_that_yaml_made_a_boolean_is_refused_with_the_way_out() -> None:
    body = good("FleetPolicy")
    quoted = changed(body, ("spec", "solver"), {"replay": "On"})
    assert parse_fleet_policy(quoted).policy.replay
    assert not parse_fleet_policy(body).policy.replay
    with pytest.raises(InvalidInput, match='quote "On"'):
        parse_fleet_policy(changed(body, ("spec", "solver"), {"replay": True}))

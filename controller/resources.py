"""Custom resources: bodies as Kubernetes holds them → the core's types. With ``render``, the only camelCase.

Every parser raises ``InvalidInput`` that names object and field. Bodies may come from the server or straight from a
file: defaults are filled in either way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from controller import schema, schema_policy
from controller.profile_check import checked
from controller.quantities import extended, host, pod_amounts
from controller.schema import DeletionPolicy, DemandSource, Management, Mode
from controller.schema_profile import EngineConfigSpec
from controller.schema_service import DeclaredDemand
from controller.validation import Json, subject_of, validate_spec
from solvers.engine import EngineConfig, EngineProfile, ProfileKey, Role
from solvers.errors import InvalidInput
from solvers.fleet import GpuClass, PowerDomain
from solvers.problem import KvLink, Policy, Quota
from solvers.workload import Demand, Pin, PlacementMode, ServedModel, SizeBucket, Slo

BYTES_PER_MEBIBYTE = 1 << 20
TIER_PENALTIES = (540.0, 180.0, 60.0, 20.0, 7.0)
"""Penalties by rank, aligned at the lowest tier, which has the last one.

60 : 20 : 7 shed only the lowest of three tiers in the study behind the planner, as strict priorities would; tiers
above them cost three times the one below.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerDomainSpec:
    """A power domain and the labels of the nodes that hang on it directly; without labels it has none of its own."""

    domain: PowerDomain
    node_selector: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Modes:
    """Mode of each lever."""

    replicas: Mode = Mode.ADVISE
    placement: Mode = Mode.ADVISE
    power_caps: Mode = Mode.OFF
    correction: Mode = Mode.ADVISE


def strictest(*modes: Mode) -> Mode:
    """Choose the mode that does least: Off before Advise before Act."""
    return min(modes, key=list(Mode).index)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpec:
    """A tier and the namespaces that may use it, empty for all."""

    name: str
    namespaces: tuple[str, ...] = ()

    def admits(self, namespace: str) -> bool:
        return not self.namespaces or namespace in self.namespaces


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotSpec:
    """Labels of nodes that may be taken away, how often that happens, and their price against the list."""

    node_selector: Mapping[str, str]
    reclaims_per_hour: float
    price_ratio: float

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(key) == value for key, value in self.node_selector.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPolicySpec:
    """How the fleet is run.

    Attributes
    ----------
    policy : Policy
        What the planner weighs.
    managed_nodes : mapping
        Labels of the nodes that may be placed on, empty for all.
    tiers : tuple of TierSpec
        Most important first; the index is the rank.
    demand_quantile_ratio, demand_horizon_s, capacity_headroom_ratio : float
        Demand is the forecast at that quantile and horizon, times one plus the headroom.
    """

    policy: Policy = field(default_factory=Policy)
    modes: Modes = field(default_factory=Modes)
    is_paused: bool = False
    managed_nodes: Mapping[str, str]
    location_label: str
    tiers: tuple[TierSpec, ...]
    decision_s: float
    tick_s: float
    demand_quantile_ratio: float
    demand_horizon_s: float
    capacity_headroom_ratio: float
    telemetry_max_age_s: float
    plan_history_days: int
    plan_history_count: int
    spot: tuple[SpotSpec, ...] = ()
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModelSpec:
    """One service as its resource says.

    Attributes
    ----------
    model : ServedModel
        What the planner needs; ``model.name`` is ``namespace/name``.
    inference_pool : str
        InferencePool whose gateway metrics count.
    declared : Demand, optional
        Declared load; the demand itself when ``demand_source`` is Declared, else only where no telemetry exists.
    modes : Modes
        The strictest of the policy's and the service's own.
    templates : mapping of Role to pod template
        As the user wrote them; under Generate every role has one.
    """

    model: ServedModel
    namespace: str
    name: str
    demand_source: DemandSource
    inference_pool: str
    declared: Demand | None
    management: Management
    modes: Modes
    deletion_policy: DeletionPolicy
    templates: Mapping[Role, Json]
    uid: str = ""
    generation: int = 0


def parse_gpu_class(body: Json) -> GpuClass:
    """Read a GpuClass."""
    spec = validate_spec(body, schema.GpuClassSpec)
    return GpuClass(
        name=body["metadata"]["name"],
        resource_name=spec.resource_name,
        node_selector=dict(sorted(spec.node_selector.items())),
        memory_bytes=spec.memory_mebibytes * BYTES_PER_MEBIBYTE,
        link_island_gpus=spec.link_island_gpus or 0,
        kv_fabric=spec.kv_fabric,
        idle_watts=float(spec.power.idle_watts),
        min_cap_watts=float(spec.power.min_cap_watts),
        max_cap_watts=float(spec.power.max_cap_watts),
        host_share_watts=float(spec.power.host_share_watts),
        price_usd_per_hour=spec.price_milli_usd_per_hour / 1e3,
    )


def parse_power_domain(body: Json) -> PowerDomainSpec:
    """Read a PowerDomain; a topology label becomes the selector {label: name of the domain}."""
    spec = validate_spec(body, schema.PowerDomainSpec)
    name = body["metadata"]["name"]
    selector = {spec.topology_label: name} if spec.topology_label else dict(sorted(spec.node_selector.items()))
    domain = PowerDomain(
        name=name,
        parents=tuple(sorted(spec.parents)),
        budget_watts=float(spec.budget_watts),
        fixed_watts=float(spec.fixed_watts),
        headroom_ratio=spec.headroom_percent / 100,
    )
    return PowerDomainSpec(domain=domain, node_selector=selector)


def parse_engine_profile(body: Json) -> EngineProfile:
    """Read an EngineProfile; microseconds become seconds. One that no look-up could use is refused here, by name."""
    spec = validate_spec(body, schema.EngineProfileSpec)
    profile = EngineProfile(
        key=ProfileKey(model=spec.model, gpu_class=spec.gpu_class, config=parse_engine_config(spec.config)),
        source=spec.source,
        source_detail=spec.source_detail,
        prefill_tokens=spec.prefill.prompt_tokens,
        prefill_s=_ratios(spec.prefill.microseconds, 1e6),
        decode_batches=spec.decode.batches,
        decode_contexts=spec.decode.context_tokens,
        decode_step_s=tuple(_ratios(row, 1e6) for row in spec.decode.step_microseconds),
        kv_capacity_tokens=spec.kv_capacity_tokens,
        kv_bytes_per_token=spec.kv_bytes_per_token,
        kv_compatibility_group=spec.kv_compatibility_group,
        transfer_bytes_per_s=float(spec.transfer_bytes_per_second),
        prefill_chunk_tokens=spec.prefill_chunk_tokens,
        idle_watts_per_gpu=float(spec.power.idle_watts),
        prefill_watts_per_gpu=float(spec.power.prefill_watts),
        decode_watts_per_gpu=tuple(float(watts) for watts in spec.power.decode_watts),
        cold_start_s=float(spec.cold_start_seconds),
        cap_watts_per_gpu=tuple(float(watts) for watts in spec.power.cap_watts),
        prefill_speed_ratio=_ratios(spec.power.prefill_speed_permille),
        decode_speed_ratio=_ratios(spec.power.decode_speed_permille),
        prefill_cached_tokens=spec.prefill.cached_tokens,
        prefill_cached_ratio=tuple(_ratios(row) for row in spec.prefill.cached_permille),
        prefill_batches=spec.prefill.batches,
        prefill_batch_ratio=tuple(_ratios(row) for row in spec.prefill.batch_permille),
    )
    return checked(profile, subject_of(body))


def _ratios(values: tuple[int, ...], whole: float = 1000.0) -> tuple[float, ...]:
    return tuple(value / whole for value in values)


def parse_engine_config(spec: EngineConfigSpec) -> EngineConfig:
    """Read an engine configuration."""
    return EngineConfig(
        tensor_parallel=spec.tensor_parallel,
        pipeline_parallel=spec.pipeline_parallel,
        expert_parallel=spec.expert_parallel,
        data_parallel=spec.data_parallel,
        engine=spec.engine,
        variant=spec.variant,
    )


def parse_fleet_policy(body: Json) -> FleetPolicySpec:
    """Read the FleetPolicy."""
    spec = validate_spec(body, schema.FleetPolicySpec)
    modes = spec.modes
    return FleetPolicySpec(
        policy=_solver_policy(spec),
        modes=Modes(
            replicas=modes.replicas,
            placement=modes.placement,
            power_caps=Mode(modes.power_caps),
            correction=modes.correction,
        ),
        is_paused=spec.paused,
        managed_nodes=dict(sorted(spec.managed_nodes.items())),
        location_label=spec.location_label,
        tiers=tuple(TierSpec(name=tier.name, namespaces=tuple(sorted(tier.namespaces))) for tier in spec.tiers),
        decision_s=float(spec.cadence.decision_seconds),
        tick_s=float(spec.cadence.tick_seconds),
        demand_quantile_ratio=spec.headroom.demand_percentile / 100,
        demand_horizon_s=float(spec.headroom.horizon_seconds),
        capacity_headroom_ratio=spec.headroom.capacity_percent / 100,
        telemetry_max_age_s=float(spec.telemetry.max_age_seconds),
        plan_history_days=spec.plan_history.days,
        plan_history_count=spec.plan_history.count,
        spot=tuple(
            SpotSpec(
                node_selector=dict(sorted(spot.node_selector.items())),
                reclaims_per_hour=spot.reclaims_per_thousand_hours / 1e3,
                price_ratio=spot.price_percent / 100,
            )
            for spot in spec.spot
        ),
        generation=_generation(body),
    )


def _solver_policy(spec: schema.FleetPolicySpec) -> Policy:
    return Policy(
        energy_usd_per_kilowatt_hour=spec.objective.energy_milli_usd_per_kilowatt_hour / 1e3,
        start_cost_hours=spec.objective.start_cost_seconds / 3600,
        min_saving_ratio=spec.churn.min_saving_percent / 100,
        max_starts_per_turn=spec.churn.max_starts_per_turn,
        tier_penalties=tier_penalties(len(spec.tiers)),
        relative_gap=spec.solver.gap_permille / 1e3,
        time_limit_s=float(spec.solver.time_limit_seconds),
        replay=spec.solver.replay == "On",
        quotas=tuple(_quota(quota) for quota in sorted(spec.quotas, key=lambda q: q.counted)),
        kv_links=_kv_links(spec),
    )


def _kv_links(spec: schema.FleetPolicySpec) -> tuple[KvLink, ...]:
    """Links by name; no location may hang on two."""
    held = Counter(location for link in spec.kv_links for location in link.locations)
    for location, times in sorted(held.items()):
        if times > 1:
            where = f"{location} hangs on {times} links"
            raise InvalidInput("FleetPolicy/default", "spec.kvLinks", where, "name each location in one link")
    return tuple(
        KvLink(
            name=link.name,
            locations=tuple(sorted(link.locations)),
            bytes_per_s=link.megabytes_per_second * 1e6,
            usd_per_terabyte=link.price_milli_usd_per_terabyte / 1e3,
        )
        for link in sorted(spec.kv_links, key=lambda link: link.name)
    )


def _quota(spec: schema_policy.Quota) -> Quota:
    max_watts = None if spec.max_watts is None else float(spec.max_watts)
    return Quota(
        namespace=spec.namespace,
        gpu_class=spec.gpu_class or "",
        max_gpus=spec.max_gpus,
        max_watts=max_watts,
        guaranteed_ratio=(spec.guaranteed_percent or 0) / 100,
    )


def tier_penalties(tiers: int) -> tuple[float, ...]:
    """Give each of up to five tiers its penalty, the most important first.

    >>> tier_penalties(2)
    (20.0, 7.0)
    """
    return TIER_PENALTIES[-tiers:]


def parse_served_model(body: Json, policy: FleetPolicySpec) -> ServedModelSpec:
    """Read a ServedModel under the policy that gives its tier a rank.

    Raises
    ------
    InvalidInput
        When the body is wrong, or the policy has no such tier or keeps it from the namespace.
    """
    spec = validate_spec(body, schema.ServedModelSpec)
    namespace, name = body["metadata"].get("namespace", "default"), body["metadata"]["name"]
    service = f"{namespace}/{name}"
    own, templates = spec.modes, _templates(body["spec"], spec.roles)
    model = _served_model(spec, service, _tier_rank(spec.tier, namespace, policy, subject_of(body)))
    if policy.policy.kv_links and model.has_pairs and model.placement is PlacementMode.CLASS:
        placed = "is Class, which leaves open which of FleetPolicy kvLinks its keys and values cross"
        raise InvalidInput(subject_of(body), "spec.placement", placed, "use Location, or the role mixed alone")
    return ServedModelSpec(
        model=replace(model, requests=_requests(templates, subject_of(body))),
        namespace=namespace,
        name=name,
        demand_source=spec.demand.source,
        inference_pool=spec.demand.inference_pool or name,
        declared=_declared_demand(service, spec.demand.declared),
        management=spec.management,
        modes=Modes(
            replicas=strictest(policy.modes.replicas, own.replicas or Mode.ACT),
            placement=strictest(policy.modes.placement, own.placement or Mode.ACT),
            power_caps=policy.modes.power_caps,
            correction=policy.modes.correction,
        ),
        deletion_policy=spec.deletion_policy,
        templates=templates,
        uid=body["metadata"].get("uid", ""),
        generation=_generation(body),
    )


def _served_model(spec: schema.ServedModelSpec, service: str, tier_rank: int) -> ServedModel:
    slos = (
        Slo(metric=slo.metric, percentile_ratio=round(slo.percentile / 100, 9), limit_s=slo.milliseconds / 1e3)
        for slo in spec.slos
    )
    return ServedModel(
        name=service,
        model=spec.model,
        tier=spec.tier,
        tier_rank=tier_rank,
        slos=tuple(sorted(slos, key=lambda slo: (slo.metric, slo.percentile_ratio))),
        roles=tuple(role for role in Role if role in spec.roles),
        gpu_classes=tuple(sorted(spec.gpu_classes)),
        min_replicas=spec.replicas.min,
        max_replicas=spec.replicas.max,
        placement=spec.placement,
        kv_compatibility_group=spec.kv_compatibility_group,
        kv_may_cross=spec.kv_may_cross,
        engine_configs=tuple(sorted(spec.engine_configs)),
        locations=tuple(sorted(spec.locations)),
        pins=tuple(
            Pin(location=pin.location, replicas=pin.replicas, role=pin.role, gpu_class=pin.gpu_class or "")
            for pin in spec.pins
        ),
        fair_weight=float(spec.fair_weight),
        splits_by_size=spec.routing.splits_by_size,
        max_spot_ratio=spec.max_spot_percent / 100,
        min_locations=spec.spread.min_locations,
        max_share_per_location_ratio=spec.spread.max_share_per_location_percent / 100,
    )


def _tier_rank(tier: str, namespace: str, policy: FleetPolicySpec, subject: str) -> int:
    ranks = {known.name: rank for rank, known in enumerate(policy.tiers)}
    if tier not in ranks:
        known_tiers = ", ".join(ranks)
        raise InvalidInput(subject, "spec.tier", f"FleetPolicy/default has no tier {tier}", f"use one of {known_tiers}")
    if not policy.tiers[ranks[tier]].admits(namespace):
        allowed = ", ".join(policy.tiers[ranks[tier]].namespaces)
        raise InvalidInput(
            subject,
            "spec.tier",
            f"namespace {namespace} may not use tier {tier}, only {allowed}",
            "take a lower tier or add the namespace to FleetPolicy/default spec.tiers",
        )
    return ranks[tier]


def _declared_demand(service: str, declared: DeclaredDemand | None) -> Demand | None:
    if declared is None:
        return None
    total = sum(bucket.weight for bucket in declared.mix)
    mix = (
        SizeBucket(
            prompt_tokens=bucket.prompt_tokens,
            output_tokens=bucket.output_tokens,
            weight_ratio=bucket.weight / total,
        )
        for bucket in declared.mix
    )
    requests_per_s = declared.milli_requests_per_second / 1e3
    return Demand(service=service, requests_per_s=requests_per_s, mix=tuple(sorted(mix)), source="Declared")


def _templates(spec: Json, roles: tuple[Role, ...]) -> dict[Role, Json]:
    """Choose each role's pod template as the user wrote it: its own, else the common one."""
    own = {role: (spec.get("roleTemplates") or {}).get(role) or spec.get("template") for role in roles}
    return {role: template for role, template in sorted(own.items()) if template is not None}


def _requests(templates: Mapping[Role, Json], subject: str) -> dict[Role, dict[str, int]]:
    """What each role's pods ask for: extended resources (GPUs among them), CPU and memory."""
    found = {}
    for role, template in templates.items():
        spec = template.get("spec") or {}
        try:
            asked = {**pod_amounts(spec, extended), **pod_amounts(spec, host)}
            if below := [name for name, amount in asked.items() if amount < 0]:
                raise ValueError(f"less than nothing of {', '.join(below)}")
        except (ArithmeticError, TypeError, ValueError, AttributeError) as error:
            problem = f"of role {role} asks for no quantities ({error})"
            remedy = 'write requests like cpu: 500m, memory: 64Gi, example.com/ports: "2"'
            raise InvalidInput(subject, "spec.template", problem, remedy) from None
        if asked:
            found[role] = dict(sorted(asked.items()))
    return found


def _generation(body: Json) -> int:
    return int(body["metadata"].get("generation", 0))

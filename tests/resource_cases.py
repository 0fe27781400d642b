"""Good and bad resources, shared by the tests of the types and of the API server: both must blame the same field."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from controller import render
from controller.correction_status import render_corrections
from controller.corrections import Corrections
from controller.crds import DEFAULT_FOLDER
from controller.plan_bodies import render_fleet_plan
from controller.resources import parse_engine_profile, parse_fleet_policy, parse_power_domain, parse_served_model
from solvers.correction import Belief, Held, Phase
from solvers.engine import EngineConfig, Role
from solvers.fleet import PoolKey
from solvers.plan import (
    Binding,
    DomainPlan,
    Placement,
    Plan,
    PoolPlan,
    Relief,
    ServicePlan,
    ServiceWhy,
    SolveReport,
    SolveStatus,
)
from solvers.workload import SloMetric
from tests.simcluster.cluster import SimCluster
from tests.simcluster.kinds import install_kinds
from tests.simcluster.poll import wait_until

Body = dict[str, Any]

SAMPLES: Final = Path(__file__).resolve().parent.parent / "deploy" / "samples"


class _Removed:
    """A field that is left out; named alike in every process."""

    def __repr__(self) -> str:
        return "removed"


REMOVED: Final = _Removed()


def small_plan(replicas: int = 2) -> Plan:
    """One pool of one service at one place."""
    pool = PoolKey(
        service="default/chat", role=Role.MIXED, gpu_class="h100-sxm", config=EngineConfig(tensor_parallel=1)
    )
    return Plan(
        placements=(Placement(pool=pool, location="rack-1", replicas=replicas),),
        pools=(
            PoolPlan(
                pool=pool,
                replicas=replicas,
                demand_ratio=1.0,
                capacity_requests_per_s=8.0 * replicas,
                cap_watts=700.0,
                reserved_watts=775.0 * replicas,
                planned_watts=400.4 * replicas,
                cost_usd_per_hour=2.4 * replicas,
            ),
        ),
        services=(
            ServicePlan(service="default/chat", tier="critical", demand_requests_per_s=6.6, served_requests_per_s=6.6),
        ),
        domains=(DomainPlan(domain="rack-1", budget_watts=6000.0, reserved_watts=2150.0, planned_watts=1400.0),),
        bindings=(Binding(limit="slo", subject="default/chat", unit="request/s", price_usd_per_hour=0.3),),
        relief=(
            Relief(
                limit="power",
                subject="rack-1",
                unit="kW",
                amount=1.5,
                usd_per_hour=0.375,
                is_estimate=True,
                first_serves_requests_per_s=0.75,
                first_saves_usd_per_hour=12.5,
            ),
        ),
        report=SolveReport(
            status=SolveStatus.OPTIMAL,
            objective_usd_per_hour=4.95,
            bound_usd_per_hour=4.9,
            gap_ratio=0.0101,
            cost_usd_per_hour=4.8,
            rounds=2,
            notes=("two rounds",),
        ),
    )


def large_plan(replicas: int = 10_000, nodes: int = 1_000, services: int = 50) -> Plan:
    """The worst case for size: every replica a row of its own, every node a place and a power domain."""
    configs = [EngineConfig(tensor_parallel=degree) for degree in (1, 2, 4, 8)]
    pools = [
        PoolKey(service=f"team-{n:02d}/service-{n:03d}", role=role, gpu_class="h100-sxm", config=configs[n % 4])
        for n in range(services)
        for role in (Role.PREFILL, Role.DECODE)
    ]
    places = [f"node-{n:04d}.row-a.example" for n in range(nodes)]
    rows = [(pools[n % len(pools)], places[(n // len(pools) * 7 + n % len(pools)) % nodes]) for n in range(replicas)]
    template = small_plan()
    return replace(
        template,
        placements=tuple(sorted(Placement(pool=pool, location=place, replicas=1) for pool, place in rows)),
        pools=tuple(
            replace(template.pools[0], pool=pool, replicas=sum(1 for row in rows if row[0] is pool))
            for pool in sorted(pools)
        ),
        services=tuple(replace(template.services[0], service=name) for name in sorted({p.service for p in pools})),
        domains=tuple(replace(template.domains[0], domain=place) for place in places),
    )


def large_profile() -> Body:
    """The worst case for rules: every table as large as it may be, and sound to its last value."""
    axis, ratios = [10 * n for n in range(1, 65)], [[1000 + row] * 64 for row in range(16)]
    body = changed(good("EngineProfile"), ("spec", "power", "decodeWatts"), [300] * 64)
    body["spec"]["power"] |= {"capWatts": [100 + n for n in axis]}
    body["spec"]["power"] |= {f"{role}SpeedPermille": [360 + n for n in axis] for role in ("prefill", "decode")}
    body["spec"]["prefill"] = {
        **{"promptTokens": axis, "microseconds": axis},
        **{"cachedTokens": axis[:16], "cachedPermille": ratios, "batches": axis[:16], "batchPermille": ratios},
    }
    steps = [[batch + context for context in axis] for batch in axis]
    body["spec"]["decode"] = {"batches": axis, "contextTokens": axis, "stepMicroseconds": steps}
    return body


def minimal() -> list[Body]:
    """All objects of the newcomer's sample."""
    files = sorted((SAMPLES / "minimal").iterdir(), reverse=True)
    return [body for file in files for body in yaml.safe_load_all(file.read_text(encoding="utf-8"))]


def good(kind: str) -> Body:
    """A small valid object of a kind: the newcomer's sample, or a rendered plan."""
    if kind == "FleetPlan":
        return render_fleet_plan(small_plan(), 1)[0]
    with open(SAMPLES / "minimal" / "penstock.yaml", encoding="utf-8") as file:
        return next(body for body in yaml.safe_load_all(file) if body["kind"] == kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """One change that makes a good object bad, and the field that must be blamed."""

    kind: str
    path: tuple[str | int, ...]
    value: Any
    field: str

    @property
    def label(self) -> str:
        return f"{self.kind}-{'.'.join(str(place) for place in self.path)}={str(self.value)[:24]}"

    def body(self) -> Body:
        return changed(good(self.kind), self.path, self.value)


def changed(body: Body, path: tuple[str | int, ...], value: Any) -> Body:
    """Copy an object with one field set or removed; missing objects on the way are made."""
    copied = copy.deepcopy(body)
    inner: Any = copied
    for place in path[:-1]:
        inner = inner[place] if isinstance(place, int) else inner.setdefault(place, {})
    if value is REMOVED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copied


def _bad(kind: str, path: str, value: Any, field: str = "") -> Bad:
    """Read a path as ``slos.0.metric``; the field to blame is that path unless said otherwise."""
    places = tuple(int(place) if place.isdigit() else place for place in path.split("."))
    blamed = field or path
    return Bad(kind=kind, path=("spec", *places), value=value, field=f"spec.{_indexed(blamed)}")


def _indexed(path: str) -> str:
    text = ""
    for place in path.split("."):
        text += f"[{place}]" if place.isdigit() else f".{place}"
    return text.lstrip(".")


PROMPTS = {"promptTokens": [1, 2, 4, 8, 16, 32], "microseconds": [10, 20, 40, 80, 160, 320]}


ONE_CAP = {
    "idleWatts": 100, "prefillWatts": 100, "decodeWatts": [100] * 5,
    "capWatts": [100], "prefillSpeedPermille": [1000], "decodeSpeedPermille": [1000],
}  # fmt: skip


def behind(*rows: list[int]) -> Body:
    """Prefill times with tables behind cached prefixes."""
    return {**PROMPTS, "cachedTokens": [100 * (k + 1) for k in range(len(rows))], "cachedPermille": list(rows)}


def together(count: int, permille: int) -> Body:
    """Prefill times with a table of one batch."""
    return {**PROMPTS, "batches": [count], "batchPermille": [[permille] * 6]}


MIX = [{"promptTokens": 1000, "outputTokens": 100, "weight": 1}]
SLO = {"metric": "TTFT", "percentile": 95, "milliseconds": 500}

BAD: Final = (
    _bad("ServedModel", "model", REMOVED),
    _bad("ServedModel", "model", "two words"),
    _bad("ServedModel", "model", ""),
    _bad("ServedModel", "model", "m" * 254),
    _bad("ServedModel", "tier", "Critical"),
    _bad("ServedModel", "slos.0.metric", "LATENCY"),
    _bad("ServedModel", "slos.0.percentile", 30),
    _bad("ServedModel", "slos.0.percentile", 99.95),
    _bad("ServedModel", "slos.0.milliseconds", 0),
    _bad("ServedModel", "slos.0.milliseconds", "500"),
    _bad("ServedModel", "slos", [SLO, SLO]),
    _bad("ServedModel", "slos", [SLO] * 5),
    _bad("ServedModel", "demand.source", "Guess"),
    _bad("ServedModel", "demand", {"source": "Declared"}, "demand.declared"),
    _bad("ServedModel", "demand.declared", {"milliRequestsPerSecond": 1, "mix": []}, "demand.declared.mix"),
    _bad("ServedModel", "demand.declared.mix", [{"promptTokens": 0, "outputTokens": 1}],
         "demand.declared.mix.0.promptTokens"),
    _bad("ServedModel", "demand.declared", {"milliRequestsPerSecond": -1, "mix": MIX},
         "demand.declared.milliRequestsPerSecond"),
    _bad("ServedModel", "roles", []),
    _bad("ServedModel", "roles", ["prefill"]),
    _bad("ServedModel", "roles", ["mixed", "mixed"], "roles.1"),
    _bad("ServedModel", "roles.0", "encode"),
    _bad("ServedModel", "gpuClasses", ["h100", "h100"], "gpuClasses.1"),
    _bad("ServedModel", "engineConfigs", ["two-gpus"], "engineConfigs.0"),
    _bad("ServedModel", "replicas.min", 9),
    _bad("ServedModel", "locations", ["rack-1", "rack-1"], "locations.1"),
    _bad("ServedModel", "spread", {"minLocations": 0}, "spread.minLocations"),
    _bad("ServedModel", "spread", {"minLocations": 999}, "spread.minLocations"),
    _bad("ServedModel", "spread", {"maxSharePerLocationPercent": 101}, "spread.maxSharePerLocationPercent"),
    _bad("ServedModel", "locations", ["rack 1"], "locations.0"),
    _bad("ServedModel", "pins", [{"location": "rack-1", "replicas": 0}], "pins.0.replicas"),
    _bad("ServedModel", "pins", [{"location": "rack-1", "replicas": 999}]),
    _bad("ServedModel", "replicas.max", 0),
    _bad("ServedModel", "placement", "Node"),
    _bad("ServedModel", "management", "Scale"),
    _bad("ServedModel", "deletionPolicy", "Keep"),
    _bad("ServedModel", "modes", {"replicas": "Off!"}, "modes.replicas"),
    _bad("ServedModel", "template", REMOVED),
    _bad("ServedModel", "template.spec.containers", []),
    _bad("ServedModel", "template.spec.containers.0.name", REMOVED),
    _bad("GpuClass", "resourceName", "gpu"),
    _bad("GpuClass", "nodeSelector", {}),
    _bad("GpuClass", "nodeSelector", REMOVED),
    _bad("GpuClass", "memoryMebibytes", 0),
    _bad("GpuClass", "memoryMebibytes", 80.5),
    _bad("GpuClass", "linkIslandGpus", 0),
    _bad("GpuClass", "power", REMOVED),
    _bad("GpuClass", "power.minCapWatts", 800),
    _bad("GpuClass", "power.idleWatts", 300),
    _bad("GpuClass", "power.maxCapWatts", 20000),
    _bad("GpuClass", "priceMilliUsdPerHour", -1),
    _bad("PowerDomain", "budgetWatts", REMOVED),
    _bad("PowerDomain", "budgetWatts", 0),
    _bad("PowerDomain", "fixedWatts", 5800),
    _bad("PowerDomain", "headroomPercent", 95),
    _bad("PowerDomain", "nodeSelector", {"row": "a"}, "topologyLabel"),
    _bad("PowerDomain", "parents", ["a", "a"], "parents.1"),
    _bad("PowerDomain", "parents", ["Site 1"], "parents.0"),
    _bad("EngineProfile", "source", "Guessed"),
    _bad("EngineProfile", "config.tensorParallel", 0),
    _bad("EngineProfile", "config.variant", "FP8"),
    _bad("EngineProfile", "prefill.promptTokens", []),
    _bad("EngineProfile", "prefill.microseconds", [1, 2]),
    _bad("EngineProfile", "prefill.promptTokens", [1, 1, 2, 3, 4, 5]),
    _bad("EngineProfile", "prefill.microseconds", [6, 5, 4, 3, 2, 1]),
    _bad("EngineProfile", "prefill.microseconds", [0, 1, 2, 3, 4, 5], "prefill.microseconds.0"),
    _bad("EngineProfile", "prefill", behind([5000] * 6, [4999] * 6), "prefill.cachedPermille"),
    _bad("EngineProfile", "prefill", behind([25_000, *[5000] * 5], [25_000] * 6), "prefill.cachedPermille"),
    _bad("EngineProfile", "prefill", behind([5000] * 5, [6000] * 6), "prefill.cachedPermille"),
    _bad("EngineProfile", "prefill", together(1, 1000), "prefill.batches.0"),
    _bad("EngineProfile", "prefill", together(2, 2001), "prefill.batchPermille"),
    _bad("EngineProfile", "decode.batches", [1, 8, 8, 128, 256]),
    _bad("EngineProfile", "decode.contextTokens", [1024, 256, 4096, 8192]),
    _bad("EngineProfile", "decode.stepMicroseconds", [[1, 2, 3, 4]]),
    _bad("EngineProfile", "decode.stepMicroseconds", [[1, 2, 3, 4]] * 4 + [[1, 2, 3]]),
    _bad("EngineProfile", "decode.stepMicroseconds", [[4, 3, 2, 1]] * 5),
    _bad("EngineProfile", "decode.stepMicroseconds", [[1, 5, 6, 7], *[[2, 4, 6, 7]] * 4]),
    _bad("EngineProfile", "decode.stepMicroseconds", [[0, 1, 2, 3], *[[1, 1, 2, 3]] * 4],
         "decode.stepMicroseconds.0.0"),
    _bad("EngineProfile", "kvBytesPerToken", 0),
    _bad("EngineProfile", "power.idleWatts", 246),
    _bad("EngineProfile", "power.prefillWatts", 74, "power.idleWatts"),
    _bad("EngineProfile", "power", ONE_CAP, "power.capWatts"),
    _bad("EngineProfile", "power.prefillSpeedPermille", [572, 704, 814, 899, 1000]),
    _bad("EngineProfile", "power.decodeWatts", [300]),
    _bad("EngineProfile", "power.capWatts", [300, 300, 700]),
    _bad("EngineProfile", "power.prefillSpeedPermille", [600, 850]),
    _bad("EngineProfile", "power.decodeSpeedPermille", [900, 800, 1000]),
    _bad("EngineProfile", "kvCapacityTokens", 0),
    _bad("EngineProfile", "coldStartSeconds", -1),
    _bad("FleetPolicy", "modes.replicas", "act"),
    _bad("FleetPolicy", "modes.powerCaps", "Act"),
    _bad("FleetPolicy", "modes.powerCaps", False),
    _bad("FleetPolicy", "modes.correction", "Always"),
    _bad("FleetPolicy", "solver.replay", True),
    _bad("FleetPolicy", "paused", "yes"),
    _bad("FleetPolicy", "tiers", []),
    _bad("FleetPolicy", "tiers", [{"name": "a"}, {"name": "a"}]),
    _bad("FleetPolicy", "tiers", [{"name": f"t{i}"} for i in range(6)]),
    _bad("FleetPolicy", "churn", {"maxStartsPerTurn": 0}, "churn.maxStartsPerTurn"),
    _bad("FleetPolicy", "cadence", {"tickSeconds": 61}, "cadence.tickSeconds"),
    _bad("FleetPolicy", "headroom", {"demandPercentile": 100}, "headroom.demandPercentile"),
    _bad("FleetPolicy", "planHistory", {"count": 1}, "planHistory.count"),
    _bad("FleetPolicy", "quotas", [{"namespace": "a"}], "quotas.0.maxGpus"),
    _bad("FleetPolicy", "quotas", [{"namespace": "a", "gpuClass": "l40s", "guaranteedPercent": 50}],
         "quotas.0.guaranteedPercent"),
    _bad("ServedModel", "fairWeight", 0),
    _bad("ServedModel", "maxSpotPercent", 101),
    _bad("FleetPolicy", "spot", [{"nodeSelector": {}}], "spot.0.nodeSelector"),
    _bad("FleetPolicy", "quotas", [{"namespace": "a", "maxGpus": -1}], "quotas.0.maxGpus"),
    _bad("FleetPolicy", "quotas", [{"namespace": "a", "maxGpus": 1}, {"namespace": "a", "maxWatts": 1}]),
    _bad("FleetPolicy", "kvLinks", [{"name": "a", "locations": [], "megabytesPerSecond": 1}], "kvLinks.0.locations"),
    _bad("FleetPolicy", "kvLinks", [{"name": "a", "locations": [r], "megabytesPerSecond": 1} for r in "xy"]),
    _bad("ServedModel", "kvMayCross", "no"),
    _bad("FleetPlan", "number", 0),
    _bad("FleetPlan", "part", 2),
    _bad("FleetPlan", "decisionHash", "xyz"),
    _bad("FleetPlan", "report.status", "Lucky"),
    _bad("FleetPlan", "pools.0.demandPartsPerMillion", 1_000_001),
    _bad("FleetPlan", "placements.0.locations.0.replicas", -1),
)  # fmt: skip


def crd_bodies() -> list[Body]:
    """The committed definitions."""
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(DEFAULT_FOLDER.glob("*.yaml"))]


def install_crds(cluster: SimCluster) -> None:
    """Install the committed definitions and wait until kubectl knows them too.

    It keeps its own copy of what the server lists, which ``api-resources`` renews; without that
    ``kubectl get penstock`` may not know the category yet.
    """
    bodies = crd_bodies()
    install_kinds(cluster.api, bodies)
    plurals = {body["spec"]["names"]["plural"] for body in bodies}
    wait_until(lambda: plurals <= _listed_in_category(cluster), "kubectl to list every kind")


def _listed_in_category(cluster: SimCluster) -> set[str]:
    names = cluster.kubectl("api-resources", "--categories=penstock", "--output=name").split()
    return {name.partition(".")[0] for name in names}


def corrections() -> list[Body]:
    """Rows of a profile that was seen to be slower, and by its watts hardly."""
    key = parse_engine_profile(good("EngineProfile")).key
    belief = Belief(weight=41.25, mean=0.18, squares=0.02, as_of_s=1_800_000_000.0)
    known = Corrections(
        beliefs={(key, Phase.DECODE): belief, (key, Phase.POWER): replace(belief, weight=2.0)},
        held={(key, Phase.DECODE): Held(factor=1.2, since_s=1_799_990_000.0)},
    )
    return render_corrections(known, key, 3)


def all_statuses() -> dict[str, Body]:
    """A status of every kind, as the operator would write it for the good objects."""
    policy = parse_fleet_policy(good("FleetPolicy"))
    spec = parse_served_model(good("ServedModel"), policy)
    plan, name = small_plan(), "plan-000001"
    ready = render.condition("Ready", True, "AsPlanned", "2 of 2 replicas", generation=1, now_s=1e9)
    tail: dict[str, Any] = {"generation": 1, "conditions": (ready,)}
    return {
        "ServedModel": render.render_served_model_status(
            replace(spec, generation=1),
            plan=plan,
            plan_name=name,
            ready={plan.pools[0].pool: 1},
            observed={slo: 0.412 for slo in spec.model.slos if slo.metric is SloMetric.TTFT},
            demand=spec.declared,
            conditions=(ready,),
        ),
        "GpuClass": render.render_gpu_class_status(nodes=1, gpus_total=8, gpus_used=2, **tail),
        "PowerDomain": render.render_power_domain_status(
            parse_power_domain(good("PowerDomain")).domain,
            nodes=1,
            reserved_watts=2150.0,
            planned_watts=1400.4,
            measured_watts=1333.3,
            **tail,
        ),
        "EngineProfile": render.render_engine_profile_status(EngineConfig(), corrections=corrections(), **tail),
        "FleetPolicy": render.render_fleet_policy_status(
            active_plan=name, leader="penstock-0", nodes=1, gpus_total=8, gpus_used=2, usd_per_hour=4.8, **tail
        ),
        "FleetPlan": render.render_fleet_plan_status(
            "Active",
            "rolling out",
            ready=1,
            wanted=2,
            whys=[ServiceWhy(service=f"prod/chat-{n}", lines=5 * ("x" * 300,)) for n in range(40)],
            **tail,
        ),
    }

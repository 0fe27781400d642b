"""The core's values → statuses, conditions and profiles as Kubernetes holds them. Time is handed in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from controller.resources import ServedModelSpec, strictest
from controller.schema import API_VERSION
from controller.validation import Json
from solvers.engine import EngineConfig, EngineProfile, Role
from solvers.fleet import PoolKey, PowerDomain
from solvers.plan import Plan, PoolPlan, ServiceWhy
from solvers.workload import Demand, Slo, SloMetric

READY = "Ready"
TELEMETRY_FRESH = "TelemetryFresh"
PLAN_FEASIBLE = "PlanFeasible"
SLOS_MET = "SLOsMet"
WITHIN_POWER_BUDGET = "WithinPowerBudget"
APPLIED = "Applied"

TIGHT_RATIO = 0.95  # above it, one more replica of a large shape no longer fits in most racks
STATUS_WORDS = {True: "True", False: "False", None: "Unknown"}

Body = dict[str, Any]


def timestamp(now_s: float) -> str:
    """Write seconds since the epoch as Kubernetes does: whole seconds, UTC."""
    return datetime.fromtimestamp(int(now_s), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(
    name: str,
    is_true: bool | None,
    reason: str,
    message: str,
    *,
    generation: int,
    now_s: float,
    previous: Iterable[Json] = (),
) -> Body:
    """Make one ``metav1.Condition``.

    Parameters
    ----------
    name : str
        Its type, one of this module's names.
    is_true : bool or None
        None for Unknown.
    generation : int
        Generation of the spec that was looked at.
    now_s : float
        Taken as the time of transition when the status differs from the previous one.
    previous : iterable of conditions
        What the object's status holds now.
    """
    status = STATUS_WORDS[is_true]
    before = next((old for old in previous if old["type"] == name), None)
    same = before is not None and before["status"] == status
    return {
        "type": name,
        "status": status,
        "reason": reason,
        "message": message[:32768],
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before and same else timestamp(now_s),
    }


def render_served_model_status(
    spec: ServedModelSpec,
    *,
    plan: Plan | None,
    plan_name: str,
    ready: Mapping[PoolKey, int],
    observed: Mapping[Slo, float],
    demand: Demand | None,
    conditions: Sequence[Json],
) -> Body:
    """Make the status of a ServedModel.

    Parameters
    ----------
    plan, plan_name : Plan, str
        The plan in force, if there is one, and its FleetPlan.
    ready : mapping of pool to int
        Replicas that serve now; pools of other services are passed over.
    observed : mapping of Slo to float s
        Latency at the SLO's percentile; absent while nothing is known.
    demand : Demand, optional
        What the plan was made for.
    """
    service = spec.model.name
    wanted = {row.pool: row for row in (plan.pools if plan else ()) if row.pool.service == service}
    serving = {pool: count for pool, count in ready.items() if pool.service == service}
    pools = [_render_pool(pool, serving.get(pool, 0), wanted.get(pool)) for pool in sorted({*wanted, *serving})]
    status: Body = {
        "observedGeneration": spec.generation,
        "mode": str(strictest(spec.modes.replicas, spec.modes.placement)),
        "pools": pools[:128],
        **{str(role): _ready_of_want(pools, role) for role in spec.model.roles},
        **_render_latencies(spec.model.slos, observed),
        "conditions": list(conditions),
    }
    if plan is not None:
        status |= {"plan": plan_name, "usdPerHour": money(sum(row.cost_usd_per_hour for row in wanted.values()))}
        short = next((row.short_because for row in plan.services if row.service == service), ())
        status["shortBecause"] = [reason[:1024] for reason in short[:16]]
    if demand is not None:
        status["demandMilliRequestsPerSecond"] = round(demand.requests_per_s * 1e3)
        status["demandSource"] = demand.source[:253]
    return status


def _render_pool(pool: PoolKey, ready: int, wanted: PoolPlan | None) -> Body:
    return {
        "role": str(pool.role),
        "gpuClass": pool.gpu_class,
        "config": pool.config.label,
        **({"sizes": pool.sizes} if pool.sizes else {}),
        "ready": ready,
        "want": wanted.replicas if wanted else 0,
    }


def _ready_of_want(pools: Sequence[Body], role: Role) -> str:
    mine = [pool for pool in pools if pool["role"] == str(role)]
    return f"{sum(pool['ready'] for pool in mine)}/{sum(pool['want'] for pool in mine)}"


def _render_latencies(slos: Sequence[Slo], observed: Mapping[Slo, float]) -> dict[str, str]:
    """Show for each metric the SLO in most trouble, else the one at the highest percentile."""
    shown = {}
    for metric in SloMetric:
        mine = [slo for slo in slos if slo.metric is metric]
        if mine:
            worst = max(mine, key=lambda slo: (observed.get(slo, 0.0) / slo.limit_s, slo.percentile_ratio))
            seen = f"{observed[worst] * 1e3:.0f}" if worst in observed else "-"
            shown[metric.lower()] = f"{seen}/{worst.limit_s * 1e3:.0f} ms"
    return shown


def money(usd: float) -> str:
    """Show dollars with cents."""
    return f"{usd:.2f}"


def power_state(domain: PowerDomain, reserved_watts: float, measured_watts: float | None) -> str:
    """Say in a word how the domain stands against what may be used of its budget.

    Both figures are without the domain's fixed draw.
    """
    usable = domain.usable_watts
    most = max(reserved_watts, measured_watts or 0.0)
    if most > usable + 0.5:
        return "Over"
    return "Tight" if most > TIGHT_RATIO * usable else "Within"


def render_power_domain_status(
    domain: PowerDomain,
    *,
    nodes: int,
    reserved_watts: float,
    planned_watts: float | None,
    measured_watts: float | None,
    generation: int,
    conditions: Sequence[Json],
) -> Body:
    """Make the status of a PowerDomain; watts are without its fixed draw, and None while nothing is known."""
    optional = {"plannedWatts": planned_watts, "measuredWatts": measured_watts}
    return {
        "observedGeneration": generation,
        "nodes": nodes,
        "usableWatts": round(domain.usable_watts),
        "reservedWatts": round(reserved_watts),
        **{name: round(watts) for name, watts in optional.items() if watts is not None},
        "state": power_state(domain, reserved_watts, measured_watts),
        "conditions": list(conditions),
    }


def render_gpu_class_status(
    *, nodes: int, gpus_total: int, gpus_used: int, generation: int, conditions: Sequence[Json]
) -> Body:
    """Make the status of a GpuClass."""
    return {
        "observedGeneration": generation,
        "nodes": nodes,
        "gpusTotal": gpus_total,
        "gpusUsed": gpus_used,
        "conditions": list(conditions),
    }


def render_engine_profile_status(
    config: EngineConfig, *, generation: int, conditions: Sequence[Json], corrections: Sequence[Json] = ()
) -> Body:
    """Make the status of an EngineProfile."""
    return {
        "observedGeneration": generation,
        "config": config.label,
        "corrections": list(corrections),
        "conditions": list(conditions),
    }


def render_fleet_policy_status(
    *,
    active_plan: str | None,
    leader: str,
    nodes: int,
    gpus_total: int,
    gpus_used: int,
    usd_per_hour: float | None,
    generation: int,
    conditions: Sequence[Json],
) -> Body:
    """Make the status of the FleetPolicy."""
    cost = money(usd_per_hour) if usd_per_hour is not None else None
    optional = {"activePlan": active_plan, "usdPerHour": cost}
    return {
        "observedGeneration": generation,
        "leader": leader,
        "nodes": nodes,
        "gpusTotal": gpus_total,
        "gpusUsed": gpus_used,
        **{name: value for name, value in optional.items() if value is not None},
        "conditions": list(conditions),
    }


def render_fleet_plan_status(
    state: str,
    message: str,
    *,
    ready: int,
    wanted: int,
    conditions: Sequence[Json],
    whys: Sequence[ServiceWhy] = (),
    generation: int = 1,
) -> Body:
    """Make the status of a FleetPlan; ``state`` is Advised, Active, Held, Rejected or Superseded."""
    why = [{"service": row.service, "lines": [line[:253] for line in row.lines[:4]]} for row in whys[:32]]
    return {
        "observedGeneration": generation,
        "state": state,
        "applied": f"{ready}/{wanted}",
        "message": message[:1024],
        **({"why": why} if why else {}),
        "conditions": list(conditions),
    }


def profile_name(profile: EngineProfile) -> str:
    """Name of a profile's object: model, GPU class and configuration, fit for Kubernetes.

    Another engine than vllm is part of the name.
    """
    key = profile.key
    model = re.sub(r"[^a-z0-9.-]+", "-", key.model.rpartition("/")[2].lower()).strip("-.")
    engine = [] if key.config.engine == "vllm" else [key.config.engine]
    return "-".join([model, key.gpu_class, *engine, key.config.label])[:253]


def render_engine_profile(profile: EngineProfile, *, name: str = "") -> Body:
    """Make the body of an EngineProfile; times are rounded to microseconds, watts to whole ones."""
    return {
        "apiVersion": API_VERSION,
        "kind": "EngineProfile",
        "metadata": {"name": name or profile_name(profile)},
        "spec": {
            "model": profile.key.model,
            "gpuClass": profile.key.gpu_class,
            "config": _render_config(profile.key.config),
            "source": str(profile.source),
            "sourceDetail": profile.source_detail[:512],
            "prefill": {
                "promptTokens": list(profile.prefill_tokens),
                "microseconds": _microseconds(profile.prefill_s),
                **_render_ratios(profile),
            },
            "decode": {
                "batches": list(profile.decode_batches),
                "contextTokens": list(profile.decode_contexts),
                "stepMicroseconds": [_microseconds(row) for row in profile.decode_step_s],
            },
            "kvCapacityTokens": profile.kv_capacity_tokens,
            "kvBytesPerToken": profile.kv_bytes_per_token,
            **({"kvCompatibilityGroup": profile.kv_compatibility_group} if profile.kv_compatibility_group else {}),
            "transferBytesPerSecond": round(profile.transfer_bytes_per_s),
            "prefillChunkTokens": profile.prefill_chunk_tokens,
            "power": {
                "idleWatts": round(profile.idle_watts_per_gpu),
                "prefillWatts": round(profile.prefill_watts_per_gpu),
                "decodeWatts": [round(watts) for watts in profile.decode_watts_per_gpu],
                **_render_caps(profile),
            },
            "coldStartSeconds": round(profile.cold_start_s),
        },
    }


def _render_ratios(profile: EngineProfile) -> Body:
    """Write prefill behind cached prefixes and in batches, where they are known; thousandths."""
    tables: Body = {}
    if profile.prefill_cached_tokens:
        tables["cachedTokens"] = list(profile.prefill_cached_tokens)
        tables["cachedPermille"] = [[round(1e3 * ratio) for ratio in row] for row in profile.prefill_cached_ratio]
    if profile.prefill_batches:
        tables["batches"] = list(profile.prefill_batches)
        tables["batchPermille"] = [[round(1e3 * ratio) for ratio in row] for row in profile.prefill_batch_ratio]
    return tables


def _render_caps(profile: EngineProfile) -> Body:
    """Write the speed under power caps, where it is known; thousandths are rounded down."""
    if not profile.cap_watts_per_gpu:
        return {}
    return {
        "capWatts": [round(watts) for watts in profile.cap_watts_per_gpu],
        "prefillSpeedPermille": [math.floor(ratio * 1000.0 + 1e-9) for ratio in profile.prefill_speed_ratio],
        "decodeSpeedPermille": [math.floor(ratio * 1000.0 + 1e-9) for ratio in profile.decode_speed_ratio],
    }


def _render_config(config: EngineConfig) -> Body:
    """Write the engine and what differs from one GPU."""
    degrees = {
        "tensorParallel": config.tensor_parallel,
        "pipelineParallel": config.pipeline_parallel,
        "expertParallel": config.expert_parallel,
        "dataParallel": config.data_parallel,
    }
    variant = {"variant": config.variant} if config.variant else {}
    return {"engine": config.engine, **variant, **{k: v for k, v in degrees.items() if v > 1 or k[0] == "t"}}


def _microseconds(seconds: Iterable[float]) -> list[int]:
    return [round(value * 1e6) for value in seconds]

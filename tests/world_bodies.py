"""Bodies of a small world: two racks of L40S, their power domains, curves, a policy, and services to add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from controller.render import render_engine_profile
from controller.schema import API_VERSION
from solvers.fleet import GpuClass
from tests import fleets
from tests.simcluster.nodes import RACK_LABEL, GpuNode, sim_annotations

Json = dict[str, Any]

NAMESPACE = "team-a"
MODEL = "org/chat-8b"
PRODUCTS = {"l40s": "NVIDIA-L40S", "h100-sxm": "NVIDIA-H100-80GB-HBM3"}


def gpu_nodes(racks: Mapping[str, int]) -> list[GpuNode]:
    """So many L40S nodes of four GPUs in each rack."""
    return [
        GpuNode(name=f"{rack}-{i}", gpu_product=PRODUCTS["l40s"], gpus=4, memory_mebibytes=46068, rack=rack)
        for rack, count in racks.items()
        for i in range(count)
    ]


def served_model(name: str, requests_per_s: float, *, cold_start_s: float = 0.5, **changes: Any) -> Json:
    """A service of mixed replicas on L40S."""
    mix = [
        {"promptTokens": 512, "outputTokens": 128, "weight": 60},
        {"promptTokens": 2048, "outputTokens": 256, "weight": 40},
    ]
    declared = {"milliRequestsPerSecond": round(requests_per_s * 1e3), "mix": mix}
    pod = {
        "metadata": {"annotations": sim_annotations(cold_start_s=cold_start_s, drain_s=0.2)},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [
                {"name": "engine", "image": "example.com/engine:1", "args": ["$(PENSTOCK_TENSOR_PARALLEL)"]}
            ],
        },
    }
    spec = {
        "model": MODEL,
        "tier": "standard",
        "slos": [
            {"metric": "TTFT", "percentile": 95, "milliseconds": 1000},
            {"metric": "ITL", "percentile": 95, "milliseconds": 80},
        ],
        "demand": {"source": "Declared", "declared": declared},
        "roles": ["mixed"],
        "gpuClasses": ["l40s"],
        "management": "Generate",
        "template": pod,
        **changes,
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "ServedModel",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": spec,
    }


def gpu_classes() -> list[Json]:
    return [
        class_of(replace(fleets.gpu_class(name), node_selector={"nvidia.com/gpu.product": product}))
        for name, product in PRODUCTS.items()
    ]


def class_of(known: GpuClass) -> Json:
    spec = {
        "resourceName": known.resource_name,
        "nodeSelector": dict(known.node_selector),
        "memoryMebibytes": known.memory_bytes >> 20,
        "power": {
            "idleWatts": round(known.idle_watts),
            "minCapWatts": round(known.min_cap_watts),
            "maxCapWatts": round(known.max_cap_watts),
            "hostShareWatts": round(known.host_share_watts),
        },
        "priceMilliUsdPerHour": round(known.price_usd_per_hour * 1e3),
    }
    return body_of("GpuClass", known.name, spec)


def profiles() -> list[Json]:
    return [render_engine_profile(fleets.profile(MODEL, name, degree, 8.0)) for name in PRODUCTS for degree in (1, 2)]


def domains(racks: Mapping[str, int]) -> list[Json]:
    """A site over the racks, with room for everything."""
    inside = {"parents": ["site"], "topologyLabel": RACK_LABEL, "budgetWatts": 10_000}
    return [
        body_of("PowerDomain", "site", {"budgetWatts": 40_000}),
        *(body_of("PowerDomain", r, inside) for r in racks),
    ]


def fleet_policy(**changes: Any) -> Json:
    spec = {
        "modes": {"replicas": "Act", "placement": "Act"},
        "locationLabel": RACK_LABEL,
        "tiers": [{"name": "critical"}, {"name": "standard"}, {"name": "best-effort"}],
        "telemetry": {"maxAgeSeconds": 5},
        "headroom": {"horizonSeconds": 0, "capacityPercent": 0, "demandPercentile": 50},
        **changes,
    }
    return body_of("FleetPolicy", "default", spec)


def power_domain(name: str, **spec: Any) -> Json:
    """A power domain of 10 kW."""
    return body_of("PowerDomain", name, {"budgetWatts": 10_000, **spec})


def autoscaler(deployment: str, replicas: int) -> Json:
    """An HPA that wants at least so many replicas; below its minimum it needs no metrics to act."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": deployment, "namespace": NAMESPACE},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment},
            "minReplicas": replicas,
            "maxReplicas": replicas,
        },
    }


def body_of(kind: str, name: str, spec: Json) -> Json:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}

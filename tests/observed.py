"""Bodies and records of a small cluster, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from controller.inventory import Records
from controller.observe import Observation, build_problem
from controller.readings import Readings
from controller.records import (
    CONFIG_LABEL,
    GPU_CLASS_LABEL,
    LOCATION_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    ROLE_LABEL,
    DeploymentRecord,
    NodeRecord,
    PodRecord,
)
from controller.specs import parse_specs

NOW_S = 1_000_000.0
RACK = "topology.penstock.dev/rack"
GPU = "nvidia.com/gpu"
TEMPLATE = {"spec": {"containers": [{"name": "engine"}]}}

Body = dict[str, Any]


def body(kind: str, name: str, spec: Body, namespace: str = "") -> Body:
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    return {"apiVersion": "penstock.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def policy(name: str = "default", **spec: Any) -> Body:
    return body("FleetPolicy", name, {"modes": {"replicas": "Act", "placement": "Act"}, **spec})


def gpu_class(name: str = "h100", product: str = "H100", max_cap_watts: int = 700) -> Body:
    power = {"idleWatts": 75, "minCapWatts": 200, "maxCapWatts": max_cap_watts, "hostShareWatts": 125}
    return body(
        "GpuClass",
        name,
        {
            "resourceName": GPU,
            "nodeSelector": {"gpu": product},
            "memoryMebibytes": 81559,
            "linkIslandGpus": 8,
            "power": power,
            "priceMilliUsdPerHour": 2400,
        },
    )


def profile(
    model: str = "llama", on: str = "h100", tensor_parallel: int = 1, name: str = "", step_microseconds: int = 10_000
) -> Body:
    return body(
        "EngineProfile",
        name or f"{model}-{on}-tp{tensor_parallel}",
        {
            "model": model,
            "gpuClass": on,
            "config": {"tensorParallel": tensor_parallel},
            "source": "Measured",
            "prefill": {"promptTokens": [128, 8192], "microseconds": [10_000, 640_000]},
            "decode": {
                "batches": [1, 64],
                "contextTokens": [128, 32768],
                "stepMicroseconds": [[step_microseconds] * 2, [step_microseconds * 2] * 2],
            },
            "kvCapacityTokens": 400_000,
            "kvBytesPerToken": 131_072,
            "transferBytesPerSecond": 50_000_000_000,
            "power": {"idleWatts": 75, "prefillWatts": 600, "decodeWatts": [300, 450]},
        },
    )


DECLARED = {"milliRequestsPerSecond": 4000, "mix": [{"promptTokens": 1000, "outputTokens": 200}]}


def served(name: str = "chat", namespace: str = "demo", **spec: Any) -> Body:
    return body(
        "ServedModel",
        name,
        {
            "model": "llama",
            "tier": "standard",
            "slos": [{"metric": "TTFT", "percentile": 95, "milliseconds": 2000}],
            "demand": {"source": "Declared", "declared": DECLARED},
            "management": "Generate",
            "template": TEMPLATE,
            **spec,
        },
        namespace,
    )


def domain(name: str, parents: tuple[str, ...] = (), *, is_rack: bool = True, budget_watts: int = 100_000) -> Body:
    labels = {"topologyLabel": RACK} if is_rack else {}
    return body("PowerDomain", name, {"parents": list(parents), "budgetWatts": budget_watts, **labels})


def node(name: str, rack: str | None = "r1", product: str = "H100", gpus: int = 8, **fields: Any) -> NodeRecord:
    labels = {"penstock.dev/managed": "true", "gpu": product, **({RACK: rack} if rack else {})}
    values: Body = {
        "labels": labels,
        "capacity": {GPU: gpus},
        "allocatable": {GPU: gpus},
        "is_ready": True,
        "is_cordoned": False,
        "is_out_of_service": False,
        **fields,
    }
    return NodeRecord(name=name, **values)


def our_labels(
    service: str = "chat", role: str = "mixed", on: str = "h100", config: str = "tp2", location: str | None = "r1"
) -> dict[str, str]:
    labels = {
        MANAGED_BY_LABEL: MANAGED_BY,
        MODEL_LABEL: service,
        ROLE_LABEL: role,
        GPU_CLASS_LABEL: on,
        CONFIG_LABEL: config,
    }
    return labels | ({LOCATION_LABEL: location} if location else {})


def pod(name: str, at: str | None = "n1", labels: dict[str, str] | None = None, **fields: Any) -> PodRecord:
    """One of ours, Ready, two GPUs; ``labels={}`` makes it foreign."""
    values: Body = {
        "namespace": "demo",
        "uid": name,
        "labels": our_labels() if labels is None else labels,
        "node": at,
        "phase": "Running" if at else "Pending",
        "is_ready": at is not None,
        "is_leaving": False,
        "requests": {GPU: 2},
        "created_at_s": NOW_S - 500.0,
        **fields,
    }
    return PodRecord(name=name, **values)


def deployment(replicas: int, labels: dict[str, str] | None = None, name: str = "pool") -> DeploymentRecord:
    return DeploymentRecord(
        namespace="demo",
        name=name,
        uid=name,
        labels=our_labels() if labels is None else labels,
        replicas=replicas,
        ready_replicas=0,
        generation=1,
        observed_generation=1,
    )


def observe(
    *bodies: Body, nodes: Any = (), pods: Any = (), deployments: Any = (), readings: Readings | None = None, **more: Any
) -> Observation:
    """Build an observation; without bodies: one class, one profile, one service, one rack."""
    by_kind: dict[str, list[Body]] = {}
    for one in bodies or sound():
        by_kind.setdefault(one["kind"], []).append(one)
    return build_problem(
        parse_specs(by_kind),
        Records(nodes=nodes or (node("n1"),), pods=pods, deployments=deployments),
        readings or Readings(taken_at_s=NOW_S),
        NOW_S,
        **more,
    )


def sound() -> tuple[Body, ...]:
    return (
        policy(),
        gpu_class(),
        profile(),
        profile(tensor_parallel=2),
        served(),
        domain("r1", ("site",)),
        domain("site", is_rack=False),
    )


def fault_texts(observation: Observation) -> list[str]:
    return [str(fault) for fault in observation.faults]

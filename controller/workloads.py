"""Generated workloads as pure values: one Deployment per (pool, location), whose template never changes with counts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.kinds import TEMPLATE_HASH
from controller.records import (
    CONFIG_LABEL,
    ENGINE_LABEL,
    GPU_CLASS_LABEL,
    LOCATION_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    POOL_LABEL,
    ROLE_LABEL,
    ROUTER_ROLE_LABEL,
    SIZES_LABEL,
)
from controller.resources import FleetPolicySpec, ServedModelSpec
from controller.schema import API_VERSION, DeletionPolicy
from solvers.engine import Role
from solvers.fleet import ANYWHERE, GpuClass, PoolKey

Body = dict[str, Any]

NAME_LENGTH = 46  # so that a pod's name (a dash and ten, a dash and five more) still is a host name of 63
ROUTER_ROLES = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.MIXED: "both"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprints:
    """What is needed to make any workload of the fleet."""

    services: Mapping[str, ServedModelSpec]
    gpu_classes: Mapping[str, GpuClass]
    policy: FleetPolicySpec

    def knows(self, pool: PoolKey) -> bool:
        """Say whether the pool's workload can be made: its service generates such a role, its class exists."""
        service = self.services.get(pool.service)
        return service is not None and pool.role in service.templates and pool.gpu_class in self.gpu_classes

    def body(self, pool: PoolKey, location: str) -> Body:
        """Make the Deployment of a pool at a location."""
        service, gpu_class = self.services[pool.service], self.gpu_classes[pool.gpu_class]
        return deployment_body(pool, location, service, gpu_class, self.policy)


def workload_name(pool: PoolKey, location: str) -> str:
    """Name a workload: readable, at most 46 characters, different for different (pool, location).

    >>> from solvers.engine import EngineConfig, Role
    >>> pool = PoolKey(service="team-a/chat", role=Role.MIXED, gpu_class="l40s", config=EngineConfig())
    >>> workload_name(pool, "rack-1")
    'chat-mixed-l40s-tp1-rack-1-e3bb3d'
    """
    whole = f"{pool}|{pool.config.engine}|{location}"
    tail = hashlib.sha256(whole.encode()).hexdigest()[:6]
    place = "any" if location == ANYWHERE else location
    name = pool.service.rpartition("/")[2]
    words = "-".join(filter(None, (name, pool.role, pool.gpu_class, pool.config.label, pool.sizes, place))).lower()
    readable = re.sub(r"[^a-z0-9]+", "-", words)[: NAME_LENGTH - 7].strip("-")
    return f"{readable}-{tail}"


def workload_path(pool: PoolKey, location: str) -> str:
    """Path of the Deployment."""
    namespace = pool.service.partition("/")[0]
    return f"/apis/apps/v1/namespaces/{namespace}/deployments/{workload_name(pool, location)}"


def pool_labels(pool: PoolKey, location: str) -> dict[str, str]:
    """Labels of the Deployment and of its pods, from which the pool is read back."""
    labels = {
        MANAGED_BY_LABEL: MANAGED_BY,
        MODEL_LABEL: pool.service.rpartition("/")[2],
        ROLE_LABEL: str(pool.role),
        ROUTER_ROLE_LABEL: ROUTER_ROLES[pool.role],
        GPU_CLASS_LABEL: pool.gpu_class,
        CONFIG_LABEL: pool.config.label,
        ENGINE_LABEL: pool.config.engine,
        POOL_LABEL: workload_name(pool, location),
        **({SIZES_LABEL: pool.sizes} if pool.sizes else {}),
    }
    return labels if location == ANYWHERE else {**labels, LOCATION_LABEL: location}


def deployment_body(
    pool: PoolKey, location: str, spec: ServedModelSpec, gpu_class: GpuClass, policy: FleetPolicySpec
) -> Body:
    """Make the Deployment of a pool at a location, without replicas: a pure function of what the user wrote."""
    labels = pool_labels(pool, location)
    metadata: Body = {
        "name": labels[POOL_LABEL],
        "namespace": spec.namespace,
        "labels": labels,
        **({"ownerReferences": [_owner(spec)]} if spec.deletion_policy is DeletionPolicy.DELETE else {}),
    }
    body: Body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": {POOL_LABEL: labels[POOL_LABEL]}},
            # No surge: a rolling update must not draw more power than the plan has reserved.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": 3600,  # weights of a large model load for many minutes
            "template": _template(pool, location, spec.templates[pool.role], labels, gpu_class, policy),
        },
    }
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
    metadata["annotations"] = {TEMPLATE_HASH: digest}
    return body


def _owner(spec: ServedModelSpec) -> Body:
    return {"apiVersion": API_VERSION, "kind": "ServedModel", "name": spec.name, "uid": spec.uid}


def _template(
    pool: PoolKey,
    location: str,
    written: Mapping[str, Any],
    labels: Mapping[str, str],
    gpu_class: GpuClass,
    policy: FleetPolicySpec,
) -> Body:
    metadata, spec = dict(written.get("metadata") or {}), dict(written.get("spec") or {})
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
    place = {} if location == ANYWHERE else {policy.location_label: location}
    spec["nodeSelector"] = {
        **(spec.get("nodeSelector") or {}),
        **policy.managed_nodes,
        **gpu_class.node_selector,
        **place,
    }
    engine, *others = spec["containers"]
    spec["containers"] = [_engine_container(engine, pool, gpu_class), *others]
    return {"metadata": metadata, "spec": spec}


def _engine_container(written: Mapping[str, Any], pool: PoolKey, gpu_class: GpuClass) -> Body:
    """Give the first container its GPUs, and the variables that its arguments may name as ``$(PENSTOCK_…)``."""
    resources = dict(written.get("resources") or {})
    resources["limits"] = {**(resources.get("limits") or {}), gpu_class.resource_name: str(pool.config.gpus)}
    if gpu_class.resource_name in (resources.get("requests") or {}):
        resources["requests"] = {**resources["requests"], gpu_class.resource_name: str(pool.config.gpus)}
    ours = {
        "PENSTOCK_ROLE": str(pool.role),
        "PENSTOCK_GPU_CLASS": pool.gpu_class,
        "PENSTOCK_GPUS": str(pool.config.gpus),
        "PENSTOCK_TENSOR_PARALLEL": str(pool.config.tensor_parallel),
        "PENSTOCK_PIPELINE_PARALLEL": str(pool.config.pipeline_parallel),
        "PENSTOCK_EXPERT_PARALLEL": str(pool.config.expert_parallel),
        "PENSTOCK_DATA_PARALLEL": str(pool.config.data_parallel),
        "PENSTOCK_VARIANT": pool.config.variant,
        **({"PENSTOCK_PROMPT_TOKENS": pool.sizes} if pool.sizes else {}),
    }
    theirs = [entry for entry in written.get("env") or () if entry["name"] not in ours]
    # Ours first: a variable may refer only to those before it.
    return {**written, "resources": resources, "env": [*({"name": k, "value": v} for k, v in ours.items()), *theirs]}

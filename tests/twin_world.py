"""A small cluster as the fleet twin sees it, made by hand: pods, nodes, profiles, traffic; and its pages, parsed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from controller.records import CONFIG_LABEL, GPU_CLASS_LABEL, MODEL_LABEL, ROLE_LABEL, NodeRecord, PodRecord
from controller.traces import Trace, TraceRequest
from solvers.engine import EngineConfig, EngineProfile, ProfileKey
from solvers.fleet import GpuClass
from solvers.workload import Slo, SloMetric
from tests.sim_brute import make_profile
from tests.simcluster.twin_fleet import TwinFleet
from tests.simcluster.twin_traffic import Traffic
from tests.simcluster.twin_watch import ClusterView, TwinService

MODEL, SERVICE, RACK = "meta-llama/Llama-3.1-8B", "demo/chat", "topology.penstock.dev/rack"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def gpu_class(name: str = "h100", idle_watts: float = 70.0) -> GpuClass:
    return GpuClass(
        name=name,
        resource_name="nvidia.com/gpu",
        node_selector={"product": name},
        memory_bytes=80 << 30,
        link_island_gpus=8,
        idle_watts=idle_watts,
        min_cap_watts=200.0,
        max_cap_watts=700.0,
        host_share_watts=100.0,
        price_usd_per_hour=2.0,
    )


def profile(gpu: str = "h100", config: str = "tp1", **changes: Any) -> EngineProfile:
    key = ProfileKey(model=MODEL, gpu_class=gpu, config=EngineConfig.from_label(config))
    return replace(make_profile(), key=key, **changes)


def node(
    name: str, *, gpu: str = "h100", rack: str = "r1", ready: bool = True, labels: Mapping[str, str] | None = None
) -> NodeRecord:
    gpus = {"nvidia.com/gpu": 8}
    return NodeRecord(
        name=name,
        labels={"product": gpu, RACK: rack, **(labels or {})},
        capacity=gpus,
        allocatable=gpus,
        is_ready=ready,
        is_cordoned=False,
        is_out_of_service=False,
    )


def pod(name: str, role: str = "mixed", *, on: str | None = "n1", gpu: str = "h100", **changes: Any) -> PodRecord:
    made = PodRecord(
        namespace="demo",
        name=name,
        uid=f"uid-{name}",
        labels={MODEL_LABEL: "chat", ROLE_LABEL: role, GPU_CLASS_LABEL: gpu, CONFIG_LABEL: "tp1"},
        node=on,
        phase="Running",
        is_ready=True,
        is_leaving=False,
        requests={"nvidia.com/gpu": 1},
        created_at_s=0.0,
    )
    return replace(made, **changes)


SLOS = (
    Slo(metric=SloMetric.TTFT, percentile_ratio=0.95, limit_s=0.5),
    Slo(metric=SloMetric.ITL, percentile_ratio=0.95, limit_s=0.02),
)


def view(*pods: PodRecord, nodes: tuple[NodeRecord, ...] = (), profiles: tuple[EngineProfile, ...] = ()) -> ClusterView:
    return ClusterView(
        pods={p.uid: p for p in pods},
        nodes={n.name: n for n in nodes or (node("n1"), node("n2", rack="r2"))},
        services={SERVICE: TwinService(name=SERVICE, model=MODEL, inference_pool="chat-pool", slos=SLOS)},
        profiles={str(i): p for i, p in enumerate(profiles or (profile(), profile("l40s")))},
        gpu_classes={"h100": gpu_class(), "l40s": gpu_class("l40s", 35.0)},
    )


def steady(count: int = 600, per_s: float = 5.0) -> Trace:
    return tuple(TraceRequest(arrival_s=i / per_s, prompt_tokens=500, output_tokens=50) for i in range(count))


def run(twin: TwinFleet, until_s: float, step_s: float = 2.0) -> None:
    start_s = twin.fleet.now_s
    for i in range(1, math.ceil((until_s - start_s) / step_s) + 1):
        twin.advance(min(until_s, start_s + i * step_s))
        twin.measure()


def busy_twin(*pods: PodRecord, **options: Any) -> TwinFleet:
    twin = TwinFleet([Traffic(SERVICE, steady())], **options)
    twin.apply(view(*(pods or (pod("p", "prefill"), pod("d", "decode"), pod("m", on="n2")))))
    run(twin, 60.0)
    return twin


def parse(text: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    found = [v for (n, have), v in series.items() if n == name and labels.items() <= dict(have).items()]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def names(series: Series) -> set[str]:
    return {name for name, _ in series}

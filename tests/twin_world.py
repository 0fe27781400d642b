"""A small cluster as the fleet twin sees it, made by hand: pods, nodes, profiles, traffic; and its pages, parsed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from controller.engine_telemetry import Sample, engines_of
from controller.readings import EngineReading
from controller.records import CONFIG_LABEL, GPU_CLASS_LABEL, MODEL_LABEL, ROLE_LABEL, NodeRecord, PodRecord
from controller.traces import Trace, TraceRequest
from solvers.engine import EngineConfig, EngineProfile, ProfileKey
from solvers.fleet import GpuClass
from solvers.workload import Slo, SloMetric
from tests.sim_brute import make_profile
from tests.simcluster.twin_fleet import TwinFleet
from tests.simcluster.twin_metrics import engine_metrics, gpu_metrics
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


def readings_of(twin: TwinFleet, before: Series, window_s: float) -> dict[str, EngineReading]:
    """What Prometheus would answer from two scrapes; gauges as they are now."""
    now = parse(engine_metrics(twin))
    watts = parse(gpu_metrics(twin))

    def rows(name: str) -> dict[str, float]:
        found = {(dict(labels)["pod"]): value for (n, labels), value in now.items() if n == f"vllm:{name}"}
        old = {(dict(labels)["pod"]): value for (n, labels), value in before.items() if n == f"vllm:{name}"}
        return {p: (value - old.get(p, 0.0)) / window_s for p, value in found.items()}

    def vector(values: dict[str, float]) -> list[Sample]:
        return [Sample(labels={"namespace": "demo", "pod": p}, value=v) for p, v in values.items()]

    def mean(name: str) -> list[Sample]:
        sums, counts = rows(f"{name}_sum"), rows(f"{name}_count")
        return vector({p: sums[p] / n for p, n in counts.items() if n > 0})

    held = {
        dict(labels)["exported_pod"]: value
        for (n, labels), value in watts.items()
        if n == "DCGM_FI_DEV_POWER_USAGE" and "exported_pod" in dict(labels)
    }
    tokens, itl = rows("generation_tokens_total"), mean("inter_token_latency_seconds")
    gaps = {sample.labels["pod"]: sample.value for sample in itl}
    return engines_of(
        {
            "engine_pod_as_of_s": vector(dict.fromkeys(tokens, twin.fleet.now_s)),
            "engine_pod_running": vector({p: gaps.get(p, 0.0) * rate for p, rate in tokens.items()}),  # Little's law
            "engine_pod_prompts_per_s": vector(rows("time_to_first_token_seconds_count")),
            "engine_pod_prompt_tokens_per_s": vector(rows("prompt_tokens_total")),
            "engine_pod_output_tokens_per_s": vector(tokens),
            "engine_pod_ttft_s": mean("time_to_first_token_seconds"),
            "engine_pod_prefill_s": mean("request_prefill_time_seconds"),
            "engine_pod_itl_s": itl,
            "engine_pod_gpu_watts": vector(held),
        }
    )

"""The twin's counts as Prometheus text: gateway, engines and GPUs, under the names that the real ones use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from controller.records import PodRecord
from solvers.simulate.results import ReplicaView
from tests.simcluster.twin_fleet import TwinFleet
from tests.simcluster.twin_stats import ITL_EDGES_S, Bucketed

Labels = Mapping[str, str]


@dataclass(slots=True)
class Family:
    """One metric with its lines; ``add`` takes a number, ``add_histogram`` a whole histogram."""

    name: str
    kind: str
    lines: list[str] = field(default_factory=list)

    def add(self, labels: str, value: float) -> None:
        self.lines.append(f"{self.name}{{{labels}}} {value:.10g}")

    def add_histogram(self, labels: str, histogram: Bucketed) -> None:
        cumulative = histogram.cumulative()
        start = f'{self.name}_bucket{{{labels},le="'
        for edge, count in zip(histogram.edges, cumulative, strict=False):
            self.lines.append(f'{start}{edge}"}} {count}')
        self.lines.append(f'{start}+Inf"}} {cumulative[-1]}')
        self.lines.append(f"{self.name}_sum{{{labels}}} {histogram.total:.10g}")
        self.lines.append(f"{self.name}_count{{{labels}}} {cumulative[-1]}")


def label_text(labels: Labels) -> str:
    """Write labels as the text format wants them, without the braces."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def exposition(families: Iterable[Family]) -> str:
    """Join families to one page; a family without lines is left out."""
    return "".join(_page(family) for family in families if family.lines)


def _page(family: Family) -> str:
    return f"# TYPE {family.name} {family.kind}\n" + "\n".join(family.lines) + "\n"


ERROR_CODES = {  # as the endpoint picker has them: an engine's refusal is passed on, a queue's time to live is its own
    "ModelServerError": "rejected",
    "ServiceUnavailable": "timed_out",
}


def gateway_metrics(twin: TwinFleet) -> str:
    """What the endpoint picker in front of each service counts."""
    requests = Family("inference_objective_request_total", "counter")
    ttft = Family("inference_objective_request_ttft_seconds", "histogram")
    prompt = Family("inference_objective_input_tokens", "histogram")
    output = Family("inference_objective_output_tokens", "histogram")
    errors = Family("inference_objective_request_error_total", "counter")
    queue = Family("inference_extension_flow_control_queue_size", "gauge")
    for name, stats in sorted(twin.stats.items()):
        service = twin.service(name)
        labels = label_text(
            {"namespace": service.namespace, "inference_pool": service.inference_pool, "model_name": service.model}
        )
        requests.add(labels, twin.fleet.counts(name).get("submitted", 0))
        ttft.add_histogram(labels, stats.ttft)
        prompt.add_histogram(labels, stats.prompt_tokens)
        output.add_histogram(labels, stats.output_tokens)
        for code, outcome in ERROR_CODES.items():
            errors.add(f'{labels},error_code="{code}"', stats.counts[outcome])
        queue.add(labels, twin.fleet.queued(name))
    return exposition((requests, ttft, prompt, output, errors, queue))


ENGINE_GAUGES = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:prompt_tokens_total": "counter",
    "vllm:generation_tokens_total": "counter",
    "vllm:num_preemptions_total": "counter",
}


def engine_metrics(twin: TwinFleet) -> str:
    """What the engine of each serving pod counts."""
    numbers = {name: Family(name, kind) for name, kind in ENGINE_GAUGES.items()}
    ttft = Family("vllm:time_to_first_token_seconds", "histogram")
    prefill = Family("vllm:request_prefill_time_seconds", "histogram")
    itl = Family("vllm:inter_token_latency_seconds", "histogram")
    prompt = Family("vllm:request_prompt_tokens", "histogram")
    output = Family("vllm:request_generation_tokens", "histogram")
    for uid in twin.fleet.replica_ids():
        pod, view, counts = twin.view.pods[uid], twin.fleet.replica(uid), twin.pods[uid]
        model = twin.service(view.service).model
        labels = label_text({"namespace": pod.namespace, "pod": pod.name, "model_name": model})
        for name, value in _engine_numbers(view):
            numbers[name].add(labels, value)
        ttft.add_histogram(labels, counts.ttft)
        prefill.add_histogram(labels, counts.prefill)
        itl.add_histogram(labels, Bucketed.of_gaps(view.gaps, ITL_EDGES_S))
        prompt.add_histogram(labels, counts.prompt_tokens)
        output.add_histogram(labels, counts.output_tokens)
    return exposition((*numbers.values(), ttft, prefill, itl, prompt, output))


def _engine_numbers(view: ReplicaView) -> Iterator[tuple[str, float]]:
    values = (
        view.running,
        view.waiting,
        view.kv_usage_ratio,
        view.prompt_tokens,
        view.output_tokens,
        view.preemptions,
    )
    return zip(ENGINE_GAUGES, values, strict=True)


def gpu_metrics(twin: TwinFleet) -> str:
    """What the exporter of each living node shows of its GPUs."""
    watts = Family("DCGM_FI_DEV_POWER_USAGE", "gauge")
    utilisation = Family("DCGM_FI_DEV_GPU_UTIL", "gauge")
    for reading in twin.meters.gpus:
        labels = label_text(
            {"Hostname": reading.node, "gpu": str(reading.gpu), "modelName": reading.model_name}
            | _holder(reading.holder)
        )
        watts.add(labels, round(reading.draw_watts, 3))
        utilisation.add(labels, round(100 * reading.utilisation_ratio))
    return exposition((watts, utilisation))


def _holder(pod: PodRecord | None) -> dict[str, str]:
    return {"exported_namespace": pod.namespace, "exported_pod": pod.name} if pod else {}

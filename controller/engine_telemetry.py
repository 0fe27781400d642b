"""How fast each engine is: the rows of the query table that corrections are learnt from, and their answers.

Per pod, since the pods' pools are known here and not to Prometheus. Means are of the window: a sum's rate over its
count's. Newer names come first; an old one counts where only it has series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controller.readings import EngineReading

BY_POD = "namespace, pod"
BY_HOLDER = "exported_namespace, exported_pod, namespace, pod"
"""An exporter's series carry the holder's names as ``exported_*``, unless the scrape honours its labels."""
UNREAL_WATTS = "1e+06"  # unsupported DCGM fields read as huge integers


def _mean(name: str) -> str:
    """Mean of what was observed in the window; no series where nothing was."""
    sums, counts = (f"sum by ({BY_POD}) (rate({name}_{part}[WINDOW]))" for part in ("sum", "count"))
    return f"{sums} / ({counts} > 0)"


ENGINE_QUERIES: Mapping[str, str] = {
    "engine_pod_as_of_s": f"min by ({BY_POD}) (timestamp(vllm:num_requests_running))",
    "engine_pod_running": f"sum by ({BY_POD}) (avg_over_time(vllm:num_requests_running[WINDOW]))",
    "engine_pod_waiting": f"sum by ({BY_POD}) (min_over_time(vllm:num_requests_waiting[WINDOW]))",
    "engine_pod_prompts_per_s": f"sum by ({BY_POD}) (rate(vllm:time_to_first_token_seconds_count[WINDOW]))",
    "engine_pod_prompt_tokens_per_s": f"sum by ({BY_POD}) (rate(vllm:prompt_tokens_total[WINDOW]))",
    "engine_pod_output_tokens_per_s": f"sum by ({BY_POD}) (rate(vllm:generation_tokens_total[WINDOW]))",
    "engine_pod_ttft_s": _mean("vllm:time_to_first_token_seconds"),
    "engine_pod_prefill_s": _mean("vllm:request_prefill_time_seconds"),
    "engine_pod_itl_s": " or ".join(
        map(_mean, ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"))
    ),
    "engine_pod_gpu_watts": f"avg by ({BY_HOLDER}) (avg_over_time(DCGM_FI_DEV_POWER_USAGE[WINDOW]) < {UNREAL_WATTS})",
}

RATES = ("prompts_per_s", "prompt_tokens_per_s", "output_tokens_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One series of an instant vector."""

    labels: Mapping[str, str]
    value: float


def engines_of(vectors: Mapping[str, Sequence[Sample]], time_scale: float = 1.0) -> dict[str, EngineReading]:
    """Put the answers together by ``namespace/pod``; an engine of unknown age or batch is left out."""
    columns = {name: _by_pod(rows) for name, rows in vectors.items()}

    def cell(name: str, pod: str) -> float | None:
        return columns.get(f"engine_pod_{name}", {}).get(pod)

    found = {}
    for pod in sorted(columns.get("engine_pod_as_of_s", {})):
        running = cell("running", pod)
        if running is None:
            continue
        found[pod] = EngineReading(
            pod=pod,
            running=running,
            waiting=cell("waiting", pod) or 0.0,
            as_of_s=columns["engine_pod_as_of_s"][pod],
            **{name: (cell(name, pod) or 0.0) / time_scale for name in RATES},
            ttft_s=cell("ttft_s", pod),
            prefill_s=cell("prefill_s", pod),
            itl_s=cell("itl_s", pod),
            gpu_watts=cell("gpu_watts", pod),
        )
    return found


def _by_pod(rows: Sequence[Sample]) -> dict[str, float]:
    return {_pod(row.labels): row.value for row in rows}


def _pod(labels: Mapping[str, str]) -> str:
    holder = labels.get("exported_pod")
    if holder:
        return f"{labels.get('exported_namespace', '')}/{holder}"
    return f"{labels.get('namespace', '')}/{labels.get('pod', '')}"

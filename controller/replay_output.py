"""What ``penstock replay`` prints: one run in full, several side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from controller.replay_runs import Job
from controller.tables import MISSING, Cell, render_table
from solvers.evaluate import Summary
from solvers.evaluate.confidence import METHOD, Estimate
from solvers.evaluate.incidents import Happened, Incident, What
from solvers.evaluate.summary import Kept, PoolSummary, ServiceSummary, WindowSummary

Run = tuple[Job, Summary]
SHOWN = (0.5, 0.95, 0.99)
WORDS = {
    "ttft": "TTFT", "queue": "  queue", "prefill": "  prefill", "transfer": "  KV transfer",
    "first_step": "  first step", "itl": "ITL", "tpot": "TPOT", "end_to_end": "end to end",
}  # fmt: skip
KEYS = {
    "ttft": "ttftMilliseconds", "queue": "queueMilliseconds", "prefill": "prefillMilliseconds",
    "transfer": "kvTransferMilliseconds", "first_step": "firstStepMilliseconds", "itl": "itlMilliseconds",
    "tpot": "tpotMilliseconds", "end_to_end": "endToEndMilliseconds",
}  # fmt: skip


def rounded(value: float, digits: int = 4) -> float | None:
    """Round; NaN, which no output format knows, becomes None."""
    return None if math.isnan(value) else round(value, digits)


def milliseconds(seconds: float) -> float | None:
    """Round to microseconds; NaN and infinity become None."""
    return rounded(1000 * seconds, 3) if math.isfinite(seconds) else None


# ---------------------------------------------------------------- data


def run_data(summary: Summary, windows: bool = True) -> dict[str, Any]:
    """One run for programs."""
    data = {
        "policy": summary.policy,
        "services": [_service_data(service) for service in summary.services.values()],
        "pools": [_pool_data(pool) for pool in summary.pools],
        "domains": [
            {"domain": d.domain, "peakWatts": round(d.peak_watts, 1), "usableWatts": round(d.usable_watts, 1)}
            for d in summary.domains
        ],
        "unfinishedRequests": sum(service.unfinished for service in summary.services.values()),
        "rejected": [{"request": name, "reason": reason} for name, reason in summary.rejections],
        "makespanSeconds": round(summary.end_s, 3),
        "gpuSeconds": round(summary.gpu_s, 3),
        "energyKilowattHours": round(summary.energy_joules / 3.6e6, 4),
        "costUsd": round(summary.cost_usd, 4),
        "costUsdPerHour": round(summary.cost_usd_per_hour, 4),
        "replicaStarts": summary.starts,
        "replicaStops": summary.stops,
        "extrapolatedSteps": summary.extrapolated_steps,
        "extrapolatedPrompts": summary.extrapolated_prompts,
        "events": [_incident_data(each) for each in summary.incidents],
        "eventsAfterTheEnd": summary.incidents_not_reached,
        "confidence": METHOD,
    }
    return data | ({"windows": [_window_data(window) for window in summary.windows]} if windows else {})


def _incident_data(happened: Happened) -> dict[str, Any]:
    incident = happened.incident
    return {
        "atSeconds": round(incident.at_s, 3),
        "what": str(incident.what),
        "target": incident.target,
        "capWattsPerGpu": incident.cap_watts,
        "repairSeconds": incident.repair_s,
        "replicas": list(happened.replicas),
        "requestsBegunAgain": happened.begun_again,
    }


def _percentiles(values: Mapping[float, Estimate]) -> dict[str, float | None]:
    return {f"p{100 * ratio:g}": milliseconds(each.value) for ratio, each in values.items()}


def _half_widths(values: Mapping[float, Estimate]) -> dict[str, float | None]:
    return {f"p{100 * ratio:g}": milliseconds(each.half_width) for ratio, each in values.items()}


def _service_data(service: ServiceSummary) -> dict[str, Any]:
    return {
        "service": service.service,
        "requests": service.submitted,
        "finished": service.finished,
        "rejected": service.rejected,
        "timedOut": service.timed_out,
        "unfinished": service.unfinished,
        "outputTokens": service.output_tokens,
        **{KEYS[name]: _percentiles(values) for name, values in service.latencies_s.items()},
        "halfWidths": {KEYS[name]: _half_widths(values) for name, values in service.latencies_s.items()},
        "inSloRatio": rounded(service.in_slo_ratio.value, 6),
        "goodputRequestsPerSecond": rounded(service.goodput_requests_per_s.value),
        "goodputHalfWidth": rounded(service.goodput_requests_per_s.half_width),
        "slos": [_slo_data(service, kept) for kept in service.slos],
    }


def _slo_data(service: ServiceSummary, kept: Kept) -> dict[str, Any]:
    return {
        "metric": str(kept.slo.metric),
        "percentile": 100 * kept.slo.percentile_ratio,
        "limitMilliseconds": milliseconds(kept.slo.limit_s),
        "attainedMilliseconds": milliseconds(kept.value_s.value),
        "attainedHalfWidth": milliseconds(kept.value_s.half_width),
        "withinRatio": rounded(kept.within_ratio.value, 6) if service.finished else None,
        "withinHalfWidth": rounded(kept.within_ratio.half_width, 6),
        "met": is_met(service, kept),
    }


def is_met(service: ServiceSummary, kept: Kept) -> bool:
    """A service that served none of its requests met nothing."""
    return kept.is_met and (service.finished > 0 or not service.submitted)


def _pool_data(pool: PoolSummary) -> dict[str, Any]:
    return {
        "pool": str(pool.pool),
        "meanReplicas": round(pool.mean_replicas, 4),
        "busyRatio": round(pool.busy_ratio, 4),
        "gpuSeconds": round(pool.gpu_s, 3),
        "joules": round(pool.joules, 1),
        "costUsd": round(pool.cost_usd, 4),
        "promptTokens": pool.prompt_tokens,
        "cachedTokens": pool.cached_tokens,
        "outputTokens": pool.output_tokens,
        "preemptions": pool.preemptions,
        "ttftMilliseconds": _percentiles(pool.ttft_s),
        "itlMilliseconds": _percentiles(pool.itl_s),
    }


def _window_data(window: WindowSummary) -> dict[str, Any]:
    return {
        "service": window.service,
        "startSeconds": round(window.start_s, 3),
        "endSeconds": round(window.end_s, 3),
        "requests": window.requests,
        "ttftP50Milliseconds": milliseconds(window.ttft_p50_s),
        "ttftP95Milliseconds": milliseconds(window.ttft_p95_s),
        "itlP95Milliseconds": milliseconds(window.itl_p95_s),
        "inSloRatio": rounded(window.in_slo_ratio, 6),
        "goodputRequestsPerSecond": round(window.goodput_requests_per_s, 4),
        "queuedAtGateway": window.queued,
        "gpus": round(window.gpus, 3),
        "watts": round(window.watts, 1),
    }


def compared_data(runs: Sequence[Run]) -> dict[str, Any]:
    """Several runs for programs: each without its windows, and the groups of their seeds."""
    return {
        "runs": [
            {"trace": job.trace, "plan": job.plan_name, "seed": job.seed} | run_data(summary, windows=False)
            for job, summary in runs
        ],
        "comparison": [
            {
                "policy": group[0][0].policy,
                "trace": group[0][0].trace,
                "plan": group[0][0].plan_name,
                "seeds": len(group),
                "costUsdPerHour": round(fmean(s.cost_usd_per_hour for _, s in group), 4),
                "inSloRatio": round(fmean(s.in_slo_ratio for _, s in group), 6),
                "unservedRequests": round(fmean(s.unserved for _, s in group), 2),
                "megajoules": round(fmean(s.energy_joules for _, s in group) / 1e6, 4),
                "peakOfBudgetRatio": rounded(max(peak_ratio(s) for _, s in group)),
                "replicaStarts": round(fmean(s.starts for _, s in group), 2),
            }
            for group in groups(runs)
        ],
    }


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ by their seed only, in order of appearance."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for job, summary in runs:
        found.setdefault((job.policy, job.trace, job.plan_name), []).append((job, summary))
    return list(found.values())


def peak_ratio(summary: Summary) -> float:
    """Peak watts over usable ones of the worst power domain; NaN without domains."""
    ratios = [d.peak_watts / d.usable_watts for d in summary.domains if d.usable_watts > 0]
    return max(ratios, default=math.nan)


# ---------------------------------------------------------------- tables


def run_sections(summary: Summary) -> Iterator[str]:
    """One run for people."""
    headers = ("SERVICE", "REQUESTS", "SLO", "LIMIT MS", "ATTAINED MS", "WITHIN %", "MET", "GOODPUT/S")
    yield render_table(headers, _slo_rows(summary))
    yield render_table(("SERVICE", "LATENCY MS", "P50", "P95", "P99", "P95 ±"), _latency_rows(summary))
    yield render_table(
        ("POOL", "REPLICAS", "BUSY %", "GPU S", "KJ", "USD", "TTFT P95 MS", "ITL P95 MS"), _pool_rows(summary)
    )
    if summary.domains:
        yield render_table(("POWER", "PEAK W", "USABLE W"), _domain_rows(summary))
    if summary.incidents:
        yield render_table(("AT S", "EVENT", "TARGET", "REPLICAS HIT", "BEGUN AGAIN"), _incident_rows(summary))
    if summary.incidents_not_reached:
        yield f"note: {summary.incidents_not_reached} events lie after the end of the run"
    yield f"±: {METHOD}; peak: mean of the highest window"
    yield (
        f"{summary.end_s:.0f} s replayed, {summary.energy_joules / 3.6e6:.2f} kWh, "
        f"{summary.cost_usd_per_hour:.2f} USD/h, {sum(s.unfinished for s in summary.services.values())} requests "
        f"unfinished, {len(summary.rejections)} rejected"
    )
    if summary.rejections:
        yield "\n".join(f"rejected: {name}: {reason}" for name, reason in summary.rejections[:5])
    if summary.extrapolated_steps or summary.extrapolated_prompts:
        steps, prompts = summary.extrapolated_steps, summary.extrapolated_prompts
        yield f"note: {steps} decode steps and {prompts} prompts lie beyond the tables of their profiles"


def _slo_rows(summary: Summary) -> Iterator[tuple[Cell, ...]]:
    for name, service in summary.services.items():
        for kept in service.slos:
            label = f"{kept.slo.metric} p{100 * kept.slo.percentile_ratio:g}"
            within = 100 * kept.within_ratio.value if service.finished else MISSING
            met = "yes" if is_met(service, kept) else "NO"
            goodput = service.goodput_requests_per_s.value
            limit, value = 1000 * kept.slo.limit_s, _cell(kept.value_s.value)
            yield name, service.submitted, label, limit, value, within, met, 0.0 if math.isnan(goodput) else goodput


def _cell(seconds: float) -> Cell:
    value = milliseconds(seconds)
    return MISSING if value is None else value


def _latency_rows(summary: Summary) -> Iterator[tuple[Cell, ...]]:
    for name, service in summary.services.items():
        for latency, values in service.latencies_s.items():
            cells = (_cell(values[ratio].value) for ratio in SHOWN)
            yield name, WORDS[latency], *cells, _cell(values[0.95].half_width)


def _pool_rows(summary: Summary) -> Iterator[tuple[Cell, ...]]:
    for pool in summary.pools:
        latencies = (_cell(pool.ttft_s[0.95].value), _cell(pool.itl_s[0.95].value))
        busy, spent = 100 * pool.busy_ratio, (round(pool.gpu_s), pool.joules / 1000, pool.cost_usd)
        yield str(pool.pool), pool.mean_replicas, busy, *spent, *latencies


def _domain_rows(summary: Summary) -> Iterator[tuple[Cell, ...]]:
    for domain in summary.domains:
        yield domain.domain, round(domain.peak_watts), round(domain.usable_watts)


def _incident_rows(summary: Summary) -> Iterator[tuple[Cell, ...]]:
    for happened in summary.incidents:
        incident = happened.incident
        yield incident.at_s, event_words(incident), incident.target, len(happened.replicas), happened.begun_again


def event_words(incident: Incident) -> str:
    """What happens, with its watts."""
    if incident.what is not What.CAP:
        return str(incident.what)
    return "cap lifted" if incident.cap_watts is None else f"cap {incident.cap_watts:g} W"


def compared_sections(runs: Sequence[Run]) -> Iterator[str]:
    """Several runs for people: a row for each policy, trace and plan, means over the seeds."""
    headers = (
        "POLICY", "TRACE", "PLAN", "SEEDS", "USD/H", "IN SLO %", "± %", "UNSERVED", "MJ", "PEAK W / USABLE %", "STARTS",
    )  # fmt: skip
    yield render_table(headers, (_compared_row(group) for group in groups(runs)))
    if any(summary.incidents for _, summary in runs):
        yield render_table(
            ("POLICY", "TRACE", "PLAN", "EVENTS", "REPLICAS HIT", "BEGUN AGAIN"), map(_struck_row, groups(runs))
        )
    yield "means over the seeds; ±: 95 % half-width over the seeds; peak: of the worst power domain and window"


def _compared_row(group: Sequence[Run]) -> tuple[Cell, ...]:
    job, summaries = group[0][0], [summary for _, summary in group]
    ratios = [100 * s.in_slo_ratio for s in summaries]
    peak = max(peak_ratio(s) for s in summaries)
    return (
        job.policy,
        job.trace,
        job.plan_name,
        len(group),
        fmean(s.cost_usd_per_hour for s in summaries),
        fmean(ratios),
        _spread(ratios),
        fmean(s.unserved for s in summaries),
        fmean(s.energy_joules for s in summaries) / 1e6,
        MISSING if math.isnan(peak) else 100 * peak,
        fmean(s.starts for s in summaries),
    )


def _struck_row(group: Sequence[Run]) -> tuple[Cell, ...]:
    job, all_incidents = group[0][0], [summary.incidents for _, summary in group]
    hit = fmean(sum(len(each.replicas) for each in incidents) for incidents in all_incidents)
    again = fmean(sum(each.begun_again for each in incidents) for incidents in all_incidents)
    return job.policy, job.trace, job.plan_name, fmean(len(each) for each in all_incidents), hit, again


def _spread(values: Sequence[float]) -> Cell:
    from scipy.special import stdtrit

    if len(values) < 2:
        return MISSING
    middle = fmean(values)
    variance = sum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return float(stdtrit(len(values) - 1, 0.975)) * math.sqrt(variance / len(values))

"""What a run comes to: latencies with their confidence, SLOs, goodput, watts, GPU time and money.

Per service over the whole run, per pool, and per time window. Percentiles are of requests that finished; those that
timed out count in TTFT with the time that they waited, and as misses everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from solvers.evaluate.confidence import NOTHING, Estimate, Floats, half_width, mean, quantile
from solvers.evaluate.fleet_state import Place
from solvers.evaluate.incidents import Happened
from solvers.evaluate.meters import Meter
from solvers.evaluate.run import Record, Window
from solvers.fleet import PoolKey
from solvers.power import base_watts, charged_domains, nodes_by_domain
from solvers.problem import Problem
from solvers.simulate import FinishedRequest, GapHistogram
from solvers.simulate.results import meets
from solvers.workload import Slo, SloMetric

PERCENTILES = (0.5, 0.9, 0.95, 0.99)
TTFT_PARTS = ("queue", "prefill", "transfer", "first_step")
LATENCIES = ("ttft", *TTFT_PARTS, "itl", "tpot", "end_to_end")
JOULES_PER_KWH = 3.6e6

Percentiles = Mapping[float, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How one SLO fared: the percentile it names, and the share of requests (TTFT) or gaps (ITL) inside its limit."""

    slo: Slo
    value_s: Estimate
    within_ratio: Estimate

    @property
    def is_met(self) -> bool:
        """True when the share inside the limit is at least the one asked."""
        return self.within_ratio.value >= self.slo.percentile_ratio

    @property
    def is_refuted(self) -> bool:
        """True when it is missed by more than the run's own scatter explains."""
        return self.within_ratio.high < self.slo.percentile_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSummary:
    """One service. ``latencies_s`` holds percentiles by the names of ``LATENCIES``."""

    service: str
    submitted: int
    finished: int
    rejected: int
    timed_out: int
    unfinished: int
    output_tokens: int
    latencies_s: Mapping[str, Percentiles]
    slos: tuple[Kept, ...]
    in_slo_ratio: Estimate
    goodput_requests_per_s: Estimate

    @property
    def unserved(self) -> int:
        """Requests without an answer."""
        return self.rejected + self.timed_out + self.unfinished

    @property
    def is_met(self) -> bool:
        """True when every SLO is met by a service that served something, or that was asked nothing."""
        return all(kept.is_met for kept in self.slos) and (self.finished > 0 or not self.submitted)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSummary:
    """One pool over all its places; ``ttft_s`` of requests whose prompt it computed, ``itl_s`` of its own gaps.

    ``prompt_tokens`` were computed, ``cached_tokens`` found in the prefix cache instead.
    """

    pool: PoolKey
    mean_replicas: float
    busy_ratio: float
    gpu_s: float
    joules: float
    cost_usd: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    ttft_s: Percentiles
    itl_s: Percentiles


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSummary:
    """One service in one window, by arrival of its requests."""

    service: str
    start_s: float
    end_s: float
    requests: int
    ttft_p50_s: float
    ttft_p95_s: float
    itl_p95_s: float
    in_slo_ratio: float
    goodput_requests_per_s: float
    queued: int
    gpus: float
    watts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSummary:
    """Watts of one power domain: the largest mean over a window, and what was allowed."""

    domain: str
    peak_watts: float
    usable_watts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole run. ``energy_joules`` is what replicas drew; ``domains`` count idle GPUs and hosts too;
    ``incidents`` are those that happened, in order."""

    policy: str
    services: Mapping[str, ServiceSummary]
    pools: tuple[PoolSummary, ...]
    windows: tuple[WindowSummary, ...]
    domains: tuple[DomainSummary, ...]
    end_s: float
    gpu_s: float
    energy_joules: float
    cost_usd: float
    starts: int
    stops: int
    rejections: tuple[tuple[str, str], ...]
    extrapolated_steps: int
    extrapolated_prompts: int
    incidents: tuple[Happened, ...] = ()
    incidents_not_reached: int = 0

    @property
    def unserved(self) -> int:
        """Requests without an answer."""
        return sum(service.unserved for service in self.services.values())

    @property
    def cost_usd_per_hour(self) -> float:
        """Mean price of GPUs held and energy drawn."""
        return 3600.0 * self.cost_usd / self.end_s if self.end_s > 0 else 0.0

    @property
    def in_slo_ratio(self) -> float:
        """Share of all requests that kept all their SLOs."""
        asked = sum(service.submitted for service in self.services.values())
        kept = sum(service.in_slo_ratio.value * service.submitted for service in self.services.values())
        return kept / asked if asked else 1.0

    @property
    def is_met(self) -> bool:
        """True when every SLO was met and every request served."""
        return all(service.is_met for service in self.services.values()) and not self.unserved


def summarise(record: Record) -> Summary:
    """Work out everything that is reported of a run."""
    problem = record.problem
    slos = {service.name: service.slos for service in problem.services}
    meters = _whole(record.windows)
    pools = _pools(record, meters)
    by_service = {name: _of_service(record, name, slos.get(name, ())) for name in sorted(record.unfinished)}
    return Summary(
        policy=record.policy,
        services=by_service,
        pools=pools,
        windows=tuple(_windows(record, slos)),
        domains=_domains(problem, record.windows),
        end_s=record.end_s,
        gpu_s=sum(pool.gpu_s for pool in pools),
        energy_joules=sum(pool.joules for pool in pools),
        cost_usd=sum(pool.cost_usd for pool in pools),
        starts=record.starts,
        stops=record.stops,
        rejections=tuple((row.name, row.reason) for row in record.rejected),
        extrapolated_steps=record.extrapolated[0],
        extrapolated_prompts=record.extrapolated[1],
        incidents=record.happened,
        incidents_not_reached=record.not_reached,
    )


# ---------------------------------------------------------------- services


def _of_service(record: Record, name: str, slos: Sequence[Slo]) -> ServiceSummary:
    done = sorted((r for r in record.finished if r.service == name), key=lambda r: (r.arrival_s, r.end_s))
    late = [(r.arrival_s, r.waited_s) for r in record.timed_out if r.service == name]
    rejected = sum(r.service == name for r in record.rejected)
    unfinished = record.unfinished[name]
    missed = [(at, False) for at, _ in late] + [(r.arrival_s, False) for r in record.rejected if r.service == name]
    inside = _in_order([*((r.arrival_s, meets(r, slos)) for r in done), *missed])
    gaps = [window.gaps[name] for window in record.windows if name in window.gaps]
    asked = len(done) + len(late) + rejected + unfinished
    in_slo = mean(np.append(inside, np.zeros(unfinished)))
    rate = asked / record.end_s if record.end_s > 0 else 0.0
    return ServiceSummary(
        service=name,
        submitted=asked,
        finished=len(done),
        rejected=rejected,
        timed_out=len(late),
        unfinished=unfinished,
        output_tokens=sum(r.output_tokens for r in done),
        latencies_s=_latencies(done, late, gaps),
        slos=tuple(_kept(slo, done, late, rejected, gaps) for slo in slos),
        in_slo_ratio=in_slo,
        goodput_requests_per_s=Estimate(value=rate * _or_zero(in_slo.value), half_width=rate * in_slo.half_width),
    )


def _or_zero(value: float) -> float:
    return 0.0 if value != value else value


def _in_order(pairs: Sequence[tuple[float, float]]) -> Floats:
    """Values in order of their time, (N,)."""
    return np.array([value for _, value in sorted(pairs)], dtype=np.float64)


def _latencies(
    done: Sequence[FinishedRequest], late: Sequence[tuple[float, float]], gaps: Sequence[GapHistogram]
) -> dict[str, Percentiles]:
    values = {
        "ttft": _in_order([*((r.arrival_s, r.ttft_s) for r in done), *late]),
        "queue": _column([r.queue_s for r in done]),
        "prefill": _column([r.prefill_s for r in done]),
        "transfer": _column([r.kv_transfer_s for r in done]),
        "first_step": _column([r.first_step_s for r in done]),
        "tpot": _column([r.tpot_s for r in done if r.output_tokens > 1]),
        "end_to_end": _column([r.end_s - r.arrival_s for r in done]),
    }
    found: dict[str, Percentiles] = {
        name: {ratio: quantile(of, ratio) for ratio in PERCENTILES} for name, of in values.items()
    }
    found["itl"] = _gap_percentiles(gaps)
    return {name: found[name] for name in LATENCIES}


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=np.float64)


def _together(gaps: Sequence[GapHistogram]) -> GapHistogram:
    whole = GapHistogram()
    for window in gaps:
        whole.merge(window)
    return whole


def _gap_percentiles(gaps: Sequence[GapHistogram]) -> Percentiles:
    """Percentiles of token gaps; the windows are the batches of the confidence."""
    whole = _together(gaps)
    if whole.count <= 0:
        return dict.fromkeys(PERCENTILES, NOTHING)
    found = {}
    for ratio in PERCENTILES:
        value = whole.quantile_s(ratio)
        parts = [window.quantile_s(ratio) for window in gaps if window.count > 0]
        found[ratio] = Estimate(value=value, half_width=half_width(value, parts))
    return found


def _kept(
    slo: Slo,
    done: Sequence[FinishedRequest],
    late: Sequence[tuple[float, float]],
    rejected: int,
    gaps: Sequence[GapHistogram],
) -> Kept:
    ratio = slo.percentile_ratio
    if slo.metric is SloMetric.TTFT:
        waits = _in_order([*((r.arrival_s, r.ttft_s) for r in done), *((at, np.inf) for at, _ in late)])
        value = quantile(_in_order([*((r.arrival_s, r.ttft_s) for r in done), *late]), ratio)
        inside = np.append((waits <= slo.limit_s).astype(np.float64), np.zeros(rejected))
        return Kept(slo=slo, value_s=value, within_ratio=mean(inside) if len(inside) else Estimate(value=1.0))
    whole = _together(gaps)
    parts = [window.in_limit_ratio for window in gaps if window.count > 0]
    within = Estimate(value=whole.in_limit_ratio, half_width=half_width(whole.in_limit_ratio, parts))
    values = [window.quantile_s(ratio) for window in gaps if window.count > 0]
    value_s = whole.quantile_s(ratio)
    return Kept(slo=slo, value_s=Estimate(value=value_s, half_width=half_width(value_s, values)), within_ratio=within)


# ---------------------------------------------------------------- pools and windows


def _whole(windows: Sequence[Window]) -> dict[Place, Meter]:
    totals: dict[Place, Meter] = {}
    for window in windows:
        for place, meter in window.meters.items():
            totals.setdefault(place, Meter()).merge(meter)
    return totals


def _pools(record: Record, meters: Mapping[Place, Meter]) -> tuple[PoolSummary, ...]:
    by_pool: dict[PoolKey, Meter] = {}
    for (pool, _), meter in sorted(meters.items()):
        by_pool.setdefault(pool, Meter()).merge(meter)
    prompts: dict[str, list[float]] = {}
    for request in sorted(record.finished, key=lambda r: (r.arrival_s, r.end_s)):
        prompts.setdefault(request.prefill_replica.partition("@")[0], []).append(request.ttft_s)
    return tuple(_pool(record, pool, meter, prompts.get(str(pool), [])) for pool, meter in by_pool.items())


def _pool(record: Record, pool: PoolKey, meter: Meter, ttft_s: Sequence[float]) -> PoolSummary:
    replica_s = meter.gpu_s / pool.config.gpus
    own = [w.meters[place].gaps for w in record.windows for place in w.meters if place[0] == pool]
    return PoolSummary(
        pool=pool,
        mean_replicas=replica_s / record.end_s if record.end_s > 0 else 0.0,
        busy_ratio=meter.busy_s / replica_s if replica_s > 0 else 0.0,
        gpu_s=meter.gpu_s,
        joules=meter.joules,
        cost_usd=_cost_usd(record.problem, pool, meter),
        prompt_tokens=meter.prompt_tokens,
        cached_tokens=meter.cached_tokens,
        output_tokens=meter.output_tokens,
        preemptions=meter.preemptions,
        ttft_s={ratio: quantile(_column(ttft_s), ratio) for ratio in PERCENTILES},
        itl_s=_gap_percentiles(own),
    )


def _cost_usd(problem: Problem, pool: PoolKey, meter: Meter) -> float:
    price = problem.gpu_classes[pool.gpu_class].price_usd_per_hour
    energy = problem.policy.energy_usd_per_kilowatt_hour * meter.joules / JOULES_PER_KWH
    return price * meter.gpu_s / 3600.0 + energy


def _windows(record: Record, slos: Mapping[str, Sequence[Slo]]) -> list[WindowSummary]:
    found = []
    edges = [window.start_s for window in record.windows]
    for service in sorted(record.unfinished):
        asked: list[list[FinishedRequest]] = [[] for _ in edges]
        lost = [0] * len(edges)
        for request in record.finished:
            if request.service == service:
                asked[_window_of(edges, request.arrival_s)].append(request)
        for refused in (*record.timed_out, *record.rejected):
            if refused.service == service:
                lost[_window_of(edges, refused.arrival_s)] += 1
        rows = zip(record.windows, asked, lost, strict=True)
        found += [_window(service, w, done, gone, slos.get(service, ())) for w, done, gone in rows]
    return found


def _window_of(edges: Sequence[float], at_s: float) -> int:
    return max(0, int(np.searchsorted(edges, at_s, side="right")) - 1)


def _window(
    service: str, window: Window, done: Sequence[FinishedRequest], lost: int, slos: Sequence[Slo]
) -> WindowSummary:
    width = window.end_s - window.start_s
    ttft = _column([r.ttft_s for r in done])
    kept = sum(meets(r, slos) for r in done)
    mine = [meter for (pool, _), meter in window.meters.items() if pool.service == service]
    gaps = window.gaps.get(service, GapHistogram())
    return WindowSummary(
        service=service,
        start_s=window.start_s,
        end_s=window.end_s,
        requests=len(done) + lost,
        ttft_p50_s=quantile(ttft, 0.5).value,
        ttft_p95_s=quantile(ttft, 0.95).value,
        itl_p95_s=gaps.quantile_s(0.95) if gaps.count > 0 else nan,
        in_slo_ratio=kept / (len(done) + lost) if done or lost else nan,
        goodput_requests_per_s=kept / width,
        queued=window.queued.get(service, 0),
        gpus=sum(meter.gpu_s for meter in mine) / width,
        watts=sum(meter.joules for meter in mine) / width,
    )


# ---------------------------------------------------------------- power


def _domains(problem: Problem, windows: Sequence[Window]) -> tuple[DomainSummary, ...]:
    members = nodes_by_domain(problem.nodes)
    idle = {domain: base_watts(inside, problem.gpu_classes) for domain, inside in members.items()}
    peaks = dict(idle)
    for window in windows:
        for domain, watts in _window_watts(problem, window, idle).items():
            peaks[domain] = max(peaks[domain], watts)
    return tuple(
        DomainSummary(domain=name, peak_watts=peaks[name], usable_watts=domain.usable_watts)
        for name, domain in sorted(problem.domains.items())
        if name in peaks
    )


def _window_watts(problem: Problem, window: Window, idle: Mapping[str, float]) -> dict[str, float]:
    """Mean draw of each domain: idle GPUs, and what replicas and their hosts draw above that."""
    watts, width = dict(idle), window.end_s - window.start_s
    for (pool, location), meter in sorted(window.meters.items()):
        kind = problem.gpu_classes[pool.gpu_class]
        above = (meter.joules + meter.gpu_s * (kind.host_share_watts - kind.idle_watts)) / width
        for domain in charged_domains(problem.nodes, pool.gpu_class, location):
            watts[domain] += above
    return watts

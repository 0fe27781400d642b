"""Request-level simulation: the entry point. ``Fleet`` serves what callers hand it as time goes on;
``serve`` takes a whole workload of arrays, ``replay`` one of objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from solvers.simulate.arrivals import Clients, Workload
from solvers.simulate.fleet import Fleet, Routing
from solvers.simulate.outcome import Outcome, Served, is_worth_compiling, serve
from solvers.simulate.results import (
    Attained,
    FinishedRequest,
    FirstToken,
    GapHistogram,
    Rejected,
    ReplicaView,
    Result,
    ServiceResult,
    SimRequest,
    attained,
    meets,
    quantiles,
)
from solvers.workload import Slo, SloMetric

__all__ = [
    "Attained", "Clients", "FinishedRequest", "FirstToken", "Fleet", "GapHistogram", "Outcome", "Rejected",
    "ReplicaView", "Result", "Routing", "Served", "ServiceResult", "SimRequest", "Workload", "is_worth_compiling",
    "itl_limits", "replay", "serve",
]  # fmt: skip


def replay(
    fleet: Fleet,
    requests: Iterable[SimRequest],
    *,
    slos: Mapping[str, Sequence[Slo]] | None = None,
    until_s: float = float("inf"),
) -> Result:
    """Serve a trace and judge it.

    Parameters
    ----------
    requests : iterable of SimRequest
        In any order; at equal arrivals the first one here comes first.
    slos : mapping of service to SLOs, optional
        What to judge by. Give the tightest ITL limit of a service to the fleet as well (``itl_limits``), so that late
        gaps are counted by request.
    until_s : float
        Virtual second to stop at; what is then unserved is counted as unfinished.
    """
    for request in sorted(requests, key=lambda r: r.arrival_s):  # out of order each one would be put in its place
        fleet.submit(request)
    fleet.advance(until_s)
    fleet.settle()
    finished, rejected = tuple(fleet.take_finished()), tuple(fleet.take_rejected())
    timed_out = tuple(fleet.take_timed_out())
    names = fleet.services()
    asked = slos or {}
    by_service = {name: [r for r in finished if r.service == name] for name in names}
    waits = {name: [r.waited_s for r in timed_out if r.service == name] for name in names}
    span = fleet.now_s
    submitted = sum(fleet.counts(name).get("submitted", 0) for name in names)
    steps, prompts = fleet.extrapolated()
    return Result(
        services={n: _judge(fleet, n, by_service[n], waits[n], tuple(asked.get(n, ())), span) for n in names},
        finished=finished,
        rejected=rejected,
        timed_out=timed_out,
        unfinished=submitted - len(finished) - len(rejected) - len(timed_out),
        makespan_s=span,
        energy_joules=fleet.energy_joules(),
        extrapolated_steps=steps,
        extrapolated_prompts=prompts,
    )


def itl_limits(slos: Mapping[str, Sequence[Slo]]) -> dict[str, float]:
    """Find the tightest ITL limit of each service that has one, in seconds."""
    found = {name: [s.limit_s for s in some if s.metric is SloMetric.ITL] for name, some in slos.items()}
    return {name: min(limits) for name, limits in found.items() if limits}


def _judge(
    fleet: Fleet,
    name: str,
    finished: Sequence[FinishedRequest],
    timed_out_s: Sequence[float],
    slos: Sequence[Slo],
    span_s: float,
) -> ServiceResult:
    counts, gaps = fleet.counts(name), fleet.gaps(name)
    ttft = [r.ttft_s for r in finished]
    limit, rejected = fleet.itl_limits_s.get(name), counts.get("rejected", 0)
    return ServiceResult(
        service=name,
        submitted=counts.get("submitted", 0),
        finished=len(finished),
        rejected=rejected,
        timed_out=len(timed_out_s),
        rerouted=counts.get("rerouted", 0),
        output_tokens=sum(r.output_tokens for r in finished),
        ttft_s=quantiles([*ttft, *timed_out_s]),
        itl_s={ratio: gaps.quantile_s(ratio) for ratio in quantiles([])},
        tpot_s=quantiles([r.tpot_s for r in finished if r.output_tokens > 1]),
        attained=tuple(attained(slo, ttft, gaps, limit, timed_out_s=timed_out_s, rejected=rejected) for slo in slos),
        goodput_requests_per_s=sum(meets(r, slos) for r in finished) / span_s if span_s > 0 else 0.0,
    )

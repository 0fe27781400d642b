"""From readings to the demand that planning uses, service by service, and what to do where there is none.

============================  =======================================================================================
what is known                 demand
============================  =======================================================================================
source Declared               as declared
a fresh reading               forecast at the policy's quantile and horizon, with the policy's headroom, and the sizes
                              that were observed; while the history is younger than a dip must last to be believed,
                              not below the last demand, and its sizes: the first to finish are the short ones
a queue at the gateway        served within ``QUEUE_DRAIN_S`` on top of the forecast, but at most half of it: a gateway
                              sheds what waits too long, and new replicas come when most of the queue is history
no fresh reading, but a       the last demand again, so that telemetry that is missing or old changes nothing
demand was planned before
none, and nothing runs        as declared, with the policy's headroom, where that is written: nobody serves, so nobody
                              could have been measured
the same, for advice          as declared: advice plans what is written
otherwise                     none: the service keeps what runs, replica by replica, until telemetry speaks
============================  =======================================================================================

The joint distribution of prompt and output sizes cannot be had from two histograms. They are taken as independent,
which ``Demand.source`` says; a trace or a log would give the true one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

from controller.readings import Histogram, LoadSample, Readings, ServiceReading
from controller.resources import FleetPolicySpec, ServedModelSpec
from controller.schema import DemandSource
from solvers.forecast import HOLD_S, expected_demand
from solvers.workload import Demand, SizeBucket

PROMPT_CUTS = (0.0, 0.5, 0.9, 1.0)  # long prompts decide TTFT and KV room: their tenth gets a bucket of its own
OUTPUT_CUTS = (0.0, 0.7, 1.0)
POINTS = 5  # quantiles that a band's mean is taken over
DIGITS = 2  # a size that changes by less than a few percent is the same size: it must not change the plan
QUEUE_DRAIN_S = 60.0  # what already waits is to be served within a minute, not left to the TTFT of others
QUEUE_SHARE_RATIO = 0.5  # of the forecast; a plan that chases more than that is late and far too large afterwards

INDEPENDENT = "prompt and output sizes taken as independent"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandView:
    """What one service is planned for.

    Attributes
    ----------
    demand : Demand or None
        None: nothing is known, so what runs stays as it is.
    is_fresh : bool
        False while a reading is wanted and there is no fresh one.
    reason : str
        For the TelemetryFresh condition.
    message : str
        The same in a sentence.
    """

    demand: Demand | None
    is_fresh: bool
    reason: str
    message: str


def view_demand(
    spec: ServedModelSpec,
    readings: Readings,
    policy: FleetPolicySpec,
    *,
    now_s: float,
    previous: Demand | None,
    is_running: bool,
    is_advice: bool = False,
) -> DemandView:
    """Decide what a service is planned for.

    Parameters
    ----------
    previous : Demand, optional
        What it was planned for last.
    is_running : bool
        Whether replicas of it exist.
    is_advice : bool
        Nothing will be acted upon, so what is declared is planned as it is.
    """
    if spec.demand_source is DemandSource.DECLARED and spec.declared is not None:
        return DemandView(demand=spec.declared, is_fresh=True, reason="Declared", message="the demand is declared")
    reading = readings.services.get(spec.model.name)
    if reading is not None and reading.is_fresh(now_s, policy.telemetry_max_age_s):
        measured = _measured(spec, reading, policy, previous)
        if measured is not None:
            return DemandView(demand=measured, is_fresh=True, reason=_REASONS[reading.source], message=measured.source)
    headroom_ratio = 0.0 if is_advice else policy.capacity_headroom_ratio
    return _without_reading(spec, _why_not(reading, now_s), previous, headroom_ratio, is_running=is_running)


_REASONS = {"Gateway": "Gateway", "Engine": "EngineOnly"}


def _why_not(reading: ServiceReading | None, now_s: float) -> str:
    if reading is None:
        return "no series speaks of the service"
    return f"the newest reading is {now_s - reading.as_of_s:.0f} s old or has no request sizes"


def _without_reading(
    spec: ServedModelSpec, why: str, previous: Demand | None, headroom_ratio: float, *, is_running: bool
) -> DemandView:
    if previous is not None:
        return DemandView(
            demand=previous, is_fresh=False, reason="Held", message=f"{why}; the last known demand is planned for"
        )
    if not is_running and spec.declared is not None:
        return DemandView(
            demand=replace(spec.declared, requests_per_s=spec.declared.requests_per_s * (1.0 + headroom_ratio)),
            is_fresh=False,
            reason="Declared",
            message=f"{why}; the declared demand is planned for" + (", with headroom" if headroom_ratio else ""),
        )
    keeps = "what runs stays as it is" if is_running else "nothing is started; declare a demand to start with"
    return DemandView(demand=None, is_fresh=False, reason="Absent", message=f"{why}; {keeps}")


def _measured(
    spec: ServedModelSpec, reading: ServiceReading, policy: FleetPolicySpec, previous: Demand | None
) -> Demand | None:
    """The demand behind a fresh reading; None when nobody knows the sizes of its requests."""
    mix, sizes = _mix(spec, reading, previous)
    if not mix:
        return None
    history = [(sample.time_s, sample.requests_per_s, sample.window_s) for sample in reading.history]
    expected = (
        expected_demand(
            history,
            now_s=max(time_s for time_s, _, _ in history),
            horizon_s=policy.demand_horizon_s,
            quantile=policy.demand_quantile_ratio,
        )
        if history
        else reading.requests_per_s
    )
    wanted = (expected + _backlog(reading, expected)) * (1.0 + policy.capacity_headroom_ratio)
    if previous is not None and _is_young(reading.history):
        wanted = max(wanted, previous.requests_per_s)
    return Demand(service=spec.model.name, requests_per_s=wanted, mix=mix, source=f"{reading.source}; {sizes}")


def _backlog(reading: ServiceReading, expected: float) -> float:
    """Requests per second that drain the queue in time, bounded; a request that waits is never no demand at all."""
    waiting = reading.queue or 0.0
    most = max(QUEUE_SHARE_RATIO * expected, 1.0 / QUEUE_DRAIN_S)
    return min(waiting / QUEUE_DRAIN_S, most)


def _is_young(history: Sequence[LoadSample]) -> bool:
    """True while the history is too short to tell a dip from series that have only just begun."""
    times = [sample.time_s for sample in history]
    return not times or max(times) - min(times) < HOLD_S


def _mix(spec: ServedModelSpec, reading: ServiceReading, previous: Demand | None) -> tuple[tuple[SizeBucket, ...], str]:
    """Sizes of the requests, and where they come from."""
    if previous is not None and _is_young(reading.history):
        return previous.mix, "sizes as last known"
    if reading.prompt_histogram is not None and reading.output_histogram is not None:
        return mix_of(reading.prompt_histogram, reading.output_histogram), INDEPENDENT
    if previous is not None:
        return previous.mix, "sizes as last known"
    if spec.declared is not None:
        return spec.declared.mix, "sizes as declared"
    return (), ""


def mix_of(prompt: Histogram, output: Histogram) -> tuple[SizeBucket, ...]:
    """Cut two marginals into at most six buckets by quantiles, taking them as independent.

    Returns
    -------
    tuple of SizeBucket
        Sorted; weights sum to 1. Each bucket has the mean sizes of its bands, rounded to two digits.
    """
    weights: dict[tuple[int, int], float] = defaultdict(float)
    for prompt_tokens, prompt_ratio in _bands(prompt, PROMPT_CUTS):
        for output_tokens, output_ratio in _bands(output, OUTPUT_CUTS):
            weights[prompt_tokens, output_tokens] += prompt_ratio * output_ratio
    return tuple(
        SizeBucket(prompt_tokens=p, output_tokens=o, weight_ratio=round(weight, 9))
        for (p, o), weight in sorted(weights.items())
    )


def _bands(histogram: Histogram, cuts: Sequence[float]) -> list[tuple[int, float]]:
    """Mean size and share of each band between two quantiles."""
    bands = []
    for low, high in pairwise(cuts):
        points = (low + (high - low) * (i + 0.5) / POINTS for i in range(POINTS))
        mean = fmean(histogram.quantile(point) for point in points)
        bands.append((max(1, round(float(f"{mean:.{DIGITS}g}"))), high - low))
    return bands

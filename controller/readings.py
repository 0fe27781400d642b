"""What telemetry says about the fleet, as values with the time they were true.

"Zero" and "absent" differ: a service that nobody calls has a reading with 0.0 requests per second, a service whose
series nobody scraped has no reading at all, and the two must never be decided on alike.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

MAX_AGE_S = 45.0  # three scrapes of 15 s; one lost scrape is normal


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Observations per second by bucket, as Prometheus counts them but not cumulative.

    Attributes
    ----------
    upper_bounds : (K,) float
        Upper edges, increasing; the last may be ``inf``. The lower edge of the first bucket is 0.
    weights : (K,) float
        Observations in each bucket, in any one unit (a rate or a count).
    """

    upper_bounds: tuple[float, ...]
    weights: tuple[float, ...]

    @classmethod
    def from_cumulative(cls, rows: Mapping[float, float]) -> Histogram | None:
        """Build from Prometheus' ``le`` → cumulative count; None when nothing was observed."""
        bounds = tuple(sorted(rows))
        cumulative = list(accumulate((rows[bound] for bound in bounds), max))  # rates of two scrapes may dip
        if not cumulative or cumulative[-1] <= 0.0:
            return None
        return cls(upper_bounds=bounds, weights=(cumulative[0], *(b - a for a, b in pairwise(cumulative))))

    @property
    def total(self) -> float:
        """Observations in all buckets."""
        return sum(self.weights)

    def quantile(self, ratio: float) -> float:
        """Interpolate the value below which ``ratio`` (0-1) of the observations lie.

        Inside a bucket observations are taken as evenly spread, as Prometheus' ``histogram_quantile`` does; in the
        ``inf`` bucket the answer is the highest finite edge, which is a lower bound.
        """
        cumulative = list(accumulate(self.weights))
        wanted = ratio * cumulative[-1]
        at = min(bisect_left(cumulative, wanted), len(cumulative) - 1)
        low = self.upper_bounds[at - 1] if at else 0.0
        high = self.upper_bounds[at]
        if high == float("inf"):
            return low
        before = cumulative[at - 1] if at else 0.0
        return low + (high - low) * (wanted - before) / self.weights[at] if self.weights[at] else low

    def share_within(self, limit: float) -> float:
        """Share (0-1) of the observations at or below ``limit``, the bucket that holds it interpolated."""
        low, inside = 0.0, 0.0
        for high, weight in zip(self.upper_bounds, self.weights, strict=True):
            if high <= limit:
                inside += weight
            elif low < limit and high != float("inf"):
                inside += weight * (limit - low) / (high - low)
            low = high
        return inside / self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Dated:
    """Something that was read, ``as_of_s`` seconds since the epoch."""

    as_of_s: float

    def is_fresh(self, now_s: float, max_age_s: float = MAX_AGE_S) -> bool:
        """Say whether the reading is young enough to decide on, and to learn from."""
        return now_s - self.as_of_s <= max_age_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSample:
    """Mean arrivals over the ``window_s`` seconds that ended at ``time_s``.

    Times are in seconds of the served world, counted back from when the reading was taken.
    """

    time_s: float
    requests_per_s: float
    window_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceReading(Dated):
    """What gateway and engines say about one service.

    Attributes
    ----------
    service : str
        ``namespace/name`` of the ServedModel.
    source : str
        ``Gateway``, or ``Engine`` when only completions were seen: those saturate and hide demand.
    requests_per_s : float
        Arrivals (Gateway) or completions (Engine) per second of the service's own time.
    queue : float or None
        Requests that wait at the gateway; None when nobody said.
    ttft_histogram, itl_histogram : Histogram or None, s
        Observed latencies; None when there were no observations.
    prompt_histogram, output_histogram : Histogram or None, tokens
        Marginal request sizes.
    history : tuple of LoadSample
        Past loads, oldest first, this one last.
    as_of_s : float
        When the oldest value used here was scraped, seconds since the epoch.
    """

    service: str
    source: str
    requests_per_s: float
    queue: float | None = None
    ttft_histogram: Histogram | None = None
    itl_histogram: Histogram | None = None
    prompt_histogram: Histogram | None = None
    output_histogram: Histogram | None = None
    history: tuple[LoadSample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReading(Dated):
    """Measured draw of all GPUs of one node."""

    node: str
    draw_watts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReading(Dated):
    """Means of one engine (one pod) over the window; None is what nobody told.

    Rates are per second of the served world. ``waiting`` is the least seen in the window. ``ttft_s`` counts from the
    engine's own queue, ``prefill_s`` without it, ``gpu_watts`` is the mean of the pod's GPUs.
    """

    pod: str
    running: float
    waiting: float
    prompts_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    ttft_s: float | None = None
    prefill_s: float | None = None
    itl_s: float | None = None
    gpu_watts: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Everything telemetry said at ``taken_at_s`` (seconds since the epoch).

    Attributes
    ----------
    services : mapping of ``namespace/name`` to ServiceReading
        Only services that some series spoke of.
    nodes : mapping of node name to NodeReading
        Only nodes whose power somebody exported.
    outstanding_requests : mapping of ``namespace/pod`` to float
        Requests running or waiting on an engine.
    engines : mapping of ``namespace/pod`` to EngineReading
        What engines tell of their own speed; asked for once a window, and only where somebody learns from it.
    engine_fault : str
        Why engines could not be asked. No decision waits for that, so it is none of the ``faults``.
    faults : tuple of str
        What could not be read, for a user's eyes.
    """

    taken_at_s: float
    services: Mapping[str, ServiceReading] = field(default_factory=dict)
    nodes: Mapping[str, NodeReading] = field(default_factory=dict)
    outstanding_requests: Mapping[str, float] = field(default_factory=dict)
    engines: Mapping[str, EngineReading] = field(default_factory=dict)
    engine_fault: str = ""
    faults: tuple[str, ...] = ()

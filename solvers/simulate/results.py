"""What the simulation hands out: requests in, finished requests, token gaps, percentiles, attainment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from solvers.engine import Role
from solvers.simulate.tables import TICKS_PER_S, to_ticks
from solvers.workload import Slo, SloMetric

BUCKET_RATIO = 1.01  # neighbouring gap buckets; a percentile is read to half of that
_PER_LOG = 1.0 / log(BUCKET_RATIO)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRequest:
    """One request to serve. ``name`` appears in results and in rejections."""

    name: str
    service: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A request that was not served, and why: no replica could ever hold it, or the gateway's patience ended.

    ``at_s`` is when that was said.
    """

    name: str
    service: str
    arrival_s: float
    at_s: float
    reason: str

    @property
    def waited_s(self) -> float:
        """Virtual seconds from the arrival to the refusal."""
        return self.at_s - self.arrival_s


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """A request got its first output token.

    ``ttft_s`` counts from the arrival at the gateway; ``engine_ttft_s`` is what the engine that computed the prompt,
    ``replica_id``, sees: from its own queue to the end of the prompt.
    """

    service: str
    replica_id: str
    ttft_s: float
    engine_ttft_s: float

    @classmethod
    def of(cls, row: tuple[str, int, int, int], names: Sequence[str]) -> FirstToken:
        """Make one of a row in ticks (service, replica, from arrival, in the engine) and names by index."""
        service, replica, ticks, engine = row
        return cls(
            service=service,
            replica_id=names[replica],
            ttft_s=ticks / TICKS_PER_S,
            engine_ttft_s=engine / TICKS_PER_S,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRequest:
    """One served request.

    Attributes
    ----------
    ttft_s : float
        Arrival at the gateway to the first output token; ``queue_s + prefill_s + kv_transfer_s + first_step_s``.
    queue_s, prefill_s, kv_transfer_s, first_step_s : float
        Until prefill began; from then to its end (steps shared with decoding included); on the link, waiting for it
        included; from there to the first token (zero on a mixed replica, whose last prompt chunk yields it).
    tpot_s : float
        Mean gap between output tokens; 0 for a single token.
    cached_tokens : int
        Prompt tokens that the prefix cache held when its prefill began.
    late_gaps : int
        Token gaps above the ITL limit of the service, 0 when it has none.
    preemptions, reroutes : int
        Times that its KV cache was given up for room, and times that it began again because a replica failed.
    """

    name: str
    service: str
    prefill_replica: str
    replica: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    queue_s: float
    prefill_s: float
    kv_transfer_s: float
    first_step_s: float
    ttft_s: float
    tpot_s: float
    end_s: float
    late_gaps: int
    preemptions: int
    reroutes: int


class GapHistogram:
    """Counts of durations in buckets of 1 %, kept by runs of equal or evenly growing steps.

    ``counts`` maps a bucket to its count; bucket ``i`` holds durations from 1.01**i up to 1.01**(i+1) ticks.
    """

    __slots__ = ("counts", "late")

    def __init__(self, counts: Mapping[int, int] | None = None, late: int = 0) -> None:
        self.counts: dict[int, int] = dict(counts or {})
        self.late = late

    def add(self, ticks: int, count: int = 1) -> None:
        """Count one duration ``count`` times."""
        bucket = int(log(ticks) * _PER_LOG) if ticks > 0 else 0
        self.counts[bucket] = self.counts.get(bucket, 0) + count

    def add_run(self, step: int, growth: int, steps: int, sequences: int, fresh: int) -> None:
        """Count the gaps of a run whose steps take ``step + i * growth``, less the first one of ``fresh`` sequences."""
        low = int(log(step) * _PER_LOG)
        high = int(log(step + (steps - 1) * growth) * _PER_LOG) if growth else low
        counts = self.counts
        done = 0
        for bucket in range(low, high):
            upto = min(steps, (bucket_top(bucket) - 1 - step) // growth + 1)
            if upto > done:
                counts[bucket] = counts.get(bucket, 0) + (upto - done) * sequences
                done = upto
        if steps > done:
            counts[high] = counts.get(high, 0) + (steps - done) * sequences
        if fresh:
            counts[low] = counts.get(low, 0) - fresh

    def merge(self, other: GapHistogram) -> None:
        """Add the counts of ``other``."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.late += other.late

    def minus(self, earlier: GapHistogram) -> GapHistogram:
        """What was counted since ``earlier``, a copy of this histogram then."""
        counts = {b: n - earlier.counts.get(b, 0) for b, n in self.counts.items()}
        return GapHistogram({b: n for b, n in counts.items() if n}, self.late - earlier.late)

    @property
    def count(self) -> int:
        """Durations counted."""
        return sum(self.counts.values())

    @property
    def in_limit_ratio(self) -> float:
        """Exact share of gaps that were not above the limit given to the fleet; 1 when there were none."""
        count = self.count
        return 1.0 - self.late / count if count else 1.0

    def quantile_s(self, ratio: float) -> float:
        """Duration in seconds that ``ratio`` (0-1) of the counts do not exceed, within half a bucket; NaN if empty."""
        left = ratio * self.count
        for bucket, count in sorted(self.counts.items()):
            left -= count
            if left <= 1e-9 and count > 0:
                return exp((bucket + 0.5) / _PER_LOG) / TICKS_PER_S
        return float("nan")

    def within_ratio(self, limit_s: float) -> float:
        """Share of the counts up to a limit, its own bucket shared evenly; 1 when there are none."""
        count = self.count
        place = log(max(1, to_ticks(limit_s))) * _PER_LOG
        inside = sum(n * min(1.0, max(0.0, place - bucket)) for bucket, n in self.counts.items())
        return inside / count if count else 1.0


def bucket_top(bucket: int) -> int:
    """Smallest whole tick that lies above a bucket."""
    return int(exp((bucket + 1) / _PER_LOG)) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """One replica now. Totals count from when it was added; ``waiting`` requests have no KV cache yet.

    ``prompt_tokens`` were computed, ``cached_tokens`` were found in the prefix cache instead.
    """

    replica_id: str
    service: str
    role: Role
    is_ready: bool
    is_draining: bool
    running: int
    waiting: int
    kv_usage_ratio: float
    draw_watts: float
    energy_joules: float
    busy_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    gaps: GapHistogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Attained:
    """How one SLO fared: the percentile it names, and the share of requests or gaps within its limit.

    Requests that were not served are misses of a TTFT limit.
    """

    slo: Slo
    value_s: float
    within_ratio: float

    @property
    def is_met(self) -> bool:
        """True when the share within the limit is at least the one asked."""
        return self.within_ratio >= self.slo.percentile_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceResult:
    """One service over a replay. Percentile maps are by ratio (0.5, 0.9, 0.95, 0.99).

    TTFT percentiles hold the requests that timed out, each with the time that it waited.
    """

    service: str
    submitted: int
    finished: int
    rejected: int
    timed_out: int
    rerouted: int
    output_tokens: int
    ttft_s: Mapping[float, float]
    itl_s: Mapping[float, float]
    tpot_s: Mapping[float, float]
    attained: tuple[Attained, ...]
    goodput_requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole replay.

    ``unfinished`` are those with no outcome by its end; ``extrapolated_steps`` and ``_prompts`` were read beyond the
    tables of their profiles.
    """

    services: Mapping[str, ServiceResult]
    finished: tuple[FinishedRequest, ...]
    rejected: tuple[Rejected, ...]
    timed_out: tuple[Rejected, ...]
    unfinished: int
    makespan_s: float
    energy_joules: float
    extrapolated_steps: int
    extrapolated_prompts: int


PERCENTILES = (0.5, 0.9, 0.95, 0.99)


def quantiles(values: Sequence[float], ratios: Iterable[float] = PERCENTILES) -> dict[float, float]:
    """Percentiles by ratio, NaN without values; the smallest value that at least the ratio does not exceed."""
    if not values:
        return dict.fromkeys(ratios, float("nan"))
    asked = tuple(ratios)
    found = np.quantile(np.asarray(values), asked, method="inverted_cdf")
    return {ratio: float(value) for ratio, value in zip(asked, found, strict=True)}


def meets(request: FinishedRequest, slos: Sequence[Slo]) -> bool:
    """True when the request kept every SLO: TTFT by its limit, ITL by the asked share of its own token gaps.

    Late gaps are counted against the tightest ITL limit of the service (see ``Fleet``).
    """
    gaps = request.output_tokens - 1
    return all(
        request.ttft_s <= slo.limit_s
        if slo.metric is SloMetric.TTFT
        else request.late_gaps <= (1.0 - slo.percentile_ratio) * gaps + 1e-9
        for slo in slos
    )


def attained(
    slo: Slo,
    ttft_s: Sequence[float],
    gaps: GapHistogram,
    itl_limit_s: float | None,
    *,
    timed_out_s: Sequence[float] = (),
    rejected: int = 0,
) -> Attained:
    """Judge one SLO; the share within an ITL limit is exact where the fleet counted against that limit.

    Requests that were not served miss every TTFT limit. Those that timed out after ``timed_out_s`` also count in the
    percentile, as if their first token had come then: a lower bound. The ``rejected`` ones never waited for a turn.
    """
    if slo.metric is SloMetric.TTFT:
        value = quantiles((*ttft_s, *timed_out_s), (slo.percentile_ratio,))[slo.percentile_ratio]
        asked = len(ttft_s) + len(timed_out_s) + rejected
        within = sum(t <= slo.limit_s for t in ttft_s) / asked if asked else 1.0
        return Attained(slo=slo, value_s=value, within_ratio=within)
    exact = slo.limit_s == itl_limit_s
    within = gaps.in_limit_ratio if exact else gaps.within_ratio(slo.limit_s)
    return Attained(slo=slo, value_s=gaps.quantile_s(slo.percentile_ratio), within_ratio=within)

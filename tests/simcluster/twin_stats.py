"""Counts that the twin keeps of one service and one pod, added to as things happen and never recomputed."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from solvers.simulate.results import FinishedRequest, GapHistogram, Rejected, meets
from solvers.simulate.tables import TICKS_PER_S, to_ticks
from solvers.workload import Slo, SloMetric

# Edges as the real exporters have them, so that a quantile is as coarse here as there.
TTFT_EDGES_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_EDGES_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
TOKEN_EDGES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
ENGINE_TOKEN_EDGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

SNAPSHOT_S = 10.0
PERCENTILES = (0.5, 0.9, 0.95, 0.99)


class Bucketed:
    """A Prometheus histogram: counts by upper edge, and the sum."""

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(edges)
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.edges, value)] += 1
        self.total += value

    def cumulative(self) -> list[int]:
        """Counts up to each edge, and all of them last."""
        return list(accumulate(self.counts))

    @classmethod
    def of_gaps(cls, gaps: GapHistogram, edges: Sequence[float]) -> Bucketed:
        """Sort the 1 % buckets of a gap histogram into wider ones."""
        made = cls(edges)
        for bucket, count in gaps.counts.items():
            middle_s = 1.01 ** (bucket + 0.5) / TICKS_PER_S
            made.counts[bisect_left(made.edges, middle_s)] += count
            made.total += count * middle_s
        return made


@dataclass(slots=True, kw_only=True)
class Totals:
    """Everything about a service since some moment.

    ``ttft`` holds the waits of requests that timed out beside the first tokens; ``within`` counts first tokens inside
    each TTFT limit; ``counts`` are of requests: offered, finished, good (inside all SLOs), rejected, timed_out.
    """

    at_s: float = 0.0
    ttft: GapHistogram = field(default_factory=GapHistogram)
    within: list[int] = field(default_factory=list)
    gaps: GapHistogram = field(default_factory=GapHistogram)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def first_tokens(self) -> int:
        return self.ttft.count - self.counts["timed_out"]

    @property
    def refused(self) -> int:
        """Requests that were not served: misses of every SLO of theirs."""
        return self.counts["rejected"] + self.counts["timed_out"]

    def copy(self, at_s: float, gaps: GapHistogram) -> Totals:
        """As it stands; ``gaps`` are those of the fleet now."""
        return Totals(
            at_s=at_s,
            ttft=GapHistogram(self.ttft.counts),
            within=list(self.within),
            gaps=gaps,
            counts=Counter(self.counts),
        )

    def since(self, earlier: Totals) -> Totals:
        """What came after ``earlier``."""
        return Totals(
            at_s=self.at_s - earlier.at_s,
            ttft=self.ttft.minus(earlier.ttft),
            within=[now - then for now, then in zip(self.within, earlier.within, strict=True)],
            gaps=self.gaps.minus(earlier.gaps),
            counts=self.counts - earlier.counts,
        )

    def in_slo_ratio(self) -> float | None:
        """Share of the requests with an outcome that were served inside all SLOs; None without any."""
        ended = self.counts["finished"] + self.refused
        return self.counts["good"] / ended if ended else None

    def within_ratio(self, slo: Slo, place: int, itl_limit_s: float | None) -> float | None:
        """Share of requests or gaps within the SLO at ``place``; requests that were not served miss a TTFT limit."""
        if slo.metric is SloMetric.TTFT:
            asked = self.first_tokens + self.refused
            return self.within[place] / asked if asked else None
        if not self.gaps.count:
            return None
        return self.gaps.in_limit_ratio if slo.limit_s == itl_limit_s else self.gaps.within_ratio(slo.limit_s)


class ServiceStats:
    """Counts of one service at the gateway, and how its SLOs fare."""

    def __init__(self) -> None:
        self.slos: tuple[Slo, ...] = ()
        self.ttft = Bucketed(TTFT_EDGES_S)
        self.prompt_tokens = Bucketed(TOKEN_EDGES)
        self.output_tokens = Bucketed(TOKEN_EDGES)
        self._totals = Totals()
        self._start = self._totals.copy(0.0, GapHistogram())
        self._snapshots: deque[Totals] = deque()

    def judge_by(self, slos: Sequence[Slo], now_s: float, gaps: GapHistogram) -> None:
        """Take other SLOs; the whole run begins anew, as older figures were judged by the old ones."""
        self.slos = tuple(slos)
        self._totals.within = [0] * len(self.slos)
        self._snapshots.clear()
        self.reset(now_s, gaps)

    def first_token(self, ttft_s: float) -> None:
        """Count one TTFT."""
        self.ttft.observe(ttft_s)
        self._totals.ttft.add(to_ticks(ttft_s))
        for i, slo in enumerate(self.slos):
            self._totals.within[i] += slo.metric is SloMetric.TTFT and ttft_s <= slo.limit_s

    def offer(self, requests: int) -> None:
        """Count arrivals."""
        self._totals.counts["offered"] += requests

    def finish(self, request: FinishedRequest) -> None:
        """Count one served request."""
        self.prompt_tokens.observe(request.prompt_tokens)
        self.output_tokens.observe(request.output_tokens)
        self._totals.counts["finished"] += 1
        self._totals.counts["good"] += meets(request, self.slos)

    def reject(self) -> None:
        """Count one request that no replica could hold."""
        self._totals.counts["rejected"] += 1

    def time_out(self, request: Rejected) -> None:
        """Count one request that was given up; its TTFT would have been longer than its wait."""
        self._totals.counts["timed_out"] += 1
        self._totals.ttft.add(to_ticks(request.waited_s))

    @property
    def counts(self) -> Mapping[str, int]:
        """Requests since the twin started: offered, finished, good, rejected, timed_out."""
        return self._totals.counts

    def is_due(self, now_s: float) -> bool:
        """True when the last snapshot is old enough for another."""
        return not self._snapshots or now_s - self._snapshots[-1].at_s >= SNAPSHOT_S

    def snapshot(self, now_s: float, gaps: GapHistogram, keep_s: float) -> None:
        """Remember the counts now, for windows up to ``keep_s``."""
        self._snapshots.append(self._totals.copy(now_s, gaps))
        while len(self._snapshots) > 1 and self._snapshots[1].at_s <= now_s - keep_s:
            self._snapshots.popleft()

    def reset(self, now_s: float, gaps: GapHistogram) -> None:
        """Let the whole run begin now."""
        self._start = self._totals.copy(now_s, gaps)

    def whole_run(self, now_s: float, gaps: GapHistogram, itl_limit_s: float | None) -> dict[str, Any]:
        """Percentiles and shares since the start or the last reset."""
        return self._describe(self._totals.copy(now_s, gaps).since(self._start), itl_limit_s)

    def window(self, now_s: float, gaps: GapHistogram, itl_limit_s: float | None, seconds: float) -> dict[str, Any]:
        """The same over about the last ``seconds``; as far back as is known when that is less."""
        old = [s for s in self._snapshots if s.at_s <= now_s - seconds]
        base = old[-1] if old else (self._snapshots[0] if self._snapshots else self._start)
        return self._describe(self._totals.copy(now_s, gaps).since(base), itl_limit_s)

    def _describe(self, part: Totals, itl_limit_s: float | None) -> dict[str, Any]:
        return {
            "seconds": part.at_s,
            "offered_requests_per_s": part.counts["offered"] / part.at_s if part.at_s > 0 else 0.0,
            "first_tokens": part.first_tokens,
            "finished": part.counts["finished"],
            "rejected": part.counts["rejected"],
            "timed_out": part.counts["timed_out"],
            "in_slo_ratio": part.in_slo_ratio(),
            "ttft_s": {f"p{p * 100:g}": _number(part.ttft.quantile_s(p)) for p in PERCENTILES},
            "itl_s": {f"p{p * 100:g}": _number(part.gaps.quantile_s(p)) for p in PERCENTILES},
            "slos": [_judgement(part, slo, i, itl_limit_s) for i, slo in enumerate(self.slos)],
        }


def _judgement(part: Totals, slo: Slo, place: int, itl_limit_s: float | None) -> dict[str, Any]:
    seen = part.ttft if slo.metric is SloMetric.TTFT else part.gaps
    within = part.within_ratio(slo, place, itl_limit_s)
    return {
        "metric": slo.metric.value,
        "percentile": slo.percentile_ratio,
        "limit_s": slo.limit_s,
        "value_s": _number(seen.quantile_s(slo.percentile_ratio)),
        "within_ratio": within,
        "is_met": within is None or within >= slo.percentile_ratio,
    }


def _number(value: float) -> float | None:
    """NaN is no JSON."""
    return None if value != value else value

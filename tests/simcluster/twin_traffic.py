"""Requests of one service over virtual time: a trace that repeats, with surges on top."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from controller.traces import Trace
from controller.traces_made import scale_trace
from solvers.errors import InvalidInput
from solvers.simulate.results import SimRequest

JITTER_S = 2.0  # copies that a surge adds come within this time of the request they copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Surge:
    """Arrivals times ``factor`` between two virtual seconds; below 1 thins them out."""

    factor: float
    start_s: float
    end_s: float


class Traffic:
    """Arrivals of one service. The trace repeats when it ends; equal seeds make equal traffic."""

    def __init__(self, service: str, trace: Trace, *, requests_per_s: float | None = None, seed: int = 0) -> None:
        if not trace:
            raise InvalidInput(f"traffic of {service}", "", "has an empty trace", "give at least one request")
        self.service = service
        self._rng = np.random.default_rng(seed)
        self._trace = trace if requests_per_s is None else scale_trace(trace, requests_per_s / _rate(trace), seed)
        self._period_s = self._trace[-1].arrival_s + 1.0 / _rate(self._trace)
        self._next = self._made = 0
        self._round_s = 0.0
        self._surges: list[Surge] = []
        self._due: list[tuple[float, int, int]] = []  # (arrival, order, index in the trace)

    @property
    def requests_per_s(self) -> float:
        """Mean rate without surges."""
        return _rate(self._trace)

    def surge(self, factor: float, start_s: float, duration_s: float) -> None:
        """Multiply arrivals during a virtual interval; overlapping surges multiply."""
        if not (factor >= 0 and duration_s > 0):
            asked = f"factor {factor} for {duration_s} s"
            raise InvalidInput(f"surge of {self.service}", "", f"asks for {asked}", "give a positive duration")
        self._surges.append(Surge(factor=factor, start_s=start_s, end_s=start_s + duration_s))

    def until(self, now_s: float) -> list[SimRequest]:
        """Requests that arrived since the last call, up to ``now_s``."""
        while (arrival := self._round_s + self._trace[self._next].arrival_s) <= now_s:
            self._add_copies(arrival)
            self._next += 1
            if self._next == len(self._trace):
                self._next, self._round_s = 0, self._round_s + self._period_s
        arrived = []
        while self._due and self._due[0][0] <= now_s:
            at, order, index = heappop(self._due)
            sizes = self._trace[index]
            arrived.append(
                SimRequest(
                    name=f"{self.service}#{order}",
                    service=self.service,
                    arrival_s=at,
                    prompt_tokens=sizes.prompt_tokens,
                    output_tokens=sizes.output_tokens,
                )
            )
        return arrived

    def _add_copies(self, arrival: float) -> None:
        factor = float(np.prod([s.factor for s in self._surges if s.start_s <= arrival < s.end_s]))
        copies = int(factor) + int(factor % 1 and self._rng.random() < factor % 1)
        for copy in range(copies):
            at = arrival if copy == 0 else arrival + float(self._rng.uniform(0, JITTER_S))
            index = self._next if copy == 0 else int(self._rng.integers(len(self._trace)))
            heappush(self._due, (at, self._made, index))
            self._made += 1


def _rate(trace: Trace) -> float:
    span_s = trace[-1].arrival_s - trace[0].arrival_s
    return max(1, len(trace) - 1) / span_s if span_s > 0 else 1.0

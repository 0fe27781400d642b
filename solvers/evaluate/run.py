"""One run: a load, a fleet that starts as planned, and a policy that changes it between simulated intervals.

The fleet is advanced from window to window and from decision to decision; cutting its time changes nothing in what it
serves. A policy sees what an autoscaler could: counts, queues, arrivals of the past, and no future.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf, isfinite
from typing import Protocol

import numpy as np

from solvers.errors import InvalidInput
from solvers.evaluate.fleet_state import Counts, Place, RunningFleet
from solvers.evaluate.incidents import Failures, Happened, Incident, Timeline
from solvers.evaluate.load import Load, hand_in
from solvers.evaluate.meters import Meter
from solvers.fleet import PoolKey, Snapshot
from solvers.forecast import Load as LoadSample
from solvers.plan import Plan
from solvers.problem import Problem
from solvers.simulate import FinishedRequest, Fleet, GapHistogram, Rejected, is_worth_compiling, itl_limits
from solvers.simulate.tables import CLOCK_S

GATEWAY_QUEUE_LIMIT = 16
"""Requests in a replica's queue at which a gateway with patience sends it no more."""

MOST_WINDOWS = 100_000

STALL_S = 1800.0
"""After the last arrival: a fleet that ends nothing for so long will never serve the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceSeen:
    """One place as its metrics show it: replicas, and requests that they hold."""

    ready: int
    starting: int
    waiting: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a policy may look at.

    Attributes
    ----------
    asked : mapping of (pool, location) to int
        Replicas asked for now.
    places : mapping of (pool, location) to PlaceSeen
    queued : mapping of service to int
        Requests at the gateway that no replica could take yet.
    loads : mapping of service to samples (end second, requests per second, window in seconds)
        Arrivals of the past, oldest first.
    ended : sequence of FinishedRequest
        All that were served so far, in order of their end.
    """

    now_s: float
    problem: Problem
    asked: Counts
    places: Mapping[Place, PlaceSeen]
    queued: Mapping[str, int]
    loads: Mapping[str, Sequence[LoadSample]]
    ended: Sequence[FinishedRequest]
    snapshot: Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Counts to ask for, which replicas go first where a count falls, and power caps; what is not named stays."""

    counts: Counts
    leaving: tuple[str, ...] = ()
    cap_watts: Mapping[PoolKey, float] = field(default_factory=dict)


class Policy(Protocol):
    """Decides every ``period_s`` of virtual time; infinity: never."""

    name: str
    period_s: float

    def decide(self, seen: Seen) -> Wish:
        """Say what to ask for now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run is made.

    Attributes
    ----------
    window_s : float
        Length of the windows that are reported.
    until_s : float
        Virtual second to stop at.
    patience_s : float or None
        How long a request waits at the gateway; None: for ever, and replicas queue without limit.
    incidents : tuple of Incident
        What happens to the fleet from outside, after repairs and before the policy's decision of the same moment.
    failures : Failures or None
        Random failures beside them.
    may_compile : bool
        False keeps to the plain kernel: the same bytes, sooner where compiled code has no cache to be read from.
    """

    window_s: float = 60.0
    until_s: float = inf
    patience_s: float | None = None
    incidents: tuple[Incident, ...] = ()
    failures: Failures | None = None
    may_compile: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What happened from ``start_s`` to ``end_s``; counts are those at its end, (Ready, other) by place."""

    start_s: float
    end_s: float
    meters: Mapping[Place, Meter]
    gaps: Mapping[str, GapHistogram]
    counts: Mapping[Place, tuple[int, int]]
    queued: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything that a run left behind, for ``summary.py``."""

    policy: str
    problem: Problem
    load: Load
    finished: tuple[FinishedRequest, ...]
    rejected: tuple[Rejected, ...]
    timed_out: tuple[Rejected, ...]
    unfinished: Mapping[str, int]
    windows: tuple[Window, ...]
    end_s: float
    extrapolated: tuple[int, int]
    starts: int
    stops: int
    happened: tuple[Happened, ...] = ()
    not_reached: int = 0


def counts_of(plan: Plan) -> dict[Place, int]:
    """Replicas by place of a plan."""
    counts: dict[Place, int] = defaultdict(int)
    for row in plan.placements:
        counts[row.pool, row.location] += row.replicas
    return dict(counts)


def caps_of(plan: Plan) -> dict[PoolKey, float]:
    """Power cap of one GPU by pool of a plan, where one is said."""
    return {pool.pool: pool.cap_watts for pool in plan.pools if pool.cap_watts > 0.0}


def run(problem: Problem, plan: Plan, load: Load, policy: Policy, settings: Settings | None = None) -> Record:
    """Serve a load with a fleet that starts as ``plan`` says, all Ready, and changes as ``policy`` decides.

    Raises
    ------
    InvalidInput
        When the plan names what the problem lacks, the load is empty, or a setting is no time.
    """
    return _Run(problem, plan, load, policy, settings or Settings()).to_end()


@dataclass(slots=True)
class _Totals:
    """Cumulative numbers at the start of a window."""

    at_s: float = 0.0
    meters: dict[Place, Meter] = field(default_factory=dict)
    gaps: dict[str, GapHistogram] = field(default_factory=dict)


class _Run:
    def __init__(self, problem: Problem, plan: Plan, load: Load, policy: Policy, settings: Settings) -> None:
        if not load.requests:
            raise InvalidInput("requests", "", "are none for any planned service", "give more --demand or --factor")
        if load.span_s >= CLOCK_S:
            span = f"come over {load.span_s:.3g} s"
            raise InvalidInput(
                "requests", "", span, f"the simulation's clock ends at {CLOCK_S:.3g} s: take a part of them"
            )
        if not settings.window_s > 0:
            raise InvalidInput("window", "", f"is {settings.window_s} s", "give a time above 0")
        if (span_s := min(settings.until_s, load.span_s)) > MOST_WINDOWS * settings.window_s:
            times = f"is {settings.window_s} s, {span_s / settings.window_s:.3g} times within {span_s:g} s"
            raise InvalidInput("window", "", times, f"show at most {MOST_WINDOWS} windows")
        if settings.until_s >= CLOCK_S:
            settings = replace(settings, until_s=inf)
        slos = {service.name: service.slos for service in problem.services}
        self.fleet = Fleet(
            itl_limits_s=itl_limits(slos),
            gateway_patience_s=settings.patience_s,
            replica_queue_limit=None if settings.patience_s is None else GATEWAY_QUEUE_LIMIT,
            compiled=settings.may_compile and is_worth_compiling(load.requests),
        )
        self.problem, self.load, self.policy, self.settings = problem, load, policy, settings
        self.running = RunningFleet(problem, self.fleet, plan)
        self.running.cap(caps_of(plan))
        self.running.begin_with(counts_of(plan))
        self.running.pair(0.0)
        hand_in(self.fleet, load)
        self.finished: list[FinishedRequest] = []
        self.rejected: list[Rejected] = []
        self.timed_out: list[Rejected] = []
        self.windows: list[Window] = []
        self.totals = _Totals()
        self.timeline = Timeline(settings.incidents, settings.failures, problem.nodes)
        self.happened: list[Happened] = []
        self.starts = self.stops = 0
        self._arrivals = {
            name: np.sort(load.workload.arrival_s[load.workload.service == i])
            for i, name in enumerate(load.workload.services)
        }

    def to_end(self) -> Record:
        """Advance until everything was served, nothing more can be, or the time is over."""
        window_end, decision, until_s = self.settings.window_s, self.policy.period_s, self.settings.until_s
        last_progress_s = 0.0
        while not self._is_over(last_progress_s):
            at_s = min(window_end, decision, until_s, self._next_change_s())
            if self._may_run_free(at_s):
                at_s = until_s
            done = len(self.finished)
            self.fleet.advance(at_s)
            self._collect()
            if len(self.finished) > done:
                last_progress_s = self.fleet.now_s
            if not isfinite(at_s):
                break
            if at_s >= window_end:
                self._close_window()
                window_end += self.settings.window_s
            self._let_happen(at_s)
            if at_s >= decision:
                self._decide()
                decision += self.policy.period_s
        self._close_window()
        return self._record()

    def _is_over(self, last_progress_s: float) -> bool:
        now_s = self.fleet.now_s
        if now_s >= self.settings.until_s:
            return True
        if now_s < self.load.span_s:
            return False
        is_stalled = now_s > max(last_progress_s, self.load.span_s) + STALL_S
        return is_stalled or not any(self._outstanding(name) for name in self.fleet.services())

    def _may_run_free(self, at_s: float) -> bool:
        """True in the last stretch of a fleet that nobody changes: then it ends at its very last event."""
        never_changes = not isfinite(self.policy.period_s) and not isfinite(self._next_change_s())
        return at_s >= self.load.span_s and never_changes and not self.load.clients

    def _outstanding(self, service: str) -> int:
        counts = self.fleet.counts(service)
        ended = sum(counts.get(name, 0) for name in ("finished", "rejected", "timed_out"))
        return counts.get("submitted", 0) - ended

    def _collect(self) -> None:
        self.finished += self.fleet.take_finished()
        self.rejected += self.fleet.take_rejected()
        self.timed_out += self.fleet.take_timed_out()

    # ------------------------------------------------------------------ windows

    def _close_window(self) -> None:
        now_s, before = self.fleet.now_s, self.totals
        if now_s <= before.at_s:
            return
        meters = self.running.meters()
        gaps = {name: self.fleet.gaps(name) for name in self.fleet.services()}
        self.windows.append(
            Window(
                start_s=before.at_s,
                end_s=now_s,
                meters={place: meter.minus(before.meters.get(place, Meter())) for place, meter in meters.items()},
                gaps={name: now.minus(before.gaps.get(name, GapHistogram())) for name, now in gaps.items()},
                counts=self.running.counts(),
                queued={name: self.fleet.queued(name) for name in self.fleet.services()},
            )
        )
        self.totals = _Totals(at_s=now_s, meters=meters, gaps=gaps)

    # ------------------------------------------------------------------ incidents

    def _next_change_s(self) -> float:
        return min(self.timeline.next_s, self.running.next_repair_s, self.running.next_ready_s)

    def _let_happen(self, now_s: float) -> None:
        """Repair what is due, then let incidents happen; drained replicas of a fleet that nobody tends go here too."""
        if self.running.next_repair_s <= now_s:
            self.running.mend(now_s)
        self.happened += [self.running.suffer(incident) for incident in self.timeline.due(now_s)]
        if self.happened:
            self.running.reap()
            self.running.start_pending()
        self.running.pair(now_s)

    # ------------------------------------------------------------------ decisions

    def _decide(self) -> None:
        self.running.reap()
        self.running.start_pending()
        before = dict(self.running.asked)
        seen = self._seen()
        wish = self.policy.decide(seen)
        self.running.cap(wish.cap_watts)
        self.running.ask(wish.counts, wish.leaving)
        self.running.ways.asked_per_s = {name: rows[-1][1] for name, rows in seen.loads.items() if rows}
        self.running.pair(self.fleet.now_s)
        moved = [count - before.get(place, 0) for place, count in self.running.asked.items()]
        self.starts += sum(max(0, change) for change in moved)
        self.stops += sum(max(0, -change) for change in moved)

    def _seen(self) -> Seen:
        services = [service.name for service in self.problem.services]
        return Seen(
            now_s=self.fleet.now_s,
            problem=self.problem,
            asked=dict(self.running.asked),
            places=self._places(),
            queued={name: self.fleet.queued(name) for name in services},
            loads={name: self._loads(name) for name in services},
            ended=self.finished,
            snapshot=self.running.snapshot(),
        )

    def _places(self) -> dict[Place, PlaceSeen]:
        tally: dict[Place, list[int]] = {place: [0, 0, 0, 0] for place in self.running.asked}
        for live in self.running.live.values():
            if not live.is_leaving:
                view = self.fleet.replica(live.name)
                row = tally.setdefault(live.place, [0, 0, 0, 0])
                is_ready = live.ready_s <= self.fleet.now_s
                for i, more in enumerate((is_ready, not is_ready, view.waiting, view.running)):
                    row[i] += more
        return {
            place: PlaceSeen(ready=ready, starting=starting, waiting=waiting, running=running)
            for place, (ready, starting, waiting, running) in sorted(tally.items())
        }

    def _loads(self, service: str) -> list[LoadSample]:
        """Arrivals by window of the past; of clients, what they asked is not known by time, so their ends count."""
        width, now_s = self.settings.window_s, self.fleet.now_s
        edges = now_s - width * np.arange(ceil(min(now_s, 1800.0) / width), -1, -1)
        times = self._arrivals.get(service, np.zeros(0))
        if any(service in group.workload.services for group in self.load.clients):
            times = np.sort([r.arrival_s for r in self.finished if r.service == service])
        counts = np.diff(np.searchsorted(times, np.maximum(edges, 0.0), side="left"))
        lengths = np.diff(np.maximum(edges, 0.0))
        return [
            (float(end), float(count / length), float(length))
            for end, count, length in zip(edges[1:], counts, lengths, strict=True)
            if length > 0.0
        ]

    # ------------------------------------------------------------------ the end

    def _record(self) -> Record:
        return Record(
            policy=self.policy.name,
            problem=self.problem,
            load=self.load,
            finished=tuple(self.finished),
            rejected=tuple(self.rejected),
            timed_out=tuple(self.timed_out),
            unfinished={name: self._outstanding(name) for name in self.fleet.services()},
            windows=tuple(self.windows),
            end_s=self.fleet.now_s,
            extrapolated=self.fleet.extrapolated(),
            starts=self.starts,
            stops=self.stops,
            happened=tuple(self.happened),
            not_reached=self.timeline.left,
        )

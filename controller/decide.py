"""When to decide anew, and the decision in force. The solve itself runs in the worker's process.

A solve that fails keeps the last good plan. Telemetry that is missing or old is no reason to decide: the last known
demand stands, and only changes of the fleet or of what is asked of it lead to a new plan.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from controller.observe import Observation
from controller.turn import Decision
from solvers.errors import PenstockError, PlanRejected
from solvers.plan import Plan
from solvers.problem import Problem
from solvers.sizing import replica_capacity
from solvers.verify import verify, verify_places
from solvers.workload import Demand

log = logging.getLogger("penstock.decide")

RETRY_S = 5.0  # after a failed solve, doubled with each that follows; a fleet that changed is tried at once
SILENT = frozenset({"Held", "Absent"})
DECLARED = "Declared"
TIME_HAS_COME = "the time for a decision has come"


class Worker(Protocol):
    """Who solves; see ``worker.SolverWorker``."""

    def solve(self, problem: Problem, previous: Plan | None = ..., deadline_s: float = ...) -> Plan:
        """Solve, or raise a PenstockError."""


class Decider:
    """Keeps the decision in force and at most one solve in flight.

    Parameters
    ----------
    on_done : callable
        Called from another thread with the result ("planned", "failed") and seconds of each solve.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        deadline_s: float,
        on_done: Callable[[str, float], None] = lambda result, took_s: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker, self._deadline_s, self._on_done, self._clock = worker, deadline_s, on_done, clock
        self._threads = ThreadPoolExecutor(1, "solve")
        self._flight: tuple[Problem, Future[Plan]] | None = None
        self._asked: Problem | None = None
        self._asked_s = self._retry_s = float("-inf")
        self.decision: Decision | None = None
        self.fault, self.failures = "", 0

    def stop(self) -> None:
        """Take no more solves; one in flight is left to its worker."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def is_solving(self) -> bool:
        """True while a solve is in flight."""
        return self._flight is not None

    @property
    def has_answer(self) -> bool:
        """True when the solve in flight has ended."""
        return self._flight is not None and self._flight[1].done()

    def adopt(self, decision: Decision) -> None:
        """Take over a recorded decision, and decide anew when it is our turn to."""
        self.decision, self._asked = decision, None

    def forget(self) -> None:
        """Drop a solve in flight: somebody else decides now. Whoever leads again decides anew."""
        self._flight = self._asked = None

    def number(self, number: int) -> None:
        """Note under which number the decision in force is recorded."""
        if self.decision is not None:
            self.decision = replace(self.decision, number=number)

    def previous_demands(self) -> dict[str, Demand]:
        """What the decision in force was made for."""
        return dict(self.decision.problem.demands) if self.decision else {}

    def why_now(self, observation: Observation, decision_s: float) -> str:
        """Say why a new decision is wanted now; empty when it is not."""
        now_s, problem = self._clock(), observation.problem
        if self._flight is not None:
            return ""
        if self._asked is None:
            return "" if is_silent(observation) else "no decision was made yet"
        if _fixed_part(problem) != _fixed_part(self._asked):
            return "the fleet or what is asked of it changed"
        if self.fault and now_s >= self._retry_s:
            return "the last solve failed"
        is_due = now_s - self._asked_s >= decision_s and not is_silent(observation)
        return TIME_HAS_COME if is_due else ""

    def begin(self, problem: Problem) -> None:
        """Start a solve."""
        previous = self.decision.plan if self.decision else None
        self._asked, self._asked_s = problem, self._clock()
        asked = without_replay(problem) if self.failures else problem  # a replay may be what took too long
        began_s, future = self._clock(), self._threads.submit(self._worker.solve, asked, previous, self._deadline_s)
        self._flight = problem, future
        future.add_done_callback(lambda done: self._tell_done(done, self._clock() - began_s))

    def collect(self, now_s: float) -> bool:
        """Take the answer of a finished solve; True when there is a new decision."""
        if self._flight is None or not self.has_answer:
            return False
        (problem, future), self._flight = self._flight, None
        try:
            plan = future.result()
            if violations := verify(plan, problem, capacity_of=replica_capacity):
                raise PlanRejected(violations)
        except PenstockError as error:
            log.warning("no new plan: %s", error)
            self.fault, self.failures = str(error), self.failures + 1
            self._retry_s = self._clock() + RETRY_S * 2.0 ** min(self.failures - 1, 10)
            return False
        same = self.decision is not None and self.decision.plan.decision_hash == plan.decision_hash
        number = self.decision.number if self.decision and same else 0
        self.fault, self.failures = "", 0
        self.decision = Decision(plan=plan, problem=problem, number=number, made_at_s=now_s)
        return True

    def doubt(self, problem: Problem) -> tuple[str, ...]:
        """Check the decision in force against the fleet as it is now."""
        return verify_places(self.decision.plan, problem) if self.decision else ()

    def _tell_done(self, future: Future[Plan], took_s: float) -> None:
        if not future.cancelled():
            self._on_done("failed" if future.exception() else "planned", took_s)


def without_replay(problem: Problem) -> Problem:
    """The same, decided without a simulation's second opinion."""
    return replace(problem, policy=replace(problem.policy, replay=False))


def is_silent(observation: Observation) -> bool:
    """True when telemetry is wanted and speaks of no service: nothing may be concluded from that."""
    wanted = [view for view in observation.demands.values() if not (view.is_fresh and view.reason == DECLARED)]
    return any(view.reason in SILENT for view in wanted) and not any(view.is_fresh for view in wanted)


def _fixed_part(problem: Problem) -> tuple[Any, ...]:
    """What a decision must answer at once when it changes: everything but measured load and what runs."""
    declared = {name: demand for name, demand in problem.demands.items() if demand.source == DECLARED}
    return (
        problem.services,
        problem.nodes,
        problem.domains,
        problem.gpu_classes,
        problem.policy,
        problem.profiles,
        problem.demands.keys(),
        declared,
    )

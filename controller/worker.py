"""The solver in a process of its own: bounded in memory and time, killed and replaced when it exceeds either.

The loop must stay alive whatever a solve does, so a solve runs in a spawned (never forked) process that is kept warm
between solves. One solve is in flight at a time.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from solvers.errors import PenstockError, SolveFailed
from solvers.plan import Plan
from solvers.problem import Problem

log = logging.getLogger("penstock.worker")

Solver = Callable[..., Plan]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def plan_solver(problem: Problem, previous: Plan | None) -> Plan:
    """Solve with the planner and say why; imported here so that only the child pays for the modeller."""
    from solvers.explain.brief import with_reasons
    from solvers.planner import make_plan

    plan = make_plan(problem, previous=previous)
    try:
        return with_reasons(plan, problem)
    except Exception as fault:  # noqa: BLE001 - a decision is not lost for want of words about it
        notes = (*plan.report.notes, f"its reasons could not be worked out: {type(fault).__name__}: {fault}")
        return replace(plan, report=replace(plan.report, notes=notes))


class SolverWorker:
    """One child process, started on the first solve.

    Parameters
    ----------
    solver : callable
        Module-level function of (problem, previous) that runs in the child.
    """

    def __init__(self, *, memory_bytes: int, solver: Solver = plan_solver) -> None:
        self._memory_bytes, self._solver = memory_bytes, solver
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._busy, self._life = threading.Lock(), threading.Lock()
        self._is_stopped = False
        self.restarts = 0

    def solve(self, problem: Problem, previous: Plan | None = None, deadline_s: float = 60.0) -> Plan:
        """Solve in the child, wait for the answer.

        Parameters
        ----------
        deadline_s : float
            Waiting for an earlier solve included; then the child is killed.

        Raises
        ------
        SolveFailed
            When the child crashed, ran out of memory or did not answer in time.
        PenstockError
            What the solver itself raised.
        """
        began_s = time.monotonic()
        if not self._busy.acquire(timeout=max(0.0, deadline_s)):
            raise SolveFailed(f"another solve kept the solver busy for {deadline_s:g} s")
        try:
            return self._solve(problem, previous, deadline_s - (time.monotonic() - began_s))
        finally:
            self._busy.release()

    def stop(self) -> None:
        """Kill the child, whatever it does; a solve in flight fails, and none is begun any more."""
        with self._life:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()
        with self._busy:  # the one who waits for the answer sees the end of the pipe, and may still use it until then
            self._end()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None before the first solve."""
        return self._process.pid if self._process is not None else None

    def _solve(self, problem: Problem, previous: Plan | None, remaining_s: float) -> Plan:
        pipe = self._ready_pipe()
        try:
            pipe.send((problem, previous))
            if not pipe.poll(max(0.0, remaining_s)):
                self._replace()
                raise SolveFailed(f"the solver did not answer in {remaining_s:.1f} s and was killed")
            answer: Plan | Exception = pipe.recv()
        except (EOFError, OSError) as error:
            code = self._exit_code()
            self._replace()
            raise SolveFailed(f"the solver's process ended with code {code}; out of memory?") from error
        if isinstance(answer, PenstockError):
            raise answer
        if isinstance(answer, Exception):
            raise SolveFailed(f"the solver failed: {answer!r}") from answer
        return answer

    def _ready_pipe(self) -> Connection:
        if self._pipe is None or self._process is None or not self._process.is_alive():
            self._end()
            self._pipe = self._start()
        return self._pipe

    def _start(self) -> Connection:
        with self._life:
            if self._is_stopped:
                raise SolveFailed("the solver was stopped")
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            self._process = context.Process(
                target=serve, args=(theirs, self._solver, self._memory_bytes), name="penstock-solver", daemon=True
            )
            self._process.start()
            theirs.close()
            return ours

    def _replace(self) -> None:
        self.restarts += not self._is_stopped
        self._end()

    def _end(self) -> None:
        """Kill the child, if there is one, and forget it."""
        with self._life:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join()
            process.close()
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _exit_code(self) -> int | None:
        if self._process is None:
            return None
        self._process.join(timeout=1.0)
        return self._process.exitcode


def serve(pipe: Connection, solver: Solver, memory_bytes: int) -> None:
    """Answer problems until the pipe closes; runs in the child."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # read when the libraries load, so before the first solve
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            problem, previous = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(solver, problem, previous))


def _answer(solver: Solver, problem: Problem, previous: Plan | None) -> Any:
    try:
        return solver(problem, previous)
    except PenstockError as error:
        return error
    except MemoryError:
        os._exit(137)  # the heap is in an unknown state; the parent starts another
    except Exception as error:  # noqa: BLE001 - whatever a solver raises must reach the loop as a failed solve
        return SolveFailed(f"the solver failed: {error!r}")


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(0)

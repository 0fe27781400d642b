"""The solver in a process of its own: bounded in memory and time, killed and replaced when it exceeds either.

The loop must stay alive whatever a solve does, so a solve runs in a spawned (never forked) process that is kept warm
between solves. One solve is in flight at a time. The process leads a process group: those that it starts itself, for
shares of the work and for integer solves, count towards its memory and are killed with it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib

from solvers.errors import PenstockError, SolveFailed
from solvers.plan import Plan
from solvers.problem import Problem

if TYPE_CHECKING:
    from solvers.planner.pools.sizings import Sizings

log = logging.getLogger("penstock.worker")

Solver = Callable[..., Plan]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MOST_WORKERS = 4  # by default: each is a process of some 200 MB, and more than four hardly make a decision faster
WATCH_S = 1.0
SOLVER_SHARE = 0.8  # of the deadline, when the best plan so far is taken at the latest: its last stage has to end too
LEAST_LIMIT_S = 1e-3  # a limit of no time at all is none; the first plan takes what it takes
REPLAY_SHARE = 0.7  # of the deadline; the rest is for the start of the child, the reasons and a step that takes longer
OUT_OF_MEMORY = 137  # the exit code that a container's runtime gives to it
PAGE_BYTES = resource.getpagesize()


def usable_workers(asked: int = 0) -> int:
    """How many processes may share a decision: as many as asked, else the CPUs that cgroup and affinity leave us."""
    return asked or min(MOST_WORKERS, joblib.cpu_count())


class Allowance:
    """Says whether one more step as long as the longest so far ends in time; the clock starts when it is made."""

    def __init__(self, allowed_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._longest_s = clock, 0.0
        self._ends_s, self._last_s = clock() + allowed_s, clock()

    def __call__(self) -> bool:
        now_s = self._clock()
        self._longest_s, self._last_s = max(self._longest_s, now_s - self._last_s), now_s
        return now_s + self._longest_s < self._ends_s


def with_time_limit(problem: Problem, left_s: float) -> Problem:
    """Tell the solver to come back with its best plan in time, rather than be killed with none."""
    limit_s = max(LEAST_LIMIT_S, min(problem.policy.time_limit_s, SOLVER_SHARE * left_s))
    return replace(problem, policy=replace(problem.policy, time_limit_s=limit_s))


def plan_solver(problem: Problem, previous: Plan | None, *, workers: int = 1, deadline_s: float = 60.0) -> Plan:
    """Solve with the planner and say why; imported here so that only the child pays for the modeller.

    Where the policy asks for it, a simulation may refute the plan, as long as another step fits before the deadline.
    """
    from solvers.correction import with_notes
    from solvers.explain.brief import with_reasons
    from solvers.planner import make_plan

    problem = with_time_limit(problem, deadline_s)
    decide = partial(make_plan, workers=workers, is_isolated=True, sizings=_sizings(), clock=time.monotonic)
    if problem.policy.replay:
        plan = _refuted(problem, previous, decide, Allowance(REPLAY_SHARE * deadline_s))
    else:
        plan = decide(problem, previous=previous)
    plan = with_notes(plan, problem)
    try:
        return with_reasons(plan, problem)
    except Exception as fault:  # noqa: BLE001 - a decision is not lost for want of words about it
        notes = (*plan.report.notes, f"its reasons could not be worked out: {type(fault).__name__}: {fault}")
        return replace(plan, report=replace(plan.report, notes=notes))


@cache
def _sizings() -> Sizings:
    """What sizing said in this process so far; as it rests on no rate, most decisions ask for little that is new."""
    from solvers.planner.pools.sizings import Sizings

    return Sizings()


def _refuted(problem: Problem, previous: Plan | None, decide: Callable[..., Plan], in_time: Allowance) -> Plan:
    """Let a simulation refute the plan; where it cannot (no place for compiled code), the plan stands alone."""
    from solvers.refute import refuted_plan

    try:
        return refuted_plan(problem, previous=previous, decide=decide, goes_on=in_time).plan
    except (PenstockError, MemoryError):
        raise
    except Exception as fault:  # noqa: BLE001 - a decision is not lost for want of a second opinion
        plan = decide(problem, previous=previous)
        notes = (*plan.report.notes, f"it could not be replayed: {type(fault).__name__}: {fault}")
        return replace(plan, report=replace(plan.report, notes=notes))


class SolverWorker:
    """One child process, started on the first solve.

    Parameters
    ----------
    memory_bytes : int
        Address space of the child, and what it and all that it starts may hold together.
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
                _kill_group(self._process)
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
                target=serve, args=(theirs, self._solver, self._memory_bytes), name="penstock-solver"
            )  # no daemon in Python's sense, which could have no children
            atexit.register(self._end)  # runs before multiprocessing waits for its children
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
        atexit.unregister(self._end)
        if process is not None:
            _kill_group(process)
            process.join()
            process.close()
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _exit_code(self) -> int | None:
        if self._process is None:
            return None
        _kill_group(self._process)  # what it ended with stands by now, but its children may still be there
        self._process.join(timeout=1.0)
        return self._process.exitcode


def _kill_group(process: SpawnProcess) -> None:
    """Kill a child, then all that it started; one that has only just begun has no group yet, and no children."""
    process.kill()
    if process.pid is not None:
        _kill_all(_group(process.pid))


def _kill_all(pids: Iterable[int]) -> None:
    """Kill processes, but not those that wait for the end of the others to clean up after them."""
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def serve(pipe: Connection, solver: Solver, memory_bytes: int) -> None:
    """Answer problems until the pipe closes; runs in the child."""
    os.setpgrp()
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # read when the libraries load, so before the first solve
    threading.Thread(target=_watch, args=(memory_bytes,), daemon=True).start()
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


def _watch(memory_bytes: int) -> None:
    """End with the parent, and when this process and its children together hold too much."""
    parent = multiprocessing.parent_process()
    sentinels = [parent.sentinel] if parent is not None else []
    while not multiprocessing.connection.wait(sentinels, timeout=WATCH_S):
        group = list(_group(os.getpgrp()))
        if sum(map(_private_bytes, group)) > memory_bytes:
            _end_with(group, OUT_OF_MEMORY)
    _end_with(list(_group(os.getpgrp())), 0)


def _end_with(group: list[int], code: int) -> None:
    _kill_all(pid for pid in group if pid != os.getpid())
    os._exit(code)


def _group(leader: int) -> Iterator[int]:
    """Processes of a group, its leader included."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                if os.getpgid(int(entry)) == leader:
                    yield int(entry)


def _private_bytes(pid: int) -> int:
    """What a process holds by itself; libraries that several share are no matter."""
    try:
        resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
    except OSError:  # it has ended meanwhile
        return 0
    return (resident - shared) * PAGE_BYTES

"""Who does independent pieces of work: this process, or workers that give the same answers in the same order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from joblib import Parallel, delayed
from joblib.parallel import get_active_backend

from solvers.apart import WorkLost, apart, make_ready
from solvers.planner.sizings import Sizings
from solvers.problem import Problem
from solvers.programme import Programme, Solution, solve
from solvers.workload import ServedModel

T = TypeVar("T")

PIECE_S = 300.0  # a piece takes seconds; a worker that is silent for so long hangs
GRACE_S = 10.0  # HiGHS looks at its clock now and then, not always; later than its limit by so much it hangs
PIECES = 16  # work is cut into as many, however many workers there are: answers never depend on their number


@dataclass(slots=True, kw_only=True)
class Crew:
    """Hands out pieces of work.

    Attributes
    ----------
    is_isolated : bool
        Integer solves run in a process of their own, on this machine whatever joblib works on.
    lost : int
        Pieces that no worker answered, one having died or hung: done here.
    lost_solves : int
        Integer solves that a crash or a hang ended; they are not done again, as this process would share their fate.
    sizings : Sizings, optional
        What sizing said in earlier decisions.
    """

    workers: int = 1
    is_isolated: bool = False
    lost: int = field(default=0)
    lost_solves: int = field(default=0)
    solve: Callable[[Programme], Solution] = solve
    sizings: Sizings | None = None

    def __post_init__(self) -> None:
        if self.is_isolated:
            make_ready()

    def whole(self, programme: Programme) -> Solution:
        """Solve with whole numbers, where neither a crash nor a hang of the solver's reaches this process.

        Raises
        ------
        WorkLost
            The solve died or did not end with its time limit.
        SolveFailed
            HiGHS gave no solution.
        """
        if not self.is_isolated:
            return self.solve(programme)
        try:
            return apart(self.solve, programme, deadline_s=float(programme.options["time_limit"]) + GRACE_S)
        except WorkLost:
            self.lost_solves += 1
            raise

    def notes(self) -> tuple[str, ...]:
        """Say how much was lost."""
        said = (
            (self.lost, "pieces of work were done again here: a worker died or hung"),
            (self.lost_solves, "integer solves were given up: their process died or hung"),
        )
        return tuple(f"{count} {what}" for count, what in said if count)

    def each(self, do: Callable[..., T], work: Sequence[tuple[Any, ...]]) -> list[T]:
        """Do every piece, answers in order."""
        if self.workers <= 1 or len(work) < 2:
            return [do(*piece) for piece in work]
        cuts = [work[start::PIECES] for start in range(min(PIECES, len(work)))]
        found: list[Any] = [None] * len(work)
        for start, answer in enumerate(self._answers(do, cuts)):
            found[start::PIECES] = answer
        return found

    def _answers(self, do: Callable[..., T], cuts: Sequence[Sequence[tuple[Any, ...]]]) -> list[list[T]]:
        """What the workers answer; what they leave out when one of them dies or hangs is done here."""
        answers: list[list[T]] = []
        streams = get_active_backend()[0].supports_return_generator  # Ray's backend does not
        return_as = "generator" if streams else "list"
        parallel = Parallel(n_jobs=self.workers, return_as=return_as, timeout=PIECE_S)
        try:
            answers.extend(parallel(delayed(_each)(do, cut) for cut in cuts))
        except (BrokenExecutor, TimeoutError):
            self.lost += len(cuts) - len(answers)
        return [*answers, *(_each(do, cut) for cut in cuts[len(answers) :])]


def _each(do: Callable[..., T], work: Sequence[tuple[Any, ...]]) -> list[T]:
    return [do(*piece) for piece in work]


def of_service(problem: Problem, service: ServedModel) -> Problem:
    """What sizing reads of one service, light enough to send away."""
    demands = {service.name: problem.demands[service.name]}
    return replace(problem, services=(service,), demands=demands, nodes=(), domains={}, profiles={}, running={})

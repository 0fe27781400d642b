"""Who does independent pieces of work: this process, or workers that give the same answers in the same order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from joblib import Parallel, delayed

from solvers.problem import Problem
from solvers.workload import ServedModel

T = TypeVar("T")

PIECE_S = 300.0  # a piece takes seconds; a worker that is silent for so long hangs
PIECES = 16  # work is cut into as many, however many workers there are: answers never depend on their number


@dataclass(slots=True, kw_only=True)
class Crew:
    """Hands out pieces of work. ``lost`` counts those that no worker answered, one having died or hung: done here."""

    workers: int = 1
    lost: int = field(default=0)

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
        parallel = Parallel(n_jobs=self.workers, return_as="generator", timeout=PIECE_S)
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

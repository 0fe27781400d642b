"""Who does independent pieces of work: this process, or workers that give the same answers in the same order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from joblib import Parallel, delayed

from solvers.problem import Problem
from solvers.workload import ServedModel

T = TypeVar("T")

PIECES = 16  # work is cut into as many, however many workers there are: answers never depend on their number


@dataclass(slots=True, kw_only=True)
class Crew:
    """Hands out pieces of work. ``lost`` counts those whose worker died or hung, which were done here instead."""

    workers: int = 1
    lost: int = field(default=0)

    def each(self, do: Callable[..., T], work: Sequence[tuple[Any, ...]]) -> list[T]:
        """Do every piece, answers in order."""
        if self.workers <= 1 or len(work) < 2:
            return [do(*piece) for piece in work]
        cuts = [work[start::PIECES] for start in range(min(PIECES, len(work)))]
        answers = Parallel(n_jobs=self.workers)(delayed(_each)(do, cut) for cut in cuts)
        found: list[Any] = [None] * len(work)
        for start, answer in enumerate(answers):
            found[start::PIECES] = answer
        return found


def _each(do: Callable[..., T], work: Sequence[tuple[Any, ...]]) -> list[T]:
    return [do(*piece) for piece in work]


def of_service(problem: Problem, service: ServedModel) -> Problem:
    """What sizing reads of one service, light enough to send away."""
    demands = {service.name: problem.demands[service.name]}
    return replace(problem, services=(service,), demands=demands, nodes=(), domains={}, profiles={}, running={})

"""A linear or whole-number programme as plain arrays, solved by HiGHS: all that a process of its own has to load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import highspy
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from solvers.errors import SolveFailed
from solvers.highs import pass_model, quiet_highs

Floats = NDArray[np.float64]


class Word(StrEnum):
    """What a solve ended with, in our words; anything else that HiGHS says is FAILED."""

    OPTIMAL = "Optimal"
    FEASIBLE = "Feasible"  # stopped by a limit with a solution in hand
    INFEASIBLE = "Infeasible"
    FAILED = "Failed"


_WORDS = {
    highspy.HighsModelStatus.kOptimal: Word.OPTIMAL,
    highspy.HighsModelStatus.kTimeLimit: Word.FEASIBLE,
    highspy.HighsModelStatus.kSolutionLimit: Word.FEASIBLE,
    highspy.HighsModelStatus.kIterationLimit: Word.FEASIBLE,
    highspy.HighsModelStatus.kInterrupt: Word.FEASIBLE,
    highspy.HighsModelStatus.kInfeasible: Word.INFEASIBLE,
    highspy.HighsModelStatus.kUnboundedOrInfeasible: Word.INFEASIBLE,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """``bound`` is HiGHS's own lower bound; ``duals`` (rows,) only from a linear solve."""

    word: Word
    value: float
    bound: float
    x: Floats
    duals: Floats | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Programme:
    """``minimise cost·x``, ``matrix x`` and ``x`` each between a least and a most; ``whole`` None: no column need be.

    Attributes
    ----------
    options : mapping
        HiGHS's own; ``time_limit`` in seconds among them.
    start : (N,) float, optional
        A solution to begin with, NaN where HiGHS shall complete it; a wrong one it ignores.
    """

    matrix: sp.csc_array
    cost: Floats
    columns: tuple[Floats, Floats]
    rows: tuple[Floats, Floats]
    whole: NDArray[np.bool_] | None
    options: Mapping[str, Any]
    start: Floats | None = None


Run = Callable[[Programme], Solution]
"""Who solves: this process, or a crew that keeps HiGHS apart from it."""


def stacked(rows: Sequence[Mapping[int, float]], columns: int) -> sp.csc_array:
    """Rows, each by column, as a matrix of so many columns."""
    at = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    indices = [column for row in rows for column in row]
    values = np.array([value for row in rows for value in row.values()], dtype=float)
    return sp.csc_array((values, (at, indices)), shape=(len(rows), columns))


def solve(programme: Programme) -> Solution:
    """Solve in this process.

    Raises
    ------
    SolveFailed
        When HiGHS refuses the model, fails, or stops without a solution.
    """
    highs, cost = quiet_highs(**programme.options), programme.cost
    pass_model(
        highs,
        matrix=programme.matrix,
        cost=cost,
        columns=programme.columns,
        rows=programme.rows,
        whole=programme.whole,
    )
    if programme.start is not None:
        known = np.flatnonzero(~np.isnan(programme.start))
        highs.setSolution(len(known), known.astype(np.int32), programme.start[known])
    if highs.run() == highspy.HighsStatus.kError:
        raise SolveFailed(f"HiGHS failed: {highs.modelStatusToString(highs.getModelStatus())}")
    return _solution(highs, programme)


def _solution(highs: Any, programme: Programme) -> Solution:
    status, info, found = highs.getModelStatus(), highs.getInfo(), highs.getSolution()
    word = _WORDS.get(status, Word.FAILED)
    x = np.array(found.col_value, dtype=float)
    if word is Word.FEASIBLE and info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        word = Word.FAILED
    if word in (Word.INFEASIBLE, Word.FAILED) or x.shape != programme.cost.shape:
        raise SolveFailed(f"HiGHS gave no solution: {highs.modelStatusToString(status)}")
    is_whole = programme.whole is not None
    return Solution(
        word=word,
        value=float(programme.cost @ x),
        bound=float(info.mip_dual_bound if is_whole else info.objective_function_value),
        x=x,
        duals=None if is_whole else np.array(found.row_dual, dtype=float),
    )

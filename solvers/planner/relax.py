"""The stated model as plain arrays, and HiGHS on them: linear for prices and bound, whole for decisions.

cvxpy states the model and hands over its arrays; it does not run the solver, because its interface builds a new solver
every time, takes no start and returns no bound of an integer solve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import cvxpy as cp
import highspy
import numpy as np
import scipy.sparse as sp

from solvers.errors import SolveFailed
from solvers.highs import pass_model, quiet_highs
from solvers.planner.cells import Cells, Floats
from solvers.planner.columns import Limit, make_variables
from solvers.planner.limits import LIMITS, objective

WHOLE_TOLERANCE = 1e-6


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
class Arrays:
    """``minimise cost·x`` with ``matrix x`` between ``row_lower`` and ``row_upper``, x between its own bounds.

    Attributes
    ----------
    columns : mapping of str to slice
        Where each variable of ``limits.Variables`` lies.
    rows : tuple of (limit, subject)
    """

    cost: Floats
    matrix: Any  # (rows, columns) csc
    row_lower: Floats
    row_upper: Floats
    lower: Floats
    upper: Floats
    whole: Any  # (columns,) bool
    columns: Mapping[str, slice]
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """``bound`` is HiGHS's own lower bound; ``duals`` (rows,) only from a linear solve."""

    word: Word
    value: float
    bound: float
    x: Floats
    duals: Floats | None = None


def state(cells: Cells) -> Arrays:
    """State the model over the cells and compile it."""
    variables = make_variables(cells)
    limits = [limit for make in LIMITS if (limit := make(cells, variables)).subjects]
    problem = cp.Problem(cp.Minimize(objective(cells, variables)), [limit.constraint for limit in limits])
    data, _, _ = problem.get_problem_data(cp.HIGHS)
    equal = [limit for limit in limits if isinstance(limit.constraint, cp.constraints.zero.Equality)]
    ordered = equal + [limit for limit in limits if limit not in equal]  # cvxpy lists equations first
    return _arrays(data, variables.all, ordered, sum(len(limit.subjects) for limit in equal))


def _arrays(data: dict[str, Any], variables: tuple[tuple[str, Any], ...], ordered: list[Limit], equal: int) -> Arrays:
    rows = tuple((limit.name, subject) for limit in ordered for subject in limit.subjects)
    matrix = sp.csc_array(data["A"])
    if matrix.shape[0] != len(rows):
        raise SolveFailed(f"the modeller made {matrix.shape[0]} rows of {len(rows)} limits")
    start = data["param_prob"].var_id_to_col
    size = matrix.shape[1]
    whole = np.zeros(size, dtype=bool)
    whole[[*data["int_vars_idx"], *data["bool_vars_idx"]]] = True
    right = np.asarray(data["b"], dtype=float)
    return Arrays(
        cost=np.asarray(data["c"], dtype=float),
        matrix=matrix,
        row_lower=np.where(np.arange(len(rows)) < equal, right, -np.inf),
        row_upper=right,
        lower=np.asarray(data["lower_bounds"], dtype=float),
        upper=np.asarray(data["upper_bounds"], dtype=float),
        whole=whole,
        columns={name: _slice(start, v) for name, v in variables},
        rows=rows,
    )


def _slice(start: Mapping[int, int], variable: Any) -> slice:
    """Where a variable lies; cvxpy drops one that stands in no row."""
    if variable.id not in start:
        return slice(0, 0)
    return slice(start[variable.id], start[variable.id] + variable.size)


def solve_linear(arrays: Arrays, *, time_limit_s: float) -> Solution:
    """Solve the relaxation; its duals are the prices of the limits."""
    highs = _load(arrays, whole=False, options={"time_limit": time_limit_s, "solver": "simplex"})
    return _run(highs, arrays, is_whole=False)


def solve_whole(
    arrays: Arrays, *, relative_gap: float, time_limit_s: float, node_limit: int, start: Floats | None = None
) -> Solution:
    """Solve with whole replicas until the gap or a limit: nodes before seconds, so that no plan depends on the clock.

    Parameters
    ----------
    start : (columns,) float, optional
        A solution to begin with, NaN where HiGHS shall complete it; a wrong one it ignores.
    """
    options = {
        "time_limit": time_limit_s,
        "mip_rel_gap": relative_gap,
        "mip_abs_gap": 1e-7,
        "mip_max_nodes": node_limit,
        "mip_feasibility_tolerance": WHOLE_TOLERANCE,
    }
    highs = _load(arrays, whole=True, options=options)
    if start is not None:
        known = np.flatnonzero(~np.isnan(start))
        highs.setSolution(len(known), known.astype(np.int32), start[known])
    return _run(highs, arrays, is_whole=True)


def _load(arrays: Arrays, *, whole: bool, options: Mapping[str, Any]) -> Any:
    highs = quiet_highs(**options)
    pass_model(
        highs,
        matrix=arrays.matrix,
        cost=arrays.cost,
        columns=(arrays.lower, arrays.upper),
        rows=(arrays.row_lower, arrays.row_upper),
        whole=arrays.whole if whole else None,
    )
    return highs


def _run(highs: Any, arrays: Arrays, *, is_whole: bool) -> Solution:
    if highs.run() == highspy.HighsStatus.kError:
        raise SolveFailed(f"HiGHS failed: {highs.modelStatusToString(highs.getModelStatus())}")
    status, info, found = highs.getModelStatus(), highs.getInfo(), highs.getSolution()
    word = _WORDS.get(status, Word.FAILED)
    x = np.array(found.col_value, dtype=float)
    if word is Word.FEASIBLE and info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        word = Word.FAILED
    if word in (Word.INFEASIBLE, Word.FAILED) or x.shape != arrays.cost.shape:
        raise SolveFailed(f"HiGHS gave no solution: {highs.modelStatusToString(status)}")
    return Solution(
        word=word,
        value=float(arrays.cost @ x),
        bound=float(info.mip_dual_bound if is_whole else info.objective_function_value),
        x=x,
        duals=None if is_whole else np.array(found.row_dual, dtype=float),
    )

"""The stated model as plain arrays, and HiGHS on them: linear for prices and bound, whole for decisions.

cvxpy states the model and hands over its arrays; it does not run the solver, because its interface builds a new solver
every time, takes no start and returns no bound of an integer solve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.sparse as sp

from solvers.errors import SolveFailed
from solvers.planner.model.columns import Limit, Variables, make_variables
from solvers.planner.model.limits import LIMITS, objective
from solvers.planner.pools.cells import Cells, Floats
from solvers.programme import Programme, Run, Solution, Word, solve

__all__ = ["Arrays", "Solution", "Word", "solve_linear", "solve_whole", "state"]

MOST_PRESOLVED = 20_000  # columns; on models of more presolving takes twice as long as it saves
WHOLE_TOLERANCE = 1e-6
UNUSED: Mapping[str, bool] = {
    "mip_allow_restart": False,
    "mip_detect_symmetry": False,
    "mip_heuristic_run_feasibility_jump": False,
}
"""Of the time of a search that begins with a good solution a quarter goes into these, for nothing."""
LEAN: Mapping[str, bool] = {**UNUSED, "mip_heuristic_run_root_reduced_cost": False}
"""Of a few services of a large fleet: without these others find a plan in half the time, and seldom a worse one."""
SPARED: Mapping[str, bool] = {**LEAN, "mip_heuristic_run_rins": False, "mip_heuristic_run_rens": False}
"""Of a tiny model's time six parts in seven go into these."""


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


def state(cells: Cells, makers: Sequence[Callable[[Cells, Variables], Limit]] = LIMITS) -> Arrays:
    """State the model over the cells and compile it; with fewer limits it bounds less, and takes less time."""
    import cvxpy as cp  # here, for workers that size and price would only wait for it

    variables = make_variables(cells)
    limits = [limit for make in makers if (limit := make(cells, variables)).subjects]
    problem = cp.Problem(cp.Minimize(objective(cells, variables)), [limit.constraint for limit in limits])
    try:
        data, _, _ = problem.get_problem_data(cp.HIGHS)
    except cp.error.SolverError as fault:
        raise SolveFailed(f"the model cannot be compiled: {fault}") from fault
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


def solve_linear(arrays: Arrays, *, time_limit_s: float, most_steps: int | None = None) -> Solution:
    """Solve the relaxation; its duals are the prices of the limits. ``most_steps`` are those of the simplex method."""
    options: dict[str, Any] = {"time_limit": time_limit_s, "solver": "simplex"}
    if most_steps is not None:
        options["simplex_iteration_limit"] = most_steps
    if len(arrays.cost) > MOST_PRESOLVED:
        options["presolve"] = "off"
    return solve(_programme(arrays, whole=False, options=options))


def duals_of(relaxed: Solution) -> Floats:
    """Prices of the rows, (rows,); a relaxation without them is of no use."""
    if relaxed.duals is None:
        raise SolveFailed("the relaxation gave no prices")
    return relaxed.duals


def solve_whole(
    arrays: Arrays,
    *,
    relative_gap: float,
    time_limit_s: float,
    node_limit: int,
    start: Floats | None = None,
    run: Run = solve,
    spared: Mapping[str, bool | str] = MappingProxyType({}),
) -> Solution:
    """Solve with whole replicas until the gap or a limit: nodes before seconds, so that no plan depends on the clock.

    Parameters
    ----------
    start : (columns,) float, optional
        A solution to begin with, NaN where HiGHS shall complete it; a wrong one it ignores.
    run : callable
        Who solves: this process, or a crew that keeps HiGHS apart from it.
    spared : mapping
        What HiGHS is not to try: ``UNUSED``, ``LEAN`` or ``SPARED``; the bound stays true.
    """
    options: dict[str, Any] = {
        "time_limit": time_limit_s,
        "mip_rel_gap": relative_gap,
        "mip_abs_gap": 1e-7,
        "mip_max_nodes": node_limit,
        "mip_feasibility_tolerance": WHOLE_TOLERANCE,
        **spared,
    }
    return run(_programme(arrays, whole=True, options=options, start=start))


def _programme(arrays: Arrays, *, whole: bool, options: Mapping[str, Any], start: Floats | None = None) -> Programme:
    return Programme(
        matrix=arrays.matrix,
        cost=arrays.cost,
        columns=(arrays.lower, arrays.upper),
        rows=(arrays.row_lower, arrays.row_upper),
        whole=arrays.whole if whole else None,
        options=options,
        start=start,
    )

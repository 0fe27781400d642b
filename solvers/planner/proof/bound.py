"""The certificate of a relaxation, recomputed in plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from solvers.errors import SolveFailed
from solvers.planner.model.relax import Arrays, Solution, duals_of, solve_linear
from solvers.planner.pools.cells import Floats

ROUNDING_ALLOWANCE = 1e-9  # relative to the sum of absolute terms; far above the rounding of 1e5 additions
FULL, TIGHTER = 1e-9, 1e-4  # relative; when a row is full, and by how much it has to be less to be full first


def dual_bound(arrays: Arrays, duals: Floats) -> float:
    r"""Bound the objective from below by any prices of the rows.

    .. math:: y \cdot b + \sum_j \min(d_j l_j, d_j u_j), \quad d = c - A^T y

    Parameters
    ----------
    duals : (rows,) float
        ``y``. Wrong or rounded prices weaken the bound and never make it false; a price on a side that a row lacks is
        set to zero, and a reduced cost that an unbounded column would make infinite gives minus infinity.
    """
    side = np.where(duals > 0, arrays.row_lower, arrays.row_upper)
    prices = np.where(np.isfinite(side), duals, 0.0)
    row_terms = prices * np.where(np.isfinite(side), side, 0.0)
    reduced = arrays.cost - arrays.matrix.T @ prices
    reduced[np.abs(reduced) < 1e-12 * max(1.0, float(np.abs(arrays.cost).max(initial=0.0)))] = 0.0
    ends = np.where(reduced > 0, arrays.lower, arrays.upper)
    if np.any((reduced != 0.0) & ~np.isfinite(ends)):
        return float("-inf")
    column_terms = reduced * np.where(np.isfinite(ends), ends, 0.0)
    allowance = ROUNDING_ALLOWANCE * float(np.abs(row_terms).sum() + np.abs(column_terms).sum())
    return float(row_terms.sum() + column_terms.sum()) - allowance


def priced_duals(arrays: Arrays, relaxed: Solution, rows: Sequence[int], *, time_limit_s: float) -> Floats:
    """Prices that name these rows where other bounds are as tight: that a pool fits twice says what two GPUs say.

    Of prices that bound no less any will do for the bound; but what others would do with the same GPUs only the price
    of GPUs says.
    """
    duals = duals_of(relaxed)
    most = arrays.row_upper[rows]
    is_full = (arrays.matrix @ relaxed.x)[rows] >= most - FULL * np.abs(most)
    silent = np.asarray(rows, dtype=int)[is_full & (duals[rows] >= 0.0) & (most > 0.0)]
    if not len(silent):
        return duals
    upper = arrays.row_upper.copy()
    upper[silent] *= 1.0 - TIGHTER
    try:
        named = duals_of(solve_linear(replace(arrays, row_upper=upper), time_limit_s=time_limit_s))
    except SolveFailed:  # nothing fits in less
        return duals
    bounds = [dual_bound(arrays, prices) for prices in (duals, named)]
    return named if bounds[1] >= bounds[0] - FULL * abs(bounds[0]) else duals

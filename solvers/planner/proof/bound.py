"""The certificate of a relaxation, recomputed in plain arithmetic."""

from __future__ import annotations

import numpy as np

from solvers.planner.model.relax import Arrays
from solvers.planner.pools.cells import Floats

ROUNDING_ALLOWANCE = 1e-9  # relative to the sum of absolute terms; far above the rounding of 1e5 additions


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

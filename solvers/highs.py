"""HiGHS as all of the core wants it: quiet, on one thread, with a fixed seed: equal input gives equal answers."""

from __future__ import annotations

from typing import Any

import highspy
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from solvers.errors import SolveFailed

Floats = NDArray[np.float64]

SEED = 7
ALWAYS = {"output_flag": False, "threads": 1, "parallel": "off", "random_seed": SEED}
KINDS = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)


def quiet_highs(**options: Any) -> Any:
    """Start a HiGHS without a model.

    Parameters
    ----------
    **options
        HiGHS's own options, over those that hold always.
    """
    highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    for name, value in {**ALWAYS, **options}.items():
        highs.setOptionValue(name, value)
    return highs


def pass_model(
    highs: Any,
    *,
    matrix: sp.csc_array,
    cost: Floats,
    columns: tuple[Floats, Floats],
    rows: tuple[Floats, Floats],
    whole: NDArray[np.bool_] | None = None,
) -> None:
    """Hand over a whole model, to be minimised.

    Parameters
    ----------
    matrix : (M, N)
        Coefficients by row and column.
    cost : (N,)
    columns, rows : pair of (N,), pair of (M,)
        Least and most; infinite where there is none.
    whole : (N,) bool, optional
        Columns that must be whole.

    Raises
    ------
    SolveFailed
        When HiGHS refuses the model.
    """
    model = highspy.HighsLp()
    model.num_row_, model.num_col_ = matrix.shape
    model.col_cost_ = cost
    model.col_lower_, model.col_upper_ = map(_finite, columns)
    model.row_lower_, model.row_upper_ = map(_finite, rows)
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_ = matrix.indptr
    model.a_matrix_.index_ = matrix.indices
    model.a_matrix_.value_ = matrix.data
    if whole is not None:
        model.integrality_ = [KINDS[int(is_whole)] for is_whole in whole]
    if highs.passModel(model) == highspy.HighsStatus.kError:
        raise SolveFailed("HiGHS refused the model")


def _finite(values: Floats) -> Floats:
    return np.clip(values, -highspy.kHighsInf, highspy.kHighsInf)

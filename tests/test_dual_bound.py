"""The bound of any prices, by hand: a row between two ends, a column without an upper one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp

from solvers.planner.model.relax import Arrays
from solvers.planner.proof.bound import dual_bound

FREE = math.inf


def arrays(row: tuple[float, float], upper: float = FREE) -> Arrays:
    """At least 2 x + 3 y with x + y inside the row, x from 0 to 5 and y from 1."""
    return Arrays(
        cost=np.array([2.0, 3.0]),
        matrix=sp.csc_array(np.ones((1, 2))),
        row_lower=np.array([row[0]]),
        row_upper=np.array([row[1]]),
        lower=np.array([0.0, 1.0]),
        upper=np.array([5.0, upper]),
        whole=np.zeros(2, dtype=bool),
        columns={},
        rows=(("row", ""),),
    )


@pytest.mark.parametrize(
    ("row", "price", "bound"),
    [
        ((4.0, FREE), 2.0, 8.0 + 1.0),  # the best: x is 3 and y is 1
        ((4.0, FREE), 0.0, 3.0),
        ((4.0, FREE), 2.5, 10.0 - 0.5 * 5.0 + 0.5),  # x pays to the end of its room
        ((4.0, FREE), -1.0, 3.0),  # a price on a side that the row lacks
        ((-FREE, 6.0), 1.0, 3.0),
        ((-FREE, 6.0), -1.0, -6.0 + 4.0),
        ((4.0, 6.0), 2.0, 9.0),
        ((4.0, 6.0), -1.0, -2.0),
    ],
)
def test_the_bound_is_what_rows_and_columns_fetch(row: tuple[float, float], price: float, bound: float) -> None:
    found = dual_bound(arrays(row), np.array([price]))
    assert found == pytest.approx(bound, rel=1e-7)
    assert found < bound  # below by what sums may be rounded by


def test_a_column_that_pays_without_end_leaves_no_bound() -> None:
    assert dual_bound(arrays((4.0, FREE)), np.array([4.0])) == -math.inf
    ended = dual_bound(arrays((4.0, FREE), upper=7.0), np.array([4.0]))
    assert ended == pytest.approx(16.0 - 2.0 * 5.0 - 1.0 * 7.0)

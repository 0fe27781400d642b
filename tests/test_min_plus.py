"""The least within a stretch, against looking at every value of it."""

from __future__ import annotations

import numpy as np

from solvers.planner.menus.min_plus import slide


def test_the_least_of_a_stretch_is_that_of_its_values() -> None:
    rng = np.random.default_rng(7)
    for count in (1, 2, 3, 17, 64):
        values = rng.normal(size=count)
        values[rng.random(count) < 0.1] = np.inf
        for width in (0, 1, 2, 3, 7, 8, 31, 63, 64, 100):
            expected = [values[max(0, at - width) : at + 1].min() for at in range(count)]
            assert slide(values, width).tolist() == expected

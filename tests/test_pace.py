"""How pricing goes on: what is noted of a rise, and that what was open before may be forgotten after it."""

from __future__ import annotations

import pytest

from solvers.planner.wide.pace import MOST_HURRIED, Pace


@pytest.mark.parametrize("is_hurried", [False, True])
def test_what_was_open_may_be_forgotten_between_pricings(is_hurried: bool) -> None:
    pace = Pace(is_search=False, is_hurried=is_hurried)
    for value in (1.0, 2.0, 3.0):
        pace.open_usd_per_hour.append(10.0)
        pace.gained(value, value - 1.0, is_new=False)
        pace.begin_again()
        assert not pace.is_over(100.0)
    for _ in range(MOST_HURRIED):
        pace.open_usd_per_hour.append(10.0)
        pace.gained(3.0, 3.0, is_new=False)
    assert pace.is_over(100.0) is is_hurried

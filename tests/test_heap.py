"""Collections are rare while a fleet is planned, and as they were before afterwards."""

from __future__ import annotations

import gc

from solvers.planner.heap import RARE, rare_collections


def test_collections_are_as_they_were_after_an_error_too() -> None:
    before = gc.get_threshold()
    assert before != RARE
    planning = rare_collections()
    planning.__enter__()
    assert gc.get_threshold() == RARE
    assert not planning.__exit__(ZeroDivisionError, ZeroDivisionError(), None), "the error is not swallowed"
    assert gc.get_threshold() == before


def test_who_ends_last_does_not_keep_them_rare() -> None:
    before = gc.get_threshold()
    first, second = rare_collections(), rare_collections()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.get_threshold() == before

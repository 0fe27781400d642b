"""Fits of a few numbers: what was put in is found again, hidden settings do not pull, groups keep their parents."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.calibration import CEILING, DECODE_ONLY, UNSEEN, Level, fit, fit_levels, from_unit, groups, to_unit
from solvers.engine.closed_loop import Case, CaseBook, Correction, Load, Server
from solvers.engine.curves import Floats
from tests.test_closed_loop import curves

TRUE = Correction(
    decode_ratio=1.3, decode_overhead_s=0.0015, prefill_ratio=1.6, prefill_overhead_s=0.012, front_end_s=0.003
)
LOADS = [
    Load(clients=clients, prompt_tokens=prompt, output_tokens=output)
    for clients in (2, 8, 24)
    for prompt, output in ((256, 40), (2000, 40), (1000, 80))
]


def book() -> CaseBook:
    own = curves()
    return CaseBook([Case(curves=own, server=Server(), load=load) for load in LOADS])


def off(found: Floats, measured: Floats) -> Floats:
    return np.abs(book().run(found)[:, :2] / measured - 1.0)


def test_a_fit_finds_what_was_put_in() -> None:
    measured = book().run(TRUE.as_array())[:, :2]
    every = list(range(len(LOADS)))
    assert off(UNSEEN.as_array(), measured).max() > 0.3
    found = fit(book(), measured, every, UNSEEN.as_array(), pull=0.01)
    assert off(found, measured).max() < 0.06
    assert found[0] == pytest.approx(TRUE.decode_ratio, rel=0.15)


def test_a_row_that_hides_a_setting_does_not_pull_the_others() -> None:
    measured = book().run(TRUE.as_array())[:, :2]
    hidden = measured.copy()
    hidden[4] *= (50.0, 0.4)
    found = fit(book(), hidden, list(range(len(LOADS))), UNSEEN.as_array(), pull=0.01)
    assert np.delete(off(found, measured), 4, axis=0).max() < 0.12


def test_what_was_not_measured_is_not_looked_at() -> None:
    measured = book().run(TRUE.as_array())[:, :2]
    measured[:, 0] = np.nan
    found = fit(book(), measured, list(range(len(LOADS))), UNSEEN.as_array(), free=DECODE_ONLY, pull=0.01)
    assert found[2:].tolist() == pytest.approx(UNSEEN.as_array()[2:].tolist())
    assert np.median(off(found, book().run(TRUE.as_array())[:, :2])[:, 1]) < 0.1


def test_a_strong_pull_keeps_the_parent() -> None:
    measured = book().run(TRUE.as_array())[:, :2]
    found = fit(book(), measured, [0, 1, 2, 3], UNSEEN.as_array(), pull=1e6)
    assert found == pytest.approx(UNSEEN.as_array(), rel=0.02)


def test_a_group_without_rows_keeps_its_parents_numbers() -> None:
    measured = book().run(TRUE.as_array())[:, :2]
    keys = ["seen"] * 6 + ["unseen"] * 3
    levels = [Level(keys=[0] * 9, pull=0.5), Level(keys=keys, pull=0.1)]
    found = fit_levels(book(), measured, [0, 1, 2, 3, 4, 5], levels)
    parent = fit_levels(book(), measured, [0, 1, 2, 3, 4, 5], levels[:1])
    assert found[8].tolist() == parent[8].tolist()
    assert found[0].tolist() != parent[0].tolist()
    assert (found[:6] == found[0]).all()


def test_units_lead_there_and_back() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        unit = rng.random(5)
        assert to_unit(from_unit(unit)) == pytest.approx(unit)
    assert (from_unit(np.full(5, 2.0)) <= CEILING + 1e-12).all()
    nothing = Correction().as_array()
    assert from_unit(to_unit(nothing)) == pytest.approx(nothing)


def test_groups_keep_the_order_of_appearance() -> None:
    assert groups(["b", "a", "b"]) == {"b": [0, 2], "a": [1]}
    assert list(groups(["b", "a"])) == ["b", "a"]

"""Profiles bent to benchmarks: what was changed is found, the answer is a sound profile, and it says what it is."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.calibration_profile import Measurement, calibrate, corrected
from solvers.engine import EngineProfile, ProfileSource, check_profile
from solvers.engine.closed_loop import Case, CaseBook, Correction, Load, Server, curves_of_profile
from solvers.engine.curves import decode_step_s, prefill_s
from solvers.errors import InvalidInput
from tests.profile_maker import make_profile

SERVER = Server(budget_tokens=8192)
TRUE = Correction(decode_ratio=1.25, decode_overhead_s=0.001, prefill_ratio=1.5, prefill_overhead_s=0.01)
LOADS = tuple(
    Load(clients=clients, prompt_tokens=prompt, output_tokens=output)
    for clients, prompt, output in ((2, 512, 64), (8, 4000, 64), (32, 1000, 128), (16, 6000, 32), (64, 800, 64))
)


def measurements(profile: EngineProfile) -> list[Measurement]:
    """What a server that behaves like the profile would show."""
    cases = [Case(curves=curves_of_profile(profile), server=SERVER, load=load) for load in LOADS]
    times = CaseBook(cases, rounds=4).run(Correction().as_array())
    return [Measurement(load=load, ttft_s=row[0], tpot_s=row[1]) for load, row in zip(LOADS, times, strict=True)]


def test_a_calibrated_profile_agrees_with_a_server_that_differs_from_the_tables() -> None:
    base = make_profile(kv_capacity_tokens=10**9)
    truth = corrected(base, TRUE, SERVER.budget_tokens)
    found = calibrate(base, measurements(truth), SERVER, name="mine.csv")
    check_profile(found.profile)
    before, after = found.misses(found.before_s), found.misses(found.after_s)
    assert before.tpot_median > 0.2
    assert after.tpot_median < 0.05
    assert after.tpot_worst < 0.1
    assert after.ttft_worst < 0.2  # the fit's serial front end is written into the prompt's time
    assert found.left_out_s is not None
    assert found.misses(found.left_out_s).tpot_median < 0.5 * before.tpot_median
    assert prefill_s(found.profile, 4096) == pytest.approx(prefill_s(truth, 4096), rel=0.15)
    assert decode_step_s(found.profile, 32, 2048) == pytest.approx(decode_step_s(truth, 32, 2048), rel=0.1)


def test_it_says_what_it_was_made_of() -> None:
    found = calibrate(make_profile(), measurements(make_profile())[:2], SERVER, name="mine.csv")
    assert found.profile.source is ProfileSource.MEASURED
    assert found.profile.source_detail.startswith("2 benchmarks of mine.csv: decode x")
    assert "from Roofline profile: made for a test" in found.profile.source_detail


def test_a_time_that_was_not_measured_is_left_alone() -> None:
    only_tpot = [Measurement(load=row.load, ttft_s=None, tpot_s=row.tpot_s) for row in measurements(make_profile())]
    found = calibrate(make_profile(), only_tpot, SERVER)
    off = found.misses(found.after_s)
    assert off.tpot_median < 0.05
    assert np.isnan(off.ttft_median)


def test_a_correction_keeps_the_tables_in_order() -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        ratios, extra = rng.uniform(0.4, 3.5, 2), rng.uniform(0, 0.04, 3)
        change = Correction(
            decode_ratio=ratios[0],
            prefill_ratio=ratios[1],
            decode_overhead_s=extra[0],
            prefill_overhead_s=extra[1],
            front_end_s=extra[2],
        )
        check_profile(corrected(make_profile(), change, int(rng.integers(256, 9000))))


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (Load(clients=1, prompt_tokens=40_000, output_tokens=10), "40000 prompt tokens, the profile ends at 32768"),
        (Load(clients=1, prompt_tokens=30_000, output_tokens=9000), "39000 tokens of a request"),
    ],
)
def test_rows_beyond_the_tables_are_refused(load: Load, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        calibrate(make_profile(), [Measurement(load=load, ttft_s=1.0, tpot_s=0.1)], SERVER)
    with pytest.raises(InvalidInput, match="no measured row"):
        calibrate(make_profile(), [], SERVER)

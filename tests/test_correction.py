"""What running services teach about their profiles: found, bounded, cautious, forgotten."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.correction import (
    Belief,
    Learning,
    Observed,
    Phase,
    aged,
    corrected,
    factor,
    hold,
    learn,
    report,
    scaled,
)
from solvers.engine import EngineConfig, ProfileKey, check_profile
from solvers.engine.curves import decode_step_s, prefill_s
from solvers.errors import InvalidInput
from tests.profile_maker import make_profile

PROFILE = make_profile()
KEY, LEARNING = PROFILE.key, Learning()
HOUR_S = 3600.0


def seen(ratio: float, at_s: float, phase: Phase = Phase.DECODE, **changes: float) -> Observed:
    return Observed(
        key=KEY, phase=phase, observed=ratio * 0.02, predicted=0.02, as_of_s=at_s, requests=changes.get("requests", 100)
    )


def taught(ratios: list[float], phase: Phase = Phase.DECODE, every_s: float = 60.0) -> Belief:
    observations = [seen(ratio, every_s * (i + 1), phase) for i, ratio in enumerate(ratios)]
    return learn({}, observations, LEARNING)[KEY, phase]


def test_without_observations_nothing_is_corrected() -> None:
    assert factor(None, Phase.DECODE, 0.0, LEARNING).planned == 1.0
    assert corrected(PROFILE, {}, 0.0, LEARNING) is PROFILE


def test_a_steady_difference_is_found() -> None:
    found = factor(taught([1.3] * 200), Phase.DECODE, 200 * 60.0, LEARNING)
    assert found.likely == pytest.approx(1.3, rel=0.02)
    assert found.low < found.likely < found.high == found.planned


def test_a_lone_observation_moves_little_and_many_say_more() -> None:
    few, many = (factor(taught([1.5] * n), Phase.DECODE, n * 60.0, LEARNING) for n in (1, 50))
    assert 1.0 < few.likely < 1.15
    assert many.likely > 1.4
    assert many.high / many.low < few.high / few.low


def test_planning_is_cautious_for_times_watts_and_throughput() -> None:
    for phase in Phase:
        found = factor(taught([0.9, 1.1] * 10, phase), phase, 1200.0, LEARNING)
        cautious = found.low if phase is Phase.THROUGHPUT else found.high
        assert found.planned == cautious != found.likely


def test_the_planned_factor_is_exceeded_as_seldom_as_it_promises() -> None:
    """Oracle: draws from the prior itself, where the interval must hold at least what it claims."""
    rng, learning, held = np.random.default_rng(3), replace(LEARNING, repeats=1.0, half_life_s=1e12), 0
    for _ in range(2000):
        truth = rng.normal(0.0, learning.prior_spread / math.sqrt(learning.prior_observations))
        logs = rng.normal(truth, learning.prior_spread, 6)
        told = learn({}, [seen(math.exp(x), 60.0 * (i + 1)) for i, x in enumerate(logs)], learning)
        held += math.exp(truth) <= factor(told[KEY, Phase.DECODE], Phase.DECODE, 360.0, learning).planned
    sigma = math.sqrt(0.8 * 0.2 / 2000)
    assert abs(held / 2000 - learning.quantile_ratio) < 5 * sigma + 0.02  # a normal quantile for a nearly normal belief


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0, 1e4)), min_size=1, max_size=30))
def test_no_reading_bends_a_plan_beyond_its_bound(readings: list[tuple[float, float]]) -> None:
    observations = [seen(ratio, 60.0 * (i + 1), requests=n) for i, (ratio, n) in enumerate(readings)]
    belief = learn({}, observations, LEARNING)[KEY, Phase.DECODE]
    found = factor(belief, Phase.DECODE, 60.0 * len(readings), LEARNING)
    assert 0.5 <= found.low <= found.likely <= found.high <= 2.0
    check_profile(corrected(PROFILE, {(KEY, Phase.DECODE): belief}, 1e4, LEARNING))


def test_what_is_not_fed_is_forgotten_and_a_change_is_learnt() -> None:
    old = taught([1.4] * 100)
    later_s = 100 * 60.0
    assert aged(old, later_s + LEARNING.half_life_s, LEARNING).weight == pytest.approx(old.weight / 2)
    assert factor(old, Phase.DECODE, later_s + 30 * LEARNING.half_life_s, LEARNING).likely == pytest.approx(
        1.0, abs=1e-3
    )
    after = [seen(1.0, later_s + HOUR_S * (i + 1)) for i in range(48)]
    changed = learn({(KEY, Phase.DECODE): old}, after, LEARNING)[KEY, Phase.DECODE]
    assert factor(changed, Phase.DECODE, changed.as_of_s, LEARNING).likely < 1.03


def test_few_requests_count_little_and_none_count_nothing() -> None:
    few = learn({}, [seen(2.0, 60.0, requests=3)], LEARNING)[KEY, Phase.DECODE]
    none = learn({}, [seen(2.0, 60.0, requests=0)], LEARNING)[KEY, Phase.DECODE]
    assert few.weight == pytest.approx(0.1)
    assert none.weight == 0.0


def test_readings_without_requests_let_time_pass_and_no_more() -> None:
    old = taught([1.3] * 20)
    empty = [seen(2.0, old.as_of_s + HOUR_S * (i + 1), requests=0) for i in range(10)]
    after = learn({(KEY, Phase.DECODE): old}, empty, LEARNING)[KEY, Phase.DECODE]
    once = aged(old, old.as_of_s + 10 * HOUR_S, LEARNING)
    assert (after.weight, after.squares) == pytest.approx((once.weight, once.squares))
    assert (after.mean, after.as_of_s) == (once.mean, once.as_of_s)


def test_an_observation_counts_once() -> None:
    once = learn({}, [seen(1.2, 60.0)], LEARNING)
    assert learn(once, [seen(1.2, 60.0), seen(1.9, 30.0)], LEARNING) == once


def test_the_order_in_which_readings_come_does_not_matter() -> None:
    readings = [seen(1.0 + i / 10, 60.0 * (i + 1)) for i in range(5)]
    assert learn({}, readings, LEARNING) == learn({}, readings[::-1], LEARNING)


def test_a_corrected_profile_is_slower_and_says_so() -> None:
    beliefs = {
        (KEY, Phase.PREFILL): taught([1.2] * 500, Phase.PREFILL),
        (KEY, Phase.POWER): taught([0.8] * 500, Phase.POWER),
    }
    found = corrected(PROFILE, beliefs, 500 * 60.0, LEARNING)
    assert prefill_s(found, 1024) == pytest.approx(1.2 * prefill_s(PROFILE, 1024), rel=0.03)
    assert decode_step_s(found, 8, 1024) == decode_step_s(PROFILE, 8, 1024)
    assert found.prefill_watts_per_gpu == pytest.approx(0.8 * PROFILE.prefill_watts_per_gpu, rel=0.03)
    assert "corrected while running: prefill x1.2" in found.source_detail


def test_the_report_names_every_belief_once_in_order() -> None:
    other = ProfileKey(model="a/model", gpu_class="l40s", config=EngineConfig())
    beliefs = learn({}, [seen(1.2, 60.0), replace(seen(1.1, 60.0, Phase.POWER), key=other)], LEARNING)
    lines = report(beliefs, 60.0, LEARNING)
    assert [line.key.model for line in lines] == ["a/model", "some/model"]
    assert lines[1].text().startswith("some/model on h100-sxm/tp1 decode: x1.04 (")
    assert "planned with x" in lines[1].text()


@pytest.mark.parametrize("field", ["observed", "predicted"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_what_cannot_be_compared_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"decode {field}"):
        learn({}, [replace(seen(1.0, 60.0), **{field: value})], LEARNING)  # type: ignore[arg-type]


# ------------------------------------------------------------------ what planning is told


def test_planning_waits_for_enough_and_moves_in_steps() -> None:
    assert hold(None, taught([1.5] * 7), Phase.DECODE, 420.0, LEARNING) is None
    first = hold(None, taught([1.5] * 30), Phase.DECODE, 1800.0, LEARNING)
    assert first is not None
    assert 1.3 < first.factor < 1.6
    assert first.factor == round(first.factor, 2)
    assert hold(first, taught([1.5] * 31), Phase.DECODE, 1860.0, LEARNING) is first, "less than a step"
    moved = hold(first, taught([1.0] * 300), Phase.DECODE, 18000.0, LEARNING)
    assert moved is not None
    assert (moved.factor < 1.05, moved.since_s) == (True, 18000.0)


def test_a_profile_that_is_right_is_planned_as_it_is() -> None:
    held = None
    rng = np.random.default_rng(5)
    for count in range(20, 400, 20):
        belief = taught([float(math.exp(x)) for x in rng.normal(0.0, 0.03, count)])
        held = hold(held, belief, Phase.DECODE, count * 60.0, LEARNING)
        assert held is None or held.factor == 1.0


def test_what_is_hardly_fed_any_more_is_dropped() -> None:
    old = taught([1.5] * 30)
    held = hold(None, old, Phase.DECODE, 1800.0, LEARNING)
    assert held is not None
    assert hold(held, old, Phase.DECODE, 1800.0 + LEARNING.half_life_s, LEARNING) is not None
    assert hold(held, old, Phase.DECODE, 1800.0 + 4 * LEARNING.half_life_s, LEARNING) is None


def test_time_lost_between_the_phases_slows_both_and_time_won_none() -> None:
    lost = scaled(PROFILE, {Phase.THROUGHPUT: 0.8})
    assert prefill_s(lost, 1024) == pytest.approx(prefill_s(PROFILE, 1024) / 0.8)
    assert decode_step_s(lost, 8, 1024) == pytest.approx(decode_step_s(PROFILE, 8, 1024) / 0.8)
    won = scaled(PROFILE, {Phase.THROUGHPUT: 1.3})
    assert won.prefill_s == PROFILE.prefill_s
    assert scaled(PROFILE, {}) is PROFILE

"""Look-ups in the tables of a profile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.engine import Role, check_profile
from solvers.engine.curves import (
    capped,
    chunks_s,
    decode_speed_ratio,
    decode_step_s,
    decode_steps_s,
    decode_watts,
    gpu_watts,
    prefill_s,
    prefill_speed_ratio,
)
from solvers.errors import OutOfRange
from tests.profile_maker import BATCHES, CONTEXTS, PROMPTS, make_profile

PROFILE = make_profile()
BENT = make_profile(prefill_s=(0.01, 0.02, 0.5, 9.0))
CAPS = (300.0, 500.0, 700.0)
CAPPED = make_profile(cap_watts_per_gpu=CAPS, prefill_speed_ratio=(0.6, 0.85, 1.0), decode_speed_ratio=(0.9, 1.0, 1.0))
prompts = st.integers(1, PROMPTS[-1])
batches = st.floats(1.0, BATCHES[-1])
contexts = st.floats(1.0, CONTEXTS[-1])


def test_look_ups_at_the_knots_are_the_measurements() -> None:
    assert [prefill_s(BENT, tokens) for tokens in PROMPTS] == pytest.approx(BENT.prefill_s, rel=1e-12)
    table = [[decode_step_s(PROFILE, batch, context) for context in CONTEXTS] for batch in BATCHES]
    assert np.allclose(table, PROFILE.decode_step_s, rtol=1e-12)


@given(prompts)
def test_between_the_knots_a_curve_is_linear(tokens: int) -> None:
    expected = float(np.interp(tokens, PROMPTS, BENT.prefill_s))  # numpy as the oracle; flat below the first knot
    assert prefill_s(BENT, tokens) == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, BATCHES[-1]), st.integers(256, CONTEXTS[-1]))
def test_a_decode_step_is_bilinear_between_the_knots(batch: int, context: int) -> None:
    # The table was made from a function that is bilinear everywhere, so interpolation must return it.
    assert decode_step_s(PROFILE, batch, context) == pytest.approx(0.006 + 20e-6 * batch + 60e-9 * batch * context)


@given(batches, contexts, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_smaller_batch_or_context_is_never_slower(batch: float, context: float, less: float, shorter: float) -> None:
    assert decode_step_s(PROFILE, batch * less, context * shorter) <= decode_step_s(PROFILE, batch, context) + 1e-15


def test_below_the_first_knot_the_first_value_holds() -> None:
    assert prefill_s(PROFILE, 1) == PROFILE.prefill_s[0]
    assert decode_step_s(PROFILE, 1, 10) == PROFILE.decode_step_s[0][0]


@pytest.mark.parametrize(
    ("axis", "look_up"),
    [
        ("prefill_tokens", lambda: prefill_s(PROFILE, PROMPTS[-1] + 1)),
        ("decode_batches", lambda: decode_step_s(PROFILE, BATCHES[-1] + 1, 256)),
        ("decode_contexts", lambda: decode_step_s(PROFILE, 1, CONTEXTS[-1] + 1)),
    ],
)
def test_above_the_table_nothing_is_invented(axis: str, look_up: object) -> None:
    assert callable(look_up)
    with pytest.raises(OutOfRange, match="above the last measured point") as beyond:
        look_up()
    assert beyond.value.field == axis


@given(prompts, st.sampled_from([256, 512, 2048, 8192]))
def test_the_chunks_of_a_prompt_sum_to_its_prefill(tokens: int, chunk: int) -> None:
    profile = make_profile(prefill_chunk_tokens=chunk, prefill_s=BENT.prefill_s)
    chunks = chunks_s(profile, tokens)
    assert len(chunks) == -(-tokens // chunk)
    assert min(chunks) >= 0
    assert sum(chunks) == pytest.approx(prefill_s(profile, tokens))


def test_a_later_chunk_does_not_pay_the_start_of_the_curve_again() -> None:
    first, *later = chunks_s(replace(PROFILE, prefill_chunk_tokens=512), 1536)
    assert first == pytest.approx(0.004 + 512 * 25e-6)
    assert later == pytest.approx([512 * 25e-6] * 2)


def test_many_look_ups_equal_one_by_one() -> None:
    rng = np.random.default_rng(5)
    batch, context = rng.uniform(1, 256, 50), rng.uniform(1, 32768, 50)
    one_by_one = [decode_step_s(PROFILE, b, c) for b, c in zip(batch, context, strict=True)]
    assert decode_steps_s(PROFILE, batch, context).tolist() == one_by_one


def test_a_table_with_one_knot_is_flat() -> None:
    profile = make_profile(decode_batches=(8,), decode_contexts=(512,), decode_step_s=((0.01,),))
    assert decode_step_s(profile, 3, 100) == 0.01


@pytest.mark.parametrize(
    ("role", "batch", "watts"),
    [
        (Role.PREFILL, 0, 75.0),
        (Role.PREFILL, 3, 500.0),
        (Role.DECODE, 0, 75.0),
        (Role.DECODE, 1, 250.0),
        (Role.DECODE, 36, 315.0),
        (Role.MIXED, 1000, 380.0),
    ],
)
def test_watts_follow_the_role_and_the_batch(role: Role, batch: float, watts: float) -> None:
    assert gpu_watts(PROFILE, role, batch) == pytest.approx(watts)


def test_decode_watts_of_many_batches_equal_one_by_one() -> None:
    batch = np.array([0.0, 0.5, 1.0, 30.0, 256.0])
    assert decode_watts(PROFILE, batch).tolist() == [gpu_watts(PROFILE, Role.DECODE, b) for b in batch.tolist()]


@given(st.floats(CAPS[0], 900.0))
def test_speed_under_a_cap_is_the_chord_between_the_known_caps(cap: float) -> None:
    assert prefill_speed_ratio(CAPPED, cap) == pytest.approx(float(np.interp(cap, CAPS, (0.6, 0.85, 1.0))))
    assert decode_speed_ratio(CAPPED, cap) == pytest.approx(float(np.interp(cap, CAPS, (0.9, 1.0, 1.0))))


@given(prompts, batches, st.sampled_from([300.0, 420.0, 700.0]))
def test_a_capped_profile_is_the_same_replica_slowed(tokens: int, batch: float, cap: float) -> None:
    slow = capped(CAPPED, cap)
    check_profile(slow)
    assert prefill_s(slow, tokens) == pytest.approx(prefill_s(CAPPED, tokens, cap))
    assert prefill_s(slow, tokens) == pytest.approx(prefill_s(CAPPED, tokens) / prefill_speed_ratio(CAPPED, cap))
    assert decode_step_s(slow, batch, 4096) == pytest.approx(decode_step_s(CAPPED, batch, 4096, cap))
    assert gpu_watts(slow, Role.PREFILL, 1) == min(cap, 500.0)
    assert gpu_watts(slow, Role.DECODE, batch) == pytest.approx(
        min(cap, gpu_watts(CAPPED, Role.DECODE, batch)), rel=0.1
    )


def test_without_a_cap_nothing_slows() -> None:
    assert capped(PROFILE, None) is PROFILE
    assert prefill_speed_ratio(PROFILE, None) == decode_speed_ratio(PROFILE, None) == 1.0


@pytest.mark.parametrize("profile", [PROFILE, CAPPED])
def test_a_cap_of_unknown_speed_is_refused(profile: object) -> None:
    with pytest.raises(OutOfRange, match="299 W is below the"):
        prefill_speed_ratio(profile, 299.0)  # type: ignore[arg-type]

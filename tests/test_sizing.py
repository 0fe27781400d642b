"""What one replica carries: reasons, monotonicity, limits, and attainment in the simulation at the sized load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.engine import EngineProfile, Role
from solvers.errors import InvalidInput
from solvers.simulate import Fleet, ServiceResult, SimRequest, itl_limits, replay
from solvers.sizing import Capacity, Unfit, replica_capacity
from solvers.workload import SizeBucket, Slo, SloMetric
from tests.profile_maker import make_profile

PROFILE = make_profile()
SLOW = make_profile(
    prefill_s=tuple(5 * time for time in PROFILE.prefill_s),
    decode_step_s=tuple(tuple(3 * step for step in row) for row in PROFILE.decode_step_s),
    kv_capacity_tokens=150_000,
    prefill_chunk_tokens=256,
)
MIX = (
    SizeBucket(prompt_tokens=250, output_tokens=110, weight_ratio=0.38),
    SizeBucket(prompt_tokens=1000, output_tokens=180, weight_ratio=0.32),
    SizeBucket(prompt_tokens=1700, output_tokens=290, weight_ratio=0.22),
    SizeBucket(prompt_tokens=3900, output_tokens=330, weight_ratio=0.08),
)
ONE = (SizeBucket(prompt_tokens=1024, output_tokens=200, weight_ratio=1.0),)


def ttft(limit_s: float, percentile_ratio: float = 0.95) -> Slo:
    return Slo(metric=SloMetric.TTFT, percentile_ratio=percentile_ratio, limit_s=limit_s)


def itl(limit_s: float, percentile_ratio: float = 0.95) -> Slo:
    return Slo(metric=SloMetric.ITL, percentile_ratio=percentile_ratio, limit_s=limit_s)


def carried(
    profile: EngineProfile, role: Role, mix: Sequence[SizeBucket], slos: Sequence[Slo], pool_replicas: int = 1
) -> Capacity:
    found = replica_capacity(profile, role, mix, slos, pool_replicas=pool_replicas)
    assert isinstance(found, Capacity), found
    return found


def refused(profile: EngineProfile, role: Role, mix: Sequence[SizeBucket], slos: Sequence[Slo]) -> str:
    found = replica_capacity(profile, role, mix, slos, pool_replicas=4)
    assert isinstance(found, Unfit), found
    return found.reason


# --- closed forms -----------------------------------------------------------------------------------------------


def test_without_slos_prefill_carries_nine_tenths_of_its_saturation() -> None:
    service_s = 0.004 + 25e-6 * 1024
    found = carried(PROFILE, Role.PREFILL, ONE, ())
    assert found.requests_per_s == pytest.approx(0.9 / service_s)
    assert found.utilisation_ratio == 0.9
    assert found.gpu_watts == pytest.approx(0.9 * 500 + 0.1 * 75)


def test_without_slos_decode_carries_nine_tenths_of_its_full_batch() -> None:
    largest = 256  # the table ends before the KV cache is full: 0.9 x 400,000 tokens / 1,224
    step_s = 0.006 + 20e-6 * largest + 60e-9 * largest * (1024 + 100)
    found = carried(PROFILE, Role.DECODE, ONE, ())
    assert found.requests_per_s == pytest.approx(0.9 * largest / (200 * step_s), rel=1e-3)


def test_little_room_for_keys_and_values_bounds_the_batch() -> None:
    small = replace(PROFILE, kv_capacity_tokens=13_600)  # 0.9 x 13,600 / 1,224 = 10 sequences
    step_s = 0.006 + 20e-6 * 10 + 60e-9 * 10 * (1024 + 100)
    found = carried(small, Role.DECODE, ONE, ())
    assert found.requests_per_s < 0.9 * 10 / (200 * step_s)  # less: waiting for room must be rare
    assert found.requests_per_s > 0.4 * 10 / (200 * step_s)


def test_a_deterministic_prompt_is_an_m_d_1_queue() -> None:
    """The load at which half of the allowed 10 % wait longer than the slack, by the stated formula."""
    service_s = 0.004 + 25e-6 * 1024
    transfer_s = 1024 * 131072 / 35e9
    found = carried(PROFILE, Role.PREFILL, ONE, (ttft(0.2, 0.9), itl(0.02)))
    rho = found.requests_per_s * service_s
    transfer_s /= 1 - found.requests_per_s * transfer_s
    slack = 0.2 - service_s - transfer_s - 1.5 * 0.02
    assert rho * math.exp(-2 * slack * (1 - rho) / service_s) == pytest.approx(0.05, rel=0.01)


# --- reasons ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "slos", "words"),
    [
        (Role.PREFILL, (ttft(0.05),), "prefill of 4,000 tokens takes 104 ms on h100-sxm/tp1"),
        (Role.MIXED, (ttft(0.05),), "prefill of 4,000 tokens takes 104 ms"),
        (Role.DECODE, (itl(0.005),), "one decode step of a single sequence at 4,100 tokens of context takes 6.3 ms"),
        (Role.MIXED, (itl(0.005),), "SLO 5.0 ms at p95"),
    ],
)
def test_an_slo_out_of_reach_is_refused_with_the_numbers(role: Role, slos: tuple[Slo, ...], words: str) -> None:
    mix = (SizeBucket(prompt_tokens=4000, output_tokens=200, weight_ratio=1.0),)
    assert words in refused(PROFILE, role, mix, slos)


@pytest.mark.parametrize(
    ("role", "tokens"), [(Role.PREFILL, "30,000"), (Role.DECODE, "31,000"), (Role.MIXED, "30,000")]
)
def test_a_bucket_that_does_not_fit_makes_the_replica_unfit(role: Role, tokens: str) -> None:
    small = replace(PROFILE, kv_capacity_tokens=20_000)
    mix = (*MIX, SizeBucket(prompt_tokens=30_000, output_tokens=1000, weight_ratio=0.0001))
    reason = refused(small, role, mix, ())
    assert f"{tokens} tokens does not fit the 20,000 tokens of KV cache on h100-sxm/tp1" in reason


def test_a_prompt_beyond_the_table_makes_the_replica_unfit() -> None:
    mix = (SizeBucket(prompt_tokens=40_000, output_tokens=10, weight_ratio=1.0),)
    words = refused(PROFILE, Role.PREFILL, mix, ())
    assert words.startswith("a prompt of 40,000 tokens: the profile of ")
    assert "was measured up to 32,768; measure longer ones" in words
    assert "40,005 on average while they decode: the profile of " in refused(PROFILE, Role.DECODE, mix, ())


def test_a_rare_bucket_that_is_always_late_uses_up_the_allowed_misses() -> None:
    rare = (*ONE, SizeBucket(prompt_tokens=20_000, output_tokens=200, weight_ratio=0.02))
    common = (*ONE, SizeBucket(prompt_tokens=20_000, output_tokens=200, weight_ratio=0.2))
    assert carried(PROFILE, Role.PREFILL, rare, (ttft(0.3), itl(0.05))).requests_per_s > 1.0
    assert "prefill of 20,000 tokens" in refused(PROFILE, Role.PREFILL, common, (ttft(0.3), itl(0.05)))


@pytest.mark.parametrize("mix", [(), (SizeBucket(prompt_tokens=1, output_tokens=1, weight_ratio=0.0),)])
def test_a_mix_of_nothing_is_bad_input(mix: tuple[SizeBucket, ...]) -> None:
    with pytest.raises(InvalidInput, match="no weight"):
        replica_capacity(PROFILE, Role.MIXED, mix, (), pool_replicas=1)


# --- monotonicity -----------------------------------------------------------------------------------------------

roles = st.sampled_from(list(Role))
mixes = st.lists(
    st.builds(
        SizeBucket,
        prompt_tokens=st.integers(20, 6000),
        output_tokens=st.integers(1, 800),
        weight_ratio=st.floats(0.05, 1.0),
    ),
    min_size=1,
    max_size=4,
).map(tuple)


def rate(profile: EngineProfile, role: Role, mix: Sequence[SizeBucket], slos: Sequence[Slo], pool: int) -> float:
    found = replica_capacity(profile, role, mix, slos, pool_replicas=pool)
    return found.requests_per_s if isinstance(found, Capacity) else 0.0


@settings(deadline=None, max_examples=40)
@given(roles, mixes, st.floats(0.05, 3.0), st.floats(0.008, 0.2), st.sampled_from([0.9, 0.95, 0.99]))
def test_looser_slos_never_carry_less(
    role: Role, mix: tuple[SizeBucket, ...], first_s: float, gap_s: float, percentile: float
) -> None:
    tight = rate(PROFILE, role, mix, (ttft(first_s, percentile), itl(gap_s, percentile)), 3)
    # A looser ITL lets the first token come later elsewhere, so the TTFT of a prefill pool is loosened with it.
    slack = 1.5 * 0.5 * gap_s
    loose = rate(PROFILE, role, mix, (ttft(1.5 * first_s + slack, 0.9), itl(1.5 * gap_s, 0.9)), 3)
    assert loose >= tight * (1 - 1e-4)
    assert rate(PROFILE, role, mix, (), 3) >= tight * (1 - 1e-4)


@settings(deadline=None, max_examples=40)
@given(roles, mixes, st.sampled_from([(1, 2), (2, 3), (3, 8), (8, 64), (64, 500)]))
def test_a_replica_carries_no_less_in_a_larger_pool(
    role: Role, mix: tuple[SizeBucket, ...], pools: tuple[int, int]
) -> None:
    slos = (ttft(0.6), itl(0.03))
    small, large = (rate(PROFILE, role, mix, slos, pool) for pool in pools)
    fewer_shared_steps = 0.1 if role is Role.MIXED else 1e-3
    assert large >= small * (1 - fewer_shared_steps)


@settings(deadline=None, max_examples=40)
@given(roles, mixes)
def test_load_and_watts_stay_in_the_envelope(role: Role, mix: tuple[SizeBucket, ...]) -> None:
    slos = (ttft(1.0), itl(0.04))
    found = replica_capacity(PROFILE, role, mix, slos, pool_replicas=4)
    if isinstance(found, Unfit):
        assert "h100-sxm/tp1" in found.reason
        return
    assert 0 < found.utilisation_ratio <= 0.9
    assert 75.0 <= found.gpu_watts <= 500.0


def test_equal_arguments_give_the_same_value() -> None:
    slos = [ttft(0.5), itl(0.05)]
    first = replica_capacity(PROFILE, Role.MIXED, list(MIX), slos, pool_replicas=2)
    again = replica_capacity(make_profile(), Role.MIXED, MIX, tuple(slos), pool_replicas=2)
    assert first == again


# --- the simulation as the judge --------------------------------------------------------------------------------

MANY = 16  # replicas of the other role, so that it is no bottleneck
REQUESTS = 5000
NOISE = 0.01  # half of the allowed misses are left to the formulas; 5,000 correlated requests move p95 by about this


def simulate(pools: Sequence[tuple[Role, EngineProfile, int]], rate_per_s: float, slos: Sequence[Slo]) -> ServiceResult:
    rng = np.random.default_rng(11)
    fleet = Fleet(itl_limits_s=itl_limits({"s": slos}))
    for role, profile, count in pools:
        for index in range(count):
            fleet.add_replica(f"{role}-{index}", "s", role, profile)
    arrivals = np.cumsum(rng.exponential(1 / rate_per_s, REQUESTS)).tolist()
    kinds = rng.choice(len(MIX), REQUESTS, p=[bucket.weight_ratio for bucket in MIX]).tolist()
    requests = (
        SimRequest(
            name=str(index),
            service="s",
            arrival_s=arrival,
            prompt_tokens=MIX[kind].prompt_tokens,
            output_tokens=MIX[kind].output_tokens,
        )
        for index, (arrival, kind) in enumerate(zip(arrivals, kinds, strict=True))
    )
    return replay(fleet, requests, slos={"s": slos}).services["s"]


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("profile", [PROFILE, SLOW], ids=["fast", "slow"])
def test_a_sized_prefill_pool_keeps_its_ttft_in_the_simulation(profile: EngineProfile, replicas: int) -> None:
    slos = (ttft(0.9), itl(0.05))
    found = carried(profile, Role.PREFILL, MIX, slos, replicas)
    pools = [(Role.PREFILL, profile, replicas), (Role.DECODE, profile, MANY)]
    served = simulate(pools, found.requests_per_s * replicas, slos)
    assert served.attained[0].within_ratio >= 0.95 - NOISE


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize(("profile", "limit_s"), [(PROFILE, 0.018), (SLOW, 0.04)], ids=["fast", "slow"])
def test_a_sized_decode_pool_keeps_its_itl_in_the_simulation(
    profile: EngineProfile, limit_s: float, replicas: int
) -> None:
    slos = (itl(limit_s),)
    found = carried(profile, Role.DECODE, MIX, slos, replicas)
    assert found.utilisation_ratio < 0.9  # the SLO binds, not stability
    pools = [(Role.PREFILL, PROFILE, MANY), (Role.DECODE, profile, replicas)]
    served = simulate(pools, found.requests_per_s * replicas, slos)
    assert served.attained[0].within_ratio >= 0.95 - NOISE


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize(
    ("profile", "slos"),
    [(PROFILE, (ttft(0.4), itl(0.03))), (SLOW, (ttft(1.5), itl(0.08))), (SLOW, (ttft(1.5), itl(0.05)))],
    ids=["fast", "slow", "slow-tight"],
)
def test_a_sized_mixed_pool_keeps_both_in_the_simulation(
    profile: EngineProfile, slos: tuple[Slo, ...], replicas: int
) -> None:
    found = carried(profile, Role.MIXED, MIX, slos, replicas)
    served = simulate([(Role.MIXED, profile, replicas)], found.requests_per_s * replicas, slos)
    assert [one.within_ratio >= 0.95 - NOISE for one in served.attained] == [True, True], served.attained


def test_the_simulation_refutes_a_load_well_above_the_sized_one() -> None:
    """The sizing is not merely timid: a load well above it breaks the SLO."""
    slos = (ttft(0.9), itl(0.05))
    found = carried(SLOW, Role.PREFILL, MIX, slos, 1)
    pools = [(Role.PREFILL, SLOW, 1), (Role.DECODE, SLOW, MANY)]
    assert simulate(pools, 1.6 * found.requests_per_s, slos).attained[0].within_ratio < 0.95

"""What a profile predicts for the load that a replica had, against the simulation and against hand arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.traces import TraceRequest
from solvers.correction import Phase
from solvers.engine import Role
from solvers.engine.curves import decode_step_s, gpu_watts, prefill_s
from solvers.operating import OperatingPoint, Residual, merged, residuals
from solvers.workload import SizeBucket
from tests.simcluster.twin_fleet import TwinFleet
from tests.simcluster.twin_metrics import engine_metrics
from tests.simcluster.twin_traffic import Traffic
from tests.twin_world import SERVICE, parse, pod, profile, readings_of, run, view

MIX = (SizeBucket(prompt_tokens=500, output_tokens=50, weight_ratio=1.0),)
PROFILE = profile()


def point(role: Role = Role.DECODE, **changes: float | None) -> OperatingPoint:
    made = OperatingPoint(
        role=role, mix=MIX, running=4.0, waiting=0.0, prompts_per_s=2.0, output_tokens_per_s=100.0, window_s=60.0
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def by_phase(found: tuple[Residual, ...]) -> dict[Phase, Residual]:
    return {row.phase: row for row in found}


def test_a_decode_gap_is_compared_with_the_step_of_the_batch_that_a_token_meets() -> None:
    found = by_phase(residuals(PROFILE, point(itl_s=0.02)))
    assert set(found) == {Phase.DECODE}
    assert found[Phase.DECODE].predicted == decode_step_s(PROFILE, 5.0, 525.0)
    assert found[Phase.DECODE].requests == 100.0 * 60.0 / 50.0


def test_prefill_counts_without_waiting_where_the_engine_says_so() -> None:
    alone = prefill_s(PROFILE, 500)
    said = by_phase(residuals(PROFILE, point(Role.PREFILL, prefill_s=0.05, ttft_s=9.0)))[Phase.PREFILL]
    assert (said.observed, said.predicted, said.requests) == (0.05, alone, 120.0)
    waited = by_phase(residuals(PROFILE, point(Role.PREFILL, ttft_s=0.06)))[Phase.PREFILL]
    assert waited.predicted == pytest.approx(alone + 2.0 * alone**2 / (2.0 * (1.0 - 2.0 * alone)))


def test_first_tokens_of_a_loaded_engine_say_nothing_of_its_speed() -> None:
    busy = 0.9 / prefill_s(PROFILE, 500)
    assert residuals(PROFILE, point(Role.PREFILL, ttft_s=0.5, prompts_per_s=busy)) == ()


def test_prompts_of_another_size_are_predicted_at_their_size() -> None:
    longer = by_phase(residuals(PROFILE, point(Role.PREFILL, prefill_s=0.05, prompt_tokens=1000.0)))[Phase.PREFILL]
    assert longer.predicted == prefill_s(PROFILE, 1000)


def test_what_lies_outside_the_tables_is_not_compared() -> None:
    assert residuals(PROFILE, point(Role.PREFILL, prefill_s=1.0, prompt_tokens=1e7)) == ()
    assert residuals(PROFILE, point(itl_s=0.02, running=1e6)) == ()


def test_too_few_sequences_are_not_compared() -> None:
    assert residuals(PROFILE, point(itl_s=0.02, running=0.4, gpu_watts=300.0)) == ()


def test_a_slower_mixed_engine_is_found_whichever_phase_fills_its_gaps() -> None:
    """Oracle: if everything takes k times as long, a gap is k (step + prompt work in it)."""
    step = decode_step_s(PROFILE, 5.0, 525.0)
    busy = 2.0 * prefill_s(PROFILE, 500)
    for k in (0.8, 1.0, 1.5):
        gap = k * step / (1.0 - k * busy)
        found = by_phase(residuals(PROFILE, point(Role.MIXED, itl_s=gap)))
        assert found[Phase.DECODE].observed / found[Phase.DECODE].predicted == pytest.approx(k)
        assert found[Phase.PREFILL].observed / found[Phase.PREFILL].predicted == pytest.approx(k)
        share = found[Phase.DECODE].requests + found[Phase.PREFILL].requests
        assert share == pytest.approx(120.0)


def test_throughput_speaks_only_while_requests_wait() -> None:
    saturated = by_phase(residuals(PROFILE, point(itl_s=0.02, waiting=6.0)))[Phase.THROUGHPUT]
    assert saturated.observed / saturated.predicted == pytest.approx(100.0 * 0.02 / 4.0)
    assert Phase.THROUGHPUT not in by_phase(residuals(PROFILE, point(itl_s=0.02)))


def test_watts_are_those_of_the_shares_of_time() -> None:
    found = by_phase(residuals(PROFILE, point(Role.PREFILL, prefill_s=0.1, gpu_watts=300.0)))[Phase.POWER]
    idle, most = PROFILE.idle_watts_per_gpu, PROFILE.prefill_watts_per_gpu
    assert found.predicted == pytest.approx(idle + 0.2 * (most - idle))


@pytest.mark.parametrize(("role", "prompting"), [(Role.DECODE, 0.0), (Role.MIXED, 0.5)])
def test_an_engine_that_is_never_empty_draws_what_decode_and_its_prompts_do(role: Role, prompting: float) -> None:
    rate = 0.5 / prefill_s(PROFILE, 500)
    busy = point(role, running=64.0, itl_s=0.02, gpu_watts=300.0, prompts_per_s=rate)
    found = by_phase(residuals(PROFILE, busy))[Phase.POWER]
    decode = gpu_watts(PROFILE, Role.DECODE, 64.0)
    wanted = prompting * PROFILE.prefill_watts_per_gpu + (1.0 - prompting) * decode
    assert found.predicted == pytest.approx(wanted, rel=1e-6)


def test_replicas_of_a_pool_speak_with_one_voice_by_their_requests() -> None:
    rows = (
        Residual(phase=Phase.DECODE, observed=0.02, predicted=0.01, requests=30.0),
        Residual(phase=Phase.DECODE, observed=0.04, predicted=0.03, requests=10.0),
    )
    (seen,) = merged(rows, PROFILE, 7.0)
    assert seen.observed == pytest.approx(0.025)
    assert seen.predicted == pytest.approx(0.015)
    assert (seen.requests, seen.as_of_s, seen.key) == (40.0, 7.0, PROFILE.key)


# ------------------------------------------------------------------ against the twin's own pages


@pytest.mark.parametrize("slowness", [1.0, 1.2, 0.85])
def test_the_twins_engines_are_found_as_slow_as_they_are(slowness: float) -> None:
    trace = tuple(TraceRequest(arrival_s=i / 6.0, prompt_tokens=500, output_tokens=50) for i in range(3000))
    twin = TwinFleet([Traffic(SERVICE, trace)], slowness_ratio=slowness)
    twin.apply(view(pod("p", "prefill"), pod("d", "decode")))
    run(twin, 60.0)
    before = parse(engine_metrics(twin))
    run(twin, 360.0)
    told = readings_of(twin, before, 300.0)
    found: dict[Phase, float] = {}
    for name, role in (("p", Role.PREFILL), ("d", Role.DECODE)):
        engine = told[f"demo/{name}"]
        at = replace(
            point(role),
            running=engine.running,
            prompts_per_s=engine.prompts_per_s,
            output_tokens_per_s=engine.output_tokens_per_s,
            prefill_s=engine.prefill_s,
            itl_s=engine.itl_s,
        )
        found |= {row.phase: row.observed / row.predicted for row in residuals(PROFILE, at)}
    assert found[Phase.PREFILL] == pytest.approx(slowness, rel=0.03)
    assert found[Phase.DECODE] == pytest.approx(slowness, rel=0.06)  # regular arrivals: a token meets m, not m + 1

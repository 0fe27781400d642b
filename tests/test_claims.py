"""The comparison of serving ways measures what it says, on a small trace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.traces_made import synthetic_trace
from controller.traces_spec import workload_of
from solvers.engine import EngineProfile, Role
from solvers.workload import SloMetric
from tests.bench_claims import CHUNK_TOKENS, WHOLE_TOKENS, Limits, Row, goodput_per_gpu, kept_ratio, mixed, split
from tests.bench_formulas import load_of, pools_to_try
from tests.fleets import profile

TRACE = synthetic_trace(1, 60.0)
GENEROUS = Limits(ttft_s=2.0, tpot_s=0.1)


@pytest.fixture(scope="module")
def engines() -> dict[str, EngineProfile]:
    return {name: profile("llama-8b", name, 1, 8.0) for name in ("h100-sxm", "l40s")}


def test_goodput_falls_with_the_limits_and_grows_with_the_gpu(engines: dict[str, EngineProfile]) -> None:
    def goodput(name: str, limits: Limits) -> float:
        return goodput_per_gpu(mixed((name,) * 8, engines, 512), TRACE, limits, compiled=False)

    strict = Limits(ttft_s=0.3, tpot_s=0.02)
    assert goodput("h100-sxm", GENEROUS) > goodput("h100-sxm", strict) > 0
    assert goodput("h100-sxm", GENEROUS) > goodput("l40s", GENEROUS)
    assert goodput("h100-sxm", Limits(ttft_s=1e-4, tpot_s=1e-4)) == 0.0


def test_at_the_goodput_enough_requests_are_kept_and_not_above(engines: dict[str, EngineProfile]) -> None:
    replicas = split(("h100-sxm",) * 8, engines, 3)
    rate = 8 * goodput_per_gpu(replicas, TRACE, GENEROUS, compiled=False)
    own, workload = len(TRACE) / TRACE[-1].arrival_s, workload_of({"s": TRACE})

    def kept(at: float) -> float:
        squeezed = replace(workload, arrival_s=workload.arrival_s * (own / at))
        return kept_ratio(replicas, squeezed, GENEROUS, compiled=False)

    assert kept(rate) >= 0.9 > kept(1.1 * rate)


def test_ways_use_every_gpu_once(engines: dict[str, EngineProfile]) -> None:
    names = ("h100-sxm",) * 4 + ("l40s",) * 4
    apart = split(names, engines, 3)
    assert [role for role, _ in apart].count(Role.PREFILL) == 3
    assert [e.key.gpu_class for _, e in apart] == list(names)
    chunks = {
        tokens: mixed(names, engines, tokens)[0][1].prefill_chunk_tokens for tokens in (CHUNK_TOKENS, WHOLE_TOKENS)
    }
    assert chunks == {512: 512, 8192: 8192}


def test_the_winner_is_named_only_when_it_is_clear() -> None:
    row = Row(
        model="m", trace="t", gpus="g", strictness="s", ttft_limit_s=1, tpot_limit_s=1, colocated=1.0, chunked=1.01,
        disaggregated=0.5, split="2:6",
    )  # fmt: skip
    assert row.winner == "even"
    assert replace(row, chunked=1.2).winner == "chunked"


def test_formulas_predict_more_the_fuller_a_pool_is() -> None:
    for pool in pools_to_try([2], 0.0):
        predicted = [[pool.predicted_s(metric, load) for load in (0.3, 0.6, 0.8)] for metric in _metrics(pool.role)]
        assert all(values == sorted(values) for values in predicted)
        rate = load_of(pool, 0.5, 500, 1).requests / load_of(pool, 0.5, 500, 1).span_s
        assert rate == pytest.approx(pool.replicas * pool.saturation_per_s * 0.5, rel=0.25)


def _metrics(role: Role) -> list[SloMetric]:
    return {
        Role.PREFILL: [SloMetric.TTFT], Role.DECODE: [SloMetric.ITL], Role.MIXED: [SloMetric.TTFT, SloMetric.ITL],
    }[role]  # fmt: skip

"""Sizing counts what a prefix cache finds: capacities, chunks, traces with blocks, and the simulation as the judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.trace_demand import CACHE_REPLICAS, cached_tokens, trace_demand
from controller.traces import BLOCK_TOKENS, TraceRequest
from solvers.buckets import cut_sizes
from solvers.engine import EngineProfile, Role
from solvers.engine.curves import chunks_s, prefill_s
from solvers.engine.prefill import prefill_together_s, prompt_chunks_s, prompt_s
from solvers.engine.variants import with_prefix_hits
from solvers.errors import InvalidInput
from solvers.refute import poisson_load
from solvers.sizing import Capacity, replica_capacity
from solvers.workload import SizeBucket
from tests.bench_formulas import cached_mix, ignored_s, pools_to_try, simulated, with_prefixes
from tests.fleets import CHAT, demand, profile, service
from tests.replay_world import small_case

CURVES = profile("llama-8b", "h100-sxm", 1, 8.0)
WIDE = with_prefixes(CURVES)
SLOS = service("x", "llama-8b").slos


def carried(curves: EngineProfile, role: Role, mix: tuple[SizeBucket, ...]) -> float:
    found = replica_capacity(curves, role, mix, SLOS, pool_replicas=4)
    assert isinstance(found, Capacity), found
    return found.requests_per_s


@pytest.mark.parametrize("curves", [CURVES, WIDE], ids=["derived", "tabulated"])
@pytest.mark.parametrize("role", [Role.PREFILL, Role.MIXED])
def test_what_is_cached_is_not_computed_again(role: Role, curves: EngineProfile) -> None:
    rates = [carried(curves, role, cached_mix(ratio)) for ratio in (0.0, 0.3, 0.6)]
    assert rates == sorted(rates)
    assert rates[0] < rates[2]
    assert carried(curves, Role.DECODE, cached_mix(0.6)) == carried(curves, Role.DECODE, CHAT)


@given(st.integers(1, 8000), st.floats(0, 1.2), st.sampled_from([CURVES, WIDE]))
def test_chunks_add_up_to_the_prompt_behind_its_prefix(prompt: int, ratio: float, curves: EngineProfile) -> None:
    cached = int(ratio * prompt)
    chunks = prompt_chunks_s(curves, prompt, cached)
    assert sum(chunks) == pytest.approx(prompt_s(curves, prompt, cached))
    assert min(chunks) > 0 or prompt < curves.prefill_tokens[0]
    assert prompt_s(curves, prompt, cached) <= prefill_s(curves, prompt) * 1.3
    assert prompt_chunks_s(curves, prompt) == chunks_s(curves, prompt)


def test_more_than_was_measured_counts_as_what_was_measured() -> None:
    assert prompt_s(WIDE, 8000, 6000) == prefill_together_s(WIDE, 8000 - 4096, cached_tokens=4096)


def test_a_profile_made_for_prefix_hits_does_not_count_them_twice() -> None:
    made = with_prefix_hits(WIDE, 0.5)
    assert carried(made, Role.PREFILL, cached_mix(0.5)) == carried(made, Role.PREFILL, CHAT)


@pytest.mark.parametrize("load", [0.5, 0.85])
def test_the_simulation_agrees_with_prefill_behind_prefixes(load: float) -> None:
    """Within the run's own half-width and the tenth by which the queueing formula is off without prefixes."""
    for pool in (p for p in pools_to_try([4], 0.5) if p.role is Role.PREFILL):
        ttft = simulated(pool, load, 3000, 1).services["default/chat"].slos[0]
        said = pool.predicted_s(ttft.slo.metric, load)
        assert abs(said - ttft.value_s.value) <= ttft.value_s.half_width + 0.15 * ttft.value_s.value
        assert ignored_s(pool, ttft.slo.metric, load) > 1.5 * ttft.value_s.value


def test_replays_of_a_plan_share_the_prefixes_that_it_counts_on() -> None:
    chat = service("chat", "llama-8b")
    load = poisson_load({chat.name: replace(demand(chat, 20.0), mix=cached_mix(0.5))}, 60.0, 1).workload
    blocks = np.diff(load.block_starts) * load.block_tokens
    expected = {size.prompt_tokens: size.cached_tokens for size in cached_mix(0.5)}
    assert {*zip(load.prompt_tokens.tolist(), blocks.tolist(), strict=True)} == set(expected.items())
    plain = poisson_load({chat.name: demand(chat, 20.0)}, 60.0, 1).workload
    assert (plain.arrival_s == load.arrival_s).all()
    assert not len(plain.block_ids)


# ---------------------------------------------------------------- traces


def request(at: int, *blocks: int, prompt: int = 0) -> TraceRequest:
    tokens = prompt or BLOCK_TOKENS * len(blocks) + 1
    return TraceRequest(arrival_s=float(at), prompt_tokens=tokens, output_tokens=5, block_ids=blocks)


def test_hits_are_of_the_replica_that_is_asked() -> None:
    twice = (request(0, 1, 2), request(1, 1, 2, 3))
    assert cached_tokens(twice, 1e6, replicas=1) == [0, 2 * BLOCK_TOKENS]
    assert cached_tokens(twice, 1e6, replicas=2) == [0, 0]


def test_a_full_cache_lets_go_of_the_oldest_and_of_a_prefix_from_its_end() -> None:
    trace = (request(0, 1, 2), request(1, 7), request(2, 1, 2))
    assert cached_tokens(trace, 2 * BLOCK_TOKENS, replicas=1) == [0, 0, BLOCK_TOKENS]
    assert cached_tokens(trace, 0, replicas=1) == [0, 0, 0]


def test_the_block_of_the_last_token_is_always_computed() -> None:
    same = (request(0, 1, 2, prompt=2 * BLOCK_TOKENS),) * 2
    assert cached_tokens(same, 1e6, replicas=1) == [0, BLOCK_TOKENS]


def test_a_trace_with_shared_prefixes_is_planned_for_what_is_computed() -> None:
    stated, _ = small_case()
    trace = tuple(request(i, 1, 2, 100 + i) for i in range(40 * CACHE_REPLICAS))
    told = trace_demand(stated, "default/chat", trace, "t")
    untold = trace_demand(stated, "default/chat", tuple(replace(r, block_ids=()) for r in trace), "t")
    assert sum(size.weight_ratio for size in told.mix if size.cached_tokens > 0) > 0.9
    assert "of the prompts cached" in told.source
    assert not any(size.cached_tokens for size in untold.mix)
    assert "cached" not in untold.source


def test_buckets_keep_the_cached_tokens_of_all_together() -> None:
    rng = np.random.default_rng(3)
    prompts = rng.integers(100, 4000, 500)
    cached = (prompts * rng.uniform(0, 0.9, 500)).astype(int)
    cut = cut_sizes(
        prompts.tolist(),
        rng.integers(10, 300, 500).tolist(),
        lambda mix: [carried(CURVES, Role.PREFILL, mix)],
        cached_tokens=cached.tolist(),
    )
    mean = sum(size.weight_ratio * size.cached_tokens for size in cut.mix)
    assert mean == pytest.approx(cached.mean(), abs=1.0)  # whole tokens of each size


def test_more_cached_than_there_is_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cached_tokens"):
        cut_sizes([100, 100], [5, 5], lambda mix: [1.0], cached_tokens=[100, 0])

"""Prefill over prefixes and batches, and variants: each formula by hand, and what must hold for any profile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controller.facts import GPU_FACTS, MODEL_FACTS
from controller.profiles_variants import Facts, make_variant
from controller.render import render_engine_profile
from controller.resources import parse_engine_profile
from solvers.engine import EngineConfig, EngineProfile, check_profile
from solvers.engine.curves import capped, decode_step_s, prefill_s
from solvers.engine.prefill import batch_ratio, cached_ratio, prefill_together_s
from solvers.engine.roofline import precision_of
from solvers.engine.variants import (
    covered_ratio,
    expected_tokens,
    with_chunk,
    with_kv_bits,
    with_offload,
    with_prefix_hits,
    with_speculation,
    with_weight_bits,
)
from solvers.errors import InvalidInput, OutOfRange
from tests.profile_maker import make_profile

PLAIN = make_profile()
WIDE = make_profile(
    prefill_cached_tokens=(1024, 16384),
    prefill_cached_ratio=((1.0, 1.1, 1.2, 1.2), (1.5, 1.6, 1.8, 2.0)),
    prefill_batches=(2, 8),
    prefill_batch_ratio=((1.2, 1.7, 1.9, 2.0), (3.0, 6.0, 7.5, 8.0)),
)


# ---------------------------------------------------------------- prefixes and batches


def test_at_the_knots_the_tables_say_what_they_hold() -> None:
    check_profile(WIDE)
    assert cached_ratio(WIDE, 1024, 16384) == pytest.approx(1.6)
    assert batch_ratio(WIDE, 128, 8) == pytest.approx(3.0)
    both = prefill_together_s(WIDE, 1024, cached_tokens=16384, batch=8)
    assert both == pytest.approx(prefill_s(WIDE, 1024) * 1.6 * 6.0)


def test_without_tables_a_prefix_costs_what_its_continuation_does_and_a_batch_one_by_one() -> None:
    assert prefill_together_s(PLAIN, 1024, cached_tokens=0, batch=4) == pytest.approx(4 * prefill_s(PLAIN, 1024))
    continued = prefill_s(PLAIN, 9216) - prefill_s(PLAIN, 8192)
    expected = max(prefill_s(PLAIN, 1024), continued)
    assert prefill_together_s(PLAIN, 1024, cached_tokens=8192) == pytest.approx(expected)


@pytest.mark.parametrize("profile", [PLAIN, WIDE])
def test_prefill_never_falls_when_anything_grows(profile: EngineProfile) -> None:
    rng = np.random.default_rng(11)
    for _ in range(300):
        tokens, cached, batch = rng.uniform(1, 12_000), rng.uniform(0, 12_000), rng.uniform(1, 7)
        at = prefill_together_s(profile, tokens, cached_tokens=cached, batch=batch)
        for more in (
            prefill_together_s(profile, tokens, cached_tokens=cached, batch=batch + 1),
            prefill_together_s(profile, tokens, cached_tokens=cached + 900, batch=batch),
        ):
            assert more >= at * (1 - 1e-9)
        longer = prefill_together_s(profile, tokens + 500, cached_tokens=cached)
        assert longer >= prefill_together_s(profile, tokens, cached_tokens=cached) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("at", "axis"), [({"cached_tokens": 20_000}, "prefill_cached_tokens"), ({"batch": 9}, "prefill_batches")]
)
def test_beyond_the_tables_nothing_is_invented(at: dict[str, float], axis: str) -> None:
    with pytest.raises(OutOfRange, match=axis):
        prefill_together_s(WIDE, 1024, **at)
    with pytest.raises(OutOfRange, match="prefill_tokens"):
        prefill_together_s(PLAIN, 30_000, cached_tokens=10_000)


def test_a_power_cap_slows_every_kind_of_prefill_alike() -> None:
    known = replace(
        WIDE, cap_watts_per_gpu=(300.0, 700.0), prefill_speed_ratio=(0.5, 1.0), decode_speed_ratio=(0.8, 1.0)
    )
    slow = capped(known, 300.0)
    at: dict[str, float] = {"cached_tokens": 5000.0, "batch": 3.0}
    assert prefill_together_s(slow, 2000, **at) == pytest.approx(2 * prefill_together_s(known, 2000, **at))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prefill_cached_tokens": (16384, 1024)}, "must be above 0 and increase"),
        ({"prefill_cached_ratio": ((1.0,) * 4,)}, "must have 2 rows of 4 values"),
        ({"prefill_cached_ratio": ((1.0,) * 3, (1.0,) * 3)}, "must have 2 rows of 4 values"),
        ({"prefill_cached_ratio": ((0.9,) * 4, (1.0,) * 4)}, "at least 1"),
        ({"prefill_cached_ratio": ((9.0, 1.0, 1.0, 1.0), (9.0, 2.0, 2.0, 2.0))}, "do not decrease with the prompt"),
        ({"prefill_batches": (1, 8)}, "a batch of one is prefill_s"),
        ({"prefill_batch_ratio": ((2.1,) * 4, (3.0,) * 4)}, "slower than one after another"),
    ],
)
def test_tables_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_profile(replace(WIDE, **changes))


def test_the_tables_go_through_the_resource_and_back() -> None:
    body = render_engine_profile(WIDE)
    found = parse_engine_profile(body)
    assert found.prefill_cached_tokens == WIDE.prefill_cached_tokens
    assert found.prefill_cached_ratio == WIDE.prefill_cached_ratio
    assert (found.prefill_batches, found.prefill_batch_ratio) == (WIDE.prefill_batches, WIDE.prefill_batch_ratio)
    assert "cachedTokens" not in render_engine_profile(PLAIN)["spec"]["prefill"]
    body["spec"]["prefill"]["batchPermille"][1][0] = 1100
    with pytest.raises(InvalidInput, match="not decreasing from row to row"):
        parse_engine_profile(body)


# ---------------------------------------------------------------- variants


def test_a_chunk_changes_nothing_else() -> None:
    changed = with_chunk(PLAIN, 4096)
    same = replace(changed, key=PLAIN.key, source_detail=PLAIN.source_detail, prefill_chunk_tokens=512)
    assert changed.prefill_chunk_tokens == 4096
    assert same == PLAIN
    assert changed.key.config.label == "tp1-chunk4096"


def test_half_the_bits_make_room_for_twice_the_tokens_and_halve_reading_them() -> None:
    changed = with_kv_bits(PLAIN, 8)
    assert changed.kv_capacity_tokens == 2 * PLAIN.kv_capacity_tokens
    assert changed.kv_bytes_per_token == PLAIN.kv_bytes_per_token // 2
    first = PLAIN.decode_contexts[0]
    grown, growth = (decode_step_s(p, 64, 32768) - decode_step_s(p, 64, first) for p in (changed, PLAIN))
    assert grown == pytest.approx(growth / 2)
    assert decode_step_s(changed, 64, first) == decode_step_s(PLAIN, 64, first)


def test_smaller_weights_are_read_sooner_and_leave_room() -> None:
    changed = with_weight_bits(PLAIN, 4, from_bits=16, weight_bytes=16e9, memory_bytes_per_s=3e12)
    assert decode_step_s(changed, 64, 4096) == pytest.approx(decode_step_s(PLAIN, 64, 4096) - 12e9 / 3e12)
    assert changed.kv_capacity_tokens == PLAIN.kv_capacity_tokens + int(12e9 / PLAIN.kv_bytes_per_token)
    assert prefill_s(changed, 1024) == prefill_s(PLAIN, 1024)
    slow = with_weight_bits(PLAIN, 4, from_bits=16, weight_bytes=16e9, memory_bytes_per_s=3e10)
    assert decode_step_s(slow, 1, 256) == pytest.approx(decode_step_s(PLAIN, 1, 256) / 4)


def test_what_is_cached_is_not_computed() -> None:
    changed = with_prefix_hits(WIDE, 0.5)
    assert prefill_s(changed, 8192) == pytest.approx(prefill_together_s(WIDE, 4096, cached_tokens=4096))
    assert with_prefix_hits(WIDE, 0.0).prefill_s == WIDE.prefill_s
    assert changed.kv_bytes_per_token == WIDE.kv_bytes_per_token


def test_a_slow_pool_is_not_asked_and_a_fast_one_is_like_a_hit() -> None:
    slow = with_offload(WIDE, 0.5, pool_bytes_per_s=1e6)
    fast = with_offload(WIDE, 0.5, pool_bytes_per_s=1e18)
    assert slow.prefill_s == pytest.approx(WIDE.prefill_s)
    assert fast.prefill_s == pytest.approx(with_prefix_hits(WIDE, 0.5).prefill_s)
    half = with_offload(WIDE, 1.0 - 1e-9, pool_bytes_per_s=1e18, covered_ratio=0.5)
    assert half.prefill_s == pytest.approx(fast.prefill_s)


def test_a_pool_that_holds_half_of_the_prefixes_is_hit_half_as_often() -> None:
    tokens = 1e9 * 100 / PLAIN.kv_bytes_per_token * 2  # twice what 100 GB hold
    assert covered_ratio(100e9, tokens, PLAIN.kv_bytes_per_token) == pytest.approx(0.5)
    assert covered_ratio(100e9, 1.0, PLAIN.kv_bytes_per_token) == 1.0
    made = make_variant(PLAIN, f"pool:0.8:100:50:{tokens}", facts)
    expected = with_offload(PLAIN, 0.8, pool_bytes_per_s=50e9, covered_ratio=0.5)
    assert made.prefill_s == expected.prefill_s
    assert made.key.config.label == "tp1-pool40"


def test_expected_tokens_are_those_of_a_geometric_run() -> None:
    assert expected_tokens(3, 0.0) == 1.0
    assert expected_tokens(3, 1.0) == 4.0
    assert expected_tokens(4, 0.7) == pytest.approx((1 - 0.7**5) / (1 - 0.7))
    rng, runs = np.random.default_rng(2), []
    for _ in range(20_000):
        misses = np.flatnonzero(rng.random(4) > 0.7)
        runs.append(1 + (misses[0] if misses.size else 4))
    assert np.mean(runs) == pytest.approx(expected_tokens(4, 0.7), abs=5 * np.std(runs) / np.sqrt(20_000))


def test_speculation_pays_at_small_batches_and_cuts_the_table_where_it_ends() -> None:
    changed = with_speculation(PLAIN, 3, acceptance_ratio=0.8, draft_cost_ratio=0.05)
    assert changed.decode_batches == (1, 8, 64)
    assert decode_step_s(changed, 1, 4096) < decode_step_s(PLAIN, 1, 4096)
    verified = decode_step_s(PLAIN, 32, 256) + decode_step_s(PLAIN, 8, 4096) - decode_step_s(PLAIN, 8, 256)
    expected = (verified + 3 * 0.05 * decode_step_s(PLAIN, 8, 4096)) / expected_tokens(3, 0.8)
    assert decode_step_s(changed, 8, 4096) == pytest.approx(expected)
    useless = with_speculation(PLAIN, 3, acceptance_ratio=0.0, draft_cost_ratio=0.0)
    assert decode_step_s(useless, 8, 4096) >= decode_step_s(PLAIN, 8, 4096)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("chunk:0", "chunk"),
        ("kv:32", "kv bits"),
        ("weights:32", "weight bits"),
        ("hit:1", "prefix hit ratio"),
        ("pool:0.5:100:0:1e6", "pool bandwidth"),
        ("pool:0.5:0:10:1e6", "pool size"),
        ("spec:0:0.5:0", "draft tokens"),
        ("spec:3:1.5:0", "acceptance ratio"),
        ("spec:3:0.5:-1", "draft cost ratio"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(words: str, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        make_variant(PLAIN, words, facts)
    assert refused.value.field == field


@pytest.mark.parametrize("words", ["magic:1", "chunk", "chunk:1:2", "hit:much"])
def test_words_that_are_no_variant_are_refused_with_the_forms(words: str) -> None:
    with pytest.raises(InvalidInput, match="use chunk:TOKENS, weights:BITS"):
        make_variant(PLAIN, words, facts)


def facts() -> Facts:
    return Facts(model=MODEL_FACTS["meta-llama/Llama-3.1-8B"], gpu=GPU_FACTS["h100-sxm"])


def test_variants_compose_and_say_so() -> None:
    found = make_variant(PLAIN, "weights:4+kv:8+hit:0.3+spec:2:0.6:0.1+chunk:1024", facts)
    check_profile(found)
    assert found.key.config.label == "tp1-w4-kv8-hit30-spec2-chunk1024"
    assert EngineConfig.from_label(found.key.config.label) == found.key.config
    assert found.source_detail.startswith("chunks of 1024 tokens; derived from 2 drafted tokens")


def test_int4_weights_leave_the_arithmetic_as_it_is() -> None:
    config = EngineConfig(variant="int4")
    assert precision_of(config).weight_bytes == 0.5
    assert precision_of(config).is_weight_only
    assert precision_of(EngineConfig(variant="fp8-hit50")).kv_bytes == 1
    assert precision_of(EngineConfig(variant="hit50")).weight_bytes == 2.0

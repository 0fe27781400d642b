r"""Variants of an engine as profiles of their own: pure transforms with stated formulas, to be chosen among.

Each returns a profile whose configuration carries the variant in its label, and whose ``source_detail`` says what was
derived. They compose: apply one after the other. Symbols: ``T(n | c)`` prefill of ``n`` tokens behind ``c`` cached,
``S(b, c)`` decode step of ``b`` sequences of mean context ``c``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from solvers.engine import EngineProfile, check_profile
from solvers.engine.curves import decode_step_s
from solvers.engine.prefill import prefill_together_s
from solvers.errors import InvalidInput


def with_chunk(profile: EngineProfile, chunk_tokens: int) -> EngineProfile:
    """Let a mixed replica compute so many prompt tokens beside one decode step."""
    _hold(profile, "chunk", chunk_tokens, 1 <= chunk_tokens <= 1_000_000, "between 1 and 1,000,000 tokens")
    changed = replace(profile, prefill_chunk_tokens=chunk_tokens)
    return _named(profile, changed, f"chunk{chunk_tokens}", f"chunks of {chunk_tokens} tokens")


def with_kv_bits(profile: EngineProfile, bits: int, *, from_bits: int = 16) -> EngineProfile:
    r"""Store keys and values with fewer bits.

    Bytes per token shrink and capacity grows by :math:`r` = ``bits / from_bits``. What a decode step costs more at a
    longer context is reading them: :math:`S'(b, c) = S(b, c_0) + r (S(b, c) - S(b, c_0))`, ``c_0`` the first knot.
    Prefill stays: its attention is arithmetic.
    """
    _hold(profile, "kv bits", bits, 1 <= bits <= from_bits, f"between 1 and the {from_bits} that they have")
    ratio = bits / from_bits
    changed = replace(
        profile,
        kv_bytes_per_token=math.ceil(profile.kv_bytes_per_token * ratio),
        kv_capacity_tokens=int(profile.kv_capacity_tokens / ratio),
        kv_compatibility_group="-".join(word for word in (profile.kv_compatibility_group, f"kv{bits}") if word)
        if bits != from_bits
        else profile.kv_compatibility_group,
        decode_step_s=tuple(tuple(row[0] + ratio * (time - row[0]) for time in row) for row in profile.decode_step_s),
    )
    return _named(profile, changed, f"kv{bits}", f"keys and values in {bits} bits, were {from_bits}")


def with_weight_bits(
    profile: EngineProfile, bits: float, *, from_bits: float, weight_bytes: float, memory_bytes_per_s: float
) -> EngineProfile:
    r"""Store weights with fewer bits and compute as before (weight-only quantisation).

    A decode step reads :math:`(1 - r) W` bytes less: :math:`S' = \max(r S, S - (1 - r) W / B)`, with
    :math:`r` = ``bits / from_bits``; the first term holds a table that promises more than its own speed. The bytes
    saved become KV room. Prefill stays: it is bound by arithmetic.

    Parameters
    ----------
    weight_bytes : float
        Of the whole replica, as they are.
    memory_bytes_per_s : float
        Of all its GPUs together, as kernels reach it.
    """
    _hold(profile, "weight bits", bits, 0 < bits <= from_bits, f"above 0, up to the {from_bits:g} that they have")
    ratio = bits / from_bits
    saved_bytes = (1.0 - ratio) * weight_bytes
    changed = replace(
        profile,
        kv_capacity_tokens=profile.kv_capacity_tokens + int(saved_bytes / profile.kv_bytes_per_token),
        decode_step_s=tuple(
            tuple(max(ratio * time, time - saved_bytes / memory_bytes_per_s) for time in row)
            for row in profile.decode_step_s
        ),
    )
    return _named(profile, changed, f"w{bits:g}", f"weights in {bits:g} bits, were {from_bits:g}")


def with_prefix_hits(profile: EngineProfile, hit_ratio: float) -> EngineProfile:
    r"""Find a share of every prompt in the prefix cache: :math:`T'(n) = T((1 - h) n \mid h n)`.

    A decode replica still holds, and is sent, the whole prompt.
    """
    _hold(profile, "prefix hit ratio", hit_ratio, 0.0 <= hit_ratio < 1.0, "at least 0 and below 1")
    changed = _with_prefill(profile, lambda tokens: _behind(profile, tokens, hit_ratio))
    return _named(profile, changed, f"hit{100 * hit_ratio:.0f}", f"{hit_ratio:.0%} of a prompt cached")


def with_offload(
    profile: EngineProfile, hit_ratio: float, *, pool_bytes_per_s: float, covered_ratio: float = 1.0
) -> EngineProfile:
    r"""Keep evicted prefixes in host memory or a remote pool and fetch them instead of computing them again.

    With :math:`h` = hit ratio times ``covered_ratio``, the share of the working set that the pool's capacity holds,
    :math:`k` bytes a token and a pool of :math:`B` bytes a second,
    :math:`T'(n) = \min(T(n), T((1 - h) n \mid h n) + h n k / B)`: nobody fetches what is sooner computed. The fetch is
    not hidden behind compute, and room for running sequences does not grow.
    """
    _hold(profile, "prefix hit ratio", hit_ratio, 0.0 <= hit_ratio < 1.0, "at least 0 and below 1")
    _hold(profile, "covered ratio", covered_ratio, 0.0 <= covered_ratio <= 1.0, "between 0 and 1")
    _hold(profile, "pool bandwidth", pool_bytes_per_s, pool_bytes_per_s > 0, "above 0 bytes a second")
    hits = hit_ratio * covered_ratio

    def prefill_s(tokens: float) -> float:
        fetch_s = hits * tokens * profile.kv_bytes_per_token / pool_bytes_per_s
        return min(prefill_together_s(profile, tokens), _behind(profile, tokens, hits) + fetch_s)

    words = f"{hits:.0%} of a prompt fetched at {pool_bytes_per_s / 1e9:g} GB/s"
    return _named(profile, _with_prefill(profile, prefill_s), f"pool{100 * hits:.0f}", words)


def covered_ratio(pool_bytes: float, working_tokens: float, kv_bytes_per_token: float) -> float:
    """Share of the prefixes in use that a pool of so many bytes holds; evenly used prefixes are hit in that share."""
    return min(1.0, pool_bytes / (working_tokens * kv_bytes_per_token))


def expected_tokens(draft_tokens: int, acceptance_ratio: float) -> float:
    r"""Tokens that one verification yields: :math:`(1 - a^{k + 1}) / (1 - a)`, each draft accepted independently.

    Source: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", ICML 2023, eq. 1.
    """
    return sum(acceptance_ratio**count for count in range(draft_tokens + 1))


def with_speculation(
    profile: EngineProfile, draft_tokens: int, *, acceptance_ratio: float, draft_cost_ratio: float
) -> EngineProfile:
    r"""Draft ``k`` tokens with a small model or extra heads, and verify them in one step.

    A verification computes :math:`b (k + 1)` tokens but reads each sequence's keys and values once,
    :math:`V(b, c) = S(b (k + 1), c_0) + S(b, c) - S(b, c_0)`, and drafting costs :math:`k d S(b, c)`. With
    :math:`E` expected tokens a round, the mean step per token is :math:`S' = (V + k d S) / E`. Gaps between tokens
    become uneven: percentiles of the gap are above this mean. Batches that would be verified beyond the table are cut
    off it. A GPU draws what it does at the batch of the verification.

    Parameters
    ----------
    acceptance_ratio : float
        Probability that a draft token is accepted.
    draft_cost_ratio : float
        One draft step against one step of the model; 0 for heads that come with the model's own step.
    """
    _hold(profile, "draft tokens", draft_tokens, 1 <= draft_tokens <= 64, "between 1 and 64")
    _hold(profile, "acceptance ratio", acceptance_ratio, 0.0 <= acceptance_ratio <= 1.0, "between 0 and 1")
    _hold(profile, "draft cost ratio", draft_cost_ratio, draft_cost_ratio >= 0.0, "at least 0")
    width, yielded = draft_tokens + 1, expected_tokens(draft_tokens, acceptance_ratio)
    largest, shortest = profile.decode_batches[-1], profile.decode_contexts[0]
    batches = tuple(batch for batch in profile.decode_batches if batch * width <= largest)
    _hold(profile, "draft tokens", draft_tokens, bool(batches), f"fewer: the table ends at a batch of {largest}")

    def step_s(batch: int, context: int) -> float:
        own = decode_step_s(profile, batch, context)
        verified = decode_step_s(profile, batch * width, shortest) + own - decode_step_s(profile, batch, shortest)
        return (verified + draft_tokens * draft_cost_ratio * own) / yielded

    changed = replace(
        profile,
        decode_batches=batches,
        decode_step_s=tuple(tuple(step_s(batch, context) for context in profile.decode_contexts) for batch in batches),
        decode_watts_per_gpu=tuple(_watts_at(profile, batch * width) for batch in batches),
    )
    words = f"{draft_tokens} drafted tokens, {acceptance_ratio:.0%} accepted, {yielded:.2f} a round"
    return _named(profile, changed, f"spec{draft_tokens}", words)


def _watts_at(profile: EngineProfile, batch: int) -> float:
    above = [i for i, knot in enumerate(profile.decode_batches) if knot >= batch]
    return profile.decode_watts_per_gpu[above[0]]


def _behind(profile: EngineProfile, tokens: float, hit_ratio: float) -> float:
    return prefill_together_s(profile, (1.0 - hit_ratio) * tokens, cached_tokens=hit_ratio * tokens)


def _with_prefill(profile: EngineProfile, prefill_s: Callable[[float], float]) -> EngineProfile:
    """Prefill by another rule; the tables of prefixes are used up by it, batches of prompts stay as they were."""
    times, least = [], 0.0
    for tokens in profile.prefill_tokens:
        least = max(least, prefill_s(tokens))
        times.append(least)
    return replace(profile, prefill_s=tuple(times), prefill_cached_tokens=(), prefill_cached_ratio=())


def _named(before: EngineProfile, changed: EngineProfile, label: str, words: str) -> EngineProfile:
    """Put the variant into the label and the detail, and hold the tables against what look-ups assume."""
    variant = f"{before.key.config.variant}-{label}".strip("-")
    key = replace(before.key, config=replace(before.key.config, variant=variant))
    named = replace(changed, key=key, source_detail=f"{words}; derived from {before.source_detail}")
    check_profile(named)
    return named


def _hold(profile: EngineProfile, field: str, value: float, is_good: bool, range_words: str) -> None:
    if not is_good:
        subject = f"variant of {profile.key.model} on {profile.key.gpu_class}/{profile.key.config.label}"
        raise InvalidInput(subject, field, f"is {value:g}", f"give {range_words}")

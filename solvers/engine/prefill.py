"""Prefill over (prompt tokens, cached prefix, batch): lookups in the optional tables of an ``EngineProfile``.

The tables hold ratios to the time of one prompt with nothing cached, so whatever scales that time (a power cap, a
correction) scales them along. Lines lead from knot to knot in times, so an answer never falls when a prompt, its prefix
or a batch grows. Where a profile has no table: behind ``c`` cached tokens a prompt costs what it would as their
continuation, ``T(c + n) - T(c)``, and never less than alone; prompts of a batch are computed one after another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from solvers.engine import EngineProfile
from solvers.engine.curves import chunks_s, prefill_s
from solvers.errors import OutOfRange

HIT_LABELS = ("hit", "pool")
"""How variants begin whose prefill times count prefix hits already."""

Rows = Sequence[Sequence[float]]


def prefill_together_s(
    profile: EngineProfile,
    new_tokens: float,
    *,
    cached_tokens: float = 0.0,
    batch: float = 1.0,
    cap_watts: float | None = None,
) -> float:
    """Time to prefill ``batch`` prompts together, each with ``new_tokens`` behind a cached prefix.

    The batch's ratio is that of prompts with nothing cached.

    Raises
    ------
    OutOfRange
        When the tokens, the prefix or the batch are beyond what was measured.
    """
    alone = prefill_s(profile, new_tokens, cap_watts)
    return alone * cached_ratio(profile, new_tokens, cached_tokens) * batch_ratio(profile, new_tokens, batch)


def cached_ratio(profile: EngineProfile, new_tokens: float, cached_tokens: float) -> float:
    """Time of a prompt behind a cached prefix against the same tokens with nothing before them; at least 1."""
    if cached_tokens <= 0:
        return 1.0
    if profile.prefill_cached_tokens:
        knots, rows = (0, *profile.prefill_cached_tokens), profile.prefill_cached_ratio
        return _ratio(profile, "prefill_cached_tokens", knots, rows, cached_tokens, new_tokens)
    alone = prefill_s(profile, new_tokens)
    continued = prefill_s(profile, cached_tokens + new_tokens) - prefill_s(profile, cached_tokens)
    return max(1.0, continued / alone)


def prompt_s(profile: EngineProfile, prompt_tokens: float, cached_tokens: float = 0.0) -> float:
    """Time of a prompt of which the first ``cached_tokens`` are found; of more than was measured, as many count.

    Raises
    ------
    OutOfRange
        When what is left to compute is beyond what was measured.
    """
    cached = _believed(profile, prompt_tokens, cached_tokens)
    return prefill_together_s(profile, prompt_tokens - cached, cached_tokens=cached)


def prompt_chunks_s(profile: EngineProfile, prompt_tokens: int, cached_tokens: int = 0) -> tuple[float, ...]:
    """Times that the chunks of such a prompt add to the steps of a mixed replica; they sum to ``prompt_s``."""
    if not cached_tokens:
        return chunks_s(profile, prompt_tokens)
    cached = _believed(profile, prompt_tokens, cached_tokens)
    new = prompt_tokens - int(cached)
    ends = [*range(profile.prefill_chunk_tokens, new, profile.prefill_chunk_tokens), new]
    upto = [prefill_together_s(profile, end, cached_tokens=cached) for end in ends]
    return tuple(b - a for a, b in itertools.pairwise([0.0, *upto]))


def _believed(profile: EngineProfile, prompt_tokens: float, cached_tokens: float) -> float:
    """How many cached tokens count: not those beyond the table, none twice, and a token is always computed.

    A profile that was made for prefix hits (``variants.with_prefix_hits``, ``with_offload``) has them in its times.
    """
    labels = profile.key.config.variant.split("-")
    if any(label.startswith(HIT_LABELS) for label in labels):
        return 0.0
    most = profile.prefill_cached_tokens[-1] if profile.prefill_cached_tokens else prompt_tokens
    return max(0.0, min(cached_tokens, most, prompt_tokens - 1))


def batch_ratio(profile: EngineProfile, new_tokens: float, batch: float) -> float:
    """Time of so many equal prompts together against one; between 1 and their number."""
    if batch <= 1:
        return 1.0
    if profile.prefill_batches:
        knots, rows = (1, *profile.prefill_batches), profile.prefill_batch_ratio
        return _ratio(profile, "prefill_batches", knots, rows, batch, new_tokens)
    return batch


def _ratio(profile: EngineProfile, axis: str, knots: Sequence[int], rows: Rows, at: float, new_tokens: float) -> float:
    """Interpolate times, not ratios: both may rise while the ratio falls."""
    if at > knots[-1]:
        key = profile.key
        raise OutOfRange(
            f"EngineProfile/{key.model} on {key.gpu_class}/{key.config.label}",
            axis,
            f"{at:,.0f} is above the last measured point {knots[-1]:,}",
            "measure further out, or bound the requests",
        )
    alone = np.array(profile.prefill_s)
    times = np.array([alone, *(np.array(row) * alone for row in rows)])
    at_tokens = [float(np.interp(new_tokens, profile.prefill_tokens, row)) for row in times]
    return float(np.interp(at, knots, at_tokens)) / at_tokens[0]


def prefill_faults(profile: EngineProfile) -> Iterator[tuple[str, str]]:
    """Say what is wrong with the optional tables, as (field, problem)."""
    cached, batches = profile.prefill_cached_tokens, profile.prefill_batches
    yield from _faults(profile, "prefill_cached", "tokens", cached, profile.prefill_cached_ratio)
    yield from _faults(profile, "prefill_batch", "es", batches, profile.prefill_batch_ratio)
    if batches and batches[0] < 2:
        yield "prefill_batches", f"starts at {batches[0]}; a batch of one is prefill_s"
    for count, row in zip(batches, profile.prefill_batch_ratio, strict=False):
        if any(ratio > count for ratio in row):
            yield "prefill_batch_ratio", f"exceeds {count} for a batch of {count}: slower than one after another"


def _faults(
    profile: EngineProfile, name: str, plural: str, knots: Sequence[int], rows: Rows
) -> Iterator[tuple[str, str]]:
    axis = name + ("_tokens" if plural == "tokens" else plural)
    if any(a >= b for a, b in itertools.pairwise((0, *knots))):
        yield axis, "must be above 0 and increase"
    if len(rows) != len(knots) or any(len(row) != len(profile.prefill_tokens) for row in rows):
        yield f"{name}_ratio", f"must have {len(knots)} rows of {len(profile.prefill_tokens)} values (prompts)"
        return
    ones = [1.0] * len(profile.prefill_tokens)
    for low, high in itertools.pairwise([ones, *rows]):
        if any(a > b + 1e-9 for a, b in zip(low, high, strict=True)):
            yield f"{name}_ratio", "must be at least 1 and not decrease from row to row"
    for row in rows:
        times = [ratio * time for ratio, time in zip(row, profile.prefill_s, strict=True)]
        if any(a > b * (1 + 1e-3) for a, b in itertools.pairwise(times)):
            yield f"{name}_ratio", "must leave times that do not decrease with the prompt"

"""Prefill behind cached prefixes and in batches from the silicon tables, as ratios to one prompt alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from solvers.engine.curves import Floats

CACHED_TOKENS = (1024, 4096, 16384)
BATCHES = (2, 4, 8)

PrefillTime = Callable[[int, int, int], float]
"""Seconds from new tokens, cached tokens before them, and prompts computed together."""


def wide_tables(prefill_s: PrefillTime, prompts: Sequence[int], alone_s: Floats, longest: int) -> dict[str, Any]:
    """Fields of an ``EngineProfile`` beside ``prefill_s``; prefixes reach no further than ``longest`` tokens."""
    cached = [tokens for tokens in CACHED_TOKENS if tokens + prompts[-1] <= longest]
    behind = [[prefill_s(tokens, before, 1) for tokens in prompts] for before in cached]
    together = [[prefill_s(tokens, 0, count) for tokens in prompts] for count in BATCHES]
    return {
        "prefill_cached_tokens": tuple(cached),
        "prefill_cached_ratio": _ratios(behind, alone_s, [np.inf] * len(cached)),
        "prefill_batches": BATCHES,
        "prefill_batch_ratio": _ratios(together, alone_s, [float(count) for count in BATCHES]),
    }


def _ratios(times: Sequence[Sequence[float]], alone_s: Floats, most: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Ratios between 1 and the most, no row below the one before, no time below that of a shorter prompt."""
    rows, floor = [], alone_s
    for row, limit in zip(times, most, strict=True):
        floor = np.maximum(floor, np.maximum.accumulate(np.minimum(np.array(row), limit * alone_s)))
        rows.append(tuple(np.round(floor / alone_s, 3).tolist()))
    return tuple(rows)

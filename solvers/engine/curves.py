"""Lookups in the tables of an ``EngineProfile``.

Every table is linear between its knots. Below the first knot the first value holds (a shorter prompt or a smaller
batch is never slower, so the answer errs on the safe side). Above the last knot nothing was measured: ``OutOfRange``.

Speed under a power cap is linear between the profile's caps as well. It is concave in watts, so a chord never promises
more than the curve. Below the lowest cap, and for profiles that know no caps, nothing is promised: ``OutOfRange``.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.engine import EngineProfile, Role
from solvers.errors import OutOfRange

Floats = NDArray[np.float64]


def prefill_speed_ratio(profile: EngineProfile, cap_watts: float | None) -> float:
    """Speed of prefill with every GPU capped at ``cap_watts``, against none; 0-1, and 1 for None.

    Raises
    ------
    OutOfRange
        When the cap is below the lowest one known, or none is known.
    """
    return _speed_ratio(profile, profile.prefill_speed_ratio, cap_watts)


def decode_speed_ratio(profile: EngineProfile, cap_watts: float | None) -> float:
    """Speed of decode steps with every GPU capped at ``cap_watts``, against none; 0-1, and 1 for None.

    Raises
    ------
    OutOfRange
        When the cap is below the lowest one known, or none is known.
    """
    return _speed_ratio(profile, profile.decode_speed_ratio, cap_watts)


def _speed_ratio(profile: EngineProfile, ratios: Sequence[float], cap_watts: float | None) -> float:
    if cap_watts is None:
        return 1.0
    caps = profile.cap_watts_per_gpu
    if not caps or cap_watts < caps[0]:
        lowest = f"the lowest cap known, {caps[0]:,.0f} W" if caps else "the highest cap: the profile knows no other"
        raise OutOfRange(
            profile_name(profile),
            "cap_watts_per_gpu",
            f"{cap_watts:,.0f} W is below {lowest}",
            "choose a higher cap, or measure the speed under lower ones",
        )
    return _interpolate(caps, ratios, cap_watts)


def capped(profile: EngineProfile, cap_watts: float | None) -> EngineProfile:
    """Return the profile of the same replica with every GPU capped: slower tables, and no draw above the cap.

    Whole times are slowed, launch overheads too, which errs on the safe side. The result knows no other caps.

    Raises
    ------
    OutOfRange
        When the cap is below the lowest one known, or none is known.
    """
    if cap_watts is None:
        return profile
    prefill, decode = prefill_speed_ratio(profile, cap_watts), decode_speed_ratio(profile, cap_watts)
    return replace(
        profile,
        prefill_s=tuple(time / prefill for time in profile.prefill_s),
        decode_step_s=tuple(tuple(time / decode for time in row) for row in profile.decode_step_s),
        prefill_watts_per_gpu=min(cap_watts, profile.prefill_watts_per_gpu),
        decode_watts_per_gpu=tuple(min(cap_watts, watts) for watts in profile.decode_watts_per_gpu),
        cap_watts_per_gpu=(),
        prefill_speed_ratio=(),
        decode_speed_ratio=(),
    )


def prefill_s(profile: EngineProfile, prompt_tokens: float, cap_watts: float | None = None) -> float:
    """Time in seconds to prefill one prompt on an otherwise idle replica, its GPUs capped when a cap is given.

    Raises
    ------
    OutOfRange
        When the prompt is longer than the table, or the cap lower than any known.
    """
    _check_within(profile, "prefill_tokens", prompt_tokens, profile.prefill_tokens[-1])
    uncapped_s = _interpolate(profile.prefill_tokens, profile.prefill_s, prompt_tokens)
    return uncapped_s / prefill_speed_ratio(profile, cap_watts)


def chunks_s(profile: EngineProfile, prompt_tokens: int) -> tuple[float, ...]:
    """Times in seconds that the chunks of one prompt add to the steps of a mixed replica; they sum to its prefill."""
    starts = range(0, max(prompt_tokens, 1), profile.prefill_chunk_tokens)
    upto = [prefill_s(profile, min(at + profile.prefill_chunk_tokens, prompt_tokens)) for at in starts]
    return upto[0], *(after - before for before, after in itertools.pairwise(upto))


def decode_step_s(profile: EngineProfile, batch: float, mean_context: float, cap_watts: float | None = None) -> float:
    """Time in seconds of one decode step of ``batch`` sequences that hold ``mean_context`` tokens each on average.

    Raises
    ------
    OutOfRange
        When the batch or the context is above the table, or the cap lower than any known.
    """
    return float(decode_steps_s(profile, [batch], [mean_context])[0]) / decode_speed_ratio(profile, cap_watts)


def decode_steps_s(profile: EngineProfile, batches: ArrayLike, mean_contexts: ArrayLike) -> Floats:
    """Times of many decode steps at once: bilinear between the knots of (batch, mean context).

    Parameters
    ----------
    batches : (N,) float
        Sequences in the batch.
    mean_contexts : (N,) float, tokens
        Mean context of the sequences of each batch.

    Returns
    -------
    (N,) float, s

    Raises
    ------
    OutOfRange
        When any batch or context is above the table.
    """
    batch, context = np.asarray(batches, dtype=float), np.asarray(mean_contexts, dtype=float)
    _check_within(profile, "decode_batches", float(batch.max()), profile.decode_batches[-1])
    _check_within(profile, "decode_contexts", float(context.max()), profile.decode_contexts[-1])
    table, rows, columns = _decode_table(profile)
    row, row_share = _cell(rows, batch)
    column, column_share = _cell(columns, context)
    next_row, next_column = np.minimum(row + 1, len(table) - 1), np.minimum(column + 1, table.shape[1] - 1)
    low = table[row, column] * (1 - column_share) + table[row, next_column] * column_share
    high = table[next_row, column] * (1 - column_share) + table[next_row, next_column] * column_share
    return np.asarray(low * (1 - row_share) + high * row_share)


def gpu_watts(profile: EngineProfile, role: Role, batch: float) -> float:
    """Draw in watts of one GPU while a replica works on ``batch`` requests; its idle draw when there is none.

    A mixed replica is given at its decode draw; while a chunk of a prompt is in its step it draws the prefill watts.
    """
    if batch <= 0:
        return profile.idle_watts_per_gpu
    if role is Role.PREFILL:
        return profile.prefill_watts_per_gpu
    return _interpolate(profile.decode_batches, profile.decode_watts_per_gpu, min(batch, profile.decode_batches[-1]))


def decode_watts(profile: EngineProfile, batches: Floats) -> Floats:
    """Draw in watts of one GPU at each of many batches, (N,); idle at none, flat above the table."""
    busy = np.interp(batches, profile.decode_batches, profile.decode_watts_per_gpu)
    return np.where(batches > 0, busy, profile.idle_watts_per_gpu)


def _interpolate(knots: Sequence[float], values: Sequence[float], at: float) -> float:
    right = bisect_right(knots, at)
    if right == 0:
        return values[0]
    if right == len(knots):
        return values[-1]
    share = (at - knots[right - 1]) / (knots[right] - knots[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])


@lru_cache(maxsize=4096)
def _decode_table(profile: EngineProfile) -> tuple[Floats, Floats, Floats]:
    """Decode steps as an array, and its knots; read only."""
    batches, contexts = np.array(profile.decode_batches, dtype=float), np.array(profile.decode_contexts, dtype=float)
    return np.array(profile.decode_step_s, dtype=float), batches, contexts


def _cell(knots: Floats, at: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Index of the knot at or below each value, and how far towards the next one it is, 0-1."""
    place = np.interp(at, knots, np.arange(len(knots), dtype=float))
    index = np.minimum(place.astype(np.intp), len(knots) - 1)
    return index, place - index


def _check_within(profile: EngineProfile, axis: str, value: float, last: int) -> None:
    if value > last:
        raise OutOfRange(
            profile_name(profile),
            axis,
            f"{value:,.0f} is above the last measured point {last:,}",
            "measure further out, or bound the requests",
        )


def profile_name(profile: EngineProfile) -> str:
    """Name of a profile in messages."""
    key = profile.key
    return f"EngineProfile/{key.model} on {key.gpu_class}/{key.config.label}"

"""Demand by size: many request sizes become the few that sizing needs, with the error that this brings.

Sizes are cut like a regression tree: the part that is least alike is split where its halves are most alike. A part
stands for its requests with their mean sizes, so that the tokens of all of them together stay what they are. What
"alike" should mean depends on what binds: long prompts where the first token is late, outputs where decoding is slow.
So several measures are tried, and more parts, until the coefficients come close to those of the finest cut; how close
is said. Coefficients at high percentiles jump when a tenth of the prompts moves across a limit: a few percent cannot
always be had with eight buckets, and then the error says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.errors import InvalidInput
from solvers.workload import SizeBucket

Floats = NDArray[np.float64]

LEAST_BUCKETS, MOST_BUCKETS = 4, 8
FINEST_BUCKETS = 256
MEASURES = tuple((power, share) for power in (1.0, 0.5, 1.5) for share in (1.0, 0.5, 0.25, 0.0))
"""Power of the prompt's length, and weight of the output's: what makes two requests alike."""
TOLERANCE_RATIO = 0.03

Mix = tuple[SizeBucket, ...]
Coefficients = Callable[[Mix], Sequence[float]]
"""What sizing makes of a mix: requests per second by pool, 0 where it cannot be served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A mix and how far its coefficients are from those of the finest cut: the largest relative difference."""

    mix: Mix
    error_ratio: float
    finest: int


def cut_sizes(
    prompt_tokens: Sequence[int],
    output_tokens: Sequence[int],
    coefficients: Coefficients,
    *,
    weights: Sequence[float] | None = None,
    cached_tokens: Sequence[int] | None = None,
    tolerance_ratio: float = TOLERANCE_RATIO,
) -> Cut:
    """Cut joint sizes into 4 to 8 buckets, as few as keep the coefficients within the tolerance, else the closest.

    Parameters
    ----------
    prompt_tokens, output_tokens : (N,) int
        Requests of a trace, or the cells of a joint histogram.
    coefficients : callable
        Told a mix; its numbers are compared with those of the finest cut of up to 256 buckets.
    weights : (N,) float, optional
        Requests of each cell; one of each without.
    cached_tokens : (N,) int, optional
        Of each prompt, found in a prefix cache; what is left to compute decides which prompts are alike.

    Returns
    -------
    Cut
        With its error, whether within the tolerance or not.

    Raises
    ------
    InvalidInput
        No sizes, sizes below one token, or weights that are no weights.
    """
    sizes, weight = _checked(prompt_tokens, output_tokens, cached_tokens, weights)
    finest = _mix(_parts(sizes, weight, FINEST_BUCKETS, MEASURES[0])[-1], sizes, weight)
    if len(finest) <= LEAST_BUCKETS:
        return Cut(mix=finest, error_ratio=0.0, finest=len(finest))
    exact = np.asarray(coefficients(finest), dtype=float)
    trees = [_parts(sizes, weight, MOST_BUCKETS, measure) for measure in MEASURES]
    best: Cut | None = None
    for count in range(LEAST_BUCKETS, MOST_BUCKETS + 1):
        for mix in (_mix(parts[count - 1], sizes, weight) for parts in trees if count <= len(parts)):
            error = _error_ratio(np.asarray(coefficients(mix), dtype=float), exact)
            if best is None or error < best.error_ratio:
                best = Cut(mix=mix, error_ratio=error, finest=len(finest))
        if best is not None and best.error_ratio <= tolerance_ratio:
            break
    return best or Cut(mix=finest, error_ratio=0.0, finest=len(finest))


def _checked(
    prompt_tokens: Sequence[int],
    output_tokens: Sequence[int],
    cached_tokens: Sequence[int] | None,
    weights: Sequence[float] | None,
) -> tuple[Floats, Floats]:
    """Sizes as (prompt, output, cached) tokens, (N, 3), and weights, (N,)."""
    cached = np.zeros(len(prompt_tokens)) if cached_tokens is None else np.array(cached_tokens, dtype=float)
    sizes = np.array([prompt_tokens, output_tokens], dtype=float).T.reshape(-1, 2)
    if cached.shape != (len(sizes),) or not np.all((cached >= 0.0) & (cached < sizes[:, 0])):
        raise InvalidInput("request sizes", "cached_tokens", "must be one for each prompt, 0 or more and below it")
    weight = np.ones(len(sizes)) if weights is None else np.array(weights, dtype=float)
    if len(sizes) == 0 or not np.all(sizes >= 1.0):
        raise InvalidInput("request sizes", "", f"{len(sizes)} of them, the least {sizes.min(initial=1):g}", "give ≥ 1")
    if weight.shape != (len(sizes),) or not np.all(weight >= 0.0) or not 0.0 < weight.sum() < np.inf:
        raise InvalidInput("request sizes", "weights", "must be one for each size, none negative, some above 0")
    kept = weight > 0.0
    return np.column_stack([sizes, cached])[kept], weight[kept]


def _parts(sizes: Floats, weight: Floats, most: int, measure: tuple[float, float]) -> list[list[NDArray[np.int64]]]:
    """Cuts of 1, 2, … parts, each a refinement of the one before, until nothing is left to tell apart."""
    power, output_share = measure
    told = np.stack([(sizes[:, 0] - sizes[:, 2]) ** power, sizes[:, 1]], axis=1)
    middle = np.average(told, axis=0, weights=weight)
    spread = np.sqrt(np.average((told - middle) ** 2, axis=0, weights=weight))
    scaled = told / np.maximum(spread, 1e-9) * np.array([1.0, output_share])
    parts = [np.arange(len(sizes))]
    splits = {0: _best_split(scaled, weight, parts[0])}
    cuts = [list(parts)]
    while len(parts) < most:
        place = max(splits, key=lambda index: (splits[index][0], -index))
        gain, left, right = splits[place]
        if gain <= 0.0:
            break
        parts = [*parts[:place], left, *parts[place + 1 :], right]
        splits[place] = _best_split(scaled, weight, left)
        splits[len(parts) - 1] = _best_split(scaled, weight, right)
        cuts.append(list(parts))
    return cuts


def _best_split(
    scaled: Floats, weight: Floats, part: NDArray[np.int64]
) -> tuple[float, NDArray[np.int64], NDArray[np.int64]]:
    """Split a part where the squared distance from the means falls most: (fall, one half, the other)."""
    best = (0.0, part, part[:0])
    for axis in (0, 1):
        order = part[np.argsort(scaled[part, axis], kind="stable")]
        values, w = scaled[order, axis], weight[order]
        below, total = np.cumsum(w)[:-1], w.sum()
        moment = np.cumsum(w * values)[:-1]
        above = total - below
        mean = float((w * values).sum() / total)
        fall = (moment / below - mean) ** 2 * below + ((total * mean - moment) / above - mean) ** 2 * above
        fall = np.where(values[1:] > values[:-1], fall, 0.0)
        if len(fall) and (found := float(fall.max())) > best[0] + 1e-12:
            at = int(fall.argmax()) + 1
            best = (found, order[:at], order[at:])
    return best


def _mix(parts: Sequence[NDArray[np.int64]], sizes: Floats, weight: Floats) -> Mix:
    """Every part with its mean sizes and its share of the requests."""
    total = float(weight.sum())
    buckets = []
    for part in parts:
        means = np.average(sizes[part], axis=0, weights=weight[part])
        prompt, output = (max(1, round(float(mean))) for mean in means[:2])
        cached = min(prompt - 1, int(means[2]))
        share = float(weight[part].sum()) / total
        buckets.append(SizeBucket(prompt_tokens=prompt, output_tokens=output, weight_ratio=share, cached_tokens=cached))
    return tuple(sorted(buckets))


def _error_ratio(found: Floats, exact: Floats) -> float:
    """Largest relative difference; all of it where only one of the two can be served."""
    most = np.maximum(np.abs(found), np.abs(exact))
    able = most > 0.0
    return float((np.abs(found - exact)[able] / most[able]).max(initial=0.0))

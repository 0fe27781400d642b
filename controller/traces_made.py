"""Made traces and scaling: a seeded synthetic hour, renewal arrivals (Poisson, Gamma, Weibull), request sizes.

Arrivals and sizes are drawn apart: an arrival process says when, ``Sizes`` says how large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from controller.traces import Trace, TraceRequest
from solvers.errors import InvalidInput
from solvers.workload import SizeBucket

P99_NORMAL = 2.3263478740408408  # the standard normal's 99th percentile
LOAD_STEP_S = 10.0
LOAD_MEMORY_S = 300.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Tokens with the given median and 99th percentile, lognormal between; equal numbers make every one alike."""

    p50_tokens: float
    p99_tokens: float

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """Draw ``count`` sizes of at least one token."""
        if self.p99_tokens <= self.p50_tokens:
            return [max(1, round(self.p50_tokens))] * count
        return _lognormal(rng, count, self.p50_tokens, self.p99_tokens)


def drawn_sizes(
    rng: np.random.Generator, count: int, mix: Sequence[SizeBucket], prompt: Size | None, output: Size | None
) -> list[tuple[int, int]]:
    """Draw (prompt, output) tokens of requests: jointly from the mix, either replaced by its own distribution.

    Raises
    ------
    InvalidInput
        When one of the two is neither given nor in the mix.
    """
    if (prompt is None or output is None) and not mix:
        raise InvalidInput("trace", "", "says no request sizes", "give prompt= and output=")
    pairs = _mixed(rng, count, mix) if mix else [(1, 1)] * count
    prompts = prompt.draw(rng, count) if prompt else [pair[0] for pair in pairs]
    outputs = output.draw(rng, count) if output else [pair[1] for pair in pairs]
    return list(zip(prompts, outputs, strict=True))


def _mixed(rng: np.random.Generator, count: int, mix: Sequence[SizeBucket]) -> list[tuple[int, int]]:
    weights = np.array([bucket.weight_ratio for bucket in mix])
    chosen = rng.choice(len(mix), size=count, p=weights / weights.sum())
    return [(mix[i].prompt_tokens, mix[i].output_tokens) for i in chosen.tolist()]


def made_trace(arrivals_s: Floats, sizes: Sequence[tuple[int, int]]) -> Trace:
    """Put arrivals, (N,) seconds in order, and sizes together."""
    return tuple(
        TraceRequest(arrival_s=round(at, 7), prompt_tokens=prompt, output_tokens=output)
        for at, (prompt, output) in zip(arrivals_s.tolist(), sizes, strict=True)
    )


# ---------------------------------------------------------------- arrivals


def poisson_arrivals_s(rng: np.random.Generator, requests_per_s: float, duration_s: float) -> Floats:
    """Arrivals of a Poisson process, sorted, in [0, duration)."""
    count = int(rng.poisson(requests_per_s * duration_s))
    return np.sort(rng.uniform(0.0, duration_s, count))


def gamma_arrivals_s(rng: np.random.Generator, requests_per_s: float, cv: float, duration_s: float) -> Floats:
    """Arrivals whose gaps are Gamma with mean ``1 / requests_per_s`` and coefficient of variation ``cv``.

    Above 1 they come in bursts, 1 is Poisson, below 1 they are more even. The first gap is cut at a random place, so
    that no burst is tied to the start.
    """
    shape = 1.0 / cv**2
    expected = requests_per_s * duration_s
    batch = int(expected + 10.0 * cv * math.sqrt(expected) + 100.0)
    ends = -rng.uniform(0.0, 1.0) * rng.gamma(shape, 1.0 / (shape * requests_per_s))
    arrivals: list[Floats] = []
    while ends < duration_s:
        times = ends + np.cumsum(rng.gamma(shape, 1.0 / (shape * requests_per_s), batch))
        arrivals.append(times)
        ends = float(times[-1])
    together = np.concatenate(arrivals)
    return together[(together >= 0.0) & (together < duration_s)]


def renewal_window_s(rng: np.random.Generator, family: str, shape: float, count: int, window_s: float) -> Floats:
    """Place ``count`` arrivals in [0, window) with gaps of a family, (count,): as many as asked, as bursty as fitted.

    ``family`` is Gamma or Weibull with the given shape; the scale follows from count and window.
    """
    gaps: Floats = rng.gamma(shape, 1.0, count + 1) if family == "Gamma" else rng.weibull(shape, count + 1)
    whole = float(gaps.sum())
    if not whole > 0.0:  # shapes near 0 underflow: then all come at once, somewhere
        return np.full(count, rng.uniform(0.0, window_s))
    ends: Floats = np.cumsum(gaps)[:count] * (window_s / whole)
    return ends


# ---------------------------------------------------------------- whole traces


def synthetic_trace(
    seed: int,
    duration_s: float,
    *,
    requests_per_s: float = 5.5,
    prompt_p50_tokens: float = 1020.0,
    prompt_p99_tokens: float = 4142.0,
    output_p50_tokens: float = 129.0,
    output_p99_tokens: float = 601.0,
    load_variation_ratio: float = 0.22,
) -> Trace:
    """Make a trace of the shape of an hour of public conversations.

    Poisson arrivals whose rate wanders (a logarithmic random walk pulled back to its mean within five minutes) and
    independent lognormal sizes through the given percentiles.

    Parameters
    ----------
    seed : int
        Equal seeds make equal traces.
    duration_s : float, s
    requests_per_s : float
        Mean rate.
    load_variation_ratio : float
        Standard deviation of the rate relative to its mean; 0 makes a plain Poisson process. The default makes the
        counts per minute as uneven as in the Azure conversation trace (variance 16 times the mean there).

    Raises
    ------
    InvalidInput
        When duration or rate is not positive.
    """
    if duration_s <= 0 or requests_per_s <= 0:
        asked = f"{duration_s} s at {requests_per_s} requests/s"
        raise InvalidInput("synthetic trace", "", f"asks for {asked}", "give a positive duration and rate")
    rng = np.random.default_rng(seed)
    steps = math.ceil(duration_s / LOAD_STEP_S)
    counts = rng.poisson(requests_per_s * LOAD_STEP_S * _wandering(rng, steps, load_variation_ratio))
    starts = np.repeat(np.arange(steps) * LOAD_STEP_S, counts)
    arrivals = np.sort(starts + rng.uniform(0.0, LOAD_STEP_S, len(starts)))
    arrivals = arrivals[arrivals < duration_s]
    prompts = _lognormal(rng, len(arrivals), prompt_p50_tokens, prompt_p99_tokens)
    outputs = _lognormal(rng, len(arrivals), output_p50_tokens, output_p99_tokens)
    return made_trace(arrivals, list(zip(prompts, outputs, strict=True)))


def _wandering(rng: np.random.Generator, steps: int, variation_ratio: float) -> Floats:
    """Load of each step relative to the mean, (steps,), mean 1."""
    sigma = math.sqrt(math.log(1 + variation_ratio**2))
    keep = math.exp(-LOAD_STEP_S / LOAD_MEMORY_S)
    level, levels = rng.normal(0.0, sigma), []
    for push in rng.normal(0.0, sigma * math.sqrt(1 - keep**2), steps):
        levels.append(level)
        level = keep * level + push
    return np.exp(np.array(levels) - sigma**2 / 2)


def _lognormal(rng: np.random.Generator, count: int, p50: float, p99: float) -> list[int]:
    sigma = math.log(p99 / p50) / P99_NORMAL
    sizes = rng.lognormal(math.log(p50), sigma, count)
    return [int(size) for size in np.maximum(1, np.rint(sizes))]


def scale_trace(trace: Trace, factor: float, seed: int) -> Trace:
    """Multiply the load of a trace, keeping its span and its sizes.

    Whole copies are laid over the first one, each shifted round by a random time so that bursts do not add up; the
    fraction is a copy of which each request stays with that probability. ``factor`` 1 returns the trace.

    Raises
    ------
    InvalidInput
        When the factor is not positive.
    """
    if not factor > 0:
        raise InvalidInput("trace", "", f"cannot be scaled by {factor}", "give a positive factor")
    if factor == 1 or not trace:
        return trace
    rng = np.random.default_rng(seed)
    span = trace[-1].arrival_s + trace[-1].arrival_s / max(1, len(trace) - 1)
    scaled: list[TraceRequest] = []
    for copy in range(math.ceil(factor)):
        shift = float(rng.uniform(0.0, span)) if copy else 0.0
        stays = rng.random(len(trace)) < factor - copy
        scaled += [
            replace(request, arrival_s=(request.arrival_s + shift) % span if span else 0.0)
            for request, keep in zip(trace, stays.tolist(), strict=True)
            if keep
        ]
    return tuple(sorted(scaled, key=lambda request: request.arrival_s))

r"""What a profile says of a replica at the load that it had: what observations are compared with.

The point is the observed one (batch, sizes, rate), never the planned one, so that a residual is the profile's and not
the forecast's.

- Prefill replica: the mean time of the prompts it got. Where only the time to first token is known, waiting is part of
  it: :math:`\mathrm E[S] + \lambda \mathrm E[S^2] / (2 (1 - \rho))` (one server, Poisson), up to ``LIGHT_RATIO`` of it.
- Decode replica: the step of the batch that a token meets. Sequences come and go independently, so a token meets the
  mean number of others beside its own: :math:`m + 1`.
- Mixed replica: a gap is a decode step and the prompt work done in it, :math:`s + \rho_p g` with :math:`\rho_p` the
  prompt work per second and :math:`g` the observed gap. The ratio speaks for both phases by their shares of the gap.
- Watts: idle, decode and prefill draw by their shares of time.
- Throughput, while requests wait: work done against what the observed times allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from solvers.correction import Observed, Phase
from solvers.engine import EngineProfile, Role
from solvers.engine.curves import capped, decode_step_s, gpu_watts
from solvers.engine.prefill import prompt_s
from solvers.errors import OutOfRange
from solvers.workload import SizeBucket

LIGHT_RATIO = 0.5  # beyond, what a queue adds depends on the order of arrivals more than on the engine
LEAST_RUNNING = 1.0  # sequences; below, gaps are few and idle time is most of what is metered
SATURATED_WAITING = 4.0  # requests at every scrape; with fewer it may have idled between two of them


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """What one replica did over a window.

    Attributes
    ----------
    mix : tuple of SizeBucket
        Sizes of the requests, by any weights; scaled to ``prompt_tokens`` where the replica told its own mean.
    running, waiting : float
        Mean sequences in the engine's batch, and the fewest requests that waited on it: above some, it never idled.
    prompts_per_s, output_tokens_per_s : float
        Prompts that got their first token here, and tokens generated.
    prompt_tokens : float or None
        Mean prompt of those.
    prefill_s, ttft_s, itl_s, gpu_watts : float or None
        Means over the window: prefill without waiting, first token in the engine, token gap, draw of one GPU.
    cap_watts : float or None
        Cap of its GPUs; None for the highest.
    window_s : float
        Seconds of the served world.
    """

    role: Role
    mix: tuple[SizeBucket, ...]
    running: float
    waiting: float
    prompts_per_s: float
    output_tokens_per_s: float
    prompt_tokens: float | None = None
    prefill_s: float | None = None
    ttft_s: float | None = None
    itl_s: float | None = None
    gpu_watts: float | None = None
    cap_watts: float | None = None
    window_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """What was observed and predicted of one phase of a replica, and the requests that it rests on."""

    phase: Phase
    observed: float
    predicted: float
    requests: float


def residuals(profile: EngineProfile, point: OperatingPoint) -> tuple[Residual, ...]:
    """Compare one replica with its profile; nothing where the point lies outside the profile's tables.

    Parameters
    ----------
    profile : EngineProfile
        As it was made: not one that corrections were written into.
    """
    try:
        found = tuple(_compare(capped(profile, point.cap_watts), point))
    except OutOfRange:
        return ()
    return tuple(each for each in found if each.observed > 0 and each.predicted > 0 and each.requests > 0)


def merged(seen: Iterable[Residual], profile: EngineProfile, as_of_s: float) -> Iterator[Observed]:
    """One observation a phase of all replicas of a pool, each weighing as many requests as it rests on."""
    rows = list(seen)
    for phase in sorted({row.phase for row in rows}):
        mine = [row for row in rows if row.phase is phase]
        requests = math.fsum(row.requests for row in mine)
        yield Observed(
            key=profile.key,
            phase=phase,
            observed=math.fsum(row.requests * row.observed for row in mine) / requests,
            predicted=math.fsum(row.requests * row.predicted for row in mine) / requests,
            requests=requests,
            as_of_s=as_of_s,
        )


def _compare(profile: EngineProfile, point: OperatingPoint) -> Iterator[Residual]:
    work_s, square = _prompt_work(profile, point) if point.prompts_per_s > 0 and point.mix else (0.0, 0.0)
    busy = point.prompts_per_s * work_s
    prompts = point.prompts_per_s * point.window_s
    if point.role is Role.PREFILL:
        yield from _prefill(point, work_s, square, prompts)
    elif point.itl_s is not None and point.running >= LEAST_RUNNING and point.mix:
        yield from _gaps(profile, point, busy)
    yield from _watts(profile, point, busy, prompts)


def _prefill(point: OperatingPoint, work_s: float, square: float, prompts: float) -> Iterator[Residual]:
    busy = point.prompts_per_s * work_s
    if point.prefill_s is not None:
        yield Residual(phase=Phase.PREFILL, observed=point.prefill_s, predicted=work_s, requests=prompts)
        if point.waiting >= SATURATED_WAITING:
            done = point.prompts_per_s * point.prefill_s
            yield Residual(phase=Phase.THROUGHPUT, observed=done, predicted=1.0, requests=prompts)
    elif point.ttft_s is not None and busy <= LIGHT_RATIO:
        waited = work_s + point.prompts_per_s * square / (2.0 * (1.0 - busy))
        yield Residual(phase=Phase.PREFILL, observed=point.ttft_s, predicted=waited, requests=prompts)


def _gaps(profile: EngineProfile, point: OperatingPoint, busy: float) -> Iterator[Residual]:
    gap_s = point.itl_s or 0.0
    step_s = decode_step_s(profile, _met(profile, point), _context(point))
    work_s = busy * gap_s if point.role is Role.MIXED else 0.0
    predicted = step_s + work_s
    requests = point.output_tokens_per_s * point.window_s / max(1.0, _mean_output(point.mix))
    shares = {Phase.DECODE: step_s / predicted, Phase.PREFILL: work_s / predicted}
    for phase, share in shares.items():
        yield Residual(phase=phase, observed=gap_s, predicted=predicted, requests=share * requests)
    if point.waiting >= SATURATED_WAITING and point.role is Role.DECODE:
        done = point.output_tokens_per_s * gap_s
        yield Residual(phase=Phase.THROUGHPUT, observed=done, predicted=point.running, requests=requests)


def _watts(profile: EngineProfile, point: OperatingPoint, busy: float, prompts: float) -> Iterator[Residual]:
    if point.gpu_watts is None:
        return
    idle = profile.idle_watts_per_gpu
    if point.role is Role.PREFILL:
        own = point.prompts_per_s * point.prefill_s if point.prefill_s is not None else busy
        share, requests = min(1.0, own), prompts
        predicted = idle + share * (profile.prefill_watts_per_gpu - idle)
    else:
        if point.running < LEAST_RUNNING:
            return
        at_work = 1.0 - math.exp(-point.running)  # of the time somebody is there, as many come and go
        decode = gpu_watts(profile, Role.DECODE, point.running / at_work)
        share = min(1.0, busy) if point.role is Role.MIXED else 0.0
        predicted = idle + at_work * (share * profile.prefill_watts_per_gpu + (1.0 - share) * decode - idle)
        requests = point.output_tokens_per_s * point.window_s / max(1.0, _mean_output(point.mix))
    yield Residual(phase=Phase.POWER, observed=point.gpu_watts, predicted=predicted, requests=requests)


def _prompt_work(profile: EngineProfile, point: OperatingPoint) -> tuple[float, float]:
    """First and second moment of the time of one prompt, s and s²."""
    scale, whole = 1.0, math.fsum(bucket.weight_ratio for bucket in point.mix)
    if point.prompt_tokens is not None:
        scale = whole * point.prompt_tokens / math.fsum(b.weight_ratio * b.prompt_tokens for b in point.mix)
    times = [
        (b.weight_ratio / whole, prompt_s(profile, scale * b.prompt_tokens, scale * b.cached_tokens)) for b in point.mix
    ]
    return math.fsum(w * t for w, t in times), math.fsum(w * t * t for w, t in times)


def _met(profile: EngineProfile, point: OperatingPoint) -> float:
    """Sequences in the step of a token; as many as the table knows when the batch is full."""
    most = float(profile.decode_batches[-1])
    return point.running if point.running > most else min(point.running + 1.0, most)


def _context(point: OperatingPoint) -> float:
    """Mean context of a sequence at one of its tokens: its prompt and, on average, half of its output."""
    tokens = [(bucket.weight_ratio * bucket.output_tokens, bucket) for bucket in point.mix]
    whole = math.fsum(weight for weight, _ in tokens)
    return math.fsum(w * (b.prompt_tokens + b.output_tokens / 2.0) for w, b in tokens) / whole


def _mean_output(mix: tuple[SizeBucket, ...]) -> float:
    whole = math.fsum(bucket.weight_ratio for bucket in mix)
    return math.fsum(bucket.weight_ratio * bucket.output_tokens for bucket in mix) / whole

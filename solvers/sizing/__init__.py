"""From the curves of one replica to what it carries with every SLO kept: the coefficients of the optimisation.

Prefill is a pool with one queue, decode a birth-death chain over the batch, mixed both at once with the chunks of
prompts inside the decode steps (``pools.py``). Each formula may use up half of the misses that an SLO allows
(``queueing.MISS_SHARE``), and no pool is loaded past 0.9 of saturation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from solvers.engine import EngineProfile, Role
from solvers.engine.curves import Floats, decode_steps_s
from solvers.errors import InvalidInput, OutOfRange
from solvers.sizing import pools, queueing
from solvers.workload import SizeBucket, Slo, SloMetric

MAX_POOL_REPLICAS = 64
"""Economies of scale are counted up to this pool size; the formulas are a little safe beyond it."""

STEPS_TO_FIRST_TOKEN = 1.5
"""A transferred request joins at the next step boundary (half a step away on average) and takes one step."""

DEFAULT_PERCENTILE_RATIO = 0.95
"""Percentile that predictions are given at, and room for waiting is judged by, where a service asks none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one replica carries inside a pool of the asked size.

    Attributes
    ----------
    requests_per_s : float
        Largest rate of one replica with every SLO kept.
    utilisation_ratio : float
        That rate as a share of the rate at which it would never be idle.
    gpu_watts : float
        Mean draw of one GPU at that rate.
    """

    requests_per_s: float
    utilisation_ratio: float
    gpu_watts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """Why a replica cannot serve the mix at all, in words and numbers for a user."""

    reason: str


CapacityOf = Callable[..., Capacity | Unfit]
"""``replica_capacity`` or a table with its signature."""


def replica_capacity(
    profile: EngineProfile, role: Role, mix: Sequence[SizeBucket], slos: Sequence[Slo], *, pool_replicas: int
) -> Capacity | Unfit:
    """Size one replica of ``role`` inside a pool of ``pool_replicas`` like ones.

    Parameters
    ----------
    mix : sequence of SizeBucket
        Every replica gets this mix; weights are taken relative to their sum. A bucket that the replica cannot hold
        makes it unfit.
    slos : sequence of Slo
        All must hold. Without one for a metric only stability and KV room bound the rate.
    pool_replicas : int
        Replicas that share the arrivals by least outstanding work, at least 1.

    Notes
    -----
    Grows with ``pool_replicas``, except that a mixed pool of very short requests may lose a few percent: spread over
    more replicas they share fewer steps. Poisson arrivals. Cached: equal arguments cost one look-up.
    """
    if not mix or sum(bucket.weight_ratio for bucket in mix) <= 0:
        raise InvalidInput("request mix", "", "is empty or has no weight", "give a bucket with weight above 0")
    return _capacity(profile, role, tuple(mix), tuple(slos), max(1, min(pool_replicas, MAX_POOL_REPLICAS)))


def most_requests_per_s(profile: EngineProfile, role: Role, mix: Sequence[SizeBucket]) -> float:
    """Bound what a replica of the role carries from above, whatever its pool and its SLOs, in next to no time.

    Prompts alone take ``queueing.MAX_LOAD_RATIO`` of its time at most. Nothing is said of decode replicas, which is no
    less true: infinity.
    """
    if role is Role.DECODE:
        return math.inf
    of_buckets = pools.Mix.of(tuple(mix))
    try:
        return queueing.MAX_LOAD_RATIO / float(of_buckets.weight @ pools.prefill_times_s(profile, of_buckets))
    except (pools.Refused, OutOfRange):
        return 0.0


@lru_cache(maxsize=65536)
def _capacity(
    profile: EngineProfile, role: Role, mix: tuple[SizeBucket, ...], slos: tuple[Slo, ...], replicas: int
) -> Capacity | Unfit:
    size = {Role.PREFILL: _prefill_capacity, Role.DECODE: _decode_capacity, Role.MIXED: _mixed_capacity}[role]
    try:
        return size(profile, mix, slos, replicas)
    except pools.Refused as refusal:
        return Unfit(reason=str(refusal))
    except OutOfRange as beyond:
        return Unfit(reason=pools.beyond_words(profile, pools.Mix.of(mix), beyond))


def _limits(slos: Sequence[Slo], metric: SloMetric) -> tuple[Slo, ...]:
    return tuple(slo for slo in slos if slo.metric is metric)


def _percentile(slos: Sequence[Slo]) -> float:
    return max((slo.percentile_ratio for slo in slos), default=DEFAULT_PERCENTILE_RATIO)


def _refuse_unreachable_ttft(
    profile: EngineProfile, mix: pools.Mix, prompts: pools.Prompts, slos: Sequence[Slo]
) -> None:
    for slo in slos:
        if prompts.always_late_ratio(slo.limit_s) <= 1.0 - slo.percentile_ratio:
            continue
        worst = int(np.argmax(np.where(prompts.service_s + prompts.after_s > slo.limit_s, mix.weight, 0.0)))
        first_token_s = prompts.service_s[worst] + prompts.after_s[worst]
        raise pools.Refused(
            f"prefill of {mix.prompt_tokens[worst]:,.0f} tokens takes {1e3 * prompts.service_s[worst]:,.0f} ms on "
            f"{pools.replica_name(profile)}, {1e3 * first_token_s:,.0f} ms to the "
            f"first token, SLO {1e3 * slo.limit_s:,.0f} ms at p{slo.percentile_ratio * 100:g}"
        )


def _first_token_s(profile: EngineProfile, slos: Sequence[Slo]) -> float:
    """Time of the first decode step, elsewhere: the ITL that is asked there, else this profile's own full batch."""
    itl = min((slo.limit_s for slo in _limits(slos, SloMetric.ITL)), default=profile.decode_step_s[-1][0])
    return STEPS_TO_FIRST_TOKEN * itl


def _prefill_capacity(
    profile: EngineProfile, buckets: tuple[SizeBucket, ...], slos: tuple[Slo, ...], replicas: int
) -> Capacity:
    mix = pools.Mix.of(buckets)
    service = pools.prefill_times_s(profile, mix)
    transfer = mix.prompt_tokens * profile.kv_bytes_per_token / profile.transfer_bytes_per_s
    first_token, ttft = _first_token_s(profile, slos), _limits(slos, SloMetric.TTFT)
    saturation = 1.0 / max(float(mix.weight @ service), float(mix.weight @ transfer))  # of one replica

    def at(load: float) -> pools.Prompts:
        link_share = load * saturation * float(mix.weight @ transfer)
        after = transfer / (1.0 - min(link_share, 0.99)) + first_token  # transfers share the link
        return pools.Prompts(weight=mix.weight, service_s=service, after_s=after)

    def slack(load: float) -> float:
        prompts = at(load)
        tail = prompts.tail(load * saturation * replicas, replicas)
        return min((prompts.slack(slo, tail) for slo in ttft), default=queueing.MOST_SLACK)

    _refuse_unreachable_ttft(profile, mix, at(0.0), ttft)
    load = _largest_load(profile, slack)
    busy = load * saturation * float(mix.weight @ service)
    return Capacity(
        requests_per_s=load * saturation,
        utilisation_ratio=load,
        gpu_watts=busy * profile.prefill_watts_per_gpu + (1.0 - busy) * profile.idle_watts_per_gpu,
    )


def _largest_load(profile: EngineProfile, slack: queueing.Slack) -> float:
    load = queueing.largest_load(slack)
    if load <= 0.0:
        raise pools.Refused(
            f"the SLOs leave no room for load on {pools.replica_name(profile)}: they are met only when it is idle"
        )
    return load


@lru_cache(maxsize=4096)
def _alone_step_s(profile: EngineProfile, mix: pools.Mix) -> float:
    """One decode step of a single sequence."""
    return float(decode_steps_s(profile, [1.0], [mix.context_tokens[0]])[0])


def _refuse_unreachable_itl(profile: EngineProfile, mix: pools.Mix, slos: Sequence[Slo]) -> None:
    context, alone = mix.context_tokens[0], _alone_step_s(profile, mix)
    for slo in slos:
        if alone > slo.limit_s:
            raise pools.Refused(
                f"one decode step of a single sequence at {context:,.0f} tokens of context takes {alone * 1e3:.1f} ms "
                f"on {pools.replica_name(profile)}, SLO {slo.limit_s * 1e3:.1f} ms at p{slo.percentile_ratio * 100:g}"
            )


def _allowed_misses(slos: Sequence[Slo]) -> float:
    return queueing.MISS_SHARE * (1.0 - _percentile(slos))


def _decode_capacity(
    profile: EngineProfile, buckets: tuple[SizeBucket, ...], slos: tuple[Slo, ...], replicas: int
) -> Capacity:
    mix = pools.Mix.of(buckets)
    _refuse_unreachable_itl(profile, mix, _limits(slos, SloMetric.ITL))
    return _decode_of_chain(profile, buckets, slos, pools.chained_replicas(profile, mix, replicas))


@lru_cache(maxsize=65536)
def _decode_of_chain(
    profile: EngineProfile, buckets: tuple[SizeBucket, ...], slos: tuple[Slo, ...], together: int
) -> Capacity:
    """Size a decode pool; all that are as large as the chain may get, or larger, are the same."""
    pool, itl = pools.decoding_pool(profile, pools.Mix.of(buckets), together), _limits(slos, SloMetric.ITL)
    saturation = pool.chain.saturation_per_s
    too_slow = [(slo, pool.slow_step_s > slo.limit_s) for slo in itl]

    def slack(load: float) -> float:
        time = pool.chain.probabilities(load * saturation)
        gaps = pool.gap_weights(time)
        of_waits = queueing.slack(_allowed_misses(slos), float(np.add.reduce(time[pool.chain.full :])))
        of_gaps = (queueing.slack(_allowed_misses([slo]), float(np.add.reduce(gaps[slow]))) for slo, slow in too_slow)
        return min(of_waits, *of_gaps) if too_slow else of_waits

    load = _largest_load(profile, slack)
    time = pool.chain.probabilities(load * saturation)
    return Capacity(
        requests_per_s=load * saturation / pool.replicas,
        utilisation_ratio=load,
        gpu_watts=pool.mean_gpu_watts(time),
    )


def _mixed_capacity(
    profile: EngineProfile, buckets: tuple[SizeBucket, ...], slos: tuple[Slo, ...], replicas: int
) -> Capacity:
    mix = pools.Mix.of(buckets)
    _refuse_unreachable_itl(profile, mix, _limits(slos, SloMetric.ITL))
    pools.prefill_times_s(profile, mix)  # refuses a prompt that does not fit by itself, before the request does
    sizing = _mixed_sizing(profile, buckets, slos, pools.chained_replicas(profile, mix, replicas))
    _refuse_unreachable_ttft(profile, mix, sizing.idle(), sizing.ttft)
    load = _largest_load(profile, lambda load: sizing.slack(load, replicas))
    said = sizing.at(load)
    return Capacity(requests_per_s=said.rate_per_s, utilisation_ratio=load, gpu_watts=said.gpu_watts)


@lru_cache(maxsize=128)  # one pool's sizes are asked for one after the other; each of these holds arrays over states
def _mixed_sizing(
    profile: EngineProfile, buckets: tuple[SizeBucket, ...], slos: tuple[Slo, ...], together: int
) -> MixedSizing:
    pool = pools.mixed_pool(profile, pools.Mix.of(buckets), together)
    return MixedSizing(profile=profile, pool=pool, ttft=_limits(slos, SloMetric.TTFT), itl=_limits(slos, SloMetric.ITL))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixedLoad:
    """What is true of a mixed pool at one load, whatever its size; ``prompts`` as seen from the queue."""

    rate_per_s: float
    prompts: pools.Prompts
    gpu_watts: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixedSizing:
    """A mixed pool whose decoding is one chain: pools of other sizes differ only in how long prompts queue.

    The searches over pool sizes halve the same interval, so most of their loads have been judged before.
    """

    profile: EngineProfile
    pool: pools.Mixed
    ttft: tuple[Slo, ...]
    itl: tuple[Slo, ...]
    judged: dict[float, tuple[float, pools.Prompts]] = field(default_factory=dict)
    known: dict[float, MixedLoad] = field(default_factory=dict)
    too_slow: list[tuple[float, Floats, Floats]] = field(default_factory=list)
    resting: list[pools.Prompts] = field(default_factory=list)

    def idle(self) -> pools.Prompts:
        """Prompts of a pool that has next to nothing to do."""
        if not self.resting:
            time = self.pool.time_in_states(1e-6 * self.pool.saturation_per_s)
            self.resting.append(self.pool.prompts(time, _percentile(self.ttft)))
        return self.resting[0]

    def slack(self, load: float, replicas: int) -> float:
        if load not in self.judged:
            self.judged[load] = self._judged(load)
        roomy, prompts = self.judged[load]
        if roomy < 0.0:
            return roomy
        tail = prompts.tail(load * self.pool.saturation_per_s * replicas, replicas)
        return min((roomy, *(prompts.slack(slo, tail) for slo in self.ttft)))

    def _judged(self, load: float) -> tuple[float, pools.Prompts]:
        """Slack of all but the prompts' queue at the load, and the prompts."""
        rate = load * self.pool.saturation_per_s
        time = self.pool.time_in_states(rate)
        prompts = self.pool.prompts(time, _percentile(self.ttft))
        of_prefill = queueing.slack(queueing.MAX_LOAD_RATIO, rate * float(self.pool.weight @ prompts.service_s))
        waiting = float(np.add.reduce(time[self.pool.decoding.chain.full :]))
        of_waits = queueing.slack(_allowed_misses((*self.ttft, *self.itl)), waiting)
        return min((of_prefill, of_waits, *self._itl_slack(rate, time))), prompts

    def _itl_slack(self, rate: float, time: Floats) -> Iterator[float]:
        if not self.too_slow:
            slow_step_s = self.pool.decoding.slow_step_s
            self.too_slow.extend(
                (
                    _allowed_misses([slo]),
                    (slow_step_s > slo.limit_s).astype(float),
                    self.pool.chunk_too_slow(slo.limit_s),
                )
                for slo in self.itl
            )
        gaps, chunked = self.pool.decoding.gap_weights(time), self.pool.chunked_steps_ratio(rate)
        for allowed, slow, chunk in self.too_slow:
            yield queueing.slack(allowed, float(gaps @ ((1 - chunked) * slow + chunked * chunk)))

    def at(self, load: float) -> MixedLoad:
        """Rate, prompts and draw at the load."""
        if load not in self.known:
            self.known[load] = self._at(load)
        return self.known[load]

    def _at(self, load: float) -> MixedLoad:
        rate = load * self.pool.saturation_per_s
        time = self.pool.time_in_states(rate)
        prompts = self.pool.prompts(time, _percentile(self.ttft))
        chunked = min(1.0, rate * float(prompts.weight @ prompts.service_s))  # time in steps that carry a chunk
        decoding_watts = self.pool.decoding.mean_gpu_watts(time)
        return MixedLoad(
            rate_per_s=rate,
            prompts=prompts,
            gpu_watts=chunked * self.profile.prefill_watts_per_gpu + (1.0 - chunked) * decoding_watts,
        )

"""Pools of like replicas as queues and chains: what the sizing of each role asks its questions of.

``Prompts`` is one queue over a pool, ``Decoding`` a birth-death chain over its batches, ``Mixed`` both at once with
the chunks of prompts inside the decode steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from solvers.derived import Derives, derived
from solvers.engine import EngineProfile
from solvers.engine.curves import Floats, decode_steps_s, decode_watts
from solvers.engine.prefill import prompt_chunks_s, prompt_s
from solvers.errors import OutOfRange
from solvers.sizing import queueing
from solvers.sizing.queueing import BatchChain
from solvers.workload import SizeBucket, Slo

KV_FILL_RATIO = 0.9
"""Share of the KV cache that the mean request may fill; the rest absorbs the spread of sizes."""

MAX_CHAIN_STATES = 1024
"""Bounds the work of one call: larger decode pools are sized as this many states would be, which is safe."""

CONTEXT_SIGMAS = 1.64
"""A batch is checked at the 95th percentile of its mean context, not at the mean."""


class Refused(Exception):
    """A replica cannot serve the mix; the text says why, with numbers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mix(Derives):
    """A request mix as arrays over buckets, (B,), and what a decode batch of it looks like."""

    weight: Floats
    prompt_tokens: Floats
    output_tokens: Floats
    cached_tokens: Floats

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(buckets: tuple[SizeBucket, ...]) -> Mix:
        weight = np.array([b.weight_ratio for b in buckets], dtype=float)
        return Mix(
            weight=weight / weight.sum(),
            prompt_tokens=np.array([b.prompt_tokens for b in buckets], dtype=float),
            output_tokens=np.array([max(1, b.output_tokens) for b in buckets], dtype=float),
            cached_tokens=np.array([b.cached_tokens for b in buckets], dtype=float),
        )

    @property
    def mean_output_tokens(self) -> float:
        return float(self.weight @ self.output_tokens)

    @property
    def longest_tokens(self) -> tuple[float, float]:
        """The longest prompt, and the longest request."""
        return derived(self, _longest_tokens)

    @property
    def held_tokens(self) -> float:
        """KV tokens that a sequence of the batch reserves, prompt and whole output."""
        return derived(self, _held_tokens)

    @property
    def context_tokens(self) -> tuple[float, float]:
        """Mean and standard deviation of the context of one sequence of the batch."""
        return derived(self, _context_tokens)


def _longest_tokens(mix: Mix) -> tuple[float, float]:
    return float(mix.prompt_tokens.max()), float((mix.prompt_tokens + mix.output_tokens).max())


def _in_batch(mix: Mix, per_bucket: Floats) -> float:
    """Mean over the sequences of a batch, where a bucket is met as often as it decodes tokens."""
    share = mix.weight * mix.output_tokens
    return float(share @ per_bucket / share.sum())


def _held_tokens(mix: Mix) -> float:
    return _in_batch(mix, mix.prompt_tokens + mix.output_tokens)


def _context_tokens(mix: Mix) -> tuple[float, float]:
    prompt, output = mix.prompt_tokens, mix.output_tokens
    mean = _in_batch(mix, prompt + output / 2)
    square = _in_batch(mix, prompt**2 + prompt * output + output**2 / 3)
    return mean, math.sqrt(max(0.0, square - mean**2))


def replica_name(profile: EngineProfile) -> str:
    return f"{profile.key.gpu_class}/{profile.key.config.label}"


def beyond_words(profile: EngineProfile, mix: Mix, beyond: OutOfRange) -> str:
    """Say of a look-up outside a profile's table which requests led there, and the ways out."""
    longest = int(np.argmax(mix.prompt_tokens + mix.output_tokens / 2))
    prompt, output = mix.prompt_tokens[longest], mix.output_tokens[longest]
    request = f"requests of up to {prompt:,.0f} prompt and {output:,.0f} output tokens"
    decoding = f"{request}, {mix.context_tokens[0]:,.0f} on average while they decode"
    sizes = {
        "prefill_tokens": (f"a prompt of {mix.longest_tokens[0]:,.0f} tokens", profile.prefill_tokens[-1]),
        "decode_contexts": (decoding, profile.decode_contexts[-1]),
    }
    if beyond.field not in sizes:
        return str(beyond)
    asked, last = sizes[beyond.field]
    known = f"the profile of {replica_name(profile)} was measured up to {last:,}"
    return f"{asked}: {known}; measure longer ones, bound the requests, or let the router split them by size"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompts:
    """Service of each bucket's prompts, (B,) s, and what follows before the first token, (B,) s."""

    weight: Floats
    service_s: Floats
    after_s: Floats

    def tail(self, pool_rate_per_s: float, replicas: int) -> queueing.WaitTail:
        mean = float(self.weight @ self.service_s)
        scv = float(self.weight @ self.service_s**2) / mean**2 - 1.0
        return queueing.wait_tail(
            servers=replicas, rate_per_s=pool_rate_per_s, mean_service_s=mean, service_scv=max(0.0, scv)
        )

    def always_late_ratio(self, limit_s: float) -> float:
        """Share of requests that miss the limit even when nobody waits."""
        return float(np.add.reduce(self.weight[self.service_s + self.after_s > limit_s]))

    def slack(self, slo: Slo, tail: queueing.WaitTail) -> float:
        """How few misses queueing adds to those that no routing can avoid; below 0 they are too many."""
        late = self.always_late_ratio(slo.limit_s)
        left = zip(self.weight.tolist(), (slo.limit_s - self.service_s - self.after_s).tolist(), strict=True)
        queued_late = sum(weight * tail.after(wait_s) for weight, wait_s in left if wait_s >= 0.0)
        allowed = queueing.MISS_SHARE * (1.0 - slo.percentile_ratio - late) + 1e-12
        return queueing.slack(allowed, float(queued_late))

    def quantile_s(self, percentile_ratio: float, tail: queueing.WaitTail) -> float:
        """Time to first token at the percentile."""
        fixed = self.service_s + self.after_s
        each = tuple(zip(self.weight.tolist(), fixed.tolist(), strict=True))
        low, high = 0.0, float(fixed.max()) + math.log(1e6) / max(tail.decay_per_s, 1e-9)
        while high - low > 1e-4 * high:
            middle = (low + high) / 2
            late = sum([weight * tail.after(middle - start) for weight, start in each])
            low, high = (low, middle) if late <= 1.0 - percentile_ratio else (middle, high)
        return high


@lru_cache(maxsize=128)  # prefill and mixed pools of one profile are sized one after the other, at several sizes
def prefill_times_s(profile: EngineProfile, mix: Mix) -> Floats:
    """Time of each bucket's prompts on an otherwise idle replica, (B,) s; nobody may change it.

    Raises
    ------
    Refused
        A prompt is larger than the KV cache.
    """
    longest, _ = mix.longest_tokens
    if longest > profile.kv_capacity_tokens:
        raise Refused(
            f"a prompt of {longest:,.0f} tokens does not fit the {profile.kv_capacity_tokens:,} tokens of KV cache on "
            f"{replica_name(profile)}"
        )
    prompts = zip(mix.prompt_tokens.tolist(), mix.cached_tokens.tolist(), strict=True)
    return np.array([prompt_s(profile, tokens, cached) for tokens, cached in prompts])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoding:
    """A decode pool as a chain. ``slow_step_s`` (N,) s is a step of the fuller replicas at a high context."""

    chain: BatchChain
    replicas: int
    slow_step_s: Floats
    busy_step_s: Floats  # (N,) s, a step times the share of the replicas that decode at all
    gpu_watts: Floats  # (N,) W, mean draw of one GPU; replicas without a request draw idle watts

    def gap_weights(self, probabilities: Floats) -> Floats:
        """Share of token gaps that fall into each state, (N,)."""
        gaps = np.zeros_like(probabilities)
        gaps[1:] = (probabilities * self.chain.batches)[1:] / self.chain.step_s[1:]
        return np.asarray(gaps / np.add.reduce(gaps))

    def mean_gpu_watts(self, probabilities: Floats) -> float:
        """Mean draw of one GPU of the pool."""
        return float(probabilities @ self.gpu_watts)

    def itl_s(self, probabilities: Floats, percentile_ratio: float) -> float:
        """Step time that the asked share of token gaps stays within."""
        below = np.cumsum(self.gap_weights(probabilities))
        at = int(np.searchsorted(below, percentile_ratio * below[-1]))
        return float(self.slow_step_s[min(at, len(below) - 1)])


def largest_batch(profile: EngineProfile, mix: Mix) -> int:
    _, longest = mix.longest_tokens
    if longest > profile.kv_capacity_tokens:
        raise Refused(
            f"a request of {longest:,.0f} tokens does not fit the {profile.kv_capacity_tokens:,} tokens of KV cache "
            f"on {replica_name(profile)}"
        )
    room = int(KV_FILL_RATIO * profile.kv_capacity_tokens / mix.held_tokens)
    return max(1, min(room, profile.decode_batches[-1]))


def chained_replicas(profile: EngineProfile, mix: Mix, replicas: int) -> int:
    """Replicas whose batches one chain follows; larger pools decode as this many would."""
    return max(1, min(replicas, MAX_CHAIN_STATES // largest_batch(profile, mix)))


@lru_cache(maxsize=128)  # decode and mixed pools of one profile are sized one after the other
def decoding_pool(profile: EngineProfile, mix: Mix, replicas: int) -> Decoding:
    """Follow the batches of a pool of ``replicas``, or of as many as one chain may."""
    largest, together = largest_batch(profile, mix), chained_replicas(profile, mix, replicas)
    batches = np.arange(1, together * largest + 1) / together
    context, spread = mix.context_tokens
    steps = decode_steps_s(profile, batches, [context])
    fuller = np.minimum(batches + (1.0 if together > 1 else 0.0), largest)  # least work leaves about one apart
    high = context + CONTEXT_SIGMAS * spread / np.sqrt(np.maximum(batches, 1.0))
    slow = decode_steps_s(profile, fuller, np.minimum(high, max(context, profile.decode_contexts[-1])))
    chain = queueing.batch_chain(steps, batches, replicas=together, output_tokens=mix.mean_output_tokens)
    slow = np.concatenate([[0.0], slow, np.full(len(chain.batches) - len(slow) - 1, slow[-1])])
    busy = np.minimum(1.0, chain.batches)  # with few requests some replicas have none
    watts = busy * decode_watts(profile, chain.batches) + (1.0 - busy) * profile.idle_watts_per_gpu
    return Decoding(chain=chain, replicas=together, slow_step_s=slow, busy_step_s=chain.step_s * busy, gpu_watts=watts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixed:
    """One mixed pool: its decoding, and the chunks that prompts put into its steps."""

    decoding: Decoding
    weight: Floats
    prefill_s: Floats  # (B,)
    chunks: Floats  # (B,) chunks of one prompt
    chunk_s: Floats  # (J,) s, sorted
    over_share: Floats  # (J + 1,) share of all chunks that are as long or longer

    @property
    def saturation_per_s(self) -> float:
        """Of one replica: seconds of prefill and of full decode steps that one request takes."""
        decode_s = self.decoding.replicas / self.decoding.chain.saturation_per_s
        return 1.0 / (float(self.weight @ self.prefill_s) + decode_s)

    def chunk_too_slow(self, limit_s: float) -> Floats:
        """Share of chunks that would push a step past the limit, in each state, (N,)."""
        within = self.chunk_s.searchsorted(limit_s - self.decoding.slow_step_s, side="right")
        over: Floats = self.over_share[within]
        return over

    def prefill_ratio(self, rate_per_s: float) -> float:
        """Share of one replica's time that chunks take."""
        return rate_per_s * float(self.weight @ self.prefill_s)

    def time_in_states(self, rate_per_s: float) -> Floats:
        """Share of time by state; decode steps run in what the chunks leave."""
        slowed = rate_per_s * self.decoding.replicas / (1.0 - self.prefill_ratio(rate_per_s))
        return self.decoding.chain.probabilities(slowed)

    def chunked_steps_ratio(self, rate_per_s: float) -> Floats:
        """Share of the steps of each state that carry a chunk, (N,)."""
        per_s = rate_per_s * float(self.weight @ self.chunks)
        return np.minimum(1.0, per_s * self.decoding.chain.step_s / (1.0 - self.prefill_ratio(rate_per_s)))

    def prompts(self, time: Floats, percentile_ratio: float) -> Prompts:
        """Prompts as seen from the queue: every chunk waits for the decode step that it shares."""
        step = float(time @ self.decoding.busy_step_s)
        at = int(time.cumsum().searchsorted(percentile_ratio))
        running = self.decoding.chain.step_s[min(at, len(time) - 1)]  # the step under way at arrival
        return Prompts(
            weight=self.weight,
            service_s=self.prefill_s + self.chunks * step,
            after_s=np.full(len(self.weight), float(running)),
        )

    def itl_s(self, rate_per_s: float, time: Floats, percentile_ratio: float) -> float:
        """Gap that the asked share of token gaps stays within, chunk steps included."""
        gaps, chunked = self.decoding.gap_weights(time), self.chunked_steps_ratio(rate_per_s)
        plain, beside = gaps * (1 - chunked), gaps * chunked
        slow_step_s = self.decoding.slow_step_s
        low, high = 0.0, float(slow_step_s.max() + self.chunk_s[-1])
        while high - low > 1e-4 * high:
            middle = (low + high) / 2
            late = float(plain @ (slow_step_s > middle)) + float(beside @ self.chunk_too_slow(middle))
            low, high = (low, middle) if late <= 1.0 - percentile_ratio else (middle, high)
        return high


def mixed_pool(profile: EngineProfile, mix: Mix, replicas: int) -> Mixed:
    prefill = prefill_times_s(profile, mix)
    prompts = zip(mix.prompt_tokens.tolist(), mix.cached_tokens.tolist(), strict=True)
    by_bucket = [prompt_chunks_s(profile, int(tokens), int(cached)) for tokens, cached in prompts]
    chunk = np.array([c for chunks in by_bucket for c in chunks])
    share = np.repeat(mix.weight, [len(chunks) for chunks in by_bucket])
    order = np.argsort(chunk, kind="stable")
    return Mixed(
        decoding=decoding_pool(profile, mix, replicas),
        weight=mix.weight,
        prefill_s=prefill,
        chunks=np.array([len(chunks) for chunks in by_bucket], dtype=float),
        chunk_s=chunk[order],
        over_share=np.concatenate([np.cumsum((share[order] / share.sum())[::-1])[::-1], [0.0]]),
    )

"""From a trace to the demand that planning uses: a few sizes with a stated error, and the rate of busy minutes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from controller.traces import BLOCK_TOKENS, Trace, TraceRequest
from solvers.buckets import Mix, cut_sizes
from solvers.engine import EngineProfile
from solvers.problem import Problem
from solvers.sizing import Capacity, replica_capacity
from solvers.workload import Demand, ServedModel

WINDOW_S = 60.0
BUSY_SHARE = 0.95  # of the minutes ask for no more than is planned for
POOL_SIZES = (1, 8)
CACHE_REPLICAS = 8  # that share a trace when its prefix hits are counted
CACHE_SHARE = 0.5  # of a replica's KV room that caches prefixes; sequences that run hold the rest
MOST_PROFILES = 6  # one for each GPU class is enough to tell a good cut from a bad one


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coefficients:
    """Capacities that a mix leads to, over the service's roles on some of its profiles."""

    service: ServedModel
    profiles: tuple[EngineProfile, ...]

    def __call__(self, mix: Mix) -> list[float]:
        sized = (
            replica_capacity(profile, role, mix, self.service.slos, pool_replicas=size)
            for profile in self.profiles
            for role in self.service.roles
            for size in POOL_SIZES
        )
        return [capacity.requests_per_s if isinstance(capacity, Capacity) else 0.0 for capacity in sized]


def trace_demand(problem: Problem, service: str, trace: Trace, name: str) -> Demand:
    """Cut the sizes of a trace for the service and take the rate of its busy minutes."""
    prompts = [request.prompt_tokens for request in trace]
    outputs = [request.output_tokens for request in trace]
    coefficients = _coefficients(problem, service)
    cached = cached_tokens(trace, _cache_tokens(coefficients.profiles))
    cut = cut_sizes(prompts, outputs, coefficients, cached_tokens=cached)
    sizes = f"{len(cut.mix)} sizes within {cut.error_ratio:.1%} of {cut.finest}"
    if any(cached):
        sizes += f", {sum(cached) / sum(prompts):.0%} of the prompts cached"
    return Demand(service=service, requests_per_s=_busy_per_s(trace), mix=cut.mix, source=f"Trace {name}; {sizes}")


def cached_tokens(trace: Trace, cache_tokens: float, replicas: int = CACHE_REPLICAS) -> list[int]:
    """Tokens of each prompt that are in the cache of the replica it goes to.

    Requests go to ``replicas`` in turn, the worst routing for a cache; each keeps the blocks that it used last.
    """
    room = int(cache_tokens // BLOCK_TOKENS)
    caches: list[dict[int, None]] = [{} for _ in range(replicas)]
    return [_hit_tokens(caches[index % replicas], request, room) for index, request in enumerate(trace)]


def _hit_tokens(cache: dict[int, None], request: TraceRequest, room: int) -> int:
    """Look a prompt up and keep its blocks, the first ones longest; the block of its last token is never shared."""
    blocks = request.block_ids[: (request.prompt_tokens - 1) // BLOCK_TOKENS]
    hits = next((i for i, block in enumerate(blocks) if block not in cache), len(blocks))
    for block in reversed(blocks):
        cache.pop(block, None)
        cache[block] = None
    for block in list(islice(cache, max(0, len(cache) - room))):
        del cache[block]
    return hits * BLOCK_TOKENS


def _cache_tokens(profiles: Sequence[EngineProfile]) -> float:
    """KV room of the smallest replica that running sequences leave."""
    return CACHE_SHARE * min((profile.kv_capacity_tokens for profile in profiles), default=0)


def _coefficients(problem: Problem, name: str) -> _Coefficients:
    service = next(s for s in problem.services if s.name == name)
    by_class: dict[str, EngineProfile] = {}
    for key, profile in sorted(problem.profiles.items()):
        if key.model == service.model and service.allows(key.gpu_class, key.config):
            by_class.setdefault(key.gpu_class, profile)
    profiles = tuple(profile for _, profile in sorted(by_class.items()))[:MOST_PROFILES]
    return _Coefficients(service=service, profiles=profiles)


def _busy_per_s(trace: Trace) -> float:
    """Requests per second that ``BUSY_SHARE`` of the whole minutes stay within; of a shorter trace the mean."""
    last = max(request.arrival_s for request in trace)
    minutes = int(last // WINDOW_S)
    if minutes < 2:
        return len(trace) / max(last, 1.0)
    counts = Counter(int(request.arrival_s // WINDOW_S) for request in trace)
    rates = sorted(counts.get(minute, 0) / WINDOW_S for minute in range(minutes))
    return rates[min(len(rates) - 1, int(BUSY_SHARE * len(rates)))]

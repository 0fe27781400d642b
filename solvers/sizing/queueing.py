"""Waiting-time formulas behind the sizing of prefill, decode and mixed pools, each with its range of validity.

All assume a pool of like replicas under least-outstanding-work routing, which for first-come-first-served work is
the same as one shared queue. Under two random choices the same pools carry far less (at p99, 0.23 of capacity
instead of 0.62 with four replicas): a plan states the routing that it assumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Slack = Callable[[float], float]
"""By how much a pool keeps its promises at a load: below 0 it breaks one."""

NEAR = 1e-5
"""How near to the largest load the search for it comes."""

MOST_SLACK = 50.0
MOST_GUESSES = 16

MAX_LOAD_RATIO = 0.9
"""Highest share of the saturation rate that any pool is sized for: past it small errors of the demand explode."""

MISS_SHARE = 0.5
"""Share of the allowed misses that the formulas may use up; the rest covers what they leave out (burstiness beyond
Poisson, very variable outputs: simulation attained 0.90-1.00 where 0.95 was asked without it)."""


def erlang_c(servers: int, offered_load: float) -> float:
    r"""Probability that an arrival waits in M/M/c.

    Parameters
    ----------
    servers : int
        ``c`` ≥ 1.
    offered_load : float
        ``a`` = arrival rate × mean service time, in servers; 1.0 is returned for a ≥ c.

    Notes
    -----
    By the recursion of Erlang B, stable for any c; exact for Poisson arrivals and exponential service, within a few
    hundredths for other service laws.

    >>> round(erlang_c(1, 0.5), 6), round(erlang_c(2, 1.0), 6)
    (0.5, 0.333333)
    """
    if offered_load >= servers:
        return 1.0
    blocked = 1.0
    for server in range(1, servers + 1):
        blocked = offered_load * blocked / (server + offered_load * blocked)
    return blocked / (1.0 - (offered_load / servers) * (1.0 - blocked))


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitTail:
    """P(wait > t) = ``waits_ratio`` · exp(−``decay_per_s`` · t) for t ≥ 0, and 1 below."""

    waits_ratio: float
    decay_per_s: float

    def after(self, wait_s: float) -> float:
        """Share of arrivals that wait longer."""
        return 1.0 if wait_s < 0 else self.waits_ratio * math.exp(-self.decay_per_s * wait_s)

    def ratio(self, wait_s: Floats) -> Floats:
        """Share of arrivals that wait longer than each of ``wait_s``, (N,) → (N,)."""
        return np.where(wait_s < 0, 1.0, self.waits_ratio * np.exp(-self.decay_per_s * np.maximum(wait_s, 0.0)))


def wait_tail(
    *, servers: int, rate_per_s: float, mean_service_s: float, service_scv: float, arrival_scv: float = 1.0
) -> WaitTail:
    r"""Tail of the waiting time in a pool with one shared queue (or least outstanding work).

    .. math:: P(W > t) \approx C(c, a) \exp\left(-\frac{2 t c (1-\rho)}{E[S](c_a^2 + c_s^2)}\right)

    Parameters
    ----------
    rate_per_s : float
        Arrivals at the whole pool.
    service_scv, arrival_scv : float
        Squared coefficients of variation; 1 for Poisson arrivals.

    Notes
    -----
    Exact for M/M/c. For mixes of prompts (SCV 1.9 and 5.2; c = 1..16; p95 and p99) it agreed with simulation within
    0.03 in utilisation, and is a little safe from c = 32 on. Not for priorities or for routing that ignores work.
    At or above saturation everybody waits for ever.
    """
    load = rate_per_s * mean_service_s
    if load >= servers:
        return WaitTail(waits_ratio=1.0, decay_per_s=0.0)
    decay = 2.0 * (servers - load) / (mean_service_s * (arrival_scv + service_scv))
    return WaitTail(waits_ratio=erlang_c(servers, load), decay_per_s=decay)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchChain:
    """Birth-death chain over the requests that a decode pool holds.

    With N requests over c balanced replicas every batch is N / c, a step takes ``step_s`` of it and requests leave
    at N / (output tokens · step). The law of output lengths does not matter while nobody waits for room (processor
    sharing is insensitive to it); Poisson arrivals.

    Attributes
    ----------
    batches : (N,) float
        Sequences in one replica's batch in each state; state 0 is empty.
    step_s : (N,) float s
        Step time in each state, 0 in state 0.
    log_weight : (N,) float
        Log of the unnormalised probability of each state at a pool rate of one request per second.
    held : (N,) float
        Requests that the pool holds in each state, waiting ones too.
    full : int
        The first state in which somebody waits for room; so do those beyond.
    saturation_per_s : float
        Rate of the whole pool at which it is never without work.
    """

    batches: Floats
    step_s: Floats
    log_weight: Floats
    held: Floats
    full: int
    saturation_per_s: float

    def probabilities(self, pool_rate_per_s: float) -> Floats:
        """Share of time in each state at the rate; (N,), sums to 1."""
        logs = self.log_weight + self.held * math.log(pool_rate_per_s)
        weights = np.exp(logs - np.maximum.reduce(logs))
        return np.asarray(weights / np.add.reduce(weights))


def batch_chain(step_s: Floats, batches: Floats, *, replicas: int, output_tokens: float) -> BatchChain:
    """Build the chain of a pool of ``replicas``.

    Parameters
    ----------
    step_s, batches : (N,) float s, (N,) float
        Step time and batch of one replica with 1..N requests in the pool; N / replicas is the largest batch.
    output_tokens : float
        Mean tokens that a request decodes.

    Notes
    -----
    The queue behind a full pool is cut off at half a pool more; below 0.9 of saturation what is cut off is small,
    and sizing asks that waiting be rare anyway.
    """
    full, room = len(step_s), max(8, len(step_s) // 2)
    steps = np.concatenate([step_s, np.full(room, step_s[-1])])
    held = np.concatenate([np.arange(1.0, full + 1.0), np.full(room, float(full))])
    leave_per_s = held / (output_tokens * steps)
    return BatchChain(
        batches=np.concatenate([[0.0], batches, np.full(room, batches[-1])]),
        step_s=np.concatenate([[0.0], steps]),
        log_weight=np.concatenate([[0.0], -np.cumsum(np.log(leave_per_s))]),
        full=full + 1,
        held=np.concatenate([[0.0], np.arange(1.0, full + room + 1.0)]),
        saturation_per_s=float(leave_per_s.max()),
    )


def slack(allowed: float, used: float) -> float:
    """Log of how many times over ``allowed`` would do; below 0, and never above, where more is used than is allowed."""
    if allowed <= 0.0 or used <= 0.0:
        return -MOST_SLACK if used > allowed else MOST_SLACK
    over = math.log(allowed / used)
    return max(over, 0.0) if used <= allowed else min(over, -1e-15)


def largest_load(slack_at: Slack, *, highest: float = MAX_LOAD_RATIO, lowest: float = 1e-3) -> float:
    """Find the largest share of the saturation rate at which the slack is not below 0; 0.0 if ``lowest`` is too much.

    The slack must be at least 0 below some load and below 0 above it; the answer is on its good side, the one of
    halving the interval until it is no wider than ``NEAR``. Where slack falls smoothly fewer loads are looked at: lines
    through what is known lead to where it is 0, and halving then knows most answers.
    """
    above = slack_at(highest)
    if above >= 0.0:
        return highest
    below = slack_at(lowest)
    if below < 0.0:
        return 0.0
    good, bad = _narrowed(slack_at, (lowest, below), (highest, above))
    low, high = lowest, highest
    while high - low > NEAR:
        middle = (low + high) / 2
        if middle > good and middle < bad:
            good, bad = (middle, bad) if slack_at(middle) >= 0.0 else (good, middle)
        low, high = (middle, high) if middle <= good else (low, middle)
    return low


def _narrowed(slack_at: Slack, good: tuple[float, float], bad: tuple[float, float]) -> tuple[float, float]:
    """Loads around the largest, about half of ``NEAR`` apart: secants, and halving where they gain too little."""
    (low, _), (high, _), step = good, bad, NEAR / 2
    before, last = good, bad
    for guess in range(MOST_GUESSES):
        if high - low <= 1.01 * step:
            break
        is_slow = guess > 1 and abs(last[1]) > abs(before[1]) / 2
        at = last[0] - last[1] * (last[0] - before[0]) / (last[1] - before[1]) if last[1] != before[1] else low
        if is_slow or not low < at < high:
            at = (low + high) / 2
        elif abs(at - last[0]) < step:  # found: what is left is to look at its other side
            at = low + step if last[0] == low else high - step
        before, last = last, (at, slack_at(at))
        low, high = (at, high) if last[1] >= 0.0 else (low, at)
    return low, high

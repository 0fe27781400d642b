"""Waiting-time formulas against closed forms, and against a few lines of simulation where there is none."""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from solvers.sizing.queueing import BatchChain, Floats, WaitTail, batch_chain, erlang_c, largest_load, slack, wait_tail

SERVICE_S = np.array([0.03, 0.06, 0.22, 1.0, 2.4])
SHORT_HEAVY = np.array([0.45, 0.35, 0.15, 0.04, 0.01])  # squared coefficient of variation 5.2
LONG_HEAVY = np.array([0.2, 0.2, 0.3, 0.2, 0.1])  # 1.9


def tail_of(weight: Floats, servers: int, load_ratio: float) -> WaitTail:
    mean = float(weight @ SERVICE_S)
    scv = float(weight @ SERVICE_S**2) / mean**2 - 1
    return wait_tail(servers=servers, rate_per_s=load_ratio * servers / mean, mean_service_s=mean, service_scv=scv)


def simulated_waits(weight: Floats, servers: int, load_ratio: float, count: int) -> Floats:
    """First come, first served over one queue: the k-th arrival starts when the earliest server is free."""
    rng = np.random.default_rng(7)
    service = rng.choice(SERVICE_S, count, p=weight)
    arrivals = np.cumsum(rng.exponential(float(weight @ SERVICE_S) / servers / load_ratio, count))
    free, waits = [0.0] * servers, np.empty(count)
    for index, (arrival, work) in enumerate(zip(arrivals.tolist(), service.tolist(), strict=True)):
        start = max(arrival, heapq.heappop(free))
        waits[index] = start - arrival
        heapq.heappush(free, start + work)
    return waits[count // 10 :]


def erlang_c_by_definition(servers: int, load: float) -> float:
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


@given(st.integers(1, 30), st.floats(0.01, 0.99))
def test_erlang_c_is_its_definition(servers: int, ratio: float) -> None:
    assert erlang_c(servers, ratio * servers) == pytest.approx(erlang_c_by_definition(servers, ratio * servers))


def test_everybody_waits_at_saturation() -> None:
    assert erlang_c(3, 3.0) == 1.0
    tail = wait_tail(servers=2, rate_per_s=10.0, mean_service_s=0.2, service_scv=1.0)
    assert tail.ratio(np.array([0.0, 1e6])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("wait_s", [0.0, 0.1, 1.0])
def test_one_server_with_exponential_service_is_exact(wait_s: float) -> None:
    rho, mean = 0.7, 0.2
    tail = wait_tail(servers=1, rate_per_s=rho / mean, mean_service_s=mean, service_scv=1.0)
    assert float(tail.ratio(np.array([wait_s]))[0]) == pytest.approx(rho * math.exp(-wait_s * (1 - rho) / mean))


def test_the_mean_wait_is_pollaczek_khinchine() -> None:
    rho, mean, scv = 0.6, 0.5, 3.0
    tail = wait_tail(servers=1, rate_per_s=rho / mean, mean_service_s=mean, service_scv=scv)
    assert tail.waits_ratio / tail.decay_per_s == pytest.approx(rho * mean * (1 + scv) / (2 * (1 - rho)))


def test_no_time_to_wait_is_always_missed() -> None:
    assert tail_of(LONG_HEAVY, 2, 0.1).ratio(np.array([-0.001])).tolist() == [1.0]


@pytest.mark.parametrize("servers", [1, 4, 8])
@pytest.mark.parametrize("weight", [SHORT_HEAVY, LONG_HEAVY], ids=["short-heavy", "long-heavy"])
def test_the_load_that_keeps_a_percentile_agrees_with_simulation(servers: int, weight: Floats) -> None:
    """Within 0.05 of utilisation: 0.03 is the formula's own error, 0.02 the noise of 60,000 requests."""
    limit_s, percentile = 2.0, 0.95

    def formula(load: float) -> float:
        return slack(1 - percentile, float(tail_of(weight, servers, load).ratio(np.array([limit_s]))[0]))

    found = largest_load(formula, highest=0.99)
    below, above = (
        float((simulated_waits(weight, servers, load, 60_000) > limit_s).mean())
        for load in (max(found - 0.05, 0.01), min(found + 0.05, 0.995))
    )
    assert below <= 1 - percentile <= above


def decode_chain(replicas: int, step_s: NDArray[Any], output_tokens: float = 100.0) -> BatchChain:
    batches = np.arange(1, len(step_s) + 1) / replicas
    return batch_chain(step_s.astype(float), batches, replicas=replicas, output_tokens=output_tokens)


def test_a_chain_with_a_constant_step_is_an_infinite_server_queue() -> None:
    """Every request decodes at full speed whatever the batch, so the batch is Poisson with mean rate x time."""
    chain = decode_chain(1, np.full(60, 0.02))
    probability = chain.probabilities(5.0)  # 5 requests/s of 100 steps of 20 ms: mean batch 10
    poisson = [math.exp(-10) * 10**n / math.factorial(n) for n in range(40)]
    assert probability[:40] == pytest.approx(poisson, abs=1e-9)
    assert float(probability @ chain.batches) == pytest.approx(10.0)


def test_a_chain_with_a_step_in_proportion_to_the_batch_is_one_server() -> None:
    """A step of t seconds a sequence is processor sharing: geometric with ratio rate x output tokens x t."""
    chain = decode_chain(1, 0.001 * np.arange(1, 201))
    probability = chain.probabilities(5.0)
    assert probability[:50] == pytest.approx([0.5 * 0.5**n for n in range(50)], abs=1e-12)
    assert chain.saturation_per_s == pytest.approx(10.0)


def test_a_pool_of_balanced_replicas_holds_each_batch_near_its_mean() -> None:
    step = 0.005 + 0.0005 * np.arange(1, 65)
    alone = decode_chain(1, step)
    pooled_steps = 0.005 + 0.0005 * np.arange(1, 64 * 8 + 1) / 8
    pooled = decode_chain(8, pooled_steps)
    rate = 0.7 * alone.saturation_per_s

    def late(chain: BatchChain, pool_rate: float) -> float:
        return float(chain.probabilities(pool_rate)[chain.batches > 48].sum())

    assert pooled.saturation_per_s == pytest.approx(8 * alone.saturation_per_s)
    assert late(pooled, 8 * rate) < late(alone, rate)


@given(st.floats(0.01, 0.95), st.integers(1, 4), st.integers(1, 40))
def test_shares_of_time_sum_to_one_and_throughput_equals_the_rate(load: float, replicas: int, largest: int) -> None:
    step = 0.01 + 0.0004 * np.arange(1, replicas * largest + 1) / replicas
    chain = decode_chain(replicas, step)
    rate = load * chain.saturation_per_s
    probability = chain.probabilities(rate)
    held = np.minimum(np.arange(len(probability)), replicas * largest)
    served = float(probability[1:] @ (held[1:] / (100.0 * chain.step_s[1:])))
    lost = float(probability[-1])  # the state where the cut-off queue turns arrivals away
    assert float(probability.sum()) == pytest.approx(1.0)
    assert served == pytest.approx(rate * (1 - lost))


@given(st.floats(0.01, 0.85))
def test_the_largest_load_is_found_from_below(edge: float) -> None:
    found = largest_load(lambda load: edge - load)
    assert edge - 2e-5 < found <= edge


@given(st.floats(0.01, 0.89), st.floats(0.1, 200.0), st.floats(-3.0, 3.0), st.floats(0.0, 5.0))
def test_lines_lead_to_the_load_that_halving_finds(edge: float, steep: float, bent: float, jump: float) -> None:
    asked = []

    def slack_at(load: float) -> float:
        asked.append(load)
        left = edge - load
        return steep * left * math.exp(bent * load) - (jump if left < 0.0 else 0.0)

    low, high = 1e-3, 0.9
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if slack_at(middle) >= 0.0 else (low, middle)
    halved = len(asked)
    assert largest_load(slack_at) == low
    assert len(asked) - halved <= 2 * halved + 2


@pytest.mark.parametrize(("allowed", "used"), [(0.1, 0.1), (0.1, 0.0), (0.0, 0.0), (0.3, 0.2)])
def test_slack_is_not_below_nothing_where_no_more_is_used_than_allowed(allowed: float, used: float) -> None:
    assert slack(allowed, used) >= 0.0
    assert slack(used, allowed) < 0.0 or allowed == used


def test_the_largest_load_is_capped_and_may_be_none() -> None:
    assert largest_load(lambda load: 1.0) == 0.9
    assert largest_load(lambda load: -1.0) == 0.0
